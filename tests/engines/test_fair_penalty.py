from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
import torch
from sklearn.linear_model import LogisticRegression, PoissonRegressor, Ridge
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from counterpoise._errors import InputError
from counterpoise.data import ProtectedAttributeEncoder
from counterpoise.engines import FairPenaltyClassifier, FairPenaltyRegressor, calibrate_penalty
from counterpoise.engines._calibrate import NO_DEPENDENCE, _choose, _Fit, _p_value, poisson_rps
from counterpoise.losses import DistanceCovariancePenalty
from counterpoise.metrics import jensen_shannon_by_group

NOT_EQUIVALENT = "a row of weight 2 and a row drawn twice are not the same thing for mini-batches"
LINEAR: dict[str, Any] = {"hidden": (), "lr": 0.05, "max_steps": 120, "random_state": 0}


@parametrize_with_checks(
    [
        FairPenaltyClassifier((16,), max_steps=80, lr=0.05, random_state=0),
        FairPenaltyRegressor((16,), max_steps=80, lr=0.05, random_state=0),
    ],
    expected_failed_checks=lambda estimator: {
        "check_sample_weight_equivalence_on_dense_data": NOT_EQUIVALENT,
        "check_sample_weight_equivalence_on_sparse_data": NOT_EQUIVALENT,
    },
)
def test_scikit_learn_contract(estimator: Any, check: Any) -> None:
    check(estimator)


def gerrymandered(n: int = 800, seed: int = 0):
    """Labels that depend on x and on whether sex and age agree, which x shows."""
    rng = np.random.default_rng(seed)
    sex, old = rng.integers(2, size=n), rng.integers(2, size=n)
    X = np.column_stack([(sex == old) + 0.3 * rng.normal(size=n), rng.normal(size=n)])
    y = (X[:, 0] - 0.5 + X[:, 1] + 0.3 * rng.normal(size=n) > 0).astype(int)
    return X, y, {"sex": np.array(["f", "m"])[sex], "old": old.astype(bool)}


def cells_of(attributes) -> list[str]:
    return [f"{s}{o}" for s, o in zip(attributes["sex"], attributes["old"], strict=True)]


def test_without_a_penalty_they_are_the_models_one_knows() -> None:
    X, y, attributes = gerrymandered()
    model = FairPenaltyClassifier((), lr=0.05, max_steps=600, random_state=0).fit(X, y)
    expected = LogisticRegression(C=np.inf).fit(X, y)
    np.testing.assert_allclose(model.predict_proba(X)[:, 1], expected.predict_proba(X)[:, 1], atol=0.03)
    same = FairPenaltyClassifier((), lr=0.05, max_steps=600, random_state=0).fit(X, y, attributes=attributes)
    np.testing.assert_array_equal(same.predict_proba(X), model.predict_proba(X))
    target = 3 + 2 * X[:, 0]
    squared = FairPenaltyRegressor((), lr=0.05, max_steps=600, random_state=0).fit(X, target)
    np.testing.assert_allclose(squared.predict(X), Ridge(1e-6).fit(X, target).predict(X), atol=0.05)


def test_frequencies_weighted_by_exposure_are_counts_with_an_offset() -> None:
    rng = np.random.default_rng(0)
    X, exposure = rng.normal(size=(3000, 2)), rng.uniform(0.1, 1, size=3000)
    counts = rng.poisson(exposure * np.exp(X[:, 0] - 1.5))
    model = FairPenaltyRegressor((), loss="poisson", lr=0.02, max_steps=600, random_state=0)
    rate = model.fit(X, counts / exposure, sample_weight=exposure).predict(X)
    expected = PoissonRegressor(alpha=0).fit(X, counts / exposure, sample_weight=exposure).predict(X)
    np.testing.assert_allclose(np.log(rate), np.log(expected), atol=0.08)


@pytest.mark.parametrize("penalty", ["ccdcov", "jdcov", DistanceCovariancePenalty(scale="equal_dvar", unbiased=False)], ids=str)
def test_the_penalty_closes_intersections(penalty) -> None:
    X, y, attributes = gerrymandered()
    divergence = []
    for lam in (0, 20):
        model = FairPenaltyClassifier(**LINEAR, penalty=penalty, lam=lam).fit(X, y, attributes=attributes)
        divergence.append(jensen_shannon_by_group(model.predict_proba(X)[:, 1], cells_of(attributes)))
    assert divergence[1] < 0.25 * divergence[0]


def test_one_attribute_at_a_time_leaves_intersections_open() -> None:
    X, y, attributes = gerrymandered()
    found = {
        lam: FairPenaltyClassifier(**LINEAR, penalty="dcov_sum", lam=lam).fit(X, y, attributes=attributes).predict_proba(X)[:, 1]
        for lam in (0, 20)
    }
    assert jensen_shannon_by_group(found[20], cells_of(attributes)) > 0.7 * jensen_shannon_by_group(found[0], cells_of(attributes))


def test_regression_and_many_classes() -> None:
    X, _, attributes = gerrymandered()
    for loss in ("squared", "poisson"):
        gaps = []
        for lam in (0, 30):
            model = FairPenaltyRegressor(**LINEAR, loss=loss, lam=lam).fit(X, np.round(np.exp(X[:, 0])), attributes=attributes)
            same = np.array(cells_of(attributes))
            p = model.predict(X)
            gaps.append(abs(p[np.isin(same, ["fFalse", "mTrue"])].mean() - p[np.isin(same, ["fTrue", "mFalse"])].mean()))
        assert gaps[1] < 0.3 * gaps[0]
    three = np.digitize(X[:, 0] + X[:, 1], [0, 1])
    jsd = [
        jensen_shannon_by_group(
            FairPenaltyClassifier(**LINEAR, lam=lam).fit(X, three, attributes=attributes).predict_proba(X)[:, 2], cells_of(attributes)
        )
        for lam in (0, 60)
    ]
    assert jsd[1] < 0.6 * jsd[0]


def test_attributes_of_any_form_are_the_same_attributes() -> None:
    X, y, attributes = gerrymandered(200)
    forms = [attributes, pd.DataFrame(attributes), pl.DataFrame(attributes)]
    found = [FairPenaltyClassifier(**LINEAR, lam=5).fit(X, y, attributes=form).decision_function(X) for form in forms]
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])
    codes = np.arange(200) % 3
    first = FairPenaltyClassifier(**LINEAR, lam=5, encoder=ProtectedAttributeEncoder([0])).fit(X, y, attributes=codes)
    second = FairPenaltyClassifier(**LINEAR, lam=5).fit(X, y, attributes=torch.from_numpy(codes).numpy().astype(str).astype(object))
    np.testing.assert_array_equal(first.decision_function(X), second.decision_function(X))
    assert first.attribute_encoder_.categories_ and first.n_features_in_ == 2


def test_attributes_travel_through_pipelines_and_searches() -> None:
    X, y, attributes = gerrymandered(300)
    frame = pd.DataFrame(attributes)
    with sklearn.config_context(enable_metadata_routing=True):
        model = make_pipeline(StandardScaler(), FairPenaltyClassifier(**LINEAR, lam=5).set_fit_request(attributes=True))
        scores = cross_val_score(model, X, y, params={"attributes": frame}, cv=3)
    assert (scores > 0.5).all()


@pytest.mark.parametrize(("options", "attributes", "message"), [
    ({"lam": 1}, None, "attributes: got None; expected the protected attributes of the rows, since lam = 1"),
    ({"lam": -1}, None, "lam: got -1"),
    ({"lam": 1}, np.zeros(3), "a table or columns of 8 rows"),
    ({"lam": 1}, {"age": [1.0] * 7 + [float("nan")]}, "column age"),
    ({"lam": 1, "batch_size": 3}, np.arange(8) % 2, "batch_size: got 3"),
    ({"penalty": "ccd"}, None, "Did you mean"),
    ({"loss": "hinge"}, None, "loss: got 'hinge'"),
])  # fmt: skip
def test_bad_input(options, attributes, message) -> None:
    X = np.arange(16.0).reshape(8, 2)
    for estimator in (FairPenaltyClassifier, FairPenaltyRegressor):
        with pytest.raises(InputError) as error:
            estimator(**options).fit(X, np.arange(8) % 2, attributes=attributes)
        assert message in str(error.value)


def test_a_constant_attribute_is_said_once() -> None:
    X, y, _ = gerrymandered(100)
    with pytest.warns(UserWarning, match="single value") as seen:
        FairPenaltyClassifier(**LINEAR, lam=1, batch_size=20).fit(X, y, attributes={"where": np.zeros(100), "x": np.arange(100)})
    assert len(seen) == 1


def test_the_penalty_is_of_batches_alone(monkeypatch) -> None:
    """Of all rows it may take n x n numbers."""
    X, y, _ = gerrymandered(300)
    seen: list[int] = []
    forward = DistanceCovariancePenalty.forward

    def counting(self, predictions, attributes):
        seen.append(len(predictions))
        return forward(self, predictions, attributes)

    monkeypatch.setattr(DistanceCovariancePenalty, "forward", counting)
    two_numbers = {"age": np.random.default_rng(0).normal(size=300), "income": np.random.default_rng(1).normal(size=300)}
    FairPenaltyClassifier((), lam=1, batch_size=50, max_steps=3, random_state=0).fit(X, y, attributes=two_numbers)
    assert seen == [50, 50, 50]


def test_poisson_targets() -> None:
    with pytest.raises(InputError, match=r"y: got targets in \[-1, 2\]"):
        FairPenaltyRegressor(loss="poisson").fit(np.zeros((2, 1)), [-1, 2])
    with pytest.raises(InputError, match="some of them above 0"):
        FairPenaltyRegressor(loss="poisson").fit(np.zeros((2, 1)), [0, 0])


# ---- calibration ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def path():
    X, y, attributes = gerrymandered(600)
    model = FairPenaltyClassifier(**LINEAR)
    return calibrate_penalty(model, X, y, pd.DataFrame(attributes), [0.3, 0.03, 1.0], cv=KFold(2, shuffle=True, random_state=0))


def test_a_path_starts_without_penalty_and_trades_loss_for_divergence(path) -> None:
    assert path.strength.tolist() == [0, 0.03, 0.3, 1] and path.lam[0] == 0
    np.testing.assert_allclose(path.lam * path.psi[:, 0].mean(), path.strength)
    assert path.jsd.shape == path.cost.shape == path.psi.shape == (2, 4)
    assert (np.diff(path.jsd.mean(0)) < 0).all() and path.cost.mean(0)[-1] > path.cost.mean(0)[0]
    assert path.best_lam == path.lam[path.selected] and "knee" in path.rule
    assert path.to_frame().height == 4 and "Brier score" in path.summary() and path.plot() is not None


def test_the_unpenalized_column_is_that_of_the_model_itself(path) -> None:
    X, y, attributes = gerrymandered(600)
    cells = np.array(cells_of(attributes))
    for fold, (train, test) in enumerate(KFold(2, shuffle=True, random_state=0).split(X)):
        p = FairPenaltyClassifier(**LINEAR).fit(X[train], y[train]).predict_proba(X[test])[:, 1]
        assert path.jsd[fold, 0] == pytest.approx(jensen_shannon_by_group(p, cells[test]))
        assert path.cost[fold, 0] == pytest.approx(np.mean((p - y[test]) ** 2))


def test_rules() -> None:
    jsd, cost = np.array([1.0, 0.4, 0.1, 0.0]), np.array([0.0, 0.1, 0.2, 1.0])
    assert _choose(jsd, cost, 0.5)[0] == 1 and _choose(jsd, cost, 0.05)[0] == 3
    assert _choose(jsd, cost, None)[0] == 2
    number, rule = _choose(jsd + 1, cost, 0.5)
    assert number == 3 and "Extend the grid" in rule
    assert _choose(np.array([0.1, 0.2]), np.array([0.0, 1.0]), None)[0] == 0


def test_what_attributes_have_among_themselves_is_no_unit_of_strength() -> None:
    """The joint penalty of two copies of an attribute is there whatever the predictions are."""
    X, y, attributes = gerrymandered(300)
    model = FairPenaltyClassifier(**LINEAR | {"max_steps": 20}, penalty="jdcov")
    path = calibrate_penalty(model, X, y, attributes | {"again": attributes["sex"]}, [0.5], cv=2)
    of_attributes = []
    for _, test in StratifiedKFold(2).split(X, y):
        parts = [torch.from_numpy((values[test] == values[0]).astype(int)) for values in (*attributes.values(), attributes["sex"])]
        of_attributes.append(DistanceCovariancePenalty("jdcov")(torch.zeros(len(test)), parts).item())
    assert np.mean(of_attributes) > 3 * (path.psi[:, 0].mean() - np.mean(of_attributes)) > 0
    assert path.lam[1] == pytest.approx(0.5 / (path.psi[:, 0].mean() - np.mean(of_attributes)), rel=1e-5)


def test_what_is_there_by_chance_is_not_penalized() -> None:
    """A penalty of the unpenalized model that is chance is no unit of strength: lam would be a large number, and buy nothing."""
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(90, 1)), rng.integers(2, size=90)
    model = FairPenaltyClassifier((), max_steps=5, random_state=0)
    nothing = above_0 = 0
    for seed in range(20):
        found = calibrate_penalty(model, X, y, np.random.default_rng(seed).integers(2, size=90), [1], cv=2)
        above_0 += found.psi[:, 0].mean() > 0
        if found.rule == NO_DEPENDENCE:
            nothing += 1
            assert found.best_lam == 0 and len(found.lam) == 1
    assert nothing >= 18 and above_0 >= 3
    assert calibrate_penalty(model, X, y, X[:, 0] > 0, [1], cv=2).best_lam > 0


def test_p_values_of_independent_predictions_are_uniform() -> None:
    rng = np.random.default_rng(0)

    def fits(folds: int) -> list[_Fit]:
        parts = [{"a": torch.from_numpy(rng.integers(3, size=30))} for _ in range(folds)]
        return [_Fit(np.zeros(30), torch.from_numpy(rng.normal(size=(30, 1))), part, DistanceCovariancePenalty()) for part in parts]

    p = np.array([_p_value(fits(2)) for _ in range(30)])
    assert p.min() >= 1 / 40 and abs(p.mean() - 0.5) < 0.16 and (p <= 0.05).sum() <= 4


def test_poisson_paths_score_counts() -> None:
    rng = np.random.default_rng(0)
    sex, exposure = rng.integers(2, size=600), rng.uniform(0.2, 1, size=600)
    counts = rng.poisson(exposure * np.exp(sex - 1.0))
    model = FairPenaltyRegressor(**LINEAR, loss="poisson")
    X = np.column_stack([sex, rng.normal(size=600)])
    found = calibrate_penalty(model, X, counts / exposure, sex, [1.0], cv=2, target_jsd=0.5, sample_weight=exposure)
    assert found.cost_name == "RPS" and 0.2 < found.cost.mean() < 0.8
    assert found.jsd.mean(0)[1] < 0.5 * found.jsd.mean(0)[0]


def test_rps_by_hand() -> None:
    from scipy.stats import poisson

    F = poisson.cdf(np.arange(60), 2.5)
    assert poisson_rps([2.5], [3])[0] == pytest.approx(((F - (np.arange(60) >= 3)) ** 2).sum())


@pytest.mark.parametrize(
    ("grid", "message"), [([0.0], "above 0"), ([-1.0, 1], "grid: got"), ([], "grid: got"), ("weak", "grid: got"), (["a"], "grid: got")]
)
def test_bad_grids(grid, message) -> None:
    with pytest.raises(InputError, match=message):
        calibrate_penalty(FairPenaltyClassifier(), np.zeros((8, 1)), np.arange(8) % 2, np.arange(8) % 2, grid)


def test_bad_folds_and_weights() -> None:
    X, y = np.arange(24.0)[:, None], np.r_[np.zeros(12), np.ones(8), np.full(4, 2)].astype(int)
    model = FairPenaltyClassifier((), max_steps=2)
    with pytest.raises(InputError, match="cv: got a split whose fold 0 trains on 2 of 3 classes; expected all classes in every fold"):
        calibrate_penalty(model, X, y, y % 2, [1], cv=KFold(2))
    with pytest.raises(InputError, match=r"sample_weight: got shape \(3,\); expected one weight for each row, shape \(24,\)"):
        calibrate_penalty(model, X, y, y % 2, [1], cv=2, sample_weight=np.ones(3))
    with pytest.raises(InputError, match="X: got 3 rows; expected at least 4 with a penalty"):
        FairPenaltyClassifier(lam=1).fit(X[:3], [0, 1, 0], attributes=[0, 1, 1])


def test_only_penalized_estimators_are_calibrated() -> None:
    with pytest.raises(InputError, match="estimator: got 'LogisticRegression'"):
        calibrate_penalty(LogisticRegression(), np.zeros((8, 1)), np.arange(8) % 2, np.arange(8) % 2, [1])
