"""Whose training step it is, recorded in the history of a skorch net and written to its TensorBoard."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sklearn.base import BaseEstimator
from skorch.callbacks import Callback, TensorBoard
from torch import Tensor, nn
from torch.utils.data import default_collate

from ._diagnosing import Diagnoser

if TYPE_CHECKING:
    from collections.abc import Callable

    from skorch import NeuralNet

__all__ = ["DiagnosisCallback"]


class DiagnosisCallback(Diagnoser, Callback):  # type: ignore[misc]  # skorch has no types
    """Measures on held-fixed examples whose training step it is: at the start, every k training batches, and at the end of ``fit``.

    Training is the same, bit for bit, with and without it. The row of a batch in ``net.history`` gets the numbers of the parameters which
    that batch's step started from: per group ``counterpoise/share/<group>`` of the step and ``counterpoise/loss/<group>``; and
    ``counterpoise/norm``, ``noise``, ``coherence`` and ``conflict``. If the net has skorch's ``TensorBoard`` callback, it gets them too,
    over steps (skorch's own numbers are over epochs). Shares have gaps where the mean gradient is within twice its sampling error
    (``noise``): there is no direction to divide. Hints go to Python's logger "counterpoise", level INFO, when they are new. The measurement
    after the last step is in ``diagnoses`` and TensorBoard only: no batch starts from it.

    The measurement takes about four forward and backward passes over the probe, in eval mode (no dropout, running statistics in batch
    normalization). The default loss is the net's: its ``infer`` and ``get_loss``, with the criterion's reduction left out.

    Parameters
    ----------
    every : int, default 500
        Training batches from one measurement to the next.
    probe : (X, y), a batch, or a loader, optional
        The examples to measure; of a loader the first 4,096. Without it, ``batch`` examples of the training part of the data, drawn by
        ``seed``. A rare group needs a probe of your own in which it has a few dozen examples.
    batch : int, default 64
        Number of examples where no probe is given. More of them make the shares clearer.
    groups : "target", Groups, ids (n,), function (batch) -> ids, or None, default "target"
        As in :func:`counterpoise.diagnostics.examine`; without a probe, ids are those of the training part of the data.
    loss_fn, forward, loss : optional
        As in ``examine``, in place of the net's.
    params : str, default "all"
        "all", "head", "last_k" or a regular expression on the names of parameters.
    engine : str, default "auto"
        How gradients are measured, as in ``examine``.
    seed : int, default 0
        Of the choice of examples and the measurement.

    Attributes
    ----------
    diagnoses : list of TrainingDiagnosis
        Each with its ``step``. Training on (``partial_fit``) goes on with the list, a new module starts a new one.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from skorch import NeuralNetClassifier
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 4)).astype(np.float32)
    >>> y = (X[:, 0] > 0.8).astype(np.int64)
    >>> diagnosis = DiagnosisCallback(every=10, batch=128)
    >>> net = NeuralNetClassifier(
    ...     torch.nn.Linear(4, 2), criterion=torch.nn.CrossEntropyLoss, max_epochs=10, callbacks=[diagnosis], callbacks__print_log=None
    ... )
    >>> _ = net.fit(X, y)
    >>> [found.step for found in diagnosis.diagnoses]
    [0, 10, 20]
    """

    def __init__(
        self,
        every: int = 500,
        *,
        probe: Any = None,
        batch: int = 64,
        groups: Any = "target",
        loss_fn: Any = None,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        loss: Callable[[Any, Any], Tensor] | None = None,
        params: str = "all",
        engine: str = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__(every, probe, batch, groups, loss_fn, forward, loss, params, engine, seed)
        self._module: Callable[[], Any] = lambda: None
        self._dataset: Any = None
        self._taken = 0

    def _get_param_names(self) -> list[str]:
        # skorch takes all attributes for parameters.
        names: list[str] = list(BaseEstimator._get_param_names.__func__(type(self)))
        return names

    def __getstate__(self) -> dict[str, Any]:
        # A pickled net takes neither its training data along nor a reference that cannot be pickled.
        return vars(self) | {"_module": _nothing, "_dataset": None}

    def on_train_begin(self, net: NeuralNet, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        if self._module() is not net.module_:
            self._forget()
            self._module, self._taken = weakref.ref(net.module_), 0

    def on_epoch_begin(self, net: NeuralNet, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        self._dataset = dataset_train

    def on_batch_begin(self, net: NeuralNet, batch: Any = None, training: bool | None = None, **kwargs: Any) -> None:
        if training and self._due(self._taken):
            for name, value in self._measure(net).items():
                net.history.record_batch(name, value)

    def on_batch_end(self, net: NeuralNet, batch: Any = None, training: bool | None = None, **kwargs: Any) -> None:
        self._taken += bool(training)

    def on_train_end(self, net: NeuralNet, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        if self._taken and self._last != self._taken:
            self._measure(net)
        self._dataset = None

    def _measure(self, net: NeuralNet) -> dict[str, float]:
        # Only what a cross-entropy takes are logits: other outputs are wrapped, so that nobody reads them as such.
        wrapped = not isinstance(net.criterion_, nn.CrossEntropyLoss) and self.loss is None and self.loss_fn is None
        with _unreduced(net):
            numbers = self._examine(
                net.module_,
                self._taken,
                lambda: _loader(net, self._dataset),
                forward=lambda module, batch: _infer(net, batch, wrapped),
                loss=lambda output, batch: _losses(net, output, batch),
            )
        for _, callback in net.callbacks_:
            if isinstance(callback, TensorBoard):
                for name, value in numbers.items():
                    callback.writer.add_scalar(name, value, global_step=self._taken)
                callback.writer.flush()
        return numbers


def _nothing() -> None:
    return None


def _loader(net: NeuralNet, dataset: Any) -> Any:
    """The training data and how they become batches."""
    iterator = net.get_iterator(dataset, training=True)
    if hasattr(iterator, "collate_fn"):
        return iterator
    return SimpleNamespace(dataset=dataset, collate_fn=default_collate)  # an iterator of another kind


@contextmanager
def _unreduced(net: NeuralNet) -> Iterator[None]:
    """The net's criterion gives one loss per example meanwhile."""
    criterion = net.criterion_
    if getattr(criterion, "reduction", None) in ("mean", "sum"):
        single = copy.copy(criterion)
        single.reduction = "none"
        vars(net)["criterion_"] = single  # not by setattr, which makes the net take note of it
    try:
        yield
    finally:
        vars(net)["criterion_"] = criterion


def _infer(net: NeuralNet, batch: Any, wrapped: bool) -> Any:
    output = net.infer(batch[0])
    return (output,) if wrapped else output


def _losses(net: NeuralNet, output: Any, batch: Any) -> Tensor:
    output = output[0] if isinstance(output, tuple) and len(output) == 1 else output
    per_row = getattr(net, "row_losses", None)  # a net that weighs its rows
    losses: Tensor = per_row(output, batch[1]) if per_row else net.get_loss(output, batch[1], X=batch[0], training=True)
    return losses
