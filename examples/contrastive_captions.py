"""Pictures and captions trained end to end, with hard negative captions that are made while loading: a plain PyTorch loop.

    python examples/contrastive_captions.py          # about ten seconds
    python examples/contrastive_captions.py 600      # more steps

A picture shows two of scikit-learn's handwritten digits in a row, with noise; its caption says, say, "maybe a seven left of an eight". Two
parts are new in a loop like this: ConcreteNegatives in the data set, which edits each caption where it is most concrete, and CementLoss,
which lets the edited caption weigh in the softmax. Trained twice, without and with them, and tested on digits that were not trained on.
"""

import sys

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset

from counterpoise.data import ConcreteNegatives
from counterpoise.losses import CementLoss
from counterpoise.text import ConcretenessLexicon

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
FILLERS = ["maybe", "surely", "clearly", "probably"]  # which no picture shows
VOCABULARY = {word: number for number, word in enumerate([*DIGITS, *FILLERS, "a", "an", "left", "of"])}
STEPS, BATCH = 300, 64

# How concrete words are, from 0 to 1. For English at large: ConcretenessLexicon.from_csv(...) of the ratings of Brysbaert et al.
lexicon = ConcretenessLexicon(dict.fromkeys(DIGITS, 0.9) | dict.fromkeys(FILLERS, 0.2))
# What may stand in a word's place. Without candidates=, lists of everyday English are used.
candidates = {word: [other for other in words if other != word] for words in (DIGITS, FILLERS) for word in words}
negatives = ConcreteNegatives(lexicon, candidates=candidates, generator=0)

digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32)


class Scenes(Dataset):
    """Pictures (8, 16) of two digits each, captions, hard negative captions, and how concrete the edit was."""

    def __init__(self, rows, size, seed):
        rng = np.random.default_rng(seed)
        self.pairs = rng.choice(rows, (size, 2))
        self.fillers = rng.choice(FILLERS, size)
        self.noise = torch.tensor(0.15 * rng.normal(size=(size, 8, 16)), dtype=torch.float32)

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        left, right = (DIGITS[k] for k in digits.target[self.pairs[i]])
        caption = f"{self.fillers[i]} {article(left)} {left} left of {article(right)} {right}"
        hard = negatives(caption)  # never None here: every caption has words that are rated
        picture = torch.cat(list(images[self.pairs[i]]), dim=1) + self.noise[i]
        return picture, tokens(caption), tokens(hard.text), hard.concreteness


def article(word):
    return "an" if word == "eight" else "a"


def tokens(caption):
    return torch.tensor([VOCABULARY[word] for word in caption.split()])


class Tower(nn.Module):
    """The mean over places of a ReLU of what is there and where: order is a weak signal, as for large models."""

    def __init__(self, embed, places):
        super().__init__()
        self.embed, self.place, self.out = embed, nn.Parameter(0.2 * torch.randn(places, 64)), nn.Linear(64, 32)

    def forward(self, x):
        return self.out((self.embed(x) + self.place).relu().mean(dim=1))


def halves(pictures):
    """(B, 2, 64) patches."""
    return torch.stack(pictures.split(8, dim=2), dim=1).flatten(2)


def train(margin, steps):
    """``margin=None``: without hard negatives."""
    torch.manual_seed(0)
    picture_tower, caption_tower = Tower(nn.Linear(64, 64), 2), Tower(nn.Embedding(len(VOCABULARY), 64), 7)
    log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
    optimizer = torch.optim.Adam([*picture_tower.parameters(), *caption_tower.parameters(), log_scale], lr=1e-3)
    loader = DataLoader(Scenes(np.arange(1297), steps * BATCH, seed=1), batch_size=BATCH)  # workers give the same negatives
    loss = CementLoss(margin or 0.0)
    for pictures, captions, hard, concreteness in loader:
        same = (captions[:, None] == captions[None]).all(dim=2)  # the same caption of another picture is no negative
        x, t = picture_tower(halves(pictures)), caption_tower(captions)
        h, c = (None, None) if margin is None else (caption_tower(hard), concreteness)
        value = loss(x, t, h, log_scale, c, duplicate_mask=same, scale_is_log=True)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return picture_tower, caption_tower, loss.last


@torch.no_grad()
def test(picture_tower, caption_tower):
    """Share of new pictures that prefer their caption to the one with the two digits exchanged."""
    pictures, captions, _, _ = next(iter(DataLoader(Scenes(np.arange(1297, 1797), 1000, seed=2), batch_size=1000)))
    exchanged = captions[:, [0, 1, 6, 3, 4, 5, 2]]
    x, right, wrong = (
        nn.functional.normalize(rows) for rows in (picture_tower(halves(pictures)), *map(caption_tower, (captions, exchanged)))
    )
    differ = captions[:, 2] != captions[:, 6]
    return ((x * right).sum(dim=1) > (x * wrong).sum(dim=1))[differ].float().mean().item()


if __name__ == "__main__":
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else STEPS
    for caption in ("maybe a seven left of an eight", "surely a two left of a two"):
        edited = negatives(caption)
        print(f"{caption!r} becomes {edited.text!r} ({edited.op}, concreteness {edited.concreteness:.1f})")
    for name, margin in (("no hard negatives", None), ("hard negatives, no margin", 0.0), ("hard negatives, Cement", 3.0)):
        *towers, shares = train(margin, steps)
        print(f"\n{name}: {test(*towers):.1%} tell which digit is on the left")
        print(shares.summary())
