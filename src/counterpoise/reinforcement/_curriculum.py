"""Which schedule for which policy, and tiers for tests that have none.

The paper says that its curriculum adapts to the capability of the policy; its released code has no rule for it. Two readings are here: a
rule on a measured profile, and a choice by trial. The thresholds of the rule (0.5, 0.7) are ours. The re-test in this package finds the
interaction behind it on a toy - easy-to-hard is better for a weak policy, hard-first for a strong one - and also that paying for all tiers
at once, or for one hard tier alone, does as well. A trial of every candidate on a tenth of the budget needs no rule.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._errors import bad_input, check_range
from counterpoise._stats import mean_interval
from counterpoise.diagnostics._tier_signal import TIERS

from ._outputs import code_of
from ._sandbox import IsolationError, Sandbox
from ._tiered_reward import Verdict, run_tests
from ._tiers import TieredSuite

if TYPE_CHECKING:
    import polars as pl

__all__ = ["CapabilityProbe", "Profile", "select_curriculum", "tier_by_difficulty"]

FloatArray = npt.NDArray[np.float64]

LOST_MOST = 0.05  # share of runs
FORWARD, HARD_FIRST, UNIFORM = "var_asce_normal", "var_asce_rev", "uni"


@dataclass(frozen=True, eq=False)
class Profile:
    """What a policy can do, tier by tier.

    Attributes
    ----------
    pass_rate : ndarray, shape (4,)
        Mean over problems of the share of their tests of a tier that samples of the policy pass; NaN for a tier without tests.
    ci : ndarray, shape (4, 2)
        95 % interval of that mean, from the spread over problems, within [0, 1]; of one problem, all of [0, 1].
    problems : tuple of 4 int
        Problems with tests of each tier.
    lost : int
        Tests of samples that are left out, since the sandbox went away under them: no evidence for or against the policy.
    """

    pass_rate: FloatArray
    ci: FloatArray
    problems: tuple[int, ...]
    lost: int = 0

    def to_frame(self) -> pl.DataFrame:
        """One row per tier: ``tier, pass_rate, low, high, problems``."""
        import polars as pl

        columns = {"tier": TIERS, "pass_rate": self.pass_rate, "low": self.ci[:, 0], "high": self.ci[:, 1], "problems": self.problems}
        return pl.DataFrame(columns)

    def summary(self) -> str:
        """One line."""
        parts = [
            f"{tier} {rate:.2f} ({low:.2f} to {high:.2f})" for tier, rate, (low, high) in zip(TIERS, self.pass_rate, self.ci, strict=True)
        ]
        said = "passes " + ", ".join(part for part, count in zip(parts, self.problems, strict=True) if count)
        return said + (f"; {self.lost} lost with their sandbox" if self.lost else "")


class CapabilityProbe:
    """Measures the pass rate per tier of a policy before training.

    Parameters
    ----------
    k : int, default=8
        Samples per problem.
    sandbox : Sandbox, optional
        Where the programs run; by default one that is made for the probe.
    tolerance : float, default=0.0
        See :class:`TieredReward`.

    Raises
    ------
    IsolationError
        If more than one in twenty of the runs were lost with their sandbox.

    Notes
    -----
    Identical samples count as often as they were drawn, and are run once. A program that runs out of time is run once more, alone, after
    the others: what was a busy machine passes then, what loops fails. That costs the sandbox's ``timeout`` for each program and test that
    does.

    Examples
    --------
    >>> probe = CapabilityProbe(k=2)
    >>> suites = [TieredSuite.of({"tests": [{"input": "3", "output": "4", "tier": "basic"}]})]
    >>> profile = probe.profile(lambda i, k: ["```python\\nprint(int(input()) + 1)\\n```"] * k, suites)  # doctest: +SKIP
    """

    def __init__(self, k: int = 8, sandbox: Sandbox | None = None, *, tolerance: float = 0.0) -> None:
        check_range("k", k, low=1, integer=True)
        check_range("tolerance", tolerance, low=0)
        self.k, self.sandbox, self.tolerance = k, sandbox, tolerance

    def profile(self, policy: Callable[[int, int], Sequence[Any]], suites: Sequence[Any]) -> Profile:
        """Run ``policy(i, k) -> k completions`` for every problem i and its tests, what :meth:`TieredSuite.of` reads."""
        read = [TieredSuite.of(suite) for suite in suites]
        if not read:
            bad_input("suites", "none", "the tests of at least one problem")
        wanted: list[tuple[str | None, str, str]] = []
        places: list[tuple[int, int]] = []
        for i, suite in enumerate(read):
            completions = list(policy(i, self.k))
            if len(completions) != self.k:
                bad_input("policy", f"{len(completions)} completions of problem {i}", f"k={self.k}")
            for completion in completions:
                code = code_of(completion)
                for test in suite:
                    if test.tier is not None:
                        wanted.append((code, test.input, test.output))
                        places.append((i, TIERS.index(test.tier)))
        if not wanted:
            bad_input("suites", "no test with a tier", "tests with tiers", "tier_by_difficulty finds them from pass rates.")
        verdicts = self._verdicts(wanted)
        known = [verdict.status != "lost" for verdict in verdicts]
        counts, hits = np.zeros((len(read), len(TIERS))), np.zeros((len(read), len(TIERS)))
        np.add.at(counts, tuple(np.transpose(places)), known)
        np.add.at(hits, tuple(np.transpose(places)), [verdict.passed for verdict in verdicts])
        shares = np.where(counts > 0, hits / np.maximum(counts, 1), np.nan)
        found = [_mean(shares[counts[:, t] > 0, t]) for t in range(len(TIERS))]
        return Profile(
            np.array([mean for mean, _ in found]),
            np.array([ci for _, ci in found]),
            tuple(int(n) for n in (counts > 0).sum(axis=0)),
            known.count(False),
        )

    def _verdicts(self, wanted: Sequence[tuple[str | None, str, str]]) -> list[Verdict]:
        different = list({(code, given, output): None for code, given, output in wanted if code is not None})
        with contextlib.nullcontext(self.sandbox) if self.sandbox is not None else Sandbox() as sandbox:
            verdicts = dict(zip(different, run_tests(sandbox, different, self.tolerance, None), strict=True))
            slow = [test for test, verdict in verdicts.items() if verdict.status == "timeout"]
            verdicts.update(zip(slow, run_tests(sandbox, slow, self.tolerance, 1), strict=True))
        lost = sum(verdict.status == "lost" for verdict in verdicts.values())
        if lost > LOST_MOST * len(different):
            raise IsolationError(
                f"The sandbox was lost under {lost} of {len(different)} runs, so they say nothing about the policy. Is the machine short "
                "of memory? Sandbox(memory_mb=...) bounds what one program may take."
            )
        no_program = Verdict(False, "error")
        return [no_program if code is None else verdicts[code, given, output] for code, given, output in wanted]


def _mean(shares: FloatArray) -> tuple[float, tuple[float, float]]:
    if not len(shares):
        return np.nan, (np.nan, np.nan)
    mean, low, high = mean_interval(shares)
    return mean, (float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1)))


def select_curriculum(evidence: Profile | Mapping[str, Any], *, tau_low: float = 0.5, tau_high: float = 0.7) -> str:
    """Name of the schedule to train with.

    Parameters
    ----------
    evidence : Profile, or mapping of name to pass rate(s)
        *Trials* (recommended): each candidate's pass rate on held-out problems, tests of all tiers, after a share of the budget from one
        checkpoint; one number, or one per problem or seed, whose mean counts. The best one is chosen, the first of equals. Halve the
        candidates and double the budget until one is left, if they are many.

        *A profile* of the starting policy: with m the mean of its pass rates on "basic" and "medium", "var_asce_normal" (easy to hard) if
        m < ``tau_low``, "var_asce_rev" (hard first) if m >= ``tau_high``, else "uni".
    tau_low, tau_high : float
        Thresholds of that rule: our reading, no measured optimum.

    Examples
    --------
    >>> select_curriculum({"uni": [0.31, 0.35], "var_asce_rev": [0.39, 0.37]})
    'var_asce_rev'
    """
    check_range("tau_low", tau_low, low=0, high=1)
    check_range("tau_high", tau_high, low=tau_low, high=1)
    if isinstance(evidence, Profile):
        known = evidence.pass_rate[:2][~np.isnan(evidence.pass_rate[:2])]
        if not len(known):
            bad_input("profile", "no pass rate of basic or medium tests", "problems with tests of these tiers")
        level = float(known.mean())
        return FORWARD if level < tau_low else HARD_FIRST if level >= tau_high else UNIFORM
    if not isinstance(evidence, Mapping) or not evidence:
        bad_input("evidence", evidence, "a Profile, or a dictionary of name to pass rates")
    means = {}
    for name, rates in evidence.items():
        values = np.atleast_1d(np.asarray(rates, dtype=np.float64))
        if not values.size or not ((values >= 0) & (values <= 1)).all():
            bad_input(f"trials[{name!r}]", rates, "pass rates in [0, 1]")
        means[str(name)] = float(values.mean())
    return max(means, key=means.__getitem__)


def tier_by_difficulty(pass_matrix: npt.ArrayLike, quantiles: Sequence[float] = (0.25, 0.5, 0.75)) -> list[str | None]:
    """Tiers for tests from how many programs pass them, so that no model is needed to write or label tests.

    Parameters
    ----------
    pass_matrix : array, shape (tests, programs)
        Whether, or how often, each of several reference solutions, attempts or policies passed each test; NaN where it was not tried.
    quantiles : three numbers, default=(0.25, 0.5, 0.75)
        Shares of the tests, from the easiest on, at which the next tier begins.

    Returns
    -------
    list of str or None
        The tier of each test: the easiest quarter is "basic", the hardest "edge". Tests with the same rate get the same tier, that of their
        middle. None for a test that no program passed: it says as little as a wrong one.

    Examples
    --------
    >>> tier_by_difficulty([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]])
    ['basic', 'high', 'edge', None, 'basic']
    """
    matrix = np.asarray(pass_matrix, dtype=np.float64)
    if matrix.ndim != 2 or 0 in matrix.shape:
        bad_input("pass_matrix", f"shape {matrix.shape}", "shape (tests, programs)")
    if np.nanmin(matrix, initial=0) < 0 or np.nanmax(matrix, initial=0) > 1:
        bad_input("pass_matrix", "values outside", "True and False, or rates in [0, 1]; NaN where a test was not run")
    untried = np.isnan(matrix).all(axis=1)
    if untried.any():
        bad_input("pass_matrix", f"test {int(untried.argmax())} was never run", "at least one program for every test")
    ends = np.asarray(quantiles, dtype=np.float64)
    if ends.shape != (3,) or not (np.diff(np.concatenate([[0.0], ends, [1.0]])) > 0).all():
        bad_input("quantiles", quantiles, "three ascending numbers between 0 and 1")
    rate = np.nanmean(matrix, axis=1)
    passed = rate > 0
    tiers: list[str | None] = [None] * len(rate)
    for test, place in zip(np.flatnonzero(passed), _middle_ranks(-rate[passed]), strict=True):
        tiers[test] = TIERS[int(np.searchsorted(ends, place))]
    return tiers


def _middle_ranks(values: FloatArray) -> FloatArray:
    """Rank of each value in (0, 1), equal values sharing the middle of theirs."""
    ordered = np.sort(values)
    return (np.searchsorted(ordered, values) + np.searchsorted(ordered, values, side="right")) / (2 * len(values))
