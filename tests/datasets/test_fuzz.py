"""Whatever a file holds, the answer is a problem or one of our errors in one line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from counterpoise._errors import CounterpoiseError
from counterpoise.studies._problem import Problem, build_problem

FUZZ = settings(
    max_examples=150,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
CELLS = st.one_of(
    st.none(),
    st.integers(-3, 3),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.sampled_from(["", "NA", "?", "a", "b", "yes", "no", "1", "0", " 2 ", "1e400", "2024-05-31", "2024-02-30", "true", '"', "x,y", "é"]),
    st.text(max_size=40),
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "task": st.sampled_from(["classification", "regression"]),
        "merge_rare": st.just(True),
        "groups": st.just("c0"),
        "cluster": st.just("c0"),
        "time": st.just("c0"),
        "weight": st.just("c0"),
        "text": st.just("c0"),
        "keep": st.just("c0"),
        "drop": st.just("c0"),
        "positive": st.sampled_from(["yes", 1, True, "a"]),
    },
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[list[Any]]]:
    """Small tables whose columns are of one kind or mixed, with a target that is often usable."""
    rows = draw(st.integers(1, 40))
    width = draw(st.integers(1, 4))
    columns = []
    for _ in range(width):
        cells = draw(st.one_of(st.just(CELLS), st.sampled_from([st.floats(-5, 5), st.integers(0, 9), st.sampled_from(["u", "v", None])])))
        columns.append(draw(st.lists(cells, min_size=rows, max_size=rows)))
    label = draw(st.one_of(st.just(CELLS), st.sampled_from([st.sampled_from(["yes", "no"]), st.integers(0, 2), st.floats(0, 1)])))
    columns.append(draw(st.lists(label, min_size=rows, max_size=rows)))
    return [f"c{i}" for i in range(width)] + ["y"], [list(row) for row in zip(*columns, strict=True)]


def check(source: Any, **options: Any) -> None:
    try:
        problem = build_problem(source, **options)
    except CounterpoiseError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 2_000
        return
    assert isinstance(problem, Problem)
    assert problem.X.shape == (problem.n, problem.p)
    assert not np.isinf(problem.X).any()
    assert problem.blocks.shape == (problem.n,)
    assert problem.minority >= 2
    if problem.task != "regression":
        assert set(np.unique(problem.y)) == set(range(len(problem.schema.classes)))


@FUZZ
@given(
    content=st.binary(max_size=300),
    name=st.sampled_from(["a.csv", "a.jsonl", "a.tsv", "a.csv.gz", "a.parquet", "a.arrow"]),
    header=st.booleans(),
)
def test_random_bytes(tmp_path: Path, content: bytes, name: str, header: bool) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    check(path, target="x0", header=header)


@FUZZ
@given(content=st.text(alphabet='ab01.,;|"\n\t\r -é', max_size=200), header=st.booleans())
def test_random_delimited_text(tmp_path: Path, content: str, header: bool) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content, encoding="utf-8", newline="")
    check(path, target="a", header=header)


@FUZZ
@given(table=tables(), options=OPTIONS)
def test_random_csv(tmp_path: Path, table: tuple[list[str], list[list[Any]]], options: dict[str, Any]) -> None:
    names, rows = table
    stream = io.StringIO()
    csv.writer(stream).writerows([names, *rows])
    path = tmp_path / "a.csv"
    path.write_text(stream.getvalue(), encoding="utf-8", errors="replace", newline="")
    check(path, target="y", **options)


@FUZZ
@given(table=tables(), options=OPTIONS, nested=st.booleans())
def test_random_jsonl(tmp_path: Path, table: tuple[list[str], list[list[Any]]], options: dict[str, Any], nested: bool) -> None:
    names, rows = table
    lines = [json.dumps({**dict(zip(names, row, strict=True)), **({"list": row} if nested else {})}) for row in rows]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    check(path, target="y", **options)


@FUZZ
@given(table=tables(), options=OPTIONS)
def test_random_objects_in_memory(table: tuple[list[str], list[list[Any]]], options: dict[str, Any]) -> None:
    pd = pytest.importorskip("pandas")
    names, rows = table
    check(pd.DataFrame(rows, columns=names, dtype=object), target="y", **options)
