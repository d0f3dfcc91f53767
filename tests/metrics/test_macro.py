from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from counterpoise._errors import InputError
from counterpoise.decisions import prior_correct
from counterpoise.metrics import macro_ovr_auc


def problem(n: int = 200, classes: int = 4, seed: int = 0, digits: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Labels of unequal frequency and logits that know something about them; rounded ones have ties."""
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes) ** 2 % classes])
    logits = rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[y]
    return y, logits if digits is None else logits.round(digits)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z)
    return e / e.sum(axis=1, keepdims=True)


@settings(max_examples=40, deadline=None)
@given(classes=st.integers(3, 6), seed=st.integers(0, 1000), digits=st.sampled_from([0, 1, None]))
def test_on_rows_that_sum_to_one_it_is_scikit_learns(classes, seed, digits) -> None:
    y, logits = problem(60, classes, seed, digits)
    proba = softmax(logits)
    assert macro_ovr_auc(y, proba) == pytest.approx(roc_auc_score(y, proba, multi_class="ovr", average="macro"), abs=1e-12)


def test_two_classes_are_the_binary_auroc() -> None:
    y, logits = problem(classes=2)
    proba = softmax(logits)
    assert macro_ovr_auc(y, proba) == pytest.approx(roc_auc_score(y, proba[:, 1]), abs=1e-12)


def test_columns_are_ranked_as_they_are() -> None:
    """Increasing maps of a column change nothing; dividing rows by their sum does."""
    y, logits = problem()
    proba = softmax(logits)
    expected = macro_ovr_auc(y, proba)
    prior = np.bincount(y) / len(y)
    corrected = prior_correct(proba, prior, input="proba")
    assert macro_ovr_auc(y, corrected) == pytest.approx(expected, abs=1e-12)
    assert abs(macro_ovr_auc(y, corrected / corrected.sum(axis=1, keepdims=True)) - expected) > 1e-3
    assert macro_ovr_auc(y, prior_correct(logits, prior)) == pytest.approx(macro_ovr_auc(y, logits), abs=1e-12)
    assert macro_ovr_auc(y, np.exp(proba * [1, 2, 3, 4])) == pytest.approx(expected, abs=1e-12)


def test_known_values() -> None:
    y = [0, 1, 2]
    assert macro_ovr_auc(y, np.eye(3)) == 1.0
    assert macro_ovr_auc(y, 1 - np.eye(3)) == 0.0
    assert macro_ovr_auc(y, np.ones((3, 3))) == 0.5
    assert macro_ovr_auc(y, [[np.inf, 0, 0], [0, np.inf, 0], [-np.inf, 0, 1]]) == 1.0
    # Class 2 alone is ranked wrong, below one of the two others.
    assert macro_ovr_auc(y, [[1, 0, 0.5], [0, 1, 0.1], [0, 0, 0.3]]) == pytest.approx(2.5 / 3)


def test_any_container_and_type() -> None:
    y, logits = problem(digits=1)
    names = np.array(["ant", "bee", "cow", "doe"])[y]
    expected = macro_ovr_auc(y, logits)
    for labels in (y.tolist(), torch.tensor(y), pl.Series(names), names.tolist(), names.astype(object)):
        assert macro_ovr_auc(labels, logits) == expected
    for score in (logits.tolist(), logits.astype(np.float32), torch.tensor(logits, requires_grad=True), pl.DataFrame(logits)):
        assert macro_ovr_auc(y, score) == expected
    whole = (logits * 10).astype(np.int64)  # exact in half precision
    assert macro_ovr_auc(y, torch.tensor(whole).to(torch.bfloat16)) == macro_ovr_auc(y, torch.tensor(whole).half()) == expected


def test_a_missing_class_is_named_or_skipped() -> None:
    y, logits = problem()
    kept = y != 2
    with pytest.raises(InputError, match="y: got no row of class 2; expected rows of every class"):
        macro_ovr_auc(y[kept], logits[kept])
    found = macro_ovr_auc(y[kept], logits[kept], missing="skip")
    each = [roc_auc_score(y[kept] == k, logits[kept, k]) for k in (0, 1, 3)]
    assert found == pytest.approx(np.mean(each), abs=1e-12)
    names = np.array(["ant", "bee", "cow", "doe"])
    with pytest.raises(InputError, match="no row of class cow"):
        macro_ovr_auc(names[y[kept]], logits[kept], classes=names)
    assert macro_ovr_auc(names[y[kept]], logits[kept], "skip", classes=names.tolist()) == found


def test_columns_follow_the_classes_given() -> None:
    y, logits = problem()
    order = [2, 0, 3, 1]
    assert macro_ovr_auc(y, logits[:, order], classes=order) == macro_ovr_auc(y, logits)
    assert macro_ovr_auc(y + 5, logits) == macro_ovr_auc(y, logits)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: macro_ovr_auc([0, 1], [0.1, 0.9]), r"score: got shape \(2,\); expected shape \(2, K\) with K >= 2 columns"),
        (lambda: macro_ovr_auc([0, 1], [[0.1], [0.9]]), r"score: got shape \(2, 1\)"),
        (lambda: macro_ovr_auc([0, 1, 1], np.eye(2)), r"score: got shape \(2, 2\); expected shape \(3, K\)"),
        (lambda: macro_ovr_auc([0, 1], [[0.1, float("nan")], [0.9, 0.1]]), "score: got 1 rows with NaN"),
        (lambda: macro_ovr_auc([0, 1], [["a", "b"], ["c", "d"]]), "score: got an array of object; expected numbers"),
        (lambda: macro_ovr_auc([[0, 1], [1, 0]], np.eye(2)), r"y: got an array of shape \(2, 2\)"),
        (lambda: macro_ovr_auc(["a", None], np.eye(2)), "y: got 1 missing labels"),
        (lambda: macro_ovr_auc([0, 0], np.eye(2), missing="skip"), "y: got 1 of 2 classes; expected at least two classes that occur"),
        (lambda: macro_ovr_auc([], np.empty((0, 2)), missing="skip"), "y: got 0 of 2 classes"),
        (lambda: macro_ovr_auc([0, 1], np.eye(2), missing="ignore"), "missing: got 'ignore'; expected one of raise, skip"),
        (lambda: macro_ovr_auc(["a", "b"], np.eye(3)[:2]), "y: got labels a, b; expected 3 classes, one for each column of score"),
        (lambda: macro_ovr_auc([0, 7], np.eye(2), classes=[0, 1]), "y: got label 7; expected the classes of the columns: 0, 1"),
        (lambda: macro_ovr_auc([0, 1], np.eye(2), classes=[0, 1, 2]), "classes: got 0, 1, 2; expected 2 different classes"),
        (lambda: macro_ovr_auc([0, 1], np.eye(2), classes=[1, 1]), "classes: got 1, 1; expected 2 different classes"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()
