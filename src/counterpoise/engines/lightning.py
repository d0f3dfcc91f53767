"""Callbacks of a Lightning trainer: whose training step it is, and what a training says about scaling."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from counterpoise._errors import bad_input
from counterpoise._extras import require

from ._diagnosing import Diagnoser
from ._scaling_log import FLOPS_FACTOR, ScalingLog

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
except ImportError:
    require("lightning.pytorch", "lightning", "engines.lightning")
    raise

__all__ = ["DiagnosisCallback", "ScalingLogger"]

SHARDED = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)
LOSS_ATTRIBUTES = ("loss_fn", "criterion", "loss")


class DiagnosisCallback(Diagnoser, Callback):
    """Measures on held-fixed examples whose training step it is: at the start, every k optimizer steps, and at the end of ``fit``.

    Training is the same, bit for bit, with and without it. All loggers of the trainer get, per group, ``counterpoise/share/<group>`` of the
    step and ``counterpoise/loss/<group>``; and ``counterpoise/norm``, ``noise``, ``coherence`` and ``conflict``. Shares have gaps where the
    mean gradient is within twice its sampling error (``noise``): there is no direction to divide. Hints go to Python's logger
    "counterpoise", level INFO, when they are new.

    The measurement takes about four forward and backward passes over the probe, in eval mode (no dropout, running statistics in batch
    normalization), in the type of the parameters: outside of autocast with ``precision="16-mixed"`` or ``"bf16-mixed"``, in half precision
    with ``"16-true"`` or ``"bf16-true"``. Processes other than the first do not measure. The module's hooks for the transfer of batches are
    not called.

    Parameters
    ----------
    every : int, default 500
        Optimizer steps (``trainer.global_step``) from one measurement to the next.
    probe : (X, y), a batch, or a loader, optional
        The examples to measure; of a loader the first 4,096. Without it, ``batch`` examples of the training data set, drawn by ``seed`` and
        put together as the training loader does it. A rare group needs a probe of your own in which it has a few dozen examples.
    batch : int, default 64
        Number of examples where no probe is given. More of them make the shares clearer.
    groups : "target", str, Groups, ids (n,), function (batch) -> ids, or None, default "target"
        As in :func:`counterpoise.diagnostics.examine`; without a probe, ids are those of the whole training data set.
    loss_fn : module or function (output, target) -> losses (m,), optional
        As in ``examine``: of a loss of torch.nn the reduction is left out. Default: the module's ``loss_fn``, ``criterion`` or ``loss``.
    forward, loss : functions (module, batch) -> output and (output, batch) -> losses (m,), optional
        For steps that are more than ``loss_fn(module(input), target)``.
    params : str, default "all"
        "all", "head", "last_k" or a regular expression on the names of parameters.
    engine : str, default "auto"
        How gradients are measured, as in ``examine``.
    seed : int, default 0
        Of the choice of examples, their augmentation, and the measurement.

    Attributes
    ----------
    diagnoses : list of TrainingDiagnosis
        Each with its ``step``. A ``fit`` that starts at step 0 starts a new list.

    Raises
    ------
    InputError
        When training starts, if the loss or the groups do not fit the module and its data, or if the strategy shards parameters. Later
        measurements that fail are logged as warnings.

    Examples
    --------
    >>> import torch
    >>> from lightning.pytorch import LightningModule, Trainer
    >>> class Model(LightningModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer, self.loss_fn = torch.nn.Linear(4, 2), torch.nn.CrossEntropyLoss()
    ...     def forward(self, x):
    ...         return self.layer(x)
    ...     def training_step(self, batch):
    ...         x, y = batch
    ...         return self.loss_fn(self(x), y)
    ...     def configure_optimizers(self):
    ...         return torch.optim.Adam(self.parameters())
    >>> diagnosis = DiagnosisCallback(every=500)
    >>> trainer = Trainer(max_epochs=10, callbacks=[diagnosis])  # doctest: +SKIP
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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(trainer.strategy, SHARDED):
            name = type(trainer.strategy).__name__
            bad_input(
                "strategy", name, "one in which every process holds all parameters, such as 'ddp'", "Measure a checkpoint with examine."
            )
        if trainer.global_step == 0:
            self._forget()
        self._measure(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._due(trainer.global_step):
            self._measure(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._last != trainer.global_step:
            self._measure(trainer, pl_module)

    def _measure(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        if self.forward is None and type(module).forward is LightningModule.forward:
            bad_input("forward", None, f"a function (module, batch) -> output, since {type(module).__name__} defines no forward of its own")
        numbers = self._examine(
            module,
            trainer.global_step,
            lambda: trainer.train_dataloader,
            loss_fn=None if self.loss_fn is not None or self.loss is not None else _loss_of(module),
            convert=trainer.precision_plugin.convert_input,
        )
        for logger in trainer.loggers if numbers else ():
            logger.log_metrics(numbers, step=trainer.global_step)
            logger.save()


def _loss_of(module: LightningModule) -> Any:
    """The loss that the module holds under one of its usual names."""
    for name in LOSS_ATTRIBUTES:
        found = getattr(module, name, None)
        if callable(found) and not inspect.ismethod(found):
            return found
    bad_input(
        "loss_fn",
        None,
        f"a loss, since {type(module).__name__} holds none as {', '.join(LOSS_ATTRIBUTES)}",
        "Pass loss_fn=..., or loss=lambda output, batch: ... of shape (m,).",
    )


class ScalingLogger(ScalingLog, Callback):
    """Writes one line per training to a table that ``counterpoise scaling`` and :func:`counterpoise.scaling.audit_isoflop` read: run, step,
    n_params, tokens, loss, flops.

    The loss is that of the last validation, the tokens are those trained on until then, over all processes. A training that does not end
    writes nothing: it is no point of a scaling law. Nothing about the training changes.

    Parameters
    ----------
    path : str or Path
        A .csv file; lines are added at its end, by several trainings if need be.
    loss : str, default "val_loss"
        Name of the loss in ``trainer.callback_metrics``.
    tokens : function (batch) -> int, optional
        Data in a batch. Default: the numbers in ``batch["input_ids"]``, or in the first tensor of the batch if it holds integers; else its
        rows, for data that are counted in examples.
    run : str, optional
        Name of the training in the table. Default: "run 1", "run 2", ... A resumed training needs the name it had.
    n_params : int, optional
        Size of the model. Default: its parameters, each tensor once.
    embeddings : bool, default False
        Count embedding layers as well; with a warning, since their share falls with size.
    history : bool, default False
        Write every validation, for learning curves; a scaling law needs the last of each run only.
    flops_factor : float, default 6.0
        FLOPs of one parameter and one token (arXiv:2001.08361).

    Raises
    ------
    InputError
        When training starts, if the file is not of this kind, or if the strategy shards parameters and ``n_params`` is not given. When a
        validation ends without ``loss`` among its metrics.

    Examples
    --------
    >>> from lightning.pytorch import Trainer
    >>> trainer = Trainer(max_epochs=1, callbacks=[ScalingLogger("runs.csv")])  # doctest: +SKIP
    >>> trainer.fit(model)  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | Path,
        *,
        loss: str = "val_loss",
        tokens: Callable[[Any], int] | None = None,
        run: str | None = None,
        n_params: int | None = None,
        embeddings: bool = False,
        history: bool = False,
        flops_factor: float = FLOPS_FACTOR,
    ) -> None:
        super().__init__(path, run, n_params, embeddings, history, flops_factor)
        self.loss = loss
        self.tokens = tokens
        self._seen = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(pl_module, isinstance(trainer.strategy, SHARDED), trainer.is_global_zero)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:
            self._seen = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._seen += int((self.tokens or _data_in)(batch))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        seen = trainer.strategy.reduce(torch.tensor(self._seen, device=pl_module.device), reduce_op="sum")
        if self.loss not in trainer.callback_metrics:
            bad_input("loss", self.loss, f"one of the metrics of the validation: {', '.join(map(str, trainer.callback_metrics)) or 'none'}")
        if trainer.is_global_zero:
            self._evaluated(trainer.global_step, float(seen), float(trainer.callback_metrics[self.loss]))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not trainer.interrupted:
            self._end()

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seen = state_dict["seen"]


def _data_in(batch: Any) -> int:
    """Tokens of a batch of integers, rows of any other."""
    first = batch.get("input_ids", next(iter(batch.values()))) if isinstance(batch, Mapping) else batch
    while isinstance(first, (tuple, list)):
        first = first[0]
    if not isinstance(first, Tensor):
        bad_input("tokens", None, f"a function (batch) -> int, for batches of {type(batch).__name__}")
    return len(first) if first.is_floating_point() else first.numel()
