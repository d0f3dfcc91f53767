"""A table that knows what is to be predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import polars as pl

__all__ = ["Dataset"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with its target.

    Attributes:
        name: as given to ``load`` or ``read_table``.
        frame: (n, columns) the table: the features, the target, the groups; nothing that would give the target away.
        target: name of the column to predict.
        positive: the label of the class that matters (two classes), or ``None``.
        groups: names of the columns to report by (sex, race, ...).
        task: ``binary``, ``multiclass`` or ``regression``; ``auto`` where nobody said so (``hf:``, ``openml:``).
        source: where it comes from.
        license: under which terms.
        text: names of the columns that hold free text.
        keep: names of the columns that predict the target nearly alone without being a leak.
    """

    name: str
    frame: pl.DataFrame
    target: str
    positive: str | None = None
    groups: tuple[str, ...] = ()
    task: Literal["auto", "binary", "multiclass", "regression"] = "auto"
    source: str = ""
    license: str = ""
    text: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}: {self.frame.height} rows, {self.frame.width} columns, target {self.target!r}, {self.task})"
