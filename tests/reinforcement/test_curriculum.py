from __future__ import annotations

import numpy as np
import pytest

from counterpoise._errors import InputError
from counterpoise.reinforcement import (
    CapabilityProbe,
    IsolationError,
    Profile,
    RunResult,
    TieredSuite,
    select_curriculum,
    tier_by_difficulty,
)
from counterpoise.reinforcement import _curriculum as module
from counterpoise.reinforcement._tiered_reward import Verdict


def profile(*rates: float) -> Profile:
    return Profile(np.array(rates), np.zeros((4, 2)), (1, 1, 1, 1))


@pytest.mark.parametrize(
    ("rates", "name"),
    [
        ((0.6, 0.3, 0, 0), "var_asce_normal"),
        ((0.6, 0.4, 0, 0), "uni"),
        ((0.8, 0.6, 0, 0), "var_asce_rev"),
        ((0.9, np.nan, 0, 0), "var_asce_rev"),
    ],
)
def test_the_rule_on_profiles(rates, name) -> None:
    assert select_curriculum(profile(*rates)) == name


def test_trials_decide_by_their_mean_and_the_first_of_equals() -> None:
    assert select_curriculum({"uni": 0.3, "edge_only": [0.2, 0.5], "var": np.array([0.35])}) == "edge_only"
    assert select_curriculum({"b": 0.3, "a": 0.3}) == "b"


SUITES = [
    TieredSuite.of({"tests": [{"input": "3", "output": "4", "tier": "basic"}, {"input": "-3", "output": "4", "tier": "edge"}]}),
    TieredSuite.of({"tests": [{"input": "0", "output": "1", "tier": "basic"}, {"input": "5", "output": "5", "label": None}]}),
]


def test_a_profile_by_hand(sandbox) -> None:
    asked = []

    def policy(problem: int, k: int) -> list[str]:
        asked.append((problem, k))
        return ["```python\nprint(abs(int(input())) + 1)\n```", "no idea"][:k] if problem == 0 else ["```python\nprint(1)\n```"] * k

    found = CapabilityProbe(k=2, sandbox=sandbox).profile(policy, SUITES)
    assert asked == [(0, 2), (1, 2)]
    np.testing.assert_allclose(found.pass_rate, [0.75, np.nan, np.nan, 0.5])  # basic: (1/2 + 2/2) / 2
    assert found.problems == (2, 0, 0, 1)
    np.testing.assert_allclose(found.ci[[0, 3]], [[0, 1], [0, 1]])  # two problems, one problem: nothing is known
    assert found.summary() == "passes basic 0.75 (0.00 to 1.00), edge 0.50 (0.00 to 1.00)"
    assert found.to_frame().columns == ["tier", "pass_rate", "low", "high", "problems"]


def test_many_problems_have_a_narrow_interval(monkeypatch) -> None:
    monkeypatch.setattr(module, "run_tests", lambda sandbox, tests, *_: [Verdict(int(given) % 4 > 0, "ok") for _, given, _ in tests])
    suites = [TieredSuite.of({"tests": [{"input": str(i), "output": "", "tier": "high"}]}) for i in range(400)]
    found = CapabilityProbe(k=1, sandbox=object()).profile(lambda i, k: ["```python\n\n```"], suites)
    assert found.pass_rate[2] == 0.75
    np.testing.assert_allclose(found.ci[2], 0.75 + np.array([-1, 1]) * 1.966 * np.sqrt(0.1875 / 399), atol=1e-4)


def program(text: str) -> str:
    return f"```python\n{text}\n```"


class Scripted:
    """Stands for a sandbox: statuses of each program by name, one for each run of it."""

    def __init__(self, **statuses: list[str]) -> None:
        self.statuses, self.batches = statuses, []

    def run_many(self, jobs, workers):
        self.batches.append(([code.strip() for code, _ in jobs], workers))
        statuses = [self.statuses[code.strip()].pop(0) for code, _ in jobs]
        return [RunResult(status, "1" if status == "ok" else "", "", 0.1, 10.0, 0) for status in statuses]


ONE_TEST = [TieredSuite.of({"tests": [{"input": "", "output": "1", "tier": "basic"}]})]


def test_identical_samples_are_run_once_and_count_as_often_as_they_were_drawn() -> None:
    scripted = Scripted(right=["ok"], wrong=["error"])
    samples = [program("right")] * 3 + [program("wrong"), "no program"]
    found = CapabilityProbe(k=5, sandbox=scripted).profile(lambda i, k: samples, ONE_TEST)
    assert scripted.batches[0] == (["right", "wrong"], None)
    assert found.pass_rate[0] == 0.6 and found.lost == 0


def test_a_time_out_fails_only_if_it_comes_back_when_the_program_runs_alone() -> None:
    scripted = Scripted(slow=["timeout", "ok"], endless=["timeout", "timeout"], right=["ok"])
    samples = [program("slow"), program("endless"), program("right"), program("endless")]
    found = CapabilityProbe(k=4, sandbox=scripted).profile(lambda i, k: samples, ONE_TEST)
    assert scripted.batches == [(["slow", "endless", "right"], None), (["slow", "endless"], 1)]
    assert found.pass_rate[0] == 0.5


def test_a_lost_program_is_no_evidence_and_many_are_an_error() -> None:
    names = [f"p{i}" for i in range(40)]
    scripted = Scripted(**{name: ["lost"] if i < 2 else ["ok" if i % 2 else "error"] for i, name in enumerate(names)})
    found = CapabilityProbe(k=40, sandbox=scripted).profile(lambda i, k: [program(name) for name in names], ONE_TEST)
    assert found.pass_rate[0] == 0.5 and found.lost == 2
    assert found.summary().endswith("; 2 lost with their sandbox")
    scripted = Scripted(**{name: ["lost"] if i < 3 else ["ok"] for i, name in enumerate(names)})
    with pytest.raises(IsolationError, match="lost under 3 of 40 runs"):
        CapabilityProbe(k=40, sandbox=scripted).profile(lambda i, k: [program(name) for name in names], ONE_TEST)


def test_tiers_are_quarters_of_the_pass_rates() -> None:
    rates = np.linspace(1.0, 0.1, 8)[:, None]
    assert tier_by_difficulty(rates) == ["basic"] * 2 + ["medium"] * 2 + ["high"] * 2 + ["edge"] * 2
    shuffled = np.random.default_rng(0).permutation(8)
    assert tier_by_difficulty(rates[shuffled]) == [tier_by_difficulty(rates)[i] for i in shuffled]
    assert tier_by_difficulty(rates, (0.5, 0.75, 0.9)) == ["basic"] * 4 + ["medium"] * 2 + ["high"] + ["edge"]


def test_equal_rates_have_one_tier_and_a_test_that_none_passes_has_none() -> None:
    assert set(tier_by_difficulty(np.ones((5, 3)))) == {"medium"}
    assert tier_by_difficulty([[1, 0], [0, 0], [np.nan, 1]]) == ["high", None, "basic"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: select_curriculum({}), "evidence"),
        (lambda: select_curriculum({"uni": [1.2]}), r"trials\['uni'\]"),
        (lambda: select_curriculum({"uni": []}), r"trials\['uni'\]"),
        (lambda: select_curriculum(profile(np.nan, np.nan, 1, 1)), "no pass rate of basic or medium"),
        (lambda: select_curriculum(profile(1, 1, 1, 1), tau_low=0.8, tau_high=0.7), "tau_high"),
        (lambda: CapabilityProbe(k=0), "k: got 0"),
        (lambda: CapabilityProbe(k=2, sandbox=object()).profile(lambda i, k: [], SUITES), "policy: got 0 completions of problem 0"),
        (lambda: CapabilityProbe(sandbox=object()).profile(lambda i, k: [], []), "suites"),
        (
            lambda: CapabilityProbe(k=1, sandbox=object()).profile(lambda i, k: [""], [{"tests": [{"input": "", "output": ""}]}]),
            "with a tier",
        ),
        (lambda: tier_by_difficulty([1, 0]), "pass_matrix: got shape"),
        (lambda: tier_by_difficulty([[2.0]]), "rates in"),
        (lambda: tier_by_difficulty([[1.0], [np.nan]]), "test 1 was never run"),
        (lambda: tier_by_difficulty([[1.0]], (0.5, 0.5, 0.7)), "quantiles"),
    ],
)
def test_bad_input(call, words) -> None:
    with pytest.raises(InputError, match=words):
        call()
