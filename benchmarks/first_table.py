"""How long until the first table?

From the command to the table of a one-repeat study on mammography - linear and trees; baseline, weights, over and SMOTE, and the arms that
are always there - and of repeat 1 with three learners and seven arms each, on two cores. The table on standard output is the finished one:
hold-out, saved model and report are already written. On a terminal it appears when the repeat ends; that moment is the line "Repeat 1 of 1
finished".

The yardstick is PyCaret 3.3.2's comparison of models with SMOTE, ``setup(fix_imbalance=True)`` and ``compare_models``, until its table is
there, run alternately in an environment of its own:

    python3.11 -m venv PYCARET && PYCARET/bin/pip install pycaret==3.3.2 six
    python benchmarks/first_table.py --pycaret PYCARET/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from counterpoise.datasets import load

SMALL_SECONDS = 20.0  # bar: linear and trees, baseline + 3 remedies
LARGE_SECONDS = 90.0  # bar: 3 learners x 7 arms
OF_PYCARET = 0.3  # bar: the small study's time over PyCaret's, median of the runs

SET = "mammography"
STUDIES = {
    "small": ["--learners", "linear,trees", "--remedies", "weights,over,smote"],
    "large": ["--learners", "linear,trees,mlp", "--remedies", "prior,weights,over,under,smote"],
}
BARS = {"small": SMALL_SECONDS, "large": LARGE_SECONDS}
SAID = {"small": "2 learners, 3 remedies", "large": "3 learners x 7 arms, one repeat"}

# Ours, for PyCaret's interpreter: the first argument is a csv, the second its target.
PYCARET = """
import sys
import time

began = time.perf_counter()
import pandas as pd
from pycaret.classification import compare_models, pull, setup

frame = pd.read_csv(sys.argv[1])
setup(frame, target=sys.argv[2], fix_imbalance=True, session_id=0, verbose=False, html=False)
compare_models(verbose=False)
table = pull()
print(table.to_string())
print(f"models {len(table)}")
"""


def ours(kind: str) -> dict[str, Any]:
    """Seconds from the command to the line that ends the first repeat, to the table's heading and to the end."""
    with tempfile.TemporaryDirectory() as scratch:
        options = [*STUDIES[kind], "--repeats", "1", "--out", str(Path(scratch) / "study")]
        start = [sys.executable, "-c", "import sys; from counterpoise.cli import main; sys.exit(main())", "study", SET, *options]
        # A wide page, so that nothing of the table is left out; no buffering, so that a line counts when it is written.
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "140"}
        began = time.perf_counter()
        process = subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        repeat = table = float("nan")
        lines = []
        for line in process.stdout:
            now = time.perf_counter() - began
            lines.append(line)
            if line.startswith("Repeat 1 "):
                repeat = now
            if line.lstrip().startswith("nothing"):  # the baseline's row of the table
                table = now
        errors = process.communicate()[1]
        end = time.perf_counter() - began
    if process.returncode or np.isnan(table):
        sys.exit(f"no table (exit status {process.returncode}):\n{''.join(lines)}{errors}")
    return {"tool": kind, "repeat": repeat, "table": table, "end": end}


def pycaret(python: str) -> dict[str, Any]:
    """Seconds from the command to PyCaret's table."""
    data = load(SET)
    with tempfile.TemporaryDirectory() as scratch:
        table = Path(scratch) / f"{SET}.csv"
        script = Path(scratch) / "compare.py"
        data.frame.write_csv(table)
        script.write_text(PYCARET)
        began = time.perf_counter()
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMP_NUM_THREADS")}
        done = subprocess.run([python, str(script), str(table), data.target], capture_output=True, text=True, cwd=scratch, env=environment)
        end = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"PyCaret failed:\n{done.stderr[-2000:]}")
    return {"tool": "PyCaret", "repeat": None, "table": end, "end": end, "models": int(done.stdout.split()[-1])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--kinds", default=",".join(STUDIES))
    parser.add_argument("--pycaret", metavar="PYTHON", help="interpreter of an environment with pycaret 3.3.2")
    options = parser.parse_args()
    there = options.pycaret is not None and Path(options.pycaret).exists()
    found = []
    for run in range(options.runs):
        rounds = [(kind, lambda kind=kind: ours(kind)) for kind in options.kinds.split(",")]
        rounds += [("PyCaret", lambda: pycaret(options.pycaret))] if there else []
        for kind, measure in rounds:
            row = measure() | {"run": run}
            found.append(row)
            print(f"  run {run + 1}, {kind}: {row['table']:.1f} s", flush=True)
    path = Path(__file__).parent / "results" / "first-table.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(row, sort_keys=True) + "\n" for row in found)

    missed = []
    print(f"\n{SET}, wall seconds from the command, {options.runs} runs\n")
    print("| what | until the repeat ends | until the table | median |\n|---|---|---|---|")
    for kind in dict.fromkeys(row["tool"] for row in found):
        rows = [row for row in found if row["tool"] == kind]
        median = float(np.median([row["table"] for row in rows]))
        repeat = ", ".join(f"{row['repeat']:.1f}" for row in rows) if kind in BARS else "-"
        name = SAID.get(kind) or f"PyCaret, {rows[0]['models']} models"
        tables = ", ".join(f"{row['table']:.1f}" for row in rows)
        print(f"| {name} | {repeat} | {tables} | {median:.1f} |")
        if kind in BARS and median > BARS[kind]:
            missed.append(f"{name}: {median:.1f} s > {BARS[kind]:.0f} s")
    if there and "small" in options.kinds:
        by_run = {(row["tool"], row["run"]): row["table"] for row in found}
        ratio = float(np.median([by_run["small", run] / by_run["PyCaret", run] for run in range(options.runs)]))
        print(f"\nOurs ({SAID['small']}) over PyCaret: {ratio:.2f}")
        if ratio > OF_PYCARET:
            missed.append(f"{ratio:.2f} of PyCaret's time > {OF_PYCARET}")
    elif not there:
        print("\nPyCaret was not run: give its interpreter with --pycaret PYTHON")
    print("\n" + ("\n".join(f"MISSED {line}" for line in missed) or "all bars met"))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
