"""A transformers ``Trainer`` whose batches are drawn at a temperature: a large and a small domain, half of the steps at 5, half at 1.

    python examples/transformers_cooldown.py

The hook is one method, ``_get_train_sampler``. Two things to know: accelerate splits batches among processes by itself, so the sampler is
told that it is alone; and the step of a schedule is a batch of all processes together.
"""

import tempfile

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, PrinterCallback, Trainer, TrainingArguments

from counterpoise.data import TemperatureSampler
from counterpoise.schedules import Cooldown

STEPS, BATCH = 40, 16
SIZES = {"large": 1000, "small": 40}

domains = np.repeat(list(SIZES), list(SIZES.values()))
generator = torch.Generator().manual_seed(0)
words = torch.randint(2, 50, (len(domains), 6), generator=generator)
examples = [
    {"input_ids": line, "labels": int(line.sum() % 2), "row": row}  # your tokenized texts; the row only shows what was drawn
    for row, line in enumerate(words)
]


class CooldownTrainer(Trainer):
    def _get_train_sampler(self, train_dataset=None):
        return TemperatureSampler(
            domains,
            tau=Cooldown(tau_hi=5.0, tau_lo=1.0, switch=0.5, total_steps=self.args.max_steps),
            batch_size=self.args.train_batch_size * self.args.world_size,
            generator=self.args.seed,
            num_replicas=1,
            rank=0,
        )


drawn = []


def collate(batch):
    drawn.append(sum(domains[example["row"]] == "small" for example in batch))
    return {"input_ids": torch.stack([e["input_ids"] for e in batch]), "labels": torch.tensor([e["labels"] for e in batch])}


if __name__ == "__main__":
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=STEPS,
            per_device_train_batch_size=BATCH,
            seed=0,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=True,
        )
        model = BertForSequenceClassification(config)
        trainer = CooldownTrainer(model, arguments, train_dataset=examples, data_collator=collate)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    hot, cold = drawn[: STEPS // 2], drawn[STEPS // 2 : STEPS]
    print(
        f"of {BATCH} examples in a batch, {np.mean(hot):.1f} were of the small domain in the first half, {np.mean(cold):.1f} in the second"
    )
