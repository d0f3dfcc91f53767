r"""Which values of a continuous target are rare: a relevance function, and the ranges of the target that it makes.

What is unbalanced: most rows have a target near its middle, and a regressor that is right there is nearly right on average. Relevance
:math:`\phi(y) \in [0, 1]` says how much a value of the target matters (Ribeiro 2011, "Utility-based regression"; Torgo et al. 2013). It is
0 at the median m, 1 from the end w of a whisker of the box plot on, and a monotone cubic in between,

.. math:: \phi(m + t (w - m)) = 3 t^2 - 2 t^3, \qquad 0 \le t \le 1 .

A whisker ends at the last observation within ``coef`` interquartile ranges of its hinge (McGill, Tukey, Larsen 1978). A side without
observations beyond its whisker has no relevant values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicHermiteSpline, PchipInterpolator

from counterpoise._errors import bad_input

__all__ = ["EXTREMES", "STRATEGIES", "TargetRange", "control_points", "find_ranges", "relevance_of", "wanted_sizes"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Relevance = str | Sequence[Sequence[float]] | npt.NDArray[Any] | Callable[[FloatArray], npt.ArrayLike]

EXTREMES = ("both", "low", "high")
STRATEGIES = ("balance", "extreme", "over")
MOST_ROWS = 2**31  # more is a slip of the pen


@dataclass(frozen=True)
class TargetRange:
    """Neighboring values of the target that are all rare, or all ordinary: from ``low`` to ``high``, and how many rows are there before and
    after resampling."""

    low: float
    high: float
    rare: bool
    rows: int
    rows_after: int


def relevance_of(y: FloatArray, relevance: Relevance, extremes: str, coef: float) -> FloatArray:
    """Relevance (n,) of the targets (n,): by the box plot of ``y`` ("auto"), by control points (value, relevance), or by a function."""
    if callable(relevance):
        values = np.asarray(relevance(y), dtype=np.float64)
        if values.shape != y.shape or not ((values >= 0) & (values <= 1)).all():
            bad_input("relevance", f"a function that gives shape {values.shape}", f"one number in [0, 1] for each of the {len(y)} targets")
        return values
    points = control_points(y, extremes, coef) if isinstance(relevance, str) else _given_points(relevance)
    return _interpolate(points, y)


def control_points(y: FloatArray, extremes: str = "both", coef: float = 1.5) -> FloatArray:
    """(value, relevance) of the low whisker, the median and the high whisker: (2 or 3, 2).

    Where more than half of the values are equal, a whisker lies on the median; then the first value beyond it has relevance 1.

    >>> control_points(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 30.0]))
    array([[1. , 0. ], [3.5, 0. ], [5. , 1. ]])
    """
    hinges = _hinges(y)
    median, reach = hinges[1], coef * (hinges[2] - hinges[0])
    inside = y[(y >= hinges[0] - reach) & (y <= hinges[2] + reach)]
    low, high = float(inside.min()), float(inside.max())
    low_matters = extremes != "high" and bool((y < low).any())
    high_matters = extremes != "low" and bool((y > high).any())
    if not low_matters and not high_matters:
        side = "" if extremes == "both" else f" {extremes}"
        bad_input(
            "y", f"no{side} value beyond the whiskers of its box plot, {low:g} and {high:g}", "rare values to make more of",
            _advice(y, median, extremes),
        )  # fmt: skip
    points = [(median, 0.0)]
    if low_matters:
        points.insert(0, (low if low < median else float(y[y < median].max()), 1.0))
    elif y.min() < median:
        points.insert(0, (float(y.min()), 0.0))
    if high_matters:
        points.append((high if high > median else float(y[y > median].min()), 1.0))
    elif y.max() > median:
        points.append((float(y.max()), 0.0))
    return np.array(points)


def _advice(y: FloatArray, median: float, extremes: str) -> str:
    """Control points that this target would take, with digits enough to tell them apart."""
    quantile, end = (0.05, y.min()) if extremes == "low" else (0.95, y.max())
    edge = float(np.quantile(y, quantile))
    edge = edge if edge != median else float(end)
    if edge == median:
        return "" if y.min() < y.max() else "All targets are equal: nothing can be rare."
    digits = next(digits for digits in range(6, 18) if f"{median:.{digits}g}" != f"{edge:.{digits}g}")
    points = sorted([(median, 0), (edge, 1)])
    return "Say which values are rare, such as relevance=[" + ", ".join(f"({value:.{digits}g}, {how})" for value, how in points) + "]."


def _hinges(y: FloatArray) -> tuple[float, float, float]:
    """Lower hinge, median and upper hinge: the medians of the lower half, of all, and of the upper half; halves share a middle value."""
    ordered = np.sort(y)
    half = (len(y) + 1) // 2
    return float(np.median(ordered[:half])), float(np.median(ordered)), float(np.median(ordered[len(y) - half :]))


def _given_points(relevance: Any) -> FloatArray:
    accepted = "at least two pairs (value of the target, relevance in [0, 1]), values ascending"
    try:
        points = np.asarray(relevance, dtype=np.float64)
    except (TypeError, ValueError):
        bad_input("relevance", relevance, f"'auto', a function, or {accepted}")
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 2:
        bad_input("relevance", f"shape {points.shape}", accepted)
    if not np.isfinite(points).all() or (np.diff(points[:, 0]) <= 0).any() or ((points[:, 1] < 0) | (points[:, 1] > 1)).any():
        bad_input("relevance", points.tolist(), accepted)
    return points


def _interpolate(points: FloatArray, y: FloatArray) -> FloatArray:
    """The monotone cubic through the points (Fritsch and Carlson 1980), level at both ends and beyond."""
    value, relevance = points.T
    slope = np.zeros(len(value))
    if len(value) > 2:
        slope[1:-1] = PchipInterpolator(value, relevance).derivative()(value[1:-1])
    inner = np.clip(CubicHermiteSpline(value, relevance, slope)(np.clip(y, value[0], value[-1])), 0.0, 1.0)
    # The ends themselves, so that a relevance of 1 is 1 and reaches a threshold of 1.
    return np.asarray(np.select([y <= value[0], y >= value[-1]], [relevance[0], relevance[-1]], inner), dtype=np.float64)


def find_ranges(y: FloatArray, rare: npt.NDArray[np.bool_]) -> list[IntArray]:
    """Rows of each range of the target, the lowest first; rare and ordinary ranges take turns."""
    order = np.argsort(y, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(rare[order].astype(np.int8))) + 1)


def wanted_sizes(sizes: Sequence[int], strategy: str | Sequence[float]) -> list[int]:
    r"""Rows that each range shall have.

    With n rows in R ranges of :math:`n_r`: "balance" gives each :math:`n / R`; "extreme" turns the frequencies round,
    :math:`n \, n_r^{-1} / \sum_s n_s^{-1}`; "over" gives each as many as the largest has; factors give :math:`n_r` times the factor.

    >>> wanted_sizes([90, 10], "balance"), wanted_sizes([90, 10], "extreme"), wanted_sizes([90, 10], "over")
    ([50, 50], [10, 90], [90, 90])
    >>> wanted_sizes([90, 10], [0.5, 3])
    [45, 30]
    """
    n = np.asarray(sizes, dtype=np.float64)
    if isinstance(strategy, str):
        equal, turned = np.full(len(n), n.sum() / len(n)), n.sum() / n / (1 / n).sum()
        wanted = {"balance": equal, "extreme": turned, "over": np.full(len(n), n.max())}[strategy]
    else:
        accepted = f"a factor > 0 for each of the {len(n)} ranges of the target"
        try:
            factors = np.asarray(strategy, dtype=np.float64)
        except (TypeError, ValueError):
            factors = np.empty(())
        if not factors.ndim:
            bad_input("sampling_strategy", strategy, f"one of {', '.join(STRATEGIES)}, or {accepted}")
        if factors.shape != n.shape or not (np.isfinite(factors) & (factors > 0)).all():
            bad_input("sampling_strategy", list(strategy), accepted)
        wanted = n * factors
        if wanted.sum() > MOST_ROWS:
            bad_input("sampling_strategy", strategy, f"factors that make at most {MOST_ROWS:,} rows, not {wanted.sum():,.0f}")
    return [max(1, round(size)) for size in wanted.tolist()]
