"""SAM-GS: gradients of tasks made equally long, or modulated by their momentum (arXiv:2506.06130).

The paper says that it is long gradients, not opposed ones, that make tasks harm each other, and that its method alone reaches the optimum
of a two-parameter, two-task problem from all of seven starts. Re-tested here

- on that very problem (losses with narrow valleys on one side, two bowls on the other), with Adam at a learning rate of 1e-2 for 2,500
  steps, as far as the paper's 20,000 steps at 1e-3 can go; all arms with the same clip to norm 1, in double precision;
- on the 8 x 8 digits that come with scikit-learn: a shared trunk of 64-64-6 units, a head that names the digit (cross-entropy) and one that
  draws it again (mean squared error), whose loss is multiplied by a scale of 1 or 1,000, as are losses in different units.

The step of the trunk is made by the arm and clipped to norm 1; heads get the gradient of their own loss. SAM-GS is the published form:
not rescaled, and multiplied by the number of tasks before the clip.

What this cannot say: how SAM-GS does on the image and robot benchmarks of the paper, or against Nash-MTL and Aligned-MTL. How often each
branch of the method was taken, and what another unit of one loss does to it, is reported beside the verdicts.
"""

from __future__ import annotations

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
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from counterpoise.gradients import Aggregator

SLUG = "sam-gs"

CLIP = 1.0  # norm of a step of what is shared

# ---- the problem of the paper
STARTS = ((-8.0, 5.0), (-3.0, 7.5), (0.0, 10.0), (3.0, 7.5), (8.0, 5.0), (-10.0, -3.0), (10.0, -3.0))
FLOOR = 5e-6  # of what a logarithm is taken of
OPTIMUM = (0.0, -8.4)  # of the sum of both losses
REACHED = 0.5  # distance to it
STEPS, RATE = 2500, 1e-2
MORE = 3  # starts more than the sum and PCGrad
FACTOR = 10.0  # of the first loss, in the finding on units

# ---- digits
TRAIN, BATCH, DIGIT_STEPS, DIGIT_RATE, GAMMA = 1200, 64, 600, 3e-3, 0.9
SCALES = (1.0, 1000.0)
OVER_SUM, OVER_PCGRAD = 0.05, 0.03  # accuracy, in every seed
STEADY_ACCURACY, STEADY_MSE = 0.02, 0.15  # change between the scales; the second relative

SEEDS, QUICK_SEEDS = tuple(range(5)), (0, 1)
QUICK_STEPS, QUICK_DIGIT_STEPS = 40, 15

SUM, PCGRAD, SAM = "sum", "PCGrad", "SAM-GS"
EQUAL, NEVER, HOMOGENEOUS = "gamma 1 (always equal)", "gamma 0 (momentum)", "homogeneous"
DEFAULT, ALONE = "gamma 0.1", "each task alone"
PROBLEM_ARMS = (SUM, PCGRAD, SAM, EQUAL, NEVER, HOMOGENEOUS)
SCALED_ARMS = (SUM, SAM, EQUAL)
DIGIT_ARMS = (SUM, PCGRAD, SAM, EQUAL, NEVER, DEFAULT, ALONE)

CLAIMS = (
    Claim(
        "optimum",
        "SAM-GS reaches the optimum of the two-task problem from every start, unlike the sum of the losses and PCGrad.",
        f"All {len(STARTS)} starts end within {REACHED:g} of {OPTIMUM}, and at least {MORE} more than with the sum and with PCGrad.",
    ),
    Claim(
        "small",
        "Where one loss is much larger than the other, SAM-GS saves the task with the small one.",
        f"Digits, reconstruction loss times {SCALES[1]:g}: accuracy above that of the sum by at least {OVER_SUM:g} and above that of "
        f"PCGrad by at least {OVER_PCGRAD:g}, in every seed.",
    ),
    Claim(
        "steady",
        "SAM-GS does not depend on the unit of the losses.",
        f"Digits, from scale {SCALES[0]:g} to {SCALES[1]:g}: 95 % intervals over seeds of the change in accuracy within "
        f"±{STEADY_ACCURACY:g} and of the relative change in squared error within ±{STEADY_MSE:.0%}; not replicated if one lies outside.",
    ),
    Claim("branches", "How often gradients are equalized, and how often momentum decides."),
    Claim("stress", f"The two-task problem with its first loss multiplied by {FACTOR:g}."),
    Claim("ablation", "Only momentum (gamma 0), only equalization (gamma 1), and the momentum branch rescaled."),
    Claim("price", "What SAM-GS costs: where no loss outweighs the other, and for the loss that would have had the step."),
)


def run(
    *,
    seeds: Sequence[int] | None = None,
    quick: bool = False,
    data_dir: str | Path | None = None,
    work: Work | None = None,
) -> Replication:
    """All arms on both problems; the first has no randomness, ``data_dir`` is not used, since the digits come with scikit-learn."""
    chosen = tuple(seeds if seeds is not None else QUICK_SEEDS if quick else SEEDS)
    work = work or Work()
    steps, digit_steps = (QUICK_STEPS, QUICK_DIGIT_STEPS) if quick else (STEPS, DIGIT_STEPS)
    tasks: list[dict[str, Any]] = [{"arm": arm, "factor": 1.0, "steps": steps} for arm in PROBLEM_ARMS]
    tasks += [{"arm": arm, "factor": FACTOR, "steps": steps} for arm in SCALED_ARMS]
    paths = work.map(descend, tasks)
    digits = work.map(
        train,
        [{"arm": arm, "scale": scale, "seed": seed, "steps": digit_steps} for seed in chosen for scale in SCALES for arm in DIGIT_ARMS],
    )
    return Replication(
        slug=SLUG,
        claims=CLAIMS,
        findings=tuple(_findings(paths, digits)),
        notes=_notes(paths, digits),
        tables={
            "Two tasks, two parameters": [_path_row(row) for row in paths],
            "Digits, mean over seeds": [_digit_row(digits, arm, scale) for scale in SCALES for arm in DIGIT_ARMS],
        },
        figure=_figure(paths, digits),
        seeds=chosen,
        quick=quick,
    )


# ---- arms -------------------------------------------------------------------------------------------------------------------------------


def aggregator(arm: str, gamma: float) -> Aggregator | None:
    """What makes a step out of the gradients of the tasks; None for their sum."""
    import torch

    from counterpoise.gradients import SAMGS, PCGrad

    if arm in (SUM, ALONE):
        return None
    if arm == PCGRAD:
        return PCGrad(generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {EQUAL: {"gamma": 1.0}, NEVER: {"gamma": 0.0}, DEFAULT: {"gamma": 0.1}}.get(arm, {"gamma": gamma})
    return SAMGS(**options, rescale="homogeneous" if arm == HOMOGENEOUS else "published")


def clipped(step: Tensor) -> Tensor:
    """``step`` (n,), no longer than ``CLIP``."""
    return step * min(CLIP / max(float(step.norm()), 1e-300), 1.0)


def step_of(made_by: Aggregator | None, rows: Tensor) -> Tensor:
    """The step (n,) out of rows (K, n), times K where the authors' code has that factor, clipped."""
    from counterpoise.gradients import SAMGS

    step = rows.sum(dim=0) if made_by is None else made_by(rows)
    return clipped(len(rows) * step if isinstance(made_by, SAMGS) else step)


# ---- two tasks, two parameters ----------------------------------------------------------------------------------------------------------


def losses_at(x: Tensor) -> tuple[Tensor, Tensor]:
    """Both losses of the paper's problem at points (b, 2), each (b,)."""
    import torch

    x1, x2 = x[:, 0], x[:, 1]
    above, below = (x2 / 2).tanh().clamp(min=0), (-x2 / 2).tanh().clamp(min=0)
    valley1 = ((-x1 - 7) / 2 - torch.tanh(-x2)).abs().clamp(min=FLOOR).log() + 6
    valley2 = ((-x1 + 3) / 2 + torch.tanh(-x2) + 2).abs().clamp(min=FLOOR).log() + 6
    bowl1 = ((-x1 + 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    bowl2 = ((-x1 - 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    return valley1 * above + bowl1 * below, valley2 * above + bowl2 * below


def descend(arm: str, factor: float, steps: int) -> dict[str, Any]:
    """All starts side by side, each with an aggregator of its own; the first loss is multiplied by ``factor``."""
    import torch

    check_choice("arm", arm, PROBLEM_ARMS)
    x = torch.tensor(STARTS, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=RATE)
    made_by = [aggregator(arm, gamma=0.1) for _ in STARTS]
    points = []
    for count in range(steps):
        if count % 10 == 0:
            points.append(x.detach().clone())
        first, second = losses_at(x)
        of_first = torch.autograd.grad(factor * first.sum(), x, retain_graph=True)[0]
        of_second = torch.autograd.grad(second.sum(), x)[0]
        rows = torch.stack([of_first, of_second])
        x.grad = torch.stack([step_of(own, rows[:, k]) for k, own in enumerate(made_by)])
        optimizer.step()
    ends = x.detach()
    points.append(ends)
    distance = (ends - torch.tensor(OPTIMUM, dtype=torch.float64)).norm(dim=1)
    shares = [own.last["equalize_share"] for own in made_by if own is not None and "equalize_share" in own.last]
    return {
        "reached": int((distance < REACHED).sum()),
        "distance": float(distance.max()),
        "x1": [round(float(value), 2) for value in ends[:, 0]],
        "x2": [round(float(value), 2) for value in ends[:, 1]],
        "equalized": float(np.mean(shares)) if shares else None,
        "paths": torch.stack(points, dim=1).numpy().round(3).tolist(),
    }


# ---- digits -----------------------------------------------------------------------------------------------------------------------------


def images(seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """All digits in [0, 1], in an order of the seed's: the first ``TRAIN`` are for training."""
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    order = generator(seed, SLUG, "split").permutation(len(X))
    return (X[order] / 16).astype(np.float32), y[order]


def train(arm: str, scale: float, seed: int, steps: int) -> dict[str, Any]:
    """Test accuracy of one head and squared error of the other, after a training with the reconstruction loss times ``scale``."""
    import torch
    from torch.nn import functional as F

    check_choice("arm", arm, DIGIT_ARMS)
    if arm == ALONE:  # one network for each task
        return _alone(scale, seed, steps)
    X, y = (torch.from_numpy(part) for part in images(seed))
    trunk, heads = network(seed)
    shared = list(trunk.parameters())
    optimizer = torch.optim.Adam([*shared, *heads.parameters()], lr=DIGIT_RATE)
    made_by, rng = aggregator(arm, GAMMA), generator(seed, SLUG, "batches")
    for _ in range(steps):
        batch = torch.from_numpy(rng.choice(TRAIN, BATCH, replace=False))
        h = trunk(X[batch])
        losses = F.cross_entropy(heads[0](h), y[batch]), scale * F.mse_loss(heads[1](h), X[batch])
        rows = []
        for head, loss in zip(heads, losses, strict=True):
            own = list(head.parameters())
            gradients = torch.autograd.grad(loss, [*shared, *own], retain_graph=loss is losses[0])
            rows.append(torch.cat([gradient.flatten() for gradient in gradients[: len(shared)]]))
            for parameter, gradient in zip(own, gradients[len(shared) :], strict=True):
                parameter.grad = gradient
        step = step_of(made_by, torch.stack(rows))
        for parameter, part in zip(shared, torch.split(step, [parameter.numel() for parameter in shared]), strict=True):
            parameter.grad = part.view_as(parameter)
        optimizer.step()
    last = {} if made_by is None else made_by.last
    return _tested(trunk, heads, X, y) | {"equalized": last.get("equalize_share"), "psi": last.get("psi")}


def network(seed: int) -> tuple[Any, Any]:
    """The trunk, and the heads that name and draw a digit; initial parameters depend on the seed alone."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_integer(seed, SLUG, "network"))
        trunk = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 6), nn.Tanh())
        return trunk, nn.ModuleList([nn.Linear(6, 10), nn.Linear(6, 64)])


def _tested(trunk: Any, heads: Any, X: Tensor, y: Tensor) -> dict[str, float]:
    import torch
    from torch.nn import functional as F

    with torch.no_grad():
        h = trunk(X[TRAIN:])
        accuracy = (heads[0](h).argmax(dim=1) == y[TRAIN:]).double().mean()
        return {"accuracy": float(accuracy), "mse": float(F.mse_loss(heads[1](h), X[TRAIN:]))}


def _alone(scale: float, seed: int, steps: int) -> dict[str, Any]:
    """A network for each task: accuracy from the one, squared error from the other."""
    import torch
    from torch.nn import functional as F

    X, y = (torch.from_numpy(part) for part in images(seed))
    found = {}
    for task, name in enumerate(("accuracy", "mse")):
        trunk, heads = network(seed)
        shared = list(trunk.parameters())
        optimizer = torch.optim.Adam([*shared, *heads.parameters()], lr=DIGIT_RATE)
        rng = generator(seed, SLUG, "batches")
        for _ in range(steps):
            batch = torch.from_numpy(rng.choice(TRAIN, BATCH, replace=False))
            h = trunk(X[batch])
            loss = F.cross_entropy(heads[0](h), y[batch]) if task == 0 else scale * F.mse_loss(heads[1](h), X[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(shared, CLIP)
            optimizer.step()
        found[name] = _tested(trunk, heads, X, y)[name]
    return found | {"equalized": None, "psi": None}


# ---- what was found ---------------------------------------------------------------------------------------------------------------------

Rows = Sequence[Mapping[str, Any]]
Interval = tuple[float, float, float]


def _findings(paths: Rows, digits: Rows) -> list[Finding]:
    claim = {claim.key: claim for claim in CLAIMS}
    reached = {row["arm"]: row["reached"] for row in rows_where(paths, factor=1.0)}
    fact = reached[SAM] == len(STARTS) and all(reached[SAM] >= reached[other] + MORE for other in (SUM, PCGRAD))
    found = [
        claim["optimum"].holds(
            fact,
            f"Starts that end at the optimum, of {len(STARTS)}: SAM-GS {reached[SAM]}, sum {reached[SUM]}, PCGrad {reached[PCGRAD]}.",
            estimate=float(reached[SAM]),
            unit="starts",
        ),
        _small(claim["small"], digits),
        _steady(claim["steady"], digits),
    ]
    (sam,) = rows_where(paths, arm=SAM, factor=1.0)
    found.append(
        claim["branches"].reported(
            None,
            f"Two-task problem, gamma 0.1: gradients were equalized in {sam['equalized']:.1%} of the steps; momentum made the others.",
            name="problem",
        )
    )
    for scale in SCALES:
        rows = rows_where(digits, arm=SAM, scale=scale)
        share, psi = np.mean([row["equalized"] for row in rows]), np.mean([row["psi"] for row in rows])
        text = (
            f"Digits, scale {scale:g}, gamma {GAMMA:g}: equalized in {share:.1%} of the steps; similarity at the end {psi:.2g} on average"
        )
        same = all(a["accuracy"] == b["accuracy"] for a, b in zip(rows, rows_where(digits, arm=EQUAL, scale=scale), strict=True))
        text += "; the same networks as with gamma 1." if same else "."
        found.append(claim["branches"].reported(None, text, name=f"digits, {scale:g}"))
    for arm in SCALED_ARMS:
        (row,) = rows_where(paths, arm=arm, factor=FACTOR)
        text = f"{arm}, first loss times {FACTOR:g}: {row['reached']} of {len(STARTS)} at the optimum; ends at x1 = {_places(row['x1'])}."
        found.append(claim["stress"].reported(None, text, name=arm))
    for arm in (EQUAL, NEVER, HOMOGENEOUS):
        (row,) = rows_where(paths, arm=arm, factor=1.0)
        text = f"Two-task problem, {arm}: {row['reached']} of {len(STARTS)} at the optimum; ends at x1 = {_places(row['x1'])}."
        found.append(claim["ablation"].reported(None, text, name=f"problem, {arm}"))
    for arm in (EQUAL, NEVER, DEFAULT):
        gain = _gain(digits, "accuracy", arm, SUM, SCALES[1])
        level = _mean(digits, arm, SCALES[1], "accuracy")
        text = f"Digits, scale {SCALES[1]:g}, {arm}: accuracy {level:.3f}, over that of the sum by {_in(gain, '+.3f')}."
        found.append(claim["ablation"].reported(gain, text, name=f"digits, {arm}", unit="accuracy"))
    cost = _gain(digits, "accuracy", SAM, SUM, SCALES[0])
    error = _relative(_values(digits, SAM, SCALES[0], "mse"), _values(digits, SUM, SCALES[0], "mse"))
    text = f"Digits, scale {SCALES[0]:g}: accuracy over that of the sum by {_in(cost, '+.3f')}, squared error by {_in(error, '+.1%')}."
    found.append(claim["price"].reported(cost, text, name=f"digits, {SCALES[0]:g}", unit="accuracy"))
    error = _relative(_values(digits, SAM, SCALES[1], "mse"), _values(digits, SUM, SCALES[1], "mse"))
    text = f"Digits, scale {SCALES[1]:g}: squared error over that of the sum, whose whole step it is, by {_in(error, '+.1%')}."
    found.append(claim["price"].reported(error, text, name=f"digits, {SCALES[1]:g}", unit="squared error, relative"))
    return found


def _small(claim: Claim, digits: Rows) -> Finding:
    scale = SCALES[1]
    over_sum, over_pcgrad = (_differences(digits, "accuracy", SAM, other, scale) for other in (SUM, PCGRAD))
    fact = min(over_sum) >= OVER_SUM and min(over_pcgrad) >= OVER_PCGRAD
    mean, low, high = mean_interval(over_sum)
    return claim.judged(
        "replicated" if fact else "not replicated",
        f"Accuracy {_mean(digits, SAM, scale, 'accuracy'):.3f}, over that of the sum by {_in((mean, low, high), '+.3f')}, at least "
        f"{min(over_sum):+.3f}; over that of PCGrad by {_in(mean_interval(over_pcgrad), '+.3f')}, at least {min(over_pcgrad):+.3f}.",
        estimate=mean,
        low=low,
        high=high,
        unit="accuracy",
    )


def _steady(claim: Claim, digits: Rows) -> Finding:
    first, second = (_values(digits, SAM, scale, "accuracy") for scale in SCALES)
    accuracy = mean_interval([b - a for a, b in zip(first, second, strict=True)])
    error = _relative(_values(digits, SAM, SCALES[1], "mse"), _values(digits, SAM, SCALES[0], "mse"))
    verdict = _within(accuracy, error)
    return claim.judged(
        verdict,
        f"From scale {SCALES[0]:g} to {SCALES[1]:g} accuracy changes by {_in(accuracy, '+.3f')}, squared error by {_in(error, '+.1%')}.",
        estimate=accuracy[0],
        low=accuracy[1],
        high=accuracy[2],
        unit="accuracy",
    )


def _within(accuracy: Interval, error: Interval) -> Verdict:
    """Replicated if both intervals lie within their bounds, not replicated if one lies outside."""
    bounds = ((accuracy, STEADY_ACCURACY), (error, STEADY_MSE))
    if any(low > bound or high < -bound for (_, low, high), bound in bounds):
        return "not replicated"
    return "replicated" if all(-bound < low and high < bound for (_, low, high), bound in bounds) else "undecided"


def _notes(paths: Rows, digits: Rows) -> tuple[str, ...]:
    (equal,) = rows_where(paths, arm=EQUAL, factor=1.0)
    (sam,) = rows_where(paths, arm=SAM, factor=FACTOR)
    (scaled,) = rows_where(paths, arm=EQUAL, factor=FACTOR)
    aside = [start[0] != 0 for start in STARTS]
    shift = np.abs(np.subtract(equal["x1"], scaled["x1"]))[aside].max()
    share = np.mean([row["equalized"] for row in rows_where(digits, arm=SAM)])
    return (
        f"The unit of one loss: with the first one times {FACTOR:g}, SAM-GS ends at x1 = {_places(sam['x1'])}; the optimum of the sum has "
        f"moved to x1 = {7 * (FACTOR - 1) / (FACTOR + 1):.1f}. Equalization alone moves its ends by {shift:.2g} at most from the "
        f"{sum(aside)} starts with x1 \N{NOT EQUAL TO} 0; the other one is on a line of symmetry, where rounding decides.",
        "To end at the optimum of the sum is the goal of the paper. On the line between the minima of the two bowls no point is better for "
        "both losses than another: PCGrad and equalization, which stop there, do what they promise.",
        f"On digits {share:.1%} of the steps were equalized: what is seen there is equalization, a weighting without memory. Look at the "
        "branches before paying for averages of the gradients: gamma=1 may be the same.",
        "One path for each start: the first problem has no randomness, and nothing to make an interval from.",
    )


def _places(values: Sequence[float]) -> str:
    """Where the seven starts end, each place with its count: ``0.0 (7)``."""
    rounded, counts = np.unique(np.round(values, 1) + 0.0, return_counts=True)
    return ", ".join(f"{value:.1f} ({count})" for value, count in zip(rounded, counts, strict=True)).replace("-", "\N{MINUS SIGN}")


def _values(rows: Rows, arm: str, scale: float, value: str) -> list[float]:
    return [float(row[value]) for row in sorted(rows_where(rows, arm=arm, scale=scale), key=lambda row: row["seed"])]


def _mean(rows: Rows, arm: str, scale: float, value: str) -> float:
    return float(np.mean(_values(rows, arm, scale, value)))


def _differences(rows: Rows, value: str, arm: str, baseline: str, scale: float) -> list[float]:
    return paired(rows_where(rows, scale=scale), value, arm, baseline)


def _gain(rows: Rows, value: str, arm: str, baseline: str, scale: float) -> Interval:
    return mean_interval(_differences(rows, value, arm, baseline, scale))


def _relative(values: Sequence[float], baseline: Sequence[float]) -> Interval:
    return mean_interval([a / b - 1 for a, b in zip(values, baseline, strict=True)])


def _in(interval: Interval, form: str) -> str:
    mean, low, high = interval
    return f"{mean:{form}} ({low:{form}} to {high:{form}})"


def _path_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "arm": row["arm"],
        "first loss times": row["factor"],
        f"at the optimum, of {len(STARTS)}": row["reached"],
        "farthest end": row["distance"],
        "ends at x1 =": _places(row["x1"]),
        "equalized": row["equalized"],
    }


def _digit_row(digits: Rows, arm: str, scale: float) -> dict[str, Any]:
    row: dict[str, Any] = {"arm": arm, "scale": scale}
    for value in ("accuracy", "mse"):
        values = _values(digits, arm, scale, value)
        row |= {value: float(np.mean(values)), f"{value}, lowest": min(values), f"{value}, highest": max(values)}
    shares = [one["equalized"] for one in rows_where(digits, arm=arm, scale=scale)]
    return row | {"equalized": None if shares[0] is None else float(np.mean(shares))}


# ---- the picture ------------------------------------------------------------------------------------------------------------------------


def _figure(paths: Rows, digits: Rows) -> Figure:
    from counterpoise.report import _plots

    with _plots.style():
        height = 292
        fig = _plots.figure(_plots.WIDTH, height)
        for place, arm in enumerate((SUM, PCGRAD, SAM)):
            ax = _plots.axes(fig, 34 + 140 * place, 52, 124, 190)
            (row,) = rows_where(paths, arm=arm, factor=1.0)
            _draw_paths(ax, row)
            if place:
                ax.set_yticklabels([])
        _draw_accuracy(_plots.axes(fig, 510, 52, 120, 190), digits)
        for x, text in ((8, "Starts that reach the optimum of both losses"), (476, "Digits named right")):
            fig.text(x / _plots.WIDTH, 1 - 12 / height, text, va="top", weight="bold")
        fig.text(8 / _plots.WIDTH, 14 / height, "+ the optimum of their sum   ×  ends elsewhere", va="center", color=_plots.MUTED)
        return fig


def _draw_paths(ax: Axes, row: Mapping[str, Any]) -> None:
    from counterpoise.report import _plots

    color = _plots.BLUE if row["arm"] == SAM else _plots.GRAY
    ax.spines["left"].set_visible(True)
    for path in np.array(row["paths"]):
        good = np.hypot(*(path[-1] - OPTIMUM)) < REACHED
        ax.plot(*path.T, color=color, lw=1.4, zorder=2)
        ax.plot(*path[0], "o", ms=4, color=_plots.PAPER, mec=color, zorder=3)
        ax.plot(*path[-1], "o" if good else "X", ms=7.5, color=color if good else _plots.RED, mec=_plots.PAPER, zorder=5)
    ax.plot(*OPTIMUM, "+", ms=15, mew=1.8, color=_plots.INK, zorder=4)
    ax.set(xlim=(-12, 12), ylim=(-12, 11.5), xticks=[-10, 0, 10], yticks=[-10, 0, 10])
    ax.tick_params(length=3)
    ax.set_title(f"{row['arm']}: {row['reached']} of {len(STARTS)}", loc="left", fontsize=_plots.TEXT, color=color, weight="bold")


def _draw_accuracy(ax: Axes, digits: Rows) -> None:
    from counterpoise.report import _plots

    ax.spines["left"].set_visible(True)
    ends = []
    for arm, color, marker in ((SUM, _plots.GRAY, "s"), (PCGRAD, _plots.INK, "D"), (SAM, _plots.BLUE, "o")):
        values = np.array([_values(digits, arm, scale, "accuracy") for scale in SCALES])
        for x, own in enumerate(values):
            ax.plot([x, x], [own.min(), own.max()], color=color, lw=3, alpha=0.35, solid_capstyle="butt")
        ax.plot([0, 1], values.mean(axis=1), color=color, lw=2, marker=marker, ms=7, mec=_plots.PAPER, zorder=3)
        ends.append((float(values[1].mean()), arm, color))
    low, high = ax.get_ylim()
    last = -np.inf
    for value, arm, color in sorted(ends):
        last = max(value, last + 0.09 * (high - low))
        ax.annotate(arm, (1, last), (12, 0), textcoords="offset points", va="center", color=color, weight="bold", annotation_clip=False)
    ax.set_xlim(-0.2, 1.1)
    ax.set_xticks([0, 1], [f"× {scale:,g}" for scale in SCALES])
    ax.set_xlabel("unit of the other loss")
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
