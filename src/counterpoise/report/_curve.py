"""The picture of a performance curve: minority against majority accuracy, one point per model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._plots import BAND, BLUE, GRAY, INK, MUTED, PAPER, RED, RULE, Array, axes, figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIDE, LEFT, BOTTOM, TOP, RIGHT = 400, 64, 56, 66, 40  # of the panel, in points
MOST_RUNS = 40  # whose checkpoints are connected


def curve_figure(
    majority: Array,
    minority: Array,
    runs: npt.NDArray[Any],
    limits: Array | None,
    grid: Array,
    line: Array,
    parabola: Array,
    shape: str,
    n_models: int,
    n_runs: int,
) -> Figure:
    """Points (n,) with the limits (n, 2) of the minority accuracy, and the two fits on ``grid``."""
    with style():
        width, height = LEFT + SIDE + RIGHT, BOTTOM + SIDE + TOP
        fig = figure(width, height)
        ax = axes(fig, LEFT, BOTTOM, SIDE, SIDE)
        draw_curve(ax, majority, minority, runs, grid, parabola, limits=limits, line=line)
        ax.set_xlabel("accuracy on the majority")
        ax.set_ylabel("accuracy on the minority")
        fig.text(10 / width, 1 - 16 / height, f"{n_models} models of {n_runs} runs: {shape}", va="center", weight="bold")
        fig.text(10 / width, 1 - 40 / height, "dots: models   ", va="center", color=BLUE)
        fig.text(104 / width, 1 - 40 / height, "parabola", va="center", color=RED)
        fig.text(176 / width, 1 - 40 / height, "line (dashed)", va="center", color=GRAY)
        fig.text(276 / width, 1 - 40 / height, "equal accuracy (dotted)", va="center", color=MUTED)
        return fig


def draw_curve(
    ax: Axes,
    majority: Array,
    minority: Array,
    runs: npt.NDArray[Any],
    grid: Array,
    parabola: Array,
    *,
    limits: Array | None = None,
    line: Array | None = None,
    size: float = 5,
) -> None:
    """Both axes have one scale, wide enough for everything that is shown. ``size``: of a dot, in points."""
    shown = np.concatenate([majority, minority] + ([] if limits is None else [limits.ravel()]))
    low, high = max(shown.min() - 0.03, -0.02), min(shown.max() + 0.03, 1.02)
    ax.set_xlim(low, high)
    ax.set_ylim(low, high)
    ax.spines["left"].set_visible(True)
    ax.set_axisbelow(True)
    ax.grid(color=BAND, lw=1)
    ax.plot([0, 1], [0, 1], color=RULE, lw=1.4, ls=":", zorder=1)
    names, codes = np.unique(runs, return_inverse=True)
    if len(names) <= MOST_RUNS:
        for run in range(len(names)):
            ax.plot(majority[codes == run], minority[codes == run], color=BLUE, lw=0.7, alpha=0.25, zorder=2)
    if limits is not None:
        ax.vlines(majority, limits[:, 0], limits[:, 1], color=BLUE, lw=0.8, alpha=0.3, zorder=2)
    ax.plot(majority, minority, "o", ms=size, color=BLUE, mec=PAPER, mew=0.6, zorder=3)
    if line is not None:
        ax.plot(grid, line, color=GRAY, lw=1.8, ls="--", zorder=4)
    ax.plot(grid, parabola, color=PAPER, lw=4, zorder=4)
    ax.plot(grid, parabola, color=RED, lw=2.2, zorder=5)
    ax.tick_params(colors=INK)
