"""From a study to what its page shows: picks the numbers, computes nothing that the study does not already say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from counterpoise._papers import paper_of, published_verdict
from counterpoise.groups import Groups
from counterpoise.report import _view as view
from counterpoise.report._format import words

from ._metrics import (
    CalibrationCurve,
    calibration_curve,
    group_table,
    precision_recall_at_k,
    prior_corrected,
    range_table,
    target_ranges,
    threshold_curve,
)
from ._remedies import BASELINE, HALF, PLACEBO

if TYPE_CHECKING:
    from ._study import Study
    from ._verdicts import Verdict

__all__ = ["study_view"]

TITLES = {
    "decisions": "Decisions at the tuned threshold",
    "ranking": "Ranking",
    "probabilities": "Probabilities",
    "groups": "Worst group",
    "dependence": "Dependence on the groups",
    "error": "Error",
    "tails": "Error where the target is rare",
}
NOTES = {
    "probabilities": "Scores as they come; weights and resampling shift the class frequencies, see calibration below.",
    "dependence": "How differently the groups (of several columns: their intersections) are spread over the tenths of the ranking, in bits:"
    " 0 is demographic parity of the ranking. Small groups differ by chance, in all arms alike; a model that learned less, as the placebo"
    " does, depends less on everything. Parity may contradict calibration within groups, so this neither recommends an arm nor speaks"
    " against one.",
    "tails": 'On the rows called "few" under "Ranges of the target", below: those whose values are least common.',
}
SHARES_NOTE = (
    " To gain: whose positives would move up if every positive right below a negative changed places with it. Average precision pays for"
    " repairs at the top, so a group with many positives holds more of it than of AUROC; choose by AUROC, or per group, where that matters."
)
TABLE_METRICS = {
    "binary": ("balanced_accuracy", "auroc", "average_precision", "log_loss", "brier", "precision", "recall"),
    "multiclass": ("balanced_accuracy", "auroc", "log_loss", "brier", "f1"),
    "regression": ("mae", "rmse", "r2"),
}


def study_view(study: Study) -> view.StudyView:
    """Everything the page of ``study`` shows."""
    recommendation = study.recommendation
    order = study.learners
    verdicts = {name: sorted(study.verdicts(name), key=lambda one: order.index(one.learner)) for name in study.questions}
    # Where no group could be judged there is nothing to show.
    questions = [name for name, judged in verdicts.items() if name != "groups" or any(one.verdict != "failed" for one in judged)]
    binary = study.problem.task == "binary"
    # What the winner looks like in detail; a baseline that won is shown like any other winner.
    learner, arm = recommendation.learner, recommendation.arm
    return view.StudyView(
        title=study.problem.name,
        command=study.command,
        recommendation=recommendation.summary(),
        reasons=(*recommendation.reasons[1:], *([study.threshold_gain] if study.threshold_gain else [])),
        questions=tuple(_panel(study, question, verdicts[question]) for question in questions),
        headline=tuple(_rows(study, verdicts)),
        metrics=TABLE_METRICS[study.problem.task],
        primary=study.protocol.primary,
        expectation=study.expectation,
        warnings=tuple(study.warnings),
        data=_data(study),
        diagnosis=_diagnosis(study),
        threshold=_threshold(study, learner, arm) if binary else None,
        calibration=_calibration(study, learner, arm) if binary else None,
        groups=tuple(_groups(study, learner, arm)),
        ranges=_ranges(study, learner, arm) if study.problem.task == "regression" else None,
        growth=_growth(study),
        undecided=tuple(_undecided(study, verdicts)),
        papers=tuple(_papers(study)),
        protocol=tuple(_protocol(study)),
        versions=tuple(sorted(study.versions.items())),
        notices=study.problem.notices,
        not_applicable=study.plan.not_applicable,
        failed=tuple(study.failed),
        footer=f"Study of {study.created:%Y-%m-%d %H:%M} UTC, counterpoise {study.versions.get('counterpoise', '')}.",
    )


def difference_of(verdict: Verdict) -> view.Difference:
    return view.Difference(
        arm=f"{verdict.arm} ({verdict.group})" if verdict.group else verdict.arm,
        learner=verdict.learner,
        estimate=verdict.estimate,
        low=verdict.low,
        high=verdict.high,
        verdict=verdict.verdict,
        sentence=verdict.sentence(),
        provisional=verdict.provisional,
        is_placebo=verdict.arm == PLACEBO.name,
    )


def _panel(study: Study, question: str, verdicts: Sequence[Verdict]) -> view.QuestionPanel:
    metric = study.metrics[question]
    rows = sorted(verdicts, key=lambda verdict: verdict.arm == PLACEBO.name)  # the order as given, the placebo last
    differences = [difference_of(verdict) for verdict in rows]
    if len({verdict.group for verdict in rows}) > 1:  # a heading for each learner and column
        pairs = zip(differences, rows, strict=True)
        differences = [replace(line, arm=row.arm, learner=f"{row.learner}, by {row.group}") for line, row in pairs]
    return view.QuestionPanel(
        question=question,
        title=TITLES[question],
        metric=metric,
        rows=tuple(differences),
        rope=next((verdict.rope for verdict in verdicts if verdict.rope == verdict.rope), math.nan),
        unit=words(metric),
        note=NOTES.get(question, ""),
    )


def _rows(study: Study, verdicts: Mapping[str, Sequence[Verdict]]) -> list[view.HeadlineRow]:
    differences: dict[tuple[str, str], dict[str, view.Difference]] = {}
    for question, judged in verdicts.items():
        for verdict in judged:
            known = differences.setdefault((verdict.learner, verdict.arm), {})
            # With several group columns the table shows the one that suffers most.
            if question not in known or verdict.estimate < known[question].estimate:
                known[question] = difference_of(verdict)
    rows = []
    for row in sorted(study.table(), key=lambda row: study.learners.index(row["learner"])):  # best first within each learner
        key = (row["learner"], row["arm"])
        rows.append(
            view.HeadlineRow(
                arm=row["arm"],
                learner=row["learner"],
                stage=row["stage"],
                differences=differences.get(key, {}),
                values=study.mean_metrics(*key),
                seconds=row["seconds"],
                is_baseline=row["arm"] == BASELINE.name,
                is_recommended=key == (study.recommendation.learner, study.recommendation.arm),
                note=study.note_of(*key),
                paper=row["paper"],
            )
        )
    return rows


def _data(study: Study) -> str:
    problem = study.problem
    text = f"{problem.n:,} rows, {problem.p:,} columns"
    if problem.task == "binary":
        positive = int(problem.counts[1])
        return (
            f"{text}, {positive:,} of class {problem.schema.classes[1]!r} ({100 * positive / problem.n:.2g} %) in {problem.schema.target!r}"
        )
    if problem.task == "multiclass":
        classes = f"{len(problem.schema.classes)} classes in {problem.schema.target!r}"
        return f"{text}, {classes}, the rarest with {int(problem.counts.min()):,} rows"
    return f"{text}, target {problem.schema.target!r} from {problem.y.min():.4g} to {problem.y.max():.4g}"


def _diagnosis(study: Study) -> view.DiagnosisPart | None:
    if study.problem.p == 0:
        return None
    return study.diagnosis.part()


def _threshold(study: Study, learner: str, arm: str) -> view.ThresholdPanel | None:
    """Decisions of the recommended arm over all thresholds, from its first repeat: each row scored once by a model that had not seen it."""
    scores, thresholds = study.scores_of(learner, arm)
    y = study.problem.y[study.splits.rows]
    tested = ~np.isnan(scores[0])
    score, y = scores[0][tested], y[tested]
    chosen = float(np.median([threshold[0] for threshold in thresholds]))
    grid = np.unique(np.append(np.quantile(score, np.linspace(0, 1, 200)), [0.0, chosen]))
    curve = threshold_curve(y, score, grid)
    at = int(np.searchsorted(grid, chosen))
    ks = [k for k in (10, 20, 50, 100, 200, 500, 1000, 5000) if k < len(score)][:6]
    precision, recall = precision_recall_at_k(y, score, ks)
    true = 100 * float(curve.precision[at])
    return view.ThresholdPanel(
        arm=arm,
        learner=learner,
        threshold=curve.threshold,
        precision=curve.precision,
        recall=curve.recall,
        balanced_accuracy=curve.balanced_accuracy,
        chosen=chosen,
        per_100_alarms=view.Alarms(true=true, false=100 - true, missed=100 * (1 - float(curve.recall[at]))),
        default=0.0,
        at_k=tuple(view.AtK(k, float(p), float(r)) for k, p, r in zip(ks, precision, recall, strict=True)),
        positive=study.problem.schema.classes[1],
    )


def _calibration(study: Study, learner: str, arm: str) -> view.Calibration | None:
    """Calibration as the scores come, and after moving them back to the class frequencies of the data."""
    from ._metrics import cell_metrics

    scores, _ = study.scores_of(learner, arm)
    priors = study.priors_of(learner, arm)
    tested = ~np.isnan(scores[0])
    y = study.problem.y[study.splits.rows][tested]
    folds = study.splits.folds(0)[study.splits.rows][tested]
    corrected = scores[0][tested].astype(np.float64)
    for fold, (prior, effective) in enumerate(priors):
        corrected[folds == fold] = prior_corrected(corrected[folds == fold], prior, effective)

    def curve(label: str, values: np.ndarray) -> view.CalibrationCurve:
        bins: CalibrationCurve = calibration_curve(y, values)
        metrics = cell_metrics("binary", y, values, [0.0])
        return view.CalibrationCurve(label, bins.predicted, bins.observed, bins.count.astype(float), metrics["log_loss"], metrics["brier"])

    curves = [curve("as it comes", scores[0][tested].astype(np.float64))]
    shifted = any(not np.allclose(prior, effective, atol=1e-6) for prior, effective in priors)
    if shifted:
        curves.append(curve("after prior correction", corrected))
    return view.Calibration(
        arm, learner, tuple(curves), "" if shifted else "Trained on the class frequencies of the data: there is nothing to correct."
    )


def _groups(study: Study, learner: str, arm: str) -> list[view.GroupsTable]:
    """The groups of every column under the recommended arm, and all columns at once under an arm that was meant for them."""
    if study.problem.task == "regression" or not study.problem.groups:
        return []
    tables = [_groups_table(study, learner, arm, column) for column in study.groups]
    for home, name in study.fairness_arms:
        if (home, name) != (learner, arm):
            table = _groups_table(study, home, name, list(study.groups)[-1])
            tables.append(replace(table, arm=f"{home} with {name}", note=""))
    return tables


def _groups_table(study: Study, learner: str, arm: str, column: str) -> view.GroupsTable:
    groups, classes = study.groups[column], len(study.problem.schema.classes)
    table = group_table(study.problem.y[study.splits.rows], study.decisions_of(learner, arm), groups, classes)
    shares = _shares_of_gain(study, learner, arm, groups)
    judged = [row for row in table if row["judged"]]
    judged = judged if len(judged) > 1 else []  # one group alone is neither worst nor best
    worst = min((row["recall"] for row in judged), default=math.nan)
    taken = ("rows", "positives", "recall", "recall_low", "recall_high", "chosen", "chosen_low", "chosen_high", "accuracy", "judged")
    return view.GroupsTable(
        column=column,
        rows=tuple(
            view.GroupRow(
                name=row["group"],
                is_worst=row["judged"] and row["recall"] == worst,
                auroc_share=shares.get(row["group"], (math.nan, math.nan))[0],
                precision_share=shares.get(row["group"], (math.nan, math.nan))[1],
                **{name: row[name] for name in taken},
            )
            for row in table
        ),
        worst=worst,
        gap=max((row["recall"] for row in judged), default=math.nan) - worst,
        chosen=classes == 2,
        shares=bool(shares),
        note="Averaged over repeats; small print: 95 %, each group by itself." + (SHARES_NOTE if shares else ""),
    )


def _shares_of_gain(study: Study, learner: str, arm: str, groups: Groups) -> dict[str, tuple[float, float]]:
    """Group -> its shares of what AUROC and average precision can gain by repairing mistakes in the ranking; two classes only."""
    from counterpoise.diagnostics import mistake_leverage

    if study.problem.task != "binary":
        return {}
    scores = study.scores_of(learner, arm)[0][0]  # of the first repeat: each row scored once by a model that had not seen it
    y, folds = study.problem.y[study.splits.rows], study.splits.folds(0)[study.splits.rows]
    gains = dict.fromkeys(groups.names, np.zeros(2))
    for fold in range(study.protocol.folds):  # scores of different models are not one ranking
        rows = np.flatnonzero((folds == fold) & ~np.isnan(scores))
        if len(np.unique(y[rows])) < 2:
            continue
        found = mistake_leverage(y[rows], scores[rows], Groups(groups.ids[rows], groups.names, groups.kind)).by_group
        for row in [] if found is None else found.iter_rows(named=True):
            if row["group"] in gains:
                gains[row["group"]] = gains[row["group"]] + np.array([row["gain_auroc"], row["gain_auprc"]])
    whole = np.sum(list(gains.values()), axis=0)
    if not (whole > 0).all():
        return {}
    return {name: (float(gain[0] / whole[0]), float(gain[1] / whole[1])) for name, gain in gains.items()}


def _ranges(study: Study, learner: str, arm: str) -> view.RangesTable:
    rows = study.splits.rows
    y = study.problem.y[rows]
    ranges = target_ranges(y)
    own = range_table(y, study.scores_of(learner, arm)[0], ranges)
    base = range_table(y, study.scores_of(learner, BASELINE.name)[0], ranges)
    parts = []
    for mine, theirs in zip(own, base, strict=True):
        inside = y[ranges.ids == ranges.names.index(mine["range"])]
        parts.append(
            view.RangeRow(
                name=mine["range"],
                span=f"{inside.min():.4g} to {inside.max():.4g}",
                rows=mine["rows"],
                mae=mine["mae"],
                mean_error=mine["mean_error"],
                baseline_mae=theirs["mae"],
            )
        )
    return view.RangesTable(tuple(parts), unit=study.problem.schema.target)


def _growth(study: Study) -> view.Growth | None:
    curves = study.learning_curves
    if not curves:
        return None
    lines = [
        view.GrowthLine(
            label=curve.learner if curve.arm == BASELINE.name else f"{curve.learner}, {curve.arm}",
            **{name: getattr(curve, name) for name in ("rows", "values", "line_rows", "line", "low", "high")},
            goes_on=curve.goes_on,
            sentence=curve.sentence(),
        )
        for curve in curves
    ]
    return view.Growth(curves[0].metric, tuple(lines))


def _undecided(study: Study, verdicts: Mapping[str, Sequence[Verdict]]) -> list[view.Undecided]:
    smallest = int(study.problem.counts.min()) if study.problem.task != "regression" else study.problem.n
    parts = []
    for question, judged in verdicts.items():
        for verdict in judged:
            if verdict.verdict != "undecided" or verdict.arm in (PLACEBO.name, HALF.name):  # these two claim nothing
                continue
            times = verdict.rows_needed
            parts.append(
                view.Undecided(
                    arm=verdict.arm,
                    learner=verdict.learner,
                    question=f"{question}, by {verdict.group}" if verdict.group else question,
                    low=verdict.low,
                    high=verdict.high,
                    times=times,
                    positives=math.ceil((times - 1) * smallest) if math.isfinite(times) else None,
                    sentence=verdict.sentence(),
                )
            )
    return parts


def _papers(study: Study) -> list[view.PaperRow]:
    """The papers that arms of this study come from, by number."""
    arms: dict[str, list[str]] = {}
    for row in study.table():
        if row["paper"]:
            arms.setdefault(row["paper"], []).append(row["arm"])
    rows = []
    for number, names in sorted(arms.items()):
        paper = paper_of(number)
        command = f"counterpoise replicate {paper.slug}"
        rows.append(view.PaperRow(number, paper.title, paper.arxiv, tuple(dict.fromkeys(names)), published_verdict(paper), command))
    return rows


def _protocol(study: Study) -> list[tuple[str, str]]:
    protocol, splits = study.protocol, study.splits
    kinds = {"stratified": "stratified folds", "clusters": "folds of whole clusters", "time": "forward chaining in time"}
    facts = [
        (
            "Splits",
            f"{protocol.folds} {kinds[protocol.split]}, {study.repeats_done} of {study.plan.repeats} repeats; the same for every arm",
        ),
        ("Tuning", f"{protocol.trials} setting{'s' if protocol.trials > 1 else ''} per fit and arm, in {protocol.inner_folds} inner folds"),
        ("Threshold", f"tuned for {protocol.metric.replace('_', ' ')} on out-of-fold scores of the training rows, the baseline's too"),
        ("Intervals", "simultaneous over all arms and learners of a question, 95 %"),
        ("Seed", str(protocol.seed)),
    ]
    if protocol.task == "regression":
        facts[2] = ("Target", "predicted as it is; no threshold")
    if len(splits.holdout):
        what = "the test file" if protocol.fixed_test else "locked away before anything else"
        facts.insert(1, ("Hold-out", f"{len(splits.holdout):,} rows, {what}, used once"))
    if protocol.cost:
        facts.append(("Costs", f"false alarm {protocol.cost['fp']:g}, missed positive {protocol.cost['fn']:g}"))
    if protocol.split == "stratified" and study.problem.copies:
        facts.append(("Copies", f"{study.problem.copies:,} rows repeat an earlier one and stay on its side of every split"))
    return facts
