"""The diagnosis of a table before a study."""

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.preprocessing import StandardScaler

from counterpoise._errors import InputError
from counterpoise.diagnostics import diagnose, head_shares
from counterpoise.groups import Groups


def rare(n=40_000, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 4))
    y = (rng.random(n) < 0.01 * np.exp(X[:, 0] - 0.5)).astype(np.int64)
    X[::17, 2] = np.nan
    return X, y


def test_start_is_the_share_of_a_fresh_head_on_standardized_features():
    X, y = load_breast_cancer(return_X_y=True)
    diagnosis = diagnose(X, y, ["malignant", "benign"])
    wanted = head_shares(0.5 - y, StandardScaler().fit_transform(X), y)
    np.testing.assert_allclose(diagnosis.start.share, wanted.share, atol=1e-10)
    np.testing.assert_allclose(diagnosis.prior, [212 / 569, 357 / 569])
    assert diagnosis.imbalance.rho == pytest.approx(357 / 212)
    assert diagnosis.task == "binary" and diagnosis.correct_name == "recall" and diagnosis.rows == 569
    assert diagnosis.start.share.sum() == pytest.approx(1)


def test_rare_class_is_reported_as_drowned():
    X, y = load_digits(return_X_y=True)
    diagnosis = diagnose(X, (y == 8).astype(int), ["rest", "eight"])
    assert diagnosis.headline == "Class 'rest' is 90.3 % of the rows and 95.1 % of the step at the start of training."
    assert diagnosis.correct[1] < 0.8 < diagnosis.correct[0]
    lines = diagnosis.summary().splitlines()
    assert lines[0] == diagnosis.headline
    assert lines[1].startswith("Served worst by a plain linear head: class 'eight', recall 71.8 % at 0.5.")
    assert diagnosis.plot().axes
    part = diagnosis.part()
    assert part.headline == diagnosis.headline and diagnosis.headline not in part.sentences
    assert part.names == ("rest", "eight") and part.share is diagnosis.start.share


def test_recall_is_of_rows_the_head_has_not_seen():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(120, 100)), np.arange(120) % 2
    # 100 columns of noise separate 120 rows perfectly in the sample, and predict nothing out of it.
    assert diagnose(X, y, ["a", "b"]).correct.mean() < 0.65


def test_a_large_table_is_sampled_by_group_and_still_speaks_of_the_whole():
    X, y = rare()
    whole = diagnose(X, y, ["no", "yes"], max_rows=len(y))
    drawn = diagnose(X, y, ["no", "yes"], max_rows=2_000)
    assert whole.rows == len(y) and drawn.rows <= 2_040
    np.testing.assert_array_equal(drawn.counts, np.bincount(y))
    np.testing.assert_allclose(drawn.start.pi, np.bincount(y) / len(y), rtol=1e-10)
    np.testing.assert_allclose(drawn.start.share, whole.start.share, atol=0.01)
    tiny = diagnose(X, y, ["no", "yes"], max_rows=100)
    assert tiny.start.count[1] == 20  # the floor, where the proportion would keep one row
    np.testing.assert_allclose(tiny.start.pi, np.bincount(y) / len(y), rtol=1e-10)


def test_same_seed_same_numbers():
    X, y = rare(5_000)
    first, second = (diagnose(X, y, ["no", "yes"], max_rows=1_000, seed=3) for _ in range(2))
    assert first.to_frame().equals(second.to_frame())


def test_regression_uses_ranges():
    X, y = load_diabetes(return_X_y=True)
    diagnosis = diagnose(X, y)
    assert diagnosis.task == "regression" and diagnosis.kind == "range" and diagnosis.imbalance is None
    assert diagnosis.counts.sum() == len(y) and (diagnosis.counts > 0).all()
    assert 40 < np.average(diagnosis.correct, weights=diagnosis.counts) < 50  # MAE of ridge on this set, in units of the target
    assert diagnosis.headline.startswith("Range '")
    assert "mean absolute error" in diagnosis.summary()
    assert diagnosis.to_frame().columns[-2:] == ["mae", "loss"]


def test_other_groups_are_judged_by_accuracy():
    X, y = load_breast_cancer(return_X_y=True)
    groups = Groups(np.arange(len(y)) % 2, ("even", "odd"), "attribute")
    diagnosis = diagnose(X, y, ["malignant", "benign"], groups)
    assert diagnosis.correct_name == "accuracy" and diagnosis.kind == "group" and (diagnosis.correct > 0.9).all()


def test_one_positive_row_is_enough_to_diagnose():
    rng = np.random.default_rng(0)
    y = np.zeros(50, dtype=int)
    y[7] = 1
    X = rng.normal(size=(50, 3))
    X[:, 1] = np.nan
    diagnosis = diagnose(X, y, ["no", "yes"])
    assert diagnosis.counts.tolist() == [49, 1]
    assert np.isfinite(diagnosis.loss).all() and np.isnan(diagnosis.start.alpha_unbiased[1])
    assert "1 of 50 rows" in diagnosis.summary()


@pytest.mark.parametrize(
    ("X", "y", "names", "message"),
    [
        (np.ones((3, 2)), [0, 1], ["a", "b"], "X: got shape"),
        (np.ones((3, 2)), [0, 0, 0], ["a", "b"], "at least two classes"),
        (np.ones((3, 2)), [0, 1, 2], ["a", "b"], "integer codes from 0 to 1"),
        (np.ones((3, 2)), [2.0, 2.0, 2.0], None, "the constant 2.0"),
        (np.ones((3, 2)), [2.0, np.nan, 2.0], None, "1 values that are not finite"),
    ],
)
def test_bad_input(X, y, names, message):
    with pytest.raises(InputError, match=message):
        diagnose(X, y, names)
