"""What AnyLoss costs.

Forward and backward at B = 4,096 against ``torch.nn.BCEWithLogitsLoss``, eagerly and (with a C++ compiler) under ``torch.compile``; peak
memory per row in fresh processes; and whole training steps of the study's perceptron, skorch and optimizer included, against the same steps
with cross-entropy. One thread; ours and the peer alternate in blocks, and the ratio of each pair of neighboring blocks is taken;
for the steps, the median over fresh processes of that ratio.

    python benchmarks/anyloss.py
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _ending import finish

LOSS_BAR = 3.0  # forward and backward over those of BCEWithLogitsLoss, median
STEP_BAR = 1.05  # training step over that with cross-entropy, median
MEMORY_BAR = 1.15  # bytes per row of the largest batch over those of the smallest: memory grows as the batch does

ROWS = 4096
METRICS = ("f1", "balanced_accuracy", "gmean", "mcc")
MEMORY_ROWS = (2**20, 2**22, 2**24)
BLOCKS, CALLS = 60, 200
FITS, STEPS = 7, 400
PROCESSES = 9  # the ratio of steps differs by 3 % from process to process, however long each runs


def alternate(peer: Callable[[], Any], ours: Callable[[], Any], blocks: int, calls: int) -> tuple[float, float, float]:
    """Median seconds per call of the peer, of ours, and the median of the ratios of neighboring blocks."""
    spent: list[list[float]] = [[], []]
    for block in range(blocks + 1):
        for which, call in enumerate((peer, ours)):
            began = time.perf_counter()
            for _ in range(calls):
                call()
            if block:  # the first one warms up
                spent[which].append((time.perf_counter() - began) / calls)
    theirs, mine = np.asarray(spent)
    return float(np.median(theirs)), float(np.median(mine)), float(np.median(mine / theirs))


def forward_and_backward(loss: Any, rows: int) -> Callable[[], None]:
    import torch

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, generator=generator).requires_grad_()
    targets = (torch.rand(rows, generator=generator) < 0.1).float()

    def call() -> None:
        loss(logits, targets).backward()
        logits.grad = None

    return call


def compare_losses(blocks: int, calls: int) -> tuple[list[dict[str, Any]], list[str]]:
    import torch
    from torch import nn

    from counterpoise.losses import AnyLoss

    kinds: dict[str, Callable[[nn.Module], Any]] = {"eager": lambda loss: loss}
    if shutil.which("g++") or shutil.which("clang++"):
        kinds["compiled"] = torch.compile
    found, missed = [], []
    print(f"| forward and backward, B = {ROWS:,} | BCEWithLogitsLoss, µs | AnyLoss, µs | ratio |\n|---|---|---|---|")
    for kind, prepare in kinds.items():
        peer = forward_and_backward(prepare(nn.BCEWithLogitsLoss()), ROWS)
        for metric in METRICS:
            theirs, ours, ratio = alternate(peer, forward_and_backward(prepare(AnyLoss(metric)), ROWS), blocks, calls)
            found.append({"part": "loss", "kind": kind, "metric": metric, "peer": theirs, "ours": ours, "ratio": ratio})
            print(f"| {metric}, {kind} | {1e6 * theirs:.1f} | {1e6 * ours:.1f} | {ratio:.2f} |", flush=True)
            if ratio > LOSS_BAR:
                missed.append(f"{metric}, {kind}: {ratio:.2f} of BCEWithLogitsLoss > {LOSS_BAR}")
    return found, missed


def run_memory(which: str, rows: int) -> dict[str, Any]:
    """Peak bytes above what stood before the first call."""
    from torch import nn

    from counterpoise.losses import AnyLoss

    loss = AnyLoss("f1") if which == "ours" else nn.BCEWithLogitsLoss()
    forward_and_backward(loss, 64)()
    call = forward_and_backward(loss, rows)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = kilobytes("VmRSS")
    call()
    return {"bytes": 1024 * (kilobytes("VmHWM") - before)}


def kilobytes(name: str) -> int:
    """A line of this process's status (Linux)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def compare_memory(sizes: tuple[int, ...]) -> tuple[list[dict[str, Any]], list[str]]:
    found = []
    print("\n| peak memory, bytes per row | BCEWithLogitsLoss | AnyLoss |\n|---|---|---|")
    for rows in sizes:
        for which in ("peer", "ours"):
            command = [sys.executable, __file__, "--memory", which, str(rows)]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            found.append({"part": "memory", "which": which, "rows": rows, "per_row": json.loads(done.stdout)["bytes"] / rows})
        print(f"| B = {rows:,} | {found[-2]['per_row']:.1f} | {found[-1]['per_row']:.1f} |", flush=True)
    growth = found[-1]["per_row"] / found[1]["per_row"]
    return found, [f"memory per row grows by {growth:.2f} > {MEMORY_BAR}"] if growth > MEMORY_BAR else []


def run_steps(fits: int, steps: int) -> dict[str, float]:
    from counterpoise.engines import MLPClassifier
    from counterpoise.losses import AnyLoss

    rng = np.random.default_rng(0)
    X = rng.normal(size=(10_000, 20)).astype(np.float32)
    y = (X[:, 0] + rng.normal(size=len(X)) > 1.8).astype(np.int64)
    plain = MLPClassifier(max_steps=steps, random_state=0)
    any_f1 = MLPClassifier(max_steps=steps, loss=AnyLoss("f1"), random_state=0)
    theirs, ours, ratio = alternate(lambda: plain.fit(X, y), lambda: any_f1.fit(X, y), fits, 1)
    return {"peer": theirs / steps, "ours": ours / steps, "ratio": ratio}


def compare_steps(processes: int, fits: int, steps: int) -> tuple[list[dict[str, Any]], list[str]]:
    command = [sys.executable, __file__, "--steps-here", "--fits", str(fits), "--steps", str(steps)]
    found = []
    for _ in range(processes):
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        found.append({"part": "step"} | json.loads(done.stdout))
    theirs, ours, ratio = (float(np.median([row[key] for row in found])) for key in ("peer", "ours", "ratio"))
    ratios = sorted(row["ratio"] for row in found)
    print("\n| training step of the perceptron, B = 256 | cross-entropy, µs | AnyLoss, µs | ratio |\n|---|---|---|---|")
    spread = f"median of {processes} processes: {ratio:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
    print(f"| 2 x 64, Adam | {1e6 * theirs:.1f} | {1e6 * ours:.1f} | {spread} |")
    return found, [f"training step: {ratio:.3f} of that with cross-entropy > {STEP_BAR}"] if ratio > STEP_BAR else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--fits", type=int, default=FITS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--steps-here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    if options.memory:
        print(json.dumps(run_memory(options.memory[0], int(options.memory[1]))))
        return 0
    if options.steps_here:
        print(json.dumps(run_steps(options.fits, options.steps)))
        return 0
    found: list[dict[str, Any]] = []
    missed: list[str] = []
    for rows, wrong in (
        compare_losses(options.blocks, options.calls),
        compare_memory(MEMORY_ROWS),
        compare_steps(options.processes, options.fits, options.steps),
    ):
        found += rows
        missed += wrong
    return finish("anyloss", found, missed)


if __name__ == "__main__":
    sys.exit(main())
