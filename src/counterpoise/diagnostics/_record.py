"""Whose step it is while somebody trains: every k-th step of a loop is measured in the forward and backward pass it makes anyway."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from counterpoise._errors import bad_input, check_choice, check_range, listing
from counterpoise._pergrad import (
    FAILURES,
    Blocks,
    Collector,
    GradientSketch,
    Layouts,
    ParameterSpace,
    Projection,
    Watch,
    exact_backends,
    find_layouts,
    flat_gradient,
    random_states,
    take,
    untouched,
    with_lengths,
)
from counterpoise._precision import HALF

from ._examine import TrainingDiagnosis, diagnosis_of
from ._from_sketch import group_shares
from ._probe import BatchIds, size_of
from ._shares import GroupShares
from ._sketching import WIDTH, check_coupling, parameters_of, unwrapped

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

__all__ = ["Recorder", "record"]

DIFFERS = 0.02  # relative difference between the sum of the examples' gradients and .grad from which a parameter counts as not measured
ROUNDING, ROUNDING_HALF = 1e-4, 0.03  # of that sum, relative to the root of the examples' squared norms


@contextmanager
def record(
    model: nn.Module,
    *,
    groups: Callable[..., Any] | None = None,
    every: int = 50,
    reduction: str = "mean",
    loss_scale: float | Callable[[], float] = 1.0,
    params: str = "all",
    sketch_dim: int = WIDTH,
    seed: int = 0,
) -> Iterator[Recorder]:
    r"""Measure every k-th training step of your own loop in the passes that it makes anyway; training is unchanged, bit for bit.

    In the steps that are measured, hooks take from your forward and backward pass what :func:`examine` takes from its own: norms, group
    sums and a projection of the per-example gradients of the *batch at hand*, with dropout as it is. In the others nothing is hooked but
    one counter. Before the first of them, two and then three of its examples pass forward through a copy of the model that shares its
    parameters, in training and in eval mode: this shows where in the tensors of each layer the examples are.

    Parameters whose ``.grad`` is not the sum of what the hooks saw are left out and named: those used where no hook sees it, and all of
    them where the loss has a term that is not of the examples, such as a penalty on the parameters.

    Parameters
    ----------
    model : torch.nn.Module
        As it is trained. Steps are counted by its calls in training mode with gradients enabled.
    groups : function, optional
        Called with the arguments of the model's call, returns the group id of each example (-1 for none). Without it tell the recorder
        before the call: ``recorder.batch(ids)``.
    every : int, default 50
        The first step and each k-th after it are measured.
    reduction : {"mean", "sum"}, default "mean"
        How your loss combines the batch; the gradients of single examples are scaled back accordingly.
    loss_scale : float or function, default 1.0
        What you multiply the loss with before ``backward()``: ``1 / k`` for accumulation over k batches, ``scaler.get_scale`` with a
        GradScaler.
    params : str, default "all"
        As in :func:`examine` ("head" and "last_k" are not known before the first call: use a regular expression).
    sketch_dim, seed : int
        Width and seed of the random projection.

    Yields
    ------
    Recorder
        With ``.steps``, ``.shares``, ``.diagnoses``, ``.to_frame()`` and ``.plot()``.

    Raises
    ------
    InputError
        If batch normalization is in training mode, the model is compiled, groups do not fit the batch, or an argument is out of its range.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model, loss = nn.Linear(5, 2), nn.CrossEntropyLoss()
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with record(model, every=10) as recorder:
    ...     for _ in range(21):
    ...         x, y = torch.randn(32, 5), torch.arange(32) % 2
    ...         recorder.batch(y)
    ...         optimizer.zero_grad()
    ...         loss(model(x), y).backward()
    ...         optimizer.step()
    >>> recorder.steps, recorder.shares[0].names
    ([0, 10, 20], ('0', '1'))
    """
    check_range("every", every, low=1, integer=True)
    check_choice("reduction", reduction, ("mean", "sum"))
    check_range("sketch_dim", sketch_dim, low=0, integer=True)
    if not isinstance(model, nn.Module):
        bad_input("model", type(model).__name__, "a torch.nn.Module")
    _check_not_compiled(model)
    model = unwrapped(model)
    check_coupling(model, False, None)
    if params == "head" or params.startswith("last_"):
        bad_input("params", params, "'all' or a regular expression on names")
    recorder = Recorder(groups, every, reduction, loss_scale, params, Projection(sketch_dim, seed) if sketch_dim else None)
    handles = [model.register_forward_pre_hook(recorder._before, with_kwargs=True), model.register_forward_hook(recorder._between)]
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()
        recorder._drop()


def _check_not_compiled(model: nn.Module) -> None:
    for name, layer in model.named_modules():
        if hasattr(layer, "_orig_mod") or layer._compiled_call_impl is not None:
            what = f"its layer {name!r}" if name else "the model"
            bad_input(
                "model", f"compiled code ({what})", "a model that is not compiled, whose layers can be watched", "Or use examine(...)."
            )


class Recorder:
    """What :func:`record` yields: ``steps`` that were measured and, for each, exact ``shares``; the rest is worked out when asked for."""

    def __init__(
        self,
        groups: Callable[..., Any] | None,
        every: int,
        reduction: str,
        loss_scale: float | Callable[[], float],
        params: str,
        projection: Projection | None,
    ) -> None:
        self.steps: list[int] = []
        self.shares: list[GroupShares] = []
        self.seen = 0  # training steps so far
        self.skipped: list[tuple[int, str]] = []  # steps that could not be measured, and why
        self._sketches: list[GradientSketch] = []
        self._diagnoses: dict[int, TrainingDiagnosis] = {}
        self._groups, self._every = groups, every
        self._reduction, self._loss_scale, self._params, self._projection = reduction, loss_scale, params, projection
        self._given: Any = None
        self._watch: Watch | None = None
        self._start: Callable[[], None] = lambda: None
        self._layouts: Layouts | None = None
        self._busy = False  # with passes of its own through the model
        self._copy = False
        self._broken: set[str] = set()  # parameters that are left out from the next measured step on
        self._names = BatchIds()

    def batch(self, groups: Any) -> None:
        """Group ids (n,) of the batch that the model is called with next; -1 for none."""
        self._given = groups

    @property
    def diagnoses(self) -> list[TrainingDiagnosis]:
        """One :class:`TrainingDiagnosis` per measured step; losses are not known here."""
        for at, (step, shares, sketch) in enumerate(zip(self.steps, self.shares, self._sketches, strict=True)):
            if at not in self._diagnoses:
                self._diagnoses[at] = diagnosis_of(sketch, shares=shares, step=step)
        return [self._diagnoses[at] for at in range(len(self.steps))]

    def to_frame(self) -> pl.DataFrame:
        """One row per measured step and group."""
        import polars as pl

        frames = [
            shares.to_frame().with_columns(pl.lit(step, pl.Int64).alias("step"))
            for step, shares in zip(self.steps, self.shares, strict=True)
        ]
        if not frames:
            bad_input("record", "no measured step", "a loop that calls the model in training mode and runs backward()")
        return pl.concat(frames).select("step", pl.exclude("step"))

    def plot(self) -> Figure:
        """Shares over the steps."""
        from counterpoise.report import training_curves

        return training_curves([diagnosis.view() for diagnosis in self.diagnoses], self.steps)

    # -- one step -----------------------------------------------------------------------------------------------------------------------

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._busy or not (model.training and torch.is_grad_enabled()):
            return
        if self._watch is not None:
            self.skipped.append((self.seen - 1, "no backward pass came before the next call of the model"))
            self._drop()
        given, self._given = self._given, None
        step, self.seen = self.seen, self.seen + 1
        if step % self._every:
            return
        check_coupling(model, False, None)
        if self._groups is not None:
            given = self._groups(*args, **kwargs)
        ids = self._names.ids(given, _examples((args, kwargs), given))
        n = len(ids)
        space = parameters_of(model, self._params, lambda: None)
        kept = [(name, p) for name, p in zip(space.names, space.tensors, strict=True) if name not in self._broken]
        if not kept:
            return
        total = space.total
        if self._layouts is None and n > 1:
            reason = self._find_layouts(model, space, args, kwargs, n)
            if self._layouts is None:
                self.skipped.append((step, reason))
                return
        if self._broken:
            space = ParameterSpace([name for name, _ in kept], [p for _, p in kept])
        rows = len(self._names.names) + bool((ids < 0).any())
        sorted_ids = torch.where(ids < 0, len(self._names.names), ids).to(space.device)
        collector = Collector(
            space,
            sorted_ids,
            rows,
            sums=space.zeros(rows),
            projection=self._projection,
        )
        watch = Watch(model, space, self._layouts if n > 1 else None, copy=self._copy, passive=True)
        scale = self._loss_scale() if callable(self._loss_scale) else self._loss_scale
        watch.scale = (n if self._reduction == "mean" else 1.0) / scale
        watch.on_arrival = self._start = self._starter(watch, collector, step, ids, total)
        watch.__enter__()
        watch.begin(collector, n)
        self._watch = watch

    def _find_layouts(self, model: nn.Module, space: ParameterSpace, args: tuple[Any, ...], kwargs: dict[str, Any], n: int) -> str:
        """By a few examples in a copy of the model, so that whatever a forward pass changes in it is not changed in the model."""
        shapes: list[list[tuple[int, ...]]] = []
        self._busy = True
        memo: dict[int, Any] = {id(p): p for p in model.parameters()} | {id(self): self}
        try:
            twin = copy.deepcopy(model, memo)
        except Exception:  # whatever a user's class does when it is copied
            twin = model

        def run(rows: list[int], dim: int) -> None:
            few_args, few_kwargs = _few((args, kwargs), rows, n, dim)
            output = twin(*few_args, **few_kwargs)
            shapes.append([tuple(t.shape) for t in tree_leaves(output) if isinstance(t, Tensor)])

        devices = [space.device.index or 0] if space.device.type == "cuda" else []
        reason = "its output does not change its size with that of the batch"
        try:
            with untouched(twin, evaluate=False) if twin is model else random_states(devices), exact_backends():
                for dim in (0, 1):  # 1 where sequences come first
                    shapes.clear()
                    try:
                        layouts = find_layouts(twin, space, functools.partial(run, dim=dim), n)
                    except FAILURES as error:
                        reason = f"two of its examples cannot pass through the model ({type(error).__name__}: {str(error)[:100]})"
                        continue
                    if not shapes[0] or shapes[0] != shapes[1]:
                        self._layouts = layouts
                        break
        finally:
            self._busy = False
        return reason

    def _between(self, _: nn.Module, __: Any, output: Any) -> None:
        """Backward begins at the output; what is inside an activation checkpoint would tell of a backward pass of its own."""
        if self._watch is not None:
            start = self._start
            for t in tree_leaves(output):
                if isinstance(t, Tensor) and t.requires_grad:
                    t.register_hook(lambda _: start())  # type: ignore[no-untyped-call]

    def _starter(self, watch: Watch, collector: Collector, step: int, ids: Tensor, total: int) -> Callable[[], None]:
        begun = False

        def start() -> None:
            nonlocal begun
            if begun or self._watch is not watch:
                return
            begun = True
            untouched = {place for place, p in enumerate(collector.space.tensors) if _is_zero(p.grad)}
            # After all gradients of this backward pass are there, and before an optimizer can change the parameters.
            torch.autograd.Variable._execution_engine.queue_callback(lambda: self._after(watch, collector, step, ids, untouched, total))

        return start

    def _after(self, watch: Watch, collector: Collector, step: int, ids: Tensor, untouched: set[int], total: int) -> None:
        if self._watch is not watch:
            return
        cuda = [collector.space.device.index or 0] if collector.space.device.type == "cuda" else []
        self._busy = True
        try:
            with torch.no_grad(), random_states(cuda):
                watch.finish()
        finally:
            self._busy = False
        stale, broken = watch.stale, set(watch.broken)
        self._drop()
        if stale:
            self._copy = True
            self.skipped.append((step, "an input was changed in place after its layer had used it; later steps copy inputs"))
            return
        if not bool(torch.isfinite(collector.norms_sq).all()):
            self.skipped.append((step, "gradients are not finite"))
            return
        space, sums = collector.space, collector.sums
        assert sums is not None
        broken |= self._not_in(collector, sums, watch, untouched)
        if len(broken) == len(space.names):
            self.skipped.append((step, "no parameter's .grad is the sum of what was seen"))
            return
        self._broken |= {space.names[place] for place in broken}
        sketch = _sketch(collector, ids, self._names.names, broken, self._broken, total, self._projection)
        self.steps.append(step)
        self.shares.append(group_shares(sketch, bootstrap=0))
        self._sketches.append(replace(sketch, group_sums=None, parameters=()))

    def _not_in(self, collector: Collector, sums: Tensor, watch: Watch, untouched: set[int]) -> set[int]:
        """Parameters whose ``.grad`` is not the sum of what was seen: they are used where no hook sees it."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return set()  # .grad may be averaged over processes already
        space, wrong = collector.space, set()
        size = collector.norms_sq.sum(dim=0).sqrt()
        for place in untouched:
            grad = space.tensors[place].grad
            ours = sums[:, space.slices[place]].sum(dim=0) / watch.scale
            truth = torch.zeros_like(ours) if grad is None else flat_gradient(grad).to(ours.dtype)
            # Late in training the examples' gradients cancel, and their sum is no better than their rounding.
            half = watch.half or space.tensors[place].dtype in HALF
            rounding = (ROUNDING_HALF if half else ROUNDING) * float(size[place]) / abs(watch.scale)
            if float((truth - ours).norm()) > DIFFERS * float(truth.norm()) + rounding + 1e-12:
                wrong.add(place)
        return wrong

    def _drop(self) -> None:
        if self._watch is not None:
            self._watch.__exit__()
            self._watch = None


def _examples(inputs: Any, given: Any) -> int:
    """How many there are: rows of the first tensor, or its columns where those are as many as the groups (sequences first)."""
    n = size_of(inputs)
    if given is not None and len(given) != n:
        first = next(leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim)
        if first.ndim > 1 and first.shape[1] == len(given):
            return len(given)
    return n


def _few(inputs: Any, rows: list[int], n: int, dim: int) -> Any:
    """Some of n examples, which are along ``dim`` of the inputs."""
    if dim == 0:
        return take(inputs, torch.tensor(rows), n)
    return tree_map(lambda leaf: leaf[:, rows] if isinstance(leaf, Tensor) and leaf.ndim > 1 and leaf.shape[1] == n else leaf, inputs)


def _is_zero(grad: Tensor | None) -> bool:
    return grad is None or not bool((grad.coalesce().values() if grad.is_sparse else grad).any())


def _sketch(
    collector: Collector,
    ids: Tensor,
    names: tuple[str, ...],
    broken: set[int],
    missing: set[str],
    total: int,
    projection: Projection | None,
) -> GradientSketch:
    space, sums = collector.space, collector.sums
    assert sums is not None
    kept = [place for place in range(len(space.names)) if place not in broken]
    norms = collector.norms_sq[:, kept].sum(dim=1)
    for place in broken:
        sums[:, space.slices[place]] = 0
    # The projection mixes all parameters; the next measured step leaves the broken ones out.
    S = None if collector.S is None or broken else with_lengths(collector.S, norms)
    measured = sum(space.slices[place].stop - space.slices[place].start for place in kept)
    return GradientSketch(
        losses=torch.full_like(norms, float("nan")),
        groups=ids,
        index=torch.arange(len(ids)),
        group_names=names,
        kind="group",
        norms_sq=norms,
        S=S,
        group_sums=sums,
        blocks=Blocks(space.names, space.slices, collector.norms_sq),
        coverage=measured / total,
        missing=tuple(sorted(missing)),
        engine="record",
        seed=projection.seed if projection else 0,
        parameter_names=space.names,
        parameter_slices=space.slices,
        parameters=space.tensors,
        notes=(f"Not measured: {listing(sorted(missing))}, {1 - measured / total:.1%} of the parameters.",) if missing else (),
    )
