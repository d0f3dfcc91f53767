from __future__ import annotations

import numpy as np
import pytest
import torch

from counterpoise._stats import mean_interval
from counterpoise.replications import imbalance_study as study

SMALL = {"steps": 20, "second": 5}


@pytest.fixture(scope="module")
def quick():
    return study.run(quick=True)


def test_every_claim_has_a_finding(quick) -> None:
    assert {finding.claim for finding in quick.findings} == {claim.key for claim in study.CLAIMS}
    assert set(quick.verdicts) == {"hurts", "over", "under", "threshold", "overfit"}
    assert quick.quick and quick.seeds == study.QUICK_SEEDS and quick.figure is not None
    assert quick.notes[0].startswith("U"), "what under-sampling does is the first thing said"
    assert len(quick.tables[next(iter(quick.tables))]) == len(study.ARMS)


def test_a_training_is_a_function_of_its_seed() -> None:
    before = torch.get_rng_state()
    first, again, other = (study._train(study.HARD, "over", seed, **SMALL) for seed in (3, 3, 4))
    assert first == again and first != other
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("problem", "expected"),
    [(study.HARD, [4] * 5 + [80] * 5), (study.MILD, [4] * 2 + [80] * 8), (study.LESS, [16] * 5 + [80] * 5), (study.EQUAL, [80] * 10),
     (study.EQUAL_AS_FEW, [42] * 10)],
)  # fmt: skip
def test_the_problems_are_those_described(problem, expected) -> None:
    X, y, X_test, y_test = study._data(problem, seed=1)
    assert sorted(np.bincount(y).tolist()) == expected
    assert X.shape == (len(y), 1, 8, 8) and X.min() == 0 and X.max() == 1
    assert len(X_test) == len(y_test) == 899 and np.bincount(y_test).min() > 80


def test_a_seed_has_the_same_rare_classes_and_test_images_everywhere() -> None:
    hard, less = (study._data(problem, seed=2) for problem in (study.HARD, study.LESS))
    assert set(np.flatnonzero(np.bincount(hard[1]) < 80)) == set(np.flatnonzero(np.bincount(less[1]) < 80))
    assert torch.equal(hard[2], less[2])
    assert set(np.flatnonzero(np.bincount(hard[1]) < 80)) != set(np.flatnonzero(np.bincount(study._data(study.HARD, seed=3)[1]) < 80))


def test_what_is_drawn() -> None:
    y = study._data(study.HARD, seed=0)[1]
    count = 64 * 50
    drawn = {draw: study._drawn(draw, y, count, seed=0) for draw in study.DRAWS[study.HARD]}
    assert all(len(rows) == count and prior.sum() == pytest.approx(1) for rows, prior in drawn.values())
    shares = {draw: np.bincount(y[rows], minlength=10) / count for draw, (rows, _) in drawn.items()}
    for draw, (_, prior) in drawn.items():
        sigma = np.sqrt(prior * (1 - prior) / count)
        assert (np.abs(shares[draw] - prior) <= 4 * sigma).all(), draw
    np.testing.assert_array_equal(drawn["nothing"][1], np.bincount(y) / 420)
    assert set(np.bincount(drawn["nothing"][0], minlength=420)) == {7, 8}, "whole passes"
    for draw in ("over", "under", "under-redrawn"):
        np.testing.assert_allclose(drawn[draw][1], 0.1)
    partial = drawn["over-partial"][1]
    assert partial.max() / partial.min() == pytest.approx(study.PARTIAL)
    assert len(set(drawn["under"][0])) == 40, "thrown away for good"
    assert len(set(drawn["under-redrawn"][0])) > 300


def test_phase_2_moves_the_head_alone_and_needs_no_threshold_after_full_balance() -> None:
    found = study._train(study.HARD, "over", 0, **SMALL)
    first, second = found["phase1"], found["phase2"]
    assert first["corrected"] == first["accuracy"], "the prior that training saw is uniform"
    assert second["accuracy"] != first["accuracy"]
    assert 0.45 < first["are_rare"] < 0.55 and 0 <= first["said_rare"] <= 1
    assert "phase2" not in study._train(study.HARD, "nothing", 0, **SMALL)
    for scores in (first, second):
        assert scores["corrected_auc"] == pytest.approx(scores["auc"], abs=1e-12), "thresholds do not change a ranking"


def test_the_network_is_the_one_described() -> None:
    network = study._network(seed=0)
    sizes = [tuple(p.shape) for p in network.parameters() if p.ndim > 1]
    assert sizes == [(16, 1, 3, 3), (32, 16, 3, 3), (64, 128), (10, 64)]
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), study._network(seed=0).parameters(), strict=True))


def rows_with(**changes: float) -> list[dict]:
    """Rows of three seeds that are alike but for what is added to an arm: {"metric of arm": change}."""
    arms = [*study.ARMS, "over-long", "over-partial", "under-redrawn", "over twice"]
    rows = []
    for problem, draws in study.DRAWS.items():
        for arm in arms if len(draws) > 1 else ["nothing"]:
            for seed in range(3):
                row = {"problem": problem, "seed": seed, "arm": arm, "images": 420, "tested": 899}
                row |= {"auc": 0.9 + seed / 100, "accuracy": 0.8 + seed / 50, "loss": 0.5 - seed / 10, "said_rare": 0.4, "are_rare": 0.5}
                for name, change in changes.items():
                    metric, _, of = name.partition("_")
                    if of == arm.replace(" ", "_").replace("-", "_"):
                        row[metric] += change * (1 + seed / 10)
                rows.append(row)
    return rows


def verdicts(rows: list[dict]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in study._findings(rows):
        found.setdefault(finding.claim, []).append(finding.verdict)
    return {claim.key: found[claim.key] for claim in study.CLAIMS if claim.criterion}


def test_criteria() -> None:
    good = verdicts(rows_with(auc_over=0.02, auc_under=-0.01, accuracy_threshold=0.05))
    assert good["over"] == good["under"] == good["threshold"] == ["replicated"]
    assert good["overfit"] == ["replicated"] * 2
    bad = verdicts(rows_with(auc_over=-0.02, auc_under=0.01, accuracy_threshold=-0.05, accuracy_over_long=-0.01, loss_over_long=0.01))
    assert bad["over"] == bad["under"] == bad["threshold"] == ["not replicated"]
    assert bad["overfit"] == ["not replicated"] * 2
    falling = rows_with()
    for row in falling:
        row["auc"] -= {study.HARD: 0.05, study.LESS: 0.02}.get(row["problem"], 0.0) * (1 + row["seed"] / 10)
    assert verdicts(falling)["hurts"] == ["replicated"] * 2
    assert verdicts(rows_with())["hurts"] == ["not replicated"] * 2


def test_harm_is_said_in_the_first_note_and_in_the_findings() -> None:
    harmed = rows_with(auc_under=-0.02, accuracy_under=-0.1)
    assert study._notes(harmed)[0].startswith("UNDER-SAMPLING HARMED: worse than doing nothing at mu 0.5, rho 20 and at mu 0.2, rho 20.")
    texts = [finding.text for finding in study._findings(harmed) if finding.claim == "harm"]
    assert len(texts) == 2 and all("IS WORSE THAN doing nothing" in text for text in texts)
    helped = rows_with(auc_under=0.02, accuracy_under=0.1)
    assert study._notes(helped)[0] == "Under-sampling was not shown to be worse than doing nothing."


def test_differences_are_paired_by_seed() -> None:
    rows = rows_with(auc_over=0.02)
    assert study.difference(rows, "auc", "over") == pytest.approx(mean_interval([0.02, 0.022, 0.024]))
    half = (mean_interval([0.02, 0.022, 0.024])[2] - 0.022) * np.sqrt(1 + 3 * 899 / 420)
    assert study.wider(rows, "auc", "over") == pytest.approx((0.022, 0.022 - half, 0.022 + half))


def test_notes_say_what_was_seen() -> None:
    rows = rows_with(accuracy_over_twice=0.03, accuracy_over=0.01, accuracy_under_redrawn=0.05, auc_under=-0.02)
    text = " ".join(study._notes(rows))
    assert "raised accuracy here: +0.022 (" in text and "40% of the test images are taken for a rare class, and 50% are" in text
    assert "keeping other images in every pass is worth +0.055 (" in text
    assert "2 of the 2 differences to doing nothing that exclude 0 at mu 0.5, rho 20 still do: accuracy of over-sampling;" in text
    rows = rows_with(accuracy_over_twice=-0.03)
    text = " ".join(study._notes(rows))
    assert "corrects twice: accuracy -0.033 (" in text and "0 of the 0 differences" in text
