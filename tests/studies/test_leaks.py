"""Nothing a model is fitted on, tuned on or given by a remedy may come from the rows it is judged on. Every row carries a mark, so that
what a fit has seen can be read off, and mutants that leak turn the checks red."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from sklearn.tree import DecisionTreeClassifier
from tests.studies.small import numbers

import counterpoise
from counterpoise._errors import InputError
from counterpoise.studies import Draw, Learner, Remedy, Study, TrainingRows, Watcher, _cell, _launch, _preprocess, _splits
from counterpoise.studies._problem import build_problem

IntArray = npt.NDArray[np.int64]
INVENTED = -1


@dataclass
class Log:
    """What happened, in order. Rows are those of the table as it was given, told by their marks."""

    fits: list[tuple[IntArray, list[IntArray]]] = field(default_factory=list)  # rows of a fit, then those of every scoring of the model
    shown: list[IntArray] = field(default_factory=list)  # rows that a remedy was shown
    numbered: list[IntArray] = field(default_factory=list)  # and their numbers, as it was told them
    prepared: list[IntArray] = field(default_factory=list)  # rows that imputing and scaling were fitted on


LOG = Log()  # of the cells
AFTERWARDS = Log()  # of the models for the hold-out and for saving, which may use all rows


class Phases(Watcher):
    """Starts the log with the first cell, and moves what comes after the last one."""

    def plan(self, plan: Any) -> None:
        LOG.__init__()  # type: ignore[misc]

    def finished(self, study: Any) -> None:
        for part in ("fits", "shown", "prepared"):
            setattr(AFTERWARDS, part, getattr(LOG, part)[self.cut[part] :])
            setattr(LOG, part, getattr(LOG, part)[: self.cut[part]])

    def repeat(self, study: Any, repeats_done: int) -> None:
        self.cut = {part: len(getattr(LOG, part)) for part in ("fits", "shown", "prepared")}


class MarkedTree(DecisionTreeClassifier):  # type: ignore[misc]
    """A tree that writes down which rows it is fitted on and which it scores. The mark is the first column: row number + 0.5."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> MarkedTree:
        self.scored_: list[IntArray] = []
        LOG.fits.append((rows_of(X), self.scored_))
        super().fit(X[:, 1:], y, sample_weight=sample_weight)
        return self

    def predict_proba(self, X: Any) -> Any:
        self.scored_.append(rows_of(X))
        return super().predict_proba(X[:, 1:])


def rows_of(X: Any) -> IntArray:
    """The rows of the table behind a matrix; an invented row, whose mark lies between two others, is INVENTED."""
    mark = np.asarray(X[:, 0], dtype=float)
    whole = np.abs(mark - 0.5 - np.round(mark - 0.5)) < 1e-9
    return np.where(whole, np.round(mark - 0.5), INVENTED).astype(np.int64)


class Watching(Remedy):
    """Leaves everything as it is and writes down what it was shown."""

    def draw(self, training: TrainingRows, params: Any, seed: int) -> None:
        LOG.shown.append(rows_of(training.X))
        LOG.numbered.append(training.rows.copy())


@dataclass(frozen=True)
class Peeking(Remedy):
    """Invents rows from a table it brought along, test rows included."""

    X: Any = None
    y: Any = None

    def draw(self, training: TrainingRows, params: Any, seed: int) -> Draw:
        return Draw(np.arange(len(training.y)), self.X, self.y)


LEARNER = Learner("marked", lambda task, params, seed: MarkedTree(max_depth=3, random_state=seed))


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Preprocessing is written down as well."""
    fit = _preprocess.Preprocess.fit

    def noted(self: Any, X: Any, text: Any = None) -> Any:
        LOG.prepared.append(rows_of(X))
        return fit(self, X, text)

    monkeypatch.setattr(_preprocess.Preprocess, "fit", noted)
    yield


def marked(n: int = 200, positives: int = 60, copies: int = 0) -> pl.DataFrame:
    """Numbers whose first column marks the row; the last ``copies`` rows repeat the first ones but for the mark."""
    table = numbers(n - copies, positives)
    table = pl.concat([table, table.head(copies)]) if copies else table
    # In no order, or the column would be taken for an id.
    order = np.random.default_rng(1).permutation(n)
    return table.select(pl.Series("mark", np.arange(n) + 0.5), pl.all())[order]


def run(table: pl.DataFrame, out: Path, remedies: Any, **options: Any) -> Study:
    return counterpoise.study(
        table, target="y", learners=[LEARNER], remedies=remedies, out=out, jobs=1, watcher=Phases(),
        **({"repeats": 2, "folds": 4} | options),
    )  # fmt: skip


# -- the checks: for a study that has just run ------------------------------------------------------------------------------------------


def check_fits(study: Study) -> None:
    """No model has seen a row that it scores, or the hold-out, and whoever scores a test fold scores nothing else.

    ``study.problem`` may hold a table that was changed before it was split: rows are told by their marks, not by their position.
    """
    mark = rows_of(study.problem.X)
    held, tests = set(mark[study.splits.holdout]), folds_of(study)
    assert LOG.fits
    for seen, scored in LOG.fits:
        fitted = set(seen) - {INVENTED}
        assert scored, "a model scores nothing"
        judged = set().union(*map(set, scored))
        assert not fitted & judged, "a model scores rows that it was fitted on"
        assert not (fitted | judged) & held, "a model was fitted on the hold-out, or has scored it"
        assert any(not fitted & test and (judged == test or not judged & test) for test in tests), (
            "a model was fitted on rows of every fold"
        )


def check_shown(study: Study) -> None:
    """What remedies are shown and preprocessing is fitted on leaves a test fold out, and the hold-out."""
    held, tests = set(rows_of(study.problem.X)[study.splits.holdout]), folds_of(study)
    assert LOG.prepared
    for rows in [*LOG.shown, *LOG.prepared]:
        assert not held & set(rows), "the hold-out was looked at"
        assert any(not set(rows) & test for test in tests), "remedies or preprocessing were fitted on rows of every fold"


def folds_of(study: Study) -> list[set[int]]:
    mark = rows_of(study.problem.X)
    return [set(mark[study.splits.test_index(r, k)]) for r in range(study.plan.repeats) for k in range(study.protocol.folds)]


def scored_once(study: Study) -> None:
    """Every row is judged once per repeat, by the models of its test fold."""
    frame = study.results.filter(pl.col("remedy") == "nothing")
    assert len(frame) == study.plan.repeats * study.protocol.folds
    for repeat in range(study.plan.repeats):
        tested = np.concatenate([study.splits.test_index(repeat, fold) for fold in range(study.protocol.folds)])
        assert sorted(tested) == study.splits.rows.tolist()


ALL = ["weights", "over", "under", "smote", Watching("watching", "data")]


def leak_test(out: Path, remedies: Any = tuple(ALL), **options: Any) -> Study:
    """The test that mutants must fail."""
    study = run(marked(), out, list(remedies), **options)
    check_fits(study)
    check_shown(study)
    scored_once(study)
    return study


# -- the study passes -------------------------------------------------------------------------------------------------------------------


def test_no_fit_sees_what_it_is_judged_on(tmp_path: Path) -> None:
    study = leak_test(tmp_path)
    # Each cell: three inner models that score a third of the training rows each, then the model that scores the test fold.
    assert len(LOG.fits) == 7 * 2 * 4 * 4  # baseline, placebo and five more; repeats; folds; fits
    for start in range(0, len(LOG.fits), 4):
        *inner, (seen, scored) = LOG.fits[start : start + 4]
        thirds = np.concatenate([rows for _, parts in inner for rows in parts])
        assert len(thirds) == len(set(thirds)) == 150
        assert not set(thirds) & set(scored[0])
        assert set(seen) - {INVENTED} <= set(thirds)
    assert len(LOG.shown) == 2 * 4 * 4
    mark = rows_of(study.problem.X)
    assert all((mark[rows] == shown).all() for rows, shown in zip(LOG.numbered, LOG.shown, strict=False))
    assert study.failed == []


def test_invented_rows_have_no_mark(tmp_path: Path) -> None:
    leak_test(tmp_path, ["smote"], repeats=1)
    assert any((seen == INVENTED).any() for seen, _ in LOG.fits)


def test_the_holdout_is_opened_last(tmp_path: Path) -> None:
    """Enough positives lock a fifth of the rows away: only two models of the end score them, which were not fitted on them."""
    study = run(marked(1000, 400), tmp_path, ["weights", Watching("watching", "data")], repeats=1)
    assert study.protocol.holdout == 0.2
    check_fits(study)
    check_shown(study)
    held = set(rows_of(study.problem.X)[study.splits.holdout])
    assert len(held) == 200
    openings = [set(seen) for seen, scored in AFTERWARDS.fits if any(set(rows) == held for rows in scored)]
    assert len(openings) == (1 if study.recommendation.is_baseline else 2)
    assert all(seen == set(range(1000)) - held for seen in openings)
    # What scores the hold-out in part is the threshold of the model that is saved, fitted on everything.
    assert study.recommendation.holdout is not None and study.recommendation.holdout.rows == 200


def test_the_rows_of_a_test_table_are_scored_once_and_never_trained_on(tmp_path: Path) -> None:
    table = marked(300, 90)
    study = run(table[:240], tmp_path, ["over"], test=table[240:], repeats=1)
    held = set(rows_of(table[240:].drop("y").to_numpy()))
    assert set(rows_of(study.problem.X)[study.splits.holdout]) == held
    check_fits(study)
    check_shown(study)
    assert all(not held & set(seen) for seen, _ in AFTERWARDS.fits)
    assert any(set(rows) == held for _, scored in AFTERWARDS.fits for rows in scored)
    assert study.recommendation.holdout is not None and study.recommendation.holdout.rows == 60


def test_copies_of_a_row_never_straddle(tmp_path: Path) -> None:
    """Without the mark among the features the copies are copies; the fit still tells which rows it saw by another column."""
    table = marked(240, 60, copies=60)
    plain = table.drop("mark")
    study = counterpoise.study(plain, target="y", learners="linear", remedies=["over"], repeats=2, folds=4, out=tmp_path, jobs=1)
    assert study.problem.copies == 60
    blocks = study.problem.blocks
    assert len(np.unique(blocks)) == 180
    for repeat in range(2):
        for fold in range(4):
            train, test = study.splits.train_index(repeat, fold), study.splits.test_index(repeat, fold)
            assert not set(map(tuple, study.problem.X[train])) & set(map(tuple, study.problem.X[test]))
            for fit_rows, at in study.splits.inner_pairs(train, study.splits.inner_folds(train, repeat, fold)):
                assert not set(map(tuple, study.problem.X[fit_rows])) & set(map(tuple, study.problem.X[train[at]]))
    assert any("60" in notice for notice in study.problem.notices)


def test_clusters_and_time_are_kept_apart(tmp_path: Path) -> None:
    table = marked().with_columns(pl.Series("patient", np.random.default_rng(3).integers(0, 50, 200)))
    study = run(table, tmp_path / "clusters", ["over"], cluster="patient", repeats=1)
    check_fits(study)
    patients = dict(zip(rows_of(table.drop("y").to_numpy().astype(float)), table["patient"], strict=True))
    for seen, scored in LOG.fits:
        assert not {patients[row] for row in seen} & {patients[row] for rows in scored for row in rows}
    when = np.random.default_rng(4).permutation(200)
    table = marked().with_columns(pl.Series("day", when))
    study = run(table, tmp_path / "time", ["over"], time="day")
    days = dict(zip(rows_of(table.drop("y").to_numpy().astype(float)), when, strict=True))
    assert study.plan.repeats == 1
    judged = [(seen, rows) for seen, scored in LOG.fits for rows in scored]
    assert judged and all(max(days[row] for row in seen) < min(days[row] for row in rows) for seen, rows in judged)


# -- mutants fail -----------------------------------------------------------------------------------------------------------------------


def test_a_remedy_that_peeks_at_test_rows_is_caught(tmp_path: Path) -> None:
    problem = build_problem(marked(), target="y")
    peeking = Peeking("peeking", "data", X=np.asarray(problem.X), y=problem.y)
    with pytest.raises(AssertionError, match="scores rows that it was fitted on"):
        leak_test(tmp_path, [peeking], repeats=1)


def oversampled(problem: Any) -> Any:
    """What people do before they split: minority rows are copied until the classes are equal; nobody knows any more which are copies."""
    rare = np.flatnonzero(problem.y == 1)
    rows = np.concatenate([np.arange(problem.n), np.random.default_rng(0).choice(rare, problem.n - 2 * len(rare))])
    return replace(problem, X=problem.X[rows], y=problem.y[rows], blocks=np.arange(len(rows)), data_hash="oversampled")


def mutate_before_splitting(patch: pytest.MonkeyPatch) -> None:
    """Over-sampling moves before the outer split."""
    patch.setattr(_launch, "build_problem", lambda *args, **options: oversampled(build_problem(*args, **options)))


def mutate_before_inner_splitting(patch: pytest.MonkeyPatch) -> None:
    """Over-sampling moves before the inner split, whose folds no longer know copies."""
    train = _cell.train

    def mutant(problem: Any, protocol: Any, splits: Any, learner: Any, remedy: Any, rows: Any, repeat: Any, fold: Any) -> Any:
        rare = rows[problem.y[rows] == 1]
        return train(problem, protocol, splits, learner, remedy, np.concatenate([rows, rare]), repeat, fold)

    patch.setattr(_cell, "train", mutant)
    patch.setattr(_splits.Splits, "inner_folds", lambda self, rows, repeat, fold: np.random.default_rng(0).integers(0, 3, len(rows)))


def mutate_threshold(patch: pytest.MonkeyPatch) -> None:
    """The threshold is set on the scores of rows the model was fitted on."""
    patch.setattr(_splits.Splits, "inner_pairs", lambda self, train, inner: [(train, np.arange(len(train)))])


def mutate_training_rows(patch: pytest.MonkeyPatch) -> None:
    """Models are fitted on the whole table."""
    patch.setattr(_splits.Splits, "train_index", lambda self, repeat, fold, drop=-1: self.rows)


def mutate_preprocessing(patch: pytest.MonkeyPatch) -> None:
    """Imputing and scaling are fitted on the whole table."""
    fit = _preprocess.Preprocess.fit
    whole = build_problem(marked(), target="y").X
    patch.setattr(_preprocess.Preprocess, "fit", lambda self, X, text=None: (fit(self, whole), (self.clean(X), None))[1])


MUTANTS: list[Callable[[pytest.MonkeyPatch], None]] = [
    mutate_before_splitting,
    mutate_before_inner_splitting,
    mutate_threshold,
    mutate_training_rows,
    mutate_preprocessing,
]


@pytest.mark.parametrize("mutate", MUTANTS)
def test_mutants_turn_the_check_red(mutate: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    with pytest.raises(AssertionError, match="fitted on"):
        leak_test(tmp_path, ["over"], repeats=1)


# -- canaries ---------------------------------------------------------------------------------------------------------------------------


def test_a_shuffled_target_helps_nobody(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(1000, 6)), np.repeat([0, 1], [600, 400])
    X[:, 0] += y
    study = counterpoise.study(
        X, rng.permutation(y), learners=["linear", "trees"], remedies=["weights", "over", "prior"], repeats=1, out=tmp_path, jobs=1
    )
    for question in study.questions:
        assert not [verdict for verdict in study.verdicts(question) if verdict.verdict == "helps"]
    means = study.results.group_by("learner", "remedy").agg(pl.col("balanced_accuracy").mean(), pl.col("auroc").mean())
    assert means["balanced_accuracy"].is_between(0.47, 0.53).all(), means
    assert study.recommendation.is_baseline


def test_the_target_under_another_name_stops_the_study(tmp_path: Path) -> None:
    table = numbers().with_columns(pl.when(pl.col("y") == "yes").then(pl.lit("A")).otherwise(pl.lit("B")).alias("outcome_code"))
    with pytest.raises(InputError, match="'outcome_code' predicts the target alone; leakage"):
        counterpoise.study(table, target="y", learners="linear", out=tmp_path)
    assert not (tmp_path / "study.sqlite").exists()
    kept = counterpoise.study(
        table, target="y", learners="linear", remedies=[], keep="outcome_code", repeats=1, folds=2, out=tmp_path, jobs=1
    )
    assert kept.results["auroc"].min() > 0.99


def test_an_id_is_left_out_and_said(tmp_path: Path) -> None:
    # Rows sorted by class: the row number would tell the target.
    table = numbers().sort("y").with_row_index("customer")
    study = counterpoise.study(table, target="y", learners="linear", remedies=[], repeats=1, folds=2, out=tmp_path, jobs=1)
    assert "customer" not in [feature.source for feature in study.problem.schema.features]
    assert any("customer" in notice for notice in study.problem.notices)
    assert "customer" in study.report().read_text()


def test_the_target_encoding_of_a_row_does_not_know_its_own_target(tmp_path: Path) -> None:
    """A category of unique levels says nothing: a leak would make it a perfect feature in training, and nothing in the test folds."""
    rng = np.random.default_rng(0)
    table = pl.DataFrame({"code": [f"c{i % 150}" for i in rng.permutation(300)], "y": rng.permutation(np.repeat(["a", "b"], 150))})
    study = counterpoise.study(table, target="y", learners="trees", remedies=[], repeats=1, placebo=False, out=tmp_path, jobs=1)
    assert abs(study.results["balanced_accuracy"].mean() - 0.5) < 0.1
    assert json.loads(study.results["extra"][0])["prior"][1] == pytest.approx(0.5, abs=0.01)


def test_the_target_encoding_of_a_copy_does_not_know_the_target_of_the_others(tmp_path: Path) -> None:
    """Copies of a row in other folds of the encoder would tell its class: categories that say nothing would seem to say all."""
    rng = np.random.default_rng(0)
    y = rng.random(1000) < 0.15
    table = pl.DataFrame({"x": rng.normal(size=1000) + 1.2 * y, "shop": [f"s{i}" for i in rng.integers(0, 300, 1000)], "y": y})
    study = counterpoise.study(
        table, target="y", learners="linear", remedies=["over"], repeats=1, folds=3, placebo=False, out=tmp_path, jobs=1
    )
    means = {arm: study.mean_metrics("linear", arm)["auroc"] for arm in ("nothing", "over")}
    assert means["nothing"] > 0.7 and means["over"] > means["nothing"] - 0.02
