r"""Protected attributes as numbers whose distances mean something: levels one-hot, numbers between 0 and 1.

What is unbalanced: distances add up the columns, so an age in years would outweigh any category. After encoding two levels are
:math:`\sqrt 2` apart, and the youngest and the oldest row 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NoReturn, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted, validate_data

from counterpoise._errors import bad_input, check_choice, listing

from ._checks import check_names
from ._tables import cells_of, is_pandas, is_polars, plain_table

__all__ = ["ProtectedAttributeEncoder"]

Array = npt.NDArray[np.float64]


class ProtectedAttributeEncoder(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    r"""Columns of protected attributes for :class:`counterpoise.losses.DistanceCovariancePenalty`: categories one-hot, numbers in [0, 1].

    Every level of a category has a column, for two levels as well, so that any two levels are :math:`\sqrt 2` apart however they
    are spelled. A number x becomes :math:`(x - \min) / (\max - \min)` of the fitted rows; later values may lie outside [0, 1], and a
    column that does not vary becomes 0.

    Parameters
    ----------
    categorical_features : "auto" or sequence of names or positions, default "auto"
        Columns that hold categories. "auto": text, booleans, and pandas' and polars' categories; integers are numbers, so list those that
        are codes.
    handle_unknown : {"error", "ignore"}, default "error"
        What ``transform`` does about a level that was not there in ``fit``; "ignore" gives it zeros, at distance 1 from every level.

    Attributes
    ----------
    categories_ : dict from name to array
        Sorted levels of each column that holds categories.
    ranges_ : dict from name to (min, max)
        Of each column that holds numbers.
    n_features_in_, feature_names_in_ : as everywhere in scikit-learn.

    Raises
    ------
    InputError
        If a value is missing or infinite, a level is unknown (with the column), or ``categorical_features`` names no column.

    Examples
    --------
    >>> import polars as pl
    >>> people = pl.DataFrame({"sex": ["f", "m", "m"], "age": [20, 30, 60]})
    >>> encoder = ProtectedAttributeEncoder().fit(people)
    >>> encoder.transform(people)
    array([[1.  , 0.  , 0.  ],
           [0.  , 1.  , 0.25],
           [0.  , 1.  , 1.  ]])
    >>> {name: columns.shape for name, columns in encoder.split(encoder.transform(people)).items()}
    {'sex': (3, 2), 'age': (3, 1)}
    """

    def __init__(
        self, categorical_features: Literal["auto"] | Sequence[Any] = "auto", handle_unknown: Literal["error", "ignore"] = "error"
    ) -> None:
        self.categorical_features = categorical_features
        self.handle_unknown = handle_unknown

    def fit(self, X: Any, y: Any = None) -> Self:
        check_choice("handle_unknown", self.handle_unknown, ("error", "ignore"))
        columns = self._columns(X, reset=True)
        categorical = self._categorical(X, columns)
        self.categories_: dict[Any, npt.NDArray[Any]] = {}
        self.ranges_: dict[Any, tuple[float, float]] = {}
        for name, values in columns.items():
            if name in categorical:
                self.categories_[name] = np.unique(_levels(name, values))
            else:
                numbers = _numbers(name, values)
                self.ranges_[name] = (float(numbers.min()), float(numbers.max()))
        self._names = list(columns)
        return self

    def transform(self, X: Any) -> Array:
        """(n, d) numbers, the columns of each attribute side by side."""
        check_is_fitted(self, "ranges_")
        return np.concatenate([self._encode(name, values) for name, values in self._columns(X, reset=False).items()], axis=1)

    def split(self, encoded: Any) -> dict[Any, Any]:
        """Encoded columns (n, d), an array or a tensor, by attribute: name -> (n, d_k), views, as the penalty takes them."""
        check_is_fitted(self, "ranges_")
        widths = [len(self.categories_.get(name, (0,))) for name in self._names]
        if len(np.shape(encoded)) != 2 or np.shape(encoded)[1] != sum(widths):
            bad_input("encoded", f"shape {tuple(np.shape(encoded))}", f"what transform gave, shape (n, {sum(widths)})")
        ends = np.cumsum(widths)
        return {name: encoded[:, end - width : end] for name, width, end in zip(self._names, widths, ends.tolist(), strict=True)}

    def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[Any]:
        check_is_fitted(self, "ranges_")
        names = _check_feature_names_in(self, input_features)
        out: list[str] = []
        for name, shown in zip(self._names, names, strict=True):
            out += [f"{shown}_{level}" for level in self.categories_[name]] if name in self.categories_ else [str(shown)]
        return np.asarray(out, dtype=object)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        return tags

    # -- columns ------------------------------------------------------------------------------------------------------------------------

    def _columns(self, X: Any, reset: bool) -> dict[Any, npt.NDArray[Any]]:
        table = plain_table(X)
        check_names(table)
        if is_pandas(table) or is_polars(table):
            if getattr(table, "ndim", 2) == 1 or not hasattr(table, "columns"):
                bad_input("X", "a single series", "a table with one column per attribute", "Make it one with to_frame().")
            validate_data(self, table, skip_check_array=True, reset=reset)
            if not len(table) or not len(table.columns):
                bad_input("X", f"a table of shape {table.shape}", "at least one row and one column")
            return dict(cells_of(table))
        return dict(cells_of(validate_data(self, table, dtype=None, ensure_all_finite=False, reset=reset)))

    def _categorical(self, X: Any, columns: dict[Any, npt.NDArray[Any]]) -> set[Any]:
        if isinstance(self.categorical_features, str):
            check_choice("categorical_features", self.categorical_features, ("auto",), "Or a list of names or positions.")
            return {name for name, values in columns.items() if _holds_categories(values)} | _pandas_categories(X)
        named = list(columns)
        found = set()
        for feature in self.categorical_features:
            if feature in columns:
                found.add(feature)
            elif isinstance(feature, (int, np.integer)) and 0 <= feature < len(named):
                found.add(named[feature])
            else:
                bad_input("categorical_features", feature, f"names among {listing(named)}, or positions")
        return found

    def _encode(self, name: Any, values: npt.NDArray[Any]) -> Array:
        if name not in self.categories_:
            low, high = self.ranges_[name]
            numbers = _numbers(name, values)
            return ((numbers - low) / (high - low) if high > low else np.zeros(len(numbers)))[:, None]
        known, levels = self.categories_[name], _levels(name, values)
        if (known.dtype.kind == "O") != (levels.dtype.kind == "O"):  # numbers in one of the tables, text in the other
            known, levels = (part.astype(str).astype(object) for part in (known, levels))
        order = np.argsort(known, kind="stable")
        code = order[np.minimum(np.searchsorted(known, levels, sorter=order), len(known) - 1)]
        unknown = known[code] != levels
        if unknown.any() and self.handle_unknown == "error":
            bad_input(
                "X", f"level {str(levels[unknown][0])!r} in column {name}", f"the levels seen in fit: {listing(known)}",
                'handle_unknown="ignore" gives unknown levels zeros.',
            )  # fmt: skip
        return np.where(unknown[:, None], 0.0, np.eye(len(known))[code])


def _holds_categories(values: npt.NDArray[Any]) -> bool:
    if values.dtype.kind in "bUS":
        return True
    return values.dtype.kind == "O" and any(isinstance(value, (str, bool, np.bool_)) for value in values.tolist())


def _pandas_categories(table: Any) -> set[Any]:
    """Columns that pandas or polars know to hold categories, even of numbers."""
    if is_pandas(table):
        return {name for name, dtype in zip(table.columns, table.dtypes, strict=True) if str(dtype) == "category"}
    return {name for name, dtype in table.schema.items() if str(dtype).startswith(("Categorical", "Enum"))} if is_polars(table) else set()


def _levels(name: Any, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Values without missing ones; those of several types by their names."""
    missing = values != values
    if values.dtype.kind == "O":
        missing = np.array([value is None or (value == value) is not True for value in values.tolist()], dtype=bool)
    if np.any(missing):
        _refuse(name, "NaN or a missing value", "a level in every row", "Make missing a level of its own first.")
    if values.dtype.kind == "O" or values.dtype.kind in "US":
        return np.asarray([str(value) for value in values.tolist()], dtype=object)
    return values


def _numbers(name: Any, values: npt.NDArray[Any]) -> Array:
    if values.dtype.kind == "c":
        _refuse(name, "complex numbers", "numbers or levels")
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        _refuse(name, f"values of {values.dtype} that are neither numbers nor text", "numbers or levels")
    if not np.isfinite(numbers).all():
        _refuse(name, "NaN or infinity", "finite numbers", "Impute first, or bin it with a level for what is missing.")
    return numbers


def _refuse(name: Any, found: str, accepted: str, hint: str = "") -> NoReturn:
    bad_input("X", f"{found} in column {name}", accepted, hint)
