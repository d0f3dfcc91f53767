"""Lines, moons and declines that were planted are named; everything else is "inconclusive", and bad tables are explained."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot
from scipy import special, stats

from counterpoise._errors import InputError
from counterpoise.diagnostics import CurveReport, performance_curve, select_by_curve
from counterpoise.diagnostics._curve import draw_runs, expanded_interval, fit_curves

GRID = np.linspace(0.55, 0.95, 60)


def moon(a):
    return 2 * (a - 0.75) ** 2 + 0.4


def measured(curve, seed, *, runs=10, n_majority=1000, n_minority=500, offset=0.02):
    """60 models as they are measured: binomial noise, and an offset for every run."""
    rng = np.random.default_rng(seed)
    labels = np.arange(60) % runs
    a = rng.uniform(0.55, 0.95, 60)
    b = np.clip(curve(a) + rng.normal(0, offset, runs)[labels], 0, 1)
    return {
        "majority": rng.binomial(n_majority, a) / n_majority,
        "minority": rng.binomial(n_minority, b) / n_minority,
        "runs": labels,
        "n_majority": n_majority,
        "n_minority": n_minority,
    }


# ---- what must come out exactly --------------------------------------------------------------------------------------------------------


def test_a_parabola_without_noise_is_recovered() -> None:
    report = performance_curve(GRID, moon(GRID))
    assert report.convexity == pytest.approx(2, abs=1e-11)
    assert report.quadratic.r2 == pytest.approx(1)
    assert report.vertex == pytest.approx(0.75)
    assert report.falling_share == pytest.approx(0.5)
    assert report.gap_closing == pytest.approx(2 * 0.2**2 - 2 * (np.median(GRID) - 0.75) ** 2)
    assert report.quadratic.coef == pytest.approx([0.4 + 2 * np.mean(GRID - 0.75) ** 2, 4 * np.mean(GRID - 0.75), 2])
    assert report.convexity_ci == pytest.approx((2, 2), abs=1e-9)
    assert report.shape == "moon" and set(report.by_scale.values()) == {"moon"}
    assert report.f_pvalue < 1e-12


def test_a_probit_line_of_gaussian_threshold_models_is_recovered() -> None:
    # Scores are N(+-d, 1) by label; the minority's signal is a fixed share of the majority's.
    d = np.linspace(0.2, 2.0, 30)
    report = performance_curve(special.ndtr(d), special.ndtr(0.8 * d - 0.3), scale="probit", n_majority=10**6, n_minority=10**6)
    assert report.linear.coef == pytest.approx([-0.3, 0.8])
    assert report.convexity == pytest.approx(0, abs=1e-10)
    assert report.shape == "line" and report.by_scale["probit"] == "line"


@pytest.mark.parametrize("slope", [0.7, 0.0, -0.7])
def test_rounding_is_no_curvature(slope) -> None:
    report = performance_curve(GRID, 0.5 + slope * (GRID - 0.75), runs=np.arange(60) % 7)
    assert report.by_scale["accuracy"] == {0.7: "line", 0.0: "inconclusive", -0.7: "decreasing"}[slope]
    almost = performance_curve(GRID, 0.5 + 1e-15 * np.sin(np.arange(60)))
    assert almost.shape == "inconclusive"


def test_models_that_are_all_but_perfect_are_no_error() -> None:
    with pytest.warns(UserWarning, match="range over"):
        report = performance_curve(1 - np.arange(9) * 1e-5, GRID[:9], scale="probit", n_majority=1000)
    assert np.isnan(report.convexity) and report.shape == "inconclusive" and report.summary()


def test_the_fits_are_those_of_least_squares() -> None:
    data = measured(lambda a: 0.5 * a + 0.1, 0)
    report = performance_curve(**data)
    a, b = data["majority"], data["minority"]
    line = np.polyfit(a, b, 1)
    assert report.linear.coef == pytest.approx(line[::-1])
    design = np.column_stack([np.ones(60), a, (a - a.mean()) ** 2])
    coef = np.linalg.lstsq(design, b, rcond=None)[0]
    assert report.quadratic.coef == pytest.approx(coef)
    assert report.quadratic.r2 == pytest.approx(1 - ((b - design @ coef) ** 2).sum() / ((b - b.mean()) ** 2).sum())
    assert report.fitted(a) == pytest.approx(design @ coef)
    assert report.pearson == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert report.spearman == pytest.approx(stats.spearmanr(a, b).statistic)
    # An intercept per run is the same as a column per run.
    own = np.column_stack([np.eye(10)[data["runs"]], a, (a - a.mean()) ** 2])
    assert report.within == pytest.approx(np.linalg.lstsq(own, b, rcond=None)[0][-1])


def test_the_resamples_are_refits_of_the_runs_that_were_drawn() -> None:
    data = measured(moon, 1, runs=6)
    a, b, runs = data["majority"], data["minority"], data["runs"]
    weights = draw_runs(6, 4, np.random.default_rng(0))
    assert (weights.sum(axis=1) == 6).all()
    draws = fit_curves(a, b, runs, weights)
    for k, drawn in enumerate(weights):
        rows = np.concatenate([np.repeat(np.flatnonzero(runs == run), int(times)) for run, times in enumerate(drawn)])
        design = np.column_stack([np.ones(len(rows)), a[rows], (a[rows] - a.mean()) ** 2])
        assert draws.quadratic[k] == pytest.approx(np.linalg.lstsq(design, b[rows], rcond=None)[0])
        assert draws.linear[k] == pytest.approx(np.polyfit(a[rows], b[rows], 1)[::-1])
        assert draws.linear_r2[k] == pytest.approx(np.corrcoef(a[rows], b[rows])[0, 1] ** 2)
        # A line of its own for every run: the square and y without what each run's line explains of them.
        copy = np.concatenate([np.full(int(times) * (runs == run).sum(), run) for run, times in enumerate(drawn)])
        own = np.eye(6)[copy]
        lines = np.column_stack([own, own * a[rows, None], a[rows] ** 2])
        assert draws.straight[k] == pytest.approx(np.linalg.lstsq(lines, b[rows], rcond=None)[0][-1], rel=1e-6)


def test_intervals_are_percentiles_widened_for_few_runs() -> None:
    draws = np.random.default_rng(0).normal(size=20_000)
    low, high = expanded_interval(draws, 10_000)
    assert (low, high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.01)
    half = np.sqrt(5 / 4) * stats.t.ppf(0.975, 4)
    assert expanded_interval(draws, 5)[1] == pytest.approx(np.quantile(draws, stats.norm.cdf(half)))
    assert expanded_interval(draws, 1).tolist() == expanded_interval(draws[:0], 9).tolist() == [-np.inf, np.inf]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(30)))
def test_the_order_of_the_models_does_not_matter(seed, order) -> None:
    rng = np.random.default_rng(seed)
    a, b, runs = rng.uniform(size=30), rng.uniform(size=30), np.arange(30) % 5
    order = np.array(order)
    first = performance_curve(a, b, runs=runs, bootstrap=50)
    second = performance_curve(a[order], b[order], runs=runs[order], bootstrap=50)
    assert first.convexity == pytest.approx(second.convexity, rel=1e-6)
    assert first.convexity_ci == pytest.approx(second.convexity_ci, rel=1e-6) and first.shape == second.shape


# ---- planted shapes --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", [lambda a: a - 0.1, lambda a: 0 * a + 0.5, lambda a: special.ndtr(0.5 * special.ndtri(a) - 0.3)])
def test_planted_lines_are_rarely_called_moons(curve) -> None:
    shapes = [performance_curve(**measured(curve, seed), bootstrap=200).shape for seed in range(60)]
    assert shapes.count("moon") <= 5  # of 60; more than 5 have a probability of 8 % at a rate of 5 %, and of 0.1 % at the 2 % measured


@pytest.mark.parametrize("runs", [10, 60])
def test_planted_parabolas_are_called_moons(runs) -> None:
    shapes = [performance_curve(**measured(moon, seed, runs=runs), bootstrap=200).shape for seed in range(40)]
    assert shapes.count("moon") >= 36


def test_a_decline_and_a_line_have_their_names() -> None:
    assert performance_curve(**measured(lambda a: 0.9 - 0.5 * a, 0)).shape == "decreasing"
    assert performance_curve(**measured(lambda a: 0.1 + 0.8 * a, 0)).shape == "line"
    steep = performance_curve(GRID, 3 * (GRID - 1.0) ** 2, runs=np.arange(60) % 10)
    assert steep.shape == "decreasing" and steep.convexity_ci[0] > 0 and steep.falling_share == 1


def test_a_curve_that_one_scale_alone_bends_is_no_moon() -> None:
    # Straight on the probit scale, and falling there: convex in accuracies.
    x = np.linspace(0.1, 2.6, 60)
    report = performance_curve(special.ndtr(x), special.ndtr(0.3 - 0.5 * x), n_majority=10**5, n_minority=10**5)
    assert report.shape == "decreasing"
    assert report.by_scale["probit"] == "decreasing"


def test_levels_of_runs_that_were_mixed_are_no_moon() -> None:
    # Each run is a rising line; the family in the middle lies lowest.
    rng = np.random.default_rng(0)
    runs = np.repeat(np.arange(24), 8)
    a = 0.55 + 0.1 * (runs % 3) + rng.uniform(0, 0.2, 192)
    b = 0.5 * a + np.array([0.55, 0.05, 0.45])[runs % 3] + rng.normal(0, 0.01, 192)
    report = performance_curve(a, b, runs=runs)
    assert report.mixed and report.shape == "inconclusive" and report.convexity_ci[0] > 0
    assert "runs that differ were mixed" in report.summary()
    assert report.within_ci[0] < 0 < report.within_ci[1]
    assert not performance_curve(a, moon(a) + rng.normal(0, 0.01, 192), runs=runs).mixed


def test_two_lines_that_meet_are_told_from_a_moon_by_long_runs() -> None:
    rng = np.random.default_rng(1)
    runs = np.repeat(np.arange(10), 20)
    first = runs % 2 == 0
    a = np.where(first, rng.uniform(0.55, 0.75, 200), rng.uniform(0.75, 0.95, 200))
    b = np.where(first, 0.95 - 0.7 * a, 0.7 * a - 0.1) + rng.normal(0, 0.005, 200)
    assert performance_curve(a, b, runs=runs).mixed


def test_seven_models_or_two_runs_have_no_shape() -> None:
    assert performance_curve(GRID[::9], moon(GRID[::9])).shape == "inconclusive"
    report = performance_curve(GRID, moon(GRID), runs=np.arange(60) % 2)
    assert report.shape == "inconclusive" and "at least 8 models of 3 runs" in report.summary()
    assert performance_curve(GRID, moon(GRID), runs=np.arange(60) % 3).shape == "moon"
    one = performance_curve(GRID, moon(GRID), runs=np.zeros(60))
    assert one.convexity_ci == (-np.inf, np.inf) and one.shape == "inconclusive"
    two = performance_curve([0.5, 0.9], [0.4, 0.6])
    assert np.isnan(two.convexity) and two.linear.coef == pytest.approx([0.15, 0.5]) and two.shape == "inconclusive"


def test_equal_minority_accuracies_are_no_error() -> None:
    report = performance_curve(GRID, np.full(60, 0.5))
    assert np.isnan(report.pearson) and np.isnan(report.linear.r2) and report.shape == "inconclusive"
    assert "inconclusive" in report.summary()


# ---- several minorities ----------------------------------------------------------------------------------------------------------------


def test_several_groups_give_the_worst_and_each() -> None:
    groups = {"north": moon(GRID), "south": 0.2 + 0.4 * GRID}
    report = performance_curve(GRID, groups, n_minority={"north": 300, "south": np.full(60, 400)})
    assert report.minority == pytest.approx(np.minimum(groups["north"], groups["south"]))
    assert set(report.pairwise) == {"north", "south"}
    assert report.pairwise["north"].shape == "moon" and report.pairwise["south"].shape == "line"
    assert report.pairwise["north"].n_minority.tolist() == [300] * 60
    assert set(report.n_minority) == {300, 400}
    assert "south: line" in report.summary()
    for same in (pl.DataFrame(groups), np.column_stack(list(groups.values()))):
        again = performance_curve(GRID, same)
        assert again.convexity == pytest.approx(report.convexity)
    assert list(again.pairwise) == ["group 1", "group 2"]


# ---- bad input -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((GRID * 100, moon(GRID)), r"majority: got 55.*Percent\? Divide by 100"),
        ((GRID, -moon(GRID)), "minority: got -0.48"),
        ((GRID, moon(GRID)[1:]), "minority: got 59 models; expected one for each of the 60"),
        ((np.full(9, 0.8), GRID[:9]), "majority: got 9 models, all 0.8; expected accuracies that differ"),
        (([], []), "majority: got 0 models"),
        (([np.nan] * 9, GRID[:9]), "majority: got 0 models"),
        ((np.stack([GRID, GRID], 1), GRID), "majority: got shape"),
        ((["a", "b"], [0.1, 0.2]), "majority: got an array of object"),
        ((GRID, {}), "minority: got no columns"),
    ],
)
def test_accuracies_that_cannot_be_used_are_named(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        performance_curve(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_minority": 0}, "n_minority: got 0.0; expected at least one test example"),
        ({"n_minority": [300] * 59}, "n_minority: got an array of shape"),
        ({"n_minority": {"x": 3}}, "n_minority: got groups x"),
        ({"scale": "logit"}, "scale: got 'logit'"),
        ({"bootstrap": -1}, "bootstrap: got -1"),
        ({"runs": [1, 2]}, r"runs: got shape \(2,\)"),
        ({"runs": [None] + ["a"] * 59}, "runs: got 1 missing"),
    ],
)
def test_options_that_cannot_be_used_are_named(options, message) -> None:
    with pytest.raises(InputError, match=message):
        performance_curve(GRID, moon(GRID), **options)


def test_a_narrow_range_and_a_small_group_are_warned_of() -> None:
    narrow = np.linspace(0.80, 0.84, 30)
    with pytest.warns(UserWarning, match="range over 0.040 only"):
        report = performance_curve(narrow, 200 * (narrow - 0.82) ** 2 + 0.4)
    assert report.shape != "moon"
    with pytest.warns(UserWarning, match="from 150 test examples, fewer than 200"):
        performance_curve(GRID, moon(GRID), n_minority=150)


def test_rows_without_an_accuracy_are_left_out_and_counted() -> None:
    a, b = np.append(GRID, [np.nan, 0.7]), np.append(moon(GRID), [0.5, np.nan])
    runs = [*(f"run {k // 6}" for k in range(60)), "x", "y"]
    report = performance_curve(a, b, runs=runs, n_minority=np.append(np.full(60, 300), [0.5 + 0.5, 1]))
    assert (report.n_models, report.n_runs, report.n_dropped) == (60, 10, 2)
    assert "2 models without an accuracy" in report.summary()
    assert report.convexity == pytest.approx(2)


def test_accuracies_of_0_and_1_are_clipped_on_the_probit_scale() -> None:
    a, b = np.append(GRID, [1.0, 1.0]), np.append(moon(GRID), [0.0, 1.0])
    report = performance_curve(a, b, scale="probit", n_majority=500, n_minority=250)
    assert np.isfinite(report.quadratic.coef).all()
    x = special.ndtri(np.clip(a, 1 / 1000, 1 - 1 / 1000))
    y = special.ndtri(np.clip(b, 1 / 500, 1 - 1 / 500))
    assert report.linear.coef == pytest.approx(np.polyfit(x, y, 1)[::-1])
    assert 0 < report.vertex < 1


# ---- the report ------------------------------------------------------------------------------------------------------------------------


def test_the_report_is_frozen_repeatable_and_changes_nothing() -> None:
    data = measured(moon, 0)
    kept, state = data["majority"].copy(), np.random.get_state()[1].copy()
    first, second, other = (performance_curve(**data, seed=seed) for seed in (0, 0, 1))
    assert first.convexity_ci == second.convexity_ci != other.convexity_ci
    assert np.array_equal(data["majority"], kept) and np.array_equal(np.random.get_state()[1], state)
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.shape = "line"


def test_the_frame_has_a_row_per_model_with_its_limits() -> None:
    data = measured(moon, 0)
    report = performance_curve(**data)
    frame = report.to_frame()
    assert frame.columns == [
        "run", "majority", "majority_low", "majority_high", "minority", "minority_low", "minority_high", "fitted",
    ]  # fmt: skip
    assert frame.height == 60 and frame["run"].to_list() == data["runs"].tolist()
    assert (frame["minority_low"] < frame["minority"]).all() and (frame["minority"] < frame["minority_high"]).all()
    bare = performance_curve(GRID, moon(GRID)).to_frame()
    assert bare["minority_low"].null_count() == 60 and bare["fitted"].to_numpy() == pytest.approx(moon(GRID))


def test_the_summary_says_the_shape_and_what_to_know() -> None:
    text = performance_curve(**measured(moon, 0)).summary()
    assert text.startswith("60 models of 10 runs: minority accuracy first falls and then rises with majority accuracy (moon)")
    assert "select_by_curve" in text
    corner = performance_curve(np.append(GRID, [0.5, 0.52]), np.append(moon(GRID), [0.5, 0.5]))
    assert corner.near_chance == 2 and "2 models have a majority accuracy below 0.55" in corner.summary()


@pytest.mark.parametrize("scale", ["accuracy", "probit"])
def test_a_picture_of_it(scale) -> None:
    figure = performance_curve(**measured(moon, 0), scale=scale).plot()
    (ax,) = figure.axes
    points = [line for line in ax.lines if line.get_marker() == "o"]
    assert len(points[0].get_xdata()) == 60
    assert ax.get_xlabel() == "accuracy on the majority"
    assert performance_curve(GRID, moon(GRID)).plot().axes
    pyplot.close("all")


# ---- choosing --------------------------------------------------------------------------------------------------------------------------

TABLE = pl.DataFrame(
    {
        "run": ["a", "a", "b", "b", "c", "c"],
        "step": [1, 2, 1, 2, 1, 2],
        "majority": [0.70, 0.96, 0.80, 0.90, 0.90, None],
        "minority": [0.60, 0.55, 0.81, 0.80, 0.85, 0.99],
        "params": [json.dumps({"width": 8})] * 6,
    }
)


def report_of(table: pl.DataFrame, **options) -> CurveReport:
    present = table.drop_nulls()
    return performance_curve(present["majority"], present["minority"], runs=present["run"], **options)


def test_the_best_average_is_not_chosen_where_the_minority_pays() -> None:
    row = select_by_curve(report_of(TABLE), TABLE)
    assert (row["run"], row["step"], row["majority"], row["minority"]) == ("c", 1, 0.90, 0.85)  # of equals the better for the minority
    assert row["params"] == '{"width": 8}' and row["minority_low"] is None
    assert select_by_curve(report_of(TABLE), TABLE, constraint={"minority": 0.5})["run"] == "a"
    assert select_by_curve(report_of(TABLE), TABLE, constraint={})["majority"] == 0.96
    both = select_by_curve(report_of(TABLE), TABLE, constraint={"minority": 0.8, "step": 2})
    assert (both["run"], both["step"]) == ("b", 2)


def test_the_row_says_what_its_number_is_worth() -> None:
    report = report_of(TABLE, n_minority=400)
    row = select_by_curve(report, TABLE.to_pandas())
    assert row["minority_low"] < 0.85 < row["minority_high"]
    assert row["minority_fitted"] == pytest.approx(float(report.fitted(0.90)))


@pytest.mark.parametrize(
    ("table", "constraint", "message"),
    [
        (TABLE, {"minority": 0.995}, r"constraint: .*The largest values in the table, each alone: minority 0.990"),
        (TABLE, {"fairness": 0.5}, "table: got columns run, step.*expected a column 'fairness'"),
        (TABLE, {"minority": float("nan")}, r"constraint\['minority'\]: got nan"),
        (TABLE.drop("majority"), {"minority": 0.5}, "expected a column 'majority'"),
    ],
)
def test_what_cannot_be_chosen_is_explained(table, constraint, message) -> None:
    with pytest.raises(InputError, match=message):
        select_by_curve(report_of(TABLE), table, constraint=constraint)


def test_the_report_comes_first() -> None:
    with pytest.raises(InputError, match="report: got 'DataFrame'; expected a CurveReport"):
        select_by_curve(TABLE, report_of(TABLE))
