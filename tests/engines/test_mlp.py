"""The perceptrons keep scikit-learn's contract, take exactly the steps asked for, and repeat."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from counterpoise.engines import MLPClassifier, MLPRegressor
from counterpoise.engines._mlp import _StepBatches, default_steps

NOT_EQUIVALENT = "a row of weight 2 and a row drawn twice are not the same thing for mini-batches"


@parametrize_with_checks(
    [MLPClassifier(max_steps=200, lr=1e-2, random_state=0), MLPRegressor(max_steps=300, lr=1e-2, random_state=0)],
    expected_failed_checks=lambda estimator: {
        "check_sample_weight_equivalence_on_dense_data": NOT_EQUIVALENT,
        "check_sample_weight_equivalence_on_sparse_data": NOT_EQUIVALENT,
    },
)
def test_scikit_learn_contract(estimator: Any, check: Any) -> None:
    check(estimator)


def test_learns_what_a_linear_model_learns() -> None:
    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    assert MLPClassifier(random_state=0).fit(X[:400], y[:400]).score(X[400:], y[400:]) > 0.95
    X, y = load_diabetes(return_X_y=True)
    assert MLPRegressor(max_steps=200, random_state=0).fit(X[:300], y[:300]).score(X[300:], y[300:]) > 0.35


def test_same_seed_same_network_and_the_callers_generator_is_left_alone() -> None:
    X, y = load_breast_cancer(return_X_y=True)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, again, other = (MLPClassifier(max_steps=20, random_state=seed).fit(X, y).decision_function(X) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert (first == again).all()
    assert np.abs(first - other).max() > 1e-3


@pytest.mark.parametrize("rows", [10, 256, 1000])
def test_steps_do_not_depend_on_rows(rows: int) -> None:
    X = np.random.default_rng(0).normal(size=(rows, 3))
    assert MLPClassifier(max_steps=37, random_state=0).fit(X, X[:, 0] > 0).steps_ == 37
    assert default_steps(rows) == 500 and default_steps(12_800) == 1000


def test_every_pass_draws_every_row_once() -> None:
    data = SimpleNamespace(X={"X": torch.arange(10.0)[:, None], "weight": torch.ones(10)}, y=torch.arange(10))
    drawn = torch.cat([y for _, y in _StepBatches(data, 4, 5, seed=0)])
    assert len(drawn) == 20
    assert sorted(drawn[:10].tolist()) == list(range(10)) and sorted(drawn[10:].tolist()) == list(range(10))


def test_weight_zero_is_as_good_as_absent() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 2))
    y = (X[:, 0] > 0).astype(int)
    wrong = np.r_[y, 1 - y]
    weight = np.r_[np.ones(200), np.zeros(200)]
    model = MLPClassifier(max_steps=300, lr=1e-2, random_state=0).fit(np.r_[X, X], wrong, sample_weight=weight)
    assert model.score(X, y) > 0.97


def test_restored_from_its_tensors() -> None:
    X, y = load_breast_cancer(return_X_y=True)
    model = MLPClassifier(max_steps=20, random_state=0).fit(X, y)
    restored = MLPClassifier.from_state(model.get_params(), model.module_.state_dict(), 30, model.classes_)
    assert (restored.predict_proba(X) == model.predict_proba(X)).all()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="at least two classes"):
        MLPClassifier().fit([[0.0], [1.0]], [1, 1])
    with pytest.raises(ValueError, match="max_steps must be at least 1"):
        MLPClassifier(max_steps=0).fit([[0.0], [1.0]], [0, 1])
    with pytest.raises(ValueError, match="non-zero"):
        MLPClassifier().fit([[0.0], [1.0]], [0, 1], sample_weight=[0, 0])
