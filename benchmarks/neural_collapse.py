"""NC1 to NC4 of the features of a large layer, against the usual way to compute NC1 alone.

``collapse_metrics`` takes NC1 from the singular vectors of the K class means; scripts that come with papers build both d x d covariances
and take the pseudo-inverse of the second. Both get the same 10,000 rows of d = 2,048 features in K = 100 classes, in float64, and the same
number of threads; runs alternate in one process. Beside it: the usual way with the pseudo-inverse of a symmetric matrix, which is cheaper,
and ``CollapseAccumulator``, which takes the rows in batches and needs one of the two d x d matrices.

    python benchmarks/neural_collapse.py                                     # 5 runs of each
    python benchmarks/neural_collapse.py --rows 2000 --features 256 --runs 2
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _ending import finish

from counterpoise.diagnostics import CollapseAccumulator, collapse_metrics

FASTER = 20.0  # bar: time of the usual way over that of collapse_metrics, median of the runs
LARGEST_DIFFERENCE = 1e-8  # bar: of NC1 in float64, relative
ROWS, FEATURES, CLASSES, RUNS = 10_000, 2_048, 100, 5
BATCH = 1_000
USUAL = "d x d pseudo-inverse"


def problem(rows: int, features: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit noise around class means at distance 3, long-tailed classes, and a classifier."""
    rng = np.random.default_rng(0)
    share = 0.05 ** (np.arange(classes) / (classes - 1))
    y = np.sort(np.r_[np.arange(classes), rng.choice(classes, rows - classes, p=share / share.sum())])
    means = rng.normal(size=(classes, features)) * 3 / np.sqrt(features)
    return means[y] + rng.normal(size=(rows, features)) / np.sqrt(features), y, means


def usual(X: torch.Tensor, y: torch.Tensor, hermitian: bool = False) -> float:
    """tr(Sigma_W pinv(Sigma_B)) / K with d x d matrices."""
    K = int(y.max()) + 1
    means = torch.stack([X[y == k].mean(dim=0) for k in range(K)])
    residual = X - means[y]
    within = residual.T @ residual / len(X)
    centered = means - means.mean(dim=0)
    between = centered.T @ centered / K
    return float(torch.trace(within @ torch.linalg.pinv(between, hermitian=hermitian)) / K)


def in_batches(X: torch.Tensor, y: torch.Tensor, W: torch.Tensor) -> float:
    seen = CollapseAccumulator(len(W))
    for rows in torch.arange(len(X)).split(BATCH):
        seen.update(X[rows], y[rows])
    return seen.report(W).nc1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--features", type=int, default=FEATURES)
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--runs", type=int, default=RUNS)
    options = parser.parse_args()
    X, y, W = (torch.from_numpy(part) for part in problem(options.rows, options.features, options.classes))
    calls: dict[str, Callable[[], float]] = {
        "collapse_metrics": lambda: collapse_metrics(X, y, W).nc1,
        USUAL: lambda: usual(X, y),
        "the same, symmetric": lambda: usual(X, y, hermitian=True),
        "CollapseAccumulator": lambda: in_batches(X, y, W),
    }
    values = {name: call() for name, call in calls.items()}  # also the warm-up
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(options.runs):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
        print(f"  run {run + 1}: " + ", ".join(f"{name} {times[-1]:.2f} s" for name, times in seconds.items()), flush=True)
    exact = values[USUAL]
    row: dict[str, Any] = {"rows": options.rows, "features": options.features, "classes": options.classes}
    row |= {"threads": torch.get_num_threads(), "seconds": seconds, "nc1": values}

    ours = seconds["collapse_metrics"]
    print(f"\n{options.rows:,} rows, d = {options.features:,}, K = {options.classes}, {row['threads']} threads, {options.runs} runs\n")
    print("| | s, median | over collapse_metrics | NC1 differs by |")
    print("|---|---|---|---|")
    missed = []
    for name, times in seconds.items():
        ratio = float(np.median([theirs / own for theirs, own in zip(times, ours, strict=True)]))
        off = abs(values[name] / exact - 1)
        print(f"| {name} | {np.median(times):.3f} | {ratio:.1f} | {off:.0e} |")
        if name == USUAL and ratio < FASTER:
            missed.append(f"{name}: {ratio:.1f} times our time < {FASTER:g}")
        if off > LARGEST_DIFFERENCE:
            missed.append(f"{name}: NC1 differs by {off:.1e} > {LARGEST_DIFFERENCE:g}")
    return finish("neural_collapse", [row], missed)


if __name__ == "__main__":
    sys.exit(main())
