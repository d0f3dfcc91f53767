"""How often a performance curve is called a moon: on planted lines it should not be, on planted parabolas it should.

Tables of 60 models with binomial noise in both accuracies (1,000 test examples of the majority; 500 of the minority, or 200, the fewest
that raise no warning), as 60 runs of one model, or as 10 runs of 6 checkpoints that share an offset. False moons: the share of tables with
a true line (on the scale of accuracies, or of probits) whose shape is "moon"; the bar is for all of them. Power: the share of tables with
c2 = 2; the bar is for 500 examples. Shown without a bar, two mixtures of lines that are no moon either: levels that differ between runs,
which the report can see, and two slopes that meet, which 60 noisy models hardly tell from a parabola.

Group numbers: accuracies and recalls by group of ``SubpopulationSweep`` against fairlearn's ``MetricFrame``, or, where fairlearn is not
installed, against plain NumPy.

    python benchmarks/performance_curve.py               # 1,000 tables per case
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from _ending import finish
from scipy.special import ndtr, ndtri

from counterpoise._seeding import generator
from counterpoise._stats import wilson
from counterpoise.diagnostics import performance_curve

FALSE_MOONS = 0.05  # bar: at most
POWER = 0.90  # bar: at least, at c2 = 2
EQUAL = 1e-12  # bar: largest difference to MetricFrame

MODELS, RUN = 60, 6
N_MAJORITY = 1000
RANGE = (0.55, 0.95)  # of the true majority accuracy
OFFSET = 0.02  # standard deviation of a run's own

Curve = Callable[[np.ndarray], np.ndarray]
LINES: dict[str, Curve] = {
    "line, slope 1": lambda a: a - 0.1,
    "line, slope 0.5": lambda a: 0.5 * a + 0.2,
    "line, slope 0": lambda a: 0 * a + 0.5,
    "line, slope -0.5": lambda a: 0.9 - 0.5 * a,
    "probit line, slope 1": lambda a: ndtr(ndtri(a) - 0.7),
    "probit line, slope 0.5": lambda a: ndtr(0.5 * ndtri(a) - 0.3),
}
MOONS: dict[str, Curve] = {
    "parabola, vertex 0.75": lambda a: 2 * (a - 0.75) ** 2 + 0.4,
    "parabola, vertex 0.70": lambda a: 2 * (a - 0.70) ** 2 + 0.4,
    "parabola, vertex 0.65": lambda a: 2 * (a - 0.65) ** 2 + 0.4,
}
MIXED = ("mixture of three levels", "mixture of two slopes")
SIZES = (500, 200)  # test examples of the minority


def table(case: str, clustered: bool, n_minority: int, number: int) -> dict[str, np.ndarray]:
    """Accuracies of 60 models as they are measured."""
    rng = generator(number, case, int(clustered), n_minority)
    runs = np.arange(MODELS) // RUN if clustered else np.arange(MODELS)
    a = rng.uniform(*RANGE, MODELS)
    if case == "mixture of three levels":  # parallel lines, the middle family lies lowest
        family = runs % 3
        a = rng.uniform(0.55, 0.75, MODELS) + 0.1 * family
        b = 0.5 * a + np.array([0.45, 0.05, 0.25])[family]
    elif case == "mixture of two slopes":
        first = runs % 2 == 0
        a = np.where(first, rng.uniform(RANGE[0], 0.75, MODELS), rng.uniform(0.75, RANGE[1], MODELS))
        b = np.where(first, 0.95 - 0.7 * a, 0.7 * a - 0.1)
    else:
        b = (LINES | MOONS)[case](a)
    if clustered:
        b = b + rng.normal(0, OFFSET, runs.max() + 1)[runs]
    b = np.clip(b, 0, 1)
    return {
        "runs": runs,
        "majority": rng.binomial(N_MAJORITY, a) / N_MAJORITY,
        "minority": rng.binomial(n_minority, b) / n_minority,
    }


def shapes(case: str, clustered: bool, n_minority: int, tables: int, bootstrap: int) -> dict[str, int]:
    found: dict[str, int] = {}
    for number in range(tables):
        report = performance_curve(
            **table(case, clustered, n_minority, number), n_majority=N_MAJORITY, n_minority=n_minority, bootstrap=bootstrap, seed=number
        )
        found[report.shape] = found.get(report.shape, 0) + 1
    return found


def compare_group_numbers() -> tuple[float, str]:
    """(largest difference, to what)."""
    from sklearn.metrics import accuracy_score, recall_score

    from counterpoise.studies._subpopulation import group_scores

    rng = np.random.default_rng(0)
    worst, peer = 0.0, "fairlearn's MetricFrame"
    for _ in range(20):
        ids = rng.choice(5, 3000, p=[0.5, 0.3, 0.15, 0.04, 0.01])
        y, predicted = rng.integers(2, size=(2, 3000))
        for metric in (accuracy_score, recall_score):
            ours = group_scores(y, predicted, ids, 5, None if metric is accuracy_score else metric)
            try:
                from fairlearn.metrics import MetricFrame

                theirs = MetricFrame(metrics=metric, y_true=y, y_pred=predicted, sensitive_features=ids).by_group.to_numpy()
            except ImportError:
                peer = "plain NumPy (fairlearn is not installed)"
                right = (y == predicted) if metric is accuracy_score else predicted
                rows = np.ones_like(y) if metric is accuracy_score else y
                theirs = np.array([(right * rows)[ids == k].sum() / rows[ids == k].sum() for k in range(5)])
            worst = max(worst, float(np.abs(np.asarray(ours) - np.asarray(theirs, dtype=float)).max()))
    return worst, peer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=1000, help="per case")
    parser.add_argument("--bootstrap", type=int, default=1000)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    missed: list[str] = []
    began = time.perf_counter()
    print("| planted | runs | minority examples | moon | 95 % interval | line | decreasing | inconclusive | bar |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for case in (*LINES, *MOONS, *MIXED):
        for clustered, n_minority in itertools.product((False, True), SIZES):
            if case in MIXED and not clustered:
                continue  # without runs of several models there is nothing to tell a mixture by
            counts = shapes(case, clustered, n_minority, options.tables, options.bootstrap)
            share = counts.get("moon", 0) / options.tables
            low, high = (float(bound) for bound in wilson(counts.get("moon", 0), options.tables))
            planted = f"{MODELS // RUN} x {RUN}" if clustered else f"{MODELS} x 1"
            powerful = case in MOONS and n_minority == SIZES[0]
            bar = f"<= {FALSE_MOONS:.0%}" if case in LINES else f">= {POWER:.0%}" if powerful else "none"
            others = " | ".join(f"{counts.get(shape, 0) / options.tables:.1%}" for shape in ("line", "decreasing", "inconclusive"))
            print(f"| {case} | {planted} | {n_minority} | {share:.1%} | {low:.1%} to {high:.1%} | {others} | {bar} |", flush=True)
            rows.append(
                {
                    "case": case,
                    "clustered": clustered,
                    "n_minority": n_minority,
                    "tables": options.tables,
                    "bootstrap": options.bootstrap,
                    "shapes": counts,
                }
            )
            if powerful and share < POWER:
                missed.append(f"{case}, {planted}, {n_minority} examples: power {share:.1%} < {POWER:.0%}")
            if case in LINES and share > FALSE_MOONS:
                missed.append(f"{case}, {planted}, {n_minority} examples: false moons {share:.1%} > {FALSE_MOONS:.0%}")
    seconds = (time.perf_counter() - began) / sum(row["tables"] for row in rows)
    difference, peer = compare_group_numbers()
    rows.append({"case": "group numbers", "peer": peer, "difference": difference, "seconds_per_table": seconds})
    print(f"\nGroup numbers: largest difference to {peer} {difference:.1e} (bar {EQUAL:g}). One report takes {1000 * seconds:.1f} ms.\n")
    if difference > EQUAL:
        missed.append(f"group numbers differ by {difference:.1e} > {EQUAL:g}")
    return finish("performance_curve", rows, missed)


if __name__ == "__main__":
    warnings.simplefilter("error")
    sys.exit(main())
