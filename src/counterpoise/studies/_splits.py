"""Who is trained on what: the hold-out, the outer folds, the inner folds, the row groups of the jackknife, the parts of a learning curve.

Folds are drawn over *blocks*, rows that must not straddle: the exact copies of a row, or a cluster. Everything is recomputed from the seed,
so nothing about a split has to be stored but its hash.
"""

from __future__ import annotations

import hashlib
import warnings
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from counterpoise._seeding import generator, seed_integer

from ._types import NO_DROP, Protocol

if TYPE_CHECKING:
    from ._problem import Problem

__all__ = ["SMALLEST_PART", "Splits", "strata_of"]

IntArray = npt.NDArray[np.int64]
JACKKNIFE_STREAM, HOLDOUT_STREAM, INNER_STREAM, PARTS_STREAM = "jackknife", "hold-out", "inner", "parts"
SMALLEST_PART = 16  # a learning curve goes down to one of so many parts of the training rows


def strata_of(y: npt.NDArray[np.generic], task: str) -> IntArray:
    """The labels folds are stratified on: the classes, or ten quantile bins of a regression target."""
    if task != "regression":
        return y.astype(np.int64)
    edges = np.unique(np.quantile(y.astype(float), np.linspace(0, 1, 11)[1:-1]))
    return np.searchsorted(edges, y.astype(float), side="right").astype(np.int64)


class Splits:
    """Every split of one problem under one protocol.

    ``rows`` are the rows of the study in ascending order, ``holdout`` the rows locked away (a share of the data, the last rows in time, or
    the rows of a test file).
    """

    def __init__(self, problem: Problem, protocol: Protocol) -> None:
        self._problem = problem
        self._protocol = protocol
        self._strata = strata_of(problem.y, problem.task)
        self.holdout: IntArray = self._lock_away()
        mask = np.ones(problem.n, dtype=bool)
        mask[self.holdout] = False
        if problem.fixed_test is not None:
            # A copy of a test row in training would leak; the test file stays whole.
            mask &= ~np.isin(problem.blocks, problem.blocks[self.holdout])
        self.rows: IntArray = np.flatnonzero(mask)
        self._folds: dict[int, npt.NDArray[np.int8]] = {}

    def folds(self, repeat: int) -> npt.NDArray[np.int8]:
        """(n,) the fold in which each row is tested; -1 for rows that never are (the hold-out; the first stretch of a time series)."""
        if repeat not in self._folds:
            folds = np.full(self._problem.n, -1, dtype=np.int8)
            folds[self.rows] = self._assign(self.rows, self._protocol.folds, repeat)
            self._folds[repeat] = folds
        return self._folds[repeat]

    @cached_property
    def drop_groups(self) -> npt.NDArray[np.int8]:
        """(n,) the jackknife group of each study row: blocks whole, stratified; -1 outside the study."""
        groups = np.full(self._problem.n, -1, dtype=np.int8)
        if self._protocol.jackknife:
            groups[self.rows] = self._assign(self.rows, self._protocol.jackknife, JACKKNIFE_STREAM, forward=False)
        return groups

    def test_index(self, repeat: int, fold: int, drop: int = NO_DROP) -> IntArray:
        test = np.flatnonzero(self.folds(repeat) == fold)
        return test if drop <= NO_DROP else test[self.drop_groups[test] != drop]

    def train_index(self, repeat: int, fold: int, drop: int = NO_DROP) -> IntArray:
        folds = self.folds(repeat)
        train = self._train_rows(self.rows, folds[self.rows], fold)
        if drop >= 0:
            return np.asarray(train[self.drop_groups[train] != drop])
        for halving in range((-drop).bit_length() - 1):  # blocks whole, strata spread evenly; smaller parts lie within larger ones
            train = train[self._assign(train, 2, repeat, fold, PARTS_STREAM, halving, forward=False) == 0]
        return train

    def inner_folds(self, train: IntArray, repeat: int | str, fold: int) -> npt.NDArray[np.int8]:
        """(len(train),) inner fold of each training row; the same for every arm."""
        return self._assign(train, self._protocol.inner_folds, repeat, fold, INNER_STREAM)

    def inner_pairs(self, train: IntArray, inner: npt.NDArray[np.int8]) -> list[tuple[IntArray, IntArray]]:
        """(rows to fit on, positions in ``train`` to score) of each inner fold."""
        return [(self._train_rows(train, inner, fold), np.flatnonzero(inner == fold)) for fold in range(int(inner.max()) + 1)]

    def fingerprint(self, repeat: int) -> str:
        """Hash of the folds of a repeat, kept with the cells so that a changed library cannot silently mix two splits."""
        return hashlib.blake2b(self.folds(repeat).tobytes(), digest_size=8).hexdigest()

    # ---------------------------------------------------------------------------------------------------------------------------------

    def _train_rows(self, rows: IntArray, folds: npt.NDArray[np.int8], fold: int) -> IntArray:
        """Rows to train on when ``fold`` is tested: all others, or in time order only the earlier ones (copies of test rows left out)."""
        if self._protocol.split != "time":
            return np.asarray(rows[folds != fold])
        assert self._problem.time is not None
        test = rows[folds == fold]
        earlier = rows[self._problem.time[rows] < self._problem.time[test].min()]
        return np.asarray(earlier[~np.isin(self._problem.blocks[earlier], self._problem.blocks[test])])

    def _lock_away(self) -> IntArray:
        if self._problem.fixed_test is not None:
            return np.flatnonzero(self._problem.fixed_test)
        if not self._protocol.holdout:
            return np.empty(0, dtype=np.int64)
        rows = np.arange(self._problem.n)
        if self._protocol.split == "time":
            assert self._problem.time is not None
            cut = np.quantile(self._problem.time, 1 - self._protocol.holdout)
            return np.flatnonzero(self._problem.time > cut)
        pieces = max(2, round(1 / self._protocol.holdout))
        return np.asarray(rows[self._assign(rows, pieces, HOLDOUT_STREAM) == 0])

    def _assign(self, rows: IntArray, k: int, *key: str | int, forward: bool = True) -> npt.NDArray[np.int8]:
        """Fold ids in [0, k) for ``rows``; blocks whole, strata spread evenly; in time order contiguous stretches, the first one -1."""
        if self._protocol.split == "time" and forward:
            return self._stretches(rows, k)
        _, first, inverse = np.unique(self._problem.blocks[rows], return_index=True, return_inverse=True)
        seed = seed_integer(self._protocol.seed, *key)
        if self._protocol.split == "clusters":
            return self._assign_clusters(rows, inverse, k, seed)
        # Copies share features and target, so a block has one stratum and can be drawn as one row.
        return _stratified(self._strata[rows][first], k, seed)[inverse]

    def _assign_clusters(self, rows: IntArray, clusters: IntArray, k: int, seed: int) -> npt.NDArray[np.int8]:
        from sklearn.model_selection import StratifiedGroupKFold

        strata = self._strata[rows]
        folds = np.zeros(len(rows), dtype=np.int8)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The least populated class in y")
            for fold, (_, test) in enumerate(StratifiedGroupKFold(k, shuffle=True, random_state=seed).split(strata, strata, clusters)):
                folds[test] = fold
        return folds

    def _stretches(self, rows: IntArray, k: int) -> npt.NDArray[np.int8]:
        """Forward chaining: k + 1 stretches of equal length; the first is only trained on. Rows of one instant stay in one stretch."""
        assert self._problem.time is not None
        rank = self._problem.time[rows]
        edges = np.quantile(rank, np.arange(1, k + 1) / (k + 1), method="higher")
        return (np.searchsorted(edges, rank, side="right") - 1).astype(np.int8)


def _stratified(strata: IntArray, k: int, seed: int) -> npt.NDArray[np.int8]:
    """Stratified folds of len(strata) items: each stratum, shuffled, is dealt to the folds in turn, the strata one after the other, so
    that fold sizes differ by at most one and so do the counts of each stratum."""
    rng = generator(seed)
    order = np.lexsort((rng.random(len(strata)), strata))
    folds = np.empty(len(strata), dtype=np.int8)
    folds[order] = rng.permutation(k)[np.arange(len(strata)) % k]
    return folds
