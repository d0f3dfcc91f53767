from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from counterpoise._pergrad import kind_of_batch, remembered
from counterpoise.diagnostics import sketch_gradients


class Turned(nn.Module):
    """Where the examples are depends on an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(3, 4)
        self.head = nn.Linear(4, 2)
        self.time_first = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.time_first:
            return self.head(self.cell(x.transpose(0, 1))[0][-1])
        return self.head(x.mean(dim=1) @ self.cell.weight_ih_l0[:4].T)


def test_a_finding_is_kept_while_the_model_is_the_same() -> None:
    model, calls = Turned(), []

    def find() -> int:
        calls.append(1)
        return len(calls)

    assert [remembered(model, "a", find), remembered(model, "a", find)] == [1, 1]
    assert remembered(model, "b", find) == 2
    with torch.no_grad():
        model.head.weight.add_(1.0)  # values do not matter
    assert remembered(model, "a", find) == 1
    for number, change in enumerate(
        (
            lambda: setattr(model, "time_first", True),
            model.eval,
            lambda: setattr(model, "head", nn.Linear(4, 3)),
            lambda: model.head.register_forward_hook(lambda *_: None),
            lambda: setattr(model.head, "forward", lambda x: x),
            lambda: setattr(model, "more", nn.Identity()),
        ),
        start=3,
    ):
        change()
        assert remembered(model, "a", find) == number
    assert kind_of_batch((torch.zeros(4, 3), [torch.zeros(4, dtype=torch.int64)], 2)) == kind_of_batch(
        (torch.zeros(9, 3), [torch.ones(9, dtype=torch.int64)], 5)
    )
    assert kind_of_batch(torch.zeros(4, 3)) != kind_of_batch(torch.zeros(4, 2))


def test_nothing_keeps_a_model_alive() -> None:
    model = nn.Linear(2, 2)
    remembered(model, "a", lambda: 1)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_an_error_is_not_kept() -> None:
    model = nn.Linear(2, 2)

    def fail() -> int:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        remembered(model, "a", fail)
    assert remembered(model, "a", lambda: 7) == 7


@pytest.mark.parametrize("check", [False, True])
def test_a_model_that_was_changed_is_measured_as_it_is(check: bool) -> None:
    torch.manual_seed(0)
    model = Turned().double()
    x, y = torch.randn(6, 5, 3, dtype=torch.float64), torch.randint(2, (6,))
    for time_first in (False, True, False):
        model.time_first = time_first
        sketch = sketch_gradients(model, nn.CrossEntropyLoss(reduction="none"), (x, y), params="head", check=check)
        exact = []
        for i in range(6):
            gradients = torch.autograd.grad(nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), list(model.head.parameters()))
            exact.append(sum(g.square().sum() for g in gradients))
        torch.testing.assert_close(sketch.norms_sq, torch.stack(exact))
