"""Which pairs of modalities take the gradient of a contrastive loss, and how far apart their embeddings lie (after e5-omni,
arXiv:2601.03666)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from counterpoise._errors import bad_input, check_range, listing
from counterpoise.groups import Groups
from counterpoise.losses._conr import unit_rows

from ._shares import percent

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

__all__ = ["SharpnessByModality", "modality_sharpness"]

Array = npt.NDArray[np.float64]

PAIRS_AT_ONCE = 2**24
UNEVEN = 1.5  # times as sharp as the flattest pair from which temperatures of their own are worth a try
DOMINATES = 1.5  # times its share of the logits from which a pair is said to take the gradient


@dataclass(frozen=True, eq=False)
class SharpnessByModality:
    """Result of :func:`modality_sharpness`. Arrays have one entry per pair of a modality of queries and one of targets that both occur.

    Attributes
    ----------
    pairs : tuple of (str, str)
        Modality of the query, and of the target.
    count : array of int
        Queries whose own target makes this pair; 0 for a pair that only negatives make.
    logit_share : array
        Share of all logits that lie in this pair: what its share of the gradient would be if all logits had the same.
    gradient_share : array
        Share of the gradient of InfoNCE by the cosines, in absolute value. Sums to 1.
    logit_sd : array
        Standard deviation of the logits of negatives: how sharp the pair is at this temperature. nan without two of them.
    mean_rank : array
        Mean rank of the own target among all targets, 1 is best; nan where ``count`` is 0.
    centroid_distance : array
        Between the mean unit embedding of the queries of the one modality and that of the targets of the other, from 0 to 2.
    covariance_gap : array
        Distance of their covariances (Frobenius) over the sum of their norms, from 0 to 1; nan with fewer than two rows on a side.
    """

    pairs: tuple[tuple[str, str], ...]
    count: npt.NDArray[np.int64]
    logit_share: Array
    gradient_share: Array
    logit_sd: Array
    mean_rank: Array
    centroid_distance: Array
    covariance_gap: Array

    @property
    def names(self) -> tuple[str, ...]:
        """The pairs in words."""
        return tuple(f"{query} - {target}" for query, target in self.pairs)

    def to_frame(self) -> pl.DataFrame:
        """One row per pair."""
        import polars as pl

        columns = ("count", "logit_share", "gradient_share", "logit_sd", "mean_rank", "centroid_distance", "covariance_gap")
        named = {"query": [pair[0] for pair in self.pairs], "target": [pair[1] for pair in self.pairs]}
        return pl.DataFrame(named | {name: getattr(self, name) for name in columns})

    def summary(self) -> str:
        """Up to three sentences, one per line."""
        worst = int(np.argmax(self.gradient_share / self.logit_share))
        names = self.names
        lines = [
            f"{names[worst]}: {percent(float(self.gradient_share[worst]))} of the gradient from {percent(float(self.logit_share[worst]))} "
            "of the logits."
        ]
        known = np.flatnonzero(np.isfinite(self.logit_sd) & (self.logit_sd > 0))
        if len(known) > 1:
            sharp, flat = (int(known[pick(self.logit_sd[known])]) for pick in (np.argmax, np.argmin))
            ratio = self.logit_sd[sharp] / self.logit_sd[flat]
            lines.append(
                f"Sharpest is {names[sharp]} (standard deviation of its logits {self.logit_sd[sharp]:.2f}), flattest {names[flat]} "
                f"({self.logit_sd[flat]:.2f})" + ("; temperatures per modality are worth a try." if ratio >= UNEVEN else ".")
            )
        ranked = np.flatnonzero(self.count)
        hardest = int(ranked[np.argmax(self.mean_rank[ranked])])
        lines.append(f"Own targets rank worst for {names[hardest]}: {self.mean_rank[hardest]:.1f} on average.")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Per pair: share of the gradient against share of the logits, and the spread of its logits."""
        from counterpoise.report import _plots

        shown = _plots.most_different(self.logit_share, self.gradient_share)
        with _plots.style():
            row_height, top, bottom, left = 28, 66, 48, 200
            height = row_height * len(shown) + top + bottom
            fig = _plots.figure(_plots.WIDTH, height)
            shares = _plots.axes(fig, left, bottom, 270, row_height * len(shown))
            spreads = _plots.axes(fig, left + 310, bottom, 206, row_height * len(shown))
            for ax in (shares, spreads):
                _plots.plain_rows(ax, len(shown))
                _plots.rules_between(ax, len(shown))
            _plots.share_axis(shares, 0.0, float(max(self.gradient_share[shown].max(), self.logit_share[shown].max())), ticks=5)
            shares.set_xlabel("share of the gradient")
            spreads.set_xlabel("standard deviation of logits")
            spreads.set_xlim(0, 1.1 * max(float(np.nanmax(np.nan_to_num(self.logit_sd[shown]))), 1e-9))
            for row, k in enumerate(shown):
                loud = self.gradient_share[k] >= DOMINATES * self.logit_share[k]
                color = _plots.RED if loud else _plots.BLUE
                _plots.row_text(fig, shares, row, 8, self.names[k], weight="bold" if loud else "normal")
                _plots.head_count(shares, row, float(self.logit_share[k]), float(self.gradient_share[k]))
                shares.plot(self.gradient_share[k], row, color=color, zorder=6, **_plots.DOT)
                spreads.barh(row, np.nan_to_num(self.logit_sd[k]), height=0.5, color=color, zorder=2)
            marks = [("of the logits", {"color": _plots.INK, **_plots.TICK}), ("of the gradient", {"color": _plots.BLUE, **_plots.DOT})]
            _plots.key(fig, left + 6, height - 48, marks)
            fig.text(8 / _plots.WIDTH, 1 - 12 / height, "Which pairs of modalities take the gradient", va="top", weight="bold")
            return fig


def modality_sharpness(query: Any, target: Any, modalities: Any, temperature: float = 0.02) -> SharpnessByModality:
    r"""Whether some pairs of modalities are sharper than others, and take the gradient of a contrastive loss for it.

    Row i of ``target`` belongs to row i of ``query``. With cosines :math:`c_{ij}` and the softmax p of a row of :math:`c / \tau`, InfoNCE
    has the gradient :math:`(p_{ij} - [i = j]) / \tau` by the cosines. Its absolute values are added up over the queries of one modality and
    the targets of another.

    Parameters
    ----------
    query, target : array-like or tensor, shape (n, D)
        Embeddings of any length, of a validation set in ``eval()`` mode; about as many as in a batch, since shares depend on n.
    modalities : (queries, targets), each of them labels (n,) or Groups
        Of the items; one of both if the second is None. An item of several modalities has a label of its own, such as "text+image".
    temperature : float > 0, default 0.02
        :math:`\tau`, that of your loss.

    Raises
    ------
    InputError
        If shapes do not match, there are fewer than two rows, an embedding is not finite, or an item has no modality.

    Examples
    --------
    >>> query = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    >>> target = np.array([[0.9, 0.1], [0.9, 0.7], [0.5, 0.9], [0.5, 0.8]])
    >>> report = modality_sharpness(query, target, (["text"] * 4, ["image", "image", "audio", "audio"]), temperature=0.1)
    >>> report.pairs
    (('text', 'audio'), ('text', 'image'))
    >>> report.gradient_share.round(2), report.logit_sd.round(2), report.mean_rank
    (array([0.65, 0.35]), array([2.19, 3.01]), array([1., 1.]))
    """
    check_range("temperature", temperature, low=0, open_low=True)
    q, t = (_embeddings(name, x) for name, x in (("query", query), ("target", target)))
    if q.shape != t.shape or len(q) < 2:
        bad_input("query and target", f"shapes {tuple(q.shape)} and {tuple(t.shape)}", "the same shape (n, D) with n >= 2")
    sides = modalities if isinstance(modalities, tuple) and len(modalities) == 2 and not isinstance(modalities[0], str) else None
    if sides is None or isinstance(modalities, Groups):
        bad_input("modalities", type(modalities).__name__, "a tuple of the modalities of the queries and of the targets")
    of_q = _groups(sides[0], len(q))
    of_t = of_q if sides[1] is None else _groups(sides[1], len(t))
    m_q, m_t = len(of_q), len(of_t)
    ids_q, ids_t = (torch.from_numpy(groups.ids.copy()).to(q.device) for groups in (of_q, of_t))
    gradient, spread, rank = _by_pairs(q, t, ids_q, ids_t, m_q, m_t, float(temperature))
    if not gradient.any():
        bad_input("temperature", temperature, "a larger one: own targets stand out so far that no query has a gradient")
    n_q, n_t = of_q.counts(), of_t.counts()
    own = np.bincount(of_q.ids * m_t + of_t.ids, minlength=m_q * m_t)
    logits = np.outer(n_q, n_t).ravel()
    occurs = np.flatnonzero(logits)
    centers, covariances = zip(*(_moments(x, ids, m) for x, ids, m in ((q, ids_q, m_q), (t, ids_t, m_t))), strict=True)
    distances = torch.cdist(centers[0], centers[1], compute_mode="donot_use_mm_for_euclid_dist").cpu().numpy().ravel()
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_rank = np.where(own > 0, rank / np.maximum(own, 1), np.nan)
    return SharpnessByModality(
        tuple((of_q.names[k // m_t], of_t.names[k % m_t]) for k in occurs),
        own[occurs].astype(np.int64),
        logit_share=logits[occurs] / logits.sum(),
        gradient_share=gradient[occurs] / gradient.sum(),
        logit_sd=spread[occurs],
        mean_rank=mean_rank[occurs],
        centroid_distance=distances[occurs],
        covariance_gap=_gaps(*covariances).ravel()[occurs],
    )


def _by_pairs(q: Tensor, t: Tensor, ids_q: Tensor, ids_t: Tensor, m_q: int, m_t: int, tau: float) -> tuple[Array, Array, Array]:
    """Per pair of modalities (m_q m_t,): sum of absolute gradients, standard deviation of the negatives' logits, sum of ranks."""
    size = max(1, PAIRS_AT_ONCE // len(t))
    columns = torch.nn.functional.one_hot(ids_t, m_t).to(q.dtype)
    totals = q.new_zeros(4, m_q, m_t)  # gradient, number of negatives, sum and sum of squares of their logits
    ranks = q.new_zeros(m_q * m_t)
    for start in range(0, len(q), size):
        rows = slice(start, min(start + size, len(q)))
        logits = q[rows] @ t.T / tau
        diagonal = torch.arange(rows.start, rows.stop, device=q.device)[:, None]
        by_logit = logits.softmax(dim=1)
        # That of the own target is the sum of the others: 1 - p would be 0 where p is nearly 1.
        by_logit.scatter_(1, diagonal, 0)
        by_logit.scatter_(1, diagonal, by_logit.sum(dim=1, keepdim=True))
        own = logits.gather(1, diagonal)
        ranks.index_add_(0, ids_q[rows] * m_t + ids_t[rows], 1 + (logits > own).sum(dim=1).to(q.dtype))
        negative = torch.ones_like(logits).scatter_(1, diagonal, 0)
        logits = logits * negative
        for k, part in enumerate((by_logit, negative, logits, logits * logits)):
            totals[k].index_add_(0, ids_q[rows], part @ columns)
    gradient, number, total, squares = totals.cpu().numpy().reshape(4, -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = (squares - total**2 / number) / (number - 1)
    spread = np.where(number > 1, np.sqrt(np.maximum(variance, 0)), np.nan)
    return gradient, spread, ranks.cpu().numpy()


def _moments(x: Tensor, ids: Tensor, m: int) -> tuple[Tensor, list[Tensor | None]]:
    """Mean (m, D), and covariance of each modality, None with fewer than two rows."""
    means, covariances = x.new_zeros(m, x.shape[1]), []
    for k in range(m):
        rows = x[ids == k]
        if len(rows):
            means[k] = rows.mean(dim=0)
        covariances.append(torch.cov(rows.T).reshape(x.shape[1], x.shape[1]) if len(rows) > 1 else None)
    return means, covariances


def _gaps(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> Array:
    found = np.full((len(first), len(second)), np.nan)
    for a, one in enumerate(first):
        for b, other in enumerate(second):
            if one is not None and other is not None:
                size = float(one.norm() + other.norm())
                found[a, b] = float((one - other).norm()) / size if size else 0.0
    return found


def _embeddings(argument: str, values: Any) -> Tensor:
    """Unit rows in double precision, without gradient, on their device."""
    try:
        x = values.detach() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    except TypeError:  # text, objects
        bad_input(argument, f"an array of {np.asarray(values).dtype}", "numbers")
    if x.ndim != 2:
        bad_input(argument, f"shape {tuple(x.shape)}", "embeddings (n, D)")
    wrong = ~torch.isfinite(x.double()).all(dim=1)
    if bool(wrong.any()):
        bad_input(argument, f"nan or inf in row {listing(torch.nonzero(wrong)[:, 0].tolist())}", "finite embeddings")
    return unit_rows(x.double())


def _groups(labels: Any, n: int) -> Groups:
    groups = labels if isinstance(labels, Groups) else Groups.from_labels(labels, kind="modality")
    if len(groups.ids) != n:
        bad_input("modalities", f"{len(groups.ids)} items for {n} embeddings", "the modality of each")
    if (groups.ids < 0).any():
        bad_input("modalities", f"none in row {int(np.flatnonzero(groups.ids < 0)[0])}", "a modality of every item")
    return groups
