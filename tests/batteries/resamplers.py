"""The battery of the resamplers: every check takes a :class:`ResamplerCase`, and every ``fit_resample`` that invents rows must pass all."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas
import polars
import pytest
from imblearn.metrics.pairwise import ValueDifferenceMetric
from imblearn.pipeline import make_pipeline
from imblearn.utils import estimator_checks
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.exceptions import DataConversionWarning
from sklearn.model_selection import GridSearchCV
from sklearn.tree import DecisionTreeClassifier

from counterpoise._errors import InputError

__all__ = [
    "RESAMPLER_CHECKS",
    "ResamplerCase",
    "mixed",
    "mixed_distances",
    "nominal",
    "nominal_distances",
    "numbers",
    "parametrize_with_checks",
]

COLUMNS = 6
CATEGORICAL = (1, 4)  # the columns of a mixed table that hold categories
SIZES = {2: (170, 50), 3: (120, 60, 40)}


def parametrize_with_checks(samplers: Sequence[Any]) -> Any:
    """imbalanced-learn's decorator of this name; pytest wants the list of checks to be one."""
    mark = estimator_checks.parametrize_with_checks(list(samplers)).mark
    names, values = mark.args
    return pytest.mark.parametrize(names, list(values), **mark.kwargs)


def numbers(n_classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes, largest first, in random order."""
    sizes = SIZES[n_classes]
    X, y = make_classification(
        4 * sum(sizes), COLUMNS, n_informative=5, n_redundant=0, n_classes=n_classes, class_sep=0.4, n_clusters_per_class=1, random_state=0
    )
    rows = np.concatenate([np.flatnonzero(y == label)[:size] for label, size in enumerate(sizes)])
    rows = np.random.default_rng(0).permutation(rows)
    return X[rows], y[rows]


def mixed(n_classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """The same with two columns cut into categories, as numbers."""
    X, y = numbers(n_classes)
    for column in CATEGORICAL:
        X[:, column] = np.digitize(X[:, column], [-0.5, 0.5])
    return X, y


def nominal(n_classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """All columns cut into categories, as numbers."""
    X, y = numbers(n_classes)
    return np.digitize(X, [-1.0, 0.0, 1.0]).astype(np.float64), y


def plain_distances(X: np.ndarray, y: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Euclidean distances, from the differences."""
    return np.sqrt(((X[rows][:, None, :] - X[rows][None, :, :]) ** 2).sum(axis=2))


def mixed_distances(X: np.ndarray, y: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Numbers as they are, Med^2 per category that differs."""
    X = X[rows]
    categories, rest = X[:, list(CATEGORICAL)], np.delete(X, CATEGORICAL, axis=1)
    differing = (categories[:, None, :] != categories[None, :, :]).sum(axis=2)
    return np.sqrt(((rest[:, None, :] - rest[None, :, :]) ** 2).sum(axis=2) + np.median(rest.std(axis=0)) ** 2 * differing)


def nominal_distances(X: np.ndarray, y: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """imbalanced-learn's value difference metric; the categories are codes already."""
    codes = X.astype(np.int32)
    return np.asarray(ValueDifferenceMetric().fit(codes, y).pairwise(codes[rows]))


@dataclass(frozen=True)
class ResamplerCase:
    """A sampler with a way to make tables for it.

    ``make(**options)`` builds it; ``sample(n_classes)`` makes an array of floats with labels 0..K-1, class 0 being the largest.

    Attributes:
        peer: imbalanced-learn's sampler, built by the same options, which returns the same rows.
        between: columns in which synthetic rows lie between their parents.
        distances: distances between rows, by brute force.
        k: neighbors to choose from, among the rows of the class or (``from_all``) all rows.
        cleans: it takes rows out again, so there are fewer than asked for.
        rounds: numbers per row are rounded, so there may be a few more or less than asked for.
        needs_border: a class none of whose rows is near the border does not grow.
        exact: the peer's rows are met bit for bit.
    """

    name: str
    make: Callable[..., Any]
    sample: Callable[..., tuple[np.ndarray, np.ndarray]] = numbers
    peer: Callable[..., Any] | None = None
    between: tuple[int, ...] = tuple(range(COLUMNS))
    distances: Callable[..., np.ndarray] = plain_distances
    k: int = 5
    from_all: bool = False
    cleans: bool = False
    rounds: bool = False
    needs_border: bool = False
    exact: bool = True

    def resampled(self, X: Any, y: Any, **options: Any) -> tuple[Any, Any, Any]:
        """The fitted sampler, X and y. That SMOTEN finds sparse tables inefficient is known."""
        sampler = self.make(**{"random_state": 0} | options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataConversionWarning)
            return sampler, *sampler.fit_resample(X, y)


def dense(X: Any) -> np.ndarray:
    return X.toarray() if sparse.issparse(X) else np.asarray(X)


def the_originals_come_first_bit_for_bit(case: ResamplerCase) -> None:
    for n_classes in (2, 3):
        X, y = case.sample(n_classes)
        before = X.copy()
        sampler, X_new, y_new = case.resampled(X, y)
        kept = sampler.kept_indices_[sampler.kept_indices_ < len(X)] if case.cleans else np.arange(len(X))
        assert X_new[: len(kept)].tobytes() == before[kept].tobytes() and X_new.dtype == X.dtype
        np.testing.assert_array_equal(y_new[: len(kept)], y[kept])
        np.testing.assert_array_equal(sampler.synthetic_mask_, np.arange(len(X_new)) >= len(kept))
        assert sampler.synthetic_mask_.sum() > 20 and len(X_new) == len(y_new)
        assert X.tobytes() == before.tobytes() and not np.shares_memory(X, X_new)


def synthetic_rows_lie_where_parents_and_gaps_say(case: ResamplerCase) -> None:
    for n_classes in (2, 3):
        X, y = case.sample(n_classes)
        sampler, X_new, y_new = case.resampled(X, y)
        new, labels, parents = X_new[sampler.synthetic_mask_], y_new[sampler.synthetic_mask_], sampler.parents_
        assert len(parents) == len(new) and parents.dtype.kind == "i"
        np.testing.assert_array_equal(y[parents[:, 0]], labels)
        if not case.between:
            continue
        columns = list(case.between)
        one, other = X[parents[:, 0]][:, columns], X[parents[:, 1]][:, columns]
        gaps = sampler.gaps_ if sampler.gaps_.ndim == 2 else sampler.gaps_[:, None]
        assert (gaps >= 0).all() and (gaps <= 1).all() and gaps.min() < 0.1
        np.testing.assert_allclose(new[:, columns], one + gaps * (other - one), rtol=0, atol=1e-12)
        foreign = y[parents[:, 1]] != labels
        assert foreign.any() == case.from_all and (gaps[foreign] <= 0.5).all()


def neighbors_are_among_the_k_nearest(case: ResamplerCase) -> None:
    for n_classes in (2, 3):
        X, y = case.sample(n_classes)
        sampler, _, _ = case.resampled(X, y)
        for label in range(1, n_classes):
            pool = np.arange(len(y)) if case.from_all else np.flatnonzero(y == label)
            place = np.full(len(y), -1)
            place[pool] = np.arange(len(pool))
            distances = case.distances(X, y, pool)
            np.fill_diagonal(distances, np.inf)
            farthest = np.sort(distances, axis=1)[:, case.k - 1]
            parents = sampler.parents_[y[sampler.parents_[:, 0]] == label]
            assert len(parents)
            for neighbor in parents.T[1:]:
                one, other = place[parents[:, 0]], place[neighbor]
                assert (one >= 0).all() and (other >= 0).all() and (one != other).all()
                assert (distances[one, other] <= farthest[one] * (1 + 1e-9)).all()


def gaps_are_uniform(case: ResamplerCase) -> None:
    if case.cleans or not case.between:
        return
    X, y = case.sample(2)
    sampler, _, _ = case.resampled(X, y, sampling_strategy={1: 3000})
    gaps = sampler.gaps_[y[sampler.parents_[:, 1]] == 1]
    # U(0, 1) has mean 1/2, so that synthetic rows average to the middle of their segments, and variance 1/12. Within four standard errors:
    assert abs(gaps.mean() - 0.5) < 4 * np.sqrt(1 / 12 / gaps.size)
    assert abs(gaps.var() - 1 / 12) < 4 * np.sqrt(1 / 180 / gaps.size)


STRATEGIES: list[tuple[int, Any, tuple[int, ...]]] = [  # classes, strategy, rows of each class
    (2, "auto", (170, 170)),
    (2, "minority", (170, 170)),
    (2, 0.6, (170, 102)),
    (2, {0: 170, 1: 100}, (170, 100)),
    (2, lambda y: {1: int((y == 1).sum()) * 2}, (170, 100)),
    (3, "auto", (120, 120, 120)),
    (3, "all", (120, 120, 120)),
    (3, "minority", (120, 60, 120)),
    (3, "not minority", (120, 120, 40)),
    (3, {1: 90}, (120, 90, 40)),
]


def counts_follow_the_strategy(case: ResamplerCase) -> None:
    for n_classes, strategy, expected in STRATEGIES:
        X, y = case.sample(n_classes)
        sampler, _, y_new = case.resampled(X, y, sampling_strategy=strategy)
        counts = np.bincount(y_new, minlength=n_classes)
        if case.cleans:
            assert (counts <= expected).all() and sum(counts) == len(sampler.kept_indices_)
            assert sampler.smote_.fit_resample(X, y)[1].tolist().count(1) == expected[1]
        elif case.rounds:
            assert (np.abs(counts - expected) <= np.array(SIZES[n_classes]) / 2).all()
        else:
            np.testing.assert_array_equal(counts, expected)


def the_rows_are_those_of_imbalanced_learn(case: ResamplerCase) -> None:
    if case.peer is None:
        return
    for n_classes in (2, 3):
        for dtype in (np.float64, np.float32):
            X, y = case.sample(n_classes)
            X = X.astype(dtype)
            _, ours, y_ours = case.resampled(X, y, random_state=7)
            theirs, y_theirs = case.peer(random_state=7).fit_resample(X, y)
            if case.cleans:  # rows in another order
                ours, theirs = (np.column_stack([X, y]) for X, y in ((ours, y_ours), (theirs, y_theirs)))
                ours, theirs = ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)]
            else:
                np.testing.assert_array_equal(y_ours, y_theirs)
            assert ours.dtype == theirs.dtype
            np.testing.assert_allclose(ours, theirs, rtol=0 if case.exact else 1e-6, atol=0 if case.exact else 1e-6)


def seeds_repeat_and_the_global_stream_is_left_alone(case: ResamplerCase) -> None:
    X, y = case.sample(2)
    state = np.random.get_state()[1].copy()
    one, again, other, unseeded = (case.resampled(X, y, random_state=seed)[1] for seed in (0, 0, 1, None))
    np.testing.assert_array_equal(one, again)
    assert other.shape != one.shape or not np.array_equal(one, other)
    assert unseeded.shape != one.shape or not np.array_equal(one, unseeded)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    streams = [np.random.RandomState(0) for _ in range(2)]
    np.testing.assert_array_equal(*(case.resampled(X, y, random_state=stream)[1] for stream in streams))


def labels_of_any_type_give_the_same_rows(case: ResamplerCase) -> None:
    names = np.array(["ant", "bee", "cow"])
    for n_classes in (2, 3):
        X, y = case.sample(n_classes)
        _, X_new, y_new = case.resampled(X, y)
        _, X_named, y_named = case.resampled(X, names[y])
        np.testing.assert_array_equal(X_named, X_new)
        np.testing.assert_array_equal(y_named, names[y_new])
        series = pandas.Series(names[y], name="animal", dtype="category"), polars.Series("animal", names[y])
        for given, expected in (
            (y.astype(np.int8), y_new),
            (y.tolist(), y_new),
            (series[0], names[y_new]),
            (series[0].to_frame(), names[y_new, None]),
            (series[1], names[y_new]),
            (series[1].to_frame(), names[y_new, None]),
        ):
            _, X_given, y_given = case.resampled(X, given)
            np.testing.assert_array_equal(X_given, X_new)
            np.testing.assert_array_equal(np.asarray(y_given), expected)
            assert type(y_given) is type(given)
            for attribute in ("dtype", "dtypes", "name"):
                assert np.array_equal(getattr(y_given, attribute, None), getattr(given, attribute, None))


def single_precision_stays_single(case: ResamplerCase) -> None:
    X, y = case.sample(2)
    X = X.astype(np.float32)
    sampler, X_new, _ = case.resampled(X, y)
    assert X_new.dtype == np.float32
    if case.between:
        columns, parents = list(case.between), sampler.parents_
        gaps = sampler.gaps_ if sampler.gaps_.ndim == 2 else sampler.gaps_[:, None]
        one, other = X[parents[:, 0]][:, columns].astype(np.float64), X[parents[:, 1]][:, columns].astype(np.float64)
        np.testing.assert_allclose(X_new[sampler.synthetic_mask_][:, columns], one + gaps * (other - one), rtol=1e-6, atol=1e-6)


def frames_come_back_as_they_came(case: ResamplerCase) -> None:
    X, y = case.sample(2)
    names = [f"column {i}" for i in range(COLUMNS)]
    dtypes = ["float32", *["float64"] * (COLUMNS - 1)]
    made = pandas.DataFrame(X, columns=names).astype(dict(zip(names, dtypes, strict=True)))
    made.index = made.index + 100
    _, X_array, y_array = case.resampled(made.to_numpy(), y)
    for frame in (
        made,
        polars.DataFrame(made.to_dict("list"), schema={n: getattr(polars, d.capitalize()) for n, d in zip(names, dtypes, strict=True)}),
    ):
        sampler, X_new, y_new = case.resampled(frame, y)
        assert type(X_new) is type(frame) and list(X_new.columns) == names and list(X_new.dtypes) == list(frame.dtypes)
        assert sampler.feature_names_in_.tolist() == names and sampler.get_feature_names_out().tolist() == names
        np.testing.assert_allclose(X_new.to_numpy(), X_array, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(y_new, y_array)
    _, X_new, y_new = case.resampled(made, pandas.Series(y, index=made.index, name="y"))
    assert X_new.index.equals(pandas.RangeIndex(len(X_new))) and y_new.index.equals(X_new.index)
    rows = made.to_numpy().tolist()
    assert case.resampled(rows, y)[1] == X_array.tolist()


def sparse_tables_stay_sparse(case: ResamplerCase) -> None:
    X, y = case.sample(2)
    X[np.abs(X) < 0.3] = 0
    sampler, X_dense, y_dense = case.resampled(X, y)
    for form in (sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array):
        other, X_new, y_new = case.resampled(form(X), y)
        assert X_new.format == form(X).format and sparse.issparse(X_new)
        np.testing.assert_array_equal(y_new, y_dense)
        np.testing.assert_array_equal(other.parents_, sampler.parents_)
        if hasattr(other, "gaps_") and sparse.issparse(other.gaps_):  # one gap per column: drawn only where there is one
            one, another = X[other.parents_[:, 0]], X[other.parents_[:, 1]]
            expected = one + other.gaps_.toarray() * (another - one)
            np.testing.assert_allclose(X_new.toarray()[other.synthetic_mask_], expected, rtol=0, atol=1e-12)
        else:
            np.testing.assert_allclose(X_new.toarray(), X_dense, rtol=0, atol=1e-12)


def copies_of_a_row_are_no_trouble(case: ResamplerCase) -> None:
    X, y = case.sample(2)
    rows = np.repeat(np.concatenate([np.flatnonzero(y == 0)[:40], np.flatnonzero(y == 1)[:15]]), 3)
    sampler, X_new, _ = case.resampled(X[rows], y[rows], sampling_strategy={1: 100})
    assert np.isfinite(X_new).all() and len(sampler.parents_)
    assert (sampler.parents_[:, [0]] != sampler.parents_[:, 1:]).all()  # a copy of a row can be its neighbor, the row itself cannot


def balanced_classes_come_back_as_a_copy(case: ResamplerCase) -> None:
    X, y = case.sample(2)
    rows = np.concatenate([np.flatnonzero(y == label)[:50] for label in (0, 1)])
    sampler, X_new, y_new = case.resampled(X[rows], y[rows])
    assert not sampler.synthetic_mask_.any() and sampler.parents_.shape[0] == 0
    if not case.cleans:
        assert X_new.tobytes() == X[rows].tobytes()
        np.testing.assert_array_equal(y_new, y[rows])
        frame = polars.DataFrame(X[rows])
        assert case.resampled(frame, y[rows])[1].equals(frame)


def parameters_survive_cloning_and_searching(case: ResamplerCase) -> None:
    X, y = case.sample(2)
    sampler = case.make(random_state=3, sampling_strategy=0.8)
    assert {name: repr(value) for name, value in clone(sampler).get_params().items()} == {
        name: repr(value) for name, value in sampler.get_params().items()
    }
    pipeline = make_pipeline(sampler, DecisionTreeClassifier(random_state=0))
    name = pipeline.steps[0][0]
    search = GridSearchCV(pipeline, {f"{name}__sampling_strategy": [0.7, 1.0]}, scoring="roc_auc", cv=2).fit(X, y)
    assert search.best_score_ > 0.5 and set(pipeline.fit(X, y).predict(X)) == {0, 1}


def what_cannot_be_resampled_is_refused(case: ResamplerCase) -> None:
    X, y = case.sample(2)
    with pytest.raises(ValueError, match="more than 1 class"):
        case.resampled(X, np.zeros(len(y), dtype=int))
    with pytest.raises(ValueError, match="Originally, there is 50 samples and 49 samples are asked"):
        case.resampled(X, y, sampling_strategy={1: 49})
    one = np.flatnonzero((y == 0) | (np.cumsum(y == 1) == 1))
    with pytest.raises(InputError, match=r"y: got one row of class 1; expected at least two .* RandomOverSampler"):
        case.resampled(X[one], y[one])
    if not case.needs_border:
        few_rows_are_told_of(case, X, y)
    for wrong in (np.nan, np.inf):
        if case.between:
            Z = X.copy()
            Z[3, case.between[-1]] = wrong
            for table in (Z, sparse.csr_matrix(Z)):
                with pytest.raises(InputError, match=rf"X: got NaN or infinity in column {case.between[-1]}; expected finite numbers"):
                    case.resampled(table, y)
            frame = pandas.DataFrame(Z, columns=[f"c{i}" for i in range(COLUMNS)])
            with pytest.raises(InputError, match=rf"NaN or infinity in column c{case.between[-1]};"):
                case.resampled(frame, y)


def few_rows_are_told_of(case: ResamplerCase, X: np.ndarray, y: np.ndarray) -> None:
    few = np.flatnonzero((y == 0) | (np.cumsum(y == 1) <= 4))
    with pytest.warns(UserWarning, match="class 1 has only 4 rows, so 3 neighbors are used instead of 5"):
        case.resampled(X[few], y[few])
    if "on_few" in case.make().get_params():
        with pytest.raises(InputError, match=r'neighbors: got 5; expected at most 3, the other rows of class 1. on_few="reduce_k"'):
            case.resampled(X[few], y[few], on_few="raise")


def one_hot_labels_are_labels(case: ResamplerCase) -> None:
    X, y = case.sample(3)
    _, X_new, y_new = case.resampled(X, y)
    _, X_hot, y_hot = case.resampled(X, np.eye(3, dtype=int)[y])
    np.testing.assert_array_equal(X_hot, X_new)
    np.testing.assert_array_equal(y_hot.argmax(axis=1), y_new)
    assert Counter(y_hot.sum(axis=1).tolist()) == {1: len(y_new)}


RESAMPLER_CHECKS: list[Callable[[ResamplerCase], None]] = [
    the_originals_come_first_bit_for_bit,
    synthetic_rows_lie_where_parents_and_gaps_say,
    neighbors_are_among_the_k_nearest,
    gaps_are_uniform,
    counts_follow_the_strategy,
    the_rows_are_those_of_imbalanced_learn,
    seeds_repeat_and_the_global_stream_is_left_alone,
    labels_of_any_type_give_the_same_rows,
    one_hot_labels_are_labels,
    single_precision_stays_single,
    frames_come_back_as_they_came,
    sparse_tables_stay_sparse,
    copies_of_a_row_are_no_trouble,
    balanced_classes_come_back_as_a_copy,
    parameters_survive_cloning_and_searching,
    what_cannot_be_resampled_is_refused,
]
