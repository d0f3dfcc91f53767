r"""One row per example that stands for its gradient at one layer: exactly, or by directional derivatives from forward passes.

To choose what to train on, gradients of all examples of a pool are needed before any backward pass through the whole model. With
:math:`\theta` the parameters of one layer and :math:`z \sim N(0, I)` a direction that all examples share,

.. math::
    \hat g_i = \frac{L_i(\theta + \epsilon z) - L_i(\theta - \epsilon z)}{2 \epsilon}\, z \quad \text{(SPSA)}, \qquad
    \hat g_i = \langle g_i, z \rangle\, z \quad \text{(forward mode)} .

All rows of one direction lie on one line: they say how far an example's gradient goes along z, and nothing else. CoLM (arXiv:2407.19580)
takes them from a direction that its released code draws once for the whole training. m directions keep distances between gradients to
within about :math:`1/\sqrt{m}`; at a linear layer near the output the gradients themselves cost less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from counterpoise._errors import InputError, bad_input, check_choice, check_range
from counterpoise._pergrad import (
    FAILURES,
    Job,
    ParameterSpace,
    directional,
    exact_backends,
    kind_of_batch,
    random_states,
    remembered,
    untouched,
)
from counterpoise._pergrad._engines import _vectorized, _Whole
from counterpoise._precision import HALF, single

from ._probe import _checked, size_of
from ._replayed import Prefix
from ._sketching import unwrapped

__all__ = ["gradient_features"]

METHODS = ("last-layer", "exact", "jvp", "spsa")
EPSILON = 1e-3  # of SPSA, as in CoLM and MeZO

Losses = Callable[[nn.Module, Any], Tensor]


def gradient_features(
    model: nn.Module,
    loss_per_example: Losses,
    batch: Any,
    layer: str | nn.Module,
    method: str = "last-layer",
    directions: int = 1,
    generator: torch.Generator | int | None = None,
) -> Tensor:
    r"""Features of the examples of a batch: their gradients at ``layer``, or what a few directions show of them.

    The model is evaluated in eval mode (dropout would give every pass another loss) and left as it was, ``.grad`` and random states
    included.

    Parameters
    ----------
    model : nn.Module
        The model; examples must not influence each other's losses.
    loss_per_example : callable (model, batch) -> Tensor, shape (L,) or (L, T)
        The loss of each example. Losses of several positions are averaged within an example: mask padding yourself.
    batch : tensors in any tuple, list or dict
        What ``loss_per_example`` takes. The first dimension of its first tensor counts the L examples.
    layer : str or nn.Module
        A layer of ``model`` or its dotted name. P counts its trainable parameters, in the order of ``layer.parameters()``.
    method : {"last-layer", "exact", "jvp", "spsa"}, default "last-layer"
        ============== ===================== =================================================================================
        method         features              cost beside one forward pass of the model without gradients
        ============== ===================== =================================================================================
        "last-layer"   exact gradients       backward through what follows the layer; nothing below it is kept in memory. The layer
                                             is an ``nn.Linear`` that is called once and shares no weight with others, or something
                                             whose trainable parameters are all in such ones (a projection with LoRA)
        "exact"        exact gradients       vectorized backward (``torch.func``), for any layer whose model torch can transform
        "jvp"          exact derivatives     one forward-mode pass for each direction, from the layer on
        "spsa"         differences           2 m - 1 forward passes from the layer on, :math:`\epsilon` = 1e-3
        ============== ===================== =================================================================================
        From the layer on: modules that are called once and left before the layer begins run in the first pass only. The first call for a
        model makes one pass more, to see that the others give the same without them; where they do not, everything runs in every pass. The
        paper's is "spsa" with one direction. The default is another one, since it is exact and costs less at a layer near the output.
    directions : int, default 1
        m, for "jvp" and "spsa". With 1 the rows are :math:`\hat g_i` (L, P), all on one line; with more they are the m derivatives. Take at
        least 16.
    generator : torch.Generator or int, optional
        Where directions come from. A seed gives the same ones in every call, hence one line for the whole training: pass a generator, which
        goes on from call to call. Default: seed 0.

    Returns
    -------
    Tensor, shape (L, P), or (L, m) for m > 1 directions, in float32 or float64, without gradient

    Raises
    ------
    InputError
        If the layer is not in the model, has no trainable parameters or is not one that the method can treat (such as a head that shares
        its weight with an embedding); if there is not one loss per example, of it alone; or ``directions`` is given to an exact method.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> batch = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    >>> def losses(model, batch):
    ...     return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
    >>> exact = gradient_features(net, losses, batch, layer="2")
    >>> exact.shape  # 8 x 3 weights and 3 biases
    torch.Size([5, 27])
    >>> torch.allclose(exact, gradient_features(net, losses, batch, "2", method="exact"), atol=1e-6)
    True
    >>> gradient_features(net, losses, batch, "0", method="jvp", directions=16).shape
    torch.Size([5, 16])
    """
    check_choice("method", method, METHODS)
    check_range("directions", directions, low=1, integer=True)
    if directions > 1 and method in ("last-layer", "exact"):
        bad_input("directions", directions, f"1 for method {method!r}, whose gradients are whole", "Or method='jvp'.")
    model = unwrapped(model)
    name, chosen = _layer(model, layer)
    own = [(part, parameter) for part, parameter in chosen.named_parameters() if parameter.requires_grad]
    if not own:
        bad_input("layer", name or type(model).__name__, "a layer with trainable parameters")
    n = size_of(batch)
    with untouched(model, evaluate=True), torch.inference_mode(False):
        if method == "last-layer":
            return _at_linear(model, chosen, name, loss_per_example, batch, n)
        space = ParameterSpace([f"{name}.{part}" if name else part for part, _ in own], [parameter for _, parameter in own])
        job = _job(model, loss_per_example, batch, n, space)
        if method == "exact":
            with _transformed(method):
                return _exact(job)
        passes = _Passes(job, loss_per_example)
        found = []
        for z in _directions(space, directions, generator):
            if method == "spsa":
                along = (passes.losses(z, EPSILON) - passes.losses(z, -EPSILON)) / (2 * EPSILON)
            else:
                with _transformed(method):
                    along = passes.derivatives(z, repeated=directions > 1)
            found.append(along.to(space.dtype))
        return found[0][:, None] * z if directions == 1 else torch.stack(found, dim=1)


def _layer(model: nn.Module, layer: str | nn.Module) -> tuple[str, nn.Module]:
    modules = dict(model.named_modules())
    if isinstance(layer, nn.Module):
        for name, module in modules.items():
            if module is layer:
                return name, module
        bad_input("layer", type(layer).__name__, "a layer of this model, or its name")
    if layer not in modules:  # the model itself is "", which would be an empty place in a list
        check_choice("layer", layer, [name for name in modules if name], "model.named_modules() lists the names.")
    return layer, modules[layer]


@contextmanager
def _transformed(method: str) -> Iterator[None]:
    """What torch says when it cannot transform a model, with the way out."""
    try:
        yield
    except InputError:
        raise
    except FAILURES as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise InputError(f"method: {method!r} cannot treat this model ({said}); use 'last-layer' at an nn.Linear, or 'spsa'.") from error


def _job(model: nn.Module, losses: Losses, batch: Any, n: int, space: ParameterSpace) -> Job:
    def run(model: nn.Module, batch: Any, count: int) -> tuple[None, Tensor]:
        return None, _checked(losses(model, batch), count, "loss_per_example")

    return Job(model, run, [batch], [n], [torch.zeros(n, dtype=torch.int64)], 1, space)


def _directions(space: ParameterSpace, count: int, generator: torch.Generator | int | None) -> Iterator[Tensor]:
    if not isinstance(generator, torch.Generator):
        if generator is not None:
            check_range("generator", generator, low=0, integer=True)
        generator = torch.Generator().manual_seed(0 if generator is None else int(generator))
    for _ in range(count):
        yield torch.randn(space.total, generator=generator, dtype=space.dtype, device=generator.device).to(space.device)


class _Call(NamedTuple):
    """What one linear layer was called with; ``output`` is where the graph begins, or goes through."""

    x: Tensor
    given: Tensor
    output: Tensor


def _at_linear(model: nn.Module, layer: nn.Module, name: str, losses: Losses, batch: Any, n: int) -> Tensor:
    """The layer's output starts the graph: what comes before runs without gradients. Then dL/dW is the product of two things known."""
    linear = _trainable_linear(model, layer, name)
    calls: dict[nn.Module, list[_Call]] = {part: [] for part in linear}

    def start_here(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)  # until no_grad ends
        start = output if output.requires_grad else output.detach().requires_grad_()
        calls[part].append(_Call((args[0] if args else kwargs["input"]).detach(), output.detach(), start))
        return start.clone()  # which a layer that works in place may change

    handles = [part.register_forward_hook(start_here, with_kwargs=True) for part in linear]
    try:
        with torch.no_grad(), exact_backends():
            values = _checked(losses(model, batch), n, "loss_per_example")
    finally:
        for handle in handles:
            handle.remove()
    for part, where in linear.items():
        if len(calls[part]) != 1:
            bad_input("layer", f"{where}, called {len(calls[part])} times", "a layer that is called once", "Use method='exact'.")
        if (shape := calls[part][0].x.shape)[0] != n or len(shape) < 2:
            bad_input("layer", f"an input of shape {tuple(shape)}", f"the {n} examples first", "Use method='exact'.")
    found = {part: calls[part][0] for part in linear}
    if not values.requires_grad:
        bad_input("loss_per_example", "losses that do not follow from the layer", "losses with a gradient", "Is a part under no_grad?")
    with torch.enable_grad():  # the caller may have disabled it
        key = ("features", name, n, kind_of_batch(batch), _code_of(losses))
        remembered(model, key, lambda: _check_linear(linear, found, values))
        grads = torch.autograd.grad(values.sum(), [call.output for call in found.values()], allow_unused=True)
    rows = []
    for (part, call), grad in zip(found.items(), grads, strict=True):
        x, g = call.x, torch.zeros_like(call.given) if grad is None else grad
        x, g = (single(t) for t in (x.reshape(n, -1, x.shape[-1]), g.reshape(n, -1, g.shape[-1])))
        own = {"weight": torch.einsum("nto,nti->noi", g, x).flatten(1), "bias": g.sum(dim=1)}
        rows += [own[kind] for kind, parameter in part._parameters.items() if parameter is not None and parameter.requires_grad]
    return torch.cat(rows, dim=1)


def _trainable_linear(model: nn.Module, layer: nn.Module, name: str) -> dict[nn.Linear, str]:
    """The linear layers that hold all trainable parameters of ``layer``, in their order, with their names."""
    found: dict[nn.Linear, str] = {}
    for inner, part in layer.named_modules(prefix=name):
        if not any(p is not None and p.requires_grad for p in part._parameters.values()):
            continue
        if not isinstance(part, nn.Linear) or not set(part._parameters) <= {"weight", "bias"} or "weight" not in part._parameters:
            what = type(layer).__name__ + ("" if part is layer else f" with a trainable {type(part).__name__}")
            bad_input("layer", what, "an nn.Linear for method='last-layer'", "Use method='exact'.")
        found[part] = inner or type(part).__name__
    # The output of a layer does not know of another use of its weight, such as that of an embedding which is tied to the head.
    own = {id(parameter): inner for part, inner in found.items() for parameter in part.parameters() if parameter.requires_grad}
    for other, module in model.named_modules():
        for parameter in module._parameters.values():
            if id(parameter) in own and module not in found:
                shared = f"{own[id(parameter)]}, whose weight is also that of {other}"
                bad_input("layer", shared, "a layer with a weight of its own", "Use method='exact'.")
    return found


def _check_linear(linear: dict[nn.Linear, str], calls: dict[nn.Linear, _Call], values: Tensor) -> None:
    """That the layers do what their type says, and that the first dimension of their outputs is that of the examples."""
    alone = torch.autograd.grad(values[0], [calls[part].output for part in linear], retain_graph=True, allow_unused=True)
    for (part, name), grad in zip(linear.items(), alone, strict=True):
        x, given = calls[part].x, calls[part].given
        # Another forward, an adapter or a hook of its own: then the gradient is another product.
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            wide = x.dtype if x.dtype == torch.float64 else torch.float32
            expected = F.linear(x.to(wide), part.weight.to(wide), None if part.bias is None else part.bias.to(wide))
            off = float((expected - given).abs().max()) if expected.shape == given.shape else math.inf
        tolerance = 0.05 if {x.dtype, given.dtype, part.weight.dtype} & set(HALF) else 1e-2
        if not off <= tolerance * float(expected.abs().max()) and bool(expected.isfinite().all()):
            bad_input("layer", f"{name}, whose output is not that of a linear layer", "an nn.Linear without hooks", "Use method='exact'.")
        if grad is not None and bool((grad[1:] != 0).any()):
            bad_input(
                "loss_per_example", "a loss that depends on several examples", "one of each example alone, which come first in every layer",
                f"The input of {name} has shape {tuple(x.shape)}; method='exact' takes any order.",
            )  # fmt: skip


def _code_of(losses: Losses) -> Any:
    """What a function does, whichever time it was defined: what was found out with another one does not hold for it."""
    return getattr(losses, "__code__", type(losses))


def _exact(job: Job) -> Tensor:
    (batch,), (n,) = job.batches, job.sizes
    rows = torch.empty(n, job.space.total, dtype=job.space.dtype, device=job.space.device)
    with exact_backends(transforms=True):
        for part, gradients, _ in _vectorized(job, batch, n):
            for place, gradient in zip(job.space.slices, gradients, strict=True):
                rows[part, place] = gradient.to(rows.dtype)
    return rows


class _Passes:
    """Passes over the batch with the layer's parameters moved, all from the same random state. The parameters themselves stay.

    What comes before the layer runs once, unless a pass without it does not give the same numbers, to the last bit.
    """

    def __init__(self, job: Job, losses: Losses) -> None:
        self._job = job
        self._whole = _Whole(job.model, job.run)
        self._prefix: Prefix | None = None  # None before the first pass
        self._code = _code_of(losses)
        self._devices = [job.space.device.index or 0] if job.space.device.type == "cuda" else []

    def losses(self, z: Tensor, step: float) -> Tensor:
        """(L,) losses at the parameters plus ``step`` times z."""
        if self._prefix is not None:
            with self._prefix.replayed():
                return self._losses(z, step)
        prefix = Prefix(self._job.model, self._job.space.tensors)
        with prefix.recorded():
            found = self._losses(z, step)
        self._prefix = self._trusted(prefix, z, -step)
        return found

    def derivatives(self, z: Tensor, repeated: bool) -> Tensor:
        """(L,) inner products of the examples' gradients with z; ``repeated``: there will be other directions."""
        if self._prefix is None:
            prefix = Prefix(self._job.model, self._job.space.tensors)
            if repeated:
                with prefix.recorded():
                    self._losses(z, 0.0)
                prefix = self._trusted(prefix, z, EPSILON)
            self._prefix = prefix
        with self._prefix.replayed(), random_states(self._devices), exact_backends(forward_mode=True):
            return directional(self._job, z)

    @torch.no_grad()
    def _losses(self, z: Tensor, step: float) -> Tensor:
        space = self._job.space
        moved = {
            f"model.{name}": p + step * z[place].reshape(p.shape).to(p.dtype)
            for name, p, place in zip(space.names, space.tensors, space.slices, strict=True)
        }
        with random_states(self._devices), exact_backends():
            found: Tensor = torch.func.functional_call(self._whole, moved, (self._job.batches[0], self._job.sizes[0]))
        return found.double()

    def _trusted(self, prefix: Prefix, z: Tensor, step: float) -> Prefix:
        """The prefix, or an empty one. A model that was found to give the same numbers is not asked again while it is as it is."""

        def same() -> bool:
            try:
                with prefix.replayed():
                    found = self._losses(z, step)
            except (*FAILURES, LookupError):
                return False
            return torch.equal(found, self._losses(z, step))

        kinds = tuple(leaf.dtype if isinstance(leaf, Tensor) else type(leaf) for leaf in tree_leaves(self._job.batches[0]))
        if len(prefix) and not remembered(self._job.model, ("prefix", self._job.space.names, len(prefix), kinds, self._code), same):
            prefix.forget()
        return prefix
