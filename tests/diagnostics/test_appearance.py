from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import make_blobs

from counterpoise._errors import InputError
from counterpoise.data import LikelihoodWeighter
from counterpoise.diagnostics import appearance_clusters
from counterpoise.losses import dequity_weight


def data(sizes=(180, 20), garbage=3):
    X, _ = make_blobs(list(sizes), 4, cluster_std=1.0, center_box=(-30, 30), random_state=0)
    return np.concatenate([X, 200 + 50 * np.arange(4.0 * garbage).reshape(garbage, 4)])


def test_the_report_is_what_the_weighter_found() -> None:
    X = data()
    report = appearance_clusters(X, standardize=False)
    weighter = LikelihoodWeighter(standardize=False, normalize="none").fit(X)
    np.testing.assert_array_equal(report.labels, weighter.labels_)
    np.testing.assert_array_equal(report.likelihood, weighter.likelihood_)
    np.testing.assert_array_equal(report.weights(), weighter.sample_weight_)
    np.testing.assert_array_equal(report.sizes, np.bincount(report.labels[report.labels >= 0]))
    assert report.noise_fraction == (report.labels == -1).mean() > 0
    assert (report.method, report.eps) == ("dbscan", weighter.eps_)


def test_rare_rows_are_shown_first_and_garbage_before_them() -> None:
    report = appearance_clusters(data(), standardize=False, eps=4.0)
    assert report.sizes.tolist() == [180, 20]
    assert list(report.exemplars) == [-1, 1, 0]
    assert report.exemplars[-1].tolist() == [202, 201, 200]  # the farthest first
    X = data()
    for cluster in (0, 1):
        rows = report.exemplars[cluster]
        assert len(rows) == 5 and (report.labels[rows] == cluster).all()
        distance = np.linalg.norm(X - X[report.labels == cluster].mean(axis=0), axis=1)
        assert distance[rows].tolist() == sorted(distance[report.labels == cluster])[:5]
    assert "Look at rows 202, 201, 200 first: noise (3 rows) weighs most, and rare may mean garbage." in report.summary()


def test_ratio_and_effective_sample_size_by_hand() -> None:
    report = appearance_clusters(data(garbage=0), standardize=False, eps=4.0)
    common, rare = dequity_weight(0.9, 0.3, 2.0), dequity_weight(0.1, 0.3, 2.0)
    assert report.weight_ratio(0.3, 2.0) == pytest.approx(rare / common)
    total, squares = 180 * common + 20 * rare, 180 * common**2 + 20 * rare**2
    assert report.effective_sample_size(0.3, 2.0) == pytest.approx(total**2 / squares)
    assert report.effective_sample_size(gamma=0) == pytest.approx(200)
    assert report.weight_ratio(gamma=0) == 1
    for eta in (0.1, 1.0, 10.0):
        assert report.weight_ratio(eta) <= (eta + 1) / eta
    with pytest.raises(InputError, match="eta: got -1"):
        report.weight_ratio(-1)


def test_the_frame_has_a_row_per_cluster_with_mean_one_weights() -> None:
    report = appearance_clusters(data(), standardize=False, eps=4.0)
    frame = report.to_frame(0.3, 2.0)
    assert frame["cluster"].to_list() == [-1, 1, 0] and frame["count"].to_list() == [3, 20, 180]
    assert (frame["count"] * frame["weight"]).sum() == pytest.approx(203)
    assert frame["likelihood"].to_list() == pytest.approx([3 / 203, 20 / 203, 180 / 203])
    assert frame["exemplars"].to_list()[0] == [202, 201, 200]


def test_weights_that_do_nothing_are_said_to() -> None:
    rng = np.random.default_rng(0)
    one = appearance_clusters(rng.uniform(size=(100, 2)), eps=1.0)
    assert one.weight_ratio() == 1 and one.summary().endswith("next to nothing, since all rows look alike.")
    many = appearance_clusters(rng.normal(size=(400, 6)), method="kmeans", n_clusters=80, random_state=0)
    assert many.weight_ratio() < 1.2 and many.noise_fraction == 0
    assert (
        "since clusters are of like size, or all are small"
        in appearance_clusters(np.repeat(100 * np.eye(20), 10, axis=0), n_components=None).summary()
    )


def test_noise_alone() -> None:
    report = appearance_clusters(np.random.default_rng(0).normal(size=(4, 3)))
    assert len(report.sizes) == 0 and report.noise_fraction == 1.0 and list(report.exemplars) == [-1]
    assert report.summary().startswith("4 rows form 0 clusters; 100.0 % are noise.")


def test_a_picture_of_it() -> None:
    figure = appearance_clusters(data(), standardize=False, eps=4.0).plot()
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert any(text.startswith("noise ×") for text in texts) and any(text.startswith("cluster 0 ×") for text in texts)


def test_nothing_is_changed() -> None:
    X = data()
    kept, state, torch_state = X.copy(), np.random.get_state()[1].copy(), torch.random.get_rng_state()
    appearance_clusters(X, "kmeans")
    np.testing.assert_array_equal(X, kept)
    assert np.array_equal(np.random.get_state()[1], state) and torch.equal(torch.random.get_rng_state(), torch_state)
    with pytest.raises(AttributeError):
        appearance_clusters(X).labels = None


def test_embeddings_that_are_not_finite_are_refused() -> None:
    X = data()
    X[11, 0] = np.nan
    with pytest.raises(InputError, match="X: got NaN in row 11"):
        appearance_clusters(X)
