"""What is decided: rules that turn scores into decisions after training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from ._prior import fold_into_bias as fold_into_bias
    from ._prior import prior_correct as prior_correct
    from ._prior_classifier import PriorThresholdClassifier as PriorThresholdClassifier

__getattr__, __dir__, __all__ = attach(
    __name__, {"PriorThresholdClassifier": "_prior_classifier", "fold_into_bias": "_prior", "prior_correct": "_prior"}
)
