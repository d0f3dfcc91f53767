"""One embedding space for four modalities: which pairs are found, and at which temperatures?

    COUNTERPOISE_DATA=FOLDER python examples/omni_retrieval.py

FOLDER holds mfeat/mfeat.npz: views ``fac`` (2000, 216), ``kar`` (2000, 64), ``fou`` (2000, 76) and ``zer`` (2000, 47) of the same 2,000
handwritten digits (UCI, Multiple Features). They stand for modalities such as text, image, audio and video. Every batch mixes four kinds of
pairs, two views of one digit each, which is when one temperature for all of them is a compromise.

A small encoder per view is trained for some seconds with ``OmniContrastiveLoss``, once with one temperature, once with one per modality,
hard negatives, the correction for false negatives and aligned covariances. What to look at: whether the nearest of 500 new targets is the
right one, for each kind of pair and when the targets of three views are searched together; the temperatures; and the rows on the floor,
which give no gradient. One seed says little: ``counterpoise replicate e5-omni`` trains ten of them and has intervals.
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize

from counterpoise.diagnostics import modality_sharpness
from counterpoise.losses import ModalityTemperature, OmniContrastiveLoss, QuantileCurriculum

PATH = Path(os.environ.get("COUNTERPOISE_DATA", ".")) / "mfeat" / "mfeat.npz"
VIEWS = ("fac", "kar", "fou", "zer")
PAIRS = torch.tensor([[0, 1], [0, 2], [0, 3], [1, 2]])  # query and target: fac-kar, fac-fou, fac-zer, kar-fou
BATCH, STEPS = 96, 300
ARMS = {
    "one temperature": OmniContrastiveLoss(ModalityTemperature(["all"], init=0.05), gamma_plus=0.0, coral_weight=0.0),
    "all parts": OmniContrastiveLoss(ModalityTemperature(VIEWS, init=0.05), QuantileCurriculum(warmup=60, total=STEPS)),
}


def read():
    """Of each view, standardized features of 900 digits to train on and 500 to test on."""
    if not PATH.is_file():
        sys.exit(f"{PATH} is not there: set COUNTERPOISE_DATA to a folder with mfeat/mfeat.npz (see the top of this file)")
    order = np.random.default_rng(0).permutation(2000)
    with np.load(PATH) as file:
        views = [torch.from_numpy(file[name][order]) for name in VIEWS]
    return [(x - x[:900].mean(dim=0)) / x[:900].std(dim=0).clamp(min=1e-6) for x in views]


def embed(encoders, views, items, which):
    """Embeddings of these digits, each seen in its view."""
    found = torch.empty(len(items), 24)
    for k, (encoder, x) in enumerate(zip(encoders, views, strict=True)):
        rows = torch.nonzero(which == k)[:, 0]
        found = found.index_copy(0, rows, encoder(x[items[rows]]))
    return found


def train(loss, views):
    torch.manual_seed(0)
    encoders = nn.ModuleList(nn.Sequential(nn.Linear(x.shape[1], 64), nn.ReLU(), nn.Linear(64, 24)) for x in views)
    # Temperatures get a learning rate of their own; without weight decay, which would pull them towards 1.
    groups = [{"params": encoders.parameters()}, {"params": loss.parameters(), "lr": 2e-2, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-3)
    floored = []
    for _ in range(STEPS):
        items, pairs = torch.randperm(900)[:BATCH], PAIRS[torch.randint(len(PAIRS), (BATCH,))]
        query, target = (embed(encoders, views, items, pairs[:, side]) for side in (0, 1))
        modality = pairs if len(loss.temperature.names) > 1 else torch.zeros_like(pairs)
        value = loss(query, target, modality[:, 0], modality[:, 1])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        floored.append(loss.last.floor_hits.item())
    return encoders, np.mean(floored[-50:])


if __name__ == "__main__":
    views = read()
    print(f"900 digits in {len(VIEWS)} views to train on, 500 to test on, {STEPS} steps\n")
    print("recall at 1        fac-kar  fac-fou  fac-zer  kar-fou   fac - all three   on the floor   temperatures")
    for name, loss in ARMS.items():
        encoders, floored = train(loss, views)
        with torch.no_grad():
            embedded = [normalize(encoder(x[900:1400])) for encoder, x in zip(encoders, views, strict=True)]
        itself = torch.arange(500)
        found = [((embedded[q] @ embedded[t].T).argmax(dim=1) == itself).float().mean().item() for q, t in PAIRS.tolist()]
        union = torch.cat(embedded[1:])
        found.append(((embedded[0] @ union.T).argmax(dim=1) % 500 == itself).float().mean().item())
        learned = ", ".join(f"{view} {tau:.3f}" for view, tau in zip(loss.temperature.names, loss.temperature.temperatures, strict=True))
        numbers = "  ".join(f"{value:7.3f}" for value in found[:4])
        print(f"{name:17s}  {numbers}   {found[4]:15.3f}   {floored:12.1%}   {learned}")

    # 100 digits as queries in view fac; their targets are in the three other views, as in a batch.
    which = 1 + torch.arange(100) % 3
    targets = torch.stack([embedded[k][i] for i, k in enumerate(which.tolist())])
    labels = ["fac"] * 100, [VIEWS[k] for k in which.tolist()]
    print(
        f"\nThe last net, on 100 of the new digits:\n{modality_sharpness(embedded[0][:100], targets, labels, temperature=0.05).summary()}"
    )
