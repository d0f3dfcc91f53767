r"""Which rows of a gradient belong to which example: learned from two backward passes, never assumed.

The losses :math:`\ell_b` are summed once as they are, and once with a coefficient :math:`c_b` each, all of them different. If row r
depends on the loss of example e alone, the second pass gives :math:`c_e` times the first; if it depends on several, it gives something
else. Rows of one example are looked for at every regular distance (examples first, positions first, ...).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Finding", "Looks", "coefficients", "judge", "tolerance_of"]

DIRECTIONS = 4  # rows are compared along this many random directions
SAMPLE = 2048  # rows by which other layouts are told from the one that fits
COUPLED = 0.7  # of what the best single coefficient leaves: below, rows follow an example, with something of the others in them


def tolerance_of(half: bool, *dtypes: torch.dtype, device: str) -> float:
    """How far a row may be from c_e times its counterpart, relative to its length: rounding, many layers deep."""
    if half:
        return 0.15
    if all(dtype == torch.float64 for dtype in dtypes):
        return 1e-7
    return 1e-3 if device == "cpu" else 5e-3  # where float32 may be multiplied in less


def coefficients(b: int, like: Tensor) -> Tensor:
    """Different numbers in [0.5, 1] for b examples, in an order without a pattern; the same in every process.

    None is above 1, so that half precision overflows in neither pass if not in both.
    """
    order = torch.randperm(b, generator=torch.Generator().manual_seed(b))
    return (0.5 + 0.5 * order.double() / max(b - 1, 1)).to(like)


@dataclass(frozen=True)
class Finding:
    """``stride``: rows from one example to the next, None if rows are not of one example each. ``known``: also for the next batch."""

    stride: int | None
    known: bool
    coupled: bool = False


class Looks:
    """Rows (R, F) along a few random directions, the same ones in both passes."""

    def __init__(self) -> None:
        self._directions: dict[int, Tensor] = {}

    def __call__(self, rows: Tensor) -> Tensor:
        size = rows.shape[1]
        if size not in self._directions:
            generator = torch.Generator().manual_seed(size)
            self._directions[size] = torch.randn(size, DIRECTIONS, generator=generator) / DIRECTIONS**0.5
        rows = rows if rows.dtype == torch.float64 else rows.float()
        return (rows @ self._directions[size].to(rows)).double()


def judge(plain: Tensor, weighted: Tensor, lengths: Tensor, c: Tensor, tolerance: float) -> Finding:
    """From the rows (R, k) of both passes as :class:`Looks` saw them, and the lengths (R,) of the plain ones."""
    b, n_rows = len(c), len(plain)
    if b == 1:
        return Finding(n_rows, True)
    finite = torch.isfinite(plain).all(dim=1) & torch.isfinite(weighted).all(dim=1) & torch.isfinite(lengths)
    longest = lengths.where(finite, 0.0).max()
    telling = finite & (lengths > tolerance * longest)
    if not bool(telling.any()):  # of nothing but zeros, or of a pass that has failed, any layout will do
        return Finding(n_rows // b if not bool(torch.isfinite(lengths).all()) or not bool(lengths.any()) else None, False)
    rows = torch.arange(n_rows, device=plain.device)

    def example(stride: int, some: Tensor) -> Tensor:
        return some.div(stride, rounding_mode="floor") % b

    def off(stride: int, some: Tensor) -> Tensor:
        """How far each of these rows is from that of the example it would belong to."""
        lengths: Tensor = torch.linalg.vector_norm(weighted[some] - c[example(stride, some)][:, None] * plain[some], dim=1)
        return lengths

    present = rows[telling]
    some = present[:: len(present) // SAMPLE + 1]
    strides = [n_rows // b, *(s for s in _divisors(n_rows // b) if s != n_rows // b)]
    misses = {stride: float(off(stride, some).square().sum().sqrt()) for stride in strides}
    scale = float(lengths[some].square().sum().sqrt())
    fitting = [stride for stride, miss in misses.items() if miss <= tolerance / 3 * scale]
    whole = rows[finite]
    fitting = [s for s in fitting if bool((off(s, whole) <= tolerance * lengths[whole] + 0.1 * tolerance * longest).all())]
    if fitting:
        best = fitting[0]
        owners = example(best, some)
        if any(bool((example(other, some) != owners).any()) for other in fitting[1:]):
            return Finding(None, False)  # several that disagree: too little to tell them apart
        return Finding(best, len(fitting) == 1 and len(torch.unique(owners)) > 1)
    alike = float((plain[some] * weighted[some]).sum() / plain[some].square().sum())
    nothing = float((weighted[some] - alike * plain[some]).square().sum().sqrt())
    miss = min(misses.values())
    return Finding(None, True, coupled=miss > tolerance * scale and miss < COUPLED * nothing)


def _divisors(n: int) -> list[int]:
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({d for s in small for d in (s, n // s)})
