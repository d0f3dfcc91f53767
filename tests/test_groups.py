from __future__ import annotations

import dataclasses
import datetime
import pickle

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from counterpoise import Groups
from counterpoise._errors import InputError

NAN = float("nan")


@pytest.mark.parametrize(
    ("labels", "ids", "names"),
    [
        (["b", "a", "b"], [1, 0, 1], ("a", "b")),
        (["b", None, "a", NAN], [1, -1, 0, -1], ("a", "b")),
        ([10, 9, 10], [1, 0, 1], ("9", "10")),
        ([10, None, 9], [1, -1, 0], ("9", "10")),
        ([2.0, NAN, 1.0], [1, -1, 0], ("1", "2")),
        ([0.5, 0.25], [1, 0], ("0.25", "0.5")),
        ([True, False, True], [1, 0, 1], ("False", "True")),
        ([1, "a", 1], [0, 1, 0], ("1", "a")),
        (np.array(["x", "y"]), [0, 1], ("x", "y")),
        (np.array(["2024-05-01", "NaT"], dtype="datetime64[D]"), [0, -1], ("2024-05-01",)),
        ([datetime.date(2024, 5, 1)], [0], ("2024-05-01",)),
        (torch.tensor([3, 1, 3]), [1, 0, 1], ("1", "3")),
        (pl.Series(["b", None, "a"]), [1, -1, 0], ("a", "b")),
        (pl.Series(["b", None, "a"], dtype=pl.Categorical), [1, -1, 0], ("a", "b")),
        (pl.Series([7, None, 5]), [1, -1, 0], ("5", "7")),
        (pd.Series(["b", None, "a"]), [1, -1, 0], ("a", "b")),
        (pd.Series([7, None, 5], dtype="Int64"), [1, -1, 0], ("5", "7")),
        (pd.Series(["b", None, "a"], dtype="category"), [1, -1, 0], ("a", "b")),
        (pa.chunked_array([["b", None], ["a"]]), [1, -1, 0], ("a", "b")),
        ([], [], ()),
        ([None, None], [-1, -1], ()),
    ],
)
def test_labels_of_any_type(labels, ids, names) -> None:
    groups = Groups.from_labels(labels)
    assert groups.ids.tolist() == ids and groups.ids.dtype == np.int64
    assert groups.names == names
    assert groups.kind == "class"


def test_counts_ratio_and_members() -> None:
    groups = Groups([0, 2, 0, -1, 0], ("many", "empty", "few"), "domain")
    assert groups.counts().tolist() == [3, 0, 1]
    assert groups.ratio() == 3.0
    assert groups.members("many").tolist() == groups.members(0).tolist() == [0, 2, 4]
    assert groups.members("empty").tolist() == []
    assert groups.members(-1).tolist() == [3]
    assert len(groups) == 3
    assert np.isnan(Groups([], ()).ratio())


def test_torch_gets_a_copy() -> None:
    groups = Groups([0, 1, -1], ("a", "b"))
    ids = groups.to_torch()
    assert ids.dtype == torch.int64 and ids.tolist() == [0, 1, -1]
    ids[0] = 1
    assert groups.ids[0] == 0


def test_groups_do_not_change() -> None:
    given = np.array([0, 1])
    groups = Groups(given, ("a", "b"))
    given[0] = 1
    assert groups.ids.tolist() == [0, 1]
    with pytest.raises(ValueError, match="read-only"):
        groups.ids[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        groups.kind = "bin"


def test_equality_hash_and_pickle() -> None:
    groups = Groups([0, 1], ("a", "b"))
    same = Groups(np.array([0, 1], dtype=np.int32), ["a", "b"])
    assert groups == same and hash(groups) == hash(same) and pickle.loads(pickle.dumps(groups)) == groups
    for other in (Groups([1, 0], ("a", "b")), Groups([0, 1], ("a", "c")), Groups([0, 1], ("a", "b"), "bin"), Groups([0], ("a", "b")), "a"):
        assert groups != other


def test_repr_is_one_readable_line() -> None:
    assert repr(Groups([0, 0, 1, -1], ("a", "b"), "cluster")) == "Groups(cluster, n=4: a 2, b 1, none 1)"
    assert repr(Groups.from_labels(range(100))).endswith("7 1 and 92 more)")
    assert repr(Groups([], ())) == "Groups(class, n=0)"


def test_bins_of_equal_width() -> None:
    y = np.array([0.0, 0.5, 1.0, 1.999, 2.0, NAN])
    groups = Groups.from_bins(y, bins=2)
    assert groups.ids.tolist() == [0, 0, 1, 1, 1, -1]
    assert groups.names == ("[0, 1)", "[1, 2]") and groups.kind == "bin"
    assert Groups.from_bins(y).counts().tolist() == np.histogram(y[:-1], bins=10)[0].tolist()


def test_bins_with_edges_of_ones_own() -> None:
    groups = Groups.from_bins([-1, 0, 17.5, 18, 65, 66], bins=[0, 18, 65])
    assert groups.ids.tolist() == [-1, 0, 0, 1, 1, -1]
    assert groups.names == ("[0, 18)", "[18, 65]")
    assert Groups.from_bins([1.0, 2.0], bins=np.array([0.0, 1.5, 3.0])).ids.tolist() == [0, 1]


def test_bins_of_equal_counts() -> None:
    y = np.random.default_rng(0).lognormal(size=1000)
    assert Groups.from_bins(y, bins=8, strategy="quantile").counts().tolist() == [125] * 8
    # Six of eight values are 0: the quartiles are 0, 0, 0, .25 and 2, and edges that fall together are merged.
    assert Groups.from_bins([0, 0, 0, 0, 0, 0, 1, 2], bins=4, strategy="quantile").counts().tolist() == [6, 2]


def test_bins_of_a_constant() -> None:
    for strategy in ("width", "quantile"):
        groups = Groups.from_bins([5.0, 5.0], bins=1, strategy=strategy)
        assert groups.counts().tolist() == [2], strategy


def test_bins_that_are_close_keep_different_names() -> None:
    groups = Groups.from_bins(1e6 + np.arange(10.0), bins=3)
    assert groups.names == ("[1000000, 1000003)", "[1000003, 1000006)", "[1000006, 1000009]")


@pytest.mark.parametrize("frame_of", [dict, pl.DataFrame, pd.DataFrame, pa.table])
def test_intersections_of_columns(frame_of) -> None:
    frame = frame_of({"sex": ["F", "M", "F", None], "site": [2, 1, 2, 1], "x": [0.1, 0.2, 0.3, 0.4]})
    groups = Groups.from_columns(frame, ["sex", "site"])
    assert groups.ids.tolist() == [0, 1, 0, -1]
    assert groups.names == ("sex=F, site=2", "sex=M, site=1")
    assert groups.kind == "attribute"
    assert Groups.from_columns(frame, "sex", kind="domain") == Groups.from_labels(["F", "M", "F", None], kind="domain")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Groups([0, 2], ("a", "b")), "ids: got 2; expected -1 for none, or an index into the 2 names"),
        (lambda: Groups([0, -2], ("a", "b")), "ids: got -2"),
        (lambda: Groups([0.0, 1.0], ("a", "b")), "ids: got an array of float64; expected integers. Groups.from_labels"),
        (lambda: Groups([[0]], ("a",)), r"ids: got an array of shape \(1, 1\)"),
        (lambda: Groups([0], ("a", "b", "a")), "names: got 'a'; expected every name once"),
        (lambda: Groups([0], "a"), "names: got 'a'; expected one name per group"),
        (lambda: Groups([0], ("a",), "klass"), "kind: got 'klass'; expected one of class, bin"),
        (lambda: Groups.from_labels([[1, 2]]), "y: got an array of shape"),
        (lambda: Groups.from_labels([[1, 2], [1]]), "y: got a sequence of 2 items of different lengths"),
        (lambda: Groups.from_bins(["a"]), "y: got an array of object; expected numbers"),
        (lambda: Groups.from_bins([NAN]), "y: got no number that is present"),
        (lambda: Groups.from_bins([]), "y: got no number that is present"),
        (lambda: Groups.from_bins([1.0, float("inf")]), "y: got an infinite number"),
        (lambda: Groups.from_bins([1.0, 2.0], bins=0), "bins: got 0; expected an integer >= 1"),
        (lambda: Groups.from_bins([1.0, 2.0], bins=[1.0, 1.0]), "bins: got .*increasing edges"),
        (lambda: Groups.from_bins([1.0, 2.0], strategy="equal"), "strategy: got 'equal'"),
        (lambda: Groups.from_columns({"a": [1]}, "b"), "columns: got 'b'; expected names among a"),
        (lambda: Groups.from_columns({"a": [1]}, []), "at least one of a"),
        (lambda: Groups([0], ("a",)).members("b"), "k: got 'b'; expected one of a"),
        (lambda: Groups([0], ("a",)).members(1), r"k: got 1; expected an integer in \[-1, 0\]"),
    ],
)
def test_bad_input_is_refused(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()
