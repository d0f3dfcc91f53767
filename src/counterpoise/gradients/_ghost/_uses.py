r"""Where a parameter meets the examples of a batch, by kind of autograd node, and the gradients of the groups that follow there.

A node gets the gradient B of the summed losses by its output and has saved its input A. Written as R rows that belong to one example each,
the gradient of group k is a sum over its rows: :math:`\sum_{r \in k} a_r \otimes b_r` for products and tables, :math:`\sum_{r \in k} b_r
\odot a_r` for what is added or scaled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from counterpoise._precision import single

from ._graph import Entry, Graph, kind_of, out_shape

__all__ = ["Contribution", "Lookups", "Members", "Products", "Sums", "Use", "uses_of"]

Saved = Callable[[], Tensor]


class Members:
    """Which of ``m`` groups each of R rows belongs to; ``stride`` is the number of rows from one example to the next.

    ``groups`` (b,) are those of the examples, -1 for none; ``counts`` their sizes.
    """

    def __init__(self, groups: Tensor, counts: Sequence[int], n_rows: int, stride: int) -> None:
        self.examples, self.counts, self.stride = groups, counts, stride
        self.m = len(counts)
        self.per_example = n_rows // groups.shape[0]
        rows = torch.arange(n_rows, device=groups.device)
        self.groups = groups[rows.div(stride, rounding_mode="floor") % groups.shape[0]]
        self._order: Tensor | None = None
        self._matrices: dict[torch.dtype, Tensor] = {}

    def coarser(self, inner: int) -> Members:
        """Of the sums of ``inner`` neighboring rows, which belong to the same example."""
        return Members(self.examples, self.counts, self.groups.shape[0] // inner, self.stride // inner)

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """(m, R) of zeros and ones."""
        if dtype not in self._matrices:
            groups = torch.arange(self.m, device=self.groups.device)
            self._matrices[dtype] = (self.groups == groups[:, None]).to(dtype)
        return self._matrices[dtype]

    def sums(self, rows: Tensor) -> Tensor:
        """(m, F) of ``rows`` (R, F)."""
        return self.matrix(rows.dtype) @ rows

    @property
    def order(self) -> Tensor:
        """The rows that are in a group, group by group."""
        if self._order is None:
            b = self.examples.shape[0]
            inside = torch.argsort(self.examples, stable=True)[b - sum(self.counts) :]
            own = torch.arange(self.per_example, device=inside.device)
            first = own.div(self.stride, rounding_mode="floor") * (b * self.stride) + own % self.stride  # the rows of example 0
            self._order = (inside[:, None] * self.stride + first).flatten()
        return self._order

    def segments(self) -> list[tuple[int, int]]:
        """Where each group begins and ends in :attr:`order`."""
        ends = [count * self.per_example for count in accumulate(self.counts)]
        return list(zip([0, *ends], ends, strict=False))


# -- what arrives at a parameter ---------------------------------------------------------------------------------------------------------


class Contribution:
    """The gradients (m, p, q) of the groups by one use of a parameter, for some of the p rows that it has as a matrix at a time.

    ``splits`` says whether some can be had without the others.
    """

    splits = True
    values: Tensor  # of the dtype and on the device of the gradients

    def add_to(self, rows: Tensor, low: int, high: int) -> None:
        """Add the gradients ``[:, low:high]`` to ``rows`` (m, high - low, q)."""
        raise NotImplementedError


class Sums(Contribution):
    """Gradients that are there, (m, N)."""

    def __init__(self, rows: Tensor) -> None:
        self.values = rows

    def add_to(self, rows: Tensor, low: int, high: int) -> None:
        rows += self.values.reshape(len(rows), -1, rows.shape[2])[:, low:high]


class Products(Contribution):
    """Sums of outer products of ``u`` (R, p) and ``v`` (R, q)."""

    def __init__(self, u: Tensor, v: Tensor, members: Members) -> None:
        self.u, self.v, self.members = u, v, members
        self.values = v
        self.sizes = u.shape[1], v.shape[1]
        self._sorted: tuple[Tensor, Tensor] | None = None

    def add_to(self, rows: Tensor, low: int, high: int) -> None:
        if self._sorted is None:
            self._sorted = self.u[self.members.order].to(rows.dtype), self.v[self.members.order].to(rows.dtype)
        u, v = self._sorted
        for k, (start, end) in enumerate(self.members.segments()):
            rows[k].addmm_(u[start:end, low:high].T, v[start:end])


class Lookups(Contribution):
    """Rows ``v`` (R, q), each added to the entry ``tokens`` (R,) of a table."""

    def __init__(self, tokens: Tensor, v: Tensor, members: Members) -> None:
        self.tokens, self.v, self.members = tokens, v, members
        self.values = v

    def add_to(self, rows: Tensor, low: int, high: int) -> None:
        here = (self.members.groups >= 0) & (self.tokens >= low) & (self.tokens < high)
        at = self.members.groups[here] * (high - low) + self.tokens[here] - low
        rows.view(-1, rows.shape[2]).index_add_(0, at, self.v[here].to(rows.dtype))


class Convolved(Contribution):
    """Gradients of the weight of a convolution with input ``a`` (R, ...) and output gradient ``b`` (R, ...)."""

    def __init__(self, a: Tensor, b: Tensor, shape: torch.Size, node: Any, members: Members) -> None:
        self.a, self.b, self.shape, self.members = a, b, shape, members
        self.values = b
        self._sorted: tuple[Tensor, Tensor] | None = None
        self.splits = node._saved_groups == 1 and not node._saved_transposed
        self.options = (
            list(node._saved_stride), list(node._saved_padding), list(node._saved_dilation), node._saved_transposed,
            list(node._saved_output_padding), node._saved_groups,
        )  # fmt: skip

    def add_to(self, rows: Tensor, low: int, high: int) -> None:
        if self._sorted is None:
            self._sorted = self.a[self.members.order], self.b[self.members.order]
        a, b = self._sorted
        b = b[:, low:high] if self.splits else b
        like = a.new_empty((high - low, *self.shape[1:]))
        for k, (start, end) in enumerate(self.members.segments()):
            g = torch.ops.aten.convolution_backward(b[start:end], a[start:end], like, None, *self.options, [False, True, False])[1]
            rows[k] += g.reshape(rows[k].shape)


# -- uses --------------------------------------------------------------------------------------------------------------------------------


class Use:
    """A parameter, or something made of parameters, that enters a node.

    ``saved`` names what the node has kept for it. ``n_rows`` is the number of rows of the gradient that belong to one example each.
    """

    def __init__(self, node: Node, slot: int, entry: Entry, saved: str = "") -> None:
        self.node: Any = node
        self.slot, self.entry = slot, entry
        self.saved = saved
        self.n_rows = 0

    def rows(self, b: Tensor) -> Tensor:
        """The gradient ``b`` of the node's output as a matrix (R, F)."""
        return b.reshape(self.n_rows, -1)

    def contribution(self, b: Tensor, members: Members) -> Contribution:
        raise NotImplementedError

    def input(self) -> Tensor:
        found: Tensor = getattr(self.node, self.saved).detach()
        return single(found)

    @property
    def shape(self) -> torch.Size:
        """Of the gradients that a contribution forms."""
        return self.entry.shape

    @property
    def direct(self) -> bool:
        """Whether contributions are gradients of the parameter itself."""
        return self.entry.form == "same" or (self.entry.form == "transposed" and isinstance(self, ProductUse | BroadcastUse))

    def hidden(self) -> bool:
        """Whether what the node has kept would have to be computed again, or fetched, to be read: hooks may do that only once."""
        raw = getattr(self.node, self.saved.replace("_saved", "_raw_saved"), None) if self.saved else None
        return raw is not None and not isinstance(getattr(raw, "data", None), Tensor | type(None))


class ProductUse(Use):
    """A factor of a matrix product: the right one, or with ``left`` the left one, where examples are columns."""

    def __init__(self, node: Node, slot: int, entry: Entry, saved: str, *, left: bool = False, alpha: float = 1.0) -> None:
        super().__init__(node, slot, entry, saved)
        self.left, self.alpha = left, alpha
        self.n_rows = out_shape(node)[-1 if left else -2]

    @property
    def shape(self) -> torch.Size:
        return self.entry.shape[-2:]

    def rows(self, b: Tensor) -> Tensor:
        b = b.reshape(b.shape[-2:])
        return b.T if self.left else b

    def contribution(self, b: Tensor, members: Members) -> Contribution:
        b = self.rows(single(b))
        a = self.input()
        a = a.reshape(a.shape[-2:])
        b = b if self.alpha == 1 else b * self.alpha
        u, v = (b, a.T) if self.left else (a, b)
        return Products(v, u, members) if self.entry.form == "transposed" else Products(u, v, members)


class LookupUse(Use):
    """A table of vectors."""

    def __init__(self, node: Node, entry: Entry, padding: int) -> None:
        super().__init__(node, 0, entry, "_saved_indices")
        self.padding = padding
        self.n_rows = out_shape(node)[:-1].numel()

    def contribution(self, b: Tensor, members: Members) -> Contribution:
        tokens = self.node._saved_indices.reshape(-1)
        b = self.rows(single(b))
        if 0 <= self.padding < self.entry.shape[0]:
            b = b * (tokens != self.padding)[:, None]
        return Lookups(tokens, b, members)


class ConvolutionUse(Use):
    """The weight of a convolution of one, two or three dimensions, transposed or not."""

    def __init__(self, node: Node, entry: Entry) -> None:
        super().__init__(node, 1, entry, "_saved_input")
        self.n_rows = out_shape(node)[0]

    def contribution(self, b: Tensor, members: Members) -> Contribution:
        return Convolved(self.input(), single(b), self.entry.shape, self.node, members)


class BroadcastUse(Use):
    """What is added to examples, or multiplies them: its gradient is summed over the dimensions that it does not have.

    ``aligned`` is its shape with a dimension for each of the output's; ``factor`` gives what it multiplies.
    """

    def __init__(
        self, node: Node, slot: int, entry: Entry, aligned: Sequence[int], saved: str = "", factor: Saved | None = None, alpha: float = 1.0
    ) -> None:
        super().__init__(node, slot, entry, saved)
        shape = out_shape(node)
        over = [dim for dim, (own, all_) in enumerate(zip(aligned, shape, strict=True)) if own == 1 and all_ != own]
        self.over = tuple(over)
        self.dims = (*over, *(dim for dim in range(len(shape)) if dim not in over))
        self.n_rows = torch.Size([shape[dim] for dim in over]).numel()
        self.inner = torch.Size([shape[dim] for dim in over[1:]]).numel()  # rows for each entry of the first of these dimensions
        self.factor, self.alpha = factor, alpha

    def rows(self, b: Tensor) -> Tensor:
        return b.permute(self.dims).reshape(self.n_rows, -1)

    def contribution(self, b: Tensor, members: Members) -> Contribution:
        b = single(b)
        b = b if self.factor is None else b * self.factor()
        if self.inner > 1 and members.stride % self.inner == 0:
            # All of a row's neighbors are of the same example: they are added up where they lie.
            b = b.sum(dim=self.over[1:]).movedim(self.over[0], 0)
            sums = members.coarser(self.inner).sums(b.reshape(b.shape[0], -1))
        else:
            sums = members.sums(self.rows(b))
        sums = sums if self.alpha == 1 else sums * self.alpha
        if self.entry.form == "transposed":
            sums = sums.reshape(members.m, *self.entry.shape).mT
        return Sums(sums)


# -- rules: which of a node's inputs are parameters, and how they are used ---------------------------------------------------------------


def _broadcast(graph: Graph, node: Node, slot: int, shape: Sequence[int] | None = None, **options: Any) -> list[Use]:
    entry = graph.entry(node, slot)
    if entry is None:
        return []
    out = out_shape(node)
    aligned = list(entry.shape) if shape is None else list(shape)
    aligned = [1] * (len(out) - len(aligned)) + aligned
    if entry.looked_up and any(size % graph.b == 0 for size in aligned[:-1]):
        return []  # vectors of the examples, more likely than of positions
    use = BroadcastUse(node, slot, entry, aligned, **options)
    return [use] if use.n_rows and use.n_rows % graph.b == 0 else []


def _product(graph: Graph, node: Any, right: int, saved_left: str, saved_right: str, alpha: float = 1.0) -> list[Use]:
    out = out_shape(node)
    if (entry := graph.entry(node, right)) is not None and out[-2] % graph.b == 0:
        return [ProductUse(node, right, entry, saved_left, alpha=alpha)]
    if (entry := graph.entry(node, right - 1)) is not None and not entry.looked_up and out[-1] % graph.b == 0:
        return [ProductUse(node, right - 1, entry, saved_right, left=True, alpha=alpha)]
    return []


def _addmm(graph: Graph, node: Any) -> list[Use]:
    weight = _product(graph, node, 2, "_saved_mat1", "_saved_mat2", float(node._saved_alpha))
    return weight + _broadcast(graph, node, 0, alpha=float(node._saved_beta))


def _mm(graph: Graph, node: Any) -> list[Use]:
    return _product(graph, node, 1, "_saved_self", "_saved_mat2")


def _bmm(graph: Graph, node: Any) -> list[Use]:
    return _mm(graph, node) if out_shape(node)[0] == 1 else []  # as einsum multiplies by a matrix


def _convolution(graph: Graph, node: Any) -> list[Use]:
    entry, out = graph.entry(node, 1), out_shape(node)
    weight: list[Use] = [ConvolutionUse(node, entry)] if entry is not None and out[0] % graph.b == 0 else []
    return weight + _broadcast(graph, node, 2, (out[1], *[1] * (len(out) - 2)))


def _embedding(graph: Graph, node: Any) -> list[Use]:
    entry = graph.entry(node, 0)
    if entry is None or node._saved_scale_grad_by_freq or out_shape(node)[:-1].numel() % graph.b:
        return []
    return [LookupUse(node, entry, int(node._saved_padding_idx))]


def _add(graph: Graph, node: Any) -> list[Use]:
    sign = -1.0 if kind_of(node) == "Sub" else 1.0
    return _broadcast(graph, node, 0) + _broadcast(graph, node, 1, alpha=sign * float(getattr(node, "_saved_alpha", 1)))


def _mul(graph: Graph, node: Any) -> list[Use]:
    found = []
    for slot, other in ((0, "_saved_other"), (1, "_saved_self")):
        if hasattr(node, other.replace("_saved", "_raw_saved")):  # else it is a number
            found += _broadcast(graph, node, slot, saved=other, factor=lambda other=other: single(getattr(node, other).detach()))
    return found


def _expand(graph: Graph, node: Any) -> list[Use]:
    return _broadcast(graph, node, 0)


def _layer_norm(graph: Graph, node: Any) -> list[Use]:
    k = len(node._saved_normalized_shape)

    def normalized() -> Tensor:
        x: Tensor = single(node._saved_input.detach())
        ones = (1,) * k
        mean, rstd = (t.detach().reshape(*x.shape[: x.ndim - k], *ones) for t in (node._saved_result1, node._saved_result2))
        normal: Tensor = (x - mean) * rstd
        return normal

    return _scale_and_shift(graph, node, tuple(node._saved_normalized_shape), normalized)


def _group_norm(graph: Graph, node: Any) -> list[Use]:
    def normalized() -> Tensor:
        x: Tensor = single(node._saved_input.detach())
        mean, rstd = (t.detach().reshape(x.shape[0], -1, 1).to(x.dtype) for t in (node._saved_result1, node._saved_result2))
        normal: Tensor = (x.reshape(*mean.shape[:2], -1) - mean) * rstd
        return normal.reshape(x.shape)

    return _scale_and_shift(graph, node, _per_channel(node), normalized)


def _batch_norm(graph: Graph, node: Any) -> list[Use]:
    def normalized() -> Tensor:
        x: Tensor = single(node._saved_input.detach())
        if node._saved_training:
            mean, rstd = node._saved_result1, node._saved_result2
        else:
            mean, rstd = node._saved_running_mean, (node._saved_running_var.double() + node._saved_eps).rsqrt()
        mean, rstd = (t.detach().to(x.dtype).reshape(_per_channel(node)) for t in (mean, rstd))
        normal: Tensor = (x - mean) * rstd
        return normal

    return _scale_and_shift(graph, node, _per_channel(node), normalized)


def _per_channel(node: Any) -> tuple[int, ...]:
    shape = out_shape(node)
    return (shape[1], *[1] * (len(shape) - 2))


def _scale_and_shift(graph: Graph, node: Any, shape: tuple[int, ...], normalized: Saved) -> list[Use]:
    weight = _broadcast(graph, node, 1, shape, saved="_saved_input", factor=normalized)
    return weight + _broadcast(graph, node, 2, shape)


RULES: dict[str, Callable[[Graph, Any], list[Use]]] = {
    "Addmm": _addmm,
    "Mm": _mm,
    "Bmm": _bmm,
    "Convolution": _convolution,
    "Embedding": _embedding,
    "Add": _add,
    "Sub": _add,
    "Mul": _mul,
    "Expand": _expand,
    "NativeLayerNorm": _layer_norm,
    "NativeGroupNorm": _group_norm,
    "NativeBatchNorm": _batch_norm,
}


def uses_of(graph: Graph, node: Any) -> list[Use]:
    """The uses of wanted parameters in one node; what it has kept must be there to be read."""
    rule = RULES.get(kind_of(node))
    if rule is None or node._input_metadata[0].is_nested_tensor:
        return []
    found = rule(graph, node)
    if any(use.hidden() for use in found):
        graph.hidden.add(node)
    return [use for use in found if not use.hidden()]
