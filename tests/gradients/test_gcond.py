from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from counterpoise import CounterpoiseError
from counterpoise.gradients import Accumulator, GCond, GradientStatistics, backward

CRITICAL, MAIN, WEAK = -0.8, -0.5, 0.0


def pair(at: float, first: float = 1.0, second: float = 2.0, n: int = 5) -> Tensor:
    """Two rows of these lengths at this cosine."""
    directions = torch.linalg.qr(torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    a, b = directions.T
    return torch.stack([first * a, second * (at * a + math.sqrt(1 - at**2) * b)])


def steps(m: int, n: int, count: int, seed: int) -> list[Tensor]:
    """Rows that change from step to step but not wholly, oppose each other, and are of unequal length."""
    generator = torch.Generator().manual_seed(seed)
    still = torch.randn(m, n, generator=generator, dtype=torch.float64)
    still -= 1.2 * still.mean(dim=0)
    lengths = torch.logspace(-1, 1, m, dtype=torch.float64)[:, None]
    return [lengths * (still + 0.4 * torch.randn(m, n, generator=generator, dtype=torch.float64)) for _ in range(count)]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a, b, dim=0))


def scores(rows: list[Tensor], previous: list[Tensor] | None, usual: list[float]) -> list[float]:
    """Of the two rows of a pair."""
    strength = [float(g.norm()) / e for g, e in zip(rows, usual, strict=True)]
    stability = [0.0, 0.0] if previous is None else [cosine(g, before) for g, before in zip(rows, previous, strict=True)]
    return [0.8 * max(a, 0.0) + 0.2 * b / sum(strength) for a, b in zip(stability, strength, strict=True)]


def by_vectors(jacobians: list[Tensor], momentum: float, window: int = 3, cap: float = math.inf) -> list[Tensor]:
    """The method on the gradients themselves, as its paper tells it."""
    m = len(jacobians[0])
    usual, previous, history, mean, results = [1.0] * m, None, [], 0.0, []
    for t, J in enumerate(jacobians, 1):
        usual = [0.95 * e + 0.05 * float(g.norm()) for e, g in zip(usual, J, strict=True)]
        rows = [g * min(1.0, cap / float(g.norm())) for g in J]
        for _ in range(2 * m):
            cosines = {(i, j): cosine(rows[i], rows[j]) for i in range(m) for j in range(i + 1, m)}
            (i, j), c = min(cosines.items(), key=lambda item: item[1])
            if c >= WEAK - 1e-6:
                break
            first, second = scores([rows[i], rows[j]], previous and [previous[i], previous[j]], [usual[i], usual[j]])
            w, v = (j, i) if second > first else (i, j)
            if len(history) >= window and set(history[-window:]) == {i}:
                w, v = j, i
            elif len(history) >= window and set(history[-window:]) == {j}:
                w, v = i, j
            history.append(w)
            if c <= CRITICAL:
                alpha = math.pi
            elif c < MAIN:
                alpha = math.pi / 2 * (1 + ((c - MAIN) / (CRITICAL - MAIN)) ** 2)
            else:
                alpha = math.pi / 2 * (1 - (c - MAIN) / (WEAK - MAIN))
            dot = rows[w] @ rows[v]
            winner = rows[w] - math.sin(alpha) * dot / rows[v].square().sum() * rows[v]
            loser = rows[v] - math.sin(min(alpha, math.pi / 2)) * dot / rows[w].square().sum() * rows[w]
            rows[w], rows[v] = winner, loser
        previous = list(J)
        mean = momentum * mean + (1 - momentum) * sum(rows)
        results.append(mean / (1 - momentum**t))
    return results


@pytest.mark.parametrize(("m", "options"), [(2, {}), (3, {}), (5, {}), (5, {"norm_cap": 2.0}), (8, {"momentum": 0.0})])
def test_coefficients_say_what_vectors_do(m, options) -> None:
    conflicts = 0
    for seed in range(5):
        jacobians = steps(m, 30, 6, seed)
        gcond = GCond(**options)
        for J, expected in zip(
            jacobians, by_vectors(jacobians, options.get("momentum", 0.9), cap=options.get("norm_cap", math.inf)), strict=True
        ):
            torch.testing.assert_close(gcond(J), expected, rtol=1e-8, atol=1e-8)
            conflicts += gcond.last["iterations"]
    assert conflicts > 20


def test_without_a_conflict_it_is_the_sum() -> None:
    J = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).abs()
    for options in ({}, {"smooth": False}, {"stability_reference": "published"}):
        gcond = GCond(**options)
        assert torch.equal(gcond(J), torch.ones(4) @ J)
        assert gcond.last["conflicts"] == [] and gcond.last["iterations"] == 0 and gcond.last["weights"] == [1.0] * 4
        assert 0 < gcond.last["min_cosine"] < 1


def test_in_a_critical_conflict_the_winner_stays_and_the_loser_becomes_orthogonal() -> None:
    for at in (CRITICAL, -0.9, -0.999):
        loser, winner = J = pair(at)  # the longer wins the first step
        gcond = GCond(momentum=0.0, max_iters=1)
        rest = gcond(J) - winner
        assert abs(float(rest @ winner)) < 1e-10 * float(winner.norm())
        torch.testing.assert_close(rest, loser - (loser @ winner) / winner.square().sum() * winner)
        (conflict,) = gcond.last["conflicts"]
        assert conflict == {"groups": ("0", "1"), "cosine": pytest.approx(at), "winner": "1", "loser": "0"}
        assert gcond(J) is not None and gcond.last["iterations"] == 1  # no second look at a cosine of 0 and its rounding


def test_a_weak_conflict_is_treated_alike_and_a_moderate_one_is_not() -> None:
    a, b = pair(-0.25)
    share = math.sin(math.pi / 4)  # half way between main and weak
    expected = a - share * (a @ b) / b.square().sum() * b + b - share * (a @ b) / a.square().sum() * a
    torch.testing.assert_close(GCond(momentum=0.0, max_iters=1)(pair(-0.25)), expected)
    loser, winner = pair(-0.65)
    for power in (1.0, 2.0):
        share = math.cos(math.pi / 2 * 0.5**power)  # half way between critical and main
        expected = winner - share * (winner @ loser) / loser.square().sum() * loser
        expected = expected + loser - (winner @ loser) / winner.square().sum() * winner
        torch.testing.assert_close(GCond(momentum=0.0, max_iters=1, power=power)(pair(-0.65)), expected)


def test_how_far_gradients_yield_is_continuous() -> None:
    gcond = GCond()
    cosines = torch.linspace(-1, -1e-3, 1000).tolist()
    shares = torch.stack([torch.from_numpy(gcond._shares(c)) for c in cosines])
    assert shares.diff(dim=0).abs().max() < 0.02
    assert shares[0].tolist() == [0.0, 1.0] and shares[-1].max() < 0.01
    assert (shares[:, 0] <= shares[:, 1]).all()


@pytest.mark.parametrize(
    ("thresholds", "at", "shares"),
    [
        ((-0.5, -0.5, 0.0), -0.5, (0.0, 1.0)),
        ((-0.5, -0.5, 0.0), -0.4999, (1.0, 1.0)),
        ((-0.8, 0.0, 0.0), -1e-9, (1.0, 1.0)),
        ((-0.8, 0.0, 0.0), -0.8, (0.0, 1.0)),
        ((0.0, 0.0, 0.0), -0.1, (0.0, 1.0)),
        ((-1.0, -1.0, -1.0), -1.0, (0.0, 1.0)),
        ((-1.0, -1.0, 1.0), 0.9999, (0.0, 0.0)),
    ],
)
def test_equal_thresholds_make_a_step(thresholds, at, shares) -> None:
    gcond = GCond(thresholds=thresholds, momentum=0.0)
    assert gcond._shares(at) == pytest.approx(shares, abs=2e-4)
    for J in steps(4, 20, 3, 0):
        assert torch.isfinite(gcond(J)).all()


def test_the_first_version_has_zones() -> None:
    loser, winner = pair(-0.9)
    torch.testing.assert_close(GCond(smooth=False, momentum=0.0)(pair(-0.9)), winner)
    loser, winner = pair(-0.6)
    expected = winner + loser - (winner @ loser) / winner.square().sum() * winner
    torch.testing.assert_close(GCond(smooth=False, momentum=0.0)(pair(-0.6)), expected)
    a, b = pair(-0.3)
    gcond = GCond(smooth=False, momentum=0.0, max_iters=1)
    expected = a - (a @ b) / b.square().sum() * b + b - (a @ b) / a.square().sum() * a
    torch.testing.assert_close(gcond(pair(-0.3)), expected)
    (conflict,) = gcond.last["conflicts"]
    assert conflict["winner"] is None and conflict["loser"] is None and not len(gcond.kept("winners"))


def winners(gcond: GCond, jacobians: list[Tensor]) -> str:
    found = []
    for J in jacobians:
        gcond(J)
        found += [conflict["winner"] for conflict in gcond.last["conflicts"]]
    return "".join(found)


def test_who_won_three_times_loses_the_fourth() -> None:
    J = [pair(-0.9)] * 9
    assert winners(GCond(), J) == "111011101"
    assert winners(GCond(dominance_window=1), J) == "101010101"
    assert winners(GCond(dominance_window=0), J) == "111111111"


def test_stability_is_measured_against_the_gradient_before() -> None:
    first = pair(-0.9, 1.0, 1.0)
    turned = torch.stack([first[0], -first[1]])  # row 1 goes back, row 0 goes on; they agree here
    # Without strength only stability counts: then row 0 has it. The strength of row 1 alone would win.
    again = torch.stack([first[0], 3 * first[1]])
    for weights, winner in (((1.0, 0.0), "0"), ((0.0, 1.0), "1")):
        gcond = GCond(tie_weights=weights)
        gcond(turned)
        assert gcond.last["conflicts"] == []
        gcond(again)
        assert gcond.last["conflicts"][0]["winner"] == winner
    # After a step that took row 0 away from where it was, the raw gradient of before still looks like it, the resolved one less so.
    for reference, bound in (("raw", 0.999), ("published", 0.6)):
        gcond = GCond(stability_reference=reference)
        gcond(first)
        s = GradientStatistics.from_rows([first], needs={"gramian"})
        before = gcond._before(GradientStatistics(**{**vars(s), "cross": first @ first.T}))
        loser = int(gcond.last["conflicts"][0]["loser"])
        found = before.cosine(loser, torch.eye(2, dtype=torch.float64)[loser].numpy(), 1.0)
        assert found > bound if reference == "raw" else found < bound


def test_of_equal_scores_the_first_wins() -> None:
    gcond = GCond(momentum=0.0)
    assert gcond(torch.tensor([[3.0, 4.0], [-3.0, -4.0]])).tolist() == [3.0, 4.0]
    assert gcond.last["conflicts"][0]["winner"] == "0" and gcond.last["iterations"] == 1


def test_what_is_hardly_left_of_a_gradient_takes_no_part() -> None:
    rows = torch.tensor([[1.0, 0.0], [-2.0, 1e-6], [-0.1, -1.0]], dtype=torch.float64)
    gcond = GCond(momentum=0.0)
    gcond(rows)
    # What is left of the first points against the third, and is 5e-7 long.
    assert [conflict["groups"] for conflict in gcond.last["conflicts"]] == [("0", "1")]
    gcond = GCond(momentum=0.0, eps=1e-16)
    gcond(rows)
    assert [conflict["groups"] for conflict in gcond.last["conflicts"]] == [("0", "1"), ("0", "2")]


def test_strength_is_length_over_usual_length() -> None:
    J = pair(0.5)
    gcond = GCond(norm_ema=0.9)
    for _ in range(200):
        gcond(J)
    torch.testing.assert_close(gcond.kept("usual_lengths"), torch.tensor([1.0, 2.0], dtype=torch.float64), rtol=1e-6, atol=0)
    # Row 0 is twice as long as usual and row 1 is not, though it is longer still; both go on in their directions.
    assert winners(gcond, [pair(-0.9, 1.9, 2.0)]) == "0"


def test_momentum_is_a_corrected_average_and_can_be_left_out() -> None:
    jacobians = steps(3, 10, 5, 0)
    resolved = [GCond(momentum=0.0, tie_weights=(0.0, 1.0), norm_ema=0.0, dominance_window=0)(J) for J in jacobians]
    gcond = GCond(momentum=0.8, tie_weights=(0.0, 1.0), norm_ema=0.0, dominance_window=0)
    kept = 0.0
    for t, (J, d) in enumerate(zip(jacobians, resolved, strict=True), 1):
        kept = 0.8 * kept + 0.2 * d
        found = gcond(J)
        torch.testing.assert_close(found, kept / (1 - 0.8**t))
        found.zero_()  # what is done to the result is not done to the memory
    without = GCond(momentum=0.0)
    without(jacobians[0])
    assert not any("momentum" in key for key in without.state_dict())


def test_an_absent_group_changes_nothing_that_is_known_about_it() -> None:
    jacobians = steps(3, 12, 4, 1)
    gcond, pair_only = GCond(), GCond()
    gcond(jacobians[0])
    pair_only(jacobians[0][:2])
    usual, previous = gcond.kept("usual_lengths")[2].clone(), gcond.kept("previous_rows")[2].clone()
    length = gcond.kept("previous_lengths")[2].clone()
    without = jacobians[1].clone()
    without[2] = 0
    gcond(without)
    assert gcond.kept("usual_lengths")[2] == usual and torch.equal(gcond.kept("previous_rows")[2], previous)
    assert gcond.kept("previous_lengths")[2] == length > 0
    assert gcond.kept("usual_lengths")[0] != 1
    assert all("2" not in conflict["groups"] for conflict in gcond.last["conflicts"])
    alone = GCond(momentum=0.0)
    found = GCond(momentum=0.0)(without)
    torch.testing.assert_close(found, alone(without[:2]))


def test_one_group_is_its_gradient_with_momentum() -> None:
    jacobians = steps(1, 6, 3, 0)
    gcond = GCond(momentum=0.5, norm_cap=0.01)
    assert torch.equal(gcond(jacobians[0]), jacobians[0][0])
    torch.testing.assert_close(gcond(jacobians[1]), (0.5 * jacobians[0] + jacobians[1])[0] / 1.5)
    assert math.isnan(gcond.last["min_cosine"]) and gcond.last["iterations"] == 0


def test_the_unit_of_the_losses_does_not_matter_for_how_far_gradients_yield() -> None:
    for scale in (1e-12, 1e-6, 1e6, 1e12):
        for J in (pair(-0.3), pair(-0.7), pair(-0.95)):
            torch.testing.assert_close(GCond()(scale * J), scale * GCond()(J), rtol=1e-9, atol=0)
    tiny = 1e-6 * pair(-0.95)
    assert torch.equal(GCond(stability_reference="published")(tiny), tiny.sum(dim=0))  # the authors' threshold has a unit


def test_long_gradients_are_remembered_as_sketches() -> None:
    jacobians = [J.float() for J in steps(3, 100_000, 3, 0)]
    gcond, exact = GCond(momentum=0.0), by_vectors([J.double() for J in jacobians], 0.0)
    for J, expected in zip(jacobians, exact, strict=True):
        torch.testing.assert_close(gcond(J), expected.float(), rtol=1e-3, atol=1e-3)
    assert gcond.kept("previous_rows").shape == (3, 4096) and gcond.last["iterations"] > 0


def test_denoised_angles_need_parts() -> None:
    J = pair(-0.9)
    with pytest.raises(CounterpoiseError, match="denoise: got True"):
        GCond(denoise=True)(J)
    s = GradientStatistics.from_rows([J], needs={"gramian"})
    unbiased = s.gramian.clone()
    unbiased[0, 1] = unbiased[1, 0] = 0.1
    gcond = GCond(denoise=True)
    weights = gcond.weights(GradientStatistics(**{**vars(s), "gramian_unbiased": unbiased}))
    assert weights.tolist() == [1.0, 1.0] and gcond.last["min_cosine"] > 0


def two_losses(net: nn.Linear, x: Tensor) -> dict[str, Tensor]:
    found = net(x)
    return {"up": (found - 1).square().mean(), "down": 2 * (found + 1).square().mean()}


def test_over_micro_batches_it_resolves_the_averages() -> None:
    generator = torch.Generator().manual_seed(0)
    net, gcond, by_hand = nn.Linear(3, 2).double(), GCond(), GCond()
    accumulator = Accumulator(net.parameters(), gcond)
    conflicts = 0
    for step in torch.randn(4, 5, 8, 3, generator=generator, dtype=torch.float64):
        averages = torch.zeros(2, 8, dtype=torch.float64)
        for x in step:
            accumulator.backward(two_losses(net, x))
            for i, loss in enumerate(two_losses(net, x).values()):
                found = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
                averages[i] += torch.cat([g.reshape(-1) for g in found]) / len(step)
        net.zero_grad()
        report = accumulator.step()
        torch.testing.assert_close(torch.cat([p.grad.reshape(-1) for p in net.parameters()]), by_hand(averages))
        assert report.weights.tolist() == pytest.approx(by_hand.last["weights"])
        assert {conflict["winner"] for conflict in report.details["conflicts"]} <= {"up", "down"}
        conflicts += len(report.details["conflicts"])
    assert conflicts > 2


def test_a_task_without_a_micro_batch_is_absent() -> None:
    generator = torch.Generator().manual_seed(0)
    net, gcond = nn.Linear(3, 2).double(), GCond()
    accumulator = Accumulator(net.parameters(), gcond, mode="stochastic")
    for tasks in (("up", "down"), ("down",), ("down", "up")):
        before = gcond.kept("usual_lengths")
        for task in tasks:
            accumulator.backward(two_losses(net, torch.randn(8, 3, generator=generator, dtype=torch.float64))[task], task=task)
        report = accumulator.step()
        if len(tasks) == 1:
            assert gcond.kept("usual_lengths")[0] == before[0] != gcond.kept("usual_lengths")[1]
            assert report.details["iterations"] == 0
    assert gcond.kept("usual_lengths")[0] != before[0]


def test_with_sketches_and_held_weights_the_momentum_goes_on() -> None:
    x = torch.randn(4, 8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    net, sketched, whole = nn.Linear(3, 2).double(), GCond(), GCond()
    for part in x:
        results = []
        for aggregator, strategy in ((sketched, "sketch"), (whole, "rows")):
            net.zero_grad()
            backward(two_losses(net, part), aggregator, strategy=strategy, row_dtype=torch.float64)
            results.append(torch.cat([p.grad.reshape(-1) for p in net.parameters()]))
        torch.testing.assert_close(*results)  # rows this short are their own sketches
    held = GCond()
    for part in x:
        backward(two_losses(net, part), held, refresh_every=2)
    assert int(held.kept("momentum_steps")) == 4


def test_other_groups_or_entries_need_a_reset() -> None:
    gcond = GCond()
    expected = [GCond()(pair(-0.9))]
    gcond(pair(-0.9))
    state = {key: value.clone() for key, value in gcond.state_dict().items()}
    for other in (torch.ones(3, 5, dtype=torch.float64), torch.ones(2, 6, dtype=torch.float64)):
        with pytest.raises(CounterpoiseError, match=r"call reset\(\)"):
            gcond(other)
        assert all(torch.equal(value, state[key]) for key, value in gcond.state_dict().items())
    gcond.reset()
    gcond(torch.ones(3, 6))
    gcond.reset()
    assert torch.equal(gcond(pair(-0.9)), expected[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": (-0.5, -0.8, 0.0)}, r"thresholds: got \(-0.5, -0.8, 0.0\); expected three cosines .* critical <= main <= weak"),
        ({"thresholds": (-1.5, -0.8, 0.0)}, "thresholds"),
        ({"thresholds": (-0.8, 0.0)}, "thresholds"),
        ({"thresholds": (-0.8, float("nan"), 0.0)}, "thresholds"),
        ({"thresholds": 0.5}, "thresholds"),
        ({"power": 0.0}, "power: got 0.0; expected a number > 0"),
        ({"dominance_window": -1}, "dominance_window: got -1"),
        ({"dominance_window": 1.5}, "dominance_window: got 1.5; expected an integer"),
        ({"tie_weights": (0.0, 0.0)}, "tie_weights: .* not both 0"),
        ({"tie_weights": (-0.1, 1.0)}, "tie_weights"),
        ({"tie_weights": (1.0,)}, "tie_weights"),
        ({"norm_ema": 1.0}, r"norm_ema: got 1.0; expected a number in \[0, 1\)"),
        ({"momentum": 1.0}, "momentum: got 1.0"),
        ({"momentum": -0.1}, "momentum: got -0.1"),
        ({"norm_cap": 0.0}, "norm_cap: got 0.0"),
        ({"max_iters": 0}, "max_iters: got 0"),
        ({"stability_reference": "row"}, "stability_reference: got 'row'.*Did you mean 'raw'"),
        ({"eps": 0.0}, "eps: got 0.0"),
    ],
)
def test_bad_input(options, message) -> None:
    with pytest.raises(CounterpoiseError, match=message):
        GCond(**options)


def test_repr() -> None:
    assert repr(GCond()) == "GCond(thresholds=(-0.8, -0.5, 0.0), power=2, momentum=0.9)"
