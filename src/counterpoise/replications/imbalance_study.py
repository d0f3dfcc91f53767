"""The systematic study of class imbalance (Buda, Maki, Mazurowski 2018, arXiv:1710.05381): which of the oldest cures helps a CNN.

The paper compares over- and under-sampling, two-phase training and prior-corrected decisions on three image sets and concludes that
imbalance hurts, over-sampling to full balance is the best cure and does not overfit, and correcting by the prior is what to do about
accuracy. Here a small CNN learns the 8 x 8 digits of scikit-learn, of which a share mu of the classes is made rho times rarer than the
others, which keep 80 images each. Every arm takes the same number of gradient steps: epochs would favor over-sampling, whose are longer.

To know when reading: the judged intervals treat seeds as independent, as the criteria ask; a seed draws the split, the rare classes, the
first weights and the batches. All seeds draw from the same 1,797 images, so the intervals speak of this data set; the tables also have the
intervals of Nadeau and Bengio, which allow for shared images and are several times as wide. Under-sampling is the paper's: what is thrown
away is thrown away before training, and never seen.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import chain, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._seeding import generator, seed_integer
from counterpoise._stats import bonferroni, mean_interval, nadeau_bengio

from ._types import Claim, Finding, Replication
from ._work import Work, paired, rows_where

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

__all__ = ["CLAIMS", "SLUG", "run"]

SLUG = "imbalance-study"

MAJORITY = 80  # images of a frequent class
STEPS, BATCH, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 400, 64, 0.05, 0.9, 5e-4
SECOND_PHASE, SECOND_RATE = 100, 0.01  # steps on the head alone, and their learning rate
LONGER = 4  # times the steps, to see overfitting
PARTIAL = 4.0  # over-sampling up to this ratio instead of 1
QUICK_STEPS, QUICK_SECOND_PHASE = 40, 15

# (mu, rho, images of a frequent class): the first is the one the claims are judged on. "equal, as few" has as many images as it, balanced.
HARD, MILD, LESS, EQUAL, EQUAL_AS_FEW = "mu 0.5, rho 20", "mu 0.2, rho 20", "mu 0.5, rho 5", "rho 1", "rho 1, as few images"
PROBLEMS = {
    HARD: (0.5, 20.0, MAJORITY),
    MILD: (0.2, 20.0, MAJORITY),
    LESS: (0.5, 5.0, MAJORITY),
    EQUAL: (0.5, 1.0, MAJORITY),
    EQUAL_AS_FEW: (0.5, 1.0, 42),
}
# Which draws are trained on which problem; "over-long" is "over" with LONGER times the steps.
DRAWS = {
    HARD: ("nothing", "over", "over-partial", "over-long", "under", "under-redrawn"),
    MILD: ("nothing", "over", "under"),
    LESS: ("nothing",),
    EQUAL: ("nothing",),
    EQUAL_AS_FEW: ("nothing",),
}
ARMS = {
    "nothing": "nothing",
    "threshold": "prior threshold",
    "over": "over-sampling",
    "over two-phase": "two-phase, from over-sampling",
    "over two-phase threshold": "two-phase, prior threshold",
    "under": "under-sampling",
    "under two-phase": "two-phase, from under-sampling",
}

CLAIMS = (
    Claim("hurts", "Imbalance hurts, the more the larger it is.", "AUC falls from rho 1 to 5 and from 5 to 20: 95 % intervals above 0"),
    Claim("over", "Over-sampling ranks better than doing nothing.", "mu 0.5, rho 20: 95 % interval of the difference in AUC above 0"),
    Claim("under", "Under-sampling ranks worse than over-sampling.", "mu 0.5, rho 20: 95 % interval of the difference in AUC below 0"),
    Claim("threshold", "Correcting by the prior raises accuracy.", "mu 0.5, rho 20: 95 % interval of the difference in accuracy above 0"),
    Claim(
        "overfit",
        "Over-sampling does not make a CNN overfit.",
        f"mu 0.5, rho 20: neither test accuracy nor test loss after {LONGER} times the steps is worse by a 95 % interval that excludes 0",
    ),
    Claim("harm", "Under-sampling against doing nothing, which is the first question a user has."),
    Claim("redrawn", "Under-sampling that keeps other images in every pass, against doing nothing."),
    Claim("full", "Over-sampling should remove the imbalance completely."),
    Claim("two-phase", "Two-phase training against doing nothing, with and without prior threshold."),
    Claim("mild", "The cures where only two of ten classes are rare."),
    Claim("twice", "Over-sampling, and then dividing by the prior of the data nevertheless."),
    Claim("size", "Imbalance or fewer images: against as many images in equal shares."),
)

SEEDS, QUICK_SEEDS = tuple(range(10)), (0, 1)

Row = Mapping[str, Any]
Interval = tuple[float, float, float]
IntArray = npt.NDArray[np.int64]


def run(
    *, seeds: Sequence[int] | None = None, quick: bool = False, data_dir: str | Path | None = None, work: Work | None = None
) -> Replication:
    """All arms for ``seeds``. The digits come with scikit-learn: ``data_dir`` is not used."""
    seeds = tuple(seeds if seeds is not None else QUICK_SEEDS if quick else SEEDS)
    steps, second = (QUICK_STEPS, QUICK_SECOND_PHASE) if quick else (STEPS, SECOND_PHASE)
    tasks = [
        {"problem": problem, "draw": draw, "seed": seed, "steps": steps, "second": second}
        for problem, draws in DRAWS.items()
        for draw in draws
        for seed in seeds
    ]
    rows = _arms((work or Work()).map(_train, tasks))
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


# ---- one training ------------------------------------------------------------------------------------------------------------------------


def _data(problem: str, seed: int) -> tuple[Tensor, IntArray, Tensor, IntArray]:
    """Training images (n, 1, 8, 8) and digits, thinned, and the untouched half for testing."""
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    from counterpoise.datasets import make_imbalanced

    X, y = load_digits(return_X_y=True)
    images = torch.from_numpy(X.reshape(-1, 1, 8, 8) / 16).float()
    train, test = train_test_split(np.arange(len(y)), test_size=0.5, stratify=y, random_state=seed_integer(seed, "split"))
    mu, rho, majority = PROBLEMS[problem]
    train = train[make_imbalanced(y[train], "step", mu, rho, n_max=majority, random_state=seed_integer(seed, "rare"))]
    return images[train], y[train], images[test], y[test]


def _network(seed: int) -> nn.Module:
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_integer(seed, "weights"))
        return nn.Sequential(
            OrderedDict(
                features=nn.Sequential(
                    nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                    nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                    nn.Flatten(), nn.Linear(128, 64), nn.ReLU(),
                ),
                fc=nn.Linear(64, 10),
            )
        )  # fmt: skip


def _drawn(draw: str, y: IntArray, count: int, seed: int) -> tuple[IntArray, npt.NDArray[np.float64]]:
    """(count,) training rows in the order of training, and the class shares that training sees."""
    from counterpoise.data import BalancedClassSampler, RandomUnderSampler

    if draw.startswith("over"):
        ratio = PARTIAL if draw == "over-partial" else 1.0
        over = BalancedClassSampler(y, num_samples=count, ratio=ratio, generator=seed_integer(seed, "over"))
        return np.fromiter(over, dtype=np.int64), over.effective_prior
    if draw == "under-redrawn":
        under = BalancedClassSampler(y, replacement=False, generator=seed_integer(seed, "under"))
        return np.fromiter(islice(chain.from_iterable(repeat(under)), count), dtype=np.int64), under.effective_prior
    rows = np.arange(len(y))
    if draw == "under":
        rows = RandomUnderSampler(random_state=seed_integer(seed, "under")).fit_resample(rows[:, None], y)[0][:, 0]
    rng = generator(seed, "order", draw)
    passes = [rng.permutation(rows) for _ in range(-(-count // len(rows)))]
    return np.concatenate(passes)[:count], np.bincount(y[rows]) / len(rows)


def _train(problem: str, draw: str, seed: int, steps: int, second: int) -> dict[str, Any]:
    """Scores on the test half after phase 1 and, where a set was balanced, after phase 2 on the original distribution."""
    import torch

    from counterpoise.schedules import TwoPhase

    X, y, X_test, y_test = _data(problem, seed)
    shares = np.bincount(y) / len(y)
    network = _network(seed)
    options: dict[str, Any] = {"momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}
    steps = steps * LONGER if draw == "over-long" else steps
    rows, prior = _drawn(draw, y, steps * BATCH, seed)
    _fit(network, X, y, rows, torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, **options))
    result: dict[str, Any] = {"images": len(y), "tested": len(y_test), "phase1": _scores(network, X_test, y_test, prior, shares)}
    if draw in ("over", "under"):
        rows, prior = _drawn("nothing", y, second * BATCH, seed)
        with TwoPhase(network, head="fc", phase2_lr_scale=SECOND_RATE / LEARNING_RATE) as phase2:
            _fit(network, X, y, rows, torch.optim.SGD(phase2.param_groups(LEARNING_RATE), **options))
        result["phase2"] = _scores(network, X_test, y_test, prior, shares)
    return result


def _fit(network: nn.Module, X: Tensor, y: IntArray, rows: IntArray, optimizer: Any) -> None:
    import torch
    from torch.nn import functional as F

    targets = torch.from_numpy(y)
    for start in range(0, len(rows), BATCH):
        batch = torch.from_numpy(rows[start : start + BATCH])
        optimizer.zero_grad()
        loss: Any = F.cross_entropy(network(X[batch]), targets[batch])
        loss.backward()
        optimizer.step()


def _scores(
    network: nn.Module, X: Tensor, y: IntArray, prior: npt.NDArray[np.float64], shares: npt.NDArray[np.float64]
) -> dict[str, float]:
    """``corrected`` is accuracy from the prior that training saw; ``by_data`` from the shares of the data, whatever training saw.

    ``said_rare`` is the share of test images that are taken for a rare class, ``are_rare`` of those that are.
    """
    import torch
    from torch.nn import functional as F

    from counterpoise.decisions import prior_correct
    from counterpoise.metrics import macro_ovr_auc

    with torch.no_grad():
        logits = network(X).double()
    proba = logits.softmax(dim=1)
    rare = shares < shares.max()

    def accuracy(scores: Tensor) -> float:
        return float((scores.argmax(dim=1).numpy() == y).mean())

    return {
        "auc": macro_ovr_auc(y, proba),
        "corrected_auc": macro_ovr_auc(y, prior_correct(proba, prior, input="proba")),
        "accuracy": accuracy(logits),
        "corrected": accuracy(prior_correct(logits, prior)),
        "by_data": accuracy(prior_correct(logits, shares)),
        "loss": float(F.cross_entropy(logits, torch.from_numpy(y))),
        "said_rare": float(rare[logits.argmax(dim=1).numpy()].mean()),
        "are_rare": float(rare[y].mean()),
    }


def _arms(trained: Sequence[Row]) -> list[dict[str, Any]]:
    """One row per problem, seed and arm; a prior threshold is a decision on a network that another arm trained."""
    rows = []
    for one in trained:
        known = {name: one[name] for name in ("problem", "seed", "images", "tested")}
        named = {one["draw"]: one["phase1"]}
        if "phase2" in one:
            named[f"{one['draw']} two-phase"] = one["phase2"]
        for arm, scores in named.items():
            rows.append(known | scores | {"arm": arm})
            decided = "threshold" if arm == "nothing" else f"{arm} threshold"
            rows.append(known | scores | {"arm": decided, "accuracy": scores["corrected"], "auc": scores["corrected_auc"]})
            if arm == "over":
                rows.append(known | scores | {"arm": "over twice", "accuracy": scores["by_data"]})
    return rows


# ---- what it says ------------------------------------------------------------------------------------------------------------------------


def difference(rows: Sequence[Row], metric: str, arm: str, baseline: str = "nothing", problem: str = HARD) -> Interval:
    """(mean, low, high) of arm minus baseline over seeds."""
    return mean_interval(paired(rows_where(rows, problem=problem), metric, arm, baseline))


def between(rows: Sequence[Row], metric: str, problem: str, other: str, arm: str = "nothing") -> Interval:
    """The same arm on ``problem`` minus on ``other``; a seed has the same split and rare classes on both."""
    first, second = ({row["seed"]: row[metric] for row in rows_where(rows, problem=name, arm=arm)} for name in (problem, other))
    return mean_interval([first[seed] - second[seed] for seed in sorted(first)])


def wider(rows: Sequence[Row], metric: str, arm: str, problem: str = HARD) -> Interval:
    """:func:`difference` to nothing with the interval of Nadeau and Bengio, for splits that share images."""
    found = paired(rows_where(rows, problem=problem), metric, arm, "nothing")
    if len(found) < 2:
        return found[0], -np.inf, np.inf
    one = rows_where(rows, problem=problem)[0]
    estimate, se, df = nadeau_bengio(found, one["tested"] / one["images"])
    half = bonferroni(1, df) * float(se)
    return float(estimate), float(estimate) - half, float(estimate) + half


def _findings(rows: Sequence[Row]) -> tuple[Finding, ...]:
    hurts, over, under, threshold, overfit, harm, redrawn, full, two_phase, mild, twice, size = CLAIMS

    def both(arm: str, baseline: str = "nothing", problem: str = HARD) -> str:
        auc, accuracy = (difference(rows, metric, arm, baseline, problem) for metric in ("auc", "accuracy"))
        return f"AUC {_signed(auc)}, accuracy {_signed(accuracy, 3)}"

    longer, loss = (difference(rows, metric, "over-long", "over") for metric in ("accuracy", "loss"))
    falls = {name: between(rows, "auc", *pair) for name, pair in {"rho 1 to 5": (EQUAL, LESS), "rho 5 to 20": (LESS, HARD)}.items()}
    auc = {arm: difference(rows, "auc", arm) for arm in ("over", "under")}
    under_over = difference(rows, "auc", "under", "over")
    decided = difference(rows, "accuracy", "threshold")
    as_few = between(rows, "auc", EQUAL_AS_FEW, HARD)
    return (
        *(hurts.above(fall, 0.0, f"{name}: AUC falls by {_plain(fall)}.", name=name, unit="AUC") for name, fall in falls.items()),
        over.above(auc["over"], 0.0, f"AUC of over-sampling minus nothing: {_signed(auc['over'])}.", unit="AUC"),
        under.below(under_over, 0.0, f"AUC of under-sampling minus over-sampling: {_signed(under_over)}.", unit="AUC"),
        threshold.above(decided, 0.0, f"Accuracy with prior threshold minus without: {_signed(decided, 3)}.", unit="accuracy"),
        overfit.judged(
            "not replicated" if longer[2] < 0 else "replicated",
            f"Accuracy after {LONGER} times the steps minus after the usual number: {_signed(longer, 3)}.",
            **dict(zip(("estimate", "low", "high"), longer, strict=True)),
            name="accuracy",
            unit="accuracy",
        ),
        overfit.judged(
            "not replicated" if loss[1] > 0 else "replicated",
            f"Test loss after {LONGER} times the steps minus after the usual number (positive is worse): {_signed(loss, 3)}.",
            **dict(zip(("estimate", "low", "high"), loss, strict=True)),
            name="loss",
            unit="nats",
        ),
        *(
            harm.reported(
                difference(rows, "accuracy", "under", problem=problem),
                f"{problem}: under-sampling {_word(rows, problem)} doing nothing: {both('under', problem=problem)}.",
                name=problem,
                unit="accuracy",
            )
            for problem in (HARD, MILD)
        ),
        redrawn.reported(
            difference(rows, "accuracy", "under-redrawn"),
            f"Other images in every pass: {both('under-redrawn')}; against fixed ones: {both('under-redrawn', 'under')}.",
            unit="accuracy",
        ),
        full.reported(
            difference(rows, "auc", "over", "over-partial"),
            f"Over-sampling to full balance minus up to a ratio of {PARTIAL:g}: {both('over', 'over-partial')}.",
            unit="AUC",
        ),
        *(
            two_phase.reported(difference(rows, "accuracy", arm), f"{ARMS[arm]}: {both(arm)}.", name=arm, unit="accuracy")
            for arm in ("over two-phase", "over two-phase threshold", "under two-phase")
        ),
        *(
            mild.reported(
                difference(rows, "accuracy", arm, problem=MILD),
                f"{MILD}, {ARMS[arm]}: {both(arm, problem=MILD)}.",
                name=arm,
                unit="accuracy",
            )
            for arm in ("threshold", "over", "over two-phase threshold")
        ),
        twice.reported(
            difference(rows, "accuracy", "over twice", "over"),
            f"Accuracy, divided by the prior of the data minus not: {_signed(difference(rows, 'accuracy', 'over twice', 'over'), 3)}.",
            unit="accuracy",
        ),
        size.reported(
            as_few,
            f"AUC of as many images in equal shares, minus {HARD}: {_signed(as_few)}. "
            f"The 800 images of rho 1 against as few in equal shares: {_signed(between(rows, 'auc', EQUAL, EQUAL_AS_FEW))}.",
            unit="AUC",
        ),
    )


def _word(rows: Sequence[Row], problem: str) -> str:
    found = [difference(rows, metric, "under", problem=problem) for metric in ("auc", "accuracy")]
    if any(high < 0 for _, _, high in found):
        return "IS WORSE THAN" if not any(low > 0 for _, low, _ in found) else "is worse in one way and better in another than"
    return "is better than" if any(low > 0 for _, low, _ in found) else "cannot be told from"


def _signed(interval: Interval, digits: int = 4) -> str:
    estimate, low, high = interval
    return f"{estimate:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def _plain(interval: Interval) -> str:
    estimate, low, high = interval
    return f"{estimate:.4f} ({low:.4f} to {high:.4f})"


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    worse = [problem for problem in (HARD, MILD) if _word(rows, problem).startswith("IS WORSE")]
    auc, accuracy = (difference(rows, metric, "under", problem=MILD) for metric in ("auc", "accuracy"))
    said = (
        f"UNDER-SAMPLING HARMED: worse than doing nothing at {' and at '.join(worse)}. Where two of ten classes are rare it throws away "
        f"most of the other eight: AUC {_signed(auc)}, accuracy {_signed(accuracy, 3)}."
        if worse
        else "Under-sampling was not shown to be worse than doing nothing."
    )
    return (
        said,
        _note_on_drawing(rows),
        "The cheapest cure is the prior threshold, which trains nothing: try it first. It needs the prior that training saw; after full "
        "over-sampling that is uniform, and there is nothing to correct.",
        _note_on_twice(rows),
        _note_on_width(rows),
        "A prior threshold leaves the AUC as it is, since columns are scored as they are; only scores divided by their row sum change it.",
        "The test half is nearly balanced, and accuracy on it is nearly balanced accuracy. Where the rare classes are as rare in use, the "
        "true prior is the one to decide by, and a network that was trained on it needs no correction.",
        "The rising imbalance of the first claim also takes images away; the last claim says how much of the fall that is.",
    )


def _note_on_drawing(rows: Sequence[Row]) -> str:
    redrawn = difference(rows, "accuracy", "under-redrawn", "under")
    gain = f"{_signed(redrawn, 3)} accuracy, {_signed(difference(rows, 'auc', 'under-redrawn', 'under'))} AUC"
    if redrawn[1] > 0:
        return f"The harm of under-sampling is in what is never seen: keeping other images in every pass is worth {gain}."
    return f"Keeping other images in every pass, against throwing the same ones away for good: {gain}."


def _note_on_twice(rows: Sequence[Row]) -> str:
    twice = difference(rows, "accuracy", "over twice", "over")
    own = rows_where(rows, problem=HARD, arm="over")
    said, are = (float(np.mean([row[name] for row in own])) for name in ("said_rare", "are_rare"))
    leaning = f"(after it {said:.0%} of the test images are taken for a rare class, and {are:.0%} are)"
    if twice[1] > 0:
        return (
            "Dividing by the prior of the data after over-sampling corrects twice on paper, and yet raised accuracy here: "
            f"{_signed(twice, 3)}. Equal draws of very few images do not make a network impartial on new ones {leaning}. No formula knows "
            "by how much to shift then: tune it on rows held back."
        )
    return f"Dividing by the prior of the data after over-sampling corrects twice: accuracy {_signed(twice, 3)} {leaning}."


def _note_on_width(rows: Sequence[Row]) -> str:
    """What is left of the differences when splits may not count as independent."""
    named = [(arm, metric) for arm in ARMS if arm != "nothing" for metric in ("accuracy", "auc")]
    seen = [(arm, metric) for arm, metric in named if _excludes_0(difference(rows, metric, arm))]
    kept = [f"{_METRICS[metric]} of {ARMS[arm]}" for arm, metric in seen if _excludes_0(wider(rows, metric, arm))]
    return (
        f"All splits are of the same 1,797 images. Allowing for that (Nadeau and Bengio), {len(kept)} of the {len(seen)} differences to "
        f"doing nothing that exclude 0 at {HARD} still do" + (f": {'; '.join(kept)}." if kept else ".")
    )


def _excludes_0(interval: Interval) -> bool:
    return interval[1] > 0 or interval[2] < 0


_METRICS = {"auc": "AUC", "accuracy": "accuracy"}


def _tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    tables = {}
    for problem in (HARD, MILD):
        lines = []
        for arm, name in ARMS.items():
            own = rows_where(rows, problem=problem, arm=arm)
            line = {"arm": name} | {metric: round(float(np.mean([row[metric] for row in own])), 4) for metric in ("auc", "accuracy")}
            for metric, short in _METRICS.items():
                known = arm != "nothing"
                line[f"{short}, difference to nothing"] = _signed(difference(rows, metric, arm, problem=problem)) if known else "-"
                line[f"{short}, allowing for shared images"] = _signed(wider(rows, metric, arm, problem)) if known else "-"
            lines.append(line)
        tables[f"{problem}: means over seeds, paired differences with 95 % intervals"] = lines
    tables["Nothing done, by imbalance"] = [
        {"problem": problem, "images": rows_where(rows, problem=problem)[0]["images"]}
        | {
            metric: round(float(np.mean([row[metric] for row in rows_where(rows, problem=problem, arm="nothing")])), 4)
            for metric in ("auc", "accuracy")
        }
        for problem in PROBLEMS
    ]
    return tables


def _figure(rows: Sequence[Row]) -> Figure:
    """What each cure changes against doing nothing: accuracy and AUC, with intervals; harm in red, down to the name of the cure."""
    from counterpoise.report import _plots as plots

    arms = [arm for arm in ARMS if arm != "nothing"]
    row_height, top, bottom, left, width, gap = 48, 108, 46, 236, 214, 36
    height = row_height * len(arms) + top + bottom
    shapes = {HARD: ("o", "●", -0.17, "five of ten classes 20 times rarer"), MILD: ("D", "◆", 0.17, "two of ten")}
    found = {(arm, m, p): difference(rows, m, arm, problem=p) for arm in arms for m in _METRICS for p in shapes}
    with plots.style():
        fig = plots.figure(plots.WIDTH, height)
        for panel, (metric, title) in enumerate((("accuracy", "Accuracy"), ("auc", "Macro one-vs-rest AUC"))):
            ax = plots.axes(fig, left + panel * (width + gap), bottom, width, row_height * len(arms))
            plots.plain_rows(ax, len(arms))
            ax.axvline(0, color=plots.INK, lw=1.2, zorder=1)
            for row, arm in enumerate(arms):
                if row % 2:
                    ax.axhspan(row - 0.5, row + 0.5, color=plots.BAND, lw=0, zorder=0)
                for problem, (marker, _, place, _) in shapes.items():
                    estimate, low, high = found[arm, metric, problem]
                    color = plots.BLUE if low > 0 else plots.RED if high < 0 else plots.GRAY
                    ax.plot(estimate, row + place, marker=marker, ms=7, color=color, ls="none", zorder=3)
                    if np.isfinite([low, high]).all():
                        ax.plot([low, high], [row + place] * 2, color=color, lw=2, solid_capstyle="butt", zorder=2)
                if metric == "auc" and arm == "threshold":
                    ax.annotate("same ranking", (0, row), (-10, 0), textcoords="offset points", ha="right", va="center", color=plots.MUTED)
                if panel == 0:
                    harms = any(found[arm, m, p][2] < 0 for m in _METRICS for p in shapes)
                    plots.row_text(fig, ax, row, 10, ARMS[arm], color=plots.RED if harms else plots.INK)
            ax.margins(x=0.08)
            ax.locator_params(axis="x", nbins=5)
            ax.set_xlabel("difference to doing nothing")
            ax.set_title(title, loc="left", fontsize=plots.TEXT, color=plots.INK, pad=6)
        fig.text(10 / plots.WIDTH, 1 - 16 / height, "Ten digits, some of them rare: what each cure changes", va="center", weight="bold")
        colors = [(plots.BLUE, "■", "better than nothing"), (plots.RED, "■", "worse"), (plots.GRAY, "■", "undecided")]
        for line, key in enumerate((colors, [(plots.MUTED, sign, words) for _, sign, _, words in shapes.values()])):
            x, y = 10.0, 1 - (40 + 22 * line) / height
            for color, sign, words in key:
                fig.text(x / plots.WIDTH, y, sign, va="center", color=color)
                fig.text((x + 16) / plots.WIDTH, y, words, va="center", color=plots.MUTED)
                x += 40 + 7.2 * len(words)
        return fig
