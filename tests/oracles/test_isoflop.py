"""Scaling laws against the authors' code (scaling-law-analysis 3e0656e, vpnls 026317d): without noise, with noise, real runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from counterpoise.scaling import ChinchillaRegressor, LossSurface
from counterpoise.scaling._parabola import fit_parabolas, group_budgets
from tests.oracles import oracle_files

FILES = oracle_files("35")
TARGET = 3.8e25  # FLOPs, that of the keys loss_at_3.8e25_opt
DELTA = 1e-3  # that of the keys vpnls_huber1e-3


def cases(suffix: str) -> list[Any]:
    """One parameter for each case of each file that has this number."""
    found = []
    for file in FILES:
        (path,) = file.values
        with np.load(path) as numbers:
            prefixes = [key.removesuffix(suffix) for key in numbers.files if key.endswith(suffix)]
            found += [pytest.param(path, prefix, id=f"{file.id}-{prefix}") for prefix in prefixes]
    return found


def load(path: Path, prefix: str) -> dict[str, Any]:
    with np.load(path) as numbers:
        return {key.removeprefix(f"{prefix}_"): numbers[key] for key in numbers.files if key.startswith(f"{prefix}_")}


def fitted(case: dict[str, Any], **options: Any) -> tuple[ChinchillaRegressor, np.ndarray]:
    model = ChinchillaRegressor(**options).fit(np.column_stack([case["N"], case["D"]]), case["L"])
    return model, np.array([model.E_, model.A_, model.B_, model.alpha_, model.beta_])


def noise(case: dict[str, Any]) -> float:
    return float(case["design"][-1])


@pytest.mark.parametrize(("path", "prefix"), cases("_design"))
def test_the_surface_of_noise_free_runs_is_found(path: Path, prefix: str) -> None:
    case = load(path, prefix)
    if noise(case):
        pytest.skip("with noise")
    model, found = fitted(case)
    np.testing.assert_allclose(found, case["truth"], rtol=1e-9)
    np.testing.assert_allclose(found, case["vpnls_mse"][:5], rtol=1e-8)
    assert model.status_ == "converged"
    np.testing.assert_allclose(fitted(case, loss="huber")[1], case["vpnls_huber1e-3"][:5], rtol=1e-6)


@pytest.mark.parametrize(("path", "prefix"), cases("_vpnls_mse"))
def test_least_squares(path: Path, prefix: str) -> None:
    case = load(path, prefix)
    model, found = fitted(case)
    np.testing.assert_allclose(found, case["vpnls_mse"][:5], rtol=1e-5)
    squares = 2 * len(case["L"]) * model.objective_
    # Without noise there is nothing but rounding, on both sides.
    assert squares <= case["vpnls_mse"][5] * (1 + 1e-9) + 1e-26


@pytest.mark.parametrize(("path", "prefix"), cases("_vpnls_huber1e-3"))
def test_hubers_loss_is_at_least_as_low(path: Path, prefix: str) -> None:
    case = load(path, prefix)
    model, found = fitted(case, loss="huber", delta=DELTA)
    r = np.abs(case["L"] - model.surface_.loss(case["N"], case["D"]))
    by_hand = np.where(r <= DELTA, r**2 / 2, DELTA * (r - DELTA / 2)).mean()
    assert model.objective_ == pytest.approx(by_hand, rel=1e-6, abs=1e-25)
    assert model.objective_ <= case["vpnls_huber1e-3"][5] * (1 + 1e-9) + 1e-27
    if model.objective_ > 0.999 * case["vpnls_huber1e-3"][5] and noise(case):
        np.testing.assert_allclose(found, case["vpnls_huber1e-3"][:5], rtol=0.05)


@pytest.mark.parametrize(("path", "prefix"), cases("_approach2"))
def test_parabolas(path: Path, prefix: str) -> None:
    case = load(path, prefix)
    fit = fit_parabolas(case["N"], case["D"], case["L"], *group_budgets(case["C"], 0.05))
    np.testing.assert_allclose([fit.a, fit.a0, fit.b, fit.b0], case["approach2"], rtol=1e-7, atol=1e-7)
    if "approach2_Nopt" in case:
        np.testing.assert_allclose(fit.N_opt, case["approach2_Nopt"], rtol=1e-7)
        np.testing.assert_allclose(fit.D_opt, case["approach2_Dopt"], rtol=1e-7)


@pytest.mark.parametrize(("path", "prefix"), cases("_Nopt_truth"))
def test_the_optimum_of_a_surface(path: Path, prefix: str) -> None:
    case = load(path, prefix)
    surface = LossSurface(*map(float, case["truth"]))
    np.testing.assert_allclose(surface.optimal_size(np.unique(case["C"])), case["Nopt_truth"], rtol=1e-10)
    best = surface.optimal(TARGET).loss
    loss, compute = case["loss_at_3.8e25_opt"]
    assert best == pytest.approx(loss, rel=1e-10) and surface.optimal_loss(TARGET) == pytest.approx(loss, rel=1e-10)
    assert surface.compute_for(best + 1e-3) == pytest.approx(compute, rel=1e-8)


REAL = cases("_vpnls_mse_normed")


@pytest.mark.parametrize(("path", "prefix"), REAL or [pytest.param(None, "", marks=pytest.mark.skip("real runs are in another folder"))])
@pytest.mark.parametrize("loss", ["squared", "huber"])
def test_real_runs(path: Path, prefix: str, loss: str) -> None:
    case = load(path, prefix)
    # In millions of parameters and billions of tokens, as the authors' numbers.
    millions = {"N": case["N"] / 1e6, "D": case["D"] / 1e9, "L": case["L"]}
    model, found = fitted(millions, loss=loss)
    expected = case["vpnls_mse_normed"]
    if loss == "squared":
        np.testing.assert_allclose(found, expected[:5], rtol=1e-5)
        assert 2 * len(case["L"]) * model.objective_ <= expected[5] * (1 + 1e-9)
    _, raw = fitted(case, loss=loss)
    # Units change nothing but the coefficients.
    scale = np.array([1, 1e6 ** found[3], 1e9 ** found[4], 1, 1])
    np.testing.assert_allclose(raw, found * scale, rtol=1e-4)
