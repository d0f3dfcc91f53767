from __future__ import annotations

import math

import pytest
import torch

from counterpoise._errors import InputError
from counterpoise.diagnostics import policy_balance
from counterpoise.losses import BalancedClipLoss, balanced_bounds
from tests.losses.test_balanced_clip import batch


@pytest.mark.parametrize("weight", ["none", "rollout_prob"])
def test_the_share_is_that_of_the_search(weight) -> None:
    for seed in range(10):
        values = batch(seed, lean=-0.3)
        low, high, share = balanced_bounds(*values, weight=weight)
        assert policy_balance(*values, low=low, high=high, weight=weight).share == pytest.approx(share, rel=1e-12)


def test_counts_lengths_and_clipping() -> None:
    logp, old, advantages, mask = batch(1, lean=-0.3, spread=1.0)
    advantages[0] = 0.0
    report = policy_balance(logp, old, advantages, mask, low=0.7, high=1.5)
    r, positive, negative = (logp - old).exp(), (advantages > 0) & mask, (advantages < 0) & mask
    assert (report.tokens, report.positive_tokens, report.negative_tokens) == (mask.sum(), positive.sum(), negative.sum())
    assert report.positive_tokens + report.negative_tokens < report.tokens
    assert report.count_share == pytest.approx(float(positive.sum() / (positive | negative).sum()))
    for length, side in ((report.positive_length, positive), (report.negative_length, negative)):
        assert length == pytest.approx(side.sum(dim=1)[side.any(dim=1)].double().mean().item())
    assert report.clipped_high * report.tokens == pytest.approx((positive & (r > 1.5)).sum().item())
    assert report.clipped_low * report.tokens == pytest.approx((negative & (r < 0.7)).sum().item())
    assert report.clipped_high > 0 and report.clipped_low > 0


@pytest.mark.parametrize("dual_clip", [3.0, 1.5, None])
def test_gradients_are_those_of_the_loss(dual_clip) -> None:
    logp, old, advantages, mask = batch(2, spread=1.0, lean=-0.2)
    logp.requires_grad_()
    BalancedClipLoss(low=(0.8, 0.8, 0), high=(1.2, 1.2, 0), dual_clip=dual_clip)(logp, old, advantages, mask).backward()
    report = policy_balance(logp, old, advantages, mask, dual_clip=dual_clip)
    assert report.positive_gradient == pytest.approx(logp.grad[advantages > 0].norm().item())
    assert report.negative_gradient == pytest.approx(logp.grad[advantages < 0].norm().item())


def test_the_covariance_says_where_a_step_takes_the_entropy() -> None:
    """A softmax over five tokens, every one of which was drawn as often as it is probable: dH / d eta is -Cov(log pi, A), for a step of
    natural gradient, which adds eta A to the logits."""
    count = torch.tensor([40, 30, 15, 10, 5])
    p = count.double() / count.sum()
    tokens = torch.repeat_interleave(torch.arange(5), count)
    for advantage in (torch.tensor([1.0, 0.2, -0.5, -0.3, 0.4]), torch.tensor([-1.0, 0.1, 0.3, 0.8, 0.5])):
        a = advantage.double()
        logp = p.log()[tokens][:, None]
        found = policy_balance(logp, logp, a[tokens][:, None], torch.ones_like(logp)).covariance
        logits = (p.log() + 1e-5 * a).log_softmax(dim=0)
        entropy = [-(x.exp() * x).sum().item() for x in (p.log(), logits)]
        assert -1e-5 * found == pytest.approx(entropy[1] - entropy[0], rel=1e-3)
        assert ("lowers" if found > 0 else "raises") in policy_balance(logp, logp, a[tokens][:, None], torch.ones_like(logp)).summary()


def test_ratios_make_draws_of_the_policy_in_training() -> None:
    """Drawn by another policy, weighed by their ratios: the covariance of the policy in training, where nothing is clipped."""
    count = torch.tensor([25, 25, 25, 25])
    old, p = torch.full((4,), 0.25, dtype=torch.float64), torch.tensor([0.3, 0.2, 0.26, 0.24], dtype=torch.float64)
    tokens = torch.repeat_interleave(torch.arange(4), count)
    a = torch.tensor([1.0, 0.5, -1.0, -0.5], dtype=torch.float64)
    values = [x[tokens][:, None] for x in (p.log(), old.log(), a)]
    found = policy_balance(*values, torch.ones_like(values[0]), low=0.5, high=1.9)
    mean = (p * p.log()).sum(), (p * a).sum()
    assert found.covariance == pytest.approx(float((p * (p.log() - mean[0]) * (a - mean[1])).sum()))


def test_one_sign_none_at_all_and_the_table() -> None:
    logp, old, advantages, mask = batch(3)
    right = policy_balance(logp, old, advantages.abs() + 0.1, mask)
    assert right.share == right.count_share == 1 and math.isnan(right.negative_length)
    assert f"All of the {right.tokens} tokens with an advantage have a positive one." in right.summary()
    nothing = policy_balance(logp, old, 0 * advantages, mask)
    assert (
        math.isnan(nothing.share) and nothing.summary() == f"Of {nothing.tokens} tokens none has an advantage: this update changes nothing."
    )
    assert right.to_frame().shape == (1, 12)


def test_half_precision_and_arguments_left_alone() -> None:
    values = batch(4, dtype=torch.float32)
    half = [x.bfloat16() if x.is_floating_point() else x for x in values]
    wide = [x.float() if x.is_floating_point() else x for x in half]
    before = [x.clone() for x in half]
    assert policy_balance(*half) == policy_balance(*wide)
    assert all(torch.equal(x, y) for x, y in zip(half, before, strict=True))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"low": 1.2}, "low: got 1.2"),
        ({"high": 0.8}, "high: got 0.8"),
        ({"weight": "prob"}, "weight: got 'prob'"),
        ({"dual_clip": 0.5}, "dual_clip: got 0.5"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, words) -> None:
    with pytest.raises(InputError, match=words):
        policy_balance(*batch(), **options)


def test_values_that_cannot_be_used_are_refused() -> None:
    logp, old, advantages, mask = batch()
    for values, words in (
        ((logp, old, advantages, 0 * mask), "no token at all"),
        ((logp * math.nan, old, advantages, mask), "logp - old_logp: got NaN"),
        ((logp, old, advantages * math.inf, mask), "advantages: got NaN or an infinite one"),
        ((logp, old, advantages, 0.5 * mask), "values besides 0 and 1"),
        ((logp, old[:2], advantages, mask), "old_logp: got shape"),
    ):
        with pytest.raises(InputError, match=words):
            policy_balance(*values)


def test_bounds_may_be_those_a_loss_kept() -> None:
    logp, old = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.0]])
    advantages, mask = torch.tensor([[1.0, -1.0]]), torch.ones(1, 2)
    by_tensor = policy_balance(logp, old, advantages, mask, low=torch.tensor(0.5), high=torch.tensor(1.25))
    assert by_tensor == policy_balance(logp, old, advantages, mask, low=0.5, high=1.25)
