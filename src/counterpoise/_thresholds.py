r"""Decision thresholds: the score above which, or the offsets under which, a metric is best.

Two classes: predict 1 where ``score > t``. The metric only changes where t crosses a score, so one candidate per gap between distinct
sorted scores, and one beyond either end, are all the thresholds there are. More classes: predict ``argmax_k(log p_k + b_k)``; along one
offset the metric changes only where a row's argmax does, which makes the same search exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ._errors import bad_input, check_choice, check_range

__all__ = ["BINARY_METRICS", "MULTICLASS_METRICS", "best_offsets", "best_threshold", "prior_threshold"]

BINARY_METRICS = ("balanced_accuracy", "f1", "accuracy", "cost")
MULTICLASS_METRICS = ("balanced_accuracy", "f1", "accuracy")

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def best_threshold(
    y: npt.ArrayLike, score: npt.ArrayLike, metric: str = "balanced_accuracy", cost: Mapping[str, float] | None = None
) -> float:
    """The threshold t for which predicting 1 where ``score > t`` is best.

    Candidates are the midpoints between distinct sorted scores, and one unit beyond the smallest and the largest. Where several
    neighboring candidates are equally good, the middle one of the longest such run is taken (of the first, if runs are equally long).
    O(n log n).

    Parameters
    ----------
    y : array of 0 and 1, shape (n,)
    score : array of float, shape (n,)
        Finite scores that grow with the probability of 1.
    metric : {"balanced_accuracy", "f1", "accuracy", "cost"}
        What is maximized; for "cost" the mean cost is minimized.
    cost : mapping with "fp" and "fn"
        What one false positive and one false negative cost; needed for "cost".

    Examples
    --------
    >>> best_threshold([0, 0, 1, 1], [0.1, 0.2, 0.4, 0.9])
    0.30000000000000004
    """
    check_choice("metric", metric, BINARY_METRICS)
    scores = _finite("score", score, 1)
    positive = _codes("y", y, len(scores), 2) == 1
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        bad_input("y", f"only class {int(n_positive > 0)}", "rows of both classes", "Use the threshold of the prior instead.")

    order, starts, candidates = _candidates(scores)
    positives_below = np.concatenate([[0], np.cumsum(positive[order])])[starts]  # (candidates,)
    false_negative = positives_below
    true_negative = starts - positives_below
    true_positive = n_positive - false_negative
    false_positive = n_negative - true_negative
    if metric == "balanced_accuracy":
        # Twice the balanced accuracy times both class counts: whole numbers, so that equal is equal.
        value = true_positive * n_negative + true_negative * n_positive
    elif metric == "accuracy":
        value = true_positive + true_negative
    elif metric == "f1":
        value = 2 * true_positive / (n_positive + true_positive + false_positive)
    else:
        fp, fn = _costs(cost)
        value = -np.round((fp * false_positive + fn * false_negative) / max(fp, fn), 9)
    return float(candidates[_middle_of_best(value)])


def prior_threshold(prior: float, metric: str = "balanced_accuracy", cost: Mapping[str, float] | None = None) -> float:
    """The threshold on log-odds that needs no data but the share of positives, for calibrated scores.

    ``log(pi / (1 - pi))`` for balanced accuracy (and, as a stand-in, for F1, whose optimum has no closed form), ``log(C_fp / C_fn)`` for
    a cost matrix, 0 for accuracy.

    Examples
    --------
    >>> round(prior_threshold(0.1), 4), prior_threshold(0.1, "accuracy"), round(prior_threshold(0.1, "cost", {"fp": 1, "fn": 20}), 4)
    (-2.1972, 0.0, -2.9957)
    """
    check_choice("metric", metric, BINARY_METRICS)
    if metric == "accuracy":
        return 0.0
    if metric == "cost":
        fp, fn = _costs(cost)
        return math.log(fp) - math.log(fn)
    if not 0.0 < prior < 1.0:
        bad_input("prior", prior, "a share in (0, 1)")
    return math.log(prior) - math.log1p(-prior)


def best_offsets(
    y: npt.ArrayLike, log_proba: npt.ArrayLike, metric: str = "balanced_accuracy", prior: npt.ArrayLike | None = None, sweeps: int = 2
) -> FloatArray:
    """Offsets b, shape (C,), for which predicting ``argmax_k(log p_k + b_k)`` is good: coordinate ascent from ``b = -log prior``.

    Each sweep moves one offset after the other to its best value, the others held; no move makes the metric worse on these rows.
    O(sweeps C n (C + log n)) for "f1" and O(sweeps C n log n) otherwise, beside C maxima over the (n, C) table per sweep.

    Parameters
    ----------
    y : array of int, shape (n,)
        Class codes 0..C-1.
    log_proba : array of float, shape (n, C)
        Finite log-probabilities (or any scores of which the largest decides).
    metric : {"balanced_accuracy", "f1", "accuracy"}
        What is maximized; "f1" is the mean of the classes' F1. A class without rows counts for nothing in balanced accuracy.
    prior : array of float, shape (C,)
        Share of each class where the scores were learned; default the shares in ``y``.
    sweeps : int, default 2
        Number of passes over the classes.

    Examples
    --------
    >>> log_proba = np.log([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.6, 0.1, 0.3], [0.8, 0.1, 0.1]])
    >>> offsets = best_offsets([0, 1, 2, 0], log_proba)
    >>> (log_proba + offsets).argmax(axis=1)
    array([0, 1, 2, 0])
    """
    check_choice("metric", metric, MULTICLASS_METRICS, "A cost matrix needs two classes." if metric == "cost" else "")
    check_range("sweeps", sweeps, low=1, integer=True)
    scores = _finite("log_proba", log_proba, 2)
    n, n_classes = scores.shape
    if n_classes < 2:
        bad_input("log_proba", f"shape {scores.shape}", "one column per class, at least two")
    codes = _codes("y", y, n, n_classes)
    counts = np.bincount(codes, minlength=n_classes)
    share = counts / n if prior is None else np.asarray(prior, dtype=np.float64)
    if share.shape != (n_classes,) or not np.all(share > 0) or not np.all(np.isfinite(share)):
        bad_input("prior", share, f"{n_classes} positive shares, one per class")

    offsets: FloatArray = -np.log(share)
    for _ in range(sweeps):
        for k in range(n_classes):
            others = scores + offsets
            others[:, k] = -np.inf
            rival = others.argmax(axis=1)  # what a row is predicted while class k does not get it
            crossing = others[np.arange(n), rival] - scores[:, k]  # the offset above which it does
            # Crossings that differ by rounding alone are one: an offset between them would decide differently once it is added.
            order, starts, candidates = _candidates(crossing, apart=1e-9)
            value = _values_along(metric, k, codes[order], rival[order], counts)[starts]
            offsets[k] = candidates[_middle_of_best(value)]
    return offsets


def _values_along(metric: str, k: int, y: IntArray, rival: IntArray, counts: IntArray) -> FloatArray | IntArray:
    """The metric, up to a positive factor, when the first j rows are predicted k and the others their rival, for j = 0..n."""
    if metric == "f1":
        total: FloatArray = np.zeros(len(y) + 1)
        for c in range(len(counts)):
            # Taken from the front: predictions of c lost (or, for k itself, won) with the first j rows, and the hits among them.
            mine = np.ones(len(y), dtype=bool) if c == k else rival == c
            predicted, hits = _running(mine), _running(mine & (y == c))
            if c != k:
                predicted, hits = predicted[-1] - predicted, hits[-1] - hits
            total += 2 * hits / np.maximum(counts[c] + predicted, 1)
        return total.round(12)
    won, lost = y == k, y == rival
    if metric == "accuracy":
        return _running(won) - _running(lost)
    worth = 1.0 / np.maximum(counts, 1)
    gain = won * worth[k] - lost * worth[rival]
    return np.concatenate([[0.0], np.cumsum(gain)]).round(12)


def _running(flags: npt.NDArray[np.bool_]) -> IntArray:
    """How many flags are set among the first j, for j = 0..n."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(flags, dtype=np.int64)])


def _candidates(values: FloatArray, apart: float = 0.0) -> tuple[IntArray, IntArray, FloatArray]:
    """The sorting order, and for every candidate the number of values below it and the candidate itself.

    Values are told apart when they differ by more than ``apart``.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(ordered) > apart) + 1, [len(ordered)]])
    low, high = ordered[starts[1:-1] - 1], ordered[starts[1:-1]]
    middle = low / 2 + high / 2
    # Between neighboring floats the midpoint may round up to the upper one, which must stay above it.
    middle = np.where((middle < low) | (middle >= high), low, middle)
    first = min(ordered[0] - 1.0, float(np.nextafter(ordered[0], -np.inf)))
    return order, starts, np.concatenate([[first], middle, [ordered[-1] + 1.0]])


def _middle_of_best(value: FloatArray | IntArray) -> int:
    """Index of the middle of the (first) longest run of the maximum."""
    best = np.concatenate([[False], value == value.max(), [False]])
    edges = np.flatnonzero(np.diff(best.astype(np.int8)))
    begin, end = edges[::2], edges[1::2]  # runs are [begin, end)
    longest = int((end - begin).argmax())
    return int((begin[longest] + end[longest] - 1) // 2)


def _costs(cost: Mapping[str, float] | None) -> tuple[float, float]:
    if cost is None or set(cost) != {"fp", "fn"} or not all(0 < value < math.inf for value in cost.values()):
        bad_input("cost", cost, "a mapping with two positive numbers, such as {'fp': 1, 'fn': 20}")
    return float(cost["fp"]), float(cost["fn"])


def _finite(argument: str, values: npt.ArrayLike, ndim: int) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim or not len(array):
        bad_input(argument, f"shape {array.shape}", "shape (n,) with n > 0" if ndim == 1 else "shape (n, C) with n > 0")
    if not np.isfinite(array).all():
        bad_input(argument, f"{int((~np.isfinite(array)).sum())} values that are not finite", "finite numbers")
    return array


def _codes(argument: str, values: npt.ArrayLike, n: int, n_classes: int) -> IntArray:
    array = np.asarray(values)
    if array.shape != (n,):
        bad_input(argument, f"shape {array.shape}", f"one class for each of the {n} rows")
    if not np.isin(array, np.arange(n_classes)).all():
        bad_input(argument, sorted(set(array.tolist()) - set(range(n_classes)))[:5], f"class codes 0..{n_classes - 1}")
    return array.astype(np.int64)
