r"""CAGrad (Liu et al. 2021, arXiv:2110.14048): near the mean gradient, the step that the worst-off loss gains most from.

What is unbalanced: the mean gradient :math:`g_0 = \frac1m \sum_i g_i` follows the long rows, and others may gain nothing from it, or lose.
CAGrad goes as far from it as a radius allows, for the sake of the one that gains least (section 3):

.. math:: \max_d \min_i \langle g_i, d \rangle \quad \text{such that} \quad |d - g_0| \le c\,|g_0| .
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from counterpoise._errors import check_range

from ._aggregator import Aggregator
from ._coefficients import (
    DENOISED_FLOOR,
    ROUNDING,
    FloatArray,
    at_rest,
    least_distance,
    lengths_and_cosines,
    normalized,
    on_face,
)
from ._statistics import GradientStatistics

__all__ = ["CAGrad"]

CANCELLING = 1e5  # how much longer the parts of a move may be than the move: single precision would lose it
RIDGE = 1e-8  # squared length that then makes rows independent
MOST_ITERATIONS = 60  # six are usual


class CAGrad(Aggregator):
    r"""The mean gradient, moved by at most ``c`` of its length to where the loss that gains least gains most.

    With the convex combination :math:`g_w = J^\top w` that minimises
    :math:`\langle g_w, g_0 \rangle + c\,|g_0|\,|g_w|`, the step is
    :math:`d = g_0 + c\,|g_0|\,g_w / |g_w|`. For ``c=0`` it is the mean; for c < 1 it is 0 only where the mean is, hence converges to
    minima of the mean loss; for c >= 1 it works against no loss to first order, and for large c it turns to the direction of
    :class:`MGDA`.

    Parameters
    ----------
    c : float >= 0, default 0.5 (LibMTL's)
        Radius, in lengths of the mean gradient. The paper's guarantees are for c < 1, within which it tunes c.
    rescale : bool, default False
        Divide the result by :math:`1 + c^2`, as an option of the authors' code does.
    denoise : bool, default False
        Take the Gramian without sampling noise, from an Accumulator with several micro-batches or from several processes.

    Shapes
    ------
    Jacobian (m, n), or a dict of (m, \*shape) tensors; output (n,) or a dict. :meth:`weights` has shape (m,), each at least 1 / m (before
    rescaling): the result has the scale of a mean, not of a sum. A single row is returned as it is: there is nothing to avert. Rows of
    zeros are losses at rest: they count in the mean and have weight 1 / m, and it is among the others that the worst-off is sought. Where
    no direction helps all losses and c >= 1, several d are best; it is the nearest to the mean. A Jacobian of zeros gives zeros.

    Attributes
    ----------
    last : dict
        "improvement": :math:`\min_i \langle g_i, d \rangle`, before rescaling, over the mean :math:`|g_i|^2`; "gap": how far it is from the
        bound that w proves (0 at the optimum); "iterations" of the radius.

    Raises
    ------
    InputError
        If ``c`` is negative, and as :class:`Aggregator`; with ``denoise``, if there are no parts to tell signal from noise.

    Notes
    -----
    Solved to rounding by Newton's method over an active set: 0.3 ms for 8 rows, below 1 ms for 64, several where most of these conflict or
    are dependent. Inner products tell directions apart to about :math:`10^{-7}` of a length. A mean that is shorter counts as 0, and where
    rows cancel beyond :math:`10^{-5}`, losses are helped up to :math:`10^{-4}` of a length.

    Examples
    --------
    >>> J = torch.tensor([[4.0, 0.0], [-1.0, 1.0]])
    >>> J @ J.mean(dim=0), J @ CAGrad(c=0.5)(J)  # along the mean the second loss would rise; now both fall
    (tensor([ 6., -1.]), tensor([3.7639, 0.1180]))
    """

    needs = frozenset({"gramian"})

    def __init__(self, c: float = 0.5, rescale: bool = False, denoise: bool = False) -> None:
        super().__init__()
        check_range("c", c, low=0.0)
        self.c = float(c)
        self.rescale = rescale
        self.denoise = denoise

    def weights(self, s: GradientStatistics) -> Tensor:
        gramian, m = normalized(self.gramian(s)), len(s)
        weights = np.full(m, 1 / m)
        self.last = {"improvement": float((gramian @ weights).min()), "gap": 0.0, "iterations": 0}
        moving = ~at_rest(gramian, DENOISED_FLOOR if self.denoise else 0.0)
        squared = float(gramian.mean())  # of the length of the mean
        if m > 1 and self.c > 0 and squared > ROUNDING:
            rows, along = gramian[np.ix_(moving, moving)], gramian.mean(axis=1)[moving]
            radius = self.c * np.sqrt(squared)
            for ridge in (0.0, RIDGE):
                move, bound, iterations = _averted(rows, along, radius, ridge)
                if move @ np.sqrt(rows.diagonal()) <= CANCELLING * radius:
                    break
            weights[moving] += move
            improvement = float((gramian @ weights)[moving].min())
            self.last = {"improvement": improvement, "gap": bound - improvement, "iterations": iterations}
        if self.rescale and m > 1:
            weights /= 1 + self.c**2
        return torch.from_numpy(weights).to(s.gramian.device)

    def extra_repr(self) -> str:
        return f"c={self.c:g}" + (", rescale=True" if self.rescale else "") + (", denoise=True" if self.denoise else "")


def _averted(gramian: FloatArray, along: FloatArray, radius: float, ridge: float) -> tuple[FloatArray, float, int]:
    r"""Coefficients v >= 0 of the move :math:`d - g_0 = J^\top v`, no longer than ``radius``, with the largest
    :math:`\min_i \langle g_i, d \rangle`; an upper bound of that; and the number of iterations. ``along`` holds
    :math:`\langle g_i, g_0 \rangle`.

    To bring every :math:`\langle g_i, d \rangle` to a level t takes a move whose length is convex and increasing in t. Every convex
    combination w bounds the level within the radius, :math:`t \le \langle g_w, g_0 \rangle + r\,|g_w|`, and that of the shortest move to
    the last bound gives the next, lower one: Newton's method, from above.

    Near stationary points, rows cancel but for their rounding, and the best use of what is left may be huge multiples of them. With a
    ``ridge``, each row has a small component of its own, so that multiples cost, and levels hold up to that component.
    """
    lengths, cosines = lengths_and_cosines(gramian)
    cosines += ridge * np.eye(len(cosines))
    level = float((along + radius * lengths).min())
    inside = np.ones(len(along), dtype=bool)
    for iteration in range(1, MOST_ITERATIONS + 1):
        needed = (level - along) / lengths
        multipliers, _ = least_distance(cosines, needed, inside)
        inside = multipliers > 0
        if not inside.any():
            return multipliers, level, iteration  # the mean has that level
        w = multipliers / multipliers.max() / lengths
        w /= w.sum()
        gain, squared = float(w @ along), max(float(w @ gramian @ w), 0.0)
        if level > 0 and squared <= ROUNDING * (w @ lengths) ** 2:
            level = 0.0  # no direction helps all of them, and d = 0 has this level
            continue
        most = radius * np.sqrt(squared)
        if gain + most >= level - ROUNDING * (abs(gain) + most):
            break
        level = gain + most
    move = on_face(cosines, needed, inside)
    if move is None:  # rows that count are dependent, and their multipliers one choice of several
        move = multipliers * needed.max() / max(1 - multipliers @ needed / needed.max(), ROUNDING)
    return np.maximum(move, 0.0) / lengths, level, iteration
