"""From a table and a few options to a :class:`Problem`: what is predicted from what, which rows belong together, and what was noticed.

Everything here looks at the data once, before any split; nothing that depends on the target beyond its type and its counts is fitted.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from counterpoise._errors import InputError, bad_input, check_choice, check_range, listing
from counterpoise.datasets._dataset import Dataset
from counterpoise.datasets._tables import as_frame, read_table
from counterpoise.groups import Groups

from ._leakage import predicts_alone
from ._schema import DATE_PARTS, Feature, Schema, canonical, is_whole, labels_of, merged_name, numbers_of
from ._splits import strata_of
from ._types import as_tuple

__all__ = ["Feature", "Problem", "Schema", "build_problem"]

FLOAT64_ROWS = 100_000  # above, X is float32
MOST_CLASSES = 20  # whole numbers with at most so many values are classes
MOST_GROUPS = 20  # numbers with more values are binned when they are reported by
GROUP_BINS = 5
MISSING_TARGET_LIMIT = 0.2
FEWEST_IN_CLASS = 4  # two classes: 2 folds x 2
FEWEST_ROWS = 20  # regression: ten quantile bins x 2
FEW = 20  # below, thresholds come from the prior and only large differences can show
TEXT_LENGTH, TEXT_UNIQUE = 30, 0.5  # mean characters and share of distinct values that make a column text
MANY_LEVELS = 0.3  # categories with more levels than this share of the rows are warned about
# What people write for numbers and a plain reading does not take: 12,345.67 - 1 007 - 1,7 - 12% - EUR 5 - $5 - <0.1 - 5 kg - (3).
_CURRENCY = r"\p{Sc}|AUD|BRL|CAD|CHF|CNY|CZK|DKK|EUR|GBP|HKD|HUF|INR|JPY|KRW|MXN|NOK|NZD|PLN|RUB|SEK|SGD|TRY|USD|ZAR"
_DIGITS = r"(?:\d+|\d{1,3}(?:[.,'\u2019\s]\d{3})+)(?:[.,]\d+)?(?:[eE][+-]?\d+)?"
NUMBER_LIKE = (
    rf"^[(<>~\u2264\u2265]?\s?[+\u2212-]?\s?(?:{_CURRENCY})?\s?[+\u2212-]?{_DIGITS}"
    rf"(?:\s?(?:%|\u2030|{_CURRENCY}|[kKM]|[kcm]?[glm])|\s\pL{{1,3}})?\)?$"
)
TASKS = ("auto", "classification", "regression")


@dataclass(frozen=True, eq=False)
class Problem:
    """A data set made ready for a study.

    Attributes:
        name: of the data set, for titles.
        X: (n, p) numbers and category codes, NaN where missing; float64 up to 1e5 rows, float32 above; C-contiguous.
        text: (n,) text of each row, or ``None``.
        y: (n,) int64 codes of ``schema.classes`` (two classes: 1 = positive); float64 for regression.
        task: ``binary``, ``multiclass`` or ``regression``.
        schema: how the table became X, text and y.
        groups: by column name, what to report by.
        blocks: (n,) int64; rows with the same id never straddle folds (copies of a row, clusters, and chains of both).
        clustered: whether a cluster column was given.
        copies: number of rows that are exact copies of an earlier row, in features and target.
        time: (n,) int64 rank in time order, equal for one instant; or ``None``.
        weight: (n,) float64 > 0, used in fitting; or ``None``.
        fixed_test: (n,) bool, the rows of the test file; or ``None``.
        notices: what was done to the data and should be known, one sentence each.
        data_hash: hash of everything above that a result depends on.
    """

    name: str
    X: npt.NDArray[np.floating]
    text: npt.NDArray[np.object_] | None
    y: npt.NDArray[np.int64] | npt.NDArray[np.float64]
    task: str
    schema: Schema
    groups: Mapping[str, Groups]
    blocks: npt.NDArray[np.int64]
    clustered: bool
    copies: int
    time: npt.NDArray[np.int64] | None
    weight: npt.NDArray[np.float64] | None
    fixed_test: npt.NDArray[np.bool_] | None
    notices: tuple[str, ...]
    data_hash: str

    def __repr__(self) -> str:
        classes = f", {listing(self.schema.classes)}" if self.schema.classes else ""
        return f"Problem({self.name!r}: {self.n} rows, {self.p} columns, {self.task}{classes})"

    @property
    def n(self) -> int:
        """Number of rows, those of a test file included."""
        return len(self.y)

    @property
    def p(self) -> int:
        """Number of columns of X."""
        return int(self.X.shape[1])

    @property
    def groups_hash(self) -> str:
        """Hash of the groups, which are no part of ``data_hash``: most results do not depend on them."""
        digest = hashlib.blake2b(digest_size=8)
        for column, groups in self.groups.items():
            digest.update(f"{column}{groups.names}".encode())
            digest.update(groups.ids.data)
        return digest.hexdigest()

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """(C,) rows of each class; regression: rows of each of the ranges that folds are stratified on."""
        strata = strata_of(self.y, self.task)
        return np.bincount(strata, minlength=len(self.schema.classes)).astype(np.int64)

    @property
    def categorical(self) -> npt.NDArray[np.bool_]:
        """(p,) which columns of X hold category codes."""
        return np.array([feature.kind == "categorical" for feature in self.schema.features], dtype=bool)

    @property
    def minority(self) -> int:
        """What limits folds and certainty: the blocks (distinct rows, or clusters) outside the test file in which the rarest class occurs;
        for a regression, a tenth of the blocks, at least 2."""
        if self.task == "regression":
            inside = self.blocks if self.fixed_test is None else self.blocks[~self.fixed_test]
            return max(2, len(np.unique(inside)) // 10)
        return int(_block_counts(self.y, self.blocks, self.fixed_test)[0].min())


def build_problem(
    data: Any,
    y: Any = None,
    *,
    target: str | None = None,
    positive: Any = None,
    task: str = "auto",
    test: Any = None,
    groups: str | Sequence[str] | Mapping[str, Any] = (),
    cluster: Any = None,
    time: Any = None,
    weight: Any = None,
    text: str | Sequence[str] = (),
    drop: str | Sequence[str] = (),
    keep: str | Sequence[str] = (),
    header: bool = True,
    merge_rare: bool = False,
    folds: int = 5,
) -> Problem:
    """Read a table, find out what kind of problem it is, and check that a study can be made of it.

    Args:
        data: a path, ``sklearn:NAME``, ``openml:ID``, ``hf:NAME``, the name of a data set, a polars or pandas frame, a pyarrow table, or
            a 2-D NumPy array (columns ``x0``, ``x1``, ...).
        y: (n,) the target, if it is not a column of ``data``.
        target: name of the column to predict.
        positive: the label of the class that matters; by default the rarer one. Two classes only.
        task: ``classification``, ``regression``, or ``auto``: text, booleans, two values, or at most 20 whole numbers are classes.
        test: a second table of the same columns (or a pair X, y) that is only tested on.
        groups: columns to report by; they stay features. Numbers with more than 20 values are cut into five bins of equal counts.
            A mapping from name to an array (n,) reports by what is not in the table.
        cluster: column (or array) of what belongs together, such as patients; never split, not a feature.
        time: column (or array) of dates or numbers that orders the rows; not a feature.
        weight: column (or array) of positive sample weights; not a feature.
        text: columns of free text.
        drop: columns to leave out.
        keep: columns to keep although they look like an id or predict the target alone.
        header: whether the first line of a delimited file names the columns.
        merge_rare: put classes with fewer rows than folds together into one (more than two classes).
        folds: folds that are planned; classes with fewer rows are named in a notice.

    Raises:
        InputError: one sentence about what cannot be used and what to do.

    >>> problem = build_problem("breast-cancer-rare")
    >>> problem
    Problem('breast-cancer-rare': 375 rows, 30 columns, binary, benign, malignant)
    >>> problem.X.shape, problem.counts.tolist()
    ((375, 30), [357, 18])
    """
    check_choice("task", task, (*TASKS, "binary", "multiclass"))
    check_range("folds", folds, low=2, integer=True)
    table = _collect(data, y, target, header)
    task = table.task if task == "auto" else task
    positive = table.positive if positive is None else positive
    kept = as_tuple(keep) + table.keep
    roles = _assign_roles(table, groups or table.groups, cluster, time, weight, as_tuple(text) or table.text, as_tuple(drop), kept)

    notices: list[str] = []
    train = _with_target(roles.frame, roles.target, "", notices)
    held = None if test is None else _with_target(_collect_test(test, roles, header), roles.target, " of the test file", notices)
    label = _infer_target(canonical(train[roles.target]), task, positive, merge_rare, folds, notices)
    dtype = "float64" if train.height + (0 if held is None else held.height) <= FLOAT64_ROWS else "float32"
    schema = _infer_schema(train, roles, label, dtype, notices)
    X, words = schema.encode(train)
    codes = schema.encode_target(train)
    _stop_leakage(schema, X, codes, kept)
    fixed_test = None
    if held is not None:
        X_held, words_held = schema.encode(held)
        fixed_test = np.arange(train.height + held.height) >= train.height
        X, codes = np.concatenate([X, X_held]), np.concatenate([codes, schema.encode_target(held)])
        words = None if words is None or words_held is None else np.concatenate([words, words_held])

    blocks, copies = _copies(X, words, codes, label.task, notices)
    if roles.cluster is not None:
        blocks = _with_clusters(blocks, _column_of(roles.cluster, train, held), notices)
    _check_counts(codes, label, blocks, fixed_test, roles.cluster is not None, notices)
    parts: dict[str, Any] = {
        "X": X,
        "text": words,
        "y": codes,
        "blocks": blocks,
        "time": None if roles.time is None else _ranks(_column_of(roles.time, train, held)),
        "weight": None if roles.weight is None else _weights(_column_of(roles.weight, train, held)),
        "fixed_test": fixed_test,
    }
    return Problem(
        name=table.name,
        task=label.task,
        schema=schema,
        groups={name: _groups(_column_of(name, train, held), codes, label.task, notices) for name in roles.groups},
        clustered=roles.cluster is not None,
        copies=copies,
        notices=tuple(notices),
        data_hash=_hash(schema, parts),
        **parts,
    )


# -- what was given ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    """The table with everything a named set knows about itself."""

    name: str
    frame: pl.DataFrame
    target: str
    task: str = "auto"
    positive: str | None = None
    groups: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Roles:
    """Which column is what; every name is a column of ``frame``."""

    frame: pl.DataFrame
    target: str
    groups: tuple[str, ...]
    cluster: str | None
    time: str | None
    weight: str | None
    text: tuple[str, ...]
    drop: tuple[str, ...]
    keep: tuple[str, ...]
    attached: tuple[str, ...]  # columns that were given as arrays

    @property
    def not_features(self) -> set[str]:
        return {name for name in (self.target, self.cluster, self.time, self.weight, *self.attached) if name is not None}


def _collect(data: Any, y: Any, target: str | None, header: bool) -> _Table:
    if isinstance(y, str):
        if target is not None:
            bad_input("y", y, "the target's values, or its name instead of target")
        y, target = None, y
    source = read_table(data, header)
    if isinstance(source, Dataset):
        if y is not None:
            bad_input("y", type(y).__name__, f"nothing beside {source.name!r}, which knows its target {source.target!r}")
        if target is None or target == source.target:
            known = (source.task, source.positive, source.groups, source.text, source.keep)
            return _Table(source.name, source.frame, source.target, *known)
        groups = tuple(name for name in source.groups if name != target)
        return _Table(source.name, source.frame, _existing(source.frame, target, "target"), groups=groups, text=source.text)
    name = _title(data)
    if y is not None:
        column = _series("y", y, source.height)
        column_name = target or column.name or "y"
        if column_name in source.columns:
            bad_input("y", column_name, "a name that is no column of the table", "Leave it out of X, or give target instead of y.")
        return _Table(name, source.with_columns(column.alias(column_name)), column_name)
    if target is None:
        last = source.columns[-1]
        hint = f"For the last one: --target {shlex.quote(last)}"
        bad_input("target", None, f"the name of the column to predict ({listing(source.columns)})", hint)
    return _Table(name, source, _existing(source, target, "target"))


def _collect_test(test: Any, roles: _Roles, header: bool) -> pl.DataFrame:
    if roles.attached:
        bad_input(roles.attached[0], "an array", "the name of a column of both tables, since a test table is given")
    X, y = test if isinstance(test, tuple) and len(test) == 2 else (test, None)
    table = _collect(X, y, roles.target, header)
    if table.target != roles.target:
        bad_input("test", table.target, f"a table with the target {roles.target!r}")
    return table.frame


def _title(data: Any) -> str:
    if not isinstance(data, (str, Path)):
        return "table"
    text = str(data)
    if text.startswith("hf:"):
        return text
    name = Path(text).name
    for suffix in (".gz", ".zip", *Path(name.removesuffix(".gz").removesuffix(".zip")).suffixes[-1:]):
        name = name.removesuffix(suffix)
    return name


def _series(argument: str, values: Any, rows: int) -> pl.Series:
    """One value per row, as a polars column with the name it came with ("" if it had none)."""
    if hasattr(values, "iloc") and hasattr(values, "to_frame") and not hasattr(values, "columns"):  # a pandas Series
        column = as_frame(values.to_frame(name=argument))[:, 0].alias("" if values.name is None else str(values.name))
    elif isinstance(values, pl.Series):
        column = values
    else:
        try:
            array = np.asarray(values)
        except ValueError:
            bad_input(argument, "rows of different lengths", "one value per row")
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.ndim != 1:
            bad_input(argument, f"an array of shape {array.shape}", "one value per row, shape (n,)", "One target at a time.")
        column = as_frame(array.reshape(-1, 1))[:, 0].alias("")
    if len(column) != rows:
        bad_input(argument, f"{len(column)} values", f"one for each of the {rows} rows")
    return column


def _assign_roles(
    table: _Table,
    groups: str | Sequence[str] | Mapping[str, Any],
    cluster: Any,
    time: Any,
    weight: Any,
    text: tuple[str, ...],
    drop: tuple[str, ...],
    keep: tuple[str, ...],
) -> _Roles:
    frame = table.frame
    text, drop, keep = (_split(frame, names) for names in (text, drop, keep))
    attached: dict[str, pl.Series] = {}
    singles: dict[str, str | None] = {}
    for argument, value in (("cluster", cluster), ("time", time), ("weight", weight)):
        if value is None or isinstance(value, str):
            singles[argument] = None if value is None else _existing(frame, value, argument)
            if value == table.target:
                bad_input(argument, value, "a column other than the target")
        else:
            singles[argument] = f"({argument})"
            attached[f"({argument})"] = _series(argument, value, frame.height)
    if isinstance(groups, Mapping):
        group_names = tuple(name if name not in frame.columns else f"{name} (given)" for name in groups)
        attached |= {name: _series("groups", groups[key], frame.height) for name, key in zip(group_names, groups, strict=True)}
    else:
        group_names = tuple(dict.fromkeys(_existing(frame, name, "group") for name in _split(frame, as_tuple(groups))))
    if table.target in group_names:
        bad_input("group", table.target, "a column other than the target", "Groups would only repeat the classes.")
    for argument, names in (("text", text), ("drop", drop), ("keep", keep)):
        for name in names:
            _existing(frame, name, argument)
    for argument, names in (("text", text), ("drop", drop)):
        if table.target in names:
            bad_input(argument, table.target, "a column other than the target")
    return _Roles(
        frame.with_columns([column.alias(name) for name, column in attached.items()]),
        table.target,
        group_names,
        singles["cluster"],
        singles["time"],
        singles["weight"],
        tuple(name for name in text if name not in drop),
        drop,
        keep,
        tuple(attached),
    )


def _split(frame: pl.DataFrame, names: tuple[str, ...]) -> tuple[str, ...]:
    """Each name that is no column but holds commas is a list of names."""
    return tuple(
        part.strip() for name in names for part in (str(name).split(",") if name not in frame.columns and "," in str(name) else [name])
    )


def _existing(frame: pl.DataFrame, name: str, argument: str) -> str:
    """``name`` if it is a column of the frame; else an error with the closest one."""
    if name in frame.columns:
        return name
    close = difflib.get_close_matches(str(name), frame.columns, n=1) or [c for c in frame.columns if c.lower() == str(name).lower()]
    bad_input(argument, name, f"a column of the table ({listing(frame.columns)})", f"Did you mean {close[0]!r}?" if close else "")


def _column_of(name: str, train: pl.DataFrame, held: pl.DataFrame | None) -> pl.Series:
    """A column of the table and, below it, of the test file, in canonical form."""
    if held is None:
        return canonical(train[name])
    if name not in held.columns:
        bad_input("test", f"a table without {name!r}", f"a table with the columns of the first ({listing(train.columns)})")
    try:
        return canonical(pl.concat([train.select(name), held.select(name)], how="vertical_relaxed")[name])
    except pl.exceptions.PolarsError:
        bad_input("test", f"column {name!r} of type {held[name].dtype}", f"the type it has in the first table, {train[name].dtype}")


# -- target -----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Target:
    name: str
    task: str
    classes: tuple[str, ...] = ()
    merged: tuple[str, ...] = ()


def _with_target(frame: pl.DataFrame, target: str, where: str, notices: list[str]) -> pl.DataFrame:
    """The rows that have a target."""
    column = canonical(frame[target])
    present = column.is_not_null() & (column.is_finite() if column.dtype.is_float() else True)
    missing = frame.height - int(present.sum())
    if missing > MISSING_TARGET_LIMIT * frame.height:
        share = f"{missing} of {frame.height} rows{where} without a value"
        bad_input("target", f"{target!r} with {share}", "at most 20 % missing", "Fill it, remove those rows, or choose another column.")
    if not missing:
        return frame
    notices.append(f"{_rows(missing)}{where} without a value of the target {target!r} dropped.")
    return frame.filter(present)


def _infer_target(column: pl.Series, task: str, positive: Any, merge_rare: bool, folds: int, notices: list[str]) -> _Target:
    numeric = column.dtype.is_numeric()
    if not numeric and column.dtype not in (pl.Boolean, pl.String):
        bad_input("target", f"{column.name!r} of type {column.dtype}", "numbers, booleans or text")
    distinct = column.n_unique()
    if distinct == 1:
        value = labels_of(column)[0]
        bad_input("target", f"{column.name!r} with one value ({value!r}) in all {len(column)} rows", "at least two different values")
    if task == "regression" or (task == "auto" and numeric and distinct > 2 and not (is_whole(column) and distinct <= MOST_CLASSES)):
        return _infer_regression(column, positive)
    labels = labels_of(column)
    counts = {label: int(count) for label, count in labels.value_counts().iter_rows()}
    if distinct > 2 * MOST_CLASSES and 2 * distinct > len(column):
        found = f"{column.name!r} with {distinct} different values in {len(column)} rows"
        bad_input("target", found, "classes that repeat", "Choose another column" + (", or --task regression." if numeric else "."))
    if numeric and distinct > 2 and task == "auto":
        notices.append(f"Target {column.name!r} holds {distinct} whole numbers, taken as classes; --task regression takes them as amounts.")
    classes = _ordered(list(counts))
    merged: tuple[str, ...] = ()
    if len(classes) > 2 and merge_rare:
        classes, merged = _merge(classes, counts, folds, notices)
    if len(classes) == 2:
        return _two_classes(column, classes, merged, counts, positive, notices)
    if positive is not None:
        found = f"{len(classes)} ({listing(map(repr, classes))})"
        bad_input("positive", positive, f"two classes, but {column.name!r} has {found}", "Leave --positive out.")
    for label in classes:
        count = counts.get(label, folds)
        if count < 2:
            raise InputError(f"{_rows(count)} of class {label!r}; a study needs at least 2. Use --merge-rare, or remove the class.")
        if count < folds:
            notices.append(f"Class {label!r} has only {_rows(count)}, so there are no more folds; --merge-rare joins rare classes.")
    return _Target(column.name, "multiclass", tuple(classes), merged)


def _infer_regression(column: pl.Series, positive: Any) -> _Target:
    if column.dtype == pl.String:
        wrong = column.filter(column.cast(pl.Float64, strict=False).is_null())[0]
        bad_input("target", f"{column.name!r} with the text {wrong!r}", "numbers, for a regression", "Use --task classification.")
    if positive is not None:
        bad_input("positive", positive, f"no positive label, since {column.name!r} is a regression", "Use --task classification.")
    if len(column) < FEWEST_ROWS:
        raise InputError(f"{_rows(len(column))}; a regression study needs at least {FEWEST_ROWS}. Collect more.")
    return _Target(column.name, "regression")


def _two_classes(
    column: pl.Series, classes: list[str], merged: tuple[str, ...], counts: dict[str, int], positive: Any, notices: list[str]
) -> _Target:
    sizes = [counts[label] if label in counts else sum(counts[part] for part in merged) for label in classes]
    rare = classes[0] if sizes[0] < sizes[1] else classes[1]
    if positive is None:
        label = rare
        notices.append(f"Positive class: {label!r}, the {'rarer' if sizes[0] != sizes[1] else 'second'} of two; --positive chooses.")
    else:
        label = _label_text(positive)
        if label not in classes:
            alike = [known for known in classes if known.lower() == label.lower()]
            if len(alike) != 1:
                bad_input("positive", positive, f"one of the classes {listing(map(repr, classes))}")
            label = alike[0]
    if min(sizes) < FEWEST_IN_CLASS:
        raise InputError(
            f"{_rows(min(sizes))} of class {rare!r}; a study needs at least {FEWEST_IN_CLASS} (2 folds x 2). "
            "Collect more, or look at the data with: counterpoise diagnose."
        )
    negative = next(other for other in classes if other != label)
    return _Target(column.name, "binary", (negative, label), merged)


def _merge(classes: list[str], counts: dict[str, int], folds: int, notices: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Put the classes with fewer rows than folds together; if that is one class, or still too few rows, with the next rarest."""
    by_size = sorted(classes, key=lambda label: counts[label])
    many = sum(counts[label] < folds for label in by_size)
    if not many:
        return classes, ()
    while many < len(by_size) - 1 and (many < 2 or sum(counts[label] for label in by_size[:many]) < folds):
        many += 1
    rare = tuple(label for label in classes if label in by_size[:many])
    name = merged_name(rare)
    notices.append(f"Classes with fewer rows than folds merged into {name!r} ({_rows(sum(counts[label] for label in rare))}).")
    return [label for label in classes if label not in rare] + [name], rare


def _ordered(labels: list[str]) -> list[str]:
    """Numbers by size, words by the alphabet."""
    try:
        return sorted(labels, key=float)
    except ValueError:
        return sorted(labels)


def _label_text(value: Any) -> str:
    """How :func:`labels_of` would write ``value``."""
    if isinstance(value, (bool, np.bool_)):
        return str(value).lower()
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value).strip()


# -- features ---------------------------------------------------------------------------------------------------------------------------


def _infer_schema(frame: pl.DataFrame, roles: _Roles, label: _Target, dtype: str, notices: list[str]) -> Schema:
    features: list[Feature] = []
    dropped: list[tuple[str, str]] = []
    distinct = _distinct_rows(frame)
    for column in frame:
        name = column.name
        if name in roles.not_features or name in roles.text:
            continue
        if name in roles.drop:
            dropped.append((name, "by request"))
            continue
        found = _infer_features(column, distinct, name in roles.keep, notices)
        if isinstance(found, str):
            dropped.append((name, found))
        else:
            features += found
    if not features and not roles.text:
        reasons = listing(f"{name} ({reason})" for name, reason in dropped)
        raise InputError("No column is left to predict from" + (f": {reasons}." if reasons else "."))
    _tell_dropped(dropped, notices)
    dates = list(dict.fromkeys(feature.source for feature in features if feature.part))
    if dates:
        leak = "" if roles.time else f" Random folds let the future into training: --time {shlex.quote(dates[0])} splits in time order."
        notices.append(f"Dates used as year, month, weekday and hour: {listing(dates)}.{leak}")
    return Schema(tuple(features), roles.text, label.name, label.task, label.classes, tuple(dropped), label.merged, dtype)


def _distinct_rows(frame: pl.DataFrame) -> npt.NDArray[np.int64]:
    """The first of each set of rows that are equal, in order; all rows where most are copies, since then few values say nothing of ids."""
    plain = frame.select(name for name, dtype in frame.schema.items() if not (dtype.is_nested() or dtype == pl.Object))
    first = np.sort(np.unique(plain.hash_rows().to_numpy(), return_index=True)[1])
    return first.astype(np.int64) if 2 * len(first) > frame.height else np.arange(frame.height)


def _infer_features(raw: pl.Series, distinct: npt.NDArray[np.int64], keep: bool, notices: list[str]) -> list[Feature] | str:
    """The features a column becomes, or why it is dropped. ``distinct``: the rows that copy no earlier one, since ids are copied along."""
    name = raw.name
    column = canonical(raw)
    if column.null_count() == len(column):
        return NO_VALUES
    if column.dtype == pl.Datetime:
        parts = [Feature(f"{name}.{part}", "numeric", name, part=part) for part in DATE_PARTS]
        varying = [feature for feature in parts if getattr(column.dt, feature.part)().n_unique() > 1]
        return varying or CONSTANT
    if column.dtype == pl.String:
        return _infer_words(column, len(distinct), keep, notices)
    if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
        return f"values of type {str(column.dtype).partition('(')[0].lower()}"
    values = numbers_of(column)
    present = values[~np.isnan(values)]
    if not len(present):
        return NO_VALUES
    whole = len(present) == len(values)
    if whole and present.min() == present.max():
        return CONSTANT
    if not keep and whole and len(values) > 2 and is_whole(column):
        steps = np.diff(values[distinct])
        if (steps > 0).all() or (steps < 0).all():
            return ID
    return [Feature(name, "numeric", name)]


def _infer_words(column: pl.Series, distinct_rows: int, keep: bool, notices: list[str]) -> list[Feature] | str:
    name = column.name
    present = column.drop_nulls()
    levels = present.unique().sort()
    if len(levels) == 1 and len(present) == len(column):
        return CONSTANT
    unread = present.filter(present.cast(pl.Float64, strict=False).is_null())
    share = 1 - float((~unread.str.contains(NUMBER_LIKE)).sum()) / len(present)
    numbers = share > 0.5 and len(unread) > 0
    if not keep and not numbers:
        mean_length = float(present.str.len_chars().cast(pl.Float64).sum()) / len(present)
        if mean_length > TEXT_LENGTH and len(levels) > TEXT_UNIQUE * len(present):
            return TEXT
        if len(levels) == distinct_rows and len(present) == len(column):
            return ID
    if numbers:
        examples = listing(map(repr, unread.unique(maintain_order=True)), 2).partition(" and ")[0]
        notices.append(
            f"Column {name!r} is taken as {len(levels)} categories, although {100 * share:.0f} % of its values look like numbers: what "
            f"cannot be read is {examples}. Write them as plain numbers (1234.5) or leave the column out: --drop {shlex.quote(name)}."
        )
    elif len(levels) > MANY_LEVELS * len(column):
        notices.append(
            f"Column {name!r} is taken as categories, {len(levels)} of them in {len(column)} rows, most too rare to learn from; "
            f"--drop {shlex.quote(name)} leaves it out."
        )
    return [Feature(name, "categorical", name, tuple(levels))]


NO_VALUES = "no values"
CONSTANT = "constant"
ID = "id: another value in every row"
TEXT = "free text"


def _tell_dropped(dropped: list[tuple[str, str]], notices: list[str]) -> None:
    """One notice per reason."""
    hints = {ID: "; --keep COL uses it", TEXT: "; --text COL uses it"}
    for reason in dict.fromkeys(reason for _, reason in dropped):
        names = [name for name, why in dropped if why == reason]
        if reason != "by request":
            notices.append(f"Column{'s' * (len(names) > 1)} {listing(map(repr, names))} dropped ({reason}){hints.get(reason, '')}.")


def _stop_leakage(schema: Schema, X: npt.NDArray[np.floating], y: npt.NDArray[np.generic], keep: tuple[str, ...]) -> None:
    suspects: dict[str, None] = {}
    for j, feature in enumerate(schema.features):
        if feature.source not in keep and predicts_alone(X[:, j], y, schema.task, categorical=feature.kind == "categorical"):
            suspects[feature.source] = None
    if suspects:
        subject = f"column {next(iter(suspects))!r} predicts" if len(suspects) == 1 else f"columns {listing(map(repr, suspects))} predict"
        known = "If it is known at prediction time, go on with" if len(suspects) == 1 else "For each that is known at prediction time, use"
        raise InputError(f"{subject} the target alone; leakage? {known} --keep {shlex.quote(next(iter(suspects)))}; else use --drop.")


# -- rows -------------------------------------------------------------------------------------------------------------------------------


def _copies(
    X: npt.NDArray[np.floating], words: npt.NDArray[np.object_] | None, y: npt.NDArray[np.generic], task: str, notices: list[str]
) -> tuple[npt.NDArray[np.int64], int]:
    """(n,) index of the first row that each row is a copy of (features and target), and the number of copies."""
    rows = np.arange(len(y))
    columns = pl.from_numpy(X).get_columns() if X.shape[1] else []
    features = pl.DataFrame(columns if words is None else [*columns, pl.Series("text", words.tolist(), dtype=pl.String)])
    keys = pl.DataFrame({"features": features.hash_rows(), "y": y})
    first, inverse = np.unique(keys.hash_rows().to_numpy(), return_index=True, return_inverse=True)[1:]
    blocks = first[inverse].astype(np.int64)
    again = np.flatnonzero(blocks != rows)
    # Hashes of different rows may agree, if rarely: a copy must be equal in fact.
    origin = blocks[again]
    same = ((X[again] == X[origin]) | (np.isnan(X[again]) & np.isnan(X[origin]))).all(axis=1) & (y[again] == y[origin])
    if words is not None:
        same &= words[again] == words[origin]
    blocks[again[~same]] = again[~same]
    copies = int(same.sum())
    if copies:
        distinct = len(y) - copies
        noun = "copies" if copies > 1 else "copy"
        notices.append(f"{_rows(copies)} exact {noun} of others ({distinct} distinct); copies stay in one fold.")
    if task != "regression" and len(first) > keys["features"].n_unique():
        mixed = keys.select((pl.col("y").min().over("features") != pl.col("y").max().over("features")).sum()).item()
        notices.append(f"{_rows(mixed)} whose features occur with more than one class.")
    return blocks, copies


def _with_clusters(blocks: npt.NDArray[np.int64], column: pl.Series, notices: list[str]) -> npt.NDArray[np.int64]:
    """Blocks joined where they share a cluster; the id is the first row of each."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(blocks)
    ids = column.rank("dense").cast(pl.Int64)
    missing = ids.null_count()
    if missing:
        notices.append(f"{_rows(missing)} without a value of the cluster column {column.name!r}, each a cluster of its own.")
    clusters = np.where(ids.is_null(), np.arange(n), n - 1 + ids.fill_null(0).to_numpy())  # dense ranks start at 1
    if len(np.unique(clusters)) < 2:
        bad_input("cluster", f"{column.name!r} with one value", "at least two clusters")
    if len(np.unique(clusters)) == n:
        notices.append(f"The cluster column {column.name!r} has another value in every row, so it changes nothing.")
    size = int(max(clusters.max(), n - 1)) + 1
    edges = coo_array((np.ones(2 * n, dtype=np.int8), (np.tile(np.arange(n), 2), np.r_[blocks, clusters])), shape=(size, size))
    component = connected_components(edges, directed=False)[1][:n]
    first, inverse = np.unique(component, return_index=True, return_inverse=True)[1:]
    return first[inverse].astype(np.int64)


def _block_counts(
    y: npt.NDArray[np.generic], blocks: npt.NDArray[np.int64], fixed_test: npt.NDArray[np.bool_] | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Blocks outside the test file in which each class occurs, and the classes."""
    inside = slice(None) if fixed_test is None else ~fixed_test
    codes = y[inside].astype(np.int64)
    classes = int(codes.max()) + 1
    found, counts = np.unique(np.unique(blocks[inside] * classes + codes) % classes, return_counts=True)
    return counts.astype(np.int64), found


def _check_counts(
    y: npt.NDArray[np.generic],
    label: _Target,
    blocks: npt.NDArray[np.int64],
    fixed_test: npt.NDArray[np.bool_] | None,
    clustered: bool,
    notices: list[str],
) -> None:
    kind = "cluster" if clustered else "distinct row"
    if label.task == "regression":
        total, needed = len(np.unique(blocks if fixed_test is None else blocks[~fixed_test])), 2 if clustered else FEWEST_ROWS
        if total < needed:
            raise InputError(f"{total} {kind}{'s' * (total != 1)}; a regression study needs at least {needed}. Collect more.")
        return
    counts, found = _block_counts(y, blocks, fixed_test)
    fewest = int(counts.min())
    name = label.classes[found[counts.argmin()]]
    needed = 2 if clustered or label.task == "multiclass" else FEWEST_IN_CLASS
    if fewest < needed:
        raise InputError(f"{fewest} {kind}{'s' * (fewest != 1)} of class {name!r}; a study needs at least {needed}. Collect more.")
    if fewest < FEW:
        limits = "thresholds come from the prior, and only differences above about .1 can show"
        notices.append(f"Only {fewest} {kind}s of class {name!r}: {limits}.")
    if fixed_test is not None and len(np.unique(y[fixed_test])) < 2:
        bad_input("test", "rows of one class", "rows of at least two classes")


def _ranks(column: pl.Series) -> npt.NDArray[np.int64]:
    if not (column.dtype.is_numeric() or column.dtype == pl.Datetime):
        found = f"{column.name!r} with values such as {column.drop_nulls()[:1].to_list()}"
        bad_input("time", found, "numbers, or dates such as 2024-05-31")
    if column.dtype.is_float():
        column = column.fill_nan(None)
    if column.null_count():
        found = f"{column.name!r} with {_rows(column.null_count())} without a value"
        bad_input("time", found, "a time for every row", "Fill or remove them.")
    return column.rank("dense").cast(pl.Int64).to_numpy() - 1


def _weights(column: pl.Series) -> npt.NDArray[np.float64]:
    values = numbers_of(column)
    wrong = np.flatnonzero(~(values > 0))
    if len(wrong):
        found = f"{column.name!r} with {column[int(wrong[0])]} in row {wrong[0] + 1}"
        bad_input("weight", found, "positive finite numbers", f"{_rows(len(wrong))} to correct or remove.")
    return values


def _groups(column: pl.Series, y: npt.NDArray[np.generic], task: str, notices: list[str]) -> Groups:
    name = column.name
    if column.dtype.is_numeric() and column.n_unique() > MOST_GROUPS:
        binned = Groups.from_bins(numbers_of(column), GROUP_BINS, "quantile")
        groups = Groups(binned.ids, binned.names, "attribute")
        notices.append(f"Groups of {name!r} are {len(groups)} bins of about equal counts: {listing(groups.names)}.")
    elif column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.String):
        labels = labels_of(column)
        levels = _ordered(labels.drop_nulls().unique().to_list())
        codes = {level: code for code, level in enumerate(levels)}
        ids = labels.replace_strict(codes, default=None, return_dtype=pl.Int64).fill_null(-1).to_numpy()
        groups = Groups(ids, tuple(levels), "attribute")
    else:
        bad_input("group", f"{name!r} of type {column.dtype}", "a column of categories or numbers")
    known = groups.ids >= 0
    if len(np.unique(groups.ids[known])) < 2:
        bad_input("group", f"{name!r} with fewer than two groups", "a column that tells at least two groups apart")
    if task != "regression":
        pairs = np.unique(groups.ids[known] * (int(y.max()) + 1) + y[known].astype(np.int64))
        if len(pairs) == len(np.unique(groups.ids[known])) == len(np.unique(y)):
            bad_input("group", f"{name!r}, which equals the target", "another column", "Groups would only repeat the classes.")
    return groups


def _hash(schema: Schema, parts: Mapping[str, Any]) -> str:
    """Hash of the columns in use and of every array a result depends on; the same for csv and parquet of one table."""
    digest = hashlib.blake2b(digest_size=16)
    used = {name: value for name, value in schema.to_dict().items() if name != "dropped"}
    digest.update(json.dumps(used, sort_keys=True).encode())
    for name, part in parts.items():
        if part is None:
            continue
        digest.update(f"{name}{part.shape}{part.dtype}".encode())
        if part.dtype == object:
            encoded = [word.encode() for word in part]
            digest.update(np.array([len(word) for word in encoded], dtype=np.int64).tobytes())
            digest.update(b"".join(encoded))
        else:
            digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"
