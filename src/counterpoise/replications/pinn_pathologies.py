"""Gradient pathologies of physics-informed networks (Wang, Teng & Perdikaris 2021, arXiv:2001.04536): the residual drowns the boundary.

A network that must satisfy a differential equation and boundary data is trained on the sum of both errors. The paper finds that the
gradient of the residual is far larger, so that the network solves the equation with the wrong boundary, and treats it twice: weights of the
loss terms from gradient statistics (M2), a gated architecture (M3), and both (M4), against the plain network (M1). Its example is tested
again, at a tenth of the steps: the Helmholtz equation u_xx + u_yy + u = q on the square [-1, 1]^2 with u = sin(pi x) sin(4 pi y).

To know when reading: the learning rate decays over the 4,000 steps as it does over 40,000 in the paper; with the paper's decay a short run
is far from its end. Weights are taken on the batch of the step, before it; the published code takes them after it. The encoders of the
gated network are not in the statistics, as in the code. A second, real task has the same shape without physics: a fit of the diabetes data
with a penalty on its curvature, in the units the data come in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from counterpoise._seeding import seed_integer

from ._types import Claim, Finding, Replication
from ._work import Work, rows_where

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CLAIMS", "SLUG", "run"]

SLUG = "pinn-pathologies"

# Helmholtz: 50 units, 3 hidden layers, 128 points inside and 128 on each side, drawn anew at every step.
WAVES, K = (1.0, 4.0), 1.0  # u = sin(1 pi x) sin(4 pi y)
WIDTH, LAYERS, POINTS = 50, 3, 128
RATE, DECAY, DECAY_STEPS = 1e-3, 0.9, 300  # learning rate: times 0.9 per 300 steps, continuously
STEPS, QUICK_STEPS = 4_000, 40
GRID, LOOKS = 100, 20  # points per side where the error is taken; times it is taken while training
ARMS = {  # gated, weights
    "M1": (False, "none"),
    "M2": (False, "annealed"),
    "M3": (True, "none"),
    "M4": (True, "annealed"),
    "M4, prose": (True, "prose"),
}
NAMES = {"M1": "plain", "M2": "weights", "M3": "gated", "M4": "gated + weights", "M4, prose": "gated + weights of the prose"}
MEAN_GAIN, LEAST_GAIN = 10.0, 5.0  # error of M1 over that of M4: geometric mean, and every seed
ENOUGH = 2 / 3  # of the seeds with M2 better than M1
AT_START = 100.0  # max |g_residual| / mean |g_boundary| at step 0
RUNAWAY = 1e12  # clip of the weights of the prose, so that where they go is seen

# Diabetes: 10 columns as scikit-learn has them (length 1, so a standard deviation of 0.048), target standardized.
TABLE_STEPS, QUICK_TABLE_STEPS, BALANCED = 200, 20, 100.0
HELD_OUT = 88  # of the 442 rows, drawn by seed
FITS = {"none": "sum", "annealed": "annealed weights", "standardized": "sum, columns standardized before the penalty"}

CLAIMS = (
    Claim(
        "dominance",
        "Before training, the residual's gradient is far larger than that of the boundary.",
        f"plain network at step 0: max |gradient of the residual| over mean |gradient of the boundary| above {AT_START:g} for every seed",
    ),
    Claim(
        "both",
        "Annealed weights and the gated network together lower the error many times.",
        f"error of M1 over that of M4: geometric mean over seeds at least {MEAN_GAIN:g}, and at least {LEAST_GAIN:g} for every seed",
    ),
    Claim("weights", "Annealed weights alone lower the error.", "M2 has a smaller error than M1 in at least 2 of 3 seeds"),
    Claim(
        "table",
        "Annealed weights remove dominance where a penalty drowns the data.",
        f"diabetes, after {TABLE_STEPS} steps: largest over mean gradient entry of the weighted terms below {BALANCED:g}, every seed",
    ),
    Claim("gate", "The gated network alone lowers the error."),
    Claim("prose", "The weight must stand in the denominator: without it, as in the paper's prose, weights run away."),
)

SEEDS, QUICK_SEEDS = (0, 1, 2), (0, 1)

Row = Mapping[str, Any]


def run(
    *, seeds: Sequence[int] | None = None, quick: bool = False, data_dir: str | Path | None = None, work: Work | None = None
) -> Replication:
    """All arms for every seed. The diabetes data come with scikit-learn: no ``data_dir``."""
    seeds = tuple(seeds if seeds is not None else QUICK_SEEDS if quick else SEEDS)
    work = work or Work()
    steps, table_steps = (QUICK_STEPS, QUICK_TABLE_STEPS) if quick else (STEPS, TABLE_STEPS)
    nets = work.map(helmholtz, [{"arm": arm, "seed": seed, "steps": steps} for seed in seeds for arm in ARMS])
    table = work.map(diabetes, [{"arm": arm, "seed": seed, "steps": table_steps} for seed in seeds for arm in FITS])
    return Replication(
        slug=SLUG,
        claims=CLAIMS,
        findings=_findings(nets, table),
        notes=_notes(nets, table),
        tables=_tables(nets, table),
        figure=_figure(nets),
        seeds=seeds,
        quick=quick,
    )


# ---- networks ----------------------------------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """A multi-layer perceptron with tanh, and its derivatives, beside :class:`counterpoise.nn.GatedMLP`: same start, same normalization."""

    mean: Tensor
    std: Tensor

    def __init__(self, in_features: int, mean: Any, std: Any) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).expand(in_features).clone())
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).expand(in_features).clone())
        self.hidden = nn.ModuleList(nn.Linear(WIDTH if k else in_features, WIDTH) for k in range(LAYERS))
        self.output = nn.Linear(WIDTH, 1)
        for layer in (*self.hidden, self.output):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = (x - self.mean) / self.std
        for layer in self.hidden:
            h = torch.tanh(layer(h))
        out: Tensor = self.output(h)
        return out

    def derivatives(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from counterpoise.nn._taylor import activate, enter, pass_on

        first, *others = self.hidden
        jet = activate(torch.tanh, *enter(first, (x - self.mean) / self.std, self.std))  # type: ignore[arg-type]
        for layer in others:
            jet = activate(torch.tanh, *pass_on(layer, jet))  # type: ignore[arg-type]
        u, u_x, u_xx = pass_on(self.output, jet)
        return u, u_x, u_xx


def network(gated: bool, in_features: int, mean: Any, std: Any, seed: int) -> Any:
    """A network on whose start no other random number has an influence."""
    from counterpoise.nn import GatedMLP

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_integer(seed, SLUG, "network"))
        if gated:
            return GatedMLP(in_features, 1, WIDTH, LAYERS, normalize=(mean, std))
        return Plain(in_features, mean, std)


def compared(model: Any) -> list[nn.Parameter]:
    """Parameters whose gradients are compared: the encoders are left out."""
    return [*model.hidden.parameters(), *model.output.parameters()]


def weigher(weights: str) -> Any:
    from counterpoise.gradients import GradientAnnealing

    if weights == "prose":
        return GradientAnnealing(self_normalized=False, max_weight=RUNAWAY)
    return GradientAnnealing() if weights == "annealed" else None


def updated(aggregator: Any, losses: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """One update of the weights from the gradients of the losses."""
    from counterpoise.gradients import GradientStatistics

    rows = [torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True) for loss in losses]
    columns = [torch.stack([part.flatten() for part in parts]) for parts in zip(*rows, strict=True)]
    statistics = GradientStatistics.from_rows(columns, needs=aggregator.needs, shapes=[p.shape for p in parameters])
    found: Tensor = aggregator.weights(statistics).to(losses)
    return found


# ---- the Helmholtz equation --------------------------------------------------------------------------------------------------------------


def exact(x: Tensor) -> Tensor:
    """The solution (n, 1)."""
    return torch.sin(WAVES[0] * math.pi * x[:, :1]) * torch.sin(WAVES[1] * math.pi * x[:, 1:])


def source(x: Tensor) -> Tensor:
    """q (n, 1), so that ``exact`` solves the equation."""
    return (K**2 - (WAVES[0] * math.pi) ** 2 - (WAVES[1] * math.pi) ** 2) * exact(x)


def batch(generator: torch.Generator, points: int = POINTS) -> tuple[Tensor, Tensor]:
    """Points inside (n, 2), and on the four sides, one after the other, (4 n, 2)."""
    inside = 2 * torch.rand(points, 2, generator=generator) - 1
    along = 2 * torch.rand(4, points, generator=generator) - 1
    edge = torch.ones(points)
    sides = [(-edge, along[0]), (edge, along[1]), (along[2], -edge), (along[3], edge)]
    return inside, torch.cat([torch.stack(side, dim=1) for side in sides])


def terms(model: Any, inside: Tensor, boundary: Tensor) -> Tensor:
    """The residual, and the sum over the sides of their mean squared errors (one term), shape (2,)."""
    u, _, bend = model.derivatives(inside)
    residual = bend.sum(dim=0) + K**2 * u - source(inside)
    sides = model(boundary).square().view(4, -1).mean(dim=1)  # the solution is 0 there
    return torch.stack([residual.square().mean(), sides.sum()])


def error(model: Any, grid: int = GRID) -> float:
    """Relative L2 error on a grid."""
    line = torch.linspace(-1, 1, grid)
    x = torch.cartesian_prod(line, line)
    with torch.no_grad():
        return float((model(x) - exact(x)).norm() / exact(x).norm())


def imbalance(model: Any, inside: Tensor, boundary: Tensor) -> Any:
    """The gradients of the two terms, without weights."""
    from counterpoise.diagnostics import gradient_imbalance

    return gradient_imbalance(dict(zip(("residual", "boundary"), terms(model, inside, boundary), strict=True)), compared(model))


def helmholtz(arm: str, seed: int, steps: int) -> dict[str, Any]:
    """One training, and its error, weights and losses on the way."""
    gated, weights = ARMS[arm]
    model = network(gated, 2, 0.0, 1 / math.sqrt(3), seed)
    aggregator = weigher(weights)
    generator = torch.Generator().manual_seed(seed_integer(seed, SLUG, "points"))
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: DECAY ** (step / DECAY_STEPS))
    inside, boundary = batch(generator)
    start = imbalance(model, inside, boundary)
    w = torch.ones(2)
    every = max(steps // LOOKS, 1)
    path = []
    for step in range(steps + 1):
        losses = terms(model, inside, boundary)
        if step % every == 0 or step == steps:
            values = losses.detach().tolist()
            now = {"step": step, "error": error(model, GRID // 2), "weight": float(w[1])}
            path.append(now | {"residual": values[0], "boundary": values[1]})
        if step == steps:
            break
        if aggregator is not None and step % aggregator.update_every == 0:
            w = updated(aggregator, losses, compared(model))
        optimizer.zero_grad()
        torch.autograd.backward((w * losses).sum())
        optimizer.step()
        schedule.step()
        inside, boundary = batch(generator)
    ratios = {"at start": float(start.ratios[0, 1]), "at end": float(imbalance(model, inside, boundary).ratios[0, 1])}
    return {"error": error(model), "weight": float(w[1]), **ratios, "path": path}


# ---- a table with a penalty --------------------------------------------------------------------------------------------------------------


def diabetes(arm: str, seed: int, steps: int) -> dict[str, Any]:
    """A fit with a penalty on its curvature, the mean of all squared second derivatives, and how much the penalty dominates."""
    from sklearn.datasets import load_diabetes

    from counterpoise.diagnostics import gradient_imbalance

    columns, target = load_diabetes(return_X_y=True)
    if arm == "standardized":  # the penalty is on derivatives with respect to these
        columns = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    x = torch.as_tensor(columns, dtype=torch.float32)
    y = torch.as_tensor((target - target.mean()) / target.std(), dtype=torch.float32)[:, None]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed_integer(seed, SLUG, "rows")))
    held, rows = order[:HELD_OUT], order[HELD_OUT:]
    model = network(False, x.shape[1], x.mean(dim=0), x.std(dim=0), seed)
    aggregator = weigher(arm)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    w = torch.ones(2)
    ratios = []
    for step in range(steps + 1):
        u, _, bend = model.derivatives(x[rows])
        losses = torch.stack([bend.square().mean(), (u - y[rows]).square().mean()])
        if step in (0, steps):
            found = gradient_imbalance(dict(zip(("curvature", "data"), w * losses, strict=True)), compared(model))
            ratios.append(found.ratio)
        if step == steps:
            break
        if aggregator is not None and step % aggregator.update_every == 0:
            w = updated(aggregator, losses, compared(model))
        optimizer.zero_grad()
        torch.autograd.backward((w * losses).sum())
        optimizer.step()
    with torch.no_grad():
        unseen = float((model(x[held]) - y[held]).square().mean())
    fitted = {"curvature": float(losses[0].detach()), "data": float(losses[1].detach()), "held out": unseen}
    return {"at start": ratios[0], "at end": ratios[1], "weight": float(w[1])} | fitted


# ---- what it says ------------------------------------------------------------------------------------------------------------------------


def _findings(nets: Sequence[Row], table: Sequence[Row]) -> tuple[Finding, ...]:
    dominance, both, weights, on_table, gate, prose = CLAIMS
    start = _each(nets, "M1", "at start")
    gains = {arm: [a / b for a, b in zip(_each(nets, "M1", "error"), _each(nets, arm, "error"), strict=True)] for arm in ARMS}
    gain = geometric_mean(gains["M4"])
    wins = sum(ratio > 1 for ratio in gains["M2"])
    plain, annealed = rows_where(table, arm="none"), rows_where(table, arm="annealed")
    ends = [row["at end"] for row in annealed]
    return (
        dominance.holds(
            min(start) > AT_START,
            f"Plain network: {_listed(start)} by seed at step 0, {_listed(_each(nets, 'M1', 'at end'))} at the end of training; gated "
            f"network: {_listed(_each(nets, 'M3', 'at start'))} and {_listed(_each(nets, 'M3', 'at end'))}.",
            estimate=min(start),
            unit="largest entry of the residual's gradient over mean entry of the boundary's, least of the seeds",
        ),
        both.holds(
            gain >= MEAN_GAIN and min(gains["M4"]) >= LEAST_GAIN,
            f"Relative error {_errors(nets, 'M1')} falls to {_errors(nets, 'M4')}: {gain:.3g} times on geometric average, "
            f"{min(gains['M4']):.3g} to {max(gains['M4']):.3g} by seed (paper: 59 times at 40,000 steps).",
            estimate=gain, unit="error of M1 over that of M4",
        ),
        weights.holds(
            wins >= ENOUGH * len(gains["M2"]),
            f"{wins} of {len(gains['M2'])} seeds: {_errors(nets, 'M2')} against {_errors(nets, 'M1')}; {geometric_mean(gains['M2']):.3g} "
            "times on geometric average (paper: 13 times).",
            estimate=geometric_mean(gains["M2"]), unit="error of M1 over that of M2",
        ),
        on_table.holds(
            max(ends) < BALANCED,
            f"The ratio falls from {_listed(row['at start'] for row in annealed)} to {_listed(ends)}; without weights to "
            f"{_listed(row['at end'] for row in plain)}. Squared error on unseen rows, in variances: "
            f"{_listed(row['held out'] for row in annealed)}; without weights {_listed(row['held out'] for row in plain)}.",
            estimate=max(ends), unit="largest over mean entry of the weighted gradients",
        ),
        gate.reported(
            None, f"M3 ends at {_errors(nets, 'M3')}, M1 at {_errors(nets, 'M1')}: {geometric_mean(gains['M3']):.3g} times on geometric "
            "average (paper: 9 times).",
        ),
        prose.reported(
            None, f"Without it the weight of the boundary ends at {_listed(_each(nets, 'M4, prose', 'weight'))} and the error at "
            f"{_errors(nets, 'M4, prose')}; with it at {_listed(_each(nets, 'M4', 'weight'))} and {_errors(nets, 'M4')}.",
        ),
    )  # fmt: skip


def geometric_mean(values: Sequence[float]) -> float:
    """
    >>> geometric_mean([2.0, 8.0])
    4.0
    """
    return float(np.exp(np.mean(np.log(values))))


def _each(nets: Sequence[Row], arm: str, value: str) -> list[float]:
    return [float(row[value]) for row in sorted(rows_where(nets, arm=arm), key=lambda row: row["seed"])]


def _errors(nets: Sequence[Row], arm: str) -> str:
    return _listed(_each(nets, arm, "error"))


def _listed(values: Any) -> str:
    return ", ".join(f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" for value in values)


def _notes(nets: Sequence[Row], table: Sequence[Row]) -> tuple[str, ...]:
    gain = {arm: [a / b for a, b in zip(_each(nets, "M1", "error"), _each(nets, arm, "error"), strict=True)] for arm in ARMS}
    factors = [
        f"{geometric_mean(gain[arm]):.3g} times with {word}" for arm, word in (("M2", "weights"), ("M3", "the gate"), ("M4", "both"))
    ]
    plain = rows_where(table, arm="none")
    flat = max(row["at end"] for row in plain) < BALANCED
    standard = _listed(row["held out"] for row in rows_where(table, arm="standardized"))
    return (
        "Error of the plain network over that of the others, geometric average: " + ", ".join(factors) + ".",
        "In the fit of a table the ratio of gradients is no measure of success"
        + (": without weights it is small in the end as well, since a flat fit has no curvature left to pull." if flat else ".")
        + f" The same penalty on standardized columns, unweighted, has errors of {standard} on unseen rows: units come first.",
        "With a penalty, weights are another strength of the penalty, a compromise that nobody asked for. For terms that can all be met at "
        "once, such as an equation and its boundary data, they only choose the way there.",
    )


def _tables(nets: Sequence[Row], table: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    return {
        "Helmholtz: relative L2 error": [
            {
                "arm": arm,
                "network": NAMES[arm],
                **{f"seed {row['seed']}": f"{row['error']:.4g}" for row in rows_where(nets, arm=arm)},
                "weight of the boundary": _listed(_each(nets, arm, "weight")),
                "last residual loss": _listed(row["path"][-1]["residual"] for row in rows_where(nets, arm=arm)),
                "last boundary loss": _listed(row["path"][-1]["boundary"] for row in rows_where(nets, arm=arm)),
            }
            for arm in ARMS
        ],
        "Diabetes with a penalty on curvature": [
            {
                "fit": FITS[row["arm"]],
                "seed": row["seed"],
                "ratio at start": f"{row['at start']:.4g}",
                "ratio at end": f"{row['at end']:.4g}",
                "weight of the data": f"{row['weight']:.4g}",
                "curvature": f"{row['curvature']:.4g}",
                "error of the fit": f"{row['data']:.3f}",
                "held out": f"{row['held out']:.3f}",
            }
            for row in table
        ],
    }


def _figure(nets: Sequence[Row]) -> Figure:
    """Error and weight while training."""
    from counterpoise.report import _plots as plots

    looks = {
        "M1": (plots.GRAY, (0, (5, 2)), "plain"),
        "M2": (plots.BLUE, (0, (5, 2)), "plain, weights"),
        "M3": (plots.GRAY, "-", "gated"),
        "M4": (plots.BLUE, "-", "gated, weights"),
        "M4, prose": (plots.RED, (0, (1, 1.2)), "weights of the prose"),
    }
    height, bottom, top, left, width, between = 330, 54, 56, 52, 262, 208
    with plots.style():
        fig = plots.figure(plots.WIDTH, height)
        panels = [plots.axes(fig, left + k * (width + between), bottom, wide, height - bottom - top) for k, wide in enumerate((width, 150))]
        for ax, value, arms in zip(panels, ("error", "weight"), (list(looks), ["M2", "M4", "M4, prose"]), strict=True):
            ends = []
            for arm in arms:
                color, dashes, word = looks[arm]
                rows = rows_where(nets, arm=arm)
                steps = [look["step"] for look in rows[0]["path"]]
                lines = np.array([[look[value] for look in row["path"]] for row in rows])
                middle = np.exp(np.log(lines).mean(axis=0))
                ax.plot(steps, lines.T, color=color, lw=0.6, alpha=0.35, zorder=2)
                ax.plot(steps, middle, color=color, ls=dashes, lw=2.0, zorder=3)
                ends.append((float(np.log10(middle[-1])), word, color))
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter(lambda y, _: f"{y:g}" if y < 1e4 else f"{y:.0e}".replace("e+0", "e"))
            ax.yaxis.set_minor_formatter(lambda y, _: "")
            ax.set_xlim(0, steps[-1])
            ax.set_xticks([0, steps[-1] // 2, steps[-1]])
            ax.set_xlabel("step")
            ax.tick_params(axis="both", which="both", length=3, color=plots.RULE)
            if value == "error":
                _end_labels(ax, ends, height - bottom - top)
        both = max(_each(nets, "M4", "error")) < min(_each(nets, "M1", "error"))
        titles = "Relative error: lower with both" if both else "Relative error: no lower with both", "Weight of the boundary"
        for x, title in zip((left - 42, left + width + between - 42), titles, strict=True):
            fig.text(x / plots.WIDTH, 1 - 18 / height, title, va="center", weight="bold")
        return fig


def _end_labels(ax: Any, ends: list[tuple[float, str, str]], points: float) -> None:
    """Words at the ends of lines, moved apart where they would overlap."""
    low, high = np.log10(ax.get_ylim())
    gap = 16 / points * (high - low)
    place = -np.inf
    for at, word, color in sorted(ends):
        place = max(at, place + gap)
        ax.annotate(
            word, (1, (place - low) / (high - low)), (6, 0), xycoords="axes fraction", textcoords="offset points", color=color, va="center"
        )
