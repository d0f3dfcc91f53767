r"""AdamP and SGDP (Heo et al. 2021, arXiv:2006.08217): do updates without a radial component stop the growth of weights, and does it help?

The paper says that momentum makes scale-invariant weights grow, that their effective steps die away with it, that taking the radial
component out of the update stops this, and that accuracy gains on 13 benchmarks from ImageNet to audio. Three things are re-tested here.

*The identity* behind it, exactly: on a function of the direction alone, momentum's growth of the norm at each step is a sum over all past
steps. *The optimizers*: ours against a plain transcription, row by row, of what the authors' code does, and against their package where it
is installed. *Training*: handwritten digits (8 x 8, those that come with scikit-learn), a perceptron 64-128-128-10 with batch
normalization trained on 30 % of them; AdamW against AdamP, SGD against SGDP, same learning rates, same batches.

The criterion is about growth. Accuracy is held against a margin of one point, with a learning rate that decays, which is how such
optimizers are used; what happens without a decay is shown beside it. What this cannot say: whether a network and data of the paper's size
gain. Differences at this scale are smaller than those the paper reports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._seeding import generator, seed_integer
from counterpoise._stats import mean_interval

from ._types import Claim, Finding, Replication
from ._work import Work, paired, rows_where

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from torch import nn

__all__ = ["CLAIMS", "SLUG", "run"]

SLUG = "adamp"

DIMENSIONS, STEPS, RATE, MOMENTUM = 20, 200, 0.05, 0.9  # of the identity
EXACT = 1e-12

RECORDED = 500  # steps with recorded gradients, for the comparison of optimizers
VARIANTS: dict[str, dict[str, Any]] = {
    "AdamP": {"lr": 3e-3, "weight_decay": 0.1},
    "AdamP, Nesterov": {"lr": 3e-3, "weight_decay": 0.1, "nesterov": True},
    "SGDP": {"lr": 0.03, "momentum": 0.9, "dampening": 0.1, "weight_decay": 1e-3},
    "SGDP, Nesterov": {"lr": 0.03, "momentum": 0.9, "weight_decay": 1e-3, "nesterov": True},
}

TRAIN, WIDTH, BATCH = 0.3, 128, 32  # share of the digits, units of both hidden layers
RATES = (1e-3, 3e-3, 1e-2)  # of AdamW and AdamP; ten times as large for SGD and SGDP
CONSTANT_RATE, CONSTANT_EPOCHS, EPOCHS = 1e-2, 15, 20
ARMS = {"AdamW": 1, "AdamP": 1, "SGD": 10, "SGDP": 10}  # times the rate
PAIRS = {"AdamP": "AdamW", "SGDP": "SGD"}
DECAY = {"AdamW": 1e-2, "AdamP": 1e-2, "SGD": 1e-4, "SGDP": 1e-4}

GROWTH = 0.5  # times the log growth of AdamW's weights
MARGIN = 0.01  # of accuracy

CLAIMS = (
    Claim(
        "identity",
        "On scale-invariant weights, momentum makes the squared norm grow by a sum over all past steps.",
        f"both sides of the paper's identity equal to {EXACT:g}, relative, in each of {STEPS} steps, for every seed",
    ),
    Claim(
        "optimizers",
        "The optimizers here make the steps of the authors' code.",
        f"parameters equal to {EXACT:g} over {RECORDED} steps of recorded gradients, with and without Nesterov's",
    ),
    Claim(
        "growth",
        "Without the radial component the weights grow far less.",
        f"log of the norm ratio of the hidden weight (128 x 128), AdamP over AdamW: at most {GROWTH:g} in every seed, at a constant "
        f"learning rate of {CONSTANT_RATE:g} for {CONSTANT_EPOCHS} epochs",
    ),
    Claim(
        "accuracy",
        "With a learning rate that decays, nothing is lost.",
        f"95 % interval over seeds of the difference in test accuracy, AdamP to AdamW and SGDP to SGD, above -{MARGIN:g} at each of "
        f"{len(RATES)} learning rates, cosine schedule over {EPOCHS} epochs",
    ),
    Claim("gain", "Uniform gains in accuracy over AdamW and SGD (the paper, on 13 benchmarks)."),
    Claim("constant", "The same at a constant learning rate."),
    Claim("growth-sgd", "SGDP's weights grow far less than SGD's."),
    Claim("momentum", "Momentum of 0.9 multiplies the growth of the squared norm, by up to 19."),
)

SEEDS, QUICK_SEEDS = tuple(range(5)), (0, 1)
QUICK_RATES, QUICK_EPOCHS, QUICK_RECORDED = (1e-2,), 2, 40

Row = Mapping[str, Any]
Array = npt.NDArray[np.float64]
Interval = tuple[float, float, float]


def run(
    *, seeds: Sequence[int] | None = None, quick: bool = False, data_dir: str | Path | None = None, work: Work | None = None
) -> Replication:
    """Identity, optimizers and 16 trainings for each of ``seeds``. The digits come with scikit-learn: ``data_dir`` is not used."""
    seeds = tuple(seeds if seeds is not None else QUICK_SEEDS if quick else SEEDS)
    work = work or Work()
    rates = QUICK_RATES if quick else RATES
    identities = work.map(identity, [{"seed": seed} for seed in seeds])
    steps = QUICK_RECORDED if quick else RECORDED
    equal = work.map(compare, [{"variant": name, "seed": seeds[0], "steps": steps} for name in VARIANTS])
    plans = [("constant", CONSTANT_RATE, QUICK_EPOCHS if quick else CONSTANT_EPOCHS)]
    plans += [("cosine", rate, QUICK_EPOCHS if quick else EPOCHS) for rate in rates]
    tasks = [
        {"seed": seed, "arm": arm, "schedule": schedule, "rate": rate, "epochs": epochs}
        for seed in seeds
        for schedule, rate, epochs in plans
        for arm in ARMS
    ]
    runs = work.map(train, tasks)
    return Replication(
        slug=SLUG,
        claims=CLAIMS,
        findings=_findings(identities, equal, runs, rates),
        notes=_notes(runs, rates),
        tables=_tables(runs, rates),
        figure=_figure(runs, rates),
        seeds=seeds,
        quick=quick,
    )


# ---- the identity -----------------------------------------------------------------------------------------------------------------------


def identity(seed: int) -> dict[str, float]:
    r"""Momentum descent on :math:`w^T A w / (2 \|w\|^2)`: both sides of
    :math:`\|w_{t+1}\|^2 = \|w_t\|^2 + \eta^2 \|p_t\|^2 + 2 \eta^2 \sum_{k<t} \beta^{t-k} \|p_k\|^2` at every step."""
    rng = generator(seed, SLUG, "quadratic")
    root = rng.normal(size=(DIMENSIONS, DIMENSIONS))
    A, w, p = root @ root.T / DIMENSIONS, rng.normal(size=DIMENSIONS), np.zeros(DIMENSIONS)
    worst, past, own, momentum = 0.0, 0.0, 0.0, 0.0
    for _ in range(STEPS):
        past = MOMENTUM * (past + float(p @ p))  # the sum over k < t
        p = MOMENTUM * p + (A @ w - w * (w @ A @ w) / (w @ w)) / (w @ w)
        after = w - RATE * p
        expected = w @ w + RATE**2 * (p @ p + 2 * past)
        worst = max(worst, abs(float(after @ after / expected) - 1))
        own, momentum = own + float(p @ p), momentum + float(2 * past)
        w = after
    return {"worst": worst, "momentum": 1 + momentum / own}


# ---- the optimizers ---------------------------------------------------------------------------------------------------------------------


def recorded(variant: str, seed: int, steps: int) -> tuple[list[Array], list[list[Array]]]:
    """First parameters, and the gradients of a training with ours in double precision: one weight is invariant per channel, one as a
    whole, one not; the others are vectors."""
    import torch
    from torch import nn

    import counterpoise.optim as ours

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_integer(seed, SLUG, "recorded"))
        body = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 12, bias=False))
        net = nn.Sequential(*body, nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 10)).double()
    X, y, *_ = _digits(seed)
    images, labels = torch.from_numpy(X).double().reshape(-1, 1, 8, 8), torch.from_numpy(y)
    start = [p.detach().numpy().copy() for p in net.parameters()]
    optimizer = getattr(ours, variant.partition(",")[0])(net.parameters(), **VARIANTS[variant])
    rng = generator(seed, SLUG, "recorded batches")
    gradients = []
    for _ in range(steps):
        rows = torch.from_numpy(rng.choice(len(labels), BATCH, replace=False))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(images[rows]), labels[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        gradients.append([np.asarray(p.grad).copy() for p in net.parameters()])
        optimizer.step()
    return start, gradients


def compare(variant: str, seed: int, steps: int) -> dict[str, Any]:
    """Largest difference over all parameters and steps to the transcription and, where it is installed, to the package ``adamp``."""
    from importlib import import_module
    from importlib.util import find_spec

    import counterpoise.optim as ours

    start, gradients = recorded(variant, seed, steps)
    name, options = variant.partition(",")[0], VARIANTS[variant]
    found = replayed(getattr(ours, name), start, gradients, options)
    by_hand, kinds = transcribed(name, start, gradients, options)
    package = None
    if find_spec("adamp") is not None:
        package = _distance(found, replayed(getattr(import_module("adamp"), name), start, gradients, options))
    return {"by hand": _distance(found, by_hand), "package": package, "kinds": kinds}


def replayed(optimizer: Any, start: list[Array], gradients: list[list[Array]], options: Mapping[str, Any]) -> list[list[Array]]:
    """The parameters after every step of an optimizer of torch's kind."""
    import torch

    params = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in start]
    steps = optimizer(params, **options)
    found = []
    for row in gradients:
        for p, g in zip(params, row, strict=True):
            p.grad = torch.from_numpy(g.copy())
        steps.step()
        found.append([p.detach().numpy().copy() for p in params])
    return found


def transcribed(
    name: str, start: list[Array], gradients: list[list[Array]], options: Mapping[str, Any]
) -> tuple[list[list[Array]], dict[str, int]]:
    """The same in NumPy, one parameter and one row at a time; and how often a weight was taken as invariant, and how."""
    given: dict[str, Any] = {
        "betas": (0.9, 0.999),
        "momentum": 0.0,
        "dampening": 0.0,
        "nesterov": False,
        "wd_ratio": 0.1,
        "eps": 1e-8,
        "delta": 0.1,
    }
    given.update(options)
    lr, decay, nesterov, (beta1, beta2), mu = (given[key] for key in ("lr", "weight_decay", "nesterov", "betas", "momentum"))
    params = [p.copy() for p in start]
    first, second = ([np.zeros_like(p) for p in start] for _ in range(2))
    kinds = dict.fromkeys(("channel", "layer", "not invariant"), 0)
    found = []
    for t, row in enumerate(gradients, 1):
        for i, g in enumerate(row):
            if name == "AdamP":
                first[i] = beta1 * first[i] + (1 - beta1) * g
                second[i] = beta2 * second[i] + (1 - beta2) * g**2
                ahead = beta1 * first[i] + (1 - beta1) * g if nesterov else first[i]
                update = ahead / (np.sqrt(second[i]) / np.sqrt(1 - beta2**t) + given["eps"])
                rate, decayed = lr / (1 - beta1**t), lr * decay
            else:
                first[i] = mu * first[i] + (1 - given["dampening"]) * g
                update = g + mu * first[i] if nesterov else first[i]
                rate, decayed = lr, lr * decay / (1 - mu)
            update, kind = _without_radial(update, params[i], g, given["delta"], given["eps"])
            if name == "SGDP" and not nesterov:
                first[i] = update  # as in the authors' code, where both are one array
            if params[i].ndim > 1:
                kinds[kind] += 1
            share = 1.0 if kind == "not invariant" else given["wd_ratio"]
            params[i] = params[i] * (1 - decayed * share) - rate * update
        found.append(list(params))
    return found, kinds


def _without_radial(update: Array, w: Array, g: Array, delta: float, eps: float) -> tuple[Array, str]:
    for kind, rows in (("channel", len(w)), ("layer", 1)) if w.ndim > 1 else ():
        W, G, U = (x.reshape(rows, -1) for x in (w, g, update))
        lengths = np.linalg.norm(W, axis=1)
        cosines = [abs(a @ b) / max(length, eps) / max(np.linalg.norm(b), eps) for a, b, length in zip(W, G, lengths, strict=True)]
        if max(cosines) < delta / np.sqrt(W.shape[1]):
            units = [a / (length + eps) for a, length in zip(W, lengths, strict=True)]
            return np.array([u - unit * (unit @ u) for unit, u in zip(units, U, strict=True)]).reshape(w.shape), kind
    return update, "not invariant"


def _distance(a: list[list[Array]], b: list[list[Array]]) -> float:
    return max(float(np.abs(x - y).max()) for first, second in zip(a, b, strict=True) for x, y in zip(first, second, strict=True))


# ---- training ---------------------------------------------------------------------------------------------------------------------------


def _digits(seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Training images in [0, 1] with their labels, and those for testing."""
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    order = generator(seed, SLUG, "digits").permutation(len(y))
    X, y = (X[order] / 16).astype(np.float32), y[order].astype(np.int64)
    split = round(TRAIN * len(y))
    return X[:split], y[:split], X[split:], y[split:]


def network(seed: int) -> nn.Sequential:
    """Its initial parameters depend on the seed alone."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_integer(seed, SLUG, "network"))
        first = nn.Sequential(nn.Linear(64, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU())
        return nn.Sequential(*first, nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))


def optimizer_of(arm: str, net: nn.Module, rate: float) -> torch.optim.Optimizer:
    import torch

    from counterpoise.optim import SGDP, AdamP

    options: dict[str, Any] = {"lr": ARMS[arm] * rate, "weight_decay": DECAY[arm]}
    if arm in ("SGD", "SGDP"):
        options["momentum"] = MOMENTUM
    kinds: dict[str, Any] = {"AdamW": torch.optim.AdamW, "AdamP": AdamP, "SGD": torch.optim.SGD, "SGDP": SGDP}
    optimizer: torch.optim.Optimizer = kinds[arm](net.parameters(), **options)
    return optimizer


def train(seed: int, arm: str, schedule: str, rate: float, epochs: int) -> dict[str, Any]:
    """Test accuracy, and the length of the hidden weight after every epoch over that at the start."""
    import torch
    from torch import nn

    X, y, X_test, y_test = _digits(seed)
    inputs, targets = torch.from_numpy(X), torch.from_numpy(y)
    net = network(seed)
    hidden = net[3].get_parameter("weight")
    optimizer = optimizer_of(arm, net, rate)
    batches = -(-len(y) // BATCH)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches) if schedule == "cosine" else None
    rng = generator(seed, SLUG, "batches")
    lengths = [float(hidden.detach().norm())]
    for _ in range(epochs):
        for rows in torch.split(torch.from_numpy(rng.permutation(len(y))), BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(inputs[rows]), targets[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if decay is not None:
                decay.step()
        lengths.append(float(hidden.detach().norm()))
    net.eval()
    with torch.no_grad():
        right = net(torch.from_numpy(X_test)).argmax(dim=1).numpy() == y_test
    return {
        "accuracy": float(right.mean()),
        "norms": [length / lengths[0] for length in lengths],
        "growth": float(np.log(lengths[-1] / lengths[0])),
    }


# ---- what it says -----------------------------------------------------------------------------------------------------------------------


def _of(runs: Sequence[Row], arm: str, schedule: str, rate: float) -> list[Row]:
    return rows_where(runs, arm=arm, schedule=schedule, rate=rate)


def _difference(runs: Sequence[Row], arm: str, schedule: str, rate: float) -> Interval:
    return mean_interval(paired(rows_where(runs, schedule=schedule, rate=rate), "accuracy", arm, PAIRS[arm]))


def _against(runs: Sequence[Row], arm: str, schedule: str, rate: float) -> str:
    first, second = (np.mean([row["accuracy"] for row in _of(runs, name, schedule, rate)]) for name in (arm, PAIRS[arm]))
    return f"{first:.4f} against {second:.4f} of {PAIRS[arm]}, difference {_points(_difference(runs, arm, schedule, rate))}"


def _points(interval: Interval) -> str:
    estimate, low, high = (100 * value for value in interval)
    return f"{estimate:+.2f} points ({low:+.2f} to {high:+.2f})"


def _growth_ratios(runs: Sequence[Row], arm: str) -> list[float]:
    own, base = (rows_where(runs, arm=name, schedule="constant") for name in (arm, PAIRS[arm]))
    by_seed = {row["seed"]: row["growth"] for row in base}
    return [row["growth"] / by_seed[row["seed"]] for row in own]


def _norms(runs: Sequence[Row], arm: str) -> str:
    rows = rows_where(runs, arm=arm, schedule="constant")
    return f"{np.mean([row['norms'][-1] for row in rows]):.2f} times its first length with {arm}"


def _findings(identities: Sequence[Row], equal: Sequence[Row], runs: Sequence[Row], rates: Sequence[float]) -> tuple[Finding, ...]:
    claims = {claim.key: claim for claim in CLAIMS}
    worst = max(row["worst"] for row in identities)
    apart = max(max(row["by hand"], row["package"] or 0.0) for row in equal)
    package = [row["package"] for row in equal if row["package"] is not None]
    beside = f"to the package adamp {max(package):.1e}" if package else "the package adamp is not installed here"
    kinds = {kind: sum(row["kinds"][kind] for row in equal) for kind in equal[0]["kinds"]}
    cases = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
    ratios = {arm: _growth_ratios(runs, arm) for arm in PAIRS}
    findings = [
        claims["identity"].holds(
            worst <= EXACT, f"Largest relative difference of both sides: {worst:.1e}.", estimate=worst, unit="relative difference"
        ),
        claims["optimizers"].holds(
            apart <= EXACT,
            f"Largest difference of any parameter: to the transcription {max(row['by hand'] for row in equal):.1e}, {beside} (tests of "
            f"weights: {cases}).",
            estimate=apart,
            unit="absolute difference",
        ),
        claims["growth"].holds(
            max(ratios["AdamP"]) <= GROWTH,
            f"The hidden weight ends at {_norms(runs, 'AdamW')}, {_norms(runs, 'AdamP')}; log growth {max(ratios['AdamP']):.2f} times "
            "AdamW's in the worst seed.",
            estimate=max(ratios["AdamP"]),
            unit="ratio of log growth, worst seed",
        ),
    ]
    for arm in PAIRS:
        for rate in rates:
            difference = _difference(runs, arm, "cosine", rate)
            text = f"{arm} at {ARMS[arm] * rate:g}, cosine: {_against(runs, arm, 'cosine', rate)}."
            findings.append(claims["accuracy"].above(difference, -MARGIN, text, unit="accuracy", name=f"{arm}, {ARMS[arm] * rate:g}"))
    for arm in PAIRS:
        best = _best(runs, arm, rates)
        text = f"{arm} against {PAIRS[arm]}, cosine, mean over the learning rates: {_points(best)}."
        findings.append(claims["gain"].reported(best, text, unit="accuracy", name=arm))
    for arm in PAIRS:
        difference = _difference(runs, arm, "constant", CONSTANT_RATE)
        text = f"{arm} at {ARMS[arm] * CONSTANT_RATE:g} all the way: {_against(runs, arm, 'constant', CONSTANT_RATE)}."
        findings.append(claims["constant"].reported(difference, text, unit="accuracy", name=arm))
    sgd = mean_interval(ratios["SGDP"])
    findings += [
        claims["growth-sgd"].reported(
            sgd,
            f"The hidden weight ends at {_norms(runs, 'SGD')}, {_norms(runs, 'SGDP')}; log growth {sgd[0]:.2f} times SGD's.",
            unit="ratio of log growth",
        ),
        claims["momentum"].reported(
            mean_interval([row["momentum"] for row in identities]),
            f"On the quadratic, momentum multiplied the growth by {np.mean([row['momentum'] for row in identities]):.1f}.",
            unit="times",
        ),
    ]
    return tuple(findings)


def _best(runs: Sequence[Row], arm: str, rates: Sequence[float]) -> Interval:
    """Over seeds, of the mean over learning rates."""
    by_rate = [paired(rows_where(runs, schedule="cosine", rate=rate), "accuracy", arm, PAIRS[arm]) for rate in rates]
    return mean_interval(np.mean(by_rate, axis=0))


def _notes(runs: Sequence[Row], rates: Sequence[float]) -> tuple[str, ...]:
    lost = {arm: _difference(runs, arm, "constant", CONSTANT_RATE) for arm in PAIRS}
    worse = [f"{arm} lost {-100 * estimate:.1f} points to {PAIRS[arm]}" for arm, (estimate, _, high) in lost.items() if high < 0]
    gained = [arm for arm in PAIRS if _best(runs, arm, rates)[1] > 0]
    return (
        (f"At a constant learning rate {' and '.join(worse)}. " if worse else "At a constant learning rate no loss was clear. ")
        + "The growth of the weights acts as a decay of the steps; who takes it away has to decay the learning rate.",
        (f"With a cosine schedule {' and '.join(gained)} gained." if gained else "With a cosine schedule no gain showed at this size.")
        + " The paper's gains are on larger data and networks, and nothing here speaks for or against them.",
        "SGDP without Nesterov's projects its momentum buffer in place, in the authors' code and here; the paper's text does not say so.",
    )


def _tables(runs: Sequence[Row], rates: Sequence[float]) -> dict[str, list[dict[str, Any]]]:
    def line(arm: str, schedule: str, rate: float) -> dict[str, Any]:
        rows = _of(runs, arm, schedule, rate)
        return {
            "schedule": schedule,
            "arm": arm,
            "lr": ARMS[arm] * rate,
            "accuracy": round(float(np.mean([row["accuracy"] for row in rows])), 4),
            "norm of the hidden weight, over the first": round(float(np.mean([row["norms"][-1] for row in rows])), 3),
            "by seed": ", ".join(f"{row['accuracy']:.4f}" for row in rows),
        }

    plans = [("constant", CONSTANT_RATE), *(("cosine", rate) for rate in rates)]
    return {"Trainings": [line(arm, schedule, rate) for schedule, rate in plans for arm in ARMS]}


def _figure(runs: Sequence[Row], rates: Sequence[float]) -> Figure:
    """Left: the length of the hidden weight over epochs. Right: differences in accuracy, with and without a schedule."""
    from counterpoise.report import _plots as plots

    looks: dict[str, tuple[str, str]] = {
        "AdamW": (plots.RED, "-"),
        "AdamP": (plots.BLUE, "-"),
        "SGD": (plots.RED, "--"),
        "SGDP": (plots.BLUE, "--"),
    }
    rows = [(arm, "cosine", rate) for arm in PAIRS for rate in rates] + [(arm, "constant", CONSTANT_RATE) for arm in PAIRS]
    width, row_height, top, bottom = plots.WIDTH, 26, 84, 48
    height = max(row_height * len(rows), 180) + top + bottom
    with plots.style():
        fig = plots.figure(width, height)
        left = plots.axes(fig, 52, bottom, 236, height - top - bottom)
        for arm, (color, dashes) in looks.items():
            curves = np.array([row["norms"] for row in rows_where(runs, arm=arm, schedule="constant")])
            left.plot(curves.mean(axis=0), color=color, ls=dashes, lw=1.6)
            left.annotate(
                arm,
                (curves.shape[1] - 1, curves[:, -1].mean()),
                (5, 0),
                textcoords="offset points",
                va="center",
                color=color,
                annotation_clip=False,
            )
        left.set_xlabel("epoch, constant learning rate")
        left.set_ylabel("length of the hidden weight")
        ax = plots.axes(fig, 530, bottom, 180, height - top - bottom)
        plots.plain_rows(ax, len(rows))
        plots.rules_between(ax, len(rows))
        ax.axvline(0, color=plots.INK, lw=1, zorder=1)
        for place, (arm, schedule, rate) in enumerate(rows):
            estimate, low, high = (100 * value for value in _difference(runs, arm, schedule, rate))
            color = plots.RED if high < 0 else plots.BLUE if low > 0 else plots.GRAY
            ax.plot([low, high], [place, place], color=color, lw=2, solid_capstyle="butt")
            ax.plot(estimate, place, "o", ms=8, color=color, mec=plots.PAPER)
            plots.row_text(
                fig, ax, place, 366, f"{arm}, {ARMS[arm] * rate:g}, {schedule}", weight="bold" if schedule == "constant" else "normal"
            )
        ax.set_xlabel("points of accuracy gained")
        fig.text(
            8 / width,
            1 - 14 / height,
            "Without the radial component weights stay short; the learning rate must then decay by itself",
            va="top",
            weight="bold",
        )
        fig.text(366 / width, 1 - 52 / height, "AdamP over AdamW, SGDP over SGD   ● mean, 95 %", va="center", color=plots.MUTED)
    return fig
