"""A cell is what a careful person would compute by hand with scikit-learn: same splits, same fits, same numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import cross_val_predict, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from tests.studies.small import cells, numbers, outer, small_study, threshold_by_hand

from counterpoise.studies import Choice, Learner, Study

ESTIMATORS: dict[str, Any] = {
    "linear": make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
    "trees": HistGradientBoostingClassifier(early_stopping=False, random_state=0),
}
BINARY = {"auroc": "roc_auc", "average_precision": "average_precision", "log_loss": "neg_log_loss", "brier": "neg_brier_score"}


def inner_splits(study: Study, rows: npt.NDArray[np.int64], repeat: int, fold: int) -> list[tuple[Any, Any]]:
    """The inner folds as positions in ``rows``, for scikit-learn's ``cv=``."""
    inner = study.splits.inner_folds(rows, repeat, fold)
    return [(np.flatnonzero(inner != k), np.flatnonzero(inner == k)) for k in range(study.protocol.inner_folds)]


def same(found: pl.Series, expected: Any) -> None:
    np.testing.assert_allclose(found.to_numpy(), expected, rtol=1e-12, atol=1e-12)


# -- agreement with a loop of one's own -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learner", ["linear", "trees"])
def test_two_classes_equal_scikit_learn_by_hand(learner: str, tmp_path: Path) -> None:
    if learner == "linear":
        X, malignant = load_breast_cancer(return_X_y=True)
        y = 1 - malignant  # scikit-learn's 0 is malignant, the rarer class
        study = small_study("breast-cancer", learners=learner, remedies=[], repeats=2, out=tmp_path)
    else:
        table = numbers(300, 90)
        X, y = table.drop("y").to_numpy(), (table["y"] == "yes").to_numpy().astype(int)
        study = small_study(X, y, positive=1, learners=learner, remedies=[], out=tmp_path)
    found, estimator = cells(study), ESTIMATORS[learner]
    folds = outer(study)
    by_hand = cross_validate(estimator, X, y, cv=[(train, test) for *_, train, test in folds], scoring=list(BINARY.values()))
    for ours, theirs in BINARY.items():
        same(found[ours], by_hand[f"test_{theirs}"] * (-1 if theirs.startswith("neg") else 1))
    thresholds, accuracies = [], []
    for repeat, fold, train, test in folds:
        cv = inner_splits(study, train, repeat, fold)
        thresholds.append(threshold_by_hand(y[train], cross_val_predict(estimator, X[train], y[train], cv=cv, method="decision_function")))
        score = estimator.fit(X[train], y[train]).decision_function(X[test])
        accuracies.append(balanced_accuracy_score(y[test], score > thresholds[-1]))
    np.testing.assert_allclose([threshold[0] for threshold in found["threshold"]], thresholds, rtol=1e-9, atol=1e-9)
    same(found["balanced_accuracy"], accuracies)


def test_more_classes_equal_scikit_learn_by_hand(tmp_path: Path) -> None:
    X, y = load_wine(return_X_y=True)
    study = small_study("wine", remedies=[], out=tmp_path)
    found, estimator = cells(study), ESTIMATORS["linear"]
    folds = outer(study)
    by_hand = cross_validate(
        estimator, X, y, cv=[(train, test) for *_, train, test in folds], scoring=["roc_auc_ovr", "neg_log_loss", "neg_brier_score"]
    )
    same(found["auroc"], by_hand["test_roc_auc_ovr"])
    same(found["log_loss"], -by_hand["test_neg_log_loss"])
    # Ours is the mean squared distance over rows; scikit-learn's as well since it takes more than two classes.
    same(found["brier"], -by_hand["test_neg_brier_score"])
    for (*_, train, test), offsets, accuracy in zip(folds, found["threshold"], found["balanced_accuracy"], strict=True):
        log_proba = estimator.fit(X[train], y[train]).predict_log_proba(X[test])
        assert len(offsets) == 3
        expected = balanced_accuracy_score(y[test], np.argmax(log_proba + np.asarray(offsets), axis=1))
        assert accuracy == pytest.approx(expected, abs=1e-12)


def test_offsets_of_more_classes_are_good_on_the_out_of_fold_scores(tmp_path: Path) -> None:
    X, y = load_wine(return_X_y=True)
    study = small_study("wine", remedies=[], out=tmp_path)
    for (repeat, fold, train, _), offsets in zip(outer(study), cells(study)["threshold"], strict=True):
        cv = inner_splits(study, train, repeat, fold)
        proba = cross_val_predict(ESTIMATORS["linear"], X[train], y[train], cv=cv, method="predict_proba")
        prior = np.bincount(y[train]) / len(train)

        def value(b: Any, proba: Any = proba, train: Any = train) -> float:
            return float(balanced_accuracy_score(y[train], np.argmax(np.log(proba) + b, axis=1)))

        assert value(np.asarray(offsets)) >= max(value(np.zeros(3)), value(-np.log(prior)))


@pytest.mark.parametrize("learner", ["linear", "trees"])
def test_a_regression_equals_scikit_learn_by_hand(learner: str, tmp_path: Path) -> None:
    X, y = load_diabetes(return_X_y=True)
    estimators = {
        "linear": make_pipeline(StandardScaler(), Ridge(alpha=1.0)),
        "trees": HistGradientBoostingRegressor(early_stopping=False, random_state=0),
    }
    study = small_study(X, y, learners=learner, remedies=[], placebo=False, folds=3, task="regression", out=tmp_path)
    by_hand = cross_validate(
        estimators[learner],
        X,
        y,
        cv=[(train, test) for *_, train, test in outer(study)],
        scoring=["neg_mean_absolute_error", "neg_root_mean_squared_error", "r2"],
    )
    found = cells(study)
    same(found["mae"], -by_hand["test_neg_mean_absolute_error"])
    same(found["rmse"], -by_hand["test_neg_root_mean_squared_error"])
    same(found["r2"], by_hand["test_r2"])


def test_real_data_equal_scikit_learn_by_hand(data_folder: Path, tmp_path: Path) -> None:
    study = small_study("mammography", remedies=[], placebo=False, out=tmp_path)
    X, y = np.asarray(study.problem.X), study.problem.y
    assert y.sum() == 260
    by_hand = cross_validate(
        ESTIMATORS["linear"], X, y, cv=[(train, test) for *_, train, test in outer(study)], scoring=["roc_auc", "neg_log_loss"]
    )
    same(cells(study)["auroc"], by_hand["test_roc_auc"])
    same(cells(study)["log_loss"], -by_hand["test_neg_log_loss"])


# -- thresholds -------------------------------------------------------------------------------------------------------------------------


def test_nothing_at_one_half_is_what_the_estimator_predicts(tmp_path: Path) -> None:
    X, malignant = load_breast_cancer(return_X_y=True)
    y = 1 - malignant
    study = small_study("breast-cancer", remedies=[], out=tmp_path)
    by_hand = cross_validate(
        ESTIMATORS["linear"], X, y, cv=[(train, test) for *_, train, test in outer(study)], scoring=["balanced_accuracy", "f1", "recall"]
    )
    shown = cells(study, "nothing@0.5")
    for name in ("balanced_accuracy", "f1", "recall"):
        same(shown[name], by_hand[f"test_{name}"])
    assert shown["threshold"].to_list() == [[0.0]] * 5
    same(shown["auroc"], cells(study)["auroc"])


def test_one_half_of_more_classes_is_what_the_estimator_predicts(tmp_path: Path) -> None:
    X, y = load_wine(return_X_y=True)
    study = small_study("wine", remedies=[], out=tmp_path)
    by_hand = cross_validate(
        ESTIMATORS["linear"], X, y, cv=[(train, test) for *_, train, test in outer(study)], scoring=["balanced_accuracy"]
    )
    same(cells(study, "nothing@0.5")["balanced_accuracy"], by_hand["test_balanced_accuracy"])


def test_the_prior_threshold_is_the_log_odds_of_the_training_rows(tmp_path: Path) -> None:
    study = small_study(numbers(), target="y", remedies=["prior"], repeats=2, out=tmp_path)
    y = study.problem.y
    expected = [math.log(y[train].mean() / (1 - y[train].mean())) for *_, train, _ in outer(study)]
    np.testing.assert_allclose([threshold[0] for threshold in cells(study, "prior")["threshold"]], expected, rtol=1e-12)


def test_with_costs_the_prior_threshold_is_their_ratio_and_decisions_are_cheaper(tmp_path: Path) -> None:
    study = small_study(numbers(), target="y", remedies=["prior"], cost={"fp": 1, "fn": 20}, out=tmp_path)
    assert [threshold[0] for threshold in cells(study, "prior")["threshold"]] == pytest.approx([-math.log(20)] * 5)
    baseline, half = cells(study), cells(study, "nothing@0.5")
    assert baseline["cost"].mean() < half["cost"].mean()
    X, y = np.asarray(study.problem.X), study.problem.y
    for (*_, train, test), threshold, cost in zip(outer(study), baseline["threshold"], baseline["cost"], strict=True):
        alarms = ESTIMATORS["linear"].fit(X[train], y[train]).decision_function(X[test]) > threshold[0]
        assert cost == pytest.approx((20 * (~alarms & (y[test] == 1)).sum() + (alarms & (y[test] == 0)).sum()) / len(test))
    assert study.metrics["decisions"] == "cost"


def test_few_positives_are_judged_by_the_prior_without_inner_fits(tmp_path: Path) -> None:
    study = small_study("breast-cancer-rare", remedies=["prior"], out=tmp_path)  # 18 positives
    assert cells(study)["fits"].to_list() == [1] * 5
    assert cells(study)["threshold"].to_list() == cells(study, "prior")["threshold"].to_list()


def test_the_threshold_tuned_for_f1(tmp_path: Path) -> None:
    from sklearn.metrics import f1_score

    table = numbers()
    study = small_study(table, target="y", remedies=[], metric="f1", out=tmp_path)
    X, y = np.asarray(study.problem.X), study.problem.y
    for (repeat, fold, train, _), threshold in zip(outer(study), cells(study)["threshold"], strict=True):
        cv = inner_splits(study, train, repeat, fold)
        score = cross_val_predict(ESTIMATORS["linear"], X[train], y[train], cv=cv, method="decision_function")
        best = max(f1_score(y[train], score > candidate) for candidate in score - 1e-9)
        assert f1_score(y[train], score > threshold[0]) == pytest.approx(best)


# -- budgets ----------------------------------------------------------------------------------------------------------------------------


def test_every_arm_of_a_learner_is_fitted_equally_often(tmp_path: Path) -> None:
    study = small_study(numbers(160, 50), target="y", remedies=["weights", "over", "smote", "under"], out=tmp_path / "linear")
    assert study.results["fits"].unique().to_list() == [3 + 1]  # one in each inner fold, and the last one
    study = small_study(numbers(120, 40), target="y", learners="forest", remedies=["balanced-forest"], folds=2, out=tmp_path / "forest")
    assert set(study.results["remedy"]) == {"nothing", "nothing@0.5", "placebo", "balanced-forest"}
    assert study.results["fits"].unique().to_list() == [2 + 1]


def test_every_arm_is_tuned_equally_long(tmp_path: Path) -> None:
    """SMOTE has a setting of its own, the weights have none: both get three trials."""
    study = small_study(numbers(160, 50), target="y", remedies=["weights", "smote"], trials=3, folds=2, out=tmp_path)
    assert study.protocol.inner_folds == 2
    assert study.results["fits"].unique().to_list() == [3 * 2 + 1]
    assert all("k_neighbors" in text for text in cells(study, "smote")["params"])
    assert all("C" in text for text in cells(study, "weights")["params"])


def test_every_arm_of_a_net_takes_equally_many_steps(tmp_path: Path) -> None:
    study = small_study(
        numbers(120, 40), target="y", learners="mlp", remedies=["over", "under", "focal"], placebo=False, folds=2, out=tmp_path
    )
    assert study.results["steps"].unique().to_list() == [3 * 500]  # two inner fits and the last one
    assert study.results["fits"].unique().to_list() == [3]
    assert cells(study, "focal")["auroc"].to_list() != cells(study)["auroc"].to_list()


def test_arms_without_anything_to_tune_try_other_seeds(tmp_path: Path) -> None:
    forest = RandomForestClassifier(n_estimators=5)
    study = small_study(numbers(160, 50), target="y", learners={"mine": forest}, remedies=[], trials=3, folds=2, out=tmp_path)
    params = cells(study)["params"].to_list()
    assert all("trial_seed" in text for text in params)
    assert study.results["fits"].unique().to_list() == [3 * 2 + 1]


def test_tuning_finds_what_the_defaults_miss(tmp_path: Path) -> None:
    """Trees of one leaf by default: any other setting is better, and is found in the inner folds."""

    def build(task: str, params: Any, seed: int) -> DecisionTreeClassifier:
        return DecisionTreeClassifier(min_samples_leaf=params["leaf"], random_state=seed)

    learner = Learner("tree", build, {"leaf": Choice((1000, 5, 10))})
    study = small_study(numbers(), target="y", learners=[learner], remedies=[], trials=6, folds=2, metric="auroc", out=tmp_path)
    assert all('"leaf": 1000' not in text for text in cells(study)["params"])
    assert cells(study)["auroc"].mean() > 0.6


# -- what goes wrong --------------------------------------------------------------------------------------------------------------------


class Constant(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Predicts the share of positives, whatever it sees."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Constant:
        self.classes_ = np.unique(y)
        self.share_ = float(np.average(y, weights=sample_weight))
        return self

    def predict_proba(self, X: Any) -> Any:
        return np.tile([1 - self.share_, self.share_], (len(X), 1))


def test_constant_predictions_are_reported(tmp_path: Path) -> None:
    study = small_study(numbers(), target="y", learners={"constant": Constant()}, out=tmp_path)
    assert study.note_of("constant", "weights") == "constant predictions"
    reasons = {verdict.arm: verdict.reason for verdict in study.verdicts("ranking")}
    assert "constant predictions" in reasons["weights"]
    assert cells(study)["auroc"].to_list() == [0.5] * 5
    assert "constant predictions" in study.report().read_text()
