"""Neural collapse: the closed form against brute force and its own identities, the metrics against their textbook definitions."""

from __future__ import annotations

import dataclasses
import pickle
import warnings

import matplotlib
import numpy as np
import polars as pl
import pytest
import torch
from scipy.optimize import minimize_scalar

from counterpoise._errors import InputError
from counterpoise.diagnostics import (
    CollapseAccumulator,
    collapse_metrics,
    collapse_threshold,
    neural_collapse_lengths,
)

matplotlib.use("Agg")

COUNTS = [10, 60, 30]
PROBLEMS = [
    (COUNTS, [5e-3], 1e-3),
    (COUNTS, [2e-3, 1e-3], 5e-4),
    (COUNTS, [2e-3] * 3, 2e-4),
    ([100, 4, 50, 20], [1e-3, 4e-3, 2e-3, 1e-3], 3e-4),
    ([60, 30, 10], [4e-2] * 3, 4e-3),  # the rarest is lost
    ([60, 30, 10], [4e-2] * 6, 4e-2),
    ([7, 3], [0.5], 0.1),  # lost, with one layer
]
every_problem = pytest.mark.parametrize(("counts", "decays", "feature_decay"), PROBLEMS)


# -- the closed form ----------------------------------------------------------------------------------------------------------------------


@every_problem
def test_each_class_is_at_its_global_minimum(counts, decays, feature_decay) -> None:
    found = neural_collapse_lengths(counts, decays, feature_decay)
    M = len(decays)
    total = 0.0
    for k, n in enumerate(counts):

        def price(x, b=found.b[k]):
            return 1 / (x**M + 1) + b * x

        grid = np.linspace(0, 3 * (M / found.b[k]) ** (1 / (M + 1)), 20_001)
        best = grid[np.argmin(price(grid))]
        around = minimize_scalar(price, bounds=(max(best - grid[1], 0), best + grid[1]), method="bounded", options={"xatol": 1e-12})
        lowest = min(around.fun, 1.0)
        x = (found.singular_values[:, k] ** 2 * decays)[0] / (np.prod(decays) * sum(counts) * feature_decay) ** (1 / M)
        assert price(x) == pytest.approx(lowest, abs=1e-12)
        assert found.alive[k] == (x > 0) == (lowest < 1)
        total += n / (2 * sum(counts)) * lowest
    assert found.loss == pytest.approx(total, abs=1e-12)


@every_problem
def test_identities(counts, decays, feature_decay) -> None:
    found, n, N = neural_collapse_lengths(counts, decays, feature_decay), np.array(counts), sum(counts)
    balance = np.array(decays)[:, None] * found.singular_values**2
    np.testing.assert_allclose(balance, np.broadcast_to(feature_decay * n * found.feature_norm**2, balance.shape), rtol=1e-12, atol=1e-18)
    np.testing.assert_allclose(found.fitted_target, found.classifier_norm * found.feature_norm, rtol=1e-12)
    sigma = found.classifier_norm
    np.testing.assert_allclose(found.feature_norm, sigma / (sigma**2 + N * feature_decay), rtol=1e-12)
    assert found.alive.tolist() == (n > found.threshold_count).tolist()
    assert found.threshold_count == collapse_threshold(N, decays, feature_decay)
    order = np.argsort(n[found.alive])
    assert (np.diff(found.feature_norm[found.alive][order]) < 0).all() and (np.diff(sigma[found.alive][order]) > 0).all()


def test_one_layer_in_closed_form() -> None:
    n, N, w, h = np.array(COUNTS), sum(COUNTS), 5e-3, 1e-3
    found = neural_collapse_lengths(COUNTS, [w], h)
    np.testing.assert_allclose(found.singular_values[0] ** 2, np.sqrt(n * h / w) - N * h, rtol=1e-12)
    np.testing.assert_allclose(found.feature_norm**2, np.sqrt(w / (n * h)) - N * w / n, rtol=1e-12)
    np.testing.assert_allclose(found.fitted_target, 1 - N * np.sqrt(w * h / n), rtol=1e-12)
    assert found.threshold_count == pytest.approx(N**2 * w * h, rel=1e-14)


@pytest.mark.parametrize("M", [1, 2, 3, 5, 12])
def test_a_class_dies_at_the_threshold(M) -> None:
    counts = np.array([80, 10])
    scale = (10 / collapse_threshold(90, [1e-3] * M, 1e-3)) ** (M / (M + 1))
    for factor, alive in ((0.9999, True), (1.0001, False)):
        found = neural_collapse_lengths(counts, [1e-3 * scale * factor] * M, 1e-3 * scale * factor)
        assert found.alive.tolist() == [True, alive]
        if not alive:
            assert found.feature_norm[1] == found.fitted_target[1] == 0 and (found.singular_values[:, 1] == 0).all()
    # With more than one layer it jumps: just alive, its outputs reach 1 - 1/M.
    before = neural_collapse_lengths(counts, [1e-3 * scale * 0.999999] * M, 1e-3 * scale * 0.999999)
    assert before.fitted_target[1] == pytest.approx(1 - 1 / M, abs=3e-3)


@pytest.mark.parametrize("decay", [1e-100, 1e-40, 1e-9])
def test_decays_of_any_size(decay) -> None:
    for M in (1, 2, 8):
        found = neural_collapse_lengths([50, 5], [decay] * M, decay)
        assert found.alive.all() and np.isfinite(found.singular_values).all() and np.isfinite(found.feature_norm).all()
        assert found.fitted_target == pytest.approx([1, 1], abs=1e-3) and 0 < found.threshold_count < 1e-3


def test_ties_and_order() -> None:
    found = neural_collapse_lengths([10, 60, 10], [2e-3] * 2, 1e-3)
    assert found.feature_norm[0] == found.feature_norm[2] > found.feature_norm[1]
    swapped = neural_collapse_lengths(np.array([60, 10, 10]), (2e-3, 2e-3), 1e-3)
    np.testing.assert_array_equal(swapped.feature_norm, found.feature_norm[[1, 0, 2]])
    assert neural_collapse_lengths(torch.tensor([60, 10, 10]), [2e-3] * 2, 1e-3).loss == swapped.loss


def test_prediction_frame_summary_plot() -> None:
    found = neural_collapse_lengths([60, 30, 10], [4e-2] * 3, 4e-3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.loss = 0.0
    frame = found.to_frame()
    assert frame.columns == ["class", "count", "alive", "feature_norm", "classifier_norm", "fitted_target"]
    assert frame["alive"].to_list() == [True, True, False]
    assert "16.7 of 100 examples" in found.summary() and "class 2 has not" in found.summary()
    factor = float(found.summary().partition("less than ")[2].partition(",")[0])
    assert neural_collapse_lengths([60, 30, 10], [4e-2 * factor * 0.99] * 3, 4e-3 * factor * 0.99).alive.all()
    assert not neural_collapse_lengths([60, 30, 10], [4e-2 * factor * 1.03] * 3, 4e-3 * factor * 1.03).alive.all()
    well = neural_collapse_lengths([60, 30, 10], [5e-3], 1e-3).summary()
    assert "all 3 classes have" in well and "1.53 times" in well and "0.63 times" in well
    assert "none has" in neural_collapse_lengths([7, 3], [5.0], 1.0).summary()
    for problem in [*PROBLEMS, ([7, 3], [5.0], 1.0)]:
        assert neural_collapse_lengths(*problem).plot().axes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([60, 0, 10], [1e-3], 1e-3), "class_counts: got 0.0 for class 1; expected positive whole numbers. Leave out a class"),
        (([60], [1e-3], 1e-3), "class_counts: got 1 class"),
        (([0.6, 0.4], [1e-3], 1e-3), "Shares will not do"),
        (([60, 10], [0.0, 1e-3], 1e-3), "weight_decays: got 0.0 for layer 1"),
        (([60, 10], [1e-3], -1e-3), "feature_decay: got -0.001"),
        (([60, 10], 1e-3, 1e-3), "one decay per layer"),
    ],
)
def test_what_the_closed_form_refuses(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        neural_collapse_lengths(*arguments)
    if "counts" not in message and "Shares" not in message:
        with pytest.raises(InputError, match=message):
            collapse_threshold(70, *arguments[1:])


def test_threshold_refuses_no_examples() -> None:
    with pytest.raises(InputError, match="n_total: got 0"):
        collapse_threshold(0, [1e-3], 1e-3)


# -- the metrics --------------------------------------------------------------------------------------------------------------------------


def cloud(seed=0, counts=(40, 7, 20, 13), d=9, spread=0.3, shift=2.0):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    return rng.normal(size=(len(counts), d))[y] + spread * rng.normal(size=(len(y), d)) + shift, y


def textbook(X, y, W=None):
    """Everything as the definitions have it, with a pseudo-inverse of the d x d matrix."""
    K, N = int(y.max()) + 1, len(y)
    M = np.stack([X[y == k].mean(axis=0) for k in range(K)])
    within = sum(np.outer(x - M[k], x - M[k]) for x, k in zip(X, y, strict=True)) / N
    C = M - M.mean(axis=0)
    between = C.T @ C / K
    cos = [C[k] @ C[j] / np.linalg.norm(C[k]) / np.linalg.norm(C[j]) for k in range(K) for j in range(K) if j != k]
    G = M @ M.T
    found = {
        "nc1": np.trace(within @ np.linalg.pinv(between, rcond=1e-13, hermitian=True)) / K,
        "nc2_orthogonal": np.linalg.norm(G - np.diag(np.diag(G))) / np.linalg.norm(np.diag(np.diag(G))),
        "nc2_etf": np.mean(np.abs(np.array(cos) + 1 / (K - 1))),
        "nc2_etf_std": np.std(cos),
        "within_fraction": np.trace(within) / (np.trace(within) + np.trace(between)),
        "nearest_mean_accuracy": np.mean([np.argmin(np.linalg.norm(x - M, axis=1)) == k for x, k in zip(X, y, strict=True)]),
    }
    if W is not None:
        found["nc3"] = 1 - np.mean([W[k] @ M[k] / np.linalg.norm(W[k]) / np.linalg.norm(M[k]) for k in range(K)])
        found["nc4"] = np.mean([np.argmin(np.linalg.norm(x - M, axis=1)) == np.argmax(W @ x) for x in X])
    return found


@pytest.mark.parametrize("d", [3, 9, 60])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_the_textbook_ones(seed, d) -> None:
    X, y = cloud(seed, d=d, counts=(40, 7, 20) if d == 3 else (40, 7, 20, 13))
    W = np.random.default_rng(seed + 10).normal(size=(int(y.max()) + 1, d))
    found = collapse_metrics(X, y, W)
    for name, value in textbook(X, y, W).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-8), name
    M = np.stack([X[y == k].mean(axis=0) for k in range(len(W))])
    np.testing.assert_allclose(found.means, M, rtol=1e-12)
    np.testing.assert_allclose(found.mean_norm, np.linalg.norm(M, axis=1), rtol=1e-12)
    np.testing.assert_allclose(found.weight_norm, np.linalg.norm(W, axis=1), rtol=1e-12)
    np.testing.assert_allclose(found.cosines, (M @ M.T) / np.outer(found.mean_norm, found.mean_norm), rtol=1e-9, atol=1e-12)
    assert found.mean_norm_ratio == pytest.approx(found.mean_norm.max() / found.mean_norm.min())
    assert found.weight_norm_ratio == pytest.approx(found.weight_norm.max() / found.weight_norm.min())
    assert not found.flags and (found.counts == found.class_counts).all()


def test_more_classes_than_dimensions() -> None:
    X, y = cloud(counts=(9,) * 6, d=4)
    with pytest.warns(UserWarning, match="6 classes in 4 dimensions"):
        found = collapse_metrics(X, y)
    assert found.nc1 == pytest.approx(textbook(X, y)["nc1"], rel=1e-8)
    assert "6 classes in 4 dimensions" in found.flags[0]


def test_means_that_lie_in_fewer_dimensions() -> None:
    """Two classes of four with the same mean, and features without a variance: the rank of Sigma_B is 2 of 9."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(4), 30)
    M = np.zeros((4, 9))
    M[1, 0], M[2, 1] = 2.0, 3.0
    noise = rng.normal(size=(120, 9))
    noise -= np.stack([noise[y == k].mean(axis=0) for k in range(4)])[y]
    X = (M[y] + noise).astype(np.float64)
    assert collapse_metrics(X, y).nc1 == pytest.approx(textbook(X, y)["nc1"], rel=1e-8)
    assert collapse_metrics(X.astype(np.float32) + np.float32(3), y).nc1 == pytest.approx(textbook(X, y)["nc1"], rel=1e-4)


@pytest.mark.parametrize("kind", [
    np.asarray, torch.as_tensor, lambda x: pl.DataFrame(x) if x.ndim == 2 else pl.Series(x), np.ndarray.tolist, np.asfortranarray,
    lambda x: torch.as_tensor(x).requires_grad_() if x.ndim == 2 else torch.as_tensor(x),
], ids=["numpy", "torch", "polars", "list", "fortran", "grad"])  # fmt: skip
def test_features_of_all_kinds(kind) -> None:
    X, y = cloud()
    expected, found = collapse_metrics(X, y, X[:4]), collapse_metrics(kind(X), kind(y), kind(X[:4]))
    assert (found.nc1, found.nc3, found.nc4) == pytest.approx((expected.nc1, expected.nc3, expected.nc4), rel=1e-12)


def test_read_only_arrays_and_other_byte_orders() -> None:
    X, y = cloud()
    X.flags.writeable = y.flags.writeable = False
    assert collapse_metrics(X[::-1], y[::-1]).nc1 == pytest.approx(collapse_metrics(X.astype(">f8"), y.astype(">i4")).nc1, rel=1e-12)
    assert not X.flags.writeable


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 5e-3), (torch.bfloat16, 5e-2)])
def test_low_precision_is_computed_in_float64(dtype, tolerance) -> None:
    X, y = cloud()
    rounded = torch.as_tensor(X).to(dtype)
    found = collapse_metrics(rounded, y)
    assert found.nc1 == pytest.approx(collapse_metrics(rounded.double(), y).nc1, rel=1e-12)
    assert found.nc1 == pytest.approx(collapse_metrics(X, y).nc1, rel=tolerance)


def test_tight_classes_far_from_the_origin() -> None:
    """Sums of squares would lose everything here."""
    rng = np.random.default_rng(0)
    y = np.arange(200) % 4
    noise = rng.normal(size=(200, 6))
    X = 1e3 + rng.normal(size=(4, 6))[y] + 1e-6 * noise
    exact = textbook(X - 1e3, y)["nc1"]
    assert collapse_metrics(X, y).nc1 == pytest.approx(exact, rel=1e-4)
    seen = CollapseAccumulator(4)
    for rows in np.array_split(np.arange(200), 9):
        seen.update(X[rows], y[rows])
    assert seen.report().nc1 == pytest.approx(exact, rel=1e-4)


def test_chunks_of_rows(monkeypatch) -> None:
    X, y = cloud()
    W = X[:4]
    expected = collapse_metrics(X, y, W)
    for name in ("CHUNK", "SCATTER_CHUNK"):
        monkeypatch.setattr(f"counterpoise.diagnostics._collapse_metrics.{name}", 7 * X.shape[1])
    found = collapse_metrics(X, y, W)
    for name in ("nc1", "nc2_orthogonal", "nc2_etf", "nc3", "nc4", "nearest_mean_accuracy", "within_fraction"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-12)
    assert CollapseAccumulator(4).update(X, y).report().nc1 == pytest.approx(expected.nc1, rel=1e-12)


def test_the_collapsed_frame_of_the_theory_scores_zero() -> None:
    prediction = neural_collapse_lengths(COUNTS, [2e-3] * 3, 2e-4)
    y = np.repeat(np.arange(3), COUNTS)
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(7, 7)))[0][:3]
    found = collapse_metrics((Q * prediction.feature_norm[:, None])[y], y, Q * prediction.classifier_norm[:, None], prediction=prediction)
    assert found.nc1 < 1e-20 and found.within_fraction < 1e-25
    assert found.nc2_orthogonal < 1e-12 and abs(found.nc3) < 1e-12 and found.nc4 == 1
    assert found.mean_abs_cosine < 1e-12
    other = collapse_metrics((2 * Q * prediction.feature_norm[:, None])[y], y, prediction=prediction)
    assert other.nc2_orthogonal == pytest.approx(3.0) and collapse_metrics(other.means[y], y).nc2_orthogonal < 1e-12
    # Centered, an orthogonal frame of equal lengths is a simplex.
    equal = collapse_metrics(Q[y], y)
    assert equal.nc2_etf < 1e-12 and equal.nc2_etf_std < 1e-12 and equal.nc2_orthogonal < 1e-12
    assert found.nc2_etf > 0.05


# -- batches and processes ----------------------------------------------------------------------------------------------------------------

METRICS = ("nc1", "nc2_orthogonal", "nc2_etf", "nc2_etf_std", "nc3", "within_fraction")


@pytest.mark.parametrize("size", [1, 7, 33, 80])
def test_batches_give_what_all_rows_give(size) -> None:
    X, y = cloud()
    W = X[:4]
    expected = collapse_metrics(X, y, W)
    seen = CollapseAccumulator(4)
    for start in range(0, len(X), size):
        assert seen.update(X[start : start + size], y[start : start + size]) is seen
    found = seen.report(W)
    for name in METRICS:
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-10), name
    np.testing.assert_array_equal(found.counts, expected.counts)
    np.testing.assert_allclose(found.means, expected.means, rtol=1e-12)
    assert np.isnan(found.nc4) and np.isnan(found.nearest_mean_accuracy)
    second_look = (found.nearest_mean(X) == (X @ W.T).argmax(axis=1)).mean()
    assert second_look == expected.nc4
    assert (found.nearest_mean(torch.as_tensor(X)) == y).mean() == expected.nearest_mean_accuracy


def test_parts_are_merged_in_any_order() -> None:
    X, y = cloud()
    order = np.argsort(y, kind="stable")  # the first parts do not have all classes
    parts = [CollapseAccumulator(4).update(X[rows], y[rows]) for rows in np.array_split(order, 5)] + [CollapseAccumulator(4)]
    parts = [pickle.loads(pickle.dumps(part)) for part in parts]  # as all_gather_object moves them
    expected = collapse_metrics(X, y).nc1
    for shift in range(6):
        whole = CollapseAccumulator(4)
        for part in parts[shift:] + parts[:shift]:
            whole.merge(part)
        assert whole.report().nc1 == pytest.approx(expected, rel=1e-10)
    other = CollapseAccumulator(4).update(X[::2], y[::2])
    before = other.report().nc1
    CollapseAccumulator(4).merge(other).merge(parts[0]).update(X, y)
    assert other.report().nc1 == before  # what was merged is left as it was


def test_float32_batches_add_up_in_float64() -> None:
    X, y = cloud(counts=(3000, 500), spread=1e-3, shift=50.0)
    X = X.astype(np.float32)
    seen = CollapseAccumulator(2)
    for rows in np.array_split(np.arange(len(X)), 70):
        seen.update(torch.as_tensor(X[rows]), y[rows])
    assert seen.report().nc1 == pytest.approx(collapse_metrics(X.astype(np.float64), y).nc1, rel=1e-10)


def test_a_bad_batch_changes_nothing() -> None:
    X, y = cloud()
    seen = CollapseAccumulator(4).update(X[:60], y[:60])
    before = seen.report().nc1
    bad = X[60:].copy()
    bad[3, 2] = np.nan
    for features, labels, message in (
        (bad, y[60:], "features: got NaN, infinite or huge values in 1 of 20 rows; .* First in row 3"),
        (X[60:, :4], y[60:], "rows of 4 features; expected rows of 9, as before"),
        (X[60:], y[60:] + 3, r"y: got \d; expected classes 0..3"),
    ):
        with pytest.raises(InputError, match=message):
            seen.update(features, labels)
    assert seen.report().nc1 == before
    with pytest.raises(InputError, match="other: got 3 classes; expected 4"):
        seen.merge(CollapseAccumulator(3))
    with pytest.raises(InputError, match="n_classes: got 1"):
        CollapseAccumulator(1)
    with pytest.raises(InputError, match="rows of 0 classes; expected rows of at least two"):
        CollapseAccumulator(3).report()
    with pytest.raises(InputError, match="rows of 9 features"):
        seen.report().nearest_mean(X[:, :3])
    assert seen.report().nearest_mean(X[:0]).shape == (0,)


# -- what makes numbers mean less ---------------------------------------------------------------------------------------------------------


def test_a_class_without_rows_is_left_out_and_said_so() -> None:
    X, y = cloud()
    y_gap = np.where(y >= 2, y + 1, y)
    W = np.random.default_rng(5).normal(size=(5, 9))
    found, expected = collapse_metrics(X, y_gap, W), collapse_metrics(X, y, np.delete(W, 2, axis=0))
    for name in METRICS:
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-12)
    assert np.isnan(found.means[2]).all() and np.isnan(found.mean_norm[2]) and np.isnan(found.cosines[2]).all()
    assert "Without rows here, left out: class 2." in found.flags and "class 2" in found.summary()
    assert (found.nearest_mean(X) != 2).all() and found.nearest_mean_accuracy == expected.nearest_mean_accuracy
    assert found.plot().axes


def test_one_row_per_class() -> None:
    X, y = np.eye(3), np.arange(3)
    found = collapse_metrics(X, y)
    assert found.nc1 == 0 and "NC1 is 0 whatever the network" in found.flags[0]
    some = collapse_metrics(np.r_[X, X[:1] + 0.1], np.r_[y, 0])
    assert "With one row, so without a spread of its own: class 1, 2." in some.flags


def test_means_that_coincide() -> None:
    X = np.tile(np.array([[1.0, 2, 3], [3, 2, 1], [0.1, 0.7, 0.3], [3.9, 3.3, 3.7]]), (2, 1))
    found = collapse_metrics(X, np.repeat([0, 1], 4))
    assert found.nc1 == np.inf and "All class means coincide: NC1 is infinite." in found.flags
    assert collapse_metrics(np.ones((6, 3)), np.repeat([0, 1], 3)).nc1 == np.inf
    assert collapse_metrics(np.zeros((6, 3)), np.repeat([0, 1], 3)).nc1 == np.inf


def test_a_class_that_is_lost() -> None:
    y = np.repeat([0, 1, 2], 5)
    M = np.diag([1.0, 2.0, 0.0])
    found = collapse_metrics(M[y], y, M)
    assert found.nc3 == pytest.approx(0) and np.isnan(found.alignment[2]) and found.mean_norm_ratio == np.inf
    assert sum("Collapsed to 0" in flag for flag in found.flags) == 2
    assert found.mean_abs_cosine == 0 and found.summary() and found.plot().axes


def test_report_frame_summary_plot() -> None:
    X, y = cloud(counts=(50, 20, 5), d=8)
    W = np.random.default_rng(1).normal(size=(3, 8))
    prediction = neural_collapse_lengths([500, 200, 50], [1e-2], 1e-4)
    found = collapse_metrics(X, y, W, class_counts=[500, 200, 50], prediction=prediction)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.nc1 = 0.0
    assert found.to_frame().columns == [
        "class", "count", "class_count", "mean_norm", "weight_norm", "alignment", "predicted_norm", "alive",
    ]  # fmt: skip
    assert collapse_metrics(X, y).to_frame().columns == ["class", "count", "class_count", "mean_norm"]
    text = found.summary()
    assert "Mean of class 2 (50 examples)" in text and "class 0 (500)" in text and "SGD with an L2 penalty only" in text
    assert f"{found.mean_norm[2] / found.mean_norm[0]:.2f} times" in text
    assert "classifier" not in collapse_metrics(X, y).summary()
    assert len(found.plot().axes) == 3 and len(collapse_metrics(X, y).plot().axes) == 3
    torch.testing.assert_close(torch.as_tensor(found.counts), torch.tensor([50, 20, 5]))


def test_nothing_is_changed() -> None:
    X, y = (torch.as_tensor(part) for part in cloud())
    copies, state = (X.clone(), y.clone()), torch.get_rng_state()
    collapse_metrics(X, y, X[:4])
    CollapseAccumulator(4).update(X, y).report(X[:4])
    assert torch.equal(X, copies[0]) and torch.equal(y, copies[1]) and torch.equal(torch.get_rng_state(), state)


GOOD_X, GOOD_Y = cloud()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": GOOD_X[0]}, r"features: got torch.float64 of shape \(9,\); expected numbers of shape \(N, d\)"),
        ({"features": GOOD_X[:, :, None]}, "Flatten or pool"),
        ({"features": [["a"]]}, "features: got"),
        (
            {"features": np.where(GOOD_X[5, 2] == GOOD_X, np.nan, GOOD_X)},
            "features: got NaN, infinite or huge values in 1 of 80 rows; .* First in row 5",
        ),
        ({"features": np.where(GOOD_X[5, 2] == GOOD_X, np.inf, GOOD_X)}, "values in 1 of 80 rows; expected finite numbers below"),
        ({"features": np.full_like(GOOD_X, 1e308)}, "values in 80 of 80 rows"),
        ({"features": np.where(GOOD_X[5, 2] == GOOD_X, 1e200, GOOD_X)}, "values in 1 of 80 rows"),
        ({"y": GOOD_Y[:5]}, r"y: got shape \(5,\); expected one class for each of the 80 rows"),
        ({"y": GOOD_Y - 1}, "y: got -1; expected classes 0..2"),
        ({"y": GOOD_Y + 0.0}, "y: got numbers of torch.float64; expected integer classes"),
        ({"y": [str(k) for k in GOOD_Y]}, "y: got"),
        ({"y": GOOD_Y * 0}, "y: got rows of 1 class; expected rows of at least two classes"),
        ({"features": GOOD_X[:0], "y": GOOD_Y[:0]}, "y: got no rows"),
        ({"weight": GOOD_X[:3]}, "y: got 3; expected classes 0..2"),
        ({"weight": GOOD_X[:4, :5]}, r"weight: got shape \(4, 5\); expected shape \(4, 9\)"),
        ({"weight": GOOD_X[:4] * np.nan}, "weight: got 36 values that are not finite"),
        ({"weight": GOOD_X[:4], "class_counts": [5, 5, 5]}, "class_counts: got 3 counts; expected one for each of the 4"),
        ({"class_counts": [5, 5, 5, 0]}, "class_counts: got 0.0 for class 3"),
        ({"weight": GOOD_X[:4], "prediction": neural_collapse_lengths([5, 5], [1e-3], 1e-3)}, "prediction: got 2 classes; expected"),
    ],
)
def test_what_the_metrics_refuse(change, message) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with pytest.raises(InputError, match=message):
            collapse_metrics(**({"features": GOOD_X, "y": GOOD_Y} | change))
