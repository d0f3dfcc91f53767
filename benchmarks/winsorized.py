"""What clipping gradients in every coordinate costs: WinsorizedMean against sorting, and against TorchJD's TrimmedMean.

One call on m rows of n float32 values, trimming k on each side. ``sort`` is the same winsorized mean written with ``torch.sort``;
TrimmedMean leaves the outer values out instead of clipping them, which is about the same work. Time: one call of each in turn, in one
process, one thread. Memory: peak resident memory of a fresh process above what it held before the call, the rows among it.

    python benchmarks/winsorized.py
    python benchmarks/winsorized.py --device cuda      # 25 times the columns, one process
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _device import CPU, add_device, announce, clock, machine, met, peak_bytes
from _ending import finish
from torch import Tensor

OVER_SORT = 0.6  # bar: time over that of sorting, median of the runs, every case
OVER_TORCHJD = 0.6  # bar: time over that of TrimmedMean
EXTRA = 0.15  # bar: extra peak memory over the size of the rows

CASES = {"batch of 32, 2 each side": (32, 2, 400_000), "batch of 32, 10 %": (32, 3, 400_000), "batch of 256, 10 %": (256, 25, 50_000)}
GPU_COLUMNS = 25  # times as many
ROUNDS = 5  # calls of each in a run


def arms(trim: int) -> dict[str, Callable[[Tensor], Tensor]]:
    from torchjd.aggregation import TrimmedMean

    from counterpoise.gradients import WinsorizedMean

    def by_sorting(rows: Tensor) -> Tensor:
        ordered = rows.sort(dim=0).values
        return rows.clamp(ordered[trim], ordered[len(rows) - 1 - trim]).mean(dim=0)

    return {"ours": WinsorizedMean(trim=trim), "sort": by_sorting, "torchjd": TrimmedMean(trim)}


def rows_of(m: int, n: int, device: str = CPU) -> Tensor:
    return torch.randn(m, n, generator=torch.Generator(device).manual_seed(0), device=device)


def time_calls(m: int, trim: int, n: int, device: str) -> dict[str, float]:
    """Median seconds of each."""
    rows, calls, now = rows_of(m, n, device), arms(trim), clock(device)
    difference = float((calls["ours"](rows) - calls["sort"](rows)).abs().max())
    assert difference < 1e-5, difference
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(ROUNDS + 1):
        for name in np.roll(list(calls), turn):
            began = now()
            calls[name](rows)
            if turn:
                spent[name].append(now() - began)
    return {name: float(np.median(seconds)) for name, seconds in spent.items()}


def extra_memory(name: str, m: int, trim: int, n: int) -> float:
    """MiB above what the process held before the call."""
    rows, call = rows_of(m, n), arms(trim)[name]
    call(rows[:, :64].clone())  # what is loaded on first use
    before = kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    call(rows)
    return (kilobytes("VmHWM") - before) / 1024


def kilobytes(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def in_fresh_process(name: str, case: tuple[int, int, int], device: str) -> float:
    if device != CPU:  # what its allocator gave out is known without a fresh process
        m, trim, n = case
        rows, call = rows_of(m, n, device), arms(trim)[name]
        call(rows)
        return peak_bytes(lambda: call(rows), device) / 2**20
    command = [sys.executable, __file__, "--memory", name, *map(str, case)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--share", type=float, default=1.0, help="of the columns")
    add_device(parser)
    parser.add_argument("--memory", nargs=4, metavar=("ARM", "M", "TRIM", "N"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        print(extra_memory(options.memory[0], *map(int, options.memory[1:])))
        return 0
    device = options.device
    announce(device)
    share = options.share * (1 if device == CPU else GPU_COLUMNS)
    cases = {name: (m, trim, max(round(n * share), 1000)) for name, (m, trim, n) in CASES.items()}
    rows = []
    for run in range(options.runs):
        for name, case in cases.items():
            seconds = time_calls(*case, device)
            memory = {arm: in_fresh_process(arm, case, device) for arm in seconds}
            row = {"run": run, "case": name, "m": case[0], "trim": case[1], "n": case[2], "seconds": seconds, "memory": memory}
            rows.append(row | machine(device))
        print(f"  run {run + 1} of {options.runs}", flush=True)
    missed = []
    print("\n| case | ms: ours | sort | TrimmedMean | ours over sort | over TrimmedMean | extra MiB: ours | sort | TrimmedMean | rows |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, (m, _, n) in cases.items():
        own = [row for row in rows if row["case"] == name]
        ms = [1000 * np.median([row["seconds"][arm] for row in own]) for arm in ("ours", "sort", "torchjd")]
        ratio = {arm: np.median([row["seconds"]["ours"] / row["seconds"][arm] for row in own]) for arm in ("sort", "torchjd")}
        memory = [np.median([row["memory"][arm] for row in own]) for arm in ("ours", "sort", "torchjd")]
        size = 4 * m * n / 2**20
        print(
            f"| {name} | {ms[0]:.1f} | {ms[1]:.1f} | {ms[2]:.1f} | {ratio['sort']:.2f} | {ratio['torchjd']:.2f} | "
            f"{memory[0]:.1f} | {memory[1]:.1f} | {memory[2]:.1f} | {size:.1f} |"
        )
        for arm, bar in (("sort", OVER_SORT), ("torchjd", OVER_TORCHJD)):
            if device == CPU and ratio[arm] > bar:
                missed.append(f"{name}: {ratio[arm]:.2f} of the time of {arm} > {bar}")
        if device == CPU and memory[0] > EXTRA * size:
            missed.append(f"{name}: {memory[0]:.1f} MiB extra > {EXTRA} of the rows")
    return finish("winsorized", rows, missed, met(device))


if __name__ == "__main__":
    sys.exit(main())
