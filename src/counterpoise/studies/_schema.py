"""How a table becomes the matrix of a study, written down so that the same can be done to new rows.

Columns are brought to one of four types first (:func:`canonical`): numbers, booleans, moments, texts. So a table means the same whether it
came from csv, where everything is text, or from parquet, where everything has a type.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from counterpoise._errors import InputError, listing
from counterpoise.datasets._tables import MISSING_MARKERS

__all__ = ["DATE_PARTS", "Feature", "Schema", "canonical", "is_whole", "labels_of", "merged_name", "numbers_of"]

FloatArray = npt.NDArray[np.floating]
DATE_PARTS = ("year", "month", "weekday", "hour")
ISO_DATE = r"^\d{4}[-/]\d{1,2}[-/]\d{1,2}"  # day-first and month-first dates cannot be told apart, so they stay text
LARGEST_EXACT = 2**53  # above, float64 skips whole numbers


@dataclass(frozen=True)
class Feature:
    """One column of X. Categorical: X holds code i for ``levels[i]``; what is missing or was never seen is NaN."""

    name: str
    kind: Literal["numeric", "categorical"]
    source: str  # column of the table
    levels: tuple[str, ...] = ()
    part: str = ""  # year, month, weekday or hour of a column of dates


@dataclass(frozen=True)
class Schema:
    """How a table becomes X, text and y.

    ``classes`` are the labels in the order of the codes of y (two classes: the second is the positive one); ``merged`` are the rare
    labels that share the class called by all of them (``merged_name``); ``dropped`` are (column, reason) of what is not used;
    ``dtype`` is the type of X.
    """

    features: tuple[Feature, ...]
    text: tuple[str, ...]
    target: str
    task: str
    classes: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]
    merged: tuple[str, ...] = ()
    dtype: str = "float64"

    def encode(self, frame: pl.DataFrame) -> tuple[FloatArray, npt.NDArray[np.object_] | None]:
        """X (n, p) with NaN for what is missing, and the text (n,) or ``None``, of a table with the same columns.

        Columns the schema does not know are ignored; categories that were never seen become NaN.

        Raises:
            InputError: columns that are missing, or text in a column of numbers.
        """
        sources = dict.fromkeys([*(feature.source for feature in self.features), *self.text])
        missing = [column for column in sources if column not in frame.columns]
        if missing:
            plural = "s" * (len(missing) > 1)
            raise InputError(f"The table lacks the column{plural} {listing(map(repr, missing))}; it has {listing(frame.columns)}.")
        X = np.empty((frame.height, len(self.features)), dtype=self.dtype)
        for j, feature in enumerate(self.features):
            X[:, j] = _encode(feature, frame[feature.source])
        return X, _joined([frame[column] for column in self.text], frame.height)

    def encode_target(self, frame: pl.DataFrame) -> npt.NDArray[np.int64] | npt.NDArray[np.float64]:
        """y (n,) of a table that holds the target: codes of the classes, -1 where missing; for regression numbers, NaN where missing.

        Raises:
            InputError: no such column, or a label that is not among ``classes``.
        """
        if self.target not in frame.columns:
            raise InputError(f"The table lacks the target {self.target!r}; it has {listing(frame.columns)}.")
        column = canonical(frame[self.target])
        if self.task == "regression":
            return numbers_of(column)
        labels = labels_of(column)
        codes = {label: code for code, label in enumerate(self.classes)}
        codes |= {label: codes[merged_name(self.merged)] for label in self.merged}
        unknown = [label for label in labels.unique().drop_nulls().sort() if label not in codes]
        if unknown:
            raise InputError(
                f"Column {self.target!r} holds {listing(map(repr, unknown), 3)}; the study knows {listing(map(repr, codes))}. "
                "Remove those rows, or correct the labels."
            )
        return labels.replace_strict(codes, default=None, return_dtype=pl.Int64).fill_null(-1).to_numpy()

    def to_dict(self) -> dict[str, Any]:
        """As plain lists and dictionaries, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Schema:
        """The inverse of :meth:`to_dict`, also after JSON made lists of the tuples."""
        values: dict[str, Any] = {field.name: content[field.name] for field in fields(cls) if field.name in content}
        features = tuple(Feature(**{**feature, "levels": tuple(feature["levels"])}) for feature in values.pop("features"))
        dropped = tuple((column, reason) for column, reason in values.pop("dropped"))
        plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(features=features, dropped=dropped, **plain)


def merged_name(labels: Iterable[str]) -> str:
    """The name of a class that several rare ones were merged into."""
    return " + ".join(labels)


# -- columns ----------------------------------------------------------------------------------------------------------------------------


def canonical(column: pl.Series) -> pl.Series:
    """The column as numbers, booleans, moments (UTC, without zone) or text; text that only holds numbers, true/false or ISO dates is read
    as such, and text that stands for a missing value is missing. Types that have no place in a table come back as they are."""
    dtype = column.dtype
    if isinstance(dtype, pl.Decimal):
        return column.cast(pl.Float64)
    if dtype == pl.Date:
        return column.cast(pl.Datetime("us"))
    if isinstance(dtype, pl.Datetime):
        utc = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if dtype.time_zone else column
        return utc.cast(pl.Datetime("us"))
    if dtype == pl.Duration:
        return column.dt.total_microseconds() / 1e6  # seconds
    if dtype == pl.Time:
        return column.cast(pl.Int64) / 1e9  # seconds since midnight
    if dtype in (pl.Categorical, pl.Enum):  # declared to be categories, even if they look like numbers
        return _without_markers(column.cast(pl.String))
    return _parsed(column) if dtype == pl.String else column


def _parsed(text: pl.Series) -> pl.Series:
    clean = _without_markers(text)
    present = clean.drop_nulls()
    if not len(present):
        return clean
    # A look at one value spares columns of words the attempts below.
    if present.head(1).cast(pl.Float64, strict=False).null_count() == 0:
        numbers = clean.cast(pl.Float64, strict=False)
        if numbers.null_count() == clean.null_count():
            return numbers
    if present[0].lower() in ("true", "false"):
        lower = clean.str.to_lowercase()
        if lower.drop_nulls().is_in(["true", "false"]).all():
            return lower == "true"
    if present.head(1).str.contains(ISO_DATE)[0]:
        try:
            moments = canonical(clean.str.to_datetime(strict=False, time_unit="us"))
        except pl.exceptions.PolarsError:
            return clean
        if moments.null_count() == clean.null_count():
            return moments
    return clean


def _without_markers(text: pl.Series) -> pl.Series:
    stripped = text.str.strip_chars()
    return stripped.set(stripped.is_in(MISSING_MARKERS), None)


def numbers_of(column: pl.Series) -> npt.NDArray[np.float64]:
    """(n,) float64 with NaN for what is missing or infinite; an error names the first value that is no number."""
    column = canonical(column)
    if column.dtype == pl.String:
        wrong = column.filter(column.cast(pl.Float64, strict=False).is_null() & column.is_not_null())
        if len(wrong):
            raise InputError(f"Column {column.name!r} should hold numbers, but holds {wrong[0]!r}. Correct it, or leave the cell empty.")
    if not (column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null, pl.String)):
        raise InputError(f"Column {column.name!r} should hold numbers, but holds {str(column.dtype).lower()}.")
    values = column.cast(pl.Float64).fill_null(np.nan).to_numpy().astype(np.float64)
    values[~np.isfinite(values)] = np.nan  # one NaN, whatever stood there
    values += 0.0  # no negative zero
    return values


def is_whole(column: pl.Series) -> bool:
    """Whether a column of numbers holds only whole ones (floats from a csv with gaps count)."""
    if column.dtype.is_integer():
        return True
    if not column.dtype.is_float():
        return False
    values = column.drop_nulls().to_numpy()
    values = values[~np.isnan(values)]
    return bool(np.all(np.abs(values) < LARGEST_EXACT) and np.all(values == np.round(values)))


def labels_of(column: pl.Series) -> pl.Series:
    """Readable names of values: "1" for 1 and 1.0, "true", the text itself; null for what is missing."""
    if column.dtype.is_float():
        column = column.fill_nan(None)
        if is_whole(column):
            column = column.cast(pl.Int64)
    return column.cast(pl.String)


def _encode(feature: Feature, column: pl.Series) -> FloatArray:
    if feature.part:
        moments = canonical(column)
        if moments.dtype != pl.Datetime and moments.null_count() < len(moments):
            found = repr(moments.drop_nulls()[0])
            raise InputError(f"Column {column.name!r} should hold dates such as 2024-05-31 or 2024-05-31 14:00, but holds {found}.")
        return _date_part(moments, feature.part)
    if feature.kind == "numeric":
        return numbers_of(column)
    # An enumeration cast keeps the order of the levels and makes anything else null.
    codes = levels_text(column).cast(pl.Enum(list(feature.levels)), strict=False).to_physical()
    return codes.cast(pl.Float64).fill_null(np.nan).to_numpy()


def _date_part(moments: pl.Series, part: str) -> FloatArray:
    values = getattr(moments.cast(pl.Datetime("us")).dt, part)()
    return np.asarray(values.cast(pl.Float64).fill_null(np.nan).to_numpy())


def levels_text(column: pl.Series) -> pl.Series:
    """A categorical column as text with nulls, also where a small new table holds only numbers or only true and false."""
    if column.dtype in (pl.Categorical, pl.Enum):
        column = column.cast(pl.String)
    return _without_markers(column) if column.dtype == pl.String else labels_of(canonical(column))


def _joined(columns: list[pl.Series], rows: int) -> npt.NDArray[np.object_] | None:
    """(n,) the text columns of each row joined by newlines; nothing where one is missing."""
    if not columns:
        return None
    frame = pl.DataFrame([column.cast(pl.String).alias(str(i)) for i, column in enumerate(columns)])
    joined = frame.select(pl.concat_str(pl.all().fill_null(""), separator="\n")).to_series()
    return joined.to_numpy().astype(object)
