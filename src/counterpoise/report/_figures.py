"""Figures of the page: parts of a view become inline SVG that follows the theme of the page around it.

matplotlib draws; what it wrote is then made fit for a page: colors become CSS variables, text stays text in the page's font, ids are
unique to the figure and the same on every run, and nothing refers to anything outside.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _plots
from ._format import digits_for, distinct, interval, number, percent, shorten, signed, words
from ._plots import BAND, BLUE, GRAY, INK, MUTED, PAPER, RED, RULE, WIDTH, row_text
from ._view import Alarms, Calibration, DiagnosisPart, Difference, Growth, QuestionPanel, ThresholdPanel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Shape, color and filling of each verdict: colors only repeat what the shape says.
MARKS = {
    "helps": ("^", BLUE, True),
    "harms": ("v", RED, True),
    "no difference": ("s", GRAY, True),
    "identical": ("s", GRAY, True),
    "undecided": ("o", MUTED, False),
    "failed": ("x", RED, True),
}
NUMBERS = 418  # where the column of numbers begins, in points


def mark_of(verdict: str) -> tuple[str, str, bool]:
    """The mark of the verdict that ``verdict`` starts with ("harms (stopped early)" is drawn as "harms")."""
    return next((mark for word, mark in MARKS.items() if verdict.startswith(word)), MARKS["undecided"])


def forest(panel: QuestionPanel) -> str:
    """Differences from the baseline with their intervals, by learner, placebo last, the region of practical equivalence shaded."""
    with _plots.style():
        return to_svg(_forest(panel), f"forest-{panel.question}", f"Forest plot: {panel.title}", _forest_words(panel))


def thresholds(panel: ThresholdPanel) -> str:
    """Precision, recall and balanced accuracy against the threshold."""
    words = (
        f"Precision, recall and balanced accuracy of {panel.arm} ({panel.learner}) against the threshold; the chosen one is "
        f"{number(panel.chosen, 2)}."
    )
    with _plots.style():
        return to_svg(_thresholds(panel), "threshold", "Decisions against the threshold", words)


def alarms(part: Alarms) -> str:
    """A hundred squares, one per alarm: filled are true, crossed are false."""
    true, false = round(part.true), round(part.false)
    with _plots.style():
        fig = _plots.figure(210, 210)
        ax = _plots.axes(fig, 6, 6, 198, 198)
        ax.set_xlim(-0.5, 9.5)
        ax.set_ylim(9.5, -0.5)
        ax.axis("off")
        cells = np.arange(min(true + false, 100))
        x, y = cells % 10, cells // 10
        ax.plot(x[:true], y[:true], "s", ms=14, color=BLUE, mec=BLUE)
        ax.plot(x[true:], y[true:], "s", ms=13, color=PAPER, mec=GRAY, mew=1)
        ax.plot(x[true:], y[true:], "x", ms=5, color=GRAY, mew=1)
        return to_svg(fig, "alarms", "What 100 alarms look like", f"{true} of 100 alarms are true and {false} are false.")


def calibration(part: Calibration) -> str:
    """Observed share against predicted probability, before and after prior correction."""
    words = "; ".join(f"{curve.label}: log loss {number(curve.log_loss)}, Brier score {number(curve.brier)}" for curve in part.curves)
    with _plots.style():
        return to_svg(_calibration(part), "calibration", f"Calibration of {part.arm} ({part.learner})", words)


def sizes_differ(part: Calibration) -> bool:
    """Whether the bins hold so different numbers of rows that their marks can be told apart."""
    counts = np.concatenate([curve.count[np.isfinite(curve.predicted)] for curve in part.curves] or [np.ones(1)])
    return bool(counts.size and counts.max() > 1.2 * counts.min())


def growth(part: Growth) -> str:
    """The metric over the number of training rows, one color per learning curve, and where each would go with up to four times as many."""
    with _plots.style():
        return to_svg(_growth(part), "growth", "Learning curves", " ".join(line.sentence for line in part.lines))


def shares(part: DiagnosisPart) -> str:
    """Share of the rows against share of the step against recall, one line per group."""
    fig = _plots.share_figure(
        part.names, part.pi, part.share, fit_share=part.fit_share, correct=part.correct, correct_name=part.correct_name, counts=part.counts
    )
    with _plots.style():
        return to_svg(fig, "diagnosis", "Whose training step it is", part.headline)


# ------------------------------------------------------------------------------------------------------------------------- drawing


def _forest(panel: QuestionPanel) -> Figure:
    lines = forest_lines(panel.rows)
    row_height, top, bottom = 25.0, 36.0, 50.0
    height = row_height * len(lines) + top + bottom
    fig = _plots.figure(WIDTH, height)
    ax = _plots.axes(fig, 136, bottom, 262, row_height * len(lines))
    _plots.plain_rows(ax, len(lines))
    low, high = _limits(panel)
    ax.set_xlim(low, high)
    digits = digits_for(panel.rope)
    if np.isfinite(panel.rope):
        ax.axvspan(max(-panel.rope, low), min(panel.rope, high), color=BAND, lw=0, zorder=0)
    ax.axvline(0, color=INK, lw=1, zorder=1)
    ax.locator_params(axis="x", nbins=5, steps=[1, 2, 5, 10])
    ax.xaxis.set_major_formatter(lambda value, _: _tick(value, digits))
    metric = words(panel.metric)
    unit = f" ({panel.unit})" if panel.unit not in ("", panel.metric, metric) else ""
    ax.set_xlabel(f"difference in {metric}{unit}")
    for x, ha, word in ((0.0, "left", "\N{LEFTWARDS ARROW} worse"), (1.0, "right", "better \N{RIGHTWARDS ARROW}")):
        ax.annotate(word, (x, 1), (0, 12), xycoords="axes fraction", textcoords="offset points", ha=ha, va="center", color=MUTED)
    columns = ((NUMBERS, "left", f"difference ({percent(panel.level, 0)} interval)"), (WIDTH, "right", "verdict"))
    for x, ha, word in columns:
        fig.text(x / WIDTH, 1 - (top - 12) / height, word, ha=ha, va="center", color=MUTED)
    for row, line in enumerate(lines):
        if isinstance(line, str):
            row_text(fig, ax, row, 0, line, weight="bold")
        else:
            _forest_row(fig, ax, row, line, digits)
    return fig


def forest_lines(rows: Sequence[Difference]) -> list[Difference | str]:
    """Rows in the order of drawing: a heading for each learner, its arms, all placebos at the end under a heading of their own."""
    lines: list[Difference | str] = []
    for learner in dict.fromkeys(row.learner for row in rows):
        own = [row for row in rows if row.learner == learner and not row.is_placebo]
        lines.extend([learner, *own] if own else [])
    placebos = [row for row in rows if row.is_placebo]
    return lines + (["placebo", *placebos] if placebos else [])


def _forest_row(fig: Figure, ax: Axes, row: int, line: Difference, digits: int) -> None:
    marker, color, filled = mark_of(line.verdict)
    name = line.learner if line.is_placebo else line.arm
    row_text(fig, ax, row, 14, shorten(name, 22))
    known = np.isfinite([line.estimate, line.low, line.high]).all()
    if known:
        left, right = ax.get_xlim()
        ends = np.clip([line.low, line.high], left, right)
        ax.plot(ends, [row, row], color=color, lw=2.4, solid_capstyle="butt", zorder=3)
        # An interval that leaves the picture ends in an arrow.
        for end, value, arrow in ((left, line.low, "<"), (right, line.high, ">")):
            beyond = value < left if arrow == "<" else value > right
            if beyond:
                ax.plot(end, row, marker=arrow, ms=8, color=color, zorder=3)
        if left <= line.estimate <= right:
            ax.plot(line.estimate, row, marker=marker, ms=9, color=color if filled else PAPER, mec=color, mew=1.6, zorder=4)
        text = f"{signed(line.estimate, digits)} ({interval(line.low, line.high, digits)})" if line.low < line.high else "0"
    else:
        text = "\N{EN DASH}"
    row_text(fig, ax, row, NUMBERS, text, color=INK)
    emphasis = line.verdict.startswith(("helps", "harms", "failed"))
    row_text(
        fig,
        ax,
        row,
        WIDTH,
        shorten(line.verdict.removesuffix(" predictions"), 20) + ("\N{DAGGER}" if line.provisional else ""),
        ha="right",
        color=color if emphasis else MUTED,
        weight="bold" if emphasis else "normal",
    )


def _limits(panel: QuestionPanel) -> tuple[float, float]:
    """Limits of the axis: all intervals, except that one huge interval must not make all others unreadable."""
    ends = np.array([[row.low, row.high] for row in panel.rows if np.isfinite([row.low, row.high]).all()]).reshape(-1, 2)
    rope = panel.rope if np.isfinite(panel.rope) else 0.0
    if not ends.size:
        return -3 * rope or -1.0, 3 * rope or 1.0
    reach = np.abs(ends).max(axis=1)
    cap = max(2.5 * float(np.quantile(reach, 0.8)), 4 * rope)
    low = min(max(ends[:, 0].min(), -cap), -1.6 * rope, 0.0)
    high = max(min(ends[:, 1].max(), cap), 1.6 * rope, 0.0)
    margin = 0.04 * (high - low) or 1.0
    return low - margin, high + margin


def _tick(value: float, digits: int) -> str:
    text = signed(value, digits)
    return text.rstrip("0").rstrip(".") if "." in text and text.strip("0.") else ("0" if text.strip("0.") == "" else text)


def _forest_words(panel: QuestionPanel) -> str:
    counts: dict[str, int] = {}
    for row in panel.rows:
        counts[row.verdict] = counts.get(row.verdict, 0) + 1
    found = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return f"{len(panel.rows)} comparisons with the baseline: {found}. The same numbers are in the table of all arms."


def _thresholds(panel: ThresholdPanel) -> Figure:
    height = 320.0
    fig = _plots.figure(WIDTH, height)
    ax = _plots.axes(fig, 46, 52, 520, 230)  # the names of the curves stand to the right
    ax.set_ylim(0, 1)
    finite = np.isfinite(panel.threshold)
    grid = panel.threshold[finite]
    low, high = (float(grid[0]), float(grid[-1])) if grid.size > 1 and grid[0] < grid[-1] else (panel.chosen - 1, panel.chosen + 1)
    ax.set_xlim(low, high)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    ax.tick_params(length=3, pad=4)
    for level in (0.25, 0.5, 0.75, 1):
        ax.axhline(level, color=BAND, lw=1, zorder=0)
    ax.set_xlabel(f"threshold ({panel.scale}): an alarm is raised above it")
    curves = (
        ("recall", panel.recall, BLUE, "-", 2.2),
        ("precision", panel.precision, RED, (0, (5, 2)), 2.2),
        ("balanced accuracy", panel.balanced_accuracy, INK, (0, (1.2, 1.6)), 2.4),
    )
    ends = []
    for name, values, color, dashes, lw in curves:
        known = finite & np.isfinite(values)
        if known.any():
            ax.plot(panel.threshold[known], values[known], color=color, ls=dashes, lw=lw)
            ends.append((float(values[known][-1]), name, color))
    for y, (_, name, color) in zip(_spread([end[0] for end in ends], 0.09), ends, strict=True):
        ax.annotate(name, (1, y), (10, 0), xycoords="axes fraction", textcoords="offset points", va="center", color=color, weight="bold")
    for x, word, color, dashes in ((panel.default, "0.5", MUTED, (0, (3, 3))), (panel.chosen, "chosen", INK, "-")):
        if low <= x <= high:
            ax.axvline(x, color=color, lw=1.2, ls=dashes)
            # The two labels lean away from each other, so that they stay apart however close the lines are.
            left = (x < panel.default) if word == "chosen" else (x <= panel.chosen)
            ax.annotate(
                f"{word} {number(x, 2)}" if word == "chosen" else word,
                (x, 1),
                (-3 if left else 3, 21),  # clear of a curve's name at the top
                xycoords=ax.get_xaxis_transform(),
                textcoords="offset points",
                ha="right" if left else "left",
                va="center",
                color=color,
                weight="bold" if word == "chosen" else "normal",
            )
    return fig


def _spread(values: list[float], gap: float) -> list[float]:
    """Move labels apart to at least ``gap`` from each other, keeping their order and, as far as possible, their place."""
    order = np.argsort(values, kind="stable")
    places = np.array(values, dtype=float)[order]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    places -= max(places[-1] - max(values[order[-1]], 1 - gap / 2), 0) if len(places) else 0
    result = np.empty(len(values))
    result[order] = places
    return result.tolist()


def _calibration(part: Calibration) -> Figure:
    side, left, gap, top, bottom = 262.0, 72.0, 100.0, 50.0, 52.0
    fig = _plots.figure(WIDTH, side + top + bottom)
    curves = part.curves[:2]
    filled = [np.isfinite(curve.predicted) & np.isfinite(curve.observed) for curve in curves]
    seen = np.concatenate([np.r_[curve.predicted[kept], curve.observed[kept]] for curve, kept in zip(curves, filled, strict=True)])
    high = min(max(float(seen.max(initial=0.0)) * 1.08, 0.01), 1.0)
    most = max(float(curve.count.max(initial=1)) for curve in curves)
    for i, (curve, kept) in enumerate(zip(curves, filled, strict=True)):
        ax = _plots.axes(fig, left + i * (side + gap), bottom, side, side)
        ax.set_xlim(0, high)
        ax.set_ylim(0, high)
        ax.tick_params(length=3, pad=4)
        ax.spines["left"].set_visible(True)
        ax.locator_params(nbins=5, steps=[1, 2, 5, 10])
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(lambda value, _: percent(value, 0 if high > 0.1 else 1))
        ax.plot([0, high], [0, high], color=RULE, lw=1.4, zorder=1)
        color, marker, dashes = (BLUE, "o", "-") if i else (RED, "s", (0, (4, 2)))
        predicted, observed = curve.predicted[kept], curve.observed[kept]
        ax.plot(predicted, observed, color=color, lw=1.4, zorder=2, ls=dashes)
        size = 34 + 100 * np.sqrt(curve.count[kept] / most)
        ax.scatter(predicted, observed, s=size, marker=marker, color=color, ec=PAPER, lw=0.8, zorder=3)
        ax.annotate(curve.label, (0, 1), (0, 34), xycoords="axes fraction", textcoords="offset points", weight="bold", va="center")
        scores = f"log loss {number(curve.log_loss)}, Brier score {number(curve.brier)}"
        ax.annotate(scores, (0, 1), (0, 15), xycoords="axes fraction", textcoords="offset points", color=MUTED, va="center")
        ax.set_xlabel("predicted probability")
        if not i:
            ax.set_ylabel("observed share of positives")
    return fig


def _growth(part: Growth) -> Figure:
    width, height, left, top, bottom = 440.0, 300.0, 76.0, 30.0, 54.0
    fig = _plots.figure(WIDTH, height + top + bottom)
    ax = _plots.axes(fig, left, bottom, width, height)
    ax.spines["left"].set_visible(True)
    ax.tick_params(length=3, pad=4)
    ax.set_xscale("log", base=2)
    looks = ((BLUE, "o"), (RED, "s"), (INK, "^"), (GRAY, "D"), (MUTED, "v"))
    here = part.lines[0].rows[-1]
    for line, (color, marker) in zip(part.lines, itertools.cycle(looks)):
        seen = line.line_rows <= here
        ahead = line.line_rows >= line.line_rows[seen][-1]
        ax.plot(line.rows, line.values, marker, color=color, ms=7, mec=PAPER, mew=1, zorder=4)
        if not line.goes_on:
            ax.plot(line.rows, line.values, color=color, lw=1, ls=(0, (1, 2)), zorder=3)
            continue
        ax.fill_between(line.line_rows[ahead], line.low[ahead], line.high[ahead], color=color, alpha=0.12, lw=0, zorder=1)
        ax.plot(line.line_rows[seen], line.line[seen], color=color, lw=2, zorder=3)
        ax.plot(line.line_rows[ahead], line.line[ahead], color=color, lw=2, ls=(0, (4, 2)), zorder=3)
    ax.axvline(here, color=MUTED, lw=1.2, ls=(0, (3, 3)), zorder=2)
    ax.annotate("all rows", (here, 1), (0, 12), xycoords=ax.get_xaxis_transform(), textcoords="offset points", ha="center", color=MUTED)
    ticks = np.unique(np.concatenate([part.lines[0].rows, here * np.array([2, 4])]))
    ax.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks], minor=False)
    ax.set_xticks([], minor=True)
    ax.locator_params(axis="y", nbins=6, steps=[1, 2, 5, 10])
    ax.set_xlabel("rows a model is fitted on")
    ax.set_ylabel(words(part.metric))
    low, high = ax.get_ylim()
    if high >= 1000:
        ax.yaxis.set_major_formatter("{x:,.0f}")
    ends = [(float((line.line if line.goes_on else line.values)[-1]) - low) / (high - low) for line in part.lines]
    names = distinct([line.label for line in part.lines], 24)
    for y, name, (color, _) in zip(_spread(ends, 0.075), names, itertools.cycle(looks)):
        place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "center"}
        ax.annotate(name, (1, y), (10, 0), **place, color=color, weight="bold")
    return fig


# --------------------------------------------------------------------------------------------------------------------------- to SVG


def to_svg(fig: Figure, name: str, title: str, description: str) -> str:
    """``fig`` as inline SVG: themed by CSS variables, accessible by ``title`` and ``description``, the same text on every run."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    fig.patch.set_visible(False)
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        FigureCanvasSVG(fig).print_svg(out, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})  # type: ignore[no-untyped-call]
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    # Nothing is drawn outside its axes on purpose, so clipping (and its reference by address) is not needed.
    svg = re.sub(r"<clipPath.*?</clipPath>", "", svg, flags=re.S)
    svg = re.sub(r' clip-path="[^"]*"', "", svg)
    # Ids of layers repeat from figure to figure and nobody refers to them; ids of marks are referred to.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    prefix = re.sub(r"[^a-z0-9]+", "-", name.lower())
    svg = re.sub(r'(<path id|xlink:href)="(#?)(\w+)"', rf'\1="\2{prefix}-\3"', svg).replace("xlink:href", "href")
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*\)"', "", svg)
    # Colors and long decimals, inside tags only: what is written in the figure stays as it is.
    svg = re.sub(r"<[^>]*>", lambda tag: _themed(re.sub(r"(\d+\.\d{2})\d+", r"\1", tag.group())), svg)
    svg = re.sub(r"<defs>\s*</defs>", "", svg)
    svg = re.sub(r">\s+<", "><", svg).replace("\n", " ")
    width, height = (round(float(inches) * 72) for inches in fig.get_size_inches())
    label = escape(f"{title}. {description}")
    head = f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{label}">'
    return re.sub(r"^<svg[^>]*>", lambda _: head, svg)


def _themed(tag: str) -> str:
    for variable, color in _plots.COLORS.items():
        tag = tag.replace(color, f"var(--{variable})")
    return tag
