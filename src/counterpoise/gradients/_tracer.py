r"""What is kept of gradients that are too long to be kept: sums of their entries with random signs.

Entry j of a row is multiplied by a sign :math:`\sigma_j = \pm 1` and added to column :math:`j \bmod s`, so that
:math:`E \langle S_i, S_k \rangle = \langle g_i, g_k \rangle`, with an error of about :math:`|g_i| |g_k| \sqrt{2 / s}`. It is linear:
sketches of micro-batches and of processes add up to the sketch of the sum. Rows of no more than s entries are kept as they are, and exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from counterpoise._pergrad import with_lengths

__all__ = ["SKETCH_DIM", "Tracer"]

SKETCH_DIM = 4096
AT_ONCE = {"cpu": 2**18, "other": 2**23}  # entries multiplied by their signs at once
EXACT = 2**16  # entries up to which rows are kept whole between steps


class Tracer:
    """Sketches of width ``dim`` of rows that come one after the other, in the pieces that belong to the parameters.

    Signs are drawn once from (seed, number of the parameter) and kept as bytes, a quarter of the memory of a gradient in single precision.
    """

    def __init__(self, dim: int = SKETCH_DIM, seed: int = 0) -> None:
        self.dim = dim
        self.seed = seed
        self._signs: dict[tuple[int, int, torch.device], Tensor] = {}

    def of_row(self, parts: Sequence[Tensor | None], sizes: Sequence[int], device: torch.device) -> Tensor:
        """The sketch (dim,) of one row given as its parts, in single precision at least; None is a part of zeros.

        A row of at most ``dim`` entries is returned whole, padded with zeros.
        """
        return self._of(1, [None if part is None else part.reshape(1, -1) for part in parts], sizes, device)[0]

    def of_rows(self, rows: Sequence[Tensor], norms_sq: Tensor | None = None) -> Tensor:
        """Rows (m, n_p) of all parameters: whole up to 2**16 entries, else sketches (m, dim) with the squared lengths ``norms_sq``."""
        sizes = [part.shape[1] for part in rows]
        if sum(sizes) <= max(EXACT, self.dim):
            return torch.cat([part.detach() for part in rows], dim=1)
        sketches = self._of(len(rows[0]), [part.detach() for part in rows], sizes, rows[0].device)
        return sketches if norms_sq is None else with_lengths(sketches, norms_sq)

    def _of(self, m: int, parts: Sequence[Tensor | None], sizes: Sequence[int], device: torch.device) -> Tensor:
        """Sketches (m, dim) of rows in parts (m, n_p)."""
        dtype = torch.float64 if any(part is not None and part.dtype == torch.float64 for part in parts) else torch.float32
        sketch = torch.zeros(m, self.dim, dtype=dtype, device=device)
        start, whole = 0, sum(sizes) <= self.dim
        for slot, (part, size) in enumerate(zip(parts, sizes, strict=True)):
            if part is not None and size:
                if whole:
                    sketch[:, start : start + size] = part
                else:
                    self._add(sketch, part, slot, start)
            start += size
        return sketch

    def _add(self, sketch: Tensor, part: Tensor, slot: int, start: int) -> None:
        """Add the entries of ``part`` (m, n_p) with their signs, the first of them to column ``start`` mod dim."""
        m, size = part.shape
        signs = self._signs_of(slot, size, part.device)
        at = start % self.dim
        head = min(self.dim - at, size) if at else 0
        if head:
            sketch[:, at : at + head] += part[:, :head] * signs[:head]
        whole = head + (size - head) // self.dim * self.dim
        most = AT_ONCE["cpu" if part.device.type == "cpu" else "other"]
        step = max(most // (m * self.dim), 1) * self.dim
        for first in range(head, whole, step):
            block = slice(first, min(first + step, whole))
            signed = part[:, block].to(sketch.dtype) * signs[block].to(sketch.dtype)
            sketch += signed.view(m, -1, self.dim).sum(dim=1)
        if whole < size:
            sketch[:, : size - whole] += part[:, whole:] * signs[whole:]

    def _signs_of(self, slot: int, size: int, device: torch.device) -> Tensor:
        key = (slot, size, device)
        if key not in self._signs:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + slot)
            self._signs[key] = (torch.randint(2, (size,), generator=generator, dtype=torch.int8) * 2 - 1).to(device)
        return self._signs[key]
