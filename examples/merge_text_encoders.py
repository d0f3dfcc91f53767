"""One text encoder out of two: similarity of sentences, and questions with the same intent, merged where a probe loss is lowest.

    COUNTERPOISE_DATA=FOLDER python examples/merge_text_encoders.py [STEPS]

FOLDER holds stsb-dir/ (STS benchmark: train_new.tsv.gz, test_new.tsv.gz) and intents/ (BANKING77: banking77_train.csv.gz,
banking77_test.csv.gz). A small BERT with random weights and a tokenizer of whole words are made here, so that nothing is downloaded; with
models of your own, everything from `probe` on is the same.

The encoder first learns to find texts of which half of the words are gone. From there, one copy learns similarity and one learns intents; a
third learns both in turn, with as many steps as both together. Merges see the two models and, for Self Positioning, 256 examples of each
task that no model was trained on.

What to look at: a merge is between its models, and the joint model is what it has to compete with where the data could be joined.
"""

import copy
import csv
import gzip
import io
import itertools
import os
import random
import re
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import torch
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from transformers.utils import logging

from counterpoise.engines.sentence_transformers import ProbeTask, TaskProbe, merge_sentence_transformers
from counterpoise.weights import SelfPositioning, task_vector_report

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 120
WORDS, WIDTH, LENGTH, BATCH, PROBE, RATE = 3000, 64, 16, 64, 256, 3e-3
FILES = ("stsb-dir/train_new.tsv.gz", "stsb-dir/test_new.tsv.gz", "intents/banking77_train.csv.gz", "intents/banking77_test.csv.gz")


def tables():
    """Rows of each file, as dicts."""
    found = []
    for name in FILES:
        path = Path(os.environ.get("COUNTERPOISE_DATA", "")) / name
        if not path.is_file():
            sys.exit(
                f"{path} is not there: set COUNTERPOISE_DATA to a folder that holds stsb-dir/ and intents/ (see the top of this file)."
            )
        text = io.StringIO(gzip.decompress(path.read_bytes()).decode("utf-8"))
        found.append(list(csv.DictReader(text, delimiter="\t", quoting=csv.QUOTE_NONE) if "tsv" in name else csv.DictReader(text)))
    return found


def similarity(rows):
    """Two columns of sentences, and how alike they are, in [0, 1]."""
    columns = [row["sentence1"] for row in rows], [row["sentence2"] for row in rows]
    return ProbeTask(columns, CoSENTLoss, labels=[float(row["score"]) / 5 for row in rows], weight=0.5)


def same_intent(rows, draw):
    """Every question with another one of its intent."""
    by_intent = defaultdict(list)
    for row in rows:
        by_intent[row["category"]].append(row["text"])
    pairs = [(text, other) for own in by_intent.values() for text, other in zip(own, draw.sample(own, len(own)), strict=True)]
    return ProbeTask(tuple(zip(*pairs, strict=True)), MultipleNegativesRankingLoss)


def encoder(texts):
    """A BERT of one layer, with random weights, over the most common words."""
    words = [
        word
        for word, _ in Counter(itertools.chain.from_iterable(re.findall(r"\w+|[^\w\s]", text.lower()) for text in texts)).most_common(WORDS)
    ]
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    vocabulary = {word: number for number, word in enumerate([*special.values(), *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=4, intermediate_size=2 * WIDTH,
        max_position_embeddings=LENGTH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LENGTH, **special).save_pretrained(folder)
        return SentenceTransformer(modules=[Transformer(folder, max_seq_length=LENGTH), Pooling(WIDTH)], device="cpu")


def trained(model, tasks, steps, seed):
    """A copy of the model after some steps on batches of the tasks in turn."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    batches = TaskProbe(model, tasks, batch_size=BATCH, seed=seed)
    for batch in itertools.islice(itertools.chain.from_iterable(itertools.repeat(batches)), steps):
        optimizer.zero_grad()
        batches.loss(model, batch).backward()
        optimizer.step()
    return model.eval()


def scores(model, pairs, questions):
    """Spearman's correlation with the similarities, and how often the nearest other question has the same intent."""
    first, second = (model.encode(column, convert_to_tensor=True, normalize_embeddings=True) for column in pairs.columns)
    correlation = spearmanr((first * second).sum(dim=1).numpy(), pairs.labels).statistic
    texts = model.encode([row["text"] for row in questions], convert_to_tensor=True, normalize_embeddings=True)
    nearest = (texts @ texts.T).fill_diagonal_(-1).argmax(dim=1)
    hits = sum(questions[i]["category"] == questions[int(j)]["category"] for i, j in enumerate(nearest))
    return correlation, hits / len(questions)


if __name__ == "__main__":
    torch.manual_seed(0)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    draw = random.Random(0)
    pairs, pairs_to_test, questions, questions_to_test = tables()
    draw.shuffle(pairs)
    draw.shuffle(questions)
    test = similarity(pairs_to_test), draw.sample(questions_to_test, 600)

    texts = [row["sentence1"] for row in pairs] + [row["text"] for row in questions]
    print(f"{len(pairs):,} pairs of sentences, {len(questions):,} questions with {len({row['category'] for row in questions})} intents")
    thinned = [" ".join(word for word in text.split() if draw.random() < 0.5) for text in texts]
    base = trained(encoder(texts), {"thinned": ProbeTask((texts, thinned), MultipleNegativesRankingLoss)}, STEPS, seed=0)

    probe = TaskProbe(base, {"similarity": similarity(pairs[:PROBE]), "intents": same_intent(questions[:PROBE], draw)}, batch_size=BATCH)
    tasks = {"similarity": similarity(pairs[PROBE:]), "intents": same_intent(questions[PROBE:], draw)}
    models = [trained(base, {name: task}, STEPS, seed=1) for name, task in tasks.items()]
    joint = trained(base, tasks, 2 * STEPS, seed=1)

    print(task_vector_report(base, models, joint=joint).summary())
    found = SelfPositioning().fit(base, models, probe, probe.loss, steps=max(STEPS // 2, 2))
    print(f"Self Positioning: {found.summary()}\n")
    merged = copy.deepcopy(base)
    merged.load_state_dict(found.state_dict)
    rows = {
        "base": base,
        "similarity alone": models[0],
        "intents alone": models[1],
        "average": merge_sentence_transformers(base, models),
        "sum": merge_sentence_transformers(base, models, "arithmetic"),
        "Self Positioning": merged,
        "both, trained jointly": joint,
    }
    print(f"{'':24s}{'similarity, Spearman':>22s}{'intents, nearest':>18s}")
    for name, model in rows.items():
        correlation, hits = scores(model, *test)
        print(f"{name:24s}{correlation:22.3f}{hits:18.1%}")
