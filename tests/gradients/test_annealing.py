from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from counterpoise._errors import InputError
from counterpoise.gradients import GradientAnnealing, GradientStatistics, backward
from tests.batteries.gradients import AGGREGATOR_CHECKS, AggregatorCase, matrix, parameter_by_parameter_is_the_same

ROWS = torch.tensor([[8.0, -4.0], [0.1, 0.3], [0.02, 0.0]], dtype=torch.float64)  # max 8; means 0.2 and 0.01

# By default parameters count by tensor, whatever their sizes, so that how a Jacobian is cut matters: that check stands below, reversed.
# With mean="entries" over all parameters it does not matter, and the case in the table of the stage passes all checks.
BY_TENSOR = AggregatorCase("annealing", GradientAnnealing, permutation=False, mean=False)


@pytest.mark.parametrize("check", [c for c in AGGREGATOR_CHECKS if c is not parameter_by_parameter_is_the_same], ids=lambda c: c.__name__)
def test_battery_by_tensor(check: Callable[[AggregatorCase], None]) -> None:
    check(BY_TENSOR)


def test_by_tensor_how_a_jacobian_is_cut_matters() -> None:
    with pytest.raises(AssertionError):
        parameter_by_parameter_is_the_same(BY_TENSOR)


def statistics(**parts: torch.Tensor) -> GradientStatistics:
    """Of parameters with their shapes, each (m, *shape)."""
    rows = [part.reshape(len(part), -1) for part in parts.values()]
    return GradientStatistics.from_rows(rows, shapes=[part.shape[1:] for part in parts.values()])


# ---- values by hand -------------------------------------------------------------------------------------------------------------------


def test_one_update() -> None:
    found = GradientAnnealing().weights(statistics(w=ROWS))
    np.testing.assert_allclose(found, [1, 0.9 + 0.1 * 8 / 0.2, 0.9 + 0.1 * 8 / 0.01], rtol=1e-14)
    torch.testing.assert_close(GradientAnnealing()(ROWS), found @ ROWS)


def test_the_weight_stands_in_the_denominator() -> None:
    aggregator, prose = GradientAnnealing(alpha=0.2), GradientAnnealing(alpha=0.2, self_normalized=False)
    lam = prose_lam = 1.0
    for scale in (1.0, 0.3, 2.0, 0.7):
        rows = torch.stack([ROWS[0], scale * ROWS[1]])
        lam = 0.8 * lam + 0.2 * 8 / (lam * scale * 0.2)
        prose_lam = 0.8 * prose_lam + 0.2 * 8 / (scale * 0.2)
        assert aggregator.weights(statistics(w=rows))[1] == pytest.approx(lam, rel=1e-13)
        assert prose.weights(statistics(w=rows))[1] == pytest.approx(prose_lam, rel=1e-13)


@pytest.mark.parametrize(("self_normalized", "rest"), [(True, [1, 40**0.5, 800**0.5]), (False, [1, 40, 800])])
def test_where_weights_come_to_rest(self_normalized, rest) -> None:
    aggregator = GradientAnnealing(self_normalized=self_normalized)
    for _ in range(400):
        aggregator(ROWS)
    np.testing.assert_allclose(aggregator.lambdas, rest, rtol=1e-12)


def test_without_the_weight_in_the_denominator_weights_run_away() -> None:
    """A term whose gradient shrinks as its weight grows, as that of a term that is being fitted does."""
    weights = {}
    for self_normalized in (True, False):
        aggregator = GradientAnnealing(self_normalized=self_normalized, max_weight=1e30)
        for _ in range(300):
            weight = 1.0 if aggregator.kept("lambdas") is None else float(aggregator.lambdas[1])
            aggregator(torch.stack([ROWS[0], ROWS[1] / (1 + weight)]))
        weights[self_normalized] = float(aggregator.lambdas[1])
    assert weights[True] < 50 and weights[False] > 1e9


def test_any_term_can_be_the_reference() -> None:
    order = [1, 2, 0]
    expected = GradientAnnealing(reference=0).weights(statistics(w=ROWS))
    found = GradientAnnealing(reference=2).weights(statistics(w=ROWS[order]))
    assert found[2] == 1 and torch.equal(found, expected[order])


def test_lengths() -> None:
    aggregator = GradientAnnealing(statistic="norm", alpha=1.0, self_normalized=False)
    assert aggregator.needs == {"gramian"} and GradientAnnealing().needs == {"rowstats"}
    lengths = ROWS.norm(dim=1)
    found = aggregator.weights(statistics(w=ROWS))
    torch.testing.assert_close(found, lengths[0] / lengths)
    # The authors' later rule: sum of all lengths over the own one, up to a factor for all.
    later = lengths.sum() / lengths
    torch.testing.assert_close(found, later / later[0])
    torch.testing.assert_close(aggregator(ROWS), found @ ROWS)


def test_scope_and_kind_of_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, bias, none = (torch.randn(2, *shape, generator=generator, dtype=torch.float64) for shape in [(3, 4), (5, 1), (30,), (0, 3)])
    a[0] *= 5
    s = statistics(a=a, bias=100 * bias, b=b, none=none)

    def weight(**options: str) -> float:
        return float(GradientAnnealing(alpha=1.0, **options).weights(s)[1])

    top, size_a, size_b, size_bias = a[0].abs().max(), a[1].abs(), b[1].abs(), 100 * bias[1].abs()
    assert weight() == pytest.approx(float(top / ((size_a.mean() + size_b.mean()) / 2)))
    assert weight(mean="entries") == pytest.approx(float(top / torch.cat([size_a.flatten(), size_b.flatten()]).mean()))
    top = 100 * bias[0].abs().max()
    assert weight(scope="all") == pytest.approx(float(top / ((size_a.mean() + size_b.mean() + size_bias.mean()) / 3)))
    everything = torch.cat([size_a.flatten(), size_b.flatten(), size_bias])
    assert weight(scope="all", mean="entries") == pytest.approx(float(top / everything.mean()))
    # Nothing has two dimensions: all are taken.
    assert GradientAnnealing(alpha=1.0).weights(statistics(bias=bias))[1] == pytest.approx(
        float(bias[0].abs().max() / bias[1].abs().mean())
    )


def test_only_ratios_of_gradients_count() -> None:
    for scale in (1e-30, 1e30):
        torch.testing.assert_close(GradientAnnealing().weights(statistics(w=scale * ROWS)), GradientAnnealing().weights(statistics(w=ROWS)))


# ---- terms that have nothing to say ---------------------------------------------------------------------------------------------------


def test_a_term_without_gradient_keeps_its_weight() -> None:
    aggregator = GradientAnnealing()
    before = aggregator.weights(statistics(w=ROWS))
    quiet = ROWS.clone()
    quiet[1] = 0
    found = aggregator.weights(statistics(w=quiet))
    assert found[1] == before[1] and found[2] != before[2]
    assert aggregator.last["kept"] == ("1",)


def test_a_reference_without_gradient_moves_nothing() -> None:
    aggregator = GradientAnnealing()
    before = aggregator.weights(statistics(w=ROWS))
    quiet = ROWS.clone()
    quiet[0] = 0
    assert torch.equal(aggregator.weights(statistics(w=quiet)), before)
    assert torch.equal(aggregator.weights(statistics(w=torch.zeros_like(ROWS))), before)
    assert aggregator.last["kept"] == ("1", "2")


def test_almost_nothing_counts_as_nothing() -> None:
    rows = torch.tensor([[1.0, 1.0], [1e-9, 1e-9]], dtype=torch.float64)
    assert GradientAnnealing(eps=1e-6).weights(statistics(w=rows))[1] == 1
    assert GradientAnnealing(eps=1e-6).weights(statistics(w=rows.flip(0)))[1] == 1
    with pytest.warns(UserWarning, match="max_weight"):
        assert GradientAnnealing().weights(statistics(w=rows))[1] == 1e6


def test_one_term_and_one_point() -> None:
    aggregator = GradientAnnealing()
    assert aggregator(ROWS[:1]).tolist() == [8, -4] and aggregator.lambdas.tolist() == [1]
    net = nn.Linear(2, 1)
    losses = net(torch.ones(1, 2)).square().sum(), (net(-torch.ones(1, 2)) - 1).square().sum()
    rows = [torch.autograd.grad(loss, [net.weight])[0] for loss in losses]
    assert torch.isfinite(GradientAnnealing()(torch.cat(rows))).all()


def test_weights_are_clipped_and_it_is_said_once() -> None:
    aggregator = GradientAnnealing(alpha=1.0, max_weight=100.0, self_normalized=False)
    s = replace(statistics(w=ROWS), names=("residual", "boundary", "start"))
    with pytest.warns(UserWarning, match=r"Weights of start reached max_weight=100"):
        found = aggregator.weights(s)
    assert found.tolist() == pytest.approx([1, 40, 100]) and aggregator.last["clipped"] == ("start",)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        aggregator.weights(s)
    aggregator.reset()
    with pytest.warns(UserWarning, match="max_weight"):
        aggregator.weights(s)


def test_a_reference_is_never_clipped() -> None:
    aggregator = GradientAnnealing(max_weight=0.5)
    with pytest.warns(UserWarning, match="Weights of 1, 2 reached"):
        assert aggregator.weights(statistics(w=ROWS)).tolist() == [1, 0.5, 0.5]


def test_statistics_that_are_not_finite_change_nothing_and_are_said_once() -> None:
    aggregator = GradientAnnealing()
    s = statistics(w=ROWS)
    before = aggregator.weights(s)
    broken = replace(s, abs_max=torch.where(torch.arange(3)[:, None] == 0, torch.nan, s.abs_max))
    with pytest.warns(UserWarning, match="not finite"):
        assert torch.equal(aggregator.weights(broken), before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(aggregator.weights(broken), before)
    assert torch.equal(aggregator.lambdas, before)
    with pytest.warns(UserWarning, match=r"needs=\{'rowstats'\}"):
        assert GradientAnnealing().weights(GradientStatistics.from_rows([ROWS], needs={"gramian"})).tolist() == [1, 1, 1]


def test_a_term_that_touches_only_what_is_not_compared_is_named() -> None:
    weight, bias = torch.ones(3, 2, 2), torch.ones(3, 2)
    weight[1] = 0
    s = replace(statistics(weight=weight, bias=bias), names=("residual", "offset", "boundary"))
    aggregator = GradientAnnealing()
    with pytest.warns(UserWarning, match=r'offset: no gradient in the parameters .* scope="all"'):
        assert aggregator.weights(s)[1] == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        aggregator.weights(s)
        GradientAnnealing(scope="all").weights(s)


# ---- state and bad input --------------------------------------------------------------------------------------------------------------


def test_another_number_of_terms_is_refused() -> None:
    aggregator = GradientAnnealing()
    aggregator(ROWS)
    with pytest.raises(InputError, match=r"call reset\(\)"):
        aggregator(ROWS[:2])
    aggregator.reset()
    assert torch.equal(aggregator(ROWS[:2]), GradientAnnealing()(ROWS[:2]))


def test_what_is_returned_can_be_written_to() -> None:
    aggregator = GradientAnnealing()
    first = aggregator.weights(statistics(w=ROWS))
    kept = first.clone()
    first.zero_()
    aggregator.last["lambdas"].zero_()
    assert torch.equal(aggregator.lambdas, kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": -1}, "reference: got -1"),
        ({"reference": 0.5}, "reference: got 0.5; expected an integer"),
        ({"alpha": 0}, r"alpha: got 0; expected a number in \(0, 1\]"),
        ({"alpha": 1.5}, "alpha: got 1.5"),
        ({"alpha": float("nan")}, "alpha"),
        ({"statistic": "max_men"}, "Did you mean 'max_mean'"),
        ({"update_every": 0}, "update_every: got 0"),
        ({"max_weight": 0}, "max_weight: got 0"),
        ({"max_weight": float("inf")}, "max_weight"),
        ({"scope": "weight"}, "Did you mean 'weights'"),
        ({"eps": -1}, "eps: got -1"),
        ({"eps": 1.0}, "eps: got 1.0; expected a number below 1"),
        ({"mean": "layers"}, "mean: got 'layers'"),
    ],
)
def test_bad_options(options, message) -> None:
    with pytest.raises(InputError, match=message):
        GradientAnnealing(**options)


def test_a_reference_out_of_range() -> None:
    with pytest.raises(InputError, match=r"reference: got 3; expected the position of one of the 3 terms, 0 to 2"):
        GradientAnnealing(reference=3)(ROWS)


def test_a_loop_with_plain_torch() -> None:
    """Standalone use: statistics, weights, then the ordinary backward of the weighted sum is what the aggregator itself gives."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = matrix(6, 3)
    losses = torch.stack([100 * net(x).square().mean(), (net(x[:2]) - 1).square().mean()])
    parameters = list(net.parameters())
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    jacobian = {str(k): torch.stack(parts) for k, parts in enumerate(zip(*rows, strict=True))}
    expected = GradientAnnealing()(jacobian)
    weights = GradientAnnealing().weights(statistics(**jacobian))
    (weights * losses).sum().backward()
    for k, p in enumerate(parameters):
        torch.testing.assert_close(p.grad, expected[str(k)])
    assert weights[1] > 5


def test_backward_finds_new_weights_at_every_tenth_call() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    left_out = net[0].bias
    compared = [p for p in net.parameters() if p is not left_out]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    aggregator = GradientAnnealing()
    seen = []
    for call in range(12):
        x = matrix(6, 3, seed=call)
        losses = {"residual": 100 * net(x).square().mean(), "boundary": (net(x[:2]) - 1).square().mean()}
        optimizer.zero_grad()
        report = backward(losses, aggregator, params=compared, retain_graph=True)
        seen.append(float(aggregator.lambdas[1]))
        assert report.weights.tolist() == aggregator.lambdas.tolist() and report.names == ("residual", "boundary")
        # The step is that of the weighted sum, also for a parameter that is not compared.
        weighted = sum(w * loss for w, loss in zip(aggregator.lambdas, losses.values(), strict=True))
        for p, expected in zip(net.parameters(), torch.autograd.grad(weighted, list(net.parameters())), strict=True):
            torch.testing.assert_close(p.grad, expected)
        optimizer.step()
    assert len(set(seen[:10])) == 1 and seen[10] != seen[9] and seen[11] == seen[10] and seen[0] > 1
    assert report.strategy == "held weights" and report.passes == 1


def test_the_reference_may_be_named_and_should_be_the_strong_one() -> None:
    rows = [torch.tensor([[1.0, 2.0], [30.0, 60.0]], dtype=torch.float64)]
    s = GradientStatistics.from_rows(rows, needs={"gramian", "rowstats"}, names=("data", "residual"))
    named, placed = GradientAnnealing("residual"), GradientAnnealing(1)
    assert torch.equal(named.weights(s), placed.weights(s)) and named.weights(s)[1] == 1
    assert not named.last["notes"]
    weak = GradientAnnealing("data")
    weak.weights(s)
    assert weak.last["notes"] == ("The gradient of residual is 30 times the size of that of the reference, data: reference='residual'?",)
    with pytest.raises(InputError, match="reference: got 'boundary'; expected the name of one of the terms, data, residual"):
        GradientAnnealing("boundary").weights(s)
