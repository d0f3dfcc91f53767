r"""One call in place of ``loss.backward()``: the gradients of several losses, combined by an aggregator, in ``.grad``.

How the gradients are looked at is the *strategy*; what is made of them is the *aggregator*. Most aggregators need no more of m gradients
than their Gramian, which can be had without holding them: from sketches of fixed width (one pass for each loss and one more), from the
outputs and inputs of layers for groups of examples under one loss (two passes, however many groups), or at shared features (the passes stop
there).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from counterpoise._dist import all_reduce_mean_, world_size
from counterpoise._errors import InputError, bad_input, check_choice, check_range, listing
from counterpoise._precision import single

from ._aggregator import Aggregator
from ._ghost import ghost_gramian
from ._group_loss import members_of
from ._losses import Leaves, Terms, leaves_of, reached_from
from ._report import GradientReport
from ._rows import REDUCE, Parts, Traces, chosen_reduce, empty_rows, released, statistics_of_rows, statistics_of_traces
from ._statistics import SKIP, GradientStatistics, gramian_of, nothing_known, refuse_row
from ._torchjd import WholeMatrix, adapted
from ._tracer import SKETCH_DIM, Tracer

__all__ = ["HEADS", "Step", "accumulate", "backward", "check_row_dtype", "check_sketch_dim", "loss_scale", "refuse_scaled"]

STRATEGIES = ("auto", "rows", "sketch", "ghost", "features", "recompute")
HEADS = ("own", "weighted")
PART_OF_MEMORY = 0.25  # of what is free, that rows may take before "auto" takes sketches
FREE_IF_UNKNOWN = 2**31  # bytes
SMALL_WEIGHT = 1e-3  # below it, the own gradient of a head is computed, not divided out of the weighted one
OF_GRAMIAN = frozenset({"losses", "gramian"})

Losses = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


def backward(
    losses: Losses | Callable[[], Losses],
    aggregator: Any,
    *,
    params: Iterable[Tensor] | None = None,
    features: Tensor | Sequence[Tensor] | None = None,
    strategy: str = "auto",
    heads: str = "own",
    refresh_every: int | None = None,
    retain_graph: bool = False,
    scaler: torch.amp.GradScaler | None = None,
    process_group: Any = None,
    reduce: str = "auto",
    sketch_dim: int = SKETCH_DIM,
    row_dtype: torch.dtype = torch.float32,
) -> GradientReport:
    r"""Combine the gradients of several losses and add the result to ``.grad``, as ``loss.backward()`` adds that of one.

    With the gradients :math:`g_i = \partial L_i / \partial \theta` of m losses with respect to the shared parameters, an aggregator makes
    :math:`d = \sum_i w_i g_i`, with weights from the losses, from the Gramian :math:`\langle g_i, g_j \rangle` or from sizes of entries, or
    has a rule for every coordinate. Optimizers, schedulers and clipping go on as before.

    **Heads.** A parameter that only one loss reaches is not shared. It gets the gradient of its own loss, *unweighted*, so that heads learn
    at the pace of single-task training; with ``heads="weighted"`` it gets :math:`w_i` times that, as if the weighted sum had been
    differentiated. Libraries differ here: compare results with this in mind. Which losses reach a parameter is read off the graph, in
    which a compiled module is one node: keep heads out of ``torch.compile``, or they are taken for shared.

    Parameters
    ----------
    losses : Tensor of shape (m,), sequence of m scalars, or dict of name: scalar
        Losses with their graph. From :class:`GroupLoss`: group means of one loss. With ``strategy="recompute"``: a function without
        arguments that computes them.
    aggregator : Aggregator
        Of this room; or an ``Aggregator`` or ``Weighting`` of TorchJD; or any function of the Jacobian, (m, n) to (n,).
    params : iterable of Tensor, optional
        The shared parameters: what the gradients are compared on and what gets the combined one. Default: all leaves that at least two
        losses reach (all, if there is one loss). Shared leaves that are left out get the weighted sum, or the plain sum where the
        aggregator has no weights.
    features : Tensor or sequence of Tensor, optional
        The last shared representation z. Gradients are compared there, which costs only the heads: the Gramian of
        :math:`\partial L_i / \partial z` stands in for that of the parameters (an upper bound, MGDA-UB: Sener and Koltun 2018).
    strategy : {"auto", "rows", "sketch", "ghost", "features", "recompute"}
        How gradients are looked at.

        - "rows": each kept until it is combined. m passes, m n numbers. Any aggregator.
        - "sketch": each folded into ``sketch_dim`` numbers and dropped, then one pass for the weighted sum. m + 1 passes, m ``sketch_dim``
          + n numbers. Lengths and sizes of entries are exact; cosines have an error of about :math:`\sqrt{2 / \mathtt{sketch\_dim}}`.
        - "ghost": for losses of :class:`GroupLoss`, two passes whatever m is, exact.
        - "features": needs ``features``.
        - "recompute": "rows" with a fresh forward pass for each loss, for graphs that can be used once (``torch.compile``). It
          draws the same random numbers each time; running statistics of batch normalization move each time.
        - "auto": one plain pass if only losses matter; "rows" for coordinate rules; "features" if given; "ghost" for losses of
          ``GroupLoss``; else "rows" while they take less than a quarter of the free memory, then "sketch".
    heads : {"own", "weighted"}
        See above.
    refresh_every : int, optional
        Find weights at every k-th call and use them in between with one plain pass each: 1 + m/k passes on average. Default: the
        aggregator's ``update_every``. The weights that are held are part of the aggregator's state.
    retain_graph : bool, default False
        Keep the graph for another call.
    scaler : torch.amp.GradScaler, optional
        For mixed precision: pass unscaled losses. They are scaled here, statistics are unscaled, and ``.grad`` is written scaled, for
        ``scaler.step(optimizer)``. A gradient that is not finite goes into ``.grad``, so that the scaler skips the step; the aggregator
        does not move then.
    process_group : optional
        Processes to average over. Default: the default group where ``torch.distributed`` is initialized. What is written to ``.grad`` is
        the mean over the processes, the same on all of them, whether or not the model is wrapped in ``DistributedDataParallel``, whose
        own communication is not used.
    reduce : {"auto", "sketch", "rows", "gramian"}
        How the Gramian of the mean over processes is found: "rows" averages all gradients (exact, m times the traffic); "sketch" averages
        sketches and then the combined gradient; "gramian" averages the Gramians, which is biased (noise lengthens all gradients and draws
        cosines to 0), and warns. "auto": "rows" for coordinate rules and sizes of entries, else "sketch".
    sketch_dim : int, default 4096
        Width of the sketches, at least 8 m.
    row_dtype : torch.dtype, default float32
        Of rows that are kept; ``torch.bfloat16`` halves their memory, and loses what is below 1/256 of a sum. Parameters in double
        precision have rows in double precision.

    Returns
    -------
    GradientReport
        Weights, lengths, cosines, whose step it was, conflicts, passes and memory.

    Warns
    -----
    UserWarning
        If two gradients point in opposite directions, so that no direction helps both.

    Raises
    ------
    InputError
        If losses have no graph or no parameter in common, a gradient is not finite (the message names the loss; nothing was written), the
        strategy cannot serve the aggregator, or another argument is out of range.

    Examples
    --------
    >>> from counterpoise.gradients import PCGrad
    >>> trunk, near, far = (torch.nn.Linear(*size) for size in [(4, 8), (8, 1), (8, 1)])
    >>> z = torch.tanh(trunk(torch.randn(16, 4)))
    >>> report = backward({"near": near(z).square().mean(), "far": (far(z) - 100).square().mean()}, PCGrad())
    >>> report.names, report.strategy, tuple(trunk.weight.grad.shape)
    (('near', 'far'), 'rows', (8, 4))
    """
    check_choice("strategy", strategy, STRATEGIES)
    check_choice("heads", heads, HEADS)
    check_choice("reduce", reduce, REDUCE)
    if refresh_every is not None:
        check_range("refresh_every", refresh_every, low=1, integer=True)
    check_range("sketch_dim", sketch_dim, low=1, integer=True)
    check_row_dtype(row_dtype)
    method = adapted(aggregator)
    closure: Callable[[], Any] | None = None
    if callable(losses) and not isinstance(losses, Tensor):
        if strategy not in ("auto", "recompute"):
            bad_input("losses", "a function", f"losses for strategy={strategy!r}", "A function goes with strategy='recompute'.")
        closure, strategy = losses, "recompute"
    elif strategy == "recompute":
        bad_input("losses", type(losses).__name__, "a function that computes the losses, for strategy='recompute'")
    again = _repeatable(closure) if closure is not None else None
    terms = Terms.of(again() if again is not None else losses, loss_scale(scaler))
    refuse_scaled(terms, scaler)
    z = _features(features, strategy)
    leaves = leaves_of(terms, params if params is not None or z is None else _trunk(z))
    check_sketch_dim(sketch_dim, len(terms))
    step = Step(
        terms, method, leaves,
        weighted_heads=heads == "weighted",
        retain=retain_graph,
        skips=scaler is not None and scaler.is_enabled(),
        group=process_group,
        reduce=reduce,
        tracer=_tracer(method, sketch_dim),
        row_dtype=row_dtype,
        members=members_of(losses) if isinstance(losses, Tensor) else None,
        every=refresh_every if refresh_every is not None else method.update_every,
    )  # fmt: skip
    report = step.held() or step.taken(_chosen(strategy, step, z), z, again)
    if report.opposed is not None:
        warnings.warn(
            f"the gradients of {report.opposed[0]} and {report.opposed[1]} point in opposite directions: no common descent direction.",
            UserWarning, stacklevel=2,
        )  # fmt: skip
    return report


@dataclass
class Step:
    """One call of :func:`backward` or of :meth:`Accumulator.step`: what there is, and what is to become of it."""

    terms: Terms
    method: Aggregator
    leaves: Leaves
    weighted_heads: bool
    retain: bool
    skips: bool
    group: Any
    reduce: str
    tracer: Tracer
    row_dtype: torch.dtype
    members: Any = None
    own: dict[Tensor, Tensor | None] = field(default_factory=dict)  # gradients of heads that were found on the way, scaled
    every: int = 1  # weights found now are held for that many steps

    def __post_init__(self) -> None:
        self.ranks = world_size(self.group)
        self.losses = self.terms.values()
        if self.ranks > 1:
            all_reduce_mean_([self.losses], self.group)
        wrong = ~torch.isfinite(self.losses)
        if not self.skips and bool(wrong.any()):
            # Its gradient would make those of the others NaN, too, where they are parts of one tensor.
            refuse_row(wrong, self.terms.names, "losses")
        self.method.check_order(self.terms.names)

    # ---- weights of an earlier step -------------------------------------------------------------------------------------------------

    def held(self) -> GradientReport | None:
        """Go on with the weights of an earlier step, if it is not yet time for new ones."""
        if self.every == 1:
            return None
        if "rows" in self.method.needs:
            accepted = f"1 (or None) for {self.method.label}, which has a rule for every coordinate instead of weights"
            bad_input("refresh_every", self.every, accepted)
        age, weights = self.method.kept("held_age"), self.method.kept("held_weights", (len(self.terms),))
        if age is None or weights is None or (int(age) + 1) % self.every == 0:
            return None
        s = nothing_known(self.losses, self.leaves.shapes, self.terms.names)
        passes = self._final_pass(weights, s)
        self.method.keep("held_age", age + 1)
        return self._report(s, weights, "held weights", passes, 0)

    # ---- a step of its own ----------------------------------------------------------------------------------------------------------

    def taken(self, strategy: str, z: list[Tensor] | None, again: Callable[[], Any] | None) -> GradientReport:
        """Look at the gradients by ``strategy``, find weights, write ``.grad``."""
        if strategy == "plain":
            return self._weighed(nothing_known(self.losses, self.leaves.shapes, self.terms.names), "plain")
        if strategy == "features":
            assert z is not None
            return self._features(z)
        if strategy == "ghost":
            return self._ghost()
        if strategy == "sketch":
            return self._sketch()
        return self._rows(strategy, again)

    def _rows(self, strategy: str, again: Callable[[], Any] | None) -> GradientReport:
        m, shared = len(self.terms), self.leaves.shared
        rows = empty_rows(self.leaves, m, self.row_dtype)
        for i in range(m):
            terms = self.terms
            if again is not None and i:
                terms = self._fresh(again)
            keeps = again is None and (self.retain or i < m - 1 or bool(self.leaves.others))
            found = terms.gradient(i, [*shared, *self.leaves.heads[i]], retain=keeps)
            for part, g in zip(rows, found, strict=False):
                _fill(part[i], g, 1 / self.terms.scale)
            self._keep_heads(i, found[len(shared) :])
            del found
        if again is not None and self.leaves.others:
            self.terms = self._fresh(again)  # for the weighted sum, which they get
        return self.resolved(rows, strategy, passes=m)

    def _fresh(self, again: Callable[[], Any]) -> Terms:
        """The losses of another forward pass."""
        terms, m = Terms.of(again(), self.terms.scale), len(self.terms)
        if len(terms) != m:
            bad_input("losses", f"a function with {len(terms)} losses, {m} before", "the same losses at every call")
        return terms

    def resolved(self, rows: list[Tensor], strategy: str, *, passes: int, n_micro: int = 1, parts: Parts | None = None) -> GradientReport:
        """From the rows (m, n_p) of all shared parameters, which are let go on the way."""
        reduce = chosen_reduce(self.reduce, self.method.needs, self.group)
        taken = sum(part.nbytes for part in rows)
        try:
            s, traces, reduced = statistics_of_rows(
                rows, self.method.needs, self.losses, self.leaves, self.terms.names,
                reduce=reduce, group=self.group, tracer=self.tracer, parts=parts,
            )  # fmt: skip
            finite = self._finite(s)
        except InputError:
            if not self.skips:
                raise
            finite = False
        if not finite:
            return self._skipped(strategy, passes, [part.sum(dim=0) for part in rows])
        s = replace(s, n_micro=n_micro)
        if traces is not None:
            s = replace(s, cross=self.method.cross(traces))
        weights = self._weights(s)
        if reduced or self.ranks == 1:
            results = self.method.combine_all(released(rows), weights, s)
        else:
            assert weights is not None
            mixed = [weights.to(exact) @ exact for exact in map(single, released(rows))]
            all_reduce_mean_(mixed, self.group)
            results = (self.method.finish(one, slot, s) for slot, one in enumerate(mixed))
        for p, one in zip(self.leaves.shared, results, strict=True):
            accumulate(p, one.reshape(p.shape) * self.terms.scale if self.terms.scale != 1 else one.reshape(p.shape))
        if traces is not None:
            self.method.remember(traces)
        passes += self._write_rest(weights)
        return self._report(s, weights, strategy, passes, taken)

    def _sketch(self) -> GradientReport:
        m, shared = len(self.terms), self.leaves.shared
        traces = Traces(self.leaves, self.tracer, rowstats="rowstats" in self.method.needs)
        for i in range(m):
            found = self.terms.gradient(i, [*shared, *self.leaves.heads[i]], retain=True)
            traces.add(found[: len(shared)], 1 / self.terms.scale)
            self._keep_heads(i, found[len(shared) :])
            del found
        reduce = chosen_reduce(self.reduce, self.method.needs, self.group)
        s, S = statistics_of_traces(
            traces, self.losses, self.terms.names, reduce="sketch" if reduce == "rows" else reduce, group=self.group
        )
        if not self._finite(s):
            return self._skipped("sketch", m, None)
        if "previous" in self.method.needs:
            s = replace(s, cross=self.method.cross(S))
        report = self._weighed(s, "sketch", m, S.nbytes)
        if "previous" in self.method.needs:
            self.method.remember(S)
        return report

    def _ghost(self) -> GradientReport:
        if self.ranks > 1 and self.reduce != "gramian":
            bad_input(
                "strategy", "ghost", "'sketch' or 'rows' with several processes, whose gradients it never forms",
                "Or reduce='gramian', which is biased.",
            )  # fmt: skip
        chosen_reduce(self.reduce, self.method.needs, self.group)
        ghost = ghost_gramian(self.terms.outputs[0], self.leaves.shared, scale=self.terms.scale)
        gramian, passes = ghost.gramian, ghost.passes
        if ghost.left:
            left = Leaves(tuple(self.leaves.shared[slot] for slot in ghost.left), self.leaves.heads, ())
            rows = empty_rows(left, len(self.terms), torch.float32)
            for i in range(len(self.terms)):
                for part, g in zip(rows, self.terms.gradient(i, left.shared, retain=True), strict=True):
                    _fill(part[i], g, 1 / self.terms.scale)
            gramian = gramian + gramian_of(rows)
            passes += len(self.terms)
        if self.ranks > 1:
            gramian = gramian.clone()
            all_reduce_mean_([gramian], self.group)
        if not bool(torch.isfinite(gramian).all()):
            # Products mix the groups: only rows show whose gradient it was.
            return self._skipped("ghost", passes, None) if self.skips else self._rows("rows", None)
        s = replace(nothing_known(self.losses, self.leaves.shapes, self.terms.names), gramian=gramian, world_size=self.ranks)
        return self._weighed(s, "ghost", passes, ghost.bytes, ghost.notes)

    def _features(self, z: list[Tensor]) -> GradientReport:
        if not self.method.needs <= OF_GRAMIAN:
            bad_input(
                "strategy", "features", f"'rows' or 'sketch' for {self.method.label}, which needs gradients of the parameters",
                "Features are others at every step, and have no entries of parameters.",
            )  # fmt: skip
        m = len(self.terms)
        rows, reached = [torch.zeros(m, part.numel(), dtype=single(part).dtype, device=part.device) for part in z], False
        for i in range(m):
            found = self.terms.gradient(i, [*z, *self.leaves.heads[i]], retain=True)
            reached = reached or any(g is not None for g in found[: len(z)])
            for part, g in zip(rows, found, strict=False):
                _fill(part[i], g, 1 / self.terms.scale)
            self._keep_heads(i, found[len(z) :])
        if not reached:
            bad_input(
                "features", "a tensor that no loss depends on", "the one from which the losses were computed",
                "DistributedDataParallel may return copies: compute the losses from what it returned.",
            )  # fmt: skip
        gramian = gramian_of(rows)
        if self.ranks > 1:  # the features of a process are coordinates of their own
            all_reduce_mean_([gramian], self.group)
            gramian /= self.ranks
        s = replace(nothing_known(self.losses, self.leaves.shapes, self.terms.names), gramian=gramian, world_size=self.ranks)
        if not self._finite(s):
            return self._skipped("features", m, None)
        note = "Gradients were compared at the features: their Gramian bounds that of the parameters from above, up to a factor."
        return self._weighed(s, "features", m, sum(part.nbytes for part in rows), (note,))

    # ---- pieces ---------------------------------------------------------------------------------------------------------------------

    def _weighed(
        self, s: GradientStatistics, strategy: str, passes: int = 0, taken: int = 0, notes: tuple[str, ...] = ()
    ) -> GradientReport:
        """Find weights, and make one more pass for the weighted sum."""
        weights = self._weights(s)
        assert weights is not None  # methods without them need rows
        return self._report(s, weights, strategy, passes + self._final_pass(weights, s), taken, notes)

    def _keep_heads(self, i: int, found: Sequence[Tensor | None]) -> None:
        """Keep the gradients of what only loss i reaches until the combined gradient is written."""
        self.own.update(zip(self.leaves.heads[i], found, strict=True))

    def _weights(self, s: GradientStatistics) -> Tensor | None:
        weights = self.method.found_weights(s)
        if weights is not None and self.ranks > 1:
            # The same on all processes, also where an order was drawn at random.
            weights = weights.detach().clone().to(self.losses)
            torch.distributed.broadcast(weights, group=self.group, group_src=0)
        if weights is not None and self.every > 1:
            self.method.keep("held_age", torch.zeros((), dtype=torch.int64))
            self.method.keep("held_weights", weights.detach().clone())
        return weights

    def _finite(self, s: GradientStatistics) -> bool:
        """Whether all gradients are finite; if not, an error, except where a scaler skips such steps."""
        wrong = ~torch.isfinite(s.gramian.diagonal())
        if bool(wrong.any()) and not self.skips:
            refuse_row(wrong, s.names)
        return not bool(wrong.any())

    def _final_pass(self, weights: Tensor, s: GradientStatistics) -> int:
        """One pass for the weighted sum: everything gets its gradient from it, except heads whose own one is known."""
        leaves, scale = self.leaves, self.terms.scale
        unknown = [(i, p) for i, own in enumerate(leaves.heads) for p in own if p not in self.own]
        inputs = [*leaves.shared, *leaves.others, *(p for _, p in unknown)]
        small = [] if self.weighted_heads else sorted({i for i, _ in unknown if abs(float(weights[i])) < SMALL_WEIGHT})
        found = self.terms.weighted(weights, inputs, retain=self.retain or bool(small))
        mixed = [torch.zeros_like(p) if g is None else g for p, g in zip(inputs, found, strict=True)]
        del found
        for at, (i, _) in enumerate(unknown, len(leaves.shared) + len(leaves.others)):
            if not self.weighted_heads and i not in small:
                mixed[at] = mixed[at] / weights[i].to(mixed[at])
        for i in small:
            own = [(at, p) for at, (owner, p) in enumerate(unknown, len(leaves.shared) + len(leaves.others)) if owner == i]
            again = self.terms.gradient(i, [p for _, p in own], retain=self.retain or i != small[-1])
            for (at, p), g in zip(own, again, strict=True):
                mixed[at] = torch.zeros_like(p) if g is None else g
        all_reduce_mean_(mixed, self.group)
        finite = _all_finite(mixed[: len(leaves.shared)])
        if not finite and not self.skips:
            bad_input("gradients", "nan or inf in the weighted sum", "finite values", SKIP)
        finishes = finite and type(self.method).finish is not Aggregator.finish
        for slot, (p, one) in enumerate(zip(inputs, released(mixed), strict=True)):
            if finishes and slot < len(leaves.shared):
                one = (self.method.finish(single(one).reshape(-1) / scale, slot, s) * scale).reshape(p.shape)
            accumulate(p, one)
        self._write_heads(weights)
        return 1 + len(small)

    def _write_rest(self, weights: Tensor | None) -> int:
        """Heads, and shared parameters that were left out, after the combined gradient; returns the passes it took."""
        self._write_heads(weights)
        if not self.leaves.others:
            return 0
        by = torch.ones(len(self.terms), dtype=torch.float64) if weights is None else weights
        found = self.terms.weighted(by, self.leaves.others, retain=self.retain)
        self.write({p: torch.zeros_like(p) if g is None else g for p, g in zip(self.leaves.others, found, strict=True)})
        return 1

    def write(self, found: dict[Tensor, Tensor]) -> None:
        """Add gradients to those of their parameters, averaged over processes."""
        all_reduce_mean_(list(found.values()), self.group)
        for p, one in found.items():
            accumulate(p, one)

    def _write_heads(self, weights: Tensor | None) -> None:
        """The gradients of heads that were found on the way."""
        known = [(i, p) for i, own in enumerate(self.leaves.heads) for p in own if p in self.own]
        if self.ranks == 1:
            known = [(i, p) for i, p in known if self.own[p] is not None]
        found = [self.own[p] for _, p in known]
        mixed = {p: torch.zeros_like(p) if g is None else g for (_, p), g in zip(known, found, strict=True)}
        if self.weighted_heads and weights is not None:
            mixed = {p: mixed[p] * weights[i].to(mixed[p]) for i, p in known}
        self.write(mixed)

    def _skipped(self, strategy: str, passes: int, sums: list[Tensor] | None) -> GradientReport:
        """Write what is not finite where the scaler sees it; the aggregator has not moved."""
        ones = torch.ones(len(self.terms), dtype=torch.float64)
        inputs = list(self.leaves.shared)
        found = sums if sums is not None else self.terms.weighted(ones, inputs, retain=self.retain)
        self.write({p: torch.zeros_like(p) if one is None else one.reshape(p.shape) for p, one in zip(inputs, found, strict=True)})
        s = nothing_known(self.losses, self.leaves.shapes, self.terms.names)
        report = self._report(s, None, strategy, passes, 0)
        return replace(report, details={}, notes=("A gradient was not finite: the step is left to the scaler, which skips it.",))

    def _report(
        self, s: GradientStatistics, weights: Tensor | None, strategy: str, passes: int, taken: int, notes: tuple[str, ...] = ()
    ) -> GradientReport:
        if isinstance(self.method, WholeMatrix):
            notes = (
                *notes,
                f"{self.method.label} takes the whole Jacobian: {taken:,} bytes of rows, and as much again for the matrix.",
            )
        details = self.method.last if strategy != "held weights" else {}
        absent = [] if self.members is None else [name for name, n in zip(s.names, self.members.counts.tolist(), strict=True) if not n]
        if absent:
            notes = (*notes, f"No example in this batch: {listing(absent)}.")
        return GradientReport.of(
            s, weights, strategy=strategy, passes=passes, bytes_rows=taken, details=details,
            notes=(*notes, *details.get("notes", ())), compared=self._compared(strategy),
        )  # fmt: skip

    def _compared(self, strategy: str) -> str:
        shared, heads = self.leaves.shared, self.leaves.heads
        where = "at the features" if strategy == "features" else f"on {sum(self.leaves.sizes):,} parameters in {len(shared)} tensors"
        own = [f"{name} {sum(p.numel() for p in own):,}" for name, own in zip(self.terms.names, heads, strict=True) if own]
        return f"compared {where}" + (f"; of their own: {listing(own, 6)}" if own else "")


def _chosen(strategy: str, step: Step, z: list[Tensor] | None) -> str:
    """The strategy, checked against what the aggregator needs; "auto" resolved."""
    needs, name = step.method.needs, step.method.label
    if strategy in ("sketch", "ghost", "features") and "rows" in needs:
        bad_input("strategy", strategy, f"'rows' for {name}, which has a rule for every coordinate")
    if strategy == "ghost":
        if step.members is None:
            bad_input("strategy", strategy, "'rows' or 'sketch' for losses that are not those of a GroupLoss")
        if not needs <= OF_GRAMIAN:
            bad_input("strategy", strategy, f"'rows' or 'sketch' for {name}, which needs more than the Gramian")
    if strategy != "auto":
        return strategy
    if z is not None:
        return "features"
    if needs <= {"losses"}:
        return "plain"
    if "rows" in needs:
        return "rows"
    if step.members is not None and needs <= OF_GRAMIAN and step.ranks == 1:
        return "ghost"
    itemsize = torch.empty((), dtype=step.row_dtype).element_size()
    taken = len(step.terms) * sum(step.leaves.sizes) * itemsize
    return "rows" if taken < PART_OF_MEMORY * _free_bytes(step.leaves.shared[0].device) else "sketch"


def _all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether all entries are finite; the largest is NaN if any entry is."""
    largest = [torch.linalg.vector_norm(part, torch.inf) for part in tensors if part.numel()]
    return not largest or bool(torch.isfinite(torch.stack([one.to(largest[0]) for one in largest])).all())


def _repeatable(closure: Callable[[], Any]) -> Callable[[], Any]:
    """``closure``, which draws the same random numbers at every call, as dropout in one forward pass does."""
    start, first = torch.get_rng_state(), True
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    there = [torch.cuda.get_rng_state(device) for device in devices]

    def again() -> Any:
        nonlocal first
        if first:
            first = False
            return closure()
        with torch.random.fork_rng(devices):
            torch.set_rng_state(start)
            for device, state in zip(devices, there, strict=True):
                torch.cuda.set_rng_state(state, device)
            return closure()

    return again


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return FREE_IF_UNKNOWN


def refuse_scaled(terms: Terms, scaler: torch.amp.GradScaler | None) -> None:
    """Refuse losses that went through ``scaler.scale``: they would be scaled twice."""
    own = scaler._scale if scaler is not None and scaler.is_enabled() else None
    if own is None:
        return
    for output in terms.outputs:
        factor = getattr(output.grad_fn, "_saved_other", None)
        if isinstance(factor, Tensor) and factor.numel() == 1 and factor.data_ptr() == own.data_ptr():
            bad_input("losses", "losses that are scaled already", "unscaled losses, with scaler=scaler", "Leave out scaler.scale(loss).")


def loss_scale(scaler: torch.amp.GradScaler | None) -> float:
    if scaler is not None and not isinstance(scaler, torch.amp.GradScaler):
        bad_input("scaler", type(scaler).__name__, "a torch.amp.GradScaler")
    if scaler is None or not scaler.is_enabled():
        return 1.0
    scaler.scale(torch.ones((), device=scaler._device))  # makes its scale where there was none yet
    return float(scaler.get_scale())


def _features(features: Tensor | Sequence[Tensor] | None, strategy: str) -> list[Tensor] | None:
    if features is None:
        if strategy == "features":
            bad_input("features", None, "the last shared representation, for strategy='features'")
        return None
    if strategy not in ("auto", "features"):
        bad_input("features", "given", f"None for strategy={strategy!r}")
    z = [features] if isinstance(features, Tensor) else list(features)
    for part in z:
        if not isinstance(part, Tensor) or not part.requires_grad or part.grad_fn is None:
            bad_input("features", "a tensor without a graph", "the output of the shared part, from which the losses were computed")
    return z


def _trunk(z: list[Tensor]) -> list[Tensor]:
    return list(reached_from([get_gradient_edge(part) for part in z]))


def _tracer(method: Aggregator, dim: int) -> Tracer:
    """That of the method, whose signs are drawn once."""
    if method._tracer.dim != dim:
        method._tracer = Tracer(dim)
    return method._tracer


def check_row_dtype(row_dtype: torch.dtype) -> None:
    if row_dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        bad_input("row_dtype", row_dtype, "a floating dtype, such as torch.float32 or torch.bfloat16")


def check_sketch_dim(sketch_dim: int, m: int) -> None:
    if sketch_dim < 8 * m:
        bad_input("sketch_dim", sketch_dim, f"at least {8 * m}, 8 for each of the {m} losses")


def _fill(row: Tensor, g: Tensor | None, factor: float) -> None:
    if g is None:
        row.zero_()
    elif factor == 1:
        row.copy_(g.reshape(-1))
    else:
        row.copy_(single(g).reshape(-1) * factor)


def accumulate(p: Tensor, g: Tensor) -> None:
    """Add to ``.grad`` as ``backward()`` does, in memory of its own: what a pass returns may be that of another parameter, too."""
    g = g.detach()
    if p.grad is None:
        p.grad = torch.empty_like(p, requires_grad=False).copy_(g)
    elif p.grad.is_sparse:
        p.grad = g.to(p.dtype) + p.grad
    else:
        p.grad.add_(g.to(p.dtype))
