"""The table of trainings that the callbacks of Lightning and transformers write, and that the audit reads."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from counterpoise._errors import InputError, StoreError
from counterpoise.engines._scaling_log import COLUMNS, _append, count_parameters

WORDS, LENGTH, N = 50, 8, 40
TOKENS = torch.from_numpy(np.random.default_rng(0).integers(1, WORDS, (N, LENGTH)))


def rows(path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_parameters_are_counted_once_and_without_embeddings() -> None:
    embedding, head = nn.Embedding(WORDS, 4), nn.Linear(4, WORDS, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, nn.Linear(4, 4), head)
    assert count_parameters(model) == (20, 200)
    assert count_parameters(model, embeddings=True) == (220, 200)
    assert count_parameters(nn.Sequential(nn.EmbeddingBag(7, 3), nn.Linear(3, 1))) == (4, 21)


def test_lines_are_added(tmp_path) -> None:
    path = tmp_path / "runs.csv"
    for run in ("a", "b, with a comma"):
        _append(path, dict(zip(COLUMNS, (run, 1, 2, 3, 0.5, 36.0), strict=True)))
    assert [row["run"] for row in rows(path)] == ["a", "b, with a comma"] and tuple(rows(path)[0]) == COLUMNS
    with pytest.raises(StoreError, match="cannot be written"):
        _append(tmp_path / "absent" / "runs.csv", dict.fromkeys(COLUMNS, 0))


# ---- Lightning --------------------------------------------------------------------------------------------------------------------------

lightning = pytest.importorskip("lightning.pytorch", reason="needs the extra: pip install 'counterpoise[lightning]'")


class Words(lightning.LightningModule):
    def __init__(self, width: int = 4, integers: bool = True) -> None:
        super().__init__()
        self.first = nn.Embedding(WORDS, width) if integers else nn.Linear(LENGTH, width)
        self.last = nn.Linear(width, WORDS)

    def loss(self, batch):
        x, y = batch
        return nn.functional.cross_entropy(self.last(self.first(x)).flatten(0, -2), y.flatten())

    def training_step(self, batch):
        return self.loss(batch)

    def validation_step(self, batch):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tmp_path, callback, *, model=None, data=None, **options):
    model = Words() if model is None else model
    data = TensorDataset(TOKENS, TOKENS.roll(-1, 1)) if data is None else data
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    options = {"max_epochs": 2, "accelerator": "cpu", "default_root_dir": tmp_path, **quiet, **options}
    trainer = lightning.Trainer(callbacks=[callback], **options)
    trainer.fit(model, DataLoader(data, batch_size=16), DataLoader(data, batch_size=16))
    return trainer


def test_lightning_writes_one_line_per_training(tmp_path) -> None:
    from counterpoise.engines.lightning import ScalingLogger

    path = tmp_path / "runs.csv"
    trainers = [fit(tmp_path, ScalingLogger(path), model=Words(width), max_epochs=epochs) for width, epochs in ((4, 2), (8, 1))]
    written = rows(path)
    assert [row["run"] for row in written] == ["run 1", "run 2"]
    assert [int(row["n_params"]) for row in written] == [4 * 50 + 50, 8 * 50 + 50]  # the head; the embedding is left out
    assert [int(row["tokens"]) for row in written] == [2 * N * LENGTH, N * LENGTH] and [row["step"] for row in written] == ["6", "3"]
    for row, trainer in zip(written, trainers, strict=True):
        assert float(row["loss"]) == pytest.approx(float(trainer.callback_metrics["val_loss"]))
        assert float(row["flops"]) == 6 * int(row["n_params"]) * int(row["tokens"])


def test_lightning_trains_the_same_with_and_without_it(tmp_path) -> None:
    from counterpoise.engines.lightning import ScalingLogger

    weights = []
    for callback in (ScalingLogger(tmp_path / "runs.csv"), lightning.Callback()):
        torch.manual_seed(0)
        model = Words()
        fit(tmp_path, callback, model=model)
        weights.append(model.last.weight.detach().clone())
    assert torch.equal(*weights)


def test_lightning_counts_examples_and_whatever_it_is_told(tmp_path) -> None:
    from counterpoise.engines.lightning import ScalingLogger

    data = TensorDataset(torch.randn(N, LENGTH, generator=torch.Generator().manual_seed(0)), TOKENS[:, 0])
    path = tmp_path / "runs.csv"
    fit(tmp_path, ScalingLogger(path, run="examples"), model=Words(integers=False), data=data)
    fit(tmp_path, ScalingLogger(path, tokens=lambda batch: 7, history=True, n_params=123), model=Words(integers=False), data=data)
    first, *history = rows(path)
    assert first["run"] == "examples" and int(first["tokens"]) == 2 * N
    assert [int(row["tokens"]) for row in history] == [21, 42] and {row["n_params"] for row in history} == {"123"}


def test_lightning_goes_on_counting_after_a_checkpoint(tmp_path) -> None:
    from counterpoise.engines.lightning import ScalingLogger

    path = tmp_path / "runs.csv"
    fit(tmp_path, ScalingLogger(path, run="one")).save_checkpoint(tmp_path / "last.ckpt")
    again = lightning.Trainer(
        callbacks=[ScalingLogger(path, run="one")],
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    loader = DataLoader(TensorDataset(TOKENS, TOKENS.roll(-1, 1)), batch_size=16)
    again.fit(Words(), loader, loader, ckpt_path=tmp_path / "last.ckpt")
    assert [int(row["tokens"]) for row in rows(path)] == [2 * N * LENGTH, 3 * N * LENGTH]


def test_lightning_says_what_will_not_do(tmp_path) -> None:
    from counterpoise.engines.lightning import ScalingLogger

    with pytest.raises(InputError, match="loss: got 'loss'; expected one of the metrics of the validation: val_loss"):
        fit(tmp_path, ScalingLogger(tmp_path / "runs.csv", loss="loss"))
    assert not (tmp_path / "runs.csv").exists()
    with pytest.warns(UserWarning, match="n_params counts 44 % embeddings"):
        ScalingLogger(tmp_path / "runs.csv", embeddings=True)._begin(Words(), sharded=False, writes=True)
    with pytest.raises(InputError, match="n_params: got None; expected the number of parameters, since this strategy shards them"):
        ScalingLogger(tmp_path / "runs.csv")._begin(Words(), sharded=True, writes=True)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"other\.csv has the columns a, b, not run, step, n_params, tokens, loss, flops"):
        fit(tmp_path, ScalingLogger(tmp_path / "other.csv"))
    with pytest.raises(StoreError, match="there is no folder"):
        fit(tmp_path, ScalingLogger(tmp_path / "absent" / "runs.csv"))
    with pytest.raises(InputError, match="n_params: got 0"):
        ScalingLogger(tmp_path / "runs.csv", n_params=0)


def test_a_table_of_trainings_is_audited(tmp_path) -> None:
    """From lines that the callback writes to a plan."""
    from counterpoise.scaling import LossSurface, audit_isoflop, sample_isoflop

    runs = sample_isoflop(LossSurface(1.69, 406.4, 410.7, 0.34, 0.28), np.geomspace(1e17, 1e20, 4), n=5)
    for k, (N_, D_, L_, C_) in enumerate(runs.iter_rows()):
        _append(tmp_path / "runs.csv", dict(zip(COLUMNS, (f"run {k}", 10, int(N_), int(D_), L_, C_), strict=True)))
    audit = audit_isoflop(tmp_path / "runs.csv", size="n_params", data="tokens", loss="loss", compute="flops", resamples=0)
    assert audit.surface.alpha == pytest.approx(0.34, abs=1e-5)


# ---- transformers -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def trainer_of(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra: pip install 'counterpoise[text]'")
    pytest.importorskip("accelerate", reason="needs the extra: pip install 'counterpoise[text]'")

    def make(*callbacks, model=None, **options):
        torch.manual_seed(0)
        sizes = {"vocab_size": WORDS, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        model = model or transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, max_position_embeddings=LENGTH))
        options = {
            "max_steps": 4,
            "per_device_train_batch_size": 8,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "include_num_input_tokens_seen": "all",
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            **options,
        }
        data = [{"input_ids": row, "labels": row} for row in TOKENS]
        arguments = transformers.TrainingArguments(str(tmp_path / "out"), **options)
        return transformers.Trainer(model, arguments, train_dataset=data, eval_dataset=data[:8], callbacks=list(callbacks))

    return make


def test_transformers_writes_one_line_per_training(trainer_of, tmp_path) -> None:
    from counterpoise.engines.transformers import ScalingLogger

    path = tmp_path / "runs.csv"
    trainer = trainer_of(ScalingLogger(path))
    trainer.train()
    trainer.evaluate()  # after the line is written: another matter
    trainer_of(ScalingLogger(path, history=True, run="all")).train()
    first, *history = rows(path)
    size = sum(p.numel() for p in trainer.model.parameters()) - WORDS * 8
    assert (first["run"], first["step"], int(first["n_params"]), int(first["tokens"])) == ("run 1", "4", size, 4 * 8 * LENGTH)
    assert float(first["loss"]) == pytest.approx(trainer.state.log_history[-1]["eval_loss"], rel=1e-6)
    assert float(first["flops"]) == 6 * size * 4 * 8 * LENGTH
    assert [(row["run"], row["step"], int(row["tokens"])) for row in history] == [("all", "2", 2 * 64), ("all", "4", 4 * 64)]


def test_transformers_takes_the_first_evaluation_after_a_training_without_one(trainer_of, tmp_path) -> None:
    from counterpoise.engines.transformers import ScalingLogger

    path = tmp_path / "runs.csv"
    trainer = trainer_of(ScalingLogger(path), eval_strategy="no")
    trainer.evaluate()  # before any training: no size, no line
    trainer.train()
    assert not path.exists()
    trainer.evaluate(metric_key_prefix="test")
    assert not path.exists()
    trainer.evaluate()
    trainer.evaluate()
    assert [row["step"] for row in rows(path)] == ["4"]


def test_transformers_says_what_will_not_do(trainer_of, tmp_path) -> None:
    from counterpoise.engines.transformers import ScalingLogger

    with pytest.raises(InputError, match="include_num_input_tokens_seen: got 'no'; expected 'all' or 'non_padding'"):
        trainer_of(ScalingLogger(tmp_path / "runs.csv"), include_num_input_tokens_seen="no").train()
    with pytest.warns(UserWarning, match=r"n_params counts \d+ % embeddings"):
        trainer_of(ScalingLogger(tmp_path / "runs.csv", embeddings=True), max_steps=1).train()
