"""Five ways to the same numbers, by price: hooks, vectorized gradients, forward mode, one backward per group, and a loop to check by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from counterpoise._errors import InputError, bad_input
from counterpoise._precision import HALF, single

from ._collect import Collector, ParameterSpace
from ._layouts import Layouts, find_layouts
from ._projection import Projection
from ._recurrent import is_recurrent
from ._remembered import kind_of_batch, remembered
from ._state import exact_backends
from ._watch import FAILURES, StaleInputError, Watch, flat

__all__ = ["CoupledExamplesError", "Job", "Measured", "flat_gradient", "ghost", "groupwise", "jvp", "loop", "select", "take", "vmap"]

Run = Callable[[nn.Module, Any, int], tuple[Any, Tensor]]  # (model, batch of n examples, n) -> (output, losses (n,))
# Relative tolerance of norms and sums against an ordinary backward, and rounding of a loss relative to the outputs it is a difference of.
TOLERANCE = {torch.float64: (1e-7, 1e-10), torch.float32: (2e-3, 1e-5)}
TOLERANCE_GPU = (0.02, 2e-3)  # float32 where convolutions may multiply in TF32
TOLERANCE_HALF = (0.05, 0.05)
VECTORIZED_BYTES = 2**29  # of gradients that vmap holds at once
CHECKED = 3  # examples whose norms by hooks are compared with those of the loop


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
    repeatable: bool = True  # two passes over an example give the same; not so with dropout
    remember: bool = False  # where the examples are may be what an earlier call found
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


def _assembled(job: Job, losses: list[Tensor], parts: list[Collector], sums: Tensor | None) -> Measured:
    """What the collectors of all batches hold, batch after batch."""
    return Measured(
        torch.cat(losses),
        norms_sq=torch.cat([part.norms_sq for part in parts]),
        S=torch.cat([part.S for part in parts if part.S is not None]) if job.projection else None,
        sums=sums,
        gramian=parts[0].gramian if job.gramian else None,
    )


def take(batch: Any, rows: Tensor | slice, n: int) -> Any:
    """Some examples of a batch: every tensor or array with n rows is indexed, and every list of n things that are not tensors."""

    def per_example(node: Any) -> bool:
        return type(node) in (list, tuple) and len(node) == n and not any(isinstance(leaf, Tensor) for leaf in tree_flatten(node)[0])

    def indexed(leaf: Any) -> Any:
        if per_example(leaf):
            places = range(n)[rows] if isinstance(rows, slice) else rows.tolist()
            return type(leaf)(leaf[i] for i in places)
        if isinstance(leaf, Tensor | np.ndarray) and leaf.ndim and leaf.shape[0] == n:
            return leaf[rows if isinstance(leaf, Tensor) or isinstance(rows, slice) else rows.cpu().numpy()]
        return leaf

    return tree_map(indexed, batch, is_leaf=per_example)


# ---- hooks -----------------------------------------------------------------------------------------------------------------------------


def ghost(job: Job) -> Measured:
    """Forward hooks keep what each layer saw; one backward by the activations alone brings the rest.

    What the hooks found is not taken on trust: see :func:`_hooked` and :func:`_disagreeing`. Parameters that fail are measured otherwise.
    """
    names, tensors = job.space.names, job.space.tensors
    everything = set(range(len(names)))
    with exact_backends(recurrent=job.recurrent):
        layouts = _layouts(job)
        alone = _by_themselves(job, _copies(job)) if job.check and job.repeatable else None
        states = _random_states(job.space.device)
        wrong: set[int] = set()
        while True:
            kept = sorted(everything - wrong)
            if not kept:
                return Measured(torch.zeros(sum(job.sizes)), missing=everything)
            space = ParameterSpace([names[i] for i in kept], [tensors[i] for i in kept]) if wrong else job.space
            try:
                found, half, copied = _hooked(job, space, layouts)
            except InputError:
                raise
            except FAILURES:
                # A layer of this model defeats the hooks as a whole; other engines may still do it.
                return Measured(torch.zeros(sum(job.sizes)), missing=everything)
            off = found.missing
            if alone is not None:
                off = off | _disagreeing(job, found, alone, kept, half)
            if not off:
                break
            wrong |= {kept[i] for i in off}
            _set_random_states(states)
        if found.gramian is not None:
            found.along = found.gramian.mean(dim=1)
        elif job.along and found.sums is not None:
            _set_random_states(states)  # where there is dropout, the same once more
            mean = found.sums.sum(dim=0) / len(found.losses)
            try:
                found.along = _hooked(job, space, layouts, direction=mean, copy=copied)[0].along
            except FAILURES:
                return Measured(torch.zeros(sum(job.sizes)), missing=everything)
    if wrong:
        found = _completed(job, found, space, kept, sorted(wrong))
    return found


def _hooked(
    job: Job, space: ParameterSpace, layouts: Layouts | None, *, direction: Tensor | None = None, copy: bool = False
) -> tuple[Measured, bool, bool]:
    """One pass over the batches: (what was found, whether half precision was met, whether inputs had to be copied).

    With ``direction`` the pass gives the inner products with it instead. Otherwise, with ``job.check``, the ordinary gradient of the
    parameters is formed as well and must be the sum of those of the examples: ``missing`` are the places where it is not, or where a
    layer's gradients could not be had.
    """
    second = direction is not None
    sums = space.zeros(job.n_groups) if job.sums and not second else None
    total = torch.zeros(space.total, dtype=space.dtype, device=space.device) if job.check and sums is not None else torch.empty(0)
    suspects: set[int] = set()
    parts: list[Collector] = []
    losses: list[Tensor] = []
    try:
        with Watch(job.model, space, layouts, copy=copy) as watch, _needing_gradients(list(job.model.parameters()), False):
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
                if job.check and sums is not None:
                    with _needing_gradients(space.tensors, True):
                        value, truth = _backward(job, watch, collector, batch, n, at, quiet=second, also=space.tensors)
                    total, before = sums.sum(dim=0), total
                    suspects |= _not_the_sum(space, collector, total - before, truth, watch.half)
                else:
                    value, _ = _backward(job, watch, collector, batch, n, at, quiet=second)
                losses.append(value)
                parts.append(collector)
                job.progress(n)
            broken, half = set(watch.broken), watch.half
    except StaleInputError:
        if copy:  # it was not the input of a layer that changed
            raise RuntimeError("a tensor that a layer keeps is changed in place") from None
        # A layer's input was changed in place: once more, with copies. Sums start again from zero.
        return _hooked(job, space, layouts, direction=direction, copy=True)
    if second:
        along = torch.cat([part.along for part in parts if part.along is not None])
        return Measured(torch.cat(losses), along=along), half, copy
    found = _assembled(job, losses, parts, sums)
    found.missing = broken | suspects
    return found, half, copy


def _backward(
    job: Job, watch: Watch, collector: Collector, batch: Any, n: int, at: int, *, quiet: bool, also: Sequence[Tensor] = ()
) -> tuple[Tensor, list[Tensor | None]]:
    """The losses of one batch, and the gradients of their sum by the tensors ``also``."""
    watch.begin(collector, n)
    output, losses = job.run(job.model, batch, n)
    found: list[Tensor | None] = [None] * len(also)
    if losses.requires_grad:
        found = _pulled(job.model, losses.sum(), [watch.root, *also])[1:]
    watch.finish()
    losses = losses.detach()
    if not quiet:
        job.see(output, losses, at)
    return losses.double(), found


def _not_the_sum(space: ParameterSpace, collector: Collector, ours: Tensor, truth: Sequence[Tensor | None], half: bool) -> set[int]:
    """Places whose ordinary gradient is not the sum of the examples' gradients: they are used where no hook sees it."""
    tolerance, _ = _tolerance(space, half)
    size = collector.norms_sq.sum(dim=0).sqrt()
    floor = tolerance * 1e-2 * float(collector.norms_sq.sum().sqrt())
    off = set()
    for place, (columns, gradient) in enumerate(zip(space.slices, truth, strict=True)):
        expected = torch.zeros_like(ours[columns]) if gradient is None else flat_gradient(gradient).to(ours.dtype)
        if float((expected - ours[columns]).norm()) > tolerance * float(size[place] + expected.norm()) + floor:
            off.add(place)
    return off


def _random_states(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_states(states: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.cuda.set_rng_state(states[1])


@contextmanager
def _needing_gradients(parameters: Sequence[Tensor], needed: bool) -> Iterator[None]:
    """Meanwhile these parameters need a gradient, or not; not, and backward forms those of the activations only."""
    changed = [p for p in parameters if p.requires_grad != needed]
    for p in changed:
        p.requires_grad_(needed)
    try:
        yield
    finally:
        for p in changed:
            p.requires_grad_(not needed)


def _layouts(job: Job) -> Layouts | None:
    n = job.sizes[0]
    if n < 2:
        return None

    def run(rows: list[int]) -> Any:
        return job.run(job.model, take(job.batches[0], torch.tensor(rows), n), len(rows))

    def find() -> Layouts:
        return find_layouts(job.model, job.space, run, n, confirm=job.check)

    try:
        if not job.remember:
            return find()
        return remembered(job.model, ("layouts", job.space.names, n > 2, kind_of_batch(job.batches[0])), find)
    except InputError:
        raise
    except FAILURES as error:
        with torch.no_grad():
            job.run(job.model, job.batches[0], n)  # raises what is wrong with the model itself
        bad_input(
            "data",
            f"examples that cannot pass through the model without the others ({type(error).__name__})",
            "batches whose tensors have a row for each example",
            f"It said: {str(error)[:120]}",
        )


@dataclass(frozen=True, eq=False)
class _Alone:
    """Some examples by themselves, by the loop: positions in the probe, losses, norms (k, n_blocks), and the size of their outputs."""

    rows: list[int]
    losses: Tensor
    norms: Tensor
    size: float


def _by_themselves(job: Job, copies: int) -> _Alone:
    m = sum(job.sizes)
    rows = sorted({round(i) for i in torch.linspace(0, m - 1, CHECKED).tolist()})  # batches are sorted by group: some of different groups
    losses, norms, size = [], [], 0.0
    for row in rows:
        at, i = 0, row
        while i >= job.sizes[at]:
            at, i = at + 1, i - job.sizes[at]
        output, value = _alone(job, job.batches[at], i, job.sizes[at], copies)
        size = max(size, _size(output))
        losses.append(value.detach().double())
        norms.append(torch.stack([g.double().norm() for g in _gradients(job.model, value, job.space)]))
    return _Alone(rows, torch.stack(losses), torch.stack(norms), size)


def _alone(job: Job, batch: Any, i: int, n: int, copies: int) -> tuple[Any, Tensor]:
    """Output and loss of one example by itself, or among ``copies`` of it."""
    rows = slice(i, i + 1) if copies == 1 else torch.full((copies,), i)
    output, value = job.run(job.model, take(batch, rows, n), copies)
    return output, value.reshape(()) if copies == 1 else value.mean()


def _copies(job: Job) -> int:
    """How many copies stand for one example by itself: more than 1 where a model does not take one as it takes many (``squeeze()``)."""
    n = job.sizes[0]
    if n < 2:
        return 1
    few = min(n, 3)
    with torch.no_grad():
        output, together = job.run(job.model, take(job.batches[0], slice(0, few), n), few)
    for copies in (1, 2 if few > 2 else 3):  # not as many as were together, which a loss that divides by their number would not tell apart
        try:
            _, value = _alone(job, job.batches[0], 0, n, copies)
            _gradients(job.model, value, job.space)
            if job.repeatable:
                _check_coupling(job, value.detach().double().reshape(1), together[:1], _size(output))
        except (*FAILURES, CoupledExamplesError):
            continue
        return copies
    return 1


def _size(output: Any) -> float:
    return max((float(t.detach().abs().max()) for t in tree_flatten(output)[0] if isinstance(t, Tensor) and t.numel()), default=0.0)


def _disagreeing(job: Job, found: Measured, alone: _Alone, kept: Sequence[int], half: bool) -> set[int]:
    """Places (of those kept) whose norms the hooks got wrong on some examples: layers whose examples are not where they seem to be."""
    tolerance, _ = _tolerance(job.space, half)
    _check_coupling(job, alone.losses, found.losses[alone.rows], alone.size, half=half)
    assert found.norms_sq is not None
    a, b = alone.norms[:, list(kept)], found.norms_sq[alone.rows].sqrt()
    # What is tiny beside a typical gradient may be rounding.
    floor = tolerance * 1e-2 * float(found.norms_sq.sum(dim=1).mean().sqrt())
    return set(((a - b).abs() > tolerance * a + floor).any(dim=0).nonzero()[:, 0].tolist())


def _check_coupling(job: Job, alone: Tensor, together: Tensor, size: float, *, half: bool = False) -> None:
    """A loss near 0 is a difference of numbers of the size of the outputs, hence no better than their rounding."""
    if not (job.check and job.repeatable):
        return
    tolerance, rounding = _tolerance(job.space, half)
    alone, together = alone.to(together.device), together.double()
    if bool(((alone - together).abs() > tolerance * alone.abs() + rounding * (size or 1.0)).any()):
        if half or not _meets_half(job):
            raise CoupledExamplesError
        _check_coupling(job, alone, together, size, half=True)


def _tolerance(space: ParameterSpace, half: bool) -> tuple[float, float]:
    if half or any(t.dtype in HALF for t in space.tensors):
        return TOLERANCE_HALF
    return TOLERANCE_GPU if space.dtype == torch.float32 and space.device.type == "cuda" else TOLERANCE[space.dtype]


def _meets_half(job: Job) -> bool:
    """Whether some layer's output is in half precision, as under autocast."""
    met = False

    def look(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal met
        met |= any(isinstance(t, Tensor) and t.dtype in HALF for t in tree_flatten(output)[0])

    handles = [layer.register_forward_hook(look) for layer in job.model.modules()]
    try:
        with torch.no_grad():
            job.run(job.model, job.batches[0], job.sizes[0])
    finally:
        for handle in handles:
            handle.remove()
    return met


def _completed(job: Job, found: Measured, space: ParameterSpace, kept: list[int], rest: list[int]) -> Measured:
    """Parameters that the hooks cannot measure, by vectorized gradients of these alone, or by a loop where torch has none."""
    small = ParameterSpace([job.space.names[i] for i in rest], [job.space.tensors[i] for i in rest])
    other = Job(**{**vars(job), "space": small, "see": lambda *_: None, "progress": lambda _: None})
    try:
        extra, how = vmap(other), "vectorized gradients"
    except (*FAILURES, CoupledExamplesError):
        extra, how = loop(other), "a loop over the examples"
    norms = torch.zeros(len(found.losses), len(job.space.names), dtype=torch.float64, device=job.space.device)
    assert found.norms_sq is not None and extra.norms_sq is not None
    norms[:, kept], norms[:, rest] = found.norms_sq, extra.norms_sq
    found.norms_sq = norms
    if found.sums is not None and extra.sums is not None:
        sums = job.space.zeros(job.n_groups)
        for places, part, own in ((kept, found.sums, space), (rest, extra.sums, small)):
            for i, place in enumerate(places):
                sums[:, job.space.slices[place]] = part[:, own.slices[i]].to(sums.dtype)
        found.sums = sums
    if found.S is not None and extra.S is not None:
        found.S = found.S + extra.S
    if found.gramian is not None and extra.gramian is not None:
        found.gramian = found.gramian + extra.gramian
    if found.along is not None and extra.along is not None:
        found.along = found.along + extra.along
    found.notes.append(
        f"{', '.join(small.names[:4])}{' and others' if len(rest) > 4 else ''}: by {how}, since no hook sees all of their use."
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
    size = max(1, min(job.chunk, n, VECTORIZED_BYTES // (8 if job.space.dtype == torch.float64 else 4) // job.space.total))
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        with torch.no_grad():  # of the outer graph; the transforms have their own
            found, losses = gradient(parameters, *[t[rows] for t in tensors])
        yield rows, [flat(found[f"model.{name}"]) for name in job.space.names], losses


def vmap(job: Job) -> Measured:
    """``vmap(grad)`` of the whole model, in chunks of examples; needs chunk * P numbers."""
    sums = job.space.zeros(job.n_groups) if job.sums else None
    if any(tensor._backward_hooks for tensor in job.space.tensors):
        raise RuntimeError("a parameter has hooks that change its gradient, which only backward runs")
    parts, losses = [], []
    states = _random_states(job.space.device)
    with exact_backends(transforms=True, recurrent=job.recurrent):
        for at, (batch, n, ids) in enumerate(zip(job.batches, job.sizes, job.ids, strict=True)):
            collector = Collector(job.space, ids, job.n_groups, sums=sums, projection=job.projection, gramian=job.gramian)
            here = torch.zeros(n, dtype=torch.float64)
            for rows, gradients, value in _vectorized(job, batch, n):
                here[rows] = value.detach().double().cpu()
                for place, g in enumerate(gradients):
                    collector.dense(place, single(g), rows)
            collector.finish()
            parts.append(collector)
            losses.append(here)
            _show(job, batch, n, at, here)
            job.progress(n)
        found = _assembled(job, losses, parts, sums)
        if found.gramian is not None:
            found.along = found.gramian.mean(dim=1)
        elif job.along and sums is not None:
            _set_random_states(states)
            found.along = _along(job, job.space, sums.sum(dim=0) / len(found.losses))
    return found


def _show(job: Job, batch: Any, n: int, at: int, alone: Tensor, copies: int = 1) -> None:
    """Hand on what the whole batch gives, whose losses must be those of the examples ``alone``."""
    states = _random_states(job.space.device)
    with torch.no_grad():
        if n == 1 and copies > 1:
            output, losses = job.run(job.model, take(batch, torch.full((copies,), 0), n), copies)
            output, losses = take(output, slice(0, 1), copies), losses[:1]
        else:
            output, losses = job.run(job.model, batch, n)
    _set_random_states(states)  # a second pass over the examples, which does without this, has to draw the same
    _check_coupling(job, alone, losses.detach(), _size(output))
    job.see(output, losses, at)


# ---- forward mode, one backward per group, and the loop --------------------------------------------------------------------------------


def groupwise(job: Job) -> Measured:
    """One ordinary backward per group and batch: exact sums, nothing about single examples."""
    sums = job.space.zeros(job.n_groups)
    losses = []
    with exact_backends(recurrent=job.recurrent):
        copies = _copies(job)
        for at, (batch, n, ids) in enumerate(zip(job.batches, job.sizes, job.ids, strict=True)):
            here = torch.zeros(n, dtype=torch.float64)
            for k in torch.unique(ids).tolist():
                rows = (ids == k).nonzero()[:, 0].cpu()
                if len(rows) == 1:
                    value = _alone(job, batch, int(rows), n, copies)[1].reshape(1)
                else:
                    _, value = job.run(job.model, batch if len(rows) == n else take(batch, rows, n), len(rows))
                here[rows] = value.detach().double().cpu()
                for place, g in enumerate(_gradients(job.model, value.sum(), job.space)):
                    sums[k, job.space.slices[place]] += g.to(sums.dtype)
            losses.append(here)
            if at == 0 and job.check and job.repeatable:
                one = _alone(job, batch, 0, n, copies)[1].detach().double().cpu()
                _show(job, batch, n, at, torch.cat([one.reshape(1), here[1:]]), copies)
            else:
                _show(job, batch, n, at, here, copies)
            job.progress(n)
    return Measured(torch.cat(losses), sums=sums)


def _gradients(model: nn.Module, value: Tensor, space: ParameterSpace) -> list[Tensor]:
    """One flat gradient per parameter; zeros where it is not used."""
    found = _pulled(model, value, space.tensors) if value.requires_grad else [None] * len(space.tensors)
    return [
        torch.zeros_like(flat(p.detach()[None])[0]) if g is None else flat_gradient(g) for g, p in zip(found, space.tensors, strict=True)
    ]


def flat_gradient(g: Tensor) -> Tensor:
    """A gradient as a flat vector of real numbers."""
    return flat((g.to_dense() if g.is_sparse else g).detach()[None])[0]


def _pulled(model: nn.Module, value: Tensor, wanted: Sequence[Tensor]) -> list[Tensor | None]:
    """``torch.autograd.grad``; by ``backward()`` where reentrant checkpoints forbid the former. No ``.grad`` is changed."""
    leaves = _leaves_if_reentrant(value)
    if leaves is None:
        return list(torch.autograd.grad(value, wanted, allow_unused=True))
    held = {id(t): (t, t.grad) for t in [*leaves, *wanted, *(p for p in model.parameters() if p.requires_grad)]}
    try:
        for t, _ in held.values():
            t.grad = None
        value.backward()  # type: ignore[no-untyped-call]
        return [t.grad for t in wanted]
    finally:
        for t, grad in held.values():
            t.grad = grad


def _leaves_if_reentrant(value: Tensor) -> list[Tensor] | None:
    """The leaves of the graph if there is a reentrant activation checkpoint in it."""
    todo, seen, leaves, reentrant = [value.grad_fn], {value.grad_fn}, [], False
    while todo:
        node: Any = todo.pop()
        if node is None:
            continue
        reentrant |= node.name() == "CheckpointFunctionBackward"
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        for below, _ in node.next_functions:
            if below not in seen:
                seen.add(below)
                todo.append(below)
    return leaves if reentrant else None


def jvp(job: Job) -> Measured:
    """Forward mode: the inner products of all examples with one direction are one derivative of the losses along it.

    Group sums come from :func:`groupwise`; then one pass for the mean gradient and one for each of the r random directions, whose mean
    square also estimates the norms.
    """
    found = groupwise(Job(**{**vars(job), "progress": lambda _: None}))
    assert found.sums is not None
    total = found.sums.sum(dim=0)
    with exact_backends(forward_mode=True, recurrent=job.recurrent):
        found.along = _consistent(job, directional(job, total / len(found.losses)), total / len(found.losses), total)
        if job.projection:
            r = job.projection.r
            generator = torch.Generator().manual_seed(job.projection.seed)
            columns = []
            for _ in range(r):
                direction = torch.randn(job.space.total, generator=generator, dtype=job.space.dtype).to(job.space.device)
                columns.append(_consistent(job, directional(job, direction), direction, total))
            found.S = torch.stack(columns, dim=1).to(job.space.dtype) / r**0.5
            found.notes.append(f"Norms are estimates from {r} random directions (relative error about {(2 / r) ** 0.5:.0%}).")
    return found


def _consistent(job: Job, values: Tensor, direction: Tensor, total: Tensor) -> Tensor:
    """The derivatives along a direction, whose sum must be that of backward: forward mode also sees what is under ``no_grad``."""
    off = abs(float(values.sum()) - float(total.double() @ direction.double()))
    if job.check and job.repeatable and off > _tolerance(job.space, False)[0] * float(values.abs().sum()):
        raise RuntimeError("forward and backward derivatives differ, as where a part is under torch.no_grad()")
    return values


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
    for layer in job.model.modules():  # forward mode does not know that backward leaves out the row of the padding
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.padding_idx is not None and id(layer.weight) in job.space.place:
            name = names[job.space.place[id(layer.weight)]]
            tangents[name] = tangents[name].clone()
            tangents[name][layer.padding_idx] = 0
    parts = []
    for batch, n in zip(job.batches, job.sizes, strict=True):

        def losses(p: dict[str, Tensor], batch: Any = batch, n: int = n) -> Tensor:
            value: Tensor = torch.func.functional_call(whole, p, (batch, n))
            return value

        both: Any = torch.func.jvp(losses, (own,), (tangents,))
        parts.append(both[1].detach().double())
        job.progress(n)
    return torch.cat(parts)


def loop(job: Job, direction: Tensor | None = None) -> Measured:
    """One backward per example. Slow, and right: what everything else is checked against. ``direction`` is for a second pass."""
    second = direction is not None
    sums = job.space.zeros(job.n_groups) if job.sums and not second else None
    parts, losses = [], []
    states = _random_states(job.space.device)
    with exact_backends(recurrent=job.recurrent):
        copies = _copies(job)
        for at, (batch, n, ids) in enumerate(zip(job.batches, job.sizes, job.ids, strict=True)):
            collector = Collector(
                job.space,
                ids,
                job.n_groups,
                sums=sums,
                projection=None if second else job.projection,
                gramian=job.gramian and not second,
                direction=direction,
            )
            here = torch.zeros(n, dtype=torch.float64)
            for i in range(n):
                _, value = _alone(job, batch, i, n, copies)
                here[i] = value.detach().double().cpu()
                for place, g in enumerate(_gradients(job.model, value, job.space)):
                    collector.dense(place, single(g[None]), slice(i, i + 1))
            collector.finish()
            parts.append(collector)
            losses.append(here)
            if not second:
                _show(job, batch, n, at, here, copies)
            job.progress(n)
    if second:
        return Measured(torch.cat(losses), along=torch.cat([part.along for part in parts if part.along is not None]))
    found = _assembled(job, losses, parts, sums)
    if found.gramian is not None:
        found.along = found.gramian.mean(dim=1)
    elif job.along and sums is not None:
        _set_random_states(states)
        found.along = loop(job, sums.sum(dim=0) / len(found.losses)).along
    return found


ENGINES = {"ghost": ghost, "vmap": vmap, "jvp": jvp, "groups": groupwise, "loop": loop}


def select(job: Job) -> tuple[str, Measured]:
    """``auto``: hooks, completed by vectorized gradients where no hook sees a parameter; else these for all; else a loop."""
    found = ghost(job)
    if not found.missing:
        return "ghost", found
    try:
        return "vmap", vmap(job)
    except (*FAILURES, CoupledExamplesError):
        return "loop", loop(job)
