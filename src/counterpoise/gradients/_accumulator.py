"""Gradients of several losses over micro-batches: averaged first, combined once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from counterpoise._dist import all_gather_objects
from counterpoise._errors import InputError, bad_input, check_choice, check_range, listing

from ._backward import HEADS, Step, check_row_dtype, check_sketch_dim, loss_scale, refuse_scaled
from ._losses import Leaves, Terms, checked_params, leaves_of
from ._report import GradientReport
from ._rows import REDUCE, Parts, Traces
from ._torchjd import adapted
from ._tracer import SKETCH_DIM, Tracer

__all__ = ["Accumulator"]

MODES = ("sequential", "stochastic")


class Accumulator:
    r"""Averages the gradient of each loss over micro-batches; :meth:`step` combines the averages and adds the result to ``.grad``.

    .. math:: \hat g_i = \frac{1}{K_i} \sum_{k=1}^{K_i} \nabla L_i(\theta; b_k), \qquad d = A(\hat g_1, \dots, \hat g_m) .

    The angle between two gradients of small batches is mostly noise: it hides conflicts, and projections on it oscillate. Averages of K
    micro-batches show the angle that is there, at the memory of one batch (Limarenko et al. 2025, arXiv:2509.07252).

    Parameters
    ----------
    params : iterable of Tensor
        The shared parameters, which get the combined gradient. What else one loss alone reaches are heads; what else several losses reach
        gets the weighted sum, or the plain sum where the aggregator has no weights.
    aggregator : Aggregator
        As for :func:`backward`.
    mode : {"sequential", "stochastic"}
        "sequential": every micro-batch gives all losses (``acc.backward(losses)``), m passes each. "stochastic": every micro-batch gives
        the loss of one task (``acc.backward(loss, task="depth")``), one pass each, as ordinary accumulation costs. Tasks may have
        different numbers of micro-batches.
    row_dtype : torch.dtype, default float32
        Of the sums. ``torch.bfloat16`` halves the memory, and loses contributions below 1/256 of the sum.
    heads : {"own", "weighted"}
        As for :func:`backward`.
    scaler, process_group, reduce, sketch_dim
        As for :func:`backward`. With several processes, communication happens in :meth:`step` alone.

    Raises
    ------
    InputError
        If ``params`` is empty, frozen or holds what is no leaf, or another argument is out of range.

    Notes
    -----
    Memory: m n numbers for the sums, one gradient while a loss is differentiated. Between steps nothing but what the aggregator remembers.

    Examples
    --------
    >>> from counterpoise.gradients import PCGrad
    >>> net = torch.nn.Linear(3, 2)
    >>> acc = Accumulator(net.parameters(), PCGrad())
    >>> for x in torch.randn(4, 8, 3):
    ...     acc.backward({"up": net(x).mean(), "down": (net(x) ** 2).mean()})
    >>> report = acc.step()
    >>> report.names, len(acc)
    (('up', 'down'), 0)
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        aggregator: Any,
        *,
        mode: str = "sequential",
        row_dtype: torch.dtype = torch.float32,
        heads: str = "own",
        scaler: torch.amp.GradScaler | None = None,
        process_group: Any = None,
        reduce: str = "auto",
        sketch_dim: int = SKETCH_DIM,
    ) -> None:
        check_choice("mode", mode, MODES)
        check_choice("heads", heads, HEADS)
        check_choice("reduce", reduce, REDUCE)
        check_row_dtype(row_dtype)
        check_range("sketch_dim", sketch_dim, low=1, integer=True)
        self.params = checked_params(params)
        self.aggregator = adapted(aggregator)
        self.mode = mode
        self.row_dtype = row_dtype
        self.heads = heads
        self.scaler = scaler
        self.process_group = process_group
        self.reduce = reduce
        self._tracer = Tracer(sketch_dim)
        self._names: tuple[str, ...] = ()
        self._clear()

    def __len__(self) -> int:
        """Micro-batches since the last step."""
        return self._micro

    def _clear(self) -> None:
        self._micro = 0
        self._scale = 1.0
        self._rows: dict[str, list[Tensor]] = {}
        self._losses: dict[str, Tensor] = {}
        self._count: dict[str, int] = {}
        self._together: dict[tuple[str, str], int] = {}
        self._products: dict[tuple[str, str], Tensor] = {}
        self._rest: dict[str, dict[Tensor, Tensor]] = {}  # of parameters that are not in params

    def backward(self, losses: Tensor | Sequence[Tensor] | Mapping[str, Tensor], task: str | None = None) -> None:
        """Add the gradients of one micro-batch.

        Parameters
        ----------
        losses : Tensor, sequence or dict
            All losses, as for :func:`backward`; in stochastic mode a scalar.
        task : str, optional
            Whose loss it is, in stochastic mode.

        Raises
        ------
        InputError
            If losses have no graph, or are others than those of the micro-batches before. Nothing was added then. If the graph of a later
            loss cannot be used (again), the sums so far are let go.
        """
        if (task is None) == (self.mode == "stochastic"):
            wanted = "the name of the task whose loss this is" if task is None else "None in sequential mode"
            bad_input("task", task, wanted, f"This Accumulator has mode={self.mode!r}.")
        scale = loss_scale(self.scaler)
        if self._micro and scale != self._scale:
            bad_input(
                "scaler",
                f"a scale of {scale:g} after {self._scale:g}",
                "the same scale until step()",
                "Call scaler.update() after acc.step().",
            )
        terms = Terms.of({task: losses} if task is not None else losses, scale)
        refuse_scaled(terms, self.scaler)
        if self.mode == "sequential" and self._names and terms.names != self._names:
            bad_input("losses", ", ".join(terms.names), f"those of before, {listing(self._names)}", "Make a new Accumulator for others.")
        names = tuple(dict.fromkeys([*self._names, *terms.names]))
        check_sketch_dim(self._tracer.dim, len(names))
        leaves = leaves_of(terms, self.params)
        traces = Traces(leaves, self._tracer)
        for i, name in enumerate(terms.names):
            rest = [*leaves.heads[i], *leaves.others]
            try:
                found = terms.gradient(i, [*self.params, *rest], retain=i < len(terms) - 1)
            except InputError:
                if i:  # some gradients of this micro-batch are in the sums
                    self._clear()
                raise
            self._add(name, found, rest, traces, scale)
        values, products = terms.values(), traces.gramian()
        for i, name in enumerate(terms.names):
            self._losses[name] = self._losses.get(name, 0) + values[i]
            self._count[name] = self._count.get(name, 0) + 1
            for j, other in enumerate(terms.names[: i + 1]):
                pair = (other, name)
                self._together[pair] = self._together.get(pair, 0) + 1
                self._products[pair] = self._products.get(pair, 0) + products[i, j]
        self._names = names
        self._micro += 1
        self._scale = scale

    def _add(self, name: str, found: list[Tensor | None], rest: list[Tensor], traces: Traces, scale: float) -> None:
        """Add one gradient, by ``params`` and by the ``rest``, to the sums."""
        P = len(self.params)
        if name not in self._rows:
            dtypes = [torch.float64 if p.dtype == torch.float64 else self.row_dtype for p in self.params]
            self._rows[name] = [torch.zeros(p.numel(), dtype=dtype, device=p.device) for p, dtype in zip(self.params, dtypes, strict=True)]
        traces.add(found[:P], 1 / scale)
        for total, g in zip(self._rows[name], found, strict=False):
            if g is not None:
                total.add_(g.reshape(-1).to(total.dtype), alpha=1 / scale)
        sums = self._rest.setdefault(name, {})
        for p, g in zip(rest, found[P:], strict=True):
            if g is not None:
                sums[p] = g + sums[p] if p in sums else g

    def step(self) -> GradientReport:
        """Combine the averages, add the result to ``.grad``, and start again.

        Returns
        -------
        GradientReport
            As of :func:`backward`. In stochastic mode, a task known from before that had no micro-batch counts as a gradient of zeros.

        Raises
        ------
        InputError
            If there was no micro-batch, or a gradient is not finite; the sums are let go then, ``.grad`` is as it was.
        """
        if not self._micro:
            bad_input("step", "no micro-batch", "at least one acc.backward(losses) before acc.step()")
        if self.mode == "stochastic":
            self._names = self._agreed(self._names)
        names, m, device = self._names, len(self._names), self.params[0].device
        count = torch.tensor([float(self._count.get(name, 0)) for name in names], dtype=torch.float64, device=device)
        rows = []
        for slot, p in enumerate(self.params):
            dtype = torch.float64 if p.dtype == torch.float64 else self.row_dtype
            part = torch.zeros(m, p.numel(), dtype=dtype, device=p.device)
            for i, name in enumerate(names):
                if name in self._rows:
                    torch.div(self._rows[name][slot], self._count[name], out=part[i])
                    self._rows[name][slot] = part[i]  # the sum is let go
            rows.append(part)
        losses = torch.stack([self._losses.get(name, torch.zeros((), dtype=torch.float64, device=device)) for name in names])
        terms = Terms(names, (losses / count.clamp(min=1),), self._scale)
        rest = {name: {p: g / self._count[name] for p, g in self._rest.get(name, {}).items()} for name in names}
        # With one task at a time, only now it is known which parameters are those of several.
        reached = Counter(p for sums in rest.values() for p in sums)
        heads = tuple(tuple(p for p in rest[name] if reached[p] == 1) for name in names)
        own: dict[Tensor, Tensor | None] = {p: g for sums in rest.values() for p, g in sums.items() if reached[p] == 1}
        passes, micro, parts = sum(self._count.values()), self._micro, self._parts(count)
        self._clear()
        step = Step(
            terms, self.aggregator, Leaves(tuple(self.params), heads, ()),
            weighted_heads=self.heads == "weighted",
            retain=False,
            skips=self.scaler is not None and self.scaler.is_enabled(),
            group=self.process_group,
            reduce=self.reduce,
            tracer=self._tracer,
            row_dtype=self.row_dtype,
            own=own,
        )  # fmt: skip
        report = step.resolved(rows, "rows", passes=passes, n_micro=micro, parts=parts)
        weights = torch.where(report.weights.isnan(), 1.0, report.weights)
        mixed: dict[Tensor, Tensor] = {}
        for name, weight in zip(names, weights.tolist(), strict=True):
            for p, g in rest[name].items():
                if reached[p] > 1:
                    mixed[p] = mixed[p] + weight * g if p in mixed else weight * g
        step.write(mixed)
        return report

    def _agreed(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The tasks in the order of the first process: each has seen them in its own."""
        everywhere = all_gather_objects(names, self.process_group)
        if len({frozenset(known) for known in everywhere}) > 1:
            self._clear()
            missing = sorted(set().union(*everywhere) - set.intersection(*map(set, everywhere)))
            bad_input(
                "task", f"{listing(missing)} in some processes only", "the same tasks in every process",
                "Give each process a micro-batch of every task before the first step().",
            )  # fmt: skip
        return tuple(everywhere[0])

    def _parts(self, count: Tensor) -> Parts:
        """The micro-batches as independent parts of the averages."""
        m = len(self._names)
        gramians, both = torch.zeros(2, m, m, dtype=torch.float64, device=count.device)
        for i, first in enumerate(self._names):
            for j, second in enumerate(self._names[: i + 1]):
                pair = (second, first)
                if pair in self._products:
                    gramians[i, j] = gramians[j, i] = self._products[pair]
                    both[i, j] = both[j, i] = self._together[pair]
        return Parts(gramians, count, both)

    def __repr__(self) -> str:
        return f"Accumulator({len(self.params)} parameters, {self.aggregator}, mode={self.mode!r}, {self._micro} micro-batches)"
