"""Small studies of real tables, run without a store: what the A/A and the planted benchmarks repeat hundreds of times.

They go through the same splits, cells, thresholds and statistics as ``counterpoise.study``.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from joblib import Parallel, delayed

from counterpoise._seeding import generator
from counterpoise.datasets import Dataset, load
from counterpoise.studies._cell import run_cell, train
from counterpoise.studies._differences import Board
from counterpoise.studies._learners import Learner
from counterpoise.studies._metrics import cell_metrics, decide
from counterpoise.studies._plan import make_protocol
from counterpoise.studies._problem import Problem, build_problem
from counterpoise.studies._remedies import Draw, Remedy, TrainingRows
from counterpoise.studies._splits import Splits
from counterpoise.studies._types import CellId, Protocol


@dataclass(frozen=True)
class FixedDrop(Remedy):
    """A null arm: the plain fit without its own fixed random share of the rows, the same rows in every fold and repeat.

    All such arms are exchangeable, so every difference claimed between two of them is false. With ``fresh`` the rows are drawn anew for
    every fit instead.
    """

    share: float = 0.2
    study: int = 0
    fresh: bool = False

    def draw(self, training: TrainingRows, params: Any, seed: int) -> Draw:
        key: tuple[str | int, ...] = ("null", self.name, self.study, *((seed,) if self.fresh else ()))
        kept = generator(1, *key).random(int(training.rows.max()) + 1)[training.rows] >= self.share
        return Draw(np.flatnonzero(kept))


def subsample(name: str, n: int, seed: int) -> Problem:
    """``n`` rows of a named set, stratified by class (a regression: at random), as a problem."""
    data = load(name)
    frame = data.frame[chosen_rows(data, n, seed).tolist()]
    return build_problem(frame, target=data.target, positive=data.positive, keep=frame.columns)


def halves(name: str, n: int, seed: int) -> Problem:
    """Like :func:`subsample`, with the remaining rows as a test table that the study never trains on."""
    data = load(name)
    return with_remainder(data.frame, data, chosen_rows(data, n, seed))


def with_remainder(frame: pl.DataFrame, data: Dataset, chosen: npt.NDArray[np.int64]) -> Problem:
    """The chosen rows of ``frame`` as a study, all others as its test table."""
    rest = np.setdiff1d(np.arange(frame.height), chosen)
    return build_problem(frame[chosen.tolist()], test=frame[rest.tolist()], target=data.target, positive=data.positive, keep=frame.columns)


def chosen_rows(data: Dataset, n: int, seed: int) -> npt.NDArray[np.int64]:
    """Numbers of ``n`` rows in ascending order, stratified by class (a regression: at random)."""
    y = data.frame[data.target].to_numpy()
    rng = np.random.default_rng([seed, n])
    if data.task == "regression":
        return np.sort(rng.permutation(len(y))[:n])
    labels, codes = np.unique(y, return_inverse=True)
    share = np.bincount(codes) * n / len(y)
    chosen = [rng.permutation(np.flatnonzero(codes == k))[: round(share[k])] for k in range(len(labels))]
    return np.sort(np.concatenate(chosen))


def board_of(problem: Problem, protocol: Protocol, arms: Sequence[Remedy], learner: Learner) -> tuple[Board, Splits]:
    """All cells of one learner; ``arms[0]`` is the baseline."""
    splits = Splits(problem, protocol)
    rows = splits.rows
    shape = (len(arms), protocol.repeats, len(rows)) + ((len(problem.schema.classes),) if problem.task == "multiclass" else ())
    score, decision = np.full(shape, np.nan), np.zeros(shape[:3], dtype=np.int64)
    for repeat in range(protocol.repeats):
        folds = splits.folds(repeat)[rows]
        for fold in range(protocol.folds):
            for a, arm in enumerate(arms):
                result = run_cell(problem, protocol, splits, learner, arm, CellId(-1, repeat, fold, ""))
                score[a, repeat, folds == fold] = result.scores
                if problem.task != "regression":
                    decision[a, repeat, folds == fold] = decide(result.scores, result.threshold)
    blocks = problem.blocks[rows]
    return (
        Board(
            learner=learner.name,
            arms=[arm.name for arm in arms],
            y=problem.y[rows],
            fold=np.stack([splits.folds(repeat)[rows] for repeat in range(protocol.repeats)]),
            score=score,
            decision=None if problem.task == "regression" else decision,
            blocks=blocks,
            has_blocks=len(np.unique(blocks)) < len(blocks),
        ),
        splits,
    )


def truths(problem: Problem, protocol: Protocol, arms: Sequence[Remedy], learner: Learner, metric: str) -> list[float]:
    """What each arm is worth: fitted once on all rows of the study, its threshold tuned there, scored on the rows the study never saw."""
    splits = Splits(problem, protocol)
    rest = splits.holdout
    found = []
    for arm in arms:
        trained = train(problem, protocol, splits, learner, arm, splits.rows, "truth", 0)
        scores = trained.model.scores(problem.X[rest], None, problem.task)
        found.append(cell_metrics(problem.task, problem.y[rest], scores, trained.threshold)[metric])
    return found


def protocol_of(problem: Problem, seed: int, folds: int = 5, repeats: int = 5) -> Protocol:
    """The study's own protocol, without a hold-out: all rows of these small samples take part."""
    return make_protocol(problem, folds=folds, repeats=repeats, seed=seed, holdout=False)


def run_many(one: Callable[..., dict[str, Any]], tasks: Sequence[dict[str, Any]], path: Path, jobs: int) -> list[dict[str, Any]]:
    """Run ``one(**task)`` for all tasks, one line of JSON each in ``path``; what is there already is not run again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {json.dumps(row["task"], sort_keys=True) for row in done}
    todo = [task for task in tasks if json.dumps(task, sort_keys=True) not in known]
    started = time.monotonic()
    runs = Parallel(n_jobs=jobs, return_as="generator_unordered")(delayed(_quietly)(one, task) for task in todo)
    with path.open("a") as file:
        for count, row in enumerate(runs, 1):
            file.write(json.dumps(row, sort_keys=True) + "\n")
            file.flush()
            done.append(row)
            if count % 20 == 0:
                left = (time.monotonic() - started) / count * (len(todo) - count)
                print(f"  {count} of {len(todo)} studies, about {left / 60:.0f} min left", flush=True)
    wanted = {json.dumps(task, sort_keys=True) for task in tasks}
    return [row for row in done if json.dumps(row["task"], sort_keys=True) in wanted]


def _quietly(one: Callable[..., dict[str, Any]], task: dict[str, Any]) -> dict[str, Any]:
    os.environ["OMP_NUM_THREADS"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        started = time.monotonic()
        row = one(**task)
    return {"task": task, "seconds": round(time.monotonic() - started, 3)} | row
