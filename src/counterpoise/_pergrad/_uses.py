r"""From what a layer saw and the gradient that came back to the gradients of its parameters, example by example.

A *use* is one call of a layer in a forward pass: its input A, and the gradient B of the summed loss by its output. For a linear map the
gradient of example i's weight is :math:`\sum_t B_{it} \otimes A_{it}` over its positions t; a convolution is one on unfolded patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._collect import SMALL, Collector

__all__ = ["ConvolutionUse", "GivenRows", "GivenUse", "LocalUse", "LookupUse", "OuterUse", "Use", "hand_in_together"]

WIDE = 8  # places in a row of a convolution's output from which windows are copied
GROUPED = 2**16  # entries of a weight up to which a convolution of groups is fast: it copies them once more
# Of gradients and patches held at once. On a CPU what fits the cache is read twice for the price of once; a GPU wants much to do at once.
CHUNK_BYTES = {"cpu": 4 * 2**20, "other": 256 * 2**20}


class Use:
    """One call of a layer. ``places`` are the parameters it has a gradient for; ``dense`` gives them for some examples."""

    places: tuple[int, ...] = ()
    row_bytes = 1

    def dense(self, rows: slice) -> dict[int, Tensor]:
        """(c, N) for each place."""
        raise NotImplementedError

    def hand_in(self, collector: Collector) -> None:
        for rows in chunks(collector, self.row_bytes):
            for place, g in self.dense(rows).items():
                collector.dense(place, g, rows)


def chunks(collector: Collector, row_bytes: int) -> Iterator[slice]:
    """Slices of the rows of at most about CHUNK_BYTES, of equal length: a kernel that is made for one shape serves them all."""
    n, most = collector.n, CHUNK_BYTES["cpu" if collector.space.device.type == "cpu" else "other"]
    pieces = max(1, -(-n // max(1, most // max(1, row_bytes))))
    size = max(1, -(-n // pieces))
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def hand_in_together(uses: list[Use], collector: Collector) -> None:
    """Several uses of the same parameters (tied weights, a layer called twice): an example's gradient is the sum over the uses."""
    for rows in chunks(collector, sum(use.row_bytes for use in uses)):
        total: dict[int, Tensor] = {}
        for use in uses:
            for place, g in use.dense(rows).items():
                total[place] = total[place] + g if place in total else g
        for place, g in total.items():
            collector.dense(place, g, rows)


class OuterUse(Use):
    """A linear map: ``a`` (n, T, d_in) and ``b`` (n, T, d_out); ``transposed`` for weights stored as (d_in, d_out)."""

    def __init__(self, weight: int | None, bias: int | None, a: Tensor, b: Tensor, *, transposed: bool = False) -> None:
        self.weight, self.bias = weight, bias
        self.places = tuple(place for place in (weight, bias) if place is not None)
        self.a, self.b = (b, a) if transposed else (a, b)
        self.bias_of = b
        positions, d_in, d_out = a.shape[1], a.shape[2], b.shape[2]
        # Position by position costs T^2 (d_in + d_out) for the norm and forms nothing; the matrix costs T d_in d_out.
        self.form = d_in * d_out <= SMALL or (positions > 1 and positions * (d_in + d_out) >= d_in * d_out)
        self.row_bytes = a.element_size() * (d_in * d_out if self.form else positions * (d_in + d_out + positions))

    def _matrix(self, rows: slice) -> Tensor:
        """(c, d_out * d_in)"""
        a, b = self.a[rows], self.b[rows]
        return (b.mT * a if a.shape[1] == 1 else torch.bmm(b.mT, a)).flatten(1)

    def dense(self, rows: slice) -> dict[int, Tensor]:
        found = {}
        if self.weight is not None:
            found[self.weight] = self._matrix(rows)
        if self.bias is not None:
            found[self.bias] = self.bias_of[rows].sum(dim=1)
        return found

    def hand_in(self, collector: Collector) -> None:
        if self.weight is not None:
            if self.form:
                for rows in chunks(collector, self.row_bytes):
                    collector.dense(self.weight, self._matrix(rows), rows)
            elif self.a.shape[1] == 1:
                collector.outer(self.weight, self.a, self.b, slice(0, collector.n))
            else:
                for rows in chunks(collector, self.row_bytes):
                    collector.outer(self.weight, self.a[rows], self.b[rows], rows)
        if self.bias is not None:
            collector.dense(self.bias, self.bias_of.sum(dim=1), slice(0, collector.n))


class ConvolutionUse(Use):
    """A convolution: input ``a`` (n, C_in, ...) and ``b`` (n, C_out, ...)."""

    def __init__(self, layer: Any, weight: int | None, bias: int | None, a: Tensor, b: Tensor) -> None:
        self.weight, self.bias = weight, bias
        self.places = tuple(place for place in (weight, bias) if place is not None)
        self.a, self.b = a, b
        shape = layer.weight.shape
        if groups_are_faster(layer, a):
            self.matrix, numbers = by_groups(layer), shape.numel()
        else:
            self.matrix, numbers = by_patches(layer), shape.numel() + a.shape[1] * shape[2:].numel() * b.shape[2:].numel()
        self.row_bytes = a.element_size() * numbers

    def dense(self, rows: slice) -> dict[int, Tensor]:
        found = {}
        if self.weight is not None:
            found[self.weight] = self.matrix(self.a[rows], self.b[rows])
        if self.bias is not None:
            found[self.bias] = self.b[rows].flatten(2).sum(dim=2)
        return found

    def hand_in(self, collector: Collector) -> None:
        if self.weight is not None:
            for rows in chunks(collector, self.row_bytes):
                collector.dense(self.weight, self.matrix(self.a[rows], self.b[rows]), rows)
        if self.bias is not None:
            collector.dense(self.bias, self.b.flatten(2).sum(dim=2), slice(0, collector.n))


class LookupUse(Use):
    """A table of vectors: ``tokens`` (n, T) and ``b`` (n, T, d), zero where a position does not count."""

    def __init__(self, weight: int, tokens: Tensor, b: Tensor, shape: torch.Size) -> None:
        self.weight, self.tokens, self.b, self.shape = weight, tokens, b, shape
        self.places = (weight,)
        self.row_bytes = b.element_size() * shape.numel()

    def dense(self, rows: slice) -> dict[int, Tensor]:
        tokens, b = self.tokens[rows], self.b[rows]
        table = b.new_zeros(len(b), *self.shape)
        table.scatter_add_(1, tokens[:, :, None].expand_as(b), b)
        return {self.weight: table.flatten(1)}

    def hand_in(self, collector: Collector) -> None:
        if collector.gramian is not None:
            super().hand_in(collector)
            return
        n, rows = len(self.tokens), self.shape[0]
        collector.seen.add(self.weight)
        # Positions of one example that hold the same token share a row of the table.
        example = torch.arange(n, device=self.tokens.device)[:, None]
        distinct, inverse = torch.unique(example * rows + self.tokens, return_inverse=True)
        merged = self.b.new_zeros(len(distinct), self.b.shape[2]).index_add_(0, inverse.reshape(-1), self.b.reshape(-1, self.b.shape[2]))
        squares = torch.linalg.vecdot(merged, merged).double()
        collector.norms_sq[:, self.weight] = squares.new_zeros(n).index_add_(0, distinct // rows, squares)
        columns = collector.space.slices[self.weight]
        if collector.sums is not None:
            ids = collector.ids[distinct // rows]
            tables = collector.sums[:, columns]
            if tables.is_contiguous():
                tables.view(-1, self.shape[1]).index_add_(0, ids * rows + distinct % rows, merged.to(tables.dtype))
            else:
                for k in torch.unique(collector.ids).tolist():
                    own = ids == k
                    tables[k].view(self.shape).index_add_(0, distinct[own] % rows, merged[own].to(tables.dtype))
        if collector.S is not None and collector.projection is not None:
            collector.S += collector.projection.lookup(collector.space.names[self.weight], self.tokens, self.b, rows)
        if collector.along is not None and collector.direction is not None:
            table = collector.direction[columns].view(self.shape)
            inner = torch.linalg.vecdot(merged, table[distinct % rows].to(merged.dtype)).double()
            collector.along.index_add_(0, distinct // rows, inner)


class GivenUse(Use):
    """Small gradients that are simply there, (n, N) each."""

    def __init__(self, gradients: dict[int, Tensor]) -> None:
        self.gradients = gradients
        self.places = tuple(gradients)

    def dense(self, rows: slice) -> dict[int, Tensor]:
        return {place: g[rows] for place, g in self.gradients.items()}

    def hand_in(self, collector: Collector) -> None:
        for place, g in self.gradients.items():
            collector.dense(place, g, slice(0, collector.n))


class GivenRows(Use):
    """The gradients of one parameter, (c, ...) for the rows that are asked for."""

    def __init__(self, place: int, of: Callable[[slice], Tensor], row_bytes: int) -> None:
        self.places, self.of, self.row_bytes = (place,), of, row_bytes

    def dense(self, rows: slice) -> dict[int, Tensor]:
        return {self.places[0]: self.of(rows).flatten(1)}


class LocalUse(Use):
    """Any layer: its own backward, for some examples at once. ``pull`` gives (c, *shape) per place."""

    def __init__(self, places: tuple[int, ...], pull: Callable[[slice], dict[int, Tensor]], row_bytes: int) -> None:
        self.places, self.pull, self.row_bytes = places, pull, row_bytes

    def dense(self, rows: slice) -> dict[int, Tensor]:
        return {place: g.flatten(1) for place, g in self.pull(rows).items()}


Matrix = Callable[[Tensor, Tensor], Tensor]  # inputs (c, C_in, ...) and gradients of outputs (c, C_out, ...) to those of the weight (c, N)


def by_patches(layer: Any) -> Matrix:
    """One product per example and group of channels, with patches of the input."""
    cut, groups = patches_of(layer), int(layer.groups)

    def matrix(x: Tensor, b: Tensor) -> Tensor:
        c, patches = len(x) * groups, cut(x)
        b = b.reshape(c, b.shape[1] // groups, -1)
        patches = patches.reshape(c, patches.shape[1] // groups, -1)
        # The longer side first: with few columns up to twice as fast.
        product = torch.bmm(patches, b.mT).mT if patches.shape[1] < b.shape[1] else torch.bmm(b, patches.mT)
        return product.reshape(len(x), -1)

    return matrix


def by_groups(layer: Any) -> Matrix:
    """The weight's gradient of one convolution whose groups are the examples: oneDNN forms it without patches."""
    pads, mode, symmetric = _padding_of(layer)
    padding = [pads[2], pads[0]] if symmetric else [0, 0]

    def matrix(x: Tensor, b: Tensor) -> Tensor:
        c, shape = len(x), layer.weight.shape
        if not symmetric:
            x = F.pad(x, pads, mode=mode)
        _, gradient, _ = torch.ops.aten.convolution_backward(
            b.reshape(1, -1, *b.shape[2:]),
            x.reshape(1, -1, *x.shape[2:]),
            x.new_empty(c * shape[0], *shape[1:]),  # only its shape counts
            None,
            layer.stride,
            padding,
            layer.dilation,
            False,
            [0, 0],
            c * layer.groups,
            [False, True, False],
        )
        g: Tensor = gradient.reshape(c, -1)
        return g

    return matrix


def groups_are_faster(layer: Any, x: Tensor) -> bool:
    """Where :func:`by_groups` was measured to take 0.2 to 1.0 times as long as :func:`by_patches`; elsewhere it takes up to three times."""
    onednn: Any = torch.backends.mkldnn  # whose attributes are properties that type checkers do not see
    if x.device.type != "cpu" or x.dtype != torch.float32 or not (onednn.is_available() and onednn.enabled):
        return False
    shape = layer.weight.shape
    c_out, c_in, kernel = shape[0] // layer.groups, shape[1], shape[2:]
    in_vectors = torch.backends.cpu.get_cpu_capability().startswith("AVX") and (c_in % 8 == c_out % 8 == 0 or c_in == c_out == 1)
    return in_vectors and len(kernel) == 2 and max(kernel) > 1 and shape.numel() <= GROUPED


def _padding_of(layer: Any) -> tuple[list[int], str, bool]:
    """Of both sides of each dimension, the last one first; the mode of ``F.pad``; and whether a convolution's own zeros do the same."""
    pads: list[int] = list(layer._reversed_padding_repeated_twice)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return pads, mode, mode == "constant" and all(pads[i] == pads[i + 1] for i in range(0, len(pads), 2))


def patches_of(layer: Any) -> Callable[[Tensor], Tensor]:
    """How a convolution (1d or 2d) cuts its input into patches (c, C_in * kernel, L)."""
    kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    pads, mode, symmetric = _padding_of(layer)
    flat = len(kernel) == 1

    def cut(x: Tensor) -> Tensor:
        if all(k == 1 for k in kernel) and not any(pads) and not flat:
            return x[:, :, :: stride[0], :: stride[1]].flatten(2)
        width = (x.shape[-1] + pads[0] + pads[1] - dilation[-1] * (kernel[-1] - 1) - 1) // stride[-1] + 1
        if all(d == 1 for d in dilation) and width >= WIDE:
            # A copy of overlapping windows: up to ten times as fast as unfold where rows of the output are long.
            x = F.pad(x, pads, mode=mode) if any(pads) else x
            for i, (k, s) in enumerate(zip(kernel, stride, strict=True)):
                x = x.unfold(2 + i, k, s)
            n, channels, *rest = x.shape
            out, windows = rest[: len(kernel)], rest[len(kernel) :]
            order = (0, 1, *range(2 + len(out), 2 + len(rest)), *range(2, 2 + len(out)))
            return x.permute(order).reshape(n, channels * torch.Size(windows).numel(), -1)
        inner: int | tuple[int, ...] = 0
        if symmetric:
            inner = (0, pads[0]) if flat else (pads[2], pads[0])
        elif any(pads):
            x = F.pad(x, pads, mode=mode)
        if flat:
            return F.unfold(x[:, :, None], (1, *kernel), dilation=(1, *dilation), padding=inner, stride=(1, *stride))
        return F.unfold(x, kernel, dilation=dilation, padding=inner, stride=stride)

    return cut
