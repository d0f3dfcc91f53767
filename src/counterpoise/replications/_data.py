"""Real data sets of a replication, from the folder the user names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from counterpoise import datasets
from counterpoise.datasets._load import DATA_VARIABLE, whole_table

if TYPE_CHECKING:
    import polars as pl

__all__ = ["columns_from", "load_from"]


def load_from(data_dir: str | Path | None, name: str) -> datasets.Dataset:
    """``datasets.load(name)``, with ``data_dir`` (if given) in place of ``$COUNTERPOISE_DATA``."""
    with _folder(data_dir):
        return datasets.load(name)


def columns_from(data_dir: str | Path | None, name: str) -> pl.DataFrame:
    """All columns of the file behind a name, those included that a model for its usual target must not see."""
    with _folder(data_dir):
        return whole_table(name)


@contextmanager
def _folder(data_dir: str | Path | None) -> Iterator[None]:
    before = os.environ.get(DATA_VARIABLE)
    if data_dir is not None:
        os.environ[DATA_VARIABLE] = str(data_dir)
    try:
        yield
    finally:
        if data_dir is not None:
            if before is None:
                del os.environ[DATA_VARIABLE]
            else:
                os.environ[DATA_VARIABLE] = before
