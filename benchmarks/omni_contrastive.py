"""What the loss of e5-omni costs, against open_clip's ClipLoss.

Loss and gradients by embeddings and temperatures, float32, one thread: four modalities in a batch, a temperature for each, half of the
negatives left out, debiased, whitened and aligned; in one direction, as in the paper, and in both, as ClipLoss. ClipLoss has one learned
scale, and gets its embeddings through ``normalize``, as it needs them. One call of each in turn, CPU time. Memory is the highest resident
size during one step above what there was before it, in fresh processes. Then both are compared in float64, with all parts switched off.

    pip download --no-deps open_clip_torch==3.3.0 -d peers
    unzip -j peers/open_clip_torch-3.3.0-py3-none-any.whl open_clip/loss.py -d peers/open_clip
    python benchmarks/omni_contrastive.py --peer peers/open_clip/loss.py
    python benchmarks/omni_contrastive.py --peer peers/open_clip/loss.py --device cuda --sizes 1024 4096 16384      # one process
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _device import CPU, add_device, announce, clock, machine, met, ms_of, peak_bytes
from _ending import finish
from torch import Tensor
from torch.nn import functional as F

from counterpoise.losses import ModalityTemperature, OmniContrastiveLoss, QuantileCurriculum

TIMES_THE_TIME = 1.3  # bar: our step over ClipLoss', median of the runs, at the first size
TIMES_THE_MEMORY = 1.5  # bar: the same for memory
AGREE = 1e-12  # bar: relative difference of the loss in float64, without parts; of the gradients a hundred times that

SIZES = (1024, 4096)  # rows; the second is reported
WIDTH, MODALITIES, TAU, RHO = 512, 4, 0.02, 0.5
LOSS = Path("peers") / "open_clip" / "loss.py"
PEER, ONE, BOTH, PLAIN = "ClipLoss", "ours, all parts", "ours, all parts, symmetric", "ours, no parts, symmetric"
JUDGED = (ONE, BOTH)

Step = Callable[[], tuple[Tensor, ...]]


def clip_loss(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ClipLoss()


def steps(rows: int, seed: int, path: Path, dtype: torch.dtype = torch.float32, device: str = CPU) -> dict[str, Step]:
    """Functions without arguments that return loss and gradients."""
    source = torch.Generator().manual_seed(seed)
    query, noise = (torch.randn(rows, WIDTH, generator=source).to(device, dtype) for _ in range(2))
    target = (0.3 * query + noise).requires_grad_()
    query.requires_grad_()
    modality = torch.randint(MODALITIES, (2, rows), generator=source).to(device)
    scale = torch.tensor(1 / TAU, dtype=dtype, device=device, requires_grad=True)
    peer = clip_loss(path)

    def published() -> tuple[Tensor, ...]:
        loss = peer(F.normalize(query), F.normalize(target), scale)
        return loss.detach(), *torch.autograd.grad(loss, (query, target, scale))

    def ours(loss_fn: OmniContrastiveLoss) -> Step:
        def step() -> tuple[Tensor, ...]:
            loss = loss_fn(query, target, *modality)
            return loss.detach(), *torch.autograd.grad(loss, (query, target, loss_fn.temperature.log_tau))

        return step

    def temperature() -> ModalityTemperature:
        return ModalityTemperature(MODALITIES, init=torch.tensor(TAU, dtype=dtype, device=device)).to(device)

    return {
        PEER: published,
        ONE: ours(OmniContrastiveLoss(temperature(), QuantileCurriculum(RHO, RHO))),
        BOTH: ours(OmniContrastiveLoss(temperature(), QuantileCurriculum(RHO, RHO), symmetric=True)),
        PLAIN: ours(OmniContrastiveLoss(temperature(), gamma_plus=0.0, coral_weight=0.0, symmetric=True)),
    }


def timed(run: int, rows: int, repeats: int, path: Path, device: str) -> dict[str, Any]:
    """Median seconds of CPU of each."""
    every = steps(rows, run, path, device=device)
    now = clock(device, time.process_time)
    names = list(every)
    spent: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats + 2):
        for name in np.roll(names, turn):  # none is always the first
            began = now()
            every[name]()
            if turn >= 2:  # the first ones warm up
                spent[name].append(now() - began)
    seconds = {name: float(np.median(times)) for name, times in spent.items()}
    return {"part": "time", "run": run, "rows": rows, "seconds": seconds} | machine(device)


def memory_of_one_step(name: str, rows: int, path: Path) -> float:
    """Mebibytes, in this process, which must not have done anything else."""
    torch.set_num_threads(1)
    steps(64, 0, path)[name]()  # libraries load what they need
    step = steps(rows, 0, path)[name]
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest size so far is forgotten
    step()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def memory(run: int, rows: int, path: Path, device: str) -> dict[str, Any]:
    found = {}
    if device != CPU:  # what its allocator gave out is known without a fresh process
        for name, step in steps(rows, run, path, device=device).items():
            step()
            found[name] = peak_bytes(step, device) / 2**20
        return {"part": "memory", "run": run, "rows": rows, "mebibytes": found} | machine(device)
    for name in np.roll([PEER, *JUDGED, PLAIN], run).tolist():
        command = [sys.executable, __file__, "--one", name, "--rows", str(rows), "--peer", str(path)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        found[name] = float(done.stdout)
    return {"part": "memory", "run": run, "rows": rows, "mebibytes": found}


def compare(path: Path, device: str) -> tuple[float, float]:
    """Relative difference of loss and gradients by the embeddings in float64, without parts."""
    every = steps(200, 0, path, torch.float64, device)
    (theirs, *by_theirs), (ours, *by_ours) = every[PEER](), every[PLAIN]()
    gradients = [float((a - b).norm() / b.norm()) for a, b in zip(by_ours[:2], by_theirs[:2], strict=True)]
    return float((ours - theirs).abs() / theirs.abs()), max(gradients)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, default=LOSS, help=f"loss.py of open_clip; default {LOSS}")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=20, help="calls of each in a run, at the first size")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    add_device(parser)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.peer.is_file():
        parser.error(f"{options.peer} is not there: see the top of this file, and name open_clip's loss.py with --peer")
    if options.one:
        print(memory_of_one_step(options.one, options.rows, options.peer))
        return 0
    torch.set_num_threads(1)
    device = options.device
    announce(device)
    rows: list[dict[str, Any]] = []
    for run in range(options.runs):
        for n in options.sizes:
            rows.append(timed(run, n, options.repeats if n == options.sizes[0] else max(3, options.repeats // 6), options.peer, device))
            rows.append(memory(run, n, options.peer, device))
        print(f"  run {run + 1} of {options.runs}", flush=True)
    missed = []
    for part, field, unit, factor, bar in (
        ("time", "seconds", ms_of(device), 1000.0, TIMES_THE_TIME),
        ("memory", "mebibytes", "MiB", 1.0, TIMES_THE_MEMORY),
    ):
        print(f"\n| rows | arm | {unit}, median | over ClipLoss, runs | median |\n|---|---|---|---|---|")
        for n in options.sizes:
            own = [row[field] for row in rows if row["part"] == part and row["rows"] == n]
            for name in (PEER, *JUDGED, PLAIN):
                ratios = [by_name[name] / by_name[PEER] for by_name in own]
                value = factor * float(np.median([by_name[name] for by_name in own]))
                print(f"| {n} | {name} | {value:.1f} | {', '.join(f'{ratio:.2f}' for ratio in ratios)} | {np.median(ratios):.2f} |")
                if device == CPU and name in JUDGED and n == options.sizes[0] and np.median(ratios) > bar:
                    missed.append(f"{n} rows, {name}: {np.median(ratios):.2f} times the {part} of ClipLoss > {bar}")
    loss, gradient = compare(options.peer, device)
    print(f"\nIn float64, without parts, the loss differs by {loss:.1e} of its size, the gradients by {gradient:.1e}.")
    if loss > AGREE or gradient > 100 * AGREE:
        missed.append(f"loss and gradients differ by {loss:.1e} and {gradient:.1e} > {AGREE:.0e} and {100 * AGREE:.0e}")
    rows.append({"part": "agreement", "loss differs": loss, "gradients differ": gradient} | machine(device))
    return finish("omni_contrastive", rows, missed, met(device))


if __name__ == "__main__":
    sys.exit(main())
