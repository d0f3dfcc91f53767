from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest

from counterpoise._errors import InputError
from counterpoise.scaling import LossSurface, isoflop_parabola, parabola_bias, sample_isoflop
from counterpoise.scaling._parabola import group_budgets

from .test_surface import SURFACES, every_surface

BUDGETS = np.geomspace(1e17, 1e21, 5)


def parabolas(runs: pl.DataFrame, **options):
    return isoflop_parabola(runs["N"], runs["D"], runs["L"], runs["C"], **options)


@pytest.mark.filterwarnings("ignore:isoflop_parabola")  # grids beside the optimum, on purpose
@every_surface
@pytest.mark.parametrize("width", [1.5, 2, 8, 16])
@pytest.mark.parametrize("offset", [0.0, -0.3, 0.2])
def test_the_closed_form_is_the_fitted_vertex(surface: LossSurface, width: float, offset: float) -> None:
    runs = sample_isoflop(surface, BUDGETS, n=15, width=width, offset=offset)
    fit = parabolas(runs)
    shift = np.log10(fit.N_opt) - np.log10(surface.optimal_size(BUDGETS))
    # At the same relative precision of the losses, a narrow grid knows its vertex less well.
    np.testing.assert_allclose(shift, parabola_bias(surface.alpha, surface.beta, width, 15, offset), atol=1e-12 / np.log10(width) ** 2)
    np.testing.assert_allclose(fit.N_opt * fit.D_opt, BUDGETS / 6)  # mirror images
    assert fit.a == pytest.approx(surface.a) and fit.b == pytest.approx(surface.b)  # a constant shift moves intercepts only
    assert fit.a0 + fit.b0 == pytest.approx(-np.log10(6))


def test_what_the_bias_depends_on() -> None:
    assert parabola_bias(0.31, 0.31, 16, 15) == pytest.approx(0, abs=1e-12)
    assert parabola_bias(0.34, 0.28, 16, 15) == pytest.approx(-parabola_bias(0.28, 0.34, 16, 15), abs=1e-12)
    widths = [parabola_bias(0.34, 0.28, width, 15) for width in (1.1, 2, 4, 8, 16)]
    assert np.all(np.diff(widths) > 0) and abs(widths[0]) < 1e-3  # wider is worse, a narrow grid is exact
    # Published errors of D for the Chinchilla surface: 4.04T tokens at 1e24 FLOPs come out as 3.92T and less.
    assert [round(100 * (10 ** -parabola_bias(0.34, 0.28, width, 15) - 1), 2) for width in (8, 16)] == [-2.90, -5.10]
    assert parabola_bias(0.465, 0.155, 16, 15) == pytest.approx(-np.log10(1 - 0.2312), abs=1e-4)
    # An even number of points has none in the middle.
    assert parabola_bias(0.34, 0.28, 8, 14) > 0


@pytest.mark.filterwarnings("ignore:isoflop_parabola")  # grids beside the optimum, on purpose
def test_a_drift_bends_the_exponents_and_grows_with_distance() -> None:
    surface = SURFACES["asymmetric"]
    fit = parabolas(sample_isoflop(surface, BUDGETS, width=2, drift=-np.log10(3)))
    error = [fit.allocation(C).D / surface.optimal(C).D - 1 for C in (1e21, 1e24)]
    assert error[1] == pytest.approx(0.3457, abs=5e-5) and 0 < error[0] < error[1]
    assert fit.b > surface.b


def test_columns_of_any_kind_give_the_same() -> None:
    runs = sample_isoflop(SURFACES["chinchilla"], BUDGETS, n=5, noise=0.001)
    first = parabolas(runs)
    shuffled = runs.sample(fraction=1.0, shuffle=True, seed=0)
    frame = shuffled.to_pandas()
    read_only = shuffled["N"].to_numpy().copy()
    read_only.setflags(write=False)
    for columns in (
        [shuffled[name] for name in "NDLC"],
        [frame[name] for name in "NDLC"],
        [read_only, *(shuffled[name].to_list() for name in "DLC")],
        [pd.Series(shuffled["N"].to_numpy(), index=range(100, 125)), *(shuffled[name] for name in "DLC")],
    ):
        fit = isoflop_parabola(*columns)
        np.testing.assert_allclose([fit.a, fit.a0, fit.b, fit.b0], [first.a, first.a0, first.b, first.b0], rtol=1e-10)
    single = isoflop_parabola(*(shuffled[name].cast(pl.Float32) for name in "NDLC"))
    assert single.a == pytest.approx(first.a, rel=1e-3) and single.N_opt.dtype == np.float64
    whole = isoflop_parabola(shuffled["N"].cast(pl.Int64), shuffled["D"].cast(pl.Int64), shuffled["L"], shuffled["C"])
    assert whole.a == pytest.approx(first.a, rel=1e-6)


def test_budgets_that_are_nearly_the_same_are_one() -> None:
    rng = np.random.default_rng(0)
    compute = np.repeat(BUDGETS, 6) * 10 ** rng.uniform(-0.02, 0.02, 30)
    budgets, of = group_budgets(compute, 0.05)
    assert of.tolist() == np.repeat(np.arange(5), 6).tolist()
    np.testing.assert_allclose(np.log10(budgets), np.log10(BUDGETS), atol=0.02)
    assert len(group_budgets(compute, 0.0)[0]) == 30 and len(group_budgets(compute, 2.0)[0]) == 1
    # A step of exactly the tolerance is within it.
    assert len(group_budgets(10 ** np.array([18.0, 18.05, 18.1]), 0.05)[0]) == 1
    runs = sample_isoflop(SURFACES["chinchilla"], BUDGETS, n=6)
    given, rounded = parabolas(runs), isoflop_parabola(runs["N"], runs["D"], runs["L"], [float(f"{c:.1g}") for c in runs["C"]])
    assert rounded.a == pytest.approx(given.a, rel=1e-9)
    assert isoflop_parabola(runs["N"], runs["D"], runs["L"]).a == pytest.approx(given.a, rel=1e-9)


def test_unequal_numbers_of_runs_and_duplicates() -> None:
    runs = sample_isoflop(SURFACES["symmetric"], BUDGETS, n=9)
    some = runs.filter((pl.int_range(pl.len()) % 9 < 5) | (pl.col("C") < 1e19))
    fit = parabolas(pl.concat([some, some.head(3)]))
    assert fit.n_runs.tolist() == [12, 9, 5, 5, 5]
    assert fit.to_frame()["n_runs"].to_list() == [12, 9, 5, 5, 5] and len(fit.budget_of) == 36


def test_a_parabola_that_opens_downward_is_kept_said_and_left_out() -> None:
    surface = SURFACES["chinchilla"]
    runs = sample_isoflop(surface, BUDGETS, n=7)
    bent = runs.with_columns(L=pl.when(pl.col("C") == BUDGETS[2]).then(10 - pl.col("L")).otherwise("L"))
    with pytest.warns(UserWarning, match=r"no lowest point \(the parabola opens downward\): left out of the exponents, at 1e\+19 FLOPs"):
        fit = parabolas(bent)
    assert fit.opens_up.tolist() == [True, True, False, True, True] and (fit.curvature < 0).tolist() == [False, False, True, False, False]
    without = parabolas(runs.filter(pl.col("C") != BUDGETS[2]))
    assert fit.a == pytest.approx(without.a) and fit.b0 == pytest.approx(without.b0)
    assert "Parabolas of 5 budgets" in fit.summary() and "opens downward" in fit.summary()


def test_a_vertex_outside_the_runs_is_said() -> None:
    runs = sample_isoflop(SURFACES["chinchilla"], BUDGETS, n=7, width=2, offset=-0.5)
    with pytest.warns(UserWarning, match="lowest point outside the sizes that were run: extrapolated, but used"):
        fit = parabolas(runs)
    assert fit.edge.all() and fit.opens_up.all() and np.isfinite(fit.a)


def test_one_budget_has_a_vertex_and_no_exponent() -> None:
    fit = parabolas(sample_isoflop(SURFACES["chinchilla"], 1e20, n=9))
    assert np.isnan([fit.a, fit.b, fit.a0, fit.b0]).all() and np.isfinite(fit.N_opt).all()
    few = sample_isoflop(SURFACES["chinchilla"], BUDGETS, n=9).filter((pl.col("C") < 1e20) | (pl.int_range(pl.len()) % 9 < 2))
    with pytest.warns(UserWarning, match=r"fewer than 3 sizes: no parabola, at 1e\+20, 1e\+21 FLOPs"):
        fit = parabolas(few)
    assert np.isfinite(fit.curvature).tolist() == [True, True, True, False, False] and np.isfinite(fit.a)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"N": [1e6, 2e6, 0.0]}, r"N: got 0 in row 2; expected finite numbers > 0"),
        ({"D": [1e9, np.nan, 1e9]}, r"D: got NaN in row 1"),
        ({"L": [1.0, -2.0, 1.0]}, r"L: got -2 in row 1"),
        ({"L": ["a", "b", "c"]}, r"L: got a column of object"),
        ({"L": [1.0, 2.0]}, r"N, D, L, C: got lengths 3, 3, 2, 3; expected columns of one length"),
        ({"D": [1e8, 1e9], "C": None}, r"N, D, L, C: got lengths 3, 2, 3, 3; expected columns of one length"),
        ({"D": [1e308, 1e308, 1e308], "C": None}, r"N and D: got .* in row 0; expected sizes and data whose product is a finite number"),
        ({"N": [1e6, 1e6, 1e6]}, r"N: got fewer than 3 sizes in each of 1 budgets"),
        ({"C": [1e18, 1e19, 1e20]}, r"A larger tolerance joins budgets"),
        ({"N": [[1e6, 2e6, 3e6]]}, r"N: got an array of shape \(1, 3\)"),
        ({"tolerance": -1.0}, "tolerance: got -1.0"),
    ],
)
def test_bad_input_is_refused(change, message) -> None:
    columns = {"N": [1e6, 2e6, 3e6], "D": [3e9, 1.5e9, 1e9], "L": [3.0, 2.9, 3.1], "C": [1.8e16] * 3}
    with pytest.raises(InputError, match=message):
        isoflop_parabola(**columns | change)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"alpha": 0}, "alpha"), ({"beta": -1}, "beta"), ({"width": 1}, "width"), ({"n": 2}, "n: got 2"), ({"offset": np.nan}, "offset")],
)
def test_the_bias_of_no_grid_is_refused(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        parabola_bias(**{"alpha": 0.3, "beta": 0.3, "width": 8, "n": 15, **arguments})
