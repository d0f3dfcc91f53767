"""Slipform (arXiv:2604.13313): hard negative captions chosen by concreteness, and a margin for them that grows with it (Cement).

The paper trains CLIP models and reports compositional benchmarks. Neither code nor full text could be had: what is re-tested is our reading
of its abstract, with margins in units of logits that grow linearly with the concreteness of the edit. The problem is of minutes: a picture
shows four digits of scikit-learn's in a row, with noise; its caption is a filler word, which the picture does not show, and four digit
words in order. Both encoders average over places, so that order is a weak signal and the bag of words a shortcut, as for CLIP. A hard
negative swaps the first two digit words or replaces one (concrete), or replaces the filler (abstract). What is judged is how often a
model tells a caption from the same one with the first two digits swapped, on digits that were not trained on.

Controls: no hard negative; another caption altogether as the hard one, which only adds a column; a constant margin of the same mean; the
margin turned around, large for fillers; and an easy problem, two digits in encoders that know the order, where other captions of
the batch say all there is to learn and no hard negative should matter.

On the side of the text: how many edited words of published negatives the ratings cover, whether the choice by concreteness raises the
concreteness of what is edited, and how well negatives are told from captions without any picture.

How strong a signal order is at the start was set on seeds that are not run here (100 to 102), to what the arm without hard negatives
reaches; the other arms had been seen there, too, at other strengths.

What this cannot say: how it goes with pictures of scenes, large towers and negatives written by a language model.
"""

from __future__ import annotations

import ast
import gzip
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._errors import InputError, check_choice
from counterpoise._seeding import generator, seed_integer
from counterpoise._stats import mean_interval
from counterpoise.datasets._load import DATA_VARIABLE

from ._types import Claim, Finding, Replication
from ._work import Work, paired, rows_where

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

SLUG = "slipform"

DIGITS, FILLERS = 10, 6
STEPS, BATCH, LEARNING_RATE = 500, 64, 1e-3
HIDDEN, WIDTH = 64, 32  # of the encoders, and of the embeddings
SCALE = 1 / 0.07  # at the start; learned
PLACE = 0.12  # standard deviation of the vectors of places at the start: a weak signal, so that order is hardly learned without help
NOISE = 0.15  # standard deviation, of pixels in [0, 1]
TRAIN = 1297  # of scikit-learn's 1797 digits; the other 500 are tested on
TESTED, RETRIEVED = 2000, 500  # pictures of the tests
CONCRETE, ABSTRACT = 1.0, 0.2  # concreteness of digit words and fillers
MARGIN, SAME_MEAN = 3.0, 1.8  # m_max; and what it is on average where half of the edits are abstract
LAST_STEPS = 100  # over which the imbalance is averaged

EXACT_RATIO, EXACT_SHARES = 1e-12, 1e-10
COVERED = 0.95

SEEDS, QUICK_SEEDS = tuple(range(8)), (0, 1)
QUICK_STEPS, QUICK_CAPTIONS = 20, 400

Row = Mapping[str, Any]
Interval = tuple[float, float, float]


@dataclass(frozen=True)
class Arm:
    """Which edits are hard negatives (none, random captions, abstract, concrete, or half and half), and what margin they get."""

    name: str
    edits: str
    margin: float = 0.0
    adapt: str = "constant"


NONE, RANDOM, ONLY_ABSTRACT, ONLY_CONCRETE = "no hard negatives", "random captions", "abstract edits", "concrete edits"
CONCRETE_CONSTANT, MIX, CONSTANT, CEMENT, TURNED = (
    "concrete + constant 3",
    "mix",
    "mix + constant 1.8",
    "mix + Cement",
    "mix + turned around",
)
ARMS = (
    Arm(NONE, "none"),
    Arm(RANDOM, "random"),
    Arm(ONLY_ABSTRACT, "abstract"),
    Arm(ONLY_CONCRETE, "concrete"),
    Arm(CONCRETE_CONSTANT, "concrete", MARGIN),
    Arm(MIX, "mix"),
    Arm(CONSTANT, "mix", SAME_MEAN),
    Arm(CEMENT, "mix", MARGIN, "linear"),
    Arm(TURNED, "mix", MARGIN, "turned"),
)
CONTROL_ARMS = (NONE, ONLY_ABSTRACT, ONLY_CONCRETE, MIX, CONSTANT, CEMENT)  # on the easy problem
HARD, EASY = "four digits, averaged", "two digits, in order"

CLAIMS = (
    Claim(
        "concrete",
        "Edits of concrete words teach order better than edits of abstract words.",
        f"Swap accuracy, concrete minus abstract edits, {len(SEEDS)} seeds: the 95 % interval lies above 0.",
    ),
    Claim(
        "cement",
        "The margin that grows with concreteness helps over none.",
        "Half concrete and half abstract edits, swap accuracy, Cement minus no margin: the interval lies above 0.",
    ),
    Claim(
        "adaptive",
        "It helps over a constant margin of the same mean.",
        f"The same edits, Cement with m_max {MARGIN:g} minus a constant margin of {SAME_MEAN:g}: the interval lies above 0.",
    ),
    Claim(
        "exact",
        "A margin m divides the push of easy over hard negatives by exactly e^m, and the shares are the gradients.",
        f"At fixed logits: relative error of the ratio below {EXACT_RATIO:g}, of shares against autograd below {EXACT_SHARES:g}.",
    ),
    Claim(
        "coverage",
        "Ratings of people cover the words that negatives edit.",
        f"Published negatives of NegCLIP (COCO captions): at least {COVERED:.0%} of the edited content words have a rating.",
    ),
    Claim(
        "choice",
        "Choosing by concreteness edits more concrete words than choosing at random.",
        "Rating of the edited word, by concreteness minus at random, captions paired: the interval lies above 0.",
    ),
    Claim("hard", "Hard negatives, concrete, mixed with margin, or just another caption, against none."),
    Claim("constant", f"A constant margin of {MARGIN:g} where all edits are concrete."),
    Claim("sign", "The margin turned around, large for abstract edits."),
    Claim("retrieval", "What it costs: retrieval among 500, and telling a replaced digit."),
    Claim("imbalance", "How much harder easy negatives push than hard ones at the end of training."),
    Claim("control", "Where order is no shortcut, nothing matters."),
    Claim("blind", "How well negatives are told from captions without the picture."),
    Claim("sugar-crepe", "What SugarCrepe, a published test of pairs, edits, and how blind models do on it."),
)


def run(
    *, seeds: Sequence[int] | None = None, quick: bool = False, data_dir: str | Path | None = None, work: Work | None = None
) -> Replication:
    """All arms for all ``seeds``; captions and ratings are looked up in ``data_dir``, or else in ``$COUNTERPOISE_DATA``."""
    chosen = tuple(seeds if seeds is not None else QUICK_SEEDS if quick else SEEDS)
    folder = _folder(data_dir)
    work = work or Work()
    steps = QUICK_STEPS if quick else STEPS
    tasks = [{"problem": HARD, "arm": arm.name, "seed": seed, "steps": steps} for seed in chosen for arm in ARMS]
    tasks += [{"problem": EASY, "arm": name, "seed": seed, "steps": steps} for seed in chosen for name in CONTROL_ARMS]
    rows = work.map(train, tasks)
    identities = work.map(exact, [{"seed": seed} for seed in chosen])
    most = QUICK_CAPTIONS if quick else None
    (words,) = work.map(edited_words, [{"data_dir": folder, "most": most}])
    blind = work.map(blind_pairs, [{"pairs": name, "data_dir": folder, "most": most} for name in PAIRS])
    return Replication(
        slug=SLUG,
        claims=CLAIMS,
        findings=tuple(_findings(rows, identities, words, blind)),
        notes=_notes(rows, words, blind),
        tables={
            "means over seeds": [_mean_row(problem, arm, rows) for problem in (HARD, EASY) for arm in ARMS if _was_run(problem, arm.name)],
            "differences in swap accuracy": [_difference_row(*pair, rows) for pair in DIFFERENCES],
            "told from captions without a picture": [dict(row) for row in _without_folder(blind)],
            "concreteness of edited words": [{"edits": name} | values for name, values in words["edits"].items()],
        },
        figure=_figure(rows),
        seeds=chosen,
        quick=quick,
    )


# ---- one training -----------------------------------------------------------------------------------------------------------------------


def train(problem: str, arm: str, seed: int, steps: int) -> dict[str, float]:
    """One model: accuracies on digits that were not trained on, and the shares of the softmax at the end."""
    import torch

    from counterpoise.losses import CementLoss

    check_choice("problem", problem, (HARD, EASY))
    check_choice("arm", arm, [known.name for known in ARMS])
    chosen = next(known for known in ARMS if known.name == arm)
    places = 4 if problem == HARD else 2
    images, labels = _digits()
    order = generator(seed, SLUG, "split").permutation(len(images))
    trained, tested = torch.from_numpy(order[:TRAIN]), torch.from_numpy(order[TRAIN:])
    source = torch.Generator().manual_seed(seed_integer(seed, SLUG, "batches"))
    model = towers(places, in_order=problem == EASY, seed=seed_integer(seed, SLUG, "model"))
    log_scale = torch.tensor(math.log(SCALE), requires_grad=True)
    optimizer = torch.optim.Adam([*model.parameters(), log_scale], lr=LEARNING_RATE)
    loss = CementLoss(chosen.margin, (lambda c: CONCRETE + ABSTRACT - c) if chosen.adapt == "turned" else chosen.adapt)  # type: ignore[arg-type]
    shares = []
    for step in range(steps):
        pictures, captions = scenes(images, labels, trained, BATCH, places, source)
        # Drawn for every arm, so that all see the same pictures.
        edits = {kind: edit(captions, kind, source) for kind in ("concrete", "abstract", "random")}
        half = torch.rand(BATCH, generator=source) < 0.5
        hard, c = _hard(chosen.edits, edits, half)
        same = (captions[:, None] == captions[None]).all(dim=2)
        x, t = model["image"](pictures), model["text"](captions)
        h = None if hard is None else model["text"](hard)
        value = loss(x, t, h, log_scale, c, duplicate_mask=same, scale_is_log=True)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if step >= steps - LAST_STEPS and loss.last is not None:
            last = loss.last
            shares.append([float(part.mean()) for part in (last.positive, last.hard, last.easy)] + [last.overall, last.per_thousand])
    positive, of_hard, easy, ratio, per_thousand = np.mean(shares, axis=0)
    found = {"positive": positive, "hard": of_hard, "easy": easy, "ratio": ratio, "ratio per 1000": per_thousand}
    return _scores(model, images, labels, tested, places, seed) | {"scale": float(log_scale.detach().exp())} | found


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """Pixels (n, 64) in [0, 1], and digits (n,)."""
    import torch
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.tensor(found.data / 16, dtype=torch.float32), torch.tensor(found.target)


def scenes(images: Tensor, labels: Tensor, pool: Tensor, n: int, places: int, source: Any) -> tuple[Tensor, Tensor]:
    """Pictures (n, places, 64) of digits of the pool, with noise, and captions (n, 1 + places) of a filler (10..15) and digits (0..9)."""
    import torch

    drawn = pool[torch.randint(len(pool), (n, places), generator=source)]
    pictures = images[drawn] + NOISE * torch.randn(n, places, images.shape[1], generator=source)
    filler = DIGITS + torch.randint(FILLERS, (n, 1), generator=source)
    return pictures, torch.cat([filler, labels[drawn]], dim=1)


def edit(captions: Tensor, kind: str, source: Any) -> Tensor:
    """Captions made false: "swap" and "replace" of digits, "concrete" one of both, "abstract" the filler, "random" another caption."""
    import torch

    n, rows = len(captions), torch.arange(len(captions))
    found = captions.clone()
    if kind == "swap":
        found[:, [1, 2]] = captions[:, [2, 1]]
    elif kind == "replace":
        place = torch.randint(1, captions.shape[1], (n,), generator=source)
        found[rows, place] = (captions[rows, place] + torch.randint(1, DIGITS, (n,), generator=source)) % DIGITS
    elif kind == "abstract":
        found[:, 0] = DIGITS + (captions[:, 0] - DIGITS + torch.randint(1, FILLERS, (n,), generator=source)) % FILLERS
    elif kind == "random":
        found[:, 1:] = torch.randint(DIGITS, (n, captions.shape[1] - 1), generator=source)
    else:
        # A swap of equal digits is no edit: such captions get the other one.
        swap = (torch.rand(n, generator=source) < 0.5) & (captions[:, 1] != captions[:, 2])
        found = torch.where(swap[:, None], edit(captions, "swap", source), edit(captions, "replace", source))
    return found


def _hard(edits: str, made: Mapping[str, Tensor], half: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Hard negatives and their concreteness; ``half`` says which are concrete in a mix."""
    import torch

    if edits == "none":
        return None, None
    if edits == "mix":
        return torch.where(half[:, None], made["concrete"], made["abstract"]), torch.where(half, CONCRETE, ABSTRACT)
    return made[edits], torch.full((len(half),), ABSTRACT if edits == "abstract" else CONCRETE)


def towers(places: int, *, in_order: bool, seed: int) -> Any:
    """Encoders of pictures and of captions: a ReLU of what stands at a place plus the place, averaged over places, or side by side."""
    import torch
    from torch import nn

    class Tower(nn.Module):
        def __init__(self, embed: nn.Module, length: int) -> None:
            super().__init__()
            self.embed, self.place = embed, nn.Parameter(PLACE * torch.randn(length, HIDDEN))
            self.out = nn.Linear(length * HIDDEN if in_order else HIDDEN, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            features = (self.embed(x) + self.place).relu()
            found: Tensor = self.out(features.flatten(1) if in_order else features.mean(dim=1))
            return found

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.ModuleDict(
            {"image": Tower(nn.Linear(64, HIDDEN), places), "text": Tower(nn.Embedding(DIGITS + FILLERS, HIDDEN), 1 + places)}
        )


def _scores(model: nn.ModuleDict, images: Tensor, labels: Tensor, pool: Tensor, places: int, seed: int) -> dict[str, float]:
    import torch
    from torch.nn import functional as F

    source = torch.Generator().manual_seed(seed_integer(seed, SLUG, "tests"))
    pictures, captions = scenes(images, labels, pool, TESTED, places, source)
    replaced = edit(captions, "replace", source)
    with torch.no_grad():
        x = F.normalize(model["image"](pictures), dim=1)
        right, swapped, other = (F.normalize(model["text"](text), dim=1) for text in (captions, edit(captions, "swap", source), replaced))
    near, far, elsewhere = ((x * text).sum(dim=1) for text in (right, swapped, other))
    differ = captions[:, 1] != captions[:, 2]
    s = x[:RETRIEVED] @ right[:RETRIEVED].T
    # The same caption of another picture is as good.
    found = (captions[s.argmax(dim=1)] == captions[:RETRIEVED]).all(dim=1)
    return {
        "swap": float((near > far)[differ].double().mean()),
        "replace": float((near > elsewhere).double().mean()),
        "recall": float(found.double().mean()),
    }


# ---- what must hold exactly -------------------------------------------------------------------------------------------------------------


def exact(seed: int) -> dict[str, float]:
    """Largest errors of the ratio under a margin (relative) and of the shares against autograd, in float64."""
    import torch
    from torch.nn import functional as F

    from counterpoise.losses import CementLoss, contrastive_shares

    source = torch.Generator().manual_seed(seed_integer(seed, SLUG, "exact"))
    n, width = 48, 16
    image, text, hard = (torch.randn(n, width, generator=source, dtype=torch.float64) for _ in range(3))
    c = torch.rand(n, generator=source, dtype=torch.float64)
    ratios = []
    for margin in (0.0, MARGIN):
        loss = CementLoss(margin)
        loss(image, text, hard, SCALE, c)
        assert loss.last is not None
        ratios.append(loss.last.ratio)
    ratio = ((ratios[1] / (ratios[0] * torch.exp(-MARGIN * c))) - 1).abs().max()
    x, t, h = (F.normalize(part, dim=1) for part in (image, text, hard))
    logits = torch.cat([SCALE * x @ t.T, SCALE * (x * h).sum(dim=1, keepdim=True) + MARGIN * c[:, None]], dim=1).requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(logits, torch.arange(n), reduction="sum"), logits)
    shares = contrastive_shares(logits, torch.arange(n), torch.full((n,), n))
    itself = torch.arange(n)
    pull, push = -g[itself, itself], g[:, n]
    errors = [1 - shares.positive - pull, shares.hard - push, shares.easy - (g.sum(dim=1) + pull - push)]
    return {"ratio": float(ratio), "shares": max(float(error.abs().max()) for error in errors)}


# ---- captions ---------------------------------------------------------------------------------------------------------------------------

CAPTIONS = "negclip-captions/valid_neg_clip.tsv.gz"
RATINGS = "concreteness/Concreteness_ratings_Brysbaert_et_al_BRM.txt.gz"
CREPE = "sugar-crepe/{}.json.gz"
CREPE_KINDS = ("replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att", "add_obj", "add_att")
SOURCES = {
    CAPTIONS: "temp_data/valid_neg_clip.tsv of https://github.com/mertyg/vision-language-models-are-bows",
    RATINGS: "Concreteness_ratings_Brysbaert_et_al_BRM.txt of https://github.com/ArtsEngine/concreteness",
    **{CREPE.format(kind): f"data/{kind}.json of https://github.com/RAIVNLab/sugar-crepe" for kind in CREPE_KINDS},
}

PUBLISHED, OURS, UNFITTED, AT_RANDOM, OURS_ON_CREPE = "NegCLIP", "ours", "ours, drawn alike", "ours, any word", "ours on SugarCrepe"
PAIRS = (PUBLISHED, OURS, UNFITTED, AT_RANDOM, *CREPE_KINDS, OURS_ON_CREPE)
FOLDS = 5


def _folder(data_dir: str | Path | None) -> str:
    """The folder of the captions; what is missing in it is said before anything runs."""
    folder = str(data_dir) if data_dir is not None else os.environ.get(DATA_VARIABLE, "")
    for name, origin in SOURCES.items():
        if not folder or not (Path(folder) / name).is_file():
            where = f"{folder}/{name} is not there" if folder else f"{DATA_VARIABLE} is not set"
            raise InputError(f"{where}: put {origin}, gzip-compressed, at {name} in the folder that {DATA_VARIABLE} names.")
    return folder


def published(data_dir: str, most: int | None) -> list[tuple[str, list[str]]]:
    """COCO captions with NegCLIP's negatives."""
    import polars as pl

    table = pl.read_csv(Path(data_dir) / CAPTIONS, separator="\t", infer_schema=False, quote_char='"').head(most or 10**9)
    return [(caption, ast.literal_eval(listed)) for caption, listed in table.select("title", "neg_caption").iter_rows()]


def crepe(data_dir: str, kind: str) -> list[tuple[str, str]]:
    """Captions of SugarCrepe with their negatives."""
    with gzip.open(Path(data_dir) / CREPE.format(kind), "rt", encoding="utf-8") as file:
        return [(entry["caption"].strip(), entry["negative_caption"].strip()) for entry in json.load(file).values()]


def edited(caption: str, negative: str) -> list[str]:
    """Words of the caption that the negative does not have at that place.

    >>> edited("A dog on a red sofa.", "A dog on a blue sofa ."), edited("a dog and a cat", "a cat and a dog")
    (['red'], ['dog', 'cat'])
    """
    from difflib import SequenceMatcher

    from counterpoise._english import WORD

    before, after = (WORD.findall(text.lower()) for text in (caption, negative))
    if len(before) == len(after):
        return [word for word, new in zip(before, after, strict=True) if word != new]
    codes = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    return [word for tag, start, end, *_ in codes if tag != "equal" for word in before[start:end]]


def edited_words(data_dir: str, most: int | None) -> dict[str, Any]:
    """How concrete edited words are, and how many of them are rated, by who edits."""
    lexicon = _lexicon(data_dir)
    pairs = published(data_dir, most)
    captions = [caption for caption, _ in pairs]
    theirs = [edited(caption, negative) for caption, negatives in pairs for negative in negatives]
    ours = {prefer: list(map(_negatives(data_dir, captions, prefer), captions)) for prefer in ("concrete", "random", "abstract")}
    both = [i for i in range(len(captions)) if all(found[i] is not None for found in ours.values())]
    differences = [ours["concrete"][i].concreteness - ours["random"][i].concreteness for i in both]
    edits = {"NegCLIP": _edit_row(lexicon, theirs)}
    for prefer, found in ours.items():
        values = [one.concreteness for one in found if one is not None]
        edits[f"ours, {prefer}"] = {"negatives": len(values), "rated": 1.0, "mean rating": float(np.mean(values))}
    for kind in CREPE_KINDS:
        edits[f"SugarCrepe {kind}"] = _edit_row(lexicon, [edited(*pair) for pair in crepe(data_dir, kind)[:most]])
    return {
        "edits": edits,
        "coverage": edits["NegCLIP"]["rated"],
        "share": len(both) / len(captions),
        "difference": mean_interval(differences),
        "swaps": float(np.mean([ours["concrete"][i].op == "swap" for i in both])),
    }


def _edit_row(lexicon: Any, words: Sequence[list[str]]) -> dict[str, float]:
    ratings = [rating for found in words if not math.isnan(rating := lexicon.score(found))]
    return {"negatives": len(words), "rated": lexicon.coverage(words), "mean rating": float(np.mean(ratings))}


@cache
def _lexicon(data_dir: str) -> Any:
    from counterpoise.text import ConcretenessLexicon

    return ConcretenessLexicon.from_csv(Path(data_dir) / RATINGS)


def _negatives(data_dir: str, captions: Sequence[str], prefer: str = "concrete", fit: bool = True) -> Any:
    from counterpoise.data import ConcreteNegatives

    negatives = ConcreteNegatives(_lexicon(data_dir), prefer=prefer)  # type: ignore[arg-type]
    return negatives.fit(captions) if fit else negatives


def blind_pairs(pairs: str, data_dir: str, most: int | None) -> dict[str, Any]:
    """How often a classifier of word pairs, which sees no picture, tells the caption from its negative; chance is 0.5."""
    check_choice("pairs", pairs, PAIRS)
    made: list[tuple[str, str]]
    if pairs in CREPE_KINDS:
        made = crepe(data_dir, pairs)[:most]
        total = len(made)
    elif pairs == PUBLISHED:
        listed = published(data_dir, most)
        made, total = [(caption, negatives[0]) for caption, negatives in listed if negatives], len(listed)
    else:
        if pairs == OURS_ON_CREPE:
            captions = sorted({caption for kind in CREPE_KINDS for caption, _ in crepe(data_dir, kind)})[:most]
        else:
            captions = [caption for caption, _ in published(data_dir, most)]
        negatives = _negatives(data_dir, captions, "random" if pairs == AT_RANDOM else "concrete", fit=pairs != UNFITTED)
        made, total = [(caption, found.text) for caption in captions if (found := negatives(caption)) is not None], len(captions)
    accuracy, low, high = mean_interval(told_apart(made))
    return {"captions": total, "negatives": len(made), "accuracy": accuracy, "low": low, "high": high}


def told_apart(pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.float64]:
    """For each pair whether the negative was recognized (0.5: undecided), out of fold, by logistic regression on the difference in words
    and in pairs of words."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import KFold

    # Ends of sentences and spaces before full stops, which differ between sources, say nothing about what was written.
    texts = [[text.lower() for text in side] for side in zip(*pairs, strict=True)]
    count = CountVectorizer(ngram_range=(1, 2), binary=True, token_pattern=r"(?u)\b\w+\b").fit([*texts[0], *texts[1]])
    difference = (count.transform(texts[1]).astype(np.float64) - count.transform(texts[0])).tocsr()
    right = np.empty(len(pairs))
    for fitted, tested in KFold(FOLDS, shuffle=True, random_state=0).split(right):
        signs = np.where(np.arange(len(fitted)) % 2, 1.0, -1.0)  # half of the pairs turned around: two classes, no intercept
        rows = difference[fitted].multiply(signs[:, None]).tocsr()
        model = LogisticRegression(C=1.0, fit_intercept=False, max_iter=200).fit(rows, signs)
        right[tested] = 0.5 * (1 + np.sign(model.decision_function(difference[tested])))
    return right


# ---- what was found ---------------------------------------------------------------------------------------------------------------------

# What is compared: a name, an arm and its baseline.
DIFFERENCES = (
    ("concrete instead of abstract edits", ONLY_CONCRETE, ONLY_ABSTRACT),
    ("Cement instead of no margin", CEMENT, MIX),
    ("Cement instead of a constant margin", CEMENT, CONSTANT),
    ("concrete edits instead of none", ONLY_CONCRETE, NONE),
    ("Cement instead of no hard negatives", CEMENT, NONE),
    ("random captions instead of none", RANDOM, NONE),
    ("a constant margin instead of none", CONSTANT, MIX),
    ("turned around instead of constant", TURNED, CONSTANT),
    ("concrete edits, a constant margin of 3", CONCRETE_CONSTANT, ONLY_CONCRETE),
)
JUDGED = {"concrete": DIFFERENCES[0], "cement": DIFFERENCES[1], "adaptive": DIFFERENCES[2]}


def _was_run(problem: str, arm: str) -> bool:
    return problem == HARD or arm in CONTROL_ARMS


def _difference(rows: Sequence[Row], arm: str, baseline: str, value: str = "swap", problem: str = HARD) -> Interval:
    return mean_interval(paired(rows_where(rows, problem=problem), value, arm, baseline))


def _mean(rows: Sequence[Row], arm: str, value: str = "swap", problem: str = HARD) -> float:
    return float(np.mean([row[value] for row in rows_where(rows, problem=problem, arm=arm)]))


def _in(interval: Interval) -> str:
    mean, low, high = interval
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def _findings(rows: Sequence[Row], identities: Sequence[Row], words: Row, blind: Sequence[Row]) -> list[Finding]:
    claim = {claim.key: claim for claim in CLAIMS}
    found = []
    for key, (name, arm, baseline) in JUDGED.items():
        interval = _difference(rows, arm, baseline)
        text = f"{_capital(name)}: swap accuracy {_mean(rows, arm):.3f} against {_mean(rows, baseline):.3f}, {_in(interval)}."
        found.append(claim[key].above(interval, 0.0, text))
    ratio, shares = (max(row[name] for row in identities) for name in ("ratio", "shares"))
    text = f"Largest error of the ratio {ratio:.1e} of its size, of a share {shares:.1e}."
    found.append(claim["exact"].holds(ratio < EXACT_RATIO and shares < EXACT_SHARES, text))
    covered = words["coverage"]
    theirs = words["edits"]["NegCLIP"]
    text = f"{covered:.1%} of the edited content words of {theirs['negatives']:,.0f} published negatives have a rating."
    found.append(claim["coverage"].holds(covered >= COVERED, text, estimate=covered))
    by_choice, at_random = (words["edits"][f"ours, {prefer}"]["mean rating"] for prefer in ("concrete", "random"))
    text = f"{by_choice:.3f} by concreteness, {at_random:.3f} at random on a scale from 0 to 1: {_in(tuple(words['difference']))}. "
    text += f"Published negatives: {theirs['mean rating']:.3f}."
    found.append(claim["choice"].above(tuple(words["difference"]), 0.0, text))
    for key, pairs in (("hard", DIFFERENCES[3:6]), ("constant", DIFFERENCES[8:9]), ("sign", DIFFERENCES[7:8])):
        for name, arm, baseline in pairs:
            interval = _difference(rows, arm, baseline)
            text = f"{_capital(name)}: swap accuracy {_mean(rows, arm):.3f} against {_mean(rows, baseline):.3f}, {_in(interval)}."
            found.append(claim[key].reported(interval, text, name=name))
    for value, what in (("recall", "Retrieval of the caption among 500"), ("replace", "Accuracy on a replaced digit")):
        for arm, baseline in ((CEMENT, MIX), (CEMENT, CONSTANT), (CONCRETE_CONSTANT, ONLY_CONCRETE)):
            interval = _difference(rows, arm, baseline, value)
            means = f"{_mean(rows, arm, value):.3f} against {_mean(rows, baseline, value):.3f}"
            text = f"{what}, {arm} against {baseline}: {means}, {_in(interval)}."
            found.append(claim["retrieval"].reported(interval, text, name=f"{value}, {arm} against {baseline}"))
    said = ", ".join(f"{arm} {_mean(rows, arm, 'ratio'):.2f}" for arm in (ONLY_CONCRETE, CONCRETE_CONSTANT, MIX, CONSTANT, CEMENT))
    text = f"Push of {BATCH - 1} easy negatives over that of one hard one: {said}; "
    per_thousand = [_mean(rows, arm, "ratio per 1000") for arm in (MIX, CEMENT)]
    text += f"per 1,000 easy negatives {per_thousand[0]:.1f} without a margin, {per_thousand[1]:.1f} with Cement."
    found.append(claim["imbalance"].reported(None, text))
    for name, arm, baseline in DIFFERENCES[:3]:
        interval = _difference(rows, arm, baseline, problem=EASY)
        text = f"On two digits with order built in, {name}: {_mean(rows, arm, problem=EASY):.3f} against "
        found.append(claim["control"].reported(interval, text + f"{_mean(rows, baseline, problem=EASY):.3f}, {_in(interval)}.", name=name))
    for row in blind:
        key = "sugar-crepe" if row["pairs"] in (*CREPE_KINDS, OURS_ON_CREPE) else "blind"
        text = f"{row['pairs']}: {row['accuracy']:.1%} of {row['negatives']:,} pairs told apart without a picture (chance 50 %)"
        if row["pairs"] in (OURS, OURS_ON_CREPE):
            text += f"; {row['negatives'] / row['captions']:.0%} of the captions have a negative"
        if row["pairs"] in CREPE_KINDS:
            values = words["edits"][f"SugarCrepe {row['pairs']}"]
            text += f"; edited words rated {values['mean rating']:.2f} on average, {values['rated']:.1%} have a rating"
        found.append(claim[key].reported((row["accuracy"], row["low"], row["high"]), text + ".", name=row["pairs"]))
    return found


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _without_folder(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in ("data_dir", "most")} for row in rows]


def _mean_row(problem: str, arm: Arm, rows: Sequence[Row]) -> dict[str, Any]:
    values = ("swap", "replace", "recall", "positive", "hard", "easy", "ratio", "ratio per 1000", "scale")
    return {"problem": problem, "arm": arm.name} | {value: _mean(rows, arm.name, value, problem) for value in values}


def _difference_row(name: str, arm: str, baseline: str, rows: Sequence[Row]) -> dict[str, Any]:
    row: dict[str, Any] = {"difference": name, "arm": arm, "baseline": baseline}
    for problem, short in ((HARD, "hard"), (EASY, "easy")):
        run_here = _was_run(problem, arm) and _was_run(problem, baseline)
        mean, low, high = _difference(rows, arm, baseline, problem=problem) if run_here else (None, None, None)
        row |= {f"{short} problem": mean, f"{short} low": low, f"{short} high": high}
    return row


def _notes(rows: Sequence[Row], words: Row, blind: Sequence[Row]) -> tuple[str, ...]:
    by_name = {row["pairs"]: row["accuracy"] for row in blind}
    return (
        "The form of the margin is our reading of the abstract; constants of the paper are not known to us.",
        f"A margin raises the pull on the positive as well: its softmax was {_mean(rows, MIX, 'positive'):.2f} without a margin and "
        f"{_mean(rows, CEMENT, 'positive'):.2f} with Cement. It is no pure re-allocation.",
        f"Where all edits are concrete, there is nothing to adapt to: a constant margin of {MARGIN:g} changed swap accuracy by "
        f"{_in(_difference(rows, CONCRETE_CONSTANT, ONLY_CONCRETE))}. Cement is for negatives of mixed quality.",
        f"Rules edit {words['share']:.0%} of the captions, {words['swaps']:.0%} of them by a swap. Without a picture {by_name[OURS]:.0%} "
        f"of these negatives are recognized, {by_name[UNFITTED]:.0%} if replacements are drawn all alike instead of as often as captions "
        f"use them, and {by_name[PUBLISHED]:.0%} of NegCLIP's: negatives teach a model of language, too, and the less the better.",
    )


def _figure(rows: Sequence[Row]) -> Figure:
    from counterpoise.report import _plots

    with _plots.style():
        row_height, top, bottom, left, span = 34, 66, 48, 300, 400
        height = row_height * len(DIFFERENCES) + top + bottom
        fig = _plots.figure(_plots.WIDTH, height)
        ax = _plots.axes(fig, left, bottom, span, row_height * len(DIFFERENCES))
        _plots.plain_rows(ax, len(DIFFERENCES))
        _plots.rules_between(ax, len(DIFFERENCES))
        ax.axvline(0, color=_plots.MUTED, lw=1, zorder=1)
        for row, (name, arm, baseline) in enumerate(DIFFERENCES):
            judged = (name, arm, baseline) in JUDGED.values()
            _plots.row_text(fig, ax, row, 8, name, weight="bold" if judged else "normal")
            shown = [(HARD, -0.12, _plots.BLUE, FULL)]
            if arm in CONTROL_ARMS and baseline in CONTROL_ARMS:
                shown.append((EASY, 0.2, _plots.MUTED, HOLLOW))
            for problem, shift, color, looks in shown:
                mean, low, high = (100 * part for part in _difference(rows, arm, baseline, problem=problem))
                if np.isfinite(low):
                    ax.plot([low, high], [row + shift] * 2, color=color, lw=2, zorder=2, solid_capstyle="butt")
                ax.plot(mean, row + shift, color=color, zorder=3, **looks)
        ax.set_xlabel(f"points of swap accuracy gained, {len({row['seed'] for row in rows})} seeds with 95 % interval")
        fig.text(
            8 / _plots.WIDTH,
            1 - 12 / height,
            "Which hard negatives teach the order of words, and what a margin adds",
            va="top",
            weight="bold",
        )
        marks = [
            ("order is a weak signal", {"color": _plots.BLUE} | FULL),
            ("order is built in (control)", {"color": _plots.MUTED} | HOLLOW),
        ]
        _plots.key(fig, left + 8, height - 48, marks)
        return fig


FULL: dict[str, Any] = {"marker": "o", "ms": 8}
HOLLOW: dict[str, Any] = {"marker": "s", "ms": 6.5, "mfc": "white"}
