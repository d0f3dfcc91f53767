"""The battery of diagnoses: a function of a model and data that returns a frozen report and leaves everything else as it was."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class DiagnosisCase:
    """``diagnose(model, data, loss_fn)`` on a model of vectors of width 6 and 3 classes.

    ``one_batch``: it takes the loss of a batch as a function without arguments, so loaders and losses per example are the caller's.
    """

    name: str
    diagnose: Callable[[nn.Module, Any, Any], Any]
    one_batch: bool = False


class Model(nn.Module):
    """Everything that a measurement could leave changed: modes, gradients, flags, buffers, hooks, a table shortened in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.drop = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.table = nn.Embedding(4, 8, max_norm=0.1)
        self.frozen, self.head = nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.calls: Tensor
        self.fail = False

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1  # another tensor
        noise = random.random() + float(np.random.rand()) + float(torch.rand(()))
        if self.fail and len(x) > 3:
            raise KeyError("a failure inside the model")
        h = self.norm(self.layer(x)) + self.table((x[:, 0] > 0).long()) + 0 * noise
        return self.head(self.frozen(self.drop(h)).relu())


def _prepared() -> tuple[Model, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = Model()
    data = torch.randn(60, 6), torch.arange(60) % 3
    nn.functional.cross_entropy(model(data[0]), data[1]).backward()
    model.train()
    model.norm.eval()
    model.drop.train()
    model.layer.register_forward_hook(lambda *_: None)
    model.layer.weight.register_hook(lambda g: g)
    return model, data


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything about a model and the process that must not change; tensors with their identity, since optimizers hold them."""
    found: dict[str, Any] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found[f"value {name}"], found[f"identity {name}"] = tensor.detach().clone(), id(tensor)
        found[f"flag {name}"] = tensor.requires_grad
        found[f"grad {name}"] = None if tensor.grad is None else tensor.grad.clone()
        found[f"identity of grad {name}"] = None if tensor.grad is None else id(tensor.grad)
        found[f"tensor hooks {name}"] = len(tensor._backward_hooks or ())
    for name, module in model.named_modules():
        found[f"mode {name}"] = module.training
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
        found[f"hooks {name}"] = [len(getattr(module, kind)) for kind in kinds]
    state = np.random.get_state()
    found["torch"], found["python"], found["numpy"] = torch.get_rng_state(), random.getstate(), (state[1].tolist(), *state[2:])
    found["backends"] = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled  # type: ignore[attr-defined]
    found["gradients"] = torch.is_grad_enabled()
    return found


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    same = {
        key: torch.equal(value, after[key]) if isinstance(value, Tensor) and isinstance(after.get(key), Tensor) else value == after.get(key)
        for key, value in before.items()
    }
    return sorted(set(before) ^ set(after)) + [key for key, equal in same.items() if not equal]


LOSS = nn.CrossEntropyLoss()


def nothing_is_changed(case: DiagnosisCase) -> None:
    model, data = _prepared()
    for p in model.parameters():
        if p.grad is not None and p.requires_grad:
            p.grad.add_(1)
    kept = [part.clone() for part in data]
    before = snapshot(model)
    case.diagnose(model, data, LOSS)
    assert not changes(before, snapshot(model))
    assert all(torch.equal(part, old) for part, old in zip(data, kept, strict=True)), "the data"


def nothing_is_changed_by_a_failure_of_the_model(case: DiagnosisCase) -> None:
    model, data = _prepared()
    model.fail = True
    before = snapshot(model)
    with pytest.raises(KeyError, match="a failure inside the model"):
        case.diagnose(model, data, LOSS)
    assert not changes(before, snapshot(model))


def nothing_is_changed_by_a_failure_of_the_loss(case: DiagnosisCase) -> None:
    if case.one_batch:
        pytest.skip("any number is a loss")
    model, data = _prepared()
    before = snapshot(model)
    with pytest.raises(ValueError):
        case.diagnose(model, data, lambda output, target: output.sum())
    assert not changes(before, snapshot(model))


def loaders_draw_nothing_from_outside(case: DiagnosisCase) -> None:
    """Neither from the global states nor from generators of the user's, which give the order of the training later."""
    if case.one_batch:
        pytest.skip("takes no loader")
    model, data = _prepared()
    own = torch.Generator().manual_seed(3)
    before, state = snapshot(model), own.get_state()
    for generator in (None, own):
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=16, shuffle=True, generator=generator)
        case.diagnose(model, loader, LOSS)
    assert not changes(before, snapshot(model))
    assert torch.equal(own.get_state(), state)


def calls_repeat(case: DiagnosisCase) -> None:
    model, data = _prepared()
    first, second = (case.diagnose(model, data, LOSS) for _ in range(2))
    for field in dataclasses.fields(first):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if isinstance(a, Tensor):
            assert torch.equal(a, b), field.name
        if isinstance(a, np.ndarray):
            assert np.array_equal(a, b, equal_nan=True), field.name


def reports_are_frozen(case: DiagnosisCase) -> None:
    model, data = _prepared()
    report = case.diagnose(model, data, LOSS)
    assert dataclasses.is_dataclass(report)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(report, dataclasses.fields(report)[0].name, None)


DIAGNOSIS_CHECKS = (
    nothing_is_changed,
    nothing_is_changed_by_a_failure_of_the_model,
    nothing_is_changed_by_a_failure_of_the_loss,
    loaders_draw_nothing_from_outside,
    calls_repeat,
    reports_are_frozen,
)
