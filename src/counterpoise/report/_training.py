"""What people see of the diagnosis of a training step: whose step it is, why, and how that changes over a training.

The share of a group is proportional to a product of four factors: how many its rows are, how loud each is, how unanimous they are and how
well they point along the step. The figure puts each factor beside what is typical of the other groups, so that the one behind a share
stands out.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._errors import bad_input

from . import _plots
from ._format import DASH, MINUS, amount, distinct, number, percent, plain, shorten, signed
from ._plots import BAND, BLUE, DOT, GRAY, INK, MUTED, PAPER, RED, RULE, TICK, WIDTH, Array, row_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["TrainingView", "training_curves", "training_figure", "training_page"]

NAMED = 1.5  # times the equal share from which the largest share is written in bold: one group dominates
# How far from typical a factor is called high or low: twice and half the rows, length and agreement (whose root is the factor).
FAR = {"many": 2.0, "loud": 2.0, "unanimous": math.sqrt(2.0)}
FAR_COSINE = 0.5
FACTORS = (("many", "rows"), ("loud", "length of a\ngradient"), ("unanimous", "agreement\nwithin"), ("aligned", "cosine with\nthe step"))
REACH = 8.0  # times typical at which a cell is as dark as it gets

# Places in points: the margin, the shares, their numbers (right edge), the first factor, the width of each.
PAD, LEFT, SPAN, NUMBERS, CELLS, CELL = 8, 128, 208, 388, 400, 70
TRIANGLE: dict[str, Any] = {"marker": "<", "ms": 10, "mec": PAPER, "mew": 1}
HOLLOW: dict[str, Any] = {"marker": "o", "ms": 8, "mec": GRAY, "mew": 1.8}

HIGH, LOW = "\N{BLACK UP-POINTING TRIANGLE}", "\N{BLACK DOWN-POINTING TRIANGLE}"
MOST_LINES = 10  # groups whose shares are drawn over a training
MOST_COSINES = 12  # groups whose cosines are written out


@dataclass(frozen=True, eq=False)
class TrainingView:
    """Plain results of the diagnosis of one training step, as figures and pages show them.

    Arrays have one entry per group, in one order; unknown numbers are nan, and are shown as a dash.

    Parameters
    ----------
    headline : str
        One sentence: who dominates.
    sentences : tuple of str
        What the numbers suggest, with the numbers.
    notes : tuple of str
        What a reader should know about the measurement.
    kind : str
        The word for a group: "class", "range", "group", ...
    names : tuple of str
    counts : array of int (G,)
        Examples of the probe.
    pi : array (G,)
        Share of the examples; sums to 1.
    share : array (G,)
        Signed share of the step; sums to 1. If ``settled``, the share of the pull: of the lengths of the groups' parts, never negative.
    share_lo, share_hi : arrays (G,)
        Limits of the interval of ``share``.
    settled : bool
        The mean gradient is within its sampling error: the step has no direction, and signed shares of it say nothing.
    rho : array (G,)
        Loudness: root mean square length of the gradients.
    coherence : array (G,)
        How much the gradients of a group agree, without the bias of small groups: 1 if all are alike, about 0 if they are unrelated.
    alignment : array (G,)
        Cosine of the group's mean gradient with the step, from -1 to 1.
    loss : array (G,)
        Mean loss.
    cosine : array (G, G)
        Cosines between the groups' mean gradients.
    norm, noise : float
        Length of the mean gradient, and its sampling error.
    examples : int
        Size of the probe.
    engine : str
        How gradients were measured ("ghost", "vmap", ...).
    metric : {"sgd", "optimizer"}
        Whether the step is the mean gradient or the optimizer's update.
    """

    headline: str
    sentences: tuple[str, ...]
    notes: tuple[str, ...]
    kind: str
    names: tuple[str, ...]
    counts: npt.NDArray[np.int64]
    pi: Array
    share: Array
    share_lo: Array
    share_hi: Array
    settled: bool
    rho: Array
    coherence: Array
    alignment: Array
    loss: Array
    cosine: Array
    norm: float
    noise: float
    examples: int
    engine: str
    metric: str


def training_figure(view: TrainingView) -> Figure:
    """Per group its share of the rows against its share of the step, and the factors that explain it, the headline above.

    Up to 24 groups are drawn, then those whose share differs most from their head count.
    """
    with _plots.style():
        return _step(view, title=view.headline)


def training_page(view: TrainingView, about: str = "") -> str:
    """The diagnosis of one training step as a self-contained HTML document: figure, hints and numbers.

    ``about``: what was measured and when, in a few words, for the head of the page.

    It follows the reader's light or dark theme, prints, and loads and runs nothing. The same view gives the same text, byte for byte.
    """
    from ._figures import to_svg
    from ._page import template

    with _plots.style():
        figure = to_svg(_step(view), "step", "Whose training step it is, and why", view.headline)
        known = np.isfinite(view.cosine[~np.eye(len(view.names), dtype=bool)]).any()
        cosines = to_svg(_cosines(view), "cosines", "Who pulls with whom", _cosine_words(view)) if known else ""
    return template("training.html.j2").render(
        view=view,
        about=about,
        figure=figure,
        cosines=cosines,
        rows=_rows(view),
        shown=_plots.MOST_GROUPS,
        many=_many(view.kind),
        intervals=bool(np.isfinite(view.share_lo).any()),
    )


def training_curves(views: Sequence[TrainingView], steps: Sequence[float]) -> Figure:
    """Shares of the groups over a training: one panel per group, with its interval and its share of the rows.

    ``steps`` says when each view was measured. Beyond 10 groups, those are drawn whose share differs most from their head count over all
    steps. Where a step had no direction, the share of the pull is drawn hollow and gray.
    """
    if not len(views) or len(views) != len(steps):
        bad_input("steps", f"{len(steps)} steps for {len(views)} views", "one number per view, and at least one view")
    with _plots.style():
        return _curves(list(views), np.asarray(steps, dtype=np.float64))


# ---------------------------------------------------------------------------------------------------------------------- numbers


def relative(values: Array) -> Array:
    """Each value divided by the median of the others; nan where that is unknown or not positive."""
    result = np.full(len(values), np.nan)
    for k in range(len(values)):
        others = np.delete(values, k)
        others = others[np.isfinite(others)]
        typical = float(np.median(others)) if others.size else math.nan
        if typical > 0:
            result[k] = values[k] / typical
    return result


def factors(view: TrainingView) -> dict[str, Array]:
    """``many``, ``loud`` and ``unanimous`` as times what is typical of the others, ``aligned`` as the cosine itself.

    The agreement that enters a share is the root of the coherence. Along a step without direction nothing is aligned.
    """
    agreement = np.sqrt(np.maximum(view.coherence, 0.0))  # nan stays nan
    return {
        "many": relative(view.counts.astype(np.float64)),
        "loud": relative(view.rho),
        "unanimous": relative(agreement),
        "aligned": np.full(len(view.names), np.nan) if view.settled else view.alignment,
    }


def standouts(view: TrainingView, shown: npt.NDArray[np.int64]) -> dict[str, dict[int, str]]:
    """Of each factor the shown groups that are highest ("high") and lowest ("low"), if they are far from what is typical of the others."""
    found = {}
    for name, values in factors(view).items():
        seen = shown[np.isfinite(values[shown])]
        marks: dict[int, str] = {}
        for k in seen:
            others = np.delete(values, k)
            typical = float(np.median(others[np.isfinite(others)])) if np.isfinite(others).any() else math.nan
            high = values[k] - typical >= FAR_COSINE if name == "aligned" else values[k] >= FAR[name]
            low = typical - values[k] >= FAR_COSINE if name == "aligned" else values[k] <= 1 / FAR[name]
            if high and values[k] == values[seen].max():
                marks[int(k)] = "high"
            if low and values[k] == values[seen].min():
                marks[int(k)] = "low"
        found[name] = marks
    return found


def _times(value: float) -> str:
    """12×, 1.4×, 0.07×"""
    if not math.isfinite(value):
        return DASH
    text = "<0.01" if 0 < value < 0.005 else "0" if value == 0 else number(value, 0 if value >= 9.95 else 1 if value >= 0.995 else 2)
    return text + "\N{MULTIPLICATION SIGN}"


def _size(value: float) -> str:
    """0.043, 1.940, 31.24, and 0.0008 with its digits"""
    return amount(value) if abs(value) >= 0.01 else plain(value)


def _many(kind: str) -> str:
    return kind + ("es" if kind.endswith("s") else "s")


def share_text(value: float) -> str:
    """``141 %``, ``4.2 %``, ``−3.1 %``"""
    return percent(value, 0 if abs(value) >= 0.0995 else 1)


def _rows(view: TrainingView) -> list[dict[str, Any]]:
    """One line of the page's table per group."""
    aligned = factors(view)["aligned"]
    return [
        {
            "name": name,
            "count": f"{int(view.counts[k]):,}",
            "pi": percent(view.pi[k]),
            "share": percent(view.share[k]),
            "interval": f"{number(100 * view.share_lo[k], 1)} to {percent(view.share_hi[k])}" if np.isfinite(view.share_lo[k]) else DASH,
            "rho": _size(view.rho[k]),
            "coherence": signed(view.coherence[k], 2),
            "aligned": signed(aligned[k], 2),
            "loss": _size(view.loss[k]),
        }
        for k, name in enumerate(view.names)
    ]


# ---------------------------------------------------------------------------------------------------------------------- drawing


def _step(view: TrainingView, title: str = "") -> Figure:
    shown = _plots.most_different(view.pi, view.share)
    rows, row_height = len(shown), 30
    heading = [(line, INK) for line in _wrapped(title, 96)]
    if view.settled:
        heading += [(line, RED) for line in _wrapped(_no_direction(view), 104)]
    top = 66 + 20 * len(heading)
    bottom = 56 + (20 if len(view.names) > rows else 0)
    height = row_height * rows + top + bottom
    fig = _plots.figure(WIDTH, height)
    for i, (line, color) in enumerate(heading):
        fig.text(PAD / WIDTH, 1 - (14 + 20 * i) / height, line, va="center", weight="bold" if color == INK else "normal", color=color)
    left = _plots.axes(fig, LEFT, bottom, SPAN, row_height * rows)
    _plots.plain_rows(left, rows)
    ends = [(PAD - LEFT) / SPAN, (WIDTH - PAD - LEFT) / SPAN]  # the lines go on under the names and the factors
    for edge in np.arange(rows + 1) - 0.5:
        left.plot(ends, [edge, edge], color=BAND, lw=1, clip_on=False, zorder=0, transform=left.get_yaxis_transform())
    low, high = _limits(view, shown)
    _plots.share_axis(left, low, high, ticks=6 if high - low < 1 else 5)  # labels with a sign and three digits need more room
    left.set_xlabel("share of the whole")
    dominant, names = _dominant(view), distinct([view.names[k] for k in shown], 16)
    for row, k in enumerate(shown):
        weight, color = "bold" if k == dominant else "normal", RED if view.share[k] < 0 else BLUE
        row_text(fig, left, row, PAD, names[row], weight=weight)
        row_text(fig, left, row, NUMBERS, share_text(view.share[k]), ha="right", weight=weight, color=RED if color == RED else INK)
        row_text(fig, left, row, WIDTH - PAD, _size(view.loss[k]), ha="right", color=MUTED)
        _plots.head_count(left, row, view.pi[k], view.share[k])
        _whisker(left, row, view.share_lo[k], view.share_hi[k], color)
        if np.isfinite(view.share[k]):
            looks = HOLLOW | {"color": PAPER} if view.settled else TRIANGLE | {"color": RED} if color == RED else DOT | {"color": BLUE}
            left.plot(view.share[k], row, zorder=4, **looks)
    _step_key(fig, view, shown, bottom + row_height * rows)
    _factor_columns(fig, view, shown, bottom, row_height * rows)
    if len(view.names) > rows:
        more = len(view.names) - rows
        fig.text(PAD / WIDTH, 12 / height, f"{more} more not shown: their shares are closer to their head count.", color=MUTED, va="center")
    return fig


def _wrapped(text: str, most: int) -> list[str]:
    """At most two lines."""
    lines = textwrap.wrap(text, most)
    return lines if len(lines) <= 2 else [lines[0], shorten(" ".join(lines[1:]), most)]


def _no_direction(view: TrainingView) -> str:
    return (
        f"The step has no direction: the mean gradient ({plain(view.norm)}) is not clear of its sampling error ({plain(view.noise)}). "
        "Shares are of the pull and have no sign."
    )


def _dominant(view: TrainingView) -> int:
    """The group with the largest share, if that is large and its interval leaves no doubt that it exceeds the head count; else -1."""
    groups = len(view.names)
    if groups < 2 or not np.isfinite(view.share).any():
        return -1
    k = int(np.nanargmax(view.share))
    doubtful = view.share_lo[k] <= view.pi[k] <= view.share_hi[k]  # False without an interval
    return k if view.share[k] >= NAMED / groups and not doubtful else -1


def _limits(view: TrainingView, shown: npt.NDArray[np.int64]) -> tuple[float, float]:
    """All shares, and all intervals unless a huge one would make everything else unreadable."""
    points = np.concatenate([view.pi[shown], view.share[shown], [0.0, 0.05]])
    points = points[np.isfinite(points)]
    low, high = float(points.min()), float(points.max())
    room = high - low
    ends = np.concatenate([view.share_lo[shown], view.share_hi[shown], points])
    ends = ends[np.isfinite(ends)]
    return max(float(ends.min()), low - room), min(float(ends.max()), high + room)


def _whisker(ax: Axes, row: int, low: float, high: float, color: str) -> None:
    if not np.isfinite([low, high]).all():
        return
    left, right = ax.get_xlim()
    for shade, alpha in ((PAPER, 1.0), (color, 0.4)):
        ax.plot(np.clip([low, high], left, right), [row, row], color=shade, lw=5, alpha=alpha, solid_capstyle="butt", zorder=3)
    for end, beyond, arrow in ((left, low < left, "<"), (right, high > right, ">")):
        if beyond:
            ax.plot(end, row, marker=arrow, ms=7, color=color, zorder=3)


def _step_key(fig: Figure, view: TrainingView, shown: npt.NDArray[np.int64], top: float) -> None:
    entries: list[tuple[str, dict[str, Any]]] = [("share of rows", {"color": INK, **TICK, "ms": 15})]
    if view.settled:
        entries.append(("of the pull", {"color": PAPER, **HOLLOW}))
    elif np.isfinite(view.share).any():
        interval = ", with interval" if np.isfinite(view.share_lo).any() else ""
        entries.append((f"of the step{interval}", {"color": BLUE, **DOT, "mec": BLUE}))
        if (view.share[shown] < 0).any():
            _plots.key(fig, PAD + 6, top + 14, [("below zero: the step works against it", {"color": RED, **TRIANGLE, "mec": RED})])
    _plots.key(fig, PAD + 6, top + 38, entries)


def _factor_columns(fig: Figure, view: TrainingView, shown: npt.NDArray[np.int64], bottom: float, tall: float) -> None:
    width, height = fig.get_size_inches() * 72
    top = bottom + tall
    values, marks = factors(view), standouts(view, shown)
    many = _many(view.kind)
    others = {1: ": one group, nothing to compare", 2: f": times that of the other {view.kind}"}.get(
        len(view.names), f": times what is typical of the other {many}"
    )
    fig.text((CELLS + 2) / width, (top + 38) / height, f"why{others}", va="center", color=MUTED)
    for column, (name, meaning) in enumerate(FACTORS):
        ax = _plots.axes(fig, CELLS + column * CELL, bottom, CELL - 4, tall)
        _plots.plain_rows(ax, len(shown))
        ax.set_xlim(-1, 1)
        ax.axis("off")
        x = (CELLS + column * CELL + (CELL - 4) / 2) / width
        fig.text(x, (top + 14) / height, name, ha="center", va="center", weight="bold", size=12)
        for i, line in enumerate(meaning.split("\n")):
            fig.text(x, (bottom - 16 - 13 * i) / height, line, ha="center", va="baseline", color=MUTED, size=11)
        for row, k in enumerate(shown):
            _cell(ax, row, float(values[name][k]), marks[name].get(int(k), ""), cosine=name == "aligned")
    fig.text(1 - PAD / width, (top + 14) / height, "loss", ha="right", va="center", weight="bold", size=12)


def _cell(ax: Axes, row: int, value: float, mark: str, *, cosine: bool) -> None:
    """The number on blue for more than typical (or along the step), on red for less (or against it), the darker the farther."""
    if not math.isfinite(value):
        ax.text(0, row, DASH, ha="center", va="center", color=MUTED)
        return
    distance = value if cosine else math.log(value) / math.log(REACH) if value > 0 else -1.0
    color = RED if distance < 0 else BLUE
    ax.bar(0, 0.8, 2, row - 0.4, color=color, alpha=0.42 * min(abs(distance), 1.0), lw=0)
    text = {"high": f"{HIGH} ", "low": f"{LOW} "}.get(mark, "") + (signed(value, 2) if cosine else _times(value))
    ax.text(
        0,
        row,
        text,
        ha="center",
        va="center",
        size=12,
        color=INK if mark or abs(distance) > 0.25 else MUTED,
        weight="bold" if mark else "normal",
    )


def _cosines(view: TrainingView) -> Figure:
    """One square per pair: blue pulls the same way, red the other way, with the number or, between many groups, a minus sign."""
    shown = _plots.most_different(view.pi, view.share)
    groups = len(shown)
    written = groups <= MOST_COSINES
    names = distinct([view.names[k] for k in shown], 16)
    above = distinct([view.names[k] for k in shown], 12)
    longest = max(len(name) for name in above)
    upright = 8 * longest < 44 and written
    cell = min(52.0, 580 / groups) if written else 24.0
    left, top = 24.0 + 7.5 * max(len(name) for name in names), 28.0 if upright else 30 + 5.2 * longest
    side = cell * groups
    height = side + top + 4
    fig = _plots.figure(WIDTH, height)
    ax = _plots.axes(fig, left, 4, side, side)
    _plots.plain_rows(ax, groups)
    ax.set_xlim(-0.5, groups - 0.5)
    ax.axis("off")
    for row in range(groups):
        row_text(fig, ax, row, PAD, names[row])
        place = {"ha": "center"} if upright else {"rotation": 40, "rotation_mode": "anchor"}
        ax.annotate(above[row], (row, -0.5), (0 if upright else -4, 8), textcoords="offset points", **place)
        for column in range(groups):
            value = float(view.cosine[shown[row], shown[column]])
            if row == column or not math.isfinite(value):
                text = "" if row == column else DASH
            else:
                color = RED if value < 0 else BLUE
                ax.bar(column, 0.94, 0.94, row - 0.47, color=color, alpha=0.06 + 0.5 * abs(value), lw=0)
                text = signed(value, 2) if written else MINUS if value < -0.05 else ""
            ax.text(column, row, text, ha="center", va="center", size=12 if written else 11)
    return fig


def _cosine_words(view: TrainingView) -> str:
    pairs = np.argwhere(np.triu(view.cosine < 0, 1))
    if not len(pairs):
        return f"Cosines between the mean gradients of the {_many(view.kind)}: none is negative."
    i, j = min(pairs, key=lambda pair: view.cosine[tuple(pair)])
    worst = f"the lowest is {signed(float(view.cosine[i, j]), 2)}, of {view.names[i]} and {view.names[j]}"
    return f"Cosines between the mean gradients of the {_many(view.kind)}: pairs with a negative one: {len(pairs)}; {worst}."


def _curves(views: list[TrainingView], steps: Array) -> Figure:
    """Small panels with one scale: one group in each, the others behind it in gray."""
    names = list(dict.fromkeys(name for view in views for name in view.names))
    table = np.full((4, len(names), len(views)), np.nan)  # a group may be missing in some views
    for t, view in enumerate(views):
        places = [names.index(name) for name in view.names]
        table[:, places, t] = view.pi, view.share, view.share_lo, view.share_hi
    order = np.argsort(steps, kind="stable")
    table, steps = table[:, :, order], steps[order]
    settled = np.array([view.settled for view in views])[order]
    distance = np.nansum(np.abs(table[1] - table[0]), axis=1)
    shown = np.sort(np.argsort(-distance, kind="stable")[:MOST_LINES])
    across = len(shown) if len(shown) <= 4 else math.ceil(len(shown) / 2)
    down = math.ceil(len(shown) / across)
    left, gap, tall, top, bottom, between = 58.0, 18.0, 112.0, 74.0, 40.0 + 20 * (len(names) > len(shown)), 42.0
    wide = (WIDTH - left - PAD + gap) / max(across, 2) - gap
    height = top + down * tall + (down - 1) * between + bottom
    fig = _plots.figure(WIDTH, height)
    limits = _curve_limits(table[:, shown])
    labels = distinct([names[k] for k in shown], int((wide - 44) / 8))
    for i, k in enumerate(shown):
        row, column = divmod(i, across)
        ax = _plots.axes(fig, left + column * (wide + gap), height - top - tall - row * (tall + between), wide, tall)
        _curve_panel(ax, steps, table, k, shown, settled, limits)
        ax.annotate(labels[i], (0, 1), (0, 9), xycoords="axes fraction", textcoords="offset points", va="center", weight="bold", size=12)
        last = np.flatnonzero(np.isfinite(table[1, k]))
        if last.size:
            text = share_text(table[1, k, last[-1]])
            ax.annotate(
                text, (1, 1), (0, 9), xycoords="axes fraction", textcoords="offset points", ha="right", va="center", color=MUTED, size=12
            )
        if column:
            ax.tick_params(axis="y", labelleft=False)
    entries: list[tuple[str, dict[str, Any]]] = [
        ("share of the step", {"color": BLUE, **DOT, "ms": 7}),
        ("of the rows", {"color": INK, "marker": "_", "ms": 13, "mew": 1.6}),
        ("the others", {"color": RULE, "marker": "_", "ms": 13, "mew": 1.6}),
    ]
    if settled.any():
        entries.append(("of the pull: the step had no direction", {"color": PAPER, **HOLLOW, "ms": 6}))
    _plots.key(fig, PAD + 6, height - 38, entries)
    fig.text(PAD / WIDTH, 1 - 14 / height, "Whose training step it was", va="center", weight="bold")
    if len(names) > len(shown):
        more = f"{len(names) - len(shown)} more not shown: their shares are closer to their head count."
        fig.text(PAD / WIDTH, 12 / height, more, color=MUTED, va="center")
    return fig


def _curve_limits(table: Array) -> tuple[float, float]:
    """All shares; intervals only as far as they leave the shares readable."""
    points = np.append(table[:2][np.isfinite(table[:2])], [0.0, 0.05])
    ends = np.append(table[np.isfinite(table)], points)
    low, high = float(points.min()), float(points.max())
    low, high = max(float(ends.min()), low - (high - low) / 2), min(float(ends.max()), high + (high - low) / 2)
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def _curve_panel(
    ax: Axes, steps: Array, table: Array, k: int, shown: npt.NDArray[np.int64], settled: npt.NDArray[np.bool_], limits: tuple[float, float]
) -> None:
    pi, share, low, high = table[:, k]
    ax.set_ylim(*limits)
    ax.set_xlim(*_span(steps))
    first, last = float(steps[0]), float(steps[-1])
    alone = len(steps) == 1
    ax.set_xticks([first] if alone else [first, last], [])
    for step, ha, word in [(first, "center", "step ")] if alone else [(first, "left", "step "), (last, "right", "")]:
        text = f"{word}{step:,.6g}"
        ax.annotate(
            text,
            (step, 0),
            (0, -13),
            xycoords=ax.get_xaxis_transform(),
            textcoords="offset points",
            ha=ha,
            va="center",
            color=MUTED,
            size=11,
        )
    ax.locator_params(axis="y", nbins=4, steps=[1, 2, 5, 10])
    ax.yaxis.set_major_formatter(lambda value, _: percent(value, 0 if limits[1] - limits[0] > 0.06 else 1))
    ax.tick_params(length=3, pad=4, labelsize=11)
    ax.axhline(0, color=RULE, lw=1, zorder=1)
    for j in shown:
        if j != k:
            ax.plot(steps, np.where(settled, np.nan, table[1, j]), color=RULE, lw=1, zorder=1, clip_on=True)
    inside = np.clip(low, *limits), np.clip(high, *limits)
    ax.fill_between(steps, *inside, where=np.isfinite(low) & ~settled, color=BLUE, alpha=0.2, lw=0, zorder=2)
    ax.plot(steps, pi, color=INK, lw=1.6, zorder=3, marker="_" if alone else "", ms=26, mew=1.6)
    ax.plot(
        steps,
        np.where(settled, share, np.nan),
        color=GRAY,
        lw=1,
        ls=(0, (2, 2)),
        marker="o",
        ms=4.5,
        mfc=PAPER,
        mec=GRAY,
        mew=1.4,
        zorder=4,
    )
    ax.plot(steps, np.where(settled, np.nan, share), color=BLUE, lw=2, marker="o", ms=4 if len(steps) <= 30 else 0, zorder=5)


def _span(steps: Array) -> tuple[float, float]:
    low, high = float(steps.min()), float(steps.max())
    margin = 0.04 * (high - low) or 1.0
    return low - margin, high + margin
