"""Intervals: identities on paper, and coverage on simulated data where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as reference
from sklearn.metrics import roc_auc_score

from counterpoise import _stats as stats
from counterpoise._seeding import generator


def correlation(m: int, rho: float) -> np.ndarray:
    return np.full((m, m), rho) + (1 - rho) * np.eye(m)


# ---- cells


def test_nadeau_bengio_without_shared_training_rows_is_the_paired_t() -> None:
    d = generator(0).normal(size=(3, 20))
    corrected, plain = stats.nadeau_bengio(d, 0.0), stats.paired_t(d)
    for one, other in zip(corrected, plain, strict=True):
        np.testing.assert_allclose(one, other)
    t = reference.ttest_1samp(d[0], 0).statistic
    assert plain[0][0] / plain[1][0] == pytest.approx(t)


def test_nadeau_bengio_is_wider_by_the_known_factor() -> None:
    d = generator(0).normal(size=(2, 25))
    ratio = stats.nadeau_bengio(d, 1 / 4)[1] / stats.paired_t(d)[1]
    np.testing.assert_allclose(ratio, np.sqrt(1 + 25 / 4))


def test_repeat_variance_of_many_and_of_one_repeat() -> None:
    d = generator(0).normal(size=(2, 4, 5))
    np.testing.assert_allclose(stats.repeat_variance(d), d.mean(axis=2).var(axis=1, ddof=1) / 4)
    np.testing.assert_allclose(stats.repeat_variance(d[:, :1]), d[:, 0].var(axis=1, ddof=1) / 5)


def test_repeat_variance_with_missing_cells_and_repeats() -> None:
    d = generator(0).normal(size=(3, 4, 5))
    d[1, 2:] = np.nan  # stopped after two repeats
    d[2, 1:] = np.nan  # only one repeat
    d[0, 0, 0] = np.nan  # a fold without one class
    found = stats.repeat_variance(d)
    assert found[0] == pytest.approx(np.nanmean(d[0], axis=1).var(ddof=1) / 4)
    assert found[1] == pytest.approx(d[1, :2].mean(axis=1).var(ddof=1) / 2)
    assert found[2] == pytest.approx(d[2, 0].var(ddof=1) / 5)


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    x = generator(0).normal(size=10)
    deltas = np.array([np.delete(x, g).mean() for g in range(10)])
    se, df = stats.jackknife(deltas[None])
    assert se[0] == pytest.approx(x.std(ddof=1) / np.sqrt(10))
    assert df == 9


# ---- rows


def test_covariance_of_rows_is_the_textbook_stratified_one() -> None:
    rng = generator(0)
    strata = np.repeat([0, 1, 1], 20)
    psi = rng.normal(size=(3, 60))
    expected = 20 * np.cov(psi[:, :20]) + 40 * np.cov(psi[:, 20:])
    np.testing.assert_allclose(stats.Design(strata).covariance(psi), expected)


def test_clusters_of_one_row_change_nothing() -> None:
    strata = np.repeat([0, 1], [30, 10])
    psi = generator(0).normal(size=(2, 40))
    own = generator(1).permutation(40)
    np.testing.assert_allclose(stats.Design(strata, own).covariance(psi), stats.Design(strata).covariance(psi))


def test_a_copy_of_every_row_is_no_new_information() -> None:
    strata = np.repeat([0, 1], [30, 10])
    psi = generator(0).normal(size=(2, 40))
    once = stats.Design(strata).covariance(psi)
    twice = stats.Design(np.tile(strata, 2), np.tile(np.arange(40), 2)).covariance(np.tile(psi / 2, 2))
    np.testing.assert_allclose(twice, once)
    assert stats.Design(np.tile(strata, 2), np.tile(np.arange(40), 2)).units == 10


def test_clusters_across_strata_are_summed() -> None:
    strata, clusters = np.array([0, 1, 0, 1, 0, 1]), np.array([0, 0, 1, 1, 2, 2])
    psi = np.array([[1.0, 2.0, 3.0, 5.0, 8.0, 13.0]])
    centered = psi[0] - np.where(strata == 0, 4.0, 20 / 3)
    sums = centered.reshape(3, 2).sum(axis=1)
    assert stats.Design(strata, clusters).covariance(psi)[0, 0] == pytest.approx(3 / 2 * (sums**2).sum())


@pytest.mark.parametrize("clusters", [None, np.repeat(np.arange(30), 2)], ids=["rows", "clusters"])
def test_bootstrap_agrees_with_the_formula(clusters: np.ndarray | None) -> None:
    strata = np.repeat([0, 1], [40, 20])
    psi = generator(0).normal(size=(2, 60)) + np.repeat(generator(1).normal(size=(2, 30)), 2, axis=1)
    design = stats.Design(strata, clusters)
    weights = np.concatenate(list(design.resamples(20_000, generator(2))))
    assert weights.shape == (20_000, 60)
    assert (weights[:, :40].sum(axis=1) == 40).all()
    # A bootstrap has variances with n where the formula has n - 1.
    units = 40 if clusters is None else 20
    ratio = np.cov(weights @ psi.T, rowvar=False) / design.covariance(psi)
    np.testing.assert_allclose(np.diag(ratio), 1.0, atol=1 / units + 0.05)


def test_bootstrap_comes_in_chunks_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "_CHUNK", 100)
    chunks = list(stats.Design(np.zeros(30, dtype=int)).resamples(10, generator(0)))
    assert [len(chunk) for chunk in chunks] == [3, 3, 3, 1]
    assert (np.concatenate(chunks).sum(axis=1) == 30).all()


def test_moments_of_arms_with_missing_repeats() -> None:
    rng = generator(0)
    psi = [rng.normal(size=(2, 50)) for _ in range(3)]
    short = [psi[0], psi[1], np.stack([psi[2][0], np.full(50, np.nan)])]
    design = stats.Design(np.zeros(50, dtype=int))
    full, cut = stats.row_moments(psi, design), stats.row_moments(short, design)
    two = stats.row_moments(psi[:2], design)
    assert cut.S[0, 0] == pytest.approx(full.S[0, 0])
    assert cut.S[1, 1] == pytest.approx(two.S[1, 1])
    assert cut.S1[1, 1] == pytest.approx(two.S1[1, 1])
    assert cut.estimate.tolist() == pytest.approx([full.estimate[0], two.estimate[1]])


def test_the_floor_holds_when_repeats_average_the_noise_away() -> None:
    rng = generator(0)
    psi = [rng.normal(size=(1, 400)) / 400 for _ in range(20)]  # nothing common to the repeats
    moments = stats.row_moments(psi, stats.Design(np.zeros(400, dtype=int)))
    se = stats.row_standard_error(moments, np.zeros(1))
    assert se[0] ** 2 == pytest.approx(moments.S1[0, 0])
    assert 2 * moments.S[0, 0] < 0.2 * moments.S1[0, 0]


def test_gini_is_the_mean_difference_of_pairs() -> None:
    values = np.random.default_rng(0).exponential(size=30)
    pairs = np.abs(values[:, None] - values[None, :]).mean()
    assert stats.gini(values) == pytest.approx(pairs / (2 * values.mean()), abs=1e-12)
    assert np.isnan(stats.gini([])) and np.isnan(stats.gini([0.0, 0.0]))


@pytest.mark.parametrize("decimals", [1, 6], ids=["ties", "no ties"])
def test_placements_average_to_the_auroc_on_either_side(decimals: int) -> None:
    rng = generator(0)
    y = rng.random(200) < 0.2
    score = np.round(rng.normal(size=200) + y, decimals)
    placed = stats.placements(score, y)
    for side in (y, ~y):
        assert placed[side].mean() == pytest.approx(roc_auc_score(y, score), abs=1e-12)
    assert np.isnan(stats.placements(score, np.ones(200, dtype=bool))).all()


# ---- simultaneous


@pytest.mark.parametrize("df", [3, 14, 200])
def test_one_comparison_has_the_quantile_of_t(df: int) -> None:
    assert stats.max_t([[0.3]], df) == pytest.approx(reference.t.ppf(0.975, df), abs=1e-12)


def test_independent_comparisons_have_the_sidak_value() -> None:
    for m in (2, 5, 30):
        exact = reference.norm.ppf(0.5 + 0.5 * 0.95 ** (1 / m))
        assert stats.max_t(np.eye(m), 1e7) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize(("m", "df", "rho"), [(5, 20, 0.5), (9, 60, 0.5), (8, 14, 0.9)])
def test_equal_correlations_against_quadrature(m: int, df: int, rho: float) -> None:
    c = stats.max_t(correlation(m, rho), df)
    u, weight = np.polynomial.hermite_e.hermegauss(80)
    scale = np.sqrt(reference.chi2.ppf((np.arange(2000) + 0.5) / 2000, df) / df)
    # Given the common part u and the scale, the m comparisons are independent.
    bound, common = c * scale[:, None], np.sqrt(rho) * u
    inside = reference.norm.cdf((bound - common) / np.sqrt(1 - rho)) - reference.norm.cdf((-bound - common) / np.sqrt(1 - rho))
    coverage = (inside**m @ weight / weight.sum()).mean()
    assert coverage == pytest.approx(0.95, abs=0.001)


def test_a_repeated_or_identical_arm_leaves_the_critical_value_unchanged() -> None:
    S = correlation(4, 0.3) * np.outer([1, 2, 3, 4], [1, 2, 3, 4])
    again = S[np.ix_([0, 1, 2, 3, 3], [0, 1, 2, 3, 3])]
    identical = np.zeros((5, 5))
    identical[:4, :4] = S
    opposite = again * np.outer([1, 1, 1, 1, -1], [1, 1, 1, 1, -1])
    c = stats.max_t(S, 30)
    assert [stats.max_t(other, 30) for other in (again, identical, opposite)] == [c, c, c]


def test_max_t_lies_between_one_comparison_and_bonferroni() -> None:
    for rho in (0.0, 0.5, 0.95, 0.9999):
        c = stats.max_t(correlation(8, rho), 30)
        assert stats.bonferroni(1, 30) <= c <= stats.bonferroni(8, 30)


def test_a_covariance_that_is_not_positive_definite_is_clipped() -> None:
    S = np.array([[1.0, 0.9, -0.9], [0.9, 1.0, 0.9], [-0.9, 0.9, 1.0]])
    assert np.linalg.eigvalsh(S).min() < 0
    assert 2.0 < stats.max_t(S, 30) < 3.5


def test_wilson_against_scipy() -> None:
    low, high = stats.wilson([0, 3, 10], [10, 12, 10])
    for i, (k, n) in enumerate([(0, 10), (3, 12), (10, 10)]):
        interval = reference.binomtest(k, n).proportion_ci(method="wilson")
        assert (low[i], high[i]) == pytest.approx((interval.low, interval.high))
    assert [float(bound) for bound in stats.wilson(0, 0)] == [0.0, 1.0]


def test_the_mean_of_shares_has_the_limits_of_mover() -> None:
    low, high = stats.wilson([18, 340], [18, 357])
    p = np.array([1.0, 340 / 357])
    found = stats.mean_of_shares(p, [18, 357])
    assert found[0] == pytest.approx(p.mean())
    assert found[1] == pytest.approx(p.mean() - np.sqrt(((p - low) ** 2).sum()) / 2)
    assert found[2] == pytest.approx(p.mean() + np.sqrt(((high - p) ** 2).sum()) / 2)
    assert stats.mean_of_shares([0.25], [40]) == pytest.approx((0.25, *(float(bound) for bound in stats.wilson(10, 40))))
    assert stats.mean_of_shares([0.0, 0.0, 0.0], [5, 6, 7])[1] == pytest.approx(0) and stats.mean_of_shares([1.0, 1.0], [5, 6])[2] <= 1
    assert stats.mean_of_shares([0.5, 0.5], [20, 20], level=0.5)[1] > stats.mean_of_shares([0.5, 0.5], [20, 20])[1]


def test_limits_of_mover_hold_the_balanced_accuracy_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    true, n = np.array([0.9, 0.97]), np.array([18, 357])
    held = 0
    for counts in rng.binomial(n, true, size=(2000, 2)):
        _, low, high = stats.mean_of_shares(counts / n, n)
        held += low <= true.mean() <= high
    assert 0.93 <= held / 2000 <= 0.985
