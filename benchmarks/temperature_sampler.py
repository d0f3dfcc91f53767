"""What drawing domains at a temperature costs: indices against torch's WeightedRandomSampler, the only peer that draws single examples.

An epoch of 1,000,000 indices out of 10,000,000 examples in 50 domains (sizes as 1 / rank, in a random order), tau 5, made as arrays, and
iterated to the end as a loader does, alternating in one process. Memory: what the sampler keeps once an epoch was iterated, against the
weights that the peer is given; in a random order, and in the order of their domains, as data sets put together are.

    python benchmarks/temperature_sampler.py
"""

from __future__ import annotations

import argparse
import collections
import gc
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _ending import finish
from torch.utils.data import WeightedRandomSampler

from counterpoise.data import TemperatureSampler, temperature_probabilities

GENERATED = 20.0  # bar: time of torch's over ours, median of the runs
MEMORY = 5.0  # bar: MB that ours keeps of examples in the order of their domains

EXAMPLES, DOMAINS, INDICES, TAU = 10_000_000, 50, 1_000_000, 5.0


def domains_of(examples: int, shuffled: bool = True) -> np.ndarray:
    share = 1 / np.arange(1, DOMAINS + 1)
    sizes = np.maximum(1, (examples * share / share.sum()).astype(np.int64))
    sizes[0] += examples - sizes.sum()
    domains = np.repeat(np.arange(DOMAINS), sizes)
    return np.random.default_rng(0).permutation(domains) if shuffled else domains


def ours(domains: np.ndarray, indices: int) -> TemperatureSampler:
    return TemperatureSampler(domains, TAU, num_samples=indices, generator=0)


def peer(domains: np.ndarray, indices: int) -> WeightedRandomSampler:
    sizes = np.bincount(domains)
    weights = (temperature_probabilities(sizes, TAU).numpy() / sizes)[domains]
    return WeightedRandomSampler(torch.from_numpy(weights), indices, generator=torch.Generator().manual_seed(0))


# -- time ---------------------------------------------------------------------------------------------------------------------------------


def seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def compare_time(runs: int, examples: int, indices: int) -> tuple[list[dict[str, Any]], list[str]]:
    torch.set_num_threads(1)
    domains = domains_of(examples)
    made: dict[str, Any] = {}

    def generate_ours() -> None:
        assert sum(map(len, made["ours"]._stream(0, 0, indices))) == indices

    def generate_peer() -> None:
        sampler = made["peer"]
        assert len(torch.multinomial(sampler.weights, indices, True, generator=sampler.generator)) == indices

    calls: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "constructed": (
            lambda: made.update(ours=ours(domains, indices)),
            lambda: made.update(peer=peer(domains, indices)),
        ),
        "generated": (generate_ours, generate_peer),
        "iterated": (lambda: collections.deque(made["ours"], maxlen=0), lambda: collections.deque(made["peer"], maxlen=0)),
    }
    for pair in calls.values():  # once without a clock: imports, first touches of memory
        for call in pair:
            call()
    found = [
        {"part": "time", "run": run, "examples": examples, "what": what, "ours": seconds(mine), "peer": seconds(other)}
        for run in range(runs)
        for what, (mine, other) in calls.items()
    ]
    print(f"\n{indices:,} indices of {examples:,} examples in {DOMAINS} domains; median of {runs} runs\n")
    print("| | ours, ms | WeightedRandomSampler, ms | WeightedRandomSampler / ours, runs | median |\n|---|---|---|---|---|")
    missed = []
    for what, bar in (("generated", GENERATED), ("iterated", None), ("constructed", None)):
        own = [row for row in found if row["what"] == what]
        ratios = [row["peer"] / row["ours"] for row in own]
        mine, other = (1000 * float(np.median([row[who] for row in own])) for who in ("ours", "peer"))
        print(f"| {what} | {mine:.1f} | {other:.1f} | {', '.join(f'{ratio:.2f}' for ratio in ratios)} | {np.median(ratios):.2f} |")
        if bar is not None and np.median(ratios) < bar:
            missed.append(f"indices {what}: {np.median(ratios):.2f} times as fast < {bar:g}")
    return found, missed


# -- memory -------------------------------------------------------------------------------------------------------------------------------


def kept(domains: np.ndarray, indices: int) -> float:
    """MB that our sampler keeps after an epoch. NumPy tells tracemalloc of its arrays."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    sampler = ours(domains, indices)
    assert sum(1 for _ in sampler) == indices
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return (after - before) / 1e6


def compare_memory(examples: int, indices: int) -> tuple[list[dict[str, Any]], list[str]]:
    found = []
    kept(domains_of(1000), 10)  # imports, which are not the sampler's
    print(f"\nMB kept for {examples:,} examples\n\n| examples | ours | weights of WeightedRandomSampler |\n|---|---|---|")
    for order in ("shuffled", "ordered"):
        domains = domains_of(examples, shuffled=order == "shuffled")
        mine, other = kept(domains, indices), peer(domains, 1).weights.nbytes / 1e6
        found.append({"part": "memory", "examples": examples, "order": order, "ours": mine, "peer": other})
        print(f"| {order} | {mine:.1f} | {other:.1f} |")
    print()
    return found, [f"memory: {mine:.1f} MB kept of examples in the order of their domains > {MEMORY:g}"] if mine > MEMORY else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("time", "memory", "both"), default="both")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--examples", type=int, default=EXAMPLES)
    parser.add_argument("--indices", type=int, default=INDICES)
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    missed: list[str] = []
    if options.part in ("time", "both"):
        found, missed = compare_time(options.runs, options.examples, options.indices)
    if options.part in ("memory", "both"):
        rows, wrong = compare_memory(options.examples, options.indices)
        found, missed = found + rows, missed + wrong
    return finish("temperature_sampler", found, missed)


if __name__ == "__main__":
    sys.exit(main())
