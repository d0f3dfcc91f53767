"""What only a GPU shows: mixed precision, compiled kernels, waiting for the device, its memory, and transfers to it."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from counterpoise._errors import InputError
from counterpoise.data import BalancedClassSampler, CoresetBatchSampler, TemperatureBatchSampler, TemperatureSampler, facility_location
from counterpoise.diagnostics import sketch_gradients
from counterpoise.gradients import SAMGS, Accumulator, AsymmetricGradient, CAGrad, PCGrad, WinsorizedMean, backward, median_binarize
from counterpoise.losses import AnyLoss, BalancedClipLoss, ConRLoss, FocalLoss, HessianAlignmentLoss, distance_covariance
from counterpoise.optim import SGDP, AdamP, MicroBatchMedian, ProjectedUpdate
from tests.devices.cases import gaussian, uniform

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch.cuda.is_available() is False"),
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS, but there was no current CUDA context"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature"),
]
MIB = 2**20
compiles = pytest.mark.skipif(shutil.which("gcc") is None and shutil.which("cc") is None, reason="torch.compile needs a C compiler")


def on_gpu(x: Tensor) -> Tensor:
    return x.float().cuda() if x.is_floating_point() else x.cuda()


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.near, self.far = nn.Linear(6, 32), nn.Linear(32, 1), nn.Linear(32, 3)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(gaussian(*p.shape, seed=i) / 3)
        self.cuda()

    def losses(self) -> dict[str, Tensor]:
        x, classes = on_gpu(gaussian(48, 6)), (torch.arange(48) % 3).cuda()
        h = self.trunk(x).tanh()
        return {
            "any": AnyLoss("f1")(self.near(h)[:, 0], (classes == 0).long()),
            "focal": FocalLoss(multilabel=False)(self.far(h), classes),
        }

    def gradient(self) -> Tensor:
        return torch.cat([p.grad.flatten() for p in self.parameters()])


# ---- mixed precision --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["rows", "sketch"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_mixed_precision_gives_the_gradients_of_single_precision(dtype: torch.dtype, strategy: str) -> None:
    exact = TwoHeads()
    expected = backward(exact.losses(), CAGrad(), strategy=strategy)
    model = TwoHeads()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10, enabled=dtype == torch.float16)
    with torch.autocast("cuda", dtype=dtype):
        losses = model.losses()
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    report = backward(losses, CAGrad(), strategy=strategy, scaler=scaler)
    scaler.unscale_(optimizer)
    difference = (model.gradient() - exact.gradient()).norm() / exact.gradient().norm()
    assert difference < (0.05 if dtype == torch.bfloat16 else 0.01)
    torch.testing.assert_close(report.norms, expected.norms, rtol=0.05, atol=0)
    before = [p.detach().clone() for p in model.parameters()]
    scaler.step(optimizer)
    scaler.update()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("strategy", ["rows", "sketch"])
def test_a_step_that_overflows_is_skipped(strategy: str) -> None:
    model = TwoHeads()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**60)
    before = [p.detach().clone() for p in model.parameters()]
    with torch.autocast("cuda", dtype=torch.float16):
        losses = model.losses()
    backward(losses, PCGrad(), strategy=strategy, scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**59
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_micro_batches_in_mixed_precision() -> None:
    exact, model = TwoHeads(), TwoHeads()
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plain, scaled = Accumulator(exact.trunk.parameters(), CAGrad()), Accumulator(model.trunk.parameters(), CAGrad(), scaler=scaler)
    for _ in range(2):
        plain.backward(exact.losses())
        with torch.autocast("cuda", dtype=torch.float16):
            losses = model.losses()
        scaled.backward(losses)
    plain.step()
    scaled.step()
    scaler.unscale_(optimizer)
    assert (model.gradient() - exact.gradient()).norm() < 0.01 * exact.gradient().norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_losses_are_computed_in_single_precision_under_autocast(dtype: torch.dtype) -> None:
    x, classes = on_gpu(3 * gaussian(32, 4)), (torch.arange(32) % 4).cuda()
    z, group = on_gpu(gaussian(32)), on_gpu(uniform(32))
    calls: dict[str, Callable[[], Tensor]] = {
        "focal": lambda: FocalLoss(multilabel=False)(x, classes),
        "any": lambda: AnyLoss("mcc", multiclass="macro-ovr")(x, classes),
        "conr": lambda: ConRLoss(0.5)(x, z, z + 0.3, group),
        "covariance": lambda: distance_covariance(z, group),
    }
    for name, call in calls.items():
        expected = call()
        with torch.autocast("cuda", dtype=dtype):
            found = call()
        assert found.dtype == torch.float32, name
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


# ---- compiled ---------------------------------------------------------------------------------------------------------------------------


@compiles
@pytest.mark.filterwarnings("ignore")  # of the compiler, about itself
@pytest.mark.parametrize("loss", [FocalLoss(multilabel=False), AnyLoss("f1", mix_bce=0.3)], ids=["focal", "any"])
def test_compiled_losses(loss: nn.Module) -> None:
    x, classes = on_gpu(3 * gaussian(64, 4)), (torch.arange(64) % 4).cuda()
    found = []
    for call in (loss, torch.compile(loss)):
        leaf = x.clone().requires_grad_()
        value = call(leaf, classes)
        value.backward()
        found.append((value.detach(), leaf.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


@compiles
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_optimizer() -> None:
    found = []
    for compiled in (False, True):
        model = TwoHeads()
        optimizer = AdamP(model.parameters(), lr=0.01, capturable=True)
        step = torch.compile(optimizer.step) if compiled else optimizer.step
        for _ in range(3):
            optimizer.zero_grad()
            sum(model.losses().values()).backward()
            step()
        found.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


# ---- waiting for the device -------------------------------------------------------------------------------------------------------------


@contextmanager
def never_waits() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def waits(call: Callable[[], Any]) -> int:
    """How often a call waits for the device."""
    call()  # once before, for what is made only once
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in seen)


@pytest.mark.parametrize(
    "make",
    [
        AdamP,
        partial(AdamP, capturable=True),
        partial(SGDP, momentum=0.9),
        lambda p, lr: ProjectedUpdate(torch.optim.SGD(p, lr, momentum=0.9)),
    ],
    ids=["adamp", "adamp-capturable", "sgdp", "projected-sgd"],
)
def test_projecting_optimizers_do_not_wait(make: Callable[..., torch.optim.Optimizer]) -> None:
    """Where a step is projected is decided where the tensors are."""
    p = nn.Parameter(on_gpu(gaussian(16, 8)))
    optimizer = make([p], lr=0.01)
    p.grad = on_gpu(gaussian(16, 8, seed=1))
    optimizer.step()
    with never_waits():
        for _ in range(3):
            optimizer.step()


def test_greedy_picks_do_not_wait() -> None:
    rows = on_gpu(gaussian(200, 5))
    assert waits(lambda: facility_location(rows, 80, optimizer="naive")) == waits(lambda: facility_location(rows, 5, optimizer="naive"))


def test_what_a_loss_chose_is_read_only_on_demand() -> None:
    logp, old, advantages = (on_gpu(-3 * uniform(6, 5, seed=seed)) for seed in range(3))
    mask = torch.ones(6, 5, dtype=torch.bool, device="cuda")
    loss = BalancedClipLoss()
    loss(logp, old, advantages + 1.5, mask)
    assert loss.last is not None
    assert all(part.is_cuda and not part.requires_grad for part in (loss.last.low, loss.last.high, loss.last.share))


def test_sam_gs_looks_at_the_device_a_fixed_number_of_times() -> None:
    few, many = SAMGS(gamma=1), SAMGS(gamma=1)
    assert waits(lambda: few(on_gpu(gaussian(3, 40)))) == waits(lambda: many(on_gpu(gaussian(12, 40))))


# ---- memory -----------------------------------------------------------------------------------------------------------------------------


def peak(call: Callable[[], Any]) -> int:
    """Bytes that a call takes at once, beyond what there was."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def test_winsorizing_takes_a_few_megabytes_beyond_the_rows() -> None:
    rows = {name: torch.randn(16, 2**21, device="cuda") for name in "ab"}  # 128 MiB each
    aggregator = WinsorizedMean()
    results = 2 * 2**21 * 4
    assert peak(lambda: aggregator(rows)) < results + 128 * MIB


def test_distance_covariance_of_columns_takes_linear_memory() -> None:
    n = 100_000  # all pairs in double precision: 75 GiB
    x = torch.randn(n, device="cuda", requires_grad=True)
    z = torch.randint(3, (n,), device="cuda").float()
    assert peak(lambda: distance_covariance(x, z).backward()) < 256 * MIB


def test_blocks_of_anchors_bound_the_memory_of_conr() -> None:
    n = 4096
    features, target = torch.randn(n, 16, device="cuda", requires_grad=True), torch.rand(n, device="cuda")
    whole, blocks = (
        peak(lambda size=size: ConRLoss(0.1, block_size=size)(features, target, target.flip(0)).backward()) for size in (n, 128)
    )
    assert blocks < whole / 4


def test_micro_batch_median_keeps_k_less_one_gradients() -> None:
    n = 2**22
    p = nn.Parameter(torch.zeros(n, device="cuda"))
    optimizer = MicroBatchMedian(torch.optim.SGD([p], lr=0.1), k=3)
    p.grad = torch.ones_like(p)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(2):
        optimizer.step()
    held = torch.cuda.memory_allocated() - before
    assert 1.9 * 4 * n < held < 2.1 * 4 * n


# ---- transfers, places, seeds -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*(pin_memory|is_pinned)")  # that their argument is deprecated
def test_loaders_with_pinned_memory_deliver_the_stream() -> None:
    y = torch.arange(60) % 3
    data = TensorDataset(torch.arange(60.0), y)
    for make in (
        lambda: {"sampler": BalancedClassSampler(y, generator=0), "batch_size": 8},
        lambda: {"sampler": TemperatureSampler(y, generator=0), "batch_size": 8},
        lambda: {"batch_sampler": TemperatureBatchSampler(y, 8, generator=0)},
        lambda: {"batch_sampler": CoresetBatchSampler(gaussian(60, 5).cuda(), y.cuda(), pool_size=20, budget=8, generator=0)},
    ):
        plain, pinned = list(DataLoader(data, **make())), list(DataLoader(data, pin_memory=True, **make()))
        assert all(x.is_pinned() for x, _ in pinned)
        assert [x.cuda(non_blocking=True).tolist() for x, _ in pinned] == [x.tolist() for x, _ in plain]


def test_a_model_elsewhere_is_named() -> None:
    model = nn.Linear(6, 3).cuda()
    with pytest.raises(InputError, match="the device of the model"):
        sketch_gradients(model, nn.CrossEntropyLoss(), (torch.randn(60, 6), torch.arange(60) % 3), device="cpu")


def test_a_state_that_was_saved_elsewhere_goes_on() -> None:
    here, there = SAMGS(gamma=1), SAMGS(gamma=1)
    for seed in range(2):
        here(gaussian(4, 30, seed=seed))
    there.load_state_dict(here.state_dict())
    torch.testing.assert_close(there(gaussian(4, 30, seed=2).cuda()).cpu(), here(gaussian(4, 30, seed=2)), rtol=1e-9, atol=0)


def test_seeds_repeat_what_is_drawn_on_the_device() -> None:
    def noisy(seed: int) -> Tensor:
        module = AsymmetricGradient(2, "ogm-ge", generator=torch.Generator("cuda").manual_seed(seed)).cuda()
        features = [on_gpu(gaussian(12, 4, seed=k)).requires_grad_() for k in range(2)]
        logits = [on_gpu(gaussian(12, 3, seed=k)) for k in range(2)]
        module.update(logits, (torch.arange(12) % 3).cuda())
        sum(h.square().sum() for h in module(*features)).backward()
        return torch.cat([h.grad for h in features])

    assert torch.equal(noisy(0), noisy(0)) and not torch.equal(noisy(0), noisy(1))
    ties = [median_binarize(torch.zeros(999, device="cuda"), generator=torch.Generator("cuda").manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(ties[0], ties[1]) and not torch.equal(ties[0], ties[2])


def test_probes_of_the_device_estimate_the_diagonal() -> None:
    """Their numbers are others than those of the CPU; what they estimate is the same."""
    features, target, domain = on_gpu(gaussian(60, 4)), (torch.arange(60) % 3).cuda(), (torch.arange(60) % 2).cuda()
    head = nn.Linear(4, 3).cuda()
    with torch.no_grad():
        for i, p in enumerate(head.parameters()):
            p.copy_(gaussian(*p.shape, seed=i))
    found = []
    for options in ({"method": "diagonal"}, {"method": "hutchinson", "n_probes": 20_000}):
        loss = HessianAlignmentLoss(head, alpha=1.0, beta=0.0, **options)
        loss(features.clone().requires_grad_(), target, domain)
        assert loss.last is not None
        found.append(loss.last.hessian_gap.item())
    assert found[1] == pytest.approx(found[0], rel=0.1)


def test_a_training_of_two_losses_goes_down() -> None:
    model = TwoHeads()
    optimizer = AdamP(model.parameters(), lr=0.02)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        losses = model.losses()
        backward(losses, CAGrad())
        optimizer.step()
        values.append(sum(loss.item() for loss in losses.values()))
    assert values[-1] < 0.8 * values[0]
