from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from counterpoise._errors import InputError
from counterpoise._thresholds import best_offsets, best_threshold, prior_threshold

COST = {"fp": 1.0, "fn": 7.5}


def value_of(y, predicted, metric) -> float:
    """The metric, larger is better, by scikit-learn or by counting."""
    if metric == "cost":
        return -float(np.mean(COST["fp"] * ((predicted == 1) & (y == 0)) + COST["fn"] * ((predicted == 0) & (y == 1))))
    if metric == "f1":
        several = len(np.unique(y)) > 2 or y.max() > 1
        return float(f1_score(y, predicted, average="macro" if several else "binary", zero_division=0))
    return float({"balanced_accuracy": balanced_accuracy_score, "accuracy": accuracy_score}[metric](y, predicted))


def brute_force(candidates, value) -> float:
    """The middle of the first longest run of candidates with the largest value."""
    values = np.round([value(candidate) for candidate in candidates], 12)
    runs, start = [], None
    for i, best in enumerate([*(values == values.max()), False]):
        if best and start is None:
            start = i
        elif not best and start is not None:
            runs.append((i - start, -start))
            start = None
    length, minus_start = max(runs)
    return candidates[-minus_start + (length - 1) // 2]


def gaps(values) -> list[float]:
    ordered = np.unique(values)
    distinct = ordered[np.diff(ordered, prepend=-np.inf) > 1e-9]  # equal but for rounding is equal
    return [distinct[0] - 1, *(distinct[:-1] / 2 + distinct[1:] / 2), distinct[-1] + 1]


rows = st.lists(st.tuples(st.integers(0, 1), st.integers(-4, 4)), min_size=2, max_size=25)


@settings(max_examples=150, deadline=None)
@given(rows=rows, metric=st.sampled_from(["balanced_accuracy", "f1", "accuracy", "cost"]))
def test_threshold_is_that_of_brute_force(rows, metric) -> None:
    y, score = np.array(rows).T
    y[:2] = 0, 1
    got = best_threshold(y, score, metric, COST)
    assert got == brute_force(gaps(score), lambda t: value_of(y, (score > t).astype(int), metric))


def test_threshold_in_the_middle_of_a_plateau() -> None:
    # Both neighbors of 2 are equally good (3 of 5 right): candidates -1, .5, 1.5, 2.5, 4 have accuracies 2, 3, 2, 3, 3 fifths.
    assert best_threshold([0, 1, 0, 0, 1], [0, 1, 2, 3, 3], "accuracy") == 2.5


def test_nothing_and_everything_can_be_best() -> None:
    y, score = [0, 1, 0, 0, 0], [3.0, 1.0, 2.0, 4.0, 5.0]
    assert best_threshold(y, score, "accuracy") == 6.0  # predict no positive at all
    assert best_threshold([0, 1, 1], [1.0, 2.0, 0.0], "f1") == -1.0  # predict every row positive


def test_the_threshold_separates_neighboring_floats() -> None:
    low = 1.0
    high = np.nextafter(low, 2)
    threshold = best_threshold([0, 1], [low, high])
    assert not low > threshold and high > threshold
    threshold = best_threshold([1, 1, 0], [-1e300, 0.0, -1.5e300], "accuracy")
    assert -1e300 > threshold >= -1.5e300


def test_costs_move_the_threshold_to_the_dear_side() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(4000) < 0.3).astype(int)
    score = rng.normal(size=4000) + 2 * y
    # Gaussian log-odds: 2 s - 2 + logit(.3), so the best threshold for costs (1, c) is where they equal -log c.
    for c in (1.0, 8.0):
        expected = 1 - math.log(0.3 / 0.7) / 2 - math.log(c) / 2
        assert best_threshold(y, score, "cost", {"fp": 1, "fn": c}) == pytest.approx(expected, abs=0.2)


def test_prior_thresholds_have_their_closed_forms() -> None:
    assert prior_threshold(0.2) == pytest.approx(math.log(0.25))
    assert prior_threshold(0.2, "f1") == pytest.approx(math.log(0.25))
    assert prior_threshold(0.2, "accuracy") == 0
    # p >= C_fp / (C_fp + C_fn) = 1 / 21
    assert 1 / (1 + math.exp(-prior_threshold(0.2, "cost", {"fp": 1, "fn": 20}))) == pytest.approx(1 / 21)


tables = st.integers(2, 4).flatmap(
    lambda n_classes: st.lists(
        st.tuples(st.integers(0, n_classes - 1), st.lists(st.integers(-3, 3), min_size=n_classes, max_size=n_classes)),
        min_size=n_classes,
        max_size=16,
    )
)


@settings(max_examples=100, deadline=None)
@given(table=tables, metric=st.sampled_from(["balanced_accuracy", "f1", "accuracy"]), seed=st.integers(0, 9))
def test_offsets_are_those_of_coordinate_ascent_by_brute_force(table, metric, seed) -> None:
    # Jitter: with equal scores the row's class would hang on the order of the classes, for us and for brute force alike.
    scores = np.array([row for _, row in table]) + np.random.default_rng(seed).normal(scale=0.01, size=(len(table), len(table[0][1])))
    n_classes = scores.shape[1]
    y = np.array([label for label, _ in table])
    y[:n_classes] = np.arange(n_classes)
    prior = np.bincount(y) / len(y)

    expected = -np.log(prior)
    for _ in range(2):
        for k in range(n_classes):
            others = np.delete(scores + expected, k, axis=1).max(axis=1)
            candidates = gaps(others - scores[:, k])

            def value(b, k=k):
                predicted = (scores + np.where(np.arange(n_classes) == k, b, expected)).argmax(axis=1)
                if metric == "f1":
                    return f1_score(y, predicted, labels=np.arange(n_classes), average="macro", zero_division=0)
                return value_of(y, predicted, metric)

            expected[k] = brute_force(candidates, value)
    np.testing.assert_allclose(best_offsets(y, scores, metric, prior), expected, atol=1e-9)


def test_offsets_never_lose_against_the_prior() -> None:
    rng = np.random.default_rng(1)
    y = rng.choice(5, size=3000, p=[0.6, 0.2, 0.1, 0.07, 0.03])
    scores = rng.normal(size=(3000, 5)) + 1.5 * np.eye(5)[y] + np.log([0.6, 0.2, 0.1, 0.07, 0.03])
    for metric in ("balanced_accuracy", "f1", "accuracy"):
        start = value_of(y, (scores - np.log(np.bincount(y) / 3000)).argmax(axis=1), metric)
        tuned = value_of(y, (scores + best_offsets(y, scores, metric)).argmax(axis=1), metric)
        assert tuned > start


def test_offsets_of_a_class_without_rows() -> None:
    scores = np.log([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    offsets = best_offsets([0, 1, 0], scores, "balanced_accuracy", prior=[0.5, 0.4, 0.1])
    assert (scores + offsets).argmax(axis=1).tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: best_threshold([0, 1], [0.1, 0.2], "recall"), "metric: got 'recall'"),
        (lambda: best_threshold([0, 0], [0.1, 0.2]), "only class 0; expected rows of both classes"),
        (lambda: best_threshold([0, 1], [0.1, math.nan]), "score: got 1 values that are not finite"),
        (lambda: best_threshold([0, 2], [0.1, 0.2]), r"y: got \[2\]; expected class codes 0\.\.1"),
        (lambda: best_threshold([0, 1, 1], [0.1, 0.2]), r"y: got shape \(3,\)"),
        (lambda: best_threshold([], []), "n > 0"),
        (lambda: best_threshold([0, 1], [0.1, 0.2], "cost"), "cost: got None; expected a mapping"),
        (lambda: best_threshold([0, 1], [0.1, 0.2], "cost", {"fp": 1, "fn": 0}), "two positive numbers"),
        (lambda: prior_threshold(1.0), r"prior: got 1.0; expected a share in \(0, 1\)"),
        (lambda: best_offsets([0, 1], np.zeros((2, 2)), "cost"), "A cost matrix needs two classes"),
        (lambda: best_offsets([0, 1], np.zeros((2, 1))), "at least two"),
        (lambda: best_offsets([0, 1], np.zeros((2, 2)), prior=[1.0, 0.0]), "2 positive shares"),
        (lambda: best_offsets([0, 1], np.zeros((2, 2)), sweeps=0), "sweeps: got 0"),
    ],
)
def test_bad_input_is_refused(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()
