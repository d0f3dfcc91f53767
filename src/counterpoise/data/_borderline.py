r"""Borderline-SMOTE (Han, Wang, Mao 2005): synthetic rows only where the class is about to lose.

A row of the class is *in danger* if at least half of its m nearest rows, but not all of them, belong to other classes. Only such rows
become x in :math:`x + g (x_{nn} - x)`. Borderline-1 takes neighbors of the same class; borderline-2 of any class, going at most half the
way to a row of another class.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from sklearn.utils._param_validation import StrOptions

from ._smote import SMOTE, draw_parents
from ._synthetic import NEIGHBORS, InterpolatingSampler, Synthetic

__all__ = ["BorderlineSMOTE"]


class BorderlineSMOTE(InterpolatingSampler):
    """SMOTE from the rows whose neighborhood is mostly, but not only, of other classes.

    The rows in danger are as likely mislabeled as they are informative: on noisy labels it breeds noise. A class without any such row
    gets no synthetic rows, with a warning. Draws the same numbers as imbalanced-learn's class of this name.

    Parameters
    ----------
    m_neighbors : int >= 1 or estimator, default 10 (imbalanced-learn's)
        Nearest rows of any class that decide who is in danger; an estimator finds m + 1, the row itself included.
    kind : {"borderline-1", "borderline-2"}, default "borderline-1"
    sampling_strategy, k_neighbors, gap, neighbors, dtype, n_jobs, random_state, on_few, memory
        As in :class:`SMOTE`.

    Attributes
    ----------
    in_danger_indices : dict
        Class to the rows of ``X`` that are in danger (imbalanced-learn's name, without an underscore).
    synthetic_mask_, parents_, gaps_, sampling_strategy_, n_features_in_, feature_names_in_
        As in :class:`SMOTE`. With borderline-2 the second parent may be of another class.

    Raises
    ------
    InputError
        As :class:`SMOTE` does.

    Examples
    --------
    >>> X, y = np.array([[0.0], [1.0], [2.0], [2.5], [3.5], [4.5], [5.5]]), [1, 1, 1, 0, 0, 0, 0]
    >>> smote = BorderlineSMOTE(k_neighbors=2, m_neighbors=2, random_state=0)
    >>> X_new, _ = smote.fit_resample(X, y)
    >>> smote.in_danger_indices[1].tolist(), X_new[7:].round(2).tolist()
    ([2], [[1.41]])
    """

    in_danger_indices: dict[Any, npt.NDArray[np.intp]]

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **SMOTE._parameter_constraints,
        "m_neighbors": NEIGHBORS,
        "kind": [StrOptions({"borderline-1", "borderline-2"})],
    }

    def __init__(
        self,
        *,
        sampling_strategy: Any = "auto",
        k_neighbors: Any = 5,
        m_neighbors: Any = 10,
        kind: str = "borderline-1",
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
        self.m_neighbors = m_neighbors
        self.kind = kind
        self.gap = gap
        self.neighbors = neighbors
        self.dtype = dtype
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.on_few = on_few
        self.memory = memory

    def _synthesize(self, X: Any, y: npt.NDArray[Any]) -> Synthetic:
        self.in_danger_indices = {}
        drawn = []
        for label, wanted in self._wanted():
            rows = self._class_rows(y, label)
            others = (y[self._neighbors("m_neighbors", self._rows(X), "X", queries=rows)] != label).mean(axis=1)
            danger = (others >= 0.5) & (others < 1)
            if not danger.any():
                self._warn(f"class {label} has no row in danger, so none is invented for it. SMOTE takes all its rows.")
                continue
            self.in_danger_indices[label] = rows[danger]
            pool = rows if self.kind == "borderline-1" else np.arange(len(y))
            queries = np.flatnonzero(danger) if self.kind == "borderline-1" else rows[danger]
            near = pool[self._neighbors("k_neighbors", self._rows(X[pool]), f"class {label}", queries=queries)]
            rng = self._generator()
            parents = draw_parents(rng, rows[danger], near, wanted)
            gaps = self._gaps(rng, X, parents)
            foreign = y[parents[:, 1]] != label
            if foreign.any():
                gaps = _shortened(gaps, foreign, self._generator())
            drawn.append((label, parents, gaps))
        return self._between(X, y, drawn)


def _shortened(gaps: Any, foreign: npt.NDArray[np.bool_], rng: np.random.RandomState) -> Any:
    """Gaps towards rows of another class times U(0, 1/2): at most half the way, and rarely that far."""
    factor = np.ones(len(foreign))
    factor[foreign] = rng.uniform(low=0.0, high=0.5, size=int(foreign.sum()))
    if isinstance(gaps, np.ndarray):
        return gaps * (factor if gaps.ndim == 1 else factor[:, None])
    return gaps.multiply(factor[:, None]).tocsr()
