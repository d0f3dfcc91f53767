"""What a step without the radial component costs: AdamP against the authors' package, timm's loop and torch's AdamW.

A model of 200 parameters, 100 weights of 64 x 64 and 100 vectors of 64, float32, one thread. The gradients of half of the weights are
orthogonal to every row, as those of scale-invariant weights are, so both outcomes of the test occur. Time: one step of each in turn, in one
process. Memory: the peak of a fresh process during a step, above what it held before its optimizer was made, states among it. Before that,
AdamP and SGDP are compared with the package over 500 steps of recorded gradients, with and without Nesterov's.

    python3.11 -m venv PEERS && PEERS/bin/pip install -c constraints.txt -e . adamp==0.3.0 timm
    PEERS/bin/python benchmarks/projected_optimizers.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _ending import finish

from counterpoise.optim import AdamP, ProjectedUpdate

FASTER = 1.6  # bar: time of the package's step over ours, median of the runs
MEMORY = 1.1  # bar: our peak over the package's
EXACT = 1e-12  # bar: largest difference of any parameter over all recorded steps, float64

COUNT, SIDE = 100, 64  # weights of SIDE x SIDE, and as many vectors of SIDE
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
    """From its file alone: the package as a whole needs torchvision."""
    origin = find_spec("timm")
    assert origin is not None and origin.submodule_search_locations
    spec = spec_from_file_location("timm_adamp", Path(origin.submodule_search_locations[0]) / "optim" / "adamp.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.AdamP


def model(count: int = COUNT, side: int = SIDE) -> list[torch.nn.Parameter]:
    """As many weights as vectors, with gradients; the first half of the weights is scale invariant."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((side, side), (side,)) for _ in range(count)]
    for i, p in enumerate(params):
        p.grad = torch.randn(p.shape, generator=generator)
        if i < count // 2:
            w = p.detach()
            p.grad -= w * (p.grad * w).sum(1, keepdim=True) / w.square().sum(1, keepdim=True)
    return params


def time_steps(rounds: int) -> dict[str, float]:
    """Median seconds of a step of each."""
    optimizers = {name: make(model()) for name, make in arms().items()}
    spent: dict[str, list[float]] = {name: [] for name in optimizers}
    for turn in range(rounds + 2):
        for name in np.roll(list(optimizers), turn):
            began = time.perf_counter()
            optimizers[name].step()
            if turn > 1:
                spent[name].append(time.perf_counter() - began)
    return {name: float(np.median(seconds)) for name, seconds in spent.items()}


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="steps of each in a run")
    parser.add_argument("--steps", type=int, default=500, help="of the comparison")
    parser.add_argument("--memory", metavar="ARM", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        print(peak_memory(options.memory))
        return 0
    differences = compare(options.steps)
    rows = []
    for run in range(options.runs):
        seconds = time_steps(options.rounds)
        rows.append({"run": run, "seconds": seconds, "memory": {name: in_fresh_process(name) for name in seconds}})
        print(f"  run {run + 1} of {options.runs}", flush=True)
    ratio = {
        name: (
            float(np.median([row["seconds"]["package adamp"] / row["seconds"][name] for row in rows])),
            float(np.median([row["memory"][name] / row["memory"]["package adamp"] for row in rows])),
        )
        for name in rows[0]["seconds"]
    }
    print("\n| optimizer | ms per step | times as fast as the package | peak, MiB | over the package's |\n|---|---|---|---|---|")
    for name, (faster, memory) in ratio.items():
        own = [(1000 * row["seconds"][name], row["memory"][name]) for row in rows]
        ms, mib = np.median(own, axis=0)
        bars = (f" (bar {FASTER})", f" (bar {MEMORY})") if name == "AdamP" else ("", "")
        print(f"| {name} | {ms:.2f} | {faster:.2f}{bars[0]} | {mib:.1f} | {memory:.2f}{bars[1]} |")
    missed = [f"{variant}: {value:.1e} from the package > {EXACT:g}" for variant, value in differences.items() if value > EXACT]
    faster, memory = ratio["AdamP"]
    if faster < FASTER:
        missed.append(f"AdamP is {faster:.2f} times as fast as the package < {FASTER}")
    if memory > MEMORY:
        missed.append(f"AdamP holds {memory:.2f} times as much memory as the package > {MEMORY}")
    return finish("projected_optimizers", (row | {"differences": differences} for row in rows), missed)


if __name__ == "__main__":
    sys.exit(main())
