"""The diagnosis that opens a study: the table as the linear learner sees it, and whose gradient dominates there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise.diagnostics import diagnose

from ._preprocess import Preprocess

if TYPE_CHECKING:
    from counterpoise.diagnostics import StudyDiagnosis

    from ._problem import Problem

__all__ = ["diagnose_problem"]


def diagnose_problem(problem: Problem, column: str | None = None, *, seed: int = 0) -> StudyDiagnosis:
    """Diagnose ``problem`` by class (by range of a real target), or by the groups of ``column``; see
    :func:`counterpoise.diagnostics.diagnose`."""

    def encoded(rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        preprocess = Preprocess([len(feature.levels) for feature in problem.schema.features], scale=True, task=problem.task, seed=seed)
        cleaned, words = preprocess.fit(problem.X[rows], None if problem.text is None else problem.text[rows])
        known = preprocess.fit_encode(cleaned, problem.y[rows])
        return known if words is None else np.hstack([known, words])

    names = None if problem.task == "regression" else problem.schema.classes
    return diagnose(encoded, problem.y, names, None if column is None else problem.groups[column], seed=seed)
