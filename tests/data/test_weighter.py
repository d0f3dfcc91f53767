from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits, make_blobs
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from counterpoise._errors import InputError
from counterpoise.data import LikelihoodWeighter


@parametrize_with_checks(
    [
        LikelihoodWeighter(),
        LikelihoodWeighter(method="hdbscan", noise="singleton", normalize="none"),
        LikelihoodWeighter(method="kmeans", n_clusters=3, n_components=2, standardize=False),
        LikelihoodWeighter(encoder=PCA(1)),
    ]
)
def test_scikit_learn_checks(estimator, check) -> None:
    check(estimator)


def blobs(sizes=(180, 20)):
    return make_blobs(list(sizes), 4, cluster_std=1.0, center_box=(-30, 30), random_state=0)


def test_weights_are_those_of_the_formula_with_mean_one() -> None:
    X, _ = blobs()
    weighter = LikelihoodWeighter(eta=0.3, gamma=2.0).fit(X)
    p = np.array([(weighter.labels_ == label).mean() for label in weighter.labels_])
    np.testing.assert_allclose(weighter.likelihood_, p)
    raw = (0.3 + (1 - p) ** 2) / 1.3
    np.testing.assert_allclose(weighter.sample_weight_, raw / raw.mean())
    np.testing.assert_allclose(LikelihoodWeighter(eta=0.3, gamma=2.0, normalize="none").fit(X).sample_weight_, raw)


def test_the_rarer_appearance_weighs_more() -> None:
    X, y = blobs()
    weight = LikelihoodWeighter().fit(X).sample_weight_
    assert weight[y == 1].min() > 1.5 * weight[y == 0].min()
    assert weight.mean() == pytest.approx(1)


def test_noise_pooled_or_single() -> None:
    X = np.concatenate([blobs()[0], np.random.default_rng(0).uniform(100, 900, (6, 4))])
    pooled, single = (LikelihoodWeighter(noise=noise, standardize=False, eps=3.0).fit(X) for noise in ("pooled", "singleton"))
    noise = pooled.labels_ == -1
    assert noise.sum() >= 6
    np.testing.assert_allclose(pooled.likelihood_[noise], noise.mean())
    np.testing.assert_allclose(single.likelihood_[noise], 1 / len(X))
    np.testing.assert_array_equal(pooled.likelihood_[~noise], single.likelihood_[~noise])


def test_new_rows_weigh_what_their_cluster_weighs() -> None:
    X, y = blobs()
    weighter = LikelihoodWeighter().fit(X)
    np.testing.assert_array_equal(weighter.predict(X), weighter.labels_)
    np.testing.assert_allclose(weighter.transform(X), np.stack([weighter.likelihood_, weighter.sample_weight_], axis=1))
    center = X[y == 1].mean(axis=0, keepdims=True)
    assert weighter.transform(center)[0, 1] == weighter.sample_weight_[y == 1].min()
    far = weighter.transform(np.full((1, 4), 1e4))[0]
    assert far[1] >= weighter.sample_weight_.max()
    assert weighter.get_feature_names_out().tolist() == ["likelihood", "sample_weight"]
    assert weighter.set_output(transform="polars").transform(X).columns == ["likelihood", "sample_weight"]


def test_a_cluster_or_none_is_the_identity() -> None:
    rng = np.random.default_rng(0)
    one = rng.uniform(size=(200, 2))
    few = rng.normal(size=(4, 3))  # fewer rows than min_samples: all noise
    for X, label in ((one, 0), (few, -1), (np.zeros((20, 3)), 0)):
        weighter = LikelihoodWeighter(eps=1.0).fit(X)
        assert (weighter.labels_ == label).all()
        np.testing.assert_array_equal(weighter.sample_weight_, 1.0)
    np.testing.assert_array_equal(LikelihoodWeighter(gamma=0.0, normalize="none").fit(blobs()[0]).sample_weight_, 1.0)


@pytest.mark.parametrize("n", [10, 11, 25, 100])
def test_any_table_has_weights(n) -> None:
    """Standardized numbers and one-hot columns, constants, copies, heavy tails; at the defaults."""
    rng = np.random.default_rng(n)
    numbers = rng.standard_t(2, size=(n, 8))
    onehot = np.eye(3)[rng.integers(3, size=n)]
    X = np.concatenate([(numbers - numbers.mean(0)) / numbers.std(0), onehot, np.zeros((n, 2)), np.ones((n, 1))], axis=1)
    X[: n // 2] = X[0]
    for columns in (X, X[:, :1], onehot, X[:, -3:]):
        weight = LikelihoodWeighter().fit(columns).sample_weight_
        assert weight.shape == (n,) and (weight > 0).all() and weight.mean() == pytest.approx(1)
        assert weight.max() / weight.min() <= 2 + 1e-12


def test_it_goes_into_any_estimator() -> None:
    X, y = load_digits(return_X_y=True)
    weight = LikelihoodWeighter(random_state=0).fit(X).sample_weight_
    model = LogisticRegression(max_iter=200).fit(X / 16, y, sample_weight=weight)
    assert model.score(X / 16, y) > 0.95
    features = make_pipeline(LikelihoodWeighter(random_state=0)).fit_transform(X)
    np.testing.assert_allclose(features[:, 1], weight)


def test_kinds_of_embeddings() -> None:
    X, _ = blobs()
    X = np.round(X)
    expected = LikelihoodWeighter().fit(X).sample_weight_
    tensor = torch.tensor(X, requires_grad=True)
    kinds = [X.astype(np.int32), X.astype(np.float16), X.astype(np.float32), tensor, tensor.bfloat16(), pl.DataFrame(X), X.tolist()]
    for kind in kinds:
        np.testing.assert_array_equal(LikelihoodWeighter().fit(kind).sample_weight_, expected)


def test_an_encoder_makes_the_embeddings() -> None:
    X, _ = blobs()
    pca = PCA(2)
    weighter = LikelihoodWeighter(pca).fit(X)
    assert not hasattr(pca, "components_")
    np.testing.assert_array_equal(weighter.labels_, LikelihoodWeighter().fit(PCA(2).fit_transform(X)).labels_)
    np.testing.assert_array_equal(weighter.predict(X), weighter.labels_)
    network = torch.nn.Linear(4, 2, dtype=torch.float64)
    encoded = LikelihoodWeighter(lambda rows: network(torch.as_tensor(rows))).fit(X)
    assert encoded.predict(X).tolist() == encoded.labels_.tolist()


def test_large_data_are_sampled_with_a_seed_and_nothing_else_is_touched() -> None:
    X, y = blobs((1800, 200))
    before = np.random.get_state()[1].copy(), torch.random.get_rng_state()
    first = LikelihoodWeighter(max_samples=300, random_state=1).fit(X)
    again = LikelihoodWeighter(max_samples=300, random_state=1).fit(X)
    LikelihoodWeighter(max_samples=300).fit(X)
    np.testing.assert_array_equal(first.sample_weight_, again.sample_weight_)
    assert np.array_equal(np.random.get_state()[1], before[0]) and torch.equal(torch.random.get_rng_state(), before[1])
    assert first.sample_weight_[y == 1].mean() > 1.5 * first.sample_weight_[y == 0].mean()


def test_kmeans_is_scikit_learns() -> None:
    X, _ = blobs((100, 60, 40))
    labels = LikelihoodWeighter(method="kmeans", n_clusters=3, standardize=False, random_state=0).fit(X).labels_
    assert np.bincount(labels).tolist() == [100, 60, 40]
    expected = KMeans(3, n_init=10, random_state=0).fit_predict(X)
    assert len(set(zip(labels, expected, strict=True))) == 3
    # Fewer different rows than clusters.
    assert LikelihoodWeighter(method="kmeans").fit(np.repeat(np.eye(3), 5, axis=0)).labels_.max() == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "k-means"}, "method: got 'k-means'; expected one of dbscan, hdbscan, kmeans. Did you mean 'kmeans'"),
        ({"noise": "drop"}, "noise: got 'drop'"),
        ({"normalize": "sum"}, "normalize: got 'sum'"),
        ({"eta": -0.1}, "eta: got -0.1"),
        ({"gamma": float("nan")}, "gamma: got nan"),
        ({"eps": 0.0}, "eps: got 0.0; expected a number > 0"),
        ({"min_samples": 0}, "min_samples: got 0"),
        ({"n_components": 0}, "n_components: got 0"),
        ({"n_clusters": 1.5}, "n_clusters: got 1.5; expected an integer"),
        ({"max_samples": 1}, "max_samples: got 1"),
        ({"encoder": 3}, "encoder: got 'int'; expected a scikit-learn transformer, or a function"),
        ({"eta": 0.0, "eps": 1e6}, "eta: got 0.0; expected a number > 0 where every likelihood is 1"),
    ],
)
def test_parameters_are_checked(options, message) -> None:
    with pytest.raises(InputError, match=message):
        LikelihoodWeighter(**options).fit(blobs()[0])


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "inf")])
def test_the_row_that_is_not_finite_is_named(value, kind) -> None:
    X, _ = blobs()
    X[[7, 20], 2] = value
    with pytest.raises(InputError, match=f"X: got {kind} in row 7, 20; expected finite embeddings"):
        LikelihoodWeighter().fit(X)
    weighter = LikelihoodWeighter().fit(np.nan_to_num(X, posinf=0, neginf=0))
    with pytest.raises(InputError, match=f"X: got {kind} in row 7, 20"):
        weighter.predict(X)


def test_one_row_is_too_few() -> None:
    with pytest.raises(ValueError, match="minimum of 2 is required"):
        LikelihoodWeighter().fit([[1.0, 2.0]])
    assert len(LikelihoodWeighter().fit([[1.0, 2.0], [1.0, 3.0]]).sample_weight_) == 2
