from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from counterpoise._errors import InputError
from counterpoise.replications import e5_omni
from counterpoise.replications.e5_omni import ALONE, ARMS, BASE, CLAIMS, FULL, WITHOUT, identities, recalls, train, views


@pytest.fixture(scope="module")
def quick(data_folder: Path):
    return e5_omni.run(quick=True, data_dir=data_folder)


def test_a_quick_run_has_findings_for_all_claims(quick) -> None:
    assert quick.slug == "e5-omni" and quick.quick and quick.seeds == e5_omni.QUICK_SEEDS
    assert {finding.claim for finding in quick.findings} == {claim.key for claim in CLAIMS}
    assert set(quick.verdicts) == {"temperature", "full", "curriculum", "debias", "align", "identities"}
    assert quick.verdicts["identities"] == "replicated"
    assert quick.figure is not None and quick.figure.axes
    (table,) = quick.tables.values()
    assert [row["arm"] for row in table] == [arm.name for arm in ARMS]


def test_it_is_a_function_of_its_seeds(quick, data_folder: Path) -> None:
    row = next(row for row in next(iter(quick.tables.values())) if row["arm"] == FULL.name)
    again = [train(FULL.name, seed, e5_omni.QUICK_STEPS, str(data_folder)) for seed in quick.seeds]
    for score in e5_omni.SCORES:
        assert row[score] == pytest.approx(np.mean([one[score] for one in again]), abs=1e-12)
    assert len(again[0]["tau"]) == 4 and again[0]["tau"] != again[1]["tau"]


def test_every_part_is_added_once_and_removed_once() -> None:
    assert len(ARMS) == len({arm.name for arm in ARMS}) == 11
    for part, arm in ALONE.items():
        assert arm.name == part and getattr(FULL, part) and not getattr(BASE, part)
        assert sum(getattr(FULL, other) != getattr(WITHOUT[part], other) for other in ALONE) == 1 and not getattr(WITHOUT[part], part)
    assert [sum(getattr(arm, part) for part in ALONE) for arm in e5_omni.ADDED_UP] == [1, 2, 3, 4]


def test_identities() -> None:
    found = identities(3)
    assert found["infonce"] < 1e-12 and found["scalar"] < 1e-12 and found["kept"] <= 1


def test_views_show_the_same_digits_and_are_split(data_folder: Path) -> None:
    data = views(0, str(data_folder))
    assert [x.shape for x, _ in data] == [(900, 216), (900, 64), (900, 76), (900, 47)] and {len(x) for _, x in data} == {500}
    for x, _ in data:
        assert x.mean(dim=0).abs().max() < 1e-5
        assert (x.std(dim=0, unbiased=False) - 1).abs().median() < 1e-5
    other = views(1, str(data_folder))
    assert not torch.equal(other[0][0], data[0][0]) and torch.equal(views(0, str(data_folder))[3][1], data[3][1])


def test_recalls() -> None:
    """Views agree but for one digit, which the second view takes for its neighbor; and the last view lies elsewhere."""
    eye = torch.eye(6)
    wrong = eye.clone()
    wrong[0] = eye[1]
    lost = eye.roll(1, dims=1)
    found = recalls([eye, wrong, eye, lost])
    # fac-kar misses digit 0, fac-fou none, fac-zer all, and kar (as query) - fou digit 0.
    assert found["mean"] == pytest.approx((5 / 6 + 1 + 0 + 5 / 6) / 4)
    assert found["pooled"] >= 5 / 6 - 1e-6


def test_a_missing_set_is_named(tmp_path: Path) -> None:
    e5_omni._digits.cache_clear()
    with pytest.raises(InputError, match="mfeat"):
        e5_omni.run(quick=True, data_dir=tmp_path)
