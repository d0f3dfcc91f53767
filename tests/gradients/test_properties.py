"""What aggregators claim, as TorchJD defines it, on matrices like its own: the table in the guide, row by row.

A matrix J is *strongly stationary* if a sum of its rows with positive weights is 0: then no step lowers one loss to first order without
raising another. It is *weakly stationary* if one with nonnegative weights, not all 0, is: then no step lowers them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

from counterpoise import gradients
from counterpoise.gradients import Aggregator

SIZES = [(20, 10, 10), (20, 10, 5), (20, 10, 1), (20, 100, 1), (20, 100, 19)]  # m, n, rank
SCALES = [0.0, 1e-10, 1e3, 1e5, 1e10, 1e15]


@dataclass(frozen=True)
class Claims:
    """``permutation``: the order of the losses does not matter. ``non_conflicting``: no loss rises to first order. ``stationary``: the
    result is 0 only at strongly stationary matrices."""

    make: Callable[[], Aggregator]
    permutation: bool = False
    non_conflicting: bool = False
    stationary: bool = False


def seeded_pcgrad() -> Aggregator:
    return gradients.PCGrad(torch.Generator().manual_seed(0))


CLAIMS = {
    "pcgrad": Claims(seeded_pcgrad, stationary=True),
    "cagrad": Claims(gradients.CAGrad, permutation=True, stationary=True),
    "cagrad-1": Claims(partial(gradients.CAGrad, c=1), permutation=True, non_conflicting=True),
    "cagrad-2": Claims(partial(gradients.CAGrad, c=2), permutation=True, non_conflicting=True),
    "mgda": Claims(gradients.MGDA, permutation=True, non_conflicting=True),
    "gradnorm": Claims(gradients.GradNorm, permutation=True, stationary=True),
    "sam-gs": Claims(gradients.SAMGS),
    "gcond": Claims(gradients.GCond),
    "annealing": Claims(gradients.GradientAnnealing),
}


def basis(size: int, generator: torch.Generator, first: Tensor | None = None) -> Tensor:
    """A random orthonormal basis (size, size), whose first columns are those of ``first``."""
    columns = torch.randn(size, size, generator=generator, dtype=torch.float64)
    if first is not None:
        columns[:, : first.shape[1]] = first
    return torch.linalg.qr(columns).Q


def of_rank(left: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """A matrix with the left singular vectors ``left`` (m, rank) and random singular values and right ones."""
    rank = left.shape[1]
    values = torch.randn(rank, generator=generator, dtype=torch.float64).abs()
    return left * values @ basis(n, generator)[:, :rank].T


def anywhere(m: int, n: int, rank: int, generator: torch.Generator) -> Tensor:
    return of_rank(basis(m, generator)[:, :rank], n, generator)


def strongly_stationary(m: int, n: int, rank: int, generator: torch.Generator) -> tuple[Tensor, None]:
    """Orthogonal to a positive vector."""
    positive = torch.rand(m, 1, generator=generator, dtype=torch.float64) + 0.1
    return of_rank(basis(m, generator, positive)[:, 1 : rank + 1], n, generator), None


def weakly_stationary(m: int, n: int, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Orthogonal to a nonnegative vector, with another, where that is 0, as a singular vector; and a step that no loss rises with."""
    positive = torch.rand(m, 1, generator=generator, dtype=torch.float64) + 0.1
    some = torch.arange(m)[torch.randperm(m, generator=generator), None] < m // 2
    J = of_rank(basis(m, generator, torch.cat([positive * some, positive * ~some], dim=1))[:, 1 : rank + 1], n, generator)
    return J, J.T @ (positive * ~some)[:, 0]


def not_stationary(m: int, n: int, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """With a positive vector as a singular vector, hence with a step that lowers all losses; and that step."""
    positive = torch.rand(m, 1, generator=generator, dtype=torch.float64) + 0.1
    J = of_rank(basis(m, generator, positive)[:, :rank], n, generator)
    return J, J.T @ positive[:, 0]


def matrices() -> list[tuple[Tensor, Tensor | None]]:
    """Each with a step y that lowers some losses and raises none, where there is one (J y >= 0, not 0)."""
    generator = torch.Generator().manual_seed(0)
    small = [anywhere(*size, generator) for size in [(1, 1, 1), (4, 3, 1), (4, 3, 2), (4, 3, 3), (9, 11, 5), (9, 11, 9)]]
    found: list[tuple[Tensor, Tensor | None]] = [(scale * J, None) for J in small for scale in [1.0, *SCALES]]
    for kind in (strongly_stationary, weakly_stationary, not_stationary):
        found += [kind(*size, generator) for size in SIZES]
    return found


MATRICES = matrices()
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def those_that(claim: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", [name for name, claims in CLAIMS.items() if claim == "all" or getattr(claims, claim)])


def test_the_matrices_are_what_they_are_called() -> None:
    for J, step in MATRICES:
        if step is not None:
            gains = J @ step / step.square().sum()
            assert gains.min() > -1e-9 and gains.max() > 1e-3
    assert sum(step is not None for _, step in MATRICES) == 10
    assert {int(torch.linalg.matrix_rank(J)) for J, _ in MATRICES} == {0, 1, 2, 3, 5, 9, 10, 19}


@every_dtype
@those_that("all")
def test_the_result_is_a_finite_row(name: str, dtype: torch.dtype) -> None:
    for J, _ in MATRICES:
        found = CLAIMS[name].make()(J.to(dtype))
        assert found.shape == J.shape[1:] and found.dtype == dtype and torch.isfinite(found).all()


@every_dtype
@those_that("permutation")
def test_the_order_of_the_losses_does_not_matter(name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    for J, _ in MATRICES:
        J = J.to(dtype)
        expected = CLAIMS[name].make()(J)
        for _ in range(5):
            found = CLAIMS[name].make()(J[torch.randperm(len(J), generator=generator)])
            assert (found - expected).norm() <= 1e-4 * J.norm(dim=1).max()


@every_dtype
@those_that("non_conflicting")
def test_no_loss_rises(name: str, dtype: torch.dtype) -> None:
    for J, _ in MATRICES:
        J = J.to(dtype)
        gains = (J @ CLAIMS[name].make()(J)).double()
        assert (gains >= -1e-5 * J.norm(dim=1).max().double() ** 2).all()


@those_that("stationary")
def test_it_rests_only_where_all_losses_do(name: str) -> None:
    """With weights of at least 1 / m, a step y that lowers some losses and raises none keeps the result away from 0: <d, y> is positive."""
    for J, step in MATRICES:
        if step is not None:
            found = CLAIMS[name].make()(J)
            assert found @ step >= (J @ step).sum() / len(J) * (1 - 1e-6)


def test_what_is_not_claimed_does_not_hold() -> None:
    """The table says no where the answer is no: for each, a matrix that shows it."""
    conflict = torch.tensor([[4.0, 0.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.1, 0.2]])
    for name in ("cagrad", "gradnorm"):
        J = conflict * torch.tensor([10.0, 1.0, 1.0])[:, None]
        assert (J @ CLAIMS[name].make()(J)).min() < -0.1, name
    opposed = torch.tensor([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8], [-0.9, 0.0]]) * torch.tensor([1.0, 1.0, 0.1, 0.5])[:, None]
    assert min((opposed @ gradients.PCGrad(torch.Generator().manual_seed(i))(opposed)).min() for i in range(20)) < -0.01
    # The first two are opposite, the third could still gain; all three of these stop.
    weak = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert gradients.MGDA()(weak).norm() < 1e-6
    for c in (1, 2):
        assert gradients.CAGrad(c=c)(weak).norm() < 1e-6
