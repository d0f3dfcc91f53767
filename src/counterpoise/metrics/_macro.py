r"""Macro one-vs-rest AUC: the metric of studies with many classes of unequal size, in which every class counts as one.

.. math:: \frac{1}{K} \sum_k AUROC(\text{score}_k,\; y = k)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from counterpoise._errors import bad_input, check_choice, listing
from counterpoise.groups import _column, _to_numpy

from ._curves import curve_of

__all__ = ["macro_ovr_auc"]


def macro_ovr_auc(y: Any, score: Any, missing: Literal["raise", "skip"] = "raise", *, classes: Sequence[Any] | None = None) -> float:
    r"""Mean over the classes of the AUROC of class k against the rest, ranked by column k as it is.

    Columns are not normalized by row: the AUROC of a column depends on its order alone, so dividing it by a prior (or any other increasing
    map of it) changes nothing, while dividing each *row* by its sum would. So prior correction, of probabilities or of logits, leaves it as
    it is, as long as the rows are not normalized afterwards. On rows that sum to 1 it equals
    ``sklearn.metrics.roc_auc_score(y, score, multi_class="ovr", average="macro")``.

    Parameters
    ----------
    y : array-like, shape (n,)
        Labels: a list, an array, a tensor, or a column of a frame.
    score : array-like, shape (n, K), K >= 2
        One column per class, higher for what is more likely it: probabilities, logits, distances. Infinite ones are in order.
    missing : {"raise", "skip"}, default "raise"
        What to do about a class that has no row in ``y``, whose AUROC does not exist: "skip" takes the mean over the others. Means over
        different classes cannot be compared.
    classes : sequence, length K, optional
        The class of each column, such as ``estimator.classes_``. Default: the labels in ``y``, sorted, if there are K; else 0..K-1, if all
        labels are of these.

    Raises
    ------
    InputError
        If a class is missing (unless skipped), fewer than two occur, a label has no column, a score is NaN, or shapes do not match.

    Examples
    --------
    >>> score = [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.5, 0.2], [0.1, 0.1, 0.8]]
    >>> macro_ovr_auc(["cat", "dog", "dog", "eel"], score)
    1.0
    >>> macro_ovr_auc([0, 1, 0, 1], score, missing="skip")
    0.8125
    """
    check_choice("missing", missing, ("raise", "skip"))
    labels, absent = _column("y", y)
    if absent.any():
        bad_input("y", f"{int(absent.sum())} missing labels", "a label in every row", "Drop these rows first.")
    columns = _columns(score, len(labels))
    named = _classes(labels, columns.shape[1], classes)
    members = [np.asarray(labels == name, dtype=np.bool_) for name in named]
    if (unknown := ~np.logical_or.reduce(members)).any():
        bad_input("y", f"label {listing(labels[unknown][:1])}", f"the classes of the columns: {listing(named)}")
    if without := [name for name, of in zip(named, members, strict=True) if not of.any()]:
        if missing == "raise":
            hint = 'missing="skip" takes the mean over the others.'
            bad_input("y", f"no row of class {listing(without)}", "rows of every class", hint)
        if len(without) >= len(named) - 1:
            bad_input("y", f"{len(named) - len(without)} of {len(named)} classes", "at least two classes that occur")
    return float(np.mean([curve_of(columns[:, k], of).auroc for k, of in enumerate(members) if of.any()]))


def _columns(score: Any, n: int) -> np.ndarray[Any, Any]:
    columns = _to_numpy("score", score)
    if columns.ndim != 2 or columns.shape[1] < 2 or len(columns) != n:
        bad_input("score", f"shape {columns.shape}", f"shape ({n}, K) with K >= 2 columns", "Two classes need both columns.")
    if columns.dtype.kind not in "iuf":
        try:
            columns = columns.astype(np.float64)
        except (TypeError, ValueError):
            bad_input("score", f"an array of {columns.dtype}", "numbers, higher for what is more likely the class of the column")
    if np.isnan(columns).any():
        bad_input(
            "score", f"{int(np.isnan(columns).any(axis=1).sum())} rows with NaN", "a number everywhere", "Infinite scores are in order."
        )
    return columns


def _classes(labels: np.ndarray[Any, Any], columns: int, classes: Sequence[Any] | None) -> list[Any]:
    if classes is not None:
        named = list(classes)
        if len(named) != columns or len(set(named)) < len(named):
            bad_input("classes", f"{listing(named)}", f"{columns} different classes, one for each column of score")
        return named
    found: list[Any] = np.unique(labels).tolist()
    if len(found) == columns:
        return found
    codes = list(range(columns))
    if set(found) <= set(codes):
        return codes
    bad_input(
        "y", f"labels {listing(found)}", f"{columns} classes, one for each column of score", "classes=[...] names those of the columns."
    )
