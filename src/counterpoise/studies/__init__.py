"""Which remedy helps: one protocol for all arms, intervals for all differences, and a verdict for every question."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from ._launch import study as study
    from ._learners import Choice as Choice
    from ._learners import Learner as Learner
    from ._learners import Range as Range
    from ._learning_curve import LearningCurve as LearningCurve
    from ._recommendation import Recommendation as Recommendation
    from ._remedies import Draw as Draw
    from ._remedies import FairPenaltyRemedy as FairPenaltyRemedy
    from ._remedies import Remedy as Remedy
    from ._remedies import TrainingRows as TrainingRows
    from ._saving import FittedModel as FittedModel
    from ._saving import load_model as load_model
    from ._saving import save_model as save_model
    from ._study import Study as Study
    from ._subpopulation import SubpopulationSweep as SubpopulationSweep
    from ._training import TrainingKit as TrainingKit
    from ._types import Watcher as Watcher
    from ._verdicts import Verdict as Verdict
    from ._verdicts import Verdicts as Verdicts

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Choice": "_learners",
        "Draw": "_remedies",
        "FairPenaltyRemedy": "_remedies",
        "FittedModel": "_saving",
        "Learner": "_learners",
        "LearningCurve": "_learning_curve",
        "Range": "_learners",
        "Recommendation": "_recommendation",
        "Remedy": "_remedies",
        "Study": "_study",
        "SubpopulationSweep": "_subpopulation",
        "TrainingKit": "_training",
        "TrainingRows": "_remedies",
        "Verdict": "_verdicts",
        "Verdicts": "_verdicts",
        "Watcher": "_types",
        "load_model": "_saving",
        "save_model": "_saving",
        "study": "_launch",
    },
)
