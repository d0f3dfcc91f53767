r"""What more rows would bring: the course of an arm's error over the rows it is fitted on.

An arm is fitted on one of 16, 8, 4 and 2 parts of the training rows as well, smaller parts within larger ones, and always tested on the
same rows. The law of learning curves (arXiv:1712.00409) is fitted to its errors,

.. math::
    e(n) = E + B n^{-\beta},

with e the metric itself where lower is better, else 1 minus it (``counterpoise.scaling.SeparableLaw``, one term). Only differences between
the parts say how fast the error falls, and these are paired as all differences of a study are: their joint distribution is that of the
study's intervals, and the limits are quantiles of laws fitted to draws from it, some to all parts and some without the smallest ones. Where
the law does not hold over all parts, these go different ways; whether it holds beyond, no limit can say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from counterpoise._seeding import generator
from counterpoise._stats import repeat_variance, row_standard_error

from ._differences import Board, family_of
from ._metrics import LOWER_IS_BETTER
from ._splits import SMALLEST_PART, Splits
from ._types import Protocol

if TYPE_CHECKING:
    from ._problem import Problem

__all__ = ["Gain", "LearningCurve", "learning_curve", "parts_of"]

FloatArray = npt.NDArray[np.float64]

FEWEST = 20  # rows of the rarest class in a part: with fewer, thresholds are set in another way, and that is another curve
FEWEST_ROWS = 50  # of a regression
FEWEST_CLUSTERS = 10
TIMES = (2, 4)  # how many times the rows the gain is told for
EXPONENTS, GRID = (0.01, 0.99), 99
DRAWS = 500
LEVEL = 0.95
POINTS = 60  # of the line


@dataclass(frozen=True)
class Gain:
    """What ``times`` the rows would bring by the fitted law, positive is better."""

    times: int
    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class LearningCurve:
    """The metric of an arm over the number of rows it was fitted on, and where it leads.

    Attributes:
        learner, arm, question, metric: whose curve, and of what.
        rows: (K,) rows in a fit, ascending; the last are all training rows.
        values: (K,) the metric there.
        limit, exponent: E, as the metric, and :math:`\\beta` of the law; 0 for an error that does not fall.
        gains: for two and four times the rows.
        line_rows, line, low, high: (60,) the law up to four times the rows, and its limits.
    """

    learner: str
    arm: str
    question: str
    metric: str
    rows: FloatArray
    values: FloatArray
    limit: float
    exponent: float
    gains: tuple[Gain, ...]
    line_rows: FloatArray
    line: FloatArray
    low: FloatArray
    high: FloatArray

    @property
    def goes_on(self) -> bool:
        """Whether there is anything to extrapolate: the law falls, and all rows are better than half of them."""
        falls = self.metric in LOWER_IS_BETTER
        return self.exponent > 0 and bool(self.values[-1] < self.values[-2] if falls else self.values[-1] > self.values[-2])

    def sentence(self) -> str:
        """What more rows would bring, in words."""
        from counterpoise.report._format import digits_for

        from ._verdicts import METRIC_WORDS, number

        metric = METRIC_WORDS.get(self.metric, self.metric)
        who = f"More rows: {self.learner} {'without a remedy' if self.arm == 'nothing' else f'with {self.arm}'}"
        if not self.goes_on:
            course = ", ".join(map(number, self.values))
            span = f"from {self.rows[-1]:,.0f} than from fewer, down to {self.rows[0]:,.0f}"
            return f"{who} is no better {span} ({metric} {course}, the fewest first): there is nothing to extrapolate."
        digits = digits_for(self.gains[0].high)
        twice, more = (
            f"{0.0 + gain.estimate:+,.{digits}f} [{0.0 + gain.low:+,.{digits}f}, {0.0 + gain.high:+,.{digits}f}]" for gain in self.gains
        )
        return (
            f"{who} has {metric} {number(self.values[-1])} from {self.rows[-1]:,.0f}; twice as many would bring about {twice}, four times "
            f"{more}, if its curve goes on as from {self.rows[0]:,.0f} rows to here."
        )


def parts_of(problem: Problem, protocol: Protocol) -> tuple[int, ...]:
    """In how many parts the training rows can be cut so that one of them is still fitted in the same way; the largest number first."""
    rows = Splits(problem, protocol).rows  # without the hold-out, be it a file of its own
    y = problem.y[rows]
    most = len(y) / FEWEST_ROWS if problem.task == "regression" else np.bincount(y, minlength=len(problem.counts)).min() / FEWEST
    if protocol.split == "clusters":
        most = min(most, len(np.unique(problem.blocks[rows])) / FEWEST_CLUSTERS)
    largest = most * (1 - 1 / protocol.folds)
    parts = [SMALLEST_PART >> k for k in range(SMALLEST_PART.bit_length() - 1)]
    return tuple(part for part in parts if part <= largest)


def learning_curve(
    board: Board, rows: Sequence[float], question: str, *, task: str, metric: str | None = None, cost: Mapping[str, float] | None = None
) -> LearningCurve:
    """The curve of one arm. The "arms" of the ``board`` are fits on ``rows`` (K,) rows each, all training rows first; K >= 3."""
    family = family_of([board], question, task=task, metric=metric, cost=cost)
    falls = family.metric in LOWER_IS_BETTER
    differences = np.r_[0.0, family.moments.estimate]
    level = float(family.baseline[0])
    values = level - differences if falls else level + differences
    errors = values if falls else 1.0 - values
    order = np.argsort(rows)
    n = np.asarray(rows, dtype=np.float64)[order]
    ahead = n[-1] * np.array([1.0, *TIMES])
    line_rows = np.geomspace(n[0], ahead[-1], POINTS)
    limit, exponent, at_ahead, line = _law(n, errors[order], ahead, line_rows)
    shifts = _draws(family.moments.S, row_standard_error(family.moments, repeat_variance(family.cells), family.grain))
    drawn = (errors - np.column_stack([np.zeros(DRAWS), shifts]))[:, order]
    # Each law has its part of the draws: that of all parts, that without the smallest, and so on.
    laws = [_drawn_laws(n[k:], drawn[k :: len(n) - 2, k:], ahead, line_rows) for k in range(len(n) - 2)]
    drawn_ahead, drawn_line = (np.concatenate(one) for one in zip(*laws, strict=True))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn_ahead[:, :1] - drawn_ahead[:, 1:], [tail, 1 - tail], axis=0)
    below, above = np.quantile(drawn_line, [tail, 1 - tail], axis=0)
    gains = tuple(Gain(times, float(at_ahead[0] - at_ahead[k + 1]), float(low[k]), float(high[k])) for k, times in enumerate(TIMES))
    if not falls:
        line, below, above = 1 - line, 1 - above, 1 - below
    return LearningCurve(
        learner=board.learner,
        arm=board.arms[0],
        question=question,
        metric=family.metric,
        rows=n,
        values=values[order],
        limit=limit if falls else 1 - limit,
        exponent=exponent,
        gains=gains,
        line_rows=line_rows,
        line=line,
        low=below,
        high=above,
    )


def _law(n: FloatArray, errors: FloatArray, ahead: FloatArray, line_rows: FloatArray) -> tuple[float, float, FloatArray, FloatArray]:
    """E, beta (0 for an error that does not fall), and the law at two sets of rows."""
    from counterpoise.scaling import SeparableLaw

    if np.ptp(errors) == 0:
        return float(errors[0]), 0.0, np.full(len(ahead), errors[0]), np.full(len(line_rows), errors[0])
    unit = float(errors.max())  # the law has none, and what it warns of is meant for losses of about 1
    law = SeparableLaw(exponent_bounds=EXPONENTS).fit(n[:, None], np.maximum(errors / unit, 1e-12))
    exponent = float(law.exponents_[0]) if law.coef_[0] > 0 else 0.0
    return unit * law.intercept_, exponent, unit * law.predict(ahead[:, None]), unit * law.predict(line_rows[:, None])


def _drawn_laws(n: FloatArray, errors: FloatArray, ahead: FloatArray, line_rows: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The laws of many draws (D, k) at two sets of rows: (D, 3) and (D, 60). Exponents to two digits, which no limit is worth more than."""
    from counterpoise.scaling._varpro import curves

    (intercept, scale), theta = curves(n / n[-1], errors, EXPONENTS, GRID)

    def at(rows: FloatArray) -> FloatArray:
        return np.asarray(intercept[:, None] + scale[:, None] * (rows / n[-1]) ** -theta[:, None])

    return at(ahead), at(line_rows)


def _draws(S: FloatArray, se: FloatArray) -> FloatArray:
    """(500, K - 1) draws of the differences: correlated as ``S`` says, as wide as ``se``."""
    own = np.sqrt(np.diag(S))
    correlation = S / np.where(own > 0, own, 1.0) / np.where(own > 0, own, 1.0)[:, None]
    values, vectors = np.linalg.eigh(correlation)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    return np.asarray(generator(0, "learning curve").standard_normal((DRAWS, len(se))) @ root.T * se)
