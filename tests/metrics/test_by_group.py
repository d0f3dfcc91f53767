from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from sklearn.neighbors import KernelDensity

from counterpoise import Groups
from counterpoise._errors import InputError
from counterpoise.metrics import between_group_variance_share, jensen_shannon_by_group


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    groups = rng.integers(4, size=n)
    return rng.beta(2 + groups, 4), groups


def by_scikit_learn(yhat, groups, bandwidth, equal=False, weight=None) -> float:
    grid = np.linspace(yhat.min(), yhat.max(), 1000)[:, None]
    P, pi = [], []
    for g in np.unique(groups):
        of = groups == g
        w = None if weight is None else weight[of]
        p = np.exp(KernelDensity(bandwidth=bandwidth, rtol=1e-10).fit(yhat[of][:, None], sample_weight=w).score_samples(grid))
        P.append(p / p.sum())
        pi.append(of.sum() if weight is None else w.sum())
    pi = np.full(len(P), 1 / len(P)) if equal else np.array(pi) / np.sum(pi)
    return float(entropy(pi @ np.array(P), base=2) - sum(a * entropy(p, base=2) for a, p in zip(pi, P, strict=True)))


@pytest.mark.parametrize("bandwidth", [0.15, 0.02])
@pytest.mark.parametrize("equal", [True, False])
def test_densities_are_those_of_scikit_learn(equal, bandwidth) -> None:
    yhat, groups = drawn(500)
    found = jensen_shannon_by_group(yhat, groups, bandwidth=bandwidth, weights="equal" if equal else "proportion")
    assert found == pytest.approx(by_scikit_learn(yhat, groups, bandwidth, equal), rel=1e-6)
    exposure = np.random.default_rng(1).uniform(0.1, 1, size=500)
    found = jensen_shannon_by_group(yhat, groups, bandwidth=bandwidth, exposure=exposure)
    assert found == pytest.approx(by_scikit_learn(yhat, groups, bandwidth, weight=exposure), rel=1e-6)


def test_many_rows_are_rounded_without_consequence() -> None:
    yhat, groups = drawn(9000)
    assert jensen_shannon_by_group(yhat, groups, bandwidth=0.05) == pytest.approx(by_scikit_learn(yhat, groups, 0.05), rel=1e-4)


def test_histograms() -> None:
    yhat, groups = drawn(700)
    counts = np.array([np.histogram(yhat[groups == g], bins=50, range=(yhat.min(), yhat.max()))[0] for g in range(4)])
    pi = counts.sum(1) / 700
    expected = entropy(pi @ (counts / counts.sum(1, keepdims=True)), base=2) - pi @ entropy(counts, axis=1, base=2)
    assert jensen_shannon_by_group(yhat, groups, estimator="hist") == pytest.approx(expected, abs=1e-3)  # ties at edges of bins


def test_limits() -> None:
    assert jensen_shannon_by_group([0.3] * 6, list("aabbcc")) == 0.0
    assert jensen_shannon_by_group([0.1, 0.2, 0.5], ["a"] * 3) == 0.0
    assert jensen_shannon_by_group(np.tile([0.1, 0.5, 0.7], 2), np.repeat([0, 1], 3)) == 0.0
    far = np.repeat([0.0, 1.0, 2.0, 3.0], 5)
    assert jensen_shannon_by_group(far, far, estimator="hist") == pytest.approx(2.0)
    assert between_group_variance_share([0.3] * 6, list("aabbcc")) == 0.0
    assert between_group_variance_share([0.1, 0.2], ["a", "a"]) == between_group_variance_share([0.1], ["a"]) == 0.0


def test_empty_groups_are_left_out_and_rows_without_one_are_one() -> None:
    yhat, groups = drawn(60)
    empty = Groups(np.where(groups == 3, 4, groups), ("a", "b", "c", "nobody", "d"), "attribute")
    assert jensen_shannon_by_group(yhat, empty) == jensen_shannon_by_group(yhat, groups)
    assert between_group_variance_share(yhat, empty) == between_group_variance_share(yhat, groups)
    none = Groups(np.where(groups == 3, -1, groups), ("a", "b", "c"), "attribute")
    assert jensen_shannon_by_group(torch.from_numpy(yhat), none) == jensen_shannon_by_group(yhat, groups)


def test_variance_share_by_hand() -> None:
    yhat, groups = drawn(300)
    means = [yhat[groups == g].mean() for g in range(4)]
    assert between_group_variance_share(yhat, groups) == pytest.approx(np.var(means, ddof=1) / np.var(yhat, ddof=1))


@pytest.mark.parametrize(("options", "message"), [
    ({"estimator": "knn"}, "estimator"), ({"bandwidth": 0}, "bandwidth"), ({"weights": "same"}, "weights"),
    ({"bandwidth": 1e-6}, "0.15 standard deviations"), ({"exposure": [1.0]}, "exposure: got"),
    ({"exposure": [-1.0, 1, 1, 1]}, "exposure: got"),
])  # fmt: skip
def test_bad_options(options, message) -> None:
    with pytest.raises(InputError) as error:
        jensen_shannon_by_group([0.1, 0.2, 0.3, 0.4], list("aabb"), **options)
    assert message in str(error.value)


@pytest.mark.parametrize("metric", [jensen_shannon_by_group, between_group_variance_share])
def test_bad_rows(metric) -> None:
    with pytest.raises(InputError, match="yhat: got NaN in 1 of 2 rows"):
        metric([0.1, float("nan")], [0, 1])
    with pytest.raises(InputError, match="yhat: got an infinite"):
        metric([0.1, float("inf")], [0, 1])
    with pytest.raises(InputError, match="groups"):
        metric([0.1, 0.2], [0, 1, 1])
    with pytest.raises(InputError, match="no rows"):
        metric([], [])
