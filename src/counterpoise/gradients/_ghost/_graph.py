"""The autograd graph of a batch, read without running it: which nodes compute examples, and where parameters enter them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from counterpoise._precision import HALF

from .._losses import walked

__all__ = ["BATCH_NORMS", "LEAF", "Entry", "Graph", "kind_of", "out_shape"]

LEAF = "torch::autograd::AccumulateGrad"

# What happens to parameters before they meet examples: other views of them, parts, sums, rescalings, low-rank updates.
OF_PARAMETERS = frozenset({
    "T", "Transpose", "Permute", "View", "UnsafeView", "ReshapeAlias", "Alias", "Clone", "ToCopy", "Squeeze", "Unsqueeze",
    "Select", "Slice", "Narrow", "Split", "SplitWithSizes", "UnsafeSplit", "Unbind", "Cat", "Stack", "Mul", "Div", "Neg", "Add",
    "Sub", "Exp", "Log", "Pow", "Sqrt", "Rsqrt", "Tanh", "Sigmoid", "Softplus", "Softmax", "Sum", "Mean", "Norm",
    "LinalgVectorNorm", "WeightNormInterface", "Dot", "Vdot", "Mv", "Embedding", "Repeat", "Tril", "Triu",
})  # fmt: skip
SAME = frozenset({"Alias", "Clone", "ToCopy"})  # of what neither order nor shape changes
PRODUCTS = frozenset({"Mm", "Addmm"})  # made of parameters only if all their factors are
MADE_OF_MOST = 64  # nodes between parameters and examples that are still run once per group

BATCH_NORMS = frozenset({"NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"})

# Where the order of examples may depend on their values, hence differ in the next batch although the graph is the same.
REORDERING = frozenset({
    "Index", "IndexSelect", "IndexPut", "IndexPutImpl", "IndexAdd", "IndexCopy", "IndexFill", "Gather", "Scatter", "ScatterAdd",
    "ScatterReduce", "Sort", "Topk", "MaskedSelect", "MaskedScatter", "Take", "TakeAlongDim", "PackPaddedSequence", "Embedding",
    "EmbeddingBag",
})  # fmt: skip

# Numbers that say where things go, for nodes whose shapes do not.
GOING = {
    "Select": ("dim", "index"),
    "Slice": ("dim", "start", "end", "step"),
    "Transpose": ("dim0", "dim1"),
    "Permute": ("dims",),
    "Roll": ("shifts", "dims"),
    "Flip": ("dims",),
    "Cat": ("dim",),
    "Stack": ("dim",),
    "Unbind": ("dim",),
    **dict.fromkeys(BATCH_NORMS, ("training",)),
}


@lru_cache(maxsize=1024)
def _kind(name: str) -> str:
    return name if name == LEAF else re.sub(r"Backward\d*$", "", name)


def kind_of(node: Node) -> str:
    """``Addmm`` of ``AddmmBackward0``."""
    return _kind(node.name())


def out_shape(node: Any, nr: int = 0) -> torch.Size:
    """Shape of what the node computed in the forward pass, which is that of the gradient it gets."""
    return torch.Size(node.variable.shape if node.name() == LEAF else node._input_metadata[nr].shape)


@dataclass(frozen=True, eq=False)
class Entry:
    """What enters a node that computes examples: a parameter, or something made of parameters only.

    ``form`` is "same" for a parameter as it is, "transposed" for a transposed matrix, else "made". ``looked_up``: vectors from a table.
    """

    edge: GradientEdge
    shape: torch.Size
    leaves: tuple[int, ...]
    form: str
    looked_up: bool


class Graph:
    """The nodes from which the losses of ``b`` examples were computed, parents before children.

    ``params`` are the leaves that are asked for. ``Uses`` of them are what ``rules`` finds; a parameter that is used anywhere else is in
    ``left``, with the reason.
    """

    def __init__(self, root: Node, params: Sequence[Tensor], b: int) -> None:
        self.b = b
        self.nodes = walked([root])[::-1]
        self.place = {node: i for i, node in enumerate(self.nodes)}
        self.kinds = [kind_of(node) for node in self.nodes]
        self.children = [[(-1 if child is None else self.place[child], nr) for child, nr in node.next_functions] for node in self.nodes]
        self._wanted = {id(p): i for i, p in enumerate(params)}
        self._made_of = self._light()
        self._kept = [() if kind == LEAF else _metadata(node) for node, kind in zip(self.nodes, self.kinds, strict=True)]
        self.half = any(dtype in HALF for kept in self._kept for _, dtype in kept)
        self.of_examples = [False] * len(self.nodes)
        self.left: dict[int, str] = {}
        self.uses: list[Any] = []
        self.hidden: set[Node] = set()
        self._parents = [0] * len(self.nodes)

    def read(self, rules: Callable[[Graph, Node], list[Any]]) -> None:
        """Find the uses of the parameters, from the losses on; ``rules`` gives those in one node."""
        self.of_examples[0] = True
        for i, node in enumerate(self.nodes):
            if not self.of_examples[i]:
                continue
            if self.kinds[i] == LEAF:
                leaf = self._wanted.get(id(node.variable))  # type: ignore[attr-defined]
                if leaf is not None:
                    self.left.setdefault(leaf, self._why(i))
                continue
            found = rules(self, node)
            self.uses += found
            taken = {use.slot for use in found}
            for slot, (child, _) in enumerate(self.children[i]):
                if child >= 0 and slot not in taken:
                    self.of_examples[child] = True
                    self._parents[child] = i
        for use in self.uses:
            if any(self.of_examples[i] and self.kinds[i] != LEAF for i in self._below(self.place[use.entry.edge.node])):
                self.leave(use, "it enters what examples compute in several ways")
        self.settle()

    def leave(self, use: Any, why: str) -> None:
        """Leave the parameters of a use to another way of computing their gradients."""
        for leaf in use.entry.leaves:
            self.left.setdefault(leaf, why)

    def settle(self) -> None:
        """What is made together with a parameter that is left is left, too."""
        before = 0
        while before != len(self.left):
            before = len(self.left)
            for use in self.uses:
                if self.is_left(use):
                    self.leave(use, "it is used together with one that is left")

    def is_left(self, use: Any) -> bool:
        return bool(self.left) and any(leaf in self.left for leaf in use.entry.leaves)

    def entry(self, node: Node, slot: int) -> Entry | None:
        """What enters ``node`` there, if it is made of the parameters only."""
        child, nr = self.children[self.place[node]][slot] if slot < len(node.next_functions) else (-1, 0)
        if child < 0 or not self._made_of[child]:
            return None
        edge = GradientEdge(self.nodes[child], nr)
        looked_up = any(self.kinds[i] == "Embedding" for i in self._below(child))
        return Entry(edge, out_shape(edge.node, nr), tuple(sorted(self._made_of[child] or ())), self._form(child), looked_up)

    def live(self) -> list[Any]:
        """The uses of parameters that are not left."""
        return [use for use in self.uses if not self.is_left(use)]

    def ends(self, nodes: set[Node]) -> list[Node]:
        """Those of ``nodes`` from which no other of them is reached: a pass that goes as far as these passes all others."""
        below = [False] * len(self.nodes)
        for i in reversed(range(len(self.nodes))):
            below[i] = any(child >= 0 and (below[child] or self.nodes[child] in nodes) for child, _ in self.children[i])
        return [node for node in nodes if not below[self.place[node]]]

    def signature(self) -> bytes:
        """Equal for batches of the same size that went the same way, different for any others."""
        going = tuple(
            tuple(getattr(node, f"_saved_{name}", None) for name in GOING[kind])
            for node, kind in zip(self.nodes, self.kinds, strict=True)
            if kind in GOING
        )
        return blake2b(repr((self.b, self.kinds, self.children, self._kept, going)).encode(), digest_size=16).digest()

    def reorders(self) -> bool:
        """Whether examples may be in another order in the next batch although its graph is the same."""
        nodes = {use.node for use in self.live()}
        below = [False] * len(self.nodes)
        for i in reversed(range(len(self.nodes))):
            below[i] = self.nodes[i] in nodes or any(child >= 0 and below[child] for child, _ in self.children[i])
            own = self.kinds[i] in REORDERING or isinstance(self.nodes[i], torch.autograd.function.BackwardCFunction)
            if own and below[i] and self.of_examples[i] and self.nodes[i] not in nodes:
                return True
        return False

    # -- parameters before they meet examples --------------------------------------------------------------------------------------------

    def _light(self) -> list[frozenset[int] | None]:
        """The wanted parameters that each node is made of; None where anything else is in it."""
        made_of: list[frozenset[int] | None] = [None] * len(self.nodes)
        size = [0] * len(self.nodes)
        for i in reversed(range(len(self.nodes))):
            if self.kinds[i] == LEAF:
                leaf = self._wanted.get(id(self.nodes[i].variable))  # type: ignore[attr-defined]
                made_of[i] = None if leaf is None else frozenset({leaf})
                size[i] = 1
                continue
            whole = self.kinds[i] in PRODUCTS and all(child >= 0 for child, _ in self.children[i])
            if not whole and self.kinds[i] not in OF_PARAMETERS:
                continue
            own = {child for child, _ in self.children[i] if child >= 0}
            parts = [made_of[child] for child in own]
            size[i] = 1 + sum(size[child] for child in own)
            if parts and size[i] <= MADE_OF_MOST and all(part is not None for part in parts):
                made_of[i] = frozenset().union(*(part for part in parts if part is not None))
        return made_of

    def _form(self, i: int) -> str:
        transposed = False
        while self.kinds[i] != LEAF:
            kind, node = self.kinds[i], self.nodes[i]
            if kind in ("T", "Transpose") and len(out_shape(node)) == 2:
                transposed = not transposed
            elif kind not in SAME:
                return "made"
            i = self.children[i][0][0]
        return "transposed" if transposed else "same"

    def _below(self, i: int) -> set[int]:
        seen, stack = set(), [i]
        while stack:
            i = stack.pop()
            if i not in seen:
                seen.add(i)
                stack += [child for child, _ in self.children[i] if child >= 0]
        return seen

    def _why(self, i: int) -> str:
        """What a parameter enters, past views of it, that keeps it from being measured."""
        while self._made_of[i] and i != self._parents[i]:
            i = self._parents[i]
        name = self.nodes[i].name()
        return f"{name} is checkpointed, or has hooks on what it saved" if self.nodes[i] in self.hidden else f"no rule for {name}"


def _metadata(node: Any) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
    """Shapes and dtypes of what a node computed; that of nested tensors has none."""
    return tuple(((-1,) if meta.is_nested_tensor else tuple(meta.shape), meta.dtype) for meta in node._input_metadata)
