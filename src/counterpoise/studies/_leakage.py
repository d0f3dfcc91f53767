"""Does one column alone give the target away?

The measure is AUROC for two classes and R-squared for a regression; both above .999 count. For more classes a column leaks if it
determines the class. Categories (and numbers with few values) are judged by what half of the rows teaches about the other half, since on
the same rows a column of unique values would explain anything.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from counterpoise._seeding import generator

__all__ = ["LEAKAGE_LIMIT", "predicts_alone"]

LEAKAGE_LIMIT = 0.999
MOST_ROWS = 20_000  # per class; the limit is so close to 1 that more rows would not change the answer
FEWEST_ROWS = 20  # of the half that judges
FEWEST_IN_CLASS = 5  # among them; with fewer, chance separates the classes

FloatArray = npt.NDArray[np.floating]


def predicts_alone(column: FloatArray, y: npt.NDArray[np.generic], task: str, *, categorical: bool) -> bool:
    """Whether ``column`` (n,), NaN where missing, predicts ``y`` (n,) nearly perfectly."""
    rows = _sample(y, task)
    x, y = column[rows].astype(np.float64), y[rows]
    if task != "regression" and _renames_classes(x, y):
        return True
    if task == "regression":
        score = _halves(x, y, task)
        return max(score, 0.0 if categorical else _r_squared(x, y.astype(np.float64))) > LEAKAGE_LIMIT
    if task == "multiclass":
        return _halves(x, y, task) > LEAKAGE_LIMIT or (not categorical and _sorts_classes(x, y))
    score = 0.0 if categorical else _auroc(x, y)
    return max(score, _halves(x, y, task)) > LEAKAGE_LIMIT


def _sample(y: npt.NDArray[np.generic], task: str) -> npt.NDArray[np.int64]:
    strata = np.zeros(len(y), dtype=np.int64) if task == "regression" else y.astype(np.int64)
    if len(y) <= MOST_ROWS:
        return np.arange(len(y))
    shuffled = generator(0, "leakage").permutation(len(y))
    order = shuffled[np.argsort(strata[shuffled], kind="stable")]
    starts = np.searchsorted(strata[order], strata[order])
    return np.sort(order[np.arange(len(order)) - starts < MOST_ROWS])


def _auroc(x: FloatArray, y: npt.NDArray[np.generic]) -> float:
    """AUROC of a column of numbers or of its negative, whichever is larger; missing values count as one value at either end."""
    from scipy.stats import rankdata

    positive = y == 1
    n1, n0 = int(positive.sum()), int((~positive).sum())
    missing = np.isnan(x)
    scores = []
    for end in (-np.inf, np.inf) if missing.any() else (0.0,):
        ranks = rankdata(np.where(missing, end, x))
        area = (ranks[positive].sum() - n1 * (n1 + 1) / 2) / (n1 * n0)
        scores.append(max(area, 1 - area))
    return float(max(scores))


def _r_squared(x: FloatArray, y: FloatArray) -> float:
    """Squared correlation, of the values or of their ranks, whichever is larger."""
    from scipy.stats import rankdata

    present = ~np.isnan(x)
    x, y = x[present], y[present]
    if 2 * len(x) < len(present) or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(max(np.corrcoef(x, y)[0, 1] ** 2, np.corrcoef(rankdata(x), rankdata(y))[0, 1] ** 2))


def _sorts_classes(x: FloatArray, y: npt.NDArray[np.generic]) -> bool:
    """Whether the classes follow one another, hardly mixed, when the rows are sorted by the column."""
    codes = np.unique(np.nan_to_num(x, nan=-np.inf), return_inverse=True)[1]
    label, hits = _majorities(codes, y)
    mixed = len(y) - int(hits.sum()) + int(np.count_nonzero(np.diff(label)))
    counts = np.unique(y, return_counts=True)[1]
    return bool(mixed <= len(counts) - 1 + (1 - LEAKAGE_LIMIT) * (len(y) - counts.max()))


def _majorities(codes: npt.NDArray[np.int64], y: npt.NDArray[np.generic]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The most frequent class among the rows of each code 0 ... V-1 and its count; class -1 where a code has no rows."""
    classes = int(y.max()) + 1
    pairs, count = np.unique(codes * classes + y.astype(np.int64), return_counts=True)
    order = np.argsort(count, kind="stable")  # so that the most frequent class of a code is written last
    label = np.full(int(codes.max()) + 1, -1, dtype=np.int64)
    hits = np.zeros(len(label), dtype=np.int64)
    label[pairs[order] // classes] = pairs[order] % classes
    hits[pairs[order] // classes] = count[order]
    return label, hits


def _renames_classes(x: FloatArray, y: npt.NDArray[np.generic]) -> bool:
    """Whether every class has one value of the column and every value one class."""
    values, codes = np.unique(np.nan_to_num(x, nan=-np.inf), return_inverse=True)
    classes = np.unique(y)
    return len(values) == len(classes) == len(np.unique(codes * (int(classes[-1]) + 1) + y.astype(np.int64)))


def _halves(x: FloatArray, y: npt.NDArray[np.generic], task: str) -> float:
    """How well the mean target (or the most frequent class) of each value in one half of the rows predicts the other half: AUROC,
    R-squared, or accuracy in excess of the largest class. Zero if under half of the rows have a value that the first half knows."""
    first = generator(0, "leakage", "halves").random(len(x)) < 0.5
    values, codes = np.unique(np.nan_to_num(x, nan=-np.inf), return_inverse=True)
    count = np.bincount(codes[first], minlength=len(values))
    judged = ~first & (count[codes] > 0)
    truth = y[judged]
    if 2 * judged.sum() < (~first).sum() or judged.sum() < FEWEST_ROWS or len(np.unique(truth)) < 2:
        return 0.0
    if task == "binary" and np.bincount(truth.astype(np.int64)).min() < FEWEST_IN_CLASS:
        return 0.0
    if task == "multiclass":
        label = np.full(len(values), -1, dtype=np.int64)
        known = _majorities(codes[first], y[first])[0]
        label[: len(known)] = known
        correct = float(np.mean(label[codes[judged]] == truth))
        rest = 1 - np.bincount(truth.astype(np.int64)).max() / len(truth)
        return float(1 - (1 - correct) / rest)
    means = np.bincount(codes[first], weights=y[first].astype(np.float64), minlength=len(values)) / np.maximum(count, 1)
    predicted = means[codes[judged]]
    if task == "binary":
        return _auroc(predicted, truth)
    residual = truth.astype(np.float64) - predicted
    return float(1 - residual.var() / truth.astype(np.float64).var())
