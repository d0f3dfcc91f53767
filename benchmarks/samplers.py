"""What balanced drawing costs: indices against torch's WeightedRandomSampler, memory against imbalanced-learn's RandomOverSampler.

Time: one epoch of 1,000,000 balanced indices out of 1,000,000 examples in 1,000 classes (frequencies as 1 / rank), made as arrays, and
iterated to the end as a loader does; alternating in one process. Memory: growth of the peak resident set over that of a process which
holds the table (100,000 rows x 1,000 float32, ten classes, five of them 100 times rarer) and has everything imported, while all classes
are drawn as often as the largest; every run is a fresh process.

    python benchmarks/samplers.py
    python benchmarks/samplers.py --part time
"""

from __future__ import annotations

import argparse
import collections
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from _ending import finish

GENERATED, ITERATED = 3.0, 2.0  # bars: time of torch's over ours, median of the runs
MEMORY = 10.0  # bar: growth of imbalanced-learn's over ours, median of the runs

EXAMPLES, CLASSES = 1_000_000, 1_000
ROWS, COLUMNS, RATIO = 100_000, 1_000, 100
FLOOR = 1.0  # MB: smaller growth counts as this much


# -- time ---------------------------------------------------------------------------------------------------------------------------------


def seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def compare_time(runs: int, examples: int) -> tuple[list[dict[str, Any]], list[str]]:
    import torch
    from torch.utils.data import WeightedRandomSampler

    from counterpoise.data import BalancedClassSampler

    torch.set_num_threads(1)
    frequency = 1 / np.arange(1, CLASSES + 1)
    y = np.random.default_rng(0).choice(CLASSES, examples, p=frequency / frequency.sum())
    y[:CLASSES] = np.arange(CLASSES)
    made: dict[str, Any] = {}

    def make_ours() -> None:
        made["ours"] = BalancedClassSampler(y, generator=0)

    def make_peer() -> None:
        weights = torch.from_numpy(1 / np.bincount(y)[y])
        made["peer"] = WeightedRandomSampler(weights, examples, generator=torch.Generator().manual_seed(0))

    def generate_ours() -> None:
        assert len(np.concatenate(list(made["ours"]._stream(0, 0, examples)))) == examples

    def generate_peer() -> None:
        sampler = made["peer"]
        assert len(torch.multinomial(sampler.weights, examples, True, generator=sampler.generator)) == examples

    calls = {
        "constructed": (make_ours, make_peer),
        "generated": (generate_ours, generate_peer),
        "iterated": (lambda: collections.deque(made["ours"], maxlen=0), lambda: collections.deque(made["peer"], maxlen=0)),
    }
    for pair in calls.values():  # once without a clock: imports, first touches of memory
        for call in pair:
            call()
    found = [
        {"part": "time", "run": run, "examples": examples, "what": what, "ours": seconds(ours), "peer": seconds(peer)}
        for run in range(runs)
        for what, (ours, peer) in calls.items()
    ]
    print(f"\n{examples:,} examples, {CLASSES:,} classes, one epoch; median of {runs} runs\n")
    print("| | ours, ms | WeightedRandomSampler, ms | WeightedRandomSampler / ours, runs | median |\n|---|---|---|---|---|")
    missed = []
    for what, bar in (("generated", GENERATED), ("iterated", ITERATED), ("constructed", None)):
        own = [row for row in found if row["what"] == what]
        ratios = [row["peer"] / row["ours"] for row in own]
        ours, peer = (1000 * float(np.median([row[who] for row in own])) for who in ("ours", "peer"))
        print(f"| {what} | {ours:.1f} | {peer:.1f} | {', '.join(f'{ratio:.2f}' for ratio in ratios)} | {np.median(ratios):.2f} |")
        if bar is not None and np.median(ratios) < bar:
            missed.append(f"indices {what}: {np.median(ratios):.2f} times as fast < {bar:g}")
    return found, missed


# -- memory -------------------------------------------------------------------------------------------------------------------------------


def peak() -> float:
    """MB, the most this process has held so far."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6


def run_one(who: str, rows: int) -> dict[str, float]:
    from counterpoise.data import BalancedClassSampler, RandomOverSampler

    common = round(rows / 5 / (1 + 1 / RATIO))
    y = np.repeat(np.arange(10), [common] * 5 + [max(1, round(common / RATIO))] * 5)
    X = np.random.default_rng(0).standard_normal((len(y), COLUMNS), dtype=np.float32)
    before = peak()
    if who == "ours":
        drawn = sum(1 for _ in BalancedClassSampler(y, num_samples=10 * common, generator=0))
    else:
        drawn = len(RandomOverSampler(random_state=0).fit_resample(X, y)[0])
    assert drawn == 10 * common
    return {"before": before, "peak": peak(), "growth": peak() - before}


def compare_memory(runs: int, rows: int) -> tuple[list[dict[str, Any]], list[str]]:
    found = []
    for run in range(runs):
        for who in ("ours", "peer"):
            command = [sys.executable, __file__, "--one", who, "--rows", str(rows)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            found.append({"part": "memory", "run": run, "rows": rows, "who": who} | json.loads(done.stdout.splitlines()[-1]))
    own, others = ([row["growth"] for row in found if row["who"] == who] for who in ("ours", "peer"))
    ratios = [other / max(growth, FLOOR) for growth, other in zip(own, others, strict=True)]
    print(f"\n{rows:,} rows x {COLUMNS:,} float32, five of ten classes {RATIO} times rarer; growth of the peak in MB\n")
    print("| ours | RandomOverSampler | table and imports alone | RandomOverSampler / ours, runs | median |\n|---|---|---|---|---|")
    print(
        f"| {np.median(own):.1f} | {np.median(others):.1f} | {np.median([row['before'] for row in found]):.1f} "
        f"| {', '.join(f'{ratio:.0f}' for ratio in ratios)} | {np.median(ratios):.0f} |\n"
    )
    return found, [f"memory: {np.median(ratios):.1f} times less < {MEMORY:g}"] if np.median(ratios) < MEMORY else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("time", "memory", "both"), default="both")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--examples", type=int, default=EXAMPLES)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--one", choices=("ours", "peer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(options.one, options.rows)))
        return 0
    found: list[dict[str, Any]] = []
    missed: list[str] = []
    for part, compare, size in (("time", compare_time, options.examples), ("memory", compare_memory, options.rows)):
        if options.part in (part, "both"):
            rows, wrong = compare(options.runs, size)
            found += rows
            missed += wrong
    return finish("samplers", found, missed)


if __name__ == "__main__":
    sys.exit(main())
