"""Plots in the house's style as matplotlib figures: shared by the page of a study and the ``.plot()`` of diagnoses.

Colors are few and mean something. Every color that carries a meaning comes with a shape or a word, so that the figures can be read
without seeing colors, and every color below is unique, so that a page can replace it by a variable of its theme.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._format import distinct, percent, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]

INK, MUTED, RULE, BAND, PAPER = "#1d1c1a", "#66635d", "#cfcbc3", "#ece8df", "#fffdf9"
BLUE, RED, GRAY = "#0a5ea8", "#b8410f", "#7b7871"
COLORS = {"ink": INK, "muted": MUTED, "rule": RULE, "band": BAND, "paper": PAPER, "blue": BLUE, "red": RED, "gray": GRAY}

WIDTH = 736  # of a figure, in points: the column of the page
LEFT, SPAN = 170, 330  # where the axes with shares begin, and how wide they are
MOST_GROUPS = 24
TEXT = 13.0  # points; a page shows one as one CSS pixel

# How shares are marked: of the rows, of the step, and of the pull once fitted.
TICK: dict[str, Any] = {"marker": "|", "ms": 16, "mew": 2.6}
DOT: dict[str, Any] = {"marker": "o", "ms": 9.5, "mec": PAPER, "mew": 1}
DIAMOND: dict[str, Any] = {"marker": "D", "ms": 6.5, "mec": MUTED, "mew": 1.4}


@contextmanager
def style() -> Iterator[None]:
    """Settings of every figure; the user's own matplotlib settings stay as they are."""
    import matplotlib

    with matplotlib.rc_context(
        {
            "font.family": "sans-serif",
            "font.size": TEXT,
            "text.color": INK,
            "text.parse_math": False,  # a dollar sign in a name is a dollar sign
            "axes.edgecolor": RULE,
            "axes.facecolor": "none",
            "axes.labelcolor": MUTED,
            "axes.labelsize": TEXT - 0.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.spines.left": False,
            "axes.unicode_minus": True,
            "figure.facecolor": PAPER,
            "xtick.color": RULE,
            "ytick.color": RULE,
            "xtick.labelcolor": MUTED,
            "ytick.labelcolor": MUTED,
            "xtick.labelsize": TEXT - 1,
            "ytick.labelsize": TEXT - 1,
            "svg.fonttype": "none",
        }
    ):
        yield


def figure(width: float, height: float) -> Figure:
    """An empty figure; sizes in points. Call inside :func:`style`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72))


def axes(fig: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place given in points from the lower left corner."""
    w, h = fig.get_size_inches() * 72
    return fig.add_axes((left / w, bottom / h, width / w, height / h))


def row_text(fig: Figure, ax: Axes, row: int, x: float, text: str, **looks: Any) -> None:
    """Text at ``x`` points from the left of the figure, on a row of ``ax``."""
    from matplotlib.transforms import blended_transform_factory

    place = blended_transform_factory(fig.transFigure, ax.transData)
    ax.text(x / (fig.get_size_inches()[0] * 72), row, text, transform=place, va="center", **looks)


def plain_rows(ax: Axes, rows: int) -> None:
    """Rows counted from the top, no vertical axis."""
    ax.set_ylim(rows - 0.5, -0.5)
    ax.set_yticks([])
    ax.tick_params(axis="x", length=3, pad=4)


def rules_between(ax: Axes, rows: int) -> None:
    """Faint lines that lead the eye along a row."""
    for edge in np.arange(rows + 1) - 0.5:
        ax.axhline(edge, color=BAND, lw=1, clip_on=False, zorder=0)


def most_different(pi: Array, share: Array, most: int = MOST_GROUPS) -> npt.NDArray[np.int64]:
    """The groups that are shown, in their own order: all, or those whose share differs most from their head count."""
    distance = np.nan_to_num(np.abs(share - pi))
    return np.sort(np.argsort(-distance, kind="stable")[:most]).astype(np.int64)


def share_axis(ax: Axes, low: float, high: float, ticks: int = 7) -> None:
    """A horizontal axis of shares from ``low`` (at most 0) to ``high``, with its zero line."""
    margin = 0.04 * (high - low)
    ax.set_xlim(low - margin, high + margin)
    ax.axvline(0, color=RULE, lw=1, zorder=1)
    ax.locator_params(axis="x", nbins=ticks, steps=[1, 2, 5, 10])
    ax.xaxis.set_major_formatter(lambda value, _: percent(value, 0 if high - low > 0.06 else 1))


def head_count(ax: Axes, row: int, pi: float, share: float) -> None:
    """A tick at the share of the rows, and how far the other share lies from it."""
    if np.isfinite(share):
        ax.plot([pi, share], [row, row], color=MUTED, lw=1.6, zorder=2, solid_capstyle="butt")
    ax.plot(pi, row, color=INK, zorder=5, **TICK)


def key(fig: Figure, x: float, y: float, entries: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Marks with their words, one after the other, from ``x`` points on at ``y`` points above the bottom."""
    from matplotlib.lines import Line2D

    width, height = fig.get_size_inches() * 72
    for word, looks in entries:
        fig.add_artist(Line2D([x / width], [y / height], ls="none", **looks))
        fig.text((x + 11) / width, y / height, word, va="center", color=MUTED)
        x += 36 + 6.9 * len(word)


def share_figure(
    names: Sequence[str],
    pi: Array,
    share: Array,
    *,
    fit_share: Array | None = None,
    correct: Array | None = None,
    correct_name: str = "recall",
    counts: npt.NDArray[np.int64] | None = None,
) -> Figure:
    """Per group: share of the rows against share of the step, and beside it recall, accuracy or mean absolute error."""
    with style():
        return _share_figure(list(names), pi, share, fit_share, correct, correct_name, counts)


def count_bars(names: Sequence[str], counts: npt.NDArray[np.int64], *, title: str) -> Figure:
    """Horizontal bars with their counts."""
    with style():
        rows = min(len(names), MOST_GROUPS)
        row_height, top = 26, 40
        height = row_height * rows + top + 12
        fig = figure(560, height)
        ax = axes(fig, 150, 12, 270, row_height * rows)
        plain_rows(ax, rows)
        for row, (name, count) in enumerate(zip(names[:rows], counts[:rows], strict=True)):
            ax.barh(row, count, height=0.6, color=BLUE)
            ax.annotate(shorten(name, 18), (0, row), (-10, 0), textcoords="offset points", ha="right", va="center")
            label = f"{count:,} ({percent(count / counts.sum())})"
            ax.annotate(label, (count, row), (8, 0), textcoords="offset points", va="center", color=MUTED)
        ax.set_xticks([])
        ax.spines["bottom"].set_visible(False)
        more = f" ({len(names) - rows} more not shown)" if len(names) > rows else ""
        fig.text(10 / 560, 1 - 12 / height, title + more, va="top", weight="bold")
        return fig


def _share_figure(
    names: list[str],
    pi: Array,
    share: Array,
    fit_share: Array | None,
    correct: Array | None,
    correct_name: str,
    counts: npt.NDArray[np.int64] | None,
) -> Figure:
    shown = most_different(pi, share)
    rows = len(shown)
    row_height, top, bottom = 30, 46, 48
    height = row_height * rows + top + bottom
    fig = figure(WIDTH, height)
    left = axes(fig, LEFT, bottom, SPAN, row_height * rows)
    right = axes(fig, LEFT + SPAN + 36, bottom, 104, row_height * rows)
    for ax in (left, right):
        plain_rows(ax, rows)
        rules_between(ax, rows)
    others = [] if fit_share is None else [fit_share[shown]]
    values = np.concatenate([pi[shown], share[shown], *others, [0.0]])
    values = values[np.isfinite(values)]
    share_axis(left, min(values.min(), 0.0), max(values.max(), 0.05))
    left.set_xlabel("share of the whole")
    labels = distinct([names[k] for k in shown], 15 if counts is not None else 24)
    for row, k in enumerate(shown):
        row_text(fig, left, row, 0, labels[row])
        if counts is not None:
            row_text(fig, left, row, LEFT - 14, f"{counts[k]:,}", ha="right", color=MUTED)
        head_count(left, row, pi[k], share[k])
        if np.isfinite(share[k]):
            left.plot(share[k], row, color=BLUE, zorder=4, **DOT)
        if fit_share is not None and np.isfinite(fit_share[k]):
            left.plot(fit_share[k], row, color=PAPER, zorder=3, **DIAMOND)
    entries = [("share of rows", {"color": INK, **TICK, "ms": 15}), ("of the step, at the start", {"color": BLUE, **DOT, "mec": BLUE})]
    if fit_share is not None:
        entries.append(("of the pull, once fitted", {"color": PAPER, **DIAMOND}))
    key(fig, LEFT, height - top + 28, entries)
    _correct_column(right, rows, None if correct is None else correct[shown], correct_name)
    if len(names) > rows:
        fig.text(0.01, 6 / height, f"{len(names) - rows} more groups, closer to their head count, are not shown.", color=MUTED)
    return fig


def _correct_column(ax: Axes, rows: int, correct: Array | None, name: str) -> None:
    if correct is None or not np.isfinite(correct).any():
        ax.set_visible(False)
        return
    regression = name == "mae"
    ax.set_xlim(0, np.nanmax(correct) * 1.05 if regression else 1)
    ax.set_xlabel({"mae": "mean absolute error", "recall": "recall at 0.5" if rows == 2 else "recall"}.get(name, name))
    if not regression:
        ax.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    worst = int(np.nanargmax(correct) if regression else np.nanargmin(correct))
    for row, value in enumerate(correct):
        if np.isfinite(value):
            color = RED if row == worst and rows > 1 else GRAY
            ax.barh(row, value, height=0.34, color=color, zorder=2)
            text = f"{value:.3g}" if regression else percent(value)
            ax.annotate(
                text + (" worst" if color == RED else ""),
                (1, row),
                (8, 0),
                xycoords=ax.get_yaxis_transform(),
                textcoords="offset points",
                va="center",
                color=color if color == RED else MUTED,
            )
