"""From differences to verdicts: which remedy helps, which harms, where there is no difference, and what the data cannot tell.

Every arm is compared with the baseline of its learner on the same rows and folds. The intervals of one question are simultaneous over all
remedies and learners, and each is read against a region of practical equivalence (rope).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._errors import InputError, bad_input, check_choice, check_range
from counterpoise._stats import bonferroni, jackknife, max_t, nadeau_bengio, repeat_variance, row_standard_error

from ._differences import Board, Family, Key, family_of, judged_columns, metric_of, rarest
from ._metrics import LOWER_IS_BETTER

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Board", "Verdict", "Verdicts", "clearly_harmful", "compare", "more_repeats_help", "smallest_detectable", "verdicts"]

FloatArray = npt.NDArray[np.float64]

ROPES = {
    "balanced_accuracy": 0.01,
    "f1": 0.01,
    "accuracy": 0.01,
    "auroc": 0.005,
    "average_precision": 0.005,
    "worst_group_recall": 0.02,
    "js_divergence": 0.005,
}
RELATIVE_ROPE = 0.01  # of the baseline's value, for metrics without a natural scale

CALIBRATED_LEARNERS = ("linear",)  # whose false claims have been counted on null studies
POWER_Z = 0.84  # standard normal quantile of a power of 4 in 5
DETECTABLE = {"linear": 0.42, "trees": 0.51, "mlp": 0.48}  # smallest detectable balanced accuracy times sqrt(n1), medians over data sets
REPEAT_GAIN = 0.03  # a further repeat must shrink some interval by more than this share

METRIC_WORDS = {
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "f1": "F1",
    "cost": "cost per row",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "log_loss": "log loss",
    "brier": "Brier score",
    "mae": "mean absolute error",
    "worst_group_recall": "worst-group recall",
    "js_divergence": "divergence between groups",
}
QUESTION_WORDS = {
    "decisions": "decisions",
    "ranking": "the ranking",
    "probabilities": "probabilities",
    "groups": "decisions in the worst group",
    "dependence": "dependence on the groups",
    "error": "predictions",
    "tails": "predictions in the rarest range",
}
ARM_WORDS = {"smote": "SMOTE"}


@dataclass(frozen=True)
class Verdict:
    """What the data say about one arm against the baseline of its learner, for one question.

    Attributes:
        arm, learner, question: what was judged.
        estimate, low, high: difference to the baseline and its simultaneous interval; **positive is better** for every metric. NaN if the
            arm failed, limits NaN if no valid interval exists.
        verdict: ``helps``, ``no difference``, ``harms``, ``undecided`` or ``failed``.
        reason: what else there is to say (identical predictions, constant predictions, stopped early, the error of a failed arm).
        metric: name of the metric.
        rope: differences smaller than this do not matter in practice, in units of the metric.
        group: the group column, for the question ``groups``.
        provisional: the false claims of this rule have not been counted for this learner or kind of data yet.
        detectable: smallest difference that four of five such studies would find.
        unit: what more data would be counted in.
        against: what it was compared with.

    >>> Verdict("smote", "trees", "decisions", 0.03, 0.01, 0.05, "helps", metric="balanced_accuracy", rope=0.01).sentence()
    'Use it: SMOTE raises balanced accuracy by 0.03 (at least 0.01).'
    """

    arm: str
    learner: str
    question: str
    estimate: float
    low: float
    high: float
    verdict: str
    reason: str = ""
    metric: str = ""
    rope: float = float("nan")
    group: str = ""
    provisional: bool = False
    detectable: float = float("nan")
    unit: str = "positives"
    against: str = "the baseline"

    @property
    def rows_needed(self) -> float:
        """How many times as much data would settle an undecided verdict if the estimate stays: widths shrink with its square root."""
        half = (self.high - self.low) / 2
        size = abs(self.estimate)
        reach = max(size, self.rope - size)  # to leave 0 outside, or to fit inside the rope
        return max(1.0, (half / reach) ** 2) if reach > 0 else float("inf")

    def sentence(self) -> str:
        """One or two plain sentences: what to do and why."""
        text = self._sentence()
        if self.reason and self.verdict != "failed" and not math.isnan(self.low):
            text = f"{text[:-1]} ({self.reason})."
        if self.provisional and self.verdict != "failed":
            text += " Provisional: how often this rule claims falsely has not been measured for such a case."
        return text

    def _sentence(self) -> str:
        if self.verdict == "failed":
            return f"Failed: {self.reason or 'no result'}."
        if math.isnan(self.low):
            return f"This data can not tell: {self.reason}. Until then keep {self.against}."
        metric = METRIC_WORDS.get(self.metric, self.metric) + (f" ({self.group})" if self.group else "")
        about = "about " if self.metric == "log_loss" else ""
        if self.question == "dependence" and self.verdict in ("helps", "harms"):  # no advice: whether to want it is not for a study to say
            arm, lower = ARM_WORDS.get(self.arm, self.arm), self.verdict == "helps"
            limit = _at_least(self.low if lower else -self.high)
            return f"{arm} {'lowers' if lower else 'raises'} {metric} by {number(abs(self.estimate))} bits (at least {limit})."
        if self.verdict == "helps":
            verb = "lowers" if self.metric in LOWER_IS_BETTER else "raises"
            arm = ARM_WORDS.get(self.arm, self.arm)
            where = " in the rarest range" if self.question == "tails" else ""
            return f"Use it: {arm} {verb} {metric}{where} by {about}{number(self.estimate)} (at least {_at_least(self.low)})."
        if self.verdict == "no difference":
            return f"Does not matter: any difference is smaller than {_at_most(self.rope)}. Keep the simpler one."
        if self.verdict == "harms":
            what = QUESTION_WORDS.get(self.question, self.question)
            return f"Avoid: makes {what} worse by {about}{number(-self.estimate)} {metric}."
        low, high = between(self.low, self.high)
        return (
            f"This data can not tell: between {low} and {high}. {_times(self.rows_needed)} as many {self.unit} would settle it. "
            f"Until then keep {self.against}."
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields, and the sentence."""
        return asdict(self) | {"sentence": self.sentence()}


class Verdicts(list[Verdict]):
    """The verdicts of one question, in the order of the arms."""

    def to_frame(self) -> pl.DataFrame:
        """One row per verdict, as a polars frame."""
        import polars as pl

        return pl.DataFrame([verdict.to_dict() for verdict in self])


def _decimals(value: float) -> int:
    """Decimals for a difference of this size: two, more where the first digit comes later, fewer for large ones."""
    if abs(value) >= 100:
        return 0
    if abs(value) >= 10:
        return 1
    return max(2, -math.floor(math.log10(abs(value)))) if value else 2


def number(value: float) -> str:
    return f"{value:,.{_decimals(value)}f}"


def _at_least(low: float) -> str:
    """A lower bound, rounded down."""
    places = _decimals(low)
    # The nudge keeps 0.01 from becoming 0.00 where floating point holds 0.00999...
    return f"{math.floor(low * 10**places + 1e-9) / 10**places:,.{places}f}"


def _at_most(bound: float) -> str:
    """An upper bound, rounded up to two digits."""
    if not bound > 0:
        return "0"
    places = 1 - math.floor(math.log10(bound))
    text = f"{math.ceil(bound * 10.0**places - 1e-9) / 10.0**places:,.{max(places, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def between(low: float, high: float) -> tuple[str, str]:
    """Both limits, rounded to a fraction of the width; a limit off 0 never reads as 0."""
    width = max(high - low, 1e-12)
    places = (0 if width >= 50 else 1) if width >= 5 else max(2, math.ceil(-math.log10(width / 2.5)))
    while places < 6 and any(limit and not round(limit, places) for limit in (low, high)):
        places += 1
    return f"{low:+,.{places}f}", f"{high:+,.{places}f}"


def _times(factor: float) -> str:
    if factor > 1000:
        return "More than 1,000 x"
    if factor >= 100:
        return f"About {round(factor, -2):,.0f} x"
    return f"About {max(factor, 1.1):.1f} x" if factor < 1.75 else f"About {factor:.0f} x"


# ---- verdicts ---------------------------------------------------------------------------------------------------------------------------


def verdicts(
    boards: Sequence[Board],
    question: str,
    *,
    task: str,
    metric: str | None = None,
    cost: Mapping[str, float] | None = None,
    rope: float | None = None,
    interval: str = "rows",
    level: float = 0.95,
    calibrated: Collection[str] = CALIBRATED_LEARNERS,
    reasons: Mapping[Key, str] | None = None,
    failed: Mapping[Key, str] | None = None,
    stopped: Collection[Key] = (),
) -> Verdicts:
    r"""Judge every arm of every learner against the baseline of the same learner.

    The interval of arm a is :math:`\hat\delta_a \pm c\,se_a`. With limits (l, u) and equivalence region (-eps, eps), in this order:
    -eps < l and u < eps: *no difference*; l > 0: *helps*; u < 0: *harms*; otherwise *undecided*.

    Parameters
    ----------
    boards : sequence of Board
        One per learner; rows and folds are the same for all.
    question : str
        ``decisions``, ``ranking``, ``probabilities`` or ``groups``; for a regression ``error`` or ``tails`` (the rarest range); for both
        ``dependence`` (of the predictions on the groups), where there are groups.
    task : {"binary", "multiclass", "regression"}
    metric : str, optional
        Default balanced_accuracy, auroc, log_loss, worst_group_recall, mae, js_divergence. Others: f1, accuracy, cost;
        average_precision; brier.
    cost : mapping, optional
        ``{"fp": a, "fn": b}``, for ``metric="cost"``.
    rope : float, optional
        eps in units of the metric. Default 0.01 for balanced accuracy, accuracy and F1, 0.005 for AUROC and average precision, 0.02 for the
        worst group, 0.005 bits for the divergence, 1 % of the baseline's value for log loss, Brier score, cost and absolute error.
    interval : {"rows", "nadeau-bengio", "jackknife"}, default "rows"
        How the standard error is found. ``tails`` always uses the jackknife unless ``nadeau-bengio`` is asked for; the jackknife exists for
        regressions only.
    level : float, default 0.95
        Simultaneous coverage of the whole family.
    calibrated : collection of str, default ("linear",)
        Learners for which the rate of false claims has been measured; verdicts of others are marked provisional, and so are those about
        groups, clusters and more than two classes.
    reasons : mapping from (learner, arm) to str, optional
        What to add to a verdict, such as "constant predictions".
    failed : mapping from (learner, arm) to str, optional
        Arms without scores, and why.
    stopped : collection of (learner, arm)
        Arms given up early for this question (:func:`clearly_harmful`): judged ``harms`` whatever the interval of the rest.

    Returns
    -------
    Verdicts
        In the order of the boards and arms, baselines left out; failed arms last. For ``groups`` one per group column with at least two
        groups of 20 positives or more.

    Raises
    ------
    InputError
        If a question, metric or interval does not fit the task, or shapes disagree.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat([0, 1], [400, 100])
    >>> fold = np.stack([rng.permutation(500) % 5 for _ in range(2)])
    >>> signal = 2.0 * y + rng.normal(size=500)
    >>> score = np.stack([signal + 3 * rng.normal(size=(2, 500)), np.stack([signal, signal])])
    >>> board = Board("linear", ["nothing", "better"], y, fold, score)
    >>> verdict, = verdicts([board], "ranking", task="binary")
    >>> verdict.verdict, round(verdict.estimate, 2)
    ('helps', 0.26)
    """
    metric = metric_of(question, task, metric, cost)
    check_choice("interval", interval, ("rows", "nadeau-bengio", "jackknife"))
    check_range("level", level, low=0.5, high=0.9999)
    if rope is not None:
        check_range("rope", rope, low=0)
    missing = _failed_verdicts(failed or {}, question, metric)
    if question == "groups" and boards and not judged_columns(boards[0].tested()):
        return Verdicts(missing)
    if all(len(board.arms) < 2 for board in boards):
        return Verdicts(missing)
    family = family_of(boards, question, task=task, metric=metric, cost=cost)
    estimate, se, c, note = _intervals(family, boards, question, task, interval, level)
    identical = (family.moments.estimate == 0) & (np.diag(family.moments.S1) == 0)
    untested = question in ("groups", "dependence") or task == "multiclass" or any(board.clustered for board in boards)
    judged = []
    for a, (learner, arm, group) in enumerate(family.members):
        region = rope if rope is not None else ROPES.get(metric, RELATIVE_ROPE * abs(float(family.baseline[a])))
        low, high = (0.0, 0.0) if identical[a] else (float(estimate[a] - c * se[a]), float(estimate[a] + c * se[a]))
        notes = ["identical predictions"] if identical[a] else [note] if note else []
        if (learner, arm) in (reasons or {}):
            notes.append((reasons or {})[learner, arm])
        if question == "tails" and not notes and np.isnan(se[a]):
            notes.append("stopped early, before the jackknife")
        word = _rule(low, high, region)
        if (learner, arm) in stopped:
            word = "harms"
            notes.append("stopped early")
        judged.append(
            Verdict(
                arm=arm,
                learner=learner,
                question=question,
                estimate=float(estimate[a]),
                low=low,
                high=high,
                verdict=word,
                reason="; ".join(notes),
                metric=metric,
                rope=float(region),
                group=group,
                provisional=untested or learner not in calibrated,
                detectable=float((c + POWER_Z) * se[a]),
                unit="positives" if task == "binary" else "rows",
            )
        )
    return Verdicts([*judged, *missing])


def _rule(low: float, high: float, rope: float) -> str:
    if -rope < low and high < rope:
        return "no difference"
    if low > 0:
        return "helps"
    return "harms" if high < 0 else "undecided"


def _failed_verdicts(failed: Mapping[Key, str], question: str, metric: str) -> list[Verdict]:
    nan = float("nan")
    return [Verdict(arm, learner, question, nan, nan, nan, "failed", reason, metric) for (learner, arm), reason in failed.items()]


def _intervals(
    family: Family, boards: Sequence[Board], question: str, task: str, interval: str, level: float
) -> tuple[FloatArray, FloatArray, float, str]:
    """(estimates, standard errors, critical value, note); standard errors are NaN where no valid one exists."""
    claims = family.claims if family.claims.any() else np.ones_like(family.claims)
    if interval == "nadeau-bengio":
        estimate, se, covariance, df = _from_cells(family.cells)
        return estimate, se, max_t(covariance[np.ix_(claims, claims)], df, level), ""
    estimate = family.moments.estimate
    if interval == "jackknife" or question == "tails":
        if task != "regression":
            bad_input("interval", interval, "'rows' or 'nadeau-bengio'", "The jackknife is for the rarest range of a regression.")
        if any(board.dropped is None for board in boards):
            if question == "tails":
                return estimate, np.full(len(estimate), np.nan), np.nan, "the rarest range needs the jackknife, which was not run"
            bad_input("interval", interval, "'rows' or 'nadeau-bengio'", "This study holds no cells with row groups deleted.")
        se, df = jackknife(_deletions(boards, question))
        return estimate, se, bonferroni(int(claims.sum()), df, level), ""
    se = row_standard_error(family.moments, repeat_variance(family.cells), family.grain)
    return estimate, se, max_t(family.moments.S[np.ix_(claims, claims)], family.df, level), ""


def _from_cells(cells: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, int]:
    """(estimate, se, covariance, df) by Nadeau and Bengio's correction, from cell differences (A, R, K) with gaps."""
    if cells.shape[1] < 2:
        raise InputError("interval: 'nadeau-bengio' needs at least 2 repeats, this study has 1; use interval='rows'.")
    flat = cells.reshape(len(cells), -1)
    valid = ~np.isnan(flat)
    ratio = 1.0 / (cells.shape[2] - 1)
    parts = [nadeau_bengio(row[there], ratio) for row, there in zip(flat, valid, strict=True)]
    estimate = np.array([part[0] for part in parts])
    filled = np.where(valid, flat, estimate[:, None])  # gaps say nothing about the correlation
    return estimate, np.array([part[1] for part in parts]), np.atleast_2d(np.cov(filled)), min(part[2] for part in parts)


def _deletions(boards: Sequence[Board], question: str) -> FloatArray:
    """(A, G) differences of the mean absolute error after each row group was deleted; NaN for an arm without such predictions."""
    found = []
    for board in (board.tested() for board in boards):
        assert board.dropped is not None
        rows = rarest(board.y) if question == "tails" else np.ones(len(board.y), dtype=bool)
        away = np.abs(board.dropped[:, :, rows].astype(np.float64) - board.y[rows])
        tested = ~np.isnan(away)
        error = np.where(tested, away, 0.0).sum(axis=2) / np.where(tested.any(axis=2), tested.sum(axis=2), np.nan)
        found.append(error[:1] - error[1:])
    return np.concatenate(found)


def compare(
    boards: Sequence[Board],
    first: Key,
    second: Key,
    question: str,
    *,
    task: str,
    metric: str | None = None,
    cost: Mapping[str, float] | None = None,
    rope: float | None = None,
    interval: str = "rows",
    level: float = 0.95,
    calibrated: Collection[str] = CALIBRATED_LEARNERS,
) -> Verdict:
    """Judge one arm (learner, arm) against another: a family of one, so only for a comparison that was decided on beforehand.

    The parameters are those of :func:`verdicts`; ``Verdict.against`` names the second arm.
    """
    if question == "groups":
        bad_input("question", question, "decisions, ranking, probabilities, error or tails")
    board = _pair(boards, second, first)
    known = calibrated if first[0] in calibrated and second[0] in calibrated else ()
    (judged,) = verdicts(
        [board], question, task=task, metric=metric, cost=cost, rope=rope, interval=interval, level=level, calibrated=known
    )
    return replace(judged, arm=first[1], learner=first[0], against=second[1] if first[0] == second[0] else "/".join(second))


def _pair(boards: Sequence[Board], base: Key, arm: Key) -> Board:
    """A board with ``base`` in the place of the baseline and ``arm`` as its only arm."""
    one, other = (_only(boards, key) for key in (base, arm))
    return replace(
        other,
        arms=["/".join(base), "/".join(arm)],
        score=np.concatenate([one.score, other.score]),
        decision=None if one.decision is None or other.decision is None else np.concatenate([one.decision, other.decision]),
        dropped=None if one.dropped is None or other.dropped is None else np.concatenate([one.dropped, other.dropped]),
    )


def _only(boards: Sequence[Board], key: Key) -> Board:
    for board in boards:
        if board.learner == key[0] and key[1] in board.arms:
            return board.with_arms([list(board.arms).index(key[1])])
    names = [f"{board.learner}/{arm}" for board in boards for arm in board.arms]
    bad_input("arm", "/".join(key), "one of " + ", ".join(names))


# ---- power, stopping --------------------------------------------------------------------------------------------------------------------


def smallest_detectable(n1: int, learner: str) -> float:
    r"""Smallest difference in balanced accuracy that four of five studies find, before any fit: :math:`k / \sqrt{n_1}`.

    ``n1`` is the number of rows of the rarest class; k = .42 (linear), .51 (trees), .48 (nets), medians over real sets with quartiles
    35 % off; other learners take the largest. After the first repeat :attr:`Verdict.detectable` has the measured one.

    >>> round(smallest_detectable(100, "linear"), 3)
    0.042
    """
    check_range("n1", n1, low=1, integer=True)
    return DETECTABLE.get(learner, max(DETECTABLE.values())) / math.sqrt(n1)


def more_repeats_help(
    boards: Sequence[Board], question: str, *, task: str, metric: str | None = None, cost: Mapping[str, float] | None = None
) -> bool:
    r"""Whether one more repeat would shrink any standard error by more than 3 %. It looks at variances only, so asking costs no error.

    S over R repeats is a + b / R and one repeat has S1 = a + b; the variance between repeats falls as 1 / R; the floor S1 stays.
    """
    family = family_of(boards, question, task=task, metric=metric, cost=cost)
    repeats = family.moments.repeats.shape[1]
    if repeats < 2:
        return True
    v_rep = repeat_variance(family.cells)
    now, one = np.diag(family.moments.S), np.diag(family.moments.S1)
    shrinking = np.maximum(one - now, 0.0) * repeats / (repeats - 1)
    then = one - shrinking + shrinking / (repeats + 1)
    expected = replace(family.moments, S=np.diag(then))
    before = row_standard_error(family.moments, v_rep, family.grain)
    after = row_standard_error(expected, v_rep * repeats / (repeats + 1), family.grain)
    return bool((after[family.claims] < (1 - REPEAT_GAIN) * before[family.claims]).any())


def clearly_harmful(
    boards: Sequence[Board],
    question: str,
    *,
    task: str,
    metric: str | None = None,
    cost: Mapping[str, float] | None = None,
    level: float = 0.95,
) -> set[Key]:
    """Arms that need no further cells: (learner, arm) whose upper Nadeau-Bengio limit, simultaneous over the family, is below 0.

    Empty before the second repeat. There is no such rule for success: an arm is never stopped because it looks good.
    """
    if boards[0].repeats < 2 or all(len(board.arms) < 2 for board in boards):
        return set()
    family = family_of(boards, question, task=task, metric=metric, cost=cost)
    estimate, se, c, _ = _intervals(family, boards, question, task, "nadeau-bengio", level)
    return {(learner, arm) for a, (learner, arm, _) in enumerate(family.members) if estimate[a] + c * se[a] < 0}
