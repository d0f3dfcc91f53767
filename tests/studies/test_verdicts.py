"""Verdicts, wording, stopping and recommendation: on paper, and against simulated studies whose truth is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

from counterpoise._errors import InputError
from counterpoise._stats import bonferroni, mean_of_shares, paired_t
from counterpoise.groups import Groups
from counterpoise.studies._differences import Board, arm_values, family_of
from counterpoise.studies._recommendation import (
    Expectation,
    HoldoutVerdict,
    Recommendation,
    bias_corrected_expectation,
    holdout_verdict,
    recommend,
)
from counterpoise.studies._verdicts import Verdict, clearly_harmful, compare, more_repeats_help, smallest_detectable, verdicts

STAGES = {"nothing": "none", "prior": "decision", "weights": "loss", "over": "data", "smote": "data", "placebo": "data"}


def board(
    *effects: float,
    seed: int = 0,
    n: int = 1000,
    positives: int = 200,
    repeats: int = 3,
    noise: float = 0.3,
    arms: tuple[str, ...] = (),
    learner: str = "linear",
    signal: float = 1.5,
    **more: Any,
) -> Board:
    """A baseline and one arm per effect: log-odds that separate the classes by as much more; noise differs by arm and repeat."""
    rng = np.random.default_rng(seed)
    y = np.zeros(n, dtype=np.int64)
    y[:positives] = 1
    fold = np.stack([rng.permutation(n) % 5 for _ in range(repeats)])
    common = rng.normal(size=n)
    gains = np.array([0.0, *effects])[:, None, None]
    score = (signal + gains) * (y - 0.5) + common + noise * rng.normal(size=(len(gains), repeats, n))
    score *= signal
    names = ["nothing", *(arms or [f"arm{i}" for i in range(len(effects))])]
    return Board(learner, names, y, fold, score, (score > 0).astype(np.int64), **more)


def regression(*effects: float, seed: int = 0, n: int = 400, repeats: int = 2, groups: int = 10) -> Board:
    """A baseline and arms whose errors are smaller by the effect, with predictions after the deletion of row groups."""
    rng = np.random.default_rng(seed)
    y = rng.lognormal(size=n)
    fold = np.stack([rng.permutation(n) % 5 for _ in range(repeats)])
    scale = np.array([1.0, *(1.0 - effect for effect in effects)])[:, None, None]
    common = rng.normal(size=n)
    score = y + scale * (common + 0.1 * rng.normal(size=(len(scale), repeats, n)))
    dropped = y + scale * (common + 0.1 * rng.normal(size=(len(scale), groups, n)))
    dropped[:, rng.permutation(n) % groups, np.arange(n)] = np.nan
    return Board("linear", ["nothing", *(f"arm{i}" for i in range(len(effects)))], y, fold, score, dropped=dropped)


def words(found: list[Verdict]) -> list[str]:
    return [verdict.verdict for verdict in found]


# ---- rules


def test_order_of_the_rules() -> None:
    from counterpoise.studies._verdicts import _rule

    assert _rule(0.001, 0.009, 0.01) == "no difference"  # above 0, but too small to matter
    assert _rule(0.001, 0.011, 0.01) == "helps"
    assert _rule(-0.011, -0.001, 0.01) == "harms"
    assert _rule(-0.009, -0.001, 0.01) == "no difference"
    assert _rule(-0.011, 0.001, 0.01) == "undecided"
    assert _rule(0.0, 0.0, 0.0) == "undecided"
    assert _rule(float("nan"), float("nan"), 0.01) == "undecided"


def test_planted_effects_are_found_and_noise_is_not() -> None:
    b = board(1.0, -0.8, 0.0, n=3000, positives=1000, noise=0.05, arms=("better", "worse", "same"))
    assert words(verdicts([b], "decisions", task="binary")) == ["helps", "harms", "no difference"]
    assert words(verdicts([b], "ranking", task="binary")) == ["helps", "harms", "no difference"]


def test_identical_predictions() -> None:
    b = board(0.0, 0.5)
    b.score[1], b.decision[1] = b.score[0], b.decision[0]
    for question in ("decisions", "ranking", "probabilities"):
        for interval in ("rows", "nadeau-bengio"):
            same = verdicts([b], question, task="binary", interval=interval)[0]
            assert (same.estimate, same.low, same.high, same.verdict) == (0.0, 0.0, 0.0, "no difference")
            assert same.reason == "identical predictions"
    alone = verdicts([b.with_arms([0, 1])], "ranking", task="binary")[0]
    assert (alone.low, alone.high) == (0.0, 0.0)


@pytest.mark.parametrize("question", ["decisions", "ranking", "probabilities"])
@pytest.mark.parametrize("interval", ["rows", "nadeau-bengio"])
def test_swapping_arm_and_baseline_negates_the_interval(question: str, interval: str) -> None:
    b = board(0.4)
    there = verdicts([b], question, task="binary", interval=interval)[0]
    back = verdicts([b.with_arms([1, 0])], question, task="binary", interval=interval)[0]
    assert (back.estimate, back.low, back.high) == pytest.approx((-there.estimate, -there.high, -there.low))


def test_a_duplicated_arm_changes_nothing() -> None:
    b = board(0.2, -0.1, 0.1)
    once = verdicts([b], "decisions", task="binary")
    twice = verdicts([b.with_arms([0, 1, 2, 3, 3])], "decisions", task="binary")
    assert twice[:3] == once
    assert twice[3] == once[2]


def test_one_arm_has_the_interval_of_t() -> None:
    b = board(0.2)
    one = verdicts([b], "decisions", task="binary")[0]
    family = family_of([b], "decisions", task="binary")
    cells = family.cells[0].mean(axis=1)
    counts = np.bincount(b.y)
    grain = (1 / counts[0] ** 2 + 1 / counts[1] ** 2) / 4  # one changed row in each class
    assert family.grain == pytest.approx([grain] * len(family.members), rel=1e-12)
    assert family.moments.S[0, 0] > grain
    se = np.sqrt(max(2 * family.moments.S[0, 0] + cells.var(ddof=1) / 3, family.moments.S1[0, 0]))
    assert (one.high - one.low) / 2 == pytest.approx(bonferroni(1, 199) * se)
    assert one.detectable == pytest.approx((bonferroni(1, 199) + 0.84) * se)


def test_the_family_is_all_learners_together() -> None:
    linear, trees = board(0.1, 0.2, learner="linear"), board(0.1, 0.2, learner="trees", seed=0, noise=0.4)
    alone = verdicts([linear], "decisions", task="binary")
    together = verdicts([linear, trees], "decisions", task="binary")
    assert [(v.learner, v.arm) for v in together] == [("linear", "arm0"), ("linear", "arm1"), ("trees", "arm0"), ("trees", "arm1")]
    assert together[0].estimate == pytest.approx(alone[0].estimate)
    assert together[0].high - together[0].low > 1.02 * (alone[0].high - alone[0].low)


def test_shown_only_arms_are_no_part_of_the_family() -> None:
    b = board(0.1, 0.2, arms=("weights", "nothing@0.5"))
    both = verdicts([b], "decisions", task="binary")
    alone = verdicts([b.with_arms([0, 1])], "decisions", task="binary")
    assert (both[0].low, both[0].high) == pytest.approx((alone[0].low, alone[0].high))
    assert both[1].arm == "nothing@0.5" and both[1].high > both[1].low


def test_ropes() -> None:
    b = board(0.0)
    base = arm_values([b], "probabilities", task="binary")["linear", "nothing"]
    assert verdicts([b], "decisions", task="binary")[0].rope == 0.01
    assert verdicts([b], "ranking", task="binary")[0].rope == 0.005
    assert verdicts([b], "probabilities", task="binary")[0].rope == pytest.approx(0.01 * base)
    assert verdicts([b], "decisions", task="binary", metric="cost", cost={"fp": 1, "fn": 5})[0].rope < 0.01
    assert verdicts([b], "decisions", task="binary", rope=0.5)[0].verdict == "no difference"


@pytest.mark.parametrize("metric", ["f1", "accuracy", "cost"])
def test_other_decision_metrics_agree_with_the_mean_over_rows(metric: str) -> None:
    b = board(0.6, -0.6, n=2000, positives=500)
    cost = {"fp": 1.0, "fn": 4.0}
    found = verdicts([b], "decisions", task="binary", metric=metric, cost=cost)
    values = arm_values([b], "decisions", task="binary", metric=metric, cost=cost)
    sign = -1 if metric == "cost" else 1
    for a, verdict in enumerate(found):
        difference = sign * (values["linear", f"arm{a}"] - values["linear", "nothing"])
        assert verdict.estimate == pytest.approx(difference)
        assert verdict.verdict == ("helps", "harms")[a]


def test_a_clearly_worst_group_has_the_moments_of_its_recall() -> None:
    b = board(0.3, positives=400)
    halves = Groups(np.arange(1000) % 2, ("even", "odd"), "attribute")
    decision = b.decision.copy()
    decision[:, :, np.arange(1000) % 4 == 1] = 0  # the odd half loses half of its positives
    b = replace(b, groups={"half": halves}, decision=decision)
    family = family_of([b], "groups", task="binary")
    odd = (b.y == 1) & (halves.ids == 1)
    correct = (decision == 1)[:, :, odd].astype(float)
    phi = correct[1] - correct[0]
    assert family.moments.estimate[0] == pytest.approx(phi.mean())
    assert family.df == odd.sum() - 1
    # 500 draws know a variance to 6 %.
    assert family.moments.S[0, 0] == pytest.approx(phi.mean(axis=0).var() / odd.sum(), rel=0.2)
    assert family.moments.S1[0, 0] == pytest.approx(phi.var(axis=1).mean() / odd.sum(), rel=0.2)
    found = verdicts([b], "groups", task="binary")[0]
    assert (found.group, found.metric, found.rope, found.provisional) == ("half", "worst_group_recall", 0.02, True)


def test_groups_too_few_to_judge_give_no_verdict() -> None:
    b = board(0.3, positives=30)
    groups = {"g": Groups(np.where(np.arange(1000) < 15, 0, 1), ("a", "b"), "attribute")}
    assert verdicts([replace(b, groups=groups)], "groups", task="binary") == []


def test_copies_of_rows_do_not_narrow_the_interval() -> None:
    b = board(0.3, n=400, positives=100)
    twice = replace(
        b,
        y=np.tile(b.y, 2),
        fold=np.tile(b.fold, 2),
        score=np.tile(b.score, 2),
        decision=np.tile(b.decision, 2),
        blocks=np.tile(np.arange(400), 2),
        has_blocks=True,
    )
    once, copied = (verdicts([one], "decisions", task="binary")[0] for one in (b, twice))
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high), rel=0.02)
    blind = verdicts([replace(twice, has_blocks=False)], "decisions", task="binary")[0]
    assert blind.high - blind.low < 0.8 * (once.high - once.low)


def test_rows_that_are_never_tested_are_left_out() -> None:
    b = board(0.3, repeats=1)
    first = np.arange(1000) % 7 == 0
    cut = replace(b, fold=np.where(first, -1, b.fold), score=np.where(first, np.nan, b.score))
    rest = replace(b, y=b.y[~first], fold=b.fold[:, ~first], score=b.score[:, :, ~first], decision=b.decision[:, :, ~first])
    assert verdicts([cut], "ranking", task="binary") == verdicts([rest], "ranking", task="binary")


def test_arms_stopped_early_are_judged_on_their_repeats() -> None:
    b = board(0.3, -0.9, repeats=4)
    b.score[2, 2:] = np.nan
    for question in ("decisions", "ranking", "probabilities"):
        for interval in ("rows", "nadeau-bengio"):
            found = verdicts([b], question, task="binary", interval=interval)
            assert all(np.isfinite([v.estimate, v.low, v.high]).all() for v in found), (question, interval)
    two = replace(b, fold=b.fold[:2], score=b.score[:, :2], decision=b.decision[:, :2])
    stopped, short = (verdicts([one], "decisions", task="binary")[1] for one in (b, two))
    assert stopped.estimate == pytest.approx(short.estimate)
    forced = verdicts([b], "decisions", task="binary", stopped=[("linear", "arm0")])[0]
    assert (forced.verdict, forced.reason) == ("harms", "stopped early")


def test_failed_arms_and_remarks() -> None:
    found = verdicts(
        [board(0.3)],
        "decisions",
        task="binary",
        failed={("linear", "smote"): "MemoryError"},
        reasons={("linear", "arm0"): "constant predictions"},
    )
    assert words(found)[1] == "failed" and found[1].sentence() == "Failed: MemoryError."
    assert "constant predictions" in found[0].sentence()
    assert words(verdicts([board()], "decisions", task="binary")) == []


def test_provisional_learners() -> None:
    linear, trees = board(0.3), board(0.3, learner="trees")
    found = verdicts([linear, trees], "decisions", task="binary")
    assert [v.provisional for v in found] == [False, True]
    assert "rovisional" not in found[0].sentence() and "Provisional" in found[1].sentence()
    assert not verdicts([trees], "decisions", task="binary", calibrated=("trees",))[0].provisional
    assert verdicts([replace(linear, clustered=True)], "decisions", task="binary")[0].provisional


def test_more_classes() -> None:
    rng = np.random.default_rng(0)
    y = rng.choice(3, p=[0.6, 0.3, 0.1], size=1500)
    fold = np.stack([rng.permutation(1500) % 5 for _ in range(2)])
    common = rng.normal(size=(1500, 3))
    gain = np.array([1.0, 2.5, 1.0])[:, None, None, None]
    score = log_softmax(gain * np.eye(3)[y] + common + 0.2 * rng.normal(size=(3, 2, 1500, 3)), axis=-1)
    b = Board("linear", ["nothing", "better", "same"], y, fold, score, np.argmax(score, axis=-1))
    for question in ("decisions", "ranking", "probabilities"):
        better, same = verdicts([b], question, task="multiclass")
        assert better.verdict == "helps" and same.verdict in ("no difference", "undecided")
        assert better.provisional and better.unit == "rows"
    assert words(verdicts([b], "decisions", task="multiclass", metric="f1"))[0] == "helps"


# ---- regression


def test_error_and_tails_of_a_regression() -> None:
    b = regression(0.5, 0.0)
    assert words(verdicts([b], "error", task="regression")) == ["helps", "undecided"]
    better, same = verdicts([b], "tails", task="regression")
    assert better.verdict == "helps" and same.low < 0 < same.high
    assert better.sentence().startswith("Use it: arm0 lowers mean absolute error in the rarest range by 0.")
    assert words(verdicts([b], "error", task="regression", interval="jackknife"))[0] == "helps"


def test_tails_use_the_jackknife() -> None:
    from counterpoise.studies._metrics import target_ranges

    b = regression(0.3)
    few = target_ranges(b.y).ids == 2
    error = np.abs(b.dropped - b.y)[:, :, few]
    deltas = np.nanmean(error[0], axis=1) - np.nanmean(error[1], axis=1)
    se = np.sqrt(0.9 * ((deltas - deltas.mean()) ** 2).sum())
    found = verdicts([b], "tails", task="regression")[0]
    assert (found.high - found.low) / 2 == pytest.approx(bonferroni(1, 9) * se)
    assert found.estimate == pytest.approx(np.abs(b.score[0] - b.y)[:, few].mean() - np.abs(b.score[1] - b.y)[:, few].mean())


def test_tails_without_a_jackknife_are_not_judged() -> None:
    found = verdicts([replace(regression(0.5), dropped=None)], "tails", task="regression")[0]
    assert found.verdict == "undecided" and np.isnan(found.low)
    assert found.sentence().startswith("This data can not tell: the rarest range needs the jackknife")


# ---- wording


def verdict(word: str, estimate: float, low: float, high: float, **more: Any) -> Verdict:
    fields: dict[str, Any] = {"metric": "balanced_accuracy", "question": "decisions", "rope": 0.01}
    return Verdict("smote", "linear", estimate=estimate, low=low, high=high, verdict=word, **(fields | more))


def undecided(limits: str, times: str) -> str:
    return f"This data can not tell: between {limits}. {times} would settle it. Until then keep the baseline."


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (verdict("helps", 0.03, 0.01, 0.05), "Use it: SMOTE raises balanced accuracy by 0.03 (at least 0.01)."),
        (verdict("helps", 0.031, 0.0199, 0.05), "Use it: SMOTE raises balanced accuracy by 0.03 (at least 0.01)."),
        (verdict("helps", 0.012, 0.0042, 0.02), "Use it: SMOTE raises balanced accuracy by 0.01 (at least 0.004)."),
        (
            verdict("helps", 0.24, 0.2, 0.3, metric="log_loss", question="probabilities"),
            "Use it: SMOTE lowers log loss by about 0.24 (at least 0.20).",
        ),
        (
            verdict("helps", 1234.5, 321.9, 2000, metric="mae", question="error"),
            "Use it: SMOTE lowers mean absolute error by 1,234 (at least 321).",
        ),
        (verdict("no difference", 0.001, -0.005, 0.006), "Does not matter: any difference is smaller than 0.01. Keep the simpler one."),
        (
            verdict("no difference", 0.001, -0.002, 0.003, metric="log_loss", rope=0.00341),
            "Does not matter: any difference is smaller than 0.0035. Keep the simpler one.",
        ),
        (
            verdict("harms", -0.24, -0.3, -0.2, metric="log_loss", question="probabilities"),
            "Avoid: makes probabilities worse by about 0.24 log loss.",
        ),
        (verdict("harms", -0.03, -0.05, -0.01), "Avoid: makes decisions worse by 0.03 balanced accuracy."),
        (
            verdict("harms", -0.31, -0.4, -0.2, reason="constant predictions"),
            "Avoid: makes decisions worse by 0.31 balanced accuracy (constant predictions).",
        ),
        (
            verdict("undecided", 0.0125, -0.0125, 0.0375, rope=0.01),
            undecided("-0.01 and +0.04", "About 4 x as many positives"),
        ),
        (
            verdict("undecided", 0.005, -0.02, 0.03, rope=0.0174),
            undecided("-0.02 and +0.03", "About 4 x as many positives"),
        ),
        (
            verdict("undecided", -0.0755, -0.1551, 0.0041, metric="log_loss", rope=0.0045),
            undecided("-0.155 and +0.004", "About 1.1 x as many positives"),
        ),
        (
            verdict("undecided", 0.0, -0.5, 0.5, rope=0.01, unit="rows"),
            undecided("-0.50 and +0.50", "More than 1,000 x as many rows"),
        ),
        (
            verdict("undecided", 0.01, -0.2, 0.22, metric="worst_group_recall", question="groups", group="sex", rope=0.02),
            undecided("-0.20 and +0.22", "About 400 x as many positives"),
        ),
        (
            verdict("harms", -0.1, -0.2, -0.05, metric="worst_group_recall", question="groups", group="sex"),
            "Avoid: makes decisions in the worst group worse by 0.10 worst-group recall (sex).",
        ),
    ],
)
def test_fixed_sentences(found: Verdict, sentence: str) -> None:
    assert found.sentence() == sentence


def test_no_sentence_speaks_of_significance() -> None:
    boards = [board(1.0, 0.1, -0.8, 0.0), board(0.2, learner="trees")]
    found = [v for question in ("decisions", "ranking", "probabilities") for v in verdicts(boards, question, task="binary")]
    text = " ".join(v.sentence() for v in found).lower()
    assert {v.verdict for v in found} >= {"helps", "harms", "undecided"}
    assert "significant" not in text and "p-value" not in text and "nan" not in text


def test_frame_of_verdicts() -> None:
    frame = verdicts([board(0.3, 0.1)], "decisions", task="binary").to_frame()
    assert frame.shape[0] == 2
    assert {"arm", "learner", "question", "estimate", "low", "high", "verdict", "reason", "sentence"} <= set(frame.columns)


# ---- errors


def test_bad_input_is_named() -> None:
    b = board(0.3)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"question": "tails"}, "question: got 'tails'; expected one of decisions, ranking"),
        ({"question": "ranking", "metric": "f1"}, "metric: got 'f1'; expected one of auroc"),
        ({"question": "decisions", "metric": "cost"}, "cost: got None; expected {'fp': a, 'fn': b}"),
        ({"question": "decisions", "interval": "row"}, "interval: got 'row'.*Did you mean 'rows'"),
        ({"question": "decisions", "interval": "jackknife"}, "The jackknife is for the rarest range of a regression"),
        ({"question": "decisions", "rope": -1.0}, "rope: got -1.0"),
    ]
    for options, message in cases:
        question = options.pop("question")
        with pytest.raises(InputError, match=message):
            verdicts([b], question, task="binary", **options)
    with pytest.raises(InputError, match="at least 2 repeats"):
        verdicts([board(0.3, repeats=1)], "decisions", task="binary", interval="nadeau-bengio")
    with pytest.raises(InputError, match=r"boards\['linear'\].decision"):
        verdicts([replace(b, decision=None)], "decisions", task="binary")
    with pytest.raises(InputError, match=r"shape \(2, 3, 999\)"):
        verdicts([replace(b, score=b.score[:, :, 1:])], "ranking", task="binary")
    with pytest.raises(InputError, match="arm: got 'linear/smote'"):
        compare([b], ("linear", "smote"), ("linear", "nothing"), "ranking", task="binary")
    b.score[1] = np.nan
    with pytest.raises(InputError, match="got 'arm0'; expected arms with scores"):
        verdicts([b], "ranking", task="binary")


# ---- comparing, stopping, power


def test_compare_is_the_difference_of_the_estimates() -> None:
    b = board(0.5, 0.2)
    first, second = verdicts([b], "decisions", task="binary")
    found = compare([b], ("linear", "arm0"), ("linear", "arm1"), "decisions", task="binary")
    assert found.estimate == pytest.approx(first.estimate - second.estimate)
    assert (found.arm, found.against) == ("arm0", "arm1")
    other = board(0.5, learner="trees")
    across = compare([b, other], ("trees", "arm0"), ("linear", "nothing"), "decisions", task="binary")
    assert across.against == "linear/nothing" and across.provisional


def test_only_clear_harm_stops_an_arm() -> None:
    b = board(1.0, -1.0, -0.02, repeats=2)
    assert clearly_harmful([b], "decisions", task="binary") == {("linear", "arm1")}
    one = replace(b, fold=b.fold[:1], score=b.score[:, :1], decision=b.decision[:, :1])
    assert clearly_harmful([one], "decisions", task="binary") == set()


def test_repeats_stop_when_the_floor_is_reached() -> None:
    assert more_repeats_help([board(0.1, repeats=1)], "decisions", task="binary")
    assert more_repeats_help([board(0.1, repeats=2, noise=1.0)], "decisions", task="binary")
    assert not more_repeats_help([board(0.1, repeats=8, noise=1.0)], "decisions", task="binary")  # floor
    assert not more_repeats_help([board(1.0, repeats=3, noise=0.01)], "decisions", task="binary")  # nothing varies between repeats


def test_smallest_detectable_difference() -> None:
    assert smallest_detectable(1000, "linear") == pytest.approx(0.0133, abs=1e-4)
    assert smallest_detectable(100, "my own") == pytest.approx(0.051)
    with pytest.raises(InputError, match="n1"):
        smallest_detectable(0, "linear")


# ---- recommendation


def recommended(boards: list[Board], **more: Any) -> Recommendation:
    judged = {question: verdicts(boards, question, task="binary") for question in ("decisions", "ranking", "probabilities")}
    return recommend(boards, judged, primary="decisions", task="binary", stages=STAGES, **more)


def test_the_baseline_unless_a_remedy_earned_it() -> None:
    found = recommended([board(0.02, -0.02, arms=("smote", "weights"))])
    assert found.is_baseline and (found.learner, found.arm) == ("linear", "nothing")
    assert found.summary() == "Recommended: linear without a remedy. No remedy has been shown to help (decisions)."
    two = recommended([board(0.0, arms=("smote",)), board(0.0, arms=("smote",), learner="trees", signal=2.5)])
    assert (two.learner, two.arm) == ("trees", "nothing")
    assert "trees has the best balanced accuracy of the learners" in two.summary()


def test_a_remedy_that_helps() -> None:
    found = recommended([board(0.9, 0.0, arms=("smote", "weights"), n=2000, positives=600)])
    assert found.arm == "smote" and found.verdict is not None
    assert found.summary().startswith("Recommended: linear with SMOTE. Use it: SMOTE raises balanced accuracy by 0.")


def test_harm_elsewhere_rules_an_arm_out_unless_accepted() -> None:
    b = board(0.9, arms=("weights",), n=2000, positives=600)
    b.score[1] += 4.0  # better separated, badly calibrated; the threshold moves along
    found = recommended([b])
    assert found.is_baseline
    assert found.reasons[1] == "linear with weights helps decisions, but harms probabilities."
    assert recommended([b], accept_worse=("probabilities",)).arm == "weights"


def test_dependence_on_groups_does_not_rule_an_arm_out() -> None:
    b = board(0.9, arms=("weights",), n=2000, positives=600)
    sex = (np.random.default_rng(0).random(2000) < 0.5).astype(np.int64)
    b.score[1] += 3.0 * sex  # the order within the groups stays, and the threshold of each is in the right place
    b.groups = {"sex": Groups(sex, ("F", "M"))}
    judged = {question: verdicts([b], question, task="binary") for question in ("decisions", "dependence")}
    assert [found[0].verdict for found in judged.values()] == ["helps", "harms"]
    assert judged["dependence"][0].sentence().startswith("weights raises divergence between groups by 0.")
    assert recommend([b], judged, primary="decisions", task="binary", stages=STAGES).arm == "weights"


def test_help_elsewhere_is_said_where_nothing_is_recommended() -> None:
    judged = {
        "error": [Verdict("lds", "linear", "error", -1.0, -2.0, -0.5, "harms", metric="mae")],
        "tails": [Verdict(arm, "linear", "tails", 1.0, 0.5, 1.5, "helps", metric="mae") for arm in ("lds", "smogn", "placebo")],
    }
    found = recommend([regression(-0.5)], judged, primary="error", task="regression", stages=STAGES)
    rare = "helps predictions in the rarest range"
    assert found.reasons[0].endswith(f" But linear with lds {rare} and linear with smogn {rare}: see there.")


def test_of_ties_the_simpler_stage_and_never_the_placebo() -> None:
    b = board(0.9, 0.9, 1.5, 1.5, arms=("smote", "weights", "placebo", "nothing@0.5"), n=2000, positives=600)
    found = recommended([b])
    assert found.arm == "weights"
    assert found.reasons[1] == "linear with SMOTE helps too, but this data can not tell it from the simpler one."
    clear = recommended([board(2.5, 0.7, arms=("smote", "weights"), n=2000, positives=600)])
    assert clear.arm == "smote"
    assert clear.reasons[1] == "linear with weights helps too, but not as much."


def test_helping_a_bad_learner_is_not_enough() -> None:
    bad = board(0.8, arms=("weights",), n=2000, positives=600)
    good = board(0.0, arms=("weights",), n=2000, positives=600, learner="trees", signal=4.0)
    found = recommended([bad, good])
    assert (found.learner, found.arm) == ("trees", "nothing")
    assert found.reasons[1] == "linear with weights helps linear, but trees without a remedy is still better."


# ---- what to expect


def test_the_winner_among_equals_is_expected_to_gain_nothing() -> None:
    naive, corrected = [], []
    for seed in range(100):
        b = board(*[0.0] * 8, seed=seed, n=300, positives=60, noise=0.8)
        naive.append(max(v.estimate for v in verdicts([b], "decisions", task="binary")))
        corrected.append(bias_corrected_expectation([b], "decisions", task="binary").gain)
    assert np.mean(naive) > 0.01
    assert abs(np.mean(corrected)) < 0.005


def test_a_real_gain_is_kept() -> None:
    b = board(0.6, n=2000, positives=600)
    found = bias_corrected_expectation([b], "decisions", task="binary")
    truth = verdicts([b], "decisions", task="binary")[0].estimate
    assert found.gain == pytest.approx(truth, abs=0.003)
    assert found.value == pytest.approx(arm_values([b], "decisions", task="binary")["linear", "arm0"], abs=0.003)
    assert found.low < found.value < found.high


@pytest.mark.parametrize("metric", ["balanced_accuracy", "accuracy"])
def test_rows_that_were_never_missed_leave_an_interval(metric: str) -> None:
    y = np.repeat([1, 0], [18, 357])
    fold = np.arange(375)[None] % 5
    score = np.where(y == 1, 1.0, -1.0)[None, None] * np.array([1.0, 2.0])[:, None, None]
    perfect = Board("linear", ["nothing", "weights"], y, fold, score, (score > 0).astype(np.int64))
    found = bias_corrected_expectation([perfect], "decisions", task="binary", metric=metric, draws=50)
    least = mean_of_shares([1.0, 1.0], [18, 357]) if metric == "balanced_accuracy" else mean_of_shares([1.0], [375])
    assert (found.value, found.low, found.high) == pytest.approx(least)
    if metric == "balanced_accuracy":
        assert found.sentence() == "Expect balanced accuracy of about 1.00 (0.91 to 1.00)."
    # Copies of a row are one row: with nine distinct positives the interval is wider.
    copied = replace(perfect, blocks=np.where(y == 1, np.arange(375) // 2, np.arange(375)), has_blocks=True)
    assert bias_corrected_expectation([copied], "decisions", task="binary", metric=metric, draws=50).low < found.low


def test_the_arm_that_is_recommended_sets_the_least_interval() -> None:
    y = np.repeat([1, 0], [18, 357])
    score = np.where(y == 1, 1.0, -1.0) * np.ones((2, 1, 1))
    score[0, 0, :9] = -1.0  # the baseline misses half of the positives
    b = Board("linear", ["nothing", "weights"], y, np.arange(375)[None] % 5, score, (score > 0).astype(np.int64))
    options: dict[str, Any] = {"task": "binary", "draws": 50}
    own = bias_corrected_expectation([b], "decisions", chosen=("linear", "nothing"), **options)
    least = mean_of_shares([0.5, 1.0], [18, 357])
    assert own.low <= least[1] + 1e-12
    assert bias_corrected_expectation([b], "decisions", **options).low > least[2]  # that of the better arm


@pytest.mark.parametrize(("question", "metric"), [("ranking", "auroc"), ("probabilities", "log_loss"), ("decisions", "f1")])
def test_expectation_of_other_metrics(question: str, metric: str) -> None:
    b = board(0.6, n=1500, positives=300)
    found = bias_corrected_expectation([b], question, task="binary", metric=metric, draws=50)
    assert found.value == pytest.approx(arm_values([b], question, task="binary", metric=metric)["linear", "arm0"], rel=0.05)
    assert found.upper_limit == (metric == "auroc")


def test_expectation_of_a_baseline_has_no_gain() -> None:
    boards = [board(0.6), board(0.6, learner="trees")]
    found = bias_corrected_expectation(
        boards, "decisions", task="binary", candidates=[("linear", "nothing"), ("trees", "nothing")], draws=20
    )
    assert found.gain == 0.0
    assert "better than" not in found.sentence()


def test_expectation_of_a_regression() -> None:
    b = regression(0.5)
    for question in ("error", "tails"):
        found = bias_corrected_expectation([b], question, task="regression", draws=50)
        assert found.value == pytest.approx(arm_values([b], question, task="regression")["linear", "arm0"], rel=0.1)
        assert found.gain > 0


def test_expectation_sentences() -> None:
    assert Expectation("auroc", 0.94, 0.92, 0.96, 0.0082, 200, True).sentence() == (
        "Expect AUROC of at most 0.94 (0.92 to 0.96), at most 0.008 better than the baseline."
    )
    assert Expectation("balanced_accuracy", 0.8, 0.7, 0.9, -0.002, 200).sentence().endswith("no better than the baseline.")


def test_the_holdout_confirms_contradicts_or_neither() -> None:
    b = board(1.0, n=2000, positives=600, repeats=1)
    base, better = b.score[:, 0]
    d_base, d_better = b.decision[:, 0]
    options: dict[str, Any] = {"question": "decisions", "task": "binary"}
    assert holdout_verdict(b.y, base, better, d_base, d_better, **options).outcome == "confirmed"
    assert holdout_verdict(b.y, better, base, d_better, d_base, **options).outcome == "contradicted"
    same = holdout_verdict(b.y, base, base, d_base, d_base, **options)
    assert (same.outcome, same.low, same.high) == ("not contradicted", 0.0, 0.0)
    recalls = [float((d_base[b.y == c] == c).mean()) for c in (1, 0)]
    mean, low, high = mean_of_shares(recalls, [600, 1400])
    assert (same.value, same.value_low, same.value_high) == pytest.approx((mean, low, high))
    assert same.sentence() == f"On 2,000 rows locked away until now: balanced accuracy {mean:.2f} ({low:.2f} to {high:.2f})."


def test_the_holdout_interval_is_one_plain_comparison() -> None:
    b = board(0.3, n=800, positives=300, repeats=1)
    found = holdout_verdict(b.y, b.score[0, 0], b.score[1, 0], question="probabilities", task="binary")
    loss = np.logaddexp(0, np.where(b.y == 1, -b.score[:, 0], b.score[:, 0]))
    d = loss[0] - loss[1]
    assert found.estimate == pytest.approx(d.mean())
    assert found.value == pytest.approx(loss[1].mean())
    assert (found.high - found.low) / 2 == pytest.approx(bonferroni(1, 299) * d.std(ddof=1) / np.sqrt(800))


def test_evidence_is_part_of_the_summary() -> None:
    plain = recommended([board(0.9, arms=("smote",), n=2000, positives=600)])
    seen = replace(plain, holdout=HoldoutVerdict("not contradicted", 0.01, -0.01, 0.03, "decisions", "balanced_accuracy", 0.8, 500))
    assert seen.summary().endswith("On 500 rows locked away until now: not contradicted (balanced accuracy better by -0.01 to +0.03).")


# ---- claims where nothing is there


def test_null_studies_make_few_claims_and_the_paired_t_many() -> None:
    """Arms that differ from the baseline by a fixed perturbation of the model, worth nothing on average over training sets."""
    claims = {"decisions": 0, "ranking": 0, "probabilities": 0}
    blind = 0
    studies, arms, repeats, n, positives = 60, 8, 3, 400, 120
    for seed in range(studies):
        rng = np.random.default_rng(seed)
        y = np.zeros(n, dtype=np.int64)
        y[:positives] = 1
        x = rng.normal(size=(n, 6)) + 0.7 * y[:, None] * np.array([1, 1, 0, 0, 0, 0])
        fold = np.stack([rng.permutation(n) % 5 for _ in range(repeats)])
        score = np.empty((arms + 1, repeats, n))
        for a in range(arms + 1):
            kept = rng.random(n) < 0.5  # each arm loses its own fixed half of the rows
            for r in range(repeats):
                for k in range(5):
                    train = (fold[r] != k) & kept
                    score[a, r, fold[r] == k] = _discriminant(x[train], y[train], x[fold[r] == k])
        b = Board("linear", ["nothing", *(f"null{a}" for a in range(arms))], y, fold, score, (score > np.log(0.3 / 0.7)).astype(np.int64))
        for question in claims:
            claims[question] += any(v.low > 0 or v.high < 0 for v in verdicts([b], question, task="binary"))
        estimate, se, df = paired_t(family_of([b], "decisions", task="binary").cells.reshape(arms, -1))
        blind += bool((np.abs(estimate) > bonferroni(1, df) * se).any())
    assert max(claims.values()) <= 8  # 5 % of 60 are 3; more than 8 have probability .004
    assert blind > 0.3 * studies  # the same studies show the usual test at fault


def _discriminant(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Linear discriminant analysis in closed form: log-odds of rows ``at``."""
    means = [x[y == c].mean(axis=0) for c in (0, 1)]
    within = sum((x[y == c] - means[c]).T @ (x[y == c] - means[c]) for c in (0, 1)) / (len(y) - 2)
    w = np.linalg.solve(within, means[1] - means[0])
    return (at - (means[0] + means[1]) / 2) @ w + np.log(y.mean() / (1 - y.mean()))
