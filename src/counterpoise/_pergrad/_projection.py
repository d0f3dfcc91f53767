r"""Random projections of per-example gradients: unbiased for inner products, the same numbers on every machine and in every process.

A count sketch: every coordinate is added, with a random sign, to one of r columns, so
:math:`E \langle S_i, S_j \rangle = \langle g_i, g_j \rangle`, with a variance of about :math:`2 \|g_i\|^2 \|g_j\|^2 / r`. For a matrix
the column of entry (o, i) is :math:`h(o) + h'(i) \bmod r` and its sign :math:`s(o) s'(i)`. The sketch of an outer product
:math:`b \otimes a` is then the circular convolution of the sketches of b and of a (Pham and Pagh 2013), a product of Fourier transforms,
and the matrix is never formed; where it is formed, adding up its entries gives the same numbers.

Columns and signs are drawn from generators keyed by (seed, name of the parameter): batches and processes that share the seed share the
projection, and the sketches of all parameters add up to one of the whole gradient.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

__all__ = ["Projection", "with_lengths"]

MOST = 2**22  # entries of a matrix of signs


def with_lengths(S: Tensor, norms_sq: Tensor) -> Tensor:
    """Sketches (n, r) with the exact lengths of what they are sketches of, squared in ``norms_sq`` (n,)."""
    length = torch.linalg.vector_norm(S.double(), dim=1)
    factor = torch.where(length > 0, norms_sq.sqrt() / length.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    return S * factor[:, None].to(S.dtype)


class Projection:
    """Draws and keeps the columns and signs of one sketch of width ``r``."""

    def __init__(self, r: int, seed: int) -> None:
        self.r = r
        self.seed = seed
        self._hashes: dict[tuple[str, int, torch.device], tuple[Tensor, Tensor]] = {}
        self._matrices: dict[tuple[str, int, torch.device, torch.dtype], Tensor] = {}
        self._entries: dict[tuple[str, torch.device], tuple[Tensor, Tensor]] = {}

    def outer(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """Sketch (n, r) of :math:`\\sum_t b_t \\otimes a_t` for ``a`` (n, T, d_in) and ``b`` (n, T, d_out)."""
        left = torch.fft.rfft(self._sketched(name + "/out", b))
        right = torch.fft.rfft(self._sketched(name + "/in", a))
        sketch: Tensor = torch.fft.irfft((left * right).sum(dim=1), n=self.r)
        return sketch

    def lookup(self, name: str, tokens: Tensor, b: Tensor, rows: int) -> Tensor:
        """Sketch (n, r) of a table's gradient, ``b`` (n, T, d) added to the rows ``tokens`` (n, T) of ``rows``."""
        column, sign = self._hash(name + "/out", rows, b.device)
        inner, inner_sign = self._hash(name + "/in", b.shape[-1], b.device)
        at = (column[tokens][..., None] + inner) % self.r
        signed = b * sign[tokens][..., None].to(b.dtype) * inner_sign.to(b.dtype)
        return b.new_zeros(len(b), self.r).scatter_add_(1, at.flatten(1), signed.flatten(1))

    def dense(self, name: str, g: Tensor, rows: int) -> Tensor:
        """Sketch (n, r) of ``g`` (n, N), whose N entries are a matrix of ``rows`` rows."""
        if self._by_products(g.device, g.shape[1] // rows):
            return self._dense_by_products(name, g, rows)
        key = (name, g.device)
        if key not in self._entries:
            column, sign = self._hash(name + "/out", rows, g.device)
            inner, inner_sign = self._hash(name + "/in", g.shape[1] // rows, g.device)
            self._entries[key] = (((column[:, None] + inner) % self.r).flatten(), (sign[:, None] * inner_sign).flatten())
        column, sign = self._entries[key]
        return g.new_zeros(len(g), self.r).scatter_add_(1, column.expand_as(g), g * sign.to(g.dtype))

    def _dense_by_products(self, name: str, g: Tensor, rows: int) -> Tensor:
        """The same numbers: each row of the matrix is sketched by a product, and turned around by its own column."""
        column, sign = self._hash(name + "/out", rows, g.device)
        sketched = self._product(name + "/in", g.reshape(len(g), rows, -1))
        before = (torch.arange(self.r, device=g.device) - column[:, None]) % self.r
        return torch.einsum("nor,o->nr", sketched.gather(2, before.expand_as(sketched)), sign.to(g.dtype))

    def _product(self, name: str, x: Tensor) -> Tensor:
        """(..., r) of (..., d), by a matrix of signs (d, r)."""
        key = (name, x.shape[-1], x.device, x.dtype)
        if key not in self._matrices:
            column, sign = self._hash(name, x.shape[-1], x.device)
            matrix = x.new_zeros(len(column), self.r)
            matrix[torch.arange(len(column), device=x.device), column] = sign.to(x.dtype)
            self._matrices[key] = matrix
        return x @ self._matrices[key]

    def _by_products(self, device: torch.device, width: int) -> bool:
        """A GPU adds to a few columns one entry after the other, and multiplies at once."""
        return device.type != "cpu" and self.r <= width <= MOST // self.r

    def _sketched(self, name: str, x: Tensor) -> Tensor:
        """(n, T, r) of (n, T, d)"""
        if self._by_products(x.device, x.shape[-1]):
            return self._product(name, x)
        column, sign = self._hash(name, x.shape[-1], x.device)
        return x.new_zeros(*x.shape[:-1], self.r).scatter_add_(-1, column.expand_as(x), x * sign.to(x.dtype))

    def _hash(self, name: str, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Columns and signs (size,), drawn once, on the CPU, so that every device has the same."""
        key = (name, size, device)
        if key not in self._hashes:
            digest = hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=7).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
            column = torch.randint(self.r, (size,), generator=generator)
            sign = torch.randint(2, (size,), generator=generator, dtype=torch.int8) * 2 - 1
            self._hashes[key] = (column.to(device), sign.to(device))
        return self._hashes[key]
