from __future__ import annotations

import json
import pickle

import pytest

from counterpoise._errors import InputError
from counterpoise.schedules import Cooldown, LinearTau, StepTau

INF = float("inf")


def test_a_cooldown_switches_once() -> None:
    schedule = Cooldown(total_steps=60_000)  # the paper's: 5, then 1 after half of the steps
    assert [schedule(step) for step in (0, 29_999, 30_000, 59_999, 10**9)] == [5.0, 5.0, 1.0, 1.0, 1.0]
    assert schedule.switch_step == 30_000


@pytest.mark.parametrize(
    ("switch", "total", "expected"),
    [(0.5, 7, 4), (0.0, 10, 0), (1.0, 10, 10), (1, None, 1), (1, 10, 1), (0, None, 0), (25, 10, 25)],
)
def test_a_float_is_a_share_and_an_integer_a_step(switch, total, expected) -> None:
    schedule = Cooldown(3.0, 2.0, switch=switch, total_steps=total)
    assert schedule.switch_step == expected
    assert [schedule(step) for step in range(30)] == [3.0] * expected + [2.0] * (30 - expected)


def test_a_line_is_straight_and_ends() -> None:
    schedule = LinearTau(5.0, 1.0, total_steps=8)
    assert [schedule(step) for step in range(10)] == [5.0, 4.5, 4.0, 3.5, 3.0, 2.5, 2.0, 1.5, 1.0, 1.0]
    rising = LinearTau(0.1, 0.3, total_steps=3)
    assert rising(0) == 0.1 and rising(3) == rising(100) == 0.3


def test_steps_hold_between_milestones() -> None:
    schedule = StepTau([1.0, INF, 5.0], [2, 4])
    assert [schedule(step) for step in range(6)] == [1.0, 1.0, INF, INF, 5.0, 5.0]
    assert StepTau([2.5], [])(7) == 2.5
    assert StepTau([1.0, 5.0], [0])(0) == 5.0


@pytest.mark.parametrize("schedule", [Cooldown(switch=3), LinearTau(total_steps=5), StepTau([1.0, 5.0], [4])], ids=repr)
def test_a_loop_says_the_step_and_resumes(schedule) -> None:
    for step in range(7):
        schedule.set_step(step)
        assert schedule() == schedule(step) and schedule.step == step
    state = json.loads(json.dumps(schedule.state_dict()))
    other = pickle.loads(pickle.dumps(schedule))
    other.set_step(0)
    other.load_state_dict(state)
    assert other.step == 6 and other() == schedule()
    assert schedule(1) == other(1), "a named step is that one, whatever was set"
    with pytest.raises(InputError, match=r"step: got -1; expected an integer >= 0"):
        schedule(-1)
    with pytest.raises(InputError, match=r"step: got 1\.5"):
        schedule.set_step(1.5)
    with pytest.raises(InputError, match=r"state: got \{\}; expected what state_dict\(\) gives: step"):
        schedule.load_state_dict({})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cooldown(), "total_steps: got None; expected the steps of the training, of which switch=0.5 is a share. Or give a step"),
        (lambda: Cooldown(tau_hi=0.0, switch=1), "tau_hi: got 0.0; expected a number > 0, or inf"),
        (lambda: Cooldown(tau_lo=float("nan"), switch=1), "tau_lo: got nan"),
        (lambda: Cooldown(switch=1.5, total_steps=10), r"switch: got 1.5; expected a number in \[0, 1\]"),
        (lambda: Cooldown(switch=-1), "switch: got -1; expected an integer >= 0"),
        (lambda: Cooldown(switch=True), "switch: got True"),
        (lambda: Cooldown(total_steps=0), "total_steps: got 0"),
        (lambda: LinearTau(), "total_steps: got None; expected the number of steps from the first temperature to the last"),
        (lambda: LinearTau(INF, total_steps=3), "tau_start: got inf; expected a finite number > 0"),
        (lambda: LinearTau(5.0, 0.0, total_steps=3), "tau_end: got 0.0"),
        (lambda: StepTau([1.0, 2.0], []), "milestones: got 0 steps for 2 temperatures; expected one step between each two of them"),
        (lambda: StepTau([1.0, 2.0, 3.0], [5, 5]), r"milestones: got \(5, 5\); expected increasing steps"),
        (lambda: StepTau([1.0, "2"], [5]), "taus: got '2'"),
        (lambda: StepTau([1.0, 2.0], [0.5]), "milestones: got 0.5"),
    ],
)
def test_bad_input_is_refused(make, message) -> None:
    with pytest.raises(InputError, match=message):
        make()
