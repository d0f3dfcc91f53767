from __future__ import annotations

import copy
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from counterpoise._errors import InputError
from counterpoise.weights import SelfPositioning, merge, nested_slerp, task_vector
from counterpoise.weights import _positioning as module
from counterpoise.weights._models import Models
from tests.batteries.weights import batches, copied, family, loss_of, same


class Plane(nn.Module):
    """Two numbers, so that the best position can be drawn on paper."""

    def __init__(self, x: float = 0.0, y: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([x, y], dtype=torch.float64))


def distance(model: nn.Module, goal: torch.Tensor) -> torch.Tensor:
    return ((model.w - goal) ** 2).sum()


GOAL = torch.tensor([1.0, 3.0], dtype=torch.float64)


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def squared(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(20, 5, generator=generator).double(), torch.randn(20, 3, generator=generator).double()


# ---- the identity -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["mean", "sum"])
@pytest.mark.parametrize("held", [True, False])
def test_the_gradient_is_that_of_autograd(rule, held, monkeypatch) -> None:
    monkeypatch.setattr(module, "HELD", 2**28 if held else 0)
    base, models = network(0), [network(1), network(2), network(3)]
    opened = Models(base, models)
    merged = module.MergedModel(base, opened, [0, 1, 2])
    assert bool(merged._held) == held
    u = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    size = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    d = size * module.slerp_coefficients(opened.gram(), u.exp(), rule)
    loss, products = merged.loss_and_products(d.detach(), data(), squared)
    found = torch.autograd.grad(d, (u, size), products)
    # The same with a graph over the vectors themselves.
    vectors = [task_vector(base, model) for model in models]
    flat = torch.stack([torch.cat([v.reshape(-1) for v in vector.values()]) for vector in vectors])
    whole = size * _nested(flat, u.exp(), rule)
    parts = whole.split([v.numel() for v in vectors[0].values()])
    theta = {n: p.detach() + part.view_as(p) for (n, p), part in zip(base.named_parameters(), parts, strict=True)}
    x, y = data()
    explicit = F.mse_loss(torch.func.functional_call(base, theta, x), y)
    wanted = torch.autograd.grad(explicit, (u, size))
    assert loss == pytest.approx(explicit.item(), rel=1e-12)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)


def _nested(flat: torch.Tensor, a: torch.Tensor, rule: str) -> torch.Tensor:
    from counterpoise.weights import slerp

    merged = flat[0]
    for k in range(1, len(flat)):
        before = a[:k].mean() if rule == "mean" else a[:k].sum()
        merged = slerp(merged, flat[k], a[k] / (before + a[k]))
    return merged


# ---- the search -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("optimizer", "steps"), [("adam", 300), ("sgd", 300)])
def test_it_finds_the_best_position(optimizer, steps) -> None:
    models = [Plane(2.0, 0.0), Plane(0.0, 1.0)]
    options = {"lr": 0.02} if optimizer == "sgd" else {}
    result = SelfPositioning(optimizer=optimizer, **options).fit(Plane(), models, [GOAL], distance, steps=steps, mu=0.0)
    torch.testing.assert_close(result.state_dict["w"], GOAL, rtol=0.02, atol=0.02)
    assert result.history[-1]["loss"] < 1e-2 < result.history[0]["loss"]
    assert [row["step"] for row in result.history] == list(range(steps)) and result.stopped == ""
    assert float(result.weights.sum()) == pytest.approx(1)
    vectors = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(result.scale * nested_slerp(vectors, result.weights), result.state_dict["w"])
    torch.testing.assert_close(result.coefficients @ vectors, result.state_dict["w"])


def test_its_numbers_make_the_same_model_again(tmp_path) -> None:
    base, models = family()
    result = SelfPositioning().fit(base, models, batches(), loss_of, steps=5, rule="sum")
    again = merge(base, models, "slerp", result.weights, result.scale, rule="sum")
    parameters = [name for name, _ in base.named_parameters()]
    same({n: result.state_dict[n] for n in parameters}, {n: again[n] for n in parameters}, 1e-12)
    assert result.to_frame().columns == ["step", "loss", "scale", "weight_0", "weight_1", "weight_2"]
    assert result.summary().startswith("Weights ") and len(result.to_frame()) == 5


def test_a_price_on_the_scale_shortens_the_merge() -> None:
    models = [Plane(2.0, 0.0), Plane(0.0, 1.0)]
    free, dear = (SelfPositioning().fit(Plane(), models, [GOAL], distance, mu=mu) for mu in (0.0, 2.0))
    assert dear.scale < free.scale - 0.1
    assert SelfPositioning().fit(Plane(), models, [GOAL], distance, mu=100.0).scale == 0.0  # and never turns it round


def test_one_model_leaves_only_the_scale() -> None:
    result = SelfPositioning().fit(Plane(), [Plane(0.0, 2.0)], [GOAL], distance, mu=0.0)
    assert result.weights.tolist() == [1.0] and result.scale == pytest.approx(1.5, abs=0.02)


def test_the_same_seed_gives_the_same_search() -> None:
    set_ = TensorDataset(*data())
    found = [
        SelfPositioning().fit(
            network(0), [network(1), network(2)],
            DataLoader(set_, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(3)), squared, steps=12,
        )
        for _ in range(2)
    ]  # fmt: skip
    assert found[0].history == found[1].history and len({row["loss"] for row in found[0].history}) == 12
    same(found[0].state_dict, found[1].state_dict)


@pytest.mark.parametrize("held", [True, False])
def test_files_modules_and_dictionaries_are_searched_alike(held, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "HELD", 2**28 if held else 0)
    base, models = family()
    wanted = SelfPositioning().fit(base, models, batches(), loss_of, steps=4)
    save_file({name: t for name, t in copied(models[1]).items() if name != "out.weight"}, tmp_path / "b.safetensors")
    found = SelfPositioning().fit(base, [models[0], tmp_path / "b.safetensors", copied(models[2])], batches(), loss_of, steps=4)
    torch.testing.assert_close(found.coefficients, wanted.coefficients)
    same(found.state_dict, wanted.state_dict, 1e-12)


def test_half_precision(monkeypatch) -> None:
    base, models = Plane().bfloat16(), [Plane(2.0, 0.0).bfloat16(), Plane(0.0, 1.0).bfloat16()]
    for held in (2**28, 0):
        monkeypatch.setattr(module, "HELD", held)
        result = SelfPositioning().fit(base, models, [GOAL], distance, mu=0.0)
        assert result.state_dict["w"].dtype == torch.bfloat16
        torch.testing.assert_close(result.state_dict["w"].double(), GOAL, rtol=0.05, atol=0.05)
        assert result.coefficients.dtype == torch.float64


def test_frozen_parameters_and_sparse_gradients() -> None:
    base, models = family()
    frozen = copy.deepcopy(base).requires_grad_(False)
    wanted = SelfPositioning().fit(base, models, batches(), loss_of, steps=3)
    same(SelfPositioning().fit(frozen, models, batches(), loss_of, steps=3).state_dict, wanted.state_dict)
    found = []
    for sparse in (False, True):
        tables = [nn.Embedding(4, 2, sparse=sparse, _weight=torch.full((4, 2), float(k))) for k in range(3)]
        tables[2].weight.data[0] = 7.0
        found.append(SelfPositioning().fit(tables[0], tables[1:], [torch.tensor([0, 2])], lambda m, x: (m(x) - 3).square().mean(), steps=4))
    torch.testing.assert_close(found[0].coefficients, found[1].coefficients)


# ---- batch normalization ----------------------------------------------------------------------------------------------------------------


def test_statistics_of_batch_normalization_are_estimated_anew() -> None:
    base, models = family()
    probe = batches()
    result = SelfPositioning().fit(base, models, probe, loss_of, steps=3)
    twin = copy.deepcopy(base)
    twin.load_state_dict(result.state_dict)
    inputs = [twin.body(twin.embed(batch)).detach() for batch in probe]
    torch.testing.assert_close(result.state_dict["norm.running_mean"], torch.stack([x.mean(0) for x in inputs]).mean(0))
    torch.testing.assert_close(result.state_dict["norm.running_var"], torch.stack([x.var(0) for x in inputs]).mean(0))
    assert result.state_dict["norm.num_batches_tracked"] == base.state_dict()["norm.num_batches_tracked"]


def test_dropout_is_off_while_searching() -> None:
    base = nn.Sequential(nn.Linear(5, 7), nn.Dropout(0.9), nn.Linear(7, 3)).double().train()
    models = [copied(base) for _ in range(2)]
    for k, model in enumerate(models):
        model["0.weight"] += 0.1 * (k + 1) * torch.eye(7, 5).double()
        model["2.bias"][k] += 0.2
    first = [SelfPositioning().fit(base, models, [data()], squared, steps=2).history for _ in range(2)]
    assert first[0] == first[1] and base.training


# ---- what goes wrong --------------------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_search() -> None:
    calls: list[int] = []

    def breaks(model: nn.Module, goal: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return distance(model, goal) * (float("inf") if len(calls) == 6 else 1.0)

    with pytest.warns(UserWarning, match="Stopped at step 5: the probe loss is not finite"):
        result = SelfPositioning().fit(Plane(), [Plane(2.0, 0.0), Plane(0.0, 1.0)], [GOAL], breaks, mu=0.0)
    assert len(result.history) == 5 and result.stopped.startswith("Stopped at step 5")
    best = min(result.history, key=lambda row: row["loss"])
    assert result.scale == best["scale"] and result.weights.tolist() == best["weights"]
    assert "Stopped at step 5" in result.summary()
    with pytest.raises(InputError, match="probe: got a loss of nan, or its gradient, at the start; expected finite losses"):
        SelfPositioning().fit(Plane(), [Plane(2.0, 0.0)], [GOAL * math.nan], distance)


def test_steps_that_are_too_large_leave_numbers() -> None:
    models = [Plane(2.0, 0.0), Plane(0.0, 1.0), Plane(1.0, 1.0)]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        with pytest.warns(UserWarning, match="fell below 1%"):
            result = SelfPositioning(optimizer="sgd").fit(
                Plane(), [models[k] for k in order], [GOAL], lambda model, goal: 1e9 * distance(model, goal), steps=1
            )
        assert bool(torch.isfinite(result.coefficients).all()) and bool(torch.isfinite(result.state_dict["w"]).all())
        assert result.weights.sum().item() == pytest.approx(1.0)


def test_parameters_of_the_loss_get_no_gradient() -> None:
    temperature = nn.Parameter(torch.ones((), dtype=torch.float64))
    SelfPositioning().fit(Plane(), [Plane(2.0, 0.0)], [GOAL], lambda model, goal: temperature * distance(model, goal), steps=2)
    assert temperature.grad is None


def test_a_task_that_is_missing_in_the_probe_fades() -> None:
    goal = torch.tensor([2.0, 0.0], dtype=torch.float64)
    with pytest.warns(UserWarning, match=r"The weight of models\[1\] fell below 1%: is the task in the probe\?"):
        SelfPositioning(lr=0.5).fit(Plane(), [Plane(2.0, 0.0), Plane(0.0, 1.0)], [goal], distance, mu=0.0)


def test_models_equal_to_the_base_are_left_out() -> None:
    with pytest.warns(UserWarning, match=r"models\[0\] equal the base") as caught:
        result = SelfPositioning().fit(Plane(), [Plane(), Plane(0.0, 2.0)], [GOAL], distance, mu=0.0)
    assert caught[0].filename == __file__
    assert result.weights.tolist() == [0.0, 1.0] and result.history[0]["weights"] == [0.0, 1.0]
    with pytest.warns(UserWarning), pytest.raises(InputError, match="1 models that equal the base"):
        SelfPositioning().fit(Plane(), [Plane()], [GOAL], distance)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SelfPositioning(lr=0.0), "lr: got 0.0"),
        (lambda: SelfPositioning(optimizer="lbfgs"), "optimizer: got 'lbfgs'; expected one of adam, sgd"),
        (lambda: SelfPositioning(scale=-1.0), "scale: got -1.0"),
        (lambda: fit(base={"w": GOAL}), "base: got 'dict'; expected a torch.nn.Module"),
        (lambda: fit(steps=0), "steps: got 0"),
        (lambda: fit(mu=-0.1), "mu: got -0.1"),
        (lambda: fit(rule="last"), "rule: got 'last'"),
        (lambda: fit(probe=[]), "probe: got no batches; expected a loader or list of batches"),
        (lambda: fit(probe=iter([GOAL])), "An iterator can be read only once"),
        (lambda: fit(loss_fn=lambda model, goal: model.w - goal), r"loss_fn: got a tensor of shape \(2,\)"),
        (lambda: fit(loss_fn=lambda model, goal: 1.0), "loss_fn: got 'float'; expected a function that returns a scalar"),
        (lambda: fit(loss_fn=lambda model, goal: goal.sum()), "requires_grad=False; expected"),
        (lambda: fit(models=[Plane(1.0, 0.0), Plane(-1.0, 0.0)]), r"antiparallel task vectors.*models\[0\] or models\[1\]"),
        (lambda: fit(models=[]), "models: got an empty sequence"),
    ],
)  # fmt: skip
def test_bad_input(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()


def fit(**options):
    options = {"base": Plane(), "models": [Plane(2.0, 0.0)], "probe": [GOAL], "loss_fn": distance} | options
    return SelfPositioning().fit(**options)
