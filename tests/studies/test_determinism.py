"""One seed, one result: whatever the number of workers, the order of the arms, the company they are in, and how many repeats follow."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from tests.studies.small import BY_TIME, mixed, numbers, small_study

from counterpoise.studies import Study

REMEDIES = ["weights", "over", "smote"]


def table_of(study: Study, remedies: list[str] | None = None, repeats: int = 99) -> pl.DataFrame:
    """All that a seed fixes, of some arms and repeats."""
    frame = study.results.filter(pl.col("repeat") < repeats).drop(BY_TIME)
    frame = frame if remedies is None else frame.filter(pl.col("remedy").is_in(remedies))
    return frame.sort("learner", "remedy", "drop", "repeat", "fold")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return small_study(
        numbers(160, 50),
        target="y",
        learners=["linear", "trees"],
        remedies=REMEDIES,
        repeats=2,
        folds=3,
        out=tmp_path_factory.mktemp("one"),
    )


def test_two_workers_compute_what_one_does(reference: Study, tmp_path: Path) -> None:
    study = small_study(
        numbers(160, 50), target="y", learners=["linear", "trees"], remedies=REMEDIES, repeats=2, folds=3, jobs=2, out=tmp_path
    )
    assert table_of(study).equals(table_of(reference))
    assert len(table_of(study)) == 2 * 6 * 2 * 3


def test_the_order_of_arms_and_other_arms_change_nothing(reference: Study, tmp_path: Path) -> None:
    study = small_study(
        numbers(160, 50), target="y", learners=["forest", "linear"], remedies=["under", "smote", "weights"], repeats=1, folds=3,
        placebo=False, out=tmp_path,
    )  # fmt: skip
    shared = ["nothing", "nothing@0.5", "smote", "weights"]
    ours = table_of(study, shared).filter(pl.col("learner") == "linear")
    theirs = table_of(reference, shared, repeats=1).filter(pl.col("learner") == "linear")
    assert len(ours) == 4 * 3
    assert ours.equals(theirs)


def test_the_same_call_again_gives_the_same_verdicts(reference: Study, tmp_path: Path) -> None:
    study = small_study(numbers(160, 50), target="y", learners=["linear", "trees"], remedies=REMEDIES, repeats=2, folds=3, out=tmp_path)
    for question in study.questions:
        assert study.verdicts(question).to_frame().equals(reference.verdicts(question).to_frame(), null_equal=True)
    assert study.recommendation.summary() == reference.recommendation.summary()


def test_another_seed_draws_other_folds_and_fits(reference: Study, tmp_path: Path) -> None:
    study = small_study(numbers(160, 50), target="y", remedies=["over"], folds=3, seed=1, out=tmp_path)
    ours = table_of(study, ["nothing", "over"])
    theirs = table_of(reference, ["nothing", "over"], repeats=1).filter(pl.col("learner") == "linear")
    assert len(ours) == len(theirs) == 6
    assert not (ours["log_loss"] == theirs["log_loss"]).any()
    assert (study.splits.folds(0) != reference.splits.folds(0)).mean() > 0.5


def test_repeats_of_one_study_differ(reference: Study) -> None:
    losses = table_of(reference, ["over"])["log_loss"]
    assert losses.n_unique() == len(losses)


@pytest.mark.parametrize(("learner", "trials"), [("linear", 3), ("mlp", 1)])
def test_everything_random_is_seeded(learner: str, trials: int, tmp_path: Path) -> None:
    """Text, target encoding, tuning and nets, twice."""
    found = [
        small_study(
            mixed(120), target="y", text="note", learners=learner, remedies=[], trials=trials, folds=2, placebo=False, out=tmp_path / name
        )
        for name in ("a", "b")
    ]
    assert table_of(found[0]).equals(table_of(found[1]))
