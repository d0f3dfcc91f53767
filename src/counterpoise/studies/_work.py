"""What a worker needs: the problem on disk, mapped into memory once per process, and a small picklable callable that computes a cell.

The table lies in ``OUT/cache/<data hash>/`` as plain ``.npy`` files, so that any number of workers share one copy of X in the page cache.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from counterpoise.groups import Groups

from ._cell import run_cell
from ._learners import Learner
from ._problem import Problem, Schema
from ._remedies import Remedy
from ._splits import Splits
from ._types import CellId, CellResult, Protocol

__all__ = ["CellWork", "load_problem", "problem_name", "problem_and_splits", "save_problem"]

_ARRAYS = ("X", "y", "blocks", "time", "weight", "fixed_test")


def problem_name(data_hash: str, groups_hash: str) -> str:
    """Name of the folder of a problem: a study may go on with other groups, which only some arms depend on."""
    return f"{data_hash}-{groups_hash}"


def save_problem(folder: Path, problem: Problem) -> Path:
    """Write the problem into a folder in ``folder`` that is named after its data and groups (nothing is done if it is there)."""
    target = folder / problem_name(problem.data_hash, problem.groups_hash)
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    # Written beside and renamed: a reader sees all of it or none.
    staging = Path(tempfile.mkdtemp(dir=folder, prefix=".writing-"))
    try:
        for name in _ARRAYS:
            value = getattr(problem, name)
            if value is not None:
                np.save(staging / f"{name}.npy", value, allow_pickle=False)
        if problem.text is not None:
            import polars as pl

            pl.DataFrame({"text": problem.text.tolist()}, schema={"text": pl.String}).write_parquet(staging / "text.parquet")
        meta = {
            "name": problem.name,
            "task": problem.task,
            "schema": problem.schema.to_dict(),
            "clustered": problem.clustered,
            "copies": problem.copies,
            "data_hash": problem.data_hash,
            "notices": list(problem.notices),
            "groups": [{"column": column, "names": list(groups.names), "kind": groups.kind} for column, groups in problem.groups.items()],
        }
        for position, groups in enumerate(problem.groups.values()):
            np.save(staging / f"group-{position}.npy", groups.ids, allow_pickle=False)
        (staging / "problem.json").write_text(json.dumps(meta))
        os.rename(staging, target)
    except OSError:
        shutil.rmtree(staging, ignore_errors=True)
        if not target.exists():  # otherwise another process was faster, with the same content
            raise
    return target


@lru_cache(maxsize=2)
def load_problem(folder: str) -> Problem:
    """The problem written by :func:`save_problem`; X is a read-only memory map."""
    path = Path(folder)
    meta = json.loads((path / "problem.json").read_text())
    arrays: dict[str, Any] = {
        name: np.load(path / f"{name}.npy", mmap_mode="r" if name == "X" else None, allow_pickle=False)
        if (path / f"{name}.npy").exists()
        else None
        for name in _ARRAYS
    }
    text = None
    if (path / "text.parquet").exists():
        import polars as pl

        text = np.array(pl.read_parquet(path / "text.parquet")["text"].to_list(), dtype=object)
    groups = {
        entry["column"]: Groups(np.load(path / f"group-{position}.npy", allow_pickle=False), tuple(entry["names"]), entry["kind"])
        for position, entry in enumerate(meta.pop("groups"))
    }
    notices = tuple(meta.pop("notices"))
    return Problem(text=text, groups=groups, notices=notices, schema=Schema.from_dict(meta.pop("schema")), **arrays, **meta)


_splits_cache: dict[tuple[str, str], Splits] = {}


def problem_and_splits(folder: str, protocol: Protocol) -> tuple[Problem, Splits]:
    """Loaded once per process; a new study in the same process takes the place of the last one."""
    problem = load_problem(folder)
    key = (folder, protocol.hash)
    if key not in _splits_cache:
        _splits_cache.clear()
        _splits_cache[key] = Splits(problem, protocol)
    return problem, _splits_cache[key]


@dataclass(frozen=True)
class CellWork:
    """Computes a cell from its id. ``folder`` holds the problem; ``arms`` maps an arm's hash to its learner and remedy."""

    folder: str
    protocol: Protocol
    arms: Mapping[str, tuple[Learner, Remedy]]

    def __call__(self, cell: CellId) -> CellResult:
        problem, splits = problem_and_splits(self.folder, self.protocol)
        learner, remedy = self.arms[cell.arm]
        return run_cell(problem, self.protocol, splits, learner, remedy, cell)
