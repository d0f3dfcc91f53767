"""Differences between arms: the scores of all arms of a study in, one family of paired differences per question out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from counterpoise._errors import bad_input, check_choice
from counterpoise._seeding import generator
from counterpoise._stats import Design, Moments, bootstrap_moments, row_moments
from counterpoise.groups import Groups

from ._metrics import (
    BOOTSTRAPPED,
    LOWER_IS_BETTER,
    Repeat,
    contributions,
    judged_groups,
    strata_of_metric,
    target_ranges,
    weighted_values,
)

__all__ = ["METRICS", "QUESTIONS", "Board", "Family", "Key", "Member", "arm_values", "family_of", "with_intersection"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Key = tuple[str, str]  # (learner, arm)

METRICS: dict[str, tuple[str, ...]] = {  # of each question; the first is the default
    "decisions": ("balanced_accuracy", "f1", "accuracy", "cost"),
    "ranking": ("auroc", "average_precision"),
    "probabilities": ("log_loss", "brier"),
    "groups": ("worst_group_recall",),
    "dependence": ("js_divergence",),
    "error": ("mae",),
    "tails": ("mae",),
}
QUESTIONS = {"binary": ("decisions", "ranking", "probabilities", "groups", "dependence"), "regression": ("error", "tails", "dependence")}
QUESTIONS["multiclass"] = QUESTIONS["binary"]

SHOWN_ONLY = ("nothing@0.5",)  # has an interval, but is no claim of the family
BOOTSTRAP_DRAWS = 500


@dataclass
class Board:
    """Everything the statistics need of one learner; ``arms[0]`` is the baseline.

    Attributes:
        learner: its name.
        arms: A names, the baseline first.
        y: (n,) codes 0..C-1, or the real target.
        fold: (R, n) fold in which each row was tested, -1 for rows that never are.
        score: (A, R, n) log-odds or predictions, or (A, R, n, C) log-probabilities; NaN in all of a repeat in which an arm was not run.
        decision: (A, R, n) predicted codes; None for a regression.
        blocks: (n,) rows with the same id are not independent.
        has_blocks: whether any two rows share a block.
        groups: the reported groups, by column; of several, the last is their intersection (:func:`with_intersection`).
        clustered: whether blocks are clusters of the user's, not just copies of rows.
        dropped: (A, G, n) predictions of repeat 0 with row group g deleted, NaN where a row was not tested (jackknife of a regression).
    """

    learner: str
    arms: Sequence[str]
    y: npt.NDArray[Any]
    fold: npt.NDArray[np.integer[Any]]
    score: npt.NDArray[np.floating]
    decision: npt.NDArray[np.integer[Any]] | None = None
    blocks: IntArray | None = None
    has_blocks: bool = False
    groups: Mapping[str, Groups] = field(default_factory=dict)
    clustered: bool = False
    dropped: npt.NDArray[np.floating] | None = None

    @property
    def repeats(self) -> int:
        return int(self.score.shape[1])

    @property
    def classes(self) -> int:
        return int(self.score.shape[3]) if self.score.ndim == 4 else 2

    @property
    def clusters(self) -> IntArray | None:
        return self.blocks if self.has_blocks else None

    def with_arms(self, at: Sequence[int]) -> Board:
        """The same learner with the arms at these positions."""
        index = list(at)
        return replace(
            self,
            arms=[self.arms[a] for a in index],
            score=self.score[index],
            decision=None if self.decision is None else self.decision[index],
            dropped=None if self.dropped is None else self.dropped[index],
        )

    def tested(self) -> Board:
        """Only the rows that are tested in every repeat."""
        keep = (self.fold >= 0).all(axis=0)
        if keep.all():
            return self
        return replace(
            self,
            y=self.y[keep],
            fold=self.fold[:, keep],
            score=self.score[:, :, keep],
            decision=None if self.decision is None else self.decision[:, :, keep],
            blocks=None if self.blocks is None else self.blocks[keep],
            groups={name: Groups(groups.ids[keep], groups.names, groups.kind) for name, groups in self.groups.items()},
            dropped=None if self.dropped is None else self.dropped[:, :, keep],
        )


def with_intersection(groups: Mapping[str, Groups]) -> dict[str, Groups]:
    """The reported groups and, of two or more columns, their intersection as a further one.

    >>> sex, age = Groups([0, 1, 1], ("F", "M")), Groups([0, 0, 1], ("young", "old"))
    >>> with_intersection({"sex": sex, "age": age})["sex x age"].names
    ('sex=F, age=young', 'sex=M, age=old', 'sex=M, age=young')
    """
    if len(groups) < 2:
        return dict(groups)
    table = {name: [None if k < 0 else one.names[k] for k in one.ids] for name, one in groups.items()}
    return {**groups, " x ".join(groups): Groups.from_columns(table, list(table))}


class Member(NamedTuple):
    """One comparison of a family."""

    learner: str
    arm: str
    group: str


@dataclass(frozen=True)
class Family:
    """All comparisons of one question: positive differences are better.

    ``baseline`` (A,) the metric of each one's baseline, ``moments`` of the differences over rows, ``cells`` (A, R, K) the differences in
    each test fold, ``df`` degrees of freedom, ``claims`` (A,) which of them count as claims, ``grain`` (A,) the variance of one
    changed decision per class (:func:`grain_of`).
    """

    members: list[Member]
    metric: str
    baseline: FloatArray
    moments: Moments
    cells: FloatArray
    df: int
    claims: BoolArray
    grain: FloatArray


def family_of(
    boards: Sequence[Board], question: str, *, task: str, metric: str | None = None, cost: Mapping[str, float] | None = None
) -> Family:
    """Differences of all arms of all ``boards`` to the baselines of their learners. The parameters are those of :func:`verdicts`."""
    metric = metric_of(question, task, metric, cost)
    boards = checked(boards, question)
    part = rarest(boards[0].y) if question == "tails" else None
    columns = judged_columns(boards[0]) if question == "groups" else {"": ()}
    views = [(board, column, rows) for column, rows in columns.items() for board in boards]
    members = [Member(board.learner, arm, column) for board, column, _ in views for arm in board.arms[1:]]
    design = Design(strata_of_metric(metric, boards[0].y), boards[0].clusters)
    gather = _bootstrapped if metric in BOOTSTRAPPED else _smooth
    moments, cells, levels = gather(metric, views, design, part, cost)
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    baseline = np.concatenate([np.full(len(board.arms) - 1, sign * levels[v][0]) for v, (board, _, _) in enumerate(views)])
    return Family(
        members=members,
        metric=metric,
        baseline=baseline,
        moments=moments,
        cells=cells,
        df=_degrees_of_freedom(boards[0], question, task, part, columns),
        claims=np.array([member.arm not in SHOWN_ONLY for member in members], dtype=bool),
        grain=np.concatenate([np.full(len(board.arms) - 1, grain_of(metric, board, rows, cost)) for board, _, rows in views]),
    )


def arm_values(
    boards: Sequence[Board], question: str, *, task: str, metric: str | None = None, cost: Mapping[str, float] | None = None
) -> dict[Key, float]:
    """The metric of every arm, baselines included, averaged over repeats: {(learner, arm): value}. Not for the question ``groups``."""
    metric = metric_of(question, task, metric, cost)
    boards = checked(boards, question)
    part = rarest(boards[0].y) if question == "tails" else None
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    values: dict[Key, float] = {}
    for board in boards:
        levels = np.nanmean([_levels(metric, repeat_of(board, r, (), part, cost))[0] for r in range(board.repeats)], axis=0)
        values |= {(board.learner, arm): sign * float(level) for arm, level in zip(board.arms, levels, strict=True)}
    return values


View = tuple[Board, str, Sequence[BoolArray]]  # a learner, the group column, the rows of its judged groups


def _smooth(
    metric: str, views: Sequence[View], design: Design, part: BoolArray | None, cost: Mapping[str, float] | None
) -> tuple[Moments, FloatArray, list[FloatArray]]:
    """Metrics that are sums over rows. One repeat is in memory at a time."""
    cells: list[list[FloatArray]] = []
    levels: list[list[FloatArray]] = []
    scales: list[float] = []

    def stream() -> Iterator[FloatArray]:
        for r in range(views[0][0].repeats):
            found = [contributions(metric, repeat_of(board, r, rows, part, cost)) for board, _, rows in views]
            cells.append([in_fold[1:] - in_fold[:1] for _, in_fold, _ in found])
            levels.append([scale * psi.sum(axis=1) for psi, _, scale in found])
            scales.append(found[0][2])
            yield np.concatenate([psi[1:] - psi[:1] for psi, _, _ in found])

    moments = row_moments(stream(), design)
    moments = replace(moments, repeats=moments.repeats * scales[0])
    return moments, np.stack([np.concatenate(part_) for part_ in cells], axis=1), _averaged(levels)


def _bootstrapped(
    metric: str, views: Sequence[View], design: Design, part: BoolArray | None, cost: Mapping[str, float] | None
) -> tuple[Moments, FloatArray, list[FloatArray]]:
    """Metrics that are no sums: the same resampled rows for all arms and repeats."""
    cells: list[FloatArray] = []
    values: list[FloatArray] = []
    levels: list[list[FloatArray]] = []
    repeats = range(views[0][0].repeats)
    for r in repeats:
        found = [_levels(metric, repeat_of(board, r, rows, part, cost)) for board, _, rows in views]
        levels.append([whole for whole, _ in found])
        values.append(np.concatenate([whole[1:] - whole[:1] for whole, _ in found]))
        cells.append(np.concatenate([in_fold[1:] - in_fold[:1] for _, in_fold in found]))
    draws: list[FloatArray] = []
    for weights in design.resamples(BOOTSTRAP_DRAWS, generator(0, "bootstrap")):
        drawn = []
        for r in repeats:
            found_here = [weighted_values(metric, repeat_of(board, r, rows, part, cost), weights) for board, _, rows in views]
            drawn.append(np.concatenate([here[:, 1:] - here[:, :1] for here in found_here], axis=1))
        draws.append(np.stack(drawn, axis=2))
    moments = bootstrap_moments(np.concatenate(draws), np.stack(values, axis=1))
    return moments, np.stack(cells, axis=1), _averaged(levels)


def _averaged(levels: list[list[FloatArray]]) -> list[FloatArray]:
    """Per view the mean over repeats of its arms' values."""
    return [np.nanmean([repeat[v] for repeat in levels], axis=0) for v in range(len(levels[0]))]


def _levels(metric: str, repeat: Repeat) -> tuple[FloatArray, FloatArray]:
    """A metric of one repeat: (over all rows (A,), in each test fold (A, K)), higher is better."""
    if metric not in BOOTSTRAPPED:
        psi, in_fold, scale = contributions(metric, repeat)
        return scale * psi.sum(axis=1), in_fold
    whole = weighted_values(metric, repeat, np.ones((1, len(repeat.y))))[0]
    folds = (repeat.fold == np.arange(repeat.folds)[:, None]).astype(np.float64)
    return whole, weighted_values(metric, repeat, folds).T


def repeat_of(
    board: Board,
    r: int,
    rows: Sequence[BoolArray],
    part: BoolArray | None,
    cost: Mapping[str, float] | None,
) -> Repeat:
    decision = None if board.decision is None else board.decision[:, r]
    # All columns of groups at once, which is the last of them.
    cells = list(board.groups.values())[-1].ids if board.groups else None
    return Repeat(board.y, board.fold[r], board.score[:, r], decision, int(board.fold.max()) + 1, cost, rows, part, cells)


def rarest(y: npt.NDArray[Any]) -> BoolArray:
    """(n,) rows of the range called few."""
    return np.asarray(target_ranges(y).ids == 2)


def judged_columns(board: Board) -> dict[str, list[BoolArray]]:
    """Rows of the judged groups of each column in which at least two groups can be judged."""
    found = {column: [rows for _, rows in judged_groups(board.y, groups, board.classes)] for column, groups in board.groups.items()}
    return {column: rows for column, rows in found.items() if len(rows) > 1}


def grain_of(metric: str, board: Board, groups: Sequence[BoolArray] = (), cost: Mapping[str, float] | None = None) -> float:
    r"""Variance of one changed decision in each class, :math:`\sum_c w_c^2` with w_c the weight of a row of class c in the metric.

    Where two arms decide all 23 rows of a rare class alike, the observed variance of that class is 0 and the interval far too short: that
    no row changed does not mean that none would. The variance is therefore never taken to be smaller than this. It vanishes as 1 / n^2,
    and is 0 for metrics that do not depend on decisions.
    """
    if board.decision is None:
        return 0.0

    def size(rows: BoolArray) -> int:
        return int(rows.sum()) if board.clusters is None else len(np.unique(board.clusters[rows]))

    everyone = np.ones(len(board.y), dtype=bool)
    sizes = [size(board.y == c) for c in np.unique(board.y)]
    if metric == "worst_group_recall":
        return 1.0 / min(size(rows) for rows in groups) ** 2
    if metric == "cost" and cost is not None:
        return (cost["fp"] ** 2 + cost["fn"] ** 2) / size(everyone) ** 2
    if metric == "accuracy":
        return 1.0 / size(everyone) ** 2
    if metric in ("balanced_accuracy", "f1"):
        return sum(1.0 / count**2 for count in sizes) / len(sizes) ** 2
    return 0.0


def _degrees_of_freedom(board: Board, question: str, task: str, part: BoolArray | None, columns: Mapping[str, Sequence[BoolArray]]) -> int:
    """Independent units less one: in the rarest class, the smallest judged group, the rarest range, or all rows with a group."""
    sets = [rows for column in columns.values() for rows in column]
    if not sets:
        if question == "dependence":
            sets = [board.groups[list(board.groups)[-1]].ids >= 0]
        elif task == "regression":
            sets = [np.ones(len(board.y), dtype=bool) if part is None else part]
        else:
            sets = [board.y == c for c in np.unique(board.y)]
    smallest = min(int(rows.sum()) if board.clusters is None else len(np.unique(board.clusters[rows])) for rows in sets)
    return max(smallest - 1, 1)


def metric_of(question: str, task: str, metric: str | None, cost: Mapping[str, float] | None) -> str:
    """The metric that answers the question: the given one if it can, or the default."""
    check_choice("task", task, tuple(QUESTIONS))
    check_choice("question", question, QUESTIONS[task])
    metric = METRICS[question][0] if metric is None else metric
    check_choice("metric", metric, METRICS[question])
    if metric == "cost" and (cost is None or task != "binary"):
        bad_input("cost", cost, "{'fp': a, 'fn': b} and two classes for the metric 'cost'")
    return metric


def checked(boards: Sequence[Board], question: str) -> list[Board]:
    """The boards with their tested rows; all must have the same rows, repeats and kind of scores."""
    if not boards:
        bad_input("boards", 0, "the scores of at least one learner")
    first = boards[0]
    for board in boards:
        shape = (len(board.arms), *first.fold.shape)
        if board.score.shape[:3] != shape:
            bad_input(f"boards[{board.learner!r}].score", f"shape {board.score.shape}", f"(arms, repeats, rows) = {shape}")
        if question == "dependence" and not board.groups:
            bad_input(f"boards[{board.learner!r}].groups", "none", "groups, for the question 'dependence'")
        if question in ("decisions", "groups") and board.decision is None:
            bad_input(f"boards[{board.learner!r}].decision", None, f"predicted codes, for the question {question!r}")
        unseen = np.isnan(board.score.reshape(*shape, -1)[..., 0]).all(axis=(1, 2))
        if unseen.any():
            bad_input(f"boards[{board.learner!r}]", board.arms[int(np.argmax(unseen))], "arms with scores in at least one repeat")
    return [board.tested() for board in boards]


def evaluator(
    boards: Sequence[Board], metric: str, part: BoolArray | None, cost: Mapping[str, float] | None
) -> Callable[[FloatArray], FloatArray]:
    """A function from weights (b, n) to the metric of all arms of all boards (b, A), mean over repeats, higher is better."""
    repeats = range(boards[0].repeats)
    if metric in BOOTSTRAPPED:

        def recomputed(weights: FloatArray) -> FloatArray:
            found = [[weighted_values(metric, repeat_of(board, r, (), part, cost), weights) for board in boards] for r in repeats]
            return np.asarray(np.nanmean([np.concatenate(values, axis=1) for values in found], axis=0))

        return recomputed

    averaged, scale = [], 1.0
    for board in boards:
        parts = [contributions(metric, repeat_of(board, r, (), part, cost)) for r in repeats]
        averaged.append(np.nanmean([psi for psi, _, _ in parts], axis=0))
        scale = parts[0][2]
    psi = scale * np.concatenate(averaged)
    strata = strata_of_metric(metric, boards[0].y) if part is None else part.astype(np.int64)
    members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]

    def summed(weights: FloatArray) -> FloatArray:
        total = np.zeros((len(weights), len(psi)))
        for rows in members:
            mass = weights[:, rows].sum(axis=1, keepdims=True)
            # A stratum keeps its share of the metric however many of its rows were drawn.
            total += weights[:, rows] @ psi[:, rows].T * (len(rows) / np.maximum(mass, 1e-300))
        return total

    return summed
