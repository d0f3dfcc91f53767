"""What an aggregator may know about the gradients of m groups without holding them: losses, inner products, sizes of entries."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from counterpoise._errors import bad_input
from counterpoise._precision import single

__all__ = ["NEEDS", "GradientStatistics"]

NEEDS = frozenset({"losses", "gramian", "rowstats", "rows", "previous"})
SKIP = "Skip the step: optimizer.zero_grad(), and go on with the next batch."
AT_ONCE = 2**18  # entries looked at at once
BLOCK = 1024  # products summed in single precision
LONG = 2**14  # columns from which that is worth while
SMALLEST = 1e-15  # entries of this size on average have squares far from the end of the range of single precision


@dataclass(frozen=True, eq=False)
class GradientStatistics:
    r"""Statistics of the gradients :math:`g_1, \dots, g_m` (rows) of m losses with respect to P parameter tensors.

    Numbers that were not asked for are NaN, so that what is computed from them by mistake shows.

    Parameters
    ----------
    losses : Tensor, shape (m,)
        Losses of the groups; all 1 where only gradients are known.
    gramian : Tensor, shape (m, m), float64
        :math:`\langle g_i, g_j \rangle`, unscaled.
    abs_max, abs_mean, l1 : Tensor, shape (m, P), float64
        Largest, mean and summed absolute entry of each row in each parameter tensor.
    shapes : tuple of torch.Size, length P
        Shapes of the parameter tensors.
    n_micro, world_size : int, default 1
        Micro-batches and processes that the rows are means over.
    cross : Tensor, shape (m, m), optional
        Inner products of the rows of this step with those of the step before.
    gramian_unbiased : Tensor, shape (m, m), optional
        The Gramian without the part that sampling noise adds to its diagonal.
    names : tuple of str, length m
        Names of the groups.

    Examples
    --------
    >>> s = GradientStatistics.from_rows([torch.tensor([[3.0, 4.0], [0.0, -2.0]])])
    >>> s.gramian.tolist(), s.abs_max.tolist(), s.names
    ([[25.0, -8.0], [-8.0, 4.0]], [[4.0], [2.0]], ('0', '1'))
    """

    losses: Tensor
    gramian: Tensor
    abs_max: Tensor
    abs_mean: Tensor
    l1: Tensor
    shapes: tuple[torch.Size, ...]
    n_micro: int = 1
    world_size: int = 1
    cross: Tensor | None = None
    gramian_unbiased: Tensor | None = None
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of groups m."""
        return len(self.losses)

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[Tensor],
        *,
        needs: Collection[str] = ("gramian", "rowstats"),
        losses: Tensor | None = None,
        shapes: Sequence[torch.Size] | None = None,
        names: Sequence[str] | None = None,
    ) -> GradientStatistics:
        """From the gradients themselves, in double precision, a few columns at a time.

        Parameters
        ----------
        rows : sequence of Tensor, each (m, n_p)
            The gradients of the m losses, one tensor for each of the P parameters.
        needs : collection of str, default ("gramian", "rowstats")
            What to compute; the rest is NaN.
        losses : Tensor, shape (m,), optional
            Default: all 1.
        shapes : sequence of torch.Size, optional
            Of the parameters. Default: ``(n_p,)`` each.
        names : sequence of str, optional
            Of the groups. Default: their numbers.

        Raises
        ------
        InputError
            If a row has a value that is not finite; the message names the group.
        """
        m, device = len(rows[0]), rows[0].device
        known = tuple(names) if names is not None else tuple(str(i) for i in range(m))
        nan = torch.full((), torch.nan, dtype=torch.float64, device=device)
        gramian = nan.expand(m, m)
        sizes = [nan.expand(m, len(rows))] * 3
        if "gramian" in needs:
            gramian = gramian_of(rows)
        # A row of finite values has a finite square: only where that is not so, a second look at the rows is needed.
        if "gramian" not in needs or not bool(torch.isfinite(gramian.diagonal()).all()):
            check_finite(rows, known)
        if "rowstats" in needs:
            sizes = [torch.zeros(m, len(rows), dtype=torch.float64, device=device) for _ in range(3)]
            largest, mean, total = sizes
            for slot, part in enumerate(rows):
                for columns in _double(part):
                    size = columns.abs()
                    largest[:, slot] = torch.maximum(largest[:, slot], size.amax(dim=1))
                    total[:, slot] += size.sum(dim=1)
                mean[:, slot] = total[:, slot] / max(part.shape[1], 1)
        return cls(
            losses=torch.ones(m, dtype=torch.float64, device=device) if losses is None else losses.detach(),
            gramian=gramian,
            abs_max=sizes[0],
            abs_mean=sizes[1],
            l1=sizes[2],
            shapes=tuple(shapes) if shapes is not None else tuple(part.shape[1:] for part in rows),
            names=known,
        )


def gramian_of(rows: Sequence[Tensor]) -> Tensor:
    """Inner products (m, m) of rows (m, n_p) of all parameters, in double precision, a few columns at a time."""
    gramian = torch.zeros(len(rows[0]), len(rows[0]), dtype=torch.float64, device=rows[0].device)
    for part in rows:
        part = part.detach()
        done = _by_blocks(part)
        if done is not None:
            gramian += done
            continue
        for columns in _double(part):
            gramian += columns @ columns.T
    return gramian


def _by_blocks(part: Tensor) -> Tensor | None:
    """Inner products of long rows of single or half precision: a thousand are summed in single, the sums in double precision.

    That is as exact as the entries are, and twice as fast as to convert them all. None where it is not: other types and devices, where
    matrix products are set to be coarser, and rows whose squares may leave the range of single precision.
    """
    m, n = part.shape
    if n < LONG or part.dtype == torch.float64 or part.device.type != "cpu" or torch.get_float32_matmul_precision() != "highest":
        return None
    whole = n // BLOCK * BLOCK
    tail = part[:, whole:].double()
    gramian = tail @ tail.T
    for columns in torch.split(part[:, :whole], max(AT_ONCE // (m * BLOCK), 1) * BLOCK, dim=1):
        blocks = single(columns).reshape(m, -1, BLOCK).transpose(0, 1)
        gramian += torch.bmm(blocks, blocks.mT).sum(dim=0, dtype=torch.float64)
    squares = gramian.diagonal()
    return gramian if bool(torch.isfinite(squares).all() and (squares > n * SMALLEST**2).all()) else None


def nothing_known(losses: Tensor, shapes: Sequence[torch.Size], names: Sequence[str]) -> GradientStatistics:
    """Losses alone; all that belongs to gradients is NaN."""
    m, device = len(losses), losses.device
    nan = torch.full((), torch.nan, dtype=torch.float64, device=device)
    size = nan.expand(m, len(shapes))
    return GradientStatistics(losses, nan.expand(m, m), size, size, size, shapes=tuple(shapes), names=tuple(names))


def unbiased_gramian(gramian: Tensor, parts: Tensor, counts: Tensor | float, both: Tensor | float | None = None) -> Tensor | None:
    r"""Unbiased for the Gramian of the *expected* gradients, where each gradient is the mean of independent parts.

    :math:`\langle \bar g_i, \bar g_j \rangle` holds, besides products of different parts, those of a part with itself, which noise makes
    too long. With :math:`K_i` parts of gradient i, of which :math:`K_{ij}` are parts (of the same data) of both i and j,

    .. math:: U_{ij} = \frac{K_i K_j \langle \bar g_i, \bar g_j \rangle - \sum_k \langle g_i^k, g_j^k \rangle}{K_i K_j - K_{ij}} .

    Parameters
    ----------
    gramian : Tensor, shape (m, m)
        Of the means.
    parts : Tensor, shape (m, m)
        Gramians of the parts, summed; a part that belongs to one gradient alone adds to the diagonal.
    counts : Tensor, shape (m,), or number
        :math:`K_i`.
    both : Tensor, shape (m, m), or number, optional
        :math:`K_{ij}`. Default: K, all parts belong to all gradients.

    Returns
    -------
    Tensor, shape (m, m), or None where a gradient has no more than one part. It may have negative eigenvalues.

    Examples
    --------
    >>> rows = torch.tensor([[[1.0, 0.0]], [[1.0, 2.0]]], dtype=torch.float64)  # K = 2 parts, m = 1
    >>> mean = rows.mean(dim=0)
    >>> unbiased_gramian(mean @ mean.T, (rows @ rows.mT).sum(dim=0), 2)
    tensor([[1.]], dtype=torch.float64)
    """
    counts = torch.as_tensor(counts, dtype=torch.float64, device=gramian.device).expand(len(gramian))
    both = counts[:, None].expand_as(gramian) if both is None else torch.as_tensor(both, dtype=torch.float64, device=gramian.device)
    pairs = counts[:, None] * counts
    if bool((pairs - both <= 0).any()):
        return None
    return (pairs * gramian - parts) / (pairs - both)


def check_finite(rows: Sequence[Tensor], names: Sequence[str]) -> None:
    """Raise if a value is not finite, and say in which row."""
    for part in rows:
        if not part.numel():
            continue
        # The smallest and the largest are NaN if any value is.
        low, high = part.detach().aminmax(dim=1)
        wrong = ~(torch.isfinite(low) & torch.isfinite(high))
        if bool(wrong.any()):
            refuse_row(wrong, names)


def refuse_row(wrong: Tensor, names: Sequence[str], argument: str = "gradients") -> NoReturn:
    """Raise for the rows that are marked in ``wrong`` (m,)."""
    i = int(wrong.nonzero()[0])
    more = f" and {int(wrong.sum()) - 1} more" if int(wrong.sum()) > 1 else ""
    named = "" if names[i] == str(i) else f" ({names[i]})"
    bad_input(
        argument, f"nan or inf in row {i}{named}{more}", "finite values", f"Leave the row out, or {SKIP[0].lower()}{SKIP[1:]}",
    )  # fmt: skip


def _double(part: Tensor) -> Iterator[Tensor]:
    """The columns of ``part``, some after the other, in double precision."""
    if part.numel():
        for columns in torch.split(part.detach(), max(AT_ONCE // len(part), 1), dim=1):
            yield columns.double()
