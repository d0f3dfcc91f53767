from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoise._errors import InputError
from counterpoise.gradients import BinaryVote, median_binarize


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 11])
def test_the_median_is_that_of_numpy(n) -> None:
    update = torch.randn(n, generator=seeded(), dtype=torch.float64)
    wanted = np.where(update.numpy() >= np.median(update.numpy()), 1, -1)
    np.testing.assert_array_equal(median_binarize(update, ties="positive").numpy(), wanted)


def test_several_tensors_are_one_update_unless_each_has_its_own_median() -> None:
    parts = [torch.tensor([[10.0, 11.0], [12.0, 13.0]]), torch.tensor([1.0, 2.0])]
    assert median_binarize(parts).tolist() == [-1, 1, 1, 1, -1, -1]  # the median is 10.5
    assert median_binarize(parts, "median_per_tensor").tolist() == [-1, -1, 1, 1, -1, 1]
    assert median_binarize(parts, "zero").tolist() == [1] * 6


def test_half_of_the_signs_are_positive_and_none_says_how_long_the_update_was() -> None:
    update = torch.randn(1000, generator=seeded()) + 5
    signs = median_binarize(update)
    assert signs.dtype == torch.int8 and int(signs.sum()) == 0
    assert torch.equal(median_binarize(1e6 * update), signs)
    assert int(median_binarize(update, "zero").sum()) == 1000


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_votes_like_the_same_numbers_in_single(dtype) -> None:
    update = torch.randn(501, generator=seeded()).to(dtype)
    assert torch.equal(median_binarize(update, ties="positive"), median_binarize(update.double(), ties="positive"))
    assert torch.equal(median_binarize(update, generator=seeded(1)), median_binarize(update.double(), generator=seeded(1)))


def test_ties_are_drawn_and_average_out() -> None:
    constant = torch.full((10_000,), 3.0)
    signs = median_binarize(constant, generator=seeded())
    assert abs(float(signs.double().mean())) < 4 / 100  # 4 sigma
    assert torch.equal(signs, median_binarize(constant, generator=seeded()))
    assert not torch.equal(signs, median_binarize(constant, generator=seeded(1)))
    assert (median_binarize(constant, ties="positive") == 1).all()


def test_units_that_did_not_move_drift_only_with_the_formula_of_the_paper() -> None:
    update = torch.cat([torch.zeros(600), torch.linspace(-1, 1, 400)])
    assert (median_binarize(update, ties="positive")[:600] == 1).all()
    rounds = torch.stack([median_binarize(update, generator=seeded(r))[:600].double() for r in range(50)])
    assert rounds.mean(dim=0).abs().mean() < 0.2
    assert not BinaryVote()(update[None])[:600].any()


def test_random_ties_come_from_the_generator_alone() -> None:
    before = torch.get_rng_state()
    median_binarize(torch.zeros(100), generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=40), st.floats(1e-3, 1e3))
def test_a_scale_and_the_order_of_entries_change_nothing(values, scale) -> None:
    update = torch.tensor(values, dtype=torch.float64)
    signs = median_binarize(update, ties="positive")
    order = torch.randperm(len(values), generator=seeded())
    assert torch.equal(median_binarize(update[order], ties="positive"), signs[order])
    assert torch.equal(median_binarize(2.0 ** round(np.log2(scale)) * update, ties="positive"), signs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: median_binarize(torch.tensor([1.0, float("nan")])), r"update: got nan or inf; expected finite values"),
        (lambda: median_binarize([torch.ones(2), torch.tensor([float("inf")])]), r"update\[1\]: got nan or inf"),
        (lambda: median_binarize(torch.ones(0)), "update: got no entries"),
        (lambda: median_binarize([]), "update: got no entries"),
        (lambda: median_binarize(torch.ones(3, dtype=torch.int64)), "torch.int64; expected a floating-point tensor"),
        (lambda: median_binarize([torch.ones(1), [1.0]]), r"update\[1\]: got 'list'"),
        (lambda: median_binarize(torch.ones(3), threshold="mean"), "threshold: got 'mean'; expected one of median, zero"),
        (lambda: median_binarize(torch.ones(3), ties="zero"), "ties: got 'zero'; expected one of random, positive"),
        (lambda: BinaryVote("median"), "aggregate: got 'median'; expected one of mean, majority"),
        (lambda: BinaryVote(ties="random"), "ties: got 'random'; expected one of abstain, positive"),
        (lambda: BinaryVote(threshold="medians"), "Did you mean 'median'"),
    ],
)
def test_bad_input(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_the_vote_is_the_mean_of_the_signs_where_nobody_is_at_the_threshold() -> None:
    rows = torch.randn(7, 100, generator=seeded(), dtype=torch.float64)  # 100: the median is between two entries
    signs = torch.stack([median_binarize(row) for row in rows]).double()
    torch.testing.assert_close(BinaryVote()(rows), signs.mean(dim=0))
    assert torch.equal(BinaryVote("majority")(rows), signs.sum(dim=0).sign())
    assert torch.equal(BinaryVote("majority")(rows), signs.median(dim=0).values)  # K is odd: the median of signs is the sign of their sum


def test_a_tie_of_an_even_number_is_no_step() -> None:
    rows = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert not BinaryVote("majority")(rows).any() and not BinaryVote()(rows).any()


def test_the_median_is_of_all_parameters_together() -> None:
    parts = {"a": torch.tensor([[3.0, 4.0], [-3.0, -4.0]]), "b": torch.tensor([[1.0, 2.0], [-1.0, -2.0]])}
    found = BinaryVote()(parts)
    assert found["a"].tolist() == [0.0, 0.0] and found["b"].tolist() == [0.0, 0.0]
    alone = BinaryVote()({name: part[:1] for name, part in parts.items()})
    assert alone["a"].tolist() == [1.0, 1.0] and alone["b"].tolist() == [-1.0, -1.0]
    own = BinaryVote(threshold="median_per_tensor")({name: part[:1] for name, part in parts.items()})
    assert own["a"].tolist() == [-1.0, 1.0] and own["b"].tolist() == [-1.0, 1.0]


def test_one_poisoned_row_moves_a_coordinate_by_two_over_m_at_most() -> None:
    rows = torch.randn(9, 200, generator=seeded(), dtype=torch.float64)
    poisoned = torch.cat([rows[:8], -1e9 * rows[8:]])
    assert float((BinaryVote()(rows) - BinaryVote()(poisoned)).abs().max()) <= 2 / 9 + 1e-12
    assert float((rows.mean(dim=0) - poisoned.mean(dim=0)).abs().max()) > 1e6


def test_its_options_are_shown() -> None:
    assert repr(BinaryVote("majority")) == "BinaryVote(aggregate='majority', threshold='median', ties='abstain')"
