"""Plots that pages and diagnoses share."""

import matplotlib
import numpy as np

from counterpoise.report import _plots
from counterpoise.report._figures import _spread, mark_of, to_svg


def labels(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def test_share_figure_shows_the_groups_and_names_the_worst():
    figure = _plots.share_figure(["a", "b"], np.array([0.9, 0.1]), np.array([1.1, -0.1]), correct=np.array([0.99, 0.4]))
    found = labels(figure)
    assert {"a", "b", "share of rows"} <= set(found)
    assert any("40" in text and "worst" in text for text in found)
    low, high = figure.axes[0].get_xlim()
    assert low < -0.1 and high > 1.1


def test_many_groups_are_cut_to_those_that_differ_most():
    pi = np.full(100, 0.01)
    share = pi.copy()
    share[[3, 77]] = [0.4, -0.2]
    found = labels(_plots.share_figure([f"g{k}" for k in range(100)], pi, share))
    assert {"g3", "g77"} <= set(found)
    assert any("76 more groups" in text for text in found)


def test_plots_leave_the_settings_of_the_user_alone():
    before = dict(matplotlib.rcParams)
    _plots.count_bars(["a", "b"], np.array([3, 1]), title="Rows")
    assert dict(matplotlib.rcParams) == before


def test_labels_are_moved_apart_in_order():
    placed = _spread([0.50, 0.51, 0.99], 0.1)
    assert np.diff(placed).min() >= 0.1 - 1e-12 and placed[2] <= 0.99 + 1e-12


def test_verdicts_with_a_reason_keep_their_mark():
    assert mark_of("harms (stopped early)") == mark_of("harms")
    assert len({mark_of(verdict)[0] for verdict in ("helps", "harms", "no difference", "undecided")}) == 4


def test_svg_has_no_outside_reference_and_its_own_ids():
    with _plots.style():
        figures = []
        for name in ("one", "two"):
            figure = _plots.figure(100, 100)
            _plots.axes(figure, 10, 10, 80, 80).plot([0, 1], [0, 1], marker="o", color=_plots.BLUE)
            figures.append(to_svg(figure, name, "<title>", "words"))
    for svg, name in zip(figures, ("one", "two"), strict=True):
        assert "http" not in svg and "url(" not in svg and "<style" not in svg
        assert 'aria-label="&lt;title&gt;. words"' in svg and f'href="#{name}-' in svg
    import re

    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in figures]
    assert ids[0].isdisjoint(ids[1])
