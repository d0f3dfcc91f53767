"""PCGrad, CAGrad, MGDA and GradNorm against the same methods done another way, on vectors of length n."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from counterpoise import CounterpoiseError
from counterpoise.gradients import MGDA, Aggregator, CAGrad, GradientStatistics, GradNorm, PCGrad

CLASSICAL = [PCGrad, CAGrad, MGDA, GradNorm]


def jacobians(count: int = 100) -> Iterator[Tensor]:
    """Random rows of unequal length, m in 2..8, n > m; every other one with rows that mostly oppose each other."""
    generator = torch.Generator().manual_seed(0)
    for trial in range(count):
        m = 2 + trial % 7
        J = torch.randn(m, m + 1 + trial % 20, generator=generator, dtype=torch.float64)
        if trial % 2:
            J = J - J.mean(dim=0) * torch.rand(m, 1, generator=generator, dtype=torch.float64) * 1.5
        yield J * torch.logspace(-0.5, 0.5, m, dtype=torch.float64)[torch.randperm(m, generator=generator), None]


def singular() -> Iterator[Tensor]:
    """Rows that are dependent: repeated ones, multiples, and more of them than dimensions."""
    for J in jacobians(30):
        m = len(J)
        yield torch.cat([J, 2 * J[:1], J[-1:]])
        yield J[:, : max(m // 2, 2)]


def statistics(J: Tensor, losses: Tensor | None = None) -> GradientStatistics:
    return GradientStatistics.from_rows([J], losses=losses)


def subsets(m: int) -> Iterator[list[int]]:
    for size in range(1, m + 1):
        yield from (list(chosen) for chosen in itertools.combinations(range(m), size))


# ---- PCGrad: algorithm 1, on vectors ---------------------------------------------------------------------------------------------------


def pcgrad_on_vectors(J: Tensor, generator: torch.Generator) -> Tensor:
    orders = [torch.randperm(len(J), generator=generator).tolist() for _ in J]
    total = torch.zeros_like(J[0])
    for i, order in enumerate(orders):
        projected = J[i].clone()
        for j in order:
            if j != i and projected @ J[j] < 0:
                projected -= (projected @ J[j]) / (J[j] @ J[j]) * J[j]
        total += projected
    return total


def test_pcgrad_is_the_algorithm_on_vectors() -> None:
    aggregator = PCGrad(torch.Generator().manual_seed(1))
    same = torch.Generator().manual_seed(1)
    projections = 0
    for J in [*jacobians(), *singular()]:
        torch.testing.assert_close(aggregator(J), pcgrad_on_vectors(J, same), rtol=1e-9, atol=1e-9)
        assert (aggregator.weights(statistics(J)) >= 1).all()
        pcgrad_on_vectors(J, same)  # the same draws
        projections += aggregator.last["projections"]
    assert projections > 300


def test_pcgrad_of_two_rows_works_against_none() -> None:
    for J in jacobians():
        assert (J[:2] @ PCGrad()(J[:2]) > -1e-12).all()


def test_pcgrad_without_conflicts_is_the_sum() -> None:
    J = torch.tensor([[1.0, 0.0, 2.0], [0.5, 3.0, 0.0], [0.0, 0.0, 1.0]])
    aggregator = PCGrad()
    assert torch.equal(aggregator(J), J.sum(dim=0)) and aggregator.last == {"projections": 0}


def test_pcgrad_draws_orders_for_every_row_and_step() -> None:
    J = next(J for J in jacobians() if len(J) == 8)
    aggregator = PCGrad(torch.Generator().manual_seed(0))
    found = [aggregator(J) for _ in range(4)]
    assert all(not torch.allclose(a, b) for a, b in itertools.combinations(found, 2))
    aggregator.reset()
    assert all(torch.equal(aggregator(J), expected) for expected in found)  # back at the start

    # A state that was saved after two steps goes on with the third, whatever generator takes it up.
    aggregator.reset()
    aggregator(J), aggregator(J)
    state = aggregator.state_dict()
    other = PCGrad(torch.Generator().manual_seed(5))
    other.load_state_dict(state)
    assert torch.equal(other(J), found[2])
    assert torch.equal(copy.deepcopy(aggregator)(J), found[2]) and torch.equal(aggregator(J), found[2])

    # None is torch's global one, which a seed repeats.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first = PCGrad()(J)
        torch.manual_seed(3)
        assert torch.equal(PCGrad()(J), first)
    PCGrad().load_state_dict(PCGrad().state_dict())


def test_pcgrad_leaves_rows_at_rest_alone() -> None:
    J = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [-1e-13, 0.0], [0.0, 0.0]], dtype=torch.float64)
    aggregator = PCGrad()
    torch.testing.assert_close(aggregator.weights(statistics(J)), torch.tensor([2.0, 1.5, 1.0, 1.0], dtype=torch.float64))
    assert aggregator.last == {"projections": 2}


# ---- MGDA: every face of the simplex, on vectors -----------------------------------------------------------------------------------------


def min_norm_point(J: Tensor) -> Tensor:
    """The shortest vector of the hull: of the shortest ones of all faces' affine hulls that lie in their face, the shortest."""
    best = J[J.norm(dim=1).argmin()]
    for chosen in subsets(len(J)):
        first, rest = J[chosen[0]], J[chosen[1:]] - J[chosen[0]]
        shares = torch.linalg.lstsq(rest.T, -first[:, None], driver="gelsd").solution[:, 0]
        point = first + shares @ rest
        if (shares >= -1e-12).all() and shares.sum() <= 1 + 1e-12 and point.norm() < best.norm():
            best = point
    return best


def test_mgda_is_the_shortest_vector_of_the_hull() -> None:
    inner = 0
    for J in jacobians():
        aggregator = MGDA()
        found, weights = aggregator(J), aggregator.weights(statistics(J))
        torch.testing.assert_close(found, min_norm_point(J), rtol=1e-9, atol=1e-9)
        assert (weights >= 0).all() and abs(weights.sum() - 1) < 1e-14
        assert abs(aggregator.last["gap"]) < 1e-14
        inner += int(0 < (weights == 0).sum() < len(J) - 1)
    assert inner > 20  # neither all rows nor one: the active set has had to find them


def test_mgda_of_dependent_rows() -> None:
    for J in singular():
        expected, found = min_norm_point(J), MGDA()(J)
        length = J.norm(dim=1).max()
        if expected.norm() > 1e-9 * length:
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        else:  # no common direction: 0, which has none of its own
            assert found.norm() < 1e-7 * length


def test_mgda_works_against_nobody() -> None:
    for J in jacobians():
        found = MGDA()(J)
        assert (J @ found >= (1 - 1e-9) * found.square().sum()).all()


def test_mgda_of_orthogonal_rows_weighs_by_inverse_squares() -> None:
    lengths = torch.logspace(-8, 8, 17, dtype=torch.float64)
    weights = MGDA().weights(statistics(torch.diag(lengths)))
    torch.testing.assert_close(weights, lengths**-2 / (lengths**-2).sum(), rtol=1e-12, atol=0)


def test_mgda_leaves_rows_of_zeros_out() -> None:
    J = next(jacobians())
    zeros = torch.zeros(1, J.shape[1], dtype=J.dtype)
    assert torch.equal(MGDA()(torch.cat([zeros, J, zeros])), MGDA()(J))
    weights = MGDA().weights(statistics(torch.cat([zeros, J])))
    assert weights[0] == 0 and abs(weights.sum() - 1) < 1e-14
    # A short row is no row of zeros, and decides.
    short = torch.cat([1e-9 * torch.ones_like(zeros), J])
    assert MGDA()(short).norm() <= short[0].norm()


# ---- CAGrad: every set of rows that may gain least, on vectors ---------------------------------------------------------------------------


def worst_off_helped(J: Tensor, c: float) -> Tensor:
    """Maximise the smallest <g_i, d> within c |g_0| of g_0, from what any rows that gain least would make of it.

    With level t for the rows of a set, the nearest d to g_0 is g_0 + t a - b with minimum-norm vectors a and b; the radius gives t. The
    right set is the one whose d leaves nobody below its level and is a move along its rows, not away from them.
    """
    mean = J.mean(dim=0)
    radius = c * mean.norm()
    best, best_gain = mean, (J @ mean).min()
    for chosen in subsets(len(J)):
        rows = J[chosen]
        ones = torch.ones(len(chosen), dtype=J.dtype)
        a, b = torch.linalg.lstsq(rows, torch.stack([ones, rows @ mean], dim=1), driver="gelsd").solution.T
        if not torch.allclose(rows @ a, ones, atol=1e-9):
            continue  # no level is common to them but 0
        level = ((a @ b) + torch.sqrt(((a @ b) ** 2 - (a @ a) * (b @ b - radius**2)).clamp(min=0))) / (a @ a)
        d = mean + level * a - b
        if (d - mean).norm() <= radius * (1 + 1e-12) and (J @ d).min() > best_gain:
            best, best_gain = d, (J @ d).min()
    return best


@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
def test_cagrad_helps_the_worst_off_within_its_radius(c: float) -> None:
    partly = 0
    for J in jacobians():
        aggregator = CAGrad(c=c)
        found, mean = aggregator(J), J.mean(dim=0)
        torch.testing.assert_close(found, worst_off_helped(J, c), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close((found - mean).norm(), c * mean.norm(), rtol=1e-10, atol=0)
        assert abs(aggregator.last["gap"]) < 1e-14
        weights = aggregator.weights(statistics(J)) - 1 / len(J)
        assert (weights >= 0).all()
        partly += int(0 < (weights <= 1e-15).sum() < len(J) - 1)
    assert partly > 20


def test_cagrad_of_dependent_rows() -> None:
    for J in singular():
        torch.testing.assert_close(CAGrad(c=0.5)(J), worst_off_helped(J, 0.5), rtol=1e-8, atol=1e-9)


def test_cagrad_is_at_least_as_good_as_a_general_solver() -> None:
    """The dual of the authors' code, min over the simplex of <g_w, g_0> + c |g_0| |g_w|, by SLSQP on vectors."""
    for J in itertools.islice(jacobians(), 30):
        rows, mean = J.numpy(), J.mean(dim=0).numpy()
        radius = 0.5 * np.linalg.norm(mean)
        result = minimize(
            lambda w, rows=rows, mean=mean, radius=radius: w @ rows @ mean + radius * np.linalg.norm(w @ rows),
            np.full(len(J), 1 / len(J)), method="SLSQP", bounds=[(0, 1)] * len(J), constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            options={"ftol": 1e-14, "maxiter": 500},
        )  # fmt: skip
        gain = float((J @ CAGrad(c=0.5)(J)).min())  # of the primal, below every value of the dual
        assert gain <= result.fun + 1e-10 * abs(result.fun)
        assert gain >= result.fun - 1e-5 * float(J.square().sum())


def test_cagrad_at_both_ends() -> None:
    for J in jacobians(20):
        mean = J.mean(dim=0)
        torch.testing.assert_close(CAGrad(c=0)(J), mean)
        for c in (1.0, 3.0):
            assert (J @ CAGrad(c=c)(J) > -1e-10).all()
        if (far := MGDA()(J)).norm() > 0.05 * J.norm():
            assert torch.cosine_similarity(CAGrad(c=1e6)(J), far, dim=0) > 1 - 1e-8
        torch.testing.assert_close(CAGrad(c=0.5, rescale=True)(J), CAGrad(c=0.5)(J) / 1.25)


def test_cagrad_where_no_direction_helps_all() -> None:
    J = torch.tensor([[3.0, 1.0], [-1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    J = torch.cat([J, -J[1:2]])  # the second and the fourth are opposite
    found = CAGrad(c=2)(J)  # no loss rises, as near to the mean as that can be: what is left of it across the opposite rows
    torch.testing.assert_close(found, J.mean(dim=0) * torch.tensor([0.0, 1.0]))
    opposite = torch.cat([J[:2], -J[:2]])
    assert CAGrad(c=2)(opposite).norm() < 1e-15


def test_cagrad_counts_rows_of_zeros_in_the_mean_alone() -> None:
    J = torch.tensor([[4.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    with_rest = torch.cat([J, torch.zeros(2, 2, dtype=torch.float64)])
    torch.testing.assert_close(CAGrad()(with_rest), CAGrad()(J) / 2)
    assert (CAGrad().weights(statistics(with_rest))[2:] == 0.25).all()


# ---- GradNorm: autograd on its loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.12, 1.5])
def test_gradnorm_follows_the_gradient_of_its_loss(alpha: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for J in jacobians():
        m = len(J)
        aggregator = GradNorm(alpha=alpha, lr=0.05)
        w = torch.ones(m, dtype=torch.float64)
        first = None
        for _ in range(5):
            rows = J * (0.5 + torch.rand(m, 1, generator=generator, dtype=torch.float64))
            losses = 0.1 + torch.rand(m, generator=generator)
            first = losses.double() if first is None else first
            s = statistics(rows, losses)
            torch.testing.assert_close(aggregator.weights(s), w, rtol=1e-9, atol=1e-9)

            variable = w.clone().requires_grad_()
            lengths = (variable[:, None] * rows).norm(dim=1)
            ratios = losses.double() / first
            target = (lengths.mean() * (ratios / ratios.mean()) ** alpha).detach()
            (slope,) = torch.autograd.grad((lengths - target).abs().sum(), variable)
            w = (w - 0.05 * slope).clamp(min=1e-6)
            w = w * m / w.sum()
        torch.testing.assert_close(aggregator.loss_weights, w, rtol=1e-9, atol=1e-9)


def test_gradnorm_makes_gradients_equally_long() -> None:
    J = torch.diag(torch.tensor([4.0, 1.0, 0.5], dtype=torch.float64))
    aggregator = GradNorm(lr=5e-3)
    assert torch.equal(aggregator(J), J.sum(dim=0))  # the first step is the sum
    for _ in range(1000):
        aggregator(J)
    lengths = aggregator.loss_weights * J.diagonal()
    assert (lengths / lengths.mean() - 1).abs().max() < 0.05 and abs(aggregator.loss_weights.sum() - 3) < 1e-12


def test_gradnorm_pushes_the_loss_that_is_behind() -> None:
    J = torch.eye(2, dtype=torch.float64)
    aggregator = GradNorm()
    aggregator.weights(statistics(J, torch.tensor([1.0, 10.0])))
    aggregator.weights(statistics(J, torch.tensor([0.9, 1.0])))  # the first has fallen by a tenth, the second by nine
    torch.testing.assert_close(aggregator.last["rates"], torch.tensor([1.8, 0.2], dtype=torch.float64))
    assert aggregator.loss_weights[0] > 1 > aggregator.loss_weights[1]


def test_gradnorm_keeps_weights_positive() -> None:
    aggregator = GradNorm(lr=100.0)
    for J in itertools.islice(jacobians(), 0, 100, 7):
        weights = aggregator.weights(statistics(J))
        assert (weights > 0).all() and abs(weights.sum() - len(J)) < 1e-12


def test_gradnorm_refuses_what_it_cannot_compare() -> None:
    J = torch.eye(2, dtype=torch.float64)
    for value in (0.0, -1.0, float("nan")):
        aggregator = GradNorm()
        s = replace(statistics(J, torch.tensor([1.0, value])), names=("seg", "depth"))
        with pytest.raises(CounterpoiseError, match=r"losses: got \S+ for depth; expected positive losses"):
            aggregator.weights(s)
        assert not aggregator.state_dict()
    aggregator(J)
    with pytest.raises(CounterpoiseError, match=r"call reset\(\)"):
        aggregator(torch.eye(3, dtype=torch.float64))
    aggregator.reset()
    aggregator(torch.eye(3, dtype=torch.float64))


# ---- all four ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSICAL)
def test_weights_come_from_products_alone(kind: type[Aggregator]) -> None:
    """A rotation of the gradients changes nothing but the result's frame; and none asks for the rows."""
    J = torch.cat([next(jacobians()), torch.zeros(2, 3, dtype=torch.float64)])
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    assert not kind.needs & {"rows", "rowstats", "previous"}
    torch.testing.assert_close(kind()(J @ rotation), kind()(J) @ rotation)


def test_many_losses_are_solved_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    for m, n in ((30, 90), (64, 128), (64, 64), (64, 20), (200, 50)):
        J = torch.randn(m, n, generator=generator, dtype=torch.float64) * torch.logspace(-2, 2, m, dtype=torch.float64)[:, None]
        for aggregator in (MGDA(), CAGrad(c=0.5), CAGrad(c=0.05), CAGrad(c=2.0)):
            aggregator(J)
            assert abs(aggregator.last["gap"]) < 1e-12, (m, n, aggregator)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PCGrad(generator=0), r"generator: got 0; expected a torch.Generator or None.*manual_seed"),
        (lambda: CAGrad(c=-0.1), "c: got -0.1; expected a number >= 0"),
        (lambda: CAGrad(c=float("inf")), "c: got inf"),
        (lambda: GradNorm(alpha=-1), "alpha: got -1"),
        (lambda: GradNorm(lr=0), "lr: got 0; expected a number > 0"),
    ],
)
def test_bad_input(make, message: str) -> None:
    with pytest.raises(CounterpoiseError, match=message):
        make()


def test_repr() -> None:
    assert [repr(kind()) for kind in CLASSICAL] == ["PCGrad()", "CAGrad(c=0.5)", "MGDA()", "GradNorm(alpha=1.5, lr=0.025)"]
    assert repr(CAGrad(1, rescale=True, denoise=True)) == "CAGrad(c=1, rescale=True, denoise=True)"
