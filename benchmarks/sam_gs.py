"""What SAM-GS costs against the authors' class: time and peak memory of the gradients of a step.

A perceptron trunk with 2 million shared parameters, four small heads, a batch of 32. ``ours``: ``counterpoise.gradients.backward`` with
``SAMGS(rescale="published")``, times K and clipped to norm 1 as in the authors' code; ``authors``: their ``SAMGS.backward``. Both have the
same losses at every step, and end with the same ``.grad``, which is checked. Time: from losses to clipped gradients, in turn, in one
process, one thread. Memory: peak resident memory of a fresh process, forward pass and averages included, above what it held with the model.

The authors' repository is read, not installed; modules that their file imports and their class does not use are replaced by empty ones.

    git clone https://github.com/ThomBors/samgs peers/samgs
    python benchmarks/sam_gs.py --peer peers/samgs
    python benchmarks/sam_gs.py --peer peers/samgs --device cuda --width 2048      # 6 million parameters, one process
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _device import CPU, add_device, announce, clock, machine, met, peak_bytes
from _ending import finish
from torch import Tensor, nn

MEMORY = 0.60  # bar: peak over that of the authors
SPEED = 1.2  # bar: their time over ours
SAME = 1e-3  # largest difference of the gradients, relative to the largest entry

TASKS, BATCH, OPTIONS = 4, 32, {"beta1": 0.9, "beta2": 0.99}
GAMMAS = {"momentum": 0.0, "equalize": 0.999, "only equalize": 1.0}  # for the last ours keeps no averages
CLONE = Path("peers") / "samgs"
STEPS = 8  # of each arm in a run
ARMS = ("ours", "authors")

Model = tuple[nn.Module, nn.ModuleList, Tensor, Tensor]


def model(width: int, device: str = CPU) -> Model:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(512, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 448), nn.Tanh())
    heads = nn.ModuleList(nn.Linear(448, 2) for _ in range(TASKS))
    return trunk.to(device), heads.to(device), torch.randn(BATCH, 512).to(device), torch.randn(TASKS, BATCH, 2).to(device)


def losses_of(parts: Model) -> Tensor:
    trunk, heads, x, y = parts
    z = trunk(x)
    return torch.stack([3.0**k * nn.functional.mse_loss(head(z), y[k]) for k, head in enumerate(heads)])


def ours(gamma: float) -> Callable[[Tensor, list[nn.Parameter]], None]:
    from counterpoise.gradients import SAMGS, backward

    aggregator = SAMGS(**OPTIONS, gamma=gamma, rescale="published")

    def step(losses: Tensor, shared: list[nn.Parameter]) -> None:
        backward(list(losses), aggregator, params=shared)
        for parameter in shared:
            assert parameter.grad is not None
            parameter.grad *= TASKS
        nn.utils.clip_grad_norm_(shared, 1.0)

    return step


def authors(gamma: float, clone: Path, device: str) -> Callable[[Tensor, list[nn.Parameter]], None]:
    absent: dict[str, dict[str, Any]] = {"cvxpy": {}, "utils": {"MinNormSolver": None, "gradient_normalizers": None}}
    for name, content in absent.items():
        sys.modules.setdefault(name, types.ModuleType(name)).__dict__.update(content)
    sys.path.insert(0, str(clone / "methods"))
    from weight_methods import SAMGS  # type: ignore[import-not-found]

    method = SAMGS(TASKS, torch.device(device), momentum=OPTIONS["beta1"], beta2=OPTIONS["beta2"], gamma=gamma)

    def step(losses: Tensor, shared: list[nn.Parameter]) -> None:
        method.backward(losses=losses, shared_parameters=shared)

    return step


def arm(name: str, gamma: float, clone: Path, device: str = CPU) -> Callable[[Tensor, list[nn.Parameter]], None]:
    return ours(gamma) if name == "ours" else authors(gamma, clone, device)


def time_steps(gamma: float, width: int, clone: Path, steps: int, device: str) -> dict[str, float]:
    """Median seconds of each; the gradients of every step are compared."""
    parts = {name: model(width, device) for name in ARMS}
    calls = {name: arm(name, gamma, clone, device) for name in ARMS}
    now = clock(device)
    spent: dict[str, list[float]] = {name: [] for name in ARMS}
    difference = 0.0
    for turn in range(steps + 2):
        gradients = {}
        for name in np.roll(list(ARMS), turn):
            trunk, heads, _, _ = parts[name]
            shared = list(trunk.parameters())
            for parameter in [*shared, *heads.parameters()]:
                parameter.grad = None
            losses = losses_of(parts[name])
            began = now()
            calls[name](losses, shared)
            if turn > 1:
                spent[name].append(now() - began)
            gradients[name] = torch.cat([p.grad.flatten() for p in shared if p.grad is not None])
            with torch.no_grad():  # another point for the next step, the same for both
                for parameter in shared:
                    parameter.add_(0.01 * torch.sin(parameter * (turn + 1)))
        largest = float(gradients["authors"].abs().max())
        difference = max(difference, float((gradients["ours"] - gradients["authors"]).abs().max()) / largest)
    assert difference < SAME, difference
    return {name: float(np.median(seconds)) for name, seconds in spent.items()} | {"difference": difference}


def peak_memory(name: str, gamma: float, width: int, clone: Path) -> float:
    """MiB above what the process held with the model, over three steps."""
    call = arm(name, gamma, clone)
    small = model(8)
    arm(name, gamma, clone)(losses_of(small), list(small[0].parameters()))  # what is loaded on first use
    parts = model(width)
    shared = list(parts[0].parameters())
    before = kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    for _ in range(3):
        for parameter in [*shared, *parts[1].parameters()]:
            parameter.grad = None
        call(losses_of(parts), shared)
    return (kilobytes("VmHWM") - before) / 1024


def memory_on_gpu(name: str, gamma: float, width: int, clone: Path, device: str) -> float:
    call, parts = arm(name, gamma, clone, device), model(width, device)
    shared = list(parts[0].parameters())

    def steps() -> None:
        for _ in range(3):
            for parameter in [*shared, *parts[1].parameters()]:
                parameter.grad = None
            call(losses_of(parts), shared)

    return peak_bytes(steps, device) / 2**20


def kilobytes(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def in_fresh_process(name: str, gamma: float, width: int, clone: Path, device: str) -> float:
    if device != CPU:  # what its allocator gave out is known without a fresh process
        return memory_on_gpu(name, gamma, width, clone, device)
    command = [sys.executable, __file__, "--memory", name, str(gamma), str(width), "--peer", str(clone)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, default=CLONE, help=f"clone of the authors' repository; default {CLONE}")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--width", type=int, default=1000, help="of the trunk: 2 million parameters")
    add_device(parser)
    parser.add_argument("--memory", nargs=3, metavar=("ARM", "GAMMA", "WIDTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not (options.peer / "methods" / "weight_methods.py").is_file():
        parser.error(f"{options.peer} is no clone of https://github.com/ThomBors/samgs; name one with --peer")
    if options.memory:
        name, gamma, width = options.memory
        print(peak_memory(name, float(gamma), int(width), options.peer))
        return 0
    device = options.device
    announce(device)
    n = sum(parameter.numel() for parameter in model(options.width)[0].parameters())
    rows = []
    for run in range(options.runs):
        for branch, gamma in GAMMAS.items():
            seconds = time_steps(gamma, options.width, options.peer, STEPS, device)
            memory = {name: in_fresh_process(name, gamma, options.width, options.peer, device) for name in ARMS}
            row = {"run": run, "branch": branch, "n": n, "tasks": TASKS, "seconds": seconds, "memory": memory}
            rows.append(row | machine(device))
        print(f"  run {run + 1} of {options.runs}", flush=True)
    missed = []
    print(f"\nn = {n:,}, K = {TASKS}\n")
    print("| branch | ms: ours | authors | authors over ours, by run | median | peak MiB: ours | authors | ours over authors |")
    print("|---|---|---|---|---|---|---|---|")
    for branch in GAMMAS:
        own = [row for row in rows if row["branch"] == branch]
        ms = [1000 * np.median([row["seconds"][name] for row in own]) for name in ARMS]
        ratios = [row["seconds"]["authors"] / row["seconds"]["ours"] for row in own]
        memory = [np.median([row["memory"][name] for row in own]) for name in ARMS]
        share = float(np.median([row["memory"]["ours"] / row["memory"]["authors"] for row in own]))
        print(
            f"| {branch} | {ms[0]:.1f} | {ms[1]:.1f} | {', '.join(f'{ratio:.2f}' for ratio in ratios)} | {np.median(ratios):.2f} | "
            f"{memory[0]:.0f} | {memory[1]:.0f} | {share:.2f} |"
        )
        if device == CPU and np.median(ratios) < SPEED:
            missed.append(f"{branch}: {np.median(ratios):.2f} times as fast as the authors' class < {SPEED}")
        if device == CPU and share > MEMORY:
            missed.append(f"{branch}: {share:.2f} of its peak memory > {MEMORY}")
    print(f"\nLargest difference of the gradients, over the largest entry: {max(row['seconds']['difference'] for row in rows):.1e}")
    return finish("sam_gs", rows, missed, met(device))


if __name__ == "__main__":
    sys.exit(main())
