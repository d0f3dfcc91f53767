r"""MGDA (Désidéri 2012; for several tasks Sener and Koltun 2018, arXiv:1810.04650): the direction that helps the worst-off most.

What is unbalanced: the sum of the gradients may work against some of the losses. Of all convex combinations of the rows, the shortest,

.. math:: d = J^\top w, \quad w = \arg\min_{w \ge 0,\ \sum_i w_i = 1} |J^\top w|^2 = w^\top G w ,

has :math:`\langle g_i, d \rangle \ge |d|^2` for every i: no loss rises to first order. It is 0 where no direction helps all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._aggregator import Aggregator
from ._coefficients import DENOISED_FLOOR, min_norm_weights, normalized
from ._statistics import GradientStatistics

__all__ = ["MGDA"]


class MGDA(Aggregator):
    r"""The shortest convex combination of the rows: it has no negative inner product with any of them.

    The weights are exact up to rounding, by an active set; the Frank-Wolfe iteration of Sener and Koltun stops far from them where rows
    have different lengths. That takes about 0.1 ms for 8 rows, 0.5 ms for 64.

    **Short rows decide.** Orthogonal rows weigh :math:`1 / |g_i|^2`: the loss with the smallest gradient, the one that has nearly converged
    or is measured in the smallest unit, has the say over the step, and over its length. As soon as any convex combination of gradients
    vanishes, nothing moves.

    Parameters
    ----------
    denoise : bool, default False
        Take the Gramian without sampling noise, from an Accumulator with several micro-batches or from several processes. Rows in which
        nothing but noise is found have weight 0.

    Shapes
    ------
    Jacobian (m, n), or a dict of (m, \*shape) tensors; output (n,) or a dict. :meth:`weights` has shape (m,), is nonnegative and sums to 1.
    Rows of zeros weigh 0: a loss at rest asks for nothing, and no step works against it to first order. (As points of the hull, they would
    make d = 0, and a group that is absent from a batch would stop the others.) A Jacobian of zeros gives zeros.

    Attributes
    ----------
    last : dict
        "gap": by how much the smallest :math:`\langle g_i, d \rangle` falls short of :math:`|d|^2`, over the mean :math:`|g_i|^2` (0 at the
        minimum); "systems": how many linear systems were solved.

    Raises
    ------
    InputError
        As :class:`Aggregator`; with ``denoise``, if there are no parts to tell signal from noise.

    Examples
    --------
    >>> MGDA()(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    tensor([0.8000, 0.4000])
    >>> MGDA()(torch.tensor([[1.0, 1.0], [-3.0, 1.0]]))  # to first order, both losses fall by the same amount
    tensor([0., 1.])
    """

    needs = frozenset({"gramian"})

    def __init__(self, denoise: bool = False) -> None:
        super().__init__()
        self.denoise = denoise

    def weights(self, s: GradientStatistics) -> Tensor:
        gramian = normalized(self.gramian(s))
        weights, systems = min_norm_weights(gramian, DENOISED_FLOOR if self.denoise else 0.0)
        along = gramian @ weights
        moving = gramian.diagonal() > 0
        self.last = {"gap": float(weights @ along - along[moving].min()) if moving.any() else 0.0, "systems": systems}
        return torch.from_numpy(weights).to(s.gramian.device)

    def extra_repr(self) -> str:
        return "denoise=True" if self.denoise else ""
