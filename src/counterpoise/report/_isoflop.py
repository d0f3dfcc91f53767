"""The picture of an IsoFLOP audit: runs with two fits per budget, and where the two plans go from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from ._format import percent
from ._plots import BAND, BLUE, INK, MUTED, PAPER, RED, WIDTH, Array, axes, figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEFT, SIDE, GAP, BOTTOM, TOP, RIGHT = 62, 286, 84, 54, 92, 18  # of the panels, in points


@dataclass(frozen=True)
class Curve:
    """Both fits of one budget over some sizes; NaN where there is no parabola."""

    size: Array
    surface: Array
    parabola: Array
    compute: float


class Plan(Protocol):
    """The part of an allocation that is drawn."""

    @property
    def N(self) -> float:
        """Size."""

    @property
    def N_interval(self) -> tuple[float, float] | None:
        """Its limits."""


def isoflop_figure(
    size: Array,
    loss: Array,
    flagged: npt.NDArray[np.bool_],
    curves: Sequence[Curve],
    *,
    best: tuple[Array, Array],
    vertices: tuple[Array, Array],
    target: float,
    plans: tuple[Plan, Plan],
    slopes: tuple[tuple[float, float], tuple[float, float]],
    waste: tuple[float, float, float],
) -> Figure:
    """``best`` and ``vertices``: (sizes, losses) of the optima by the surface and by parabolas, one per budget. ``plans``, ``slopes`` and
    intercepts of log10 N over log10 C: first the surface's, then the parabolas'. ``waste``: of the parabolas' plan, with limits."""
    with style():
        height = BOTTOM + SIDE + TOP
        fig = figure(WIDTH, height)
        runs = axes(fig, LEFT, BOTTOM, SIDE, SIDE)
        plan = axes(fig, LEFT + SIDE + GAP, BOTTOM, WIDTH - LEFT - SIDE - GAP - RIGHT, SIDE)
        _runs(runs, size, loss, flagged, curves, best, vertices)
        _plans(plan, np.array([curve.compute for curve in curves]), best[0], vertices[0], target, plans, slopes)
        share, low, high = waste
        said = "Parabolas plan nothing"
        if np.isfinite(share):
            between = f" ({percent(low, 1)} to {percent(high, 1)})" if np.isfinite(low) else ""
            said = f"If the fit of all runs is right, parabolas waste {percent(share, 1)} at {target:.3g} FLOPs{between}"
        fig.text(10 / WIDTH, 1 - 16 / height, said, va="center", weight="bold")
        for x, y, text, color in (
            (10, 40, "fit of all runs (line, dots: best size)", BLUE),
            (268, 40, "parabola per budget (dashed, diamonds: best size)", RED),
        ):
            fig.text(x / WIDTH, 1 - y / height, text, va="center", color=color)
        marks = (
            "gray dots: runs"
            + (", crosses: flagged" if flagged.any() else "")
            + ("; in brackets: 90 % interval" if np.isfinite(low) else "")
        )
        fig.text(10 / WIDTH, 1 - 60 / height, marks, va="center", color=MUTED)
        return fig


def _runs(
    ax: Axes,
    size: Array,
    loss: Array,
    flagged: npt.NDArray[np.bool_],
    curves: Sequence[Curve],
    best: tuple[Array, Array],
    vertices: tuple[Array, Array],
) -> None:
    ax.set_xscale("log")
    _grid(ax)
    ax.plot(size[~flagged], loss[~flagged], "o", ms=3.6, color=MUTED, alpha=0.55, mew=0, zorder=2)
    ax.plot(size[flagged], loss[flagged], "x", ms=5, color=INK, mew=1.1, zorder=4)
    for curve in curves:
        ax.plot(curve.size, curve.surface, color=BLUE, lw=1.5, zorder=3)
        ax.plot(curve.size, curve.parabola, color=RED, lw=1.3, ls=(0, (4, 2)), zorder=3)
    _optima(ax, best, vertices)
    low, high = np.quantile(loss, [0.0, 0.98])
    ax.set_ylim(low - 0.06 * (high - low), high + 0.12 * (high - low))
    ax.set_xlim(size.min() / 1.4, size.max() * 1.4)
    ax.set_xlabel("size N, one curve per budget")
    ax.set_ylabel("loss")


def _plans(
    ax: Axes, budgets: Array, best: Array, vertices: Array, target: float, plans: tuple[Plan, Plan], slopes: tuple[tuple[float, float], ...]
) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    _grid(ax)
    x = np.geomspace(min(budgets.min(), target), max(budgets.max(), target), 60)
    looks: tuple[dict[str, Any], ...] = ({"color": BLUE, "lw": 2}, {"color": RED, "lw": 1.8, "ls": (0, (4, 2))})
    for shift, plan, (intercept, slope), look in zip((1 / 1.12, 1.12), plans, slopes, looks, strict=True):
        if not np.isfinite(plan.N):
            continue
        ax.plot(x, 10 ** (intercept + slope * np.log10(x)), zorder=3, **look)
        if plan.N_interval is not None and np.isfinite(plan.N_interval).all():
            ax.vlines(target * shift, *plan.N_interval, color=look["color"], lw=2.4, zorder=4)
    _optima(ax, (budgets, best), (budgets, vertices))
    _optima(ax, (np.array([target]) / 1.12, np.array([plans[0].N])), (np.array([target]) * 1.12, np.array([plans[1].N])))
    ax.axvline(target, color=BAND, lw=8, zorder=0)
    ax.set_xlabel("compute C, FLOPs")
    ax.set_ylabel("best size N")
    for label in ax.get_xticklabels() + ax.get_yticklabels():
        label.set_parse_math(True)  # powers of ten


def _optima(ax: Axes, best: tuple[Array, Array], vertices: tuple[Array, Array]) -> None:
    ax.plot(*best, "o", ms=7, color=BLUE, mec=PAPER, mew=1, zorder=6)
    ax.plot(*vertices, "D", ms=5.5, color=RED, mec=PAPER, mew=1, zorder=7)


def _grid(ax: Axes) -> None:
    ax.spines["left"].set_visible(True)
    ax.set_axisbelow(True)
    ax.grid(color=BAND, lw=1)
    ax.minorticks_off()
    ax.tick_params(length=3, pad=4)
