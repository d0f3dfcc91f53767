from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure

from counterpoise._errors import InputError
from counterpoise.scaling import LossSurface, audit_isoflop, isoflop_parabola, sample_isoflop

from .test_surface import SURFACES

BUDGETS = np.geomspace(1e17, 1e21, 5)
SURFACE = SURFACES["asymmetric"]


@pytest.fixture(scope="module")
def drifting() -> pl.DataFrame:
    return sample_isoflop(SURFACE, BUDGETS, width=8, drift=-np.log10(3))


@pytest.fixture(scope="module")
def noisy():
    runs = sample_isoflop(SURFACE, BUDGETS, n=9, width=8, drift=-np.log10(3), noise=0.01, seed=2)
    return runs, audit_isoflop(runs, target=1e24, resamples=30)


def test_without_noise_all_of_the_difference_is_the_bias_of_parabolas(drifting: pl.DataFrame) -> None:
    audit = audit_isoflop(drifting, target=1e24, resamples=0)
    fit = isoflop_parabola(*(drifting[name] for name in "NDLC"))
    assert audit.observed_error == pytest.approx(fit.allocation(1e24).D / SURFACE.optimal(1e24).D - 1, rel=1e-6)
    assert audit.observed_error == pytest.approx(audit.predicted_error, rel=1e-6) and audit.observed_error > 0.05
    assert audit.deadweight == pytest.approx(float(SURFACE.deadweight(1e24, fit.allocation(1e24).D)), rel=1e-6) and audit.deadweight > 0
    np.testing.assert_allclose(audit.observed_bias, audit.predicted_bias, atol=1e-9)
    np.testing.assert_allclose(audit.width, np.log10(64))
    np.testing.assert_allclose(audit.offset, -np.log10(3) * np.linspace(0, 1, 5), atol=1e-9)
    assert audit.drift == pytest.approx(-np.log10(3) / 4)
    assert (audit.flags == "").all() and audit.flagged.height == 0 and np.isnan(audit.deadweight_unflagged)
    assert np.isnan(audit.deadweight_interval).all() and audit.surface_allocation.N_interval is None
    assert "3.0 decades beyond the largest budget" in audit.summary()


def test_a_fair_grid_is_found_fair() -> None:
    audit = audit_isoflop(sample_isoflop(SURFACES["symmetric"], BUDGETS), target=1e24, resamples=0)
    assert abs(audit.observed_error) < 1e-9 and audit.deadweight < 1e-9 and abs(audit.predicted_error) < 1e-9


def test_the_target_is_the_largest_budget_by_itself(drifting: pl.DataFrame) -> None:
    audit = audit_isoflop(drifting, resamples=0)
    assert audit.target == pytest.approx(1e21) and "beyond the largest budget" not in audit.summary()
    np.testing.assert_allclose(audit.surface_allocation.N, SURFACE.optimal(1e21).N, rtol=1e-6)


def test_intervals_are_of_their_seed_and_hold_the_estimate(noisy) -> None:
    runs, audit = noisy
    again = audit_isoflop(runs, target=1e24, resamples=30)
    assert again.deadweight_interval == audit.deadweight_interval and again.summary() == audit.summary()
    assert audit_isoflop(runs, target=1e24, resamples=30, seed=1).deadweight_interval != audit.deadweight_interval
    low, high = audit.deadweight_interval
    assert 0 <= low <= audit.deadweight <= high < 1
    for plan in (audit.surface_allocation, audit.parabola_allocation):
        assert plan.D_interval[0] < plan.D < plan.D_interval[1] and plan.level == 0.9
    assert audit.resamples == 30 and audit.failed < 5
    for said in ("Fit of all runs. At 1e+24 FLOPs", "Parabolas per budget.", "with the surface held", "Leaving out one budget"):
        assert said in audit.summary()
    assert repr(audit).startswith("IsoFlopAudit(45 runs in 5 budgets")


def test_each_budget_has_a_row(noisy) -> None:
    runs, audit = noisy
    frame = audit.to_frame()
    assert frame.height == 5 and frame["n_runs"].to_list() == [9] * 5
    # What is left without a budget is what an audit of the other runs says.
    without = audit_isoflop(runs.filter(pl.col("C") < 1e21), target=1e24, resamples=0)
    assert frame["without_budget"][4] == pytest.approx(without.deadweight, rel=1e-3)


def test_runs_that_went_wrong_are_flagged_and_their_weight_is_said() -> None:
    runs = sample_isoflop(SURFACES["chinchilla"], BUDGETS, n=9, noise=0.002, seed=1)
    L = runs["L"].to_numpy().copy()
    L[[40, 12]] += [0.2, -0.3]
    audit = audit_isoflop(runs.with_columns(L=pl.Series(L)), target=1e23, resamples=0)
    assert set(audit.flagged.filter(pl.col("reason") == "residual")["row"]) >= {12, 40}
    kept = audit_isoflop(runs.filter(pl.Series(audit.flags == "")), target=1e23, resamples=0)
    assert audit.deadweight_unflagged == pytest.approx(kept.deadweight, rel=1e-3)
    assert audit.deadweight > 2 * audit.deadweight_unflagged
    assert "runs are flagged; without them" in audit.summary()


def test_rows_that_repeat_others_are_said(noisy) -> None:
    runs, audit = noisy
    assert "repeat another one exactly" not in audit.summary()
    twice = audit_isoflop(pl.concat([runs, runs[:7]]), target=1e24, resamples=0)
    assert "7 of 52 rows repeat another one exactly" in twice.summary()
    # The same size and data again, with a loss of its own, is a run like any other.
    again = runs[:7].with_columns(pl.col("L") + 1e-3)
    assert "repeat" not in audit_isoflop(pl.concat([runs, again]), target=1e24, resamples=0).summary()


def test_budgets_without_a_lowest_point_are_flagged() -> None:
    runs = sample_isoflop(SURFACES["chinchilla"], BUDGETS, n=7)
    bent = runs.with_columns(L=pl.when(pl.col("C") == BUDGETS[0]).then(9.4 - pl.col("L")).otherwise("L"))
    audit = audit_isoflop(bent, target=1e23, resamples=0)
    assert (audit.flags[:7] != "").all() and "opens downward" in set(audit.flags[:7]) | {"residual"}
    assert "the parabola opens downward" in audit.summary()


def test_one_budget_plans_by_the_surface_alone() -> None:
    one = sample_isoflop(SURFACES["chinchilla"], 1e20, n=20, width=30)
    audit = audit_isoflop(one, resamples=20)
    assert audit.summary().startswith("20 runs in one budget of 1e+20 FLOPs: ")
    assert audit.status == "weak" and np.isnan(audit.deadweight) and np.isnan(audit.drift)
    assert "they plan nothing" in audit.summary() and "curvature alone" in audit.summary()
    np.testing.assert_allclose(audit.surface_allocation.N, SURFACES["chinchilla"].optimal(1e20).N, rtol=1e-3)
    assert isinstance(audit.plot(), Figure)


def test_tables_of_any_kind(drifting: pl.DataFrame, tmp_path) -> None:
    named = drifting.rename({"N": "params", "D": "tokens", "L": "eval_loss", "C": "flops"}).with_columns(note=pl.lit("x"))
    named.write_csv(tmp_path / "runs.csv")
    columns = {"size": "params", "data": "tokens", "loss": "eval_loss"}
    expected = audit_isoflop(drifting, resamples=0).deadweight
    for table in (named, named.to_pandas(), named.lazy(), str(tmp_path / "runs.csv"), tmp_path / "runs.csv"):
        for compute in (None, "flops"):
            assert audit_isoflop(table, **columns, compute=compute, resamples=0).deadweight == pytest.approx(expected, rel=1e-6)


def test_the_picture_shows_runs_fits_and_plans(noisy) -> None:
    _, audit = noisy
    figure = audit.plot()
    runs, plans = figure.axes
    assert runs.get_ylabel() == "loss" and plans.get_ylabel() == "best size N"
    dots = [line for line in runs.lines if line.get_marker() == "o" and len(line.get_xdata()) == (audit.flags == "").sum()]
    assert len(dots) == 1 and len(plans.collections) == 2
    assert any("parabolas waste" in text.get_text() for text in figure.texts)
    assert any("90 % interval" in text.get_text() for text in figure.texts)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"size": "params"}, r"size: got 'params'; expected one of the columns N, D, L, C"),
        ({}, {"data": "N"}, r"data: got 'N'; expected another column"),
        ({"N": -1.0}, {}, r"column 'N': got -1 in row 0"),
        ({"D": None}, {}, r"column 'D': got NaN in row 0"),
        ({"L": 0.0}, {}, r"column 'L': got 0 in row 0"),
        ({"C": float("inf")}, {"compute": "C"}, r"column 'C': got inf in row 0"),
        ({}, {"loss": "note"}, r"column 'note': got 'x' in row 0; expected numbers > 0. Correct"),
        ({}, {"target": -1.0}, "target: got -1.0"),
        ({}, {"resamples": -1}, "resamples: got -1"),
        ({}, {"resamples": 1}, "resamples: got 1; expected at least 20, or 0 for no intervals"),
        ({}, {"resamples": 19}, "resamples: got 19; expected at least 20"),
        ({}, {"seed": -1}, "seed: got -1; expected an integer >= 0"),
        ({}, {"seed": 0.5}, "seed: got 0.5; expected an integer >= 0"),
        ({}, {"flops_factor": 0}, "flops_factor: got 0"),
    ],
)
def test_bad_tables_are_refused(drifting: pl.DataFrame, change, options, message) -> None:
    table = drifting.with_columns(note=pl.lit("x"))
    for name, value in change.items():
        table = table.with_columns(pl.Series(name, [value, *table[name].to_list()[1:]], dtype=pl.Float64))
    with pytest.raises(InputError, match=message):
        audit_isoflop(table, **options)


def test_constant_columns_go_by_their_names(drifting: pl.DataFrame) -> None:
    with pytest.raises(InputError, match=r"column 'N': got 1e\+07 in all runs"):
        audit_isoflop(drifting.with_columns(N=pl.lit(1e7)))
    with pytest.raises(InputError, match=r"column 'L': got 2.5 in all 75 runs; expected losses that differ"):
        audit_isoflop(drifting.with_columns(L=pl.lit(2.5)))


@pytest.mark.parametrize("factor", [1e160, 1e-200])
def test_compute_that_is_no_number_is_refused(drifting: pl.DataFrame, factor: float) -> None:
    with pytest.raises(InputError, match=r"N and D: got .* in row 0; expected sizes and data whose product is a finite number"):
        audit_isoflop(drifting.with_columns(pl.col("N", "D") * factor))


def test_a_target_far_from_the_budgets_is_said_on_both_sides(drifting: pl.DataFrame) -> None:
    said = {target: audit_isoflop(drifting, target=target, resamples=0).summary() for target in (1e15, 2e16, 1e19, 9e21, 1e22)}
    assert "The target lies 2.0 decades below the smallest budget" in said[1e15]
    assert "The target lies 1.0 decades beyond the largest budget" in said[1e22]
    assert not any("The target lies" in said[target] for target in (2e16, 1e19, 9e21))


# ---- real runs --------------------------------------------------------------------------------------------------------------------------


def test_llama_3_hangs_on_one_budget(data_folder) -> None:
    path = data_folder / "isoflop" / "isoflops.csv"
    if not path.is_file():
        pytest.skip("needs isoflop/isoflops.csv")
    runs = pl.read_csv(path).filter(pl.col("experiment") == "llama_3__raw_loss")
    columns = {"size": "params", "data": "tokens", "loss": "loss", "compute": "budget"}
    audit = audit_isoflop(runs, **columns, target=3.8e25, resamples=0)
    assert audit.deadweight == pytest.approx(0.0630, abs=1e-4)
    assert audit.predicted_error < 0.01 < 0.5 < audit.observed_error
    assert audit.without_budget.argmin() == 9 and audit.without_budget[9] < 0.002 < 0.04 < np.delete(audit.without_budget, 9).min()
    unflagged = audit_isoflop(runs.filter(~pl.col("outlier")), **columns, target=3.8e25, resamples=0)
    assert unflagged.deadweight == pytest.approx(0.0029, abs=1e-4)


def test_runs_that_are_alone_in_their_budget_are_resampled_too() -> None:
    surface = LossSurface(1.69, 406.4, 410.7, 0.34, 0.28)
    N, D = np.geomspace(1e6, 1e9, 20), 1e9 * 10.0 ** np.tile([0.0, 1.5, 0.7, 2.2, 0.3], 4)
    L = surface.loss(N, D) + 0.02 * np.tile([1.0, -1.0], 10)
    audit = audit_isoflop(pl.DataFrame({"N": N, "D": D, "L": L}), tolerance=1e-6, resamples=30)
    assert audit.parabola.n_runs.max() == 1
    low, high = audit.surface_allocation.D_interval
    assert high / low > 1.01
