"""What aligning Hessians costs: closed forms against differentiating twice, and against random probes.

The loss and its gradients by the features and the head, D = 512, 7 classes, 3 domains of 32 rows, one thread. The peers are written here
as the penalties are usually computed: one mean loss per domain and one of all, their gradients with ``create_graph=True``, the gradient
of the gradient's norm times that norm (HGP), or 300 products of the Hessian with random signs (Hutchinson), and one backward through it
all. One call of each in turn, CPU time; losses and gradients are compared first (those of the probes are random, and agree roughly).

    python benchmarks/hessian_alignment.py
    python benchmarks/hessian_alignment.py --device cuda      # D = 2048, 65 classes, 3 x 256 rows
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _device import CPU, add_device, announce, clock, machine, met, ms_of
from _ending import finish
from torch import Tensor, nn
from torch.nn import functional as F

from counterpoise.losses import HessianAlignmentLoss

DIAGONAL_OVER_PROBES = 50.0  # bar: time of 300 probes over that of the exact diagonal, median of the runs
HGP_OVER_TWICE = 1.3  # bar: time of differentiating twice over that of the closed form, median of the runs

WIDTH, CLASSES, DOMAINS, ROWS, PROBES = 512, 7, 3, 32, 300
GPU_SIZE = 2048, 65, 256  # width, classes, rows
ALPHA, BETA = 1e-4, 5e-3
AGREE = 1e-5  # relative, in float32


# ---- the penalties, differentiated --------------------------------------------------------------------------------------------------


def flat(parts: Any) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def by_differentiation(head: nn.Linear, curvature: Callable[[nn.Linear, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of features (3, 32, D) and targets (3, 32); ``curvature`` of a gradient, which is still attached to its graph."""
    parameters = list(head.parameters())

    def loss(features: Tensor, target: Tensor) -> Tensor:
        losses = [F.cross_entropy(head(z), y) for z, y in zip(features, target, strict=True)]
        mean = torch.stack(losses).mean()
        g, *gradients = (flat(torch.autograd.grad(part, parameters, create_graph=True)) for part in (mean, *losses))
        h, *curvatures = (curvature(head, gradient) for gradient in (g, *gradients))
        gaps = [
            ALPHA * (curved - h.detach()).square().sum() + BETA * (gradient - g.detach()).square().sum()
            for gradient, curved in zip(gradients, curvatures, strict=True)
        ]
        return mean + torch.stack(gaps).mean()

    return loss


def hessian_gradient(head: nn.Linear, gradient: Tensor) -> Tensor:
    norm = gradient.square().sum().sqrt()
    return norm * flat(torch.autograd.grad(norm, list(head.parameters()), create_graph=True))


def probes(count: int) -> Callable[[nn.Linear, Tensor], Tensor]:
    def diagonal(head: nn.Linear, gradient: Tensor) -> Tensor:
        total = torch.zeros_like(gradient)
        for _ in range(count):
            signs = 2 * torch.randint_like(gradient, 2) - 1
            product = flat(torch.autograd.grad(gradient @ signs, list(head.parameters()), create_graph=True))
            total = total + signs * product
        return total / count

    return diagonal


# ---- measuring ------------------------------------------------------------------------------------------------------------------------


def calls(head: nn.Linear, count: int, rows: int, device: str) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    domain = torch.arange(DOMAINS, device=device).repeat_interleave(rows)

    def ours(method: str) -> Callable[[Tensor, Tensor], Tensor]:
        criterion = HessianAlignmentLoss(head, method, ALPHA, BETA)  # type: ignore[arg-type]
        return lambda features, target: criterion(features.flatten(0, 1), target.flatten(), domain)

    return {
        "hgp, closed form": ours("hgp"),
        "hgp, differentiated twice": by_differentiation(head, hessian_gradient),
        "diagonal, closed form": ours("diagonal"),
        f"diagonal, {count} probes": by_differentiation(head, probes(count)),
        "no penalty": lambda features, target: F.cross_entropy(head(features.flatten(0, 1)), target.flatten()),
    }


def batch(seed: int, width: int, classes: int, rows: int, device: str) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    features = torch.randn(DOMAINS, rows, width, generator=source).relu().to(device).requires_grad_()
    return features, torch.randint(classes, (DOMAINS, rows), generator=source).to(device)


def step(call: Callable[[Tensor, Tensor], Tensor], head: nn.Linear, data: tuple[Tensor, Tensor]) -> list[Tensor]:
    loss = call(*data)
    return [loss.detach(), *torch.autograd.grad(loss, [data[0], *head.parameters()])]


def measure(run: int, repeats: int, slow: int, count: int, device: str) -> dict[str, Any]:
    """Median seconds of CPU of each call, and how far closed form and differentiation differ."""
    torch.manual_seed(run)
    width, classes, rows = size_of(device)
    head, data = nn.Linear(width, classes).to(device), batch(run, width, classes, rows, device)
    every, now = calls(head, count, rows, device), clock(device, time.process_time)
    first = {name: step(call, head, data) for name, call in every.items()}
    names = list(every)
    differ = {
        pair: max(float((a - b).norm() / b.norm()) for a, b in zip(first[names[pair]], first[names[pair + 1]], strict=True))
        for pair in (0, 2)
    }
    spent: dict[str, list[float]] = {name: [] for name in every}
    for turn in range(repeats):
        for name in np.roll(names, turn):  # none is always the first
            if "probes" in name and turn >= slow:
                continue
            began = now()
            step(every[name], head, data)
            spent[name].append(now() - began)
    seconds = {name: float(np.median(times)) for name, times in spent.items()}
    return {"run": run, "seconds": seconds, "hgp differs": differ[0], "diagonal differs": differ[2]} | machine(device)


def size_of(device: str) -> tuple[int, int, int]:
    return (WIDTH, CLASSES, ROWS) if device == CPU else GPU_SIZE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=300, help="calls of each in a run")
    parser.add_argument("--slow", type=int, default=7, help="of them with probes")
    parser.add_argument("--probes", type=int, default=PROBES)
    add_device(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = options.device
    announce(device)
    rows = []
    for run in range(options.runs):
        rows.append(measure(run, options.repeats, options.slow, options.probes, device))
        print(f"  run {run + 1} of {options.runs}", flush=True)
    names = list(rows[0]["seconds"])
    closed_hgp, twice, closed_diagonal, estimated = names[:4]

    def ratios(name: str, base: str) -> list[float]:
        return [row["seconds"][name] / row["seconds"][base] for row in rows]

    width, classes, per_domain = size_of(device)
    size = f"D = {width}, {classes} classes, {DOMAINS} x {per_domain} rows"
    print(f"\n| {size} | {ms_of(device)}, median | over the closed form, runs | median |")
    print("|---|---|---|---|")
    for name in names:
        base = closed_diagonal if "diagonal" in name else closed_hgp
        over = ratios(name, base)
        milliseconds = 1000 * np.median([row["seconds"][name] for row in rows])
        print(f"| {name} | {milliseconds:.2f} | {', '.join(f'{ratio:.3g}' for ratio in over)} | {np.median(over):.3g} |")
    differs = max(row["hgp differs"] for row in rows)
    roughly = max(row["diagonal differs"] for row in rows)
    print(f"\nLosses and gradients differ by {differs:.1e} of their size (hgp); from those of random probes by {roughly:.1e}.")
    missed = []
    if device == CPU and np.median(ratios(estimated, closed_diagonal)) < DIAGONAL_OVER_PROBES:
        missed.append(f"diagonal: {np.median(ratios(estimated, closed_diagonal)):.1f} times as fast as probes < {DIAGONAL_OVER_PROBES}")
    if device == CPU and np.median(ratios(twice, closed_hgp)) < HGP_OVER_TWICE:
        missed.append(f"hgp: {np.median(ratios(twice, closed_hgp)):.2f} times as fast as differentiating twice < {HGP_OVER_TWICE}")
    if differs > AGREE:
        missed.append(f"hgp: losses or gradients differ by {differs:.1e} > {AGREE:.0e}")
    return finish("hessian_alignment", rows, missed, met(device))


if __name__ == "__main__":
    sys.exit(main())
