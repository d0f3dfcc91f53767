r"""How rare a target is, for weights and windows: label distribution smoothing (Yang et al. 2021, arXiv:2102.09554), and a first window.

What is unbalanced: some ranges of a continuous target have many rows, others few. Counting equal values is not enough, since a value with
few rows between values with many is not rare for a regressor. With counts :math:`c_b` of bins, smoothed over neighboring bins,

.. math:: w_i \propto 1 / \tilde c_{b(i)}, \qquad \tilde c_b = \sum_{|m| \le (ks - 1) / 2} k(m) \, c_{b + m} .
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from counterpoise._errors import bad_input, check_choice, check_range

__all__ = ["fit_window", "lds_weights"]

Array = npt.NDArray[np.float64]

BINS = 100  # of targets that are not whole numbers
MOST_BINS = 10_000_000


def lds_weights(
    targets: Any,
    bins: int | Sequence[float] | None = None,
    kernel: Literal["gaussian", "triangle", "laplace"] = "gaussian",
    ks: int = 5,
    sigma: float = 2,
    scheme: Literal["inverse", "sqrt_inverse"] = "inverse",
) -> Tensor:
    r"""Weights of rows by how rare their target is among its neighbors, with mean 1 over the rows.

    Targets are counted in bins of equal width; for ``"sqrt_inverse"`` the root of the counts is taken; counts are smoothed by a kernel over
    ``ks`` bins with peak 1 (nothing lies beyond the first and the last bin); a row weighs the inverse of its bin's smoothed count.

    Parameters
    ----------
    targets : array-like or tensor of numbers, shape (n,) or (n, 1)
        Of the whole training set.
    bins : int or increasing sequence of float, optional
        Number of bins between the smallest and the largest target, or their edges. Default: width 1 if all targets are whole numbers, else
        100.
    kernel : {"gaussian", "triangle", "laplace"}, default "gaussian"
        :math:`e^{-m^2 / (2 \sigma^2)}`, :math:`1 - 2 |m| / (ks + 1)` or :math:`e^{-|m| / \sigma}`, m in bins. (The authors' code filters
        its Gaussian with reflection at the ends of the window, which makes it flatter: 0.86 instead of 0.61 at m = 2 for ``sigma=2``.)
    ks : odd int >= 1, default 5 (Yang et al. 2021)
        Bins that the kernel spans; 1 does not smooth.
    sigma : float > 0, default 2 (Yang et al. 2021)
        In bins.
    scheme : {"inverse", "sqrt_inverse"}, default "inverse"
        "sqrt_inverse" is the milder one; weights of "inverse" differ by as much as the smoothed counts do.

    Returns
    -------
    Tensor, shape (n,), of torch's default dtype
        Fits ``sample_weight`` of :class:`ConRLoss` and of most regressors.

    Raises
    ------
    InputError
        If a target is not finite or outside the edges, there is none, or a parameter is out of its range.

    Examples
    --------
    >>> lds_weights([30, 30, 30, 30, 31, 60])
    tensor([0.6024, 0.6024, 0.6024, 0.6024, 0.6493, 2.9412])
    >>> lds_weights([30, 30, 30, 30, 31, 60], ks=1, scheme="sqrt_inverse")
    tensor([0.7500, 0.7500, 0.7500, 0.7500, 1.5000, 1.5000])
    """
    check_choice("kernel", kernel, ("gaussian", "triangle", "laplace"))
    check_choice("scheme", scheme, ("inverse", "sqrt_inverse"))
    check_range("sigma", sigma, low=0, open_low=True)
    check_range("ks", ks, low=1, integer=True)
    if ks % 2 == 0:
        bad_input("ks", ks, "an odd number of bins, with one in the middle")
    y = _column(targets)
    ids, n_bins = _bin_ids(y, bins)
    counts = np.bincount(ids, minlength=n_bins).astype(np.float64)
    if scheme == "sqrt_inverse":
        counts = np.sqrt(counts)
    half = (int(ks) - 1) // 2
    smoothed = np.convolve(counts, _kernel(kernel, half, float(sigma)))[half : half + n_bins]
    weights = 1 / smoothed[ids]
    return torch.as_tensor(weights / weights.mean(), dtype=torch.get_default_dtype())


def fit_window(targets: Any, q: float = 0.05) -> float:
    """A first guess for the ``window`` of :class:`ConRLoss`: ``q`` times the distance between the quartiles of the targets.

    It is a place to start a search from: what counts as the same target is a matter of the problem (a year, 20 cm), not of its spread.

    Parameters
    ----------
    targets : array-like or tensor of numbers, shape (n,) or (n, 1)
    q : float > 0, default 0.05

    Raises
    ------
    InputError
        If a target is not finite, there is none, or the quartiles are the same.

    Examples
    --------
    >>> fit_window(range(101))
    2.5
    """
    check_range("q", q, low=0, open_low=True)
    low, high = np.quantile(_column(targets), [0.25, 0.75])
    if high == low:
        bad_input("targets", f"both quartiles {low:g}", "targets whose quartiles differ", "Choose the window from what the targets mean.")
    return float(q * (high - low))


def _column(targets: Any) -> Array:
    """Finite numbers, (n,)."""
    if isinstance(targets, Tensor):
        targets = targets.detach().cpu()
        targets = targets.float() if targets.dtype == torch.bfloat16 else targets  # which NumPy does not have
    array = np.asarray(targets)
    if array.dtype.kind not in "fiub":
        bad_input("targets", f"an array of {array.dtype}", "numbers")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or not len(array):
        bad_input("targets", f"shape {array.shape}", "one number per row, shape (n,) or (n, 1) with n > 0")
    y = array.astype(np.float64)
    if not np.isfinite(y).all():
        bad_input("targets", "nan or inf", "finite numbers", "Leave out rows whose target is missing.")
    return y


def _bin_ids(y: Array, bins: int | Sequence[float] | None) -> tuple[npt.NDArray[np.int64], int]:
    """The bin of each target, and how many bins there are."""
    if bins is None and bool((y == np.round(y)).all()):
        n_bins = y.max() - y.min() + 1
        if n_bins > MOST_BINS:
            bad_input("targets", f"whole numbers from {y.min():g} to {y.max():g}", "a range below 10 million", "Say how many: bins=100.")
        return (y - y.min()).astype(np.int64), int(n_bins)
    if bins is None or not isinstance(bins, Sequence | np.ndarray):
        check_range("bins", BINS if bins is None else bins, low=1, integer=True)
        edges = np.histogram_bin_edges(y, bins=BINS if bins is None else int(bins))
    else:
        edges = np.asarray(bins, dtype=np.float64)
        if edges.ndim != 1 or len(edges) < 2 or not np.isfinite(edges).all() or not (np.diff(edges) > 0).all():
            bad_input("bins", bins, "a number of bins, or at least two increasing edges")
        outside = (y < edges[0]) | (y > edges[-1])
        if outside.any():
            bad_input("targets", y[outside][0], f"targets between the edges {edges[0]:g} and {edges[-1]:g}")
    # The right-most edge belongs to the last bin, as in numpy.histogram.
    return np.minimum(np.searchsorted(edges, y, side="right") - 1, len(edges) - 2).astype(np.int64), len(edges) - 1


def _kernel(kernel: str, half: int, sigma: float) -> Array:
    """(2 half + 1,), 1 in the middle."""
    m = np.abs(np.arange(-half, half + 1, dtype=np.float64))
    if kernel == "triangle":
        return 1 - m / (half + 1)
    return np.exp(-(m**2) / (2 * sigma**2)) if kernel == "gaussian" else np.exp(-m / sigma)
