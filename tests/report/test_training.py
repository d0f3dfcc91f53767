"""Figure and page of the diagnosis of a training step: the numbers are where they belong, and what is unknown is a dash."""

import re
from dataclasses import replace

import matplotlib
import numpy as np
import pytest

from counterpoise._errors import InputError
from counterpoise.report import TrainingView, _plots, training_curves, training_figure, training_page
from counterpoise.report._format import distinct
from counterpoise.report._training import factors, relative, share_text, standouts

from .test_page import Reader

TICK, DOT, TRIANGLE, RING = "|", "o", "<", "o"


def view_of(share, counts, **changes):
    share, counts = np.asarray(share, dtype=float), np.asarray(counts)
    groups = len(share)
    unknown = np.full(groups, np.nan)
    cosine = np.full((groups, groups), 0.25)
    np.fill_diagonal(cosine, 1)
    view = TrainingView(
        headline="Class 'b' is 10.0 % of the rows and 80.0 % of the step now.",
        sentences=("Class 'b' is loud.",),
        notes=("Of the head alone.",),
        kind="class",
        names=tuple("abcdefghijklmnopqrstuvwxyz"[:groups]) if groups <= 26 else tuple(f"g{k}" for k in range(groups)),
        counts=counts,
        pi=counts / counts.sum(),
        share=share,
        share_lo=unknown,
        share_hi=unknown,
        settled=False,
        rho=unknown,
        coherence=unknown,
        alignment=unknown,
        loss=unknown,
        cosine=cosine,
        norm=0.83,
        noise=0.05,
        examples=int(counts.sum()),
        engine="ghost",
        metric="sgd",
    )
    return replace(view, **changes)


@pytest.fixture
def loud():
    """Class b: as many as a, eight times as loud; c is pushed back and disagrees with itself."""
    share = np.array([0.3, 0.8, -0.1])
    return view_of(
        share,
        [400, 400, 200],
        share_lo=share - 0.05,
        share_hi=share + 0.07,
        rho=np.array([1.0, 8.0, 1.0]),
        coherence=np.array([0.25, 0.25, 0.01]),
        alignment=np.array([0.4, 0.9, -0.3]),
        loss=np.array([0.1234, 2.5, 0.0004]),
    )


def texts(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def marks(figure, row):
    """Marker -> x of what is drawn on a row of the axes with the shares."""
    found = {}
    for line in figure.axes[0].lines:
        if line.get_marker() not in ("None", None, "") and len(line.get_xdata()) == 1 and line.get_ydata()[0] == row:
            found[line.get_marker()] = float(line.get_xdata()[0])
    return found


def cells(figure, column):
    return [text.get_text() for text in figure.axes[1 + column].texts]


def test_ticks_dots_and_whiskers_are_at_the_shares(loud):
    figure = training_figure(loud)
    assert marks(figure, 0) == {TICK: 0.4, DOT: 0.3}
    assert marks(figure, 1) == {TICK: 0.4, DOT: 0.8}
    assert marks(figure, 2) == {TICK: 0.2, TRIANGLE: -0.1}  # below zero: another mark, not only another color
    whiskers = [line.get_xdata() for line in figure.axes[0].lines if line.get_linewidth() == 5 and line.get_alpha() < 1]
    np.testing.assert_allclose(np.array(whiskers, dtype=float), [[0.25, 0.37], [0.75, 0.87], [-0.15, -0.03]], rtol=1e-12, atol=1e-12)
    low, high = figure.axes[0].get_xlim()
    assert low < -0.15 and high > 0.87
    found = texts(figure)
    assert {"30\u202f%", "80\u202f%", "\u221210\u202f%", "0.123", "2.500", "0.0004"} <= set(found)
    assert loud.headline in found and "below zero: the step works against it" in found


def test_factors_are_relative_to_the_median_of_the_others(loud):
    values = factors(loud)
    np.testing.assert_allclose(values["many"], [400 / 300, 400 / 300, 0.5])
    np.testing.assert_allclose(values["loud"], [1 / 4.5, 8.0, 1 / 4.5])
    np.testing.assert_allclose(values["unanimous"], [0.5 / 0.3, 0.5 / 0.3, 0.2])  # of the root, which is the factor
    np.testing.assert_allclose(values["aligned"], [0.4, 0.9, -0.3])


def test_standouts_carry_a_mark_and_the_rest_does_not(loud):
    figure = training_figure(loud)
    assert cells(figure, 0) == ["1.3×", "1.3×", "▼ 0.50×"]
    assert cells(figure, 1) == ["▼ 0.22×", "▲ 8.0×", "▼ 0.22×"]
    assert cells(figure, 2) == ["▲ 1.7×", "▲ 1.7×", "▼ 0.20×"]
    assert cells(figure, 3) == ["+0.40", "▲ +0.90", "▼ \u22120.30"]
    blue, red = matplotlib.colors.to_rgb(_plots.BLUE), matplotlib.colors.to_rgb(_plots.RED)
    assert [bar.get_facecolor()[:3] for bar in figure.axes[2].patches] == [red, blue, red]
    even = view_of([0.5, 0.5], [100, 110], rho=np.array([1.0, 1.2]), coherence=np.array([0.2, 0.25]), alignment=np.array([0.7, 0.7]))
    assert standouts(even, np.arange(2)) == {"many": {}, "loud": {}, "unanimous": {}, "aligned": {}}


def test_only_what_dominates_is_bold(loud):
    def bold(view):
        return {text.get_text() for text in training_figure(view).axes[0].texts if text.get_weight() == "bold"}

    assert bold(loud) == {"b", "80\u202f%"}
    assert bold(view_of([0.5, 0.5], [100, 110])) == set()
    doubtful = replace(loud, share_lo=np.array([0.2, -0.5, -0.3]), share_hi=np.array([0.5, 2.0, 0.1]))
    assert bold(doubtful) == set()  # as far as the interval says, it may have no more than its head count


def test_unknown_factors_are_dashes_and_not_zeros():
    figure = training_figure(view_of([0.4, 0.6], [50, 50]))
    assert [cells(figure, column) for column in (1, 2, 3)] == [["–", "–"]] * 3
    assert cells(figure, 0) == ["1.0×", "1.0×"]
    nothing = view_of([np.nan, np.nan], [50, 50], cosine=np.full((2, 2), np.nan))
    assert marks(training_figure(nothing), 0) == {TICK: 0.5}
    page = training_page(nothing)
    assert not re.search(r"\bnan\b", page.replace(nothing.headline, "")) and "Who pulls with whom" not in page
    row = re.search(r'<tr><th scope="row">a</th>(.*?)</tr>', page).group(1)
    assert re.findall(r">([^<]+)<", row) == ["50", "50.0\u202f%", *["–"] * 5]


def test_no_agreement_is_zero_and_what_is_relative_to_zero_is_unknown():
    view = view_of([0.4, 0.3, 0.3], [50, 50, 50], rho=np.ones(3), coherence=np.array([-0.1, 0.2, 0.2]))
    assert cells(training_figure(view), 2)[0] == "▼ 0×"
    assert np.isnan(relative(np.array([3.0, 0.0, 0.0]))[0])
    assert np.isnan(relative(np.array([3.0]))).all()
    np.testing.assert_allclose(relative(np.array([3.0, np.nan, 2.0])), [1.5, np.nan, 2 / 3])


def test_a_step_without_direction_is_said_and_its_shares_have_another_mark():
    view = view_of([0.4, 0.6], [50, 50], settled=True, norm=0.0131, noise=0.0112, alignment=np.array([0.3, 0.4]))
    figure = training_figure(view)
    assert any("has no direction" in text and "0.0131" in text and "0.0112" in text for text in texts(figure))
    ring = next(line for line in figure.axes[0].lines if line.get_marker() == RING)
    assert ring.get_markerfacecolor() == _plots.PAPER and float(ring.get_xdata()[0]) == 0.4
    assert "of the pull" in texts(figure) and not any(text.startswith("of the step") for text in texts(figure))
    assert cells(figure, 3) == ["–", "–"]
    words = Reader(training_page(view)).words
    assert "of the pull" in words and "signed share" not in words


def test_many_groups_are_cut_to_those_that_differ_most():
    share = np.full(40, 1 / 40)
    share[[7, 33]] += [0.3, -0.3]
    figure = training_figure(view_of(share, np.full(40, 10)))
    names = {text for text in texts(figure) if re.fullmatch(r"g\d+", text)}
    assert len(names) == 24 and {"g7", "g33"} <= names
    assert any(text.startswith("16 more not shown") for text in texts(figure))
    assert not any("not shown" in text for text in texts(training_figure(view_of(np.full(24, 1 / 24), np.full(24, 10)))))
    page = Reader(training_page(view_of(share, np.full(40, 10))))
    assert all(f"g{k} " in page.words for k in range(40))  # the table has them all


def test_a_huge_interval_ends_in_an_arrow_and_leaves_the_shares_readable():
    view = view_of([0.4, 0.6], [50, 50], share_lo=np.array([0.3, -40.0]), share_hi=np.array([0.5, 50.0]))
    figure = training_figure(view)
    low, high = figure.axes[0].get_xlim()
    assert low > -1 and high < 2
    assert {"<", ">"} <= set(marks(figure, 1))


def test_one_group_has_nothing_to_compare():
    figure = training_figure(view_of([1.0], [50], alignment=np.ones(1), rho=np.ones(1), coherence=np.ones(1)))
    assert [cells(figure, column) for column in range(4)] == [["–"], ["–"], ["–"], ["+1.00"]]
    assert "Who pulls with whom" not in training_page(view_of([1.0], [50]))


def test_names_are_text_and_stay_apart():
    nasty = ("<b>$x_1$</b>", "hospital_university_north_ward_A", "hospital_university_north_ward_B")
    view = view_of([0.5, 0.3, 0.2], [50, 30, 20], names=nasty, headline="<script>alert(1)</script> & $y$", sentences=("a < b",))
    page = training_page(view)
    assert "<b>" not in page and "<script" not in page
    reader = Reader(page)
    assert all(name in reader.words for name in nasty) and "<script>alert(1)</script> & $y$" in reader.words
    shown = [text for text in texts(training_figure(view)) if text.startswith("hosp") and text.endswith(("_A", "_B"))]
    assert len(set(shown)) == 2
    assert distinct(["abcdefghij", "abcdefghik", "short"], 7) == ["abc…hij", "abc…hik", "short"]


def test_page_is_complete_balanced_and_the_same_every_time(loud):
    page = training_page(loud)
    reader = Reader(page)
    assert len(reader.ids) == len(set(reader.ids)) and reader.headings[0] == 1
    assert all(address.startswith("#") for address in reader.addresses) and "<script" not in page and "http" not in page
    wanted = [loud.headline, *loud.sentences, *loud.notes, "1,000 examples, 3 classes", "The step is the mean gradient", "ghost"]
    wanted += ["30.0 %", "25.0 to 37.0 %", "\u221210.0 %", "8.000", "+0.01", "+0.90", "2.500", "0.83, sampling error 0.05"]
    assert [text for text in wanted if text not in reader.words] == []
    assert training_page(loud) == page
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.S)
    assert len(drawings) == 2 and not re.search(r"#[0-9a-fA-F]{6}", " ".join(drawings))  # all colors follow the theme
    assert "▲ 8.0×" in drawings[0] and loud.headline not in re.sub(r"<[^>]*>", "", drawings[0])  # the page says it above
    assert "the optimizer’s update" in training_page(replace(loud, metric="optimizer"))
    tags = [tag for tag, _ in reader.tags]
    assert tags.count("table") == tags.count("caption") == 1


def test_cosines_between_groups_are_written_or_between_many_marked():
    cosine = np.array([[1.0, -0.43, 0.2], [-0.43, 1.0, np.nan], [0.2, np.nan, 1.0]])
    page = training_page(view_of([0.4, 0.3, 0.3], [5, 5, 5], cosine=cosine))
    drawing = re.findall(r"<svg.*?</svg>", page, flags=re.S)[1]
    inside = re.findall(r">([^<>]+)</text>", drawing)
    assert inside.count("\u22120.43") == inside.count("+0.20") == 2 and inside.count("–") == 2
    assert "pairs with a negative one: 1; the lowest is \u22120.43, of a and b" in drawing
    groups = 20
    many = np.full((groups, groups), 0.3)
    many[2, 5] = many[5, 2] = -0.6
    drawing = re.findall(r"<svg.*?</svg>", training_page(view_of(np.full(groups, 0.05), np.full(groups, 9), cosine=many)), flags=re.S)[1]
    assert re.findall(r">([^<>]+)</text>", drawing).count("\u2212") == 2


@pytest.mark.parametrize(("value", "text"), [(1.41, "141"), (0.31, "31"), (0.042, "4.2"), (-0.031, "\u22123.1"), (0.0, "0.0")])
def test_shares_have_as_many_digits_as_they_need(value, text):
    assert share_text(value) == text + "\u202f%"


def test_curves_show_the_shares_in_the_order_of_the_steps():
    views = [view_of([0.9, 0.1], [50, 50]), view_of([0.2, 0.8], [50, 50]), view_of([0.4, 0.6], [50, 50], settled=True)]
    figure = training_curves([views[1], views[0], views[2]], [100, 0, 200])
    ax = figure.axes[0]
    solid = next(line for line in ax.lines if line.get_color() == _plots.BLUE)
    np.testing.assert_allclose(solid.get_ydata(), [0.9, 0.2, np.nan])
    hollow = next(line for line in ax.lines if line.get_color() == _plots.GRAY)
    np.testing.assert_allclose(hollow.get_ydata(), [np.nan, np.nan, 0.4])
    rows = next(line for line in ax.lines if line.get_color() == _plots.INK)
    np.testing.assert_allclose(rows.get_ydata(), 0.5)
    assert list(solid.get_xdata()) == [0, 100, 200] and {"step 0", "200"} <= set(texts(figure))


def test_curves_keep_the_top_groups_and_follow_names():
    share = np.full(14, 1 / 14)
    share[[3, 9]] += [0.2, -0.2]
    views = [view_of(share, np.full(14, 10))] * 3
    figure = training_curves(views, range(3))
    assert len(figure.axes) == 10 and {"d", "j"} <= set(texts(figure))
    assert any(text.startswith("4 more not shown") for text in texts(figure))
    # A group that appears later has a gap before.
    later = training_curves([view_of([1.0], [5]), view_of([0.3, 0.7], [5, 5], names=("b", "a"))], [0, 1])
    lines = [next(line for line in ax.lines if line.get_color() == _plots.BLUE) for ax in later.axes]
    np.testing.assert_allclose([line.get_ydata() for line in lines], [[1.0, 0.7], [np.nan, 0.3]])


def test_curves_of_one_step_and_bad_input():
    view = view_of([0.4, 0.6], [50, 50])
    assert "step 7" in texts(training_curves([view], [7]))
    with pytest.raises(InputError, match="steps"):
        training_curves([view], [0, 1])
    with pytest.raises(InputError, match="steps"):
        training_curves([], [])


def test_figures_leave_the_settings_of_the_user_alone(loud):
    before = dict(matplotlib.rcParams)
    training_figure(loud)
    training_curves([loud], [0])
    training_page(loud)
    assert dict(matplotlib.rcParams) == before
