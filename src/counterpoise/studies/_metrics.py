"""How a cell is scored, and what every row adds to the score.

Scores are what the store keeps: log-odds (n,) for two classes, log-probabilities (n, C) for more, predictions (n,) for a regression.
:func:`cell_metrics` gives the numbers of one test fold, equal to scikit-learn's functions of the same names. :func:`contributions` and
:func:`weighted_values` serve the intervals: metrics that are means over rows have a contribution per row, the others are recomputed on
bootstrap weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, log_softmax, logit
from scipy.stats import rankdata

from counterpoise._stats import placements, wilson
from counterpoise.groups import Groups
from counterpoise.metrics._curves import average_precisions

__all__ = [
    "BOOTSTRAPPED",
    "LOWER_IS_BETTER",
    "CalibrationCurve",
    "Repeat",
    "ThresholdCurve",
    "calibration_curve",
    "cell_metrics",
    "contributions",
    "decide",
    "group_table",
    "judged_groups",
    "precision_recall_at_k",
    "prior_corrected",
    "range_table",
    "strata_of_metric",
    "target_ranges",
    "threshold_curve",
    "weighted_values",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

LOWER_IS_BETTER = frozenset({"log_loss", "brier", "cost", "mae", "rmse", "js_divergence"})
BOOTSTRAPPED = frozenset({"f1", "average_precision", "worst_group_recall"})  # not sums over rows
PER_CLASS = frozenset({"balanced_accuracy", "auroc", "cost", "f1", "average_precision", "worst_group_recall"})  # class sizes are given

EPS = float(np.finfo(np.float64).eps)  # probabilities are clipped at it, as in sklearn.metrics.log_loss
DIVERGENCE_BINS = 10  # tenths of the ranking, whose shares are compared between groups
FEW_POSITIVES = 20  # a group with fewer is too small to judge
MANY, FEW = 100, 20  # rows per bin: more than MANY, fewer than FEW


# ---- one cell ---------------------------------------------------------------------------------------------------------------------------


def decide(scores: npt.ArrayLike, threshold: Sequence[float]) -> IntArray:
    """Predicted codes: ``score > t`` for log-odds (n,), ``argmax(score + b)`` for log-probabilities (n, C).

    >>> decide([-1.0, 0.5, 2.0], [0.5])
    array([0, 0, 1])
    >>> decide([[-0.1, -2.0, -3.0]], [0.0, 0.0, 4.0])
    array([2])
    """
    values = np.asarray(scores)
    if values.ndim == 1:
        return np.asarray(values > threshold[0], dtype=np.int64)
    return np.asarray(np.argmax(values + np.asarray(threshold), axis=1), dtype=np.int64)


def cell_metrics(
    task: str, y: npt.ArrayLike, scores: npt.ArrayLike, threshold: Sequence[float] = (), *, cost: Mapping[str, float] | None = None
) -> dict[str, float]:
    """The metrics a cell stores.

    Parameters
    ----------
    task : {"binary", "multiclass", "regression"}
    y : array-like, shape (n,)
        Codes 0..C-1 (two classes: 1 is the positive one), or the real target.
    scores : array-like, shape (n,) or (n, C)
        Log-odds, log-probabilities, or predictions.
    threshold : sequence of float
        Two classes: [t]. More: C offsets. Regression: empty.
    cost : mapping, optional
        ``{"fp": a, "fn": b}``; adds the mean cost per row.

    Returns
    -------
    dict of str to float
        Two classes: balanced_accuracy, accuracy, precision, recall, f1, auroc, average_precision, log_loss, brier (and cost); more: the
        same with macro averages, without precision, recall and cost; regression: mae, rmse, r2. NaN where a metric does not exist, such as
        the AUROC of one class.

    >>> metrics = cell_metrics("binary", [0, 0, 1, 1], [-2.0, 0.4, -0.1, 3.0], [0.0])
    >>> {name: round(value, 3) for name, value in metrics.items() if name in ("balanced_accuracy", "auroc", "log_loss")}
    {'balanced_accuracy': 0.5, 'log_loss': 0.458, 'auroc': 0.75}
    """
    if task == "regression":
        return _regression_metrics(np.asarray(y, dtype=np.float64), np.asarray(scores, dtype=np.float64))
    codes = np.asarray(y, dtype=np.int64)
    values = np.asarray(scores, dtype=np.float64)
    decision = decide(values, threshold)
    classes = 2 if values.ndim == 1 else values.shape[1]
    confusion = np.bincount(codes * classes + decision, minlength=classes**2).reshape(classes, classes)
    hits, actual, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    present = actual > 0
    out = {
        "balanced_accuracy": float((hits[present] / actual[present]).mean()),
        "accuracy": float(hits.sum() / len(codes)),
        "log_loss": float(_log_loss_rows(codes, values, values.ndim == 2).mean()),
        "brier": float(_brier_rows(codes, values, values.ndim == 2).mean()),
    }
    if values.ndim == 1:
        out["precision"] = float(hits[1] / predicted[1]) if predicted[1] else 0.0
        out["recall"] = float(hits[1] / actual[1]) if actual[1] else 0.0
        out["f1"] = float(2 * hits[1] / (actual[1] + predicted[1])) if actual[1] + predicted[1] else 0.0
        if cost is not None:
            out["cost"] = float((confusion[0, 1] * cost["fp"] + confusion[1, 0] * cost["fn"]) / len(codes))
    else:
        met = actual + predicted > 0
        out["f1"] = float((2 * hits[met] / (actual + predicted)[met]).mean())
    everyone = np.ones((1, len(codes)))
    areas = [placements(column, of)[of].mean() for column, of in _one_vs_rest(codes, values) if 0 < of.sum() < len(of)]
    precisions = [average_precisions(column, of, everyone)[0] for column, of in _one_vs_rest(codes, values) if of.any()]
    out["auroc"] = float(np.mean(areas)) if areas else float("nan")
    out["average_precision"] = float(np.mean(precisions)) if precisions else float("nan")
    return out


def _regression_metrics(y: FloatArray, prediction: FloatArray) -> dict[str, float]:
    error = prediction - y
    squares, spread = float(error @ error), float(((y - y.mean()) ** 2).sum())
    if len(y) < 2:
        r2 = float("nan")
    elif spread > 0:
        r2 = 1 - squares / spread
    else:
        r2 = float(squares == 0)
    return {"mae": float(np.abs(error).mean()), "rmse": float(np.sqrt(squares / len(y))), "r2": r2}


def _one_vs_rest(codes: IntArray, score: npt.NDArray[np.floating]) -> list[tuple[npt.NDArray[np.floating], BoolArray]]:
    """(score, is positive) of the one problem of two classes, or of each class against the rest."""
    if score.ndim == 1:
        return [(score, codes == 1)]
    return [(score[:, c], codes == c) for c in range(score.shape[1])]


def _log_loss_rows(y: IntArray, score: npt.NDArray[np.floating], multi: bool) -> FloatArray:
    """-log p(y) of each row, from log-odds (..., n) or (``multi``) log-probabilities (..., n, C), clipped as scikit-learn clips."""
    if multi:
        loss = -np.take_along_axis(score, np.broadcast_to(y, score.shape[:-1])[..., None], axis=-1)[..., 0].astype(np.float64)
    else:
        with np.errstate(invalid="ignore"):  # NaN: an arm that was not run
            loss = np.logaddexp(0.0, np.where(y == 1, -score, score).astype(np.float64))
    return np.clip(loss, -np.log1p(-EPS), -np.log(EPS))


def _brier_rows(y: IntArray, score: npt.NDArray[np.floating], multi: bool) -> FloatArray:
    """(p - y)^2 of each row, or (``multi``) its sum over the classes."""
    if multi:
        probability = np.exp(score.astype(np.float64))
        hit = np.take_along_axis(probability, np.broadcast_to(y, score.shape[:-1])[..., None], axis=-1)[..., 0]
        return np.asarray((probability**2).sum(axis=-1) - 2 * hit + 1)
    return np.asarray((expit(score.astype(np.float64)) - y) ** 2)


# ---- rows of one repeat -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repeat:
    """One repeat of A arms: every row predicted once, by a model that has not seen it.

    ``y`` (n,); ``fold`` (n,) in 0..K-1; ``score`` (A, n) or (A, n, C); ``decision`` (A, n) codes, None for a regression; ``part`` (n,) the
    rows that count, for a metric of a part of the target's range; ``cells`` (n,) the intersection of groups of each row, -1 for none.
    """

    y: npt.NDArray[Any]
    fold: npt.NDArray[np.integer[Any]]
    score: npt.NDArray[np.floating]
    decision: npt.NDArray[np.integer[Any]] | None
    folds: int
    cost: Mapping[str, float] | None = None
    members: Sequence[BoolArray] = ()  # the rows of each judged group, for the worst group
    part: BoolArray | None = None
    cells: IntArray | None = None

    @property
    def classes(self) -> int:
        return self.score.shape[2] if self.score.ndim == 3 else 2


def strata_of_metric(metric: str, y: npt.NDArray[Any]) -> IntArray:
    """(n,) strata of the sampling design: the classes where the metric treats their sizes as given, else one."""
    return y.astype(np.int64) if metric in PER_CLASS else np.zeros(len(y), dtype=np.int64)


def contributions(metric: str, repeat: Repeat) -> tuple[FloatArray, FloatArray, float]:
    r"""What each row adds to a metric: (psi (A, n), cells (A, K), scale), positive is better.

    The metric of the repeat is ``scale * psi.sum(axis=1)``; its variance over samples of rows is that of the sum itself. ``scale`` is 1
    except for the AUROC, which the placements of either class estimate alone: their sum is twice the metric. ``cells`` holds the metric of
    each test fold, NaN where it does not exist.
    """
    if metric == "auroc":
        return _auroc_contributions(repeat)
    if metric == "js_divergence":
        return _divergence_contributions(repeat)
    values = _row_values(metric, repeat)
    n = len(repeat.y)
    in_fold = (repeat.fold[:, None] == np.arange(repeat.folds)).astype(np.float64)
    if metric != "balanced_accuracy":
        counts = np.ones(n) if repeat.part is None else repeat.part.astype(np.float64)
        return values * (counts / counts.sum()), _ratio((values * counts) @ in_fold, counts @ in_fold), 1.0
    sizes = np.bincount(repeat.y, minlength=repeat.classes)
    present = np.flatnonzero(sizes)
    psi = values / (len(present) * sizes[repeat.y])
    recalls = [_ratio(values[:, at] @ in_fold[at], in_fold[at].sum(axis=0)) for at in (repeat.y == c for c in present)]
    stacked = np.stack(recalls)
    met = ~np.isnan(stacked)
    return psi, _ratio(np.where(met, stacked, 0.0).sum(axis=0), met.sum(axis=0)), 1.0


def _row_values(metric: str, repeat: Repeat) -> FloatArray:
    """(A, n) value of each row, positive is better; NaN for an arm that was not run."""
    missing = _missing(repeat)
    if metric in ("accuracy", "balanced_accuracy"):
        assert repeat.decision is not None
        values = (repeat.decision == repeat.y).astype(np.float64)
    elif metric == "cost":
        assert repeat.decision is not None and repeat.cost is not None
        alarm = np.where(repeat.decision == 1, repeat.cost["fp"], 0.0)
        values = -np.where(repeat.y == 1, np.where(repeat.decision == 1, 0.0, repeat.cost["fn"]), alarm)
    elif metric == "log_loss":
        values = -_log_loss_rows(repeat.y, repeat.score, repeat.score.ndim == 3)
    elif metric == "brier":
        values = -_brier_rows(repeat.y, repeat.score, repeat.score.ndim == 3)
    elif metric == "mae":
        values = -np.abs(repeat.score.astype(np.float64) - repeat.y)
    else:
        raise AssertionError(metric)
    return np.asarray(np.where(missing[:, None], np.nan, values))


def _ratio(total: FloatArray, count: npt.NDArray[Any]) -> FloatArray:
    """total / count, NaN where the count is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(count > 0, total / count, np.nan))


def _auroc_contributions(repeat: Repeat) -> tuple[FloatArray, FloatArray, float]:
    """Placements within each test fold, divided by the size of the row's side; macro average of one-vs-rest for more classes."""
    arms, n = len(repeat.score), len(repeat.y)
    in_fold = [np.flatnonzero(repeat.fold == k) for k in range(repeat.folds)]
    psi, cells = np.zeros((arms, n)), []
    for c, (_, positive) in enumerate(_one_vs_rest(repeat.y, repeat.score[0])):
        placed, areas = np.empty((arms, n)), np.empty((arms, repeat.folds))
        for a in range(arms):
            score = repeat.score[a] if repeat.score.ndim == 2 else repeat.score[a, :, c]
            for k, rows in enumerate(in_fold):
                of = positive[rows]
                placed[a, rows] = at = placements(score[rows], of)
                areas[a, k] = at[of].mean() if 0 < of.sum() < len(of) else np.nan
        # Rows of a fold without the other class cannot be placed, for any arm: they take no part.
        valid = ~np.isnan(placed).all(axis=0)
        side = np.where(positive, (positive & valid).sum(), (~positive & valid).sum())
        psi += np.where(valid, placed, 0.0) / np.maximum(side, 1)
        cells.append(areas)
    exists = ~np.isnan(cells)
    averaged = _ratio(np.where(exists, cells, 0.0).sum(axis=0), exists.sum(axis=0))
    missing = _missing(repeat)
    psi[missing], averaged[missing] = np.nan, np.nan
    return psi / max(exists.any(axis=(1, 2)).sum(), 1), averaged, 0.5


def _divergence_contributions(repeat: Repeat) -> tuple[FloatArray, FloatArray, float]:
    r"""Minus the Jensen-Shannon divergence, in bits, of the groups' shares in each tenth of the ranking.

    It is the mutual information of tenth and group, :math:`\frac{1}{n} \sum_i \log_2 p(t_i, g_i) / (p(t_i) p(g_i))`: a mean over rows,
    whose terms are its influence function. Ranks are taken within each test fold, whose model they come from; so a monotone change of the
    scores changes nothing. More classes: the mean over the scores of each.
    """
    assert repeat.cells is not None
    known = np.flatnonzero(repeat.cells >= 0)
    group, n_groups = repeat.cells[known], int(repeat.cells.max(initial=-1)) + 1
    psi = np.zeros((len(repeat.score), len(repeat.y)))
    for a, score in enumerate(repeat.score):
        columns = score[:, None] if score.ndim == 1 else score
        for column in columns.T:
            tenth = _tenths(column, repeat.fold, repeat.folds)[known]
            joint = np.bincount(tenth * n_groups + group, minlength=DIVERGENCE_BINS * n_groups).reshape(DIVERGENCE_BINS, n_groups)
            expected = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0) / max(len(known), 1)
            ratio = np.divide(joint, expected, out=np.ones_like(expected), where=joint > 0)
            psi[a, known] -= np.log2(ratio)[tenth, group] / columns.shape[1]
    missing = _missing(repeat)
    in_fold = (repeat.fold[:, None] == np.arange(repeat.folds)).astype(np.float64)[known]
    cells = _ratio(psi[:, known] @ in_fold, in_fold.sum(axis=0))
    psi /= max(len(known), 1)
    psi[missing], cells[missing] = np.nan, np.nan
    return psi, cells, 1.0


def _tenths(score: npt.NDArray[np.floating], fold: npt.NDArray[np.integer[Any]], folds: int) -> IntArray:
    """(n,) in 0..9: in which tenth of its test fold's ranking each row is; rows with equal scores are in one."""
    tenth = np.zeros(len(score), dtype=np.int64)
    for k in range(folds):
        rows = np.flatnonzero(fold == k)
        if len(rows):
            middle = (rankdata(score[rows]) - 0.5) / len(rows)
            tenth[rows] = np.minimum((DIVERGENCE_BINS * middle).astype(np.int64), DIVERGENCE_BINS - 1)
    return tenth


def _missing(repeat: Repeat) -> BoolArray:
    """(A,) arms that were not run in this repeat."""
    return np.asarray(np.isnan(repeat.score.reshape(len(repeat.score), -1)[:, 0]))


def weighted_values(metric: str, repeat: Repeat, weights: FloatArray) -> FloatArray:
    """A metric of :data:`BOOTSTRAPPED` under each row of ``weights`` (b, n): (b, A), higher is better; NaN where it does not exist."""
    missing = _missing(repeat)
    if metric == "average_precision":
        values = _weighted_average_precision(repeat, weights)
    elif metric == "f1":
        values = _weighted_f1(repeat, weights)
    else:
        values = _weighted_worst_group(repeat, weights)
    values[:, missing] = np.nan
    return values


def _weighted_f1(repeat: Repeat, weights: FloatArray) -> FloatArray:
    """2 TP / (predicted + actual) over all rows of the repeat: of the positive class, or the mean over classes."""
    assert repeat.decision is not None
    scores = []
    for c in (1,) if repeat.classes == 2 else range(repeat.classes):
        chosen = (repeat.decision == c).T.astype(np.float64)
        actual = (repeat.y == c).astype(np.float64)
        hits = weights @ (chosen * actual[:, None])
        total = weights @ chosen + (weights @ actual)[:, None]
        scores.append(np.where(total > 0, 2 * hits / np.maximum(total, 1e-300), 0.0))
    return np.asarray(np.mean(scores, axis=0))


def _weighted_average_precision(repeat: Repeat, weights: FloatArray) -> FloatArray:
    """Mean over the test folds: scores of different models are not ranked against each other."""
    arms = len(repeat.score)
    values = np.empty((repeat.folds, len(weights), arms))
    for k in range(repeat.folds):
        rows = np.flatnonzero(repeat.fold == k)
        if not len(rows):
            values[k] = np.nan
            continue
        for a in range(arms):
            problems = _one_vs_rest(repeat.y[rows], repeat.score[a, rows])
            values[k, :, a] = np.mean([average_precisions(column, of, weights[:, rows]) for column, of in problems], axis=0)
    exists = ~np.isnan(values)
    return _ratio(np.where(exists, values, 0.0).sum(axis=0), exists.sum(axis=0))


def _weighted_worst_group(repeat: Repeat, weights: FloatArray) -> FloatArray:
    """Smallest share of right decisions among the groups, taken anew under each row of weights."""
    assert repeat.decision is not None
    correct = (repeat.decision == repeat.y).T.astype(np.float64)
    recalls = [_ratio(weights[:, at] @ correct[at], weights[:, at].sum(axis=1, keepdims=True)) for at in repeat.members]
    return np.asarray(np.fmin.reduce(recalls))


# ---- what the report shows --------------------------------------------------------------------------------------------------------------


def prior_corrected(scores: npt.ArrayLike, prior: npt.ArrayLike, effective: npt.ArrayLike) -> FloatArray:
    """Scores of a model trained at class shares ``effective`` (C,), moved to the shares ``prior`` (C,) (Saerens et al. 2002).

    Log-odds: score + logit(prior) - logit(effective). Log-probabilities: log p + log(prior / effective), normalized again.

    >>> prior_corrected([0.0], [0.9, 0.1], [0.5, 0.5]).round(4)
    array([-2.1972])
    """
    values = np.asarray(scores, dtype=np.float64)
    to, given = np.asarray(prior, dtype=np.float64), np.asarray(effective, dtype=np.float64)
    if values.ndim == 1:
        return np.asarray(values + logit(to[1]) - logit(given[1]))
    return np.asarray(log_softmax(values + np.log(to / given), axis=1))


@dataclass(frozen=True)
class CalibrationCurve:
    """Per bin of equal counts: mean predicted probability, observed share of positives with its 95 % Wilson interval, number of rows."""

    predicted: FloatArray
    observed: FloatArray
    low: FloatArray
    high: FloatArray
    count: IntArray


def calibration_curve(y: npt.ArrayLike, scores: npt.ArrayLike, bins: int = 10) -> CalibrationCurve:
    """Calibration of log-odds ``scores`` (n,) for codes ``y`` (n,), in at most ``bins`` bins of equal counts (tied scores stay together).

    >>> curve = calibration_curve([0, 0, 1, 1], [-3.0, -2.0, 2.0, 3.0], bins=2)
    >>> curve.observed, curve.count
    (array([0., 1.]), array([2, 2]))
    """
    positive, probability = np.asarray(y) == 1, expit(np.asarray(scores, dtype=np.float64))
    edges = np.unique(np.quantile(probability, np.arange(1, bins) / bins))
    bin_of = np.searchsorted(edges, probability, side="right")
    count = np.bincount(bin_of, minlength=len(edges) + 1)
    used = count > 0
    hits, total = (np.bincount(bin_of, weights=values, minlength=len(count))[used] for values in (positive, probability))
    low, high = wilson(hits, count[used])
    return CalibrationCurve(total / count[used], hits / count[used], low, high, count[used])


@dataclass(frozen=True)
class ThresholdCurve:
    """Precision, recall and balanced accuracy when every row with a score above the threshold is an alarm."""

    threshold: FloatArray
    precision: FloatArray
    recall: FloatArray
    balanced_accuracy: FloatArray
    alarms: IntArray


def threshold_curve(y: npt.ArrayLike, scores: npt.ArrayLike, thresholds: npt.ArrayLike | None = None) -> ThresholdCurve:
    """What each threshold on ``scores`` (n,) would do; default: up to 200 thresholds at quantiles of the scores.

    Precision is 1 where nothing is an alarm.

    >>> curve = threshold_curve([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4], [0.15, 0.35])
    >>> curve.precision.round(2), curve.recall
    (array([0.67, 1.  ]), array([1. , 0.5]))
    """
    positive, values = np.asarray(y) == 1, np.asarray(scores, dtype=np.float64)
    chosen = np.unique(np.quantile(values, np.linspace(0, 1, 200))) if thresholds is None else thresholds
    grid = np.asarray(chosen, dtype=np.float64)
    hits = positive.sum() - np.searchsorted(np.sort(values[positive]), grid, side="right")
    false = (~positive).sum() - np.searchsorted(np.sort(values[~positive]), grid, side="right")
    alarms = hits + false
    recall = hits / max(positive.sum(), 1)
    precision = np.where(alarms > 0, hits / np.maximum(alarms, 1), 1.0)
    return ThresholdCurve(grid, precision, recall, (recall + 1 - false / max((~positive).sum(), 1)) / 2, alarms)


def precision_recall_at_k(y: npt.ArrayLike, scores: npt.ArrayLike, k: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Precision and recall when the ``k`` rows with the highest scores are alarms; of rows tied at the border a proportional share counts.

    >>> precision_recall_at_k([1, 0, 1, 0], [0.9, 0.8, 0.8, 0.1], [1, 2])
    (array([1.  , 0.75]), array([0.5 , 0.75]))
    """
    positive, values, wanted = np.asarray(y) == 1, np.asarray(scores, dtype=np.float64), np.asarray(k, dtype=np.int64)
    order = np.argsort(-values, kind="stable")
    last = np.flatnonzero(np.diff(values[order], append=np.nan) != 0) + 1
    hits = np.interp(wanted, np.r_[0, last], np.r_[0, np.cumsum(positive[order])[last - 1]])
    return hits / np.maximum(np.minimum(wanted, len(values)), 1), hits / max(positive.sum(), 1)


def judged_groups(y: npt.NDArray[Any], groups: Groups, classes: int) -> list[tuple[int, BoolArray]]:
    """(group id, rows) of the groups with at least 20 rows that count: the positive ones of two classes, all rows of more classes."""
    counted = y == 1 if classes == 2 else np.ones(len(y), dtype=bool)
    rows = [(g, (groups.ids == g) & counted) for g in range(len(groups.names))]
    return [(g, at) for g, at in rows if at.sum() >= FEW_POSITIVES]


def group_table(y: npt.NDArray[Any], decision: npt.NDArray[np.integer[Any]], groups: Groups, classes: int = 2) -> list[dict[str, Any]]:
    """Recall and accuracy of each group, averaged over repeats.

    Parameters
    ----------
    y : array, shape (n,)
        Codes.
    decision : array, shape (R, n)
        Predicted codes.
    groups : Groups
        The group of each row.
    classes : int, default 2
        With two, ``recall`` is that of the positive class; with more it is the accuracy.

    Returns
    -------
    list of dict
        Per group with rows: ``group``, ``rows``, ``positives``, ``recall`` with ``recall_low`` and ``recall_high`` (95 %, Wilson),
        ``accuracy``, with two classes ``chosen``, the share decided positive, with ``chosen_low`` and ``chosen_high``, and ``judged``
        (False: too few to judge, fewer than 20 positives).
    """
    correct = (decision == y).mean(axis=0)
    judged = {g for g, _ in judged_groups(y, groups, classes)}
    table = []
    for g, name in enumerate(groups.names):
        inside = groups.ids == g
        if not inside.any():
            continue
        counted = inside & (y == 1) if classes == 2 else inside
        n_counted = int(counted.sum())
        low, high = wilson(correct[counted].sum(), n_counted)
        chosen = (decision[:, inside] == 1).mean() if classes == 2 else float("nan")
        chosen_low, chosen_high = wilson(chosen * inside.sum(), int(inside.sum()))
        table.append(
            {
                "group": name,
                "rows": int(inside.sum()),
                "positives": n_counted,
                "recall": float(correct[counted].mean()) if n_counted else float("nan"),
                "recall_low": float(low),
                "recall_high": float(high),
                "accuracy": float(correct[inside].mean()),
                "chosen": float(chosen),
                "chosen_low": float(chosen_low),
                "chosen_high": float(chosen_high),
                "judged": g in judged,
            }
        )
    return table


def target_ranges(y: npt.ArrayLike) -> Groups:
    """Many, medium and few: rows of a regression target by how common their value is.

    Ten bins of equal width; many: bins with more than 100 rows, medium: 20 to 100, few: fewer than 20. Where one of the three would be
    empty, or few would hold fewer than 20 rows in all, terciles of the density of the target take their place.

    >>> import numpy as np
    >>> target_ranges(np.random.default_rng(0).lognormal(size=3000)).names
    ('many', 'medium', 'few')
    """
    from ._remedies import target_bins

    values = np.asarray(y, dtype=np.float64)
    bins = target_bins(values)
    rows = np.bincount(bins)[bins]
    ids = np.where(rows > MANY, 0, np.where(rows >= FEW, 1, 2))
    sizes = np.bincount(ids, minlength=3)
    if sizes.min() == 0 or sizes[2] < FEW:
        order = np.argsort(values, kind="stable")
        width = max(1, int(np.sqrt(len(values))))
        at = np.arange(len(values))
        low, high = np.maximum(at - width, 0), np.minimum(at + width, len(values) - 1)
        # Sorting by rows per unit of the target; ties of the target have no extent and are the densest.
        sparsity = (values[order][high] - values[order][low]) / np.maximum(high - low, 1)
        ids = np.empty(len(values), dtype=np.int64)
        ids[order[np.argsort(sparsity, kind="stable")]] = at * 3 // max(len(values), 1)
    return Groups(ids, ("many", "medium", "few"), "bin")


def range_table(y: npt.NDArray[Any], prediction: npt.NDArray[np.floating], ranges: Groups) -> list[dict[str, Any]]:
    """Per range of the target: ``range``, ``rows``, ``mae`` and ``mean_error`` (mean of prediction minus target) of predictions (R, n)."""
    error = (prediction.astype(np.float64) - y).mean(axis=0)
    size = np.abs(prediction.astype(np.float64) - y).mean(axis=0)
    inside = [(name, ranges.ids == g) for g, name in enumerate(ranges.names)]
    return [
        {"range": name, "rows": int(at.sum()), "mae": float(size[at].mean()), "mean_error": float(error[at].mean())}
        for name, at in inside
        if at.any()
    ]
