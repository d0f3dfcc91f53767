from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from counterpoise._errors import InputError
from counterpoise.weights import merge, nested_slerp

pytest.importorskip("peft")

from peft import LoraConfig, get_peft_model

from counterpoise.engines.peft import adapter_gram, merge_adapters, position_adapters


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.last = nn.Embedding(7, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, words):
        return self.last(self.first(self.embed(words)).tanh())


def adapted(ranks=(2, 3), rslora=False, **options):
    """A model with adapters "x", "y", ... that are not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net().double()
        for k, rank in enumerate(ranks):
            targets = ["first", "last", "embed"] if k == 0 else ["first", "last"]
            config = LoraConfig(r=rank, lora_alpha=4 + k, target_modules=targets, use_rslora=rslora, **options)
            name = "xyz"[k]
            model = get_peft_model(model, config, name) if k == 0 else (model.add_adapter(name, config), model)[1]
        for name, p in model.named_parameters():
            if "lora" in name:
                p.data = torch.randn(p.shape).double() * 0.3
    return model.eval()


def products(model, name) -> dict[str, torch.Tensor]:
    return {
        key: layer.get_delta_weight(name).detach()
        for key, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight") and name in layer.scaling
    }


def flat(vector, names):
    return torch.cat([vector.get(name, torch.zeros(1)).reshape(-1) if name in vector else torch.zeros(42).double() for name in names])


WORDS = torch.tensor([0, 1, 2, 3, 4, 5, 6])
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0])


def loss_of(model, batch):
    return F.cross_entropy(model(batch), LABELS)


@pytest.mark.parametrize("options", [{}, {"rank_pattern": {"first": 5}, "alpha_pattern": {"last": 3}}], ids=["alike", "patterns"])
@pytest.mark.parametrize("rslora", [False, True])
def test_inner_products_and_sums_are_those_of_the_products(rslora, options) -> None:
    model = adapted(rslora=rslora, **options)
    vectors = {name: products(model, name) for name in "xy"}
    names = list(vectors["x"])
    assert len(names) == 3 and len(vectors["y"]) == 2
    rows = torch.stack([flat(vectors[name], names) for name in "xy"])
    torch.testing.assert_close(adapter_gram(model, ["x", "y"]), rows @ rows.T)
    drawn = torch.random.get_rng_state()
    c = merge_adapters(model, ["x", "y"], "arithmetic", [0.7, -1.3], scale=2.0, name="sum")
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert c.tolist() == pytest.approx([1.4, -2.6])
    merged = products(model, "sum")
    for name in names:
        wanted = 1.4 * vectors["x"][name] - (2.6 * vectors["y"][name] if name in vectors["y"] else 0)
        torch.testing.assert_close(merged[name], wanted)


def test_merging_adapters_is_merging_the_models_they_make() -> None:
    model = adapted(ranks=(2, 3, 1))
    base = {name: p.detach().clone() for name, p in model.get_base_model().named_parameters() if "lora" not in name}
    wholes = []
    for name in "xyz":
        whole = dict(base)
        for key, value in products(model, name).items():
            place = key.removeprefix("base_model.model.") + ".base_layer.weight"
            whole[place] = whole[place] + value
        wholes.append(whole)
    for method in ("average", "slerp", "multislerp"):
        merge_adapters(model, ["x", "y", "z"], method, [1.0, 2.0, 0.5], name=method)
        wanted = merge(base, wholes, method, [1.0, 2.0, 0.5])
        for key, value in products(model, method).items():
            place = key.removeprefix("base_model.model.") + ".base_layer.weight"
            torch.testing.assert_close(base[place] + value, wanted[place])


def test_search_in_the_product_space() -> None:
    model = adapted(ranks=(2, 3))
    active, flags = list(model.active_adapters), [p.requires_grad for p in model.parameters()]
    scalings = [dict(layer.scaling) for layer in model.modules() if hasattr(layer, "scaling") and isinstance(layer.scaling, dict)]
    with torch.random.fork_rng():
        result = position_adapters(model, ["x", "y"], [WORDS], loss_of, steps=40, mu=0.0, name="found")
    assert result.history[-1]["loss"] < result.history[0]["loss"] - 0.01
    rows = torch.stack([flat(products(model, name), list(products(model, "x"))) for name in "xy"])
    expected = result.scale * nested_slerp(rows, result.weights)
    torch.testing.assert_close(flat(products(model, "found"), list(products(model, "x"))), expected)
    torch.testing.assert_close(result.coefficients @ rows, expected)
    assert list(model.active_adapters) == active
    assert [p.requires_grad for name, p in model.named_parameters() if "found" not in name] == flags
    after = [dict(layer.scaling) for layer in model.modules() if hasattr(layer, "scaling") and isinstance(layer.scaling, dict)]
    assert [{k: v for k, v in own.items() if k != "found"} for own in after] == scalings
    assert set(result.state_dict) and all(torch.is_tensor(value) for value in result.state_dict.values())
    # The loss of the first step is that of both at the position it says.
    first = result.history[0]
    merge_adapters(model, ["x", "y"], "slerp", first["weights"], first["scale"], name="first")
    model.set_adapter("first")
    assert loss_of(model, WORDS).item() == pytest.approx(first["loss"], rel=1e-10)


def test_it_saves_and_loads(tmp_path) -> None:
    from peft import PeftModel

    model = adapted()
    merge_adapters(model, ["x", "y"], name="both")
    model.set_adapter("both")
    wanted = model(WORDS)
    model.save_pretrained(tmp_path, selected_adapters=["both"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        again = PeftModel.from_pretrained(Net().double(), tmp_path / "both").eval()
    torch.testing.assert_close(again(WORDS), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: merge_adapters(Net(), ["x"]), "model: got 'Net'; expected a peft.PeftModel"),
        (lambda m: merge_adapters(m, "x"), "adapters: got 'x'; expected different names"),
        (lambda m: merge_adapters(m, ["x", "x"]), "different names of at least one adapter"),
        (lambda m: merge_adapters(m, ["x", "q"]), "adapters: got 'q'; expected one of x, y"),
        (lambda m: merge_adapters(m, ["x", "y"], "ties"), "method: got 'ties'"),
        (lambda m: merge_adapters(m, ["x", "y"], weights=[1.0]), "weights: "),
        (lambda m: merge_adapters(m, ["x"], name="y"), "name: got 'y'; expected a name that no adapter has yet"),
        (lambda m: position_adapters(m, ["x", "y"], [], loss_of), "probe: got no batches"),
        (lambda m: position_adapters(m, ["x", "y"], [WORDS], lambda model, x: 1.0), "loss_fn: got 'float'"),
        (lambda m: position_adapters(m, ["x", "y"], [WORDS], loss_of, steps=0), "steps: got 0"),
    ],
)  # fmt: skip
def test_bad_input(call, message) -> None:
    model = adapted()
    with pytest.raises(InputError, match=message):
        call(model)
    assert set(model.peft_config) == {"x", "y"} and not model.training


def test_adapters_that_are_no_plain_products_are_refused() -> None:
    model = get_peft_model(Net(), LoraConfig(r=2, target_modules=["first"], use_dora=True), "x")
    with pytest.raises(InputError, match="adapters: got x with use_dora; expected adapters that are products"):
        merge_adapters(model, ["x"])
    for word, value in (("trainable_token_indices", {"embed": [0]}), ("target_parameters", ["last.weight"])):
        model = get_peft_model(Net(), LoraConfig(r=2, target_modules=["first"], **{word: value}), "x")
        with pytest.raises(InputError, match=f"adapters: got x with {word}"):
            position_adapters(model, ["x"], [WORDS], loss_of)
    model = get_peft_model(Net(), LoraConfig(r=2, target_modules=["first"]), "x")
    model.add_adapter("y", LoraConfig(r=2, target_modules=".*first"))
    with pytest.raises(InputError, match="adapters: got target_modules of types set, str; expected names in all"):
        merge_adapters(model, ["x", "y"])
