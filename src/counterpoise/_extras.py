"""Optional dependencies: imported where they are used, and named clearly when they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from ._errors import MissingExtraError

__all__ = ["require"]


def require(module: str, extra: str, why: str = "") -> ModuleType:
    """Import ``module``, or raise one line that names the extra to install.

    >>> require("json", "hf").dumps([1])
    '[1]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        purpose = f"{why} needs" if why else "This needs"
        package = module.partition(".")[0]
        raise MissingExtraError(f"{purpose} the package {package!r}: pip install 'counterpoise[{extra}]'") from error
