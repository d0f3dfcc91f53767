"""Intervals of a study against an independent implementation: 240 rows, a baseline and three arms, 5 folds x 3 repeats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from counterpoise._stats import bonferroni, max_t, nadeau_bengio, repeat_variance, row_standard_error
from counterpoise.studies._differences import Board, family_of
from counterpoise.studies._metrics import cell_metrics, decide
from counterpoise.studies._verdicts import verdicts
from tests.oracles import oracle_files

QUESTIONS = ["decisions", "ranking", "probabilities"]
METRICS = [("balanced_accuracy", 1), ("auroc", 1), ("log_loss", -1)]
EXACT = {"rtol": 0, "atol": 1e-10}
every_file = pytest.mark.parametrize("path", oracle_files("00"))
every_question = pytest.mark.parametrize("q", range(3), ids=QUESTIONS)


def load(path: Path) -> tuple[dict[str, Any], Board]:
    with np.load(path) as numbers:
        oracle = {key: numbers[key] for key in numbers.files}
    fold = oracle["fold"].astype(np.int64)
    own = np.take_along_axis(oracle["threshold"], np.broadcast_to(fold, oracle["score"].shape), axis=2)
    arms = ["nothing", *(f"arm{a}" for a in range(1, len(oracle["score"])))]
    board = Board("linear", arms, oracle["y"].astype(np.int64), fold, oracle["score"], (oracle["score"] > own).astype(np.int64))
    return oracle, board


@every_file
def test_metrics_of_the_cells(path: Path) -> None:
    oracle, board = load(path)
    repeats, folds = int(oracle["R"]), int(oracle["K"])
    for a in range(len(board.arms)):
        for r in range(repeats):
            for k in range(folds):
                rows = board.fold[r] == k
                threshold = [float(oracle["threshold"][a, r, k])]
                found = cell_metrics("binary", board.y[rows], board.score[a, r, rows], threshold)
                ours = [sign * found[metric] for metric, sign in METRICS]
                np.testing.assert_allclose(ours, oracle["cell_metric"][:, a, r * folds + k], **EXACT)
                assert (decide(board.score[a, r, rows], threshold) == board.decision[a, r, rows]).all()


@every_file
@every_question
def test_row_interval(path: Path, q: int) -> None:
    oracle, board = load(path)
    family = family_of([board], QUESTIONS[q], task="binary")
    v_rep = repeat_variance(family.cells)
    cells = oracle["cell_metric"][q, 1:] - oracle["cell_metric"][q, :1]
    np.testing.assert_allclose(family.cells.reshape(cells.shape), cells, **EXACT)
    np.testing.assert_allclose(family.moments.estimate, oracle["estimate_rows"][q], **EXACT)
    np.testing.assert_allclose(family.moments.S, oracle["S"][q], **EXACT)
    np.testing.assert_allclose(family.moments.S1, oracle["S1"][q], **EXACT)
    np.testing.assert_allclose(v_rep, oracle["v_rep"][q], **EXACT)
    np.testing.assert_allclose(row_standard_error(family.moments, v_rep), oracle["se_rows"][q], **EXACT)
    assert family.df == np.bincount(board.y).min() - 1
    assert max_t(family.moments.S, family.df) == pytest.approx(oracle["maxt_rows"][q], abs=0.02)
    # A verdict uses the same standard error wherever S is at least that of one changed decision per class, and a larger one below.
    once = np.maximum(np.diag(oracle["S"][q]), family.grain)
    se = np.where(once > family.grain, oracle["se_rows"][q], np.sqrt(np.maximum(2 * once + v_rep, np.diag(oracle["S1"][q]))))
    for a, verdict in enumerate(verdicts([board], QUESTIONS[q], task="binary")):
        assert verdict.estimate == pytest.approx(oracle["estimate_rows"][q][a], abs=1e-10)
        assert (verdict.high - verdict.low) / 2 == pytest.approx(oracle["maxt_rows"][q] * se[a], rel=0.01)


@every_file
@every_question
def test_nadeau_bengio(path: Path, q: int) -> None:
    oracle, board = load(path)
    cells = oracle["cell_metric"][q, 1:] - oracle["cell_metric"][q, :1]
    estimate, se, df = nadeau_bengio(cells, 1 / (int(oracle["K"]) - 1))
    np.testing.assert_allclose(estimate, oracle["cell_mean_diff"][q], **EXACT)
    np.testing.assert_allclose(se, oracle["se_nadeau_bengio"][q], **EXACT)
    assert bonferroni(len(cells), df) == pytest.approx(float(oracle["bonferroni_nadeau_bengio"]), abs=1e-10)
    assert max_t(np.cov(cells), df) == pytest.approx(oracle["maxt_nadeau_bengio"][q], abs=0.02)
    for a, verdict in enumerate(verdicts([board], QUESTIONS[q], task="binary", interval="nadeau-bengio")):
        half = oracle["maxt_nadeau_bengio"][q] * oracle["se_nadeau_bengio"][q][a]
        assert (verdict.low, verdict.high) == pytest.approx((estimate[a] - half, estimate[a] + half), abs=0.01 * half)
