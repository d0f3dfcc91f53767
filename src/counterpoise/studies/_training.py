"""One's own training loop as a study: what the loop is handed for the remedy under test, and how its scores become cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

from counterpoise._errors import CounterpoiseError, InputError, bad_input, check_choice
from counterpoise._seeding import seed_integer

from ._remedies import Remedy, TrainingRows

if TYPE_CHECKING:
    from ._problem import Problem
    from ._splits import Splits
    from ._types import CellId, CellResult, Protocol

__all__ = ["RowSampler", "TrainingKit", "TrainingWork", "problem_of_targets"]

TrainFunction = Callable[["TrainingKit", int], Mapping[str, Any]]


class RowSampler(Sampler[int]):
    """Row numbers for a ``DataLoader`` over the whole data set: a drawn set of rows, reshuffled for every pass.

    A pass yields ``num_samples`` rows whatever was drawn, so that all remedies take equally many steps per epoch.
    """

    def __init__(self, rows: npt.NDArray[np.int64], num_samples: int, seed: int) -> None:
        self._rows: Tensor = torch.from_numpy(np.ascontiguousarray(rows))
        self._num_samples = num_samples
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The order of pass ``epoch`` depends on the seed and on ``epoch`` alone."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._num_samples

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        self._epoch += 1
        passes = -(-self._num_samples // len(self._rows))
        order = torch.cat([torch.randperm(len(self._rows), generator=generator) for _ in range(passes)])
        yield from self._rows[order[: self._num_samples]].tolist()


class _RowWeightedLoss(nn.Module):
    """Mean over the batch of ``weight[target] * loss(logits, target)``: the class weights of a remedy around any per-row loss."""

    def __init__(self, loss: nn.Module, class_weight: Tensor | None) -> None:
        super().__init__()
        self.loss = loss
        self.register_buffer("class_weight", class_weight)
        self.class_weight: Tensor | None

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        per_row: Tensor = self.loss(logits, targets)
        if self.class_weight is None:
            return per_row.mean()
        weight = self.class_weight.to(per_row.dtype)[targets.long()]
        return (per_row.reshape(weight.shape) * weight).mean()


class _TargetWeightedLoss(nn.Module):
    """Mean over the batch of the weights of a remedy times any per-row loss; a row is told by its target, rounded or not."""

    def __init__(self, loss: nn.Module, targets: npt.NDArray[Any], weights: npt.NDArray[np.float64]) -> None:
        super().__init__()
        self.loss = loss
        values, first = np.unique(targets, return_index=True)
        self.between: Tensor
        self.weight: Tensor
        self.register_buffer("between", torch.from_numpy((values[1:] + values[:-1]) / 2))
        self.register_buffer("weight", torch.from_numpy(weights[first]))

    def forward(self, predictions: Tensor, targets: Tensor) -> Tensor:
        per_row: Tensor = self.loss(predictions, targets)
        weight = self.weight[torch.bucketize(targets.to(self.between.dtype), self.between)]
        return (per_row * weight.to(per_row.dtype)).mean()


@dataclass(frozen=True)
class TrainingKit:
    """What a training function is handed: the rows it may use, and the parts of the remedy under test.

    ``train_index``, ``valid_index`` and ``test_index`` are row numbers of the whole data set. Train on the first, return scores of the
    other two. Whatever the remedy does not touch comes back as the default, so one loop serves every remedy.
    """

    train_index: npt.NDArray[np.int64]
    valid_index: npt.NDArray[np.int64]
    test_index: npt.NDArray[np.int64]
    y: npt.NDArray[Any]  # (n,) codes 0..C-1 of the whole data set, or the real target
    remedy: str
    seed: int
    task: str
    n_classes: int
    _remedy: Remedy
    _used: dict[str, npt.NDArray[Any]] = field(default_factory=dict, repr=False)  # what the loop asked for: drawn rows, class weights

    def sampler(self, features: npt.ArrayLike | None = None) -> RowSampler:
        """Rows to train on, as a sampler for a ``DataLoader`` over the whole data set.

        A pass has ``len(train_index)`` rows for every remedy. ``features`` (n, p) of the whole data set is needed by remedies that look at
        them.
        """
        X = np.zeros((len(self.train_index), 1)) if features is None else np.asarray(features)[self.train_index]
        training = TrainingRows(X, np.zeros(X.shape[1], dtype=bool), self.y[self.train_index], self.train_index, self.task)
        if self._remedy.needs_rows and features is None:
            raise InputError(f"kit.sampler: the remedy {self.remedy!r} looks at the features; pass kit.sampler(features).")
        draw = self._remedy.draw(training, self._params(), self.seed)
        if draw is not None and draw.X_new is not None:
            raise CounterpoiseError(
                f"{self.remedy} invents rows, which a sampler of row numbers cannot hand out; it fits counterpoise.study."
            )
        rows = self.train_index if draw is None else self.train_index[draw.index]
        self._used["rows"] = rows
        return RowSampler(rows, len(self.train_index), self.seed)

    def loss(self, outputs: str = "softmax") -> nn.Module:
        """The loss as a module ``(logits, targets) -> scalar``; targets are the codes of ``y`` (floats for a regression).

        ``outputs="softmax"``: logits (B, C). ``outputs="sigmoid"`` (two classes): logits (B,). Regression: predictions (B,).
        """
        if outputs not in ("softmax", "sigmoid") or (outputs == "sigmoid" and self.task != "binary"):
            bad_input("outputs", outputs, "'softmax', or 'sigmoid' with two classes")
        training = TrainingRows(
            np.zeros((len(self.train_index), 1)), np.zeros(1, dtype=bool), self.y[self.train_index], self.train_index, self.task
        )
        task = "multiclass" if outputs == "softmax" and self.task == "binary" else self.task
        base = self._remedy.loss(task, self.n_classes, self._params()) or _default_loss(task)
        if self._remedy.needs_rows and type(self._remedy).weights is not Remedy.weights:
            raise CounterpoiseError(f"{self.remedy} weighs rows by their features, which a loss does not see; it fits counterpoise.study.")
        weights = self._remedy.weights(training, self._params())
        if self.task == "regression":
            return _RowWeightedLoss(base, None) if weights is None else _TargetWeightedLoss(base, training.y, weights)
        class_weight = None
        if weights is not None:
            self._used["weight"] = _per_class(weights, training.y, self.n_classes)
            class_weight = torch.from_numpy(self._used["weight"])
        return _RowWeightedLoss(_FloatTargets(base) if task == "binary" else base, class_weight)

    def optimizer(self, parameters: Any, default: type[torch.optim.Optimizer] = torch.optim.Adam, **options: Any) -> torch.optim.Optimizer:
        """The remedy's optimizer, or ``default(parameters, **options)``."""
        factory = self._remedy.optimizer() or default
        return factory(parameters, **options)

    def aggregator(self) -> Any | None:
        """The remedy's aggregator of several gradients, or None."""
        return self._remedy.aggregator()

    def _effective_prior(self) -> list[float]:
        """Class shares as the loop trained on them: of the rows the sampler drew, times the weights of the loss."""
        if self.task == "regression":
            return []
        mass = np.bincount(self.y[self._used.get("rows", self.train_index)], minlength=self.n_classes) * self._used.get("weight", 1.0)
        return list(mass / mass.sum())

    def _params(self) -> dict[str, Any]:
        return {name: dimension.default for name, dimension in self._remedy.space.items()}


class _FloatTargets(nn.Module):
    """Binary losses on one logit take float targets of the logits' shape."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        flat = logits.reshape(-1, 1)
        return self.loss(flat, targets.to(flat.dtype).reshape(-1, 1))  # type: ignore[no-any-return]


def _default_loss(task: str) -> nn.Module:
    if task == "regression":
        return nn.MSELoss(reduction="none")
    return nn.BCEWithLogitsLoss(reduction="none") if task == "binary" else nn.CrossEntropyLoss(reduction="none")


def _per_class(weights: npt.NDArray[np.float64], y: npt.NDArray[Any], n_classes: int) -> npt.NDArray[np.float64]:
    """Row weights that depend on the class alone, as one number per class (1 for classes without rows)."""
    values = np.ones(n_classes)
    values[y] = weights
    return values


@dataclass(frozen=True)
class TrainingWork:
    """Computes a cell of a user's own loop."""

    folder: str
    protocol: Protocol
    train_fn: TrainFunction
    remedies: Mapping[str, Remedy]  # by arm hash

    def __call__(self, cell: CellId) -> CellResult:
        from ._work import problem_and_splits

        problem, splits = problem_and_splits(self.folder, self.protocol)
        return run_training_cell(problem, self.protocol, splits, self.train_fn, self.remedies[cell.arm], cell)


def problem_of_targets(y: npt.ArrayLike, *, task: str, positive: Any, groups: Any, name: str) -> Problem:
    """The problem of a loop that keeps its features to itself: targets, groups, and no copies known."""
    from counterpoise.groups import Groups

    from ._problem import Problem
    from ._schema import Schema
    from ._types import digest

    values = np.asarray(y.detach().cpu() if isinstance(y, Tensor) else y)
    if values.ndim != 1 or len(values) < 8:
        bad_input("y", f"shape {values.shape}", "one label or number per row, shape (n,) with n >= 8")
    check_choice("task", task, ("auto", "classification", "regression"))
    missing = (
        np.array([value is None or value != value for value in values]) if values.dtype.kind in "fO" else np.zeros(len(values), dtype=bool)
    )
    if missing.any():
        bad_input("y", f"{int(missing.sum())} missing labels (the first at row {int(missing.argmax())})", "a label or number for every row")
    if values.dtype == object and len({isinstance(value, str) for value in values}) > 1:
        bad_input("y", "text and numbers in one column", "labels of one type")
    labels, codes = np.unique(values, return_inverse=True)
    classes: tuple[str, ...] = ()
    real = values.dtype.kind == "f" and not (values == np.round(values)).all()
    if task == "regression" or (task == "auto" and (real or len(labels) > 20)):
        kind, codes = "regression", values.astype(np.float64)
    else:
        if len(labels) < 2:
            bad_input("y", f"one class ({labels[0]!r})", "at least two classes")
        kind = "binary" if len(labels) == 2 else "multiclass"
        classes = tuple(str(label) for label in labels)
        if kind == "binary":
            wanted = str(positive) if positive is not None else classes[int(np.bincount(codes).argmin())]
            check_choice("positive", wanted, classes)
            if wanted == classes[0]:
                classes, codes = (classes[1], classes[0]), 1 - codes
        smallest = int(np.bincount(codes).argmin())
        if np.bincount(codes)[smallest] < 4:
            bad_input("y", f"{np.bincount(codes)[smallest]} rows of class {classes[smallest]!r}", "at least 4 rows of every class")
    named = {groups.kind: groups} if isinstance(groups, Groups) else dict(groups or {})
    for column, one in named.items():
        if len(one.ids) != len(values):
            bad_input(f"groups[{column!r}]", f"{len(one.ids)} ids", f"one for each of the {len(values)} rows of y")
    return Problem(
        name=name,
        X=np.zeros((len(values), 0)),
        text=None,
        y=codes,
        task=kind,
        schema=Schema(features=(), text=(), target="y", task=kind, classes=classes, dropped=()),
        groups=named,
        blocks=np.arange(len(values)),
        clustered=False,
        copies=0,
        time=None,
        weight=None,
        fixed_test=None,
        notices=(),
        data_hash=digest(kind, classes, codes.tolist(), {column: one.ids.tolist() for column, one in named.items()}),
    )


def run_training_cell(
    problem: Problem, protocol: Protocol, splits: Splits, train_fn: TrainFunction, remedy: Remedy, cell: CellId
) -> CellResult:
    """One (remedy, seed, fold) of a user's loop: hand out the kit, check what comes back, set the threshold on the validation scores."""
    import time

    from ._cell import _blank_scores, thresholds_of
    from ._metrics import cell_metrics
    from ._types import CellResult

    wall, cpu = time.perf_counter(), time.process_time()
    rows = splits.train_index(cell.repeat, cell.fold)
    inner = splits.inner_folds(rows, cell.repeat, cell.fold)
    seed = seed_integer(protocol.seed, cell.repeat, cell.fold, remedy.name)
    kit = TrainingKit(
        train_index=rows[inner != 0],
        valid_index=rows[inner == 0],
        test_index=splits.test_index(cell.repeat, cell.fold),
        y=problem.y,
        remedy=remedy.name,
        seed=seed,
        task=problem.task,
        n_classes=len(problem.schema.classes),
        _remedy=remedy,
    )
    returned = train_fn(kit, seed)
    valid = _scores_of(returned, "valid", len(kit.valid_index), problem)
    test = _scores_of(returned, "test", len(kit.test_index), problem)
    oof, scored = _blank_scores(problem, len(rows)), inner == 0
    oof[scored] = valid
    effective = kit._effective_prior()
    thresholds = thresholds_of(problem, protocol, problem.y[rows], oof, scored, effective)
    threshold = thresholds.get(remedy.rule, [])
    extra: dict[str, Any] = {"thresholds": thresholds, "splits": splits.fingerprint(cell.repeat)}
    if problem.task != "regression":
        counts = np.bincount(problem.y[rows], minlength=len(problem.schema.classes))
        extra["prior"], extra["effective_prior"] = (counts / counts.sum()).tolist(), effective
    return CellResult(
        scores=test,
        threshold=threshold,
        metrics=cell_metrics(problem.task, problem.y[kit.test_index], test, threshold, cost=protocol.cost),
        params={},
        seconds=time.perf_counter() - wall,
        cpu_seconds=time.process_time() - cpu,
        fits=1,
        steps=0,
        extra=extra,
    )


def _scores_of(returned: Any, part: str, n: int, problem: Problem) -> npt.NDArray[np.float64]:
    """Scores in the store's form from what a training function returned."""
    if not isinstance(returned, Mapping) or part not in returned:
        bad_input("train_fn", type(returned).__name__, 'a dict {"valid": scores, "test": scores}')
    value = returned[part]
    scores = value.detach().cpu().double().numpy() if isinstance(value, Tensor) else np.asarray(value, dtype=np.float64)
    classes = len(problem.schema.classes)
    if scores.ndim == 2 and scores.shape[1] == 1:
        scores = scores[:, 0]
    if problem.task == "binary" and scores.ndim == 2 and scores.shape[1] == 2:
        scores = scores[:, 1] - scores[:, 0]
    expected = (n, classes) if problem.task == "multiclass" else (n,)
    if scores.shape != expected:
        bad_input(
            f"train_fn()[{part!r}]", f"shape {scores.shape}", f"shape {expected}: logits of the rows of kit.{part}_index, in that order"
        )
    if not np.isfinite(scores).all():
        bad_input(
            f"train_fn()[{part!r}]",
            f"{int((~np.isfinite(scores)).sum())} values that are not finite",
            "finite logits",
            "The training diverged?",
        )
    if problem.task == "multiclass":
        from scipy.special import log_softmax

        return np.asarray(log_softmax(scores, axis=1))
    return scores
