"""How much memory does a study of a million rows take?

A synthetic table of 1,000,000 rows and 30 columns, 1 % positives, boosted trees, two workers, weights and over-sampling among the arms.
While the command runs, the proportional set size (memory shared by processes counted once) of its whole process tree is summed up four
times a second from /proc: all processes together, and the largest worker. Linux only.

    python benchmarks/memory.py                        # one repeat, five folds
    python benchmarks/memory.py --folds 2              # faster; smaller training folds, the same table
    python benchmarks/memory.py --cells 8              # five folds, stopped after so many cells: the workers' peak, not that of the end
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

IN_ALL, PER_WORKER = 4.0, 2.0  # bars, in GB (1e9 bytes)

ROWS, COLUMNS, POSITIVES, WORKERS = 1_000_000, 30, 0.01, 2
INTERVAL = 0.25  # seconds between samples

MAKE = f"""
import sys
import numpy as np
import polars as pl

rng = np.random.default_rng(0)
X = rng.normal(size=({ROWS}, {COLUMNS})).astype(np.float32)
signal = X[:, :10].sum(axis=1) + X[:, 10] * X[:, 11] + 3 * rng.normal(size={ROWS}).astype(np.float32)
y = signal > np.quantile(signal, 1 - {POSITIVES})
columns = {{f"x{{j}}": X[:, j] for j in range({COLUMNS})}}
pl.DataFrame(columns | {{"target": np.where(y, "yes", "no")}}).write_parquet(sys.argv[1])
"""


def tree(root: int) -> list[int]:
    """A process and all below it."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def pss(process: int) -> float:
    """GB of one process; 0 if it has just ended."""
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024 / 1e9
    except OSError:
        pass
    return 0.0


def is_worker(process: int) -> bool:
    try:
        return b"LokyProcess" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def cells_done(folder: Path) -> int:
    try:
        db = sqlite3.connect(f"file:{folder / 'study.sqlite'}?mode=ro", uri=True, timeout=10)
        try:
            return int(db.execute("SELECT COUNT(*) FROM cell WHERE state = 'done'").fetchone()[0])
        finally:
            db.close()
    except sqlite3.Error:
        return 0


def watched(folds: int, cells: int | None) -> dict[str, Any]:
    """Run the study and follow its memory: peaks in GB, of the start (before the first cell), the cells and the end apart."""
    peak = {"all": 0.0, "worker": 0.0, "parent": 0.0}
    phases = {"start": 0.0, "cells": 0.0, "end": 0.0}
    with tempfile.TemporaryDirectory() as scratch:
        table, folder = Path(scratch) / "million.parquet", Path(scratch) / "study"
        subprocess.run([sys.executable, "-c", MAKE, str(table)], check=True)
        options = ["--target", "target", "--positive", "yes", "--learners", "trees", "--remedies", "weights,over", "--repeats", "1"]
        options += ["--folds", str(folds), "--jobs", str(WORKERS), "--out", str(folder)]
        start = [sys.executable, "-c", "import sys; from counterpoise.cli import main; sys.exit(main())", "study", str(table), *options]
        began = time.monotonic()
        process = subprocess.Popen(start, start_new_session=True)
        done = samples = 0
        seen_workers = False
        while process.poll() is None:
            members = {one: pss(one) for one in tree(process.pid)}
            workers = [value for one, value in members.items() if is_worker(one)]
            seen_workers |= bool(workers)
            total = sum(members.values())
            expected = 4 * folds  # nothing, placebo, weights, over
            phase = "start" if not seen_workers else "end" if done >= expected else "cells"
            phases[phase] = max(phases[phase], total)
            peak["all"] = max(peak["all"], total)
            peak["worker"] = max([peak["worker"], *workers])
            peak["parent"] = max(peak["parent"], members.get(process.pid, 0.0))
            samples += 1
            if samples % 8 == 0:
                done = cells_done(folder)
                if cells is not None and done >= cells:
                    os.killpg(process.pid, signal.SIGTERM)
                    process.wait()
            time.sleep(INTERVAL)
        seconds = time.monotonic() - began
        done = cells_done(folder)
    stopped = cells is not None and done >= cells
    return {
        "folds": folds,
        "cells": done,
        "stopped": stopped,
        "status": process.returncode,
        "seconds": seconds,
        "peak": peak,
        "phases": phases,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--cells", type=int, help="stop the study once so many cells are done")
    options = parser.parse_args()
    row = watched(options.folds, options.cells)
    path = Path(__file__).parent / "results" / "memory.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row, sort_keys=True) + "\n")
    peak, phases = row["peak"], row["phases"]
    end = "not reached" if row["stopped"] else f"{phases['end']:.2f}"
    print(f"\n{ROWS:,} x {COLUMNS}, {POSITIVES:.0%} positives, trees, {WORKERS} workers, {row['folds']} folds; peaks in GB\n")
    print("| all processes | largest worker | parent | start | cells | end | cells done | seconds |\n|" + "---|" * 8)
    print(
        f"| {peak['all']:.2f} | {peak['worker']:.2f} | {peak['parent']:.2f} | {phases['start']:.2f} | {phases['cells']:.2f} | {end} "
        f"| {row['cells']} | {row['seconds']:.0f} |\n"
    )
    missed = [] if row["status"] == 0 or row["stopped"] else [f"the study ended with status {row['status']}"]
    if peak["all"] > IN_ALL:
        missed.append(f"{peak['all']:.2f} GB in all > {IN_ALL:.0f} GB")
    if peak["worker"] > PER_WORKER:
        missed.append(f"{peak['worker']:.2f} GB in a worker > {PER_WORKER:.0f} GB")
    print("\n".join(f"MISSED {line}" for line in missed) or "all bars met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
