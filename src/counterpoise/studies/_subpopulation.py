"""Many models and their checkpoints, each scored on every subpopulation: the table that a performance curve is drawn from."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import ParameterGrid
from sklearn.utils import _safe_indexing

from counterpoise._errors import bad_input, check_range, listing
from counterpoise._seeding import generator, seed_integer
from counterpoise.groups import Groups, _column

__all__ = ["SubpopulationSweep"]

CHECKPOINTS = (1, 2, 4, 8, 15, 30)  # early ones lie closer: that is where the minority falls behind

Array = npt.NDArray[Any]
IntArray = npt.NDArray[np.int64]
Metric = Callable[[Array, Array], float]
Scored = list[tuple[int, list[float]]]  # step, one score per group


class SubpopulationSweep(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Train a collection of models, and score each of them, at several moments of its training, on the majority and on the minority.

    The table that results is what :func:`counterpoise.diagnostics.performance_curve` reads. A *run* is one estimator with one setting of
    the grid. How its checkpoints come about depends on what it offers, the first of:

    - a ``fit`` that takes ``callback``: it is given ``callback(step, predict=None)``, to be called whenever a checkpoint is wanted;
      ``predict`` maps rows to labels, by default the estimator's own;
    - ``partial_fit``: one call on all training rows per step, as often as the last checkpoint says (for networks of scikit-learn and
      skorch, and ``SGDClassifier``, a step is one pass over the rows);
    - ``staged_predict`` (boosting): a step is a tree; the last one is always a checkpoint;
    - none of them: one row, step 1.

    Parameters
    ----------
    estimators : estimator, factory, or mapping from name to these
        A factory is called with the setting of the grid and returns what has ``fit`` and ``predict``. An estimator is cloned, and has the
        setting as its parameters. A ``random_state`` that is None gets a seed of its run.
    param_grid : mapping from parameter to values, or list of them, optional
        As in ``GridSearchCV``; with several estimators, a mapping from their names to such grids. None is one run with the defaults.
    checkpoints : sequence of int or None, default (1, 2, 4, 8, 15, 30)
        Steps at which a model is scored. None trains every model once, with ``fit``, and scores the end (and what ``callback`` asks for).
    metric : callable ``(y_true, y_pred) -> float``, default accuracy
        Within each group; 0 is worst and 1 is best.
    test_size : float, default 0.3
        Share of the rows of each group and label that are tested on, unless ``fit`` is given ``test``.
    random_state : int, default 0
        Of the split and of the models.
    n_jobs : int, default None
        Processes, as joblib counts them.

    Attributes
    ----------
    table_ : polars frame
        One row per checkpoint: ``run``, ``step``, ``majority``, ``minority`` (of several, the lowest), and ``params``, the setting as JSON.
        With more than two groups, a column ``group:NAME`` for each.
    majority_group_ : str
        The largest group of the training rows. ``minority_groups_``: the others.
    n_majority_, n_minority_ : int
        Test rows behind the accuracies; of several minorities, the fewest.

    Examples
    --------
    >>> from sklearn.linear_model import SGDClassifier
    >>> from counterpoise.datasets import load, spurious_feature
    >>> table = load("breast-cancer")
    >>> y = (table.frame["diagnosis"] == "malignant").to_numpy().astype(int)
    >>> X, attribute = spurious_feature(table.frame.drop("diagnosis"), y, agreement=0.8)
    >>> sweep = SubpopulationSweep(SGDClassifier(), {"alpha": [1e-4, 1e-2]}, checkpoints=[1, 5])
    >>> sweep.fit(X, y, groups=attribute == y).table_.select("run", "step", "params").rows()
    [('0', 1, '{"alpha": 0.0001}'), ('0', 5, '{"alpha": 0.0001}'), ('1', 1, '{"alpha": 0.01}'), ('1', 5, '{"alpha": 0.01}')]
    >>> sweep.majority_group_, sweep.minority_groups_
    ('True', ('False',))
    """

    def __init__(
        self,
        estimators: Any,
        param_grid: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        *,
        checkpoints: Sequence[int] | None = CHECKPOINTS,
        metric: Metric | None = None,
        test_size: float = 0.3,
        random_state: int = 0,
        n_jobs: int | None = None,
    ) -> None:
        self.estimators = estimators
        self.param_grid = param_grid
        self.checkpoints = checkpoints
        self.metric = metric
        self.test_size = test_size
        self.random_state = random_state
        self.n_jobs = n_jobs

    def fit(self, X: Any, y: Any, groups: Any, *, test: tuple[Any, Any, Any] | None = None) -> Self:
        """Train all runs and fill ``table_``.

        Parameters
        ----------
        X : array or frame, shape (n, d)
            Rows, as the estimators take them.
        y : array-like, shape (n,)
            Labels.
        groups : Groups or array-like, shape (n,)
            Subpopulation of each row; the largest is the majority. Rows of none are trained on and not tested.
        test : (X, y, groups), optional
            Rows to test on; all of X is then trained on. Must hold the same groups.

        Raises
        ------
        InputError
            If lengths differ, labels are missing, there are fewer than two groups, a group has no test rows, or a checkpoint is no step.

        Warns
        -----
        UserWarning
            If the test rows of a group all have one label, so that a constant prediction is perfect there.
        """
        from joblib import Parallel, delayed

        runs = self._runs()
        steps = None if self.checkpoints is None else sorted({_step(step) for step in self.checkpoints})
        if steps == []:
            bad_input("checkpoints", self.checkpoints, "at least one step, or None")
        labels, ids, names = _read(X, y, groups)
        if test is None:
            check_range("test_size", self.test_size, low=0, high=1, open_low=True)
            tested = _split(labels, ids, self.test_size, self.random_state)
            if tested.all():
                bad_input("test_size", self.test_size, "a share that leaves rows to train on")
            rows = (_rows(X, ~tested), labels[~tested], _rows(X, tested), labels[tested])
            train_ids, test_ids = ids[~tested], ids[tested]
        else:
            test_labels, other, test_names = _read(*test)
            if not set(test_names) <= set(names):
                bad_input("test", f"groups {listing(test_names)}", f"the groups of the training rows: {listing(names)}")
            place = np.array([*(names.index(name) for name in test_names), -1])
            rows, train_ids, test_ids = (X, labels, test[0], test_labels), ids, place[other]
        counts = np.bincount(test_ids[test_ids >= 0], minlength=len(names))
        _check_groups(names, counts, rows[3], test_ids)

        largest = int(np.bincount(train_ids[train_ids >= 0], minlength=len(names)).argmax())
        others = [k for k in range(len(names)) if k != largest]
        self.majority_group_, self.minority_groups_ = names[largest], tuple(names[k] for k in others)
        self.n_majority_, self.n_minority_ = int(counts[largest]), int(counts[others].min())
        found = Parallel(n_jobs=self.n_jobs)(
            delayed(_scored)(source, params, seed_integer(self.random_state, "run", run), *rows, test_ids, len(names), steps, self.metric)
            for run, source, params in runs
        )
        lines = [
            {"run": run, "step": step, "majority": scores[largest], "minority": min(scores[k] for k in others), "params": _json(params)}
            | ({f"group:{name}": score for name, score in zip(names, scores, strict=True)} if len(names) > 2 else {})
            for (run, _, params), checkpoints in zip(runs, found, strict=True)
            for step, scores in checkpoints
        ]
        self.table_ = pl.DataFrame(lines)
        return self

    def _runs(self) -> list[tuple[str, Any, dict[str, Any]]]:
        """(name, estimator or factory, setting) of every run."""
        several = isinstance(self.estimators, Mapping)
        sources: Mapping[str, Any] = self.estimators if several else {"": self.estimators}
        grids: Any = self.param_grid
        if several and grids is not None and (not isinstance(grids, Mapping) or not set(grids) <= set(sources)):
            bad_input("param_grid", grids, f"a grid for each of the estimators {listing(sources)}, as a mapping from their names")
        runs = []
        for name, source in sources.items():
            if not callable(source) and not hasattr(source, "fit"):
                bad_input("estimators", source, "an estimator, a function that makes one, or a mapping from names to these")
            grid = (grids or {}).get(name) if several else grids
            for number, params in enumerate(ParameterGrid(grid or {})):
                runs.append((f"{name}-{number}" if several else str(number), source, params))
        if not runs:
            bad_input("estimators", self.estimators, "at least one estimator")
        return runs


# ---- one run ----------------------------------------------------------------------------------------------------------------------------


def _scored(
    source: Any,
    params: dict[str, Any],
    seed: int,
    X: Any,
    y: Array,
    X_test: Any,
    y_test: Array,
    test_ids: IntArray,
    n_groups: int,
    steps: list[int] | None,
    metric: Metric | None,
) -> Scored:
    """(step, scores by group) of every checkpoint of one run."""
    model = _built(source, params, seed)
    found: Scored = []

    def score(step: int, predicted: Any) -> None:
        found.append((step, group_scores(y_test, predicted, test_ids, n_groups, metric)))

    if "callback" in inspect.signature(model.fit).parameters:
        model.fit(X, y, callback=lambda step, predict=None: score(int(step), (predict or model.predict)(X_test)))
        if not found:
            score(1, model.predict(X_test))
    elif steps is not None and hasattr(model, "partial_fit"):
        takes_classes = "classes" in inspect.signature(model.partial_fit).parameters
        classes = {"classes": np.unique(y)} if takes_classes else {}
        for step in range(1, steps[-1] + 1):
            model.partial_fit(X, y, **(classes if step == 1 else {}))
            if step in steps:
                score(step, model.predict(X_test))
    elif steps is not None and hasattr(model, "staged_predict"):
        last = 0
        for last, predicted in enumerate(model.fit(X, y).staged_predict(X_test), 1):
            if last in steps:
                score(last, predicted)
        if last not in steps:
            score(last, predicted)
    else:
        score(1, model.fit(X, y).predict(X_test))
    return found


def _built(source: Any, params: dict[str, Any], seed: int) -> Any:
    made = hasattr(source, "fit") and not isinstance(source, type)
    model = clone(source).set_params(**params) if made else source(**params)
    if hasattr(model, "get_params"):
        unset = {name for name, value in model.get_params().items() if value is None and name.split("__")[-1] == "random_state"}
        model.set_params(**dict.fromkeys(unset, seed))
    return model


def group_scores(y: Array, predicted: Any, ids: IntArray, n_groups: int, metric: Metric | None = None) -> list[float]:
    """The metric (default: accuracy) within each group; rows with id -1 belong to none."""
    predicted = np.asarray(predicted)
    if metric is not None:
        return [float(metric(y[ids == k], predicted[ids == k])) for k in range(n_groups)]
    member = ids >= 0
    right = np.bincount(ids[member], weights=(y == predicted)[member], minlength=n_groups)
    return [float(share) for share in right / np.bincount(ids[member], minlength=n_groups)]


# ---- rows -------------------------------------------------------------------------------------------------------------------------------


def _read(X: Any, y: Any, groups: Any) -> tuple[Array, IntArray, tuple[str, ...]]:
    """Labels, group of each row, names of the groups that occur."""
    labels, missing = _column("y", y)
    if missing.any():
        bad_input("y", f"{int(missing.sum())} missing labels", "a label in every row", "Drop these rows first.")
    read = groups if isinstance(groups, Groups) else Groups.from_labels(groups, "attribute")
    n = X.shape[0] if hasattr(X, "shape") else len(X)
    if not n == len(labels) == len(read.ids):
        bad_input("y", f"{len(labels)} labels, {len(read.ids)} groups", f"a label and a group for each of the {n} rows of X")
    # Strings that NumPy keeps as objects are strings to an estimator.
    return (labels.astype(str) if labels.dtype == object else labels), read.ids, read.names


def _split(labels: Array, ids: IntArray, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """(n,) which rows are tested on: ``share`` of each combination of group and label, at random."""
    cell = np.unique(np.column_stack([ids, np.unique(labels, return_inverse=True)[1]]), axis=0, return_inverse=True)[1].reshape(-1)
    shuffled = generator(seed, "split").permutation(len(cell))
    order = shuffled[np.argsort(cell[shuffled], kind="stable")]
    size = np.bincount(cell)
    place = np.empty(len(cell), dtype=np.int64)
    place[order] = np.arange(len(cell)) - np.repeat(np.cumsum(size) - size, size)
    return np.asarray(place < np.round(share * size)[cell])


def _check_groups(names: tuple[str, ...], counts: IntArray, y: Array, ids: IntArray) -> None:
    if len(names) < 2:
        bad_input("groups", f"one group ({listing(names)})", "at least two groups", "attribute == y tells who agrees with an attribute.")
    empty = [name for name, count in zip(names, counts, strict=True) if not count]
    if empty:
        bad_input("groups", f"no test rows in {listing(empty)}", "test rows in every group", "Raise test_size, or pass test=.")
    alone = [name for k, name in enumerate(names) if len(np.unique(y[ids == k])) < 2]
    if alone:
        warnings.warn(
            f"All test rows of {listing(alone)} have one label: a constant prediction is perfect there.", UserWarning, stacklevel=3
        )


def _rows(X: Any, chosen: npt.NDArray[np.bool_]) -> Any:
    return _safe_indexing(X, np.flatnonzero(chosen))


def _step(step: Any) -> int:
    check_range("checkpoints", step, low=1, integer=True)
    return int(step)


def _json(params: Mapping[str, Any]) -> str:
    def plain(value: Any) -> Any:
        return value.item() if hasattr(value, "item") else list(value) if isinstance(value, Iterable) else repr(value)

    return json.dumps(dict(params), default=plain)
