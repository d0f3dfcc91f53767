from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from counterpoise._errors import InputError
from counterpoise.replications import slipform
from counterpoise.replications.slipform import CEMENT, CLAIMS, EASY, HARD, MIX, QUICK_STEPS, edit, edited, exact, scenes, told_apart, train


@pytest.fixture(scope="module")
def quick(data_folder: Path):
    if not all((data_folder / name).is_file() for name in slipform.SOURCES):
        pytest.skip("needs the captions and ratings in the folder that COUNTERPOISE_DATA names")
    return slipform.run(quick=True, data_dir=data_folder)


def test_a_quick_run_has_findings_for_all_claims(quick) -> None:
    assert quick.slug == "slipform" and quick.quick and quick.seeds == slipform.QUICK_SEEDS
    assert {finding.claim for finding in quick.findings} == {claim.key for claim in CLAIMS}
    assert set(quick.verdicts) == {"concrete", "cement", "adaptive", "exact", "coverage", "choice"}
    # What does not need training holds in a quick run, too.
    assert [quick.verdicts[key] for key in ("exact", "coverage", "choice")] == ["replicated"] * 3
    assert quick.figure is not None and quick.figure.axes
    assert not any(str(row).count("data_dir") for table in quick.tables.values() for row in table)


def test_it_is_a_function_of_its_seeds(quick) -> None:
    row = next(row for row in quick.tables["means over seeds"] if (row["problem"], row["arm"]) == (HARD, CEMENT))
    again = [train(HARD, CEMENT, seed, QUICK_STEPS) for seed in quick.seeds]
    for value in ("swap", "replace", "recall", "ratio", "scale"):
        assert row[value] == pytest.approx(np.mean([one[value] for one in again]), abs=1e-6)


def test_identities() -> None:
    for seed in range(3):
        errors = exact(seed)
        assert errors["ratio"] < 1e-12 and errors["shares"] < 1e-10


def test_a_margin_lowers_the_imbalance_and_does_not_change_what_is_drawn() -> None:
    found = {arm: train(HARD, arm, 0, 3) for arm in (MIX, CEMENT, slipform.NONE)}
    assert found[CEMENT]["ratio"] < 0.5 * found[MIX]["ratio"] and math.isnan(found[slipform.NONE]["ratio"])
    assert found[CEMENT]["positive"] < found[MIX]["positive"] < found[slipform.NONE]["positive"]
    assert abs(found[CEMENT]["replace"] - found[MIX]["replace"]) < 0.05  # the same batches


def test_edits() -> None:
    images, labels = slipform._digits()
    source = torch.Generator().manual_seed(0)
    pictures, captions = scenes(images, labels, torch.arange(100), 500, 4, source)
    assert pictures.shape == (500, 4, 64) and captions.shape == (500, 5)
    assert captions[:, 0].min() >= 10 and captions[:, 0].max() == 15 and captions[:, 1:].max() == 9
    same_filler = {kind: edit(captions, kind, source) for kind in ("swap", "replace", "concrete", "random")}
    assert all(torch.equal(found[:, 0], captions[:, 0]) for found in same_filler.values())
    assert torch.equal(same_filler["swap"][:, [2, 1, 3, 4]], captions[:, 1:])
    assert ((same_filler["replace"] != captions).sum(dim=1) == 1).all()
    changed = (same_filler["concrete"] != captions).sum(dim=1)
    assert set(changed.tolist()) == {1, 2} and 0.4 < (changed == 2).float().mean() < 0.6
    abstract = edit(captions, "abstract", source)
    assert (abstract[:, 0] != captions[:, 0]).all() and torch.equal(abstract[:, 1:], captions[:, 1:])
    assert train(EASY, MIX, 1, 60)["swap"] > 0.8  # where order is built in, little is needed


def test_edited_words() -> None:
    assert edited("A child holding a flowered umbrella.", "A umbrella holding a flowered child .") == ["child", "umbrella"]
    assert edited("a red car", "a very red car") == [] and edited("a very red car", "a red bus") == ["very", "car"]


def test_what_shows_in_words_is_told_apart_and_what_does_not_is_not() -> None:
    rng = np.random.default_rng(0)
    words = [f"w{k}" for k in range(30)]
    captions = [" ".join(rng.choice(words, 5)) for _ in range(300)]
    assert told_apart([(caption, caption + " unicorn") for caption in captions]).mean() == 1.0
    assert told_apart([(caption, caption) for caption in captions]).tolist() == [0.5] * 300
    other = [" ".join(rng.choice(words, 5)) for _ in range(300)]
    assert 0.4 < told_apart(list(zip(captions, other, strict=True))).mean() < 0.6


def test_a_missing_file_is_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"valid_neg_clip\.tsv of https://github.com/mertyg"):
        slipform.run(quick=True, data_dir=tmp_path)
    monkeypatch.delenv("COUNTERPOISE_DATA", raising=False)
    with pytest.raises(InputError, match="COUNTERPOISE_DATA is not set"):
        slipform.run(quick=True)
