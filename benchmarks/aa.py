"""A/A studies: how often does a study claim a difference where there is none?

Eight null arms and a baseline, each without its own fixed random share of the training rows: exchangeable, so every claim is false. Counted
is the share of studies with at least one interval that leaves out zero, per question, for the rule of the study (row interval with max-t),
for Nadeau-Bengio with max-t, and for the plain paired t over cells, which a harness that can see anything must catch.

    python benchmarks/aa.py                 # all sets, 200 studies each, linear learner
    python benchmarks/aa.py --nightly       # 40 studies; exit 1 at 6 or more false claims for a question
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _null_studies import FixedDrop, board_of, protocol_of, run_many, subsample

from counterpoise._stats import bonferroni, paired_t, wilson
from counterpoise.studies._differences import family_of
from counterpoise.studies._learners import BUILT_IN
from counterpoise.studies._verdicts import verdicts

# (set, rows, share of the training rows that each arm lacks); the last three were not used to choose the rule.
SETS: dict[str, tuple[int, float]] = {
    "mammography": (1000, 0.2),
    "campaign": (800, 0.2),
    "phoneme": (600, 0.2),
    "landsat": (1000, 0.5),
    "pendigits": (1000, 0.5),
    "adult": (1000, 0.2),
}
NULL_ARMS = 8
QUESTIONS = ("decisions", "ranking", "probabilities")
PROCEDURES = ("rows", "nadeau-bengio", "paired t")
POOLED, WORST = 0.05, 0.08  # bars: share of studies with a false claim, all sets together and on any set
BLIND = 0.30  # the paired t must be caught more often than this
NIGHTLY = {"mammography": 14, "campaign": 13, "phoneme": 13}
NIGHTLY_LIMIT = 6


def study(name: str, number: int, learner: str, fresh: bool = False) -> dict[str, Any]:
    """One null study: which procedures claim something, per question."""
    n, share = SETS[name]
    problem = subsample(name, n, number)
    protocol = protocol_of(problem, seed=number)
    arms = [FixedDrop(f"null-{arm}", "data", share=share, study=number, fresh=fresh) for arm in range(NULL_ARMS + 1)]
    board, _ = board_of(problem, protocol, arms, BUILT_IN[learner])
    claims: dict[str, dict[str, int]] = {}
    widths: dict[str, float] = {}
    words: dict[str, int] = {}
    for question in QUESTIONS:
        by_rule = {interval: verdicts([board], question, task=problem.task, interval=interval) for interval in PROCEDURES[:2]}
        claims[question] = {interval: sum(v.low > 0 or v.high < 0 for v in found) for interval, found in by_rule.items()}
        family = family_of([board], question, task=problem.task)
        cells = family.cells.reshape(len(family.cells), -1)
        mean, se, df = paired_t(cells)
        claims[question]["paired t"] = int((np.abs(mean) > bonferroni(1, df) * se).sum())
        half = {interval: np.mean([v.high - v.low for v in found]) / 2 for interval, found in by_rule.items()}
        widths[question] = float(half["rows"] / half["nadeau-bengio"])
        words[question] = sum(v.verdict in ("helps", "harms") for v in by_rule["rows"])
    return {"claims": claims, "width": widths, "words": words}


def table(rows: Sequence[dict[str, Any]]) -> tuple[str, list[str]]:
    """Markdown of the shares with 95 % Wilson intervals, and the bars that are missed."""
    sets = sorted({row["task"]["name"] for row in rows}, key=list(SETS).index)
    lines = [
        "| question | procedure | " + " | ".join(f"{name}-{SETS[name][0]}" for name in sets) + " | pooled (95 %) |",
        "|---" * (len(sets) + 3) + "|",
    ]
    missed = []
    for question in QUESTIONS:
        for procedure in PROCEDURES:
            hit = {name: [row["claims"][question][procedure] > 0 for row in rows if row["task"]["name"] == name] for name in sets}
            everything = [value for values in hit.values() for value in values]
            pooled = float(np.mean(everything))
            low, high = wilson(sum(everything), len(everything))
            shares = {name: float(np.mean(values)) for name, values in hit.items()}
            lines.append(
                f"| {question} | {procedure} | "
                + " | ".join(f"{shares[name]:.3f}" for name in sets)
                + f" | {pooled:.3f} ({low:.3f} to {high:.3f}) |"
            )
            if procedure == "rows":
                if pooled > POOLED:
                    missed.append(f"{question}: {pooled:.3f} pooled > {POOLED}")
                missed += [f"{question}: {share:.3f} on {name} > {WORST}" for name, share in shares.items() if share > WORST]
            if procedure == "paired t" and pooled <= BLIND:
                missed.append(f"{question}: the paired t is caught in {pooled:.3f} <= {BLIND} of the studies: the harness is blind")
    width = {question: float(np.median([row["width"][question] for row in rows])) for question in QUESTIONS}
    lines.append("")
    lines.append("Median width of the row interval relative to Nadeau-Bengio: " + ", ".join(f"{q} {w:.2f}" for q, w in width.items()) + ".")
    return "\n".join(lines), missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200, help="per set")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--learner", default="linear", choices=sorted(BUILT_IN))
    parser.add_argument("--fresh", action="store_true", help="draw the missing rows anew for every fit: an easier null")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--nightly", action="store_true")
    options = parser.parse_args()
    counts = NIGHTLY if options.nightly else dict.fromkeys(options.sets.split(","), options.studies)
    extra = {"fresh": True} if options.fresh else {}
    # Number by number, so that an interrupted run is balanced over the sets.
    tasks = [
        {"name": name, "number": number, "learner": options.learner} | extra
        for number in range(max(counts.values()))
        for name in counts
        if number < counts[name]
    ]
    path = Path(__file__).parent / "results" / f"aa-{options.learner}{'-fresh' if options.fresh else ''}.jsonl"
    rows = run_many(study, tasks, path, options.jobs)
    text, missed = table(rows)
    print(f"{len(rows)} null studies, {options.learner}, {NULL_ARMS} null arms, K = R = 5\n\n{text}")
    if options.nightly:
        false = {question: sum(row["claims"][question]["rows"] > 0 for row in rows) for question in QUESTIONS}
        missed = [
            f"{question}: {count} of {len(rows)} studies claim falsely" for question, count in false.items() if count >= NIGHTLY_LIMIT
        ]
    print("\n" + ("\n".join(f"MISSED {line}" for line in missed) or "all bars met"))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
