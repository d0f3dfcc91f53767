"""Five ways to the same numbers, by price: hooks, vectorized gradients, forward mode, one backward per group, and a loop to check by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from ._collect import Collector, ParameterSpace
from ._projection import Projection
from ._recurrent import is_recurrent
from ._state import exact_backends
from ._watch import FAILURES, Layouts, StaleInputError, Watch, find_layouts, flat

__all__ = ["CoupledExamplesError", "Job", "Measured", "ghost", "groupwise", "jvp", "loop", "select", "vmap"]

Run = Callable[[nn.Module, Any, int], tuple[Any, Tensor]]  # (model, batch of n examples, n) -> (output, losses (n,))
TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-3}  # of norms against the loop; half precision is compared in float32 at 0.05
CHECKED = 3  # examples on which the hooks are compared with the loop before they are trusted


class CoupledExamplesError(Exception):
    """An example's loss is another one when it is alone: there is no gradient of single examples."""


@dataclass(eq=False)
class Job:
    """What is to be measured on which batches, each sorted by group; ``ids`` are rows 0..n_groups-1 of the group sums."""

    model: nn.Module
    run: Run
    batches: list[Any]
    sizes: list[int]
    ids: list[Tensor]
    n_groups: int
    space: ParameterSpace
    projection: Projection | None = None
    sums: bool = True
    gramian: bool = False
    along: bool = True
    check: bool = True
    chunk: int = 64
    see: Callable[[Any, Tensor, int], None] = lambda output, losses, at: None  # each batch's output and losses
    progress: Callable[[int], None] = lambda examples: None

    @property
    def recurrent(self) -> bool:
        return any(is_recurrent(layer) for layer in self.model.modules())


@dataclass(eq=False)
class Measured:
    """What an engine found; ``norms_sq`` (m, n_blocks). ``missing`` are places of the space that are not in it."""

    losses: Tensor
    norms_sq: Tensor | None = None
    S: Tensor | None = None
    sums: Tensor | None = None
    gramian: Tensor | None = None
    along: Tensor | None = None
    missing: set[int] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def take(batch: Any, rows: Tensor | slice, n: int) -> Any:
    """Some examples of a batch: every tensor with n rows is indexed."""

    def indexed(leaf: Any) -> Any:
        return leaf[rows] if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == n else leaf

    return tree_map(indexed, batch)


# ---- hooks -----------------------------------------------------------------------------------------------------------------------------


def ghost(job: Job) -> Measured:
    """Forward hooks keep what each layer saw; one backward by the activations alone brings the rest."""
    with exact_backends(recurrent=job.recurrent):
        layouts = _layouts(job)
        wrong = _disagreeing(job, layouts) if job.check else set()
        kept = [i for i in range(len(job.space.names)) if i not in wrong]
        if not kept:
            return Measured(torch.zeros(sum(job.sizes)), missing=wrong)
        space = job.space if not wrong else ParameterSpace([job.space.names[i] for i in kept], [job.space.tensors[i] for i in kept])
        found = _hooked(job, space, layouts)
    if wrong:
        found = _completed(job, found, space, kept, wrong)
    return found


def _hooked(job: Job, space: ParameterSpace, layouts: Layouts | None, *, direction: Tensor | None = None, copy: bool = False) -> Measured:
    """One pass over the batches; a second one gives the inner products with the mean gradient, which only then is known."""
    second = direction is not None
    sums = torch.zeros(job.n_groups, space.total, dtype=space.dtype, device=space.device) if job.sums and not second else None
    parts: list[Collector] = []
    losses: list[Tensor] = []
    try:
        with Watch(job.model, space, layouts, copy=copy) as watch, _frozen(job.model):
            for at, (batch, n, ids) in enumerate(zip(job.batches, job.sizes, job.ids, strict=True)):
                collector = Collector(
                    space,
                    ids,
                    job.n_groups,
                    sums=sums,
                    projection=None if second else job.projection,
                    gramian=job.gramian and not second,
                    direction=direction,
                )
                losses.append(_backward(job, watch, collector, batch, n, at, quiet=second))
                parts.append(collector)
                job.progress(n)
            broken = set(watch.broken)
    except StaleInputError:
        # A layer's input was changed in place: once more, with copies. Sums start again from zero.
        return _hooked(job, space, layouts, direction=direction, copy=True)
    if second:
        return Measured(torch.cat(losses), along=torch.cat([part.along for part in parts if part.along is not None]))
    found = Measured(
        torch.cat(losses),
        norms_sq=torch.cat([part.norms_sq for part in parts]),
        S=torch.cat([part.S for part in parts if part.S is not None]) if job.projection else None,
        sums=sums,
        gramian=parts[0].gramian if job.gramian else None,
        missing=broken,
    )
    for place in broken:  # whatever came in before it failed
        if sums is not None:
            sums[:, space.slices[place]] = 0
        assert found.norms_sq is not None
        found.norms_sq[:, place] = 0
    if broken:
        found.S = found.gramian = None  # which mix all parameters
    if found.gramian is not None:
        found.along = found.gramian.mean(dim=1)
    elif job.along and sums is not None:
        mean = sums.sum(dim=0) / len(found.losses)
        found.along = _hooked(job, space, layouts, direction=mean, copy=copy).along
    return found


def _backward(job: Job, watch: Watch, collector: Collector, batch: Any, n: int, at: int, *, quiet: bool) -> Tensor:
    watch.begin(collector, n)
    output, losses = job.run(job.model, batch, n)
    if losses.requires_grad:
        torch.autograd.grad(losses.sum(), [watch.root], allow_unused=True)
    watch.finish()
    losses = losses.detach()
    if not quiet:
        job.see(output, losses, at)
    return losses.double()


class _frozen:
    """No parameter needs a gradient meanwhile, so backward forms those of the activations only."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def __enter__(self) -> None:
        for p in self.parameters:
            p.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for p in self.parameters:
            p.requires_grad_(True)


def _layouts(job: Job) -> Layouts | None:
    n = job.sizes[0]
    if n < 2:
        return None
    sizes = (2, 3) if n > 2 else (1, 2)
    return find_layouts(job.model, job.space, lambda k: job.run(job.model, take(job.batches[0], slice(0, k), n), k), sizes)


def _disagreeing(job: Job, layouts: Layouts | None) -> set[int]:
    """Places whose norms the hooks get wrong on a few examples: parameters used where no hook sees it, layers that mix examples."""
    n = job.sizes[0]
    k = min(CHECKED, n)
    rows = torch.linspace(0, n - 1, k).round().long()  # sorted by group: some of different groups
    small = Job(
        job.model,
        job.run,
        [take(job.batches[0], rows.to(job.space.device), n)],
        [k],
        [job.ids[0][rows.to(job.ids[0].device)]],
        job.n_groups,
        job.space,
        sums=False,
        along=False,
    )
    alone = loop(small)
    truth = alone.norms_sq
    try:
        ours = _hooked(small, job.space, layouts)
    except FAILURES:
        # A layer of this model defeats the hooks as a whole; other engines may still do it.
        return set(range(len(job.space.names)))
    assert truth is not None and ours.norms_sq is not None
    half = any(t.dtype in (torch.float16, torch.bfloat16) for t in job.space.tensors)
    tolerance = 0.05 if half else TOLERANCE[job.space.dtype]
    if bool(((alone.losses - ours.losses).abs() > tolerance * (alone.losses.abs() + 1e-6)).any()):
        raise CoupledExamplesError
    a, b = truth.sqrt(), ours.norms_sq.sqrt()
    # What is tiny beside the whole gradient may be rounding.
    floor = tolerance * 1e-2 * a.square().sum(dim=1, keepdim=True).sqrt()
    off = ((a - b).abs() > tolerance * a + floor).any(dim=0)
    return set(off.nonzero()[:, 0].tolist()) | ours.missing


def _completed(job: Job, found: Measured, space: ParameterSpace, kept: list[int], wrong: set[int]) -> Measured:
    """Parameters that the hooks cannot measure, by vectorized gradients of these alone."""
    rest = sorted(wrong)
    small = ParameterSpace([job.space.names[i] for i in rest], [job.space.tensors[i] for i in rest])
    other = Job(**{**vars(job), "space": small, "along": False, "see": lambda *_: None, "progress": lambda _: None})
    try:
        extra = vmap(other)
        note = "vectorized gradients"
    except FAILURES:
        extra = None
    m = len(found.losses)
    norms = torch.zeros(m, len(job.space.names), dtype=torch.float64, device=job.space.device)
    assert found.norms_sq is not None
    norms[:, kept] = found.norms_sq
    sums = torch.zeros(job.n_groups, job.space.total, dtype=job.space.dtype, device=job.space.device) if found.sums is not None else None
    for places, part, own in ((kept, found, space), (rest, extra, small)):
        if sums is not None and part is not None and part.sums is not None:
            for i, place in enumerate(places):
                sums[:, job.space.slices[place]] = part.sums[:, own.slices[i]]
    found.sums = sums
    if extra is None:
        found.missing |= wrong
        found.norms_sq = norms
        return found
    assert extra.norms_sq is not None
    norms[:, rest] = extra.norms_sq
    found.norms_sq = norms
    if found.S is not None and extra.S is not None:
        found.S = found.S + extra.S
    if found.gramian is not None and extra.gramian is not None:
        found.gramian = found.gramian + extra.gramian
        found.along = found.gramian.mean(dim=1)
    elif found.along is not None and extra.sums is not None:
        mean = extra.sums.sum(dim=0) / m
        found.along = found.along + _along(other, small, mean)
    found.notes.append(
        f"{', '.join(small.names[:4])}{' and others' if len(rest) > 4 else ''}: by {note}, since no hook sees all of their use."
    )
    return found


def _along(job: Job, space: ParameterSpace, direction: Tensor) -> Tensor:
    parts = []
    for batch, n in zip(job.batches, job.sizes, strict=True):
        here = torch.zeros(n, dtype=torch.float64, device=space.device)
        for rows, gradients, _ in _vectorized(job, batch, n):
            here[rows] = sum((g @ direction[s].to(g.dtype)).double() for g, s in zip(gradients, space.slices, strict=True))
        parts.append(here)
    return torch.cat(parts)


# ---- vectorized gradients --------------------------------------------------------------------------------------------------------------


class _Whole(nn.Module):
    """Model and loss as one module, so that the parameters can be replaced wherever the user's functions reach for them."""

    def __init__(self, model: nn.Module, run: Run) -> None:
        super().__init__()
        self.model = model
        self.run = run

    def forward(self, batch: Any, n: int) -> Tensor:
        return self.run(self.model, batch, n)[1]


def _vectorized(job: Job, batch: Any, n: int) -> Iterator[tuple[slice, list[Tensor], Tensor]]:
    """Chunks of (rows, gradients (c, N) per parameter, losses (c,))."""
    whole = _Whole(job.model, job.run)
    leaves, spec = tree_flatten(batch)
    batched = [isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == n for leaf in leaves]
    parameters = {f"model.{name}": tensor.detach() for name, tensor in zip(job.space.names, job.space.tensors, strict=True)}

    def loss(own: dict[str, Tensor], *xs: Tensor) -> tuple[Tensor, Tensor]:
        filled, given = list(leaves), iter(xs)
        for i, is_batched in enumerate(batched):
            if is_batched:
                filled[i] = next(given).unsqueeze(0)
        value = torch.func.functional_call(whole, own, (tree_unflatten(filled, spec), 1))
        total = value.sum()
        return total, total.detach()

    gradient = torch.func.vmap(torch.func.grad(loss, has_aux=True), in_dims=(None, *[0] * sum(batched)), randomness="different")
    tensors = [leaf for leaf, is_batched in zip(leaves, batched, strict=True) if is_batched]
    size = max(1, min(job.chunk, n))
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        with torch.no_grad():  # of the outer graph; the transforms have their own
            found, losses = gradient(parameters, *[t[rows] for t in tensors])
        yield rows, [flat(found[f"model.{name}"]) for name in job.space.names], losses


def vmap(job: Job) -> Measured:
    """``vmap(grad)`` of the whole model, in chunks of examples; needs chunk * P numbers."""
    sums = torch.zeros(job.n_groups, job.space.total, dtype=job.space.dtype, device=job.space.device) if job.sums else None
    parts, losses = [], []
    with exact_backends(transforms=True, recurrent=job.recurrent):
        for at, (batch, n, ids) in enumerate(zip(job.batches, job.sizes, job.ids, strict=True)):
            collector = Collector(job.space, ids, job.n_groups, sums=sums, projection=job.projection, gramian=job.gramian)
            here = torch.zeros(n, dtype=torch.float64)
            for rows, gradients, value in _vectorized(job, batch, n):
                here[rows] = value.detach().double().cpu()
                for place, g in enumerate(gradients):
                    collector.dense(place, g.float() if g.dtype in (torch.float16, torch.bfloat16) else g, rows)
            collector.finish()
            parts.append(collector)
            losses.append(here)
            _show(job, batch, n, at)
            job.progress(n)
        found = Measured(
            torch.cat(losses),
            norms_sq=torch.cat([part.norms_sq for part in parts]),
            S=torch.cat([part.S for part in parts if part.S is not None]) if job.projection else None,
            sums=sums,
            gramian=parts[0].gramian if job.gramian else None,
        )
        if found.gramian is not None:
            found.along = found.gramian.mean(dim=1)
        elif job.along and sums is not None:
            found.along = _along(job, job.space, sums.sum(dim=0) / len(found.losses))
    return found


def _show(job: Job, batch: Any, n: int, at: int) -> None:
    with torch.no_grad():
        output, losses = job.run(job.model, batch, n)
    job.see(output, losses, at)


# ---- forward mode, one backward per group, and the loop --------------------------------------------------------------------------------


def groupwise(job: Job) -> Measured:
    """One ordinary backward per group and batch: exact sums, nothing about single examples."""
    sums = torch.zeros(job.n_groups, job.space.total, dtype=job.space.dtype, device=job.space.device)
    losses = []
    with exact_backends(recurrent=job.recurrent):
        for at, (batch, n, ids) in enumerate(zip(job.batches, job.sizes, job.ids, strict=True)):
            here = torch.zeros(n, dtype=torch.float64)
            for k in torch.unique(ids).tolist():
                rows = (ids == k).nonzero()[:, 0]
                some = batch if len(rows) == n else take(batch, rows.to(job.space.device), n)
                _, value = job.run(job.model, some, len(rows))
                here[rows] = value.detach().double().cpu()
                for place, g in enumerate(_gradients(value.sum(), job.space)):
                    sums[k, job.space.slices[place]] += g.to(sums.dtype)
            losses.append(here)
            _show(job, batch, n, at)
            job.progress(n)
    return Measured(torch.cat(losses), sums=sums)


def _gradients(value: Tensor, space: ParameterSpace) -> list[Tensor]:
    """One flat gradient per parameter; zeros where it is not used."""
    found = torch.autograd.grad(value, space.tensors, allow_unused=True) if value.requires_grad else [None] * len(space.tensors)
    dense = [torch.zeros_like(p) if g is None else g.to_dense() if g.is_sparse else g for g, p in zip(found, space.tensors, strict=True)]
    return [flat(g.detach()[None])[0] for g in dense]


def jvp(job: Job) -> Measured:
    """Forward mode: the inner products of all examples with one direction are one derivative of the losses along it.

    Group sums come from :func:`groupwise`; then one pass for the mean gradient and one for each of the r random directions, whose mean
    square also estimates the norms.
    """
    found = groupwise(Job(**{**vars(job), "progress": lambda _: None}))
    assert found.sums is not None
    mean = found.sums.sum(dim=0) / len(found.losses)
    with exact_backends(forward_mode=True, recurrent=job.recurrent):
        found.along = directional(job, mean)
        if job.projection:
            r = job.projection.r
            generator = torch.Generator().manual_seed(job.projection.seed)
            columns = []
            for _ in range(r):
                direction = torch.randn(job.space.total, generator=generator, dtype=job.space.dtype).to(job.space.device)
                columns.append(directional(job, direction))
            found.S = torch.stack(columns, dim=1).to(job.space.dtype) / r**0.5
            found.notes.append(f"Norms are estimates from {r} random directions (relative error about {(2 / r) ** 0.5:.0%}).")
    return found


def directional(job: Job, direction: Tensor) -> Tensor:
    r"""(m,) inner products :math:`\langle g_i, d \rangle`."""
    whole = _Whole(job.model, job.run)
    names = [f"model.{name}" for name in job.space.names]
    own = {name: tensor.detach() for name, tensor in zip(names, job.space.tensors, strict=True)}
    tangents = {}
    for name, tensor, part in zip(names, job.space.tensors, job.space.slices, strict=True):
        piece = direction[part]
        tangents[name] = (
            (torch.view_as_complex(piece.reshape(-1, 2)) if tensor.is_complex() else piece).reshape(tensor.shape).to(tensor.dtype)
        )
    parts = []
    for batch, n in zip(job.batches, job.sizes, strict=True):

        def losses(p: dict[str, Tensor], batch: Any = batch, n: int = n) -> Tensor:
            value: Tensor = torch.func.functional_call(whole, p, (batch, n))
            return value

        both: Any = torch.func.jvp(losses, (own,), (tangents,))
        parts.append(both[1].detach().double())
        job.progress(n)
    return torch.cat(parts)


def loop(job: Job) -> Measured:
    """One backward per example. Slow, and right: what everything else is checked against."""
    sums = torch.zeros(job.n_groups, job.space.total, dtype=job.space.dtype, device=job.space.device) if job.sums else None
    parts, losses = [], []
    with exact_backends(recurrent=job.recurrent):
        for at, (batch, n, ids) in enumerate(zip(job.batches, job.sizes, job.ids, strict=True)):
            collector = Collector(job.space, ids, job.n_groups, sums=sums, projection=job.projection, gramian=job.gramian)
            for i in range(n):
                _, value = job.run(job.model, take(batch, slice(i, i + 1), n), 1)
                losses.append(value.detach().double().reshape(1))
                for place, g in enumerate(_gradients(value.sum(), job.space)):
                    collector.dense(place, g[None].float() if g.dtype in (torch.float16, torch.bfloat16) else g[None], slice(i, i + 1))
            collector.finish()
            parts.append(collector)
            if job.sums:
                _show(job, batch, n, at)
    found = Measured(
        torch.cat(losses),
        norms_sq=torch.cat([part.norms_sq for part in parts]),
        S=torch.cat([part.S for part in parts if part.S is not None]) if job.projection else None,
        sums=sums,
        gramian=parts[0].gramian if job.gramian else None,
    )
    if found.gramian is not None:
        found.along = found.gramian.mean(dim=1)
    return found


ENGINES = {"ghost": ghost, "vmap": vmap, "jvp": jvp, "groups": groupwise, "loop": loop}
ENOUGH = 0.99  # share of the parameters from which an engine's answer is taken


def select(job: Job) -> tuple[str, Measured]:
    """``auto``: hooks if they cover 99 % of the parameters, else vectorized gradients, else forward mode, else one backward per group."""
    found = ghost(job)
    covered = 1 - sum(job.space.tensors[i].numel() for i in found.missing) / job.space.total
    if covered >= ENOUGH:
        return "ghost", found
    for name in ("vmap", "jvp"):
        try:
            return name, ENGINES[name](job)
        except FAILURES:
            continue
    if found.norms_sq is not None and covered > 0:
        return "ghost", found
    return "groups", groupwise(job)
