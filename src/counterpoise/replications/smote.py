"""SMOTE (Chawla, Bowyer, Hall, Kegelmeyer 2002, arXiv:1106.1813): synthetic minority rows, and what they are good for.

The paper over-samples the minority by points between its neighbors, thins the majority, and reports a better ROC curve than thinning alone
for C4.5 on all its data sets. Later work (Elor and Averbuch-Elor 2022, arXiv:2201.08528) finds that this helps weak learners, not strong
ones, and that moving the decision threshold does as well. All of this is re-tested on four of the paper's sets: mammography, phoneme,
oil-spill and Pima.

Two protocols. *One model*: SMOTE to equal classes in the training folds, 2 x 5 folds, a decision tree, logistic regression and gradient
boosting; the difference to the plain model with the corrected interval of Nadeau and Bengio. *The paper's*: one decision tree per amount of
SMOTE and of under-sampling, 10 folds, and the area under the convex hull of the resulting points.

To know when reading: the hull of many points is larger by chance than that of few, and SMOTE brings several times as many points. So
vertices are chosen on four fifths of the tested rows and measured on the others; the plain areas stand beside it, and a control gives
under-sampling as many points, by drawing anew. The paper's areas are over a sweep of under-sampling and are no AUROC of one model's scores.
An unpruned tree with at least two rows per leaf stands in for C4.5, which prunes. Neighbors are searched among standardized columns.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._stats import bonferroni, nadeau_bengio

from ._types import Claim, Finding, Replication
from ._work import Work, paired, rows_where

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CLAIMS", "SLUG", "run"]

SLUG = "smote"

JUDGED = ("mammography", "phoneme", "oil-spill")
SETS = (*JUDGED, "pima")
LEARNERS = {"tree": "decision tree", "logistic": "logistic regression", "histgb": "gradient boosting"}
ARMS = {"plain": "nothing", "smote": "SMOTE", "random": "random over-sampling"}
METRICS = {"auroc": "AUROC", "ap": "average precision", "ba": "balanced accuracy"}

FOLDS = 5
LEAF = 2  # rows, C4.5's default
ROUNDS = 100  # of gradient boosting, scikit-learn's default; not stopped early, since synthetic rows would be among those that decide
NO_GAIN = 0.01  # of AUROC, for gradient boosting
NOT_WORSE = 0.01  # of balanced accuracy, for the moved threshold

GRID_FOLDS = 10  # the paper's
# The paper's amounts; it gave less to sets that are less skewed.
OVER = {"mammography": (50, 100, 200, 300, 400, 500), "oil-spill": (50, 100, 200, 300, 400, 500), "phoneme": (100, 200), "pima": (100,)}
UNDER = (10, 15, 25, 50, 75, 100, 125, 150, 175, 200, 300, 400, 500, 600, 700, 800, 1000, 2000)
DRAWS = 500  # bootstrap

CLAIMS = (
    Claim(
        "tree-auroc",
        "SMOTE makes a single decision tree rank better.",
        "mammography, decision tree: 95 % interval of AUROC(SMOTE) - AUROC(nothing) above 0",
    ),
    Claim(
        "strong-learner",
        "A strong learner does not rank better with SMOTE (the contrary result of later work).",
        f"gradient boosting on {', '.join(JUDGED)}: the 95 % interval of the AUROC gain ends below {NO_GAIN:g} on each",
    ),
    Claim(
        "threshold",
        "Moving the threshold to the share of positives decides as well as SMOTE does (the contrary result of later work).",
        "logistic regression and gradient boosting on "
        f"{', '.join(JUDGED)}: 95 % interval of the balanced accuracy, threshold moved minus SMOTE at 0.5, above -{NOT_WORSE:g} on each",
    ),
    Claim(
        "hull",
        "SMOTE with under-sampling is better in ROC space than under-sampling alone.",
        "mammography, decision tree: 95 % bootstrap interval of the difference in hull area above 0",
    ),
    Claim(
        "precision",
        "What SMOTE does for the AUROC of a tree it does not do for its average precision, which falls.",
        "mammography, decision tree: 95 % interval of AP(SMOTE) - AP(nothing) below 0",
    ),
    Claim("hull-elsewhere", "SMOTE with under-sampling is better in ROC space on all data sets."),
    Claim("hull-control", "The gain in hull area is more than that of as many points of under-sampling alone."),
    Claim("auroc-elsewhere", "SMOTE helps the ranking on other sets and learners."),
    Claim("random", "Synthetic rows are better than copies."),
)

SEEDS, QUICK_SEEDS = (0, 1), (0, 1)  # repeats of the cross-validation

Row = Mapping[str, Any]
Interval = tuple[float, float, float]


def run(
    *, seeds: Sequence[int] | None = None, quick: bool = False, data_dir: str | Path | None = None, work: Work | None = None
) -> Replication:
    """Both protocols on all sets; ``quick`` takes mammography alone, few rounds of boosting and a small grid."""
    seeds = tuple(seeds if seeds is not None else QUICK_SEEDS if quick else SEEDS)
    work = work or Work()
    folder = None if data_dir is None else str(data_dir)
    sets = SETS[:1] if quick else SETS
    tasks = [
        {"data": data, "learner": learner, "seed": seed, "fold": fold, "rounds": 10 if quick else ROUNDS, "data_dir": folder}
        for data in sets
        for learner in LEARNERS
        for seed in seeds
        for fold in range(FOLDS)
    ]
    rows = [
        {"data": cell["data"], "learner": cell["learner"], "cell": cell["seed"] * FOLDS + cell["fold"], "arm": arm} | scores
        for cell in work.map(_cell, tasks)
        for arm, scores in cell["scores"].items()
    ]
    grids = work.map(
        _grid,
        [
            {
                "data": data,
                "seed": seeds[0],
                "over": [100, 300] if quick else list(OVER[data]),
                "under": [25, 100, 400] if quick else list(UNDER),
                "folds": 3 if quick else GRID_FOLDS,
                "draws": 100 if quick else DRAWS,
                "data_dir": folder,
            }
            for data in sets
        ],
    )
    return Replication(
        slug=SLUG,
        claims=CLAIMS,
        findings=_findings(rows, grids, sets),
        notes=_notes(rows, sets),
        tables=_tables(rows, grids, sets),
        figure=_figure(rows, sets),
        seeds=seeds,
        quick=quick,
    )


# ---- data --------------------------------------------------------------------------------------------------------------------------------


def _problem(name: str, data_dir: str | None) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """(X, y) with y = 1 for the class that the paper calls the minority."""
    with _data_folder(data_dir):
        return _load(name, os.environ.get("COUNTERPOISE_DATA"))


@cache
def _load(name: str, folder: str | None) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    from counterpoise import datasets

    table = datasets.load(name)
    X = table.frame.drop(table.target).to_numpy().astype(np.float64)
    return X, (table.frame[table.target].cast(str).to_numpy() == str(table.positive)).astype(np.int64)


@contextmanager
def _data_folder(data_dir: str | None) -> Iterator[None]:
    before = os.environ.get("COUNTERPOISE_DATA")
    if data_dir is not None:
        os.environ["COUNTERPOISE_DATA"] = data_dir
    try:
        yield
    finally:
        if data_dir is not None and before is None:
            del os.environ["COUNTERPOISE_DATA"]
        elif before is not None:
            os.environ["COUNTERPOISE_DATA"] = before


# ---- one model ---------------------------------------------------------------------------------------------------------------------------


def _cell(data: str, learner: str, seed: int, fold: int, rounds: int, data_dir: str | None) -> dict[str, Any]:
    """All arms on one fold of one repeat: AUROC, average precision, and balanced accuracy at 0.5 and, for the plain model, at the prior."""
    from sklearn.model_selection import StratifiedKFold
    from sklearn.preprocessing import StandardScaler

    from counterpoise.data import SMOTE, RandomOverSampler

    X, y = _problem(data, data_dir)
    train, test = list(StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(X, y))[fold]
    scaler = StandardScaler().fit(X[train])
    X_train, X_test, y_train, y_test = scaler.transform(X[train]), scaler.transform(X[test]), y[train], y[test]
    samplers = {"smote": SMOTE(random_state=seed), "random": RandomOverSampler(random_state=seed)}
    scores = {}
    for arm in ARMS:
        rows = samplers[arm].fit_resample(X_train, y_train) if arm in samplers else (X_train, y_train)
        share = _learner(learner, seed, rounds).fit(*rows).predict_proba(X_test)[:, 1]
        scores[arm] = _scores(y_test, share, 0.5)
        if arm == "plain":
            scores["moved"] = _scores(y_test, share, float(y_train.mean()))
    return {"scores": scores}


def _learner(name: str, seed: int, rounds: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.tree import DecisionTreeClassifier

    if name == "tree":
        return DecisionTreeClassifier(min_samples_leaf=LEAF, random_state=seed)
    if name == "logistic":
        return LogisticRegression(max_iter=1000)
    return HistGradientBoostingClassifier(max_iter=rounds, early_stopping=False, random_state=seed)


def _scores(y: npt.NDArray[np.int64], share: npt.NDArray[np.float64], threshold: float) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

    return {
        "auroc": float(roc_auc_score(y, share)),
        "ap": float(average_precision_score(y, share)),
        "ba": float(balanced_accuracy_score(y, share > threshold)),
    }


def difference(rows: Sequence[Row], data: str, learner: str, metric: str, arm: str, baseline: str = "plain") -> Interval:
    """(estimate, low, high) of arm minus baseline over the folds of all repeats."""
    found = paired(rows_where(rows, data=data, learner=learner), metric, arm, baseline, by="cell")
    estimate, se, df = nadeau_bengio(found, 1 / (FOLDS - 1))
    half = bonferroni(1, df) * float(se)
    return float(estimate), float(estimate) - half, float(estimate) + half


# ---- the paper's protocol ----------------------------------------------------------------------------------------------------------------


def _grid(data: str, seed: int, over: list[int], under: list[int], folds: int, draws: int, data_dir: str | None) -> dict[str, Any]:
    """Hull areas of under-sampling with and without SMOTE, and of as many points without as there are with."""
    from sklearn.model_selection import StratifiedKFold
    from sklearn.tree import DecisionTreeClassifier

    from counterpoise.metrics import roc_convex_hull, smote_undersample_grid
    from counterpoise.metrics._roc_grid import hull_gain

    X, y = _problem(data, data_dir)
    splits = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(X, y))
    tree = DecisionTreeClassifier(min_samples_leaf=LEAF)
    grid = smote_undersample_grid(tree, X, y, over=(0, *over), under=under, cv=splits, random_state=seed)
    # The first repeat has other draws than the grid, too, so that it is no part of what it is compared with.
    repeats = [
        smote_undersample_grid(tree, X, y, over=(0,), under=under, cv=splits, random_state=1000 * (seed + 1) + i) for i in range(len(over))
    ]
    as_many = np.hstack([repeat.predicted for repeat in repeats])
    synthetic, alone = grid.predicted[:, grid.over > 0], grid.predicted[:, grid.over == 0]
    joint = roc_convex_hull(grid.fpr, grid.tpr)
    amounts = grid.over[joint.index[joint.index >= 0]]
    return {
        "areas": {str(amount): grid.area(amount) for amount in (0, *over)},
        "hulls": {name: hull.area for name, hull in grid.hulls.items()},
        "gain": list(grid.gain(draws, seed)),
        "control": list(hull_gain(grid.positive, synthetic, as_many, draws, seed)),
        "chance": list(hull_gain(grid.positive, as_many, alone, draws, seed)),
        "vertices": {"under": int((amounts == 0).sum()), "smote": int((amounts > 0).sum())},
    }


# ---- what it says ------------------------------------------------------------------------------------------------------------------------


def _findings(rows: Sequence[Row], grids: Sequence[Row], sets: Sequence[str]) -> tuple[Finding, ...]:
    tree, strong, threshold, hull, precision, hull_elsewhere, control, elsewhere, random = CLAIMS
    judged = [data for data in JUDGED if data in sets]
    of_grid = {grid["data"]: grid for grid in grids}
    gain = difference(rows, "mammography", "tree", "auroc", "smote")
    loss = difference(rows, "mammography", "tree", "ap", "smote")
    findings = [
        tree.above(gain, 0.0, f"Mammography, decision tree: AUROC {_signed(gain)} with SMOTE.", unit="AUROC", name="mammography, tree"),
        precision.below(
            loss,
            0.0,
            f"Mammography, decision tree: average precision {_signed(loss)} with SMOTE, while AUROC changes by {gain[0]:+.3f}.",
            unit="average precision",
            name="mammography, tree",
        ),
    ]
    for data in judged:
        found = difference(rows, data, "histgb", "auroc", "smote")
        text = f"{_title(data)}, gradient boosting: AUROC {_signed(found)} with SMOTE."
        findings.append(strong.below(found, NO_GAIN, text, unit="AUROC", name=data))
    for data in judged:
        for learner in ("logistic", "histgb"):
            found = difference(rows, data, learner, "ba", "moved", "smote")
            text = f"{_title(data)}, {LEARNERS[learner]}: balanced accuracy {_signed(found)} by moving the threshold instead of SMOTE."
            findings.append(threshold.above(found, -NOT_WORSE, text, unit="balanced accuracy", name=f"{data}, {learner}"))
    for data, grid in of_grid.items():
        text = (
            f"{_title(data)}: hull area of SMOTE with under-sampling minus that of under-sampling alone {_signed(grid['gain'], digits=4)} "
            f"on rows that did not choose the vertices ({grid['hulls']['smote+under']:.4f} and {grid['hulls']['under']:.4f} on all rows)."
        )
        more = {"unit": "area under the ROC hull", "name": data}
        if data == "mammography":
            findings.append(hull.above(_interval(grid["gain"]), 0.0, text, **more))
        else:
            findings.append(hull_elsewhere.reported(_interval(grid["gain"]), text, **more))
    if len(sets) == 1:
        findings.append(hull_elsewhere.reported(None, "Not looked at in a quick run."))
    for data, grid in of_grid.items():
        text = (
            f"{_title(data)}: SMOTE's hull against that of as many points of under-sampling alone (drawn {_times(len(grid['over']))}): "
            f"{_signed(grid['control'], digits=4)}. More points alone bring {_signed(grid['chance'], digits=4)}."
        )
        findings.append(control.reported(_interval(grid["control"]), text, unit="area under the ROC hull", name=data))
    everywhere = [(data, learner) for data in sets for learner in LEARNERS]
    gains = [difference(rows, *pair, "auroc", "smote") for pair in everywhere if pair != ("mammography", "tree")]
    over_copies = [difference(rows, *pair, "auroc", "smote", "random") for pair in everywhere]
    trees = [f"{data} {_signed(difference(rows, data, 'tree', 'auroc', 'smote', 'random'))}" for data in sets]
    findings += [
        elsewhere.reported(None, f"AUROC with SMOTE minus without, all but the tree on mammography: {_counted(gains)}."),
        random.reported(None, f"AUROC, SMOTE minus random over-sampling: {_counted(over_copies)}. Trees: {'; '.join(trees)}."),
    ]
    return tuple(findings)


def _counted(intervals: Sequence[Interval]) -> str:
    above, below = sum(low > 0 for _, low, _ in intervals), sum(high < 0 for _, _, high in intervals)
    return f"interval above 0 in {above}, below 0 in {below}, across 0 in {len(intervals) - above - below} of {len(intervals)} cases"


def _notes(rows: Sequence[Row], sets: Sequence[str]) -> tuple[str, ...]:
    both = [(data, learner) for data in sets for learner in LEARNERS]
    moved = [difference(rows, *pair, "ba", "moved", "smote") for pair in both]
    at_half = [difference(rows, *pair, "ba", "smote") for pair in both]
    precision = [difference(rows, *pair, "ap", "smote") for pair in both]
    notes = [
        f"At 0.5 SMOTE changes balanced accuracy ({_counted(at_half)}); so does a moved threshold, without new training (moved minus "
        f"SMOTE: {_counted(moved)}). Compare with a moved or tuned threshold, never with 0.5.",
        f"Average precision with SMOTE minus without: {_counted(precision)}.",
        "After SMOTE the scores follow the resampled class shares; counterpoise.decisions.prior_correct takes them back.",
    ]
    if "oil-spill" in sets:
        notes.append("Oil-spill has 41 positive rows, and wide intervals: undecided there means too few rows, not no effect.")
    return tuple(notes)


def _tables(rows: Sequence[Row], grids: Sequence[Row], sets: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    tables: dict[str, list[dict[str, Any]]] = {}
    for metric, name in METRICS.items():
        lines = []
        for data in sets:
            for learner, called in LEARNERS.items():
                plain = float(np.mean([row[metric] for row in rows_where(rows, data=data, learner=learner, arm="plain")]))
                line: dict[str, Any] = {"set": data, "learner": called, "nothing": f"{plain:.3f}"}
                line |= {ARMS[arm]: _signed(difference(rows, data, learner, metric, arm)) for arm in ("smote", "random")}
                if metric == "ba":
                    line["threshold at the prior"] = _signed(difference(rows, data, learner, metric, "moved"))
                lines.append(line)
        tables[f"{name}{' at 0.5' if metric == 'ba' else ''}: nothing, and the others' difference to it"] = lines
    amounts = (0, 50, 100, 200, 300, 400, 500)
    tables["Area under the curve of points over under-sampling, by SMOTE in percent (0: under-sampling alone)"] = [
        {"set": grid["data"]} | {f"{amount}": _area(grid["areas"].get(str(amount))) for amount in amounts} for grid in grids
    ]
    tables["Points on the hull of all points, the potentially optimal ones"] = [
        {
            "set": grid["data"],
            "under-sampling": f"{grid['vertices']['under']} of {len(grid['under'])}",
            "SMOTE with under-sampling": f"{grid['vertices']['smote']} of {len(grid['under']) * len(grid['over'])}",
        }
        for grid in grids
    ]
    return tables


def _area(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _signed(interval: Sequence[float], digits: int = 3) -> str:
    estimate, low, high = interval
    return f"{estimate:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def _interval(values: Sequence[float]) -> Interval:
    estimate, low, high = values
    return estimate, low, high


def _title(data: str) -> str:
    return data[0].upper() + data[1:]


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _figure(rows: Sequence[Row], sets: Sequence[str]) -> Figure:
    """What SMOTE does to the ranking, by two measures, and what a moved threshold does to the decisions that SMOTE does not."""
    from counterpoise.report import _plots as plots

    names = [(data, learner) for data in sets for learner in LEARNERS]
    row_height, top, bottom, left, width, gap, reach = 27, 92, 44, 230, 150, 20, 0.14
    height = row_height * len(names) + top + bottom
    panels = (
        ("AUROC", "SMOTE − nothing", ("auroc", "smote", "plain")),
        ("Average precision", "SMOTE − nothing", ("ap", "smote", "plain")),
        ("Balanced accuracy", "moved threshold − SMOTE", ("ba", "moved", "smote")),
    )
    with plots.style():
        fig = plots.figure(plots.WIDTH, height)
        for panel, (title, about, (metric, arm, baseline)) in enumerate(panels):
            ax = plots.axes(fig, left + panel * (width + gap), bottom, width, row_height * len(names))
            plots.plain_rows(ax, len(names))
            ax.axvline(0, color=plots.RULE, lw=1.2, zorder=0)
            for edge in range(len(LEARNERS), len(names), len(LEARNERS)):
                ax.axhline(edge - 0.5, color=plots.BAND, lw=1, zorder=0)
            for row, (data, learner) in enumerate(names):
                estimate, low, high = difference(rows, data, learner, metric, arm, baseline)
                color = plots.BLUE if low > 0 else plots.RED if high < 0 else plots.GRAY
                marker = "^" if low > 0 else "v" if high < 0 else "o"
                ax.plot([max(low, -reach), min(high, reach)], [row, row], color=color, lw=1.6, solid_capstyle="butt")
                ax.plot(estimate, row, marker=marker, ms=8, color=color, mec=plots.PAPER, mew=1)
                if not panel:
                    if not row % len(LEARNERS):
                        plots.row_text(fig, ax, row, 10, data, weight="bold")
                    plots.row_text(fig, ax, row, left - 12, LEARNERS[learner], ha="right", color=plots.MUTED)
            ax.set_xlim(-reach, reach)
            ax.set_xticks([-0.1, 0, 0.1], ["-0.1", "0", "+0.1"])
            ax.set_xlabel(about)
            ax.set_title(title, loc="left", fontsize=plots.TEXT, color=plots.INK, pad=6)
        fig.text(
            10 / plots.WIDTH,
            1 - 16 / height,
            "SMOTE against doing nothing, and a moved threshold against SMOTE",
            va="center",
            weight="bold",
        )
        x = 10.0
        for marker, color, word in (("▲", plots.BLUE, "better"), ("▼", plots.RED, "worse"), ("●", plots.GRAY, "cannot be told apart")):
            fig.text(x / plots.WIDTH, 1 - 40 / height, marker, va="center", color=color)
            fig.text((x + 16) / plots.WIDTH, 1 - 40 / height, word, va="center", color=plots.MUTED)
            x += 42 + 6.7 * len(word)
        return fig
