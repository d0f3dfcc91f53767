from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import DBSCAN, HDBSCAN
from sklearn.datasets import make_blobs, make_moons
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.preprocessing import StandardScaler

from counterpoise.data._clusters import METHODS, NOISE, find_clusters, knee


def find(X, **options):
    return find_clusters(np.asarray(X, dtype=float), rng=np.random.default_rng(0), **options)


def blobs(sizes=(300, 60, 20), d=5, seed=0):
    X, y = make_blobs(list(sizes), d, cluster_std=1.0, center_box=(-30, 30), random_state=seed)
    return X, y


def test_the_knee_of_two_lines_is_where_they_meet() -> None:
    curve = np.concatenate([np.linspace(1, 2, 90), np.linspace(2, 20, 10)])
    assert knee(np.random.default_rng(0).permutation(curve)) == pytest.approx(2)
    assert knee([3.0, 3.0, 3.0]) == knee([3.0]) == 3.0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("eps", [0.15, 0.25, 0.4])
def test_it_is_scikit_learns_dbscan(seed, eps) -> None:
    """The same core points and noise; border rows of two clusters may go to the other one."""
    X, _ = make_moons(300, noise=0.12, random_state=seed)
    _, Z, labels = find(X, eps=eps)
    expected = DBSCAN(eps=eps, min_samples=5).fit(StandardScaler().fit_transform(X))
    np.testing.assert_allclose(Z, StandardScaler().fit_transform(X))
    np.testing.assert_array_equal(labels == NOISE, expected.labels_ == NOISE)
    core = expected.core_sample_indices_
    assert adjusted_rand_score(labels[core], expected.labels_[core]) == 1.0
    assert (labels == NOISE).any() or eps > 0.2


@pytest.mark.parametrize("d", [2, 20])
def test_distances_that_equal_eps_count(d) -> None:
    grid = np.stack(np.meshgrid(np.arange(6.0), np.arange(6.0)), axis=-1).reshape(-1, 2)
    X = np.concatenate([np.pad(grid, ((0, 0), (0, d - 2))), np.full((1, d), 30.0)])
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(d, d)))[0]
    for rows in (X, X @ rotation):
        _, _, labels = find(rows, eps=1.0, min_samples=4, standardize=False, n_components=None)
        # A corner has two neighbors at distance 1, an edge three, the inside four; corners are border rows.
        assert labels.tolist() == [0] * 36 + [NOISE]


def test_it_is_scikit_learns_hdbscan() -> None:
    X, _ = blobs()
    X = np.concatenate([X, np.random.default_rng(1).uniform(-60, 60, (20, 5))])
    _, Z, labels = find(X, method="hdbscan")
    expected = HDBSCAN(min_cluster_size=5, min_samples=5, copy=True).fit_predict(Z)
    np.testing.assert_array_equal(labels == NOISE, expected == NOISE)
    assert (labels == NOISE).any() and adjusted_rand_score(labels, expected) == 1.0


@pytest.mark.parametrize("method", METHODS)
def test_blobs_are_found_and_numbered_by_size(method) -> None:
    X, y = blobs()
    rule, _, labels = find(X, method=method, n_clusters=3)
    assert adjusted_rand_score(labels, y) > 0.95
    counts = np.bincount(labels[labels >= 0])
    assert len(counts) == 3 and (np.diff(counts) < 0).all()
    np.testing.assert_array_equal(rule.assign(rule.reduce(X)), labels)


@pytest.mark.parametrize("method", ["dbscan", "hdbscan"])
def test_new_rows_go_to_the_nearest_cluster_or_nowhere(method) -> None:
    X, y = blobs()
    rule, _, labels = find(X, method=method)
    centers = np.stack([X[y == k].mean(axis=0) for k in range(3)])
    np.testing.assert_array_equal(
        rule.assign(rule.reduce(centers)), [np.bincount(labels[(y == k) & (labels >= 0)]).argmax() for k in range(3)]
    )
    assert rule.assign(rule.reduce(np.full((1, 5), 500.0))).tolist() == [NOISE]


def test_dimensions_are_reduced_by_pca() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 40)) * np.linspace(5, 1, 40)
    rule, Z, _ = find(X, n_components=6, standardize=False)
    expected = PCA(6, random_state=0).fit_transform(X)
    np.testing.assert_allclose(np.abs(Z), np.abs(expected), atol=1e-8)
    assert rule.reduce(X[:3]).shape == (3, 6)
    assert find(X, n_components=None)[1].shape == find(X, n_components=40)[1].shape == (200, 40)


def test_above_the_limit_a_sample_is_enough() -> None:
    X, y = blobs((4000, 800, 200))
    rule, _, labels = find(X, max_samples=1000)
    assert len(rule.points) <= 1000
    found = labels >= 0
    assert found.mean() > 0.95 and adjusted_rand_score(labels[found], y[found]) > 0.99
    np.testing.assert_array_equal(find(X, max_samples=1000)[2], labels)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [2, 3, 10, 40])
def test_rows_that_are_all_the_same(method, n) -> None:
    _, _, labels = find(np.full((n, 30), 7.0), method=method)
    assert len(np.unique(labels)) == 1
    if method == "dbscan":
        assert labels[0] == (0 if n >= 5 else NOISE)


@pytest.mark.parametrize("method", METHODS)
def test_copies_share_a_cluster_far_from_the_origin_too(method) -> None:
    rng = np.random.default_rng(0)
    distinct = rng.normal(size=(12, 20)) + 1e4
    copies = np.repeat(np.arange(12), 10)
    _, _, labels = find(distinct[copies], method=method, standardize=False, n_clusters=12)
    assert all(len(np.unique(labels[copies == k])) == 1 for k in range(12))
    assert len(np.unique(labels)) == 12


@pytest.mark.parametrize("method", METHODS)
def test_small_data_of_any_shape(method) -> None:
    rng = np.random.default_rng(0)
    for n in (2, 4, 6, 10, 11):
        for d in (1, 3, 30):
            X = rng.normal(size=(n, d))
            X[:, 0] = 1.0
            labels = find(X, method=method)[2]
            assert labels.shape == (n,) and labels.max() < n


def test_most_rows_have_neighbors_at_the_default_radius() -> None:
    rng = np.random.default_rng(0)
    for X in (rng.normal(size=(400, 30)), rng.uniform(size=(400, 8)), rng.lognormal(sigma=2, size=(400, 10))):
        labels = find(X)[2]
        assert (labels == NOISE).mean() < 0.5
