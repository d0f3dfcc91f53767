"""Every remedy does to the training rows what its name says, and nothing else."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
import torch
from imblearn.combine import SMOTEENN, SMOTETomek
from imblearn.over_sampling import ADASYN, SMOTE, SMOTENC, BorderlineSMOTE, RandomOverSampler
from imblearn.under_sampling import TomekLinks
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from tests.studies.small import cells, mixed, numbers, outer, small_study

from counterpoise._errors import CounterpoiseError, InputError
from counterpoise._seeding import generator, key_of, seed_integer
from counterpoise.losses import BalancedMSELoss, FocalLoss, fit_window, lds_weights
from counterpoise.metrics import jensen_shannon_by_group
from counterpoise.studies import Draw, FairPenaltyRemedy, Remedy, TrainingRows
from counterpoise.studies._cell import fit_once
from counterpoise.studies._learners import BUILT_IN as LEARNERS
from counterpoise.studies._plan import entries_of
from counterpoise.studies._problem import build_problem
from counterpoise.studies._remedies import BUILT_IN, as_remedies, kept_rows, target_bins

REMEDIES = {remedy.name: remedy for remedy in BUILT_IN}


def rows(n: int = 120, positives: int = 20, columns: int = 3, categorical: int = 0, classes: int = 2, seed: int = 0) -> TrainingRows:
    """Standardised rows, the last ``categorical`` columns codes 0..3; row numbers are not positions."""
    rng = np.random.default_rng(seed)
    y = np.zeros(n, dtype=np.int64)
    y[:positives] = 1
    if classes == 3:
        y[positives : 2 * positives + 10] = 2
    X = StandardScaler().fit_transform(rng.normal(size=(n, columns)) + y[:, None])
    codes = rng.integers(0, 4, (n, categorical))
    return TrainingRows(
        np.hstack([X, codes]), np.arange(columns + categorical) >= columns, y, np.sort(rng.permutation(3 * n)[:n]), "binary"
    )


def regression(n: int = 200) -> TrainingRows:
    rng = np.random.default_rng(0)
    return TrainingRows(rng.normal(size=(n, 2)), np.zeros(2, dtype=bool), rng.gamma(2.0, size=n), np.arange(n), "regression")


def drawn(name: str, training: TrainingRows, seed: int = 0, **params: Any) -> Draw:
    draw = REMEDIES[name].draw(training, params, seed)
    assert draw is not None
    return draw


# -- one by one -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
def test_weights_are_those_of_scikit_learn(classes: int) -> None:
    training = rows(classes=classes)
    found = REMEDIES["weights"].weights(training, {})
    np.testing.assert_allclose(found, compute_sample_weight("balanced", training.y), rtol=1e-12)


def test_weights_give_what_class_weight_balanced_gives(tmp_path: Path) -> None:
    X, malignant = load_breast_cancer(return_X_y=True)
    study = small_study("breast-cancer", out=tmp_path)
    estimator = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, class_weight="balanced"))
    by_hand = cross_validate(
        estimator, X, 1 - malignant, cv=[(train, test) for *_, train, test in outer(study)], scoring=["roc_auc", "neg_log_loss"]
    )
    np.testing.assert_allclose(cells(study, "weights")["auroc"], by_hand["test_roc_auc"], atol=1e-10)
    np.testing.assert_allclose(cells(study, "weights")["log_loss"], -by_hand["test_neg_log_loss"], atol=1e-10)


def test_weights_of_a_regression_make_all_ranges_count_alike() -> None:
    training = regression()
    weight, bins = REMEDIES["weights"].weights(training, {}), target_bins(training.y)
    assert weight is not None
    totals = np.bincount(bins, weights=weight)
    np.testing.assert_allclose(totals[totals > 0], len(bins) / (totals > 0).sum())


@pytest.mark.parametrize("name", ["over", "under"])
@pytest.mark.parametrize("classes", [2, 3])
def test_random_sampling_makes_classes_equal(name: str, classes: int) -> None:
    training = rows(classes=classes)
    largest, smallest = int(np.bincount(training.y).max()), int(np.bincount(training.y).min())
    draw = drawn(name, training)
    counts = np.bincount(training.y[draw.index])
    assert counts.tolist() == [largest if name == "over" else smallest] * classes
    assert draw.X_new is None
    if name == "over":  # every row is still there
        assert set(draw.index) == set(range(len(training.y)))
    else:
        assert len(set(draw.index)) == len(draw.index)
    assert drawn(name, training, seed=1).index.tolist() != draw.index.tolist()
    assert drawn(name, training).index.tolist() == draw.index.tolist()


def test_over_sampling_of_a_regression_fills_the_ranges() -> None:
    training = regression()
    draw = drawn("over", training)
    counts = np.bincount(target_bins(training.y)[draw.index])
    assert len(set(counts[counts > 0])) == 1


def test_smote_is_that_of_imbalanced_learn() -> None:
    training = rows()
    X, y = SMOTE(k_neighbors=5, random_state=3).fit_resample(training.X, training.y)
    draw = drawn("smote", training, seed=3, k_neighbors=5)
    assert draw.index.tolist() == list(range(120))  # the real rows are untouched
    np.testing.assert_allclose(draw.X_new, X[120:], rtol=1e-10, atol=1e-12)
    assert draw.y_new is not None and draw.y_new.tolist() == [1] * 80 == y[120:].tolist()


def test_smote_in_a_study_is_that_of_imbalanced_learn_on_scaled_rows(tmp_path: Path) -> None:
    table = numbers(160, 40)
    study = small_study(table, target="y", remedies=["smote"], folds=2, out=tmp_path)
    X, y = np.asarray(study.problem.X), study.problem.y
    arm = next(arm for arm in study.plan.arms if arm.remedy == "smote")
    for repeat, fold, train, test in outer(study):
        scaler = StandardScaler().fit(X[train])
        seed = seed_integer(0, repeat, fold, key_of(arm.hash), 0, "refit")
        inside, labels = SMOTE(random_state=seed).fit_resample(scaler.transform(X[train]), y[train])
        score = LogisticRegression(max_iter=1000).fit(inside, labels).decision_function(scaler.transform(X[test]))
        stored, _ = study.scores_of("linear", "smote")
        np.testing.assert_allclose(stored[repeat, np.searchsorted(study.splits.rows, test)], score, rtol=1e-6, atol=1e-8)


def test_smote_of_categories_invents_none() -> None:
    training = rows(categorical=2)
    draw = drawn("smote", training, k_neighbors=5)
    assert draw.X_new is not None and draw.X_new.shape == (80, 5)
    assert set(np.unique(draw.X_new[:, 3:])) <= {0.0, 1.0, 2.0, 3.0}
    assert len(np.unique(draw.X_new[:, 0])) > 60  # numbers are new


PEERS = {"smote": SMOTE, "borderline-smote": BorderlineSMOTE, "adasyn": ADASYN}


@pytest.mark.parametrize("name", sorted(PEERS))
@pytest.mark.parametrize("classes", [2, 3])
def test_over_samplers_add_as_many_rows_as_those_of_imbalanced_learn(name: str, classes: int) -> None:
    training = rows(classes=classes)
    option = {"n_neighbors" if name == "adasyn" else "k_neighbors": 5, "random_state": 3}
    _, y = PEERS[name](**option).fit_resample(training.X, training.y)
    draw = drawn(name, training, seed=3, k_neighbors=5)
    assert draw.index.tolist() == list(range(120))  # the real rows are untouched
    assert draw.y_new is not None and np.bincount(draw.y_new).tolist() == np.bincount(y[120:]).tolist()
    again = drawn(name, training, seed=3, k_neighbors=5)
    assert draw.X_new is not None and again.X_new is not None and (draw.X_new == again.X_new).all()
    assert (drawn(name, training, seed=4, k_neighbors=5).X_new != draw.X_new).any()


def test_smote_of_mixed_columns_is_that_of_imbalanced_learn() -> None:
    training = rows(categorical=2)
    _, y = SMOTENC([3, 4], random_state=3).fit_resample(training.X, training.y)
    draw = drawn("smote", training, seed=3, k_neighbors=5)
    assert draw.X_new is not None and draw.y_new is not None and draw.y_new.tolist() == y[120:].tolist()
    # Numbers lie between parents of the same class, categories are those of the rare class.
    rare = training.X[training.y == 1]
    assert (draw.X_new[:, :3] >= rare[:, :3].min(0)).all() and (draw.X_new[:, :3] <= rare[:, :3].max(0)).all()


def test_smote_where_all_columns_are_categories_invents_no_category() -> None:
    full = rows(categorical=3)
    training = TrainingRows(full.X[:, 3:], np.ones(3, dtype=bool), full.y, full.rows, "binary")
    draw = drawn("smote", training, k_neighbors=5)
    assert draw.X_new is not None and draw.X_new.shape == (80, 3)
    assert set(np.unique(draw.X_new)) <= {0.0, 1.0, 2.0, 3.0}


@pytest.mark.parametrize("name", ["smote-enn", "smote-tomek"])
def test_cleaning_takes_real_rows_away_and_says_which(name: str) -> None:
    training = rows(n=300, positives=60)
    draw = drawn(name, training, k_neighbors=5)
    assert draw.X_new is not None and draw.y_new is not None
    assert 0 < len(draw.index) < 300
    sampler = (SMOTEENN if name == "smote-enn" else SMOTETomek)(random_state=0)  # imbalanced-learn's, on the same rows
    cleaned, labels = sampler.fit_resample(training.X, training.y)
    survived = {row.tobytes() for row in cleaned} & {row.tobytes() for row in training.X}
    assert {row.tobytes() for row in training.X[draw.index]} == survived
    assert np.bincount(np.concatenate([training.y[draw.index], draw.y_new])).tolist() == np.bincount(labels).tolist()
    plain = drawn("smote", training, k_neighbors=5)
    assert plain.X_new is not None
    invented = {row.tobytes() for row in plain.X_new}
    assert all(row.tobytes() in invented for row in draw.X_new) and set(draw.y_new) <= {0, 1}


@pytest.mark.parametrize("name", ["smoter", "smogn"])
def test_rare_ranges_of_a_target_get_rows(name: str) -> None:
    training = regression(400)
    draw = drawn(name, training, k_neighbors=5)
    assert draw.X_new is not None and draw.y_new is not None and len(draw.X_new) == len(draw.y_new) > 20
    rare = np.quantile(training.y, 0.9)
    before = (training.y > rare).mean()
    after = (np.concatenate([training.y[draw.index], draw.y_new]) > rare).mean()
    assert after > 2 * before


def test_likelihood_weights_look_at_the_rows_and_not_at_the_labels() -> None:
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(size=(190, 2)) * 0.3, rng.normal(size=(10, 2)) * 0.3 + 8])
    weights = []
    for y in (np.zeros(200, dtype=np.int64), rng.integers(0, 2, 200)):
        training = TrainingRows(np.column_stack([X, y]), np.array([False, False, True]), y, np.arange(200), "binary")
        weights.append(REMEDIES["likelihood"].weights(training, {"eta": 1.0, "gamma": 5.0}))
    np.testing.assert_array_equal(weights[0], weights[1])  # a category takes no part either
    np.testing.assert_allclose(weights[0].mean(), 1)
    assert weights[0][190:].min() > 1.5 * weights[0][:190].min()


def test_anyloss_hands_the_net_the_metric() -> None:
    loss = REMEDIES["anyloss"].loss("binary", 2, {"metric": "balanced_accuracy", "amplification": 10.0})
    logits, targets = torch.tensor([[9.0], [-9.0], [-9.0], [9.0]]), torch.tensor([[1.0], [1.0], [0.0], [0.0]])
    assert loss is not None and abs(float(loss(logits, targets)) - 0.5) < 0.01
    many = REMEDIES["anyloss"].loss("multiclass", 3, {"metric": "f1", "amplification": 10.0})
    assert many is not None and float(many(9.0 * torch.eye(3), torch.arange(3))) < 0.02


@pytest.mark.parametrize(("name", "params"), [("two-phase", {"head_share": 0.25}), ("prior-bias", {}), ("anyloss", None)])
def test_what_changes_the_net_takes_no_more_steps(name: str, params: dict[str, Any] | None) -> None:
    problem = build_problem(numbers(120, 30), target="y")
    if params is None:
        params = {dimension: choice.default for dimension, choice in REMEDIES[name].space.items()}
    scores = []
    for remedy, own in (("nothing", {}), (name, params)):
        fitted = fit_once(problem, LEARNERS["mlp"], REMEDIES[remedy], np.arange(120), {"lr": 1e-3, "weight_decay": 1e-6} | own, 0, 60, [])
        assert fitted.steps == 60 and fitted.effective_prior == pytest.approx([0.75, 0.25])
        scores.append(fitted.scores(problem.X, None, "binary"))
    assert np.abs(scores[0] - scores[1]).max() > 0.05


def test_smote_takes_fewer_neighbors_of_few_rows_and_needs_two() -> None:
    draw = drawn("smote", rows(positives=3), k_neighbors=5)
    assert draw.X_new is not None and len(draw.X_new) == 114
    with pytest.raises(CounterpoiseError, match="two rows of every class"):
        drawn("smote", rows(positives=1), k_neighbors=5)


def test_lds_weights_are_those_of_the_smoothed_density() -> None:
    training = regression()
    for scheme in ("inverse", "sqrt_inverse"):
        np.testing.assert_array_equal(REMEDIES["lds"].weights(training, {"scheme": scheme}), lds_weights(training.y, scheme=scheme))


def _fit_net(problem: Any, name: str, params: dict[str, Any], steps: int = 60) -> Any:
    remedy = REMEDIES[name].bound(problem)
    return fit_once(problem, LEARNERS["mlp"], remedy, np.arange(problem.n), {"lr": 3e-3, "weight_decay": 1e-6} | params, 0, steps, [])


def _target_table(scale: float = 1.0, shift: float = 0.0) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3))
    return pl.DataFrame({f"x{j}": x[:, j] for j in range(3)} | {"y": shift + scale * (np.exp(x[:, 0]) + 0.1 * rng.normal(size=300))})


@pytest.mark.parametrize(
    ("name", "params"), [("conr", {"beta": 0.3}), ("balanced-mse", {"noise_sigma": 0.3}), ("lds", {"scheme": "inverse"})]
)
def test_remedies_for_a_skewed_target_change_the_net_and_not_with_its_unit(name: str, params: dict[str, Any]) -> None:
    problem, other = (build_problem(table, target="y", task="regression") for table in (_target_table(), _target_table(1000.0, 5.0)))
    plain = _fit_net(problem, "nothing", {}).scores(problem.X, None, "regression")
    fitted = _fit_net(problem, name, params)
    scores = fitted.scores(problem.X, None, "regression")
    assert fitted.steps == 60 and np.abs(scores - plain).max() > 0.05
    rescaled = _fit_net(other, name, params).scores(other.X, None, "regression")
    np.testing.assert_allclose((rescaled - 5.0) / 1000.0, scores, atol=0.02)


def test_conr_gets_a_window_from_the_training_targets() -> None:
    training = regression()
    found = REMEDIES["conr"].net(training, {"beta": 0.1})
    window = fit_window(training.y)
    assert found["regularizer"].window == window and found["regularizer"].push_scale == pytest.approx(0.01 / window)
    assert found["regularizer_weight"] == 0.1 and found["view_noise"] == 0.05
    loss = REMEDIES["balanced-mse"].loss("regression", 0, {"noise_sigma": 0.2})
    assert isinstance(loss, BalancedMSELoss) and loss.noise_sigma == pytest.approx(0.2) and loss.reduction == "none"


def _grouped(n: int = 600, task: str = "binary") -> Any:
    rng = np.random.default_rng(1)
    sex, race = rng.integers(0, 2, n), rng.integers(0, 3, n)
    x = rng.normal(size=(n, 2)) + np.column_stack([2.0 * sex, race])
    y = x.sum(axis=1) + 0.5 * rng.normal(size=n)
    label = y if task == "regression" else np.where(y > 2.0, "yes", "no")
    if task == "multiclass":
        label = np.where(y < 1.0, "low", np.where(y > 3.0, "high", "middle"))
    table = {"x0": x[:, 0], "x1": x[:, 1], "sex": np.array(["F", "M"])[sex], "race": np.array(["a", "b", "c"])[race], "y": label}
    return build_problem(pl.DataFrame(table), target="y", groups=["sex", "race"], drop=["sex", "race"])


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_the_fair_penalty_holds_predictions_independent_of_all_groups_at_once(task: str) -> None:
    problem = _grouped(task=task)
    cells = problem.groups["sex"].ids * 3 + problem.groups["race"].ids
    found = []
    for remedy in (REMEDIES["nothing"], FairPenaltyRemedy("fair", "loss", strength=3.0)):
        fitted = fit_once(problem, LEARNERS["mlp"], remedy, np.arange(problem.n), {"lr": 3e-3, "weight_decay": 1e-6}, 0, 200, [])
        scores = fitted.scores(problem.X, None, task)
        ranked = scores if scores.ndim == 1 else scores[:, 0]
        found.append(jensen_shannon_by_group(np.argsort(np.argsort(ranked)), cells, bandwidth=20))
        assert fitted.steps == 200
    assert found[1] < 0.3 * found[0]


def test_the_strength_is_in_units_of_what_the_targets_would_pay() -> None:
    problem = _grouped()
    training = TrainingRows(problem.X, np.zeros(2, dtype=bool), problem.y, np.arange(problem.n), "binary", problem.groups)
    one, two = (FairPenaltyRemedy("fair", "loss", strength=strength).net(training, {})["lam"] for strength in (1.0, 2.0))
    assert two == pytest.approx(2 * one) and one > 1
    attributes = FairPenaltyRemedy("fair", "loss").fit_arguments(training)["attributes"]
    assert list(attributes) == ["sex", "race"] and set(attributes["race"]) == {"a", "b", "c"}


def test_cells_of_the_fair_penalty_are_kept_apart_by_groups_and_strength() -> None:
    problem = _grouped()
    remedy = REMEDIES["fair-penalty"]
    fewer = replace(problem, groups={"sex": problem.groups["sex"]})
    versions = {
        remedy.bound(problem).code_version,
        remedy.bound(fewer).code_version,
        replace(remedy, strength=2.0).bound(problem).code_version,
    }
    assert len(versions) == 3 and remedy.bound(problem) == remedy.bound(_grouped())
    assert REMEDIES["weights"].bound(problem) is REMEDIES["weights"]


@pytest.mark.parametrize(("task", "multilabel"), [("binary", True), ("multiclass", False)])
def test_focal_hands_the_net_a_focal_loss(task: str, multilabel: bool) -> None:
    loss = REMEDIES["focal"].loss(task, 3, {"gamma": 1.5})
    assert isinstance(loss, FocalLoss)
    assert (loss.gamma, loss.multilabel, loss.reduction) == (1.5, multilabel, "none")


def test_the_loss_of_a_remedy_reaches_the_net() -> None:
    """gamma 0 is cross-entropy and changes nothing, gamma 2 does; steps stay the same."""
    problem = build_problem(numbers(120, 40), target="y")
    scores = []
    for name, params in (("nothing", {}), ("focal", {"gamma": 0.0}), ("focal", {"gamma": 2.0})):
        everyone, settings = np.arange(120), {"lr": 1e-3, "weight_decay": 1e-6} | params
        fitted = fit_once(problem, LEARNERS["mlp"], REMEDIES[name], everyone, settings, 0, 60, [])
        assert fitted.steps == 60
        scores.append(fitted.scores(problem.X, None, "binary"))
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)
    assert np.abs(scores[0] - scores[2]).max() > 0.05


def test_the_placebo_drops_the_same_fifth_everywhere(tmp_path: Path) -> None:
    everyone = np.arange(10_000)
    kept = kept_rows(everyone, 0.2, "placebo")
    assert abs(kept.mean() - 0.8) < 0.015
    for seed in range(5):
        some = np.sort(np.random.default_rng(seed).permutation(10_000)[:500])
        assert (kept_rows(some, 0.2, "placebo") == kept[some]).all()
        training = TrainingRows(np.zeros((500, 1)), np.zeros(1, dtype=bool), np.zeros(500, dtype=np.int64), some, "binary")
        assert some[drawn("placebo", training, seed=seed).index].tolist() == some[kept[some]].tolist()
    assert (kept_rows(everyone, 0.2, "another") != kept).mean() > 0.2


def test_the_placebo_in_a_study_is_the_plain_fit_without_these_rows(tmp_path: Path) -> None:
    study = small_study(numbers(), target="y", remedies=[], out=tmp_path)
    X, y = np.asarray(study.problem.X), study.problem.y
    kept = kept_rows(np.arange(len(y)), 0.2, "placebo")
    stored, _ = study.scores_of("linear", "placebo")
    for *_, train, test in outer(study):
        scaler = StandardScaler().fit(X[train])
        fitted = train[kept[train]]
        model = LogisticRegression(max_iter=1000).fit(scaler.transform(X[fitted]), y[fitted])
        np.testing.assert_allclose(stored[0, test], model.decision_function(scaler.transform(X[test])), rtol=1e-9)


def test_the_balanced_forest_is_compared_with_a_forest(tmp_path: Path) -> None:
    study = small_study(numbers(120, 30), target="y", learners="forest", remedies=["balanced-forest"], folds=2, out=tmp_path)
    (verdict,) = [verdict for verdict in study.verdicts("ranking") if verdict.arm == "balanced-forest"]
    assert verdict.learner == "forest" and verdict.verdict != "failed"


# -- choosing ---------------------------------------------------------------------------------------------------------------------------


def test_all_holds_the_built_in_ones_with_the_baseline_first() -> None:
    names = [remedy.name for remedy in as_remedies("all")]
    assert names[:3] == ["nothing", "nothing@0.5", "placebo"]
    assert set(names) == set(REMEDIES)
    assert "placebo" not in [remedy.name for remedy in as_remedies("all", placebo=False)]


def test_names_that_are_unknown_are_corrected() -> None:
    with pytest.raises(InputError, match="Did you mean 'smote'"):
        as_remedies(["smot"])
    with pytest.raises(InputError, match="sampler with fit_resample"):
        as_remedies([3])
    with pytest.raises(InputError, match="different names"):
        as_remedies([RandomOverSampler(random_state=0), RandomOverSampler(random_state=1)])


def test_two_samplers_of_a_kind_get_names() -> None:
    found = as_remedies({"one": RandomOverSampler(random_state=0), "two": RandomOverSampler(random_state=1)}, placebo=False)
    assert [remedy.name for remedy in found] == ["nothing", "nothing@0.5", "one", "two"]


@pytest.mark.parametrize(
    ("remedy", "learner", "data", "reason"),
    [
        ("focal", "linear", "plain", "only for nets"),
        ("smote", "linear", "regression", "needs classes"),
        ("smote", "linear", "text", "cannot invent text"),
        ("smoter", "linear", "plain", "needs a target that is a number"),
        ("smogn", "linear", "regression", "fewer than 20 values lie beyond the whiskers"),
        ("anyloss", "trees", "plain", "only for nets"),
        ("two-phase", "mlp", "regression", "needs classes"),
        ("under", "linear", "regression", "leaves almost nothing"),
        ("balanced-forest", "forest", "regression", "needs classes"),
        ("lds", "linear", "plain", "needs a target that is a number"),
        ("conr", "linear", "regression", "only for nets"),
        ("balanced-mse", "mlp", "plain", "needs a target that is a number"),
        ("fair-penalty", "mlp", "plain", "needs protected attributes (--group)"),
    ],
)
def test_what_does_not_apply_is_listed_with_the_reason(remedy: str, learner: str, data: str, reason: str, tmp_path: Path) -> None:
    if data == "text":
        problem = build_problem(mixed(), target="y", text="note")
    elif data == "regression":
        problem = build_problem(numbers(), target="x0", drop="y")
    else:
        problem = build_problem(numbers(), target="y")
    entries, refused = entries_of(problem, [LEARNERS[learner]], as_remedies([remedy]))
    assert remedy not in [entry.remedy.name for entry in entries]
    (found,) = [row for row in refused if row[1] == remedy]
    assert found[0] == learner and reason in found[2]


def test_a_study_of_nothing_but_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"remedies: got 'fair-penalty'; expected at least one that can be used here. fair-penalty: .*--group"
    ):
        small_study(numbers(), target="y", learners=["mlp"], remedies=["fair-penalty"], out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_resamplers_that_search_neighbors_need_a_table_of_moderate_size() -> None:
    problem = build_problem(
        pl.DataFrame({"c": ["a", "b", "c", "d"] * 50, "e": ["p", "q"] * 100, "y": ["u", "v", "v", "v", "v"] * 40}), target="y"
    )
    assert REMEDIES["smote"].applies(problem, None) is None  # type: ignore[arg-type]
    assert REMEDIES["adasyn"].applies(problem, None) == "needs columns that are all numbers"  # type: ignore[arg-type]


# -- one's own --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Keep(Remedy):
    """Keeps a share of the majority."""

    share: float = 0.5

    def draw(self, training: TrainingRows, params: Any, seed: int) -> Draw:
        keep = (training.y == 1) | (generator(seed).random(len(training.y)) < self.share)
        return Draw(np.flatnonzero(keep))


def test_a_remedy_of_ones_own(tmp_path: Path) -> None:
    study = small_study(numbers(), target="y", remedies=[Keep("half", "data"), Keep("all", "data", share=1.1)], out=tmp_path)
    assert study.failed == []
    np.testing.assert_array_equal(cells(study, "all")["log_loss"], cells(study)["log_loss"])
    assert (cells(study, "half")["log_loss"] != cells(study)["log_loss"]).all()
    reasons = {verdict.arm: verdict.reason for verdict in study.verdicts("ranking")}
    assert reasons["all"] == "identical predictions"
    assert [(v.estimate, v.low, v.high) for v in study.verdicts("ranking") if v.arm == "all"] == [(0.0, 0.0, 0.0)]


def test_samplers_of_imbalanced_learn_as_remedies(tmp_path: Path) -> None:
    study = small_study(numbers(), target="y", remedies=[TomekLinks(), ADASYN(), RandomOverSampler(random_state=0)], out=tmp_path)
    assert study.failed == []
    arms = {verdict.arm for verdict in study.verdicts()}
    assert {"TomekLinks", "ADASYN", "RandomOverSampler"} <= arms
    # ADASYN has no seed of its own: the study's makes it reproducible.
    assert cells(study, "ADASYN")["log_loss"].n_unique() == 5


def test_a_remedy_that_raises_fails_alone(tmp_path: Path) -> None:
    class Broken(Remedy):
        def weights(self, training: TrainingRows, params: Any) -> npt.NDArray[np.float64]:
            raise RuntimeError("out of weights")

    study = small_study(numbers(), target="y", remedies=[Broken("broken", "loss"), "weights"], out=tmp_path)
    assert study.failed == [("linear", "broken", "RuntimeError: out of weights")]
    verdicts = {verdict.arm: verdict for verdict in study.verdicts()}
    assert verdicts["broken"].verdict == "failed" and "out of weights" in verdicts["broken"].sentence()
    assert verdicts["weights"].verdict != "failed"
    assert study.note_of("linear", "broken") == "failed"
    assert "out of weights" in study.report().read_text()


def test_what_a_remedy_warns_of_is_noted_and_not_shown() -> None:
    @dataclass(frozen=True)
    class Loud(Remedy):
        def draw(self, training: TrainingRows, params: Any, seed: int) -> None:
            warnings.warn("few rows\nand more", stacklevel=2)

    notes: list[str] = []
    problem = build_problem(numbers(120, 40), target="y")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_once(problem, LEARNERS["linear"], Loud("loud", "data"), np.arange(120), {"C": 1.0}, 0, None, notes)
    assert notes == ["loud: few rows"]
