"""The store: atomic claims, leases, results that are written once, and what it says when the disk or the file is not in order."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tests.studies.fake_study import PROTOCOL, arms, cells, header, make_store, result

from counterpoise._errors import InputError, StoreError
from counterpoise.studies import _store
from counterpoise.studies._store import Store, differences, is_gone, results_frame, this_owner
from counterpoise.studies._types import NO_DROP, Arm, CellId, Protocol

ME, OTHER = "here:1:1", "elsewhere:2:2"  # owners on other machines: whether they live cannot be known


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with make_store(tmp_path) as opened:
        yield opened


@contextmanager
def living_owner() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The owner string of another process of this machine, and the process."""
    process = subprocess.Popen(["sleep", "60"])
    host = this_owner().rsplit(":", 2)[0]
    try:
        yield f"{host}:{process.pid}:{_store._started(process.pid)}", process
    finally:
        process.kill()
        process.wait()


def owner_of(store: Store, cell: CellId) -> str | None:
    frame = store.cells().filter((pl.col("arm_hash") == cell.arm) & (pl.col("repeat") == cell.repeat) & (pl.col("fold") == cell.fold))
    return frame["owner"].item()


# --- starting, opening, joining --------------------------------------------------------------------------------------------------------


def test_header_round_trip(tmp_path: Path) -> None:
    with Store.create(tmp_path / "new" / "folder", header(options={"jobs": 2}, versions={"numpy": "2"})) as store:
        pass
    with Store.open(tmp_path / "new" / "folder") as store:
        found = store.header
    assert Protocol(**found["protocol"]) == PROTOCOL
    assert found["protocol_hash"] == PROTOCOL.hash
    assert (found["data_hash"], found["seed"], found["options"], found["versions"]) == ("d" * 32, 0, {"jobs": 2}, {"numpy": "2"})
    assert (found["schema_version"], found["holdout_opened_at"], found["holdout_for"]) == (1, None, None)


def test_write_ahead_log_full_synchronisation_and_patience(store: Store) -> None:
    def pragma(name: str) -> object:
        return store._db.execute(f"PRAGMA {name}").fetchone()[0]

    assert (pragma("journal_mode"), pragma("synchronous"), pragma("busy_timeout")) == ("wal", 2, 30_000)


def test_create_refuses_a_folder_with_a_study(tmp_path: Path) -> None:
    Store.create(tmp_path, header()).close()
    with pytest.raises(StoreError, match="already holds a study: go on with --resume"):
        Store.create(tmp_path, header())


def test_open_says_that_there_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"holds no study \(study.sqlite not found\)"):
        Store.open(tmp_path)
    assert not (tmp_path / "study.sqlite").exists()
    (tmp_path / "study.sqlite").touch()
    with pytest.raises(StoreError, match="its study never started"):
        Store.open(tmp_path)
    Store.join(tmp_path, header()).close()  # what a process killed while it created the store leaves is used


def test_join_starts_then_joins(tmp_path: Path) -> None:
    with Store.join(tmp_path, header(versions={"numpy": "2.0", "torch": "2.6"})) as first:
        first.add_arms(arms())
    longer = Protocol(task="binary", folds=5, repeats=9, rope={"auroc": 0.1})  # changes no cell's numbers
    with Store.join(tmp_path, header(longer, versions={"numpy": "2.1", "torch": "2.6"})) as second:
        assert second.arms() == arms()
        assert second.header["protocol"]["repeats"] == 2
        assert [(level, text) for _, level, text in second.events()] == [("warning", "resumed with other versions: numpy 2.0 -> 2.1")]


def test_join_names_what_differs(tmp_path: Path) -> None:
    Store.join(tmp_path, header()).close()
    other = replace(PROTOCOL, folds=3, seed=7, repeats=9)
    with pytest.raises(InputError) as caught:
        Store.join(tmp_path, header(other, data_hash="e" * 32))
    assert "(data: dddddddd -> eeeeeeee; folds: 5 -> 3; seed: 0 -> 7)" in str(caught.value)
    assert "repeats" not in str(caught.value)
    assert differences(header(), header(replace(PROTOCOL, cost={"fp": 1.0, "fn": 20.0}))) == ["cost: None -> {'fp': 1.0, 'fn': 20.0}"]
    assert differences(header(), header()) == []


def test_many_processes_may_start_one_study_at_once(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    code = (
        "import sys; from pathlib import Path; from tests.studies.fake_study import make_store; sys.stdin.read(1);"
        "store = make_store(Path(sys.argv[1])); print(sum(store.states().values()))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}"}
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment, stdin=-1, stdout=-1, stderr=-1, text=True)
        for _ in range(6)
    ]
    for process in processes:  # all of them wait for this, having imported everything
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    answers = [process.communicate(timeout=60) for process in processes]
    assert answers == [("30\n", "")] * 6


# --- what is wrong with the folder or the file -----------------------------------------------------------------------------------------


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("not a folder")
    for folder in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(StoreError, match="is or lies below a file; expected a folder"):
            Store.join(folder, header())
    assert (tmp_path / "taken").read_text() == "not a folder"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system in which nobody can make a folder")
def test_folder_that_cannot_be_made() -> None:
    with pytest.raises(StoreError, match=r"/proc/study cannot be written .*choose a folder you can write to"):
        Store.join("/proc/study", header())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB, if this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        sys.platform != "linux"
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode
    ):
        pytest.skip("may not mount a file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_read_only_disk(small_disk: Path) -> None:
    make_store(small_disk / "old").close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for folder in ("old", "new"):
        with pytest.raises(StoreError, match=f"{folder} cannot be written .*choose a folder you can write to"):
            Store.join(small_disk / folder, header())


def test_full_disk(small_disk: Path) -> None:
    """Every write may fail; what was finished before stays, and work goes on once there is room."""
    store = make_store(small_disk, count=3, repeats=10)
    finished = []
    with pytest.raises(StoreError, match=r"is full: free some space\. Every finished cell is safe; go on with --resume --out"):
        while cell := store.claim(ME):
            assert store.finish(cell, ME, result(cell, n=5_000))
            finished.append(cell)
    assert 5 < len(finished) < 100
    store.close()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    with Store.join(small_disk, header()) as store:
        store.release(ME)
        assert store.states()["done"] == len(finished)
        np.testing.assert_array_equal(store.scores(finished[-1]), result(finished[-1], n=5_000).scores)
        while cell := store.claim(ME):
            store.finish(cell, ME, result(cell, n=5_000))
        assert store.states()["done"] == 150


def test_full_database(store: Store) -> None:
    """The same, for who may not mount a disk: SQLite reports a file that may not grow as a full disk."""
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages + 10}")
    cell = store.claim(ME)
    assert cell is not None
    with pytest.raises(StoreError, match="is full"):
        store.finish(cell, ME, result(cell, n=50_000))
    assert store.states()["run"] == 1
    store._db.execute("PRAGMA max_page_count = 1000000")
    assert store.finish(cell, ME, result(cell, n=50_000))


def test_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "study.sqlite").write_text("this is not a database, and long enough to be looked at" * 50)
    with pytest.raises(StoreError, match=r"is damaged .*start again in another folder"):
        Store.open(tmp_path / "text")

    store = make_store(tmp_path / "torn", repeats=20)
    while cell := store.claim(ME):
        store.finish(cell, ME, result(cell))
    store.close()
    path = tmp_path / "torn" / "study.sqlite"
    content = bytearray(path.read_bytes())
    content[8192:-4096] = bytes(len(content) - 12288)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="is damaged"):
        Store.open(tmp_path / "torn")


def test_damaged_scores(store: Store) -> None:
    cell = store.claim(ME)
    assert cell is not None
    store.finish(cell, ME, result(cell))
    store._db.execute("UPDATE cell SET rows = x'00' WHERE state = 'done'")
    with pytest.raises(StoreError, match="is damaged"):
        store.scores(cell)


def test_other_schema_and_other_database(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        store._db.execute("UPDATE study SET schema_version = 99")
    for opening in (Store.open, lambda folder: Store.join(folder, header())):
        with pytest.raises(StoreError, match=r"written by another version of counterpoise \(schema 99; this one reads 1\)"):
            opening(tmp_path)
    (tmp_path / "other").mkdir()
    db = sqlite3.connect(tmp_path / "other" / "study.sqlite")
    db.execute("CREATE TABLE holidays (day)")
    db.close()
    with pytest.raises(StoreError, match="is a database of something else"):
        Store.join(tmp_path / "other", header())


def test_drive_without_write_ahead_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's dot-file locking has no shared memory, as some network drives."""
    if sys.platform == "win32":
        pytest.skip("no such locking")

    def connect(path: Path) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{path}?vfs=unix-dotfile", uri=True, isolation_level=None, check_same_thread=False)

    monkeypatch.setattr(_store, "_open_database", connect)
    with make_store(tmp_path) as store:
        assert store._db.execute("PRAGMA journal_mode").fetchone()[0] == "delete"
        assert [level for _, level, text in store.events() if "no write-ahead log" in text] == ["warning"]
        cell = store.claim(ME)
        assert cell is not None and store.finish(cell, ME, result(cell))


def test_locked_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_store, "BUSY_TIMEOUT", 0.1)
    with make_store(tmp_path) as store, make_store(tmp_path) as other:
        other._db.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="was held by another process"):
            store.claim(ME)
        other._db.execute("ROLLBACK")
        assert store.claim(ME) is not None


# --- claims ----------------------------------------------------------------------------------------------------------------------------


def test_order_of_work(tmp_path: Path) -> None:
    """Drop, repeat, fold, then the order in which arms were added - whatever the order of the cells."""
    ids = cells(count=2, repeats=2, folds=2, drops=(NO_DROP, 0))
    with Store.create(tmp_path, header()) as store:
        store.add_arms(reversed(arms(2)))
        store.add_cells(reversed(ids))
        late = Arm("trees", "late")
        store.add_arms([late, *arms(2)])
        store.add_cells([CellId(NO_DROP, 0, 0, late.hash)])
        first, second = (arm.hash for arm in arms(2))
        expected = [(d, r, k, arm) for d in (NO_DROP, 0) for r in (0, 1) for k in (0, 1) for arm in (second, first)]
        expected.insert(2, (NO_DROP, 0, 0, late.hash))
        claimed = []
        while cell := store.claim(ME):
            claimed.append((cell.drop, cell.repeat, cell.fold, cell.arm))
        assert claimed == expected
        assert store.arms() == [*reversed(arms(2)), late]


def test_select(store: Store) -> None:
    cell = store.claim(ME, lambda cell: cell.repeat == 1 and cell.fold == 3)
    assert cell is not None and (cell.repeat, cell.fold) == (1, 3)
    assert store.claim(ME, lambda cell: cell.repeat == 5) is None
    assert store.states(lambda cell: cell.repeat == 1) == {"todo": 14, "run": 1, "done": 0, "failed": 0, "dropped": 0}


def test_claims_are_exclusive(tmp_path: Path) -> None:
    """Four connections at once: every cell is handed out exactly once."""
    make_store(tmp_path).close()
    claimed: list[CellId] = []

    def work(name: str) -> None:
        with Store.open(tmp_path) as mine:
            while cell := mine.claim(name):
                claimed.append(cell)

    threads = [threading.Thread(target=work, args=(f"elsewhere:{i}:0",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == 30
    assert set(claimed) == set(cells())


def test_lease(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A late result changes nothing; a renewed lease is not taken over."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    cell = store.claim(ME)
    assert cell is not None
    now += 50
    assert store.renew(ME) == 1
    now += 50  # 100 s after the claim, 50 s after the renewal
    assert store.claim(OTHER) != cell
    now += 11
    assert store.claim(OTHER) == cell
    late = result(cell)
    late.metrics["auroc"] = -1.0
    assert store.finish(cell, ME, late) is False
    assert store.fail(cell, ME, "too late") is False
    assert store.renew(ME) == 0
    assert owner_of(store, cell) == OTHER
    assert store.finish(cell, OTHER, result(cell)) is True
    assert store.finish(cell, ME, late) is False
    assert store.finish(cell, OTHER, late) is False  # not even its own
    assert results_frame(store).filter(pl.col("state") == "done")["auroc"].item() == result(cell).metrics["auroc"]
    assert [text for _, _, text in store.events()] == [f"1 unfinished cells of {ME} taken over by {OTHER}"]


def test_own_cell_is_not_claimed_twice(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even when the lease ended because the machine slept."""
    cell = store.claim(ME)
    late = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: late)
    assert store.claim(ME) != cell


def test_owner_that_is_gone_is_taken_over_at_once(store: Store) -> None:
    with living_owner() as (owner, process):
        assert not is_gone(owner)
        cell = store.claim(owner)
        assert cell is not None
        assert store.claim(ME) != cell
        process.kill()
        deadline = time.monotonic() + 5
        while not is_gone(owner) and time.monotonic() < deadline:  # a zombie: nobody has waited for it yet
            time.sleep(0.01)
        assert store.claim(ME) == cell


def test_who_is_gone() -> None:
    host, pid, start = this_owner().rsplit(":", 2)
    assert int(pid) == os.getpid()
    assert not is_gone(this_owner())
    assert is_gone(f"{host}:{pid}:{start}0")  # the number was given to a later process
    assert not is_gone(f"elsewhere:{pid}:{start}0")


def test_released_cells_and_suspects(store: Store) -> None:
    """A cell whose process died twice is not handed out with the others."""
    first = store.claim(ME)
    assert first is not None
    assert store.release(OTHER) == 0
    assert store.release(ME) == 1
    for _ in range(2):
        assert store.claim(ME) == first
        store.release(ME, interrupted=True)
    assert store.claim(ME) not in (None, first)
    assert store.claim(ME, suspect=True) == first
    assert store.claim(ME, suspect=True) is None


# --- results ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "dtype"), [((100,), "float64"), ((100,), "float32"), ((50, 4), "float64"), ((0,), "float64")])
def test_scores_round_trip(store: Store, shape: tuple[int, ...], dtype: str) -> None:
    cell = store.claim(ME)
    assert cell is not None
    with pytest.raises(KeyError, match="not finished"):
        store.scores(cell)
    kept = result(cell)
    kept.scores = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    kept.metrics = {"auroc": np.float32(0.5), "n": np.int64(3)}  # type: ignore[dict-item]
    assert store.finish(cell, ME, kept)
    found = store.load_scores(cell.arm, cell.repeat, cell.fold)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, kept.scores)
    assert store.cells().filter(pl.col("state") == "done")["metrics_json"].item() == '{"auroc": 0.5, "n": 3}'


def test_failures(store: Store) -> None:
    cell = store.claim(ME)
    assert cell is not None
    assert store.fail(cell, ME, "Traceback ...\nValueError: once") is False
    assert store.claim(ME) == cell
    assert store.fail(cell, ME, "Traceback ...\nValueError: twice") is True
    other = store.claim(ME)
    assert other is not None and other != cell
    assert store.fail(other, ME, "2 rows of class yes, SMOTE needs 6", final=True) is True
    frame = store.cells().filter(pl.col("state") == "failed")
    assert frame["attempts"].to_list() == [2, 1]
    assert frame["error"].to_list() == ["Traceback ...\nValueError: twice", "2 rows of class yes, SMOTE needs 6"]
    assert [text for _, _, text in store.events()] == [
        "linear/remedy0, repeat 0, fold 0: ValueError: once",
        "linear/remedy0, repeat 0, fold 0: ValueError: twice",
        "linear/remedy1, repeat 0, fold 0: 2 rows of class yes, SMOTE needs 6",
    ]


def test_nothing_is_overwritten(store: Store) -> None:
    cell = store.claim(ME)
    assert cell is not None
    store.finish(cell, ME, result(cell))
    before = store.cells()
    store.add_arms(arms())
    store.add_cells(cells())
    assert store.cells().equals(before)
    assert store.states() == {"todo": 29, "run": 0, "done": 1, "failed": 0, "dropped": 0}


def test_cells_need_their_arm(store: Store) -> None:
    with pytest.raises(StoreError, match="NOT NULL constraint failed"):
        store.add_cells([CellId(NO_DROP, 0, 0, "unknown")])


def test_transaction_is_all_or_nothing(store: Store) -> None:
    with pytest.raises(KeyboardInterrupt), store._transaction() as db:
        db.execute("UPDATE cell SET state = 'failed'")
        raise KeyboardInterrupt
    assert store.states()["todo"] == 30
    assert store.claim(ME) is not None


def test_settings(store: Store) -> None:
    assert store.get("plan") is None
    assert store.get("plan", 3) == 3
    assert store.setdefault("plan", {"repeats": 5, "arms": ["a"]}) == {"repeats": 5, "arms": ["a"]}
    assert store.setdefault("plan", {"repeats": 2}) == {"repeats": 5, "arms": ["a"]}
    store.set("plan", [1, 2.5])
    with Store.open(store.folder) as other:
        assert other.get("plan") == [1, 2.5]


def test_holdout_is_opened_once(store: Store) -> None:
    first = store.open_holdout("trees/smote")
    assert [opening["for"] for opening in first] == ["trees/smote"]
    assert store.open_holdout("trees/smote") == first  # a resumed study looks at the same answer
    with pytest.raises(InputError, match=r"opened on .* for trees/smote; a second look, for linear/weights.*--reopen-holdout"):
        store.open_holdout("linear/weights")
    assert [opening["for"] for opening in store.open_holdout("linear/weights", reopen=True)] == ["trees/smote", "linear/weights"]
    assert (store.header["holdout_for"], store.header["holdout_opened_at"]) == ("trees/smote", first[0]["at"])
    assert [text for _, level, text in store.events()] == ["hold-out opened for trees/smote", "hold-out opened for linear/weights"]


def test_results_frame(store: Store) -> None:
    """Stable columns and rows, whatever the order in which cells were finished."""
    ids = []
    while cell := store.claim(ME):
        ids.append(cell)
    for cell in reversed(ids[1:]):
        assert store.finish(cell, ME, result(cell))
    store.fail(ids[0], ME, "no rows", final=True)
    frame = results_frame(store)
    assert frame.columns == [
        *("learner", "remedy", "stage", "drop", "repeat", "fold", "state", "auroc", "log_loss", "threshold", "params", "extra"),
        *("fits", "steps", "seconds", "cpu_seconds", "peak_rss_mb", "error", "arm_hash", "key"),
    ]
    assert list(zip(frame["drop"], frame["repeat"], frame["fold"], frame["arm_hash"], strict=True)) == [
        (cell.drop, cell.repeat, cell.fold, cell.arm) for cell in ids
    ]
    assert frame["auroc"].to_list() == [None, *(result(cell).metrics["auroc"] for cell in ids[1:])]
    assert frame["threshold"][1].to_list() == result(ids[1]).threshold
    assert frame.row(0, named=True)["error"] == "no rows"
    assert frame["fits"].sum() == 29 * 4


def test_results_frame_of_nothing(tmp_path: Path) -> None:
    with Store.create(tmp_path, header()) as store:
        assert results_frame(store).height == 0
        store.add_arms(arms())
        store.add_cells(cells())
        assert results_frame(store)["state"].to_list() == ["todo"] * 30


def test_copied_folder_is_the_same_study(store: Store, tmp_path: Path) -> None:
    """Once closed, the folder can be moved: nothing in it refers to where it was."""
    cell = store.claim(ME)
    assert cell is not None
    store.finish(cell, ME, result(cell))
    store.close()
    shutil.copytree(tmp_path, tmp_path.parent / "copy")
    with Store.join(tmp_path.parent / "copy", header()) as copy:
        np.testing.assert_array_equal(copy.scores(cell), result(cell).scores)
