"""The way in: estimators and callbacks that put the rooms' parts into frameworks people already use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from . import lightning, peft, sentence_transformers, skorch, transformers
    from ._calibrate import CalibrationPath, calibrate_penalty
    from ._fair_penalty import FairPenaltyClassifier, FairPenaltyRegressor
    from ._mlp import MLPClassifier, MLPRegressor

    __all__ = [
        "CalibrationPath",
        "FairPenaltyClassifier",
        "FairPenaltyRegressor",
        "MLPClassifier",
        "MLPRegressor",
        "calibrate_penalty",
        "lightning",
        "peft",
        "sentence_transformers",
        "skorch",
        "transformers",
    ]

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "CalibrationPath": "_calibrate",
        "FairPenaltyClassifier": "_fair_penalty",
        "FairPenaltyRegressor": "_fair_penalty",
        "MLPClassifier": "_mlp",
        "MLPRegressor": "_mlp",
        "calibrate_penalty": "_calibrate",
        "lightning": "lightning",  # each in a module that is named after its framework
        "peft": "peft",
        "sentence_transformers": "sentence_transformers",
        "skorch": "skorch",
        "transformers": "transformers",
    },
)
