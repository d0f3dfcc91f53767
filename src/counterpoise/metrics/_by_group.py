r"""How far predictions differ between groups: in distribution (Jensen-Shannon divergence) and in mean (share of variance).

Both are 0 where predictions do not depend on the group, as demographic parity asks, and both are above 0 by chance in small groups: compare
with permuted groups, as :func:`counterpoise.diagnostics.intersectional_report` does.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from scipy.special import xlogy

from counterpoise._errors import bad_input, check_choice, check_range

from ._inputs import FloatArray, IntArray, read_groups, read_score, read_weight

__all__ = ["Densities", "between_group_variance_share", "jensen_shannon_by_group", "variance_share"]

GRID = 1000  # points where densities are evaluated
BINS = 50  # of the histograms
MOST_SOURCES = 4096  # different predictions; where there are more, each is moved by at most 1/8192 of their range


def jensen_shannon_by_group(
    yhat: Any,
    groups: Any,
    *,
    estimator: Literal["kde", "hist"] = "kde",
    bandwidth: float = 0.15,
    weights: Literal["proportion", "equal"] = "proportion",
    exposure: Any = None,
) -> float:
    r"""Generalized Jensen-Shannon divergence of the predictions' distributions in G groups, in bits.

    .. math:: H\Bigl(\sum_g \pi_g P_g\Bigr) - \sum_g \pi_g H(P_g)

    0 if all groups have the same distribution, at most the entropy of the shares :math:`\pi`. It is the information that a prediction
    carries about the group.

    Parameters
    ----------
    yhat : array-like, shape (n,)
        Predictions: probabilities, rates.
    groups : Groups or array-like, shape (n,)
        Cells of protected attributes, such as ``Groups.from_columns(frame, ["sex", "race"])``. Rows without a group are one of their own;
        a group without rows is left out.
    estimator : {"kde", "hist"}, default "kde"
        P_g from a Gaussian kernel density at 1000 points between the smallest and the largest prediction, or from 50 bins of equal width;
        either sums to 1.
    bandwidth : float > 0, default 0.15 (the authors' code)
        Standard deviation of the kernel in units of ``yhat``: for probabilities. It hides everything where predictions are rates around
        0.1; for those take about ``0.15 * yhat.std()`` of *one* model for all that are compared.
    weights : {"proportion", "equal"}, default "proportion"
        :math:`\pi_g`: the share of the rows, or 1 / G.
    exposure : array-like, shape (n,), optional
        Weight of each row in its group's distribution and in the shares.

    Raises
    ------
    InputError
        If a prediction is not finite, shapes do not match, or the bandwidth is below the distance of two of the 1000 points.

    Examples
    --------
    >>> round(jensen_shannon_by_group([0.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"], estimator="hist"), 6)
    1.0
    >>> round(jensen_shannon_by_group([0.1, 0.9, 0.1, 0.9], ["a", "a", "b", "b"]), 6)
    0.0
    """
    check_choice("weights", weights, ("proportion", "equal"))
    values = read_predictions(yhat)
    codes, names = read_groups(groups, len(values))
    weight = np.ones(len(values)) if exposure is None else read_weight(exposure, len(values), "exposure")
    return Densities(values, estimator, bandwidth).divergence(codes, len(names), weights == "equal", weight)


def between_group_variance_share(yhat: Any, groups: Any) -> float:
    r"""Variance of the G group means over the variance of all n predictions: :math:`Var_g(\bar y_g) / Var(\hat y)`.

    Every group counts as one, and both variances divide by their number minus 1 (the authors' UF), so a small group weighs as much as a
    large one and the result may exceed 1. 0 if predictions do not vary, or there is one group.

    Parameters
    ----------
    yhat : array-like, shape (n,)
        Predictions.
    groups : Groups or array-like, shape (n,)
        As in :func:`jensen_shannon_by_group`.

    Raises
    ------
    InputError
        If a prediction is not finite or shapes do not match.

    Examples
    --------
    >>> between_group_variance_share([1.0, 2.0, 3.0, 4.0], ["a", "a", "b", "b"])
    1.2
    """
    values = read_predictions(yhat)
    codes, names = read_groups(groups, len(values))
    return variance_share(values, codes, len(names))


def variance_share(values: FloatArray, codes: IntArray, groups: int) -> float:
    count = np.bincount(codes, minlength=groups)
    total = float(values.var(ddof=1)) if len(values) > 1 else 0.0
    if (count > 0).sum() < 2 or not total > 0:
        return 0.0
    # Centered first: a mean of a constant is that constant, exactly.
    means = np.bincount(codes, values - values.mean(), minlength=groups)[count > 0] / count[count > 0]
    return float(means.var(ddof=1)) / total


def read_predictions(yhat: Any, argument: str = "yhat") -> FloatArray:
    from counterpoise.groups import _to_numpy

    values = np.asarray(read_score(yhat, len(_to_numpy(argument, yhat)), argument), dtype=np.float64)
    if not len(values):
        bad_input(argument, "no rows", "at least one prediction")
    if not np.isfinite(values).all():
        bad_input(argument, "an infinite number", "finite predictions")
    return values


class Densities:
    """Densities of predictions in groups, of which there may be many: the kernels are evaluated once."""

    def __init__(self, values: FloatArray, estimator: str = "kde", bandwidth: float = 0.15) -> None:
        check_choice("estimator", estimator, ("kde", "hist"))
        check_range("bandwidth", bandwidth, low=0.0, open_low=True)
        low, high = float(values.min()), float(values.max())
        self._kernels: FloatArray | None = None
        self._same = low == high
        if self._same:
            return
        if estimator == "hist":
            self._bins = BINS
            self._at = np.minimum((BINS * (values - low) / (high - low)).astype(np.int64), BINS - 1)
            return
        if bandwidth < (high - low) / (GRID - 1):
            hint = f"{0.15 * float(values.std()):.3g} is 0.15 standard deviations."
            bad_input("bandwidth", bandwidth, f"at least the distance of two points, {(high - low) / (GRID - 1):.3g}", hint)
        if len(values) <= MOST_SOURCES:
            source, self._at = values, np.arange(len(values))
        else:
            self._at = np.rint((values - low) / (high - low) * (MOST_SOURCES - 1)).astype(np.int64)
            source = np.linspace(low, high, MOST_SOURCES)
        self._bins = len(source)
        self._kernels = np.exp(-0.5 * ((source[:, None] - np.linspace(low, high, GRID)) / bandwidth) ** 2)

    def divergence(self, codes: IntArray, groups: int, equal: bool, weight: FloatArray) -> float:
        """Jensen-Shannon divergence in bits for one way of putting the rows into groups."""
        if self._same:
            return 0.0
        mass = np.bincount(codes * self._bins + self._at, weight, minlength=groups * self._bins).reshape(groups, self._bins)
        share = mass.sum(axis=1)
        mass, share = mass[share > 0], share[share > 0]
        P = mass if self._kernels is None else mass @ self._kernels
        P = P / P.sum(axis=1, keepdims=True)
        pi = np.full(len(P), 1 / len(P)) if equal else share / share.sum()
        # As a sum of Kullback-Leibler divergences it is 0 for equal distributions, without cancellation.
        ratio = np.divide(P, pi @ P, out=np.ones_like(P), where=P > 0)
        return max(0.0, float(pi @ xlogy(P, ratio).sum(axis=1)) / float(np.log(2)))
