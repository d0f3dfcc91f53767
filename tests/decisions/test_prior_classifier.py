from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

from counterpoise._errors import InputError
from counterpoise.decisions import PriorThresholdClassifier, prior_correct


@pytest.fixture(scope="module")
def gaussians():
    """Two classes at distance 2 with 5 % positives, and as many test rows."""
    rng = np.random.default_rng(0)
    y = (rng.random(8000) < 0.05).astype(int)
    X = rng.normal(size=(8000, 2))
    X[:, 0] += 2 * y
    return train_test_split(X, y, test_size=0.5, stratify=y, random_state=0)


def test_for_two_classes_it_is_the_threshold_at_the_prior(gaussians) -> None:
    X, X_test, y, y_test = gaussians
    plain = LogisticRegression().fit(X, y)
    corrected = PriorThresholdClassifier(LogisticRegression()).fit(X, y)
    np.testing.assert_allclose(corrected.prior_, [1 - y.mean(), y.mean()])
    np.testing.assert_array_equal(corrected.predict(X_test), plain.predict_proba(X_test)[:, 1] > y.mean())
    # Bayes: 2 s = 2 apart, so balanced accuracy Phi(1) = .841 at the middle.
    assert balanced_accuracy_score(y_test, corrected.predict(X_test)) == pytest.approx(0.841, abs=0.03)
    assert balanced_accuracy_score(y_test, plain.predict(X_test)) < 0.7


def test_many_classes_by_hand() -> None:
    X, y = load_digits(return_X_y=True)
    rare = np.flatnonzero((y < 5) | (np.arange(len(y)) % 10 == 0))
    X, y = X[rare] / 16, y[rare]
    model = PriorThresholdClassifier(LogisticRegression(max_iter=500)).fit(X, y)
    proba = LogisticRegression(max_iter=500).fit(X, y).predict_proba(X)
    expected = proba / (np.bincount(y) / len(y))
    np.testing.assert_allclose(model.predict_proba(X), expected / expected.sum(axis=1, keepdims=True))


def test_given_priors_are_used(gaussians) -> None:
    X, X_test, y, _ = gaussians
    model = PriorThresholdClassifier(LogisticRegression(class_weight="balanced"), prior=[0.5, 0.5], target_prior=[90, 10]).fit(X, y)
    np.testing.assert_allclose(model.target_prior_, [0.9, 0.1])
    proba = LogisticRegression(class_weight="balanced").fit(X, y).predict_proba(X_test)
    np.testing.assert_array_equal(model.predict(X_test), prior_correct(proba, [0.5, 0.5], [0.9, 0.1], input="proba").argmax(axis=1))


def test_sample_weights_shift_the_prior_and_reach_the_estimator(gaussians) -> None:
    X, _, y, _ = gaussians
    weight = np.where(y == 1, 3.0, 1.0)
    model = PriorThresholdClassifier(LogisticRegression()).fit(X, y, sample_weight=weight)
    np.testing.assert_allclose(model.prior_[1], 3 * y.sum() / weight.sum())
    np.testing.assert_allclose(model.estimator_.coef_, LogisticRegression().fit(X, y, sample_weight=weight).coef_)
    with pytest.raises(InputError, match="sample_weight: got no weight on class 1"):
        PriorThresholdClassifier(LogisticRegression()).fit(X, y, sample_weight=np.where(y == 1, 0.0, 1.0))


@pytest.mark.parametrize(
    ("arguments", "y", "message"),
    [
        ({"estimator": RidgeClassifier()}, [0, 1, 0, 1], "expected a classifier with predict_proba. CalibratedClassifierCV"),
        ({"prior": [0.5, 0.3, 0.2]}, [0, 1, 0, 1], "expected 2 shares, one per class"),
        ({"prior": [1.0, 0.0]}, ["a", "b", "a", "b"], "prior: got 0.0 for class b"),
        ({"prior": "test"}, [0, 1, 0, 1], "prior: got 'test'; expected 'train' or"),
        ({"target_prior": "train"}, [0, 1, 0, 1], "target_prior: got 'train'; expected 'uniform' or"),
        ({"estimator": KNeighborsClassifier(1)}, [0, 0, 0, 0], r"y: got one class \(0\); expected at least two"),
        ({"estimator": KNeighborsClassifier(1)}, [[0, 1], [1, 1], [0, 0], [1, 0]], "expected one class label per row"),
    ],
)
def test_bad_input_is_refused(arguments, y, message) -> None:
    with pytest.raises(InputError, match=message):
        PriorThresholdClassifier(**{"estimator": LogisticRegression(), **arguments}).fit(np.arange(8.0).reshape(4, 2), y)
