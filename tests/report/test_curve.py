"""The picture of a performance curve shows every model, and both accuracies on one scale."""

from __future__ import annotations

import matplotlib
import numpy as np

from counterpoise.report import _curve, _plots

A = np.linspace(0.55, 0.95, 12)
B = 2 * (A - 0.75) ** 2 + 0.4
RUNS = np.arange(12) // 4


def test_every_model_is_a_dot_and_every_run_a_thread() -> None:
    figure = _curve.curve_figure(A, B, RUNS, np.stack([B - 0.05, B + 0.05], axis=1), A, 0.4 + 0 * A, B, "moon", 12, 3)
    (ax,) = figure.axes
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert len(dots) == 1 and dots[0].get_xdata().tolist() == A.tolist()
    assert sum(line.get_color() == _plots.BLUE and line.get_marker() != "o" for line in ax.lines) == 3
    assert len(ax.collections) == 1 and len(ax.collections[0].get_segments()) == 12
    assert any("12 models of 3 runs: moon" in text.get_text() for text in figure.texts)


def test_both_axes_have_one_scale() -> None:
    with _plots.style():
        figure = _plots.figure(300, 300)
        ax = _plots.axes(figure, 50, 50, 200, 200)
        _curve.draw_curve(ax, A, B, np.arange(12), A, B)
    assert ax.get_xlim() == ax.get_ylim()
    assert ax.get_xlim()[0] < B.min() and ax.get_xlim()[1] > A.max()


def test_many_runs_are_not_connected() -> None:
    many = np.arange(200)
    with _plots.style():
        ax = _plots.axes(_plots.figure(300, 300), 50, 50, 200, 200)
        _curve.draw_curve(ax, many / 200, many / 200, many, A, B)
    assert not [line for line in ax.lines if line.get_color() == _plots.BLUE and line.get_marker() != "o"]


def test_the_users_settings_stay() -> None:
    before = dict(matplotlib.rcParams)
    _curve.curve_figure(A, B, RUNS, None, A, B, B, "line", 12, 3)
    assert dict(matplotlib.rcParams) == before
