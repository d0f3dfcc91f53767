from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor
from torch import distributed as dist

from counterpoise._errors import InputError
from counterpoise.losses import BalancedClipLoss, balanced_bounds
from counterpoise.losses._balanced_clip import CHUNK, ClipSearch, Lattice
from tests.processes import in_processes

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def batch(seed: int = 0, shape: tuple[int, int] = (6, 9), spread: float = 0.5, lean: float = 0.0, dtype: Any = torch.float64) -> Batch:
    """logp, old_logp, advantages that ``lean`` to a sign, mask of answers of several lengths."""
    generator = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(shape, generator=generator, dtype=torch.float64)
    logp = old + spread * torch.randn(shape, generator=generator, dtype=torch.float64)
    advantages = (torch.randn(shape[0], 1, generator=generator, dtype=torch.float64) + lean).expand(shape).clone()
    mask = torch.arange(shape[1]) < torch.randint(1, shape[1] + 1, (shape[0], 1), generator=generator)
    return logp.to(dtype), old.to(dtype), advantages.to(dtype), mask


def stepped(values: Batch, search: ClipSearch) -> tuple[float, float, float, int]:
    """The search as it is written down: one step at a time, all sums anew."""
    logp, old, advantages, mask = (x.double().numpy() for x in values)
    r, w = np.exp(logp - old), mask * (np.exp(old) if search.weight == "rollout_prob" else 1.0)
    positive, negative = w * advantages * (advantages > 0), -w * advantages * (advantages < 0)

    def sides(low: float, high: float) -> tuple[float, float]:
        if search.statistic == "surrogate":
            return float((positive * np.minimum(r, high)).sum()), float((negative * np.maximum(r, low)).sum())
        charged = (r > low) & (r <= (search.dual_clip or math.inf))
        return float((positive * r * (r <= high)).sum()), float((negative * r * charged).sum())

    def met(low: float, high: float) -> bool:
        P, Q = sides(low, high)
        return P + Q > 0 and search.target * (P + Q if search.criterion == "share" else Q + 1e-8 * (Q > 0)) <= P

    low, high, steps = search.low.start, search.high.start, 0
    for bound in ("high", "low") if search.order == "high_first" else ("low", "high"):
        while not met(low, high):
            if bound == "high" and high < search.high.maximum:
                high = min(high + search.high.step, search.high.maximum)
            elif bound == "low" and low < search.low.maximum:
                low = min(low + search.low.step, search.low.maximum)
            else:
                break
            steps += 1
            if bound == "high" and search.high.maximum - high < 1e-9:
                high = search.high.maximum
            if bound == "low" and search.low.maximum - low < 1e-9:
                low = search.low.maximum
    P, Q = sides(low, high)
    return low, high, P / (P + Q), steps


# ---- the search -------------------------------------------------------------------------------------------------------------------------


LATTICES = [
    ((0.6, 0.9, 0.02), (1.2, 3.0, 0.05)),
    ((0.8, 0.95, 0.05), (1.2, 2.0, 0.1)),
    ((0.5, 0.93, 0.1), (1.1, 2.45, 0.2)),  # steps that end beside the maximum
    ((0.0, 0.0, 0.0), (1.05, 4.0, 0.01)),
]


@pytest.mark.parametrize(
    ("criterion", "order", "weight", "statistic"),
    list(itertools.product(("share", "ratio"), ("high_first", "low_first"), ("rollout_prob", "none"), ("surrogate", "gradient"))),
)
def test_the_histogram_finds_what_stepping_finds(criterion, order, weight, statistic) -> None:
    lengths = set()
    for seed in range(64):
        (low, high), target = LATTICES[seed % 4], (0.3, 0.4, 0.45, 0.5)[seed // 4 % 4]
        options = {"criterion": criterion, "order": order, "weight": weight, "statistic": statistic, "target": target}
        values = batch(seed, spread=(0.2, 0.8)[seed % 2], lean=(-0.4, 0.0, -0.2)[seed % 3])
        search = ClipSearch.of(low=low, high=high, preset="paper", dual_clip=(3.0, None)[seed % 5 > 3], **options)
        logp, old, advantages, mask = values
        found = search.decide(search.tally(logp, old, advantages, mask))
        expected = stepped(values, search)
        assert found.tolist() == pytest.approx(expected, abs=1e-9, nan_ok=True), seed
        lengths.add(expected[3])
    assert len(lengths) > 4  # from the start, to the end, and on the way


def test_large_batches_are_added_up_in_parts() -> None:
    values = batch(0, shape=(700, 400), lean=-0.2)
    assert values[0].numel() > 2 * CHUNK
    search = ClipSearch.of(None, None, None, "paper", None, None, None, "surrogate", 3.0)
    assert balanced_bounds(*values) == pytest.approx(stepped(values, search)[:3], abs=1e-9)
    assert balanced_bounds(*(x.float() if x.is_floating_point() else x for x in values)) == pytest.approx(
        balanced_bounds(*values), abs=1e-5
    )


def test_probabilities_of_whole_sequences_do_not_vanish() -> None:
    """In float32 a probability is 0 from a logarithm of -104 on; of a sequence of 100 tokens, that is nothing unusual."""
    logp, old, advantages, mask = batch(1, shape=(64, 1), lean=-0.1)
    values = ((logp - 150).float(), (old - 150).float(), advantages.float(), mask)
    assert not values[1].exp().any()
    search = ClipSearch.of(None, None, None, "paper", None, None, None, "surrogate", 3.0)
    low, high, share, steps = stepped(values, search)
    assert steps and balanced_bounds(*values) == pytest.approx((low, high, share), abs=1e-5)
    assert 1.2 < high < 3.0


def test_half_precision_is_searched_in_single() -> None:
    values = batch(2, shape=(32, 8), lean=-0.2, dtype=torch.bfloat16)
    search = ClipSearch.of(None, None, None, "paper", None, None, None, "surrogate", 3.0)
    single = tuple(x.float() if x.is_floating_point() else x for x in values)
    assert balanced_bounds(*values) == balanced_bounds(*single) == pytest.approx(stepped(single, search)[:3], abs=1e-5)
    loss = BalancedClipLoss()(*values)
    assert loss.dtype == torch.float32 and torch.equal(loss, BalancedClipLoss()(*single))


def test_a_lattice_ends_at_its_maximum() -> None:
    assert Lattice.of("low", (0.6, 0.9, 0.02)).steps == 15 and Lattice.of("low", (0.8, 0.95, 0.05)).steps == 3
    cut = Lattice.of("high", [1.2, 2.0, 0.3])
    assert cut.values == pytest.approx([1.2, 1.5, 1.8, 2.0]) and cut.is_cut
    for value in ((0.7, 0.7, 0.02), torch.tensor([0.7, 0.9, 0.0], dtype=torch.float64)):
        assert Lattice.of("low", value).values == [0.7]


def test_raising_the_low_bound_never_raises_the_share() -> None:
    for seed in range(20):
        values = batch(seed, lean=-0.5)
        shares = [balanced_bounds(*values, low=(low, low, 0), high=(1.2, 1.2, 0))[2] for low in (0.1, 0.5, 0.7, 0.9)]
        assert shares == sorted(shares, reverse=True)
        kept = [balanced_bounds(*values, low=(low, low, 0), high=(1.2, 1.2, 0), statistic="gradient")[2] for low in (0.1, 0.5, 0.7, 0.9)]
        assert kept == sorted(kept)


def test_presets_are_what_they_say_and_arguments_win() -> None:
    values = batch(3, lean=-0.3)
    named = {"target": 1.0, "low": (0.6, 0.8, 0.05), "high": (1.2, 2.0, 0.05), "criterion": "ratio", "order": "low_first", "weight": "none"}
    assert balanced_bounds(*values, preset="reference") == balanced_bounds(*values, **named)
    assert balanced_bounds(*values, preset="reference", target=0.01)[:2] == (0.6, 1.2)
    # Shares and ratios say the same: 2/3 of Q is a share of 0.4.
    one = balanced_bounds(*values, criterion="ratio", target=2 / 3, weight="none")
    assert one == balanced_bounds(*values, criterion="share", target=0.4, weight="none")


# ---- batches of one kind ----------------------------------------------------------------------------------------------------------------


def test_without_positive_tokens_bounds_run_to_their_end() -> None:
    logp, old, advantages, mask = batch()
    criterion = BalancedClipLoss()
    assert torch.isfinite(criterion(logp, old, -advantages.abs() - 0.1, mask))
    assert (criterion.last.low, criterion.last.high, criterion.last.share, criterion.last.steps) == (0.9, 3.0, 0.0, 36 + 15)


def test_without_negative_tokens_bounds_stay() -> None:
    logp, old, advantages, mask = batch()
    for preset in ("paper", "reference"):
        assert balanced_bounds(logp, old, advantages.abs() + 0.1, mask, preset=preset) == (0.6, 1.2, 1.0)


def test_without_advantages_there_is_nothing_to_search_for() -> None:
    logp, old, advantages, mask = batch()
    criterion = BalancedClipLoss()
    assert criterion(logp, old, 0 * advantages, mask).item() == 0
    assert (criterion.last.low, criterion.last.high, criterion.last.steps) == (0.6, 1.2, 0) and criterion.last.share.isnan()


def test_without_a_gradient_at_the_start_the_search_goes_on() -> None:
    """All positive tokens lie above the bound, and there are no others: a share of 0/0 is not a target that was met."""
    old = torch.full((1, 4), -2.0, dtype=torch.float64)
    logp = old + math.log(1.49)
    found = balanced_bounds(logp, old, torch.ones(1, 4), torch.ones(1, 4), statistic="gradient")
    assert found == pytest.approx((0.6, 1.5, 1.0))


def test_padding_does_not_matter_whatever_it_holds() -> None:
    logp, old, advantages, mask = batch(1, lean=-0.3)
    expected = BalancedClipLoss()(logp, old, advantages, mask)
    for filler in (math.nan, -math.inf, 1e30):
        padded = [torch.where(mask, x, filler) for x in (logp, old, advantages)]
        padded[0].requires_grad_()
        loss = BalancedClipLoss()(*padded, mask)
        (gradient,) = torch.autograd.grad(loss, padded[0])
        assert loss.item() == expected.item() and (gradient[~mask] == 0).all() and torch.isfinite(gradient).all()
    for kind in (torch.int64, torch.float32, torch.uint8):
        assert BalancedClipLoss()(logp, old, advantages, mask.to(kind)).item() == expected.item()


def test_extreme_log_probabilities_have_finite_losses() -> None:
    old = torch.tensor([[-1e4, 0.0, -1e30, -50.0]])
    logp = torch.tensor([[0.0, -1e4, -1e30, -math.inf]])
    for sign in (1.0, -1.0):
        x = logp.clone().requires_grad_()
        loss = BalancedClipLoss(dual_clip=None)(x, old, torch.full((1, 4), sign), torch.ones(1, 4))
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(x.grad).all()


def test_one_token_an_answer_and_ratios_of_answers() -> None:
    logp, old, advantages, _ = batch(2, shape=(8, 1), lean=-0.3)
    criterion = BalancedClipLoss()
    loss = criterion(logp, old, advantages, torch.ones(8, 1))
    for reduction in ("seq-mean", "constant"):  # all the same, with one token in each
        assert BalancedClipLoss(reduction=reduction)(logp, old, advantages, torch.ones(8, 1)).item() == pytest.approx(loss.item())


# ---- the loss ---------------------------------------------------------------------------------------------------------------------------


def test_a_fixed_clip_is_ppo_and_reductions_are_means() -> None:
    logp, old, advantages, mask = batch(4, spread=1.0)
    mask[2] = False  # an empty answer
    r = (logp - old).exp()
    expected = -torch.minimum(r * advantages, r.clamp(0.8, 1.2) * advantages)
    each = torch.where(advantages < 0, torch.minimum(expected, -3 * advantages), expected) * mask
    assert ((advantages < 0) & (r > 3) & mask).any()
    wanted = {
        "token-mean": each.sum() / mask.sum(),
        "seq-mean": (each.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean(),
        "constant": each.sum() / each.numel(),
    }
    for reduction, value in wanted.items():
        criterion = BalancedClipLoss(low=(0.8, 0.8, 0), high=(1.2, 1.2, 0), reduction=reduction)
        torch.testing.assert_close(criterion(logp, old, advantages, mask), value)
    assert criterion.last.clipped_high.item() == pytest.approx(((advantages > 0) & (r > 1.2) & mask).sum().item() / mask.sum().item())
    assert criterion.last.clipped_low.item() == pytest.approx(((advantages < 0) & (r < 0.8) & mask).sum().item() / mask.sum().item())


def test_at_the_first_update_it_is_the_policy_gradient() -> None:
    _, old, advantages, mask = batch(5, lean=-1.0)
    logp = old.clone().requires_grad_()
    criterion = BalancedClipLoss()
    criterion(logp, old, advantages, mask).backward()
    torch.testing.assert_close(logp.grad, -advantages * mask / mask.sum())
    assert criterion.last.high == 3.0  # no bound matters, and yet the search has run


def test_nothing_flows_into_the_old_policy_or_the_advantages() -> None:
    tensors = [x.clone().requires_grad_() for x in batch(6)[:3]]
    BalancedClipLoss()(*tensors, batch(6)[3]).backward()
    assert tensors[0].grad is not None and tensors[1].grad is None and tensors[2].grad is None


def test_its_representation_names_the_options() -> None:
    text = repr(BalancedClipLoss(target=0.45))
    assert "target=0.45" in text and "high_first" in text and "token-mean" in text


# ---- bad input --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": 1.0}, r"target: got 1.0; expected a share in \(0, 1\)"),
        ({"target": 0.0}, "target: got 0.0"),
        ({"target": math.nan}, "target: got nan"),
        ({"low": (0.9, 0.6, 0.02)}, "low: got .* finite start <= maximum"),
        ({"low": (0.6, 1.0, 0.02)}, "low: got .* maximum < 1"),
        ({"low": (-0.1, 0.9, 0.02)}, "low: got"),
        ({"high": (1.0, 3.0, 0.05)}, "high: got .* 1 < start"),
        ({"high": (0.2, 0.28, 0.05)}, "A bound of 1.2 is an epsilon of 0.2"),
        ({"high": (3.0, 1.2, 0.05)}, "high: got"),
        ({"high": (1.2, 3.0, -0.05)}, "step >= 0"),
        ({"high": (1.2, 3.0, 1e-9)}, "high: got .* at most 10,000 steps"),
        ({"high": (1.2, math.inf, 0.1)}, "high: got"),
        ({"high": 0.2}, "high: got 0.2; expected three numbers"),
        ({"low": "0.6"}, "low: got '0.6'; expected three numbers"),
        ({"preset": "yaml"}, "preset: got 'yaml'"),
        ({"criterion": "shares"}, "Did you mean 'share'"),
        ({"order": "high"}, "order: got 'high'"),
        ({"weight": "prob"}, "weight: got 'prob'"),
        ({"statistic": "gradients"}, "statistic: got 'gradients'"),
        ({"dual_clip": 1.0}, "dual_clip: got 1.0"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, words) -> None:
    with pytest.raises(InputError, match=words):
        BalancedClipLoss(**options)
    with pytest.raises(InputError, match=words):
        balanced_bounds(*batch(), **options)


def test_a_reduction_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match="Did you mean 'token-mean'"):
        BalancedClipLoss(reduction="token_mean")


def test_values_that_cannot_be_used_are_refused() -> None:
    logp, old, advantages, mask = batch()
    broken = torch.where(torch.arange(9) == 0, math.nan, 0.0)
    cases: list[tuple[Batch, str]] = [
        ((logp[:, :-1], old, advantages, mask), r"old_logp: got shape \(6, 9\); expected the shape of logp, \(6, 8\)"),
        ((logp, old, advantages[:, 0], mask), r"advantages: got shape \(6,\); .* advantages\[:, None\].expand_as"),
        ((logp, old, advantages, mask[:2]), "mask: got shape"),
        ((logp[0], old[0], advantages[0], mask[0]), r"logp: got a tensor .* \(B, T\)"),
        ((logp.long(), old, advantages, mask), "logp: got a tensor of torch.int64"),
        ((logp, old, advantages, 0 * mask), "mask: got no token at all"),
        ((logp[:0], old[:0], advantages[:0], mask[:0]), "mask: got no token at all"),
        ((logp, old, advantages, 0.5 * mask), "mask: got .* values besides 0 and 1"),
        ((logp + broken, old, advantages, mask), "logp - old_logp: got NaN at 6 tokens"),
        ((logp, old + broken, advantages, mask), "logp - old_logp: got NaN at 6 tokens"),
        ((logp, old, advantages + broken, mask), "advantages: got NaN or an infinite one"),
        ((logp, old, advantages / 0.0, mask), "advantages: got NaN or an infinite one"),
        ((logp, old - broken.nan_to_num(-math.inf), advantages, mask), "old_logp: got inf, and no finite probability at 6 tokens"),
        ((logp, old, 1e308 * advantages.sign().double(), mask), r"advantages: got 1e\+308, and a sum beyond all numbers"),
        ((logp.double() + 30, old.double(), 1e300 * advantages.sign().double(), mask), r"advantages: got 1e\+300, and a sum beyond"),
    ]
    for values, words in cases:
        with pytest.raises(InputError, match=words):
            balanced_bounds(*values)
        with pytest.raises(InputError, match=words):
            BalancedClipLoss()(*values)


@pytest.mark.parametrize("name", ["low", "high"])
@pytest.mark.parametrize(
    "value",
    [
        ("a", 1, 2),
        (None, 0.9, 0.1),
        (1j, 1, 1),
        (0.6, 0.9),
        0.6,
        "0.6",
        {0.6: 1, 0.9: 2, 0.1: 3},
        torch.tensor(0.6),
        np.ones((1, 3)),
        torch.ones(3, 3),
        pl.Series([0.6, 0.9, 0.1]),
    ],
    ids=str,
)
def test_bounds_that_are_no_three_numbers_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"(?s)^{name}: got .*; expected three numbers: start, maximum, step\.$"):
        BalancedClipLoss(**{name: value})


@pytest.mark.parametrize(
    "convert", [list, np.array, torch.tensor, lambda x: np.array(x, dtype=np.float32), lambda x: torch.tensor(x).double()]
)
def test_bounds_may_be_an_array_or_a_tensor(convert: Any) -> None:
    low, high = (0.6, 0.8, 0.05), (1.2, 3.0, 0.05)
    expected, found = BalancedClipLoss(low=low, high=high).search, BalancedClipLoss(low=convert(low), high=convert(high)).search
    for name in ("low", "high"):
        assert getattr(found, name).values == pytest.approx(getattr(expected, name).values, abs=1e-7)
    assert BalancedClipLoss(high=convert([2, 2, 0])).search.high.values == [2.0]


def test_a_ratio_has_a_unit_and_a_share_has_none() -> None:
    """Where weights are as small as what the authors' code adds to Q, no ratio is met that a share of the same size meets."""
    logp, old = torch.zeros(2, 1), torch.zeros(2, 1)
    advantages, mask = torch.tensor([[1.0], [-1.0]]), torch.ones(2, 1)
    for scale, met in ((1.0, True), (1e-9, False)):
        ratio = balanced_bounds(logp, old, scale * advantages, mask, criterion="ratio", target=0.9, order="high_first")
        share = balanced_bounds(logp, old, scale * advantages, mask, criterion="share", target=0.47)
        assert share == (0.6, 1.2, 0.5) and (ratio == (0.6, 1.2, 0.5)) is met


def test_a_side_that_loses_its_last_token_on_the_way_leaves_no_share() -> None:
    logp, old = torch.tensor([[0.7, 0.7]]).log(), torch.zeros(1, 2)
    low, high, share = balanced_bounds(logp, old, -torch.ones(1, 2), torch.ones(1, 2), statistic="gradient")
    assert (low, high) == (0.9, 3.0) and math.isnan(share)  # it had something at the start
    low, high, share = balanced_bounds(logp - 1, old, -torch.ones(1, 2), torch.ones(1, 2), statistic="gradient")
    assert (low, high) == (0.6, 1.2) and math.isnan(share)  # nothing anywhere


# ---- several processes ------------------------------------------------------------------------------------------------------------------


def of_rank(values: Batch, rank: int) -> Batch:
    """Two answers for the first process, four for the second: one side of the advantages weighs more in each."""
    rows = slice(0, 2) if rank == 0 else slice(2, 6)
    return tuple(x[rows] for x in values)  # type: ignore[return-value]


def _agree(rank: int, store: str, seeds: list[int]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        alone_differ = 0
        for seed in seeds:
            whole, own = batch(seed, lean=-0.2), of_rank(batch(seed, lean=-0.2), rank)
            for options in ({}, {"preset": "reference"}, {"statistic": "gradient"}):
                search = ClipSearch.of(
                    None, None, None, options.get("preset", "paper"), None, None, None, options.get("statistic", "surrogate"), 3.0
                )
                expected = search.decide(search.tally(*whole)).tolist()
                local = search.decide(search.tally(*own)).tolist()
                assert balanced_bounds(*own, **options) == pytest.approx(tuple(expected[:3]), abs=1e-12)
                alone_differ += local[:2] != expected[:2]
                criterion = BalancedClipLoss(**options)
                criterion(*own)
                assert [criterion.last.low.item(), criterion.last.high.item()] == pytest.approx(expected[:2], abs=1e-12)
        assert alone_differ
        # One process without tokens, or with NaN: no one is left waiting.
        logp, old, advantages, mask = own
        assert balanced_bounds(logp, old, advantages, mask if rank else 0 * mask)[0] >= 0.6
        with pytest.raises(InputError, match="logp - old_logp"):
            balanced_bounds(logp if rank else logp * math.nan, old, advantages, mask)
        with pytest.raises(InputError, match="no token at all"):
            balanced_bounds(logp, old, advantages, 0 * mask)
    finally:
        dist.destroy_process_group()


def test_two_processes_have_the_bounds_of_all_tokens(tmp_path: Path) -> None:
    in_processes(_agree, str(tmp_path / "store"), list(range(8)))
