from __future__ import annotations

from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, RepeatedKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from counterpoise._errors import InputError
from counterpoise._seeding import generator
from counterpoise.metrics import RocGrid, roc_convex_hull, smote_undersample_grid
from counterpoise.metrics._roc_grid import hull_gain

OVER, UNDER = (0, 50, 200), (10, 100, 400)
SEEN: list[tuple[np.ndarray, np.ndarray]] = []


class Recorder(ClassifierMixin, BaseEstimator):
    """Keeps what it is fitted on; predicts every row positive."""

    def __init__(self, random_state: int | None = None) -> None:
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Recorder:
        SEEN.append((X, y))
        self.classes_ = np.unique(y)
        return self

    def predict(self, X: Any) -> np.ndarray:
        return np.full(len(X), "rare")


@pytest.fixture(scope="module")
def problem() -> tuple[np.ndarray, np.ndarray]:
    X, y = make_classification(400, 5, weights=[0.85], flip_y=0.05, random_state=0)
    return X, np.where(y == 1, "rare", "common")


@pytest.fixture(scope="module")
def grid(problem) -> RocGrid:
    return smote_undersample_grid(DecisionTreeClassifier(min_samples_leaf=2), *problem, over=OVER, under=UNDER, cv=4, random_state=0)


def test_training_sets_have_the_amounts(problem) -> None:
    X, y = problem
    folds = list(StratifiedKFold(4, shuffle=True, random_state=0).split(X, y))
    SEEN.clear()
    smote_undersample_grid(Recorder(), X, y, over=OVER, under=UNDER, cv=folds, random_state=0)
    at = 0
    for train, _ in folds:
        minority, majority = X[train][y[train] == "rare"], X[train][y[train] == "common"]
        added: np.ndarray = np.empty((0, X.shape[1]))
        for over in OVER:
            previous, left_before = added, None
            for under in UNDER:
                rows, labels = SEEN[at]
                at += 1
                count = len(minority) + round(over / 100 * len(minority))
                left = min(len(majority), round(100 / under * count))
                assert (labels == "rare").sum() == count and (labels == "common").sum() == left
                np.testing.assert_array_equal(rows[: len(minority)], minority)
                kept = {row.tobytes() for row in rows[labels == "common"]}
                assert kept <= {row.tobytes() for row in majority} and len(kept) == left
                assert left_before is None or kept <= left_before  # what is left is part of what milder levels leave
                left_before = kept
                added = rows[labels == "rare"][len(minority) :]
            np.testing.assert_array_equal(added[: len(previous)], previous)  # larger amounts contain the smaller ones
            low, high = minority.min(axis=0), minority.max(axis=0)
            assert ((added >= low - 1e-9) & (added <= high + 1e-9)).all()
            assert not {row.tobytes() for row in added} & {row.tobytes() for row in minority}
    assert at == len(SEEN) == 4 * 9


def test_levels_that_leave_the_same_rows_share_a_fit(problem) -> None:
    SEEN.clear()
    grid = smote_undersample_grid(Recorder(), *problem, over=(0,), under=(1, 5, 10, 100), cv=4, random_state=0)
    assert len(SEEN) == 4 * 2 and grid.predicted.shape == (400, 4)
    np.testing.assert_array_equal(grid.fpr, 1)
    np.testing.assert_array_equal(grid.tpr, 1)
    assert grid.hulls["under"].area == 0.5 and "smote+under" not in grid.hulls


def test_points_are_rates_on_rows_not_trained_on(problem, grid) -> None:
    X, y = problem
    assert grid.over.tolist() == [0, 0, 0, 50, 50, 50, 200, 200, 200] and grid.under.tolist() == [10, 100, 400] * 3
    np.testing.assert_array_equal(grid.positive, y == "rare")
    assert np.bincount(grid.fold).tolist() == [100] * 4
    np.testing.assert_allclose(grid.tpr, grid.predicted[y == "rare"].mean(axis=0))
    np.testing.assert_allclose(grid.fpr, grid.predicted[y == "common"].mean(axis=0))
    for amount in OVER:  # stronger under-sampling says yes more often
        part = grid.over == amount
        assert (np.diff(grid.fpr[part]) > 0).all() and (np.diff(grid.tpr[part]) > 0).all()
    # The first point, by hand: under-sampling of 10 % leaves everything here.
    folds = list(StratifiedKFold(4, shuffle=True, random_state=1).split(X, y))
    plain = smote_undersample_grid(LogisticRegression(), X, y, over=(0,), under=(10,), cv=folds, random_state=0)
    for train, test in folds:
        model = LogisticRegression().fit(X[train], y[train])
        np.testing.assert_array_equal(plain.predicted[test, 0], model.predict(X[test]) == "rare")


def test_hulls_areas_and_frame(grid) -> None:
    assert set(grid.hulls) == {"under", "smote+under"}
    for name, part in (("under", grid.over == 0), ("smote+under", grid.over > 0)):
        expected = roc_convex_hull(grid.fpr[part], grid.tpr[part])
        assert grid.hulls[name].area == expected.area
        own = [label for label, index in zip(grid.hulls[name].labels, grid.hulls[name].index, strict=True) if index >= 0]
        assert all((over == 0) == (name == "under") and under in UNDER for over, under in own)
    part = grid.over == 50
    fpr, tpr = np.r_[0, grid.fpr[part], 1], np.r_[0, grid.tpr[part], 1]
    assert grid.area(50) == pytest.approx(np.trapezoid(tpr, fpr)) and 0.6 < grid.area(50) < 1
    frame = grid.to_frame()
    assert frame.columns == ["over", "under", "fpr", "tpr", "fpr_sd", "tpr_sd", "on_hull"] and frame.height == 9
    rates = np.stack([grid.predicted[(grid.fold == k) & grid.positive].mean(axis=0) for k in range(4)])
    np.testing.assert_allclose(frame["tpr_sd"], rates.std(axis=0, ddof=1))
    assert frame["on_hull"].sum() == sum((hull.index >= 0).sum() for hull in grid.hulls.values())
    assert (
        grid.summary()
        == f"Area under the ROC hull: under {grid.hulls['under'].area:.4f}, smote+under {grid.hulls['smote+under'].area:.4f}."
    )


def test_gain_is_measured_on_rows_that_did_not_choose(grid) -> None:
    gain = grid.gain(draws=200)
    # By hand, with the same parts.
    rng = generator(0, "hull-gain")
    part = np.empty(400, dtype=int)
    for rows in (grid.positive, ~grid.positive):
        part[rows] = rng.permutation(rows.sum()) % 5
    areas = []
    for columns in (grid.over > 0, grid.over == 0):
        said = grid.predicted[:, columns]
        for k in range(5):
            here = part == k
            fpr, tpr = (said[~here & rows].mean(axis=0) for rows in (~grid.positive, grid.positive))
            chosen = [index for index in roc_convex_hull(fpr, tpr).index if index >= 0]
            fpr, tpr = (said[here & rows].mean(axis=0)[chosen] for rows in (~grid.positive, grid.positive))
            areas.append(np.trapezoid(np.r_[0, tpr, 1], np.r_[0, fpr, 1]))
    assert gain.estimate == pytest.approx(np.mean(areas[:5]) - np.mean(areas[5:]))
    assert gain.low < gain.estimate < gain.high
    assert gain == grid.gain(draws=200) != grid.gain(draws=200, random_state=1)
    narrow = grid.gain(draws=200, level=0.5)
    assert gain.low < narrow.low < narrow.high < gain.high


def test_more_points_of_noise_are_no_gain() -> None:
    """The hull of 60 columns of noise is larger than that of 3, on the rows it was made of."""
    positive = np.arange(400) < 60
    for seed in range(8):
        rng = np.random.default_rng(seed)
        noise = rng.random((400, 63)) < rng.random(63)
        fpr, tpr = noise[~positive].mean(axis=0), noise[positive].mean(axis=0)
        assert roc_convex_hull(fpr[:60], tpr[:60]).area > roc_convex_hull(fpr[60:], tpr[60:]).area + 0.02
        gain = hull_gain(positive, noise[:, :60], noise[:, 60:], draws=100)
        assert gain.low < 0 < gain.high


def test_a_gain_that_is_there_is_found() -> None:
    rng = np.random.default_rng(0)
    positive = np.arange(600) < 100
    score = 1.5 * positive[:, None] + rng.normal(size=(600, 2))
    sharp, dull = score[:, :1] > np.linspace(-1, 3, 6), score[:, 1:] + 1.5 * rng.normal(size=(600, 1)) > np.linspace(-1, 3, 6)
    gain = hull_gain(positive, sharp, dull, draws=200)
    assert gain.low > 0.02
    # Differences add up.
    third = hull_gain(positive, dull, sharp, draws=200)
    assert third == pytest.approx((-gain.estimate, -gain.high, -gain.low))


def test_seeds_repeat_and_reach_the_estimator(problem) -> None:
    X, y = problem
    np.random.seed(1)
    state = np.random.get_state()[1].copy()
    tree = make_pipeline(StandardScaler(), DecisionTreeClassifier(max_features=1))
    first, again, other = (
        smote_undersample_grid(tree, X, y, over=(0, 100), under=(50, 200), cv=3, random_state=seed).predicted for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    smote_undersample_grid(tree, X, y, over=(100,), under=(50,), cv=3)
    assert tree[-1].random_state is None
    with joblib.parallel_config(backend="threading"):
        two = smote_undersample_grid(tree, X, y, over=(0, 100), under=(50, 200), cv=3, random_state=0, n_jobs=2).predicted
    np.testing.assert_array_equal(two, first)


def test_the_minority_may_become_the_larger_class(problem) -> None:
    grid = smote_undersample_grid(LogisticRegression(), *problem, over=(900,), under=(100, 2000), cv=3, random_state=0)
    assert (grid.tpr > 0.8).all() and "under" not in grid.hulls


def test_only_tested_rows_count(problem) -> None:
    X, y = problem
    half = [(np.arange(200, 400), np.arange(200))]
    grid = smote_undersample_grid(LogisticRegression(), X, y, over=(0, 100), under=(100,), cv=half, random_state=0)
    assert (grid.fold[:200] == 0).all() and (grid.fold[200:] == -1).all()
    np.testing.assert_allclose(grid.tpr, grid.predicted[:200][y[:200] == "rare"].mean(axis=0))
    assert np.isfinite(grid.gain(draws=100)).all() and (grid.to_frame()["fpr_sd"] == 0).all()


def test_the_rarer_class_is_positive(problem) -> None:
    X, y = problem
    for labels, rare in ((np.where(y == "rare", "a", "b"), "a"), (np.where(y == "rare", "b", "a"), "b"), (np.where(y == "rare", 0, 1), 0)):
        grid = smote_undersample_grid(LogisticRegression(), X, labels, over=(0,), under=(100,), cv=3, random_state=0)
        np.testing.assert_array_equal(grid.positive, labels == rare)
        assert grid.tpr[0] > 0.5 > grid.fpr[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"y": [0, 1, 2, 3] * 100}, "y: got 4 classes; expected two classes"),
        ({"over": ()}, "over: got no amount; expected at least one"),
        ({"over": (-50,)}, "over: got -50; expected a number >= 0"),
        ({"under": (0,)}, "under: got 0; expected a number > 0"),
        ({"under": (10, 10)}, r"under: got \[10, 10\]; expected different amounts"),
        ({"cv": 1}, "cv: got 1; expected an integer in"),
        ({"cv": 1000}, "cv: got 1000"),
        ({"cv": RepeatedKFold(n_splits=3, n_repeats=2)}, "cv: got 'RepeatedKFold'; expected folds that test every row at most once"),
        ({"random_state": -1}, "random_state: got -1"),
        ({"y": np.r_[[1], np.zeros(399, dtype=int)], "cv": KFold(3)}, "rows of class 1 in a training fold; expected at least two"),
    ],
)
def test_bad_input_is_refused(problem, options, message) -> None:
    X, y = problem
    arguments = {"X": X, "y": y, "cv": 3, "over": (0,), "under": (100,)} | options
    with pytest.raises(InputError, match=message):
        smote_undersample_grid(LogisticRegression(), **arguments)


def test_bad_questions_are_refused(grid) -> None:
    with pytest.raises(InputError, match="over: got 75; expected one of the amounts 0, 50, 200"):
        grid.area(75)
    with pytest.raises(InputError, match="draws: got 10"):
        grid.gain(draws=10)
    alone = RocGrid(grid.over[:3], grid.under[:3], grid.positive, grid.fold, grid.predicted[:, :3])
    with pytest.raises(InputError, match=r"over: got \[0.0\]; expected a grid with amount 0 and with others"):
        alone.gain()
