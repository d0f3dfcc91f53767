"""Does a study survive kill -9? Kills a real one at random moments, resumes it, and compares it with one that nobody disturbed.

    python benchmarks/kill.py [--kills 30] [--seed 0] [--keep] -- counterpoise study digits8 --learners linear --jobs 2

The command is given without ``--out`` and ``--resume``; both are added. Half of the kills hit a random worker (if the command has any), a
quarter the parent alone, a quarter its whole process group. A study that ends before all kills are spent is compared, and another
one is begun. Passes (exit status 0) if every study ends like the undisturbed one in each column of ``results.parquet`` but the times, if
no more cells were recomputed than were in flight, and if SQLite finds every store in order. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

TIMES = ("seconds", "cpu_seconds", "peak_rss_mb")


def start(command: list[str], folder: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen([*command, "--out", str(folder), "--resume"], stdout=output, stderr=output, start_new_session=True)


def workers_of(parent: int) -> list[int]:
    """The loky workers below a process."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            owner = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            command = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if owner == parent:
            pid = int(path.name)
            found += workers_of(pid) + ([pid] if b"loky" in command and b"resource_tracker" not in command else [])
    return found


def in_flight(folder: Path) -> int:
    """Cells that are running according to the store, which may not be there yet."""
    try:
        db = sqlite3.connect(f"file:{folder / 'study.sqlite'}?mode=ro", uri=True, timeout=10)
        try:
            return int(db.execute("SELECT COUNT(*) FROM cell WHERE state = 'run'").fetchone()[0])
        finally:
            db.close()
    except sqlite3.Error:
        return 0


def differing(expected: pl.DataFrame, found: pl.DataFrame) -> list[str]:
    """Names of the columns that differ, the times aside."""
    if expected.columns != found.columns or expected.height != found.height:
        return ["the shape of the table"]
    return [name for name in expected.columns if name not in TIMES and not expected[name].equals(found[name], null_equal=True)]


def check(folder: Path, expected: pl.DataFrame, lost: int) -> list[str]:
    """What is wrong with a study that was killed and resumed; ``lost``: cells that were in flight when it was."""
    db = sqlite3.connect(folder / "study.sqlite")
    (verdict,) = db.execute("PRAGMA integrity_check").fetchone()
    states = dict(db.execute("SELECT state, COUNT(*) FROM cell GROUP BY state").fetchall())
    (again,) = db.execute("SELECT COALESCE(SUM(interruptions), 0) FROM cell").fetchone()
    db.close()
    columns = differing(expected, pl.read_parquet(folder / "results.parquet"))
    print(f"  {states}, in flight at the kills {lost}, recomputed {again}, integrity {verdict}, columns that differ: {columns or 'none'}")
    wrong = [f"column {name} differs" for name in columns]
    if again > lost:
        wrong.append(f"{again} cells recomputed, {lost} were in flight")
    if verdict != "ok":
        wrong.append(f"integrity_check: {verdict}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="keep the folders")
    parser.add_argument("command", nargs="+", help="the study, after --")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    scratch = Path(tempfile.mkdtemp(prefix="kill-"))
    log = scratch / "output.log"

    began = time.monotonic()
    if start(options.command, scratch / "calm", log).wait() != 0:
        print(log.read_text(), file=sys.stderr)
        return 2
    undisturbed = time.monotonic() - began
    expected = pl.read_parquet(scratch / "calm" / "results.parquet")
    print(f"undisturbed: {expected.height} cells in {undisturbed:.1f} s")

    wrong: list[str] = []
    kinds = {"parent": 0, "group": 0, "worker": 0}
    studies = 0
    while sum(kinds.values()) < options.kills:
        studies += 1
        folder = scratch / f"killed-{studies}"
        lost = 0
        process = start(options.command, folder, log)
        while sum(kinds.values()) < options.kills:
            try:
                # From the first imports to the last write: some kills come before the first cell.
                process.wait(timeout=rng.uniform(0, undisturbed))
                break
            except subprocess.TimeoutExpired:
                pass
            workers = workers_of(process.pid)
            kind = rng.choice(["parent", "group", *(["worker"] * 2 if workers else [])])
            try:
                if kind == "worker":
                    os.kill(rng.choice(workers), signal.SIGKILL)
                elif kind == "group":
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()
            except ProcessLookupError:
                continue  # it ended by itself just now
            kinds[kind] += 1
            if kind == "worker":
                # The parent goes on; what it had claimed at that moment it gives back and computes again.
                lost += 2 * len(workers)
            else:
                process.wait()
                lost += in_flight(folder)
                process = start(options.command, folder, log)
        if process.wait() != 0:
            wrong.append(f"study {studies} ended with status {process.returncode}: see {log}")
            break
        wrong += check(folder, expected, lost)
    print(json.dumps({"kills": kinds, "studies": studies, "passed": not wrong, "wrong": wrong}))
    if wrong:
        print(f"output of the studies: {log}", file=sys.stderr)
    elif not options.keep:
        shutil.rmtree(scratch)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
