"""Shares of a linear head: identities, per-example gradients by automatic differentiation, and every supported estimator."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, SGDClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from counterpoise._errors import InputError
from counterpoise.diagnostics import examine_linear, head_shares
from counterpoise.diagnostics._head import start_residual
from counterpoise.diagnostics._shares import factor_shares, hints
from counterpoise.groups import Groups


def random_head(seed=0, n=60, d=4, C=3, G=5):
    rng = np.random.default_rng(seed)
    H = rng.normal(size=(n, d)) + 0.3
    ids = rng.choice(G, size=n, p=np.array([0.5, 0.2, 0.15, 0.1, 0.05]))
    y = rng.integers(0, C, size=n)
    W, b = rng.normal(size=(C, d)), rng.normal(size=C)
    return H, ids, y, W, b


def gradients_by_autograd(H, y, W, b, loss):
    """(n, P) per-example gradients of the mean-free loss with respect to [W, b], one backward pass each."""
    W = torch.tensor(W, dtype=torch.float64, requires_grad=True)
    b = torch.tensor(b, dtype=torch.float64, requires_grad=True)
    rows = []
    for h, target in zip(torch.tensor(H, dtype=torch.float64), torch.tensor(y), strict=True):
        grad_W, grad_b = torch.autograd.grad(loss(W @ h + b, target), (W, b))
        rows.append(torch.cat([grad_W, grad_b[:, None]], dim=1).flatten().numpy())
    return np.array(rows)


def softmax_residual(H, y, W, b):
    logits = H @ W.T + b
    proba = np.exp(logits - logits.max(axis=1, keepdims=True))
    return proba / proba.sum(axis=1, keepdims=True) - np.eye(len(b))[y]


def explicit(g, ids, G):
    """The definitions, term by term, from an explicit matrix of per-example gradients."""
    mu = g.mean(axis=0)
    q = (g**2).sum(axis=1)
    rows = []
    for k in range(G):
        own = g[ids == k]
        mean = own.mean(axis=0)
        pi = len(own) / len(g)
        inner = own @ own.T
        n = len(own)
        u_statistic = (inner.sum() - np.trace(inner)) / (n * (n - 1))
        loud = np.sqrt(q[ids == k].mean())
        rows.append(
            [
                pi * mean @ mu / (mu @ mu),
                loud,
                mean @ mean / loud**2,
                u_statistic / loud**2,
                mean @ mu / np.linalg.norm(mean) / np.linalg.norm(mu),
            ]
        )
    return np.array(rows).T


@pytest.mark.parametrize("seed", range(5))
def test_shares_equal_explicit_per_example_gradients(seed):
    H, ids, y, W, b = random_head(seed)
    g = gradients_by_autograd(H, y, W, b, lambda z, t: torch.nn.functional.cross_entropy(z, t))
    shares = head_shares(softmax_residual(H, y, W, b), H, ids)
    wanted = explicit(g, ids, len(shares.names))
    found = np.array([shares.share, shares.rho, shares.alpha, shares.alpha_unbiased, shares.alignment])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10)
    assert shares.norm == pytest.approx(np.linalg.norm(g.mean(axis=0)), abs=1e-12)
    assert shares.noise == pytest.approx(np.sqrt(((g - g.mean(axis=0)) ** 2).sum() / len(g) ** 2), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_shares_sum_to_one_and_are_the_product_of_their_factors(seed):
    H, ids, y, W, b = random_head(seed)
    shares = head_shares(softmax_residual(H, y, W, b), H, ids)
    assert shares.share.sum() == pytest.approx(1, abs=1e-12)
    product = shares.pi * shares.rho * np.sqrt(shares.alpha) * shares.alignment / shares.norm
    np.testing.assert_allclose(shares.share, product, rtol=0, atol=1e-10)
    np.testing.assert_allclose(shares.parity, shares.share / shares.pi, atol=1e-12)
    assert sum(factor_shares(shares).values()) == pytest.approx(1, abs=1e-10)


def test_alpha_unbiased_is_unbiased_and_the_plug_in_is_not():
    rng = np.random.default_rng(0)
    residual, features = rng.normal(0.2, 1, size=400), rng.normal(0.5, 1, size=(400, 3))
    g = residual[:, None] * np.column_stack([features, np.ones(400)])
    truth = float(g.mean(axis=0) @ g.mean(axis=0))
    found = []
    for _ in range(2000):
        rows = rng.choice(400, size=5)
        shares = head_shares(residual[rows], features[rows])
        found.append((shares.alpha_unbiased[0] * shares.rho[0] ** 2, shares.alpha[0] * shares.rho[0] ** 2))
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / np.sqrt(2000)
    assert abs(mean[0] - truth) < 3 * error[0]
    assert abs(mean[1] - truth) > 3 * error[1]


def test_one_row_has_no_unbiased_coherence_and_an_empty_group_no_share():
    residual, features = np.array([1.0, -1.0, 0.5]), np.array([[1.0], [2.0], [3.0]])
    groups = Groups(np.array([0, 0, 2]), ("a", "empty", "single"), "domain")
    shares = head_shares(residual, features, groups)
    assert np.isnan(shares.alpha_unbiased[2]) and shares.alpha[2] == pytest.approx(1)
    assert shares.share[1] == 0 and shares.pi[1] == 0 and np.isnan(shares.rho[1])
    assert shares.share.sum() == pytest.approx(1)


def test_rows_without_a_group_get_a_row_of_their_own():
    shares = head_shares(np.array([1.0, 1.0, 2.0]), np.ones((3, 1)), np.array([0, 0, -1]))
    assert shares.names == ("0", "(none)")
    np.testing.assert_allclose(shares.share, [0.5, 0.5])


def test_row_weights_stand_for_copies():
    H, ids, y, W, b = random_head()
    residual = softmax_residual(H, y, W, b)
    copies = np.random.default_rng(1).integers(1, 5, size=len(y))
    weighted = head_shares(residual, H, ids, row_weight=copies)
    repeated = head_shares(np.repeat(residual, copies, axis=0), np.repeat(H, copies, axis=0), np.repeat(ids, copies))
    for name in ("pi", "share", "rho", "alpha", "alignment", "magnitude_share"):
        np.testing.assert_allclose(getattr(weighted, name), getattr(repeated, name), atol=1e-12, err_msg=name)


def test_zero_gradients_do_not_divide():
    shares = head_shares(np.zeros(4), np.ones((4, 2)), [0, 0, 1, 1])
    assert np.isnan(shares.share).all() and shares.norm == 0 and shares.settled
    assert hints(shares) == ("The mean gradient is zero: there is no step to divide.",)


def test_sparse_features_give_the_same_numbers():
    from scipy.sparse import csr_array

    H, ids, y, W, b = random_head()
    H[H < 0] = 0
    residual = softmax_residual(H, y, W, b)
    dense, sparse = head_shares(residual, H, ids), head_shares(residual, csr_array(H), ids)
    np.testing.assert_allclose(sparse.share, dense.share, atol=1e-12)
    np.testing.assert_allclose(sparse.alpha_unbiased, dense.alpha_unbiased, atol=1e-12)


def test_bootstrap_is_seeded_and_covers_the_share():
    rng = np.random.default_rng(0)
    N = 20_000
    population_H = rng.normal(size=(N, 3)) + 1
    population_ids = rng.choice(3, size=N, p=[0.7, 0.2, 0.1])
    population_e = rng.normal(0.3 + 0.4 * population_ids, 1)
    covered = []
    for seed in range(100):
        rows = np.concatenate([rng.choice(np.flatnonzero(population_ids == k), size) for k, size in enumerate((210, 60, 30))])
        shares = head_shares(population_e[rows], population_H[rows], population_ids[rows], bootstrap=100, seed=seed)
        # The population with the sample's proportions of groups, which the bootstrap keeps.
        weight = (np.array([0.7, 0.2, 0.1]) / np.bincount(population_ids))[population_ids]
        truth = truth_cache(population_e, population_H, population_ids, weight)
        covered.append((shares.share_lo <= truth) & (truth <= shares.share_hi))
    assert 0.88 <= np.mean(covered) <= 0.99
    again = head_shares(population_e[rows], population_H[rows], population_ids[rows], bootstrap=100, seed=99)
    np.testing.assert_array_equal(again.share_lo, shares.share_lo)


_truth = {}


def truth_cache(e, H, ids, weight):
    if "share" not in _truth:
        _truth["share"] = head_shares(e, H, ids, row_weight=weight).share
    return _truth["share"]


def test_start_needs_no_fit():
    codes = np.array([0, 0, 0, 1])
    np.testing.assert_allclose(start_residual(codes, 2, columns=1)[:, 0], [0.5, 0.5, 0.5, -0.5])
    np.testing.assert_allclose(start_residual(codes, 2, "prior")[0], [-0.25, 0.25])
    # With the log prior as its bias, the bias of a fresh head has nothing left to learn.
    assert start_residual(codes, 2, "prior").sum() == pytest.approx(0)


def test_planted_causes_are_named():
    rng = np.random.default_rng(0)
    features = rng.normal(0, 0.1, size=(500, 2)) + 1
    ids = np.repeat([0, 1, 2], [420, 40, 40])
    many = head_shares(np.full(500, 0.5), features, ids)
    assert "'many'" in hints(many)[0]
    ids = np.repeat([0, 1, 2, 3, 4], 100)
    loud = head_shares(np.where(ids == 2, 5.0, 0.5), features, ids)
    assert loud.dominant == 2 and "'loud'" in hints(loud)[0]
    flipped = np.where(ids == 3, rng.choice([-3.0, 3.0], size=500), 0.5)
    assert any("Group '3' is loud" in sentence and "not unanimous" in sentence for sentence in hints(head_shares(flipped, features, ids)))
    against = head_shares(np.where(ids == 4, -0.5, 0.5), features, ids)
    assert any("works against '4'" in sentence for sentence in hints(against))
    assert hints(head_shares(np.full(500, 0.5), features, ids))[0].startswith("No group dominates")


# ---------------------------------------------------------------------------------------------------------------- estimators


def test_binary_logistic_regression_matches_autograd_and_counts_its_own_penalty_out():
    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)[:150, :5]
    y = y[:150]
    model = LogisticRegression(C=0.01).fit(X, y)
    report = examine_linear(model, X, y)
    g = gradients_by_autograd(
        X, y.astype(float), model.coef_, model.intercept_, lambda z, t: torch.nn.functional.binary_cross_entropy_with_logits(z[0], t)
    )
    np.testing.assert_allclose(report.shares.share, explicit(g, y, 2)[0], atol=1e-9)
    # At the optimum the loss gradient balances the penalty: C * n * mu + w = 0.
    assert report.shares.norm == pytest.approx(np.linalg.norm(model.coef_) / (0.01 * 150), rel=1e-3)
    predicted = model.predict(X)
    np.testing.assert_allclose(report.correct, [np.mean(predicted[y == k] == k) for k in (0, 1)])
    assert report.correct_name == "recall" and report.kind == "class"


@pytest.mark.parametrize("hidden", [False, True])
def test_multinomial_heads_match_autograd(hidden):
    X, y = load_digits(return_X_y=True)
    X, y = X[:200] / 16, y[:200]
    if hidden:
        model = MLPClassifier((8,), activation="tanh", tol=1e-2, max_iter=300, random_state=0).fit(X, y)
        features, W, b = np.tanh(X @ model.coefs_[0] + model.intercepts_[0]), model.coefs_[1].T, model.intercepts_[1]
    else:
        model = LogisticRegression().fit(X, y)
        features, W, b = X, model.coef_, model.intercept_
    report = examine_linear(model, X, y)
    g = gradients_by_autograd(features, y, W, b, lambda z, t: torch.nn.functional.cross_entropy(z, t))
    np.testing.assert_allclose(report.shares.rho, explicit(g, y, 10)[1], rtol=1e-8)
    np.testing.assert_allclose(report.shares.alpha_unbiased, explicit(g, y, 10)[3], atol=1e-8)
    # Pull and push from their definition.
    proba = model.predict_proba(X)
    pull = [np.sum(1 - proba[y == k, k]) for k in range(10)]
    push = [np.sum(proba[y != k, k]) for k in range(10)]
    np.testing.assert_allclose(report.pull, pull, atol=1e-9)
    np.testing.assert_allclose(report.push, push, atol=1e-9)


def test_sgd_is_one_against_rest_and_ridge_is_half_the_squared_error():
    X, y = load_digits(return_X_y=True)
    X, y = X[:300] / 16, y[:300]
    model = SGDClassifier(loss="log_loss", random_state=0).fit(X, y)
    report = examine_linear(model, X, y)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(model.decision_function(X)), torch.eye(10, dtype=torch.float64)[y], reduction="none"
    ).sum(dim=1)
    np.testing.assert_allclose(report.loss, [losses[y == k].mean() for k in range(10)], rtol=1e-10)

    X, y = load_diabetes(return_X_y=True)
    model = Ridge().fit(X, y)
    groups = Groups.from_bins(y, bins=4)
    report = examine_linear(model, X, y, groups)
    error = model.predict(X) - y
    g = error[:, None] * np.column_stack([X, np.ones(len(y))])
    np.testing.assert_allclose(report.shares.rho, explicit(g, groups.ids, 4)[1], rtol=1e-10)
    np.testing.assert_allclose(report.correct, [np.abs(error[groups.ids == k]).mean() for k in range(4)])
    assert report.correct_name == "mae" and report.pull.size == 0 and report.kind == "range"


def test_class_weights_are_part_of_the_gradient():
    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    model = LogisticRegression(class_weight={0: 3.0, 1: 1.0}).fit(X, y)
    weighted = examine_linear(model, X, y)
    plain = head_shares((model.predict_proba(X)[:, 1] - y) * np.where(y == 0, 3.0, 1.0), X, y)
    np.testing.assert_allclose(weighted.shares.share, plain.share, atol=1e-12)
    balanced = examine_linear(LogisticRegression(class_weight="balanced").fit(X, y), X, y)
    # Balanced weights cancel the bias; on centered features the class means then divide the step in inverse proportion to the counts.
    np.testing.assert_allclose(balanced.start.share, [357 / 569, 212 / 569], atol=1e-10)


def test_pipeline_is_transformed_first_and_string_labels_are_named():
    data = load_breast_cancer()
    y = data.target_names[data.target]
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(data.data, y)
    report = examine_linear(pipeline, data.data, y)
    direct = examine_linear(pipeline[-1], pipeline[0].transform(data.data), y)
    np.testing.assert_array_equal(report.shares.share, direct.shares.share)
    assert report.shares.names == ("benign", "malignant")
    assert report.summary().startswith("Class 'benign' is 62.7 % of the rows and")
    assert {"group", "count", "pi", "share", "start_share", "loss", "recall"} <= set(report.to_frame().columns)
    assert report.plot().axes


@pytest.mark.parametrize("model", [HistGradientBoostingClassifier(max_iter=5), GradientBoostingClassifier(n_estimators=5)])
def test_trees_report_pseudo_residuals(model):
    X, y = load_breast_cancer(return_X_y=True)
    model.fit(X, y)
    report = examine_linear(model, X, y)
    size = np.abs(model.predict_proba(X)[:, 1] - y)
    np.testing.assert_allclose(report.shares.share, [size[y == k].sum() / size.sum() for k in (0, 1)])
    assert report.space == "function" and report.start is None and np.isnan(report.shares.alpha).all()
    assert "pseudo-residuals" in report.summary()


def test_other_regressors():
    X, y = load_diabetes(return_X_y=True)
    X, y = StandardScaler().fit_transform(X), (y - y.mean()) / y.std()
    net = MLPRegressor(hidden_layer_sizes=(4,), tol=1e-2, max_iter=1000, random_state=0)
    for model in (LinearRegression(), net, HistGradientBoostingRegressor(max_iter=5)):
        report = examine_linear(model.fit(X, y), X, y)
        assert report.shares.count.sum() == len(y)
        assert report.shares.settled or report.shares.share.sum() == pytest.approx(1)


def test_least_squares_has_settled_and_says_so():
    X, y = load_diabetes(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    report = examine_linear(LinearRegression().fit(X, y), X, y)
    assert report.shares.settled and not report.start.settled
    assert np.isnan(report.shares.share).all() and report.shares.magnitude_share.sum() == pytest.approx(1)
    assert "The mean gradient is zero" in report.summary()
    nearly = examine_linear(Ridge(alpha=1e-3).fit(X, y), X, y)
    assert nearly.shares.settled and "not clear of its sampling error" in nearly.summary()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda X, y: examine_linear(SVC().fit(X, y), X, y), "got 'SVC'; expected a logistic"),
        (lambda X, y: examine_linear(LogisticRegression(), X, y), "a fitted estimator"),
        (lambda X, y: examine_linear(SGDClassifier(loss="hinge").fit(X, y), X, y), "estimator.loss: got 'hinge'"),
        (
            lambda X, y: examine_linear(LogisticRegression(max_iter=5000).fit(X, y), X, y + 5),
            "the classes the estimator was fitted on: 0, 1",
        ),
        (lambda X, y: head_shares(y[:5], X), "features: got shape"),
        (lambda X, y: head_shares(np.array([np.nan, 1.0]), X[:2]), "1 rows that are not finite"),
        (lambda X, y: head_shares(y, X, y / 3), "integer ids or Groups"),
        (lambda X, y: head_shares(y, X, y[:-1]), "one id for each"),
        (lambda X, y: head_shares(y, X, row_weight=y - 1.0), "positive numbers"),
    ],
)
def test_bad_input(call, message):
    X, y = load_breast_cancer(return_X_y=True)
    with pytest.raises(InputError, match=message):
        call(StandardScaler().fit_transform(X), y)
