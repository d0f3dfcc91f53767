from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from counterpoise.optim import SGDP, AdamP, MicroBatchMedian, ProjectedUpdate
from tests.batteries.optimizers import OPTIMIZER_CHECKS, OptimizerCase


def over(base: type[torch.optim.Optimizer], k: int, rolling: bool, **fixed: Any) -> Callable[..., MicroBatchMedian]:
    def make(params: Any, lr: float = 0.1, **options: Any) -> MicroBatchMedian:
        return MicroBatchMedian(base(params, lr=lr, **fixed, **options), k=k, rolling=rolling)

    return make


def plain(optimizer: type[torch.optim.Optimizer], **fixed: Any) -> Callable[..., torch.optim.Optimizer]:
    def make(params: Any, lr: float = 0.1, **options: Any) -> torch.optim.Optimizer:
        return optimizer(params, lr=lr, **fixed, **options)

    return make


def projected(base: type[torch.optim.Optimizer], **fixed: Any) -> Callable[..., ProjectedUpdate]:
    def make(params: Any, lr: float = 0.1, **options: Any) -> ProjectedUpdate:
        return ProjectedUpdate(base(params, lr=lr, **fixed, **options), delta=0.5)

    return make


SGD, ADAM = torch.optim.SGD, torch.optim.AdamW
CASES = [
    OptimizerCase("median-3-sgd", over(SGD, 3, False), period=3),
    OptimizerCase("rolling-3-sgd-momentum", over(SGD, 3, True, momentum=0.9)),
    OptimizerCase("median-2-adamw", over(ADAM, 2, False), period=2, sparse=False),
    OptimizerCase("rolling-5-adamw", over(ADAM, 5, True), sparse=False),
    OptimizerCase("median-1-sgd", over(SGD, 1, False)),
    # With a large delta, weights of a network this small are projected at some steps and not at others.
    OptimizerCase("adamp", plain(AdamP, delta=0.5), sparse=False, capturable=True),
    OptimizerCase("adamp-nesterov-channel", plain(AdamP, nesterov=True, invariance="channel"), sparse=False, capturable=True),
    OptimizerCase("sgdp-momentum", plain(SGDP, momentum=0.9, delta=0.5), sparse=False, capturable=True),
    OptimizerCase("sgdp-nesterov-layer", plain(SGDP, momentum=0.9, nesterov=True, invariance="layer"), sparse=False, capturable=True),
    OptimizerCase("projected-sgd-momentum", projected(SGD, momentum=0.9), sparse=False),
    OptimizerCase("projected-adamw", projected(ADAM), sparse=False),
]


@pytest.mark.parametrize("check", OPTIMIZER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_battery(case: OptimizerCase, check: Callable[[OptimizerCase], None]) -> None:
    check(case)
