"""AUROC and AUPRC together, against scikit-learn's average precision alone.

``auroc_auprc_decomposition`` sorts once for both metrics and also returns what every positive takes from them. Its time is compared with
that of ``sklearn.metrics.average_precision_score``, one of the two metrics, on the same million rows: rare and common positives, with and
without ties and weights. ``roc_auc_score`` and the leverage of all mistakes are timed beside them. Runs alternate in one process; none of
the functions uses more than one thread.

    python benchmarks/curve_metrics.py              # 1,000,000 rows, 9 runs of each
    python benchmarks/curve_metrics.py --rows 10000 --runs 2
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from _ending import finish
from sklearn.metrics import average_precision_score, roc_auc_score

from counterpoise.diagnostics import mistake_leverage
from counterpoise.metrics import auroc_auprc_decomposition

RATIO = 1.3  # bar: both metrics together over average precision alone, median of the runs, in every case
LARGEST_DIFFERENCE = 1e-10  # between our values and scikit-learn's: sums of a million weights in another order
ROWS, RUNS = 1_000_000, 9
CASES = [
    {"prevalence": 0.01, "ties": False, "weights": False},
    {"prevalence": 0.5, "ties": False, "weights": False},
    {"prevalence": 0.01, "ties": True, "weights": False},
    {"prevalence": 0.5, "ties": False, "weights": True},
]


def seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(case: dict[str, Any], rows: int, runs: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    y = (rng.random(rows) < case["prevalence"]).astype(np.int64)
    score = rng.normal(size=rows) + y
    score = np.round(score, 3) if case["ties"] else score
    weight = rng.exponential(size=rows) if case["weights"] else None
    calls: dict[str, Callable[[], Any]] = {
        "both": lambda: auroc_auprc_decomposition(y, score, weight),
        "average_precision_score": lambda: average_precision_score(y, score, sample_weight=weight),
        "roc_auc_score": lambda: roc_auc_score(y, score, sample_weight=weight),
        "mistake_leverage": lambda: mistake_leverage(y, score),
    }
    found = calls["both"]()
    difference = max(abs(found.auroc - calls["roc_auc_score"]()), abs(found.auprc - calls["average_precision_score"]()))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return case | {"rows": rows, "difference": difference, "seconds": times}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--runs", type=int, default=RUNS)
    options = parser.parse_args()
    found = [measure(case, options.rows, options.runs) for case in CASES]
    missed = []
    print(f"{options.rows:,} rows, median of {options.runs} runs, ms\n")
    print("| positives | ties | weights | both, ours | average_precision_score | ratio | roc_auc_score | mistake_leverage | differs by |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in found:
        median = {name: float(np.median(values)) for name, values in row["seconds"].items()}
        pairs = zip(row["seconds"]["both"], row["seconds"]["average_precision_score"], strict=True)
        ratio = float(np.median([ours / theirs for ours, theirs in pairs]))
        ms = {name: f"{1000 * value:.0f}" for name, value in median.items()}
        words = [f"{row['prevalence']:.0%}", *("yes" if row[name] else "no" for name in ("ties", "weights"))]
        words += [ms["both"], ms["average_precision_score"], f"{ratio:.2f}", ms["roc_auc_score"], ms["mistake_leverage"]]
        print(f"| {' | '.join(words)} | {row['difference']:.0e} |")
        name = f"{words[0]} positive, ties {words[1]}, weights {words[2]}"
        if ratio > RATIO:
            missed.append(f"{name}: {ratio:.2f} > {RATIO}")
        if row["difference"] > LARGEST_DIFFERENCE:
            missed.append(f"{name}: values differ by {row['difference']:.1e} > {LARGEST_DIFFERENCE:g}")
    return finish("curve_metrics", found, missed)


if __name__ == "__main__":
    sys.exit(main())
