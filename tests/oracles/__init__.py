"""Numbers that the authors' own code gave: ``NN-*.npz`` in ``data`` here, and in ``$COUNTERPOISE_ORACLES`` if that is set.

@pytest.mark.parametrize("oracle", oracle_files("18"))
def test_agrees_with_the_authors(oracle):
    numbers = np.load(oracle)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parent / "data"


def oracle_files(number: str) -> list[Any]:
    """One ``pytest.param`` for every file of that number, the file's name as its id. No file at all is an error, not an empty test."""
    folders = [DATA]
    if folder := os.environ.get("COUNTERPOISE_ORACLES"):
        folders.append(Path(folder))
    files = {path.name: path for folder in folders for path in sorted(folder.glob(f"{number}-*.npz"))}
    if not files:
        raise FileNotFoundError(f"no {number}-*.npz in {' or '.join(map(str, folders))}")
    return [pytest.param(path, id=path.stem) for path in files.values()]
