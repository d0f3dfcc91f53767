"""ConR (arXiv:2309.06651): pushing apart the features of examples that are predicted alike and have different targets.

The paper estimates ages, depths and gaze from pictures, with ConR on top of other methods for skewed regression. Re-tested here on a
problem of minutes: the angle by which a digit of scikit-learn's is rotated. Training angles follow an exponential density that falls by a
factor of 100 from 0 to 90 degrees; test angles are uniform, so that all ranges count alike. A small convolutional network, with a linear
head on 64 features, is trained with the absolute error; the second view of an image is the same with noise.

Where the features are taken is judged both ways: after the ReLU in front of the head, as in the paper's networks, where no feature is
negative, and before it. The claim has to hold in both places to count as replicated.

The control is trained on the same two views without ConR. Without it, what a second view does by itself would be credited to the
regularizer.

What this cannot say: how it goes on photographs, or for a larger network. A digit rotated by 90 degrees may look like another one that is
not rotated, so some error remains for everybody.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from counterpoise._errors import check_choice
from counterpoise._seeding import generator, seed_integer
from counterpoise._stats import mean_interval

from ._types import Claim, Finding, Replication
from ._work import Work, paired, rows_where

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

SLUG = "conr"

TRAIN, SIDE = 1200, 12  # images to train on (of 1797), and their size with a dark margin
LARGEST, RATIO = 90.0, 100.0  # degrees, and how much denser angles are at 0 than there
MANY, FEW = 30.0, 60.0  # angles below have many training images, above few
FEATURES, EPOCHS, BATCH, LEARNING_RATE = 64, 15, 64, 1e-3
SCALE = 30.0  # degrees that the network puts out as 1
NOISE = 0.05  # standard deviation of the second view's, of pixels in [0, 1]
WINDOW, TEMPERATURE, PUSH = 3.0, 0.2, 0.01  # of ConR; in degrees, and per degree
BETA, TOO_MUCH = 0.3, 1.0

FEW_GAIN = 0.0  # degrees: the interval of the difference on few-shot angles lies below
MANY_LOSS = 0.3  # and that on many-shot ones below this

SEEDS, QUICK_SEEDS = tuple(range(6, 18)), (0, 1)  # the first six served to try the experiment out
QUICK_EPOCHS = 1


@dataclass(frozen=True)
class Arm:
    """Whether the second view is trained on, how much ConR counts, whether on features before or after the ReLU, and what the regression
    loss is: l1, l1 with LDS weights, or balanced squared error."""

    name: str
    views: int = 2
    beta: float = 0.0
    relu: bool = False
    loss: str = "l1"


PLAIN, CONTROL, AFTER, BEFORE = "one view", "control", "conr after relu", "conr before relu"
STRONG_AFTER, STRONG_BEFORE = "conr after relu, beta 1", "conr before relu, beta 1"
WEIGHTED, WEIGHTED_CONR, BALANCED = "lds", "lds + conr", "balanced mse"
ARMS = (
    Arm(PLAIN, views=1),
    Arm(CONTROL),
    Arm(AFTER, beta=BETA, relu=True),
    Arm(BEFORE, beta=BETA),
    Arm(STRONG_AFTER, beta=TOO_MUCH, relu=True),
    Arm(STRONG_BEFORE, beta=TOO_MUCH),
    Arm(WEIGHTED, loss="lds"),
    Arm(WEIGHTED_CONR, beta=BETA, loss="lds"),
    Arm(BALANCED, loss="balanced"),
)
JUDGED = {AFTER: "features after the ReLU", BEFORE: "features before the ReLU"}
STRONG = {STRONG_AFTER: JUDGED[AFTER], STRONG_BEFORE: JUDGED[BEFORE]}
PARTS = ("all", "many", "few")
FEW_MARK: dict[str, Any] = {"marker": "o", "ms": 8}
MANY_MARK: dict[str, Any] = {"marker": "s", "ms": 6.5, "mfc": "white"}

CLAIMS = (
    Claim(
        "few",
        "ConR lowers the error where training examples are few.",
        f"beta {BETA:g}, window {WINDOW:g} degrees: the 95 % interval of the difference in mean absolute error to the control on angles "
        f"above {FEW:g} degrees, {len(SEEDS)} seeds, lies below {FEW_GAIN:g}, with features after the ReLU and before it.",
    ),
    Claim(
        "many",
        "It costs next to nothing where they are many.",
        f"The same arms: the interval of the difference on angles below {MANY:g} degrees lies below {MANY_LOSS:g} degrees.",
    ),
    Claim("all", "The error over the whole range falls."),
    Claim("views", "A second view alone, without ConR, is not what helps."),
    Claim("beta", f"Its strength matters: beta {TOO_MUCH:g}."),
    Claim("orthogonal", "It adds to methods that weigh rare targets (label distribution smoothing)."),
    Claim("baselines", "Other cures on the same two views: LDS weights and Balanced MSE, without ConR."),
)


def run(
    *,
    seeds: Sequence[int] | None = None,
    quick: bool = False,
    data_dir: str | Path | None = None,
    work: Work | None = None,
) -> Replication:
    """All arms for all seeds; ``data_dir`` is not used, since the digits come with scikit-learn."""
    chosen = tuple(seeds if seeds is not None else QUICK_SEEDS if quick else SEEDS)
    work = work or Work()
    epochs = QUICK_EPOCHS if quick else EPOCHS
    rows = work.map(train, [{"arm": arm.name, "seed": seed, "epochs": epochs} for seed in chosen for arm in ARMS])
    return Replication(
        slug=SLUG,
        claims=CLAIMS,
        findings=tuple(_findings(rows)),
        notes=_notes(rows),
        tables={
            "mean absolute error in degrees, mean over seeds, and what is gained or lost to the control": [_row(a, rows) for a in ARMS]
        },
        figure=_figure(rows),
        seeds=chosen,
        quick=quick,
    )


# ---- one run ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Digits:
    """Rotated images (n, 1, SIDE, SIDE) and their angles (n, 1) in degrees."""

    images: Tensor
    angles: Tensor
    test_images: Tensor
    test_angles: Tensor


def digits(seed: int) -> Digits:
    """Training angles from the exponential density, test angles from the uniform one."""
    import torch
    from sklearn.datasets import load_digits
    from torch.nn import functional as F

    rng = generator(seed, SLUG, "data")
    pixels = load_digits().images / 16
    order = rng.permutation(len(pixels))
    rate = math.log(RATIO) / LARGEST
    skewed = -np.log1p(-rng.random(TRAIN) * (1 - 1 / RATIO)) / rate
    uniform = LARGEST * rng.random(len(pixels) - TRAIN)
    margin = (SIDE - pixels.shape[1]) // 2
    images = F.pad(torch.tensor(pixels[order], dtype=torch.float32), [margin] * 4)[:, None]
    angles = torch.tensor(np.concatenate([skewed, uniform]), dtype=torch.float32)[:, None]
    images = rotated(images, angles[:, 0])
    return Digits(images[:TRAIN], angles[:TRAIN], images[TRAIN:], angles[TRAIN:])


def rotated(images: Tensor, degrees: Tensor) -> Tensor:
    """Images (n, 1, h, w) turned by (n,) degrees, bilinear, dark outside."""
    import torch
    from torch.nn import functional as F

    cos, sin = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    zero = torch.zeros_like(cos)
    turn = torch.stack([torch.stack([cos, -sin, zero], dim=1), torch.stack([sin, cos, zero], dim=1)], dim=1)
    grid = F.affine_grid(turn, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def train(arm: str, seed: int, epochs: int) -> dict[str, float]:
    """Mean absolute error in degrees of one network, on all test angles and by range."""
    check_choice("arm", arm, [known.name for known in ARMS])
    data = digits(seed)
    net = fitted(next(known for known in ARMS if known.name == arm), data, seed, epochs)
    return errors(net, data)


def fitted(arm: Arm, data: Digits, seed: int, epochs: int) -> nn.Module:
    """A trained network. Its initial parameters, the order of the batches and the noise depend on the seed alone."""
    import torch
    from torch.nn import functional as F

    from counterpoise.losses import BalancedMSELoss, ConRLoss, lds_weights

    net = _network(seed_integer(seed, SLUG, "network"))
    source = torch.Generator().manual_seed(seed_integer(seed, SLUG, "batches"))
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    conr = ConRLoss(WINDOW, TEMPERATURE, PUSH)
    balanced = BalancedMSELoss(noise_sigma=WINDOW / SCALE)
    weights = lds_weights(data.angles, bins=int(LARGEST), scheme="sqrt_inverse")[:, None] if arm.loss == "lds" else torch.ones(TRAIN, 1)
    mean = data.angles.mean()
    for _ in range(epochs):
        order = torch.randperm(TRAIN, generator=source)
        for batch in (order[start : start + BATCH] for start in range(0, TRAIN, BATCH)):
            first = data.images[batch]
            second = first + NOISE * torch.randn(first.shape, generator=source)
            images = first if arm.views == 1 else torch.cat([first, second])
            angles, weight = (part[batch].repeat(arm.views, 1) for part in (data.angles, weights))
            features = net[0](images)
            predicted = net[1](features)
            features = features.relu() if arm.relu else features
            wanted = (angles - mean) / SCALE
            if arm.loss == "balanced":
                loss = balanced(predicted, wanted)
            else:
                loss = (weight * F.l1_loss(predicted, wanted, reduction="none")).mean()
            if arm.beta:
                loss = loss + arm.beta * conr(features, angles, SCALE * predicted + mean, weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.register_buffer("mean", mean)
    return net


def predictions(net: Any, images: Tensor) -> Tensor:
    """Angles in degrees, (n, 1)."""
    import torch

    with torch.no_grad():
        found: Tensor = SCALE * net(images) + net.mean
        return found


def errors(net: nn.Module, data: Digits) -> dict[str, float]:
    error = (predictions(net, data.test_images) - data.test_angles).abs()[:, 0]
    angle = data.test_angles[:, 0]
    return {"all": float(error.mean()), "many": float(error[angle < MANY].mean()), "few": float(error[angle > FEW].mean())}


def _network(seed: int) -> nn.Sequential:
    """Body and head."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * (SIDE // 4) ** 2, FEATURES),
        )  # fmt: skip
        return nn.Sequential(body, nn.Sequential(nn.ReLU(), nn.Linear(FEATURES, 1)))


# ---- what was found ---------------------------------------------------------------------------------------------------------------------


def _difference(rows: Sequence[Mapping[str, Any]], arm: str, part: str, baseline: str = CONTROL) -> tuple[float, float, float]:
    return mean_interval(paired(rows, part, arm, baseline))


def _mean(rows: Sequence[Mapping[str, Any]], arm: str, part: str) -> float:
    return float(np.mean([row[part] for row in rows_where(rows, arm=arm)]))


def _findings(rows: Sequence[Mapping[str, Any]]) -> list[Finding]:
    claim = {claim.key: claim for claim in CLAIMS}
    unit = {"unit": "degrees"}

    def said(arm: str, part: str, baseline: str = CONTROL) -> tuple[tuple[float, float, float], str]:
        interval = _difference(rows, arm, part, baseline)
        return interval, f"{_mean(rows, baseline, part):.2f} degrees without it, {_mean(rows, arm, part):.2f} with it; {_in(interval)}"

    found = []
    for key, part, bound, angles in (("few", "few", FEW_GAIN, "Few-shot"), ("many", "many", MANY_LOSS, "Many-shot")):
        for arm, where in JUDGED.items():
            interval, text = said(arm, part)
            found.append(claim[key].below(interval, bound, f"{angles} angles, {where}: {text}.", name=where, **unit))
    for arm, where in JUDGED.items():
        interval, text = said(arm, "all")
        found.append(claim["all"].reported(interval, f"All angles, {where}: {text}.", name=where, **unit))
    views = _difference(rows, CONTROL, "few", PLAIN)
    added, added_text = said(WEIGHTED_CONR, "few", WEIGHTED)
    found += [
        claim["views"].reported(views, f"The second view alone changes the few-shot error by {_in(views)}.", **unit),
        claim["orthogonal"].reported(
            added,
            f"On top of LDS weights, few-shot: {added_text}; many-shot {_in(_difference(rows, WEIGHTED_CONR, 'many', WEIGHTED))}.",
            **unit,
        ),
    ]
    for arm, where in STRONG.items():
        interval, text = said(arm, "few")
        text = f"beta {TOO_MUCH:g}, {where}, few-shot: {text}; many-shot {_in(_difference(rows, arm, 'many'))}."
        found.append(claim["beta"].reported(interval, text, name=where, **unit))
    for arm in (WEIGHTED, BALANCED):
        interval = _difference(rows, arm, "few")
        text = f"{arm}: {_mean(rows, arm, 'few'):.2f} degrees on few-shot angles, {_in(interval)} against the control; "
        text += f"many-shot {_in(_difference(rows, arm, 'many'))}."
        found.append(claim["baselines"].reported(interval, text, name=arm, **unit))
    return found


def _in(interval: tuple[float, float, float]) -> str:
    mean, low, high = interval
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


def _row(arm: Arm, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"arm": arm.name, "views": arm.views, "beta": arm.beta} | {part: _mean(rows, arm.name, part) for part in PARTS}
    for part in PARTS:
        mean, low, high = _difference(rows, arm.name, part)
        row |= {f"{part} difference": mean, f"{part} low": low, f"{part} high": high}
    return row


def _notes(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return (
        f"beta does not carry over: on few-shot angles {TOO_MUCH:g} in place of {BETA:g} gave {_mean(rows, STRONG_AFTER, 'few'):.1f} "
        f"instead of {_mean(rows, AFTER, 'few'):.1f} degrees after the ReLU, and {_mean(rows, STRONG_BEFORE, 'few'):.1f} instead of "
        f"{_mean(rows, BEFORE, 'few'):.1f} before it. The authors' 4 belongs to ages in years. Search it on a log scale from 0.03.",
        f"Where the features are taken matters: the few-shot error changed by {_in(_difference(rows, AFTER, 'few'))} after the ReLU and by "
        f"{_in(_difference(rows, BEFORE, 'few'))} before it. After it no cosine is negative.",
        "Window, targets and predictions are in degrees here; what counts is that all three have the unit of the targets.",
        "Balanced MSE has the noise of the window, and LDS roots of counts in bins of a degree; neither was tuned.",
    )


def _figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    from counterpoise.report import _plots

    shown = [arm for arm in ARMS if arm.name != CONTROL]
    names = {
        PLAIN: "one view, no ConR",
        AFTER: f"ConR after ReLU, β {BETA:g}",
        BEFORE: f"ConR before ReLU, β {BETA:g}",
        STRONG_AFTER: f"ConR after ReLU, β {TOO_MUCH:g}",
        STRONG_BEFORE: f"ConR before ReLU, β {TOO_MUCH:g}",
        WEIGHTED: "LDS weights",
        WEIGHTED_CONR: f"LDS weights + ConR, β {BETA:g}",
        BALANCED: "Balanced MSE",
    }
    with _plots.style():
        row_height, top, bottom, left, span = 34, 66, 48, 220, 470
        height = row_height * len(shown) + top + bottom
        fig = _plots.figure(_plots.WIDTH, height)
        ax = _plots.axes(fig, left, bottom, span, row_height * len(shown))
        _plots.plain_rows(ax, len(shown))
        _plots.rules_between(ax, len(shown))
        ax.axvline(0, color=_plots.MUTED, lw=1, zorder=1)
        intervals = {(arm.name, part): _difference(rows, arm.name, part) for arm in shown for part in ("few", "many")}
        ends = [end for (name, _), interval in intervals.items() if name not in STRONG for end in interval if np.isfinite(end)]
        margin = 0.06 * (max(ends) - min(ends))
        ax.set_xlim(min(ends) - margin, max(ends) + margin)
        for row, arm in enumerate(shown):
            for part, shift, color, looks in (("few", -0.12, _plots.BLUE, FEW_MARK), ("many", 0.2, _plots.MUTED, MANY_MARK)):
                mean, low, high = intervals[arm.name, part]
                if mean > max(ends) + margin:
                    off = f"{part}-shot {mean:+.1f} →"
                    ax.annotate(off, (1, row + 1.4 * shift), xycoords=ax.get_yaxis_transform(), ha="right", va="center", color=color)
                    continue
                if np.isfinite(low):
                    ax.plot([low, high], [row + shift] * 2, color=color, lw=2, zorder=2, solid_capstyle="butt")
                ax.plot(mean, row + shift, color=color, zorder=3, **looks)
            _plots.row_text(fig, ax, row, 8, names[arm.name], weight="bold" if arm.name in JUDGED else "normal")
        ax.set_xlabel(
            f"degrees of error more than the control, {len(rows_where(rows, arm=CONTROL))} seeds with 95 % interval; less is better"
        )
        title = "Rotated digits: what helps where angles are rare, and what it costs where they are not"
        fig.text(8 / _plots.WIDTH, 1 - 12 / height, title, va="top", weight="bold")
        _plots.key(
            fig,
            left + 8,
            height - 48,
            [
                (f"few-shot: above {FEW:g}°", {"color": _plots.BLUE} | FEW_MARK),
                (f"many-shot: below {MANY:g}°", {"color": _plots.MUTED} | MANY_MARK),
            ],
        )
        return fig
