"""The paired bootstrap: its estimate, its draws, and whether it covers."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from counterpoise._errors import InputError
from counterpoise.metrics import MetricInterval, paired_metric_ci

SCORERS = {"roc_auc": roc_auc_score, "average_precision": average_precision_score}


def sample(seed, n=200, prevalence=0.2, better=0.0):
    rng = np.random.default_rng(seed)
    y = rng.random(n) < prevalence
    shared = rng.normal(size=n)
    return y, y * (1.0 + better) + shared + 0.5 * rng.normal(size=n), y + shared + 0.5 * rng.normal(size=n)


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("metric", SCORERS)
def test_a_name_and_its_function_give_the_same(metric, stratified) -> None:
    y, first, second = sample(0, better=0.3)
    first = np.round(first, 1)  # with ties
    named = paired_metric_ci(y, first, second, metric, n_boot=150, stratified=stratified)
    scorer = SCORERS[metric]
    assert named.estimate == pytest.approx(scorer(y, first) - scorer(y, second), abs=1e-12)
    assert named == pytest.approx(paired_metric_ci(y, first, second, scorer, n_boot=150, stratified=stratified), abs=1e-12)
    assert named.low < named.estimate < named.high


def test_seeds_and_kinds_of_input() -> None:
    y, first, second = sample(1)
    once = paired_metric_ci(y, first, second, "roc_auc", n_boot=100)
    assert once == paired_metric_ci(torch.tensor(y), torch.tensor(first), pl.Series(second), "roc_auc", n_boot=100)
    assert once[1:] != paired_metric_ci(y, first, second, "roc_auc", n_boot=100, seed=1)[1:]
    labels = np.where(y, "yes", "no")
    assert once == paired_metric_ci(labels, first, second, "roc_auc", n_boot=100, pos_label="yes")
    assert isinstance(once, MetricInterval)


def test_swapped_scores_swap_the_interval() -> None:
    y, first, second = sample(2)
    one, other = (paired_metric_ci(y, *pair, "average_precision", n_boot=200) for pair in ((first, second), (second, first)))
    assert one == pytest.approx((-other.estimate, -other.high, -other.low), abs=1e-12)


def test_equal_ranking_has_no_width() -> None:
    y, first, _ = sample(3)
    assert paired_metric_ci(y, first, np.exp(first), "roc_auc", n_boot=100) == (0.0, 0.0, 0.0)


def test_the_interval_covers_and_sees() -> None:
    covered = [
        (lambda ci: ci.low <= 0 <= ci.high)(paired_metric_ci(*sample(seed), "roc_auc", n_boot=200, level=0.9)) for seed in range(100)
    ]
    assert 80 <= sum(covered) <= 98  # 90 % within four standard errors
    assert paired_metric_ci(*sample(0, n=800, better=1.0), "roc_auc", n_boot=200).low > 0


def test_a_draw_without_a_class_is_left_out() -> None:
    y = np.arange(20) == 3
    found = paired_metric_ci(y, np.arange(20) % 7, np.arange(20), "roc_auc", n_boot=200, stratified=False)
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "auc"}, "metric: got 'auc'; expected one of roc_auc, average_precision"),
        ({"n_boot": 10}, "n_boot: got 10"),
        ({"level": 95}, "level: got 95"),
        ({"s2": [1.0]}, "s2: got 1 scores; expected one for each of the 4 labels"),
        ({"s1": [1, 2, float("nan"), 3]}, "s1: got NaN in 1 of 4 rows"),
        ({"y": [0, 0, 0, 0]}, "The positive class, 1, is missing"),
    ],
)
def test_bad_input(change, message) -> None:
    with pytest.raises(InputError, match=message):
        paired_metric_ci(**{"y": [0, 1, 0, 1], "s1": [1, 2, 3, 4], "s2": [4, 3, 2, 1], "metric": "roc_auc"} | change)
