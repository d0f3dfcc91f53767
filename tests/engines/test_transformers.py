"""transformers: a small BERT of random weights on real messages, with and without the callback, and what TensorBoard shows."""

from __future__ import annotations

import gzip
import re
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from counterpoise import Groups
from counterpoise._errors import InputError
from counterpoise.diagnostics import examine
from counterpoise.engines._diagnosing import scalars

transformers = pytest.importorskip("transformers", reason="needs the extra: pip install 'counterpoise[text]'")
pytest.importorskip("accelerate", reason="needs the extra: pip install 'counterpoise[text]'")

from counterpoise.engines.transformers import DiagnosisCallback, _losses  # noqa: E402

WORDS, LENGTH, PADDING, UNKNOWN = 300, 16, 0, 1


@pytest.fixture(scope="module")
def messages(data_folder) -> list[dict]:
    """The first thousand SMS: 13 % are spam."""
    with gzip.open(data_folder / "sms-spam" / "SMSSpamCollection.gz", "rt", encoding="utf-8") as file:
        lines = [line.rstrip("\n").split("\t", 1) for line in file][:1000]
    texts = [re.findall(r"[a-z]+|[0-9]|[^\w\s]", text.lower()) for _, text in lines]
    frequent = Counter(word for words in texts for word in words).most_common(WORDS - 2)
    number = {word: i for i, (word, _) in enumerate(frequent, start=2)}
    return [
        {"input_ids": [number.get(word, UNKNOWN) for word in words[:LENGTH]] or [UNKNOWN], "labels": int(kind == "spam")}
        for words, (kind, _) in zip(texts, lines, strict=True)
    ]


def padded(rows: list[dict]) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [PADDING] * (longest - len(row["input_ids"])) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != PADDING).long(), "labels": torch.tensor([row["labels"] for row in rows])}


def next_words(rows: list[dict]) -> dict[str, torch.Tensor]:
    batch = padded(rows)
    return batch | {"labels": batch["input_ids"].masked_fill(batch["input_ids"] == PADDING, -100)}


SIZES = {"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def bert(kind: str = "ForSequenceClassification", **options) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES, max_position_embeddings=LENGTH, **options)
    return getattr(transformers, f"Bert{kind}")(config)


def llama() -> torch.nn.Module:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, max_position_embeddings=LENGTH))


def trainer_of(folder, model, rows, *, kind=None, collate=padded, **options):
    settings = {
        "max_steps": 10,
        "per_device_train_batch_size": 16,
        "logging_steps": 5,
        "learning_rate": 1e-3,
        "report_to": "none",
    } | options
    arguments = transformers.TrainingArguments(
        str(folder), use_cpu=True, seed=0, save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, **settings
    )
    return (kind or transformers.Trainer)(model, arguments, train_dataset=rows, data_collator=collate)


@pytest.mark.parametrize("options", [{}, {"bf16": True, "gradient_accumulation_steps": 2}], ids=["float32", "bf16-accumulated"])
def test_training_is_the_same_bit_for_bit(options, messages, tmp_path) -> None:
    models, after, logs = [], [], []
    for callback in (None, DiagnosisCallback(every=5)):
        model = bert(num_labels=2)
        trainer = trainer_of(tmp_path, model, messages, **options)
        if callback:
            assert callback.attach(trainer) is callback and callback.attach(trainer) is callback
            assert trainer.callback_handler.callbacks.count(callback) == 1
        trainer.train()
        models.append(model)
        after.append((torch.rand(()).item(), np.random.rand()))
        own = [log for log in trainer.state.log_history if "counterpoise/norm" not in log]
        logs.append([{name: value for name, value in log.items() if "runtime" not in name and "second" not in name} for log in own])
    assert [found.step for found in callback.diagnoses] == [0, 5, 10]
    assert after[0] == after[1]
    plain, watched = models
    for (name, a), b in zip(plain.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert all(p.requires_grad for p in watched.parameters()) and watched.training == plain.training
    assert logs[0] == logs[1] and len(logs[0]) == 3  # the trainer's own loss is logged as often, at the same steps


def test_tensorboard_shows_what_was_measured(messages, tmp_path, monkeypatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    model = bert(id2label={0: "ham", 1: "spam"}, label2id={"ham": 0, "spam": 1})
    trainer = trainer_of(tmp_path, model, messages, report_to="tensorboard", max_steps=7)
    callback = DiagnosisCallback(every=5, batch=128).attach(trainer)
    trainer.train()
    assert [found.step for found in callback.diagnoses] == [0, 5, 7]
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    shown = {(tag, e.step): e.value for tag in events.Tags()["scalars"] if "counterpoise/" in tag for e in events.Scalars(tag)}
    expected = {(f"train/{tag}", d.step): pytest.approx(value, rel=1e-6) for d in callback.diagnoses for tag, value in scalars(d).items()}
    assert shown == expected
    assert ("train/counterpoise/share/spam", 0) in shown and callback.diagnoses[0].kind == "class"
    assert shown["train/counterpoise/share/spam", 0] + shown["train/counterpoise/share/ham", 0] == pytest.approx(1, abs=1e-5)
    assert [e.step for e in events.Scalars("train/loss")] == [5]
    assert len(list((tmp_path / "events").iterdir())) == 1  # nothing is written after the reporting callbacks have closed their file


def test_a_diagnosis_is_what_examine_says_of_the_model_then(messages, tmp_path) -> None:
    model = bert(num_labels=2)
    probe = padded(messages[:200])
    trainer = trainer_of(tmp_path, model, messages, bf16=True)
    callback = DiagnosisCallback(every=1000, probe=probe).attach(trainer)
    trainer.train()
    alone = bert(num_labels=2)
    alone.load_state_dict(model.state_dict())
    by_hand = examine(
        alone.eval(),
        None,
        [probe],
        groups="labels",
        forward=lambda model, batch: model(batch["input_ids"], batch["attention_mask"]).logits,
        loss=lambda logits, batch: F.cross_entropy(logits, batch["labels"], reduction="none"),
    )
    last = callback.diagnoses[-1]
    assert last.step == 10 and last.per_group.equals(by_hand.per_group)  # in float32: autocast is left out
    assert callback.diagnoses[0].per_group["loss"].mean() > last.per_group["loss"][0]  # it has learned


def test_without_its_trainer_it_explains_itself(messages, tmp_path) -> None:
    trainer = trainer_of(tmp_path, bert(num_labels=2), messages)
    trainer.add_callback(DiagnosisCallback())
    with pytest.raises(InputError, match=r"callbacks: got .*without its trainer; expected DiagnosisCallback\(...\).attach\(trainer\)"):
        trainer.train()
    with pytest.raises(InputError, match=r"trainer: got 'BertForSequenceClassification'; expected a transformers.Trainer"):
        DiagnosisCallback().attach(trainer.model)


def test_groups_of_ones_own(messages, tmp_path) -> None:
    long = Groups.from_labels(["long" if len(row["input_ids"]) == LENGTH else "short" for row in messages], kind="domain")
    trainer = trainer_of(tmp_path, bert(num_labels=2), messages, max_steps=1)
    callback = DiagnosisCallback(groups=long, batch=100).attach(trainer)
    trainer.train()
    first = callback.diagnoses[0]
    assert first.shares.names == ("long", "short") and first.kind == "domain" and first.per_group["count"].sum() == 100
    lengths = [int(row.sum()) for batch in callback._fixed[0] for row in batch["attention_mask"]]
    assert [length == LENGTH for length in lengths] == [i == 0 for i in first.sketch.groups.tolist()]
    trainer = trainer_of(tmp_path, bert(num_labels=2), messages, max_steps=1)
    callback = DiagnosisCallback(groups="language").attach(trainer)
    with pytest.raises(InputError, match="groups: got 'language'; expected a key of the batch, one of input_ids"):
        trainer.train()


def test_a_language_model_is_measured_by_sequences(messages, tmp_path) -> None:
    trainer = trainer_of(tmp_path, llama(), messages, collate=next_words, max_steps=2)
    callback = DiagnosisCallback(every=1, batch=8, groups=lambda batch: (batch["attention_mask"].sum(dim=1) == LENGTH).long()).attach(
        trainer
    )
    everything = DiagnosisCallback(every=2, batch=8).attach(trainer)
    trainer.train()
    assert [found.step for found in callback.diagnoses] == [0, 1, 2]
    assert everything.diagnoses[0].shares.names == ("all",)  # labels are tokens
    torch.testing.assert_close(everything.diagnoses[0].sketch.losses, callback.diagnoses[0].sketch.losses)


# The default loss is the model's own: of one sequence at a time where lengths differ, since a trainer averages over the tokens of a batch.
CASES = {
    "classes": (lambda: bert(num_labels=3), torch.tensor([0, 2, 1])),
    "number": (lambda: bert(num_labels=1), torch.tensor([0.3, -1.0, 2.0])),
    "several labels": (lambda: bert(num_labels=2), torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])),
    "tokens": (lambda: bert("ForTokenClassification", num_labels=2), torch.tensor([[0, 1, -100, 1], [1, 1, 0, -100], [0, 0, 0, 1]])),
    "masked words": (lambda: bert("ForMaskedLM"), torch.tensor([[-100, 7, -100, -100], [3, -100, 9, 4], [-100, -100, -100, 5]])),
    "next words": (llama, torch.tensor([[4, 7, 9, -100], [3, 8, -100, -100], [5, 6, 7, 8]])),
    "next words, older": (
        lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=WORDS, n_embd=16, n_layer=1, n_head=2, n_positions=8, bos_token_id=1, eos_token_id=1)
        ),
        torch.tensor([[4, 7, 9, -100], [3, 8, -100, -100], [5, 6, 7, 8]]),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_default_loss_is_the_models_own(name) -> None:
    make, labels = CASES[name]
    model = make().eval()
    ids = torch.tensor([[4, 7, 9, 2], [3, 8, 2, 2], [5, 6, 7, 8]])
    with torch.no_grad():
        ours = _losses(model, model(input_ids=ids).logits, labels)
        theirs = [model(input_ids=ids[i : i + 1], labels=labels[i : i + 1]).loss for i in range(3)]
    torch.testing.assert_close(ours, torch.stack(theirs))


def test_a_sequence_without_labels_costs_nothing() -> None:
    model = bert("ForMaskedLM").eval()
    assert _losses(model, torch.zeros(2, 3, WORDS), torch.tensor([[-100] * 3, [1, -100, -100]])).tolist() == [
        0.0,
        pytest.approx(np.log(WORDS)),
    ]


def test_a_loss_that_is_not_known_is_asked_for(messages, tmp_path) -> None:
    class Weighted(transformers.Trainer):
        def compute_loss(self, *args, **kwargs):
            pytest.fail("training has begun")

    own = {"label_smoothing_factor": 0.1}, {"kind": Weighted}
    for options, words in zip(own, ("label smoothing", "compute_loss of Weighted"), strict=True):
        trainer = trainer_of(tmp_path, bert(num_labels=2), messages, **options)
        DiagnosisCallback().attach(trainer)
        with pytest.raises(InputError, match=f"loss: got None; expected loss=lambda output, batch: .* since the trainer uses {words}"):
            trainer.train()
    with pytest.raises(InputError, match=r"for BertForMaskedLM with logits of shape \(2, 3, 4, 5\) and labels of shape \(2, 3\)"):
        _losses(bert("ForMaskedLM"), torch.zeros(2, 3, 4, 5), torch.zeros(2, 3))


def test_a_given_loss_is_taken(messages, tmp_path) -> None:
    trainer = trainer_of(tmp_path, bert(num_labels=2), messages, label_smoothing_factor=0.1, max_steps=1)
    callback = DiagnosisCallback(
        probe=padded(messages[:50]),
        loss=lambda logits, batch: F.cross_entropy(logits, batch["labels"], reduction="none", label_smoothing=0.1),
    ).attach(trainer)
    trainer.train()
    logits = trainer.model.eval()(**{k: v for k, v in padded(messages[:50]).items() if k != "labels"}).logits
    expected = F.cross_entropy(logits, padded(messages[:50])["labels"], reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(callback.diagnoses[-1].sketch.losses, expected.double(), rtol=1e-5, atol=1e-6)


def test_sharded_parameters_are_refused(messages, tmp_path) -> None:
    trainer = trainer_of(tmp_path, bert(num_labels=2), messages)
    DiagnosisCallback().attach(trainer)
    trainer.is_fsdp_enabled = True
    with pytest.raises(InputError, match="trainer: got one that shards parameters"):
        trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)
