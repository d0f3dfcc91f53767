"""Sentence-transformers: models merged where they are fixed, or where losses of several tasks are lowest; a loss of several modalities."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from counterpoise._errors import bad_input, check_range
from counterpoise._extras import require
from counterpoise._seeding import generator as stream
from counterpoise.losses import OmniContrastiveLoss
from counterpoise.weights import merge

try:
    from sentence_transformers import SentenceTransformer
except ImportError:
    require("sentence_transformers", "text", "engines.sentence_transformers")
    raise

__all__ = ["OmniContrastiveAdapter", "ProbeTask", "TaskProbe", "merge_sentence_transformers"]


# ---- merging ----------------------------------------------------------------------------------------------------------------------------


def merge_sentence_transformers(
    base: SentenceTransformer | str | Path, models: Sequence[Any], method: Any = "average", **options: Any
) -> Any:
    """One ``SentenceTransformer`` from several that were fine-tuned from ``base``: :func:`counterpoise.weights.merge` of all their modules.

    Parameters
    ----------
    base : SentenceTransformer, or the folder of a saved one
    models : sequence of these, or of state dictionaries
        Such as that of ``SelfPositioning().fit(...)``. With the modules of the base.
    method, **options
        As in :func:`counterpoise.weights.merge`, without ``out``: save the result.

    Returns
    -------
    SentenceTransformer, a copy of the base with the merged weights.

    Examples
    --------
    >>> merged = merge_sentence_transformers("base", ["retrieval", "similarity"], "slerp", [2.0, 1.0])  # doctest: +SKIP
    >>> merged.save_pretrained("merged")  # doctest: +SKIP
    """
    if "out" in options:
        bad_input("out", options["out"], "no path", "Save the result: merged.save_pretrained(path).")
    start = _loaded(base, "base")
    merged = copy.deepcopy(start)
    merged.load_state_dict(merge(start, [_loaded(model, f"models[{k}]") for k, model in enumerate(models)], method, **options))
    return merged.eval()


def _loaded(model: Any, label: str) -> Any:
    if isinstance(model, (str, os.PathLike)):
        if not Path(model).is_dir():
            bad_input(label, str(model), "the folder of a saved SentenceTransformer")
        return SentenceTransformer(str(model), device="cpu", local_files_only=True)
    if not isinstance(model, (SentenceTransformer, Mapping)):
        bad_input(label, type(model).__name__, "a SentenceTransformer, a state dictionary, or a folder")
    return model


@dataclass(frozen=True)
class ProbeTask:
    """Held-out examples of one task.

    Attributes
    ----------
    columns : sequence of lists of texts
        As the loss takes them: (anchors, positives), with negatives, or two sentences.
    loss : function model -> a loss of sentence-transformers
        Such as ``MultipleNegativesRankingLoss``, or ``lambda model: CoSENTLoss(model, scale=10)``.
    labels : sequence of numbers, optional
    weight : float, default 1.0
        The loss is multiplied by it. Losses with in-batch negatives grow with the logarithm of their number; others have their own units.
    """

    columns: Sequence[Sequence[str]]
    loss: Callable[[SentenceTransformer], nn.Module]
    labels: Sequence[float] | None = None
    weight: float = 1.0


class TaskProbe:
    """Batches of several tasks in turn, and their losses: what :class:`counterpoise.weights.SelfPositioning` is fitted on.

    ``SelfPositioning().fit(base, models, probe, probe.loss)``. Every batch is of one task; one pass takes as many batches of each task as
    the largest has, smaller ones begin anew. Texts are tokenized when a batch is drawn.

    Parameters
    ----------
    model : SentenceTransformer
        Whose tokenizer is used.
    tasks : dict of name -> ProbeTask
    batch_size : int >= 2, default 64
    seed : int, default 0
        Of the order of examples, which is another one in every pass.

    Examples
    --------
    >>> from sentence_transformers.losses import MultipleNegativesRankingLoss  # doctest: +SKIP
    >>> tasks = {"retrieval": ProbeTask((questions, answers), MultipleNegativesRankingLoss)}  # doctest: +SKIP
    >>> probe = TaskProbe(base, tasks)  # doctest: +SKIP
    >>> result = SelfPositioning().fit(base, [model_a, model_b], probe, probe.loss)  # doctest: +SKIP
    """

    def __init__(self, model: SentenceTransformer, tasks: Mapping[str, ProbeTask], batch_size: int = 64, seed: int = 0) -> None:
        check_range("batch_size", batch_size, low=2, integer=True)
        if not isinstance(tasks, Mapping) or not tasks:
            bad_input("tasks", tasks, "a dict of name -> ProbeTask, with at least one task")
        for name, task in tasks.items():
            sizes = {len(column) for column in (*task.columns, *([] if task.labels is None else [task.labels]))}
            if len(sizes) != 1 or min(sizes) < 2:
                bad_input(f"tasks[{name!r}]", f"columns of {sorted(sizes)} examples", "columns and labels of one length, at least 2")
            check_range(f"tasks[{name!r}].weight", task.weight, low=0.0)
        self.tasks = dict(tasks)
        self.batch_size, self.seed = batch_size, seed
        self._tokenize = getattr(model, "preprocess", None) or model.tokenize
        self._passes = 0

    def __len__(self) -> int:
        return len(self.tasks) * max(len(self._split(task)) for task in self.tasks.values())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        orders = {}
        for name, task in self.tasks.items():
            order = stream(self.seed, "probe", name, self._passes).permutation(len(task.columns[0]))
            orders[name] = [order[part] for part in self._split(task)]
        self._passes += 1
        for turn in range(max(map(len, orders.values()))):
            for name, parts in orders.items():
                yield self._batch(name, parts[turn % len(parts)])

    def loss(self, model: Any, batch: Mapping[str, Any]) -> Tensor:
        """The loss of ``model`` on a batch, with a graph."""
        task = self.tasks[batch["task"]]
        device = next(model.parameters()).device
        # A loss may write into the features, which are used again.
        features = [{key: _moved(value, device) for key, value in column.items()} for column in batch["columns"]]
        labels = None if batch["labels"] is None else batch["labels"].to(device)
        found: Tensor = task.loss(model)(features, labels)
        return task.weight * found

    def _split(self, task: ProbeTask) -> list[slice]:
        """Whole batches; one smaller batch where there is no whole one."""
        count = len(task.columns[0])
        return [slice(start, start + self.batch_size) for start in range(0, max(count - self.batch_size, 0) + 1, self.batch_size)]

    def _batch(self, name: str, rows: Any) -> dict[str, Any]:
        task = self.tasks[name]
        columns = [self._tokenize([column[row] for row in rows]) for column in task.columns]
        labels = None if task.labels is None else torch.tensor([float(task.labels[row]) for row in rows])
        return {"task": name, "columns": columns, "labels": labels}


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


# ---- a loss of several modalities -------------------------------------------------------------------------------------------------------


class OmniContrastiveAdapter(nn.Module):
    """:class:`counterpoise.losses.OmniContrastiveLoss` as a loss of sentence-transformers: columns (anchor, positive), and more of them for
    hard negatives, which are negatives of every row.

    The temperatures are parameters of the loss, which the trainer optimizes with the model. They learn slowly at the rate of a pretrained
    model: give them their own with ``SentenceTransformerTrainingArguments(learning_rate_mapping={"log_tau": 1e-3})``.

    Parameters
    ----------
    model : SentenceTransformer
    loss : OmniContrastiveLoss
    modalities : sequence of (str or tuple of str), "labels" or None, default None
        What the columns hold. A sequence: a modality for each column, or several of one kind of item. "labels": the label of a row says it,
        as an integer for all columns, or one for each, of the modalities of the loss in their order: for batches of mixed pairs. None: what
        the model's own preprocessing found, under ``"modality"`` of its features.

    Raises
    ------
    InputError
        If there are fewer than two columns, the modalities are missing or do not fit them, or one is unknown to the loss.

    Examples
    --------
    >>> from counterpoise.losses import ModalityTemperature  # doctest: +SKIP
    >>> loss = OmniContrastiveLoss(ModalityTemperature(["text", "image"]))  # doctest: +SKIP
    >>> adapter = OmniContrastiveAdapter(model, loss, modalities=("text", "image"))  # doctest: +SKIP
    >>> SentenceTransformerTrainer(model, args, train_dataset, loss=adapter).train()  # doctest: +SKIP
    """

    def __init__(self, model: SentenceTransformer, loss: OmniContrastiveLoss, modalities: Sequence[Any] | str | None = None) -> None:
        super().__init__()
        if not isinstance(loss, OmniContrastiveLoss):
            bad_input("loss", type(loss).__name__, "an OmniContrastiveLoss")
        if isinstance(modalities, str) and modalities != "labels":
            bad_input("modalities", modalities, "one modality per column, 'labels' or None")
        self.model, self.loss, self.modalities = model, loss, modalities

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        columns = list(sentence_features)
        if len(columns) < 2:
            bad_input("sentence_features", f"{len(columns)} columns", "at least an anchor and a positive")
        embeddings: list[Tensor] = [self.model(dict(features))["sentence_embedding"] for features in columns]
        weights = self._weights(columns, labels, len(embeddings[0]))
        found: Tensor = self.loss(embeddings[0], torch.cat(embeddings[1:]), weights[0], torch.cat(weights[1:]))
        return found

    def _weights(self, columns: Sequence[Mapping[str, Any]], labels: Tensor | None, rows: int) -> list[Tensor]:
        """Weights (B, M) of each column."""
        temperature = self.loss.temperature
        if self.modalities == "labels":
            if labels is None or tuple(labels.shape) not in ((rows,), (rows, 1), (rows, len(columns))):
                shape = None if labels is None else f"shape {tuple(labels.shape)}"
                bad_input("labels", shape, f"integers ({rows},), or ({rows}, {len(columns)}) with the modality of each column")
            ids = labels.reshape(rows, -1).expand(rows, len(columns))
            return [temperature.weights(column, "labels") for column in ids.unbind(dim=1)]
        given: list[Any] = [features.get("modality") for features in columns] if self.modalities is None else list(self.modalities)
        if len(given) != len(columns) or None in given:
            bad_input("modalities", self.modalities, f"the modality of each of the {len(columns)} columns", "Or 'labels'.")
        return [temperature.weights([modality] * rows, "modalities") for modality in given]

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says about this loss."""
        return {"loss": repr(self.loss), "modalities": self.modalities}
