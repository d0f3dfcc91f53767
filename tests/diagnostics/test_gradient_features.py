from __future__ import annotations

import warnings
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


@pytest.fixture
def pool() -> tuple[nn.Sequential, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double(), (torch.randn(6, 4).double(), torch.arange(6) % 3)


@pytest.mark.parametrize("name", ["lora_B", "lora_A", "head"])
def test_gradients_are_those_of_a_loop(tokens, name: str) -> None:
    model, batch = tokens
    layer = model.get_submodule(name)
    expected = by_loop(model, batch, layer)
    for method in ("last-layer", "exact"):
        torch.testing.assert_close(gradient_features(model, token_losses, batch, name, method), expected)
        torch.testing.assert_close(gradient_features(model, token_losses, batch, layer, method), expected)


def test_a_part_whose_trainable_parameters_are_in_linear_layers(tokens, pool) -> None:
    """As an attention with LoRA is: some of them depend on others, some do not, and what is between them is frozen."""
    model, batch = tokens
    part = nn.ModuleDict({"A": model.lora_A, "value": model.value, "B": model.lora_B})
    model.part = part  # the same layers under other names
    torch.testing.assert_close(gradient_features(model, token_losses, batch, "part"), by_loop(model, batch, part))
    part["value"].bias.requires_grad_()  # side by side with the others
    torch.testing.assert_close(gradient_features(model, token_losses, batch, part), by_loop(model, batch, part))
    net, data = pool
    torch.testing.assert_close(gradient_features(net, losses, data, ""), gradient_features(net, losses, data, "", "exact"))
    part["norm"] = model.norm
    with pytest.raises(InputError, match=r"layer: got ModuleDict with a trainable LayerNorm; expected an nn\.Linear"):
        gradient_features(model, token_losses, batch, "part")


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


def test_a_layer_that_writes_to_what_it_is_given(pool) -> None:
    _, data = pool
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)).double()
    torch.testing.assert_close(gradient_features(net, losses, data, "0"), gradient_features(net, losses, data, "0", "exact"))


def test_under_autocast_gradients_are_those_of_lower_precision() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3))  # the norm gives float32, the head bfloat16

    def under_autocast(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch[0])
        return F.cross_entropy(logits.float().mean(dim=1), batch[1], reduction="none")

    def in_full(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]).mean(dim=1), batch[1], reduction="none")

    batch = torch.randn(6, 5, 4), torch.arange(6) % 3
    found = gradient_features(net, under_autocast, batch, "2")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, gradient_features(net, in_full, batch, "2"), rtol=0.05, atol=0.02)


def test_within_inference_mode(pool) -> None:
    net, data = pool
    expected = gradient_features(net, losses, data, "2")
    with torch.inference_mode():
        assert torch.equal(gradient_features(net, losses, data, "2"), expected)
        assert torch.is_inference_mode_enabled()


class Adapted(nn.Linear):
    """Has an adapter within."""

    def __init__(self, features: int, out: int) -> None:
        super().__init__(features, out)
        self.A, self.B = nn.Parameter(torch.ones(2, features)), nn.Parameter(torch.zeros(out, 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.A.T @ self.B.T


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_what_only_looks_like_a_linear_layer_is_refused(pool) -> None:
    """Their gradients are other products, which would be as plausible."""
    _, data = pool
    data = data[0].float(), data[1]
    hooked = nn.Linear(8, 3)
    hooked.register_forward_hook(lambda layer, args, output: 3 * output)
    for layer, said in (
        (Adapted(8, 3), "layer: got 'Adapted'; expected an nn.Linear"),
        (Doubled(8, 3), "layer: got 1, whose output is not that of a linear layer"),
        (hooked, "whose output is not that of a linear layer"),
    ):
        net = nn.Sequential(nn.Linear(4, 8), layer)
        with pytest.raises(InputError) as caught:
            gradient_features(net, losses, data, "1")
        assert said in str(caught.value) and "Use method='exact'" in str(caught.value)
        torch.testing.assert_close(
            gradient_features(net, losses, data, "1", "jvp"),
            gradient_features(net, losses, data, "1", "spsa"), rtol=0.01, atol=0.01,
        )  # fmt: skip


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids))


def test_a_weight_with_two_uses() -> None:
    torch.manual_seed(0)
    net, data = Tied().double(), (torch.arange(6) % 5, (torch.arange(6) + 1) % 5)
    with pytest.raises(InputError, match="layer: got head, whose weight is also that of embed; expected a layer with a weight of its own"):
        gradient_features(net, losses, data, "head")
    exact = gradient_features(net, losses, data, "head", "exact")
    assert exact.abs().sum() != gradient_features(nn.Sequential(net.embed, nn.Linear(4, 5).double()), losses, data, "1").abs().sum()
    z = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for method in ("jvp", "spsa"):  # both move the embedding, too
        found = gradient_features(net, losses, data, "head", method, directions=2)
        torch.testing.assert_close(found[:, 0], exact @ z, rtol=1e-4, atol=1e-5)


def test_examples_that_are_not_alone(pool) -> None:
    net, data = pool

    def centered(model: nn.Module, batch: Any) -> Tensor:
        found = losses(model, batch)
        return (found - found.mean()).square()

    gradient_features(net, losses, data, "2")
    with pytest.raises(InputError, match="loss_per_example: got a loss that depends on several examples"):
        gradient_features(net, centered, data, "2")

    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.transpose(0, 1)).mean(dim=0)

    with pytest.raises(InputError, match=r"which come first in every layer\. The input of layer has shape \(6, 6, 4\)"):
        gradient_features(TimeFirst(), losses, (torch.randn(6, 6, 4), data[1]), "layer")


# ---- passes that share what comes before the layer ---------------------------------------------------------------------------------------


class Counted(nn.Module):
    """A layer that counts its calls."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.calls = layer, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x)


@pytest.mark.parametrize(("method", "m", "below", "above"), [("spsa", 1, 1, 2), ("spsa", 8, 1, 16), ("jvp", 1, 1, 1), ("jvp", 8, 1, 9)])
def test_what_comes_before_the_layer_runs_once(method: str, m: int, below: int, above: int) -> None:
    torch.manual_seed(0)
    trunk, top = Counted(nn.Linear(4, 8)), Counted(nn.Tanh())
    net = nn.Sequential(trunk, nn.Tanh(), nn.Linear(8, 8), top, nn.Linear(8, 3)).double()
    data = torch.randn(6, 4).double(), torch.arange(6) % 3
    z = torch.stack([torch.randn(72, generator=g, dtype=torch.float64) for g in [torch.Generator().manual_seed(0)] * m])
    along = gradient_features(net, losses, data, "2", "exact") @ z.T
    for number in range(3):
        trunk.calls = top.calls = 0
        found = gradient_features(net, losses, data, "2", method, directions=m)
        torch.testing.assert_close(found, along if m > 1 else along * z, rtol=1e-4, atol=1e-5)
        if number:  # the first call looks whether the model gives the same without what comes before
            assert (trunk.calls, top.calls) == (below, above)
        else:
            assert trunk.calls - below == (method == "spsa" or m > 1)


def test_a_model_that_does_not_give_the_same_runs_whole(pool) -> None:
    """An earlier layer reaches for the weight in a way that no module shows."""
    _, data = pool

    class Reaches(nn.Module):
        def __init__(self, other: nn.Linear) -> None:
            super().__init__()
            self.other = [other]

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.other[0].weight[:, :4])

    torch.manual_seed(0)
    head = nn.Linear(8, 8)
    net = nn.Sequential(Reaches(head), head, nn.Tanh(), nn.Linear(8, 3)).double()
    exact = gradient_features(net, losses, data, "1", "exact")
    z = torch.randn(72, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for _ in range(2):
        torch.testing.assert_close(gradient_features(net, losses, data, "1", "spsa")[:, 0] / z[0], exact @ z, rtol=1e-4, atol=1e-5)


def test_every_pass_has_the_same_noise() -> None:
    """Else the difference of two passes is that of their noise, divided by 2e-3."""
    torch.manual_seed(0)

    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    data = torch.randn(6, 4).double(), torch.arange(6) % 3
    for net in (nn.Sequential(Noisy(), nn.Linear(4, 3)), nn.Sequential(nn.Linear(4, 4), Noisy(), nn.Linear(4, 3))):
        name = str(len(net) - 1)
        torch.manual_seed(5)
        before = torch.get_rng_state()
        exact = gradient_features(net.double(), losses, data, name)
        z = torch.randn(exact.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        found = gradient_features(net, losses, data, name, "spsa")
        torch.testing.assert_close(found[:, 0] / z[0], exact @ z, rtol=1e-4, atol=1e-5)
        assert torch.equal(torch.get_rng_state(), before)


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


# ---- LoRA of peft -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def llama() -> tuple[nn.Module, dict[str, Tensor]]:
    """Four examples of different lengths; LoRA that has left its start, in training mode, with dropout."""
    pytest.importorskip("peft", reason="needs the package 'peft'")
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    base, lora = (
        LlamaForCausalLM(LlamaConfig(vocab_size=30, **size)),
        LoraConfig(r=2, lora_dropout=0.5, target_modules=["q_proj", "v_proj"]),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for an attribute by its old name
        model = get_peft_model(base, lora).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    model.train()
    ids = torch.randint(1, 30, (4, 7))
    ids[1, 4:] = ids[3, 5:] = 0
    return model, {"ids": ids}


def answer_losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    ids = batch["ids"]
    logits = model(input_ids=ids, attention_mask=(ids > 0).long()).logits[:, :-1]
    found = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none", ignore_index=0)
    return found.sum(dim=1) / (ids[:, 1:] > 0).sum(dim=1)


@pytest.mark.parametrize("part", ["v_proj.lora_B.default", "v_proj.lora_A.default", "v_proj", ""])
def test_gradients_of_lora(llama, part: str) -> None:
    model, batch = llama
    name = f"base_model.model.model.layers.1.self_attn.{part}".rstrip(".")
    found = gradient_features(model, answer_losses, batch, name)
    assert model.training and found.shape[1] == {"v_proj": 64, "": 128}.get(part, 32)
    parameters = [p for p in model.get_submodule(name).parameters() if p.requires_grad]
    model.eval()
    for i, row in enumerate(found):
        alone = answer_losses(model, {"ids": batch["ids"][i : i + 1]}).mean()
        torch.testing.assert_close(row, torch.cat([g.flatten() for g in torch.autograd.grad(alone, parameters)]))
    model.train()
    for method in ("jvp", "spsa"):
        rng = torch.Generator().manual_seed(0)
        z = torch.stack([torch.randn(found.shape[1], generator=rng, dtype=torch.float64) for _ in range(3)])
        along = gradient_features(model, answer_losses, batch, name, method, directions=3)
        torch.testing.assert_close(along, found @ z.T, rtol=1e-3, atol=1e-4)


def test_blocks_below_that_of_lora_run_once(llama) -> None:
    model, batch = llama
    calls = [0, 0]
    for i in range(2):
        model.get_submodule(f"base_model.model.model.layers.{i}.mlp").register_forward_hook(
            lambda layer, args, output, i=i: calls.__setitem__(i, calls[i] + 1)
        )
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.default"
    for _ in range(2):  # the first call sees that it can be so
        calls[:] = [0, 0]
        gradient_features(model, answer_losses, batch, name, "spsa", directions=4)
    assert calls == [1, 8]


def test_the_optimizers_history_of_lora(llama) -> None:
    """The steps that are compared are those that the training's Adam would make with one example alone."""
    from counterpoise.data import MiniBatchCoreset, facility_location

    model, batch = llama
    layer = model.get_submodule("base_model.model.model.layers.1.self_attn.v_proj")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.eval()
    for _ in range(2):
        optimizer.zero_grad()
        answer_losses(model, batch).mean().backward()
        optimizer.step()
    history = MiniBatchCoreset.history_of(optimizer, layer)
    own = [optimizer.state[p] for p in (layer.lora_A.default.weight, layer.lora_B.default.weight)]
    assert torch.equal(history.m, torch.cat([state["exp_avg"].flatten() for state in own])) and history.step == 2
    features = gradient_features(model, answer_losses, batch, layer)
    chosen = MiniBatchCoreset(2, keep_small=None, normalize="optimizer")(features, [0] * 4, history)
    assert chosen.tolist() == facility_location(history.direction(*history.after(features)), 2).indices.tolist()
