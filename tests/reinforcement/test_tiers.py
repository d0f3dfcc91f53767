from __future__ import annotations

import json
import pickle

import pytest

from counterpoise._errors import InputError
from counterpoise.reinforcement import PORTFOLIO, TieredCase, TieredSuite, TierSchedule

B, M, H, E = "basic", "medium", "high", "edge"
ALL = (B, M, H, E)
POINTS = (0, 0.1999, 0.2, 0.4, 0.6, 1.0)
FORWARD = [(B,), (B,), (B, M), (B, M, H), ALL, ALL]
HARD_FIRST = [(H,), (H,), (H, E), (M, H, E), ALL, ALL]
EQUAL, EASY, HARD = (0.25,) * 4, (0.35, 0.35, 0.15, 0.15), (0.15, 0.15, 0.35, 0.35)


@pytest.mark.parametrize(
    ("name", "tiers", "weights"),
    [
        ("basic_only", [(B,)] * 6, {B: 1}),
        ("complex_only", [(H,)] * 6, {H: 1}),
        ("edge_only", [(E,)] * 6, {E: 1}),
        ("uni", FORWARD, dict(zip(ALL, EQUAL, strict=True))),
        ("var", FORWARD, dict(zip(ALL, EASY, strict=True))),
        ("var_asce_normal", FORWARD, dict(zip(ALL, HARD, strict=True))),
        ("var_asce_rev", HARD_FIRST, dict(zip(ALL, HARD, strict=True))),
    ],
)
def test_the_portfolio_is_the_published_table(name, tiers, weights) -> None:
    schedule = PORTFOLIO[name]
    assert [schedule.allowed(e) for e in POINTS] == tiers
    assert dict(schedule.weights) == weights and not schedule.normalize
    assert schedule.allowed(7.5) == tiers[-1]
    if len(schedule.stages) > 1:
        longer = PORTFOLIO[f"{name}_3e"]
        assert [longer.allowed(e) for e in (0, 0.5999, 0.6, 1.2, 1.8, 3.0)] == tiers
        assert longer.weights == schedule.weights and longer.end == 3


def test_the_portfolio_has_nothing_else_and_cannot_be_changed() -> None:
    assert len(PORTFOLIO) == 11
    with pytest.raises(TypeError):
        PORTFOLIO["uni"] = None  # type: ignore[index]


def reference(tiers, passed, weights, allowed) -> float:
    """The released rule: the weights of the tests that count and pass, not divided by anything."""
    return sum(weights[tier] for tier, ok in zip(tiers, passed, strict=True) if tier in allowed and ok)


@pytest.mark.parametrize(
    ("name", "progress", "passed", "plain", "normalized"),
    [
        ("var_asce_normal", 0.3, (B,), 0.15, 0.5),
        ("var_asce_normal", 0.7, (B, E), 0.50, 0.5),
        ("var_asce_rev", 0.1, (B,), 0.0, 0.0),
        ("var_asce_rev", 0.1, ALL, 0.35, 1.0),
        ("var_asce_normal", 0.0, (B, M), 0.15, 1.0),
        ("var", 0.5, (M, H), 0.5, 0.5 / 0.85),
        ("uni", 1.4, (M, H, E), 0.75, 0.75),
        ("edge_only", 0.0, ALL, 1.0, 1.0),
    ],
)
def test_rewards_by_hand(name, progress, passed, plain, normalized) -> None:
    schedule = PORTFOLIO[name]
    ok = [tier in passed for tier in ALL]
    assert schedule.reward(ALL, ok, progress) == pytest.approx(plain)
    assert schedule.reward(ALL, ok, progress) == pytest.approx(reference(ALL, ok, schedule.weights, schedule.allowed(progress)))
    assert schedule.replaced(normalize=True).reward(ALL, ok, progress) == pytest.approx(normalized)


def test_several_tests_of_a_tier_and_tests_without_one() -> None:
    schedule = PORTFOLIO["var_asce_normal"]
    tiers = [B, B, None, M]
    assert schedule.reward(tiers, [True, True, True, True], 0.1) == pytest.approx(0.30)  # unlabeled tests never pay
    assert schedule.replaced(normalize=True).reward(tiers, [True, False, True, True], 0.1) == 0.5
    assert PORTFOLIO["edge_only"].reward(tiers, [True] * 4, 0.1) is None  # nothing counts: abstain
    assert schedule.reward([None], [True], 0.1) is None


def test_a_suite_reads_what_data_sets_hold() -> None:
    row = {
        "language": "python",
        "test_cases": [{"input": "1\n", "output": "2\n", "label": " basic "}, {"input": "", "output": "", "label": None}],
    }
    suite = TieredSuite.of(row)
    assert suite == TieredSuite([TieredCase("1\n", "2\n", "basic"), TieredCase("", "")]) == TieredSuite.of(json.dumps(row))
    assert TieredSuite.of(suite) is suite and suite.tiers == ("basic",)
    assert TieredSuite.of({"tests": [{"input": "1", "output": "1", "tier": "edge"}]}).tiers == ("edge",)


def test_schedules_are_values() -> None:
    schedule = PORTFOLIO["var"]
    assert pickle.loads(pickle.dumps(schedule)) == schedule and hash(schedule) == hash(schedule.replaced(normalize=False))
    assert schedule != schedule.replaced(normalize=True)
    assert eval(repr(schedule)) == schedule


STAGES = [(1.0, [B])]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: TieredCase("1", "1", "complex"), "tier: got 'complex'; expected one of basic, medium, high, edge. .*'complex' is 'high'"),
        (lambda: TieredCase(1, "1"), "input: got 1; expected a string"),
        (lambda: TieredSuite([]), r"tests: got \[\]; expected at least one TieredCase"),
        (lambda: TieredSuite([("1", "1")]), "TieredSuite.of"),
        (lambda: TieredSuite.of({"language": "rust", "tests": []}), "language: got 'rust'; expected 'python'"),
        (lambda: TieredSuite.of("no json"), "verification_info: got no json; expected JSON"),
        (lambda: TieredSuite.of(3), "verification_info: got 3"),
        (lambda: TieredSuite.of({"language": "python"}), "a list under 'test_cases'"),
        (lambda: TieredSuite.of({"tests": [{"input": ""}]}), "test_cases"),
        (lambda: TierSchedule([], {B: 1}), "stages"),
        (lambda: TierSchedule([(0.6, [B]), (0.4, [B]), (1.0, [B])], {B: 1}), "stages: got .*; expected ends in ascending order"),
        (lambda: TierSchedule([(0.5, [B])], {B: 1}), "a last stage that ends at 1.0 or later"),
        (lambda: TierSchedule([(1.0, ["hard"])], {B: 1}), "tier: got 'hard'"),
        (lambda: TierSchedule([(1.0, [])], {B: 1}), "a list of tiers in every stage"),
        (lambda: TierSchedule([(1.0, [M])], {B: 1}), "weights: got .*a weight for 'medium'"),
        (lambda: TierSchedule(STAGES, {B: -1}), r"weights\['basic'\]: got -1; expected a number >= 0"),
        (lambda: TierSchedule(STAGES, {B: 0}), "at least one weight above 0"),
        (lambda: TierSchedule([(0.5, [B]), (1.0, [M])], {B: 0, M: 1}), "a weight above 0 in the stage until 0.5"),
        (lambda: TierSchedule(STAGES, {B: 1}).allowed(-0.1), "progress: got -0.1"),
        (lambda: TierSchedule(STAGES, {B: 1}).reward([B], [], 0), "passed: got 0 results"),
    ],
)
def test_bad_input(call, words) -> None:
    with pytest.raises(InputError, match=words):
        call()
