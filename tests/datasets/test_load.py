"""Sets by name: what they hold, where they are looked for, and what is said when they cannot be had."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
import pytest

from counterpoise._errors import InputError
from counterpoise.datasets import Dataset, _load, load, names, read_table

CONTENT = "".join(f"{i},{i % 7},{i % 3 == 0:d}\n" for i in range(90)).encode()


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No folder of one's own and an empty cache."""
    monkeypatch.delenv("COUNTERPOISE_DATA", raising=False)
    monkeypatch.setenv("COUNTERPOISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_load, "DOWNLOAD_TIMEOUT", 5)
    return tmp_path


# -- sets that need no file -------------------------------------------------------------------------------------------------------------


def test_embedded_sets(nowhere: Path) -> None:
    digits = load("digits8")
    assert digits.frame.shape == (1797, 65)
    assert dict(digits.frame["digit"].value_counts().iter_rows()) == {"8": 174, "other": 1623}
    assert (digits.target, digits.positive, digits.task) == ("digit", "8", "binary")
    assert load("breast-cancer").frame.shape == (569, 31)
    assert load("wine").frame["cultivar"].n_unique() == 3
    diabetes = load("diabetes")
    assert (diabetes.task, diabetes.groups, diabetes.frame.height) == ("regression", ("sex",), 442)
    assert diabetes.frame["sex"].unique().sort().to_list() == [1.0, 2.0]


def test_breast_cancer_rare_is_one_to_twenty() -> None:
    rare = load("breast-cancer-rare")
    assert dict(rare.frame["diagnosis"].value_counts().iter_rows()) == {"benign": 357, "malignant": 18}
    assert rare.positive == "malignant"
    assert rare.frame.equals(load("breast-cancer-rare").frame)


def test_names_are_sorted_and_complete() -> None:
    assert names() == sorted(set(names()))
    assert {"digits8", "mammography", "adult/test", "french-motor/freMPL1", "nsl-kdd"} <= set(names())


def test_unknown_name() -> None:
    with pytest.raises(InputError, match=r"'mamography'.*Did you mean 'mammography'.*names\(\)"):
        load("mamography")


# -- real files -------------------------------------------------------------------------------------------------------------------------

EXPECTED = {  # name: rows, columns without the target, counts of the labels (from the description of each set)
    "mammography": (11183, 6, {"-1": 10923, "1": 260}),
    "oil-spill": (937, 49, {"0": 896, "1": 41}),
    "phoneme": (5404, 5, {"0": 3818, "1": 1586}),
    "pima": (768, 8, {"0": 500, "1": 268}),
    "haberman": (306, 3, {"1": 225, "2": 81}),
    "ecoli": (336, 7, {"cp": 143, "im": 77, "pp": 52, "imU": 35, "om": 20, "omL": 5, "imS": 2, "imL": 2}),
    "german-credit": (1000, 20, {"1": 700, "2": 300}),
    "campaign": (41188, 62, {"0": 36548, "1": 4640}),
    "landsat": (6435, 36, {"0": 5102, "1": 1333}),
    "letter": (1600, 32, {"0": 1500, "1": 100}),
    "pendigits": (6870, 16, {"0": 6714, "1": 156}),
    "smtp": (95156, 3, {"0": 95126, "1": 30}),
    "adult": (32561, 14, {"<=50K": 24720, ">50K": 7841}),
    "adult/test": (16281, 14, {"<=50K": 12435, ">50K": 3846}),
    "compas": (7214, 9, {"0": 3963, "1": 3251}),
    "creditcard-fraud-sample": (5292, 30, {"0": 4800, "1": 492}),
    "french-motor/freMPL4": (26300, 21, {"0": 26045, "1": 255}),
    "nsl-kdd": (25192, 41, {"normal": 13449, "dos": 9234, "probe": 2289, "r2l": 209, "u2r": 11}),
    "nsl-kdd/test": (22544, 41, {"normal": 9711, "dos": 5741, None: 3750, "r2l": 2199, "probe": 1106, "u2r": 37}),
    "cic-ids2017-sample/binary": (28303, 19, {"0": 22662, "1": 5641}),
    "iotid20-sample": (6252, 26, {"1": 5891, "0": 361}),
    "sms-spam": (5574, 1, {"ham": 4827, "spam": 747}),
    "mfeat": (2000, 649, {str(digit): 200 for digit in range(10)}),
    "mfeat/mor": (2000, 6, {str(digit): 200 for digit in range(10)}),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_real_sets_hold_what_their_source_says(name: str, data_folder: Path) -> None:
    rows, features, counts = EXPECTED[name]
    table = load(name)
    assert table.frame.shape == (rows, features + 1)
    assert dict(table.frame[table.target].cast(pl.String).value_counts().iter_rows()) == counts
    assert table.positive is None or table.positive in counts


def test_real_regression_sets(data_folder: Path) -> None:
    ranges = {"abalone": (4177, 1, 29), "wine-red": (1599, 3, 8), "california-housing": (20640, 14999, 500001), "energy": (768, 6.01, 43.1)}
    for name, (rows, low, high) in ranges.items():
        table = load(name)
        values = table.frame[table.target]
        assert (table.task, len(values), values.min(), values.max()) == ("regression", rows, low, high)
    assert "Y2" not in load("energy").frame.columns
    assert load("energy/cooling").target == "Y2"


def test_every_name_loads_and_knows_itself(data_folder: Path) -> None:
    for name in names():
        table = load(name)
        assert isinstance(table, Dataset)
        assert table.name == name
        assert table.source
        assert table.license
        assert {table.target, *table.groups, *table.text, *table.keep} <= set(table.frame.columns)
        if table.task == "binary":
            assert table.positive in set(table.frame[table.target].cast(pl.String))


def test_columns_that_leak_are_left_out(data_folder: Path) -> None:
    assert not {"is_recid", "violent_recid", "event", "id"} & set(load("compas").frame.columns)
    assert not {"Flow ID", "Timestamp", "Attempted Category"} & set(load("cic-ids2017-sample").frame.columns)
    assert "difficulty" not in load("nsl-kdd").frame.columns
    assert "ClaimAmount" not in load("french-motor/freMPL1").frame.columns


def test_numbers_after_blanks_are_numbers(data_folder: Path) -> None:
    frame = load("adult").frame
    assert frame["age"].dtype == frame["hours-per-week"].dtype == pl.Int64
    assert frame["workclass"].null_count() == 1836
    assert "State-gov" in set(frame["workclass"])


def test_hashes_are_those_of_the_unpacked_files(data_folder: Path) -> None:
    checked = 0
    for table in _load._tables().values():
        if "sha256" not in table:
            continue
        content = (data_folder / table["file"]).read_bytes()
        content = gzip.decompress(content) if table["file"].endswith(".gz") else content
        assert hashlib.sha256(content).hexdigest() == table["sha256"], table["file"]
        checked += 1
    assert checked >= 30


# -- where files come from --------------------------------------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    requests: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.requests.append(self.path)
        found = self.path == "/toy.csv"
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(CONTENT if found else b"not here")

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def server() -> Iterator[str]:
    Handler.requests.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as instance:
        thread = threading.Thread(target=instance.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{instance.server_address[1]}/"
        instance.shutdown()
        thread.join()


def register(monkeypatch: pytest.MonkeyPatch, url: str, **changes: object) -> None:
    """A registry of one small set, ``toy``, at ``url``."""
    table = {
        "source": "here",
        "file": "folder/toy.csv.gz",
        "remote": "toy.csv",
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "columns": ["a", "b", "class"],
        "target": "class",
        "positive": "1",
        "task": "binary",
    } | changes
    table = {name: value for name, value in table.items() if value is not None}
    registry = {"source": {"here": {"url": url, "origin": "a test", "license": "none"}}, "table": {"toy": table}}
    monkeypatch.setattr(_load, "_registry", lambda: registry)


def test_download_is_checked_and_kept(server: str, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, server)
    table = load("toy")
    assert table.frame.shape == (90, 3)
    assert table.frame["class"].sum() == 30
    assert (nowhere / "cache" / "folder" / "toy.csv").read_bytes() == CONTENT
    assert load("toy").frame.equals(table.frame)
    assert Handler.requests == ["/toy.csv"]
    assert read_table("toy").target == "class"


def test_a_spoiled_cache_is_fetched_again(server: str, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, server)
    kept = nowhere / "cache" / "folder" / "toy.csv"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(CONTENT[:-20])
    assert load("toy").frame.height == 90


@pytest.mark.parametrize("name", ["toy.csv.gz", "toy.csv"])
def test_own_folder_comes_first(server: str, nowhere: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    register(monkeypatch, server)
    (nowhere / "mine" / "folder").mkdir(parents=True)
    (nowhere / "mine" / "folder" / name).write_bytes(gzip.compress(CONTENT) if name.endswith(".gz") else CONTENT)
    monkeypatch.setenv("COUNTERPOISE_DATA", str(nowhere / "mine"))
    assert load("toy").frame.height == 90
    assert Handler.requests == []


def test_wrong_hash(server: str, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, server, sha256="0" * 64)
    with pytest.raises(InputError, match="sha256"):
        load("toy")
    assert not (nowhere / "cache" / "folder" / "toy.csv").exists()


def test_not_found(server: str, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, server, remote="moved.csv")
    with pytest.raises(InputError, match=r"moved\.csv answered 404"):
        load("toy")


def test_offline(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "http://127.0.0.1:9/")  # the discard port: nobody listens
    with pytest.raises(InputError, match=r"cannot be reached.*digits8") as caught:
        load("toy")
    assert "\n" not in str(caught.value)


def test_processed_sets_say_so(nowhere: Path) -> None:
    with pytest.raises(InputError, match=r"no download, since columns that identify persons.*two-years\.csv\.gz.*COUNTERPOISE_DATA"):
        load("compas")


def test_folder_that_is_not_there(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COUNTERPOISE_DATA", str(nowhere / "nothing"))
    with pytest.raises(InputError, match="COUNTERPOISE_DATA"):
        load("mammography")


def test_another_file_under_the_name(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "http://127.0.0.1:9/")
    monkeypatch.setenv("COUNTERPOISE_DATA", str(nowhere))
    (nowhere / "folder").mkdir()
    (nowhere / "folder" / "toy.csv").write_text("1,2\n3,4\n")
    with pytest.raises(InputError, match="other columns"):
        load("toy")


def test_damaged_arrays(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "http://127.0.0.1:9/", file="toy.npz", arrays=["X"])
    monkeypatch.setenv("COUNTERPOISE_DATA", str(nowhere))
    (nowhere / "toy.npz").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match="npz"):
        load("toy")
    np.savez(nowhere / "toy.npz", X=np.eye(3), z=np.zeros(3))
    with pytest.raises(InputError, match="npz"):
        load("toy")
    np.savez(nowhere / "toy.npz", X=np.eye(3), y=np.array([0, 1, 1]))
    assert load("toy").frame.columns == ["x0", "x1", "x2", "class"]
