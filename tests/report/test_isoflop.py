"""The picture of an IsoFLOP audit draws what it is given, also where there is no parabola to draw."""

from __future__ import annotations

import numpy as np
import pytest

from counterpoise.report import _isoflop, _plots
from counterpoise.scaling import Allocation

SIZE = np.geomspace(1e6, 1e9, 12)
LOSS = 3 + 0.1 * np.log10(SIZE / 3e7) ** 2
FLAGGED = np.arange(12) == 11


def draw(waste=(0.063, 0.01, 0.2), slopes=((1.0, 0.5), (1.2, 0.48)), intervals=True):
    curves = [_isoflop.Curve(SIZE[:6], LOSS[:6], LOSS[:6] + 0.01, 1e18), _isoflop.Curve(SIZE[6:], LOSS[6:], LOSS[6:] + 0.01, 1e20)]
    limits = {"N_interval": (1e9, 1e10)} if intervals else {}
    plans = tuple(Allocation(1e22, N if np.isfinite(waste[0]) or N == 3e9 else np.nan, 1e12, 2.0, **limits) for N in (3e9, 5e9))
    best, vertices = (np.array([1e7, 1e8]), np.array([3.0, 3.0])), (np.array([2e7, np.nan]), np.array([3.1, np.nan]))
    return _isoflop.isoflop_figure(
        SIZE, LOSS, FLAGGED, curves, best=best, vertices=vertices, target=1e22, plans=plans, slopes=slopes, waste=waste
    )


def test_runs_fits_and_plans_are_drawn() -> None:
    figure = draw()
    runs, plans = figure.axes
    assert [len(line.get_xdata()) for line in runs.lines if line.get_marker() == "x"] == [1]
    assert sum(line.get_marker() == "None" and line.get_color() == _plots.BLUE for line in runs.lines) == 2
    assert sum(line.get_marker() == "None" and line.get_color() == _plots.RED for line in runs.lines) == 2
    assert len(plans.collections) == 2  # intervals at the target
    # A line through the plan of each: what it says at the target.
    (blue,) = [line for line in plans.lines if line.get_color() == _plots.BLUE and line.get_marker() == "None"]
    assert blue.get_ydata()[-1] == pytest.approx(10 ** (1.0 + 0.5 * 22))
    assert any(text.get_text().startswith("If the fit of all runs is right, parabolas waste 6.3") for text in figure.texts)
    assert any("crosses: flagged" in text.get_text() for text in figure.texts)


def test_without_parabolas_or_intervals_it_is_drawn_too() -> None:
    figure = draw(waste=(np.nan, np.nan, np.nan), slopes=((1.0, 0.5), (np.nan, np.nan)), intervals=False)
    assert figure.texts[0].get_text() == "Parabolas plan nothing" and len(figure.axes[1].collections) == 0
