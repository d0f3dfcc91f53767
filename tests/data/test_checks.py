"""What the resamplers of this room refuse about a table, and what they must not spoil at the ends of a number's range."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from counterpoise._errors import InputError
from counterpoise.data import (
    ADASYN,
    SMOGN,
    SMOTE,
    SMOTEENN,
    SMOTEN,
    SMOTENC,
    SMOTER,
    BalancedClassSampler,
    BorderlineSMOTE,
    LikelihoodWeighter,
    SMOTETomek,
)
from counterpoise.data._checks import check_squares
from counterpoise.data._tables import as_whole

X = np.random.default_rng(0).normal(size=(60, 3))
Y = np.repeat([0, 1], [45, 15])
T = np.exp(2 * np.random.default_rng(1).normal(size=60))
NUMERIC = (SMOTE, BorderlineSMOTE, ADASYN, SMOTEENN, SMOTETomek)
TEXT = pd.DataFrame(X, columns=list("abc")).assign(q=["red", "blue"] * 30)
LIBRARIES = {"pandas": TEXT, "polars": pl.from_pandas(TEXT)}


# ---- numbers too large ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [*NUMERIC, lambda: SMOTENC([2])], ids=lambda make: getattr(make, "__name__", "sampler"))
def test_a_value_whose_square_overflows_is_named(sampler) -> None:
    Z = X.copy()
    Z[:, 2] = Y
    Z[50, 0] = -1e200
    with pytest.raises(InputError, match=r"X: got -1e\+200 in column 0; .* squares of differences overflow float64. Scale the column"):
        sampler().fit_resample(Z, Y)
    frame = pd.DataFrame(Z, columns=["price", "size", "kind"])
    with pytest.raises(InputError, match=r"got -1e\+200 in column price"):
        sampler().fit_resample(frame, Y) if sampler in NUMERIC else SMOTENC(["kind"]).fit_resample(frame, Y)


def test_where_squares_begin_to_overflow() -> None:
    for scale, dtype, limit in ((1e160, np.float64, r"4e\+153"), (1e20, np.float32, r"5e\+18")):
        with pytest.raises(InputError, match=rf"numbers up to about {limit}.*overflow {dtype.__name__}"):
            SMOTE().fit_resample((X * scale).astype(dtype), Y)
    with pytest.raises(InputError, match="in column 1; expected numbers up to"):
        check_squares(np.array([[0.0, 1e154], [1.0, 2.0]]), ["0", "1"], terms=2)
    # Just within, the sum of the squares of the largest differences is a number.
    edge = np.sqrt(np.finfo(np.float64).max / 12) * 0.999
    check_squares(np.full((2, 3), edge), ["0", "1", "2"], terms=3)
    assert np.isfinite(3 * np.square(2 * edge))
    largest = np.abs(X).max()
    new, _ = SMOTE(random_state=0).fit_resample(X / largest * edge, Y)
    np.testing.assert_allclose(new / edge, SMOTE(random_state=0).fit_resample(X / largest, Y)[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scale", [1e160, 1e200])
def test_embeddings_whose_squares_overflow_are_refused(scale) -> None:
    with pytest.raises(InputError, match=r"X: got .* in column 0; .*squares of differences overflow float64"):
        LikelihoodWeighter().fit(X * scale)
    assert LikelihoodWeighter().fit(X * 1e150).sample_weight_.mean() == pytest.approx(1)


@pytest.mark.parametrize("sampler", [SMOTER, SMOGN])
def test_rows_and_targets_of_regression_do_not_overflow(sampler) -> None:
    with pytest.raises(InputError, match=r"X: got 1.7e\+308 in column 0"):
        sampler().fit_resample(np.where(X > 0, 1.7e308, -1.7e308), T)
    with pytest.raises(InputError, match=r"y: got .*e\+30. in a value; .*Scale the target"):
        sampler().fit_resample(X, T / T.max() * 1e308)


# ---- the ends of a number's range -------------------------------------------------------------------------------------------------------


def test_half_precision_stays_finite_and_between_its_parents() -> None:
    half = np.where(X > 0, 65000, -65000).astype(np.float16)
    smote = SMOTE(random_state=0)
    new = smote.fit_resample(half, Y)[0][60:]
    one, other = (half[smote.parents_[:, side]].astype(np.float64) for side in (0, 1))
    assert new.dtype == np.float16 and (one != other).any()
    assert (new >= np.minimum(one, other)).all() and (new <= np.maximum(one, other)).all()
    np.testing.assert_allclose(new, one + smote.gaps_[:, None] * (other - one), rtol=1e-3, atol=1)


@pytest.mark.filterwarnings("ignore:X. columns")
@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int8])
def test_integers_at_the_end_of_their_type_stay_there(dtype) -> None:
    most, least = np.iinfo(dtype).max, np.iinfo(dtype).min
    columns = {"most": np.full(60, most, dtype=dtype), "least": np.full(60, least, dtype=dtype), "x": np.arange(60).astype(dtype)}
    array = SMOTE(random_state=0).fit_resample(np.column_stack(list(columns.values())), Y)[0]
    assert array.dtype == dtype and (array[:, 0] == most).all() and (array[:, 1] == least).all()
    columns["x"] = X[:, 0]  # now the columns have no type in common but float64
    for frame in (pd.DataFrame(columns), pl.DataFrame(columns)):
        new, _ = SMOTE(random_state=0).fit_resample(frame, Y)
        assert new["most"].to_numpy().dtype == dtype
        assert set(new["most"].to_list()) == {most} and set(new["least"].to_list()) == {least}
        rows, _ = SMOTER(random_state=0).fit_resample(frame, T)
        assert set(rows["most"].to_list()) == {most} and set(rows["least"].to_list()) == {least}


def test_floats_become_the_nearest_integers_of_a_type() -> None:
    assert as_whole(np.array([-1.0, 0.4, 2.6, 254.7, 300.0]), np.uint8).tolist() == [0, 0, 3, 255, 255]
    assert as_whole(np.array([2.0**63, -(2.0**64), 2.0**53]), np.int64).tolist() == [2**63 - 1, -(2**63), 2**53]
    assert as_whole(np.array([2.0**64, -3.0]), np.uint64).tolist() == [2**64 - 1, 0]


@pytest.mark.filterwarnings("ignore:X. columns")
@pytest.mark.parametrize("sampler", [SMOTETomek, SMOTEENN])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int8, np.float16])
def test_rows_are_cleaned_by_their_true_distances(sampler, dtype) -> None:
    own = (X > 0) if dtype is bool else np.clip(np.rint(40 * X + 60), 0, 120).astype(dtype)
    kept = sampler(random_state=0)
    new, _ = kept.fit_resample(own, Y)
    assert new.dtype == dtype
    both, labels = SMOTE(random_state=0).fit_resample(own, Y)
    cleaner = sampler(smote=_Given())
    cleaner.fit_resample(both.astype(np.float64), labels)
    np.testing.assert_array_equal(kept.kept_indices_, cleaner.kept_indices_)


class _Given:
    """An over-sampler that adds nothing."""

    def get_params(self, deep: bool = True) -> dict[str, object]:
        return {}

    def set_params(self, **_: object) -> _Given:
        return self

    def fit_resample(self, X, y):
        return X, y


# ---- what is no number ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", NUMERIC)
def test_what_cannot_be_interpolated_is_refused(sampler) -> None:
    with pytest.raises(InputError, match=r"X: got values of (float128|longdouble); .*astype\('float64'\)"):
        if np.dtype(np.longdouble).itemsize <= 8:
            pytest.skip("no longer floats here")
        sampler().fit_resample(X.astype(np.longdouble), Y)
    dates = (100 * np.abs(X)).astype(np.int64).astype("datetime64[s]")
    with pytest.raises(InputError, match=r"X: got values of datetime64\[s\]; expected numbers. Turn dates into numbers"):
        sampler().fit_resample(dates, Y)
    dated = pd.DataFrame(X, columns=list("abc")).assign(day=dates[:, 0])
    for frame in (dated, pl.from_pandas(dated)):
        with pytest.raises(InputError, match="X: got dates in column day"):
            sampler().fit_resample(frame, Y)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("sampler", NUMERIC)
def test_the_column_with_text_is_named(sampler, library) -> None:
    with pytest.raises(InputError, match=r"X: got text in column q, such as 'red'; expected numbers. SMOTENC takes .* encode them"):
        sampler().fit_resample(LIBRARIES[library], Y)


def test_text_of_every_kind_is_found() -> None:
    tables = (TEXT.astype({"q": "category"}), TEXT.to_numpy(), TEXT.to_numpy().tolist())
    for table, name in zip(tables, ("q", 3, 3), strict=True):
        with pytest.raises(InputError, match=f"text in column {name}, such as 'red'"):
            SMOTE().fit_resample(table, Y)
    for frame in LIBRARIES.values():
        with pytest.raises(InputError, match="text in column q"):
            SMOTE(dtype="float32").fit_resample(frame, Y)
        with pytest.raises(InputError, match=r"text in column q, such as 'red'; expected numbers. Encode it first, or pass an encoder"):
            LikelihoodWeighter().fit(frame)


def test_text_that_is_not_listed_as_a_category_is_named() -> None:
    for frame in LIBRARIES.values():
        for options in ({}, {"dtype": "float32"}):
            with pytest.raises(
                InputError, match=r"text in column q, .*categorical_features leaves out. List it in .*cast it to a categorical"
            ):
                SMOTENC([2], **options).fit_resample(frame, Y)
        with pytest.raises(
            InputError, match=r"got no column; .*'auto' takes the columns of dtype category \(pandas\), or Categorical and Enum"
        ):
            SMOTENC("auto").fit_resample(frame, Y)
    with pytest.raises(InputError, match=r"text in column q, .*columns of strings are not among them"):
        SMOTENC("auto").fit_resample(TEXT.assign(kind=pd.Categorical(Y)), Y)


def test_columns_of_one_name_are_refused() -> None:
    twice = pd.DataFrame(X, columns=["a", "a", "b"])
    for sampler in (SMOTE(), SMOTETomek(), SMOTEN(), SMOTENC([2])):
        with pytest.raises(InputError, match="X: got several columns of the name a; expected a name of its own"):
            sampler.fit_resample(twice, Y)
    with pytest.raises(InputError, match="several columns of the name a"):
        SMOTER().fit_resample(twice, T)
    with pytest.raises(InputError, match="several columns of the name a"):
        LikelihoodWeighter().fit(twice)


def test_tensors_are_read_as_arrays() -> None:
    expected, labels = SMOTE(random_state=0).fit_resample(X, Y)
    new, y_new = SMOTE(random_state=0).fit_resample(torch.tensor(X, requires_grad=True), torch.tensor(Y))
    np.testing.assert_array_equal(new, expected)
    np.testing.assert_array_equal(y_new, labels)
    assert SMOTE().fit_resample(torch.tensor(X).bfloat16(), Y)[0].dtype == np.float32


@pytest.mark.parametrize("kind", ["object", "string"])
def test_a_missing_category_is_named(kind) -> None:
    frame = pd.DataFrame({"color": ["red", "blue"] * 30, "size": ["s", "l", "m"] * 20}).astype(object)
    frame.loc[3, "size"] = np.nan
    with pytest.raises(
        InputError, match=r"X: got missing values in column size; expected a category in every row. Make missing a category"
    ):
        SMOTEN().fit_resample(frame.astype(kind), Y)
    numbers = np.tile([[1.0, 2.0]], (60, 1))
    numbers[7, 1] = np.nan
    with pytest.raises(InputError, match="missing values in column 1;"):
        SMOTEN().fit_resample(numbers, Y)


# ---- parameters -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coef": np.inf}, "coef: got inf; expected a finite number > 0"),
        ({"sampling_strategy": None}, "sampling_strategy: got None; expected one of balance, extreme, over, or a factor > 0 for each"),
        ({"sampling_strategy": 2.0}, "sampling_strategy: got 2.0; expected one of balance"),
        ({"sampling_strategy": {0: 1}}, "sampling_strategy: got {0: 1}; expected one of balance"),
        ({"sampling_strategy": ["a", "b"]}, r"sampling_strategy: got \['a', 'b'\]; expected one of balance"),
        ({"sampling_strategy": [1e12, 1]}, "sampling_strategy: got .*; expected factors that make at most 2,147,483,648 rows, not 51,0"),
        ({"random_state": -1}, "random_state: got -1; expected None, a seed >= 0"),
        ({"random_state": "x"}, "random_state: got 'x'; expected None"),
        ({"n_jobs": 0}, "n_jobs: got 0; expected None, a number of processes"),
        ({"n_jobs": "x"}, "n_jobs: got 'x'; expected an integer"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("sampler", [SMOTER, SMOGN])
def test_parameters_of_regression_are_checked(sampler, options, message) -> None:
    with pytest.raises(InputError, match=message):
        sampler(**options).fit_resample(X, T)


def test_a_table_without_columns_and_no_processes_are_refused() -> None:
    with pytest.raises(InputError, match=r"X: got shape \(60, 0\); expected a table with at least one column"):
        SMOTER().fit_resample(X[:, :0], T)
    for sampler in (*NUMERIC, SMOTEN):
        with pytest.raises(InputError, match="n_jobs: got 0"):
            sampler(n_jobs=0).fit_resample(X, Y)


@pytest.mark.parametrize("extremes", ["both", "low", "high"])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_the_relevance_that_is_suggested_works(extremes, offset) -> None:
    y = np.random.default_rng(0).uniform(size=60) + offset
    with pytest.raises(InputError, match="Say which values are rare") as caught:
        SMOTER(extremes=extremes).fit_resample(X, y)
    said = str(caught.value).split("relevance=[(")[1].removesuffix(")].").split("), (")
    points = [tuple(float(number) for number in point.split(", ")) for point in said]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # few rows, few neighbors
        sampler = SMOTER(relevance=points, random_state=0)
        assert len(sampler.fit_resample(X, y)[1]) == 60
    rare = [part.rare for part in sampler.ranges_]
    assert rare == ([True, False] if extremes == "low" else [False, True])


def test_of_a_constant_target_nothing_is_suggested() -> None:
    with pytest.raises(InputError, match=r"All targets are equal: nothing can be rare.$"):
        SMOTER().fit_resample(X, np.zeros(60))


@pytest.mark.parametrize("normalize", ["mean", "none"])
def test_weights_that_are_all_zero_are_refused(normalize) -> None:
    with pytest.raises(InputError, match=r"gamma: got 1000000000.0; expected less, since with eta=0 all weights come out as 0"):
        LikelihoodWeighter(eta=0, gamma=1e9, normalize=normalize).fit(X)


def test_a_state_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match=r"state: got None; expected what state_dict\(\) gives: seed, epoch"):
        BalancedClassSampler(Y).load_state_dict(None)
