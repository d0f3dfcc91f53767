"""What all samplers that invent rows share: imbalanced-learn's manners, the bookkeeping of what was invented, and the points in between."""

from __future__ import annotations

import numbers
import sys
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from imblearn.base import BaseSampler
from imblearn.over_sampling.base import BaseOverSampler
from imblearn.utils import check_neighbors_object, check_sampling_strategy, check_target_type
from scipy import sparse
from sklearn.preprocessing import label_binarize
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from counterpoise._errors import bad_input, listing

from ._checks import check_finite, check_jobs, check_names, check_numeric, check_squares, naming_text
from ._neighbors import EuclideanRows, Rows, nearest, without_self
from ._tables import (
    as_dtype,
    as_whole,
    extend,
    integer_columns,
    is_pandas,
    is_polars,
    names_of,
    plain_table,
    plain_target,
    target_like,
)

__all__ = ["InterpolatingSampler", "Synthetic", "SyntheticOverSampler", "TableSampler", "interpolate"]

NEIGHBORS = [Interval(numbers.Integral, 1, None, closed="left"), HasMethods(["kneighbors", "kneighbors_graph"])]
ROWS_AT_ONCE = 8192
TEXT_HINT = "SMOTENC takes columns of categories as they are; for other samplers encode them first."


@dataclass(frozen=True)
class Synthetic:
    """Invented rows: a matrix or one array per column, their labels, the rows of X they come from, and the gaps if they lie between two."""

    values: Any
    labels: npt.NDArray[Any]
    parents: npt.NDArray[np.intp]
    gaps: Any = None


class TableSampler(BaseSampler):  # type: ignore[misc]
    """``fit_resample`` for tables of any kind: the original rows that stay, bit for bit and in their order, then the invented ones."""

    synthetic_mask_: npt.NDArray[np.bool_]
    dtype: str = "preserve"  # samplers that let the caller choose make it a parameter

    def fit_resample(self, X: Any, y: Any, **params: Any) -> tuple[Any, Any]:
        """Resample a data set.

        Parameters
        ----------
        X : array, list, sparse matrix (CSR, CSC), pandas or polars frame, shape (n, d); or a tensor, which comes back as an array
        y : array, list, series or one-column frame, shape (n,); or one-hot, shape (n, K)
            Class labels, of any type.

        Returns
        -------
        X_resampled, y_resampled
            Of the types, names and dtypes of ``X`` and ``y``.
        """
        self._validate_params()
        check_jobs(self.n_jobs)
        X = plain_table(X)
        check_names(X)
        target, y = y, plain_target(y)
        check_classification_targets(y)
        table = X = X if self.dtype == "preserve" else self._with_dtype(X)
        X, y, binarized = self._check_X_y(X, y)
        self.sampling_strategy_ = check_sampling_strategy(self.sampling_strategy, y, self._sampling_type)
        if self.dtype == "preserve" and any(self.sampling_strategy_.values()):
            self._warn_of_integers(X if isinstance(table, list) else table)
        X_new, y_new = self._fit_resample(X, y, **params)
        if isinstance(table, list):
            X_new = X_new.tolist()
        elif (is_pandas(table) or is_polars(table)) and not isinstance(X_new, type(table)):
            kept = self._kept(len(table))
            X_new = extend(table, X_new[len(kept) :], kept)
        return X_new, target_like(target, label_binarize(y_new, classes=np.unique(y)) if binarized else y_new)

    def _check_X_y(self, X: Any, y: Any) -> tuple[Any, Any, bool]:
        y, binarized = check_target_type(plain_target(y), indicate_one_vs_all=True)
        with naming_text(X, TEXT_HINT):
            array, y = validate_data(self, X=X, y=y, reset=True, accept_sparse=["csr", "csc"], ensure_all_finite=False)
            if array.dtype == object:  # of a frame with several types of columns
                array = array.astype(np.float64)
        check_numeric(array, X)
        names = names_of(X if hasattr(X, "columns") else array)
        check_finite(array, names)
        check_squares(array, names, terms=array.shape[1])
        return array, y, binarized

    def _with_dtype(self, X: Any) -> Any:
        with naming_text(X, TEXT_HINT):
            return as_dtype(X, self.dtype)

    def _warn_of_integers(self, X: Any) -> None:
        """Only where the invented values are rounded without anybody having said that the column is a number."""
        columns = integer_columns(X)
        if columns:
            self._warn(
                f"X: columns {listing(columns)} hold integers or booleans, and {type(self).__name__} invents values between them, rounded. "
                "If they are categories, use SMOTENC; if they are numbers, pass floats."
            )

    def _warn(self, message: str, category: type[Warning] = UserWarning) -> None:
        """Warn where the caller called fit_resample, however deep in here it is found out."""
        frame, level = sys._getframe(1), 2
        while frame.f_back is not None and frame.f_globals.get("__package__") == __package__:
            frame, level = frame.f_back, level + 1
        warnings.warn(message, category, stacklevel=level)

    def _kept(self, n: int) -> npt.NDArray[np.intp]:
        """Which of the n rows given are among those returned: all."""
        return np.arange(n)

    def _generator(self) -> np.random.RandomState:
        """``random_state`` as imbalanced-learn reads it, except that None is a fresh stream and not NumPy's global one."""
        return np.random.RandomState() if self.random_state is None else check_random_state(self.random_state)


class SyntheticOverSampler(TableSampler, BaseOverSampler):  # type: ignore[misc]
    """An over-sampler; subclasses say which rows to invent."""

    parents_: npt.NDArray[np.intp]

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseOverSampler._parameter_constraints,
        "n_jobs": [numbers.Integral, None],
        "on_few": [StrOptions({"reduce_k", "raise"})],
        "memory": [str, HasMethods(["cache"]), None],
    }

    def _synthesize(self, X: Any, y: npt.NDArray[Any]) -> Synthetic:
        raise NotImplementedError

    def _fit_resample(self, X: Any, y: npt.NDArray[Any], **params: Any) -> tuple[Any, npt.NDArray[Any]]:
        new = self._synthesize(X, y)
        n, n_new = len(y), len(new.labels)
        self.synthetic_mask_ = np.arange(n + n_new) >= n
        self.parents_ = new.parents
        if new.gaps is not None:
            self.gaps_ = new.gaps
        return extend(X, new.values), np.concatenate([y, new.labels])

    def _wanted(self) -> list[tuple[Any, int]]:
        """Classes with the number of rows to invent."""
        return [(label, wanted) for label, wanted in self.sampling_strategy_.items() if wanted]

    def _class_rows(self, y: npt.NDArray[Any], label: Any) -> npt.NDArray[np.intp]:
        rows = np.flatnonzero(y == label)
        if len(rows) < 2:
            hint = "RandomOverSampler can repeat the one."
            bad_input("y", f"one row of class {label}", "at least two of every class that is to grow", hint)
        return rows

    def _affordable(self, parameter: str, k: int, others: int, where: str) -> int:
        """k, or as many neighbors as there are."""
        if k <= others:
            return k
        if self.on_few == "raise":
            bad_input(parameter, k, f"at most {others}, the other rows of {where}", 'on_few="reduce_k" would take those.')
        self._warn(f"{parameter}: {where} has only {others + 1} rows, so {others} neighbors are used instead of {k}.")
        return others

    def _neighbors(self, parameter: str, rows: Rows, where: str, queries: npt.NDArray[np.intp] | None = None) -> npt.NDArray[np.intp]:
        """Indices of the neighbors that ``parameter`` asks for, a number k or an estimator that finds k + 1, the row itself included."""
        given, others = getattr(self, parameter), len(rows) - 1
        if isinstance(given, numbers.Integral):
            k = self._affordable(parameter, int(given), others, where)
            approximate = getattr(self, "neighbors", "exact") == "approximate"
            return nearest(rows, k, queries, approximate=approximate, memory=self.memory, n_jobs=self.n_jobs)
        searcher = self._searcher(parameter)
        k = self._affordable(parameter, searcher.n_neighbors - 1, others, where)
        X = self._for_estimator(rows)
        queries = np.arange(len(rows)) if queries is None else queries
        fewer = {} if k + 1 == searcher.n_neighbors else {"n_neighbors": k + 1}
        found = searcher.fit(X).kneighbors(X[queries], return_distance=False, **fewer)
        return np.asarray(without_self(np.asarray(found), queries)[0])

    def _searcher(self, parameter: str) -> Any:
        """The caller's estimator, cloned."""
        return check_neighbors_object(parameter, getattr(self, parameter))

    def _for_estimator(self, rows: Any) -> Any:
        """What an estimator of the caller's searches."""
        return rows.X


class InterpolatingSampler(SyntheticOverSampler):
    """An over-sampler that puts rows on the way from one row to another."""

    gaps_: Any

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **SyntheticOverSampler._parameter_constraints,
        "gap": [StrOptions({"sample", "feature"})],
        "neighbors": [StrOptions({"exact", "approximate"})],
        "dtype": [StrOptions({"preserve", "float32", "float64"})],
    }

    def _rows(self, X: Any) -> EuclideanRows:
        return EuclideanRows(X)

    def _gaps(self, rng: np.random.RandomState, X: Any, parents: npt.NDArray[np.intp]) -> Any:
        """How far along: one number per row, one per row and column, or for sparse X one where the parents differ."""
        if self.gap == "sample":
            return rng.uniform(size=len(parents))
        if not sparse.issparse(X):
            return rng.uniform(size=(len(parents), X.shape[1]))
        gaps = (X[parents[:, 1]] - X[parents[:, 0]]).astype(np.float64)
        gaps.data = rng.uniform(size=len(gaps.data))
        return gaps

    def _between(self, X: Any, y: npt.NDArray[Any], drawn: list[tuple[Any, npt.NDArray[np.intp], Any]]) -> Synthetic:
        """(label, parents, gaps) of each class, put together."""
        labels = np.concatenate([np.full(len(parents), label, dtype=y.dtype) for label, parents, _ in drawn] or [y[:0]])
        parents = np.concatenate([parents for _, parents, _ in drawn] or [np.empty((0, 2), dtype=np.intp)])
        if self.gap == "feature":
            empty = np.empty((0, X.shape[1]))
            parts = [gaps for _, _, gaps in drawn] or [sparse.csr_matrix(empty) if sparse.issparse(X) else empty]
            gaps = sparse.vstack(parts, format="csr") if sparse.issparse(X) else np.concatenate(parts)
        else:
            gaps = np.concatenate([gaps for _, _, gaps in drawn] or [np.empty(0)])
        return Synthetic(interpolate(X, parents, gaps), labels, parents, gaps)


def interpolate(X: Any, parents: npt.NDArray[np.intp], gaps: Any) -> Any:
    r""":math:`x + g (x_{nn} - x)` for rows of X.

    ``parents`` (m, 2) are positions of :math:`x` and :math:`x_{nn}`; ``gaps`` are (m,), or (m, d) with one g per column (sparse if X is).
    The result has the dtype of X, except that points between booleans are float64. Points between integers are rounded.
    """
    start, end = parents[:, 0], parents[:, 1]
    if sparse.issparse(X):
        step = (X[end] - X[start]).multiply(gaps if sparse.issparse(gaps) else gaps[:, None])
        return (X[start] + step).astype(X.dtype)
    # Unsigned integers and booleans cannot be subtracted, and differences of half precision overflow it.
    work = np.promote_types(X.dtype, np.float32) if X.dtype.kind == "f" else np.dtype(np.float64)
    whole = X.dtype.kind in "iu"
    out = np.empty((len(parents), X.shape[1]), dtype=X.dtype if whole or X.dtype.kind == "f" else work)
    for first in range(0, len(parents), ROWS_AT_ONCE):
        part = slice(first, first + ROWS_AT_ONCE)
        one, other = X[start[part]], X[end[part]]
        g = gaps[part] if gaps.ndim == 2 else gaps[part, None]
        start_at, end_at = one.astype(work, copy=False), other.astype(work, copy=False)
        points = start_at + g * (end_at - start_at)
        # Beyond 2**53 float64 does not hold every integer, so a point may be rounded past its parents.
        out[part] = np.clip(as_whole(points, X.dtype), np.minimum(one, other), np.maximum(one, other)) if whole else points
    return out
