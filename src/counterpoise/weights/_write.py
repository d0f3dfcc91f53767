"""Merged weights on disk, one file at a time: in memory is what one file will hold."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from counterpoise._errors import InputError, bad_input

from ._models import INDEX, WEIGHTS, FileModel, Models

__all__ = ["check_out", "write"]

SHARD = 2**31  # bytes of a file, where the base does not say


def check_out(out: str | os.PathLike[str], models: Models) -> Path:
    """``out`` as a path that overwrites none of the models, and beside which no other weights would be taken for the merged ones."""
    path = Path(out)
    files = [] if path.suffix == ".safetensors" else list(_layout(models))
    written = {path.resolve(), *((path / file).resolve() for file in files)}
    for model in (models.base_model, *models.models):
        if isinstance(model, FileModel) and written & {model.path.resolve(), *(file.resolve() for file in model.files.values())}:
            bad_input("out", str(path), "a path of its own", f"It is that of {model.label}.")
    if path.suffix != ".safetensors" and path.is_file():
        bad_input("out", str(path), "a folder, or a path that ends in .safetensors")
    old = [name for name in (WEIGHTS, INDEX) if files and name not in _loaded(files) and (path / name).exists()]
    if old:
        bad_input("out", str(path), "a folder without other weights", f"It holds {old[0]}, which would be loaded with the new files.")
    return path


def write(path: Path, models: Models, merged: Callable[[str], Tensor]) -> Path:
    """``merged(name)`` for every tensor, into one file or into the files of a folder; the files of the base where it lies in a folder."""
    single_file = path.suffix == ".safetensors"
    folder = path.parent if single_file else path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if single_file:
            _save(path, models, list(models.dtypes), merged)
            return path
        layout = _layout(models)
        for file, names in layout.items():
            _save(folder / file, models, names, merged)
        _beside(folder, models)
        if INDEX in _loaded(layout):
            held = {name: file for file, names in layout.items() for name in names}
            index = {"metadata": {"total_size": sum(_bytes(models, name) for name in held)}, "weight_map": held}
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
        return path
    except OSError as error:
        raise InputError(f"out: {path} cannot be written ({error.strerror or error}); choose another folder.") from error


def _save(file: Path, models: Models, names: Sequence[str], merged: Callable[[str], Tensor]) -> None:
    # Under another name until it is whole: a run that was stopped leaves no file that looks like weights.
    unfinished = file.with_name(file.name + ".unfinished")
    save_file({name: merged(name).contiguous() for name in names}, unfinished, metadata={"format": "pt"})
    os.replace(unfinished, file)


def _loaded(files: Collection[str]) -> set[str]:
    """What readers look for in a folder with these files."""
    return {WEIGHTS} if list(files) == [WEIGHTS] else {INDEX}


def _layout(models: Models) -> dict[str, list[str]]:
    base = models.base_model
    if isinstance(base, FileModel) and base.path.is_dir():
        files: dict[str, list[str]] = {}
        for name, file in base.files.items():
            files.setdefault(str(file.relative_to(base.path)), []).append(name)
        return files
    parts: list[list[str]] = [[]]
    size = 0
    for name in models.dtypes:
        if parts[-1] and size + _bytes(models, name) > SHARD:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += _bytes(models, name)
    if len(parts) == 1:
        return {WEIGHTS: parts[0]}
    return {f"model-{i:05d}-of-{len(parts):05d}.safetensors": names for i, names in enumerate(parts, 1)}


def _bytes(models: Models, name: str) -> int:
    return models.shapes[name].numel() * models.dtypes[name].itemsize


def _beside(folder: Path, models: Models) -> None:
    """What lies beside the weights of the base: configuration and tokenizer."""
    base = models.base_model
    if not isinstance(base, FileModel) or not base.path.is_dir():
        return
    for file in base.path.iterdir():
        if file.is_file() and file.suffix in (".json", ".txt", ".model", ".jinja", ".py", ".md") and file.name != INDEX:
            shutil.copyfile(file, folder / file.name)
