r"""Sharpness: the largest eigenvalue of the Hessian of the loss, which bounds the learning rate.

What is unbalanced: one direction of parameter space, often held by a few examples, bends the loss so much more than all others that it
alone limits the step. Gradient descent with step lr on a quadratic multiplies the distance along an eigenvector by :math:`1 - lr \lambda`
in each step, so it oscillates with growing amplitude once

.. math:: lr \, \lambda_{max} / 2 > 1 .

Heavy ball with momentum :math:`\beta` does so at :math:`lr \, \lambda_{max} / 2 > 1 + \beta`. Outliers whose gradients oppose each other
along that direction are the subject of arXiv:2311.04163 (Rosenfeld & Risteski 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from counterpoise._errors import bad_input, check_range, listing
from counterpoise._pergrad import ParameterSpace, exact_backends, untouched

from ._probe import draw, per_example_loss
from ._sketching import parameters_of, unwrapped

if TYPE_CHECKING:
    import polars as pl

__all__ = ["SharpnessReport", "check_momentum", "edge_of", "sharpness"]

BATCH = 512  # rows of a tuple of tensors that are differentiated at once
_ALL = 2**62


@dataclass(frozen=True, eq=False)
class SharpnessReport:
    """Result of :func:`sharpness`.

    Attributes
    ----------
    value : float
        The largest (most positive) eigenvalue of the Hessian of the mean loss.
    vector : Tensor, shape (P,)
        Its eigenvector of length 1 over the P trainable parameters, in the order of ``names``.
    converged : bool
        Whether ``residual`` fell to the tolerance. If not, ``value`` is a lower bound: no unit vector bends the loss less than it says.
    residual : float
        :math:`\\|H v - \\lambda v\\| / |\\lambda|`: an eigenvalue lies within this relative distance of ``value``.
    products : int
        Hessian-vector products that were taken, each about two ordinary passes over the data.
    examples : int
        How many examples the mean runs over.
    names, slices
        The parameters and where each is in ``vector``.
    notes : tuple of str
        What to know when reading the value.
    """

    value: float
    vector: Tensor
    converged: bool
    residual: float
    products: int
    examples: int
    names: tuple[str, ...]
    slices: tuple[slice, ...]
    notes: tuple[str, ...] = ()

    def max_lr(self, momentum: float = 0.0) -> float:
        r"""The learning rate where the oscillation starts: :math:`(2 + 2\beta) / \lambda_{max}`; infinite if the loss does not bend up.

        For gradient descent (``momentum=0``) and heavy ball, which is what ``torch.optim.SGD(momentum=...)`` does. Nesterov's momentum has
        :math:`(2 + 2\beta) / ((1 + 2\beta) \lambda_{max})`. Adam and its relatives step with a preconditioner D, and their edge is that of
        :math:`D H`, which this value does not know.
        """
        check_momentum(momentum)
        return 2 * edge_of(momentum) / self.value if self.value > 0 else float("inf")

    def lr_lambda_half(self, lr: float) -> float:
        r""":math:`lr \, \lambda_{max} / 2`: plain gradient descent oscillates from 1 on, heavy ball from :math:`1 + \beta` on."""
        check_range("lr", lr, low=0.0)
        return lr * self.value / 2

    def to_frame(self) -> pl.DataFrame:
        """Columns ``parameter``, ``count`` and ``share``: how much of the squared length of the eigenvector each parameter holds."""
        import polars as pl

        share = [float(self.vector[part].double().square().sum()) for part in self.slices]
        return pl.DataFrame({"parameter": list(self.names), "count": [part.stop - part.start for part in self.slices], "share": share})

    def summary(self) -> str:
        """Two sentences, and the notes."""
        held = self.to_frame().sort("share", descending=True).row(0, named=True)
        state = (
            f"to {self.residual:.1g} of it"
            if self.converged
            else f"not converged (residual {self.residual:.1g} of it): a lower bound, raise iters"
        )
        lines = [
            f"Sharpness {self.value:.4g} over {self.examples:,} examples, {state}; "
            f"gradient descent oscillates from lr = {self.max_lr():.3g} on.",
            f"{100 * held['share']:.0f} % of that direction is in {held['parameter']!r}.",
        ]
        return " ".join([*lines, *self.notes])


def sharpness(model: nn.Module, loss_fn: Any, data: Any, *, iters: int = 20, tol: float = 1e-3, seed: int = 0) -> SharpnessReport:
    r"""The largest eigenvalue of the Hessian of the mean loss, from Hessian-vector products.

    .. math:: \lambda_{max} = \max_{\|v\| = 1} v^T H v, \qquad H = \nabla^2 \, \frac{1}{m} \sum_{i=1}^{m} \ell_i(\theta)

    A power iteration with memory: every step takes one product of H with the residual :math:`H v - \lambda v`, and the best vector of the
    space spanned by v, the residual, and the last move (LOBPCG with one vector; Knyazev 2001). It climbs to the *most positive*
    eigenvalue, also where a negative one is larger in magnitude, and takes a fraction of the products of the plain power iteration.

    The model is evaluated in eval mode (no dropout; batch normalization with its running statistics) and is left as it was, bit for bit:
    parameters, buffers, ``.grad``, flags and random states, also after an error.

    Parameters
    ----------
    model : torch.nn.Module
        In float32 or float64. Frozen parameters are left out.
    loss_fn : callable (output, target) -> losses (m,)
        Or a loss of ``torch.nn``, whose reduction is switched. The mean is over examples: with ``reduction="sum"`` in training, multiply
        the value by the batch size; class weights count as part of an example's loss.
    data : DataLoader or tuple of tensors (inputs, ..., targets)
        All of it is used and held in memory, batch by batch on the model's device; the mean runs over examples, whatever the batches.
    iters : int >= 1, default 20
        Most Hessian-vector products. Each costs about two ordinary passes, forward and backward, over the data.
    tol : float > 0, default 1e-3
        Relative residual at which to stop.
    seed : int, default 0
        Of the first vector.

    Raises
    ------
    InputError
        If nothing is trainable, a parameter is not float32 or float64, the loss is one number for the batch, or not finite.

    Examples
    --------
    >>> model = nn.Linear(2, 1, bias=False).double()
    >>> X = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    >>> report = sharpness(model, nn.MSELoss(), (X, torch.zeros(2, 1, dtype=torch.float64)))  # H = X^T X
    >>> round(report.value, 6), report.converged, round(report.max_lr(momentum=0.9), 4)
    (9.0, True, 0.4222)
    """
    if not isinstance(model, nn.Module):
        bad_input("model", type(model).__name__, "a torch.nn.Module")
    check_range("iters", iters, low=1, integer=True)
    check_range("tol", tol, low=0.0, open_low=True)
    check_range("seed", seed, low=0, integer=True)
    model = unwrapped(model)
    run = per_example_loss(loss_fn, None, None)
    recurrent = any(isinstance(layer, nn.RNNBase) for layer in model.modules())
    with untouched(model, evaluate=True), _generators_of(data), exact_backends(transforms=True, recurrent=recurrent), torch.enable_grad():
        space = _trainable(model)
        probe = draw(data, None, max_examples=_ALL, batch_size=BATCH, seed=seed, device=space.device)
        m = len(probe)

        def times(v: Tensor) -> Tensor:
            """H v, batch by batch."""
            direction = [v[part].view_as(p).to(p.dtype) for part, p in zip(space.slices, space.tensors, strict=True)]
            total = torch.zeros_like(v)
            for batch, n in zip(probe.batches, probe.sizes, strict=True):
                loss = run(model, batch, n)[1].sum() / m
                if not bool(torch.isfinite(loss)):
                    bad_input(
                        "loss_fn", f"a loss of {float(loss.detach())}", "finite losses", "A model that has diverged has no sharpness."
                    )
                total += _flat(_product(loss, space.tensors, direction), space).to(v.dtype)
            return total

        start = torch.randn(space.total, generator=torch.Generator().manual_seed(seed), dtype=space.dtype).to(space.device)
        value, vector, residual, products, converged = climb(times, start, iters, tol)
    mixing = [name for name, layer in model.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training]
    note = f"Batch normalization ({listing(mixing, 3)}) was evaluated with its running statistics, not those of a training batch."
    notes = (note,) if mixing else ()
    return SharpnessReport(value, vector, converged, residual, products, m, space.names, space.slices, notes)


def climb(times: Callable[[Tensor], Tensor], start: Tensor, iters: int, tol: float) -> tuple[float, Tensor, float, int, bool]:
    """(eigenvalue, unit eigenvector, relative residual, products, converged) of the largest eigenvalue of a symmetric operator.

    Locally optimal: the Rayleigh quotient is maximized over span(v, residual, last move) at one product per step. Products of all three are
    carried along by linearity; what is returned was computed anew unless the budget ended.
    """
    v = start / torch.linalg.vector_norm(start)
    Hv = times(v)
    products, fresh = 1, True
    size = 0.0  # of the operator, as far as it was seen
    p = Hp = None
    while True:
        value = float(_dot(v, Hv))
        r = Hv - value * v
        norm = float(torch.linalg.vector_norm(r))
        size = max(size, float(torch.linalg.vector_norm(Hv)))
        # What rounding leaves of an operator of this size is no residual.
        limit = max(tol * abs(value), 10 * torch.finfo(v.dtype).eps * size)
        if norm <= limit or products >= iters:
            if fresh or products >= iters:
                return value, v, norm / abs(value) if value else float(norm > 0), products, norm <= limit
            v = v / torch.linalg.vector_norm(v)
            Hv, p, Hp, fresh = times(v), None, None, True
            products += 1
            continue
        w = _orthogonal(r, v)
        w = w / torch.linalg.vector_norm(w)
        Hw = times(w)
        products += 1
        basis, images = [v, w], [Hv, Hw]
        if p is not None and Hp is not None:
            before = float(torch.linalg.vector_norm(p))
            for b, Hb in ((v, Hv), (w, Hw)):
                along = _dot(b, p).to(p.dtype)
                p, Hp = p - along * b, Hp - along * Hb
            left = float(torch.linalg.vector_norm(p))
            if left > 1e-4 * before:  # below, it is rounding more than a direction
                basis, images = [*basis, p / left], [*images, Hp / left]
        T = torch.stack([torch.stack([_dot(a, Hb) for Hb in images]) for a in basis])
        weights = torch.linalg.eigh((T + T.T) / 2).eigenvectors[:, -1]
        move = [float(c) for c in weights]
        p = sum((c * b for c, b in zip(move[1:], basis[1:], strict=True)), torch.zeros_like(v))
        Hp = sum((c * b for c, b in zip(move[1:], images[1:], strict=True)), torch.zeros_like(v))
        v, Hv = move[0] * v + p, move[0] * Hv + Hp
        length = torch.linalg.vector_norm(v)
        v, Hv, fresh = v / length, Hv / length, False


def edge_of(momentum: float | None) -> float:
    r"""Where :math:`lr \lambda / 2` starts the oscillation: :math:`1 + \beta`; NaN for None, where it is another matrix's edge."""
    return float("nan") if momentum is None else 1.0 + momentum


def check_momentum(momentum: float | None) -> None:
    if momentum is not None:
        check_range("momentum", momentum, low=0.0, high=1.0)


def _trainable(model: nn.Module) -> ParameterSpace:
    space = parameters_of(model, "all", lambda: None)
    for name, tensor in zip(space.names, space.tensors, strict=True):
        if tensor.dtype not in (torch.float32, torch.float64):
            bad_input(
                "model", f"parameter {name!r} of {tensor.dtype}", "float32 or float64", "Measure a copy: copy.deepcopy(model).float()."
            )
    return space


def _product(loss: Tensor, parameters: tuple[Tensor, ...], direction: list[Tensor]) -> list[Tensor | None]:
    """Hessian times direction of one batch's loss; None where a parameter takes no part, or only linearly."""
    if not loss.requires_grad:
        return [None] * len(parameters)
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    bent = [(g, d) for g, d in zip(gradients, direction, strict=True) if g is not None and g.requires_grad]
    if not bent:
        return [None] * len(parameters)
    return list(torch.autograd.grad([g for g, _ in bent], parameters, [d for _, d in bent], allow_unused=True))


def _flat(parts: list[Tensor | None], space: ParameterSpace) -> Tensor:
    return torch.cat(
        [torch.zeros_like(p).flatten() if part is None else part.flatten() for part, p in zip(parts, space.tensors, strict=True)]
    )


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a, b).double().cpu()


def _orthogonal(r: Tensor, v: Tensor) -> Tensor:
    return r - _dot(v, r).to(r.dtype).to(r.device) * v


@contextmanager
def _generators_of(data: Any) -> Iterator[None]:
    """A loader's own generators come back as they were; the global one is looked after elsewhere."""
    owners = (data, getattr(data, "sampler", None), getattr(data, "batch_sampler", None))
    generators = [getattr(owner, "generator", None) for owner in owners]
    found = [generator for generator in generators if isinstance(generator, torch.Generator)]
    states = [generator.get_state() for generator in found]
    try:
        yield
    finally:
        for generator, state in zip(found, states, strict=True):
            generator.set_state(state)
