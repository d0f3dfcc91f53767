r"""How likely the appearance of a row is, and what the row should weigh: formulas that the rooms ``data`` and ``losses`` share.

With :math:`n_k` rows in cluster k out of N, a row of cluster k has the likelihood :math:`p = n_k / N` and the weight
:math:`w(p) = (\eta + (1 - p)^\gamma) / (\eta + 1)` (DatasetEquity, arXiv:2308.09878).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ._errors import bad_input, check_range

__all__ = ["ETA", "GAMMA", "check_likelihood", "check_strength", "cluster_likelihood", "dequity", "mean_scale"]

ETA, GAMMA = 1.0, 5.0  # the defaults of the authors' code


def cluster_likelihood(labels: npt.NDArray[np.integer[Any]], noise: str = "pooled") -> npt.NDArray[np.float64]:
    """Likelihoods (K + 1,) of the clusters 0..K-1 and, last, of noise (label -1): as if it were one cluster, or 1 / N of every such row.

    >>> cluster_likelihood(np.array([0, 0, 0, 1, -1]))
    array([0.6, 0.2, 0.2])
    """
    n = len(labels)
    clusters = int(labels.max()) + 1
    counts = np.bincount(np.where(labels < 0, clusters, labels), minlength=clusters + 1)
    if noise == "singleton":
        counts[-1] = 1
    return np.asarray(counts / n)


def dequity(p: Any, eta: float, gamma: float) -> Any:
    """w(p) of a number, an array or a tensor."""
    return (eta + (1 - p) ** gamma) / (eta + 1)


def mean_scale(weights: Any) -> Any:
    """What makes the mean of an array or a tensor of weights 1, so that a loss, and with it the learning rate, keeps its size."""
    return len(weights) / weights.sum()


def check_strength(eta: float, gamma: float) -> None:
    """Raise unless both are finite numbers >= 0."""
    for name, value in (("eta", eta), ("gamma", gamma)):
        check_range(name, value, low=0.0)
        if not np.isfinite(value):
            bad_input(name, value, "a finite number >= 0")


def check_likelihood(p: Any, eta: float, gamma: float) -> None:
    """Raise unless all of ``p`` (array or tensor) lies in [0, 1] and not every weight is 0."""
    flat = p.reshape(-1)
    inside = (flat >= 0) & (flat <= 1)  # NaN is on neither side
    if not bool(inside.all()):
        at = int((~inside).nonzero()[0][0])
        bad_input("p", f"{flat[at].item():g} at position {at}", "likelihoods in [0, 1]", "Relative cluster sizes n_k / N are likelihoods.")
    if eta == 0 and gamma > 0 and len(flat) and bool((flat == 1).all()):
        bad_input("eta", eta, "a number > 0 where every likelihood is 1, since all weights would be 0", "The data are one cluster.")
