"""How unequal the classes are, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._errors import bad_input
from counterpoise._stats import gini

from ._shares import percent

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

__all__ = ["ImbalanceReport", "class_imbalance"]


@dataclass(frozen=True, eq=False)
class ImbalanceReport:
    """Result of :func:`class_imbalance`; arrays have one entry per class, in the order of ``names``."""

    names: tuple[str, ...]
    counts: npt.NDArray[np.int64]
    prior: npt.NDArray[np.float64]
    rho: float
    effective_classes: float
    gini: float

    def to_frame(self) -> pl.DataFrame:
        """Columns ``class``, ``count``, ``prior``."""
        import polars as pl

        return pl.DataFrame({"class": list(self.names), "count": self.counts, "prior": self.prior})

    def summary(self) -> str:
        """Two sentences."""
        rare, common = int(np.argmin(self.counts)), int(np.argmax(self.counts))
        if self.rho == 1:
            return f"All {len(self.names)} classes have {self.counts[0]:,} rows."
        return (
            f"Class {self.names[rare]!r} has {self.counts[rare]:,} of {self.counts.sum():,} rows ({percent(self.prior[rare])}), "
            f"1 for every {self.rho:.1f} of class {self.names[common]!r}. "
            f"{len(self.names)} classes count as {self.effective_classes:.2f} equal ones."
        )

    def plot(self) -> Figure:
        """Bars of rows per class, rarest last."""
        from counterpoise.report import _plots

        order = np.argsort(-self.counts, kind="stable")
        return _plots.count_bars([self.names[k] for k in order], self.counts[order], title="Rows per class")


def class_imbalance(y: npt.ArrayLike, names: Sequence[Any] | None = None) -> ImbalanceReport:
    r"""Class counts and three measures of how unequal they are.

    With counts :math:`n_k` and prior :math:`\pi_k = n_k / \sum_j n_j` over K classes:

    .. math::
        \rho = \max_k n_k / \min_k n_k, \qquad
        \text{effective classes} = \exp\Bigl(-\sum_k \pi_k \log \pi_k\Bigr), \qquad
        \text{gini} = \frac{1}{2 K} \sum_{k,l} |\pi_k - \pi_l|

    ``rho`` is 1 and ``effective_classes`` K when all classes are equal; ``gini`` (of the counts) runs from 0 to 1 - 1/K.

    Parameters
    ----------
    y : array-like, shape (n,)
        Labels: integers, strings or booleans.
    names : sequence, length K, default the labels themselves
        One name per class that occurs, in sorted order of the labels.

    Raises
    ------
    InputError
        If ``y`` is not one-dimensional, has missing labels or fewer than two classes, or ``names`` has another length.

    Examples
    --------
    >>> report = class_imbalance(["ok"] * 95 + ["fault"] * 5)
    >>> report.rho, round(report.effective_classes, 3), round(report.gini, 3)
    (19.0, 1.22, 0.45)
    >>> print(report.summary())
    Class 'fault' has 5 of 100 rows (5.0 %), 1 for every 19.0 of class 'ok'. 2 classes count as 1.22 equal ones.
    """
    labels = np.asarray(y)
    if labels.ndim != 1:
        bad_input("y", f"shape {labels.shape}", "one label per row, shape (n,)", "For multi-label targets look at one column at a time.")
    if labels.dtype.kind == "f":
        if np.isnan(labels).any():
            bad_input("y", f"{int(np.isnan(labels).sum())} missing labels", "a label in every row", "Drop these rows first.")
        if (labels != np.round(labels)).any():
            bad_input("y", "numbers with fractions", "class labels", "Bin a continuous target first: Groups.from_bins(y).")
    elif labels.dtype.kind == "O":
        missing = (labels == np.array(None, dtype=object)) | (labels != labels)
        if missing.any():
            bad_input("y", f"{int(missing.sum())} missing labels", "a label in every row", "Drop these rows first.")
    classes, counts = np.unique(labels, return_counts=True)
    if classes.size < 2:
        bad_input("y", f"{classes.size} class", "at least two classes")
    shown = tuple(str(label) for label in (classes.tolist() if names is None else names))
    if len(shown) != classes.size:
        bad_input("names", f"{len(shown)} names", f"one for each of the {classes.size} classes in y")
    prior = counts / counts.sum()
    entropy = -np.sum(prior * np.log(prior))
    return ImbalanceReport(
        names=shown,
        counts=counts.astype(np.int64),
        prior=prior,
        rho=float(counts.max() / counts.min()),
        effective_classes=float(np.exp(entropy)),
        gini=gini(prior),
    )
