from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from counterpoise._errors import InputError
from counterpoise.losses import ModalityTemperature, OmniContrastiveLoss, QuantileCurriculum

pytest.importorskip("sentence_transformers")

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizerFast

from counterpoise.engines.sentence_transformers import OmniContrastiveAdapter

THINGS = ["cat", "dog", "mat", "road", "sun", "moon", "tree", "bird", "fish", "stone", "house", "boat"]
QUESTIONS = [f"where is the {thing}" for thing in THINGS]
ROWS = [f"thing {thing} place here" for thing in THINGS]  # rows of a table in words
WORDS = ["where", "is", "the", "thing", "place", "here", *THINGS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 32 features, initialized from its configuration."""
    path = tmp_path_factory.mktemp("bert")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (path / "vocab.txt").write_text("\n".join(tokens))
    BertTokenizerFast(vocab={token: k for k, token in enumerate(tokens)}).save_pretrained(path)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=len(tokens), **sizes)).save_pretrained(path)
    return path


def encoder(folder: Path) -> SentenceTransformer:
    body = Transformer(str(folder))
    return SentenceTransformer(modules=[body, Pooling(32)], device="cpu").eval()


def features(model: SentenceTransformer, *columns: list[str]) -> list[dict[str, Any]]:
    return [model.preprocess(column) for column in columns]


def omni(**options: Any) -> OmniContrastiveLoss:
    return OmniContrastiveLoss(ModalityTemperature(["text", "table"], init=0.05), **options)


def test_it_is_the_loss_of_the_embeddings(folder: Path) -> None:
    model = encoder(folder)
    loss = omni(curriculum=QuantileCurriculum(0.2, 0.2))
    columns = features(model, QUESTIONS, ROWS, ROWS[::-1])
    found = OmniContrastiveAdapter(model, loss, ("text", "table", ("text", "table")))(columns, None)
    a, b, c = (torch.tensor(model.encode(texts)) for texts in (QUESTIONS, ROWS, ROWS[::-1]))
    n = len(THINGS)
    expected = loss(a, torch.cat([b, c]), ["text"] * n, ["table"] * n + [("text", "table")] * n)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_without_its_parts_it_is_the_loss_of_multiple_negatives(folder: Path) -> None:
    model = encoder(folder)
    plain = OmniContrastiveLoss(ModalityTemperature(1, init=0.05), gamma_plus=0.0, coral_weight=0.0)
    adapter = OmniContrastiveAdapter(model, plain, "labels")
    columns = features(model, QUESTIONS, ROWS, ROWS[::-1])
    theirs = MultipleNegativesRankingLoss(model, scale=20.0)(features(model, QUESTIONS, ROWS, ROWS[::-1]), None)
    torch.testing.assert_close(adapter(columns, torch.zeros(len(THINGS), dtype=torch.int64)), theirs, rtol=1e-4, atol=1e-5)


def test_modalities_may_come_with_the_rows_or_the_features(folder: Path) -> None:
    model, loss = encoder(folder), omni()
    columns = features(model, QUESTIONS, ROWS)
    fixed = OmniContrastiveAdapter(model, loss, ("text", "table"))(columns, None)
    labels = torch.tensor([[0, 1]] * len(THINGS))
    torch.testing.assert_close(OmniContrastiveAdapter(model, loss, "labels")(columns, labels), fixed)
    mixed = torch.stack([torch.arange(len(THINGS)) % 2, 1 - torch.arange(len(THINGS)) % 2], dim=1)
    assert OmniContrastiveAdapter(model, loss, "labels")(columns, mixed).isfinite()
    found = OmniContrastiveAdapter(model, loss)([column | {"modality": "text"} for column in columns], None)
    torch.testing.assert_close(found, OmniContrastiveAdapter(model, loss, ("text", "text"))(columns, None))


def recall(model: SentenceTransformer) -> float:
    a, b = (F.normalize(torch.tensor(model.encode(texts)), dim=1) for texts in (QUESTIONS, ROWS))
    return ((a @ b.T).argmax(dim=1) == torch.arange(len(THINGS))).float().mean().item()


def test_a_loop_trains_it(folder: Path) -> None:
    model = encoder(folder)
    loss = omni(curriculum=QuantileCurriculum(0.0, 0.3, warmup=5, total=40), symmetric=True)
    adapter = OmniContrastiveAdapter(model, loss, ("text", "table"))
    columns = features(model, QUESTIONS, ROWS)
    before = loss.temperature.temperatures.detach().clone()
    groups = [{"params": model.parameters()}, {"params": loss.parameters(), "lr": 3e-2, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    start = recall(model)
    for _ in range(40):
        value = adapter(columns, None)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert loss.curriculum.step == 40 and loss.last.kept_fraction < 0.8
    assert (loss.temperature.temperatures / before - 1).abs().min() > 0.05
    assert start < 0.7 and recall(model) > 0.8


def test_the_trainer_trains_it(folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    model, loss = encoder(folder), omni(symmetric=True)
    args = SentenceTransformerTrainingArguments(
        str(tmp_path), max_steps=40, per_device_train_batch_size=len(THINGS), learning_rate=3e-3, learning_rate_mapping={"log_tau": 3e-2},
        report_to=[], save_strategy="no", disable_tqdm=True, logging_strategy="no", use_cpu=True, seed=0,
    )  # fmt: skip
    data = datasets.Dataset.from_dict({"anchor": QUESTIONS, "positive": ROWS})
    adapter = OmniContrastiveAdapter(model, loss, ("text", "table"))
    before = loss.temperature.temperatures.detach().clone()
    SentenceTransformerTrainer(model, args, train_dataset=data, loss=adapter).train()
    assert (loss.temperature.temperatures / before - 1).abs().min() > 0.05
    assert recall(model.eval()) > 0.8
    assert "gamma_plus" in adapter.get_config_dict()["loss"]


def test_what_makes_no_sense_is_refused(folder: Path) -> None:
    model, loss = encoder(folder), omni()
    columns = [{key: value for key, value in column.items() if key != "modality"} for column in features(model, QUESTIONS, ROWS)]
    for arguments, given, labels, message in (
        ((loss,), columns, None, "modalities: got None; expected the modality of each of the 2 columns"),
        ((loss, ("text",)), columns, None, "modalities: got .* expected the modality of each of the 2 columns"),
        ((loss, ("text", "smell")), columns, None, "modalities: got 'smell'; expected one of the modalities text, table"),
        ((loss, ("text", "table")), columns[:1], None, "sentence_features: got 1 columns"),
        ((loss, "labels"), columns, None, "labels: got None"),
        ((loss, "labels"), columns, torch.zeros(3, dtype=torch.int64), r"labels: got shape \(3,\)"),
        ((loss, "labels"), columns, torch.full((len(THINGS),), 2), "labels: got 2; expected indices of modalities"),
        ((loss, "text"), columns, None, "modalities: got 'text'"),
        ((torch.nn.MSELoss(),), columns, None, "loss: got 'MSELoss'"),
    ):
        with pytest.raises(InputError, match=message):
            OmniContrastiveAdapter(model, *arguments)(given, labels)
