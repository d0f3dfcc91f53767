"""Does a model trained on some domains work in another one? Photographs, paintings, cartoons and sketches of seven things.

    COUNTERPOISE_DATA=FOLDER python examples/domain_generalisation.py

FOLDER holds pacs64/pacs64.npz: ``X`` (n, 64, 64, 3) uint8, ``y`` (n,) classes 0..6, ``domain`` (n,) 0..3. Images of PACS (Li et al. 2017,
"Deeper, Broader and Artier Domain Generalization"), here a fifth of them at 64 x 64 pixels, which are halved once more.

Each domain is left out once. A small convolutional net is trained on the other three, with cross-entropy and with ``HessianAlignmentLoss``
at two strengths, in a plain loop; only the line that computes the loss differs. What to look at: accuracy on new images of the training
domains, on the domain that was left out, and whether their difference to cross-entropy is larger than that between seeds. Three seeds of
a small net say little about large ones: pass the features of your own network instead. ``--quick`` is one short run, to see that it works.
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from counterpoise import Groups
from counterpoise.data import BalancedClassSampler
from counterpoise.diagnostics import head_alignment
from counterpoise.losses import HessianAlignmentLoss

PATH = Path(os.environ.get("COUNTERPOISE_DATA", ".")) / "pacs64" / "pacs64.npz"
DOMAINS = ("art", "cartoon", "photo", "sketch")
BATCH, RATE, DECAY = 96, 3e-3, 1e-2
ARMS = {
    "cross-entropy": {"alpha": 0.0, "beta": 0.0},
    "aligned, defaults": {"method": "hgp"},
    "aligned, 30 times": {"method": "hgp", "alpha": 3e-3, "beta": 0.15},
}


def read():
    """Images (n, 3, 32, 32) in [-1, 1], classes (n,) and domains (n,)."""
    if not PATH.is_file():
        sys.exit(f"{PATH} is not there: set COUNTERPOISE_DATA to a folder with pacs64/pacs64.npz (see the top of this file)")
    with np.load(PATH) as file:
        images = torch.from_numpy(file["X"]).permute(0, 3, 1, 2).float() / 127.5 - 1
        return nn.functional.avg_pool2d(images, 2), torch.from_numpy(file["y"]).long(), torch.from_numpy(file["domain"]).long()


class Body(nn.Sequential):
    """Images (n, 3, 32, 32) to features (n, 64)."""

    def __init__(self):
        layers, width = [], 3
        for wider in (16, 32, 64):
            layers += [nn.Conv2d(width, wider, 3, stride=2, padding=1), nn.BatchNorm2d(wider), nn.ReLU()]
            width = wider
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def split(left_out, domain, seed):
    """Row numbers: to train on, new ones of the training domains (a fifth of each), and the domain that is left out."""
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(domain.numpy() != left_out))
    new = len(rows) // 5
    return rows[new:], rows[:new], np.flatnonzero(domain.numpy() == left_out)


def train(options, images, target, domain, rows, steps, seed):
    torch.manual_seed(seed)
    body, head = Body(), nn.Linear(64, int(target.max()) + 1)
    criterion = HessianAlignmentLoss(head, **options)
    optimizer = torch.optim.AdamW([*body.parameters(), *head.parameters()], lr=RATE, weight_decay=DECAY)
    # Every class of every domain is drawn equally often. Otherwise domains would differ by their classes, and be aligned for it.
    groups = Groups.from_columns({"domain": domain[rows], "class": target[rows]}, ["domain", "class"])
    sampler = BalancedClassSampler(groups, num_samples=BATCH * steps, generator=seed)
    for chosen in torch.tensor(rows[list(sampler)]).split(BATCH):
        batch = nn.functional.pad(images[chosen], (3, 3, 3, 3), mode="replicate")
        row, column = torch.randint(7, (2,)).tolist()
        batch = batch[:, :, row : row + 32, column : column + 32]
        batch = torch.where(torch.rand(len(batch), 1, 1, 1) < 0.5, batch.flip(-1), batch)
        loss = criterion(body(batch), target[chosen], domain[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return body.eval(), head


def accuracy(body, head, images, target, rows):
    with torch.no_grad():
        return float((head(body(images[rows])).argmax(dim=1) == target[rows]).float().mean())


if __name__ == "__main__":
    images, target, domain = read()
    quick = "--quick" in sys.argv[1:]
    seeds, steps, without = (range(1), 8, [3]) if quick else (range(3), 300, range(4))
    print(f"{len(images)} images of {', '.join(DOMAINS)}. Accuracy, mean over {len(seeds)} seeds:\n")
    print(f"{'left out':14s} {'loss':20s} training domains   left out   difference to cross-entropy, by seed")
    gains = {arm: [] for arm in ARMS}
    for left_out in without:
        for arm, options in ARMS.items():
            inside, outside = [], []
            for seed in seeds:
                rows, new, other = split(left_out, domain, seed)
                body, head = train(options, images, target, domain, rows, steps, seed)
                inside.append(accuracy(body, head, images, target, new))
                outside.append(accuracy(body, head, images, target, other))
            if arm == "cross-entropy":
                plain = outside
            difference = np.subtract(outside, plain)
            gains[arm].append(difference)
            by_seed = " ".join(f"{d:+.3f}" for d in difference) if arm != "cross-entropy" else ""
            print(f"{DOMAINS[left_out]:14s} {arm:20s} {np.mean(inside):16.3f} {np.mean(outside):10.3f}   {by_seed}")
    print()
    for arm in list(ARMS)[1:]:
        found = np.concatenate(gains[arm])
        print(f"{arm}: {found.mean():+.3f} on the domain left out, better in {(found > 0).sum()} of {len(found)} runs.")

    # How far apart the last net's domains are, the new one among them. These rows are as they come, with more of one class here and of
    # another there, unlike those drawn for training; the report says so.
    with torch.no_grad():
        shown = np.concatenate([new, other])
        features = body(images[shown])
    report = head_alignment(features, target[shown], [DOMAINS[k] for k in domain[shown]], head)
    print(f"\nThe last net ({arm}), on images it has not seen:\n{report.summary()}")
