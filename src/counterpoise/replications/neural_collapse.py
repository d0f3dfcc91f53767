"""Neural collapse in deep linear networks (Dang et al. 2023, arXiv:2301.00437): under imbalance, class counts dictate the geometry.

With the squared error, weight decay, no bias and free features, the paper derives where training ends: the features of a class become one
vector, vectors of different classes become orthogonal, and their lengths follow from the class counts; a class that is too rare collapses
to zero. Tested again in three parts. A: the objective itself is minimized from random starts, without looking at the formula. B: a network
on the digits of scikit-learn, thinned to a long tail, whose features are not free. C: weight decay is swept across the value at which the
formula has the rarest class vanish.

To know when reading: with two or more layers zero is a local minimum for every class, so a run can lose a class that the theory keeps. Such
a run is stuck, not collapsed, and its loss shows it; part C therefore starts twice, with the class and without, and keeps the lower loss.
In part B the features have no decay of their own, so only the order of the lengths is predicted, not the lengths. Training for twice as
many epochs (seed 0) moves neither correlation by more than 0.05, and no cosine: what part B finds is where this network ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from counterpoise._seeding import generator, seed_integer
from counterpoise._stats import mean_interval

from ._types import Claim, Finding, Replication
from ._work import Work, rows_where

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from counterpoise.nn import UnconstrainedFeatures

__all__ = ["CLAIMS", "SLUG", "run"]

SLUG = "neural-collapse"

# A and C: counts, layers, decay of each layer, decay of the features. L-BFGS, float64.
DIM = 16
PROBLEMS = (([60, 30, 10], 1, 5e-3, 1e-3), ([60, 30, 10], 3, 2e-3, 2e-4), ([100, 50, 20, 4], 3, 2e-3, 2e-4))
QUICK_PROBLEMS = (([60, 30, 10], 1, 5e-3, 1e-3), ([12, 6, 3], 2, 4e-3, 2e-3))
LENGTH_ERROR, LOSS_ERROR, LARGEST_COSINE, WITHIN = 1e-4, 1e-8, 1e-4, 1e-6
STARTS = 3  # seeds of part A
SMALL_SCALES = (0.1, 0.3)  # of initial values, for the runs that get stuck; elsewhere 1
DESCENT_RATE, DESCENT_STEPS, DESCENT_LOOK, QUICK_STEPS = 1.0, 50_000, 500, 1_000
STAGES, NOISE = 8, 1e-4  # of the decay on its way there; of the start without the class
NEWTON_STEPS, RIDGE = 4, 1e-9
RATIOS = (1 / 1.1, 1 / 1.02, 1.02, 1.1)  # n* over the count of the rarest class
ALIVE, LOST = 1e-2, 1e-6  # length of its features

# B: digits, 64-256-256 with ReLU, then three linear layers without bias; half the squared error, summed over outputs.
LARGEST, SMALLEST = 150, 5
EPOCHS, QUICK_EPOCHS, EARLY = 1500, 30, 20
BATCH, LEARNING_RATE, MOMENTUM, DECAY = 64, 0.1, 0.9, 5e-4
RANK_CORRELATION, ENOUGH, FALL = 0.8, 0.8, 0.5

CLAIMS = (
    Claim(
        "minimum",
        "Free features and deep linear classifiers end in an orthogonal frame whose lengths are those of the formula.",
        f"in all runs lengths within {LENGTH_ERROR:g} of the longest, loss within {LOSS_ERROR:g}, |cosines| below {LARGEST_COSINE:g}, "
        f"within-class share of the variance below {WITHIN:g}",
    ),
    Claim(
        "threshold",
        "A class at or below the threshold count collapses to exactly zero.",
        f"with n* swept across the count of the rarest class, its features have a length at n* 2 % below the count, and one below {LOST:g} "
        "at n* 2 % above, with one layer and with three",
    ),
    Claim(
        "lengths",
        "In a real network rare classes get long features and short classifier rows.",
        f"Spearman correlation with the class count <= -{RANK_CORRELATION} for the class means of the features and >= {RANK_CORRELATION} "
        "for the rows of the classifier, in at least 4 of 5 seeds",
    ),
    Claim(
        "orthogonal",
        "In a real network the class means become orthogonal.",
        f"mean |cosine| of class means at the last layer, end of training over epoch {EARLY}: 95 % interval below {FALL}",
    ),
    Claim("descent", "Gradient descent goes there too."),
    Claim("stuck", "Small initial values lose classes that the theory keeps."),
    Claim("within", "In a real network the features of a class become one vector."),
)

SEEDS, QUICK_SEEDS = tuple(range(5)), (0, 1)

Row = Mapping[str, Any]
Array = npt.NDArray[np.float64]


def run(
    *, seeds: Sequence[int] | None = None, quick: bool = False, data_dir: str | Path | None = None, work: Work | None = None
) -> Replication:
    """All three parts. Part A takes the first three seeds, part C the first. The digits come with scikit-learn: no ``data_dir``."""
    seeds = tuple(seeds if seeds is not None else QUICK_SEEDS if quick else SEEDS)
    work = work or Work()
    problems = QUICK_PROBLEMS if quick else PROBLEMS
    starts = seeds[: 1 if quick else STARTS]
    named = [dict(zip(("counts", "layers", "decay", "feature_decay"), problem, strict=True)) for problem in problems]
    exact = work.map(minimum, [problem | {"seed": seed, "scale": 1.0} for problem in named for seed in starts])
    stuck = work.map(minimum, [named[1] | {"seed": seed, "scale": scale} for scale in SMALL_SCALES for seed in starts])
    descent = work.map(descend, [named[1] | {"seed": seeds[0], "steps": QUICK_STEPS if quick else DESCENT_STEPS}])[0]
    ratios = RATIOS[1:3] if quick else RATIOS
    swept = work.map(at_threshold, [problem | {"seed": seeds[0], "ratio": ratio} for problem in named[quick:2] for ratio in ratios])
    nets = work.map(digits_network, [{"seed": seed, "epochs": QUICK_EPOCHS if quick else EPOCHS} for seed in seeds])
    return Replication(
        slug=SLUG,
        claims=CLAIMS,
        findings=_findings(exact, swept, nets, descent, stuck),
        notes=_notes(nets),
        tables=_tables(exact, swept, nets),
        figure=_figure(exact, swept, nets),
        seeds=seeds,
        quick=quick,
    )


# ---- A: the objective itself -------------------------------------------------------------------------------------------------------------


def minimum(counts: list[int], layers: int, decay: float, feature_decay: float, seed: int, scale: float) -> dict[str, Any]:
    """One minimization from random values, and how far its end is from the formula."""
    from counterpoise.diagnostics import neural_collapse_lengths

    prediction = neural_collapse_lengths(counts, [decay] * layers, feature_decay)
    model = _model(counts, [decay] * layers, feature_decay, seed, scale)
    iterations = _minimize(model)
    found = _measured(model)
    error = np.abs(found["lengths"] - prediction.feature_norm).max() / prediction.feature_norm.max()
    return {
        "iterations": iterations,
        "loss": found["loss"],
        "loss error": abs(found["loss"] - prediction.loss),
        "length error": float(error),
        "largest cosine": found["largest cosine"],
        "within": found["within"],
        "lengths": found["lengths"].tolist(),
        "predicted": prediction.feature_norm.tolist(),
        "rows": found["rows"].tolist(),
        "predicted rows": prediction.classifier_norm.tolist(),
        "lost": int((found["lengths"] < LOST).sum()),
    }


def descend(counts: list[int], layers: int, decay: float, feature_decay: float, seed: int, steps: int) -> dict[str, Any]:
    """Plain gradient descent on the same objective, looked at every so many steps."""
    from counterpoise.diagnostics import neural_collapse_lengths

    prediction = neural_collapse_lengths(counts, [decay] * layers, feature_decay)
    model = _model(counts, [decay] * layers, feature_decay, seed, 1.0)
    parameters: list[Tensor] = list(model.parameters())
    path = []
    for step in range(1, steps + 1):
        gradients = torch.autograd.grad(model.loss(), parameters)
        with torch.no_grad():
            torch._foreach_add_(parameters, gradients, alpha=-DESCENT_RATE)
        if step % DESCENT_LOOK == 0:
            found = _measured(model)
            error = np.abs(found["lengths"] - prediction.feature_norm).max() / prediction.feature_norm.max()
            path.append({"step": step, "loss error": found["loss"] - prediction.loss, "length error": float(error)})
    return {"path": path}


def _model(counts: Sequence[int], decays: Sequence[float], feature_decay: float, seed: int, scale: float) -> UnconstrainedFeatures:
    from counterpoise.nn import UnconstrainedFeatures

    source = torch.Generator().manual_seed(seed_integer(seed, SLUG, "start"))
    return UnconstrainedFeatures(counts, DIM, decays, feature_decay, init_scale=scale, generator=source).double()


def _minimize(model: UnconstrainedFeatures) -> int:
    """L-BFGS until nothing moves, started again as long as that changes the loss; the number of iterations."""
    options: dict[str, Any] = {"max_iter": 20_000, "max_eval": 30_000, "tolerance_grad": 1e-12, "tolerance_change": 1e-18}
    iterations, before = 0, np.inf
    while (now := float(model.loss().detach())) < before:
        before = now
        optimizer = torch.optim.LBFGS(model.parameters(), history_size=100, line_search_fn="strong_wolfe", **options)

        def closure(optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = model.loss()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        iterations += int(optimizer.state[model.H]["n_iter"])
    return iterations


def _polish(model: UnconstrainedFeatures) -> None:
    """Newton steps: near the threshold the loss is so flat that rounding hides the last digits of a length from a line search."""
    objective = _Objective(model)
    names = [name for name, _ in objective.named_parameters()]

    def loss(point: Tensor) -> Tensor:
        parts = point.split([value.numel() for value in objective.parameters()])  # type: ignore[no-untyped-call]
        values = {name: part.view_as(value) for name, part, value in zip(names, parts, objective.parameters(), strict=True)}
        found: Tensor = torch.func.functional_call(objective, values, ())
        return found

    point = nn.utils.parameters_to_vector(objective.parameters()).detach()
    for _ in range(NEWTON_STEPS):
        # Turning all features together with the first layer changes nothing: a little ridge makes the system solvable.
        system = torch.func.hessian(loss)(point) + RIDGE * torch.eye(len(point), dtype=point.dtype)
        point = point - torch.linalg.solve(system, torch.func.grad(loss)(point))
    nn.utils.vector_to_parameters(point, objective.parameters())


class _Objective(nn.Module):
    """The loss as what a module returns, for ``functional_call``."""

    def __init__(self, model: UnconstrainedFeatures) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> Tensor:
        return self.model.loss()


def _measured(model: UnconstrainedFeatures) -> dict[str, Any]:
    from counterpoise.diagnostics import collapse_metrics

    report = collapse_metrics(model.features(), model.labels, model.classifier())
    cosines = np.abs(report.cosines[~np.eye(len(report.counts), dtype=np.bool_)])
    return {
        "loss": float(model.loss().detach()),
        "lengths": report.mean_norm,
        "rows": report.weight_norm,
        "largest cosine": float(np.nanmax(cosines)),
        "within": report.within_fraction,
    }


# ---- C: across the threshold -------------------------------------------------------------------------------------------------------------


def at_threshold(counts: list[int], layers: int, decay: float, feature_decay: float, seed: int, ratio: float) -> dict[str, Any]:
    """Minimize where n* is ``ratio`` times the count of the rarest class, the last; the layers' decay is scaled, that of the features kept.

    Two starts: the minimum of part A, which has the class, followed while the decay grows; and the end of that run without the class and
    with a little noise. The lower loss is the minimum; the formula is not used.
    """
    from counterpoise.diagnostics import collapse_threshold, neural_collapse_lengths

    # n* is proportional to a common factor of the layers' decays.
    decays = [decay * ratio * counts[-1] / collapse_threshold(sum(counts), [decay] * layers, feature_decay)] * layers
    prediction = neural_collapse_lengths(counts, decays, feature_decay)
    model = _model(counts, [decay] * layers, feature_decay, seed, 1.0)
    for value in np.geomspace(decay, decays[0], STAGES)[:-1]:
        model.weight_decays = (float(value),) * layers
        _minimize(model)
    model.weight_decays = tuple(decays)
    ends = []
    for start in ("with", "without"):
        if start == "without":
            noise = torch.Generator().manual_seed(seed_integer(seed, SLUG, "noise"))
            with torch.no_grad():
                model.H[:, model.labels == len(counts) - 1] = 0
                model.W[-1][-1] = 0
                for value in model.parameters():
                    value.add_(torch.randn(value.shape, generator=noise, dtype=value.dtype), alpha=NOISE)
        _minimize(model)
        _polish(model)
        found = _measured(model)
        ends.append({"start": start, "loss": found["loss"], "length": float(found["lengths"][-1])})
    best = min(ends, key=lambda end: end["loss"])
    return {
        "decay of layers": decays[0],
        "n*": prediction.threshold_count,
        "length": best["length"],
        "predicted": float(prediction.feature_norm[-1]),
        "loss error": abs(best["loss"] - prediction.loss),
        "ends": ends,
    }


# ---- B: digits ---------------------------------------------------------------------------------------------------------------------------


def class_counts() -> npt.NDArray[np.int64]:
    """From 150 down to 5 in a geometric row."""
    return np.round(LARGEST * (SMALLEST / LARGEST) ** (np.arange(10) / 9)).astype(np.int64)


def long_tail(seed: int) -> tuple[Array, npt.NDArray[np.int64]]:
    """Images, and their classes by rank: 0 is the most common. Which digit has which rank is drawn."""
    from sklearn.datasets import load_digits

    X, digit = load_digits(return_X_y=True)
    rng = generator(seed, SLUG, "digits")
    order, counts = rng.permutation(10), class_counts()
    rows = [rng.choice(np.flatnonzero(digit == k), n, replace=False) for k, n in zip(order, counts, strict=True)]
    return X[np.concatenate(rows)] / 16, np.repeat(np.arange(10), counts)


def digits_network(seed: int, epochs: int) -> dict[str, Any]:
    """Train, and measure the training rows early and at the end: at the input of the linear head, and at that of its last layer."""
    from counterpoise.diagnostics import collapse_metrics

    X, y = long_tail(seed)
    inputs, labels = torch.from_numpy(X).float(), torch.from_numpy(y)
    targets = nn.functional.one_hot(labels, 10).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_integer(seed, SLUG, "net"))
        trunk = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        layers = [nn.Linear(256, 64, bias=False), nn.Linear(64, 64, bias=False), nn.Linear(64, 10, bias=False)]
        head = nn.Sequential(*layers)
    order = torch.Generator().manual_seed(seed_integer(seed, SLUG, "order"))
    parameters = [*trunk.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=DECAY)
    found: dict[str, Any] = {}

    def look(name: str) -> None:
        with torch.no_grad():
            features = trunk(inputs)
            last = layers[1](layers[0](features))
            row = layers[2].weight @ layers[1].weight @ layers[0].weight
            accuracy = (features @ row.T).argmax(dim=1) == labels
        whole, final = collapse_metrics(features, y, row), collapse_metrics(last, y, layers[2].weight)
        found[name] = {
            "lengths": whole.mean_norm.tolist(),
            "rows": [] if whole.weight_norm is None else whole.weight_norm.tolist(),
            "last lengths": final.mean_norm.tolist(),
            "cosine": final.mean_abs_cosine,
            "relu cosine": whole.mean_abs_cosine,
            "nc1": whole.nc1,
            "last nc1": final.nc1,
            "nc3": whole.nc3,
            "nc4": whole.nc4,
            "accuracy": float(accuracy.float().mean()),
        }

    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(len(inputs), generator=order).split(BATCH):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            loss = (head(trunk(inputs[rows])) - targets[rows]).square().sum() / (2 * len(rows))
            loss.backward()
            optimizer.step()
        if epoch == EARLY:
            look("early")
    look("end")
    return found | {"spearman lengths": _spearman(found["end"]["lengths"]), "spearman rows": _spearman(found["end"]["rows"])}


def _spearman(lengths: Sequence[float]) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(class_counts(), lengths).statistic)


# ---- what it says ------------------------------------------------------------------------------------------------------------------------


def _findings(exact: Sequence[Row], swept: Sequence[Row], nets: Sequence[Row], descent: Row, stuck: Sequence[Row]) -> tuple[Finding, ...]:
    minimum_, threshold, lengths, orthogonal, descent_, stuck_, within = CLAIMS
    worst = {name: max(row[name] for row in exact) for name in ("length error", "loss error", "largest cosine", "within")}
    right = _both_right(nets)
    falls = [net["end"]["cosine"] / net["early"]["cosine"] for net in nets]
    early, end = (float(np.mean([net[when]["cosine"] for net in nets])) for when in ("early", "end"))
    relu = [float(np.mean([net[when]["relu cosine"] for net in nets])) for when in ("early", "end")]
    return (
        minimum_.holds(
            worst["length error"] < LENGTH_ERROR
            and worst["loss error"] < LOSS_ERROR
            and worst["largest cosine"] < LARGEST_COSINE
            and worst["within"] < WITHIN,
            f"The worst of {len(exact)} runs: lengths off by {worst['length error']:.1e} of the longest, loss by "
            f"{worst['loss error']:.1e}, largest |cosine| {worst['largest cosine']:.1e}, within-class share {worst['within']:.1e}.",
            estimate=worst["length error"],
            unit="largest error of a length over the longest",
        ),
        *(
            threshold.holds(
                all(_as_predicted(row) for row in rows),
                f"{layers} layer{'s' * (layers > 1)}: "
                + "; ".join(f"n* / count {row['ratio']:.3f}: |h| = {row['length']:.2g} (predicted {row['predicted']:.2g})" for row in rows)
                + ".",
                name=f"{layers} layer{'s' * (layers > 1)}",
            )
            for layers in dict.fromkeys(row["layers"] for row in swept)
            for rows in [rows_where(swept, layers=layers)]
        ),
        lengths.holds(
            sum(right) >= ENOUGH * len(right),
            f"{sum(right)} of {len(right)} seeds. Spearman with the class count, seed by seed: class means "
            f"{_each(net['spearman lengths'] for net in nets)}; classifier rows {_each(net['spearman rows'] for net in nets)}.",
            estimate=float(np.mean([net["spearman lengths"] for net in nets])),
            unit="mean Spearman correlation of class means with the count",
        ),
        orthogonal.below(
            mean_interval(falls),
            FALL,
            f"Mean |cosine| at the last layer falls from {early:.3f} (epoch {EARLY}) to {end:.3f}; at the ReLU features, which cannot be "
            f"negative, from {relu[0]:.3f} to {relu[1]:.3f}.",
            unit="mean |cosine| at the end over that early",
        ),
        descent_.reported(None, _descent_sentence(descent)),
        stuck_.reported(
            None,
            "; ".join(
                f"from {scale:g} of the usual initial values {sum(row['lost'] > 0 for row in rows)} of {len(rows)} runs lose a class"
                + _higher(rows)
                for scale in SMALL_SCALES
                for rows in [rows_where(stuck, scale=scale)]
            )
            + f"; from the usual ones {sum(row['lost'] > 0 for row in exact)} of {len(exact)}.",
        ),
        within.reported(
            mean_interval([net["end"]["nc1"] for net in nets]),
            f"NC1 of the ReLU features falls from {_mean(nets, 'early', 'nc1'):.3g} (epoch {EARLY}) to {_mean(nets, 'end', 'nc1'):.3g}, at "
            f"the last layer from {_mean(nets, 'early', 'last nc1'):.3g} to {_mean(nets, 'end', 'last nc1'):.3g}; 1 - cosine of classifier "
            f"rows and means is {_mean(nets, 'end', 'nc3'):.3f} in the end.",
            unit="NC1",
        ),
    )


def _as_predicted(row: Row) -> bool:
    return bool(row["length"] > ALIVE if row["ratio"] < 1 else row["length"] < LOST)


def _both_right(nets: Sequence[Row]) -> list[bool]:
    return [net["spearman lengths"] <= -RANK_CORRELATION and net["spearman rows"] >= RANK_CORRELATION for net in nets]


def _descent_sentence(descent: Row) -> str:
    path = descent["path"]
    first = {bound: next((look["step"] for look in path if look["length error"] < bound), None) for bound in (1e-2, 1e-4)}
    reached = ", ".join(f"{bound:g} {f'after {step:,} steps' if step else 'not'}" for bound, step in first.items())
    return (
        f"{path[-1]['step']:,} steps with learning rate {DESCENT_RATE:g}: loss {path[-1]['loss error']:.1e} above the minimum, lengths off "
        f"by {path[-1]['length error']:.1e} of the longest (errors reached: {reached})."
    )


def _higher(rows: Sequence[Row]) -> str:
    lost = [row["loss error"] for row in rows if row["lost"]]
    return f" and end with a loss {min(lost):.2g} or more above the minimum" if lost else ""


def _mean(nets: Sequence[Row], when: str, name: str) -> float:
    return float(np.mean([net[when][name] for net in nets]))


def _each(values: Any) -> str:
    return ", ".join(f"{value:+.2f}" for value in values)


def _notes(nets: Sequence[Row]) -> tuple[str, ...]:
    longer = float(np.mean([net["end"]["lengths"][-1] / net["end"]["lengths"][0] for net in nets]))
    shorter = float(np.mean([net["end"]["rows"][-1] / net["end"]["rows"][0] for net in nets]))
    last = [_spearman(net["end"]["last lengths"]) for net in nets]
    return (
        f"Digits, class of {SMALLEST} images against class of {LARGEST}: features {longer:.2f} times as long, classifier row "
        f"{shorter:.2f} times (means over seeds).",
        f"At the input of the last layer, two linear layers further, the lengths of class means correlate with the count by {_each(last)}.",
        "A run that has lost a class may be stuck or may be right: compare its loss with that of the formula.",
        "The theory holds for an L2 penalty (SGD's weight decay), a squared error and no bias; AdamW's decay is not an L2 penalty.",
    )


def _tables(exact: Sequence[Row], swept: Sequence[Row], nets: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    counts = class_counts()
    digits = [
        {
            "images": int(n),
            "features": f"{np.mean([net['end']['lengths'][k] for net in nets]):.3f}",
            "classifier row": f"{np.mean([net['end']['rows'][k] for net in nets]):.3f}",
            "input of the last layer": f"{np.mean([net['end']['last lengths'][k] for net in nets]):.3f}",
        }
        for k, n in enumerate(counts)
    ]
    return {
        "Free features: lengths at the minimum": [
            {
                "counts": ", ".join(map(str, row["counts"])),
                "layers": row["layers"],
                "seed": row["seed"],
                "measured": ", ".join(f"{length:.5f}" for length in row["lengths"]),
                "formula": ", ".join(f"{length:.5f}" for length in row["predicted"]),
                "loss error": f"{row['loss error']:.1e}",
                "iterations": row["iterations"],
            }
            for row in exact
        ],
        "Rarest class across the threshold: length of its features": [
            {
                "layers": row["layers"],
                "n* / count": f"{row['ratio']:.3f}",
                "decay of layers": f"{row['decay of layers']:.4g}",
                "lower loss": f"{row['length']:.3g}",
                "formula": f"{row['predicted']:.3g}",
            }
            | {f"started {end['start']} it": f"{end['length']:.3g} (loss {end['loss']:.6f})" for end in row["ends"]}
            for row in swept
        ],
        "Digits: mean lengths over seeds": digits,
    }


def _figure(exact: Sequence[Row], swept: Sequence[Row], nets: Sequence[Row]) -> Figure:
    """Lengths of free features, the rarest class across the threshold, and lengths in the network on digits."""
    from counterpoise.report import _plots as plots

    height, bottom, top, left, width, gap = 330, 62, 84, 44, 196, 46
    with plots.style():
        fig = plots.figure(plots.WIDTH, height)
        panels = [plots.axes(fig, left + k * (width + gap), bottom, width, height - bottom - top) for k in range(3)]
        titles = ("Free features: as predicted", "Rarest class: lost at n*", "Digits: the same order")
        if not all(_as_predicted(row) for row in swept):
            titles = (titles[0], "Rarest class: not as predicted", titles[2])
        if sum(_both_right(nets)) < ENOUGH * len(nets):
            titles = (*titles[:2], "Digits: only roughly so")
        for k, (ax, title) in enumerate(zip(panels, titles, strict=True)):
            fig.text((left - 34 + k * (width + gap)) / plots.WIDTH, 1 - 14 / height, title, va="center", weight="bold")
            ax.tick_params(axis="both", which="both", length=3, color=plots.RULE)

        shown = rows_where(exact, counts=exact[-1]["counts"], layers=exact[-1]["layers"])
        counts = np.array(shown[0]["counts"])
        for name, color, marker in (("lengths", plots.BLUE, "o"), ("rows", plots.GRAY, "D")):
            for row in shown:
                panels[0].plot(counts, np.array(row[name]), color=color, marker=marker, ms=8, ls="none", mec=plots.PAPER, zorder=3)
            formula = np.array(shown[0]["predicted" if name == "lengths" else "predicted rows"])
            panels[0].plot(counts, formula, color=plots.INK, marker="_", ms=17, mew=1.8, ls=(0, (3, 3)), lw=1, zorder=4)
        _log_counts(panels[0], counts)
        panels[0].set_xlabel("examples of the class")

        for layers, marker in zip(dict.fromkeys(row["layers"] for row in swept), "so", strict=False):
            rows = rows_where(swept, layers=layers)
            ratios, measured = [row["ratio"] for row in rows], [row["length"] for row in rows]
            panels[1].plot(ratios, measured, color=plots.BLUE, marker=marker, ms=8, ls="none", mec=plots.PAPER, zorder=3, clip_on=False)
            panels[1].plot(ratios, [row["predicted"] for row in rows], color=plots.INK, marker="_", ms=17, mew=1.8, ls="none", zorder=4)
            word = f"{layers} layer{'s' * (layers > 1)}"
            panels[1].annotate(word, (ratios[0], measured[0]), (0, 13), textcoords="offset points", color=plots.BLUE, va="center")
        panels[1].axvline(1, color=plots.RED, lw=1.4, ls=(0, (4, 3)), zorder=1)
        panels[1].set_xlim(0.88, 1.13)
        panels[1].set_xlabel("n* / its count")

        counts = class_counts()
        for name, color, marker in (("lengths", plots.BLUE, "o"), ("rows", plots.GRAY, "D")):
            lines = np.array([np.array(net["end"][name]) / net["end"][name][0] for net in nets])
            panels[2].plot(counts, lines.T, color=color, lw=0.8, alpha=0.45, zorder=2)
            panels[2].plot(counts, lines.mean(axis=0), color=color, marker=marker, ms=7, lw=0, mec=plots.PAPER, zorder=3)
        _log_counts(panels[2], counts)
        panels[2].set_xlabel("images of the class")
        for ax in panels:
            ax.locator_params(axis="y", nbins=6)
            ax.set_ylim(0, 1.16 * ax.get_ylim()[1])
        x = 10.0
        for sign, color, word in (
            ("●", plots.BLUE, "length of features"), ("◆", plots.GRAY, "of classifier rows (right: most common class = 1)"),
            ("▬", plots.INK, "formula"),
        ):  # fmt: skip
            fig.text(x / plots.WIDTH, 1 - 38 / height, sign, va="center", color=color)
            fig.text((x + 16) / plots.WIDTH, 1 - 38 / height, word, va="center", color=plots.MUTED)
            x += 40 + 6.3 * len(word)
        return fig


def _log_counts(ax: Axes, counts: npt.NDArray[Any]) -> None:
    ax.set_xscale("log")
    ticks = sorted(int(counts[k]) for k in {0, len(counts) // 2, len(counts) - 1})
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.set_xticks([], minor=True)
    ax.margins(x=0.08)
