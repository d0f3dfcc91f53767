from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterpoise import Groups
from counterpoise._errors import InputError
from counterpoise.data import allocate_budget, small_sources

SIZES = {0: 700, 1: 300, 2: 60, 3: 30}
IDS = np.repeat(list(SIZES), list(SIZES.values()))


@pytest.mark.parametrize("ids", [IDS, IDS.tolist(), torch.from_numpy(IDS), Groups.from_labels(IDS), Counter(IDS.tolist()), SIZES])
def test_sources_below_the_mean_size_are_small(ids: Any) -> None:
    assert small_sources(ids) == {2, 3}


def test_counts_names_and_sources_without_examples() -> None:
    assert small_sources(counts=[700, 300, 60, 30]) == small_sources(counts=np.array([700, 300, 60, 30])) == {2, 3}
    assert small_sources(counts={"web": 10, "math": 2, "none": 0}) == {"math"}
    assert small_sources(np.array(["a", "a", "b"])) == {"b"}
    assert small_sources([5, 5, 7, 7]) == set(), "all alike"
    assert small_sources([4, 4, 4]) == set(), "one source"
    assert small_sources(counts=[2, 4]) == {0} and small_sources(counts=[3, 3]) == set()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "source_ids and counts: got 'neither'"),
        ({"source_ids": [1], "counts": [1]}, "got 'both'"),
        ({"source_ids": []}, "expected the source of every example"),
        ({"source_ids": [0.5, 1.0]}, "source_ids: got float64"),
        ({"source_ids": [[0, 1]]}, "shape (1, 2)"),
        ({"counts": [0, 0]}, "counts: got no examples"),
        ({"counts": [1, -2]}, "counts that are whole numbers >= 0"),
        ({"counts": [1, 2.5]}, "counts that are whole numbers >= 0"),
        ({"counts": 3}, "one count for each source"),
        ({"counts": ["a"]}, "one count for each source"),
        ({"source_ids": [0, 1], "rule": "below-median"}, "rule: got 'below-median'; expected one of below-mean"),
    ],
)
def test_bad_sources(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        small_sources(**arguments)
    assert said in str(caught.value)


counts_and_total = st.lists(st.integers(0, 60), min_size=1, max_size=7).flatmap(
    lambda counts: st.tuples(st.just(counts), st.integers(0, sum(counts)))
)


@given(counts_and_total, st.sampled_from(["colm-floor", "largest-remainder"]))
def test_budgets_add_up_and_are_within_one_of_proportional(problem: tuple[list[int], int], rounding: str) -> None:
    counts, total = problem
    found = allocate_budget(counts, total, rounding).numpy()
    assert found.sum() == total and (found >= 0).all() and (found <= counts).all()
    if sum(counts):
        exact = np.array(counts) * total / sum(counts)
        assert (np.abs(found - exact) < 1 + 1e-9).all()


def test_what_is_left_goes_to_the_smallest_or_to_the_most_cut() -> None:
    assert allocate_budget([9, 21, 19, 39], 49).tolist() == [6, 11, 11, 21]  # exact: 5.01, 11.69, 10.58, 21.7
    assert allocate_budget([9, 21, 19, 39], 49, "largest-remainder").tolist() == [5, 12, 10, 22]
    assert allocate_budget([10, 10, 10], 4).tolist() == [2, 1, 1], "ties: the first"
    assert allocate_budget([0, 5, 5], 3).tolist() == [0, 2, 1], "a source without examples is passed over"
    assert allocate_budget(torch.tensor([3, 5]), 8).tolist() == [3, 5]
    found = allocate_budget([3, 5], 0)
    assert found.tolist() == [0, 0] and found.dtype == torch.int32


@pytest.mark.parametrize(
    ("counts", "total", "said"),
    [
        ([3, 5], 9, "total: got 9; expected an integer in [0, 8]"),
        ([3, 5], -1, "total: got -1"),
        ([3, 5], 2.5, "total: got 2.5; expected an integer"),
        ([-3, 5], 1, "counts: got [-3, 5]"),
        ([3, float("nan")], 1, "whole numbers"),
        ([], 0, "counts: got []"),
    ],
)
def test_bad_budgets(counts: list[Any], total: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        allocate_budget(counts, total)
    assert said in str(caught.value)
