"""What ConR costs, against the function its authors published.

Loss and gradient by the features, float32, one thread: ``ConRLoss`` with the paper's denominator and with the published one, and the
function of the authors' code for ages. One call of each in turn, CPU time. Then values and gradients are compared in float64, and
batches are tried on which the published function gives NaN. It sets its temperature to 0.07 itself, whatever it is called with.

    git clone https://github.com/BorealisAI/ConR peers/ConR
    python benchmarks/conr.py --peer peers/ConR
    python benchmarks/conr.py --peer peers/ConR --device cuda      # 8,192 rows, too
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _device import CPU, add_device, announce, clock, machine, met, ms_of
from _ending import finish
from torch import Tensor

from counterpoise.losses import ConRLoss

TIMES_AS_FAST = 1.5  # bar: time of the published function over ours, both denominators, median of the runs, at the first size
AGREE = 1e-10  # bar: relative difference of the loss in float64; of the gradient a hundred times that

SIZES = ((512, 128), (128, 128), (2048, 128))  # rows, features
GPU_SIZES = (*SIZES, (8192, 128))
WINDOW, TEMPERATURE, PUSH = 1.0, 0.07, 0.01
CLONE = Path("peers") / "ConR"
PEER, PAPER, REFERENCE = "published", "ours, paper", "ours, reference"

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def published(clone: Path) -> Callable[..., Tensor]:
    """The authors' function for ages."""
    spec = importlib.util.spec_from_file_location("conr_published", clone / "agedb-dir" / "loss.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ConR  # type: ignore[no-any-return]


def calls(clone: Path) -> dict[str, Callable[[Batch], Tensor]]:
    peer = published(clone)
    paper, reference = (ConRLoss(WINDOW, TEMPERATURE, PUSH, denominator=name) for name in ("paper", "reference"))
    return {
        PEER: lambda batch: peer(*batch[:3], w=WINDOW, weights=batch[3], e=PUSH),
        PAPER: lambda batch: paper(*batch),
        REFERENCE: lambda batch: reference(*batch),
    }


def batch_of(rows: int, width: int, seed: int, device: str, dtype: torch.dtype = torch.float32) -> Batch:
    """Two views of half as many people from 0 to 100 years, as the loss gets them in training."""
    source = torch.Generator().manual_seed(seed)
    ages = torch.randint(0, 101, (rows // 2, 1), generator=source).repeat(2, 1).to(dtype)
    predicted = ages + 5 * torch.randn(rows, 1, generator=source).to(dtype)
    weights = (0.5 + torch.rand(rows // 2, 1, generator=source)).repeat(2, 1).to(dtype)
    features = torch.randn(rows, width, generator=source).to(device, dtype).requires_grad_()
    return features, ages.to(device), predicted.to(device), weights.to(device)


def step(call: Callable[[Batch], Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
    loss = call(batch)
    return loss.detach(), torch.autograd.grad(loss, batch[0])[0]


def measure(run: int, rows: int, width: int, repeats: int, clone: Path, device: str) -> dict[str, Any]:
    """Median seconds of CPU of each call."""
    batch, every = batch_of(rows, width, run, device), calls(clone)
    now = clock(device, time.process_time)
    names = list(every)
    spent: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats + 2):
        for name in np.roll(names, turn):  # none is always the first
            began = now()
            step(every[name], batch)
            if turn >= 2:  # the first ones warm up
                spent[name].append(now() - began)
    seconds = {name: float(np.median(times)) for name, times in spent.items()}
    return {"run": run, "rows": rows, "width": width, "seconds": seconds} | machine(device)


def compare(clone: Path, device: str) -> tuple[float, float]:
    """Largest relative difference of loss and gradient in float64."""
    losses, gradients = [], []
    for seed, (rows, width) in enumerate(SIZES[:2]):
        batch, every = batch_of(rows, width, seed, device, torch.float64), calls(clone)
        (theirs, by_theirs), (ours, by_ours) = (step(every[name], batch) for name in (PEER, REFERENCE))
        losses.append(float((ours - theirs).abs() / theirs.abs()))
        gradients.append(float((by_ours - by_theirs).norm() / by_theirs.norm()))
    return max(losses), max(gradients)


def finite_where_published_is_not(clone: Path, device: str) -> dict[str, dict[str, bool]]:
    """Batches with an anchor that has negatives and no positive, once alone and once among others."""
    features, ages, predicted, weights = batch_of(64, 16, 0, device)
    alone = torch.arange(64.0, device=device)[:, None] * 5
    one = ages.clone()
    one[0] = 300.0
    batches = {
        "no anchor has a positive": (features, alone, torch.zeros_like(alone), weights),
        "one anchor has no positive": (features, one, predicted[[1, *range(1, 64)]], weights),
    }
    found = {}
    for kind, batch in batches.items():
        found[kind] = {name: all(bool(torch.isfinite(part).all()) for part in step(call, batch)) for name, call in calls(clone).items()}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, default=CLONE, help=f"clone of the authors' repository; default {CLONE}")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=40, help="calls of each in a run, at the first size")
    add_device(parser)
    options = parser.parse_args()
    if not (options.peer / "agedb-dir" / "loss.py").is_file():
        parser.error(f"{options.peer} is no clone of https://github.com/BorealisAI/ConR; name one with --peer")
    torch.set_num_threads(1)
    device = options.device
    announce(device)
    sizes = SIZES if device == CPU else GPU_SIZES
    rows = []
    for run in range(options.runs):
        for size in sizes:
            repeats = options.repeats if size[0] <= SIZES[0][0] else max(3, options.repeats // 8)
            rows.append(measure(run, *size, repeats, options.peer, device))
        print(f"  run {run + 1} of {options.runs}", flush=True)
    missed = []
    print(f"\n| rows | arm | {ms_of(device)}, median | published over it, runs | median |\n|---|---|---|---|---|")
    for n, width in sizes:
        own = [row for row in rows if row["rows"] == n]
        for name in (PEER, PAPER, REFERENCE):
            ratios = [row["seconds"][PEER] / row["seconds"][name] for row in own]
            milliseconds = 1000 * float(np.median([row["seconds"][name] for row in own]))
            print(f"| {n} | {name} | {milliseconds:.2f} | {', '.join(f'{ratio:.2f}' for ratio in ratios)} | {np.median(ratios):.2f} |")
            if device == CPU and name != PEER and (n, width) == SIZES[0] and np.median(ratios) < TIMES_AS_FAST:
                missed.append(f"{n} rows, {name}: {np.median(ratios):.2f} times as fast < {TIMES_AS_FAST}")
    loss, gradient = compare(options.peer, device)
    print(f"\nIn float64 the loss differs by {loss:.1e} of its size, the gradient by {gradient:.1e}.")
    if loss > AGREE or gradient > 100 * AGREE:
        missed.append(f"loss and gradient differ by {loss:.1e} and {gradient:.1e} > {AGREE:.0e} and {100 * AGREE:.0e}")
    finite = finite_where_published_is_not(options.peer, device)
    for kind, by_name in finite.items():
        print(f"{kind}: " + ", ".join(f"{name} {'finite' if fine else 'NaN'}" for name, fine in by_name.items()))
        missed += [f"{kind}: {name} is not finite" for name, fine in by_name.items() if name != PEER and not fine]
    agreement = {"loss differs": loss, "gradient differs": gradient, "finite": finite}
    return finish("conr", [*rows, agreement | machine(device)], missed, met(device))


if __name__ == "__main__":
    sys.exit(main())
