from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from counterpoise.gradients import WinsorizedMean
from tests.batteries.gradients import AGGREGATOR_CHECKS, AggregatorCase, two_ranks_are_one_process
from tests.gradients import examples

CASES = [
    AggregatorCase("winsorized", WinsorizedMean, spans=False),
    AggregatorCase("winsorized-0", partial(WinsorizedMean, percent=0)),
    AggregatorCase("winsorized-half", partial(WinsorizedMean, percent=50), spans=False),
    AggregatorCase("winsorized-median3", partial(WinsorizedMean, mode="median3"), permutation=False, spans=False),
]
# The base class, with a method of every kind.
KINDS = [
    AggregatorCase("sum", examples.Sum, mean=False),
    AggregatorCase("equal-length", examples.EqualLength),
    AggregatorCase("bounded", examples.Bounded, homogeneous=False, mean=False, one_row_is_kept=False),
    AggregatorCase("smoothed", examples.Smoothed, mean=False, one_row_is_kept=False),
    AggregatorCase("sign-vote", examples.SignVote, spans=False),
]


@pytest.mark.parametrize("check", AGGREGATOR_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", [*CASES, *KINDS], ids=lambda case: case.name)
def test_battery(case: AggregatorCase, check: Callable[[AggregatorCase], None]) -> None:
    check(case)


def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    two_ranks_are_one_process([*CASES, *KINDS], tmp_path)
