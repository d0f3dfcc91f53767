from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from counterpoise.losses import FocalLoss
from tests.batteries.losses import LOSS_CHECKS, Batch, LossCase

LABELS = CLASSES = 4
HUGE = torch.tensor([-1e30, -1e4, -90.0, 0.0, 90.0, 1e4, 1e30])


def labels(rows: int, generator: torch.Generator) -> Batch:
    targets = (torch.rand(rows, LABELS, generator=generator) < 0.4).double()
    return 3 * torch.randn(rows, LABELS, generator=generator, dtype=torch.float64), targets


def binary(rows: int, generator: torch.Generator) -> Batch:
    logits, targets = labels(rows, generator)
    return logits[:, 0], targets[:, 0]


def classes(rows: int, generator: torch.Generator) -> Batch:
    return labels(rows, generator)[0], torch.randint(CLASSES, (rows,), generator=generator)


def probabilities_of_labels(rows: int, generator: torch.Generator) -> Batch:
    logits, targets = labels(rows, generator)
    return logits.sigmoid(), targets


def probabilities_of_classes(rows: int, generator: torch.Generator) -> Batch:
    logits, targets = classes(rows, generator)
    return logits.softmax(dim=1), targets


def extreme_labels(levels: torch.Tensor) -> Batch:
    inputs = levels[:, None].repeat(2, LABELS)
    return inputs, torch.arange(2).repeat_interleave(len(levels))[:, None].expand_as(inputs).float()


def extreme_classes(levels: torch.Tensor) -> Batch:
    """Every pair of levels for the true class and the next one, the other classes at the lowest level."""
    pairs = torch.cartesian_prod(levels, levels)
    inputs = torch.full((len(pairs), CLASSES), levels.min().item())
    inputs[:, :2] = pairs
    return inputs, torch.zeros(len(pairs), dtype=torch.int64)


def focal(reduction: str, **options: object) -> FocalLoss:
    return FocalLoss(reduction=reduction, **options)


ALPHA = [0.5, 1.0, 2.0, 0.0]
UNIT = torch.tensor([0.0, 1e-30, 0.5, 1.0])
CASES = [
    LossCase("focal-labels", partial(focal, alpha=ALPHA), labels, partial(extreme_labels, HUGE)),
    LossCase("focal-labels-gamma-half", partial(focal, gamma=0.5), labels, partial(extreme_labels, HUGE)),
    LossCase("focal-labels-gamma-0", partial(focal, gamma=0), labels, partial(extreme_labels, HUGE)),
    LossCase("focal-binary", focal, binary, lambda: tuple(part[:, 0] for part in extreme_labels(HUGE))),
    LossCase("focal-classes", partial(focal, alpha=ALPHA, multilabel=False), classes, partial(extreme_classes, HUGE)),
    LossCase("focal-classes-gamma-half", partial(focal, gamma=0.5, multilabel=False), classes, partial(extreme_classes, HUGE)),
    LossCase("focal-label-probabilities", partial(focal, from_logits=False), probabilities_of_labels, partial(extreme_labels, UNIT)),
    LossCase(
        "focal-class-probabilities",
        partial(focal, from_logits=False, multilabel=False),
        probabilities_of_classes,
        partial(extreme_classes, UNIT),
    ),
]


@pytest.mark.parametrize("check", LOSS_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_battery(case: LossCase, check: Callable[[LossCase], None]) -> None:
    check(case)
