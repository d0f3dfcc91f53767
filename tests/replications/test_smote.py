from __future__ import annotations

import os

import numpy as np
import pytest

from counterpoise._errors import InputError
from counterpoise.replications import smote

ROUNDS = 3


@pytest.fixture(scope="module")
def quick(data_folder):
    return smote.run(quick=True, data_dir=data_folder)


def cell(data_folder, **changed):
    return smote._cell(
        **{"data": "pima", "learner": "tree", "seed": 0, "fold": 1, "rounds": ROUNDS, "data_dir": str(data_folder)} | changed
    )


def test_every_claim_has_a_finding(quick) -> None:
    assert {finding.claim for finding in quick.findings} == {claim.key for claim in smote.CLAIMS}
    assert set(quick.verdicts) == {"tree-auroc", "strong-learner", "threshold", "hull", "precision"}
    assert quick.quick and quick.seeds == smote.QUICK_SEEDS and quick.figure is not None
    text = quick.summary()
    assert "average precision" in text and "random over-sampling" in text and "moving the threshold instead of SMOTE" in text
    assert [line["learner"] for line in quick.tables["AUROC: nothing, and the others' difference to it"]] == list(smote.LEARNERS.values())


def test_the_same_seeds_give_the_same_numbers(data_folder) -> None:
    first, second = (cell(data_folder) for _ in range(2))
    assert first == second != cell(data_folder, seed=1)
    grids = [smote._grid("pima", 0, [100], [50, 200], 3, 100, str(data_folder)) for _ in range(2)]
    assert grids[0] == grids[1] != smote._grid("pima", 1, [100], [50, 200], 3, 100, str(data_folder))


@pytest.mark.parametrize("learner", list(smote.LEARNERS))
def test_what_a_moved_threshold_cannot_change_is_unchanged(data_folder, learner) -> None:
    scores = cell(data_folder, learner=learner)["scores"]
    assert set(scores) == {"plain", "moved", "smote", "random"}
    assert scores["moved"]["auroc"] == scores["plain"]["auroc"] and scores["moved"]["ap"] == scores["plain"]["ap"]
    assert scores["moved"]["ba"] != scores["plain"]["ba"]
    assert scores["smote"] != scores["random"] != scores["plain"]


def test_areas_and_gains_belong_together(data_folder) -> None:
    found = smote._grid("pima", 0, [100], [50, 200], 3, 100, str(data_folder))
    assert set(found["areas"]) == {"0", "100"}
    # The hull is the upper envelope of the curve, so its area is at least that of the curve.
    assert found["hulls"]["under"] >= found["areas"]["0"] and found["hulls"]["smote+under"] >= found["areas"]["100"]
    # (SMOTE - as many) + (as many - alone) = SMOTE - alone
    assert found["control"][0] + found["chance"][0] == pytest.approx(found["gain"][0])
    assert 1 <= sum(found["vertices"].values()) <= 4


def test_intervals_are_those_of_nadeau_and_bengio() -> None:
    values = 0.1 * np.arange(10)
    rows = [
        {"data": "d", "learner": "tree", "cell": number, "arm": arm, "auroc": value}
        for number, gain in enumerate(values)
        for arm, value in (("plain", 0.0), ("smote", gain))
    ]
    estimate, low, high = smote.difference(rows, "d", "tree", "auroc", "smote")
    assert estimate == pytest.approx(0.45)
    assert (
        high - estimate == pytest.approx(estimate - low) == pytest.approx(2.2622 * values.std(ddof=1) * np.sqrt(1 / 10 + 1 / 4), rel=1e-4)
    )


@pytest.mark.parametrize(
    ("name", "rows", "positives"), [("mammography", 11183, 260), ("phoneme", 5404, 1586), ("oil-spill", 937, 41), ("pima", 768, 268)]
)
def test_the_sets_are_those_of_the_paper(data_folder, name, rows, positives) -> None:
    X, y = smote._problem(name, str(data_folder))
    assert len(X) == len(y) == rows and y.sum() == positives and np.isfinite(X).all()


def test_a_folder_without_the_set_is_said(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("COUNTERPOISE_DATA", "before")
    monkeypatch.setenv("COUNTERPOISE_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", lambda *_: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(InputError, match=r"'mammography'.*\$COUNTERPOISE_DATA"):
        smote.run(quick=True, data_dir=tmp_path)
    assert os.environ["COUNTERPOISE_DATA"] == "before"
