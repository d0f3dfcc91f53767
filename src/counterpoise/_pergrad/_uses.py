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

from ._collect import Collector

__all__ = ["ConvolutionUse", "GivenRows", "GivenUse", "LocalUse", "LookupUse", "OuterUse", "Use", "hand_in_together"]

WIDE = 8  # places in a row of a convolution's output from which windows are copied
CHUNK_BYTES = 4 * 2**20  # of gradients and patches held at once; what fits the cache is read twice for the price of once


class Use:
    """One call of a layer. ``places`` are the parameters it has a gradient for; ``dense`` gives them for some examples."""

    places: tuple[int, ...] = ()
    row_bytes = 1

    def dense(self, rows: slice) -> dict[int, Tensor]:
        """(c, N) for each place."""
        raise NotImplementedError

    def hand_in(self, collector: Collector) -> None:
        for rows in chunks(collector.n, self.row_bytes):
            for place, g in self.dense(rows).items():
                collector.dense(place, g, rows)


def chunks(n: int, row_bytes: int) -> Iterator[slice]:
    """Slices of n rows of about CHUNK_BYTES each."""
    size = max(1, min(n, CHUNK_BYTES // max(1, row_bytes)))
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def hand_in_together(uses: list[Use], collector: Collector) -> None:
    """Several uses of the same parameters (tied weights, a layer called twice): an example's gradient is the sum over the uses."""
    for rows in chunks(collector.n, sum(use.row_bytes for use in uses)):
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
        self.form = positions > 1 and positions * (d_in + d_out) >= d_in * d_out
        self.row_bytes = a.element_size() * (d_in * d_out if self.form else positions * (d_in + d_out + positions))

    def dense(self, rows: slice) -> dict[int, Tensor]:
        found = {}
        if self.weight is not None:
            found[self.weight] = torch.bmm(self.b[rows].mT, self.a[rows]).flatten(1)
        if self.bias is not None:
            found[self.bias] = self.bias_of[rows].sum(dim=1)
        return found

    def hand_in(self, collector: Collector) -> None:
        if self.weight is not None:
            if self.a.shape[1] == 1:
                collector.outer(self.weight, self.a, self.b, slice(0, collector.n))
            elif self.form:
                for rows in chunks(collector.n, self.row_bytes):
                    collector.dense(self.weight, torch.bmm(self.b[rows].mT, self.a[rows]).flatten(1), rows)
            else:
                for rows in chunks(collector.n, self.row_bytes):
                    collector.outer(self.weight, self.a[rows], self.b[rows], rows)
        if self.bias is not None:
            collector.dense(self.bias, self.bias_of.sum(dim=1), slice(0, collector.n))


class ConvolutionUse(Use):
    """A convolution: input (n, C_in, ...), ``b`` (n, C_out, ...); ``patches`` turns inputs into (c, C_in * kernel, L)."""

    def __init__(
        self, weight: int | None, bias: int | None, a: Tensor, b: Tensor, groups: int, patches: Callable[[Tensor], Tensor], kernel: int
    ) -> None:
        self.weight, self.bias, self.groups, self.patches = weight, bias, groups, patches
        self.places = tuple(place for place in (weight, bias) if place is not None)
        self.a, self.b = a, b.flatten(2)
        columns = a.shape[1] * kernel
        self.row_bytes = a.element_size() * (columns * self.b.shape[2] + columns // groups * b.shape[1])

    def _matrix(self, x: Tensor, b: Tensor) -> Tensor:
        """(c, C_out * C_in / groups * kernel)"""
        c, g = len(x), self.groups
        product = torch.bmm(b.reshape(c * g, b.shape[1] // g, -1), x.reshape(c * g, x.shape[1] // g, -1).mT)
        return product.reshape(c, -1)

    def dense(self, rows: slice) -> dict[int, Tensor]:
        found = {}
        if self.weight is not None:
            found[self.weight] = self._matrix(self.patches(self.a[rows]), self.b[rows])
        if self.bias is not None:
            found[self.bias] = self.b[rows].sum(dim=2)
        return found

    def hand_in(self, collector: Collector) -> None:
        if self.weight is not None:
            for rows in chunks(collector.n, self.row_bytes):
                collector.dense(self.weight, self._matrix(self.patches(self.a[rows]), self.b[rows]), rows)
        if self.bias is not None:
            collector.dense(self.bias, self.b.sum(dim=2), slice(0, collector.n))


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


def patches_of(layer: Any) -> tuple[Callable[[Tensor], Tensor], int]:
    """How a convolution (1d or 2d) cuts its input into patches (c, C_in * kernel, L), and the kernel's size."""
    kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    pads: list[int] = list(layer._reversed_padding_repeated_twice)  # (left, right) of the last dimension first
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    flat = len(kernel) == 1
    symmetric = mode == "constant" and all(pads[i] == pads[i + 1] for i in range(0, len(pads), 2))

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

    return cut, int(torch.Size(kernel).numel())
