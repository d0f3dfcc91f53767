"""Callbacks of a transformers ``Trainer``: whose training step it is, and what a training says about scaling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterpoise._errors import bad_input
from counterpoise._extras import require
from counterpoise.groups import Groups

from ._diagnosing import Diagnoser
from ._scaling_log import FLOPS_FACTOR, ScalingLog

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError:
    require("transformers", "text", "engines.transformers")
    raise

__all__ = ["DiagnosisCallback", "ScalingLogger"]

IGNORED = -100  # label of tokens without a loss
SHIFTED = ("ForCausalLM", "ForConditionalGeneration")
ALIGNED = ("ForMaskedLM", "ForTokenClassification")


class DiagnosisCallback(Diagnoser, TrainerCallback):
    """Measures on held-fixed examples whose training step it is: at the start, every k optimizer steps, and at the end.

    ``DiagnosisCallback(every=500).attach(trainer)``, and not ``callbacks=[...]``: a callback is not told its trainer, and callbacks that
    report (TensorBoard, ...) come before those a user adds, so that only :meth:`transformers.Trainer.log` reaches them.

    Training is the same, bit for bit, with and without it. ``trainer.log`` gets, per group, ``counterpoise/share/<group>`` of the step and
    ``counterpoise/loss/<group>``; and ``counterpoise/norm``, ``noise``, ``coherence`` and ``conflict`` (TensorBoard shows them under
    ``train/``). Shares have gaps where the mean gradient is within twice its sampling error (``noise``): there is no direction to divide.
    Hints go to Python's logger "counterpoise", level INFO, when they are new.

    The measurement takes about four forward and backward passes over the probe, in eval mode (no dropout), in the type of the parameters:
    outside of autocast with ``bf16=True`` or ``fp16=True``. Processes other than the first do not measure.

    Parameters
    ----------
    every : int, default 500
        Optimizer steps (``state.global_step``) from one measurement to the next.
    probe : a batch, or a loader, optional
        The examples to measure, as the model takes them with their labels; of a loader the first 4,096. Without it, ``batch`` examples of
        the training data set, drawn by ``seed`` and put together by the trainer's collator (one with a random generator of its own is moved
        on by them). A rare group needs a probe of your own in which it has a few dozen examples.
    batch : int, default 64
        Number of examples where no probe is given. More of them make the shares clearer.
    groups : "labels", str, Groups, ids (n,), function (batch) -> ids, or None, default "labels"
        As in :func:`counterpoise.diagnostics.examine`; a str is a key of the batches. "labels": the classes, under their names in
        ``model.config.id2label``; where an example has several (tokens), all are in one group. Without a probe, ids are those of the whole
        training data set: for columns that the trainer removes.
    forward : function (model, batch) -> output, optional
        Default: the logits of ``model(**batch)`` without labels.
    loss : function (output, batch) -> losses (m,), optional
        Default: the model's own loss per example, for sequence classification (cross-entropy; squared error for one output; binary
        cross-entropy for several labels), causal language models, masked ones and token classification (the mean over the tokens of a
        sequence whose label is not -100; a trainer weighs long sequences more). Needed where the trainer computes another loss.
    params : str, default "all"
        "all", "head", "last_k" or a regular expression on the names of parameters. "head" is cheap for large models.
    engine : str, default "auto"
        How gradients are measured, as in ``examine``.
    seed : int, default 0
        Of the choice of examples, the collator (random masks), and the measurement.

    Attributes
    ----------
    diagnoses : list of TrainingDiagnosis
        Each with its ``step``. A training that starts at step 0 starts a new list.

    Raises
    ------
    InputError
        When training starts, if it was not attached, if the default loss is not that of the trainer, if the groups do not fit, or if
        parameters are sharded (FSDP, DeepSpeed). Later measurements that fail are logged as warnings.

    Examples
    --------
    >>> diagnosis = DiagnosisCallback(every=500, batch=64)
    >>> diagnosis.attach(trainer)  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP
    >>> diagnosis.diagnoses[-1].headline  # doctest: +SKIP
    "Class 'spam' is 12.5 % of the rows and 71.0 % of the step at step 1000."
    """

    def __init__(
        self,
        every: int = 500,
        *,
        probe: Any = None,
        batch: int = 64,
        groups: Any = "labels",
        forward: Callable[[nn.Module, Any], Any] | None = None,
        loss: Callable[[Any, Any], Tensor] | None = None,
        params: str = "all",
        engine: str = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__(every, probe, batch, groups, None, forward, loss, params, engine, seed)
        self._trainer: Trainer | None = None

    def attach(self, trainer: Trainer) -> Self:
        """Add this callback to ``trainer`` and log through it."""
        if not isinstance(trainer, Trainer):
            bad_input("trainer", type(trainer).__name__, "a transformers.Trainer")
        self._trainer = trainer
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        return self

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        trainer = self._trainer
        if trainer is None:
            bad_input(
                "callbacks",
                "a DiagnosisCallback without its trainer",
                "DiagnosisCallback(...).attach(trainer) after the trainer is made",
                "Nothing would reach TensorBoard otherwise: a callback is not told its trainer, and those that report come before it.",
            )
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            bad_input("trainer", "one that shards parameters", "one whose processes hold all of them", "Measure a checkpoint with examine.")
        if self.loss is None:
            _check_loss(trainer, args)
        if state.global_step == 0:
            self._forget()
        self._measure(trainer, state, control, **kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Not in on_train_end: those that report have closed their files by then.
        last = state.global_step >= state.max_steps or control.should_training_stop
        if self._trainer is not None and (last or self._due(state.global_step)):
            self._measure(self._trainer, state, control, **kwargs)

    def _measure(
        self, trainer: Trainer, state: TrainerState, control: TrainerControl, *, model: Any, train_dataloader: Any, **_: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        names = tuple(trainer.label_names)
        with _without_autocast(model):
            numbers = self._examine(
                model,
                state.global_step,
                lambda: train_dataloader,
                forward=lambda model, batch: model(**{key: value for key, value in batch.items() if key not in names}).logits,
                loss=lambda logits, batch: _losses(model, logits, _labels(batch, names)),
            )
        if numbers:
            wanted = control.should_log
            trainer.log(dict(numbers))
            control.should_log = wanted  # logging has been asked for by others, who are not served yet

    def _probe(self, training_data: Callable[[], Any]) -> tuple[Any, Any]:
        data, groups = super()._probe(training_data)
        if isinstance(groups, str) and groups == "labels" and all(isinstance(batch, Mapping) and "labels" in batch for batch in data):
            groups = self._classes([batch["labels"] for batch in data])
        return data, groups

    def _classes(self, labels: list[Tensor]) -> Any:
        """Classes under the names that the model has for them; one group for labels of tokens; numbers are left to be binned."""
        if any(part.ndim > 1 and part.shape[1:].numel() > 1 for part in labels):
            return None
        values = torch.cat([part.reshape(-1) for part in labels]).cpu()
        if values.is_floating_point():
            return "labels"
        present, ids = torch.unique(values, return_inverse=True)
        known = getattr(getattr(self._trainer, "model", None), "config", None)
        names = getattr(known, "id2label", None) or {}
        said = [str(names.get(label, label)) for label in present.tolist()]
        if len(set(said)) < len(said) or all(name.startswith("LABEL_") for name in said):  # "LABEL_0" is what transformers calls a 0
            said = [str(label) for label in present.tolist()]
        return Groups(ids.numpy(), tuple(said), "class")


@contextmanager
def _without_autocast(model: nn.Module) -> Iterator[None]:
    """Accelerate replaces ``forward`` of the model by one under autocast, and keeps what was there."""
    replaced, original = (vars(model).get(name) for name in ("forward", "_original_forward"))
    if replaced is None or original is None:
        yield
        return
    model.forward = original
    try:
        yield
    finally:
        model.forward = replaced


# ---- losses -----------------------------------------------------------------------------------------------------------------------------


def _check_loss(trainer: Trainer, args: TrainingArguments) -> None:
    """The default is the model's own loss; a trainer may take another."""
    own = {
        "label smoothing": bool(args.label_smoothing_factor),
        "a compute_loss_func": trainer.compute_loss_func is not None,
        f"compute_loss of {type(trainer).__name__}": type(trainer).compute_loss is not Trainer.compute_loss,
    }
    for name, used in own.items():
        if used:
            bad_input("loss", None, f"loss=lambda output, batch: ... of shape (m,), since the trainer uses {name}")


def _labels(batch: Mapping[str, Any], names: tuple[str, ...]) -> Tensor:
    found = [batch[name] for name in names if name in batch]
    if len(found) != 1:
        bad_input("loss", None, f"loss=lambda output, batch: ... of shape (m,), since the batches hold {len(found)} of the labels {names}")
    labels: Tensor = found[0]
    return labels


def _losses(model: Any, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of each example, from what the shapes and the model's kind say about it."""
    if logits.ndim == 2:
        logits = logits.float()
        if logits.shape[1] == 1:
            return F.mse_loss(logits[:, 0], labels.reshape(-1).float(), reduction="none")
        if labels.shape == logits.shape and labels.is_floating_point():
            return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(dim=1)
        if labels.ndim == 1 and not labels.is_floating_point():
            return F.cross_entropy(logits, labels, reduction="none")
    if logits.ndim == 3 and labels.shape == logits.shape[:2]:
        kind = getattr(model, "loss_type", None)
        sequence = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        generates = kind is None and hasattr(model, "can_generate") and model.can_generate()
        if not sequence and (kind in SHIFTED or generates):
            return _per_sequence(logits[:, :-1], labels[:, 1:])
        if kind in ALIGNED:
            return _per_sequence(logits, labels)
    bad_input(
        "loss",
        None,
        f"loss=lambda output, batch: ... of shape (m,), for {type(model).__name__} with logits of shape {tuple(logits.shape)} "
        f"and labels of shape {tuple(labels.shape)}",
    )


def _per_sequence(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the tokens that count; 0 for a sequence without any."""
    losses = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
    return losses.sum(dim=1) / (labels != IGNORED).sum(dim=1).clamp(min=1)


# ---- scaling ----------------------------------------------------------------------------------------------------------------------------


class ScalingLogger(ScalingLog, TrainerCallback):
    """Writes one line per training to a table that ``counterpoise scaling`` and :func:`counterpoise.scaling.audit_isoflop` read: run, step,
    n_params, tokens, loss, flops.

    The loss is that of the last evaluation (or of the first one after the training, if there was none), the tokens are those the trainer
    has counted until then, over all processes. A training that does not end writes nothing: it is no point of a scaling law. Nothing about
    the training changes.

    Parameters
    ----------
    path : str or Path
        A .csv file; lines are added at its end, by several trainings if need be.
    loss : str, default "eval_loss"
        Name of the loss among the metrics of an evaluation. Evaluations without it are passed over.
    run : str, optional
        Name of the training in the table. Default: "run 1", "run 2", ... A resumed training needs the name it had.
    n_params : int, optional
        Size of the model. Default: its parameters, each tensor once.
    embeddings : bool, default False
        Count embedding layers as well; with a warning, since their share falls with size.
    history : bool, default False
        Write every evaluation, for learning curves; a scaling law needs the last of each run only.
    flops_factor : float, default 6.0
        FLOPs of one parameter and one token (arXiv:2001.08361).

    Raises
    ------
    InputError
        When training starts, if the trainer does not count tokens, the file is not of this kind, or parameters are sharded (FSDP,
        DeepSpeed) and ``n_params`` is not given.

    Examples
    --------
    >>> from transformers import Trainer, TrainingArguments
    >>> arguments = TrainingArguments(eval_strategy="epoch", include_num_input_tokens_seen="non_padding")  # doctest: +SKIP
    >>> trainer = Trainer(model, arguments, callbacks=[ScalingLogger("runs.csv")], ...)  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | Path,
        *,
        loss: str = "eval_loss",
        run: str | None = None,
        n_params: int | None = None,
        embeddings: bool = False,
        history: bool = False,
        flops_factor: float = FLOPS_FACTOR,
    ) -> None:
        super().__init__(path, run, n_params, embeddings, history, flops_factor)
        self.loss = loss
        self._ended = False
        self._written = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.include_num_input_tokens_seen in ("no", False):
            bad_input(
                "include_num_input_tokens_seen",
                "no",
                "'all' or 'non_padding' in TrainingArguments",
                "The trainer counts no tokens otherwise.",
            )
        sharded = bool(getattr(args, "fsdp", None)) or getattr(args, "deepspeed", None) is not None
        self._begin(kwargs["model"], sharded, state.is_world_process_zero)
        self._ended = self._written = False

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        metrics = kwargs["metrics"]
        # An evaluation before any training has no size, and one after a line was written is another matter.
        if self._size is None or self.loss not in metrics or not state.is_world_process_zero or (self._ended and self._written):
            return
        self._evaluated(state.global_step, state.num_input_tokens_seen, float(metrics[self.loss]))
        self._written = True
        if self._ended:
            self._end()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._ended = True
        if state.is_world_process_zero:
            self._end()
