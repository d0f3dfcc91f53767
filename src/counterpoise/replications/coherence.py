"""Coherence of per-example gradients (arXiv:2008.01217), and clipping them in every coordinate (arXiv:2002.10657).

The paper measures on ImageNet how many examples a step along the gradient of one of them helps, and finds that even random labels are not
learned one by one. Re-tested here on the 8 x 8 digits that come with scikit-learn: a perceptron with two hidden layers of 256 is trained on
1,000 of them with real, random, and half random labels, and m-coherence is measured exactly over all 1,000 after every epoch at first, then
after every fifth. What to look at is a hump: at the start random labels have nothing in common, in between something, and once the data are
fitted a few opposing examples are left.

The companion clips each coordinate of the gradient to what most examples of the batch agree on, which should keep wrong labels from being
learned. Re-tested on 800 digits of which half have random labels; and, since clipping cannot tell a wrong label from a rare class, on
digits of which five are ten times as rare as the others, all labels right.

What this cannot say: how high the hump is on large data, or for convolutions; and whether clipping helps where early stopping is allowed
(the best accuracy along the way is reported beside the final one).
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

from ._types import Claim, Finding, Replication, Verdict
from ._work import Work, paired, rows_where

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from counterpoise.diagnostics import GradientSketch

SLUG = "coherence"

# ---- coherence: 64-256-256-10, SGD with momentum
EXAMPLES, HIDDEN, BATCH, RATE, MOMENTUM, EPOCHS = 1000, (256, 256), 50, 0.1, 0.9, 120
LABELS = {"real": 0.0, "random": 1.0, "half": 0.5}  # share of the labels that are drawn at random
PEAK, PEAK_LOW = 3.0, 2.0  # random labels: the highest m-coherence on average, and the interval of it
RATIO, RATIO_LOW = 2.0, 1.3  # real over random
START = (0.3, 2.0)  # random labels before training, every seed
INSIDE = (0.2, 0.97)  # training accuracy at the peak with random labels, every seed
EXACT = 1e-10  # two running sums against all pairs, relative

# ---- clipping: 64-64-64-10, plain SGD
CLIP_EXAMPLES, CLIP_HIDDEN, CLIP_BATCH, CLIP_RATE, CLIP_EPOCHS, NOISE = 800, (64, 64), 32, 0.3, 50, 0.5
RARE, COMMON, RARE_CLASSES = 15, 145, 5  # rows of a rare and of a common digit
JUDGED = ("trim 2", "trim 8")

SEEDS, QUICK_SEEDS = tuple(range(5)), (0, 1)
QUICK_EPOCHS, QUICK_CLIP_EPOCHS = 6, 3

PLAIN, WITHIN = "mean", "trim 2 within classes"
ARMS = (PLAIN, "trim 2", "trim 8", WITHIN, "median of 3 micro-batches", "median of last 3 batches")

CLAIMS = (
    Claim(
        "random",
        "Random labels are not learned one by one: while they are fitted, m-coherence rises well above the 1 of unrelated examples.",
        f"Highest m-coherence along training at least {PEAK:g} on average over seeds, with its 95 % interval above {PEAK_LOW:g}.",
    ),
    Claim(
        "real",
        "Real labels reach a much higher m-coherence than random ones.",
        f"Ratio of the highest values at least {RATIO:g} on average over seeds, with its 95 % interval above {RATIO_LOW:g}.",
    ),
    Claim(
        "start",
        "Before training, examples with random labels have nothing in common: m-coherence is about 1.",
        f"Between {START[0]:g} and {START[1]:g} in every seed.",
    ),
    Claim(
        "hump",
        "The rise belongs to the fitting: it is over when the random labels are fitted.",
        f"Training accuracy at the highest value between {INSIDE[0]:g} and {INSIDE[1]:g} in every seed.",
    ),
    Claim(
        "cost",
        "m-coherence takes two running sums over the examples instead of all pairs.",
        f"Both agree to {EXACT:g} in double precision.",
    ),
    Claim(
        "winsorized",
        "Clipping each coordinate of the per-example gradients greatly reduces overfitting to wrong labels.",
        "Trimming 2 or 8 of 32 on each side: final test accuracy above that of the mean and fewer wrong labels reproduced, both 95 % "
        "intervals over seeds clear of 0.",
    ),
    Claim("fitting", "The same as the first two claims, over the epochs only in which random labels are half learned."),
    Claim("wrong", "Rows with wrong labels have less in common than rows with right ones."),
    Claim("best", "Clipping compared with stopping the plain mean at its best moment."),
    Claim("cheaper", "The median of three micro-batches, of one batch or of the last three, in place of clipping examples."),
    Claim("rare", "What clipping does to rare classes whose labels are right."),
)


def run(
    *,
    seeds: Sequence[int] | None = None,
    quick: bool = False,
    data_dir: str | Path | None = None,
    work: Work | None = None,
) -> Replication:
    """All labels and arms for all seeds; ``data_dir`` is not used, since the digits come with scikit-learn."""
    chosen = tuple(seeds if seeds is not None else QUICK_SEEDS if quick else SEEDS)
    work = work or Work()
    epochs, clip_epochs = (QUICK_EPOCHS, QUICK_CLIP_EPOCHS) if quick else (EPOCHS, CLIP_EPOCHS)
    curves = work.map(curve, [{"labels": labels, "seed": seed, "epochs": epochs} for seed in chosen for labels in LABELS])
    tasks = [
        {"data": data, "arm": arm, "seed": seed, "epochs": clip_epochs} for seed in chosen for data in ("noisy", "rare") for arm in ARMS
    ]
    clipped = work.map(train, tasks)
    pairs = work.map(all_pairs, [{"seed": chosen[0]}])
    noisy, rare = rows_where(clipped, data="noisy"), rows_where(clipped, data="rare")
    return Replication(
        slug=SLUG,
        claims=CLAIMS,
        findings=tuple(_findings(curves, noisy, rare, pairs[0])),
        notes=_notes(curves, noisy, rare),
        tables={
            "m-coherence along training": [_curve_row(row) for row in curves],
            "half of the labels random, mean over seeds": [_noisy_row(arm, noisy) for arm in ARMS],
            "five rare digits, mean over seeds": [_rare_row(arm, rare) for arm in ARMS],
        },
        figure=_figure(curves, noisy, rare),
        seeds=chosen,
        quick=quick,
    )


# ---- data and networks ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Digits:
    """Training images in [0, 1] with the labels that are given and the true ones; test images."""

    X: npt.NDArray[np.float32]
    given: npt.NDArray[np.int64]
    true: npt.NDArray[np.int64]
    X_test: npt.NDArray[np.float32]
    y_test: npt.NDArray[np.int64]


def digits(seed: int, examples: int, noise: float) -> Digits:
    """``examples`` images to train on, of whose labels the share ``noise`` is drawn anew; the others are for testing."""
    X, y, rng = _images(seed)
    given = y.copy()
    drawn = rng.choice(examples, round(noise * examples), replace=False)
    given[drawn] = rng.integers(10, size=len(drawn))
    return Digits(X[:examples], given[:examples], y[:examples], X[examples:], y[examples:])


def rare_digits(seed: int) -> Digits:
    """Five digits with few rows, five with many, all labels right; the others are for testing."""
    X, y, rng = _images(seed)
    size = np.full(10, COMMON)
    size[rng.choice(10, RARE_CLASSES, replace=False)] = RARE
    kept = np.concatenate([np.flatnonzero(y == k)[: size[k]] for k in range(10)])
    rest = np.setdiff1d(np.arange(len(y)), kept)
    return Digits(X[kept], y[kept], y[kept], X[rest], y[rest])


def _images(seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], np.random.Generator]:
    """All digits in an order of the seed's."""
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    rng = generator(seed, SLUG, "data")
    order = rng.permutation(len(X))
    return (X[order] / 16).astype(np.float32), y[order], rng


def network(hidden: Sequence[int], seed: int) -> nn.Sequential:
    """A perceptron with ReLU layers; its initial parameters depend on the seed alone."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_integer(seed, SLUG, "network"))
        layers: list[nn.Module] = []
        for inputs, outputs in zip((64, *hidden), hidden, strict=False):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(hidden[-1], 10))


def factors(net: nn.Sequential, X: Tensor, y: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """For each linear layer its inputs (m, d) and the gradients of the examples' own losses by its outputs (m, o); and the losses (m,).

    The gradient of example i by the layer's weight is the product of the two, by its bias the second alone.
    """
    import torch
    from torch import nn

    inputs, outputs, h = [], [], X
    for layer in net:
        if isinstance(layer, nn.Linear):
            inputs.append(h)
        h = layer(h)
        if isinstance(layer, nn.Linear):
            outputs.append(h)
    losses = nn.functional.cross_entropy(h, y, reduction="none")
    # The losses are independent of each other, so the gradient of their sum holds each one's own.
    of_outputs = torch.autograd.grad(losses.sum(), outputs)
    return [(a.detach(), b) for a, b in zip(inputs, of_outputs, strict=True)], losses.detach()


# ---- coherence along a training ---------------------------------------------------------------------------------------------------------


def sketch(net: nn.Sequential, X: Tensor, y: Tensor, wrong: Tensor) -> GradientSketch:
    """Exact norms and sums of the examples' gradients, rows with right and with wrong labels apart."""
    import torch

    from counterpoise._pergrad import Blocks
    from counterpoise.diagnostics import GradientSketch

    pairs, losses = factors(net, X, y)
    groups = wrong.long()
    member = torch.nn.functional.one_hot(groups, 2).double()
    names, norms, sums, slices, start = [], [], [], [], 0
    for number, (a, b) in enumerate(pairs):
        a, b = a.double(), b.double()
        of_bias = (b**2).sum(dim=1)
        weight = torch.stack([(b * member[:, k, None]).T @ a for k in range(2)]).flatten(1)
        for name, norm, total in (
            (f"weight {number + 1}", of_bias * (a**2).sum(dim=1), weight),
            (f"bias {number + 1}", of_bias, member.T @ b),
        ):
            names.append(name)
            norms.append(norm)
            sums.append(total)
            slices.append(slice(start, start + total.shape[1]))
            start += total.shape[1]
    blocks = Blocks(tuple(names), tuple(slices), torch.stack(norms, dim=1))
    return GradientSketch(
        losses=losses.double(),
        groups=groups,
        index=torch.arange(len(X)),
        group_names=("right", "wrong"),
        norms_sq=blocks.norms_sq.sum(dim=1),
        group_sums=torch.cat(sums, dim=1),
        blocks=blocks,
    )


def curve(labels: str, seed: int, epochs: int) -> dict[str, Any]:
    """m-coherence and training accuracy (of the given labels) at each recorded epoch of one training."""
    import torch
    from torch import nn

    from counterpoise.diagnostics import coherence

    check_choice("labels", labels, LABELS)
    data = digits(seed, EXAMPLES, LABELS[labels])
    X, y = torch.from_numpy(data.X), torch.from_numpy(data.given)
    wrong = torch.from_numpy(data.given != data.true)
    net = network(HIDDEN, seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM)
    rng = generator(seed, SLUG, "order", labels)
    rows: list[dict[str, Any]] = []
    for epoch in range(epochs + 1):
        if epoch <= 10 or epoch % 5 == 0:
            report = coherence(sketch(net, X, y, wrong), per_block=True)
            assert report.blocks is not None
            by_label = dict(report.per_group.select("group", "alpha_unbiased").iter_rows())
            rows.append(
                {"epoch": epoch, "m_coherence": report.m_coherence, "alpha_unbiased": report.alpha_unbiased}
                | {"accuracy": _accuracy(net, data.X, data.given), "test": _accuracy(net, data.X_test, data.y_test)}
                | by_label
                | {"blocks": dict(report.blocks.select("block", "alpha_unbiased").iter_rows())}
            )
        for batch in np.split(rng.permutation(len(X)), len(X) // BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(X[batch]), y[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    peak = max(rows, key=lambda row: row["m_coherence"])
    inside = [row["m_coherence"] for row in rows if INSIDE[0] < row["accuracy"] < INSIDE[1]]
    return {
        "inside": max(inside, default=None),
        "epochs_": [row["epoch"] for row in rows],
        "values": [row["m_coherence"] for row in rows],
        "accuracies": [row["accuracy"] for row in rows],
        "start": rows[0]["m_coherence"],
        "end": rows[-1]["m_coherence"],
        "end_accuracy": rows[-1]["accuracy"],
        "peak": peak["m_coherence"],
        "peak_epoch": peak["epoch"],
        "peak_accuracy": peak["accuracy"],
        "test": max(row["test"] for row in rows),
        "right": _number(peak["right"]),
        "wrong": _number(peak["wrong"]),
        "blocks": peak["blocks"],
    }


def all_pairs(seed: int) -> dict[str, float]:
    """alpha from two running sums and from the inner products of all pairs, at the start with random labels."""
    import torch

    from counterpoise.diagnostics import coherence

    data = digits(seed, EXAMPLES, 1.0)
    X, y = torch.from_numpy(data.X).double(), torch.from_numpy(data.given)
    net = network(HIDDEN, seed).double()
    sums = coherence(sketch(net, X, y, torch.zeros(len(X), dtype=torch.bool))).alpha
    pairs, _ = factors(net, X, y)
    gramian = sum(((a @ a.T + 1) * (b @ b.T) for a, b in pairs), torch.zeros(len(X), len(X), dtype=torch.float64))
    direct = float(gramian.mean() / gramian.diagonal().mean())
    return {"sums": sums, "pairs": direct, "error": abs(sums / direct - 1)}


def _accuracy(net: nn.Sequential, X: npt.NDArray[np.float32], y: npt.NDArray[np.int64]) -> float:
    return float((_decisions(net, X) == y).mean())


def _decisions(net: nn.Sequential, X: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    import torch

    with torch.no_grad():
        return np.asarray(net(torch.from_numpy(X)).argmax(dim=1))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


# ---- clipping ---------------------------------------------------------------------------------------------------------------------------


def train(data: str, arm: str, seed: int, epochs: int) -> dict[str, Any]:
    """Accuracies after one training with one way to make a step from the gradients of a batch."""
    import torch

    from counterpoise.optim import MicroBatchMedian

    check_choice("data", data, ("noisy", "rare"))
    check_choice("arm", arm, ARMS)
    given = digits(seed, CLIP_EXAMPLES, NOISE) if data == "noisy" else rare_digits(seed)
    X, y = torch.from_numpy(given.X), torch.from_numpy(given.given)
    net = network(CLIP_HIDDEN, seed)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), lr=CLIP_RATE)
    if arm == "median of last 3 batches":
        optimizer = MicroBatchMedian(optimizer, rolling=True)
    rng = generator(seed, SLUG, "order", data)  # the same batches for every arm
    best = 0.0
    for _ in range(epochs):
        for batch in np.split(rng.permutation(len(X)), len(X) // CLIP_BATCH):
            set_gradients(net, X[batch], y[batch], arm)
            optimizer.step()
        best = max(best, _accuracy(net, given.X_test, given.y_test))
    seen, tested = _decisions(net, given.X), _decisions(net, given.X_test)
    right, wrong = seen == given.given, given.given != given.true
    few = np.isin(given.y_test, np.flatnonzero(np.bincount(given.true, minlength=10) == RARE))
    return {
        "final": float((tested == given.y_test).mean()),
        "best": best,
        "fit": float(right.mean()),
        "true": float((seen == given.true).mean()),
        "wrong_fit": float(right[wrong].mean()) if wrong.any() else None,
        "rare": float((tested == given.y_test)[few].mean()) if few.any() else None,
        "common": float((tested == given.y_test)[~few].mean()),
    }


def set_gradients(net: nn.Sequential, X: Tensor, y: Tensor, arm: str) -> None:
    """Write what the arm makes of the examples' gradients to ``.grad``."""
    import torch

    from counterpoise.gradients import WinsorizedMean

    parameters = list(net.parameters())
    if arm in (PLAIN, "median of last 3 batches"):
        loss = torch.nn.functional.cross_entropy(net(X), y)
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        return
    pairs, _ = factors(net, X, y)
    rows = torch.cat([part for a, b in pairs for part in ((b[:, :, None] * a[:, None, :]).flatten(1), b)], dim=1)
    if arm == "median of 3 micro-batches":
        step = WinsorizedMean(mode="median3")(rows)
    elif arm == WITHIN:
        step = WinsorizedMean(trim=2)(rows, groups=y)
    else:
        step = WinsorizedMean(trim=int(arm.removeprefix("trim ")))(rows)
    for parameter, gradient in zip(parameters, torch.split(step, [p.numel() for p in parameters]), strict=True):
        parameter.grad = gradient.reshape(parameter.shape)


# ---- what was found ---------------------------------------------------------------------------------------------------------------------

Interval = tuple[float, float, float]


def _findings(
    curves: Sequence[Mapping[str, Any]], noisy: Sequence[Mapping[str, Any]], rare: Sequence[Mapping[str, Any]], pairs: Mapping[str, Any]
) -> list[Finding]:
    claim = {claim.key: claim for claim in CLAIMS}
    random, real, half = (rows_where(curves, labels=labels) for labels in ("random", "real", "half"))
    peak = mean_interval([row["peak"] for row in random])
    ratios = [a["peak"] / b["peak"] for a, b in zip(real, random, strict=True)]
    ratio = mean_interval(ratios)
    starts = [row["start"] for row in random]
    accuracies = [row["peak_accuracy"] for row in random]
    found = [
        claim["random"].judged(
            _judged(peak, PEAK, PEAK_LOW),
            f"Random labels: m-coherence rises from {np.mean(starts):.2f} to {_in(peak)} and ends at {_mean(random, 'end'):.2f}.",
            **_numbers(peak),
            unit="examples",
        ),
        claim["real"].judged(
            _judged(ratio, RATIO, RATIO_LOW),
            f"Real labels reach {_mean(real, 'peak'):.1f}, {_in(ratio)} times as much as random ones.",
            **_numbers(ratio),
            unit="ratio",
        ),
        claim["start"].holds(
            all(START[0] <= value <= START[1] for value in starts),
            f"Random labels before training: {min(starts):.2f} to {max(starts):.2f}.",
            estimate=float(np.mean(starts)),
            unit="examples",
        ),
        claim["hump"].holds(
            all(INSIDE[0] < value < INSIDE[1] for value in accuracies),
            f"At the highest value the training accuracy of random labels is {min(accuracies):.2f} to {max(accuracies):.2f}; at the end "
            f"{_mean(random, 'end_accuracy'):.2f}.",
            estimate=float(np.mean(accuracies)),
            unit="accuracy",
        ),
        claim["cost"].holds(
            pairs["error"] < EXACT,
            f"alpha over {EXAMPLES:,} examples: relative difference {pairs['error']:.1g}.",
            estimate=pairs["error"],
            unit="relative",
        ),
        _winsorized(claim["winsorized"], noisy),
    ]
    fitting = [row["inside"] for row in random if row["inside"] is not None]
    within = mean_interval(fitting) if fitting else None
    real_over = np.mean([a["peak"] for a in real]) / np.mean(fitting) if fitting else float("nan")
    found.append(
        claim["fitting"].reported(
            within,
            f"While the training accuracy of random labels is between {INSIDE[0]:g} and {INSIDE[1]:g}: at most "
            + (f"{_in(within)}; real labels reach {real_over:.1f} times as much." if within else "never here."),
            unit="examples",
        )
    )
    difference = mean_interval([row["wrong"] - row["right"] for row in half])
    found.append(
        claim["wrong"].reported(
            difference,
            f"Half of the labels random, at the highest m-coherence: unbiased coherence {_mean(half, 'right'):.4f} of right labels, "
            f"{_mean(half, 'wrong'):.4f} of wrong ones.",
            unit="alpha",
        )
    )
    for arm in JUDGED:
        gap = mean_interval([a - b for a, b in zip(_values(noisy, arm, "final"), _values(noisy, PLAIN, "best"), strict=True)])
        text = f"{arm}: final test accuracy minus the best of the plain mean along the way {_in(gap, '+.3f')}."
        found.append(claim["best"].reported(gap, text, name=arm, unit="accuracy"))
    for arm in ARMS[4:]:
        gain, fit = _gain(noisy, arm, "final"), _gain(noisy, arm, "wrong_fit")
        text = f"{arm}: final test accuracy {_in(gain, '+.3f')}, wrong labels reproduced {_in(fit, '+.3f')}."
        found.append(claim["cheaper"].reported(gain, text, name=arm, unit="accuracy"))
    for arm in ARMS[1:]:
        gain, cost = _gain(rare, arm, "rare"), _gain(rare, arm, "common")
        kept = _gain(noisy, arm, "final")
        text = f"{arm}: rare digits {_in(gain, '+.3f')}, common ones {_in(cost, '+.3f')}; on noisy labels, final test {_in(kept, '+.3f')}."
        found.append(claim["rare"].reported(gain, text, name=arm, unit="accuracy"))
    return found


def _judged(interval: Interval, mean: float, low: float) -> Verdict:
    """Replicated if the mean and the lower limit reach their bounds; not replicated if the upper limit misses one of them."""
    if interval[0] >= mean and interval[1] > low:
        return "replicated"
    return "not replicated" if interval[2] <= low or (interval[0] < mean and interval[2] < mean) else "undecided"


def _winsorized(claim: Claim, noisy: Sequence[Mapping[str, Any]]) -> Finding:
    verdicts, parts = [], []
    for arm in JUDGED:
        gain, fit = _gain(noisy, arm, "final"), _gain(noisy, arm, "wrong_fit")
        good, bad = gain[1] > 0 and fit[2] < 0, gain[2] <= 0 or fit[1] >= 0
        verdicts.append("replicated" if good else "not replicated" if bad else "undecided")
        parts.append(f"{arm}: final test accuracy {_in(gain, '+.3f')}, wrong labels reproduced {_in(fit, '+.3f')}")
    verdict: Verdict = "replicated" if "replicated" in verdicts else "undecided" if "undecided" in verdicts else "not replicated"
    shown = JUDGED[verdicts.index(verdict)]
    final, fitted = _arm_mean(noisy, PLAIN, "final"), _arm_mean(noisy, PLAIN, "wrong_fit")
    plain = f"The mean ends at {final:.3f} and reproduces {fitted:.3f} of the wrong labels. "
    return claim.judged(verdict, plain + "; ".join(parts) + ".", **_numbers(_gain(noisy, shown, "final")), unit="accuracy")


def _notes(curves: Sequence[Mapping[str, Any]], noisy: Sequence[Mapping[str, Any]], rare: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    real = rows_where(curves, labels="real")
    return (
        f"m-coherence is a hump in time: with real labels {_mean(real, 'start'):.1f} at the start, {_mean(real, 'peak'):.1f} at most, "
        f"{_mean(real, 'end'):.2f} at the end. Whoever measures at the end only sees what is left once the data are fitted.",
        f"Accuracy on rare digits with right labels changes by {_gain(rare, 'trim 2', 'rare')[0]:+.3f} with trimming 2 of 32, by "
        f"{_gain(rare, 'trim 8', 'rare')[0]:+.3f} with 8, and by {_gain(rare, WITHIN, 'rare')[0]:+.3f} with 2 within classes. The last "
        f"one's effect on noisy labels: {_gain(noisy, WITHIN, 'final')[0]:+.3f}.",
        "With momentum there may be a spike before the training accuracy rises at all; the highest value over the epochs of fitting is "
        "without it.",
        "Two trims are judged, either may count; the intervals are not widened for that.",
        "Training with clipping takes a gradient for each example, here several times the time of a plain step.",
    )


def _values(rows: Sequence[Mapping[str, Any]], arm: str, value: str) -> list[float]:
    return [float(row[value]) for row in sorted(rows_where(rows, arm=arm), key=lambda row: row["seed"])]


def _gain(rows: Sequence[Mapping[str, Any]], arm: str, value: str) -> Interval:
    return mean_interval(paired(rows, value, arm, PLAIN))


def _mean(rows: Sequence[Mapping[str, Any]], value: str) -> float:
    return float(np.mean([row[value] for row in rows]))


def _arm_mean(rows: Sequence[Mapping[str, Any]], arm: str, value: str) -> float:
    return float(np.mean(_values(rows, arm, value)))


def _in(interval: Interval, form: str = ".2f") -> str:
    mean, low, high = interval
    return f"{mean:{form}} ({low:{form}} to {high:{form}})"


def _numbers(interval: Interval) -> dict[str, float]:
    return dict(zip(("estimate", "low", "high"), interval, strict=True))


def _curve_row(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("labels", "seed", "start", "inside", "peak", "peak_epoch", "peak_accuracy", "end", "end_accuracy", "test", "right", "wrong")
    return {name: row[name] for name in names} | {f"{block}, at the peak": value for block, value in row["blocks"].items()}


def _noisy_row(arm: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"arm": arm} | {name: _arm_mean(rows, arm, name) for name in ("final", "best", "fit", "true", "wrong_fit")}
    gain, fit = _gain(rows, arm, "final"), _gain(rows, arm, "wrong_fit")
    return row | {
        "final gain": gain[0],
        "gain low": gain[1],
        "gain high": gain[2],
        "wrong_fit change": fit[0],
        "low": fit[1],
        "high": fit[2],
    }


def _rare_row(arm: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"arm": arm} | {name: _arm_mean(rows, arm, name) for name in ("rare", "common", "final")}
    gain = _gain(rows, arm, "rare")
    return row | {"rare gain": gain[0], "gain low": gain[1], "gain high": gain[2], "common gain": _gain(rows, arm, "common")[0]}


def _figure(curves: Sequence[Mapping[str, Any]], noisy: Sequence[Mapping[str, Any]], rare: Sequence[Mapping[str, Any]]) -> Figure:
    from counterpoise.report import _plots

    with _plots.style():
        height = 330
        fig = _plots.figure(_plots.WIDTH, height)
        _draw_curves(_plots.axes(fig, 46, 52, 270, 216), curves)
        shown = ARMS[1:]
        ax = _plots.axes(fig, 510, 52, 210, 216)
        _plots.plain_rows(ax, len(shown))
        ax.axvline(0, color=_plots.RULE, lw=1, zorder=1)
        for row, arm in enumerate(shown):
            for rows, value, shift, marker, color in ((noisy, "final", -0.14, "o", _plots.BLUE), (rare, "rare", 0.14, "s", _plots.RED)):
                gain = _gain(rows, arm, value)
                if np.isfinite(gain[1]):
                    ax.plot(gain[1:], [row + shift] * 2, color=color, lw=2, zorder=2, solid_capstyle="butt")
                ax.plot(gain[0], row + shift, marker, ms=8, color=color, mec=_plots.PAPER, zorder=3)
            _plots.row_text(fig, ax, row, 352, arm.replace(" micro-batches", " parts").replace(" batches", ""))
        ax.set_xlabel("test accuracy gained over the mean")
        for x, text in ((8, "m-coherence of 1,000 examples"), (352, "Clipping what few examples ask for")):
            fig.text(x / _plots.WIDTH, 1 - 12 / height, text, va="top", weight="bold")
        for x, marker, color, word in (
            (358, "o", _plots.BLUE, "half the labels random"),
            (548, "s", _plots.RED, "rare digits, labels right"),
        ):
            ax.plot((x - 510) / 210, 1 + 16 / 216, marker, ms=8, color=color, mec=_plots.PAPER, transform=ax.transAxes, clip_on=False)
            fig.text((x + 10) / _plots.WIDTH, 1 - 46 / height, word, va="center", color=_plots.MUTED)
        return fig


def _draw_curves(ax: Axes, curves: Sequence[Mapping[str, Any]]) -> None:
    from counterpoise.report import _plots

    ax.spines["left"].set_visible(True)
    ax.axhline(1, color=_plots.RULE, lw=1, zorder=1)
    shown = (("real", _plots.INK, "real labels", 0.0), ("half", _plots.GRAY, "half random", 0.36), ("random", _plots.BLUE, "random", 0.74))
    for labels, color, name, place in shown:
        ax.text(place, 1.045, name, transform=ax.transAxes, color=color, weight="bold")
        rows = rows_where(curves, labels=labels)
        epochs, values = np.array(rows[0]["epochs_"]), np.array([row["values"] for row in rows])
        ax.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, lw=0)
        mean = np.exp(np.log(values).mean(axis=0))
        ax.plot(epochs, mean, color=color, lw=2)
    ax.set_yscale("log")
    ax.set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    ax.minorticks_off()
    ax.set_xscale("symlog", linthresh=2, linscale=0.6)
    ax.set_xticks([0, 1, 2, 5, 10, 20, 50, 100], ["0", "1", "2", "5", "10", "20", "50", "100"])
    ax.set_xlim(0, max(rows_where(curves, labels="real")[0]["epochs_"]))
    ax.set_xlabel("epoch")
