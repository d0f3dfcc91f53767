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

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from counterpoise._errors import InputError, bad_input, check_choice, check_range
from counterpoise._pergrad import FAILURES, Job, ParameterSpace, directional, exact_backends, untouched
from counterpoise._pergrad._engines import _vectorized, _Whole

from ._probe import _checked, size_of
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
        "last-layer"   exact gradients       backward through what follows the layer, which must be an ``nn.Linear`` that is
                                             called once; nothing below it is kept in memory
        "exact"        exact gradients       vectorized backward (``torch.func``), for any layer whose model torch can transform
        "jvp"          exact derivatives     one forward-mode pass for each direction
        "spsa"         differences           two forward passes for each direction, :math:`\epsilon` = 1e-3
        ============== ===================== =================================================================================
        The paper's is "spsa" with one direction. The default is another one, since it is exact and cheaper at a head.
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
        If the layer is not in the model, has no trainable parameters or is not one that the method can treat; if there is not one loss per
        example; or ``directions`` is given to an exact method.

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
    with untouched(model, evaluate=True):
        if method == "last-layer":
            return _at_linear(model, chosen, name, loss_per_example, batch, n)
        space = ParameterSpace([f"{name}.{part}" if name else part for part, _ in own], [parameter for _, parameter in own])
        job = _job(model, loss_per_example, batch, n, space)
        if method == "exact":
            with _transformed(method):
                return _exact(job)
        found = []
        for z in _directions(space, directions, generator):
            if method == "spsa":
                along = _difference(job, z)
            else:
                with _transformed(method), exact_backends(forward_mode=True):
                    along = directional(job, z)
            found.append(along.to(space.dtype))
        return found[0][:, None] * z if directions == 1 else torch.stack(found, dim=1)


def _layer(model: nn.Module, layer: str | nn.Module) -> tuple[str, nn.Module]:
    modules = dict(model.named_modules())
    if isinstance(layer, nn.Module):
        for name, module in modules.items():
            if module is layer:
                return name, module
        bad_input("layer", type(layer).__name__, "a layer of this model, or its name")
    check_choice("layer", layer, modules, "model.named_modules() lists the names.")
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


def _at_linear(model: nn.Module, layer: nn.Module, name: str, losses: Losses, batch: Any, n: int) -> Tensor:
    """The layer's output starts the graph: what comes before runs without gradients. Then dL/dW is the product of two things known."""
    if not isinstance(layer, nn.Linear) or "weight" not in layer._parameters:
        bad_input("layer", type(layer).__name__, "an nn.Linear for method='last-layer'", "Use method='exact'.")
    calls: list[tuple[Tensor, Tensor]] = []

    def start_here(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)  # until no_grad ends
        start = output.detach().requires_grad_()
        calls.append(((args[0] if args else kwargs["input"]).detach(), start))
        return start

    handle = layer.register_forward_hook(start_here, with_kwargs=True)
    try:
        with torch.no_grad(), exact_backends():
            values = _checked(losses(model, batch), n, "loss_per_example")
    finally:
        handle.remove()
    if len(calls) != 1:
        bad_input(
            "layer", f"{name or type(layer).__name__}, called {len(calls)} times", "a layer that is called once", "Use method='exact'."
        )
    x, output = calls[0]
    if not values.requires_grad:
        bad_input("loss_per_example", "losses that do not follow from the layer", "losses with a gradient", "Is a part under no_grad?")
    if x.ndim < 2 or x.shape[0] != n:
        bad_input("layer", f"an input of shape {tuple(x.shape)}", f"the {n} examples first", "Use method='exact'.")
    with torch.enable_grad():  # the caller may have disabled it
        (grad,) = torch.autograd.grad(values.sum(), output)
    half = x.dtype not in (torch.float32, torch.float64)
    x, grad = (t.float() if half else t for t in (x.reshape(n, -1, x.shape[-1]), grad.reshape(n, -1, grad.shape[-1])))
    rows = {"weight": torch.einsum("nto,nti->noi", grad, x).flatten(1), "bias": grad.sum(dim=1)}
    return torch.cat([rows[part] for part, parameter in layer.named_parameters() if parameter.requires_grad], dim=1)


def _exact(job: Job) -> Tensor:
    (batch,), (n,) = job.batches, job.sizes
    rows = torch.empty(n, job.space.total, dtype=job.space.dtype, device=job.space.device)
    with exact_backends(transforms=True):
        for part, gradients, _ in _vectorized(job, batch, n):
            for place, gradient in zip(job.space.slices, gradients, strict=True):
                rows[part, place] = gradient.to(rows.dtype)
    return rows


@torch.no_grad()
def _difference(job: Job, z: Tensor) -> Tensor:
    """(L,) central differences of the losses along z. The parameters themselves are not moved."""
    whole = _Whole(job.model, job.run)
    (batch,), (n,) = job.batches, job.sizes

    def losses(step: float) -> Tensor:
        moved = {
            f"model.{name}": p + step * z[place].reshape(p.shape).to(p.dtype)
            for name, p, place in zip(job.space.names, job.space.tensors, job.space.slices, strict=True)
        }
        found: Tensor = torch.func.functional_call(whole, moved, (batch, n))
        return found.double()

    with exact_backends():
        return (losses(EPSILON) - losses(-EPSILON)) / (2 * EPSILON)
