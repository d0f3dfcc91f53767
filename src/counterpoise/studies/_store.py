"""The store of a study: one SQLite file in its folder, in which every finished cell is one row that never changes again.

    todo --claim--> run --finish--> done
     ^               |---fail-----> todo, then failed at the second attempt
     '--- lease ended, owner gone, or released

Any number of processes may work on one store. Each write is one short ``BEGIN IMMEDIATE`` transaction (a deferred one that upgrades to a
write fails at once under WAL), so a claim is atomic, and ``kill -9`` at any moment loses at most the cells in flight. Whoever runs a cell
holds a lease of :data:`LEASE` seconds on it and renews it; a result is accepted only from the holder.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._errors import InputError, StoreError

from ._types import NO_DROP, Arm, CellId, CellResult, Protocol

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Select", "Store", "differences", "explained", "is_gone", "results_frame", "this_owner"]

FILE = "study.sqlite"
SCHEMA_VERSION = 1
LEASE = 60.0  # seconds a claim is valid without being renewed
MAX_ATTEMPTS = 2  # errors of a cell before it counts as failed
SUSPECT = 2  # interruptions after which a cell runs alone: it may be what kills the processes
BUSY_TIMEOUT = 30.0  # seconds a write waits for other processes
NO_WAL = "this drive has no write-ahead log (is it a network drive?): writing is slower; work on the study from one machine only"

Select = Callable[[CellId], bool]

_SCHEMA = (
    """CREATE TABLE study (
        id INTEGER PRIMARY KEY CHECK (id = 1), schema_version INTEGER NOT NULL, created_at TEXT NOT NULL,
        data_hash TEXT NOT NULL, protocol_json TEXT NOT NULL, protocol_hash TEXT NOT NULL, options_json TEXT NOT NULL,
        versions_json TEXT NOT NULL, seed INTEGER NOT NULL, holdout_opened_at TEXT, holdout_for TEXT)""",
    """CREATE TABLE arm (
        position INTEGER PRIMARY KEY, arm_hash TEXT NOT NULL UNIQUE, learner TEXT NOT NULL, remedy TEXT NOT NULL, stage TEXT NOT NULL,
        space_json TEXT NOT NULL, code_version TEXT NOT NULL)""",
    """CREATE TABLE cell (
        key TEXT PRIMARY KEY, arm_hash TEXT NOT NULL REFERENCES arm (arm_hash), position INTEGER NOT NULL,
        "drop" INTEGER NOT NULL, repeat INTEGER NOT NULL, fold INTEGER NOT NULL,
        state TEXT NOT NULL DEFAULT 'todo' CHECK (state IN ('todo', 'run', 'done', 'failed', 'dropped')),
        owner TEXT, lease_until REAL, attempts INTEGER NOT NULL DEFAULT 0, interruptions INTEGER NOT NULL DEFAULT 0,
        started_at REAL, seconds REAL, cpu_seconds REAL, fits INTEGER, steps INTEGER, peak_rss_mb REAL,
        params_json TEXT, threshold TEXT, metrics_json TEXT, extra_json TEXT, rows BLOB, error TEXT)""",
    'CREATE INDEX cell_order ON cell (state, "drop", repeat, fold, position)',
    "CREATE TABLE event (at TEXT NOT NULL, level TEXT NOT NULL, text TEXT NOT NULL)",
    "CREATE TABLE setting (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
)


class Store:
    """The cells of one study. Made by :meth:`create`, :meth:`open` or :meth:`join`; may be shared by the threads of a process."""

    def __init__(self, folder: Path, db: sqlite3.Connection, wal: bool) -> None:
        self.folder = folder
        self.path = folder / FILE
        self._db = db
        self._wal = wal
        self._lock = threading.RLock()
        self._hashes: tuple[str, str] | None = None

    # --- opening ---------------------------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, folder: str | Path, header: Mapping[str, Any]) -> Store:
        """Start a study in ``folder``.

        ``header`` holds ``data_hash``, ``protocol`` (``Protocol.to_dict()``), ``protocol_hash``, ``seed`` and, optionally, ``options`` and
        ``versions`` (both mappings). Raises :class:`StoreError` if there is a study already or the folder cannot be written.
        """
        store = cls._connect(Path(folder))
        if not store._begin_study(header):
            store.close()
            raise StoreError(f"{folder} already holds a study: go on with --resume, or choose another folder (--out).")
        return store

    @classmethod
    def open(cls, folder: str | Path) -> Store:
        """Open the study in ``folder``; :class:`StoreError` if there is none, or it is damaged or of another schema version."""
        path = Path(folder) / FILE
        if not Path(folder).is_dir() or not path.exists():
            raise StoreError(f"{folder} holds no study ({FILE} not found): check the folder, or start a study with --out {folder}")
        store = cls._connect(Path(folder))
        try:
            if not store._checked():
                raise StoreError(f"{path} is empty, its study never started: run the command that was to start it again.")
        except StoreError:
            store.close()
            raise
        return store

    @classmethod
    def join(cls, folder: str | Path, header: Mapping[str, Any]) -> Store:
        """Start the study, or join the one in ``folder`` if its data and protocol are the same.

        Otherwise :class:`InputError` names every field that differs. Several processes may do this at the same moment; other versions of
        the libraries than those it was started with are noted as a warning event.
        """
        store = cls._connect(Path(folder))
        if store._begin_study(header):
            return store
        there = store.header
        changed = differences(there, header)
        if changed:
            store.close()
            raise InputError(
                f"out: {folder} holds another study ({'; '.join(changed)}); expected the data and options it was started with."
                " Repeat them, or choose another folder (--out)."
            )
        then, now = there["versions"], header.get("versions", {})
        moved = [f"{name} {then.get(name)} -> {now[name]}" for name in sorted(now) if now[name] != then.get(name)]
        if moved:
            store.event("warning", "resumed with other versions: " + ", ".join(moved))
        return store

    @classmethod
    def _connect(cls, folder: Path) -> Store:
        path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise StoreError(f"{folder} is or lies below a file; expected a folder for the study: choose another one (--out).") from error
        except OSError as error:
            raise explained(error, path) from error
        try:
            db = _open_database(path)
        except sqlite3.Error as error:
            raise explained(error, path) from error
        try:
            wal = _write_ahead(db)
            store = cls(folder, db, wal)
            with store._transaction():  # a store that cannot be written is found out here, before the first fit
                pass
        except BaseException as error:
            db.close()
            if isinstance(error, sqlite3.Error):
                raise explained(error, path) from error
            raise
        return store

    def _begin_study(self, header: Mapping[str, Any]) -> bool:
        """Write the tables and the header; False if a study is there: of several processes the first one wins."""
        try:
            with self._transaction() as db:
                found = bool(_tables(db))
                if not found:
                    for statement in _SCHEMA:
                        db.execute(statement)
                    db.execute(
                        "INSERT INTO study (id, schema_version, created_at, data_hash, protocol_json, protocol_hash, options_json,"
                        " versions_json, seed) VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?)",
                        (
                            SCHEMA_VERSION,
                            _now(),
                            header["data_hash"],
                            _dumps(header["protocol"]),
                            header["protocol_hash"],
                            _dumps(header.get("options", {})),
                            _dumps(header.get("versions", {})),
                            int(header["seed"]),
                        ),
                    )
                    if not self._wal:
                        self._add_event(db, "warning", NO_WAL)
            if found:
                self._checked()
        except BaseException:
            self.close()
            raise
        return not found

    def _checked(self) -> bool:
        """Is this a whole study of our schema? False: an empty file."""
        with self._reading() as db:
            tables = _tables(db)
            if not tables:
                return False
            if "study" not in tables:
                raise StoreError(f"{self.path} is a database of something else: choose another folder (--out).")
            (version,) = db.execute("SELECT schema_version FROM study").fetchone()
            if version != SCHEMA_VERSION:
                raise StoreError(
                    f"{self.path} was written by another version of counterpoise (schema {version}; this one reads {SCHEMA_VERSION}):"
                    " use that version, or choose another folder (--out)."
                )
            # Damage in pages that nobody reads now would surface hours later.
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise StoreError(_damaged(self.path, verdict.replace("\n", " ")))
        return True

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the study -------------------------------------------------------------------------------------------------------------------

    @property
    def header(self) -> dict[str, Any]:
        """data_hash, protocol, protocol_hash, options, versions, seed, schema_version, created_at, holdout_opened_at, holdout_for."""
        with self._reading() as db:
            cursor = db.execute("SELECT * FROM study")
            row = cursor.fetchone()
        header = {name: value for (name, *_), value in zip(cursor.description, row, strict=True) if name != "id"}
        return {name.removesuffix("_json"): json.loads(value) if name.endswith("_json") else value for name, value in header.items()}

    def open_holdout(self, recommendation: str, reopen: bool = False) -> list[dict[str, str]]:
        """Record that the hold-out is looked at for ``recommendation``; returns all openings, oldest first, as ``{"at", "for"}``.

        It may be opened once. The same recommendation may look again (the answer is the same); another one needs ``reopen``, and every
        opening stays on record.
        """
        with self._transaction() as db:
            openings = self._setting(db, "holdout_openings", [])
            if openings and openings[-1]["for"] == recommendation:
                return list(openings)
            if openings and not reopen:
                raise InputError(
                    f"the hold-out was opened on {openings[-1]['at']} for {openings[-1]['for']}; a second look, for {recommendation},"
                    " is no longer a confirmation. Pass --reopen-holdout to look all the same; the report will say so."
                )
            at = _now()
            openings.append({"at": at, "for": recommendation})
            db.execute("UPDATE study SET holdout_opened_at = ?, holdout_for = ? WHERE holdout_opened_at IS NULL", (at, recommendation))
            db.execute("INSERT OR REPLACE INTO setting VALUES ('holdout_openings', ?)", (_dumps(openings),))
            self._add_event(db, "note", f"hold-out opened for {recommendation}")
        return list(openings)

    def set(self, key: str, value: Any) -> None:
        """Keep a small JSON value."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (key, _dumps(value)))

    def get(self, key: str, default: Any = None) -> Any:
        with self._reading() as db:
            return self._setting(db, key, default)

    def setdefault(self, key: str, value: Any) -> Any:
        """Keep ``value`` unless ``key`` is there, and return what is kept: how several processes agree on one plan."""
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO setting VALUES (?, ?)", (key, _dumps(value)))
            return self._setting(db, key, None)

    def event(self, level: str, text: str) -> None:
        with self._transaction() as db:
            self._add_event(db, level, text)

    def events(self) -> list[tuple[str, str, str]]:
        """(at, level, text), oldest first."""
        with self._reading() as db:
            return list(db.execute("SELECT at, level, text FROM event ORDER BY rowid"))

    # --- arms and cells --------------------------------------------------------------------------------------------------------------

    def add_arms(self, arms: Iterable[Arm]) -> None:
        """Arms that are there already stay as they are; new ones come after them in the order of work."""
        with self._transaction() as db:
            db.executemany(
                "INSERT OR IGNORE INTO arm (arm_hash, learner, remedy, stage, space_json, code_version) VALUES (?, ?, ?, ?, ?, ?)",
                [(arm.hash, arm.learner, arm.remedy, arm.stage, arm.space, arm.code_version) for arm in arms],
            )

    def arms(self) -> list[Arm]:
        with self._reading() as db:
            rows = db.execute("SELECT learner, remedy, stage, space_json, code_version FROM arm ORDER BY position").fetchall()
        return [Arm(*row) for row in rows]

    def add_cells(self, cells: Iterable[CellId]) -> None:
        """Cells that are there already keep their state and their result. Their arms must have been added before."""
        rows = [(self._key(cell), cell.arm, cell.drop, cell.repeat, cell.fold) for cell in cells]
        with self._transaction() as db:
            db.executemany(
                'INSERT INTO cell (key, arm_hash, position, "drop", repeat, fold)'
                " VALUES (?1, ?2, (SELECT position FROM arm WHERE arm_hash = ?2), ?3, ?4, ?5) ON CONFLICT (key) DO NOTHING",
                rows,
            )

    # --- working on cells ------------------------------------------------------------------------------------------------------------

    def claim(self, owner: str, select: Select | None = None, *, suspect: bool = False) -> CellId | None:
        """Take the next cell to do, in the order drop, repeat, fold, arm; None if there is none (others may still be running some).

        Cells of owners that are gone, or whose lease has ended, are taken over. ``suspect`` asks for those whose process died under them
        :data:`SUSPECT` times, which are otherwise left out: they are to be run alone.
        """
        with self._transaction() as db:
            self._take_over(db, owner)
            query = (
                "SELECT \"drop\", repeat, fold, arm_hash, key FROM cell WHERE state = 'todo'"
                f' AND interruptions {">=" if suspect else "<"} ? ORDER BY "drop", repeat, fold, position'
            )
            for *identity, key in db.execute(query, (SUSPECT,)):
                cell = CellId(*identity)
                if select is None or select(cell):
                    now = time.time()
                    update = "UPDATE cell SET state = 'run', owner = ?, lease_until = ?, started_at = ? WHERE key = ?"
                    db.execute(update, (owner, now + LEASE, now, key))
                    return cell
        return None

    def _take_over(self, db: sqlite3.Connection, owner: str) -> None:
        others = db.execute("SELECT DISTINCT owner FROM cell WHERE state = 'run' AND owner != ?", (owner,)).fetchall()
        for (other,) in others:
            ended_before = float("inf") if is_gone(other) else time.time()
            count = db.execute(_GIVE_BACK + " AND lease_until < ?", (1, other, ended_before)).rowcount
            if count:
                self._add_event(db, "note", f"{count} unfinished cells of {other} taken over by {owner}")

    def renew(self, owner: str) -> int:
        """Prolong the leases of all cells that ``owner`` runs; returns their number."""
        with self._transaction() as db:
            return db.execute("UPDATE cell SET lease_until = ? WHERE state = 'run' AND owner = ?", (time.time() + LEASE, owner)).rowcount

    def release(self, owner: str, *, interrupted: bool = False) -> int:
        """Give back all cells that ``owner`` runs; ``interrupted`` if the process that computed them died. Returns their number."""
        with self._transaction() as db:
            return db.execute(_GIVE_BACK, (int(interrupted), owner)).rowcount

    def finish(self, cell: CellId, owner: str, result: CellResult) -> bool:
        """Keep a result. False, and nothing is written, if ``owner`` no longer holds the cell: it came too late."""
        values = (
            result.seconds,
            result.cpu_seconds,
            result.fits,
            result.steps,
            result.peak_rss_mb,
            _dumps(result.params),
            _dumps(result.threshold),
            _dumps(result.metrics),
            _dumps(result.extra),
            _pack(result.scores),
        )
        with self._transaction() as db:
            return (
                db.execute(
                    "UPDATE cell SET state = 'done', lease_until = NULL, error = NULL, seconds = ?, cpu_seconds = ?, fits = ?, steps = ?,"
                    " peak_rss_mb = ?, params_json = ?, threshold = ?, metrics_json = ?, extra_json = ?, rows = ?"
                    " WHERE key = ? AND owner = ? AND state = 'run'",
                    (*values, self._key(cell), owner),
                ).rowcount
                == 1
            )

    def fail(self, cell: CellId, owner: str, text: str, *, final: bool = False) -> bool:
        """Note an error (a reason or a traceback). The cell goes back to do, or, at the second time or with ``final``, counts as failed.

        Returns whether it now counts as failed.
        """
        with self._transaction() as db:
            row = db.execute(
                "UPDATE cell SET attempts = attempts + 1, error = ?, lease_until = NULL,"
                " state = CASE WHEN ? OR attempts + 1 >= ? THEN 'failed' ELSE 'todo' END"
                " WHERE key = ? AND owner = ? AND state = 'run' RETURNING state",
                (text, final, MAX_ATTEMPTS, self._key(cell), owner),
            ).fetchone()
            if row is None:
                return False
            reason = text.strip().rpartition("\n")[2]
            self._add_event(db, "warning", f"{self._arm_name(db, cell.arm)}, repeat {cell.repeat}, fold {cell.fold}: {reason}")
            return bool(row[0] == "failed")

    # --- reading ---------------------------------------------------------------------------------------------------------------------

    def states(self, select: Select | None = None) -> dict[str, int]:
        """Number of cells by state: todo, run, done, failed, dropped."""
        counts = dict.fromkeys(("todo", "run", "done", "failed", "dropped"), 0)
        with self._reading() as db:
            if select is None:
                counts.update(db.execute("SELECT state, COUNT(*) FROM cell GROUP BY state"))
            else:
                for state, *identity in db.execute('SELECT state, "drop", repeat, fold, arm_hash FROM cell'):
                    counts[state] += select(CellId(*identity))
        return counts

    def scores(self, cell: CellId) -> npt.NDArray[np.floating]:
        """The scores of a finished cell as they were stored; :class:`KeyError` if it is not finished."""
        with self._reading() as db:
            row = db.execute("SELECT rows FROM cell WHERE key = ? AND state = 'done'", (self._key(cell),)).fetchone()
        if row is None:
            raise KeyError(f"{cell} is not finished")
        try:
            return _unpack(row[0])
        except (zlib.error, ValueError) as error:
            raise StoreError(_damaged(self.path, str(error))) from error

    def load_scores(self, arm_hash: str, repeat: int, fold: int, drop: int = NO_DROP) -> npt.NDArray[np.floating]:
        return self.scores(CellId(drop, repeat, fold, arm_hash))

    def cells(self) -> pl.DataFrame:
        """One row per cell in the order of work, without the scores; what is structured is JSON text."""
        import polars as pl

        integers, reals = pl.Int64, pl.Float64
        columns: dict[str, Any] = {
            "key": pl.String, "arm_hash": pl.String, "learner": pl.String, "remedy": pl.String, "stage": pl.String,
            "drop": integers, "repeat": integers, "fold": integers, "state": pl.String, "owner": pl.String,
            "attempts": integers, "interruptions": integers, "started_at": reals, "seconds": reals, "cpu_seconds": reals,
            "fits": integers, "steps": integers, "peak_rss_mb": reals, "params_json": pl.String, "threshold": pl.String,
            "metrics_json": pl.String, "extra_json": pl.String, "error": pl.String,
        }  # fmt: skip
        names = ", ".join(f'"{name}"' for name in columns)
        with self._reading() as db:
            rows = db.execute(
                f'SELECT {names} FROM (SELECT * FROM cell JOIN arm USING (arm_hash)) ORDER BY "drop" < -1, "drop", repeat, fold, position'
            ).fetchall()
        return pl.DataFrame(rows, schema=columns, orient="row")

    # --- transactions ----------------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One short write: all of it or, after any exception, nothing."""
        with self._lock:
            try:
                try:
                    self._db.execute("BEGIN IMMEDIATE")
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    with contextlib.suppress(sqlite3.Error):
                        if self._db.in_transaction:
                            self._db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise explained(error, self.path) from error

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._db
            except sqlite3.Error as error:
                raise explained(error, self.path) from error

    def _key(self, cell: CellId) -> str:
        if self._hashes is None:
            header = self.header
            self._hashes = header["data_hash"], header["protocol_hash"]
        return cell.key(*self._hashes)

    def _setting(self, db: sqlite3.Connection, key: str, default: Any) -> Any:
        row = db.execute("SELECT value FROM setting WHERE key = ?", (key,)).fetchone()
        return default if row is None else json.loads(row[0])

    def _add_event(self, db: sqlite3.Connection, level: str, text: str) -> None:
        db.execute("INSERT INTO event VALUES (?, ?, ?)", (_now(), level, text))

    def _arm_name(self, db: sqlite3.Connection, arm_hash: str) -> str:
        return "/".join(db.execute("SELECT learner, remedy FROM arm WHERE arm_hash = ?", (arm_hash,)).fetchone())


_GIVE_BACK = (
    "UPDATE cell SET state = 'todo', owner = NULL, lease_until = NULL, started_at = NULL, interruptions = interruptions + ?"
    " WHERE state = 'run' AND owner = ?"
)


# --- what others need ----------------------------------------------------------------------------------------------------------------


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What makes two headers different studies, as ``"field: old -> new"``; [] if the cells of one are cells of the other.

    Protocol fields that change no cell's numbers (the number of repeats, the tolerances) are not among them.
    """
    changed = []
    if there["data_hash"] != here["data_hash"]:
        changed.append(f"data: {there['data_hash'][:8]} -> {here['data_hash'][:8]}")
    if there["protocol_hash"] != here["protocol_hash"]:
        old, new = dict(there["protocol"]), dict(here["protocol"])
        base = Protocol(**old).hash
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name) and Protocol(**{**old, name: new.get(name)}).hash != base:
                changed.append(f"{name}: {old.get(name)} -> {new.get(name)}")
    return changed


def results_frame(store: Store) -> pl.DataFrame:
    """One row per cell in the order of work: what ``Study.results`` and ``results.parquet`` show.

    Columns: learner, remedy, stage, drop, repeat, fold, state, one per metric (sorted by name), threshold (list), params and extra (JSON),
    fits, steps, seconds, cpu_seconds, peak_rss_mb, error, arm_hash, key. Who computed a cell, and how often it was tried, is not in it:
    a study that was interrupted gives the same table as one that was not, but for the times.
    """
    import polars as pl

    cells = store.cells()
    metrics = [json.loads(text) if text else {} for text in cells["metrics_json"]]
    thresholds = [json.loads(text) if text else None for text in cells["threshold"]]
    names = sorted({name for values in metrics for name in values})
    return cells.select(
        "learner", "remedy", "stage", "drop", "repeat", "fold", "state",
        *(pl.Series(name, [values.get(name) for values in metrics], dtype=pl.Float64) for name in names),
        pl.Series("threshold", thresholds, dtype=pl.List(pl.Float64)),
        pl.col("params_json").alias("params"), pl.col("extra_json").alias("extra"),
        "fits", "steps", "seconds", "cpu_seconds", "peak_rss_mb", "error", "arm_hash", "key",
    )  # fmt: skip


def this_owner() -> str:
    """``host:pid:start`` of this process. The start tells it from a later process with the same number."""
    return f"{_host()}:{os.getpid()}:{_started(os.getpid())}"


def is_gone(owner: str) -> bool:
    """Is ``owner`` a process of this machine that has ended? False whenever that cannot be known: then its lease has to end."""
    host, pid, start = owner.rsplit(":", 2)
    return host == _host() and pid.isdigit() and _started(int(pid)) != start


@cache
def _host() -> str:
    """Name of the machine, with the process namespace where there is one: process numbers of two containers do not compare."""
    try:
        namespace = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        return socket.gethostname()
    return f"{socket.gethostname()}/{namespace}"


def _started(pid: int) -> str:
    """When a process started, in the system's own words: "" if it has ended, "unknown" where that cannot be asked."""
    if sys.platform == "win32":
        return "unknown"
    if Path("/proc/self/stat").exists():
        try:
            state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if state in "ZX" else fields[18]  # Z, X: it has ended, its parent has not noticed
    shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip().replace(":", ".")


# --- details -------------------------------------------------------------------------------------------------------------------------


def _open_database(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")
    return db


def _write_ahead(db: sqlite3.Connection) -> bool:
    """Switch to the write-ahead log; False where the drive has no shared memory for it."""
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
            break
        except sqlite3.OperationalError as error:
            # The switch does not wait for other processes by itself.
            if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    return bool(mode == "wal")


def _tables(db: sqlite3.Connection) -> set[str]:
    return {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte: extended codes refine it


def explained(error: sqlite3.Error | OSError, path: Path) -> StoreError:
    """One line on what is wrong with the store, what is safe, and how to go on."""
    folder = path.parent
    code = _code(error) if isinstance(error, sqlite3.Error) else 0
    number = error.errno if isinstance(error, OSError) else None
    full = code == sqlite3.SQLITE_FULL or number in (errno.ENOSPC, errno.EDQUOT)
    if code == sqlite3.SQLITE_IOERR:  # the log's shared memory reports a full disk this way
        with contextlib.suppress(OSError):
            full = shutil.disk_usage(folder).free < 1 << 20
    go_on = f"Every finished cell is safe; go on with --resume --out {folder}"
    if full:
        return StoreError(f"the disk of {folder} is full: free some space. {go_on}")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreError(_damaged(path, str(error)))
    if code == sqlite3.SQLITE_BUSY:
        return StoreError(f"{path} was held by another process for {BUSY_TIMEOUT:.0f} s: see what it does. {go_on}")
    if isinstance(error, OSError):
        return StoreError(f"{folder} cannot be written ({error.strerror}): choose a folder you can write to (--out).")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return StoreError(f"{folder} cannot be written ({error}): choose a folder you can write to (--out).")
    return StoreError(f"{path} cannot be used ({error}): see to the disk. {go_on}")


def _damaged(path: Path, reason: str) -> str:
    return (
        f"{path} is damaged ({reason}): start again in another folder (--out);"
        f" what can be read of it is saved by: sqlite3 {path} .recover | sqlite3 saved.sqlite"
    )


def _pack(scores: npt.NDArray[np.floating]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, scores, allow_pickle=False)  # keeps dtype and shape
    return zlib.compress(buffer.getvalue(), level=1)


def _unpack(blob: bytes) -> npt.NDArray[np.floating]:
    scores: npt.NDArray[np.floating] = np.load(io.BytesIO(zlib.decompress(blob)), allow_pickle=False)
    return scores


def _dumps(value: Any) -> str:
    """JSON with sorted keys; NumPy numbers and arrays become plain ones."""
    return json.dumps(value, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot be kept as JSON")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
