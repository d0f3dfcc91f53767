"""Learning curves: which rows, the law found again, the same test rows, and what happens to arms, resumed and refused studies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression

from counterpoise._errors import InputError
from counterpoise.studies import Study, _launch
from counterpoise.studies._differences import Board
from counterpoise.studies._learning_curve import learning_curve, parts_of
from counterpoise.studies._plan import budgeted
from counterpoise.studies._splits import Splits
from counterpoise.studies._types import Protocol

from .small import numbers, small_study

SIZES = np.array([1600.0, 800.0, 400.0, 200.0])


def law_board(limit: float, scale: float, exponent: float, n: int = 2000, noise: float = 0.0, seed: int = 0) -> Board:
    """A regression whose mean absolute errors lie on a law."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=n)
    error = limit + scale * SIZES**-exponent
    signs = np.where(rng.random(n) < 0.5, -1.0, 1.0)
    own = np.abs(1 + noise * rng.normal(size=(len(SIZES), 2, n)))
    score = y + signs * error[:, None, None] * own / own.mean(axis=2, keepdims=True)
    fold = np.stack([rng.permutation(n) % 5 for _ in range(2)])
    return Board("trees", ["nothing", "1 of 2", "1 of 4", "1 of 8"], y, fold, score)


@pytest.mark.parametrize(("limit", "scale", "exponent"), [(0.2, 3.0, 0.5), (0.05, 1.0, 0.3), (20.0, 900.0, 0.6)])
def test_a_law_is_found_again(limit: float, scale: float, exponent: float) -> None:
    curve = learning_curve(law_board(limit, scale, exponent), SIZES, "error", task="regression")
    assert curve.rows.tolist() == sorted(SIZES)
    assert curve.values == pytest.approx(limit + scale * curve.rows**-exponent, rel=1e-12)
    assert (curve.limit, curve.exponent) == (pytest.approx(limit, rel=1e-4), pytest.approx(exponent, rel=1e-4))
    for gain in curve.gains:
        expected = scale * 1600**-exponent * (1 - gain.times**-exponent)
        assert gain.estimate == pytest.approx(expected, rel=1e-4)
    assert curve.line == pytest.approx(limit + scale * curve.line_rows**-exponent, rel=1e-4)
    assert curve.line_rows[[0, -1]].tolist() == [200.0, 6400.0]


def test_limits_hold_the_truth_and_widen_with_the_noise() -> None:
    truth = 3.0 * 1600**-0.5 * (1 - 2**-0.5)
    widths = []
    for noise in (0.2, 0.8):
        found = [
            learning_curve(law_board(0.2, 3.0, 0.5, noise=noise, seed=s), SIZES, "error", task="regression").gains[0] for s in range(8)
        ]
        assert sum(gain.low <= truth <= gain.high for gain in found) >= 7
        assert all(gain.low <= gain.estimate <= gain.high for gain in found)
        widths.append(np.mean([gain.high - gain.low for gain in found]))
    assert widths[0] < widths[1]  # by how much depends on what the laws of all parts and of some already differ in


def test_an_error_that_rises_is_not_extrapolated() -> None:
    board = law_board(0.2, 3.0, 0.5)
    upside_down = Board("trees", board.arms, board.y, board.fold, board.score[::-1])
    curve = learning_curve(upside_down, SIZES, "error", task="regression")
    assert curve.exponent == 0 and [gain.estimate for gain in curve.gains] == [0, 0]
    assert curve.sentence() == (
        "More rows: trees without a remedy is no better from 1,600 than from fewer, down to 200 "
        "(mean absolute error 0.28, 0.31, 0.35, 0.41, the fewest first): there is nothing to extrapolate."
    )


@pytest.mark.parametrize(
    ("unit", "level", "gain"),
    [
        (1.0, "0.28", "+0.022 [+0.022, +0.022]"),
        (1e6, "275,000", "+21,967 [+21,9"),
        (1e-4, "0.00003", "+0.0000022 [+0.0000022, +0.0000022]"),
    ],
)
def test_numbers_can_be_read_in_every_unit(unit: float, level: str, gain: str) -> None:
    sentence = learning_curve(law_board(0.2 * unit, 3.0 * unit, 0.5), SIZES, "error", task="regression").sentence()
    assert f" has mean absolute error {level} from 1,600; twice as many would bring about {gain}" in sentence


def test_a_course_that_turns_is_not_extrapolated() -> None:
    """The law still falls, but all rows are no better than half of them."""
    board = law_board(0.2, 3.0, 0.5)
    turned = Board("trees", board.arms, board.y, board.fold, board.score[[1, 0, 2, 3]])
    curve = learning_curve(turned, SIZES, "error", task="regression")
    assert curve.exponent > 0 and not curve.goes_on
    assert curve.sentence().endswith("(mean absolute error 0.41, 0.35, 0.27, 0.31, the fewest first): there is nothing to extrapolate.")
    assert learning_curve(board, SIZES, "error", task="regression").goes_on


def test_equal_errors_are_no_law() -> None:
    curve = learning_curve(law_board(0.2, 0.0, 0.5), SIZES, "error", task="regression")
    assert curve.exponent == 0 and curve.limit == pytest.approx(0.2) and curve.line == pytest.approx(0.2)


# ---- which rows -------------------------------------------------------------------------------------------------------------------------


def binary(n: int, positives: int, blocks: Any = None) -> Any:
    y = (np.random.default_rng(0).permutation(n) < positives).astype(np.int64)
    blocks = np.arange(n) if blocks is None else blocks
    counts = np.bincount(y)
    return SimpleNamespace(n=n, y=y, task="binary", blocks=blocks, time=None, fixed_test=None, counts=counts)


def test_parts_are_nested_and_stratified_and_test_rows_stay() -> None:
    problem = binary(1000, 200)
    splits = Splits(problem, Protocol("binary"))
    whole = splits.train_index(1, 2)
    assert splits.train_index(1, 2, -1).tolist() == whole.tolist()
    before = set(whole)
    for part in (2, 4, 8, 16):
        rows = splits.train_index(1, 2, -part)
        assert set(rows) < before
        assert len(rows) == 800 // part and problem.y[rows].sum() == 160 // part
        assert splits.test_index(1, 2, -part).tolist() == splits.test_index(1, 2).tolist()
        before = set(rows)
    assert set(splits.train_index(0, 2, -4)) != set(splits.train_index(1, 2, -4))


def test_copies_stay_together_in_a_part() -> None:
    blocks = np.repeat(np.arange(200), 4)
    problem = binary(800, 200, blocks)
    problem.y = np.repeat((np.arange(200) < 60).astype(np.int64), 4)
    splits = Splits(problem, Protocol("binary"))
    rows = splits.train_index(0, 0, -4)
    assert np.bincount(blocks[rows])[np.unique(blocks[rows])].tolist() == [4] * len(np.unique(blocks[rows]))


def test_parts_are_of_whole_clusters() -> None:
    clusters = np.repeat(np.arange(160), 5)
    splits = Splits(binary(800, 300, clusters), replace(Protocol("binary"), split="clusters"))
    before = set(splits.train_index(0, 0))
    for part in (2, 4, 8):
        rows = splits.train_index(0, 0, -part)
        assert set(rows) < before and len(rows) == pytest.approx(640 / part, abs=10)
        assert np.isin(clusters, clusters[rows]).sum() == len(rows)
        before = set(rows)


def test_parts_leave_enough_of_the_rarest_class() -> None:
    protocol = Protocol("binary", folds=5)
    assert [parts_of(binary(4000, positives), protocol) for positives in (400, 399, 100, 99, 49)] == [
        (16, 8, 4, 2), (8, 4, 2), (4, 2), (2,), (),
    ]  # fmt: skip
    line = binary(500, 100)
    line.task, line.y = "regression", np.arange(500.0)
    assert parts_of(line, Protocol("regression")) == (8, 4, 2)
    # Rows that are locked away are none to train on.
    assert parts_of(binary(4000, 400), replace(protocol, holdout=0.2)) == (8, 4, 2)
    clustered = binary(4000, 400, np.repeat(np.arange(80), 50))
    assert parts_of(clustered, replace(protocol, split="clusters")) == (4, 2)
    half = binary(4000, 400)
    half.fixed_test = np.arange(4000) % 2 == 0
    assert parts_of(half, replace(protocol, fixed_test=True)) == (8, 4, 2)


# ---- in a study -------------------------------------------------------------------------------------------------------------------------


def test_a_study_says_what_more_rows_would_bring(tmp_path: Path) -> None:
    table = numbers(600, positives=200)
    plain = small_study(table, target="y", out=tmp_path / "plain")
    assert plain.learning_curves == [] and "What more rows" not in (tmp_path / "plain" / "report.html").read_text()
    study = small_study(table, target="y", out=tmp_path / "curve", learning_curve=True)
    (curve,) = study.learning_curves
    assert (curve.learner, curve.arm, curve.metric) == ("linear", "nothing", "balanced_accuracy")
    assert curve.rows.tolist() == [60, 120, 240, 480]
    level = next(row["metric"]["decisions"] for row in study.table() if row["arm"] == "nothing")
    assert curve.values[-1] == pytest.approx(level, abs=1e-12)
    # The curve is beside the study, not part of it: all else is as without.
    assert [v.sentence() for v in study.verdicts()] == [v.sentence() for v in plain.verdicts()]
    assert study.plan.cells == plain.plan.cells + 3 * 5
    assert study.results["drop"].unique(maintain_order=True).to_list() == [-1, -8, -4, -2]
    page = (tmp_path / "curve" / "report.html").read_text()
    assert "What more rows would bring" in page and curve.sentence() in page
    assert Study.open(tmp_path / "curve").learning_curves[0].sentence() == curve.sentence()


def test_a_finished_study_can_be_asked_later(tmp_path: Path) -> None:
    table = numbers(600, positives=200)
    small_study(table, target="y", out=tmp_path / "a")
    later = small_study(table, target="y", out=tmp_path / "a", learning_curve=True)
    at_once = small_study(table, target="y", out=tmp_path / "b", learning_curve=True)
    assert later.learning_curves[0].values.tolist() == at_once.learning_curves[0].values.tolist()
    again = small_study(table, target="y", out=tmp_path / "a")  # not asked, still known
    assert again.learning_curves[0].sentence() == later.learning_curves[0].sentence()


def test_a_budget_counts_the_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: dict[str, float] = {}

    def spy(entries: Any, seconds: dict[str, float], **options: Any) -> Any:
        counted.update({entry.remedy.name: seconds[entry.arm.hash] for entry in entries if entry.arm.hash in seconds})
        return budgeted(entries, seconds, **options)

    monkeypatch.setattr(_launch, "budgeted", spy)
    study = small_study(numbers(600, positives=200), target="y", out=tmp_path, budget="1h", trials=1, learning_curve=True)
    first = study.results.filter((pl.col("repeat") == 0) & (pl.col("fold") == 0) & (pl.col("drop") == -1))
    spent = dict(zip(first["remedy"], first["seconds"], strict=True))
    assert counted["weights"] == spent["weights"]
    assert counted["nothing"] == pytest.approx(spent["nothing"] * (1 + 1 / 2 + 1 / 4 + 1 / 8))


class Picky(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Refuses to be fitted on fewer rows than 120."""

    def fit(self, X: Any, y: Any) -> Picky:
        if len(X) < 120:
            raise ValueError("too few rows for me")
        self.model_ = LogisticRegression().fit(X, y)
        self.classes_ = self.model_.classes_
        return self

    def predict_proba(self, X: Any) -> Any:
        return self.model_.predict_proba(X)


def test_a_part_that_cannot_be_fitted_costs_a_point_and_not_the_arm(tmp_path: Path) -> None:
    study = small_study(
        numbers(1500, positives=240), target="y", out=tmp_path, learners={"picky": Picky()}, remedies=["smote"], learning_curve=True
    )
    assert study.failed == []
    (curve,) = study.learning_curves
    assert curve.rows.tolist() == [300, 600, 1200]  # of 150, inner folds leave 100


def test_a_recommended_remedy_has_a_curve_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choose = Study._choose
    monkeypatch.setattr(Study, "_choose", lambda study: replace(choose(study), arm="weights"))
    study = small_study(numbers(300, positives=100), target="y", out=tmp_path, learning_curve=True)
    first, second = study.learning_curves
    assert (first.arm, second.arm) == ("nothing", "weights")
    assert first.rows.tolist() == second.rows.tolist() == [60, 120, 240]
    assert second.sentence().startswith("More rows: linear with weights ")


def test_what_has_no_learning_curve_is_refused_before_any_fit(tmp_path: Path) -> None:
    table = numbers(300, positives=60)
    with pytest.raises(InputError, match="too few rows; expected 20 rows of the rarest class in a quarter of the training rows"):
        small_study(table, target="y", out=tmp_path / "few", learning_curve=True)
    timed = numbers(900, positives=300).with_columns(day=pl.arange(900))
    with pytest.raises(InputError, match="learning_curve: training rows of a study in time order grow from fold to fold"):
        small_study(timed, target="y", time="day", out=tmp_path / "time", learning_curve=True)
    assert not (tmp_path / "few").exists() and not (tmp_path / "time").exists()
