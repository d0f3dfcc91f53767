"""What a call costs on a device: seconds and bytes.

On the CPU every benchmark has measures of its own, CPU time and the resident memory of a fresh process, and its bars are about these. On a
GPU the clock is read when all that was queued has been computed, and memory is what torch's allocator gave out, so that one process does;
there the ratios are shown, and only agreement is judged.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from typing import Any

CPU = "cpu"  # for which torch is not needed: the interpreters of some peers have none


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default=CPU, help=f"a torch device; default {CPU}. On a GPU sizes are larger and no bar is judged")


def clock(device: str, cpu: Callable[[], float] = time.perf_counter) -> Callable[[], float]:
    """A function that reads the seconds: ``cpu``, or on a GPU the time when it has caught up."""
    if device == CPU:
        return cpu
    import torch

    def synchronized() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronized


def peak_bytes(call: Callable[[], Any], device: str) -> int:
    """Largest amount allocated on a GPU during a call, above what was allocated before it."""
    import torch

    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def machine(device: str) -> dict[str, str]:
    """For the rows of a GPU: its name and the version of torch."""
    if device == CPU:
        return {}
    import torch

    return {"device": torch.cuda.get_device_name(device), "torch": torch.__version__}


def announce(device: str) -> None:
    """Print a GPU's name and the version of torch."""
    if device != CPU:
        print(", ".join(f"{key} {value}" for key, value in machine(device).items()), flush=True)


def ms_of(device: str) -> str:
    """Head of a column of times."""
    return "ms of CPU" if device == CPU else "ms"


def met(device: str) -> str:
    """Last line where nothing was missed."""
    return "all bars met" if device == CPU else "no bar is about a GPU; what was compared agrees"
