r"""Scalarization (Li et al. 2025, arXiv:2410.04579): losses of domains weighed instead of drawing their examples more often.

What is unbalanced: the mean loss over domains of very different sizes :math:`n_i` is that of the largest. With examples drawn as the data
are and

.. math:: L = \frac1B \sum_{b=1}^B w_{f(x_b)} L(x_b), \qquad w_i = \frac{p(i; \tau)}{p(i; 1)}, \qquad
          p(i; \tau) = \frac{n_i^{1/\tau}}{\sum_j n_j^{1/\tau}} ,

where f(x) is the domain of x, the mean gradient is the one of drawing domains with :math:`p(\cdot; \tau)` and weighing nothing (Theorem 1).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy.typing as npt
import torch
from torch import Tensor, nn

from counterpoise._errors import check_choice, check_range
from counterpoise._precision import single
from counterpoise._temperature import TAU, Tau, checked_sizes, checked_tau, fixed_tau, tau_at, weights

from ._weighted import check_base, check_rows, weigh

__all__ = ["ScalarizedLoss", "scalarization_weights"]


def scalarization_weights(sizes: Tensor | npt.ArrayLike, tau: float = TAU) -> Tensor:
    r"""Weight of each domain's losses: :math:`w_i = p(i; \tau) / p(i; 1)`, whose mean over the data is 1.

    Parameters
    ----------
    sizes : tensor or array-like, shape (K,)
        Examples of each domain, all above 0.
    tau : float > 0, default 5.0 (the paper's)
        1 gives weights of 1, inf the inverse shares of the data over K.

    Returns
    -------
    tensor, shape (K,), float64
        On the device of ``sizes``. :math:`\sum_i p(i; 1) w_i = 1`.

    Raises
    ------
    InputError
        If a size is not above 0 or not finite, or ``tau`` is not above 0.

    Examples
    --------
    >>> scalarization_weights([900, 100], tau=2.0)
    tensor([0.8333, 2.5000], dtype=torch.float64)
    """
    w = torch.from_numpy(weights(checked_sizes(sizes), fixed_tau(tau)))
    return w.to(sizes.device) if isinstance(sizes, Tensor) else w


class ScalarizedLoss(nn.Module):
    r"""A loss whose examples weigh :math:`w_i = p(i; \tau) / p(i; 1)`, i being their domain, for batches drawn as the data are.

    The mean divides by the number of losses. Dividing by the sum of the batch's weights, as a class-weighted ``CrossEntropyLoss`` does,
    would make another, biased gradient.

    Parameters
    ----------
    loss : torch.nn.Module with ``reduction="none"``
        Called as ``loss(input, target)``; gives losses (B, ...).
    sizes : tensor or array-like, shape (K,)
        Examples of each domain in the training data.
    tau : float > 0 or callable, default 5.0 (the paper's)
        The temperature, or a schedule: a function from the step to it, such as :class:`~counterpoise.schedules.Cooldown`. The step is the
        number of calls in training mode before; ``set_step`` says it where that is not so, as with several micro-batches to a step.
        The state dict holds it. Under ``torch.compile``, leave a loss with a schedule outside.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the number of losses (an empty batch gives 0).

    Shapes
    ------
    input (B, ...) and target (B, ...) as the loss takes them; domains (B,) integer in 0..K-1, on any device. Losses with more dimensions
    (tokens, pixels) are all multiplied by their example's weight, and the mean runs over all of them. Output: a scalar; with
    ``reduction="none"`` the shape of the losses. Half-precision input is computed, and the loss returned, in float32.

    Raises
    ------
    InputError
        If the loss is reduced, a size is not above 0, a temperature is not above 0 (of a schedule the step is named), a domain is unknown,
        or lengths differ. (The range of domains is not looked at inside ``torch.compile``.)

    Examples
    --------
    >>> loss = ScalarizedLoss(nn.CrossEntropyLoss(reduction="none"), sizes=[900, 100], tau=2.0)
    >>> loss(torch.zeros(2, 2), torch.tensor([0, 1]), domains=torch.tensor([0, 1]))
    tensor(1.1552)
    """

    weights: Tensor

    def __init__(
        self,
        loss: nn.Module,
        sizes: Tensor | npt.ArrayLike,
        tau: Tau = TAU,
        *,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__()
        check_base("loss", loss)
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        self.loss, self.tau, self.reduction = loss, checked_tau(tau), reduction
        self._sizes = checked_sizes(sizes)
        self._step = 0
        self._shown = tau_at(self.tau, 0)  # the temperature that the weights are of
        self.register_buffer("weights", torch.from_numpy(weights(self._sizes, self._shown)))

    def forward(self, input: Any, target: Any, domains: Tensor) -> Tensor:
        if callable(self.tau):
            self._weigh_for(self._step)
            self._step += self.training
        losses: Tensor = self.loss(single(input) if isinstance(input, Tensor) else input, target)
        known = f"the domains 0..{len(self.weights) - 1} that sizes has"
        check_rows(losses, domains, len(self.weights), "loss", "domains", known)
        return weigh(losses, self.weights, domains, self.reduction)

    def set_step(self, step: int) -> None:
        """The next call is about this step of the schedule."""
        check_range("step", step, low=0, integer=True)
        self._step = int(step)

    def get_extra_state(self) -> Tensor:
        """The step, in the state dict."""
        return torch.tensor(self._step)

    def set_extra_state(self, state: Any) -> None:
        """The step of a state dict."""
        self.set_step(int(state))
        self._shown = float("nan")  # the loaded weights may be those of any temperature

    def _weigh_for(self, step: int) -> None:
        tau = tau_at(self.tau, step)
        if tau != self._shown:
            self.weights.copy_(torch.from_numpy(weights(self._sizes, tau)))
            self._shown = tau

    def extra_repr(self) -> str:
        tau = self.tau if callable(self.tau) else f"{self.tau:g}"
        return f"{len(self.weights)} domains, tau={tau}, reduction={self.reduction!r}"
