"""What guided loss scaling costs per step, and how fast labels are counted.

Steps: the same small dense detector on the same batches, with plain ``(loss_cls + loss_box).backward()``, with ``GuidedLossScaling``, and
with GradNorm (Chen et al. 2018, arXiv:1711.02257), written here in its shortest form: gradients of both weighted losses at the last shared
layer, and a step of the two weights. One step of each in turn, so that all see the same machine. Counting: ``estimate_prior`` on labels of
dense anchors (large images) and of token sequences (short arrays).

    python benchmarks/guided_loss.py
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _ending import finish
from torch import Tensor, nn
from torch.nn import functional as F

from counterpoise.losses import GuidedLossScaling
from counterpoise.nn.init import estimate_prior

STEP = 1.02  # bar: time per step with guided scaling over that of plain backward, median of the runs
LABELS = 1e7  # bar: labels counted per second, in the slower of the two cases

BATCH, SIDE, CLASSES = 16, 96, 10
CHANNELS = (24, 48, 64)
IMAGES, ANCHORS = 40, 200_000  # dense labels, int64
SENTENCES, TOKENS = 4_000, 2_000  # short arrays, int32


# ---- a detector and its losses ----------------------------------------------------------------------------------------------------------


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in zip((1, *CHANNELS), CHANNELS, (2, 2, 1), strict=False):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.classify, self.locate = nn.Conv2d(CHANNELS[-1], CLASSES, 1), nn.Conv2d(CHANNELS[-1], 2, 1)

    @property
    def shared(self) -> Tensor:
        return self.body[-3].weight

    def losses(self, images: Tensor, labels: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(images)
        foreground = labels > 0
        objects = foreground.sum().clamp(min=1)
        targets = F.one_hot(labels, CLASSES + 1)[..., 1:].movedim(-1, 1).float()
        loss_cls = F.binary_cross_entropy_with_logits(self.classify(features), targets, reduction="sum") / objects
        distance = F.smooth_l1_loss(self.locate(features), offsets, reduction="none", beta=0.11)
        return loss_cls, (distance * foreground[:, None]).sum() / objects


def batch(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    cells = SIDE // 4
    labels = torch.zeros(BATCH, cells, cells, dtype=torch.int64)
    labels[:, 5, 7] = torch.randint(1, CLASSES + 1, (BATCH,), generator=generator)
    return torch.randn(BATCH, 1, SIDE, SIDE, generator=generator), labels, torch.rand(BATCH, 2, cells, cells, generator=generator) - 0.5


# ---- steps ------------------------------------------------------------------------------------------------------------------------------


class Plain:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = Detector()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)

    def total(self, loss_cls: Tensor, loss_box: Tensor) -> Tensor:
        return loss_cls + loss_box

    def __call__(self, *data: Tensor) -> None:
        total = self.total(*self.model.losses(*data))
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()


class Guided(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.scaling = GuidedLossScaling()

    def total(self, loss_cls: Tensor, loss_box: Tensor) -> Tensor:
        return self.scaling(loss_cls, loss_box) + loss_box


class GradNorm(Plain):
    """Weights w that make the gradient norms at the shared layer alike, up to how fast each loss falls (exponent 1.5)."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.ones(2, requires_grad=True)
        self.tuner = torch.optim.SGD([self.weights], lr=0.025)
        self.first: Tensor | None = None

    def total(self, loss_cls: Tensor, loss_box: Tensor) -> Tensor:
        losses = torch.stack([loss_cls, loss_box])
        self.first = losses.detach() if self.first is None else self.first
        shared = self.model.shared
        pulls = torch.stack([torch.autograd.grad(loss, shared, retain_graph=True)[0].norm() for loss in losses])
        # The norm of the gradient of w L is w times that of L.
        norms = self.weights * pulls
        speed = losses.detach() / self.first
        goal = norms.detach().mean() * (speed / speed.mean()) ** 1.5
        self.tuner.zero_grad()
        (norms - goal).abs().sum().backward()
        total = (self.weights.detach().clone() * losses).sum()
        self.tuner.step()
        with torch.no_grad():
            self.weights.clamp_(min=1e-3).mul_(2 / self.weights.sum())
        return total


ARMS: dict[str, Callable[[], Plain]] = {"plain": Plain, "guided": Guided, "gradnorm": GradNorm}


def time_steps(steps: int) -> dict[str, float]:
    """Median seconds per step of each arm."""
    generator = torch.Generator().manual_seed(0)
    arms = {name: make() for name, make in ARMS.items()}
    spent: dict[str, list[float]] = {name: [] for name in arms}
    for step in range(steps + 5):
        data = batch(generator)
        for name in np.roll(list(arms), step):  # none is always the first
            began = time.perf_counter()
            arms[name](*data)
            if step >= 5:
                spent[name].append(time.perf_counter() - began)
    return {name: float(np.median(seconds)) for name, seconds in spent.items()}


# ---- counting ---------------------------------------------------------------------------------------------------------------------------


def time_counting(share: float) -> dict[str, float]:
    """Labels per second. ``share``: of the usual size."""
    rng = np.random.default_rng(0)
    anchors = np.zeros(ANCHORS, dtype=np.int64)
    anchors[rng.integers(ANCHORS, size=ANCHORS // 100)] = -1
    anchors[rng.integers(ANCHORS, size=60)] = np.arange(60) % 20 + 1
    tokens = rng.integers(0, 9, size=TOKENS).astype(np.int32)
    cases = {
        "dense anchors": ([torch.from_numpy(anchors)] * max(1, round(IMAGES * share)), 20, {}),
        "tokens": ([tokens] * max(1, round(SENTENCES * share)), 9, {"background": None, "ignore_index": -100}),
    }
    found = {}
    for name, (items, classes, options) in cases.items():
        began = time.perf_counter()
        estimate_prior(items, classes, **options)
        found[name] = sum(len(item) for item in items) / (time.perf_counter() - began)
    return found


# ---- the table --------------------------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200, help="of each arm in a run")
    parser.add_argument("--share", type=float, default=1.0, help="of the labels that are counted")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for run in range(options.runs):
        rows.append({"run": run, "steps": options.steps, "seconds": time_steps(options.steps), "labels": time_counting(options.share)})
        print(f"  run {run + 1} of {options.runs}", flush=True)
    missed = []
    print(f"\n| one step, {BATCH} images of {SIDE} x {SIDE} | ms, median | over plain, runs | median |\n|---|---|---|---|")
    for name in ARMS:
        ratios = [row["seconds"][name] / row["seconds"]["plain"] for row in rows]
        milliseconds = 1000 * np.median([row["seconds"][name] for row in rows])
        print(f"| {name} | {milliseconds:.2f} | {', '.join(f'{ratio:.3f}' for ratio in ratios)} | {np.median(ratios):.3f} |")
        if name == "guided" and np.median(ratios) > STEP:
            missed.append(f"guided scaling: {np.median(ratios):.3f} of a plain step > {STEP}")
    print("\n| estimate_prior, labels per second | runs | median |\n|---|---|---|")
    for name in rows[0]["labels"]:
        rates = [row["labels"][name] for row in rows]
        print(f"| {name} | {', '.join(f'{rate:.2g}' for rate in rates)} | {np.median(rates):.2g} |")
        if np.median(rates) < LABELS:
            missed.append(f"estimate_prior, {name}: {np.median(rates):.2g} labels per second < {LABELS:.0e}")
    return finish("guided_loss", rows, missed)


if __name__ == "__main__":
    sys.exit(main())
