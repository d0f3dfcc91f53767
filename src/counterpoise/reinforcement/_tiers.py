"""Tests with tiers, and schedules that say which tiers pay when.

Rewards from unit tests are unbalanced: easy tests pass for every sample of a group (no advantage), hard ones for none (no gradient); how
they mix is an accident of the problem. With a tier on every test, the reward of a completion at training progress e is

.. math::
    R = \\sum_{t:\\; tier(t) \\in S(e)} w_{tier(t)}\\, \\mathbb 1[\\text{t passes}]
    \\qquad\\text{or, normalized,}\\qquad R \\Big/ \\sum_{t:\\; tier(t) \\in S(e)} w_{tier(t)}

Source: TAROT (arXiv 2602.15449); thresholds and weights of :data:`PORTFOLIO` are those of its released reward functions. They do not
normalize, so that the largest reward grows with the stage, from 0.15 to the sum of all weights.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from counterpoise._errors import bad_input, check_choice, check_range
from counterpoise.diagnostics._tier_signal import TIERS

__all__ = ["PORTFOLIO", "TierSchedule", "TieredCase", "TieredSuite"]

PAPER_NAMES = "The paper's 'intermediate' is 'medium' here, its 'complex' is 'high', as in its data."


@dataclass(frozen=True)
class TieredCase:
    """One test: what a program reads, what it must print, and how hard that is.

    Attributes
    ----------
    input, output : str
        Standard input, and the standard output that is expected.
    tier : {"basic", "medium", "high", "edge"} or None
        None, for a test that nobody has labeled: no schedule counts it.
    """

    input: str
    output: str
    tier: str | None = None

    def __post_init__(self) -> None:
        for name in ("input", "output"):
            if not isinstance(getattr(self, name), str):
                bad_input(name, getattr(self, name), "a string", "Tests compare text: write numbers as they would be printed.")
        if self.tier is not None:
            check_choice("tier", self.tier, TIERS, PAPER_NAMES)


@dataclass(frozen=True)
class TieredSuite:
    """The tests of one problem.

    Examples
    --------
    >>> suite = TieredSuite([TieredCase("1 2", "3", "basic"), TieredCase("-1 1", "0", "edge")])
    >>> len(suite), suite.tiers
    (2, ('basic', 'edge'))
    """

    tests: tuple[TieredCase, ...]

    def __init__(self, tests: Iterable[TieredCase]) -> None:
        kept = tuple(tests)
        if not kept:
            bad_input("tests", [], "at least one TieredCase", "A problem without tests cannot be rewarded: leave it out.")
        for test in kept:
            if not isinstance(test, TieredCase):
                bad_input("tests", test, "TieredCase objects", "TieredSuite.of reads dictionaries and JSON.")
        object.__setattr__(self, "tests", kept)

    def __len__(self) -> int:
        return len(self.tests)

    def __iter__(self) -> Iterator[TieredCase]:
        return iter(self.tests)

    @property
    def tiers(self) -> tuple[str, ...]:
        """The tiers that occur, in their order."""
        return tuple(tier for tier in TIERS if any(test.tier == tier for test in self.tests))

    @classmethod
    def of(cls, info: Any) -> TieredSuite:
        """A suite from what a data set holds: a suite, JSON, or a dictionary ``{"language": "python", "test_cases": [{"input": ...,
        "output": ..., "label": ...}, ...]}``; "tests" and "tier" are read like "test_cases" and "label".

        >>> TieredSuite.of('{"language": "python", "test_cases": [{"input": "1", "output": "1", "label": null}]}').tests[0].tier is None
        True
        """
        if isinstance(info, TieredSuite):
            return info
        if isinstance(info, str):
            try:
                info = json.loads(info)
            except ValueError:
                bad_input("verification_info", info, "JSON")
        if not isinstance(info, Mapping):
            bad_input("verification_info", info, "a TieredSuite, a dictionary or its JSON")
        language = info.get("language", "python")
        if language != "python":
            bad_input("language", language, "'python'", "Programs of one language are run: keep the other problems for another reward.")
        rows = info.get("test_cases", info.get("tests"))
        if not isinstance(rows, Sequence) or isinstance(rows, str):
            bad_input("verification_info", sorted(info), "a list under 'test_cases'")
        return cls(_case(row) for row in rows)


def _case(row: Any) -> TieredCase:
    if isinstance(row, TieredCase):
        return row
    if not isinstance(row, Mapping) or not {"input", "output"} <= set(row):
        bad_input("test_cases", row, "dictionaries with 'input', 'output' and 'label'")
    label = row.get("label", row.get("tier"))
    return TieredCase(row["input"], row["output"], label.strip() if isinstance(label, str) else label)


class TierSchedule:
    """Which tiers pay at which progress of the training, and how much.

    Parameters
    ----------
    stages : sequence of (until, tiers)
        The tiers that count while the progress is below ``until``, ascending; the last stage must reach 1.0 and goes on after its end.
        Progress is in epochs, or any share of the training.
    weights : mapping of tier to number
        What one passed test of a tier pays. The tiers of all stages must be there.
    normalize : bool, default=True
        Divide by what the allowed tests of the problem could pay, so that every stage has rewards in [0, 1]. The reference does not: its
        first stage pays at most 0.15 beside a format reward of 1.

    Attributes
    ----------
    end : float
        Where the last stage ends.

    Examples
    --------
    >>> forward = TierSchedule([(0.5, ["basic"]), (1.0, ["basic", "edge"])], {"basic": 1.0, "edge": 3.0})
    >>> forward.allowed(0.49), forward.allowed(0.5)
    (('basic',), ('basic', 'edge'))
    >>> forward.reward(["basic", "edge"], [True, False], 0.2), forward.reward(["basic", "edge"], [True, False], 0.8)
    (1.0, 0.25)
    """

    def __init__(self, stages: Sequence[tuple[float, Sequence[str]]], weights: Mapping[str, float], normalize: bool = True) -> None:
        if not stages:
            bad_input("stages", stages, "at least one (until, tiers)")
        ends = [until for until, _ in stages]
        for until in ends:
            check_range("until", until, low=0, open_low=True)
        if any(later <= earlier for earlier, later in itertools.pairwise(ends)):
            bad_input("stages", ends, "ends in ascending order")
        if ends[-1] < 1:
            bad_input("stages", ends, "a last stage that ends at 1.0 or later", "Progress runs from 0 to 1: say what counts until its end.")
        for tier, weight in weights.items():
            check_choice("weights", tier, TIERS, PAPER_NAMES)
            check_range(f"weights[{tier!r}]", weight, low=0)
        if not any(weights.values()):
            bad_input("weights", dict(weights), "at least one weight above 0")
        for until, tiers in stages:
            if isinstance(tiers, str) or not tiers:
                bad_input("stages", (until, tiers), "a list of tiers in every stage")
            for tier in tiers:
                check_choice("tier", tier, TIERS, PAPER_NAMES)
                if tier not in weights:
                    bad_input("weights", sorted(weights), f"a weight for {tier!r}, which counts until {until:g}")
            if not any(weights[tier] for tier in tiers):
                bad_input("weights", dict(weights), f"a weight above 0 in the stage until {until:g}")
        self.stages = tuple((float(until), tuple(tier for tier in TIERS if tier in tiers)) for until, tiers in stages)
        self.weights = MappingProxyType({tier: float(weights[tier]) for tier in TIERS if tier in weights})
        self.normalize = normalize

    @property
    def end(self) -> float:
        return self.stages[-1][0]

    def allowed(self, progress: float) -> tuple[str, ...]:
        """The tiers that count at this progress; beyond the end, those of the last stage."""
        check_range("progress", progress, low=0)
        return next((tiers for until, tiers in self.stages if progress < until), self.stages[-1][1])

    def reward(self, tiers: Sequence[str | None], passed: Sequence[bool], progress: float) -> float | None:
        """Reward of one completion from the tiers of its tests and whether they passed; None if no test counts at this progress."""
        if len(tiers) != len(passed):
            bad_input("passed", f"{len(passed)} results", f"one for each of {len(tiers)} tests")
        allowed = self.allowed(progress)
        counted = [(self.weights[tier], bool(ok)) for tier, ok in zip(tiers, passed, strict=True) if tier is not None and tier in allowed]
        most = math.fsum(weight for weight, _ in counted)
        if most == 0:
            return None
        reward = math.fsum(weight for weight, ok in counted if ok)
        return reward / most if self.normalize else reward

    def replaced(self, *, normalize: bool) -> TierSchedule:
        """The same stages and weights, normalized or not."""
        return TierSchedule(self.stages, self.weights, normalize)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TierSchedule) and self._content() == other._content()

    def __hash__(self) -> int:
        return hash(self._content())

    def _content(self) -> tuple[Any, ...]:
        return self.stages, tuple(self.weights.items()), self.normalize

    def __repr__(self) -> str:
        return f"TierSchedule({list(self.stages)}, {dict(self.weights)}, normalize={self.normalize})"

    def __reduce__(self) -> tuple[type[TierSchedule], tuple[Any, ...]]:
        return TierSchedule, (self.stages, dict(self.weights), self.normalize)


_FORWARD = (("basic",), ("basic", "medium"), ("basic", "medium", "high"), TIERS)
_HARD_FIRST = (("high",), ("high", "edge"), ("medium", "high", "edge"), TIERS)
_EQUAL, _EASY_PAYS, _HARD_PAYS = (0.25, 0.25, 0.25, 0.25), (0.35, 0.35, 0.15, 0.15), (0.15, 0.15, 0.35, 0.35)


def _staged(order: Sequence[tuple[str, ...]], weights: Sequence[float], epochs: int) -> TierSchedule:
    ends = (0.2, 0.4, 0.6, 1.0)
    # Rounded: three times 0.2 is not 0.6 in binary.
    stages = [(round(end * epochs, 10), tiers) for end, tiers in zip(ends, order, strict=True)]
    return TierSchedule(stages, dict(zip(TIERS, weights, strict=True)), normalize=False)


def _portfolio() -> Mapping[str, TierSchedule]:
    singles = {"basic_only": "basic", "complex_only": "high", "edge_only": "edge"}
    found = {name: TierSchedule([(1.0, [tier])], {tier: 1.0}, normalize=False) for name, tier in singles.items()}
    staged = {
        "uni": (_FORWARD, _EQUAL),
        "var": (_FORWARD, _EASY_PAYS),
        "var_asce_normal": (_FORWARD, _HARD_PAYS),
        "var_asce_rev": (_HARD_FIRST, _HARD_PAYS),
    }
    found |= {name: _staged(order, weights, 1) for name, (order, weights) in staged.items()}
    found |= {f"{name}_3e": _staged(order, weights, 3) for name, (order, weights) in staged.items()}
    return MappingProxyType(found)


PORTFOLIO: Mapping[str, TierSchedule] = _portfolio()
"""The schedules of the paper's code: three single tiers, three from easy to hard (``uni``, ``var``, ``var_asce_normal``), one from hard to
easy (``var_asce_rev``), and the last four stretched over three epochs (``..._3e``). None is normalized."""
