r"""PCGrad (Yu et al. 2020, arXiv:2001.06782): what works against another gradient is taken out before the gradients are added.

What is unbalanced: where two gradients point against each other, the longer one wins and the other loss rises. Each gradient, in random
order of the others, gives up what works against them (algorithm 1): starting with :math:`d_i = g_i`, for every :math:`j \ne i`,

.. math:: d_i \leftarrow d_i - \frac{\min(\langle d_i, g_j \rangle, 0)}{|g_j|^2}\, g_j , \qquad d = \sum_i d_i .
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from counterpoise._errors import bad_input

from ._aggregator import Aggregator
from ._coefficients import DENOISED_FLOOR, FLOOR, BoolArray, FloatArray, at_rest, normalized
from ._statistics import GradientStatistics

__all__ = ["PCGrad", "pcgrad_weights"]


class PCGrad(Aggregator):
    r"""Sum of the rows, each projected to where it does not work against the others, which come in random order.

    Projections are against the rows as they were, one after the other: for two rows the result has no negative inner product with either,
    for more of them it may have. Without conflicts it is the plain sum. The weights are at least 1, so that it is 0 only where a
    combination with positive weights is: at a stationary point of all losses together.

    Parameters
    ----------
    generator : torch.Generator, optional
        Source of the orders, whose state is in ``state_dict()`` and goes back to its start with ``reset()``. Default: torch's global one.
        Processes that are to take the same step need generators with the same seed.
    denoise : bool, default False
        Take the Gramian without sampling noise, from an Accumulator with several micro-batches or from several processes.

    Shapes
    ------
    Jacobian (m, n), or a dict of (m, \*shape) tensors; output (n,) or a dict. :meth:`weights` has shape (m,). Rows shorter than
    :math:`10^{-12}` of the longest are losses at rest: they take no part in projections and have weight 1. A Jacobian of zeros gives zeros.

    Attributes
    ----------
    last : dict
        "projections": how many of the m (m - 1) there were.

    Raises
    ------
    InputError
        As :class:`Aggregator`; with ``denoise``, if there are no parts to tell signal from noise.

    Notes
    -----
    Every row has its own order, m numbers out of ``torch.randperm(m)`` each. The projections of all rows run side by side on the Gramian:
    O(m^3), nothing of the size n.

    Examples
    --------
    >>> PCGrad()(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))  # (0.5, 0.5) of the first, (0, 1) of the second
    tensor([0.5000, 1.5000])
    """

    needs = frozenset({"gramian"})

    def __init__(self, generator: torch.Generator | None = None, denoise: bool = False) -> None:
        super().__init__()
        if generator is not None and not isinstance(generator, torch.Generator):
            bad_input("generator", generator, "a torch.Generator or None", "torch.Generator().manual_seed(0) makes one.")
        self.generator = generator
        self.denoise = denoise
        self._start = None if generator is None else generator.get_state()

    def weights(self, s: GradientStatistics) -> Tensor:
        gramian, m = normalized(self.gramian(s)), len(s)
        rest = at_rest(gramian, DENOISED_FLOOR if self.denoise else FLOOR)
        device = None if self.generator is None else self.generator.device
        orders = torch.stack([torch.randperm(m, generator=self.generator, device=device) for _ in range(m)])
        weights, projections = pcgrad_weights(gramian, orders.cpu().numpy(), rest)
        self.last = {"projections": projections}
        return torch.from_numpy(weights).to(s.gramian.device)

    def reset(self) -> None:
        super().reset()
        if self.generator is not None and self._start is not None:
            self.generator.set_state(self._start)

    def get_extra_state(self) -> Tensor:
        return torch.empty(0, dtype=torch.uint8) if self.generator is None else self.generator.get_state()

    def set_extra_state(self, state: Any) -> None:
        if self.generator is not None and state.numel():
            self.generator.set_state(state.cpu())

    def extra_repr(self) -> str:
        return "denoise=True" if self.denoise else ""


def pcgrad_weights(gramian: FloatArray, orders: npt.NDArray[np.int64], rest: BoolArray) -> tuple[FloatArray, int]:
    """Weights (m,) of the rows in the sum of the projected ones, and the number of projections.

    Row i meets the others in the order ``orders[i]``, a permutation of all m; the rows of ``rest`` meet nobody.

    >>> pcgrad_weights(np.array([[1.0, -1.0], [-1.0, 2.0]]), np.array([[0, 1], [0, 1]]), np.zeros(2, dtype=bool))
    (array([2. , 1.5]), 2)
    """
    m = len(gramian)
    rows = np.arange(m)
    squared = np.where(rest, 1.0, gramian.diagonal())
    coefficients = np.eye(m)  # of the projected rows (one each) in the original ones
    along = gramian.copy()  # inner products of the projected rows with the original ones
    projections = 0
    for met in orders.T:
        against = along[rows, met]
        factor = np.where((against < 0) & (met != rows) & ~rest & ~rest[met], -against / squared[met], 0.0)
        if factor.any():
            coefficients[rows, met] += factor
            along += factor[:, None] * gramian[met]
            projections += int(np.count_nonzero(factor))
    weights: FloatArray = coefficients.sum(axis=0)
    return weights, projections
