"""Numbers, gaps, categories and text become a matrix by what the training rows say alone, as scikit-learn's own parts would do it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler, TargetEncoder
from tests.studies.small import cells, mixed, outer, small_study

from counterpoise.studies._preprocess import ONE_HOT_LEVELS, Preprocess

FloatArray = npt.NDArray[np.floating]


def matrix(n: int = 80, seed: int = 0) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Two numbers (the first with gaps), a category of 3 levels with gaps, one of 30."""
    rng = np.random.default_rng(seed)
    X = np.column_stack([rng.normal(3, 2, n), rng.normal(size=n), rng.integers(0, 3, n), rng.integers(0, 30, n)])
    X[rng.random(n) < 0.2, 0] = np.nan
    X[rng.random(n) < 0.2, 2] = np.nan
    return X, (rng.random(n) < 0.4).astype(np.int64)


def fitted(X: FloatArray, y: npt.NDArray[np.int64], levels: list[int], **options: object) -> tuple[Preprocess, FloatArray]:
    preprocess = Preprocess(levels, **({"scale": True, "task": "binary"} | options))  # type: ignore[arg-type]
    cleaned, words = preprocess.fit(X)
    assert words is None
    return preprocess, preprocess.fit_encode(cleaned, y)


def test_numbers_are_imputed_flagged_and_scaled_as_by_scikit_learn() -> None:
    X, y = matrix()
    preprocess, encoded = fitted(X[:60, :2], y[:60], [0, 0])
    imputer = SimpleImputer(strategy="median").fit(X[:60, :2])
    scaler = StandardScaler().fit(imputer.transform(X[:60, :2]))
    for rows, found in ((X[:60, :2], encoded), (X[60:, :2], preprocess.transform(X[60:, :2]))):
        expected = np.column_stack([scaler.transform(imputer.transform(rows)), np.isnan(rows[:, 0])])
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-14)
    plain, _ = fitted(X[:60, :2], y[:60], [0, 0], scale=False)
    np.testing.assert_array_equal(plain.transform(X[60:, :2])[:, :2], imputer.transform(X[60:, :2]))


def test_transforming_changes_neither_the_input_nor_the_next_answer() -> None:
    X, y = matrix()
    before = X.copy()
    preprocess, encoded = fitted(X, y, [0, 0, 3, 30])
    first = preprocess.transform(X)
    np.testing.assert_array_equal(first, preprocess.transform(X))
    np.testing.assert_array_equal(X, before)
    # The target-encoded column of training rows is cross-fitted; the others are the same for old and new rows.
    np.testing.assert_array_equal(first[:, :-1], encoded[:, :-1])
    assert (first[:, -1] != encoded[:, -1]).any()
    np.testing.assert_array_equal(preprocess.transform(X[7:9]), first[7:9])


def test_categories_become_one_column_per_level_and_one_for_gaps() -> None:
    X, y = matrix()
    column = X[:, 2:3]
    _, encoded = fitted(column, y, [3])
    assert encoded.shape == (80, 4)
    np.testing.assert_array_equal(encoded.sum(axis=1), 1)
    np.testing.assert_array_equal(encoded.argmax(axis=1), np.where(np.isnan(column[:, 0]), 3, column[:, 0]))


def test_a_level_that_is_not_among_the_training_rows_has_its_column_all_the_same() -> None:
    X, y = np.array([[0.0], [1.0], [0.0], [1.0]]), np.array([0, 1, 0, 1])
    preprocess, encoded = fitted(X, y, [3])
    assert encoded.shape[1] == 4
    assert preprocess.transform(np.array([[2.0], [np.nan]])).tolist() == [[0, 0, 1, 0], [0, 0, 0, 1]]


def test_many_levels_are_encoded_by_the_target_cross_fitted() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 30, (400, 1)).astype(float), (rng.random(400) < 0.3).astype(np.int64)
    preprocess, encoded = fitted(X[:300], y[:300], [30])
    theirs = TargetEncoder(target_type="binary").fit(X[:300], y[:300])
    np.testing.assert_allclose(preprocess.transform(X[300:]), theirs.transform(X[300:]), rtol=1e-12)
    # A unique level for every row: cross-fitting leaves nothing of a row's own target.
    unique = np.arange(300.0)[:, None]
    _, alone = fitted(unique, y[:300], [300])
    assert abs(roc_auc_score(y[:300], alone[:, 0]) - 0.5) < 0.1
    assert encoded.shape == (300, 1)


def test_the_limit_between_one_hot_and_target_encoding() -> None:
    X, y = np.random.default_rng(0).integers(0, ONE_HOT_LEVELS, (200, 1)).astype(float), np.arange(200) % 2
    assert fitted(X, y, [ONE_HOT_LEVELS])[1].shape[1] == ONE_HOT_LEVELS + 1
    assert fitted(X, y, [ONE_HOT_LEVELS + 1])[1].shape[1] == 1
    three = np.arange(200) % 3
    assert fitted(X, three, [ONE_HOT_LEVELS + 1], task="multiclass")[1].shape[1] == 3
    assert fitted(X, three * 1.5, [ONE_HOT_LEVELS + 1], task="regression")[1].shape[1] == 1


def test_which_cleaned_columns_are_categories() -> None:
    X, _ = matrix()
    preprocess = Preprocess([0, 0, 3, 30], scale=True, task="binary")
    cleaned, _ = preprocess.fit(X)
    assert preprocess.cleaned_categorical.tolist() == [False, False, False, True, True]  # two numbers, a flag for gaps, two categories
    assert np.isfinite(cleaned).all()
    assert set(cleaned[:, 3]) == {0.0, 1.0, 2.0, 3.0}


def test_a_column_without_any_value_in_the_training_rows() -> None:
    X = np.column_stack([np.full(20, np.nan), np.arange(20.0)])
    preprocess, encoded = fitted(X, np.arange(20) % 2, [0, 0])
    assert np.isfinite(encoded).all()
    assert np.isfinite(preprocess.transform(np.array([[1.0, 2.0]]))).all()


def test_text_is_scored_by_words_of_the_training_rows() -> None:
    text = np.array(["good fine", "bad poor", "good great", "poor awful"] * 10, dtype=object)
    y = np.array([1, 0, 1, 0] * 10)
    preprocess = Preprocess([], scale=True, task="binary")
    _, words = preprocess.fit(np.empty((40, 0)), text)
    assert words is not None and words.shape[0] == 40
    score = (
        LogisticRegression()
        .fit(words, y)
        .decision_function(preprocess.transform(np.empty((3, 0)), np.array(["good", "awful poor", "unknown words"], dtype=object)))
    )
    assert score[0] > score[2] > score[1]
    assert "unknown" not in preprocess.get_parts()["vectorizer"].vocabulary_


def test_text_of_nothing_is_no_column() -> None:
    preprocess = Preprocess([], scale=True, task="binary")
    _, words = preprocess.fit(np.empty((4, 0)), np.array(["", "", "", ""], dtype=object))
    assert words is not None and words.shape == (4, 0)
    assert preprocess.transform(np.empty((2, 0)), np.array(["a word", ""], dtype=object)).shape == (2, 0)


def test_from_parts_gives_the_same_matrix() -> None:
    X, y = matrix()
    preprocess, _ = fitted(X, y, [0, 0, 3, 30])
    again = Preprocess.from_parts(preprocess.get_parts(), preprocess.get_config())
    np.testing.assert_array_equal(again.transform(X), preprocess.transform(X))


@pytest.mark.filterwarnings("ignore:Found unknown categories")
def test_a_study_of_mixed_columns_equals_a_pipeline_of_scikit_learn(tmp_path: Path) -> None:
    """Gaps in numbers and categories, a category of 60 levels: the same log loss as a ColumnTransformer fitted in every fold."""
    table = mixed().drop("note")
    study = small_study(table, target="y", remedies=["smote", "weights"], folds=3, out=tmp_path)
    features = [feature.name for feature in study.problem.schema.features]
    assert features == ["amount", "age", "color", "shop"]
    X, y = np.asarray(study.problem.X), study.problem.y
    losses = []
    for repeat, fold, train, test in outer(study):
        columns = ColumnTransformer(
            [
                ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), [0, 1]),
                ("gaps", "passthrough", [4]),
                ("color", OneHotEncoder(categories=[[0, 1, 2, 3]]), [2]),
            ]
        )
        filled = np.column_stack([X, np.isnan(X[:, 0])])
        filled[np.isnan(X[:, 2]), 2] = 3
        encoder = study_encoder(study, repeat, fold, y[train])
        inside = np.hstack([columns.fit_transform(filled[train]), encoder.fit_transform(filled[train][:, [3]], y[train])])
        outside = np.hstack([columns.transform(filled[test]), encoder.transform(filled[test][:, [3]])])
        model = LogisticRegression(max_iter=1000).fit(inside, y[train])
        losses.append(log_loss(y[test], model.predict_proba(outside)))
    np.testing.assert_allclose(cells(study)["log_loss"], losses, rtol=1e-6)
    assert study.failed == []


def study_encoder(study: object, repeat: int, fold: int, y: npt.NDArray[np.int64]) -> TargetEncoder:
    """A target encoder whose folds are drawn with the seed of the cell's last fit."""
    from sklearn.model_selection import StratifiedKFold

    from counterpoise._seeding import key_of, seed_integer

    arm = next(arm for arm in study.plan.arms if arm.remedy == "nothing")  # type: ignore[attr-defined]
    seed = seed_integer(0, repeat, fold, key_of(arm.hash), 0, "refit")
    return TargetEncoder(target_type="binary", cv=StratifiedKFold(5, shuffle=True, random_state=seed))


def test_gaps_and_levels_that_only_the_test_rows_have(tmp_path: Path) -> None:
    """One gap and one odd level in the whole table: whatever fold they fall into, every row gets a score."""
    table = mixed(120).drop("note", "shop").with_columns(
        pl.when(pl.int_range(120) == 7).then(None).otherwise(pl.col("age")).alias("age"),
        pl.when(pl.int_range(120) == 9).then(pl.lit("violet")).otherwise(pl.col("color")).alias("color"),
    )  # fmt: skip
    study = small_study(table, target="y", learners=["linear", "trees"], remedies=["smote"], folds=3, out=tmp_path)
    assert study.failed == []
    assert not np.isnan(study.scores_of("linear", "smote")[0]).any()


def test_text_columns_in_a_study(tmp_path: Path) -> None:
    study = small_study(mixed(160).select("note", "age", "y"), target="y", text="note", remedies=["over", "smote"], folds=3, out=tmp_path)
    assert cells(study)["auroc"].mean() > 0.9  # the words tell the classes
    assert ("linear", "smote", "cannot invent text") in study.plan.not_applicable
    left_out = small_study(mixed(160).select("note", "age", "y"), target="y", remedies=[], folds=3, out=tmp_path / "without")
    assert cells(left_out)["auroc"].mean() < 0.7
    assert any("note" in notice for notice in left_out.problem.notices)


def test_invented_rows_do_not_carry_the_target_of_their_source_into_its_code() -> None:
    rng = np.random.default_rng(0)
    n = 1500
    y = (rng.random(n) < 0.15).astype(np.int64)
    X = np.column_stack([rng.normal(size=n) + y, rng.integers(0, 400, n).astype(float)])  # a category of 400 levels that says nothing
    preprocess = Preprocess([0, 400], scale=True, task="binary")
    cleaned, _ = preprocess.fit(X)
    source = np.flatnonzero(y == 1)
    invented = cleaned[source] + [0.01, 0.0]
    drawn, labels = np.vstack([cleaned, invented]), np.concatenate([y, y[source]])
    rows = np.concatenate([np.arange(n), np.full(len(source), -1)])

    code = preprocess.fit_encode(drawn, labels, rows)[:, 1]
    alone = Preprocess([0, 400], scale=True, task="binary")
    alone.fit(X)
    np.testing.assert_allclose(code[:n], alone.fit_encode(cleaned, y)[:, 1])  # real rows are coded as without the invented ones
    for given, value in zip(code[n:], X[source, 1], strict=True):
        assert given in code[:n][(X[:, 1] == value) & (y == 1)]  # that of a real row of the same category and class
    assert abs(np.corrcoef(code, labels)[0, 1]) < 0.1  # a code that knew the labels would correlate with them
