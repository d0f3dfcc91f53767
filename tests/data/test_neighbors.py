from __future__ import annotations

import joblib
import numpy as np
import pytest
from imblearn.metrics.pairwise import ValueDifferenceMetric
from imblearn.pipeline import make_pipeline
from scipy import sparse
from sklearn.base import clone
from sklearn.metrics import recall_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.naive_bayes import GaussianNB
from sklearn.preprocessing import StandardScaler

from counterpoise.data import ADASYN, SMOTE, SMOTEN, SMOTENC, BorderlineSMOTE
from counterpoise.data import _neighbors as neighbors
from counterpoise.data._neighbors import EuclideanRows, MixedRows, NominalRows, nearest, without_self


def brute(distances: np.ndarray, k: int) -> np.ndarray:
    """The k nearest of each row, by a full and stable sort."""
    distances = distances.copy()
    np.fill_diagonal(distances, np.inf)
    return np.argsort(distances, axis=1, kind="stable")[:, :k]


def euclidean(X: np.ndarray) -> np.ndarray:
    return ((X[:, None, :] - X[None, :, :]) ** 2).sum(axis=2)


def mixed_rows(n: int, levels: int = 4, columns: int = 3, seed: int = 0) -> tuple[MixedRows, np.ndarray]:
    rng = np.random.default_rng(seed)
    numbers, codes = rng.normal(size=(n, 2)), rng.integers(levels, size=(n, columns)).astype(np.min_scalar_type(levels))
    distances = euclidean(numbers) + 0.3 * (codes[:, None, :] != codes[None, :, :]).sum(axis=2)
    return MixedRows(numbers, codes, 0.3), distances


@pytest.mark.parametrize("d", [3, 25])  # scikit-learn searches trees below 16 columns, and products above
@pytest.mark.parametrize("kind", ["dense", "sparse", "single"])
def test_euclidean_neighbors_are_those_of_a_full_sort(d, kind) -> None:
    X = np.random.default_rng(0).normal(size=(150, d))
    X = X.astype(np.float32) if kind == "single" else X
    expected = brute(euclidean(X.astype(np.float64)), 7)
    rows = EuclideanRows(sparse.csr_matrix(X) if kind == "sparse" else X)
    np.testing.assert_array_equal(nearest(rows, 7), expected)
    some = np.array([3, 99, 0])
    np.testing.assert_array_equal(nearest(rows, 7, some), expected[some])
    np.testing.assert_array_equal(nearest(rows, 7, some, approximate=True), expected[some])  # too few rows to approximate


@pytest.mark.parametrize("d", [3, 25])
def test_neighbors_do_not_depend_on_where_zero_is(d) -> None:
    X = np.round(np.random.default_rng(0).normal(size=(200, d)), 3)
    moved = X + 2.0**27
    np.testing.assert_array_equal(nearest(EuclideanRows(moved), 5), brute(euclidean(moved), 5))


def test_a_row_is_never_its_own_neighbor_however_many_copies_there_are() -> None:
    X = np.repeat(np.random.default_rng(0).normal(size=(12, 20)), 8, axis=0)
    codes = np.repeat(np.arange(12, dtype=np.uint8), 8)[:, None]
    shares = [np.random.default_rng(1).dirichlet(np.ones(2), size=12)]
    for rows in (EuclideanRows(X), EuclideanRows(X[:, :2]), MixedRows(X[:, :2], codes, 1.0), NominalRows(codes, shares)):
        for k in (3, 7, 9):
            for queries in (None, np.arange(0, len(X), 5)):
                found = nearest(rows, k, queries)
                own = np.arange(len(X)) if queries is None else queries
                assert (found != own[:, None]).all()
                assert all(len(set(row)) == k for row in found.tolist())
                # The seven other copies come first.
                assert (found[:, : min(k, 7)] // 8 == own[:, None] // 8).all()


def test_without_self_drops_the_row_or_else_the_last() -> None:
    indices = np.array([[0, 4, 2], [3, 1, 0], [5, 6, 7]])
    kept, distances = without_self(indices, np.array([0, 1, 2]), indices * 10.0)
    assert kept.tolist() == [[4, 2], [3, 0], [5, 6]] and distances.tolist() == [[40, 20], [30, 0], [50, 60]]


@pytest.mark.parametrize(
    ("n", "k", "levels", "columns"), [(400, 5, 4, 3), (400, 90, 3, 2), (9, 8, 2, 1), (300, 4, 700, 2), (60, 3, 2, 300)]
)
def test_mixed_neighbors_are_those_of_a_full_sort(n, k, levels, columns, monkeypatch) -> None:
    rows, distances = mixed_rows(n, levels, columns)
    expected = brute(distances, k)
    np.testing.assert_array_equal(nearest(rows, k), expected)
    np.testing.assert_array_equal(nearest(rows, k, n_jobs=2), expected)
    monkeypatch.setattr(neighbors, "BLOCK", 7)
    monkeypatch.setattr(neighbors, "CHUNK", 65)
    np.testing.assert_array_equal(nearest(rows, k, np.array([8, 2])), expected[[8, 2]])


def test_of_equally_near_rows_the_first_are_taken() -> None:
    codes = np.zeros((300, 1), dtype=np.uint8)
    shares = [np.array([[0.5, 0.5]])]
    assert nearest(NominalRows(codes, shares), 3)[[0, 1, 2, 150]].tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_nominal_neighbors_are_those_of_the_value_difference_metric() -> None:
    rng = np.random.default_rng(0)
    codes, y = rng.integers(5, size=(300, 4)).astype(np.int32), rng.integers(3, size=300)
    metric = ValueDifferenceMetric().fit(codes, y)
    rows = NominalRows(codes, metric.proba_per_class_)
    np.testing.assert_allclose(rows.from_block(slice(3, 9))(slice(0, 300)), metric.pairwise(codes[3:9], codes))
    distances = metric.pairwise(codes)
    np.fill_diagonal(distances, np.inf)
    found = np.take_along_axis(distances, nearest(rows, 6), axis=1)
    np.testing.assert_allclose(found, np.sort(distances, axis=1)[:, :6])  # many ties: the distances are unique, the rows are not


# ---- approximate ------------------------------------------------------------------------------------------------------------------------


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.mean([len(set(f) & set(e)) / len(e) for f, e in zip(found.tolist(), exact.tolist(), strict=True)]))


def test_approximate_search_finds_most_neighbors_and_near_ones_for_the_rest(monkeypatch) -> None:
    monkeypatch.setattr(neighbors, "CELL", 500)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4000, 3)) @ rng.normal(size=(3, 20)) + 0.05 * rng.normal(size=(4000, 20))  # three dimensions and noise
    exact, found = nearest(EuclideanRows(X), 5), nearest(EuclideanRows(X), 5, approximate=True)
    assert 0.9 < recall(found, exact) < 1
    lengths = [np.linalg.norm(X[:, None] - X[indices], axis=2) for indices in (found, exact)]
    assert lengths[0].mean() < 1.03 * lengths[1].mean() and (np.diff(lengths[0], axis=1) >= 0).all()
    assert (found != np.arange(4000)[:, None]).all() and all(len(set(row)) == 5 for row in found.tolist())
    np.testing.assert_array_equal(nearest(EuclideanRows(X), 5, approximate=True), found)
    some = rng.choice(4000, 300, replace=False)
    np.testing.assert_array_equal(nearest(EuclideanRows(X), 5, some, approximate=True), found[some])
    np.testing.assert_array_equal(nearest(EuclideanRows(sparse.csr_matrix(X)), 5, approximate=True), found)


def test_approximate_search_of_mixed_rows(monkeypatch) -> None:
    monkeypatch.setattr(neighbors, "CELL", 500)
    rows, _ = mixed_rows(3000)
    assert recall(nearest(rows, 5, approximate=True), nearest(rows, 5)) > 0.9


def test_cells_cover_the_rows_once_even_if_all_are_equal() -> None:
    rng = np.random.RandomState(0)
    for X in (np.zeros((1000, 2)), np.random.default_rng(0).normal(size=(1000, 2)), sparse.random(1000, 9, 0.1, "csr", random_state=0)):
        cells = list(neighbors._cells(X, 100, rng))
        assert sorted(np.concatenate(cells).tolist()) == list(range(1000)) and max(map(len, cells)) <= 100


# ---- memory -----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def searches(monkeypatch) -> list[int]:
    """k of every search that is made."""
    made: list[int] = []
    original = EuclideanRows.search

    def counted(self, k, queries, n_jobs):
        made.append(k)
        return original(self, k, queries, n_jobs)

    monkeypatch.setattr(EuclideanRows, "search", counted)
    return made


def test_stored_neighbors_serve_every_smaller_k(tmp_path, searches) -> None:
    rows = EuclideanRows(np.random.default_rng(0).normal(size=(100, 4)))
    expected = nearest(rows, 40)
    for k in (3, 1, 16, 9, 17, 32, 20, 5):
        np.testing.assert_array_equal(nearest(rows, k, memory=str(tmp_path)), expected[:, :k])
    assert searches == [40, 16, 32]
    few = EuclideanRows(rows.X[:6])
    assert nearest(few, 5, memory=joblib.Memory(tmp_path, verbose=0)).shape == (6, 5)


def test_other_content_is_searched_again(tmp_path, searches) -> None:
    X = np.random.default_rng(0).normal(size=(50, 4))
    moved = X.copy()
    moved[7, 2] += 1e-9
    for rows, queries in ((X, None), (moved, None), (X, np.arange(9)), (X.astype(np.float32), None), (X.copy(), None)):
        nearest(EuclideanRows(rows), 3, queries, memory=str(tmp_path))
    assert len(searches) == 4
    nearest(EuclideanRows(X), 3, approximate=True, memory=str(tmp_path))  # may differ for larger tables: kept apart
    assert len(searches) == 5


@pytest.mark.parametrize("make", [SMOTE, BorderlineSMOTE, ADASYN, SMOTEN, lambda **options: SMOTENC([0], **options)])
def test_samplers_return_the_same_rows_with_a_memory(tmp_path, make) -> None:
    rng = np.random.default_rng(0)
    X, y = np.round(rng.normal(size=(120, 3)), 1), np.repeat([0, 1], [80, 40])
    plain, first, second = (make(random_state=0, memory=memory).fit_resample(X, y)[0] for memory in (None, str(tmp_path), str(tmp_path)))
    np.testing.assert_array_equal(plain, first)
    np.testing.assert_array_equal(plain, second)


@pytest.mark.parametrize("as_path", [True, False])
def test_a_grid_search_searches_each_training_fold_once(tmp_path, searches, as_path) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(300, 5)), np.repeat([0, 1], [240, 60])
    memory = str(tmp_path) if as_path else joblib.Memory(tmp_path, verbose=0)
    smote = clone(SMOTE(random_state=0, memory=memory))
    pipeline = make_pipeline(StandardScaler(), smote, GaussianNB())
    grid = {"smote__k_neighbors": [3, 5, 7], "smote__sampling_strategy": [0.5, 1.0]}
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    stored = GridSearchCV(pipeline, grid, cv=folds, scoring="balanced_accuracy").fit(X, y)
    assert searches == [16] * 6  # five training folds, and all rows for the refit
    pipeline.set_params(smote__memory=None)
    plain = GridSearchCV(pipeline, grid, cv=folds, scoring="balanced_accuracy").fit(X, y)
    np.testing.assert_array_equal(stored.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"])
    assert len(searches) == 6 + 6 * 5 + 1
    assert recall_score(y, stored.predict(X)) == recall_score(y, plain.predict(X))
