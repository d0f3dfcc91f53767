"""Real data sets by name: from a folder of one's own, the cache, or the network."""

from __future__ import annotations

import difflib
import logging
import os
import tomllib
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from counterpoise._errors import InputError, bad_input

from ._dataset import Dataset
from ._libraries import from_sklearn
from ._tables import read_file

__all__ = ["cache_folder", "load", "names"]

DATA_VARIABLE = "COUNTERPOISE_DATA"
CACHE_VARIABLE = "COUNTERPOISE_CACHE"
DOWNLOAD_TIMEOUT = 30  # seconds without an answer


def load(name: str) -> Dataset:
    """A real data set by name.

    The file is looked for in the folder ``$COUNTERPOISE_DATA``, then in the cache (``$COUNTERPOISE_CACHE``, by default the user's cache
    folder), then fetched from its public source at a pinned commit and checked by its sha256. Sets that come with scikit-learn need no
    file: ``digits8`` (digit 8 against the rest), ``breast-cancer``, ``breast-cancer-rare`` (thinned to 1:20), ``wine``, ``diabetes``.

    Args:
        name: one of :func:`names`.

    Raises:
        InputError: an unknown name, a set that cannot be downloaded and is not there, no connection, or a file that is not the expected.

    >>> load("breast-cancer")
    Dataset('breast-cancer': 569 rows, 31 columns, target 'diagnosis', binary)
    """
    if name in EMBEDDED:
        return EMBEDDED[name]()
    table = _tables().get(name)
    if table is None:
        close = difflib.get_close_matches(str(name), names(), n=3)
        suggestion = f"Did you mean {' or '.join(repr(other) for other in close)}? " if close else ""
        bad_input("name", name, "the name of a data set", f"{suggestion}counterpoise.datasets.names() lists all.")
    source = _registry()["source"][table["source"]]
    frame = whole_table(name)
    for column, values in table.get("recode", {}).items():
        labels = pl.col(column).cast(pl.String).str.strip_chars()
        frame = frame.with_columns(labels.replace_strict(values, default=None, return_dtype=pl.String))
    return Dataset(
        name,
        frame.drop(table.get("drop", []), strict=False),
        table["target"],
        positive=table.get("positive"),
        groups=tuple(table.get("groups", ())),
        task=table["task"],
        source=source["origin"],
        license=source["license"],
        text=tuple(table.get("text", ())),
        keep=tuple(table.get("keep", ())),
    )


def names() -> list[str]:
    """The names that :func:`load` knows, sorted. Where a source holds several tables, each has a name of its own.

    >>> [name for name in names() if name.startswith("breast")]
    ['breast-cancer', 'breast-cancer-rare']
    """
    return sorted([*EMBEDDED, *_tables()])


def whole_table(name: str) -> pl.DataFrame:
    """All columns of the file behind a name, those included that a model for its usual target must not see."""
    table = _tables()[name]
    return _read(name, table, _locate(name, table, _registry()["source"][table["source"]]))


def cache_folder() -> Path:
    """Where fetched files are kept."""
    import pooch

    return Path(os.environ.get(CACHE_VARIABLE) or pooch.os_cache("counterpoise"))


# -- sets that come with scikit-learn ---------------------------------------------------------------------------------------------------


def _digits8() -> Dataset:
    digits = from_sklearn("digits")
    is_eight = pl.when(pl.col("target") == 8).then(pl.lit("8")).otherwise(pl.lit("other"))
    frame = digits.frame.select(pl.exclude("target"), is_eight.alias("digit"))
    return Dataset("digits8", frame, "digit", positive="8", task="binary", source=digits.source, license=digits.license)


def _breast_cancer() -> Dataset:
    return _renamed("breast-cancer", from_sklearn("breast_cancer"), "diagnosis", positive="malignant")


def _breast_cancer_rare() -> Dataset:
    """All benign rows and one malignant for twenty of them."""
    from ._imbalance import make_imbalanced

    full = _breast_cancer()
    labels = full.frame["diagnosis"].to_numpy()
    # Which class becomes rare is drawn at random; this seed draws the malignant one, as the test states.
    rows = make_imbalanced(labels, kind="step", mu=0.5, rho=20, random_state=RARE_SEED)
    return _renamed("breast-cancer-rare", full, "diagnosis", positive="malignant", rows=rows)


def _wine() -> Dataset:
    return _renamed("wine", from_sklearn("wine"), "cultivar")


def _diabetes() -> Dataset:
    return _renamed("diabetes", from_sklearn("diabetes"), "progression")


def _renamed(name: str, table: Dataset, target: str, positive: str | None = None, rows: Any = slice(None)) -> Dataset:
    frame = table.frame.rename({table.target: target})[rows]
    return Dataset(name, frame, target, positive, table.groups, table.task, table.source, table.license)


RARE_SEED = 0
EMBEDDED: dict[str, Callable[[], Dataset]] = {
    "breast-cancer": _breast_cancer,
    "breast-cancer-rare": _breast_cancer_rare,
    "diabetes": _diabetes,
    "digits8": _digits8,
    "wine": _wine,
}


# -- sets in files ----------------------------------------------------------------------------------------------------------------------


@cache
def _registry() -> dict[str, dict[str, dict[str, Any]]]:
    registry: dict[str, dict[str, dict[str, Any]]] = tomllib.loads(files(__package__).joinpath("registry.toml").read_text("utf-8"))
    return registry


def _tables() -> dict[str, dict[str, Any]]:
    """The tables of the registry, with what they share with another one filled in."""
    tables = _registry()["table"]
    return {name: tables[table["like"]] | table if "like" in table else table for name, table in tables.items()}


def _locate(name: str, table: dict[str, Any], source: dict[str, Any]) -> Path:
    file = Path(table["file"])
    unpacked = file.with_suffix("") if file.suffix == ".gz" else file
    own = os.environ.get(DATA_VARIABLE)
    if own:
        if not Path(own).is_dir():
            bad_input(f"${DATA_VARIABLE}", own, "an existing folder", "Correct the variable, or unset it to use the cache.")
        for candidate in (Path(own) / file, Path(own) / unpacked):
            if candidate.is_file():
                return candidate
    if "remote" not in table:
        raise InputError(
            f"{name!r} has no download, since {table['processed']}: put {file.name} at {file} in the folder that ${DATA_VARIABLE} names"
            f" (source: {source['origin']})."
        )
    return _download(name, source["url"] + table["remote"], table["sha256"], cache_folder() / unpacked)


def _download(name: str, url: str, sha256: str, target: Path) -> Path:
    """The cached file; fetched first if it is not there or not what it should be."""
    import pooch
    import requests

    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        downloader = pooch.HTTPDownloader(timeout=DOWNLOAD_TIMEOUT)
        pooch.retrieve(url, f"sha256:{sha256}", fname=target.name, path=target.parent, downloader=downloader)
    except requests.exceptions.HTTPError as error:
        status = error.response.status_code if error.response is not None else "an error"
        raise InputError(f"{name!r}: {url} answered {status}. Put the file into the folder that ${DATA_VARIABLE} names.") from error
    except requests.exceptions.RequestException as error:
        raise InputError(
            f"{name!r} is neither in ${DATA_VARIABLE} nor in the cache, and {url} cannot be reached ({type(error).__name__}). "
            "Go online once, or use a set that needs no file, such as 'digits8'."
        ) from error
    except ValueError as error:  # pooch: the hash differs
        raise InputError(f"{name!r}: the file from {url} is not the expected one (sha256 differs), so it was not kept.") from error
    except OSError as error:
        raise InputError(f"{name!r}: the cache {target.parent} cannot be written ({error}). Set ${CACHE_VARIABLE}.") from error
    finally:
        logger.setLevel(level)
    return target


def _read(name: str, table: dict[str, Any], path: Path) -> pl.DataFrame:
    if "arrays" in table:
        return _read_arrays(path, table["arrays"], table["target"])
    frame = read_file(path, header=table.get("header", False), kind="delimited", quoted=table.get("quoted", True))
    columns = table.get("columns", frame.columns)
    if len(columns) != frame.width or table["target"] not in columns:
        raise InputError(f"{name!r}: {path} has other columns than this set; is it the right file?")
    return frame.rename(dict(zip(frame.columns, columns, strict=True)))


def _read_arrays(path: Path, arrays: list[str], target: str) -> pl.DataFrame:
    """Columns x0, x1, ... of one array, or fac0, fac1, ..., zer46 of several; the labels under the name of the target."""
    try:
        with np.load(path, allow_pickle=False) as content:
            parts = {("x" if arrays == ["X"] else name): content[name] for name in arrays}
            labels = content["y"]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(f"Cannot read {str(path)!r}: not the expected .npz file ({type(error).__name__}).") from error
    columns = {f"{name}{i}": part[:, i] for name, part in parts.items() for i in range(part.shape[1])}
    return pl.DataFrame(columns).with_columns(pl.Series(target, labels))
