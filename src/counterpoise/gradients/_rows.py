"""Gradients of m losses on this process: kept whole, or seen once and sketched; and how processes put theirs together."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from counterpoise._dist import all_reduce_mean_, world_size
from counterpoise._errors import bad_input
from counterpoise._pergrad import with_lengths
from counterpoise._precision import single

from ._losses import Leaves
from ._statistics import GradientStatistics, gramian_of, nothing_known, unbiased_gramian
from ._tracer import Tracer

__all__ = ["REDUCE", "Parts", "Traces", "chosen_reduce", "empty_rows", "released", "statistics_of_rows", "statistics_of_traces"]

AT_ONCE = 1024  # squares summed in the precision of the entries
REDUCE = ("auto", "sketch", "rows", "gramian")


def empty_rows(leaves: Leaves, m: int, row_dtype: torch.dtype) -> list[Tensor]:
    """Room for the gradients of m losses, (m, n_p) for each shared parameter; double precision stays double."""
    return [
        torch.empty(m, p.numel(), dtype=torch.float64 if p.dtype == torch.float64 else row_dtype, device=p.device) for p in leaves.shared
    ]


def released(rows: list[Any]) -> Iterator[Tensor]:
    """The rows of one parameter after the other, each let go when the next is asked for."""
    for slot in range(len(rows)):
        part, rows[slot] = rows[slot], None
        yield part


@dataclass
class Traces:
    """What is left of rows that were seen once: sketches, exact lengths, sizes of entries, one row after the other."""

    leaves: Leaves
    tracer: Tracer
    rowstats: bool = False
    sketches: list[Tensor] = field(default_factory=list)
    norms_sq: list[Tensor] = field(default_factory=list)
    sizes: list[Tensor] = field(default_factory=list)

    def add(self, parts: Sequence[Tensor | None], factor: float = 1.0) -> None:
        """See one row, given as its parts, multiplied by ``factor``."""
        device = self.leaves.shared[0].device
        self.sketches.append(self.tracer.of_row(parts, self.leaves.sizes, device) * factor)
        norm = torch.zeros((), dtype=torch.float64, device=device)
        for part in parts:
            if part is not None and part.numel():
                norm += _length_squared(single(part).reshape(-1))
        self.norms_sq.append(norm * factor**2)
        if self.rowstats:
            zero = torch.zeros(3, dtype=torch.float64, device=device)
            self.sizes.append(torch.stack([zero if part is None or not part.numel() else _sizes(part) * factor for part in parts], dim=1))

    def stacked(self) -> Tensor:
        """Sketches (m, s) as they add up."""
        return torch.stack(self.sketches)

    def scaled(self) -> Tensor:
        """Sketches (m, s) of the exact lengths."""
        whole = sum(self.leaves.sizes) <= self.tracer.dim
        return self.stacked() if whole else with_lengths(self.stacked(), torch.stack(self.norms_sq))

    def gramian(self) -> Tensor:
        """Inner products (m, m); the diagonal is exact."""
        S = self.scaled().double()
        gramian = S @ S.T
        gramian.diagonal().copy_(torch.stack(self.norms_sq))
        return gramian


def _length_squared(part: Tensor) -> Tensor:
    """In double precision; entries are summed in their own by a thousand at a time, which is as exact and several times faster."""
    whole = len(part) // AT_ONCE * AT_ONCE
    lengths = [torch.linalg.vector_norm(part[:whole].view(-1, AT_ONCE), dim=1), torch.linalg.vector_norm(part[whole:])[None]]
    return torch.cat(lengths).double().square().sum()


def _sizes(part: Tensor) -> Tensor:
    """Largest, mean and summed absolute entry (3,)."""
    size = part.detach().abs()
    total = size.sum(dtype=torch.float64)
    return torch.stack([size.max().double(), total / size.numel(), total])


@dataclass
class Parts:
    """Independent parts that gradients are means over: micro-batches, processes. See :func:`unbiased_gramian`."""

    gramians: Tensor  # (m, m), of the parts, summed
    counts: Tensor  # (m,)
    both: Tensor  # (m, m)

    @classmethod
    def one(cls, gramian: Tensor) -> Parts:
        """A single part, to which all gradients belong."""
        return cls(gramian, torch.ones_like(gramian[0]), torch.ones_like(gramian))

    def unbiased(self, gramian: Tensor, group: Any) -> Tensor | None:
        """The Gramian of the expected gradients, from that of the means over the parts of all processes."""
        sums = [self.gramians, self.counts, self.both]
        ranks = world_size(group)
        if ranks > 1:
            sums = [part.clone() for part in sums]
            all_reduce_mean_(sums, group)
            sums = [part * ranks for part in sums]
        return unbiased_gramian(gramian, *sums)


def statistics_of_traces(
    traces: Traces, losses: Tensor, names: tuple[str, ...], *, reduce: str, group: Any, parts: Parts | None = None
) -> tuple[GradientStatistics, Tensor]:
    """Statistics of rows that are no longer there, and what :meth:`Aggregator.cross` compares with those of the next step.

    With several processes, those of the mean of their rows: sketches add up. The lengths of one process are exact, those of a mean are the
    sketch's. Sizes of entries are averaged over processes, the largest is the largest of all.
    """
    ranks, own = world_size(group), traces.gramian()
    S, gramian, unbiased = traces.scaled(), own, None
    sizes = torch.stack(traces.sizes, dim=1) if traces.rowstats else None  # (3, m, P)
    if ranks > 1:
        S, gramian = traces.stacked().double(), own.clone()
        all_reduce_mean_([S, gramian], group)
        if reduce != "gramian":
            gramian = S @ S.T
            unbiased = (parts or Parts.one(own)).unbiased(gramian, group)
        if sizes is not None:
            largest, rest = sizes[0].clone(), sizes[1:].clone()
            torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=group)
            all_reduce_mean_([rest], group)
            sizes = torch.cat([largest[None], rest])
    elif parts is not None:
        unbiased = parts.unbiased(gramian, group)
    s = replace(nothing_known(losses, traces.leaves.shapes, names), gramian=gramian, gramian_unbiased=unbiased, world_size=ranks)
    return s if sizes is None else replace(s, abs_max=sizes[0], abs_mean=sizes[1], l1=sizes[2]), S


def statistics_of_rows(
    rows: list[Tensor], needs: frozenset[str], losses: Tensor, leaves: Leaves, names: tuple[str, ...], *, reduce: str, group: Any,
    tracer: Tracer, parts: Parts | None = None,
) -> tuple[GradientStatistics, Tensor | None, bool]:  # fmt: skip
    """Statistics of rows that are still there, what the next step compares with, and whether ``rows`` are the mean over all processes."""
    ranks = world_size(group)
    needs = needs | {"gramian"}
    if ranks > 1 and reduce != "rows":
        traces = Traces(leaves, tracer, rowstats="rowstats" in needs)
        for i in range(len(losses)):
            traces.add([part[i] for part in rows])
        s, S = statistics_of_traces(traces, losses, names, reduce=reduce, group=group, parts=parts)
        return s, S if "previous" in needs else None, False
    if ranks > 1:
        parts = parts or Parts.one(gramian_of(rows))
        all_reduce_mean_(rows, group)
    s = GradientStatistics.from_rows(rows, needs=needs, losses=losses, shapes=leaves.shapes, names=names)
    s = replace(s, world_size=ranks, gramian_unbiased=None if parts is None else parts.unbiased(s.gramian, group))
    return s, tracer.of_rows(rows, s.gramian.diagonal()) if "previous" in needs else None, True


def chosen_reduce(reduce: str, needs: frozenset[str], group: Any) -> str:
    """How processes put their gradients together: exact where entries matter, else sketches."""
    if world_size(group) == 1:
        return "rows"
    if reduce == "gramian":
        if needs & {"rows", "previous"}:
            bad_input("reduce", reduce, "'rows' or 'sketch' for an aggregator that needs more than the Gramian")
        warnings.warn(
            "reduce='gramian' averages the Gramians of the processes, which is not the Gramian of the averaged gradients: noise within "
            "each process lengthens every gradient and draws all cosines to 0. reduce='sketch' sends m * 4096 numbers and has no bias.",
            UserWarning, stacklevel=4,
        )  # fmt: skip
    if reduce == "auto":
        return "rows" if needs & {"rows", "rowstats"} else "sketch"
    if reduce == "sketch" and "rows" in needs:
        bad_input("reduce", reduce, "'rows' for an aggregator with a rule for every coordinate")
    return reduce
