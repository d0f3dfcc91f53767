"""Intervals for paired differences: the formulas behind the verdicts of a study, in plain NumPy.

Notation: A comparisons (arm minus baseline, positive is better), R repeats of a K-fold cross-validation, n rows. A metric that is a mean
over rows is carried by *contributions* psi (A, n): what each row adds, so that a sum over rows is the difference in the metric.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special, stats
from scipy.optimize import brentq

from ._seeding import generator

__all__ = [
    "Design",
    "Moments",
    "bonferroni",
    "bootstrap_moments",
    "gini",
    "jackknife",
    "max_t",
    "mean_interval",
    "mean_of_shares",
    "nadeau_bengio",
    "paired_t",
    "placements",
    "repeat_variance",
    "row_moments",
    "row_standard_error",
    "wilson",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

DRAWS = 2**13  # quasi-random points of the max-t distribution; the critical value is good to about 0.005
TRAINING_FACTOR = 2.0  # calibrated on null studies: resampled rows do not show the variance that the training set brings
_CHUNK = 10_000_000  # most bootstrap weights held at once


# ---- cells ------------------------------------------------------------------------------------------------------------------------------


def paired_t(cell_differences: npt.ArrayLike) -> tuple[FloatArray, FloatArray, int]:
    r"""The usual paired t over cells, :math:`se = s / \sqrt{J}`: (estimate, se, df) of differences (A, J).

    Cells share training rows, so this se is far too small. It is here to show that a test of false claims can see them.

    >>> [np.round(part, 4).tolist() for part in paired_t([[0.1, 0.2, 0.3]])]
    [[0.2], [0.0577], 2]
    """
    d = np.asarray(cell_differences, dtype=np.float64)
    return d.mean(axis=-1), d.std(axis=-1, ddof=1) / np.sqrt(d.shape[-1]), d.shape[-1] - 1


def nadeau_bengio(cell_differences: npt.ArrayLike, test_train_ratio: float) -> tuple[FloatArray, FloatArray, int]:
    r"""Corrected resampled t (Nadeau and Bengio 2003): :math:`se = s \sqrt{1/J + n_{test}/n_{train}}`, (estimate, se, df = J - 1).

    Parameters
    ----------
    cell_differences : array-like, shape (A, J)
        Differences of the metric in each cell.
    test_train_ratio : float
        Rows tested over rows trained on in a cell: 1 / (K - 1) for K folds.

    >>> [np.round(part, 4).tolist() for part in nadeau_bengio([[0.1, 0.2, 0.3]], 1 / 4)]
    [[0.2], [0.0764], 2]
    """
    d = np.asarray(cell_differences, dtype=np.float64)
    count = d.shape[-1]
    return d.mean(axis=-1), d.std(axis=-1, ddof=1) * np.sqrt(1.0 / count + test_train_ratio), count - 1


def mean_interval(values: npt.ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    r"""(mean, low, high) of independent values, such as one paired difference per seed: :math:`\bar x \pm t_{n-1}\, s / \sqrt{n}`.

    One value alone has an infinite interval; values that are all equal have one of width 0.

    >>> [round(part, 3) for part in mean_interval([0.1, 0.2, 0.3])]
    [0.2, -0.048, 0.448]
    """
    x = np.asarray(values, dtype=np.float64)
    mean = float(x.mean())
    if len(x) < 2:
        return mean, -np.inf, np.inf
    half = float(stats.t.ppf(0.5 + level / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return mean, mean - half, mean + half


def repeat_variance(cell_differences: npt.ArrayLike) -> FloatArray:
    """Variance that the split into folds brings, (A,), from cell differences (A, R, K); NaN marks cells that do not exist.

    R > 1: variance of the repeat means over R. R = 1: variance of the cells over K.

    >>> repeat_variance([[[0.0, 2.0], [2.0, 4.0]]]), repeat_variance([[[0.0, 2.0]]])
    (array([1.]), array([1.]))
    """
    d = np.asarray(cell_differences, dtype=np.float64)
    cells = ~np.isnan(d)
    means = np.where(cells, d, 0.0).sum(axis=2) / np.maximum(cells.sum(axis=2), 1)
    repeats = np.asarray(cells.any(axis=2))
    over_repeats = _masked_variance(means, repeats) / np.maximum(repeats.sum(axis=1), 1)
    # Only arms seen in one repeat need its cells; their other repeats are all missing.
    flat = d.reshape(len(d), -1)
    over_cells = _masked_variance(flat, ~np.isnan(flat)) / np.maximum(cells.sum(axis=(1, 2)), 1)
    return np.asarray(np.where(repeats.sum(axis=1) > 1, over_repeats, over_cells))


def _masked_variance(values: FloatArray, valid: npt.NDArray[np.bool_]) -> FloatArray:
    """Variance (ddof 1) over the valid entries of each row; 0 where there are fewer than two."""
    count = valid.sum(axis=1)
    mean = np.where(valid, values, 0.0).sum(axis=1) / np.maximum(count, 1)
    squares = np.where(valid, (values - mean[:, None]) ** 2, 0.0).sum(axis=1)
    return np.asarray(squares / np.maximum(count - 1, 1), dtype=np.float64)


def jackknife(deltas: npt.ArrayLike) -> tuple[FloatArray, int]:
    r"""Delete-group jackknife: :math:`se = \sqrt{\frac{G-1}{G} \sum_g (\delta_g - \bar\delta)^2}`, (se, df = G - 1).

    ``deltas`` (A, G) are the differences after group g of rows was deleted from training and test alike.

    >>> jackknife([[1.0, 2.0, 3.0]])
    (array([1.15470054]), 2)
    """
    d = np.asarray(deltas, dtype=np.float64)
    groups = d.shape[-1]
    return np.sqrt((groups - 1) / groups * ((d - d.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1)), groups - 1


# ---- rows -------------------------------------------------------------------------------------------------------------------------------


class Design:
    """Which rows vary independently: their strata (sizes fixed by the design, such as classes) and, if rows belong together, clusters.

    Clusters that each lie within one stratum (copies of a row, say) are drawn stratum by stratum, others all together.
    """

    def __init__(self, strata: npt.ArrayLike, clusters: npt.ArrayLike | None = None) -> None:
        codes = np.unique(np.asarray(strata), return_inverse=True)[1]
        self.n = len(codes)
        self._strata = _members(codes)
        self._cluster_of: IntArray | None = None
        self._unit_strata = self._strata
        if clusters is not None:
            self._cluster_of = np.unique(np.asarray(clusters), return_inverse=True)[1]
            self._order = np.argsort(self._cluster_of, kind="stable")
            self._starts = np.flatnonzero(np.diff(self._cluster_of[self._order], prepend=-1))
            ordered = codes[self._order]
            lowest = np.minimum.reduceat(ordered, self._starts)
            pure = bool((lowest == np.maximum.reduceat(ordered, self._starts)).all())
            self._unit_strata = _members(lowest if pure else np.zeros(len(lowest), dtype=np.int64))

    @property
    def units(self) -> int:
        """Number of independent units in the smallest stratum."""
        return min(len(members) for members in self._unit_strata)

    def covariance(self, psi: FloatArray) -> FloatArray:
        r"""Covariance (A, A) of the sums of ``psi`` (A, n) over rows.

        Rows: :math:`\sum_c \frac{n_c}{n_c - 1} \sum_{i \in c} (\psi_i - \bar\psi_c)(\psi_i - \bar\psi_c)^T`. With clusters, the
        stratum-centered contributions are first summed within each cluster.
        """
        if self._cluster_of is None:
            parts = (_scatter(psi[:, rows] - psi[:, rows].mean(axis=1, keepdims=True)) for rows in self._strata)
            return np.asarray(sum(parts), dtype=np.float64)
        centered = np.empty(psi.shape)
        for rows in self._strata:
            centered[:, rows] = psi[:, rows] - psi[:, rows].mean(axis=1, keepdims=True)
        totals = np.add.reduceat(centered[:, self._order], self._starts, axis=1)
        return np.asarray(sum(_scatter(totals[:, units]) for units in self._unit_strata), dtype=np.float64)

    def resamples(self, draws: int, rng: np.random.Generator) -> Iterator[FloatArray]:
        """Multinomial bootstrap: chunks (b, n) of how often each row was drawn, ``draws`` in all, stratum sizes kept."""
        n_units = sum(len(members) for members in self._unit_strata)
        at_once = max(1, min(draws, _CHUNK // self.n))
        for first in range(0, draws, at_once):
            count = min(at_once, draws - first)
            weights = np.empty((count, n_units))
            for members in self._unit_strata:
                drawn = rng.integers(len(members), size=(count, len(members))) + np.arange(count)[:, None] * len(members)
                weights[:, members] = np.bincount(drawn.ravel(), minlength=count * len(members)).reshape(count, len(members))
            yield weights if self._cluster_of is None else weights[:, self._cluster_of]


def _members(codes: IntArray) -> list[IntArray]:
    """Indices of each code 0..C-1."""
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.cumsum(np.bincount(codes))[:-1])


def _scatter(centered: FloatArray) -> FloatArray:
    """n / (n - 1) times the scatter matrix: n times the covariance."""
    n = centered.shape[1]
    return np.asarray(centered @ centered.T * (n / max(n - 1, 1)), dtype=np.float64)


@dataclass(frozen=True)
class Moments:
    """Covariance of A estimated differences: ``S`` (A, A) of the means over repeats, ``S1`` (A, A) of one repeat; ``repeats`` (A, R) their
    values in each repeat (NaN where an arm was not run)."""

    S: FloatArray
    S1: FloatArray
    repeats: FloatArray

    @property
    def estimate(self) -> FloatArray:
        """(A,) means over the repeats that exist."""
        return np.asarray(np.nanmean(self.repeats, axis=1))


def row_moments(contributions: Iterable[FloatArray], design: Design) -> Moments:
    """Moments of sums of contributions, from one array (A, n) per repeat, so that only one repeat is in memory.

    A row of NaN stands for an arm that was not run in that repeat.
    """
    singles, sums = [], []
    total: FloatArray | None = None
    count: FloatArray | None = None
    for psi in contributions:
        singles.append(design.covariance(psi))
        sums.append(psi.sum(axis=1))
        present = ~np.isnan(sums[-1])
        if total is None or count is None:
            total, count = np.zeros(psi.shape), np.zeros(len(psi))
        total[present] += psi[present]
        count += present
    assert total is not None and count is not None
    total /= count[:, None]
    return Moments(design.covariance(total), np.asarray(np.nanmean(singles, axis=0)), np.stack(sums, axis=1))


def bootstrap_moments(draws: FloatArray, repeats: FloatArray) -> Moments:
    """Moments from bootstrap draws (B, A, R) of a metric that is not a sum over rows; ``repeats`` (A, R) are its values on all rows."""
    means = np.nanmean(draws, axis=2)
    singles = [np.atleast_2d(np.cov(draws[:, :, r], rowvar=False)) for r in range(draws.shape[2])]
    return Moments(np.atleast_2d(np.cov(means, rowvar=False)), np.asarray(np.nanmean(singles, axis=0)), repeats)


def row_standard_error(moments: Moments, v_rep: FloatArray, grain: FloatArray | float = 0.0) -> FloatArray:
    r"""Row interval: :math:`se_a = \sqrt{\max(2 S_{aa} + v_{rep,a},\; S^{(1)}_{aa})}`.

    The factor 2 stands for the training set, which resampled rows do not show. The floor is needed because averaging over repeats shrinks S
    but not the error. S is never taken to be smaller than ``grain``, the variance of the smallest change that could have been seen.
    """
    once = np.maximum(np.diag(moments.S), grain)
    return np.sqrt(np.maximum(TRAINING_FACTOR * once + v_rep, np.diag(moments.S1)))


def placements(score: npt.NDArray[np.floating], positive: npt.NDArray[np.bool_]) -> FloatArray:
    """Share of the other class that each row is ranked on the right side of, ties one half, (n,); NaN if a class is missing.

    The mean over the positive rows and the mean over the negative rows both equal the AUROC.

    >>> placements(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True]))
    array([1.  , 0.75, 0.75, 1.  ])
    """
    above, below = score[positive], score[~positive]
    out = np.full(len(score), np.nan)
    if len(above) and len(below):
        high, low = np.sort(above), np.sort(below)
        out[positive] = (np.searchsorted(low, above) + np.searchsorted(low, above, side="right")) / (2 * len(low))
        out[~positive] = 1 - (np.searchsorted(high, below) + np.searchsorted(high, below, side="right")) / (2 * len(high))
    return out


# ---- several comparisons at once --------------------------------------------------------------------------------------------------------


def max_t(covariance: npt.ArrayLike, df: float, level: float = 0.95) -> float:
    r"""Critical value c of simultaneous intervals :math:`\hat\delta_a \pm c\,se_a`.

    The ``level`` quantile of :math:`\max_a |Z_a| / \sqrt{\chi^2_{df} / df}` with Z normal and correlated like the estimates: Z is averaged
    over a fixed set of Sobol points, :math:`\chi^2` is integrated exactly. One comparison has the exact quantile of t.

    Parameters
    ----------
    covariance : array-like, shape (A, A)
        Of the estimated differences. Comparisons with variance 0 (identical predictions) take no part; nor does a second comparison that is
        perfectly correlated with another.
    df : float
        Degrees of freedom of the standard errors.
    level : float, default 0.95
        Simultaneous coverage.

    >>> round(max_t([[2.0]], df=14), 4)
    2.1448
    >>> round(max_t([[1.0, 0.5], [0.5, 1.0]], df=14), 1)
    2.5
    """
    S = np.asarray(covariance, dtype=np.float64)
    kept = np.flatnonzero(np.diag(S) > 0)
    scale = np.sqrt(np.diag(S)[kept])
    correlation = np.clip(S[np.ix_(kept, kept)] / np.outer(scale, scale), -1.0, 1.0)
    repeated = (np.triu(np.abs(correlation), 1) > 1 - 1e-12).any(axis=0)
    correlation = correlation[np.ix_(~repeated, ~repeated)]
    if len(correlation) <= 1:
        return bonferroni(1, df, level)
    values, vectors = np.linalg.eigh(correlation)
    # Largest eigenvalue first: the first Sobol dimensions are the most even.
    root = (vectors * np.sqrt(np.clip(values, 0.0, None)))[:, ::-1]
    points = stats.qmc.Sobol(len(root), seed=generator(0, "max-t")).random(DRAWS)
    largest = np.abs(special.ndtri(points) @ root.T).max(axis=1)

    def excess(c: float) -> float:
        return float(special.chdtrc(df, df * (largest / c) ** 2).mean()) - level

    return float(brentq(excess, 0.9 * bonferroni(1, df, level), 1.1 * bonferroni(len(root), df, level), xtol=1e-6))


def bonferroni(comparisons: int, df: float, level: float = 0.95) -> float:
    """Critical value of ``comparisons`` simultaneous two-sided t intervals.

    >>> round(bonferroni(3, df=14), 4)
    2.7178
    """
    return float(stats.t.ppf(1 - (1 - level) / (2 * max(comparisons, 1)), df))


def gini(values: npt.ArrayLike) -> float:
    r"""How unequal values >= 0 are, :math:`\sum_{i,j} |x_i - x_j| \, / \, (2 n \sum_i x_i)`: 0 all alike, 1 - 1/n one has everything.

    NaN without values, or if all are 0.

    >>> gini([1, 1, 1, 1]), gini([0, 0, 0, 1])
    (0.0, 0.75)
    """
    x = np.sort(np.asarray(values, dtype=np.float64))
    if not x.sum() > 0:
        return float("nan")
    # The sum over ordered pairs from the sorted values, without the (n, n) table.
    rank = 2.0 * np.arange(1, len(x) + 1) - len(x) - 1
    return float(rank @ x / (len(x) * x.sum()))


def wilson(successes: npt.ArrayLike, n: npt.ArrayLike, level: float = 0.95) -> tuple[FloatArray, FloatArray]:
    """Wilson interval of a share: (low, high); [0, 1] where n is 0. ``successes`` may be a mean over repeats.

    >>> [bound.round(3).tolist() for bound in wilson([0, 8], [10, 10])]
    [[0.0, 0.49], [0.278, 0.943]]
    """
    trials = np.asarray(n, dtype=np.float64)
    safe = np.where(trials > 0, trials, 1.0)
    share = np.asarray(successes, dtype=np.float64) / safe
    z = stats.norm.ppf(0.5 + level / 2)
    center = (share + z**2 / (2 * safe)) / (1 + z**2 / safe)
    half = z / (1 + z**2 / safe) * np.sqrt(share * (1 - share) / safe + z**2 / (4 * safe**2))
    low, high = np.clip(center - half, 0.0, 1.0), np.clip(center + half, 0.0, 1.0)
    return np.where(trials > 0, low, 0.0), np.where(trials > 0, high, 1.0)


def mean_of_shares(shares: npt.ArrayLike, n: npt.ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    r"""(mean, low, high) of the mean of C independent shares, such as the recalls whose mean is the balanced accuracy.

    The Wilson limits :math:`l_c, u_c` of each share :math:`p_c` of :math:`n_c` rows are combined by the MOVER rule (Zou and Donner 2008):
    :math:`\bar p - \frac1C \sqrt{\sum_c (p_c - l_c)^2}` and :math:`\bar p + \frac1C \sqrt{\sum_c (u_c - p_c)^2}`. One share alone has its
    Wilson limits. Unlike a bootstrap, it does not shrink to a point where no row was missed.

    >>> [round(part, 3) for part in mean_of_shares([1.0, 1.0], [18, 357])]
    [1.0, 0.912, 1.0]
    """
    p, trials = np.asarray(shares, dtype=np.float64), np.asarray(n, dtype=np.float64)
    low, high = wilson(p * trials, trials, level)
    mean = float(p.mean())
    return mean, mean - float(np.sqrt(((p - low) ** 2).sum())) / len(p), mean + float(np.sqrt(((high - p) ** 2).sum())) / len(p)
