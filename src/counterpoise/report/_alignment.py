"""The picture of domains at a head: who is how far from whom, in gradients and in Hessians."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ._format import shorten
from ._plots import BAND, BLUE, INK, MUTED, PAPER, TEXT, WIDTH, Array, axes, figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NUMBERS = 8  # domains whose numbers fit into the cells
MOST_NAMES = 24  # domains whose names fit beside the rows
SQUARE, LEFT, GAP, TOP = 270, 110, 46, 62  # points


def alignment_figure(domains: Sequence[str], gradients: Array, hessians: Array) -> Figure:
    """Two matrices of distances (E, E), each with a scale of its own: white is 0, blue its largest distance."""
    names = [shorten(name, 14) for name in domains]
    upright = len(names) > 4
    bottom = 20 + (7 * max(map(len, names)) if upright else 16)
    with style():
        height = TOP + SQUARE + bottom
        fig = figure(WIDTH, height)
        for k, (title, distance) in enumerate((("Gradients", gradients), ("Hessians, spectral norm", hessians))):
            left = LEFT + k * (SQUARE + GAP)
            fig.text(left / WIDTH, 1 - 14 / height, title, va="center", weight="bold")
            fig.text(left / WIDTH, 1 - 36 / height, f"distance between domains, at most {distance.max():.3g}", va="center", color=MUTED)
            _matrix(axes(fig, left, bottom, SQUARE, SQUARE), names, distance, named=k == 0, rotation=90 if upright else 0)
        return fig


def _matrix(ax: Axes, names: Sequence[str], distance: Array, *, named: bool, rotation: int) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("distance", [PAPER, BLUE]).with_extremes(bad=BAND)
    E = len(names)
    shown = np.where(np.eye(E, dtype=np.bool_), np.nan, distance)
    ax.imshow(shown, cmap=colors, vmin=0, vmax=max(float(distance.max()), np.finfo(float).tiny), interpolation="nearest")
    for side in ("top", "right", "left", "bottom"):
        ax.spines[side].set_visible(True)
    few = E <= MOST_NAMES
    ax.set_yticks(range(E) if few and named else [], list(names) if few and named else [])
    ax.set_xticks(range(E) if few else [], list(names) if few else [], rotation=rotation)
    ax.tick_params(length=0, labelsize=TEXT - 3)
    if E > MOST_NUMBERS:
        return
    for e in range(E):
        for f in range(E):
            if e != f:
                dark = distance[e, f] > 0.6 * distance.max()
                ax.text(f, e, f"{distance[e, f]:.2g}", ha="center", va="center", color=PAPER if dark else INK, fontsize=TEXT - 2)
