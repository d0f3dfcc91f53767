"""Metrics of cells against scikit-learn, and what rows add to them against the metrics themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, log_softmax
from sklearn import metrics as sk

from counterpoise.groups import Groups
from counterpoise.metrics import jensen_shannon_by_group
from counterpoise.studies._metrics import (
    BOOTSTRAPPED,
    Repeat,
    calibration_curve,
    cell_metrics,
    contributions,
    decide,
    group_table,
    precision_recall_at_k,
    prior_corrected,
    range_table,
    target_ranges,
    threshold_curve,
    weighted_values,
)

COST = {"fp": 1.0, "fn": 7.0}


def binary(seed: int, n: int = 150) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.2).astype(np.int64)
    y[:2] = 0, 1
    # Rounded scores are tied scores.
    return y, np.round(rng.normal(size=n) * rng.choice([0.5, 2.0, 10.0]) + y, int(rng.integers(1, 6)))


@pytest.mark.parametrize("seed", range(20))
def test_two_classes_agree_with_scikit_learn(seed: int) -> None:
    y, score = binary(seed)
    t = float(np.random.default_rng(seed).normal())
    d, both = (score > t).astype(int), np.stack([expit(-score), expit(score)], axis=1)
    expected = {
        "balanced_accuracy": sk.balanced_accuracy_score(y, d),
        "accuracy": sk.accuracy_score(y, d),
        "precision": sk.precision_score(y, d, zero_division=0),
        "recall": sk.recall_score(y, d),
        "f1": sk.f1_score(y, d),
        "auroc": sk.roc_auc_score(y, score),
        "average_precision": sk.average_precision_score(y, score),
        "log_loss": sk.log_loss(y, both),
        "brier": sk.brier_score_loss(y, both[:, 1]),
        "cost": (sk.confusion_matrix(y, d) * [[0, 1.0], [7.0, 0]]).sum() / len(y),
    }
    assert cell_metrics("binary", y, score, [t], cost=COST) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_more_classes_agree_with_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(4), rng.integers(0, 4, 100)])
    score = log_softmax(3 * rng.normal(size=(104, 4)), axis=1)
    b = rng.normal(size=4)
    d, p = np.argmax(score + b, axis=1), np.exp(score)
    expected = {
        "balanced_accuracy": sk.balanced_accuracy_score(y, d),
        "accuracy": sk.accuracy_score(y, d),
        "f1": sk.f1_score(y, d, average="macro"),
        "auroc": sk.roc_auc_score(y, p, multi_class="ovr"),
        "average_precision": sk.average_precision_score(y, p),
        "log_loss": sk.log_loss(y, p),
        "brier": ((p - np.eye(4)[y]) ** 2).sum(axis=1).mean(),  # scikit-learn 1.6 knows two classes only
    }
    found = cell_metrics("multiclass", y, score, b.tolist())
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_a_regression_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    y, prediction = rng.normal(size=(2, 80))
    expected = {
        "mae": sk.mean_absolute_error(y, prediction),
        "rmse": sk.root_mean_squared_error(y, prediction),
        "r2": sk.r2_score(y, prediction),
    }
    assert cell_metrics("regression", y, prediction) == pytest.approx(expected, abs=1e-12)
    assert cell_metrics("regression", np.ones(5), np.ones(5))["r2"] == 1.0
    assert cell_metrics("regression", np.ones(5), np.zeros(5))["r2"] == 0.0


def test_log_loss_is_finite_and_exact_far_out() -> None:
    y = np.array([0, 1, 0, 1])
    found = cell_metrics("binary", y, np.array([-30.0, 30.0, -1e4, 1e4]), [0.0])["log_loss"]
    # Clipped at the machine epsilon from both sides; log(1 - p) from a rounded p would be off in the third digit here.
    assert found == pytest.approx((2 * np.log1p(np.exp(-30.0)) + 2 * np.finfo(float).eps) / 4, rel=1e-9)
    assert cell_metrics("binary", y, np.array([1e4, -1e4, 1e4, -1e4]), [0.0])["log_loss"] == pytest.approx(-np.log(np.finfo(float).eps))


def test_metrics_that_do_not_exist_are_nan() -> None:
    found = cell_metrics("binary", [0, 0, 0], [0.1, 0.2, 0.3], [1.0])
    assert np.isnan(found["auroc"]) and np.isnan(found["average_precision"])
    assert found["balanced_accuracy"] == 1.0 and found["f1"] == 0.0


def test_single_precision_scores_are_scored_in_double() -> None:
    y, score = binary(3)
    single = score.astype(np.float32)
    assert cell_metrics("binary", y, single, [0.1]) == cell_metrics("binary", y, single.astype(np.float64), [0.1])


# ---- rows


def repeat_of(task: str, seed: int = 0, n: int = 120, folds: int = 4, **more: Any) -> Repeat:
    rng = np.random.default_rng(seed)
    fold = rng.permutation(n) % folds
    if task == "regression":
        y = rng.normal(size=n)
        return Repeat(y, fold, y + rng.normal(size=(3, n)), None, folds, **more)
    classes = 2 if task == "binary" else 4
    y = np.concatenate([np.arange(classes).repeat(folds), rng.integers(0, classes, n - classes * folds)])
    fold[: classes * folds] = np.tile(np.arange(folds), classes)  # every class in every fold
    if task == "binary":
        score = np.round(rng.normal(size=(3, n)) + y, 1)
        return Repeat(y, fold, score, (score > 0.3).astype(np.int64), folds, cost=COST, **more)
    score = log_softmax(rng.normal(size=(3, n, classes)) + 2 * np.eye(classes)[y], axis=2)
    return Repeat(y, fold, score, np.argmax(score, axis=2), folds, **more)


@pytest.mark.parametrize(
    ("task", "metric"),
    [("binary", m) for m in ("balanced_accuracy", "accuracy", "cost", "auroc", "log_loss", "brier")]
    + [("multiclass", m) for m in ("balanced_accuracy", "accuracy", "auroc", "log_loss", "brier")]
    + [("regression", "mae")],
)
def test_cells_of_contributions_are_the_metrics_of_the_cells(task: str, metric: str) -> None:
    repeat = repeat_of(task)
    psi, cells, scale = contributions(metric, repeat)
    sign = -1 if metric in ("cost", "log_loss", "brier", "mae") else 1
    threshold = {"binary": [0.3], "multiclass": [0.0] * 4, "regression": []}[task]
    for a in range(3):
        for k in range(4):
            rows = repeat.fold == k
            found = cell_metrics(task, repeat.y[rows], repeat.score[a, rows], threshold, cost=repeat.cost)
            assert cells[a, k] == pytest.approx(sign * found[metric], abs=1e-12)
        if metric != "auroc":
            whole = cell_metrics(task, repeat.y, repeat.score[a], threshold, cost=repeat.cost)
            assert scale * psi[a].sum() == pytest.approx(sign * whole[metric], abs=1e-12)
    if metric == "auroc":  # ranked within folds: the fold-size-weighted mean of the cells
        np.testing.assert_allclose(scale * psi.sum(axis=1), cells.mean(axis=1), atol=0.03)


def test_auroc_contributions_of_two_classes_average_either_side() -> None:
    repeat = repeat_of("binary")
    psi, cells, scale = contributions("auroc", repeat)
    ones, zeros = (np.array([((repeat.fold == k) & (repeat.y == c)).sum() for k in range(4)]) for c in (1, 0))
    np.testing.assert_allclose(psi[:, repeat.y == 1].sum(axis=1), cells @ ones / ones.sum(), atol=1e-12)
    np.testing.assert_allclose(psi[:, repeat.y == 0].sum(axis=1), cells @ zeros / zeros.sum(), atol=1e-12)
    assert scale == 0.5


def test_a_fold_without_one_class_takes_no_part_in_the_ranking() -> None:
    y = np.array([0, 0, 1, 1, 0, 0])
    fold = np.array([0, 0, 0, 0, 1, 1])
    score = np.array([[0.1, 0.3, 0.2, 0.4, 0.9, 0.8]])
    psi, cells, scale = contributions("auroc", Repeat(y, fold, score, None, 2))
    assert scale * psi.sum() == pytest.approx(0.75)
    assert cells[0, 0] == pytest.approx(0.75) and np.isnan(cells[0, 1])
    assert (psi[0, 4:] == 0).all()


@pytest.mark.parametrize("metric", ["balanced_accuracy", "auroc", "log_loss", "f1", "average_precision"])
def test_an_arm_that_was_not_run_is_nan(metric: str) -> None:
    repeat = repeat_of("binary")
    repeat.score[1] = np.nan
    if metric in BOOTSTRAPPED:
        values = weighted_values(metric, repeat, np.ones((1, 120)))[0]
    else:
        values = contributions(metric, repeat)[0].sum(axis=1)
    assert np.isnan(values).tolist() == [False, True, False]


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_weights_are_repeated_rows(task: str) -> None:
    repeat = repeat_of(task)
    weights = np.random.default_rng(1).integers(0, 4, size=(5, 120)).astype(float)
    f1, precision = (weighted_values(metric, repeat, weights) for metric in ("f1", "average_precision"))
    options = {"average": "macro"} if task == "multiclass" else {}
    for b in range(5):
        rows = np.repeat(np.arange(120), weights[b].astype(int))
        for a in range(3):
            assert f1[b, a] == pytest.approx(sk.f1_score(repeat.y[rows], repeat.decision[a, rows], **options), abs=1e-12)
            folds = [rows[repeat.fold[rows] == k] for k in range(4)]
            each = [sk.average_precision_score(repeat.y[at], repeat.score[a, at]) for at in folds]
            assert precision[b, a] == pytest.approx(np.mean(each), abs=1e-12)


def test_the_worst_group_is_taken_anew_for_every_draw() -> None:
    y = np.ones(4, dtype=np.int64)
    members = [np.array([True, True, False, False]), np.array([False, False, True, True])]
    decision = np.array([[1, 0, 1, 0]])
    repeat = Repeat(y, np.zeros(4, dtype=np.int64), decision.astype(float), decision, 1, members=members)
    weights = np.array([[1.0, 1, 1, 1], [3, 1, 1, 3], [1, 3, 3, 1], [2, 0, 0, 0]])
    assert weighted_values("worst_group_recall", repeat, weights)[:, 0].tolist() == [0.5, 0.25, 0.25, 1.0]


# ---- what the report shows


def test_prior_correction_undoes_a_shift_of_the_prior() -> None:
    # A Gaussian model fitted at equal shares, moved to 10 %: the exact posterior is known.
    x = np.linspace(-2, 3, 11)
    at_half, at_tenth = 2 * x - 2, 2 * x - 2 + np.log(0.1 / 0.9)
    np.testing.assert_allclose(prior_corrected(at_half, [0.9, 0.1], [0.5, 0.5]), at_tenth)
    both = log_softmax(np.stack([np.zeros(11), at_half], axis=1), axis=1)
    moved = prior_corrected(both, [0.9, 0.1], [0.5, 0.5])
    np.testing.assert_allclose(moved[:, 1] - moved[:, 0], at_tenth)
    np.testing.assert_allclose(np.exp(moved).sum(axis=1), 1)


def test_calibration_curve_counts_every_row_once() -> None:
    y, score = binary(1, 500)
    curve = calibration_curve(y, score)
    assert curve.count.sum() == 500
    assert (curve.observed * curve.count).sum() == pytest.approx(y.sum())
    assert (curve.predicted * curve.count).sum() == pytest.approx(expit(score).sum())
    assert ((curve.low <= curve.observed) & (curve.observed <= curve.high)).all()
    assert (np.diff(curve.predicted) > 0).all()
    assert calibration_curve([0, 1, 1], [0.0, 0.0, 0.0]).count.tolist() == [3]


def test_threshold_curve_agrees_with_scikit_learn() -> None:
    y, score = binary(2)
    curve = threshold_curve(y, score)
    for i, t in enumerate(curve.threshold):
        d = (score > t).astype(int)
        assert curve.recall[i] == pytest.approx(sk.recall_score(y, d))
        assert curve.balanced_accuracy[i] == pytest.approx(sk.balanced_accuracy_score(y, d))
        assert curve.precision[i] == pytest.approx(sk.precision_score(y, d, zero_division=1))
        assert curve.alarms[i] == d.sum()


def test_precision_at_k_shares_ties() -> None:
    precision, recall = precision_recall_at_k([1, 1, 0, 0, 0], [1.0, 0.5, 0.5, 0.5, 0.1], [1, 2, 4, 9])
    np.testing.assert_allclose(recall, [0.5, (1 + 1 / 3) / 2, 1, 1])
    np.testing.assert_allclose(precision, [1, (1 + 1 / 3) / 2, 0.5, 0.4])


def test_group_table_judges_groups_of_twenty_positives() -> None:
    y = np.repeat([1, 1, 0, 1], [20, 19, 50, 1])
    groups = Groups(np.repeat([0, 1, 1, -1], [20, 19, 50, 1]), ("large", "small", "empty"), "attribute")
    decision = np.stack([np.ones(90, dtype=int), np.zeros(90, dtype=int)])
    large, small = group_table(y, decision, groups)
    assert (large["group"], large["positives"], large["judged"], large["recall"]) == ("large", 20, True, 0.5)
    assert (small["group"], small["rows"], small["positives"], small["judged"]) == ("small", 69, 19, False)
    assert small["accuracy"] == 0.5
    assert large["recall_low"] < 0.5 < large["recall_high"]


def test_ranges_by_rows_per_bin() -> None:
    y = np.concatenate([np.linspace(0, 0.99, 500), np.linspace(1.0, 1.99, 50), np.linspace(2, 10, 24)])
    ranges = target_ranges(y)
    assert ranges.names == ("many", "medium", "few")
    assert ranges.counts().tolist() == [500, 50, 24]


def test_ranges_by_density_where_a_range_would_be_empty() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=300)
    ranges = target_ranges(y)
    assert ranges.counts().tolist() == [100, 100, 100]
    assert np.abs(y[ranges.ids == 2]).min() > np.abs(y[ranges.ids == 0]).max() - 0.5
    table = range_table(y, np.stack([y + 1, y - 2]), ranges)
    assert [row["range"] for row in table] == ["many", "medium", "few"]
    assert table[0]["mae"] == pytest.approx(1.5) and table[0]["mean_error"] == pytest.approx(-0.5)


def test_decisions_keep_ties_below_the_threshold() -> None:
    assert decide(np.array([0.0, 0.1]), [0.0]).tolist() == [0, 1]
    assert decide(np.zeros((1, 3)), [0.0, 0.0, 0.0]).tolist() == [0]


# -- dependence on groups -----------------------------------------------------------------------------------------------------------------


def _dependent(n: int = 900, classes: int = 2, seed: int = 0) -> Repeat:
    rng = np.random.default_rng(seed)
    cells, fold = rng.integers(-1, 3, n), rng.permutation(n) % 3
    signal = rng.normal(size=(n, classes))
    signal[:, 0] += 0.8 * cells  # of one class: what all have in common a softmax does not see
    score = signal[:, 0] if classes == 2 else log_softmax(signal, axis=1)
    return Repeat(rng.integers(0, classes, n), fold, np.stack([score, np.zeros_like(score)]), None, 3, cells=cells)


@pytest.mark.parametrize("classes", [2, 3])
def test_divergence_is_that_of_the_tenths_of_the_ranking(classes: int) -> None:
    repeat = _dependent(classes=classes)
    psi, cells, scale = contributions("js_divergence", repeat)
    known = repeat.cells >= 0
    columns = repeat.score[0].reshape(900, -1)
    expected = []
    for column in columns.T:
        tenth = np.zeros(900)
        for k in range(3):
            at = np.flatnonzero(repeat.fold == k)
            tenth[at[np.argsort(column[at])]] = np.arange(300) // 30
        expected.append(jensen_shannon_by_group(tenth[known], repeat.cells[known], estimator="hist"))
    assert scale == 1 and -psi[0].sum() == pytest.approx(np.mean(expected), abs=1e-12) and np.mean(expected) > 0.05
    assert (psi[:, ~known] == 0).all() and (psi[1] == 0).all()  # a constant says nothing about the group
    inside = np.array([(known & (repeat.fold == k)).sum() for k in range(3)])
    assert (cells[0] * inside).sum() / inside.sum() == pytest.approx(psi[0].sum(), abs=1e-12)


def test_divergence_does_not_see_a_monotone_change_of_the_scores() -> None:
    repeat = _dependent()
    moved = replace(repeat, score=np.exp(repeat.score / 2) + 5.0 * repeat.fold)
    np.testing.assert_allclose(contributions("js_divergence", moved)[0], contributions("js_divergence", repeat)[0], atol=1e-15)


def test_contributions_of_the_divergence_have_its_variance() -> None:
    values, variances = [], []
    for seed in range(300):
        psi = contributions("js_divergence", _dependent(seed=seed))[0][0]
        values.append(psi.sum())
        variances.append(len(psi) * psi.var(ddof=1))
    assert np.mean(variances) == pytest.approx(np.var(values, ddof=1), rel=0.25)
