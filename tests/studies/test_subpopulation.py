"""The table of a sweep: every run and checkpoint is there, and its numbers are those of a plain loop."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.metrics import accuracy_score, recall_score
from sklearn.naive_bayes import GaussianNB

from counterpoise import Groups
from counterpoise._errors import InputError
from counterpoise.datasets import spurious_feature
from counterpoise.diagnostics import performance_curve
from counterpoise.studies import SubpopulationSweep
from counterpoise.studies._subpopulation import group_scores

rng = np.random.default_rng(0)
Y = rng.integers(2, size=1200)
CORE = rng.normal(size=(1200, 4)) + 0.7 * Y[:, None]
X, ATTRIBUTE = spurious_feature(CORE, Y, agreement=0.85)
GROUPS = np.where(ATTRIBUTE == Y, "agree", "disagree")
TEST = slice(800, None)
HELD = (X[TEST], Y[TEST], GROUPS[TEST])
KNOWN = (X[:800], Y[:800], GROUPS[:800])


def by_group(predicted, groups=GROUPS[TEST], y=Y[TEST]):
    return [accuracy_score(y[groups == name], predicted[groups == name]) for name in ("agree", "disagree")]


class WithCallback(ClassifierMixin, BaseEstimator):
    """A loop of one's own, which says when it wants to be looked at."""

    def fit(self, X, y, callback=None):
        self.last_ = 0.0
        for step in (10, 20):
            self.last_ = step / 100
            callback(step)
        callback(30, predict=lambda rows: np.ones(len(rows), dtype=int))
        return self

    def predict(self, X):
        return (X[:, 0] > self.last_).astype(int)


def test_every_run_of_the_grid_is_there() -> None:
    sweep = SubpopulationSweep(
        {"linear": LogisticRegression(), "trees": GradientBoostingClassifier(n_estimators=6)},
        {"linear": {"C": [0.1, 1.0]}, "trees": [{"max_depth": [1, 2]}, {"learning_rate": [0.5]}]},
        checkpoints=[2, 4],
    ).fit(*KNOWN)
    table = sweep.table_
    assert table.columns == ["run", "step", "majority", "minority", "params"]
    assert table["run"].to_list() == ["linear-0", "linear-1"] + [f"trees-{k}" for k in range(3) for _ in range(3)]
    assert table["step"].to_list() == [1, 1] + [2, 4, 6] * 3
    assert json.loads(table["params"][1]) == {"C": 1.0} and json.loads(table["params"][-1]) == {"learning_rate": 0.5}
    assert (sweep.majority_group_, sweep.minority_groups_) == ("agree", ("disagree",))


def test_the_numbers_are_those_of_a_plain_loop() -> None:
    sweep = SubpopulationSweep(LogisticRegression(), {"C": [0.01, 1.0]}).fit(*KNOWN, test=HELD)
    for row, C in zip(sweep.table_.iter_rows(named=True), (0.01, 1.0), strict=True):
        wanted = by_group(LogisticRegression(C=C).fit(*KNOWN[:2]).predict(HELD[0]))
        assert [row["majority"], row["minority"]] == pytest.approx(wanted, abs=1e-12)
    assert sweep.n_majority_ == (HELD[2] == "agree").sum() and sweep.n_minority_ == (HELD[2] == "disagree").sum()


def test_partial_fit_is_called_once_per_step() -> None:
    sweep = SubpopulationSweep(SGDClassifier(random_state=3), checkpoints=[3, 1, 3]).fit(*KNOWN, test=HELD)
    model, wanted = SGDClassifier(random_state=3), {}
    for step in (1, 2, 3):
        model.partial_fit(*KNOWN[:2], classes=[0, 1])
        wanted[step] = by_group(model.predict(HELD[0]))
    assert sweep.table_["step"].to_list() == [1, 3]
    assert sweep.table_.select("majority", "minority").to_numpy() == pytest.approx(np.array([wanted[1], wanted[3]]), abs=1e-12)


def test_boosting_is_looked_at_while_it_grows() -> None:
    sweep = SubpopulationSweep(GradientBoostingClassifier(n_estimators=5, random_state=0), checkpoints=[1, 4]).fit(*KNOWN, test=HELD)
    stages = list(GradientBoostingClassifier(n_estimators=5, random_state=0).fit(*KNOWN[:2]).staged_predict(HELD[0]))
    assert sweep.table_["step"].to_list() == [1, 4, 5]
    wanted = np.array([by_group(stages[step - 1]) for step in (1, 4, 5)])
    assert sweep.table_.select("majority", "minority").to_numpy() == pytest.approx(wanted, abs=1e-12)


def test_a_callback_says_when() -> None:
    sweep = SubpopulationSweep(WithCallback).fit(*KNOWN, test=HELD)
    assert sweep.table_["step"].to_list() == [10, 20, 30]
    wanted = [by_group((HELD[0][:, 0] > at).astype(int)) for at in (0.1, 0.2)] + [by_group(np.ones(400))]
    assert sweep.table_.select("majority", "minority").to_numpy() == pytest.approx(np.array(wanted), abs=1e-12)


def test_without_checkpoints_a_model_is_fitted_once() -> None:
    sweep = SubpopulationSweep(GaussianNB(), checkpoints=None).fit(*KNOWN, test=HELD)
    assert sweep.table_.rows() == [(("0", 1, *by_group(GaussianNB().fit(*KNOWN[:2]).predict(HELD[0])), "{}"))]


def test_a_factory_gets_the_setting() -> None:
    made = []

    def factory(C=1.0, bias=True):
        made.append((C, bias))
        return LogisticRegression(C=C, fit_intercept=bias)

    SubpopulationSweep(factory, {"C": [0.1, 1.0], "bias": [False]}).fit(*KNOWN)
    assert made == [(0.1, False), (1.0, False)]


def test_several_minorities_have_a_column_each_and_the_lowest_counts() -> None:
    three = np.where(np.arange(1200) % 5 == 0, "far", GROUPS)
    sweep = SubpopulationSweep(LogisticRegression()).fit(X[:800], Y[:800], three[:800], test=(X[TEST], Y[TEST], three[TEST]))
    row = sweep.table_.row(0, named=True)
    assert list(row)[5:] == ["group:agree", "group:disagree", "group:far"]
    assert row["minority"] == min(row["group:disagree"], row["group:far"]) and row["majority"] == row["group:agree"]
    assert sweep.minority_groups_ == ("disagree", "far")
    columns = sweep.table_.select("group:disagree", "group:far")
    assert columns.width == 2


def test_the_split_keeps_the_shares_of_groups_and_labels() -> None:
    sweep = SubpopulationSweep(LogisticRegression(), test_size=0.25).fit(X, Y, GROUPS)
    cells = [((name == GROUPS) & (label == Y)).sum() for name in ("agree", "disagree") for label in (0, 1)]
    assert sweep.n_majority_ == sum(round(0.25 * cell) for cell in cells[:2])
    assert sweep.n_minority_ == sum(round(0.25 * cell) for cell in cells[2:])


def test_same_seed_same_table_in_any_number_of_processes() -> None:
    def swept(**options):
        sweep = SubpopulationSweep(SGDClassifier(), {"alpha": [1e-4, 1e-3]}, checkpoints=[1, 2], **options)
        return sweep.fit(X, Y, GROUPS).table_

    state = np.random.get_state()[1].copy()
    assert swept().equals(swept(n_jobs=2)) and not swept().equals(swept(random_state=1))
    assert np.array_equal(np.random.get_state()[1], state)


def test_frames_strings_and_groups_objects_are_taken() -> None:
    frame = pl.DataFrame({f"x{j}": X[:, j] for j in range(X.shape[1])})
    words = np.where(Y == 1, "yes", "no").tolist()
    named = Groups(np.where(GROUPS == "agree", 1, 0), ("disagree", "agree"), "attribute")
    first = SubpopulationSweep(LogisticRegression()).fit(frame, words, named).table_
    assert first.equals(SubpopulationSweep(LogisticRegression()).fit(X, Y, GROUPS).table_)


def test_rows_of_no_group_are_not_tested_on() -> None:
    ids = np.where(np.arange(400) < 100, -1, (GROUPS[TEST] == "disagree").astype(int))
    held = Groups(ids, ("agree", "disagree"), "attribute")
    sweep = SubpopulationSweep(LogisticRegression()).fit(*KNOWN, test=(X[TEST], Y[TEST], held))
    wanted = by_group(LogisticRegression().fit(*KNOWN[:2]).predict(X[900:]), GROUPS[900:], Y[900:])
    assert sweep.table_.select("majority", "minority").row(0) == pytest.approx(wanted)


def test_a_metric_of_ones_own_and_its_groups() -> None:
    ids, predicted = rng.integers(-1, 4, size=500), rng.integers(2, size=500)
    y = rng.integers(2, size=500)
    members = [ids == k for k in range(4)]
    assert group_scores(y, predicted, ids, 4) == pytest.approx([(y == predicted)[m].mean() for m in members], abs=1e-12)
    wanted = [((y == 1) & (predicted == 1))[m].sum() / (y == 1)[m].sum() for m in members]
    assert group_scores(y, predicted, ids, 4, recall_score) == pytest.approx(wanted, abs=1e-12)
    sweep = SubpopulationSweep(LogisticRegression(), metric=recall_score).fit(*KNOWN, test=HELD)
    said = LogisticRegression().fit(*KNOWN[:2]).predict(HELD[0])
    assert sweep.table_["majority"][0] == pytest.approx(recall_score(HELD[1][HELD[2] == "agree"], said[HELD[2] == "agree"]))


def test_it_is_an_estimator_and_feeds_the_curve() -> None:
    sweep = SubpopulationSweep(SGDClassifier("log_loss"), {"alpha": [1e-5, 1e-4, 1e-3]}, checkpoints=[1, 2, 4])
    assert clone(sweep).get_params()["checkpoints"] == [1, 2, 4]
    table = sweep.fit(*KNOWN, test=HELD).table_
    with pytest.warns(UserWarning, match="fewer than 200"):
        report = performance_curve(np.linspace(0.6, 0.9, len(table)), table["minority"], runs=table["run"], n_minority=sweep.n_minority_)
    assert report.n_runs == 3 and report.n_models == 9


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({}, (X, Y[1:], GROUPS), "y: got 1199 labels, 1200 groups; expected a label and a group for each of the 1200 rows"),
        ({}, (X, Y, ["all"] * 1200), r"groups: got one group \(all\)"),
        ({}, (X, [None, *Y[1:]], GROUPS), "y: got 1 missing labels"),
        ({"test_size": 0}, (X, Y, GROUPS), "test_size: got 0"),
        ({"test_size": 1}, (X, Y, GROUPS), "test_size: got 1; expected a share that leaves rows to train on"),
        ({"checkpoints": [0]}, (X, Y, GROUPS), "checkpoints: got 0"),
        ({"checkpoints": []}, (X, Y, GROUPS), r"checkpoints: got \[\]"),
        ({"estimators": {}}, (X, Y, GROUPS), "estimators: got {}"),
        ({"estimators": 3}, (X, Y, GROUPS), "estimators: got 3"),
        ({"estimators": {"a": GaussianNB()}, "param_grid": {"b": {}}}, (X, Y, GROUPS), "param_grid: .*a grid for each of the estimators a"),
        ({}, (X, Y, np.append(["lone"], GROUPS[1:])), "groups: got no test rows in lone.*Raise test_size"),
    ],
)
def test_what_cannot_be_swept_is_named(options, arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        SubpopulationSweep(**({"estimators": LogisticRegression()} | options)).fit(*arguments)


def test_a_test_set_with_other_groups_is_refused() -> None:
    with pytest.raises(InputError, match="test: got groups elsewhere"):
        SubpopulationSweep(LogisticRegression()).fit(*KNOWN, test=(X[TEST], Y[TEST], ["elsewhere"] * 400))
    with pytest.raises(InputError, match="groups: got no test rows in disagree"):
        SubpopulationSweep(LogisticRegression()).fit(*KNOWN, test=(X[TEST], Y[TEST], ["agree"] * 400))


def test_a_group_with_one_label_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="All test rows of few have one label"):
        SubpopulationSweep(LogisticRegression()).fit(X, Y, np.where((np.arange(1200) % 3 == 0) & (Y == 1), "few", "many"))
