r"""The ROC and the precision-recall curve at the scores of the positives, which is all that AUROC and AUPRC are made of.

Written once for the decomposition, the bootstrap and the studies. Tied scores are one threshold: precision counts everything at or above
it, AUROC takes a tie as one half of a pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ._inputs import BoolArray, FloatArray, IntArray

__all__ = ["Curve", "average_precisions", "aurocs", "curve_of"]


@dataclass(frozen=True, eq=False)
class Curve:
    """Weights of what lies at and above the m distinct scores of the positives, lowest score first.

    ``block`` (n_pos,) which of them each positive has; ``tied`` (m,) positives that have it; ``true`` and ``false`` (m,) positives and
    negatives scored at least as high; ``false_above`` (m,) negatives scored higher; ``negatives`` all of them. Without weights, counts.
    """

    block: IntArray
    tied: FloatArray
    true: FloatArray
    false: FloatArray
    false_above: FloatArray
    negatives: float

    @property
    def positives(self) -> float:
        return float(self.true[0])

    @property
    def prevalence(self) -> float:
        return float(self.positives / (self.positives + self.negatives))

    @property
    def fpr(self) -> FloatArray:
        """(m,) share of the negatives that a positive loses to, a tie counting one half: what it takes from the AUROC."""
        return (self.false_above + self.false) / 2 / self.negatives

    @property
    def auroc(self) -> float:
        return self._mean(1 - self.fpr)

    @property
    def auprc(self) -> float:
        return self._mean(self.true / (self.true + self.false))

    def _mean(self, value: FloatArray) -> float:
        # Weights that are divided first keep the ends exact: 1 for a perfect order, the prevalence where all scores are tied.
        return float(np.average(value, weights=self.tied / self.positives))


def curve_of(score: npt.NDArray[Any], positive: BoolArray, weight: FloatArray | None = None) -> Curve:
    """The curve of scores (n,); both classes must have weight. Two sorts, of the positives and of the negatives: O(n log n)."""
    level, block, count = np.unique(score[positive], return_inverse=True, return_counts=True)
    below = score[~positive]
    if weight is None:
        below = np.sort(below)
        tail = np.arange(len(below), -1, -1, dtype=np.float64)  # how many negatives from the i-th lowest on
        tied = count.astype(np.float64)
    else:
        order = np.argsort(below)
        below = below[order]
        tail = np.append(np.cumsum(weight[~positive][order][::-1])[::-1], 0.0)  # summed from the top, where little is above little
        tied = np.asarray(np.bincount(block, weight[positive]), dtype=np.float64)
    return Curve(
        block=block,
        tied=tied,
        true=np.cumsum(tied[::-1])[::-1],
        false=tail[np.searchsorted(below, level)],
        false_above=tail[np.searchsorted(below, level, side="right")],
        negatives=float(tail[0]),
    )


# ---- under many weightings at once ------------------------------------------------------------------------------------------------------


def average_precisions(score: npt.NDArray[Any], positive: BoolArray, weights: FloatArray) -> FloatArray:
    """Average precision under each row of ``weights`` (b, n): (b,); NaN where no positive row has weight.

    >>> average_precisions(np.array([0.9, 0.5, 0.5]), np.array([False, True, False]), np.array([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]))
    array([0.33333333, 1.        ])
    """
    true, mass = _at_or_above(score, positive, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(mass > 0, true / mass, 0.0)
        return np.asarray((np.diff(true, axis=1, prepend=0.0) * precision).sum(axis=1) / true[:, -1])


def aurocs(score: npt.NDArray[Any], positive: BoolArray, weights: FloatArray) -> FloatArray:
    """AUROC under each row of ``weights`` (b, n): (b,); NaN where a class has no weight.

    >>> aurocs(np.array([0.9, 0.5, 0.5]), np.array([False, True, False]), np.array([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0]]))
    array([0.25, 0.5 ])
    """
    true, mass = _at_or_above(score, positive, weights)
    false = mass - true
    lost = false - np.diff(false, axis=1, prepend=0.0) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(1 - (np.diff(true, axis=1, prepend=0.0) * lost).sum(axis=1) / (true[:, -1] * false[:, -1]))


def _at_or_above(score: npt.NDArray[Any], positive: BoolArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(b, m) weight of the positive rows, and of all rows, at or above each distinct score, highest first."""
    order = np.argsort(score, kind="stable")[::-1]
    ranked = score[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # a threshold lies below the last of tied scores
    drawn = weights[:, order]
    return np.cumsum(drawn * positive[order], axis=1)[:, last], np.cumsum(drawn, axis=1)[:, last]
