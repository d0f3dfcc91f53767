"""Do learning curves tell the truth? What twice and four times the rows were said to bring, beside what they brought.

Of each real table 30 % of the rows (at most 10,000) are put aside for testing. A study of a fifth of the rest (`--learning-curve`, no
remedies) says what twice and four times the rows that its models are fitted on would bring, for the ranking or, in a regression, the mean
absolute error. Then models are fitted on so many rows, drawn from all of the rest, and tested on the rows put aside; means of three draws.
Whether the truth lies within the limits is counted over tables, learners and three studies each. The limits hold the chance in the parts'
differences and nothing else: neither the error of the truth measured here nor a law that does not go on.

    python benchmarks/learning_curve.py
    python benchmarks/learning_curve.py --sets phoneme --studies 1      # a smoke test
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from typing import Any

import numpy as np
from _ending import RESULTS, said
from _null_studies import protocol_of, run_many, truths

import counterpoise
from counterpoise.datasets import load
from counterpoise.studies._learners import BUILT_IN
from counterpoise.studies._problem import build_problem
from counterpoise.studies._remedies import BASELINE

COVERED = 0.8  # bar: share of the limits for twice the rows that hold the truth; for four times it is reported

SETS = ("adult", "campaign", "phoneme", "landsat", "california-housing", "abalone")
LEARNERS = ("linear", "trees")
STUDIES, DRAWS, FOLDS = 3, 3, 5
TIMES = (2, 4)


def one_study(name: str, seed: int) -> dict[str, Any]:
    """Gains as told by the curves of one study, and as measured."""
    data = load(name)
    order = np.random.default_rng([seed, 30]).permutation(data.frame.height)
    aside = order[: min(len(order) * 3 // 10, 10_000)]
    rest = order[len(aside) :]
    rows = rest[: len(rest) // 5]
    task = "regression" if data.task == "regression" else "classification"
    options: dict[str, Any] = {"target": data.target, "positive": data.positive, "task": task, "keep": data.frame.columns}
    test = data.frame[aside.tolist()]
    metric = "mae" if data.task == "regression" else "auroc"
    with tempfile.TemporaryDirectory() as folder:
        study = counterpoise.study(
            data.frame[rows.tolist()], test=test, **options, learners=list(LEARNERS), remedies=["placebo"], metric=metric, folds=FOLDS,
            seed=seed, jobs=1, out=folder, learning_curve=True,
        )  # fmt: skip
        curves = {curve.learner: curve for curve in study.learning_curves}
    found: dict[str, Any] = {}
    for learner, curve in curves.items():
        levels = np.zeros((DRAWS, 1 + len(TIMES)))
        for draw in range(DRAWS):
            pool = np.random.default_rng([seed, draw, 31]).permutation(rest)
            for k, times in enumerate((1, *TIMES)):
                problem = build_problem(data.frame[pool[: round(times * curve.rows[-1])].tolist()], test=test, **options)
                (levels[draw, k],) = truths(problem, protocol_of(problem, seed), [BASELINE], BUILT_IN[learner], metric)
        sign = -1.0 if metric == "mae" else 1.0
        gains = sign * (levels[:, 1:] - levels[:, :1])
        error = gains.std(axis=0, ddof=1) / np.sqrt(DRAWS)
        found[learner] = {
            "rows": curve.rows[-1],
            "metric": metric,
            "level": float(levels[:, 0].mean()),
            "exponent": curve.exponent,
            "told": [[gain.estimate, gain.low, gain.high] for gain in curve.gains],
            "true": gains.mean(axis=0).tolist(),
            "error": error.tolist(),
        }
    return {"curves": found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--studies", type=int, default=STUDIES)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    tasks = [{"name": name, "seed": seed} for name in options.sets.split(",") for seed in range(options.studies)]
    rows = run_many(one_study, tasks, RESULTS / "learning_curve.jsonl", options.jobs)
    held = {times: [] for times in TIMES}
    print("| table, learner | rows | metric | twice: told | true | four times: told | true |\n|---|---|---|---|---|---|---|")
    for row in rows:
        for learner, found in row["curves"].items():
            cells, digits = [], 0 if found["level"] > 100 else 4
            for times, (told, low, high), true in zip(TIMES, found["told"], found["true"], strict=True):
                held[times].append(low <= true <= high)
                numbers = (f"{number:+,.{digits}f}" for number in (told, low, high, true))
                cells.append("{} [{}, {}] | {}".format(*numbers) + ("" if held[times][-1] else " *"))
            where = f"{row['task']['name']} {row['task']['seed']}, {learner}"
            print(f"| {where} | {found['rows']:,.0f} | {found['metric']} {found['level']:,.{max(digits - 1, 0)}f} | {' | '.join(cells)} |")
    shares = {times: float(np.mean(inside)) for times, inside in held.items()}
    print(f"\nlimits that hold the truth: twice {shares[2]:.0%} of {len(held[2])} (bar {COVERED:.0%}), four times {shares[4]:.0%}")
    return said([] if shares[2] >= COVERED else [f"twice the rows: {shares[2]:.0%} of the limits hold the truth < {COVERED:.0%}"])


if __name__ == "__main__":
    sys.exit(main())
