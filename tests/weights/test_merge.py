from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from counterpoise._errors import InputError
from counterpoise.weights import SelfPositioning, merge, nested_slerp
from tests.batteries.weights import batches, copied, family, loss_of, same

ZERO = {"w": torch.zeros(4, dtype=torch.float64)}


def at(*values: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor(values, dtype=torch.float64)}


def w_of(merged) -> list[float]:
    return merged["w"].tolist()


# ---- rules that are linear in the task vectors ------------------------------------------------------------------------------------------


def test_average_and_sum_on_paper() -> None:
    base = at(1, 1, 1, 1)
    a, b = at(3, 1, 1, 1), at(1, 1, 1, 5)
    assert w_of(merge(base, [a, b])) == [2, 1, 1, 3]
    assert w_of(merge(base, [a, b], weights=[3, 1])) == [2.5, 1, 1, 2]
    assert w_of(merge(base, [a, b], "arithmetic")) == [3, 1, 1, 5]
    assert w_of(merge(base, [a, b], "arithmetic", weights=[1, -0.5], scale=2.0)) == [5, 1, 1, -3]
    for method in ("average", "arithmetic", "slerp", "multislerp", "ties"):
        assert w_of(merge(base, [a, b], method, scale=0.0)) == [1, 1, 1, 1]


def test_slerp_is_over_the_whole_model_in_the_given_order() -> None:
    base, models = family()
    base, models = copied(base), [copied(model) for model in models]
    merged = merge(base, models, "slerp", weights=[1.0, 2.0, 0.5], scale=1.5)
    names = [name for name in base if base[name].is_floating_point() and "running" not in name]
    vectors = [{name: model[name] - base[name] for name in names} for model in models]
    wanted = nested_slerp(vectors, [1.0, 2.0, 0.5])
    for name in names:
        torch.testing.assert_close(merged[name], base[name] + 1.5 * wanted[name])
    other = merge(base, models[::-1], "slerp", weights=[0.5, 2.0, 1.0], scale=1.5)
    assert not torch.allclose(other["body.weight"], merged["body.weight"], rtol=1e-3)


def test_multislerp_is_the_mean_direction_with_the_mean_length() -> None:
    assert w_of(merge(ZERO, [at(3, 0, 0, 0), at(0, 1, 0, 0)], "multislerp")) == pytest.approx([2 / 2**0.5, 2 / 2**0.5, 0, 0])
    with pytest.raises(InputError, match="task vectors whose directions cancel"):
        merge(ZERO, [at(3, 0, 0, 0), at(-1, 0, 0, 0)], "multislerp")


def test_models_without_a_direction_take_no_part() -> None:
    a, b = at(3, 0, 0, 0), at(0, 3, 0, 0)
    for method in ("slerp", "multislerp"):
        with pytest.warns(UserWarning, match=r"models\[1\] equal the base: without a direction") as caught:
            merged = merge(ZERO, [a, ZERO, b], method)
        assert caught[0].filename == __file__
        same(merged, merge(ZERO, [a, b], method))
        with pytest.warns(UserWarning, match=r"models\[0\], models\[1\] equal the base"):
            same(merge(ZERO, [ZERO, ZERO], method), ZERO)


def test_antiparallel_vectors_are_named() -> None:
    a, b = at(1, 0, 0, 0), at(0, 1, 0, 0)
    with pytest.raises(InputError, match=r"antiparallel task vectors.*leave out models\[0\] or models\[1\]"):
        merge(ZERO, [a, at(-2, 0, 0, 0)], "slerp")
    with pytest.raises(InputError, match=r"leave out the merge of models\[0\], models\[1\] or models\[2\]"):
        merge(ZERO, [a, b, at(-1, -1, 0, 0)], "slerp")


# ---- rules for each entry ---------------------------------------------------------------------------------------------------------------


def test_ties_on_paper() -> None:
    a, b, c = at(4, -3, 0.1, 0.2), at(2, 2, 0.1, -0.3), at(-1, 1.5, 5, 0.1)
    # Two of four entries each: (4, -3), (2, 2) and (1.5, 5). Signs: +, + (2 + 1.5 > 3), +, none.
    assert w_of(merge(ZERO, [a, b, c], "ties", density=0.5)) == [3, 1.75, 5, 0]
    assert w_of(merge(ZERO, [a, b, c], "ties", density=0.5, scale=2.0)) == [6, 3.5, 10, 0]
    # With more weight on the first, its sign wins the second entry.
    assert w_of(merge(ZERO, [a, b, c], "ties", weights=[2, 1, 1], density=0.5)) == pytest.approx([10 / 3, -3, 5, 0])
    assert w_of(merge(ZERO, [a, b, c], "ties", density=0.01)) == [3, 2, 5, 0]  # one entry at least; equal ones stay together


def ties_by_the_letter(vectors: torch.Tensor, w: torch.Tensor, density: float) -> torch.Tensor:
    kept = max(1, int(density * vectors.shape[1]))
    trimmed = torch.zeros_like(vectors)
    for k, vector in enumerate(vectors):
        largest = vector.abs().argsort(descending=True)[:kept]
        trimmed[k, largest] = vector[largest]
    sign = torch.where((w[:, None] * trimmed).sum(0) >= 0, 1.0, -1.0)
    agrees = trimmed.sign() == sign
    share = (w[:, None] * agrees).sum(0)
    return (w[:, None] * trimmed * agrees).sum(0) / torch.where(share == 0, 1.0, share)


@given(st.integers(1, 5), st.integers(1, 50), st.floats(0.01, 1.0), st.integers(0, 1000), st.sampled_from([torch.float32, torch.float64]))
def test_ties_is_what_its_steps_say(count, n, density, seed, dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, n, generator=generator, dtype=dtype)
    w = torch.rand(count, generator=generator, dtype=torch.float64) + 0.1
    found = merge({"w": torch.zeros(n, dtype=dtype)}, [{"w": v} for v in vectors], "ties", w, density=density)
    torch.testing.assert_close(found["w"], ties_by_the_letter(vectors, w, density).to(dtype))


def test_fisher_on_paper() -> None:
    a, b = at(4, 4, 4, 4), at(0, 2, 2, 2)
    F = [{"w": torch.tensor([3.0, 1.0, 0.0, 0.0])}, {"w": torch.tensor([1.0, 1.0, 5.0, 0.0])}]
    assert w_of(merge(ZERO, [a, b], "fisher", statistics=F)) == [3, 3, 2, 3]  # the mean where nobody cares
    assert w_of(merge(ZERO, [a, b], "fisher", statistics=F, weights=[1, 3])) == pytest.approx([2, 2.5, 2, 2.5])
    assert w_of(merge(ZERO, [a, b], "fisher", statistics=F, scale=0.5)) == [1.5, 1.5, 1, 1.5]
    base, small = {"w": torch.zeros(1)}, {"w": torch.tensor([1e-42])}  # times a change, 0 in float32
    assert merge(base, [{"w": torch.tensor([0.25])}, {"w": torch.tensor([0.75])}], "fisher", statistics=[small] * 2)["w"].item() == 0.5


def test_fisher_from_data_is_the_mean_of_squared_gradients() -> None:
    base, models = family(2)
    loaders = [batches(), batches()[:1]]
    merged = merge(base, models, "fisher", data=loaders, loss_fn=loss_of)
    known = []
    for model, loader in zip(models, loaders, strict=True):
        twin = copy.deepcopy(model).eval()
        total: dict[str, torch.Tensor] = {}
        for batch in loader:
            twin.zero_grad()
            loss_of(twin, batch).backward()
            for name, p in twin.named_parameters():
                if p.grad is not None:
                    total[name] = total.get(name, 0) + p.grad.float() ** 2 / len(loader)
        known.append(total)
    same(merged, merge(base, models, "fisher", statistics=known), 1e-6)
    same(merge(base, [copied(model) for model in models], "fisher", data=loaders, loss_fn=loss_of), merged, 1e-12)


def test_regmean_solves_the_regression() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(5, 3).double()
    models = [copy.deepcopy(layer) for _ in range(2)]
    X = [torch.randn(40, 5, generator=generator, dtype=torch.float64) * torch.tensor([1, 1, 1, s, 0.0]) for s in (3, 0.1)]
    with torch.no_grad():
        for model in models:
            model.weight += torch.randn(3, 5, generator=generator, dtype=torch.float64)
    merged = merge(layer, models, "regmean", data=[[x] for x in X], loss_fn=lambda model, x: model(x).sum())
    # What one layer needs in order to be like every model on its own inputs, by least squares over both.
    targets = torch.cat([x @ model.weight.T for x, model in zip(X, models, strict=True)]).detach()
    inputs = torch.cat(X)[:, :4]
    wanted = torch.linalg.lstsq(inputs, targets).solution.T
    torch.testing.assert_close(merged["weight"][:, :4], wanted)
    mean = (models[0].weight + models[1].weight).detach() / 2
    torch.testing.assert_close(merged["weight"][:, 4], mean[:, 4])  # an input that is always 0
    same(merge(layer, models, "regmean", statistics=[{"weight": x.T @ x} for x in X]), merged, 1e-12)
    assert torch.equal(merged["bias"], layer.bias)


# ---- files ------------------------------------------------------------------------------------------------------------------------------


def sharded(folder, state, parts=2):
    folder.mkdir()
    names = list(state)
    files = {name: f"model-{k + 1:05d}-of-{parts:05d}.safetensors" for k in range(parts) for name in names[k::parts]}
    for file in sorted(set(files.values())):
        save_file({name: state[name] for name in names if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    (folder / "config.json").write_text('{"kind": "net"}')
    (folder / "weights.bin").write_bytes(b"other weights")
    return folder


@pytest.mark.parametrize("piece", [2**20, 3])
def test_shards_in_shards_out(tmp_path, monkeypatch, piece) -> None:
    monkeypatch.setattr("counterpoise.weights._models.PIECE", piece)
    base, models = family()
    states = [{n: t for n, t in copied(model).items() if n != "out.weight"} for model in (base, *models)]
    paths = [sharded(tmp_path / str(k), state) for k, state in enumerate(states)]
    for method in ("average", "slerp", "ties"):
        out = merge(paths[0], paths[1:], method, out=tmp_path / method)
        assert out == tmp_path / method
        assert sorted(path.name for path in out.iterdir()) == [
            "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
        ]  # fmt: skip
        index = json.loads((out / "model.safetensors.index.json").read_text())
        assert index["weight_map"] == json.loads((paths[0] / "model.safetensors.index.json").read_text())["weight_map"]
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in states[0].values())
        written = {name: load_file(out / file)[name] for name, file in index["weight_map"].items()}
        same(written, merge(states[0], states[1:], method), 1e-12)
        assert merge(out, [out], method="average").keys() == written.keys()  # and is a model again


def test_a_folder_for_models_in_memory(tmp_path, monkeypatch) -> None:
    base, models = family()
    merged = merge(base, models)
    out = merge(base, models, out=tmp_path / "one")
    assert [path.name for path in out.iterdir()] == ["model.safetensors"]
    same(load_file(out / "model.safetensors"), {n: t for n, t in merged.items() if n != "out.weight"})
    monkeypatch.setattr("counterpoise.weights._write.SHARD", 200)
    out = merge(base, models, out=tmp_path / "several")
    assert len(list(out.glob("model-*-of-*.safetensors"))) == len(set(json.loads((out / "model.safetensors.index.json").read_text())["weight_map"].values())) > 2  # noqa: E501  # fmt: skip
    same(merge(out, [out]), load_file(tmp_path / "one" / "model.safetensors"), 1e-15)
    # A module reads it back, tied weights and all.
    from safetensors.torch import load_model

    target = copy.deepcopy(base)
    load_model(target, tmp_path / "one" / "model.safetensors")
    same(target.state_dict(), merged)


def test_inputs_are_never_overwritten(tmp_path) -> None:
    base, models = family(1)
    path = tmp_path / "a.safetensors"
    save_file(copied(models[0]), path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"out: .*It is that of models\[0\]"):
        merge(base, [path], out=path)
    assert path.read_bytes() == before
    # A folder whose file is a model.
    whole = tmp_path / "whole" / "model.safetensors"
    whole.parent.mkdir()
    whole.write_bytes(before)
    for start, others in ((whole, [path]), (path, [whole])):
        with pytest.raises(InputError, match=r"out: .*It is that of"):
            merge(start, others, out=whole.parent)
    assert whole.read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"a folder, or a path that ends in \.safetensors"):
        merge(base, models, out=tmp_path / "file")
    with pytest.raises(InputError, match="cannot be written"):
        merge(base, models, out=tmp_path / "file" / "below")


def test_merged_weights_are_what_their_folder_loads(tmp_path, monkeypatch) -> None:
    base, models = family(1)
    state = {name: tensor for name, tensor in copied(base).items() if name != "out.weight"}
    old = sharded(tmp_path / "shards", state)
    with pytest.raises(InputError, match=r"a folder without other weights. It holds model\.safetensors\.index\.json"):
        merge(base, models, out=old)
    out = merge(base, models, out=tmp_path / "one")
    merge(base, models, "ties", out=out)  # once more
    monkeypatch.setattr("counterpoise.weights._write.SHARD", 200)
    with pytest.raises(InputError, match=r"It holds model\.safetensors, which"):
        merge(base, models, out=out)


def test_an_index_that_does_not_fit_its_files_is_named(tmp_path) -> None:
    folder = sharded(tmp_path / "shards", {"v": torch.ones(2), "w": torch.ones(3)})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"v": "model-00001-of-00002.safetensors", "w": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(InputError, match=r"base: .*Missing in model-00001-of-00002\.safetensors: w"):
        merge(folder, [folder])
    for text in ("{", "{}", "[]", '{"weight_map": {"v": 1}}'):
        index.write_text(text)
        with pytest.raises(InputError, match=r'base: .*expected JSON with a "weight_map"'):
            merge(folder, [folder])


# ---- modules ----------------------------------------------------------------------------------------------------------------------------


def test_what_is_tied_in_the_base_has_one_value() -> None:
    w = torch.zeros(3)
    base = {"embed": w, "head": w}
    copies = {"embed": torch.ones(3), "head": torch.ones(3)}  # as a state dictionary whose tensors were cloned
    merged = merge(base, [copies])
    assert merged["embed"] is merged["head"] and merged["head"].tolist() == [1, 1, 1]
    for method in ("average", "ties"):
        with pytest.raises(InputError, match=r"models\[0\]: got different embed and head; expected one tensor, as in the base"):
            merge(base, [copies | {"head": torch.full((3,), 5.0)}], method)


class Counting(nn.Module):
    """With a state that is no tensor, and a parameter that cannot be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.codes = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
        self.count = 0

    def get_extra_state(self) -> dict[str, int]:
        return {"count": self.count}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.count = state["count"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def test_state_that_is_no_tensor_and_parameters_that_are_integers_are_those_of_the_base() -> None:
    base, model = Counting(), Counting()
    base.count = 3
    found = SelfPositioning().fit(base, [model], [torch.ones(4, 2)], lambda net, x: net(x).square().mean(), steps=2)
    for merged in (merge(base, [model]), found.state_dict):
        target = Counting()
        target.load_state_dict(merged)
        assert target.count == 3 and torch.equal(target.codes, base.codes)


def test_inputs_of_parametrized_layers_are_not_needed() -> None:
    base = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.Linear(2, 1))
    models = [copy.deepcopy(base) for _ in range(2)]
    merged = merge(base, models, "regmean", data=[[torch.eye(2)]] * 2, loss_fn=lambda model, x: model(x).sum())
    same(merged, base.state_dict(), 1e-6)


def test_tensors_without_values_of_their_own_are_refused() -> None:
    class Sharded(torch.Tensor):
        def full_tensor(self) -> torch.Tensor:
            return self

    for tensor, words in (
        (torch.ones(4).as_subclass(Sharded), "w, a sharded tensor"),
        (torch.ones(4, device="meta"), "w on the meta device"),
    ):
        with pytest.raises(InputError, match=rf"models\[0\]: got '?{words}"):
            merge({"w": torch.zeros(4)}, [{"w": tensor}])


# ---- bad input --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "mean"}, "method: got 'mean'; expected one of average, arithmetic"),
        ({"method": "slerp", "rule": "last"}, "rule: got 'last'"),
        ({"scale": float("nan")}, "scale: got nan"),
        ({"method": "ties", "density": 0.0}, r"density: got 0.0; expected a number in \(0, 1\]"),
        ({"method": "ties", "density": 1.5}, "density: got 1.5"),
        ({"weights": [1.0]}, "weights: .*expected 2 finite weights > 0"),
        ({"weights": [1.0, -1.0]}, "2 finite weights > 0"),
        ({"method": "arithmetic", "weights": [1.0, float("inf")]}, "2 finite weights, one per model"),
        ({"method": "fisher"}, "statistics and data: got both or neither"),
        ({"method": "regmean", "statistics": [{}, {}], "data": [[], []]}, "statistics and data: got both or neither"),
        ({"statistics": [{}, {}]}, "statistics and data: got method 'average'; expected fisher or regmean"),
        ({"method": "fisher", "statistics": [{}]}, "a list of 2 dictionaries or paths, one per model"),
        ({"method": "fisher", "statistics": [{}, {}]}, "dictionaries without tensors"),
        ({"method": "fisher", "statistics": [{"v": torch.ones(1)}] * 2}, r"statistics\[0\]: got 'v'; expected names of the base"),
        ({"method": "fisher", "statistics": [{"w": torch.ones(1)}] * 2}, r"w of shape \(1,\); expected shape \(4,\)"),
        ({"method": "fisher", "statistics": [{"w": torch.ones(4)}, {}]}, r"statistics\[1\]: got other names than statistics\[0\]"),
        ({"method": "fisher", "statistics": [{"w": torch.ones(4)}, {"w": torch.tensor([1.0, -1, 1, 1])}]}, r"cs\[1\]: got neg"),
        ({"method": "fisher", "statistics": [{"w": torch.tensor([1.0, math.nan, 1, 1])}, {"w": torch.ones(4)}]}, "not finite, of w"),
        ({"method": "fisher", "data": [[1]]}, "data: got 'list'; expected a list of 2 loaders"),
        ({"method": "fisher", "data": [[1], [1]]}, "loss_fn: got None; expected a function"),
        ({"method": "fisher", "data": [[1], [1]], "loss_fn": loss_of}, "base: got a model without a forward pass"),
    ],
)  # fmt: skip
def test_bad_options(options, message) -> None:
    with pytest.raises(InputError, match=message):
        merge(ZERO, [at(1, 0, 0, 0), at(0, 1, 0, 0)], **options)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", ["average", "arithmetic", "slerp", "multislerp", "ties", "fisher", "regmean"])
def test_weights_that_are_not_finite_are_refused_by_name(method: str, value: float) -> None:
    ones = {"layer.weight": torch.eye(4), "layer.bias": torch.ones(4)}
    options = {"fisher": {"statistics": [ones, ones]}, "regmean": {"statistics": [{"layer.weight": torch.eye(4)}] * 2}}.get(method, {})
    base, good, bad = ({"layer.weight": k * torch.eye(4), "layer.bias": torch.full((4,), float(k))} for k in (0, 1, 2))
    bad["layer.bias"][2] = value
    merge(base, [good, {name: 2 * tensor for name, tensor in good.items()}], method, **options)
    # The Gram matrix of the two on arcs is of whole models: it names the model.
    named = r"models\[1\]: got weights that are not finite" if "slerp" in method else r"models\[1\]: got layer\.bias with NaN or an inf"
    with pytest.raises(InputError, match=named):
        merge(base, [good, bad], method, **options)
    if "slerp" not in method:
        with pytest.raises(InputError, match=r"base: got layer\.bias with NaN or an infinite value; expected finite weights"):
            merge(bad, [good, good], method, **options)


def test_files_with_weights_that_are_not_finite_leave_nothing_behind(tmp_path) -> None:
    save_file({"w": torch.tensor([1.0, math.nan])}, tmp_path / "bad.safetensors")
    save_file({"w": torch.zeros(2)}, tmp_path / "base.safetensors")
    with pytest.raises(InputError, match=r"models\[0\] \(.*bad\.safetensors\): got w with NaN"):
        merge(tmp_path / "base.safetensors", [tmp_path / "bad.safetensors"], out=tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_large_weights_of_half_precision_are_finite() -> None:
    base, tuned = {"w": torch.zeros(8, dtype=torch.float16)}, {"w": torch.full((8,), 6e4, dtype=torch.float16)}
    assert merge(base, [tuned])["w"].tolist() == tuned["w"].tolist()  # though their sum is none in their type


@pytest.mark.parametrize("method", ["average", "ties"])
def test_a_mask_that_no_one_trained_stays(method: str) -> None:
    class Masked(nn.Linear):
        def __init__(self, value: float = -math.inf) -> None:
            super().__init__(2, 2)
            self.register_buffer("mask", torch.tensor([[0.0, value], [0.0, 0.0]]))

    base, tuned = Masked(), Masked()
    assert torch.equal(merge(base, [tuned, tuned], method)["mask"], base.mask)
    with pytest.raises(InputError, match=r"base: got mask with NaN or an infinite value"):
        merge(base, [tuned, Masked(-1e9)], method)


def test_bad_data() -> None:
    base, models = family(1)
    with pytest.raises(InputError, match=r"data\[0\]: got an empty loader"):
        merge(base, models, "fisher", data=[[]], loss_fn=loss_of)
    with pytest.raises(InputError, match=r"data\[0\]: got an empty loader"):
        merge(base, models, "regmean", data=[[]], loss_fn=loss_of)
    frozen = copy.deepcopy(models[0]).requires_grad_(False)
    with pytest.raises(InputError, match="parameters are all frozen"):
        merge(base, [frozen], "fisher", data=[batches()], loss_fn=loss_of)
