"""Folds: stratified, paired over arms, blocks whole, forward in time, and the same from the same seed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from counterpoise.studies._splits import Splits, strata_of
from counterpoise.studies._types import Protocol


def problem(n: int = 200, positives: int = 30, blocks: Any = None, **more: Any) -> Any:
    y = np.zeros(n, dtype=np.int64)
    y[np.random.default_rng(0).permutation(n)[:positives]] = 1
    fields = {
        "n": n, "y": y, "task": "binary", "blocks": np.arange(n) if blocks is None else blocks,
        "time": None, "fixed_test": None,
    }  # fmt: skip
    return SimpleNamespace(**(fields | more))


def test_folds_are_stratified_and_partition_the_rows() -> None:
    p = problem()
    splits = Splits(p, Protocol("binary"))
    folds = splits.folds(0)
    assert np.bincount(folds).tolist() == [40] * 5
    assert np.bincount(folds[p.y == 1]).tolist() == [6] * 5
    for fold in range(5):
        together = np.sort(np.r_[splits.train_index(0, fold), splits.test_index(0, fold)])
        assert together.tolist() == list(range(200))


def test_repeats_differ_and_seeds_repeat() -> None:
    p = problem()
    first, again, other = (Splits(p, Protocol("binary", seed=seed)) for seed in (0, 0, 1))
    assert (first.folds(0) == again.folds(0)).all()
    assert (first.folds(0) != first.folds(1)).mean() > 0.5
    assert (first.folds(0) != other.folds(0)).mean() > 0.5
    assert first.fingerprint(0) == again.fingerprint(0) != first.fingerprint(1)


@pytest.mark.parametrize("repeat", range(3))
def test_copies_never_straddle_outer_inner_or_holdout(repeat: int) -> None:
    blocks = np.repeat(np.arange(60), 5)
    y = np.repeat((np.arange(60) < 20).astype(np.int64), 5)
    p = problem(300, blocks=blocks, y=y)
    splits = Splits(p, Protocol("binary", holdout=0.2))
    assert not set(blocks[splits.holdout]) & set(blocks[splits.rows])
    for fold in range(5):
        train, test = splits.train_index(repeat, fold), splits.test_index(repeat, fold)
        assert not set(blocks[train]) & set(blocks[test])
        inner = splits.inner_folds(train, repeat, fold)
        for fit_rows, at in splits.inner_pairs(train, inner):
            assert not set(blocks[fit_rows]) & set(blocks[train[at]])


def test_clusters_stay_whole_with_both_classes_inside() -> None:
    blocks = np.random.default_rng(1).integers(0, 40, 200)
    splits = Splits(problem(blocks=blocks), Protocol("binary", split="clusters"))
    for fold in range(5):
        assert not set(blocks[splits.train_index(0, fold)]) & set(blocks[splits.test_index(0, fold)])


def test_time_trains_on_the_past_only() -> None:
    time = np.random.default_rng(2).permutation(200)
    splits = Splits(problem(time=time), Protocol("binary", split="time", holdout=0.2, folds=4))
    assert time[splits.holdout].min() > time[splits.rows].max()
    sizes = []
    for fold in range(4):
        train, test = splits.train_index(0, fold), splits.test_index(0, fold)
        assert time[train].max() < time[test].min()
        sizes.append(len(train))
    assert sizes == sorted(sizes) and sizes[0] >= 30


def test_time_ties_are_not_split() -> None:
    time = np.repeat(np.arange(50), 4)
    splits = Splits(problem(time=time), Protocol("binary", split="time", folds=3))
    for fold in range(3):
        assert not set(time[splits.train_index(0, fold)]) & set(time[splits.test_index(0, fold)])


def test_jackknife_groups_leave_train_and_test() -> None:
    p = problem(task="regression", y=np.random.default_rng(3).normal(size=200))
    splits = Splits(p, Protocol("regression", jackknife=10))
    groups = splits.drop_groups
    assert np.bincount(groups).tolist() == [20] * 10
    for fold in range(5):
        assert not (groups[splits.train_index(0, fold, drop=3)] == 3).any()
        assert not (groups[splits.test_index(0, fold, drop=3)] == 3).any()
        kept = splits.test_index(0, fold)
        assert splits.test_index(0, fold, drop=3).tolist() == kept[groups[kept] != 3].tolist()


def test_fixed_test_rows_are_the_holdout_and_their_copies_leave_training() -> None:
    fixed = np.zeros(200, dtype=bool)
    fixed[150:] = True
    blocks = np.arange(200)
    blocks[10] = blocks[160]  # row 10 is a copy of test row 160
    splits = Splits(problem(blocks=blocks, fixed_test=fixed), Protocol("binary", fixed_test=True))
    assert splits.holdout.tolist() == list(range(150, 200))
    assert 10 not in splits.rows and len(splits.rows) == 149


def test_regression_strata_are_quantile_bins() -> None:
    y = np.random.default_rng(4).exponential(size=1000)
    assert np.bincount(strata_of(y, "regression")).tolist() == [100] * 10
