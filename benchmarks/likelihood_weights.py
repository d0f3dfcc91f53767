"""What likelihood weights cost, and what they gain over weights from errors.

Time: ``LikelihoodWeighter().fit(X).sample_weight_`` for 50,000 embeddings of 512 dimensions, against likelihoods from scikit-learn's
``KernelDensity``: of the embeddings, of the same 16 principal components, and of these with as few rows to fit on as ours. A kernel density
needs hours for all rows, so it scores a part of them and its time is scaled up; the time to fit is not. Fresh processes, alternating.

Accuracy: the digits of ``counterpoise replicate datasetequity`` (6 % look rare, nobody knows which), 120 steps for everybody. JTT (Liu et
al. 2021) trains once, then again with the images it got wrong counted several times; the steps of both trainings are its budget. The
figures show its best number of first steps and its best factor in hindsight.

    python benchmarks/likelihood_weights.py               # both parts, 3 runs of each timing
    python benchmarks/likelihood_weights.py --part time
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
from _ending import finish

FASTER = 10.0  # bar: time of a kernel density over ours, median of the runs, in 512 and in 16 dimensions

N, D, RARE = 50_000, 512, 0.03
COMPONENTS, SAMPLE = 16, 5_000  # the defaults of LikelihoodWeighter
SCORED = {"kde": 250, "kde of components": 1_000, "kde of components, fitted on a sample": 10_000}  # rows, of N
BARRED = ("kde", "kde of components")

JTT_FIRST, JTT_FACTORS = (20, 40, 60), (2.0, 5.0, 20.0)  # steps of the first training, weight of an error


# -- time: one run, in a process of its own -----------------------------------------------------------------------------------------------


def embeddings(n: int) -> np.ndarray:
    """Unit noise around ten common centers, and a rare part around another."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(11, D)) * 1.5
    kind = np.where(rng.random(n) < RARE, 10, rng.integers(10, size=n))
    return (centers[kind] + rng.normal(size=(n, D))).astype(np.float32)


def run_ours(n: int) -> dict[str, Any]:
    from counterpoise.data import LikelihoodWeighter

    X = embeddings(n)
    began = time.perf_counter()
    weighter = LikelihoodWeighter(random_state=0).fit(X)
    return {"seconds": time.perf_counter() - began, "clusters": int(weighter.labels_.max()) + 1}


def run_kde(name: str, n: int) -> dict[str, Any]:
    from sklearn.decomposition import PCA
    from sklearn.neighbors import KernelDensity
    from sklearn.preprocessing import StandardScaler

    X = embeddings(n)
    scored = min(SCORED[name], n)
    began = time.perf_counter()
    X = StandardScaler().fit_transform(X)
    if name != "kde":
        X = PCA(COMPONENTS, random_state=0).fit_transform(X)
    rows = X if "sample" not in name else X[np.random.default_rng(0).choice(n, min(SAMPLE, n), replace=False)]
    density = KernelDensity(bandwidth="scott").fit(rows)
    fitting = time.perf_counter() - began
    began = time.perf_counter()
    density.score_samples(X[:scored])
    return {"seconds": fitting + (time.perf_counter() - began) * n / scored, "scored": scored}


def in_fresh_process(*arguments: str) -> dict[str, Any]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, check=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def compare_time(runs: int, n: int) -> tuple[list[dict[str, Any]], list[str]]:
    found = []
    for run in range(runs):
        for name in ("ours", *SCORED):
            found.append({"part": "time", "run": run, "n": n, "name": name} | in_fresh_process("--one", name, "--rows", str(n)))
            print(f"  run {run + 1}, {name}: {found[-1]['seconds']:.1f} s", flush=True)
    ours = {row["run"]: row["seconds"] for row in found if row["name"] == "ours"}
    print(f"\n{n:,} x {D}, one thread; {found[0]['clusters']} clusters\n")
    print("| seconds | rows scored | runs | median | over ours | GB |\n|---|---|---|---|---|---|")
    missed = []
    for name in ("ours", *SCORED):
        rows = [row for row in found if row["name"] == name]
        ratio = float(np.median([row["seconds"] / ours[row["run"]] for row in rows]))
        seconds = [row["seconds"] for row in rows]
        memory = max(row["peak_gb"] for row in rows)
        scored = f"{rows[0].get('scored', n):,}"
        print(f"| {name} | {scored} | {', '.join(f'{s:.1f}' for s in seconds)} | {np.median(seconds):.1f} | {ratio:.1f} | {memory:.2f} |")
        if name in BARRED and ratio < FASTER:
            missed.append(f"{name}: {ratio:.1f} times our time < {FASTER:g}")
    print()
    return found, missed


# -- accuracy -----------------------------------------------------------------------------------------------------------------------------


def jtt(seed: int, first: int, factor: float) -> dict[str, float]:
    """Just train twice: ``first`` steps, then the rest of the budget anew, errors of the first network weighing ``factor``."""
    from counterpoise.replications import datasetequity as paper

    data = paper.digits(seed)
    net = paper.fitted("mlp", data, np.ones(len(data.y)), seed=seed, steps=first)
    wrong = paper.decisions(net, data.X) != data.y
    weights = np.where(wrong, factor, 1.0)
    net = paper.fitted("mlp", data, weights, seed=seed, steps=paper.STEPS - first)
    return paper.accuracy(net, data) | {"errors that are rare": float(data.inverted[wrong].mean()) if wrong.any() else float("nan")}


def compare_accuracy(seeds: int) -> list[dict[str, Any]]:
    from counterpoise._stats import mean_interval
    from counterpoise.replications import datasetequity as paper
    from counterpoise.replications._work import paired, rows_where

    found: list[dict[str, Any]] = []
    for seed in range(seeds):
        for arm in (paper.UNIFORM, paper.MAIN, "dbscan knee", "kmeans-2 inverse"):
            found.append({"part": "accuracy", "seed": seed, "arm": arm} | paper.train("mlp", arm, seed))
        for first in JTT_FIRST:
            for factor in JTT_FACTORS:
                found.append({"part": "accuracy", "seed": seed, "arm": f"jtt {first} x{factor:g}"} | jtt(seed, first, factor))
    arms = list(dict.fromkeys(row["arm"] for row in found))
    print(f"{paper.STEPS} steps in all, {seeds} seeds; jtt: steps of the first training x weight of an error\n")
    print("| weights | rare | common | rare over uniform (95 %) | rare over the best JTT (95 %) |\n|---|---|---|---|---|")

    def mean(arm: str, part: str) -> float:
        return float(np.mean([row[part] for row in rows_where(found, arm=arm)]))

    def gain(arm: str, baseline: str) -> str:
        middle, low, high = mean_interval(paired(found, "rare", arm, baseline))
        return "-" if arm == baseline else f"{middle:+.3f} ({low:+.3f} to {high:+.3f})"

    best = max((arm for arm in arms if arm.startswith("jtt")), key=lambda arm: mean(arm, "rare"))
    for arm in arms:
        print(f"| {arm} | {mean(arm, 'rare'):.3f} | {mean(arm, 'common'):.3f} | {gain(arm, paper.UNIFORM)} | {gain(arm, best)} |")
    print()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("time", "accuracy", "both"), default="both")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rows", type=int, default=N)
    parser.add_argument("--one", choices=("ours", *SCORED), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        result = run_ours(options.rows) if options.one == "ours" else run_kde(options.one, options.rows)
        print(json.dumps(result | {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))
        return 0
    found: list[dict[str, Any]] = []
    missed: list[str] = []
    if options.part in ("time", "both"):
        found, missed = compare_time(options.runs, options.rows)
    if options.part in ("accuracy", "both"):
        found += compare_accuracy(options.seeds)
    return finish("likelihood_weights", found, missed)


if __name__ == "__main__":
    sys.exit(main())
