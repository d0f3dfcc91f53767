"""A saved model predicts what the fitted one did; nothing damaged or unsafe is loaded."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import skops.io
from imblearn.ensemble import BalancedRandomForestClassifier
from imblearn.pipeline import make_pipeline as make_resampling_pipeline
from imblearn.under_sampling import RandomUnderSampler
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from counterpoise._errors import InputError, StoreError
from counterpoise.studies import _saving
from counterpoise.studies._learners import BUILT_IN
from counterpoise.studies._preprocess import Preprocess
from counterpoise.studies._saving import FittedModel, load_model, save_model
from counterpoise.studies._schema import Feature, Schema
from counterpoise.studies._types import digest

TASKS = {"binary": ("no", "yes"), "multiclass": ("a", "b", "c"), "regression": ()}


def make_table(n: int = 240) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    number = rng.normal(size=n)
    number[::17] = np.nan
    return pl.DataFrame(
        {
            "number": number,
            "size": rng.lognormal(size=n),
            "color": rng.choice(["red", "green", "blue"], n),
            "city": [f"city-{k}" for k in rng.integers(0, 30, n)],
            "remark": rng.choice(["late payment again", "good customer", "asked for a refund", "moved abroad"], n),
        }
    )


def make_model(
    learner: str, task: str, *, text: bool = False, estimator: object = None, threshold: list[float] | None = None
) -> FittedModel:
    """A model fitted on rows with gaps, few and many categories and, if asked for, text."""
    table = make_table()
    levels = {name: tuple(sorted(table[name].unique())) for name in ("color", "city")}
    schema = Schema(
        features=(
            Feature("number", "numeric", "number"),
            Feature("size", "numeric", "size"),
            *(Feature(name, "categorical", name, levels[name]) for name in ("color", "city")),
        ),
        text=("remark",) if text else (),
        target="y",
        task=task,
        classes=TASKS[task],
        dropped=(),
    )
    X, words = schema.encode(table)
    signal = np.nan_to_num(X[:, 0]) + (X[:, 2] == 1) + np.random.default_rng(1).normal(size=len(X))
    y = signal if task == "regression" else np.digitize(signal, np.quantile(signal, [0.8] if task == "binary" else [0.4, 0.8]))
    kind = BUILT_IN[learner]
    preprocess = Preprocess([len(feature.levels) for feature in schema.features], scale=kind.scale, task=task, seed=0)
    cleaned, word_features = preprocess.fit(X, words)
    encoded = np.hstack([preprocess.fit_encode(cleaned, y), *([] if word_features is None else [word_features])])
    if estimator is None:
        options = {"max_steps": 20} if kind.takes_loss else {}
        estimator = kind.build(task, {name: dimension.default for name, dimension in kind.space.items()}, 0, **options)
    estimator.fit(encoded, y)
    if threshold is None:
        threshold = {"binary": [-1.0], "multiclass": [0.5, 0.0, 1.0], "regression": []}[task]
    return FittedModel(schema, task, TASKS[task], preprocess, estimator, threshold, learner, "nothing")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved linear model; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(folder, make_model("linear", "binary"))
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def sign_again(folder: Path, **changes: object) -> None:
    """Make ``model.json`` consistent after a change, as an attacker would."""
    content = json.loads((folder / "model.json").read_text())
    del content["checksum"]
    content |= changes
    content["sha256"] = {name: _saving._sha256(folder / name) for name in content["sha256"]}
    content["checksum"] = digest(content)
    (folder / "model.json").write_text(json.dumps(content))


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize(
    ("learner", "task"),
    [(learner, task) for learner in ("linear", "trees", "mlp") for task in TASKS] + [("forest", "binary"), ("forest", "multiclass")],
)
def test_predictions_survive_the_round_trip(tmp_path: Path, learner: str, task: str, text: bool) -> None:
    model = make_model(learner, task, text=text)
    save_model(tmp_path / "model", model)
    again = load_model(tmp_path / "model")
    X, words = model.schema.encode(make_table())
    np.testing.assert_array_equal(again.scores(X, words), model.scores(X, words))
    assert np.ptp(model.scores(X, words)) > 0.1  # a constant would survive anything
    assert (again.schema, again.task, again.classes, again.threshold) == (model.schema, task, TASKS[task], model.threshold)
    assert again.predict_frame(make_table()).equals(model.predict_frame(make_table()))


def test_predictions_use_the_threshold() -> None:
    table = make_table()
    model = make_model("linear", "binary", threshold=[-1.2])
    frame = model.predict_frame(table)
    assert frame.columns == ["prediction", "score", "probability_no", "probability_yes"]
    assert frame["prediction"].to_list() == ["yes" if score > -1.2 else "no" for score in frame["score"]]
    np.testing.assert_allclose(frame["probability_yes"], 1 / (1 + np.exp(-frame["score"])), rtol=1e-12)
    np.testing.assert_allclose(frame["probability_yes"] + frame["probability_no"], 1, rtol=1e-12)
    # Between log-odds -1.2 and 0 the two rules disagree.
    assert (frame["prediction"].to_numpy() == "yes").sum() > (frame["probability_yes"] > 0.5).sum()


def test_predictions_use_the_offsets_of_more_classes() -> None:
    table = make_table()
    plain = make_model("linear", "multiclass", threshold=[0.0, 0.0, 0.0]).predict_frame(table)
    favored = make_model("linear", "multiclass", threshold=[0.0, 0.0, 50.0]).predict_frame(table)
    assert set(plain["prediction"]) == {"a", "b", "c"}
    assert set(favored["prediction"]) == {"c"}
    assert plain["probability_c"].equals(favored["probability_c"])


def test_unseen_categories_and_gaps_are_predicted() -> None:
    table = pl.DataFrame({"number": [None, 1.0], "size": [1.0, None], "color": ["violet", None], "city": ["nowhere", "city-1"]})
    frame = make_model("linear", "binary").predict_frame(table)
    assert frame.height == 2 and np.isfinite(frame["score"].to_numpy()).all()


def test_missing_columns_are_named() -> None:
    with pytest.raises(InputError, match="city"):
        make_model("linear", "binary").predict_frame(make_table().drop("city"))


def test_nothing_is_unpickled(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    load_model(saved)
    assert sorted(path.name for path in saved.iterdir()) == ["model.json", "pipeline.skops"]


@pytest.mark.parametrize("resampling", ["forest", "pipeline"])
def test_resamplers_are_left_out(tmp_path: Path, resampling: str) -> None:
    estimator = (
        BalancedRandomForestClassifier(n_estimators=7, random_state=0)
        if resampling == "forest"
        else make_resampling_pipeline(RandomUnderSampler(random_state=0), LogisticRegression())
    )
    model = make_model("forest", "binary", estimator=estimator)
    save_model(tmp_path / "model", model)
    with zipfile.ZipFile(tmp_path / "model" / "pipeline.skops") as archive:
        assert b"imblearn" not in archive.read("schema.json")
    X, words = model.schema.encode(make_table())
    np.testing.assert_array_equal(load_model(tmp_path / "model").scores(X, words), model.scores(X, words))


def test_other_scikit_learn_estimators_can_be_saved(tmp_path: Path) -> None:
    model = make_model("linear", "binary", estimator=SVC())
    save_model(tmp_path / "model", model)
    X, words = model.schema.encode(make_table())
    np.testing.assert_array_equal(load_model(tmp_path / "model").scores(X, words), model.scores(X, words))


class Homemade(LogisticRegression):
    """An estimator of the user's own."""


def test_an_unknown_type_is_refused_when_saving(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"test_saving\.Homemade"):
        save_model(tmp_path / "model", make_model("linear", "binary", estimator=Homemade()))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_type_is_refused_when_loading(copy: Path) -> None:
    skops.io.dump({"preprocess": {}, "estimator": Homemade()}, copy / "pipeline.skops")
    sign_again(copy)
    with pytest.raises(StoreError, match=r"test_saving\.Homemade"):
        load_model(copy)


@pytest.mark.parametrize("name", ["model.json", "pipeline.skops"])
@pytest.mark.parametrize("harm", ["truncated", "empty", "one byte", "deleted"])
def test_damage_is_one_clear_error(copy: Path, name: str, harm: str) -> None:
    path = copy / name
    content = path.read_bytes()
    middle = len(content) // 2
    if harm == "deleted":
        path.unlink()
    else:
        path.write_bytes(
            {
                "truncated": content[:middle],
                "empty": b"",
                "one byte": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            }[harm]
        )
    with pytest.raises(StoreError, match="no model" if (name, harm) == ("model.json", "deleted") else "damaged") as caught:
        load_model(copy)
    assert "\n" not in str(caught.value) and str(copy) in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "null", "{}", '{"format": "x"}', "\x00"])
def test_other_json_is_no_model(copy: Path, content: str) -> None:
    (copy / "model.json").write_text(content)
    with pytest.raises(StoreError, match="damaged"):
        load_model(copy)


def test_a_damaged_net_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "model", make_model("mlp", "binary"))
    path = tmp_path / "model" / "net.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(StoreError, match=r"net\.safetensors"):
        load_model(tmp_path / "model")
    sign_again(tmp_path / "model")
    with pytest.raises(StoreError, match="cannot be rebuilt"):
        load_model(tmp_path / "model")


def test_a_newer_format_asks_for_an_update(copy: Path) -> None:
    sign_again(copy, format=99)
    with pytest.raises(StoreError, match=r"format 99.*Update"):
        load_model(copy)


def test_another_scikit_learn_is_said(copy: Path) -> None:
    sign_again(copy, versions={"scikit-learn": "0.1.0"})
    with pytest.warns(UserWarning, match=r"0\.1\.0"):
        load_model(copy)


def test_a_model_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    model = make_model("linear", "binary")
    save_model(tmp_path / "model", model)
    model.threshold = [0.25]
    save_model(tmp_path / "model", model)
    assert load_model(tmp_path / "model").threshold == [0.25]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter-1.txt").write_text("kept")
    with pytest.raises(StoreError, match="not overwritten"):
        save_model(tmp_path / "thesis", model)
    assert (tmp_path / "thesis" / "chapter-1.txt").read_text() == "kept"


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        save_model(tmp_path / "file" / "model", make_model("linear", "binary"))
