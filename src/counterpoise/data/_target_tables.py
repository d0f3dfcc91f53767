"""Tables with a continuous target, taken apart into what can be interpolated and what cannot, and put together again with new rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from counterpoise._errors import bad_input, check_choice

from ._checks import check_names, check_squares
from ._neighbors import EuclideanRows, MixedRows, Rows
from ._smotenc import _positions
from ._tables import as_whole, extend, is_pandas, is_polars, names_of, plain_table, plain_target, target_like

__all__ = [
    "NewRows",
    "TargetTable",
    "as_table",
    "category_columns",
    "put_together",
    "read_target",
    "stack",
    "take_apart",
    "target_as_given",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TargetTable:
    """A table taken apart: numbers (n, p), the same divided by their ranges, codes of the categories (n, q), and the target (n,)."""

    numbers: FloatArray
    scaled: FloatArray
    codes: IntArray
    y: FloatArray

    def rows(self, members: IntArray) -> Rows:
        """Some rows as the neighbor search takes them; two are one unit apart per category that differs."""
        if self.codes.shape[1]:
            return MixedRows(self.scaled[members], self.codes[members], 1.0)
        return EuclideanRows(self.scaled[members])


@dataclass(frozen=True)
class NewRows:
    """Synthetic rows: numbers (m, p), the row that each category is taken from (m, q), targets (m,), parents (m, 2) and gaps (m,)."""

    numbers: FloatArray
    sources: IntArray
    y: FloatArray
    parents: IntArray
    gaps: FloatArray


def stack(parts: list[NewRows], table: TargetTable) -> NewRows:
    """All parts as one; none at all is no row."""
    if not parts:
        p, q = table.numbers.shape[1], table.codes.shape[1]
        return NewRows(np.empty((0, p)), np.empty((0, q), dtype=np.int64), np.empty(0), np.empty((0, 2), dtype=np.int64), np.empty(0))
    return NewRows(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("numbers", "sources", "y", "parents", "gaps")))


def as_table(X: Any) -> Any:
    """A frame as it is, anything else as a two-dimensional array."""
    if is_pandas(X) or is_polars(X):
        check_names(X)
        return _with_columns(X)
    if sparse.issparse(X):
        bad_input("X", "a sparse matrix", "a dense table", "Convert it with .toarray().")
    table = np.asarray(plain_table(X))
    if table.ndim != 2:
        bad_input("X", f"shape {table.shape}", "a table, shape (n, d)")
    return _with_columns(table)


def _with_columns(table: Any) -> Any:
    if not table.shape[1]:
        bad_input("X", f"shape {table.shape}", "a table with at least one column")
    return table


def category_columns(table: Any, columns: Any) -> list[int]:
    """Positions of the categories: those said, or ("auto") the columns of a frame that hold text, categories or booleans."""
    if not isinstance(columns, str):
        return sorted(int(position) for position in _positions(table, columns))
    check_choice("categorical_features", columns, ("auto",), "Else positions, names or a mask of columns.")
    if is_pandas(table):
        from pandas.api import types

        kinds = (types.is_bool_dtype, types.is_object_dtype, types.is_string_dtype, lambda dtype: str(dtype) == "category")
        return [position for position, dtype in enumerate(table.dtypes) if any(kind(dtype) for kind in kinds)]
    if is_polars(table):
        named = ("String", "Categorical", "Enum", "Boolean")
        return [position for position, dtype in enumerate(table.dtypes) if str(dtype).startswith(named)]
    return []


def take_apart(table: Any, categories: list[int], y: FloatArray) -> TargetTable:
    """Raises where a column holds neither numbers nor categories, or a value is missing."""
    names, n = names_of(table), len(y)
    numbers = [_numbers(table, position, name) for position, name in enumerate(names) if position not in categories]
    codes = [_codes(table, position, names[position]) for position in categories]
    matrix = np.column_stack(numbers) if numbers else np.empty((n, 0))
    numeric = [name for position, name in enumerate(names) if position not in categories]
    check_squares(matrix, numeric, terms=max(matrix.size, 1))
    check_squares(y[:, None], None, terms=n, argument="y")
    width = np.ptp(matrix, axis=0)
    scaled = matrix / np.where(width > 0, width, 1.0)
    return TargetTable(matrix, scaled, np.column_stack(codes) if codes else np.empty((n, 0), dtype=np.int64), y)


def put_together(table: Any, categories: list[int], new: NewRows, kept: IntArray) -> Any:
    """The rows kept, and the new ones in the types of their columns."""
    columns: list[Any] = [None] * table.shape[1]
    numeric = [position for position in range(len(columns)) if position not in categories]
    for position, values in zip(numeric, new.numbers.T, strict=True):
        columns[position] = values
    for position, rows in zip(categories, new.sources.T, strict=True):
        columns[position] = np.asarray(_column(table, position))[rows]
    return extend(table, columns, kept)


def _column(table: Any, position: int) -> Any:
    if is_pandas(table):
        return table.iloc[:, position]
    return table.to_series(position) if is_polars(table) else table[:, position]


def _numbers(table: Any, position: int, name: Any) -> FloatArray:
    """A column as finite float64."""
    column = _column(table, position)
    kind = "other"
    try:
        if is_pandas(table):
            kind = column.dtype.kind
            values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        elif is_polars(table):
            kind = "f" if column.dtype.is_numeric() or str(column.dtype) == "Boolean" else "other"
            values = column.cast(float).to_numpy()
        else:
            kind = "f" if column.dtype == object else column.dtype.kind
            values = column.astype(np.float64)
    except (TypeError, ValueError):
        kind = "other"
    if kind not in ("i", "u", "f", "b"):
        hint = "Name columns with categories in categorical_features; turn dates into numbers first."
        bad_input("X", f"{column.dtype} in column {name}", "numbers or categories", hint)
    if not np.isfinite(values).all():
        bad_input("X", f"NaN or infinity in column {name}", "finite numbers", "Impute before resampling, as a step of the same pipeline.")
    return np.asarray(values, dtype=np.float64)


def _codes(table: Any, position: int, name: Any) -> IntArray:
    """A column of categories as codes."""
    column = _column(table, position)
    if is_pandas(table):
        missing = bool(column.isna().any())
        codes = column.factorize()[0]
    elif is_polars(table):
        missing = column.null_count() > 0
        codes = column.cast(str).fill_null("").rank("dense").to_numpy()
    else:
        missing = any(value is None or value != value for value in column.tolist())
        codes = np.unique(column.astype(str) if column.dtype == object else column, return_inverse=True)[1]
    if missing:
        bad_input("X", f"missing values in column {name}", "a category in every row", "Make missing a category of its own first.")
    return np.asarray(codes, dtype=np.int64)


# ---- targets ----------------------------------------------------------------------------------------------------------------------------


def read_target(y: Any) -> FloatArray:
    """A target of any type as finite float64, (n,)."""
    values = np.asarray(plain_target(y))
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if is_pandas(y) and values.dtype == object and all(kind in "iuf" for kind in _kinds(y)):
        values = y.astype(np.float64).to_numpy().ravel()  # pandas' own numbers, which may be missing
    if values.ndim != 1 or values.dtype.kind not in "iuf":
        bad_input("y", f"shape {values.shape} of {values.dtype}", "one number per row, shape (n,)", "Classes are a case for SMOTE.")
    if not len(values):
        bad_input("y", "no rows", "one number per row")
    wrong = int((~np.isfinite(values)).sum())
    if wrong:
        bad_input("y", f"{wrong} targets that are not finite", "finite numbers", "Leave these rows out.")
    return values.astype(np.float64)


def target_as_given(y: Any, values: FloatArray) -> Any:
    """Targets as ``y`` came; whole numbers if it holds those."""
    if not is_pandas(y):
        dtype = np.asarray(plain_target(y)).dtype
        return target_like(y, as_whole(values, dtype) if dtype.kind in "iu" else values.astype(dtype))
    return target_like(y, np.rint(values) if all(kind in "iu" for kind in _kinds(y)) else values)


def _kinds(y: Any) -> list[str]:
    return [str(dtype.kind) for dtype in (y.dtypes if hasattr(y, "columns") else [y.dtype])]
