"""Sums and rows over processes, with gradients, and objects of all processes; nothing where there is only one process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["all_gather_objects", "all_gather_rows", "all_reduce_mean_", "all_reduce_sum", "gather_rows", "world_size"]

BUCKET_BYTES = 25 * 2**20  # sent at once, as DistributedDataParallel does


def world_size(group: Any = None) -> int:
    """Processes in ``group`` (the default group if None); 1 where torch.distributed is not in use."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


class _AllReduceSum(torch.autograd.Function):
    """y = sum over ranks of x. Every rank's loss depends on every x, so the gradients of all ranks are summed on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def all_reduce_sum(x: Tensor, group: Any = None) -> Tensor:
    """The sum of ``x`` over the processes of ``group``, on each of them, differentiable; ``x`` itself where there is one process."""
    if world_size(group) == 1:
        return x
    total: Tensor = _AllReduceSum.apply(x, group)  # type: ignore[no-untyped-call]
    return total


def all_reduce_mean_(tensors: Sequence[Tensor], group: Any = None) -> None:
    """Replace every tensor by its mean over the processes of ``group``, a few megabytes at a time; nothing where there is one process."""
    ranks = world_size(group)
    if ranks == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.all_reduce(flat, group=group)
        flat /= ranks
        for tensor, part in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type and device that follow each other, up to a size."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.nbytes > BUCKET_BYTES or (tensor.dtype, tensor.device) != (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


def all_gather_rows(x: Tensor, group: Any = None) -> Tensor:
    """The rows of ``x`` of every process of ``group``, one after the other, on each of them, without gradients.

    Processes may have different numbers of rows, also none, of the same type. The result lies where the group's back end works.
    """
    return x.detach() if world_size(group) == 1 else torch.cat(_rows_by_process(x, group))


def _rows_by_process(x: Tensor, group: Any) -> list[Tensor]:
    """The rows of each process of several, in the order of their ranks: two exchanges, of how many there are and of the rows."""
    size = world_size(group)
    x = x.detach().to(torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(group) == "nccl" else "cpu")
    rows = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(size)]
    dist.all_gather(rows, torch.tensor([len(x)], device=x.device), group=group)
    counts = [int(count) for count in rows]
    padded = x.new_zeros(max(counts), *x.shape[1:])
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in range(size)]
    dist.all_gather(parts, padded, group=group)
    return [part[:count] for part, count in zip(parts, counts, strict=True)]


class _GatherRows(torch.autograd.Function):
    """All rows, on every process. Every rank's loss depends on them, so the gradients of all ranks are summed on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: list[Tensor], first: int, group: Any) -> Tensor:
        ctx.own, ctx.group = slice(first, first + len(x)), group
        return torch.cat(parts).to(x.device)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total[ctx.own], None, None, None


def gather_rows(x: Tensor, group: Any = None) -> tuple[Tensor, int]:
    """The rows of ``x`` of every process of ``group``, one after the other, differentiable, and where those of this process begin.

    Processes may have different numbers of rows. ``(x, 0)`` where there is one process.
    """
    if world_size(group) == 1:
        return x, 0
    parts = _rows_by_process(x, group)
    first = sum(len(part) for part in parts[: dist.get_rank(group)])
    rows: Tensor = _GatherRows.apply(x, parts, first, group)  # type: ignore[no-untyped-call]
    return rows, first


def all_gather_objects(x: Any, group: Any = None) -> list[Any]:
    """``x`` of every process of ``group``: something small that pickles; ``[x]`` where there is one process."""
    if world_size(group) == 1:
        return [x]
    gathered: list[Any] = [None] * world_size(group)
    dist.all_gather_object(gathered, x, group=group)
    return gathered
