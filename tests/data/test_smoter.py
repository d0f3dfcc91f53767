from __future__ import annotations

import numpy as np
import pandas
import polars
import pytest
from imblearn.pipeline import make_pipeline
from scipy import sparse
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import StandardScaler

from counterpoise import datasets
from counterpoise._errors import InputError
from counterpoise.data import SMOGN, SMOTER

SAMPLERS = [SMOTER, SMOGN]
both = pytest.mark.parametrize("Sampler", SAMPLERS)


def table(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Long tails on both sides."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 4)) * [1.0, 100.0, 0.01, 1.0]
    return X, X[:, 0] + rng.standard_t(3, size=n)


def frame(n: int = 300) -> polars.DataFrame:
    X, _ = table(n)
    rng = np.random.default_rng(1)
    return polars.DataFrame(
        {
            "float": X[:, 0],
            "single": X[:, 1].astype(np.float32),
            "count": rng.integers(0, 50, n),
            "text": rng.choice(["red", "green", "blue"], n),
            "kind": polars.Series(rng.choice(["a", "b"], n), dtype=polars.Categorical),
            "flag": rng.random(n) < 0.3,
        }
    )


# ---- what a new row is ------------------------------------------------------------------------------------------------------------------


@both
def test_kept_rows_come_first_bit_for_bit(Sampler) -> None:
    X, y = table()
    sampler = Sampler(random_state=0)
    X_new, y_new = sampler.fit_resample(X, y)
    kept = sampler.sample_indices_
    assert (np.diff(kept) > 0).all() and len(kept) < len(X)
    assert X_new[: len(kept)].tobytes() == X[kept].tobytes() and y_new[: len(kept)].tobytes() == y[kept].tobytes()
    np.testing.assert_array_equal(sampler.synthetic_mask_, np.arange(len(y_new)) >= len(kept))
    assert X_new.dtype == X.dtype and sampler.n_features_in_ == 4


@both
def test_new_rows_lie_where_parents_and_gaps_say(Sampler) -> None:
    X, y = table(1000)
    sampler = Sampler(random_state=0)
    X_new, y_new = sampler.fit_resample(X, y)
    drawn = np.isfinite(sampler.gaps_)
    assert drawn.all() == (Sampler is SMOTER) and drawn.sum() > 50
    one, other = sampler.parents_[drawn].T
    gaps = sampler.gaps_[drawn]
    assert ((gaps >= 0) & (gaps <= 1)).all() and (one != other).all()
    rows, targets = X_new[sampler.synthetic_mask_][drawn], y_new[sampler.synthetic_mask_][drawn]
    np.testing.assert_allclose(rows, X[one] + gaps[:, None] * (X[other] - X[one]), rtol=0, atol=1e-12)
    np.testing.assert_allclose(targets, y[one] + gaps * (y[other] - y[one]), rtol=0, atol=1e-12)


def test_parents_are_near_rows_of_the_same_range_each_used_equally_often() -> None:
    X, y = table(400)
    sampler = SMOTER(random_state=0, k_neighbors=3)
    sampler.fit_resample(X, y)
    scaled = X / np.ptp(X, axis=0)
    for part in sampler.ranges_:
        rows = np.flatnonzero((y >= part.low) & (y <= part.high))
        assert len(rows) == part.rows
        own = sampler.parents_[np.isin(sampler.parents_[:, 0], rows)]
        assert len(own) == max(0, part.rows_after - part.rows)
        if not len(own):
            continue
        assert part.rare
        used = np.bincount(own[:, 0], minlength=len(y))[rows]
        assert used.max() - used.min() <= 1
        distance = np.linalg.norm(scaled[rows][:, None] - scaled[rows][None], axis=2)
        np.fill_diagonal(distance, np.inf)
        nearest = {int(row): set(rows[np.argsort(line)[:3]].tolist()) for row, line in zip(rows, distance, strict=True)}
        assert all(int(other) in nearest[int(one)] for one, other in own)


def test_units_of_the_columns_do_not_matter() -> None:
    X, y = table()
    first, second = SMOTER(random_state=0), SMOTER(random_state=0)
    first.fit_resample(X, y)
    second.fit_resample(X * [1.0, 1e-6, 1e4, 3.0] + 5, y)
    np.testing.assert_array_equal(first.parents_, second.parents_)


def test_categories_come_from_a_parent_and_draw_the_target_to_it() -> None:
    """Two rows that share all numbers: the distance to a parent is the root of the categories taken from the other one."""
    n = 200
    rng = np.random.default_rng(0)
    X = np.column_stack([np.zeros(n), rng.integers(0, 2, n), rng.integers(0, 2, n), rng.integers(0, 2, n)])
    y = np.concatenate([np.zeros(n - 20), rng.uniform(10, 20, 20)])
    sampler = SMOTER(random_state=0, categorical_features=[1, 2, 3])
    X_new, y_new = sampler.fit_resample(X, y)
    one, other = sampler.parents_.T
    rows, targets = X_new[sampler.synthetic_mask_], y_new[sampler.synthetic_mask_]
    from_one, from_other = (np.sqrt((rows[:, 1:] != X[parent, 1:]).sum(axis=1)) for parent in (one, other))
    assert ((rows[:, 1:] == X[one, 1:]) | (rows[:, 1:] == X[other, 1:])).all()
    apart = from_one + from_other > 0
    assert apart.any() and not apart.all()
    share = from_one[apart] / (from_one + from_other)[apart]
    np.testing.assert_allclose(targets[apart], y[one][apart] + share * (y[other] - y[one])[apart], atol=1e-12)
    differ = (X[one, 1:] != X[other, 1:]).ravel()
    taken = (rows[:, 1:] == X[other, 1:]).ravel()[differ]
    assert abs(taken.mean() - 0.5) < 4 * np.sqrt(0.25 / len(taken))  # a fair coin


def test_categories_count_as_one_range_in_the_distance() -> None:
    # Numbers between 0 and 1 that differ by at most 0.9 within a category: neighbors never cross to another one.
    rng = np.random.default_rng(0)
    X = np.column_stack([np.concatenate([[0.0, 1.0], rng.uniform(0, 0.9, 198)]), np.arange(200) % 2])
    y = np.concatenate([np.zeros(160), rng.uniform(10, 20, 40)])
    sampler = SMOTER(random_state=0, categorical_features=[1], relevance=[(5, 0), (9, 1)])
    sampler.fit_resample(X, y)
    assert (X[sampler.parents_[:, 0], 1] == X[sampler.parents_[:, 1], 1]).all()


# ---- Gaussian noise ---------------------------------------------------------------------------------------------------------------------


def test_noise_is_where_the_neighbor_is_far() -> None:
    X, y = table(500)
    sampler = SMOGN(random_state=0)
    sampler.fit_resample(X, y)
    scaled = X / np.ptp(X, axis=0)
    noisy = np.isnan(sampler.gaps_)
    assert 10 < noisy.sum() < len(noisy) - 10
    assert (sampler.parents_[noisy, 0] == sampler.parents_[noisy, 1]).all()
    for part in sampler.ranges_:
        rows = np.flatnonzero((y >= part.low) & (y <= part.high))
        distance = np.linalg.norm(scaled[rows][:, None] - scaled[rows][None], axis=2)
        half = np.array([np.median(np.delete(line, i)) / 2 for i, line in enumerate(distance)])
        place = {int(row): i for i, row in enumerate(rows)}
        for (one, other), is_noisy in zip(sampler.parents_, noisy, strict=True):
            if int(one) in place and not is_noisy:
                assert distance[place[int(one)], place[int(other)]] < half[place[int(one)]]


def test_noise_has_the_width_of_the_range_and_stays_in_bounds() -> None:
    rng = np.random.default_rng(0)
    n, rare = 1000, 200
    # Rare rows are all equally far from each other (one-hot), so that no neighbor is near; one more column has a spread to measure.
    X = np.zeros((n, 1 + rare))
    X[:, 0] = rng.normal(size=n)
    X[n - rare :, 1:] = np.eye(rare)
    y = np.concatenate([np.zeros(n - rare), rng.uniform(50, 60, rare)])
    sampler = SMOGN(random_state=0, noise=0.5, sampling_strategy=[1, 11], relevance=[(1, 0), (2, 1)])
    X_new, y_new = sampler.fit_resample(X, y)
    assert np.isnan(sampler.gaps_).mean() > 0.99
    seeds = sampler.parents_[:, 0]
    inside = np.abs(X[seeds, 0]) < 1  # where the bounds cut off nothing
    step = (X_new[n:, 0] - X[seeds, 0])[inside] / X[n - rare :, 0].std(ddof=1)
    assert step.std() == pytest.approx(0.5, rel=0.1) and abs(step.mean()) < 0.05
    assert X_new.min(axis=0) == pytest.approx(X.min(axis=0)) and X_new.max() <= X.max() and y_new.max() <= y.max()
    assert (X_new[n:, 1:] >= 0).all()
    moved = y_new[n:] - y[seeds]
    middle = (y[seeds] > 53) & (y[seeds] < 57)
    assert moved[middle].std() == pytest.approx(0.5 * y[n - rare :].std(ddof=1), rel=0.15)


def test_noise_draws_categories_as_often_as_they_occur() -> None:
    rng = np.random.default_rng(0)
    n, rare = 600, 100
    X = np.zeros((n, 1 + rare))  # rare rows far from each other, and a category
    X[:, 0] = rng.random(n) < 0.3
    X[n - rare :, 1:] = np.eye(rare)
    y = np.concatenate([np.zeros(n - rare), rng.uniform(50, 60, rare)])
    sampler = SMOGN(random_state=0, sampling_strategy=[1, 20], relevance=[(1, 0), (2, 1)], categorical_features=[0])
    X_new, _ = sampler.fit_resample(X, y)
    noisy = X_new[sampler.synthetic_mask_][np.isnan(sampler.gaps_), 0]
    share = X[n - rare :, 0].mean()
    assert len(noisy) > 200 and abs(noisy.mean() - share) < 4 * np.sqrt(share * (1 - share) / len(noisy))


def test_a_median_over_a_sample_is_close(monkeypatch) -> None:
    X, y = table(900)
    exact = SMOGN(random_state=0)
    exact.fit_resample(X, y)
    monkeypatch.setattr("counterpoise.data._smogn.OTHERS", 30)
    sampled = SMOGN(random_state=0)
    sampled.fit_resample(X, y)
    assert abs(np.isnan(exact.gaps_).mean() - np.isnan(sampled.gaps_).mean()) < 0.1


# ---- how many ---------------------------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("strategy", ["balance", "extreme", "over", [3.0, 0.5, 1.0]])
def test_ranges_get_the_rows_of_the_strategy(Sampler, strategy) -> None:
    X, y = table()
    sampler = Sampler(random_state=0, sampling_strategy=strategy)
    _, y_new = sampler.fit_resample(X, y)
    sizes = [part.rows for part in sampler.ranges_]
    assert [part.rare for part in sampler.ranges_] == [True, False, True] and sum(sizes) == len(y)
    wanted = {
        "balance": [100, 100, 100],
        "extreme": [round(300 / size / sum(1 / other for other in sizes)) for size in sizes],
        "over": [max(sizes)] * 3,
    }.get(str(strategy), [3 * sizes[0], round(sizes[1] / 2), sizes[2]])
    assert [part.rows_after for part in sampler.ranges_] == wanted and len(y_new) == sum(wanted)
    # New targets stay in the range they were made for.
    counts = [int(((y_new >= part.low) & (y_new <= part.high)).sum()) for part in sampler.ranges_]
    assert counts == wanted if Sampler is SMOTER else sum(counts) > 0.9 * sum(wanted)
    if strategy == "over":
        np.testing.assert_array_equal(sampler.sample_indices_, np.arange(len(y)))


def test_the_ends_that_matter_can_be_chosen() -> None:
    X, y = table()
    high = SMOTER(random_state=0, extremes="high")
    high.fit_resample(X, y)
    assert [part.rare for part in high.ranges_] == [False, True]
    own = SMOTER(random_state=0, relevance=[(-1, 1), (0, 0)], threshold=0.5)
    own.fit_resample(X, y)
    assert [part.rare for part in own.ranges_] == [True, False] and own.ranges_[0].high <= -0.5 < own.ranges_[1].low
    np.testing.assert_array_equal(own.relevance_ >= 0.5, y <= -0.5)


@both
def test_seeds_repeat_and_leave_numpy_alone(Sampler) -> None:
    X, y = table()
    np.random.seed(7)
    state = np.random.get_state()[1].copy()
    first, again, other = (Sampler(random_state=seed).fit_resample(X, y)[0] for seed in (3, 3, 4))
    Sampler().fit_resample(X, y)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    for make in (np.random.RandomState, np.random.default_rng):
        np.testing.assert_array_equal(*(Sampler(random_state=make(1)).fit_resample(X, y)[1] for _ in range(2)))


# ---- tables -----------------------------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("to", ["polars", "pandas"])
def test_frames_come_back_as_they_were(Sampler, to) -> None:
    _, y = table()
    X = frame()
    if to == "pandas":
        X = X.to_pandas()
        X["nullable"] = pandas.array(X["count"], dtype="Int64")
        target = pandas.Series(y.astype(np.float32), name="price", index=X.index[::-1])
    else:
        target = polars.Series("price", y.astype(np.float32))
    sampler = Sampler(random_state=0)
    X_new, y_new = sampler.fit_resample(X, target)
    assert type(X_new) is type(X) and type(y_new) is type(target) and y_new.name == "price" and y_new.dtype == target.dtype
    kept = len(sampler.sample_indices_)
    if to == "pandas":
        assert X_new.dtypes.equals(X.dtypes) and not X_new.isna().any().any()
        pandas.testing.assert_frame_equal(X_new.iloc[:kept], X.iloc[sampler.sample_indices_].reset_index(drop=True))
    else:
        assert X_new.schema == X.schema and X_new.null_count().sum_horizontal().item() == 0
        assert X_new[:kept].equals(X[sampler.sample_indices_])
        assert set(X_new["text"]) == set(X["text"]) and set(X_new["kind"]) == set(X["kind"])
    assert list(sampler.feature_names_in_) == list(X.columns)
    # The same table as an array of codes gives the same draws.
    codes = frame().with_columns(polars.col("text", "kind", "flag").cast(polars.String).rank("dense")).to_numpy()
    if to == "polars":
        array = Sampler(random_state=0, categorical_features=[3, 4, 5])
        array.fit_resample(codes, y.astype(np.float32))
        np.testing.assert_array_equal(array.parents_, sampler.parents_)


@both
def test_integers_stay_whole_and_single_precision_single(Sampler) -> None:
    X, y = table()
    X_new, y_new = Sampler(random_state=0).fit_resample(X.astype(np.float32), np.rint(10 * y).astype(np.int32))
    assert X_new.dtype == np.float32 and y_new.dtype == np.int32
    X_list, y_list = Sampler(random_state=0).fit_resample(X.tolist(), y.tolist())
    assert isinstance(X_list, list) and isinstance(y_list, list) and isinstance(X_list[0][0], float)
    np.testing.assert_array_equal(X_list, Sampler(random_state=0).fit_resample(X, y)[0])
    column = polars.DataFrame({"price": y})
    assert Sampler(random_state=0).fit_resample(X, column)[1].columns == ["price"]
    objects = np.column_stack([X.astype(object), np.where(X[:, 0] > 0, "up", "down")])
    mixed, _ = Sampler(random_state=0, categorical_features=[4]).fit_resample(objects, y)
    assert mixed.dtype == object and set(mixed[:, 4]) == {"up", "down"} and all(isinstance(value, float) for value in mixed[:, 0])


def test_it_works_in_pipelines_and_searches() -> None:
    X, y = table()
    pipeline = make_pipeline(StandardScaler(), SMOTER(random_state=0), LinearRegression())
    search = GridSearchCV(pipeline, {"smoter__k_neighbors": [2, 5], "smoter__sampling_strategy": ["balance", "over"]}, cv=3).fit(X, y)
    best = search.best_estimator_["smoter"]
    by_hand = LinearRegression().fit(*clone(best).fit_resample(StandardScaler().fit_transform(X), y))
    np.testing.assert_allclose(search.best_estimator_[-1].coef_, by_hand.coef_)
    assert clone(SMOGN(noise=0.3, k_neighbors=2)).get_params()["noise"] == 0.3
    assert SMOTER(random_state=0).fit(X, y).ranges_


@both
def test_real_tables(Sampler, data_folder) -> None:
    for name, rare in (("abalone", [True, False, True]), ("wine-red", [True, False, True])):
        if name not in datasets.names():
            continue
        read = datasets.load(name)
        X, y = read.frame.drop(read.target), read.frame[read.target]
        sampler = Sampler(random_state=0)
        X_new, y_new = sampler.fit_resample(X, y)
        assert [part.rare for part in sampler.ranges_] == rare and X_new.schema == X.schema
        assert abs(len(y_new) - len(y)) < 3 and X_new.null_count().sum_horizontal().item() == 0


# ---- bad input --------------------------------------------------------------------------------------------------------------------------


def test_ranges_with_few_rows() -> None:
    X, y = table()
    y[y < np.quantile(y, 0.9)] = 0.0
    y[7] = -100.0
    with pytest.raises(InputError, match=r"y: got one row in the range -100 to -100 of the target; .*extremes='high'"):
        SMOTER().fit_resample(X, y)
    y[8] = -90.0
    with pytest.warns(UserWarning, match="k_neighbors: the range -100 to -90 of the target has only 2 rows, so 1 neighbors are used"):
        SMOTER(random_state=0).fit_resample(X, y)
    with pytest.raises(InputError, match=r'k_neighbors: got 5; expected at most 1, .*on_few="reduce_k" would take those'):
        SMOGN(random_state=0, on_few="raise").fit_resample(X, y)


def test_duplicates_are_fine() -> None:
    X, y = np.ones((100, 3)), np.concatenate([np.zeros(90), np.full(10, 9.0)])
    for Sampler in SAMPLERS:
        X_new, y_new = Sampler(random_state=0).fit_resample(X, y)
        assert (X_new == 1).all() and (y_new == 0).sum() == (y_new == 9).sum() == 50


def broken(column: str, value: object) -> polars.DataFrame:
    return frame().with_columns(polars.when(polars.int_range(300) == 5).then(value).otherwise(polars.col(column)).alias(column))


@pytest.mark.parametrize(
    ("options", "X", "y", "message"),
    [
        ({"relevance": "autom"}, None, None, "relevance: got 'autom'; expected one of auto"),
        ({"threshold": 0}, None, None, r"threshold: got 0; expected a number in \(0, 1\]"),
        ({"extremes": "hihg"}, None, None, "Did you mean 'high'"),
        ({"coef": -1}, None, None, "coef: got -1"),
        ({"k_neighbors": 0}, None, None, "k_neighbors: got 0; expected an integer >= 1"),
        ({"on_few": "skip"}, None, None, "on_few: got 'skip'"),
        ({"sampling_strategy": "balanced"}, None, None, "Did you mean 'balance'"),
        ({"sampling_strategy": [2.0]}, None, None, "a factor > 0 for each of the 3 ranges"),
        ({"relevance": lambda y: 0 * y}, None, None, "threshold: got 0.8, which 0 of 300 rows reach"),
        ({"relevance": lambda y: 0 * y + 1}, None, None, "threshold: got 0.8, which 300 of 300 rows reach"),
        ({"categorical_features": "all"}, None, None, "categorical_features: got 'all'; expected one of auto"),
        ({"categorical_features": [9]}, None, None, "categorical_features"),
        ({}, sparse.csr_matrix(np.eye(300)), None, r"X: got a sparse matrix; expected a dense table. Convert it with .toarray\(\)"),
        ({}, np.zeros(300), None, "expected a table, shape"),
        ({}, np.full((300, 2), np.nan), None, "X: got NaN or infinity in column 0; expected finite numbers. Impute"),
        ({}, np.full((300, 2), "a"), None, "in column 0; expected numbers or categories. Name columns with categories in"),
        ({}, broken("float", float("nan")), None, "X: got NaN or infinity in column float"),
        ({}, broken("count", None), None, "X: got NaN or infinity in column count"),
        ({}, broken("text", None), None, "X: got missing values in column text; .*category of its own"),
        ({}, broken("text", None).to_pandas(), None, "X: got missing values in column text"),
        ({}, frame().with_columns(day=polars.date(2020, 1, 1)), None, "X: got Date in column day; .*turn dates into numbers first"),
        ({}, np.zeros((299, 2)), None, "X and y: got 299 and 300 rows"),
        ({}, None, ["a"] * 300, "y: got shape .*Classes are a case for SMOTE"),
        ({}, None, np.zeros((300, 2)), r"y: got shape \(300, 2\)"),
        ({}, None, [np.nan] * 300, "y: got 300 targets that are not finite"),
        ({}, None, np.arange(300.0), "y: got no value beyond the whiskers"),
    ],
)  # fmt: skip
@both
def test_bad_input_is_refused(Sampler, options, X, y, message) -> None:
    good_X, good_y = table()
    with pytest.raises(InputError, match=message):
        Sampler(**options).fit_resample(good_X if X is None else X, good_y if y is None else y)


def test_smogn_needs_noise() -> None:
    with pytest.raises(InputError, match="noise: got 0; expected a number > 0"):
        SMOGN(noise=0).fit_resample(*table())
