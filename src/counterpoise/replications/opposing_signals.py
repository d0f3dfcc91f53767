r"""Outliers with opposing signals (Rosenfeld & Risteski 2023, arXiv:2311.04163): do a few examples hold each other, and training with them?

The paper finds paired groups of outliers whose gradients oppose each other: they cancel in the mean, dominate the curvature, and training
that balances between them oscillates. Here 1,000 handwritten digits (8 x 8 pixels in [0, 1]) are learned by a perceptron 64-100-100-10
with tanh, cross-entropy and full-batch gradient descent for 300 steps: every oscillation is the dynamics' own, none is noise. Groups are
the 2 % of the examples whose losses rise, and fall, most in a step.

*The learning rate* is the edge, 2 / sharpness, with the sharpness of step 50 of a warm-up at a small rate; training then starts from the
first weights. The rate of the warm-up was chosen on other seeds (100 to 105) so that the sharpness there is 3.3, as in the pilot behind
the criteria. Sharpness moves on after that step, and pilot runs (seeds 100 to 102) showed that the rate need not be at the edge later on.
So there is a second rate, chosen without a look at any group: the first one, going up from the edge in steps of 5 %, at which the mean loss
rises in at least 5 of the 300 steps. It has a claim of its own, with the same numbers as its criterion.

*In the planted variant* a bright patch is put on 15 examples of each of two classes, so bright that its direction holds as much of the mean
square of the inputs as all other pixels together: outliers with a strong feature are what the paper is about, and a faint one is no
outlier. Half and twice that energy are shown as well. In a first run pairs were ordered by the volatility of their step, which found 1 % of
the planted examples: where training breaks away, whole classes move more than any outlier. Now the pair comes first that carries the
largest share of all change, and this variant runs on seeds that the first run had not seen (50 to 54); its criterion is the same.

To know when reading: lr λ / 2 stands beside every result, since below 1 gradient descent does not oscillate, and nothing seen there means
nothing. The paper's networks are larger, and what it says about Adam and SGD is not tested here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._seeding import generator, seed_integer
from counterpoise._stats import mean_interval

from ._types import Claim, Finding, Replication, Verdict
from ._work import Work, paired, rows_where

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from counterpoise.diagnostics import LossTrajectory

__all__ = ["CLAIMS", "SLUG", "run"]

SLUG = "opposing-signals"

EXAMPLES, WIDTH, CLASSES, STEPS = 1000, 100, 10, 300
WARM_UP_STEPS, WARM_UP_RATE = 50, 0.125
ITERS = 500  # of the sharpness
EVERY = 50  # steps between two measurements of the sharpness while training
ARMS = {"edge": 1.0, "below": 0.95, "above": 1.05, "half": 0.5, "oscillating": None}  # times the edge; None: as far up as it takes
LADDER = tuple(round(1 + 0.05 * i, 2) for i in range(11))  # times the edge
RISES = 5  # steps in which the mean loss rises, from which on it oscillates
PEAK = 2.0  # times the first mean loss: divergence
K = 0.02  # share of the examples in a group
PERMUTATIONS, RANDOM_SETS = 10_000, 10

PER_CLASS, PATCH = 15, 4  # examples of each of two classes that get a patch, and its side in pixels
ENERGIES = (0.5, 1.0, 2.0)  # mean square along the patch over that of all other pixels
JUDGED = 1.0  # of these
UNSEEN = 50  # added to the seeds of the planted variant

OPPOSED, FLIPS, QUIET = 0.8, 0.8, 0.2
LEVEL = 0.01
RECALL = 0.8

CLAIMS = (
    Claim(
        "opposition",
        "At the edge of stability, what rises and what falls cancels, and the two groups that move most swap at the next step.",
        f"95 % interval over seeds above {OPPOSED:g} for the median cancellation, and above {FLIPS:g} for the share of steps after which "
        "the groups swap, in the 10 % most volatile steps, at lr = 2 / sharpness (converged)",
    ),
    Claim(
        "oscillation",
        "Where the mean loss first rises at times, going up with the learning rate, it is such groups that swap.",
        "the same at the first of the rates that oscillates",
    ),
    Claim(
        "quiet",
        "Well below the edge there is no such opposition.",
        f"95 % intervals of both below {QUIET:g} at half of lr = 2 / sharpness",
    ),
    Claim(
        "coherent",
        "The groups share a feature: each is of few classes.",
        f"share of the most frequent class, against random groups of the same size: permutation p < {LEVEL:g} for every seed, at "
        "lr = 2 / sharpness",
    ),
    Claim(
        "outsized",
        "These few examples have an outsized influence: without them the loss bends less.",
        "95 % interval over seeds above 0 of the drop of the sharpness without the groups minus that without as many random examples, at "
        "lr = 2 / sharpness",
    ),
    Claim(
        "planted",
        "Planted pairs (a bright patch on 15 examples of each of two classes) are found.",
        f"at least {RECALL:g} of the 30 among 30 examples looked at: 95 % interval over seeds not below it, from the trajectory at "
        "lr = 2 / sharpness and from the gradients after the warm-up",
    ),
    Claim("factors", "The same at 0.95 and 1.05 times that learning rate."),
    Claim("rankings", "Rankings of single examples, by area under the margin or by gradient norm, do not find the pairs."),
    Claim("strength", "Fainter pairs are found as well."),
)

SEEDS, QUICK_SEEDS = tuple(range(5)), (0, 1)
QUICK_ARMS = ("edge", "half", "oscillating")
QUICK_STEPS, QUICK_RANDOM_SETS, QUICK_PERMUTATIONS = 60, 2, 2000
QUICK_LADDER = (1.0, 1.2)

RANKINGS = {
    "margin": "the smallest area under the margin",
    "norm, early": "the largest gradient norm after the warm-up",
    "norm, late": "the largest gradient norm at the end",
}

Row = Mapping[str, Any]
Interval = tuple[float, float, float]
Array = npt.NDArray[Any]


def run(
    *, seeds: Sequence[int] | None = None, quick: bool = False, data_dir: str | Path | None = None, work: Work | None = None
) -> Replication:
    """Five learning rates and three planted patches for each of ``seeds``. The digits come with scikit-learn: ``data_dir`` is not used."""
    seeds = tuple(seeds if seeds is not None else QUICK_SEEDS if quick else SEEDS)
    work = work or Work()
    arms, energies = (QUICK_ARMS, (JUDGED,)) if quick else (tuple(ARMS), ENERGIES)
    runs = work.map(oscillation, [{"seed": seed, "arm": arm, "quick": quick} for seed in seeds for arm in arms])
    plants = work.map(planted, [{"seed": seed + UNSEEN, "energy": energy, "quick": quick} for seed in seeds for energy in energies])
    return Replication(
        slug=SLUG,
        claims=CLAIMS,
        findings=_findings(runs, plants),
        notes=_notes(runs, plants),
        tables=_tables(runs, plants),
        figure=_figure(runs),
        seeds=seeds,
        quick=quick,
    )


# ---- one run ----------------------------------------------------------------------------------------------------------------------------


def oscillation(seed: int, arm: str, quick: bool) -> dict[str, Any]:
    """Train at the rate of ``arm``: what opposes what, who it is, and the sharpness without them."""
    from counterpoise.diagnostics import LossTrajectory

    X, y = _digits(seed)
    edge, converged, _ = _edge(X, y, seed)
    steps = QUICK_STEPS if quick else STEPS
    factor = ARMS[arm]
    if factor is None:
        factor = _first_that_oscillates(X, y, seed, edge, steps, QUICK_LADDER if quick else LADDER)
    trajectory = LossTrajectory()
    states = _train(_network(seed), X, y, factor * edge, steps, trajectory)[0]
    row = _seen(trajectory) | {"factor": factor, "lr": factor * edge, "converged": converged}
    found = trajectory.changes(K)
    j = int(found.volatile()[0])
    groups = found.rising[j], found.falling[j]
    if arm in ("edge", "oscillating"):
        row |= _who(groups, y.numpy(), seed, QUICK_PERMUTATIONS if quick else PERMUTATIONS)
        row |= _without(groups, states[j], X, y, seed, QUICK_RANDOM_SETS if quick else RANDOM_SETS)
        row |= _window(trajectory, groups, j)
    return row


def _first_that_oscillates(X: Tensor, y: Tensor, seed: int, edge: float, steps: int, ladder: Sequence[float]) -> float:
    """Times the edge; the last of the ladder if none does."""
    for factor in ladder:
        losses = _mean_losses(_network(seed), X, y, factor * edge, steps)
        if (np.diff(losses) > 0).sum() >= RISES:
            break
    return factor


def _mean_losses(model: nn.Module, X: Tensor, y: Tensor, lr: float, steps: int) -> Array:
    import torch
    from torch.nn import functional as F

    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(X), y)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return np.array(losses)


def planted(seed: int, energy: float, quick: bool) -> dict[str, Any]:
    """Which share of 30 examples with planted patches is among 30 that are looked at, by several ways to choose them."""
    from torch.nn import functional as F

    from counterpoise.diagnostics import LossTrajectory, opposing_groups, sketch_gradients

    X, y = _digits(seed)
    patched = plant(X, y, seed, energy)
    edge, converged, warm = _edge(X, y, seed)
    trajectory = LossTrajectory()
    states, margin = _train(_network(seed), X, y, edge, QUICK_STEPS if quick else STEPS, trajectory)
    looked = 2 * PER_CLASS
    pairs = opposing_groups(trajectory, k=PER_CLASS / len(X), n_pairs=1)

    def gradients(state: Mapping[str, Tensor]) -> Any:
        model = _network(seed)
        model.load_state_dict(dict(state))
        return sketch_gradients(model, F.cross_entropy, (X, y), gramian=True, sketch_dim=0, leverage=False)

    early, late = gradients(warm), gradients(states[-1])
    static = opposing_groups(early, k=looked / len(X), n_pairs=1)
    chosen = {
        "trajectory": pairs[0].to_frame()["index"].to_numpy() if pairs else np.array([], dtype=int),
        "gradients": static[0].to_frame()["index"].to_numpy() if static else np.array([], dtype=int),
        "margin": np.argsort(margin, kind="stable")[:looked],
        "norm, early": np.argsort(-early.norms_sq.numpy(), kind="stable")[:looked],
        "norm, late": np.argsort(-late.norms_sq.numpy(), kind="stable")[:looked],
    }
    recall = {name: len(np.intersect1d(rows, patched)) / looked for name, rows in chosen.items()}
    return _seen(trajectory) | {"lr": edge, "converged": converged, "recall": recall}


def plant(X: Tensor, y: Tensor, seed: int, energy: float) -> npt.NDArray[np.int64]:
    """Put the patch on 15 examples of each of two classes, in place; which they are."""
    rng = generator(seed, SLUG, "plant")
    classes = rng.choice(CLASSES, size=2, replace=False)
    rows = np.concatenate([rng.choice(np.flatnonzero(y.numpy() == label), size=PER_CLASS, replace=False) for label in classes])
    bright = float((energy * X.square().sum(dim=1).mean() / (len(rows) / len(X) * PATCH**2)).sqrt())
    X.view(-1, 8, 8)[rows, -PATCH:, -PATCH:] = bright
    return rows


def _digits(seed: int) -> tuple[Tensor, Tensor]:
    import torch
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    rows = generator(seed, SLUG, "digits").permutation(len(X))[:EXAMPLES]
    return torch.tensor(X[rows] / 16, dtype=torch.float32), torch.tensor(y[rows])


def _network(seed: int) -> nn.Sequential:
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_integer(seed, SLUG, "network"))
        return nn.Sequential(
            nn.Linear(64, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES)
        )  # fmt: skip


def _edge(X: Tensor, y: Tensor, seed: int) -> tuple[float, bool, Mapping[str, Tensor]]:
    """(2 / sharpness after the warm-up, whether it had converged, the weights there)."""
    from torch.nn import functional as F

    from counterpoise.diagnostics import sharpness

    model = _network(seed)
    _train(model, X, y, WARM_UP_RATE, WARM_UP_STEPS)
    report = sharpness(model, F.cross_entropy, (X, y), iters=ITERS)
    return report.max_lr(), report.converged, {name: value.clone() for name, value in model.state_dict().items()}


def _train(
    model: nn.Module, X: Tensor, y: Tensor, lr: float, steps: int, trajectory: LossTrajectory | None = None
) -> tuple[list[Mapping[str, Tensor]], Array]:
    """Full-batch gradient descent: (weights before every step, mean margin of every example over the steps)."""
    import torch
    from torch.nn import functional as F

    from counterpoise.diagnostics import sharpness

    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    states: list[Mapping[str, Tensor]] = []
    margins = torch.zeros(len(X), dtype=torch.float64)
    for step in range(steps):
        logits = model(X)
        losses = F.cross_entropy(logits, y, reduction="none")
        if trajectory is not None:
            lam = sharpness(model, F.cross_entropy, (X, y), iters=ITERS).value if step % EVERY == 0 else None
            trajectory.update(losses, step, lr, sharpness=lam)
            states.append({name: value.clone() for name, value in model.state_dict().items()})
            own = logits.detach().gather(1, y[:, None])
            others = logits.detach().scatter(1, y[:, None], float("-inf")).max(dim=1, keepdim=True).values
            margins += (own - others)[:, 0].double()
        optimizer.zero_grad()
        losses.mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return states, (margins / steps).numpy()


def _seen(trajectory: LossTrajectory) -> dict[str, Any]:
    found = trajectory.changes(K)
    volatile = found.volatile()
    return {
        "cancellation": float(np.median(found.cancellation[volatile])),
        "flips": float(found.flip[volatile].mean()),
        "all flips": float(found.flip[found.followed].mean()),
        "echo": float(np.nanmedian(found.echo[volatile])),
        "extreme share": float(np.median(found.share[volatile])),
        "rises": int((np.diff(found.mean_loss) > 0).sum()),
        "peak": float(found.mean_loss.max() / found.mean_loss[0]),
        "step": int(found.step[volatile[0]]),
        "ratios": [round(trajectory.lr_lambda_half(step), 3) for step in range(0, len(trajectory), EVERY)],
    }


def _who(groups: tuple[Array, Array], y: Array, seed: int, permutations: int) -> dict[str, Any]:
    """Labels of both groups, and how often random groups of the same sizes are as pure."""
    sizes = [len(rows) for rows in groups]

    def purity(labels: Array) -> Array:
        """Mean over the groups of the share of the most frequent class; labels (B, sum of sizes)."""
        parts = np.split(labels, np.cumsum(sizes)[:-1], axis=1)
        counts = [(part[:, :, None] == np.arange(CLASSES)).sum(axis=1).max(axis=1) / part.shape[1] for part in parts]
        return np.asarray(np.mean(counts, axis=0))

    rng = generator(seed, SLUG, "permutations")
    random = np.stack([rng.choice(len(y), size=sum(sizes), replace=False) for _ in range(permutations)])
    own = float(purity(y[np.concatenate(groups)][None])[0])
    as_pure = int((purity(y[random]) >= own - 1e-12).sum())
    names = ["rising", "falling"]
    counted = {name: np.bincount(y[rows], minlength=CLASSES).tolist() for name, rows in zip(names, groups, strict=True)}
    return {"purity": own, "p": (1 + as_pure) / (1 + permutations), "labels": counted}


def _without(groups: tuple[Array, Array], state: Mapping[str, Tensor], X: Tensor, y: Tensor, seed: int, sets: int) -> dict[str, float]:
    """The sharpness at the weights of that step: of all examples, without the groups, and without random sets of as many."""
    import torch
    from torch.nn import functional as F

    from counterpoise.diagnostics import sharpness

    model = _network(seed)
    model.load_state_dict(dict(state))

    def of(rows: Array) -> float:
        return sharpness(model, F.cross_entropy, (X[rows], y[rows]), iters=ITERS).value

    rng = generator(seed, SLUG, "random sets")
    everyone = torch.arange(len(X)).numpy()
    gone = np.concatenate(groups)
    others = [of(np.setdiff1d(everyone, rng.choice(len(X), size=len(gone), replace=False))) for _ in range(sets)]
    return {
        "sharpness": of(everyone),
        "sharpness without": of(np.setdiff1d(everyone, gone)),
        "sharpness without random": float(np.mean(others)),
    }


def _window(trajectory: LossTrajectory, groups: tuple[Array, Array], j: int, before: int = 14, after: int = 16) -> dict[str, Any]:
    """Losses around step j, for the picture."""
    steps = range(max(0, j - before), min(len(trajectory), j + after))
    losses = trajectory.losses[:, list(steps)].astype(np.float64)
    means = {"rising": losses[groups[0]], "falling": losses[groups[1]], "all": losses}
    return {"window": {"step": list(steps)} | {name: [round(float(v), 5) for v in part.mean(axis=0)] for name, part in means.items()}}


# ---- what it says -----------------------------------------------------------------------------------------------------------------------


def _over_seeds(rows: Sequence[Row], column: str) -> Interval:
    return mean_interval([row[column] for row in rows])


def _findings(runs: Sequence[Row], plants: Sequence[Row]) -> tuple[Finding, ...]:
    opposition, oscillation, quiet, coherent, outsized, found, factors, rankings, strength = CLAIMS
    findings: list[Finding] = []
    for claim, arm, bound in ((opposition, "edge", OPPOSED), (oscillation, "oscillating", OPPOSED), (quiet, "half", QUIET)):
        findings += _opposed(claim, rows_where(runs, arm=arm), bound)
    for arm in ("edge", "oscillating"):
        rows = rows_where(runs, arm=arm)
        worst = max(row["p"] for row in rows)
        text = (
            f"{_place(arm)}: share of the most frequent class in a group {_interval(_over_seeds(rows, 'purity'))}; largest p over "
            f"{len(rows)} seeds {worst:.2g}."
        )
        if arm == "edge":
            findings.append(coherent.holds(worst < LEVEL, text, estimate=worst, unit="largest p", name=arm))
        else:
            findings.append(coherent.reported((worst, worst, worst), text, unit="largest p", name=arm))
    for arm in ("edge", "oscillating"):
        rows = rows_where(runs, arm=arm)
        more = mean_interval([(row["sharpness without random"] - row["sharpness without"]) / row["sharpness"] for row in rows])
        alone = mean_interval([1 - row["sharpness without"] / row["sharpness"] for row in rows])
        size = 2 * round(K * EXAMPLES)
        text = (
            f"{_place(arm)}: without the {size} examples the sharpness falls by {_interval(alone)} of itself, "
            f"{_signed(more)} against {size} random ones."
        )
        findings.append(
            outsized.above(more, 0.0, text, unit="of the sharpness", name=arm)
            if arm == "edge"
            else outsized.reported(more, text, unit="of the sharpness", name=arm)
        )
    judged = rows_where(plants, energy=JUDGED)
    findings += [_recalled(found, judged, way) for way in ("trajectory", "gradients")]
    for arm in ("below", "above"):
        rows = rows_where(runs, arm=arm)
        text = "Not run."
        if rows:
            text = (
                f"{_place(arm)}: median cancellation {_interval(_over_seeds(rows, 'cancellation'))}, swaps after "
                f"{_interval(_over_seeds(rows, 'flips'))} of the most volatile steps (lr λ / 2: {_ratios(rows)})."
            )
        findings.append(factors.reported(_over_seeds(rows, "flips") if rows else None, text, unit="share of steps", name=arm))
    flat = [{"seed": row["seed"], "arm": name, "recall": value} for row in judged for name, value in row["recall"].items()]
    for arm, word in RANKINGS.items():
        difference = mean_interval(paired(flat, "recall", "trajectory", arm))
        mean = float(np.mean([row["recall"] for row in rows_where(flat, arm=arm)]))
        text = f"30 examples with {word}: recall {mean:.2f}; the trajectory finds {_signed(difference)} more."
        findings.append(rankings.reported(difference, text, unit="recall, trajectory minus ranking", name=arm))
    for energy in sorted({row["energy"] for row in plants}):
        rows = rows_where(plants, energy=energy)
        trajectory, gradients = (mean_interval([row["recall"][way] for row in rows]) for way in ("trajectory", "gradients"))
        text = (
            f"Patch with {energy:g} times the energy of all other pixels: recall {_interval(trajectory)} from the trajectory (lr λ / 2: "
            f"{_ratios(rows)}), {_interval(gradients)} from the gradients after the warm-up."
        )
        findings.append(strength.reported(trajectory, text, unit="recall", name=f"energy {energy:g}"))
    return tuple(findings)


def _opposed(claim: Claim, rows: Sequence[Row], bound: float) -> list[Finding]:
    """Both measures against their bound; below it where it is the bound of quiet."""
    findings = []
    for name, column in (("cancellation", "cancellation"), ("swaps", "flips")):
        interval = _over_seeds(rows, column)
        what = "median cancellation" if name == "cancellation" else "share of steps after which the groups swap"
        text = f"{_place(rows[0]['arm'])}: {what} {_interval(interval)} (lr λ / 2 over the run: {_ratios(rows)})."
        silent = [row for row in rows if row["arm"] == "oscillating" and (row["rises"] < RISES or row["peak"] > PEAK)]
        if silent or not all(row["converged"] for row in rows):
            why = (
                f"In {len(silent)} of {len(rows)} seeds no rate oscillated without divergence."
                if silent
                else "A sharpness had not converged."
            )
            estimate, low, high = interval
            findings.append(claim.judged("undecided", f"{text} {why}", name=name, estimate=estimate, low=low, high=high))
        elif bound == QUIET:
            findings.append(claim.below(interval, bound, text, name=name))
        else:
            findings.append(claim.above(interval, bound, text, name=name))
    return findings


def _recalled(claim: Claim, rows: Sequence[Row], way: str) -> Finding:
    estimate, low, high = mean_interval([row["recall"][way] for row in rows])
    verdict: Verdict = "replicated" if low >= RECALL else "not replicated" if high < RECALL else "undecided"
    each = ", ".join(f"{row['recall'][way]:.2f}" for row in rows)
    where = f"trajectory at lr = 2 / sharpness (lr λ / 2: {_ratios(rows)})" if way == "trajectory" else "gradients after the warm-up"
    text = f"Recall of the planted examples among 30, from the {where}: {_interval((estimate, low, high))}; by seed {each}."
    return claim.judged(verdict, text, estimate=estimate, low=low, high=high, unit="recall", name=way)


def _place(arm: str) -> str:
    factor = ARMS[arm]
    if factor is None:
        return "At the first rate that oscillates"
    return "At lr = 2 / sharpness" if factor == 1 else f"At {factor:g} times 2 / sharpness"


def _interval(interval: Interval) -> str:
    return f"{interval[0]:.2f} ({interval[1]:.2f} to {interval[2]:.2f})"


def _signed(interval: Interval) -> str:
    return f"{interval[0]:+.2f} ({interval[1]:+.2f} to {interval[2]:+.2f})"


def _ratios(rows: Sequence[Row]) -> str:
    """Range over the run, the first steps left out, and over seeds."""
    values = [value for row in rows for value in row["ratios"][1:]]
    return f"{min(values):.2f} to {max(values):.2f}"


def _notes(runs: Sequence[Row], plants: Sequence[Row]) -> tuple[str, ...]:
    edge, oscillating = (rows_where(runs, arm=arm) for arm in ("edge", "oscillating"))
    at_edge = (*edge, *plants)
    return (
        f"Steps in which the mean loss rises, by seed: {_each(edge, 'rises')} at lr = 2 / sharpness, {_each(oscillating, 'rises')} at the "
        f"first rate that oscillates ({_each(oscillating, 'factor')} times as large). There the two groups of 2 % carry "
        f"{_interval(_over_seeds(oscillating, 'extreme share'))} of all rise and fall in the most volatile steps.",
        f"Over all steps of these runs the groups swap after {_interval(_over_seeds(oscillating, 'all flips'))}, which says little: look "
        "at the volatile ones. Noise in the losses swaps as well, but an oscillation also comes back at the step after (correlation of "
        f"changes two steps apart: {_interval(_over_seeds(oscillating, 'echo'))}).",
        f"In {sum(row['peak'] > PEAK for row in at_edge)} of {len(at_edge)} runs at lr = 2 / sharpness the mean loss rose to more than "
        "twice its first value: divergence, another thing than opposition.",
        "Sharpness moves while one trains: a rate that is at the edge at one step is below or above it at others. Measure it where you "
        "are.",
    )


def _each(rows: Sequence[Row], column: str) -> str:
    return ", ".join(f"{row[column]:g}" for row in rows)


def _tables(runs: Sequence[Row], plants: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    def line(row: Row, name: str) -> dict[str, Any]:
        return {
            "seed": row["seed"],
            name: row[name],
            "lr": round(row["lr"], 3),
            f"lr λ / 2 every {EVERY} steps": ", ".join(f"{value:.2f}" for value in row["ratios"]),
            "steps with rising loss": row["rises"],
            "median cancellation": round(row["cancellation"], 3),
            "swaps": round(row["flips"], 2),
            "swaps, all steps": round(row["all flips"], 2),
            "echo": round(row["echo"], 2),
        }

    def classes(counts: Sequence[int]) -> str:
        return ", ".join(f"{k} x {counts[k]}" for k in np.argsort(-np.asarray(counts), kind="stable") if counts[k])

    return {
        "Runs": [line(row, "arm") | {"times 2 / sharpness": row["factor"]} for row in runs],
        "Who they are": [
            {
                "seed": row["seed"],
                "arm": row["arm"],
                "step": row["step"],
                "rising": classes(row["labels"]["rising"]),
                "falling": classes(row["labels"]["falling"]),
                "p": f"{row['p']:.2g}",
                "sharpness": round(row["sharpness"], 3),
                "without them": round(row["sharpness without"], 3),
                "without random ones": round(row["sharpness without random"], 3),
            }
            for row in runs
            if "labels" in row
        ],
        "Planted patches: recall among 30": [
            line(row, "energy") | {f"recall, {name}": round(value, 2) for name, value in row["recall"].items()} for row in plants
        ],
    }


def _figure(runs: Sequence[Row]) -> Figure:
    """Left: the losses of two groups around the most volatile step of a seed. Right: both measures, per learning rate."""
    from counterpoise.report import _plots as plots

    width, height, top = plots.WIDTH, 320, 72
    window = rows_where(runs, arm="oscillating")[0]["window"]
    size = round(K * EXAMPLES)
    arms = {"oscillating": "oscillating", "edge": "2 / sharpness", "half": "half of it"}
    with plots.style():
        fig = plots.figure(width, height)
        left = plots.axes(fig, 56, 48, 300, height - top - 48)
        for name, color, marker, dashes, word, x in (
            ("rising", plots.RED, "o", "-", f"● {size} digits", 56),
            ("falling", plots.BLUE, "s", "-", f"■ {size} others", 150),
            ("all", plots.INK, "", "--", "- - all 1,000", 254),
        ):
            left.plot(window["step"], window[name], color=color, marker=marker, ms=3.5, lw=1.2, ls=dashes)
            fig.text(x / width, 1 - 52 / height, word, color=color, va="center")
        left.set_xlabel("step")
        left.set_ylabel("loss")
        left.set_ylim(bottom=0)
        for x, column, word in ((496, "cancellation", "cancellation"), (624, "flips", "swaps")):
            ax = plots.axes(fig, x, 48, 100, height - top - 48)
            plots.plain_rows(ax, len(arms))
            ax.set_xlim(-0.06, 1.06)
            ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            ax.set_xlabel(word)
            for at, (arm, name) in enumerate(arms.items()):
                values = [row[column] for row in rows_where(runs, arm=arm)]
                color = plots.BLUE if arm == "oscillating" else plots.GRAY
                if x == 496:
                    plots.row_text(fig, ax, at, 388, name)
                ax.plot(values, [at] * len(values), marker="|", ms=13, mew=1.3, color=color, ls="none")
                ax.plot(np.mean(values), at, marker="o", ms=9, color=color)
        fig.text(
            10 / width, 1 - 20 / height, "Where training oscillates, two small groups of digits take turns", va="center", weight="bold"
        )
        fig.text(388 / width, 1 - 52 / height, "by learning rate   ● mean   ❙ seeds", va="center", color=plots.MUTED)
    return fig
