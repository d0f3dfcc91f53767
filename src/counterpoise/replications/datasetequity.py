"""DatasetEquity (arXiv:2308.09878): rows that look rare get a larger weight, found by clustering, without labels of groups.

The paper trains 3D detectors and reports more than twice the average precision for cyclists on KITTI. Re-tested here on digits that come
with scikit-learn: 6 % of the training images have their contrast inverted, nothing says which, and the test images are scored in both
appearances. Clusters are made on 16 principal components of the pixels; a small network is trained on all images at once, with weights of
mean 1, from the same initial parameters in every arm.

What this cannot say: how it goes for detectors, or where a rare appearance is a matter of degree. The rare part here is cleanly apart, the
easiest case for a clustering.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._errors import check_choice
from counterpoise._seeding import generator, seed_integer
from counterpoise._stats import mean_interval

from ._types import Claim, Finding, Replication
from ._work import Work, paired, rows_where

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

SLUG = "datasetequity"

RARE_SHARE = 0.06  # of the training images are inverted
COMPONENTS = 16
EPS, MIN_SAMPLES = 1.9, 5  # of DBSCAN, in pixels of [0, 1]
HIDDEN, LEARNING_RATE, STEPS = 64, 3e-3, 120
STRONG, PAPER = (0.3, 2.0), (1.0, 5.0)  # eta, gamma

RARE_GAIN = 0.05  # DBSCAN, strong: the interval of the gain on the rare appearance lies above
COMMON_LOSS = -0.02  # and that on the common one above this
DEFAULT_GAIN = 0.0  # k-means, the paper's strength: the interval of the gain lies above

SEEDS, QUICK_SEEDS = tuple(range(8)), (0, 1)


@dataclass(frozen=True)
class Arm:
    """Where the likelihoods come from, and how they become weights: with (eta, gamma), or as 1 / p if there is no strength."""

    name: str
    method: str
    strength: tuple[float, float] | None
    clusters: int = 0
    eps: float | None = None


UNIFORM, MAIN, DEFAULT, SHUFFLED = "uniform", "dbscan", "kmeans-2 default", "shuffled"
ARMS = (
    Arm(UNIFORM, "none", PAPER),
    Arm(MAIN, "dbscan", STRONG, eps=EPS),
    Arm(DEFAULT, "kmeans", PAPER, clusters=2),
    Arm(SHUFFLED, "shuffled", STRONG, eps=EPS),
    Arm("kmeans-2", "kmeans", STRONG, clusters=2),
    Arm("kmeans-2 strongest", "kmeans", (0.1, 5.0), clusters=2),
    Arm("kmeans-8 default", "kmeans", PAPER, clusters=8),
    Arm("dbscan knee", "dbscan", STRONG),
    Arm("hdbscan", "hdbscan", STRONG),
    Arm("kmeans-2 inverse", "kmeans", None, clusters=2),
    Arm("known groups", "known", STRONG),
)
LINEAR_ARMS = (UNIFORM, MAIN)

CLAIMS = (
    Claim(
        "rare",
        "Weights from the likelihood of appearance help the images that look rare.",
        f"DBSCAN (eps {EPS}, {MIN_SAMPLES} rows), eta {STRONG[0]}, gamma {STRONG[1]:g}: the 95 % interval of the gain in accuracy over "
        f"uniform weights on inverted digits, {len(SEEDS)} seeds, lies above {RARE_GAIN}.",
    ),
    Claim(
        "common",
        "Images that look common pay next to nothing for it.",
        f"The same arm: the interval of the difference on plain digits lies above {COMMON_LOSS}.",
    ),
    Claim(
        "default",
        "The paper's own strength is enough to help.",
        f"k-means with 2 clusters, eta {PAPER[0]:g}, gamma {PAPER[1]:g}: the interval of the gain on inverted digits lies above "
        f"{DEFAULT_GAIN:g}.",
    ),
    Claim(
        "control",
        "It is the likelihood that helps, not unequal weights: the same weights on other images change nothing.",
        "DBSCAN's likelihoods shuffled over the images: the interval of the difference on inverted digits contains 0.",
    ),
    Claim("size", "The rare part gains several times its score (reported for cyclists: over 200 % more average precision)."),
    Claim("settings", "Other ways to cluster, and other strengths."),
    Claim("linear", "A linear classifier with the same weights."),
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
    tasks = [{"model": "mlp", "arm": arm.name, "seed": seed} for seed in chosen for arm in ARMS]
    tasks += [{"model": "linear", "arm": arm, "seed": seed} for seed in chosen for arm in LINEAR_ARMS]
    rows = work.map(train, tasks)
    mlp, linear = rows_where(rows, model="mlp"), rows_where(rows, model="linear")
    table = [_row("mlp", arm.name, mlp) for arm in ARMS] + [_row("linear", name, linear) for name in LINEAR_ARMS]
    return Replication(
        slug=SLUG,
        claims=CLAIMS,
        findings=tuple(_findings(mlp, linear)),
        notes=_notes(mlp),
        tables={"accuracy on inverted (rare) and plain (common) digits, mean over seeds": table},
        figure=_figure(mlp),
        seeds=chosen,
        quick=quick,
    )


# ---- one run ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Digits:
    """Training images, some of them inverted, and test images in both appearances; pixels in [0, 1]."""

    X: npt.NDArray[np.float64]
    y: npt.NDArray[np.int64]
    inverted: npt.NDArray[np.bool_]
    X_test: npt.NDArray[np.float64]
    y_test: npt.NDArray[np.int64]


def digits(seed: int) -> Digits:
    """A random half to train on, the other to test on."""
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    X = X / 16
    rng = generator(seed, SLUG, "data")
    order = rng.permutation(len(X))
    train, test = np.split(order, [len(X) // 2])
    inverted = np.zeros(len(train), dtype=np.bool_)
    inverted[rng.choice(len(train), round(RARE_SHARE * len(train)), replace=False)] = True
    return Digits(np.where(inverted[:, None], 1 - X[train], X[train]), y[train], inverted, X[test], y[test])


def likelihoods(arm: Arm, data: Digits, seed: int) -> npt.NDArray[np.float64]:
    """(n,) likelihood of each training image."""
    from counterpoise.data import LikelihoodWeighter

    if arm.method == "none":
        return np.ones(len(data.X))
    if arm.method == "known":
        share = data.inverted.mean()
        return np.asarray(np.where(data.inverted, share, 1 - share))
    weighter = LikelihoodWeighter(
        method="dbscan" if arm.method == "shuffled" else arm.method,  # type: ignore[arg-type]
        n_components=COMPONENTS,
        standardize=False,  # pixels share one unit, and eps is given in it
        eps=arm.eps,
        min_samples=MIN_SAMPLES,
        n_clusters=max(arm.clusters, 1),
        random_state=seed_integer(seed, SLUG, "clusters"),
    )
    p: npt.NDArray[np.float64] = weighter.fit(data.X).likelihood_
    return p[generator(seed, SLUG, "shuffle").permutation(len(p))] if arm.method == "shuffled" else p


def train(model: str, arm: str, seed: int) -> dict[str, float]:
    """Accuracy of one network on both appearances, and what its weights were like."""
    from counterpoise.losses import dequity_weight

    check_choice("arm", arm, [known.name for known in ARMS])
    chosen = next(known for known in ARMS if known.name == arm)
    data = digits(seed)
    p = likelihoods(chosen, data, seed)
    weights = 1 / p if chosen.strength is None else dequity_weight(p, *chosen.strength)
    net = fitted(model, data, weights, seed=seed)
    total = weights.sum()
    return accuracy(net, data) | {
        "ratio": float(weights.max() / weights.min()),
        "worth": float(total**2 / (weights**2).sum() / len(weights)),
        "weight of rare": float(weights[data.inverted].sum() / total),
    }


def fitted(model: str, data: Digits, weights: npt.NDArray[np.float64], *, seed: int, steps: int = STEPS) -> nn.Module:
    """A network after so many steps on all images at once; its initial parameters depend on the seed alone."""
    import torch

    from counterpoise.losses import WeightedLoss

    loss = WeightedLoss(torch.nn.CrossEntropyLoss(reduction="none"), weights)
    net = _network(model, seed_integer(seed, SLUG, "network"))
    X, y, index = torch.tensor(data.X, dtype=torch.float32), torch.tensor(data.y), torch.arange(len(data.y))
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(net(X), y, index).backward()
        optimizer.step()
    return net


def decisions(net: nn.Module, X: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The digit that the network sees in each image, (n,)."""
    import torch

    with torch.no_grad():
        return np.asarray(net(torch.tensor(X, dtype=torch.float32)).argmax(dim=1))


def accuracy(net: nn.Module, data: Digits) -> dict[str, float]:
    """On the test images, inverted (rare) and as they are (common)."""
    appearances = {"rare": 1 - data.X_test, "common": data.X_test}
    return {name: float((decisions(net, images) == data.y_test).mean()) for name, images in appearances.items()}


def _network(model: str, seed: int) -> nn.Module:
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model == "linear":
            return nn.Linear(64, 10)
        return nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))


# ---- what was found ---------------------------------------------------------------------------------------------------------------------


def _gain(rows: Sequence[Mapping[str, Any]], arm: str, part: str) -> tuple[float, float, float]:
    return mean_interval(paired(rows, part, arm, UNIFORM))


def _mean(rows: Sequence[Mapping[str, Any]], arm: str, value: str) -> float:
    return float(np.mean([row[value] for row in rows_where(rows, arm=arm)]))


def _findings(mlp: Sequence[Mapping[str, Any]], linear: Sequence[Mapping[str, Any]]) -> list[Finding]:
    claim = {claim.key: claim for claim in CLAIMS}
    unit = {"unit": "accuracy"}
    before, after = _mean(mlp, UNIFORM, "rare"), _mean(mlp, MAIN, "rare")
    rare, common, default = _gain(mlp, MAIN, "rare"), _gain(mlp, MAIN, "common"), _gain(mlp, DEFAULT, "rare")
    control = _gain(mlp, SHUFFLED, "rare")
    found = [
        claim["rare"].above(
            rare, RARE_GAIN, f"Inverted digits: {before:.3f} with uniform weights, {after:.3f} with them; {_in(rare)}.", **unit
        ),
        claim["common"].above(common, COMMON_LOSS, f"Plain digits: {_in(common)}.", **unit),
        claim["default"].above(default, DEFAULT_GAIN, f"With eta 1, gamma 5 inverted digits gain {_in(default)}.", **unit),
        claim["control"].judged(
            "replicated" if control[1] <= 0 <= control[2] else "not replicated",
            f"The same weights on images chosen at random: {_in(control)} on inverted digits.",
            **_numbers(control),
            **unit,
        ),
        claim["size"].reported(None, f"Accuracy on inverted digits grew by {100 * (after / before - 1):.0f} % of what it was."),
    ]
    for arm in ARMS[4:]:
        gain, cost = _gain(mlp, arm.name, "rare"), _gain(mlp, arm.name, "common")
        text = f"{arm.name}{_strength(arm)}: inverted {_in(gain)}, plain {cost[0]:+.3f}."
        found.append(claim["settings"].reported(gain, text, name=arm.name, **unit))
    linear_gain = _gain(linear, MAIN, "rare")
    text = (
        f"A linear classifier gets {_mean(linear, UNIFORM, 'rare'):.3f} of the inverted digits right with uniform weights and "
        f"{_mean(linear, MAIN, 'rare'):.3f} with DBSCAN's: {_in(linear_gain)}; plain {_gain(linear, MAIN, 'common')[0]:+.3f}."
    )
    found.append(claim["linear"].reported(linear_gain, text, **unit))
    return found


def _in(interval: tuple[float, float, float]) -> str:
    mean, low, high = interval
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def _numbers(interval: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(("estimate", "low", "high"), interval, strict=True))


def _strength(arm: Arm) -> str:
    return "" if arm.strength is None else f", eta {arm.strength[0]:g}, gamma {arm.strength[1]:g}"


def _row(model: str, arm: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    gain, cost = _gain(rows, arm, "rare"), _gain(rows, arm, "common")
    row: dict[str, Any] = {"model": model, "arm": arm, "rare": _mean(rows, arm, "rare"), "common": _mean(rows, arm, "common")}
    row |= {"rare gain": gain[0], "gain low": gain[1], "gain high": gain[2], "common gain": cost[0]}
    return row | {name: _mean(rows, arm, name) for name in ("ratio", "worth", "weight of rare")}


def _notes(mlp: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    eight, main = "kmeans-8 default", MAIN
    return (
        f"What counts is the ratio of weights, which eta caps at (eta + 1) / eta: {_mean(mlp, main, 'ratio'):.2f} for DBSCAN at eta 0.3, "
        "at most 2 at the paper's eta 1. Many clusters make every likelihood small and the weights equal: "
        f"{_mean(mlp, eight, 'ratio'):.2f} for eight.",
        f"Plain weights 1 / p of the two k-means clusters gain {_in(_gain(mlp, 'kmeans-2 inverse', 'rare'))} on inverted digits for "
        f"{_gain(mlp, 'kmeans-2 inverse', 'common')[0]:+.3f} on plain ones: the cap of the paper's formula makes it milder.",
        "Capacity is a precondition: weights cannot teach a model what it cannot represent, and what they cost remains. See the linear "
        "classifier.",
        "The rare part here is clearly apart and correctly labeled. Where rare rows are garbage, the same weights teach garbage: look at "
        "the exemplars of diagnostics.appearance_clusters first.",
    )


def _figure(mlp: Sequence[Mapping[str, Any]]) -> Figure:
    from counterpoise.report import _plots

    shown = [arm for arm in ARMS if arm.name != UNIFORM]
    with _plots.style():
        row_height, top, bottom, left, span = 30, 58, 46, 220, 430
        height = row_height * len(shown) + top + bottom
        fig = _plots.figure(_plots.WIDTH, height)
        ax = _plots.axes(fig, left, bottom, span, row_height * len(shown))
        _plots.plain_rows(ax, len(shown))
        ax.axvline(0, color=_plots.RULE, lw=1, zorder=1)
        for row, arm in enumerate(shown):
            gain, cost = _gain(mlp, arm.name, "rare"), _gain(mlp, arm.name, "common")
            color = _plots.RED if arm.name == SHUFFLED else _plots.BLUE
            if np.isfinite(gain[1]):
                ax.plot(gain[1:], [row, row], color=color, lw=2, zorder=2, solid_capstyle="butt")
            ax.plot(gain[0], row, "o", ms=9, color=color, mec=_plots.PAPER, mew=1, zorder=4)
            ax.plot(cost[0], row, "s", ms=7, color=_plots.PAPER, mec=_plots.MUTED, mew=1.4, zorder=3)
            strength = "1 / p" if arm.strength is None else f"η {arm.strength[0]:g}, γ {arm.strength[1]:g}"
            control = " (control)" if arm.name == SHUFFLED else ""
            name = arm.name.removesuffix(" default").removesuffix(" strongest").removesuffix(" inverse") + control
            _plots.row_text(fig, ax, row, 8, name, weight="bold" if arm.name in (MAIN, DEFAULT, SHUFFLED) else "normal")
            _plots.row_text(fig, ax, row, left - 14, strength, ha="right", color=_plots.MUTED)
        ax.set_xlabel(f"accuracy gained over uniform weights, {len(rows_where(mlp, arm=MAIN))} seeds with 95 % interval")
        title = "What weights by rarity of appearance do to digits that look rare, and to the others"
        fig.text(8 / _plots.WIDTH, 1 - 12 / height, title, va="top", weight="bold")
        for x, marker, fill, edge, word in (
            (left + 8, "o", _plots.BLUE, _plots.BLUE, "inverted digits (6 % of training)"),
            (left + 250, "s", _plots.PAPER, _plots.MUTED, "plain digits"),
        ):
            ax.plot(
                (x - left) / span,
                1 + 14 / (row_height * len(shown)),
                marker,
                ms=8,
                color=fill,
                mec=edge,
                transform=ax.transAxes,
                clip_on=False,
            )
            fig.text((x + 10) / _plots.WIDTH, 1 - (top - 14) / height, word, va="center", color=_plots.MUTED)
        return fig
