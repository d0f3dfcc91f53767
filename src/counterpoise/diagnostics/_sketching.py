"""From a model, a loss and data to a :class:`GradientSketch`: checks, choice of parameters and engine, and nothing left behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from counterpoise._errors import InputError, bad_input, check_choice, check_range, listing
from counterpoise._pergrad import (
    ENGINES,
    FAILURES,
    Blocks,
    CoupledExamplesError,
    GradientSketch,
    Job,
    Measured,
    ParameterSpace,
    Projection,
    Run,
    exact_backends,
    kind_of_batch,
    remembered,
    select,
    take,
    untouched,
    with_lengths,
)

from ._probe import Probe, draw, per_example_loss

__all__ = ["Measurement", "check_coupling", "measure", "parameters_of", "sketch_gradients", "unwrapped"]

CHOICES = ("auto", "last_layer", *ENGINES)
WIDTH = 256  # of the sketch: cosines of single examples are good to 0.06, those of groups to less
# What layers return for the examples that go through the model at once. Smaller pieces are as fast on a CPU, whose cache they fit.
BATCH_BYTES = {"cpu": 9 * 2**20, "other": 512 * 2**20}
LEAST_PIECE = 8
_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


@dataclass(frozen=True, eq=False)
class Measurement:
    """A sketch, and what else was seen on the way: per class the pull of its own rows and the push of the others."""

    sketch: GradientSketch
    pressure: tuple[Tensor, Tensor] | None
    classes: tuple[str, ...]


def sketch_gradients(
    model: nn.Module,
    loss_fn: Any = None,
    data: Any = None,
    *,
    groups: Any = "target",
    engine: str = "auto",
    params: str = "all",
    max_examples: int = 4096,
    sketch_dim: int | None = None,
    gramian: bool = False,
    leverage: bool = True,
    seed: int = 0,
    device: torch.device | str | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    batch_size: int = 256,
    train_mode: bool = False,
    batchnorm: str | None = None,
    check: bool = True,
    progress: Callable[[int], None] | None = None,
) -> GradientSketch:
    """Per-example gradient norms, group sums, random projections and inner products of a model, in about two ordinary passes.

    What :func:`examine` measures first, without its words: for those who go on with the numbers. Arguments are those of :func:`examine`.
    ``leverage=False`` leaves out the second pass that the exact inner products with the mean gradient take, ``sketch_dim=0`` the
    projection, ``check=False`` the comparison of a few examples with a loop.

    Memory is that of one forward pass of ``batch_size`` examples, the (G, P) sums, and m * ``sketch_dim`` numbers; never m * P.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> X, y = torch.randn(60, 4), torch.arange(60) % 3
    >>> sketch = sketch_gradients(model, nn.CrossEntropyLoss(), (X, y))
    >>> len(sketch), sketch.group_sums.shape, sketch.engine, sketch.coverage
    (60, torch.Size([3, 67]), 'ghost', 1.0)
    """
    return measure(
        model,
        loss_fn,
        data,
        groups=groups,
        engine=engine,
        params=params,
        max_examples=max_examples,
        sketch_dim=sketch_dim,
        gramian=gramian,
        leverage=leverage,
        seed=seed,
        device=device,
        forward=forward,
        loss=loss,
        batch_size=batch_size,
        train_mode=train_mode,
        batchnorm=batchnorm,
        check=check,
        progress=progress,
    ).sketch


def measure(
    model: nn.Module,
    loss_fn: Any,
    data: Any,
    *,
    groups: Any,
    engine: str,
    params: str,
    max_examples: int,
    sketch_dim: int | None,
    gramian: bool,
    leverage: bool,
    seed: int,
    device: torch.device | str | None,
    forward: Callable[[nn.Module, Any], Any] | None,
    loss: Callable[[Any, Any], Tensor] | None,
    batch_size: int,
    train_mode: bool,
    batchnorm: str | None,
    check: bool,
    progress: Callable[[int], None] | None,
) -> Measurement:
    if not isinstance(model, nn.Module):
        bad_input("model", type(model).__name__, "a torch.nn.Module", "examine_linear(...) takes scikit-learn estimators.")
    if data is None:
        bad_input("data", None, "a DataLoader, an iterable of batches, or a tuple of tensors (inputs, targets)")
    check_choice("engine", engine, CHOICES)
    check_range("seed", seed, low=0, integer=True)
    if sketch_dim is not None:
        check_range("sketch_dim", sketch_dim, low=0, integer=True)
    model = unwrapped(model)
    check_coupling(model, train_mode, batchnorm)
    where = torch.device(device) if device is not None else next((p.device for p in model.parameters()), torch.device("cpu"))
    _check_device(model, where)
    probe = draw(data, groups, max_examples=max_examples, batch_size=batch_size, seed=seed, device=where)
    run = per_example_loss(loss_fn, forward, loss)
    # What a model does with a batch is found out anew unless it was asked not to be checked, and depends on nothing but the model.
    remember = not check and forward is None and loss is None
    with untouched(model, evaluate=not train_mode), torch.enable_grad():
        if engine == "last_layer":
            engine, params = "ghost", "head"
            name = "last_layer"
        else:
            name = ""
        space = parameters_of(model, params, lambda: run(model, take(probe.batches[0], slice(0, 1), probe.sizes[0]), 1))
        if sketch_dim is None:
            sketch_dim = 0 if engine in ("jvp", "groups") else WIDTH
        if gramian:
            probe = _joined(probe)
        probe, order = _by_group(probe)
        if not gramian:
            probe = _in_pieces(probe, _pieces(model, probe, run, where, remember))
        none = bool(torch.cat(probe.ids).lt(0).any())
        rows = len(probe.group_names) + none
        watched = _Pressure(probe)
        job = Job(
            model,
            run,
            probe.batches,
            probe.sizes,
            [torch.where(ids < 0, len(probe.group_names), ids) for ids in probe.ids],
            rows,
            space,
            projection=Projection(sketch_dim, seed) if sketch_dim else None,
            gramian=gramian,
            along=leverage,
            check=check,
            repeatable=not train_mode,  # with dropout no two passes are alike
            remember=remember,
            see=watched.see,
            progress=progress or (lambda _: None),
        )
        try:
            chosen, found = select(job) if engine == "auto" else (engine, _by(engine, job))
        except CoupledExamplesError:
            bad_input(
                "model",
                "examples whose loss depends on the others in their batch",
                "a model and loss that treat each example by itself",
                "Contrastive losses, losses divided by the size of the batch and layers that mix it have no gradient of one example.",
            )
    if len(found.missing) == len(space.names):
        bad_input("engine", engine, "another engine: the hooks see nothing of this model", "Use engine='auto'.")
    _check_finite(found.losses, found.norms_sq, found.sums, probe)
    missing = tuple(space.names[i] for i in sorted(found.missing))
    left = sum(space.slices[i].stop - space.slices[i].start for i in found.missing)
    norms = None if found.norms_sq is None else found.norms_sq.sum(dim=1)
    S = found.S
    if S is not None and norms is not None:
        S = with_lengths(S, norms)
    elif S is not None and norms is None:
        norms = S.double().square().sum(dim=1)
    notes = (*probe.notes, *found.notes)
    if missing:
        notes += (f"Not measured: {listing(missing)}, {left / space.total:.1%} of the parameters.",)
    sketch = GradientSketch(
        losses=found.losses,
        groups=torch.cat(probe.ids),
        index=torch.cat(probe.index),
        group_names=probe.group_names,
        kind=probe.kind,
        norms_sq=norms,
        S=S,
        group_sums=found.sums,
        gramian=found.gramian,
        along=found.along,
        blocks=None if found.norms_sq is None else Blocks(space.names, space.slices, found.norms_sq),
        coverage=1 - left / space.total,
        missing=missing,
        engine=name or chosen,
        seed=seed,
        notes=notes,
        parameter_names=space.names,
        parameter_slices=space.slices,
        parameters=space.tensors,
    )
    return Measurement(_in_order(sketch, order), watched.result(), watched.classes)


def _by(engine: str, job: Job) -> Measured:
    if engine not in ("vmap", "jvp"):
        return ENGINES[engine](job)
    try:
        return ENGINES[engine](job)
    except InputError:
        raise
    except FAILURES as error:
        said = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        message = f"engine: {engine!r} cannot measure this model, since torch cannot transform it: {said} Use engine='auto' or 'ghost'."
        raise InputError(message) from error


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def parameters_of(model: nn.Module, params: str, forward: Callable[[], Any]) -> ParameterSpace:
    """``"all"``, ``"head"``, ``"last_k"`` (layers with parameters of their own) or a regular expression on names; trainable ones only."""
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        bad_input("model", f"{type(model).__name__} without trainable parameters", "a model some of whose parameters require gradients")
    if not isinstance(params, str):
        bad_input("params", params, "'all', 'head', 'last_k' such as 'last_2', or a regular expression on the names of parameters")
    if params == "all":
        chosen = trainable
    elif params == "head" or re.fullmatch(r"last_[1-9][0-9]*", params):
        count = 1 if params == "head" else int(params[5:])
        wanted = {id(p) for layer in _called(model, forward)[-count:] for p in layer.parameters(recurse=False)}
        chosen = [(name, p) for name, p in trainable if id(p) in wanted]
    else:
        try:
            chosen = [(name, p) for name, p in trainable if re.search(params, name)]
        except re.error as error:
            bad_input("params", params, f"a regular expression ({error})")
    if not chosen:
        bad_input("params", params, f"trainable parameters among {listing(name for name, _ in trainable)}")
    return ParameterSpace([name for name, _ in chosen], [p for _, p in chosen])


def _called(model: nn.Module, forward: Callable[[], Any]) -> list[nn.Module]:
    """Layers with trainable parameters of their own in the order of their last call."""
    order: list[nn.Module] = []

    def seen(layer: nn.Module, *_: Any) -> None:
        if layer in order:
            order.remove(layer)
        order.append(layer)

    handles = [
        layer.register_forward_hook(seen) for layer in model.modules() if any(p.requires_grad for p in layer.parameters(recurse=False))
    ]
    try:
        with torch.no_grad(), exact_backends():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return order


def check_coupling(model: nn.Module, train_mode: bool, batchnorm: str | None) -> None:
    """A gradient of one example exists only where examples do not see each other."""
    if batchnorm not in (None, "eval"):
        bad_input("batchnorm", batchnorm, "'eval' or None")
    norms = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, _BATCH_NORMS)]
    for name, layer in norms:
        if layer.running_mean is None:
            bad_input(
                "model",
                f"{type(layer).__name__} {name!r} without running statistics",
                "layers that do not mix examples",
                "Use GroupNorm instead.",
            )
    training = [name for name, layer in norms if layer.training]
    if training and batchnorm != "eval":
        bad_input(
            "model",
            f"batch normalization in training mode ({listing(training, 2)})",
            "a model in eval mode",
            "In training mode the examples are coupled: the gradient of one depends on the others. Call model.eval() first, or pass "
            "batchnorm='eval'.",
        )
    if train_mode and norms:
        bad_input("train_mode", True, "False for a model with batch normalization")


def _check_device(model: nn.Module, where: torch.device) -> None:
    here = {p.device for p in model.parameters()}
    if any(device.type != where.type for device in here):
        bad_input("device", str(where), f"the device of the model, {listing(str(device) for device in here)}", "Move the model first.")


def _joined(probe: Probe) -> Probe:
    """One batch: the Gramian needs all examples side by side."""
    from torch.utils._pytree import tree_flatten, tree_unflatten

    if len(probe.batches) == 1:
        return probe
    flat = [tree_flatten(batch) for batch in probe.batches]
    spec = flat[0][1]
    leaves = []
    for parts in zip(*(leaves for leaves, _ in flat), strict=True):
        whole = isinstance(parts[0], Tensor) and parts[0].ndim and all(len(p) == n for p, n in zip(parts, probe.sizes, strict=True))
        if whole and len({p.shape[1:] for p in parts}) > 1:
            bad_input("gramian", True, "batches of equal shapes apart from their length", "Pad them alike, or use the sketch.")
        leaves.append(torch.cat(parts) if whole else parts[0])
    return Probe(
        [tree_unflatten(leaves, spec)],
        [len(probe)],
        [torch.cat(probe.ids)],
        [torch.cat(probe.index)],
        probe.group_names,
        probe.kind,
        probe.notes,
    )


def _pieces(model: nn.Module, probe: Probe, run: Run, device: torch.device, remember: bool) -> int:
    """Examples that go through the model at once: as many as keep what the layers return within BATCH_BYTES."""
    some = min(2, probe.sizes[0])  # not one, which not every model takes
    batch = probe.batches[0]

    def find() -> int:
        return _bytes_returned(model, lambda: run(model, take(batch, slice(0, some), probe.sizes[0]), some))

    try:
        taken = remembered(model, ("bytes", some, kind_of_batch(batch)), find) if remember else find()
    except FAILURES:
        return max(probe.sizes)  # what is wrong is said by those who measure
    budget = BATCH_BYTES["cpu" if device.type == "cpu" else "other"]
    return max(LEAST_PIECE, budget * some // max(taken, 1))


def _bytes_returned(model: nn.Module, forward: Callable[[], Any]) -> int:
    """By the innermost layers, in one pass."""
    total = 0

    def count(_: nn.Module, args: Any, output: Any) -> None:
        nonlocal total
        total += sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(output) if isinstance(leaf, Tensor))

    leaves = [layer for layer in model.modules() if next(layer.children(), None) is None]
    handles = [layer.register_forward_hook(count) for layer in leaves]
    try:
        with torch.no_grad(), exact_backends():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return total


def _in_pieces(probe: Probe, size: int) -> Probe:
    """Batches of at most ``size`` examples; measurements add up, so that only the memory of a pass is another."""
    if max(probe.sizes) <= size:
        return probe
    batches, sizes, ids, index = [], [], [], []
    for batch, n, own, rows in zip(probe.batches, probe.sizes, probe.ids, probe.index, strict=True):
        size = -(-n // -(-n // size))  # as many pieces, of equal length
        for start in range(0, n, size):
            part = slice(start, min(start + size, n))
            batches.append(take(batch, part, n))
            sizes.append(part.stop - part.start)
            ids.append(own[part])
            index.append(rows[part])
    return replace(probe, batches=batches, sizes=sizes, ids=ids, index=index)


def _by_group(probe: Probe) -> tuple[Probe, Tensor]:
    """Every batch sorted by group (those of none last), and where each row of the data's order is then."""
    orders = [torch.argsort(torch.where(ids < 0, len(probe.group_names), ids), stable=True) for ids in probe.ids]
    batches = [
        batch if bool((order[1:] > order[:-1]).all()) else take(batch, order, n)
        for batch, order, n in zip(probe.batches, orders, probe.sizes, strict=True)
    ]
    index = [rows[order] for rows, order in zip(probe.index, orders, strict=True)]
    ids = [own[order] for own, order in zip(probe.ids, orders, strict=True)]
    return replace(probe, batches=batches, index=index, ids=ids), torch.argsort(torch.cat(index), stable=True)


def _in_order(sketch: GradientSketch, order: Tensor) -> GradientSketch:
    """The same examples in the order of the data."""

    def rows(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[order.to(x.device)]

    blocks = (
        None if sketch.blocks is None else replace(sketch.blocks, norms_sq=sketch.blocks.norms_sq[order.to(sketch.blocks.norms_sq.device)])
    )
    gramian = rows(sketch.gramian)
    return replace(
        sketch,
        losses=sketch.losses[order.to(sketch.losses.device)],
        groups=sketch.groups[order],
        index=sketch.index[order],
        norms_sq=rows(sketch.norms_sq),
        S=rows(sketch.S),
        along=rows(sketch.along),
        gramian=None if gramian is None else gramian[:, order.to(gramian.device)],
        blocks=blocks,
    )


def _check_finite(losses: Tensor, norms_sq: Tensor | None, sums: Tensor | None, probe: Probe) -> None:
    wrong = ~torch.isfinite(losses)
    if norms_sq is not None:
        wrong = wrong | ~torch.isfinite(norms_sq).all(dim=1).to(wrong.device)
    if not bool(wrong.any()):
        if sums is not None and not all(bool(torch.isfinite(end)) for end in torch.aminmax(sums)):  # without a copy of the sums
            bad_input("model", "gradients that are not finite", "finite gradients")
        return
    rows = wrong.nonzero()[:, 0].cpu()
    ids = torch.cat(probe.ids)[rows]
    names = [probe.group_names[i] if i >= 0 else "(none)" for i in torch.unique(ids).tolist()]
    places = torch.cat(probe.index)[rows].tolist()
    bad_input(
        "data",
        f"{len(places)} examples whose loss or gradient is not finite",
        "finite losses and gradients",
        f"Look at examples {listing(places, 5)} of group {listing(map(repr, names), 3)}, or at the loss there.",
    )


class _Pressure:
    """Sums over rows of 1 - p of the own class (pull) and of p of the others (push), where outputs are logits of classes."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.parts: dict[int, tuple[Tensor, Tensor]] | None = {}  # by batch, which may come more than once
        self.classes: tuple[str, ...] = ()

    def see(self, output: Any, losses: Tensor, at: int) -> None:
        from ._probe import target_or_none

        target = target_or_none(self.probe.batches[at])
        if self.parts is None or not isinstance(output, Tensor) or target is None or target.ndim != 1 or target.is_floating_point():
            self.parts = None
            return
        logits = output.detach()
        if (
            logits.ndim != 2
            or logits.shape[1] < 2
            or len(logits) != len(target)
            or int(target.min()) < 0
            or int(target.max()) >= logits.shape[1]
            or (self.classes and len(self.classes) != logits.shape[1])
        ):
            self.parts = None
            return
        p = logits.double().softmax(dim=1)
        own = torch.nn.functional.one_hot(target, logits.shape[1]).bool()
        self.parts[at] = torch.where(own, 1 - p, 0.0).sum(dim=0), torch.where(own, 0.0, p).sum(dim=0)
        self.classes = tuple(str(k) for k in range(logits.shape[1]))

    def result(self) -> tuple[Tensor, Tensor] | None:
        if not self.parts:
            return None
        pulls, pushes = zip(*self.parts.values(), strict=True)
        return torch.stack(pulls).sum(dim=0), torch.stack(pushes).sum(dim=0)
