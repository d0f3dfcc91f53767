from __future__ import annotations

import numpy as np
import pytest

from counterpoise.losses import dequity_weight
from counterpoise.replications import datasetequity
from counterpoise.replications.datasetequity import ARMS, CLAIMS, MAIN, SHUFFLED, digits, likelihoods, train

ARM = {arm.name: arm for arm in ARMS}


@pytest.fixture(scope="module")
def quick():
    return datasetequity.run(quick=True)


def test_a_quick_run_has_findings_for_all_claims(quick) -> None:
    assert quick.slug == "datasetequity" and quick.quick and quick.seeds == datasetequity.QUICK_SEEDS
    assert {finding.claim for finding in quick.findings} == {claim.key for claim in CLAIMS}
    assert set(quick.verdicts) == {"rare", "common", "default", "control"}
    assert quick.figure is not None and quick.figure.axes
    (table,) = quick.tables.values()
    assert len(table) == len(ARMS) + 2


def test_it_is_a_function_of_its_seeds(quick) -> None:
    arm = next(row for row in next(iter(quick.tables.values())) if row["arm"] == MAIN)
    again = [train("mlp", MAIN, seed) for seed in quick.seeds]
    assert arm["rare"] == pytest.approx(np.mean([row["rare"] for row in again]), abs=1e-12)
    assert arm["common"] == pytest.approx(np.mean([row["common"] for row in again]), abs=1e-12)


def test_the_data_are_what_the_protocol_says() -> None:
    data = digits(0)
    assert len(data.X) == 898 and len(data.X_test) == 899 and data.inverted.sum() == 54
    plain = np.where(data.inverted[:, None], 1 - data.X, data.X)
    # Digits are bright on dark: four pixels are dark in every image.
    assert (plain[:, [0, 32, 39]] == 0).all() and (data.X[data.inverted][:, [0, 32, 39]] == 1).all()
    assert not np.array_equal(digits(1).X, data.X)


def test_shuffled_weights_are_the_same_weights_on_other_images() -> None:
    data = digits(0)
    given, shuffled = likelihoods(ARM[MAIN], data, 0), likelihoods(ARM[SHUFFLED], data, 0)
    np.testing.assert_array_equal(np.sort(given), np.sort(shuffled))
    assert not np.array_equal(given, shuffled)
    # DBSCAN has found the inverted images, the control has not.
    weight, other = (dequity_weight(p, *datasetequity.STRONG) for p in (given, shuffled))
    assert weight[data.inverted].min() > 2 * weight[~data.inverted].max()
    assert other[data.inverted].mean() == pytest.approx(other.mean(), rel=0.5)


def test_uniform_weights_are_no_weights() -> None:
    assert set(likelihoods(ARM["uniform"], digits(0), 0)) == {1.0}
    assert train("mlp", "uniform", 0)["ratio"] == 1.0
