"""The last finished round of a federated training, in one file that a killed process cannot leave half written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from counterpoise._errors import StoreError, bad_input

__all__ = ["RoundState", "write_whole"]

WEIGHTS, MOMENTUM = "weights.", "momentum"
KINDS = ("train", "evaluate", "server")

Arrays = dict[str, npt.NDArray[Any]]
Metrics = dict[str, dict[int, dict[str, Any]]]


@dataclass
class RoundState:
    """After ``server_round`` rounds.

    Attributes
    ----------
    weights : dict of NDArray
        All arrays of the model, in their order.
    momentum : NDArray, shape (d,), or None before the first step
    options : dict
        What the rounds to come depend on, the seed of all random streams among them: streams are named by it and their round, so that no
        other random state has to be kept.
    metrics : dict
        "train", "evaluate" and "server": round -> name -> value.
    training : str
        Drawn at the first start and kept over interruptions: clients tell by it whether what they remember belongs to this training.
    """

    server_round: int
    weights: Arrays
    momentum: npt.NDArray[Any] | None
    options: dict[str, Any]
    metrics: Metrics = field(default_factory=lambda: {kind: {} for kind in KINDS})
    training: str = ""

    def save(self, path: Path) -> None:
        from safetensors.numpy import save

        tensors = {WEIGHTS + name: np.array(value, order="C") for name, value in self.weights.items()}
        if self.momentum is not None:
            tensors[MOMENTUM] = self.momentum
        content = {"round": self.server_round, "names": list(self.weights), "options": self.options, "metrics": self.metrics}
        content["training"] = self.training
        write_whole(path, save(tensors, metadata={"counterpoise": json.dumps(content)}))

    @classmethod
    def load(cls, path: Path) -> RoundState | None:
        """What was saved there; None if nothing was."""
        from safetensors import SafetensorError, safe_open

        if not path.exists():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                content = json.loads(file.metadata()["counterpoise"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            metrics = {kind: {int(at): row for at, row in content["metrics"][kind].items()} for kind in KINDS}
            weights = {name: tensors[WEIGHTS + name] for name in content["names"]}
            return cls(content["round"], weights, tensors.get(MOMENTUM), content["options"], metrics, content["training"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} is no checkpoint of a federated training ({type(error).__name__}); move it away.") from error

    def check_same(self, options: Mapping[str, Any], weights: Arrays, path: Path) -> None:
        """Refuse to go on with other options, or with another model, than the rounds before."""
        differing = sorted(name for name in options.keys() | self.options.keys() if options.get(name) != self.options.get(name))
        if differing:
            found = ", ".join(f"{name}={options.get(name)!r}" for name in differing)
            before = ", ".join(f"{name}={self.options.get(name)!r}" for name in differing)
            bad_input("checkpoint", f"another run's, now {found}", f"the options it was begun with: {before}", f"Or move {path.name} away.")
        shapes = {name: (value.shape, value.dtype.str) for name, value in self.weights.items()}
        if shapes != {name: (value.shape, value.dtype.str) for name, value in weights.items()}:
            bad_input("checkpoint", "another model's", "the names, shapes and dtypes of initial_arrays", f"Or move {path.name} away.")


def write_whole(path: Path, content: bytes, private: bool = False) -> None:
    """Write a new file beside ``path`` and put it in its place: whenever the process is killed, one of the two is there, whole.

    ``private``: nobody but this user can read it.
    """
    beside = path.with_name(path.name + f".{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o666), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error.strerror}); choose another place.") from error
