r"""AUROC and AUPRC taken apart (McDermott et al. 2024, arXiv:2401.06091, Theorem 1): which positives and groups keep each from 1.

What is unbalanced: both metrics are an average over the positives, but they weigh the false positives that a positive loses to differently.
With the threshold t at the score of a positive, the false positive rate :math:`FPR(t) = P(f \ge t \mid y = 0)`, the firing rate
:math:`R(t) = P(f \ge t)` and the prevalence :math:`\pi = P(y = 1)`,

.. math:: AUROC = 1 - E_{t \sim p_+}[FPR(t)], \qquad AUPRC = 1 - (1 - \pi)\, E_{t \sim p_+}[FPR(t) / R(t)].

AUPRC divides by the firing rate: a false positive among the highest scores costs most, and so do those of the group that lives there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import xlogy

from counterpoise._errors import bad_input, listing
from counterpoise.groups import _to_numpy

from ._curves import curve_of
from ._inputs import BoolArray, FloatArray, IntArray, read_groups, read_positive, read_score, read_weight

if TYPE_CHECKING:
    import polars as pl

__all__ = ["CurveDecomposition", "auroc_auprc_decomposition", "group_curves", "log_tpr_auc", "one_vs_rest"]

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class CurveDecomposition:
    """Result of :func:`auroc_auprc_decomposition`. Arrays have one entry per positive row, in the order of the rows.

    Attributes:
        auroc, auprc: the metrics; ``auprc`` is average precision. prevalence: what ``auprc`` is for scores that know nothing.
        index: (n_pos,) rows of the positives.
        weight: (n_pos,) share of each among the positives; sums to 1.
        fpr, firing_rate: (n_pos,) share of the negatives, and of all rows, scored at least as high.
        auroc_loss, auprc_loss: (n_pos,) what keeps each metric from 1: ``auroc = 1 - weight @ auroc_loss`` and
            ``auprc = 1 - weight @ auprc_loss``. Without ties ``auroc_loss`` is ``fpr``; a tie counts one half.
        by_group: one row per group (None without groups): ``rows``, ``positives``, ``prevalence``; ``auroc`` and ``auprc`` within the
            group; ``auroc_loss_share`` and ``auprc_loss_share``, the part of the pooled 1 - metric that its positives hold; ``note`` where
            a group has one class only, whose own metrics are NaN.
    """

    auroc: float
    auprc: float
    prevalence: float
    index: IntArray
    weight: FloatArray
    fpr: FloatArray
    firing_rate: FloatArray
    auroc_loss: FloatArray
    auprc_loss: FloatArray
    by_group: pl.DataFrame | None = None

    def to_frame(self) -> pl.DataFrame:
        """One row per positive."""
        import polars as pl

        names = ("index", "weight", "fpr", "firing_rate", "auroc_loss", "auprc_loss")
        return pl.DataFrame({name: getattr(self, name) for name in names})

    def summary(self) -> str:
        """The two identities in numbers, and the group that holds most of what is missing."""
        ratio = 0.0 if self.auprc == 1 else (1 - self.auprc) / (1 - self.prevalence)
        lines = [
            f"AUROC {self.auroc:.4f} = 1 - {1 - self.auroc:.4f}, the mean false positive rate at the scores of "
            f"{len(self.index):,} positives.",
            f"AUPRC {self.auprc:.4f} = 1 - {1 - self.prevalence:.4f} x {ratio:.4f}, the share of negatives times the mean of false "
            f"positive rate over firing rate. Scores that know nothing: {self.prevalence:.4f}.",
        ]
        if self.by_group is not None and self.auprc < 1:
            most = self.by_group.sort("auprc_loss_share", descending=True, nulls_last=True).row(0, named=True)
            lines.append(
                f"Group {most['group']!r} has {100 * most['positives'] / len(self.index):.1f} % of the positives and holds "
                f"{100 * most['auroc_loss_share']:.1f} % of what AUROC lacks, {100 * most['auprc_loss_share']:.1f} % of what AUPRC lacks."
            )
        return "\n".join(lines)


def auroc_auprc_decomposition(
    y_true: Any, y_score: Any, sample_weight: Any = None, groups: Any = None, *, pos_label: Any = None
) -> CurveDecomposition:
    r"""AUROC and AUPRC as exact averages over the positives, with what each positive and each group takes from them.

    With F the weight of the negatives scored at or above a positive, :math:`F_>` that of the negatives above it, T that of the positives at
    or above it, N that of all negatives, and means over the positives:

    .. math:: AUROC = 1 - \text{mean}\,\frac{F_> + F}{2 N}, \qquad AUPRC = 1 - \text{mean}\,\frac{F}{T + F}

    These equal ``sklearn.metrics.roc_auc_score`` and ``average_precision_score`` up to rounding, tied scores and weights included, at the
    price of one of them: O(n log n). Area under a precision-recall curve by trapezoids is another, optimistic number.

    Parameters
    ----------
    y_true : array-like, shape (n,)
        Labels of two classes: True and False, 1 and 0, 1 and -1; any others with ``pos_label``. A list, an array, a tensor, or a column of
        a polars or pandas frame, as all other arguments.
    y_score : array-like, shape (n,)
        Scores, higher for what is more likely positive: probabilities, log-odds, distances. Infinite ones are in order.
    sample_weight : array-like, shape (n,), optional
        How much each row counts. Rows of weight 0 take no part.
    groups : Groups or labels, shape (n,), optional
        What the rows are reported by. Rows without a group are reported as "(none)".
    pos_label : label, optional
        The positive one.

    Raises
    ------
    InputError
        (a ValueError) If a class is missing, a score is NaN, a weight is negative or all are 0, labels are not of two classes, or lengths
        do not match.

    Examples
    --------
    >>> found = auroc_auprc_decomposition([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    >>> found.auroc, round(found.auprc, 4), found.prevalence
    (0.75, 0.8333, 0.5)
    >>> found.index, found.auroc_loss, found.auprc_loss.round(4)
    (array([2, 3]), array([0.5, 0. ]), array([0.3333, 0.    ]))
    >>> found = auroc_auprc_decomposition([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], groups=["a", "b", "a", "b"])
    >>> found.by_group.select("group", "auroc", "auroc_loss_share").rows()
    [('a', 1.0, 1.0), ('b', 1.0, 0.0)]
    """
    positive = read_positive(y_true, pos_label)
    n = len(positive)
    score = read_score(y_score, n)
    weight = None if sample_weight is None else read_weight(sample_weight, n)
    ids, names = (None, ()) if groups is None else read_groups(groups, n)
    index = np.flatnonzero(positive)
    if weight is not None:
        kept = _weighing(weight, positive)
        index = index[kept[positive]]
        positive, score, weight = positive[kept], score[kept], weight[kept]
        ids = None if ids is None else ids[kept]
    curve = curve_of(score, positive, weight)
    at, fired = curve.block, curve.true + curve.false
    own = (np.ones(len(at)) if weight is None else weight[positive]) / curve.positives
    auroc_loss, auprc_loss = curve.fpr[at], (curve.false / fired)[at]
    by_group = None
    if ids is not None:
        shares = {
            "auroc_loss_share": _shares(own * auroc_loss, ids[positive], len(names)),
            "auprc_loss_share": _shares(own * auprc_loss, ids[positive], len(names)),
        }
        by_group = group_curves(score, positive, ids, names, weight, shares)
    return CurveDecomposition(
        auroc=curve.auroc,
        auprc=curve.auprc,
        prevalence=curve.prevalence,
        index=index,
        weight=own,
        fpr=(curve.false / curve.negatives)[at],
        firing_rate=(fired / (curve.positives + curve.negatives))[at],
        auroc_loss=auroc_loss,
        auprc_loss=auprc_loss,
        by_group=by_group,
    )


def log_tpr_auc(y_true: Any, y_score: Any, *, pos_label: Any = None) -> float:
    r"""Area under the ROC curve with a logarithmic vertical axis, :math:`\int_0^1 \ln TPR \; dFPR \le 0` (Theorem 2).

    Where positives are common, it is to AUPRC what the area itself is to AUROC: with the prevalence :math:`\pi` near 1,

    .. math:: AUPRC \approx 1 + \frac{1 - \pi}{\pi} \int_0^1 \ln TPR \; dFPR .

    The curve runs straight through tied scores, as it does for AUROC, and the integral of the logarithm along each straight piece is exact.

    Parameters
    ----------
    y_true, y_score, pos_label
        As in :func:`auroc_auprc_decomposition`.

    Returns
    -------
    float
        0 for a perfect order; minus infinity where a negative is scored above every positive, since the curve then starts along TPR = 0.

    Raises
    ------
    InputError
        As in :func:`auroc_auprc_decomposition`.

    Examples
    --------
    >>> round(log_tpr_auc([1, 1, 0, 1], [0.9, 0.8, 0.7, 0.6]), 4)  # ln(2/3): two of three positives lie above the negative
    -0.4055
    >>> log_tpr_auc([0, 1, 1], [0.9, 0.8, 0.7])
    -inf
    """
    positive = read_positive(y_true, pos_label)
    curve = curve_of(read_score(y_score, len(positive)), positive)
    if curve.false_above[-1] > 0:
        return float("-inf")
    # The curve is walked from its end, the lowest score, to its start. It is level between two scores of positives, where TPR is that of
    # the higher one, and rises at a score that negatives share: there the mean of ln TPR from l to h is (h ln h - l ln l) / (h - l) - 1.
    high = curve.true / curve.positives
    low = np.append(high[1:], 0.0)
    between = np.append(curve.negatives, curve.false_above[:-1]) - curve.false
    tied = curve.false - curve.false_above
    area = between @ np.log(high) + tied @ ((xlogy(high, high) - xlogy(low, low)) / (high - low) - 1)
    return float(area / curve.negatives)


def one_vs_rest(
    function: Callable[..., Result], y_true: Any, y_score: Any, *, classes: Sequence[Any] | None = None, **options: Any
) -> dict[Any, Result]:
    """A function of two classes for each of C classes against the rest.

    Parameters
    ----------
    function : callable
        Such as :func:`auroc_auprc_decomposition`, :func:`log_tpr_auc` or ``counterpoise.diagnostics.mistake_leverage``.
    y_true : array-like, shape (n,)
        Labels.
    y_score : array-like, shape (n, C)
        One column of scores per class.
    classes : sequence, length C, default the labels that occur, sorted
        The class of each column, such as ``estimator.classes_``.
    **options
        Passed on: ``groups``, ``sample_weight``, ...

    Returns
    -------
    dict
        Class -> result.

    Raises
    ------
    InputError
        If there is not one column per class, or a class does not occur.

    Examples
    --------
    >>> scores = [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.5, 0.2], [0.1, 0.1, 0.8]]
    >>> found = one_vs_rest(auroc_auprc_decomposition, ["cat", "dog", "cat", "eel"], scores)
    >>> {name: round(part.auroc, 3) for name, part in found.items()}
    {'cat': 1.0, 'dog': 1.0, 'eel': 1.0}
    """
    labels, score = _to_numpy("y_true", y_true), _to_numpy("y_score", y_score)
    named = np.unique(labels).tolist() if classes is None else list(classes)
    if score.ndim != 2 or score.shape[1] != len(named):
        bad_input("y_score", f"shape {score.shape}", f"one column for each of the {len(named)} classes {listing(named)}")
    results = {}
    for column, name in enumerate(named):
        of = np.asarray(labels == name, dtype=np.bool_)
        if not of.any():
            bad_input("classes", name, "classes that occur in y_true", "Leave out its column too.")
        results[name] = function(of, score[:, column], **options)
    return results


def group_curves(
    score: npt.NDArray[Any],
    positive: BoolArray,
    ids: IntArray,
    names: tuple[str, ...],
    weight: FloatArray | None = None,
    shares: dict[str, FloatArray] | None = None,
) -> pl.DataFrame:
    """A frame with one row per group that has rows: sizes, AUROC and AUPRC within it, and the columns ``shares`` (G,)."""
    import polars as pl

    order = np.argsort(ids, kind="stable")
    bounds = np.searchsorted(ids[order], np.arange(len(names) + 1))
    table = []
    for k, name in enumerate(names):
        rows = order[bounds[k] : bounds[k + 1]]
        if not len(rows):
            continue
        own, w = positive[rows], np.ones(len(rows)) if weight is None else weight[rows]
        of_positives, of_all = float(w[own].sum()), float(w.sum())
        both = 0 < of_positives < of_all
        curve = curve_of(score[rows], own, None if weight is None else w) if both else None
        missing = "no positives" if of_positives == 0 else "no negatives"
        table.append(
            {
                "group": name,
                "rows": len(rows),
                "positives": int(own.sum()),
                "prevalence": of_positives / of_all if of_all else float("nan"),
                "auroc": float("nan") if curve is None else curve.auroc,
                "auprc": float("nan") if curve is None else curve.auprc,
            }
            | {column: float(values[k]) for column, values in (shares or {}).items()}
            | {"note": "" if both else missing + ": no AUROC, no AUPRC"}
        )
    return pl.DataFrame(table)


def _weighing(weight: FloatArray, positive: BoolArray) -> BoolArray:
    """(n,) rows of weight > 0; there must be some in both classes."""
    kept = weight > 0
    for name, of in (("positive", positive), ("negative", ~positive)):
        if not kept[of].any():
            bad_input("sample_weight", f"weight 0 for every {name} row", "a weight > 0 in both classes")
    return kept


def _shares(loss: FloatArray, ids: IntArray, groups: int) -> FloatArray:
    """(G,) share of the loss that each group holds; NaN where there is none."""
    total = loss.sum()
    return np.bincount(ids, loss, minlength=groups) / total if total > 0 else np.full(groups, np.nan)
