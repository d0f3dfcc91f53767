"""One line per training - size, data, loss, compute - in a table that ``counterpoise scaling`` reads."""

from __future__ import annotations

import csv
import io
import os
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from counterpoise._errors import InputError, StoreError, bad_input, check_range
from counterpoise.scaling._surface import FLOPS_FACTOR

__all__ = ["COLUMNS", "FLOPS_FACTOR", "ScalingLog", "count_parameters"]

COLUMNS = ("run", "step", "n_params", "tokens", "loss", "flops")


def count_parameters(model: nn.Module, embeddings: bool = False) -> tuple[int, int]:
    """(counted, embeddings): numbers in the parameters, each tensor once, and those that belong to embedding layers.

    The weights of :class:`torch.nn.Embedding` and ``EmbeddingBag`` are left out unless ``embeddings``; a head that shares them goes with
    them.

    >>> count_parameters(nn.Sequential(nn.Embedding(100, 8), nn.Linear(8, 2)))
    (18, 800)
    """
    looked_up = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        for parameter in module.parameters(recurse=False)
    }
    every = list(model.parameters())
    in_embeddings = sum(parameter.numel() for parameter in every if id(parameter) in looked_up)
    total = sum(parameter.numel() for parameter in every)
    return (total if embeddings else total - in_embeddings), in_embeddings


class ScalingLog:
    """What the callbacks of all frameworks share: the file, the count of parameters, and the latest evaluation."""

    def __init__(
        self, path: str | Path, run: str | None, n_params: int | None, embeddings: bool, history: bool, flops_factor: float
    ) -> None:
        if n_params is not None:
            check_range("n_params", n_params, low=1, integer=True)
        check_range("flops_factor", flops_factor, low=0.0, open_low=True)
        self.path = Path(path)
        self.run = run
        self.n_params = n_params
        self.embeddings = embeddings
        self.history = history
        self.flops_factor = flops_factor
        self._size: int | None = None
        self._name = ""
        self._latest: dict[str, Any] | None = None

    def _begin(self, model: nn.Module, sharded: bool, writes: bool) -> None:
        """Before the first step: what can be wrong is said now."""
        self._latest = None
        if self.n_params is None and sharded:
            bad_input("n_params", None, "the number of parameters, since this strategy shards them")
        counted, in_embeddings = (self.n_params, 0) if self.n_params is not None else count_parameters(model, self.embeddings)
        if not counted:
            bad_input(
                "model", f"{type(model).__name__} without parameters beside its embeddings", "a model with some", "Or embeddings=True."
            )
        self._size = counted
        if not writes:
            return
        if self.embeddings and in_embeddings:
            warnings.warn(
                f"n_params counts {100 * in_embeddings / counted:.0f} % embeddings: their share falls with size, which bends the exponents "
                "of a scaling law. Without embeddings=True they are left out.",
                UserWarning,
                stacklevel=3,
            )
        self._name = self.run if self.run is not None else f"run {_runs_in(self.path) + 1}"

    def _evaluated(self, step: int, tokens: float, loss: float) -> None:
        assert self._size is not None
        row = {"run": self._name, "step": step, "n_params": self._size, "tokens": int(tokens), "loss": loss}
        self._latest = row | {"flops": self.flops_factor * self._size * int(tokens)}
        if self.history:
            self._end()

    def _end(self) -> None:
        """Write the latest evaluation, once."""
        if self._latest is not None:
            _append(self.path, self._latest)
            self._latest = None


def _runs_in(path: Path) -> int:
    """How many different runs a file holds; it must be one of ours."""
    if not path.exists():
        if not path.parent.is_dir():
            raise StoreError(f"path: there is no folder {path.parent}; create it or choose another name.")
        return 0
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    if rows and tuple(rows[0]) != COLUMNS:
        raise InputError(f"path: {path} has the columns {', '.join(rows[0])}, not {', '.join(COLUMNS)}; choose another name.")
    return len({row[0] for row in rows[1:] if row})


def _append(path: Path, row: dict[str, Any]) -> None:
    """One line at the end, in one write, so that several trainings can share a file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            if os.fstat(file).st_size == 0:
                writer.writeheader()
            writer.writerow(row)
            os.write(file, text.getvalue().encode())
        finally:
            os.close(file)
    except OSError as error:
        raise StoreError(f"path: {path} cannot be written ({error.strerror}); choose another name.") from error
