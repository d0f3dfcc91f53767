from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from torch import nn

from counterpoise.replications import anyloss


@pytest.fixture(scope="module")
def quick():
    return anyloss.run(quick=True)


def test_every_claim_has_a_finding(quick) -> None:
    assert {finding.claim for finding in quick.findings} == {claim.key for claim in anyloss.CLAIMS}
    assert set(quick.verdicts) == {"f1", "balanced-accuracy"}
    assert quick.quick and quick.seeds == anyloss.QUICK_SEEDS and quick.figure is not None
    text = quick.summary()
    for name in anyloss.SETS:  # those where it does not help as well
        assert text.count(name) >= 5


def test_the_same_seeds_give_the_same_numbers() -> None:
    first, second = (anyloss._split("diabetes, top 10 %", seed=3) for _ in range(2))
    assert first == second
    assert first != anyloss._split("diabetes, top 10 %", seed=4)


@pytest.mark.parametrize(("name", "rows", "share"), [
    ("diabetes, top 10 %", 442, 0.0995), ("diabetes, top 20 %", 442, 0.199), ("breast cancer, 3 features", 415, 0.1398),
    ("digit 8, 4 components", 1797, 0.0968), ("digit 8, pixels", 1797, 0.0968), ("digit 9, pixels", 1797, 0.1002),
])  # fmt: skip
def test_the_problems_are_those_described(name, rows, share) -> None:
    X, y = anyloss._problem(name)
    assert len(X) == len(y) == rows and y.mean() == pytest.approx(share, abs=5e-4)


def test_the_linear_model_of_cross_entropy_is_logistic_regression(monkeypatch) -> None:
    X, y = anyloss._problem("breast cancer, 3 features")
    X = (X - X.mean(0)) / X.std(0)
    monkeypatch.setattr(anyloss, "EPOCHS", 1500)
    expected = LogisticRegression(C=np.inf, tol=1e-8).fit(X, y)
    np.testing.assert_allclose(anyloss._fit(X, y, nn.BCEWithLogitsLoss()), [*expected.coef_[0], expected.intercept_[0]], atol=1e-3)


def test_a_verdict_counts_the_sets() -> None:
    above, across, below = (0.2, 0.1, 0.3), (0.0, -0.1, 0.1), (-0.2, -0.3, -0.1)
    assert anyloss.verdict_of_sets([above, above, below], 2) == "replicated"
    assert anyloss.verdict_of_sets([above, across, below], 2) == "undecided"
    assert anyloss.verdict_of_sets([above, below, below], 2) == "not replicated"
    assert anyloss.verdict_of_sets([above, above, across], 3) == "undecided"


def test_intervals_are_wider_than_those_of_independent_splits() -> None:
    rows = [{"data": "d", "seed": s, "arm": arm, "f1": value * s} for s in range(8) for arm, value in (("any-f1", 0.1), ("bce", 0.0))]
    estimate, low, high = anyloss.difference(rows, "d", "f1", "any-f1")
    spread = np.std(0.1 * np.arange(8), ddof=1)
    assert estimate == pytest.approx(0.35)
    assert high - estimate == pytest.approx(estimate - low) == pytest.approx(2.3646 * spread * np.sqrt(1 / 8 + 2 / 3), rel=1e-4)
