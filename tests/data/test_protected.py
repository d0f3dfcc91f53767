from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks

from counterpoise._errors import InputError
from counterpoise.data import ProtectedAttributeEncoder
from counterpoise.losses import DistanceCovariancePenalty

TABLE = {"sex": ["f", "m", "m", "f"], "age": [20, 30, 60, 40], "union": [True, False, True, True]}
EXPECTED = np.array([[1, 0, 0, 0, 1], [0, 1, 0.25, 1, 0], [0, 1, 1, 0, 1], [1, 0, 0.5, 0, 1]])


@parametrize_with_checks([ProtectedAttributeEncoder(), ProtectedAttributeEncoder(handle_unknown="ignore")])
def test_scikit_learn_contract(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, lambda t: np.array(list(zip(*t.values(), strict=True)), dtype=object)])
def test_levels_are_one_hot_and_numbers_lie_between_0_and_1(make) -> None:
    encoder = ProtectedAttributeEncoder()
    np.testing.assert_array_equal(encoder.fit_transform(make(TABLE)), EXPECTED)
    assert [len(levels) for levels in encoder.categories_.values()] == [2, 2] and list(encoder.ranges_.values()) == [(20.0, 60.0)]
    assert list(encoder.split(EXPECTED)) == list(encoder._names)
    np.testing.assert_array_equal(encoder.split(EXPECTED)[encoder._names[1]], EXPECTED[:, 2:3])


def test_names_of_columns() -> None:
    encoder = ProtectedAttributeEncoder().fit(pd.DataFrame(TABLE))
    assert encoder.get_feature_names_out().tolist() == ["sex_f", "sex_m", "age", "union_False", "union_True"]


def test_codes_are_levels_if_one_says_so() -> None:
    X = np.array([[3, 1.0], [7, 2.0], [9, 3.0]])
    assert ProtectedAttributeEncoder().fit_transform(X).shape == (3, 2)
    assert ProtectedAttributeEncoder(categorical_features=[0]).fit_transform(X).shape == (3, 4)
    frame = pd.DataFrame({"region": pd.Categorical([3, 7, 3]), "age": [1, 2, 3]})
    assert ProtectedAttributeEncoder().fit_transform(frame).shape == (3, 3)
    assert ProtectedAttributeEncoder(["age"]).fit_transform(pl.DataFrame({"age": [1, 2, 3]})).shape == (3, 3)
    with pytest.raises(InputError, match="categorical_features: got 'ages'; expected names among age"):
        ProtectedAttributeEncoder(["ages"]).fit(pl.DataFrame({"age": [1, 2, 3]}))


def test_unknown_levels() -> None:
    table, later = pl.DataFrame({"sex": ["f", "m"]}), pl.DataFrame({"sex": ["x", "m"]})
    with pytest.raises(InputError, match="level 'x' in column sex; expected the levels seen in fit: f, m"):
        ProtectedAttributeEncoder().fit(table).transform(later)
    np.testing.assert_array_equal(ProtectedAttributeEncoder(handle_unknown="ignore").fit(table).transform(later), [[0, 0], [0, 1]])


def test_later_numbers_may_lie_outside_and_constants_are_0() -> None:
    encoder = ProtectedAttributeEncoder().fit([[10.0, 5.0], [20.0, 5.0]])
    np.testing.assert_array_equal(encoder.transform([[30.0, 9.0]]), [[2.0, 0.0]])


@pytest.mark.parametrize(("table", "message"), [
    (pd.DataFrame({"sex": ["f", None]}), "missing value in column sex"),
    (pl.DataFrame({"sex": ["f", None]}), "missing value in column sex"),
    (pd.DataFrame({"age": [1.0, float("nan")]}), "NaN or infinity in column age"),
    (pd.Series([1.0, 2.0], name="age"), "to_frame"),
    (pl.DataFrame({"age": []}), "at least one row"),
])  # fmt: skip
def test_bad_input(table, message) -> None:
    with pytest.raises(InputError) as error:
        ProtectedAttributeEncoder().fit(table)
    assert message in str(error.value)


def test_bad_options() -> None:
    with pytest.raises(InputError, match="handle_unknown"):
        ProtectedAttributeEncoder(handle_unknown="skip").fit([[1.0]])
    with pytest.raises(InputError, match="categorical_features"):
        ProtectedAttributeEncoder("all").fit([[1.0]])
    with pytest.raises(InputError, match="encoded: got shape"):
        ProtectedAttributeEncoder().fit([[1.0]]).split(np.zeros((3, 2)))


def test_the_penalty_takes_what_it_makes() -> None:
    y, codes = torch.rand(40, generator=torch.Generator().manual_seed(0)), np.arange(40) % 3
    frame = pl.DataFrame({"level": np.array(["a", "b", "c"])[codes], "age": np.arange(40.0)})
    encoder = ProtectedAttributeEncoder().fit(frame)
    attributes = encoder.split(torch.from_numpy(encoder.transform(frame)))
    expected = DistanceCovariancePenalty("jdcov")(y, [torch.from_numpy(codes), torch.linspace(0, 1, 40)])
    torch.testing.assert_close(DistanceCovariancePenalty("jdcov")(y, attributes), expected)
