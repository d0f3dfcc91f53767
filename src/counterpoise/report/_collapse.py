"""The pictures of neural collapse: lengths against class counts, and the angles between class means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ._plots import BAND, BLUE, GRAY, INK, MUTED, PAPER, RED, RULE, WIDTH, Array, axes, figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Counts = npt.NDArray[np.int64]

MOST_NAMES = 20  # classes whose numbers fit beside the matrix


def prediction_figure(counts: Counts, features: Array, classifier: Array, threshold: float) -> Figure:
    """Predicted lengths (K,) of features and classifier rows against the class counts, and where classes are lost."""
    with style():
        width, height = 440, 320
        fig = figure(width, height)
        ax = axes(fig, 74, 58, width - 74 - 24, height - 58 - 66)
        _lengths(ax, counts, features, classifier, None)
        low = min(float(counts.min()), threshold)
        ax.set_xlim(max(low, counts.min() / 100) / 1.4, counts.max() * 1.3)
        ax.set_ylim(0, 1.18 * ax.get_ylim()[1])  # room for the words above the highest point
        if threshold > ax.get_xlim()[0]:
            ax.axvline(threshold, color=RED, lw=1.6, ls=(0, (4, 3)), zorder=1)
            ax.annotate(
                f"lost below n* = {threshold:.3g}", (threshold, 1), (5, -2), xycoords=ax.get_xaxis_transform(), textcoords="offset points",
                color=RED, va="top", bbox={"fc": PAPER, "ec": "none", "pad": 1}, zorder=5,
            )  # fmt: skip
        fig.text(10 / width, 1 - 6 / height, "Predicted lengths, most common class = 1", va="top", weight="bold")
        _key(fig, 74, height - 40, predicted=False, classifier=True)
        return fig


def metrics_figure(counts: Counts, means: Array, classifier: Array | None, predicted: Array | None, cosines: Array) -> Figure:
    """Measured lengths (K,) against the class counts, and the cosines (K, K) between class means, most common class first."""
    with style():
        height, square = 336, 222
        fig = figure(WIDTH, height)
        _lengths(axes(fig, 74, 62, 300, height - 62 - 66), counts, means, classifier, predicted)
        fig.text(10 / WIDTH, 1 - 6 / height, "Lengths, most common class = 1", va="top", weight="bold")
        _key(fig, 74, height - 40, predicted=predicted is not None, classifier=classifier is not None)
        ax = axes(fig, 446, height - 50 - square, square, square)
        _matrix(fig, ax, counts, cosines)
        fig.text(430 / WIDTH, 1 - 6 / height, "Cosines between class means", va="top", weight="bold")
        return fig


def _lengths(ax: Axes, counts: Counts, features: Array, classifier: Array | None, predicted: Array | None) -> None:
    order = np.argsort(counts, kind="stable")
    ax.set_xscale("log")
    ax.set_xlabel("examples of the class")
    ax.axhline(1, color=BAND, lw=1, zorder=0)
    series = [(features, BLUE, "o", 8.0, BLUE)]
    if classifier is not None:
        series.append((classifier, GRAY, "D", 7.0, GRAY))
    for values, color, marker, size, face in series:
        shown = _relative(values, counts)[order]
        ax.plot(counts[order], shown, color=color, lw=1.4, marker=marker, ms=size, mfc=face, mec=PAPER, mew=1, zorder=3, clip_on=False)
    if predicted is not None:
        ax.plot(counts[order], _relative(predicted, counts)[order], color=INK, marker="_", ms=15, mew=2.2, ls="none", zorder=4)
    ax.set_ylim(bottom=0)
    ax.margins(x=0.06)
    ax.locator_params(axis="y", nbins=6)
    ax.tick_params(axis="both", which="both", length=3, color=RULE)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    ax.xaxis.set_minor_formatter(lambda value, _: "")


def _relative(lengths: Array, counts: Counts) -> Array:
    """Divided by that of the most common class which has one."""
    usable = np.where(lengths > 0, counts, -1)
    base = lengths[int(np.argmax(usable))]
    return lengths / base if base > 0 else lengths


def _matrix(fig: Figure, ax: Axes, counts: Counts, cosines: Array) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    order = np.argsort(-counts, kind="stable")
    colors = LinearSegmentedColormap.from_list("cosine", [RED, PAPER, BLUE]).with_extremes(bad=BAND)
    image = ax.imshow(cosines[np.ix_(order, order)], cmap=colors, vmin=-1, vmax=1, interpolation="nearest")
    for side in ("top", "right", "left", "bottom"):
        ax.spines[side].set_visible(True)
    named = len(order) <= MOST_NAMES
    ax.set_xticks(range(len(order)) if named else [], [str(k) for k in order] if named else [])
    ax.set_yticks(range(len(order)) if named else [], [str(k) for k in order] if named else [])
    ax.tick_params(length=0, labelsize=9)
    ax.set_xlabel("class, most common first")
    left, bottom, width, height = ax.get_position().bounds
    scale = fig.add_axes((left + width + 0.02, bottom, 0.014, height))
    bar = fig.colorbar(image, cax=scale, ticks=[-1, 0, 1])
    bar.outline.set_visible(False)


def _key(fig: Figure, x: float, y: float, *, predicted: bool, classifier: bool) -> None:
    width, height = fig.get_size_inches() * 72
    entries = [("●", BLUE, "features")]
    if classifier:
        entries.append(("◆", GRAY, "classifier rows"))
    if predicted:
        entries.append(("▬", INK, "features, predicted"))
    for sign, color, word in entries:
        fig.text(x / width, y / height, sign, color=color, va="center")
        fig.text((x + 15) / width, y / height, word, color=MUTED, va="center")
        x += 34 + 6.3 * len(word)
