"""From options to a protocol and a plan, and what a budget buys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tests.studies.small import numbers, small_study

import counterpoise
from counterpoise._errors import InputError
from counterpoise.studies import Study, Watcher
from counterpoise.studies._learners import BUILT_IN as LEARNERS
from counterpoise.studies._plan import budgeted, entries_of, make_protocol
from counterpoise.studies._problem import Problem, build_problem
from counterpoise.studies._remedies import as_remedies


def binary(n: int = 240, positives: int = 60) -> Problem:
    return build_problem(numbers(n, positives), target="y")


def line(n: int = 240) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 2))
    return pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": np.exp(0.5 * x[:, 0]) + x[:, 1] + 0.1 * rng.normal(size=n)})


class Told(Watcher):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, level: str, text: str) -> None:
        self.notes.append(text)


# -- protocol ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("positives", "folds"), [(60, 5), (9, 4), (6, 3), (4, 2)])
def test_fewer_folds_where_a_class_is_rare(positives: int, folds: int) -> None:
    protocol = make_protocol(binary(positives=positives))
    assert (protocol.folds, protocol.inner_folds, protocol.trials, protocol.repeats) == (folds, min(3, folds), 1, 5)


@pytest.mark.parametrize(("positives", "share"), [(249, 0.0), (250, 0.2)])
def test_a_fifth_is_locked_away_from_250_positives_on(positives: int, share: float) -> None:
    assert make_protocol(binary(1000, positives)).holdout == share
    assert make_protocol(binary(1000, positives), holdout=False).holdout == 0.0


def test_copies_do_not_count_for_the_holdout_or_the_folds() -> None:
    table = numbers(1000, 240)
    table = pl.concat([table, table.filter(pl.col("y") == "yes")])
    assert make_protocol(build_problem(table, target="y")).holdout == 0.0
    table = numbers(100, 5)
    table = pl.concat([table, *[table.filter(pl.col("y") == "yes")] * 4])
    assert make_protocol(build_problem(table, target="y")).folds == 2


def test_a_regression_has_a_jackknife_and_a_holdout_of_its_own() -> None:
    small, large = (make_protocol(build_problem(numbers(n).drop("y"), target="x0")) for n in (999, 1000))
    assert (small.task, small.metric, small.primary, small.jackknife, small.holdout, large.holdout) == (
        "regression",
        "mae",
        "error",
        10,
        0,
        0.2,
    )


def test_a_time_series_is_run_once() -> None:
    problem = build_problem(numbers().with_columns(day=pl.int_range(240) // 3), target="y", time="day")
    protocol = make_protocol(problem, repeats=7)
    assert (protocol.split, protocol.repeats, protocol.jackknife) == ("time", 1, 0)


def test_a_test_table_is_the_holdout() -> None:
    table = numbers(1000, 400)
    protocol = make_protocol(build_problem(table[:800], target="y", test=table[800:]))
    assert protocol.fixed_test and protocol.holdout == 0.0


@pytest.mark.parametrize(
    ("metric", "cost", "expected"),
    [
        ("auto", None, ("balanced_accuracy", "decisions")),
        ("f1", None, ("f1", "decisions")),
        ("auroc", None, ("balanced_accuracy", "ranking")),
        ("log_loss", None, ("balanced_accuracy", "probabilities")),
        ("auto", {"fp": 1, "fn": 20}, ("cost", "decisions")),
    ],
)
def test_the_metric_chooses_the_primary_question(metric: str, cost: dict[str, float] | None, expected: tuple[str, str]) -> None:
    protocol = make_protocol(binary(), metric=metric, cost=cost)
    assert (protocol.metric, protocol.primary) == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": "auroc", "cost": {"fp": 1, "fn": 2}}, "does not go with cost"),
        ({"metric": "cost"}, "Add cost="),
        ({"metric": "recall"}, "one of auto, balanced_accuracy"),
        ({"cost": {"fp": 1}}, "expected {'fp': a, 'fn': b}"),
        ({"cost": {"fp": -1, "fn": 1}}, "non-negative"),
        ({"cost": {"fp": 0, "fn": 0}}, "not both zero"),
        ({"folds": 1}, r"folds: got 1; expected an integer in \[2, 100\]"),
        ({"repeats": 0}, "repeats: got 0"),
        ({"trials": 1.5}, "trials: got 1.5; expected an integer"),
        ({"seed": -1}, "seed: got -1"),
        ({"rope": -0.1}, "rope for decisions: got -0.1"),
        ({"rope": {"decision": 0.1}}, "Did you mean 'decisions'"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        make_protocol(binary(), **options)
    assert "\n" not in str(caught.value)


def test_costs_need_two_classes() -> None:
    for problem, words in ((build_problem("wine"), "two classes"), (build_problem(numbers().drop("y"), target="x0"), "regression")):
        with pytest.raises(InputError, match=words):
            make_protocol(problem, cost={"fp": 1, "fn": 2})
    # What costs nothing in one direction has no threshold to tune towards.
    assert make_protocol(binary(), cost={"fp": 1, "fn": 2}).cost == {"fp": 1, "fn": 2}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"jobs": 0}, "jobs: got 0"),
        ({"jobs": True}, "jobs: got True"),
        ({"budget": "soon"}, "expected a time such as 90, '90s', '10m' or '2h'"),
        ({"budget": -1}, "budget: got -1"),
        ({"accept_worse": "probability"}, "Did you mean 'probabilities'"),
        ({"engine": "spark"}, "engine: got 'spark'; expected one of local, ray, dask"),
        ({"remedies": "smote2"}, "Did you mean 'smote'"),
    ],
)
def test_options_of_a_study_that_cannot_be_used(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        small_study(numbers(), target="y", out=tmp_path, **options)


# -- plan -------------------------------------------------------------------------------------------------------------------------------


class Plans(Watcher):
    def __init__(self) -> None:
        self.plans: list[Any] = []

    def plan(self, plan: Any) -> None:
        self.plans.append(plan)


def test_the_plan_is_told_before_the_first_fit(tmp_path: Path) -> None:
    watcher = Plans()
    study = small_study(numbers(), target="y", remedies=["weights", "prior", "focal"], repeats=2, folds=3, watcher=watcher, out=tmp_path)
    (plan,) = watcher.plans
    assert [arm.name for arm in plan.arms] == [f"linear/{name}" for name in ("nothing", "nothing@0.5", "placebo", "weights", "prior")]
    assert plan.cells == 3 * 3 * 2 == len(study.results.filter(~pl.col("remedy").is_in(["nothing@0.5", "prior"])))
    assert plan.not_applicable == (("linear", "focal", "only for nets (mlp)"),)
    assert plan.smallest_difference == pytest.approx(0.42 / np.sqrt(60), rel=0.02)


# -- budget -----------------------------------------------------------------------------------------------------------------------------


def shares(seconds: dict[str, float], budget: float, repeats: int = 5) -> tuple[set[str], int, list[str]]:
    """What is kept of linear, trees and mlp with baseline, weights and smote, given the seconds of a cell by arm."""
    entries, _ = entries_of(
        binary(), [LEARNERS[name] for name in ("linear", "trees", "mlp")], as_remedies(["weights", "smote"], placebo=False)
    )
    fitted = [entry for entry in entries if not entry.remedy.shares_scores]
    by_hash = {entry.arm.hash: seconds.get(entry.arm.name, seconds[entry.learner.name]) for entry in fitted}
    kept, bought, shed, cost, _ = budgeted(entries, by_hash, budget=budget, spent=0.0, folds=5, repeats=repeats, jobs=1)
    assert cost == pytest.approx(5 * sum(by_hash[entry.arm.hash] for entry in kept if not entry.remedy.shares_scores))
    return {entry.arm.name for entry in kept if not entry.remedy.shares_scores}, bought, shed


def test_enough_money_keeps_everything() -> None:
    kept, repeats, shed = shares({"linear": 1, "trees": 1, "mlp": 1}, 10_000)
    assert len(kept) == 9 and repeats == 5 and not shed


def test_nets_go_first_then_linear_models_then_the_dearest_arms() -> None:
    seconds = {"linear": 1, "trees": 2, "mlp": 10, "trees/smote": 5}
    kept, repeats, shed = shares(seconds, 200)
    assert {name.split("/")[0] for name in kept} == {"linear", "trees"} and repeats == 3
    kept, _, shed = shares(seconds, 100)
    assert {name.split("/")[0] for name in kept} == {"trees"} and "linear/nothing" in shed
    kept, repeats, shed = shares(seconds, 50)
    assert kept == {"trees/nothing", "trees/weights"} and shed[-1] == "trees/smote" and repeats == 2
    kept, repeats, _ = shares(seconds, 1)
    assert kept == {"trees/nothing"} and repeats == 1


def test_the_jackknife_is_paid_for() -> None:
    """Arms that cost 5 seconds a repeat each: ten rounds cost as much as ten repeats."""
    remedies = as_remedies(["weights", "over", "lds"], placebo=True)
    entries, _ = entries_of(build_problem(line(), target="y"), [LEARNERS[name] for name in ("linear", "trees")], remedies)
    seconds = {entry.arm.hash: 1.0 for entry in entries}
    assert len(entries) == 10

    def bought(budget: float, spent: float = 0.0) -> tuple[int, int, int]:
        kept, repeats, _, cost, rounds = budgeted(entries, seconds, budget=budget, spent=spent, folds=5, repeats=5, jobs=1, jackknife=10)
        assert cost == 5 * len(kept) and (len(kept) == 1 or cost * (repeats + rounds) <= budget - spent)
        return len(kept), repeats, rounds

    assert bought(750) == (10, 5, 10)  # 15 times 50 seconds
    assert bought(749) == (10, 4, 10)
    assert bought(600) == bought(650, spent=50) == (10, 2, 10)
    assert bought(599) == (5, 5, 10)  # one learner less
    # Instead of arms it is the jackknife that goes, and the learner comes back.
    assert bought(300) == (5, 2, 10)
    assert bought(299) == (10, 5, 0)
    assert bought(99) == (5, 3, 0)
    assert bought(1) == (1, 1, 0)


def test_a_regression_keeps_to_its_budget(tmp_path: Path) -> None:
    table = line()
    call: dict[str, Any] = {"target": "y", "learners": "linear", "remedies": ["weights"], "folds": 2, "repeats": 5, "jobs": 1}
    study = counterpoise.study(table, budget="1h", out=tmp_path / "long", trials=1, **call)
    assert (study.plan.jackknife, study.plan.repeats) == (10, 5)
    assert study.results.filter(pl.col("drop") >= 0).height == study.plan.jackknife * 2 * 3
    assert all(np.isfinite(verdict.low) for verdict in study.verdicts("tails"))
    told = Told()
    short = counterpoise.study(table, budget=0.01, out=tmp_path / "short", watcher=told, **call)
    assert any("does not reach for the interval of the rarest range" in text for text in told.notes)
    assert (short.plan.jackknife, short.plan.repeats, short.plan.cells) == (0, 1, 2)
    assert short.results.filter(pl.col("drop") >= 0).height == 0
    opened = Study.open(tmp_path / "short")
    assert opened.plan.jackknife == 0 and Study.open(tmp_path / "long").plan.jackknife == 10


def test_an_arm_that_was_given_up_leaves_the_tails_of_the_others(tmp_path: Path) -> None:
    """Weights for rare targets harm here, and are stopped after two repeats: the jackknife goes on without them."""
    call: dict[str, Any] = {"remedies": ["weights"], "folds": 5, "repeats": 3, "trials": 1, "budget": "1h"}
    study = small_study(line(), target="y", out=tmp_path, **call)
    assert study._stopped() == {("linear", "weights"): "error"}
    tails = {verdict.arm: verdict for verdict in study.verdicts("tails")}
    assert np.isfinite([tails["placebo"].low, tails["placebo"].high]).all() and tails["placebo"].reason == ""
    assert np.isnan(tails["weights"].low) and tails["weights"].reason == "stopped early, before the jackknife"


def test_a_tiny_budget_keeps_the_baseline_and_is_remembered(tmp_path: Path) -> None:
    call: dict[str, Any] = {
        "target": "y",
        "learners": ["linear", "trees"],
        "remedies": ["weights", "over"],
        "jobs": 1,
        "out": tmp_path,
        "folds": 2,
    }
    study = counterpoise.study(numbers(), budget=0.01, **call)
    assert study.plan.repeats == 1
    assert [arm.name for arm in study.plan.arms if arm.remedy not in ("nothing@0.5",)] == ["trees/nothing"]
    assert {"linear/nothing", "trees/over", "trees/weights", "trees/placebo"} <= set(study.plan.shed)
    assert study.plan.seconds_per_repeat is not None and study.plan.seconds_per_repeat > 0
    assert (study.recommendation.learner, study.recommendation.arm) == ("trees", "nothing")
    # Whoever resumes gets the same plan; the page says what was left out.
    again = counterpoise.study(numbers(), budget=0.01, **call)
    assert again.plan.shed == study.plan.shed and [arm.name for arm in again.plan.arms] == [arm.name for arm in study.plan.arms]
    opened = Study.open(tmp_path)
    assert (opened.plan.shed, opened.plan.repeats) == (study.plan.shed, 1)
    assert [arm.name for arm in opened.plan.arms] == [arm.name for arm in study.plan.arms]


def test_a_long_budget_tunes_and_stops_when_repeats_add_nothing(tmp_path: Path) -> None:
    from sklearn.naive_bayes import GaussianNB

    from counterpoise.studies import Learner

    learner = Learner("bayes", lambda task, params, seed: GaussianNB())
    study = small_study(numbers(), target="y", learners=[learner], budget="10m", folds=2, repeats=3, out=tmp_path)
    assert study.protocol.trials == 8
    assert study.results["fits"].unique().to_list() == [8 * 2 + 1]
    assert json.loads(study.results["params"][0]) == {"trial_seed": 0}  # nothing is random: the first trial is as good as any
    assert study.repeats_done >= 2


def test_groups_may_be_arrays_beside_the_table() -> None:
    import numpy as np
    from sklearn.datasets import load_breast_cancer

    import counterpoise

    X, y = load_breast_cancer(return_X_y=True)
    site = np.where(np.arange(len(y)) % 2 == 0, "north", "south")
    study = counterpoise.study(X, y, groups={"site": site}, learners="linear", remedies=["weights"], repeats=1, jobs=1)
    assert study.problem.groups["site"].names == ("north", "south")
    assert study.problem.groups["site"].counts().tolist() == [285, 284]
    assert {verdict.group for verdict in study.verdicts("groups")} == {"site"}
