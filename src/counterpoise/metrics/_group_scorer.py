"""A scorer for model selection that looks at every group: the worst of them, or their mean, within each of which rows are ranked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from counterpoise._errors import bad_input, check_choice
from counterpoise.groups import Groups, _to_numpy

from ._decomposition import group_curves
from ._inputs import FloatArray, read_groups, read_positive, read_score

__all__ = ["make_group_scorer"]

COLUMN = {"roc_auc": "auroc", "average_precision": "auprc"}
REDUCE: dict[str, Callable[[FloatArray], Any]] = {"min": np.min, "mean": np.mean}


def make_group_scorer(
    base: str = "roc_auc", groups_col: str | int | None = None, reduce: str = "min", *, pos_label: Any = None
) -> Callable[[Any, Any, Any], float]:
    """A scorer for ``GridSearchCV(scoring=...)``, ``cross_val_score`` and the like: a metric within each group, then the least or the mean.

    A pooled metric also ranks rows of different groups against each other, and pooled average precision listens most to the group with the
    most positives. Here every group counts as one, however many rows it has.

    Parameters
    ----------
    base : {"roc_auc", "average_precision"}, default "roc_auc"
        Within each group. Average precision depends on the prevalence of the group: the least of several is most often that of the rarest
        positives, and their mean has no meaning where the prevalences differ. Prefer "roc_auc", unless each group is a list that is read
        from the top.
    groups_col : str or int
        Column of ``X`` with the groups: a name in a polars or pandas frame, a position in an array. The model sees it too, unless a
        ``ColumnTransformer`` drops it.
    reduce : {"min", "mean"}, default "min"
        How the groups become one number.
    pos_label : label, default the second of ``estimator.classes_``
        The positive one.

    Returns
    -------
    callable
        ``scorer(estimator, X, y) -> float``, higher is better; it can be pickled. Uses ``decision_function``, or else ``predict_proba``.
        Groups with one class among these rows have no such metric and are left out.

    Raises
    ------
    InputError
        For an unknown ``base`` or ``reduce``, or no ``groups_col``; on a call, if there is no such column, the estimator does not have two
        classes or gives no scores, or no group holds both classes.

    Examples
    --------
    >>> import polars as pl
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import GridSearchCV
    >>> X = pl.DataFrame({"x": [0.1, 0.4, 0.3, 0.8] * 10, "site": [0, 0, 1, 1] * 10})
    >>> search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, scoring=make_group_scorer("roc_auc", "site"), cv=2)
    >>> float(search.fit(X, [0, 1, 0, 1] * 10).best_score_)
    1.0
    """
    check_choice("base", base, COLUMN)
    check_choice("reduce", reduce, REDUCE)
    if groups_col is None:
        bad_input("groups_col", groups_col, "the name or the position of the column of X that holds the groups")
    return _GroupScorer(base, groups_col, reduce, pos_label)


class _GroupScorer:
    """What :func:`make_group_scorer` returns; a class, so that it can be sent to other processes."""

    def __init__(self, base: str, groups_col: str | int, reduce: str, pos_label: Any) -> None:
        self.base, self.groups_col, self.reduce, self.pos_label = base, groups_col, reduce, pos_label

    def __call__(self, estimator: Any, X: Any, y: Any) -> float:
        classes = list(getattr(estimator, "classes_", ()))
        if len(classes) != 2:
            bad_input("estimator", f"{len(classes)} classes", "a fitted classifier of two classes")
        wanted = classes[1] if self.pos_label is None else self.pos_label
        check_choice("pos_label", wanted, classes)
        positive = read_positive(y, wanted)
        score = read_score(_scores(estimator, X, classes.index(wanted)), len(positive))
        ids, names = read_groups(Groups.from_labels(_column_of(X, self.groups_col), "attribute"), len(positive))
        values = group_curves(score, positive, ids, names)[COLUMN[self.base]].to_numpy()
        values = values[~np.isnan(values)]
        if not len(values):
            bad_input("X", f"{len(names)} groups with one class each", "a group with both classes", "Use larger folds or coarser groups.")
        return float(REDUCE[self.reduce](values))

    def __repr__(self) -> str:
        return f"make_group_scorer({self.base!r}, {self.groups_col!r}, {self.reduce!r})"


def _scores(estimator: Any, X: Any, of_class: int) -> Any:
    if hasattr(estimator, "decision_function"):
        score = np.asarray(estimator.decision_function(X))
        return score if of_class == 1 else -score
    if hasattr(estimator, "predict_proba"):
        return np.asarray(estimator.predict_proba(X))[:, of_class]
    bad_input("estimator", type(estimator).__name__, "a classifier with decision_function or predict_proba")


def _column_of(X: Any, column: str | int) -> Any:
    if hasattr(X, "columns"):
        names = list(X.columns)
        if isinstance(column, int) and column not in names and -len(names) <= column < len(names):
            column = names[column]
        check_choice("groups_col", column, names)
        return X[column]
    table = _to_numpy("X", X)
    if table.ndim != 2 or not isinstance(column, int) or not -table.shape[1] <= column < table.shape[1]:
        bad_input("groups_col", column, f"a position in X, an array of shape {table.shape}", "Frames have names.")
    return table[:, column]
