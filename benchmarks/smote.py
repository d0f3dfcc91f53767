"""The SMOTE family against imbalanced-learn's: time, peak memory, and whether the same rows come out.

Every run is a fresh process with one thread that loads the table from a file; runs of ours and of theirs alternate. Extra memory is the
peak of the process during the call beyond what it held before, the result included. The grid is a ``GridSearchCV`` over SMOTE and a
classifier that costs little, three k times two strategies in five folds; ours stores the neighbors it finds (``memory=``) in a folder that
is new for each run.

    python benchmarks/smote.py                  # all cases, 3 runs each: half an hour on an idle machine
    python benchmarks/smote.py --case smotenc --runs 1
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Bars: time of theirs over ours (median of the runs), extra memory of ours over the table and over theirs.
SMOTENC_FASTER, SMOTENC_MEMORY = 5.0, 2.0
TOMEK_FASTER = 1.5
GRID_FASTER = 4.0
NO_SLOWER = 0.95  # SMOTE and SMOTE+ENN are the neighbor search, which both leave to scikit-learn: equal, within what runs differ by
NO_MORE_MEMORY = 1.0

SHIFT = 0.3  # of the minority in every column, in standard deviations
LEVELS = 10
GRID = {"smote__k_neighbors": [3, 5, 7], "smote__sampling_strategy": [0.75, 1.0]}


@dataclass(frozen=True)
class Case:
    name: str
    sampler: str
    rows: int
    columns: int
    minority: float
    faster: float
    categories: int = 0
    over_table: float | None = None  # most extra memory, in sizes of the table
    over_theirs: float | None = None  # and in that of theirs


CASES = [
    Case("SMOTENC", "SMOTENC", 98_000, 48, 0.3, SMOTENC_FASTER, categories=24, over_table=SMOTENC_MEMORY),
    Case("SMOTE + Tomek", "SMOTETomek", 123_000, 30, 0.1, TOMEK_FASTER, over_theirs=NO_MORE_MEMORY),
    Case("SMOTE + ENN", "SMOTEENN", 36_000, 30, 0.1, NO_SLOWER, over_theirs=NO_MORE_MEMORY),
    Case("SMOTE + ENN, 10 columns", "SMOTEENN", 36_000, 10, 0.1, NO_SLOWER, over_theirs=NO_MORE_MEMORY),
    Case("SMOTE", "SMOTE", 100_000, 30, 0.1, NO_SLOWER),
    Case("SMOTE, large minority", "SMOTE", 100_000, 30, 0.4, NO_SLOWER),
    Case("SMOTE, six-point grid", "grid", 100_000, 30, 0.3, GRID_FASTER),
]


def make_table(case: Case, rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.permutation((np.arange(rows) < case.minority * rows).astype(np.int64))
    X = rng.normal(size=(rows, case.columns)) + SHIFT * y[:, None]
    X[:, case.columns - case.categories :] = rng.integers(LEVELS, size=(rows, case.categories))
    return X, y


# -- one run, in a process of its own ---------------------------------------------------------------------------------------------------


def build(case: Case, who: str, memory: str | None) -> Any:
    from imblearn import combine, over_sampling

    from counterpoise import data

    name = "SMOTE" if case.sampler == "grid" else case.sampler
    source = data if who == "ours" else combine if hasattr(combine, name) else over_sampling
    arguments = [list(range(case.columns - case.categories, case.columns))] if case.categories else []
    stored = {"memory": memory} if memory and who == "ours" else {}
    sampler = getattr(source, name)(*arguments, random_state=0, **stored)
    if case.sampler != "grid":
        return sampler
    from imblearn.pipeline import Pipeline
    from sklearn.model_selection import GridSearchCV
    from sklearn.naive_bayes import GaussianNB

    return GridSearchCV(Pipeline([("smote", sampler), ("model", GaussianNB())]), GRID, scoring="roc_auc", cv=5, refit=False)


def use(made: Any, X: np.ndarray, y: np.ndarray) -> list[float]:
    """Do it, and say what came out in two numbers."""
    if not hasattr(made, "fit_resample"):
        scores = made.fit(X, y).cv_results_["mean_test_score"]
        return [len(scores), float(scores.sum())]
    X_new, _ = made.fit_resample(X, y)
    return [len(X_new), float(X_new.sum())]


def run_one(case: Case, who: str, table: str) -> dict[str, Any]:
    X, y = np.load(f"{table}-X.npy"), np.load(f"{table}-y.npy")
    with tempfile.TemporaryDirectory() as folder:
        few = slice(0, 600)  # imports, and what libraries set up once
        use(build(case, who, None), X[few], y[few])
        made = build(case, who, folder if case.sampler == "grid" else None)
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        cpu, began = time.process_time(), time.perf_counter()
        result = use(made, X, y)
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) * 1024
    return {"wall": wall, "cpu": cpu, "extra": extra, "table": X.nbytes, "result": result}


# -- many runs --------------------------------------------------------------------------------------------------------------------------


def in_fresh_process(case: Case, who: str, table: str) -> dict[str, Any]:
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, __file__, "--one", who, "--case", case.name, "--table", table]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=os.environ | one_thread)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def compare(case: Case, runs: int, share: float) -> tuple[list[dict[str, Any]], str, list[str]]:
    """Raw rows, a row of the table, and what was missed."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        rows = int(case.rows * share)
        X, y = make_table(case, rows)
        np.save(f"{folder}/t-X.npy", X)
        np.save(f"{folder}/t-y.npy", y)
        del X, y
        for run in range(runs):
            for who in ("ours", "theirs") if run % 2 == 0 else ("theirs", "ours"):
                one = in_fresh_process(case, who, f"{folder}/t")
                found.append({"case": case.name, "rows": rows, "run": run, "who": who} | one)
                print(f"  {case.name}: {who} {one['wall']:.1f} s, {one['extra'] / 1e6:.0f} MB", file=sys.stderr, flush=True)
    by = {who: [row for row in found if row["who"] == who] for who in ("ours", "theirs")}
    ratios = [theirs["wall"] / ours["wall"] for ours, theirs in zip(by["ours"], by["theirs"], strict=True)]
    ratio = float(np.median(ratios))
    seconds = {who: float(np.median([row["wall"] for row in by[who]])) for who in by}
    extra = {who: float(np.median([row["extra"] for row in by[who]])) for who in by}
    table = found[0]["table"]
    same = all(np.allclose(row["result"], found[0]["result"], rtol=1e-9) for row in found)
    line = (
        f"| {case.name} | {rows:,} x {case.columns}, {case.minority:.0%} | {seconds['ours']:.1f} | {seconds['theirs']:.1f} "
        f"| {', '.join(f'{one:.2f}' for one in ratios)} | {ratio:.2f} | {case.faster:g} | {extra['ours'] / table:.2f} "
        f"| {extra['theirs'] / table:.2f} | {'yes' if same else 'no'} |"
    )
    missed = []
    if ratio < case.faster:
        missed.append(f"{case.name}: {ratio:.2f} times as fast < {case.faster:g}")
    if case.over_table is not None and extra["ours"] > case.over_table * table:
        missed.append(f"{case.name}: extra memory of {extra['ours'] / table:.2f} tables > {case.over_table:g}")
    if case.over_theirs is not None and extra["ours"] > case.over_theirs * extra["theirs"]:
        missed.append(f"{case.name}: extra memory {extra['ours'] / extra['theirs']:.2f} of theirs > {case.over_theirs:g}")
    if not same:
        missed.append(f"{case.name}: the results differ: {[row['result'] for row in found]}")
    return found, line, missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in CASES]
    parser.add_argument("--case", action="append", help="one of " + ", ".join(names) + ", or the beginning of one; default: all")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of the rows, to try the benchmark out; bars are for 1")
    parser.add_argument("--one", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--table", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        (case,) = (case for case in CASES if case.name == options.case[0])
        print(json.dumps(run_one(case, options.one, options.table)))
        return 0
    wanted = [name.lower() for name in options.case or [""]]
    chosen = [case for case in CASES if any(case.name.lower().startswith(name) for name in wanted)]
    if not chosen:
        parser.error(f"no such case: {options.case}; there are {', '.join(names)}")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    lines, missed = [], []
    for case in chosen:
        found, line, short = compare(case, options.runs, options.share)
        lines.append(line)
        missed += short
        with (results / "smote.jsonl").open("a") as file:
            file.writelines(json.dumps(row, sort_keys=True) + "\n" for row in found)
    print("\n| | table, minority | ours, s | theirs, s | theirs / ours | median | bar | extra memory, tables | theirs | same rows |")
    print("|" + "---|" * 10)
    print("\n".join([*lines, ""]))
    print("\n".join(f"MISSED {line}" for line in missed) or "all bars met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
