"""AnyLoss (Han, Moniz, Chawla 2024, arXiv:2405.14745): training for a metric of the confusion matrix against cross-entropy.

The paper trains for F1, G-mean, balanced accuracy or accuracy, decides at 0.5, and reports that the metric trained for is better than after
cross-entropy on most of 102 imbalanced tables. Here a linear model is trained in the authors' way (zero weights, the whole training part as
one batch) on six problems made from tables that come with scikit-learn: three whose classes overlap so much that cross-entropy rarely says
"yes" at 0.5, and three where it often does. The paper does not compare with the two cures that cost nothing, a tuned threshold and weighted
cross-entropy; both are here, and say how much of the gain belongs to the loss.

To know when reading: the splits of one table share rows, so the intervals are Nadeau and Bengio's, more than twice as wide as those of
independent splits. The threshold is tuned on out-of-fold scores of the training part, for the metric that is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._stats import bonferroni, nadeau_bengio
from counterpoise._thresholds import best_threshold

from ._types import Claim, Finding, Replication, Verdict
from ._work import Work, paired, rows_where

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

__all__ = ["CLAIMS", "SLUG", "run"]

SLUG = "anyloss"

TEST_SHARE = 0.4
EPOCHS, LEARNING_RATE = 300, 0.02  # full batches, Adam
AMPLIFICATION, PAPERS_AMPLIFICATION = 10.0, 73.0
FOLDS = 5  # of the out-of-fold scores that the threshold is tuned on

OVERLAPPING = ("diabetes, top 10 %", "breast cancer, 3 features", "digit 8, 4 components")
OTHERS = ("diabetes, top 20 %", "digit 8, pixels", "digit 9, pixels")
SETS = OVERLAPPING + OTHERS
F1_SETS, BALANCED_SETS = 2, 3  # of the three overlapping sets, how many must show a gain

ARMS = {
    "bce": "cross-entropy, decided at 0.5",
    "threshold": "cross-entropy, tuned threshold",
    "weighted": "weighted cross-entropy",
    "any-f1": f"AnyLoss for F1, L = {AMPLIFICATION:g}",
    "any-f1-73": f"AnyLoss for F1, L = {PAPERS_AMPLIFICATION:g}",
    "any-balanced": f"AnyLoss for balanced accuracy, L = {AMPLIFICATION:g}",
    "any-gmean": f"AnyLoss for G-mean, L = {AMPLIFICATION:g}",
    "any-accuracy": f"AnyLoss for accuracy, L = {AMPLIFICATION:g}",
}

CLAIMS = (
    Claim(
        "f1",
        "Training for F1 gives a better F1 at 0.5 than cross-entropy.",
        f"95 % interval of the difference above 0 on at least {F1_SETS} of the 3 sets whose classes overlap",
    ),
    Claim(
        "balanced-accuracy",
        "Training for balanced accuracy gives a better balanced accuracy at 0.5 than cross-entropy.",
        f"95 % interval of the difference above 0 on all {BALANCED_SETS} sets whose classes overlap",
    ),
    Claim("gmean", "Training for G-mean gives a better G-mean at 0.5 than cross-entropy."),
    Claim("accuracy", "Training for accuracy and for cross-entropy come out even in accuracy."),
    Claim("elsewhere", "The gains are there on tables of all kinds: here, the three sets where cross-entropy already says yes at 0.5."),
    Claim("threshold", "What a tuned threshold on the scores of cross-entropy leaves of the gain (not compared in the paper)."),
    Claim("weights", "What weighted cross-entropy leaves of the gain (not compared in the paper)."),
    Claim("amplification", f"An amplification of {PAPERS_AMPLIFICATION:g} is the one to use."),
)

SEEDS, QUICK_SEEDS = tuple(range(8)), (0, 1)

Row = Mapping[str, Any]
Interval = tuple[float, float, float]


def run(
    *, seeds: Sequence[int] | None = None, quick: bool = False, data_dir: str | Path | None = None, work: Work | None = None
) -> Replication:
    """Six problems, ``seeds`` stratified splits of each. All tables come with scikit-learn: ``data_dir`` is not used."""
    seeds = tuple(seeds if seeds is not None else QUICK_SEEDS if quick else SEEDS)
    tasks = [{"data": name, "seed": seed} for name in SETS for seed in seeds]
    rows = [
        {"data": split["data"], "seed": split["seed"], "arm": arm} | scores
        for split in (work or Work()).map(_split, tasks)
        for arm, scores in split["scores"].items()
    ]
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


# ---- one split ---------------------------------------------------------------------------------------------------------------------------


def _problem(name: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """(X, y) with y = 1 for the rare class."""
    from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

    if name.startswith("diabetes"):
        X, progression = load_diabetes(return_X_y=True)
        return X, (progression > np.quantile(progression, 0.9 if "10" in name else 0.8)).astype(np.int64)
    if name.startswith("breast"):
        # Mean texture, smoothness and symmetry, which say nothing of size; malignant rows thinned to 14 %.
        X, benign = load_breast_cancer(return_X_y=True)
        malignant = np.random.default_rng(0).choice(np.flatnonzero(benign == 0), 58, replace=False)
        kept = np.sort(np.r_[np.flatnonzero(benign == 1), malignant])
        return X[kept][:, [1, 4, 8]], 1 - benign[kept].astype(np.int64)
    X, digit = load_digits(return_X_y=True)
    return X, (digit == int(name[6])).astype(np.int64)


def _split(data: str, seed: int) -> dict[str, Any]:
    """All arms on one split; scores on its test part."""
    import torch
    from sklearn.decomposition import PCA
    from sklearn.model_selection import StratifiedKFold, train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from torch import nn

    from counterpoise.losses import AnyLoss

    X, y = _problem(data)
    X, X_test, y, y_test = train_test_split(X, y, test_size=TEST_SHARE, stratify=y, random_state=seed)
    steps = [PCA(4, random_state=0), StandardScaler()] if "components" in data else [StandardScaler()]
    preprocessing = make_pipeline(*steps).fit(X)
    X, X_test = preprocessing.transform(X), preprocessing.transform(X_test)
    bce = nn.BCEWithLogitsLoss()
    losses: dict[str, nn.Module] = {
        "bce": bce,
        "weighted": nn.BCEWithLogitsLoss(pos_weight=torch.tensor((1 - y).sum() / y.sum())),
        "any-f1": AnyLoss("f1", amplification=AMPLIFICATION),
        "any-f1-73": AnyLoss("f1", amplification=PAPERS_AMPLIFICATION),
        "any-balanced": AnyLoss("balanced_accuracy", amplification=AMPLIFICATION),
        "any-gmean": AnyLoss("gmean", amplification=AMPLIFICATION),
        "any-accuracy": AnyLoss("accuracy", amplification=AMPLIFICATION),
    }
    logits = {arm: _with_bias(X_test) @ _fit(X, y, loss) for arm, loss in losses.items()}
    scores = {arm: _scores(y_test, z > 0) for arm, z in logits.items()}
    out_of_fold = np.empty(len(y))
    for train, held in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(X, y):
        out_of_fold[held] = _with_bias(X[held]) @ _fit(X[train], y[train], bce)
    # One threshold per metric, each judged by its own. G-mean has the threshold of balanced accuracy.
    thresholds = {metric: best_threshold(y, out_of_fold, metric) for metric in ("f1", "balanced_accuracy", "accuracy")}
    thresholds["gmean"] = thresholds["balanced_accuracy"]
    scores["threshold"] = {metric: _scores(y_test, logits["bce"] > t)[metric] for metric, t in thresholds.items()}
    return {"scores": {arm: scores[arm] for arm in ARMS}}


def _fit(X: npt.NDArray[np.float64], y: npt.NDArray[np.int64], loss: nn.Module) -> npt.NDArray[np.float64]:
    """Weights (d + 1,) of a linear model, the last one its bias."""
    import torch

    inputs, targets = torch.from_numpy(_with_bias(X)), torch.from_numpy(y).double()
    theta: Tensor = torch.zeros(inputs.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=LEARNING_RATE)
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        loss(inputs @ theta, targets).backward()
        optimizer.step()
    return np.asarray(theta.detach().numpy())


def _with_bias(X: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.column_stack([X, np.ones(len(X))])


def _scores(y: npt.NDArray[np.int64], said: npt.NDArray[np.bool_]) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

    recalls = said[y == 1].mean(), 1 - said[y == 0].mean()
    return {
        "f1": float(f1_score(y, said)),
        "balanced_accuracy": float(balanced_accuracy_score(y, said)),
        "gmean": float(np.sqrt(recalls[0] * recalls[1])),
        "accuracy": float(accuracy_score(y, said)),
    }


# ---- what it says ------------------------------------------------------------------------------------------------------------------------


def difference(rows: Sequence[Row], data: str, metric: str, arm: str, baseline: str = "bce") -> Interval:
    """(estimate, low, high) of arm minus baseline over the splits of one problem."""
    found = paired(rows_where(rows, data=data), metric, arm, baseline)
    if len(found) < 2:
        return found[0], -np.inf, np.inf
    estimate, se, df = nadeau_bengio(found, TEST_SHARE / (1 - TEST_SHARE))
    half = bonferroni(1, df) * float(se)
    return float(estimate), float(estimate) - half, float(estimate) + half


def verdict_of_sets(intervals: Sequence[Interval], needed: int) -> Verdict:
    """Replicated if ``needed`` intervals lie above 0, not replicated if so many do not that it cannot be, else undecided."""
    if sum(low > 0 for _, low, _ in intervals) >= needed:
        return "replicated"
    return "not replicated" if sum(high > 0 for _, _, high in intervals) < needed else "undecided"


def _findings(rows: Sequence[Row]) -> tuple[Finding, ...]:
    f1, balanced, gmean, accuracy, elsewhere, threshold, weights, amplification = CLAIMS
    gains_f1 = [difference(rows, data, "f1", "any-f1") for data in OVERLAPPING]
    gains_balanced = [difference(rows, data, "balanced_accuracy", "any-balanced") for data in OVERLAPPING]
    return (
        f1.judged(
            verdict_of_sets(gains_f1, F1_SETS),
            f"F1, AnyLoss for F1 minus cross-entropy at 0.5: {_each(OVERLAPPING, gains_f1)}.",
            estimate=float(np.mean([estimate for estimate, _, _ in gains_f1])),
            unit="F1, mean of three sets",
        ),
        balanced.judged(
            verdict_of_sets(gains_balanced, BALANCED_SETS),
            f"Balanced accuracy, AnyLoss for it minus cross-entropy at 0.5: {_each(OVERLAPPING, gains_balanced)}.",
            estimate=float(np.mean([estimate for estimate, _, _ in gains_balanced])),
            unit="balanced accuracy, mean of three sets",
        ),
        gmean.reported(None, f"G-mean, AnyLoss for it minus cross-entropy at 0.5: {_on(rows, SETS, 'gmean', 'any-gmean')}."),
        accuracy.reported(None, f"Accuracy, AnyLoss for it minus cross-entropy at 0.5: {_on(rows, SETS, 'accuracy', 'any-accuracy')}."),
        elsewhere.reported(
            None,
            f"F1, AnyLoss for F1 minus cross-entropy at 0.5: {_on(rows, OTHERS, 'f1', 'any-f1')}. "
            f"Balanced accuracy, AnyLoss for it: {_on(rows, OTHERS, 'balanced_accuracy', 'any-balanced')}.",
        ),
        *(
            claim.reported(
                None,
                f"F1, AnyLoss for F1 minus {ARMS[arm]}: {_on(rows, SETS, 'f1', 'any-f1', arm)}. "
                f"Balanced accuracy, AnyLoss for it: {_on(rows, SETS, 'balanced_accuracy', 'any-balanced', arm)}.",
            )
            for claim, arm in ((threshold, "threshold"), (weights, "weighted"))
        ),
        amplification.reported(
            None,
            f"F1, L = {PAPERS_AMPLIFICATION:g} minus L = {AMPLIFICATION:g}: {_on(rows, SETS, 'f1', 'any-f1-73', 'any-f1')}.",
        ),
    )


def _on(rows: Sequence[Row], sets: Sequence[str], metric: str, arm: str, baseline: str = "bce") -> str:
    return _each(sets, [difference(rows, data, metric, arm, baseline) for data in sets])


def _each(sets: Sequence[str], intervals: Sequence[Interval]) -> str:
    return "; ".join(f"{data} {_signed(*interval)}" for data, interval in zip(sets, intervals, strict=True))


def _signed(estimate: float, low: float, high: float) -> str:
    return f"{estimate:+.3f} ({low:+.3f} to {high:+.3f})"


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    against = {
        arm: [
            difference(rows, data, metric, ours, arm)
            for data in SETS
            for metric, ours in (("f1", "any-f1"), ("balanced_accuracy", "any-balanced"))
        ]
        for arm in ("threshold", "weighted")
    }
    counted = {
        arm: f"{sum(low > 0 for _, low, _ in found)} better, {sum(high < 0 for _, _, high in found)} worse, of {len(found)} comparisons"
        for arm, found in against.items()
    }
    return (
        f"AnyLoss against cross-entropy with a tuned threshold, six sets, F1 and balanced accuracy: {counted['threshold']}. "
        f"Against weighted cross-entropy: {counted['weighted']}. Moving the threshold needs no new training: try it first.",
        "The closed-form gradient of G-mean in the released code is 4 times the gradient of its own loss, which gradient descent with a "
        "tuned step does not notice.",
        "After AnyLoss the scores are not probabilities, and its threshold is 0.5.",
    )


def _tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    tables = {}
    for metric, arms in _SHOWN.items():
        lines = []
        for data in SETS:
            plain = float(np.mean([row[metric] for row in rows_where(rows, data=data, arm="bce")]))
            line: dict[str, Any] = {"set": data, ARMS["bce"]: f"{plain:.3f}"}
            line |= {ARMS[arm]: _signed(*difference(rows, data, metric, arm)) for arm in arms}
            lines.append(line)
        tables[f"{_NAMES[metric]}: cross-entropy at 0.5, and the others' difference to it"] = lines
    return tables


_NAMES = {"f1": "F1", "balanced_accuracy": "Balanced accuracy", "gmean": "G-mean", "accuracy": "Accuracy"}
_SHOWN = {
    "f1": ("any-f1", "any-f1-73", "threshold", "weighted"),
    "balanced_accuracy": ("any-balanced", "threshold", "weighted"),
    "gmean": ("any-gmean", "threshold", "weighted"),
    "accuracy": ("any-accuracy", "threshold", "weighted"),
}


def _figure(rows: Sequence[Row]) -> Figure:
    """Difference to cross-entropy at 0.5: AnyLoss, and the two cures that cost nothing, on every set."""
    from counterpoise.report import _plots as plots

    row_height, top, bottom, left, width, gap = 58, 78, 44, 200, 232, 24
    height = row_height * len(SETS) + top + bottom
    with plots.style():
        fig = plots.figure(plots.WIDTH, height)
        looks = {
            "threshold": (plots.INK, "|", "cross-entropy, tuned threshold"),
            "weighted": (plots.GRAY, "D", "weighted cross-entropy"),
        }
        for panel, (metric, ours) in enumerate((("f1", "any-f1"), ("balanced_accuracy", "any-balanced"))):
            ax = plots.axes(fig, left + panel * (width + gap), bottom, width, row_height * len(SETS))
            plots.plain_rows(ax, len(SETS))
            ax.axvline(0, color=plots.RULE, lw=1.2, zorder=0)
            ax.axhline(len(OVERLAPPING) - 0.5, color=plots.RULE, lw=1, ls=(0, (4, 3)), zorder=0)
            arms = {ours: (plots.BLUE, "o", "AnyLoss")} | looks
            for row, data in enumerate(SETS):
                for place, (arm, (color, marker, _)) in enumerate(arms.items()):
                    estimate, low, high = difference(rows, data, metric, arm)
                    y = row + (place - 1) * 0.22
                    if np.isfinite([low, high]).all():
                        ax.plot([low, high], [y, y], color=color, lw=1.4, solid_capstyle="butt")
                    ax.plot(
                        estimate, y, marker=marker, ms=11 if marker == "|" else 7, mew=2.4 if marker == "|" else 0, color=color, ls="none"
                    )
                if not panel:
                    plain = float(np.mean([r[metric] for r in rows_where(rows, data=data, arm="bce")]))
                    middle = bottom + row_height * (len(SETS) - 0.5 - row)
                    fig.text(10 / plots.WIDTH, (middle + 9) / height, data, va="center")
                    small: dict[str, Any] = {"color": plots.MUTED, "fontsize": plots.TEXT - 1.5}
                    fig.text(10 / plots.WIDTH, (middle - 10) / height, f"cross-entropy: F1 {plain:.2f}", va="center", **small)
            ax.set_xlim(-0.3, 0.55)
            ax.set_xlabel(f"{_NAMES[metric]}, difference")
            ax.set_title(f"{_NAMES[metric]}", loc="left", fontsize=plots.TEXT, color=plots.INK, pad=6)
        fig.text(
            10 / plots.WIDTH, 1 - 14 / height, "Difference to cross-entropy decided at 0.5, 95 % intervals", va="center", weight="bold"
        )
        x = 10.0
        for color, marker, word in ((plots.BLUE, "o", "AnyLoss for the metric of the column"), *looks.values()):
            fig.text(x / plots.WIDTH, 1 - 36 / height, {"o": "●", "|": "❙", "D": "◆"}[marker], va="center", color=color)
            fig.text((x + 16) / plots.WIDTH, 1 - 36 / height, word, va="center", color=plots.MUTED)
            x += 40 + 6.7 * len(word)
        return fig
