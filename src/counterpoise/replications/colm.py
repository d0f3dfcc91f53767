r"""CoLM (Nguyen et al. 2025, arXiv:2407.19580): half of every pool, chosen by gradients, in place of the whole pool.

The paper fine-tunes language models on mixtures of sources and reports that the chosen half beats random halves and batches two and four
times as large. By its ablation, keeping small sources whole brings about 3 points of accuracy, and comparing steps of Adam in place of
gradients 1.5. Here a mixture is small enough to be trained on many times, and every part of the method is an arm of its own.

*Data.* The 8 x 8 digits that come with scikit-learn, as four sources: as they are, inverted, transposed and mirrored, with 700, 300, 60 and
30 training rows. The last two are small (below the mean size, 272.5). The other 707 digits, in all four forms, are the test; what counts is
the mean of the four accuracies. A 64-64-10 ReLU network, Adam with 2e-3, 400 steps; in each a random pool of 64, the same for all arms, of
which 32 are trained on.

*Features.* The exact gradient at the last layer (650 numbers), compared in l1 without leaving out coordinates. As in the released code, one
arm sees it through a single direction z, drawn once for the whole training.

*An identity.* With one z for all examples, and without a history of Adam, all features lie on one line. The medoids are then those of the
numbers :math:`\langle g_i, z \rangle`, whatever the layer's dimension.

To know when reading: this is a mixture of four views of one task, trained from scratch; nothing is said about language models. A gain of
one part is judged against its size in the paper, too: "not replicated" means that the interval excludes a gain as large as the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
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

SLUG = "colm"

SOURCES, SIZES = ("original", "inverted", "transposed", "mirrored"), (700, 300, 60, 30)
SMALL = (2, 3)  # below the mean size
HIDDEN, CLASSES, RATE = 64, 10, 2e-3
POOL, BUDGET, STEPS = 64, 32, 400

COLM, ONE_Z, NO_ADAM = "CoLM", "CoLM, one z", "CoLM without Adam"
PLAIN, KEEP, RANDOM, WHOLE = "facility location", "keep small + random", "random", "whole pool"
ARMS = (RANDOM, WHOLE, PLAIN, KEEP, NO_ADAM, COLM, ONE_Z)

PAPERS_GAIN = {"small": 0.03, "adam": 0.015}  # of the paper's ablation, in accuracy
LINE_POOLS = 20  # in which medoids on a line are compared
TIE = 1e-9  # of the value: a difference in gain that counts as none

CLAIMS = (
    Claim("random", "A coreset of the pool is better to train on than a random part.", f"{COLM} minus {RANDOM}: 95 % interval above 0"),
    Claim("larger", "It is better than a batch twice as large.", f"{COLM} minus {WHOLE} of {POOL}: 95 % interval above 0"),
    Claim("kept", "Small sources are never dropped.", f"{COLM}: no step in which a small source that is in the pool has no choice"),
    Claim(
        "missed",
        "Coresets by gradient alone miss small sources.",
        f"steps in which {PLAIN} drops a small source minus those of {RANDOM}: 95 % interval above 0",
    ),
    Claim(
        "small",
        "Keeping small sources and choosing within the others is what makes the coreset better.",
        f"{NO_ADAM} minus {PLAIN}: 95 % interval above 0; not replicated if it is below {PAPERS_GAIN['small']:g}, the paper's gain",
    ),
    Claim(
        "adam",
        "Comparing steps of Adam is better than comparing gradients.",
        f"{COLM} minus {NO_ADAM}: 95 % interval above 0; not replicated if it is below {PAPERS_GAIN['adam']:g}, the paper's gain",
    ),
    Claim(
        "line",
        "With one direction for all examples, medoids in thousands of dimensions are medoids of one number each.",
        f"identical picks in all pools up to ties: each has the largest gain of its turn in both spaces, to {TIE:g} of the value",
    ),
    Claim("medoids", "Beyond keeping small sources, the choice within large ones matters."),
    Claim("one-z", "One random direction is enough to choose by."),
)

SEEDS, QUICK_SEEDS = tuple(range(10)), (0, 1)
QUICK_STEPS, QUICK_LINE_POOLS = 40, 4

Row = Mapping[str, Any]
Interval = tuple[float, float, float]
Array = npt.NDArray[Any]


def run(
    *, seeds: Sequence[int] | None = None, quick: bool = False, data_dir: str | Path | None = None, work: Work | None = None
) -> Replication:
    """All arms for all ``seeds``. The digits come with scikit-learn: ``data_dir`` is not used."""
    seeds = tuple(seeds if seeds is not None else QUICK_SEEDS if quick else SEEDS)
    work = work or Work()
    steps, pools = (QUICK_STEPS, QUICK_LINE_POOLS) if quick else (STEPS, LINE_POOLS)
    trained = work.map(train, [{"seed": seed, "arm": arm, "steps": steps} for seed in seeds for arm in ARMS])
    lines = work.map(on_a_line, [{"seed": seed, "pools": pools} for seed in seeds])
    return Replication(
        slug=SLUG,
        claims=CLAIMS,
        findings=_findings(trained, lines),
        notes=_notes(trained),
        tables=_tables(trained, lines),
        figure=_figure(trained),
        seeds=seeds,
        quick=quick,
    )


# ---- a mixture of four sources ----------------------------------------------------------------------------------------------------------


def train(seed: int, arm: str, steps: int) -> dict[str, Any]:
    """Test accuracy in each source, and the share of steps in which a small source that was in the pool had no choice."""
    import torch
    from torch.nn import functional as F

    check_choice("arm", arm, ARMS)
    data = mixture(seed)
    net = network(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    choose = _chooser(arm, seed)
    rng = generator(seed, SLUG, "pools")  # the same for every arm
    dropped = 0
    for _ in range(steps):
        pool = torch.from_numpy(rng.choice(sum(SIZES), POOL, replace=False))
        sources = data["source"][pool]
        chosen = choose(net, (data["X"][pool], data["y"][pool]), sources)
        left = set(sources[chosen].tolist())
        dropped += any(q in sources and q not in left for q in SMALL)
        rows = pool[chosen]
        optimizer.zero_grad()
        F.cross_entropy(net(data["X"][rows]), data["y"][rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        right = [float((net(X).argmax(dim=1) == data["y_test"]).double().mean()) for X in data["X_test"]]
    return {"mean": float(np.mean(right)), "dropped": dropped / steps} | dict(zip(SOURCES, right, strict=True))


def _chooser(arm: str, seed: int) -> Any:
    """``choose(net, batch, sources)`` -> rows of the pool."""
    import torch

    from counterpoise.data import MiniBatchCoreset
    from counterpoise.diagnostics import gradient_features

    rng = generator(seed, SLUG, "choices")
    if arm == WHOLE:
        return lambda net, batch, sources: torch.arange(POOL)
    if arm == RANDOM:
        return lambda net, batch, sources: torch.from_numpy(rng.permutation(POOL)[:BUDGET])
    if arm == KEEP:
        return lambda net, batch, sources: _kept_and_random(sources.numpy(), rng)
    apart: dict[str, Any] = {} if arm != PLAIN else {"keep_small": None, "per_source": False}
    coreset = MiniBatchCoreset(BUDGET, SIZES, normalize="adam" if arm in (COLM, ONE_Z) else None, generator=seed, **apart)
    # The seed of the direction is the same in every step: one z for the whole training, and its size in the released code.
    how: dict[str, Any] = {"method": "spsa", "generator": seed_integer(seed, SLUG, "z")} if arm == ONE_Z else {}
    return lambda net, batch, sources: coreset(gradient_features(net, losses, batch, "2", **how), sources)


def _kept_and_random(sources: Array, rng: np.random.Generator) -> Tensor:
    import torch

    order = rng.permutation(POOL)
    kept = np.isin(sources[order], SMALL)
    return torch.from_numpy(np.concatenate([order[kept], order[~kept]])[:BUDGET])


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    from torch.nn import functional as F

    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def mixture(seed: int) -> dict[str, Any]:
    """Training rows with their sources, and the test digits in the form of each source."""
    import torch
    from sklearn.datasets import load_digits

    images, y = load_digits(return_X_y=True)
    order = generator(seed, SLUG, "digits").permutation(len(y))
    x = torch.tensor(images[order] / 16, dtype=torch.float32).view(-1, 8, 8)
    labels = torch.tensor(y[order])
    train = sum(SIZES)
    source = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
    forms = torch.stack([x, 1 - x, x.transpose(1, 2), x.flip(2)]).flatten(2)
    return {
        "X": forms[source, torch.arange(train)],
        "y": labels[:train],
        "source": source,
        "X_test": forms[:, train:],
        "y_test": labels[train:],
    }


def network(seed: int) -> nn.Sequential:
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_integer(seed, SLUG, "network"))
        return nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))


# ---- medoids on a line ------------------------------------------------------------------------------------------------------------------


def on_a_line(seed: int, pools: int) -> dict[str, Any]:
    """In how many pools the medoids of features of one direction are those of the numbers behind them; in double precision."""
    import torch

    from counterpoise.data import facility_location
    from counterpoise.diagnostics import gradient_features

    data, net = mixture(seed), network(seed).double()
    rng = generator(seed, SLUG, "line")
    same, equal, rank = 0, 0, 0
    for number in range(pools):
        rows = torch.from_numpy(rng.choice(sum(SIZES), POOL, replace=False))
        batch = data["X"][rows].double(), data["y"][rows]
        z_seed = seed_integer(seed, SLUG, "line", number)
        features = gradient_features(net, losses, batch, "2", method="jvp", generator=z_seed)
        z = torch.randn(features.shape[1], dtype=features.dtype, generator=torch.Generator().manual_seed(z_seed))
        numbers = gradient_features(net, losses, batch, "2") @ z
        rank = max(rank, int(torch.linalg.matrix_rank(features, rtol=TIE)))
        picks = facility_location(numbers[:, None], BUDGET).indices.tolist()
        same += set(picks) == set(facility_location(features, BUDGET).indices.tolist())
        equal += greedy_shortfall(torch.cdist(features, features, p=1).numpy(), picks) < TIE
    return {"identical": same, "equal": equal, "rank": rank}


def greedy_shortfall(distances: Array, picks: Sequence[int]) -> float:
    """By how much the gain of any pick is below the largest one of its turn, relative to the value reached: 0 if greedy could have made
    these picks. (Two examples in the middle of a line of an even number are exactly equally good to begin with.)"""
    similarity = distances.max() - distances
    covered, worst = np.zeros(len(distances)), 0.0
    for pick in picks:
        gains = np.maximum(similarity - covered[:, None], 0.0).sum(axis=0)
        worst = max(worst, float(gains.max() - gains[pick]))
        covered = np.maximum(covered, similarity[:, pick])
    return worst / float(covered.sum())


# ---- what was found ---------------------------------------------------------------------------------------------------------------------


def _findings(trained: Sequence[Row], lines: Sequence[Row]) -> tuple[Finding, ...]:
    claim = {claim.key: claim for claim in CLAIMS}
    dropped = {arm: _average(trained, arm, "dropped") for arm in ARMS}
    missed = _gap(trained, PLAIN, RANDOM, "dropped")
    pools, equal, same = (sum(row[name] for row in lines) for name in ("pools", "equal", "identical"))
    return (
        claim["random"].above(_gap(trained, COLM, RANDOM), 0.0, _said(trained, COLM, RANDOM), unit="accuracy"),
        claim["larger"].above(_gap(trained, COLM, WHOLE), 0.0, _said(trained, COLM, WHOLE), unit="accuracy"),
        claim["kept"].holds(
            all(row["dropped"] == 0 for row in rows_where(trained, arm=COLM)),
            f"{COLM} drops a small source in {dropped[COLM]:.1%} of the steps.",
            estimate=dropped[COLM],
            unit="share of steps",
        ),
        claim["missed"].above(
            missed,
            0.0,
            f"{PLAIN.capitalize()}, which knows no sources, drops a small source in {dropped[PLAIN]:.1%} of the steps, {RANDOM} choice in "
            f"{dropped[RANDOM]:.1%}: {_in(missed)}.",
            unit="share of steps",
        ),
        _gained(claim["small"], trained, NO_ADAM, PLAIN),
        _gained(claim["adam"], trained, COLM, NO_ADAM),
        claim["line"].holds(
            equal == pools,
            f"The medoids of the numbers are medoids of the features in {equal} of {pools} pools (in {same} ties were broken alike, too); "
            f"the rank of the features is at most {max(row['rank'] for row in lines)}.",
            estimate=equal / pools,
            unit="share of pools",
        ),
        claim["medoids"].reported(_gap(trained, COLM, KEEP), _said(trained, COLM, KEEP), unit="accuracy"),
        claim["one-z"].reported(_gap(trained, COLM, ONE_Z), _said(trained, COLM, ONE_Z), name="exact gradients", unit="accuracy"),
        claim["one-z"].reported(_gap(trained, ONE_Z, KEEP), _said(trained, ONE_Z, KEEP), name="chance", unit="accuracy"),
    )


def _gained(claim: Claim, trained: Sequence[Row], arm: str, other: str) -> Finding:
    """A gain: there, or smaller than the paper's, or neither is certain."""
    gap = _gap(trained, arm, other)
    verdict: Verdict = "replicated" if gap[1] > 0 else "not replicated" if gap[2] < PAPERS_GAIN[claim.key] else "undecided"
    numbers = dict(zip(("estimate", "low", "high"), gap, strict=True))
    return claim.judged(verdict, _said(trained, arm, other), **numbers, unit="accuracy")


def _notes(trained: Sequence[Row]) -> tuple[str, ...]:
    plain, rest = _gap(trained, PLAIN, RANDOM), _gap(trained, COLM, PLAIN)
    missed = {arm: _average(trained, arm, "dropped") for arm in (PLAIN, RANDOM)}
    adds = "The rest of the recipe adds to it." if rest[1] > 0 else "The rest of the recipe adds nothing that could be measured."
    fewer = (
        "Examples of small sources are learned last, so that their gradients are large and far from the others: medoids find them."
        if _gap(trained, PLAIN, RANDOM, "dropped")[2] < 0
        else "Medoids are no protection of small sources."
    )
    return (
        f"Plain facility location on raw gradients, without sources, Adam or a rule, minus random choice: {_in(plain)}. All of CoLM minus "
        f"plain facility location: {_in(rest)}. {adds}",
        f"Without any rule, {PLAIN} drops a small source in {missed[PLAIN]:.1%} of the steps, random choice in {missed[RANDOM]:.1%}. "
        f"{fewer}",
        "Keeping small sources and drawing the rest at random, which costs nothing, minus random choice: "
        f"{_in(_gap(trained, KEEP, RANDOM))}.",
        f"A single direction drawn once, as in the released code, minus keeping small sources and drawing at random: "
        f"{_in(_gap(trained, ONE_Z, KEEP))}. Exact gradients of the last layer cost one pass through that layer: prefer them.",
        "Intervals of the many pairs in the table are not adjusted for their number.",
    )


def _tables(trained: Sequence[Row], lines: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    names = {"mean": "mean accuracy"} | {source: source for source in SOURCES} | {"dropped": "small source dropped"}
    pairs = []
    for first, second in combinations(reversed(ARMS), 2):
        mean, low, high = _gap(trained, first, second)
        pairs.append({"arm": first, "minus": second, "mean accuracy": mean, "low": low, "high": high})
    return {
        "Means over seeds": [{"arm": arm} | {name: _average(trained, arm, key) for key, name in names.items()} for arm in ARMS],
        "All pairs, 95 % t intervals": pairs,
        "Runs": [{"seed": row["seed"], "arm": row["arm"]} | {name: row[key] for key, name in names.items()} for row in trained],
        "Medoids on a line": [
            {"seed": row["seed"], "pools": row["pools"], "equal up to ties": row["equal"], "identical": row["identical"]} for row in lines
        ],
    }


def _figure(trained: Sequence[Row]) -> Figure:
    from counterpoise.report import _plots

    shown = sorted((arm for arm in ARMS if arm != RANDOM), key=lambda arm: -_average(trained, arm, "mean"))
    with _plots.style():
        height = 96 + 30 * len(ARMS)
        fig = _plots.figure(_plots.WIDTH, height)

        def place(x: float, y: float, text: str, **looks: Any) -> None:
            fig.text(x / _plots.WIDTH, 1 - y / height, text, va="top", **looks)

        place(8, 12, "Gained over a random half of the pool", weight="bold")
        place(8, 32, "points of accuracy, mean of four sources", color=_plots.MUTED)
        ax = _plots.axes(fig, 172, 56, 250, 30 * len(shown))
        _plots.plain_rows(ax, len(shown))
        _plots.rules_between(ax, len(shown))
        ax.axvline(0, color=_plots.RULE, lw=1, zorder=1)
        for row, arm in enumerate(shown):
            gain = mean_interval([100 * gap for gap in paired(trained, "mean", arm, RANDOM)])
            color = _plots.BLUE if arm == COLM else _plots.GRAY
            if np.isfinite(gain[1]):
                ax.plot(gain[1:], [row, row], color=color, lw=2.4, zorder=2, solid_capstyle="butt")
            ax.plot(gain[0], row, "o", ms=9, color=color, mec=_plots.PAPER, zorder=3)
            _plots.row_text(fig, ax, row, 8, arm, weight="bold" if arm == COLM else "normal")
        ax.set_xlabel("95 % interval over seeds")

        place(470, 12, "A small source was dropped", weight="bold")
        place(470, 32, f"share of steps; line: random, {_average(trained, RANDOM, 'dropped'):.0%}", color=_plots.MUTED)
        ax = _plots.axes(fig, 474, 56, 220, 30 * len(shown))
        _plots.plain_rows(ax, len(shown))
        _plots.rules_between(ax, len(shown))
        most = max(_average(trained, arm, "dropped") for arm in ARMS)
        ax.axvline(_average(trained, RANDOM, "dropped"), color=_plots.INK, lw=1.2, zorder=1)
        for row, arm in enumerate(shown):
            share = _average(trained, arm, "dropped")
            ax.barh(row, share, height=0.5, color=_plots.BLUE if arm == COLM else _plots.GRAY, zorder=2)
            ax.text(share + 0.02 * most, row, f"{share:.0%}", va="center", color=_plots.MUTED)
        ax.set_xlim(0, 1.15 * most or 1)
        ax.set_xticks([])
        return fig


def _gap(trained: Sequence[Row], arm: str, other: str, value: str = "mean") -> Interval:
    return mean_interval(paired(trained, value, arm, other))


def _said(trained: Sequence[Row], arm: str, other: str) -> str:
    first, second = (_average(trained, each, "mean") for each in (arm, other))
    return f"{arm} {first:.3f}, {other} {second:.3f}: {_in(_gap(trained, arm, other))} in mean accuracy."


def _average(rows: Sequence[Row], arm: str, value: str) -> float:
    return float(np.mean([row[value] for row in rows_where(rows, arm=arm)]))


def _in(interval: Interval, form: str = "+.3f") -> str:
    mean, low, high = interval
    return f"{mean:{form}} ({low:{form}} to {high:{form}})"
