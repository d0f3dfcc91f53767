from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from counterpoise._errors import InputError
from counterpoise.losses import AnyLoss, SoftConfusion, _anyloss, amplify, soft_confusion
from counterpoise.losses.functional import any_loss

NAMES = ["f1", "fbeta", "accuracy", "balanced_accuracy", "gmean", "gmean_squared", "mcc", "jaccard"]
NEED_BOTH = ["balanced_accuracy", "gmean", "gmean_squared", "mcc"]


def youden(tp, fp, fn, tn):
    return tp / (tp + fn) + tn / (tn + fp) - 1


def value_and_gradient(loss, logits, *rest) -> tuple[float, torch.Tensor]:
    x = logits.clone().requires_grad_()
    value = loss(x, *rest)
    value.backward()
    assert value.ndim == 0 and torch.isfinite(value) and torch.isfinite(x.grad).all()
    return value.item(), x.grad


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(40, generator=generator, dtype=torch.float64), (torch.rand(40, generator=generator) < 0.3).double()


@pytest.fixture
def classes() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(40, 4, generator=generator, dtype=torch.float64), torch.randint(3, (40,), generator=generator)


# ---- the equation ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("L", [0.5, 10.0, 73.0])
def test_amplify_follows_the_equation(L) -> None:
    p = torch.linspace(0, 1, 11, dtype=torch.float64)
    expected = [1 / (1 + math.exp(-L * (value - 0.5))) for value in p.tolist()]
    np.testing.assert_allclose(amplify(p, L), expected, rtol=0, atol=1e-14)


def test_limits_of_the_amplification() -> None:
    p = torch.tensor([0.0, 0.4999, 0.5, 0.5001, 1.0], dtype=torch.float64)
    torch.testing.assert_close(amplify(p, 1e9), (p > 0.5) + 0.5 * (p == 0.5), check_dtype=False)  # a threshold
    torch.testing.assert_close(amplify(p, 1e-3), 0.5 + 1e-3 * (p - 0.5) / 4)  # a line of slope L / 4
    torch.testing.assert_close(amplify(p, 10.0) + amplify(1 - p, 10.0), torch.ones_like(p))


def test_the_papers_amplification_is_the_last_that_stays_below_one() -> None:
    one = torch.ones((), dtype=torch.float64)
    assert amplify(one, 73.0) < 1 and amplify(one, 75.0) == 1
    assert amplify(one.float(), 32.0) < 1 and amplify(one.float(), 36.0) == 1


def test_counts_are_sums_over_rows(batch) -> None:
    logits, targets = batch
    weight = torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    counts = soft_confusion(logits, targets, 10.0, weight)
    expected = np.zeros(4)
    for z, y, w in zip(logits.tolist(), targets.tolist(), weight.tolist(), strict=True):
        h = 1 / (1 + math.exp(-10 * (1 / (1 + math.exp(-z)) - 0.5)))
        expected += w * np.array([y * h, (1 - y) * h, y * (1 - h), (1 - y) * (1 - h)])
    assert isinstance(counts, SoftConfusion)
    np.testing.assert_allclose(torch.stack(list(counts)), expected, rtol=1e-13)


@pytest.mark.parametrize(("name", "beta"), [(name, 1.0) for name in NAMES] + [("fbeta", 2.0), ("fbeta", 0.5), ("fbeta", 0.0)])
def test_metrics_are_those_of_the_four_counts(batch, name, beta) -> None:
    tp, fp, fn, tn = (count.item() for count in soft_confusion(*batch))
    square = beta**2
    expected = {
        "f1": 2 * tp / (2 * tp + fp + fn),
        "fbeta": (1 + square) * tp / ((1 + square) * tp + square * fn + fp),
        "accuracy": (tp + tn) / 40,
        "balanced_accuracy": (tp / (tp + fn) + tn / (tn + fp)) / 2,
        "gmean": math.sqrt(tp / (tp + fn) * tn / (tn + fp)),
        "gmean_squared": tp / (tp + fn) * tn / (tn + fp),
        "mcc": (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)),
        "jaccard": tp / (tp + fp + fn),
    }[name]
    assert AnyLoss(name, beta=beta)(*batch).item() == pytest.approx(1 - expected, abs=1e-13)


def test_the_gradient_of_fbeta_is_the_closed_form(batch) -> None:
    logits, targets = batch
    logits.requires_grad_()
    AnyLoss("fbeta", beta=2.0, amplification=7.0)(logits, targets).backward()
    p = logits.detach().sigmoid()
    h = amplify(p, 7.0)
    bottom = 4 * targets.sum() + h.sum()
    by_h = -5 * (targets * bottom - (targets * h).sum()) / bottom**2
    torch.testing.assert_close(logits.grad, by_h * 7 * h * (1 - h) * p * (1 - p))


SKLEARN = {
    "f1": metrics.f1_score,
    "fbeta": lambda y, h, **options: metrics.fbeta_score(y, h, beta=2.0, **options),
    "accuracy": metrics.accuracy_score,
    "balanced_accuracy": metrics.balanced_accuracy_score,
    "mcc": metrics.matthews_corrcoef,
    "jaccard": metrics.jaccard_score,
}


@pytest.mark.parametrize("name", SKLEARN)
def test_decisions_without_doubt_have_scikit_learns_metric(batch, name) -> None:
    logits, targets = batch
    loss = AnyLoss(name, beta=2.0 if name == "fbeta" else 1.0, amplification="auto")
    weight = torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = 1 - SKLEARN[name](targets.numpy(), logits.numpy() > 0, sample_weight=weight.numpy())
    assert loss(1e3 * logits, targets, weight).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["f1", "jaccard"])
def test_classes_have_scikit_learns_macro_mean(classes, name) -> None:
    logits, targets = classes  # class 3 does not occur
    expected = 1 - SKLEARN[name](targets.numpy(), logits.argmax(1).numpy(), average="macro", labels=[0, 1, 2])
    assert AnyLoss(name, amplification="auto")(1e3 * logits, targets).item() == pytest.approx(expected, abs=1e-12)


def test_without_amplification_f1_is_the_dice_loss(batch) -> None:
    logits, targets = batch
    p = logits.sigmoid()
    dice = 1 - 2 * (p * targets).sum() / (p.sum() + targets.sum())
    torch.testing.assert_close(AnyLoss("f1", amplification=None)(logits, targets), dice)


def test_identities_between_metrics(batch) -> None:
    f1 = 1 - AnyLoss("f1")(*batch)
    torch.testing.assert_close(1 - AnyLoss("jaccard")(*batch), f1 / (2 - f1))
    torch.testing.assert_close((1 - AnyLoss("gmean")(*batch)) ** 2, 1 - AnyLoss("gmean_squared")(*batch))
    torch.testing.assert_close(AnyLoss(youden)(*batch), 2 * AnyLoss("balanced_accuracy")(*batch))
    counts = soft_confusion(*batch)
    torch.testing.assert_close(1 - AnyLoss("fbeta", beta=1e6)(*batch), counts.tp / (counts.tp + counts.fn))  # recall
    torch.testing.assert_close(1 - AnyLoss("fbeta", beta=0.0)(*batch), counts.tp / (counts.tp + counts.fp))  # precision


# ---- the usual case, computed at once, and the general one ------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_usual_case_is_the_general_one(monkeypatch, batch, name, weighted) -> None:
    weight = torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64) if weighted else None
    calls = []
    column = _anyloss._is_column
    monkeypatch.setattr(_anyloss, "_is_column", lambda *arguments: calls.append(column(*arguments)) or calls[-1])
    for amplification in (10.0, "auto"):
        loss = AnyLoss(name, amplification=amplification)
        at_once = value_and_gradient(loss, batch[0][:, None], batch[1][:, None], weight)
        assert calls.pop()
        general = value_and_gradient(AnyLoss(name, amplification=amplification, soft_targets=True), *batch, weight)
        assert not calls
        assert at_once[0] == pytest.approx(general[0], abs=1e-13)
        torch.testing.assert_close(at_once[1][:, 0], general[1], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_of_all_kinds(batch, name) -> None:
    logits, targets = batch[0][:8].clone().requires_grad_(), batch[1][:8]
    weight = torch.linspace(0.5, 1.5, 8, dtype=torch.float64)
    loss = AnyLoss(name)

    def call(z):
        return loss(z, targets, weight)

    assert torch.autograd.gradcheck(call, (logits,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, (logits,))
    (expected,) = torch.autograd.grad(call(logits), logits)
    torch.testing.assert_close(torch.func.grad(call)(logits.detach()), expected)
    hessian = torch.autograd.functional.hessian(call, logits)
    torch.testing.assert_close(torch.func.jacfwd(torch.func.grad(call))(logits.detach()), hessian)


def test_gradients_that_arrive_are_passed_on(batch) -> None:
    logits = batch[0].clone().requires_grad_()
    loss = AnyLoss()(logits, batch[1])
    (once,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (thrice,) = torch.autograd.grad(3 * loss, logits)
    torch.testing.assert_close(thrice, 3 * once)
    learned = batch[1].clone().requires_grad_()
    AnyLoss()(logits, learned).backward()
    assert learned.grad is not None and learned.grad.any()


# ---- inputs that mean the same -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [*NAMES, youden])
def test_logits_and_probabilities_columns_and_types_of_targets(batch, metric) -> None:
    logits, targets = batch
    loss = AnyLoss(metric, mix_bce=0.2)
    expected = loss(logits, targets)
    torch.testing.assert_close(loss(logits[:, None], targets[:, None]), expected)
    torch.testing.assert_close(AnyLoss(metric, mix_bce=0.2, from_logits=False)(logits.sigmoid(), targets), expected)
    for dtype in (torch.int64, torch.bool, torch.float16):
        torch.testing.assert_close(loss(logits, targets.to(dtype)), expected)
    torch.testing.assert_close(any_loss(logits, targets, metric, mix_bce=0.2), expected)


@pytest.mark.parametrize("metric", [*NAMES, youden])
def test_weights_are_copies_of_rows(batch, metric) -> None:
    logits, targets = batch
    times = torch.arange(40) % 4
    copied = AnyLoss(metric, mix_bce=0.2)(logits.repeat_interleave(times), targets.repeat_interleave(times))
    torch.testing.assert_close(AnyLoss(metric, mix_bce=0.2)(logits, targets, times.double()), copied)
    torch.testing.assert_close(AnyLoss(metric, mix_bce=0.2)(logits, targets, weight=9.0 * times), copied)
    columns = torch.stack([logits, -logits, logits / 2], dim=1)
    kinds = [("macro-ovr", targets.long()), (None, torch.stack([targets, 1 - targets, targets], dim=1))]
    for multiclass, y in kinds:
        loss = AnyLoss(metric, multiclass=multiclass, mix_bce=0.2)
        copied = loss(columns.repeat_interleave(times, dim=0), y.repeat_interleave(times, dim=0))
        torch.testing.assert_close(loss(columns, y, times), copied)


@pytest.mark.parametrize("metric", [*NAMES, youden])
def test_columns_are_a_mean_of_binary_losses_over_what_occurs(classes, metric) -> None:
    logits, targets = classes  # class 3 does not occur
    one = AnyLoss(metric, from_logits=False)
    expected = torch.stack([one(logits.softmax(1)[:, k], targets == k) for k in range(3)]).mean()
    torch.testing.assert_close(AnyLoss(metric)(logits, targets), expected)
    labels = F.one_hot(targets, 4)
    expected = torch.stack([AnyLoss(metric)(logits[:, k], labels[:, k]) for k in range(3)]).mean()
    torch.testing.assert_close(AnyLoss(metric, multiclass=None)(logits, labels), expected)


def test_the_other_part_of_a_mixture_is_cross_entropy(batch, classes) -> None:
    weight = torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bce = F.binary_cross_entropy_with_logits(*batch, reduction="none")
    torch.testing.assert_close(AnyLoss(mix_bce=1.0)(*batch), bce.mean())
    torch.testing.assert_close(AnyLoss(mix_bce=1.0)(*batch, weight), (bce * weight).sum() / weight.sum())
    torch.testing.assert_close(AnyLoss("gmean", mix_bce=0.3)(*batch), 0.7 * AnyLoss("gmean")(*batch) + 0.3 * bce.mean())
    logits, targets = classes
    torch.testing.assert_close(AnyLoss(mix_bce=1.0)(logits, targets), F.cross_entropy(logits, targets))
    labels = F.one_hot(targets, 4).double()
    expected = F.binary_cross_entropy_with_logits(logits, labels)
    torch.testing.assert_close(AnyLoss(mix_bce=1.0, multiclass=None)(logits, labels), expected)


def test_soft_targets(batch) -> None:
    logits, targets = batch
    smooth = 0.1 + 0.8 * targets
    loss = AnyLoss("accuracy", soft_targets=True)
    torch.testing.assert_close(loss(logits, smooth), 0.9 * loss(logits, targets) + 0.1 * loss(logits, 1 - targets))


def test_half_precision_is_summed_in_single() -> None:
    # 100,000 ones: a sum in float16 ends at infinity, one in bfloat16 at 256.
    logits, targets = torch.full((100_000,), 9.0), torch.ones(100_000)
    for dtype in (torch.float16, torch.bfloat16):
        counts = soft_confusion(logits.to(dtype), targets, 10.0)
        assert counts.tp.dtype == torch.float32
        assert counts.tp.item() == pytest.approx(99_331, abs=5)
        assert amplify(torch.ones(1, dtype=dtype), 10.0).dtype == torch.float32


# ---- batches that lack something ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["f1", "jaccard"])
def test_f_without_positives_is_zero_and_has_no_gradient(batch, name) -> None:
    value, gradient = value_and_gradient(AnyLoss(name), batch[0], torch.zeros(40))
    assert value == 1.0 and not gradient.any()


def test_accuracy_without_positives_pushes_down(batch) -> None:
    assert (value_and_gradient(AnyLoss("accuracy"), batch[0], torch.zeros(40))[1] > 0).all()


@pytest.mark.parametrize("metric", [*NEED_BOTH, youden])
@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_a_batch_of_one_class_is_skipped_or_refused(batch, metric, fill) -> None:
    logits, targets = batch[0], torch.full((40,), fill)
    value, gradient = value_and_gradient(AnyLoss(metric), logits, targets)
    assert value == 0.0 and not gradient.any()
    with pytest.raises(InputError, match=r"target: got a batch for which (\w+) is not defined; expected rows of both classes"):
        AnyLoss(metric, on_empty="raise")(logits, targets)
    several = logits.reshape(10, 4)
    for loss, y in ((AnyLoss(metric), torch.full((10,), int(fill))), (AnyLoss(metric, multiclass=None), torch.full((10, 4), fill))):
        value, gradient = value_and_gradient(loss, several, y)
        assert value == 0.0 and not gradient.any()
        with pytest.raises(InputError, match="not defined"):
            AnyLoss(metric, multiclass=loss.options.multiclass, on_empty="raise")(several, y)


def test_where_the_metric_is_defined_nothing_is_raised(batch) -> None:
    for metric in [*NAMES, youden]:
        loss = AnyLoss(metric, on_empty="raise")
        assert loss(*batch) == AnyLoss(metric)(*batch)
    assert AnyLoss("f1", on_empty="raise")(batch[0], torch.zeros(40)).item() == 1.0


@pytest.mark.parametrize("metric", [*NAMES, youden])
def test_weights_of_zero_leave_a_finite_loss_without_gradient(batch, metric) -> None:
    assert not value_and_gradient(AnyLoss(metric, mix_bce=0.2), *batch, torch.zeros(40))[1].any()


@pytest.mark.parametrize("metric", NAMES)
def test_everything_wrong_has_a_finite_gradient(metric) -> None:
    p, y = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1, 1, 0])
    value, _ = value_and_gradient(AnyLoss(metric, amplification=None, from_logits=False), p, y)
    assert value == pytest.approx(2.0 if metric == "mcc" else 1.0, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_nan_is_not_hidden(batch, name) -> None:
    logits = batch[0].clone()
    logits[3] = torch.nan
    for loss in (AnyLoss(name), AnyLoss(name, soft_targets=True)):  # the usual case and the general one
        assert torch.isnan(loss(logits, batch[1]))


def test_a_mask_is_a_weight(batch) -> None:
    mask = torch.arange(40) % 3 > 0
    torch.testing.assert_close(AnyLoss()(*batch, mask), AnyLoss()(batch[0][mask], batch[1][mask]))


@pytest.mark.parametrize("metric", [*NAMES, youden])
def test_one_row_of_classes(metric) -> None:
    value_and_gradient(AnyLoss(metric), torch.tensor([[0.5, -1.0, 2.0]]), torch.tensor([1]))


# ---- several processes -------------------------------------------------------------------------------------------------------------------

ROWS = [5, 11]  # of the two processes


def whole_batch(kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(sum(ROWS), 6, generator=generator, dtype=torch.float64)
    weight = torch.rand(sum(ROWS), generator=generator, dtype=torch.float64)
    y = torch.randint(2 if kind == "binary" else 3, (sum(ROWS),), generator=generator)
    y[: ROWS[0]] = 0  # the first process has no positive of its own
    return X, y[:, None].double() if kind == "binary" else y, weight


def linear(kind: str) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 1 if kind == "binary" else 3).double()


PROCESS_CASES = [("binary", "f1", 0.0), ("binary", "gmean", 0.3), ("classes", "mcc", 0.3)]


def one_process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mine = slice(0, ROWS[0]) if rank == 0 else slice(ROWS[0], None)
    found = []
    for kind, metric, mix in PROCESS_CASES:
        X, y, weight = whole_batch(kind)
        for group in (dist.group.WORLD, None):
            model = nn.parallel.DistributedDataParallel(linear(kind))
            loss = AnyLoss(metric, mix_bce=mix, process_group=group)(model(X[mine]), y[mine], weight[mine])
            loss.backward()
            found.append((loss.item(), [parameter.grad for parameter in model.parameters()]))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_processes_have_the_loss_and_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_process, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for i, (kind, metric, mix) in enumerate(PROCESS_CASES):
        X, y, weight = whole_batch(kind)
        model = linear(kind)
        loss = AnyLoss(metric, mix_bce=mix)(model(X), y, weight)
        loss.backward()
        expected = [parameter.grad for parameter in model.parameters()]
        for found in ranks:
            together, alone = found[2 * i], found[2 * i + 1]
            assert together[0] == pytest.approx(loss.item(), abs=1e-12)
            torch.testing.assert_close(together[1], expected, rtol=1e-9, atol=1e-12)
            assert not torch.allclose(alone[1][0], expected[0], rtol=0.05)  # a mean of local losses is something else


def test_one_process_needs_no_group(batch) -> None:
    torch.testing.assert_close(AnyLoss(process_group=object())(*batch), AnyLoss()(*batch))


# ---- compilation -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [*NAMES, youden])
def test_the_graph_has_no_break(batch, classes, metric) -> None:
    for loss, (logits, targets) in ((AnyLoss(metric, mix_bce=0.2), batch), (AnyLoss(metric), classes)):
        torch._dynamo.reset()
        compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
        weight = torch.linspace(0, 1, 40)
        expected = value_and_gradient(loss, logits, targets, weight)
        found = value_and_gradient(compiled, logits, targets, weight)
        torch.testing.assert_close(found, expected)


def test_the_function_compiles_too(batch) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda z, y: any_loss(z, y, "gmean", amplification="auto"), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*batch), AnyLoss("gmean", amplification="auto")(*batch))


# ---- bad input ---------------------------------------------------------------------------------------------------------------------------

NAN = float("nan")


@pytest.mark.parametrize(
    ("options", "inputs", "targets", "message"),
    [
        ({}, torch.zeros(3), torch.tensor([0.0, 0.5, 1.0]), "target: got 0.5; expected 0 or 1. soft_targets=True takes what lies between"),
        ({}, torch.zeros(3), torch.tensor([0, 1, 2]), "target: got 2"),
        ({}, torch.zeros(3), torch.tensor([0, 1, NAN]), "target: got nan"),
        ({}, torch.zeros(3), torch.tensor([0, 1, float("inf")]), "target: got inf"),
        ({"soft_targets": True}, torch.zeros(2), torch.tensor([0.0, 1.5]), r"target: got 1.5; expected values in \[0, 1\]"),
        ({"soft_targets": True}, torch.zeros(2), torch.tensor([0.0, NAN]), "target: got nan"),
        ({}, torch.zeros(3), torch.zeros(4), r"input and target: got shapes \(3,\) and \(4,\); expected the same shape"),
        ({}, torch.zeros(3, 1), torch.zeros(3), r"got shapes \(3, 1\) and \(3,\)"),
        ({}, torch.zeros(3, 2), torch.zeros(3, 2), r"expected \(B, K\) and classes \(B,\). multiclass=None takes labels"),
        ({"multiclass": None}, torch.zeros(3, 2), torch.zeros(3), "expected the same shape"),
        ({}, torch.zeros(3, 2), torch.zeros(3), "target: got a tensor of torch.float32; expected integer classes"),
        ({}, torch.zeros(3, 2), torch.tensor([0, 2, 1]), r"target: got 2; expected classes 0\.\.1"),
        ({}, torch.zeros(3, 2), torch.tensor([0, -1, 1]), "target: got -1"),
        ({}, torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), r"input: got shape \(2, 3, 4\)"),
        ({}, torch.zeros(()), torch.zeros(()), "input: got shape"),
        ({}, torch.zeros(0), torch.zeros(0), r"input: got shape \(0,\).*A batch without rows"),
        ({}, torch.zeros(3, dtype=torch.int64), torch.zeros(3), "input: got a tensor of torch.int64"),
        ({"check_finite": True}, torch.tensor([0.0, NAN]), torch.zeros(2), "input: got 1 values that are not finite"),
        ({"check_finite": True}, torch.tensor([0.0, float("inf")]), torch.zeros(2), "input: got 1 values that are not finite"),
        ({"from_logits": False}, torch.tensor([0.0, 1.1]), torch.zeros(2), r"input: got values outside \[0, 1\].*from_logits=True"),
        ({"from_logits": False}, torch.tensor([0.0, NAN]), torch.zeros(2), r"input: got values outside \[0, 1\]"),
    ],
)
def test_bad_batches_are_refused(options, inputs, targets, message) -> None:
    with pytest.raises(InputError, match=message):
        AnyLoss(**options)(inputs, targets)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(2), r"weight: got shape \(2,\); expected one weight per row, shape \(3,\)"),
        (torch.tensor([1.0, -1.0, 1.0]), "weight: got a negative or infinite weight"),
        (torch.tensor([1.0, NAN, 1.0]), "weight: got"),
        (torch.tensor([1.0, float("inf"), 1.0]), "weight: got"),
    ],
)
def test_bad_weights_are_refused(weight, message) -> None:
    with pytest.raises(InputError, match=message):
        AnyLoss()(torch.zeros(3), torch.ones(3), weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "f2"}, "metric: got 'f2'; expected one of f1, fbeta, .* Or give a function"),
        ({"metric": "f1", "beta": 2.0}, "beta: got 2.0; expected 1 for metric='f1'. metric='fbeta' takes a beta"),
        ({"metric": "fbeta", "beta": -1.0}, "beta: got -1.0; expected a number >= 0"),
        ({"amplification": 0}, "amplification: got 0; expected a number > 0"),
        ({"amplification": "high"}, "amplification: got 'high'; expected one of auto"),
        ({"multiclass": "micro"}, "multiclass: got 'micro'"),
        ({"mix_bce": 1.5}, r"mix_bce: got 1.5; expected a number in \[0, 1\]"),
        ({"eps": 0.0}, "eps: got 0.0"),
        ({"on_empty": "ignore"}, "on_empty: got 'ignore'; expected one of skip, raise"),
    ],
)
def test_bad_options_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        AnyLoss(**options)
    with pytest.raises(InputError, match=message):
        any_loss(torch.zeros(3), torch.ones(3), **options)


@pytest.mark.parametrize("L", [0.0, -1.0, NAN])
def test_amplify_needs_a_positive_slope(L) -> None:
    with pytest.raises(InputError, match="L: got"):
        amplify(torch.rand(3), L)
    with pytest.raises(InputError, match="amplification: got"):
        soft_confusion(torch.rand(3), torch.ones(3), L)


def test_amplify_needs_numbers_with_fractions() -> None:
    with pytest.raises(InputError, match=r"p: got a tensor of torch\.int64"):
        amplify(torch.tensor([0, 1]), 10.0)


def test_reduction_is_absent_by_design() -> None:
    with pytest.raises(TypeError, match="reduction"):
        AnyLoss(reduction="mean")


def test_repr() -> None:
    assert repr(AnyLoss("fbeta", beta=2)) == "AnyLoss(metric=fbeta, beta=2, amplification=10.0, from_logits=True, mix_bce=0)"
    assert repr(AnyLoss(youden)).startswith("AnyLoss(metric=youden, amplification=10.0")
