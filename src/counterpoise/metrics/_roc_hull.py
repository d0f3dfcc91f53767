r"""The ROC convex hull: which of several classifiers can be the best one, and which is, for given class shares and costs.

A classifier that decides is one point (fpr, tpr). With the share :math:`\pi` of positives and costs :math:`c_{fp}, c_{fn}` of the two
errors it costs, per row,

.. math:: (1 - \pi) \, c_{fp} \, \mathrm{fpr} + \pi \, c_{fn} \, (1 - \mathrm{tpr}) ,

so points of equal cost lie on lines of slope :math:`c_{fp} (1 - \pi) / (c_{fn} \pi)`, and the cheapest point lies where such a line touches
the upper convex hull of all points. What is below the hull is best for no shares and costs at all. (Provost and Fawcett 2001; Chawla et al.
2002, arXiv:1106.1813, section 5, compare ways of resampling by it.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import ConvexHull

from counterpoise._errors import bad_input, check_range

from ._inputs import FloatArray, IntArray

if TYPE_CHECKING:
    import polars as pl

__all__ = ["CORNERS", "Hull", "OperatingPoint", "hull_positions", "roc_convex_hull"]

NEVER, ALWAYS = "predict no row", "predict every row"  # the classifiers that need no learning
CORNERS = np.array([[0.0, 0.0], [1.0, 1.0]])  # where they lie
_TIE = 1e-12  # costs closer than this differ by rounding


@dataclass(frozen=True)
class OperatingPoint:
    """The cheapest point of a :class:`Hull`: where it lies, whose it is, and what it costs per row.

    ``index`` is its position among the points given, -1 for the corners (0, 0) and (1, 1).
    """

    fpr: float
    tpr: float
    label: Any
    index: int
    cost: float


@dataclass(frozen=True, eq=False)
class Hull:
    """Result of :func:`roc_convex_hull`: the vertices from (0, 0) to (1, 1).

    Attributes
    ----------
    fpr, tpr : array of float, shape (v,)
        Rates of the vertices; both ascend.
    index : array of int64, shape (v,)
        Position of each vertex among the points given; -1 for a corner that was added.
    labels : tuple, length v
        Label of each vertex.
    """

    fpr: FloatArray
    tpr: FloatArray
    index: IntArray
    labels: tuple[Any, ...]

    @property
    def vertices(self) -> FloatArray:
        """(v, 2) the vertices as (fpr, tpr)."""
        return np.column_stack([self.fpr, self.tpr])

    @property
    def area(self) -> float:
        """Area under the hull: 0.5 for guessing, 1 for a perfect classifier."""
        return float(np.trapezoid(self.tpr, self.fpr))

    def optimal(self, prevalence: float, cost_fp: float = 1.0, cost_fn: float = 1.0) -> OperatingPoint:
        """The cheapest point where ``prevalence`` of the rows are positive and errors cost ``cost_fp`` and ``cost_fn``.

        Where a whole edge is equally cheap, its lower end is taken.
        """
        check_range("prevalence", prevalence, low=0.0, high=1.0)
        check_range("cost_fp", cost_fp, low=0.0, open_low=True)
        check_range("cost_fn", cost_fn, low=0.0, open_low=True)
        false_alarms, misses = (1 - prevalence) * cost_fp, prevalence * cost_fn
        cost = false_alarms * self.fpr + misses * (1 - self.tpr)
        best = int(np.argmax(cost <= cost.min() + _TIE * max(false_alarms, misses)))
        return OperatingPoint(float(self.fpr[best]), float(self.tpr[best]), self.labels[best], int(self.index[best]), float(cost[best]))

    def to_frame(self) -> pl.DataFrame:
        """One row per vertex: ``label``, ``index``, ``fpr``, ``tpr``, and the slopes ``slope_low`` to ``slope_high`` of the lines of equal
        cost that touch the hull there."""
        import polars as pl

        with np.errstate(divide="ignore"):
            slopes = np.diff(self.tpr) / np.diff(self.fpr)
        return pl.DataFrame(
            {
                "label": [str(label) for label in self.labels],
                "index": self.index,
                "fpr": self.fpr,
                "tpr": self.tpr,
                "slope_low": np.append(slopes, 0.0),
                "slope_high": np.insert(slopes, 0, np.inf),
            }
        )

    def summary(self) -> str:
        """One sentence."""
        own = [str(label) for label, index in zip(self.labels, self.index, strict=True) if index >= 0]
        if not own:
            return "No classifier is better than guessing (area under the hull 0.5)."
        return f"Potentially the best: {', '.join(own)} (area under the hull {self.area:.4f})."


def roc_convex_hull(fpr: npt.ArrayLike, tpr: npt.ArrayLike, labels: Sequence[Any] | None = None) -> Hull:
    """The upper convex hull of points in ROC space, with (0, 0) and (1, 1).

    Points may come from one classifier at several thresholds, or from many classifiers; their order does not matter. A point on an edge
    is no vertex; of equal points the first counts.

    Parameters
    ----------
    fpr, tpr : array-like, shape (m,)
        False and true positive rates in [0, 1].
    labels : sequence, length m, default the positions 0..m-1
        What to call each point.

    Returns
    -------
    Hull
        Vertices, ``area``, ``optimal(prevalence, cost_fp, cost_fn)``.

    Raises
    ------
    InputError
        If there is no point, lengths differ, or a rate is not in [0, 1].

    Examples
    --------
    >>> hull = roc_convex_hull([0.1, 0.3, 0.4], [0.5, 0.6, 0.9], labels=["tree", "bayes", "forest"])
    >>> hull.labels
    ('predict no row', 'tree', 'forest', 'predict every row')
    >>> hull.optimal(prevalence=0.5).label, hull.optimal(prevalence=0.05, cost_fp=1, cost_fn=5).label
    ('forest', 'tree')
    >>> round(hull.area, 3)
    0.805
    """
    points = np.column_stack([_rates("fpr", fpr), _matching("tpr", tpr, fpr)])
    names = list(range(len(points))) if labels is None else list(labels)
    if len(names) != len(points):
        bad_input("labels", f"{len(names)} labels", f"one for each of the {len(points)} points")
    kept = hull_positions(points)
    vertices = np.concatenate([points, CORNERS])[kept]
    index = np.where(kept < len(points), kept, -1)
    own = [*names, NEVER, ALWAYS]
    return Hull(vertices[:, 0], vertices[:, 1], index.astype(np.int64), tuple(own[position] for position in kept))


def hull_positions(points: FloatArray) -> IntArray:
    """Positions of the vertices, from (0, 0) to (1, 1), among ``points`` (m, 2) followed by these two corners."""
    # The corner (1, 0) makes the region under the hull two-dimensional, whatever the points are.
    unique, first = np.unique(np.concatenate([points, CORNERS, [[1.0, 0.0]]]), axis=0, return_index=True)
    kept = np.sort(ConvexHull(unique).vertices)  # in the order of (fpr, tpr)
    return np.asarray(first[kept[(unique[kept] != [1.0, 0.0]).any(axis=1)]], dtype=np.int64)


def _rates(argument: str, values: npt.ArrayLike) -> FloatArray:
    rates = np.asarray(values, dtype=np.float64)
    if rates.ndim != 1 or not len(rates):
        bad_input(argument, f"shape {rates.shape}", "one rate per point, shape (m,) with m > 0")
    wrong = ~((rates >= 0) & (rates <= 1))
    if wrong.any():
        bad_input(argument, float(rates[wrong][0]), "rates in [0, 1]", "Divide percentages by 100." if (rates > 1).any() else "")
    return rates


def _matching(argument: str, values: npt.ArrayLike, others: npt.ArrayLike) -> FloatArray:
    rates = _rates(argument, values)
    if len(rates) != np.shape(others)[0]:
        bad_input(argument, f"{len(rates)} rates", f"one for each of the {np.shape(others)[0]} points")
    return rates
