"""Tables from files, other libraries and memory, as polars frames.

Whatever is wrong with a file ends in one :class:`InputError` that names the file, says what was found and what to do.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import polars as pl

from counterpoise._errors import InputError, bad_input, listing

from ._dataset import Dataset

__all__ = ["MISSING_MARKERS", "as_frame", "read_file", "read_table"]

MISSING_MARKERS = ("", "?", "NA", "N/A", "n/a", "na", "NaN", "nan", "null", "NULL")  # text that stands for "no value"

DELIMITED = {".csv": "", ".txt": "", ".data": "", ".tsv": "\t"}  # "" = find the delimiter
KINDS = {
    **dict.fromkeys(DELIMITED, "delimited"),
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
ACCEPTED = "csv, tsv, txt, data, parquet, arrow, feather, jsonl or ndjson, each also .gz or .zip"
DELIMITERS = "\t;,|"
HEAD = 1 << 16  # bytes looked at to find delimiter and header
# What polars raises on purpose, and what reaches us when its Rust side gives up on damaged input.
POLARS_ERRORS: tuple[type[BaseException], ...] = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError)
# What a column of a table in memory raises if its values are of several types.
CONVERSION_ERRORS: tuple[type[BaseException], ...] = (*POLARS_ERRORS, TypeError, OverflowError)


def read_table(source: Any, header: bool = True) -> pl.DataFrame | Dataset:
    """Read a table.

    Args:
        source: a path to a file (csv, tsv, txt, data, parquet, arrow, feather, jsonl, ndjson; also .gz, and .zip with one member);
            ``sklearn:NAME``, ``openml:ID``, ``hf:NAME``; a name that :func:`counterpoise.datasets.load` knows; or a table in memory:
            polars, pandas, pyarrow, a 2-D NumPy array (columns ``x0``, ``x1``, ...), a mapping of columns.
        header: whether the first line of a delimited file names the columns; without, they are called ``x0``, ``x1``, ...

    Returns:
        The frame, or a :class:`Dataset` where the source knows its target.

    Raises:
        InputError: a file that is missing, empty, damaged, not UTF-8 or ragged; an unknown name; an object that is no table.
        MissingExtraError: ``hf:`` without the package ``datasets``, ``openml:`` without pandas.

    >>> read_table({"age": [31, 45], "sick": ["no", "yes"]}).columns
    ['age', 'sick']
    >>> read_table("sklearn:iris").target
    'target'
    """
    if isinstance(source, Dataset):
        return source
    if isinstance(source, str):
        from . import _libraries, _load

        prefix, colon, rest = source.partition(":")
        if colon and prefix in _libraries.SOURCES:
            return _libraries.SOURCES[prefix](rest)
        if source in _load.names() and not Path(source).is_file():
            return _load.load(source)
    if isinstance(source, (str, Path)):
        return read_file(Path(source), header=header)
    return as_frame(source)


def as_frame(table: Any) -> pl.DataFrame:
    """A polars frame of a table in memory; see :func:`read_table`."""
    module = type(table).__module__.partition(".")[0]
    try:
        if isinstance(table, pl.DataFrame):
            frame = table
        elif isinstance(table, pl.LazyFrame):
            frame = table.collect()
        elif module == "pandas" and hasattr(table, "columns"):
            frame = _from_pandas(table)
        elif module == "pyarrow" and hasattr(table, "column_names"):
            _check_names("data", list(table.column_names))
            frame = pl.DataFrame(pl.from_arrow(table))
        elif isinstance(table, (np.ndarray, list, tuple)):
            frame = _from_array(np.asarray(table))
        elif isinstance(table, dict):
            frame = pl.DataFrame(table, strict=False)
        else:
            hint = "Convert it with .toarray()." if hasattr(table, "toarray") else ""
            bad_input("data", type(table).__name__, "a path, a data set's name, or a polars, pandas, pyarrow or NumPy table", hint)
    except InputError:
        raise
    except CONVERSION_ERRORS as error:
        bad_input("data", type(table).__name__, "a table with one type per column", _first_line(error))
    return _named(frame, "data")


def read_file(path: Path, *, header: bool = True, kind: str | None = None, quoted: bool = True) -> pl.DataFrame:
    """Read one file; ``kind`` (``delimited``, ``parquet``, ``arrow``, ``jsonl``) where its name does not tell. Without ``quoted``,
    quotation marks in delimited text are ordinary characters."""
    _check_file(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packing = suffixes.pop() if suffixes and suffixes[-1] in (".gz", ".zip") else ""
    suffix = suffixes[-1] if suffixes else ""
    kind = kind or KINDS.get(suffix)
    if kind is None:
        ending = f"the ending {suffix}" if suffix else "a name without an ending"
        _fail(path, f"{ending} says nothing about the format", f"Known: {ACCEPTED}")
    content: Path | bytes = _unpack(path, packing) if packing else path
    if len(content) == 0 if isinstance(content, bytes) else content.stat().st_size == 0:
        _fail(path, "the file is empty")
    try:
        if kind == "delimited":
            frame = _read_delimited(path, content, DELIMITED.get(suffix, ""), header, quoted)
        else:
            frame = _read_typed(content if isinstance(content, Path) else io.BytesIO(content), kind)
    except InputError:
        raise
    except POLARS_ERRORS as error:
        _fail(path, f"not a readable {suffix.lstrip('.') or kind} file: {_first_line(error)}")
    if frame.height == 0 or frame.width == 0:
        _fail(path, "there are column names but no rows" if frame.width else "there are no columns")
    return _named(frame, str(path))


# -- files ------------------------------------------------------------------------------------------------------------------------------


def _check_file(path: Path) -> None:
    try:
        if path.is_file():
            return
        folder = path.is_dir()
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    except (OSError, ValueError) as error:  # a name too long, with a zero byte, or in a folder that may not be read
        _fail(path, _first_line(error))
    if folder:
        tables = sorted(entry.name for entry in path.iterdir() if set(entry.suffixes) & set(KINDS))
        _fail(path, "it is a folder", f"Name one of its files: {listing(tables)}" if tables else f"Name a file: {ACCEPTED}")
    from ._load import names

    close = difflib.get_close_matches(path.name, [*siblings, *names()], n=3)
    close += difflib.get_close_matches(str(path), [name for name in names() if name not in close], n=1)
    _fail(path, "there is no such file or data set", f"Did you mean {' or '.join(repr(name) for name in close)}?" if close else "")


def _unpack(path: Path, packing: str) -> bytes:
    """The bytes inside a .gz file or inside a .zip file with one member."""
    try:
        if packing == ".gz":
            with gzip.open(path) as stream:
                return stream.read()
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX")]
            if len(members) != 1:
                _fail(path, f"the archive holds {len(members)} files", "Unpack it and name one of them")
            return archive.read(members[0])
    except (EOFError, OSError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        _fail(path, f"the {packing} archive is damaged or incomplete ({_first_line(error)})", "Fetch the file again")


def _read_typed(content: Path | io.BytesIO, kind: str) -> pl.DataFrame:
    if kind == "parquet":
        return pl.read_parquet(content)
    if kind == "jsonl":
        return pl.read_ndjson(content, infer_schema_length=None)
    try:
        return pl.read_ipc(content)
    except pl.exceptions.ComputeError:  # Arrow has a stream format beside the file format
        if isinstance(content, io.BytesIO):
            content.seek(0)
        return pl.read_ipc_stream(content)


def _read_delimited(path: Path, content: Path | bytes, separator: str, header: bool, quoted: bool) -> pl.DataFrame:
    head = _head(path, content)
    separator = separator or _delimiter(head)
    names = _column_names(path, head, separator, header)
    options: dict[str, Any] = {
        "separator": separator,
        "has_header": header,
        "quote_char": '"' if quoted else None,
        "new_columns": names,
        "null_values": list(MISSING_MARKERS),
        "decimal_comma": separator == ";" and bool(re.search(r"\d,\d", head)) and not re.search(r"\d\.\d", head),
    }
    try:
        try:
            frame = pl.read_csv(content, infer_schema_length=10_000, **options)
        except pl.exceptions.ComputeError as error:
            if "could not parse" not in str(error):
                raise
            frame = pl.read_csv(content, infer_schema_length=None, **options)  # a column's type shows only further down
    except pl.exceptions.PolarsError as error:
        if "utf-8" in str(error):
            _fail(path, "the text is not UTF-8", "Convert it, for example with: iconv -f latin1 -t utf-8")
        if "more fields" in str(error):
            _ragged(path, content, separator, len(names))
        raise
    if quoted and frame.width > 1 and frame.height and frame[:, -1].null_count():
        _ragged(path, content, separator, len(names), certain=False)  # rows that end early read as missing values
    frame = frame.with_columns([_unpadded(column) for column in frame if column.dtype == pl.String])
    # Blank lines come as rows without any value.
    return frame.filter(~pl.all_horizontal(pl.all().is_null())) if frame.width > 1 else frame


def _unpadded(column: pl.Series) -> pl.Series:
    """A column of text without blanks around its values, as numbers if that is what they are then (", 39, Private")."""
    stripped = column.str.strip_chars()
    if not (stripped != column).any():
        return column
    stripped = stripped.set(stripped.is_in(MISSING_MARKERS), None)
    for dtype in (pl.Int64, pl.Float64):
        numbers = stripped.cast(dtype, strict=False)
        if numbers.null_count() == stripped.null_count():
            return numbers
    return stripped


def _head(path: Path, content: Path | bytes) -> str:
    """The first lines as text."""
    if isinstance(content, bytes):
        raw = content[:HEAD]
    else:
        with content.open("rb") as stream:
            raw = stream.read(HEAD)
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        _fail(path, "the text is UTF-16", "Convert it, for example with: iconv -f utf-16 -t utf-8")
    if b"\0" in raw:
        _fail(path, "it holds binary data, not text", f"Known: {ACCEPTED}")
    if len(raw) == HEAD:
        raw = raw[: raw.rfind(b"\n") + 1] or raw.rsplit(b",", 1)[0]  # no half line, and no half character at its end
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte 0x{raw[error.start]:02x} at position {error.start}"
        _fail(path, f"the text is not UTF-8 ({found})", "Convert it, for example with: iconv -f latin1 -t utf-8")


def _delimiter(head: str) -> str:
    """The delimiter that occurs equally often in every one of the first lines, most often if there are several; a comma if none does."""
    lines = [re.sub(r'"[^"]*"', "", line) for line in head.splitlines() if line.strip()][:50]
    counts = {mark: Counter(line.count(mark) for line in lines) for mark in DELIMITERS}
    regular = {mark: max(count) for mark, count in counts.items() if len(count) == 1 and max(count) > 0}
    if regular:
        return max(regular, key=lambda mark: regular[mark])
    in_first = {mark: lines[0].count(mark) if lines else 0 for mark in DELIMITERS}
    best = max(in_first, key=lambda mark: in_first[mark])
    return best if in_first[best] else ","


def _column_names(path: Path, head: str, separator: str, header: bool) -> list[str]:
    try:
        first = next(csv.reader(io.StringIO(head.lstrip("\r\n"), newline=""), delimiter=separator), [])
    except csv.Error as error:
        _fail(path, f"the first line cannot be split into columns ({error})")
    if not header:
        return [f"x{i}" for i in range(len(first))]
    names = [" ".join(name.split()) for name in first]
    fractions = sum(bool(re.fullmatch(r"[-+]?\d*\.\d+(e[-+]?\d+)?", name)) for name in names)
    if 2 * fractions > len(names):
        _fail(path, f"the first line holds numbers ({listing(names, 3)}), not column names", "Use --no-header (header=False)")
    return _check_names(str(path), [name or f"x{i}" for i, name in enumerate(names)], "If the first line is data, use --no-header")


def _ragged(path: Path, content: Path | bytes, separator: str, width: int, certain: bool = True) -> None:
    """Name the first line whose number of fields differs from ``width``. Without one, fail only if ``certain`` there is one."""
    try:
        with io.TextIOWrapper(content.open("rb") if isinstance(content, Path) else io.BytesIO(content), encoding="utf-8-sig") as stream:
            rows = csv.reader(stream, delimiter=separator)
            for row in rows:
                if row and len(row) != width:
                    _fail(path, f"line {rows.line_num} has {len(row)} fields, the first line has {width}", "Correct or remove that line")
    except (csv.Error, UnicodeDecodeError):
        pass  # the csv module is stricter than polars about quotes and lengths; what polars found stands
    if certain:
        _fail(path, f"some lines have more fields than the first line's {width}")


# -- memory -----------------------------------------------------------------------------------------------------------------------------


def _from_pandas(table: Any) -> pl.DataFrame:
    columns = [str(name) for name in table.columns]
    _check_names("data", columns)
    series = []
    for position, name in enumerate(columns):
        column = table.iloc[:, position]
        try:
            series.append(pl.Series(name, pl.from_pandas(column)))
        except CONVERSION_ERRORS:
            series.append(pl.Series(name, [None if value is None or value != value else str(value) for value in column]))
    return pl.DataFrame(series)


def _from_array(array: np.ndarray[Any, Any]) -> pl.DataFrame:
    if array.ndim != 2:
        bad_input("data", f"an array of shape {array.shape}", "a table of shape (rows, columns)")
    if array.dtype.kind not in "biufUSOM":
        bad_input("data", f"an array of {array.dtype}", "numbers, texts, booleans or dates")
    names = [f"x{i}" for i in range(array.shape[1])]
    if array.dtype.kind == "O":
        return pl.DataFrame([_object_series(name, array[:, i]) for i, name in enumerate(names)])
    values = array.astype(str) if array.dtype.kind == "S" else array
    return pl.DataFrame({name: values[:, i] for i, name in enumerate(names)})


def _object_series(name: str, values: np.ndarray[Any, Any]) -> pl.Series:
    try:
        return pl.Series(name, values.tolist())
    except CONVERSION_ERRORS:
        return pl.Series(name, [None if value is None or value != value else str(value) for value in values])


# -- checks -----------------------------------------------------------------------------------------------------------------------------


def _named(frame: pl.DataFrame, where: str) -> pl.DataFrame:
    """Column names on one line, without surrounding blanks, none empty."""
    names = [" ".join(name.split()) or f"x{i}" for i, name in enumerate(frame.columns)]
    return frame if names == frame.columns else frame.rename(dict(zip(frame.columns, _check_names(where, names), strict=True)))


def _check_names(where: str, names: list[str], hint: str = "Give every column its own name") -> list[str]:
    repeated = [name for name, count in _counted(names) if count > 1]
    if repeated:
        raise InputError(f"{where}: several columns are called {listing(map(repr, repeated), 3)}. {hint}.")
    return names


def _counted(names: list[str]) -> Iterator[tuple[str, int]]:
    yield from Counter(names).items()


def _first_line(error: BaseException) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text if len(text) <= 160 else text[:157] + "..."


def _fail(path: Path, what: str, hint: str = "") -> NoReturn:
    end = "" if not hint or hint.endswith(("?", ".")) else "."
    name = str(path) if len(str(path)) <= 300 else f"...{str(path)[-300:]}"
    raise InputError(f"Cannot read {name!r}: {what}." + (f" {hint}{end}" if hint else ""))
