from __future__ import annotations

import numpy as np

from counterpoise._likelihood import cluster_likelihood


def test_likelihood_is_the_relative_size_of_the_cluster() -> None:
    labels = np.array([1, 0, 0, -1, 0, 1, -1, 2])
    np.testing.assert_array_equal(cluster_likelihood(labels)[labels], np.array([2, 3, 3, 2, 3, 2, 2, 1]) / 8)


def test_noise_can_be_as_rare_as_a_single_row() -> None:
    labels = np.array([0, 0, -1, -1])
    np.testing.assert_array_equal(cluster_likelihood(labels, noise="singleton")[labels], [0.5, 0.5, 0.25, 0.25])


def test_all_noise_is_one_cluster() -> None:
    np.testing.assert_array_equal(cluster_likelihood(np.array([-1, -1, -1])), [1.0])
