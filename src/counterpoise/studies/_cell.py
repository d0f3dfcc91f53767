"""One cell of a study: tune, find the threshold, refit, predict the test fold once.

    training fold --inner folds--> out-of-fold scores of every trial --> best setting, its threshold --> refit --> scores of the test fold

Encoding, imputing, scaling, resampling, weights and priors are fitted on the rows a model is fitted on, and nowhere else. The rows whose
scores set a threshold were not trained on by the model that scored them, and no remedy has touched them.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.special import logit

from counterpoise._errors import CounterpoiseError
from counterpoise._seeding import key_of, seed_integer
from counterpoise._thresholds import best_offsets, best_threshold, prior_threshold

from ._learners import Choice, Learner, Space, space_json
from ._metrics import cell_metrics
from ._preprocess import Preprocess
from ._remedies import Remedy, TrainingRows
from ._splits import Splits
from ._types import Arm, CellId, CellResult, Protocol

if TYPE_CHECKING:
    from ._problem import Problem

__all__ = ["Trained", "arm_of", "fit_once", "make_scores", "run_cell", "thresholds_of", "train"]

FEW_POSITIVES = 20  # below, the prior sets the threshold: out-of-fold scores say too little
FLOAT64_ROWS = 100_000  # scores are stored in float32 above
INVENTED = -1  # row number of a synthetic row

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.floating]


def arm_of(learner: Learner, remedy: Remedy) -> Arm:
    version = f"{learner.code_version}+{remedy.code_version}"
    return Arm(learner.name, remedy.name, remedy.stage, space_json(joint_space(learner, remedy)), version)


def joint_space(learner: Learner, remedy: Remedy) -> Space:
    return {**learner.space, **remedy.space}


@dataclass
class Fitted:
    """One fitted model with what it takes to score rows."""

    preprocess: Preprocess
    estimator: Any
    effective_prior: list[float]  # class shares as the fit saw them: after resampling and weighting
    steps: int

    def scores(self, X: FloatArray, text: npt.NDArray[np.object_] | None, task: str) -> npt.NDArray[np.float64]:
        return make_scores(self.estimator, self.preprocess.transform(X, text), task)


@dataclass
class Trained:
    """A model after tuning, thresholding and refitting on one set of training rows."""

    model: Fitted
    params: dict[str, Any]
    threshold: list[float]
    thresholds: dict[str, list[float]]  # by rule: tuned, prior, half
    fits: int
    steps: int
    notes: list[str]


def run_cell(problem: Problem, protocol: Protocol, splits: Splits, learner: Learner, remedy: Remedy, cell: CellId) -> CellResult:
    """Compute one cell. Raises :class:`CounterpoiseError` when the arm cannot be fitted here."""
    wall, cpu = time.perf_counter(), time.process_time()
    train_rows = splits.train_index(cell.repeat, cell.fold, cell.drop)
    test_rows = splits.test_index(cell.repeat, cell.fold, cell.drop)
    trained = train(problem, protocol, splits, learner, remedy, train_rows, cell.repeat, cell.fold)
    scores = trained.model.scores(problem.X[test_rows], _take(problem.text, test_rows), problem.task)
    if problem.n > FLOAT64_ROWS:
        scores = scores.astype(np.float32)
    metrics = cell_metrics(problem.task, problem.y[test_rows], scores, trained.threshold, cost=protocol.cost)
    extra: dict[str, Any] = {"thresholds": trained.thresholds, "splits": splits.fingerprint(cell.repeat)}
    if problem.task != "regression":
        extra["effective_prior"] = trained.model.effective_prior
        counts = np.bincount(problem.y[train_rows], minlength=len(problem.schema.classes))
        extra["prior"] = (counts / counts.sum()).tolist()
    if len(scores) > 1 and np.ptp(scores, axis=0).max() == 0:
        trained.notes.append("constant predictions")
    if trained.notes:
        extra["notes"] = sorted(set(trained.notes))
    return CellResult(
        scores=scores,
        threshold=trained.threshold,
        metrics=metrics,
        params=trained.params,
        seconds=time.perf_counter() - wall,
        cpu_seconds=time.process_time() - cpu,
        fits=trained.fits,
        steps=trained.steps,
        peak_rss_mb=_peak_rss_mb(),
        extra=extra,
    )


def train(
    problem: Problem, protocol: Protocol, splits: Splits, learner: Learner, remedy: Remedy, rows: IntArray, repeat: int | str, fold: int
) -> Trained:
    """Tune ``protocol.trials`` settings in inner folds, set the threshold on the best one's out-of-fold scores, refit on all ``rows``."""
    space = joint_space(learner, remedy)
    base = (repeat, fold, key_of(arm_of(learner, remedy).hash))
    pairs = splits.inner_pairs(rows, splits.inner_folds(rows, repeat, fold)) if _needs_inner(problem, protocol, rows) else []
    max_steps = _max_steps(learner, len(rows))
    y = problem.y[rows]
    fits = steps = 0
    notes: list[str] = []
    best: tuple[float, dict[str, Any], npt.NDArray[np.float64], npt.NDArray[np.bool_]] | None = None
    tuner = _Tuner(space, protocol.trials, seed_integer(protocol.seed, *base, "tuner"))
    for trial in range(protocol.trials):
        params = tuner.ask()
        # Settings are compared on the same random numbers; without anything to set, the seed itself is what differs between trials.
        stream: tuple[str | int, ...] = (*base, trial if not space else 0)
        scores, scored = _blank_scores(problem, len(rows)), np.zeros(len(rows), dtype=bool)
        priors: list[list[float]] = []
        for inner, (fit_rows, score_at) in enumerate(pairs):
            model = fit_once(problem, learner, remedy, fit_rows, params, seed_integer(protocol.seed, *stream, inner), max_steps, notes)
            scores[score_at] = model.scores(problem.X[rows[score_at]], _take(problem.text, rows[score_at]), problem.task)
            scored[score_at] = True
            priors.append(model.effective_prior)
            fits, steps = fits + 1, steps + model.steps
        value = _objective(problem, protocol, y[scored], scores[scored], np.mean(priors, axis=0).tolist() if priors else [])
        tuner.tell(value)
        if best is None or value > best[0]:
            best = (value, params | ({"trial_seed": trial} if not space and protocol.trials > 1 else {}), scores, scored)
    assert best is not None
    _, params, scores, scored = best
    chosen = {key: value for key, value in params.items() if key != "trial_seed"}
    stream = (*base, params.get("trial_seed", 0), "refit")
    model = fit_once(problem, learner, remedy, rows, chosen, seed_integer(protocol.seed, *stream), max_steps, notes)
    thresholds = thresholds_of(problem, protocol, y, scores, scored, model.effective_prior)
    return Trained(model, params, thresholds.get(remedy.rule, []), thresholds, fits + 1, steps + model.steps, notes)


def fit_once(
    problem: Problem,
    learner: Learner,
    remedy: Remedy,
    rows: IntArray,
    params: Mapping[str, Any],
    seed: int,
    max_steps: int | None,
    notes: list[str],
) -> Fitted:
    """Fit one model on ``rows``: preprocess, draw, weigh, fit."""
    y = problem.y[rows]
    levels = [len(feature.levels) for feature in problem.schema.features]
    preprocess = Preprocess(levels, scale=learner.scale, task=problem.task, seed=seed)
    cleaned, words = preprocess.fit(problem.X[rows], _take(problem.text, rows))
    user_weight = None if problem.weight is None else problem.weight[rows]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        training = TrainingRows(cleaned, preprocess.cleaned_categorical, y, rows, problem.task, problem.groups)
        draw = remedy.draw(training, params, seed)
    notes += [f"{remedy.name}: {str(warning.message).splitlines()[0]}" for warning in said]
    if draw is not None:
        at = draw.index
        cleaned, y, rows = cleaned[at], y[at], rows[at]
        words = None if words is None else words[at]
        drawn_weight = None if user_weight is None else user_weight[at]
        if draw.X_new is not None and draw.y_new is not None:
            cleaned, y = np.vstack([cleaned, draw.X_new]), np.concatenate([y, draw.y_new])
            rows = np.concatenate([rows, np.full(len(draw.y_new), INVENTED)])
            if user_weight is not None and drawn_weight is not None:
                # An invented row weighs as much as the average row.
                drawn_weight = np.concatenate([drawn_weight, np.full(len(draw.y_new), user_weight.mean())])
        user_weight = drawn_weight
    encoded = preprocess.fit_encode(cleaned, y, rows)
    training = TrainingRows(cleaned, preprocess.cleaned_categorical, y, rows, problem.task, problem.groups)
    if words is not None:
        encoded = np.hstack([encoded, words])
    weight = remedy.weights(training, params)
    if user_weight is not None:
        weight = user_weight if weight is None else weight * user_weight
    estimator = remedy.estimator(problem.task, params, seed)
    arguments: dict[str, Any] = {}
    if estimator is None:
        options: dict[str, Any] = {}
        if learner.takes_loss:
            options = {"loss": remedy.loss(problem.task, len(problem.schema.classes), params), "max_steps": max_steps}
            options |= remedy.net(training, params)
            arguments = dict(remedy.fit_arguments(training))
        estimator = learner.build(problem.task, params, seed, **options)
    if weight is not None and not learner.takes_weights:
        notes.append(f"{learner.name} takes no sample_weight: weights were ignored")
        weight = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if weight is not None:
            arguments["sample_weight"] = weight
        estimator.fit(encoded, y, **arguments)
    notes += [f"{learner.name}: {str(warning.message).splitlines()[0]}" for warning in caught]
    prior: list[float] = []
    if problem.task != "regression":
        mass = np.bincount(y, weights=weight, minlength=len(problem.schema.classes))
        prior = [1.0 / len(mass)] * len(mass) if remedy.balances_inside else (mass / mass.sum()).tolist()
        if (mass == 0).any():
            missing = problem.schema.classes[int(np.flatnonzero(mass == 0)[0])]
            raise CounterpoiseError(f"no row of class {missing!r} is left to train on")
    return Fitted(preprocess, estimator, prior, int(getattr(estimator, "steps_", 0)))


def make_scores(estimator: Any, X: FloatArray, task: str) -> npt.NDArray[np.float64]:
    """(n,) log-odds of the positive class, (n, C) log-probabilities, or (n,) predictions of a regression.

    Logistic models, boosting and our nets give log-odds directly; of others the probabilities are taken, clipped at the machine epsilon.
    """
    from scipy.special import log_softmax

    if task == "regression":
        return np.asarray(estimator.predict(X), dtype=np.float64)
    if _gives_log_odds(estimator):
        raw = np.asarray(estimator.decision_function(X), dtype=np.float64)
        return raw if task == "binary" else np.asarray(log_softmax(raw, axis=1))
    if hasattr(estimator, "predict_proba"):
        tiny = np.finfo(np.float64).eps
        probability = np.clip(np.asarray(estimator.predict_proba(X), dtype=np.float64), tiny, 1 - tiny)
        return np.log(probability[:, 1]) - np.log(probability[:, 0]) if task == "binary" else np.log(probability)
    raw = np.asarray(estimator.decision_function(X), dtype=np.float64)
    return raw if task == "binary" else np.asarray(log_softmax(raw, axis=1))


def _gives_log_odds(estimator: Any) -> bool:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression

    if isinstance(estimator, (LogisticRegression, HistGradientBoostingClassifier)):
        return True
    return type(estimator).__module__.startswith("counterpoise.engines")


def thresholds_of(
    problem: Problem,
    protocol: Protocol,
    y: npt.NDArray[Any],
    scores: npt.NDArray[np.float64],
    scored: npt.NDArray[np.bool_],
    effective: Sequence[float],
) -> dict[str, list[float]]:
    """The threshold (offsets for more than two classes) of every rule: tuned on out-of-fold scores, from the prior, and one half.

    ``effective`` are the class shares as the model saw them: resampling and weights move its scores by logit(effective) - logit(pi),
    and the threshold from the prior moves along.
    """
    if problem.task == "regression":
        return {}
    counts = np.bincount(y, minlength=len(problem.schema.classes))
    prior, seen = counts / counts.sum(), np.asarray(effective)
    few = _few(problem, y)
    if problem.task == "binary":
        closed = prior_threshold(prior[1], protocol.metric, protocol.cost) + float(logit(seen[1]) - logit(prior[1]))
        tuned = closed if few else best_threshold(y[scored], scores[scored], protocol.metric, protocol.cost)
        return {"tuned": [float(tuned)], "prior": [float(closed)], "half": [0.0]}
    back = np.log(prior) - np.log(seen)  # to the class shares of the data
    offsets = back - np.log(prior) if protocol.metric == "balanced_accuracy" else back
    tuned_offsets = offsets if few else best_offsets(y[scored], scores[scored], protocol.metric, prior)
    return {"tuned": np.asarray(tuned_offsets).tolist(), "prior": offsets.tolist(), "half": [0.0] * len(prior)}


def _needs_inner(problem: Problem, protocol: Protocol, rows: IntArray) -> bool:
    """Out-of-fold scores serve tuning and the threshold; the same answer for every arm, so budgets stay equal."""
    if protocol.trials > 1:
        return True
    return problem.task != "regression" and not _few(problem, problem.y[rows])


def _few(problem: Problem, y: npt.NDArray[Any]) -> bool:
    return bool(np.bincount(y, minlength=len(problem.schema.classes)).min() < FEW_POSITIVES)


def _objective(
    problem: Problem, protocol: Protocol, y: npt.NDArray[Any], scores: npt.NDArray[np.float64], effective: Sequence[float]
) -> float:
    """What tuning maximises: the metric of the primary question on out-of-fold scores."""
    if protocol.trials == 1:
        return 0.0  # nothing to compare
    threshold = thresholds_of(problem, protocol, y, scores, np.ones(len(y), dtype=bool), effective).get("tuned", [])
    metrics = cell_metrics(problem.task, y, scores, threshold, cost=protocol.cost)
    names = {"ranking": "auroc", "probabilities": "log_loss", "error": "mae"}
    name = names.get(protocol.primary, protocol.metric)
    return -metrics[name] if name in ("log_loss", "mae", "cost") else metrics[name]


class _Tuner:
    """Defaults first, then what optuna's TPE sampler proposes; optuna is only imported when there is something to tune."""

    def __init__(self, space: Space, trials: int, seed: int) -> None:
        self._space = space
        self._trials = trials
        self._seed = seed
        self._asked = 0
        self._study: Any = None
        self._open: Any = None

    def ask(self) -> dict[str, Any]:
        self._asked += 1
        if self._asked == 1 or not self._space:
            return {name: dimension.default for name, dimension in self._space.items()}
        import optuna

        if self._study is None:
            optuna.logging.set_verbosity(optuna.logging.ERROR)
            self._study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=self._seed))
        self._open = self._study.ask()
        return {name: _suggest(self._open, name, dimension) for name, dimension in self._space.items()}

    def tell(self, value: float) -> None:
        if self._open is not None:
            self._study.tell(self._open, value)
            self._open = None


def _suggest(trial: Any, name: str, dimension: Any) -> Any:
    if isinstance(dimension, Choice):
        return trial.suggest_categorical(name, list(dimension.options))
    if dimension.integer:
        return trial.suggest_int(name, int(dimension.low), int(dimension.high), log=dimension.log)
    return trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log)


def _max_steps(learner: Learner, n_rows: int) -> int | None:
    """Steps of every net fit of a cell, inner or final, whatever the arm makes of the rows."""
    if not learner.takes_loss:
        return None
    from counterpoise.engines._mlp import default_steps

    return default_steps(n_rows)


def _blank_scores(problem: Problem, n: int) -> npt.NDArray[np.float64]:
    return np.full((n, len(problem.schema.classes)) if problem.task == "multiclass" else n, np.nan)


def _take(values: npt.NDArray[Any] | None, rows: IntArray) -> npt.NDArray[Any] | None:
    return None if values is None else values[rows]


def _peak_rss_mb() -> float:
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024.0**2 if sys.platform == "darwin" else 1024.0)
