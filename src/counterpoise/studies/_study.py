"""What a study knows: verdicts, recommendation, table, report and model, all from the stored scores."""

from __future__ import annotations

import json
import os
import shutil
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._errors import CounterpoiseError, InputError, StoreError, bad_input, check_choice, listing

from ._cell import Trained, make_scores, train
from ._diagnosis import diagnose_problem
from ._differences import Board, arm_values, metric_of, with_intersection
from ._learners import BUILT_IN as LEARNERS
from ._learners import Learner
from ._learning_curve import LearningCurve, learning_curve
from ._metrics import FEW_POSITIVES, LOWER_IS_BETTER, cell_metrics, decide, group_table
from ._plan import QUESTIONS, Entry, entries_of, make_protocol
from ._problem import Problem
from ._recommendation import (
    HoldoutVerdict,
    Recommendation,
    bias_corrected_expectation,
    holdout_verdict,
    recommend,
)
from ._remedies import BASELINE, HALF, PLACEBO, FairPenaltyRemedy, Remedy, as_remedies
from ._remedies import BUILT_IN as REMEDIES
from ._runner import stopping
from ._splits import SMALLEST_PART, Splits
from ._store import Store, results_frame
from ._types import NO_DROP, Plan, Protocol, Watcher, as_tuple
from ._verdicts import (
    CALIBRATED_LEARNERS,
    METRIC_WORDS,
    Verdict,
    Verdicts,
    clearly_harmful,
    compare,
    more_repeats_help,
    verdicts,
)
from ._work import load_problem, problem_name

if TYPE_CHECKING:
    import polars as pl

    from counterpoise.diagnostics import StudyDiagnosis

    from ._saving import FittedModel

__all__ = ["Study"]

TIME_BLOCKS = 20  # stretches of a time series that count as independent
HOLDOUT_FIT, FINAL_FIT = "hold-out fit", "final fit"  # names of random streams, in the place of a repeat


class Study:
    """A comparison of remedies on one data set, finished or under way.

    Made by :func:`counterpoise.study`, :meth:`Study.from_training` or :meth:`Study.open`. Everything it says is computed from the stored
    scores, so tolerances and intervals can be changed without fitting anything again.

    Attributes:
        folder: where ``study.sqlite``, ``results.parquet``, ``report.html`` and ``model/`` are.
        problem: the data as the learners see them.
        protocol: what every arm was put through.
        plan: the arms, repeats and trials.
        diagnosis: what dominates the training signal.
    """

    def __init__(
        self,
        store: Store,
        problem: Problem,
        protocol: Protocol,
        entries: Sequence[Entry],
        plan: Plan,
        *,
        accept_worse: Sequence[str] = (),
        command: str = "",
        temporary: str | None = None,
        reopen_holdout: bool = False,
    ) -> None:
        self.folder = store.folder
        self.problem = problem
        self.protocol = protocol
        self.plan = plan
        self.command = command
        self.splits = Splits(problem, protocol)
        self._store = store
        self._entries = list(entries)
        self._accept_worse = tuple(accept_worse)
        if temporary is not None:  # nobody named a folder: it goes with this object
            weakref.finalize(self, shutil.rmtree, temporary, ignore_errors=True)
        weakref.finalize(self, store.close)  # the later one runs first
        self._reopen_holdout = reopen_holdout
        self._kept_scores: dict[tuple[str, int, int], npt.NDArray[np.floating]] = {}
        self._curves: list[LearningCurve] | None = None
        self._judged: dict[Any, Verdicts] = {}
        self._recommended: Recommendation | None = None
        self._means: dict[tuple[str, str], dict[str, float]] | None = None
        self._board_cache: dict[int, list[Board]] = {}
        self._info: dict[tuple[str, int, int, int], dict[str, Any]] = {}
        self._forget()

    def __repr__(self) -> str:
        progress = f"{self.repeats_done} of {self.plan.repeats} repeats"
        return f"Study({self.problem.name!r}, {len(self.plan.arms)} arms, {progress}, in {str(self.folder)!r})"

    # -- opening ----------------------------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, folder: str | Path) -> Study:
        """The study in ``folder``, read from its store; nothing is fitted."""
        store = Store.open(folder)
        header = store.header
        options = header["options"]
        protocol = Protocol(**header["protocol"])
        try:
            problem = load_problem(str(Path(folder) / "cache" / problem_name(header["data_hash"], store.get("groups"))))
        except OSError as error:
            raise StoreError(
                f"{folder}: the table of the study (cache/{header['data_hash']}) is gone; run the study again: {options['command']}"
            ) from error
        by_name = {remedy.name: remedy for remedy in REMEDIES}
        entries = [
            Entry(
                arm,
                LEARNERS.get(arm.learner, Learner(arm.learner, _not_stored)),
                by_name.get(arm.remedy, Remedy(arm.remedy, arm.stage, rule=options["rules"][arm.name])),
            )
            for arm in store.arms()
        ]
        plan = _plan_from(store, entries, options)
        kept = {arm.hash for arm in plan.arms}
        return cls(
            store,
            problem,
            protocol,
            [entry for entry in entries if entry.arm.hash in kept],
            plan,
            accept_worse=options["accept_worse"],
            command=options["command"],
        )

    @classmethod
    def from_training(
        cls,
        train_fn: Callable[..., Mapping[str, Any]],
        y: npt.ArrayLike,
        remedies: Any = "all",
        *,
        groups: Any = None,
        seeds: int | Sequence[int] = 5,
        folds: int = 5,
        out: str | Path | None = None,
        task: str = "auto",
        positive: Any = None,
        metric: str = "auto",
        cost: Mapping[str, float] | None = None,
        rope: Mapping[str, float] | float | None = None,
        jobs: int = 1,
        placebo: bool = True,
        accept_worse: str | Sequence[str] = (),
        name: str = "training",
        watcher: Watcher | None = None,
    ) -> Study:
        """Compare remedies in one's own training loop: same store, intervals, verdicts and report as :func:`counterpoise.study`.

        ``train_fn(kit, seed)`` trains one network on ``kit.train_index`` and returns ``{"valid": logits, "test": logits}`` for the rows
        ``kit.valid_index`` and ``kit.test_index``: shape (n,) or (n, 2) for two classes, (n, C) for more, predictions for a regression.
        It asks the kit for what the remedy may change: ``kit.sampler()``, ``kit.loss()``, ``kit.optimizer(parameters)``,
        ``kit.aggregator()``. The threshold is tuned on the validation scores, the baseline's too.

        Args:
            y: (n,) labels or real targets of the whole data set.
            remedies: as for :func:`counterpoise.study`; those that invent rows, replace the learner or change its inside are not possible,
                and "all" leaves them out.
            groups: a :class:`counterpoise.Groups`, or a mapping from names to them: results are reported for each.
            seeds: number of repeats (each draws the folds anew), or the list of seeds itself, whose length is used and whose first is the
                seed of the study.
            folds: parts the rows are split into.
            out: folder of the study; None = a temporary folder that goes with the returned object.
            jobs: processes; with more than one, ``train_fn`` must be picklable by cloudpickle.

        Example:
            See ``examples/own_training_loop.py``.
        """
        from ._launch import launch
        from ._training import TrainingWork, problem_of_targets

        if not callable(train_fn):
            raise InputError(f"train_fn: got {type(train_fn).__name__}; expected a function train_fn(kit, seed).")
        repeats, seed = (seeds, 0) if isinstance(seeds, int) else (len(seeds), int(seeds[0]) if len(seeds) else 0)
        problem = problem_of_targets(y, task=task, positive=positive, groups=groups, name=name)
        protocol = make_protocol(problem, folds=folds, repeats=repeats, seed=seed, metric=metric, cost=cost, rope=rope, holdout=False)
        # A valid part is held back from every training part; tails of a regression are judged without the jackknife's extra trainings.
        protocol = replace(protocol, inner_folds=max(2, min(5, protocol.inner_folds + 1)), jackknife=0)
        loop = Learner("loop", _not_stored, takes_loss=True, about="your training loop")
        wanted = as_remedies(remedies, placebo=placebo)
        chosen = [remedy for remedy in wanted if remedy.learner is None and not remedy.inside_the_net and not remedy.invents_rows]
        if remedies != "all" and len(chosen) < len(wanted):
            bad_input(
                "remedies",
                listing(remedy.name for remedy in wanted if remedy not in chosen),
                "remedies that choose among the rows, or act on the loss",
                "These invent rows, or change counterpoise's own learner: a loop does that by itself (counterpoise.data, .nn, .schedules).",
            )
        entries, refused = entries_of(problem, [loop], chosen)
        entries = [entry for entry in entries if not (entry.remedy.needs_rows and remedies == "all")]
        return launch(
            problem,
            protocol,
            entries,
            refused,
            work=lambda arms, folder: TrainingWork(folder, protocol, train_fn, {arm: remedy for arm, (_, remedy) in arms.items()}),
            options={"accept_worse": list(as_tuple(accept_worse)), "loop": True},
            out=out,
            jobs=jobs,
            watcher=watcher or Watcher(),
            command="counterpoise.Study.from_training(...)",
            finish=False,
        )

    # -- what was measured ------------------------------------------------------------------------------------------------------------

    @cached_property
    def diagnosis(self) -> StudyDiagnosis:
        """What dominates the training signal, see :func:`counterpoise.diagnostics.diagnose`."""
        return diagnose_problem(self.problem, seed=self.protocol.seed)

    @property
    def repeats_done(self) -> int:
        """Repeats in which no cell is left to do."""
        cells = self._cells.filter(self._cells["drop"] == NO_DROP)
        if not len(cells):
            return 0
        open_repeats = cells.filter(cells["state"].is_in(["todo", "run"]))["repeat"]
        first_open = open_repeats.min()
        return int(cells["repeat"].max()) + 1 if first_open is None else int(first_open)  # type: ignore[arg-type]

    @property
    def results(self) -> pl.DataFrame:
        """One row per cell, in the order of work: arm, repeat, fold, state, metrics, threshold, parameters, fits, steps, seconds.

        ``drop`` is -1 but for fits without group ``drop`` of the rows (>= 0, jackknife) and on one of ``-drop`` parts (< -1, learning
        curves). Arms that only set a threshold on the baseline's scores have rows of their own, with the fits they share.
        """
        import polars as pl

        frame = results_frame(self._store)
        shared = [self._shared_rows(frame, entry) for entry in self._entries if entry.remedy.shares_scores]
        return pl.concat([frame, *shared], how="vertical") if shared and len(frame) else frame

    def verdicts(
        self,
        question: str | None = None,
        *,
        interval: str = "rows",
        rope: float | None = None,
        level: float = 0.95,
        repeats: int | None = None,
    ) -> Verdicts:
        """Every arm against the baseline of its learner, for one question, best first.

        Args:
            question: ``decisions``, ``ranking``, ``probabilities`` or ``groups``; for a regression ``error`` or ``tails``;
                ``dependence`` of the predictions on the groups.
                None = the primary one.
            interval: ``rows`` (default), ``nadeau-bengio`` or ``jackknife`` (regression).
            rope: half-width of the region of practical equivalence, in units of the metric; None = that of the study.
            level: simultaneous coverage over the family of all arms and learners.
            repeats: use only the first so many repeats.
        """
        question = question or self.protocol.primary
        check_choice("question", question, self.questions)
        key = (question, interval, rope, level, repeats or self.repeats_done)
        if key not in self._judged:
            self._judged[key] = self._judge(*key)
        return self._judged[key]

    @property
    def questions(self) -> tuple[str, ...]:
        """The questions of this study, the primary one first."""
        asked = QUESTIONS["regression" if self.problem.task == "regression" else "classification"]
        asked = tuple(question for question in asked if question != "tails" or self.protocol.jackknife)
        asked = (self.protocol.primary, *(question for question in asked if question != self.protocol.primary))
        if not self.problem.groups:
            return asked
        return (*asked, "dependence") if self.problem.task == "regression" else (*asked, "groups", "dependence")

    @property
    def learners(self) -> list[str]:
        """The learners, in the order in which they are listed everywhere."""
        return list(dict.fromkeys(entry.learner.name for entry in self._entries))

    @property
    def metrics(self) -> dict[str, str]:
        """Question -> the metric it is judged by."""
        return {question: metric_of(question, self.problem.task, self._metric(question), self.protocol.cost) for question in self.questions}

    def compare(self, first: str, second: str, question: str | None = None, *, learner: str | None = None) -> Verdict:
        """One arm against another, e.g. ``study.compare("smote", "weights")``.

        A family of one: only for a comparison that was decided on beforehand.

        ``first`` and ``second`` are remedies of ``learner`` (default: the recommended learner), or ``"learner/remedy"``.
        """
        home = learner or self._home_of(first, second)
        keys = [tuple(name.split("/", 1)) if "/" in name else (home, name) for name in (first, second)]
        question = question or self.protocol.primary
        check_choice("question", question, tuple(name for name in self.questions if name != "groups"))
        return compare(
            self._boards(self.repeats_done),
            keys[0],  # type: ignore[arg-type]
            keys[1],  # type: ignore[arg-type]
            question,
            task=self.problem.task,
            metric=self._metric(question),
            cost=self.protocol.cost,
            rope=self._rope(question),
        )

    @property
    def learning_curves(self) -> list[LearningCurve]:
        """What more rows would bring each learner without a remedy, and the recommended arm; empty unless the study was asked for it."""
        if self._curves is None:
            repeats = self.repeats_done
            entries = self._curve_entries() if repeats else []
            found = [self._learning_curve(entry, repeats) for entry in entries]
            self._curves = [curve for curve in found if curve is not None]
        return self._curves

    @property
    def recommendation(self) -> Recommendation:
        """What to use, why, and what to expect of it (from the hold-out, or corrected for having chosen; never the winner's own score)."""
        if self._recommended is None:
            self._recommended = self._with_evidence(self._choose())
        return self._recommended

    @property
    def expectation(self) -> Any:
        """What the page shows as the expected result (:class:`counterpoise.report.Expectation`)."""
        from counterpoise.report import Expectation

        found = self.recommendation
        if found.holdout is not None:
            seen = found.holdout
            codes = self.problem.y[self.splits.holdout]
            return Expectation(
                kind="hold-out",
                metric=seen.metric,
                value=seen.value,
                **({} if found.is_baseline else _gain(seen)),
                rows=seen.rows,
                positives=int((codes == 1).sum()) if self.problem.task == "binary" else None,
                verdict="" if found.is_baseline else seen.outcome,
                note=seen.sentence(),
            )
        if found.expected is not None:
            guess = found.expected
            return Expectation(
                kind="bias-corrected cross-validation",
                metric=guess.metric,
                value=guess.value,
                gain=float("nan") if found.is_baseline else guess.gain,
                note=guess.sentence(),
            )
        return None

    # -- what is shown ----------------------------------------------------------------------------------------------------------------

    def table(self, question: str | None = None) -> list[dict[str, Any]]:
        """The arms, best first: ``arm``, ``learner``, ``stage``, ``paper`` (number of the paper it comes from, or ""), ``values`` (question
        -> estimate, low, high, verdict), ``rope`` (question -> the size of differences that do not matter), ``metric`` (question -> the
        arm's own mean), ``seconds`` per cell."""
        question = question or self.protocol.primary
        values: dict[tuple[str, str], dict[str, tuple[float, float, float, str]]] = {}
        ropes: dict[tuple[str, str], dict[str, float]] = {}
        for name in self.questions:
            for verdict in reversed(self.verdicts(name)):  # of several group columns the worst is shown: verdicts come best first
                known = values.setdefault((verdict.learner, verdict.arm), {})
                known.setdefault(name, (verdict.estimate, verdict.low, verdict.high, verdict.verdict))
                ropes.setdefault((verdict.learner, verdict.arm), {}).setdefault(name, verdict.rope)
        boards = self._boards(self.repeats_done)
        levels = {
            name: arm_values(boards, name, task=self.problem.task, metric=self._metric(name), cost=self.protocol.cost)
            for name in self.questions
            if name != "groups"  # one value per column of groups: see the report
        }
        rows = []
        for entry in self._entries:
            key = (entry.learner.name, entry.remedy.name)
            own = self.mean_metrics(*key)
            rows.append(
                {
                    "arm": entry.remedy.name,
                    "learner": entry.learner.name,
                    "stage": entry.remedy.stage,
                    "paper": entry.remedy.paper,
                    "values": values.get(key, {}),
                    "rope": ropes.get(key, {}),
                    "metric": {name: level[key] for name, level in levels.items() if key in level},
                    "seconds": own.get("seconds", float("nan")),
                }
            )
        lower = self.metrics[question] in LOWER_IS_BETTER
        missing = float("inf")
        return sorted(rows, key=lambda row: row["metric"].get(question, missing) if lower else -row["metric"].get(question, -missing))

    def mean_metrics(self, learner: str, arm: str) -> dict[str, float]:
        """Means over the finished cells of an arm: its metrics, and ``seconds``."""
        if self._means is None:
            import polars as pl

            frame = self.results
            if not len(frame):
                return {}
            frame = frame.filter((pl.col("state") == "done") & (pl.col("drop") == NO_DROP))
            names = [name for name in _metric_columns(frame) if name in frame.columns] + ["seconds"]
            grouped = frame.group_by("learner", "remedy").agg(pl.col(name).fill_nan(None).mean() for name in names)
            self._means = {
                (row["learner"], row["remedy"]): {name: row[name] for name in names if row[name] is not None}
                for row in grouped.iter_rows(named=True)
            }
        return self._means.get((learner, arm), {})

    @property
    def threshold_gain(self) -> str:
        """What moving the threshold alone is worth, in one sentence; empty where there is no threshold."""
        if "decisions" not in self.questions:
            return ""
        halves = [verdict for verdict in self.verdicts("decisions") if verdict.arm == HALF.name and verdict.estimate == verdict.estimate]
        if not halves:
            return ""
        halves.sort(key=lambda verdict: self.learners.index(verdict.learner))
        metric = METRIC_WORDS[self.metrics["decisions"]]
        # The arm at 0.5 was compared with the tuned threshold; this is the way back.
        gains = [f"{v.learner} {0.0 - v.estimate:+.3f} [{0.0 - v.high:+.3f}, {0.0 - v.low:+.3f}]" for v in halves]
        return f"Moving the threshold alone, from 0.5: {', '.join(gains)} {metric}."

    @property
    def worst_groups(self) -> list[str]:
        """One sentence per reported group column: the recommended arm's worst group, or why there is none."""
        if self.problem.task == "regression" or not self.problem.groups:
            return []
        found = self.recommendation
        decisions = self.decisions_of(found.learner, found.arm)
        binary = self.problem.task == "binary"
        sentences = []
        for column, groups in self.groups.items():
            table = group_table(self.problem.y[self.splits.rows], decisions, groups, len(self.problem.schema.classes))
            judged = [row for row in table if row["judged"]]
            few = f"{len(table) - len(judged)} of {len(table)} groups too few to judge (fewer than {FEW_POSITIVES} "
            few += "positives)" if binary else "rows)"
            if len(judged) < 2:
                sentences.append(f"By {column}: {few}: no worst-group verdict.")
                continue
            worst, best = min(judged, key=lambda row: row["recall"]), max(judged, key=lambda row: row["recall"])
            text = f"By {column}, {found.learner} with {found.arm}: recall {worst['recall']:.3f} in the worst group, {worst['group']!r}"
            text += f", {best['recall'] - worst['recall']:.3f} below the best, {best['group']!r}"
            sentences.append(f"{text}; {few}." if len(judged) < len(table) else f"{text}.")
        return sentences

    @property
    def detectable(self) -> str:
        """How large a difference must be to be found, measured on the repeats that are finished; empty where there is no interval."""
        question = self.protocol.primary
        sizes = [v.detectable for v in self.verdicts(question) if v.low < v.high and v.arm not in (HALF.name, PLACEBO.name)]
        sizes = [size for size in sizes if size == size]
        if not sizes:
            return ""
        low, high = f"{min(sizes):.2g}", f"{max(sizes):.2g}"
        spread = low if low == high else f"{low} to {high}, depending on the arm"
        repeats = f"{self.repeats_done} repeat{'s' * (self.repeats_done != 1)}"
        return (
            f"Measured after {repeats}: 4 of 5 such studies would find a difference in {METRIC_WORDS[self.metrics[question]]} of {spread}."
        )

    @property
    def provisional(self) -> list[str]:
        """Learners for which the rate of false claims has not been counted: their verdicts are provisional."""
        found = {verdict.learner for verdict in self.verdicts() if verdict.provisional}
        return [name for name in self.learners if name in found]

    @property
    def created(self) -> datetime:
        """When the study was started (UTC)."""
        return datetime.fromisoformat(self._store.header["created_at"])

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the packages the study was started with."""
        return dict(self._store.header["versions"])

    @property
    def failed(self) -> list[tuple[str, str, str]]:
        """(learner, remedy, reason) of arms that could not be computed."""
        return [(learner, arm, reason) for (learner, arm), reason in self._failures().items()]

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before anything else."""
        found = []
        # What learned less depends less on everything, groups included: there the placebo may well come out ahead.
        for question in [name for name in self.questions if name != "dependence"]:
            found += [
                f"The placebo appears to help ({verdict.learner}, {question}): something is wrong with the data or the protocol; "
                "trust no verdict."
                for verdict in self.verdicts(question)
                if verdict.arm == "placebo" and verdict.verdict == "helps"
            ]
        openings = self._store.get("holdout_openings", [])
        if len(openings) > 1:
            names = ", ".join(opening["for"] for opening in openings)
            found.append(f"The hold-out was opened {len(openings)} times ({names}): it confirms nothing any more.")
        return found

    def note_of(self, learner: str, arm: str) -> str:
        """A remark for the table: shown only, constant predictions, stopped early."""
        if arm == HALF.name:
            return "shown only"
        if (learner, arm) in self._failures():
            return "failed"
        if (learner, arm) in self._stopped():
            return "stopped early"
        return self._remarks().get((learner, arm), "")

    @property
    def groups(self) -> dict[str, Any]:
        """The reported groups, and the intersection of several, restricted to the rows of the study."""
        from counterpoise.groups import Groups

        rows = self.splits.rows
        groups = {column: Groups(groups.ids[rows], groups.names, groups.kind) for column, groups in self.problem.groups.items()}
        return with_intersection(groups)

    @property
    def fairness_arms(self) -> list[tuple[str, str]]:
        """(learner, arm) of those that hold predictions independent of the reported groups."""
        keys = [(entry.learner.name, entry.remedy.name) for entry in self._entries if isinstance(entry.remedy, FairPenaltyRemedy)]
        return [key for key in keys if key not in self._failures()]

    @property
    def files(self) -> dict[str, Path]:
        """What was written: a few words -> path."""
        named = {"report": "report.html", "results": "results.parquet", "model": "model", "store": "study.sqlite"}
        return {name: self.folder / file for name, file in named.items() if (self.folder / file).exists()}

    def report(self, path: str | Path | None = None) -> Path:
        """Write the page; default ``report.html`` in the folder of the study."""
        from counterpoise.report import study_page

        from ._page import study_view

        target = Path(path) if path is not None else self.folder / "report.html"
        _write_atomically(target, study_page(study_view(self)).encode())
        return target

    # -- using it ---------------------------------------------------------------------------------------------------------------------

    def fit_recommended(self, X: Any = None, y: Any = None) -> FittedModel:
        """Fit the recommended arm with its tuning and threshold: on all rows of the study, or on a table of one's own.

        ``X`` and ``y`` are given as to :func:`counterpoise.study`; the columns must be the same.
        """
        problem, splits = self.problem, self.splits
        if X is not None:
            problem = self._problem_like(X, y)
            splits = Splits(problem, replace(self.protocol, split="stratified", holdout=0.0, fixed_test=False))
        return self._fit(problem, splits, self.recommendation)

    def _problem_like(self, X: Any, y: Any) -> Problem:
        """Another table read by the schema of this study: columns, categories and classes as they were."""
        from counterpoise.datasets._tables import as_frame

        schema = self.problem.schema
        frame = as_frame(X)
        if y is not None:
            import polars as pl

            frame = frame.with_columns(pl.Series(schema.target, np.asarray(y)))
        target = schema.encode_target(frame)
        known = np.isfinite(target) & (target >= 0) if schema.task != "regression" else np.isfinite(target)
        frame, target = frame.filter(known), target[known]
        features, text = schema.encode(frame)
        whole = np.column_stack([np.nan_to_num(features, nan=-np.inf), target])
        blocks = np.unique(whole, axis=0, return_inverse=True)[1].reshape(-1)
        return replace(
            self.problem,
            X=features,
            text=text,
            y=target,
            groups={},
            blocks=blocks,
            clustered=False,
            copies=len(blocks) - len(np.unique(blocks)),
            time=None,
            weight=None,
            fixed_test=None,
        )

    # -- scores -----------------------------------------------------------------------------------------------------------------------

    def scores_of(self, learner: str, arm: str) -> tuple[npt.NDArray[np.floating], list[list[float]]]:
        """((R, n) or (R, n, C) out-of-fold scores on the study rows, thresholds of the cells in order of repeat and fold)."""
        entry = self._entry(learner, arm)
        repeats = range(self.repeats_done)
        base = self._score_hash(entry)
        scores = np.stack([self._repeat_scores(base, repeat) for repeat in repeats])
        return scores, [self._threshold(entry, repeat, fold) for repeat in repeats for fold in range(self.protocol.folds)]

    def decisions_of(self, learner: str, arm: str) -> npt.NDArray[np.int64]:
        """(R, n) predicted codes on the study rows."""
        entry = self._entry(learner, arm)
        return np.stack([self._repeat_decisions(entry, repeat) for repeat in range(self.repeats_done)])

    def priors_of(self, learner: str, arm: str) -> list[tuple[list[float], list[float]]]:
        """Per fold of the first repeat: class shares of the training rows, and as the fit saw them."""
        info = [self._info[self._score_hash(self._entry(learner, arm)), 0, fold, NO_DROP] for fold in range(self.protocol.folds)]
        return [(one["extra"]["prior"], one["extra"]["effective_prior"]) for one in info]

    # -- inside -----------------------------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        """New cells may have come in: everything derived is computed again; scores of finished cells never change and are kept."""
        self._judged.clear()
        self._recommended = self._means = self._curves = None
        self._board_cache.clear()
        self._info.clear()
        self._cells = self._store.cells()
        done = self._cells.filter(self._cells["state"] == "done")
        for row in done.select("arm_hash", "repeat", "fold", "drop", "threshold", "extra_json").iter_rows():
            self._info[row[:4]] = {"threshold": json.loads(row[4]), "extra": json.loads(row[5])}

    def _metric(self, question: str) -> str | None:
        return self.protocol.metric if question in ("decisions", "error") else None

    def _rope(self, question: str) -> float | None:
        return self.protocol.rope.get(question)

    def _entry(self, learner: str, arm: str) -> Entry:
        for entry in self._entries:
            if (entry.learner.name, entry.remedy.name) == (learner, arm):
                return entry
        raise InputError(f"arm: got '{learner}/{arm}'; expected one of {', '.join(entry.arm.name for entry in self._entries)}.")

    def _home_of(self, first: str, second: str) -> str:
        """The recommended learner if it has both arms, else the first that does."""
        arms: dict[str, set[str]] = {}
        for entry in self._entries:
            arms.setdefault(entry.learner.name, set()).add(entry.remedy.name)
        learners = [self.recommendation.learner, *arms]
        return next((name for name in learners if {first, second} <= arms[name]), learners[0])

    def _score_hash(self, entry: Entry) -> str:
        """The arm whose fits an entry uses: its own, or the baseline's."""
        return self._entry(entry.learner.name, BASELINE.name).arm.hash if entry.remedy.shares_scores else entry.arm.hash

    def _repeat_scores(self, arm_hash: str, repeat: int, drop: int = NO_DROP) -> npt.NDArray[np.floating]:
        """(n,) or (n, C) scores of one repeat on the study rows; NaN where a row was not tested or the arm not run."""
        key = (arm_hash, repeat, drop)
        if key not in self._kept_scores:
            rows = self.splits.rows
            classes = len(self.problem.schema.classes)
            shape = (len(rows), classes) if self.problem.task == "multiclass" else (len(rows),)
            filled = np.full(shape, np.nan, dtype=np.float32 if self.problem.n > 100_000 else np.float64)
            folds = self.splits.folds(repeat)[rows]
            complete = True
            for fold in range(self.protocol.folds):
                if (arm_hash, repeat, fold, drop) not in self._info:
                    complete = False
                    continue
                filled[folds == fold] = self._store.load_scores(arm_hash, repeat, fold, drop)
            if not complete:
                filled[:] = np.nan
                return filled
            self._kept_scores[key] = filled
        return self._kept_scores[key]

    def _threshold(self, entry: Entry, repeat: int, fold: int, drop: int = NO_DROP) -> list[float]:
        info = self._info[self._score_hash(entry), repeat, fold, drop]
        return list(info["extra"]["thresholds"][entry.remedy.rule] if entry.remedy.shares_scores else info["threshold"])

    def _repeat_decisions(self, entry: Entry, repeat: int, drop: int = NO_DROP) -> npt.NDArray[np.int64]:
        base = self._score_hash(entry)
        scores = self._repeat_scores(base, repeat, drop)
        folds = self.splits.folds(repeat)[self.splits.rows]
        codes = np.zeros(len(folds), dtype=np.int64)
        for fold in range(self.protocol.folds):
            if (base, repeat, fold, drop) in self._info:
                at = folds == fold
                codes[at] = decide(scores[at], self._threshold(entry, repeat, fold, drop))
        return codes

    def _boards(self, repeats: int) -> list[Board]:
        """The scores of every learner, baseline first, for the statistics; failed arms are left out."""
        if repeats not in self._board_cache:
            rows = self.splits.rows
            failures = self._failures()
            fold = np.stack([self.splits.folds(repeat)[rows] for repeat in range(repeats)])
            blocks = self.problem.blocks[rows]
            if self.protocol.split == "time":
                # Neighbors in time are alike: rows are resampled in twenty stretches.
                assert self.problem.time is not None
                ranks = np.argsort(np.argsort(self.problem.time[rows], kind="stable"), kind="stable")
                blocks = ranks * TIME_BLOCKS // len(rows)
            boards = []
            for learner in dict.fromkeys(entry.learner.name for entry in self._entries):
                entries = [
                    entry for entry in self._entries if entry.learner.name == learner and (learner, entry.remedy.name) not in failures
                ]
                if not entries or entries[0].remedy.name != BASELINE.name:
                    continue
                boards.append(
                    Board(
                        learner=learner,
                        arms=[entry.remedy.name for entry in entries],
                        y=self.problem.y[rows],
                        fold=fold,
                        score=np.stack([[self._repeat_scores(self._score_hash(entry), r) for r in range(repeats)] for entry in entries]),
                        decision=None
                        if self.problem.task == "regression"
                        else np.stack([[self._repeat_decisions(entry, r) for r in range(repeats)] for entry in entries]),
                        blocks=blocks,
                        has_blocks=len(np.unique(blocks)) < len(blocks),
                        groups=self.groups,
                        clustered=self.protocol.split != "stratified",
                        dropped=self._deleted(entries),
                    )
                )
            self._board_cache[repeats] = boards
        return self._board_cache[repeats]

    def _deleted(self, entries: Sequence[Entry]) -> npt.NDArray[np.floating] | None:
        """(A, G, n) predictions with each row group deleted, once all of them are there; NaN for arms that were given up early."""
        stopped = self._stopped()
        running = [entry for entry in entries if (entry.learner.name, entry.remedy.name) not in stopped]
        needed = [
            (self._score_hash(entry), 0, fold, group)
            for entry in running
            for group in range(self.protocol.jackknife)
            for fold in range(self.protocol.folds)
        ]
        if not needed or any(key not in self._info for key in needed):
            return None
        rows = self.splits.rows
        position = np.full(self.problem.n, -1)
        position[rows] = np.arange(len(rows))
        filled = np.full((len(entries), self.protocol.jackknife, len(rows)), np.nan)
        for a, entry in enumerate(entries):
            if entry not in running:
                continue
            for group in range(self.protocol.jackknife):
                for fold in range(self.protocol.folds):
                    at = position[self.splits.test_index(0, fold, group)]
                    filled[a, group, at] = self._store.load_scores(self._score_hash(entry), 0, fold, group)
        return filled

    def _curve_entries(self) -> list[Entry]:
        """Whose learning curves are worth a look: the baselines, and the recommended arm if it is fitted in another way."""
        chosen = self._choose()
        wanted = [(learner, BASELINE.name) for learner in self.learners] + [(chosen.learner, chosen.arm)]
        failures = self._failures()
        entries = [self._entry(*key) for key in dict.fromkeys(wanted) if key not in failures]
        return [entry for entry in entries if not entry.remedy.shares_scores]

    def _learning_curve(self, entry: Entry, repeats: int) -> LearningCurve | None:
        """The curve of an arm from those parts of the training rows that were fitted in every fold; None for fewer than three sizes."""
        done = range(repeats)
        drops = [NO_DROP, *(drop for drop in range(-2, -SMALLEST_PART - 1, -1) if self._has_part(entry.arm.hash, repeats, drop))]
        if len(drops) < 3:
            return None
        rows = self.splits.rows
        board = Board(
            learner=entry.learner.name,
            arms=[entry.remedy.name, *(f"1 of {-drop}" for drop in drops[1:])],
            y=self.problem.y[rows],
            fold=np.stack([self.splits.folds(repeat)[rows] for repeat in done]),
            score=np.stack([[self._repeat_scores(entry.arm.hash, r, drop) for r in done] for drop in drops]),
            decision=None
            if self.problem.task == "regression"
            else np.stack([[self._repeat_decisions(entry, r, drop) for r in done] for drop in drops]),
            blocks=self.problem.blocks[rows],
            has_blocks=len(np.unique(self.problem.blocks[rows])) < len(rows),
        )
        sizes = [float(np.mean([len(self.splits.train_index(0, fold, drop)) for fold in range(self.protocol.folds)])) for drop in drops]
        question = self.protocol.primary
        return learning_curve(board, sizes, question, task=self.problem.task, metric=self._metric(question), cost=self.protocol.cost)

    def _has_part(self, arm: str, repeats: int, drop: int) -> bool:
        return all((arm, repeat, fold, drop) in self._info for repeat in range(repeats) for fold in range(self.protocol.folds))

    def _judge(self, question: str, interval: str, rope: float | None, level: float, repeats: int) -> Verdicts:
        if repeats < 1:
            raise CounterpoiseError(f"{self.folder}: no repeat is finished yet, so there is nothing to judge; go on with --resume.")
        boards = self._boards(repeats)
        judged = verdicts(
            boards,
            question,
            task=self.problem.task,
            metric=self._metric(question),
            cost=self.protocol.cost,
            rope=self._rope(question) if rope is None else rope,
            interval=interval,
            level=level,
            # False claims have been counted for classes and their usual metrics only.
            calibrated=() if self.protocol.cost or self.problem.task == "regression" else CALIBRATED_LEARNERS,
            reasons=self._remarks(),
            failed=self._failures(),
            stopped=[key for key, name in self._stopped().items() if name == question],
        )
        return Verdicts(sorted(judged, key=lambda verdict: -verdict.estimate if verdict.estimate == verdict.estimate else float("inf")))

    def _failures(self) -> dict[tuple[str, str], str]:
        """(learner, arm) -> why it failed; what shares the fits of a failed baseline fails with it."""
        # A fit on a part of the rows may fail for want of rows, which says nothing about the arm.
        failed = self._cells.filter((self._cells["state"] == "failed") & (self._cells["drop"] >= NO_DROP))
        reasons = {row[0]: _last_line(row[1]) for row in failed.select("arm_hash", "error").iter_rows()}
        found = {}
        for entry in self._entries:
            own = reasons.get(self._score_hash(entry))
            if own is None and entry.remedy is not BASELINE:
                base = reasons.get(self._entry(entry.learner.name, BASELINE.name).arm.hash)
                own = None if base is None else f"the baseline failed: {base}"
            if own is not None:
                found[entry.learner.name, entry.remedy.name] = own
        return found

    def _remarks(self) -> dict[tuple[str, str], str]:
        """(learner, arm) -> what its fits had to say: constant predictions, weights that were ignored."""
        found: dict[tuple[str, str], str] = {}
        for entry in self._entries:
            base = self._score_hash(entry)
            own = [info for (arm, _, _, drop), info in self._info.items() if arm == base and drop >= NO_DROP]
            notes = [note for info in own for note in info["extra"].get("notes", ())]
            if "constant predictions" in notes:
                found[entry.learner.name, entry.remedy.name] = "constant predictions"
            elif any("were ignored" in note for note in notes):
                found[entry.learner.name, entry.remedy.name] = "weights were ignored"
        return found

    def _stopped(self) -> dict[tuple[str, str], str]:
        """(learner, arm) -> the question for which it was given up early."""
        stopped = self._store.get("stopped", {})
        return {tuple(name.split("/", 1)): question for name, question in stopped.items()}

    def _clearly_harmful(self) -> set[str]:
        """Hashes of arms that need no further cells; remembered, so that whoever resumes agrees."""
        question = self.protocol.primary
        keys = clearly_harmful(
            self._boards(self.repeats_done), question, task=self.problem.task, metric=self._metric(question), cost=self.protocol.cost
        )
        harmful = [entry for entry in self._entries if (entry.learner.name, entry.remedy.name) in keys and not entry.remedy.shares_scores]
        known = self._store.get("stopped", {})
        self._store.set("stopped", known | {entry.arm.name: question for entry in harmful})
        return {entry.arm.hash for entry in harmful}

    def _more_repeats_help(self) -> bool:
        question = self.protocol.primary
        return more_repeats_help(
            self._boards(self.repeats_done), question, task=self.problem.task, metric=self._metric(question), cost=self.protocol.cost
        )

    # -- the end ----------------------------------------------------------------------------------------------------------------------

    def _choose(self) -> Recommendation:
        question = self.protocol.primary
        boards = self._boards(self.repeats_done)
        if not boards:
            raise CounterpoiseError(
                "no baseline could be fitted: " + "; ".join(f"{'/'.join(key)}: {why}" for key, why in self._failures().items())
            )
        return recommend(
            boards,
            {name: self.verdicts(name) for name in self.questions},
            primary=question,
            task=self.problem.task,
            stages={entry.remedy.name: entry.remedy.effort for entry in self._entries},
            metric=self._metric(question),
            cost=self.protocol.cost,
            accept_worse=self._accept_worse,
        )

    def _with_evidence(self, chosen: Recommendation) -> Recommendation:
        seen = self._store.get("holdout")
        if seen is not None and seen["for"] == f"{chosen.learner}/{chosen.arm}":
            return replace(chosen, holdout=HoldoutVerdict(**seen["verdict"]))
        if len(self.splits.holdout):
            return chosen  # locked still
        boards = self._boards(self.repeats_done)
        baselines = [(board.learner, board.arms[0]) for board in boards]
        question = self.protocol.primary
        expected = bias_corrected_expectation(
            boards,
            question,
            task=self.problem.task,
            metric=self._metric(question),
            cost=self.protocol.cost,
            candidates=baselines if chosen.is_baseline else None,
            chosen=(chosen.learner, chosen.arm),
            seed=self.protocol.seed,
        )
        return replace(chosen, expected=expected)

    def _finish(self, watcher: Watcher, *, fit: bool) -> None:
        """Open the hold-out for the recommendation, save the model, write the results and the page."""
        chosen = self._choose()
        if fit:
            if len(self.splits.holdout):
                self._confirm(chosen)
            self._save(chosen, watcher)
        self._recommended = None
        import io

        buffer = io.BytesIO()
        self.results.write_parquet(buffer)
        _write_atomically(self.folder / "results.parquet", buffer.getvalue())
        self.report()
        for warning in self.warnings:
            watcher.note("warning", warning)

    def _confirm(self, chosen: Recommendation) -> None:
        """Score recommended arm and baseline once on the locked rows; the answer is kept."""
        name = f"{chosen.learner}/{chosen.arm}"
        known = self._store.get("holdout")
        if known is not None and known["for"] == name:
            return
        self._store.open_holdout(name, reopen=self._reopen_holdout)
        held = self.splits.holdout
        text = None if self.problem.text is None else self.problem.text[held]
        parts = []
        for arm in dict.fromkeys((BASELINE.name, chosen.arm)):
            entry = self._entry(chosen.learner, arm)
            trained = self._train(self.problem, self.splits, entry, self.splits.rows, HOLDOUT_FIT)
            scores = make_scores(trained.model.estimator, trained.model.preprocess.transform(self.problem.X[held], text), self.problem.task)
            threshold = trained.thresholds.get(entry.remedy.rule, [])
            parts.append((scores, None if self.problem.task == "regression" else decide(scores, threshold)))
        question = self.protocol.primary
        verdict = holdout_verdict(
            self.problem.y[held],
            parts[0][0],
            parts[-1][0],
            parts[0][1],
            parts[-1][1],
            question=question,
            task=self.problem.task,
            metric=self._metric(question),
            cost=self.protocol.cost,
            blocks=self.problem.blocks[held],
        )
        from dataclasses import asdict

        self._store.set("holdout", {"for": name, "verdict": asdict(verdict)})

    def _train(self, problem: Problem, splits: Splits, entry: Entry, rows: npt.NDArray[np.int64], stream: str) -> Trained:
        with stopping() as stop:
            trained = train(problem, self.protocol, splits, entry.learner, _fitting(entry), rows, stream, 0)
            stop.check()  # what was interrupted and went on is no model
        return trained

    def _fit(self, problem: Problem, splits: Splits, chosen: Recommendation) -> FittedModel:
        from ._saving import FittedModel

        entry = self._entry(chosen.learner, chosen.arm)
        rows = np.arange(problem.n) if problem.fixed_test is None else np.flatnonzero(~problem.fixed_test)
        trained = self._train(problem, splits, entry, rows, FINAL_FIT)
        return FittedModel(
            schema=problem.schema,
            task=problem.task,
            classes=problem.schema.classes,
            preprocess=trained.model.preprocess,
            estimator=trained.model.estimator,
            threshold=trained.thresholds.get(entry.remedy.rule, []),
            learner=chosen.learner,
            remedy=chosen.arm,
        )

    def _save(self, chosen: Recommendation, watcher: Watcher) -> None:
        from ._saving import save_model

        name = f"{chosen.learner}/{chosen.arm}"
        if self._store.get("model") == name and (self.folder / "model").exists():
            return
        try:
            save_model(self.folder / "model", self._fit(self.problem, self.splits, chosen))
        except InputError as error:
            watcher.note("warning", str(error))
            return
        self._store.set("model", name)

    def _shared_rows(self, frame: pl.DataFrame, entry: Entry) -> pl.DataFrame:
        """Rows of an arm that sets another threshold on the baseline's scores."""
        import polars as pl

        base = self._score_hash(entry)
        own = frame.filter((pl.col("arm_hash") == base) & (pl.col("drop") == NO_DROP))
        names = [name for name in _metric_columns(frame) if name in frame.columns]
        metrics: list[dict[str, float | None]] = []
        thresholds: list[list[float] | None] = []
        rows = self.splits.rows
        for repeat, fold in own.select("repeat", "fold").iter_rows():
            if (base, repeat, fold, NO_DROP) not in self._info:
                metrics.append(dict.fromkeys(names))
                thresholds.append(None)
                continue
            at = self.splits.test_index(repeat, fold)
            scores = self._repeat_scores(base, repeat)[np.searchsorted(rows, at)]
            threshold = self._threshold(entry, repeat, fold)
            thresholds.append(threshold)
            metrics.append(dict(cell_metrics(self.problem.task, self.problem.y[at], scores, threshold, cost=self.protocol.cost)))
        return own.with_columns(
            *(pl.Series(name, [one[name] for one in metrics], dtype=pl.Float64) for name in names),
            pl.Series("threshold", thresholds, dtype=pl.List(pl.Float64)),
            remedy=pl.lit(entry.remedy.name),
            stage=pl.lit(entry.remedy.stage),
            arm_hash=pl.lit(entry.arm.hash),
        )


def _gain(seen: HoldoutVerdict) -> dict[str, float]:
    """Baseline and difference on the hold-out; a difference is positive where the recommended arm is better."""
    baseline = seen.value + seen.estimate if seen.metric in LOWER_IS_BETTER else seen.value - seen.estimate
    return {"baseline": baseline, "gain": seen.estimate, "low": seen.low, "high": seen.high}


def _fitting(entry: Entry) -> Remedy:
    """What is fitted for an arm: the baseline, where only the threshold differs."""
    return BASELINE if entry.remedy.shares_scores else entry.remedy


def _plan_from(store: Store, entries: Sequence[Entry], options: Mapping[str, Any]) -> Plan:
    stored = store.get("plan") or {}
    kept = set(stored.get("arms", [entry.arm.hash for entry in entries]))
    arms = tuple(entry.arm for entry in entries if entry.arm.hash in kept)
    repeats = stored.get("repeats", options["repeats"])
    return Plan(
        arms=arms,
        repeats=repeats,
        trials=1,
        cells=len(store.cells()),
        not_applicable=tuple(tuple(row) for row in options["not_applicable"]),
        shed=tuple(stored.get("shed", ())),
        seconds_per_repeat=stored.get("seconds_per_repeat"),
        jackknife=stored.get("jackknife", options.get("jackknife", 0)),
    )


def _metric_columns(frame: pl.DataFrame) -> list[str]:
    """The columns of ``results`` that hold metrics: those between ``state`` and ``threshold``."""
    columns = frame.columns
    return columns[columns.index("state") + 1 : columns.index("threshold")]


def _write_atomically(path: Path, content: bytes) -> None:
    """Beside and renamed, so that a reader sees the old file or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StoreError(f"{path} cannot be written ({error.strerror}); every finished cell is safe, go on with --resume.") from error


def _last_line(error: str | None) -> str:
    lines = (error or "").strip().splitlines()
    return lines[-1] if lines else "no reason was recorded"


def _not_stored(*args: Any, **options: Any) -> Any:
    raise CounterpoiseError("this learner is an object of the program that ran the study; fit it there.")
