"""What it costs to record whose step it is, in a training loop of one's own.

CPU time of 100 training steps inside ``counterpoise.diagnostics.record(model, every=50)`` over that of the same steps without, one
thread: a small CNN with GroupNorm on digit-sized images and a small transformer on tokens, both at a batch of 128, with ten groups. Plain
and recorded stretches take turns within one process, after a warm-up that holds what ``record`` does once; every run is a fresh process,
and the parameters at the end must be the same bit for bit. Beside it, the cost of one measured step over a plain one (every=1).

    python benchmarks/record_overhead.py                 # 5 runs of each
    python benchmarks/record_overhead.py --runs 1 --stretches 1
    python benchmarks/record_overhead.py --device cuda      # a ResNet-18 of half the width on batches of 256, the transformer; one process

On a GPU sums are added in changing order, and two trainings of the same steps differ: the parameters are not compared there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from _device import CPU, add_device, announce, clock, machine, met
from _ending import finish
from _networks import resnet

OVERHEAD = 1.05  # bar: CPU of the recorded steps over that of plain ones, every=50, median of the runs
EVERY, STEPS = 50, 100
BATCH, GROUPS = 128, 10
VOCABULARY, TOKENS, WIDTH = 1000, 32, 64


def cnn() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 16, 64),
        nn.ReLU(),
        nn.Linear(64, GROUPS),
    )


def transformer() -> Any:
    from torch import Tensor, nn

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(VOCABULARY, WIDTH)
            layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.1, batch_first=True)
            self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(WIDTH, GROUPS)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.encoder(self.tokens(x)).mean(1))
            return out

    return Classifier()


CASES: dict[str, Callable[[], Any]] = {"cnn": cnn, "transformer": transformer}
GPU_CASES: dict[str, Callable[[], Any]] = {"resnet": lambda: resnet(width=32), "transformer": transformer}
IMAGES = {"cnn": (BATCH, 1, 16, 16), "resnet": (2 * BATCH, 3, 32, 32)}


def train(case: str, stretches: int, every: int | None, device: str) -> tuple[list[float], list[Any], int]:
    """CPU seconds of each stretch of steps, the parameters at the end, and how many steps were measured."""
    import torch
    from torch.nn import functional as F

    from counterpoise.diagnostics import record

    torch.manual_seed(0)
    now = clock(device, time.process_time)
    model = (CASES | GPU_CASES)[case]().to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    seconds, measured = [], 0
    with record(model, every=every) if every else contextlib.nullcontext() as recorder:
        for stretch in range(stretches + 1):
            data = []
            for _ in range(STEPS):
                size = IMAGES.get(case, (BATCH, TOKENS))
                x = torch.randn(size, generator=generator) if case in IMAGES else torch.randint(VOCABULARY, size, generator=generator)
                data.append((x.to(device), torch.randint(GROUPS, size[:1], generator=generator).to(device)))
            began = now()
            for x, y in data:
                if recorder is not None:
                    recorder.batch(y)
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
            if stretch:  # the first is a warm-up
                seconds.append(now() - began)
        measured = 0 if recorder is None else len(recorder.steps)
    return seconds, [p.detach().clone() for p in model.parameters()], measured


def one(case: str, stretches: int, device: str = CPU) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    plain, recorded, each = [], [], []
    for _ in range(2):  # in turn, and once more, so that a busy moment does not fall on one of them alone
        for found, every in ((plain, None), (recorded, EVERY), (each, 1)):
            seconds, parameters, measured = train(case, stretches, every, device)
            found += seconds
            if every is None:
                expected = parameters
            else:
                same = device != CPU or all(torch.equal(a, b) for a, b in zip(parameters, expected, strict=True))
                assert same, "training was changed"
                assert measured == (stretches + 1) * STEPS // every
    return {"case": case, "plain": min(plain), "recorded": min(recorded), "each": min(each)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--stretches", type=int, default=3)
    add_device(parser)
    parser.add_argument("--one", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options.stretches)))
        return 0
    device, cases = options.device, CASES if options.device == CPU else GPU_CASES
    announce(device)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    rows, missed = [], []
    for run in range(options.runs):
        for case in cases:
            command = [sys.executable, __file__, "--one", case, "--stretches", str(options.stretches)]
            if device == CPU:
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=environment)
                found = json.loads(done.stdout.splitlines()[-1])
            else:
                found = one(case, options.stretches, device) | machine(device)
            rows.append({"run": run} | found)
            print(f"  run {run + 1}, {case}: {1e3 * rows[-1]['plain'] / STEPS:.1f} ms a step", flush=True)
    print(
        f"\n| model | plain step, ms | recorded / plain, every={EVERY}, runs | median | measured step / plain step |\n|---|---|---|---|---|"
    )
    for case in cases:
        own = [row for row in rows if row["case"] == case]
        ratios = [row["recorded"] / row["plain"] for row in own]
        each = median(row["each"] / row["plain"] for row in own)
        plain = 1e3 * median(row["plain"] for row in own) / STEPS
        print(f"| {case} | {plain:.1f} | {', '.join(f'{ratio:.3f}' for ratio in ratios)} | {median(ratios):.3f} | {each:.2f} |")
        if median(ratios) > OVERHEAD and device == CPU:
            missed.append(f"{case} {median(ratios):.3f} > {OVERHEAD}")
    return finish("record_overhead", rows, missed, met(device))


if __name__ == "__main__":
    sys.exit(main())
