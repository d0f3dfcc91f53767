from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_multilabel_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import recall_score
from sklearn.model_selection import cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from counterpoise._errors import InputError
from counterpoise.decisions import PriorScoreThreshold

PRIOR = [0.5, 0.01, 1e-5]


# ---- scores -----------------------------------------------------------------------------------------------------------------------------


def test_what_beats_the_prior_is_kept() -> None:
    scores = np.array([[0.6, 0.02, 2e-5], [0.5, 0.01, 1e-5], [0.4, 0.001, 1e-6]])
    assert PriorScoreThreshold(PRIOR).keep(scores).tolist() == [[True] * 3, [False] * 3, [False] * 3]
    assert PriorScoreThreshold(PRIOR, factor=1.9).keep(scores)[0].tolist() == [False, True, True]
    assert PriorScoreThreshold(0.01).keep(scores)[2].tolist() == [True, False, False]


def test_one_prior_for_all_and_the_number_of_classes_is_the_papers_threshold() -> None:
    prior, classes = 1e-5, 80
    rule = PriorScoreThreshold(prior, factor=classes + 1)
    assert rule.threshold == pytest.approx(81e-5)
    assert rule.keep(torch.tensor([8.2e-4, 8.0e-4])).tolist() == [True, False]


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 5, 3), (0, 3)])
def test_arrays_and_tensors_of_any_shape_agree(shape) -> None:
    scores = np.random.default_rng(0).random(shape) * np.array([1, 0.02, 2e-5])
    for prior in (PRIOR, np.array(PRIOR), torch.tensor(PRIOR, dtype=torch.float64)):
        rule = PriorScoreThreshold(prior)
        kept = rule.keep(scores)
        assert isinstance(kept, np.ndarray) and kept.dtype == bool and kept.shape == shape
        np.testing.assert_array_equal(kept, scores > np.array(PRIOR))
        mask = rule.keep(torch.tensor(scores))
        assert mask.dtype == torch.bool and torch.equal(mask, torch.tensor(kept))


def test_half_precision_is_compared_in_single() -> None:
    # The nearest half-precision numbers to the threshold are 1.1 % apart there.
    scores = torch.tensor([1.001e-5, 1.0e-6], dtype=torch.float16)
    expected = scores.float() > 1e-5
    assert PriorScoreThreshold(1e-5).keep(scores).tolist() == expected.tolist() == [True, False]
    assert PriorScoreThreshold(1e-5).keep(scores.numpy()).tolist() == [True, False]


def test_scores_are_left_alone_and_may_take_gradients() -> None:
    scores = torch.tensor([0.2, 0.9], requires_grad=True)
    assert PriorScoreThreshold(0.5).keep(scores).tolist() == [False, True]
    assert scores.tolist() == pytest.approx([0.2, 0.9])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PriorScoreThreshold(0.0), r"prior: got 0\.0; expected shares in \(0, 1\). counterpoise.nn.init.estimate_prior"),
        (lambda: PriorScoreThreshold([0.1, 1.0]), "prior: got 1.0"),
        (lambda: PriorScoreThreshold([0.1, np.nan]), "prior: got nan"),
        (lambda: PriorScoreThreshold([[0.1]]), r"prior: got shape \(1, 1\)"),
        (lambda: PriorScoreThreshold([]), r"prior: got shape \(0,\)"),
        (lambda: PriorScoreThreshold(0.1, factor=0), "factor: got 0; expected a number > 0"),
        (lambda: PriorScoreThreshold(0.1, factor=10), "factor: got 10; expected less than 1 over the largest prior, 10. No score"),
        (lambda: PriorScoreThreshold(PRIOR).keep(np.zeros((4, 2))), r"scores: got shape \(4, 2\); expected one column for each of 3"),
        (lambda: PriorScoreThreshold(0.1).keep(np.array([0.5, 1.5])), "scores: got values outside .* Logits go through sigmoid"),
        (lambda: PriorScoreThreshold(0.1).keep(torch.tensor([-1.0])), "scores: got values outside"),
        (lambda: PriorScoreThreshold(0.1).keep(np.array([np.nan])), "scores: got values outside"),
        (lambda: PriorScoreThreshold(0.1).keep(np.array([1, 0])), "scores: got values of torch.int64"),
    ],
)
def test_bad_input_is_refused(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()


# ---- the estimator ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labels():
    """400 rows, 4 labels, the last one rare."""
    X, Y = make_multilabel_classification(400, 10, n_classes=4, n_labels=2, random_state=0)
    Y[np.random.default_rng(0).random(400) < 0.85, 3] = 0
    return X, Y


@pytest.mark.parametrize("inner", [
    OneVsRestClassifier(LogisticRegression(max_iter=500)),  # probabilities (n, C)
    RandomForestClassifier(10, random_state=0),  # a list of (n, 2)
    KNeighborsClassifier(),
])  # fmt: skip
def test_labels_are_decided_at_their_priors(labels, inner) -> None:
    X, Y = labels
    prior = Y.mean(axis=0)
    model = PriorScoreThreshold(prior).to_estimator(inner).fit(X[:300], Y[:300])
    proba = clone(inner).fit(X[:300], Y[:300]).predict_proba(X[300:])
    proba = np.column_stack([each[:, 1] for each in proba]) if isinstance(proba, list) else proba
    np.testing.assert_array_equal(model.predict_proba(X[300:]), proba)
    np.testing.assert_array_equal(model.predict(X[300:]), (proba > prior).astype(int))
    np.testing.assert_array_equal(model.classes_, range(4))
    plain = clone(inner).fit(X[:300], Y[:300])
    rare = [recall_score(Y[300:, 3], each.predict(X[300:])[:, 3]) for each in (plain, model)]
    assert rare[1] > rare[0] + 0.2


def test_by_default_each_label_has_a_logistic_regression(labels) -> None:
    X, Y = labels
    own = PriorScoreThreshold(0.3, factor=1.5).to_estimator(OneVsRestClassifier(LogisticRegression()))
    default = PriorScoreThreshold(0.3, factor=1.5).to_estimator()
    X = StandardScaler().fit_transform(X)
    np.testing.assert_array_equal(default.fit(X, Y).predict(X), own.fit(X, Y).predict(X))
    np.testing.assert_array_equal(default.predict(X), (default.predict_proba(X) > 0.45).astype(int))
    assert cross_val_score(make_pipeline(StandardScaler(), default), X, Y, scoring="f1_macro", cv=3).mean() > 0.5


def test_a_label_that_training_never_saw_is_never_decided(labels) -> None:
    X, Y = labels[0], labels[1].copy()
    Y[:, 2] = 0
    model = PriorScoreThreshold(0.1).to_estimator(RandomForestClassifier(5, random_state=0)).fit(X, Y)
    assert not model.predict(X)[:, 2].any() and model.predict(X)[:, :2].any()


def test_two_classes_are_decided_by_the_second() -> None:
    rng = np.random.default_rng(0)
    y = np.where(rng.random(500) < 0.1, "yes", "no")
    X = rng.normal(size=(500, 2)) + (y == "yes")[:, None]
    inner = LogisticRegression().fit(X, y)
    for prior in (0.1, [0.1]):
        model = PriorScoreThreshold(prior).to_estimator(LogisticRegression()).fit(X, y)
        np.testing.assert_array_equal(model.predict(X), np.where(inner.predict_proba(X)[:, 1] > 0.1, "yes", "no"))


def test_sample_weights_reach_the_estimator() -> None:
    X, y = np.arange(8.0)[:, None], np.array([0, 0, 0, 1, 0, 1, 1, 1])
    weight = np.array([1, 1, 1, 9, 1, 1, 1, 1])
    model = PriorScoreThreshold(0.5).to_estimator(LogisticRegression()).fit(X, y, sample_weight=weight)
    np.testing.assert_allclose(model.estimator_.coef_, LogisticRegression().fit(X, y, sample_weight=weight).coef_)
    with pytest.raises(InputError, match="sample_weight: got weight on one class only"):
        PriorScoreThreshold(0.5).to_estimator().fit(X, y, sample_weight=y)
    with pytest.raises(InputError, match=r"sample_weight: .* MultiOutputClassifier does"):
        PriorScoreThreshold(0.5).to_estimator().fit(X, np.column_stack([y, y]), sample_weight=weight)


@pytest.mark.parametrize(
    ("prior", "estimator", "y", "message"),
    [
        (0.1, RidgeClassifier(), [0, 1, 0, 1], "estimator: got 'RidgeClassifier'; expected a classifier with predict_proba"),
        (0.1, LogisticRegression(), [0, 1, 2, 1], "y: got Unknown label type: multiclass; .* PriorThresholdClassifier decides"),
        (0.1, KNeighborsClassifier(1), [0, 0, 0, 0], r"y: got one class \(0\)"),
        ([0.1, 0.2, 0.3], KNeighborsClassifier(1), [[0, 1], [1, 0], [1, 1], [0, 0]], "prior: got 3 shares; expected one for each of 2"),
        ([0.1, 0.2], KNeighborsClassifier(1), [0, 1, 0, 1], "prior: got 2 shares; expected one, of the second class"),
    ],
)
def test_problems_it_cannot_decide_are_refused(prior, estimator, y, message) -> None:
    with pytest.raises(InputError, match=message):
        PriorScoreThreshold(prior).to_estimator(estimator).fit(np.arange(8.0).reshape(4, 2), y)


def test_arrays_of_any_layout_and_only_of_numbers() -> None:
    scores = np.array([[0.05, 0.5], [0.3, 0.1]])
    rule = PriorScoreThreshold([0.1, 0.2])
    np.testing.assert_array_equal(rule.keep(scores[:, ::-1]), rule.keep(scores[:, ::-1].copy()))
    with pytest.raises(InputError, match="floating-point probabilities"):
        rule.keep(np.array([["a", "b"]]))
