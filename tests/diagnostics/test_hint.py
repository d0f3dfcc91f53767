"""The stage that a diagnosis points to: the rule on made-up numbers, its arithmetic, and on tables of which the answer is known."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits, load_wine

from counterpoise.diagnostics import StageHint, diagnose
from counterpoise.diagnostics._hint import DETECTABLE, REALISTIC, detectable_difference, room_beyond_threshold, stage_hint
from counterpoise.diagnostics._shares import shares_from_sums
from counterpoise.groups import Groups
from counterpoise.studies._remedies import BUILT_IN
from counterpoise.studies._verdicts import smallest_detectable


def shares(count, means, loudness):
    """Shares of groups with these mean gradients and these root mean square norms."""
    count, means, loudness = np.array(count), np.array(means, dtype=float), np.array(loudness, dtype=float)
    return shares_from_sums(tuple("abcdefgh"[: len(count)]), count, count[:, None] * means, count * loudness**2)


COUNTS = np.array([95_000, 5_000])
START = shares(COUNTS, [[1.0, 0.0], [1.0, 0.2]], [1.5, 1.5])
UNANIMOUS = shares(COUNTS, [[0.05, 0.0], [-0.95, 0.0]], [0.3, 1.2])
INCOHERENT = shares(COUNTS, [[0.005, 0.0], [-0.095, 0.0]], [0.3, 3.0])


def hint(counts=COUNTS, served=(0.9, 0.5), start=START, fit=UNANIMOUS, loss=(0.1, 1.0), **options):
    return stage_hint(start, fit, np.array(counts), np.array(served), np.array(loss), **options)


def test_a_rare_class_that_stays_behind_is_outvoted():
    found = hint()
    assert (found.stage, found.factor) == ("loss", "many")
    assert found.reason == (
        "Class 'b', 5,000 rows: recall 50.0 % once the threshold has moved, others 90.0 %. It is 5.0 % of the rows: weights, or "
        "resampling, act on that."
    )


def test_loudness_is_named_where_it_explains_more_of_the_shares():
    start = shares(COUNTS, [[1.0, 0.0], [400.0, 0.0]], [1.5, 600.0])
    assert (hint(start=start).stage, hint(start=start).factor) == ("loss", "loud")


def test_a_loud_class_of_many_minds_points_to_the_data():
    found = hint(fit=INCOHERENT)
    assert (found.stage, found.factor) == ("data", "unanimous")
    assert "loud (3, typical 1.6) but not unanimous (coherence +0.00)" in found.reason
    # The same noise in a class that stays behind by nothing is no reason to treat anything.
    assert hint(fit=INCOHERENT, served=(0.9, 0.9)).stage == "nothing"


def test_what_the_threshold_has_done_needs_no_treatment():
    found = hint(served=(0.9, 0.92))
    assert (found.stage, found.factor) == ("nothing", "")
    assert found.reason == "No rare class stays behind once the threshold has moved: the lowest recall is 90.0 % ('a')."


def test_what_could_not_be_seen_is_not_hinted():
    # Room (0.9 - 0.7) / 2 = 0.1, of which a quarter is 0.025; 0.42 sqrt(1/n0 + 1/n1) is that at about 282 rare rows.
    assert hint((1_000_000, 283), (0.9, 0.7)).stage == "loss"
    found = hint((1_000_000, 282), (0.9, 0.7))
    assert (
        found.stage == "nothing" and "is 0.025 of balanced accuracy, and a study of these rows sees differences from 0.025." in found.reason
    )


@pytest.mark.parametrize(
    ("counts", "served", "room", "behind"),
    [
        ([100, 100], [0.9, 0.1], 0.0, [0, 0]),  # nobody is rare
        ([900, 100], [0.7, 0.9], 0.0, [0, 0]),  # the rare class is ahead
        ([600, 500, 60, 40], [0.9, 0.7, 0.6, 0.9], 0.05, [0, 0, 0.2, 0]),
        ([600, 500, 60, 40], [0.9, 0.7, 0.6, 0.4], 0.15, [0, 0, 0.2, 0.4]),
    ],
)
def test_room_is_what_the_rare_lack(counts, served, room, behind):
    found, gaps = room_beyond_threshold(np.array(counts), np.array(served))
    assert found == pytest.approx(room) and gaps == pytest.approx(behind)


def test_the_difference_that_can_be_seen_is_the_one_a_study_prints():
    for rare in (20, 174, 5_000):
        assert detectable_difference(np.array([10**9, rare])) == pytest.approx(smallest_detectable(rare, "linear"), rel=1e-3)
    three = np.array([100, 50, 25])
    assert detectable_difference(three) == pytest.approx(2 * DETECTABLE / 3 * np.sqrt(1 / 100 + 1 / 50 + 1 / 25))
    assert 0 < REALISTIC <= 0.5


def test_regression_a_few_rows_that_make_the_error():
    counts, loss = np.array([700, 250, 40, 10]), np.array([1.0, 1.0, 10.0, 60.0])
    found = hint(counts, start=None, fit=None, loss=loss, kind="range", regression=True)
    assert (found.stage, found.factor) == ("loss", "loud")
    # 600 of the last range and 400 of the one before it, of 1,950 in all.
    assert found.reason == "5.0 % of the rows (2 ranges of 4) make 51 % of the squared error: a loss that grows less fast acts on that."
    spread = hint(counts, start=None, fit=None, loss=np.ones(4), kind="range", regression=True)
    assert spread.stage == "nothing" and spread.reason.startswith("70.0 % of the rows (1 range of 4) make 70 %")
    assert hint(counts, start=None, fit=None, loss=np.zeros(4), kind="range", regression=True).stage == "nothing"


def test_groups_that_pull_against_each_other_point_to_the_gradient():
    counts = np.array([5_000, 4_000, 3_000])
    opposed = shares(counts, [[1.0, 0.0], [-0.6, 0.8], [-0.5, -0.2]], [1.5, 1.5, 1.5])
    found = hint(counts, (0.9, 0.9, 0.9), start=opposed, fit=opposed, kind="group")
    assert (found.stage, found.factor) == ("gradient", "aligned")
    assert "inner products between groups is negative (above 20 %); group 'c' has cosine \N{MINUS SIGN}0." in found.reason
    # Classes of one softmax oppose each other by construction.
    assert hint(counts, (0.9, 0.9, 0.9), start=opposed, fit=opposed, kind="class").stage == "nothing"
    agreeing = shares(counts, [[1.0, 0.0], [1.0, 0.1], [0.9, 0.2]], [1.5, 1.5, 1.5])
    assert hint(counts, (0.9, 0.9, 0.9), start=agreeing, fit=agreeing, kind="group").stage == "nothing"


def test_words_are_stages_of_the_arms():
    assert {"data", "loss"} < {remedy.stage for remedy in BUILT_IN}
    assert StageHint("loss", "many", "Because.").sentence() == "A hint, no proof: treat the loss. Because."
    assert StageHint("nothing", "", "Because.").sentence() == "A hint, no proof: nothing to treat. Because."


def test_a_diagnosis_ends_with_the_hint():
    X, y = load_digits(return_X_y=True)
    diagnosis = diagnose(X, (y == 8).astype(int), ["rest", "eight"])
    assert diagnosis.hinted_stage == diagnosis.stage_hint.stage == "nothing"
    assert diagnosis.summary().splitlines()[-1] == diagnosis.stage_hint.sentence()
    assert diagnosis.stage_hint.reason.startswith("Class 'eight', 174 rows: recall 89.7 % once the threshold has moved, others 92.2 %.")
    # Moving the threshold gives the rare class recall and takes some of the common one.
    assert diagnosis.moved[1] > diagnosis.correct[1] + 0.1 and diagnosis.moved[0] < diagnosis.correct[0]
    np.testing.assert_array_equal(diagnosis.to_frame()["recall_moved"], diagnosis.moved)


@pytest.mark.parametrize("load", [load_breast_cancer, load_wine])
def test_classes_that_are_served_alike_need_nothing(load):
    data = load()
    assert diagnose(data.data, data.target, [str(name) for name in data.target_names]).hinted_stage == "nothing"


def test_well_specified_imbalance_needs_only_the_threshold():
    rng = np.random.default_rng(0)
    y = (rng.random(30_000) < 0.05).astype(int)
    X = rng.normal(size=(30_000, 4)) + 1.2 * y[:, None] * np.array([1, 1, 0, 0])
    diagnosis = diagnose(X, y, ["no", "yes"])
    assert diagnosis.correct[1] < 0.3 and abs(diagnosis.moved[1] - diagnosis.moved[0]) < 0.03
    assert diagnosis.hinted_stage == "nothing"


def test_a_rare_class_that_a_threshold_cannot_reach_is_hinted():
    rng = np.random.default_rng(0)
    n = 20_000
    y = (rng.random(n) < 0.1).astype(int)
    X = rng.normal(size=(n, 4))
    # Most rare rows are far out and easy, the others lie on the wrong side: the head follows those that are many.
    wrong = rng.random(n) < 0.4
    X[:, 0] += np.where(y == 1, np.where(wrong, -2.0, 5.0), 0.0)
    diagnosis = diagnose(X, y, ["no", "yes"])
    assert diagnosis.moved[1] < diagnosis.moved[0] - 0.2
    assert (diagnosis.hinted_stage, diagnosis.stage_hint.factor) == ("loss", "many")


def test_groups_of_an_attribute_have_no_moved_recall():
    X, y = load_breast_cancer(return_X_y=True)
    diagnosis = diagnose(X, y, ["malignant", "benign"], Groups(np.arange(len(y)) % 2, ("even", "odd"), "attribute"))
    assert diagnosis.moved is None and "recall_moved" not in diagnosis.to_frame().columns
    assert diagnosis.hinted_stage == "nothing" and "accuracy" in diagnosis.stage_hint.reason


def test_a_settled_start_says_nothing_of_conflict():
    start = SimpleNamespace(settled=True, conflict=0.9, names=("a", "b", "c"))
    assert stage_hint(start, start, np.array([10, 10, 10]), np.full(3, 0.9), np.ones(3), kind="group").stage == "nothing"
