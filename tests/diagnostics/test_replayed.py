from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counterpoise.diagnostics._replayed import Prefix


class Times(nn.Module):
    """Something that runs, is counted, and gives what it is told to."""

    def __init__(self, number: float, give: Any = None) -> None:
        super().__init__()
        self.number, self.give, self.calls = number, give or (lambda x: x), 0

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return self.give(self.number * x)


class Cache:
    def __init__(self, x: Tensor) -> None:
        self.x = x


class Grows(Times):
    """Changes what it was given."""

    def forward(self, x: Tensor) -> None:
        self.calls += 1
        x += self.number


class Awkward(nn.Module):
    """All that makes a result another one the second time."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.changed, self.twice, self.grows = Times(2), Times(3), Times(0.5), Grows(1)
        self.pairs, self.table = Times(4, lambda x: (x, None, "text")), Times(5, lambda x: {"x": x})
        self.cached = nn.Sequential(Times(6, Cache))
        self.outer = nn.Sequential(Times(1.5), Times(0.1))
        self.layer, self.after = nn.Linear(3, 3), Times(7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.plain(x))
        y = self.changed(x)
        y += 1  # in place, after it was given
        x = x + y.clone()
        self.grows(x)
        first, _, _ = self.pairs(x)
        table = self.table(first)
        table["x"] = table["x"] + 1  # in what the module has handed out
        x = table.pop("x") + self.cached(x).x + self.outer(x)
        return self.after(self.twice(self.layer(x)))


def test_what_is_known_does_not_run_and_changes_nothing() -> None:
    torch.manual_seed(0)
    model = Awkward()
    x = torch.randn(4, 3)
    with torch.no_grad():
        expected = model(x)
        prefix = Prefix(model, list(model.layer.parameters()))
        with prefix.recorded():
            assert torch.equal(model(x), expected)
        for module in model.modules():
            module.calls = 0
        for _ in range(2):
            with prefix.replayed():
                assert torch.equal(model(x), expected)
        model.layer.weight += 1
        with prefix.replayed():
            moved = model(x)
        counts = {name: module.calls for name, module in model.named_children()}
        assert torch.equal(model(x), moved) and not torch.equal(moved, expected)
    known = {"plain", "pairs", "table", "outer"}
    assert {name for name, calls in counts.items() if not calls} - {"layer", "cached"} == known
    assert counts["twice"] == 6 and counts["after"] == 3 and model.outer[0].calls == 1
    assert len(prefix) == len(known)
    prefix.forget()
    with prefix.replayed(), torch.no_grad():
        assert torch.equal(model(x), moved) and len(prefix) == 0
    assert all("forward" not in vars(module) for module in model.modules())


def test_hooks_and_methods_of_ones_own_are_kept() -> None:
    model = nn.Sequential(Times(2), nn.Linear(3, 3))
    model[0].register_forward_hook(lambda layer, args, output: output + 1)
    own = model[0].forward
    vars(model[0])["forward"] = lambda x: 10 * own(x)
    x = torch.ones(1, 3)
    with torch.no_grad():
        expected = model(x)
        prefix = Prefix(model, [model[1].weight])
        with prefix.recorded():
            model(x)
        for _ in range(2):
            with prefix.replayed():
                assert torch.equal(model(x), expected)
        with pytest.raises(RuntimeError), prefix.recorded():
            model(torch.ones(1, 2))
    assert len(prefix) == 1 and torch.equal(model[0].forward(x), 20 * x)


@pytest.mark.parametrize("moved", ["embed.weight", "attention.out_proj.weight"])
def test_nothing_that_may_depend_on_the_parameters_is_kept(moved: str) -> None:
    """A table that is tied to the head; and a projection whose module is never called."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.between, self.head = nn.Embedding(5, 4), Times(2), nn.Linear(4, 5, bias=False)
            self.head.weight = self.embed.weight
            self.attention, self.last = nn.MultiheadAttention(4, 1, batch_first=True), Times(3)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.between(self.embed(ids))
            return self.head(self.last(self.attention(x, x, x)[0]))

    torch.manual_seed(0)
    model, ids = Model(), torch.arange(6).reshape(2, 3) % 5
    parameter = model.get_parameter(moved)
    with torch.no_grad():
        prefix = Prefix(model, [parameter])
        with prefix.recorded():
            model(ids)
        parameter += 1
        with prefix.replayed():
            found = model(ids)
        assert torch.equal(found, model(ids))
    assert len(prefix) == (0 if moved.startswith("embed") else 2)  # before the attention: the embedding, and what follows it
