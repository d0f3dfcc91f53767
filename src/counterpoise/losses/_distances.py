r"""Distance covariance of one column with anything, without a matrix of n x n, value and gradient together.

With :math:`A_{ij} = |y_i - y_j|` and symmetric weights :math:`W` that do not depend on y, everything here has the form

.. math::
    F(y) = \sum_{i,j} A_{ij} W_{ij}, \qquad \frac{\partial F}{\partial y_k} = 2 S_k, \qquad
    S_k = \sum_j \operatorname{sign}(y_k - y_j) \, W_{kj} .

F is homogeneous of degree 1, so by Euler :math:`F = 2 \, y \cdot S`: the gradient is all that has to be computed, and S is a signed count.
It comes from

- cumulative counts after one sort, where W takes one value per pair of *cells* (rows that are equal in all attributes): O(n log n + n K);
- a stable partition of the ranks of z, bit by bit (a wavelet tree), where :math:`W_{kj}` is made of :math:`|z_k - z_j|`: O(n log n);
- rows of W in blocks, for everything else: O(n^2) time, O(n) memory per row of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Attribute", "Centering", "Form", "Points", "apart", "by_cells", "by_ranks", "collapse", "norm_of", "variance"]

MOST_CELLS = 2048  # whose matrices of K x K take 32 MiB each
BLOCK = 2**23  # numbers of a block of rows: 64 MiB in float64
CANCELED = 1e-10  # variance over the square of the largest distance below which half of the digits or more are lost
UNIT = 2**0.5  # distance between two levels in one-hot coding


class Form(NamedTuple):
    """A function of y: ``constant + y . gradient``, where the gradient (n,) is that of the function at y."""

    constant: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class Attribute:
    """One attribute of n rows: numbers (n, d) in float64, or the codes (n,) of levels, as far apart as their one-hot coding.

    ``scale`` multiplies its distances.
    """

    values: Tensor
    scale: Tensor | None = None

    @property
    def coded(self) -> bool:
        return not self.values.is_floating_point()

    def at(self, rows: Tensor | slice) -> Attribute:
        return Attribute(self.values[rows], self.scale)

    def distances(self, rows: slice) -> Tensor:
        """(rows, n)"""
        here = self.values[rows]
        if self.coded:
            found = UNIT * (here[:, None] != self.values[None]).to(torch.float64)
        elif here.shape[1] == 1:
            found = (here - self.values.T).abs()
        else:
            # The default of cdist subtracts squares, which leaves 1e-8 instead of 0 between equal rows.
            found = torch.cdist(here, self.values, compute_mode="donot_use_mm_for_euclid_dist")
        return found if self.scale is None else found * self.scale

    def largest(self) -> Tensor:
        """At least the largest distance between two rows, before scaling, and at most that times the root of the number of columns."""
        if self.coded:
            return torch.tensor(UNIT, dtype=torch.float64, device=self.values.device)
        found: Tensor = torch.linalg.vector_norm(self.values.amax(dim=0) - self.values.amin(dim=0))
        return found

    def codes(self) -> tuple[Tensor, int]:
        """Which rows are equal: codes (n,) in 0..K-1, and K."""
        return compress(self.values if self.coded else _hash(self.values))


@dataclass(frozen=True)
class Points:
    """Where the attributes put n rows: K different places, ``of`` (n,) the place of each row and ``count`` (K,) rows of each."""

    attributes: tuple[Attribute, ...]
    of: Tensor
    count: Tensor

    @property
    def n(self) -> int:
        return len(self.of)

    @property
    def collapsed(self) -> bool:
        return len(self.count) < len(self.of)


def collapse(attributes: Sequence[Attribute], enough: int | None = None) -> Points:
    """Rows that are equal in all attributes become one place, if that makes at most ``enough`` of them (by default, few enough to pay)."""
    n, device = len(attributes[0].values), attributes[0].values.device
    most = min(MOST_CELLS, max(1, n // 2)) if enough is None else enough
    codes, found = _places(attributes, most)
    if found > most:
        return apart(attributes)
    first = torch.zeros(found, dtype=torch.int64, device=device).scatter_(0, codes, torch.arange(n, device=device))
    places = tuple(attribute.at(first) for attribute in attributes)
    # Numbers were compared by a hash: rows of one place must be equal indeed.
    if not all(a.coded or bool((a.values == p.values[codes]).all()) for a, p in zip(attributes, places, strict=True)):
        return apart(attributes)
    return Points(places, codes, torch.bincount(codes, minlength=found).to(torch.float64))


def apart(attributes: Sequence[Attribute]) -> Points:
    """Every row a place of its own."""
    n, device = len(attributes[0].values), attributes[0].values.device
    return Points(tuple(attributes), torch.arange(n, device=device), torch.ones(n, dtype=torch.float64, device=device))


def _places(attributes: Sequence[Attribute], most: int) -> tuple[Tensor, int]:
    """Joint codes (n,) of the attributes and their number; given up as soon as there are more than ``most``."""
    if len(attributes[0].values) > 8 * most:  # continuous numbers show in a few rows, without sorting all
        codes, found = _places([attribute.at(slice(4 * most)) for attribute in attributes], most)
        if found > most:
            return codes, found
    codes, found = attributes[0].codes()
    for attribute in attributes[1:]:
        if found > most:
            break
        others, more = attribute.codes()
        codes, found = compress(codes * more + others)
    return codes, found


def compress(codes: Tensor) -> tuple[Tensor, int]:
    """The codes, or numbers, as 0..K-1 in their order, and K."""
    if codes.is_floating_point():
        distinct, inverse = torch.unique(codes, return_inverse=True)
        return inverse, len(distinct)
    low, high = (int(end) for end in torch.aminmax(codes))
    if high - low >= 4 * len(codes) + 64:
        distinct, inverse = torch.unique(codes, return_inverse=True)
        return inverse, len(distinct)
    shifted = codes.to(torch.int64) - low
    new = (torch.bincount(shifted) > 0).cumsum(0) - 1
    return new[shifted], int(new[-1]) + 1


def _hash(values: Tensor) -> Tensor:
    """One number per row (n,), equal for equal rows and hardly ever for others."""
    d = values.shape[1]
    if d == 1:
        return values[:, 0]
    # Multiples of an irrational number modulo 1 are spread evenly; sums of integers times them do not meet.
    weights = 0.5 + (torch.arange(1, d + 1, dtype=torch.float64, device=values.device) * 0.6180339887498949) % 1
    return (values * weights).sum(dim=1)


# ---- centering --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Centering:
    r"""Row term r (K,) and total term t of :math:`r_a + r_b - X_{ab} - t`, for a matrix X over places."""

    row: Tensor
    total: Tensor

    @classmethod
    def of(cls, sums: Tensor, count: Tensor, unbiased: bool) -> Centering:
        """From the sums over rows of X for one row of each place; ``unbiased`` leaves the diagonal out, as U-centering does."""
        n = count.sum()
        if unbiased:
            return cls(sums / (n - 2), (count @ sums) / ((n - 1) * (n - 2)))
        return cls(sums / n, (count @ sums) / n**2)

    def __call__(self, matrix: Tensor, rows: slice) -> Tensor:
        return self.row[rows, None] + self.row[None] - matrix - self.total


def norm_of(n: int, unbiased: bool) -> float:
    return float(n * (n - 3) if unbiased else n * n)


def _blocks(K: int, block: int | None) -> list[slice]:
    size = max(1, BLOCK // max(K, 1)) if block is None else block
    return [slice(start, min(start + size, K)) for start in range(0, K, size)]


def _once_if_small(rows_of: Callable[[slice], Tensor], blocks: list[slice]) -> Callable[[slice], Tensor]:
    """What fits into one block is computed once; else every pass computes it again."""
    if len(blocks) > 1:
        return rows_of
    whole = rows_of(blocks[0])
    return lambda rows: whole


def _own(matrix: Tensor, rows: slice) -> Tensor:
    """Entries of a block of rows on the diagonal of the whole matrix."""
    return torch.diagonal(matrix, offset=rows.start)


# ---- the function of y ------------------------------------------------------------------------------------------------------------------


def by_cells(
    y: Tensor, points: Points, spaces: Sequence[Sequence[int]], *, c: float | None, unbiased: bool, block: int | None = None
) -> Form:
    r"""Joint (``c``) or plain distance covariance (``c=None``, summed over the spaces) of y (n,) with spaces of attributes.

    A space is a list of attributes whose columns are put side by side. With :math:`T_{ij} = \prod_k (U_{ij}(s_k) + c) - c^q`, or
    :math:`\sum_k U_{ij}(s_k)`, the sum :math:`\sum U_{ij}(y) T_{ij}` equals :math:`\sum A_{ij} W_{ij}` with W the centered T, since
    centering is a projection; what remains is :math:`c \sum T_{ij}`.
    """
    count, K = points.count, len(points.count)
    blocks = _blocks(K, block)
    parts = [_centered(points, space, blocks, unbiased) for space in spaces]

    def kernel(rows: slice) -> Tensor:
        if c is None:
            return reduce(torch.add, (part(rows) for part in parts))
        return reduce(torch.mul, (part(rows) + c for part in parts)) - c ** len(parts)

    T = _once_if_small(kernel, blocks)
    sums = torch.cat([_row_sums(T(rows), rows, count, unbiased) for rows in blocks])
    center = Centering.of(sums, count, unbiased)
    norm = norm_of(points.n, unbiased)
    if points.collapsed:
        weights = torch.cat([center(T(rows), rows) for rows in blocks])
        signed = _signed_by_counts(y, points, weights)
    else:
        signed = torch.cat([(torch.sign(y[rows, None] - y[None]) * center(T(rows), rows)).sum(dim=1) for rows in blocks])
    constant = y.new_zeros(()) if c is None else c * (count @ sums) / norm
    return Form(constant, 2 * signed / norm)


def _centered(points: Points, space: Sequence[int], blocks: list[slice], unbiased: bool) -> Callable[[slice], Tensor]:
    """The U- (or doubly) centered distances of a space of attributes, by blocks of rows."""
    attributes = [points.attributes[k] for k in space]

    def distances(rows: slice) -> Tensor:
        if len(attributes) == 1:
            return attributes[0].distances(rows)
        return reduce(torch.add, (attribute.distances(rows).square() for attribute in attributes)).sqrt()

    A = _once_if_small(distances, blocks)
    sums = torch.cat([A(rows) @ points.count for rows in blocks])
    center = Centering.of(sums, points.count, unbiased)

    def centered(rows: slice) -> Tensor:
        U = center(A(rows), rows)
        if unbiased:
            # A row beside itself is 0; what centering leaves there may be so large that taking it off again would cost all digits.
            _own(U, rows).mul_(points.count[rows] > 1)
        return U

    return centered


def _row_sums(matrix: Tensor, rows: slice, count: Tensor, unbiased: bool) -> Tensor:
    """Sum over the other rows (unbiased) or over all, for one row of each place."""
    sums = matrix @ count
    return sums - _own(matrix, rows) if unbiased else sums


def variance(attribute: Attribute, unbiased: bool, block: int | None = None) -> Tensor:
    """Squared distance variance of one attribute: its distance covariance with itself."""
    points = collapse([attribute])
    if not attribute.coded and attribute.values.shape[1] == 1 and not points.collapsed:
        z = attribute.values[:, 0]
        form = by_ranks(z, z, unbiased=unbiased)
        found = (z - z.mean()) @ form.gradient
        # Sums of products lose the digits of a variance that is small beside the largest distance, sums of squares do not.
        if bool(found > CANCELED * attribute.largest() ** 2):
            return found
    blocks = _blocks(len(points.count), block)
    centered = _centered(points, [0], blocks, unbiased)
    total = points.count.new_zeros(())
    for rows in blocks:
        squares = centered(rows).square()
        total += points.count[rows] @ _row_sums(squares, rows, points.count, unbiased)
    return total / norm_of(points.n, unbiased)


# ---- signed sums ------------------------------------------------------------------------------------------------------------------------


def _signed_by_counts(y: Tensor, points: Points, weights: Tensor) -> Tensor:
    """S (n,) for weights (K, K) between places: how many rows of each place lie below and above y_k."""
    n, K = len(y), len(points.count)
    ordered, order = torch.sort(y)
    place = points.of[order]
    first, last = _ties(ordered)
    signed = y.new_zeros(n)
    for cells in _blocks_of_columns(K, n):
        members = place[None] == torch.arange(cells.start, cells.stop, device=y.device)[:, None]
        below = y.new_zeros(cells.stop - cells.start, n + 1)
        torch.cumsum(members, dim=1, dtype=y.dtype, out=below[:, 1:])
        # below - above, of which a row itself and its ties are neither
        difference = below[:, first] + below[:, last] if first is not None and last is not None else below[:, :-1] + below[:, 1:]
        difference -= points.count[cells, None]
        signed += (weights[cells][:, place] * difference).sum(dim=0)
    return torch.empty_like(signed).scatter_(0, order, signed)


def _blocks_of_columns(K: int, n: int) -> Iterator[slice]:
    size = max(1, BLOCK // (4 * max(n, 1)))
    return (slice(start, min(start + size, K)) for start in range(0, K, size))


def _ties(ordered: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """First and last-but-one-beyond position of the rows equal to each, or None where all are different."""
    if not bool((ordered[1:] == ordered[:-1]).any()):
        return None, None
    return torch.searchsorted(ordered, ordered), torch.searchsorted(ordered, ordered, right=True)


def by_ranks(y: Tensor, z: Tensor, *, unbiased: bool) -> Form:
    r"""Distance covariance of two columns (n,) as a function of y.

    :math:`W_{kj} = -(r_k + r_j - |z_k - z_j| - t)` has four parts, of which the third needs, for every row, the number and the sum of the z
    below its own among the rows whose y is below its own.
    """
    n = len(y)
    z = z - z.mean()
    z, by_z = torch.sort(z, stable=True)
    y = y[by_z]
    # Rows in the order of y, ties in the order of z; each is known by the rank of its z.
    ordered, rank = torch.sort(y, stable=True)
    if bool(ordered[0] == ordered[-1]):
        return Form(y.new_zeros(()), y.new_zeros(n))  # without the rounding of sums that cancel
    first, last = _ties(ordered)
    index = torch.arange(n, device=y.device, dtype=y.dtype)
    before = z.cumsum(0) - z
    sums = z * (2 * index - n) + z.sum() - 2 * before  # of |z_k - z_j| over j, in the order of z
    count = torch.ones(n, dtype=y.dtype, device=y.device)
    center = Centering.of(sums, count, unbiased)

    w, r = z[rank], center.row[rank]
    lower, lower_sum = (part[rank] for part in _dominated(rank, z))
    earlier = index
    # Sum of |z_k - z_j| over the rows before k in the order of y
    passed = w * (2 * lower - earlier) - 2 * lower_sum + _exclusive(w)[:-1]
    cross = 2 * passed - sums[rank]
    sign, r_signed = 2 * index + 1 - n, _exclusive(r)
    if first is not None and last is not None:
        w_sums = _exclusive(w)
        at = torch.arange(n, device=y.device)
        tied_before = w * (at - first) - (w_sums[at] - w_sums[first])  # within ties z does not fall
        tied_after = w_sums[last] - w_sums[at] - w * (last - at)
        cross = cross + tied_after - tied_before
        sign = (first + last - n).to(y.dtype)
        r_part = r_signed[first] + r_signed[last] - r_signed[-1]
    else:
        r_part = r_signed[:-1] + r_signed[1:] - r_signed[-1]
    signed = cross - (r - center.total) * sign - r_part
    out = torch.empty_like(signed).scatter_(0, by_z[rank], signed)
    return Form(y.new_zeros(()), 2 * out / norm_of(n, unbiased))


def _exclusive(values: Tensor) -> Tensor:
    """(n + 1,) sums of the values before each position."""
    return torch.cat([values.new_zeros(1), values.cumsum(0)])


def _dominated(rank: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """For every rank: how many smaller ranks come before it in the sequence ``rank``, and the sum of their z (sorted, by rank).

    From the highest bit down, every part of the sequence is divided into the ranks with a 0 and those with a 1, in order. Those with a 0
    that come before one with a 1 are below it. The last parts, of 32 ranks, are compared pair by pair.
    """
    n = len(rank)
    bits = max(n - 1, 1).bit_length()
    # Filled up to a power of two, all parts are of one size; what is added at the end comes before nothing.
    rank = torch.cat([rank, torch.arange(n, 1 << bits, device=rank.device)])
    value = torch.nn.functional.pad(z, (0, len(rank) - n))[rank]
    number, total = torch.zeros_like(value), torch.zeros_like(value)
    lowest = min(bits, 5)
    for bit in reversed(range(lowest, bits)):
        half = 1 << bit
        upper = ((rank >> bit) & 1).bool()
        one, zero = upper.nonzero()[:, 0], (~upper).nonzero()[:, 0]
        place = torch.arange(len(one), device=one.device)
        part_start = (place >> bit) << bit  # among those with a 0, or a 1
        before = one - place - part_start  # those with a 0, before it in its part
        sums = _exclusive(value[zero])
        number[one] += before
        total[one] += sums[part_start + before] - sums[part_start]
        order = torch.stack([zero.view(-1, half), one.view(-1, half)], dim=1).view(-1)
        rank, value, number, total = rank[order], value[order], number[order], total[order]
    size = 1 << lowest
    earlier = torch.ones(size, size, dtype=torch.bool, device=rank.device).tril()
    for start in range(0, len(rank), 2**17):
        rows = slice(start, start + 2**17)
        r = rank[rows].view(-1, size)
        below = ((r[:, :, None] > r[:, None, :]) & earlier).to(value.dtype)
        number[rows] += below.sum(dim=2).view(-1)
        total[rows] += (below @ value[rows].view(-1, size, 1)).view(-1)
    by_rank = torch.empty_like(rank).scatter_(0, rank, torch.arange(len(rank), device=rank.device))[:n]
    return number[by_rank], total[by_rank]
