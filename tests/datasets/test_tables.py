"""Every format gives the same table; every damaged file gives one line that says what is wrong."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from counterpoise._errors import InputError
from counterpoise.datasets import Dataset, read_table
from counterpoise.datasets._tables import read_file

TABLE = pl.DataFrame({"age": [31, 45, None], "income": [1.5, -2.0, 3.25], "city": ["Oslo", "Bergen, N", "Oslo"]})


def as_bytes(kind: str) -> bytes:
    stream = io.BytesIO()
    writers: dict[str, Callable[[], object]] = {
        "csv": lambda: TABLE.write_csv(stream),
        "tsv": lambda: TABLE.write_csv(stream, separator="\t"),
        "txt": lambda: TABLE.write_csv(stream, separator=";"),
        "data": lambda: TABLE.write_csv(stream, separator="|"),
        "parquet": lambda: TABLE.write_parquet(stream),
        "arrow": lambda: TABLE.write_ipc_stream(stream),
        "feather": lambda: TABLE.write_ipc(stream),
        "jsonl": lambda: TABLE.write_ndjson(stream),
        "ndjson": lambda: TABLE.write_ndjson(stream),
    }
    writers[kind]()
    return stream.getvalue()


@pytest.mark.parametrize("packing", ["", ".gz", ".zip"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "txt", "data", "parquet", "arrow", "feather", "jsonl", "ndjson"])
def test_formats_agree(tmp_path: Path, kind: str, packing: str) -> None:
    path = tmp_path / f"table.{kind}{packing}"
    content = as_bytes(kind)
    if packing == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"table.{kind}", content)
    else:
        path.write_bytes(gzip.compress(content) if packing else content)
    assert read_table(path).equals(TABLE)
    assert read_table(str(path)).equals(TABLE)


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_delimiter_is_found(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f'a{mark}b{mark}c\n1{mark}"x,y;z|w"{mark}2\n3{mark}"p"{mark}4\n')
    frame = read_table(path)
    assert frame.columns == ["a", "b", "c"]
    assert frame["b"].to_list() == ["x,y;z|w", "p"]


def test_decimal_commas(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a;b\n1,5;2\n2,25;3\n")
    assert read_table(path)["a"].to_list() == [1.5, 2.25]


def test_markers_blanks_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("\ufeffa, b\n 1, ?\n 2, x\n\n NA, y \n")
    frame = read_table(path)
    assert frame.columns == ["a", "b"]
    assert frame.rows() == [(1, None), (2, "x"), (None, "y")]


def test_a_type_that_shows_only_far_down(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n" + "1,2\n" * 12_000 + "x,3\n")
    frame = read_table(path)
    assert frame["a"].dtype == pl.String
    assert frame["b"].sum() == 24_003


def test_without_header(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("1,2\n3,4\n")
    assert read_table(path, header=False).rows() == [(1, 2), (3, 4)]
    assert read_table(path, header=False).columns == ["x0", "x1"]


def test_quotes_as_ordinary_characters(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text('ham\t"hello\nspam\tsay "yes"\n')
    assert read_file(path, header=False, quoted=False).rows() == [("ham", '"hello'), ("spam", 'say "yes"')]


def check_fails(source: object, *words: str, header: bool = True) -> None:
    with pytest.raises(InputError) as caught:
        read_table(source, header=header)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", ["empty"]),
        ("a.csv", b"a,b\n", ["no rows"]),
        ("a.csv", b"a,b\n1,2\n3,4,5\n", ["line 3 has 3 fields", "has 2"]),
        ("a.csv", b"a,b,c\n1,2,3\n4,5\n", ["line 3 has 2 fields", "has 3"]),
        ("a.csv", "a,b\né,1\n".encode("latin1"), ["not UTF-8", "0xe9", "iconv"]),
        ("a.csv", b"a,b\n" + b"x,1\n" * 30_000 + "é,1\n".encode("latin1"), ["not UTF-8", "iconv"]),
        ("a.csv", "a,b\n1,2\n".encode("utf-16"), ["UTF-16"]),
        ("a.csv", b"a,b\n\0,2\n", ["binary"]),
        ("a.csv", b"a,a,b\n1,2,3\n", ["called 'a'", "--no-header"]),
        ("a.csv", b"0.5,1.25\n0.75,2.5\n", ["0.5, 1.25", "--no-header"]),
        ("a.csv", b'a,b\n1,"x\n2,3\n', ["csv"]),
        ("a.csv.gz", gzip.compress(b"a,b\n" + b"1,2\n" * 999)[:-20], ["incomplete"]),
        ("a.csv.gz", b"no gzip", ["damaged"]),
        ("a.csv.zip", b"no zip", ["damaged"]),
        ("a.parquet", b"PAR1 and nothing", ["parquet"]),
        ("a.parquet", as_bytes("parquet")[:-9], ["parquet"]),
        ("a.feather", b"ARROW1 and nothing", ["feather"]),
        ("a.jsonl", b"not json", ["jsonl"]),
        ("a.jsonl", b"[1, 2]\n", ["jsonl"]),
        ("a.xls", b"x", [".xls", "parquet"]),
        ("a", b"x", ["without an ending", "parquet"]),
    ],
)
def test_damaged_files_are_one_line(tmp_path: Path, name: str, content: bytes, words: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    check_fails(path, str(path), *words)


def test_two_files_in_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.csv.zip", "w") as archive:
        archive.writestr("a.csv", "a\n1\n")
        archive.writestr("b.csv", "a\n1\n")
    check_fails(tmp_path / "a.csv.zip", "2 files")


def test_missing_file_suggests_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "patients.csv").write_text("a\n1\n")
    check_fails(tmp_path / "patient.csv", "no such file", "patients.csv")
    check_fails("mamography", "mammography")
    check_fails("x" * 5000, "Cannot read")


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n1\n")
    (tmp_path / "notes.md").write_text("")
    check_fails(tmp_path, "folder", "a.csv")


@pytest.mark.parametrize(
    "table",
    [
        TABLE,
        TABLE.lazy(),
        TABLE.to_pandas(),
        TABLE.to_arrow(),
        TABLE.to_dict(as_series=False),
    ],
    ids=["polars", "lazy", "pandas", "arrow", "dict"],
)
def test_tables_in_memory(table: object) -> None:
    frame = read_table(table)
    assert frame.columns == TABLE.columns
    assert frame["income"].to_list() == [1.5, -2.0, 3.25]
    assert frame["city"].to_list() == TABLE["city"].to_list()


def test_numpy_arrays_get_names() -> None:
    assert read_table(np.array([[1.0, 2.0], [3.0, np.nan]])).columns == ["x0", "x1"]
    mixed = read_table(np.array([[1, "a"], [2, None]], dtype=object))
    assert mixed["x0"].to_list() == [1, 2]
    assert mixed["x1"].to_list() == ["a", None]


def test_pandas_columns_of_several_types_become_text() -> None:
    frame = read_table(pd.DataFrame({"a": [1, "x", None], 7: [1, 2, 3]}))
    assert frame["a"].to_list() == ["1", "x", None]
    assert frame["7"].to_list() == [1, 2, 3]


def test_data_sets_pass_through() -> None:
    table = Dataset("mine", TABLE, "income")
    assert read_table(table) is table


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (np.zeros(3), ["shape (3,)"]),
        (np.zeros((2, 2), dtype=complex), ["complex"]),
        (object(), ["object", "polars"]),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), ["'a'"]),
        (pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), ["'a'"]),
    ],
)
def test_objects_that_are_no_tables(table: object, words: list[str]) -> None:
    check_fails(table, *words)


def test_sparse_matrices_are_named() -> None:
    from scipy.sparse import csr_array

    check_fails(csr_array(np.eye(3)), ".toarray()")
