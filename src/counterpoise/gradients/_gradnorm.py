r"""GradNorm (Chen et al. 2018, arXiv:1711.02257): weights with which gradients have comparable lengths, and slow losses longer ones.

What is unbalanced: a loss with a longer gradient trains faster than the others. With the length :math:`n_i = w_i |g_i|` of a weighted row
and how far its loss is behind, :math:`r_i = \tilde L_i / \bar{\tilde L}` for :math:`\tilde L_i = L_i / L_i(0)`, the weights take a gradient
step on

.. math:: \sum_i \bigl|\, n_i - \bar n\, r_i^\alpha \,\bigr| , \qquad \bar n = \tfrac1m \sum_j n_j \text{ held constant}

(eq. 2), and are scaled to the sum m. That gradient is :math:`\pm |g_i|`: it takes no second backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from counterpoise._errors import bad_input, check_range

from ._aggregator import Aggregator
from ._statistics import GradientStatistics

__all__ = ["GradNorm"]

SMALLEST = 1e-6  # weight that a step leaves, at least


class GradNorm(Aggregator):
    r"""Weighted sum of the rows, with weights that learn to make them equally long, longer for losses that fall slowly.

    A step is taken with the weights of before, then these are updated (algorithm 1): the first step is the plain sum.

    Parameters
    ----------
    alpha : float >= 0, default 1.5 (the paper's NYUv2; it takes 0.12 where tasks are alike)
        How strongly slow losses are preferred; 0 makes all equally long.
    lr : float > 0, default 0.025
        Learning rate of the weights, by plain gradient descent. The step of weight i is ``lr`` times :math:`|g_i|`: it depends on the unit
        of the losses and should be well below 1; the default is for gradients of a length of about 1.
    denoise : bool, default False
        Take lengths without sampling noise, from an Accumulator with several micro-batches or from several processes.

    Shapes
    ------
    Jacobian (m, n), or a dict of (m, \*shape) tensors; output (n,) or a dict. :meth:`weights` has shape (m,), is positive and sums to m. On
    a Jacobian alone, nothing is known of losses: all r are 1. With :func:`~counterpoise.gradients.backward` they are those of each step,
    and L(0) is that of the first. A row of zeros keeps its weight but for the scaling; with
    a loss of 0 as well, it is a group without examples, which counts in no mean, and whose L(0) is that of the first step that has it.

    Attributes
    ----------
    last : dict
        "rates": r (m,); "lengths": n (m,); "targets" (m,) of the lengths: what the weights were last moved towards.

    Raises
    ------
    InputError
        If ``alpha`` or ``lr`` is out of its range, a loss is not positive (its ratio to the first means nothing then), or m is not that of
        the steps before (``reset()`` forgets them); and as :class:`Aggregator`.

    Examples
    --------
    >>> aggregator = GradNorm(lr=0.1)
    >>> J = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    >>> aggregator(J), aggregator(J)  # weights 1 and 1, then 0.7 and 1.1 scaled to the sum 2
    (tensor([3., 1.]), tensor([2.3333, 1.2222]))
    """

    needs = frozenset({"losses", "gramian"})

    def __init__(self, alpha: float = 1.5, lr: float = 0.025, denoise: bool = False) -> None:
        super().__init__()
        check_range("alpha", alpha, low=0.0)
        check_range("lr", lr, low=0.0, open_low=True)
        self.alpha = float(alpha)
        self.lr = float(lr)
        self.denoise = denoise

    def weights(self, s: GradientStatistics) -> Tensor:
        squared = self.gramian(s).diagonal()
        losses = s.losses.detach().to(squared)
        absent = (losses == 0) & (s.gramian.diagonal() == 0)
        wrong = ~(torch.isfinite(losses) & (losses > 0)) & ~absent
        if bool(wrong.any()):
            i = int(wrong.nonzero()[0])
            named = s.names[i] if s.names else str(i)
            bad_input(
                "losses", f"{float(losses[i])} for {named}", "positive losses, since GradNorm compares them with their first values",
                "Add a constant to a loss that may be 0 or negative; it does not change gradients.",
            )  # fmt: skip
        m = len(s)
        first, weights = self.kept("first_losses", (m,)), self.kept("loss_weights", (m,))
        if first is None or weights is None:
            first, weights = torch.zeros_like(losses), torch.ones_like(losses)
        weights = weights.to(losses)
        first = self.keep("first_losses", torch.where(first.to(losses) > 0, first.to(losses), losses))  # 0 until there is one
        ratios = torch.where(absent, 0.0, losses / first)
        present = (~absent).sum().clamp(min=1)
        rates = torch.where(absent, 1.0, ratios / (ratios.sum() / present))
        raw = squared.clamp(min=0).sqrt()
        lengths = weights * raw
        targets = lengths.sum() / present * rates**self.alpha
        moved = (weights - self.lr * torch.sign(lengths - targets) * raw).clamp(min=SMALLEST)
        self.keep("loss_weights", moved * (m / moved.sum()))
        self.last = {"rates": rates, "lengths": lengths, "targets": targets}
        return weights

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}, lr={self.lr:g}" + (", denoise=True" if self.denoise else "")
