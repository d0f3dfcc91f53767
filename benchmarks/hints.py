"""Does the stage that a diagnosis hints at win the study?

For each of 30 real sets: what :attr:`StudyDiagnosis.hinted_stage` says, and the stage of the arm that a study of the same rows recommends
("nothing", where it recommends the baseline). A hit is the same word. Beside the hit rate stands that of always naming the commonest
winner. There is no bar: the table is printed whatever comes out.

The rule of the hint and everything below were written down before any of these studies was run. The rule was looked at on digits8,
breast-cancer, breast-cancer-rare, wine and on generated tables, which are not counted here. One of its numbers, the difference that a study
can see (0.42 over the root of the rare rows), is the one that every study prints: a median width over real tables, some of them these; it
holds no winner.

    python benchmarks/hints.py
    python benchmarks/hints.py --sets pima,abalone --out runs/hints   # goes on where it was
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _null_studies import chosen_rows, run_many
from scipy.stats import binomtest

import counterpoise
from counterpoise._stats import wilson
from counterpoise.datasets import load
from counterpoise.studies._recommendation import NEVER_RECOMMENDED, Recommendation
from counterpoise.studies._remedies import BUILT_IN

# Every named table, but: the sets that the rule was looked at; second tables of a source; smtp (four positives would be left of it at
# MOST_ROWS); nsl-kdd and the 16 classes of cic-ids2017-sample (softmax fits on a hundred columns would take longer than all others).
CLASSIFICATION = (
    "mammography", "oil-spill", "phoneme", "pima", "haberman", "ecoli", "glass", "new-thyroid", "german-credit", "campaign", "cardio",
    "landsat", "letter", "musk", "pendigits", "thyroid", "vowels", "adult", "compas", "creditcard-fraud-sample", "french-motor/freMPL1",
    "sms-spam", "cic-ids2017-sample/binary", "iotid20-sample", "mfeat/mor",
)  # fmt: skip
REGRESSION = ("abalone", "wine-red", "california-housing", "energy", "diabetes")
SETS = (*CLASSIFICATION, *REGRESSION)
FEWEST_SETS = 12

MOST_ROWS = 12_000  # larger tables: a sample of so many rows, stratified by class, seed 0
LEARNER = "linear"  # what the diagnosis measures
ARMS = ("prior", "weights", "likelihood", "over", "under", "smote", "smoter")  # where they apply; the baseline is always there
REPEATS, FOLDS, SEED = 3, 5, 0
# Weights and resampling move probabilities by design; whoever wants decisions accepts that, and otherwise hardly any arm could ever win.
ACCEPT_WORSE = ("probabilities",)
NOTHING = "nothing"
STAGES = {remedy.name: remedy.stage for remedy in BUILT_IN}


def one(name: str, out: str, **protocol: Any) -> dict[str, Any]:
    """The hint and the winner of one set."""
    data = load(name)
    frame = data.frame
    if frame.height > protocol["rows"]:
        frame = frame[chosen_rows(data, protocol["rows"], protocol["seed"]).tolist()]
    regression = data.task == "regression"
    study = counterpoise.study(
        frame,
        target=data.target,
        positive=data.positive,
        task="regression" if regression else "classification",
        text=data.text,
        keep=[column for column in frame.columns if column not in data.text],
        learners=[protocol["learner"]],
        remedies=list(protocol["arms"]),
        folds=protocol["folds"],
        repeats=protocol["repeats"],
        seed=protocol["seed"],
        merge_rare=not regression,
        placebo=False,
        accept_worse=[] if regression else list(protocol["accept_worse"]),
        jobs=1,
        out=Path(out) / name.replace("/", "-"),
        resume=True,
    )
    hint = study.diagnosis.stage_hint
    chosen = study.recommendation
    seen = chosen.verdict or next((verdict for verdict in study.verdicts() if verdict.arm not in NEVER_RECOMMENDED), None)
    study._accept_worse = ()
    return {
        "task_kind": study.problem.task,
        "rows": study.problem.n,
        "rarest": None if regression else int(study.problem.counts.min()),
        "hint": hint.stage,
        "factor": hint.factor,
        "reason": hint.reason,
        "winner": chosen.arm if not chosen.is_baseline else NOTHING,
        "stage": stage_of(chosen),
        "stage_by_default": stage_of(study._choose()),
        "metric": study.metrics[study.protocol.primary],
        "holdout": chosen.holdout.outcome if chosen.holdout is not None and not chosen.is_baseline else None,
        "shown": None if seen is None else [seen.arm, seen.estimate, seen.low, seen.high, seen.verdict],
        "verdicts": [[v.arm, v.estimate, v.low, v.high, v.verdict] for v in study.verdicts()],
        "failed": [list(row) for row in study.failed],
    }


def stage_of(chosen: Recommendation) -> str:
    return NOTHING if chosen.is_baseline else STAGES[chosen.arm]


def commonest(stages: Sequence[str]) -> str:
    """The commonest stage; of equally common ones "nothing", else the first of the alphabet."""
    count = Counter(stages)
    return min(count, key=lambda stage: (-count[stage], stage != NOTHING, stage))


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| set | rows | rarest class | hint (factor) | winner | its stage | best arm against the baseline | hit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        hint = row["hint"] + (f" ({row['factor']})" if row["factor"] else "")
        rarest = "-" if row["rarest"] is None else f"{row['rarest']:,}"
        shown = "-"
        if row["shown"] is not None:
            arm, estimate, low, high, verdict = row["shown"]
            digits = 3 if max(abs(low), abs(high)) < 10 else 0
            shown = f"{arm} {estimate:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}] {verdict}"
        hit = "yes" if row["hint"] == row["stage"] else "no"
        name = row["task"]["name"]
        lines.append(f"| {name} | {row['rows']:,} | {rarest} | {hint} | {row['winner']} | {row['stage']} | {shown} | {hit} |")
    return "\n".join(lines)


def rates(hinted: Sequence[str], stages: Sequence[str]) -> str:
    """Hit rates with Wilson intervals, and what the hints say where a remedy won."""
    n = len(stages)
    usual = commonest(stages)
    left_out = [commonest([*stages[:i], *stages[i + 1 :]]) for i in range(n)] if n > 1 else [usual]
    lines = ["| named stage | hits | rate | 95 % interval |", "|---|---|---|---|"]
    for what, said in (
        ("the hint", hinted),
        (f"always {usual!r}, the commonest winner", [usual] * n),
        ("the commonest winner of the other sets", left_out),
    ):
        hits = sum(a == b for a, b in zip(said, stages, strict=True))
        low, high = wilson(hits, n)
        lines.append(f"| {what} | {hits} of {n} | {hits / n:.2f} | {float(low):.2f} to {float(high):.2f} |")
    only_hint = sum(h == s != u for h, s, u in zip(hinted, stages, left_out, strict=True))
    only_usual = sum(u == s != h for h, s, u in zip(hinted, stages, left_out, strict=True))
    p = binomtest(only_hint, only_hint + only_usual).pvalue if only_hint + only_usual else 1.0
    treated = [(h, s) for h, s in zip(hinted, stages, strict=True) if s != NOTHING]
    pointed = [(h, s) for h, s in zip(hinted, stages, strict=True) if h != NOTHING]
    pairs = ", ".join(f"{hint} -> {stage} {count}" for (hint, stage), count in Counter(zip(hinted, stages, strict=True)).most_common())
    lines += [
        "",
        f"Only the hint is right in {only_hint} sets, only the commonest winner of the others in {only_usual} (sign test p = {p:.2f}). "
        f"A remedy won in {len(treated)}: there the hint named its stage in {sum(h == s for h, s in treated)}. "
        f"The hint named a stage in {len(pointed)}: it won in {sum(h == s for h, s in pointed)}. Hint -> winner: {pairs}.",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", help="comma-separated; default all")
    parser.add_argument("--out", default="runs/hints", help="folder of the studies, which go on where they were")
    parser.add_argument(
        "--results", default=str(Path(__file__).parent / "results" / "hints.jsonl"), help="raw rows; sets in it are not run again"
    )
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--jobs", type=int, default=1, help="studies at a time")
    options = parser.parse_args()
    protocol = {
        "rows": MOST_ROWS, "learner": LEARNER, "arms": list(ARMS), "repeats": options.repeats, "folds": FOLDS, "seed": SEED,
        "accept_worse": list(ACCEPT_WORSE),
    }  # fmt: skip
    names = options.sets.split(",") if options.sets else SETS
    tasks = [{"name": name, "out": options.out} | protocol for name in names]
    found = {row["task"]["name"]: row for row in run_many(one, tasks, Path(options.results), options.jobs)}
    rows = [found[name] for name in names]
    hinted = [row["hint"] for row in rows]
    print(f"{len(rows)} sets, {LEARNER}, {options.repeats} repeats, {sum(row['seconds'] for row in rows) / 60:.0f} min\n\n{table(rows)}\n")
    print(rates(hinted, [row["stage"] for row in rows]))
    print("\nThe same, had arms that harm probabilities not been accepted:\n")
    print(rates(hinted, [row["stage_by_default"] for row in rows]))
    if failed := [f"{row['task']['name']}: {failure}" for row in rows for failure in row["failed"]]:
        print("\nArms that failed: " + "; ".join(failed))
    if len(rows) < FEWEST_SETS:
        print(f"\nToo few sets to say anything: {len(rows)} < {FEWEST_SETS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
