"""Numbers as the page writes them."""

import pytest

from counterpoise.report import _format as f


@pytest.mark.parametrize(
    ("rope", "digits"), [(0.01, 3), (0.005, 4), (0.02, 3), (0.00017, 5), (0.0007, 5), (480.0, 0), (float("nan"), 3), (0.0, 3)]
)
def test_digits_follow_the_tolerance(rope, digits):
    assert f.digits_for(rope) == digits


def test_signs_and_zeros():
    assert f.signed(0.0312) == "+0.031"
    assert f.signed(-0.0312) == "\N{MINUS SIGN}0.031"
    assert f.signed(-0.0001) == "0.000"
    assert f.signed(-310.4, 0) == "\N{MINUS SIGN}310"
    assert f.signed(float("nan")) == f.DASH
    assert f.interval(-0.02, 0.03, 2) == "\N{MINUS SIGN}0.02 to +0.03"


def test_sizes():
    assert (f.amount(0.9012), f.amount(12.345), f.amount(31240.4), f.amount(float("nan"))) == ("0.901", "12.35", "31,240", f.DASH)
    assert (f.plain(0.010), f.plain(480.0)) == ("0.01", "480")
    assert (f.seconds(1.24), f.seconds(88.2), f.seconds(600), f.seconds(float("nan"))) == ("1.2 s", "88 s", "10 min", f.DASH)
    assert f.percent(0.627).startswith("62.7")
    assert f.shorten("balanced-forest", 8) == "balance\N{HORIZONTAL ELLIPSIS}"


def test_names_of_metrics():
    assert [f.words(name) for name in ("balanced_accuracy", "auroc", "log loss", "mae")] == [
        "balanced accuracy",
        "AUROC",
        "log loss",
        "MAE",
    ]


def test_far_too_little_data_is_not_a_number():
    assert [f.times(value) for value in (1.44, 12.4, 20.0, 20.1, float("inf"), float("nan"))] == [
        "about 1.4\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}",
        "about 12\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}",
        "about 20\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}",
        "more than 20\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}",
        "more than 20\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}",
        "\N{EN DASH}",
    ]
