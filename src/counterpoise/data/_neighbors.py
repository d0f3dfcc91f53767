r"""Nearest rows: one search for all resamplers, and its results kept where a grid of parameters asks for them again.

Three kinds of rows are searched: numbers by Euclidean distance, numbers with categories (:class:`MixedRows`), categories alone
(:class:`NominalRows`). A row is never its own neighbor, however many copies of it there are.

With ``memory``, the neighbors found are stored under a hash of the rows' content, 16, 32, 64, ... of each row: as long as k stays below
that, other strategies, other values of k and other seeds on the same rows (the same training fold, that is) search no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from joblib import Parallel, delayed, effective_n_jobs
from scipy import sparse
from scipy.spatial import KDTree
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.validation import check_memory

__all__ = ["EuclideanRows", "MixedRows", "NominalRows", "Rows", "centered", "finder", "has_few_columns", "nearest", "without_self"]

Indices = npt.NDArray[np.intp]
Found = tuple[Indices, npt.NDArray[np.float64]]  # (q, k) neighbors, nearest first, and their distances
Distances = Callable[[slice], npt.NDArray[np.float64]]  # from a block of rows to a chunk of rows

STORED = 16  # fewest neighbors that are stored
CELL, PARTITIONS = 2048, 4  # approximate search: rows within which neighbors are searched, and how often rows are cut up
TREE_COLUMNS = 15  # scikit-learn's limit between trees and products of all rows with all
OFFSET = 1e3  # a table this many times farther from zero than it is wide is centered before its products are taken
BLOCK, FIRST_CHUNK, CHUNK = 128, 64, 1024  # rows against rows at a time, so that the distances stay in the cache


class Rows(Protocol):
    """Rows whose neighbors can be searched."""

    def __len__(self) -> int: ...

    def take(self, rows: Indices) -> Rows:
        """Some of the rows."""

    def search(self, k: int, queries: Indices | None, n_jobs: int | None) -> Found:
        """The k rows nearest to each row, or to those at ``queries``."""

    def coordinates(self) -> Any:
        """(n, p) coordinates in which rows that are near each other have similar values, for the approximate search."""


def nearest(
    rows: Rows, k: int, queries: Indices | None = None, *, approximate: bool = False, memory: Any = None, n_jobs: int | None = None
) -> Indices:
    """The k < n rows nearest to each row, or to those at ``queries``, nearest first: indices (q, k)."""
    if memory is None:
        return _search(rows, k, queries, approximate, n_jobs)
    stored = min(max(STORED, 1 << (k - 1).bit_length()), len(rows) - 1)
    cached = check_memory(memory).cache(_search, ignore=["n_jobs"])
    return np.asarray(cached(rows, stored, queries, approximate, n_jobs))[:, :k]


def _search(rows: Rows, k: int, queries: Indices | None, approximate: bool, n_jobs: int | None) -> Indices:
    cell = max(CELL, 4 * k)
    if approximate and len(rows) > 2 * cell:
        return _search_cells(rows, k, queries, cell, n_jobs)
    return rows.search(k, queries, n_jobs)[0]


def without_self(indices: npt.NDArray[Any], queries: npt.NDArray[Any], distances: npt.NDArray[Any] | None = None) -> tuple[Any, Any]:
    """k of k + 1 neighbors: all but the row itself, or but the last one where k + 1 copies of the row crowd it out."""
    other = indices != queries[:, None]
    other[other.all(axis=1), -1] = False
    shape = (len(indices), -1)
    return indices[other].reshape(shape), None if distances is None else distances[other].reshape(shape)


# ---- numbers ----------------------------------------------------------------------------------------------------------------------------


def finder(X: Any, n_jobs: int | None = None) -> Callable[[Any, int], Found]:
    """A search for the k rows of X, dense or CSR, nearest to others: SciPy's tree for few columns, scikit-learn's products for many."""
    if has_few_columns(X):
        tree, workers = KDTree(X, leafsize=24, balanced_tree=False), effective_n_jobs(n_jobs)
        return lambda others, k: tree.query(others, k=np.arange(1, k + 1), workers=workers)[::-1]
    products = NearestNeighbors(algorithm="brute", n_jobs=n_jobs).fit(X)
    return lambda others, k: products.kneighbors(others, n_neighbors=k)[::-1]


def has_few_columns(X: Any) -> bool:
    return not sparse.issparse(X) and X.shape[1] <= TREE_COLUMNS


class EuclideanRows:
    """Rows of numbers, dense or CSR, compared by Euclidean distance."""

    def __init__(self, X: Any) -> None:
        self.X = centered(X)

    def __len__(self) -> int:
        return int(self.X.shape[0])

    def take(self, rows: Indices) -> EuclideanRows:
        return EuclideanRows(self.X[rows])

    def search(self, k: int, queries: Indices | None, n_jobs: int | None) -> Found:
        own = np.arange(len(self)) if queries is None else queries
        indices, distances = finder(self.X, n_jobs)(self.X if queries is None else self.X[queries], k + 1)
        return without_self(indices, own, distances)

    def coordinates(self) -> Any:
        return self.X


def centered(X: Any) -> Any:
    """X, moved to zero if it lies far from it: squared distances taken as |x|^2 - 2 x y + |y|^2 lose the digits that |x|^2 needs."""
    if sparse.issparse(X) or X.dtype != np.float64 or has_few_columns(X) or not X.size:
        return X
    low, high = X.min(axis=0), X.max(axis=0)
    center = low + (high - low) / 2
    return X - center if np.linalg.norm(center) > OFFSET * np.linalg.norm(high - low) else X


# ---- numbers and categories, categories alone -------------------------------------------------------------------------------------------


class MixedRows:
    r"""Numbers z (n, p) with categories c (n, q) as codes: :math:`d^2(i, j) = |z_i - z_j|^2 + w \, \#\{f : c_{if} \neq c_{jf}\}`.

    Categories are compared, not expanded: memory is that of the codes whatever the number of categories.
    """

    def __init__(self, numbers: npt.NDArray[np.float64], codes: npt.NDArray[Any], weight: float) -> None:
        self.numbers, self.codes, self.weight = numbers, codes, float(weight)

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, rows: Indices) -> MixedRows:
        return MixedRows(self.numbers[rows], self.codes[rows], self.weight)

    def search(self, k: int, queries: Indices | None, n_jobs: int | None) -> Found:
        z = self.numbers - self.numbers.mean(axis=0)
        squares = np.einsum("ij,ij->i", z, z)[:, None]
        ones = np.ones_like(squares)
        left, right = np.hstack([z, squares, ones]), np.hstack([-2 * z, ones, squares])  # left @ right.T = |z_i - z_j|^2
        columns = np.ascontiguousarray(self.codes.T)
        count = np.uint8 if len(columns) < 256 else np.uint16

        def from_block(block: slice) -> Distances:
            def to(chunk: slice) -> npt.NDArray[np.float64]:
                squared: npt.NDArray[np.float64] = left[block] @ right[chunk].T
                differing, unequal = np.zeros(squared.shape, dtype=count), np.empty(squared.shape, dtype=bool)
                for column in columns:
                    np.not_equal(column[block, None], column[chunk], out=unequal)
                    differing += unequal.view(np.uint8)
                squared += self.weight * differing
                return squared

            return to

        return _search_blocks(from_block, len(z), k, queries, n_jobs)

    def coordinates(self) -> npt.NDArray[np.float64]:
        """The numbers, and for the categories random vectors whose squared distance is w on average."""
        dimensions, rng = 8, np.random.RandomState(0)
        vectors = np.zeros((len(self), dimensions))
        for column in self.codes.T:
            vectors += rng.normal(scale=np.sqrt(self.weight / (2 * dimensions)), size=(int(column.max()) + 1, dimensions))[column]
        return np.hstack([self.numbers, vectors])


class NominalRows:
    r"""Categories c (n, q) compared by what they say about the class (value difference metric, Stanfill and Waltz 1986):

    :math:`d(i, j) = \sum_f \left( \sum_y | p(y \mid c_{if}) - p(y \mid c_{jf}) | \right)^2`. ``shares[f]`` holds p(y | c), (categories,
    classes).
    """

    def __init__(self, codes: npt.NDArray[Any], shares: list[npt.NDArray[np.float64]]) -> None:
        self.codes, self.shares = codes, shares

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: Indices) -> NominalRows:
        return NominalRows(self.codes[rows], self.shares)

    def search(self, k: int, queries: Indices | None, n_jobs: int | None) -> Found:
        return _search_blocks(self.from_block, len(self), k, queries, n_jobs)

    def from_block(self, block: slice) -> Distances:
        # From each row of the block to each category of a column: (rows, categories).
        tables = [
            np.abs(share[column[block], None, :] - share).sum(axis=2) ** 2 for column, share in zip(self.codes.T, self.shares, strict=True)
        ]

        def to(chunk: slice) -> npt.NDArray[np.float64]:
            distances = np.zeros((block.stop - block.start, chunk.stop - chunk.start))
            for table, column in zip(tables, self.codes.T, strict=True):
                distances += table[:, column[chunk]]
            return distances

        return to

    def coordinates(self) -> npt.NDArray[np.float64]:
        return np.hstack([share[column] for share, column in zip(self.shares, self.codes.T, strict=True)])


def _search_blocks(from_block: Callable[[slice], Distances], n: int, k: int, queries: Indices | None, n_jobs: int | None) -> Found:
    """The k nearest of n rows by any distance, in memory for a few blocks; of equally near ones the first."""
    blocks = [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]
    found = Parallel(n_jobs=n_jobs, prefer="threads")(delayed(_search_block)(from_block(block), block, n, k) for block in blocks)
    indices, distances = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return (indices, distances) if queries is None else (indices[queries], distances[queries])


def _search_block(to: Distances, block: slice, n: int, k: int) -> Found:
    rows = block.stop - block.start
    best: Found = np.empty((rows, 0), dtype=np.intp), np.empty((rows, 0))
    start = 0
    while start < n:
        stop = min(n, start + min(max(start, FIRST_CHUNK), CHUNK))
        distances = to(slice(start, stop))
        own = np.arange(max(block.start, start), min(block.stop, stop))
        distances[own - block.start, own - start] = np.inf
        best = _better(best, distances, start, k)
        start = stop
    return best


def _better(best: Found, distances: npt.NDArray[np.float64], start: int, k: int) -> Found:
    """The best k so far and those among the next rows that are nearer than the k-th: ever fewer, so there is little to sort."""
    rows, columns = distances.shape
    if best[0].shape[1] < k:
        indices = np.broadcast_to(np.arange(start, start + columns), distances.shape)
        return _sorted(np.hstack([best[0], indices]), np.hstack([best[1], distances]), k)
    row, column = np.divmod(np.flatnonzero(distances < best[1][:, -1:]), columns)
    if not len(row):
        return best
    values = distances[row, column]
    order = np.lexsort((values, row))
    row, column, values = row[order], column[order], values[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    first = rank < k
    place = row[first], rank[first]
    indices, nearer = np.zeros((rows, k), dtype=np.intp), np.full((rows, k), np.inf)
    indices[place], nearer[place] = start + column[first], values[first]
    return _sorted(np.hstack([best[0], indices]), np.hstack([best[1], nearer]), k)


def _sorted(indices: npt.NDArray[Any], distances: npt.NDArray[np.float64], k: int) -> Found:
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(indices, order, axis=1), np.take_along_axis(distances, order, axis=1)


# ---- approximate ------------------------------------------------------------------------------------------------------------------------


def _search_cells(rows: Rows, k: int, queries: Indices | None, cell: int, n_jobs: int | None) -> Indices:
    """Exact search within cells of near rows; rows are cut into cells several times, so that few neighbors are always across a border."""
    n = len(rows)
    wanted = np.ones(n, dtype=bool) if queries is None else np.isin(np.arange(n), queries)
    coordinates, rng = rows.coordinates(), np.random.RandomState(0)
    indices, distances = np.zeros((n, 0), dtype=np.intp), np.empty((n, 0))
    for _ in range(PARTITIONS):
        found, far = np.zeros((n, k), dtype=np.intp), np.full((n, k), np.inf)
        for members in _cells(coordinates, cell, rng):
            asked = np.flatnonzero(wanted[members])
            if len(asked):
                near, far[members[asked]] = rows.take(members).search(k, asked, n_jobs)
                found[members[asked]] = members[near]
        indices, distances = _distinct(np.hstack([indices, found]), np.hstack([distances, far]), k)
    return indices if queries is None else indices[queries]


def _cells(coordinates: Any, size: int, rng: np.random.RandomState) -> Iterator[Indices]:
    """Halves of halves of the rows, each cut at the median along the line through two of its rows, until they hold ``size`` at most."""
    waiting = [np.arange(coordinates.shape[0])]
    while waiting:
        members = waiting.pop()
        if len(members) <= size:
            yield members
            continue
        one, two = coordinates[rng.choice(members, 2, replace=False)]
        line = (one - two).toarray().ravel() if sparse.issparse(coordinates) else one - two
        half = len(members) // 2
        order = np.argpartition(coordinates[members] @ line, half)
        waiting += [members[order[:half]], members[order[half:]]]


def _distinct(indices: Indices, distances: npt.NDArray[np.float64], k: int) -> Found:
    """The k nearest of each row's candidates, each once."""
    order = np.lexsort((distances, indices), axis=1)
    indices, distances = np.take_along_axis(indices, order, axis=1), np.take_along_axis(distances, order, axis=1)
    distances[:, 1:][indices[:, 1:] == indices[:, :-1]] = np.inf
    return _sorted(indices, distances, k)
