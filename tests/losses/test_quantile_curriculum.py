from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from counterpoise._errors import InputError
from counterpoise.losses import QuantileCurriculum
from counterpoise.losses._quantile_curriculum import threshold


def logits_of(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_quantile(logits: Tensor, own: Tensor, rho: float) -> Tensor:
    """The definition: NumPy's quantile of what is no positive, row by row."""
    keep = torch.zeros_like(logits, dtype=torch.bool)
    for i, row in enumerate(logits):
        others = ~own[i] & ~row.isneginf()
        if others.any():
            keep[i] = others & (row >= np.quantile(row[others].numpy(), rho))
    return keep


@pytest.mark.parametrize("rho", [0.0, 0.05, 0.137, 0.3, 0.5, 0.77, 0.9, 0.999])
@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (9, 14), (4, 2), (24, 24)])
def test_it_is_the_quantile_with_linear_interpolation(rows: int, columns: int, rho: float) -> None:
    logits, positives = logits_of(rows, columns), torch.arange(rows) % columns
    own = torch.nn.functional.one_hot(positives, columns).bool()
    curriculum = QuantileCurriculum(rho, rho)
    assert torch.equal(curriculum.mask(logits, positives), by_quantile(logits, own, rho))
    assert torch.equal(curriculum.mask(logits.float(), own), by_quantile(logits.float(), own, rho))
    own |= torch.rand(rows, columns, generator=torch.Generator().manual_seed(1)) < 0.3  # rows with different numbers of positives
    kept = curriculum.mask(logits, own)
    expected = by_quantile(logits, own, rho)
    assert torch.equal(kept, expected)


def test_positions_that_are_whole_in_decimals_are_whole() -> None:
    """0.07 * 100 is 7.000000000000001, and 7 is meant: of 101 negatives the 7 lowest go."""
    assert 0.07 * 100 > 7
    logits = torch.arange(102.0)[None]
    assert QuantileCurriculum(0.07, 0.07).mask(logits, torch.tensor([0])).sum() == 94


@pytest.mark.parametrize("n", [3, 10, 101, 1000])
def test_the_share_that_is_kept(n: int) -> None:
    for rho in (0.1, 0.25, 0.5, 0.8):
        kept = QuantileCurriculum(rho, rho).mask(logits_of(5, n + 1), torch.arange(5) % (n + 1)).sum(dim=1)
        assert ((kept / n - (1 - rho)).abs() <= 1 / n).all()


def test_ties_are_kept() -> None:
    logits = torch.tensor([[9.0, 1.0, 1.0, 1.0, 1.0], [9.0, 0.0, 1.0, 1.0, 2.0]])
    kept = QuantileCurriculum(0.5, 0.5).mask(logits, torch.tensor([0, 0]))
    assert kept.tolist() == [[False, True, True, True, True], [False, False, True, True, True]]


def test_a_row_keeps_something_as_long_as_there_is_something() -> None:
    no = float("-inf")
    logits = torch.tensor([[1.0, no, no, no], [1.0, no, 2.0, no], [1.0, 2.0, 3.0, 4.0]])
    kept = QuantileCurriculum(0.9, 0.9).mask(logits, torch.tensor([0, 0, 0]))
    assert kept.tolist() == [[False, True, False, False], [False, False, True, False], [False, False, False, True]]
    assert QuantileCurriculum(0.9, 0.9).mask(logits, torch.ones(3, 4, dtype=torch.bool)).sum() == 0


def test_the_two_ways_to_the_order_statistic_agree() -> None:
    """One selection where all lines have lost the same number of values, sorting where not; contiguous or not, the input is left alone."""
    lines = logits_of(7, 30)
    lines[:, 3] = float("-inf")
    before = lines.clone()
    for rho in (0.0, 0.3, 0.5, 0.99):
        expected = threshold(lines, rho, torch.ones(7, dtype=torch.int64))
        assert torch.equal(threshold(lines, rho, 1), expected)
        assert torch.equal(threshold(lines.T.contiguous().T, rho, 1), expected)
    assert torch.equal(lines, before)


def test_the_schedule() -> None:
    curriculum = QuantileCurriculum(total=10_000)
    assert [curriculum.rho_at(t) for t in (0, 3999, 4000)] == [0.1, 0.1, 0.1]
    assert curriculum.rho_at(7000) == pytest.approx(0.3) and curriculum.rho_at(10_000) == curriculum.rho_at(99_999) == 0.5
    waiting = QuantileCurriculum(total=10_000, rho_before_warmup=0.0)
    assert waiting.rho_at(3999) == 0.0 and waiting.rho_at(4000) == 0.1
    assert QuantileCurriculum(0.5, 0.1, warmup=0, total=4).rho_at(1) == pytest.approx(0.4)
    assert QuantileCurriculum(0.3, 0.3).rho_at(10**9) == 0.3


def test_the_step_survives_saving() -> None:
    curriculum, other = QuantileCurriculum(warmup=1, total=5), QuantileCurriculum(warmup=1, total=5)
    curriculum.step = 3
    other.load_state_dict(curriculum.state_dict())
    assert other.step == 3 and other.rho == curriculum.rho == pytest.approx(0.3)
    assert "step=3" in repr(other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "total: got None; expected the step at which rho_final is reached"),
        ({"total": 4000}, "total: got 4000; expected more than warmup=4000"),
        ({"rho_init": 1.0, "rho_final": 1.0}, "rho_init: got 1.0; expected a share below 1"),
        ({"rho_final": -0.1, "total": 9000}, "rho_final"),
        ({"rho_before_warmup": 2.0, "total": 9000}, "rho_before_warmup"),
        ({"warmup": -1, "total": 3}, "warmup"),
        ({"total": 1.5}, "total"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        QuantileCurriculum(**options)


def test_input_that_makes_no_sense_is_refused() -> None:
    curriculum, logits = QuantileCurriculum(0.5, 0.5), logits_of(3, 4)
    for arguments, message in (
        ((logits[0], torch.arange(4)), "logits"),
        ((logits.long(), torch.arange(3)), "logits"),
        ((logits * float("nan"), torch.arange(3)), "logits: got 'nan'"),
        ((logits, torch.arange(4)), "positives"),
        ((logits, torch.arange(3.0)), "positives"),
        ((logits, torch.arange(3) + 2), r"positives: got .*; expected columns of the logits, 0\.\.3"),
    ):
        with pytest.raises(InputError, match=message):
            curriculum.mask(*arguments)
