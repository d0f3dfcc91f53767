"""A language model that learns arithmetic by rewards from answers of its own past: TRL's GRPO, and BAPO, whose clip moves.

    pip install 'counterpoise[trl]'
    COUNTERPOISE_DATA=FOLDER python examples/bapo_arithmetic.py [STEPS]

FOLDER holds math-word-problems/svamp.json.gz: the sums and differences of small numbers that the problems of SVAMP come to. Nothing is
downloaded: the model is a Llama of two layers that has seen each of them a few times, so that some of its answers are right. Every rollout
is used for eight optimizer steps, which is what makes clips matter: at the first of them all ratios are 1.

With a model and problems of your own, two lines change: BAPOTrainer for GRPOTrainer, BAPOConfig for GRPOConfig.

What to look at: `share` is that of tokens with a positive advantage. Where it falls below 0.4, the high bound is raised from 1.2 on, up to
3.0, and then the low one. With so short a training and one seed, the rewards of the two do not say which is better; for
that, see `counterpoise replicate bapo`, where a fixed wide clip is the one to beat.
"""

import gzip
import json
import os
import random
import re
import sys
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from counterpoise.reinforcement import BAPOConfig, BAPOTrainer
from datasets import Dataset

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 64
LARGEST, WARM_UP, USES = 10, 35, 8
CHARACTERS = ["<pad>", "<eos>", *"0123456789+-="]


def problems():
    """Prompts such as "8-3=", and their answers."""
    path = Path(os.environ.get("COUNTERPOISE_DATA", "")) / "math-word-problems" / "svamp.json.gz"
    if not path.is_file():
        sys.exit(f"{path} is not there: set COUNTERPOISE_DATA to a folder that holds math-word-problems/ (see the top of this file).")
    found = {}
    for row in json.loads(gzip.decompress(path.read_bytes())):
        parts = re.fullmatch(r"\( (\d+)\.0 ([-+]) (\d+)\.0 \)", row["Equation"])
        if parts and max(int(parts[1]), int(parts[3])) < LARGEST:
            found[f"{parts[1]}{parts[2]}{parts[3]}="] = str(int(row["Answer"]))
    return found


def tokenizer():
    """One token for each character."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(CHARACTERS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def warmed_up(answers, words):
    """A small model that has read problems with their answers for a moment: it knows what an answer looks like, and a few of them."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(CHARACTERS), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            pad_token_id=words.pad_token_id, eos_token_id=words.eos_token_id, bos_token_id=words.eos_token_id,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    texts = [f"{prompt}{answer}<eos>" for prompt, answer in answers.items()]
    draw = random.Random(0)
    for _ in range(WARM_UP):
        batch = words(draw.sample(texts, 32), return_tensors="pt", padding=True)
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        loss = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def is_right(completions, answer, **_):
    return [float(text.strip() == right) for text, right in zip(completions, answer, strict=True)]


def train(trainer_class, config_class, model, words, data):
    with tempfile.TemporaryDirectory() as folder:
        arguments = config_class(
            folder,
            max_steps=STEPS,
            per_device_train_batch_size=32,
            steps_per_generation=USES,  # a rollout of 8 x 32 answers ...
            gradient_accumulation_steps=1,  # ... is used for 8 optimizer steps
            num_generations=8,
            max_completion_length=4,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=None,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            log_level="error",
        )
        trainer = trainer_class(model=model, reward_funcs=is_right, args=arguments, train_dataset=data, processing_class=words)
        trainer.remove_callback(PrinterCallback)
        began = time.perf_counter()
        trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row], time.perf_counter() - began


if __name__ == "__main__":
    answers, words = problems(), tokenizer()
    data = Dataset.from_dict({"prompt": list(answers), "answer": list(answers.values())})
    print(f"{len(answers)} sums and differences of SVAMP, {STEPS} optimizer steps, {USES} for each rollout")
    for name, trainer_class, config_class in (("GRPO", GRPOTrainer, GRPOConfig), ("BAPO", BAPOTrainer, BAPOConfig)):
        rows, seconds = train(trainer_class, config_class, warmed_up(answers, words), words, data)
        print(f"\n{name}, {seconds:.1f} s\n  steps   reward  entropy" + ("  low bound  high bound  share" if name == "BAPO" else ""))
        for first in range(0, STEPS, USES):
            part = rows[first : first + USES]

            def mean(key, part=part):
                known = [row[key] for row in part if row.get(key) is not None]
                return sum(known) / max(len(known), 1)

            line = f"{first + 1:3d}-{first + len(part):3d} {mean('reward'):8.2f} {mean('entropy'):8.2f}"
            if name == "BAPO":
                line += f" {mean('bapo/clip_low'):10.2f} {mean('bapo/clip_high'):11.2f} {mean('bapo/share'):6.2f}"
            print(line)
