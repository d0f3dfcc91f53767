"""Lazy public names: a room's ``__init__`` lists where each name lives, and the module is imported when the name is first used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["attach"]


def attach(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__, __dir__, __all__`` for ``package``, where ``names`` maps a public name to the submodule that defines it.

    A name that is mapped to itself is a public submodule.
    """

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{names[name]}")
        value = module if names[name] == name else getattr(module, name)
        setattr(importlib.import_module(package), name, value)
        return value

    return __getattr__, lambda: sorted(names), sorted(names)
