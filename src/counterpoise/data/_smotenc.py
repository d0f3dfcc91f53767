r"""SMOTE-NC: SMOTE for tables with numbers and categories (Chawla et al. 2002, section 6.1).

Two rows differ by

.. math:: d^2(x, x') = \sum_{\text{numbers}} (x_f - x'_f)^2 + Med^2 \, \#\{\text{categories that differ}\},

with Med the median of the standard deviations of the numbers within the class. A synthetic row has :math:`x + g (x_{nn} - x)` for its
numbers, and for each category the one most frequent among the k neighbors of x.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from imblearn.utils import check_target_type
from scipy import sparse
from sklearn.base import clone
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils import check_array
from sklearn.utils._param_validation import HasMethods, StrOptions
from sklearn.utils.validation import validate_data

from counterpoise._errors import bad_input, listing

from ._checks import check_finite, check_numeric, check_squares, naming_text
from ._neighbors import MixedRows
from ._smote import SMOTE, draw_parents
from ._synthetic import ROWS_AT_ONCE, InterpolatingSampler, Synthetic, interpolate
from ._tables import as_dtype, column_at, columns_of, is_pandas, is_polars, names_of, plain_target

__all__ = ["SMOTENC", "most_frequent"]


class SMOTENC(InterpolatingSampler):
    r"""SMOTE for tables with numbers and categories: numbers between two neighbors, categories by the neighbors' vote.

    Two rows are :math:`Med^2` apart per category that differs, Med being the median standard deviation of the numbers within the class:
    scale the numbers first, or the widest decides everything. Categories are compared as codes and never expanded into indicator columns.
    Draws the same numbers as imbalanced-learn's class of this name, ties in the vote included.

    Parameters
    ----------
    categorical_features : "auto" or array-like of int, str or bool
        Positions, names or a mask of the categories. "auto": the columns of a pandas or polars frame whose type is categorical.
    categorical_encoder : estimator, optional
        Finds the categories: a one-hot encoder that keeps one column per category. Default: ``OneHotEncoder(handle_unknown="ignore")``.
        Missing values are a category of their own.
    sampling_strategy, k_neighbors, gap, dtype, n_jobs, random_state, on_few, memory
        As in :class:`SMOTE`. An estimator for ``k_neighbors`` searches the numbers and indicator columns (sparse) of height Med/√2.
        ``n_jobs`` are threads of the search. ``dtype`` concerns the numbers; an array of Python objects stays one.
    neighbors : {"exact", "approximate"}, default "exact"
        As in :class:`SMOTE`.

    Attributes
    ----------
    median_std_ : dict
        Class to Med.
    categorical_features_, continuous_features_ : int array
        Positions of the categories and of the numbers.
    categorical_encoder_ : estimator
        Fitted on the categories of ``X``.
    synthetic_mask_, parents_, gaps_, sampling_strategy_, n_features_in_, feature_names_in_
        As in :class:`SMOTE`; the gaps are those of the numbers.

    Raises
    ------
    InputError
        If all columns are categories (see :class:`SMOTEN`) or none is, a number is NaN or infinite, or the encoder drops or merges
        categories; and as :class:`SMOTE` does.

    Examples
    --------
    >>> X = np.array([[0.0, "red"], [1.0, "red"], [0.5, "blue"], [8.0, "blue"], [9.0, "blue"], [7.0, "red"], [6.0, "red"]], dtype=object)
    >>> y = [1, 1, 1, 0, 0, 0, 0]
    >>> X_new, y_new = SMOTENC(categorical_features=[1], k_neighbors=2, random_state=0).fit_resample(X, y)
    >>> X_new[7:].tolist()
    [[0.20357..., 'red']]
    """

    categorical_features_: npt.NDArray[np.intp]
    continuous_features_: npt.NDArray[np.intp]
    median_std_: dict[Any, float]
    categorical_encoder_: Any

    _required_parameters = ("categorical_features",)
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **SMOTE._parameter_constraints,
        "categorical_features": ["array-like", StrOptions({"auto"})],
        "categorical_encoder": [HasMethods(["fit_transform", "inverse_transform"]), None],
    }

    def __init__(
        self,
        categorical_features: Any,
        *,
        categorical_encoder: Any = None,
        sampling_strategy: Any = "auto",
        k_neighbors: Any = 5,
        gap: str = "sample",
        neighbors: str = "exact",
        dtype: str = "preserve",
        n_jobs: int | None = None,
        random_state: Any = None,
        on_few: str = "reduce_k",
        memory: Any = None,
    ) -> None:
        self.categorical_features = categorical_features
        self.categorical_encoder = categorical_encoder
        self.sampling_strategy = sampling_strategy
        self.k_neighbors = k_neighbors
        self.gap = gap
        self.neighbors = neighbors
        self.dtype = dtype
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.on_few = on_few
        self.memory = memory

    def _check_X_y(self, X: Any, y: Any) -> tuple[Any, Any, bool]:
        y, binarized = check_target_type(plain_target(y), indicate_one_vs_all=True)
        if not (is_pandas(X) or is_polars(X)):
            X = check_array(X, dtype=None, accept_sparse=["csr", "csc"], ensure_all_finite=False)
        validate_data(self, X=X, y=y, reset=True, skip_check_array=True)
        self._find_columns(X)
        if X.shape[0] != len(y):
            bad_input("X and y", f"{X.shape[0]} and {len(y)} rows", "as many labels as rows")
        return X, y, binarized

    def _with_dtype(self, X: Any) -> Any:
        if not (is_pandas(X) or is_polars(X)):
            return as_dtype(X, self.dtype)
        self._find_columns(X)
        with self._naming_unlisted(X):
            return as_dtype(X, self.dtype, self.continuous_features_.tolist())

    def _warn_of_integers(self, X: Any) -> None:
        """Nothing: the caller has said which columns are categories."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        return tags

    def _find_columns(self, X: Any) -> None:
        n_columns = X.shape[1]
        categorical = _positions(X, self.categorical_features)
        if len(categorical) == n_columns:
            bad_input(
                "categorical_features", f"all {n_columns} columns", "some numbers beside them",
                "SMOTE-NC is not designed to work only with categorical features; SMOTEN is.",
            )  # fmt: skip
        if not len(categorical):
            bad_input(
                "categorical_features", "no column", "at least one",
                f"SMOTE-NC is not designed to work only with numerical features; SMOTE is.{self._what_auto_takes()}",
            )  # fmt: skip
        self.categorical_features_ = categorical
        self.continuous_features_ = np.setdiff1d(np.arange(n_columns), categorical)

    def _synthesize(self, X: Any, y: npt.NDArray[Any]) -> Synthetic:
        categorical, continuous = self.categorical_features_.tolist(), self.continuous_features_.tolist()
        if sparse.issparse(X):
            X = X.tocsr()
        self._check_numbers(X)
        self.categorical_encoder_ = self._fit_encoder(columns_of(X, categorical))
        self.median_std_ = {}
        drawn, numbers, elected = [], [], []
        for label, wanted in self._wanted():
            rows = self._class_rows(y, label)
            values = check_array(columns_of(X, continuous, rows))
            codes = np.concatenate(
                [self._codes(columns_of(X, categorical, rows[at : at + ROWS_AT_ONCE])) for at in range(0, len(rows), ROWS_AT_ONCE)]
            )
            self.median_std_[label] = med = float(np.median(values.std(axis=0, dtype=np.float64)))
            mixed = MixedRows(values.astype(np.float64, copy=False), codes, med**2)
            near = self._neighbors("k_neighbors", mixed, f"class {label}")
            rng = self._generator()
            local = draw_parents(rng, np.arange(len(rows)), near, wanted)
            gaps = self._gaps(rng, values, local)
            drawn.append((np.full(wanted, label, dtype=y.dtype), rows[local], gaps))
            numbers.append(interpolate(values, local, gaps))
            elected.append(_vote(codes, rows, near[local[:, 0]], self._generator()))
        if not drawn:
            drawn.append((y[:0], np.empty((0, 2), dtype=np.intp), np.empty((0, len(continuous)) if self.gap == "feature" else 0)))
            numbers.append(np.empty((0, len(continuous))))
            elected.append(np.empty((0, len(categorical)), dtype=np.intp))
        labels, parents, gaps = (_joined(parts) for parts in zip(*drawn, strict=True))
        columns: list[Any] = [None] * X.shape[1]
        for position, column in zip(continuous, _joined(numbers).T, strict=True):
            columns[position] = column
        for position, column in zip(categorical, _joined(elected).T, strict=True):
            columns[position] = column_at(X, position, column)
        new = sparse.csr_matrix(np.column_stack(columns)) if sparse.issparse(X) else columns
        return Synthetic(new, labels, parents, gaps)

    def _check_numbers(self, X: Any) -> None:
        names, n_squares = names_of(X), X.shape[0] * len(self.continuous_features_)  # spreads are sums over all rows
        for position in self.continuous_features_:
            with self._naming_unlisted(X):
                values = check_array(columns_of(X, [position]), ensure_all_finite=False)
            check_numeric(values, name=names[position])
            check_finite(values, [names[position]])
            check_squares(values, [names[position]], terms=n_squares, dtype=np.float64)  # distances are taken in double

    def _naming_unlisted(self, X: Any) -> AbstractContextManager[None]:
        """Names the column of text that is not among the categories."""
        hint = f"List it in categorical_features, or cast it to a categorical dtype.{self._what_auto_takes()}"
        accepted = "numbers in the columns that categorical_features leaves out"
        return naming_text(X, hint, accepted, columns=self.continuous_features_.tolist())

    def _what_auto_takes(self) -> str:
        if not isinstance(self.categorical_features, str):
            return ""
        return (
            " 'auto' takes the columns of dtype category (pandas), or Categorical and Enum (polars); columns of strings are not among them."
        )

    def _fit_encoder(self, categories: Any) -> Any:
        encoder = OneHotEncoder(handle_unknown="ignore") if self.categorical_encoder is None else clone(self.categorical_encoder)
        encoder.fit(categories)
        expected, made = sum(len(names) for names in encoder.categories_), len(encoder.get_feature_names_out())
        if made != expected:
            bad_input(
                "categorical_encoder", f"an encoder that makes {made} columns of {expected} categories", "one that keeps every category",
                "SMOTENC requires a one-hot encoding with one column per category: leave drop, min_frequency and max_categories alone.",
            )  # fmt: skip
        return encoder

    def _codes(self, categories: Any) -> npt.NDArray[Any]:
        """(n, q) number of each value among the categories of its column, in the smallest type that holds them."""
        sizes = [len(names) for names in self.categorical_encoder_.categories_]
        one_hot = sparse.csr_matrix(self.categorical_encoder_.transform(categories))
        one_hot.sort_indices()
        first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        return np.asarray(one_hot.indices.reshape(len(categories), len(sizes)) - first).astype(np.min_scalar_type(max(sizes)))

    def _for_estimator(self, rows: Any) -> Any:
        """Numbers and indicator columns whose Euclidean distance is the mixed one."""
        one_hot = OneHotEncoder().fit_transform(rows.codes)
        return sparse.hstack([rows.numbers, one_hot * np.sqrt(rows.weight / 2)], format="csr")


def _joined(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The parts behind each other; one alone is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _vote(
    codes: npt.NDArray[Any], rows: npt.NDArray[np.intp], voters: npt.NDArray[np.intp], rng: np.random.RandomState
) -> npt.NDArray[np.intp]:
    """(m, q) one of the ``rows`` that has, in this column, the code most frequent among the voters (m, k); among equals a random one."""
    elected = np.empty((len(voters), codes.shape[1]), dtype=np.intp)
    for position, column in enumerate(codes.T):
        votes, frequent = most_frequent(column[voters])
        row, place = np.nonzero(frequent)
        # A random order of all candidates, and of each row the first. Written from the end, so that the first is what stays.
        order = rng.permutation(len(row))[::-1]
        winner = np.empty(len(voters), dtype=codes.dtype)
        winner[row[order]] = votes[row[order], place[order]]
        present, first = np.unique(column, return_index=True)
        elected[:, position] = rows[first[np.searchsorted(present, winner)]]
    return elected


def most_frequent(votes: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """The votes (m, k) of each row in order, and a mask of the most frequent values, each marked once."""
    votes = np.sort(votes, axis=1)
    counts = (votes[:, :, None] == votes[:, None, :]).sum(axis=2)
    first = np.ones(votes.shape, dtype=bool)
    first[:, 1:] = votes[:, 1:] != votes[:, :-1]
    return votes, first & (counts == counts.max(axis=1, keepdims=True))


def _positions(X: Any, columns: Any) -> npt.NDArray[np.intp]:
    """Positions of columns given by position, name or mask; "auto" are those of a categorical type."""
    names = names_of(X)
    if isinstance(columns, str):
        if is_pandas(X):
            return np.flatnonzero([str(dtype) == "category" for dtype in X.dtypes])
        if is_polars(X):
            return np.flatnonzero([str(dtype).startswith(("Categorical", "Enum")) for dtype in X.dtypes])
        kind = type(X).__name__
        bad_input(
            "categorical_features",
            f"'auto' for a {kind}",
            "positions or a mask; for 'auto' the input data should be a pandas.DataFrame or polars.DataFrame",
        )
    given = np.asarray(columns)
    if given.dtype == bool:
        if len(given) != len(names):
            bad_input("categorical_features", f"a mask of {len(given)} values", f"one value per column, {len(names)}")
        return np.flatnonzero(given)
    if given.dtype.kind in "iu" or not given.size:
        wrong = given[(given < -len(names)) | (given >= len(names))]
        if len(wrong):
            bad_input("categorical_features", given.tolist(), f"positions of columns; all features must be in [0, {len(names) - 1}]")
        return np.asarray(given % len(names), dtype=np.intp)
    missing = [name for name in given.tolist() if name not in names]
    if missing:
        bad_input("categorical_features", f"columns {listing(missing)}, which are not there", f"some of {listing(names)}")
    return np.array([names.index(name) for name in given.tolist()], dtype=np.intp)
