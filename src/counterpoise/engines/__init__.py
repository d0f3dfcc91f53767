"""The way in: estimators and callbacks that put the rooms' parts into frameworks people already use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from . import lightning, skorch, transformers
    from ._mlp import MLPClassifier, MLPRegressor

    __all__ = ["MLPClassifier", "MLPRegressor", "lightning", "skorch", "transformers"]

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "MLPClassifier": "_mlp",
        "MLPRegressor": "_mlp",
        "lightning": "lightning",  # callbacks, each in a module that is named after its framework
        "skorch": "skorch",
        "transformers": "transformers",
    },
)
