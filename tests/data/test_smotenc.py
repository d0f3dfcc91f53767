from __future__ import annotations

import tracemalloc

import numpy as np
import pandas
import polars
import pytest
from imblearn import over_sampling
from imblearn.utils.testing import _CustomNearestNeighbors
from scipy import sparse
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

from counterpoise._errors import InputError
from counterpoise.data import SMOTEN, SMOTENC
from counterpoise.data._smotenc import _vote, most_frequent


@pytest.fixture(scope="module")
def shop():
    """A frame with numbers and categories of several types, 60 of 200 rows rare."""
    rng = np.random.default_rng(0)
    n = 200
    y = np.repeat([0, 1], [140, 60])
    return {
        "price": rng.normal(size=n) + y,
        "color": rng.choice(["red", "green", "blue"], size=n),
        "count": rng.integers(0, 50, size=n),
        "size": rng.choice(["S", "M", "L"], size=n),
        "code": rng.integers(0, 4, size=n),
        "new": rng.random(n) < 0.5,
    }, y


CATEGORIES = ["color", "size", "code", "new"]


def objects(columns) -> np.ndarray:
    return np.array([list(row) for row in zip(*(np.asarray(column).tolist() for column in columns.values()), strict=True)], dtype=object)


# ---- as imbalanced-learn ----------------------------------------------------------------------------------------------------------------


def test_rows_of_text_and_numbers_are_those_of_imbalanced_learn(shop) -> None:
    columns, y = shop
    X = objects(columns)[:, [0, 1, 3, 4]].copy()
    for categorical in ([1, 2, 3], [3, 1, 2], [False, True, True, True], [-1, -2, -3]):
        ours, y_ours = SMOTENC(categorical, random_state=5).fit_resample(X, y)
        theirs, y_theirs = over_sampling.SMOTENC(categorical, random_state=5).fit_resample(X, y)
        assert ours.dtype == object and ours.tolist() == theirs.tolist()
        np.testing.assert_array_equal(y_ours, y_theirs)


def test_every_pair_of_options_of_the_search_gives_the_same_rows(shop) -> None:
    columns, y = shop
    X = objects(columns)[:, [0, 1, 3, 4]].copy()
    expected = SMOTENC([1, 2, 3], random_state=0, k_neighbors=4).fit_resample(X, y)[0].tolist()
    for options in (
        {"neighbors": "approximate"},
        {"n_jobs": 2},
        {"k_neighbors": NearestNeighbors(n_neighbors=5)},
        {"k_neighbors": _CustomNearestNeighbors(n_neighbors=5)},
    ):
        assert SMOTENC([1, 2, 3], random_state=0, **{"k_neighbors": 4} | options).fit_resample(X, y)[0].tolist() == expected


def test_equal_numbers_leave_the_categories_to_decide_nothing() -> None:
    X = np.column_stack([np.ones(30), np.repeat([0.0, 1.0, 2.0], 10)])
    y = np.repeat([1, 0], [12, 18])
    smote = SMOTENC([1], random_state=0)
    X_new, _ = smote.fit_resample(X, y)
    assert smote.median_std_ == {1: 0.0} and set(X_new[30:, 1]) <= {0.0, 1.0} and (X_new[:, 0] == 1).all()


# ---- the vote ---------------------------------------------------------------------------------------------------------------------------


def test_most_frequent_votes_are_marked_once() -> None:
    votes, frequent = most_frequent(np.array([[3, 1, 3, 2, 1], [7, 7, 7, 0, 0], [5, 4, 3, 2, 1]]))
    assert [row[mask].tolist() for row, mask in zip(votes, frequent, strict=True)] == [[1, 3], [7], [1, 2, 3, 4, 5]]


def test_ties_of_the_vote_are_broken_evenly_and_without_ties_the_most_frequent_wins() -> None:
    codes = np.array([[0, 0], [1, 0], [1, 2], [2, 1]], dtype=np.uint8)
    voters = np.tile([0, 1, 2, 3], (9000, 1))
    elected = _vote(codes, np.array([10, 11, 12, 13]), voters, np.random.RandomState(0))
    assert set(elected[:, 0]) == {11}  # code 1 has two votes; row 11 is the first that has it
    assert set(elected[:, 1]) == {10}
    elected = _vote(codes, np.arange(4), voters[:, 1:], np.random.RandomState(0))
    shares = [(elected[:, 1] == row).mean() for row in (0, 2, 3)]  # codes 0, 2 and 1: one vote each
    np.testing.assert_allclose(shares, 1 / 3, atol=4 * np.sqrt(2 / 9 / 9000))


# ---- types ------------------------------------------------------------------------------------------------------------------------------


def pandas_frame(columns):
    return pandas.DataFrame(columns).astype({"color": "category", "size": "string", "new": "category", "count": "Int64"})


def polars_frame(columns):
    types = {"color": polars.Categorical, "size": polars.Enum(["S", "M", "L", "XL"]), "new": polars.Boolean}
    return polars.DataFrame(columns, schema_overrides=types)


@pytest.mark.parametrize("make", [pandas_frame, polars_frame])
def test_columns_of_a_frame_keep_their_types(shop, make) -> None:
    columns, y = shop
    frame = make(columns)
    smote = SMOTENC(CATEGORIES, random_state=0)
    X_new, _ = smote.fit_resample(frame, y)
    assert type(X_new) is type(frame) and list(X_new.columns) == list(frame.columns) and list(X_new.dtypes) == list(frame.dtypes)
    assert smote.categorical_features_.tolist() == [1, 3, 4, 5] and smote.continuous_features_.tolist() == [0, 2]
    old, new = X_new[:200], X_new[200:]
    assert old.equals(frame)
    for name in CATEGORIES:
        assert set(new[name].to_list() if make is polars_frame else new[name].tolist()) <= set(np.asarray(columns[name]).tolist())
    one, other = (columns["count"][smote.parents_[:, side]] for side in (0, 1))
    assert new["count"].to_list() == np.rint(one + smote.gaps_ * (other - one)).astype(int).tolist()
    plain, _ = SMOTENC([1, 3, 4, 5], random_state=0).fit_resample(objects(columns), y)
    np.testing.assert_allclose(new["price"].to_numpy().astype(float), plain[200:, 0].astype(float))
    for name, position in (("color", 1), ("size", 3), ("code", 4), ("new", 5)):
        assert list(new[name]) == plain[200:, position].tolist()


@pytest.mark.parametrize("make", [pandas_frame, polars_frame])
def test_auto_finds_the_columns_of_a_categorical_type(shop, make) -> None:
    columns, y = shop
    frame = make({name: columns[name] for name in columns if make is pandas_frame or name != "code"})
    frame = frame.drop(columns=["size"]) if make is pandas_frame else frame
    smote = SMOTENC("auto", random_state=0).fit(frame, y)
    found = [frame.columns[i] for i in smote.categorical_features_]
    assert found == (["color", "new"] if make is pandas_frame else ["color", "size"])


def test_the_numbers_can_be_made_single(shop) -> None:
    columns, y = shop
    frame = pandas_frame(columns)
    X_new, _ = SMOTENC(CATEGORIES, dtype="float32", random_state=0).fit_resample(frame, y)
    assert [str(X_new[name].dtype) for name in ("price", "count", "code")] == ["float32", "float32", str(frame["code"].dtype)]
    numeric = np.column_stack([columns["price"], columns["code"]])
    assert SMOTENC([1], dtype="float32", random_state=0).fit_resample(numeric, y)[0].dtype == np.float32
    assert SMOTENC([1], dtype="float32", random_state=0).fit_resample(numeric.astype(object), y)[0].dtype == object


def test_a_missing_category_is_a_category(shop) -> None:
    columns, y = shop
    frame = pandas.DataFrame({"price": columns["price"], "color": columns["color"]})
    frame["color"] = frame["color"].where(frame["color"] != "blue", None).astype("category")
    assert frame["color"].isna().any()
    X_new, _ = SMOTENC(["color"], random_state=0).fit_resample(frame, y)
    assert X_new["color"].dtype == frame["color"].dtype and 0 < X_new["color"][200:].isna().mean() < 1
    frame.loc[3, "price"] = np.nan
    with pytest.raises(InputError, match=r"X: got NaN or infinity in column price; expected finite numbers. Impute before"):
        SMOTENC(["color"], random_state=0).fit_resample(frame, y)


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix])
def test_sparse_tables(form) -> None:
    rng = np.random.default_rng(0)
    X, y = np.column_stack([rng.normal(size=(90, 2)), rng.integers(3, size=90)]), np.repeat([0, 1], [60, 30])
    dense, _ = SMOTENC([2], random_state=0).fit_resample(X, y)
    X_new, _ = SMOTENC([2], random_state=0).fit_resample(form(X), y)
    assert X_new.format == form(X).format
    np.testing.assert_array_equal(X_new.toarray(), dense)


# ---- size -------------------------------------------------------------------------------------------------------------------------------


def test_many_categories_take_no_memory_of_their_own() -> None:
    rng = np.random.default_rng(0)
    n, levels = 6000, 2000
    X = np.column_stack([rng.normal(size=(n, 6)), rng.integers(levels, size=(n, 6)).astype(float)])
    y = np.repeat([0, 1], [n * 7 // 10, n * 3 // 10])
    make = SMOTENC(list(range(6, 12)), random_state=0)
    make.fit_resample(X[::20], y[::20])
    tracemalloc.start()
    X_new, _ = make.fit_resample(X, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Indicator columns of the minority alone would take 1800 x 12,006 floats, three hundred times the table.
    assert len(X_new) == 2 * (n * 7 // 10) and peak < 6 * X.nbytes


# ---- what is refused --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"categorical_features": ["color", "weight"]}, r"got columns weight, which are not there; expected some of price, color"),
        ({"categorical_features": [0, 9]}, r"got \[0, 9\]; expected positions of columns; all features must be in \[0, 5\]"),
        ({"categorical_features": [True, False]}, "got a mask of 2 values; expected one value per column, 6"),
        ({"categorical_features": []}, "got no column; expected at least one. .* SMOTE is"),
        ({"categorical_features": [0, 1, 2, 3, 4, 5]}, "got all 6 columns; expected some numbers beside them. .* SMOTEN is"),
        ({"categorical_encoder": OneHotEncoder(drop="first")}, "an encoder that makes .* columns of .* categories"),
        ({"categorical_encoder": OneHotEncoder(min_frequency=0.5)}, "leave drop, min_frequency and max_categories alone"),
    ],
)
def test_bad_input_is_refused(shop, options, message) -> None:
    columns, y = shop
    with pytest.raises(InputError, match=message):
        SMOTENC(**{"categorical_features": CATEGORIES} | options).fit_resample(pandas_frame(columns), y)


def test_names_need_a_frame_and_labels_a_row_each(shop) -> None:
    columns, y = shop
    with pytest.raises(InputError, match="got columns color, size, code, new, which are not there; expected some of 0, 1, 2"):
        SMOTENC(CATEGORIES).fit_resample(objects(columns), y)
    with pytest.raises(InputError, match=r"'auto' for a ndarray; .* the input data should be a pandas.DataFrame or polars.DataFrame"):
        SMOTENC("auto").fit_resample(objects(columns), y)
    with pytest.raises(InputError, match="X and y: got 200 and 199 rows; expected as many labels as rows"):
        SMOTENC([1, 3, 4, 5]).fit_resample(objects(columns), y[1:])


# ---- SMOTE-N ----------------------------------------------------------------------------------------------------------------------------


def test_categories_alone_by_majority_among_the_row_and_its_neighbors(shop) -> None:
    columns, y = shop
    X = objects(columns)[:, [1, 3, 4]].copy()
    sampler = SMOTEN(random_state=0)
    X_new, _ = sampler.fit_resample(X, y)
    assert sampler.parents_.shape == (80, 6)
    for row, voters in zip(X_new[200:], sampler.parents_, strict=True):
        for position, value in enumerate(row):
            votes = X[voters, position].tolist()
            assert votes.count(value) == max(map(votes.count, votes))
            assert value == min(other for other in votes if votes.count(other) == votes.count(value))


def test_frames_and_encoders_of_categories(shop) -> None:
    columns, y = shop
    expected, _ = SMOTEN(random_state=0).fit_resample(objects(columns)[:, [1, 3]].copy(), y)
    names = {name: columns[name] for name in ("color", "size")}
    for frame in (pandas.DataFrame(names, dtype="category"), polars.DataFrame(names, schema_overrides={"color": polars.Categorical})):
        X_new, _ = SMOTEN(OrdinalEncoder(dtype=np.int64), random_state=0).fit_resample(frame, y)
        assert type(X_new) is type(frame) and list(X_new.dtypes) == list(frame.dtypes)
        assert X_new.to_numpy().tolist() == expected.tolist()


def test_an_estimator_searches_the_distances() -> None:
    X, y = np.arange(40)[:, None] % 7, np.repeat([0, 1], [25, 15])
    ours = SMOTEN(random_state=0, k_neighbors=NearestNeighbors(n_neighbors=3)).fit_resample(X, y)
    theirs = over_sampling.SMOTEN(random_state=0, k_neighbors=NearestNeighbors(n_neighbors=3)).fit_resample(X, y)
    assert ours[0].shape == theirs[0].shape and set(ours[0][40:, 0]) <= set(X[y == 1, 0])


def test_a_class_with_few_rows_has_fewer_voters() -> None:
    X = np.array([["a"], ["b"], ["a"], ["c"], ["c"], ["b"], ["c"], ["a"], ["b"], ["b"], ["a"], ["c"], ["c"], ["c"], ["c"]], dtype=object)
    y = np.repeat([2, 1, 0], [3, 5, 7])
    sampler = SMOTEN(k_neighbors=4, random_state=0)
    with pytest.warns(UserWarning, match="class 2 has only 3 rows, so 2 neighbors are used instead of 4"):
        sampler.fit_resample(X, y)
    assert sampler.parents_.shape == (6, 5)
    assert (sampler.parents_[:2] >= 0).all() and (sampler.parents_[2:, 3:] == -1).all() and (sampler.parents_[2:, :3] >= 0).all()
