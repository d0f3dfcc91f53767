"""What a step without the radial component costs: AdamP against the authors' package, timm's loop and torch's AdamW.

A model of 200 parameters, 100 weights of 64 x 64 and 100 vectors of 64, float32, one thread. The gradients of half of the weights are
orthogonal to every row, as those of scale-invariant weights are, so both outcomes of the test occur. Time: one step of each in turn, in one
process. Memory: the peak of a fresh process during a step, above what it held before its optimizer was made, states among it. Before that,
AdamP and SGDP are compared with the package over 500 steps of recorded gradients, with and without Nesterov's.

    python3.11 -m venv PEERS && PEERS/bin/pip install -c constraints.txt -e . adamp==0.3.0 timm
    PEERS/bin/python benchmarks/projected_optimizers.py
    PEERS/bin/python benchmarks/projected_optimizers.py --device cuda      # also weights of 512 x 512, as many; one process
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _device import CPU, add_device, announce, clock, machine, met, peak_bytes
from _ending import finish

from counterpoise.optim import AdamP, ProjectedUpdate

FASTER = 1.6  # bar: time of the package's step over ours, median of the runs
MEMORY = 1.1  # bar: our peak over the package's
EXACT = 1e-12  # bar: largest difference of any parameter over all recorded steps, float64

COUNT, SIDE = 100, 64  # weights of SIDE x SIDE, and as many vectors of SIDE
GPU_SIDES = (64, 512)
SAME = 1e-5  # on a GPU: largest difference of any parameter from the package's after the steps of a run, float32
ROUNDS = 30  # steps of each in a run
OPTIONS = {"lr": 1e-3, "weight_decay": 0.01}


def arms() -> dict[str, Callable[[Sequence[torch.nn.Parameter]], torch.optim.Optimizer]]:
    import adamp

    found: dict[str, Any] = {
        "AdamP": lambda params: AdamP(params, **OPTIONS),
        "AdamP, foreach=False": lambda params: AdamP(params, foreach=False, **OPTIONS),
        "ProjectedUpdate(AdamW, fused)": lambda params: ProjectedUpdate(torch.optim.AdamW(params, fused=True, **OPTIONS)),
        "package adamp": lambda params: adamp.AdamP(params, **OPTIONS),
        "timm": lambda params: timms()(params, **OPTIONS),
        "torch AdamW, foreach": lambda params: torch.optim.AdamW(params, foreach=True, **OPTIONS),
        "torch AdamW, loop": lambda params: torch.optim.AdamW(params, foreach=False, **OPTIONS),
        "torch AdamW, fused": lambda params: torch.optim.AdamW(params, fused=True, **OPTIONS),
    }
    if find_spec("timm") is None:
        del found["timm"]
    return found


def timms() -> Any:
    """From its file alone, if torchvision is not there, which the package as a whole needs."""
    if find_spec("torchvision") is not None:
        from timm.optim.adamp import AdamP as Theirs

        return Theirs
    origin = find_spec("timm")
    assert origin is not None and origin.submodule_search_locations
    spec = spec_from_file_location("timm_adamp", Path(origin.submodule_search_locations[0]) / "optim" / "adamp.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.AdamP


def model(count: int = COUNT, side: int = SIDE, device: str = CPU) -> list[torch.nn.Parameter]:
    """As many weights as vectors, with gradients; the first half of the weights is scale invariant."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = [shape for shape in ((side, side), (side,)) for _ in range(count)]
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator, device=device)) for shape in shapes]
    for i, p in enumerate(params):
        p.grad = torch.randn(p.shape, generator=generator, device=device)
        if i < count // 2:
            w = p.detach()
            p.grad -= w * (p.grad * w).sum(1, keepdim=True) / w.square().sum(1, keepdim=True)
    return params


def time_steps(rounds: int, side: int = SIDE, device: str = CPU) -> tuple[dict[str, float], float]:
    """Median seconds of a step of each, and how far AdamP's parameters are from the package's at the end."""
    models = {name: model(side=side, device=device) for name in arms()}
    optimizers = {name: make(models[name]) for name, make in arms().items()}
    now = clock(device)
    spent: dict[str, list[float]] = {name: [] for name in optimizers}
    for turn in range(rounds + 2):
        for name in np.roll(list(optimizers), turn):
            began = now()
            optimizers[name].step()
            if turn > 1:
                spent[name].append(now() - began)
    differs = max(float((a - b).detach().abs().max()) for a, b in zip(models["AdamP"], models["package adamp"], strict=True))
    return {name: float(np.median(seconds)) for name, seconds in spent.items()}, differs


def peak_memory(name: str) -> float:
    """MiB above what the process held with its parameters and gradients."""
    make = arms()[name]
    small = make(model(count=4, side=8))
    for _ in range(3):  # what is loaded on first use
        small.step()
    params = model()
    before = kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    optimizer = make(params)
    for _ in range(3):
        optimizer.step()
    return (kilobytes("VmHWM") - before) / 1024


def memory_on_gpu(name: str, side: int, device: str) -> float:
    params = model(side=side, device=device)

    def steps() -> torch.optim.Optimizer:
        optimizer = arms()[name](params)
        for _ in range(3):
            optimizer.step()
        return optimizer

    return peak_bytes(steps, device) / 2**20


def measure_on_gpu(options: argparse.Namespace) -> int:
    rows, missed = [], []
    device = options.device
    announce(device)
    for side in GPU_SIDES:
        for run in range(options.runs):
            seconds, differs = time_steps(options.rounds, side, device)
            memory = {name: memory_on_gpu(name, side, device) for name in seconds}
            rows.append({"run": run, "side": side, "seconds": seconds, "memory": memory, "differs": differs} | machine(device))
        own = [row for row in rows if row["side"] == side]
        print(f"\n{COUNT} weights of {side} x {side}, {COUNT} vectors")
        show(ratios(own), own, bars=False)
        differs = max(row["differs"] for row in own)
        print(f"\nAdamP's parameters differ from the package's by {differs:.1e}")
        if not differs <= SAME:
            missed.append(f"{side} x {side}: {differs:.1e} from the package > {SAME:g}")
    return finish("projected_optimizers", rows, missed, met(device))


def kilobytes(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def in_fresh_process(name: str) -> float:
    done = subprocess.run([sys.executable, __file__, "--memory", name], capture_output=True, text=True, check=True)
    return float(done.stdout)


def compare(steps: int) -> dict[str, float]:
    from counterpoise.replications import adamp as replication

    found = {}
    for variant in replication.VARIANTS:
        row = replication.compare(variant, seed=0, steps=steps)
        assert row["package"] is not None, "the package adamp is not installed"
        found[variant] = row["package"]
        print(f"  {variant}, {steps} steps: largest difference {row['package']:.1e}; tests of weights: {row['kinds']}", flush=True)
    return found


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Of every optimizer: how many times as fast as the package, and memory over the package's."""
    return {
        name: (
            float(np.median([row["seconds"]["package adamp"] / row["seconds"][name] for row in rows])),
            float(np.median([row["memory"][name] / row["memory"]["package adamp"] for row in rows])),
        )
        for name in rows[0]["seconds"]
    }


def show(ratio: dict[str, tuple[float, float]], rows: Sequence[dict[str, Any]], bars: bool) -> None:
    print("\n| optimizer | ms per step | times as fast as the package | peak, MiB | over the package's |\n|---|---|---|---|---|")
    for name, (faster, memory) in ratio.items():
        ms, mib = np.median([(1000 * row["seconds"][name], row["memory"][name]) for row in rows], axis=0)
        said = (f" (bar {FASTER})", f" (bar {MEMORY})") if bars and name == "AdamP" else ("", "")
        print(f"| {name} | {ms:.2f} | {faster:.2f}{said[0]} | {mib:.1f} | {memory:.2f}{said[1]} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="steps of each in a run")
    parser.add_argument("--steps", type=int, default=500, help="of the comparison")
    add_device(parser)
    parser.add_argument("--memory", metavar="ARM", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        print(peak_memory(options.memory))
        return 0
    if options.device != CPU:
        return measure_on_gpu(options)
    differences = compare(options.steps)
    rows = []
    for run in range(options.runs):
        seconds, _ = time_steps(options.rounds)
        rows.append({"run": run, "seconds": seconds, "memory": {name: in_fresh_process(name) for name in seconds}})
        print(f"  run {run + 1} of {options.runs}", flush=True)
    ratio = ratios(rows)
    show(ratio, rows, bars=True)
    missed = [f"{variant}: {value:.1e} from the package > {EXACT:g}" for variant, value in differences.items() if value > EXACT]
    faster, memory = ratio["AdamP"]
    if faster < FASTER:
        missed.append(f"AdamP is {faster:.2f} times as fast as the package < {FASTER}")
    if memory > MEMORY:
        missed.append(f"AdamP holds {memory:.2f} times as much memory as the package > {MEMORY}")
    return finish("projected_optimizers", (row | {"differences": differences} for row in rows), missed)


if __name__ == "__main__":
    sys.exit(main())
