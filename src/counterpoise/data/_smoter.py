r"""SMOTER: synthetic rows for the rare values of a continuous target (Torgo, Ribeiro, Pfahringer, Branco 2013, EPIA).

What is unbalanced: few rows have an extreme target, so a regressor learns the middle. The target is cut into ranges where its relevance
passes a threshold; rare ranges are filled with synthetic rows, ordinary ones thinned. A synthetic row lies between a row x of a rare range
and one of its k nearest neighbors there,

.. math:: x_{new} = x + g \, (x_{nn} - x), \qquad y_{new} = \frac{d_{nn} \, y + d \, y_{nn}}{d + d_{nn}}, \qquad g \sim U(0, 1),

with its distances d to x and :math:`d_{nn}` to the neighbor; without categories that is :math:`y + g (y_{nn} - y)`. Rows differ by

.. math:: d^2(x, x') = \sum_{\text{numbers}} \left( \frac{x_f - x'_f}{\max_f - \min_f} \right)^2 + \#\{\text{categories that differ}\}

(HEOM, Wilson and Martinez 1997, as in the experiments of Branco et al. 2017), so the units of the columns do not matter.
"""

from __future__ import annotations

import warnings
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, OneToOneFeatureMixin
from sklearn.utils.validation import validate_data

from counterpoise._errors import bad_input, check_choice, check_range

from ._checks import check_jobs
from ._neighbors import nearest
from ._relevance import EXTREMES, STRATEGIES, Relevance, TargetRange, find_ranges, relevance_of, wanted_sizes
from ._target_tables import NewRows, TargetTable, as_table, category_columns, put_together, read_target, stack, take_apart, target_as_given

__all__ = ["SMOTER", "between"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class SMOTER(OneToOneFeatureMixin, BaseEstimator):  # type: ignore[misc]
    r"""Resampling for regression: rare ranges of the target get rows between neighbors, the ordinary ones lose rows.

    Which values are rare is found by the box plot of ``y``, or said by ``relevance``. Every row of a range that is filled is used equally
    often. The categories of a new row are taken from one parent or the other by the toss of a coin.

    Parameters
    ----------
    relevance : "auto", array-like of shape (P, 2) or callable, default "auto"
        How much a value of the target matters, 0 to 1. "auto": 0 at the median, 1 beyond the whiskers of the box plot. Pairs (value,
        relevance) in ascending order: the monotone cubic through them, level beyond. A callable takes ``y`` (n,) and gives (n,).
    threshold : float in (0, 1], default 0.8 (Branco et al. 2017)
        A value is rare if its relevance is at least this.
    extremes : {"both", "low", "high"}, default "both"
        Which ends "auto" looks at.
    coef : float > 0, default 1.5 (Tukey)
        Length of the whiskers in interquartile ranges.
    sampling_strategy : {"balance", "extreme", "over"} or array-like of float, default "balance"
        With n rows in R ranges: "balance" gives each n / R rows; "extreme" turns the frequencies round; "over" fills all up to the largest
        and removes nothing; numbers are factors, one per range in ascending order of the target (``ranges_`` lists them).
    k_neighbors : int >= 1, default 5
        Neighbors to choose from.
    categorical_features : "auto" or array-like of int, str or bool, default "auto"
        Positions, names or a mask of the columns that hold categories. "auto": the columns of a pandas or polars frame that hold text,
        categories or booleans; none of an array.
    n_jobs : int, optional
        Threads of the neighbor search.
    random_state : int, Generator, RandomState or None, default None
    on_few : {"reduce_k", "raise"}, default "reduce_k"
        What to do about a rare range with at most ``k_neighbors`` rows: take the neighbors there are, with a warning, or raise.

    Attributes
    ----------
    relevance_ : array of float, shape (n,)
        Relevance of each row's target.
    ranges_ : tuple of TargetRange
        Ranges of the target in ascending order: ``low``, ``high``, ``rare``, ``rows``, ``rows_after``.
    sample_indices_ : array of int, shape (n_kept,)
        Rows of ``X`` that were kept, ascending; they come first in the result.
    synthetic_mask_ : array of bool, shape (n_out,)
        Which rows of the result are synthetic.
    parents_ : array of int, shape (n_new, 2)
        Rows of ``X`` between which each synthetic row lies; twice the same where SMOGN shook it.
    gaps_ : array of float, shape (n_new,)
        g of each synthetic row; NaN where SMOGN shook it.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Raises
    ------
    InputError
        If no value is rare or all are; a rare range has one row; ``y`` does not hold finite numbers; a number is missing, infinite or above
        about 1e150; a column holds neither numbers nor categories; or a parameter is out of its range.

    Notes
    -----
    ``fit_resample(X, y)`` takes arrays, lists, pandas and polars frames and returns the same type, names and dtypes. New values of integer
    columns, and of an integer target, are rounded. Resample training rows only: inside a pipeline of imbalanced-learn, never before a
    split.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.normal(size=(200, 2)), rng.lognormal(size=200)
    >>> smoter = SMOTER(random_state=0)
    >>> X_new, y_new = smoter.fit_resample(X, y)
    >>> [(round(part.high, 2), part.rare, part.rows, part.rows_after) for part in smoter.ranges_]
    [(3.43, False, 177, 100), (8.32, True, 23, 100)]
    """

    relevance_: FloatArray
    ranges_: tuple[TargetRange, ...]
    sample_indices_: IntArray
    synthetic_mask_: npt.NDArray[np.bool_]
    parents_: IntArray
    gaps_: FloatArray

    _estimator_type = "sampler"  # imbalanced-learn's name for what has fit_resample

    def __init__(
        self,
        *,
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
        self.relevance = relevance
        self.threshold = threshold
        self.extremes = extremes
        self.coef = coef
        self.sampling_strategy = sampling_strategy
        self.k_neighbors = k_neighbors
        self.categorical_features = categorical_features
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.on_few = on_few

    def fit(self, X: Any, y: Any) -> Self:
        """Resample and forget the result; what is left are the attributes."""
        self.fit_resample(X, y)
        return self

    def fit_resample(self, X: Any, y: Any) -> tuple[Any, Any]:
        """Resample a data set.

        Parameters
        ----------
        X : array, list, pandas or polars frame, shape (n, d)
        y : array, list, series or one-column frame of numbers, shape (n,)

        Returns
        -------
        X_resampled, y_resampled
            Of the types, names and dtypes of ``X`` and ``y``: the rows kept, in their order, then the synthetic ones.
        """
        self._check_parameters()
        table, target = as_table(X), read_target(y)
        validate_data(self, X=table, reset=True, skip_check_array=True)
        if table.shape[0] != len(target):
            bad_input("X and y", f"{table.shape[0]} and {len(target)} rows", "one target per row")
        categories = category_columns(table, self.categorical_features)
        parts = take_apart(table, categories, target)
        members = self._find_ranges(target)
        rng = _generator(self.random_state)
        kept, new = [], []
        for rows, part in zip(members, self.ranges_, strict=True):
            missing = part.rows_after - part.rows
            kept.append(rows if missing >= 0 else rng.choice(rows, part.rows_after, replace=False))
            if missing > 0:
                parents = self._draw_parents(parts, rows, missing, f"the range {part.low:g} to {part.high:g} of the target", rng)
                new.append(self._synthesize(parts, rows, parents, rng))
        self.sample_indices_ = np.sort(np.concatenate(kept))
        added = stack(new, parts)
        self.synthetic_mask_ = np.arange(len(self.sample_indices_) + len(added.y)) >= len(self.sample_indices_)
        self.parents_, self.gaps_ = added.parents, added.gaps
        X_out = put_together(table, categories, added, self.sample_indices_)
        y_out = target_as_given(y, np.concatenate([target[self.sample_indices_], added.y]))
        return X_out.tolist() if isinstance(X, list) else X_out, y_out

    def _find_ranges(self, target: FloatArray) -> list[IntArray]:
        """Rows of each range of the target, lowest first."""
        self.relevance_ = relevance_of(target, self.relevance, self.extremes, self.coef)
        rare = self.relevance_ >= self.threshold
        if rare.all() or not rare.any():
            bad_input(
                "threshold", f"{self.threshold:g}, which {int(rare.sum())} of {len(rare)} rows reach", "one that some rows reach",
                "Or say which values are rare: relevance=[(value, 0), (value, 1)].",
            )  # fmt: skip
        members = find_ranges(target, rare)
        wanted = wanted_sizes([len(rows) for rows in members], self.sampling_strategy)
        self.ranges_ = tuple(
            TargetRange(float(target[rows[0]]), float(target[rows[-1]]), bool(rare[rows[0]]), len(rows), size)
            for rows, size in zip(members, wanted, strict=True)
        )
        return members

    def _draw_parents(self, table: TargetTable, rows: IntArray, count: int, where: str, rng: np.random.Generator) -> IntArray:
        """(count, 2) pairs of a row of the range and one of its neighbors there; all rows equally often, the rest at random."""
        n = len(rows)
        if n < 2:
            bad_input(
                "y", f"one row in {where}", "at least two in every range that is to grow",
                "Look at one end only (extremes='high' or 'low'), or move the threshold.",
            )  # fmt: skip
        k = min(int(self.k_neighbors), n - 1)
        if k < self.k_neighbors:
            if self.on_few == "raise":
                bad_input("k_neighbors", self.k_neighbors, f"at most {k}, the other rows in {where}", 'on_few="reduce_k" would take those.')
            message = f"k_neighbors: {where} has only {n} rows, so {k} neighbors are used instead of {self.k_neighbors}."
            warnings.warn(message, UserWarning, stacklevel=3)
        near = nearest(table.rows(rows), k, n_jobs=self.n_jobs)
        seeds = np.concatenate([np.tile(np.arange(n), count // n), rng.choice(n, count % n, replace=False)])
        return np.column_stack([rows[seeds], rows[near[seeds, rng.integers(k, size=count)]]])

    def _synthesize(self, table: TargetTable, rows: IntArray, parents: IntArray, rng: np.random.Generator) -> NewRows:
        """A new row for each pair of parents (m, 2) out of ``rows``."""
        return between(table, parents, rng)

    def _check_parameters(self) -> None:
        if isinstance(self.relevance, str):
            check_choice("relevance", self.relevance, ("auto",), "Else a function, or pairs (value of the target, relevance).")
        check_range("threshold", self.threshold, low=0, high=1, open_low=True)
        check_choice("extremes", self.extremes, EXTREMES)
        check_range("coef", self.coef, low=0, open_low=True)
        check_range("k_neighbors", self.k_neighbors, low=1, integer=True)
        check_choice("on_few", self.on_few, ("reduce_k", "raise"))
        check_jobs(self.n_jobs)
        if isinstance(self.sampling_strategy, str):
            check_choice("sampling_strategy", self.sampling_strategy, STRATEGIES, "Else one factor for each range of the target.")


def between(table: TargetTable, parents: IntArray, rng: np.random.Generator) -> NewRows:
    """One row on the way between each pair of parents (m, 2)."""
    one, other = parents.T
    gaps = rng.random(len(parents))
    numbers = table.numbers[one] + gaps[:, None] * (table.numbers[other] - table.numbers[one])
    heads = rng.random((len(parents), table.codes.shape[1])) < 0.5
    share = gaps  # of the other parent's target
    if heads.size:
        differ = table.codes[one] != table.codes[other]
        way = np.square(table.scaled[other] - table.scaled[one]).sum(axis=1)
        to_one = np.sqrt(gaps**2 * way + (differ & ~heads).sum(axis=1))
        to_other = np.sqrt((1 - gaps) ** 2 * way + (differ & heads).sum(axis=1))
        share = np.divide(to_one, to_one + to_other, out=gaps.copy(), where=to_one + to_other > 0)  # of equal parents any share will do
    y = table.y[one] + share * (table.y[other] - table.y[one])
    return NewRows(numbers, np.where(heads, one[:, None], other[:, None]), y, parents, gaps)


def _generator(random_state: Any) -> np.random.Generator:
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(random_state.randint(2**31))
    try:
        return np.random.default_rng(random_state)
    except (TypeError, ValueError):
        bad_input("random_state", random_state, "None, a seed >= 0, a numpy.random.Generator or a RandomState")
