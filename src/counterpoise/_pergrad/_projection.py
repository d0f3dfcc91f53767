r"""Random projections of per-example gradients: unbiased for inner products, the same numbers on every machine and in every process.

Signs are drawn from a generator keyed by (seed, name of the parameter), so batches and ranks that share the seed share the projection and
their sketches add. For a weight with :math:`g = \sum_t b_t \otimes a_t` the sign of entry (o, i) in column c is a product
:math:`u_{oc} w_{ic}`, hence :math:`S_c = \sum_t (b_t^\top u)_c (a_t^\top w)_c / \sqrt r` and the d_out x d_in matrix is never formed.
Any other parameter is hashed: each coordinate is added, with a sign, to one of the r columns (a count sketch).
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

__all__ = ["Projection"]


class Projection:
    """Draws and keeps the signs of one sketch of width ``r``."""

    def __init__(self, r: int, seed: int) -> None:
        self.r = r
        self.seed = seed
        self._kept: dict[tuple[str, int], Tensor] = {}

    def outer(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """Sketch (n, r) of :math:`\\sum_t b_t \\otimes a_t` for ``a`` (n, T, d_in) and ``b`` (n, T, d_out)."""
        u, w = self._signs(name + "/out", b.shape[-1], b), self._signs(name + "/in", a.shape[-1], a)
        sketch: Tensor = ((b @ u) * (a @ w)).sum(dim=1) / self.r**0.5
        return sketch

    def lookup(self, name: str, tokens: Tensor, b: Tensor, rows: int) -> Tensor:
        """Sketch (n, r) of a table's gradient, ``b`` (n, T, d) added to the rows ``tokens`` (n, T) of ``rows``."""
        u, w = self._signs(name + "/out", rows, b), self._signs(name + "/in", b.shape[-1], b)
        sketch: Tensor = (u[tokens] * (b @ w)).sum(dim=1) / self.r**0.5
        return sketch

    def dense(self, name: str, g: Tensor) -> Tensor:
        """Sketch (n, r) of rows ``g`` (n, N)."""
        size = g.shape[1]
        key = (name + "/hash", size)
        if key not in self._kept:
            generator = self._generator(name + "/hash")
            column = torch.randint(self.r, (size,), generator=generator)
            sign = torch.randint(2, (size,), generator=generator) * 2 - 1
            self._kept[key] = torch.stack([column, sign]).to(g.device)
        column, sign = self._kept[key]
        return g.new_zeros(len(g), self.r).index_add_(1, column, g * sign.to(g.dtype))

    def _signs(self, name: str, size: int, like: Tensor) -> Tensor:
        key = (name, size)
        if key not in self._kept:
            drawn = torch.randint(2, (size, self.r), generator=self._generator(name), dtype=torch.int8) * 2 - 1
            self._kept[key] = drawn.to(like.device, like.dtype)
        return self._kept[key]

    def _generator(self, name: str) -> torch.Generator:
        digest = hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=7).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big"))
