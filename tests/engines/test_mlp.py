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
from torch import nn

from counterpoise.engines import MLPClassifier, MLPRegressor
from counterpoise.engines._mlp import _StepBatches, default_steps
from counterpoise.losses import AnyLoss

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


def test_a_loss_of_the_batch_is_used_as_it_is() -> None:
    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    per_row = MLPClassifier(max_steps=30, random_state=0).fit(X, y).decision_function(X)
    whole = MLPClassifier(max_steps=30, loss=nn.BCEWithLogitsLoss(), random_state=0).fit(X, y).decision_function(X)
    np.testing.assert_allclose(whole, per_row, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="sample_weight needs a loss with reduction='none' or one whose forward takes a weight"):
        MLPClassifier(max_steps=30, loss=nn.BCEWithLogitsLoss(), random_state=0).fit(X, y, sample_weight=1.0 + y)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_loss_of_the_batch_gets_the_weights_of_the_rows(classes: int) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 2))
    y = (X[:, 0] > 0).astype(int) + (X[:, 0] > 1) * (classes == 3)
    wrong = np.r_[y, (y + 1) % classes]
    weight = np.r_[np.ones(200), np.zeros(200)]
    model = MLPClassifier(max_steps=300, lr=1e-2, loss=AnyLoss("f1"), random_state=0)
    assert model.fit(np.r_[X, X], wrong, sample_weight=weight).score(X, y) > 0.95
    assert model.fit(np.r_[X, X], wrong).score(X, y) < 0.9


def test_restored_from_its_tensors() -> None:
    X, y = load_breast_cancer(return_X_y=True)
    model = MLPClassifier(max_steps=20, random_state=0).fit(X, y)
    restored = MLPClassifier.from_state(model.get_params(), model.module_.state_dict(), 30, model.classes_)
    assert (restored.predict_proba(X) == model.predict_proba(X)).all()


def test_ctrl_c_ends_more_than_the_training() -> None:
    """skorch alone would take what was trained so far for the network, and whoever called fit would go on."""

    class Interrupted(nn.BCEWithLogitsLoss):
        calls = 0

        def forward(self, *arguments: Any) -> Any:
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().forward(*arguments)

    X, y = np.random.default_rng(0).normal(size=(60, 2)), np.arange(60) % 2
    with pytest.raises(KeyboardInterrupt):
        MLPClassifier(max_steps=30, loss=Interrupted(), random_state=0).fit(X, y)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="at least two classes"):
        MLPClassifier().fit([[0.0], [1.0]], [1, 1])
    with pytest.raises(ValueError, match="max_steps must be at least 1"):
        MLPClassifier(max_steps=0).fit([[0.0], [1.0]], [0, 1])
    with pytest.raises(ValueError, match="non-zero"):
        MLPClassifier().fit([[0.0], [1.0]], [0, 1], sample_weight=[0, 0])


# -- the prior, and two phases ------------------------------------------------------------------------------------------------------------


def three_classes(rare: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.choice(3, 600, p=[0.9 - rare, 0.1, rare])
    return rng.normal(size=(600, 4)) + y[:, None], y


@pytest.mark.parametrize("binary", [True, False])
def test_with_prior_bias_an_untrained_net_predicts_the_class_frequencies(binary) -> None:
    X, y = three_classes()
    y = (y == 2).astype(int) if binary else y
    for weight in (None, 1.0 + 3 * (y == y.max())):
        net = MLPClassifier(lr=1e-12, max_steps=1, prior_bias=True, random_state=0).fit(X, y, weight)
        mass = np.bincount(y, weights=weight)
        np.testing.assert_allclose(net.predict_proba(X).mean(axis=0), mass / mass.sum(), atol=0.01)
        plain = MLPClassifier(lr=1e-12, max_steps=1, random_state=0).fit(X, y, weight)
        assert np.abs(plain.predict_proba(X).mean(axis=0) - mass / mass.sum()).max() > 0.1


def test_in_the_second_phase_only_the_last_layer_moves() -> None:
    X, y = three_classes()
    first = MLPClassifier(max_steps=60, head_share=0.25, random_state=0).fit(X, y)
    # The same first phase, and a second one twice as long (90 - 45 = 45 steps before, as 60 - 15): only the head can differ.
    longer = MLPClassifier(max_steps=90, head_share=0.5, random_state=0).fit(X, y)
    assert first.steps_ == 60
    for (name, one), (_, other) in zip(first.module_.named_parameters(), longer.module_.named_parameters(), strict=True):
        assert torch.equal(one, other) != name.startswith("4."), name
        assert one.requires_grad


def test_the_first_phase_is_trained_on_balanced_batches() -> None:
    X, y = three_classes(rare=0.02)
    shares = []
    for head_share in (0.0, 0.01):
        net = MLPClassifier(max_steps=300, head_share=head_share, random_state=0).fit(X, y)
        shares.append(net.predict_proba(X).mean(axis=0)[2])
    assert shares[0] == pytest.approx(0.02, abs=0.01) and shares[1] > 0.04


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0])
def test_a_head_share_out_of_range_is_an_error(share) -> None:
    with pytest.raises(ValueError, match=r"head_share must be in \[0, 1\)"):
        MLPClassifier(head_share=share).fit(*three_classes())


# -- a term on the features, and two views ------------------------------------------------------------------------------------------------


class Recorded(torch.nn.Module):
    """Remembers what it was given; worth the mean square of the features."""

    def forward(self, features, targets, predictions, sample_weight):
        self.given = features, targets, predictions, sample_weight
        return features.square().mean()


def skewed(n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 3))
    return X, 100.0 + 50.0 * np.exp(X[:, 0])


def test_a_regularizer_sees_features_before_the_last_relu_in_the_units_of_the_target() -> None:
    X, y = skewed()
    seen = Recorded()
    model = MLPRegressor((8, 4), max_steps=60, batch_size=50, lr=0.01, regularizer=seen, view_noise=0.1, random_state=0).fit(X, y)
    features, targets, predictions, weight = seen.given
    assert features.shape == (100, 4) and (features < 0).any() and weight is None  # two views of 50 rows
    assert set(np.round(targets[:50, 0].tolist(), 2)) <= set(np.round(y, 2)) and torch.equal(targets[:50], targets[50:])
    assert (predictions[:50] != predictions[50:]).all() and 100 < float(predictions.detach().mean()) < 300
    strong = MLPRegressor((8, 4), max_steps=60, lr=0.01, regularizer=seen, regularizer_weight=100.0, random_state=0).fit(X, y)

    def size(net: MLPRegressor) -> float:
        return float(net.module_[:-2](torch.as_tensor(X, dtype=torch.float32)).square().mean().detach())

    assert size(strong) < 0.2 * size(model)
    MLPRegressor((8,), max_steps=1, regularizer=seen, random_state=0).fit(X, y, sample_weight=np.r_[np.ones(100), np.zeros(100)])
    assert seen.given[3] is not None and set(seen.given[3].tolist()) == {0.0, 2.0}


def test_a_regularizer_without_weight_and_noise_changes_nothing() -> None:
    X, y = skewed()
    plain = MLPRegressor(max_steps=30, random_state=3).fit(X, y).predict(X)
    idle = MLPRegressor(max_steps=30, random_state=3, regularizer=Recorded(), regularizer_weight=0.0).fit(X, y).predict(X)
    np.testing.assert_array_equal(plain, idle)
    noisy = [MLPRegressor(max_steps=30, random_state=3, view_noise=0.3).fit(X, y).predict(X) for _ in range(2)]
    np.testing.assert_array_equal(*noisy)
    assert np.abs(noisy[0] - plain).max() > 0.1


def test_a_regularizer_needs_features_and_sensible_numbers() -> None:
    X, y = skewed(20)
    with pytest.raises(ValueError, match="needs a hidden layer"):
        MLPRegressor((), regularizer=Recorded()).fit(X, y)
    with pytest.raises(ValueError, match="must be at least 0"):
        MLPRegressor(view_noise=-1).fit(X, y)
