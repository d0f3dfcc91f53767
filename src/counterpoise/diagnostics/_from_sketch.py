"""What follows from a gradient sketch alone, without the model: shares and their factors, conflict, interaction, leverage."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from counterpoise._errors import bad_input, check_range
from counterpoise._pergrad import GradientSketch
from counterpoise._seeding import generator
from counterpoise._stats import gini

from ._shares import Array, GroupShares, Products, percent, shares_from_products, signed
from ._update import Update, update_of

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Conflict", "Leverage", "conflict", "group_shares", "interaction", "leverage_of"]

COLUMNS = 2**16  # of the group sums that are in float64 at once
BATCH = 64  # bootstrap resamples at once


def group_shares(sketch: GradientSketch, *, optimizer: Any = None, bootstrap: int = 200, level: float = 0.95, seed: int = 0) -> GroupShares:
    r"""Whose step it is: signed shares of the groups, their factors, and bootstrap intervals.

    .. math:: s_k = \langle \pi_k \mu_k, u \rangle / \langle \mu, u \rangle

    with the mean gradient :math:`\mu_k` of group k, that of all examples :math:`\mu`, and u = :math:`\mu`; with an ``optimizer``, u is the
    update it makes of it (see :func:`examine`). Point values are exact where the sketch holds the group sums. Intervals come from
    resampling the examples (Dirichlet weights) in the Gramian or, without one, in the random projection: no new backward.

    Parameters
    ----------
    sketch : GradientSketch
        From :func:`sketch_gradients` or ``examine(...).sketch``.
    optimizer : torch.optim.Optimizer, optional
        SGD, Adam, AdamW, NAdam, RAdam, RMSprop or Adagrad, with its state.
    bootstrap : int, default 200
        Resamples; 0 gives no intervals. Where the sketch has nothing per example, intervals are nan.
    level : float, default 0.95
        Coverage of the intervals.
    seed : int, default 0
        Of the resampling.

    Raises
    ------
    InputError
        If the sketch holds neither group sums nor a projection, or the optimizer has no state yet.

    Examples
    --------
    >>> from torch import nn
    >>> from counterpoise.diagnostics import sketch_gradients
    >>> _ = torch.manual_seed(0)
    >>> X, y = torch.randn(60, 4), (torch.arange(60) % 6 == 0).long()
    >>> shares = group_shares(sketch_gradients(nn.Linear(4, 2), nn.CrossEntropyLoss(), (X, y)))
    >>> shares.names, shares.pi.round(2), bool(abs(shares.share.sum() - 1) < 1e-9)
    (('0', '1'), array([0.83, 0.17]), True)
    """
    check_range("bootstrap", bootstrap, low=0, integer=True)
    check_range("level", level, low=0.5, high=1.0)
    names, m = sketch.names, len(sketch)
    count = sketch.counts().cpu().numpy().astype(np.int64)
    ids = sketch.ids.cpu().numpy()
    sums = _sums(sketch)
    mean = sums.sum(dim=0, dtype=torch.float64) / m
    update = None
    if optimizer is not None:
        if sketch.group_sums is None:
            bad_input("sketch", "no group sums", "a sketch with the group sums, which an optimizer's scaling is applied to")
        update = update_of(optimizer, sketch, mean)
    products = _products(sums, mean, update)
    norms_sq = np.full(len(names), np.nan)
    if sketch.norms_sq is not None:
        norms_sq = np.bincount(ids, sketch.norms_sq.double().cpu().numpy(), minlength=len(names))
    shares = shares_from_products(names, count, products, norms_sq)
    return shares if update is not None else shares_with_intervals(sketch, shares, bootstrap, level=level, seed=seed)


def shares_with_intervals(
    sketch: GradientSketch, shares: GroupShares, bootstrap: int, *, level: float = 0.95, seed: int = 0
) -> GroupShares:
    """The same shares with bootstrap intervals, where there are inner products between examples to resample."""
    if not bootstrap or not np.isfinite(shares.share).any():
        return shares
    low, high = _intervals(sketch, shares.share, bootstrap, level, seed)
    return replace(shares, share_lo=low, share_hi=high)


def _sums(sketch: GradientSketch) -> Tensor:
    if sketch.group_sums is not None:
        return sketch.group_sums
    if sketch.S is None:
        bad_input("sketch", "neither group sums nor a projection", "a sketch with group_sums or S")
    rows = len(sketch.names)
    return sketch.S.new_zeros(rows, sketch.S.shape[1]).index_add_(0, sketch.ids.to(sketch.S.device), sketch.S)


def _products(sums: Tensor, mean: Tensor, update: Update | None) -> Products:
    """In float64, some columns at a time: float32 loses small and negative eigenvalues."""
    G = len(sums)
    gram = torch.zeros(G, G, dtype=torch.float64, device=sums.device)
    along = torch.zeros(G, dtype=torch.float64, device=sums.device)
    norm_sq = forward = length_sq = 0.0
    for start in range(0, sums.shape[1], COLUMNS):
        part = slice(start, start + COLUMNS)
        x, mu = sums[:, part].double(), mean[part].double()
        u = mu if update is None else update.direction[part].double()
        gram += x @ x.T
        along += x @ u
        norm_sq += float(mu @ mu)
        forward += float(mu @ u)
        length_sq += float(u @ u)
    return Products(gram.cpu().numpy(), along.cpu().numpy(), norm_sq, forward, length_sq)


def _intervals(sketch: GradientSketch, share: Array, draws: int, level: float, seed: int) -> tuple[Array, Array]:
    """Percentiles of the share under Dirichlet weights over all examples, moved to the exact share.

    The weights of a group vary, too: where the groups' gradients nearly cancel, how many of each the probe happens to hold moves the
    shares more than anything else.
    """
    rows = len(sketch.names)
    if sketch.S is None and sketch.gramian is None:
        unknown = np.full(rows, np.nan)
        return unknown, unknown
    rng = generator(seed, "group_shares")
    ids = sketch.ids.cpu().numpy()
    members = [np.flatnonzero(ids == k) for k in range(rows)]
    center = _resampled_shares(sketch, members, np.ones((1, len(ids))))[0]
    parts = []
    for start in range(0, draws, BATCH):
        # Exponential variables are Dirichlet(1, ..., 1) up to their sum, which cancels in a share.
        w = rng.exponential(size=(min(BATCH, draws - start), len(ids)))
        parts.append(_resampled_shares(sketch, members, w))
    drawn = np.concatenate(parts) - center + share
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def _resampled_shares(sketch: GradientSketch, members: list[npt.NDArray[np.int64]], w: Array) -> Array:
    """(B, G) shares of the examples weighted with ``w`` (B, m)."""
    G = len(members)
    if sketch.gramian is not None:
        gramian = sketch.gramian.cpu().numpy()
        total = w @ gramian
        own = np.stack([(w[:, rows] * total[:, rows]).sum(axis=1) for rows in members], axis=1)
        return np.asarray(own / own.sum(axis=1, keepdims=True))
    assert sketch.S is not None
    S = sketch.S.double().cpu().numpy()
    sums = np.zeros((len(w), G, S.shape[1]))
    for k, rows in enumerate(members):
        sums[:, k] = w[:, rows] @ S[rows]
    mu = sums.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.einsum("bgr,br->bg", sums, mu) / np.einsum("br,br->b", mu, mu)[:, None])


@dataclass(frozen=True, eq=False)
class Conflict:
    """``cosine`` (G, G) between the mean gradients of groups; ``mass`` in [0, 1], the part of their inner products that is negative."""

    names: tuple[str, ...]
    cosine: Array
    mass: float

    def to_frame(self) -> pl.DataFrame:
        """One row per pair of groups, the most opposed first."""
        import polars as pl

        first, second = np.triu_indices(len(self.names), k=1)
        return pl.DataFrame(
            {
                "group": [self.names[i] for i in first],
                "other": [self.names[i] for i in second],
                "cosine": self.cosine[first, second],
            }
        ).sort("cosine")

    def summary(self) -> str:
        frame = self.to_frame()
        if not len(frame):
            return "One group: nothing to conflict with."
        group, other, cosine = frame.row(0)
        most = f"most opposed: {group!r} and {other!r} (cosine {signed(cosine)})"
        return f"{percent(self.mass, 0)} of the inner products between groups is negative; {most}."


def conflict(sketch: GradientSketch) -> Conflict:
    r"""Who wants what others do not: cosines between the groups' mean gradients, and how much of their inner products is negative.

    .. math:: \text{mass} = \frac{\sum_{k<l} \pi_k \pi_l \max(0, -\langle \mu_k, \mu_l \rangle)}
        {\sum_{k<l} \pi_k \pi_l |\langle \mu_k, \mu_l \rangle|}

    Inner products between different groups are unbiased however small the groups; above a mass of 0.2 remedies that combine gradients are
    worth a try.

    Examples
    --------
    >>> from torch import nn
    >>> from counterpoise.diagnostics import sketch_gradients
    >>> _ = torch.manual_seed(0)
    >>> X, y = torch.randn(60, 4), torch.arange(60) % 3
    >>> report = conflict(sketch_gradients(nn.Linear(4, 3), nn.CrossEntropyLoss(), (X, y)))
    >>> report.cosine.shape, 0 <= report.mass <= 1
    ((3, 3), True)
    """
    shares = group_shares(sketch, bootstrap=0)
    return Conflict(shares.names, shares.cosine, shares.conflict)


def interaction(sketch: GradientSketch, optimizer: Any = None, *, lr: float | None = None) -> Array:
    r"""Who helps whom: (G, G), entry (k, l) is the first-order change of group k's mean loss by group l's part of one step.

    .. math:: B_{kl} = -\eta \, \langle \mu_k, D \, \pi_l \mu_l \rangle

    Negative entries help. D is the optimizer's diagonal scaling (1 for SGD) and :math:`\eta` its learning rate.

    Parameters
    ----------
    sketch : GradientSketch
        With group sums.
    optimizer : torch.optim.Optimizer, optional
        Gives D and :math:`\eta`.
    lr : float, optional
        :math:`\eta` without an optimizer; default 1.

    Raises
    ------
    InputError
        If the sketch has no group sums, or the optimizer no state yet.

    Examples
    --------
    >>> from torch import nn
    >>> from counterpoise.diagnostics import sketch_gradients
    >>> _ = torch.manual_seed(0)
    >>> X, y = torch.randn(60, 4), torch.arange(60) % 3
    >>> bool((interaction(sketch_gradients(nn.Linear(4, 3), nn.CrossEntropyLoss(), (X, y))).diagonal() < 0).all())
    True
    """
    if sketch.group_sums is None:
        bad_input("sketch", "no group sums", "a sketch with group_sums")
    if lr is not None:
        check_range("lr", lr, low=0)
    sums, m = sketch.group_sums, len(sketch)
    count = sketch.counts().double().cpu().numpy()
    scale, rate = None, 1.0 if lr is None else lr
    if optimizer is not None:
        update = update_of(optimizer, sketch, sums.sum(dim=0) / m)
        scale, rate = update.scale, update.lr if lr is None else lr
    inner = torch.zeros(len(sums), len(sums), dtype=torch.float64, device=sums.device)
    for start in range(0, sums.shape[1], COLUMNS):
        part = slice(start, start + COLUMNS)
        x = sums[:, part].double()
        inner += x @ (x if scale is None else x * scale[part].double()).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(-rate * inner.cpu().numpy() / count[:, None] / m)


@dataclass(frozen=True, eq=False)
class Leverage:
    r"""How much of the step each example is: :math:`t_i = \langle g_i, \mu \rangle / (m \|\mu\|^2)`, which sum to 1.

    ``values`` (m,) and ``index`` (m,), positions in the data; ``groups`` (m,) their groups; ``top_share``: part of :math:`\sum |t_i|` held
    by the largest 1 %; ``gini`` of :math:`|t_i|`; ``tail_index``: Hill's estimate from the largest 5 % of norms (below 2 the variance is
    infinite); ``exact`` is False where the values come from a random projection.
    """

    values: Array
    index: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]
    top_share: float
    gini: float
    tail_index: float
    exact: bool

    def to_frame(self) -> pl.DataFrame:
        """Examples with the largest |t| first: rows to look at."""
        import polars as pl

        order = np.argsort(-np.abs(self.values), kind="stable")
        return pl.DataFrame({"index": self.index[order], "leverage": self.values[order], "group": self.groups[order]})


def leverage_of(sketch: GradientSketch) -> Leverage | None:
    """None where the engine has nothing per example."""
    along, exact = sketch.along, True
    if along is None and sketch.S is not None:
        S = sketch.S.double()
        along, exact = S @ S.mean(dim=0), False
    if along is None:
        return None
    total = float(along.sum())
    values = (along / total).cpu().numpy() if total != 0 else np.full(len(along), np.nan)
    size = np.abs(values)
    top = max(1, round(0.01 * len(size)))
    known = np.isfinite(size).all() and size.sum() > 0
    tail = float("nan")
    if sketch.norms_sq is not None:
        norms = np.sort(sketch.norms_sq.sqrt().cpu().numpy())[::-1]
        k = max(2, round(0.05 * len(norms)))
        if len(norms) > k and norms[k] > 0:
            mean_excess = float(np.log(norms[:k] / norms[k]).mean())
            tail = 1 / mean_excess if mean_excess > 0 else float("inf")
    return Leverage(
        values=values,
        index=sketch.index.cpu().numpy(),
        groups=sketch.groups.cpu().numpy(),
        top_share=float(np.sort(size)[::-1][:top].sum() / size.sum()) if known else float("nan"),
        gini=gini(size) if known else float("nan"),
        tail_index=tail,
        exact=exact,
    )
