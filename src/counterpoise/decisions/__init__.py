"""What is decided: rules that turn scores into decisions after training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from ._prior import fold_into_bias as fold_into_bias
    from ._prior import prior_correct as prior_correct
    from ._prior_classifier import PriorThresholdClassifier as PriorThresholdClassifier
    from ._prior_score import PriorScoreThreshold as PriorScoreThreshold

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "PriorScoreThreshold": "_prior_score",
        "PriorThresholdClassifier": "_prior_classifier",
        "fold_into_bias": "_prior",
        "prior_correct": "_prior",
    },
)
