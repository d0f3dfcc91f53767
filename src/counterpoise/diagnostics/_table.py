"""The first answer for a table: how unequal its groups are, whose step a linear head would take, and how well each group is then served."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._errors import bad_input, check_range
from counterpoise._seeding import generator

from ._head import LEAST, _as_groups, _sentence, head_shares, start_residual
from ._hint import StageHint, stage_hint
from ._imbalance import ImbalanceReport, class_imbalance
from ._shares import Array, GroupShares, dominance_sentence, hints, percent, sum_by

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

    from counterpoise.groups import Groups
    from counterpoise.report import DiagnosisPart

__all__ = ["StudyDiagnosis", "diagnose"]

FOLDS = 3
FLOOR = 20  # rows of a group that are kept, if it has them, however large the table is
BINS = 10  # ranges of a continuous target


@dataclass(frozen=True, eq=False)
class StudyDiagnosis:
    """Result of :func:`diagnose`; arrays have one entry per group, in the order of ``names``.

    ``counts`` rows in the whole table and ``prior`` their share; ``imbalance`` of the classes (None for regression);
    ``start`` and ``fit``: shares of the gradient of a linear head with zero weights and of the fitted one; ``correct``: what
    ``correct_name`` says (``recall`` of a class, ``accuracy`` of another group, both at the default decision; ``mae`` for regression) and
    ``loss``, both of rows that the head was not fitted on; ``moved`` the recall of classes once the decision is corrected for their
    frequencies, argmax p_c / pi_c (None for other groups and regression); ``rows`` how many rows were used; ``kind`` the word for a group.
    """

    task: str
    kind: str
    names: tuple[str, ...]
    counts: npt.NDArray[np.int64]
    prior: Array
    imbalance: ImbalanceReport | None
    start: GroupShares
    fit: GroupShares
    correct: Array
    correct_name: str
    loss: Array
    moved: Array | None
    rows: int

    @property
    def headline(self) -> str:
        """One sentence: who dominates the start of training."""
        return _sentence(dominance_sentence(self.start, self.kind, "at the start of training"))

    @property
    def hints(self) -> tuple[str, ...]:
        """What the numbers suggest, each sentence with its numbers."""
        return hints(self.start, self.kind)

    @property
    def stage_hint(self) -> StageHint:
        """Which stage to treat beyond a well-chosen threshold, with the factor and the numbers that led there: a hint, no proof."""
        return stage_hint(
            self.start,
            self.fit,
            self.counts,
            self.correct if self.moved is None else self.moved,
            self.loss,
            kind=self.kind,
            regression=self.task == "regression",
        )

    @property
    def hinted_stage(self) -> str:
        """The stage of :attr:`stage_hint`: ``data``, ``loss``, ``gradient`` or ``nothing``, in the words of a study's arms."""
        return self.stage_hint.stage

    def to_frame(self) -> pl.DataFrame:
        """One row per group: counts, shares at the start and at the fit with their factors, recall (accuracy, MAE) and loss.

        ``recall_moved`` is the recall with a moved threshold, where the groups are the classes.
        """
        import polars as pl

        columns = ("share", "rho", "alpha", "alpha_unbiased", "alignment", "parity", "magnitude_share")
        return pl.DataFrame(
            {"group": list(self.names), "count": self.counts, "pi": self.prior}
            | {f"start_{name}": getattr(self.start, name) for name in columns}
            | {f"fit_{name}": getattr(self.fit, name) for name in columns}
            | {self.correct_name: self.correct}
            | ({} if self.moved is None else {"recall_moved": self.moved})
            | {"loss": self.loss}
        )

    def summary(self) -> str:
        """Who dominates, who is served worst, what the fit leaves, the hints, and the stage they point to."""
        lines = [self.headline]
        if np.isfinite(self.correct).any():
            regression = self.correct_name == "mae"
            worst = int(np.nanargmax(self.correct) if regression else np.nanargmin(self.correct))
            value = f"{self.correct[worst]:.3g}" if regression else percent(self.correct[worst])
            what = "mean absolute error" if regression else self.correct_name
            at = " at 0.5" if self.task == "binary" else ""
            lines.append(f"Served worst by a plain linear head: {self.kind} {self.names[worst]!r}, {what} {value}{at}.")
        if self.imbalance is not None:
            lines.append(self.imbalance.summary())
        lines.extend(self.hints)
        lines.append(self.stage_hint.sentence())
        return "\n".join(lines)

    def part(self) -> DiagnosisPart:
        """The same numbers as the part of a report."""
        from counterpoise.report import DiagnosisPart

        lines = self.summary().splitlines()
        return DiagnosisPart(
            headline=self.headline,
            sentences=tuple(line for line in lines if line != self.headline),
            names=self.names,
            counts=self.counts,
            pi=self.prior,
            share=self.start.share,
            fit_share=self.fit.magnitude_share,
            correct=self.correct,
            correct_name=self.correct_name,
            loss=self.loss,
            kind=self.kind,
        )

    def plot(self) -> Figure:
        """Share of the rows against share of the gradient against recall (or error), one line per group."""
        from counterpoise.report import _plots

        return _plots.share_figure(
            self.names,
            self.prior,
            self.start.share,
            fit_share=self.fit.magnitude_share,
            correct=self.correct,
            correct_name=self.correct_name,
        )


def diagnose(
    X: npt.ArrayLike | Callable[[npt.NDArray[np.int64]], npt.ArrayLike],
    y: npt.ArrayLike,
    class_names: Sequence[str] | None = None,
    groups: Groups | None = None,
    *,
    max_rows: int = 20_000,
    seed: int = 0,
) -> StudyDiagnosis:
    """Diagnose a table before a study: class counts, shares of the step of a linear head, recall and loss per group.

    A logistic head (for regression a ridge head on the standardized target) is fitted on at most ``max_rows`` rows, drawn within groups
    with at least 20 rows of each; rows then stand for as many rows of the table as they were drawn from, so shares refer to the whole
    table. Recall and loss come from three folds, each predicted by a head that has not seen it.

    Parameters
    ----------
    X : array, shape (n, p), or callable
        Encoded features; NaN is filled with the column's mean, columns are standardized. A function from row numbers to their features
        serves tables too large to be encoded whole.
    y : array, shape (n,)
        Integer codes 0..C-1 of the classes, or the continuous target.
    class_names : sequence of str, length C, or None for regression
        Names of the classes.
    groups : Groups, default the classes; for regression ten ranges of equal width
        By which to split.
    max_rows : int, default 20,000
        Rows used for fitting; a head of this kind does not change visibly with more.
    seed : int, default 0
        Of drawing rows and folds.

    Raises
    ------
    InputError
        If there are fewer than two classes, the target does not vary, or shapes do not fit.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> data = load_breast_cancer()
    >>> diagnosis = diagnose(data.data, data.target, ["malignant", "benign"])
    >>> print(diagnosis.headline)
    Class 'benign' is 62.7 % of the rows and 51.6 % of the step at the start of training.
    """
    y = np.asarray(y)
    if not callable(X):
        X = np.asarray(X, dtype=np.float64)
        if X.ndim != 2 or X.shape[0] != len(y) or not len(y):
            bad_input("X", f"shape {X.shape}", f"a matrix with the {len(y)} rows of y")
    check_range("max_rows", max_rows, low=2, integer=True)
    groups = _default_groups(y, class_names) if groups is None else groups
    ids, names, group_kind = _as_groups(groups, len(y))
    # Ranges without a row would only be empty lines.
    present, ids = np.unique(ids, return_inverse=True)
    names = tuple(names[k] for k in present)
    counts = np.bincount(ids)
    rows, row_weight = _draw(ids, y if class_names is not None else None, max_rows, seed)
    H = _standardized(np.asarray(X(rows), dtype=np.float64) if callable(X) else X[rows])
    fold = _folds(ids[rows] if class_names is None else y[rows], seed)
    drawn = ids[rows]

    if class_names is None:
        target = _standardized(y[rows].astype(np.float64)[:, None])
        scale = float(np.std(y[rows])) or 1.0
        fitted = _ridge(H, target[:, 0], row_weight)(H)[:, None]
        fit_residual, begin_residual = fitted - target, -target
        honest = _cross_fit(fold, lambda train: _ridge(H[train], target[train, 0], row_weight[train]), H)
        error = np.abs(honest - target[:, 0])
        correct, loss, correct_name = error * scale, 0.5 * (error * scale) ** 2, "mae"
        moved = None
        imbalance = None
    else:
        codes, C = y[rows].astype(np.int64), len(class_names)
        columns = 1 if C == 2 else C
        proba = _logistic(H, codes, C, row_weight)(H)
        fit_residual = (proba - np.eye(C)[codes])[:, -columns:]
        begin_residual = start_residual(codes, C, columns=columns)
        honest = _cross_fit(fold, lambda train: _logistic(H[train], codes[train], C, row_weight[train]), H)
        correct = (honest.argmax(axis=1) == codes).astype(np.float64)
        # A class that the other folds lack has probability 0; one part in the number of rows keeps its loss finite.
        loss = -np.log(np.maximum(honest[np.arange(len(codes)), codes], max(1.0 / (len(codes) + C), LEAST)))
        imbalance = class_imbalance(y, class_names)
        correct_name = "recall" if names == tuple(str(name) for name in class_names) else "accuracy"
        frequency = np.maximum(np.bincount(y.astype(np.int64), minlength=C), 1) / len(y)
        moved = ((honest / frequency).argmax(axis=1) == codes).astype(np.float64) if correct_name == "recall" else None

    mass = sum_by(drawn, row_weight, len(names))
    return StudyDiagnosis(
        task="regression" if class_names is None else "binary" if len(class_names) == 2 else "multiclass",
        kind={"class": "class", "bin": "range"}.get(group_kind, "group"),
        names=names,
        counts=counts.astype(np.int64),
        prior=counts / counts.sum(),
        imbalance=imbalance,
        start=replace(head_shares(begin_residual, H, drawn, row_weight=row_weight), names=names),
        fit=replace(head_shares(fit_residual, H, drawn, row_weight=row_weight), names=names),
        correct=sum_by(drawn, row_weight * correct, len(names)) / mass,
        correct_name=correct_name,
        loss=sum_by(drawn, row_weight * loss, len(names)) / mass,
        moved=None if moved is None else sum_by(drawn, row_weight * moved, len(names)) / mass,
        rows=len(rows),
    )


def _default_groups(y: npt.NDArray[Any], class_names: Sequence[str] | None) -> Groups:
    from counterpoise.groups import Groups

    if class_names is None:
        if not np.isfinite(y).all():
            bad_input("y", f"{int((~np.isfinite(y)).sum())} values that are not finite", "a number in every row", "Drop these rows first.")
        if np.ptp(y) == 0:
            bad_input("y", f"the constant {y[0]}", "a target that varies")
        return Groups.from_bins(y.astype(np.float64), bins=BINS)
    if y.dtype.kind not in "iub" or y.min() < 0 or y.max() >= len(class_names):
        bad_input("y", f"an array of {y.dtype}", f"integer codes from 0 to {len(class_names) - 1}, one for each class name")
    return Groups(y.astype(np.int64), tuple(str(name) for name in class_names), "class")


def _draw(ids: npt.NDArray[np.int64], codes: npt.NDArray[Any] | None, most: int, seed: int) -> tuple[npt.NDArray[np.int64], Array]:
    """Rows to use, and how many rows of the table each stands for; strata are the groups, within them the classes."""
    n = len(ids)
    if n <= most:
        return np.arange(n), np.ones(n)
    strata = ids if codes is None else ids * (int(codes.max()) + 1) + codes.astype(np.int64)
    _, strata, size = np.unique(strata, return_inverse=True, return_counts=True)
    quota = np.minimum(size, np.maximum(np.floor(size * most / n), FLOOR)).astype(np.int64)
    # The rank of each row in a random order of its stratum: the first `quota` of each are drawn.
    order = np.lexsort((generator(seed, "diagnose", "rows").random(n), strata))
    rank = np.empty(n, dtype=np.int64)
    rank[order] = np.arange(n) - np.repeat(np.cumsum(size) - size, size)
    rows = np.flatnonzero(rank < quota[strata])
    weight = (size / quota)[strata[rows]]
    return rows, weight / weight.mean()


def _folds(strata: npt.NDArray[Any], seed: int) -> npt.NDArray[np.int64]:
    """Folds that deal the rows of each stratum out in turn; a stratum with one row is no error."""
    order = np.lexsort((generator(seed, "diagnose", "folds").random(len(strata)), strata))
    fold = np.empty(len(strata), dtype=np.int64)
    fold[order] = np.arange(len(strata)) % FOLDS
    return fold


def _cross_fit(fold: npt.NDArray[np.int64], fit: Any, H: Array) -> Array:
    parts = []
    for k in np.unique(fold):
        held = np.flatnonzero(fold == k)
        parts.append((held, fit(np.flatnonzero(fold != k) if np.unique(fold).size > 1 else held)(H[held])))
    result = np.empty((len(fold), *parts[0][1].shape[1:]))
    for held, values in parts:
        result[held] = values
    return result


def _logistic(H: Array, codes: npt.NDArray[np.int64], C: int, row_weight: Array) -> Any:
    """Fit quickly; returns the function features -> probabilities (n, C), with zeros for classes that are not in ``codes``."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    present = np.unique(codes)
    if present.size == 1:
        return lambda features: np.eye(C)[np.full(len(features), present[0])]
    with warnings.catch_warnings():
        # A rough fit is enough to say whose gradient it is.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=1.0, tol=1e-3, max_iter=100).fit(H, codes, sample_weight=row_weight)

    def proba(features: Array) -> Array:
        result = np.zeros((len(features), C))
        result[:, present] = model.predict_proba(features)
        return result

    return proba


def _ridge(H: Array, target: Array, row_weight: Array) -> Any:
    from sklearn.linear_model import Ridge

    return Ridge(alpha=1.0).fit(H, target, sample_weight=row_weight).predict


def _standardized(X: Array) -> Array:
    """Columns with mean 0 and variance 1; NaN becomes the mean, columns that do not vary become 0."""
    known = np.isfinite(X)
    number = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, X, 0.0).sum(axis=0) / number
    centered = np.where(known, X - mean, 0.0)
    deviation = np.sqrt((centered**2).sum(axis=0) / number)
    return centered / np.where(deviation > 0, deviation, 1.0)
