from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from counterpoise import CounterpoiseError
from counterpoise.gradients import SAMGS, _sam_gs, backward
from tests.batteries.gradients import (
    AGGREGATOR_CHECKS,
    AggregatorCase,
    equal_rows_give_their_direction,
    parameter_by_parameter_is_the_same,
    two_ranks_are_one_process,
)

# Where the momentum branch is taken, |m| bends the direction even of rows that are all the same; lengths of single layers know of layers.
MOMENTUM = [
    AggregatorCase("homogeneous", SAMGS, mean=False, spans=False),
    AggregatorCase("published", partial(SAMGS, rescale="published"), homogeneous=False, mean=False, spans=False),
    AggregatorCase("layer", partial(SAMGS, scope="layer"), mean=False, spans=False),
]
NOT_FOR = {equal_rows_give_their_direction: {case.name for case in MOMENTUM}, parameter_by_parameter_is_the_same: {"layer"}}


def steps(count: int = 6, m: int = 3, n: int = 40, seed: int = 0, spread: float = 1.0) -> list[Tensor]:
    """Rows with lengths that change from step to step, so that both branches are taken with gamma = 0.7."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    common = draw(m, n)
    return [(spread * draw(m, 1)).exp() * (common + draw(m, n)) for _ in range(count)]


def transcribed(
    J: np.ndarray, state: dict[str, Any], beta1: float, beta2: float, gamma: float, similarity: str, rescale: str
) -> np.ndarray:
    """One step, coordinate by coordinate from the equations of the paper."""
    m = len(J)
    lengths = [np.sqrt(sum(x * x for x in row)) for row in J]
    pairs = [
        2 * lengths[i] * lengths[j] / (lengths[i] ** 2 + lengths[j] ** 2) if lengths[i] and lengths[j] else 0.0
        for i in range(m)
        for j in range(i + 1, m)
    ]
    psi = np.mean(pairs) if similarity == "mean" else min(pairs)
    state["t"] = state.get("t", 0) + 1
    state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * J
    state["h"] = beta2 * state.get("h", 0.0) + (1 - beta2) * (1 - psi) ** 2 + 1e-8
    if psi < gamma:
        present = [length for length in lengths if length]
        return sum((np.mean(present) / length * row for row, length in zip(J, lengths, strict=True) if length), np.zeros(J.shape[1]))
    m_hat, h_hat = state["m"] / (1 - beta1 ** state["t"]), state["h"] / (1 - beta2 ** state["t"])
    d = (J * np.abs(m_hat) / np.sqrt(h_hat)).sum(axis=0)
    return d / np.abs(m_hat).mean() if rescale == "homogeneous" else d


# ---- the battery of the stage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", AGGREGATOR_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", MOMENTUM, ids=lambda case: case.name)
def test_battery_of_the_momentum_branch(case: AggregatorCase, check: Callable[[AggregatorCase], None]) -> None:
    if case.name in NOT_FOR.get(check, ()):
        pytest.skip("is not so, see above")
    check(case)


def test_two_ranks_are_one_process(tmp_path) -> None:
    two_ranks_are_one_process(MOMENTUM, tmp_path)


# ---- the equations ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rescale", ["published", "homogeneous"])
@pytest.mark.parametrize("similarity", ["mean", "min"])
def test_steps_are_those_of_the_equations(similarity: str, rescale: str, monkeypatch) -> None:
    monkeypatch.setattr(_sam_gs, "CACHED", 3 * 7)  # also some columns at a time
    options = {"beta1": 0.8, "beta2": 0.9, "gamma": 0.7 if similarity == "mean" else 0.5, "similarity": similarity, "rescale": rescale}
    aggregator, state, branches = SAMGS(**options), {}, []
    for t, J in enumerate(steps()):
        if t == 3:
            J[1] = 0  # a task without a gradient
        found = aggregator({"a": J[:, :9].reshape(-1, 3, 3), "b": J[:, 9:]})
        expected = transcribed(J.numpy(), state, **options)
        np.testing.assert_allclose(np.concatenate([found["a"].reshape(-1), found["b"]]), expected, rtol=1e-10, atol=1e-12)
        assert float(aggregator.h) == pytest.approx(state["h"], rel=1e-12)
        assert int(aggregator.step) == t + 1  # once per step, whatever the number of parameters
        np.testing.assert_allclose(torch.cat([aggregator.ema_0, aggregator.ema_1], dim=1), state["m"], rtol=1e-12, atol=1e-14)
        branches.append(aggregator.last["branch"])
        assert aggregator.last["equalize_share"] == pytest.approx(np.mean([branch == "equalize" for branch in branches]))
    assert set(branches) == {"equalize", "momentum"}


def test_a_layer_on_its_own_is_an_aggregator_of_its_own() -> None:
    whole, parts = SAMGS(gamma=0.7, scope="layer"), [SAMGS(gamma=0.7), SAMGS(gamma=0.7)]
    for J in steps():
        pieces = {"a": J[:, :13], "b": 100 * J[:, 13:]}
        found = whole(pieces)
        for one, own, name in zip(found.values(), parts, pieces, strict=True):
            torch.testing.assert_close(one, own(pieces[name]), rtol=1e-12, atol=0)
        assert whole.last["branch"] == tuple(own.last["branch"] for own in parts)
        assert whole.last["equalize_share"] == tuple(own.last["equalize_share"] for own in parts)
    assert {"h_0", "h_1", "step_0", "equalized_1", "ema_0", "ema_1"} <= set(whole.state_dict())


def test_gamma_0_never_equalizes_and_gamma_1_always_does() -> None:
    never, always = SAMGS(gamma=0), SAMGS(gamma=1)
    for J in [*steps(3, spread=4.0), steps(1)[0][:1].repeat(3, 1)]:
        never(J)
        length = J.norm(dim=1, keepdim=True)
        torch.testing.assert_close(always(J), (length.mean() * J / length).sum(dim=0), rtol=1e-12, atol=1e-14)
    assert never.last["equalize_share"] == 0 and always.last["equalize_share"] == 1
    # Equal gradients are the sum when they are equalized; momentum keeps the sign of each coordinate and nothing else of the direction.
    assert torch.equal(SAMGS()(J).sign(), J[0].sign()) and torch.cosine_similarity(SAMGS()(J), J[0], dim=0) < 0.99


def test_what_always_equalizes_weighs_and_keeps_nothing() -> None:
    whole, layers = SAMGS(gamma=1), SAMGS(gamma=1, scope="layer")
    assert whole.needs == {"gramian"} and layers.needs == SAMGS(scope="layer").needs == {"rows"} and "rows" in SAMGS().needs
    for J in steps(2):
        found = whole({"a": J[:, :10], "b": J[:, 10:]})
        layers({"a": J[:, :10], "b": 0 * J[:, 10:]})
        # A step of the mixed method that happens to equalize is the same.
        for one, wanted in zip(found.values(), SAMGS(gamma=0.999)({"a": J[:, :10], "b": J[:, 10:]}).values(), strict=True):
            torch.testing.assert_close(one, wanted, rtol=1e-12, atol=1e-14)
    assert set(whole.state_dict()) == {"h", "step", "equalized"} and set(layers.state_dict()) == {"h_0", "step_0", "equalized_0"}
    out = nn.Linear(4, 2)(torch.randn(6, 4))
    assert backward([out[:, 0].mean(), 9 * out[:, 1].square().mean()], SAMGS(gamma=1), strategy="sketch").weights.isfinite().all()
    with pytest.raises(CounterpoiseError, match="sketch"):
        backward([out[:, 0].mean(), 9 * out[:, 1].square().mean()], SAMGS(), strategy="sketch")


def test_equalized_steps_do_not_see_the_scale_of_a_single_loss() -> None:
    J, scale = steps(1)[0], torch.tensor([[1000.0], [1.0], [1e-3]], dtype=torch.float64)
    parallel = partial(torch.cosine_similarity, dim=0)
    always, mixed = SAMGS(gamma=1), SAMGS(gamma=0)
    assert parallel(always(J), SAMGS(gamma=1)(scale * J)) == pytest.approx(1, abs=1e-12)
    assert parallel(mixed(J), SAMGS(gamma=0)(scale * J)) < 0.99  # momentum does


# ---- the unit of the loss ----------------------------------------------------------------------------------------------------------------


def trained(scale: float, rescale: str, lr: float = 0.05, count: int = 60) -> tuple[Tensor, list[float]]:
    """Parameters after plain SGD on two regressions whose losses are multiplied by ``scale`` and whose learning rate is divided by it."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    targets = [X @ torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(2)]
    theta = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = torch.optim.SGD([theta], lr=lr / scale)
    aggregator, lengths = SAMGS(rescale=rescale), []
    for _ in range(count):
        losses = [scale * ((X @ theta - y) ** 2).mean() for y in targets]
        theta.grad = aggregator(torch.stack([torch.autograd.grad(loss, theta)[0] for loss in losses]))
        theta.grad *= min(scale / float(theta.grad.norm()), 1.0)  # clipped to a length in the unit of the losses
        lengths.append(float(theta.grad.norm()) / scale)
        optimizer.step()
    assert aggregator.last["equalize_share"] < 1
    return theta.detach(), lengths


def test_sgd_does_not_depend_on_the_unit_of_the_losses() -> None:
    expected, lengths = trained(1.0, "homogeneous")
    assert expected.norm() > 0.5 and lengths[-1] > 1e-3
    for scale in (1e-4, 1e-2, 1e2, 1e4):
        torch.testing.assert_close(trained(scale, "homogeneous")[0], expected, rtol=1e-7, atol=1e-9)
    # What homogeneous is for: the published form barely moves, where losses are small.
    published = [trained(scale, "published")[0] for scale in (1.0, 1e-4)]
    assert published[1].norm() < 0.1 * published[0].norm()


def test_a_loss_scale_of_half_precision_changes_nothing() -> None:
    plain, scaled = SAMGS(gamma=0.7), SAMGS(gamma=0.7)
    for J in steps():
        J = J.float()
        assert torch.equal(scaled(2.0**16 * J), 2.0**16 * plain(J))
        assert scaled.last == plain.last


@pytest.mark.parametrize("rescale", ["homogeneous", "published"])
def test_backward_unscales_what_a_scaler_scales(rescale: str) -> None:
    """Else the published form would go with the square of the scale."""
    found = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**16)):
        torch.manual_seed(0)
        net, x = nn.Linear(5, 3), torch.randn(8, 5)
        aggregator = SAMGS(gamma=0, rescale=rescale)
        for _ in range(3):
            net.zero_grad()
            out = net(x)
            report = backward(
                [out[:, 0].square().mean(), 30 * out[:, 1].abs().mean(), out.sum(dim=1).mean() ** 2], aggregator, scaler=scaler
            )
        found.append(net.weight.grad / (1.0 if scaler is None else scaler.get_scale()))
        assert report.strategy == "rows" and report.details["branch"] == "momentum" and report.weights.isnan().all()
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=0)


def test_a_step_that_a_scaler_skips_is_no_step() -> None:
    net, x, scaler = nn.Linear(5, 2), torch.randn(8, 5), torch.amp.GradScaler("cpu")
    aggregator = SAMGS()
    out = net(x)
    backward([out[:, 0].mean(), (out * float("inf")).mean()], aggregator, scaler=scaler)
    assert not net.weight.grad.isfinite().all() and not aggregator.state_dict()


def test_products_of_small_or_large_gradients_stay_in_range() -> None:
    J = steps(1)[0].float()
    expected = SAMGS()(J)
    for scale in (2.0**-100, 2.0**100):  # 1e-30 and 1e30: their squares are 0 or inf in single precision
        assert torch.equal(SAMGS()(scale * J) / scale, expected)


def test_lengths_of_half_precision_are_those_of_single_precision() -> None:
    J = torch.full((2, 10_000), 1000.0, dtype=torch.float16)  # of length 1e5, above what float16 holds
    J[1] /= 4
    assert SAMGS(gamma=0.9)(J)[0] == pytest.approx(2 * 625, rel=1e-3)


# ---- what is remembered ------------------------------------------------------------------------------------------------------------------


def state(aggregator: SAMGS) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in aggregator.state_dict().items()}


def unchanged(aggregator: SAMGS, before: dict[str, Tensor]) -> bool:
    now = aggregator.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], value) for name, value in before.items())


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_zeros_are_no_step(scope: str) -> None:
    aggregator = SAMGS(scope=scope)
    zeros = {"a": torch.zeros(3, 4), "b": torch.zeros(3, 2)}
    assert not any(value.any() for value in aggregator(zeros).values())
    aggregator({"a": torch.randn(3, 4), "b": torch.randn(3, 2)})
    before = state(aggregator)
    found = aggregator(zeros)
    assert {name: tuple(value.shape) for name, value in found.items()} == {"a": (4,), "b": (2,)}
    assert not any(value.any() for value in found.values()) and unchanged(aggregator, before)
    assert aggregator.last["branch"] == ("no gradient" if scope == "global" else ("no gradient",) * 2)


def test_a_layer_without_gradients_stays_where_it_was() -> None:
    aggregator = SAMGS(scope="layer")
    rows = [torch.randn(3, 4), torch.randn(3, 2)]
    aggregator({"a": rows[0], "b": torch.zeros(3, 2)})
    assert "h_1" not in aggregator.state_dict()
    aggregator({"a": rows[0], "b": rows[1]})
    before = state(aggregator)
    assert not aggregator({"a": torch.zeros(3, 4), "b": rows[1]})["a"].any()
    after = state(aggregator)
    assert all(torch.equal(after[name], before[name]) for name in ("h_0", "step_0", "ema_0"))
    assert int(after["step_1"]) == int(before["step_1"]) + 1 and not torch.equal(after["ema_1"], before["ema_1"])


def test_a_task_without_a_gradient_takes_no_part() -> None:
    J = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 6.0, 0.0]])
    aggregator = SAMGS(gamma=0.9)
    assert torch.equal(aggregator(J), torch.tensor([4.0, 4.0, 0.0]))  # the mean length of those there are
    assert aggregator.last["psi"] == pytest.approx(0.6 / 3)
    J[1, 2] = 1e-13 * 6  # 1e12 times shorter than the longest is zero, too
    assert torch.equal(SAMGS(gamma=0.9)(J), torch.tensor([4.0, 4.0, 0.0]))


def test_one_task_comes_back_without_a_trace() -> None:
    aggregator = SAMGS()
    row = torch.randn(1, 5)
    assert torch.equal(aggregator(row), row[0]) and not aggregator.state_dict()


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_other_tasks_or_parameters_are_refused_before_anything_moves(scope: str) -> None:
    aggregator = SAMGS(scope=scope)
    aggregator({"a": torch.randn(3, 4), "b": torch.randn(3, 2)})
    before = state(aggregator)
    for wrong, message in (
        ({"a": torch.randn(2, 4), "b": torch.randn(2, 2)}, r"ema_0 is \(2, 4\); expected the \(3, 4\) of the steps before.*call reset\(\)"),
        ({"a": torch.randn(1, 4), "b": torch.randn(1, 2)}, r"ema_0 is \(1, 4\)"),
        ({"a": torch.randn(3, 4), "b": torch.randn(3, 5)}, r"ema_1 is \(3, 5\)"),
        ({"a": torch.randn(3, 4)}, r"got 1 parameters; expected the 2 of the steps before.*call reset\(\)"),
        ({"a": torch.randn(3, 4), "b": torch.randn(3, 2), "c": torch.randn(3, 1)}, "got 3 parameters"),
    ):
        with pytest.raises(CounterpoiseError, match=message):
            aggregator(wrong)
        assert unchanged(aggregator, before)
    aggregator.reset()
    aggregator({"a": torch.randn(2, 4)})


def test_averages_are_moved_in_place_and_may_be_of_another_dtype() -> None:
    exact, short = SAMGS(), SAMGS(ema_dtype=torch.bfloat16)
    places = set()
    for J in steps():
        expected, found = exact(J.float()), short(J.float())
        assert found.dtype == torch.float32 and short.ema_0.dtype == torch.bfloat16 and exact.ema_0.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02 * float(expected.abs().max()))
        places.add((exact.ema_0.data_ptr(), short.ema_0.data_ptr()))
    assert len(places) == 1


def test_rows_that_come_one_after_the_other_are_asked_for_once() -> None:
    """What a loop lets go of after each parameter is not looked at again."""
    aggregator, expected = SAMGS(), SAMGS()
    for J in steps(3):
        parts = {"a": J[:, :10], "b": J[:, 10:]}
        s = _sam_gs.GradientStatistics.from_rows(list(parts.values()))
        weights = aggregator.found_weights(s)
        found = list(aggregator.combine_all(iter(parts.values()), weights, s))
        for one, wanted in zip(found, expected(parts).values(), strict=True):
            assert torch.equal(one, wanted)


def test_bad_parameters() -> None:
    for options, message in (
        ({"beta1": 1.0}, r"beta1: got 1.0; expected a number in \[0, 1\)"),
        ({"beta1": -0.1}, "beta1: got -0.1; expected a number >= 0"),
        ({"beta2": 1}, "beta2: got 1"),
        ({"gamma": 1.1}, r"gamma: got 1.1; expected a number in \[0, 1\]"),
        ({"similarity": "max"}, "similarity: got 'max'; expected one of mean, min"),
        ({"rescale": "homogenous"}, "Did you mean 'homogeneous'"),
        ({"scope": "tensor"}, "scope: got 'tensor'"),
        ({"ema_dtype": torch.int8}, "ema_dtype: got torch.int8"),
        ({"ema_dtype": "bfloat16"}, "ema_dtype: got 'bfloat16'"),
        ({"eps": 0.0}, "eps: got 0.0; expected a number > 0"),
    ):
        with pytest.raises(CounterpoiseError, match=message):
            SAMGS(**options)


def test_it_says_what_it_is() -> None:
    text = "SAMGS(beta1=0.9, beta2=0.99, gamma=0.9, similarity='min', rescale='published', scope='layer', ema_dtype=torch.bfloat16)"
    assert repr(SAMGS(0.9, 0.99, 0.9, "min", "published", "layer", torch.bfloat16)) == text
