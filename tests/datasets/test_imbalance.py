"""Counts of thinned data follow the two imbalance protocols exactly; what cannot be thinned is named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoise._errors import InputError
from counterpoise.datasets import make_imbalanced


def counts(y: np.ndarray, rows: np.ndarray) -> list[int]:
    return sorted(np.unique(y[rows], return_counts=True)[1].tolist())


def test_step_counts() -> None:
    y = np.repeat(np.arange(10), 200)
    rows = make_imbalanced(y, kind="step", mu=0.3, rho=20, random_state=1)
    assert counts(y, rows) == [10] * 3 + [200] * 7
    assert np.all(np.diff(rows) > 0)


def test_linear_counts() -> None:
    y = np.repeat(["a", "b", "c"], 100)
    rows = make_imbalanced(y, kind="linear", rho=10, random_state=0)
    assert counts(y, rows) == [10, 55, 100]


def test_n_max_limits_the_largest_class() -> None:
    y = np.repeat([0, 1], 500)
    assert counts(y, make_imbalanced(y, rho=4, n_max=80, random_state=0)) == [20, 80]


def test_same_seed_same_rows_and_other_seed_other_rows() -> None:
    y = np.repeat([0, 1], 500)
    first, again, other = (make_imbalanced(y, rho=5, random_state=seed) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_class_of_one_row_and_rho_one() -> None:
    assert counts(np.array([0, 1, 1, 1]), make_imbalanced([0, 1, 1, 1], rho=1, random_state=0)) == [1, 1]


def test_mu_one_makes_every_class_small() -> None:
    y = np.repeat([0, 1], 100)
    assert counts(y, make_imbalanced(y, mu=1.0, rho=10, random_state=0)) == [10, 10]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=2, max_size=6),
    kind=st.sampled_from(["step", "linear"]),
    mu=st.floats(0.01, 1),
    rho=st.floats(1, 100),
    seed=st.integers(0, 5),
)
def test_default_size_is_the_largest_that_fits(sizes: list[int], kind: str, mu: float, rho: float, seed: int) -> None:
    y = np.repeat(np.arange(len(sizes)), sizes)
    kept = np.bincount(y[make_imbalanced(y, kind, mu, rho, random_state=seed)], minlength=len(sizes))
    assert np.all(kept >= 1)
    assert np.all(kept <= sizes)
    if kind == "linear":  # the first class keeps n_max; one more row each must be too many for some class
        with pytest.raises(InputError, match="n_max"):
            make_imbalanced(y, kind, mu, rho, n_max=int(kept.max()) + 1, random_state=seed)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"y": [[0, 1], [1, 0]]}, "shape"),
        ({"y": [1, 1, 1]}, "two classes"),
        ({"y": [0.5, 1.5]}, "labels"),
        ({"y": [0.0, float("nan")]}, "labels"),
        ({"y": np.array(["a", None], dtype=object)}, "labels"),
        ({"y": [0, 1], "rho": 0.5}, "rho"),
        ({"y": [0, 1], "rho": float("nan")}, "rho"),
        ({"y": [0, 1], "mu": 0}, "mu"),
        ({"y": [0, 1], "mu": 1.5}, "mu"),
        ({"y": [0, 1], "kind": "steps"}, "'step'"),
        ({"y": [0, 1], "n_max": 5}, "class '[01]' has 1 of 5"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_imbalanced(**arguments)
