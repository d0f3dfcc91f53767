from __future__ import annotations

import numpy as np
import pytest

from counterpoise.diagnostics import neural_collapse_lengths
from counterpoise.replications import neural_collapse


@pytest.fixture(scope="module")
def quick():
    return neural_collapse.run(quick=True)


def test_every_claim_has_a_finding(quick) -> None:
    assert {finding.claim for finding in quick.findings} == {claim.key for claim in neural_collapse.CLAIMS}
    assert set(quick.verdicts) == {"minimum", "threshold", "lengths", "orthogonal"}
    assert quick.quick and quick.seeds == neural_collapse.QUICK_SEEDS and quick.figure is not None
    assert "\n" in quick.summary() and quick.to_json()


def test_the_identities_hold_in_a_quick_run_too(quick) -> None:
    assert quick.verdict_of("minimum") == quick.verdict_of("threshold") == "replicated"
    for row in quick.tables["Free features: lengths at the minimum"]:
        assert row["measured"] == row["formula"]


def test_the_threshold_is_crossed_where_it_should_be() -> None:
    problem = dict(zip(("counts", "layers", "decay", "feature_decay"), neural_collapse.QUICK_PROBLEMS[1], strict=True))
    below, above = (neural_collapse.at_threshold(**problem, seed=1, ratio=ratio) for ratio in (1 / 1.02, 1.02))
    for row, alive in ((below, True), (above, False)):
        assert row["n*"] == pytest.approx(3 * (1.02 if not alive else 1 / 1.02))
        assert row["loss error"] < 1e-12
        assert row["length"] == pytest.approx(row["predicted"], abs=1e-9) and (row["length"] > 1) == alive
        # On both sides both ends are local minima: the loss decides between them.
        assert [end["length"] > 1 for end in row["ends"]] == [True, False]
        assert (row["ends"][0]["loss"] < row["ends"][1]["loss"]) == alive


def test_the_same_seed_gives_the_same_numbers() -> None:
    problem = dict(zip(("counts", "layers", "decay", "feature_decay"), neural_collapse.QUICK_PROBLEMS[0], strict=True))
    first, second = (neural_collapse.minimum(**problem, seed=3, scale=1.0) for _ in range(2))
    assert first == second and first["length error"] < 1e-6
    assert first != neural_collapse.minimum(**problem, seed=4, scale=1.0)
    nets = [neural_collapse.digits_network(seed=2, epochs=neural_collapse.EARLY) for _ in range(2)]
    assert nets[0] == nets[1] and nets[0]["early"] == nets[0]["end"]
    assert nets[0] != neural_collapse.digits_network(seed=3, epochs=neural_collapse.EARLY)


def test_the_long_tail() -> None:
    X, y = neural_collapse.long_tail(0)
    assert np.bincount(y).tolist() == neural_collapse.class_counts().tolist() == [150, 103, 70, 48, 33, 23, 16, 11, 7, 5]
    assert X.shape == (466, 64) and X.max() == 1 and len(np.unique(X, axis=0)) == 466
    assert not np.array_equal(X, neural_collapse.long_tail(1)[0])


def test_the_criterion_would_notice_a_wrong_formula() -> None:
    """One layer more or less moves the lengths by far more than the criterion allows."""
    counts, layers, decay, feature_decay = neural_collapse.PROBLEMS[1]
    right = neural_collapse_lengths(counts, [decay] * layers, feature_decay).feature_norm
    wrong = neural_collapse_lengths(counts, [decay] * (layers - 1), feature_decay).feature_norm
    assert np.abs(wrong - right).max() / right.max() > 100 * neural_collapse.LENGTH_ERROR


def test_a_count_of_seeds_decides_about_the_lengths() -> None:
    good = {"spearman lengths": -0.9, "spearman rows": 0.95}
    one_sided = {"spearman lengths": -0.9, "spearman rows": 0.5}
    assert neural_collapse._both_right([good, one_sided]) == [True, False]
    assert neural_collapse._as_predicted({"ratio": 0.98, "length": 0.3}) and not neural_collapse._as_predicted(
        {"ratio": 0.98, "length": 0.0}
    )
    assert neural_collapse._as_predicted({"ratio": 1.02, "length": 1e-9}) and not neural_collapse._as_predicted(
        {"ratio": 1.02, "length": 0.3}
    )
