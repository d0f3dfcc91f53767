r"""SMOTE: synthetic minority rows between neighbors (Chawla, Bowyer, Hall, Kegelmeyer 2002, JAIR 16).

What is unbalanced: the few rows of a rare class cover little of its space, so a learner that works on neighborhoods (a tree, kNN) draws
small, jagged regions around them. A synthetic row lies between a row x of the class and one of its k nearest neighbors of the same class:

.. math:: x_{new} = x + g \, (x_{nn} - x), \qquad g \sim U(0, 1) .
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ._synthetic import NEIGHBORS, InterpolatingSampler, Synthetic

__all__ = ["SMOTE"]


class SMOTE(InterpolatingSampler):
    r"""Over-sampling with points between neighbors of the same class, :math:`x + g (x_{nn} - x)`.

    Rows and neighbors are drawn uniformly. Distances are Euclidean: scale the columns first. Only for numbers; :class:`SMOTENC` takes
    categories too. The random numbers are drawn as in imbalanced-learn's class of this name: the same integer ``random_state`` gives the
    same rows, unless distances tie.

    Parameters
    ----------
    sampling_strategy : float, str, dict or callable, default "auto"
        As in imbalanced-learn: "auto" makes all classes as large as the largest; a float is the ratio minority / majority after
        resampling (two classes only); a dict gives the number of rows per class; a callable makes such a dict of ``y``.
    k_neighbors : int >= 1 or estimator, default 5 (Chawla et al. 2002)
        Neighbors to choose from, or an object with ``kneighbors`` that finds k + 1 (the row itself included).
    gap : {"sample", "feature"}, default "sample"
        One g per new row, a point on the segment (the paper's text); or one per column, a point in the box (its pseudo-code), which
        loosens correlations.
    neighbors : {"exact", "approximate"}, default "exact"
        "approximate" searches within random cells of 2,048 rows, four times over: the time grows like n, not n². It finds 98 % of the
        neighbors where columns depend on each other (8 dimensions in 30 columns), 67 % where all 30 are independent, and for the others
        some that are hardly farther. For classes of more than 30,000 rows; up to 4,096 rows it is exact.
    dtype : {"preserve", "float32", "float64"}, default "preserve"
        Of the result. "preserve" rounds new values of integer columns, and warns.
    n_jobs : int, optional
        Threads of the neighbor search in up to 15 columns; in more, scikit-learn uses those that OpenMP gives it.
    random_state : int or RandomState, optional
    on_few : {"reduce_k", "raise"}, default "reduce_k"
        A class with at most k rows: use the neighbors there are, with a warning; or raise.
    memory : str or joblib.Memory, optional
        Folder in which the neighbors found are stored, as in scikit-learn's pipelines. Resampling the same rows again - with another
        strategy, seed, or k up to 16 - searches no more: in a grid search each training fold is searched once.

    Attributes
    ----------
    synthetic_mask_ : bool array, shape (n_out,)
        Which returned rows are synthetic: all after the n originals.
    parents_ : int array, shape (n_new, 2)
        Rows of ``X`` between which each synthetic row lies: x and its neighbor.
    gaps_ : float array, shape (n_new,); with ``gap="feature"`` (n_new, d), sparse if ``X`` is
        g of each synthetic row, so that ``X[p] + g * (X[q] - X[p])`` gives it again.
    sampling_strategy_ : dict
        Rows to invent per class.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Raises
    ------
    InputError
        If a class to grow has one row, or (``on_few="raise"``) not more than k; if a value is NaN, infinite, text or a date, or so
        large (above about 1e153, in float32 1e18) that squares of differences overflow.
    ValueError
        From imbalanced-learn, if there is one class, or a strategy asks for fewer rows than there are.

    Examples
    --------
    >>> X, y = np.array([[0.0], [1.0], [4.0], [5.0], [6.0], [7.0]]), ["rare", "rare", "common", "common", "common", "common"]
    >>> smote = SMOTE(k_neighbors=1, random_state=0)
    >>> X_new, y_new = smote.fit_resample(X, y)
    >>> y_new[6:], X_new[6:].round(3).tolist(), smote.parents_.tolist()
    (['rare', 'rare'], [[0.715], [0.397]], [[0, 1], [1, 0]])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {**InterpolatingSampler._parameter_constraints, "k_neighbors": NEIGHBORS}

    def __init__(
        self,
        *,
        sampling_strategy: Any = "auto",
        k_neighbors: Any = 5,
        gap: str = "sample",
        neighbors: str = "exact",
        dtype: str = "preserve",
        n_jobs: int | None = None,
        random_state: Any = None,
        on_few: str = "reduce_k",
        memory: Any = None,
    ) -> None:
        self.sampling_strategy = sampling_strategy
        self.k_neighbors = k_neighbors
        self.gap = gap
        self.neighbors = neighbors
        self.dtype = dtype
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.on_few = on_few
        self.memory = memory

    def _synthesize(self, X: Any, y: npt.NDArray[Any]) -> Synthetic:
        drawn = []
        for label, wanted in self._wanted():
            rows = self._class_rows(y, label)
            near = rows[self._neighbors("k_neighbors", self._rows(X[rows]), f"class {label}")]
            rng = self._generator()
            parents = draw_parents(rng, rows, near, wanted)
            drawn.append((label, parents, self._gaps(rng, X, parents)))
        return self._between(X, y, drawn)


def draw_parents(rng: np.random.RandomState, rows: npt.NDArray[np.intp], near: npt.NDArray[np.intp], wanted: int) -> npt.NDArray[np.intp]:
    """(wanted, 2) pairs of a row and one of its neighbors, all pairs equally likely; ``near`` (n, k) are the neighbors of ``rows``."""
    base, neighbor = np.divmod(rng.randint(low=0, high=near.size, size=wanted), near.shape[1])
    return np.column_stack([rows[base], near[base, neighbor]])
