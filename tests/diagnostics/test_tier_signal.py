from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from counterpoise._errors import InputError
from counterpoise.diagnostics import tier_signal


def test_one_group_by_hand() -> None:
    rewards = np.zeros((1, 4, 4))
    rewards[0, :, 0] = 0.15  # all pass: silent
    rewards[0, :2, 2] = 0.35
    rewards[0, 0, 3] = 0.35
    found = tier_signal(rewards, eps=0.0)
    np.testing.assert_array_equal(found.silent, [1, 1, 0, 0])
    # |r - mean|: four times 0.175 in "high"; 0.2625 and three times 0.0875 in "edge"
    np.testing.assert_allclose(found.share, [0, 0, 0.7 / 1.225, 0.525 / 1.225])
    total = rewards.sum(axis=2)[0]
    advantage = (total - total.mean()) / total.std(ddof=1)
    np.testing.assert_allclose(found.effective_samples, np.abs(advantage).sum() ** 2 / np.square(advantage).sum())
    assert found.silent_groups == 0 and found.samples == 4


def test_weights_matter_only_within_a_group() -> None:
    rewards = np.zeros((2, 4, 4))
    rewards[0, :2, 0], rewards[1, :2, 3] = 0.15, 0.35
    np.testing.assert_allclose(tier_signal(rewards, eps=0).share, [0.5, 0, 0, 0.5])
    rewards = np.zeros((1, 4, 4))
    rewards[0, :2, 0], rewards[0, ::2, 3] = 0.15, 0.35
    np.testing.assert_allclose(tier_signal(rewards).share, [0.3, 0, 0, 0.7])


def test_a_group_that_is_all_alike_and_a_tier_without_tests() -> None:
    rewards = np.full((3, 2, 4), np.nan)
    rewards[:, :, 1] = [[0.1, 0.1], [0.1, 0.1], [0.0, 0.1]]
    found = tier_signal(torch.tensor(rewards, dtype=torch.float32))
    np.testing.assert_allclose(found.silent, [np.nan, 2 / 3, np.nan, np.nan])
    assert found.silent_groups == pytest.approx(2 / 3) and found.effective_samples == pytest.approx(2)
    assert found.to_frame().shape == (4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nothing = tier_signal(np.zeros((2, 3, 4)))
    assert nothing.silent_groups == 1 and nothing.effective_samples == 0 and np.isnan(nothing.share).all()
    assert nothing.summary() == "100% of the groups have equal rewards; 0 of 6 samples count. No tier gives a gradient."


def test_tiers_that_cancel_each_other_leave_a_silent_group() -> None:
    rewards = np.zeros((1, 2, 4))
    rewards[0, 0, 0], rewards[0, 1, 1] = 0.3, 0.1 + 0.2  # equal but for the last digit
    found = tier_signal(rewards)
    assert found.silent_groups == 1 and found.effective_samples == 0 and list(found.silent) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("rewards", "words"),
    [
        (np.zeros((2, 4)), "rewards: got shape"),
        (np.zeros((2, 1, 4)), "2 samples or more"),
        (np.zeros((2, 2, 3)), "4 tiers"),
        (np.full((1, 2, 4), np.inf), "finite"),
    ],
)
def test_bad_input(rewards, words) -> None:
    with pytest.raises(InputError, match=words):
        tier_signal(rewards)
