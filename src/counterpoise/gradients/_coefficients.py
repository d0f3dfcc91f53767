r"""The algebra of weights: what methods that only weigh rows do, on the m x m Gramian :math:`G = J J^\top` instead of on gradients.

A vector in the span of the rows is its coefficients in them, and every inner product is one of coefficients with G. Matrices of this size
are faster on the processor than on an accelerator, hence NumPy, in double precision.

Methods that look for a common direction share one problem: of all y that agree with every row to a given extent, the shortest,

.. math:: \min |y| \quad \text{such that} \quad \langle e_i, y \rangle \ge h_i \quad \text{for all } i,

for rows :math:`e_i` of length 1, so that rows of very different lengths do no harm. With :math:`h_i = 1 / |g_i|` the solution points to the
shortest vector of the convex hull of the :math:`g_i`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.linalg.lapack import dposv
from torch import Tensor

__all__ = ["at_rest", "least_distance", "lengths_and_cosines", "min_norm_weights", "normalized", "on_face"]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

FLOOR = 1e-12  # length of a row, relative to the longest, up to which it counts as zero
DENOISED_FLOOR = 1e-6  # the same where lengths are differences: these are accurate to half of the digits
ROUNDING = 1e-14  # up to which a condition holds
DEPENDENT = 1e-15  # squared distance of a row from the span of others, relative, up to which it lies in it


def normalized(gramian: Tensor) -> FloatArray:
    """The Gramian on the processor, symmetric, divided by the mean squared length of a row (if it is not 0)."""
    values: FloatArray = gramian.detach().double().cpu().numpy()
    scale = values.trace() / len(values)
    return (values + values.T) / (2 * scale if scale > 0 else 2.0)


def at_rest(gramian: FloatArray, floor: float) -> BoolArray:
    """Which rows are no longer than ``floor`` times the longest: their losses are stationary, up to rounding."""
    squared = gramian.diagonal()
    rest: BoolArray = squared <= floor**2 * squared.max()
    return rest


def lengths_and_cosines(gramian: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Lengths (m,) of rows that are not zero, and the cosines (m, m) between them."""
    lengths = np.sqrt(gramian.diagonal())
    return lengths, np.clip(gramian / lengths[:, None] / lengths, -1.0, 1.0)


def min_norm_weights(gramian: FloatArray, floor: float = 0.0) -> tuple[FloatArray, int]:
    r"""Weights w of the shortest vector of the convex hull of the rows, :math:`\min_{w \ge 0, \sum w = 1} w^\top G w`, and how many linear
    systems that took. Rows at rest are left out and have weight 0.

    >>> weights, _ = min_norm_weights(np.array([[1.0, 0.0], [0.0, 4.0]]))
    >>> weights
    array([0.8, 0.2])
    """
    moving = np.flatnonzero(~at_rest(gramian, floor))
    if not len(moving):
        return np.full(len(gramian), 1 / len(gramian)), 0
    lengths, cosines = lengths_and_cosines(gramian[np.ix_(moving, moving)])
    multipliers, systems = least_distance(cosines, 1 / lengths)
    weights = np.zeros(len(gramian))
    weights[moving] = multipliers / lengths
    return weights / weights.sum(), systems


def least_distance(cosines: FloatArray, bounds: FloatArray, start: BoolArray | None = None) -> tuple[FloatArray, int]:
    r"""Multipliers u >= 0 (m,), up to a common factor, of the shortest y with :math:`\langle e_i, y \rangle \ge h_i`, and how many linear
    systems that took; :math:`y \propto \sum_i u_i e_i`. Where there is no such y, :math:`\sum_i u_i e_i = 0`.

    They are the nonnegative least squares of :math:`|\sum_i u_i (e_i, h_i) - (0, 1)|^2` (Lawson and Hanson 1974, ch. 23), by an active set
    that starts with the rows ``start``: all, if not given, since mostly nearly all of them matter. Without a positive bound, y and u are 0.
    """
    m, largest = len(bounds), bounds.max()
    found = np.zeros(m)
    if largest <= 0:
        return found, 0
    target = bounds / largest
    matrix = cosines + np.outer(target, target)
    inside = np.ones(m, dtype=bool) if start is None else start.copy()
    systems = 0
    while inside.any():
        best = on_face(matrix, target, inside)
        systems += 1
        if best is not None and (best[inside] > 0).all():
            found = best
            break
        inside &= False if best is None else best > 0
    hopeless = np.zeros(m, dtype=bool)  # in the span of those inside, up to rounding
    while systems < 20 * m + 20:
        slope = np.where(inside | hopeless, 0.0, target - matrix @ found)
        entering = int(slope.argmax())
        if slope[entering] <= ROUNDING:
            break
        inside[entering] = True
        best = on_face(matrix, target, inside)
        systems += 1
        if best is None or best[entering] <= 0:
            inside[entering] = False
            hopeless[entering] = True
            continue
        hopeless[:] = False
        while best is not None and (best[inside] <= 0).any():
            # As far towards the best of this face as all stay nonnegative; those that reach 0 leave.
            shrinking = np.flatnonzero(inside & (best <= 0))
            steps = found[shrinking] / (found[shrinking] - best[shrinking])
            found = found + steps.min() * (best - found)
            inside[shrinking[steps <= steps.min()]] = False
            inside &= found > 0
            found[~inside] = 0.0
            best = on_face(matrix, target, inside)
            systems += 1
        if best is not None:
            found = best
    return found, systems


def on_face(matrix: FloatArray, right: FloatArray, inside: BoolArray) -> FloatArray | None:
    """x (m,) with ``matrix x = right`` in the rows and columns ``inside``, 0 elsewhere; None if these are dependent."""
    index = np.flatnonzero(inside)
    block = matrix[index[:, None], index]
    factor, solution, info = dposv(block, right[index])
    if info != 0 or (factor.diagonal() ** 2 <= DEPENDENT * block.diagonal()).any():
        return None
    whole = np.zeros(len(right))
    whole[index] = solution
    return whole
