"""Sampling-free (Chen et al. 2019, arXiv:1909.04868): dense detection by plain cross-entropy over all anchors, from the right bias.

The paper drops the sampling of anchors and the focal loss from detectors on COCO; instead the classification bias starts where the prior
is, and the classification loss is scaled to the localization loss. Here the detector is small enough for a laptop: noisy canvases of 48 x
48 pixels with one or two handwritten digits, a fully convolutional net of stride 4, and for each of its 12 x 12 cells ten sigmoids (is the
center of a 0, 1, ... 9 here?) and the place of the center. One of a thousand of these labels is 1. Five arms differ in their loss and
their first bias and in nothing else: digits, canvases, weights and batches are the same for all arms of a seed. Each arm has the learning
rate that is best for it on validation canvases. Training, validation and test canvases are made of different digits.

To know when reading: what is compared are cells, by the mean over classes of average precision, not boxes after suppression. A mAP of 0.1
is that of a detector that finds every digit and cannot tell one from another. Localization is easy here: its loss falls to nearly 0
and takes the step of guided scaling with it, which need not be so on photographs. An arm that chooses the smallest or largest learning rate
might do better beyond it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from counterpoise._seeding import generator, seed_integer
from counterpoise._stats import mean_interval

from ._types import Claim, Finding, Replication
from ._work import Work, paired, rows_where

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

__all__ = ["CLAIMS", "SLUG", "run"]

SLUG = "sampling-free"

SIDE, DIGIT, STRIDE, CLASSES = 48, 8, 4, 10
NOISE = 0.3  # standard deviation; ink goes up to 1
CANVASES = {"train": 600, "valid": 300, "test": 300}
DIGITS = {"train": 1000, "valid": 397, "test": 400}  # of the 1,797 of scikit-learn, dealt anew for every seed
CHANNELS = (24, 48, 64)
STEPS, BATCH, MOMENTUM = 1000, 16, 0.9
LEARNING_RATES = (0.005, 0.02, 0.05)
BETA = 0.11  # of the smooth L1, as in the authors' code
ALPHA, GAMMA, FOCAL_PRIOR = 0.25, 2.0, 0.01  # of the focal loss, as in its paper

QUICK_STEPS, QUICK_RATES = 40, (0.02,)
QUICK_CANVASES = {"train": 160, "valid": 60, "test": 60}

SMALLER = 100  # times, the bias gradient at step 0
MARGIN = 0.01  # of mAP, by which sampling-free may fall short of the focal loss
EXACT = 1e-6


@dataclass(frozen=True)
class Arm:
    name: str
    bias: str = "zero"  # "zero", "prior" (of the training set), or "focal" (0.01)
    loss: str = "bce"
    guided: bool = False


ARMS = {
    "plain": Arm("cross-entropy, bias 0"),
    "focal": Arm("focal loss, bias of 0.01", bias="focal", loss="focal"),
    "bias": Arm("cross-entropy, prior bias", bias="prior"),
    "guided": Arm("guided, bias 0", guided=True),
    "bias-guided": Arm("guided, prior bias", bias="prior", guided=True),
}
SAMPLING_FREE = ("bias", "bias-guided")

CLAIMS = (
    Claim(
        "first-gradient",
        "A bias that starts at the prior takes the background's pull out of the first step.",
        f"norm of the gradient of the classification bias at step 0 at most 1/{SMALLER} of that from bias 0, for every seed",
    ),
    Claim(
        "bias",
        "Cross-entropy over all anchors trains from the bias of the prior, and not so from bias 0.",
        "95 % interval over seeds of the difference in mAP above 0, learning rate chosen on validation for both",
    ),
    Claim(
        "focal",
        "Without focal weighting the detector is as good: the better of bias and bias with guided scaling, chosen on validation.",
        f"95 % interval over seeds of the difference in mAP above -{MARGIN:g}, learning rate chosen on validation for both",
    ),
    Claim(
        "identity",
        "The scaled classification loss has the value of the localization loss at every step.",
        f"relative difference at most {EXACT:g} in every step of all guided runs",
    ),
    Claim("guided", "Guided scaling improves on the bias alone, and saves training from bias 0."),
)

SEEDS, QUICK_SEEDS = tuple(range(5)), (0, 1)

Row = Mapping[str, Any]
Interval = tuple[float, float, float]


def run(
    *, seeds: Sequence[int] | None = None, quick: bool = False, data_dir: str | Path | None = None, work: Work | None = None
) -> Replication:
    """Five arms at three learning rates for each of ``seeds``. The digits come with scikit-learn: ``data_dir`` is not used."""
    seeds = tuple(seeds if seeds is not None else QUICK_SEEDS if quick else SEEDS)
    rates = QUICK_RATES if quick else LEARNING_RATES
    tasks = [{"seed": seed, "arm": arm, "rate": rate, "quick": quick} for seed in seeds for arm in ARMS for rate in rates]
    runs = (work or Work()).map(_train, tasks)
    chosen = _chosen(runs, seeds)
    return Replication(
        slug=SLUG,
        claims=CLAIMS,
        findings=_findings(runs, chosen),
        notes=_notes(chosen),
        tables=_tables(runs, chosen),
        figure=_figure(chosen),
        seeds=seeds,
        quick=quick,
    )


# ---- one run ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Canvases:
    pixels: Tensor  # (n, 1, SIDE, SIDE)
    labels: Tensor  # (n, cells, cells): 0 is background, d + 1 a cell that holds the center of digit d
    offsets: Tensor  # (n, 2, cells, cells): where in such a cell the center is, from -1/2 to 1/2


def _canvases(seed: int, part: str, count: int) -> Canvases:
    """Noise with one or two digits that do not overlap, at places that need not fit the cells."""
    import torch
    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)
    first = list(DIGITS).index(part)
    ends = np.cumsum([0, *DIGITS.values()])
    own = generator(seed, "digits").permutation(len(images))[ends[first] : ends[first + 1]]
    rng = generator(seed, "canvases", part)
    drawn = rng.choice(own, size=(count, 2))
    corner = rng.integers(SIDE - DIGIT + 1, size=(count, 2, 2))
    while (crowded := np.abs(corner[:, 0] - corner[:, 1]).max(axis=1) < DIGIT).any():
        corner[crowded, 1] = rng.integers(SIDE - DIGIT + 1, size=(int(crowded.sum()), 2))
    both = rng.random(count) < 0.5
    pixels = rng.normal(0, NOISE, size=(count, SIDE, SIDE))
    cells = SIDE // STRIDE
    labels = np.zeros((count, cells, cells), dtype=np.int64)
    offsets = np.zeros((count, 2, cells, cells))
    reach = np.arange(DIGIT)
    for which, rows in enumerate((np.arange(count), np.flatnonzero(both))):
        row, column = corner[rows, which].T
        ink = images[drawn[rows, which]].reshape(-1, DIGIT, DIGIT) / 16
        pixels[rows[:, None, None], (row[:, None] + reach)[:, :, None], (column[:, None] + reach)[:, None, :]] += ink
        center = (corner[rows, which] + DIGIT / 2) / STRIDE
        cell = center.astype(np.int64)
        labels[rows, cell[:, 0], cell[:, 1]] = 1 + digits[drawn[rows, which]]
        offsets[rows, :, cell[:, 0], cell[:, 1]] = center - cell - 0.5
    return Canvases(torch.from_numpy(pixels).float()[:, None], torch.from_numpy(labels), torch.from_numpy(offsets).float())


def _network(seed: int) -> tuple[nn.Sequential, nn.Conv2d, nn.Conv2d]:
    """Body, classification layer, localization layer; layers that decide start near 0, as detectors' do."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_integer(seed, "weights"))
        blocks: list[nn.Module] = []
        for inputs, outputs, stride in zip((1, *CHANNELS), CHANNELS, (2, 2, 1), strict=False):
            blocks += [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        heads = nn.Conv2d(CHANNELS[-1], CLASSES, 1), nn.Conv2d(CHANNELS[-1], 2, 1)
        for head in heads:
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.get_parameter("bias"))
    return nn.Sequential(*blocks), *heads


def _train(seed: int, arm: str, rate: float, quick: bool = False) -> dict[str, Any]:
    """One arm at one learning rate; mAP on validation and test canvases."""
    import torch

    from counterpoise.losses import GuidedLossScaling
    from counterpoise.nn.init import estimate_prior, prior_bias_

    how = ARMS[arm]
    sizes = QUICK_CANVASES if quick else CANVASES
    parts = {part: _canvases(seed, part, size) for part, size in sizes.items()}
    train = parts["train"]
    prior = estimate_prior(train.labels, CLASSES, min_count=1).mean
    body, classify, locate = _network(seed)
    if how.bias != "zero":
        prior_bias_(classify, prior if how.bias == "prior" else FOCAL_PRIOR)
    guided = GuidedLossScaling() if how.guided else None
    parameters = [parameter for module in (body, classify, locate) for parameter in module.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=rate, momentum=MOMENTUM)

    batches = generator(seed, "batches")
    bias_gradient, error = np.nan, 0.0
    ratios: list[float] = []
    finite = True
    for step in range(QUICK_STEPS if quick else STEPS):
        rows = torch.from_numpy(batches.choice(len(train.labels), BATCH, replace=False))
        features = body(train.pixels[rows])
        loss_cls, loss_box = _losses(classify(features), locate(features), train.labels[rows], train.offsets[rows], how.loss)
        finite = bool(torch.isfinite(loss_cls + loss_box))
        if not finite:
            break
        scaled = loss_cls
        if guided is not None:
            scaled = guided(loss_cls, loss_box)
            ratios.append(float(loss_box.detach() / loss_cls.detach()))
            error = max(error, abs(float(scaled.detach() / loss_box.detach()) - 1))
        optimizer.zero_grad()
        torch.autograd.backward(scaled + loss_box)
        if step == 0:
            bias_gradient = float(cast("Tensor", classify.get_parameter("bias").grad).norm())
        optimizer.step()
    body.eval()
    scores = {part: _mean_average_precision(body, classify, parts[part]) if finite else 0.0 for part in ("valid", "test")}
    return {
        "bias_gradient": bias_gradient,
        "error": error,
        "first_ratio": ratios[0] if ratios else None,
        "last_ratio": float(np.median(ratios[-100:])) if ratios else None,
        "diverged": not finite,
        "prior": prior,
    } | scores


def _losses(logits: Tensor, located: Tensor, labels: Tensor, offsets: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Classification summed over all cells and classes, localization over cells with an object; both over the number of objects."""
    from torch.nn import functional as F

    from counterpoise.losses import FocalLoss

    foreground = labels > 0
    objects = max(1, int(foreground.sum()))
    targets = F.one_hot(labels, CLASSES + 1)[..., 1:].movedim(-1, 1).to(logits.dtype)
    if kind == "focal":
        each = FocalLoss(GAMMA, reduction="none")(logits.flatten(), targets.flatten())
        loss_cls = each @ (ALPHA * targets + (1 - ALPHA) * (1 - targets)).flatten()
    else:
        loss_cls = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    distance = F.smooth_l1_loss(located, offsets, reduction="none", beta=BETA)
    return loss_cls / objects, (distance * foreground[:, None]).sum() / objects


def _mean_average_precision(body: nn.Module, classify: nn.Module, canvases: Canvases) -> float:
    """Mean over the classes of the average precision over all cells."""
    import torch
    from sklearn.metrics import average_precision_score

    with torch.no_grad():
        scores = classify(body(canvases.pixels)).movedim(1, -1).reshape(-1, CLASSES).double().numpy()
    if not np.isfinite(scores).all():
        return 0.0
    truth = canvases.labels.flatten().numpy()
    present = [k for k in range(CLASSES) if (truth == k + 1).any()]
    return float(np.mean([average_precision_score(truth == k + 1, scores[:, k]) for k in present]))


# ---- what it says -----------------------------------------------------------------------------------------------------------------------


def _chosen(runs: Sequence[Row], seeds: Sequence[int]) -> list[Row]:
    """Per seed and arm the run with the best validation mAP, and as arm "sampling-free" the better of its two variants there."""

    def best(rows: Sequence[Row]) -> Row:
        return max(rows, key=lambda row: row["valid"])  # of equals the first: the smaller learning rate, the simpler arm

    own = [best(rows_where(runs, seed=seed, arm=arm)) for seed in seeds for arm in ARMS]
    variants = [best([row for row in own if row["seed"] == seed and row["arm"] in SAMPLING_FREE]) for seed in seeds]
    return own + [{**row, "arm": "sampling-free", "variant": row["arm"]} for row in variants]


def _difference(chosen: Sequence[Row], arm: str, baseline: str) -> Interval:
    return mean_interval(paired(chosen, "test", arm, baseline))


def _mean(rows: Sequence[Row], column: str, arm: str) -> float:
    return float(np.mean([row[column] for row in rows_where(rows, arm=arm)]))


def _findings(runs: Sequence[Row], chosen: Sequence[Row]) -> tuple[Finding, ...]:
    gradient, bias, focal, identity, guided = CLAIMS
    pulls = {arm: {row["seed"]: row["bias_gradient"] for row in rows_where(runs, arm=arm)} for arm in ARMS}
    ratio = max(pulls["bias"][seed] / pulls["plain"][seed] for seed in pulls["plain"])
    error = max(row["error"] for row in runs)
    variants = _counted([row["variant"] for row in rows_where(chosen, arm="sampling-free")])

    def compared(arm: str, baseline: str) -> str:
        first, second = (_mean(chosen, "test", name) for name in (arm, baseline))
        return f"{first:.3f} against {second:.3f}: difference {_signed(*_difference(chosen, arm, baseline))}"

    return (
        gradient.holds(
            ratio <= 1 / SMALLER,
            f"Gradient norm of the classification bias at step 0: {_mean(runs, 'bias_gradient', 'plain'):.0f} from bias 0, "
            f"{_mean(runs, 'bias_gradient', 'bias'):.2f} from the prior; 1/{1 / ratio:.0f} in the worst of {len(pulls['plain'])} seeds.",
            estimate=ratio,
            unit="ratio of norms, worst seed",
        ),
        bias.above(
            _difference(chosen, "bias", "plain"),
            0.0,
            f"mAP of cross-entropy from the prior and from bias 0: {compared('bias', 'plain')}.",
            unit="mAP",
        ),
        focal.above(
            _difference(chosen, "sampling-free", "focal"),
            -MARGIN,
            f"mAP without focal weights ({variants}) and with them: {compared('sampling-free', 'focal')}.",
            unit="mAP",
        ),
        identity.holds(
            error <= EXACT, f"Largest relative difference over all guided steps: {error:.1e}.", estimate=error, unit="relative difference"
        ),
        *(
            guided.reported(
                _difference(chosen, arm, baseline),
                f"mAP {name}, with guided scaling and without: {compared(arm, baseline)}.",
                unit="mAP",
                name=name,
            )
            for name, arm, baseline in (("from the prior", "bias-guided", "bias"), ("from bias 0", "guided", "plain"))
        ),
    )


def _signed(estimate: float, low: float, high: float) -> str:
    return f"{estimate:+.3f} ({low:+.3f} to {high:+.3f})"


def _counted(names: Sequence[str]) -> str:
    return ", ".join(f"{names.count(name)} x {ARMS[name].name}" for name in SAMPLING_FREE if name in names)


def _notes(chosen: Sequence[Row]) -> tuple[str, ...]:
    ratios = [row for row in chosen if row["arm"] == "bias-guided"]
    return (
        f"Guided scaling multiplied the classification gradient by {_median(ratios, 'first_ratio'):.2g} at the first step and by "
        f"{_median(ratios, 'last_ratio'):.2g} at the end (medians, from the prior): the step of the classifier falls with the "
        "localization loss. Localization is easy here; where its loss stays larger, the ratio does, and floor= keeps it above a value.",
        "Setting the bias is one line, costs nothing and has no knob. It is for cross-entropy and its relatives; a loss whose gradient "
        "vanishes at small probabilities, such as one of the confusion matrix, must not start there.",
        "Learning rates chosen on validation: "
        + "; ".join(f"{how.name}: {_rates(rows_where(chosen, arm=arm))}" for arm, how in ARMS.items())
        + ".",
    )


def _median(rows: Sequence[Row], column: str) -> float:
    return float(np.median([row[column] for row in rows]))


def _rates(rows: Sequence[Row]) -> str:
    counts = {rate: sum(row["rate"] == rate for row in rows) for rate in sorted({row["rate"] for row in rows})}
    return ", ".join(f"{rate:g}" + (f" ({count} x)" if len(counts) > 1 else "") for rate, count in counts.items())


def _tables(runs: Sequence[Row], chosen: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    def tested(rows: Sequence[Row]) -> str:
        estimate, low, high = mean_interval([row["test"] for row in rows])
        return f"{estimate:.3f} ({low:.3f} to {high:.3f})" if len(rows) > 1 else f"{estimate:.3f}"

    rates = sorted({row["rate"] for row in runs})
    return {
        "Test mAP at the learning rate chosen on validation": [
            {
                "arm": how.name,
                "bias gradient at step 0": f"{_mean(runs, 'bias_gradient', arm):.3g}",
                "mAP": tested(rows_where(chosen, arm=arm)),
                "learning rates": _rates(rows_where(chosen, arm=arm)),
            }
            for arm, how in ARMS.items()
        ],
        "Test mAP at every learning rate": [
            {"arm": how.name} | {f"lr {rate:g}": tested(rows_where(runs, arm=arm, rate=rate)) for rate in rates}
            for arm, how in ARMS.items()
        ],
    }


def _figure(chosen: Sequence[Row]) -> Figure:
    """Per arm: how hard the first step pulls at the bias, and where training ends."""
    from counterpoise.report import _plots as plots

    row_height, top, bottom, left, width, gap = 40, 74, 44, 220, 210, 44
    height = row_height * len(ARMS) + top + bottom
    with plots.style():
        fig = plots.figure(plots.WIDTH, height)
        pull, reached = (plots.axes(fig, left + i * (width + gap), bottom, width, row_height * len(ARMS)) for i in range(2))
        for ax in (pull, reached):
            plots.plain_rows(ax, len(ARMS))
        for row, (arm, how) in enumerate(ARMS.items()):
            color = plots.BLUE if arm in SAMPLING_FREE else plots.GRAY
            plots.row_text(fig, pull, row, 10, how.name)
            norm = _mean(chosen, "bias_gradient", arm)
            pull.plot([1e-3, norm], [row, row], color=color, lw=1.6, solid_capstyle="butt")
            pull.plot(norm, row, marker="o", ms=9, color=color)
            label = f"{norm:.0f}" if norm >= 1 else f"{norm:.2g}"
            pull.annotate(label, (norm, row), (9, 0), textcoords="offset points", va="center", color=plots.MUTED)
            scores = [line["test"] for line in rows_where(chosen, arm=arm)]
            reached.plot(scores, [row] * len(scores), marker="|", ms=13, mew=1.3, color=color, ls="none")
            reached.plot(np.mean(scores), row, marker="o", ms=9, color=color)
        pull.set_xscale("log")
        pull.set_xlim(1e-3, 3e3)
        pull.set_xticks([1e-2, 1, 1e2], ["0.01", "1", "100"])
        pull.minorticks_off()
        pull.set_xlabel("gradient norm of the bias, step 0")
        reached.set_xlim(0, max(row["test"] for row in chosen) * 1.15 + 0.01)
        reached.set_xlabel("mAP after training (test)")
        fig.text(10 / plots.WIDTH, 1 - 16 / height, "Digits on noise: one label in a thousand is positive", va="center", weight="bold")
        fig.text(
            10 / plots.WIDTH, 1 - 40 / height, "● mean   ❙ seeds   blue: without sampling or focal weights, as the paper proposes",
            va="center", color=plots.MUTED,
        )  # fmt: skip
        return fig
