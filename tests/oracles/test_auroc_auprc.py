"""AUROC and AUPRC taken apart against scikit-learn's numbers, heavy ties and a single positive among them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from counterpoise.metrics import auroc_auprc_decomposition
from counterpoise.metrics._curves import aurocs, average_precisions
from tests.oracles import oracle_files

EXACT = {"rel": 0, "abs": 1e-12}


@pytest.mark.parametrize("path", oracle_files("38"))
def test_every_case(path: Path) -> None:
    with np.load(path, allow_pickle=False) as numbers:
        cases = int(numbers["n_cases"])
        assert cases > 0
        for j in range(cases):
            y, s, auroc, ap = numbers[f"y{j}"], numbers[f"s{j}"], float(numbers[f"auroc{j}"]), float(numbers[f"ap{j}"])
            found = auroc_auprc_decomposition(y, s)
            assert found.auroc == pytest.approx(auroc, **EXACT), j
            assert found.auprc == pytest.approx(ap, **EXACT), j
            assert 1 - found.weight @ found.auroc_loss == pytest.approx(auroc, **EXACT), j
            assert 1 - (1 - found.prevalence) * found.weight @ (found.fpr / found.firing_rate) == pytest.approx(ap, **EXACT), j
            once = np.ones((1, len(y)))
            assert aurocs(s, y == 1, once)[0] == pytest.approx(auroc, **EXACT), j
            assert average_precisions(s, y == 1, once)[0] == pytest.approx(ap, **EXACT), j
