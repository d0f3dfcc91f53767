from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterpoise._errors import InputError
from counterpoise.diagnostics import gradient_features
from tests.batteries.diagnoses import _prepared, changes, snapshot


class Tokens(nn.Module):
    """Positions within examples, a low-rank adapter on a frozen layer, and a head that is not the last thing that happens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.value = nn.Linear(8, 8).requires_grad_(False)
        self.lora_A, self.lora_B = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(self.norm(x + self.value(x) + self.lora_B(self.lora_A(x))).cumsum(dim=1).tanh())


def token_losses(model: nn.Module, batch: Any) -> Tensor:
    logits = model(batch["ids"])[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), batch["ids"][:, 1:], reduction="none")  # (L, T), averaged within an example


def losses(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.fixture
def tokens() -> tuple[Tokens, dict[str, Tensor]]:
    torch.manual_seed(0)
    return Tokens().double(), {"ids": torch.randint(0, 11, (6, 5))}


def by_loop(model: nn.Module, batch: dict[str, Tensor], layer: nn.Module) -> Tensor:
    parameters = [p for p in layer.parameters() if p.requires_grad]
    rows = []
    for i in range(len(batch["ids"])):
        loss = token_losses(model, {"ids": batch["ids"][i : i + 1]}).mean()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["lora_B", "lora_A", "head"])
def test_gradients_are_those_of_a_loop(tokens, name: str) -> None:
    model, batch = tokens
    layer = model.get_submodule(name)
    expected = by_loop(model, batch, layer)
    for method in ("last-layer", "exact"):
        torch.testing.assert_close(gradient_features(model, token_losses, batch, name, method), expected)
        torch.testing.assert_close(gradient_features(model, token_losses, batch, layer, method), expected)


def test_layers_of_other_kinds_and_whole_models(tokens) -> None:
    model, batch = tokens
    torch.testing.assert_close(gradient_features(model, token_losses, batch, "norm", "exact"), by_loop(model, batch, model.norm))
    torch.testing.assert_close(gradient_features(model, token_losses, batch, model, "exact"), by_loop(model, batch, model))


@pytest.mark.parametrize(("method", "tolerance"), [("jvp", 1e-9), ("spsa", 1e-5)])
def test_directions(tokens, method: str, tolerance: float) -> None:
    model, batch = tokens
    exact = by_loop(model, batch, model.head)
    z = torch.randn(exact.shape[1], generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    one = gradient_features(model, token_losses, batch, "head", method, generator=3)
    torch.testing.assert_close(one, (exact @ z)[:, None] * z, rtol=tolerance, atol=tolerance)
    assert torch.linalg.matrix_rank(one, rtol=1e-9) == 1
    generator = torch.Generator().manual_seed(3)
    several = gradient_features(model, token_losses, batch, "head", method, directions=3, generator=generator)
    z = torch.stack([torch.randn(exact.shape[1], generator=own, dtype=torch.float64) for own in [torch.Generator().manual_seed(3)] * 3])
    torch.testing.assert_close(several[:, 0], exact @ z[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(several, exact @ z.T, rtol=tolerance, atol=tolerance)
    following = gradient_features(model, token_losses, batch, "head", method, directions=3, generator=generator)
    assert not torch.allclose(following, several), "a generator goes on from call to call"
    assert torch.equal(
        gradient_features(model, token_losses, batch, "head", method), gradient_features(model, token_losses, batch, "head", method)
    )


def test_many_directions_keep_the_distances_between_gradients(tokens) -> None:
    model, batch = tokens
    exact = torch.pdist(by_loop(model, batch, model.head))
    seen = torch.pdist(gradient_features(model, token_losses, batch, "head", "jvp", directions=400)) / 20
    assert (seen / exact - 1).abs().max() < 5 / np.sqrt(2 * 400)


@pytest.mark.parametrize("method", ["last-layer", "spsa"])
def test_nothing_is_changed(method: str) -> None:
    model, data = _prepared()
    before, kept = snapshot(model), [part.clone() for part in data]
    found = gradient_features(model, losses, data, "head", method)
    assert found.shape == (60, 27) and found.dtype == torch.float32 and not found.requires_grad
    assert not changes(before, snapshot(model))
    assert all(torch.equal(part, old) for part, old in zip(data, kept, strict=True))
    model.fail = True
    with pytest.raises(KeyError, match="a failure inside the model"):
        gradient_features(model, losses, data, "head", method)
    assert not changes(before, snapshot(model))


@pytest.mark.parametrize("method", ["exact", "jvp"])
def test_nothing_is_changed_by_transforms(method: str) -> None:
    model, data = _prepared()  # with a table that is shortened in place, and numbers read in the forward pass
    before = snapshot(model)
    with pytest.raises(InputError, match=f"method: '{method}' cannot treat this model .* use 'last-layer'"):
        gradient_features(model, losses, data, "head", method)
    assert not changes(before, snapshot(model))
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
    losses(net, data).sum().backward()
    before = snapshot(net)
    found = gradient_features(net, losses, data, "3", method)
    assert found.shape == (60, 27) and not found.requires_grad
    assert not changes(before, snapshot(net))


def test_dropout_is_off_and_gradients_may_be_disabled_outside() -> None:
    model, data = _prepared()
    first = gradient_features(model, losses, data, "head")
    with torch.no_grad():
        assert torch.equal(gradient_features(model, losses, data, "head"), first)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def test_half_precision_gives_float32() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    batch = torch.randn(6, 4), torch.arange(6) % 3
    exact = gradient_features(net, losses, batch, "2")
    half = gradient_features(net.bfloat16(), losses, (batch[0].bfloat16(), batch[1]), "2")
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=0.05, atol=0.02)


def test_nothing_below_the_layer_is_kept() -> None:
    seen: list[bool] = []

    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch.is_grad_enabled())
            return x

    net = nn.Sequential(nn.Linear(4, 8), Looks(), nn.Linear(8, 3), Looks())
    gradient_features(net, losses, (torch.randn(6, 4), torch.arange(6) % 3), "2")
    assert seen == [False, True]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


BATCH = torch.ones(6, 4), torch.arange(6) % 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "last_layer"}, "Did you mean 'last-layer'?"),
        ({"layer": "3"}, "layer: got '3'"),
        ({"layer": nn.Linear(2, 2)}, "layer: got 'Linear'; expected a layer of this model"),
        ({"layer": "1"}, "expected a layer with trainable parameters"),
        ({"directions": 0}, "directions: got 0"),
        ({"directions": 4}, "directions: got 4; expected 1 for method 'last-layer'"),
        ({"layer": ""}, "layer: got 'Sequential'; expected an nn.Linear for method='last-layer'"),
        ({"model": Twice(), "layer": "layer"}, "called 2 times"),
        ({"loss_per_example": lambda model, batch: losses(model, batch).mean()}, "Set reduction='none'"),
        ({"loss_per_example": lambda model, batch: losses(model, batch).detach()}, "losses that do not follow from the layer"),
        ({"loss_per_example": lambda model, batch: losses(model, batch)[:4]}, "losses of shape (4,)"),
        ({"batch": []}, "without tensors"),
        ({"method": "jvp", "generator": -1}, "generator: got -1"),
    ],
)
def test_bad_input(change: dict[str, Any], said: str) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    given = {"model": net, "loss_per_example": losses, "batch": BATCH, "layer": "2"} | change
    with pytest.raises(InputError) as caught:
        gradient_features(**given)
    assert said in str(caught.value)


def test_a_layer_whose_examples_are_not_first() -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.unsqueeze(0)).squeeze(0)

    with pytest.raises(InputError, match="expected the 6 examples first"):
        gradient_features(Transposed(), losses, BATCH, "layer")
