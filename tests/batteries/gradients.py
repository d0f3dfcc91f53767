"""The battery of the gradient stage: every aggregator must pass all of ``AGGREGATOR_CHECKS``; every check takes an :class:`AggregatorCase`.

Matrices and properties follow those that TorchJD tests its own aggregators with: a zero matrix, linearly dependent rows, opposite rows,
rows of very different or of extreme length.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist

from counterpoise._dist import all_gather_rows
from counterpoise._errors import InputError
from counterpoise.gradients import Aggregator


@dataclass(frozen=True)
class AggregatorCase:
    """An aggregator with what may be expected of it.

    ``permutation``: the order of the rows does not matter. ``homogeneous``: A(cJ) = c A(J) for c > 0. ``mean``: equal rows give that row
    (else a positive multiple of it). ``spans``: the result is a combination of the rows. ``non_conflicting``: it has no negative inner
    product with a row. ``one_row_is_kept``: a single row is returned bit for bit. Those with memory may have it off where it shows.
    ``direction``: rows that are equal, or alone, give their direction; votes do not.
    """

    name: str
    make: Callable[[], Aggregator]
    permutation: bool = True
    homogeneous: bool = True
    mean: bool = True
    spans: bool = True
    non_conflicting: bool = False
    one_row_is_kept: bool = True
    direction: bool = True


def matrix(m: int = 8, n: int = 30, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.logspace(-1, 1, m, dtype=torch.float64)[torch.randperm(m, generator=generator)]
    return (lengths[:, None] * torch.randn(m, n, generator=generator, dtype=torch.float64)).to(dtype)


def hard_matrices() -> dict[str, Tensor]:
    ordinary = matrix()
    low_rank = matrix(8, 3, 1) @ matrix(3, 30, 2)
    return {
        "ordinary": ordinary,
        "tall": matrix(40, 5),
        "one column": matrix(8, 1),
        "zero": torch.zeros(8, 30, dtype=torch.float64),
        "two zero rows": torch.where(torch.arange(8)[:, None] % 5 == 1, 0.0, ordinary),
        "low rank": low_rank,
        "equal rows": ordinary[:1].repeat(8, 1),
        "opposite rows": torch.cat([ordinary[:4], -ordinary[:4]]),
        "huge": 1e15 * ordinary,
        "tiny": 1e-15 * ordinary,
        "one huge row": torch.cat([1e15 * ordinary[:1], ordinary[1:]]),
    }


def the_result_is_a_finite_row(case: AggregatorCase) -> None:
    for name, J in hard_matrices().items():
        for dtype in (torch.float32, torch.float64):
            found = case.make()(J.to(dtype))
            assert found.shape == J.shape[1:] and found.dtype == dtype, name
            assert torch.isfinite(found).all(), name


def nothing_in_gives_nothing_out(case: AggregatorCase) -> None:
    assert torch.equal(case.make()(torch.zeros(5, 7)), torch.zeros(7))


def one_row_comes_back(case: AggregatorCase) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        row = matrix(1, 9, dtype=dtype)
        found = case.make()(row)
        if case.one_row_is_kept and case.direction:
            assert torch.equal(found, row[0])
        else:
            assert parallel(found, row[0]) == case.direction


def equal_rows_give_their_direction(case: AggregatorCase) -> None:
    J = matrix(1).repeat(6, 1)
    found = case.make()(J)
    if case.mean and case.direction:
        torch.testing.assert_close(found, J[0], rtol=1e-12, atol=0)
    else:
        assert parallel(found, J[0]) == case.direction


def parallel(a: Tensor, b: Tensor) -> bool:
    return bool(torch.cosine_similarity(a.double(), b.double(), dim=0) > 1 - 1e-6)


def order_of_rows_does_not_matter(case: AggregatorCase) -> None:
    J = matrix()
    order = torch.tensor([3, 0, 7, 6, 1, 5, 2, 4])
    expected, found = case.make()(J), case.make()(J[order])
    if case.permutation:
        torch.testing.assert_close(found, expected)
    else:
        assert not torch.allclose(found, expected)  # a case that says less than is true would hide a regression


def the_unit_of_the_loss_does_not_matter(case: AggregatorCase) -> None:
    J = matrix()
    expected = case.make()(J)
    for scale in (1e-8, 2.0**-16, 3.0, 2.0**16, 1e8):
        found = case.make()(scale * J)
        if case.homogeneous:
            torch.testing.assert_close(found, scale * expected, rtol=1e-9, atol=0)
        else:
            assert not torch.allclose(found / scale, expected, rtol=1e-9, atol=0)


def the_result_lies_in_the_span(case: AggregatorCase) -> None:
    J = matrix(12)
    found = case.make()(J)
    rest = found - J.T @ torch.linalg.lstsq(J.T, found[:, None]).solution[:, 0]
    assert bool(rest.norm() < 1e-8 * found.norm()) == case.spans


def nothing_is_worked_against(case: AggregatorCase) -> None:
    if not case.non_conflicting:
        pytest.skip("makes no such promise")
    for J in hard_matrices().values():
        along = J @ case.make()(J)
        assert (along >= -1e-6 * J.norm(dim=1) * J.norm()).all()


def parameter_by_parameter_is_the_same(case: AggregatorCase) -> None:
    shapes = {"weight": (3, 5), "bias": (3,), "scale": (), "none": (0,)}
    parts = {name: matrix(8, torch.Size(shape).numel(), seed=i).reshape(8, *shape) for i, (name, shape) in enumerate(shapes.items())}
    found = case.make()(parts)
    assert {name: tuple(value.shape) for name, value in found.items()} == shapes
    whole = case.make()(torch.cat([part.reshape(8, -1) for part in parts.values()], dim=1))
    torch.testing.assert_close(torch.cat([value.reshape(-1) for value in found.values()]), whole)


def arguments_and_the_random_state_are_left_alone(case: AggregatorCase) -> None:
    J = matrix()
    before, state = J.clone(), torch.get_rng_state()
    case.make()(J)
    assert torch.equal(J, before) and torch.equal(torch.get_rng_state(), state)


def rows_may_carry_a_graph(case: AggregatorCase) -> None:
    J = matrix()
    found = case.make()(J.clone().requires_grad_())
    assert torch.equal(found.detach(), case.make()(J))
    with torch.no_grad():
        assert torch.equal(case.make()(J.clone().requires_grad_()), found)


def half_precision_is_computed_in_single(case: AggregatorCase) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        J = matrix(dtype=dtype)
        found = case.make()(J)
        assert found.dtype == dtype
        torch.testing.assert_close(found, case.make()(J.float()).to(dtype), rtol=0, atol=0)


def single_precision_is_double_rounded(case: AggregatorCase) -> None:
    J = matrix(dtype=torch.float32)
    torch.testing.assert_close(case.make()(J), case.make()(J.double()).float(), rtol=1e-5, atol=1e-6)


def a_saved_state_goes_on_where_it_was(case: AggregatorCase) -> None:
    steps = [matrix(seed=seed) for seed in range(5)]
    whole = case.make()
    expected = [whole(J) for J in steps]
    first = case.make()
    for J in steps[:3]:
        first(J)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = case.make()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for J, wanted in zip(steps[3:], expected[3:], strict=True):
        assert torch.equal(resumed(J), wanted)


def reset_forgets(case: AggregatorCase) -> None:
    aggregator = case.make()
    aggregator(matrix(seed=1))
    aggregator.reset()
    assert torch.equal(aggregator(matrix()), case.make()(matrix()))


def a_row_that_is_not_finite_is_named(case: AggregatorCase) -> None:
    aggregator, untouched = case.make(), case.make()
    for value in (float("nan"), float("inf"), -float("inf")):
        J = matrix()
        J[5, 3] = value
        with pytest.raises(InputError, match=r"row 5\b"):
            aggregator(J)
        with pytest.raises(InputError, match=r"row 5\b"):
            aggregator({"a": matrix(8, 4), "b": J})
    assert torch.equal(aggregator(matrix()), untouched(matrix()))  # its state has not moved


def what_is_no_jacobian_is_refused(case: AggregatorCase) -> None:
    aggregator = case.make()
    for wrong, message in (
        (torch.ones(3), r"jacobian: got shape \(3,\); expected a matrix"),
        (torch.ones(2, 3, 4), r"into a dict: \{name: \(m, \*shape\)\}"),
        (torch.ones(0, 3), "expected at least one row"),
        (torch.ones(2, 3, dtype=torch.int64), "expected floating-point gradients"),
        ({}, "expected at least one parameter"),
        ({"a": torch.ones(2, 3), "b": torch.ones(3, 3)}, r"parameters with \[2, 3\] rows"),
        ([[1.0, 2.0]], "expected a tensor"),
    ):
        with pytest.raises(InputError, match=message):
            aggregator(wrong)


def it_can_stand_in_for_one_of_torchjd(case: AggregatorCase) -> None:
    autojac = pytest.importorskip("torchjd.autojac")
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    losses = (model(matrix(5, 3)) ** 2).mean(dim=0)
    parameters = list(model.parameters())
    rows = []
    for loss in losses:
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        rows.append(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    autojac.backward(list(losses))
    autojac.jac_to_grad(parameters, case.make())
    found = torch.cat([parameter.grad.reshape(-1) for parameter in parameters])
    torch.testing.assert_close(found, case.make()(torch.stack(rows)))


AGGREGATOR_CHECKS: list[Callable[[AggregatorCase], None]] = [
    the_result_is_a_finite_row,
    nothing_in_gives_nothing_out,
    one_row_comes_back,
    equal_rows_give_their_direction,
    order_of_rows_does_not_matter,
    the_unit_of_the_loss_does_not_matter,
    the_result_lies_in_the_span,
    nothing_is_worked_against,
    parameter_by_parameter_is_the_same,
    arguments_and_the_random_state_are_left_alone,
    rows_may_carry_a_graph,
    half_precision_is_computed_in_single,
    single_precision_is_double_rounded,
    a_saved_state_goes_on_where_it_was,
    reset_forgets,
    a_row_that_is_not_finite_is_named,
    what_is_no_jacobian_is_refused,
    it_can_stand_in_for_one_of_torchjd,
]


# ---- two processes: one spawn for all cases, since starting them takes seconds ----------------------------------------------------------


def one_rank(rank: int, folder: str, cases: list[AggregatorCase]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for case in cases:
        aggregator = case.make()
        found[case.name] = []
        for seed in range(2):
            J = matrix(seed=seed, dtype=torch.float32)
            mine = J[:5] if rank == 0 else J[5:]  # not the same number
            found[case.name].append(aggregator(all_gather_rows(mine)))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def two_ranks_are_one_process(cases: list[AggregatorCase], folder: Path) -> None:
    """Rows gathered from two processes give, on each of them, what one process with all rows has. ``make`` must be picklable."""
    torch.multiprocessing.spawn(one_rank, (str(folder), cases), nprocs=2)
    ranks = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    for case in cases:
        aggregator = case.make()
        expected = [aggregator(matrix(seed=seed, dtype=torch.float32)) for seed in range(2)]
        for found in ranks:
            torch.testing.assert_close(found[case.name], expected, rtol=0, atol=0)
