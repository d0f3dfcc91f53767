"""Opposing groups: are planted pairs found, and what does recording cost?

Planted: 1,000 digits, a bright patch on 15 examples of each of two classes (the variant of the replication ``opposing-signals``, on seeds
of its own). 30 examples are looked at: those that ``opposing_groups`` names, from a trajectory of full-batch training at lr = 2 / sharpness
and from the gradients after a short warm-up, against the 30 with the smallest area under the margin and the 30 with the largest gradient
norm (after the warm-up, and at the end). Overhead: CPU time of an epoch of a small CNN over 50,000 images that calls
``LossTrajectory.measure`` on a probe of 2,000 every 25 steps, over that of the same epoch without, in turn; one thread. A recording costs a
forward pass of the probe, so the share depends on the batch: the bar is for batches of 512, two smaller ones are shown.

    python benchmarks/opposing_signals.py
    python benchmarks/opposing_signals.py --part overhead --device cuda      # a ResNet-18 and images of 3 x 32 x 32
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from _device import CPU, add_device, announce, clock, machine, met
from _ending import finish
from _networks import resnet

RECALL_BAR = 0.8  # of the 30 planted examples among 30, mean over seeds; and above either ranking
OVERHEAD_BAR = 0.08  # of the CPU time of an epoch, median of the runs, batches of BATCHES[-1]

SEEDS = tuple(range(20, 30))
EXAMPLES, PROBE, EVERY = 50_000, 2000, 25
BATCHES = (128, 256, 512)
RUNS = 3
OURS, RANKINGS = ("trajectory", "gradients"), ("margin", "norm, early", "norm, late")


def compare_rankings(seeds: tuple[int, ...], quick: bool) -> tuple[list[dict[str, Any]], list[str]]:
    from counterpoise.replications.opposing_signals import planted

    found = []
    for seed in seeds:
        row = planted(seed, 1.0, quick)
        found.append({"part": "planted", "seed": seed, "recall": row["recall"], "ratios": row["ratios"]})
        print(f"  seed {seed}: " + ", ".join(f"{name} {value:.2f}" for name, value in row["recall"].items()), flush=True)
    mean = {name: float(np.mean([row["recall"][name] for row in found])) for name in (*OURS, *RANKINGS)}
    print("\n| chosen by | recall of 30 planted among 30, by seed | mean |\n|---|---|---|")
    words = {"trajectory": "opposing_groups, trajectory", "gradients": "opposing_groups, gradients", "margin": "area under the margin"}
    for name, value in mean.items():
        each = ", ".join(f"{row['recall'][name]:.2f}" for row in found)
        print(f"| {words.get(name, f'gradient {name}')} | {each} | {value:.2f} |")
    print()
    best = max(RANKINGS, key=lambda name: mean[name])
    missed = [f"{name}: recall {mean[name]:.2f} < {RECALL_BAR}" for name in OURS if mean[name] < RECALL_BAR]
    missed += [f"{name}: recall {mean[name]:.2f}, {best} {mean[best]:.2f}" for name in OURS if mean[name] <= mean[best]]
    return found, missed


def cnn() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def epoch(images: Any, labels: Any, probe: Any, batch: int, recording: bool, device: str) -> tuple[float, int]:
    """(CPU seconds, recordings) of one epoch of the same training."""
    import torch
    from torch import nn

    from counterpoise.diagnostics import LossTrajectory

    torch.manual_seed(0)
    model = (cnn if device == CPU else resnet)().to(device)
    now = clock(device, time.process_time)
    loss = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    trajectory = LossTrajectory()
    began = now()
    for step, rows in enumerate(torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).split(batch)):
        if recording and step % EVERY == 0:
            trajectory.measure(model, loss, probe, step, lr=0.05)
        optimizer.zero_grad()
        loss(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    return now() - began, len(trajectory)


def compare_epochs(runs: int, examples: int, device: str) -> tuple[list[dict[str, Any]], list[str]]:
    import torch

    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    size = (1, 16, 16) if device == CPU else (3, 32, 32)
    images, labels = torch.randn(examples, *size, generator=g).to(device), torch.randint(0, 10, (examples,), generator=g).to(device)
    probe = (images[:PROBE].clone(), labels[:PROBE].clone())
    epoch(images[:2048], labels[:2048], probe, BATCHES[-1], True, device)  # warms up
    found = []
    announce(device)
    unit = "s of CPU" if device == CPU else "s"
    print(f"| batch | epoch, {unit} | with recording | recordings | overhead, runs | median |\n|---|---|---|---|---|---|")
    for batch in BATCHES:
        for run in range(runs):
            plain, _ = epoch(images, labels, probe, batch, False, device)
            with_it, count = epoch(images, labels, probe, batch, True, device)
            row = {"part": "overhead", "batch": batch, "run": run, "plain": plain, "recording": with_it, "recordings": count}
            found.append(row | machine(device))
        own = [row for row in found if row["batch"] == batch]
        over = [row["recording"] / row["plain"] - 1 for row in own]
        plain, with_it = (float(np.median([row[key] for row in own])) for key in ("plain", "recording"))
        each = ", ".join(f"{value:.1%}" for value in over)
        print(f"| {batch} | {plain:.1f} | {with_it:.1f} | {own[0]['recordings']} | {each} | {np.median(over):.1%} |", flush=True)
    print()
    judged = float(np.median([row["recording"] / row["plain"] - 1 for row in found if row["batch"] == BATCHES[-1]]))
    missed = judged > OVERHEAD_BAR and device == CPU
    return found, [f"overhead {judged:.1%} > {OVERHEAD_BAR:.0%} at batches of {BATCHES[-1]}"] if missed else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("planted", "overhead", "both"), default="both")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--examples", type=int, default=EXAMPLES)
    add_device(parser)
    parser.add_argument("--quick", action="store_true", help="short training, for a smoke test: its recall does not count")
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    missed: list[str] = []
    for part, compare in (
        ("planted", lambda: compare_rankings(SEEDS[: options.seeds], options.quick)),
        ("overhead", lambda: compare_epochs(options.runs, options.examples, options.device)),
    ):
        if options.part in (part, "both"):
            rows, wrong = compare()
            found += rows
            missed += wrong
    return finish("opposing_signals", found, missed, met(options.device))


if __name__ == "__main__":
    sys.exit(main())
