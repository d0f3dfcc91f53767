"""What Cement costs, against the loss of open_clip.

Loss and gradient by all embeddings, float32, one thread, CPU time, one call of each in turn: ``CementLoss`` with one hard caption an image
(own columns; it also divides embeddings by their length), the same without hard captions, and ``ClipLoss`` of open_clip 3.3.0 on embeddings
that have length 1, without hard captions, as it has none. Beside them, without a bar, ``MultipleNegativesRankingLoss`` of
sentence-transformers with hard captions as columns and ``hardness_mode="hard_negatives"``, both directions, if it is installed. Memory is
the largest resident set of a step in a fresh process, over what was there before.

open_clip as a whole needs torchvision and timm; its losses need torch alone, and are loaded from one file of the wheel:

    pip download open_clip_torch==3.3.0 --no-deps -d peers
    python -m zipfile -e peers/open_clip_torch-3.3.0-py3-none-any.whl peers/open_clip
    python benchmarks/cement.py --peer peers/open_clip/open_clip/loss.py
    python benchmarks/cement.py --peer peers/open_clip/open_clip/loss.py --device cuda      # 16,384 pairs, too; one process
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

from counterpoise.losses import CementLoss

TIME, MEMORY = 1.15, 1.5  # bars: of CementLoss over ClipLoss, median of the runs, at the first size
ADDED = 1.05  # bar: time of CementLoss over itself without hard captions, at the second size

SIZES = ((1024, 512), (4096, 512))  # pairs, width
GPU_SIZES = (*SIZES, (16384, 512))
SCALE = 1 / 0.07
PEER = Path("peers") / "open_clip" / "open_clip" / "loss.py"
CLIP, CEMENT, PLAIN, RANKING = "ClipLoss", "CementLoss", "CementLoss, no hard captions", "MultipleNegativesRankingLoss"
LOSSES = (CLIP, CEMENT, PLAIN, RANKING)

Step = Callable[[], Tensor]


def clip_loss(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location("open_clip_loss", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ClipLoss()


def ranking_loss() -> Any:
    """None where sentence-transformers is not installed, or is of a release without hardness."""
    if importlib.util.find_spec("sentence_transformers") is None:
        return None
    both = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    try:
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        return MultipleNegativesRankingLoss(None, scale=SCALE, hardness_mode="hard_negatives", hardness_strength=5.0, **both)
    except (ImportError, TypeError) as problem:
        print(f"  {RANKING}: {problem}", file=sys.stderr)
        return None


def embeddings(n: int, width: int, seed: int, device: str = CPU) -> tuple[list[Tensor], Tensor]:
    """Images, captions and hard captions of length 1, related to each other, that take gradients; and concreteness."""
    source = torch.Generator().manual_seed(seed)
    scenes = torch.randn(n, width, generator=source)
    parts = [scenes + size * torch.randn(n, width, generator=source) for size in (1.0, 1.0, 1.5)]
    unit = [torch.nn.functional.normalize(part, dim=1).to(device).requires_grad_() for part in parts]
    return unit, torch.rand(n, generator=source).to(device)


def step_of(name: str, parts: list[Tensor], c: Tensor, peer: Path) -> tuple[Step, list[Tensor]] | None:
    """A call of one loss, and the embeddings that get a gradient; None where its package is not installed."""
    image, text, hard = parts
    if name == CLIP:
        clip = clip_loss(peer)
        return lambda: clip(image, text, SCALE), [image, text]
    if name == RANKING:
        ranking = ranking_loss()
        return ranking and (lambda: ranking.compute_loss_from_embeddings([image, text, hard], None), parts)
    cement = CementLoss()
    if name == PLAIN:
        return lambda: cement(image, text, None, SCALE), [image, text]
    return lambda: cement(image, text, hard, SCALE, c), parts


def measure(run: int, n: int, width: int, repeats: int, peer: Path, device: str) -> dict[str, Any]:
    """Median seconds of CPU of each."""
    parts, c = embeddings(n, width, run, device)
    now = clock(device, time.process_time)
    every = {name: step for name in LOSSES if (step := step_of(name, parts, c, peer)) is not None}
    spent: dict[str, list[float]] = {name: [] for name in every}
    for turn in range(repeats + 1):
        for name in np.roll(list(every), turn):  # none is always the first
            call, inputs = every[name]
            began = now()
            torch.autograd.grad(call(), inputs)
            if turn:  # the first one warms up
                spent[name].append(now() - began)
    return {"run": run, "pairs": n, "width": width, "seconds": {name: float(np.median(times)) for name, times in spent.items()}}


def memory(name: str, n: int, width: int, peer: Path) -> int:
    """Bytes of the largest resident set of a step over what was resident before it."""
    small, step = (step_of(name, *embeddings(rows, width, 0), peer) for rows in (8, n))
    assert small is not None and step is not None
    torch.autograd.grad(small[0](), small[1])  # what is loaded at first use
    call, inputs = step
    before = kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    torch.autograd.grad(call(), inputs)
    return 1024 * (kilobytes("VmHWM") - before)


def memory_on_gpu(name: str, n: int, width: int, peer: Path, device: str) -> int:
    step = step_of(name, *embeddings(n, width, 0, device), peer)
    assert step is not None
    call, inputs = step
    torch.autograd.grad(call(), inputs)
    return peak_bytes(lambda: torch.autograd.grad(call(), inputs), device)


def kilobytes(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(name)).split()[1])


def in_fresh_process(name: str, n: int, width: int, peer: Path, device: str) -> int:
    if device != CPU:  # what its allocator gave out is known without a fresh process
        return memory_on_gpu(name, n, width, peer, device)
    command = [sys.executable, __file__, "--peer", str(peer), "--memory-of", name, str(n), str(width)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    return int(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=one_thread).stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, default=PEER, help=f"open_clip/loss.py of the wheel; default {PEER}")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=20, help="calls of each in a run, at the first size")
    parser.add_argument("--small", action="store_true", help="the first size only")
    add_device(parser)
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.peer.is_file():
        parser.error(f"{options.peer} is not there; name open_clip/loss.py of the wheel with --peer")
    if options.memory_of:
        name, n, width = options.memory_of
        print(memory(name, int(n), int(width), options.peer))
        return 0
    device = options.device
    announce(device)
    sizes = SIZES[:1] if options.small else SIZES if device == CPU else GPU_SIZES
    rows: list[dict[str, Any]] = []
    for run in range(options.runs):
        for n, width in sizes:
            row = measure(run, n, width, options.repeats if n == SIZES[0][0] else max(2, options.repeats // 8), options.peer, device)
            row["bytes"] = {name: in_fresh_process(name, n, width, options.peer, device) for name in row["seconds"]}
            rows.append(row | machine(device))
        print(f"  run {run + 1} of {options.runs}", flush=True)
    print(f"\n| pairs | loss | {ms_of(device)} | over ClipLoss, runs | median | MiB | over ClipLoss |\n|---|---|---|---|---|---|---|")
    missed = []
    for n, _ in sizes:
        own = [row for row in rows if row["pairs"] == n]
        for name in own[0]["seconds"]:
            ratios = [row["seconds"][name] / row["seconds"][CLIP] for row in own]
            memories = [row["bytes"][name] / row["bytes"][CLIP] for row in own]
            milliseconds = 1000 * float(np.median([row["seconds"][name] for row in own]))
            size = float(np.median([row["bytes"][name] for row in own])) / 2**20
            listed = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"| {n} | {name} | {milliseconds:.1f} | {listed} | {np.median(ratios):.2f} | {size:.1f} | {np.median(memories):.2f} |")
            if name == CEMENT and n == SIZES[0][0] and device == CPU:
                for what, found, bar in (("time", np.median(ratios), TIME), ("memory", np.median(memories), MEMORY)):
                    if found > bar:
                        missed.append(f"{n} pairs, {what} over ClipLoss: {found:.2f} > {bar}")
    large = [row["seconds"][CEMENT] / row["seconds"][PLAIN] for row in rows if row["pairs"] == SIZES[1][0]]
    if large:
        print(f"\n{SIZES[1][0]} pairs: with hard captions {np.median(large):.3f} times the time of plain InfoNCE")
        if np.median(large) > ADDED and device == CPU:
            missed.append(f"{SIZES[1][0]} pairs: hard captions take {np.median(large):.3f} > {ADDED} of the time without")
    return finish("cement", rows, missed, met(device))


if __name__ == "__main__":
    sys.exit(main())
