from __future__ import annotations

import math

import pytest
import torch

from counterpoise.replications import bapo as module


@pytest.fixture(scope="module")
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "QUICK_UPDATES", 24)
        return module.run(quick=True)


def test_a_quick_run_has_findings_for_all_claims(quick) -> None:
    assert quick.slug == "bapo" and quick.quick and quick.seeds == (0, 1)
    assert {finding.claim for finding in quick.findings} == {claim.key for claim in module.CLAIMS}
    assert set(quick.verdicts) == {"reward", "share", "fresh", "adaptive"}
    names = [(finding.claim, finding.name) for finding in quick.findings]
    assert len(set(names)) == len(names) == 5 + len(module.ARMS) - 2 + 1
    assert [len(rows) for rows in quick.tables.values()] == [len(module.ARMS), 2, 2]
    assert quick.figure.axes


def test_fresh_answers_leave_no_difference_at_all(quick) -> None:
    """All ratios are 1."""
    found = next(finding for finding in quick.findings if finding.claim == "fresh")
    assert (found.estimate, found.low, found.high, found.verdict) == (0, 0, 0, "replicated") and "identical" in found.text


def test_runs_repeat_and_arms_differ_by_what_they_are_called() -> None:
    found = {arm: module.train(1, "stale", arm, 16) for arm in module.ARMS}
    assert found["bapo"] == module.train(1, "stale", "bapo", 16)
    fixed = ("grpo", "higher", "start", "wide")
    assert {arm: (round(found[arm]["low"], 9), round(found[arm]["high"], 9)) for arm in fixed} == {
        "grpo": (0.8, 1.2), "higher": (0.8, 1.28), "start": (0.6, 1.2), "wide": (0.9, 3.0),
    }  # fmt: skip
    assert all(found[arm]["moved"] == 0 for arm in fixed) and found["code"]["moved"] > 0
    assert len(found["grpo"]["curve"]) == 2
    # The first rollout is the same for all.
    assert len({row["curve"][0] for row in found.values()}) == 1


def test_rewards_and_what_counts_of_an_answer() -> None:
    END = module.END
    answers = torch.tensor([[3, 4, END, 9], [3, 4, 5, 6], [END, 1, 1, END], [9, 9, 9, END], [8, END, END, END]])
    reward, mask = module.rewards(answers, torch.tensor([0, 4, 0, 6, 2]), 7, equal=False)
    assert reward.tolist() == [1, 0, 1, 1, 0]  # the second does not end; the last leaves 1
    assert mask.sum(dim=1).tolist() == [3, 4, 1, 4, 2]
    equal, whole = module.rewards(torch.tensor([[3, 4, 5], [9, 9, 9]]), torch.tensor([12, 6]), 20, equal=True)
    assert equal.tolist() == [1, 0] and whole.all()


def test_advantages_are_those_of_the_group() -> None:
    reward = torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 1, *[1.0] * 8])
    found = module.advantages(reward)
    assert found[8:].eq(0).all() and found[:8].sum().abs() < 1e-5
    assert found[0].item() == pytest.approx(0.75 / reward[:8].std().item(), rel=1e-3)


def test_the_policy_is_scored_as_it_was_drawn() -> None:
    """Log-probabilities of whole answers at once are those of token by token."""
    torch.manual_seed(0)
    policy = module.Policy(7, 8, 11)
    source = torch.Generator().manual_seed(0)
    prompts = torch.randint(7, (40,), generator=source)
    said = policy.answer(prompts, source)
    logp = policy.net(policy.features(prompts, said)).log_softmax(dim=2)
    for t in (0, 3, 7):
        shown = torch.where(torch.arange(8) < t, said, 0)  # what comes later is not looked at
        torch.testing.assert_close(policy.net(policy.features(prompts, shown))[:, t].log_softmax(dim=1), logp[:, t])
    assert module.train(0, "equal", "grpo", 8)["share"] == pytest.approx(0.5, abs=0.02)  # equally long: P = Q while all ratios are near 1


@pytest.mark.parametrize(("gap", "verdict"), [(0.1, "replicated"), (-0.1, "not replicated"), (0.0, "undecided")])
def test_verdicts_follow_their_intervals(gap, verdict) -> None:
    keys = ("final", "entropy", "entropy_at_half", "share", "gradient", "moved", "low", "high", "clipped")
    cells = [("stale", arm) for arm in module.ARMS] + [(setting, arm) for setting in ("fresh", "equal") for arm in ("grpo", "bapo")]
    runs = [
        {"seed": seed, "setting": setting, "arm": arm} | dict.fromkeys(keys, 0.5) | {"reward": 0.5, "share": 0.5, "entropy_at_half": None}
        for seed in range(4)
        for setting, arm in cells
    ]
    for row in runs:
        if row["arm"] == "bapo":
            row["reward"] += gap + 0.01 * (row["seed"] - 1.5)
            row["share"] += gap + 0.01 * (row["seed"] - 1.5)
    found = {finding.claim: finding.verdict for finding in module._findings(runs)}
    assert found["reward"] == found["share"] == found["adaptive"] == verdict
    assert found["fresh"] == ("replicated" if gap == 0 else "not replicated")
    assert math.isnan(module._mean_of_numbers([math.nan]))
