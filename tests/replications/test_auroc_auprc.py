"""The re-test of AUROC and AUPRC: the exact parts hold, the data are what they are said to be, and a run repeats itself."""

from __future__ import annotations

import os

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from counterpoise._errors import InputError
from counterpoise.replications import auroc_auprc as module


@pytest.fixture(scope="module")
def quick():
    return module.run(quick=True)


def test_every_claim_has_a_finding_and_the_exact_ones_hold(quick) -> None:
    assert quick.quick and quick.seeds == module.QUICK_SEEDS
    assert {finding.claim for finding in quick.findings} == {claim.key for claim in module.CLAIMS}
    assert quick.verdict_of("identity") == quick.verdict_of("mistakes") == "replicated"
    assert quick.verdict_of("compas") == "reported" and "AUROC is not neutral" in quick.notes[0]
    errors = next(rows for title, rows in quick.tables.items() if "scikit-learn" in title)
    assert {row["scores"] for row in errors} == set(module.WAYS) and max(row["tied rows"] for row in errors) > 0.5
    assert quick.figure is not None


def test_a_piece_repeats_itself(quick) -> None:
    again = module.drift(0, "auroc"), module.drift(0, "auprc")
    assert again == (module.drift(0, "auroc"), module.drift(0, "auprc"))
    table = next(rows for title, rows in quick.tables.items() if "repairs" in title)
    mean = np.mean([module.drift(seed, "auprc")["difference"] for seed in module.QUICK_SEEDS])
    assert table[0]["guided by"] == "AUPRC" and table[0]["difference"] == pytest.approx(mean, abs=1e-12)


def test_the_two_groups_are_calibrated_and_ranked_alike() -> None:
    found = [module.two_groups(seed) for seed in range(40)]
    y, score, common = (np.concatenate(part) for part in zip(*found, strict=True))
    assert y[common].mean() == 0.05 and y[~common].mean() == 0.01
    for own in (common, ~common):
        assert roc_auc_score(y[own], score[own]) == pytest.approx(0.85, abs=0.02)
        probability = 1 / (1 + np.exp(-score[own]))
        assert probability.mean() == pytest.approx(y[own].mean(), rel=0.06)
        high = probability > np.quantile(probability, 0.9)
        assert probability[high].mean() == pytest.approx(y[own][high].mean(), rel=0.1)


def test_what_the_repairs_gain_is_what_they_are_worth() -> None:
    """Swapping rows of one group moves its AUROC by 1 / (P N); swapping rows of two groups moves neither."""
    for arm in ("auprc", "auroc"):
        found = module.drift(1, arm)
        for name, positives in (("common", 50), ("rare", 10)):
            steps = found[name] * positives * (1000 - positives)
            assert steps == pytest.approx(round(steps), abs=1e-6) and 0 <= steps <= module.FIXES


def test_a_missing_set_is_named(tmp_path) -> None:
    with pytest.raises(InputError, match=r"'compas' has no download.*compas-scores-two-years.csv.gz"):
        module.select_on_compas(0, str(tmp_path))


def test_the_folder_may_be_given(data_folder, monkeypatch) -> None:
    monkeypatch.delenv("COUNTERPOISE_DATA")
    X, y = module._table("mammography", str(data_folder))
    assert X.shape == (11183, 6) and y.sum() == 260
    assert "COUNTERPOISE_DATA" not in os.environ
