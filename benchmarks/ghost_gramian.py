"""What the Gramian of groups of examples costs: one backward pass of GroupLoss, against TorchJD's Engine and one pass per group.

A step of a perceptron with 1.13 million parameters: forward, the Gramian of the group means, weights from it (all gradients equally long),
and the gradient of the weighted sum. ``engine`` is TorchJD's ``autogram.Engine(net, batch_dim=0)``, which gives the Gramian of the
examples, summed to that of the groups; ``engine, groups`` the same on the m group means, which are not batched; ``passes`` keeps the
gradients of the m groups, one backward pass each, and combines them. Before anything is timed, the Gramians and the gradients of all are
compared.

Time is CPU time of the process per step, median over the steps and then over the runs, with one thread; the arms take turns in a fresh
process per run, and ratios are within a run. Memory is the peak of a fresh process above what it held before its first step; gradients of
the parameters are among it.

    python benchmarks/ghost_gramian.py
    python benchmarks/ghost_gramian.py --device cuda      # 5.4 million parameters
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _device import CPU, add_device, announce, clock, machine, met, peak_bytes
from _ending import keep, said
from torch import Tensor, nn

OVER_ENGINE = 30.0  # bar: time of TorchJD's Engine over ours, median of the runs, every case
OVER_PASSES = 5.0  # bar: time of one pass per group over ours
EXACT = 1e-5  # bar: largest error of our Gramian, relative to the lengths of the gradients, in float32
SAME = 1e-3  # of the others, whose sums over a million products in float32 are less exact

CASES = {"10 groups, batch of 128": (10, 128), "50 groups, batch of 256": (50, 256)}
SIZES = (64, 1024, 1024, 10)
GPU_CASES = {"10 groups, batch of 256": (10, 256), "50 groups, batch of 512": (50, 512)}
GPU_SIZES = (512, 2048, 2048, 100)
STEPS = {"ghost": 10, "engine": 2, "engine, groups": 2, "passes": 3}
MIB = 2**20


def equally_long(gramian: Tensor) -> Tensor:
    lengths = gramian.diagonal().sqrt()
    return torch.where(lengths > 0, lengths.mean() / lengths, 0.0) / len(lengths)


class Steps:
    """One step of each arm: leaves the combined gradient in ``.grad`` and returns the Gramian."""

    def __init__(self, m: int, b: int, share: float = 1.0, device: str = CPU) -> None:
        torch.manual_seed(0)
        sizes = [max(round(size * share), 8) for size in (SIZES if device == CPU else GPU_SIZES)]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        self.net = nn.Sequential(*layers[:-1]).to(device)
        self.params = list(self.net.parameters())
        self.m = m
        self.x, self.y = torch.randn(b, sizes[0]).to(device), torch.randint(sizes[-1], (b,)).to(device)
        self.group = (torch.randperm(b) % m).to(device)
        self.each = nn.CrossEntropyLoss(reduction="none")
        self.members = (self.group == torch.arange(m, device=device)[:, None]).float()
        self.members /= self.members.sum(dim=1, keepdim=True)

    def arm(self, name: str) -> Callable[[], Tensor]:
        for p in self.params:
            p.grad = None
        if name == "ghost":
            from counterpoise.gradients import GroupLoss
            from counterpoise.gradients._ghost import ghost_gramian

            group_loss = GroupLoss(self.each, self.m)

            def ghost() -> Tensor:
                losses = group_loss(self.net(self.x), self.y, self.group)
                gramian = ghost_gramian(losses, self.params).gramian
                losses.backward(equally_long(gramian).to(losses))
                return gramian

            return self._step(ghost)
        if name == "passes":
            return self._step(self._passes)
        from torchjd.autogram import Engine

        batched = name == "engine"
        engine = Engine(self.net, batch_dim=0 if batched else None)

        def by_engine() -> Tensor:
            examples = self.each(self.net(self.x), self.y)
            losses = self.members @ examples
            gramian = engine.compute_gramian(examples if batched else losses)
            gramian = self.members @ gramian @ self.members.T if batched else gramian
            losses.backward(equally_long(gramian))
            return gramian

        return self._step(by_engine)

    def _step(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def step() -> Tensor:
            for p in self.params:
                p.grad = None
            return compute()

        return step

    def _passes(self) -> Tensor:
        losses = self.members @ self.each(self.net(self.x), self.y)
        rows = [torch.autograd.grad(losses[k], self.params, retain_graph=k < self.m - 1) for k in range(self.m)]
        gramian = losses.new_zeros(self.m, self.m)
        stacked = []
        for parts in zip(*rows, strict=True):
            stacked.append(torch.stack([part.flatten() for part in parts]))
            gramian += stacked[-1] @ stacked[-1].T
        weights = equally_long(gramian)
        for p, part in zip(self.params, stacked, strict=True):
            p.grad = (weights @ part).reshape(p.shape)
        return gramian


def check(case: tuple[int, int], share: float, device: str = CPU) -> dict[str, float]:
    """Errors of every arm against one pass per group in double precision: of the Gramian and of the combined gradient."""
    torch.backends.cudnn.allow_tf32 = False  # in this process, which only checks: convolutions of a GPU would be good to three digits
    steps = Steps(*case, share, device)
    exact = Steps(*case, share, device)
    exact.net.double()
    exact.x, exact.members = exact.x.double(), exact.members.double()
    truth = exact.arm("passes")
    gramian = truth().double()
    direction = torch.cat([p.grad.flatten() for p in exact.params])
    lengths = gramian.diagonal().sqrt()
    errors = {}
    for name in STEPS:
        found = steps.arm(name)().double()
        combined = torch.cat([p.grad.flatten() for p in steps.params]).double()
        errors[name] = max(
            float(((found - gramian).abs() / (lengths[:, None] * lengths)).max()), float((combined - direction).norm() / direction.norm())
        )
    return errors


def time_arms(case: tuple[int, int], share: float, first: int, device: str = CPU) -> dict[str, float]:
    """Median seconds of CPU per step of each arm, the arms in turn, beginning with the one numbered ``first``."""
    steps, spent = Steps(*case, share, device), {}
    now = clock(device, time.process_time)
    names = list(STEPS)
    for name in names[first % len(names) :] + names[: first % len(names)]:
        step = steps.arm(name)
        step()
        seconds = []
        for _ in range(STEPS[name]):
            began = now()
            step()
            seconds.append(now() - began)
        spent[name] = median(seconds)
    return spent


def extra_memory(name: str, case: tuple[int, int], share: float) -> float:
    """MiB of peak memory above what the process held before the first step."""
    Steps(4, 16, 0.02).arm(name)()  # what is loaded on first use
    step = Steps(*case, share).arm(name)
    before = kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    for _ in range(2):
        step()
    return (kilobytes("VmHWM") - before) / 1024


def memory_on_gpu(name: str, case: tuple[int, int], share: float, device: str) -> float:
    """MiB allocated at most above what there was before a step, gradients of the parameters among it."""
    steps = Steps(*case, share, device)
    step = steps.arm(name)
    step()
    steps.net.zero_grad()
    return peak_bytes(step, device) / MIB


def kilobytes(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def in_fresh_process(device: str, **task: Any) -> Any:
    if device != CPU:  # what its allocator gave out is known without a fresh process
        return run_task(**task, device=device)
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, __file__, "--task", json.dumps(task)], capture_output=True, text=True, env=os.environ | one_thread
    )
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def run_task(what: str, case: tuple[int, int], share: float, arm: str = "", first: int = 0, device: str = CPU) -> Any:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if what == "check":
        return check(case, share, device)
    if what == "time":
        return time_arms(case, share, first, device)
    return extra_memory(arm, case, share) if device == CPU else memory_on_gpu(arm, case, share, device)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--share", type=float, default=1.0, help="of the width of the layers")
    add_device(parser)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(json.dumps(run_task(**json.loads(options.task))))
        return 0
    rows, missed = [], []
    device, cases = options.device, CASES if options.device == CPU else GPU_CASES
    announce(device)
    for name, case in cases.items():
        for arm, error in in_fresh_process(device, what="check", case=case, share=options.share).items():
            print(f"  {name}, {arm}: relative error {error:.1e}", file=sys.stderr, flush=True)
            if not error <= (most := EXACT if arm == "ghost" else SAME):
                missed.append(f"{name}: {arm} differs from double precision by {error:.1e} > {most:.0e}")
    for run in range(options.runs):
        for name, case in cases.items():
            seconds = in_fresh_process(device, what="time", case=case, share=options.share, first=run)
            memory = {arm: in_fresh_process(device, what="memory", case=case, share=options.share, arm=arm) for arm in STEPS}
            row = {"run": run, "case": name, "seconds": seconds, "memory": memory, "load": os.getloadavg()[0], "torch": torch.__version__}
            rows.append(row | machine(device))
            print(
                f"  run {run + 1}, {name}: " + ", ".join(f"{arm} {1e3 * s:.0f} ms" for arm, s in seconds.items()),
                file=sys.stderr,
                flush=True,
            )
    print(f"\n| case | arm | {'CPU, ms' if device == CPU else 'ms'} | over ours | extra MiB |\n|---|---|---|---|---|")
    for name in cases:
        own = [row for row in rows if row["case"] == name]
        for arm in STEPS:
            ratio = median(row["seconds"][arm] / row["seconds"]["ghost"] for row in own)
            bar = {"engine": OVER_ENGINE, "passes": OVER_PASSES}.get(arm) if device == CPU else None
            shown = f"{ratio:.1f}" + (f" (bar {bar:.0f})" if bar else "")
            ms = 1e3 * median(row["seconds"][arm] for row in own)
            print(f"| {name} | {arm} | {ms:.1f} | {shown} | {median(row['memory'][arm] for row in own):.0f} |")
            if bar and not ratio >= bar:
                missed.append(f"{name}: {arm} takes {ratio:.1f} times as long < {bar:.0f}")
    if options.share == 1.0:
        keep("ghost_gramian", rows)
    return said(missed, met(device))


if __name__ == "__main__":
    sys.exit(main())
