"""What people see: the page of a study as one self-contained HTML file, and the plots of diagnoses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from ._page import study_page as study_page
    from ._training import TrainingView as TrainingView
    from ._training import training_curves as training_curves
    from ._training import training_figure as training_figure
    from ._training import training_page as training_page
    from ._view import Alarms as Alarms
    from ._view import AtK as AtK
    from ._view import Calibration as Calibration
    from ._view import CalibrationCurve as CalibrationCurve
    from ._view import DiagnosisPart as DiagnosisPart
    from ._view import Difference as Difference
    from ._view import Expectation as Expectation
    from ._view import GroupRow as GroupRow
    from ._view import GroupsTable as GroupsTable
    from ._view import HeadlineRow as HeadlineRow
    from ._view import PaperRow as PaperRow
    from ._view import QuestionPanel as QuestionPanel
    from ._view import RangeRow as RangeRow
    from ._view import RangesTable as RangesTable
    from ._view import StudyView as StudyView
    from ._view import ThresholdPanel as ThresholdPanel
    from ._view import Undecided as Undecided

_PARTS = (
    "Alarms AtK Calibration CalibrationCurve DiagnosisPart Difference Expectation GroupRow GroupsTable HeadlineRow PaperRow QuestionPanel "
    "RangeRow RangesTable StudyView ThresholdPanel Undecided"
)
_TRAINING = ("TrainingView", "training_curves", "training_figure", "training_page")
__getattr__, __dir__, __all__ = attach(
    __name__, {"study_page": "_page"} | dict.fromkeys(_TRAINING, "_training") | dict.fromkeys(_PARTS.split(), "_view")
)
