"""A base and models that were fine-tuned from it, read one piece of one tensor at a time.

A model is a ``torch.nn.Module``, a state dictionary, or a path: a ``.safetensors`` file, or a folder with ``model.safetensors`` or with
shards and their ``model.safetensors.index.json``. Of files no more is in memory than the piece at hand, whatever the number of models.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from counterpoise._errors import bad_input, listing
from counterpoise._precision import single

__all__ = ["INDEX", "WEIGHTS", "FileModel", "MemoryModel", "Model", "Models", "open_model"]

Model = nn.Module | Mapping[str, Tensor] | str | os.PathLike[str]

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PIECE = 2**20  # entries at once, of all models together
MERGED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
STATISTICS = ("running_mean", "running_var")  # what batch normalization calls its buffers

Rows = slice | None


class MemoryModel:
    """A module or a state dictionary. ``names``: one for each tensor; ``aliases``: all of each; ``homes``: from any to the one; ``others``:
    what is no tensor (the extra state of a module)."""

    def __init__(self, state: Mapping[str, Tensor], label: str, buffers: Sequence[str] = ()) -> None:
        self.label = label
        self.buffers = frozenset(buffers)
        self._state = {name: tensor.detach() for name, tensor in state.items() if isinstance(tensor, Tensor)}
        self.others = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
        sharded = [name for name, tensor in self._state.items() if hasattr(tensor, "full_tensor")]
        if sharded:
            bad_input(
                label,
                f"{sharded[0]}, a sharded tensor (DTensor)",
                "whole tensors",
                "Gather them first, or save the model and pass its path.",
            )
        empty = [name for name, tensor in self._state.items() if tensor.is_meta]
        if empty:
            bad_input(label, f"{empty[0]} on the meta device", "tensors with values", "Load the weights first, or pass their path.")
        self.aliases: dict[str, tuple[str, ...]] = {}
        self.homes: dict[str, str] = {}
        first: dict[Any, str] = {}
        for name, tensor in self._state.items():
            home = self.homes[name] = first.setdefault(_place(tensor) or name, name)
            self.aliases[home] = (*self.aliases.get(home, ()), name)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.aliases)

    def spec(self, name: str) -> tuple[torch.Size, torch.dtype]:
        return self._state[name].shape, self._state[name].dtype

    def read(self, name: str, rows: Rows = None) -> Tensor:
        return self._state[name] if rows is None else self._state[name][rows]


class FileModel:
    """Safetensors files. ``files``: name of a tensor -> the file that holds it.

    Read plainly rather than through a memory map, whose pages stay resident after they were used: eight mapped models are eight models.
    """

    def __init__(self, path: Path, label: str) -> None:
        self.label = f"{label} ({path})"
        self.buffers: frozenset[str] = frozenset()
        self.others: dict[str, Any] = {}
        self.path = path
        self.files = _files(path, label)
        self.aliases = {name: (name,) for name in self.files}
        self.homes = {name: name for name in self.files}
        self._places = {file: _places(file, label) for file in dict.fromkeys(self.files.values())}
        lost = [name for name, file in self.files.items() if name not in self._places[file]]
        if lost:
            bad_input(label, str(path), f"files that hold what {INDEX} says", f"Missing in {self.files[lost[0]].name}: {listing(lost, 3)}.")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.files)

    def spec(self, name: str) -> tuple[torch.Size, torch.dtype]:
        shape, dtype, _ = self._places[self.files[name]][name]
        return shape, dtype

    def read(self, name: str, rows: Rows = None) -> Tensor:
        path = self.files[name]
        shape, dtype, start = self._places[path][name]
        if rows is not None:
            row = shape[1:].numel() * dtype.itemsize
            first, last, _ = rows.indices(shape[0])
            shape, start = torch.Size((last - first, *shape[1:])), start + first * row
        found = torch.empty(shape, dtype=dtype)
        memory: Any = found.reshape(-1).view(torch.uint8).numpy()
        left = memoryview(memory)
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            while left:
                count = file.readinto(left)
                if not count:
                    bad_input(self.label, f"{path.name}, cut short", "a file that does not change while it is read")
                left = left[count:]
        return found


def open_model(model: Any, label: str) -> MemoryModel | FileModel:
    """``model``, to be read; ``label`` is what error messages call it."""
    if isinstance(model, nn.Module):
        return MemoryModel(model.state_dict(), label, [name for name, _ in model.named_buffers(remove_duplicate=False)])
    if isinstance(model, Mapping):
        return MemoryModel(model, label)
    if isinstance(model, (str, os.PathLike)):
        return FileModel(Path(model), label)
    bad_input(label, type(model).__name__, "a torch.nn.Module, a state dictionary, or the path of safetensors files")


class Models:
    """A base and K models of the same shape.

    ``parameters``: one name for each floating-point tensor that is merged; ``buffers``: floating-point buffers; ``fixed``: what is the
    base's in every merge (integers). A tensor with several names (tied weights) stands under its first name in the base.
    """

    def __init__(self, base: Any, models: Sequence[Any]) -> None:
        if isinstance(models, (str, bytes, os.PathLike, Mapping, nn.Module)) or not isinstance(models, Sequence):
            bad_input("models", type(models).__name__, "a sequence of models", "Put a single one into a list.")
        if not models:
            bad_input("models", "an empty sequence", "at least one model")
        self.base_model = open_model(base, "base")
        self.models = [open_model(model, f"models[{k}]") for k, model in enumerate(models)]
        if not self.base_model.names:
            bad_input("base", "a model without tensors", "a model with parameters")
        self._names = [_aligned(self.base_model, model) for model in self.models]
        self.dtypes = {name: self.base_model.spec(name)[1] for name in self.base_model.names}
        self.shapes = {name: self.base_model.spec(name)[0] for name in self.base_model.names}
        known = self.base_model.buffers.union(*(model.buffers for model in self.models))
        floating = [name for name, dtype in self.dtypes.items() if dtype.is_floating_point or dtype.is_complex]
        for name in floating:
            if self.dtypes[name] not in MERGED:
                bad_input("base", f"{name} of {self.dtypes[name]}", f"one of {', '.join(map(str, MERGED))}", "Convert the models first.")
        self.buffers = tuple(name for name in floating if name in known or name.rpartition(".")[2] in STATISTICS)
        self.parameters = tuple(name for name in floating if name not in set(self.buffers))
        self.fixed = tuple(name for name in self.dtypes if name not in set(floating))
        for model in self.models:
            self._check_ties(model)

    def __len__(self) -> int:
        return len(self.models)

    @property
    def labels(self) -> list[str]:
        """What messages call the models."""
        return [model.label for model in self.models]

    def _check_ties(self, model: MemoryModel | FileModel) -> None:
        """What is one tensor in the base has one value in the model, under however many names."""
        for name, aliases in self.base_model.aliases.items():
            first, *others = dict.fromkeys(model.homes[alias] for alias in aliases if alias in model.homes)
            for other in others:
                same = model.spec(first) == model.spec(other)
                if not same or not all(torch.equal(model.read(first, rows), model.read(other, rows)) for rows in self.pieces(name)):
                    bad_input(model.label, f"different {first} and {other}", "one tensor, as in the base, where they are tied")

    def pieces(self, name: str) -> Iterator[Rows]:
        """Rows of a tensor, a number of entries at once; None for all of it."""
        shape = self.shapes[name]
        most = max(1, PIECE // len(self))
        if shape.numel() <= most or not shape:
            yield None
            return
        step = max(1, most // max(shape[1:].numel(), 1))
        for start in range(0, shape[0], step):
            yield slice(start, min(start + step, shape[0]))

    def base(self, name: str, rows: Rows = None) -> Tensor:
        """In single precision at least."""
        return single(self.base_model.read(name, rows))

    def tuned(self, k: int, name: str, rows: Rows = None) -> Tensor:
        """A tensor of model ``k``, in its own type."""
        return self.models[k].read(self._names[k][name], rows)

    def vector(self, k: int, name: str, rows: Rows = None, base: Tensor | None = None) -> Tensor:
        r""":math:`V_k = \theta_k - \theta_0`, in single precision at least, where the base lies. ``base``: the same piece, if at hand."""
        base = self.base(name, rows) if base is None else base
        return self.tuned(k, name, rows).to(base) - base

    def gram(self) -> Tensor:
        r""":math:`\langle V_i, V_j \rangle` over all parameters, (K, K), float64, on the CPU."""
        total = torch.zeros(len(self), len(self), dtype=torch.float64)
        for name in self.parameters:
            for rows in self.pieces(name):
                base = self.base(name, rows)
                vectors = torch.stack([self.vector(k, name, rows, base).double().reshape(-1) for k in range(len(self))])
                total += (vectors @ vectors.T).cpu()
        wrong = ~torch.isfinite(total.diagonal())
        if bool(wrong.any()):
            k = int(wrong.nonzero()[0])
            bad_input(self.models[k].label, "weights that are not finite, or too large to square", "finite weights")
        return total

    def combined(self, name: str, coefficients: Sequence[float]) -> Tensor:
        r""":math:`\theta_0 + \sum_k c_k V_k`, in the type of the base."""
        merged = self.new(name)
        for rows in self.pieces(name):
            base = self.base(name, rows)
            total = base.clone()
            for k, c in enumerate(coefficients):
                if c:
                    total.add_(self.vector(k, name, rows, base), alpha=c)
            merged[... if rows is None else rows] = total
        return merged

    def checked(self, name: str, merged: Tensor) -> Tensor:
        """``merged``, unless weights it was made of are not finite. A buffer that is the base's in every model (a mask of -inf) stays."""
        if bool(torch.isfinite(merged.sum(dtype=torch.promote_types(merged.dtype, torch.float32)))):
            return merged
        if name in self.buffers and all(
            torch.equal(self.tuned(k, name, rows), self.base_model.read(name, rows)) for k in range(len(self)) for rows in self.pieces(name)
        ):
            return self.base_model.read(name).clone()
        for model, own in zip((self.base_model, *self.models), (name, *(names[name] for names in self._names)), strict=True):
            if not all(bool(torch.isfinite(model.read(own, rows)).all()) for rows in self.pieces(name)):
                bad_input(model.label, f"{name} with NaN or an infinite value", "finite weights")
        return merged

    def new(self, name: str) -> Tensor:
        """Room for a merged tensor."""
        whole = self.base_model.read(name, None if not self.shapes[name] else slice(0, 0))
        return torch.empty(self.shapes[name], dtype=self.dtypes[name], device=whole.device)

    def with_aliases(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every name of every tensor, in the order of the base, and what is no tensor."""
        return {name: tensors[home] for name, home in self.base_model.homes.items()} | self.base_model.others


def _place(tensor: Tensor) -> Any:
    """The same for two names of one tensor; None for what has no storage to share."""
    if not tensor.numel() or tensor.is_meta or tensor.layout != torch.strided:
        return None
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _aligned(base: MemoryModel | FileModel, model: MemoryModel | FileModel) -> dict[str, str]:
    """Name in the base -> name in the model, or an error that names what differs first."""
    held = {alias for aliases in model.aliases.values() for alias in aliases}
    names = {name: next((alias for alias in aliases if alias in held), "") for name, aliases in base.aliases.items()}
    missing = [name for name, own in names.items() if not own]
    known = {alias for aliases in base.aliases.values() for alias in aliases}
    extra = [name for name, aliases in model.aliases.items() if not known.intersection(aliases)]
    if missing or extra:
        hint = " ".join(f"{word}: {listing(found, 3)}." for word, found in (("Missing", missing), ("Not in the base", extra)) if found)
        bad_input(model.label, "other tensors", f"the {len(names)} tensors of the base", hint)
    differs = []
    for name, own in names.items():
        wanted, found = base.spec(name), model.spec(own)
        if wanted != found:
            differs.append(f"{name} {_spec(*found)} for {_spec(*wanted)}")
    if differs:
        bad_input(model.label, "other shapes or types", "those of the base", f"Differing: {listing(differs, 3)}.")
    return names


def _spec(shape: torch.Size, dtype: torch.dtype) -> str:
    return f"{tuple(shape)} {str(dtype).removeprefix('torch.')}"


def _files(path: Path, label: str) -> dict[str, Path]:
    if path.is_file():
        if path.suffix != ".safetensors":
            bad_input(
                label, str(path), "a .safetensors file or a folder of them", "Pickled weights are not read: load and pass them as a dict."
            )
        return dict.fromkeys(_opened(path, label).keys(), path)
    if not path.is_dir():
        bad_input(label, str(path), "a path that exists")
    if (path / INDEX).is_file():
        try:
            shards = {name: path / file for name, file in json.loads((path / INDEX).read_text("utf-8"))["weight_map"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            bad_input(label, str(path / INDEX), 'JSON with a "weight_map" from names of tensors to names of files')
        lost = sorted({str(file.name) for file in shards.values() if not file.is_file()})
        if lost:
            bad_input(label, str(path), f"a folder with all files that {INDEX} names", f"Missing: {listing(lost, 3)}.")
        return shards
    if (path / WEIGHTS).is_file():
        return dict.fromkeys(_opened(path / WEIGHTS, label).keys(), path / WEIGHTS)
    bad_input(label, str(path), f"a folder with {WEIGHTS} or {INDEX}")


def _opened(path: Path, label: str) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        bad_input(label, str(path), "a safetensors file that can be read", f"({error})")


def _places(path: Path, label: str) -> dict[str, tuple[torch.Size, torch.dtype, int]]:
    """Shape, type and first byte of every tensor. A file begins with the size of its header in eight bytes, and the header, JSON."""
    _opened(path, label)  # checks it
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    odd = [f"{name} of {entry['dtype']}" for name, entry in header.items() if entry["dtype"] not in TYPES]
    if odd:
        bad_input(label, listing(odd, 3), f"tensors of types {', '.join(TYPES)}")
    return {
        name: (torch.Size(entry["shape"]), TYPES[entry["dtype"]], 8 + size + entry["data_offsets"][0]) for name, entry in header.items()
    }
