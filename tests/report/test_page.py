"""The page of a study: complete without scripts, self-contained, small, valid, honest in its words, and the same on every run."""

import itertools
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from counterpoise.report import Difference, QuestionPanel, StudyView, Undecided, study_page

from ._sample import QUESTIONS, regression_view, study_view

VOID = {"meta", "br", "hr", "img", "link", "input", "path", "use", "line", "rect", "circle"}


class Reader(HTMLParser):
    """Checks that tags are balanced, and collects what is visible, the ids and every address."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.text, self.ids, self.addresses, self.headings, self.tags = [], [], [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"repeated attribute in <{tag}>"
        self.ids += [value for name, value in attrs if name == "id"]
        self.addresses += [value for name, value in attrs if name in ("src", "href", "data", "srcset", "xlink:href")]
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1:]}>"
            self.open.pop()

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text.append(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


@pytest.fixture(scope="module")
def page():
    return study_page(study_view())


@pytest.fixture(scope="module")
def reader(page):
    return Reader(page)


@pytest.mark.parametrize("view", [study_view(), regression_view(), StudyView("t", "c", "r", (), ())], ids=["full", "regression", "empty"])
def test_html_is_balanced_with_unique_ids_and_ordered_headings(view):
    reader = Reader(study_page(view))
    assert len(reader.ids) == len(set(reader.ids))
    assert reader.headings[0] == 1 and reader.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(reader.headings, reader.headings[1:], strict=False))
    inner = [address for address in reader.addresses if address.startswith("#")]
    assert {address[1:] for address in inner} <= set(reader.ids)
    labels = [attrs[name] for _, attrs in reader.tags for name in ("aria-labelledby",) if name in attrs]
    assert {label for group in labels for label in group.split()} <= set(reader.ids)


def test_nothing_is_loaded_and_nothing_is_executed(page, reader):
    assert all(address.startswith("#") for address in reader.addresses)
    assert "<script" not in page and not re.search(r"\son\w+=", page)
    assert "url(" not in page and "@import" not in page and "http" not in page
    assert len(page.encode()) < 300_000  # of the 2 MB it may have


def test_everything_is_said_without_scripts(reader):
    view = study_view()
    words = reader.words
    wanted = [view.title, view.command, view.recommendation, view.data, *view.reasons, *view.warnings, view.diagnosis.headline]
    wanted += [*view.diagnosis.sentences, *view.notices, *(value for pair in view.protocol + view.versions for value in pair)]
    wanted += [reason for rows in (view.not_applicable, view.failed) for _, _, reason in rows]
    wanted += [row.sentence for panel in view.questions for row in panel.rows]
    wanted += ["0.912", "0.894", "+0.018", "not contradicted", "Measured by hold-out on 2,236 rows, 52 of them positive"]
    wanted += ["26 true", "74 false", "too few to judge: fewer than 20 positive rows", "harbor (worst)", "74.5", "about 5.3 × (1,118 more)"]
    missing = [text for text in wanted if re.sub(r"\s+", " ", text) not in words]
    assert missing == []


def test_sections_come_in_the_order_of_what_matters(reader):
    order = ["recommendation", "differences", "arms", "threshold", "calibration", "diagnosis", "groups", "undecided", "protocol"]
    assert [name for name in reader.ids if name in order] == order
    regression = Reader(study_page(regression_view()))
    expected = ["recommendation", "differences", "arms", "ranges", "protocol"]
    assert [name for name in regression.ids if name in [*order, "ranges"]] == expected


def test_warnings_come_before_the_reasons(page):
    view = study_view(warnings=("The placebo appears to help: do not trust this study.",))
    page = study_page(view)
    assert page.index(view.recommendation) < page.index("The placebo appears to help") < page.index("It makes the probabilities worse")


def test_words_that_mislead_do_not_appear(page):
    for text in (page, study_page(regression_view())):
        for word in ("significan", "p-value", "p value", "p <", "p&lt;"):
            assert word not in text.lower()


def test_verdicts_carry_a_glyph_and_a_word(page):
    for glyph, word in (("▲", "helps"), ("▼", "harms"), ("■", "no difference"), ("○", "undecided"), ("×", "failed")):
        assert re.search(rf'aria-hidden="true">{glyph}</span> {word}', page)


def test_placebo_is_last_and_off_scale_intervals_do_not_squeeze_the_others():
    from counterpoise.report._figures import _limits, forest_lines

    panel = study_view().questions[0]
    lines = forest_lines(panel.rows)
    assert [line for line in lines if isinstance(line, str)] == ["linear", "trees", "mlp", "placebo"]
    assert [line.is_placebo for line in lines[-3:]] == [True] * 3
    low, high = _limits(panel)
    assert low < min(row.low for row in panel.rows) and max(row.high for row in panel.rows) < high
    huge = replace(panel, rows=(*panel.rows, replace(panel.rows[0], low=-50.0, estimate=-40.0)))
    assert _limits(huge)[0] > -0.2


def test_page_is_the_same_on_every_run_and_in_every_process(page):
    assert study_page(study_view()) == page
    code = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1])\n"
        "from report._sample import study_view\nfrom counterpoise.report import study_page\n"
        "print(hashlib.sha256(study_page(study_view()).encode()).hexdigest())"
    )
    import hashlib
    from pathlib import Path

    found = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parents[1])], capture_output=True, text=True, check=True, timeout=120
    ).stdout.strip()
    assert found == hashlib.sha256(page.encode()).hexdigest()


def test_names_from_the_data_are_text_and_not_markup():
    from ._sample import diagnosis_part

    nasty = "<img src=x onerror=alert(1)> $x_1$ & 0.123456"
    panel = study_view().questions[0]
    rows = (replace(panel.rows[0], arm="<b>$a$", learner="l & r"), *panel.rows[1:])
    view = study_view(
        title=nasty,
        questions=(replace(panel, rows=rows),),
        diagnosis=replace(diagnosis_part(), names=("normal", "0.123456")),
        command=nasty,
    )
    page = study_page(view)
    reader = Reader(page)
    assert "<img" not in page and "<b>$" not in page
    assert nasty in reader.words
    assert "<b>$a$" in reader.words  # neither markup nor mathematics
    assert "0.123456" in reader.words  # decimals of drawings are shortened, those of words are not


def test_unknown_numbers_are_dashes():
    nan = float("nan")
    panel = study_view().questions[0]
    failed = replace(panel.rows[0], estimate=nan, low=nan, high=nan, verdict="failed", sentence="")
    page = study_page(study_view(questions=(replace(panel, rows=(failed,), rope=nan),), headline=(), undecided=()))
    assert not re.search(r"\bnan\b", page)
    assert re.search(r">\s*–\s*</text>", page)


def test_names_of_metrics_are_written_as_words():
    panel = replace(study_view().questions[0], metric="balanced_accuracy", unit="balanced accuracy")
    view = study_view(questions=(panel,), metrics=("balanced_accuracy",))
    words = Reader(study_page(view)).words
    assert "balanced_accuracy" not in words
    assert "difference in balanced accuracy <" not in words and "(balanced accuracy)" not in words
    assert "differences smaller than 0.01 balanced accuracy" in words


def test_extreme_curves_are_drawn():
    import numpy as np

    view = study_view()
    infinite = view.threshold.threshold.copy()
    infinite[[0, -1]] = -np.inf, np.inf
    curve = view.calibration.curves[0]
    empty = replace(curve, predicted=np.full(10, np.nan), observed=np.full(10, np.nan), count=np.zeros(10))
    page = study_page(
        study_view(
            threshold=replace(view.threshold, threshold=infinite, precision=np.full(infinite.size, np.nan)),
            calibration=replace(view.calibration, curves=(replace(curve, predicted=np.r_[np.nan, curve.predicted[1:]]), empty)),
        )
    )
    assert not re.search(r"\b(nan|inf)\b", page)
    single = replace(
        view.threshold, threshold=np.zeros(1), precision=np.ones(1), recall=np.ones(1), balanced_accuracy=np.ones(1), chosen=0.0
    )
    alone = study_page(study_view(threshold=single, calibration=replace(view.calibration, curves=(curve,))))
    assert "as they come" in alone and "after prior correction" not in alone


def test_every_table_has_a_caption_and_every_figure_a_name(reader):
    tags = [tag for tag, _ in reader.tags]
    assert tags.count("table") == tags.count("caption") > 4
    drawings = [attrs for tag, attrs in reader.tags if tag == "svg"]
    assert len(drawings) == len(QUESTIONS) + 4
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in drawings)


def test_figures_follow_the_theme(page):
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.S)
    colors = set(re.findall(r"#[0-9a-fA-F]{6}", " ".join(drawings)))
    assert colors == set()
    assert "var(--ink)" in drawings[0] and "var(--blue)" in drawings[0]
    assert "font-family" not in " ".join(drawings)


def test_theme_and_print(page):
    assert "prefers-color-scheme: dark" in page and "@media print" in page
    names = set(re.findall(r"var\((--[a-z]+)\)", page))
    light, dark, printed = (set(re.findall(r"(--[a-z]+):", block)) for block in re.findall(r":root \{(.*?)\}", page, flags=re.S))
    assert names - {"--part", "--fill"} <= light  # these two belong to a bar
    assert dark == printed == {"--paper", "--ink", "--muted", "--rule", "--band", "--blue", "--red", "--gray", "--tint"}


@pytest.mark.parametrize("block", range(2), ids=["light", "dark"])
def test_text_has_contrast(page, block):
    variables = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{3,6})\b", re.findall(r":root \{(.*?)\}", page, flags=re.S)[block]))

    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a, b):
        low, high = sorted((luminance(variables[a]), luminance(variables[b])))
        return (high + 0.05) / (low + 0.05)

    for color in ("ink", "muted", "blue", "red"):
        assert contrast(color, "paper") >= 4.5, color
        assert contrast(color, "tint") >= 4.5, color
    assert contrast("gray", "paper") >= 3


def test_marks_of_one_size_are_not_explained():
    part = study_view().calibration
    alike = replace(part, curves=tuple(replace(curve, count=np.full(len(curve.count), 37.0)) for curve in part.curves))
    said = "Larger marks stand for more rows"
    assert said in study_page(study_view()) and said not in study_page(study_view(calibration=alike))


def test_what_no_data_could_settle_has_no_number():
    words = Reader(study_page(study_view(undecided=(Undecided("weights", "trees", "decisions", -0.02, 0.02, 431.0, 111_800),)))).words
    assert "more than 20 \N{MULTIPLICATION SIGN}" in words.replace("\N{NO-BREAK SPACE}", " ") and "111,800" not in words


def test_a_metric_is_named_once_and_differences_have_the_digits_of_their_rope():
    rows = (Difference("weights", "linear", 0.00012, -0.0009, 0.0011, "undecided"),)
    panel = QuestionPanel("ranking", "Ranking", "auroc", rows, rope=0.00017, unit="AUROC")
    words = Reader(study_page(study_view(questions=(panel,), headline=()))).words
    assert "difference in AUROC" in words and "(AUROC)" not in words and "auroc" not in words
    assert "differences smaller than 0.00017 AUROC" in words
    assert "+0.00012 (\N{MINUS SIGN}0.00090 to +0.00110)" in words


def test_labels_of_the_thresholds_keep_apart_and_inside():
    import matplotlib

    from counterpoise.report import _figures, _plots

    panel = replace(study_view().threshold, default=2.9)
    with matplotlib.rc_context(), _plots.style():
        fig = _figures._thresholds(panel)
        fig.canvas.draw()
        (ax,) = fig.axes
        boxes = {text.get_text(): text.get_window_extent() for text in ax.texts}
        assert all(box.x1 <= fig.bbox.width for box in boxes.values())
        assert boxes["precision"].y1 <= boxes["0.5"].y0 or not boxes["precision"].overlaps(boxes["0.5"])
        assert not boxes["recall"].overlaps(boxes["0.5"]) and not boxes["balanced accuracy"].overlaps(boxes["0.5"])


def test_names_of_learning_curves_keep_apart_and_inside():
    from counterpoise.report import _figures, _plots
    from counterpoise.report._view import Growth, GrowthLine

    rows = np.array([200.0, 400.0, 800.0])
    ahead = np.geomspace(200.0, 3200.0, 60)
    names = [
        "linear",
        "my-very-long-learner-name, weights",
        "HistGradientBoostingClassifier-1",
        "HistGradientBoostingClassifier-2",
        "trees, fair-penalty",
    ]
    with _plots.style():
        lines = [
            GrowthLine(name, rows, 9e4 - rows, ahead, 9e4 - ahead, 9e4 - 2 * ahead, 9e4 - ahead / 2, name != "linear") for name in names
        ]
        figure = _figures._growth(Growth("mae", tuple(lines)))
        figure.canvas.draw()
        boxes = {text.get_text(): text.get_window_extent() for text in figure.axes[0].texts if text.get_text() != "all rows"}
        assert len(boxes) == 5 and all(box.x1 < figure.bbox.width for box in boxes.values())
        levels = sorted((box.y0, box.y1) for box in boxes.values())
        assert all(above[0] > below[1] for below, above in itertools.pairwise(levels))
        assert "90,000" in [tick.get_text() for tick in figure.axes[0].get_yticklabels()]


def test_tables_of_groups_scroll_in_a_box_of_their_own(page):
    """Long names of crossed groups do not widen the page."""
    tables = re.findall(r"<div ([^>]*)>\s*<table class=\"groups\">", page)
    assert tables and page.count('class="groups"') == len(tables)
    assert all('class="scroll roomy" tabindex="0" role="region" aria-label="Groups by ' in attributes for attributes in tables)
    assert ".roomy { width: min(" in page and "100vw - 2.5rem)" in page


def test_a_wide_table_says_that_it_goes_on(page):
    assert "scroll it sideways" in page and "overflow-x: auto" in page
