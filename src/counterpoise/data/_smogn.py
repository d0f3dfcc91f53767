r"""SMOGN: SMOTER where the neighbor is near, Gaussian noise where it is not (Branco, Torgo, Ribeiro 2017, PMLR 74).

What is unbalanced is what SMOTER treats. Between a row and a neighbor far away there may be nothing like either, so the new row then stays
close to the row itself: with h half its median distance to the others of its range,

.. math:: x_{new} = x + \epsilon, \qquad y_{new} = y + \epsilon_y, \qquad \epsilon_f \sim N(0, (\sigma_f \min(\text{noise}, h))^2),

where :math:`\sigma_f` is the standard deviation of the column (of the target) within the range.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist
from sklearn.utils import gen_batches

from counterpoise._errors import check_range

from ._relevance import Relevance
from ._smoter import SMOTER, between
from ._target_tables import NewRows, TargetTable, stack

__all__ = ["SMOGN"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

OTHERS = 2000  # rows that the median distance of a row is taken over, where there are more
DISTANCES = 2**22  # distances held at once


class SMOGN(SMOTER):
    r"""SMOTER where the neighbor is near, Gaussian noise where it is not.

    A row and the neighbor drawn for it are near if their distance is below half the median distance from the row to the others of its
    range. Else the new row is the row with noise. Its categories are then drawn as often as they occur in the range, and numbers and target
    are kept within the bounds of the table. Of more than 2,000 rows in a range, the median is taken over 2,000 at random.

    Parameters
    ----------
    noise : float > 0, default 0.01 (Branco et al. 2017)
        Largest standard deviation of the noise, in standard deviations of the column.
    relevance, threshold, extremes, coef, sampling_strategy, k_neighbors, categorical_features, n_jobs, random_state, on_few
        As in :class:`SMOTER`.

    Attributes
    ----------
    relevance_, ranges_, sample_indices_, synthetic_mask_, parents_, gaps_, n_features_in_, feature_names_in_
        As in :class:`SMOTER`; ``gaps_`` is NaN for rows with noise.

    Raises
    ------
    InputError
        As in :class:`SMOTER`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.normal(size=(200, 2)), rng.lognormal(size=200)
    >>> smogn = SMOGN(random_state=0)
    >>> X_new, y_new = smogn.fit_resample(X, y)
    >>> len(y_new), int(np.isnan(smogn.gaps_).sum()), "of", len(smogn.gaps_), "with noise"
    (200, 30, 'of', 77, 'with noise')
    """

    def __init__(
        self,
        *,
        noise: float = 0.01,
        relevance: Relevance = "auto",
        threshold: float = 0.8,
        extremes: str = "both",
        coef: float = 1.5,
        sampling_strategy: Any = "balance",
        k_neighbors: int = 5,
        categorical_features: Any = "auto",
        n_jobs: int | None = None,
        random_state: Any = None,
        on_few: str = "reduce_k",
    ) -> None:
        super().__init__(
            relevance=relevance,
            threshold=threshold,
            extremes=extremes,
            coef=coef,
            sampling_strategy=sampling_strategy,
            k_neighbors=k_neighbors,
            categorical_features=categorical_features,
            n_jobs=n_jobs,
            random_state=random_state,
            on_few=on_few,
        )
        self.noise = noise

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_range("noise", self.noise, low=0, open_low=True)

    def _synthesize(self, table: TargetTable, rows: IntArray, parents: IntArray, rng: np.random.Generator) -> NewRows:
        half = np.empty(len(table.y))
        half[rows] = _half_median_distances(table, rows, rng)
        near = _distances(table, parents) < half[parents[:, 0]]
        shaken = parents[~near, 0]
        return stack([between(table, parents[near], rng), _shaken(table, rows, shaken, np.minimum(self.noise, half[shaken]), rng)], table)


def _shaken(table: TargetTable, rows: IntArray, seeds: IntArray, width: FloatArray, rng: np.random.Generator) -> NewRows:
    """Each seed with Gaussian noise of ``width`` standard deviations within the range ``rows``."""
    m, p, q = len(seeds), table.numbers.shape[1], table.codes.shape[1]
    spread = table.numbers[rows].std(axis=0, ddof=1)
    numbers = table.numbers[seeds] + rng.normal(size=(m, p)) * spread * width[:, None]
    numbers = np.clip(numbers, table.numbers.min(axis=0), table.numbers.max(axis=0))
    y = np.clip(table.y[seeds] + rng.normal(size=m) * table.y[rows].std(ddof=1) * width, table.y.min(), table.y.max())
    sources = rows[rng.integers(len(rows), size=(m, q))]
    return NewRows(numbers, sources, y, np.column_stack([seeds, seeds]), np.full(m, np.nan))


def _distances(table: TargetTable, parents: IntArray) -> FloatArray:
    """HEOM between the two of each pair (m, 2)."""
    one, other = parents.T
    squared = np.square(table.scaled[one] - table.scaled[other]).sum(axis=1)
    return np.asarray(np.sqrt(squared + (table.codes[one] != table.codes[other]).sum(axis=1)))


def _half_median_distances(table: TargetTable, rows: IntArray, rng: np.random.Generator) -> FloatArray:
    """Half the median distance of each row to the others of its range, (len(rows),)."""
    others = rows if len(rows) <= OTHERS else np.sort(rng.choice(rows, OTHERS, replace=False))
    half = np.empty(len(rows))
    for part in gen_batches(len(rows), max(1, DISTANCES // len(others))):
        own = rows[part]
        squared = cdist(table.scaled[own], table.scaled[others], "sqeuclidean")
        for column in table.codes.T:
            squared += column[own, None] != column[others]
        squared[own[:, None] == others] = np.nan
        half[part] = np.sqrt(np.nanmedian(squared, axis=1)) / 2
    return half
