r"""Coherence of per-example gradients (Chatterjee and Zielinski 2020, arXiv:2008.01217): does a step serve a pattern, or single examples?

With the gradients :math:`g_i` of m examples,

.. math::
    \alpha = \frac{\frac{1}{m^2} \sum_{i,j} \langle g_i, g_j \rangle}{\frac{1}{m} \sum_i \|g_i\|^2}
           = \frac{\|\sum_i g_i\|^2}{m \sum_i \|g_i\|^2}, \qquad \text{m-coherence} = m \alpha:

how many examples a small step along the gradient of one of them helps, on average. Two running sums give it, so m examples cost O(m). It is
m if all gradients are equal, 1 if they are orthogonal, 0 if they cancel. The pairs of an example with itself are what makes it 1; without
them, :math:`\alpha_U = (\|\sum_i g_i\|^2 - \sum_i \|g_i\|^2) / ((m - 1) \sum_i \|g_i\|^2)`, which is 0 then, is the same at any m, and

.. math:: m \alpha = 1 + (m - 1)\, \alpha_U, \qquad \text{noise scale } \operatorname{tr} \Sigma / \|\mu\|^2 = 1 / \alpha_U - 1 .
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from counterpoise._errors import bad_input, check_choice, check_range, listing
from counterpoise._pergrad import GradientSketch
from counterpoise._seeding import generator
from counterpoise.groups import Groups

from ._shares import NONE, signed

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

__all__ = ["CoherenceReport", "coherence"]

Array = npt.NDArray[np.float64]

LEVEL = 0.95
DRAWS = 500  # of the bootstrap
FOLDED = 2048  # longer gradients are folded to this length, for the intervals only
AT_ONCE = 2**22  # numbers at once
FEWEST = 5  # examples from which an interval is given


@dataclass(frozen=True, eq=False)
class CoherenceReport:
    """Result of :func:`coherence`.

    ``m`` examples; ``alpha`` in [0, 1] and ``m_coherence`` = m alpha; ``alpha_unbiased``, to be compared between sets of any size (0 if the
    examples have nothing in common, below if they oppose each other), ``ci`` its 95 % bootstrap interval; ``noise_scale`` (the gradient
    noise scale B_simple, in examples): in batches smaller than this, noise outweighs the common direction; infinite if there is none.

    ``per_group``, a frame with one row per group: ``group, count, m_coherence, alpha, alpha_unbiased, low, high, noise_scale``; ``names``
    of the groups. ``cross`` (G, G): :math:`\\langle \\mu_k, \\mu_l \\rangle / \\sqrt{\\bar q_k \\bar q_l}` between groups k and l, with
    ``alpha_unbiased`` on the diagonal. ``blocks``, a frame with one row per parameter (None unless asked for): ``block, weight, alpha,
    alpha_unbiased``; the weights sum to 1, and the weighted mean of ``alpha`` is that of the whole.

    ``converged``: all gradients are zero, and everything is nan. ``skipped``: examples left out because they were not finite.
    """

    m: int
    alpha: float
    ci: tuple[float, float]
    per_group: pl.DataFrame
    cross: Array
    names: tuple[str, ...]
    blocks: pl.DataFrame | None = None
    converged: bool = False
    skipped: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def m_coherence(self) -> float:
        """m alpha, in [0, m]."""
        return self.m * self.alpha

    @property
    def alpha_unbiased(self) -> float:
        """Without the pairs of an example with itself. Raises if there is one example only, which has no other pairs."""
        if self.m < 2:
            bad_input("alpha_unbiased", "one example", "at least two", "alpha is 1 for any single example.")
        return (self.m * self.alpha - 1) / (self.m - 1)

    @property
    def noise_scale(self) -> float:
        """tr Cov / ||mean||^2, in examples."""
        return _noise_scale(self.alpha_unbiased)

    @property
    def hints(self) -> tuple[str, ...]:
        """What the numbers suggest, with the numbers."""
        found = []
        table = self.per_group.drop_nans("alpha_unbiased").sort("alpha_unbiased")
        if self.ci[0] <= 0:
            if table.height > 1 and any(low > 0 for low in table["low"]):
                what = "all together have nothing in common, though examples of one group do: the groups ask for different things."
            else:
                what = "the examples have nothing in common. Before training and once the data are fitted that is usual; "
                what += "in between it means that steps serve single examples."
            found.append(f"The unbiased coherence ({_interval(self.ci)}) is not above 0: {what}")
        if table.height > 1:
            least, most = table.row(0, named=True), table.row(-1, named=True)
            if least["high"] < most["low"]:
                found.append(
                    f"{least['group']!r} is less of one mind ({signed(least['alpha_unbiased'])}) than {most['group']!r} "
                    f"({signed(most['alpha_unbiased'])}): look at its labels and outliers. Clipping coordinates (WinsorizedMean, "
                    "MicroBatchMedian) holds single examples back, right or wrong: where a group is rare, it takes that group away too, "
                    "unless values are clipped within groups."
                )
        return tuple(found)

    def to_frame(self) -> pl.DataFrame:
        """One row for all examples, then one per group and per block: ``what, name, count, weight, alpha, alpha_unbiased, low, high``."""
        import polars as pl

        unbiased = self.alpha_unbiased if self.m > 1 else float("nan")
        rows: list[dict[str, Any]] = [
            {"what": "all", "name": "", "count": self.m, "weight": 1.0, "alpha": self.alpha, "alpha_unbiased": unbiased}
            | {"low": self.ci[0], "high": self.ci[1]}
        ]
        for row in self.per_group.iter_rows(named=True):
            kept = {name: row[name] for name in ("count", "alpha", "alpha_unbiased", "low", "high")}
            rows.append({"what": "group", "name": row["group"]} | kept)
        if self.blocks is not None:
            rows += [{"what": "block", "name": row.pop("block")} | row for row in self.blocks.iter_rows(named=True)]
        schema: dict[str, Any] = {"what": pl.String, "name": pl.String, "count": pl.Int64}
        return pl.DataFrame(rows, schema=schema | dict.fromkeys(("weight", "alpha", "alpha_unbiased", "low", "high"), pl.Float64))

    def summary(self) -> str:
        """A few sentences."""
        if self.converged:
            return f"All {self.m:,} gradients are zero: there is no coherence to speak of."
        if self.m < 2:
            return "One example: alpha is 1 whatever it is."
        low, high = (max(1 + (self.m - 1) * bound, 0.0) for bound in self.ci)
        interval = f" (95 % interval {low:.3g} to {high:.3g})" if np.isfinite(low) else ""
        scale = self.noise_scale
        lines = [
            f"{self.m:,} examples, m-coherence {self.m_coherence:.3g}{interval}: a small step along the gradient of one helps that many; "
            f"1 if they have nothing in common, {self.m:,} if all agree.",
            f"Unbiased coherence {_plain(self.alpha_unbiased)}, noise scale "
            + (f"{scale:.3g} examples." if np.isfinite(scale) else "infinite: no common direction is clear of the noise."),
        ]
        known = self.per_group.drop_nans("alpha_unbiased").sort("alpha_unbiased", descending=True)
        if known.height > 1:
            lines.append(
                "By group: " + listing(f"{row['group']} {_plain(row['alpha_unbiased'])}" for row in known.iter_rows(named=True)) + "."
            )
        if self.skipped:
            lines.append(f"Left out, not finite: {listing(self.skipped)}.")
        return "\n".join([*lines, *self.notes, *self.hints])

    def plot(self) -> Figure:
        """Unbiased coherence of all examples and of each group, with intervals; and of each block, if asked for."""
        return _figure(self)


def coherence(
    x: GradientSketch | Tensor | Mapping[str, Tensor],
    *,
    groups: Groups | Sequence[Any] | Tensor | None = None,
    per_block: bool = False,
    batch_size: int = 1,
    on_nonfinite: Literal["raise", "skip"] = "raise",
) -> CoherenceReport:
    r"""How much per-example gradients have in common: m-coherence, its unbiased form, and the gradient noise scale.

    Parameters
    ----------
    x : GradientSketch, Tensor (m, P), or dict of (m, \*shape) tensors
        Gradients of each example's *own* loss (not divided by m), as a sketch, as rows, or as ``torch.func.vmap(torch.func.grad(...))``
        makes them. A sketch needs ``norms_sq``, and for the sums ``group_sums``, ``gramian`` or ``S``; intervals need one of the last two.
    groups : Groups, or labels (m,), optional
        Default: the groups of the sketch; for rows, none. Examples without a group make one of their own, "(none)".
    per_block : bool, default False
        Also parameter by parameter. For a sketch this takes ``blocks`` and ``group_sums``.
    batch_size : int >= 1, default 1
        Rows are the *mean* gradients over so many examples each, drawn independently: K micro-batches, or the gradients of K processes.
        The report is about the K times ``batch_size`` examples behind them: with the mean over micro-batches
        :math:`\bar Q = \frac1K \sum_j \|G_j\|^2` and the squared mean gradient without noise, :math:`U`, that of one example is
        :math:`\alpha_U = U / (U + b\,(\bar Q - U))`.
    on_nonfinite : {"raise", "skip"}, default "raise"
        What to do about a gradient with nan or inf.

    Returns
    -------
    CoherenceReport
        Sums are taken in double precision: at :math:`\alpha \approx 1/m` two large numbers nearly cancel.

    Raises
    ------
    InputError
        If there is no example, or one micro-batch; if gradients are not finite (the message names the example); if the sketch lacks what is
        asked for; if ``groups`` has another length.

    Notes
    -----
    Compare ``alpha`` and ``m_coherence`` at equal m only, and groups by ``alpha_unbiased`` only: the plain alpha of a group of n is 1/n by
    itself. The mean over mini-batches of their alphas is not the alpha of the data. Once the data are fitted, coherence falls to 1 or
    below: few examples are left, and they hold each other. Gradients must exist per example: with batch normalization, in ``eval()`` mode
    only.

    Intervals: a weighted (Dirichlet) bootstrap over examples within each group; where examples have nothing in common it is wider than it
    need be. Long rows are folded with random signs for it, never for the estimates. Below 5 examples there is none.

    Examples
    --------
    >>> coherence(torch.eye(4)).m_coherence, coherence(torch.ones(4, 3)).m_coherence
    (1.0, 4.0)
    >>> coherence(torch.tensor([[1.0, 2.0], [-1.0, -2.0]])).alpha_unbiased
    -1.0
    >>> report = coherence(torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 3.0]]), groups=["a", "a", "b", "b"])
    >>> report.per_group.select("group", "count", "alpha_unbiased").rows()
    [('a', 2, 0.6666666666666666), ('b', 2, 0.6)]
    """
    check_range("batch_size", batch_size, low=1, integer=True)
    check_choice("on_nonfinite", on_nonfinite, ("raise", "skip"))
    given = _of_sketch(x, groups, per_block, on_nonfinite) if isinstance(x, GradientSketch) else _of_rows(x, groups, on_nonfinite)
    if per_block and isinstance(x, Tensor):
        bad_input("per_block", True, "gradients parameter by parameter", "Give a dict {name: (m, *shape)}, or a sketch with blocks.")
    return _report(given, int(batch_size), per_block)


# ---- sums, from whatever is given -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Sums:
    """All that the numbers are made of.

    ``count`` (G,), ``q`` (G,) sums of squared norms, ``inner`` (G, G) inner products of the groups' sums, ``total`` the squared norm of the
    sum of all; ``q`` and ``total`` (n_blocks,) of the blocks; for the bootstrap ``ids`` and squared ``norms`` (m,) of the examples, with
    ``rows`` (m, r) or their ``gramian``.
    """

    names: tuple[str, ...]
    count: npt.NDArray[np.int64]
    q: Array
    inner: Array
    total: float
    blocks: tuple[tuple[str, ...], Array, Array] | None
    ids: Tensor
    norms: Tensor
    rows: Tensor | None
    gramian: Tensor | None
    skipped: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def _of_rows(x: Tensor | Mapping[str, Tensor], groups: Any, on_nonfinite: str) -> _Sums:
    parts = _parts(x)
    m = len(next(iter(parts.values())))
    names, ids = _ids(groups, m)
    norms = {name: _norms(part) for name, part in parts.items()}
    norm = torch.stack([*norms.values()]).sum(dim=0)
    kept = _finite(norm, torch.arange(m), on_nonfinite)
    if kept is not None:
        parts = {name: part[kept] for name, part in parts.items()}
        norms = {name: value[kept] for name, value in norms.items()}
    left = slice(None) if kept is None else kept
    norm, ids = norm[left], ids.to(norm.device)[left]
    inner = torch.zeros(len(names), len(names), dtype=torch.float64, device=norm.device)
    totals = []
    for part in parts.values():
        own = sum((_inner(_sums_by(columns, ids, len(names))) for columns in _double(part)), torch.zeros_like(inner))
        inner += own
        totals.append(float(own.sum()))
    blocks = tuple(parts), np.array([float(value.sum()) for value in norms.values()]), np.array(totals)
    return _Sums(
        names=names,
        count=_numpy(torch.bincount(ids, minlength=len(names))),
        q=_numpy(_sums_by(norm, ids, len(names))),
        inner=_numpy(inner),
        total=float(inner.sum()),
        blocks=blocks,
        ids=ids,
        norms=norm,
        rows=_folded(list(parts.values())),
        gramian=None,
        skipped=_missing(kept, m),
    )


def _of_sketch(x: GradientSketch, groups: Any, per_block: bool, on_nonfinite: str) -> _Sums:
    m = len(x)
    if not m:
        bad_input("x", "a sketch of no examples", "at least one")
    if x.norms_sq is None:
        bad_input("x", f"a sketch without norms_sq (engine {x.engine!r})", "norms of single examples", 'engine="ghost" has them.')
    if per_block and (x.blocks is None or x.group_sums is None):
        bad_input("per_block", True, "a sketch with blocks and group_sums", "They were not recorded in this one.")
    names, ids = (x.names, x.ids) if groups is None else _ids(groups, m)
    norm = x.norms_sq.double()
    ids = ids.to(norm.device)
    kept = _finite(norm, x.index, on_nonfinite)
    left = torch.arange(m, device=norm.device) if kept is None else kept
    if kept is not None and per_block:
        bad_input("per_block", True, "finite gradients", "The sums of a sketch cannot leave an example out; measure the others again.")
    rows = None if x.S is None else x.S[left].double()
    gramian = None if x.gramian is None else x.gramian[left][:, left].double()
    norm, ids = norm[left], ids[left]
    sums = x.group_sums if kept is None else None
    notes: tuple[str, ...] = ()
    if sums is not None and groups is None:
        inner = _inner(sums)
    elif gramian is not None:
        inner = _sums_by(_sums_by(gramian, ids, len(names)).T.contiguous(), ids, len(names))
    elif rows is not None:
        # The pairs of an example with itself are known exactly.
        inner = _inner(_sums_by(rows, ids, len(names))) + torch.diag(_sums_by(norm - _norms(rows), ids, len(names)))
        notes = (f"Inner products come from random projections of length {rows.shape[1]}.",)
    elif x.along is not None and len(names) == 1 and kept is None:
        inner = (m * x.along.double().sum()).reshape(1, 1)
    else:
        bad_input("x", f"a sketch without what the sums need (engine {x.engine!r})", "one with S or a gramian")
    total = float(inner.sum())
    if kept is None and notes and (sums is not None or x.along is not None):
        total = float(_inner(sums).sum()) if sums is not None else float(m * x.along.double().sum())  # type: ignore[union-attr]
    blocks = None
    if per_block and x.blocks is not None and sums is not None:
        totals = [float(_inner(sums[:, columns]).sum()) for columns in x.blocks.slices]
        blocks = x.blocks.names, _numpy(x.blocks.norms_sq.double().sum(dim=0)), np.array(totals)
    return _Sums(
        names=names,
        count=_numpy(torch.bincount(ids, minlength=len(names))),
        q=_numpy(_sums_by(norm, ids, len(names))),
        inner=_numpy(inner),
        total=total,
        blocks=blocks,
        ids=ids,
        norms=norm,
        rows=rows if gramian is None else None,
        gramian=gramian,
        skipped=_missing(kept, m, x.index),
        notes=notes,
    )


def _parts(x: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rows (m, n_p) of each parameter."""
    if not isinstance(x, (Tensor, Mapping)):
        bad_input("x", type(x).__name__, "a GradientSketch, a tensor (m, P), or a dict of tensors (m, *shape)")
    if isinstance(x, Tensor) and x.ndim != 2:
        bad_input(
            "x", f"shape {tuple(x.shape)}", "one row per example, shape (m, P)",
            "The gradient of a mean loss has lost its examples; torch.func.vmap(torch.func.grad(...)) keeps them.",
        )  # fmt: skip
    parts = {"all": x} if isinstance(x, Tensor) else dict(x)
    if not parts or any(part.ndim == 0 or not len(part) or len(part) != len(next(iter(parts.values()))) for part in parts.values()):
        bad_input(
            "x", {name: tuple(part.shape) for name, part in parts.items()}, "the same number of examples, at least one, in every tensor"
        )
    for name, part in parts.items():
        if not part.is_floating_point():
            bad_input(name, f"a tensor of {part.dtype}", "floating-point gradients")
    return {name: part.detach().reshape(len(part), -1) for name, part in parts.items()}


def _ids(groups: Any, m: int) -> tuple[tuple[str, ...], Tensor]:
    """Names and ids 0..G-1 of the groups, -1 having become the last."""
    if groups is None:
        return ("all",), torch.zeros(m, dtype=torch.int64)
    own = groups if isinstance(groups, Groups) else Groups.from_labels(groups)
    if len(own.ids) != m:
        bad_input("groups", f"{len(own.ids)} labels", f"one for each of the {m} rows")
    ids = own.to_torch()
    names = (*own.names, NONE) if bool((ids < 0).any()) else tuple(own.names)
    return names, torch.where(ids < 0, len(own.names), ids)


def _finite(norms: Tensor, index: Tensor, on_nonfinite: str) -> Tensor | None:
    """None if all are finite; else, if that is what to do, the positions of those that are."""
    wrong = ~torch.isfinite(norms)
    if not bool(wrong.any()):
        return None
    listed = listing(index[wrong.cpu()].tolist())
    if on_nonfinite == "raise":
        bad_input("x", f"nan or inf in the gradient of example {listed}", "finite gradients", 'on_nonfinite="skip" leaves them out.')
    kept = (~wrong).nonzero()[:, 0]
    if not len(kept):
        bad_input("x", "no gradient that is finite", "at least one")
    return kept


def _missing(kept: Tensor | None, m: int, index: Tensor | None = None) -> tuple[int, ...]:
    if kept is None:
        return ()
    left = torch.ones(m, dtype=torch.bool)
    left[kept.cpu()] = False
    return tuple((torch.arange(m) if index is None else index.cpu())[left].tolist())


def _double(part: Tensor) -> Iterator[Tensor]:
    """Some columns after the other, in double precision."""
    if part.numel():
        for columns in torch.split(part, max(AT_ONCE // len(part), 1), dim=1):
            yield columns.double()


def _sums_by(values: Tensor, ids: Tensor, groups: int) -> Tensor:
    """Sums of the rows of each group, (groups, ...)."""
    return values.new_zeros(groups, *values.shape[1:]).index_add_(0, ids, values)


def _norms(part: Tensor) -> Tensor:
    """Squared norms of the rows, in double precision, (m,)."""
    total = torch.zeros(len(part), dtype=torch.float64, device=part.device)
    for columns in _double(part):
        total += (columns**2).sum(dim=1)
    return total


def _inner(sums: Tensor) -> Tensor:
    """Inner products of rows, in double precision."""
    total = torch.zeros(len(sums), len(sums), dtype=torch.float64, device=sums.device)
    for columns in _double(sums):
        total += columns @ columns.T
    return total


def _folded(parts: list[Tensor]) -> Tensor:
    """The rows, or if they are long, columns with random signs added up to ``FOLDED`` ones, which keeps inner products on average."""
    m, width = len(parts[0]), sum(part.shape[1] for part in parts)
    if width <= FOLDED:
        return torch.cat([part.double() for part in parts], dim=1)
    rng = generator(0, "coherence", "signs")
    folded = torch.zeros(m, FOLDED, dtype=torch.float64, device=parts[0].device)
    for part in parts:
        for columns in _double(part):
            sign = torch.from_numpy(rng.choice([-1.0, 1.0], columns.shape[1])).to(columns.device)
            place = torch.from_numpy(rng.integers(FOLDED, size=columns.shape[1])).to(columns.device)
            folded.index_add_(1, place, columns * sign)
    return folded


def _numpy(values: Tensor) -> Any:
    return values.detach().cpu().numpy()


# ---- numbers from sums ------------------------------------------------------------------------------------------------------------------


def _unbiased(total: Any, q: Any, n: Any, batch_size: int) -> tuple[Any, Any]:
    """(alpha_U, mean squared norm) of single examples, from n rows that are means over ``batch_size``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        n = np.asarray(n, dtype=np.float64)
        squared_mean = np.where(n > 1, total - q, np.nan) / (n * (n - 1))
        mean_q = q / n
        if batch_size > 1:
            mean_q = squared_mean + batch_size * (mean_q - squared_mean)
        return np.where(mean_q > 0, squared_mean / mean_q, np.nan), mean_q


def _plug_in(unbiased: Any, m: Any) -> Any:
    """alpha of m examples, from 1 + (m - 1) alpha_U."""
    return (1 + (np.asarray(m) - 1) * unbiased) / np.asarray(m)


def _noise_scale(unbiased: float) -> float:
    return float("nan") if np.isnan(unbiased) else 1 / unbiased - 1 if unbiased > 0 else float("inf")


def _report(given: _Sums, b: int, per_block: bool) -> CoherenceReport:
    import polars as pl

    rows = int(given.count.sum())
    if rows < 2 and b > 1:
        bad_input("x", "one micro-batch", "at least two", "Nothing can be said about examples within one mean.")
    q = float(given.q.sum())
    converged = q == 0
    whole, _ = _unbiased(given.total, q, rows, b)
    alpha = float("nan") if converged else 1.0 if rows == 1 else float(_plug_in(whole, rows * b))
    # At batch_size 1 without the detour over the unbiased form, so that the two bounds 0 and 1 are met exactly.
    if b == 1 and not converged:
        alpha = given.total / (rows * q)
    unbiased, mean_q = _unbiased(np.diag(given.inner), given.q, given.count, b)
    low, high = _intervals(given, b)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = given.inner / np.outer(given.count, given.count)
        cross = means / np.sqrt(np.outer(mean_q, mean_q))
        single = np.where((given.count == 1) & (given.q > 0) & (b == 1), 1.0, _plug_in(unbiased, np.maximum(given.count * b, 1)))
    np.fill_diagonal(cross, unbiased)
    per_group = pl.DataFrame(
        {
            "group": list(given.names),
            "count": given.count * b,
            "m_coherence": single * given.count * b,
            "alpha": single,
            "alpha_unbiased": unbiased,
            "low": low[:-1],
            "high": high[:-1],
            "noise_scale": np.array([_noise_scale(float(value)) for value in unbiased]),
        }
    )
    notes = list(given.notes)
    if rows * b > 1 and b > 1:
        notes.append(f"From {rows} micro-batches of {b}, taken to be independent.")
    lone = [name for name, count in zip(given.names, given.count, strict=True) if count == 1]
    if lone and rows > 1:
        notes.append(f"One row only, so that nothing can be said about it alone: {listing(lone)}.")
    return CoherenceReport(
        m=rows * b,
        alpha=alpha,
        ci=(float(low[-1]), float(high[-1])),
        per_group=per_group,
        cross=cross,
        names=given.names,
        blocks=_blocks(given, b) if per_block else None,
        converged=converged,
        skipped=given.skipped,
        notes=tuple(notes),
    )


def _blocks(given: _Sums, b: int) -> pl.DataFrame:
    import polars as pl

    assert given.blocks is not None
    names, q, totals = given.blocks
    rows = int(given.count.sum())
    unbiased, mean_q = _unbiased(totals, q, rows, b)
    with np.errstate(divide="ignore", invalid="ignore"):
        alpha = totals / (rows * q) if b == 1 else _plug_in(unbiased, rows * b)
        weight = mean_q / mean_q.sum()
    return pl.DataFrame({"block": list(names), "weight": weight, "alpha": alpha, "alpha_unbiased": unbiased})


def _intervals(given: _Sums, b: int) -> tuple[Array, Array]:
    """Limits of alpha_U for every group, and at the end for all, (G + 1,); nan where there are too few rows or nothing to draw from."""
    G, n = len(given.names), int(given.count.sum())
    low, high = np.full(G + 1, np.nan), np.full(G + 1, np.nan)
    if (given.rows is None and given.gramian is None) or n < FEWEST or not given.q.sum() > 0:
        return low, high
    ids = given.ids.cpu()
    members = [(ids == k).nonzero()[:, 0].to(given.norms.device) for k in range(G)]
    counts = np.append(given.count, n)
    draws = _draws(given, members, b)
    estimate = np.append(_unbiased(np.diag(given.inner), given.q, given.count, b)[0], _unbiased(given.total, given.q.sum(), n, b)[0])
    # The draws are laid around the estimate, from which projections may differ a little.
    known = counts >= FEWEST
    if known.any():
        spread = draws[1:, known] - draws[0, known]
        low[known], high[known] = estimate[known] + np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def _draws(given: _Sums, members: list[Tensor], b: int) -> Array:
    """alpha_U of every group and of all, for equal weights (first) and for ``DRAWS`` random ones: (DRAWS + 1, G + 1)."""
    rng = generator(0, "coherence", "bootstrap")
    n, device = len(given.norms), given.norms.device
    at_once = max(AT_ONCE // n, 1)
    found = []
    for first in range(0, DRAWS + 1, at_once):
        weights = np.ones((min(at_once, DRAWS + 1 - first), n))
        start = int(first == 0)
        for index in members:
            if len(index):
                drawn = rng.standard_exponential((len(weights) - start, len(index)))
                weights[start:, index.cpu().numpy()] = drawn / drawn.mean(axis=1, keepdims=True)
        w = torch.from_numpy(weights).to(device)
        columns = [_weighted(given, w, index, b) for index in members]
        found.append(np.stack([*columns, _weighted(given, w, torch.arange(n, device=device), b)], axis=1))
    return np.concatenate(found)


def _weighted(given: _Sums, w: Tensor, index: Tensor, b: int) -> Array:
    """alpha_U of the rows ``index`` under weights (B, n): pairs of a row with itself are left out, however often it was drawn."""
    w = w[:, index]
    if given.gramian is not None:
        gram = given.gramian[index][:, index]
        pairs = ((w @ (gram - torch.diag(gram.diagonal()))) * w).sum(dim=1)
    else:
        assert given.rows is not None
        rows = given.rows[index]
        pairs = ((w @ rows) ** 2).sum(dim=1) - w**2 @ (rows**2).sum(dim=1)
    weight = w.sum(dim=1)
    squared_mean = _numpy(pairs / (weight**2 - (w**2).sum(dim=1)))
    mean_q = _numpy(w @ given.norms[index] / weight)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(squared_mean / (squared_mean + b * (mean_q - squared_mean)), dtype=np.float64)


# ---- words and pictures -----------------------------------------------------------------------------------------------------------------


def _plain(value: float) -> str:
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def _interval(bounds: tuple[float, float]) -> str:
    return f"{_plain(bounds[0])} to {_plain(bounds[1])}"


def _figure(report: CoherenceReport) -> Figure:
    from counterpoise.report import _plots

    table = report.to_frame().drop_nans("alpha_unbiased")
    rows = [row for row in table.iter_rows(named=True) if row["what"] != "group" or len(report.names) > 1][: _plots.MOST_GROUPS]
    with _plots.style():
        row_height, top, bottom, left, span = 28, 46, 46, 190, 360
        height = row_height * max(len(rows), 1) + top + bottom
        fig = _plots.figure(_plots.WIDTH, height)
        ax = _plots.axes(fig, left, bottom, span, row_height * max(len(rows), 1))
        _plots.plain_rows(ax, max(len(rows), 1))
        ax.axvline(0, color=_plots.RULE, lw=1, zorder=1)
        for place, row in enumerate(rows):
            color = _plots.INK if row["what"] == "all" else _plots.BLUE if row["what"] == "group" else _plots.GRAY
            if row["low"] is not None and np.isfinite(row["low"]):
                ax.plot([row["low"], row["high"]], [place, place], color=color, lw=2, zorder=2, solid_capstyle="butt")
            ax.plot(row["alpha_unbiased"], place, "s" if row["what"] == "block" else "o", ms=8.5, color=color, mec=_plots.PAPER, zorder=3)
            name = "all examples" if row["what"] == "all" else row["name"]
            _plots.row_text(fig, ax, place, 8, name[:24], weight="bold" if row["what"] == "all" else "normal")
            count = f"{row['count']:,}" if row["count"] is not None else f"{100 * row['weight']:.0f} % of |g|²"
            _plots.row_text(fig, ax, place, left + span + 16, f"{_plain(row['alpha_unbiased'])}   ({count})", color=_plots.MUTED)
        ax.set_xlabel("unbiased coherence: 0 nothing in common, 1 all the same")
        title = f"m-coherence {report.m_coherence:.3g} of {report.m:,} examples" if not report.converged else "All gradients are zero"
        fig.text(8 / _plots.WIDTH, 1 - 12 / height, title, va="top", weight="bold")
        return fig
