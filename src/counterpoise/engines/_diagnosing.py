"""What the diagnosis callbacks of all trainers share: a probe that is held fixed, a measurement that leaves no trace, and its numbers."""

from __future__ import annotations

import logging
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import IterableDataset, default_collate

from counterpoise._errors import InputError, bad_input, check_range
from counterpoise.diagnostics import TrainingDiagnosis, examine
from counterpoise.groups import Groups

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Diagnoser", "scalars"]

MOST_EXAMPLES = 4096  # of a probe, as in examine
log = logging.getLogger("counterpoise")


def scalars(diagnosis: TrainingDiagnosis) -> dict[str, float]:
    """The numbers that are logged, by name; those that are not known are left out.

    ``counterpoise/norm`` and ``noise``: length of the mean gradient, and its sampling error. ``coherence``: how much the gradients of
    the examples agree, 0 if they have nothing in common. ``conflict``: the part of the groups' inner products that is negative. Per group
    its mean ``loss`` and, where the mean gradient is more than twice its sampling error, its ``share`` of the step; without a direction
    there is no step to divide.
    """
    shares, coherence = diagnosis.shares, diagnosis.coherence
    found = {"norm": shares.norm, "noise": shares.noise, "conflict": shares.conflict}
    if coherence is not None:
        found["coherence"] = coherence.alpha_unbiased
    for name, loss in zip(shares.names, diagnosis.per_group["loss"], strict=True):
        found[f"loss/{name}"] = loss
    if not shares.settled:
        found |= {f"share/{name}": share for name, share in zip(shares.names, shares.share, strict=True)}
    return {f"counterpoise/{name}": float(value) for name, value in found.items() if np.isfinite(value)}


class Diagnoser:
    """Runs ``examine`` at the start, every k steps and at the end, always on the same examples.

    ``diagnoses`` holds the results, each with its ``step``: the number of optimizer steps the parameters had taken. What a diagnosis keeps
    is small: the (G, P) sums of gradients are dropped.
    """

    def __init__(
        self, every: int, probe: Any, batch: int, groups: Any, loss_fn: Any, forward: Any, loss: Any, params: str, engine: str, seed: int
    ) -> None:
        check_range("every", every, low=1, integer=True)
        check_range("batch", batch, low=1, integer=True)
        check_range("seed", seed, low=0, integer=True)
        self.every = every
        self.probe = probe
        self.batch = batch
        self.groups = groups
        self.loss_fn = loss_fn
        self.forward = forward
        self.loss = loss
        self.params = params
        self.engine = engine
        self.seed = seed
        self._forget()

    def plot(self) -> Figure:
        """Each group's share of the step over the training."""
        from counterpoise.report import training_curves

        if not self.diagnoses:
            bad_input("diagnoses", "none yet", "a training that has begun")
        return training_curves([diagnosis.view() for diagnosis in self.diagnoses], self._steps)

    @property
    def _steps(self) -> list[int]:
        return [diagnosis.step or 0 for diagnosis in self.diagnoses]

    def _forget(self) -> None:
        """A new training begins."""
        self.diagnoses: list[TrainingDiagnosis] = []
        self._fixed: tuple[Any, Any] | None = None
        self._last = -1  # step of the last measurement
        self._said: set[str] = set()

    def _due(self, step: int) -> bool:
        # A step number may be passed by: some trainers count several optimizers.
        return step // self.every > self._last // self.every

    def _examine(
        self,
        model: nn.Module,
        step: int,
        training_data: Callable[[], Any],
        *,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        loss_fn: Any = None,
        loss: Callable[[Any, Any], Tensor] | None = None,
        convert: Callable[[Any], Any] = lambda data: data,
    ) -> dict[str, float]:
        """One measurement and the numbers to log; ``forward``, ``loss_fn`` and ``loss`` are the trainer's, for what was not given.

        An error of the first measurement ends the training before it has cost anything, a later one is only logged.
        """
        given = self.loss_fn is not None or self.loss is not None
        self._last = step
        with _undisturbed(self.seed):
            if self._fixed is None:
                self._fixed = self._probe(training_data)
            data, groups = self._fixed
            try:
                diagnosis = examine(
                    model,
                    self.loss_fn if given else loss_fn,
                    convert(data),
                    groups=groups,
                    engine=self.engine,
                    params=self.params,
                    max_examples=MOST_EXAMPLES,
                    seed=self.seed,
                    forward=self.forward or forward,
                    loss=self.loss if given else loss,
                    batchnorm="eval",
                )
            except InputError as error:
                if not self.diagnoses:
                    raise
                log.warning("step %d: no diagnosis. %s", step, error)
                return {}
        diagnosis = replace(diagnosis, sketch=_light(diagnosis.sketch), step=step)
        self.diagnoses.append(diagnosis)
        self._tell(diagnosis)
        return scalars(diagnosis)

    def _tell(self, diagnosis: TrainingDiagnosis) -> None:
        """Hints that the measurement before did not give. Their numbers change always, and are no news."""
        hints = {_without_numbers(hint): hint for hint in diagnosis.hints}
        for key, hint in hints.items():
            if key not in self._said:
                log.info("step %d: %s", diagnosis.step, hint)
        self._said = set(hints)

    def _probe(self, training_data: Callable[[], Any]) -> tuple[Any, Any]:
        """The examples and their groups."""
        if self.probe is not None:
            return _held(self.probe), self.groups
        loader = training_data()
        dataset: Any = getattr(loader, "dataset", None)
        whole = getattr(loader, "batch_sampler", loader) is None  # the data set gives whole batches
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or whole:
            bad_input(
                "probe",
                None,
                "examples to be measured, where training data cannot be read twice by number",
                "Pass probe=(X, y), a batch, or a loader.",
            )
        n = len(dataset)
        rows = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))[: self.batch].sort().values
        collate = getattr(loader, "collate_fn", None) or default_collate
        size = getattr(loader, "batch_size", None) or self.batch
        batches = [_plain(collate([dataset[i] for i in part.tolist()])) for part in torch.split(rows, size)]
        return batches, _of_rows(self.groups, rows, n)


def _held(probe: Any) -> Any:
    """Tensors as they are; batches read once, so that a loader that shuffles gives the same ones at every measurement."""
    if isinstance(probe, Mapping):
        return [_plain(probe)]
    if isinstance(probe, tuple | list) and probe and all(isinstance(part, Tensor) for part in probe):
        return tuple(probe)
    if isinstance(probe, tuple) and any(isinstance(part, Mapping | Tensor) for part in probe):
        return [probe]
    if isinstance(probe, Tensor | str) or not isinstance(probe, Iterable):
        bad_input("probe", type(probe).__name__, "tensors (X, y), one batch, or a loader of batches")
    batches, count = [], 0
    for batch in probe:
        batches.append(_plain(batch))
        count += max((len(leaf) for leaf in tree_leaves(batches[-1]) if isinstance(leaf, Tensor) and leaf.ndim), default=0)
        if count >= MOST_EXAMPLES:
            break
    return batches


def _plain(batch: Any) -> Any:
    """Dictionaries of a type of their own as plain ones, which torch looks into; lists as tuples."""
    return dict(batch) if isinstance(batch, Mapping) else tuple(batch) if isinstance(batch, list) else batch


def _of_rows(groups: Any, rows: Tensor, n: int) -> Any:
    """Groups of the whole training data become those of its rows in the probe."""
    if groups is None or isinstance(groups, str) or (callable(groups) and not isinstance(groups, Groups | Tensor)):
        return groups
    values = groups.ids if isinstance(groups, Groups) else np.asarray(groups.cpu() if isinstance(groups, Tensor) else groups)
    if values.shape != (n,):
        bad_input("groups", f"an array of shape {values.shape}", f"one id for each of the {n} training examples")
    values = values[rows.numpy()]
    return Groups(values, groups.names, groups.kind) if isinstance(groups, Groups) else values


def _light(sketch: Any) -> Any:
    """Without what grows with the model, and on the CPU."""
    small = replace(sketch, group_sums=None, parameters=())
    tensors = {field.name: getattr(small, field.name) for field in fields(small)}
    return replace(small, **{name: value.cpu() for name, value in tensors.items() if isinstance(value, Tensor)})


def _without_numbers(hint: str) -> str:
    """Numbers replaced, other than those in the names of groups, which stand in quotes."""
    return "".join(part if i % 2 else re.sub(r"[\d][\d.,]*", "#", part) for i, part in enumerate(hint.split("'")))


@contextmanager
def _undisturbed(seed: int) -> Iterator[None]:
    """Random numbers of Python, NumPy and torch come from ``seed`` meanwhile and go on afterwards as if nothing had been; compiled modules
    run as they are written, since compiled code passes the hooks by."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with ExitStack() as stack:
        stack.callback(np.random.set_state, numpy)
        stack.callback(random.setstate, python)
        stack.enter_context(torch.random.fork_rng(list(devices)))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds accelerators too
        yield
