"""The battery of the weights stage: every way of merging must pass all of ``WEIGHTS_CHECKS``; every check takes a :class:`WeightsCase`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

State = dict[str, Tensor]


@dataclass(frozen=True)
class WeightsCase:
    """A way of merging: ``merge(base, models, out=None)`` of modules, state dictionaries or paths.

    ``idempotent``: copies of one model merge into that model. ``from_files``: it takes paths as the base, and writes.
    """

    name: str
    merge: Callable[..., Any]
    idempotent: bool = True
    from_files: bool = True


class Net(nn.Module):
    """Tied weights, batch normalization (floating and integer buffers), a frozen layer, a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.body = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.Linear(4, 4)
        self.out = nn.Linear(4, 6, bias=False)
        self.out.weight = self.embed.weight
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("seen", torch.tensor([3, 4]))
        self.frozen.requires_grad_(False)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        return self.out(self.frozen(self.norm(self.body(x)).tanh()) * self.scale)  # type: ignore[no-any-return]


def family(count: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Net, list[Net]]:
    """A base, and models trained a little from it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = Net().double()
        models = []
        for _ in range(count):
            model = copy.deepcopy(base)
            optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3)
            for _ in range(4):
                words = torch.randint(0, 6, (8,))
                optimizer.zero_grad()
                F.cross_entropy(model(words), torch.randint(0, 6, (8,))).backward()
                optimizer.step()
            optimizer.zero_grad()
            models.append(model)
    return base.to(dtype), [model.to(dtype) for model in models]


def loss_of(model: nn.Module, words: Tensor) -> Tensor:
    return F.cross_entropy(model(words), words)


def batches() -> list[Tensor]:
    return [torch.arange(6), torch.tensor([0, 0, 3, 5])]


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor], tolerance: float = 0.0) -> None:
    assert set(a) == set(b)
    for name in b:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


def copied(model: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def copies_of_a_model_merge_into_it(case: WeightsCase) -> None:
    if not case.idempotent:
        pytest.skip("a sum, or a search, of equal models is longer than one")
    base, models = family()
    merged = case.merge(base, [models[1], copied(models[1]), models[1]])
    wanted = models[1].state_dict()
    fixed = {name for name, tensor in wanted.items() if not tensor.is_floating_point()}
    same({k: merged[k] for k in merged if k not in fixed}, {k: wanted[k] for k in wanted if k not in fixed}, 1e-12)


def merging_twice_is_merging_once(case: WeightsCase) -> None:
    base, models = family()
    same(case.merge(base, models), case.merge(base, models))


def nothing_that_was_passed_is_changed(case: WeightsCase) -> None:
    base, models = family()
    before = [copied(model) for model in (base, *models)]
    modes = [[module.training for module in model.modules()] for model in (base, *models)]
    state = torch.random.get_rng_state()
    merged = case.merge(base, models)
    for tensor in merged.values():
        tensor.zero_()  # the result has memory of its own
    assert torch.equal(torch.random.get_rng_state(), state)
    for model, wanted, mode in zip((base, *models), before, modes, strict=True):
        same(model.state_dict(), wanted)
        assert all(p.grad is None for p in model.parameters())
        assert [module.training for module in model.modules()] == mode
    assert not base.frozen.weight.requires_grad


def the_result_loads_into_the_module(case: WeightsCase) -> None:
    base, models = family()
    merged = case.merge(base, models)
    assert list(merged) == list(base.state_dict())
    target = copy.deepcopy(base)
    target.load_state_dict(merged)
    same(target.state_dict(), merged)
    moved = [name for name in merged if not torch.equal(merged[name], base.state_dict()[name])]
    assert {"embed.weight", "body.weight", "scale"} <= set(moved)


def integer_buffers_are_those_of_the_base(case: WeightsCase) -> None:
    base, models = family()
    for model in models:
        model.seen += 5
    merged = case.merge(base, models)
    for name in ("seen", "norm.num_batches_tracked"):
        assert merged[name].dtype == torch.int64 and torch.equal(merged[name], base.state_dict()[name])


def floating_buffers_are_no_directions(case: WeightsCase) -> None:
    base, models = family()
    parameters = [name for name, _ in base.named_parameters()]
    before = case.merge(base, models)
    for k, model in enumerate(models):
        model.norm.running_mean += 10.0 * (k + 1)
        model.norm.running_var *= 10.0 ** (k + 1)
    after = case.merge(base, models)
    same({name: after[name] for name in parameters}, {name: before[name] for name in parameters}, 1e-12)
    assert bool((after["norm.running_var"] > 0).all())


def tied_weights_stay_tied_and_count_once(case: WeightsCase) -> None:
    base, models = family()
    merged = case.merge(base, models)
    assert merged["embed.weight"].data_ptr() == merged["out.weight"].data_ptr()
    # A second name changes nothing: the same network without it merges into the same values.
    apart = [{name: value for name, value in model.state_dict().items() if name != "out.weight"} for model in models]
    if case.from_files:
        alone = case.merge({name: value for name, value in base.state_dict().items() if name != "out.weight"}, apart)
        same(alone, {name: merged[name] for name in alone}, 1e-12)
    same(case.merge(base, apart), merged, 1e-12)


def frozen_tensors_stay(case: WeightsCase) -> None:
    base, models = family()
    merged = case.merge(base, models)
    for name in ("frozen.weight", "frozen.bias"):
        assert torch.equal(merged[name], base.state_dict()[name])


def types_are_kept_and_half_precision_is_computed_in_single(case: WeightsCase) -> None:
    exact, _ = family()
    wanted = case.merge(*family(dtype=torch.float32))
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 2**-7), (torch.float16, 2**-9)):
        base, models = family(dtype=dtype)
        merged = case.merge(base, models)
        for name, tensor in exact.state_dict().items():
            assert merged[name].dtype == (dtype if tensor.is_floating_point() else tensor.dtype), name
            if case.idempotent and tensor.is_floating_point() and "running" not in name:
                torch.testing.assert_close(merged[name].float(), wanted[name].float(), rtol=8 * tolerance, atol=8 * tolerance)


def files_and_modules_merge_alike(case: WeightsCase, folder: Path) -> None:
    base, models = family()
    wanted = case.merge(base, models)
    paths = []
    for k, model in enumerate((base, *models)):
        state = {name: value for name, value in copied(model).items() if name != "out.weight"}
        path = folder / f"model-{k}.safetensors"
        save_file(state, path)
        paths.append(path)
    same(case.merge(base, paths[1:]), wanted, 1e-12)
    if case.from_files:
        out = case.merge(paths[0], paths[1:], out=folder / "merged.safetensors")
        written = load_file(out)
        same(written, {name: wanted[name] for name in written}, 1e-12)
        assert set(wanted) - set(written) == {"out.weight"}


def another_architecture_is_named(case: WeightsCase) -> None:
    base, models = family()
    odd: Sequence[tuple[State, str]] = (
        (
            {name: value for name, value in copied(models[0]).items() if name != "body.bias"},
            r"models\[1\]: got other tensors; expected the 12 tensors of the base. Missing: body.bias\.",
        ),
        (copied(models[0]) | {"head.weight": torch.zeros(2)}, r"Not in the base: head.weight\."),
        (copied(models[0]) | {"body.weight": torch.zeros(4, 5).double()}, r"body.weight \(4, 5\) float64 for \(4, 4\) float64"),
        (copied(models[0]) | {"body.bias": torch.zeros(4)}, r"body.bias \(4,\) float32 for \(4,\) float64"),
    )
    for wrong, message in odd:
        with pytest.raises(ValueError, match=message):
            case.merge(base, [models[0], wrong])


WEIGHTS_CHECKS: list[Callable[..., None]] = [
    copies_of_a_model_merge_into_it,
    merging_twice_is_merging_once,
    nothing_that_was_passed_is_changed,
    the_result_loads_into_the_module,
    integer_buffers_are_those_of_the_base,
    floating_buffers_are_no_directions,
    tied_weights_stay_tied_and_count_once,
    frozen_tensors_stay,
    types_are_kept_and_half_precision_is_computed_in_single,
    files_and_modules_merge_alike,
    another_architecture_is_named,
]
