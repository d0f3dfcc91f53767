"""A function in several processes at once, for what ``torch.distributed`` does.

A server imports torch once, and every process is a fork of it: seconds less for each test than with new interpreters. Forks of the test's
own process would not do, since autograd refuses to run in them.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["in_processes"]

multiprocessing.set_forkserver_preload(["torch", "torch._dynamo", "torch.distributed", "pytest"])


def in_processes(function: Callable[..., None], *arguments: Any, size: int = 2) -> None:
    """Call ``function(rank, *arguments)``, a function of a module, in ``size`` processes, and wait for them; an error in one is raised."""
    torch.multiprocessing.start_processes(function, arguments, nprocs=size, start_method="forkserver")
