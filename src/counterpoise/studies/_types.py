"""The words the parts of a study share: the protocol, an arm, a cell and its result, and what is told to whoever watches.

A *cell* is one (arm, repeat, fold). Everything that changes a cell's numbers is in the data, the :class:`Protocol` or the arm, and so in
the cell's key; what only changes how fast it is computed (jobs, engine, folder) is not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Arm", "CellId", "CellResult", "Plan", "Protocol", "Watcher", "digest", "installed_versions"]

# CellId.drop of an ordinary cell. g >= 0: row group g is deleted entirely (jackknife). -k, k > 1: fitted on one of k parts of the training
# rows (learning curve), of which an ordinary cell takes one of one.
NO_DROP = -1


def digest(*parts: Any) -> str:
    """A stable 32-digit hash of JSON-able parts."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Protocol:
    """What every arm is put through alike.

    ``metric`` is the decision metric the thresholds maximise (``balanced_accuracy``, ``f1``, ``accuracy`` or ``cost``; for regression
    ``mae``), ``primary`` the question that recommends (``decisions``, ``ranking``, ``probabilities``; for regression ``error``).
    """

    task: str  # binary | multiclass | regression
    folds: int = 5
    repeats: int = 5
    inner_folds: int = 3
    trials: int = 1
    seed: int = 0
    metric: str = "balanced_accuracy"
    primary: str = "decisions"
    cost: Mapping[str, float] | None = None  # {"fp": 1.0, "fn": 20.0}
    split: str = "stratified"  # stratified | clusters | time
    holdout: float = 0.0  # share of rows locked away; 0 = none
    fixed_test: bool = False  # the hold-out is a file of its own
    jackknife: int = 0  # row groups deleted in turn (regression tails); 0 = none
    rope: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def hash(self) -> str:
        """Hash of what changes a cell's numbers: not the number of repeats, not the tolerances of the verdicts."""
        content = self.to_dict()
        for name in ("repeats", "rope", "primary", "jackknife"):
            del content[name]
        return digest(content)


@dataclass(frozen=True)
class Arm:
    """A remedy with a learner. ``hash`` covers the names, the search space and the version of the code behind them."""

    learner: str
    remedy: str
    stage: str = ""
    space: str = "{}"  # JSON of the joint search space
    code_version: str = "1"

    @property
    def name(self) -> str:
        return f"{self.learner}/{self.remedy}"

    @property
    def hash(self) -> str:
        return digest(self.learner, self.remedy, self.space, self.code_version)


@dataclass(frozen=True, order=True)
class CellId:
    """Ordering by (drop, repeat, fold, ...) is the order of work: every finished repeat is a complete table."""

    drop: int
    repeat: int
    fold: int
    arm: str  # Arm.hash

    def key(self, data_hash: str, protocol_hash: str) -> str:
        return digest(data_hash, protocol_hash, self.arm, self.repeat, self.fold, self.drop)


@dataclass
class CellResult:
    """What one cell leaves behind. ``scores`` are in test-index order: (n_test,) log-odds for two classes, predictions for regression;
    (n_test, C) log-probabilities for more classes."""

    scores: npt.NDArray[np.floating]
    threshold: list[float]  # binary: [t], predict 1 if score > t; multi-class: C offsets b, predict argmax(score + b); regression: []
    metrics: dict[str, float]
    params: dict[str, Any]
    seconds: float
    cpu_seconds: float
    fits: int
    steps: int  # optimizer steps of all fits (0 for learners without them)
    peak_rss_mb: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)  # effective_prior, other thresholds, warnings


@dataclass(frozen=True)
class Plan:
    """What will be run, decided once and stored."""

    arms: tuple[Arm, ...]
    repeats: int
    trials: int
    cells: int
    not_applicable: tuple[tuple[str, str, str], ...] = ()  # (learner, remedy, reason)
    shed: tuple[str, ...] = ()  # arms a budget could not pay for
    seconds_per_repeat: float | None = None
    smallest_difference: float | None = None  # detectable in 4 of 5 studies, before any fit
    jackknife: int = 0  # rounds after the repeats, each without a group of rows (regression tails)
    parts: tuple[int, ...] = ()  # learning curve: baselines are also fitted on one of so many parts of the training rows


class Watcher:
    """Told what happens while a study runs; every method does nothing until overridden (the command line draws, a notebook may log)."""

    def data(self, problem: Any, diagnosis: Any) -> None: ...

    def plan(self, plan: Plan) -> None: ...

    def cell(self, done: int, total: int, arm: Arm | None) -> None: ...

    def repeat(self, study: Any, repeats_done: int) -> None: ...

    def note(self, level: str, text: str) -> None: ...

    def finished(self, study: Any) -> None: ...


def as_tuple(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """``None`` -> (), ``"a"`` -> ("a",), a sequence -> its tuple."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
