"""counterpoise: measure what outweighs the rest in a training signal, and find out which cure helps.

>>> import counterpoise
>>> counterpoise.Groups.from_labels(["cat", "dog", "cat"]).counts().tolist()
[2, 1]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._errors import CounterpoiseError
    from .diagnostics import examine, record
    from .groups import Groups
    from .studies import Study, study

__version__ = "0.1.0"
__all__ = ["CounterpoiseError", "Groups", "Study", "__version__", "examine", "record", "study"]

_HOMES = {
    "CounterpoiseError": "_errors",
    "Groups": "groups",
    "Study": "studies",
    "examine": "diagnostics",
    "record": "diagnostics",
    "study": "studies",
}
_ROOMS = frozenset(
    [
        "data",
        "datasets",
        "decisions",
        "diagnostics",
        "engines",
        "federated",
        "gradients",
        "losses",
        "metrics",
        "nn",
        "optim",
        "reinforcement",
        "replications",
        "report",
        "scaling",
        "schedules",
        "studies",
        "text",
        "weights",
    ]
)  # imported when first used, so that ``counterpoise.losses.FocalLoss`` works after ``import counterpoise``


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
