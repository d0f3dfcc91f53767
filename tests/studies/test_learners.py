"""Built-in learners and anything with scikit-learn's manners."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import cross_validate
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from tests.studies.small import cells, numbers, outer, small_study

from counterpoise._errors import InputError
from counterpoise.studies import Learner, Range
from counterpoise.studies._learners import BUILT_IN, as_learner
from counterpoise.studies._plan import entries_of
from counterpoise.studies._problem import build_problem
from counterpoise.studies._remedies import as_remedies


def test_a_pipeline_of_ones_own_is_fitted_as_it_is(tmp_path: Path) -> None:
    pipeline = make_pipeline(StandardScaler(), SelectKBest(k=2), LogisticRegression(C=0.1, class_weight="balanced"))
    study = small_study(numbers(), target="y", learners={"mine": pipeline}, remedies=["over", "smote"], out=tmp_path)
    X, y = np.asarray(study.problem.X), study.problem.y
    by_hand = cross_validate(pipeline, X, y, cv=[(train, test) for *_, train, test in outer(study)], scoring=["roc_auc", "neg_log_loss"])
    np.testing.assert_allclose(cells(study)["auroc"], by_hand["test_roc_auc"], rtol=1e-12)
    np.testing.assert_allclose(cells(study)["log_loss"], -by_hand["test_neg_log_loss"], rtol=1e-9)
    assert not hasattr(pipeline[-1], "coef_")  # the user's own object is left alone
    assert study.failed == []


def test_weights_do_not_apply_to_learners_without_them(tmp_path: Path) -> None:
    study = small_study(numbers(), target="y", learners={"near": KNeighborsClassifier()}, remedies=["weights", "over"], out=tmp_path)
    assert ("near", "weights", "near takes no sample_weight") in study.plan.not_applicable
    assert "weights" not in study.results["remedy"].unique()


def test_a_weight_column_that_a_learner_cannot_use_is_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = numbers().with_columns(w=rng.uniform(0.5, 2, 240))
    study = small_study(table, target="y", weight="w", learners={"near": KNeighborsClassifier()}, remedies=["over"], out=tmp_path)
    assert study.note_of("near", "over") == "weights were ignored"


def test_the_weight_column_reaches_the_fit(tmp_path: Path) -> None:
    table = numbers().with_columns(w=np.random.default_rng(0).choice([0.1, 5.0], 240))
    study = small_study(table, target="y", weight="w", remedies=["weights", "over"], out=tmp_path)
    X, y, w = np.asarray(study.problem.X), study.problem.y, study.problem.weight
    assert w is not None and X.shape[1] == 4
    stored, _ = study.scores_of("linear", "nothing")
    weighted, _ = study.scores_of("linear", "weights")
    for *_, train, test in outer(study):
        scaler = StandardScaler().fit(X[train])
        model = LogisticRegression(max_iter=1000).fit(scaler.transform(X[train]), y[train], sample_weight=w[train])
        np.testing.assert_allclose(stored[0, test], model.decision_function(scaler.transform(X[test])), rtol=1e-9)
        counts = np.bincount(y[train])
        balanced = len(train) / (2 * counts[y[train]])
        model = LogisticRegression(max_iter=1000).fit(scaler.transform(X[train]), y[train], sample_weight=w[train] * balanced)
        np.testing.assert_allclose(weighted[0, test], model.decision_function(scaler.transform(X[test])), rtol=1e-9)


def test_estimators_without_a_seed_get_the_study_s(tmp_path: Path) -> None:
    learner = as_learner(make_pipeline(StandardScaler(), ExtraTreesClassifier(n_estimators=3)))
    built = [learner.build("binary", {}, seed) for seed in (1, 1, 2)]
    assert [one[-1].random_state for one in built] == [1, 1, 2]
    kept = as_learner(RandomForestClassifier(random_state=7)).build("binary", {}, 1)
    assert kept.random_state == 7


def test_estimators_without_probabilities_are_scored_by_their_decision_function(tmp_path: Path) -> None:
    study = small_study(
        numbers(), target="y", learners={"svm": make_pipeline(StandardScaler(), LinearSVC())}, remedies=["over"], out=tmp_path
    )
    X, y = np.asarray(study.problem.X), study.problem.y
    by_hand = cross_validate(
        make_pipeline(StandardScaler(), LinearSVC(random_state=0)), X, y, cv=[(a, b) for *_, a, b in outer(study)], scoring=["roc_auc"]
    )
    np.testing.assert_allclose(cells(study)["auroc"], by_hand["test_roc_auc"], atol=5e-3)


def test_more_classes_and_regressions_of_ones_own(tmp_path: Path) -> None:
    study = small_study("wine", learners={"bayes": GaussianNB()}, remedies=["over"], out=tmp_path / "wine")
    assert cells(study)["balanced_accuracy"].mean() > 0.9
    table = numbers().drop("y")
    study = small_study(table, target="x0", learners={"ridge": Ridge()}, remedies=["over"], placebo=False, folds=2, out=tmp_path / "ridge")
    assert study.failed == [] and cells(study)["mae"].mean() < 1.5


def test_a_learner_with_a_space_is_tuned(tmp_path: Path) -> None:
    def build(task: str, params: Any, seed: int) -> Any:
        return KNeighborsClassifier(n_neighbors=params["k"])

    learner = Learner("near", build, {"k": Range(1, 60, 1, integer=True)}, scale=True, takes_weights=False)
    study = small_study(numbers(), target="y", learners=learner, remedies=[], trials=5, folds=2, metric="auroc", out=tmp_path)
    assert all('"k": 1}' not in text for text in cells(study)["params"])


def test_two_learners_of_a_kind_need_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'GaussianNB' was given twice"):
        small_study(numbers(), target="y", learners=[GaussianNB(), GaussianNB(var_smoothing=1e-3)], out=tmp_path)
    study = small_study(
        numbers(), target="y", learners={"a": GaussianNB(), "b": GaussianNB(var_smoothing=10.0)}, remedies=[], folds=2, out=tmp_path
    )
    assert (cells(study, learner="a")["log_loss"] != cells(study, learner="b")["log_loss"]).all()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("liner", "Did you mean 'linear'"),
        ("xgboost", "passed as an object"),
        (42, "a scikit-learn estimator with fit and get_params"),
    ],
)
def test_what_is_no_learner(value: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        as_learner(value)


def test_names_of_built_in_learners_are_taken() -> None:
    with pytest.raises(InputError, match="taken by a built-in learner"):
        as_learner(GaussianNB(), "linear")
    with pytest.raises(InputError, match="got none"):
        small_study(numbers(), target="y", learners=[], out=Path("unused"))


def test_the_forest_comes_with_its_remedy_where_trees_are_studied() -> None:
    def arms(problem: Any, learner: str, remedies: Any) -> set[tuple[str, str]]:
        entries, _ = entries_of(problem, [BUILT_IN[learner]], as_remedies(remedies, placebo=False))
        return {(entry.learner.name, entry.remedy.name) for entry in entries if entry.remedy.name != "nothing@0.5"}

    binary, regression = build_problem(numbers(), target="y"), build_problem(numbers().drop("y"), target="x0")
    assert arms(binary, "trees", ["weights"]) == {("trees", "nothing"), ("trees", "weights")}
    plain = {("trees", "nothing"), ("forest", "nothing"), ("forest", "balanced-forest")}
    assert arms(binary, "trees", ["balanced-forest"]) == plain
    assert arms(binary, "forest", ["balanced-forest"]) == plain - {("trees", "nothing")}
    assert {learner for learner, _ in arms(binary, "linear", "all")} == {"linear"}
    assert {learner for learner, _ in arms(regression, "trees", "all")} == {"trees"}
    _, refused = entries_of(regression, [BUILT_IN["trees"]], as_remedies("all"))
    assert ("forest", "balanced-forest", "needs classes") in refused
