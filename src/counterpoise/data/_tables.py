"""Tables of any kind with rows added: what comes in - array, list, sparse matrix, pandas or polars frame - is what goes out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

__all__ = [
    "as_dtype",
    "as_whole",
    "cells_of",
    "column_at",
    "columns_of",
    "extend",
    "integer_columns",
    "is_pandas",
    "is_polars",
    "names_of",
    "plain_table",
    "plain_target",
    "target_like",
]


def is_pandas(table: Any) -> bool:
    """Whether it is a pandas frame or series. pandas is only looked for where the caller has already imported it."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(table, (pandas.DataFrame, pandas.Series))


def is_polars(table: Any) -> bool:
    polars = sys.modules.get("polars")
    return polars is not None and isinstance(table, (polars.DataFrame, polars.Series))


def plain_table(table: Any) -> Any:
    """Tensors become arrays; NumPy has no bfloat16, so half precision becomes single. The rest stays."""
    if hasattr(table, "detach"):
        table = table.detach().cpu()
        return (table.float() if table.is_floating_point() and table.itemsize < 4 else table).numpy()
    return table


def names_of(table: Any) -> list[Any]:
    """Column names, or numbers where there are none."""
    return list(table.columns) if hasattr(table, "columns") else list(range(table.shape[1]))


def columns_of(table: Any, columns: Sequence[int], rows: Any = None) -> Any:
    """Some columns (by position), and of them some rows: a frame of pandas, else an array. Sparse ones become dense; columns of an array
    that lie side by side are a view if all rows are wanted."""
    where = [int(column) for column in columns]
    if is_pandas(table):
        part = table.iloc[:, where]
        return part if rows is None else part.iloc[rows]
    if is_polars(table):
        part = table[:, where]
        return (part if rows is None else part[rows]).to_numpy()
    if sparse.issparse(table):
        return (table[:, where] if rows is None else table[rows][:, where]).toarray()
    side_by_side: Any = slice(where[0], where[-1] + 1) if where and where == list(range(where[0], where[-1] + 1)) else where
    return table[:, side_by_side] if rows is None else table[np.asarray(rows)[:, None], where]


def column_at(table: Any, position: int, rows: npt.NDArray[np.intp]) -> Any:
    """One column at some rows: a series of a frame, else an array."""
    if is_pandas(table):
        return table.iloc[rows, position].reset_index(drop=True)
    if is_polars(table):
        return table[:, position][rows]
    return table[:, [position]].toarray()[rows, 0] if sparse.issparse(table) else table[rows, position]


def cells_of(table: Any) -> Iterator[tuple[Any, npt.NDArray[Any]]]:
    """Name and values of each column of a frame, an array or a list of rows; nothing of anything else."""
    if is_pandas(table) and hasattr(table, "columns"):
        yield from ((name, table.iloc[:, position].to_numpy()) for position, name in enumerate(table.columns))
    elif is_polars(table) and hasattr(table, "columns"):
        yield from ((name, table[:, position].to_numpy()) for position, name in enumerate(table.columns))
    elif isinstance(table, (list, np.ndarray)):
        values = np.asarray(table, dtype=object) if isinstance(table, list) else table
        if values.ndim == 2:
            yield from enumerate(values.T)


def integer_columns(table: Any) -> list[Any]:
    """Names of the columns that hold integers or booleans."""
    if is_pandas(table):
        from pandas.api.types import is_bool_dtype, is_integer_dtype

        return [name for name, dtype in zip(table.columns, table.dtypes, strict=True) if is_integer_dtype(dtype) or is_bool_dtype(dtype)]
    if is_polars(table):
        return [name for name, dtype in table.schema.items() if dtype.is_integer() or dtype == sys.modules["polars"].Boolean]
    return names_of(table) if table.dtype.kind in "iub" else []


def as_dtype(table: Any, dtype: str, columns: Sequence[int] | None = None) -> Any:
    """The table with its columns (all, or those at the given positions of a frame) as floats of ``dtype``."""
    if is_pandas(table):
        where = range(table.shape[1]) if columns is None else columns
        return table.astype({table.columns[i]: dtype for i in where})
    if is_polars(table):
        import polars

        where = range(table.shape[1]) if columns is None else columns
        return table.cast({table.columns[i]: getattr(polars, dtype.capitalize()) for i in where})
    # Lists, and arrays of mixed objects, have no dtype to change.
    return table.astype(dtype, copy=False) if hasattr(table, "dtype") and table.dtype != object else table


def extend(table: Any, new: Any, kept: npt.NDArray[np.intp] | None = None) -> Any:
    """The rows of ``table`` - only those at ``kept`` if given - followed by ``new``, in the type, names and dtypes of the table.

    ``new`` is a matrix, or a list with one array or series per column. Floats are rounded on
    their way into a column of integers or booleans.
    """
    if is_pandas(table):
        return _extend_pandas(table, new, kept)
    if is_polars(table):
        return _extend_polars(table, new, kept)
    old = table if kept is None else table[kept]
    if sparse.issparse(old):
        return sparse.vstack([old, new], format=old.format, dtype=old.dtype)
    columns = new if isinstance(new, list) else [new]
    n, n_new = old.shape[0], columns[0].shape[0]
    out = np.empty((n + n_new, old.shape[1]), dtype=old.dtype)
    out[:n] = old
    for position, values in enumerate(columns):
        where = (slice(n, None), position) if isinstance(new, list) else slice(n, None)
        out[where] = as_whole(values, old.dtype) if _must_round(values, old.dtype.kind in "iub") else values
    return out


def _extend_pandas(table: Any, new: Any, kept: Any) -> Any:
    import pandas
    from pandas.api.types import is_bool_dtype, is_integer_dtype

    old = table if kept is None else table.iloc[kept]
    if sparse.issparse(new):
        rows = pandas.DataFrame.sparse.from_spmatrix(new)
        rows = rows.astype(dict(enumerate(table.dtypes)))
    else:
        columns = {}
        for position, (values, dtype) in enumerate(zip(_columns(new), table.dtypes, strict=True)):
            if not is_pandas(values):
                whole = is_bool_dtype(dtype) or is_integer_dtype(dtype)
                kind = getattr(dtype, "numpy_dtype", dtype)  # that of pandas' own integers, which may be missing
                values = pandas.Series(as_whole(values, kind) if _must_round(values, whole) else values).astype(dtype)
            columns[position] = values
        rows = pandas.DataFrame(columns)
    rows.columns = table.columns
    return pandas.concat([old, rows], ignore_index=True)


def _extend_polars(table: Any, new: Any, kept: Any) -> Any:
    import polars

    old = table if kept is None else table[kept]
    columns: list[Any] = []
    for values, (name, dtype) in zip(_columns(new), table.schema.items(), strict=True):
        if is_polars(values):
            columns.append(values)
        elif values.dtype == object:
            columns.append(polars.Series(name, values.tolist(), dtype=dtype))
        else:
            kind = str(dtype).lower()  # Int64 is int64; Boolean, and integers of 128 bits, have no such name in NumPy
            whole = dtype.is_integer() or dtype == polars.Boolean
            rounded = as_whole(values, getattr(np, kind, None) or np.bool_) if _must_round(values, whole) else values
            columns.append(polars.Series(name, np.ascontiguousarray(rounded)).cast(dtype))
    return polars.concat([old, polars.DataFrame(columns)])


def _columns(new: Any) -> list[npt.NDArray[Any]]:
    return new if isinstance(new, list) else list(np.asarray(new).T)


def _must_round(values: npt.NDArray[Any], whole: bool) -> bool:
    return whole and values.dtype.kind == "f"


def as_whole(values: npt.NDArray[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Floats as the nearest integers of a type, which beyond its ends are the ends; for booleans the nearest of 0.0 and 1.0."""
    nearest, kind = np.rint(values), np.dtype(dtype)
    if kind.kind not in "iu":
        return np.asarray(nearest)
    limits = np.iinfo(kind)
    beyond = nearest >= float(limits.max)  # a float64 may be 2**63 but not 2**63 - 1
    whole = np.where(beyond, 0, np.maximum(nearest, float(limits.min))).astype(kind)
    whole[beyond] = limits.max
    return np.asarray(whole)


def plain_target(y: Any) -> Any:
    """The target as scikit-learn reads it: polars and tensors become NumPy, the rest stays."""
    return y.to_numpy() if is_polars(y) else plain_table(y)


def target_like(y: Any, values: npt.NDArray[Any]) -> Any:
    """``values`` in the type, name and dtype of the target ``y``."""
    if isinstance(y, list):
        return values.tolist()
    if is_pandas(y):
        import pandas

        if isinstance(y, pandas.Series):
            return pandas.Series(values, dtype=y.dtype, name=y.name)
        return pandas.DataFrame(values, columns=y.columns).astype(y.dtypes.to_dict())
    if is_polars(y):
        import polars

        if isinstance(y, polars.Series):
            return polars.Series(y.name, values.tolist(), dtype=y.dtype)
        columns = values.reshape(len(values), -1).T
        return polars.DataFrame(
            [polars.Series(name, column.tolist(), dtype=dtype) for column, (name, dtype) in zip(columns, y.schema.items(), strict=True)]
        )
    return values
