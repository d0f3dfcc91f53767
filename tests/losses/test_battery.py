from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from counterpoise.losses import AnyLoss, FocalLoss, HessianAlignmentLoss, WeightedLoss
from tests.batteries.losses import BATCH_LOSS_CHECKS, LOSS_CHECKS, Batch, LossCase, compiles_to_the_same_numbers

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


class ByTargets(torch.nn.Module):
    """A weighted loss of targets (B, 2): what is true, and the position in the data set."""

    def __init__(self, reduction: str, base: torch.nn.Module) -> None:
        super().__init__()
        self.loss = WeightedLoss(base, torch.linspace(0.0, 2.0, 50), reduction=reduction)

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        true, index = targets.unbind(dim=1)
        return self.loss(inputs, true.to(inputs.dtype) if inputs.ndim == 1 else true, index)


def indexed(batch: Batch) -> Batch:
    inputs, targets = batch
    return inputs, torch.stack([targets.long(), (7 * torch.arange(len(targets)) + 1) % 50], dim=1)


def weighted_classes(rows: int, generator: torch.Generator) -> Batch:
    return indexed(classes(rows, generator))


def weighted_binary(rows: int, generator: torch.Generator) -> Batch:
    return indexed(binary(rows, generator))


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
    LossCase(
        "weighted-cross-entropy",
        partial(ByTargets, base=torch.nn.CrossEntropyLoss(reduction="none")),
        weighted_classes,
        lambda: indexed(extreme_classes(HUGE)),
    ),
    LossCase(
        "weighted-focal",
        partial(ByTargets, base=FocalLoss(reduction="none")),
        weighted_binary,
        lambda: indexed(tuple(part[:, 0] for part in extreme_labels(HUGE))),
    ),
]


def of_batch(**options: object) -> Callable[[str], AnyLoss]:
    return lambda _: AnyLoss(**options)


def batch_case(name: str, batch: Callable[[int, torch.Generator], Batch], extremes: Callable[[], Batch], **options: object) -> LossCase:
    return LossCase(name, of_batch(**options), batch, extremes, reductions=("batch",))


def youden(tp: torch.Tensor, fp: torch.Tensor, fn: torch.Tensor, tn: torch.Tensor) -> torch.Tensor:
    return tp / (tp + fn) + tn / (tn + fp) - 1


def extreme_binary() -> Batch:
    inputs, targets = extreme_labels(HUGE)
    return inputs[:, :1], targets[:, :1]


def extreme_mixed_classes() -> Batch:
    inputs, targets = extreme_classes(HUGE)
    return inputs, torch.arange(len(targets)) % 3


class ByDomain(torch.nn.Module):
    """Hessian alignment of a fixed head, with targets (B, 2): class and domain; the same probes in every call. The scale makes features
    that have a gradient, as those of a network."""

    def __init__(self, classes: int, head: torch.nn.Module | None = None, **options: object) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(0)
        self.scale = torch.nn.Parameter(torch.ones(()))
        head = torch.nn.Linear(LABELS, classes) if head is None else head
        for parameter in head.parameters():
            parameter.data = torch.randn(parameter.shape, generator=source)
        self.loss = HessianAlignmentLoss(head, **{"alpha": 0.3, "beta": 0.7, "detach_mean": False} | options)

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.loss.generator.manual_seed(0)
        return self.loss(inputs * self.scale, *targets.unbind(dim=1))


def by_domain(rows: int, generator: torch.Generator, n_classes: int = CLASSES) -> Batch:
    features = torch.randn(rows, LABELS, generator=generator, dtype=torch.float64)
    return features, torch.stack([torch.randint(n_classes, (rows,), generator=generator), torch.arange(rows) % 3], dim=1)


def extreme_domains() -> Batch:
    levels = torch.tensor([-1e4, -90.0, 0.0, 90.0, 1e4])
    features = torch.cartesian_prod(levels, levels).repeat(1, LABELS // 2)
    return features, torch.stack([torch.arange(25) % 2, torch.arange(25) % 3], dim=1)


def small_network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(LABELS, 3), torch.nn.Tanh(), torch.nn.Linear(3, CLASSES))


def domain_case(name: str, n_classes: int = CLASSES, head: Callable[[], torch.nn.Module] | None = None, **options: object) -> LossCase:
    def make(_: str) -> ByDomain:
        return ByDomain(n_classes, None if head is None else head(), **options)

    return LossCase(name, make, partial(by_domain, n_classes=max(2, n_classes)), extreme_domains, reductions=("batch",))


DOMAIN_CASES = [
    domain_case("hessian-hgp"),
    domain_case("hessian-hgp-binary", 1, reduction="sum"),
    domain_case("hessian-diagonal-annealed", method="diagonal", detach_mean=True, anneal=(0, 1e3)),
    domain_case("hessian-hutchinson", method="hutchinson", n_probes=4),
    domain_case("hessian-hgp-network", head=small_network),
]
# How many domains there are depends on values, which breaks a graph: compiled in test_hessian_alignment.
DOMAIN_CHECKS = [check for check in BATCH_LOSS_CHECKS if check is not compiles_to_the_same_numbers]


BATCH_CASES = [
    batch_case("any-f1", binary, extreme_binary, amplification="auto"),
    batch_case("any-mcc-labels-bce", labels, partial(extreme_labels, HUGE), metric="mcc", multiclass=None, mix_bce=0.3),
    batch_case("any-gmean-classes-bce", classes, extreme_mixed_classes, metric="gmean", mix_bce=0.3),
    batch_case(
        "any-callable-probabilities-bce",
        probabilities_of_labels,
        partial(extreme_labels, UNIT),
        metric=youden,
        from_logits=False,
        multiclass=None,
        mix_bce=0.3,
    ),
]


@pytest.mark.parametrize("check", LOSS_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_battery(case: LossCase, check: Callable[[LossCase], None]) -> None:
    check(case)


@pytest.mark.parametrize("check", BATCH_LOSS_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", BATCH_CASES, ids=lambda case: case.name)
def test_battery_of_losses_of_a_batch(case: LossCase, check: Callable[[LossCase], None]) -> None:
    check(case)


@pytest.mark.filterwarnings("ignore:The batch has one domain")  # that of one row has
@pytest.mark.parametrize("check", DOMAIN_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", DOMAIN_CASES, ids=lambda case: case.name)
def test_battery_of_losses_of_domains(case: LossCase, check: Callable[[LossCase], None]) -> None:
    check(case)
