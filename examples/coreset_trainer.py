"""Half of every batch, chosen by gradients: a transformers ``Trainer`` on math word problems of five sources of very different sizes.

    COUNTERPOISE_DATA=FOLDER python examples/coreset_trainer.py [STEPS]

FOLDER holds math-word-problems/: GSM8K (gsm8k_train.jsonl.gz), MAWPS (mawps_train.csv.gz), ASDiv (asdiv-a_train.csv.gz), SVAMP
(svamp.json.gz) and AQuA (aqua_dev.jsonl.gz). A small Llama with random weights learns to continue the questions, so that nothing has to be
downloaded. Each batch of 48 is a pool; ``training_step`` takes features of it, hands 24 of it on, and cuts their padding to the longest.

Features are gradients at the value projection of the last attention. Where peft has put LoRA there, name its second matrix:
"base_model.model.model.layers.1.self_attn.v_proj.lora_B.default" is smaller, and all that is trained.

What to look at: four of the five sources are below the mean size and kept whole, so that the largest gives up half of its share. That is
the rule of the paper; pass ``keep_small={...}`` for one of your own.
"""

import csv
import gzip
import io
import json
import os
import re
import sys
import tempfile
from collections import Counter
from itertools import chain
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments

from counterpoise.data import MiniBatchCoreset
from counterpoise.diagnostics import gradient_features

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 40
POOL, BUDGET, WORDS, LENGTH, PADDING, UNKNOWN, IGNORED = 48, 24, 1000, 48, 0, 1, -100
SOURCES = {
    "GSM8K": ("gsm8k_train.jsonl.gz", "question"),
    "MAWPS": ("mawps_train.csv.gz", "Question"),
    "ASDiv": ("asdiv-a_train.csv.gz", "Question"),
    "SVAMP": ("svamp.json.gz", "Body"),
    "AQuA": ("aqua_dev.jsonl.gz", "question"),
}


def questions():
    """{source: texts}."""
    found = {}
    for source, (name, column) in SOURCES.items():
        path = Path(os.environ.get("COUNTERPOISE_DATA", "")) / "math-word-problems" / name
        if not path.is_file():
            sys.exit(f"{path} is not there: set COUNTERPOISE_DATA to a folder that holds math-word-problems/ (see the top of this file).")
        text = gzip.decompress(path.read_bytes()).decode("utf-8")
        if ".csv" in name:
            rows = csv.DictReader(io.StringIO(text))
        else:
            rows = map(json.loads, text.splitlines()) if ".jsonl" in name else json.loads(text)
        found[source] = [row[column] for row in rows]
    return found


def numbered(texts):
    """Words as numbers: your tokenizer."""
    words = [re.findall(r"[a-z]+|[0-9]|[^\w\s]", text.lower())[:LENGTH] for text in texts]
    number = {word: i for i, (word, _) in enumerate(Counter(chain.from_iterable(words)).most_common(WORDS - 2), start=2)}
    return [[number.get(word, UNKNOWN) for word in line] for line in words]


def collate(rows):
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row["ids"]) for row in rows], batch_first=True, padding_value=PADDING)
    seen = ids != PADDING
    labels = ids.masked_fill(~seen, IGNORED)
    return {"input_ids": ids, "attention_mask": seen.long(), "labels": labels, "source": torch.tensor([row["source"] for row in rows])}


def example_losses(model, batch):
    """(L,) the mean over the words of each example. A mean over all words of the batch would weigh long questions more."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    losses = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
    return losses.sum(dim=1) / (labels != IGNORED).sum(dim=1).clamp_min(1)


class CoresetTrainer(Trainer):
    """Each batch is a pool of which the selector's choice is trained on."""

    def __init__(self, *arguments, selector, layer, **options):
        super().__init__(*arguments, **options)
        self.selector, self.layer = selector, layer
        self.counts = {"in the pools": Counter(), "trained on": Counter()}

    def training_step(self, model, inputs, num_items_in_batch=None):
        inputs = self._prepare_inputs(inputs)
        sources = inputs.pop("source")
        rows = self.selector(gradient_features(model, example_losses, inputs, self.layer), sources)
        longest = int(inputs["attention_mask"][rows].sum(dim=1).max())
        for where, own in (("in the pools", sources), ("trained on", sources[rows])):
            self.counts[where].update(own.tolist())
        return super().training_step(model, {name: tensor[rows, :longest] for name, tensor in inputs.items()}, None)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return example_losses(model, inputs).mean()


def train(texts):
    torch.manual_seed(0)
    ids = numbered(chain.from_iterable(texts.values()))
    source = chain.from_iterable([q] * len(own) for q, own in enumerate(texts.values()))
    rows = [{"ids": line, "source": q} for line, q in zip(ids, source, strict=True) if len(line) > 1]
    config = LlamaConfig(vocab_size=WORDS, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=STEPS,
            per_device_train_batch_size=POOL,
            learning_rate=3e-3,
            remove_unused_columns=False,  # the source goes with every example
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            log_level="error",
        )
        trainer = CoresetTrainer(
            LlamaForCausalLM(config),
            arguments,
            train_dataset=rows,
            data_collator=collate,
            selector=MiniBatchCoreset(BUDGET, [len(own) for own in texts.values()]),
            layer="model.layers.1.self_attn.v_proj",
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer


if __name__ == "__main__":
    texts = questions()
    print("Questions: " + ", ".join(f"{name} {len(own):,}" for name, own in texts.items()))
    trainer = train(texts)
    print(f"Kept whole: {', '.join(list(texts)[q] for q in sorted(trainer.selector.small))}")
    print(f"{'source':8s}" + "".join(f"{where:>14s}" for where in trainer.counts))
    for q, name in enumerate(texts):
        shares = [count[q] / sum(count.values()) for count in trainer.counts.values()]
        print(f"{name:8s}" + "".join(f"{share:14.1%}" for share in shares))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss of what was trained on: {losses[0]:.2f} at first, {losses[-1]:.2f} after {STEPS} steps of {BUDGET} out of {POOL}")
