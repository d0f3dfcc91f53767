"""What no resampler can use, refused with the name of the column and the next step."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.utils.validation import assert_all_finite

from counterpoise._errors import InputError, bad_input, check_range, listing

from ._tables import cells_of, is_pandas, is_polars

__all__ = ["check_finite", "check_jobs", "check_names", "check_numeric", "check_squares", "naming_missing", "naming_text"]

DATES_HINT = "Turn dates into numbers first, such as days since the first one."


def check_finite(X: Any, names: list[Any]) -> None:
    """Raise with the names of the columns that hold NaN or infinity."""
    try:
        assert_all_finite(X)
    except ValueError:
        if sparse.issparse(X):
            cells = X.tocoo()
            wrong = np.unique(cells.col[~np.isfinite(cells.data)])
        else:
            wrong = np.flatnonzero(~np.isfinite(X).all(axis=0))
        columns = f"NaN or infinity in column {listing(names[i] for i in wrong)}"
        bad_input("X", columns, "finite numbers", "Impute before resampling, as a step of the same pipeline.")


def check_squares(X: Any, names: list[Any] | None, terms: int, dtype: npt.DTypeLike | None = None, argument: str = "X") -> None:
    r"""Raise where a sum of ``terms`` squares of differences is more than ``dtype`` (default: that of X) holds.

    A difference is at most twice the largest value, so values up to :math:`\sqrt{m / (4 \cdot terms)}` are safe, m the largest number.
    """
    kind = np.dtype(X.dtype if dtype is None else dtype)
    values = X.data if sparse.issparse(X) else X
    if kind.kind != "f" or not values.size:
        return
    single = kind.itemsize <= 4  # half precision is computed in single
    limit = float(np.sqrt(float(np.finfo(np.float32 if single else np.float64).max) / (4 * terms)))
    if max(float(values.max()), -float(values.min())) <= limit:
        return
    cells = X.tocoo() if sparse.issparse(X) else None
    at = int(np.argmax(np.abs(values if cells is None else cells.data)))
    column = at % X.shape[1] if cells is None else int(cells.col[at])
    value = float(values.flat[at] if cells is None else cells.data[at])
    where = "a value" if names is None else f"column {names[column]}"
    name = "float32" if single else "float64"
    bad_input(
        argument, f"{value:g} in {where}", f"numbers up to about {limit:.0e}, since beyond that squares of differences overflow {name}",
        "Scale the target." if names is None else "Scale the column first, by its largest value for example.",
    )  # fmt: skip


def check_names(table: Any) -> None:
    """Raise where columns of a pandas frame share a name (polars has no such frames)."""
    if is_pandas(table) and hasattr(table, "columns") and not table.columns.is_unique:
        twice = table.columns[table.columns.duplicated()].unique()
        bad_input("X", f"several columns of the name {listing(twice)}", "a name of its own for every column", "Rename or drop the copies.")


def check_jobs(n_jobs: Any) -> None:
    """Raise unless it is a number of processes, counted from the last core if negative, or None."""
    if n_jobs is None:
        return
    check_range("n_jobs", n_jobs, integer=True)
    if n_jobs == 0:
        bad_input("n_jobs", n_jobs, "None, a number of processes, or -1 for all cores")


def check_numeric(X: Any, table: Any = None, name: Any = None) -> None:
    """Raise for what becomes an array but cannot be interpolated: dates, and floats of more than 64 bits.

    ``table`` is what the array X was made of; or X is the one column ``name``.
    """
    column = "" if name is None else f" in column {name}"
    if is_polars(table):
        dates = [name for name, dtype in table.schema.items() if dtype.is_temporal()]
        if dates:
            bad_input("X", f"dates in column {listing(dates)}", "numbers", DATES_HINT)
    if X.dtype.kind in "mM":
        bad_input("X", f"values of {X.dtype}{column}", "numbers", DATES_HINT)
    if X.dtype.kind == "f" and X.dtype.itemsize > 8:
        bad_input("X", f"values of {X.dtype}{column}", "float64, float32 or integers", "Convert with X.astype('float64').")


@contextmanager
def naming_text(table: Any, hint: str, accepted: str = "numbers", columns: Collection[int] | None = None) -> Iterator[None]:
    """If a table, or ``columns`` of it, cannot be read as numbers because of text or dates, say where; other failures stay as they are."""
    try:
        yield
    except InputError:
        raise
    except Exception:
        for position, (name, values) in enumerate(cells_of(table)):
            if columns is not None and position not in columns:
                continue
            if values.dtype.kind in "mM":
                bad_input("X", f"dates in column {name}", accepted, DATES_HINT)
            text = next((value for value in values.tolist() if isinstance(value, str) and not _reads_as_number(value)), None)
            if text is not None:
                bad_input("X", f"text in column {name}, such as {text[:20]!r}", accepted, hint)
        raise


@contextmanager
def naming_missing(table: Any) -> Iterator[None]:
    """If a table of categories cannot be read because values are missing, say in which columns; other failures stay as they are."""
    try:
        yield
    except InputError:
        raise
    except Exception:
        wrong = [name for name, values in cells_of(table) if _is_missing(values).any()]
        if not wrong:
            raise
        accepted = "a category in every row"
        bad_input("X", f"missing values in column {listing(wrong)}", accepted, "Make missing a category of its own first.")


def _is_missing(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    if values.dtype.kind == "f":
        return np.asarray(np.isnan(values))
    # NaN, and pandas' NA and NaT, are the values that do not equal themselves for sure.
    return np.array([value is None or (value == value) is not True for value in values.tolist()], dtype=bool)


def _reads_as_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
