from __future__ import annotations

import copy
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from counterpoise._errors import InputError
from counterpoise.gradients import AsymmetricGradient, arl_weights, scale_gradient
from counterpoise.gradients._asymmetric import MODES
from counterpoise.gradients._modalities import modality_statistics

ROWS, CLASSES = 12, 3
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs a C++ compiler"
)


class TwoViews(nn.Module):
    """Encoders of several modalities, and a head on all of them."""

    def __init__(self, mode: str = "arl", modalities: int = 2, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoders = nn.ModuleList([nn.Linear(4 + m, 5) for m in range(modalities)])
        self.asymmetric = AsymmetricGradient(modalities, mode, **options)
        self.head = nn.Linear(5 * modalities, CLASSES)

    def forward(self, inputs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        features = self.asymmetric(*(encoder(x) for encoder, x in zip(self.encoders, inputs, strict=True)))
        columns = torch.split(self.head.weight, 5, dim=1)
        alone = [F.linear(h, own, self.head.bias) for h, own in zip(features, columns, strict=True)]
        return self.head(torch.cat(features, dim=1)), alone

    def step(self, inputs: list[Tensor], target: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """Gradients of the parameters of each encoder, and of the head, in one vector each."""
        fused, alone = self(inputs)
        self.asymmetric.update(alone, target, mask)
        self.zero_grad()
        (F.cross_entropy(fused, target) + sum(F.cross_entropy(part, target) for part in alone)).backward()
        return [torch.cat([p.grad.flatten() for p in part.parameters()]) for part in (*self.encoders, self.head)]


def batch(modalities: int = 2, rows: int = ROWS, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    source = torch.Generator().manual_seed(seed)
    inputs = [(1 + 3 * m) * torch.randn(rows, 4 + m, generator=source) for m in range(modalities)]
    return inputs, torch.randint(CLASSES, (rows,), generator=source)


# ---- scale_gradient ---------------------------------------------------------------------------------------------------------------------


def test_values_stay_and_gradients_are_scaled() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    for scale in (1.5, 0.0, -1.0, torch.tensor(2.0), torch.tensor([[1.0], [0.0], [3.0]]), torch.arange(4.0)):
        y = scale_gradient(x, scale)
        assert torch.equal(y, x) and y.data_ptr() == x.data_ptr()
        weights = torch.randn(3, 4)
        (found,) = torch.autograd.grad((weights * y).sum(), x)
        assert torch.equal(found, weights * scale)


def test_gradients_can_be_differentiated_again() -> None:
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    for scale in (1.5, torch.tensor(1.5)):
        (first,) = torch.autograd.grad((scale_gradient(x, scale) ** 3).sum(), x, create_graph=True)
        torch.testing.assert_close(first, 1.5 * 3 * x**2)
        (second,) = torch.autograd.grad(first.sum(), x)
        torch.testing.assert_close(second, 1.5 * (1.5 * 6 * x))  # through the scaled path again


def test_scale_is_read_when_the_gradient_passes_and_keeps_the_type() -> None:
    scale = torch.tensor(1.0)
    x = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    y = scale_gradient(x, scale)
    scale.fill_(1.5)
    y.sum().backward()
    assert x.grad.dtype == torch.bfloat16 and x.grad.tolist() == [1.5] * 3


def test_gradients_of_single_examples() -> None:
    weight, x = torch.randn(4), torch.randn(6, 4)
    found = torch.func.vmap(torch.func.grad(lambda w, x: scale_gradient(w * x, 1.5).sum()), (None, 0))(weight, x)
    torch.testing.assert_close(found, 1.5 * x)
    factor = torch.tensor(0.5)
    found = torch.func.vmap(torch.func.grad(lambda w, x: scale_gradient(w * x, factor).sum()), (None, 0))(weight, x)
    torch.testing.assert_close(found, 0.5 * x)


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (float("nan"), "finite"),
        (True, "a number"),
        ("2", "a number"),
        (torch.ones(2), "broadcasts"),
        (torch.ones(1, 1, 3), "broadcasts"),
    ],
)
def test_bad_scales(scale: Any, words: str) -> None:
    with pytest.raises(InputError, match=f"scale: .*{words}"):
        scale_gradient(torch.ones(3), scale)


# ---- factors of a step ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "ogm-ge"])
def test_encoders_are_scaled_by_the_factors_of_their_own_batch_and_the_head_is_not(mode: str, modalities: int) -> None:
    plain, model = TwoViews("off", modalities), TwoViews(mode, modalities)
    for seed in range(2):
        inputs, target = batch(modalities, seed=seed)
        wanted, found = plain.step(inputs, target), model.step(inputs, target)
        scale = model.asymmetric.scale
        assert mode == "off" or not torch.equal(scale, torch.ones(modalities))
        for m in range(modalities):
            torch.testing.assert_close(found[m], scale[m] * wanted[m])
        torch.testing.assert_close(found[-1], wanted[-1], rtol=0, atol=0)


def test_factors_are_those_of_their_mode() -> None:
    logits = [torch.randn(ROWS, CLASSES) * (1 + 2 * m) for m in range(3)]
    target = torch.arange(ROWS) % CLASSES
    report = modality_statistics(logits)
    k = arl_weights(report.dependence, report.inverse_variance_share, 5.0)
    found = {mode: AsymmetricGradient(3, mode, temperature=5.0, alpha=0.4) for mode in MODES}
    for module in found.values():
        module.update(logits, target)
    torch.testing.assert_close(found["arl"].scale, 1 + k)
    torch.testing.assert_close(found["arl"].weights, k)
    torch.testing.assert_close(found["uniform"].scale, torch.full((3,), 4 / 3))
    torch.testing.assert_close(found["off"].scale, torch.ones(3))
    torch.testing.assert_close(found["inverse"].weights, (1 / k) / (1 / k).sum(), rtol=1e-4, atol=1e-6)
    true = torch.stack([part.softmax(dim=1)[torch.arange(ROWS), target].mean() for part in logits])
    for m in range(3):
        ratio = true[m] / (true.sum() - true[m]) * 2
        wanted = 1 - torch.tanh(0.4 * ratio) if ratio > 1 else torch.tensor(1.0)
        for mode in ("ogm", "ogm-ge"):
            torch.testing.assert_close(found[mode].scale[m], wanted)
    assert (found["ogm"].scale < 1).any() and (found["ogm"].scale == 1).any()


def test_ogm_of_two_modalities_is_the_published_form() -> None:
    logits, target = [torch.randn(8, 4), 2 * torch.randn(8, 4)], torch.arange(8) % 4
    module = AsymmetricGradient(2, "ogm", alpha=0.3)
    module.update(logits, target)
    score = [sum(part.softmax(dim=1)[i][target[i]] for i in range(8)) for part in logits]  # their loop over examples
    ratio = score[0] / score[1]
    first, second = (1 - torch.tanh(0.3 * ratio), torch.tensor(1.0)) if ratio > 1 else (torch.tensor(1.0), 1 - torch.tanh(0.3 / ratio))
    torch.testing.assert_close(module.scale, torch.stack([first, second]))


def test_noise_of_ogm_ge_is_as_large_as_the_gradient_and_repeatable() -> None:
    x = torch.randn(200, 50, requires_grad=True)
    upstream = 3 + 2 * torch.randn(200, 50)
    runs = []
    for seed in (1, 1, 2):
        module = AsymmetricGradient(2, "ogm-ge", generator=torch.Generator().manual_seed(seed))
        state = torch.get_rng_state()
        y, _ = module(x, x)
        assert torch.equal(torch.get_rng_state(), state)
        module.update([5 * torch.eye(3), torch.zeros(3, 3)], torch.arange(3))
        (found,) = torch.autograd.grad((upstream * y).sum(), x)
        runs.append(found)
        noise = found - module.scale[0] * upstream
        assert abs(noise.mean()) < 0.1 and noise.std().item() == pytest.approx(upstream.std().item(), rel=0.05)
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    x = torch.ones(1, requires_grad=True)
    y, _ = module(x, x)
    module.update([torch.zeros(2, 3)] * 2, torch.zeros(2, dtype=torch.int64))
    y.backward()  # a gradient of one number has no spread
    assert x.grad.item() == 1


def test_nothing_is_scaled_before_the_first_update_in_warm_up_and_in_eval() -> None:
    inputs, target = batch()
    plain = TwoViews("off")
    for mode in ("uniform", "ogm-ge", "arl"):
        model = TwoViews(mode, warmup_steps=2)
        for _ in range(2):
            for found, wanted in zip(model.step(inputs, target), plain.step(inputs, target), strict=True):
                torch.testing.assert_close(found, wanted, rtol=0, atol=0)
        assert not torch.allclose(model.step(inputs, target)[0], plain.step(inputs, target)[0], rtol=0.01)
    assert (model.asymmetric.scale > 1).all()
    x = torch.ones(2, requires_grad=True)
    AsymmetricGradient(2)(x, x)[0].sum().backward()
    assert x.grad.tolist() == [1, 1]
    before = model.asymmetric.state_dict()
    frozen = copy.deepcopy(before)
    model.asymmetric.eval()
    features = [torch.ones(2), torch.ones(2)]
    assert all(found is part for found, part in zip(model.asymmetric(*features), features, strict=True))
    model.asymmetric.update([torch.randn(4, 3), torch.randn(4, 3)])
    torch.testing.assert_close(before, frozen, rtol=0, atol=0)


def test_modalities_that_are_absent() -> None:
    parts = [torch.randn(ROWS, CLASSES) * (1 + m) for m in range(3)]
    target = torch.arange(ROWS) % CLASSES
    mask = torch.ones(ROWS, 3, dtype=torch.bool)
    mask[: ROWS // 2, 0] = False
    mask[:, 2] = False
    holes = [torch.where(mask[:, [m]], part, float("nan")) for m, part in enumerate(parts)]
    for mode in MODES:
        module, two = AsymmetricGradient(3, mode), AsymmetricGradient(2, mode)
        module.update(holes, target, mask)
        two.update(holes[:2], target, mask[:, :2])
        torch.testing.assert_close(module.scale, torch.cat([two.scale, torch.ones(1)]))
        assert module.weights[2] == 0
        module.update(parts, target, torch.zeros(ROWS, 3, dtype=torch.bool))
        assert module.scale.tolist() == [1, 1, 1]
    alone = AsymmetricGradient(2, "ogm")
    alone.update(parts[:2], target, mask[:, [1, 2]])
    assert alone.scale.tolist() == [1, 1]


def test_regression_keeps_a_running_variance() -> None:
    source = torch.Generator().manual_seed(0)
    module = AsymmetricGradient(2, task="regression", ema=0.5)
    running = None
    for _ in range(3):
        y = torch.randn(50, 2, generator=source)
        parts = [y + sd * torch.randn(50, 2, generator=source) for sd in (0.5, 1.5)]
        module.update(parts, y)
        variance = torch.stack([(part - y).var(dim=0, correction=0).sum() for part in parts])
        running = variance if running is None else 0.5 * running + 0.5 * variance
        torch.testing.assert_close(module.variance, running)
    a = torch.stack([part.abs().mean(dim=0).sum() for part in parts])
    e = (running / running.sum()).clamp(min=0.3)
    torch.testing.assert_close(module.weights, arl_weights(a / a.sum(), (1 / e) / (1 / e).sum()))
    assert "regression" in repr(module)
    # Who is absent keeps the variance it had.
    before = module.variance.clone()
    module.update(parts, y, torch.tensor([[True, False]]).expand(50, 2))
    assert module.variance[1] == before[1] and module.variance[0] != before[0]


def test_state_goes_on_where_it_was() -> None:
    inputs, target = batch()
    first = TwoViews(warmup_steps=3)
    for _ in range(2):
        first.step(inputs, target)
    second = TwoViews(warmup_steps=3)
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        for a, b in zip(first.step(inputs, target), second.step(inputs, target), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert (second.asymmetric.scale > 1).all()


# ---- precision, compilation, second derivatives, processes ------------------------------------------------------------------------------


def test_autocast() -> None:
    inputs, target = batch(rows=64)
    single, half = TwoViews(), TwoViews()
    wanted = single.step(inputs, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused, alone = half(inputs)
        half.asymmetric.update(alone)
    assert alone[0].dtype == torch.bfloat16 and half.asymmetric.scale.dtype == torch.float32
    torch.testing.assert_close(half.asymmetric.scale, single.asymmetric.scale, rtol=0.02, atol=0)
    (F.cross_entropy(fused.float(), target) + sum(F.cross_entropy(part.float(), target) for part in alone)).backward()
    for found, encoder in zip(wanted, half.encoders, strict=False):
        flat = torch.cat([p.grad.flatten() for p in encoder.parameters()])
        assert torch.nn.functional.cosine_similarity(flat, found, dim=0) > 0.99


def test_a_penalty_on_gradients_goes_through_it() -> None:
    """d/dW of |dL/dx|^2 with factors, against the same net without them, whose encoder output is scaled by hand in the backward pass."""
    torch.manual_seed(0)
    encoder, head = nn.Linear(3, 4).double(), nn.Linear(8, 2).double()
    module = AsymmetricGradient(2).double()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    module.update([torch.randn(5, 2).double(), 3 * torch.randn(5, 2).double()])
    h = module(encoder(x).tanh(), encoder(x).tanh())
    loss = head(torch.cat(h, dim=1)).square().sum()
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    found = torch.autograd.grad(first.square().sum(), encoder.weight)[0]

    z = encoder(x).tanh()
    z0, z1 = z.clone(), z.clone()
    inner = head(torch.cat([z0, z1], dim=1)).square().sum()
    upstream = torch.autograd.grad(inner, (z0, z1), create_graph=True)
    (by_hand,) = torch.autograd.grad(z, x, upstream[0] * module.scale[0] + upstream[1] * module.scale[1], create_graph=True)
    torch.testing.assert_close(first, by_hand)
    assert torch.isfinite(found).all() and found.abs().sum() > 0


@needs_compiler
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile does so with any autograd.Function
@pytest.mark.parametrize("inside", [True, False], ids=["update-compiled", "update-outside"])
@pytest.mark.parametrize("mode", ["arl", "ogm", "ogm-ge"])
def test_compiles_once_and_scales_by_the_factors_of_the_batch(mode: str, inside: bool) -> None:
    class WithUpdate(TwoViews):
        def forward(self, inputs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            fused, alone = super().forward(inputs)
            if inside:
                self.asymmetric.update(alone, self.target)
            return fused, alone

    def three_steps(compiled: bool) -> tuple[list[Tensor], Tensor]:
        model = WithUpdate(mode)
        model.asymmetric._noise = torch.ones_like  # the same for both
        backend = "inductor" if mode == "arl" else "aot_eager"  # the first compiles C++, which takes its time
        call = torch.compile(model, fullgraph=True, backend=backend) if compiled else model
        found = []
        for seed in range(3):
            inputs, target = batch(seed=seed)
            model.target = target
            fused, alone = call(inputs)
            if not inside:
                model.asymmetric.update(alone, target)
            model.zero_grad()
            (F.cross_entropy(fused, target) + sum(F.cross_entropy(part, target) for part in alone)).backward()
            found += [p.grad.clone() for p in model.parameters()]
        return found, model.asymmetric.scale

    torch._dynamo.reset()
    wanted = three_steps(False)
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = three_steps(True)
    torch.testing.assert_close(found, wanted)


def one_rank(rank: int, size: int, folder: str) -> None:
    warnings.simplefilter("error")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    found: dict[str, Any] = {}
    parts, target, y, mask = of_processes()
    own = slice(0, 5) if rank == 0 else slice(5, None)  # parts of unequal size
    for name, make in PROCESSES.items():
        module = make()
        goal = y if module.task == "regression" else target
        found[name] = [module.update([part[own] for part in parts], goal[own], mask[own]) for _ in range(2)], module.scale
    alone = AsymmetricGradient(2, sync=False)
    alone.update([part[own] for part in parts])
    found["alone"] = alone.scale
    bad = [part[own] * (float("nan") if rank == 1 else 1.0) for part in parts]
    with pytest.raises(InputError, match="NaN or infinite values of modality 0, modality 1"):
        AsymmetricGradient(2).update(bad)  # an error on both, so that neither waits
    model = nn.parallel.DistributedDataParallel(TwoViews())
    inputs, classes = batch()
    half = slice(0, ROWS // 2) if rank == 0 else slice(ROWS // 2, None)
    fused, alone_logits = model([x[half] for x in inputs])
    model.module.asymmetric.update(alone_logits)
    (F.cross_entropy(fused, classes[half]) + sum(F.cross_entropy(part, classes[half]) for part in alone_logits)).backward()
    found["ddp"] = [p.grad for p in model.parameters()]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


PROCESSES = {mode: lambda mode=mode: AsymmetricGradient(2, mode) for mode in MODES} | {
    "regression": lambda: AsymmetricGradient(2, task="regression"),
}


def of_processes() -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(3)
    parts = [torch.randn(13, 3, generator=source) * (1 + 2 * m) for m in range(2)]
    mask = torch.rand(13, 2, generator=source) < 0.7
    return parts, torch.arange(13) % 3, torch.randn(13, 3, generator=source) + 10, mask


def test_two_processes_are_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_rank, (2, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    parts, target, y, mask = of_processes()
    for name, make in PROCESSES.items():
        module = make()
        goal = y if module.task == "regression" else target
        wanted = [module.update(parts, goal, mask) for _ in range(2)], module.scale
        torch.testing.assert_close(ranks[0][name], ranks[1][name], rtol=0, atol=0)
        torch.testing.assert_close(ranks[0][name], wanted, rtol=1e-5, atol=1e-6)
    assert not torch.equal(ranks[0]["alone"], ranks[1]["alone"])
    model = TwoViews()
    inputs, target = batch()
    model.step(inputs, target)
    for found in ranks:
        torch.testing.assert_close(found["ddp"], [p.grad for p in model.parameters()], rtol=1e-5, atol=1e-7)


# ---- bad input --------------------------------------------------------------------------------------------------------------------------

TWO = [torch.randn(4, 3), torch.randn(4, 3)]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: AsymmetricGradient(1), "num_modalities"),
        (lambda: AsymmetricGradient(2, "asymmetric"), "mode: .*arl, uniform, inverse, ogm, ogm-ge, off"),
        (lambda: AsymmetricGradient(2, temperature=-1), "temperature"),
        (lambda: AsymmetricGradient(2, clamp=0), "clamp"),
        (lambda: AsymmetricGradient(2, "ogm", alpha=-0.1), "alpha"),
        (lambda: AsymmetricGradient(2, warmup_steps=1.5), "warmup_steps"),
        (lambda: AsymmetricGradient(2, task="ranking"), "task"),
        (lambda: AsymmetricGradient(2, task="regression", ema=1.0), "ema"),
        (lambda: AsymmetricGradient(2, "ogm", task="regression"), "OGM compares probabilities"),
        (lambda: AsymmetricGradient(2)(TWO[0]), "features: got 1 of them; expected 2"),
        (lambda: AsymmetricGradient(3).update(TWO), "logits: got 2 of them; expected 3"),
        (lambda: AsymmetricGradient(2).update([TWO[0], TWO[1][:2]]), "the same shape"),
        (lambda: AsymmetricGradient(2).update([TWO[0], TWO[1] * float("inf")]), "NaN or infinite values of modality 1"),
        (lambda: AsymmetricGradient(2, "ogm").update(TWO), r'target: got None; .*Mode "ogm" .*update\(unimodal, target\)'),
        (lambda: AsymmetricGradient(2, "ogm-ge").update(TWO), r"target: got None"),
        (lambda: AsymmetricGradient(2, "ogm").update(TWO, torch.tensor([0, 1, 2, 3])), r"target: got 3; expected classes 0\.\.2"),
        (lambda: AsymmetricGradient(2, "ogm").update(TWO, torch.zeros(4)), "integer classes"),
        (lambda: AsymmetricGradient(2, "ogm").update(TWO, torch.zeros(3, dtype=torch.int64)), "integer classes"),
        (lambda: AsymmetricGradient(2, task="regression").update(TWO), "A regression has residuals"),
        (lambda: AsymmetricGradient(2, task="regression").update(TWO, torch.zeros(4)), r"floating-point targets \(4, 3\)"),
        (lambda: AsymmetricGradient(2).update(TWO, mask=torch.ones(4, 3, dtype=torch.bool)), "mask"),
    ],
)
def test_bad_input_is_said_in_one_sentence(call, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()


def test_an_error_leaves_the_factors_as_they_were() -> None:
    module = AsymmetricGradient(2, "ogm", alpha=1.0)
    module.update([5 * torch.eye(3), torch.zeros(3, 3)], torch.arange(3))
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(InputError):
        module.update([torch.full((2, 3), float("nan"))] * 2, torch.arange(2))
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
