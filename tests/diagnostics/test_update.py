"""The update that is read from an optimizer's state is the one that it makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterpoise._errors import InputError
from counterpoise.diagnostics import examine, group_shares, interaction, sketch_gradients
from counterpoise.diagnostics._update import update_of

LR = 1e-4
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {}),
    "amsgrad": (torch.optim.Adam, {"amsgrad": True, "eps": 1e-3}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.0}),
    "nadam": (torch.optim.NAdam, {}),
    "radam, early": (torch.optim.RAdam, {}),
    "radam": (torch.optim.RAdam, {"betas": (0.9, 0.7)}),
    "rmsprop": (torch.optim.RMSprop, {}),
    "rmsprop, centered": (torch.optim.RMSprop, {"centered": True}),
    "rmsprop, momentum": (torch.optim.RMSprop, {"momentum": 0.9}),
    "adagrad": (torch.optim.Adagrad, {}),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head, self.unused = nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).tanh())


def trained(kind: str, steps: int = 4) -> tuple[Net, torch.optim.Optimizer, tuple[Tensor, Tensor], Tensor, Any]:
    """The last step, and the sketch at the parameters before it: (model, optimizer, data, what the step subtracted, sketch)."""
    torch.manual_seed(0)
    model = Net().double()
    data = torch.randn(40, 5, dtype=torch.float64), torch.arange(40) % 3
    make, options = OPTIMIZERS[kind]
    groups = [{"params": [*model.layer.parameters(), *model.unused.parameters()]}, {"params": model.head.parameters(), "lr": 3 * LR}]
    optimizer = make(groups, lr=LR, **options)
    for step in range(steps):
        if step == steps - 1:
            before = torch.cat([p.detach().flatten() for p in model.parameters()])
            sketch = sketch_gradients(model, nn.CrossEntropyLoss(), data)
        optimizer.zero_grad()
        F.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    return model, optimizer, data, before - torch.cat([p.detach().flatten() for p in model.parameters()]), sketch


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_direction(kind: str) -> None:
    _, optimizer, _, made, sketch = trained(kind)
    update = update_of(optimizer, sketch, sketch.group_sums.sum(dim=0) / len(sketch))
    torch.testing.assert_close(LR * update.direction, made, rtol=1e-9, atol=1e-16)
    assert update.lr == LR


@pytest.mark.parametrize("kind", ["adam", "rmsprop", "adagrad"])
def test_shares_of_the_update(kind: str) -> None:
    _, optimizer, _, made, sketch = trained(kind)
    shares = group_shares(sketch, optimizer=optimizer)
    mean = sketch.group_sums.sum(dim=0) / len(sketch)
    expected = (sketch.group_sums / len(sketch)) @ made / (mean @ made)
    np.testing.assert_allclose(shares.share, expected.numpy(), rtol=1e-9)
    assert shares.share.sum() == pytest.approx(1)


def test_interaction_uses_scale_and_rate() -> None:
    _, optimizer, _, _, sketch = trained("adagrad")
    mean = sketch.group_sums.sum(dim=0) / len(sketch)
    scale = update_of(optimizer, sketch, mean).scale
    counts = sketch.counts().double()
    expected = -LR * (sketch.group_sums / counts[:, None]) @ (sketch.group_sums * scale / len(sketch)).T
    np.testing.assert_allclose(interaction(sketch, optimizer), expected.numpy(), rtol=1e-9)


def test_parameter_that_is_never_used_has_no_part() -> None:
    """It has no state; the others do."""
    model, optimizer, data, _, _ = trained("adam")
    diagnosis = examine(model, nn.CrossEntropyLoss(), data, optimizer=optimizer, metric="optimizer")
    assert diagnosis.per_group["share"].sum() == pytest.approx(1)


class Later(torch.optim.Optimizer):
    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})


def test_bad_input() -> None:
    torch.manual_seed(0)
    model, data = nn.Linear(5, 3), (torch.randn(12, 5), torch.arange(12) % 3)
    sketch = sketch_gradients(model, nn.CrossEntropyLoss(), data)
    cases = [
        (torch.optim.Adam(model.parameters()), "a Adam whose state has no 'exp_avg' yet"),
        (torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), "no 'momentum_buffer' yet"),
        (torch.optim.Adam(nn.Linear(2, 2).parameters()), "no parameter 'weight'"),
        (Later(model.parameters()), "optimizer: got 'Later'"),
        ("adam", "optimizer: got 'str'"),
    ]
    for optimizer, message in cases:
        with pytest.raises(InputError, match=message):
            group_shares(sketch, optimizer=optimizer)
    with pytest.raises(InputError, match="metric: got 'optimizer'; expected also optimizer"):
        examine(model, nn.CrossEntropyLoss(), data, metric="optimizer")
