"""A reward function for TRL that pays for passed tests of the tiers that count now.

It differs from the released one where that one can be fooled or goes silent: outputs of another length are wrong (``zip`` stops at the
shorter one), a time-out costs the test it happens in and no other, a broken sandbox raises instead of paying 0 to all, tests are read and
not thrown away, and a problem without a test that counts abstains instead of being paid 0.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from counterpoise._errors import bad_input, check_range

from ._outputs import code_of, same_output
from ._sandbox import Sandbox, Status
from ._tiers import TieredSuite, TierSchedule

__all__ = ["TieredReward", "Verdict", "run_tests"]

DIGITS = 10  # of a progress: a third of epoch 0.6 is a little below 0.2 in binary, and a stage that begins there must have begun
KNOWN_MOST = 100_000  # verdicts remembered: one of a few bytes for each pair of program and test
ACCIDENTS = ("timeout", "lost")  # ends of a run that a busy machine may be to blame for, and not the program


class TieredReward:
    """Reward of GRPO and its relatives from tests in tiers, on a schedule.

    Pass it to ``trl.GRPOTrainer(reward_funcs=...)`` with a column "verification_info" in the data set (what :meth:`TieredSuite.of` reads).
    The schedule is a function of the trainer's state, so all ranks and resumed runs agree on it.

    Parameters
    ----------
    schedule : TierSchedule
        Its progress is the trainer's epoch, unless one of the next two is given.
    sandbox : Sandbox
        Where the programs run.
    total_steps : int, optional
        Progress is the trainer's step over this number.
    epochs : float, optional
        Progress is the trainer's epoch over this number, to stretch a schedule over several.
    tolerance : float, default=0.0
        For numbers with a point, see the guide; 0 compares text.
    workers : int, optional
        Programs at a time; by default as many as this process has cores.

    Attributes
    ----------
    abstained : int
        Completions whose problem had no test that counted at the time. They got None: TRL leaves a row out of its group's baseline
        (advantage 0) if *every* reward function returned None; beside a format reward it counts with that alone.

    Raises
    ------
    InputError
        If both ``total_steps`` and ``epochs`` are given; when called, without "verification_info" for every completion, with a language
        other than Python, or without what the progress is read from.

    Notes
    -----
    A completion without a complete block of code gets 0; of several blocks the last one counts. A pair of program and test is run once in
    the training; one that ended by a time-out, or with the sandbox, failed in this step alone and is run again when it comes back.

    With advantages over the standard deviation of a group (TRL's default), a group that differs in a cheap tier alone gets advantages as
    large as any: weights act within groups only, unless ``scale_rewards=False``.

    Examples
    --------
    >>> from counterpoise.reinforcement import PORTFOLIO, Sandbox, TieredReward
    >>> reward = TieredReward(PORTFOLIO["uni"], Sandbox(), epochs=1)  # doctest: +SKIP
    >>> trainer = trl.GRPOTrainer(model, reward_funcs=[format_reward, reward], train_dataset=problems)  # doctest: +SKIP
    """

    def __init__(
        self,
        schedule: TierSchedule,
        sandbox: Sandbox,
        total_steps: int | None = None,
        epochs: float | None = None,
        *,
        tolerance: float = 0.0,
        workers: int | None = None,
    ) -> None:
        if not isinstance(schedule, TierSchedule):
            bad_input("schedule", schedule, "a TierSchedule", "PORTFOLIO has those of the paper.")
        if not callable(getattr(sandbox, "run_many", None)):
            bad_input("sandbox", sandbox, "a Sandbox")
        if total_steps is not None and epochs is not None:
            bad_input("epochs", epochs, "either total_steps or epochs")
        if total_steps is not None:
            check_range("total_steps", total_steps, low=1, integer=True)
        if epochs is not None:
            check_range("epochs", epochs, low=0, open_low=True)
        check_range("tolerance", tolerance, low=0)
        self.schedule, self.sandbox, self.total_steps, self.epochs = schedule, sandbox, total_steps, epochs
        self.tolerance, self.workers = tolerance, workers
        self.abstained = 0
        self.__name__ = "tiered_reward"  # TRL logs it by this name
        self._known: OrderedDict[bytes, bool] = OrderedDict()

    def __call__(
        self, completions: Sequence[Any], verification_info: Sequence[Any] | None = None, trainer_state: Any = None, **kw: Any
    ) -> list[float | None]:
        """Rewards of the completions, in their order."""
        if verification_info is None or len(verification_info) != len(completions):
            count = None if verification_info is None else len(verification_info)
            bad_input("verification_info", count, f"the tests of each of {len(completions)} completions, a column of the data set")
        progress = self._progress(trainer_state, kw)
        suites = [TieredSuite.of(info) for info in verification_info]
        allowed = self.schedule.allowed(progress)
        counted = [[test for test in suite if test.tier in allowed] for suite in suites]
        codes = [code_of(completion) for completion in completions]
        passed = self._passed([(code, test.input, test.output) for code, tests in zip(codes, counted, strict=True) for test in tests])
        rewards: list[float | None] = []
        results = iter(passed)
        by_tier: dict[str, list[bool]] = {}
        for tests in counted:
            ok = [next(results) for _ in tests]
            for test, one in zip(tests, ok, strict=True):
                by_tier.setdefault(str(test.tier), []).append(one)
            rewards.append(self.schedule.reward([test.tier for test in tests], ok, progress))
        self.abstained += sum(reward is None for reward in rewards)
        log: Callable[[str, float], None] | None = kw.get("log_metric")
        if log is not None:
            for tier, oks in by_tier.items():
                log(f"tiered_reward/passed/{tier}", sum(oks) / len(oks))
        return rewards

    def _progress(self, state: Any, kw: dict[str, Any]) -> float:
        if self.total_steps is not None:
            step = getattr(state, "global_step", None) if state is not None else kw.get("global_step")
            if step is None:
                bad_input("trainer_state", state, "the trainer's state, or global_step=...", "TRL passes it to every reward function.")
            return round(float(step) / self.total_steps, DIGITS)
        if state is None:
            bad_input("trainer_state", state, "the trainer's state", "TRL passes it; elsewhere give total_steps= and pass global_step=...")
        epoch = state.epoch
        if epoch is None:  # before the first step
            epoch = 0.0
        return round(float(epoch) / (self.epochs or 1.0), DIGITS)

    def _passed(self, wanted: Sequence[tuple[str | None, str, str]]) -> list[bool]:
        """Whether each program passes its test; each pair is run once, and once more in a later step if it ended by accident."""
        keys = [_key(*one) for one in wanted]
        new = {
            key: (code, given, output)
            for key, (code, given, output) in zip(keys, wanted, strict=True)
            if key not in self._known and code is not None
        }
        verdicts = dict(zip(new, run_tests(self.sandbox, list(new.values()), self.tolerance, self.workers), strict=True))
        passed = [
            code is not None and (verdicts[key].passed if key in verdicts else self._known[key])
            for key, (code, _, _) in zip(keys, wanted, strict=True)
        ]
        self._known.update((key, verdict.passed) for key, verdict in verdicts.items() if verdict.lasting)
        while len(self._known) > KNOWN_MOST:
            self._known.popitem(last=False)
        return passed

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_known": OrderedDict()}


class Verdict(NamedTuple):
    """Whether a program passed a test, and how its run ended."""

    passed: bool
    status: Status

    @property
    def lasting(self) -> bool:
        """Whether another run would say the same."""
        return self.status not in ACCIDENTS


def run_tests(sandbox: Sandbox, tests: Sequence[tuple[str, str, str]], tolerance: float, workers: int | None) -> list[Verdict]:
    """Verdict on each ``(code, input, output)``."""
    results = sandbox.run_many([(code, given) for code, given, _ in tests], workers) if tests else []
    return [
        Verdict(result.ok and same_output(result.stdout, output, tolerance), result.status)
        for result, (_, _, output) in zip(results, tests, strict=True)
    ]


def _key(code: str | None, given: str, output: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for text in (code or "", given, output):
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()
