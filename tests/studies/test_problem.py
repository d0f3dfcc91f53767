"""From tables to problems: types, targets, rows that belong together, leaks, and one line for everything that cannot be used."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from counterpoise._errors import InputError
from counterpoise.datasets import Dataset, load
from counterpoise.studies._leakage import predicts_alone
from counterpoise.studies._problem import Problem, Schema, build_problem

RNG = np.random.default_rng(0)
N = 200
START = datetime.datetime(2023, 1, 1)


def table(**columns: Any) -> pl.DataFrame:
    """200 rows: two numbers, a category, and a target of 50 "yes" and 150 "no"; more columns, or others, by name."""
    base = {
        "size": np.round(np.random.default_rng(1).normal(size=N), 6),
        "age": np.random.default_rng(2).integers(18, 90, N),
        "city": np.random.default_rng(3).choice(["Oslo", "Bergen", "Bodø"], N),
        "y": np.where(np.arange(N) % 4 == 0, "yes", "no"),
    }
    return pl.DataFrame({name: value for name, value in (base | columns).items() if value is not None}, strict=False)


def build(frame: Any, target: str | None = "y", **options: Any) -> Problem:
    return build_problem(frame, target=target, **options)


def fails(words: list[str], call: Callable[[], object]) -> None:
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def notice(problem: Problem, *words: str) -> None:
    assert any(all(word in text for word in words) for text in problem.notices), problem.notices


# -- the whole --------------------------------------------------------------------------------------------------------------------------


def test_a_plain_table() -> None:
    frame = table()
    problem = build(frame)
    assert (problem.n, problem.p, problem.task) == (N, 3, "binary")
    assert problem.schema.classes == ("no", "yes")
    assert problem.y.dtype == np.int64
    assert problem.counts.tolist() == [150, 50]
    assert problem.minority == 50
    assert problem.categorical.tolist() == [False, False, True]
    assert problem.X.dtype == np.float64
    assert problem.X.flags.c_contiguous
    assert np.array_equal(problem.X[:, 0], frame["size"].to_numpy())
    city = problem.schema.features[2]
    assert city.levels == ("Bergen", "Bodø", "Oslo")
    assert [city.levels[int(code)] for code in problem.X[:5, 2]] == frame["city"].head(5).to_list()
    assert np.array_equal(problem.blocks, np.arange(N))
    assert (problem.copies, problem.clustered) == (0, False)
    assert problem.text is problem.time is problem.weight is problem.fixed_test is None
    notice(problem, "'yes'", "rarer")


def test_numpy_pandas_polars_and_arrow_agree() -> None:
    frame = table(city=None)
    X, y = frame.drop("y"), frame["y"]
    expected = build(frame)
    for data, target in [(X, y), (X.to_pandas(), y.to_pandas()), (X.to_arrow(), y.to_list()), (X, y.to_numpy().reshape(-1, 1))]:
        problem = build_problem(data, target)
        assert np.array_equal(problem.X, expected.X)
        assert np.array_equal(problem.y, expected.y)
        assert problem.data_hash == expected.data_hash
    arrays = build_problem(X.to_numpy(), y.to_numpy())
    assert [feature.name for feature in arrays.schema.features] == ["x0", "x1"]
    assert np.array_equal(arrays.X, expected.X)
    assert build_problem(frame, "y").data_hash == expected.data_hash


def test_named_sets_bring_what_they_know() -> None:
    problem = build_problem("digits8")
    assert (problem.name, problem.task, problem.schema.classes) == ("digits8", "binary", ("other", "8"))
    assert "pixel_0_0" in dict(problem.schema.dropped)
    diabetes = build_problem("diabetes")
    assert diabetes.task == "regression"
    assert diabetes.groups["sex"].names == ("1", "2")
    assert "sex" in [feature.name for feature in diabetes.schema.features]
    assert build_problem("sklearn:wine").task == "multiclass"
    other = build_problem("diabetes", target="sex", task="classification")
    assert (other.task, other.groups) == ("binary", {})


def test_many_rows_are_float32() -> None:
    X = RNG.normal(size=(100_001, 2))
    problem = build_problem(X, X[:, 0] + RNG.normal(size=len(X)) > 1)
    assert problem.X.dtype == np.float32
    assert problem.schema.encode(pl.DataFrame(X[:5], schema=["x0", "x1"]))[0].dtype == np.float32
    assert problem.schema.classes == ("false", "true")


# -- columns ----------------------------------------------------------------------------------------------------------------------------


def test_text_that_holds_numbers_and_gaps() -> None:
    values = [str(i % 17) for i in range(N)]
    values[:6] = ["", "NA", "?", "null", " 3 ", "1e2"]
    problem = build(table(size=values))
    assert problem.schema.features[0].kind == "numeric"
    assert np.isnan(problem.X[:4, 0]).all()
    assert problem.X[4:6, 0].tolist() == [3.0, 100.0]


def test_infinite_numbers_are_missing() -> None:
    values = np.arange(N) % 13.0
    values[:2] = np.inf, -np.inf
    assert np.isnan(build(table(size=values)).X[:2, 0]).all()


def test_booleans_and_gaps_in_categories() -> None:
    flags = [bool(i % 3) for i in range(N)]
    cities = [["Oslo", "Bergen", None, "?"][i % 4] for i in np.random.default_rng(5).integers(0, 4, N)]
    for column in (flags, [str(flag) for flag in flags]):
        problem = build(table(flag=column, city=cities))
        flag = next(j for j, feature in enumerate(problem.schema.features) if feature.name == "flag")
        assert problem.schema.features[flag].kind == "numeric"
        assert problem.X[:6, flag].tolist() == [0, 1, 1, 0, 1, 1]
    city = next(j for j, feature in enumerate(problem.schema.features) if feature.name == "city")
    assert problem.schema.features[city].levels == ("Bergen", "Oslo")
    assert np.isnan(problem.X[:, city]).sum() == sum(value in (None, "?") for value in cities)


@pytest.mark.parametrize("kind", [str, None])
def test_dates_become_parts(kind: type | None) -> None:
    when = [START + datetime.timedelta(days=int(day), hours=int(day) % 24) for day in np.random.default_rng(7).integers(0, 700, N)]
    problem = build(table(when=[moment.isoformat(" ") for moment in when] if kind else when))
    parts = {feature.name: problem.X[:, j] for j, feature in enumerate(problem.schema.features) if feature.source == "when"}
    assert list(parts) == ["when.year", "when.month", "when.weekday", "when.hour"]
    assert parts["when.month"][:9].tolist() == [moment.month for moment in when[:9]]
    assert parts["when.weekday"][:9].tolist() == [moment.isoweekday() for moment in when[:9]]
    assert parts["when.hour"][:9].tolist() == [moment.hour for moment in when[:9]]
    notice(problem, "when", "--time when")


def test_ids_constants_and_empty_columns_are_dropped_by_name() -> None:
    frame = table(
        key=np.arange(N)[::-1] * 3,
        code=[f"p{i}" for i in range(N)],
        one=np.ones(N),
        none=[None] * N,
        nan=np.full(N, np.nan),
    )
    problem = build(frame)
    reasons = dict(problem.schema.dropped)
    assert set(reasons) == {"key", "code", "one", "none", "nan"}
    assert reasons["one"] == "constant"
    assert reasons["none"] == reasons["nan"] == "no values"
    assert reasons["key"].startswith("id")
    notice(problem, "'key', 'code'", "--keep")
    kept = build(frame, keep=["key", "code"])
    assert {"key", "code"} <= {feature.name for feature in kept.schema.features}


def test_numbers_that_only_rise_are_no_ids_if_they_are_fractions_or_repeat() -> None:
    problem = build(table(rising=np.arange(N) / 7, steps=np.arange(N) // 2))
    assert {"rising", "steps"} <= {feature.name for feature in problem.schema.features}


def test_free_text_needs_to_be_named() -> None:
    words = [f"a message of some length with the number {i} in it" for i in range(N)]
    frame = table(message=words, subject=["re", None] * (N // 2))
    problem = build(frame)
    assert dict(problem.schema.dropped)["message"] == "free text"
    notice(problem, "'message'", "--text")
    named = build(frame, text=["subject", "message"])
    assert named.text is not None
    assert named.text[1] == "\n" + words[1]
    assert named.text[0] == "re\n" + words[0]
    assert "subject" not in [feature.name for feature in named.schema.features]
    only = build(frame.select("message", "y"), text="message")
    assert only.X.shape == (N, 0)


def test_dropping_by_request() -> None:
    problem = build(table(), drop=["size", "city"])
    assert [feature.name for feature in problem.schema.features] == ["age"]
    fails(["No column is left", "one (constant)"], lambda: build(pl.DataFrame({"one": [1] * N, "y": table()["y"]})))
    fails(["No column is left", "size (by request)"], lambda: build(table(), drop=["size", "city", "age"]))


def test_numbers_with_a_stray_word_are_named() -> None:
    values = [str(value) for value in np.random.default_rng(8).integers(0, 150, N)]
    values[3] = "n/d"
    notice(build(table(size=values)), "'size'", "'n/d'")


@pytest.mark.parametrize(
    "write",
    [
        "{0:,.2f}",
        "{0:.2f}",
        "{1}%",
        "{1} %",
        "EUR {1}",
        "{1} EUR",
        "${1}",
        "\u20ac {0:,.2f}",
        "<{1}",
        "{1} kg",
        "{1}k",
        "\u2212{1}",
        "({1})",
        "{0:.3e}",
    ],
)
def test_numbers_that_cannot_be_read_are_no_ids_and_are_named(write: str) -> None:
    values = [write.format(1000.25 + 1.37 * i, i) for i in range(N)]
    if write in ("{0:.2f}", "{0:.3e}"):
        values = [value.replace(".", ",") for value in values]
    problem = build(table(**{"a price": values}))
    feature = next(feature for feature in problem.schema.features if feature.name == "a price")
    assert feature.kind == "categorical" and not dict(problem.schema.dropped)
    notice(problem, f"'a price' is taken as {len(set(values))} categories", "100 %", f"{values[0]!r}, {values[1]!r}", "--drop 'a price'")


def test_thousands_with_spaces_and_a_share_of_the_values() -> None:
    values = [f"{1000 + i:,}".replace(",", " ") if i % 4 else "none given" for i in range(N)]
    notice(build(table(price=values)), "'price'", "75 %", "'none given', '1 001'")


@pytest.mark.parametrize("write", ["A{0:03d}", "{0}-{0}", "12.03.{0}", "{0}A", "1.2.{0}", "v{0}", "{0} Elm Street"])
def test_codes_are_no_numbers(write: str) -> None:
    problem = build(table(code=[write.format(i) for i in range(N)]))
    assert dict(problem.schema.dropped) == {"code": "id: another value in every row"}


def test_categories_that_hardly_repeat_are_warned_about() -> None:
    town = np.array([f"town {i}" for i in range(N)])[np.random.default_rng(4).integers(0, 90, N)]
    assert 60 < len(set(town)) < N
    notice(build(table(**{"home town": town})), f"'home town' is taken as categories, {len(set(town))} of them in 200", "'home town'")
    assert not any("taken as categories" in text for text in build(table()).notices)


@pytest.mark.parametrize("at_the_end", [True, False])
def test_ids_are_found_although_rows_are_copied(at_the_end: bool) -> None:
    frame = table(key=np.arange(N) * 3, code=[f"p{i}" for i in range(N)])
    rows = np.r_[np.arange(N), [4, 9, 9]]
    problem = build(frame[rows if at_the_end else np.sort(rows)])
    assert problem.copies == 3
    assert set(dict(problem.schema.dropped)) == {"key", "code"}


def test_a_category_is_no_id_where_most_rows_are_copies() -> None:
    level = np.random.default_rng(5).integers(0, 20, N)  # 20 distinct rows, each with another value of the category
    frame = pl.DataFrame({"side": [f"side {i}" for i in level], "y": np.where(level % 3 == 0, "yes", "no")})
    fails(["column 'side' predicts the target alone"], lambda: build(frame))


def test_nested_columns_are_dropped() -> None:
    problem = build(table(parts=[[1, 2]] * N))
    assert dict(problem.schema.dropped)["parts"] == "values of type list"


# -- target -----------------------------------------------------------------------------------------------------------------------------


def test_whole_numbers_with_few_values_are_classes_and_it_is_said() -> None:
    stars = np.random.default_rng(4).integers(1, 12, N)
    problem = build(table(y=stars))
    assert problem.task == "multiclass"
    assert problem.schema.classes == tuple(str(i) for i in range(1, 12))  # by size, not "1", "10", "11", "2"
    assert np.array_equal(problem.y, stars - 1)
    notice(problem, "11 whole numbers", "--task regression")
    amounts = build(table(y=stars), task="regression")
    assert amounts.task == "regression"
    assert amounts.y.dtype == np.float64
    assert np.array_equal(amounts.y, stars)


def test_floats_without_fractions_are_whole_numbers() -> None:
    problem = build(table(y=np.random.default_rng(4).integers(0, 3, N).astype(float)))
    assert problem.schema.classes == ("0", "1", "2")


@pytest.mark.parametrize("values", [RNG.normal(size=N), RNG.integers(0, 1000, N)], ids=["fractions", "many whole numbers"])
def test_amounts_are_a_regression(values: np.ndarray) -> None:
    problem = build(table(y=values))
    assert (problem.task, problem.schema.classes, problem.minority) == ("regression", (), 20)
    assert np.array_equal(problem.y, values)


@pytest.mark.parametrize(
    ("values", "positive", "classes"),
    [
        (np.arange(N) % 5 == 0, None, ("false", "true")),
        (np.where(np.arange(N) % 5 == 0, 0, 1), None, ("1", "0")),
        (np.where(np.arange(N) % 5 == 0, 0.0, 1.0), 1, ("0", "1")),
        (np.where(np.arange(N) % 5 == 0, "bad", "good"), "good", ("bad", "good")),
        (np.where(np.arange(N) % 5 == 0, "bad", "good"), "Good", ("bad", "good")),
        (np.arange(N) % 5 == 0, False, ("true", "false")),
        (np.arange(N) % 2, None, ("0", "1")),
    ],
)
def test_the_positive_class(values: np.ndarray, positive: Any, classes: tuple[str, str]) -> None:
    problem = build(table(y=values), positive=positive)
    assert problem.schema.classes == classes
    names = [str(value).lower().removesuffix(".0") for value in values]
    assert [classes[code] for code in problem.y] == names


def test_positive_must_be_one_of_two_classes() -> None:
    fails(["positive", "'maybe'", "'no', 'yes'"], lambda: build(table(), positive="maybe"))
    fails(["positive", "3"], lambda: build(table(y=np.arange(N) % 3), positive=1))
    fails(["positive", "regression"], lambda: build(table(y=RNG.normal(size=N)), positive=1))


def test_rows_without_a_target() -> None:
    labels = table()["y"].to_list()
    labels[:3] = [None, "", "?"]
    problem = build(table(y=labels))
    assert problem.n == N - 3
    notice(problem, "3 rows", "'y'")
    labels[:50] = [None] * 50
    fails(["50 of 200 rows", "20 %"], lambda: build(table(y=labels)))
    values = RNG.normal(size=N)
    values[0], values[1] = np.nan, np.inf
    assert build(table(y=values)).n == N - 2


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["no"] * N, ["'y'", "one value", "'no'"]),
        (["yes"] + ["no"] * (N - 1), ["1 row of class 'yes'; a study needs at least 4 (2 folds x 2)", "counterpoise diagnose"]),
        (["yes"] * 3 + ["no"] * (N - 3), ["3 rows of class 'yes'; a study needs at least 4"]),
        (["a"] + ["b", "c"] * 99 + ["b"], ["1 row of class 'a'; a study needs at least 2", "--merge-rare"]),
        ([f"name {i}" for i in range(N)], ["200 different values in 200 rows"]),
        ([[1]] * N, ["List"]),
    ],
)
def test_targets_that_cannot_be_used(labels: list[Any], words: list[str]) -> None:
    fails(words, lambda: build(table(y=labels)))


def test_regression_needs_numbers_and_rows() -> None:
    fails(["the text 'yes'", "numbers"], lambda: build(table(), task="regression"))
    fails(["19 rows", "20"], lambda: build(table(y=RNG.normal(size=N)).head(19)))
    copied = pl.concat([table(y=RNG.normal(size=N)).head(10)] * 3)
    fails(["10 distinct rows"], lambda: build(copied))


def test_few_positives_are_warned_about() -> None:
    labels = np.where(np.arange(N) < 10, "yes", "no")
    notice(build(table(y=labels)), "10 distinct rows of class 'yes'", "about .1")


def test_copies_do_not_count_as_positives() -> None:
    frame = table(y=np.where(np.arange(N) == 0, "yes", "no"))
    frame = pl.concat([frame, *[frame.head(1)] * 5])
    fails(["1 distinct row of class 'yes'", "at least 4"], lambda: build(frame))


def test_rare_classes() -> None:
    labels = ["a", "a", "b", "b", "b", "c"] + ["d", "e"] * 97
    fails(["class 'c'", "1 row"], lambda: build(table(y=labels)))
    merged = build(table(y=labels), merge_rare=True)
    assert merged.schema.classes == ("d", "e", "a + b + c")
    assert merged.counts.tolist() == [97, 97, 6]
    assert merged.schema.encode_target(pl.DataFrame({"y": ["b", "e", None, "c"]})).tolist() == [2, 1, -1, 2]
    kept = build(table(y=["a", "a", "b"] + ["b", "c"] * 98 + ["c"]))
    assert kept.minority == 2
    notice(kept, "Class 'a' has only 2 rows", "--merge-rare")


def test_merging_may_leave_two_classes() -> None:
    labels = ["a"] * 2 + ["b"] * 20 + ["c"] * (N - 22)
    problem = build(table(y=labels), merge_rare=True)
    assert problem.task == "binary"
    assert problem.schema.classes == ("c", "a + b")
    assert problem.schema.encode_target(pl.DataFrame({"y": ["a", "b", "c"]})).tolist() == [1, 1, 0]
    other = build(table(y=labels), merge_rare=True, positive="c")
    assert other.schema.classes[1] == "c"
    assert other.schema.encode_target(pl.DataFrame({"y": ["a", "b", "c"]})).tolist() == [0, 0, 1]


# -- leaks ------------------------------------------------------------------------------------------------------------------------------


def leaky(kind: str) -> tuple[Any, Any]:
    labels = np.arange(N) % 4 == 0
    classes = np.arange(N) % 3
    amounts = np.random.default_rng(9).normal(size=N)
    return {
        "copy": (np.where(labels, "J", "N"), np.where(labels, "yes", "no")),
        "number": (labels * 5.0 + np.random.default_rng(6).random(N), np.where(labels, "yes", "no")),
        "reversed": (labels * -5.0 - np.random.default_rng(6).random(N), np.where(labels, "yes", "no")),
        "codes": (np.where(labels, 2, np.random.default_rng(6).choice([1, 3], N)), np.where(labels, "yes", "no")),
        "missing": (np.where(labels, np.nan, np.random.default_rng(6).random(N)), np.where(labels, "yes", "no")),
        "category": (np.char.add(labels.astype(str), np.random.default_rng(6).choice(list("abc"), N)), np.where(labels, "yes", "no")),
        "classes": (np.array(["x", "y", "z"])[classes], classes),
        "sorted classes": (classes + np.random.default_rng(6).random(N) / 2, classes),
        "amount": (3 * amounts + 1, amounts),
        "exponential": (np.exp(amounts), amounts),
    }[kind]


KINDS = ["copy", "number", "reversed", "codes", "missing", "category", "classes", "sorted classes", "amount", "exponential"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_that_predicts_the_target_alone(kind: str) -> None:
    column, labels = leaky(kind)
    frame = table(outcome_code=column, y=labels)
    fails(["column 'outcome_code' predicts the target alone; leakage?", "--keep outcome_code"], lambda: build(frame))
    assert "outcome_code" in [feature.name for feature in build(frame, keep="outcome_code").schema.features]


@pytest.mark.parametrize("kind", KINDS)
def test_a_strong_column_is_no_leak(kind: str) -> None:
    column, labels = leaky(kind)
    spoiled = np.array(column)
    rows = np.random.default_rng(10).choice(N, 20, replace=False)
    spoiled[rows] = spoiled[np.random.default_rng(11).permutation(rows)][::-1]
    assert "outcome_code" in [feature.name for feature in build(table(outcome_code=spoiled, y=labels)).schema.features]


def test_unique_values_explain_nothing() -> None:
    targets = {"binary": np.arange(N) % 2, "multiclass": np.arange(N) % 3, "regression": np.random.default_rng(3).normal(size=N)}
    for task, y in targets.items():
        assert not predicts_alone(np.random.default_rng(1).permutation(N).astype(float), y, task, categorical=True)
        assert not predicts_alone(np.zeros(N), y, task, categorical=False)


def test_leaks_are_found_in_many_rows() -> None:
    y = (np.random.default_rng(0).random(300_000) < 0.001).astype(np.int64)
    noise = np.random.default_rng(1).normal(size=len(y))
    assert predicts_alone(noise + 20 * y, y, "binary", categorical=False)
    assert not predicts_alone(noise + 2 * y, y, "binary", categorical=False)


# -- rows -------------------------------------------------------------------------------------------------------------------------------


def test_copies_share_a_block() -> None:
    frame = table()
    frame = pl.concat([frame, frame[[3, 7, 3]]])
    problem = build(frame)
    assert problem.copies == 3
    assert problem.blocks[N:].tolist() == [3, 7, 3]
    assert np.array_equal(problem.blocks[:N], np.arange(N))
    assert problem.minority == 50
    notice(problem, "3 rows exact copies", "200 distinct")


def test_conflicting_labels_are_counted_and_no_copies() -> None:
    frame = table()
    other = frame[[1, 2]].with_columns(pl.lit("yes").alias("y"))
    problem = build(pl.concat([frame, other]))
    assert problem.copies == 0
    notice(problem, "4 rows whose features occur with more than one class")


def test_clusters_and_copies_are_joined() -> None:
    frame = table(patient=[f"p{i // 4}" for i in range(N)])
    frame = pl.concat([frame, frame[[0]].with_columns(pl.lit("p9").alias("patient"))])
    problem = build(frame, cluster="patient")
    assert problem.clustered
    assert "patient" not in [feature.name for feature in problem.schema.features]
    # p0 (rows 0-3) and p9 (rows 36-39) share a row, so they are one block.
    assert set(problem.blocks[[0, 1, 2, 3, 36, 37, 38, 39, N]].tolist()) == {0}
    assert problem.blocks[4:8].tolist() == [4] * 4
    assert len(np.unique(problem.blocks)) == N // 4 - 1
    assert problem.minority == N // 4 - 1


def test_clusters_given_as_an_array_and_with_gaps() -> None:
    frame = table()
    ids = np.arange(N) // 2
    assert np.array_equal(build(frame, cluster=ids).blocks, (np.arange(N) // 2) * 2)
    gaps = build(table(patient=[None, None, *ids[2:].tolist()]), cluster="patient")
    assert gaps.blocks[:4].tolist() == [0, 1, 2, 2]
    notice(gaps, "2 rows without", "'patient'")
    notice(build(frame, cluster=np.arange(N)), "another value in every row")
    fails(["cluster", "one value"], lambda: build(frame, cluster=np.zeros(N)))


def test_a_class_in_one_cluster_cannot_be_split() -> None:
    fails(["1 cluster of class 'yes'"], lambda: build(table(y=["yes"] * 20 + ["no"] * (N - 20)), cluster=np.arange(N) // 20))


def test_time_is_ranked() -> None:
    days = np.random.default_rng(1).integers(0, 30, N)
    when = [START + datetime.timedelta(days=int(day)) for day in days]
    expected = np.unique(days, return_inverse=True)[1]
    for column in (when, [moment.isoformat() for moment in when], days.astype(float)):
        problem = build(table(when=column), time="when")
        assert np.array_equal(problem.time, expected)
        assert "when" not in {feature.source for feature in problem.schema.features}
    fails(["time", "without a value"], lambda: build(table(when=[None, *when[1:]]), time="when"))
    fails(["time", "dates such as"], lambda: build(table(), time="city"))


def test_weights() -> None:
    weight = RNG.random(N) + 0.1
    problem = build(table(w=weight), weight="w")
    assert np.array_equal(problem.weight, weight)
    assert "w" not in [feature.name for feature in problem.schema.features]
    assert np.array_equal(build(table(), weight=weight).weight, weight)
    for wrong in (0.0, -1.0, np.nan, np.inf):
        weight[5] = wrong
        fails(["weight", "row 6", "positive"], lambda: build(table(w=weight), weight="w"))
    fails(["weight", "3 values", "200 rows"], lambda: build(table(), weight=[1.0, 2.0, 3.0]))


# -- groups -----------------------------------------------------------------------------------------------------------------------------


def test_groups_report_and_stay_features() -> None:
    problem = build(table(sex=["F", "M", None, "M", "F"] * 40, size=RNG.normal(size=N)), groups=["sex", "size"])
    assert problem.groups["sex"].names == ("F", "M")
    assert problem.groups["sex"].ids[:4].tolist() == [0, 1, -1, 1]
    assert problem.groups["sex"].kind == "attribute"
    assert problem.groups["size"].counts().tolist() == [40] * 5
    assert {"sex", "size"} <= {feature.name for feature in problem.schema.features}
    notice(problem, "'size'", "5 bins")


def test_groups_of_few_numbers_are_in_order() -> None:
    assert build(table(floor=np.arange(N) % 11), groups="floor").groups["floor"].names == tuple(str(i) for i in range(11))


def test_groups_that_are_not_in_the_table_or_dropped_from_it() -> None:
    ids = np.array(["x", "y"])[np.arange(N) % 2]
    problem = build(table(), groups={"side": ids})
    assert problem.groups["side"].names == ("x", "y")
    assert problem.p == 3
    hidden = build(table(), groups="city", drop="city")
    assert len(hidden.groups["city"]) == 3
    assert hidden.p == 2


def test_groups_that_say_nothing() -> None:
    same = np.where(np.arange(N) % 4 == 0, "sick", "well")
    fails(["group", "equals the target", "repeat the classes"], lambda: build(table(state=same), groups="state", keep="state"))
    fails(["group", "target"], lambda: build(table(), groups="y"))
    fails(["group", "fewer than two"], lambda: build(table(one=["a"] * N), groups="one"))


# -- a test file ------------------------------------------------------------------------------------------------------------------------


def test_a_test_table_is_appended() -> None:
    frame = table(code=[f"c{i}" for i in range(N)], w=np.ones(N))
    held = frame.head(40).with_columns(city=pl.lit("Tromsø"), extra=pl.lit(1))
    problem = build(frame, test=held, groups="city", weight="w")
    assert problem.n == N + 40
    assert problem.fixed_test is not None
    assert problem.fixed_test.sum() == 40
    assert problem.fixed_test[N:].all()
    assert np.isnan(problem.X[N:, 2]).all()  # a city that was never seen
    assert np.array_equal(problem.X[N:, :2], problem.X[:40, :2])
    assert problem.groups["city"].names == ("Bergen", "Bodø", "Oslo", "Tromsø")
    assert problem.weight is not None
    assert len(problem.weight) == N + 40
    same = build(frame, test=frame.head(40))
    assert same.copies == 40
    assert same.blocks[N:].tolist() == list(range(40))


def test_test_pairs_and_what_a_test_table_lacks() -> None:
    frame = table()
    X, y = frame.drop("y"), frame["y"]
    pair = build_problem(X, y, test=(X.head(40), y.head(40)))
    assert pair.n == N + 40
    fails(["lacks the column 'city'"], lambda: build(frame, test=frame.drop("city")))
    fails(["'maybe'", "'no', 'yes'"], lambda: build(frame, test=frame.with_columns(y=pl.lit("maybe"))))
    fails(["test", "one class"], lambda: build(frame, test=frame.filter(pl.col("y") == "no")))
    fails(["target", "'y'"], lambda: build(frame, test=frame.drop("y")))
    fails(["weight", "array"], lambda: build(frame, test=frame, weight=np.ones(N)))


def test_real_train_and_test_tables(data_folder: Path) -> None:
    problem = build_problem("nsl-kdd", test="nsl-kdd/test")
    assert problem.n == 25192 + 22544 - 3750
    assert problem.counts.sum() == problem.n
    notice(problem, "3750 rows of the test file without a value")
    adult = build_problem("adult", test="adult/test")
    assert adult.schema.classes == ("<=50K", ">50K")
    assert adult.counts.tolist() == [24720 + 12435, 7841 + 3846]
    assert adult.groups["sex"].names == ("Female", "Male")


# -- names ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "Y"}, ["target", "'Y'", "Did you mean 'y'"]),
        ({"groups": "cty"}, ["group", "'cty'", "Did you mean 'city'"]),
        ({"cluster": "patient"}, ["cluster", "'patient'", "size, age, city, y"]),
        ({"time": "when"}, ["time", "'when'"]),
        ({"weight": "wt"}, ["weight", "'wt'"]),
        ({"text": "cities"}, ["text", "'city'"]),
        ({"drop": ["agee"]}, ["drop", "'age'"]),
        ({"keep": "sizes"}, ["keep", "'size'"]),
        ({"drop": "y"}, ["drop", "target"]),
        ({"cluster": "y"}, ["cluster", "target"]),
        ({"task": "clasification"}, ["task", "'classification'"]),
        ({"target": None}, ["target", "--target y"]),
        ({"folds": 1}, ["folds", "1"]),
        ({"y": "size"}, ["y", "target"]),
        ({"y": np.zeros((N, 2))}, ["y", "(200, 2)"]),
        ({"y": [1, 2]}, ["2 values", "200 rows"]),
    ],
)
def test_unknown_names_and_shapes(options: dict[str, Any], words: list[str]) -> None:
    options = dict(options)
    target = options.pop("target", None if "y" in options and not isinstance(options["y"], str) else "y")
    fails(words, lambda: build_problem(table(), target=target, **options))


def test_names_may_be_a_list_with_commas() -> None:
    frame = table(**{"a,b": np.random.default_rng(6).normal(size=N)})
    problem = build(frame, drop="size, age", groups="city")
    assert dict(problem.schema.dropped) == {"size": "by request", "age": "by request"}
    assert [feature.name for feature in build(frame, drop="a,b").schema.features] == ["size", "age", "city"]  # a column of that name
    assert list(build(frame, groups=["city,age"]).groups) == ["city", "age"]
    ids = table(code=[f"p{i}" for i in range(N)], key=np.arange(N))
    assert {"code", "key"} <= {feature.name for feature in build(ids, keep="code,key").schema.features}
    words = [f"{i} words" for i in range(N)]
    assert build(table(one=words, two=words), text="one,two").text[0] == "0 words\n0 words"  # type: ignore[index]
    fails(["drop", "'agee'", "Did you mean 'age'"], lambda: build(frame, drop="size,agee"))


def test_hints_quote_names_with_spaces() -> None:
    frame = table(y=None, **{"paid back": table()["y"].to_list()})
    fails(["--target 'paid back'"], lambda: build_problem(frame))
    leak = table(**{"paid late": np.where(np.arange(N) % 4 == 0, 1.5, 0.25)})
    fails(["--keep 'paid late'"], lambda: build(leak))


def test_a_data_set_knows_its_target_already() -> None:
    fails(["y", "'mine'", "'size'"], lambda: build_problem(Dataset("mine", table(), "size"), y=np.zeros(N)))


# -- schema and hash --------------------------------------------------------------------------------------------------------------------


def test_encoding_is_reproduced_from_new_rows() -> None:
    when = [START + datetime.timedelta(hours=int(hour)) for hour in np.random.default_rng(7).integers(0, 9999, N)]
    numbers = np.random.default_rng(8).choice(["1", "2", "x"], N)
    frame = table(when=when, flag=np.arange(N) % 3 == 0, note=["hello"] * N, mixed=numbers)
    problem = build(frame, text="note")
    schema = Schema.from_dict(json.loads(json.dumps(problem.schema.to_dict())))
    assert schema == problem.schema
    X, text = schema.encode(frame)
    assert np.array_equal(X, problem.X, equal_nan=True)
    assert text is not None
    assert text.tolist() == ["hello"] * N
    assert np.array_equal(schema.encode_target(frame), problem.y)

    few = frame[[0, 1]].select("note", "mixed", "flag", "when", "city", "age", "size").with_columns(other=pl.lit(1))
    assert np.array_equal(schema.encode(few)[0], X[:2])
    as_text = few.with_columns(pl.all().cast(pl.String))
    assert np.array_equal(schema.encode(as_text)[0], X[:2])
    only_numbers = few.with_columns(mixed=pl.Series([1, 2]))
    mixed = next(j for j, feature in enumerate(schema.features) if feature.name == "mixed")
    assert schema.encode(only_numbers)[0][:, mixed].tolist() == [0, 1]
    assert np.isnan(schema.encode(few.with_columns(city=pl.lit("Rome")))[0][:, 2]).all()


def test_new_rows_that_do_not_fit() -> None:
    schema = build(table(when=[START + datetime.timedelta(days=i % 90) for i in range(N)])).schema
    frame = table(when=[START] * N)
    fails(["lacks the columns 'size', 'city'"], lambda: schema.encode(frame.drop("size", "city")))
    fails(["'size'", "'big'", "numbers"], lambda: schema.encode(frame.with_columns(size=pl.lit("big"))))
    fails(["'when'", "dates"], lambda: schema.encode(frame.with_columns(when=pl.lit("soon"))))
    fails(["'y'", "'maybe'"], lambda: schema.encode_target(frame.with_columns(y=pl.lit("maybe"))))
    fails(["target 'y'"], lambda: schema.encode_target(frame.drop("y")))


def test_csv_and_parquet_of_a_table_have_one_hash(tmp_path: Path) -> None:
    frame = table(
        when=[START + datetime.timedelta(hours=i % 97) for i in range(N)],
        flag=[True, False, None, True] * 50,
        gap=[None if i % 7 == 0 else i % 5 for i in range(N)],
        ratio=[float("nan") if i % 9 == 0 else i / 7 % 3 for i in range(N)],
        note=["a, b", None] * (N // 2),
    )
    frame.write_csv(tmp_path / "t.csv")
    frame.write_csv(tmp_path / "t.tsv", separator="\t")
    frame.write_parquet(tmp_path / "t.parquet")
    frame.write_ndjson(tmp_path / "t.jsonl")
    narrow = frame.with_columns(pl.col("age").cast(pl.Int16), pl.col("gap").cast(pl.Float32))
    frame.to_pandas().to_csv(tmp_path / "p.csv", index=False)
    sources: list[Any] = [tmp_path / name for name in ("t.csv", "t.tsv", "t.parquet", "t.jsonl", "p.csv")]
    problems = [build(source) for source in [*sources, frame, narrow, frame.to_pandas()]]
    assert {problem.data_hash for problem in problems} == {problems[0].data_hash}
    assert problems[0].name == "t"


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame.with_columns(pl.when(pl.col("age") == pl.col("age").max()).then(17).otherwise(pl.col("age")).alias("age")),
        lambda frame: frame.select("age", "size", "city", "y"),
        lambda frame: frame.rename({"age": "years"}),
        lambda frame: frame.reverse(),
        lambda frame: frame.head(N - 1),
        lambda frame: frame.with_columns(pl.col("city").replace({"Oslo": "Osla"})),
        lambda frame: frame.with_columns(pl.col("y").replace({"yes": "ja"})),
    ],
    ids=["value", "column order", "name", "row order", "rows", "category", "label"],
)
def test_the_hash_sees_every_change(change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    assert build(change(table())).data_hash != build(table()).data_hash


def test_the_hash_sees_the_options_that_change_results() -> None:
    frame = table(w=np.arange(N) % 7 + 1.0)
    plain = build(frame, drop="w").data_hash
    hashes = [
        build(frame).data_hash,
        build(frame, weight="w").data_hash,
        build(frame, drop="w", positive="no").data_hash,
        build(frame, drop=["w", "city"]).data_hash,
        build(frame, drop="w", cluster=np.arange(N) // 2).data_hash,
        build(frame, time="w").data_hash,
        build(frame, text="city", drop="w").data_hash,
    ]
    assert len({plain, *hashes}) == len(hashes) + 1
    assert build(frame, drop="w", groups="city").data_hash == plain  # groups only report


def test_names_come_from_the_source(tmp_path: Path) -> None:
    table().write_csv(tmp_path / "sales.2024.csv")
    assert build(tmp_path / "sales.2024.csv").name == "sales.2024"
    assert build(table()).name == "table"
    assert build_problem(load("wine")).name == "wine"


def test_pandas_categories_stay_categories() -> None:
    frame = table().to_pandas()
    frame["grade"] = pd.Categorical(np.random.default_rng(2).choice(["1", "2", "3"], N))
    problem = build(frame)
    grade = next(feature for feature in problem.schema.features if feature.name == "grade")
    assert (grade.kind, grade.levels) == ("categorical", ("1", "2", "3"))
