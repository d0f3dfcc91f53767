"""The losses of one step: their names, their gradients one at a time or weighted, and the leaves that each of them reaches."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from counterpoise._errors import bad_input

from ._group_loss import members_of

__all__ = ["Leaves", "Terms", "checked_params", "leaves_of", "reached_from", "walked"]

LEAF = "torch::autograd::AccumulateGrad"
WRAPPER = "_DDPSinkBackward"  # through which all outputs of a DistributedDataParallel may pass, each by itself
REENTRANT = "CheckpointFunctionBackward"  # whose parameters autograd.grad does not see


@dataclass(frozen=True, eq=False)
class Terms:
    """m losses: either m scalars, or one vector (m,).

    ``scale`` is the loss scale of mixed precision: gradients come out multiplied by it.
    """

    names: tuple[str, ...]
    outputs: tuple[Tensor, ...]
    scale: float = 1.0

    @classmethod
    def of(cls, losses: Any, scale: float = 1.0) -> Terms:
        """From a vector (m,), a sequence of scalars or a dict of scalars; anything else is refused."""
        if isinstance(losses, Tensor):
            if losses.ndim == 0:
                losses = losses[None]
            if losses.ndim != 1 or not len(losses):
                bad_input("losses", f"shape {tuple(losses.shape)}", "a vector (m,), a sequence of scalars, or a dict of name: scalar")
            outputs: tuple[Tensor, ...] = (losses,)
            members = members_of(losses)
            names = members.names if members is not None else tuple(str(i) for i in range(len(losses)))
        elif isinstance(losses, Mapping):
            names, outputs = tuple(str(name) for name in losses), tuple(losses.values())
        elif isinstance(losses, Collection) and not isinstance(losses, str):
            names, outputs = tuple(str(i) for i in range(len(losses))), tuple(losses)
        else:
            bad_input("losses", type(losses).__name__, "a vector (m,), a sequence of scalars, or a dict of name: scalar")
        if not outputs:
            bad_input("losses", "an empty collection", "at least one loss")
        for name, output in zip(names, outputs, strict=False):
            argument = "losses" if isinstance(losses, Tensor) else f"losses[{name!r}]" if isinstance(losses, Mapping) else f"losses[{name}]"
            if not isinstance(output, Tensor):
                bad_input(argument, type(output).__name__, "a scalar tensor")
            if not isinstance(losses, Tensor) and output.numel() != 1:
                bad_input(
                    argument, f"shape {tuple(output.shape)}", "a scalar", "Take its mean, or pass a vector (m,) as the only argument."
                )
            if not output.is_floating_point():
                bad_input(argument, f"a tensor of {output.dtype}", "a floating-point loss")
            if not output.requires_grad:
                bad_input(
                    argument, "a tensor without a graph", "a loss computed from parameters that require gradients",
                    "Was it detached, or computed under torch.no_grad()?",
                )  # fmt: skip
        return cls(names, outputs, scale)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def is_vector(self) -> bool:
        """Whether the losses are one tensor."""
        return len(self.outputs) == 1 and self.outputs[0].ndim == 1

    def values(self) -> Tensor:
        """The losses (m,), float64, without a graph."""
        return torch.cat([output.detach().double().reshape(-1) for output in self.outputs])

    def gradient(self, i: int, inputs: Sequence[Tensor], *, retain: bool) -> list[Tensor | None]:
        """Gradient of loss ``i``, times the scale; None for what it does not reach."""
        if self.is_vector:
            chosen = torch.zeros_like(self.outputs[0])
            chosen[i] = self.scale
            return gradients(self.outputs, inputs, [chosen], retain)
        return gradients(self.outputs[i : i + 1], inputs, [torch.full_like(self.outputs[i], self.scale)], retain)

    def weighted(self, weights: Tensor, inputs: Sequence[Tensor], *, retain: bool) -> list[Tensor | None]:
        """Gradient of the weighted sum, times the scale, in one pass."""
        weights = weights * self.scale
        if self.is_vector:
            return gradients(self.outputs, inputs, [weights.to(self.outputs[0])], retain)
        factors = [weight.to(output).reshape(output.shape) for weight, output in zip(weights, self.outputs, strict=True)]
        return gradients(self.outputs, inputs, factors, retain)

    def roots(self) -> list[GradientEdge]:
        """Where the graph of each loss begins; the same for all where they cannot be told apart."""
        edges = [get_gradient_edge(output) for output in self.outputs]
        if self.is_vector and edges[0].node.name() == "StackBackward0":
            edges = [GradientEdge(node, nr) for node, nr in edges[0].node.next_functions if node is not None]
        return edges if len(edges) == len(self) else edges[:1] * len(self)


def gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor], factors: Sequence[Tensor], retain: bool) -> list[Tensor | None]:
    """``torch.autograd.grad``, with the errors people meet explained."""
    if not inputs:
        return []
    try:
        found = torch.autograd.grad(outputs, inputs, factors, retain_graph=retain, allow_unused=True)
    except RuntimeError as error:
        _explain(error)
    return [None if g is None else _whole(g) for g in found]


def _whole(g: Tensor) -> Tensor:
    """Dense, every entry in a place of its own."""
    if g.is_sparse:
        return g.to_dense()
    return g.contiguous() if any(step == 0 and size > 1 for step, size in zip(g.stride(), g.shape, strict=True)) else g


def _explain(error: RuntimeError) -> NoReturn:
    text = str(error)
    if "second time" in text:
        bad_input("losses", "a graph that was already used", "losses of a fresh forward pass", "Or pass retain_graph=True the first time.")
    if "donated buffer" in text:
        bad_input(
            "losses", "losses of a compiled model, whose graph can be used once", "losses whose graph allows several passes",
            "Pass a function that computes the losses and strategy='recompute', or set torch._functorch.config.donated_buffer = False.",
        )  # fmt: skip
    raise error


@dataclass(frozen=True, eq=False)
class Leaves:
    """Which parameters get what.

    ``shared`` get the combined gradient; ``heads[i]`` are reached by loss i alone; ``others`` are reached by several losses but were left
    out of ``params``.
    """

    shared: tuple[Tensor, ...]
    heads: tuple[tuple[Tensor, ...], ...]
    others: tuple[Tensor, ...]

    @property
    def sizes(self) -> list[int]:
        """Entries of each shared parameter."""
        return [p.numel() for p in self.shared]

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        return tuple(p.shape for p in self.shared)


def leaves_of(terms: Terms, params: Iterable[Tensor] | None) -> Leaves:
    """The leaves of the graph, sorted by how many losses reach them."""
    reached = reached_from(terms.roots())
    m = len(terms)
    if params is None:
        chosen = [p for p, mask in reached.items() if m == 1 or mask & (mask - 1)]
        if not chosen:
            bad_input(
                "losses", f"{m} losses that share no parameter", "losses that depend on parameters in common",
                "Without one, plain sum(losses).backward() is the same.",
            )  # fmt: skip
    else:
        chosen = checked_params(params)
        if not any(p in reached for p in chosen):
            bad_input("params", f"{len(chosen)} parameters", "at least one that a loss depends on", "Are they of the model that ran?")
    for p in chosen:
        if p.is_complex():
            bad_input("params", f"a parameter of {p.dtype}, shape {tuple(p.shape)}", "real parameters", "Train torch.view_as_real of it.")
    known = set(chosen)
    rest = {p: mask for p, mask in reached.items() if p not in known}
    heads = tuple(tuple(p for p, mask in rest.items() if mask == 1 << i) for i in range(m))
    others = tuple(p for p, mask in rest.items() if mask & (mask - 1))
    return Leaves(tuple(chosen), heads, others)


def checked_params(params: Iterable[Tensor]) -> list[Tensor]:
    if isinstance(params, Tensor):
        params = [params]
    given = list(params)
    if not given:
        bad_input("params", "an empty collection", "parameters, as of model.parameters()", "A generator is empty after its first use.")
    for p in given:
        if not isinstance(p, Tensor):
            bad_input("params", f"a {type(p).__name__}", "tensors, such as model.trunk.parameters()")
        if p.requires_grad and not p.is_leaf:
            bad_input("params", f"a result of shape {tuple(p.shape)}", "leaves of the graph", "Shared features go into features=.")
        if hasattr(p, "full_tensor"):
            bad_input("params", "sharded parameters (DTensor)", "whole parameters on every process, as with DistributedDataParallel")
    trained = list(dict.fromkeys(p for p in given if p.requires_grad))
    if not trained:
        bad_input("params", f"{len(given)} frozen parameters", "at least one with requires_grad=True")
    return trained


def walked(roots: Sequence[Node]) -> list[Node]:
    """Every node that the roots reach, each after those it passes gradients on to."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack: list[tuple[Node, bool]] = [(root, False) for root in reversed(roots)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((child, False) for child, _ in node.next_functions if child is not None and child not in seen)
    return order


def reached_from(roots: Sequence[GradientEdge]) -> dict[Tensor, int]:
    """Every leaf with the losses that reach it, as the bits of a number; in the order of a walk from the first loss.

    Every node is seen once: the bits are passed on in topological order.
    """
    order = walked([root.node for root in roots])
    masks: dict[Node, dict[int, int]] = {node: {} for node in order}  # by output

    def arrive(node: Node, nr: int, mask: int) -> None:
        masks[node][nr] = masks[node].get(nr, 0) | mask

    for i, root in enumerate(roots):
        arrive(root.node, root.output_nr, 1 << i)
    leaves: dict[Tensor, int] = {}
    for node in reversed(order):
        name = node.name()
        if name == REENTRANT:
            bad_input(
                "losses", "losses of a model with reentrant checkpointing", "checkpoint(..., use_reentrant=False)",
                "Gradients of single losses do not reach the parameters of a reentrant checkpoint.",
            )  # fmt: skip
        every = reduce(or_, masks[node].values(), 0)
        if name == LEAF and every:
            leaf = node.variable  # type: ignore[attr-defined]
            leaves[leaf] = leaves.get(leaf, 0) | every
        if name == WRAPPER:
            for there, nr, mask in _through(node, masks[node]):
                arrive(there, nr, mask)
            continue
        for child, nr in node.next_functions:
            if child is not None:
                arrive(child, nr, every)
    return leaves


def _through(node: Any, masks: Mapping[int, int]) -> Iterator[tuple[Node, int, int]]:
    """Where the outputs of a node that hands on its inputs go, with the masks of these outputs: (child, nr, mask).

    A pass through this node alone shows it, whose outputs are counted with those that are no tensors, its inputs without.
    """
    inputs: Any = [GradientEdge(child, nr) for child, nr in node.next_functions if child is not None]
    for output, mask in masks.items():
        meta = node._input_metadata[output]
        edge: Any = GradientEdge(node, output)
        given = torch.zeros(meta.shape, dtype=meta.dtype, device=meta.device)
        found = torch.autograd.grad([edge], inputs, [given], retain_graph=True, allow_unused=True)
        yield from ((there.node, there.output_nr, mask) for there, g in zip(inputs, found, strict=True) if g is not None)
