"""The battery of the decisions: meta-estimators that must pass scikit-learn's checks and these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks

__all__ = ["DECISION_CHECKS", "parametrize_with_checks", "probabilities_agree_with_decisions"]

Make = Callable[[Any], Any]  # the class or a function that wraps a classifier


def sample(n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    weights = [0.75] + [0.25 / (n_classes - 1)] * (n_classes - 1)
    return make_classification(600, 6, n_informative=4, n_classes=n_classes, weights=weights, random_state=0)


def numbers_of_classes(make: Make) -> tuple[int, ...]:
    """That it decides between, as its tags say."""
    return (2, 3) if get_tags(make(LogisticRegression())).classifier_tags.multi_class else (2,)


def the_estimator_given_stays_unfitted(make: Make) -> None:
    inner = LogisticRegression()
    make(inner).fit(*sample(2))
    assert not hasattr(inner, "coef_")


def cloning_keeps_every_parameter(make: Make) -> None:
    decision = make(LogisticRegression(C=0.3))
    copy = clone(decision)
    assert copy.get_params()["estimator__C"] == 0.3
    assert {name: repr(value) for name, value in copy.get_params().items()} == {
        name: repr(value) for name, value in decision.get_params().items()
    }


def labels_of_any_type_are_decided_alike(make: Make) -> None:
    for n_classes in numbers_of_classes(make):
        X, y = sample(n_classes)
        names = np.array(["ant", "bee", "cow"])
        decided = make(LogisticRegression()).fit(X, y).predict(X)
        assert set(decided) == set(range(n_classes))
        np.testing.assert_array_equal(make(LogisticRegression()).fit(X, names[y]).predict(X), names[decided])


def probabilities_agree_with_decisions(make: Make) -> None:
    for n_classes in numbers_of_classes(make):
        X, y = sample(n_classes)
        decision = make(LogisticRegression()).fit(X, y)
        proba = decision.predict_proba(X)
        np.testing.assert_allclose(proba.sum(axis=1), 1)
        np.testing.assert_array_equal(decision.classes_[proba.argmax(axis=1)], decision.predict(X))


def it_works_in_pipelines_and_searches(make: Make) -> None:
    X, y = sample(2)
    pipeline = make_pipeline(StandardScaler(), make(LogisticRegression()))
    name = pipeline.steps[-1][0]
    search = GridSearchCV(pipeline, {f"{name}__estimator__C": [1e-4, 1.0]}, scoring="roc_auc", cv=3).fit(X, y)
    assert search.best_score_ > 0.7


# A rule that only moves thresholds leaves the probabilities as they are, and passes all but ``probabilities_agree_with_decisions``.
DECISION_CHECKS: list[Callable[[Make], None]] = [
    the_estimator_given_stays_unfitted,
    cloning_keeps_every_parameter,
    labels_of_any_type_are_decided_alike,
    probabilities_agree_with_decisions,
    it_works_in_pipelines_and_searches,
]
