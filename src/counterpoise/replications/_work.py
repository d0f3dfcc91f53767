"""The work of a replication in small pieces: with progress, in several processes, and resumed where it was stopped."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from counterpoise._errors import StoreError

__all__ = ["Work"]

Row = dict[str, Any]


class Work:
    """Runs the pieces of a replication.

    A piece is a call ``function(**task)`` of a function at the top level of a module, with arguments and a returned dict that JSON can
    hold. Finished pieces are appended to ``store``, one line each; a piece is found again by its function, the source of the function's
    module, and its arguments, so a changed experiment is never mixed with an old one.

    Args:
        store: file for finished pieces; None keeps nothing.
        jobs: processes at work.
        say: called with one line of progress; None is silent.

    Attributes:
        seconds: what the pieces took, added up over processes; those of earlier runs are counted as they were.
    """

    def __init__(self, store: Path | None = None, jobs: int = 1, say: Callable[[str], None] | None = None) -> None:
        self._store = store
        self._jobs = jobs
        self._say = say or (lambda line: None)
        self.seconds = 0.0

    def map(self, function: Callable[..., Row], tasks: Iterable[Mapping[str, Any]]) -> list[Row]:
        """``function(**task)`` for all tasks, in their order. Each row is ``task | result``."""
        from joblib import Parallel, delayed

        wanted = [dict(task) for task in tasks]
        keys = [self._key(function, task) for task in wanted]
        done = self._read()
        todo = [(key, task) for key, task in zip(keys, wanted, strict=True) if key not in done]
        started = last = time.monotonic()
        if todo:
            known = f", {len(wanted) - len(todo)} known" if len(todo) < len(wanted) else ""
            self._say(f"{function.__name__.strip('_')}: {len(todo)} runs{known}")
        jobs = max(1, min(self._jobs, len(todo)))
        runs = Parallel(n_jobs=jobs, return_as="generator_unordered")(delayed(_quietly)(function, key, task) for key, task in todo)
        for count, (key, result, seconds) in enumerate(runs, 1):
            done[key] = (result, seconds)
            self._append(key, result, seconds)
            now = time.monotonic()
            if now - last > 10:
                left = (now - started) / count * (len(todo) - count)
                self._say(f"  {count} of {len(todo)}, about {left / 60:.1f} min left")
                last = now
        self.seconds += sum(done[key][1] for key in keys)
        return [task | done[key][0] for key, task in zip(keys, wanted, strict=True)]

    def _key(self, function: Callable[..., Row], task: Mapping[str, Any]) -> str:
        module = sys.modules[function.__module__]
        source = inspect.getsource(module)
        named = json.dumps([function.__qualname__, source, task], sort_keys=True)
        return hashlib.blake2b(named.encode(), digest_size=16).hexdigest()

    def _read(self) -> dict[str, tuple[Row, float]]:
        if self._store is None or not self._store.exists():
            return {}
        rows: dict[str, tuple[Row, float]] = {}
        for line in self._store.read_text("utf-8").splitlines():
            try:
                content = json.loads(line)
            except ValueError:  # the last line of a run that was killed while it wrote
                continue
            rows[content["key"]] = (content["row"], content["seconds"])
        return rows

    def _append(self, key: str, row: Row, seconds: float) -> None:
        if self._store is None:
            return
        try:
            self._store.parent.mkdir(parents=True, exist_ok=True)
            # The newline comes first: a line that a killed run left half written ends here.
            with self._store.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps({"key": key, "row": row, "seconds": round(seconds, 3)}))
        except OSError as error:
            raise StoreError(f"{self._store} cannot be written ({error.strerror}); choose another --out.") from error


def _quietly(function: Callable[..., Row], key: str, task: Row) -> tuple[str, Row, float]:
    """One piece, and how long it took; on one thread: several processes share the cores. Warnings of libraries are not findings."""
    import torch
    from threadpoolctl import threadpool_limits

    started = time.perf_counter()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings(), threadpool_limits(limits=1):
            warnings.simplefilter("ignore")
            row = json.loads(json.dumps(function(**task)))
        return key, row, time.perf_counter() - started
    finally:
        torch.set_num_threads(before)


def rows_where(rows: Sequence[Mapping[str, Any]], **wanted: Any) -> list[Mapping[str, Any]]:
    """The rows that have these values.

    >>> rows_where([{"arm": "a", "x": 1}, {"arm": "b", "x": 2}], arm="b")
    [{'arm': 'b', 'x': 2}]
    """
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def paired(rows: Sequence[Mapping[str, Any]], value: str, arm: str, baseline: str, *, by: str = "seed") -> list[float]:
    """``value`` of ``arm`` minus that of ``baseline``, paired by seed; rows name their arm under ``arm``.

    >>> paired([{"arm": "a", "seed": 0, "x": 3}, {"arm": "b", "seed": 0, "x": 1}], "x", "a", "b")
    [2.0]
    """
    first = {row[by]: row[value] for row in rows_where(rows, arm=arm)}
    second = {row[by]: row[value] for row in rows_where(rows, arm=baseline)}
    return [float(first[key] - second[key]) for key in sorted(first)]
