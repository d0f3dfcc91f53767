"""Real data sets by name, readers for tables, and generators of imbalanced problems.

``load(name)`` gives a :class:`Dataset` that knows its target; ``names()`` lists what it knows. ``read_table(source)`` reads a file
(csv, tsv, parquet, arrow, jsonl; also gzipped), ``sklearn:NAME``, ``openml:ID``, ``hf:NAME`` or a table in memory.
``make_imbalanced`` thins a balanced data set, ``spurious_feature`` adds a feature that agrees with the label as often as you say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from ._dataset import Dataset as Dataset
    from ._imbalance import make_imbalanced as make_imbalanced
    from ._load import load as load
    from ._load import names as names
    from ._spurious import spurious_feature as spurious_feature
    from ._tables import read_table as read_table

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Dataset": "_dataset",
        "load": "_load",
        "make_imbalanced": "_imbalance",
        "names": "_load",
        "read_table": "_tables",
        "spurious_feature": "_spurious",
    },
)
