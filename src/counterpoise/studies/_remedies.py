"""What is tried: one small object per remedy, and the list of those that come built in.

A remedy acts at one stage by overriding one hook of :class:`Remedy`; the others leave the fit as it is. It only ever sees training rows:
the engine scores and tunes thresholds on rows that no hook is given. To add one, subclass ``Remedy``, override its hook, and append it to
``BUILT_IN`` - or pass an instance to ``counterpoise.study(..., remedies=[...])``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._errors import CounterpoiseError, InputError, bad_input, check_choice
from counterpoise._seeding import generator
from counterpoise.groups import Groups

from ._learners import FOREST_SIZE, Choice, Learner, Range, Space

if TYPE_CHECKING:
    from torch import nn

    from ._problem import Problem

__all__ = ["BUILT_IN", "Draw", "FairPenaltyRemedy", "Remedy", "SamplerRemedy", "TrainingRows", "as_remedies", "target_bins"]

PLACEBO_SHARE = 0.2
TARGET_BINS = 10  # equal-width bins of a regression target
RARE_TARGETS = 20  # so that every training part has a few of them, whatever the folds
NEIGHBOR_ROWS = 200_000  # largest table for resamplers that search neighbors


@dataclass(frozen=True)
class TrainingRows:
    """What a data-stage remedy may look at: the training rows of one fit, cleaned (no gaps; categories as codes)."""

    X: npt.NDArray[np.floating]  # (n, p) cleaned
    categorical: npt.NDArray[np.bool_]  # (p,) which columns are codes
    y: npt.NDArray[Any]  # (n,) codes 0..C-1, or the real target
    rows: npt.NDArray[np.int64]  # (n,) row numbers in the whole table, -1 for invented rows
    task: str
    groups: Mapping[str, Groups] = field(default_factory=dict)  # what the study reports by, of the whole table


@dataclass(frozen=True)
class Draw:
    """Which rows to train on: ``index`` into the training rows (repeats allowed), and invented rows in the cleaned space."""

    index: npt.NDArray[np.int64]
    X_new: npt.NDArray[np.floating] | None = None
    y_new: npt.NDArray[Any] | None = None


@dataclass(frozen=True)
class Remedy:
    """A configured method at one stage.

    Attributes:
        name: what the arm is called.
        stage: data, loss, model or decision - where it acts.
        space: its own dimensions of the search space, added to the learner's.
        paper: number of the paper in ``counterpoise papers``, if one stands behind it.
        rule: how its decision threshold is set: ``tuned`` on out-of-fold scores, ``prior`` (closed form) or ``half`` (probability 0.5).
        needs_rows: whether :meth:`draw` looks at the features (the engine then keeps the cleaned matrix).
        learner: the one learner it belongs to (an ensemble that replaces it), or None for all.
        balances_inside: whether its estimator trains on equal class counts by itself, whatever it is given.
        code_version: raise it when the numbers change; stored cells of older versions are kept apart.
    """

    name: str
    stage: str
    about: str = ""
    space: Space = field(default_factory=dict)
    paper: str = ""
    rule: str = "tuned"
    needs_rows: bool = False
    learner: str | None = None
    balances_inside: bool = False
    code_version: str = "1"

    def applies(self, problem: Problem, learner: Learner) -> str | None:
        """None if it can be used here, otherwise the reason why not."""
        return None

    def bound(self, problem: Problem) -> Remedy:
        """The remedy for this problem: whatever its numbers depend on beside rows and settings goes into its ``code_version``."""
        return self

    def draw(self, training: TrainingRows, params: Mapping[str, Any], seed: int) -> Draw | None:
        """Data stage: which rows to train on. None = as they are."""
        return None

    def weights(self, training: TrainingRows, params: Mapping[str, Any]) -> npt.NDArray[np.float64] | None:
        """Loss stage: a weight for every training row. None = all alike."""
        return None

    def loss(self, task: str, n_classes: int, params: Mapping[str, Any]) -> nn.Module | None:
        """Loss stage, nets only: a module with ``reduction="none"``. None = cross-entropy (squared error)."""
        return None

    def net(self, training: TrainingRows, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """Model stage and phases of the training, nets only: further arguments of the net. Empty = the usual one."""
        return {}

    def fit_arguments(self, training: TrainingRows) -> Mapping[str, Any]:
        """Nets only: further arguments of the net's ``fit``."""
        return {}

    def estimator(self, task: str, params: Mapping[str, Any], seed: int) -> Any | None:
        """Model stage: an estimator in place of the learner's. None = the learner's own."""
        return None

    def optimizer(self) -> Any | None:
        """Update stage, one's own loops only: an optimizer class. None = the loop's own."""
        return None

    def aggregator(self) -> Any | None:
        """Gradient stage, one's own loops only: a callable (m, n) -> (n,) for the gradients of m losses. None = their sum."""
        return None

    @property
    def effort(self) -> str:
        """Its place in ``STAGE_ORDER``: the stage, and after all others what only nets can take."""
        return "net loss" if type(self).loss is not Remedy.loss or self.inside_the_net else self.stage

    @property
    def invents_rows(self) -> bool:
        """Whether its draw holds rows that are not in the table, which no sampler of row numbers can hand out."""
        return False

    @property
    def inside_the_net(self) -> bool:
        """Whether it changes how our own net is built or trained, which another loop would have to do by itself."""
        return type(self).net is not Remedy.net

    @property
    def shares_scores(self) -> bool:
        """A rule for the threshold alone: the scores are the baseline's, so nothing is fitted again."""
        return self.rule != "tuned"


def target_bins(y: npt.NDArray[np.floating], bins: int = TARGET_BINS) -> npt.NDArray[np.int64]:
    """Ids of equal-width bins of a regression target."""
    low, high = float(y.min()), float(y.max())
    if not high > low:
        return np.zeros(len(y), dtype=np.int64)
    return np.minimum(((y - low) / (high - low) * bins).astype(np.int64), bins - 1)


def _groups(training: TrainingRows) -> npt.NDArray[np.int64]:
    """What is to be balanced: the classes, or the bins of the target."""
    return target_bins(training.y) if training.task == "regression" else training.y


class _Placebo(Remedy):
    """The baseline without a fixed fifth of the rows: what a remedy that does nothing looks like."""

    def draw(self, training: TrainingRows, params: Mapping[str, Any], seed: int) -> Draw:
        return Draw(np.flatnonzero(kept_rows(training.rows, PLACEBO_SHARE, self.name)))


def kept_rows(rows: npt.NDArray[np.int64], share: float, name: str) -> npt.NDArray[np.bool_]:
    """A fixed random subset by row number: the same rows are missing in every fold, repeat and fit of the arm called ``name``."""
    return generator(0, "placebo", name).random(int(rows.max(initial=0)) + 1)[rows] >= share


class _Weights(Remedy):
    """Inverse-frequency weights: of classes, or of the bins of a regression target."""

    def applies(self, problem: Problem, learner: Learner) -> str | None:
        return None if learner.takes_weights else f"{learner.name} takes no sample_weight"

    def weights(self, training: TrainingRows, params: Mapping[str, Any]) -> npt.NDArray[np.float64]:
        from counterpoise._balance import class_weight_values

        groups = _groups(training)
        counts = np.bincount(groups)
        present = counts > 0
        values = np.zeros(len(counts))
        values[present] = class_weight_values(counts[present])
        return values[groups]


class _Over(Remedy):
    """Random over-sampling to equal counts."""

    def draw(self, training: TrainingRows, params: Mapping[str, Any], seed: int) -> Draw:
        from imblearn.over_sampling import RandomOverSampler

        return Draw(_sampled(RandomOverSampler(random_state=seed), _groups(training)))


class _Under(Remedy):
    """Random under-sampling to equal counts."""

    def applies(self, problem: Problem, learner: Learner) -> str | None:
        # A bin with one row would leave one row per bin.
        return "under-sampling to the rarest target bin leaves almost nothing" if problem.task == "regression" else None

    def draw(self, training: TrainingRows, params: Mapping[str, Any], seed: int) -> Draw:
        from imblearn.under_sampling import RandomUnderSampler

        return Draw(_sampled(RandomUnderSampler(random_state=seed), _groups(training)))


def _sampled(sampler: Any, groups: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    if len(np.unique(groups)) < 2:
        return np.arange(len(groups))
    sampler.fit_resample(np.zeros((len(groups), 1)), groups)
    return np.asarray(sampler.sample_indices_, dtype=np.int64)


class _NeighborResampler(Remedy):
    """Shared by the resamplers that search neighbors: distances need standardised columns and a table of moderate size."""

    @property
    def invents_rows(self) -> bool:
        return True

    def applies(self, problem: Problem, learner: Learner) -> str | None:
        if problem.task == "regression":
            return "needs classes"
        if problem.text is not None:
            return "cannot invent text"
        if problem.n > NEIGHBOR_ROWS:
            return f"too large: neighbors are searched up to {NEIGHBOR_ROWS:,} rows"
        return None


class _SMOTE(_NeighborResampler):
    """Synthetic minority rows between neighbors: SMOTE; SMOTENC where some columns are categories, SMOTEN where all are."""

    def draw(self, training: TrainingRows, params: Mapping[str, Any], seed: int) -> Draw:
        from counterpoise.data import SMOTE, SMOTEN, SMOTENC

        options: dict[str, Any] = {"k_neighbors": _neighbors(training, params), "random_state": seed}
        categories = np.flatnonzero(training.categorical).tolist()
        if not categories:
            return drawn_by(SMOTE(**options), training)
        return drawn_by(SMOTEN(**options) if training.categorical.all() else SMOTENC(categories, **options), training)


class _NumbersOnly(_NeighborResampler):
    """Resamplers that know no categories."""

    def applies(self, problem: Problem, learner: Learner) -> str | None:
        reason = super().applies(problem, learner)
        return reason or ("needs columns that are all numbers" if problem.categorical.any() else None)


class _BorderlineSMOTE(_NumbersOnly):
    """SMOTE from the minority rows that have more common neighbors than rare ones."""

    def draw(self, training: TrainingRows, params: Mapping[str, Any], seed: int) -> Draw:
        from counterpoise.data import BorderlineSMOTE

        sampler = BorderlineSMOTE(
            k_neighbors=_neighbors(training, params), m_neighbors=_at_most(10, len(training.y) - 1), random_state=seed
        )
        return drawn_by(sampler, training)


class _ADASYN(_NumbersOnly):
    """More synthetic rows where a minority row has more common neighbors."""

    def draw(self, training: TrainingRows, params: Mapping[str, Any], seed: int) -> Draw:
        from counterpoise.data import ADASYN

        return drawn_by(ADASYN(n_neighbors=_neighbors(training, params), random_state=seed), training)


class _CleanedSMOTE(_NumbersOnly):
    """SMOTE, then rows that lie among the other class leave."""

    def draw(self, training: TrainingRows, params: Mapping[str, Any], seed: int) -> Draw:
        from counterpoise.data import SMOTE, SMOTEENN, SMOTETomek

        kind = SMOTEENN if self.name == "smote-enn" else SMOTETomek
        smote = SMOTE(k_neighbors=_neighbors(training, params), random_state=seed)
        return drawn_by(kind(smote=smote, random_state=seed), training)


class _RareRanges(Remedy):
    """Synthetic rows for the rare ranges of a target: SMOTER, or SMOGN with its noise where neighbors are far."""

    @property
    def invents_rows(self) -> bool:
        return True

    def applies(self, problem: Problem, learner: Learner) -> str | None:
        if problem.task != "regression":
            return "needs a target that is a number"
        if problem.text is not None:
            return "cannot invent text"
        if problem.n > NEIGHBOR_ROWS:
            return f"too large: neighbors are searched up to {NEIGHBOR_ROWS:,} rows"
        return (
            None
            if _rare_targets(problem.y) >= RARE_TARGETS
            else f"fewer than {RARE_TARGETS} values lie beyond the whiskers of the target's box plot"
        )

    def draw(self, training: TrainingRows, params: Mapping[str, Any], seed: int) -> Draw:
        from counterpoise.data import SMOGN, SMOTER

        kind = SMOGN if self.name == "smogn" else SMOTER
        categories = np.flatnonzero(training.categorical).tolist()
        return drawn_by(kind(k_neighbors=int(params["k_neighbors"]), categorical_features=categories, random_state=seed), training)


def _rare_targets(y: npt.NDArray[Any]) -> int:
    """Values that SMOTER's box plot calls extreme."""
    from counterpoise.data._relevance import relevance_of

    try:
        return int((relevance_of(np.asarray(y, dtype=np.float64), "auto", "both", 1.5) >= 1).sum())
    except InputError:  # no extreme at all
        return 0


def _neighbors(training: TrainingRows, params: Mapping[str, Any]) -> int:
    """The neighbors asked for, or as many as the smallest class has."""
    smallest = int(np.unique(training.y, return_counts=True)[1].min())
    if smallest < 2:
        raise CounterpoiseError(f"SMOTE needs two rows of every class in each training fold; the smallest class has {smallest}")
    return _at_most(int(params["k_neighbors"]), smallest - 1)


def _at_most(wanted: int, most: int) -> int:
    return max(1, min(wanted, most))


def drawn_by(sampler: Any, training: TrainingRows) -> Draw:
    """What one of our resamplers made of the rows: those it kept, to the last digit, and those it invented."""
    X, y = resampled(sampler, training)
    invented = np.asarray(sampler.synthetic_mask_)
    n = len(training.y)
    # Cleaners name what they kept of real and invented rows together, those for regression the real rows alone; the others keep all.
    kept = np.asarray(getattr(sampler, "kept_indices_", getattr(sampler, "sample_indices_", np.arange(n))), dtype=np.int64)
    return Draw(kept[kept < n], X[invented], y[invented])


def resampled(sampler: Any, training: TrainingRows) -> tuple[npt.NDArray[np.floating], npt.NDArray[Any]]:
    """What ``fit_resample`` makes of the cleaned rows: distances are taken on standardised columns, the result is in the old units."""
    scale = np.where(training.categorical, 1.0, training.X.std(axis=0))
    scale[scale == 0] = 1.0
    X, y = sampler.fit_resample((training.X / scale).astype(training.X.dtype), training.y)
    return np.asarray(X * scale, dtype=training.X.dtype), y


class _Likelihood(Remedy):
    """Rows that look common weigh less, without regard to their label: w(p) of the share p of the cluster a row falls into."""

    def applies(self, problem: Problem, learner: Learner) -> str | None:
        if not learner.takes_weights:
            return f"{learner.name} takes no sample_weight"
        if problem.n > NEIGHBOR_ROWS:
            return f"too large: clusters are searched up to {NEIGHBOR_ROWS:,} rows"
        return "needs columns that are numbers" if problem.categorical.all() else None

    def weights(self, training: TrainingRows, params: Mapping[str, Any]) -> npt.NDArray[np.float64]:
        from counterpoise.data import LikelihoodWeighter

        weighter = LikelihoodWeighter(eta=params["eta"], gamma=params["gamma"], random_state=0)
        return np.asarray(weighter.fit(training.X[:, ~training.categorical]).sample_weight_, dtype=np.float64)


class _NetOnly(Remedy):
    """For classifiers that are nets."""

    def applies(self, problem: Problem, learner: Learner) -> str | None:
        if problem.task == "regression":
            return "needs classes"
        return None if learner.takes_loss else "only for nets (mlp)"


class _AnyLoss(_NetOnly):
    """The metric of the decision, made smooth, as the loss."""

    def loss(self, task: str, n_classes: int, params: Mapping[str, Any]) -> nn.Module:
        from counterpoise.losses import AnyLoss

        return AnyLoss(metric=params["metric"], amplification=params["amplification"], multiclass=None if task == "binary" else "macro-ovr")


class _TwoPhase(_NetOnly):
    """All layers on class-balanced batches, then the last layer alone on the rows as they are; as many steps as everybody."""

    def net(self, training: TrainingRows, params: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"head_share": params["head_share"]}


class _PriorBias(_NetOnly):
    """The last layer begins at the class frequencies."""

    def net(self, training: TrainingRows, params: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"prior_bias": True}


class _Focal(_NetOnly):
    """Focal loss: rows the net already gets right weigh less."""

    def loss(self, task: str, n_classes: int, params: Mapping[str, Any]) -> nn.Module:
        from counterpoise.losses import FocalLoss

        return FocalLoss(gamma=params["gamma"], multilabel=task == "binary", reduction="none")


class _RegressionOnly(Remedy):
    """For targets that are numbers; ``nets`` if it changes how our net is trained, otherwise for learners with weights."""

    nets = True

    def applies(self, problem: Problem, learner: Learner) -> str | None:
        if problem.task != "regression":
            return "needs a target that is a number"
        if self.nets:
            return None if learner.takes_loss else "only for nets (mlp)"
        return None if learner.takes_weights else f"{learner.name} takes no sample_weight"


class _LDS(_RegressionOnly):
    """Inverse density of the target, smoothed over neighboring values."""

    nets = False

    def weights(self, training: TrainingRows, params: Mapping[str, Any]) -> npt.NDArray[np.float64]:
        from counterpoise.losses import lds_weights

        return np.asarray(lds_weights(training.y, scheme=params["scheme"]), dtype=np.float64)


class _BalancedMSE(_RegressionOnly):
    """The training distribution of the target, divided out of the loss."""

    def loss(self, task: str, n_classes: int, params: Mapping[str, Any]) -> nn.Module:
        from counterpoise.losses import BalancedMSELoss

        return BalancedMSELoss(noise_sigma=params["noise_sigma"], reduction="none")  # in standard deviations of the target


class _ConR(_RegressionOnly):
    """Features are pushed apart where the predictions agree and the targets do not; each batch in two noisy views."""

    def applies(self, problem: Problem, learner: Learner) -> str | None:
        reason = super().applies(problem, learner)
        if reason is None and not np.subtract(*np.quantile(problem.y, [0.75, 0.25])) > 0:
            return "half of the targets are equal: no window can be set"
        return reason

    def net(self, training: TrainingRows, params: Mapping[str, Any]) -> Mapping[str, Any]:
        from counterpoise.losses import ConRLoss, fit_window

        window = fit_window(training.y)
        # As in our re-test. The push per window, not per unit of the target, does not depend on that unit.
        loss = ConRLoss(window, temperature=0.2, push_scale=0.01 / window)
        return {"regularizer": loss, "regularizer_weight": params["beta"], "view_noise": 0.05}


@dataclass(frozen=True)
class FairPenaltyRemedy(Remedy):
    r"""A net whose predictions are held independent of the columns the study reports by, intersections included.

    ``strength`` is fixed and not tuned, since tuning would choose the weakest: it is what the penalty of a model that predicts the training
    targets themselves would add to the loss (log loss, or squared error in variances of the target). 0.03 is weak, 3 very strong;
    :func:`counterpoise.engines.calibrate_penalty` draws the whole front.
    """

    strength: float = 1.0

    def applies(self, problem: Problem, learner: Learner) -> str | None:
        if not problem.groups:
            return "needs protected attributes (--group)"
        return None if learner.takes_loss else "only for nets (mlp)"

    def bound(self, problem: Problem) -> Remedy:
        return replace(self, code_version=f"{self.code_version}, strength {self.strength!r}, groups {problem.groups_hash}")

    def net(self, training: TrainingRows, params: Mapping[str, Any]) -> Mapping[str, Any]:
        import torch

        from counterpoise.data import ProtectedAttributeEncoder
        from counterpoise.diagnostics._intersections import attribute_table, encode_attributes
        from counterpoise.losses import DistanceCovariancePenalty

        table = attribute_table(self.fit_arguments(training)["attributes"], len(training.y))
        attributes = encode_attributes(ProtectedAttributeEncoder().fit(table), table)
        y = np.asarray(training.y, dtype=np.float64)
        if training.task == "regression":
            columns = [(y - y.mean()) / (y.std() or 1.0)]
        else:  # what the estimators take it of: the second of two classes, each of several
            classes = np.unique(y)
            columns = [y == c for c in (classes[1:] if len(classes) == 2 else classes)]
        penalty = DistanceCovariancePenalty("ccdcov")
        of_targets = float(np.mean([float(penalty(torch.as_tensor(column.astype(np.float64)), attributes)) for column in columns]))
        return {"penalty": "ccdcov", "lam": self.strength / of_targets if of_targets > 0 else 0.0}

    def fit_arguments(self, training: TrainingRows) -> Mapping[str, Any]:
        names = {column: np.array([*groups.names, "(none)"], dtype=object) for column, groups in training.groups.items()}
        return {"attributes": {column: names[column][groups.ids[training.rows]] for column, groups in training.groups.items()}}


class _BalancedForest(Remedy):
    """Every tree on a bootstrap with equal class counts, against a plain forest of the same size."""

    def applies(self, problem: Problem, learner: Learner) -> str | None:
        return "needs classes" if problem.task == "regression" else None

    def estimator(self, task: str, params: Mapping[str, Any], seed: int) -> Any:
        from imblearn.ensemble import BalancedRandomForestClassifier

        return BalancedRandomForestClassifier(n_estimators=FOREST_SIZE, random_state=seed)


class _Classification(Remedy):
    """A rule for the threshold: only where there is one."""

    def applies(self, problem: Problem, learner: Learner) -> str | None:
        return "needs classes" if problem.task == "regression" else None


@dataclass(frozen=True)
class SamplerRemedy(Remedy):
    """Any object with imbalanced-learn's ``fit_resample(X, y)`` as a remedy. It sees cleaned training rows, standardised."""

    sampler: Any = None

    def draw(self, training: TrainingRows, params: Mapping[str, Any], seed: int) -> Draw:
        from sklearn.base import clone

        sampler = clone(self.sampler)
        if "random_state" in sampler.get_params() and sampler.get_params()["random_state"] is None:
            sampler.set_params(random_state=seed)
        X, y = resampled(sampler, training)
        return Draw(np.empty(0, dtype=np.int64), X, y)


NEIGHBORS: Space = {"k_neighbors": Range(1, 10, 5, integer=True)}

BASELINE = Remedy("nothing", "none", "the plain fit; its threshold is tuned like everybody's")
HALF = _Classification("nothing@0.5", "none", "the plain fit with the usual threshold; shown for comparison", rule="half")
PLACEBO = _Placebo("placebo", "data", "the plain fit without a fixed fifth of its rows: should never help")

BUILT_IN: tuple[Remedy, ...] = (
    BASELINE,
    HALF,
    PLACEBO,
    _Classification("prior", "decision", "threshold from the class frequencies in closed form, not tuned", rule="prior", paper="15"),
    _Weights("weights", "loss", "inverse-frequency weights", paper="15"),
    _Over("over", "data", "random over-sampling to equal counts", paper="15"),
    _Under("under", "data", "random under-sampling to equal counts", paper="15"),
    _SMOTE("smote", "data", "synthetic minority rows between neighbors", NEIGHBORS, paper="23", needs_rows=True, code_version="2"),
    _BorderlineSMOTE("borderline-smote", "data", "synthetic rows near the other class", NEIGHBORS, paper="23", needs_rows=True),
    _ADASYN("adasyn", "data", "more synthetic rows where the other class is near", NEIGHBORS, paper="23", needs_rows=True),
    _CleanedSMOTE("smote-enn", "data", "SMOTE, then rows among the other class leave", NEIGHBORS, paper="23", needs_rows=True),
    _CleanedSMOTE("smote-tomek", "data", "SMOTE, then pairs on the border leave", NEIGHBORS, paper="23", needs_rows=True),
    _RareRanges("smoter", "data", "synthetic rows for rare ranges of the target", NEIGHBORS, paper="23", needs_rows=True),
    _RareRanges("smogn", "data", "the same, with noise where neighbors are far", NEIGHBORS, paper="23", needs_rows=True),
    _Likelihood(
        "likelihood",
        "loss",
        "rows that look common weigh less, whatever their label",
        {"eta": Range(0.1, 1.0, 1.0, log=True), "gamma": Range(1.0, 8.0, 5.0)},
        paper="14",
        needs_rows=True,
    ),
    _LDS("lds", "loss", "inverse density of the target, smoothed", {"scheme": Choice(("inverse", "sqrt_inverse"))}, paper="21"),
    _BalancedMSE(
        "balanced-mse",
        "loss",
        "squared error for targets that are all equally frequent",
        {"noise_sigma": Range(0.05, 1.0, 0.3, log=True)},
        paper="21",
    ),
    _ConR(
        "conr",
        "loss",
        "features pushed apart where predictions agree and targets do not",
        {"beta": Range(0.03, 1.0, 0.3, log=True)},
        paper="21",
    ),
    FairPenaltyRemedy("fair-penalty", "loss", "predictions held independent of the reported groups", paper="22"),
    _Focal("focal", "loss", "focal loss", {"gamma": Range(0.5, 5.0, 2.0)}, paper="02"),
    _AnyLoss(
        "anyloss",
        "loss",
        "the metric itself, made smooth",
        {"metric": Choice(("balanced_accuracy", "f1")), "amplification": Range(2.0, 30.0, 10.0, log=True)},
        paper="19",
    ),
    _TwoPhase(
        "two-phase", "model", "balanced batches, then the last layer on the real ones", {"head_share": Range(0.1, 0.5, 0.2)}, paper="15"
    ),
    _PriorBias("prior-bias", "model", "the last layer begins at the class frequencies", paper="09"),
    _BalancedForest("balanced-forest", "model", "trees on class-balanced bootstraps", learner="forest", balances_inside=True),
)

# Simplest first: among remedies that cannot be told apart the earlier stage is recommended.
STAGE_ORDER = ("none", "decision", "loss", "data", "model", "net loss")


def as_remedies(chosen: str | Sequence[Any] | Mapping[str, Any], *, placebo: bool = True) -> list[Remedy]:
    """The remedies of a study: ``"all"``, names, :class:`Remedy` objects, or samplers with ``fit_resample``; the baseline always first."""
    by_name = {remedy.name: remedy for remedy in BUILT_IN}
    items: Iterable[tuple[str | None, Any]]
    if isinstance(chosen, Mapping):
        items = list(chosen.items())
    else:
        names: Sequence[Any] = [chosen] if isinstance(chosen, (str, Remedy)) or hasattr(chosen, "fit_resample") else chosen
        items = [(None, item) for item in names]
    wanted: list[Remedy] = [BASELINE, HALF] + ([PLACEBO] if placebo else [])
    for name, item in items:
        if item == "all":
            wanted += [remedy for remedy in BUILT_IN if placebo or remedy is not PLACEBO]
        elif isinstance(item, str):
            check_choice("remedies", item, ["all", *by_name])
            wanted.append(by_name[item])
        elif isinstance(item, Remedy):
            wanted.append(item)
        elif hasattr(item, "fit_resample"):
            wanted.append(
                SamplerRemedy(name or type(item).__name__, "data", repr(item), needs_rows=True, sampler=item, code_version=repr(item))
            )
        else:
            bad_input("remedies", type(item).__name__, "a name, a counterpoise.studies.Remedy, or a sampler with fit_resample")
    unique: dict[str, Remedy] = {}
    for remedy in wanted:
        if remedy.name in unique and unique[remedy.name] is not remedy and unique[remedy.name] != remedy:
            bad_input("remedies", remedy.name, "different names for different remedies")
        unique.setdefault(remedy.name, remedy)
    return list(unique.values())
