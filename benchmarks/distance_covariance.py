"""Distance covariance with its gradient against dcor, which gives values alone.

Categories: predictions (n,) against one-hot levels, where dcor keeps matrices of n x n. Numbers: two columns, where dcor has an O(n log n)
form as well. Ours is timed forward and backward, dcor forward. Each round times both in processes of their own, one after the other, on one
thread; values must agree. dcor need not be installed here:

    python benchmarks/distance_covariance.py --peer /path/to/python/with/dcor
    python benchmarks/distance_covariance.py --device cuda      # ours alone, also with a million rows
    python benchmarks/distance_covariance.py            # dcor in this environment; without it ours alone, and the comparisons are missed
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
from _device import CPU, add_device, announce, clock, machine, met, ms_of
from _ending import finish

CELLS_RATIO = 300  # bar: dcor's forward over ours with gradient, one-hot levels, n = 3,000
CELLS_SECONDS = 0.1  # bar: ours with gradient, one-hot levels, n = 100,000, where dcor's matrix would take 80 GB
LINE_RATIO = 2.0  # bar: ours with gradient over dcor's forward, two columns, n = 100,000
LEVELS = 5
CASES = {"cells": ("one-hot levels", 3000), "cells-large": ("one-hot levels", 100_000), "line": ("two columns", 100_000)}


GPU_CASES = {"cells-1m": ("one-hot levels", 1_000_000), "line-1m": ("two columns", 1_000_000)}


def columns(case: str, n: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    codes = rng.integers(LEVELS, size=n)
    y = rng.normal(size=n) + 0.2 * (codes == 0)
    return y, y**2 + rng.normal(size=n) if case.startswith("line") else np.eye(LEVELS)[codes]


def best_of(call: Any, seconds: float = 2.0, now: Any = time.perf_counter) -> float:
    """The fastest call within so many seconds, after one that is not timed."""
    call()
    times: list[float] = []
    until = now() + seconds
    while len(times) < 3 or now() < until:
        began = now()
        call()
        times.append(now() - began)
    return min(times)


def ours(case: str, n: int, device: str = CPU, seconds: float = 2.0) -> dict[str, float]:
    import torch

    from counterpoise.losses import distance_covariance

    torch.set_num_threads(1)
    y, z = (torch.from_numpy(part).to(device) for part in columns(case, n))
    y.requires_grad_()

    def call() -> float:
        y.grad = None
        value = distance_covariance(y, z)
        value.backward()
        return float(value.detach())

    return {"value": call(), "seconds": best_of(call, seconds, clock(device))}


def compare_devices(device: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Ours on a GPU and on one thread of its machine's CPU."""
    found, missed = [], []
    announce(device)
    print(f"\n| | rows | {ms_of(device)}, value and gradient | one thread of its CPU | CPU / GPU |\n|---|---|---|---|---|")
    for case, (name, n) in (CASES | GPU_CASES).items():
        there, here = ours(case, n, device, 0.5), ours(case, n, CPU, 0.5)
        found.append({"case": case, "rows": n, "ours": there, "cpu": here} | machine(device))
        seconds = [1000 * one["seconds"] for one in (there, here)]
        print(f"| {name} | {n:,} | {seconds[0]:.2f} | {seconds[1]:.1f} | {seconds[1] / seconds[0]:.1f} |", flush=True)
        if not np.isclose(there["value"], here["value"], rtol=1e-8, atol=1e-14):
            missed.append(f"{name}, {n:,} rows: {there['value']!r} on the GPU, {here['value']!r} on the CPU")
    return found, missed


def dcor(case: str, n: int) -> dict[str, float]:
    import dcor

    y, z = columns(case, n)
    call = lambda: float(dcor.u_distance_covariance_sqr(y, z))  # noqa: E731
    return {"value": call(), "seconds": best_of(call)}


def in_fresh_process(python: str, who: str, case: str, n: int) -> dict[str, float] | None:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    command = [python, __file__, "--one", who, "--case", case, "--rows", str(n)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads)
    if done.returncode:
        print(f"  {who}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'failed'}", flush=True)
        return None
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def compare(peer: str, rounds: int, scale: float) -> tuple[list[dict[str, Any]], list[str]]:
    found: list[dict[str, Any]] = []
    missed = []
    print("| | rows | ours, value and gradient, ms | dcor, value, ms | dcor / ours |\n|---|---|---|---|---|")
    for case, (name, rows) in CASES.items():
        n = max(100, round(rows * scale))
        mine, theirs = [], []
        for number in range(rounds):
            one = in_fresh_process(sys.executable, "ours", case, n)
            other = in_fresh_process(peer, "dcor", case, n) if case != "cells-large" else None
            found.append({"case": case, "rows": n, "round": number, "ours": one, "dcor": other})
            mine += [one] if one else []
            theirs += [other] if other else []
        if not mine:
            missed.append(f"{name}, {n:,} rows: ours did not run")
            continue
        seconds = float(np.median([one["seconds"] for one in mine]))
        peers = float(np.median([one["seconds"] for one in theirs])) if theirs else float("nan")
        print(f"| {name} | {n:,} | {1000 * seconds:.2f} | {1000 * peers:.1f} | {peers / seconds:.2f} |", flush=True)
        if theirs and not np.isclose(mine[0]["value"], theirs[0]["value"], rtol=1e-8, atol=1e-14):
            missed.append(f"{name}: values {mine[0]['value']!r} and {theirs[0]['value']!r} differ")
        if case == "cells" and not peers / seconds >= CELLS_RATIO:
            missed.append(f"{name}, {n:,} rows: {peers / seconds:.0f} times as fast as dcor < {CELLS_RATIO}")
        if case == "cells-large" and seconds > CELLS_SECONDS:
            missed.append(f"{name}, {n:,} rows: {seconds:.3f} s > {CELLS_SECONDS}")
        if case == "line" and not seconds / peers <= LINE_RATIO:
            missed.append(f"{name}, {n:,} rows: {seconds / peers:.2f} times dcor's forward > {LINE_RATIO:g}")
    print()
    return found, missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default=sys.executable, help="a Python that has dcor; default: this one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the rows; below 1 to see that it runs")
    add_device(parser)
    parser.add_argument("--one", choices=("ours", "dcor"), help=argparse.SUPPRESS)
    parser.add_argument("--case", choices=tuple(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps({"ours": ours, "dcor": dcor}[options.one](options.case, options.rows)))
        return 0
    if options.device != CPU:
        return finish("distance_covariance", *compare_devices(options.device), met(options.device))
    found, missed = compare(options.peer, options.rounds, options.scale)
    return finish("distance_covariance", found, missed)


if __name__ == "__main__":
    sys.exit(main())
