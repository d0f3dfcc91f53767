"""Hessian alignment (Hemati, Zhang, Estiri, Chen 2023, arXiv:2308.11778): domains that agree at the head do not share a shortcut.

The claim that is tested again is the one about a shortcut whose strength differs between domains: with the penalty a network gives up the
color of colored digits, which predicts the label better than the shape does in both training domains and is reversed in the test domain.
Protocol of the authors' script for colored digits on the digits of scikit-learn: two training domains, a perceptron, full batches, a
penalty that grows by a factor of 9e4 on the way, with the loss (decay included) divided by it. Arms: no penalty; the penalty with Hessian
times gradient; with the exact diagonal of the Hessian, the limit of the paper's Hutchinson estimate; the part with the gradient alone; and,
as what could be reached, the same network without colors.

To know when reading: a quarter of the labels is wrong on purpose, so no honest classifier gets above 0.75, and one that ignores the
color has 0.75 in every domain. The factor is the authors', who took it from the colored digits of invariant risk minimization, the step
at which it sets in comes a little earlier, and nothing was tuned here. The numbers of the paper's own tables (DomainBed) are not tested:
they need photographs and weeks of computing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from counterpoise._seeding import generator, seed_integer
from counterpoise._stats import mean_interval

from ._types import Claim, Finding, Replication, Verdict
from ._work import Work, paired, rows_where

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CLAIMS", "SLUG", "run"]

SLUG = "hessian-alignment"

SIZES, DISAGREE = (600, 600, 597), (0.2, 0.1, 0.9)  # images of each domain, and the share whose color is not that of the label
FLIPPED = 0.25  # labels that are wrong
HIDDEN, RATE, DECAY = 128, 5e-4, 1.1e-3
STEPS, START, WEIGHT = 401, 150, 9e4
QUICK_STEPS, QUICK_START = 40, 20
GAIN, STILL_LEARNS, CHANCE, BEST = 0.15, 0.6, 0.5, 0.75
EXACT, PROBES, STANDARD_ERRORS = 1e-10, 30_000, 3.0

# arm -> options of the loss; alpha and beta are 1 in the authors' script, which lets the gradient flow through the means
ARMS: dict[str, dict[str, Any]] = {
    "erm": {"alpha": 0.0, "beta": 0.0},
    "hgp": {"method": "hgp", "detach_mean": False},
    "diagonal": {"method": "diagonal", "detach_mean": False},
    "gradient": {"alpha": 0.0, "detach_mean": False},
    "hgp, fixed mean": {"method": "hgp", "detach_mean": True},
    "gray": {"alpha": 0.0, "beta": 0.0},
}
NAMES = {
    "erm": "no penalty",
    "hgp": "Hessian times gradient",
    "diagonal": "diagonal of the Hessian",
    "gradient": "gradient alone",
    "hgp, fixed mean": "Hessian times gradient, fixed mean",
    "gray": "no penalty, no colors",
}

_CRITERION = (
    f"accuracy under reversed colors at least {GAIN} above that without a penalty on average, the 95 % interval of the difference (t, over "
    f"seeds) above 0, and accuracy in the training domains at least {STILL_LEARNS}"
)
CLAIMS = (
    Claim("hgp", "Aligning gradients and Hessian-gradient products gets a network off a shortcut.", _CRITERION),
    Claim("diagonal", "Aligning gradients and Hessian diagonals gets a network off a shortcut.", _CRITERION),
    Claim(
        "closed-form",
        "For a linear head all of it has a closed form.",
        f"closed form, double backward and whole Hessians agree to {EXACT:g} in value and gradients (float64), and {PROBES:g} Hutchinson "
        f"probes lie within {STANDARD_ERRORS:g} standard errors of the exact diagonal",
    ),
    Claim("ablation", "The Hessian adds to aligning the gradient alone."),
    Claim("mean", "Whether gradients flow through the mean."),
    Claim("spectral", "The penalty brings Hessians together in the spectral norm, which the theory is about."),
    Claim("selection", "What it costs in the training domains."),
)

SEEDS, QUICK_SEEDS = tuple(range(5)), (0, 1)

Row = Mapping[str, Any]
Interval = tuple[float, float, float]


def run(
    *, seeds: Sequence[int] | None = None, quick: bool = False, data_dir: str | Path | None = None, work: Work | None = None
) -> Replication:
    """All arms with all seeds, and the identities once. The digits come with scikit-learn: no ``data_dir``."""
    seeds = tuple(seeds if seeds is not None else QUICK_SEEDS if quick else SEEDS)
    work = work or Work()
    length = {"steps": QUICK_STEPS, "start": QUICK_START} if quick else {"steps": STEPS, "start": START}
    rows = work.map(colored_digits, [{"arm": arm, "seed": seed} | length for seed in seeds for arm in ARMS])
    exact = work.map(identities, [{"seed": 0, "n_classes": n_classes} for n_classes in (1, 3)])
    return Replication(
        slug=SLUG,
        claims=CLAIMS,
        findings=_findings(rows, exact),
        notes=_notes(rows),
        tables=_tables(rows),
        figure=_figure(rows),
        seeds=seeds,
        quick=quick,
    )


# ---- colored digits ------------------------------------------------------------------------------------------------------------------


def problem(seed: int) -> list[tuple[Tensor, Tensor]]:
    """Images (n, 2, 64), one channel of which is empty, and labels (n,), of the two training domains and the test domain."""
    from sklearn.datasets import load_digits

    X, digit = load_digits(return_X_y=True)
    rng = generator(seed, SLUG, "data")
    order = rng.permutation(len(X))[: sum(SIZES)]
    domains = []
    for rows, disagree in zip(np.split(order, np.cumsum(SIZES)[:-1]), DISAGREE, strict=True):
        label = (digit[rows] < 5) ^ (rng.random(len(rows)) < FLIPPED)
        color = label ^ (rng.random(len(rows)) < disagree)
        images = np.zeros((len(rows), 2, X.shape[1]), dtype=np.float32)
        images[np.arange(len(rows)), color.astype(int)] = X[rows] / 16
        domains.append((torch.from_numpy(images), torch.from_numpy(label.astype(np.int64))))
    return domains


def colored_digits(arm: str, seed: int, steps: int, start: int) -> dict[str, Any]:
    """Train one arm; accuracies at the end, and how far the two training domains are apart at the head."""
    from counterpoise.diagnostics import head_alignment
    from counterpoise.losses import HessianAlignmentLoss

    domains = problem(seed)
    if arm == "gray":
        domains = [(images.sum(dim=1, keepdim=True).expand(-1, 2, -1) / 2, labels) for images, labels in domains]
    inputs = [images.flatten(1) for images, _ in domains]
    labels = [label for _, label in domains]
    body, head = _network(seed, inputs[0].shape[1])
    parameters = [*body.parameters(), *head.parameters()]
    options: dict[str, Any] = {"alpha": 1.0, "beta": 1.0, "anneal": (start, WEIGHT)} | ARMS[arm]
    aligns = options["alpha"] + options["beta"] > 0
    if not aligns:
        options["anneal"] = (0, 1.0)
    loss = HessianAlignmentLoss(head, **options)
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    x, y = torch.cat(inputs[:2]), torch.cat(labels[:2])
    domain = torch.arange(2).repeat_interleave(torch.tensor(SIZES[:2]))
    path = []
    for step in range(steps):
        decay = DECAY * torch.stack([p.square().sum() for p in parameters]).sum()
        value = loss(body(x), y, domain) + (decay / WEIGHT if aligns and step >= start else decay)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if step % 50 == 0:
            path.append({"step": step, "test": _accuracy(body, head, inputs[2], labels[2])})
    with torch.no_grad():
        apart = head_alignment(body(x), y, domain, head)
    return {
        "test": _accuracy(body, head, inputs[2], labels[2]),
        "train": float(np.mean([_accuracy(body, head, inputs[e], labels[e]) for e in (0, 1)])),
        "gradient distance": float(apart.gradient_distance[0, 1]),
        "hessian distance": float(apart.hessian_spectral[0, 1]),
        "hessian norm": float(apart.hessian_norm.max()),
        "path": path,
    }


def _network(seed: int, width: int) -> tuple[nn.Sequential, nn.Linear]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_integer(seed, SLUG, "net"))
        layers = [nn.Linear(width, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 1)]
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU()), layers[2]


def _accuracy(body: nn.Module, head: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float(((head(body(inputs))[:, 0] > 0) == (labels == 1)).double().mean())


# ---- identities ----------------------------------------------------------------------------------------------------------------------


def identities(seed: int, n_classes: int) -> dict[str, Any]:
    """Largest differences between the closed form, two derivatives in a row, and whole Hessians; and the errors of the probes."""
    from counterpoise.losses import HessianAlignmentLoss
    from counterpoise.losses._head_curvature import LinearHead, arrange

    source = torch.Generator().manual_seed(seed_integer(seed, SLUG, "identities", n_classes))
    features = torch.randn(40, 5, generator=source, dtype=torch.float64)
    target = torch.randint(max(2, n_classes), (40,), generator=source)
    domain = torch.arange(40) % 3
    head = nn.Linear(5, n_classes).double()
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=source, dtype=torch.float64)

    def with_gradients(value: Tensor, z: Tensor) -> list[Tensor]:
        return [value.detach(), *torch.autograd.grad(value, [z, *head.parameters()])]

    found: dict[str, list[list[Tensor]]] = {"hgp": [], "diagonal": []}
    for method, values in found.items():
        for module in (head, nn.Sequential(head))[: 2 if method == "hgp" else 1]:
            z = features.clone().requires_grad_()
            values.append(with_gradients(HessianAlignmentLoss(module, method, 1.0, 1.0, detach_mean=False)(z, target, domain), z))  # type: ignore[arg-type]
        z = features.clone().requires_grad_()
        values.append(with_gradients(_written_out(head, method, z, target, domain), z))
    error = max(
        float((a - b).abs().max()) for values in found.values() for other in values[1:] for a, b in zip(values[0], other, strict=True)
    )
    with torch.no_grad():
        closed = LinearHead(head, features, target, arrange(domain, 40, features.device))
        unit = torch.eye(n_classes * 6, dtype=torch.float64).view(-1, 1, n_classes, 6)
        H = closed.times(unit).flatten(2).movedim(0, 1)
        exact = closed.diagonal().flatten(1)
        deviation = (H.square().sum(dim=2) - exact.square()).sqrt() / PROBES**0.5
        estimate = HessianAlignmentLoss(head, "hutchinson", n_probes=PROBES)._diagonal(closed, closed.gradient()).flatten(1)
    return {"error": error, "standard errors": float(((estimate - exact) / deviation).abs().max())}


def _written_out(head: nn.Linear, method: str, features: Tensor, target: Tensor, domain: Tensor) -> Tensor:
    """The loss with alpha = beta = 1 from whole Hessians."""
    theta = torch.cat([head.weight.flatten(), head.bias])

    def losses(theta: Tensor) -> Tensor:
        logits = features @ theta[: head.weight.numel()].view_as(head.weight).T + theta[head.weight.numel() :]
        if logits.shape[1] == 1:
            each = nn.functional.binary_cross_entropy_with_logits(logits[:, 0], target.double(), reduction="none")
        else:
            each = nn.functional.cross_entropy(logits, target, reduction="none")
        return torch.stack([each[domain == e].mean() for e in range(3)])

    g, H = torch.func.jacrev(losses)(theta), torch.func.hessian(losses)(theta)
    if method == "hgp":
        h, h_mean = torch.einsum("eij,ej->ei", H, g), H.mean(0) @ g.mean(0)
    else:
        h, h_mean = H.diagonal(dim1=1, dim2=2), H.mean(0).diagonal()
    penalty = (h - h_mean).square().sum(dim=1) + (g - g.mean(0)).square().sum(dim=1)
    value: Tensor = (losses(theta) + penalty).mean()
    return value


# ---- what it says ------------------------------------------------------------------------------------------------------------------------


def verdict_of_gain(gain: Interval, train: float) -> Verdict:
    """Of the criterion of both methods."""
    estimate, low, high = gain
    if estimate >= GAIN and low > 0 and train >= STILL_LEARNS:
        return "replicated"
    return "not replicated" if high < GAIN or train < STILL_LEARNS else "undecided"


def _findings(rows: Sequence[Row], exact: Sequence[Row]) -> tuple[Finding, ...]:
    hgp, diagonal, closed, ablation, mean, spectral, selection = CLAIMS
    error, probes = max(row["error"] for row in exact), max(row["standard errors"] for row in exact)
    return (
        *(_gain(claim, rows) for claim in (hgp, diagonal)),
        closed.holds(
            error < EXACT and probes < STANDARD_ERRORS,
            f"Largest difference of a value or a gradient {error:.1e}; the worst entry of a diagonal from {PROBES:,} probes is off by "
            f"{probes:.2f} standard errors (one and three outputs, three domains).",
            estimate=error,
            unit="largest difference",
        ),
        *(
            ablation.reported(
                mean_interval(paired(rows, "test", arm, "gradient")),
                f"Reversed colors, {NAMES[arm]} minus {NAMES['gradient']}: {_signed(rows, 'test', arm, 'gradient')}.",
                name=NAMES[arm],
                unit="accuracy",
            )
            for arm in ("hgp", "diagonal")
        ),
        ablation.reported(
            mean_interval(paired(rows, "test", "gradient", "erm")),
            f"Reversed colors, {NAMES['gradient']} minus {NAMES['erm']}: {_signed(rows, 'test', 'gradient', 'erm')}.",
            name=NAMES["gradient"],
            unit="accuracy",
        ),
        mean.reported(
            mean_interval(paired(rows, "test", "hgp, fixed mean", "hgp")),
            f"Hessian times gradient with a fixed mean minus without: {_signed(rows, 'test', 'hgp, fixed mean', 'hgp')}. (For the other "
            "penalties the two are the same.)",
            unit="accuracy",
        ),
        spectral.reported(
            None,
            "Spectral norm of the difference of the two training domains' Hessians at the end: "
            + ", ".join(f"{NAMES[arm]} {_mean(rows, arm, 'hessian distance'):.2g}" for arm in ARMS if arm != "gray")
            + ".",
        ),
        selection.reported(
            None,
            "Accuracy in the training domains: "
            + ", ".join(f"{NAMES[arm]} {_mean(rows, arm, 'train'):.3f}" for arm in ARMS)
            + f". The highest of those with colors: {NAMES[_best_in_training(rows)]}.",
        ),
    )


def _gain(claim: Claim, rows: Sequence[Row]) -> Finding:
    gain = mean_interval(paired(rows, "test", claim.key, "erm"))
    train = _mean(rows, claim.key, "train")
    return claim.judged(
        verdict_of_gain(gain, train),
        f"Reversed colors: {_spread(rows, claim.key, 'test')} against {_spread(rows, 'erm', 'test')} without a penalty, a difference of "
        f"{_signed(rows, 'test', claim.key, 'erm')}; training domains {_spread(rows, claim.key, 'train')}. Best possible {BEST}; without "
        f"colors {_spread(rows, 'gray', 'test')}.",
        estimate=gain[0],
        low=gain[1],
        high=gain[2],
        unit="accuracy, difference to no penalty",
    )


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    spread = max(float(np.ptp([row["test"] for row in rows_where(rows, arm=arm)])) for arm in ("hgp", "diagonal", "gradient"))
    with_penalty = [_mean(rows, arm, "train") for arm in ("hgp", "diagonal", "gradient")]
    cost = _mean(rows, "erm", "train") - max(with_penalty)
    price = f"Every penalty costs accuracy in the training domains, at least {cost:.2f}, where the shortcut is real. " if cost > 0 else ""
    added = {arm: mean_interval(paired(rows, "test", arm, "gradient")) for arm in ("hgp", "diagonal")}
    found = "; ".join(
        f"{NAMES[arm]} {estimate:+.3f} ({'more' if low > 0 else 'less' if high < 0 else 'not distinguishable from nothing'})"
        for arm, (estimate, low, high) in added.items()
    )
    return (
        f"What the Hessian adds to the gradient alone, under reversed colors: {found}.",
        _distance_left(rows),
        f"Accuracies under reversed colors differ between seeds by up to {spread:.2f}.",
        f"{price}Data from the training domains alone cannot say when to stop, or how large the penalty should be.",
        "The authors' scripts stop the gradient at the means for photographs and not for digits. For the gradient and the diagonal that is "
        "the same penalty, since their mean is the mean of what is compared with it; for Hessian times gradient it is another one.",
        "Classes are equally frequent in all domains here. Where they are not, gradients differ for a good reason and aligning them harms: "
        "look at head_alignment first.",
    )


def _distance_left(rows: Sequence[Row]) -> str:
    """How much of the shortcut is still in use."""
    gray = _mean(rows, "gray", "test")
    worse = [NAMES[arm] for arm in ("hgp", "diagonal", "gradient") if _mean(rows, arm, "test") < CHANCE]
    below = f" Below chance, so still led by the color: {', '.join(worse)}." if worse else ""
    best = max(_mean(rows, arm, "test") for arm in ("hgp", "diagonal", "gradient"))
    return f"The best penalty has {best:.3f} under reversed colors where the network without colors has {gray:.3f}.{below}"


def _best_in_training(rows: Sequence[Row]) -> str:
    return max((arm for arm in ARMS if arm != "gray"), key=lambda arm: _mean(rows, arm, "train"))


def _tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    arms = [
        {
            "arm": NAMES[arm],
            "reversed colors": _spread(rows, arm, "test"),
            "training domains": _spread(rows, arm, "train"),
            "difference to no penalty": _signed(rows, "test", arm, "erm") if arm != "erm" else "",
            "gradients apart": f"{_mean(rows, arm, 'gradient distance'):.2g}",
            "Hessians apart": f"{_mean(rows, arm, 'hessian distance'):.2g}",
        }
        for arm in ARMS
    ]
    seeds = [
        {"seed": seed} | {NAMES[arm]: f"{rows_where(rows, arm=arm, seed=seed)[0]['test']:.3f}" for arm in ARMS}
        for seed in sorted({row["seed"] for row in rows})
    ]
    path = [
        {"step": look["step"]}
        | {NAMES[arm]: f"{np.mean([row['path'][k]['test'] for row in rows_where(rows, arm=arm)]):.3f}" for arm in ARMS}
        for k, look in enumerate(rows[0]["path"])
    ]
    return {
        "Accuracy at the last step, mean and standard deviation over seeds": arms,
        "Accuracy under reversed colors by seed": seeds,
        "Accuracy under reversed colors while training": path,
    }


def _mean(rows: Sequence[Row], arm: str, value: str) -> float:
    return float(np.mean([row[value] for row in rows_where(rows, arm=arm)]))


def _spread(rows: Sequence[Row], arm: str, value: str) -> str:
    values = [row[value] for row in rows_where(rows, arm=arm)]
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.3f}"


def _signed(rows: Sequence[Row], value: str, arm: str, baseline: str) -> str:
    estimate, low, high = mean_interval(paired(rows, value, arm, baseline))
    return f"{estimate:+.3f} ({low:+.3f} to {high:+.3f})"


def _figure(rows: Sequence[Row]) -> Figure:
    """One line per arm: accuracy of every seed in the training domains and under reversed colors."""
    from counterpoise.report import _plots as plots

    row_height, top, bottom, left, right = 46, 84, 48, 262, 40
    height = row_height * len(ARMS) + top + bottom
    with plots.style():
        fig = plots.figure(plots.WIDTH, height)
        ax = plots.axes(fig, left, bottom, plots.WIDTH - left - right, row_height * len(ARMS))
        plots.plain_rows(ax, len(ARMS))
        plots.rules_between(ax, len(ARMS))
        ax.set_xlim(0.0, 1.0)
        ax.set_xlabel("accuracy")
        for x, word in ((CHANCE, "chance"), (BEST, "best without color")):
            ax.axvline(x, color=plots.RULE, lw=1.2, ls=(0, (4, 3)), zorder=0)
            ax.annotate(word, (x, 1), (0, 4), xycoords=ax.get_xaxis_transform(), textcoords="offset points", ha="center", color=plots.MUTED,
                        fontsize=plots.TEXT - 1.5)  # fmt: skip
        for place, arm in enumerate(ARMS):
            found = rows_where(rows, arm=arm)
            for value, y, color, marker in (("test", 0.12, plots.BLUE, "o"), ("train", -0.22, plots.GRAY, "D")):
                values = [row[value] for row in found]
                ax.plot(values, [place + y] * len(values), ls="none", marker=marker, ms=6, mfc="none", mec=color, alpha=0.8)
                ax.plot(np.mean(values), place + y, marker=marker, ms=9, color=color, mec=plots.PAPER, ls="none", zorder=3)
            fig.text(10 / plots.WIDTH, (bottom + row_height * (len(ARMS) - 0.5 - place)) / height, NAMES[arm], va="center")
        fig.text(10 / plots.WIDTH, 1 - 14 / height, "Digits whose color is a shortcut", va="center", weight="bold")
        x = 10.0
        for sign, color, word in (("●", plots.BLUE, "colors reversed (test)"), ("◆", plots.GRAY, "training domains")):
            fig.text(x / plots.WIDTH, 1 - 38 / height, sign, va="center", color=color)
            fig.text((x + 16) / plots.WIDTH, 1 - 38 / height, word, va="center", color=plots.MUTED)
            x += 40 + 6.5 * len(word)
        fig.text(x / plots.WIDTH, 1 - 38 / height, "filled: mean over seeds", va="center", color=plots.MUTED)
        return fig
