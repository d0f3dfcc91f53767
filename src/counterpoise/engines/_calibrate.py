"""The strength of a penalty, chosen by what it does to held-out predictions: divergence between groups against loss."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import pdtr
from sklearn.base import clone, is_classifier
from sklearn.model_selection import check_cv
from sklearn.utils import _safe_indexing
from torch import Tensor

from counterpoise._errors import bad_input, check_range
from counterpoise._seeding import generator
from counterpoise.diagnostics._intersections import attribute_table, cells_of_attributes, encode_attributes
from counterpoise.losses import DistanceCovariancePenalty
from counterpoise.metrics._by_group import Densities

from ._fair_penalty import _FairPenalty

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

__all__ = ["CalibrationPath", "calibrate_penalty", "poisson_rps"]

Array = npt.NDArray[np.float64]

BANDWIDTH = 0.15  # of the densities: as it is for probabilities, in standard deviations of the unpenalized predictions otherwise
PERMUTATIONS = 39  # of held-out rows, that say how large a penalty is by chance
MOST_ROWS = 2000  # of a fold, for that
LEVEL = 0.05
NO_DEPENDENCE = "The unpenalized predictions show no dependence beyond chance: nothing to penalize."


@dataclass(frozen=True, eq=False)
class CalibrationPath:
    """Result of :func:`calibrate_penalty`: L strengths, F folds.

    Attributes:
        strength: (L,) in increasing order, from 0: what the penalty costs the unpenalized model, in units of its loss.
        lam: (L,) the same as the estimators' ``lam``.
        jsd: (F, L) Jensen-Shannon divergence between the cells on held-out rows, in bits.
        cost: (F, L) ranked probability score or mean squared error on held-out rows; ``cost_name`` says which.
        psi: (F, L) the penalty on held-out rows.
        selected: index of the chosen strength. rule: how it was chosen, one sentence.
        target_jsd: as given.
    """

    strength: Array
    lam: Array
    jsd: Array
    cost: Array
    cost_name: str
    psi: Array
    selected: int
    rule: str
    target_jsd: float | None

    @property
    def best_lam(self) -> float:
        """The chosen ``lam``."""
        return float(self.lam[self.selected])

    def to_frame(self) -> pl.DataFrame:
        """One row per strength: ``strength``, ``lam``, means over the folds of ``jsd``, ``cost`` and ``psi``, ``selected``."""
        import polars as pl

        means = {name: getattr(self, name).mean(axis=0) for name in ("jsd", "cost", "psi")}
        return pl.DataFrame({"strength": self.strength, "lam": self.lam, **means, "selected": np.arange(len(self.lam)) == self.selected})

    def __repr__(self) -> str:
        return f"CalibrationPath({self.summary().splitlines()[0]})"

    def summary(self) -> str:
        """The chosen strength, what it buys, and what it costs."""
        jsd, cost = self.jsd.mean(axis=0), self.cost.mean(axis=0)
        k = self.selected
        change = "" if not cost[0] else f" ({cost[k] / cost[0] - 1:+.1%})"
        bought = f"lam = {self.best_lam:.4g}: JSD {jsd[0]:.3g} -> {jsd[k]:.3g} bits"
        return f"{bought}, {self.cost_name} {cost[0]:.4g} -> {cost[k]:.4g}{change}.\n{self.rule}"

    def plot(self) -> Figure:
        """Loss against divergence, one point per strength."""
        from counterpoise.report._cells import front_figure

        return front_figure(self.lam, self.jsd.mean(axis=0), self.cost.mean(axis=0), self.cost_name, self.selected, self.target_jsd)


def calibrate_penalty(
    estimator: Any,
    X: Any,
    y: Any,
    attributes: Any,
    grid: Sequence[float] | npt.NDArray[Any],
    cv: Any = 5,
    target_jsd: float | None = None,
    *,
    sample_weight: Any = None,
) -> CalibrationPath:
    r"""Fit a penalized estimator along a grid of strengths and choose one on held-out rows.

    ``lam`` has the scale of predictions and attributes, so the grid is in relative strengths: with :math:`\psi_0` the held-out penalty
    of the model trained without it (beyond that of constant predictions, which a joint penalty has where attributes depend on each other),
    strength g is :math:`\lambda = g / \psi_0`, a penalty that costs that model g in units of its loss. 0.03 to 3 covers weak to very
    strong. Where :math:`\psi_0` is not above what permuted rows have (39 permutations, 5 %), there is no such unit and nothing to
    penalize: the path ends with strength 0. The hyper-parameters of the estimator stay as they are: tune them first, without a penalty.

    Chosen is the smallest strength whose mean divergence is at most ``target_jsd`` (the largest of the grid if none is); without a target
    the knee of the front of loss against divergence: the point farthest below the line from no penalty to the strongest. Means over the
    folds are compared, without a test.

    Parameters
    ----------
    estimator : FairPenaltyClassifier or FairPenaltyRegressor
        Cloned for every fit.
    X, y : array-like, shapes (n, d) and (n,)
    attributes : table, mapping from name to column, or array of n rows
        Cells of the divergence are their intersections, numbers in quarters.
    grid : sequence of float >= 0
        Relative strengths; 0 is always added.
    cv : int, splitter or iterable of (train, test), default 5
        As in scikit-learn; give a shuffled splitter where the order of rows means something.
    target_jsd : float > 0, optional
        Divergence to get below, in bits.
    sample_weight : array-like, shape (n,), optional
        For ``fit``; with a Poisson loss the exposures, of which the ranked probability score of the counts is made.

    Returns
    -------
    CalibrationPath

    Raises
    ------
    InputError
        If the estimator is another one, the grid holds no strength above 0, or the data are as ``fit`` cannot use them.

    Examples
    --------
    >>> from counterpoise.engines import FairPenaltyClassifier
    >>> rng = np.random.default_rng(0)
    >>> sex = rng.integers(2, size=300)
    >>> X = np.column_stack([sex + 0.3 * rng.normal(size=300), rng.normal(size=300)])
    >>> model = FairPenaltyClassifier((), lr=0.05, max_steps=60, random_state=0)
    >>> path = calibrate_penalty(model, X, X.sum(axis=1) > 0.5, sex, grid=[0.1, 1], cv=3)
    >>> path.jsd.mean(axis=0)[0] > 3 * path.jsd.mean(axis=0)[-1]
    np.True_
    """
    if not isinstance(estimator, _FairPenalty):
        bad_input("estimator", type(estimator).__name__, "a FairPenaltyClassifier or FairPenaltyRegressor")
    strength = _grid(grid)
    if target_jsd is not None:
        check_range("target_jsd", target_jsd, low=0.0, open_low=True)
    true = np.asarray(y)
    table = attribute_table(attributes, len(true))
    if sample_weight is not None and np.shape(sample_weight) != (len(true),):
        bad_input("sample_weight", f"shape {np.shape(sample_weight)}", f"one weight for each row, shape ({len(true)},)")
    folds = list(check_cv(cv, true, classifier=is_classifier(estimator)).split(X, true))
    task = _Task(estimator, X, true, table, sample_weight, cells_of_attributes(table), folds)
    plain = list(task.fits(0.0))
    psi_0 = float(np.mean([fit.psi() - fit.without_predictions().psi() for fit in plain]))
    depends = psi_0 > 0 and _p_value(plain) <= LEVEL
    strength = strength if depends else strength[:1]
    lam = strength / psi_0 if depends else strength
    found = [plain, *(list(task.fits(value)) for value in lam[1:])]
    width = BANDWIDTH if is_classifier(estimator) else BANDWIDTH * float(np.std(np.concatenate([fit.predictions for fit in plain])))
    scores = [[(*task.scores(fit.predictions, fold, width), fit.psi()) for fit, fold in zip(run, folds, strict=True)] for run in found]
    jsd, cost, psi = np.moveaxis(np.array(scores), (0, 1), (2, 1))
    selected, rule = _choose(jsd.mean(axis=0), cost.mean(axis=0), target_jsd) if depends else (0, NO_DEPENDENCE)
    return CalibrationPath(strength, lam, jsd, cost, task.cost_name, psi, selected, rule, target_jsd)


def poisson_rps(mean: npt.ArrayLike, count: npt.ArrayLike) -> Array:
    r"""Ranked probability score of Poisson predictions, per row: :math:`\sum_k (F(k) - [y \le k])^2` with F the distribution function.

    >>> poisson_rps([0.0, 1.0], [0, 0]).round(4)
    array([0.    , 0.4762])
    """
    mu, y = np.broadcast_arrays(np.asarray(mean, dtype=np.float64), np.asarray(count, dtype=np.float64))
    total = np.zeros(mu.shape)
    last = int(np.ceil(max(float(y.max(initial=0)), float(mu.max(initial=0)) + 10 * np.sqrt(float(mu.max(initial=0))) + 10)))
    for k in range(last + 1):
        total += (pdtr(k, mu) - (y <= k)) ** 2
    return total


@dataclass(frozen=True, eq=False)
class _Fit:
    """Predictions of held-out rows, and what the penalty is made of: columns (n, m) and the attributes."""

    predictions: Array
    columns: Tensor
    attributes: dict[Any, Tensor]
    penalty: DistanceCovariancePenalty

    def psi(self, order: npt.NDArray[np.int64] | None = None, rows: npt.NDArray[np.int64] | None = None) -> float:
        """The penalty; or that of the predictions ``order`` beside the attributes of ``rows``."""
        columns = self.columns if order is None else self.columns[torch.from_numpy(order)]
        parts = self.attributes if rows is None else {name: part[torch.from_numpy(rows)] for name, part in self.attributes.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of attributes that are constant in a fold
            return float(torch.stack([self.penalty(column, parts) for column in columns.unbind(dim=1)]).mean())

    def without_predictions(self) -> _Fit:
        return replace(self, columns=torch.zeros_like(self.columns))


def _p_value(fits: Sequence[_Fit]) -> float:
    """Share of permutations within the folds, the data among them, whose mean penalty is at least as large."""
    rng = generator(0, "calibrate-penalty")
    total = np.zeros(1 + PERMUTATIONS)
    for fit in fits:
        rows = rng.permutation(len(fit.columns))[:MOST_ROWS]
        total += [fit.psi(rows, rows), *(fit.psi(rng.permutation(rows), rows) for _ in range(PERMUTATIONS))]
    return float((total >= total[0] - 1e-12 * abs(total[0])).mean())


@dataclass(frozen=True, eq=False)
class _Task:
    estimator: Any
    X: Any
    y: npt.NDArray[Any]
    table: Any
    sample_weight: Any
    cells: Any
    folds: list[tuple[Any, Any]]

    @property
    def cost_name(self) -> str:
        return {"squared": "mean squared error", "poisson": "RPS"}.get(self.estimator.loss, "Brier score")

    def fits(self, lam: float) -> Iterator[_Fit]:
        """One for each fold."""
        for number, (train, test) in enumerate(self.folds):
            weight = None if self.sample_weight is None else _safe_indexing(np.asarray(self.sample_weight), train)
            model = clone(self.estimator).set_params(lam=lam)
            attributes = _safe_indexing(self.table, train)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of attributes that are constant in a fold
                model.fit(_safe_indexing(self.X, train), self.y[train], attributes=attributes, sample_weight=weight)
            rows = _safe_indexing(self.X, test)
            parts = encode_attributes(model.attribute_encoder_, _safe_indexing(self.table, test))
            if is_classifier(model):
                if len(model.classes_) < (classes := len(np.unique(self.y))):
                    given = f"a split whose fold {number} trains on {len(model.classes_)} of {classes} classes"
                    bad_input("cv", given, "all classes in every fold", "StratifiedKFold with fewer folds may do.")
                predictions = model.predict_proba(rows)
            else:
                predictions = model.predict(rows)
            yield _Fit(predictions, model._penalized(rows), parts, model._penalty())

    def scores(self, predictions: Array, fold: tuple[Any, Any], width: float) -> tuple[float, float]:
        """Divergence between the cells and loss of held-out predictions: (n,), or (n, C) probabilities."""
        test = fold[1]
        true, codes = self.y[test], self.cells.ids[test]
        columns = predictions[:, None] if predictions.ndim == 1 else predictions[:, 1:] if predictions.shape[1] == 2 else predictions
        divergence = float(np.mean([self._divergence(column, codes, width) for column in columns.T]))
        if predictions.ndim == 2:
            hit = true[:, None] == np.unique(self.y)
            return divergence, float(((predictions - hit) ** 2).sum(axis=1).mean() / (2 if predictions.shape[1] == 2 else 1))
        if self.estimator.loss == "poisson":
            exposure = 1.0 if self.sample_weight is None else np.asarray(self.sample_weight, dtype=np.float64)[test]
            return divergence, float(poisson_rps(predictions * exposure, true * exposure).mean())
        return divergence, float(((predictions - true) ** 2).mean())

    def _divergence(self, values: Array, codes: npt.NDArray[np.int64], width: float) -> float:
        points = float(values.max() - values.min()) / 999
        return Densities(values, "kde", max(width, points) or 1.0).divergence(codes, len(self.cells), False, np.ones(len(values)))


def _grid(grid: Any) -> Array:
    try:
        values = np.unique(np.asarray(grid, dtype=np.float64))
    except (TypeError, ValueError):
        values = np.full(1, np.nan)
    if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any() or not (values > 0).any():
        bad_input("grid", grid, "finite strengths >= 0, at least one of them above 0", "np.geomspace(0.03, 3, 7) is a start.")
    return np.concatenate([[0.0], values[values > 0]])


def _choose(jsd: Array, cost: Array, target: float | None) -> tuple[int, str]:
    """Index of the chosen strength, and the sentence that says why."""
    if target is not None:
        low = np.flatnonzero(jsd <= target)
        if len(low):
            return int(low[0]), f"The smallest strength with a divergence of at most {target:g} bits."
        return len(jsd) - 1, f"No strength of the grid reaches {target:g} bits; this is the largest. Extend the grid."
    if not jsd.min() < jsd[0]:
        return 0, "No strength lowers the divergence on held-out rows."
    x = (jsd - jsd.min()) / (jsd[0] - jsd.min())
    span = cost.max() - cost[0]
    y = (cost - cost[0]) / span if span > 0 else np.zeros(len(cost))
    return int(np.argmax(1 - x - y)), "The knee of loss against divergence: farthest below the line between no penalty and the strongest."
