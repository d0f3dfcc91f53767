from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from counterpoise.losses import (
    AnyLoss,
    ARLLoss,
    BalancedClipLoss,
    BalancedMSELoss,
    CementLoss,
    ConRLoss,
    DistanceCovariancePenalty,
    FocalLoss,
    HessianAlignmentLoss,
    ModalityTemperature,
    OmniContrastiveLoss,
    QuantileCurriculum,
    ScalarizedLoss,
    WeightedLoss,
)
from tests.batteries.losses import (
    BATCH_LOSS_CHECKS,
    LOSS_CHECKS,
    Batch,
    LossCase,
    a_batch_of_one_row_has_a_finite_loss_and_gradient,
    an_empty_batch_costs_nothing,
    compiles_to_the_same_numbers,
    extreme_inputs_give_finite_losses_and_gradients,
    one_row_is_a_batch,
)

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


class OfDomains(torch.nn.Module):
    """A scalarized loss of targets (B, 2): what is true, and the domain."""

    def __init__(self, reduction: str, tau: float) -> None:
        super().__init__()
        base = torch.nn.CrossEntropyLoss(reduction="none")
        self.loss = ScalarizedLoss(base, [9e9, 5e3, *range(1, 49)], tau, reduction=reduction)

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.loss(inputs, *targets.unbind(dim=1))


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
    LossCase("scalarized", partial(OfDomains, tau=1.5), weighted_classes, lambda: indexed(extreme_classes(HUGE))),
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


class ByPairs(torch.nn.Module):
    """ConR of features, with targets (B, 3): target, prediction and weight."""

    def __init__(self, reduction: str, **options: object) -> None:
        super().__init__()
        self.loss = ConRLoss(1.0, reduction=reduction, **options)

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.loss(inputs, *targets.unbind(dim=1))


def similar_targets(rows: int, generator: torch.Generator) -> Batch:
    """Three values of the target, predictions within a window of it or not."""
    targets = 3.0 * (torch.arange(rows) % 3)
    predictions = 2 * torch.rand(rows, generator=generator) + 0.1 * targets
    weights = 0.5 + torch.rand(rows, generator=generator)
    features = torch.randn(rows, LABELS, generator=generator, dtype=torch.float64)
    return features, torch.stack([targets, predictions, weights], dim=1).double()


def extreme_features() -> Batch:
    """All pairs of levels, also zeros only."""
    features = torch.cartesian_prod(HUGE, HUGE)
    return features, torch.stack([torch.arange(49) % 7.0, torch.arange(49) % 3.0, torch.arange(49) % 4.0], dim=1)


class ByModality(torch.nn.Module):
    """e5-omni's loss of queries, with targets (B, 1 + LABELS): modality, and the embedding of the positive."""

    def __init__(self, reduction: str, **options: object) -> None:
        super().__init__()
        temperature = ModalityTemperature(2, init=torch.tensor([0.05, 0.2], dtype=torch.float64))
        curriculum = QuantileCurriculum(0.3, 0.3)
        self.loss = OmniContrastiveLoss(temperature, curriculum, reduction=reduction, coral_weight=0.5, whiten=False, **options)

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        modality = targets[:, 0].long()
        return self.loss(inputs, targets[:, 1:].to(torch.promote_types(inputs.dtype, torch.float32)), modality, modality)


def embeddings(rows: int, generator: torch.Generator) -> Batch:
    queries = torch.randn(rows, LABELS, generator=generator, dtype=torch.float64)
    targets = queries + torch.randn(rows, LABELS, generator=generator, dtype=torch.float64)
    return queries, torch.cat([torch.arange(rows)[:, None] % 2, targets], dim=1).double()


def extreme_embeddings() -> Batch:
    """All pairs of levels, also zeros only, as queries and as targets."""
    features = torch.cartesian_prod(HUGE, HUGE).repeat(1, LABELS // 2)
    return features, torch.cat([torch.arange(49.0)[:, None] % 2, features.roll(20, 0)], dim=1)


def numbers(rows: int, generator: torch.Generator) -> Batch:
    targets = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    return targets + torch.randn(rows, 2, generator=generator, dtype=torch.float64), targets


def extreme_numbers() -> Batch:
    """Their squares are still finite in float32."""
    levels = torch.tensor([-1e15, -1e4, -1.0, 0.0, 1.0, 1e4, 1e15])
    return tuple(torch.cartesian_prod(levels, levels).unbind(dim=1))  # type: ignore[return-value]


PAIR_CASES = [
    LossCase("conr", partial(ByPairs, temperature=0.02), similar_targets, extreme_features),
    LossCase(
        "conr-reference-linear",
        partial(ByPairs, push="linear", push_scale=0.2, denominator="reference", count_self=True),
        similar_targets,
        extreme_features,
    ),
    LossCase("omni", ByModality, embeddings, extreme_embeddings),
    LossCase("balanced-mse", lambda reduction: BalancedMSELoss(0.7, reduction=reduction), numbers, extreme_numbers),
]
# A row alone has no pair, and ConR and e5-omni's loss refuse it: tested in test_conr and test_omni.
PAIR_CHECKS = [check for check in LOSS_CHECKS if check not in (one_row_is_a_batch, an_empty_batch_costs_nothing)]


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


class ByAttributes(torch.nn.Module):
    """A penalty with attributes (n, 2) as targets: codes of levels, and a number; ``columns`` says which of them are used."""

    def __init__(self, kind: str, columns: str, **options: object) -> None:
        super().__init__()
        self.columns, self.loss = columns, DistanceCovariancePenalty(kind, **options)

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        parts = {"level": targets[:, 0].long(), "number": targets[:, 1]}
        return self.loss(inputs, {name: parts[name] for name in self.columns.split()})


def with_attributes(rows: int, generator: torch.Generator) -> Batch:
    scores = torch.rand(rows, generator=generator, dtype=torch.float64)
    return scores, torch.stack([torch.arange(rows) % 3, torch.rand(rows, generator=generator, dtype=torch.float64)], dim=1)


def extreme_scores() -> Batch:
    inputs, _ = extreme_labels(HUGE)
    return inputs[:, 0], torch.stack([torch.arange(len(inputs)) % 3, torch.linspace(0, 1, len(inputs)) ** 3], dim=1)


def dcov_case(kind: str, columns: str, **options: object) -> LossCase:
    name = "-".join([kind, *columns.split(), *(f"{value}" for value in options.values())])
    return LossCase(name, lambda _: ByAttributes(kind, columns, **options), with_attributes, extreme_scores, reductions=("batch",))


# V-statistics are never negative, which the unbiased ones may be.
DCOV_CASES = [
    dcov_case("ccdcov", "level", unbiased=False),
    dcov_case("ccdcov", "number", unbiased=False),
    dcov_case("ccdcov", "level number", unbiased=False),
    dcov_case("dcov_sum", "level number", unbiased=False, scale="equal_dvar"),
]
UNBIASED_DCOV_CASES = [
    dcov_case(kind, columns) for kind in ("ccdcov", "jdcov", "dcov_sum") for columns in ("level", "number", "level number")
]
# Cells depend on values, which breaks a graph: compiled in test_distance_covariance. One row has no distance.
DCOV_CHECKS = [check for check in BATCH_LOSS_CHECKS if check is not compiles_to_the_same_numbers]
UNBIASED_DCOV_CHECKS = [
    check
    for check in DCOV_CHECKS
    if check not in (a_batch_of_one_row_has_a_finite_loss_and_gradient, extreme_inputs_give_finite_losses_and_gradients)
]


class OfModalities(torch.nn.Module):
    """The loss of two modalities; inputs (B, 3 K) hold the fused logits and those of each, side by side."""

    def __init__(self, reduction: str, **options: object) -> None:
        super().__init__()
        self.loss = ARLLoss(base_loss=torch.nn.CrossEntropyLoss(reduction=reduction), **options)

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        fused, *alone = torch.chunk(inputs, 3, dim=1)
        return self.loss(fused, alone, targets)


def of_modalities(batch: Batch) -> Batch:
    inputs, targets = batch
    return torch.cat([inputs, inputs.flip(1), inputs.roll(1, dims=1)], dim=1), targets


BATCH_CASES += [
    LossCase(
        name,
        lambda _, options=options: OfModalities(**options),
        lambda rows, generator: of_modalities(classes(rows, generator)),
        lambda: of_modalities(extreme_classes(HUGE)),
        reductions=("batch",),
    )
    for name, options in {
        "arl": {"reduction": "mean"},
        "arl-sum-warm-up": {"reduction": "sum", "gamma": 0.5, "warmup_steps": 10**6},
    }.items()
]


class ByTokens(torch.nn.Module):
    """A policy's log-probabilities (B, T), with targets (B, 3 T): those of the old policy, advantages, and the mask."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.loss = BalancedClipLoss(**options)

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.loss(inputs, *torch.chunk(targets, 3, dim=1))


def answers(rows: int, generator: torch.Generator) -> Batch:
    old = -3 * torch.rand(rows, 5, generator=generator, dtype=torch.float64)
    logp = old + 0.7 * torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    advantages = torch.randn(rows, 1, generator=generator, dtype=torch.float64).expand(rows, 5) - 0.3
    mask = (torch.arange(5) <= torch.randint(0, 5, (rows, 1), generator=generator)).double()
    return logp, torch.cat([old, advantages, mask], dim=1)


def extreme_answers() -> Batch:
    """Of negative advantages, whose losses are positive."""
    logp, old = -torch.cartesian_prod(HUGE.abs(), HUGE.abs()).T[:, :, None]
    return logp.clone(), torch.cat([old, -torch.ones_like(old), torch.ones_like(old)], dim=1)


BATCH_CASES += [
    LossCase(f"balanced-clip-{name}", lambda _, options=options: ByTokens(**options), answers, extreme_answers, reductions=("batch",))
    for name, options in {
        "paper": {},
        "reference-sequences": {"preset": "reference", "reduction": "seq-mean"},
        "gradient-constant": {"statistic": "gradient", "reduction": "constant", "dual_clip": None},
    }.items()
]


class ByCaptions(torch.nn.Module):
    """Cement of images, with targets (B, 2 D + 1): the caption, its hard negative, and the concreteness of the edit."""

    def __init__(self, reduction: str, **options: object) -> None:
        super().__init__()
        self.loss = CementLoss(2.0, reduction=reduction, **options)

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        d = inputs.shape[1]
        return self.loss(inputs, targets[:, :d], targets[:, d : 2 * d], 10.0, targets[:, -1])


def captioned(rows: int, generator: torch.Generator, width: int = LABELS) -> Batch:
    captions = torch.randn(rows, 2 * width, generator=generator, dtype=torch.float64)
    image = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return image, torch.cat([captions, torch.rand(rows, 1, generator=generator, dtype=torch.float64)], dim=1)


def extreme_images() -> Batch:
    image = torch.cartesian_prod(HUGE, HUGE)
    return image, captioned(49, torch.Generator().manual_seed(0), 2)[1].float()


CAPTION_CASES = [
    LossCase("cement", ByCaptions, captioned, extreme_images),
    LossCase("cement-all-columns", partial(ByCaptions, hard_columns="all", adapt="constant", symmetric=False), captioned, extreme_images),
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


@pytest.mark.filterwarnings("ignore:attributes:UserWarning")  # a batch of one row has a single value
@pytest.mark.parametrize("check", DCOV_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", DCOV_CASES, ids=lambda case: case.name)
def test_battery_of_distance_covariances(case: LossCase, check: Callable[[LossCase], None]) -> None:
    check(case)


@pytest.mark.parametrize("check", UNBIASED_DCOV_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", UNBIASED_DCOV_CASES, ids=lambda case: case.name)
def test_battery_of_unbiased_distance_covariances(case: LossCase, check: Callable[[LossCase], None]) -> None:
    check(case)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile does: functions with a backward
@pytest.mark.parametrize("check", PAIR_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", PAIR_CASES + CAPTION_CASES, ids=lambda case: case.name)
def test_battery_of_losses_of_pairs(case: LossCase, check: Callable[[LossCase], None]) -> None:
    check(case)


def test_an_empty_batch_has_no_balanced_error() -> None:
    an_empty_batch_costs_nothing(next(case for case in PAIR_CASES if case.name == "balanced-mse"))
