"""A dense detector on real images: three kinds of blood cells, and a hundred places of background for every platelet.

    COUNTERPOISE_DATA=FOLDER python examples/detector_bccd.py

FOLDER holds bccd/BCCD.zip, the folder BCCD of https://github.com/Shenggan/BCCD_Dataset as a zip file (364 images, MIT license).

A small convolutional net gives every 8 x 8 pixels of an image three scores (red cell, white cell, platelet) and a box. It is trained three
times, with cross-entropy over all places from a bias of 0, with the same from the bias of the prior, and with the focal loss. What to look
at: the gradient of the bias at step 0, what that does to the first steps, and the average precision of each class in the end. It is one
short run of each at one learning rate: longer training narrows the gaps, and a study or several seeds would say how sure they are.
"""

import io
import os
import sys
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image  # comes with matplotlib
from torch import nn
from torch.nn import functional as F

from counterpoise.decisions import PriorScoreThreshold
from counterpoise.losses import FocalLoss
from counterpoise.nn.init import estimate_prior, prior_bias_

CLASSES = ("RBC", "WBC", "Platelets")
WIDTH, HEIGHT, STRIDE = 160, 120, 8  # images at a quarter of their size
CROP = 12  # places along each side of a training crop
STEPS, BATCH, RATE = 160, 8, 3e-3
CHANNELS = (16, 32, 48, 48, 48)


# ---- data: images, boxes, and what every place should say ------------------------------------------------------------------------------


def archive():
    path = Path(os.environ.get("COUNTERPOISE_DATA", ".")) / "bccd" / "BCCD.zip"
    if not path.is_file():
        sys.exit(f"{path} is not there: set COUNTERPOISE_DATA to a folder with bccd/BCCD.zip (see the top of this file)")
    return zipfile.ZipFile(path)


def read(part, most=None):
    """Images (n, 3, HEIGHT, WIDTH) in [0, 1], and per image its boxes (k, 4) and their classes (k,), of "train", "val" or "test"."""
    images, boxes, classes = [], [], []
    with archive() as files:
        for name in files.read(f"BCCD/ImageSets/Main/{part}.txt").decode().split()[:most]:
            image = Image.open(io.BytesIO(files.read(f"BCCD/JPEGImages/{name}.jpg")))
            image.draft("RGB", (WIDTH, HEIGHT))  # decoding at a quarter of the size is four times as fast
            images.append(np.asarray(image.convert("RGB").resize((WIDTH, HEIGHT))))
            objects = ElementTree.fromstring(files.read(f"BCCD/Annotations/{name}.xml")).findall("object")
            corners = [[float(cell.findtext(f"bndbox/{edge}")) for edge in ("xmin", "ymin", "xmax", "ymax")] for cell in objects]
            boxes.append(torch.tensor(corners).reshape(-1, 4) / 4)
            classes.append(torch.tensor([CLASSES.index(cell.findtext("name")) for cell in objects], dtype=torch.int64))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255, boxes, classes


def match(boxes, classes):
    """What each place should say, for one image: labels (rows, columns) and box targets (4, rows, columns).

    The place where the center of a cell lies is foreground, 1 + class. Its neighbors in the middle of the cell would be right too: they
    are ignored (-1). All others are background (0).
    """
    rows, columns = HEIGHT // STRIDE, WIDTH // STRIDE
    labels, targets = torch.zeros(rows, columns, dtype=torch.int64), torch.zeros(4, rows, columns)
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
    center, size = (boxes[:, :2] + boxes[:, 2:]) / 2 / STRIDE, (boxes[:, 2:] - boxes[:, :2]).clamp(min=1) / STRIDE
    for (cx, cy), (w, h) in zip(center, size, strict=True):
        labels[((x - cx).abs() < w / 4) & ((y - cy).abs() < h / 4)] = -1
    for k in classes.argsort():  # where two centers share a place, the rarer class has it
        (cx, cy), (w, h) = center[k], size[k]
        row, column = min(int(cy), rows - 1), min(int(cx), columns - 1)
        labels[row, column] = 1 + classes[k]
        targets[:, row, column] = torch.stack([cx - column - 0.5, cy - row - 0.5, w.log(), h.log()])
    return labels, targets


# ---- the detector ----------------------------------------------------------------------------------------------------------------------


class Detector(nn.Module):
    def __init__(self, prior=None):
        super().__init__()
        layers = []
        for inputs, outputs, stride in zip((3, *CHANNELS), CHANNELS, (2, 2, 2, 1, 1), strict=False):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.classify, self.locate = nn.Conv2d(CHANNELS[-1], len(CLASSES), 1), nn.Conv2d(CHANNELS[-1], 4, 1)
        for head in (self.classify, self.locate):
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)
        if prior is not None:
            prior_bias_(self.classify, prior)  # the one line that this is about

    def forward(self, images):
        features = self.body(images)
        return self.classify(features), self.locate(features)


def losses(logits, located, labels, targets, focal=False):
    """Classification over all places that are not ignored, localization over the foreground; both per object."""
    foreground, counted = labels > 0, (labels >= 0)[:, None]
    objects = max(1, int(foreground.sum()))
    wanted = F.one_hot(labels.clamp(min=0), len(CLASSES) + 1)[..., 1:].permute(0, 3, 1, 2).float()
    if focal:
        each = FocalLoss(gamma=2.0, reduction="none")(logits.flatten(), wanted.flatten()).view_as(wanted) * (0.75 - 0.5 * wanted)
    else:
        each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    distance = F.smooth_l1_loss(located, targets, reduction="none", beta=0.11)
    return (each * counted).sum() / objects, (distance * foreground[:, None]).sum() / objects


def train(images, labels, targets, prior=None, focal=False, steps=STEPS, seed=0):
    """The trained detector, the norm of the bias gradient at step 0, and the classification loss of every step."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = Detector(prior)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps)
    pull, course = None, []
    for _ in range(steps):
        chosen = torch.from_numpy(rng.choice(len(images), BATCH))
        row, column = (int(rng.integers(labels.shape[axis] - CROP + 1)) for axis in (1, 2))
        places = slice(row, row + CROP), slice(column, column + CROP)
        pixels = tuple(slice(part.start * STRIDE, part.stop * STRIDE) for part in places)
        crop = images[chosen][:, :, *pixels]
        loss_cls, loss_box = losses(*model(crop), labels[chosen][:, *places], targets[chosen][:, :, *places], focal)
        optimizer.zero_grad()
        (loss_cls + loss_box).backward()
        pull = model.classify.bias.grad.norm().item() if pull is None else pull
        optimizer.step()
        schedule.step()
        course.append(loss_cls.item())
    return model.eval(), pull, course


# ---- from scores to detections, and how good they are ----------------------------------------------------------------------------------


def overlap(a, b):
    """Intersection over union of all pairs of boxes, (len(a), len(b))."""
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    common = (high - low).clamp(min=0).prod(dim=2)
    return common / ((a[:, 2:] - a[:, :2]).prod(dim=1)[:, None] + (b[:, 2:] - b[:, :2]).prod(dim=1) - common)


def detect(scores, located, keep):
    """For one image and each class: boxes and scores after ``keep`` and non-maximum suppression, best first."""
    kept = keep(scores.permute(1, 2, 0)).permute(2, 0, 1)
    rows, columns = torch.meshgrid(torch.arange(scores.shape[1]), torch.arange(scores.shape[2]), indexing="ij")
    center = torch.stack([columns, rows], dim=2) + 0.5 + located[:2].permute(1, 2, 0)
    half = located[2:].permute(1, 2, 0).clamp(-3, 4).exp() / 2
    boxes = STRIDE * torch.cat([center - half, center + half], dim=2)
    found = []
    for k in range(len(scores)):
        order = scores[k][kept[k]].argsort(descending=True)
        candidates, value = boxes[kept[k]][order], scores[k][kept[k]][order]
        shared, alive = overlap(candidates, candidates), torch.ones(len(candidates), dtype=torch.bool)
        for i in range(len(candidates)):
            if alive[i]:
                alive[i + 1 :] &= shared[i, i + 1 :] <= 0.5
        found.append((candidates[alive], value[alive]))
    return found


def average_precision(model, images, boxes, classes, keep):
    """Per class the area under precision over recall, and how many candidates were kept.

    A detection is right if it overlaps by half with a cell that no surer one has found.
    """
    with torch.no_grad():
        logits, located = model(images)
    scores = logits.sigmoid()
    right, value, cells = ([[] for _ in CLASSES] for _ in range(3))
    for i in range(len(images)):
        for k, (found, certain) in enumerate(detect(scores[i], located[i], keep)):
            truth = boxes[i][classes[i] == k]
            free = torch.ones(len(truth), dtype=torch.bool)
            cells[k].append(len(truth))
            value[k].append(certain)
            for shared in overlap(found, truth):
                shared = torch.where(free, shared, -1.0)
                hit = len(shared) > 0 and bool(shared.max() > 0.5)
                right[k].append(hit)
                if hit:
                    free[shared.argmax()] = False
    result = []
    for k in range(len(CLASSES)):
        order = torch.cat(value[k]).argsort(descending=True)
        hits = torch.tensor(right[k], dtype=torch.float64)[order]
        precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
        result.append(float((precision * hits).sum() / sum(cells[k])))
    return result, int(keep(scores.permute(0, 2, 3, 1)).sum())


if __name__ == "__main__":
    images, *cells = read("train")
    labels, targets = (torch.stack(parts) for parts in zip(*map(match, *cells), strict=True))
    prior = estimate_prior(labels, len(CLASSES), ignore_index=-1)  # counts, no forward pass
    shares = ", ".join(f"{name} 1 in {1 / share:.0f}" for name, share in zip(CLASSES, prior.per_class.tolist(), strict=True))
    print(f"Places that hold a cell: {shares}; {100 * (1 - prior.foreground):.1f} % are background.\n")

    test = read("test")
    at_the_prior = PriorScoreThreshold(prior.per_class)
    print(f"{'':28s} bias gradient   loss at steps          average precision at an overlap of 1/2")
    print(f"{'':28s} at step 0       0     10    {STEPS - 1:<8d} " + "".join(f"{name:>11s}" for name in CLASSES) + "       mean")
    arms = {
        "cross-entropy, bias 0": {},
        "cross-entropy, prior bias": {"prior": prior.per_class},
        "focal loss, bias of 0.01": {"prior": 0.01, "focal": True},
    }
    models = {}
    for name, options in arms.items():
        models[name], pull, course = train(images, labels, targets, **options)
        precision, _ = average_precision(models[name], *test, at_the_prior.keep)
        losses_seen = "".join(f"{course[step]:<6.2f}" for step in (0, 10)) + f"{course[-1]:<8.2f}"
        print(f"{name:28s} {pull:<15.2f} {losses_seen} " + "".join(f"{value:11.3f}" for value in (*precision, np.mean(precision))))

    print("\nThe same detector (prior bias), with other rules for the candidates that suppression gets to see:")
    for name, rule in (("score > 0.5", 0.5), ("score > 0.05", 0.05), ("score > prior of its class", prior.per_class)):
        precision, kept = average_precision(models["cross-entropy, prior bias"], *test, PriorScoreThreshold(rule).keep)
        print(f"  {name:28s} {kept / len(test[0]):6.1f} candidates per image   mean average precision {np.mean(precision):.3f}")
