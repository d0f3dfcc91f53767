r"""ADASYN (He, Bai, Garcia, Li 2008): more synthetic rows where a row of the class is surrounded by others.

With :math:`r_i` the share of other classes among the k nearest rows of :math:`x_i`, it becomes x in :math:`x + g (x_{nn} - x)` about
:math:`n \, r_i / \sum_j r_j` times, where n rows are wanted; neighbors :math:`x_{nn}` are of its own class.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from counterpoise._errors import bad_input

from ._synthetic import NEIGHBORS, InterpolatingSampler, Synthetic

__all__ = ["ADASYN"]


class ADASYN(InterpolatingSampler):
    """SMOTE that draws each row of the class in proportion to the share of other classes around it.

    Outliers and mislabeled rows, all of whose neighbors are of other classes, are drawn most: use it on clean labels only. Numbers per
    row are rounded, so the counts differ a little from those asked for. Draws the same numbers as imbalanced-learn's class of this name.

    Parameters
    ----------
    n_neighbors : int >= 1 or estimator, default 5 (He et al. 2008)
        k, both of the neighborhood that is looked at and of the neighbors to choose from; an estimator finds k + 1, the row itself
        included.
    sampling_strategy, gap, neighbors, dtype, n_jobs, random_state, on_few, memory
        As in :class:`SMOTE`.

    Attributes
    ----------
    synthetic_mask_, parents_, gaps_, sampling_strategy_, n_features_in_, feature_names_in_
        As in :class:`SMOTE`.

    Raises
    ------
    InputError
        If no row of a class to grow has a neighbor of another class, or all numbers round to 0; and as :class:`SMOTE` does.

    Examples
    --------
    >>> X, y = np.array([[0.0], [1.0], [2.0], [2.5], [3.5], [4.5], [5.5], [6.5]]), [1, 1, 1, 0, 0, 0, 0, 0]
    >>> sampler = ADASYN(n_neighbors=2, random_state=0)
    >>> X_new, _ = sampler.fit_resample(X, y)
    >>> sampler.parents_.tolist()  # only the row at 2.0 has a neighbor of the other class
    [[2, 1], [2, 0]]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {**InterpolatingSampler._parameter_constraints, "n_neighbors": NEIGHBORS}

    def __init__(
        self,
        *,
        sampling_strategy: Any = "auto",
        n_neighbors: Any = 5,
        gap: str = "sample",
        neighbors: str = "exact",
        dtype: str = "preserve",
        n_jobs: int | None = None,
        random_state: Any = None,
        on_few: str = "reduce_k",
        memory: Any = None,
    ) -> None:
        self.sampling_strategy = sampling_strategy
        self.n_neighbors = n_neighbors
        self.gap = gap
        self.neighbors = neighbors
        self.dtype = dtype
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.on_few = on_few
        self.memory = memory

    def _synthesize(self, X: Any, y: npt.NDArray[Any]) -> Synthetic:
        rng = self._generator()
        drawn = []
        for label, wanted in self._wanted():
            rows = self._class_rows(y, label)
            others = (y[self._neighbors("n_neighbors", self._rows(X), "X", queries=rows)] != label).mean(axis=1)
            if not others.any():
                bad_input("y", f"no row of class {label} with a neighbor of another class", "classes that touch", "SMOTE needs no border.")
            times = np.rint(others / others.sum() * wanted).astype(np.intp)
            if not times.any():
                bad_input("sampling_strategy", f"{wanted} rows of class {label}, fewer than half a row each", "more rows", "Or use SMOTE.")
            near = rows[self._neighbors("n_neighbors", self._rows(X[rows]), f"class {label}")]
            base = np.repeat(np.arange(len(rows)), times)
            chosen = near[base, rng.choice(near.shape[1], size=len(base))]
            parents = np.column_stack([rows[base], chosen])
            drawn.append((label, parents, self._gaps(rng, X, parents)))
        return self._between(X, y, drawn)
