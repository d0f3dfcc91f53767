r"""The update that an optimizer makes of the mean gradient, and how it scales each coordinate.

With the diagonal preconditioner D and the direction u (before the minus sign, weight decay left out):

* SGD: D = 1; u is the momentum buffer b, :math:`\mu + \beta b` with Nesterov's, or :math:`\mu` without momentum,
* Adam, AdamW: :math:`D = 1 / (\sqrt{\hat v} + \epsilon)`, :math:`u = D \hat m`; NAdam: the same with its look ahead at :math:`\mu`;
  RAdam: the same with its rectification, and D = 1 as long as that is not defined,
* RMSprop, Adagrad: :math:`D = 1 / (\sqrt{v} + \epsilon)`, with the variance for v if centered; :math:`u = D \mu`, or the momentum buffer.

Each parameter group's learning rate multiplies both, relative to the first group's. Weight decay that an optimizer adds to the gradient is
in its state, and stays there. A parameter that has never had a gradient has no part in the update.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from counterpoise._errors import bad_input
from counterpoise._pergrad import GradientSketch

__all__ = ["Update", "update_of"]

ADAMS = ("Adam", "AdamW", "NAdam", "RAdam")
KNOWN = ("SGD", *ADAMS, "RMSprop", "Adagrad")


@dataclass(frozen=True, eq=False)
class Update:
    """``direction`` (P,) u, ``scale`` (P,) D, and the first parameter group's learning rate."""

    direction: Tensor
    scale: Tensor
    lr: float


def update_of(optimizer: Any, sketch: GradientSketch, mean: Tensor) -> Update:
    """Of the sketch's parameters, from the optimizer's state; ``mean`` (P,) is the mean gradient.

    Raises
    ------
    InputError
        If the optimizer is of an unknown kind, has made no step, or does not hold the parameters.
    """
    kind = next((base.__name__ for base in type(optimizer).__mro__ if base.__name__ in KNOWN), None)
    if kind is None or not isinstance(optimizer, torch.optim.Optimizer):
        bad_input("optimizer", type(optimizer).__name__, f"one of torch.optim's {', '.join(KNOWN)}")
    if not sketch.parameters:
        bad_input("sketch", "no parameters", "a sketch measured on a model")
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    lost = [name for name, p in zip(sketch.parameter_names, sketch.parameters, strict=True) if id(p) not in group_of]
    if lost:
        bad_input("optimizer", f"no parameter {lost[0]!r}", "the optimizer of this model")
    base = float(optimizer.param_groups[0]["lr"])
    direction, scale = torch.empty_like(mean), torch.empty_like(mean)
    for p, part in zip(sketch.parameters, sketch.parameter_slices, strict=True):
        group, state = group_of[id(p)], optimizer.state.get(p, {})
        relative = float(group["lr"]) / base if base else 1.0
        u, d = _of_one(kind, group, state, mean[part])
        direction[part] = relative * u
        scale[part] = relative * d
    return Update(direction, scale, base)


def _of_one(kind: str, group: dict[str, Any], state: dict[str, Any], mean: Tensor) -> tuple[Tensor, Tensor | float]:
    """(u, D) of one parameter, flat."""

    def flat(key: str) -> Tensor:
        if not isinstance(state.get(key), Tensor):
            bad_input(
                "optimizer",
                f"a {kind} whose state has no {key!r} yet",
                "an optimizer that has made a step",
                "Measure after training a bit.",
            )
        return state[key].detach().reshape(-1).to(mean.dtype)  # type: ignore[no-any-return]

    if not state and not bool(mean.any()):
        return torch.zeros_like(mean), 0.0
    if kind == "SGD":
        if not group.get("momentum"):
            return mean, 1.0
        buffer = flat("momentum_buffer")
        return (mean + group["momentum"] * buffer if group.get("nesterov") else buffer), 1.0
    if kind in ADAMS:
        return _adam(kind, group, state, mean, flat)
    second = flat("square_avg" if kind == "RMSprop" else "sum")
    if group.get("centered"):
        second = (second - flat("grad_avg").square()).clamp(min=0)
    d = 1.0 / (second.sqrt() + group["eps"])
    return (flat("momentum_buffer") if group.get("momentum") else mean * d), d


def _adam(
    kind: str, group: dict[str, Any], state: dict[str, Any], mean: Tensor, flat: Callable[[str], Tensor]
) -> tuple[Tensor, Tensor | float]:
    first, second = flat("exp_avg"), flat("max_exp_avg_sq") if group.get("amsgrad") else flat("exp_avg_sq")
    step = float(state["step"])
    beta1, beta2 = (float(beta) for beta in group["betas"])
    m = first / (1 - beta1**step)
    d = 1.0 / ((second / (1 - beta2**step)).sqrt() + group["eps"])
    if kind == "NAdam":
        decay, product = group["momentum_decay"], float(state["mu_product"])
        now, then = (beta1 * (1 - 0.5 * 0.96 ** (t * decay)) for t in (step, step + 1))
        m = mean * (1 - now) / (1 - product) + first * then / (1 - product * then)
    if kind == "RAdam":
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * step * beta2**step / (1 - beta2**step)
        if length <= 5:
            return m, 1.0
        rectified = ((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)) ** 0.5
        d = rectified * (1 - beta2**step) ** 0.5 / (second.sqrt() + group["eps"])
    return m * d, d
