"""What the engine costs, and what a second process buys.

Overhead: CPU time of a whole ``counterpoise.study(...)`` with one job - diagnosis, store, thresholds, statistics, page and saved model
included - over the CPU time of a bare loop that makes the same fits on the same splits with scikit-learn and imbalanced-learn and does
nothing else. Scaling: wall time of a script that runs a study with two workers, and of two scripts that join one folder, over that of one.
Every fit is logged with its seed by the learner itself, so a cell that was computed twice is seen. All runs are fresh processes,
alternating.

    python benchmarks/overhead.py               # both parts, 3 runs each; the second needs two idle cores
    python benchmarks/overhead.py --part cpu
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _ending import finish

OVERHEAD = 1.10  # bar: CPU of the study over CPU of the bare loop, median of the runs
SHORTEST_CELL = 0.2  # seconds: the bar is about cells of at least this size
TWO_OVER_ONE = 0.59  # bar: wall with two processes over wall with one, median of the runs

SET, LEARNER, REMEDIES = "mammography", "trees", ("weights", "over")
ARMS = ("nothing", "placebo", *REMEDIES)
FIT_LOG = "COUNTERPOISE_BENCHMARK_FIT_LOG"
CPU_REPEATS, WALL_REPEATS = 5, 5


# -- one run, in a process of its own ---------------------------------------------------------------------------------------------------


def cpu() -> float:
    return sum(
        resource.getrusage(who).ru_utime + resource.getrusage(who).ru_stime for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def run_study(repeats: int, folder: str) -> dict[str, Any]:
    import counterpoise

    began, wall = cpu(), time.perf_counter()
    study = counterpoise.study(SET, learners=LEARNER, remedies=list(REMEDIES), repeats=repeats, jobs=1, out=folder)
    spent = {"cpu": cpu() - began, "wall": time.perf_counter() - wall}
    cells = study.results.filter(study.results["remedy"].is_in(ARMS))
    return spent | {
        "cells": cells["cpu_seconds"].sum(),
        "shortest": cells["seconds"].min(),
        "fits": int(cells["fits"].sum()),
        "arm": study.recommendation.arm,
        "locked": len(study.splits.holdout),
    }


def logged_trees(task: str, params: Any, seed: int) -> Any:
    """The built-in trees; every fit leaves its seed, which belongs to one fit of one cell, and the time."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    log = os.open(os.environ[FIT_LOG], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, f"{seed} {time.time()}\n".encode())
    os.close(log)
    return HistGradientBoostingClassifier(early_stopping=False, random_state=seed)


def run_logged(repeats: int, jobs: int, folder: str) -> dict[str, Any]:
    import counterpoise
    from counterpoise.studies._learners import Learner

    learner = Learner("logged-trees", logged_trees)
    counterpoise.study(SET, learners=[learner], remedies=list(REMEDIES), repeats=repeats, jobs=jobs, out=folder, resume=True)
    return {}


def run_bare(repeats: int, chosen: str) -> dict[str, Any]:
    """The fits a study makes, written plainly: all cells, the hold-out's two models, the saved model."""
    from imblearn.over_sampling import RandomOverSampler
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.utils.class_weight import compute_sample_weight
    from threadpoolctl import threadpool_limits

    from counterpoise.studies._plan import make_protocol
    from counterpoise.studies._problem import build_problem
    from counterpoise.studies._splits import Splits

    problem = build_problem(SET)
    protocol = make_protocol(problem, repeats=repeats)
    splits = Splits(problem, protocol)
    X, y = np.asarray(problem.X), problem.y
    fits = 0

    def fitted(arm: str, rows: Any) -> HistGradientBoostingClassifier:
        nonlocal fits
        fits += 1
        model = HistGradientBoostingClassifier(early_stopping=False, random_state=fits)
        if arm == "placebo":
            rows = rows[np.random.default_rng(0).random(len(rows)) >= 0.2]
        if arm == "over":
            return model.fit(*RandomOverSampler(random_state=fits).fit_resample(X[rows], y[rows]))
        return model.fit(X[rows], y[rows], sample_weight=compute_sample_weight("balanced", y[rows]) if arm == "weights" else None)

    def cell(arm: str, rows: Any, pairs: Any, test: Any) -> None:
        for fit_rows, score_at in pairs:
            fitted(arm, fit_rows).decision_function(X[rows[score_at]])
        fitted(arm, rows).decision_function(X[test])

    # Drawn beforehand: who is trained on what is not what is measured.
    jobs = []
    for repeat in range(repeats):
        for fold in range(protocol.folds):
            rows = splits.train_index(repeat, fold)
            pairs = splits.inner_pairs(rows, splits.inner_folds(rows, repeat, fold))
            jobs += [(arm, rows, pairs, splits.test_index(repeat, fold)) for arm in ARMS]
    in_cells = len(jobs)
    finals = [(arm, splits.rows) for arm in dict.fromkeys(("nothing", chosen)) if len(splits.holdout)] + [(chosen, np.arange(problem.n))]
    for arm, rows in finals:
        pairs = splits.inner_pairs(rows, splits.inner_folds(rows, "final", 0))
        jobs.append((arm, rows, pairs, splits.holdout if len(splits.holdout) else rows[:1]))
    began, wall = cpu(), time.perf_counter()
    with threadpool_limits(limits=1):
        for number, job in enumerate(jobs):
            if number == in_cells:
                cells = cpu() - began
                fits_in_cells = fits
            cell(*job)
    return {"cpu": cpu() - began, "wall": time.perf_counter() - wall, "cells": cells, "fits": fits_in_cells}


# -- many runs --------------------------------------------------------------------------------------------------------------------------


def in_fresh_process(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, check=True, text=True, env=one_thread())
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def one_thread() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def compare_cpu(runs: int, repeats: int) -> tuple[list[dict[str, Any]], list[str]]:
    found = []
    for run in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            study = in_fresh_process("--one", "study", "--repeats", str(repeats), "--folder", folder)
        bare = in_fresh_process("--one", "bare", "--repeats", str(repeats), "--chosen", study["arm"])
        assert study["fits"] == bare["fits"], (study["fits"], bare["fits"])
        found.append({"part": "cpu", "run": run, "repeats": repeats, "study": study, "bare": bare})
        print(f"  run {run + 1}: study {study['cpu']:.1f} s, bare {bare['cpu']:.1f} s of CPU", flush=True)
    whole = [row["study"]["cpu"] / row["bare"]["cpu"] for row in found]
    cells = [row["study"]["cells"] / row["bare"]["cells"] for row in found]
    shortest = min(row["study"]["shortest"] for row in found)
    fits = found[0]["study"]["fits"]
    print(f"\n{SET}, {LEARNER}, {len(ARMS)} arms, {repeats} repeats: {fits} fits in cells; shortest cell {shortest:.2f} s\n")
    print("| CPU, ours / bare loop | runs | median |\n|---|---|---|")
    print(f"| whole study | {', '.join(f'{ratio:.3f}' for ratio in whole)} | {np.median(whole):.3f} |")
    print(f"| its cells alone | {', '.join(f'{ratio:.3f}' for ratio in cells)} | {np.median(cells):.3f} |\n")
    missed = []
    if np.median(whole) > OVERHEAD:
        missed.append(f"overhead {np.median(whole):.3f} > {OVERHEAD}")
    if shortest < SHORTEST_CELL:
        missed.append(f"the shortest cell took {shortest:.2f} s < {SHORTEST_CELL}: too small to judge by")
    return found, missed


def timed(processes: int, jobs: int, repeats: int) -> dict[str, Any]:
    """Wall time from the start until all processes have ended, and what was computed."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, log = Path(scratch) / "study", Path(scratch) / "fits"
        command = [sys.executable, __file__, "--one", "logged", "--repeats", str(repeats), "--jobs", str(jobs), "--folder", str(folder)]
        environment = one_thread() | {FIT_LOG: str(log)}
        began = time.perf_counter()
        started = [
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
            for _ in range(processes)
        ]
        errors = [process.communicate()[1] for process in started]
        wall = time.perf_counter() - began
        wrong = [f"exit status {p.returncode}: {error.strip()[-300:]}" for p, error in zip(started, errors, strict=True) if p.returncode]
        db = sqlite3.connect(folder / "study.sqlite")
        cells, done, fits = db.execute("SELECT COUNT(*), SUM(state = 'done'), SUM(fits) FROM cell").fetchone()
        (ended,) = db.execute("SELECT MAX(started_at + seconds) FROM cell").fetchone()
        shares = [count for (count,) in db.execute("SELECT COUNT(*) FROM cell GROUP BY owner")]
        db.close()
        fitted = [(int(line.split()[0]), float(line.split()[1])) for line in log.read_text().splitlines()]
    expected = len(ARMS) * 5 * repeats
    if not cells == done == expected:
        wrong.append(f"{expected} cells expected: {cells} stored, {done} done")
    # What follows the last cell are the hold-out's models and the saved one.
    seeds = [seed for seed, at in fitted if at <= ended]
    if not len(seeds) == len(set(seeds)) == fits:
        wrong.append(f"{fits} fits in cells expected, {len(seeds)} were made, {len(seeds) - len(set(seeds))} of them again")
    return {
        "processes": processes,
        "jobs": jobs,
        "wall": wall,
        "cells": cells,
        "fits_in_cells": fits,
        "fits_after_cells": len(fitted) - len(seeds),
        "cells_by_process": shares,
        "wrong": wrong,
    }


def compare_wall(runs: int, repeats: int) -> tuple[list[dict[str, Any]], list[str]]:
    kinds = {"one": (1, 1), "two workers": (1, 2), "two commands, one folder": (2, 1)}
    found = []
    for run in range(runs):
        for kind, (processes, jobs) in kinds.items():
            found.append({"part": "wall", "run": run, "repeats": repeats, "kind": kind} | timed(processes, jobs, repeats))
            print(f"  run {run + 1}, {kind}: {found[-1]['wall']:.1f} s", flush=True)
    missed = [f"{row['kind']}, run {row['run'] + 1}: {wrong}" for row in found for wrong in row["wrong"]]
    one = {row["run"]: row["wall"] for row in found if row["kind"] == "one"}
    print(f"\n{found[0]['cells']} cells, each computed once: {'no' if missed else 'yes'}\n")
    print("| wall, s | runs | median | over one |\n|---|---|---|---|")
    for kind in kinds:
        walls = [row["wall"] for row in found if row["kind"] == kind]
        ratio = float(np.median([row["wall"] / one[row["run"]] for row in found if row["kind"] == kind]))
        print(f"| {kind} | {', '.join(f'{wall:.1f}' for wall in walls)} | {np.median(walls):.1f} | {ratio:.3f} |")
        if kind != "one" and ratio > TWO_OVER_ONE:
            missed.append(f"{kind}: {ratio:.3f} of the wall time of one > {TWO_OVER_ONE}")
    print()
    return found, missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("cpu", "wall", "both"), default="both")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--repeats", type=int, help=f"of the studies; default {CPU_REPEATS} and {WALL_REPEATS}")
    parser.add_argument("--one", choices=("study", "bare", "logged"), help=argparse.SUPPRESS)
    parser.add_argument("--jobs", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--chosen", default="nothing", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        calls = {
            "study": lambda: run_study(options.repeats, options.folder),
            "bare": lambda: run_bare(options.repeats, options.chosen),
            "logged": lambda: run_logged(options.repeats, options.jobs, options.folder),
        }
        print(json.dumps(calls[options.one]()))
        return 0
    found: list[dict[str, Any]] = []
    missed: list[str] = []
    for part, compare, repeats in (("cpu", compare_cpu, CPU_REPEATS), ("wall", compare_wall, WALL_REPEATS)):
        if options.part in (part, "both"):
            rows, wrong = compare(options.runs, options.repeats or repeats)
            found += rows
            missed += wrong
    return finish("overhead", found, missed)


if __name__ == "__main__":
    sys.exit(main())
