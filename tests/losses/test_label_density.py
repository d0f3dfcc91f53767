from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from scipy.ndimage import convolve1d

from counterpoise._errors import InputError
from counterpoise.losses import fit_window, lds_weights

AGES = np.random.default_rng(0).poisson(30, 500)
M = np.array([2, 1, 0, 1, 2])
KERNELS = {"gaussian": np.exp(-(M**2) / 8), "triangle": np.array([1, 2, 3, 2, 1]) / 3, "laplace": np.exp(-M / 2)}


def weights_of(counts: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return len(ids) / counts[ids] / (1 / counts[ids]).sum()


@pytest.mark.parametrize("scheme", ["inverse", "sqrt_inverse"])
@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_weights_are_inverse_smoothed_counts(kernel, scheme) -> None:
    ids = AGES - AGES.min()
    counts = np.bincount(ids).astype(float)
    counts = np.sqrt(counts) if scheme == "sqrt_inverse" else counts
    smoothed = convolve1d(counts, KERNELS[kernel], mode="constant")
    found = lds_weights(AGES, kernel=kernel, scheme=scheme)
    assert found.dtype == torch.float32 and found.shape == (500,)
    np.testing.assert_allclose(found, weights_of(smoothed, ids), rtol=1e-5)
    assert found.mean().item() == pytest.approx(1.0, rel=1e-6)
    assert found.max() == found[AGES.argmax()] or found.max() == found[AGES.argmin()]


def test_without_smoothing_they_are_inverse_counts() -> None:
    ids = AGES - AGES.min()
    np.testing.assert_allclose(lds_weights(AGES, ks=1), weights_of(np.bincount(ids).astype(float), ids), rtol=1e-5)
    # Far apart, a kernel reaches no other bin, and its middle is 1.
    np.testing.assert_allclose(lds_weights([0, 0, 100]), [0.75, 0.75, 1.5], rtol=1e-6)


def test_kernels_wider_than_the_targets() -> None:
    np.testing.assert_allclose(
        lds_weights([1, 1, 2], ks=9, kernel="triangle"), weights_of(np.array([2.8, 2.6]), np.array([0, 0, 1])), rtol=1e-6
    )
    assert lds_weights([4, 4]).tolist() == [1, 1]


def test_bins() -> None:
    y = np.random.default_rng(1).lognormal(size=300)
    for bins, edges in (
        (None, np.histogram_bin_edges(y, 100)),
        (7, np.histogram_bin_edges(y, 7)),
        ([0, 0.5, 1, 30], np.array([0, 0.5, 1, 30])),
    ):
        counts = np.histogram(y, edges)[0].astype(float)
        ids = np.clip(np.digitize(y, edges) - 1, 0, len(counts) - 1)
        expected = weights_of(convolve1d(counts, KERNELS["gaussian"], mode="constant"), ids)
        np.testing.assert_allclose(lds_weights(y, bins=bins), expected, rtol=1e-5)
    # Whole numbers as floats are whole numbers; a gap counts as bins.
    assert torch.equal(lds_weights(AGES.astype(float)), lds_weights(AGES))
    assert not torch.equal(lds_weights(AGES, bins=10), lds_weights(AGES))


def test_targets_of_any_kind() -> None:
    expected = lds_weights(AGES)
    for same in (AGES.tolist(), torch.tensor(AGES), torch.tensor(AGES)[:, None], pl.Series(AGES), torch.tensor(AGES).bfloat16()):
        assert torch.equal(lds_weights(same), expected)
    assert fit_window(torch.tensor(AGES)[:, None].float().requires_grad_()) == fit_window(AGES)


def test_a_first_window() -> None:
    y = np.random.default_rng(2).normal(size=10_000)
    assert fit_window(y) == pytest.approx(0.05 * 1.349, rel=0.03)
    assert fit_window(10 * y + 3, q=0.1) == pytest.approx(20 * fit_window(y))


def test_what_makes_no_sense_is_refused() -> None:
    wrong = [{"kernel": "gauss"}, {"scheme": "sqrt_inv"}, {"ks": 4}, {"ks": 0}, {"ks": 2.5}, {"sigma": 0.0}]
    for options in [*wrong, {"bins": 0}, {"bins": [3, 2]}, {"bins": [1]}]:
        with pytest.raises(InputError, match=next(iter(options))):
            lds_weights(AGES, **options)
    for targets, message in (
        ([], "targets: got shape"),
        (np.ones((3, 2)), r"targets: got shape \(3, 2\)"),
        ([1.0, float("nan")], "targets: got nan or inf"),
        (["a", "b"], "targets: got an array of <U1"),
        ([0, 10**9], "bins=100"),
    ):
        with pytest.raises(InputError, match=message):
            lds_weights(targets)
    with pytest.raises(InputError, match="expected targets between the edges 0 and 30"):
        lds_weights(AGES, bins=[0, 30])
    with pytest.raises(InputError, match="both quartiles 1"):
        fit_window([1] * 9 + [5])
    with pytest.raises(InputError, match="q: got 0"):
        fit_window(AGES, q=0)
