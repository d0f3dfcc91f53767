"""A trainer that fits into a test: a small GPT-2 without any past, characters as tokens, sums of digits, rewards on a CPU.

As a script, ``python -m tests.reinforcement.tiny FOLDER STEP``: train into FOLDER, and be killed in STEP.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback

from counterpoise.reinforcement import BAPOConfig, BAPOTrainer
from datasets import Dataset

CHARACTERS = ["<pad>", "<eos>", "<unk>", *"0123456789+="]


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(CHARACTERS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def model() -> GPT2LMHeadModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(CHARACTERS), n_positions=16, n_embd=32, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1, pad_token_id=0,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            )
        )  # fmt: skip


def sums() -> Dataset:
    pairs = [(a, b) for a in range(8) for b in range(8)]
    return Dataset.from_dict({"prompt": [f"{a}+{b}=" for a, b in pairs], "answer": [a + b for a, b in pairs]})


def reward(completions: list[str], answer: list[int], **_: Any) -> list[float]:
    """1 for the sum, and a little for any number: a model without a past would never be rewarded."""
    numbers = [re.sub(r"<\w+>", "", text) for text in completions]
    return [float(text == str(true)) + 0.2 * text.isdigit() - 0.02 * len(text) for text, true in zip(numbers, answer, strict=True)]


def trainer(folder: Path | str, steps: int = 8, trainer_class: Any = BAPOTrainer, config_class: Any = BAPOConfig, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "max_steps": steps, "per_device_train_batch_size": 16, "num_generations": 8, "steps_per_generation": 2, "num_iterations": 2,
        "gradient_accumulation_steps": 1, "max_completion_length": 5, "learning_rate": 5e-3, "lr_scheduler_type": "constant",
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True, "bf16": False,
        "gradient_checkpointing": None, "dataloader_pin_memory": False, "seed": 3, "log_level": "error",
    } | options  # fmt: skip
    made = trainer_class(
        model=model(), reward_funcs=reward, args=config_class(str(folder), **settings), train_dataset=sums(), processing_class=tokenizer()
    )
    made.remove_callback(PrinterCallback)
    return made


class Killed(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.manual_seed(0)
    made = trainer(sys.argv[1], **json.loads(sys.argv[3]))
    made.add_callback(Killed(int(sys.argv[2])))
    made.train()
