"""The diagnosis that opens a study: the table as the linear learner sees it, and whose gradient dominates there and in a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._seeding import generator
from counterpoise.diagnostics import diagnose

from ._preprocess import Preprocess

if TYPE_CHECKING:
    from counterpoise.diagnostics import StudyDiagnosis, TrainingDiagnosis
    from counterpoise.groups import Groups

    from ._problem import Problem

__all__ = ["NetworkDiagnosis", "diagnose_network", "diagnose_problem"]

NETWORK_ROWS = 10_000  # that the network is trained on: whose step it is does not change visibly with more
BINS = 10  # ranges of a continuous target


def diagnose_problem(problem: Problem, column: str | None = None, *, seed: int = 0) -> StudyDiagnosis:
    """Diagnose ``problem`` by class (by range of a real target), or by the groups of ``column``; see
    :func:`counterpoise.diagnostics.diagnose`."""
    names = None if problem.task == "regression" else problem.schema.classes
    groups = None if column is None else problem.groups[column]
    return diagnose(lambda rows: _encoded(problem, rows, seed), problem.y, names, groups, seed=seed)


def _encoded(problem: Problem, rows: npt.NDArray[np.int64], seed: int) -> npt.NDArray[Any]:
    preprocess = Preprocess([len(feature.levels) for feature in problem.schema.features], scale=True, task=problem.task, seed=seed)
    cleaned, words = preprocess.fit(problem.X[rows], None if problem.text is None else problem.text[rows])
    known = preprocess.fit_encode(cleaned, problem.y[rows])
    return known if words is None else np.hstack([known, words])


@dataclass(frozen=True, eq=False)
class NetworkDiagnosis:
    """The step of a small network at the start of its training, after a tenth of it, and at the end."""

    steps: tuple[int, ...]
    diagnoses: tuple[TrainingDiagnosis, ...]

    def summary(self) -> str:
        """Whose step it is at each moment."""
        shares = self.diagnoses[0].shares
        leading = [diagnosis.shares.dominant for diagnosis in self.diagnoses]
        words = ("at the start", f"after {self.steps[1]:,} of {self.steps[-1]:,} steps", "at the end")
        told = []
        for diagnosis, k, word in zip(self.diagnoses, leading, words, strict=True):
            s = diagnosis.shares
            value, what = (s.magnitude_share[k], "pull") if s.settled else (s.share[k], "step")
            told.append(f"{s.names[k]!r} {100 * value:.0f} % of the {what} {word}")
        pi = ", ".join(f"{shares.names[k]!r} {100 * shares.pi[k]:.0f} %" for k in dict.fromkeys(leading))
        return f"A small network (two layers of 64), all its parameters: {'; '.join(told)} (of the rows: {pi})."


def diagnose_network(problem: Problem, column: str | None = None, *, seed: int = 0) -> NetworkDiagnosis:
    """Train the study's perceptron on at most 10,000 rows and examine it at three moments of its training."""
    import torch
    from torch import nn

    from counterpoise.diagnostics import examine
    from counterpoise.engines import MLPClassifier, MLPRegressor
    from counterpoise.engines._mlp import default_steps

    n = len(problem.y)
    rows = np.arange(n) if n <= NETWORK_ROWS else np.sort(generator(seed, "network").choice(n, NETWORK_ROWS, replace=False))
    X = _encoded(problem, rows, seed).astype(np.float32)
    y = problem.y[rows]
    groups = _groups(problem, rows, column)
    total = default_steps(len(X), 256)
    steps = (1, max(2, total // 10), total)
    inputs = torch.from_numpy(X)
    diagnoses = []
    for at in steps:
        # The same seed: each fit goes further along one and the same training.
        if problem.task == "regression":
            model: Any = MLPRegressor(max_steps=at, random_state=seed).fit(X, y)
            target = torch.from_numpy(((y - model.target_mean_) / model.target_scale_).astype(np.float32))[:, None]
            loss: nn.Module = nn.MSELoss(reduction="none")
        else:
            model = MLPClassifier(max_steps=at, random_state=seed).fit(X, y)
            binary = len(model.classes_) == 2
            codes = torch.from_numpy(np.searchsorted(model.classes_, y))
            target = codes.float()[:, None] if binary else codes
            loss = nn.BCEWithLogitsLoss(reduction="none") if binary else nn.CrossEntropyLoss(reduction="none")
        diagnoses.append(examine(model.module_, loss, (inputs, target), groups=groups, max_examples=NETWORK_ROWS, seed=seed))
    return NetworkDiagnosis(steps, tuple(diagnoses))


def _groups(problem: Problem, rows: npt.NDArray[np.int64], column: str | None) -> Groups:
    from counterpoise.groups import Groups

    if column is not None:
        return Groups(problem.groups[column].ids[rows], problem.groups[column].names, problem.groups[column].kind)
    if problem.task == "regression":
        return Groups.from_bins(problem.y[rows].astype(np.float64), bins=BINS)
    return Groups(problem.y[rows].astype(np.int64), tuple(str(name) for name in problem.schema.classes), "class")
