"""The runner: whoever calls :func:`run_cells` claims cells, has workers compute them, and writes what comes back.

    claim --> worker: work(cell) --> finish or fail          (only this process touches the store; workers only compute)

Cells go through joblib: loky processes on this machine, or the registered Ray and Dask back ends. A worker computes with one thread, so a
cell gives the same numbers on one worker and on many. A cell that raises is tried once more; one whose process dies is given back and,
should that happen again, runs alone, so that no other cell is blamed for it.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import FrameType

import cloudpickle
from joblib import Parallel, delayed, effective_n_jobs, parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError
from threadpoolctl import threadpool_limits

from counterpoise._errors import CounterpoiseError, InputError, StoreError, bad_input, check_choice
from counterpoise._extras import require

from ._store import Select, Store, this_owner
from ._types import NO_DROP, CellId, CellResult, Watcher

__all__ = ["run_cells", "stopping"]

ENGINES = ("local", "ray", "dask")
RENEWAL = 20.0  # seconds between two renewals of the leases, a third of a lease
SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 2.0  # seconds between two looks at what other processes are doing
KILLED = "the process that computed this cell was killed (out of memory, or a crash in compiled code)"

Work = Callable[[CellId], CellResult]


def run_cells(
    store: Store, work: Work, *, jobs: int = 1, engine: str = "local", watcher: Watcher | None = None, select: Select | None = None
) -> None:
    """Compute until no selected cell is to do or running, here or in another process on the same store.

    ``work(cell)`` returns the :class:`CellResult`. With more than one job (-1: one per CPU) or a cluster ``engine`` it must be picklable by
    cloudpickle, and files it reads must be visible to the workers; one local job runs in this process.
    An exception in ``work`` is kept as the cell's error and the study goes on; a :class:`CounterpoiseError`, or an exception with a true
    attribute ``deterministic``, is not tried again. Ctrl-C and SIGTERM stop the workers, give the claimed cells back and raise
    :class:`KeyboardInterrupt`, also where the code they interrupt goes on as if nothing had happened. :class:`StoreError` if the store
    cannot be written any more.
    """
    check_choice("engine", engine, ENGINES)
    if isinstance(jobs, bool) or not isinstance(jobs, int) or (jobs < 1 and jobs != -1):
        bad_input("jobs", jobs, "a number of workers >= 1, or -1 for one per CPU")
    with stopping() as stop, _backend(engine, jobs) as crashes:
        _Run(store, work, effective_n_jobs(jobs), engine, crashes, watcher or Watcher(), select, stop).until_finished()


@dataclass(frozen=True)
class _Failure:
    """What a worker sends back instead of a result."""

    text: str
    final: bool


class _Run:
    """One call of :func:`run_cells`. ``crashes``: the exceptions by which the back end tells that a worker died."""

    def __init__(
        self,
        store: Store,
        work: Work,
        jobs: int,
        engine: str,
        crashes: tuple[type[BaseException], ...],
        watcher: Watcher,
        select: Select | None,
        stop: _Stop,
    ) -> None:
        self.store, self.work, self.jobs, self.engine = store, work, jobs, engine
        self.crashes, self.watcher, self.select, self.stop = crashes, watcher, select, stop
        self.owner = this_owner()
        self.arms = {arm.hash: arm for arm in store.arms()}
        self.done = self.total = 0
        self.counted_at = 0.0

    def until_finished(self) -> None:
        self.store.release(self.owner)  # what an earlier call in this process could not give back
        self.count_open()
        self.watcher.cell(self.done, self.total, None)
        pause = SHORTEST_PAUSE
        try:
            with _renewing(self.store, self.owner, self.stop):
                while True:
                    self.stop.check()
                    if self.run_suspects() + self.run_together():
                        pause = SHORTEST_PAUSE
                    elif self.count_open():
                        # Another process runs the rest. Should it die, the next look claims its cells.
                        self.watcher.cell(self.done, self.total, None)
                        time.sleep(pause)
                        pause = min(2 * pause, LONGEST_PAUSE)
                    else:
                        break
        except BaseException:
            with contextlib.suppress(StoreError):  # then the leases end by themselves
                self.store.release(self.owner)
            raise
        self.watcher.cell(self.done, self.total, None)

    def run_together(self) -> int:
        """All that can be claimed, ``jobs`` at a time; returns how many cells were worked on, 0 if there was none."""
        with self.claims() as claims:
            if self.engine == "local" and self.jobs == 1:
                return sum(self.record(cell, _attempt(self.work, cell)) for cell in claims)
            try:
                return self.compute(claims, self.jobs)
            except self.crashes:
                claims.close()  # before the release, else joblib's thread could claim one more that nobody would compute
                lost = self.store.release(self.owner, interrupted=True)
                text = f"a worker process was killed (out of memory?); {lost} cells in flight are computed again"
                self.store.event("warning", text)
                self.watcher.note("warning", text)
                return lost

    def run_suspects(self) -> int:
        """The cells under which processes died: one at a time, never in this process; if that dies as well, it is the cell's error."""
        worked = 0
        with self.claims(suspect=True) as claims:
            for cell in claims:
                try:
                    worked += self.compute(iter([cell]), max(self.jobs, 2))  # joblib does not start a process for one job
                except self.crashes:
                    worked += self.record(cell, _Failure(KILLED, final=False))
        return worked

    def compute(self, cells: Iterator[CellId], jobs: int) -> int:
        """Have workers compute cells, and record what comes back in whatever order; returns how many did."""
        outcomes = self.outcomes(cells, jobs)
        try:
            return sum(self.record(cell, outcome) for cell, outcome in outcomes)
        finally:
            with warnings.catch_warnings():  # joblib's remark that unfinished tasks are cancelled
                warnings.simplefilter("ignore")
                outcomes.close()

    def outcomes(self, cells: Iterator[CellId], jobs: int) -> Generator[tuple[CellId, CellResult | _Failure], None, None]:
        if self.engine == "local":
            workers = Parallel(n_jobs=jobs, batch_size=1, pre_dispatch=jobs, return_as="generator_unordered", max_nbytes=None)
            yield from workers(delayed(_compute)(self.pickled, cell) for cell in cells)
        else:  # the back ends of clusters hand results over when all are there, hence in waves
            with Parallel(n_jobs=jobs, batch_size=1) as workers:
                while wave := list(itertools.islice(cells, jobs)):
                    yield from workers(delayed(_compute)(self.pickled, cell) for cell in wave)

    def record(self, cell: CellId, outcome: CellResult | _Failure) -> int:
        self.stop.check()  # what was interrupted and went on is no result
        arm = self.arms.get(cell.arm)
        if isinstance(outcome, _Failure):
            finished = self.store.fail(cell, self.owner, outcome.text, final=outcome.final)
            if finished:
                reason = outcome.text.strip().rpartition("\n")[2]
                where = f"repeat {cell.repeat}, fold {cell.fold}" + (f", 1 of {-cell.drop} parts" if cell.drop < NO_DROP else "")
                self.watcher.note("warning", f"{arm.name if arm else cell.arm} failed in {where}: {reason}")
        else:
            finished = self.store.finish(cell, self.owner, outcome)
        if time.monotonic() - self.counted_at > 1:
            self.count_open()  # other processes finish cells too
        else:
            self.done += finished
        self.watcher.cell(self.done, self.total, arm)
        return 1

    def count_open(self) -> int:
        """Bring the progress up to date; returns how many selected cells are to do or running anywhere."""
        states = self.store.states(self.select)
        still_open = states["todo"] + states["run"]
        self.total = sum(states.values())
        self.done = self.total - still_open
        self.counted_at = time.monotonic()
        return still_open

    def claims(self, suspect: bool = False) -> _Claims:
        return _Claims(self.store, self.owner, self.select, suspect)

    @cached_property
    def pickled(self) -> bytes:
        try:
            return bytes(cloudpickle.dumps(self.work))
        except Exception as error:
            bad_input("jobs", self.jobs, f"1, since the learners cannot be sent to other processes ({error})")


class _Claims:
    """Claims a cell whenever joblib asks for one, in whatever thread it does so, until closed."""

    def __init__(self, store: Store, owner: str, select: Select | None, suspect: bool) -> None:
        self.store, self.owner, self.select, self.suspect = store, owner, select, suspect
        self.lock = threading.Lock()
        self.closed = False

    def __iter__(self) -> Iterator[CellId]:
        return self

    def __next__(self) -> CellId:
        with self.lock:
            cell = None if self.closed else self.store.claim(self.owner, self.select, suspect=self.suspect)
        if cell is None:
            raise StopIteration
        return cell

    def close(self) -> None:
        with self.lock:
            self.closed = True

    def __enter__(self) -> _Claims:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --- in the worker -------------------------------------------------------------------------------------------------------------------


def _compute(pickled: bytes, cell: CellId) -> tuple[CellId, CellResult | _Failure]:
    return cell, _attempt(_loaded(pickled), cell)


def _attempt(work: Work, cell: CellId) -> CellResult | _Failure:
    try:
        with _one_thread():
            return work(cell)
    except (Exception, SystemExit) as error:
        final = isinstance(error, CounterpoiseError) or getattr(error, "deterministic", False)
        return _Failure(str(error) if final else traceback.format_exc(), bool(final))


@lru_cache(maxsize=2)
def _loaded(pickled: bytes) -> Work:
    try:
        work: Work = cloudpickle.loads(pickled)
    except Exception as error:  # once for all cells: it is raised in the parent and ends the run
        raise InputError(
            f"a worker cannot load the learners ({error}): install where it runs what they are made of, or use one local job."
        ) from error
    return work


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """BLAS, OpenMP and torch compute with one thread: sums are then added in the same order everywhere."""
    torch = sys.modules.get("torch")  # not imported for this alone
    threads = torch.get_num_threads() if torch else 1
    with threadpool_limits(limits=1):
        if torch:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if torch:
                torch.set_num_threads(threads)


def _settle_in(parent: int) -> None:
    """First thing in a local worker: leave Ctrl-C to the parent, and end when the parent is gone, also in the middle of a fit."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    if sys.platform != "win32":  # there a process keeps the number of a parent that is gone
        threading.Thread(target=watch, name="counterpoise-parent-watch", daemon=True).start()


# --- around the run ------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _renewing(store: Store, owner: str, stop: _Stop) -> Iterator[None]:
    """Renew the leases of ``owner`` from a thread, since a cell may take longer than a lease; a signal that had no effect is repeated."""
    finished = threading.Event()

    def renew() -> None:
        while not finished.wait(RENEWAL):
            with contextlib.suppress(StoreError):  # the next result runs into the same error and reports it
                store.renew(owner)
            if stop.number is not None and not finished.is_set():
                os.kill(os.getpid(), stop.number)

    thread = threading.Thread(target=renew, name="counterpoise-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


class _Stop:
    """Answers SIGTERM and Ctrl-C: with KeyboardInterrupt, and with a mark that stays where the exception is lost.

    It may be: skorch ends a training at Ctrl-C and takes it for finished; Python ignores exceptions in destructors and in callbacks from C.
    """

    number: signal.Signals | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.number = signal.Signals(number)
        raise KeyboardInterrupt

    def check(self) -> None:
        if self.number is not None:
            raise KeyboardInterrupt


@contextlib.contextmanager
def stopping() -> Iterator[_Stop]:
    """SIGTERM and Ctrl-C raise KeyboardInterrupt, unless the program has its own answer to them. One inside another is the other."""
    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    now = {number: signal.getsignal(number) for number in usual}
    outer = next((answer for answer in now.values() if isinstance(answer, _Stop)), None)
    if outer is not None:
        yield outer
        return
    stop = _Stop()
    ours = threading.current_thread() is threading.main_thread()
    before = {number: answer for number, answer in usual.items() if ours and now[number] is answer}
    try:
        for number in before:
            signal.signal(number, stop)
        yield stop
    finally:
        for number, answer in before.items():
            signal.signal(number, answer)


@contextlib.contextmanager
def _backend(engine: str, jobs: int) -> Iterator[tuple[type[BaseException], ...]]:
    """Make joblib use ``engine``; yields the exceptions that tell of a dead worker. A cluster that was not there is started and stopped."""
    with contextlib.ExitStack() as stack:
        if engine == "local":
            stack.enter_context(
                parallel_config(backend="loky", n_jobs=jobs, inner_max_num_threads=1, initializer=_settle_in, initargs=(os.getpid(),))
            )
            yield (TerminatedWorkerError,)
        elif engine == "ray":
            ray = require("ray", "ray", "engine='ray'")
            require("ray.util.joblib", "ray", "engine='ray'").register_ray()
            if not ray.is_initialized():
                # A cluster whose address is set knows how many processors it has.
                processors = None if jobs == -1 or os.environ.get("RAY_ADDRESS") else jobs
                ray.init(num_cpus=processors, log_to_driver=False, logging_level=logging.ERROR)
                stack.callback(ray.shutdown)
            stack.enter_context(parallel_config(backend="ray", n_jobs=jobs))
            yield (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError)
        else:
            distributed = require("distributed", "dask", "engine='dask'")
            dask = require("dask", "dask", "engine='dask'")
            try:
                distributed.get_client()
            except ValueError:
                there = dask.config.get("scheduler-address", None)
                workers = os.cpu_count() if jobs == -1 else jobs
                client = (
                    distributed.Client() if there else distributed.Client(n_workers=workers, threads_per_worker=1, dashboard_address=None)
                )
                stack.callback(client.close)
            stack.enter_context(parallel_config(backend="dask"))
            yield (distributed.KilledWorker,)
