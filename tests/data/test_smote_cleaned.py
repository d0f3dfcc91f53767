from __future__ import annotations

import numpy as np
import pytest
from imblearn import over_sampling
from imblearn.under_sampling import EditedNearestNeighbours, TomekLinks
from scipy import sparse
from sklearn.metrics import euclidean_distances

from counterpoise.data import SMOTE, SMOTEENN, SMOTETomek
from counterpoise.data._smote_cleaned import _pairs, among_their_own, known_distances, squared_distances, tomek_links
from tests.batteries.resamplers import numbers

NO_PAIRS = np.empty((0, 2), dtype=np.intp)


def table(d: int, n_classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.choice(n_classes, p=np.arange(1, n_classes + 1) / sum(range(n_classes + 1)), size=300)
    return rng.normal(size=(300, d)) + 0.8 * y[:, None] / np.sqrt(d), y


def all_distances(X: np.ndarray) -> np.ndarray:
    distances = ((X[:, None, :] - X[None, :, :]) ** 2).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    return distances


def same_class_pairs(y: np.ndarray, count: int = 400) -> np.ndarray:
    """Any distinct pairs of rows of one class: however near or far, they may only save work."""
    rng = np.random.default_rng(1)
    pairs = np.unique(np.sort(rng.integers(len(y), size=(count, 2)), axis=1), axis=0)
    return pairs[(y[pairs[:, 0]] == y[pairs[:, 1]]) & (pairs[:, 0] != pairs[:, 1])]


@pytest.mark.parametrize("d", [2, 6, 24])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_tomek_links_are_mutual_nearest_rows_of_different_classes(d, n_classes) -> None:
    X, y = table(d, n_classes)
    near = all_distances(X).argmin(axis=1)
    expected = (near[near] == np.arange(len(y))) & (y[near] != y)
    assert 4 < expected.sum() < 200
    for rows in (X, X + 2.0**24, sparse.csr_matrix(X)):
        for pairs in (NO_PAIRS, same_class_pairs(y)):
            np.testing.assert_array_equal(tomek_links(rows, y, pairs), expected)
    np.testing.assert_array_equal(tomek_links(X, np.array(["a", "b", "c"])[y], NO_PAIRS), expected)


@pytest.mark.parametrize("d", [2, 24])
@pytest.mark.parametrize("k", [1, 3])
def test_rows_among_their_own_have_only_their_class_around(d, k) -> None:
    X, y = table(d)
    near = np.argsort(all_distances(X), axis=1)[:, :k]
    expected = (y[near] == y[:, None]).all(axis=1)
    assert 10 < expected.sum() < 290
    for rows in (X, X + 2.0**24, sparse.csr_matrix(X)):
        for pairs in (NO_PAIRS, same_class_pairs(y)):
            np.testing.assert_array_equal(among_their_own(rows, y, k, pairs), expected)


def test_known_distances_are_upper_bounds_of_the_kth_nearest() -> None:
    X, y = table(4)
    pairs = same_class_pairs(y)
    distances = all_distances(X)
    for k in (1, 3):
        known = known_distances(X, pairs, k)
        for row in range(0, 300, 7):
            mates = [*pairs[pairs[:, 0] == row, 1], *pairs[pairs[:, 1] == row, 0]]
            expected = np.sort(distances[row, mates])[k - 1] if len(mates) >= k else np.inf
            assert known[row] == pytest.approx(expected)
            assert known[row] >= np.sort(np.where(y == y[row], distances[row], np.inf))[k - 1] - 1e-12


def test_pairs_are_distinct_near_and_of_one_class() -> None:
    X, y = numbers(3)
    smote = SMOTE(random_state=0)
    X_new, y_new = smote.fit_resample(X, y)
    pairs = _pairs(smote.parents_, len(y), y_new)
    assert len(np.unique(np.sort(pairs, axis=1), axis=0)) == len(pairs) > 2 * len(smote.parents_)
    assert (y_new[pairs[:, 0]] == y_new[pairs[:, 1]]).all() and (pairs[:, 0] != pairs[:, 1]).all()
    nearest = all_distances(X_new).min(axis=1)
    known = known_distances(X_new, pairs, 1)
    assert np.isfinite(known[len(y) :]).all() and np.median(known[len(y) :] / nearest[len(y) :]) < 2


def test_equal_rows_of_two_classes_are_a_link_and_removed() -> None:
    X = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.1, 0.0], [5.0, 0.0], [5.2, 0.0], [5.1, 9.0]])
    y = np.array([0, 1, 0, 0, 1, 1, 0])
    assert tomek_links(X, y, NO_PAIRS).tolist() == [True, True, False, False, False, False, False]
    assert not among_their_own(X, y, 1, NO_PAIRS)[:2].any()
    wide = np.hstack([X, np.zeros((7, 20))])
    assert tomek_links(wide, y, NO_PAIRS).tolist() == [True, True, False, False, False, False, False]


def test_squared_distances_are_exact_where_rows_are_equal() -> None:
    X = np.full((3, 40), 0.1) * 1e8
    X[2] += 1
    assert squared_distances(X, np.array([0, 0]), np.array([1, 2])).tolist() == [0.0, 40.0]
    assert squared_distances(sparse.csr_matrix(X), np.array([0, 0]), np.array([1, 2])).tolist() == [0.0, 40.0]
    assert squared_distances(X.astype(np.float32), np.array([0]), np.array([1])).dtype == np.float64


def test_tiny_classes() -> None:
    X, y = np.arange(6.0)[:, None], np.array([0, 0, 0, 0, 0, 1])
    for rows in (X.copy(), np.hstack([X, np.zeros((6, 20))])):
        # 4 is as near to 3 as to 5: no row is nearer than 5, so it is a link.
        assert tomek_links(rows, y, NO_PAIRS).tolist() == [False] * 4 + [True] * 2
        rows[5, 0] = 5.6
        assert among_their_own(rows, y, 3, NO_PAIRS).tolist() == [True, True, True, True, False, False]
        assert among_their_own(rows[-2:], y[-2:], 3, NO_PAIRS).tolist() == [False, False]


# ---- the samplers -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sampler", "option", "cleaner"), [(SMOTETomek, "tomek", TomekLinks), (SMOTEENN, "enn", EditedNearestNeighbours)])
@pytest.mark.parametrize("d", [6, 20])
def test_a_cleaner_of_imbalanced_learn_gives_the_same_rows(sampler, option, cleaner, d) -> None:
    X, y = table(d, 2)
    ours = sampler(random_state=0)
    given = cleaner(sampling_strategy="all")
    theirs = sampler(random_state=0, **{option: given})
    X_ours, y_ours = ours.fit_resample(X, y)
    X_theirs, y_theirs = theirs.fit_resample(X, y)
    np.testing.assert_array_equal(X_ours, X_theirs)
    np.testing.assert_array_equal(y_ours, y_theirs)
    np.testing.assert_array_equal(ours.kept_indices_, theirs.kept_indices_)
    assert getattr(theirs, f"{option}_") is not given and not hasattr(given, "n_features_in_")
    other = sampler(random_state=0, **{option: cleaner(sampling_strategy=[1])})
    other.fit_resample(X, y)
    assert len(other.kept_indices_) > len(ours.kept_indices_)


def test_the_over_sampler_can_be_given() -> None:
    X, y = table(6, 2)
    given = SMOTE(k_neighbors=3, gap="feature", random_state=4, sampling_strategy=0.9)
    sampler = SMOTETomek(smote=given, sampling_strategy="minority", random_state=1)
    X_new, _ = sampler.fit_resample(X, y)
    made, _ = SMOTE(k_neighbors=3, gap="feature", random_state=4, sampling_strategy=0.9).fit_resample(X, y)
    np.testing.assert_array_equal(X_new, made[sampler.kept_indices_])
    assert sampler.smote_ is not given and not hasattr(given, "parents_") and sampler.gaps_.shape == (sampler.synthetic_mask_.sum(), 6)


def test_over_samplers_without_parents_will_do() -> None:
    X, y = table(6, 2)
    expected = SMOTEENN(random_state=0)
    expected.fit_resample(X, y)
    for given in (over_sampling.SMOTE(random_state=0), over_sampling.RandomOverSampler(random_state=0)):
        sampler = SMOTEENN(smote=given)
        sampler.fit_resample(X, y)
        assert not hasattr(sampler, "parents_") and sampler.synthetic_mask_.any()
        if isinstance(given, over_sampling.SMOTE):
            np.testing.assert_array_equal(sampler.kept_indices_, expected.kept_indices_)


def test_what_stays_is_cleaner() -> None:
    X, y = table(3, 2)
    shares = []
    for sampler in (SMOTE(random_state=0), SMOTETomek(random_state=0), SMOTEENN(random_state=0)):
        X_new, y_new = sampler.fit_resample(X, y)
        distances = euclidean_distances(X_new)
        np.fill_diagonal(distances, np.inf)
        shares.append((y_new[distances.argmin(axis=1)] != y_new).mean())
    assert shares[0] > shares[1] > shares[2]
