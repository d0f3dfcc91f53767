"""AUROC and AUPRC as averages over positives: against scikit-learn, against the identities, at the ends, and on bad input."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from counterpoise import Groups
from counterpoise._errors import InputError
from counterpoise.metrics import auroc_auprc_decomposition, log_tpr_auc, one_vs_rest
from counterpoise.metrics._curves import aurocs, average_precisions

EXACT = {"rel": 0, "abs": 1e-12}


def problem(seed, *, tied=None):
    """Labels and scores of a random size, prevalence and coarseness."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 400))
    y = rng.random(n) < rng.uniform(0.01, 0.9)
    y[rng.choice(n, 2, replace=False)] = [True, False]
    score = rng.normal(size=n) + rng.uniform(0, 2) * y
    if tied if tied is not None else seed % 2:
        score = np.round(score * rng.choice([0.5, 2.0, 10.0]))
    return y, score, rng


# -- values -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_equals_scikit_learn(seed) -> None:
    y, score, rng = problem(seed)
    found = auroc_auprc_decomposition(y, score)
    assert found.auroc == pytest.approx(roc_auc_score(y, score), **EXACT)
    assert found.auprc == pytest.approx(average_precision_score(y, score), **EXACT)
    weight = rng.exponential(size=len(y))
    found = auroc_auprc_decomposition(y, score, sample_weight=weight)
    assert found.auroc == pytest.approx(roc_auc_score(y, score, sample_weight=weight), **EXACT)
    assert found.auprc == pytest.approx(average_precision_score(y, score, sample_weight=weight), **EXACT)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_theorem_1(seed, weighted) -> None:
    y, score, rng = problem(seed)
    weight = rng.exponential(size=len(y)) if weighted else np.ones(len(y))
    found = auroc_auprc_decomposition(y, score, weight if weighted else None)
    assert found.index.tolist() == np.flatnonzero(y).tolist()
    assert found.weight == pytest.approx(weight[y] / weight[y].sum(), **EXACT)
    assert found.prevalence == pytest.approx(weight[y].sum() / weight.sum(), **EXACT)
    # The definitions, one pair at a time.
    at_least = (score[None, :] >= score[y][:, None]) * weight
    above = (score[None, :] > score[y][:, None]) * weight
    assert found.firing_rate == pytest.approx(at_least.sum(axis=1) / weight.sum(), **EXACT)
    assert found.fpr == pytest.approx(at_least[:, ~y].sum(axis=1) / weight[~y].sum(), **EXACT)
    assert found.auroc_loss == pytest.approx((at_least + above)[:, ~y].sum(axis=1) / 2 / weight[~y].sum(), **EXACT)
    assert found.auroc == pytest.approx(1 - found.weight @ found.auroc_loss, **EXACT)
    assert found.auprc == pytest.approx(1 - found.weight @ found.auprc_loss, **EXACT)
    assert found.auprc == pytest.approx(1 - (1 - found.prevalence) * found.weight @ (found.fpr / found.firing_rate), **EXACT)


def test_without_ties_the_loss_of_auroc_is_the_false_positive_rate() -> None:
    y, score, _ = problem(0, tied=False)
    found = auroc_auprc_decomposition(y, score)
    assert np.array_equal(found.auroc_loss, found.fpr)


@pytest.mark.parametrize(("n", "positives"), [(2, 1), (7, 3), (10, 3), (49, 6), (1000, 77), (997, 996)])
def test_the_ends_are_exact(n, positives) -> None:
    y = np.arange(n) < positives
    tied = auroc_auprc_decomposition(y, np.full(n, 0.1))
    assert (tied.auroc, tied.auprc) == (0.5, positives / n) and tied.auprc == tied.prevalence
    perfect = auroc_auprc_decomposition(y, -np.arange(n))
    assert (perfect.auroc, perfect.auprc) == (1.0, 1.0)
    assert auroc_auprc_decomposition(y, np.arange(n)).auroc == 0.0
    weight = np.random.default_rng(n).exponential(size=n)
    tied = auroc_auprc_decomposition(y, np.zeros(n), weight)
    assert tied.auroc == 0.5 and tied.auprc == tied.prevalence
    assert auroc_auprc_decomposition(y, -np.arange(n), weight).auprc == 1.0


def test_one_positive() -> None:
    found = auroc_auprc_decomposition([0, 0, 1, 0], [4.0, 1.0, 3.0, 2.0])
    assert found.auroc == pytest.approx(2 / 3, **EXACT)
    assert found.auprc == pytest.approx(1 / 2, **EXACT)
    assert found.auprc_loss.shape == (1,)


def test_only_the_order_matters() -> None:
    y, score, _ = problem(3)
    first, second = auroc_auprc_decomposition(y, score), auroc_auprc_decomposition(y, np.exp(score))
    assert (first.auroc, first.auprc) == (second.auroc, second.auprc)
    infinite = np.where(score == score.max(), np.inf, np.where(score == score.min(), -np.inf, score))
    third = auroc_auprc_decomposition(y, infinite)
    assert (first.auroc, first.auprc) == (third.auroc, third.auprc)


def test_whole_weights_are_repeated_rows() -> None:
    y, score, rng = problem(5)
    count = rng.integers(0, 4, len(y))
    count[[np.flatnonzero(y)[0], np.flatnonzero(~y)[0]]] = 2
    weighted = auroc_auprc_decomposition(y, score, count)
    repeated = auroc_auprc_decomposition(np.repeat(y, count), np.repeat(score, count))
    assert weighted.auroc == pytest.approx(repeated.auroc, **EXACT)
    assert weighted.auprc == pytest.approx(repeated.auprc, **EXACT)
    assert weighted.index.tolist() == np.flatnonzero(y & (count > 0)).tolist()


def test_many_weightings_at_once() -> None:
    y, score, rng = problem(7)
    weights = rng.integers(0, 3, (4, len(y))) + (rng.random((4, len(y))) < 0.5)
    each = [auroc_auprc_decomposition(y, score, weight) for weight in weights]
    assert aurocs(score, y, weights) == pytest.approx([found.auroc for found in each], **EXACT)
    assert average_precisions(score, y, weights) == pytest.approx([found.auprc for found in each], **EXACT)
    assert np.isnan(aurocs(score, y, np.where(y, 0.0, 1.0)[None])).all()


# -- what users have ----------------------------------------------------------------------------------------------------------------------

Y, S = [0, 0, 1, 1, 0, 1], [0.125, 0.5, 0.375, 0.75, 0.25, 0.5]


@pytest.mark.parametrize(
    "y",
    [
        Y,
        tuple(Y),
        np.array(Y, dtype=bool),
        np.array(Y) * 2 - 1,
        np.array(Y, dtype=np.float32),
        np.array(Y, dtype=object),
        torch.tensor(Y),
        torch.tensor(Y, dtype=torch.bool),
        pl.Series(Y).cast(pl.Boolean),
        pd.Series(Y, dtype="boolean"),
        pd.Series(Y, dtype="Int64"),
    ],
    ids=lambda y: f"{type(y).__name__}-{getattr(y, 'dtype', '')}",
)
@pytest.mark.parametrize(
    "score",
    [
        S,
        np.array(S, dtype=np.float16),
        (np.array(S) * 8).astype(np.uint8),
        np.array(S, dtype=object),
        torch.tensor(S, requires_grad=True),
        torch.tensor(S, dtype=torch.bfloat16),
        pl.Series(S),
        pd.Series(S, index=range(6, 0, -1)),
        pd.Series(S, dtype="Float64"),
    ],
    ids=lambda s: f"{type(s).__name__}-{getattr(s, 'dtype', '')}",
)
def test_columns_of_all_kinds(y, score) -> None:
    found = auroc_auprc_decomposition(y, score)
    assert found.auroc == pytest.approx(roc_auc_score(Y, S), **EXACT)
    assert found.auprc == pytest.approx(average_precision_score(Y, S), **EXACT)
    assert found.index.tolist() == [2, 3, 5]


@pytest.mark.parametrize("kind", [list, np.array, pl.Series, pd.Series, lambda x: pl.Series(x).cast(pl.Categorical)])
def test_labels_by_name(kind) -> None:
    names = kind(["sick" if label else "well" for label in Y])
    assert auroc_auprc_decomposition(names, S, pos_label="sick").auprc == auroc_auprc_decomposition(Y, S).auprc
    flipped = auroc_auprc_decomposition(names, S, pos_label="well")
    assert flipped.auroc == pytest.approx(1 - roc_auc_score(Y, S), **EXACT)
    assert auroc_auprc_decomposition([2 * label + 1 for label in Y], S, pos_label=3).auprc == auroc_auprc_decomposition(Y, S).auprc


def test_large_whole_scores_keep_their_order() -> None:
    near = 2**60 + np.arange(4)  # in float64 these four are one number
    assert auroc_auprc_decomposition([0, 0, 1, 1], near).auroc == 1.0
    assert auroc_auprc_decomposition([1, 1, 0, 0], np.array([3, 2, 1, 0], dtype=np.uint8)).auroc == 1.0


def test_input_is_left_alone() -> None:
    y, score, rng = problem(9)
    weight = rng.random(len(y))
    before = [part.copy() for part in (y, score, weight)]
    found = auroc_auprc_decomposition(y, score, weight, groups=y)
    assert all(np.array_equal(a, b) for a, b in zip(before, (y, score, weight), strict=True))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.auroc = 1.0


# -- groups -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_groups_are_what_they_are_alone_and_share_the_loss(weighted) -> None:
    rng = np.random.default_rng(1)
    group = rng.choice(["north", "south", "west"], 500)
    y = rng.random(500) < np.where(group == "north", 0.4, 0.1)
    score = np.round(rng.normal(size=500) + y + (group == "north"), 1)
    weight = rng.exponential(size=500) if weighted else None
    found = auroc_auprc_decomposition(y, score, weight, groups=group)
    table = found.by_group
    assert table["group"].to_list() == ["north", "south", "west"] and table["rows"].sum() == 500
    for row in table.rows(named=True):
        own = group == row["group"]
        alone = auroc_auprc_decomposition(y[own], score[own], None if weight is None else weight[own])
        assert (row["auroc"], row["auprc"], row["prevalence"]) == pytest.approx((alone.auroc, alone.auprc, alone.prevalence), **EXACT)
        inside = own[found.index]
        for metric in ("auroc", "auprc"):
            loss = found.weight * getattr(found, f"{metric}_loss")
            assert row[f"{metric}_loss_share"] == pytest.approx(loss[inside].sum() / (1 - getattr(found, metric)), abs=1e-9)
        assert (row["positives"], row["note"]) == (inside.sum(), "")
    assert table["auroc_loss_share"].sum() == pytest.approx(1) and table["auprc_loss_share"].sum() == pytest.approx(1)


def test_a_group_of_one_class_has_no_metric_and_says_so() -> None:
    table = auroc_auprc_decomposition([0, 1, 0, 1, 0, 1], range(6), groups=["a", "a", "b", None, "b", "c"]).by_group
    assert table["group"].to_list() == ["a", "b", "c", "(none)"]
    assert table["auroc"].is_nan().to_list() == [False, True, True, True]
    assert [note.partition(":")[0] for note in table["note"]] == ["", "no positives", "no negatives", "no negatives"]


def test_groups_object_and_empty_groups() -> None:
    groups = Groups([0, 0, 2, 2], ("a", "empty", "c"), "attribute")
    table = auroc_auprc_decomposition([0, 1, 0, 1], [1, 2, 4, 3], groups=groups).by_group
    assert table.select("group", "auroc").rows() == [("a", 1.0), ("c", 0.0)]
    perfect = auroc_auprc_decomposition([0, 1], [0, 1], groups=["a", "a"])
    assert perfect.by_group["auroc_loss_share"].is_nan().all() and "lacks" not in perfect.summary()


def test_summary_and_frame() -> None:
    found = auroc_auprc_decomposition([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], groups=["a", "b", "a", "b"])
    assert found.summary() == (
        "AUROC 0.7500 = 1 - 0.2500, the mean false positive rate at the scores of 2 positives.\n"
        "AUPRC 0.8333 = 1 - 0.5000 x 0.3333, the share of negatives times the mean of false positive rate over firing rate. "
        "Scores that know nothing: 0.5000.\n"
        "Group 'a' has 50.0 % of the positives and holds 100.0 % of what AUROC lacks, 100.0 % of what AUPRC lacks."
    )
    frame = found.to_frame()
    assert frame.columns == ["index", "weight", "fpr", "firing_rate", "auroc_loss", "auprc_loss"] and frame.height == 2


# -- the area under ln TPR ----------------------------------------------------------------------------------------------------------------


def integral(y, score, steps=400_000) -> float:
    """Midpoints of the straight-line ROC curve."""
    from sklearn.metrics import roc_curve

    fpr, tpr, _ = roc_curve(y, score, drop_intermediate=False)
    x = (np.arange(steps) + 0.5) / steps
    return float(np.log(np.interp(x, fpr, tpr)).mean())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_log_tpr_auc_is_the_integral(seed, tied) -> None:
    rng = np.random.default_rng(seed)
    y = rng.random(300) < 0.7
    score = rng.normal(size=300) + 1.5 * y
    score = np.round(score * 2) if tied else score
    score[np.flatnonzero(y)[:3]] = score.max() + 1
    assert log_tpr_auc(y, score) == pytest.approx(integral(y, score), abs=2e-4)


def test_log_tpr_auc_by_hand_and_at_its_ends() -> None:
    assert log_tpr_auc([1, 0, 1, 0], [4, 3, 2, 1]) == pytest.approx(np.log(1 / 2) / 2, **EXACT)
    assert log_tpr_auc([1, 0], [0, 0]) == pytest.approx(-1.0, **EXACT)  # the integral of ln x
    assert log_tpr_auc([0, 1], [0, 1]) == 0.0
    assert log_tpr_auc([0, 1], [1, 0]) == -np.inf


@pytest.mark.parametrize(("prevalence", "within"), [(0.9, 0.02), (0.99, 0.002)])
def test_theorem_2_where_positives_are_common(prevalence, within) -> None:
    rng = np.random.default_rng(0)
    y = rng.random(20_000) < prevalence
    score = rng.normal(size=len(y)) + 1.2 * y
    score[np.flatnonzero(y)[0]] = 100
    found = auroc_auprc_decomposition(y, score)
    odds = (1 - found.prevalence) / found.prevalence
    assert found.auprc == pytest.approx(1 + odds * log_tpr_auc(y, score), abs=within)
    assert found.auprc < 1 - within


# -- more than two classes ----------------------------------------------------------------------------------------------------------------


def test_one_vs_rest() -> None:
    rng = np.random.default_rng(0)
    y = rng.choice(["a", "b", "c"], 300, p=[0.7, 0.2, 0.1])
    score = rng.normal(size=(300, 3)) + (y[:, None] == np.array(["a", "b", "c"]))
    found = one_vs_rest(auroc_auprc_decomposition, y, torch.tensor(score), groups=y)
    assert list(found) == ["a", "b", "c"] and found["a"].by_group is not None
    probability = np.exp(score) / np.exp(score).sum(axis=1, keepdims=True)
    by_class = roc_auc_score(y, probability, multi_class="ovr", average=None)
    again = one_vs_rest(auroc_auprc_decomposition, y.tolist(), probability, classes=("a", "b", "c"))
    assert [part.auroc for part in again.values()] == pytest.approx(by_class, **EXACT)
    assert set(one_vs_rest(log_tpr_auc, y, score)) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"classes": ["a", "b"]}, "one column for each of the 2 classes a, b"), ({"classes": ["a", "b", "d"]}, "classes: got 'd'")],
)
def test_one_vs_rest_bad_input(options, message) -> None:
    with pytest.raises(InputError, match=message):
        one_vs_rest(auroc_auprc_decomposition, ["a", "b", "c"], np.eye(3), **options)


# -- bad input ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "score", "options", "message"),
    [
        ([0, 0], [1, 2], {}, "The positive class, 1, is missing."),
        ([1, 1], [1, 2], {}, "The negative class, 0 or -1, is missing."),
        ([-1, -1], [1, 2], {}, "The positive class, 1, is missing."),
        ([True, True], [1, 2], {}, "The negative class, False, is missing."),
        ([False, False], [1, 2], {}, "The positive class, True, is missing."),
        (["no", "no"], [1, 2], {"pos_label": "yes"}, "The positive class, 'yes', is missing."),
        (["yes", "yes"], [1, 2], {"pos_label": "yes"}, "The negative class, a label other than 'yes', is missing."),
        (["no", "yes"], [1, 2], {}, "y_true: got labels no, yes; expected True and False, 1 and 0, or 1 and -1. Say which one is positive"),
        (["no", "yes"], [1, 2], {"pos_label": "Yes"}, "pos_label: got 'Yes'; expected one of the labels no, yes"),
        ([0, 1, 2], [1, 2, 3], {}, "y_true: got labels 0, 1, 2; .* one_vs_rest"),
        ([0, 1, 2], [1, 2, 3], {"pos_label": 2}, "y_true: got labels 0, 1, 2; expected two classes. one_vs_rest"),
        ([0.0, 0.5, 1.0], [1, 2, 3], {}, "y_true: got labels 0.0, 0.5, 1.0"),
        ([-1, 0, 1], [1, 2, 3], {}, "y_true: got labels -1, 0, 1"),
        ([0, None, 1], [1, 2, 3], {}, "1 missing labels"),
        ([], [], {}, "y_true: got no rows"),
        ([[0, 1]], [1, 2], {}, r"y_true: got an array of shape \(1, 2\)"),
        ([0, 1], [1, 2, 3], {}, "y_score: got 3 scores; expected one for each of the 2 labels"),
        ([0, 1], [1, float("nan")], {}, "y_score: got NaN in 1 of 2 rows"),
        ([0, 1], pl.Series([1.0, None]), {}, "y_score: got NaN in 1 of 2 rows"),
        ([0, 1], pd.Series([1.0, None], dtype="Float64"), {}, "y_score: got NaN in 1 of 2 rows"),
        ([0, 1], ["low", "high"], {}, "y_score: got an array of object; expected numbers"),
        ([0, 1], [1j, 2j], {}, "y_score: got an array of complex128"),
        ([0, 1], [[0.2, 0.8], [0.6, 0.4]], {}, r"y_score\[:, 1\]; one_vs_rest"),
        ([0, 1], [1, 2], {"sample_weight": [1, -1]}, "sample_weight: got -1.0; expected finite weights >= 0"),
        ([0, 1], [1, 2], {"sample_weight": [1, np.inf]}, "sample_weight: got inf"),
        ([0, 1], [1, 2], {"sample_weight": [0, 0]}, "sample_weight: got only zeros"),
        ([0, 1], [1, 2], {"sample_weight": [1, 0]}, "weight 0 for every positive row"),
        ([0, 1], [1, 2], {"sample_weight": [0, 1]}, "weight 0 for every negative row"),
        ([0, 1], [1, 2], {"sample_weight": [1]}, r"sample_weight: got shape \(1,\)"),
        ([0, 1], [1, 2], {"groups": ["a"]}, "groups: got 1 rows; expected a group for each of the 2 rows"),
    ],
)
def test_bad_input(y, score, options, message) -> None:
    with pytest.raises(ValueError, match=message) as error:
        auroc_auprc_decomposition(y, score, **options)
    assert isinstance(error.value, InputError) and "\n" not in str(error.value)


def test_log_tpr_auc_checks_its_input_too() -> None:
    with pytest.raises(InputError, match=re.escape("The positive class, 1, is missing.")):
        log_tpr_auc([0, 0], [1, 2])
