"""What the page of a study shows: numbers, sentences and arrays, already decided. Nothing here computes.

Differences are oriented so that positive is better. Unknown numbers are nan, and the page shows a dash for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = [
    "Alarms",
    "AtK",
    "Calibration",
    "CalibrationCurve",
    "DiagnosisPart",
    "Difference",
    "Expectation",
    "Growth",
    "GrowthLine",
    "GroupRow",
    "GroupsTable",
    "HeadlineRow",
    "PaperRow",
    "QuestionPanel",
    "RangeRow",
    "RangesTable",
    "StudyView",
    "ThresholdPanel",
    "Undecided",
]

Array = npt.NDArray[np.float64]
NAN = float("nan")


@dataclass(frozen=True)
class Expectation:
    """What the recommended arm is expected to do on new rows; never the winner's own cross-validation score.

    ``kind``: "hold-out" or "bias-corrected cross-validation"; ``value`` and ``baseline`` are the metric of the recommended arm and of the
    baseline there, ``gain`` [``low``, ``high``] their difference, positive is better; ``verdict``: "confirmed", "not contradicted",
    "contradicted" or "".
    """

    kind: str
    metric: str
    value: float = NAN
    baseline: float = NAN
    gain: float = NAN
    low: float = NAN
    high: float = NAN
    rows: int | None = None
    positives: int | None = None
    verdict: str = ""
    note: str = ""


@dataclass(frozen=True)
class DiagnosisPart:
    """What dominates, per group. ``share`` of the step at the start of training, ``fit_share`` of the magnitudes at the fit."""

    headline: str
    sentences: tuple[str, ...]
    names: tuple[str, ...]
    counts: npt.NDArray[np.int64]
    pi: Array
    share: Array
    fit_share: Array
    correct: Array
    correct_name: str  # recall | accuracy | mae
    loss: Array
    kind: str = "class"  # word for a group


@dataclass(frozen=True)
class Difference:
    """One remedy against the baseline of the same learner, for one question. ``verdict`` is the word that the chip shows."""

    arm: str
    learner: str
    estimate: float
    low: float
    high: float
    verdict: str
    sentence: str = ""
    provisional: bool = False
    is_placebo: bool = False


@dataclass(frozen=True)
class QuestionPanel:
    """One forest plot. ``rope``: half-width of the region of practical equivalence, in ``unit``."""

    question: str
    title: str
    metric: str
    rows: tuple[Difference, ...]
    rope: float = NAN
    unit: str = ""
    level: float = 0.95
    note: str = ""


@dataclass(frozen=True)
class HeadlineRow:
    """One line of the table; ``differences`` and ``values`` (absolute, by metric name) may lack entries."""

    arm: str
    learner: str
    stage: str = ""
    differences: Mapping[str, Difference] = field(default_factory=dict)  # by question
    values: Mapping[str, float] = field(default_factory=dict)  # by metric
    seconds: float = NAN
    is_baseline: bool = False
    is_recommended: bool = False
    note: str = ""  # "shown only", "stopped early", ...
    paper: str = ""  # number of the paper the remedy comes from


@dataclass(frozen=True)
class Alarms:
    """What a number of alarms at the chosen threshold look like: ``true`` + ``false`` = number of alarms, ``missed`` positives per 100."""

    true: float
    false: float
    missed: float


@dataclass(frozen=True)
class AtK:
    """Precision and recall when the ``k`` highest scores are looked at."""

    k: int
    precision: float
    recall: float


@dataclass(frozen=True)
class ThresholdPanel:
    """The recommended arm's decisions over all thresholds; arrays (T,) over an increasing ``threshold``."""

    arm: str
    learner: str
    threshold: Array
    precision: Array
    recall: Array
    balanced_accuracy: Array
    chosen: float
    per_100_alarms: Alarms
    default: float = NAN  # where the usual 0.5 lies on this scale
    scale: str = "log-odds"
    at_k: tuple[AtK, ...] = ()
    positive: str = "positive"


@dataclass(frozen=True)
class CalibrationCurve:
    """Bins of predicted probability: mean prediction, observed share of positives, rows."""

    label: str
    predicted: Array
    observed: Array
    count: Array
    log_loss: float = NAN
    brier: float = NAN


@dataclass(frozen=True)
class Calibration:
    """The same arm before and after prior correction."""

    arm: str
    learner: str
    curves: tuple[CalibrationCurve, ...]
    note: str = ""


@dataclass(frozen=True)
class GroupRow:
    """``judged`` is False for a group with too few positives to judge."""

    name: str
    rows: int
    positives: int | None
    recall: float = NAN
    recall_low: float = NAN  # 95 %
    recall_high: float = NAN
    chosen: float = NAN  # share decided positive, two classes only
    chosen_low: float = NAN
    chosen_high: float = NAN
    accuracy: float = NAN
    judged: bool = True
    is_worst: bool = False
    auroc_share: float = NAN  # of what AUROC, and average precision, can still gain
    precision_share: float = NAN


@dataclass(frozen=True)
class GroupsTable:
    """Groups of one column. ``gap``: best minus worst recall among judged groups. The page shows the note of the first table, below all."""

    column: str
    rows: tuple[GroupRow, ...]
    arm: str = "Recommended arm"
    worst: float = NAN
    gap: float = NAN
    needed: int = 20  # positives a group needs to be judged
    chosen: bool = False  # whether the rows say how many are decided positive
    shares: bool = False  # whether the rows say who holds what the ranking can still gain
    note: str = ""


@dataclass(frozen=True)
class RangeRow:
    """One range of a continuous target; ``mean_error`` = mean of prediction minus target."""

    name: str  # many | medium | few
    span: str
    rows: int
    mae: float
    mean_error: float
    baseline_mae: float = NAN


@dataclass(frozen=True)
class RangesTable:
    rows: tuple[RangeRow, ...]
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class GrowthLine:
    """A learning curve: measured ``values`` (K,) over ``rows`` (K,), and the law ``line`` with its limits over ``line_rows`` (T,), which
    is not drawn where the values do not get better."""

    label: str
    rows: Array
    values: Array
    line_rows: Array
    line: Array
    low: Array
    high: Array
    goes_on: bool = True
    sentence: str = ""


@dataclass(frozen=True)
class Growth:
    """What more rows would bring."""

    metric: str
    lines: tuple[GrowthLine, ...]


@dataclass(frozen=True)
class Undecided:
    """A comparison this data cannot settle; ``times`` as many positives (rows, for regression) would."""

    arm: str
    learner: str
    question: str
    low: float
    high: float
    times: float
    positives: int | None = None  # how many more
    sentence: str = ""


@dataclass(frozen=True)
class PaperRow:
    """A paper behind some of the arms, and what testing its claims again has found."""

    number: str
    title: str
    arxiv: str
    arms: tuple[str, ...]
    verdict: str
    command: str


@dataclass(frozen=True)
class StudyView:
    """A whole page, in the order in which it is shown."""

    title: str
    command: str
    recommendation: str
    questions: tuple[QuestionPanel, ...]
    headline: tuple[HeadlineRow, ...]
    metrics: tuple[str, ...] = ()  # columns of absolute values in the table
    primary: str = "decisions"  # the question that recommends
    reasons: tuple[str, ...] = ()  # sentences under the recommendation
    expectation: Expectation | None = None
    warnings: tuple[str, ...] = ()  # shown first: the placebo helped, the hold-out was reopened
    data: str = ""  # "11,183 rows, 6 features, 260 positive (2.3 %)"
    diagnosis: DiagnosisPart | None = None
    threshold: ThresholdPanel | None = None
    calibration: Calibration | None = None
    groups: tuple[GroupsTable, ...] = ()
    ranges: RangesTable | None = None
    growth: Growth | None = None
    undecided: tuple[Undecided, ...] = ()
    papers: tuple[PaperRow, ...] = ()
    protocol: tuple[tuple[str, str], ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    notices: tuple[str, ...] = ()
    not_applicable: tuple[tuple[str, str, str], ...] = ()  # learner, remedy, reason
    failed: tuple[tuple[str, str, str], ...] = ()  # learner, remedy, last line of the error
    footer: str = ""  # when and by which version the page was made
