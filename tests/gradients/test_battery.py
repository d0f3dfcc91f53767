from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from counterpoise.gradients import MGDA, SAMGS, BinaryVote, CAGrad, GCond, GradientAnnealing, GradNorm, PCGrad, Sum, WinsorizedMean
from tests.batteries.gradients import AGGREGATOR_CHECKS, AggregatorCase, two_ranks_are_one_process
from tests.gradients import examples


def pcgrad() -> PCGrad:
    return PCGrad(torch.Generator().manual_seed(0))


CASES = [
    AggregatorCase("sum", Sum, mean=False),
    AggregatorCase("winsorized", WinsorizedMean, spans=False),
    AggregatorCase("winsorized-0", partial(WinsorizedMean, percent=0)),
    AggregatorCase("winsorized-half", partial(WinsorizedMean, percent=50), spans=False),
    AggregatorCase("winsorized-median3", partial(WinsorizedMean, mode="median3"), permutation=False, spans=False),
    AggregatorCase("pcgrad", pcgrad, permutation=False, mean=False),
    AggregatorCase("cagrad", CAGrad, mean=False),
    AggregatorCase("cagrad-0", partial(CAGrad, c=0)),
    AggregatorCase("cagrad-1", partial(CAGrad, c=1), mean=False, non_conflicting=True),
    AggregatorCase("cagrad-rescaled", partial(CAGrad, rescale=True), mean=False),
    AggregatorCase("mgda", MGDA, non_conflicting=True),
    AggregatorCase("gradnorm", GradNorm, mean=False),
    AggregatorCase("gcond", GCond, mean=False),
    AggregatorCase("gcond-zones", partial(GCond, smooth=False), mean=False),
    AggregatorCase("gcond-published", partial(GCond, stability_reference="published"), homogeneous=False, mean=False),
    AggregatorCase("sam-gs-equalize", partial(SAMGS, gamma=1), mean=False),  # its other branch: test_sam_gs
    AggregatorCase("annealing", partial(GradientAnnealing, scope="all", mean="entries"), permutation=False, mean=False),
    AggregatorCase("annealing-norm", partial(GradientAnnealing, statistic="norm"), permutation=False, mean=False),
    AggregatorCase("vote", BinaryVote, homogeneous=False, spans=False, direction=False),
    AggregatorCase("vote-majority", partial(BinaryVote, "majority", "zero"), homogeneous=False, spans=False, direction=False),
]
# The base class, with a method of every kind.
KINDS = [
    AggregatorCase("from-nothing", examples.Sum, mean=False),
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
