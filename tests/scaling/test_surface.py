from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from counterpoise._errors import InputError
from counterpoise.scaling import Allocation, LossSurface, sample_isoflop

SURFACES = {
    "chinchilla": LossSurface(1.69, 406.4, 410.7, 0.34, 0.28),
    "symmetric": LossSurface(1.69, 400, 400, 0.31, 0.31),
    "asymmetric": LossSurface(1.69, 406.4, 410.7, 0.465, 0.155),
    "sparse-nmm": LossSurface(2.158, 381773, 4659, 0.710, 0.372),
}
every_surface = pytest.mark.parametrize("surface", SURFACES.values(), ids=SURFACES)


@every_surface
@pytest.mark.parametrize("compute", [1e17, 3.8e25])
def test_the_optimum_is_where_the_loss_is_lowest(surface: LossSurface, compute: float) -> None:
    best = surface.optimal(compute)
    np.testing.assert_allclose(6 * best.N * best.D, compute, rtol=1e-12)

    def along(log_N: float) -> float:
        return float(surface.loss(10**log_N, compute / (6 * 10**log_N)))

    found = minimize_scalar(along, bracket=(np.log10(best.N) - 1, np.log10(best.N), np.log10(best.N) + 1))
    assert found.x == pytest.approx(np.log10(best.N), abs=1e-5)
    assert best.loss <= found.fun + 1e-13
    assert surface.optimal_loss(compute) == pytest.approx(best.loss, rel=1e-12)
    # The power laws, and their way back.
    x = np.log10(compute)
    assert surface.a + surface.b == pytest.approx(1) and surface.a0 + surface.b0 == pytest.approx(-np.log10(6))
    assert 10 ** (surface.a0 + surface.a * x) == pytest.approx(best.N, rel=1e-10)
    assert 10 ** (surface.b0 + surface.b * x) == pytest.approx(best.D, rel=1e-10)
    assert surface.compute_for(best.loss) == pytest.approx(compute, rel=1e-8)


def test_the_factor_of_compute_is_a_parameter() -> None:
    two = LossSurface(1.69, 406.4, 410.7, 0.34, 0.28, flops_factor=2.0)
    best = two.optimal(1e21)
    np.testing.assert_allclose(2 * best.N * best.D, 1e21)
    np.testing.assert_allclose(best.N, SURFACES["chinchilla"].optimal(3e21).N)


@every_surface
def test_deadweight_is_zero_at_the_optimum_only(surface: LossSurface) -> None:
    compute = 1e22
    best = surface.optimal(compute)
    assert surface.deadweight(compute, best.D) == pytest.approx(0, abs=1e-10)
    shares = surface.deadweight(compute, best.D * np.array([0.1, 0.5, 0.9, 1.1, 2.0, 10.0]))
    assert shares.shape == (6,) and (shares > 0).all() and (np.diff(shares)[:2] < 0).all() and (np.diff(shares)[-2:] > 0).all()
    # What it says: with that much less compute, well split, the loss is the same.
    D = 4 * best.D
    reached = surface.loss(compute / 6 / D, D)
    assert surface.optimal_loss(compute * (1 - surface.deadweight(compute, D))) == pytest.approx(reached, rel=1e-12)


def test_no_compute_reaches_the_floor() -> None:
    surface = SURFACES["chinchilla"]
    assert surface.compute_for(1.69) == np.inf and surface.compute_for(1.0) == np.inf
    assert surface.compute_for([1.69, 2.0])[0] == np.inf


def test_a_line_says_what_is_planned() -> None:
    assert Allocation(6e20, 1e10, 1e10, 2.0).summary() == "At 6e+20 FLOPs: N 1e+10, D 1e+10, loss 2.0000."
    limits = Allocation(6e20, 1e10, 1e10, 2.0, (9e9, 2e10), (5e9, 1.1e10), (1.9, 2.1), 0.9)
    assert limits.summary() == (
        "At 6e+20 FLOPs: N 1e+10 (9e+09 to 2e+10), D 1e+10 (5e+09 to 1.1e+10), loss 2.0000 (1.9000 to 2.1000), 90 % intervals."
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"E": -0.1}, r"E: got -0.1; expected a number >= 0"),
        ({"A": 0.0}, r"A: got 0.0; expected a number > 0"),
        ({"B": np.nan}, r"B: got nan; expected a finite number > 0"),
        ({"alpha": 0}, r"alpha: got 0; expected a number > 0"),
        ({"beta": "x"}, r"beta: got 'x'; expected a number > 0"),
        ({"flops_factor": -6.0}, r"flops_factor: got -6.0; expected a number > 0"),
    ],
)
def test_a_surface_that_is_none_is_refused(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        LossSurface(**{"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28, **arguments})


def test_arguments_are_named() -> None:
    surface = SURFACES["chinchilla"]
    with pytest.raises(InputError, match=r"N: got 0.0; expected finite numbers > 0"):
        surface.loss([1e6, 0], 1e9)
    with pytest.raises(InputError, match=r"D: got 'many'; expected numbers > 0"):
        surface.loss(1e6, "many")
    with pytest.raises(InputError, match=r"C: got -1"):
        surface.optimal(-1)
    with pytest.raises(InputError, match=r"loss: got nan"):
        surface.compute_for(np.nan)


# ---- runs -------------------------------------------------------------------------------------------------------------------------------


def test_the_grid_is_where_it_was_asked_to_be() -> None:
    surface, budgets = SURFACES["asymmetric"], [1e20, 1e17, 1e18]
    runs = sample_isoflop(surface, budgets, n=7, width=4, offset=-0.2, drift=0.3)
    assert runs.columns == ["N", "D", "L", "C"] and runs.height == 21 and runs["C"].unique().sort().to_list() == sorted(budgets)
    N, D, L, C = (runs[name].to_numpy().reshape(3, 7) for name in runs.columns)
    np.testing.assert_allclose(6 * N * D, C)
    np.testing.assert_allclose(L, surface.loss(N, D))
    np.testing.assert_allclose(N.max(axis=1) / N.min(axis=1), 16)
    center = np.log10(N[:, 3]) - np.log10(surface.optimal_size(C[:, 0]))
    np.testing.assert_allclose(center, [-0.2, -0.1, 0.1], atol=1e-12)  # linear in log C, from nothing to all of the drift
    np.testing.assert_allclose(np.diff(np.log10(N), axis=1), np.log10(16) / 6)


def test_noise_is_of_its_seed() -> None:
    surface = SURFACES["chinchilla"]
    plain = sample_isoflop(surface, [1e18, 1e20], n=400)
    one, again, other = (sample_isoflop(surface, [1e18, 1e20], n=400, noise=0.01, seed=seed) for seed in (0, 0, 1))
    assert one.equals(again) and not one["L"].equals(other["L"]) and one["N"].equals(plain["N"])
    assert (one["L"] - plain["L"]).std() == pytest.approx(0.01, rel=0.15)
    assert sample_isoflop(surface, 1e18, n=3, drift=1.0)["C"].unique().to_list() == [1e18]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budgets": [1e18, -1]}, "budgets: got -1.0"),
        ({"n": 0}, "n: got 0"),
        ({"width": 1.0}, r"width: got 1.0; expected a number > 1"),
        ({"noise": -1.0}, "noise: got -1.0"),
        ({"drift": np.inf}, "drift: got inf"),
        ({"seed": -1}, "seed: got -1; expected an integer >= 0"),
    ],
)
def test_bad_designs_are_refused(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        sample_isoflop(SURFACES["chinchilla"], **{"budgets": [1e18], **arguments})
