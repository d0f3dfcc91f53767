"""Whose training step is it? A transformers ``Trainer`` on messages, most of which are no spam, with the shares in its own TensorBoard.

    python examples/transformers_diagnosis.py [FOLDER]
    tensorboard --logdir FOLDER

Messages from $COUNTERPOISE_DATA/sms-spam, or some made up below if that is not there; a small BERT with random weights, so that nothing
has to be downloaded. What to look at: at first the step is that of the ham, which are many, and works against the spam, whose loss rises.
Then, with real messages, the spam has the larger share, although it is an eighth of them: now it is the louder. Without FOLDER the events
are thrown away.
"""

import gzip
import itertools
import logging
import os
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from counterpoise.engines.transformers import DiagnosisCallback

STEPS, EVERY, BATCH = 96, 8, 32
WORDS, LENGTH, PADDING, UNKNOWN = 1000, 24, 0, 1
NAMES = ("ham", "spam")

logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
logging.getLogger("counterpoise").setLevel(logging.INFO)  # hints, when they are new


def messages():
    """Pairs of a text and "ham" or "spam"."""
    path = Path(os.environ.get("COUNTERPOISE_DATA", "")) / "sms-spam" / "SMSSpamCollection.gz"
    if path.is_file():
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines = [line.rstrip("\n").split("\t", 1) for line in file]
        return [(text, kind) for kind, text in lines]
    who, what, when = (
        ["I", "we", "mum", "Sam", "my boss"],
        ["will call", "can come", "have eaten", "miss you"],
        ["today", "at 5", "later", "soon"],
    )
    ham = [f"{a} {b} {c}, {d}" for a, b, c, d in itertools.product(who, what, when, ["ok?", "see you", "sorry", "love x", "call me"])]
    prize, act = ["a free phone", "500 cash", "a holiday"], ["call 0900", "text WIN", "reply YES"]
    spam = [f"{a} {b}! {c} {d}" for a, b, c, d in itertools.product(["You won", "Claim", "Get"], prize, act, ["now", "today"])]
    return [(text, "ham") for text in ham] + [(text, "spam") for text in spam]


def numbered(texts):
    """Words as numbers: your tokenizer."""
    words = [re.findall(r"[a-z]+|[0-9]|[^\w\s]", text.lower()) for text in texts]
    frequent = Counter(itertools.chain.from_iterable(words)).most_common(WORDS - 2)
    number = {word: i for i, (word, _) in enumerate(frequent, start=2)}
    return [[number.get(word, UNKNOWN) for word in line[:LENGTH]] or [UNKNOWN] for line in words]


def collate(rows):
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True, padding_value=PADDING)
    return {"input_ids": ids, "attention_mask": (ids != PADDING).long(), "labels": torch.tensor([row["labels"] for row in rows])}


def train(folder):
    torch.manual_seed(0)
    texts, kinds = zip(*messages(), strict=True)
    rows = [{"input_ids": ids, "labels": NAMES.index(kind)} for ids, kind in zip(numbered(texts), kinds, strict=True)]
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
        id2label=dict(enumerate(NAMES)),
        label2id={name: i for i, name in enumerate(NAMES)},
    )
    os.environ["TENSORBOARD_LOGGING_DIR"] = folder
    arguments = TrainingArguments(
        folder,
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-3,
        logging_steps=4,
        report_to="tensorboard",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        log_level="error",
    )
    trainer = Trainer(BertForSequenceClassification(config), arguments, train_dataset=rows, data_collator=collate)
    quiet(trainer)

    # Two lines more than without a diagnosis. 64 examples would hold eight of spam: the probe is larger here.
    diagnosis = DiagnosisCallback(every=EVERY, batch=512)
    diagnosis.attach(trainer)
    trainer.train()
    return diagnosis


def quiet(trainer):
    """Logs go to TensorBoard, and not to the terminal as well."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        diagnosis = train(sys.argv[1] if len(sys.argv) > 1 else temporary)
    print(f"\nstep  {'share of the step':>20s}  {'mean loss':>12s}")
    print(f"      {'ham':>9s}  {'spam':>9s}  {'ham':>5s}  {'spam':>5s}")
    for found in diagnosis.diagnoses:
        shares = ["none"] * 2 if found.shares.settled else [f"{share:.0%}" for share in found.per_group["share"]]
        losses = found.per_group["loss"]
        print(f"{found.step:4d}  {shares[0]:>9s}  {shares[1]:>9s}  {losses[0]:5.2f}  {losses[1]:5.2f}")
    print(f"\n{diagnosis.diagnoses[-1].headline}")
