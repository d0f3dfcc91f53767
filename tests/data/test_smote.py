from __future__ import annotations

from collections import Counter

import numpy as np
import pandas
import polars
import pytest
from imblearn import over_sampling
from imblearn.utils.testing import _CustomNearestNeighbors
from scipy import sparse
from sklearn.metrics import euclidean_distances
from sklearn.neighbors import NearestNeighbors

from counterpoise._errors import InputError
from counterpoise.data import ADASYN, SMOTE, BorderlineSMOTE
from counterpoise.data._synthetic import interpolate
from tests.batteries.resamplers import numbers


@pytest.fixture(scope="module")
def table():
    return numbers(2)


# ---- the distribution -------------------------------------------------------------------------------------------------------------------


def energy_test(one: np.ndarray, other: np.ndarray, permutations: int = 300, seed: int = 0) -> float:
    """p of the permutation test of the energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'|."""
    pooled = np.concatenate([one, other])
    distances = euclidean_distances(pooled)
    rng = np.random.default_rng(seed)
    first = np.zeros((len(pooled), permutations + 1))
    first[: len(one), 0] = 1
    for column in range(1, permutations + 1):
        first[rng.choice(len(pooled), len(one), replace=False), column] = 1
    second = 1 - first
    toward_first, toward_second = distances @ first, distances @ second
    n, m = len(one), len(other)
    energy = (
        2 * (first * toward_second).sum(axis=0) / (n * m)
        - (first * toward_first).sum(axis=0) / n**2
        - (second * toward_second).sum(axis=0) / m**2
    )
    return float((1 + (energy[1:] >= energy[0]).sum()) / (permutations + 1))


def invented(make, seeds, **options) -> np.ndarray:
    X, y = numbers(2)
    return np.concatenate([make(random_state=seed, **options).fit_resample(X, y)[0][len(X) :][:50] for seed in seeds])


@pytest.mark.parametrize("name", ["SMOTE", "BorderlineSMOTE", "ADASYN"])
def test_other_seeds_give_the_distribution_of_imbalanced_learn(name) -> None:
    ours, theirs = {"SMOTE": SMOTE, "BorderlineSMOTE": BorderlineSMOTE, "ADASYN": ADASYN}[name], getattr(over_sampling, name)
    assert energy_test(invented(ours, range(20)), invented(theirs, range(100, 120))) > 0.01


def test_the_energy_test_sees_other_parents() -> None:
    assert energy_test(invented(SMOTE, range(20)), invented(BorderlineSMOTE, range(100, 120))) < 0.01


def test_one_gap_per_column_loosens_correlation() -> None:
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(size=(400, 1)) @ np.ones((1, 2)), rng.normal(size=(600, 2))])
    y = np.repeat([1, 0], [400, 600])
    correlation = {}
    for gap in ("sample", "feature"):
        # Many neighbors, so that segments are long.
        smote = SMOTE(gap=gap, k_neighbors=300, random_state=0, sampling_strategy={1: 3400})
        correlation[gap] = np.corrcoef(smote.fit_resample(X, y)[0][1000:].T)[0, 1]
    assert correlation["sample"] == pytest.approx(1.0, abs=1e-9) and correlation["feature"] < 0.9


def test_synthetic_rows_of_independent_parents_have_two_thirds_of_the_variance() -> None:
    # x + g (x' - x) of independent x and x': E[(1 - g)^2 + g^2] = 2/3. With k = n - 1, parents are as good as independent.
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(600, 30)), np.repeat([1, 0], [300, 300])
    new = SMOTE(k_neighbors=299, sampling_strategy={1: 6300}, random_state=0).fit_resample(X, y)[0][600:]
    assert (new.var(axis=0) / X[:300].var(axis=0)).mean() == pytest.approx(2 / 3, abs=0.02)


# ---- types ------------------------------------------------------------------------------------------------------------------------------


def test_integers_are_rounded_and_warned_of(table) -> None:
    X, y = np.round(10 * table[0]).astype(np.int64), table[1]
    with pytest.warns(UserWarning, match="columns 0, 1, 2, 3, 4, 5 hold integers or booleans, and SMOTE invents .* use SMOTENC") as caught:
        X_int, _ = SMOTE(random_state=0).fit_resample(X, y)
    assert caught[0].filename == __file__
    X_float, _ = SMOTE(random_state=0, dtype="float64").fit_resample(X, y)  # said to be numbers: no warning, no rounding
    assert X_int.dtype == np.int64 and X_float.dtype == np.float64
    np.testing.assert_array_equal(X_int, np.rint(X_float))
    assert (X_float != np.rint(X_float)).any()
    with pytest.warns(UserWarning, match="columns 0, 1"):
        rows = SMOTE(random_state=0).fit_resample(X.tolist(), y.tolist())[0]
    assert rows == X_int.tolist() and isinstance(rows[-1][0], int)
    np.testing.assert_array_equal(SMOTE(random_state=0).fit_resample(X.astype(float), y)[0], X_float)


def test_unsigned_integers_and_booleans_do_not_wrap_around() -> None:
    X = np.array([[200, 0], [250, 1], [5, 0], [240, 1], [3, 1], [7, 0], [9, 1]], dtype=np.uint8)
    y = [1, 1, 0, 1, 0, 0, 0]
    with pytest.warns(UserWarning, match="integers"):
        new = SMOTE(k_neighbors=2, random_state=0, sampling_strategy={1: 4}).fit_resample(X, y)[0][7:]
    assert new.dtype == np.uint8 and 200 <= new[0, 0] <= 250
    with pytest.warns(UserWarning, match="booleans"):
        X_new, _ = SMOTE(k_neighbors=2, random_state=0, sampling_strategy={1: 4}).fit_resample(X > 6, y)
    assert X_new.dtype == bool


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_columns_of_a_frame_keep_their_types(library) -> None:
    rng = np.random.default_rng(0)
    big = 2**60 + np.arange(60) * 3  # not a float64
    columns = {"x": rng.normal(size=60), "single": rng.normal(size=60).astype(np.float32), "count": big, "flag": rng.random(60) < 0.5}
    y = np.repeat([0, 1], [40, 20])
    frame = pandas.DataFrame(columns) if library == "pandas" else polars.DataFrame(columns)
    with pytest.warns(UserWarning, match="columns count, flag hold integers or booleans"):
        X, _ = SMOTE(random_state=0).fit_resample(frame, y)
    assert list(X.dtypes) == list(frame.dtypes) and X["count"].to_numpy()[:60].tolist() == big.tolist()
    single, _ = SMOTE(random_state=0, dtype="float32").fit_resample(frame, y)
    assert {str(dtype).lower() for dtype in single.dtypes} == {"float32"}


def test_the_result_can_be_made_single(table) -> None:
    X, y = table
    X_new, _ = SMOTE(random_state=0, dtype="float32").fit_resample(X, y)
    assert X_new.dtype == np.float32
    np.testing.assert_allclose(X_new, SMOTE(random_state=0).fit_resample(X, y)[0], rtol=1e-5, atol=1e-5)
    assert SMOTE(random_state=0, dtype="float32").fit_resample(sparse.csr_matrix(X), y)[0].dtype == np.float32


def test_points_are_interpolated_in_parts_and_in_double() -> None:
    rng = np.random.default_rng(0)
    X, parents, gaps = rng.normal(size=(100, 3)), rng.integers(100, size=(20_000, 2)), rng.random(20_000)
    expected = X[parents[:, 0]] + gaps[:, None] * (X[parents[:, 1]] - X[parents[:, 0]])
    np.testing.assert_array_equal(interpolate(X, parents, gaps), expected)
    single = interpolate(X.astype(np.float32), parents, gaps)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, rtol=1e-5, atol=1e-6)


# ---- neighbors --------------------------------------------------------------------------------------------------------------------------


def test_more_copies_than_neighbors_make_copies(table) -> None:
    X, y = table
    few = np.concatenate([np.flatnonzero(y == 0)[:60], np.repeat(np.flatnonzero(y == 1)[:5], 8)])
    smote = SMOTE(random_state=0)
    X_new, _ = smote.fit_resample(X[few], y[few])
    assert len(X_new) == 120 and euclidean_distances(X_new[100:], X[few[60:]]).min(axis=1).max() < 1e-6
    assert (smote.parents_[:, 0] != smote.parents_[:, 1]).all()


def test_an_estimator_can_search(table) -> None:
    X, y = table
    expected, _ = SMOTE(random_state=0, k_neighbors=4).fit_resample(X, y)
    for given in (NearestNeighbors(n_neighbors=5), _CustomNearestNeighbors(n_neighbors=5)):
        smote = SMOTE(random_state=0, k_neighbors=given)
        np.testing.assert_array_equal(smote.fit_resample(X, y)[0], expected)
        assert not hasattr(given, "n_features_in_")
    few = np.flatnonzero((y == 0) | (np.cumsum(y == 1) <= 3))
    with pytest.warns(UserWarning, match="only 3 rows, so 2 neighbors are used instead of 4"):
        X_few, _ = SMOTE(random_state=0, k_neighbors=NearestNeighbors(n_neighbors=5)).fit_resample(X[few], y[few])
    np.testing.assert_array_equal(X_few, SMOTE(random_state=0, k_neighbors=2).fit_resample(X[few], y[few])[0])


def test_the_largest_class_can_grow_too(table) -> None:
    X, y = table
    assert Counter(SMOTE(sampling_strategy={0: 200, 1: 100}).fit_resample(X, y)[1].tolist()) == {0: 200, 1: 100}


def test_parameters_are_checked(table) -> None:
    for wrong in ({"gap": "column"}, {"neighbors": "hnsw"}, {"dtype": "float16"}, {"on_few": "skip"}, {"k_neighbors": 0}, {"memory": 3}):
        (name,) = wrong
        with pytest.raises(ValueError, match=f"The '{name}' parameter of SMOTE must be"):
            SMOTE(**wrong).fit_resample(*table)


# ---- borderline -------------------------------------------------------------------------------------------------------------------------


def test_rows_in_danger_are_half_surrounded() -> None:
    # Positions on a line; of the three nearest rows of 2 and 3, two are of class 0; 20 is all alone among class 0.
    X = np.array([[0.0], [1.0], [2.0], [3.0], [3.5], [4.5], [5.4], [6.4], [19.0], [20.0], [21.1], [22.0]])
    y = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0])
    smote = BorderlineSMOTE(k_neighbors=2, m_neighbors=3, random_state=0)
    smote.fit_resample(X, y)
    others = [np.mean(y[np.argsort(np.abs(X[:, 0] - x))[1:4]] == 0) for x in X[y == 1, 0]]
    in_danger = np.flatnonzero(y == 1)[[0.5 <= share < 1 for share in others]]
    assert smote.in_danger_indices[1].tolist() == in_danger.tolist() == [3]
    assert set(smote.parents_[:, 0]) == {3} and set(smote.parents_[:, 1]) <= {1, 2}


def test_without_a_border_nothing_grows_and_one_is_told() -> None:
    X, y = np.concatenate([np.arange(20.0), np.arange(100.0, 110.0)])[:, None], np.repeat([0, 1], [20, 10])
    with pytest.warns(UserWarning, match="class 1 has no row in danger, so none is invented for it. SMOTE takes all its rows"):
        X_new, _ = BorderlineSMOTE(m_neighbors=5).fit_resample(X, y)
    np.testing.assert_array_equal(X_new, X)


def test_few_rows_of_a_class_in_danger() -> None:
    X = np.array([[0.0], [1.0], [2.0], [2.6], [3.4], [4.4], [5.4], [6.4]])
    y = np.array([1, 1, 1, 0, 0, 0, 0, 0])
    with pytest.warns(UserWarning, match="k_neighbors: class 1 has only 3 rows, so 2 neighbors are used instead of 5"):
        BorderlineSMOTE(m_neighbors=3).fit_resample(X, y)
    with pytest.raises(InputError, match="m_neighbors: got 8; expected at most 7, the other rows of X"):
        BorderlineSMOTE(m_neighbors=8, on_few="raise").fit_resample(X, y)


@pytest.mark.parametrize("kind", ["borderline-1", "borderline-2"])
def test_gaps_of_every_kind_say_where_borderline_rows_lie(table, kind) -> None:
    X, y = table
    for form in (np.asarray, sparse.csr_matrix):
        smote = BorderlineSMOTE(kind=kind, gap="feature", random_state=0)
        X_new, _ = smote.fit_resample(form(X), y)
        new, gaps = (part.toarray() if sparse.issparse(part) else part for part in (X_new, smote.gaps_))
        one, other = X[smote.parents_[:, 0]], X[smote.parents_[:, 1]]
        np.testing.assert_allclose(new[len(X) :], one + gaps * (other - one), rtol=0, atol=1e-12)
        foreign = y[smote.parents_[:, 1]] != 1
        assert foreign.any() == (kind == "borderline-2") and gaps[foreign].max(initial=0) <= 0.5


# ---- ADASYN -----------------------------------------------------------------------------------------------------------------------------


def test_adasyn_draws_rows_by_how_many_others_surround_them(table) -> None:
    X, y = table
    sampler = ADASYN(random_state=0)
    sampler.fit_resample(X, y)
    distances = euclidean_distances(X)
    np.fill_diagonal(distances, np.inf)
    rows = np.flatnonzero(y == 1)
    share = (y[np.argsort(distances[rows], axis=1)[:, :5]] != 1).mean(axis=1)
    expected = np.rint(share / share.sum() * 120)
    np.testing.assert_array_equal(np.bincount(sampler.parents_[:, 0], minlength=len(y))[rows], expected)


def test_adasyn_says_when_it_cannot() -> None:
    X, y = np.concatenate([np.arange(20.0), np.arange(100.0, 110.0)])[:, None], np.repeat([0, 1], [20, 10])
    with pytest.raises(InputError, match=r"y: got no row of class 1 with a neighbor of another class; .* SMOTE needs no border"):
        ADASYN(n_neighbors=3).fit_resample(X, y)
    X, y = np.arange(40.0)[:, None], np.tile([0, 1, 0], 14)[:40]
    with pytest.raises(InputError, match="sampling_strategy: got 1 rows of class 1, fewer than half a row each"):
        ADASYN(sampling_strategy={1: int((y == 1).sum()) + 1}).fit_resample(X, y)
