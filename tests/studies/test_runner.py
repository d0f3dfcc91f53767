"""The runner: every cell once, the same numbers by any engine, and a store in order after whatever was killed."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import random
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import threadpoolctl
from tests.studies.fake_study import FakeWork, arms, cells, computed, make_store, result

from counterpoise._errors import CounterpoiseError, InputError, MissingExtraError, StoreError
from counterpoise.studies import _runner, _store
from counterpoise.studies._runner import run_cells
from counterpoise.studies._store import Store, results_frame, this_owner
from counterpoise.studies._types import Arm, CellId, CellResult, Watcher

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills processes by signal")


@pytest.fixture(scope="module", autouse=True)
def workers_end() -> Iterator[None]:
    """loky keeps its workers for the next call; none is left for the tests that follow."""
    yield
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True, kill_workers=True)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with make_store(tmp_path) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """The results of the study when nothing happens."""
    with make_store(tmp_path_factory.mktemp("calm")) as calm:
        run_cells(calm, FakeWork())
        return results_frame(calm)


def start(folder: Path, *options: str, quiet: bool = False) -> subprocess.Popen[str]:
    """The fake study as a program of its own, in a process group of its own."""
    command = [sys.executable, str(Path(__file__).with_name("fake_study.py")), "--out", str(folder), *options]
    output = subprocess.DEVNULL if quiet else subprocess.PIPE
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=output, stderr=output, text=True, start_new_session=True)


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """The loky workers of a process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            command = (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == pid and b"loky" in command and b"resource_tracker" not in command:
            found.append(int(path.parent.name))
    return found


def alive(pid: int) -> bool:
    return _store._started(pid) != ""


# --- every cell once, the same numbers ---------------------------------------------------------------------------------------------------


def test_workers_give_the_numbers_of_one_process(store: Store, tmp_path: Path, expected: pl.DataFrame) -> None:
    log = tmp_path / "log"
    run_cells(store, FakeWork(0.01, str(log)), jobs=2)
    assert results_frame(store).equals(expected)
    assert sorted(computed(log)) == sorted(f"{cell.drop} {cell.repeat} {cell.fold} {cell.arm}" for cell in cells())
    assert len({line.split()[-1] for line in log.read_text().splitlines()} - {str(os.getpid())}) == 2
    np.testing.assert_array_equal(store.scores(cells()[4]), result(cells()[4]).scores)


def test_two_processes_share_a_study(tmp_path: Path, expected: pl.DataFrame) -> None:
    """One alone in its process, one with workers: every cell is computed once, both wait for the last, both see all of it."""
    processes = [start(tmp_path, "--seconds", "0.1"), start(tmp_path, "--seconds", "0.1", "--jobs", "2")]
    for process in processes:
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 0
    with Store.open(tmp_path) as store:
        frame = store.cells()
        assert results_frame(store).equals(expected)
    assert sorted(computed(tmp_path / "computed.log")) == sorted(set(computed(tmp_path / "computed.log")))
    assert frame["owner"].n_unique() == 2
    assert frame.group_by("owner").len()["len"].min() >= 5  # type: ignore[operator]


def test_nothing_left_to_do(store: Store) -> None:
    run_cells(store, FakeWork())

    def never(cell: CellId) -> CellResult:
        raise AssertionError

    run_cells(store, never)
    run_cells(store, never, jobs=2)
    assert store.states()["done"] == 30


def test_selected_cells_only(store: Store) -> None:
    run_cells(store, FakeWork(), select=lambda cell: cell.repeat == 0)
    assert set(results_frame(store).filter(pl.col("state") == "done")["repeat"]) == {0}
    assert store.states() == {"todo": 15, "run": 0, "done": 15, "failed": 0, "dropped": 0}


def test_what_the_watcher_is_told(store: Store) -> None:
    told: list[tuple[int, int, str | None]] = []

    class Remember(Watcher):
        def cell(self, done: int, total: int, arm: Arm | None) -> None:
            told.append((done, total, arm.name if arm else None))

    run_cells(store, FakeWork(), select=lambda cell: cell.repeat == 0 and cell.fold == 0, watcher=Remember())
    assert told == [
        (0, 3, None),
        *((i + 1, 3, f"linear/remedy{i}") for i in range(3)),
        (3, 3, None),
    ]


@dataclass(frozen=True)
class CountThreads:
    """Reports in its metrics how many threads the numerical libraries would use."""

    def __call__(self, cell: CellId) -> CellResult:
        import torch

        answer = result(cell)
        pools = [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]
        answer.metrics = {"threads": float(max(pools, default=1)), "torch": float(torch.get_num_threads())}
        return answer


@pytest.mark.parametrize("jobs", [1, 2])
def test_one_thread_per_worker(store: Store, jobs: int) -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        run_cells(store, CountThreads(), jobs=jobs, select=lambda cell: cell.repeat == 0)
        assert torch.get_num_threads() == 3  # as it was
    finally:
        torch.set_num_threads(before)
    done = results_frame(store).filter(pl.col("state") == "done")
    assert done.height == 15
    assert set(done["threads"]) == {1.0}
    assert set(done["torch"]) == {1.0}


# --- what goes wrong in a cell -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Troubled:
    """One arm raises, one has a reason to refuse, one finds its process killed; the rest is well."""

    log: str
    kills: bool = False

    def __call__(self, cell: CellId) -> CellResult:
        FakeWork(log=self.log)(cell)
        if cell.arm == arms()[0].hash:
            raise ZeroDivisionError("a bug")
        if cell.arm == arms()[1].hash:
            raise CounterpoiseError("2 rows of class 'yes'; SMOTE needs 6")
        if self.kills and (cell.repeat, cell.fold) == (0, 1):
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)
        return result(cell)


@pytest.mark.parametrize("jobs", [1, 2])
def test_errors_are_kept_and_the_study_goes_on(store: Store, tmp_path: Path, jobs: int) -> None:
    notes: list[str] = []

    class Notes(Watcher):
        def note(self, level: str, text: str) -> None:
            notes.append(f"{level}: {text}")

    run_cells(store, Troubled(str(tmp_path / "log")), jobs=jobs, watcher=Notes())
    frame = store.cells()
    by_arm = {name: frame.filter(pl.col("remedy") == name) for name in ("remedy0", "remedy1", "remedy2")}
    assert set(by_arm["remedy0"]["state"]) == {"failed"}
    assert set(by_arm["remedy0"]["attempts"]) == {2}
    assert all(text.startswith("Traceback") and text.endswith("ZeroDivisionError: a bug\n") for text in by_arm["remedy0"]["error"])
    assert set(by_arm["remedy1"]["attempts"]) == {1}
    assert set(by_arm["remedy1"]["error"]) == {"2 rows of class 'yes'; SMOTE needs 6"}
    assert set(by_arm["remedy2"]["state"]) == {"done"}
    assert len(computed(tmp_path / "log")) == 10 * (2 + 1 + 1)
    assert "warning: linear/remedy0 failed in repeat 1, fold 4: ZeroDivisionError: a bug" in notes
    assert len(notes) == 20


def test_exceptions_may_say_that_they_are_final(store: Store, tmp_path: Path) -> None:
    class Refused(Exception):
        deterministic = True

    def work(cell: CellId) -> CellResult:
        raise Refused("no")

    run_cells(store, work, select=lambda cell: cell.repeat == 0 and cell.fold == 0)
    assert store.cells().filter(pl.col("state") == "failed")["attempts"].to_list() == [1, 1, 1]


def test_a_cell_that_kills_its_worker(store: Store, tmp_path: Path) -> None:
    """It is found, blamed, and the only one blamed."""
    run_cells(store, Troubled(str(tmp_path / "log"), kills=True), jobs=2)
    frame = store.cells().filter(pl.col("remedy") == "remedy2")
    assert frame["state"].to_list() == ["done", "failed"] + 8 * ["done"]
    assert frame["error"][1] == _runner.KILLED
    assert frame["attempts"].to_list() == [0, 2] + 8 * [0]
    assert computed(tmp_path / "log").count(f"-1 0 1 {arms()[2].hash}") == 4  # twice with others, twice alone
    assert sum("a worker process was killed" in text for _, _, text in store.events()) == 2


def test_a_cell_that_kills_the_only_process(tmp_path: Path) -> None:
    """With one job it takes the study with it; resumed, it is run in a process of its own."""
    program = (
        "import sys; from pathlib import Path;"
        "from tests.studies.fake_study import make_store; from tests.studies.test_runner import Troubled;"
        "from counterpoise.studies._runner import run_cells;"
        "run_cells(make_store(Path(sys.argv[1])), Troubled(sys.argv[1] + '/log', kills=True))"
    )
    codes = [
        subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=ENVIRONMENT, timeout=60, capture_output=True).returncode
        for _ in range(3)
    ]
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0]
    with Store.open(tmp_path) as store:
        frame = store.cells().filter(pl.col("remedy") == "remedy2")
    assert frame["state"].to_list() == ["done", "failed"] + 8 * ["done"]


def test_work_that_cannot_be_sent(store: Store) -> None:
    lock = threading.Lock()

    def work(cell: CellId) -> CellResult:
        with lock:
            return result(cell)

    with pytest.raises(InputError, match="jobs: got 2; expected 1, since the learners cannot be sent to other processes"):
        run_cells(store, work, jobs=2)
    assert store.states()["todo"] == 30
    run_cells(store, work, jobs=1)
    assert store.states()["done"] == 30


def test_work_that_workers_cannot_load(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is not installed where the workers run is one error, not that of every cell."""
    module = types.ModuleType("only_here")
    module.work = type("Work", (), {"__module__": "only_here", "__call__": lambda self, cell: result(cell)})  # type: ignore[attr-defined]
    module.work.__qualname__ = "work"
    monkeypatch.setitem(sys.modules, "only_here", module)
    with pytest.raises(InputError, match=r"a worker cannot load the learners .*only_here"):
        run_cells(store, module.work(), jobs=2)
    assert store.states()["todo"] == 30


@pytest.mark.parametrize(
    ("options", "message"), [({"jobs": 0}, "jobs: got 0"), ({"jobs": 2.0}, "jobs"), ({"engine": "rya"}, "Did you mean 'ray'")]
)
def test_bad_options(store: Store, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_cells(store, FakeWork(), **options)


# --- leases ------------------------------------------------------------------------------------------------------------------------------


def test_long_cells_keep_their_lease(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_store, "LEASE", 0.6)
    monkeypatch.setattr(_runner, "RENEWAL", 0.2)
    thieves: list[CellId | None] = []

    def first(cell: CellId) -> bool:
        return cell == cells()[0]

    def work(cell: CellId) -> CellResult:
        with Store.open(store.folder) as other:
            for _ in range(8):  # 1.6 s, nearly three leases
                time.sleep(0.2)
                thieves.append(other.claim("elsewhere:1:1", first))
        return result(cell)

    run_cells(store, work, select=first)
    assert thieves == [None] * 8
    assert store.states()["done"] == 1


def test_waits_for_another_process_and_takes_over_when_it_dies(store: Store) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        host = this_owner().rsplit(":", 2)[0]
        cell = store.claim(f"{host}:{other.pid}:{_store._started(other.pid)}")
        with ThreadPoolExecutor(1) as pool:
            run = pool.submit(run_cells, store, FakeWork())
            wait_for(lambda: store.states()["done"] == 29)
            time.sleep(0.3)
            assert not run.done()
            other.kill()
            run.result(timeout=10)
    frame = store.cells()
    assert set(frame["state"]) == {"done"}
    assert frame.filter(pl.col("interruptions") > 0)["arm_hash"].to_list() == [cell.arm]  # type: ignore[union-attr]


def test_late_result_of_a_run_is_not_written(store: Store) -> None:
    """While the run computes its first cell, another owner takes it over and finishes it."""
    first = cells()[0]
    theirs = result(first)
    theirs.metrics["auroc"] = 0.125

    def work(cell: CellId) -> CellResult:
        if cell == first:
            store._db.execute("UPDATE cell SET owner = 'elsewhere:1:1' WHERE state = 'run'")
            assert store.finish(cell, "elsewhere:1:1", theirs)
        return result(cell)

    run_cells(store, work)
    assert results_frame(store)["auroc"][0] == 0.125
    assert store.states()["done"] == 30


# --- interruptions -----------------------------------------------------------------------------------------------------------------------


def test_ctrl_c_in_this_process(store: Store, expected: pl.DataFrame) -> None:
    def work(cell: CellId) -> CellResult:
        if cell == cells()[7]:
            raise KeyboardInterrupt
        return result(cell)

    with pytest.raises(KeyboardInterrupt):
        run_cells(store, work)
    assert store.states() == {"todo": 23, "run": 0, "done": 7, "failed": 0, "dropped": 0}
    run_cells(store, FakeWork())
    assert results_frame(store).equals(expected)


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_a_clean_store(tmp_path: Path, number: signal.Signals, jobs: str) -> None:
    """Ctrl-C reaches the whole process group, SIGTERM the parent alone."""
    process = start(tmp_path, "--seconds", "0.2", "--jobs", jobs)
    log = tmp_path / "computed.log"
    wait_for(lambda: log.exists() and len(computed(log)) >= 5)
    workers = children(process.pid)
    assert len(workers) == (2 if jobs == "2" else 0)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode != 0
    assert errors.count("Traceback") == 1 and errors.strip().endswith("KeyboardInterrupt")  # that of the program, nothing from workers
    wait_for(lambda: not any(alive(worker) for worker in workers), seconds=5)
    with Store.open(tmp_path) as store:
        states, frame = store.states(), store.cells()
    assert states["run"] == 0 and states["done"] >= 2 and states["todo"] >= 2
    assert frame["interruptions"].sum() == 0


def test_workers_leave_ctrl_c_to_the_parent(store: Store) -> None:
    """A parent that answers Ctrl-C in its own way is not stopped by its workers."""

    def work(cell: CellId) -> CellResult:
        os.kill(os.getpid(), signal.SIGINT)
        return result(cell)

    run_cells(store, work, jobs=2)
    assert store.states()["done"] == 30


def test_own_handler_of_sigterm_is_left_alone(store: Store) -> None:
    caught: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
    try:

        def work(cell: CellId) -> CellResult:
            if cell == cells()[3]:
                os.kill(os.getpid(), signal.SIGTERM)
            return result(cell)

        run_cells(store, work)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught == [signal.SIGTERM]
    assert store.states()["done"] == 30


def ignoring(number: signal.Signals) -> None:
    """Code that goes on after Ctrl-C, as skorch does."""
    with contextlib.suppress(KeyboardInterrupt):
        os.kill(os.getpid(), number)


def in_a_destructor(number: signal.Signals) -> None:
    """Python ignores what is raised there."""

    class Object:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)

    Object()


def in_a_callback_from_c(number: signal.Signals) -> None:
    """And there: threadpoolctl has one around every cell."""
    callback = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: os.kill(os.getpid(), number) or 0)
    callback()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("lose", [ignoring, in_a_destructor, in_a_callback_from_c])
def test_a_signal_that_code_ignores_is_not_lost(store: Store, lose: Callable[[signal.Signals], None], number: signal.Signals) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    computed: list[CellId] = []

    def work(cell: CellId) -> CellResult:
        computed.append(cell)
        if len(computed) == 4:
            lose(number)
        return result(cell)

    with pytest.raises(KeyboardInterrupt):
        run_cells(store, work)
    states = store.states()
    # The cell that was interrupted is no result: half a training looks like a whole one.
    assert (len(computed), states["done"], states["run"], states["todo"]) == (4, 3, 0, 27)
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
    run_cells(store, work)
    assert store.states()["done"] == 30


def test_between_the_runs_of_a_study_signals_stop_it_as_well(store: Store) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), _runner.stopping() as outer:
        run_cells(store, FakeWork())
        assert signal.getsignal(signal.SIGTERM) is outer is signal.getsignal(signal.SIGINT)  # left as it was
        ignoring(signal.SIGTERM)
        run_cells(store, FakeWork())
    assert store.states()["done"] == 30 and signal.getsignal(signal.SIGTERM) is before


def test_an_own_handler_of_sigterm_does_not_lose_ctrl_c(store: Store) -> None:
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with pytest.raises(KeyboardInterrupt), _runner.stopping():
            ignoring(signal.SIGINT)
            run_cells(store, FakeWork())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert store.states()["done"] == 0


def test_a_signal_without_effect_is_repeated(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long cell that ignored the first one does not have to end first."""
    monkeypatch.setattr("counterpoise.studies._runner.RENEWAL", 0.2)

    def work(cell: CellId) -> CellResult:
        ignoring(signal.SIGTERM)
        for _ in range(300):
            time.sleep(0.1)
        return result(cell)

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_cells(store, work)
    assert time.monotonic() - start < 10 and store.states()["run"] == 0


def test_full_disk_in_the_middle(store: Store, expected: pl.DataFrame) -> None:
    """One line for the user, the finished cells safe; with room again, the rest is computed."""
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages + 8}")
    with pytest.raises(StoreError, match="is full: free some space"):
        run_cells(store, FakeWork(), jobs=2)
    done = store.states()["done"]
    assert 0 < done < 30
    store._db.execute("PRAGMA max_page_count = 1000000")
    run_cells(store, FakeWork())
    assert results_frame(store).equals(expected)


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    process = start(tmp_path, "--seconds", "30", "--jobs", "2", quiet=True)
    wait_for(lambda: (tmp_path / "computed.log").exists() and len(computed(tmp_path / "computed.log")) == 2)
    workers = children(process.pid)
    assert len(workers) == 2
    process.kill()
    process.wait(timeout=20)
    wait_for(lambda: not any(alive(worker) for worker in workers), seconds=5)  # long before their cells would end


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path, expected: pl.DataFrame) -> None:
    """Ten kill -9 of the parent, of everything, or of a worker; what is left is the study nobody disturbed."""
    rng = random.Random(5)
    log = tmp_path / "computed.log"

    def begin() -> subprocess.Popen[str]:
        return start(tmp_path, "--seconds", "0.25", "--jobs", "2", "--resume", quiet=True)

    def moved_on(process: subprocess.Popen[str], lines: int) -> bool:
        return process.poll() is not None or (log.exists() and len(computed(log)) > lines)

    process = begin()
    kills = 0
    while kills < 10:
        lines = len(computed(log)) if log.exists() else 0
        wait_for(lambda process=process, lines=lines: moved_on(process, lines))  # type: ignore[misc]
        time.sleep(rng.uniform(0, 0.4))
        workers = children(process.pid)
        if process.poll() is not None or not workers:
            break
        if kills % 3 == 0:
            os.kill(rng.choice(workers), signal.SIGKILL)
        else:
            os.killpg(process.pid, signal.SIGKILL) if kills % 3 == 1 else process.kill()
            process.wait(timeout=20)
            process = begin()
        kills += 1
    assert kills >= 6
    began = time.monotonic()
    assert process.wait(timeout=60) == 0
    assert time.monotonic() - began < 30  # nobody waited for the lease of a dead process
    with Store.open(tmp_path) as store:
        assert results_frame(store).equals(expected)
        assert store._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert len(computed(log)) - 30 <= 4 * kills  # two cells running, two that came back or were to follow


# --- clusters ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KillsOneWorker:
    """The first cell of repeat 1 kills its process, once."""

    folder: str

    def __call__(self, cell: CellId) -> CellResult:
        FakeWork(log=f"{self.folder}/log")(cell)
        flag = Path(self.folder) / "killed-once"
        if cell == cells()[15] and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return result(cell)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")
@pytest.mark.filterwarnings("ignore::Warning:ray")
def test_ray(tmp_path: Path, expected: pl.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real local cluster of two processors; a worker is killed on the way."""
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    with make_store(tmp_path) as store:
        run_cells(store, KillsOneWorker(str(tmp_path)), jobs=2, engine="ray")
        assert not ray.is_initialized()  # it started the cluster, so it stopped it
        assert results_frame(store).equals(expected)
        assert (tmp_path / "killed-once").exists()
        assert 1 <= store.cells()["interruptions"].sum() <= 2  # the wave of the killed worker
        assert str(os.getpid()) not in {line.split()[-1] for line in (tmp_path / "log").read_text().splitlines()}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("distributed") is None, reason="needs dask")
def test_dask(tmp_path: Path, expected: pl.DataFrame) -> None:
    with make_store(tmp_path) as store:
        run_cells(store, FakeWork(log=str(tmp_path / "log")), jobs=2, engine="dask")
        assert results_frame(store).equals(expected)
        assert str(os.getpid()) not in {line.split()[-1] for line in (tmp_path / "log").read_text().splitlines()}


@pytest.mark.parametrize("engine", ["ray", "dask"])
def test_missing_cluster_library(store: Store, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ray", "ray.util.joblib", "distributed"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'counterpoise\[{engine}\]'"):
        run_cells(store, FakeWork(), engine=engine)
