r"""Inner products of the gradients of groups of examples under one loss, without the gradients.

With the input :math:`a_r` and the output's gradient :math:`b_r` of a linear layer in row r, the gradient of group k is
:math:`G_k = \sum_{r \in k} b_r a_r^\top`, and

.. math:: \langle G_k, G_l \rangle = \sum_{r \in k} \sum_{s \in l} \langle a_r, a_s \rangle \langle b_r, b_s \rangle .

All b come from one backward pass of the summed losses, whatever the number of groups. Where rows are many (convolutions, sequences) the
sums over groups are formed instead, one parameter at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from counterpoise._errors import bad_input, listing
from counterpoise._precision import single

from .. import _group_loss
from .._losses import gradients
from ._graph import BATCH_NORMS, Graph, out_shape
from ._layouts import Finding, Looks, coefficients, judge, tolerance_of
from ._sums import GroupGramian, formed
from ._uses import Contribution, Members, Sums, Use, uses_of

__all__ = ["Ghost", "ghost_gramian"]

REMEMBERED = 1024  # graphs whose layouts are kept
MIXED = "rows that are not those of single examples"


@dataclass(frozen=True, eq=False)
class Ghost:
    """Inner products of the gradients of m groups.

    ``gramian`` (m, m), float64, is over all parameters but those at the positions ``left``, for which there is no rule; ``notes`` say why.
    ``passes`` is the number of backward passes taken, ``bytes`` the most memory that gradients of groups and products of examples took.
    """

    gramian: Tensor
    left: tuple[int, ...] = ()
    passes: int = 0
    bytes: int = 0
    notes: tuple[str, ...] = ()


def ghost_gramian(losses: Tensor, params: Sequence[Tensor], *, scale: float = 1.0) -> Ghost:
    """The Gramian of the gradients of ``losses`` by ``params``, in one backward pass; in two for a graph of a shape not seen before.

    Parameters
    ----------
    losses : Tensor, shape (m,)
        As :class:`~counterpoise.gradients.GroupLoss` returned them. Their graph is kept, and nothing is left behind in it.
    params : sequence of Tensor
        Leaves of the graph. Those that no loss reaches count as zeros.
    scale : float, default 1.0
        By which gradients are multiplied in the backward pass, against underflow in half precision; the Gramian is that without it.

    Raises
    ------
    InputError
        If the losses are not those of a GroupLoss or have no graph, if examples depend on each other and it does not allow that, or if the
        graph cannot be used again.
    """
    members = _group_loss.members_of(losses)
    if members is None:
        bad_input(
            "losses", f"a tensor of shape {tuple(losses.shape)}", "the tensor that GroupLoss returned, as it is",
            "What was computed from it is not known to be means of groups.",
        )  # fmt: skip
    if not members.per_example.requires_grad:
        bad_input(
            "losses", "a tensor without a graph", "losses computed from parameters that require gradients",
            "Were they computed under torch.no_grad()?",
        )  # fmt: skip
    if not bool((members.counts > 0).any()):
        m = len(members.counts)
        return Ghost(torch.zeros(m, m, dtype=torch.float64, device=losses.device))
    with torch.no_grad(), torch.autocast(losses.device.type, enabled=False):
        return _Call(members, params, scale).run()


class _Call:
    """One call of :func:`ghost_gramian`: the graph is read, run, and what arrives is added up, parameter by parameter."""

    def __init__(self, members: _group_loss.Members, params: Sequence[Tensor], scale: float) -> None:
        self.members, self.params, self.scale = members, params, scale
        self.b = len(members.group)
        self.passes = 0

        # Only groups that have examples, numbered anew.
        counts = members.counts.tolist()
        present = [k for k, count in enumerate(counts) if count]
        self.counts = [counts[k] for k in present]
        self.present = torch.tensor(present, device=members.group.device)
        renumbered = torch.full((len(counts) + 1,), -1, device=members.group.device)
        renumbered[self.present] = torch.arange(len(present), device=members.group.device)
        self.groups = renumbered[members.group]  # -1 finds the last entry, -1
        self.gramian = GroupGramian(len(present), members.group.device)
        self._members: dict[tuple[int, int], Members] = {}

        self.graph = Graph(get_gradient_edge(members.per_example).node, params, self.b)
        for i, p in enumerate(params):
            if type(p) not in (Tensor, nn.Parameter) or p.is_complex() or not p.is_leaf:
                self.graph.left[i] = f"a {'complex tensor' if p.is_complex() else type(p).__name__ if p.is_leaf else 'tensor with a graph'}"
            elif p._backward_hooks:
                self.graph.left[i] = "a hook on its gradient"
        self.graph.read(uses_of)
        self._refuse_what_no_pass_would_show()

        self.layouts: dict[Use, Finding] = {}
        self._looks, self._seen = Looks(), dict[Use, Tensor]()
        self._c = coefficients(self.b, members.per_example)
        self._arrived: dict[int, list[Contribution]] = {}
        self._awaited: Counter[int] = Counter()
        self._made: list[tuple[Use, Tensor]] = []

    def run(self) -> Ghost:
        graph, remembered = self.graph, self.members.layouts
        signature = None if graph.reorders() else graph.signature()
        known = remembered.get(signature, {}) if signature is not None else {}
        for use in graph.live():
            if (place := self._place(use)) in known:
                self.layouts[use] = Finding(known[place], True)
                if known[place] is None:
                    graph.leave(use, f"{MIXED} at {use.node.name()}")
        graph.settle()
        uses = graph.live()
        new = [use for use in uses if use not in self.layouts]
        if new and self.b > 1:
            self._pass(new, self.members.coefficients() * self._c, self._look)
        self._awaited.update(leaf for use in uses for leaf in use.entry.leaves)
        self._pass(uses, self.members.coefficients(), self._arrive)
        coupled = {use.node.name() for use in new if use in self.layouts and self.layouts[use].coupled}
        if coupled and not self.members.allow_coupled:
            self._refuse_coupled(sorted(coupled))
        graph.settle()
        self._pull_back()
        if new and signature is not None:
            remembered[signature] = known | {self._place(use): found.stride for use, found in self.layouts.items() if found.known}
            remembered.move_to_end(signature)
            while len(remembered) > REMEMBERED:
                remembered.popitem(last=False)
        m = len(self.members.counts)
        gramian = torch.zeros(m, m, dtype=torch.float64, device=self.present.device)
        gramian[self.present[:, None], self.present] = self.gramian.value / self.scale**2
        return Ghost(gramian, tuple(sorted(graph.left)), self.passes, self.gramian.bytes, self._notes())

    def _place(self, use: Use) -> tuple[int, int]:
        return self.graph.place[use.node], use.slot

    # -- backward passes -----------------------------------------------------------------------------------------------------------------

    def _pass(self, uses: Collection[Use], weights: Tensor, arrive: Callable[[Use, Tensor | None], None]) -> None:
        """One backward pass of the weighted losses, which hands each use the gradient of its node's output."""
        by_node: dict[Node, list[Use]] = {}
        for use in uses:
            by_node.setdefault(use.node, []).append(use)
        if not by_node:
            return
        # Gradients of parameters are never formed: the pass goes as far as the last nodes, whose own gradients are its results.
        ends = self.graph.ends(set(by_node))

        def hook(node: Node, grads: tuple[Tensor | None, ...]) -> None:
            for use in by_node[node]:
                arrive(use, None if grads[0] is None else grads[0].detach())

        handles = [node.register_prehook(partial(hook, node)) for node in by_node if node not in ends]
        try:
            edges: Any = [GradientEdge(node, 0) for node in ends]
            last = gradients([self.members.per_example], edges, [weights * self.scale], retain=True)
        finally:
            for handle in handles:
                handle.remove()
        self.passes += 1
        for node, grad in zip(ends, last, strict=True):
            hook(node, (grad,))

    def _look(self, use: Use, b: Tensor | None) -> None:
        if b is not None:
            self._seen[use] = self._looks(use.rows(b))

    def _arrive(self, use: Use, b: Tensor | None) -> None:
        if self.graph.is_left(use):
            return
        contribution: Contribution | None = None
        if b is not None:
            if use not in self.layouts:
                self.layouts[use] = self._judged(use, b)
            stride = self.layouts[use].stride
            if stride is None:
                self.graph.leave(use, f"{MIXED} at {use.node.name()}")
                return
            contribution = use.contribution(b, self._of_rows(use.n_rows, stride))
            if not use.direct:
                self._made.append((use, formed(contribution, use.shape, len(self.counts)).reshape(-1, *use.entry.shape)))
                return
        for leaf in use.entry.leaves:
            self._collect(leaf, contribution)

    def _judged(self, use: Use, b: Tensor) -> Finding:
        if self.b == 1:
            return Finding(use.n_rows, True)
        if use not in self._seen:  # zeros in the other pass
            return Finding(use.n_rows // self.b, False)
        rows = use.rows(b)
        wide = single(rows)
        tolerance = tolerance_of(self.graph.half, b.dtype, self.members.per_example.dtype, device=b.device.type)
        return judge(self._looks(rows), self._seen.pop(use), torch.linalg.vector_norm(wide, dim=1).double(), self._c.double(), tolerance)

    def _of_rows(self, n_rows: int, stride: int) -> Members:
        if (n_rows, stride) not in self._members:
            self._members[n_rows, stride] = Members(self.groups, self.counts, n_rows, stride)
        return self._members[n_rows, stride]

    def _collect(self, leaf: int, contribution: Contribution | None) -> None:
        """When a parameter's last contribution has arrived, its inner products are added, and what they were made of can go."""
        if contribution is not None:
            self._arrived.setdefault(leaf, []).append(contribution)
        self._awaited[leaf] -= 1
        if self._awaited[leaf] == 0:
            self.gramian.add(self._arrived.pop(leaf, []), self.params[leaf].shape)

    def _pull_back(self) -> None:
        """Gradients of what is made of parameters become those of the parameters, group by group."""
        for use, rows in self._made:
            if self.graph.is_left(use):
                continue
            leaves = [self.params[leaf] for leaf in use.entry.leaves]
            edge: Any = use.entry.edge
            parts = [rows.new_zeros(len(rows), p.numel()) for p in leaves]
            for k, row in enumerate(rows.to(edge.node._input_metadata[edge.output_nr].dtype)):
                for part, g in zip(parts, gradients([edge], leaves, [row], retain=True), strict=True):
                    if g is not None:
                        part[k] = g.reshape(-1)
            for leaf, part in zip(use.entry.leaves, parts, strict=True):
                self._collect(leaf, Sums(part))
        self._made.clear()

    # -- what cannot be had --------------------------------------------------------------------------------------------------------------

    def _refuse_what_no_pass_would_show(self) -> None:
        for node, kind, of_examples in zip(self.graph.nodes, self.graph.kinds, self.graph.of_examples, strict=True):
            if kind == "CheckpointFunction":
                bad_input("losses", "losses of a model with reentrant checkpointing", "checkpoint(..., use_reentrant=False)")
            if kind not in BATCH_NORMS or self.members.allow_coupled or self.b == 1 or not of_examples:
                continue
            # Statistics of a single instance, or of inputs that no parameter has a part in, couple nothing.
            if node._saved_training and node.next_functions[0][0] is not None and out_shape(node)[0] > 1:  # type: ignore[attr-defined]
                self._refuse_coupled([f"{node.name()} in training mode"])

    def _refuse_coupled(self, names: Sequence[str]) -> None:
        bad_input(
            "losses", f"examples that depend on each other ({listing(names, 3)})", "examples whose losses are their own",
            "Use model.eval() for batch normalization or layers without batch statistics, such as GroupNorm; or "
            "GroupLoss(allow_coupled=True), whose gradients run through other groups' examples, too.",
        )  # fmt: skip

    def _notes(self) -> tuple[str, ...]:
        reasons = Counter(self.graph.left.values())
        return tuple(f"{n} of {len(self.params)} parameters took one pass per group: {why}." for why, n in reasons.items())
