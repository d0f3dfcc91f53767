"""Real data sets of a replication, from the folder the user names."""

from __future__ import annotations

import os
from pathlib import Path

from counterpoise import datasets
from counterpoise.datasets._load import DATA_VARIABLE

__all__ = ["load_from"]


def load_from(data_dir: str | Path | None, name: str) -> datasets.Dataset:
    """``datasets.load(name)``, with ``data_dir`` (if given) in place of ``$COUNTERPOISE_DATA``."""
    if data_dir is None:
        return datasets.load(name)
    before = os.environ.get(DATA_VARIABLE)
    os.environ[DATA_VARIABLE] = str(data_dir)
    try:
        return datasets.load(name)
    finally:
        if before is None:
            del os.environ[DATA_VARIABLE]
        else:
            os.environ[DATA_VARIABLE] = before
