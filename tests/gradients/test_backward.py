from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from counterpoise import CounterpoiseError
from counterpoise.gradients import (
    MGDA,
    SAMGS,
    Aggregator,
    CAGrad,
    GCond,
    GradientAnnealing,
    GradientStatistics,
    GradNorm,
    GroupLoss,
    PCGrad,
    WinsorizedMean,
    _backward,
    _losses,
    backward,
)
from tests.gradients.examples import Bounded, EqualLength, SignVote, Smoothed, Sum
from tests.gradients.examples_model import NAMES, ThreeHeads, batch, expected, in_one, rows_of_losses

KINDS = [Sum, EqualLength, Bounded, Smoothed, SignVote, WinsorizedMean]
WEIGH = KINDS[:4]


class ByLoss(Aggregator):
    """Weights from the values of the losses."""

    needs = frozenset({"losses"})

    def weights(self, s: GradientStatistics) -> torch.Tensor:
        return 1 / s.losses


class Momentum(EqualLength):
    """Something happens to the combined gradient."""

    def finish(self, combined: torch.Tensor, slot: int, s: GradientStatistics) -> torch.Tensor:
        before = self.kept(f"momentum_{slot}", combined.shape)
        return self.keep(f"momentum_{slot}", combined if before is None else 0.9 * before + combined)


def trunk_of(model: ThreeHeads) -> list[nn.Parameter]:
    return list(model.trunk.parameters())


@pytest.mark.parametrize("strategy", ["auto", "rows", "sketch", "recompute"])
@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_grad_is_the_aggregator_of_the_jacobian(make: type[Aggregator], strategy: str) -> None:
    model, data = ThreeHeads(), batch()
    if strategy == "sketch" and "rows" in make.needs:
        with pytest.raises(CounterpoiseError, match=r"strategy: got 'sketch'; expected 'rows' for"):
            backward(model(*data), make(), strategy=strategy)
        return
    report = backward((lambda: model(*data)) if strategy == "recompute" else model(*data), make(), strategy=strategy)
    torch.testing.assert_close(in_one(trunk_of(model)), expected(make, model, data))  # fewer entries than sketch_dim: exact
    assert report.names == NAMES
    assert report.strategy == {"auto": "plain" if make is Sum else "rows"}.get(strategy, strategy)
    assert report.passes == {"plain": 1, "rows": 3, "sketch": 4, "recompute": 3}[report.strategy]


def test_losses_come_as_a_dict_a_list_a_vector_or_a_stack() -> None:
    found = []
    for form in (dict, lambda losses: list(losses.values()), lambda losses: torch.stack(list(losses.values()))):
        model, data = ThreeHeads(), batch()
        backward(form(model(*data)), EqualLength())
        found.append(in_one(list(model.parameters())))
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[2], found[0])
    # A vector that was not stacked: nothing tells whose heads are whose, so that all leaves are shared.
    p = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    report = backward(p**2, Sum(), strategy="rows")
    assert torch.equal(p.grad, torch.tensor([2.0, 4.0, 6.0])) and report.names == ("0", "1", "2")


def test_gradients_add_up() -> None:
    model, data = ThreeHeads(), batch()
    sum(model(*data).values()).backward()
    before = in_one(list(model.parameters()))
    held = [p.grad for p in model.parameters()]
    backward(model(*data), EqualLength())
    alone = ThreeHeads()
    backward(alone(*data), EqualLength())
    torch.testing.assert_close(in_one(list(model.parameters())), before + in_one(list(alone.parameters())))
    assert all(p.grad is g for p, g in zip(model.parameters(), held, strict=True))  # in place, as the buckets of DDP want it


@pytest.mark.parametrize("strategy", ["rows", "sketch", "plain", "held"])
def test_a_head_gets_the_gradient_of_its_own_loss(strategy: str) -> None:
    data = batch()
    make = ByLoss if strategy == "plain" else EqualLength
    for heads in ("own", "weighted"):
        model = ThreeHeads()
        options = {} if strategy in ("plain", "held") else {"strategy": strategy}
        aggregator = make()
        if strategy == "held":
            backward(model(*data), aggregator, refresh_every=2)
            model.zero_grad()
            options = {"refresh_every": 2}
        report = backward(model(*data), aggregator, heads=heads, **options)
        assert report.strategy == {"held": "held weights"}.get(strategy, strategy)
        for i, name in enumerate(NAMES):
            own = torch.autograd.grad(model(*data)[name], list(model.heads[name].parameters()))
            factor = report.weights[i] if heads == "weighted" else 1.0
            for p, g in zip(model.heads[name].parameters(), own, strict=True):
                torch.testing.assert_close(p.grad, factor * g)


def test_a_head_with_no_weight_still_learns() -> None:
    class First(Sum):
        def weights(self, s: GradientStatistics) -> torch.Tensor:
            return torch.tensor([1.0, 0.0, 1e-9], dtype=torch.float64)

    model, data = ThreeHeads(), batch()
    report = backward(model(*data), First())
    assert report.strategy == "plain" and report.passes == 3
    for name in NAMES:
        own = torch.autograd.grad(model(*data)[name], list(model.heads[name].parameters()))
        torch.testing.assert_close([p.grad for p in model.heads[name].parameters()], list(own))


@pytest.mark.parametrize("strategy", ["rows", "sketch"])
def test_shared_parameters_left_out_get_the_weighted_sum(strategy: str) -> None:
    model, data = ThreeHeads(), batch()
    last = list(model.trunk[2].parameters())
    report = backward(model(*data), EqualLength(), params=last, strategy=strategy)
    torch.testing.assert_close(in_one(last), EqualLength()(rows_of_losses(model(*data), last)))
    first = list(model.trunk[0].parameters())
    torch.testing.assert_close(in_one(first), report.weights @ rows_of_losses(model(*data), first))
    # A rule for coordinates has no weights: the plain sum.
    model = ThreeHeads()
    backward(model(*data), SignVote(), params=model.trunk[2].parameters())
    first = list(model.trunk[0].parameters())
    torch.testing.assert_close(in_one(first), rows_of_losses(model(*data), first).sum(dim=0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_loss_is_loss_backward_bit_for_bit(dtype: torch.dtype) -> None:
    for make in (Sum, EqualLength, SignVote, WinsorizedMean):
        for strategy in ("auto", "rows", "sketch"):
            if strategy == "sketch" and "rows" in make.needs:
                continue
            model, data = ThreeHeads(dtype=dtype), batch(dtype=dtype)
            backward([model(*data)["depth"]], make(), strategy=strategy)
            other = ThreeHeads(dtype=dtype)
            other(*data)["depth"].backward()
            for p, q in zip(model.parameters(), other.parameters(), strict=True):
                assert (p.grad is None and q.grad is None) or torch.equal(p.grad, q.grad)


def test_weights_are_held_between_refreshes() -> None:
    model = ThreeHeads()
    aggregator = EqualLength()
    weights, strategies = [], []
    for step in range(7):
        report = backward(model(*batch(seed=step)), aggregator, refresh_every=3)
        weights.append(report.weights)
        strategies.append(report.strategy)
        if step == 3:  # a saved state goes on where it was
            state = aggregator.state_dict()
            aggregator = EqualLength()
            aggregator.load_state_dict(state)
    assert strategies == ["rows", "held weights", "held weights"] * 2 + ["rows"]
    assert torch.equal(weights[0], weights[2]) and torch.equal(weights[3], weights[5]) and not torch.equal(weights[2], weights[3])
    model = ThreeHeads()
    report = backward(model(*batch()), aggregator, refresh_every=3)
    torch.testing.assert_close(in_one(trunk_of(model)), report.weights @ rows_of_losses(model(*batch()), trunk_of(model)))
    assert report.passes == 1 and report.norms.isnan().all()

    class Every4(EqualLength):
        update_every = 4

    aggregator = Every4()
    assert [backward(model(*batch()), aggregator).strategy for _ in range(5)] == ["rows", *["held weights"] * 3, "rows"]
    aggregator = Every4()
    assert [backward(model(*batch()), aggregator, refresh_every=1).strategy for _ in range(2)] == ["rows", "rows"]
    with pytest.raises(CounterpoiseError, match=r"refresh_every: got 2; expected 1 \(or None\) for SignVote"):
        backward(model(*batch()), SignVote(), refresh_every=2)


def test_what_happens_to_the_combined_gradient_happens_once() -> None:
    found = {}
    for strategy, options in {"rows": {}, "sketch": {}, "held": {"refresh_every": 100}}.items():
        model, aggregator = ThreeHeads(), Momentum()
        for step in range(3):
            model.zero_grad()
            backward(model(*batch(seed=step)), aggregator, strategy="sketch" if strategy == "sketch" else "rows", **options)
        found[strategy] = in_one(trunk_of(model))
        assert aggregator.momentum_0.abs().sum() > 0
    torch.testing.assert_close(found["rows"], found["sketch"])
    assert not torch.allclose(found["rows"], found["held"])


# ---- mixed precision ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["rows", "sketch", "features"])
@pytest.mark.parametrize("make", [*KINDS, Momentum], ids=lambda make: make.__name__)
def test_a_loss_scale_changes_nothing_but_the_scale_of_grad(make: type[Aggregator], strategy: str) -> None:
    if (strategy != "rows" and "rows" in make.needs) or (strategy == "features" and "rowstats" in make.needs):
        pytest.skip("refused")
    found = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**16)):
        model, data = ThreeHeads(dtype=torch.float32), batch(dtype=torch.float32)
        z = model.trunk(data[0])
        report = backward(
            model.losses_at(z, data[1]), make(), strategy=strategy, features=z if strategy == "features" else None, scaler=scaler
        )
        scale = 1 if scaler is None else scaler.get_scale()
        found.append((report.weights, report.cosine, in_one(list(model.parameters())) / scale))
    assert scale == 2.0**16
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("make", [PCGrad, CAGrad, MGDA, GradNorm, SAMGS, partial(SAMGS, gamma=0), GCond, GradientAnnealing, WinsorizedMean])
def test_a_loss_scale_changes_no_weights_of_any_method(make: Callable[[], Aggregator]) -> None:
    """Three steps, so that what is remembered takes part."""
    found = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**16)):
        torch.manual_seed(0)
        model, aggregator, weights = ThreeHeads(dtype=torch.float32), make(), []
        for seed in range(3):
            model.zero_grad()
            weights.append(backward(model(*batch(seed=seed, dtype=torch.float32)), aggregator, scaler=scaler, refresh_every=1).weights)
        found.append((torch.stack(weights), in_one(list(model.parameters())) / (1 if scaler is None else 2.0**16)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6, equal_nan=True)


def test_a_step_with_the_scaler() -> None:
    model, data = ThreeHeads(dtype=torch.float32), batch(dtype=torch.float32)
    other = copy.deepcopy(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    backward(model(*data), EqualLength(), scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    backward(other(*data), EqualLength())
    torch.optim.SGD(other.parameters(), lr=0.1).step()
    torch.testing.assert_close(list(model.parameters()), list(other.parameters()))
    backward(ThreeHeads()(*batch()), EqualLength(), scaler=torch.amp.GradScaler("cpu", enabled=False))


@pytest.mark.parametrize("strategy", ["rows", "sketch"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_left_to_the_scaler(strategy: str, value: float) -> None:
    model, data = ThreeHeads(dtype=torch.float32), batch(dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    aggregator = Smoothed()
    backward(model(*data), aggregator, scaler=scaler)
    before, parameters = copy.deepcopy(aggregator.state_dict()), copy.deepcopy(list(model.parameters()))
    optimizer.zero_grad()
    losses = model(*data)
    losses["depth"] = losses["depth"] * value
    report = backward(losses, aggregator, scaler=scaler, strategy=strategy)
    assert "left to the scaler" in report.notes[0]
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 512.0
    torch.testing.assert_close(list(model.parameters()), parameters, rtol=0, atol=0)
    assert str(aggregator.state_dict()) == str(before)


def test_a_step_that_the_scaler_skips_holds_no_weights() -> None:
    model, data = ThreeHeads(dtype=torch.float32), batch(dtype=torch.float32)
    scaler, aggregator = torch.amp.GradScaler("cpu", init_scale=4.0), EqualLength()
    spoiled = {name: loss * (float("inf") if name == "depth" else 1) for name, loss in model(*data).items()}
    backward(spoiled, aggregator, scaler=scaler, refresh_every=5)
    assert not aggregator.state_dict()
    assert backward(model(*data), aggregator, scaler=scaler, refresh_every=5).strategy == "rows"
    assert backward(model(*data), aggregator, scaler=scaler, refresh_every=5).strategy == "held weights"


@pytest.mark.parametrize("what", ["losses", "gradients"])
@pytest.mark.parametrize("strategy", ["rows", "sketch"])
def test_without_a_scaler_it_is_an_error_that_names_the_loss(strategy: str, what: str) -> None:
    model, data = ThreeHeads(), batch()
    aggregator = Smoothed()
    losses = model(*data)
    # The square root has a value at 0, but no slope.
    losses["depth"] = losses["depth"] * float("nan") if what == "losses" else losses["depth"].mul(0).sqrt()
    with pytest.raises(CounterpoiseError, match=rf"{what}: got nan or inf in row 1 \(depth\)"):
        backward(losses, aggregator, strategy=strategy)
    assert all(p.grad is None for p in model.parameters()) and not aggregator.average


def test_a_group_that_is_not_finite_is_named() -> None:
    model, (x, y) = ThreeHeads(), batch()
    losses = GroupLoss(nn.MSELoss(reduction="none"), 3)
    group = torch.arange(24) % 3
    y = y.clone()
    y[4] = float("inf")  # of group 1
    with pytest.raises(CounterpoiseError, match=r"losses: got nan or inf in row 1;"):
        backward(losses(model.heads["seg"](model.trunk(x)), y[:, 0], group), EqualLength())
    assert all(p.grad is None for p in model.parameters())


def test_groups_of_one_loss_take_two_passes() -> None:
    for strategy in ("rows", "auto"):
        model, (x, y) = ThreeHeads(), batch()
        losses = GroupLoss(nn.MSELoss(reduction="none"), 3)
        for _ in range(2):
            model.zero_grad()
            report = backward(losses(model.heads["seg"](model.trunk(x)), y[:, 0], torch.arange(24) % 3), EqualLength(), strategy=strategy)
        assert (report.strategy, report.passes) == (("rows", 3) if strategy == "rows" else ("ghost", 2))
        found = in_one(list(model.parameters()))
        if strategy == "rows":
            exact = found
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)


def test_rows_in_half_precision_and_parameters_in_double() -> None:
    model, data = ThreeHeads(dtype=torch.float32), batch(dtype=torch.float32)
    full, half = ThreeHeads(dtype=torch.float32), ThreeHeads(dtype=torch.float32)
    kept = backward(full(*data), EqualLength(), strategy="rows")
    less = backward(half(*data), EqualLength(), strategy="rows", row_dtype=torch.bfloat16)
    assert 2 * less.bytes_rows == kept.bytes_rows
    torch.testing.assert_close(in_one(trunk_of(half)), in_one(trunk_of(full)), rtol=0.05, atol=0.05)
    assert not torch.equal(in_one(trunk_of(half)), in_one(trunk_of(full)))
    double = backward(ThreeHeads()(*batch()), EqualLength(), strategy="rows")
    assert double.bytes_rows == 2 * kept.bytes_rows
    model = ThreeHeads(dtype=torch.bfloat16)
    backward(model(*batch(dtype=torch.bfloat16)), EqualLength())
    assert all(p.grad.dtype == torch.bfloat16 for p in model.parameters())


# ---- strategies --------------------------------------------------------------------------------------------------------------------------


def test_a_sketch_of_a_large_network_points_the_same_way() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 8))
    assert sum(p.numel() for p in net.parameters()) > 1e6
    x, y = torch.randn(64, 64), torch.randn(64, 8)

    class Sharp(EqualLength):  # depends on the angles, too
        def weights(self, s: GradientStatistics) -> torch.Tensor:
            length = s.gramian.diagonal().sqrt()
            return torch.linalg.solve(s.gramian + 0.1 * torch.diag(s.gramian.diagonal()), length)

    found = {}
    for strategy, options in {"rows": {}, "sketch": {"sketch_dim": 16384}}.items():
        net.zero_grad()
        report = backward(((net(x) - y) ** 2).mean(dim=0), Sharp(), strategy=strategy, **options)
        found[strategy] = (in_one(list(net.parameters())), report)
    assert F.cosine_similarity(found["rows"][0], found["sketch"][0], dim=0) > 0.99
    exact, sketched = found["rows"][1], found["sketch"][1]
    torch.testing.assert_close(sketched.norms, exact.norms, rtol=1e-5, atol=0)
    assert (sketched.cosine - exact.cosine).abs().max() < 0.05
    assert sketched.bytes_rows < 0.02 * exact.bytes_rows


def test_auto_takes_sketches_where_rows_would_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = ThreeHeads(), batch()
    monkeypatch.setattr(_backward, "_free_bytes", lambda device: 1000)
    assert backward(model(*data), EqualLength()).strategy == "sketch"
    assert backward(model(*data), SignVote()).strategy == "rows"
    assert backward(model(*data), Sum()).strategy == "plain"


def test_features_stand_in_for_parameters() -> None:
    model, (x, y) = ThreeHeads(), batch()
    z = model.trunk(x)
    losses = model.losses_at(z, y)
    jacobian = torch.stack([torch.autograd.grad(loss, z, retain_graph=True)[0].reshape(-1) for loss in losses.values()])
    weights = EqualLength().weights(GradientStatistics.from_rows([jacobian]))
    report = backward(losses, EqualLength(), features=z)
    assert report.strategy == "features" and "Gramian bounds" in report.notes[0]
    torch.testing.assert_close(report.weights, weights)
    torch.testing.assert_close(in_one(trunk_of(model)), weights @ rows_of_losses(model(x, y), trunk_of(model)))
    head = torch.autograd.grad(model(x, y)["depth"], model.heads["depth"].weight)[0]
    torch.testing.assert_close(model.heads["depth"].weight.grad, head)
    with pytest.raises(CounterpoiseError, match="expected 'rows' or 'sketch' for Bounded"):
        backward(model(x, y), Bounded(), features=model.trunk(x))
    with pytest.raises(CounterpoiseError, match="features: got None"):
        backward(model(x, y), EqualLength(), strategy="features")
    with pytest.raises(CounterpoiseError, match="features: got a tensor without a graph"):
        backward(model(x, y), EqualLength(), features=x)


def test_a_fresh_pass_for_each_loss_drops_the_same_units() -> None:
    model, data = ThreeHeads(), batch()
    model.trunk.append(nn.Dropout(0.5))
    torch.manual_seed(3)
    backward(lambda: model(*data), EqualLength())
    after = torch.rand(())
    found = in_one(trunk_of(model))
    model.zero_grad()
    torch.manual_seed(3)
    backward(model(*data), EqualLength(), strategy="rows")
    torch.testing.assert_close(in_one(trunk_of(model)), found)
    assert torch.rand(()) == after  # the random state moved on by one pass


def test_checkpointed_layers() -> None:
    model, (x, y) = ThreeHeads(), batch()
    for strategy in ("rows", "sketch"):
        model.zero_grad()
        backward(model.losses_at(checkpoint(model.trunk, x, use_reentrant=False), y), EqualLength(), strategy=strategy)
        torch.testing.assert_close(in_one(trunk_of(model)), expected(EqualLength, model, (x, y)))
    z = checkpoint(model.trunk, x.requires_grad_(), use_reentrant=True)
    with pytest.raises(CounterpoiseError, match=r"reentrant checkpointing; expected checkpoint\(\.\.\., use_reentrant=False\)"):
        backward(model.losses_at(z, y), EqualLength())


def test_recurrent_layers_custom_functions_and_sparse_embeddings() -> None:
    torch.manual_seed(0)
    table, cell = nn.Embedding(20, 5, sparse=True), nn.LSTM(5, 4, batch_first=True)
    tokens = torch.randint(20, (6, 7))
    losses = lambda: cell(table(tokens))[0].square().mean(dim=(0, 1))  # noqa: E731
    parameters = [table.weight, *cell.parameters()]
    rows = []
    for loss in losses():
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        rows.append(torch.cat([(g.to_dense() if g.is_sparse else g).reshape(-1) for g in gradients]))
    for strategy in ("rows", "sketch"):
        for p in parameters:
            p.grad = None
        backward(losses(), EqualLength(), params=parameters, strategy=strategy)
        torch.testing.assert_close(in_one(parameters), EqualLength()(torch.stack(rows)))


def test_the_graph_can_be_kept() -> None:
    for strategy in ("rows", "sketch", "auto"):
        model, data = ThreeHeads(), batch()
        losses = model(*data)
        make = Sum if strategy == "auto" else EqualLength
        backward(losses, make(), strategy=strategy, retain_graph=True)
        once = in_one(list(model.parameters()))
        backward(losses, make(), strategy=strategy)
        torch.testing.assert_close(in_one(list(model.parameters())), 2 * once)
        with pytest.raises(CounterpoiseError, match=r"graph that was already used.*retain_graph=True"):
            backward(losses, make(), strategy=strategy)


def test_a_graph_of_single_use_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def donated(*args: object, **options: object) -> None:
        raise RuntimeError("This backward function was compiled with non-empty donated buffers which requires retain_graph=False.")

    model, data = ThreeHeads(), batch()
    losses = model(*data)
    monkeypatch.setattr(_losses.torch.autograd, "grad", donated)
    with pytest.raises(CounterpoiseError, match=r"strategy='recompute'"):
        backward(losses, EqualLength())


def test_frozen_parameters_are_left_alone() -> None:
    model, data = ThreeHeads(), batch()
    model.trunk[0].requires_grad_(False)
    backward(model(*data), EqualLength(), params=model.trunk.parameters())
    assert model.trunk[0].weight.grad is None and model.trunk[2].weight.grad is not None


# ---- what is reported --------------------------------------------------------------------------------------------------------------------


def test_the_report_says_whose_step_it_was() -> None:
    model, data = ThreeHeads(), batch()
    rows = rows_of_losses(model(*data), trunk_of(model))
    report = backward(model(*data), EqualLength())
    contributions = report.weights[:, None] * rows
    d = contributions.sum(dim=0)
    torch.testing.assert_close(report.dominance, contributions @ d / (d @ d))
    assert abs(float(report.dominance.sum()) - 1) < 1e-12
    torch.testing.assert_close(report.norms, rows.norm(dim=1))
    torch.testing.assert_close(report.cosine, torch.corrcoef(rows) * 0 + F.normalize(rows) @ F.normalize(rows).T)
    assert list(report.to_frame()["name"]) == list(NAMES) and "depth" in report.summary() and "depth" in repr(report)
    for name, other, c in report.conflicts:
        assert c < 0 and c == float(report.cosine[NAMES.index(name), NAMES.index(other)])


def test_opposite_gradients_are_said_to_be_so() -> None:
    p = nn.Parameter(torch.tensor([1.0, -2.0]))
    with pytest.warns(UserWarning, match="the gradients of up and down point in opposite directions: no common descent direction"):
        report = backward({"up": p.sum(), "down": -3 * p.sum()}, EqualLength())
    assert report.opposed == ("up", "down") and torch.isfinite(p.grad).all()
    q = nn.Parameter(torch.ones(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backward({"a": q[0] * 2 + q[1], "b": q[1] - q[0]}, EqualLength())


def test_equal_losses_give_the_direction_of_the_sum() -> None:
    model, data = ThreeHeads(), batch()
    loss = model(*data)["depth"]
    backward([loss, loss, loss], EqualLength(), params=model.trunk.parameters())
    alone = rows_of_losses({"depth": model(*data)["depth"]}, trunk_of(model))[0]
    assert F.cosine_similarity(in_one(trunk_of(model)), alone, dim=0) > 1 - 1e-12


# ---- errors ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "options", "message"),
    [
        (lambda model: [], {}, "losses: got an empty collection; expected at least one loss"),
        (lambda model: {}, {}, "losses: got an empty collection"),
        (lambda model: 3.0, {}, "losses: got 'float'; expected a vector"),
        (lambda model: "abc", {}, "losses: got 'str'"),
        (lambda model: torch.ones(2, 2), {}, r"losses: got shape \(2, 2\)"),
        (lambda model: [model.trunk[0].weight.sum(), 1.0], {}, r"losses\[1\]: got 'float'; expected a scalar tensor"),
        (lambda model: {"a": model.trunk[0].bias}, {}, r"losses\['a'\]: got shape \(16,\); expected a scalar"),
        (lambda model: [torch.ones(())], {}, r"losses\[0\]: got a tensor without a graph"),
        (lambda model: [model.trunk[0].bias.sum(), model.trunk[2].bias.sum()], {}, "2 losses that share no parameter"),
        (lambda model: model(*batch()), {"params": []}, "params: got an empty collection"),
        (lambda model: model(*batch()), {"params": [nn.Parameter(torch.ones(2))]}, "at least one that a loss depends on"),
        (lambda model: model(*batch()), {"params": ["weight"]}, "params: got a str; expected tensors"),
        (lambda model: model(*batch()), {"params": [nn.Parameter(torch.ones(2)) * 2]}, "expected leaves of the graph"),
        (lambda model: model(*batch()), {"params": [torch.ones(2)]}, "1 frozen parameters"),
        (lambda model: model(*batch()), {"strategy": "row"}, "Did you mean 'rows'"),
        (lambda model: model(*batch()), {"heads": "both"}, "heads: got 'both'"),
        (lambda model: model(*batch()), {"reduce": "mean"}, "reduce: got 'mean'"),
        (lambda model: model(*batch()), {"refresh_every": 0}, "refresh_every: got 0"),
        (lambda model: model(*batch()), {"sketch_dim": 23}, "sketch_dim: got 23; expected at least 24"),
        (lambda model: model(*batch()), {"row_dtype": torch.int8}, "row_dtype: got torch.int8"),
        (lambda model: model(*batch()), {"strategy": "ghost"}, "losses that are not those of a GroupLoss"),
        (lambda model: model(*batch()), {"strategy": "recompute"}, "expected a function that computes the losses"),
        (lambda model: lambda: model(*batch()), {"strategy": "rows"}, "losses: got a function"),
        (lambda model: [(w := nn.Parameter(torch.ones(2) * 1j)).abs().sum(), w.real.sum()], {}, r"a parameter of torch\.complex64"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused(losses, options, message: str) -> None:
    model = ThreeHeads()
    with pytest.raises(CounterpoiseError, match=message):
        backward(losses(model), EqualLength(), **options)
    assert all(p.grad is None for p in model.parameters())


def test_what_is_no_aggregator_is_refused() -> None:
    model, data = ThreeHeads(), batch()
    with pytest.raises(CounterpoiseError, match=r"aggregator: got the class EqualLength; expected an object: EqualLength\(\)"):
        backward(model(*data), EqualLength)
    with pytest.raises(CounterpoiseError, match="aggregator: got 'str'"):
        backward(model(*data), "pcgrad")
    with pytest.raises(CounterpoiseError, match=r"result of shape \(3,\); expected shape"):
        backward(model(*data), lambda jacobian: jacobian.sum(dim=1))
    backward(model(*data), lambda jacobian: jacobian.mean(dim=0))
    torch.testing.assert_close(in_one(trunk_of(model)), rows_of_losses(model(*data), trunk_of(model)).mean(dim=0))


def test_another_number_of_losses_needs_a_reset() -> None:
    model, data = ThreeHeads(), batch()
    aggregator = EqualLength()
    backward(model(*data), aggregator, refresh_every=2)
    two = lambda: {name: loss for name, loss in model(*data).items() if name != "seg"}  # noqa: E731
    with pytest.raises(CounterpoiseError, match=r"of the steps before.*call reset\(\)"):
        backward(two(), aggregator, refresh_every=2)
    aggregator.reset()
    backward(two(), aggregator, refresh_every=2)


def test_losses_that_are_scaled_already_are_refused() -> None:
    model, data = ThreeHeads(dtype=torch.float32), batch(dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    losses = model(*data)
    for given in ({name: scaler.scale(loss) for name, loss in losses.items()}, scaler.scale(torch.stack(list(losses.values())))):
        with pytest.raises(CounterpoiseError, match=r"losses that are scaled already; expected unscaled losses, with scaler=scaler"):
            backward(given, EqualLength(), scaler=scaler)
    backward({name: 2.0 * loss for name, loss in losses.items()}, EqualLength(), scaler=scaler)
    with pytest.raises(CounterpoiseError, match=r"scaler: got 'bool'; expected a torch\.amp\.GradScaler"):
        backward(model(*data), EqualLength(), scaler=True)


def test_what_is_remembered_belongs_to_an_order_of_the_losses() -> None:
    model, data = ThreeHeads(), batch()
    reordered = lambda: dict(reversed(model(*data).items()))  # noqa: E731
    aggregator = GradNorm()
    backward(model(*data), aggregator)
    with pytest.raises(
        CounterpoiseError, match=r"losses: got the order normals, depth, seg; expected that of the steps before, seg, depth"
    ):
        backward(reordered(), aggregator)
    aggregator.reset()
    backward(reordered(), aggregator)
    without = PCGrad()  # remembers nothing
    backward(model(*data), without)
    backward(reordered(), without)
    backward(model(*data).values(), EqualLength())


def test_a_report_says_what_was_looked_at() -> None:
    model, data = ThreeHeads(), batch()
    aggregator = EqualLength()
    seen, held = (backward(model(*data), aggregator, refresh_every=2) for _ in range(2))
    assert "compared on 384 parameters in 4 tensors; of their own: seg 34, depth 34, normals 34" in seen.summary()
    assert seen.looked and not held.looked
    assert (
        repr(held).endswith("gradients not looked at; held weights)") and "not looked at" in held.summary() and " nan" not in held.summary()
    )
    assert "a rule for every coordinate" in repr(backward(model(*data), SignVote()))
    one = backward([sum(model(*data).values())], EqualLength())
    assert one.summary().startswith("1 loss, strategy rows, 1 backward pass\n") and "Pass the losses, not their sum" in one.summary()
    p = nn.Parameter(torch.tensor([1.0, 2.0]))
    agree = backward({"a": p.sum(), "b": p[0]}, EqualLength())
    assert "no conflict: the smallest cosine, 0.71, is that of a and b" in agree.summary()
    assert agree.to_frame()["cosine with b"].to_list() == pytest.approx([0.5**0.5, 1.0])


@pytest.mark.parametrize("strategy", ["rows", "sketch"])
def test_every_parameter_has_a_gradient_of_its_own(strategy: str) -> None:
    a, b, head, other = (nn.Parameter(torch.ones(3)) for _ in range(4))
    shared = a + b  # a pass returns one tensor for both, expanded from a single number
    backward([shared.sum(), 2 * shared.sum() + (head + other).sum()], PCGrad(), strategy=strategy)
    nn.utils.clip_grad_norm_([a, head], 0.1)
    torch.testing.assert_close(b.grad, torch.full((3,), 3.0))
    torch.testing.assert_close(other.grad, torch.ones(3))


def test_a_gradient_is_laid_out_as_its_parameter() -> None:
    w = nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    backward([w.sin().sum(), w.contiguous().cos().sum()], Sum())
    assert w.grad is not None and w.grad.stride() == w.stride()


def test_a_sparse_gradient_that_is_there_is_added_to() -> None:
    table = nn.Embedding(5, 3, sparse=True)
    table(torch.tensor([1])).sum().backward()
    rows = table(torch.tensor([1, 2]))
    backward([rows.sum(), 2 * rows.sum()], Sum())
    assert table.weight.grad is not None
    torch.testing.assert_close(table.weight.grad.to_dense()[:, 0], torch.tensor([0.0, 4.0, 3.0, 0.0, 0.0]))


def test_weights_with_a_graph_leave_none_in_grad() -> None:
    class Learned(EqualLength):
        def __init__(self) -> None:
            super().__init__()
            self.own = nn.Parameter(torch.ones(2, dtype=torch.float64))

        def weights(self, s: GradientStatistics) -> torch.Tensor:
            return self.own

    p, aggregator = nn.Parameter(torch.ones(3)), Learned()
    for _ in range(2):
        backward([p.sum(), p.sin().sum()], aggregator)
    assert p.grad is not None and not p.grad.requires_grad


def test_shared_parameters_left_out_of_a_recomputed_step_get_the_weighted_sum() -> None:
    grads = []
    for again in (False, True):
        model, data = ThreeHeads(), batch()
        backward((lambda: model(*data)) if again else model(*data), EqualLength(), params=model.trunk[0].parameters())  # noqa: B023
        grads.append(in_one(list(model.parameters())))
    torch.testing.assert_close(grads[0], grads[1])


class Infinite(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, g: torch.Tensor) -> torch.Tensor:
        return g * torch.inf


@pytest.mark.parametrize("options", [{"refresh_every": 2}, {"features": True}], ids=str)
def test_a_sum_that_is_not_finite_reaches_nothing_that_is_kept(options: dict[str, int]) -> None:
    """The gradients themselves were not looked at in such a step."""
    p, aggregator = nn.Parameter(torch.ones(2)), Momentum()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    def step(spoiled: bool, **more) -> None:
        p.grad = None
        z = 1 * (Infinite.apply(p) if spoiled else p)
        backward([z.sum(), (z * z).sum()], aggregator, **(options if "features" not in options else {"features": z}), **more)

    step(False, scaler=scaler)
    with pytest.raises(CounterpoiseError, match="gradients: got nan or inf in the weighted sum"):
        step(True)
    assert p.grad is None
    step(False, scaler=scaler)
    before = aggregator.momentum_0.clone()
    step(True, scaler=scaler)
    assert p.grad is not None and not torch.isfinite(p.grad).all()
    assert torch.equal(aggregator.momentum_0, before)


def test_a_compiled_trunk_and_heads_outside_are_told_apart() -> None:
    model, data = ThreeHeads(), batch()
    grads = []
    for trunk in (model.trunk, torch.compile(model.trunk, backend="aot_eager")):
        model.zero_grad()
        backward(model.losses_at(trunk(data[0]), data[1]), EqualLength())
        grads.append(in_one(list(model.parameters())))
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("wrapped", [{"find_unused_parameters": True}, {"static_graph": True}], ids=str)
@pytest.mark.parametrize("inside", [True, False])
def test_outputs_of_a_wrapped_model_are_told_apart(wrapped: dict[str, bool], inside: bool, tmp_path: Path) -> None:
    """All of them pass through one node there, also beside outputs that are no tensors."""

    class Model(ThreeHeads):
        def forward(self, x, y):
            losses = super().forward(x, y) if inside else {name: self.heads[name](self.trunk(x)) for name in NAMES}
            return {"none": None} | losses | {"three": 3, "unused": x.sum() * self.trunk[0].bias.sum()}

    def step(model: nn.Module) -> torch.Tensor:
        x, y = batch()
        out = model(x, y)
        backward({name: out[name] if inside else (out[name] - y[:, i]).square().mean() for i, name in enumerate(NAMES)}, EqualLength())
        return in_one(list(model.parameters()))

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        torch.testing.assert_close(step(DistributedDataParallel(Model(), **wrapped)), step(Model()))
    finally:
        torch.distributed.destroy_process_group()


def test_features_that_no_loss_depends_on_are_refused() -> None:
    model, (x, y) = ThreeHeads(), batch()
    z = model.trunk(x)
    with pytest.raises(CounterpoiseError, match="features: got a tensor that no loss depends on"):
        backward(model.losses_at(z, y), EqualLength(), features=z.clone())


def test_a_group_that_is_absent_does_not_stop_gradnorm() -> None:
    model, aggregator = nn.Linear(4, 3), GradNorm(lr=0.1)
    losses = GroupLoss(nn.CrossEntropyLoss(reduction="none"), 3)
    x, y = torch.randn(8, 4), torch.arange(8) % 3
    backward(losses(model(x), y, torch.arange(8) % 2), aggregator)
    assert aggregator.first_losses[2] == 0 and aggregator.loss_weights.sum() == pytest.approx(3.0)
    two = GradNorm(lr=0.1)
    backward(GroupLoss(nn.CrossEntropyLoss(reduction="none"), 2)(model(x), y, torch.arange(8) % 2), two)
    torch.testing.assert_close(aggregator.loss_weights[0] / aggregator.loss_weights[1], two.loss_weights[0] / two.loss_weights[1])
    report = backward(losses(model(x), y, torch.arange(8) % 3), aggregator)
    torch.testing.assert_close(aggregator.first_losses[2], report.losses[2])
