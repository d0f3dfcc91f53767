from __future__ import annotations

import numpy as np
import pytest
import torch

from counterpoise.replications import conr
from counterpoise.replications.conr import AFTER, ARMS, BEFORE, CLAIMS, CONTROL, digits, errors, fitted, rotated, train

ARM = {arm.name: arm for arm in ARMS}


@pytest.fixture(scope="module")
def quick():
    return conr.run(quick=True)


def test_a_quick_run_has_findings_for_all_claims(quick) -> None:
    assert quick.slug == "conr" and quick.quick and quick.seeds == conr.QUICK_SEEDS
    assert {finding.claim for finding in quick.findings} == {claim.key for claim in CLAIMS}
    assert set(quick.verdicts) == {"few", "many"}
    assert quick.figure is not None and quick.figure.axes
    (table,) = quick.tables.values()
    assert [row["arm"] for row in table] == [arm.name for arm in ARMS]


def test_it_is_a_function_of_its_seeds(quick) -> None:
    row = next(row for row in next(iter(quick.tables.values())) if row["arm"] == BEFORE)
    again = [train(BEFORE, seed, conr.QUICK_EPOCHS) for seed in quick.seeds]
    for part in conr.PARTS:
        assert row[part] == pytest.approx(np.mean([one[part] for one in again]), abs=1e-12)


def test_training_angles_are_skewed_and_test_angles_are_not() -> None:
    data = digits(0)
    assert data.images.shape == (1200, 1, 12, 12) and data.test_images.shape == (597, 1, 12, 12)
    angles, tested = data.angles[:, 0].numpy(), data.test_angles[:, 0].numpy()
    assert angles.min() >= 0 and angles.max() <= 90
    # Of an exponential density that falls by 100 over 90 degrees, a share (1 - 100^(-1/3)) / 0.99 lies below 30.
    assert (angles < 30).mean() == pytest.approx((1 - 100 ** (-1 / 3)) / 0.99, abs=0.04)
    assert 20 < (angles > 60).sum() < 70
    assert np.histogram(tested, bins=[0, 30, 60, 90])[0].min() > 160
    assert not torch.equal(digits(1).angles, data.angles) and torch.equal(digits(0).images, data.images)


def test_images_are_turned() -> None:
    images = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    turned = rotated(images, torch.tensor([0.0, 90.0, 180.0, 270.0]))
    for image, result, quarters in zip(images, turned, range(4), strict=True):
        expected = [torch.rot90(image, sign * quarters, dims=(1, 2)) for sign in (1, -1)]
        assert any(torch.allclose(result, one, atol=1e-5) for one in expected)
    assert not torch.allclose(turned[1], turned[3], atol=0.1)


def test_the_control_is_conr_with_no_weight() -> None:
    data = digits(0)
    data = conr.Digits(data.images, data.angles, data.test_images[:50], data.test_angles[:50])
    found = [errors(fitted(arm, data, 0, 1), data) for arm in (ARM[CONTROL], conr.Arm("tiny", beta=1e-30), ARM[AFTER], ARM[BEFORE])]
    assert found[0] == found[1] and found[0] != found[2] != found[3]
