r"""What class counts do to the last layers of a network at the end of training, in closed form (Dang et al. 2023, arXiv:2301.00437).

What is unbalanced: with the squared error, weight decay, no bias and features that are free to move
(:class:`counterpoise.nn.UnconstrainedFeatures`), all features of a class become one vector :math:`h_k`, vectors of different classes become
orthogonal, and their lengths depend on the class counts alone: a rare class gets long features and a short row of the classifier. Below a
count *n\** both are exactly 0, and no training time will change it. With M layers, N examples, and :math:`q = (N \lambda_H \prod_l
\lambda_l)^{1/M}`, class k minimizes

.. math:: \frac{n_k}{2N} \Bigl[ \frac{1}{x^M + 1} + b_k x \Bigr], \qquad b_k = \frac{M N}{n_k}\, q

over :math:`x \ge 0`: the largest root of :math:`b_k = M x^{M-1} / (x^M + 1)^2` if its value is below that of 0, which is 1; else 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._errors import check_range, listing
from counterpoise.nn._unconstrained import check_decays, check_problem

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

__all__ = ["CollapsePrediction", "collapse_threshold", "neural_collapse_lengths"]

Array = npt.NDArray[np.float64]

BISECTIONS = 64  # halvings of the bracket: down to the last bit


@dataclass(frozen=True, eq=False)
class CollapsePrediction:
    """Result of :func:`neural_collapse_lengths`; entries are in the order of the class counts.

    Attributes:
        class_counts: (K,) the counts it was made for; weight_decays (M,) and feature_decay: the decays.
        singular_values: (M, K) what each layer multiplies the direction of class k by, the layer next to the features first.
        feature_norm: (K,) length of the features of class k.
        fitted_target: (K,) output of the model at class k for its own examples, where the target is 1.
        b: (K,) price of one unit of x; a class is alive while it is below a constant of M.
        alive: (K,) whether class k is learned at all.
        threshold_count: n*, the count that a class needs more than.
        loss: of the global minimum.
    """

    class_counts: npt.NDArray[np.int64]
    weight_decays: Array
    feature_decay: float
    singular_values: Array
    feature_norm: Array
    fitted_target: Array
    b: Array
    alive: npt.NDArray[np.bool_]
    threshold_count: float
    loss: float

    @property
    def classifier_norm(self) -> Array:
        """(K,) length of row k of the product of all layers."""
        return np.asarray(np.prod(self.singular_values, axis=0))

    def to_frame(self) -> pl.DataFrame:
        """One row per class: ``class``, ``count``, ``alive``, ``feature_norm``, ``classifier_norm``, ``fitted_target``."""
        import polars as pl

        return pl.DataFrame(
            {
                "class": np.arange(len(self.b)),
                "count": self.class_counts,
                "alive": self.alive,
                "feature_norm": self.feature_norm,
                "classifier_norm": self.classifier_norm,
                "fitted_target": self.fitted_target,
            }
        )

    def summary(self) -> str:
        """Who is alive, how unequal the lengths are, and which decay would keep everybody."""
        rare, common = int(np.argmin(self.class_counts)), int(np.argmax(self.class_counts))
        need = f"A class needs more than {self.threshold_count:.3g} of {self.class_counts.sum():,} examples to be learned"
        if not self.alive.any():
            return f"{need}; none has.\n{self._way_out()}"
        if not self.alive.all():
            dead = np.flatnonzero(~self.alive)
            which = f"class {dead[0]} has" if len(dead) == 1 else f"classes {listing(dead)} have"
            return f"{need}; {which} not, and will not be, however long the training.\n{self._way_out()}"
        longer = self.feature_norm[rare] / self.feature_norm[common]
        shorter = self.classifier_norm[rare] / self.classifier_norm[common]
        return (
            f"{need}; all {len(self.b)} classes have.\n"
            f"Features of class {rare} ({self.class_counts[rare]:,} examples): {longer:.2f} times the length of those of class {common} "
            f"({self.class_counts[common]:,}); its classifier row: {shorter:.2f} times.\n"
            f"Outputs reach {self.fitted_target[rare]:.2f} for class {rare} where the target is 1, {self.fitted_target[common]:.2f} for "
            f"class {common}."
        )

    def plot(self) -> Figure:
        """Lengths of features and classifier rows against the class count, with n*."""
        from counterpoise.report._collapse import prediction_figure

        return prediction_figure(self.class_counts, self.feature_norm, self.classifier_norm, self.threshold_count)

    def _way_out(self) -> str:
        # n* is proportional to the M-th root of the product of all decays, so to the (M + 1)/M-th power of a common factor.
        M = len(self.weight_decays)
        factor = (self.class_counts.min() / self.threshold_count) ** (M / (M + 1))
        return f"To keep the rarest, multiply all decays by less than {factor:.2g}, or collect more of it."


def neural_collapse_lengths(
    class_counts: Sequence[int] | npt.NDArray[Any], weight_decays: Sequence[float], feature_decay: float
) -> CollapsePrediction:
    r"""Lengths of features and classifier at the end of training, from class counts and decays alone.

    With :math:`q = (N \lambda_H \prod_l \lambda_l)^{1/M}` and :math:`x_k` as above (0 for a class that collapses):

    .. math::
        s_{l,k}^2 = \frac{q\, x_k}{\lambda_l}, \qquad \sigma_k^2 = N \lambda_H x_k^M, \qquad
        \lVert h_k \rVert = \frac{\sigma_k}{\sigma_k^2 + N \lambda_H}, \qquad p_k = \frac{x_k^M}{x_k^M + 1}

    for the singular values of the layers, of their product (the length of classifier row k), the features, and the fitted target. One layer
    has a closed form: :math:`x_k = b_k^{-1/2} - 1`.

    Parameters
    ----------
    class_counts : sequence of int, shape (K,)
        Examples of each class, K >= 2, in any order.
    weight_decays : sequence of float, shape (M,)
        :math:`\lambda_l` of the linear layers, the one next to the features first. They belong to half the squared error *summed over
        outputs*, averaged over examples. ``nn.MSELoss()`` is 2 / K times that, so with it an optimizer's decay counts K / 2 times.
    feature_decay : float
        :math:`\lambda_H`. Networks decay the weights that make the features rather than the features, so for a real network there is no
        right value: read who is longer than whom, not the numbers.

    Raises
    ------
    InputError
        If a count is not a positive integer, there is one class only, or a decay is not positive.

    Notes
    -----
    The theory is that of an L2 penalty, which is what ``weight_decay`` means to SGD. AdamW's decoupled decay is something else.

    Examples
    --------
    >>> found = neural_collapse_lengths([60, 30, 10], weight_decays=[5e-3], feature_decay=1e-3)
    >>> found.feature_norm.round(5), found.classifier_norm.round(5), round(found.threshold_count, 5)
    (array([0.52947, 0.62576, 0.81062]), array([1.83415, 1.5328 , 1.14639]), 0.05)
    >>> print(neural_collapse_lengths([60, 30, 10], [4e-2] * 3, 4e-3).summary())
    A class needs more than 16.7 of 100 examples to be learned; class 2 has not, and will not be, however long the training.
    To keep the rarest, multiply all decays by less than 0.68, or collect more of it.
    """
    counts, decays = check_problem(class_counts, weight_decays, feature_decay)
    M, N = len(decays), float(counts.sum())
    q = _q(N, decays, feature_decay)
    b = M * N / counts * q
    alive = b < _critical(M)
    x = np.zeros(len(b))
    x[alive] = _largest_root(b[alive], M)
    fitted = x**M / (x**M + 1)
    return CollapsePrediction(
        class_counts=counts.astype(np.int64),
        weight_decays=decays,
        feature_decay=float(feature_decay),
        singular_values=np.sqrt(q * x / decays[:, None]),
        feature_norm=np.sqrt(x**M / (N * feature_decay)) / (x**M + 1),
        fitted_target=fitted,
        b=b,
        alive=alive,
        threshold_count=_threshold(N, decays, feature_decay),
        loss=float((counts / (2 * N) * (1 - fitted + b * x)).sum()),
    )


def collapse_threshold(n_total: float, weight_decays: Sequence[float], feature_decay: float) -> float:
    r"""The count n\* at or below which a class is not learned at all.

    .. math::
        n^* = N \frac{M^2}{(M-1)^{(M-1)/M}} \Bigl( N \lambda_H \prod_l \lambda_l \Bigr)^{1/M}, \qquad
        n^* = N^2 \lambda_H \lambda_1 \text{ for } M = 1

    To keep the rarest class, choose decays that bring n\* below its count: n\* is proportional to the (M + 1)/M-th power of a factor common
    to all of them.

    Parameters
    ----------
    n_total : float
        N, the examples of all classes.
    weight_decays, feature_decay
        As in :func:`neural_collapse_lengths`.

    Examples
    --------
    >>> round(collapse_threshold(1000, weight_decays=[5e-4] * 3, feature_decay=1e-4), 1)
    1.3
    """
    check_range("n_total", n_total, low=0.0, open_low=True)
    return _threshold(float(n_total), check_decays(weight_decays, feature_decay), feature_decay)


def _q(N: float, decays: Array, feature_decay: float) -> float:
    return float(np.exp((np.log(N * feature_decay) + np.log(decays).sum()) / len(decays)))


def _critical(M: int) -> float:
    """The value of b from which on 0 is at least as good as the root; there the root is x = (M - 1)^(1/M)."""
    return float((M - 1.0) ** ((M - 1) / M) / M)


def _threshold(N: float, decays: Array, feature_decay: float) -> float:
    return len(decays) * N * _q(N, decays, feature_decay) / _critical(len(decays))


def _largest_root(b: Array, M: int) -> Array:
    """x (K,) with b = M x^(M-1) / (x^M + 1)^2, right of where 0 is as good, for b below the critical value.

    The right side falls from there on, and is less than M x^-(M+1): that bounds the root from above.
    """
    low = np.full(len(b), (M - 1.0) ** (1 / M))
    high = (M / b) ** (1 / (M + 1))
    for _ in range(BISECTIONS):
        x = (low + high) / 2
        value = M * x ** (M - 1) / (x**M + 1) / (x**M + 1)
        low, high = np.where(value > b, x, low), np.where(value > b, high, x)
    return np.asarray((low + high) / 2)
