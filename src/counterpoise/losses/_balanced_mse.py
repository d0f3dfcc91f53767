r"""Balanced mean squared error (Ren et al. 2022, arXiv:2203.16427), batch form.

What is unbalanced: a regressor trained on skewed targets takes p(y | x) times the frequency of y in the training set for what is likely. If
the noise is Gaussian with variance :math:`\sigma^2`, its training distribution can be divided out, with the batch as a sample of it:

.. math:: L_i = 2 \sigma^2 \left[ \frac{\|p_i - y_i\|^2}{2 \sigma^2} + \log \sum_j e^{-\|p_i - y_j\|^2 / (2 \sigma^2)} \right] .
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterpoise._errors import bad_input, check_choice, check_range

__all__ = ["BalancedMSELoss"]


class BalancedMSELoss(nn.Module):
    r"""Cross-entropy over which target of the batch a prediction belongs to, so that frequent targets are no better guess.

    .. math:: L_i = 2 \sigma^2 \; \mathrm{CE}\!\left( \left(-\|p_i - y_j\|^2 / (2 \sigma^2)\right)_j, \; i \right)

    The batch stands for the training distribution: it must be drawn as the training set is, and large batches are better. A prediction
    that is nearest to its own target, by more than :math:`\sigma`, costs next to nothing, so :math:`\sigma` must not be small against the
    spacing of a batch's targets. What comes out is meant for targets that are all equally frequent; where they are as frequent as in
    training, squared error is right.

    Parameters
    ----------
    noise_sigma : float > 0, default 1.0 (the authors' code)
        :math:`\sigma`, in the unit of the targets: standard deviation of what remains after a good fit.
    learn_sigma : bool, default False
        Make :math:`\log \sigma` a parameter, which an optimizer has to be given; the factor :math:`2 \sigma^2` stays a constant for the
        gradient.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by n (an empty batch gives 0).

    Shapes
    ------
    ``forward(predictions, targets)``: (n,), (n, 1) or (n, k), both the same. Output: a scalar; with ``reduction="none"`` (n,). Half
    precision is computed, and the loss returned, in float32.

    Raises
    ------
    InputError
        If shapes differ, a target is not finite, or a parameter is out of its range. (Values are not looked at inside ``torch.compile``.)

    Examples
    --------
    >>> targets = torch.tensor([0.0, 0.0, 0.0, 3.0])
    >>> loss = BalancedMSELoss(noise_sigma=1.0, reduction="none")
    >>> loss(torch.tensor([0.0, 0.0, 0.0, 1.5]), targets)  # three frequent targets, right; the rare one is predicted half way
    tensor([2.2046, 2.2046, 2.2046, 2.7726])
    """

    log_sigma: Tensor

    def __init__(self, noise_sigma: float = 1.0, learn_sigma: bool = False, reduction: Literal["mean", "sum", "none"] = "mean") -> None:
        super().__init__()
        check_range("noise_sigma", noise_sigma, low=0, open_low=True)
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        self.learn_sigma, self.reduction = learn_sigma, reduction
        log_sigma = torch.tensor(math.log(noise_sigma))
        if learn_sigma:
            self.log_sigma = nn.Parameter(log_sigma)
        else:
            self.register_buffer("log_sigma", log_sigma)

    @property
    def noise_sigma(self) -> float:
        """The present value."""
        return math.exp(self.log_sigma.item())

    def forward(self, predictions: Tensor, targets: Tensor) -> Tensor:
        _check(predictions, targets)
        p = predictions.float() if predictions.itemsize < 4 else predictions
        p = p[:, None] if p.ndim == 1 else p
        y = targets.detach().to(p).view_as(p)
        variance = torch.exp(2 * self.log_sigma.to(p))
        # Column by column of the differences, without the inner products that lose the digits of small ones.
        logits = -(p[:, None] - y[None]).square().sum(dim=2) / (2 * variance)
        losses = F.cross_entropy(logits, torch.arange(len(p), device=p.device), reduction="none") * (2 * variance.detach())
        if self.reduction == "none":
            return losses
        return losses.sum() if self.reduction == "sum" else losses.sum() / max(len(losses), 1)

    def extra_repr(self) -> str:
        return f"noise_sigma={self.noise_sigma:g}, learn_sigma={self.learn_sigma}, reduction={self.reduction!r}"


def _check(predictions: Tensor, targets: Tensor) -> None:
    if not predictions.is_floating_point():
        bad_input("predictions", f"a tensor of {predictions.dtype}", "floating-point predictions")
    if predictions.ndim not in (1, 2) or predictions.shape != targets.shape:
        shapes = f"shapes {tuple(predictions.shape)} and {tuple(targets.shape)}"
        bad_input("predictions and targets", shapes, "the same shape, (n,), (n, 1) or (n, k)")
    if not torch.compiler.is_compiling() and not bool(torch.isfinite(targets).all()):
        bad_input("targets", "nan or inf", "finite numbers", "Leave out rows whose target is missing.")
