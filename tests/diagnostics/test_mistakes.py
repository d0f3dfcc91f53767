"""The leverage of mistakes: against swapping the scores and asking scikit-learn, ties included; and what is advised."""

from __future__ import annotations

import dataclasses

import matplotlib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from counterpoise import Groups
from counterpoise._errors import InputError
from counterpoise.diagnostics import metric_advice, mistake_leverage
from counterpoise.metrics import one_vs_rest


def problem(seed, n=120, decimals=None):
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.3
    score = rng.normal(size=n) + y
    return y, score if decimals is None else np.round(score, decimals)


# -- gains --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decimals", [None, 1, 0])
@pytest.mark.parametrize("seed", range(6))
def test_gains_are_what_a_swap_gains(seed, decimals) -> None:
    y, score = problem(seed, decimals=decimals)
    found = mistake_leverage(y, score)
    assert found.auroc == pytest.approx(roc_auc_score(y, score), abs=1e-12)
    assert found.auprc == pytest.approx(average_precision_score(y, score), abs=1e-12)
    assert len(found.pairs) > 5
    for (negative, positive), rank, auroc, auprc in zip(found.pairs, found.rank, found.gain_auroc, found.gain_auprc, strict=True):
        assert not y[negative] and y[positive]
        higher = score[score > score[positive]]
        assert score[negative] == higher.min() and rank == (score >= score[positive]).sum()
        swapped = score.copy()
        swapped[[negative, positive]] = score[[positive, negative]]
        assert auroc == pytest.approx(roc_auc_score(y, swapped) - roc_auc_score(y, score), abs=1e-12)
        assert auprc == pytest.approx(average_precision_score(y, swapped) - average_precision_score(y, score), abs=1e-12)


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_every_mistake_is_found_once(decimals) -> None:
    y, score = problem(11, decimals=decimals)
    expected = []
    for row in np.flatnonzero(y):
        higher = score[score > score[row]]
        beside = np.flatnonzero(~y & (score == higher.min())) if len(higher) else []
        if len(beside):
            expected.append((int(beside[0]), int(row)))
    found = [tuple(pair) for pair in mistake_leverage(y, score).pairs.tolist()]
    assert sorted(found) == sorted(expected) and len(set(found)) == len(found)


def test_without_ties_the_closed_forms_hold() -> None:
    y, score = problem(0, n=1000)
    found = mistake_leverage(y, score)
    P, N = y.sum(), (~y).sum()
    assert found.gain_auroc == pytest.approx(np.full(len(found.rank), 1 / (P * N)), rel=1e-15, abs=0)
    k = found.rank
    T = np.cumsum(y[np.argsort(-score)])[k - 1]
    assert found.gain_auprc == pytest.approx(T / (k * (k - 1)) / P, rel=1e-14, abs=0)
    assert (np.diff(k) > 0).all()
    assert spearmanr(found.gain_auprc, k).statistic < -0.99
    tenth = len(k) // 10
    assert found.gain_auprc[:tenth].sum() > 20 * found.gain_auprc[-tenth:].sum()
    assert found.first_tenth > 0.2 and found.gini > 0.5


def test_gini() -> None:
    found = mistake_leverage([0, 1, 0, 0, 1, 1], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    a, b = found.gain_auprc
    assert found.gini == pytest.approx(abs(a - b) / (2 * (a + b)), abs=1e-12)


@pytest.mark.parametrize("score", [np.zeros(6), np.arange(6)], ids=["all tied", "perfect"])
def test_no_mistakes(score) -> None:
    found = mistake_leverage([0, 0, 0, 1, 1, 1], score, groups=list("abcabc"))
    assert found.pairs.shape == (0, 2) and found.to_frame().height == 0
    assert np.isnan(found.gini) and np.isnan(found.first_tenth)
    assert found.by_group["mistakes"].to_list() == [0, 0, 0] and found.by_group["auprc_share"].is_nan().all()
    assert "no positive is ranked right below a negative" in found.summary()
    for use in ("classification", "retrieval", "per_group_retrieval"):
        assert "nan" not in metric_advice([0, 0, 0, 1, 1, 1], score, list("abcabc"), use).summary()
    assert found.plot().axes


def test_there_are_never_more_mistakes_than_positives() -> None:
    rng = np.random.default_rng(0)
    y, score = rng.random(5000) < 0.5, rng.integers(0, 2, 5000)
    found = mistake_leverage(y, score)
    assert len(found.pairs) == (y & (score == 0)).sum()
    assert found.pairs[:, 0].tolist() == [np.flatnonzero(~y & (score == 1))[0]] * len(found.pairs)


def test_infinite_and_unsigned_scores() -> None:
    expected = mistake_leverage([0, 1, 0, 1], [3, 2, 1, 0]).gain_auprc
    for score in ([np.inf, 2, 1, -np.inf], np.array([3, 2, 1, 0], dtype=np.uint8), torch.tensor([3, 2, 1, 0], dtype=torch.bfloat16)):
        assert np.array_equal(mistake_leverage([0, 1, 0, 1], score).gain_auprc, expected)


# -- groups -------------------------------------------------------------------------------------------------------------------------------


def drifting(n=2000, seed=0):
    """Two calibrated groups that are ranked equally well within, one with many more positives."""
    rng = np.random.default_rng(seed)
    group = rng.choice(["common", "rare"], n)
    prevalence = np.where(group == "common", 0.3, 0.05)
    y = rng.random(n) < prevalence
    return y, rng.normal(size=n) + 1.5 * y + np.log(prevalence / (1 - prevalence)) / 1.5, group


def test_shares_of_groups() -> None:
    y, score, group = drifting()
    found = mistake_leverage(y, score, group)
    table = found.by_group
    assert table["group"].to_list() == ["common", "rare"]
    for row in table.rows(named=True):
        own = group[found.pairs[:, 1]] == row["group"]
        assert row["mistakes"] == own.sum() and row["positives"] == (y & (group == row["group"])).sum()
        for metric in ("auroc", "auprc"):
            gain = getattr(found, f"gain_{metric}")
            assert row[f"gain_{metric}"] == pytest.approx(gain[own].sum(), rel=1e-12)
            assert row[f"{metric}_share"] == pytest.approx(gain[own].sum() / gain.sum(), rel=1e-12)
    common = table.row(0, named=True)
    assert common["auprc_share"] > common["auroc_share"] + 0.05
    assert "Group 'common' has" in found.summary()


@pytest.mark.parametrize("kind", [list, np.array, pl.Series, pd.Series, Groups.from_labels], ids=lambda kind: kind.__name__)
def test_groups_of_all_kinds(kind) -> None:
    y, score, group = drifting(400)
    assert mistake_leverage(y, score, kind(group.tolist())).by_group.equals(mistake_leverage(y, score, group).by_group)


def test_rows_without_a_group_are_counted() -> None:
    table = mistake_leverage([0, 1, 0, 1], [4, 3, 2, 1], groups=["a", None, "a", "b"]).by_group
    assert table.select("group", "positives", "mistakes").rows() == [("a", 0, 0), ("b", 1, 1), ("(none)", 1, 1)]


def test_one_vs_rest() -> None:
    y = np.array(["a", "b", "c", "a", "b", "c"])
    found = one_vs_rest(mistake_leverage, y, np.random.default_rng(0).normal(size=(6, 3)), groups=[0, 1] * 3)
    assert list(found) == ["a", "b", "c"] and all(part.by_group.height == 2 for part in found.values())


def test_frozen_and_framed() -> None:
    y, score, group = drifting(300)
    found = mistake_leverage(y, score, group)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.gini = 0.0
    frame = found.to_frame()
    assert frame.columns == ["negative", "positive", "rank", "gain_auroc", "gain_auprc"] and frame.height == len(found.rank)


# -- advice -------------------------------------------------------------------------------------------------------------------------------


def test_advice_by_use() -> None:
    y, score, group = drifting()
    advice = {use: metric_advice(y, score, group, use) for use in ("classification", "retrieval", "per_group_retrieval")}
    assert [found.name for found in advice.values()] == ["roc_auc", "average_precision", "average_precision per group"]
    leverage = mistake_leverage(y, score, group)
    share = f"{100 * leverage.by_group['auprc_share'][0]:.1f} %"
    for found in advice.values():
        assert found.summary().startswith(f"Choose by {found.name}. ") and share in found.reason and "'common'" in found.reason
        assert found.numbers["auprc"] == leverage.auprc and found.numbers["first_tenth"] == leverage.first_tenth
        assert found.to_frame()["number"].to_list() == ["auroc", "auprc", "prevalence", "gini", "first_tenth"]
    assert f"prevalence {y.mean():.4f}" in advice["retrieval"].reason
    table = advice["per_group_retrieval"].by_group
    for row in table.rows(named=True):
        own = group == row["group"]
        assert row["auprc"] == pytest.approx(average_precision_score(y[own], score[own]), abs=1e-12)
        assert f"{row['group']!r} {row['auprc']:.4f} ({row['prevalence']:.4f})" in advice["per_group_retrieval"].reason


def test_advice_without_groups_and_with_groups_of_one_class() -> None:
    assert metric_advice([0, 1, 0, 1], [4, 3, 2, 1]).by_group is None
    found = metric_advice([0, 1, 0, 1], [4, 3, 2, 1], groups=["a", "a", "b", "c"], use="per_group_retrieval")
    assert "With one class only, and so without a metric: b, c." in found.reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use": "ranking"}, "use: got 'ranking'; expected one of classification, retrieval, per_group_retrieval"),
        ({"use": "per_group_retrieval"}, "groups: got None; .*use='retrieval'"),
    ],
)
def test_bad_advice(options, message) -> None:
    with pytest.raises(InputError, match=message):
        metric_advice([0, 1], [1, 2], **options)


@pytest.mark.parametrize("function", [mistake_leverage, metric_advice])
@pytest.mark.parametrize(
    ("y", "score", "groups", "message"),
    [
        ([0, 0], [1, 2], None, "The positive class, 1, is missing"),
        ([1, 1], [1, 2], None, "The negative class, 0 or -1, is missing"),
        ([0, 1], [1, float("nan")], None, "y_score: got NaN in 1 of 2 rows"),
        ([0, 1], [1, 2], ["a"], "groups: got 1 rows"),
        (["a", "b"], [1, 2], None, "pos_label='b'"),
    ],
)
def test_bad_input(function, y, score, groups, message) -> None:
    with pytest.raises(InputError, match=message):
        function(y, score, groups)


# -- pictures -----------------------------------------------------------------------------------------------------------------------------


def labels(figure):
    return {text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()}


def test_plots() -> None:
    y, score, group = drifting()
    found = mistake_leverage(y, score, group)
    assert {"AUPRC", "AUROC", "common", "rare"} <= labels(found.plot())
    assert "common" not in labels(mistake_leverage(y, score).plot())
    assert labels(metric_advice(y, score, group).plot()) == labels(found.plot())
    many = mistake_leverage(y, score, np.arange(len(y)) % 20).plot()
    assert any("12 more groups" in text for text in labels(many))
    curve = found.plot().axes[0].lines
    shares = [line.get_ydata() for line in curve if len(line.get_ydata()) > 100]
    assert all(share[0] == 0 and share[-1] == pytest.approx(1) for share in shares) and len(shares) == 2
    assert shares[0][50] > shares[1][50] + 0.2
