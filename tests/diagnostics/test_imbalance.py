"""Class counts and the three measures of imbalance."""

import math

import numpy as np
import pytest

from counterpoise._errors import InputError
from counterpoise.diagnostics import class_imbalance


def test_values_by_hand():
    report = class_imbalance([0] * 6 + [1] * 3 + [2])
    assert report.names == ("0", "1", "2")
    assert report.counts.tolist() == [6, 3, 1]
    assert report.rho == 6
    entropy = -(0.6 * math.log(0.6) + 0.3 * math.log(0.3) + 0.1 * math.log(0.1))
    assert report.effective_classes == pytest.approx(math.exp(entropy), abs=1e-12)
    pairs = sum(abs(a - b) for a in (0.6, 0.3, 0.1) for b in (0.6, 0.3, 0.1))
    assert report.gini == pytest.approx(pairs / (2 * 3), abs=1e-12)


def test_equal_classes_are_the_neutral_element():
    report = class_imbalance(np.repeat(["a", "b", "c", "d"], 5))
    assert (report.rho, report.gini) == (1.0, 0.0)
    assert report.effective_classes == pytest.approx(4, abs=1e-12)
    assert report.summary() == "All 4 classes have 5 rows."


def test_summary_names_the_rarest_class_and_the_frame_lists_all():
    report = class_imbalance([0] * 977 + [1] * 23, ["normal", "cancer"])
    assert report.summary().startswith("Class 'cancer' has 23 of 1,000 rows (2.3 %), 1 for every 42.5 of class 'normal'.")
    assert report.to_frame().rows() == [("normal", 977, 0.977), ("cancer", 23, 0.023)]
    assert report.plot().axes


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([[0, 1], [1, 0]], "y: got shape"),
        ([0, 0, 0], "at least two classes"),
        ([0.0, float("nan"), 1.0], "1 missing labels"),
        (np.array(["a", None, "b"], dtype=object), "1 missing labels"),
        ([0.5, 1.5, 1.0], "numbers with fractions"),
    ],
)
def test_bad_labels(y, message):
    with pytest.raises(InputError, match=message):
        class_imbalance(y)


def test_names_must_fit():
    with pytest.raises(InputError, match="names: got 3 names"):
        class_imbalance([0, 1], ["a", "b", "c"])
