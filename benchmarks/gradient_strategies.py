"""What gradients of eight losses cost: kept, sketched, or through TorchJD.

m = 8 losses of a network with 1.9 and with 4 million shared parameters, batch 32, combined by PCGrad. Time: one step of each in turn, one
process, one thread. Memory: peak resident memory of a fresh process over its steps, above what the loaded model held after a plain
step of its own, which "sum" shows.

    python benchmarks/gradient_strategies.py [--runs N]
    python benchmarks/gradient_strategies.py --device cuda      # 34 and 135 million parameters, batch 256, one process
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _device import CPU, add_device, announce, clock, machine, met, peak_bytes
from _ending import keep
from torch import Tensor, nn

SKETCH_MEMORY = 0.10  # bar: extra peak memory of "sketch" over that of TorchJD, at n >= 2e6
SKETCH_TIME = 1.05  # bar: its time over that of TorchJD

LOSSES, BATCH = 8, 32
WIDTHS = {"2.3 million": 1024, "4.6 million": 1500}
GPU_WIDTHS, GPU_BATCH = {"34 million": 4096, "135 million": 8192}, 256
ARMS = ("sum", "rows", "sketch", "torchjd", "torchjd-gramian")
ROUNDS = 7


class Net(nn.Module):
    """A trunk of three layers, one output for each loss."""

    def __init__(self, width: int, device: str = CPU) -> None:
        super().__init__()
        torch.manual_seed(0)
        batch = BATCH if device == CPU else GPU_BATCH
        with torch.device(device):
            layers = [nn.Linear(128, width), nn.Linear(width, width), nn.Linear(width, width)]
            self.trunk = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))
            self.heads = nn.ModuleList([nn.Linear(width, 1) for _ in range(LOSSES)])
            self.x = torch.randn(batch, 128)
            self.y = torch.randn(LOSSES, batch)

    def losses(self) -> list[Tensor]:
        z = self.trunk(self.x)
        return [(head(z)[:, 0] - y).square().mean() for head, y in zip(self.heads, self.y, strict=True)]


def steps(net: Net) -> dict[str, Callable[[], object]]:
    from torchjd.aggregation import PCGrad as Theirs
    from torchjd.autojac import jac_to_grad, mtl_backward

    from counterpoise.gradients import PCGrad, backward

    shared = list(net.trunk.parameters())
    ours = {name: PCGrad() for name in ("rows", "sketch")}
    theirs = Theirs()

    def torchjd(optimize: bool) -> None:
        z = net.trunk(net.x)
        losses = [(head(z)[:, 0] - y).square().mean() for head, y in zip(net.heads, net.y, strict=True)]
        mtl_backward(losses, features=z)
        jac_to_grad(shared, theirs, optimize_gramian_computation=optimize)

    return {
        "sum": lambda: torch.stack(net.losses()).sum().backward(),
        "rows": lambda: backward(net.losses(), ours["rows"], params=shared, strategy="rows"),
        "sketch": lambda: backward(net.losses(), ours["sketch"], params=shared, strategy="sketch"),
        "torchjd": lambda: torchjd(False),
        "torchjd-gramian": lambda: torchjd(True),
    }


def time_steps(width: int, device: str = CPU) -> dict[str, float]:
    """Median seconds of a step of each."""
    net, now = Net(width, device), clock(device)
    calls = steps(net)
    spent: dict[str, list[float]] = {name: [] for name in ARMS}
    for turn in range(ROUNDS + 1):
        for name in np.roll(ARMS, turn):
            net.zero_grad()
            began = now()
            calls[name]()
            if turn:
                spent[name].append(now() - began)
    return {name: float(np.median(seconds)) for name, seconds in spent.items()}


def peak() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def memory_of(arm: str, width: int) -> int:
    """Bytes that three steps take at most, above a plain step."""
    steps(Net(8))[arm]()  # imports whatever it needs
    net = Net(width)
    calls = steps(net)
    torch.stack(net.losses()).sum().backward()
    net.zero_grad(set_to_none=True)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = peak()
    for _ in range(3):
        calls[arm]()
        net.zero_grad(set_to_none=True)
    return peak() - before


def memory_on_gpu(arm: str, width: int, device: str) -> int:
    net = Net(width, device)
    call = steps(net)[arm]
    call()
    net.zero_grad(set_to_none=True)
    return peak_bytes(call, device)


def fresh(device: str, what: str, width: str) -> dict[str, float]:
    """In a process of its own, which a GPU does not need."""
    if device != CPU:
        return time_steps(int(width), device) if what == "time" else {what: memory_on_gpu(what, int(width), device)}
    arguments = ("--one", what, width)
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    add_device(parser)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one:
        what, width = arguments.one
        print(json.dumps(time_steps(int(width)) if what == "time" else {what: memory_of(what, int(width))}))
        return 0
    device = arguments.device
    announce(device)
    missed = []
    print("| parameters | | sum | rows | sketch | TorchJD | TorchJD, Gramian | sketch / TorchJD |\n|---|---|---|---|---|---|---|---|")
    for name, width in (WIDTHS if device == CPU else GPU_WIDTHS).items():
        times = [fresh(device, "time", str(width)) for _ in range(arguments.runs)]
        seconds = {arm: float(np.median([run[arm] for run in times])) for arm in ARMS}
        bytes_ = {arm: float(np.median([fresh(device, arm, str(width))[arm] for _ in range(arguments.runs)])) for arm in ARMS}
        extra = {arm: max(bytes_[arm] - bytes_["sum"], 0.0) for arm in ARMS}
        slower = float(np.median([run["sketch"] / run["torchjd"] for run in times]))
        larger = extra["sketch"] / max(extra["torchjd"], 1.0)
        print(f"| {name} | ms | " + " | ".join(f"{1e3 * seconds[arm]:.1f}" for arm in ARMS) + f" | **{slower:.2f}** |")
        print("| | MiB | " + " | ".join(f"{extra[arm] / 2**20:.0f}" for arm in ARMS) + f" | **{larger:.2f}** |")
        missed += [
            f"MISSED {name}: {what} {value:.3f} (bar {bar})"
            for what, value, bar in (("time", slower, SKETCH_TIME), ("memory", larger, SKETCH_MEMORY))
            if value > bar and device == CPU
        ]
        keep("gradient_strategies", [{"width": width, "seconds": times, "extra": extra} | machine(device)])
    print("\n".join(missed) or met(device))
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
