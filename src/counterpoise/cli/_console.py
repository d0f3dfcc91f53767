"""What a study shows while it runs: the data, the plan, a live table of the arms, the recommendation, and where the files are.

On a terminal the table and a progress bar are redrawn in place. Anywhere else (a file, a pipe, a notebook's log) there are plain lines:
no control characters, one message per line, and at most one line of progress for every tenth of the work.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NotRequired, Self, TypedDict
from typing import Protocol as Interface

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from counterpoise.studies._types import Arm, Plan, Protocol, Watcher

if TYPE_CHECKING:
    from counterpoise.replications import Paper, Replication
    from counterpoise.scaling import IsoFlopAudit

__all__ = ["ConsoleWatcher", "TableRow", "show_audit", "show_papers", "show_replications", "study_table"]

_STYLES = {"helps": "bold green", "harms": "red", "undecided": "yellow", "failed": "bold red"}
_FILE_WIDTH = 160  # of a table of papers that goes to a file or a pipe
_MOST_FLAGGED = 10  # runs of a scaling law that are listed
_WIDE = 110  # columns of a terminal from which on an arm's own metrics and its time are shown beside the differences
_PROGRESS_SECONDS = 3.0  # between two lines of progress where nothing can be redrawn


class TableRow(TypedDict):
    """One arm of the table. ``paper`` is the number of the paper it comes from, or empty. ``values`` maps a question to (estimate, low,
    high, verdict) of the difference to the baseline of the same learner and lacks the questions that were not judged (all of them for the
    baseline itself); ``rope`` maps a question to the size of differences that do not matter; ``metric`` maps a question to the arm's own
    mean metric."""

    arm: str
    learner: str
    stage: str
    paper: str
    values: Mapping[str, tuple[float, float, float, str]]
    rope: NotRequired[Mapping[str, float]]
    metric: Mapping[str, float]
    seconds: float


class StudyLike(Interface):
    """The part of a study that is drawn."""

    @property
    def metrics(self) -> Mapping[str, str]:
        """Question -> name of its metric, in the order of the columns."""

    @property
    def protocol(self) -> Protocol:
        """Its ``primary`` question ranks the arms."""

    @property
    def files(self) -> Mapping[str, Path]:
        """What was written: a few words -> path."""

    @property
    def threshold_gain(self) -> str:
        """What moving the threshold alone is worth."""

    @property
    def detectable(self) -> str:
        """How large a difference must be to be found, as measured so far."""

    @property
    def worst_groups(self) -> Sequence[str]:
        """One sentence for each column of groups."""

    @property
    def learning_curves(self) -> Sequence[Any]:
        """Each with ``.sentence()``: what more rows would bring."""

    @property
    def provisional(self) -> Sequence[str]:
        """Learners whose verdicts are provisional."""

    @property
    def recommendation(self) -> Any:
        """With ``.summary()``: one sentence."""

    def table(self, question: str) -> Sequence[TableRow]:
        """The arms, best first for ``question``."""


def study_table(rows: Sequence[TableRow], metrics: Mapping[str, str], *, width: int, most: int | None = None) -> Table:
    """The arms as a table for a terminal of ``width`` columns: under each question the difference to the baseline, its verdict, and
    below them the interval. Questions that do not fit are left to the report. ``most`` cuts the table after that many arms and says how
    many are left out."""
    from counterpoise.studies._verdicts import METRIC_WORDS

    wide = width >= _WIDE
    # A question that nobody could judge (groups that are too small) has no column.
    metrics = {name: metric for at, (name, metric) in enumerate(metrics.items()) if not at or any(name in row["values"] for row in rows)}
    judged = list(metrics)
    metrics = dict(list(metrics.items())[: max(1, (width - 26) // 29 if wide else (width - 15) // 21)])
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 0), pad_edge=False)
    table.add_column("arm", style="bold", overflow="fold", max_width=24 if wide else 15)
    for question, metric in metrics.items():
        heading = Text.assemble(question, "\n", (METRIC_WORDS.get(metric, metric), "dim"))
        table.add_column(heading, no_wrap=not wide, overflow="ellipsis", min_width=16)
        if wide:
            table.add_column(Text.assemble("", "\n", ("itself", "dim")), justify="right")
    if wide:
        table.add_column(Text.assemble("time", "\n", ("seconds", "dim")), justify="right")
    for row in rows if most is None else rows[:most]:
        source = f" [{row['paper']}]" if row["paper"] else ""
        cells: list[RenderableType] = [Text.assemble(row["arm"], "\n", (row["learner"] + source, "not bold dim"))]
        for question in metrics:
            value = row["values"].get(question)
            own = row["metric"].get(question)
            cells.append(_difference(value, _rope(row, question)) if value else _itself(own if not wide else None))
            if wide:
                cells.append("" if own is None else _number(own, own, sign=""))
        if wide:
            cells.append(f"{row['seconds']:.1f}")
        table.add_row(*cells)
    left_out = f"and {len(rows) - most} more. " if most is not None and len(rows) > most else ""
    table.caption = Text(
        f"{left_out}Differences to the baseline of the same learner, + is better; 95 % intervals for all arms together. [number]: a paper, "
        f"see counterpoise papers.{_hidden(rows, judged[len(metrics) :])}",
        "dim",
    )
    table.caption_justify = "left"
    return table


def _hidden(rows: Sequence[TableRow], questions: Sequence[str]) -> str:
    """What has no column for want of width, and what was found there: else an arm could look as if it did nothing but harm."""
    if not questions:
        return ""
    found = [
        f"{question}, {_row_line(row, question)}"
        for question in questions
        for row in rows
        if row["values"].get(question, ("",))[-1] in ("helps", "harms")
    ]
    return f" Only in the report: {' and '.join(questions)}" + (f" ({'; '.join(found)})." if found else ".")


class ConsoleWatcher(Watcher):
    """Draws a study on a rich console. Use it as a context manager, so that the terminal is left tidy whatever happens.

    Args:
        console: where to draw; by default standard output.
        animate: redraw in place; by default only on a terminal that can.
    """

    def __init__(self, console: Console | None = None, *, animate: bool | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._animate = self.console.is_terminal and not self.console.is_dumb_terminal if animate is None else animate
        self._live: Live | None = None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            expand=True,
        )
        self._task = self._progress.add_task("", total=None)
        self._table: tuple[Sequence[TableRow], Mapping[str, str]] | None = None
        self._repeats = 0
        self._first: tuple[int, float] | None = None  # cells done and the time when the first one was reported
        self._last_line = (-1, 0.0)  # tenth of the work and time of the last line of progress

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop redrawing and give the cursor back."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    # -- what the study tells -----------------------------------------------------------------------------------------------------------

    def data(self, problem: Any, diagnosis: Any) -> None:
        self._say(_data_line(problem), "bold")
        if diagnosis is not None:
            self._say(diagnosis.summary())
        for notice in problem.notices:
            self._say(f"note: {notice}", "dim")

    def plan(self, plan: Plan) -> None:
        self._repeats = plan.repeats
        text = f"Plan: {len(plan.arms)} arms, {_count(plan.repeats, 'repeat')}"
        if plan.jackknife:
            text += f", then {plan.jackknife} rounds without a part of the rows for the interval of the rarest range"
        if plan.parts:
            text += f", learning curves from 1/{plan.parts[0]} of the training rows on"
        text += f", {_count(plan.cells, 'cell')}"
        if plan.trials > 1:
            text += f", {plan.trials} tuning trials in each"
        if plan.seconds_per_repeat is not None:
            text += f", about {_duration(plan.seconds_per_repeat * (plan.repeats + plan.jackknife))}"
        self._say(text + ".", "bold")
        if plan.smallest_difference is not None:
            self._say(_before_any_fit(plan))
        if plan.shed:
            self._say(f"Left out, the budget does not reach: {', '.join(plan.shed)}.")
        for reason, arms in _by_reason(plan.not_applicable):
            self._say(f"Not applicable: {', '.join(arms)} ({reason}).", "dim")

    def cell(self, done: int, total: int, arm: Arm | None) -> None:
        if self._animate:
            if self._live is None:
                self._live = Live(self._picture(), console=self.console, refresh_per_second=4, transient=True)
                self._live.start()
            self._progress.update(self._task, completed=done, total=total, description=arm.name if arm else "cells")
            return
        now = time.monotonic()
        if self._first is None:
            self._first = (done, now)
        tenth, last = self._last_line
        if total and done * 10 // total > tenth and (done == total or now - last >= _PROGRESS_SECONDS):
            self._last_line = (done * 10 // total, now)
            self._say(f"{100 * done // total:3d} %  {done} of {_count(total, 'cell')}{self._time_left(done, total, now)}")

    def repeat(self, study: StudyLike, repeats_done: int) -> None:
        primary = study.protocol.primary
        rows = study.table(primary)
        if self._animate:
            self._table = (rows, study.metrics)
            if self._live is not None:
                self._live.update(self._picture(), refresh=True)
            if repeats_done == 1 and study.detectable:
                self._say(study.detectable)
            return
        judged = [row for row in rows if primary in row["values"] and row["arm"] not in ("placebo", "nothing@0.5")]
        best = f"; best so far for {primary}: {_row_line(judged[0], primary)}" if judged else ""
        self._say(
            f"Repeat {repeats_done} of {self._repeats} finished{best}." if self._repeats else f"Repeat {repeats_done} finished{best}."
        )
        if repeats_done == 1 and study.detectable:
            self._say(study.detectable)

    def note(self, level: str, text: str) -> None:
        serious = level.lower() in {"warning", "error"}
        self._say(f"{level.lower() if serious else 'note'}: {text}", "yellow" if serious else "dim")

    def finished(self, study: StudyLike) -> None:
        self.close()
        self.console.print()
        self.console.print(study_table(study.table(study.protocol.primary), study.metrics, width=self.console.width))
        self.console.print()
        for line in study.worst_groups:
            self._say(line)
        if study.threshold_gain:
            self._say(study.threshold_gain)
        for curve in study.learning_curves:
            self._say(curve.sentence())
        if study.provisional:
            names = ", ".join(study.provisional)
            self._say(f"Provisional: verdicts of {names}. How often they claim falsely has not been counted yet.", "dim")
        self._say(study.recommendation.summary(), "bold")
        files = study.files
        if files:
            self.console.print()
            longest = max(len(name) for name in files)
            for name, path in files.items():
                self._say(f"{name.ljust(longest)}  {path}")

    # -----------------------------------------------------------------------------------------------------------------------------------

    def _say(self, text: str, style: str = "") -> None:
        # Text, not markup: names from the user's table may hold square brackets. Unwrapped where lines are read by programs.
        self.console.print(Text(text, style), soft_wrap=not self.console.is_terminal, highlight=False)

    def _picture(self) -> RenderableType:
        if self._table is None:
            return self._progress
        rows, metrics = self._table
        # Two lines an arm; heading, caption, bar and a margin take the rest of the screen.
        most = max(1, (self.console.height - 9) // 2)
        return Group(study_table(rows, metrics, width=self.console.width, most=most), "", self._progress)

    def _time_left(self, done: int, total: int, now: float) -> str:
        assert self._first is not None
        first, start = self._first
        if done <= first or done == total:
            return ""
        return f", about {_duration((now - start) / (done - first) * (total - done))} left"


def _data_line(problem: Any) -> str:
    parts = f"{problem.name}: {problem.n:,} rows, {_count(problem.p, 'column')}"
    if problem.text is not None:
        parts += " and text"
    if problem.task == "regression":
        return f"{parts}, regression on {problem.schema.target!r}."
    if problem.task == "binary":
        count = int(problem.counts[1])
        return f"{parts}, {count:,} {problem.schema.classes[1]!r} ({100 * count / problem.n:.2g} %) in {problem.schema.target!r}."
    counts = sorted(zip((int(count) for count in problem.counts), problem.schema.classes, strict=True))
    rarest, commonest = counts[0], counts[-1]
    return (
        f"{parts}, {len(counts)} classes in {problem.schema.target!r}, "
        f"from {rarest[0]:,} ({rarest[1]!r}) to {commonest[0]:,} ({commonest[1]!r}) rows."
    )


def _before_any_fit(plan: Plan) -> str:
    """The power rule in the words of what it was measured for."""
    from counterpoise.studies._verdicts import DETECTABLE

    known = [name for name in dict.fromkeys(arm.learner for arm in plan.arms) if name in DETECTABLE]
    learner = min(known, key=lambda name: DETECTABLE[name], default="a learner like mlp")
    return (
        f"Before any fit, roughly: with {learner}, five repeats and few arms, 4 of 5 such studies would find a difference in balanced "
        f"accuracy of about {plan.smallest_difference:.2g}; with more arms or fewer repeats it must be larger."
    )


def _difference(value: tuple[float, float, float, str], rope: float) -> Text:
    estimate, interval = _numbers(value, rope)
    verdict = value[3]
    return Text.assemble(f"{estimate} " if estimate else "", (verdict, _STYLES.get(verdict, "")), "\n", (interval, "dim"))


def _itself(own: float | None) -> Text:
    return Text.assemble(("baseline", "cyan"), "\n", ("" if own is None else _number(own, own, sign=""), "dim"))


def _rope(row: TableRow, question: str) -> float:
    return row.get("rope", {}).get(question, math.nan)


def _numbers(value: tuple[float, float, float, str], rope: float = math.nan) -> tuple[str, str]:
    """The estimate and its interval, with as many decimals as the largest of the three deserves, and enough to be compared with the
    rope; empty where there are none."""
    estimate, low, high, _ = value
    if not all(math.isfinite(number) for number in (estimate, low, high)):
        return "", ""
    scale = max(abs(estimate), abs(low), abs(high))
    # Two digits of the rope.
    least = 1 - math.floor(math.log10(rope)) if rope > 0 else 0
    return _number(estimate, scale, least), f"[{_number(low, scale, least)}, {_number(high, scale, least)}]"


def _number(value: float, scale: float, least: int = 0, *, sign: str = "+") -> str:
    scale = abs(scale)
    if 0 < scale < 0.0005 and least < 4:
        return f"{value:{sign}.1e}"
    decimals = 3 if scale < 10 else 1 if scale < 1000 else 0
    decimals = max(decimals, least) if scale < 10 else decimals
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    return f"{round(value, decimals) + 0.0:{sign},.{decimals}f}"


def _row_line(row: TableRow, question: str) -> str:
    estimate, interval = _numbers(row["values"][question], _rope(row, question))
    return " ".join(part for part in (row["arm"], f"({row['learner']})", estimate, interval, row["values"][question][3]) if part)


def _by_reason(rows: Iterable[tuple[str, str, str]]) -> list[tuple[str, list[str]]]:
    reasons: dict[str, list[str]] = {}
    for learner, remedy, reason in rows:
        reasons.setdefault(reason, []).append(f"{learner}/{remedy}")
    return list(reasons.items())


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# -- papers --------------------------------------------------------------------------------------------------------------------------------

_VERDICT_STYLES = {"replicated": "bold green", "not replicated": "red", "undecided": "yellow"}


def _plain_console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_FILE_WIDTH)


def show_papers(papers: Sequence[Paper]) -> None:
    """One row per paper: number, slug, stage, what the re-test found, title (on a narrow terminal as much of it as there is room for)."""
    from counterpoise._papers import published_verdict
    from counterpoise.replications._catalog import is_built

    console = _plain_console()
    wide = console.width >= _WIDE
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1), pad_edge=False)
    for heading in ("no.", "paper", "stage", "verdict", "title"):
        table.add_column(heading, no_wrap=heading in ("no.", "paper"))
    verdicts = [published_verdict(paper) if is_built(paper) else "not built yet" for paper in papers]
    taken = [
        max((len(text) for text in texts), default=0)
        for texts in ([paper.slug for paper in papers], [paper.stage for paper in papers], verdicts)
    ]
    room = max(console.width - sum(taken) - 21, 12)  # beside the numbers, the gaps and headings that are longer than what is below
    for paper, verdict in zip(papers, verdicts, strict=True):
        table.add_row(
            f"{paper.number:02d}",
            Text(paper.slug, "bold"),
            paper.stage,
            Text(verdict, _VERDICT_STYLES.get(verdict, "dim")),
            paper.title if wide or len(paper.title) <= room else paper.title[: room - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}",
        )
    console.print(table)


def show_audit(audit: IsoFlopAudit) -> None:
    """What a scaling law plans, whether parabolas would plan another thing and why, and the budgets."""
    console = _plain_console()
    console.soft_wrap = not console.is_terminal
    for line in audit.summary().splitlines():
        console.print(Text(line))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1), pad_edge=False)
    for heading in ("budget", "runs", "sizes", "best size", "by parabola", "predicted", "wasted without it"):
        table.add_column(heading, justify="right")
    frame = audit.to_frame()
    for row in frame.iter_rows(named=True):
        best = audit.surface.optimal_size(row["budget"])
        table.add_row(
            f"{row['budget']:.3g}",
            str(row["n_runs"]),
            f"{10 ** row['width']:.3g}x",
            f"{best:.3g}",
            *(_signed_percent(10 ** row[name] - 1) for name in ("observed_bias", "predicted_bias")),
            f"{100 * row['without_budget']:.2f} %" if math.isfinite(row["without_budget"]) else "",
        )
    table.caption = Text(
        "best size: by the fit of all runs. by parabola: that of a parabola instead, predicted: on this grid without noise. "
        "wasted without it: at the budget that is planned for, once these runs are left out.",
        "dim",
    )
    table.caption_justify = "left"
    console.print(table)
    flagged = audit.flagged
    for row in flagged.head(_MOST_FLAGGED).iter_rows(named=True):
        console.print(Text(f"row {row['row']}: N {row['N']:.4g}, D {row['D']:.4g}, loss {row['L']:.4g}: {row['reason']}"))
    if flagged.height > _MOST_FLAGGED:
        console.print(Text(f"and {flagged.height - _MOST_FLAGGED} more flagged runs"))


def _signed_percent(value: float) -> str:
    return f"{100 * value:+.1f} %" if math.isfinite(value) else ""


def show_replications(found: Sequence[Replication]) -> None:
    """Every claim with its verdict, and the sentence with the numbers."""
    console = _plain_console()
    console.soft_wrap = not console.is_terminal  # one line per finding in a file or a pipe
    for result in found:
        heading = Text.assemble((f"\n{result.slug}", "bold"), f"  {result.verdict}", f"  ({result.seconds:.0f} s)")
        console.print(heading + Text("  quick run: its verdicts do not count", "yellow") if result.quick else heading)
        for finding in result.findings:
            console.print(Text.assemble("  ", (f"{finding.verdict:<15}", _VERDICT_STYLES.get(finding.verdict, "dim")), finding.text))
        for note in result.notes:
            console.print(Text(f"  {note}", "dim"))
