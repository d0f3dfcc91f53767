"""The examples that are measured, their groups, and the loss of each: what a user hands in, checked and made uniform."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from counterpoise._errors import bad_input, check_range, listing
from counterpoise._pergrad import random_states, take

__all__ = ["BatchIds", "Probe", "draw", "per_example_loss", "size_of", "target_or_none"]

MAX_GROUPS = 1000
BINS = 10  # ranges of a continuous target, equally filled
_FUNCTIONS = (
    F.cross_entropy,
    F.nll_loss,
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.poisson_nll_loss,
    F.kl_div,
    F.soft_margin_loss,
    F.multi_margin_loss,
    F.multilabel_soft_margin_loss,
    F.multilabel_margin_loss,
    F.hinge_embedding_loss,
)


@dataclass(frozen=True, eq=False)
class Probe:
    """Batches as the model takes them, with group ids (-1 for none) and positions in the data, batch by batch."""

    batches: list[Any]
    sizes: list[int]
    ids: list[Tensor]
    index: list[Tensor]
    group_names: tuple[str, ...]
    kind: str
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return sum(self.sizes)


# ---- losses -----------------------------------------------------------------------------------------------------------------------------


def per_example_loss(
    loss_fn: Any, forward: Callable[[nn.Module, Any], Any] | None, loss: Callable[[Any, Any], Tensor] | None
) -> Callable[[nn.Module, Any, int], tuple[Any, Tensor]]:
    """A function (model, batch, n) -> (output, losses (n,)) with checks."""
    if loss_fn is None and loss is None:
        bad_input("loss_fn", None, "a loss with reduction='none'", "Or give loss=lambda output, batch: ... of shape (m,).")
    unreduced = None if loss is not None else _unreduced(loss_fn)

    def run(model: nn.Module, batch: Any, n: int) -> tuple[Any, Tensor]:
        output = forward(model, batch) if forward is not None else _default_forward(model, batch)
        value = loss(output, batch) if loss is not None else unreduced(output, _target_of(batch))  # type: ignore[misc]
        return output, _checked(value, n, "loss" if loss is not None else "loss_fn")

    return run


def _unreduced(loss_fn: Any) -> Any:
    reduction = getattr(loss_fn, "reduction", None)
    if isinstance(loss_fn, nn.Module) and reduction in ("mean", "sum"):
        loss_fn = copy.copy(loss_fn)
        loss_fn.reduction = "none"
        return loss_fn
    if any(loss_fn is known for known in _FUNCTIONS):
        return lambda output, target: loss_fn(output, target, reduction="none")
    if not callable(loss_fn):
        bad_input("loss_fn", loss_fn, "a function or module of (output, target)")
    return loss_fn


def _checked(value: Any, n: int, argument: str) -> Tensor:
    if not isinstance(value, Tensor):
        bad_input(argument, f"a result of type {type(value).__name__}", "a tensor with one loss per example")
    if value.ndim == 0 and n != 1:
        bad_input(
            argument,
            "a loss that returns one number for the batch",
            f"one that returns a loss per example, shape ({n},)",
            "Set reduction='none'; a mean over the batch rescales every gradient.",
        )
    if value.numel() % n or (value.ndim and value.shape[0] != n and value.numel() != n):
        bad_input(argument, f"losses of shape {tuple(value.shape)}", f"one loss per example, shape ({n},)")
    # Positions and outputs within an example are averaged, as reduction='mean' does.
    return value.reshape(n, -1).mean(dim=1)


def _default_forward(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        bad_input("data", "batches that are dictionaries", "also forward=lambda model, batch: ... and loss=lambda output, batch: ...")
    if isinstance(batch, Sequence):
        return model(*batch[:-1]) if len(batch) > 1 else model(*batch)
    return model(batch)


def _target_of(batch: Any) -> Any:
    if isinstance(batch, Sequence) and len(batch) > 1:
        return batch[-1]
    bad_input("data", "batches without a target", "(input, target) pairs", "Or give loss=lambda output, batch: ...")


def target_or_none(batch: Any) -> Tensor | None:
    """The target of an (input, ..., target) batch, if it is a tensor."""
    last = batch[-1] if isinstance(batch, Sequence) and len(batch) > 1 else None
    return last if isinstance(last, Tensor) else None


class BatchIds:
    """Group ids of batches that come one after the other: whole numbers, whose names stay what they are as more groups appear."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ("all",)
        self._given = False

    def ids(self, given: Any, n: int) -> Tensor:
        """(n,) ids; all examples in one group where None is given."""
        if given is None:
            return torch.zeros(n, dtype=torch.int64)
        values = _ids_of(given).reshape(-1)
        if len(values) != n or (values.is_floating_point() and bool((values != values.round()).any())):
            bad_input(
                "groups", f"an array of {values.dtype}, shape {tuple(values.shape)}", f"one whole number for each of the {n} examples"
            )
        values = values.long()
        most = int(values.max()) + 1
        if most > MAX_GROUPS:
            bad_input("groups", f"the id {most - 1}", f"ids below {MAX_GROUPS}")
        if not self._given or most > len(self.names):
            self.names = tuple(str(k) for k in range(max(most, len(self.names) if self._given else 1)))
            self._given = True
        return values.clamp(min=-1)


# ---- examples ---------------------------------------------------------------------------------------------------------------------------


def size_of(batch: Any) -> int:
    first = next((leaf for leaf in _tensors(batch) if leaf.ndim), None)
    if first is None:
        bad_input("data", f"a batch of type {type(batch).__name__} without tensors", "tensors, (input, target) pairs or dictionaries")
    return int(first.shape[0])


def _tensors(batch: Any) -> list[Tensor]:
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]


def draw(data: Any, groups: Any, *, max_examples: int, batch_size: int, seed: int, device: torch.device) -> Probe:
    """At most ``max_examples`` examples: of tensors a random part, of a loader its first batches."""
    check_range("max_examples", max_examples, low=1, integer=True)
    check_range("batch_size", batch_size, low=1, integer=True)
    with random_states(generators=_generators(data)):  # of which a loader takes
        batches, index, total = _batches(data, max_examples, batch_size, seed)
    if not batches:
        bad_input("data", "no examples", "at least one")
    sizes = [len(rows) for rows in index]
    for batch, n in zip(batches, sizes, strict=True):
        for leaf in _tensors(batch):
            # Infinite entries are legal in masks; where they do harm, the losses show it.
            if leaf.is_floating_point() and leaf.ndim and leaf.shape[0] == n and bool(torch.isnan(leaf).any()):
                row = int(torch.isnan(leaf).reshape(n, -1).any(dim=1).nonzero()[0])
                bad_input("data", f"numbers that are NaN (example {row} of its batch)", "inputs and targets without NaN")
    ids, names, kind, notes = _group_ids(data, batches, index, total, groups)
    notes = (*notes, *_order_notes(data, sum(sizes)))
    if len(ids) != sum(sizes):
        bad_input("groups", f"{len(ids)} values for {sum(sizes)} examples", "one for each row of the batches' first tensors")
    if len(names) > MAX_GROUPS:
        bad_input("groups", f"{len(names)} groups", f"at most {MAX_GROUPS}", "Groups.from_bins(...) makes ranges of a continuous value.")
    batches = [tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch) for batch in batches]
    return Probe(batches, sizes, list(torch.split(ids, sizes)), index, names, kind, notes)


def _generators(data: Any) -> list[torch.Generator]:
    """Those that a loader and its samplers draw from."""
    holders = [data, getattr(data, "sampler", None), getattr(data, "batch_sampler", None)]
    holders.append(getattr(holders[-1], "sampler", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


def _order_notes(data: Any, m: int) -> tuple[str, ...]:
    """What the order of a loader means for the reader."""
    from torch.utils.data import DataLoader

    if not isinstance(data, DataLoader):
        return ()
    if not _in_fixed_order(data):
        return ("The loader shuffles: index (of leverage and opposing pairs) counts the examples as it gave them.",)
    try:
        whole = len(data.dataset)  # type: ignore[arg-type]
    except TypeError:  # a stream
        return ()
    if whole > m:
        return (f"Only the first {m:,} of {whole:,} examples of a loader in a fixed order: if it is sorted, this is no fair part of them.",)
    return ()


def _batches(data: Any, most: int, batch_size: int, seed: int) -> tuple[list[Any], list[Tensor], int | None]:
    if isinstance(data, tuple | list) and data and all(isinstance(part, Tensor) for part in data):
        total = len(data[0])
        if any(len(part) != total for part in data):
            bad_input("data", f"tensors of {', '.join(str(len(part)) for part in data)} rows", "as many rows in each")
        chosen = torch.arange(total)
        if total > most:
            chosen = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:most].sort().values
        index = list(torch.split(chosen, batch_size)) if total else []
        return [tuple(part[rows.to(part.device)] for part in data) for rows in index], index, total
    if isinstance(data, Tensor | Mapping | str) or not isinstance(data, Iterable):
        bad_input("data", f"{type(data).__name__}", "a DataLoader, another iterable of batches, or a tuple of tensors (inputs, targets)")
    batches, index, start = [], [], 0
    for batch in data:
        batch = tuple(batch) if isinstance(batch, list) else dict(batch) if isinstance(batch, Mapping) else batch
        n = size_of(batch)
        if start + n > most:
            batch, n = take(batch, slice(0, most - start), n), most - start
        if n:
            batches.append(batch)
            index.append(torch.arange(start, start + n))
        start += n
        if start >= most:
            break
    return batches, index, None


def _group_ids(
    data: Any, batches: list[Any], index: list[Tensor], total: int | None, groups: Any
) -> tuple[Tensor, tuple[str, ...], str, tuple[str, ...]]:
    from counterpoise.groups import Groups

    rows = torch.cat(index)
    m = len(rows)
    if groups is None:
        return torch.zeros(m, dtype=torch.int64), ("all",), "group", ()
    if isinstance(groups, Groups):
        return *_rows_of(groups.to_torch(), rows, total, data), groups.names, groups.kind, ()
    if isinstance(groups, str):
        values = torch.cat([_named(batch, groups) for batch in batches])
        return _coded(values, "class" if groups == "target" else "group", groups)
    if callable(groups):
        parts = [_ids_of(groups(batch)) for batch in batches]
        for part, where in zip(parts, index, strict=True):
            if part.shape != where.shape:
                bad_input(
                    "groups", f"a function that returns shape {tuple(part.shape)}", f"one id per example of the batch, ({len(where)},)"
                )
        return _coded(torch.cat(parts), "group", "groups", given=True)
    values = _ids_of(groups)
    (chosen,) = _rows_of(values, rows, total, data)
    return _coded(chosen, "group", "groups", given=True)


def _ids_of(values: Any) -> Tensor:
    array = np.asarray(_plain(values))
    if array.dtype.kind not in "biuf":
        bad_input("groups", f"ids of type {array.dtype}", "whole numbers, one per example", "Groups.from_labels(...) takes names.")
    return torch.as_tensor(array)


def _plain(values: Any) -> Any:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def _rows_of(values: Tensor, rows: Tensor, total: int | None, data: Any) -> tuple[Tensor]:
    if not _in_fixed_order(data):
        bad_input(
            "groups", "one id per example for a loader that shuffles", "a loader in a fixed order", "Or give groups=lambda batch: ids."
        )
    expected = total if total is not None else int(rows.max()) + 1
    if values.ndim != 1 or (len(values) != expected if total is not None else len(values) < expected):
        bad_input("groups", f"an array of shape {tuple(values.shape)}", f"one id per example, shape ({expected},)")
    return (values[rows],)


def _in_fixed_order(data: Any) -> bool:
    from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

    if not isinstance(data, DataLoader):
        return True
    sampler: Any = data.sampler
    if data.batch_sampler is not None:  # beside one of the user's own, .sampler says nothing
        sampler = data.batch_sampler.sampler if type(data.batch_sampler) is BatchSampler else None
    return isinstance(sampler, SequentialSampler)


def _named(batch: Any, key: str) -> Tensor:
    if isinstance(batch, Mapping):
        if key not in batch:
            hint = "For batches that are dictionaries name the key that holds the groups, or pass groups=None." if key == "target" else ""
            bad_input("groups", key, f"a key of the batch, one of {listing(batch)}", hint)
        return torch.as_tensor(batch[key]).detach().cpu()
    if key != "target":
        bad_input("groups", key, "'target', or a key of batches that are dictionaries")
    return torch.as_tensor(_target_of(batch)).detach().cpu()


def _coded(values: Tensor, kind: str, argument: str, given: bool = False) -> tuple[Tensor, tuple[str, ...], str, tuple[str, ...]]:
    """Ids 0..G-1 with names. Numbers with a fraction are binned; given whole numbers below 0 mean none."""
    from counterpoise.groups import Groups

    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        bad_input(
            "groups",
            f"{argument!r} of shape {tuple(values.shape)}",
            "one value per example",
            "Give groups=lambda batch: ids, or groups=None.",
        )
    if values.is_floating_point():
        if bool(torch.isnan(values).any()):
            bad_input("groups", f"{int(torch.isnan(values).sum())} ids that are NaN", "a group for each example", "-1 stands for none.")
        whole = bool((values == values.round()).all()) and len(torch.unique(values)) <= 20
        if not whole:
            binned = Groups.from_bins(values.double().numpy(), bins=BINS, strategy="quantile")
            note = f"{argument} is continuous: {len(binned.names)} ranges with equally many examples."
            return binned.to_torch(), binned.names, "bin", (note,)
        values = values.long()
    values = values.long()
    distinct = torch.unique(values)
    if given:
        distinct = distinct[distinct >= 0]
        # Ids that count from 0 keep their numbers, so that groups without an example keep their row.
        if len(distinct) and int(distinct.max()) < MAX_GROUPS:
            distinct = torch.arange(int(distinct.max()) + 1)
        elif len(distinct) > MAX_GROUPS:
            bad_input(
                "groups", f"{len(distinct)} groups", f"at most {MAX_GROUPS}", "Groups.from_bins(...) makes ranges of a continuous value."
            )
    ids = torch.searchsorted(distinct, values).clamp(max=max(len(distinct) - 1, 0))
    ids[values < distinct[0] if given and len(distinct) else torch.zeros_like(values, dtype=torch.bool)] = -1
    if given and not len(distinct):
        ids = torch.full_like(values, -1)
    return ids, tuple(str(value) for value in distinct.tolist()), kind, ()
