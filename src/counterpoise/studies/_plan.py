"""From options to a protocol and a plan: folds, hold-out, arms, and what a budget buys."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from counterpoise._errors import InputError, bad_input, check_choice, check_range

from ._cell import arm_of
from ._learners import BUILT_IN as LEARNERS
from ._learners import Learner
from ._remedies import Remedy
from ._types import Arm, Protocol

if TYPE_CHECKING:
    from ._problem import Problem

__all__ = ["Entry", "QUESTIONS", "budgeted", "entries_of", "make_protocol"]

QUESTIONS = {"classification": ("decisions", "ranking", "probabilities"), "regression": ("error", "tails")}
HOLDOUT_SHARE = 0.2
HOLDOUT_MINORITY = 250  # minority rows from which on a fifth of them tells something
HOLDOUT_REGRESSION_ROWS = 1_000
JACKKNIFE_GROUPS = 10

# --metric -> (metric of the decisions, primary question)
_METRICS = {
    "balanced_accuracy": ("balanced_accuracy", "decisions"),
    "f1": ("f1", "decisions"),
    "accuracy": ("accuracy", "decisions"),
    "cost": ("cost", "decisions"),
    "auroc": ("balanced_accuracy", "ranking"),
    "log_loss": ("balanced_accuracy", "probabilities"),
}


def make_protocol(
    problem: Problem,
    *,
    folds: int = 5,
    repeats: int = 5,
    trials: int = 1,
    seed: int = 0,
    metric: str = "auto",
    cost: Mapping[str, float] | None = None,
    rope: Mapping[str, float] | float | None = None,
    holdout: bool = True,
) -> Protocol:
    """The protocol for one problem: fewer folds where a class is rare, a hold-out where there is enough to lock away."""
    check_range("folds", folds, low=2, high=100, integer=True)
    check_range("repeats", repeats, low=1, high=1000, integer=True)
    check_range("trials", trials, low=1, high=10_000, integer=True)
    check_range("seed", seed, low=0, high=2**32 - 1, integer=True)
    decision_metric, primary = _metric(problem, metric, cost)
    split = "time" if problem.time is not None else "clusters" if problem.clustered else "stratified"
    distinct = _distinct_counts(problem)
    smallest = int(distinct.min())
    fixed_test = problem.fixed_test is not None
    enough = problem.n >= HOLDOUT_REGRESSION_ROWS if problem.task == "regression" else smallest >= HOLDOUT_MINORITY
    share = HOLDOUT_SHARE if holdout and enough and not fixed_test else 0.0
    if problem.task == "binary":
        # Every test fold and every inner fold must hold both classes.
        folds = max(2, min(folds, smallest // 2))
    elif problem.task == "multiclass":
        folds = max(2, min(folds, smallest))
    else:
        folds = max(2, min(folds, len(np.unique(problem.blocks)) // 2))
    if split == "clusters":
        folds = max(2, min(folds, len(np.unique(problem.blocks)) // 2))
    return Protocol(
        task=problem.task,
        folds=folds,
        repeats=1 if split == "time" else repeats,
        inner_folds=min(3, max(2, folds)),
        trials=trials,
        seed=seed,
        metric=decision_metric,
        primary=primary,
        cost=None if cost is None else dict(cost),
        split=split,
        holdout=share,
        fixed_test=fixed_test,
        jackknife=JACKKNIFE_GROUPS if problem.task == "regression" and split != "time" else 0,
        rope=_rope(problem, rope, primary),
    )


def _metric(problem: Problem, metric: str, cost: Mapping[str, float] | None) -> tuple[str, str]:
    if problem.task == "regression":
        if cost is not None:
            bad_input("cost", dict(cost), "no costs for a regression", "Costs of false alarms need two classes.")
        check_choice("metric", metric, ("auto", "mae"), "The target is a regression.")
        return "mae", "error"
    check_choice("metric", metric, ("auto", *_METRICS))
    if cost is not None:
        if problem.task != "binary":
            bad_input("cost", dict(cost), f"two classes; {problem.schema.target!r} has {len(problem.schema.classes)}")
        if set(cost) != {"fp", "fn"} or min(cost.values()) < 0 or not sum(cost.values()) > 0:
            bad_input("cost", dict(cost), "{'fp': a, 'fn': b} with non-negative numbers, not both zero")
        if metric not in ("auto", "cost"):
            raise InputError(f"metric: {metric!r} does not go with cost=; leave one of them out (cost= makes decisions minimize the cost).")
        return "cost", "decisions"
    if metric == "cost":
        bad_input("metric", metric, "costs to go with it", "Add cost={'fp': 1, 'fn': 20} (--cost fp=1,fn=20).")
    return _METRICS["balanced_accuracy" if metric == "auto" else metric]


def _rope(problem: Problem, rope: Mapping[str, float] | float | None, primary: str) -> dict[str, float]:
    if rope is None:
        return {}
    questions = (*QUESTIONS["regression" if problem.task == "regression" else "classification"], "groups", "dependence")
    if not isinstance(rope, Mapping):
        return {primary: _checked_rope(primary, rope)}
    for question in rope:
        check_choice("rope", question, questions)
    return {question: _checked_rope(question, value) for question, value in rope.items()}


def _checked_rope(question: str, value: float) -> float:
    check_range(f"rope for {question}", value, low=0)
    return float(value)


def _distinct_counts(problem: Problem) -> np.ndarray:
    """Blocks per class (copies of a row count once); for a regression the number of blocks."""
    if problem.task == "regression":
        return np.array([len(np.unique(problem.blocks))])
    return np.array([len(np.unique(problem.blocks[problem.y == code])) for code in range(len(problem.schema.classes))])


@dataclass(frozen=True)
class Entry:
    """An arm with the objects behind it. Arms that only set a threshold share the fits of the baseline."""

    arm: Arm
    learner: Learner
    remedy: Remedy


def entries_of(problem: Problem, learners: Sequence[Learner], remedies: Sequence[Remedy]) -> tuple[list[Entry], list[tuple[str, str, str]]]:
    """All arms in the order they are run, and (learner, remedy, reason) of those that cannot be used here.

    Remedies that replace the learner (ensembles) bring the plain ensemble of the same size with them, as a learner of its own.
    """
    entries: list[Entry] = []
    refused: list[tuple[str, str, str]] = []
    chosen = {learner.name for learner in learners}
    # An ensemble of trees joins where trees are studied; somebody who asked for linear models alone is not handed a forest.
    strangers = [remedy for remedy in remedies if remedy.learner is not None and not chosen & {"trees", remedy.learner}]
    refused += [(str(remedy.learner), remedy.name, "no trees among the learners") for remedy in strangers]
    remedies = [remedy for remedy in remedies if remedy not in strangers]
    homes = {remedy.learner for remedy in remedies if remedy.learner is not None}
    everyone = [*learners]
    for home in sorted(homes - chosen):
        if any(remedy.applies(problem, LEARNERS[home]) is None for remedy in remedies if remedy.learner == home):
            everyone.append(LEARNERS[home])
        else:
            refused += [(home, r.name, r.applies(problem, LEARNERS[home]) or "") for r in remedies if r.learner == home]
    for learner in everyone:
        added = learner.name not in chosen
        for remedy in remedies:
            if remedy.learner not in (None, learner.name) or (added and remedy.learner is None and remedy.stage != "none"):
                continue
            reason = remedy.applies(problem, learner)
            if reason is None:
                bound = remedy.bound(problem)
                entries.append(Entry(arm_of(learner, bound), learner, bound))
            elif remedy.stage != "none":
                refused.append((learner.name, remedy.name, reason))
    return entries, refused


def budgeted(
    entries: Sequence[Entry],
    seconds: Mapping[str, float],
    *,
    budget: float,
    spent: float,
    folds: int,
    repeats: int,
    jobs: int,
    jackknife: int = 0,
) -> tuple[list[Entry], int, list[str], float, int]:
    """What a budget buys: (arms kept, repeats, names of what was shed, seconds per repeat, jackknife rounds), from the measured seconds of
    one cell per arm.

    At least two repeats and the jackknife, whose rounds cost what a repeat does. First whole learners go (mlp, then linear, as long as
    another is left); instead of arms the jackknife goes, and learners that went for it come back; then the most expensive arms. Baselines
    stay.
    """
    kept = list(entries)
    shed: list[str] = []

    def per_repeat(which: Collection[Entry]) -> float:
        return sum(seconds.get(entry.arm.hash, 0.0) for entry in which) * folds / jobs

    def affordable(which: Collection[Entry]) -> bool:
        return (2 + jackknife) * per_repeat(which) <= budget - spent

    for learner in ("mlp", "linear"):
        if not affordable(kept) and len({entry.learner.name for entry in kept if entry.learner.name != "forest"} - {learner}) >= 1:
            gone = [entry for entry in kept if entry.learner.name == learner]
            shed += [entry.arm.name for entry in gone]
            kept = [entry for entry in kept if entry.learner.name != learner]
    if jackknife and not affordable(kept):
        return budgeted(entries, seconds, budget=budget, spent=spent, folds=folds, repeats=repeats, jobs=jobs)
    while not affordable(kept):
        removable = [entry for entry in kept if entry.remedy.name != "nothing" and not entry.remedy.shares_scores]
        if not removable:
            break
        dearest = max(removable, key=lambda entry: seconds.get(entry.arm.hash, 0.0))
        kept.remove(dearest)
        shed.append(dearest.arm.name)
    cost = per_repeat(kept)
    bought = int((budget - spent) / cost) - jackknife if cost > 0 else repeats
    return kept, max(1, min(repeats, bought)), shed, cost, jackknife
