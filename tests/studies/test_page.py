"""The page of a real study shows the numbers of that study, for every kind of problem, and nothing that misleads."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import balanced_accuracy_score, precision_score, recall_score
from tests.studies.small import cells, numbers, small_study

import counterpoise
from counterpoise.groups import Groups
from counterpoise.report._view import StudyView
from counterpoise.studies import Learner, Study, TrainingKit, _study
from counterpoise.studies._learners import BUILT_IN as LEARNERS
from counterpoise.studies._page import TITLES, study_view
from counterpoise.studies._verdicts import Verdict, Verdicts


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    table = numbers(400, 160).with_columns(city=np.random.default_rng(0).choice(np.array(["Oslo", "Bergen"]), 400))
    return counterpoise.study(
        table, target="y", groups="city", learners=["linear", "trees"], remedies=["weights", "over", "prior", "focal"], repeats=2, folds=3,
        jobs=1, out=tmp_path_factory.mktemp("page"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def view(study: Study) -> StudyView:
    return study_view(study)


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"(?s)<(style|script)\b.*?</\1>", " ", page)))


def test_every_question_has_its_verdicts_with_the_placebo_last(study: Study, view: StudyView) -> None:
    assert [panel.question for panel in view.questions] == ["decisions", "ranking", "probabilities", "groups", "dependence"]
    for panel in view.questions:
        verdicts = study.verdicts(panel.question)
        assert panel.title == TITLES[panel.question] and panel.metric == study.metrics[panel.question]
        named = {(v.learner, f"{v.arm} ({v.group})" if v.group else v.arm): v.estimate for v in verdicts}
        assert {(row.learner, row.arm): row.estimate for row in panel.rows} == named
        assert [row.is_placebo for row in panel.rows][-2:] == [True, True] and sum(row.is_placebo for row in panel.rows) == 2
        assert all(row.sentence for row in panel.rows)


def test_the_table_has_every_arm_and_one_recommendation(study: Study, view: StudyView) -> None:
    assert len(view.headline) == 2 * 6
    assert sum(row.is_recommended for row in view.headline) == 1 and sum(row.is_baseline for row in view.headline) == 2
    row = next(row for row in view.headline if (row.learner, row.arm) == ("linear", "over"))
    assert row.values["auroc"] == pytest.approx(cells(study, "over", "linear")["auroc"].mean())
    assert set(row.differences) == {"decisions", "ranking", "probabilities", "groups", "dependence"}
    assert next(row for row in view.headline if row.arm == "nothing@0.5").note == "shown only"
    assert view.not_applicable == tuple((name, "focal", "only for nets (mlp)") for name in ("linear", "trees"))


def test_the_threshold_panel_is_that_of_the_first_repeat(study: Study, view: StudyView) -> None:
    panel = view.threshold
    assert panel is not None and panel.positive == "yes"
    scores, y = study.scores_of(panel.learner, panel.arm)[0][0], study.problem.y
    at = int(np.argmin(np.abs(panel.threshold - panel.chosen)))
    assert panel.precision[at] == pytest.approx(precision_score(y, scores > panel.chosen))
    assert panel.recall[at] == pytest.approx(recall_score(y, scores > panel.chosen))
    assert panel.balanced_accuracy[at] == pytest.approx(balanced_accuracy_score(y, scores > panel.chosen))
    assert panel.per_100_alarms.true == pytest.approx(100 * panel.precision[at])
    assert panel.per_100_alarms.true + panel.per_100_alarms.false == pytest.approx(100)
    assert panel.per_100_alarms.missed == pytest.approx(100 * (1 - panel.recall[at]))
    top = np.argsort(-scores)[:50]
    assert next(one for one in panel.at_k if one.k == 50).precision == pytest.approx(y[top].mean())


def test_calibration_is_corrected_where_the_frequencies_were_changed(
    view: StudyView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert view.calibration is not None and len(view.calibration.curves) == 1 and "nothing to correct" in view.calibration.note
    from counterpoise.studies._page import _calibration

    study = small_study(numbers(600, 60), target="y", remedies=["over"], out=tmp_path)
    calibration = _calibration(study, "linear", "over")
    assert calibration is not None
    as_it_comes, corrected = calibration.curves
    assert corrected.log_loss < as_it_comes.log_loss - 0.1  # equal counts in training cost the probabilities dearly
    base = cells(study)["log_loss"].mean()
    assert corrected.log_loss == pytest.approx(base, abs=0.05)


def test_the_papers_behind_the_arms(study: Study, view: StudyView) -> None:
    by_arm = {row.arm: row.paper for row in view.headline}
    assert (by_arm["weights"], by_arm["prior"], by_arm["nothing"], by_arm["placebo"]) == ("15", "15", "", "")
    (paper,) = view.papers
    assert (paper.number, paper.arxiv, paper.command) == ("15", "1710.05381", "counterpoise replicate imbalance-study")
    assert set(paper.arms) == {"prior", "weights", "over"}
    page = text_of(study.report().read_text())
    assert "Papers behind the arms" in page and paper.title in page and paper.command in page


def test_who_holds_what_the_ranking_can_still_gain(study: Study, view: StudyView) -> None:
    (table,) = view.groups
    assert table.shares and "choose by AUROC" in table.note
    assert sum(row.auroc_share for row in table.rows) == pytest.approx(1)
    assert sum(row.precision_share for row in table.rows) == pytest.approx(1)
    # To AUROC every repair in a fold is worth the same: a group has as many as it has positives with a negative right above them.
    scores, _ = study.scores_of(study.recommendation.learner, study.recommendation.arm)
    gain = np.zeros(2)
    for fold in range(3):
        rows = np.flatnonzero(study.splits.folds(0)[study.splits.rows] == fold)
        rows = rows[np.argsort(-scores[0][rows], kind="stable")]
        y, ids = study.problem.y[study.splits.rows][rows], study.groups["city"].ids[rows]
        mistakes = np.flatnonzero((y[1:] == 1) & (y[:-1] == 0)) + 1
        gain += np.bincount(ids[mistakes], minlength=2) / (y.sum() * (1 - y).sum())
    share = gain / gain.sum()
    names = study.groups["city"].names
    assert {row.name: row.auroc_share for row in table.rows} == pytest.approx(dict(zip(names, share, strict=True)), abs=1e-9)


def test_groups_are_counted(study: Study, view: StudyView) -> None:
    (table,) = view.groups
    assert table.column == "city" and sum(row.rows for row in table.rows) == 400
    decisions = study.decisions_of(study.recommendation.learner, study.recommendation.arm)
    ids, y = study.problem.groups["city"].ids, study.problem.y
    for code, name in enumerate(study.problem.groups["city"].names):
        row = next(row for row in table.rows if row.name == name)
        inside = (ids == code) & (y == 1)
        assert row.recall == pytest.approx(decisions[:, inside].mean())
        assert row.positives == inside.sum() and row.recall_low < row.recall < row.recall_high
        assert row.chosen == pytest.approx(decisions[:, ids == code].mean()) and row.chosen_low < row.chosen < row.chosen_high
    assert table.worst == min(row.recall for row in table.rows) and sum(row.is_worst for row in table.rows) == 1


def test_the_worst_group_is_said_in_the_terminal(study: Study, view: StudyView, monkeypatch: pytest.MonkeyPatch) -> None:
    (table,) = view.groups
    worst = next(row for row in table.rows if row.is_worst)
    (line,) = study.worst_groups
    assert f"recall {worst.recall:.3f} in the worst group, {worst.name!r}, {table.gap:.3f} below the best" in line
    groups = study.problem.groups["city"]
    ids = np.where((groups.ids == 0) & (np.cumsum(groups.ids == 0) > 30), 1, groups.ids)
    few = replace(study.problem, groups={"city": Groups(ids, groups.names, groups.kind)})
    monkeypatch.setattr(study, "problem", few)
    assert study.worst_groups == ["By city: 1 of 2 groups too few to judge (fewer than 20 positives): no worst-group verdict."]


def test_groups_that_are_too_small_leave_no_gap_and_no_column(tmp_path: Path) -> None:
    rare = numbers(240, 60).with_columns(city=pl.Series(["Oslo"] * 10 + ["Bergen"] * 230).shuffle(seed=3))
    study = small_study(rare, target="y", groups="city", remedies=["weights"], folds=3, out=tmp_path)
    view = study_view(study)
    assert not study.verdicts("groups") and "groups" not in [panel.question for panel in view.questions]
    (table,) = view.groups
    assert np.isnan(table.worst) and np.isnan(table.gap) and not any(row.is_worst for row in table.rows)
    assert "1 of 2 groups too few to judge" in study.worst_groups[0]
    page = text_of(study.report().read_text())
    assert "below the best" not in page and "too few to judge" in page


def test_learners_have_one_order(study: Study, view: StudyView) -> None:
    assert study.learners == ["linear", "trees"]
    for rows in (*(panel.rows for panel in view.questions), view.headline):
        assert list(dict.fromkeys(row.learner for row in rows)) == ["linear", "trees"]
    assert study.threshold_gain.index("linear") < study.threshold_gain.index("trees")


def test_what_the_threshold_is_worth_has_its_interval(study: Study) -> None:
    halves = {v.learner: v for v in study.verdicts("decisions") if v.arm == "nothing@0.5"}
    for learner, v in halves.items():
        assert f"{learner} {0 - v.estimate:+.3f} [{0 - v.high:+.3f}, {0 - v.low:+.3f}]" in study.threshold_gain


def test_the_measured_power_is_that_of_the_verdicts(study: Study) -> None:
    sizes = [v.detectable for v in study.verdicts() if v.arm not in ("nothing@0.5", "placebo") and v.low < v.high]
    assert study.detectable == (
        "Measured after 2 repeats: 4 of 5 such studies would find a difference in balanced accuracy of "
        f"{min(sizes):.2g} to {max(sizes):.2g}, depending on the arm."
    )


def test_the_table_knows_the_ropes(study: Study) -> None:
    by_key = {(v.learner, v.arm): v.rope for v in study.verdicts("probabilities")}
    for row in study.table():
        assert row["rope"].get("probabilities") == by_key.get((row["learner"], row["arm"]))


def test_undecided_arms_say_what_it_would_take(study: Study, view: StudyView) -> None:
    undecided = [
        v for q in study.questions for v in study.verdicts(q) if v.verdict == "undecided" and v.arm not in ("placebo", "nothing@0.5")
    ]
    assert any(v.arm == "nothing@0.5" and v.verdict == "undecided" for q in study.questions for v in study.verdicts(q))
    assert "nothing@0.5" not in {row.arm for row in view.undecided}
    assert len(view.undecided) == len(undecided) > 0
    first = view.undecided[0]
    assert first.positives is None or first.positives == int(np.ceil((first.times - 1) * 160))


def test_the_page_says_it_all_and_says_it_plainly(study: Study, view: StudyView) -> None:
    page = study.report().read_text()
    text = text_of(page)
    assert view.recommendation in text.replace("&#39;", "'") and "400 rows" in text and "160" in text
    for words in (
        "linear",
        "trees",
        "over",
        "weights",
        "placebo",
        "Bergen",
        "3 stratified folds, 2 of 2 repeats",
        "Seed 0",
        "not applicable",
    ):
        assert words.lower() in text.lower(), words
    for words in ("significant", "p-value", "p value"):
        assert words not in text.lower()
    assert len(page) < 2_000_000 and not re.search(r'(src|href)="http|url\(\s*["\']?http|@import', page)
    # The winner's own mean is a column of the table, never what is to be expected.
    assert view.expectation is not None and view.expectation.kind == "bias-corrected cross-validation"
    best = max(row.values["balanced_accuracy"] for row in view.headline)
    assert view.expectation.value != pytest.approx(best, abs=1e-6)


def test_a_placebo_that_helps_is_the_first_thing_said(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = study.verdicts("ranking")
    fooled = Verdicts([*honest, Verdict("placebo", "linear", "ranking", 0.1, 0.05, 0.15, "helps", metric="auroc", rope=0.005)])
    given = _study.Study.verdicts
    monkeypatch.setattr(_study.Study, "verdicts", lambda self, q=None, **more: fooled if q == "ranking" else given(self, q, **more))
    warning = "The placebo appears to help (linear, ranking): something is wrong with the data or the protocol; trust no verdict."
    assert warning in study.warnings
    page = study.report(study.folder / "fooled.html").read_text()
    assert warning in page and page.index(warning) < page.index(TITLES["decisions"])


# -- other problems ---------------------------------------------------------------------------------------------------------------------


def times(table: pl.DataFrame) -> pl.DataFrame:
    return table.with_columns(day=np.random.default_rng(0).permutation(len(table)))


PROBLEMS: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "more classes": ("wine", {}, ["3 classes", "class_0"]),
    "regression": (numbers(200).drop("y"), {"target": "x0"}, ["Error where the target is rare", "mean absolute error"]),
    "regression in time": (times(numbers(200).drop("y")), {"target": "x0", "time": "day"}, ["forward chaining in time"]),
    "two classes in time": (times(numbers()), {"target": "y", "time": "day"}, ["forward chaining in time"]),
    "costs": (numbers(), {"target": "y", "cost": {"fp": 1, "fn": 9}}, ["false alarm 1, missed positive 9"]),
    "few positives": (numbers(200, 12), {"target": "y"}, ["12 of class"]),
    "test table": (numbers(300, 90)[:240], {"target": "y", "test": numbers(300, 90)[240:]}, ["60 rows, the test file, used once"]),
    "copies": (pl.concat([numbers(), numbers()[:30]]), {"target": "y"}, ["30 rows repeat an earlier one"]),
    "clusters": (numbers().with_columns(p=pl.int_range(240) % 48), {"target": "y", "cluster": "p"}, ["folds of whole clusters"]),
    "awkward names": (
        numbers().rename({"x0": "<b>&amp;</b>", "x1": "x\n1"}).with_columns(pl.col("y").replace_strict({"yes": "<i>", "no": '"'})),
        {"target": "y"},
        ["&lt;i&gt;"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_kind_of_problem_has_its_page(name: str, tmp_path: Path) -> None:
    data, options, said = PROBLEMS[name]
    study = small_study(data, remedies=["weights", "over"], folds=3, out=tmp_path, **options)
    page = study.report().read_text()
    assert study.failed == []
    for words in [*said, study.recommendation.learner]:
        assert words in page or words in text_of(page), words
    assert not re.search(r"\b(nan|None|inf)\b", text_of(page))
    opened = Study.open(tmp_path)
    assert opened.report(tmp_path / "again.html").read_text() == page


def test_a_training_loop_has_its_page(tmp_path: Path) -> None:
    def loop(kit: TrainingKit, seed: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        return {part: kit.y[rows] + rng.normal(size=len(rows)) for part, rows in (("valid", kit.valid_index), ("test", kit.test_index))}

    study = Study.from_training(loop, np.repeat([0, 1], [90, 40]), ["weights"], seeds=1, folds=3, name="my <loop>", out=tmp_path)
    page = study.report().read_text()
    assert "my &lt;loop&gt;" in page and "loop without a remedy" in page


def _short_net(task: str, params: dict[str, Any], seed: int, **options: Any) -> Any:
    return LEARNERS["mlp"].build(task, {"lr": 0.01, "weight_decay": 0.0}, seed, **options | {"max_steps": 40})


def test_two_columns_of_groups_are_crossed_and_dependence_is_judged(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sex, city = rng.integers(0, 2, 600), rng.integers(0, 2, 600)
    table = numbers(600, 240).with_columns(sex=np.array(["F", "M"])[sex], city=np.array(["Bergen", "Oslo"])[city])
    label = np.where(0.6 * sex + rng.random(600) > 0.8, "yes", "no")
    table = table.with_columns(x2=pl.Series(table["x2"].to_numpy() + 2.0 * sex), y=pl.Series(label))
    net = Learner("net", _short_net, scale=True, takes_loss=True)
    study = small_study(
        table, target="y", groups=["sex", "city"], learners=[net], remedies=["fair-penalty"], folds=2, placebo=False, out=tmp_path
    )
    assert study.failed == [] and study.fairness_arms == [("net", "fair-penalty")]
    cells = study.groups["sex x city"]
    assert cells.names[0] == "sex=F, city=Bergen" and cells.counts().sum() == 480  # a fifth is locked away
    view = study_view(study)
    assert [(one.arm, one.column) for one in view.groups] == [
        *(("Recommended arm", column) for column in ("sex", "city", "sex x city")),
        ("net with fair-penalty", "sex x city"),
    ]
    worst = next(panel for panel in view.questions if panel.question == "groups")
    assert {row.learner for row in worst.rows} == {f"net, by {column}" for column in study.groups}
    judged = {verdict.arm: verdict for verdict in study.verdicts("dependence")}
    assert judged["fair-penalty"].verdict == "helps" and judged["fair-penalty"].provisional
    assert judged["fair-penalty"].sentence().startswith("fair-penalty lowers divergence between groups by 0.")
    ranked = study.table("dependence")
    assert ranked[0]["arm"] == "fair-penalty" and ranked[-1]["metric"]["dependence"] > 0.1
    page = text_of(study.report().read_text())
    assert "Dependence on the groups" in page and "sex=M, city=Oslo" in page and "neither recommends an arm" in page
    opened = Study.open(tmp_path)
    assert list(opened.groups) == ["sex", "city", "sex x city"]
