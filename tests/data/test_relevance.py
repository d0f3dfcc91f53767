from __future__ import annotations

import numpy as np
import pytest

from counterpoise import datasets
from counterpoise._errors import InputError
from counterpoise.data._relevance import control_points, find_ranges, relevance_of, wanted_sizes


def relevance(y, given="auto", extremes="both", coef=1.5):
    return relevance_of(np.asarray(y, dtype=np.float64), given, extremes, coef)


def test_points_are_whiskers_and_median() -> None:
    # 13 values, hinges at the 4th from either end, 3 and 9: whiskers may reach from -6 to 18.
    y = np.array([*range(1, 12), 30.0, -20.0])
    low, middle, high = control_points(y)
    assert low.tolist() == [1, 1] and middle.tolist() == [6, 0] and high.tolist() == [11, 1]
    assert control_points(y, "high").tolist() == [[-20, 0], [6, 0], [11, 1]]
    assert control_points(y, "low").tolist() == [[1, 1], [6, 0], [30, 0]]
    assert control_points(np.array([*y[:-2], 26.0, 40.0]), coef=3.0)[-1].tolist() == [26, 1]  # hinges 4 and 10, to 28
    # An even number: hinges are the medians of the halves, 2.5 and 6.5, so the whisker may reach to 12.5.
    assert control_points(np.array([1.0, 2, 3, 4, 5, 6, 7, 12.6]))[-1].tolist() == [7, 1]
    with pytest.raises(InputError, match="no value beyond"):
        control_points(np.array([1.0, 2, 3, 4, 5, 6, 7, 12.4]))


def test_relevance_is_the_smooth_step_between_median_and_whisker() -> None:
    y = np.array([*range(1, 12), 30.0, -20.0])
    phi = relevance(y)
    t = np.clip(np.abs(y - 6) / 5, 0, 1)
    np.testing.assert_allclose(phi, 3 * t**2 - 2 * t**3, atol=1e-12)
    assert phi[y == 6] == 0 and (phi[(y >= 11) | (y <= 1)] == 1).all()  # exactly, so that they reach a threshold of 1


def test_a_side_without_extremes_has_none() -> None:
    y = np.concatenate([np.arange(100.0), [1000.0]])
    phi = relevance(y)
    assert (phi[y <= 50] == 0).all() and phi[-1] == 1
    with pytest.raises(InputError, match="y: got no low value beyond the whiskers of its box plot, 0 and 99"):
        relevance(y, extremes="low")
    with pytest.raises(InputError, match=r"Say which values are rare, such as relevance=\[\(49.5, 0\), \(94.05, 1\)\]"):
        relevance(np.arange(100.0))
    assert relevance([*np.arange(100.0)], [(49.5, 0), (94.05, 1)]).max() == 1  # what it says works


def test_a_target_that_is_mostly_one_value() -> None:
    y = np.array([0.0] * 80 + [5.0, 1.0, 2.0] * 5)
    phi = relevance(y)
    assert (phi[y == 0] == 0).all() and (phi[y > 0] == 1).all()  # claims: everything but zero is rare
    assert (relevance(-y)[y > 0] == 1).all()


def test_shifting_and_stretching_the_target_change_nothing() -> None:
    y = np.random.default_rng(0).lognormal(size=300)
    np.testing.assert_allclose(relevance(1000 * y - 7), relevance(y), atol=1e-9)
    np.testing.assert_allclose(relevance(-y), relevance(y), atol=1e-9)


def test_given_points_are_met_and_levels_kept_beyond() -> None:
    points = [(0, 0.2), (1, 0.2), (2, 0.9), (4, 1.0), (5, 0.0)]
    value, wanted = np.array(points).T
    np.testing.assert_allclose(relevance(value, points), wanted, atol=1e-12)
    np.testing.assert_allclose(relevance([-10, 10], points), [0.2, 0.0], atol=1e-12)
    between = relevance(np.linspace(1, 4, 400), points)
    assert (np.diff(between) >= -1e-12).all() and between.max() <= 1  # monotone where the points are
    assert relevance([0.5], points) == pytest.approx(0.2)


def test_a_function_will_do() -> None:
    assert relevance([1.0, 2.0, 3.0], lambda y: y > 2).tolist() == [0, 0, 1]
    with pytest.raises(InputError, match=r"one number in \[0, 1\] for each of the 2 targets"):
        relevance([1.0, 2.0], lambda y: 2 * y)
    with pytest.raises(InputError, match="a function that gives shape"):
        relevance([1.0, 2.0], lambda y: 1.0)


@pytest.mark.parametrize(
    "points", [[(0, 0)], [(0, 0), (0, 1)], [(1, 0), (0, 1)], [(0, 0), (1, 1.1)], [(0, np.nan), (1, 1)], [0, 1], [("a", 0)]]
)
def test_bad_points_are_refused(points) -> None:
    with pytest.raises(InputError, match=r"relevance: got .*at least two pairs"):
        relevance([0.0, 1.0], points)


def test_ranges_take_turns_and_keep_equal_values_together() -> None:
    y = np.array([5.0, 1.0, 3.0, 1.0, 9.0, 3.0, 7.0])
    rows = find_ranges(y, (y < 2) | (y > 6))
    assert [sorted(part.tolist()) for part in rows] == [[1, 3], [0, 2, 5], [4, 6]]


def test_wanted_sizes() -> None:
    assert wanted_sizes([189, 3498, 490], "balance") == [1392, 1392, 1392]
    turned = wanted_sizes([10, 80, 10], "extreme")
    assert turned == [47, 6, 47]
    assert wanted_sizes([10, 80, 10], "over") == [80, 80, 80]
    assert wanted_sizes([10, 80, 10], [2.5, 0.001, 1]) == [25, 1, 10]
    with pytest.raises(InputError, match=r"sampling_strategy: got \[1, 2\]; expected a factor > 0 for each of the 3 ranges"):
        wanted_sizes([10, 80, 10], [1, 2])


@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("abalone", [[4, 1], [9, 0], [15, 1]]),
        ("wine-red", [[4, 1], [6, 0], [7, 1]]),
        ("california-housing", [[14999, 0], [179700, 0], [482200, 1]]),
    ],
)
def test_real_targets_have_the_points_that_the_package_smogn_finds(name, points, data_folder) -> None:
    """Version 0.1.2, ``phi_ctrl_pts(y, method="auto", xtrm_type="both", coef=1.5)``."""
    table = datasets.load(name)
    assert control_points(table.frame.drop_nulls()[table.target].to_numpy().astype(np.float64)).tolist() == points
