from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy.optimize import nnls
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from counterpoise._errors import InputError
from counterpoise.scaling import ChinchillaRegressor, LossSurface, SeparableLaw, SurfaceDraws, sample_isoflop
from counterpoise.scaling._varpro import Problem, grid_objectives

from .test_surface import SURFACES, every_surface

BUDGETS = np.geomspace(1e17, 1e21, 5)


def numbers(model: ChinchillaRegressor) -> np.ndarray:
    return np.array([model.E_, model.A_, model.B_, model.alpha_, model.beta_])


def fit(runs: pl.DataFrame, **options) -> ChinchillaRegressor:
    return ChinchillaRegressor(**options).fit(runs.select("N", "D"), runs["L"])


@pytest.fixture(scope="module")
def noisy() -> pl.DataFrame:
    return sample_isoflop(SURFACES["chinchilla"], BUDGETS, n=9, noise=0.01, seed=3)


# ---- the minimum ------------------------------------------------------------------------------------------------------------------------


@every_surface
@pytest.mark.parametrize("width", [2, 4, 16])
def test_noise_free_runs_give_the_surface_back(surface: LossSurface, width: float) -> None:
    model = fit(sample_isoflop(surface, BUDGETS, width=width))
    expected = [surface.E, surface.A, surface.B, surface.alpha, surface.beta]
    np.testing.assert_allclose(numbers(model), expected, rtol=1e-9)
    assert model.status_ == "converged" and model.condition_ < 100 and model.objective_ < 1e-25
    assert model.surface_ == LossSurface(*numbers(model).tolist())


@pytest.mark.parametrize("target", ["linear", "log"])
@pytest.mark.parametrize("loss", ["squared", "huber"])
def test_no_other_parameters_do_better(noisy: pl.DataFrame, loss: str, target: str) -> None:
    """The minimum of a five-dimensional function, by its own definition."""
    model = fit(noisy, loss=loss, target=target)
    N, D, L = (noisy[name].to_numpy() for name in "NDL")

    def objective(p: np.ndarray) -> float:
        fitted = p[0] + p[1] * N ** -p[3] + p[2] * D ** -p[4]
        r = np.abs(np.log(L / fitted) if target == "log" else L - fitted)
        return float((r**2 / 2 if loss == "squared" else np.where(r < 1e-3, r**2 / 2, 1e-3 * (r - 5e-4))).mean())

    best, rng = numbers(model), np.random.default_rng(0)
    assert model.objective_ == pytest.approx(objective(best), rel=1e-9)
    for size in (1e-3, 1e-5, 1e-7):
        for _ in range(60):
            assert objective(best * (1 + size * rng.normal(size=5))) >= model.objective_ * (1 - 1e-10)
    # Along the valley, too: other exponents with their own best coefficients.
    for _ in range(60 if loss == "squared" and target == "linear" else 0):
        alpha, beta = best[3:] * (1 + 0.01 * rng.normal(size=2))
        c, _ = nnls(np.column_stack([np.ones_like(N), N**-alpha, D**-beta]) * [1, 400, 400], L)
        assert objective(np.r_[c * [1, 400, 400], alpha, beta]) >= model.objective_


def test_the_grid_is_nonnegative_least_squares() -> None:
    runs = sample_isoflop(SURFACES["asymmetric"], BUDGETS[:3], n=5, noise=0.3, seed=1)
    logs = np.log(runs.select("N", "D").to_numpy())
    u, y = logs - logs.mean(axis=0), runs["L"].to_numpy()
    problem = Problem(u, y, (0.01, 0.99))
    thetas, squares = grid_objectives(problem, np.ones_like(y), 9)
    exact = [nnls(np.column_stack([np.ones_like(y), np.exp(-theta * u)]), y)[1] ** 2 for theta in thetas]
    finite = np.isfinite(squares)
    np.testing.assert_allclose(squares[finite], np.array(exact)[finite], rtol=1e-8)
    # Points that were not asked for cannot win.
    assert finite.sum() > 5 and squares.min() == pytest.approx(min(exact), rel=1e-9)


def test_single_runs_that_went_wrong_are_held_off() -> None:
    runs = sample_isoflop(SURFACES["chinchilla"], BUDGETS, n=9, noise=0.001)
    L = runs["L"].to_numpy().copy()
    L[[3, 20, 41]] += 0.5
    spoiled = runs.with_columns(L=pl.Series(L))
    off = {loss: abs(fit(spoiled, loss=loss).alpha_ - 0.34) for loss in ("squared", "huber")}
    assert off["huber"] < 0.01 and off["squared"] > 5 * off["huber"]


def test_losses_and_targets_are_different_estimators(noisy: pl.DataFrame) -> None:
    found = [fit(noisy, loss=loss, target=target).alpha_ for loss in ("squared", "huber") for target in ("linear", "log")]
    assert len(set(np.round(found, 4))) == 4


def test_units_change_coefficients_only(noisy: pl.DataFrame) -> None:
    raw = fit(noisy)
    scaled = ChinchillaRegressor().fit(np.column_stack([noisy["N"] / 1e6, noisy["D"] / 1e9]), noisy["L"])
    np.testing.assert_allclose(numbers(scaled) * [1, 1e6**scaled.alpha_, 1e9**scaled.beta_, 1, 1], numbers(raw), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:y. the median loss")
@pytest.mark.parametrize("target", ["linear", "log"])
@pytest.mark.parametrize("loss", ["squared", "huber"])
@pytest.mark.parametrize("unit", [1e-100, 1e-8, 3.0, 1e8, 1e100])
def test_the_unit_of_the_loss_changes_what_has_it_only(noisy: pl.DataFrame, loss: str, target: str, unit: float) -> None:
    X, y = noisy.select("N", "D"), noisy["L"]
    plain = ChinchillaRegressor(loss=loss, target=target).fit(X, y)
    # Huber's delta has the unit of the losses, but none where it is of logarithms.
    other = ChinchillaRegressor(loss=loss, target=target, delta=1e-3 * (unit if target == "linear" else 1)).fit(X, unit * y)
    np.testing.assert_allclose(numbers(other), numbers(plain) * [unit, unit, unit, 1, 1], rtol=1e-9)
    deviations = [np.sqrt(np.diag(model.cov_)) for model in (plain, other)]
    np.testing.assert_allclose(deviations[1], deviations[0] * [unit, unit, unit, 1, 1], rtol=1e-9)
    assert other.objective_ / (unit * unit if target == "linear" else 1) == pytest.approx(plain.objective_, rel=1e-9)
    assert (other.status_, other.condition_) == (plain.status_, pytest.approx(plain.condition_, rel=1e-9))


@pytest.mark.parametrize("loss", ["squared", "huber"])
def test_the_gradient_ends_at_nothing(noisy: pl.DataFrame, loss: str) -> None:
    model = fit(noisy, loss=loss)
    N, D, L = (noisy[name].to_numpy() for name in "NDL")
    r = model.predict(noisy.select("N", "D")) - L
    charged = r if loss == "squared" else np.clip(r, -1e-3, 1e-3)
    size, data = N**-model.alpha_, D**-model.beta_
    for column in (np.ones_like(N), size, data, size * np.log(N), data * np.log(D)):
        assert abs(column @ charged) < 1e-12 * np.linalg.norm(column) * np.linalg.norm(charged)


def test_many_runs_are_searched_from_some_of_them() -> None:
    surface = SURFACES["asymmetric"]
    runs = sample_isoflop(surface, BUDGETS, n=1200, noise=0.01, seed=1)
    model = fit(runs)
    few = fit(sample_isoflop(surface, BUDGETS, n=900, noise=0.01, seed=1))
    np.testing.assert_allclose(numbers(model)[3:], numbers(few)[3:], rtol=0.02)
    N, D, L = (runs[name].to_numpy() for name in "NDL")
    for alpha, beta in np.array([model.alpha_, model.beta_]) * [[1.001, 1], [0.999, 1], [1, 1.001], [1, 0.999]]:
        X = np.column_stack([np.ones_like(N), 1e3 * N**-alpha, 1e3 * D**-beta])
        rest = L - X @ np.linalg.lstsq(X, L, rcond=None)[0]
        assert rest @ rest / (2 * len(L)) > model.objective_
    # Of one size but for a few runs: those may not be among them.
    same = runs.with_columns(N=pl.when(pl.int_range(pl.len()) < 3).then(2e9).otherwise(1e9))
    law = SeparableLaw(nonneg=False).fit(same.select("N", "D"), same["L"])
    assert np.isfinite(law.objective_)


def test_order_copies_and_types_of_columns(noisy: pl.DataFrame) -> None:
    first = numbers(fit(noisy))
    shuffled = noisy.sample(fraction=1.0, shuffle=True, seed=0)
    X, y = shuffled.select("N", "D").to_numpy().copy(), shuffled["L"].to_numpy().copy()
    X.setflags(write=False)
    y.setflags(write=False)
    np.testing.assert_allclose(numbers(ChinchillaRegressor().fit(X, y)), first, rtol=1e-6)
    np.testing.assert_allclose(numbers(ChinchillaRegressor().fit(pd.DataFrame(X, columns=["N", "D"]), pd.Series(y))), first, rtol=1e-6)
    np.testing.assert_allclose(numbers(ChinchillaRegressor().fit(X.astype(np.int64), y)), first, rtol=1e-4)
    single = ChinchillaRegressor().fit(X.astype(np.float32), y.astype(np.float32))
    np.testing.assert_allclose(numbers(single), first, rtol=1e-2)
    assert single.predict(X.astype(np.float32)).dtype == np.float64
    twice = ChinchillaRegressor().fit(np.vstack([X, X]), np.concatenate([y, y]))
    np.testing.assert_allclose(numbers(twice), first, rtol=1e-6)
    # Twice the runs, half the variance, but for the five that are estimated.
    ratio = np.diag(fit(noisy).cov_) / np.diag(twice.cov_)
    np.testing.assert_allclose(ratio, (90 - 5) / (45 - 5), rtol=1e-6)


# ---- how sure it is ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["squared", "huber"])
def test_the_covariance_is_that_of_repeated_studies(loss: str) -> None:
    surface = SURFACES["chinchilla"]
    models = [fit(sample_isoflop(surface, BUDGETS, n=9, width=8, noise=0.002, seed=seed), loss=loss, grid=12) for seed in range(60)]
    seen = np.std([numbers(model)[3:] for model in models], axis=0, ddof=1)
    said = np.mean([np.sqrt(np.diag(model.cov_))[3:] for model in models], axis=0)
    np.testing.assert_allclose(said, seen, rtol=0.35)
    cov = models[0].cov_
    assert cov.shape == (5, 5) and np.allclose(cov, cov.T) and (np.linalg.eigvalsh(cov[3:, 3:]) > 0).all()


def test_a_single_budget_is_weak_and_wide() -> None:
    surface = SURFACES["chinchilla"]
    one = sample_isoflop(surface, 1e20, n=40, width=30, noise=1e-4)
    many = sample_isoflop(surface, BUDGETS, n=8, width=30, noise=1e-4)
    weak, well = fit(one), fit(many)
    assert (weak.status_, well.status_) == ("weak", "converged")
    assert np.sqrt(weak.cov_[3, 3]) > 5 * np.sqrt(well.cov_[3, 3])
    # Rounded data are still one budget; one ratio of data to size is another line.
    rounded = one.with_columns(pl.col("D").round_sig_figs(2))
    assert fit(rounded).status_ == "weak"
    N = np.geomspace(1e6, 1e9, 12)
    assert ChinchillaRegressor().fit(np.column_stack([N, 20 * N]), surface.loss(N, 20 * N)).status_ == "weak"


def test_five_runs_have_no_residuals_to_tell_from() -> None:
    runs = sample_isoflop(SURFACES["chinchilla"], BUDGETS[::2], n=3)
    five = fit(runs.head(5))
    assert np.isinf(five.cov_).all() and five.objective_ < 1e-10


def test_a_fit_at_a_bound_says_so() -> None:
    runs = sample_isoflop(LossSurface(0.0, 406.4, 410.7, 0.34, 0.28), BUDGETS)
    assert fit(runs, exponent_bounds=(0.01, 0.3)).status_ == "bound"
    # Losses below any floor: the best E would be negative.
    lower = runs.with_columns(L=pl.col("L") - 0.2)
    held, free = fit(lower), fit(lower, nonneg=False)
    assert (held.E_, held.status_) == (0.0, "bound") and held.surface_.E == 0
    assert free.objective_ < 1e-20 < held.objective_ and free.status_ == "converged"
    np.testing.assert_allclose(free.E_, -0.2)
    assert np.isinf(held.cov_[0]).all() and np.isfinite(held.cov_[1:, 1:]).all()
    with pytest.raises(InputError, match=r"E_: got -0\.(2|1999)\d*; expected a loss >= 0. Fit with nonneg=True"):
        free.surface_  # noqa: B018


@pytest.mark.parametrize("loss", ["squared", "huber"])
@pytest.mark.parametrize("target", ["linear", "log"])
def test_size_without_effect_has_no_best_split(loss: str, target: str) -> None:
    rng = np.random.default_rng(0)
    N, D = 10 ** rng.uniform(6, 9, 60), 10 ** rng.uniform(8, 11, 60)
    L = 2 + 400 * D**-0.3 + 1e-3 * np.log10(N) + 1e-4 * rng.normal(size=60)  # larger is slightly worse
    model = ChinchillaRegressor(loss=loss, target=target).fit(np.column_stack([N, D]), L)
    assert model.A_ == 0 and model.status_ == "bound" and model.beta_ == pytest.approx(0.3, abs=0.02)
    assert model.score(np.column_stack([N, D]), L) > 0.999
    with pytest.raises(InputError, match=r"A_: got 0.0; .* size does not lower the loss"):
        model.surface_  # noqa: B018


# ---- resamples --------------------------------------------------------------------------------------------------------------------------


def test_the_bootstrap_is_of_its_seed_and_within_its_labels(noisy: pl.DataFrame) -> None:
    model = fit(noisy, grid=8)
    draws = model.bootstrap(20, by=noisy["C"], seed=1)
    assert isinstance(draws, SurfaceDraws) and len(draws.surfaces) + draws.failed == 20 and repr(draws).startswith("SurfaceDraws(20 draws")
    assert draws.to_frame().equals(model.bootstrap(20, by=noisy["C"], seed=1).to_frame())
    assert not draws.to_frame().equals(model.bootstrap(20, by=noisy["C"], seed=2).to_frame())
    # With every run a label of its own, a resample is the data.
    same = model.bootstrap(3, by=np.arange(noisy.height))
    np.testing.assert_allclose(same.to_frame()["alpha"], model.alpha_, rtol=1e-6)
    np.testing.assert_array_equal(model.get_params()["grid"], 8)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    surface, inside = SURFACES["symmetric"], 0
    for seed in range(12):
        runs = sample_isoflop(surface, BUDGETS[::2], n=12, noise=0.005, seed=seed)
        plan = fit(runs, grid=8).bootstrap(40, by=runs["C"]).optimal(1e22)
        assert plan.N_interval[0] < plan.N < plan.N_interval[1] and plan.level == 0.9
        inside += plan.N_interval[0] <= surface.optimal(1e22).N <= plan.N_interval[1]
    assert 8 <= inside <= 12


def test_a_resample_without_a_law_is_counted() -> None:
    runs = sample_isoflop(SURFACES["chinchilla"], BUDGETS[:2], n=3, noise=0.001)
    draws = fit(runs).bootstrap(50)
    assert draws.failed > 10 and len(draws.surfaces) == 50 - draws.failed
    assert "failed" in repr(draws)
    empty = SurfaceDraws(SURFACES["chinchilla"], (), 5)
    assert np.isnan(empty.optimal(1e20).N_interval).all() and empty.to_frame().height == 0
    alone = SurfaceDraws(SURFACES["chinchilla"], (SURFACES["chinchilla"],), 4)
    assert np.isnan(alone.optimal(1e20).N_interval).all()  # and not an interval without width


# ---- other laws -------------------------------------------------------------------------------------------------------------------------


def test_two_terms_are_the_chinchilla_law(noisy: pl.DataFrame) -> None:
    law = SeparableLaw().fit(noisy.select("N", "D"), noisy["L"])
    model = fit(noisy)
    np.testing.assert_array_equal(np.r_[law.intercept_, law.coef_, law.exponents_], numbers(model))
    np.testing.assert_array_equal(law.predict(noisy.select("N", "D")), model.predict(noisy.select("N", "D")))
    by_name = SeparableLaw(["D", "N"]).fit(noisy, noisy["L"])
    np.testing.assert_allclose(by_name.exponents_, law.exponents_[::-1], rtol=1e-6)


def test_a_learning_curve_is_one_term() -> None:
    n = np.geomspace(1e3, 1e6, 9)[:, None]
    law = SeparableLaw().fit(n, 0.1 + 3 * n[:, 0] ** -0.45)
    np.testing.assert_allclose([law.intercept_, law.coef_[0], law.exponents_[0]], [0.1, 3, 0.45], rtol=1e-9)
    assert law.status_ == "converged" and law.cov_.shape == (3, 3)


def test_three_terms_add_a_column() -> None:
    rng = np.random.default_rng(0)
    X = 10 ** rng.uniform([6, 8, 0], [9, 11, 2], (80, 3))
    y = 1.5 + 400 * X[:, 0] ** -0.34 + 500 * X[:, 1] ** -0.28 + 0.3 * X[:, 2] ** -0.6
    law = SeparableLaw().fit(X, y)
    np.testing.assert_allclose(np.r_[law.intercept_, law.coef_, law.exponents_], [1.5, 400, 500, 0.3, 0.34, 0.28, 0.6], rtol=1e-8)
    np.testing.assert_allclose(law.predict(X), y, rtol=1e-12)


# ---- scikit-learn -----------------------------------------------------------------------------------------------------------------------


class OfAnyTable(ChinchillaRegressor):
    """For scikit-learn's checks, whose tables have any number of columns and zeros: the first two columns, moved up."""

    def _columns(self, table):
        return super()._columns(table[:, :2] + 1e-3)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True  # two columns of them
        return tags


class OneTermOfAnyTable(SeparableLaw):
    def _columns(self, table):
        return super()._columns(table.mean(axis=1, keepdims=True) + 1e-3)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True
        return tags


@pytest.mark.filterwarnings("ignore:y. the median loss")
@parametrize_with_checks([OfAnyTable(grid=6), OfAnyTable(loss="huber", target="log", grid=4), OneTermOfAnyTable(grid=6)])
def test_scikit_learn_checks(estimator, check) -> None:
    check(estimator)


def test_it_works_inside_scikit_learn(noisy: pl.DataFrame) -> None:
    X, y = noisy.select("N", "D").to_numpy(), noisy["L"].to_numpy()
    order = np.random.default_rng(0).permutation(len(y))
    assert cross_val_score(ChinchillaRegressor(grid=8), X[order], y[order], cv=3).mean() > 0.99
    search = GridSearchCV(ChinchillaRegressor(grid=8), {"loss": ["squared", "huber"]}, cv=3).fit(X[order], y[order])
    assert search.best_params_["loss"] in ("squared", "huber")
    model = ChinchillaRegressor().fit(noisy.select("N", "D").to_pandas(), y)
    assert model.feature_names_in_.tolist() == ["N", "D"] and model.score(noisy.select("N", "D").to_pandas(), y) > 0.99
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(noisy.select("N", "D").to_pandas()), model.predict(noisy.select("N", "D").to_pandas()))


# ---- bad input --------------------------------------------------------------------------------------------------------------------------

GOOD = sample_isoflop(SURFACES["chinchilla"], BUDGETS[:2], n=4).select("N", "D", "L").to_numpy()


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (2, 0, 0.0, r"X\[:, 0\] \(size N\): got 0 in row 2; expected finite numbers > 0"),
        (1, 1, -5.0, r"X\[:, 1\] \(data D\): got -5 in row 1"),
        (1, 1, np.nan, r"X\[:, 1\] \(data D\): got NaN in row 1"),
        (3, 0, np.inf, r"X\[:, 0\] \(size N\): got inf in row 3"),
        (0, 2, 0.0, r"y: got 0 in row 0"),
        (slice(None), 0, 1e8, r"X\[:, 0\] \(size N\): got 1e\+08 in all runs; expected at least two values"),
        (slice(None), 1, 1e9, r"X\[:, 1\] \(data D\): got 1e\+09 in all runs"),
        (slice(4, None), slice(0, 2), 7.0, r"got 5 different runs|at least 5"),
    ],
)
def test_bad_runs_are_named(row, column, value, message) -> None:
    table = GOOD.copy()
    table[row, column] = value
    if isinstance(row, slice) and row.start:
        ChinchillaRegressor().fit(table[:, :2], table[:, 2])  # five different runs will do
        table[3:, :2] = 7.0
    with pytest.raises(InputError, match=message):
        ChinchillaRegressor().fit(table[:, :2], table[:, 2])


def test_a_loss_that_is_missing_is_refused() -> None:
    with pytest.raises(ValueError, match="Input y contains NaN"):  # by scikit-learn
        ChinchillaRegressor().fit(GOOD[:, :2], np.r_[GOOD[:-1, 2], np.nan])


def test_columns_of_a_frame_go_by_their_names() -> None:
    frame = pd.DataFrame(GOOD[:, :2], columns=["params", "tokens"])
    frame.loc[1, "tokens"] = 0
    with pytest.raises(InputError, match="tokens: got 0 in row 1"):
        ChinchillaRegressor().fit(frame, GOOD[:, 2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "absolute"}, "loss: got 'absolute'; expected one of squared, huber"),
        ({"target": "logs"}, "target: got 'logs'; expected one of linear, log. Did you mean 'log'?"),
        ({"delta": 0}, "delta: got 0"),
        ({"grid": 1}, "grid: got 1"),
        ({"exponent_bounds": (0.5, 0.2)}, r"exponent_bounds\[1\]: got 0.2; expected a number > 0.5"),
        ({"exponent_bounds": 0.5}, "exponent_bounds: got 0.5; expected two numbers"),
        ({"exponent_bounds": (0, 1)}, r"exponent_bounds\[0\]: got 0"),
        ({"flops_factor": 0}, "flops_factor: got 0"),
    ],
)
def test_bad_options_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        ChinchillaRegressor(**options).fit(GOOD[:, :2], GOOD[:, 2])


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([], "terms: got .*at least one column"),
        ([0, 0], "terms: got 0, 0; expected every column once"),
        ([3], r"terms: got 3; expected an integer in \[0, 2\]"),
        (["N"], "terms: got 'N'.*Columns have names in a frame only"),
    ],
)
def test_bad_terms_are_refused(terms, message) -> None:
    with pytest.raises(InputError, match=message):
        SeparableLaw(terms).fit(GOOD, GOOD[:, 2])


def test_three_columns_are_another_law() -> None:
    with pytest.raises(InputError, match=r"X: got 3 feature\(s\); expected two columns.*SeparableLaw"):
        ChinchillaRegressor().fit(GOOD, GOOD[:, 2])


def test_perplexities_are_asked_about() -> None:
    with pytest.warns(UserWarning, match="the median loss is .* perplexities, take their logarithms"):
        ChinchillaRegressor().fit(GOOD[:, :2], np.exp(GOOD[:, 2]))


def test_labels_of_a_bootstrap_are_one_per_run() -> None:
    model = ChinchillaRegressor().fit(GOOD[:, :2], GOOD[:, 2])
    with pytest.raises(InputError, match=r"by: got an array of shape \(3,\); expected one label for each of the 8 runs"):
        model.bootstrap(5, by=[1, 2, 3])
    for n in (0, 1):
        with pytest.raises(InputError, match=f"n: got {n}; expected an integer >= 2"):
            model.bootstrap(n)
    with pytest.raises(InputError, match="seed: got -1; expected an integer >= 0"):
        model.bootstrap(5, seed=-1)
    with pytest.raises(InputError, match="level: got 2"):
        model.bootstrap(2, by=np.arange(8)).optimal(1e20, level=2)


def test_losses_that_are_all_the_same_are_refused() -> None:
    x = np.array([[1e6, 1e8], [1e7, 1e8], [1e6, 1e9], [1e7, 1e9], [1e8, 1e9], [1e8, 1e10]])
    with pytest.raises(InputError, match=r"y: got the same loss, 2.5, in all 6 runs; expected losses that differ"):
        ChinchillaRegressor().fit(x, np.full(6, 2.5))
