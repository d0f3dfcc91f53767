"""Which arm to use, and what to expect of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from counterpoise._seeding import generator
from counterpoise._stats import Design, bonferroni, mean_of_shares

from ._differences import SHOWN_ONLY, Board, Key, arm_values, checked, evaluator, family_of, metric_of, rarest
from ._metrics import LOWER_IS_BETTER
from ._verdicts import ARM_WORDS, METRIC_WORDS, QUESTION_WORDS, Verdict, between, compare, number

__all__ = ["Expectation", "HoldoutVerdict", "Recommendation", "bias_corrected_expectation", "holdout_verdict", "recommend"]

IntArray = npt.NDArray[np.int64]

NEVER_RECOMMENDED = (*SHOWN_ONLY, "placebo")
NEVER_AGAINST = "dependence"  # on groups: a question of what is wanted
EXPECTATION_DRAWS = 200
COUNTED = frozenset({"accuracy", "balanced_accuracy"})  # means of shares of rows


@dataclass(frozen=True)
class Expectation:
    """What to expect of the recommendation, from rows that did not choose it.

    Attributes:
        metric: name of the metric.
        value: of the chosen arm on rows left out of the choice, mean over the draws; ``low`` and ``high`` hold the middle 95 %, and for
            (balanced) accuracy the interval that the numbers of rows allow (:func:`counterpoise._stats.mean_of_shares`).
        gain: chosen arm minus the baseline of its learner there; positive is better.
        upper_limit: the correction is known to be too small for this metric (AUROC); read the numbers as at most.
    """

    metric: str
    value: float
    low: float
    high: float
    gain: float
    draws: int
    upper_limit: bool = False

    def sentence(self) -> str:
        """What to expect, in one sentence.

        >>> Expectation("balanced_accuracy", 0.8123, 0.77, 0.85, 0.0061, 200).sentence()
        'Expect balanced accuracy of about 0.81 (0.77 to 0.85), about 0.006 better than the baseline.'
        """
        bound = "at most" if self.upper_limit else "about"
        name = METRIC_WORDS.get(self.metric, self.metric)
        text = f"Expect {name} of {bound} {_level(self.value)} ({_level(self.low)} to {_level(self.high)})"
        if self.gain == 0:
            return text + "."
        if self.gain < 0:
            return f"{text}, no better than the baseline."
        return f"{text}, {bound} {number(self.gain)} better than the baseline."


def _level(value: float) -> str:
    return f"{value:,.2f}" if abs(value) < 10 else number(value)


@dataclass(frozen=True)
class HoldoutVerdict:
    """What the locked rows say about the recommendation: ``confirmed`` (low > 0), ``not contradicted`` or ``contradicted`` (high < 0).

    ``estimate``, ``low`` and ``high``: recommended minus baseline there, one comparison; positive is better. ``value``: the recommended
    arm's metric on these rows, for (balanced) accuracy with the limits ``value_low`` and ``value_high``.
    """

    outcome: str
    estimate: float
    low: float
    high: float
    question: str
    metric: str
    value: float
    rows: int
    value_low: float = float("nan")
    value_high: float = float("nan")

    def sentence(self) -> str:
        """The outcome with its interval.

        >>> HoldoutVerdict("confirmed", 0.03, 0.011, 0.049, "decisions", "balanced_accuracy", 0.85, 2000).sentence()
        'On 2,000 rows locked away until now: confirmed (balanced accuracy better by +0.01 to +0.05).'
        """
        metric = METRIC_WORDS.get(self.metric, self.metric)
        if self.low == self.high == 0:
            limits = f" ({_level(self.value_low)} to {_level(self.value_high)})" if self.value_low == self.value_low else ""
            return f"On {self.rows:,} rows locked away until now: {metric} {_level(self.value)}{limits}."
        low, high = between(self.low, self.high)
        return f"On {self.rows:,} rows locked away until now: {self.outcome} ({metric} better by {low} to {high})."


@dataclass(frozen=True)
class Recommendation:
    """Which learner and remedy to use.

    Attributes:
        learner, arm: what to fit.
        question, metric: what it was chosen for.
        verdict: the verdict that earned it, None if it is a baseline.
        reasons: why, in one sentence; then one for every arm that helped and was not taken.
        holdout: what the locked rows said, once they were opened.
        expected: bias-corrected expectation, for studies too small for a hold-out.
    """

    learner: str
    arm: str
    question: str
    metric: str
    verdict: Verdict | None
    reasons: tuple[str, ...]
    holdout: HoldoutVerdict | None = None
    expected: Expectation | None = None

    @property
    def is_baseline(self) -> bool:
        return self.verdict is None

    def summary(self) -> str:
        """The recommendation, why, and what to expect of it.

        >>> Recommendation("trees", "nothing", "decisions", "balanced_accuracy", None, ("No remedy helps.",)).summary()
        'Recommended: trees without a remedy. No remedy helps.'
        """
        parts = [f"Recommended: {_shown((self.learner, self.arm), self.is_baseline)}.", *self.reasons[:1]]
        parts += [part.sentence() for part in (self.holdout, self.expected) if part is not None]
        return " ".join(parts)


def _shown(key: Key, is_baseline: bool = False) -> str:
    return f"{key[0]} without a remedy" if is_baseline else f"{key[0]} with {ARM_WORDS.get(key[1], key[1])}"


def recommend(
    boards: Sequence[Board],
    judged: Mapping[str, Sequence[Verdict]],
    *,
    primary: str,
    task: str,
    stages: Mapping[str, str],
    metric: str | None = None,
    cost: Mapping[str, float] | None = None,
    accept_worse: Collection[str] = (),
) -> Recommendation:
    """The best arm that earned it, else the baseline of the best learner.

    An arm qualifies with *helps* on the primary question, no *harms* on another, and a metric no worse than the best baseline of any
    learner. Arms whose difference to the best of them lies inside its interval are ties; of ties the simplest stage is taken.

    Parameters
    ----------
    boards : sequence of Board
        The scores that were judged.
    judged : mapping from question to verdicts
        Verdicts of the primary question and of all others that may speak against an arm. Dependence on groups does not: whether it should
        be as small as possible is for the user to say.
    primary : str
        The question that recommends.
    task : {"binary", "multiclass", "regression"}
    stages : mapping from arm to str
        Stage of each remedy: none, decision, loss, data or model, from simple to complex; unknown ones count as the most complex.
    metric, cost
        As for :func:`verdicts`, of the primary question.
    accept_worse : collection of str
        Questions whose *harms* do not matter.
    """
    from ._remedies import STAGE_ORDER

    metric = metric_of(primary, task, metric, cost)
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    values = {key: sign * value for key, value in arm_values(boards, primary, task=task, metric=metric, cost=cost).items()}
    baselines = [(board.learner, board.arms[0]) for board in boards]
    best_baseline = max(baselines, key=lambda key: values[key])
    helped = {(v.learner, v.arm): v for v in judged[primary] if v.verdict == "helps" and v.arm not in NEVER_RECOMMENDED}
    silent = (primary, NEVER_AGAINST, *accept_worse)
    others = [verdict for question, found in judged.items() if question not in silent for verdict in found]
    passed: list[str] = []
    candidates: list[Key] = []
    for key in helped:
        harmed = {verdict.question for verdict in others if verdict.verdict == "harms" and (verdict.learner, verdict.arm) == key}
        if harmed:
            what = " and ".join(QUESTION_WORDS[question] for question in sorted(harmed))
            passed.append(f"{_shown(key)} helps {QUESTION_WORDS[primary]}, but harms {what}.")
        elif values[key] < values[best_baseline]:
            passed.append(f"{_shown(key)} helps {key[0]}, but {_shown(best_baseline, True)} is still better.")
        else:
            candidates.append(key)
    if not candidates:
        why = "No remedy has been shown to help" if not helped else "No remedy earned its place"
        best_of = f"; {best_baseline[0]} has the best {METRIC_WORDS[metric]} of the learners" if len(baselines) > 1 else ""
        reason = f"{why} ({QUESTION_WORDS[primary]}){best_of}." + _elsewhere(others)
        return Recommendation(*best_baseline, primary, metric, None, (reason, *passed))

    def complexity(key: Key) -> int:
        stage = stages.get(key[1], "")
        return STAGE_ORDER.index(stage) if stage in STAGE_ORDER else len(STAGE_ORDER)

    best = max(candidates, key=lambda key: values[key])
    tied = [best]
    for key in candidates:
        if key != best and not compare(boards, best, key, primary, task=task, metric=metric, cost=cost).low > 0:
            tied.append(key)
    chosen = min(tied, key=lambda key: (complexity(key), -values[key]))
    for key in candidates:
        if key != chosen:
            why = "this data can not tell it from the simpler one" if key in tied else "not as much"
            passed.append(f"{_shown(key)} helps too, but {why}.")
    return Recommendation(*chosen, primary, metric, helped[chosen], (helped[chosen].sentence(), *passed))


def _elsewhere(others: Sequence[Verdict]) -> str:
    """Who helps another question than the one that recommends, at most two of them: nobody should take it for nothing."""
    found = [verdict for verdict in others if verdict.verdict == "helps" and verdict.arm not in NEVER_RECOMMENDED]
    named = dict.fromkeys(f"{_shown((verdict.learner, verdict.arm))} helps {QUESTION_WORDS[verdict.question]}" for verdict in found)
    more = f", and {len(named) - 2} more" if len(named) > 2 else ""
    return f" But {' and '.join(list(named)[:2])}{more}: see there." if named else ""


def bias_corrected_expectation(
    boards: Sequence[Board],
    question: str,
    *,
    task: str,
    metric: str | None = None,
    cost: Mapping[str, float] | None = None,
    candidates: Collection[Key] | None = None,
    chosen: Key | None = None,
    draws: int = EXPECTATION_DRAWS,
    seed: int = 0,
) -> Expectation:
    """What the best of many arms is worth on rows that did not choose it, without refitting.

    Bootstrap bias-corrected cross-validation (Tsamardinos, Greasidou and Borboudakis 2018) on the stored scores: rows are resampled within
    classes (clusters whole); the arm with the highest metric on the sample is chosen; its metric on the rows left out is averaged over
    ``draws``.

    Parameters
    ----------
    boards, question, task, metric, cost
        As for :func:`counterpoise.studies._verdicts.verdicts`.
    candidates : collection of (learner, arm), optional
        What is chosen among. Default: all arms but the placebo and the shown ones. After a baseline was recommended: the baselines.
    chosen : (learner, arm), optional
        The arm whose mistakes set the least width of the interval, for accuracy and balanced accuracy. Default: the best candidate.
    draws : int, default 200
    seed : int, default 0
    """
    metric = metric_of(question, task, metric, cost)
    boards = checked(boards, question)
    part = rarest(boards[0].y) if question == "tails" else None
    keys = [(board.learner, arm) for board in boards for arm in board.arms]
    base_of = np.concatenate([np.full(len(board.arms), keys.index((board.learner, board.arms[0]))) for board in boards])
    wanted = [key for key in keys if key[1] not in NEVER_RECOMMENDED] if candidates is None else list(candidates)
    pool = np.array([keys.index(key) for key in wanted])
    evaluate = evaluator(boards, metric, part, cost)
    strata = boards[0].y.astype(np.int64) if task != "regression" else np.zeros(len(boards[0].y), dtype=np.int64)
    design = Design(strata, boards[0].clusters)
    values, gains = [], []
    for weights in design.resamples(draws, generator(seed, "expectation")):
        best = pool[np.argmax(evaluate(weights)[:, pool], axis=1)]
        outside = evaluate((weights == 0).astype(np.float64))
        at = np.arange(len(weights))
        values.append(outside[at, best])
        gains.append(outside[at, best] - outside[at, base_of[best]])
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    value = sign * np.concatenate(values)
    low, high = np.nanquantile(value, [0.025, 0.975])
    if metric in COUNTED:
        seen = keys.index(chosen) if chosen is not None else pool[np.argmax(evaluate(np.ones((1, design.n)))[0, pool])]
        decision = np.concatenate([board.decision for board in boards if board.decision is not None])[seen]
        least_low, least_high = _least_interval(metric, boards[0].y, decision, boards[0].clusters)
        low, high = min(low, least_low), max(high, least_high)
    return Expectation(
        metric=metric,
        value=float(np.nanmean(value)),
        low=float(low),
        high=float(high),
        gain=float(np.nanmean(np.concatenate(gains))),
        draws=draws,
        upper_limit=metric == "auroc",
    )


def _least_interval(metric: str, y: npt.NDArray[Any], decision: npt.NDArray[Any], clusters: IntArray | None) -> tuple[float, float]:
    """Limits of (balanced) accuracy from the numbers of rows alone, (R, n) decisions: where no row of a rare class was missed, resampled
    rows do not miss any either, but new ones may. Rows that belong together count once."""
    correct = (decision == y).mean(axis=0)
    parts = [y == c for c in np.unique(y)] if metric == "balanced_accuracy" else [np.ones(len(y), dtype=bool)]
    sizes = [int(rows.sum()) if clusters is None else len(np.unique(clusters[rows])) for rows in parts]
    return mean_of_shares([float(correct[rows].mean()) for rows in parts], sizes)[1:]


def holdout_verdict(
    y: npt.NDArray[Any],
    baseline_scores: npt.NDArray[np.floating],
    scores: npt.NDArray[np.floating],
    baseline_decisions: npt.NDArray[np.integer] | None = None,
    decisions: npt.NDArray[np.integer] | None = None,
    *,
    question: str,
    task: str,
    metric: str | None = None,
    cost: Mapping[str, float] | None = None,
    blocks: IntArray | None = None,
    level: float = 0.95,
) -> HoldoutVerdict:
    r"""Recommended minus baseline on rows that were locked away: one comparison, :math:`\hat\delta \pm t_{df} \sqrt{S}`.

    Here the models are given and only the rows vary, so the variance is not doubled as in cross-validation.

    Parameters
    ----------
    y : array, shape (n,)
        Codes or target of the locked rows.
    baseline_scores, scores : arrays, shape (n,) or (n, C)
        Log-odds, log-probabilities or predictions of the baseline and of the recommended arm.
    baseline_decisions, decisions : arrays, shape (n,), optional
        Predicted codes, for the question ``decisions``.
    question, task, metric, cost
        As for :func:`verdicts`.
    blocks : array, shape (n,), optional
        Rows with the same id are not independent.
    level : float, default 0.95

    >>> import numpy as np
    >>> y = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    >>> scores = np.where(y == 1, 1.0, -1.0)
    >>> holdout_verdict(y, np.zeros(8), scores, question="probabilities", task="binary").outcome
    'confirmed'
    """
    given = None if baseline_decisions is None or decisions is None else np.stack([baseline_decisions, decisions])[:, None]
    board = Board(
        learner="",
        arms=["baseline", "recommended"],
        y=y,
        fold=np.zeros((1, len(y)), dtype=np.int64),
        score=np.stack([baseline_scores, scores])[:, None],
        decision=given,
        blocks=blocks,
        has_blocks=blocks is not None and len(np.unique(blocks)) < len(y),
    )
    family = family_of([board], question, task=task, metric=metric, cost=cost)
    estimate = float(family.moments.estimate[0])
    identical = estimate == 0 and family.moments.S[0, 0] == 0
    half = 0.0 if identical else bonferroni(1, family.df, level) * float(np.sqrt(max(family.moments.S[0, 0], family.grain[0])))
    low, high = estimate - half, estimate + half
    outcome = "confirmed" if low > 0 else "contradicted" if high < 0 else "not contradicted"
    sign = -1.0 if family.metric in LOWER_IS_BETTER else 1.0
    value = float(family.baseline[0]) + sign * estimate
    value_low, value_high = float("nan"), float("nan")
    if family.metric in COUNTED and decisions is not None:
        value_low, value_high = _least_interval(family.metric, y, decisions[None], board.clusters)
    return HoldoutVerdict(outcome, estimate, low, high, question, family.metric, value, len(y), value_low, value_high)
