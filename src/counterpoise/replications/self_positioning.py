r"""Self Positioning (arXiv:2410.15035): is a position between task vectors, found on a probe, better than fixed merges and joint training?

The paper trains one embedding model per task from the same start, and searches weights and length of their spherical interpolation on a
small probe set. It claims better positions than fixed rules, better models than joint training and resampling, and that a joint training
follows the task with more data.

Here: digits as 240 pixels, an encoder 240-128-32, InfoNCE with in-batch negatives. Task A, large: another picture of the same digit (800
pictures, 300 steps). Task B, small: the same picture, shifted by up to two pixels and noisy (60 pictures, 60 steps). Both begin at a base
that learned to match noisy copies for 100 steps. The probe are 200 pictures that no model has seen; losses are of further pictures. Joint
training takes as many steps as both together, from the same base, on batches drawn in proportion to the data, or half and half. The grid
has 20 positions, and picks the best *on the test batches*: it is a bound that no method could use.

To know when reading: one data set, one small encoder, tasks that hardly conflict. In the first task a batch holds other pictures of the
same digit as false negatives, as retrieval batches do; the loss cannot reach 0.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterpoise._seeding import generator, seed_integer
from counterpoise._stats import mean_interval

from ._data import load_from
from ._types import Claim, Finding, Replication
from ._work import Work

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CLAIMS", "SLUG", "run"]

SLUG = "self-positioning"
SET, ROWS, COLUMNS, BRIGHTEST = "mfeat/pix", 16, 15, 6.0

SIZES = {"A": 800, "B": 60}
STEPS = {"A": 300, "B": 60}
BASE_STEPS, PROBE = 100, 200
HIDDEN, OUT, TAU, RATE, BATCH = 128, 32, 0.1, 1e-3, 64
SHIFT, NOISE = 2, 0.1
SEARCH, MU = 200, 0.01
BETAS, LAMBDAS = (0.0, 0.25, 0.5, 0.75, 1.0), (0.7, 1.0, 1.3, 1.6)  # 20 positions

NEAR_GRID, COEFFICIENTS, GRADIENTS = 0.03, 1e-10, 1e-8
FOLLOWED = 9  # of 10 seeds

_EACH = "95 % interval (t, over seeds) of the difference in held-out loss, mean of both tasks: "
CLAIMS = (
    Claim(
        "average",
        "Self Positioning finds better positions than the average, about as good as those of a grid.",
        _EACH + f"Self Positioning minus average below 0, and the mean gap to the best of the grid below {NEAR_GRID:g}",
    ),
    Claim("sum", "Self Positioning finds better positions than the sum of the task vectors.", _EACH + "minus sum below 0"),
    Claim(
        "identity",
        "Inner products of the task vectors give the interpolation and its gradient.",
        f"coefficients equal the explicit interpolation to {COEFFICIENTS:g}, gradients of a and lambda those of autograd to {GRADIENTS:g}, "
        "relative to the largest, for every seed, both tasks and four vectors",
    ),
    Claim(
        "follows",
        "A joint training follows the task with more data.",
        f"proportional: cosine of the joint task vector with that of A above the one with B, in {FOLLOWED} of 10 seeds at least",
    ),
    Claim("joint", "Merging is better than joint training.", _EACH + "Self Positioning minus joint training in proportion below 0"),
    Claim("resampling", "Merging is better than resampling.", _EACH + "Self Positioning minus joint training half and half below 0"),
    Claim("lengths", "Task vectors grow with the data."),
)

SEEDS, QUICK_SEEDS = tuple(range(10)), (0, 1)
QUICK_SHORTER = 10  # times fewer steps

ARMS = {
    "joint, half and half": "half",
    "joint, in proportion": "proportion",
    "best of the grid": "grid",
    "Self Positioning": "found",
    "average": "average",
    "sum": "sum",
}
Row = Mapping[str, Any]
Interval = tuple[float, float, float]


def run(
    *, seeds: Sequence[int] | None = None, quick: bool = False, data_dir: str | Path | None = None, work: Work | None = None
) -> Replication:
    """All trainings and merges for each of ``seeds``. ``mfeat`` is looked up in ``data_dir``. A quick run takes a tenth of the steps."""
    seeds = tuple(seeds if seeds is not None else QUICK_SEEDS if quick else SEEDS)
    work = work or Work()
    load_from(data_dir, SET)  # a missing set is said before the work begins
    folder = None if data_dir is None else str(data_dir)
    rows = work.map(train, [{"seed": seed, "shorter": QUICK_SHORTER if quick else 1, "folder": folder} for seed in seeds])
    return Replication(
        slug=SLUG,
        claims=CLAIMS,
        findings=_findings(rows),
        notes=_notes(rows),
        tables=_tables(rows),
        figure=_figure(rows),
        seeds=seeds,
        quick=quick,
    )


# ---- tasks ------------------------------------------------------------------------------------------------------------------------------


def pictures(folder: str | None, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Pictures (n, 240) in [0, 1] and digits (n,): to train A and B on, the probe, and the rest to test on."""
    data = load_from(folder, SET)
    X = data.frame.drop(data.target).to_numpy().astype(np.float32) / BRIGHTEST
    y = data.frame[data.target].to_numpy().astype(np.int64)
    order = generator(seed, SLUG, "rows").permutation(len(X))
    ends = np.cumsum([SIZES["A"], SIZES["B"], PROBE])
    parts = dict(zip(("A", "B", "probe", "test"), np.split(order, ends), strict=True))
    return {name: torch.from_numpy(X[at]) for name, at in parts.items()}, {name: torch.from_numpy(y[at]) for name, at in parts.items()}


def pairs(task: str, X: Tensor, y: Tensor, at: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows ``at`` and their positives."""
    first = X[at]
    if task == "A":
        # Another picture of the same digit: random numbers sort the candidates, those of other digits and the picture itself come last.
        chances = torch.rand(len(at), len(X), generator=draw)
        chances[(y[at][:, None] != y[None, :]) | (at[:, None] == torch.arange(len(X)))] = -1.0
        return first, X[chances.argmax(dim=1)]
    if task == "noise":
        return first, first + 2 * NOISE * torch.randn(first.shape, generator=draw)
    # A window of the picture with an empty border.
    framed = F.pad(first.view(-1, ROWS, COLUMNS), (SHIFT, SHIFT, SHIFT, SHIFT))
    corners = torch.randint(0, 2 * SHIFT + 1, (len(at), 2), generator=draw)
    rows, columns = torch.arange(ROWS) + corners[:, :1], torch.arange(COLUMNS) + corners[:, 1:]
    moved = framed[torch.arange(len(at))[:, None, None], rows[:, :, None], columns[:, None, :]]
    return first, moved.flatten(1) + NOISE * torch.randn(first.shape, generator=draw)


def info_nce(model: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    a, b = F.normalize(model(first), dim=1), F.normalize(model(second), dim=1)
    return F.cross_entropy(a @ b.T / TAU, torch.arange(len(a)))


def both(model: nn.Module, batch: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
    """Mean of the losses of both tasks; batches are of one size, so that they are comparable."""
    return torch.stack([info_nce(model, *batch[task]) for task in SIZES]).mean()


def mixed_batches(X: Tensor, y: Tensor, draw: torch.Generator) -> list[dict[str, tuple[Tensor, Tensor]]]:
    """All rows once, in batches with pairs of both tasks."""
    order = torch.randperm(len(X), generator=draw)
    return [{task: pairs(task, X, y, at, draw) for task in SIZES} for at in torch.split(order, BATCH) if len(at) == BATCH]


def encoder() -> nn.Sequential:
    return nn.Sequential(nn.Linear(ROWS * COLUMNS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUT))


def tuned(model: nn.Module, tasks: Sequence[str], X: Mapping[str, Tensor], y: Mapping[str, Tensor], seed: int, name: str) -> nn.Module:
    """A copy of ``model`` after one step for each of ``tasks``."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    draw = torch.Generator().manual_seed(seed_integer(seed, SLUG, name))
    for task in tasks:
        own = "A" if task == "noise" else task
        at = torch.randperm(len(X[own]), generator=draw)[:BATCH]
        optimizer.zero_grad(set_to_none=True)
        info_nce(model, *pairs(task, X[own], y[own], at, draw)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model


# ---- one seed ---------------------------------------------------------------------------------------------------------------------------


def train(seed: int, shorter: int, folder: str | None) -> dict[str, Any]:
    """Held-out loss of every arm, the position that was found, task vectors, and how exact the shortcut is."""
    from counterpoise.weights import SelfPositioning, merge, task_vector_report

    X, y = pictures(folder, seed)
    steps = {task: max(count // shorter, 2) for task, count in STEPS.items()}
    total = sum(steps.values())
    with torch.random.fork_rng():
        torch.manual_seed(seed_integer(seed, SLUG, "encoder"))
        start = encoder()
    base = tuned(start, ["noise"] * max(BASE_STEPS // shorter, 2), X, y, seed, "base")
    models = [tuned(base, [task] * steps[task], X, y, seed, task) for task in SIZES]
    chosen = generator(seed, SLUG, "joint")
    share = SIZES["A"] / sum(SIZES.values())
    joint = {
        name: tuned(base, ["A" if a else "B" for a in chosen.random(total) < part], X, y, seed, name)
        for name, part in (("proportion", share), ("half", 0.5))
    }
    probe = mixed_batches(X["probe"], y["probe"], torch.Generator().manual_seed(seed_integer(seed, SLUG, "probe")))
    test = mixed_batches(X["test"], y["test"], torch.Generator().manual_seed(seed_integer(seed, SLUG, "test")))
    result = SelfPositioning().fit(base, models, probe, both, steps=max(SEARCH // shorter, 10), mu=MU)
    grid = {
        (beta, scale): merge(base, models, "slerp", [max(1 - beta, 1e-12), max(beta, 1e-12)], scale) for beta in BETAS for scale in LAMBDAS
    }
    states = {"found": result.state_dict, "average": merge(base, models), "sum": merge(base, models, "arithmetic")}
    states |= {name: model.state_dict() for name, model in joint.items()} | {"base": base.state_dict()}
    losses = {name: held_out(base, state, test) for name, state in states.items()}
    searched = {place: held_out(base, state, test) for place, state in grid.items()}
    best = min(searched, key=lambda place: sum(searched[place]))
    losses["grid"] = searched[best]
    report = task_vector_report(base, models, list(SIZES.values()), joint=joint["proportion"])
    return {
        "losses": {name: {"A": a, "B": b, "both": (a + b) / 2} for name, (a, b) in losses.items()},
        "weights": result.weights.tolist(),
        "scale": result.scale,
        "best": list(best),
        "norms": report.norms.tolist(),
        "cosine": float(report.cosines[0, 1]),
        "alignment": report.joint_alignment.tolist(),
        **exactness(base, models, probe[0], seed),
    }


@torch.no_grad()
def held_out(base: nn.Module, state: Mapping[str, Tensor], test: Sequence[Mapping[str, tuple[Tensor, Tensor]]]) -> tuple[float, float]:
    """Losses of A and B."""
    model = copy.deepcopy(base)
    model.load_state_dict(state)
    found = [[float(info_nce(model, *batch[task])) for task in SIZES] for batch in test]
    a, b = np.mean(found, axis=0)
    return float(a), float(b)


def exactness(base: nn.Module, models: Sequence[nn.Module], batch: Any, seed: int) -> dict[str, float]:
    """Largest relative errors in float64: of coefficients from inner products against the interpolation of the vectors, and of the
    gradients of a and lambda against autograd through the vectors."""
    from counterpoise.weights import nested_slerp, slerp, task_vector
    from counterpoise.weights._models import Models
    from counterpoise.weights._positioning import MergedModel
    from counterpoise.weights._slerp import slerp_coefficients

    base = copy.deepcopy(base).double()
    moved = [copy.deepcopy(model).double() for model in models]
    draw = torch.Generator().manual_seed(seed_integer(seed, SLUG, "exact"))
    for length in (0.5, 2.0):
        moved.append(copy.deepcopy(base))
        with torch.no_grad():
            for p in moved[-1].parameters():
                p.add_(length * torch.randn(p.shape, generator=draw, dtype=p.dtype) / p.numel() ** 0.5)
    exact = {task: (first.double(), second.double()) for task, (first, second) in batch.items()}
    worst = {"coefficients": 0.0, "gradients": 0.0}
    for own in (moved[:2], moved):
        opened = Models(base, own)
        vectors = [torch.cat([v.reshape(-1) for v in task_vector(base, model).values()]) for model in own]
        u = torch.randn(len(own), generator=draw, dtype=torch.float64).requires_grad_()
        size = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
        c = size * slerp_coefficients(opened.gram(), u.exp(), "mean")
        explicit = float(size.detach()) * nested_slerp(vectors, u.detach().exp())
        error = (c.detach() @ torch.stack(vectors) - explicit).abs().max() / explicit.abs().max()
        _, products = MergedModel(base, opened, list(range(len(own)))).loss_and_products(c.detach(), exact, both)
        found = torch.cat([g.reshape(-1) for g in torch.autograd.grad(c, (u, size), products)])
        whole, a = vectors[0], u.exp()
        for k in range(1, len(own)):
            whole = slerp(whole, vectors[k], a[k] / (a[:k].mean() + a[k]))
        names = dict(base.named_parameters())
        parts = torch.split(size * whole, [p.numel() for p in names.values()])
        theta = {name: p.detach() + part.view_as(p) for (name, p), part in zip(names.items(), parts, strict=True)}
        loss = torch.func.functional_call(_Both(base), {f"model.{name}": value for name, value in theta.items()}, (exact,))
        wanted = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, (u, size))])
        worst["coefficients"] = max(worst["coefficients"], float(error))
        worst["gradients"] = max(worst["gradients"], float((found - wanted).abs().max() / wanted.abs().max()))
    return worst


class _Both(nn.Module):
    """The loss as a module, for ``functional_call``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        return both(self.model, batch)


# ---- what was found ---------------------------------------------------------------------------------------------------------------------


def _difference(rows: Sequence[Row], arm: str, other: str) -> Interval:
    return mean_interval([row["losses"][arm]["both"] - row["losses"][other]["both"] for row in rows])


def _shown(interval: Interval) -> str:
    return "{:+.3f} ({:+.3f} to {:+.3f})".format(*interval)


def _findings(rows: Sequence[Row]) -> tuple[Finding, ...]:
    claims = {claim.key: claim for claim in CLAIMS}
    unit = "nats"
    average, gap = _difference(rows, "found", "average"), _difference(rows, "found", "grid")
    near = gap[0] < NEAR_GRID
    judged = claims["average"].below(average, 0.0, "")
    verdict = judged.verdict if near else "not replicated"
    findings = [
        claims["average"].judged(
            verdict,
            f"Self Positioning minus average {_shown(average)}; minus the best of the grid {gap[0]:+.3f} on the mean "
            f"({'within' if near else 'not within'} {NEAR_GRID:g}).",
            estimate=average[0],
            low=average[1],
            high=average[2],
            unit=unit,
        )
    ]
    for key, other, said in (("sum", "sum", "the sum"), ("joint", "proportion", "joint training in proportion")):
        interval = _difference(rows, "found", other)
        findings.append(claims[key].below(interval, 0.0, f"Self Positioning minus {said} {_shown(interval)}.", unit=unit))
    interval = _difference(rows, "found", "half")
    steps = sum(STEPS.values())
    said = f"Self Positioning minus joint training half and half, at {steps} steps both: {_shown(interval)}."
    if interval[1] > 0:
        said += " Balanced joint training is better than the merge."
    findings.append(claims["resampling"].below(interval, 0.0, said, unit=unit))
    worst = {name: max(row[name] for row in rows) for name in ("coefficients", "gradients")}
    findings.append(
        claims["identity"].holds(
            worst["coefficients"] <= COEFFICIENTS and worst["gradients"] <= GRADIENTS,
            f"Coefficients differ by {worst['coefficients']:.1e} at most, gradients by {worst['gradients']:.1e}.",
            estimate=worst["gradients"],
            unit="relative difference",
        )
    )
    follows = sum(row["alignment"][0] > row["alignment"][1] for row in rows)
    a, b = np.mean([row["alignment"] for row in rows], axis=0)
    findings.append(
        claims["follows"].holds(
            follows >= FOLLOWED / 10 * len(rows),
            f"Cosine of the joint task vector with that of A {a:.2f}, with that of B {b:.2f}; A nearer in {follows} of {len(rows)} seeds.",
            estimate=follows / len(rows),
            unit="share of seeds",
        )
    )
    norms = np.mean([row["norms"] for row in rows], axis=0)
    longer = mean_interval([row["norms"][0] - row["norms"][1] for row in rows])
    angle = np.degrees(np.arccos(np.mean([row["cosine"] for row in rows])))
    findings.append(
        claims["lengths"].reported(
            longer,
            f"Lengths {norms[0]:.2f} (A, {SIZES['A']} pictures, {STEPS['A']} steps) and {norms[1]:.2f} (B, {SIZES['B']} and {STEPS['B']}), "
            f"{angle:.0f} degrees apart.",
            unit="difference in length",
        )
    )
    order = {claim.key: k for k, claim in enumerate(CLAIMS)}
    return tuple(sorted(findings, key=lambda finding: order[finding.claim]))


def _mean(rows: Sequence[Row], arm: str, task: str = "both") -> float:
    return float(np.mean([row["losses"][arm][task] for row in rows]))


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    best = min(ARMS.values(), key=lambda arm: _mean(rows, arm))
    named = next(name for name, arm in ARMS.items() if arm == best)
    weights = np.mean([row["weights"] for row in rows], axis=0)
    scale = float(np.mean([row["scale"] for row in rows]))
    return (
        f"Lowest loss: {named}. Where the data of all tasks are at hand together, train on them together, and balance them.",
        f"Positions that were found: weights {weights[0]:.2f} and {weights[1]:.2f}, scale {scale:.2f} (mean). Above 1 is normal: the "
        "interpolation of vectors at a right angle is as long as one of them, not as their sum.",
        "Joint training sees both tasks at every step; a merge sees each model's end alone. A merge is for models that exist already, or "
        "data that cannot be in one place.",
    )


def _tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    losses = [
        {"arm": name, "mean of both": round(_mean(rows, arm), 3)} | {f"task {task}": round(_mean(rows, arm, task), 3) for task in SIZES}
        for name, arm in (*ARMS.items(), ("base", "base"))
    ]
    positions = [
        {
            "seed": seed,
            "weight of A": round(row["weights"][0], 3),
            "weight of B": round(row["weights"][1], 3),
            "scale": round(row["scale"], 2),
            "best of the grid, beta": row["best"][0],
            "best of the grid, lambda": row["best"][1],
        }
        for seed, row in enumerate(rows)
    ]
    return {"Held-out loss (InfoNCE, nats)": losses, "Positions": positions}


def _figure(rows: Sequence[Row]) -> Figure:
    """One row per arm: held-out loss of every seed and the mean; left is better."""
    from counterpoise.report import _plots as plots

    width, height = plots.WIDTH, 320
    order = sorted(ARMS.items(), key=lambda item: _mean(rows, item[1]))
    with plots.style():
        fig = plots.figure(width, height)
        ax = plots.axes(fig, plots.LEFT, 56, 420, 208)
        for at, (name, arm) in enumerate(order):
            color = plots.BLUE if arm == "found" else plots.RED if arm in joint_arms() else plots.INK
            values = [row["losses"][arm]["both"] for row in rows]
            ax.plot(values, [at] * len(values), "|", color=color, ms=12, alpha=0.55)
            mean = float(np.mean(values))
            ax.plot(mean, at, "o" if arm == "found" else "D" if arm in joint_arms() else "s", color=color, ms=9, mec=plots.PAPER)
            plots.row_text(fig, ax, at, 8, name, color=color, weight="bold" if arm == "found" else "normal")
            plots.row_text(fig, ax, at, plots.LEFT + 440, f"{mean:.3f}", color=color)
        plots.rules_between(ax, len(order))
        plots.plain_rows(ax, len(order))
        ax.set_xlabel("held-out loss, mean of both tasks (nats); ticks are seeds")
        better = _mean(rows, "half") < _mean(rows, "found")
        said = "Joint training, balanced, beats every merge" if better else "The merge that was searched for beats joint training"
        fig.text(8 / width, 1 - 14 / height, f"{said}: left is better", va="top", weight="bold")
    return fig


def joint_arms() -> tuple[str, ...]:
    return ("half", "proportion")
