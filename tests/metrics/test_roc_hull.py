from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from counterpoise._errors import InputError
from counterpoise.metrics import Hull, OperatingPoint, roc_convex_hull

RATES = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=30)


def test_by_hand() -> None:
    hull = roc_convex_hull([0.0, 0.2, 0.4, 0.5, 0.2, 1.0], [0.4, 0.6, 0.9, 0.9, 0.3, 1.0], labels="abcdef")
    assert isinstance(hull, Hull)
    assert hull.vertices.tolist() == [[0, 0], [0, 0.4], [0.4, 0.9], [1, 1]]
    assert hull.labels == ("predict no row", "a", "c", "f") and hull.index.tolist() == [-1, 0, 2, 5]
    assert hull.area == pytest.approx(0.4 * (0.4 + 0.9) / 2 + 0.6 * (0.9 + 1) / 2)
    frame = hull.to_frame()
    assert frame["slope_high"].to_list() == pytest.approx([np.inf, np.inf, 1.25, 1 / 6])
    assert frame["slope_low"].to_list() == pytest.approx([np.inf, 1.25, 1 / 6, 0])
    assert hull.summary() == "Potentially the best: a, c, f (area under the hull 0.8300)."


def test_nothing_better_than_guessing() -> None:
    for points in ([[0.5], [0.5]], [[0.7], [0.2]], [[1.0], [0.0]], [[0.0, 1.0], [0.0, 1.0]]):
        hull = roc_convex_hull(*points)
        assert hull.vertices.tolist() == [[0, 0], [1, 1]] and hull.area == 0.5
    assert "better than guessing" in roc_convex_hull([0.7], [0.2]).summary()
    perfect = roc_convex_hull([0.0], [1.0], ["oracle"])
    assert perfect.area == 1 and perfect.optimal(0.3) == OperatingPoint(0.0, 1.0, "oracle", 0, 0.0)


@settings(max_examples=60, deadline=None)
@given(RATES)
def test_the_hull_is_the_least_concave_curve_above_all_points(points) -> None:
    fpr, tpr = np.array(points).T / 20
    hull = roc_convex_hull(fpr, tpr)
    assert hull.vertices[0].tolist() == [0, 0] and hull.vertices[-1].tolist() == [1, 1]
    assert (np.diff(hull.fpr) >= 0).all() and (np.diff(hull.tpr) >= 0).all()
    with np.errstate(divide="ignore"):
        slopes = np.diff(hull.tpr) / np.diff(hull.fpr)
    assert (np.diff(slopes[np.isfinite(slopes)]) < 0).all() and np.isinf(slopes[1:]).sum() == 0
    # No point lies above it, and every vertex is a point or a corner.
    top = np.array([hull.tpr[hull.fpr <= x + 1e-12].max() if (hull.fpr == x).any() else np.interp(x, hull.fpr, hull.tpr) for x in fpr])
    assert (tpr <= top + 1e-12).all()
    given_points = {(float(a), float(b)) for a, b in zip(fpr, tpr, strict=True)} | {(0.0, 0.0), (1.0, 1.0)}
    assert {(float(a), float(b)) for a, b in hull.vertices} <= given_points
    own = hull.index >= 0
    np.testing.assert_array_equal(fpr[hull.index[own]], hull.fpr[own])
    np.testing.assert_array_equal(tpr[hull.index[own]], hull.tpr[own])


@settings(max_examples=60, deadline=None)
@given(RATES, st.floats(0.01, 0.99), st.floats(0.1, 50), st.floats(0.1, 50))
def test_the_optimum_is_the_cheapest_of_all_points(points, prevalence, cost_fp, cost_fn) -> None:
    fpr, tpr = np.array([*points, (0, 0), (20, 20)]).T / 20
    best = roc_convex_hull(fpr[:-2], tpr[:-2]).optimal(prevalence, cost_fp, cost_fn)
    cost = (1 - prevalence) * cost_fp * fpr + prevalence * cost_fn * (1 - tpr)
    assert best.cost == pytest.approx(cost.min())
    assert best.cost == pytest.approx((1 - prevalence) * cost_fp * best.fpr + prevalence * cost_fn * (1 - best.tpr))


def test_where_a_whole_edge_is_as_cheap_its_lower_end_is_taken() -> None:
    hull = roc_convex_hull([0.1, 0.3], [0.5, 0.9])  # an edge of slope 2 between them
    # Slope c_fp (1 - pi) / (c_fn pi) = 2 at pi = 1/3 and equal costs.
    assert hull.optimal(1 / 3).label == 0
    assert hull.optimal(0.33).label == 0 and hull.optimal(0.34).label == 1
    assert hull.optimal(0.5, cost_fp=2.1).label == 0 and hull.optimal(0.5, cost_fp=1.9).label == 1
    assert hull.optimal(0).label == "predict no row" and hull.optimal(1).label == "predict every row"


def test_of_equal_points_the_first_counts_and_points_on_an_edge_do_not() -> None:
    hull = roc_convex_hull([0.2, 0.2, 0.4, 0.0], [0.6, 0.6, 0.7, 0.0], ["first", "second", "on the edge", "own corner"])
    assert hull.labels == ("own corner", "first", "predict every row")


def test_area_is_that_of_a_ranking_made_concave() -> None:
    rng = np.random.default_rng(0)
    y = rng.random(500) < 0.2
    score = y + rng.normal(size=500)
    fpr, tpr, thresholds = roc_curve(y, score)
    hull = roc_convex_hull(fpr, tpr, thresholds)
    assert roc_auc_score(y, score) < hull.area < roc_auc_score(y, score) + 0.03
    best = hull.optimal(prevalence=0.2)
    cost = np.mean(y != (score >= best.label))
    assert cost <= np.mean(y != (score >= 0.5)) and best.label in thresholds


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: roc_convex_hull([], []), r"fpr: got shape \(0,\); expected one rate per point"),
        (lambda: roc_convex_hull([0.1, 0.2], [0.1]), "tpr: got 1 rates; expected one for each of the 2 points"),
        (lambda: roc_convex_hull([[0.1]], [[0.1]]), "fpr: got shape"),
        (lambda: roc_convex_hull([10.0], [60.0]), r"fpr: got 10.0; expected rates in \[0, 1\]. Divide percentages by 100."),
        (lambda: roc_convex_hull([0.1], [np.nan]), "tpr: got nan; expected rates"),
        (lambda: roc_convex_hull([0.1], [0.2], ["a", "b"]), "labels: got 2 labels; expected one for each of the 1 points"),
        (lambda: roc_convex_hull([0.1], [0.2]).optimal(1.5), r"prevalence: got 1.5; expected a number in \[0, 1\]"),
        (lambda: roc_convex_hull([0.1], [0.2]).optimal(0.5, cost_fp=0), "cost_fp: got 0; expected a number > 0"),
        (lambda: roc_convex_hull([0.1], [0.2]).optimal(0.5, cost_fn=-1), "cost_fn: got -1"),
        (lambda: roc_convex_hull([0.1], [0.2]).optimal(0.5, cost_fn=np.inf), "cost_fn: got inf; expected a finite number > 0"),
    ],
)
def test_bad_input_is_refused(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()
