"""The study as its users meet it: what it measures, says, keeps, refuses, and what it does when it is interrupted."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from tests.studies.small import cells, equal_results, mixed, numbers, outer, small_study

import counterpoise
from counterpoise._errors import CounterpoiseError, InputError, StoreError
from counterpoise.datasets import load
from counterpoise.studies import Remedy, Study, Watcher, _cell, load_model

CALL: dict[str, Any] = {
    "target": "y",
    "learners": ["linear", "trees"],
    "remedies": ["weights", "over", "prior"],
    "repeats": 2,
    "folds": 3,
    "jobs": 1,
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return counterpoise.study(numbers(), out=tmp_path_factory.mktemp("study") / "runs", **CALL)


@pytest.fixture
def no_fits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Any fit fails the test."""

    def fit(*args: Any, **options: Any) -> Any:
        raise AssertionError("something was fitted")

    monkeypatch.setattr(_cell, "fit_once", fit)
    monkeypatch.setattr(_cell, "run_cell", fit)
    yield


class Interrupts(Watcher):
    """Ctrl-C after so many cells."""

    def __init__(self, after: int) -> None:
        self.left = after

    def cell(self, done: int, total: int, arm: Any) -> None:
        if arm is not None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


# -- what was measured ------------------------------------------------------------------------------------------------------------------


def test_results_have_one_row_per_cell(study: Study) -> None:
    frame = study.results
    assert len(frame) == 2 * 6 * 2 * 3  # learners, arms, repeats, folds
    assert frame["state"].unique().to_list() == ["done"]
    assert {
        "learner",
        "remedy",
        "stage",
        "repeat",
        "fold",
        "auroc",
        "log_loss",
        "balanced_accuracy",
        "threshold",
        "fits",
        "seconds",
    } <= set(frame.columns)
    assert frame.select("learner", "remedy", "repeat", "fold").is_unique().all()
    assert pl.read_parquet(study.folder / "results.parquet").equals(frame)


def test_arms_that_only_set_a_threshold_share_the_fits_of_the_baseline(study: Study) -> None:
    fitted = study._store.cells()
    assert set(fitted["remedy"]) == {"nothing", "placebo", "weights", "over"}
    for name in ("prior", "nothing@0.5"):
        shared, base = cells(study, name, "linear"), cells(study, "nothing", "linear")
        for column in ("auroc", "log_loss", "fits", "seconds"):
            assert shared[column].equals(base[column])
        assert (shared["balanced_accuracy"] != base["balanced_accuracy"]).any()


def test_verdicts_by_question(study: Study) -> None:
    assert study.questions == ("decisions", "ranking", "probabilities")
    for question in study.questions:
        verdicts = study.verdicts(question)
        assert [verdict.estimate for verdict in verdicts] == sorted((verdict.estimate for verdict in verdicts), reverse=True)
        assert {(verdict.learner, verdict.arm) for verdict in verdicts} >= {("linear", "over"), ("trees", "placebo")}
        assert all(verdict.arm != "nothing" for verdict in verdicts)
        for verdict in verdicts:
            baseline, arm = (cells(study, name, verdict.learner) for name in ("nothing", verdict.arm))
            column, sign = study.metrics[question], -1 if question == "probabilities" else 1
            by_cells = sign * (arm[column] - baseline[column]).mean()
            assert verdict.estimate == pytest.approx(by_cells, abs=5e-3)  # rows are averaged, not cells
            assert verdict.low <= verdict.estimate <= verdict.high
    frame = study.verdicts("decisions").to_frame()
    assert {"arm", "learner", "question", "estimate", "low", "high", "verdict", "reason", "sentence"} <= set(frame.columns)
    assert study.verdicts().to_frame().equals(frame, null_equal=True)


def test_estimates_are_means_over_the_stored_rows(study: Study) -> None:
    y = study.problem.y
    losses = {}
    for arm in ("nothing", "over"):
        scores, _ = study.scores_of("linear", arm)
        assert scores.shape == (2, len(y))
        losses[arm] = np.logaddexp(0, np.where(y == 1, -scores, scores)).mean()
    (verdict,) = [v for v in study.verdicts("probabilities") if (v.learner, v.arm) == ("linear", "over")]
    assert verdict.estimate == pytest.approx(losses["nothing"] - losses["over"], abs=1e-12)


def test_intervals_and_ropes_are_recomputed_without_a_fit(study: Study, no_fits: None) -> None:
    rows, cell = study.verdicts("ranking"), study.verdicts("ranking", interval="nadeau-bengio")
    assert [v.estimate for v in rows] == pytest.approx([v.estimate for v in cell], abs=0.02)
    assert all(a.high - a.low != b.high - b.low for a, b in zip(rows, cell, strict=True) if a.high > a.low)
    wide = study.verdicts("ranking", rope=1.0)
    assert {v.verdict for v in wide} == {"no difference"} and {v.rope for v in wide} == {1.0}
    narrow = study.verdicts("ranking", level=0.5)
    assert all(b.high - b.low <= a.high - a.low for a, b in zip(rows, narrow, strict=True))
    first = study.verdicts("ranking", repeats=1)
    assert [v.estimate for v in first] != [v.estimate for v in rows]
    with pytest.raises(InputError, match="regression"):
        study.verdicts("ranking", interval="jackknife")
    with pytest.raises(InputError, match="Did you mean 'ranking'"):
        study.verdicts("rankings")


def test_comparing_two_arms(study: Study, no_fits: None) -> None:
    there = study.compare("over", "weights", "probabilities", learner="linear")
    back = study.compare("weights", "over", "probabilities", learner="linear")
    assert there.estimate == pytest.approx(-back.estimate) and there.low == pytest.approx(-back.high)
    by_baseline = {v.arm: v.estimate for v in study.verdicts("probabilities") if v.learner == "linear"}
    assert there.estimate == pytest.approx(by_baseline["over"] - by_baseline["weights"], abs=1e-12)
    across = study.compare("linear/nothing", "trees/nothing", "ranking")
    assert across.estimate == pytest.approx(
        cells(study, "nothing", "linear")["auroc"].mean() - cells(study, "nothing", "trees")["auroc"].mean(), abs=5e-3
    )
    with pytest.raises(InputError, match="smote"):
        study.compare("smote", "weights")


def test_the_recommendation_says_what_to_use_and_what_to_expect(study: Study, no_fits: None) -> None:
    recommendation = study.recommendation
    assert recommendation.is_baseline and recommendation.arm == "nothing"
    assert recommendation.expected is not None and recommendation.holdout is None
    assert recommendation.learner in recommendation.summary()
    assert study.expectation.kind == "bias-corrected cross-validation"
    best = max(study.mean_metrics(learner, "nothing")["balanced_accuracy"] for learner in ("linear", "trees"))
    assert abs(study.expectation.value - best) < 0.05


def test_the_table_is_best_first(study: Study) -> None:
    table = study.table()
    own = [row["metric"]["decisions"] for row in table]
    assert own == sorted(own, reverse=True) and len(own) == 12
    (row,) = [row for row in table if (row["arm"], row["learner"]) == ("over", "linear")]
    assert row["metric"]["ranking"] == pytest.approx(cells(study, "over", "linear")["auroc"].mean())
    assert row["values"]["ranking"][3] in ("helps", "no difference", "harms", "undecided")
    losses = [row["metric"]["probabilities"] for row in study.table("probabilities")]
    assert losses == sorted(losses)


# -- models -----------------------------------------------------------------------------------------------------------------------------


def test_the_recommended_model_predicts(study: Study) -> None:
    model = study.fit_recommended()
    predictions = model.predict_frame(numbers(seed=5))
    y = numbers(seed=5)["y"]
    assert set(predictions["prediction"]) == {"yes", "no"}
    assert (predictions["prediction"] == y).mean() > 0.65
    np.testing.assert_allclose(predictions["probability_yes"] + predictions["probability_no"], 1)
    # What was saved with the study says the same.
    saved = load_model(study.folder / "model").predict_frame(numbers(seed=5))
    assert saved["prediction"].equals(predictions["prediction"])
    np.testing.assert_allclose(saved["score"], predictions["score"], rtol=1e-12)


def test_the_recommended_model_of_a_table_of_ones_own(study: Study) -> None:
    table = numbers(400, 100, seed=9)
    whole = study.fit_recommended(table)
    pair = study.fit_recommended(table.drop("y"), table["y"])
    assert whole.predict_frame(table).equals(pair.predict_frame(table))
    assert not whole.predict_frame(table).equals(study.fit_recommended().predict_frame(table))


@pytest.mark.parametrize("options", [{"weight": "w"}, {"cluster": "w"}, {"drop": "w"}])
def test_columns_that_were_no_features_stay_none(options: dict[str, str], tmp_path: Path) -> None:
    table = numbers().with_columns(w=np.random.default_rng(0).integers(1, 40, 240))
    study = small_study(table, target="y", remedies=[], folds=2, out=tmp_path, **options)
    model = study.fit_recommended(table)
    assert [feature.name for feature in model.schema.features] == ["x0", "x1", "x2", "x3"]


# -- folders ----------------------------------------------------------------------------------------------------------------------------


def test_a_finished_study_is_opened_without_a_fit(study: Study, no_fits: None, tmp_path: Path) -> None:
    opened = Study.open(study.folder)
    for question in study.questions:
        assert opened.verdicts(question).to_frame().equals(study.verdicts(question).to_frame(), null_equal=True)
    assert opened.results.equals(study.results, null_equal=True)
    assert opened.recommendation == study.recommendation
    assert opened.report(tmp_path / "page.html").read_text() == study.report().read_text()
    assert repr(opened) == repr(study)


def test_files(study: Study) -> None:
    assert set(study.files) == {"report", "results", "model", "store"}
    page = study.files["report"].read_text()
    assert page.startswith("<!doctype html>") or page.lower().startswith("<!doctype html>")


def test_the_same_call_finds_everything_done(study: Study, no_fits: None) -> None:
    again = counterpoise.study(numbers(), out=study.folder, **CALL)
    assert again.results.equals(study.results, null_equal=True)


@pytest.mark.parametrize("after", [1, 7])
def test_an_interrupted_study_goes_on_where_it_was(after: int, study: Study, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        counterpoise.study(numbers(), out=tmp_path, watcher=Interrupts(after), **CALL)
    half = Study.open(tmp_path)
    assert half.results.filter(pl.col("state") == "done").height == after + sum(
        half.results.filter(pl.col("remedy").is_in(["prior", "nothing@0.5"]))["state"] == "done"
    )
    started = half.results.filter(pl.col("state") == "done")["seconds"].sum()
    resumed = counterpoise.study(numbers(), out=tmp_path, **CALL)
    assert equal_results(resumed.results, study.results)
    kept = resumed.results["seconds"].to_list()
    assert started > 0 and set(half.results.filter(pl.col("state") == "done")["seconds"]) <= set(kept)  # nothing was computed again
    for question in study.questions:
        assert resumed.verdicts(question).to_frame().equals(study.verdicts(question).to_frame(), null_equal=True)


class Deaf(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Ends its training at Ctrl-C and takes it for finished, as nets of skorch do; here it comes in the fit on all rows."""

    def fit(self, X: Any, y: Any) -> Deaf:
        if len(X) == 240:
            with contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        self.model_ = LogisticRegression().fit(X, y)
        self.classes_ = self.model_.classes_
        return self

    def predict_proba(self, X: Any) -> Any:
        return self.model_.predict_proba(X)


def test_half_a_model_is_none(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        small_study(numbers(), target="y", learners={"deaf": Deaf()}, remedies=["over"], out=tmp_path)
    assert Study.open(tmp_path).repeats_done == 1 and not (tmp_path / "model").exists()


def test_a_study_that_has_hardly_begun_has_nothing_to_say(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        counterpoise.study(numbers(), out=tmp_path, watcher=Interrupts(1), **CALL)
    half = Study.open(tmp_path)
    assert half.repeats_done == 0
    with pytest.raises(CounterpoiseError, match="no repeat is finished yet"):
        half.verdicts()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"folds": 4}, "folds: 3 -> 4"),
        ({"remedies": ["weights"]}, "arms: "),
        ({"repeats": 3}, "repeats: 2 -> 3"),
        ({"metric": "f1"}, "metric: balanced_accuracy -> f1"),
        ({"rope": 0.05}, "rope: "),
        ({"cost": {"fp": 1, "fn": 5}}, "cost: None -> {'fp': 1, 'fn': 5}"),
        ({"trials": 2}, "trials: 1 -> 2"),
    ],
)
def test_another_call_on_the_folder_is_refused_by_field(change: dict[str, Any], words: str, study: Study, no_fits: None) -> None:
    with pytest.raises(InputError, match="holds another study") as caught:
        counterpoise.study(numbers(), out=study.folder, **(CALL | change))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_other_data_are_refused(study: Study, no_fits: None) -> None:
    with pytest.raises(InputError, match="data: "):
        counterpoise.study(numbers(seed=1), out=study.folder, **CALL)


def test_folders_without_a_study(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no study"):
        Study.open(tmp_path)


def test_without_a_folder_the_study_goes_with_the_object() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study = counterpoise.study(numbers(), target="y", learners="linear", remedies=[], repeats=1, folds=2, jobs=1)
        folder = study.folder
        assert (folder / "report.html").exists()
        del study
        gc.collect()
    assert not folder.exists()


# -- the hold-out -----------------------------------------------------------------------------------------------------------------------


class Replaced(Remedy):
    """Trains another estimator in place of a baseline that only guesses."""

    def estimator(self, task: str, params: Any, seed: int) -> Any:
        return LogisticRegression() if self.name == "good" else Overconfident()


class Overconfident(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """The ranking and the decisions of a good model, with log-odds 200 times as large."""

    def fit(self, X: Any, y: Any) -> Overconfident:
        self.inner_ = LogisticRegression().fit(X, y)
        self.classes_ = self.inner_.classes_
        return self

    def predict_proba(self, X: Any) -> Any:
        odds = 200 * self.inner_.decision_function(X)
        return np.column_stack([expit(-odds), expit(odds)])


def against_a_guess(remedy: str, out: Path, **options: Any) -> Study:
    """400 positives among 900 rows: a fifth is locked away."""
    return counterpoise.study(
        numbers(900, 400), target="y", learners={"guess": DummyClassifier(strategy="prior")}, remedies=[Replaced(remedy, "model")],
        repeats=2, folds=3, jobs=1, out=out, **options,
    )  # fmt: skip


def test_the_holdout_confirms_the_recommendation_once(tmp_path: Path) -> None:
    study = against_a_guess("good", tmp_path)
    assert (study.recommendation.learner, study.recommendation.arm) == ("guess", "good")
    seen = study.recommendation.holdout
    assert seen is not None and seen.outcome == "confirmed" and seen.rows == 180
    assert study.expectation.kind == "hold-out" and study.expectation.value == pytest.approx(seen.value)
    assert study.expectation.baseline == pytest.approx(seen.value - seen.estimate)
    header = study._store.header
    assert header["holdout_for"] == "guess/good" and header["holdout_opened_at"]
    # The same call again looks at what is known; it does not open the hold-out a second time.
    again = against_a_guess("good", tmp_path)
    assert again.recommendation == study.recommendation
    assert len(again._store.get("holdout_openings")) == 1 and again.warnings == []


def test_a_second_look_for_another_recommendation_is_refused(tmp_path: Path) -> None:
    """An arm that helps decisions and harms probabilities is recommended only with ``accept_worse``."""

    study = against_a_guess("sharp", tmp_path)
    assert study.recommendation.is_baseline
    harmed = [v for v in study.verdicts("probabilities") if v.arm == "sharp"]
    assert harmed[0].verdict == "harms"
    with pytest.raises(InputError, match="a second look, for guess/sharp") as caught:
        against_a_guess("sharp", tmp_path, accept_worse="probabilities")
    assert "--reopen-holdout" in str(caught.value)
    reopened = against_a_guess("sharp", tmp_path, accept_worse="probabilities", reopen_holdout=True)
    assert reopened.recommendation.arm == "sharp"
    assert reopened.recommendation.holdout is not None and reopened.recommendation.holdout.outcome == "confirmed"
    (warning,) = reopened.warnings
    assert "opened 2 times (guess/nothing, guess/sharp)" in warning
    assert "opened 2 times" in reopened.report().read_text()
    assert Study.open(tmp_path).warnings == [warning]


# -- all kinds of problems --------------------------------------------------------------------------------------------------------------


def test_groups_are_judged_by_the_worst(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = numbers(400, 160).with_columns(sex=rng.choice(np.array(["f", "m"]), 400))
    study = small_study(table, target="y", groups="sex", remedies=["weights", "over"], repeats=2, out=tmp_path)
    assert study.questions[-2:] == ("groups", "dependence")
    verdicts = study.verdicts("groups")
    assert {verdict.arm for verdict in verdicts} == {"weights", "over", "placebo", "nothing@0.5"}
    decisions, y, sex = study.decisions_of("linear", "nothing"), study.problem.y, table["sex"].to_numpy()
    worst = np.mean([min(decision[(y == 1) & (sex == name)].mean() for name in ("f", "m")) for decision in decisions])
    half = study.decisions_of("linear", "nothing@0.5")
    other = np.mean([min(decision[(y == 1) & (sex == name)].mean() for name in ("f", "m")) for decision in half])
    (verdict,) = [v for v in verdicts if v.arm == "nothing@0.5"]
    assert verdict.group == "sex" and verdict.metric == "worst_group_recall"
    assert verdict.estimate == pytest.approx(other - worst, abs=0.02)
    assert "sex" in study.report().read_text()


def test_clusters(tmp_path: Path) -> None:
    table = numbers().with_columns(patient=pl.Series(np.random.default_rng(0).integers(0, 60, 240)))
    study = small_study(table, target="y", cluster="patient", out=tmp_path)
    assert study.protocol.split == "clusters" and study.problem.p == 4
    patients = table["patient"].to_numpy()
    assert all(not set(patients[train]) & set(patients[test]) for *_, train, test in outer(study))
    assert all(verdict.provisional for verdict in study.verdicts())


def test_time(tmp_path: Path) -> None:
    table = numbers().with_columns(day=np.random.default_rng(0).permutation(240))
    study = small_study(table, target="y", time="day", repeats=3, out=tmp_path)
    assert study.plan.repeats == 1 and study.problem.p == 4
    day = table["day"].to_numpy()
    assert all(day[train].max() < day[test].min() for *_, train, test in outer(study))
    scores, _ = study.scores_of("linear", "weights")
    first = day < 240 / 6
    assert np.isnan(scores[0, first]).all() and not np.isnan(scores[0, ~first]).any()


def test_a_regression_with_its_tails(tmp_path: Path) -> None:
    study = small_study("diabetes", remedies=["weights", "over"], folds=3, out=tmp_path)
    assert study.questions == ("error", "tails", "dependence") and study.protocol.jackknife == 10
    tails = study.verdicts("tails")
    assert {verdict.arm for verdict in tails} == {"weights", "over", "placebo"}
    assert all(np.isfinite(verdict.low) and verdict.low < verdict.high for verdict in tails)
    assert study.results.filter(pl.col("drop") >= 0).height == 4 * 10 * 3
    assert study.verdicts("tails", interval="jackknife").to_frame().equals(tails.to_frame(), null_equal=True)
    with pytest.raises(InputError, match="at least 2 repeats"):
        study.verdicts("tails", interval="nadeau-bengio")
    y = study.problem.y
    predictions, _ = study.scores_of("linear", "weights")
    base, _ = study.scores_of("linear", "nothing")
    (verdict,) = [v for v in study.verdicts("error") if v.arm == "weights"]
    assert verdict.estimate == pytest.approx(np.abs(base - y).mean() - np.abs(predictions - y).mean())
    opened = Study.open(tmp_path)
    assert opened.verdicts("tails").to_frame().equals(tails.to_frame(), null_equal=True)
    assert isinstance(study.fit_recommended().predict_frame(load("diabetes").frame)["prediction"][0], float)


def test_real_numbers_of_an_abalone(data_folder: Path, tmp_path: Path) -> None:
    study = small_study("abalone", remedies=["weights"], folds=2, placebo=False, out=tmp_path)
    assert study.problem.task == "regression" and study.protocol.holdout == 0.2
    assert study.recommendation.holdout is not None
    assert study.failed == []


def test_more_classes(tmp_path: Path) -> None:
    study = small_study("wine", remedies=["weights", "over", "smote", "prior"], out=tmp_path)
    assert study.failed == [] and study.questions == ("decisions", "ranking", "probabilities")
    scores, offsets = study.scores_of("linear", "smote")
    assert scores.shape == (1, 178, 3) and all(len(offset) == 3 for offset in offsets)
    np.testing.assert_allclose(np.exp(scores).sum(axis=2), 1)
    model = study.fit_recommended()
    table = load("wine")
    assert (model.predict_frame(table.frame)["prediction"] == table.frame[table.target]).mean() > 0.9


def test_everything_at_once(tmp_path: Path) -> None:
    """Gaps, categories, many levels, text, weights, a group and all remedies."""
    table = mixed(200).with_columns(w=np.random.default_rng(0).uniform(0.5, 2, 200))
    study = counterpoise.study(
        table, target="y", text="note", weight="w", groups="color", learners=["linear", "trees"], remedies="all", repeats=1, folds=2,
        jobs=1, out=tmp_path,
    )  # fmt: skip
    assert study.failed == []
    opened = Study.open(tmp_path)
    assert opened.verdicts().to_frame().equals(study.verdicts().to_frame(), null_equal=True)
    assert len(study.fit_recommended().predict_frame(table)) == 200


# -- what fails -------------------------------------------------------------------------------------------------------------------------


class Refuses:
    """An estimator that cannot be fitted."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {}

    def set_params(self, **params: Any) -> Refuses:
        return self

    def fit(self, X: Any, y: Any) -> Refuses:
        raise ValueError("no license for this solver")


def test_a_baseline_that_fails_ends_in_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CounterpoiseError, match=r"no baseline could be fitted: .*no license for this solver") as caught:
        small_study(numbers(), target="y", learners={"mine": Refuses()}, remedies=["over"], folds=2, out=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_learner_that_fails_leaves_the_others(tmp_path: Path) -> None:
    study = small_study(numbers(), target="y", learners={"mine": Refuses(), "good": GaussianNB()}, remedies=["over"], folds=2, out=tmp_path)
    assert {(learner, arm) for learner, arm, _ in study.failed} >= {("mine", "nothing"), ("mine", "over")}
    assert study.recommendation.learner == "good"
    verdicts = {(v.learner, v.arm): v.verdict for v in study.verdicts()}
    assert verdicts["mine", "over"] == "failed" and verdicts["good", "over"] != "failed"
    assert "no license for this solver" in study.report().read_text()
