"""The plain sum of the losses, looked at."""

from __future__ import annotations

import torch
from torch import Tensor

from ._aggregator import Aggregator
from ._statistics import GradientStatistics

__all__ = ["Sum"]


class Sum(Aggregator):
    r"""All weights are 1: the gradient of the sum of the losses, :math:`d = \sum_i g_i`.

    With it :func:`~counterpoise.gradients.backward` trains as ``sum(losses).backward()`` does, and reports lengths, cosines and whose step
    it is before anything is treated. Gradients of single losses are computed for that, m passes or more; ``refresh_every=100`` looks at
    every hundredth step only.

    Examples
    --------
    >>> Sum()(torch.tensor([[1.0, 0.0], [-0.5, 1.0]]))
    tensor([0.5000, 1.0000])
    """

    needs = frozenset({"gramian"})

    def weights(self, s: GradientStatistics) -> Tensor:
        return torch.ones(len(s), dtype=torch.float64, device=s.gramian.device)
