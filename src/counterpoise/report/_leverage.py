"""The picture of mistakes: what repairing them from the top down would gain, by each metric, and whose mistakes hold it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._format import percent, shorten
from ._plots import BAND, BLUE, GRAY, INK, MUTED, PAPER, RULE, WIDTH, Array, axes, figure, plain_rows, row_text, style

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GROUPS = 396  # where the half with the groups begins, in points
MOST_GROUPS = 8
MOST_POINTS = 500  # of a line


def leverage_figure(gain_auroc: Array, gain_auprc: Array, by_group: pl.DataFrame | None) -> Figure:
    """Gains (m,) of mistakes, the highest ranked first; ``by_group`` with columns group, positives, auroc_share and auprc_share."""
    with style():
        bottom, top, height = 58, 42, 306
        width = 440 if by_group is None else WIDTH
        fig = figure(width, height)
        _curve(axes(fig, 74, bottom, GROUPS - 74 - 44 if by_group is not None else 344, height - bottom - top), gain_auroc, gain_auprc)
        fig.text(10 / width, 1 - 6 / height, "Gain from repairing mistakes, top first", va="top", weight="bold")
        if by_group is not None:
            fig.text(GROUPS / WIDTH, 1 - 6 / height, "Whose mistakes hold it", va="top", weight="bold")
            _groups(fig, axes(fig, GROUPS + 114, bottom, WIDTH - GROUPS - 114 - 20, height - bottom - top - 20), by_group)
        return fig


def _curve(ax: Axes, gain_auroc: Array, gain_auprc: Array) -> None:
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("share of the mistakes repaired")
    ax.set_ylabel("share of the possible gain")
    ticks = [0, 0.25, 0.5, 0.75, 1]
    ax.set_xticks(ticks, [percent(tick, 0) for tick in ticks])
    ax.set_yticks(ticks, [percent(tick, 0) for tick in ticks])
    for tick in ticks[1:]:
        ax.axhline(tick, color=BAND, lw=1, zorder=0)
    if not len(gain_auprc):
        ax.text(0.5, 0.5, "no mistakes", ha="center", va="center", color=MUTED)
        return
    points = np.unique(np.linspace(0, len(gain_auprc), MOST_POINTS).round().astype(int))
    for gain, color, name, place in ((gain_auprc, BLUE, "AUPRC", (0.16, -8)), (gain_auroc, GRAY, "AUROC", (0.6, -16))):
        share = np.append(0.0, np.cumsum(gain))[points] / gain.sum()
        x = points / len(gain)
        ax.plot(x, share, color=color, lw=2.4, zorder=3, clip_on=False)
        at, drop = place
        ax.annotate(name, (at, np.interp(at, x, share)), (8, drop), textcoords="offset points", color=color, weight="bold", va="top")


def _groups(fig: Figure, ax: Axes, by_group: pl.DataFrame) -> None:
    positives = by_group["positives"].to_numpy() / max(by_group["positives"].sum(), 1)
    auroc, auprc = by_group["auroc_share"].to_numpy(), by_group["auprc_share"].to_numpy()
    names = by_group["group"].to_list()
    distance = np.nan_to_num(np.abs(auprc - positives))
    shown = np.sort(np.argsort(-distance, kind="stable")[:MOST_GROUPS])
    plain_rows(ax, len(shown))
    ax.set_ylim(max(len(shown), 4) - 0.5, -0.5)
    largest = float(np.nanmax([positives[shown], np.nan_to_num(auroc[shown]), np.nan_to_num(auprc[shown])]))
    ax.set_xlim(-0.02, max(largest, 0.05) * 1.06)
    ax.locator_params(axis="x", nbins=4, steps=[1, 2, 5, 10])
    ax.xaxis.set_major_formatter(lambda value, _: percent(value, 0))
    ax.set_xlabel("share of the whole")
    for row, k in enumerate(shown):
        row_text(fig, ax, row, GROUPS, shorten(names[k], 15))
        ax.plot([positives[k], auprc[k]], [row, row], color=RULE, lw=1.6, zorder=1)
        ax.plot(positives[k], row, "|", ms=16, mew=2.6, color=INK, zorder=4)
        ax.plot(auroc[k], row, "D", ms=7, color=PAPER, mec=GRAY, mew=1.6, zorder=2)
        ax.plot(auprc[k], row, "o", ms=9.5, color=BLUE, mec=PAPER, mew=1, zorder=3)
    height = fig.get_size_inches()[1] * 72
    if len(names) > len(shown):
        fig.text(GROUPS / WIDTH, 6 / height, f"{len(names) - len(shown)} more groups are not shown.", color=MUTED)
    y = 1 - 36 / height
    for x, marker, size, edge_width, face, edge, word in (
        (GROUPS, "|", 14, 2.6, INK, INK, "positives"),
        (GROUPS + 90, "D", 7, 1.6, PAPER, GRAY, "AUROC gain"),
        (GROUPS + 206, "o", 9.5, 1, BLUE, PAPER, "AUPRC gain"),
    ):
        ax.plot((x + 5) / WIDTH, y, marker, ms=size, mew=edge_width, color=face, mec=edge, transform=fig.transFigure, clip_on=False)
        fig.text((x + 16) / WIDTH, y, word, va="center", color=MUTED)
