"""The pictures of intersectional fairness: mean prediction of every cell beside the outcome, and loss against divergence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ._format import shorten
from ._plots import (
    BLUE,
    GRAY,
    INK,
    MOST_GROUPS,
    MUTED,
    PAPER,
    RED,
    RULE,
    WIDTH,
    Array,
    axes,
    figure,
    key,
    plain_rows,
    row_text,
    rules_between,
    style,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cells_figure(
    names: Sequence[str], counts: npt.NDArray[np.int64], prediction: Array, error: Array, outcome: Array | None, min_cell: int
) -> Figure:
    """Cells from the lowest to the highest mean prediction; those of fewer than ``min_cell`` rows in gray, and left out first."""
    order = _shown(prediction, counts, min_cell)
    with style():
        letters = min(max(len(names[cell]) for cell in order), 58)  # the last attribute is often what tells two cells apart
        rows, row, top, bottom, left = len(order), 26, 62, 44, max(330, 94 + 6.4 * letters)
        height = row * rows + top + bottom
        fig = figure(WIDTH, height)
        ax = axes(fig, left, bottom, WIDTH - left - 24, row * rows)
        plain_rows(ax, rows)
        rules_between(ax, rows)
        ax.axvline(float(np.average(prediction, weights=counts)), color=RULE, lw=1.4, zorder=1)
        for place, cell in enumerate(order):
            small = counts[cell] < min_cell
            color = GRAY if small else BLUE
            half = 1.96 * error[cell]
            ax.plot([prediction[cell] - half, prediction[cell] + half], [place, place], color=color, lw=1.6, solid_capstyle="butt")
            ax.plot(prediction[cell], place, marker="o", ms=7 if small else 9, mec=PAPER, mew=1, color=color, zorder=3)
            if outcome is not None:
                ax.plot(outcome[cell], place, marker="|", ms=14, mew=2.4, color=INK, zorder=4)
            row_text(fig, ax, place, 10, shorten(names[cell], letters))
            row_text(fig, ax, place, left - 14, f"{counts[cell]:,}", ha="right", color=MUTED)
        ax.set_xlabel("mean prediction of the cell, 95 % interval")
        left_out = f" ({rows} of {len(names)} cells)" if rows < len(names) else ""
        fig.text(10 / WIDTH, 1 - 16 / height, f"Mean prediction by intersection{left_out}", va="center", weight="bold")
        marks = [("prediction", {"marker": "o", "ms": 8, "color": BLUE})]
        if (counts[order] < min_cell).any():
            marks.append((f"fewer than {min_cell} rows", {"marker": "o", "ms": 7, "color": GRAY}))
        if outcome is not None:
            marks.append(("outcome", {"marker": "|", "ms": 13, "mew": 2.4, "color": INK}))
        key(fig, 16, height - 40, marks)
        return fig


def _shown(prediction: Array, counts: npt.NDArray[np.int64], min_cell: int) -> npt.NDArray[np.int64]:
    """Which cells have a place, in the order of their predictions: of more than fit, those that can be judged, and of these both ends."""
    order = np.argsort(prediction, kind="stable")
    if len(order) <= MOST_GROUPS:
        return order
    large = order[counts[order] >= min_cell]
    if len(large) > MOST_GROUPS:
        return np.concatenate([large[: MOST_GROUPS // 2], large[-MOST_GROUPS // 2 :]])
    largest = np.argsort(-counts, kind="stable")[:MOST_GROUPS]  # the judged ones, and the largest of the others
    return order[np.isin(order, largest)]


def front_figure(lam: Array, divergence: Array, cost: Array, cost_name: str, selected: int, target: float | None) -> Figure:
    """What a stronger penalty buys and costs: one point per strength, the chosen one in red."""
    with style():
        width, height = 520, 360
        fig = figure(width, height)
        ax = axes(fig, 84, 54, width - 84 - 34, height - 54 - 44)
        ax.plot(divergence, cost, color=BLUE, lw=1.4, marker="o", ms=7, mec=PAPER, mew=1, zorder=2)
        ax.plot(divergence[selected], cost[selected], marker="D", ms=10, color=RED, mec=PAPER, ls="none", zorder=3)
        for k, value in enumerate(lam):
            if k in (0, selected, len(lam) - 1):
                ax.annotate(
                    f"λ = {value:.3g}", (divergence[k], cost[k]), (8, 7), textcoords="offset points", color=RED if k == selected else MUTED
                )
        if target is not None:
            ax.axvline(target, color=RULE, lw=1.4, ls=(0, (4, 3)), zorder=1)
        ax.margins(0.14, 0.12)
        ax.set_xlabel("divergence between cells, bits")
        ax.set_ylabel(cost_name)
        ax.tick_params(length=3, color=RULE)
        fig.text(10 / width, 1 - 16 / height, "What a stronger penalty buys and costs", va="center", weight="bold")
        return fig
