"""What a study shows while it runs, on terminals of two widths and where nothing can be redrawn."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from counterpoise._papers import papers
from counterpoise.cli import _console
from counterpoise.cli._console import ConsoleWatcher, TableRow, study_table
from counterpoise.studies._types import Arm, Plan, Protocol

METRICS = {"decisions": "balanced_accuracy", "ranking": "auroc", "probabilities": "log_loss"}
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


def row(arm: str, learner: str, *values: tuple[float, float, float, str], own: float = 0.8) -> TableRow:
    return TableRow(
        arm=arm,
        learner=learner,
        stage="data",
        paper="23" if arm == "smote" else "",
        values=dict(zip(METRICS, values, strict=False)),
        metric=dict.fromkeys(METRICS, own),
        seconds=12.3,
    )


ROWS = [
    row(
        "balanced-forest",
        "forest",
        (0.0312, 0.011, 0.0514, "helps"),
        (-0.002, -0.004, 0.001, "no difference"),
        (-0.24, -0.31, -0.17, "harms"),
    ),
    row("nothing", "forest"),
    row("smote", "linear", (0.004, -0.02, 0.028, "undecided"), (np.nan, np.nan, np.nan, "failed"), (0.0, 0.0, 0.0, "identical")),
]


class FinishedStudy:
    metrics: Mapping[str, str] = METRICS
    protocol = Protocol("binary", primary="decisions")
    provisional: Sequence[str] = ("trees",)
    threshold_gain = "Moving the threshold alone, from 0.5: linear +0.057 balanced accuracy."
    worst_groups: Sequence[str] = ("By [sex]: 1 of 2 groups too few to judge (fewer than 20 positives): no worst-group verdict.",)
    learning_curves = (SimpleNamespace(sentence=lambda: "More rows: linear has AUROC 0.9 from [800]; twice as many would bring +0.01."),)
    detectable = "Measured after 1 repeat: 4 of 5 such studies would find a difference in balanced accuracy of 0.03 to 0.05."
    files: Mapping[str, Path] = {"report": Path("runs/a/report.html"), "model": Path("runs/a/model")}
    recommendation = SimpleNamespace(summary=lambda: "Use it: balanced-forest raises balanced accuracy by 0.03 (at least 0.01).")

    def table(self, question: str) -> list[TableRow]:
        assert question == "decisions"
        return ROWS


def problem(**changes: Any) -> SimpleNamespace:
    content = {
        "name": "loans",
        "n": 11183,
        "p": 6,
        "text": None,
        "task": "binary",
        "counts": np.array([10923, 260]),
        "schema": SimpleNamespace(target="default", classes=("no", "yes [late]")),
        "notices": ("3,338 rows are copies of another row.",),
    }
    return SimpleNamespace(**(content | changes))


DIAGNOSIS = SimpleNamespace(summary=lambda: "Class 'no' is 97.7 % of the rows and 81 % of the step at the start of training.")
PLAN = Plan(
    tuple(Arm(r["learner"], r["arm"]) for r in ROWS),
    repeats=5,
    trials=8,
    cells=75,
    not_applicable=(("linear", "focal", "needs a net"), ("trees", "focal", "needs a net")),
    shed=("mlp/over",),
    seconds_per_repeat=60.0,
    smallest_difference=0.0423,
)


def watch(watcher: ConsoleWatcher, *, cells: int = 75, repeats: int = 5) -> str:
    with watcher:
        watcher.data(problem(), DIAGNOSIS)
        watcher.plan(PLAN)
        for done in range(1, cells + 1):
            watcher.cell(done, cells, PLAN.arms[0])
            if done % (cells // repeats) == 0:
                watcher.repeat(FinishedStudy(), done // (cells // repeats))
        watcher.note("warning", "linear/over failed twice: out of memory")
        watcher.finished(FinishedStudy())
    file = watcher.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def console(width: int, *, terminal: bool = False, height: int = 40) -> Console:
    return Console(file=io.StringIO(), width=width, height=height, force_terminal=terminal, highlight=False, legacy_windows=False)


def test_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_console, "_PROGRESS_SECONDS", 0.0)
    text = watch(ConsoleWatcher(console(80)))
    assert CONTROL.search(text) is None
    lines = text.splitlines()
    assert lines[:9] == [
        "loans: 11,183 rows, 6 columns, 260 'yes [late]' (2.3 %) in 'default'.",
        "Class 'no' is 97.7 % of the rows and 81 % of the step at the start of training.",
        "note: 3,338 rows are copies of another row.",
        "Plan: 3 arms, 5 repeats, 75 cells, 8 tuning trials in each, about 5 min.",
        "Before any fit, roughly: with linear, five repeats and few arms, 4 of 5 such studies would find a difference in balanced accuracy "
        "of about 0.042; with more arms or fewer repeats it must be larger.",
        "Left out, the budget does not reach: mlp/over.",
        "Not applicable: linear/focal, trees/focal (needs a net).",
        "  1 %  1 of 75 cells",
        " 10 %  8 of 75 cells, about 1 s left",
    ]
    assert "Repeat 2 of 5 finished; best so far for decisions: balanced-forest (forest) +0.031 [+0.011, +0.051] helps." in lines
    assert "warning: linear/over failed twice: out of memory" in lines
    assert lines[-4:] == [
        "Use it: balanced-forest raises balanced accuracy by 0.03 (at least 0.01).",
        "",
        "report  runs/a/report.html",
        "model   runs/a/model",
    ]
    assert sum("of 75 cells" in line for line in lines) == 11  # the first cell, then every tenth


def test_progress_lines_keep_their_distance() -> None:
    text = watch(ConsoleWatcher(console(80)), cells=1000)
    assert text.count("of 1,000 cells") == 2  # 1,000 cells in no time: the first line and the last


def test_resumed_studies_do_not_count_what_was_there_in_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_console, "_PROGRESS_SECONDS", 0.0)
    clock = iter([0.0, 10.0, 20.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    watcher = ConsoleWatcher(console(80))
    for done in (50, 60, 70):
        watcher.cell(done, 100, None)
    assert watcher.console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        " 50 %  50 of 100 cells",
        " 60 %  60 of 100 cells, about 40 s left",
        " 70 %  70 of 100 cells, about 30 s left",
    ]


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_the_table_fits_and_nothing_is_cut(width: int) -> None:
    shown = console(width)
    shown.print(study_table(ROWS, METRICS, width=width))
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for expected in (
        "balanced-forest",
        "+0.031 helps",
        "[+0.011, +0.051]",
        "-0.002 no difference",
        "-0.240 harms",
        "+0.004 undecided",
        "failed",
        "+0.000 identical",
        "baseline",
        "balanced accuracy",
        "log loss",
    ):
        assert expected in text
    assert ("12.3" in text) == (width >= 110)


def test_questions_that_do_not_fit_are_left_to_the_report() -> None:
    for width, shown_questions in ((80, 3), (120, 3), (150, 4)):
        shown = console(width)
        judged = [ROWS[0] | {"values": ROWS[0]["values"] | {"groups": (0.01, -0.1, 0.12, "undecided")}}, *ROWS[1:]]
        shown.print(study_table(judged, METRICS | {"groups": "recall"}, width=width))  # type: ignore[arg-type]
        text = shown.file.getvalue()  # type: ignore[attr-defined]
        assert ("groups" in text.splitlines()[0]) == (shown_questions == 4) and "probabilities" in text
        assert ("Only in the report: groups." in " ".join(text.split())) == (shown_questions == 3)
        assert max(map(len, text.splitlines())) <= width


def test_a_finding_without_a_column_is_named_below() -> None:
    """A remedy against dependence is judged on dependence: it must not look as if it did nothing but harm."""
    shown = console(80)
    judged = [ROWS[0] | {"values": ROWS[0]["values"] | {"dependence": (0.1137, 0.0734, 0.154, "helps")}}, *ROWS[1:]]
    shown.print(study_table(judged, METRICS | {"dependence": "divergence"}, width=80))  # type: ignore[arg-type]
    text = " ".join(shown.file.getvalue().split())  # type: ignore[attr-defined]
    assert "Only in the report: dependence (dependence, balanced-forest (forest) +0.114 [+0.073, +0.154] helps)." in text


def test_rounds_after_the_repeats_are_planned_aloud() -> None:
    shown = console(200)
    ConsoleWatcher(shown).plan(Plan(PLAN.arms, repeats=1, trials=1, cells=605, jackknife=10))
    said = shown.file.getvalue().splitlines()[0]  # type: ignore[attr-defined]
    assert said == ("Plan: 3 arms, 1 repeat, then 10 rounds without a part of the rows for the interval of the rarest range, 605 cells.")
    timed = console(200)
    ConsoleWatcher(timed).plan(Plan(PLAN.arms, repeats=2, trials=1, cells=605, jackknife=10, seconds_per_repeat=60.0))
    assert "about 12 min" in timed.file.getvalue()  # type: ignore[attr-defined]


def test_the_best_so_far_is_a_remedy() -> None:
    class Placebo(FinishedStudy):
        def table(self, question: str) -> list[TableRow]:
            return [row("placebo", "linear", (0.05, 0.01, 0.09, "helps")), *ROWS]

    shown = console(200)
    ConsoleWatcher(shown).repeat(Placebo(), 1)
    assert "best so far for decisions: balanced-forest (forest)" in shown.file.getvalue()  # type: ignore[attr-defined]


def test_a_question_that_nobody_could_judge_has_no_column() -> None:
    shown = console(150)
    shown.print(study_table(ROWS, METRICS | {"groups": "worst_group_recall"}, width=150))
    assert "groups" not in shown.file.getvalue()  # type: ignore[attr-defined]


def test_the_rope_can_be_told_from_the_differences() -> None:
    close = row("smote", "linear", (0.00012, -0.0009, 0.0011, "undecided"), (0.004, -0.001, 0.009, "undecided"))
    close["rope"] = {"decisions": 0.00017, "ranking": 0.005}
    shown = console(80)
    shown.print(study_table([close], METRICS, width=80))
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    assert "+0.00012 undecided" in text and "[-0.00090, +0.00110]" in text
    assert "+0.0040 undecided" in text and "[-0.0010, +0.0090]" in text


def test_groups_and_the_measured_power_are_said() -> None:
    text = watch(ConsoleWatcher(console(100)))
    assert text.count(FinishedStudy.detectable) == 1  # after the first repeat
    after = text[text.index("Repeat 1 of 5") :]
    assert after.index(FinishedStudy.detectable) < after.index("Repeat 2 of 5")
    assert text.index("Differences to the baseline") < text.index(FinishedStudy.worst_groups[0]) < text.index("Moving the threshold alone")
    assert text.index("Moving the threshold alone") < text.index(FinishedStudy.learning_curves[0].sentence())


@pytest.mark.parametrize(("width", "whole"), [(80, False), (200, True)])
def test_papers_have_a_title_on_every_terminal(monkeypatch: pytest.MonkeyPatch, width: int, whole: bool) -> None:
    shown = console(width, terminal=True)
    monkeypatch.setattr(_console, "_plain_console", lambda: shown)
    _console.show_papers(papers())
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.file.getvalue()).splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= width
    smote = next(line for line in lines if line.startswith("23"))
    assert ("SMOTE: Synthetic Minority Over-sampling Technique" in smote) == whole and "SMOTE: S" in smote
    assert whole or "\N{HORIZONTAL ELLIPSIS}" in smote
    assert [line[:2] for line in lines if line[:2].isdigit()] == [f"{paper.number:02d}" for paper in papers()]


def test_a_long_table_says_what_is_left_out() -> None:
    shown = console(80)
    shown.print(study_table(ROWS, METRICS, width=80, most=1))
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    assert "and 2 more" in text and "smote" not in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ((0.0004, -0.0001, 0.0009, "helps"), ("+0.000", "[+0.000, +0.001]")),
        ((12.34, -5.0, 29.9, "helps"), ("+12.3", "[-5.0, +29.9]")),
        ((1234.5, -20.0, 2345.6, "helps"), ("+1,234", "[-20, +2,346]")),
        ((2e-5, 1e-5, 3e-5, "helps"), ("+2.0e-05", "[+1.0e-05, +3.0e-05]")),
        ((0.0, 0.0, 0.0, "identical"), ("+0.000", "[+0.000, +0.000]")),
        ((np.nan, np.nan, np.nan, "failed"), ("", "")),
    ],
)
def test_numbers_have_the_decimals_they_deserve(value: tuple[float, float, float, str], shown: tuple[str, str]) -> None:
    assert _console._numbers(value) == shown


def test_a_terminal_is_redrawn_and_left_tidy() -> None:
    text = watch(ConsoleWatcher(console(80, terminal=True)))
    assert "\x1b[?25l" in text and text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")  # cursor hidden, then given back
    assert "forest/balanced-forest" in text and "75/75" in text
    final = text[text.rfind("\x1b[?25h") :]
    assert "Use it: balanced-forest" in final and "runs/a/report.html" in final


def test_the_cursor_comes_back_after_an_error() -> None:
    watcher = ConsoleWatcher(console(80, terminal=True))
    with pytest.raises(ZeroDivisionError), watcher:
        watcher.cell(1, 10, None)
        raise ZeroDivisionError
    text = watcher.console.file.getvalue()  # type: ignore[attr-defined]
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l") >= 0


def test_the_live_table_fits_the_screen() -> None:
    shown = console(80, terminal=True, height=20)
    watcher = ConsoleWatcher(shown)
    with watcher:
        watcher.plan(PLAN)
        watcher.cell(1, 10, None)
        many = FinishedStudy()
        many.table = lambda question: ROWS * 10  # type: ignore[method-assign]
        watcher.repeat(many, 1)
        lines = shown.render_lines(watcher._picture())
    assert len(lines) <= 20


def test_color_is_left_out_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    colored = re.compile(r"\x1b\[[0-9;]*3[0-7]")
    assert colored.search(watch(ConsoleWatcher(console(80, terminal=True))))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colored.search(watch(ConsoleWatcher(console(80, terminal=True))))


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert CONTROL.search(watch(ConsoleWatcher(console(80, terminal=True)))) is None


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"task": "regression", "p": 1, "schema": SimpleNamespace(target="price", classes=())},
            "loans: 11,183 rows, 1 column, regression on 'price'.",
        ),
        (
            {"task": "multiclass", "counts": np.array([7, 3, 90]), "schema": SimpleNamespace(target="kind", classes=("a", "b", "c"))},
            "loans: 11,183 rows, 6 columns, 3 classes in 'kind', from 3 ('b') to 90 ('c') rows.",
        ),
        ({"text": np.array(["x"])}, "loans: 11,183 rows, 6 columns and text, 260 'yes [late]' (2.3 %) in 'default'."),
    ],
)
def test_data_line(changes: dict[str, Any], line: str) -> None:
    assert _console._data_line(problem(**changes)) == line


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (7200, "2.0 h")])
def test_duration(seconds: float, text: str) -> None:
    assert _console._duration(seconds) == text


def test_a_terminal_picture_can_be_exported() -> None:
    recorded = Console(file=io.StringIO(), record=True, width=100, force_terminal=True, color_system="truecolor", highlight=False)
    watch(ConsoleWatcher(recorded, animate=False))
    picture = recorded.export_svg(title="counterpoise study")
    assert picture.startswith("<svg") and "balanced-forest" in picture


def test_importing_the_console_is_light() -> None:
    heavy = ["torch", "sklearn", "polars", "matplotlib"]
    code = f"import sys, counterpoise.cli._console; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
