"""From a call of ``counterpoise.study`` to a finished study: read, plan, run repeat by repeat, close."""

from __future__ import annotations

import json
import os
import tempfile
import time as clock
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from counterpoise._errors import InputError, StoreError, bad_input, check_choice, check_range

from ._diagnosis import diagnose_problem
from ._learners import BUILT_IN as LEARNERS
from ._learners import Learner, as_learner
from ._learning_curve import FEWEST, FEWEST_CLUSTERS, FEWEST_ROWS, parts_of
from ._plan import QUESTIONS, Entry, budgeted, entries_of, make_protocol
from ._problem import Problem, build_problem
from ._remedies import BASELINE, HALF, PLACEBO, Remedy, as_remedies
from ._runner import run_cells, stopping
from ._store import Store
from ._study import Study
from ._types import NO_DROP, Arm, CellId, Plan, Protocol, Watcher, as_tuple, installed_versions
from ._verdicts import smallest_detectable
from ._work import CellWork, save_problem

__all__ = ["launch", "study"]

DEFAULT_LEARNERS = ("linear", "trees", "mlp")
LONG_BUDGET = 300.0  # seconds from which on a budget pays for tuning
TUNING_TRIALS = 8
VERSIONED = ("counterpoise", "numpy", "scikit-learn", "imbalanced-learn", "torch", "skorch", "polars", "optuna")


def study(
    data: Any,
    y: Any = None,
    *,
    target: str | None = None,
    positive: Any = None,
    task: str = "auto",
    test: Any = None,
    groups: str | Sequence[str] | Mapping[str, Any] = (),
    cluster: str | None = None,
    time: str | None = None,
    weight: str | None = None,
    cost: Mapping[str, float] | None = None,
    text: str | Sequence[str] = (),
    drop: str | Sequence[str] = (),
    keep: str | Sequence[str] = (),
    header: bool = True,
    learners: Any = DEFAULT_LEARNERS,
    remedies: Any = "all",
    metric: str = "auto",
    rope: Mapping[str, float] | float | None = None,
    folds: int = 5,
    repeats: int = 5,
    trials: int | None = None,
    budget: float | str | None = None,
    jobs: int | None = None,
    engine: str = "local",
    seed: int = 0,
    merge_rare: bool = False,
    placebo: bool = True,
    learning_curve: bool = False,
    accept_worse: str | Sequence[str] = (),
    reopen_holdout: bool = False,
    out: str | Path | None = None,
    resume: bool = False,
    command: str | None = None,
    watcher: Watcher | None = None,
) -> Study:
    """Compare remedies for imbalance on one data set, each with the same splits, tuning and thresholds as doing nothing.

    Args:
        data: a path (csv, tsv, parquet, arrow, jsonl, also compressed), ``"sklearn:NAME"``, ``"openml:ID"``, ``"hf:NAME"``, the name of a
            data set (:func:`counterpoise.datasets.names`), a polars or pandas frame, a pyarrow table, or an array (n, p).
        y: the target, if it is not a column of ``data``.
        target: the column to predict; named sets know theirs.
        positive: the class that counts as positive; default the rarer one.
        task: ``auto``, ``classification`` or ``regression``.
        test: a second table, used once, as the hold-out.
        groups: columns whose values are reported apart (worst group); they stay features. Or a mapping from names to arrays (n,).
        cluster: column of rows that belong together (patient, customer): never split between folds.
        time: column of time: always train on the past and test on the future.
        weight: column of sample weights, used in fitting.
        cost: ``{"fp": 1, "fn": 20}``: decisions minimize the mean cost instead.
        text, drop, keep: columns to read as text, to leave out, to use although they look like an id or a leak.
        header: False if the first line of a file is data.
        learners: names (``linear``, ``trees``, ``mlp``, ``forest``), scikit-learn estimators or pipelines, or a mapping from names to them.
        remedies: ``"all"``, names, :class:`counterpoise.studies.Remedy` objects, samplers with ``fit_resample``, or a mapping.
        metric: ``auto`` (balanced accuracy; MAE), ``balanced_accuracy``, ``f1``, ``accuracy``, ``cost``, or ``auroc`` / ``log_loss`` to let
            ranking or probabilities decide.
        rope: differences below it do not matter: a number for the primary question, or a mapping by question.
        folds, repeats: of the outer cross-validation; fewer folds where a class is rare.
        trials: settings tried per cell, the same number for every arm; default 1 (the defaults).
        budget: seconds, or ``"90s"``, ``"10m"``, ``"2h"``: a plan is made for it once. Without it nothing is timed, and two runs agree to
            the digit.
        jobs: processes; default one per core. engine: ``local``, ``ray`` or ``dask``.
        seed: of every random stream.
        merge_rare: join classes with fewer rows than folds.
        placebo: include the arm that should never help.
        learning_curve: also fit each learner's baseline and the recommended arm on one of 2, 4, 8 and 16 parts of the training rows, as far
            as 20 of the rarest class (50 rows of a regression, 10 clusters) are left, and say what more rows would bring. Each curve costs
            less than one more arm; a finished study can be asked for it later.
        accept_worse: questions on which a recommended remedy may do harm.
        reopen_holdout: look at the locked rows again for another recommendation; the report will always say so.
        out: folder of the study; None = a temporary one that goes with the returned object.
        resume: continue what is in ``out``. The same call on a folder that holds its study always does; this only says so.
        command: how the study can be run again, for the report.
        watcher: is told what happens.

    Returns:
        The finished :class:`Study`.

    Raises:
        InputError: the data or an option cannot be used; StoreError: the folder cannot.

    Example:
        >>> import counterpoise
        >>> study = counterpoise.study("breast-cancer", learners="linear", remedies=["weights"], repeats=1)
        >>> study.recommendation.learner, study.recommendation.arm
        ('linear', 'nothing')
    """
    watcher = watcher or Watcher()
    seconds = _seconds(budget)
    problem = build_problem(
        data,
        y,
        target=target,
        positive=positive,
        task=task,
        test=test,
        groups=groups,
        cluster=cluster,
        time=time,
        weight=weight,
        text=text,
        drop=drop,
        keep=keep,
        header=header,
        merge_rare=merge_rare,
        folds=folds,
    )
    worse = list(as_tuple(accept_worse))
    for question in worse:
        check_choice("accept_worse", question, (*QUESTIONS["regression" if problem.task == "regression" else "classification"], "groups"))
    if trials is None:
        trials = TUNING_TRIALS if seconds is not None and seconds >= LONG_BUDGET else 1
    protocol = make_protocol(problem, folds=folds, repeats=repeats, trials=trials, seed=seed, metric=metric, cost=cost, rope=rope)
    chosen = _learners(learners)
    entries, refused = entries_of(problem, chosen, as_remedies(remedies, placebo=placebo))
    asked = {remedy.name for remedy in as_remedies(remedies, placebo=False)} - {BASELINE.name, HALF.name, PLACEBO.name}
    if asked and not asked & {entry.remedy.name for entry in entries}:
        reasons = dict.fromkeys(f"{name}: {reason}" for _, name, reason in refused if name in asked)
        bad_input("remedies", ", ".join(sorted(asked)), "at least one that can be used here", f"{'; '.join(reasons)}.")
    return launch(
        problem,
        protocol,
        entries,
        refused,
        work=lambda arms, folder: CellWork(folder, protocol, arms),
        options={"accept_worse": worse, "budget": seconds},
        parts=_parts(problem, protocol) if learning_curve else (),
        out=out,
        jobs=_jobs(jobs, engine),
        engine=engine,
        budget=seconds,
        watcher=watcher,
        command=command or f"counterpoise.study({problem.name!r}, ...)",
        reopen_holdout=reopen_holdout,
    )


@stopping()
def launch(
    problem: Problem,
    protocol: Protocol,
    entries: list[Entry],
    refused: list[tuple[str, str, str]],
    *,
    work: Callable[[Mapping[str, tuple[Learner, Remedy]], str], Any],
    options: dict[str, Any],
    out: str | Path | None,
    jobs: int,
    watcher: Watcher,
    command: str,
    engine: str = "local",
    budget: float | None = None,
    parts: tuple[int, ...] = (),
    reopen_holdout: bool = False,
    finish: bool = True,
) -> Study:
    """Open or join the store, run the cells repeat by repeat, and close the study with its report."""
    temporary = None
    if out is None:
        out = tempfile.mkdtemp(prefix="counterpoise-")
        temporary = out
    options |= {
        "arms": [entry.arm.name for entry in entries],
        "repeats": protocol.repeats,
        "rope": dict(protocol.rope),
        "primary": protocol.primary,
        "jackknife": protocol.jackknife,
        "rules": {entry.arm.name: entry.remedy.rule for entry in entries},
    }
    header = {
        "data_hash": problem.data_hash,
        "protocol": protocol.to_dict(),
        "protocol_hash": protocol.hash,
        "options": options | {"command": command, "not_applicable": refused, "name": problem.name},
        "versions": installed_versions(VERSIONED),
        "seed": protocol.seed,
    }
    store = Store.join(out, header)
    _refuse_other_options(store, options, out)
    try:
        problem_folder = save_problem(store.folder / "cache", problem)
        store.set("groups", problem.groups_hash)  # the last ones asked for: what an opened study reports by
    except OSError as error:
        raise StoreError(
            f"{out}: the table cannot be kept there ({error.strerror}); free some space or choose another folder (--out)."
        ) from error
    arms = {entry.arm.hash: (entry.learner, entry.remedy) for entry in entries if not entry.remedy.shares_scores}
    compute = work(arms, str(problem_folder))
    store.add_arms([entry.arm for entry in entries])
    diagnosis = diagnose_problem(problem, seed=protocol.seed) if problem.p or problem.text is not None else None
    watcher.data(problem, diagnosis)
    runner = _Runner(store, problem, protocol, entries, refused, compute, jobs, engine, watcher, parts)
    plan = runner.make_plan(budget)
    result = Study(
        store,
        problem,
        protocol,
        [entry for entry in entries if entry.arm in plan.arms],
        plan,
        accept_worse=options["accept_worse"],
        command=command,
        temporary=temporary,
        reopen_holdout=reopen_holdout,
    )
    if diagnosis is not None:
        result.diagnosis = diagnosis
    watcher.plan(plan)
    runner.run(result, stop_early=budget is not None)
    result._finish(watcher, fit=finish)
    watcher.finished(result)
    return result


class _Runner:
    """Runs the cells of a plan: repeat by repeat, then the jackknife and the learning curves."""

    def __init__(
        self,
        store: Store,
        problem: Problem,
        protocol: Protocol,
        entries: Sequence[Entry],
        refused: Sequence[tuple[str, str, str]],
        work: Any,
        jobs: int,
        engine: str,
        watcher: Watcher,
        parts: tuple[int, ...] = (),
    ) -> None:
        self.parts = parts
        self.store, self.problem, self.protocol = store, problem, protocol
        self.entries, self.refused, self.work = list(entries), tuple(refused), work
        self.jobs, self.engine, self.watcher = jobs, engine, watcher

    def make_plan(self, budget: float | None) -> Plan:
        """Decide once what is run; whoever joins later gets the same plan."""
        kept, repeats, shed, per_repeat = self.entries, self.protocol.repeats, [], None
        jackknife = self.protocol.jackknife
        stored = self.store.get("plan")
        if stored is None and budget is not None:
            stored = self.store.setdefault("plan", self._within(budget))
        if stored is not None:
            names = set(stored["arms"])
            kept = [entry for entry in self.entries if entry.arm.hash in names]
            repeats, shed, per_repeat = stored["repeats"], stored["shed"], stored["seconds_per_repeat"]
            jackknife = stored.get("jackknife", jackknife)
            if jackknife < self.protocol.jackknife:
                rounds = self.protocol.jackknife
                text = f"the budget does not reach for the interval of the rarest range, whose {rounds} rounds cost as much as repeats"
                self.watcher.note("note", text)
        fitted = sum(not entry.remedy.shares_scores for entry in kept)
        cells = fitted * self.protocol.folds * (repeats + jackknife)
        cells += sum(entry.remedy is BASELINE for entry in kept) * self.protocol.folds * repeats * len(self.parts)
        counts = self.problem.counts if self.problem.task != "regression" else None
        detectable = None
        if counts is not None:
            names_of = [entry.learner.name for entry in kept]
            detectable = min(smallest_detectable(int(counts.min() * (1 - self.protocol.holdout)), name) for name in dict.fromkeys(names_of))
        return Plan(
            arms=tuple(entry.arm for entry in kept),
            repeats=repeats,
            trials=self.protocol.trials,
            cells=cells,
            not_applicable=self.refused,
            shed=tuple(shed),
            seconds_per_repeat=per_repeat,
            smallest_difference=detectable,
            jackknife=jackknife,
            parts=self.parts,
        )

    def _within(self, budget: float) -> dict[str, Any]:
        """Time one cell of every arm (they count), then see what the budget buys."""
        started = clock.monotonic()
        fitted = [entry for entry in self.entries if not entry.remedy.shares_scores]
        self._compute([CellId(NO_DROP, 0, 0, entry.arm.hash) for entry in fitted])
        cells = self.store.cells()
        seconds = dict(zip(cells["arm_hash"].to_list(), cells["seconds"].fill_null(0.0).to_list(), strict=True))
        for entry in fitted:
            if entry.remedy is BASELINE:  # its learning curve costs as much again for the rows that it is fitted on
                seconds[entry.arm.hash] *= 1 + sum(1 / part for part in self.parts)
        kept, repeats, shed, per_repeat, jackknife = budgeted(
            self.entries,
            seconds,
            budget=budget,
            spent=clock.monotonic() - started,
            folds=self.protocol.folds,
            repeats=self.protocol.repeats,
            jobs=max(1, self.jobs),  # a cluster of unknown size counts as one worker
            jackknife=self.protocol.jackknife,
        )
        names = [entry.arm.hash for entry in kept]
        return {"arms": names, "repeats": repeats, "shed": shed, "seconds_per_repeat": per_repeat, "jackknife": jackknife}

    def run(self, study: Study, *, stop_early: bool) -> None:
        fitted = [entry.arm.hash for entry in study._entries if not entry.remedy.shares_scores]
        folds = range(self.protocol.folds)
        watcher = _Counting(self.watcher, study.plan.cells)
        dropped: set[str] = set()

        def compute(repeat: int, drop: int, arms: Sequence[str] = fitted) -> None:
            cells = [CellId(drop, repeat, fold, arm) for fold in folds for arm in arms if arm not in dropped]
            self._compute(cells, watcher)
            watcher.before += len(cells)
            study._forget()

        for repeat in range(study.plan.repeats):
            compute(repeat, NO_DROP)
            self.watcher.repeat(study, repeat + 1)
            if stop_early and repeat >= 1:
                harmful = study._clearly_harmful()
                for arm in harmful - dropped:
                    self.store.event("note", f"{arm} stopped early after repeat {repeat + 1}: clearly harmful")
                dropped |= harmful
                if not study._more_repeats_help():
                    self.store.event("note", f"stopped after repeat {repeat + 1}: one more would not narrow the intervals")
                    break
        for group in range(study.plan.jackknife):
            compute(0, group)
        if self.parts:
            curves = [entry.arm.hash for entry in study._curve_entries()]
            for part in self.parts:
                for repeat in range(study.repeats_done):
                    compute(repeat, -part, curves)
            if missing := len(curves) - len(study.learning_curves):
                text = f"{missing} of {len(curves)} learning curves are missing: fewer than two parts of the training rows could be fitted"
                self.watcher.note("warning", text)

    def _compute(self, cells: Sequence[CellId], watcher: Watcher | None = None) -> None:
        chosen = frozenset(cells)
        self.store.add_cells(cells)
        run_cells(self.store, self.work, jobs=self.jobs, engine=self.engine, watcher=watcher or self.watcher, select=chosen.__contains__)


class _Counting(Watcher):
    """Passes on what the run of one repeat tells, counted within the whole plan: ``before`` cells belong to earlier repeats."""

    def __init__(self, inner: Watcher, total: int) -> None:
        self._inner, self._total = inner, total
        self.before = 0

    def cell(self, done: int, total: int, arm: Arm | None) -> None:
        self._inner.cell(min(self.before + done, self._total), self._total, arm)

    def note(self, level: str, text: str) -> None:
        self._inner.note(level, text)


def _parts(problem: Problem, protocol: Protocol) -> tuple[int, ...]:
    """The parts of a learning curve, which needs two of them at least."""
    if protocol.split == "time":
        raise InputError("learning_curve: training rows of a study in time order grow from fold to fold. Leave it out, or leave out time=.")
    parts = parts_of(problem, protocol)
    if len(parts) < 2:
        needed = f"{FEWEST_ROWS} rows" if problem.task == "regression" else f"{FEWEST} rows of the rarest class"
        needed += f" and {FEWEST_CLUSTERS} clusters" if protocol.split == "clusters" else ""
        raise InputError(f"learning_curve: too few rows; expected {needed} in a quarter of the training rows. Leave it out.")
    return parts


def _refuse_other_options(store: Store, options: Mapping[str, Any], out: Any) -> None:
    """The same question must be asked of a folder that holds a study; what only sharpens the answer (``accept_worse``) may differ."""
    there = store.header["options"]
    changed = [
        f"{name}: {_shown(there.get(name))} -> {_shown(options.get(name))}"
        for name in sorted(set(options) - {"accept_worse"})
        if json.loads(json.dumps(options.get(name))) != there.get(name)
    ]
    if changed:
        raise InputError(
            f"out: {out} holds another study ({'; '.join(changed)}); expected the options it was started with."
            " Repeat them, or choose another folder (--out)."
        )


def _shown(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _learners(chosen: Any) -> list[Learner]:
    if isinstance(chosen, Mapping):
        found = [as_learner(value, name) for name, value in chosen.items()]
    elif isinstance(chosen, (list, tuple)):
        found = [as_learner(value) for value in chosen]
    else:
        found = [as_learner(chosen)]
    names = [learner.name for learner in found]
    if not names:
        raise InputError("learners: got none; expected at least one of " + ", ".join(LEARNERS) + ".")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"learners: {name!r} was given twice; expected different names, e.g. learners={{'a': one, 'b': other}}.")
    return found


def _jobs(jobs: int | None, engine: str) -> int:
    """Processes: one per core that this process may use, on a cluster all it has (-1)."""
    if jobs is None:
        if engine != "local":
            return -1
        return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    check_range("jobs", jobs, low=1, integer=True)
    return jobs


def _seconds(budget: float | str | None) -> float | None:
    if budget is None:
        return None
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    try:
        seconds = float(budget[:-1]) * units[budget[-1]] if isinstance(budget, str) and budget[-1:] in units else float(budget)
    except ValueError:
        seconds = float("nan")
    if not 0 < seconds < float("inf"):
        raise InputError(f"budget: got {budget!r}; expected a time such as 90, '90s', '10m' or '2h'.")
    return seconds
