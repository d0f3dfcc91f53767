"""Half of every batch, chosen by LoRA's gradients: a transformers ``Trainer`` on math word problems of five sources of unequal size.

    pip install 'counterpoise[text]'
    COUNTERPOISE_DATA=FOLDER python examples/coreset_trainer.py [STEPS]

FOLDER holds math-word-problems/: GSM8K (gsm8k_train.jsonl.gz), MAWPS (mawps_train.csv.gz), ASDiv (asdiv-a_train.csv.gz), SVAMP
(svamp.json.gz) and AQuA (aqua_dev.jsonl.gz). Nothing is downloaded: the base is a small Llama that has read a few hundred questions of the
largest source, and LoRA adapts it to answer those of all five. Each batch of 48 is a pool; ``training_step`` takes features of it, hands 24
of it on, and cuts their padding to the longest.

Features are the gradients of what is trained: of LoRA's second matrix at the value projection of the last attention, as in the paper. (The
first matrix has no gradient until the second has left 0.) "...self_attn.v_proj" would take both, "...layers.1" all LoRA of the last block.

What to look at: four of the five sources are below the mean size and kept whole, so that the largest gives up half of its share. In this
short run three small ones are learned while the held-out loss of the largest rises, and AQuA stays what it was: what is kept whole is not
drawn more often. That is the rule of the paper; pass ``keep_small={...}`` for one of your own.
"""

import csv
import gzip
import io
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from itertools import chain
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments

from counterpoise.data import MiniBatchCoreset
from counterpoise.diagnostics import gradient_features

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 40
POOL, BUDGET, WORDS, LENGTH, HELD_OUT, PADDING, UNKNOWN, ANSWER, IGNORED = 48, 24, 1000, 64, 50, 0, 1, 2, -100
LAYER = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.default"
SOURCES = {
    "GSM8K": ("gsm8k_train.jsonl.gz", ("question",), "answer"),
    "MAWPS": ("mawps_train.csv.gz", ("Question",), "Equation"),
    "ASDiv": ("asdiv-a_train.csv.gz", ("Question",), "Equation"),
    "SVAMP": ("svamp.json.gz", ("Body", "Question"), "Equation"),
    "AQuA": ("aqua_dev.jsonl.gz", ("question",), "rationale"),
}


def problems():
    """{source: pairs of question and answer}."""
    found = {}
    for source, (name, question, answer) in SOURCES.items():
        path = Path(os.environ.get("COUNTERPOISE_DATA", "")) / "math-word-problems" / name
        if not path.is_file():
            sys.exit(f"{path} is not there: set COUNTERPOISE_DATA to a folder that holds math-word-problems/ (see the top of this file).")
        text = gzip.decompress(path.read_bytes()).decode("utf-8")
        if ".csv" in name:
            rows = csv.DictReader(io.StringIO(text))
        else:
            rows = map(json.loads, text.splitlines()) if ".jsonl" in name else json.loads(text)
        found[source] = [(" ".join(row[part] for part in question), row[answer]) for row in rows]
    return found


def numbered(pairs):
    """Rows of numbers for the words of a question and its answer, and where the answer begins: your tokenizer."""
    words = [[re.findall(r"[a-z]+|[0-9]|[^\w\s]", text.lower()) for text in pair] for pair in pairs]
    common = Counter(chain.from_iterable(chain.from_iterable(words))).most_common(WORDS - 3)
    number = {word: i for i, (word, _) in enumerate(common, start=3)}
    rows = []
    for question, answer in words:
        # Of a long question the end says what is asked for, and half of the room is for the answer.
        kept = question[-LENGTH // 2 :]
        ids = [*(number.get(word, UNKNOWN) for word in kept), ANSWER, *(number.get(word, UNKNOWN) for word in answer)][:LENGTH]
        rows.append({"ids": ids, "begins": len(kept) + 1})
    return rows


def collate(rows):
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row["ids"]) for row in rows], batch_first=True, padding_value=PADDING)
    begins = torch.tensor([row["begins"] for row in rows])
    asked = torch.arange(ids.shape[1]) < begins[:, None]
    labels = ids.masked_fill((ids == PADDING) | asked, IGNORED)
    return {
        "input_ids": ids,
        "attention_mask": (ids != PADDING).long(),
        "labels": labels,
        "source": torch.tensor([row["source"] for row in rows]),
    }


def example_losses(model, batch):
    """(L,) the mean over the answer of each example. A mean over all words of the batch would weigh long answers more."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    losses = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
    return losses.sum(dim=1) / (labels != IGNORED).sum(dim=1).clamp_min(1)


class CoresetTrainer(Trainer):
    """Each batch is a pool of which the selector's choice is trained on."""

    def __init__(self, *arguments, selector, layer, **options):
        super().__init__(*arguments, **options)
        self.selector, self.layer, self.seconds = selector, layer, 0.0
        self.counts = {"in the pools": Counter(), "trained on": Counter()}

    def training_step(self, model, inputs, num_items_in_batch=None):
        inputs = self._prepare_inputs(inputs)
        sources = inputs.pop("source")
        began = time.perf_counter()
        features = gradient_features(model, example_losses, inputs, self.layer)
        rows = self.selector(features, sources)
        self.seconds += time.perf_counter() - began
        longest = int(inputs["attention_mask"][rows].sum(dim=1).max())
        for where, own in (("in the pools", sources), ("trained on", sources[rows])):
            self.counts[where].update(own.tolist())
        return super().training_step(model, {name: tensor[rows, :longest] for name, tensor in inputs.items()}, None)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return example_losses(model, inputs).mean()


def base_model(rows):
    """A small Llama that continues questions, in place of one that you download."""
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=WORDS, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for start in range(0, 40 * BUDGET, BUDGET):
        batch = collate([row | {"begins": 0} for row in rows[start : start + BUDGET]])
        optimizer.zero_grad()
        example_losses(model, batch).mean().backward()
        optimizer.step()
    return model


@torch.no_grad()
def held_out_losses(model, held_out):
    model.eval()
    return [float(example_losses(model, collate(rows)).mean()) for rows in held_out]


def fine_tune(model, rows, sizes):
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=STEPS,
            per_device_train_batch_size=POOL,
            learning_rate=5e-3,
            warmup_steps=0.03,  # of the steps
            remove_unused_columns=False,  # the source goes with every example
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            log_level="error",
        )
        selector = MiniBatchCoreset(BUDGET, sizes)
        trainer = CoresetTrainer(model, arguments, train_dataset=rows, data_collator=collate, selector=selector, layer=LAYER)
        trainer.remove_callback(PrinterCallback)
        began = time.perf_counter()
        trainer.train()
    return trainer, time.perf_counter() - began


if __name__ == "__main__":
    torch.manual_seed(0)
    found = problems()
    sizes = [len(pairs) for pairs in found.values()]
    print("Problems: " + ", ".join(f"{name} {size:,}" for name, size in zip(found, sizes, strict=True)))
    rows = numbered(chain.from_iterable(found.values()))
    for row, source in zip(rows, chain.from_iterable([q] * size for q, size in enumerate(sizes)), strict=True):
        row["source"] = source
    by_source = [[row for row in rows if row["source"] == q] for q in range(len(sizes))]
    training = [own[HELD_OUT:] for own in by_source]

    model = get_peft_model(base_model(training[0]), LoraConfig(r=8, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear"))
    size = sum(p.numel() for p in model.get_submodule(LAYER).parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"Features: the gradient of {LAYER}, {size} of {trained:,} numbers that are trained")
    before = held_out_losses(model, [own[:HELD_OUT] for own in by_source])
    trainer, seconds = fine_tune(model, list(chain.from_iterable(training)), [len(own) for own in training])
    after = held_out_losses(model, [own[:HELD_OUT] for own in by_source])

    print(f"Kept whole: {', '.join(list(found)[q] for q in sorted(trainer.selector.small))}")
    print(f"{'source':8s}" + "".join(f"{where:>14s}" for where in (*trainer.counts, "loss before", "loss after")))
    for q, name in enumerate(found):
        shares = [count[q] / sum(count.values()) for count in trainer.counts.values()]
        print(f"{name:8s}" + "".join(f"{share:14.1%}" for share in shares) + f"{before[q]:14.2f}{after[q]:14.2f}")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss of what was trained on: {losses[0]:.2f} at first, {losses[-1]:.2f} after {STEPS} steps of {BUDGET} out of {POOL}")
    print(f"{seconds:.1f} s, of which {trainer.seconds:.1f} s to choose")
