r"""GCond (Limarenko et al. 2025, arXiv:2509.07252): gradients averaged over micro-batches first, then conflicts between them resolved.

The paper trains masked autoencoders on ImageNet with two losses and reports much lower errors than the plain sum, PCGrad and CAGrad. Its
comparison mixes two things: GCond contains a momentum of its own, which the baselines do not have. Here every arm has the same momentum,
the bias-corrected average with decay 0.9, and the optimizer (AdamW, lr 3e-3, beta1 = 0) adds none.

*A real conflict*: 1,200 of the 8 x 8 digits that come with scikit-learn are to be classified (cross-entropy) and reconstructed (10 x mean
squared error) from the same six numbers: trunk 64-64-ReLU-6-tanh, heads 6-10 and 6-64-64. Gradients are combined in the trunk only; each
head has its own loss. 200 updates, each over 8 micro-batches of 32. *Sequential* arms use all of them for both losses, *stochastic* ones
the first four for one loss and the other four for the other. The other 597 digits are tested on.

*What averaging does*: after 50 updates of the plain sum the weights are held still, and the cosine between the two gradients is measured in
single micro-batches, in means of 8, and over all 1,200 digits.

*No conflict*: the paper's own pair of losses, L1 and 1 - SSIM, for digits of which half of the 2 x 2 patches are masked. Whether these two
oppose each other depends on the network: pilot runs (seeds 100 to 103) found no conflict where a sigmoid keeps pixels in [0, 1], and some
where the output is linear. The first is judged, the second is shown.

To know when reading: what is said here about stochastic accumulation is about 4 batches of 32 for each loss; the paper's effective batches
are of thousands. Its throughputs and its ImageNet accuracies are not tested.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._errors import check_choice
from counterpoise._seeding import generator, seed_integer
from counterpoise._stats import mean_interval

from ._types import Claim, Finding, Replication, Verdict
from ._work import Work, paired, rows_where

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

__all__ = ["CLAIMS", "SLUG", "run"]

SLUG = "gcond"

TRAIN, HIDDEN, BOTTLENECK, CLASSES = 1200, 64, 6, 10
MICRO_BATCHES, BATCH, UPDATES = 8, 32, 200
RATE, MOMENTUM, SCALE_OF_MSE = 3e-3, 0.9, 10.0
HELD_AT, DRAWS = 50, 100  # updates before the weights are held still; means of 8 that are drawn then
WINDOW, C1, C2 = 3, 0.01**2, 0.03**2  # of SSIM
MASKED_HIDDEN, OUTPUTS = 128, ("sigmoid", "linear")

SUM, PCGRAD, GCOND, EACH = "sum", "PCGrad", "GCond", "PCGrad in each micro-batch"
STOCHASTIC, SUM_STOCHASTIC = "GCond, stochastic", "sum, stochastic"
ARMS = (SUM, PCGRAD, GCOND, EACH, STOCHASTIC, SUM_STOCHASTIC)
TASKS = ("label", "image")

LEVEL, BOOTSTRAPS = 0.90, 10_000
SD_RATIO = (0.3, 0.75)
COST = 0.65
EQUAL = 1e-7

CLAIMS = (
    Claim(
        "better",
        "Resolving conflicts among accumulated gradients is better than adding them, on both tasks.",
        f"GCond better than the sum in mean test accuracy and in test MSE, and the paired {LEVEL:.0%} bootstrap interval over seeds of the "
        "difference in MSE excludes 0",
    ),
    Claim(
        "variance",
        "Accumulation stabilizes the angle between gradients.",
        f"spread (sd) of the cosine in means of {MICRO_BATCHES} micro-batches over that in single ones: 95 % interval over seeds within "
        f"{SD_RATIO[0]:g} to {SD_RATIO[1]:g}; and the mean cosine farther from 0 in the means: 95 % interval above 0",
    ),
    Claim(
        "cost",
        "Stochastic accumulation, where each micro-batch serves one loss, takes about half the time.",
        f"CPU time of the training over that of sequential accumulation: 95 % interval over seeds below {COST:g}",
    ),
    Claim(
        "harmless",
        "Where no gradients oppose each other, GCond is the plain sum.",
        f"L1 and 1 - SSIM: no update with a conflict, and all weights after training within {EQUAL:g} of those of the sum, in every seed",
    ),
    Claim("pcgrad", "It is better than PCGrad on the same accumulated gradients."),
    Claim("each", "Resolving after accumulation is better than resolving in each micro-batch and accumulating then."),
    Claim("stochastic", "Stochastic accumulation is as good as sequential."),
    Claim("hidden", "Noise in single batches hides conflicts."),
    Claim("linear", "L1 and 1 - SSIM do not oppose each other whatever the network is."),
)

SEEDS, QUICK_SEEDS = tuple(range(5)), (0, 1)
QUICK_UPDATES, QUICK_HELD_AT, QUICK_DRAWS = 20, 10, 10

Row = Mapping[str, Any]
Interval = tuple[float, float, float]
Array = npt.NDArray[Any]


def run(
    *, seeds: Sequence[int] | None = None, quick: bool = False, data_dir: str | Path | None = None, work: Work | None = None
) -> Replication:
    """All arms for all ``seeds``. The digits come with scikit-learn: ``data_dir`` is not used."""
    seeds = tuple(seeds if seeds is not None else QUICK_SEEDS if quick else SEEDS)
    work = work or Work()
    updates = QUICK_UPDATES if quick else UPDATES
    held, draws = (QUICK_HELD_AT, QUICK_DRAWS) if quick else (HELD_AT, DRAWS)
    trained = work.map(train, [{"seed": seed, "arm": arm, "updates": updates} for seed in seeds for arm in ARMS])
    angles = work.map(cosines, [{"seed": seed, "updates": held, "draws": draws} for seed in seeds])
    masked = work.map(autoencode, [{"seed": seed, "output": output, "updates": updates} for seed in seeds for output in OUTPUTS])
    return Replication(
        slug=SLUG,
        claims=CLAIMS,
        findings=_findings(trained, angles, masked),
        notes=_notes(trained, angles),
        tables=_tables(trained, angles, masked),
        figure=_figure(trained, angles),
        seeds=seeds,
        quick=quick,
    )


# ---- two tasks, one trunk ---------------------------------------------------------------------------------------------------------------


def train(seed: int, arm: str, updates: int) -> dict[str, Any]:
    """Test accuracy and MSE after training one arm, its CPU seconds, and how often the two gradients opposed each other."""
    check_choice("arm", arm, ARMS)
    data = _digits(seed)
    _training(arm, seed, 2, data)  # what is loaded on first use is not what is timed
    began = time.process_time()
    net, angle = _training(arm, seed, updates, data)
    seconds = time.process_time() - began
    accuracy, mse = _tested(net, data)
    return {
        "accuracy": accuracy,
        "mse": mse,
        "cpu": seconds,
        "opposed": float(np.mean(np.array(angle) < 0)),
        "strongly": float(np.mean(np.array(angle) < -0.5)),
    }


def _training(arm: str, seed: int, updates: int, data: Mapping[str, Tensor]) -> tuple[nn.ModuleDict, list[float]]:
    import torch

    net = network(seed)
    combine = _combiner(arm, seed)
    trunk, heads = list(net["trunk"].parameters()), {task: list(net[task].parameters()) for task in TASKS}
    parameters = [*trunk, *(p for task in TASKS for p in heads[task])]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.0, 0.999))
    rng = generator(seed, SLUG, "batches")  # the same for every arm
    mean, angle = torch.zeros(sum(p.numel() for p in parameters)), []
    for t in range(1, updates + 1):
        rows, own = accumulated(net, data, batches(rng), stochastic="stochastic" in arm)
        average = rows.mean(dim=0)
        angle.append(float(torch.cosine_similarity(average[0], average[1], dim=0)))
        step = torch.stack([combine(part) for part in rows]).mean(dim=0) if arm == EACH else combine(average)
        mean = MOMENTUM * mean + (1 - MOMENTUM) * torch.cat([step, *own])
        _write(parameters, mean / (1 - MOMENTUM**t))
        optimizer.step()
    return net, angle


def batches(rng: np.random.Generator) -> Array:
    """Row numbers (8, 32), none twice."""
    return rng.permutation(TRAIN)[: MICRO_BATCHES * BATCH].reshape(MICRO_BATCHES, BATCH)


def accumulated(net: nn.ModuleDict, data: Mapping[str, Tensor], index: Array, stochastic: bool) -> tuple[Tensor, list[Tensor]]:
    """Gradients of the trunk (K, 2, n) for the two losses in every micro-batch, and those of the heads, averaged.

    Stochastic: K = 4, of which each is one micro-batch for each loss.
    """
    import torch

    trunk = list(net["trunk"].parameters())
    rows: dict[str, list[Tensor]] = {task: [] for task in TASKS}
    own: dict[str, list[Tensor]] = {task: [] for task in TASKS}
    for k, batch in enumerate(index):
        served = (TASKS[k * len(TASKS) // len(index)],) if stochastic else TASKS
        losses = _losses(net, data, batch, served)
        for task in served:
            found = torch.autograd.grad(losses[task], [*trunk, *net[task].parameters()], retain_graph=task != served[-1])
            rows[task].append(torch.cat([g.reshape(-1) for g in found[: len(trunk)]]))
            own[task].append(torch.cat([g.reshape(-1) for g in found[len(trunk) :]]))
    return torch.stack([torch.stack(rows[task]) for task in TASKS], dim=1), [torch.stack(own[task]).mean(dim=0) for task in TASKS]


def _losses(net: nn.ModuleDict, data: Mapping[str, Tensor], batch: Any, tasks: Sequence[str]) -> dict[str, Tensor]:
    from torch.nn import functional as F

    X = data["X"][batch]
    z = net["trunk"](X)
    losses = {}
    if "label" in tasks:
        losses["label"] = F.cross_entropy(net["label"](z), data["y"][batch])
    if "image" in tasks:
        losses["image"] = SCALE_OF_MSE * F.mse_loss(net["image"](z), X)
    return losses


def _combiner(arm: str, seed: int) -> Any:
    import torch

    from counterpoise.gradients import GCond, PCGrad

    if arm.startswith(SUM):
        return _sum
    if arm.startswith(PCGRAD):
        return PCGrad(generator=torch.Generator().manual_seed(seed))
    return GCond(momentum=0.0)


def _sum(rows: Tensor) -> Tensor:
    return rows.new_ones(len(rows)) @ rows


def _write(parameters: Sequence[Tensor], step: Tensor) -> None:
    import torch

    for parameter, gradient in zip(parameters, torch.split(step, [p.numel() for p in parameters]), strict=True):
        parameter.grad = gradient.reshape(parameter.shape)


def _tested(net: nn.ModuleDict, data: Mapping[str, Tensor]) -> tuple[float, float]:
    import torch

    with torch.no_grad():
        z = net["trunk"](data["X_test"])
        right = net["label"](z).argmax(dim=1) == data["y_test"]
        return float(right.float().mean()), float((net["image"](z) - data["X_test"]).square().mean())


def _digits(seed: int) -> dict[str, Tensor]:
    import torch
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    order = generator(seed, SLUG, "digits").permutation(len(X))
    inputs, labels = torch.tensor(X[order] / 16, dtype=torch.float32), torch.tensor(y[order])
    return {"X": inputs[:TRAIN], "y": labels[:TRAIN], "X_test": inputs[TRAIN:], "y_test": labels[TRAIN:]}


def network(seed: int) -> nn.ModuleDict:
    """Trunk and heads; the first weights depend on the seed alone."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_integer(seed, SLUG, "network"))
        return nn.ModuleDict(
            {
                "trunk": nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, BOTTLENECK), nn.Tanh()),
                "label": nn.Linear(BOTTLENECK, CLASSES),
                "image": nn.Sequential(nn.Linear(BOTTLENECK, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 64)),
            }
        )


# ---- cosines at weights that are held still ---------------------------------------------------------------------------------------------


def cosines(seed: int, updates: int, draws: int) -> dict[str, Any]:
    """Cosine of the two gradients of the trunk in single micro-batches, in means of 8, with the noise taken out, and over all digits."""
    data = _digits(seed)
    net, _ = _training(SUM, seed, updates, data)
    rng = generator(seed, SLUG, "held")
    rows = np.stack([accumulated(net, data, batches(rng), stochastic=False)[0].double().numpy() for _ in range(draws)])  # (R, K, 2, n)
    everything = accumulated(net, data, np.arange(TRAIN)[None], stochastic=False)[0][0].double().numpy()
    parts = rows @ rows.swapaxes(-1, -2)
    averages = rows.mean(axis=1)
    of_mean = averages @ averages.swapaxes(-1, -2)
    k = rows.shape[1]
    unbiased = (k**2 * of_mean - parts.sum(axis=1)) / (k * (k - 1))  # products of different micro-batches only
    single, mean = _cosine(parts).ravel(), _cosine(of_mean)
    return {
        "single": single.tolist(),
        "mean": mean.tolist(),
        "all": float(_cosine(everything @ everything.T)),
        "sd_ratio": float(mean.std(ddof=1) / single.std(ddof=1)),
        "farther": float(abs(mean.mean()) - abs(single.mean())),
        "unbiased": float(_cosine(unbiased.mean(axis=0))),
    }


def _cosine(gramian: Array) -> Array:
    """Of two rows, from their inner products (..., 2, 2)."""
    return np.asarray(gramian[..., 0, 1] / np.sqrt(gramian[..., 0, 0] * gramian[..., 1, 1]))


# ---- losses that agree ------------------------------------------------------------------------------------------------------------------


def autoencode(seed: int, output: str, updates: int) -> dict[str, Any]:
    """Masked digits with L1 and 1 - SSIM: how far GCond ends from the sum, and how the two gradients stand to each other on the way."""
    import torch

    from counterpoise.gradients import GCond

    X = _digits(seed)["X"]
    ends, angle = [], []
    for combine in (_sum, GCond(momentum=0.0)):
        net = autoencoder(seed, output)
        parameters = list(net.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.0, 0.999))
        rng = generator(seed, SLUG, "masked")  # the same for both
        mean = torch.zeros(sum(p.numel() for p in parameters))
        for t in range(1, updates + 1):
            total = torch.zeros(2, len(mean))
            for batch in batches(rng):
                target = X[batch]
                kept = np.kron(rng.random((BATCH, 4, 4)) < 0.5, np.ones((1, 2, 2))).reshape(BATCH, 64)
                found = net(target * torch.from_numpy(kept).float())
                for i, loss in enumerate(((found - target).abs().mean(), 1 - ssim(found, target))):
                    gradients = torch.autograd.grad(loss, parameters, retain_graph=i == 0)
                    total[i] += torch.cat([g.reshape(-1) for g in gradients]) / MICRO_BATCHES
            angle.append(float(torch.cosine_similarity(total[0], total[1], dim=0)))
            mean = MOMENTUM * mean + (1 - MOMENTUM) * combine(total)
            _write(parameters, mean / (1 - MOMENTUM**t))
            optimizer.step()
        ends.append(torch.cat([p.detach().reshape(-1) for p in parameters]))
    return {
        "difference": float((ends[1] - ends[0]).abs().max()),
        "smallest": min(angle),
        "opposed": float(np.mean(np.array(angle) < 0)),
    }


def autoencoder(seed: int, output: str) -> nn.Sequential:
    import torch
    from torch import nn

    check_choice("output", output, OUTPUTS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_integer(seed, SLUG, "autoencoder"))
        layers = [nn.Linear(64, MASKED_HIDDEN), nn.ReLU(), nn.Linear(MASKED_HIDDEN, 64)]
        return nn.Sequential(*layers, nn.Sigmoid() if output == "sigmoid" else nn.Identity())


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of images (b, 64) with values in [0, 1], over windows of 3 x 3; the mean over images and windows."""
    from torch.nn import functional as F

    a, b = first.view(-1, 1, 8, 8), second.view(-1, 1, 8, 8)

    def local(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, WINDOW, stride=1)

    mean_a, mean_b = local(a), local(b)
    var_a, var_b, covariance = local(a * a) - mean_a**2, local(b * b) - mean_b**2, local(a * b) - mean_a * mean_b
    similar = (2 * mean_a * mean_b + C1) * (2 * covariance + C2) / ((mean_a**2 + mean_b**2 + C1) * (var_a + var_b + C2))
    return similar.mean()


# ---- what was found ---------------------------------------------------------------------------------------------------------------------


def _findings(trained: Sequence[Row], angles: Sequence[Row], masked: Sequence[Row]) -> tuple[Finding, ...]:
    claim = {claim.key: claim for claim in CLAIMS}
    ratio = mean_interval([row["sd_ratio"] for row in angles])
    farther = mean_interval([row["farther"] for row in angles])
    within = ratio[1] > SD_RATIO[0] and ratio[2] < SD_RATIO[1] and farther[1] > 0
    outside = ratio[2] <= SD_RATIO[0] or ratio[1] >= SD_RATIO[1] or farther[2] <= 0
    single, mean = (float(np.mean([np.mean(row[kind]) for row in angles])) for kind in ("single", "mean"))
    cpu = mean_interval([b["cpu"] / a["cpu"] for a, b in zip(_of(trained, GCOND), _of(trained, STOCHASTIC), strict=True)])
    agreeing, linear = (rows_where(masked, output=output) for output in OUTPUTS)
    difference, smallest = max(row["difference"] for row in agreeing), min(row["smallest"] for row in agreeing)
    whole, unbiased = (float(np.mean([row[kind] for row in angles])) for kind in ("all", "unbiased"))
    return (
        _better(claim["better"], trained),
        claim["variance"].judged(
            "replicated" if within else "not replicated" if outside else "undecided",
            f"The spread of the cosine in means of {MICRO_BATCHES} micro-batches is {_in(ratio)} times that in single ones; the mean "
            f"cosine goes from {single:.2f} to {mean:.2f}, farther from 0 by {_in(farther)}.",
            **_numbers(ratio),
            unit="ratio of sd",
        ),
        claim["cost"].below(cpu, COST, f"Stochastic accumulation takes {_in(cpu)} of the CPU time of sequential.", unit="ratio"),
        claim["harmless"].holds(
            smallest > 0 and difference <= EQUAL,
            f"L1 and 1 - SSIM: the smallest cosine in any update is {smallest:.3f}; weights differ from those of the sum by at most "
            f"{difference:.1g}.",
            estimate=difference,
            unit="weight",
        ),
        *_compared(claim["pcgrad"], trained, GCOND, PCGRAD),
        *_compared(claim["each"], trained, PCGRAD, EACH),
        *_compared(claim["stochastic"], trained, STOCHASTIC, GCOND),
        claim["hidden"].reported(
            mean_interval([row["all"] for row in angles]),
            f"Mean cosine over seeds: {single:.2f} in single micro-batches, {mean:.2f} in means of {MICRO_BATCHES}, {whole:.2f} over all "
            f"{TRAIN:,} digits; {unbiased:.2f} from products of different micro-batches only.",
            unit="cosine",
        ),
        claim["linear"].reported(
            mean_interval([row["opposed"] for row in linear]),
            f"With a linear output L1 and 1 - SSIM oppose each other in {np.mean([row['opposed'] for row in linear]):.1%} of the updates; "
            f"the smallest cosine is {min(row['smallest'] for row in linear):.2f}.",
            unit="share of updates",
        ),
    )


def _better(claim: Claim, trained: Sequence[Row]) -> Finding:
    accuracy, mse = (_bootstrap(paired(trained, value, GCOND, SUM)) for value in ("accuracy", "mse"))
    verdict: Verdict = "undecided"
    if len(_of(trained, SUM)) > 1:
        if accuracy[0] > 0 and mse[2] < 0:
            verdict = "replicated"
        elif mse[1] >= 0 or accuracy[2] <= 0:
            verdict = "not replicated"
    return claim.judged(
        verdict,
        f"Sum: accuracy {_average(trained, SUM, 'accuracy'):.4f}, MSE {_average(trained, SUM, 'mse'):.5f}. GCond minus sum: accuracy "
        f"{_in(accuracy, '+.4f')}, MSE {_in(mse, '+.5f')}.",
        **_numbers(mse),
        unit="MSE",
    )


def _compared(claim: Claim, trained: Sequence[Row], arm: str, other: str) -> list[Finding]:
    found = []
    for value, form in (("accuracy", "+.4f"), ("mse", "+.5f")):
        gap = mean_interval(paired(trained, value, arm, other))
        word = "test accuracy" if value == "accuracy" else "test MSE"
        found.append(claim.reported(gap, f"{word} of {arm} minus {other}: {_in(gap, form)}.", name=word, unit=word.removeprefix("test ")))
    return found


def _bootstrap(differences: Sequence[float]) -> Interval:
    """(mean, low, high) of the percentile bootstrap over seeds."""
    values = np.asarray(differences)
    drawn = generator(0, SLUG, "bootstrap").integers(len(values), size=(BOOTSTRAPS, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(values.mean()), float(low), float(high)


def _notes(trained: Sequence[Row], angles: Sequence[Row]) -> tuple[str, ...]:
    gap = mean_interval(paired(trained, "accuracy", GCOND, PCGRAD))
    tie = "a tie" if gap[1] <= 0 <= gap[2] else "a difference"
    return (
        "All arms have the same momentum, so that none of this is momentum. Against PCGrad on the same averages GCond is "
        f"{tie} in accuracy ({gap[0]:+.4f}).",
        f"The two gradients oppose each other in {_average(trained, GCOND, 'opposed'):.0%} of the updates of GCond, with a cosine below "
        f"-0.5 in {_average(trained, GCOND, 'strongly'):.0%}.",
        "Noise does not only spread the cosine, it draws it towards 0: who looks for conflicts in single batches misses the strong ones.",
        f"Stochastic accumulation sees half of the data for each loss. GCond, stochastic, minus sum, stochastic: accuracy "
        f"{_in(mean_interval(paired(trained, 'accuracy', STOCHASTIC, SUM_STOCHASTIC)), '+.4f')}.",
        "The bootstrap of five seeds, fixed beforehand as the criterion, is narrower than a t interval of the same five.",
    )


def _tables(trained: Sequence[Row], angles: Sequence[Row], masked: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    names = {"accuracy": "test accuracy", "mse": "test MSE", "cpu": "CPU s", "opposed": "cosine < 0", "strongly": "cosine < -0.5"}
    return {
        "Runs": [{"seed": row["seed"], "arm": row["arm"]} | {name: row[key] for key, name in names.items()} for row in trained],
        "Means over seeds": [{"arm": arm} | {name: _average(trained, arm, key) for key, name in names.items()} for arm in ARMS],
        f"Cosines after {angles[0]['updates']} updates of the sum": [
            {
                "seed": row["seed"],
                "single, mean": float(np.mean(row["single"])),
                "single, sd": float(np.std(row["single"], ddof=1)),
                f"{MICRO_BATCHES}, mean": float(np.mean(row["mean"])),
                f"{MICRO_BATCHES}, sd": float(np.std(row["mean"], ddof=1)),
                "without noise": row["unbiased"],
                "all digits": row["all"],
            }
            for row in angles
        ],
        "L1 and 1 - SSIM": [
            {
                "seed": row["seed"],
                "output": row["output"],
                "smallest cosine": row["smallest"],
                "cosine < 0": row["opposed"],
                "largest difference": row["difference"],
            }
            for row in masked
        ],
    }


def _figure(trained: Sequence[Row], angles: Sequence[Row]) -> Figure:
    from counterpoise.report import _plots

    with _plots.style():
        height = 330
        fig = _plots.figure(_plots.WIDTH, height)

        def place(x: float, y: float, text: str, **looks: Any) -> None:
            fig.text(x / _plots.WIDTH, 1 - y / height, text, va="top", **looks)

        place(8, 12, "How far two tasks oppose each other", weight="bold")
        ax = _plots.axes(fig, 62, 52, 226, 206)
        _plots.plain_rows(ax, len(angles))
        _plots.rules_between(ax, len(angles))
        ax.axvline(0, color=_plots.RULE, lw=1, zorder=1)
        for row, found in enumerate(angles):
            for kind, shift, color, width in (("single", -0.16, _plots.GRAY, 7), ("mean", 0.16, _plots.BLUE, 7)):
                center, spread = np.mean(found[kind]), np.std(found[kind])
                ends = [center - spread, center + spread]
                ax.plot(ends, [row + shift] * 2, color=color, lw=width, solid_capstyle="butt", zorder=2)
            ax.plot(found["all"], row, color=_plots.INK, zorder=4, **(_plots.TICK | {"ms": 26}))
            _plots.row_text(fig, ax, row, 8, f"seed {found['seed']}", color=_plots.MUTED)
        ax.set_xlim(-1, 1)
        ax.set_xticks([-1, -0.5, 0, 0.5, 1], ["-1", "-0.5", "0", "0.5", "1"])
        ax.set_xlabel("cosine of their gradients")
        for x, color, word in ((8, _plots.GRAY, "one batch"), (88, _plots.BLUE, f"mean of {MICRO_BATCHES}"), (172, _plots.INK, "all data")):
            place(x, 34, word, color=color, weight="bold")

        place(320, 12, "Gained over the plain sum", weight="bold")
        shown = ARMS[1:]
        for left, value, sign, word in ((458, "accuracy", 100, "accuracy, points"), (606, "mse", -1000, "MSE saved / 1000")):
            ax = _plots.axes(fig, left, 52, 122, 206)
            _plots.plain_rows(ax, len(shown))
            _plots.rules_between(ax, len(shown))
            ax.axvline(0, color=_plots.RULE, lw=1, zorder=1)
            for row, arm in enumerate(shown):
                gain = mean_interval([sign * difference for difference in paired(trained, value, arm, SUM)])
                color = _plots.BLUE if arm == GCOND else _plots.GRAY
                if np.isfinite(gain[1]):
                    ax.plot(gain[1:], [row, row], color=color, lw=2.4, zorder=2, solid_capstyle="butt")
                ax.plot(gain[0], row, "o", ms=9, color=color, mec=_plots.PAPER, zorder=3)
                if value == "accuracy":
                    name = {EACH: "PCGrad, each batch"}.get(arm, arm)
                    _plots.row_text(fig, ax, row, 320, name, weight="bold" if arm == GCOND else "normal")
            ax.locator_params(axis="x", nbins=4)
            ax.set_xlabel(word)
        return fig


def _of(rows: Sequence[Row], arm: str) -> list[Row]:
    return sorted(rows_where(rows, arm=arm), key=lambda row: row["seed"])


def _average(rows: Sequence[Row], arm: str, value: str) -> float:
    return float(np.mean([row[value] for row in _of(rows, arm)]))


def _in(interval: Interval, form: str = ".2f") -> str:
    mean, low, high = interval
    return f"{mean:{form}} ({low:{form}} to {high:{form}})"


def _numbers(interval: Interval) -> dict[str, float]:
    return dict(zip(("estimate", "low", "high"), interval, strict=True))
