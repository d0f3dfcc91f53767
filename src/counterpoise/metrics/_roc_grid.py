r"""A learner in ROC space over a grid of resamplings: under-sampling alone against SMOTE with under-sampling.

The evaluation of Chawla et al. 2002 (arXiv:1106.1813, section 5). A learner that only decides is one point (fpr, tpr). To get a curve, the
majority class is thinned by more and more: under-sampling of u % leaves

.. math:: n_- = \frac{100}{u} \, n_+

majority rows, where :math:`n_+` counts the minority rows including the synthetic ones (SMOTE of o % adds o % of them). Ways of resampling
are compared by the convex hulls of their points.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._errors import bad_input, check_range
from counterpoise._seeding import generator, seed_integer
from counterpoise._stats import Design

from ._compare import MetricInterval
from ._inputs import BoolArray, FloatArray, IntArray
from ._roc_hull import CORNERS, Hull, hull_positions, roc_convex_hull

if TYPE_CHECKING:
    import polars as pl

__all__ = ["RocGrid", "hull_gain", "smote_undersample_grid"]

OVER = (0, 50, 100, 200, 300, 400, 500)  # the amounts of the paper, in percent
UNDER = (10, 15, 25, 50, 75, 100, 125, 150, 175, 200, 300, 400, 500, 600, 700, 800, 1000, 2000)
PARTS = 5  # of the tested rows: vertices are chosen on all but one and measured on that one


@dataclass(frozen=True, eq=False)
class RocGrid:
    """Result of :func:`smote_undersample_grid`: P points, one per pair of amounts.

    Attributes
    ----------
    over, under : array of float, shape (P,)
        SMOTE and under-sampling in percent.
    positive : array of bool, shape (n,)
        Which rows belong to the minority class.
    fold : array of int, shape (n,)
        In which fold each row was tested; -1 if in none.
    predicted : array of bool, shape (n, P)
        Which rows were predicted positive when they were tested.
    """

    over: FloatArray
    under: FloatArray
    positive: BoolArray
    fold: IntArray
    predicted: BoolArray

    @property
    def fpr(self) -> FloatArray:
        """(P,) false positive rates over the tested rows of all folds."""
        return np.asarray(self.predicted[self._tested & ~self.positive].mean(axis=0))

    @property
    def tpr(self) -> FloatArray:
        """(P,) true positive rates over the tested rows of all folds."""
        return np.asarray(self.predicted[self._tested & self.positive].mean(axis=0))

    @property
    def hulls(self) -> dict[str, Hull]:
        """Convex hulls of ``"under"`` (points without SMOTE) and ``"smote+under"``; labels are pairs (over, under)."""
        parts = {"under": self.over == 0, "smote+under": self.over > 0}
        labels = list(zip(self.over.tolist(), self.under.tolist(), strict=True))
        return {
            name: roc_convex_hull(self.fpr[part], self.tpr[part], [label for label, chosen in zip(labels, part, strict=True) if chosen])
            for name, part in parts.items()
            if part.any()
        }

    def area(self, over: float) -> float:
        """Area under the curve of one amount of SMOTE, in order of the false positive rate, from (0, 0) to (1, 1), by trapezoids."""
        part = self.over == over
        if not part.any():
            bad_input("over", over, f"one of the amounts {', '.join(f'{amount:g}' for amount in np.unique(self.over))}")
        order = np.lexsort((self.tpr[part], self.fpr[part]))
        fpr, tpr = (np.concatenate([[0.0], rate[part][order], [1.0]]) for rate in (self.fpr, self.tpr))
        return float(np.trapezoid(tpr, fpr))

    def gain(self, draws: int = 1000, random_state: int = 0, level: float = 0.95) -> MetricInterval:
        """What SMOTE adds to under-sampling: the difference in hull area on rows that had no part in choosing the vertices.

        The hull of more points is larger by chance alone, and with the default amounts SMOTE has six times as many. So the tested rows are
        cut into five parts at random, the vertices of each hull are found on four and measured on the fifth, in turn. The interval is a
        percentile bootstrap over rows, in which that is done anew; it is about other rows and these models.
        """
        if not (self.over == 0).any() or not (self.over > 0).any():
            bad_input("over", np.unique(self.over).tolist(), "a grid with amount 0 and with others")
        rows = self._tested
        return hull_gain(
            self.positive[rows], self.predicted[rows][:, self.over > 0], self.predicted[rows][:, self.over == 0], draws, random_state, level
        )

    def to_frame(self) -> pl.DataFrame:
        """One row per point: ``over``, ``under``, ``fpr``, ``tpr``, their standard deviations over the folds, and whether it is a vertex of
        its hull (``on_hull``)."""
        import polars as pl

        vertices = {label for hull in self.hulls.values() for label, index in zip(hull.labels, hull.index, strict=True) if index >= 0}
        points = list(zip(self.over.tolist(), self.under.tolist(), strict=True))
        return pl.DataFrame(
            {
                "over": self.over,
                "under": self.under,
                "fpr": self.fpr,
                "tpr": self.tpr,
                "fpr_sd": self._deviation(~self.positive),
                "tpr_sd": self._deviation(self.positive),
                "on_hull": [point in vertices for point in points],
            }
        )

    def summary(self) -> str:
        """One sentence."""
        return "Area under the ROC hull: " + ", ".join(f"{name} {hull.area:.4f}" for name, hull in self.hulls.items()) + "."

    @property
    def _tested(self) -> BoolArray:
        return self.fold >= 0

    def _deviation(self, rows: BoolArray) -> FloatArray:
        """(P,) standard deviation over folds of the share predicted positive among ``rows``; folds without any take no part."""
        tested = rows & self._tested
        counts = np.bincount(self.fold[tested], minlength=int(self.fold.max()) + 1)
        hits = np.zeros((len(counts), self.predicted.shape[1]))
        np.add.at(hits, self.fold[tested], self.predicted[tested])
        rates = hits[counts > 0] / counts[counts > 0, None]
        return np.asarray(rates.std(axis=0, ddof=1) if len(rates) > 1 else np.zeros(rates.shape[1]))


def smote_undersample_grid(
    estimator: Any,
    X: Any,
    y: Any,
    over: Sequence[float] = OVER,
    under: Sequence[float] = UNDER,
    cv: Any = 10,
    random_state: int | None = None,
    n_jobs: int | None = None,
) -> RocGrid:
    """Train a classifier at every pair of amounts of SMOTE and under-sampling, and test it on the folds it has not seen.

    Only training rows are resampled. Neighbors are searched once per fold, among columns brought to standard deviation 1 there. Larger
    amounts of SMOTE contain the rows of the smaller ones, and what a level leaves of the majority is part of what milder levels leave;
    levels that leave the same rows share one fit.

    Parameters
    ----------
    estimator : classifier
        Cloned for every fit; its ``predict`` decides.
    X : array-like, shape (n, d)
        Finite numbers.
    y : array-like, shape (n,)
        Labels of two classes. The rarer one is positive (of equally frequent ones the second).
    over : sequence of float >= 0, default (0, 50, 100, 200, 300, 400, 500)
        SMOTE in percent of the minority; 0 is none.
    under : sequence of float > 0, default (10, 15, 25, 50, 75, 100, ..., 2000)
        Minority in percent of the majority that is left.
    cv : int, splitter or iterable of (train, test), default 10
        An integer makes stratified folds, shuffled. No row may be tested twice.
    random_state : int, optional
        Seed of the folds, of all draws, and of ``random_state`` parameters of the estimator that are None.
    n_jobs : int, optional
        Processes; one task per fold.

    Returns
    -------
    RocGrid
        Points, predictions per row and fold, ``hulls``, ``gain()``, ``to_frame()``.

    Raises
    ------
    InputError
        If ``y`` has not two classes, the minority of a training fold fewer than two rows, an amount is out of its range, or ``cv`` tests a
        row twice.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sklearn.tree import DecisionTreeClassifier
    >>> X, y = make_classification(500, weights=[0.9], random_state=0)
    >>> tree = DecisionTreeClassifier(min_samples_leaf=2)
    >>> grid = smote_undersample_grid(tree, X, y, over=(0, 200), under=(25, 100, 400), cv=5, random_state=0)
    >>> grid.to_frame().shape, sorted(grid.hulls)
    ((6, 7), ['smote+under', 'under'])
    >>> grid.hulls["under"].area < 1
    True
    """
    from joblib import Parallel, delayed
    from sklearn.utils import check_X_y

    amounts = _amounts("over", over), _amounts("under", under, open_low=True)
    X, y = check_X_y(X, y, dtype=[np.float64, np.float32])
    classes, codes = np.unique(y, return_inverse=True)
    if len(classes) != 2:
        bad_input("y", f"{len(classes)} classes", "two classes")
    counts = np.bincount(codes)
    rarer = 0 if counts[0] < counts[1] else 1
    positive = codes == rarer
    seed = int(np.random.SeedSequence().generate_state(1)[0]) if random_state is None else random_state
    check_range("random_state", seed, low=0, integer=True)
    folds = list(_splits(cv, X, positive, seed))
    fold = np.full(len(y), -1, dtype=np.int64)
    for number, (_, test) in enumerate(folds):
        if len(np.unique(test)) < len(test) or (fold[test] >= 0).any():
            bad_input("cv", type(cv).__name__, "folds that test every row at most once", "Repeat with other seeds instead.")
        fold[test] = number
    tasks = (delayed(_fold)(estimator, X, y, positive, classes[rarer], *folds[i], *amounts, seed, i) for i in range(len(folds)))
    predicted = np.zeros((len(y), len(amounts[0]) * len(amounts[1])), dtype=bool)
    for (_, test), result in zip(folds, Parallel(n_jobs=n_jobs)(tasks), strict=True):
        predicted[test] = result
    pairs = np.array([(o, u) for o in amounts[0] for u in amounts[1]])
    return RocGrid(pairs[:, 0], pairs[:, 1], positive, fold, predicted)


def hull_gain(
    positive: BoolArray, first: BoolArray, second: BoolArray, draws: int = 1000, random_state: int = 0, level: float = 0.95
) -> MetricInterval:
    """Hull area of the decisions ``first`` (n, P) minus that of ``second`` (n, Q), as in :meth:`RocGrid.gain`."""
    check_range("draws", draws, low=100, integer=True)
    check_range("level", level, low=0.5, high=1.0)
    parts = min(PARTS, int(positive.sum()), int((~positive).sum()))
    if parts < 2:
        bad_input("y", f"{int(positive.sum())} positive and {int((~positive).sum())} negative rows", "at least two of each")
    rng = generator(random_state, "hull-gain")
    part = np.empty(len(positive), dtype=np.int64)
    for rows in (positive, ~positive):
        part[rows] = rng.permutation(int(rows.sum())) % parts
    decisions = [said.astype(np.float64) for said in (first, second)]

    def gains(weights: FloatArray) -> FloatArray:
        one, other = (_area_on_other_rows(_rates(said, positive, part, parts, weights)) for said in decisions)
        return one - other

    (estimate,) = gains(np.ones((1, len(positive))))
    design = Design(2 * part + positive)  # classes keep their sizes in every part
    drawn = np.concatenate([gains(weights) for weights in design.resamples(int(draws), rng)])
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return MetricInterval(float(estimate), float(low), float(high))


def _rates(said: FloatArray, positive: BoolArray, part: IntArray, parts: int, weights: FloatArray) -> FloatArray:
    """(b, parts, 2, P, 2): for each row of weights and each part the points (fpr, tpr), outside the part and inside it."""
    counts = np.empty((len(weights), parts, 2, said.shape[1] + 1))  # rows predicted positive, and (last column) all rows
    for k in range(parts):
        for label in (0, 1):
            rows = (part == k) & (positive == bool(label))
            drawn = weights[:, rows]
            counts[:, k, label, :-1], counts[:, k, label, -1] = drawn @ said[rows], drawn.sum(axis=1)
    both = np.stack([counts.sum(axis=1, keepdims=True) - counts, counts], axis=2)
    return np.asarray(np.moveaxis(np.clip(both[..., :-1] / both[..., -1:], 0.0, 1.0), 3, -1))


def _area_on_other_rows(rates: FloatArray) -> FloatArray:
    """(b,) area under the curve inside a part through the vertices found outside it, mean over the parts; rates (b, parts, 2, P, 2)."""
    areas = np.empty(rates.shape[:2])
    for at in np.ndindex(areas.shape):
        outside, inside = rates[at]
        fpr, tpr = np.concatenate([inside, CORNERS])[hull_positions(outside)].T
        areas[at] = np.trapezoid(tpr, fpr)
    return np.asarray(areas.mean(axis=1))


def _fold(
    estimator: Any,
    X: npt.NDArray[Any],
    y: npt.NDArray[Any],
    positive: BoolArray,
    label: Any,
    train: IntArray,
    test: IntArray,
    over: list[float],
    under: list[float],
    seed: int,
    number: int,
) -> BoolArray:
    """Which test rows are predicted positive, (len(test), P)."""
    rng = generator(seed, "grid", number)
    minority = train[positive[train]]
    majority = rng.permutation(train[~positive[train]])
    if len(minority) < 2:
        bad_input("y", f"{len(minority)} rows of class {label} in a training fold", "at least two", "Use fewer folds.")
    synthetic = _synthetic(X[train], y[train], label, len(minority), max(over), seed_integer(seed, "grid", number, "smote"))
    synthetic = synthetic[rng.permutation(len(synthetic))]
    out = np.empty((len(test), len(over), len(under)), dtype=bool)
    for i, amount in enumerate(over):
        added = synthetic[: round(amount / 100 * len(minority))]
        fitted: dict[int, BoolArray] = {}
        for j, share in enumerate(under):
            left = min(len(majority), max(1, round(100 / share * (len(minority) + len(added)))))
            if left not in fitted:
                rows = np.concatenate([minority, majority[:left]])
                model = _seeded(estimator, seed_integer(seed, "grid", number, "estimator"))
                model.fit(np.concatenate([X[rows], added]), np.concatenate([y[rows], np.full(len(added), label, dtype=y.dtype)]))
                fitted[left] = model.predict(X[test]) == label
            out[:, i, j] = fitted[left]
    return out.reshape(len(test), -1)


def _synthetic(X: npt.NDArray[Any], y: npt.NDArray[Any], label: Any, count: int, percent: float, seed: int) -> npt.NDArray[Any]:
    """As many synthetic minority rows as the largest amount of SMOTE needs."""
    from counterpoise.data import SMOTE

    wanted = round(percent / 100 * count)
    if not wanted:
        return X[:0]
    scale = X.std(axis=0)
    scale[scale == 0] = 1.0
    smote = SMOTE(sampling_strategy={label: count + wanted}, random_state=seed)
    with warnings.catch_warnings():
        # The minority may become the larger class here: that is what strong amounts are for.
        warnings.filterwarnings("ignore", "After over-sampling", UserWarning)
        resampled = smote.fit_resample(X / scale, y)[0]
    return np.asarray(resampled[smote.synthetic_mask_] * scale, dtype=X.dtype)


def _seeded(estimator: Any, seed: int) -> Any:
    """A clone whose seeds that are None are set."""
    from sklearn.base import clone

    model = clone(estimator)
    unset = [name for name, value in model.get_params().items() if name.rpartition("__")[2] == "random_state" and value is None]
    return model.set_params(**dict.fromkeys(unset, seed)) if unset else model


def _splits(cv: Any, X: npt.NDArray[Any], positive: BoolArray, seed: int) -> Iterator[tuple[IntArray, IntArray]]:
    from sklearn.model_selection import StratifiedKFold, check_cv

    if isinstance(cv, (int, np.integer)):
        check_range("cv", int(cv), low=2, high=int(positive.sum()), integer=True)
        cv = StratifiedKFold(int(cv), shuffle=True, random_state=seed_integer(seed, "grid", "folds"))
    return iter(check_cv(cv).split(X, positive))


def _amounts(argument: str, values: Sequence[float], open_low: bool = False) -> list[float]:
    amounts = [values] if isinstance(values, (int, float)) else list(values)
    if not amounts:
        bad_input(argument, "no amount", "at least one")
    for amount in amounts:
        check_range(argument, amount, low=0.0, open_low=open_low)
    if len(set(amounts)) < len(amounts):
        bad_input(argument, amounts, "different amounts")
    return [float(amount) for amount in amounts]
