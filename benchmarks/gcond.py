"""GCond against the class of its authors: the time to resolve conflicts, and the bytes that wait between updates.

Four accumulated gradients of n = 2,000,000 numbers in 12 tensors. *One pair*: two of them oppose each other, the others do not. *All*:
every pair does. Each update takes new gradients that go on where the last ones were. Time: from accumulated gradients to the gradient of
the optimizer, momentum included - ``GCond()(rows)`` against ``_project``, ``_momentum_update`` and ``_write_to_model`` of the authors'
class ``GradientConductor`` -, one update of each in turn, in one process, one thread. Gradients are kept in the same dtype on both sides:
the authors' bfloat16, and float32, for which the buffers of their class are replaced. Bytes: gradients, what is kept of those of the step
before, momentum, and the random signs of sketches; for the authors' class all of its lists of buffers.

    git clone https://github.com/AlevLab-dev/GCond
    python benchmarks/gcond.py                       # --peer FOLDER if it is elsewhere than in GCond
    python benchmarks/gcond.py --device cuda --entries 20000000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _device import CPU, add_device, announce, clock, machine, met
from _ending import finish
from torch import Tensor, nn

FASTER = 3.0  # bar: their time over ours, median of the runs, every case
BYTES = 0.60  # bar: our bytes over theirs, at the same dtype

TASKS, ENTRIES, TENSORS = 4, 2_000_000, 12
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
CASES = ("one pair", "all")
UPDATES = 6  # in a run, of which the first is not counted


def shapes(n: int) -> list[int]:
    """Tensors of unequal sizes."""
    parts = np.linspace(1, 3, TENSORS)
    sizes = np.floor(parts / parts.sum() * n).astype(int)
    sizes[-1] += n - sizes.sum()
    return sizes.tolist()


def gradients(case: str, n: int, seed: int, device: str) -> Iterator[list[Tensor]]:
    """Update after update, the gradients (4, n_p) for every tensor."""
    generator = torch.Generator(device).manual_seed(seed)
    against = {
        "one pair": torch.tensor([[1.0, 0.3, 0.3, 0.3], [-1.0, 0.3, 0.3, 0.3], [0.0, 1.0, 0.5, 0.0], [0.0, 1.0, 0.0, 0.5]]),
        "all": torch.eye(TASKS) * 1.2 - 0.3,
    }[case].to(device)
    still = torch.randn(TASKS, n, generator=generator, device=device)
    while True:
        noise = torch.randn(TASKS, n, generator=generator, device=device)
        whole = against @ (still + 0.3 * noise) + 0.05 * noise
        yield list(whole.split(shapes(n), dim=1))


def published(folder: Path, n: int, dtype: torch.dtype, device: str) -> Any:
    """The authors' class with buffers of ``dtype``."""
    sys.path.insert(0, str(folder))
    from grad_conductor import GradientConductor  # type: ignore[import-not-found]

    model = nn.ParameterList([nn.Parameter(torch.zeros(size, device=device)) for size in shapes(n)])
    names = [str(i) for i in range(TASKS)]
    conductor = GradientConductor(model, dict.fromkeys(names), dict.fromkeys(names, 1.0), TASKS)
    for buffers in (conductor.accumulators, conductor.prev_accumulators):
        for name in names:
            buffers[name] = [part.to(dtype) for part in buffers[name]]
    conductor.momentum = [part.to(dtype) for part in conductor.momentum]
    conductor.final_update = [part.to(dtype) for part in conductor.final_update]
    return conductor


def their_update(conductor: Any, rows: list[Tensor], now: Callable[[], float]) -> tuple[float, float]:
    """(seconds, pairs resolved); the gradients are in place before the clock starts, the buffers are swapped after it has stopped."""
    for i, name in enumerate(conductor.accumulators):
        for buffer, part in zip(conductor.accumulators[name], rows, strict=True):
            buffer.copy_(part[i])
    began = now()
    with torch.no_grad():
        conductor._last_safe, stats = conductor._project()
        conductor._momentum_update(conductor._last_safe)
        conductor._write_to_model()
    seconds = now() - began
    conductor.accumulators, conductor.prev_accumulators = conductor.prev_accumulators, conductor.accumulators
    return seconds, stats["proj_iters"]


def their_bytes(conductor: Any) -> int:
    lists = [*conductor.accumulators.values(), *conductor.prev_accumulators.values()]
    lists += [conductor.momentum, conductor.final_update, conductor._last_safe]
    return sum(part.nbytes for buffers in lists for part in buffers)


def compare(folder: Path, case: str, dtype: torch.dtype, n: int, seed: int, device: str) -> dict[str, Any]:
    from counterpoise.gradients import GCond

    now = clock(device)
    conductor, gcond = published(folder, n, dtype, device), GCond(momentum=0.85, stability_reference="published")
    spent: dict[str, list[float]] = {"ours": [], "theirs": []}
    pairs: dict[str, list[float]] = {"ours": [], "theirs": []}
    stream = gradients(case, n, seed, device)
    for update in range(UPDATES):
        rows = [part.to(dtype) for part in next(stream)]
        named = {str(slot): part for slot, part in enumerate(rows)}
        for who in ("ours", "theirs") if update % 2 else ("theirs", "ours"):
            if who == "theirs":
                seconds, resolved = their_update(conductor, rows, now)
            else:
                began = now()
                found = gcond(named)
                seconds, resolved = now() - began, float(gcond.last["iterations"])
            if update:
                spent[who].append(seconds)
                pairs[who].append(resolved)
        if not update:
            theirs = torch.cat([p.grad.float() for p in conductor.grad_params])
            ours = torch.cat([part.float() for part in found.values()])
            apart = float((ours - theirs).norm() / theirs.norm())
            assert apart < (0.05 if dtype == torch.bfloat16 else 1e-4), apart
    assert min(pairs["ours"]) >= 1 and min(pairs["theirs"]) >= 1, pairs
    signs = n  # a byte each
    mine = sum(part.nbytes for part in rows) + sum(value.nbytes for value in gcond.state_dict().values()) + signs
    return {
        "seconds": {who: float(np.median(values)) for who, values in spent.items()},
        "pairs": {who: float(np.mean(values)) for who, values in pairs.items()},
        "bytes": {"ours": mine, "theirs": their_bytes(conductor)},
        "apart": apart,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, default=Path("GCond"), metavar="FOLDER", help="with grad_conductor.py")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--entries", type=int, default=ENTRIES)
    add_device(parser)
    options = parser.parse_args()
    if not (options.peer / "grad_conductor.py").exists():
        print(f"no grad_conductor.py in {options.peer}: git clone https://github.com/AlevLab-dev/GCond, or --peer FOLDER", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    device = options.device
    announce(device)
    rows = []
    for run in range(options.runs):
        for dtype in DTYPES:
            for case in CASES:
                found = compare(options.peer, case, DTYPES[dtype], options.entries, run, device)
                rows.append({"run": run, "case": case, "dtype": dtype, "n": options.entries} | found | machine(device))
        print(f"  run {run + 1} of {options.runs}", flush=True)
    missed = []
    print("\n| gradients in | conflict | ms: ours | authors | faster, runs | median | pairs: ours | authors | MB: ours | authors | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for dtype in DTYPES:
        for case in CASES:
            own = [row for row in rows if (row["dtype"], row["case"]) == (dtype, case)]
            ms = {who: 1000 * np.median([row["seconds"][who] for row in own]) for who in ("ours", "theirs")}
            ratios = [row["seconds"]["theirs"] / row["seconds"]["ours"] for row in own]
            pairs = {who: np.mean([row["pairs"][who] for row in own]) for who in ("ours", "theirs")}
            size = {who: own[0]["bytes"][who] / 1e6 for who in ("ours", "theirs")}
            print(
                f"| {dtype} | {case} | {ms['ours']:.0f} | {ms['theirs']:.0f} | {', '.join(f'{ratio:.1f}' for ratio in ratios)} | "
                f"{np.median(ratios):.1f} | {pairs['ours']:.1f} | {pairs['theirs']:.1f} | {size['ours']:.1f} | {size['theirs']:.1f} | "
                f"{size['ours'] / size['theirs']:.2f} |"
            )
            if device == CPU and np.median(ratios) < FASTER:
                missed.append(f"{dtype}, {case}: {np.median(ratios):.1f} times faster < {FASTER}")
            if size["ours"] > BYTES * size["theirs"]:
                missed.append(f"{dtype}, {case}: {size['ours'] / size['theirs']:.2f} of the bytes > {BYTES}")
    return finish("gcond", rows, missed, met(device))


if __name__ == "__main__":
    sys.exit(main())
