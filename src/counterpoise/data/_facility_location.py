r"""Facility location: the few examples that stand closest to all others, picked greedily.

What is unbalanced: a random half of a batch represents what is frequent twice and what is rare not at all. Medoids cover everything. With
distances :math:`d_{ij}` and :math:`C = \max d_{ij}`, the picks S of a given number raise

.. math:: F(S) = \sum_i \max_{s \in S} (C - d_{is}) ,

which is monotone and submodular: the gain of an example only falls as others are picked. Greedy picks reach at least :math:`1 - 1/e` of the
best value (Nemhauser, Wolsey, Fisher 1978), and an old gain is a bound on the new one, so most gains need not be computed again (lazy
greedy: Minoux 1978). C changes all gains of the first pick alike and later ones not at all, hence no pick.
"""

from __future__ import annotations

import heapq
import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from counterpoise._errors import bad_input, check_choice, check_range, listing
from counterpoise._precision import single
from counterpoise._seeding import generator as stream

from ._passes import _seed_of

__all__ = ["METRICS", "Selection", "facility_location", "pairwise_distances"]

METRICS = ("l1", "euclidean", "cosine")
OPTIMIZERS = ("lazy", "naive", "stochastic")
LEFT_OUT = 0.1  # expected share of the greedy value that stochastic picks may lose, the epsilon of its paper

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Selection:
    """Result of :func:`facility_location`, on the device of its input.

    Attributes
    ----------
    indices : int64 Tensor, shape (b,)
        The picks, in the order in which they were made.
    gains : float64 Tensor, shape (b,)
        What each pick added to F, in units of the distance; their sum is F.
    cluster_sizes : int64 Tensor, shape (b,)
        How many examples each pick stands for: itself, and those that are closer to it than to the other picks.
    """

    indices: Tensor
    gains: Tensor
    cluster_sizes: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return f"Selection({len(self)} of {int(self.cluster_sizes.sum())}, value {float(self.gains.sum()):.4g})"


def facility_location(
    features: Any, budget: int, metric: str = "l1", optimizer: str = "lazy", generator: torch.Generator | int | None = None
) -> Selection:
    r"""The ``budget`` examples that stand closest to all, by greedy maximization of :math:`F(S) = \sum_i \max_{s \in S} (C - d_{is})`.

    Equal gains go to the smaller index. A row that is not finite is never picked and not represented; a warning names it.

    Parameters
    ----------
    features : Tensor or array, shape (n, h), or (n, n) for ``metric="precomputed"``
        One row per example, or all distances: column j holds those to example j. Half precision is computed in float32.
    budget : int in [1, n]
        How many are picked.
    metric : {"l1", "euclidean", "cosine", "precomputed"}, default "l1"
        Distance; "l1" is what CoLM takes (arXiv:2407.19580). "cosine" is one minus the cosine, which is 0 for a row of zeros.
    optimizer : {"lazy", "naive", "stochastic"}, default "lazy"
        "lazy" and "naive" make the same picks. "lazy" computes few gains, on the CPU. "naive" computes all gains for every pick, on the
        device of the features and without waiting for it. "stochastic" looks at :math:`(n / b) \ln(1 / 0.1)` random examples for each
        pick (Mirzasoleiman et al. 2015, arXiv:1409.7938): for tens of thousands of examples, if F need not be quite as large.
    generator : torch.Generator or int, optional
        For "stochastic": a seed, or a generator that is asked for one number. Default: seed 0.

    Returns
    -------
    Selection
        ``indices``, ``gains`` and ``cluster_sizes``.

    Raises
    ------
    InputError
        If ``features`` is not a matrix of real numbers (square for "precomputed"), distances overflow, ``budget`` is not in [1, n] or
        more than there are finite rows, or an option is unknown.

    Examples
    --------
    >>> rows = torch.tensor([[0.0], [1.0], [2.0], [9.0], [10.0]])
    >>> picked = facility_location(rows, budget=2)
    >>> picked.indices, picked.cluster_sizes
    (tensor([2, 3]), tensor([3, 2]))
    >>> picked.gains.tolist()
    [32.0, 14.0]
    """
    check_choice("metric", metric, (*METRICS, "precomputed"))
    check_choice("optimizer", optimizer, OPTIMIZERS)
    rows = _matrix(features)
    n = len(rows)
    check_range("budget", budget, low=1, high=n, integer=True)
    if metric == "precomputed":
        if rows.shape != (n, n):
            bad_input("features", f"shape {tuple(rows.shape)}", "a square matrix of distances", "Or name the metric of features.")
        usable = rows.isfinite().any(dim=1)
    else:
        usable = rows.isfinite().all(dim=1)
    kept: Tensor | None = None  # None: all
    if not bool(usable.all()):
        kept = usable.nonzero().squeeze(1)
        skipped = (~usable).nonzero().squeeze(1).tolist()
        if budget > len(kept):
            bad_input("budget", budget, f"at most {len(kept)}, as many as rows are finite", "Look for what makes the others overflow.")
        warnings.warn(f"Rows of features that are not finite are not picked: {listing(skipped)}.", stacklevel=2)
        rows = rows[kept][:, kept] if metric == "precomputed" else rows[kept]
    distances = rows if metric == "precomputed" else pairwise_distances(rows, metric)
    farthest = distances.max()
    if not bool(distances.isfinite().all()):
        bad_input("features", f"distances up to {float(farthest):g}", "distances that are finite", "Scale the features down.")
    similarity = farthest - distances
    if optimizer == "naive":
        indices, gains = _naive(similarity, int(budget))
    else:
        # In float64 sums of float32 distances are exact or nearly so: ties stay ties.
        on_cpu = similarity.detach().cpu().double().numpy()
        columns: FloatArray = np.ascontiguousarray(on_cpu.T)
        picks, won = _lazy(columns, int(budget)) if optimizer == "lazy" else _stochastic(columns, int(budget), _seed_of(generator))
        indices = torch.tensor(picks, dtype=torch.int64, device=rows.device)
        gains = torch.tensor(won, dtype=torch.float64, device=rows.device)
    nearest = similarity[:, indices].argmax(dim=1)
    nearest[indices] = torch.arange(len(indices), device=rows.device)  # a pick stands for itself, also beside its own copy
    sizes = torch.bincount(nearest, minlength=len(indices))
    return Selection(indices if kept is None else kept[indices], gains, sizes)


def pairwise_distances(rows: Tensor, metric: str) -> Tensor:
    """(n, n) distances between rows (n, h); those of equal rows are exactly 0.

    >>> pairwise_distances(torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]), "cosine").round(decimals=3)
    tensor([[0., 1., 1.],
            [1., 0., 1.],
            [1., 1., 1.]])
    """
    if metric == "l1":
        return torch.cdist(rows, rows, p=1)
    if metric == "euclidean":
        return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    scaled = rows / rows.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)  # so that no square overflows
    length = scaled.norm(dim=1, keepdim=True)
    zero = length.squeeze(1) == 0
    unit = scaled / length.masked_fill(length == 0, 1.0)
    cosine_distance = torch.cdist(unit, unit, compute_mode="donot_use_mm_for_euclid_dist").square() / 2
    return cosine_distance.masked_fill_(zero | zero[:, None], 1.0)


def _matrix(features: Any) -> Tensor:
    try:
        rows = features.detach() if isinstance(features, Tensor) else torch.as_tensor(np.asarray(features))
    except (TypeError, ValueError):
        bad_input("features", features, "a tensor or an array of numbers, one row per example")
    if rows.ndim != 2 or rows.is_complex() or not rows.numel():
        bad_input("features", f"{rows.dtype} of shape {tuple(rows.shape)}", "real numbers of shape (n, h), one row per example")
    return single(rows if rows.is_floating_point() else rows.float())


def _lazy(columns: FloatArray, budget: int) -> tuple[list[int], list[float]]:
    """Column j of the similarity as ``columns[j]``. Gains only fall, so the largest one that is up to date is the largest."""
    covered = np.zeros(len(columns))  # similarity of each example to its closest pick
    gain = np.empty(len(columns))
    heap = [(-bound, j, 0) for j, bound in enumerate(columns.sum(axis=1).tolist())]  # (-gain, example, picks when it was computed)
    heapq.heapify(heap)
    picks: list[int] = []
    won: list[float] = []
    while len(picks) < budget:
        bound, j, computed_at = heap[0]
        if computed_at < len(picks):
            np.subtract(columns[j], covered, out=gain)
            np.maximum(gain, 0.0, out=gain)
            heapq.heapreplace(heap, (-float(gain.sum()), j, len(picks)))
        else:
            heapq.heappop(heap)
            picks.append(j)
            won.append(-bound)
            np.maximum(covered, columns[j], out=covered)
    return picks, won


def _stochastic(columns: FloatArray, budget: int, seed: int) -> tuple[list[int], list[float]]:
    n = len(columns)
    rng = stream(seed, "facility-location")
    looked_at = math.ceil(n / budget * math.log(1 / LEFT_OUT))
    covered = np.zeros(n)
    left = np.ones(n, dtype=np.bool_)
    picks: list[int] = []
    won: list[float] = []
    while len(picks) < budget:
        candidates = np.sort(rng.permutation(np.flatnonzero(left))[:looked_at])
        gains = np.maximum(columns[candidates] - covered, 0.0).sum(axis=1)
        best = int(gains.argmax())
        j = int(candidates[best])
        left[j] = False
        picks.append(j)
        won.append(float(gains[best]))
        np.maximum(covered, columns[j], out=covered)
    return picks, won


def _naive(similarity: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """All gains for every pick. Nothing is read back from the device before the end."""
    similarity = similarity.double() if similarity.device.type != "mps" else similarity
    n, device = len(similarity), similarity.device
    covered = similarity.new_zeros(n, 1)
    picked = torch.zeros(n, dtype=torch.bool, device=device)
    indices = torch.empty(budget, dtype=torch.int64, device=device)
    won = torch.empty(budget, dtype=similarity.dtype, device=device)
    for k in range(budget):
        gains = (similarity - covered).clamp_(min=0).sum(dim=0).masked_fill_(picked, -1.0)
        j = gains.argmax().view(1)
        indices[k : k + 1], won[k : k + 1] = j, gains[j]
        picked.index_fill_(0, j, True)
        covered = torch.maximum(covered, similarity.index_select(1, j))
    return indices, won
