"""Where the rules of the layers hand in what they found about one batch: norms, group sums, sketches, Gramian, inner products."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ._projection import Projection

__all__ = ["Collector", "ParameterSpace"]

SMALL = 1024  # entries of a parameter up to which one product for all groups costs less than a sum for each
WAITING = 2**18  # numbers of small gradients that are put off


class ParameterSpace:
    """The parameters that are measured, one after the other in P columns: names, tensors, and the slice of columns that each takes."""

    def __init__(self, names: Sequence[str], tensors: Sequence[Tensor]) -> None:
        self.names = tuple(names)
        self.tensors = tuple(tensors)
        self.place = {id(tensor): i for i, tensor in enumerate(self.tensors)}
        sizes = [tensor.numel() * (2 if tensor.is_complex() else 1) for tensor in self.tensors]
        ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
        self.slices = tuple(slice(start, end) for start, end in pairwise(ends))
        self.total: int = ends[-1]

    @property
    def dtype(self) -> torch.dtype:
        """What sums are kept in: float64 if any parameter is, else float32."""
        return torch.float64 if any(tensor.dtype == torch.float64 for tensor in self.tensors) else torch.float32

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device

    def zeros(self, rows: int) -> Tensor:
        """(rows, P); on a CPU its pages take memory when they are written to, which most of an embedding's never are."""
        if self.device.type != "cpu":
            return torch.zeros(rows, self.total, dtype=self.dtype, device=self.device)
        return torch.from_numpy(np.zeros((rows, self.total), dtype=np.float64 if self.dtype == torch.float64 else np.float32))


class Collector:
    """Sums over one batch of n examples; ``ids`` (n,) are rows 0..G-1 of ``sums``.

    Where the batch is sorted by group, a group is a slice of it, and its sum reads each gradient once, while it is in the cache.

    Every method takes the gradients of one parameter, given by its place in the space. A norm is not additive, so an example's gradient of
    one parameter must come in one call, with the contributions of all its uses added up.
    """

    def __init__(
        self,
        space: ParameterSpace,
        ids: Tensor,
        n_groups: int,
        *,
        sums: Tensor | None = None,
        projection: Projection | None = None,
        gramian: bool = False,
        direction: Tensor | None = None,
    ) -> None:
        self.space = space
        self.ids = ids.to(space.device)
        self.n = n = len(ids)
        self.sums = sums
        self.projection = projection
        self.direction = direction
        self.norms_sq = torch.zeros(n, len(space.names), dtype=torch.float64, device=space.device)
        self.S = torch.zeros(n, projection.r, dtype=space.dtype, device=space.device) if projection else None
        self.along = torch.zeros(n, dtype=torch.float64, device=space.device) if direction is not None else None
        self.gramian = torch.zeros(n, n, dtype=torch.float64, device=space.device) if gramian else None
        self.seen: set[int] = set()
        self._n_groups = n_groups
        self._membership: Tensor | None = None
        counts = torch.bincount(self.ids, minlength=n_groups)
        self._segments: list[tuple[int, int, int]] | None = None
        if bool((self.ids[1:] >= self.ids[:-1]).all()):
            ends = counts.cumsum(0).tolist()
            self._segments = [(k, start, end) for k, (start, end) in enumerate(pairwise([0, *ends])) if end > start]
        else:
            self._members = torch.split(torch.argsort(self.ids, stable=True), counts.tolist())
        self._waiting: list[tuple[int, Tensor]] = []
        self._numbers = 0  # that wait
        self._parts: dict[int, list[tuple[int, Tensor]]] = {}

    def dense(self, place: int, g: Tensor, rows: slice) -> None:
        """Gradients ``g`` (c, N) of the examples ``rows`` themselves."""
        self.seen.add(place)
        if g.shape[1] > SMALL or len(g) < self.n:
            self._add(place, g, rows)
            return
        # Small ones are put off and added in a row: between the passes of two layers nothing of this would be in the cache.
        self._waiting.append((place, g))
        self._numbers += g.numel()
        if self._numbers > WAITING:
            self._catch_up()

    def _catch_up(self) -> None:
        for place, g in self._waiting:
            self._add(place, g, slice(0, self.n))
        self._waiting.clear()
        self._numbers = 0

    def _add(self, place: int, g: Tensor, rows: slice) -> None:
        columns = self.space.slices[place]
        self.norms_sq[rows, place] = torch.linalg.vector_norm(g, dim=1).double().square()
        if self.sums is not None and self._segments is None:
            self.sums[:, columns].index_add_(0, self.ids[rows], g.to(self.sums.dtype))
        elif self.sums is not None and g.shape[1] <= SMALL:
            member = self._member(g.dtype)[:, rows]
            self.sums[:, columns].add_(member @ g)
        elif self.sums is not None:
            for k, part in self._within(rows):
                self.sums[k, columns].add_(g[part].sum(dim=0))
        if self.S is not None and self.projection is not None:
            self.S[rows] += self.projection.dense(self.space.names[place], g, self._matrix_rows(place, g.shape[1]))
        if self.along is not None and self.direction is not None:
            self.along[rows] += (g @ self.direction[columns].to(g.dtype)).double()
        if self.gramian is not None:
            self._parts.setdefault(place, []).append((rows.start, g))

    def _member(self, dtype: torch.dtype) -> Tensor:
        """(G, n): which examples are in which group."""
        if self._membership is None or self._membership.dtype != dtype:
            groups = torch.arange(self._n_groups, device=self.ids.device)
            self._membership = (self.ids == groups[:, None]).to(dtype)
        return self._membership

    def outer(self, place: int, a: Tensor, b: Tensor, rows: slice) -> None:
        r"""Gradients :math:`\sum_t b_{it} \otimes a_{it}` of ``rows``, from ``a`` (c, T, d_in) and ``b`` (c, T, d_out), not formed."""
        self.seen.add(place)
        if a.shape[1] == 1:
            squares = torch.linalg.vecdot(a, a).double() * torch.linalg.vecdot(b, b).double()
            self.norms_sq[rows, place] = squares[:, 0]
        else:
            self.norms_sq[rows, place] = ((a @ a.mT) * (b @ b.mT)).sum(dim=(1, 2)).double().clamp(min=0)
        self._sum_products(place, a, b, rows)
        if self.S is not None and self.projection is not None:
            self.S[rows] += self.projection.outer(self.space.names[place], a, b)
        if self.along is not None and self.direction is not None:
            matrix = self.direction[self.space.slices[place]].to(a.dtype).view(b.shape[2], a.shape[2])
            self.along[rows] += torch.linalg.vecdot(b @ matrix, a).sum(dim=1).double()
        if self.gramian is not None:
            if a.shape[1] == 1 and len(a) == self.n:
                self.gramian += ((a[:, 0] @ a[:, 0].T) * (b[:, 0] @ b[:, 0].T)).double()
            else:
                self._parts.setdefault(place, []).append((rows.start, torch.bmm(b.mT, a).flatten(1)))

    def _matrix_rows(self, place: int, size: int) -> int:
        """Rows of the matrix that a parameter is for the projection: its first dimension; 1 for vectors and complex numbers."""
        shape = self.space.tensors[place].shape
        return shape[0] if len(shape) > 1 and shape.numel() == size else 1

    def _sum_products(self, place: int, a: Tensor, b: Tensor, rows: slice) -> None:
        """One product per group, together as much work as the ordinary gradient of the weight."""
        if self.sums is None:
            return
        for k, part in self._within(rows):
            target = self.sums[k, self.space.slices[place]].view(b.shape[2], a.shape[2])
            target.addmm_(b[part].reshape(-1, b.shape[2]).T.to(target.dtype), a[part].reshape(-1, a.shape[2]).to(target.dtype))

    def _within(self, rows: slice) -> Iterator[tuple[int, slice | Tensor]]:
        """The groups among ``rows``, each with its part of them."""
        if self._segments is None:
            for k, members in enumerate(self._members):
                here = members[(members >= rows.start) & (members < rows.stop)] - rows.start
                if len(here):
                    yield k, here
            return
        for k, start, end in self._segments:
            if start < rows.stop and end > rows.start:
                yield k, slice(max(start - rows.start, 0), end - rows.start)

    def finish(self) -> None:
        """What was put off, and the inner products between the examples of what came in parts."""
        self._catch_up()
        if self.gramian is not None:
            for parts in self._parts.values():
                g = torch.cat([part for _, part in sorted(parts, key=lambda part: part[0])])
                self.gramian += (g @ g.T).double()
        self._parts.clear()
