from __future__ import annotations

import importlib.util
import json
import pickle
import re
from types import SimpleNamespace

import pytest

from counterpoise._errors import InputError
from counterpoise.reinforcement import PORTFOLIO, RunResult, TieredReward, TieredSuite

SUITE = TieredSuite.of(
    {
        "tests": [
            {"input": "1 2", "output": "3", "tier": "basic"},
            {"input": "2 2", "output": "4", "tier": "medium"},
            {"input": "9 9", "output": "18", "tier": "high"},
            {"input": "-1 0", "output": "-1", "tier": "edge"},
            {"input": "7 7", "output": "wrong on purpose", "label": None},
        ]
    }
)
RIGHT = "```python\nprint(sum(map(int, input().split())))\n```"
POSITIVE = "```python\na, b = map(int, input().split())\nprint(abs(a) + abs(b))\n```"
HANGS = "```python\na, b = map(int, input().split())\nwhile a == 2: pass\nprint(a + b)\n```"


class Remembering:
    """Stands where a sandbox stands, and adds; counts what it was asked."""

    def __init__(self) -> None:
        self.jobs: list[tuple[str, str]] = []

    def run_many(self, jobs, workers=None):
        self.jobs += jobs
        outputs = [str(sum(map(int, stdin.split()))) if "print" in code else "" for code, stdin in jobs]
        return [RunResult("ok", output, "", 0.01, 10.0, 0) for output in outputs]


def state(epoch: float | None = 0.0, step: int = 0) -> SimpleNamespace:
    return SimpleNamespace(epoch=epoch, global_step=step)


def test_completions_in_the_sandbox(sandbox) -> None:
    reward = TieredReward(PORTFOLIO["var_asce_normal"], sandbox)
    completions = [RIGHT, POSITIVE, HANGS, "no code", [{"role": "assistant", "content": RIGHT}], f"{POSITIVE}\nno:\n{RIGHT}"]
    late = reward(completions, [SUITE] * 6, state(0.9))
    # A time-out costs the test it happens in, and no other.
    assert late == pytest.approx([1.0, 0.65, 0.85, 0.0, 1.0, 1.0])
    assert reward(completions, [SUITE] * 6, state(0.3)) == pytest.approx([0.30, 0.30, 0.15, 0.0, 0.30, 0.30])
    assert reward.abstained == 0


def test_the_schedule_follows_the_state_of_the_trainer() -> None:
    for options, states in (
        ({}, [state(0.1), state(0.3), state(5.0)]),
        ({"epochs": 3}, [state(0.3), state(0.9), state(3.0)]),
        ({"total_steps": 100}, [state(9.0, 10), state(9.0, 30), state(0.0, 100)]),
    ):
        reward = TieredReward(PORTFOLIO["var_asce_rev"], Remembering(), **options)
        assert [reward([RIGHT], [SUITE], at)[0] for at in states] == pytest.approx([0.35, 0.70, 1.0])
    by_keyword = TieredReward(PORTFOLIO["var_asce_rev"], Remembering(), total_steps=100)
    assert by_keyword([RIGHT], [SUITE], global_step=30) == pytest.approx([0.70])
    assert TieredReward(PORTFOLIO["var_asce_rev"], Remembering())([RIGHT], [SUITE], state(None)) == pytest.approx([0.35])


@pytest.mark.parametrize(("epoch", "paid"), [(0.5999, 0.35), (0.6, 0.70), (1.2, 0.85), (1.8, 1.0)])
def test_a_stage_begins_in_the_step_that_reaches_it(epoch, paid) -> None:
    assert 0.6 / 3 < 0.2 and 1.2 / 3 < 0.4  # in binary
    stretched = TieredReward(PORTFOLIO["var_asce_rev"], Remembering(), epochs=3)
    published = TieredReward(PORTFOLIO["var_asce_rev_3e"], Remembering())
    assert [reward([RIGHT], [SUITE], state(epoch)) for reward in (stretched, published)] == [pytest.approx([paid])] * 2


def test_a_problem_without_a_test_that_counts_abstains() -> None:
    basic = TieredSuite.of({"tests": [{"input": "1 2", "output": "3", "tier": "basic"}]})
    sandbox = Remembering()
    reward = TieredReward(PORTFOLIO["var_asce_rev"], sandbox)
    assert reward([RIGHT, RIGHT, "none"], [basic, SUITE, basic], state(0.0)) == [None, pytest.approx(0.35), None]
    assert reward.abstained == 2 and len(sandbox.jobs) == 1  # what does not count is not run


def test_a_program_is_run_once_per_test() -> None:
    sandbox = Remembering()
    reward = TieredReward(PORTFOLIO["uni"], sandbox)
    assert reward([RIGHT] * 8, [SUITE] * 8, state(0.9)) == [1.0] * 8
    assert len(sandbox.jobs) == 4
    assert reward([RIGHT] * 8, [SUITE] * 8, state(0.3)) == [0.5] * 8
    assert len(sandbox.jobs) == 4
    assert len(SUITE) == 5  # and the tests are still there
    assert reward(["none"] * 2, [SUITE] * 2, state(0.9)) == [0.0, 0.0] and len(sandbox.jobs) == 4
    assert pickle.loads(pickle.dumps(reward))._known == {}


def test_an_output_that_is_too_long_or_an_exit_code_fails() -> None:
    class Broken(Remembering):
        def run_many(self, jobs, workers=None):
            ends = [("output", 0), ("error", 1), ("timeout", 137), ("ok", 0)]
            return [RunResult(*ends[i % 4][:1], "3", "", 0.1, 1.0, ends[i % 4][1]) for i in range(len(jobs))]

    basic = TieredSuite.of({"tests": [{"input": str(i), "output": "3", "tier": "basic"} for i in range(4)]})
    assert TieredReward(PORTFOLIO["uni"].replaced(normalize=True), Broken())([RIGHT], [basic], state()) == [0.25]


@pytest.mark.parametrize(("status", "runs"), [("timeout", 2), ("lost", 2), ("error", 1), ("memory", 1), ("output", 1)])
def test_what_a_busy_machine_may_be_to_blame_for_is_run_again(status, runs) -> None:
    class Hasty(Remembering):
        def run_many(self, jobs, workers=None):
            self.jobs += jobs
            return [RunResult(status if len(self.jobs) == 1 else "ok", "3", "", 0.1, 1.0, 0) for _ in jobs]

    sandbox = Hasty()
    basic = TieredSuite.of({"tests": [{"input": "1 2", "output": "3", "tier": "basic"}]})
    reward = TieredReward(PORTFOLIO["uni"].replaced(normalize=True), sandbox)
    assert [reward([RIGHT], [basic], state())[0] for _ in range(3)] == ([0.0, 1.0, 1.0] if runs == 2 else [0.0] * 3)
    assert len(sandbox.jobs) == runs


def test_shares_of_passed_tests_are_logged() -> None:
    logged = {}
    TieredReward(PORTFOLIO["uni"], Remembering())([RIGHT, "none"], [SUITE] * 2, state(0.3), log_metric=logged.__setitem__)
    assert logged == {"tiered_reward/passed/basic": 0.5, "tiered_reward/passed/medium": 0.5}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: TieredReward("uni", Remembering()), "schedule: got 'uni'; expected a TierSchedule"),
        (lambda: TieredReward(PORTFOLIO["uni"], None), "sandbox: got None"),
        (lambda: TieredReward(PORTFOLIO["uni"], Remembering(), total_steps=0), "total_steps"),
        (lambda: TieredReward(PORTFOLIO["uni"], Remembering(), 10, 1), "either total_steps or epochs"),
        (lambda: TieredReward(PORTFOLIO["uni"], Remembering(), epochs=0), "epochs"),
        (lambda: TieredReward(PORTFOLIO["uni"], Remembering())([RIGHT], [SUITE]), "trainer_state: got None; expected the trainer's state"),
        (lambda: TieredReward(PORTFOLIO["uni"], Remembering(), 10)([RIGHT], [SUITE]), "or global_step"),
        (lambda: TieredReward(PORTFOLIO["uni"], Remembering())([RIGHT], None, state()), "verification_info: got None"),
        (lambda: TieredReward(PORTFOLIO["uni"], Remembering())([RIGHT], [SUITE] * 2, state()), "each of 1 completions"),
        (
            lambda: TieredReward(PORTFOLIO["uni"], Remembering())([RIGHT] * 2, [SUITE, {"language": "c", "tests": []}], state()),
            "language: got 'c'",
        ),
    ],
)
def test_bad_input(call, words) -> None:
    with pytest.raises(InputError, match=words):
        call()


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs the extra trl")
def test_a_trainer_of_trl_is_rewarded_by_the_schedule(sandbox, tmp_path) -> None:
    """A policy of characters writes the number that a program prints; the stage is read from the trainer as it goes."""
    import torch
    from trl import GRPOConfig, GRPOTrainer

    from datasets import Dataset

    from .tiny import model, tokenizer

    tests = {"tests": [{"input": "", "output": "1", "tier": "basic"}, {"input": "", "output": "2", "tier": "high"}]}
    data = Dataset.from_dict({"prompt": ["1+0="] * 32, "verification_info": [json.dumps(tests)] * 32})
    schedule = PORTFOLIO["var_asce_rev"].replaced(normalize=True)
    tiered = TieredReward(schedule, sandbox, total_steps=4)
    seen: list[tuple[int, list[float | None]]] = []

    def written_out(completions, trainer_state=None, **kw):
        digits = [re.sub(r"<\w+>", "", text)[:1] for text in completions]
        programs = [f"```python\nprint('{digit}')\n```" for digit in digits]
        rewards = tiered(programs, trainer_state=trainer_state, **kw)
        expected = {"1": "basic", "2": "high"}
        for digit, reward in zip(digits, rewards, strict=True):
            allowed = [tier for tier in schedule.allowed(trainer_state.global_step / 4) if tier in ("basic", "high")]
            weights = {tier: schedule.weights[tier] for tier in allowed}
            assert reward == pytest.approx(weights.get(expected.get(digit, ""), 0.0) / sum(weights.values()))
        seen.append((trainer_state.global_step, rewards))
        return rewards

    torch.manual_seed(0)
    settings = {
        "max_steps": 4, "per_device_train_batch_size": 8, "num_generations": 8, "max_completion_length": 2, "learning_rate": 1e-3,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True, "bf16": False,
        "dataloader_pin_memory": False, "gradient_checkpointing": None, "log_level": "error",
    }  # fmt: skip
    trainer = GRPOTrainer(
        model=model(),
        reward_funcs=written_out,
        args=GRPOConfig(str(tmp_path), **settings),
        train_dataset=data,
        processing_class=tokenizer(),
    )
    trainer.train()
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert any(row.get("tiered_reward/passed/high") is not None for row in trainer.state.log_history)
