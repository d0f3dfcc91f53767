"""The scorer by group, in scikit-learn's hands."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from counterpoise._errors import InputError
from counterpoise.metrics import make_group_scorer

METRICS = {"roc_auc": roc_auc_score, "average_precision": average_precision_score}


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    group = rng.choice([0, 1, 2], 600, p=[0.7, 0.2, 0.1])
    y = rng.random(600) < np.array([0.4, 0.2, 0.3])[group]
    x = rng.normal(size=(600, 2)) + np.outer(y, [1.0, 0.2])
    x[group == 1, 0] *= -0.3
    return pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "site": group}), y.astype(int)


@pytest.mark.parametrize("model", [LogisticRegression(), KNeighborsClassifier(7)], ids=["decision_function", "predict_proba"])
@pytest.mark.parametrize("reduce", ["min", "mean"])
@pytest.mark.parametrize("base", METRICS)
def test_value(table, base, reduce, model) -> None:
    X, y = table
    model = model.fit(X, y)
    score = model.predict_proba(X)[:, 1]
    each = [METRICS[base](y[rows], score[rows]) for rows in (X["site"].to_numpy() == k for k in range(3))]
    expected = min(each) if reduce == "min" else np.mean(each)
    scorer = make_group_scorer(base, "site", reduce)
    assert scorer(model, X, y) == pytest.approx(expected, abs=1e-12)
    assert pickle.loads(pickle.dumps(scorer))(model, X, y) == scorer(model, X, y)


@pytest.mark.parametrize(
    ("kind", "column"),
    [(lambda X: X, "site"), (lambda X: X, 2), (lambda X: X.to_pandas(), "site"), (lambda X: X.to_numpy(), 2), (lambda X: X.to_numpy(), -1)],
    ids=["polars", "polars-position", "pandas", "array", "array-from-the-end"],
)
def test_tables_of_all_kinds(table, kind, column) -> None:
    X, y = table
    found = cross_val_score(LogisticRegression(), kind(X), y, scoring=make_group_scorer("roc_auc", column), cv=3)
    plain = cross_val_score(LogisticRegression(), X, y, scoring=make_group_scorer("roc_auc", "site"), cv=3)
    assert found == pytest.approx(plain, abs=1e-12) and len(set(found)) == 3


def test_a_search_chooses_for_the_worst_group(table) -> None:
    X, y = table
    first = make_pipeline(FunctionTransformer(lambda X: X[:, :1]), LogisticRegression())
    second = make_pipeline(FunctionTransformer(lambda X: X[:, 1:2]), LogisticRegression())
    values = {scoring: GridSearchCV(make_pipeline(first), {"pipeline": [first, second]}, scoring=scorer, cv=3).fit(X.to_numpy(), y)
              for scoring, scorer in {"pooled": "roc_auc", "worst": make_group_scorer("roc_auc", 2)}.items()}  # fmt: skip
    assert values["pooled"].best_index_ == 0  # the first column serves most rows, and is upside down in group 1
    assert values["worst"].best_index_ == 1


def test_string_labels_and_the_other_class(table) -> None:
    X, y = table
    labels = np.where(y == 1, "sick", "well")
    model = LogisticRegression().fit(X, labels)
    sick = make_group_scorer("average_precision", "site", pos_label="sick")(model, X, labels)
    assert sick == pytest.approx(make_group_scorer("average_precision", "site")(LogisticRegression().fit(X, y), X, y), abs=1e-6)
    nearest = KNeighborsClassifier(7).fit(X, labels)
    assert make_group_scorer("roc_auc", "site", pos_label="sick")(nearest, X, labels) == pytest.approx(
        make_group_scorer("roc_auc", "site")(nearest, X, labels), abs=1e-12
    )
    assert sick != pytest.approx(make_group_scorer("average_precision", "site")(model, X, labels), abs=1e-3)


def test_groups_of_one_class_are_left_out() -> None:
    X = pd.DataFrame({"x": [0.0, 1.0, 0.5, 0.7], "site": ["a", "a", "b", None]})
    model = LogisticRegression().fit(X[["x"]].assign(site=0.0), [0, 1, 0, 1])
    scorer = make_group_scorer("roc_auc", "site")
    assert scorer(_OnlyX(model), X, [0, 1, 0, 1]) == 1.0
    with pytest.raises(InputError, match="X: got 3 groups with one class each"):
        scorer(_OnlyX(model), X.assign(site=["a", "b", "c", "b"]), [0, 1, 0, 1])


class _OnlyX:
    def __init__(self, model) -> None:
        self.model, self.classes_ = model, model.classes_

    def decision_function(self, X):
        return self.model.decision_function(X[["x"]].assign(site=0.0))


def test_repr() -> None:
    assert repr(make_group_scorer("roc_auc", "site")) == "make_group_scorer('roc_auc', 'site', 'min')"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("auc", "site"), "base: got 'auc'; expected one of roc_auc, average_precision"),
        (("roc_auc", "site", "max"), "reduce: got 'max'"),
        (("roc_auc",), "groups_col: got None; expected the name or the position"),
    ],
)
def test_bad_arguments(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        make_group_scorer(*arguments)


def test_bad_calls(table) -> None:
    X, y = table
    model = LogisticRegression().fit(X, y)
    for column, message in (("sites", "Did you mean 'site'?"), (7, "groups_col: got 7")):
        with pytest.raises(InputError, match=message):
            make_group_scorer("roc_auc", column)(model, X, y)
    for column in ("site", 3):
        with pytest.raises(InputError, match="expected a position in X"):
            make_group_scorer("roc_auc", column)(LogisticRegression().fit(X.to_numpy(), y), X.to_numpy(), y)
    with pytest.raises(InputError, match="pos_label: got 'yes'"):
        make_group_scorer("roc_auc", "site", pos_label="yes")(model, X, y)
    three = LogisticRegression().fit(X, X["site"])
    with pytest.raises(InputError, match="estimator: got 3 classes"):
        make_group_scorer("roc_auc", "site")(three, X, y)
