"""From the gradients of a parameter, group by group or as products of what examples have, to inner products of groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from ._uses import Contribution, Lookups, Products

__all__ = ["GroupGramian", "formed"]

AT_ONCE = 2**24  # numbers formed at once
BLOCK = 64  # rows that meet those before them
EXACT_SUM = 2**17  # products added up in single precision
CANCELLED = 4.0  # how much shorter than its rows, beyond chance, a sum may be before it is formed in double precision


class GroupGramian:
    """The inner products (m, m) of the gradients of m groups, in double precision, one parameter after the other.

    ``bytes`` is the most memory that gradients of groups, or products of pairs of rows, took at once.
    """

    def __init__(self, m: int, device: torch.device) -> None:
        self.value = torch.zeros(m, m, dtype=torch.float64, device=device)
        self.bytes = 0

    def add(self, parts: Sequence[Contribution], shape: torch.Size) -> None:
        """Add those of one parameter, whose gradients are the sums of ``parts``."""
        if not parts:
            return
        if all(isinstance(part, Products) for part in parts):
            products = cast(Sequence[Products], parts)
            n, m = sum(part.u.shape[0] for part in products), self.value.shape[0]
            # Multiplications for half of the pairs of rows, and for the gradients of all groups, whose memory has to be written and read.
            if 0.6 * n * n * (sum(products[0].sizes) + 2 * m + 30) < shape.numel() * (n + 16 * m + m * m):
                u, v = joined([part.u for part in products]), joined([part.v for part in products])
                self.value += self._pairwise(u, v, joined([part.members.matrix(torch.float64) for part in products], dim=1))
                return
        if all(isinstance(part, Lookups) for part in parts):
            parts, shape = _seen_only(cast(Sequence[Lookups], parts), shape)
        for rows in blocks(parts, shape, len(self.value)):
            self.bytes = max(self.bytes, rows.nbytes)
            for some in torch.split(rows.flatten(1), EXACT_SUM, dim=1):
                self.value += (some @ some.T).double()

    def _pairwise(self, u: Tensor, v: Tensor, member: Tensor) -> Tensor:
        """From the inner products of all pairs of rows; where a sum nearly cancels, in double precision."""
        total, squares = torch.zeros_like(self.value), []
        step = max(min(BLOCK if u.device.type == "cpu" else 16 * BLOCK, AT_ONCE // u.shape[0]), 1)
        for low in range(0, u.shape[0], step):
            high = min(low + step, u.shape[0])
            products = (u[low:high] @ u[:high].T).mul_(v[low:high] @ v[:high].T)
            self.bytes = max(self.bytes, 2 * products.nbytes)
            squares.append(products.diagonal(low).double())
            products[:, low:] *= 0.5  # these pairs are here twice, the others once
            half = member[:, low:high] @ (products.double() @ member[:, :high].T)
            total += half + half.T
        if u.dtype != torch.float64:
            # n rows with nothing in common add up to sqrt(n) times the length of one.
            chance = member @ joined(squares)
            if bool((total.diagonal() * CANCELLED**2 < chance).any()):
                return self._pairwise(u.double(), v.double(), member)
        return total


def formed(part: Contribution, shape: torch.Size, m: int) -> Tensor:
    """The gradients (m, \\*shape) of the groups."""
    return joined(list(blocks([part], shape, m)), dim=1).reshape(m, *shape)


def blocks(parts: Sequence[Contribution], shape: torch.Size, m: int) -> Iterator[Tensor]:
    """The gradients (m, p, q) of the groups by a parameter with p rows of q entries, some rows at a time."""
    p, q = (shape[0], shape[1:].numel()) if shape else (1, 1)
    step = max(min(AT_ONCE // max(m * q, 1), p), 1) if all(part.splits for part in parts) else p
    for low in range(0, p, max(step, 1)):
        rows = parts[0].values.new_zeros(m, min(step, p - low), q)
        for part in parts:
            part.add_to(rows, low, low + rows.shape[1])
        yield rows


def joined(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=dim)


def _seen_only(parts: Sequence[Lookups], shape: torch.Size) -> tuple[list[Contribution], torch.Size]:
    """The same for a table of the entries that occur, numbered anew."""
    tokens, numbers = torch.unique(joined([part.tokens for part in parts]), return_inverse=True)
    own = numbers.split([len(part.tokens) for part in parts])
    return [Lookups(at, part.v, part.members) for at, part in zip(own, parts, strict=True)], torch.Size((len(tokens), *shape[1:]))
