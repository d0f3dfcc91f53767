"""Saving and loading a fitted model without pickle.

A model is a folder: ``model.json`` (what it predicts, from which columns, with which threshold; versions; a SHA-256 of every other file),
``pipeline.skops`` (the fitted scikit-learn parts) and, for a net, ``net.safetensors``. Resamplers and losses are not needed to predict and
are left out.

skops builds only objects of types that it or :data:`TRUSTED_TYPES` names, so loading runs no code from the file. It does not check that the
child indices inside a tree's arrays are in bounds: a forged file can still crash the process. **Only load files you trust.**
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._errors import InputError, StoreError, listing

from ._types import digest, installed_versions

if TYPE_CHECKING:
    import polars as pl

    from ._preprocess import Preprocess
    from ._schema import Schema

__all__ = ["TRUSTED_TYPES", "FittedModel", "load_model", "save_model"]

FORMAT = 1
MODEL_FILE, PIPELINE_FILE, NET_FILE = "model.json", "pipeline.skops", "net.safetensors"

# Beyond what skops trusts by itself (scikit-learn's public estimators, NumPy's functions): a dtype, the two kinds of tree, and the folds
# that a target encoder was cross-fitted in.
TRUSTED_TYPES = (
    "numpy.dtype",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.model_selection._split.KFold",
    "sklearn.model_selection._split.StratifiedKFold",
    "sklearn.tree._tree.Tree",
)

_NETS = ("MLPClassifier", "MLPRegressor")  # what a saved net is loaded as: a penalty was for its training
_PACKAGES = ("counterpoise", "scikit-learn", "numpy", "skops", "torch")


@dataclass(repr=False)
class FittedModel:
    """A model with everything from a table's row to its prediction.

    Attributes:
        schema: how a table becomes numbers.
        task: ``binary``, ``multiclass`` or ``regression``.
        classes: their names in the order of the codes; two classes: the positive one last. Empty for regression.
        preprocess: fitted; ``transform(X, text)`` gives what ``estimator`` takes.
        estimator: fitted.
        threshold: two classes: ``[t]``, positive if the log-odds exceed t; more: one offset b per class, argmax of log p + b;
            regression: ``[]``.
        learner, remedy: what it was made of.
    """

    schema: Schema
    task: str
    classes: tuple[str, ...]
    preprocess: Preprocess
    estimator: Any
    threshold: list[float]
    learner: str
    remedy: str

    def __repr__(self) -> str:
        columns = len({feature.source for feature in self.schema.features}) + len(self.schema.text)
        return f"FittedModel({self.learner}/{self.remedy}, {self.task} on {self.schema.target!r}, {columns} columns)"

    def scores(self, X: npt.NDArray[np.floating], text: npt.NDArray[np.object_] | None = None) -> npt.NDArray[np.float64]:
        """(n,) log-odds of the positive class, (n, C) log-probabilities, or (n,) predictions of a regression."""
        from ._cell import make_scores

        return make_scores(self.estimator, self.preprocess.transform(X, text), self.task)

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """(n,) predictions for a polars or pandas frame, a pyarrow table or an array with the columns of the training table."""
        from counterpoise.datasets._tables import as_frame

        return self.predict_frame(as_frame(X))["prediction"].to_numpy()

    def predict_frame(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Predictions for the rows of a table with the columns the model was trained on (others are ignored).

        Returns ``prediction``, after the threshold; two classes: ``score``, the log-odds that the threshold applies to; classes:
        ``probability_<class>`` as the model gives them. A remedy that shifts the class frequencies in training shifts these as well.

        Raises:
            InputError: columns are missing.
        """
        import polars as pl
        from scipy.special import expit, softmax

        scores = self.scores(*self.schema.encode(frame))
        if self.task == "regression":
            return pl.DataFrame({"prediction": scores})
        columns: dict[str, Any] = {}
        if self.task == "binary":
            codes = (scores > self.threshold[0]).astype(np.int64)
            columns["score"] = scores
            probabilities = np.column_stack([expit(-scores), expit(scores)])
        else:
            codes = (scores + np.asarray(self.threshold)).argmax(axis=1)
            probabilities = softmax(scores, axis=1)
        columns |= {f"probability_{name}": probabilities[:, k] for k, name in enumerate(self.classes)}
        return pl.DataFrame({"prediction": np.asarray(self.classes, dtype=object)[codes].tolist()} | columns)


# -- saving -------------------------------------------------------------------------------------------------------------------------------


def save_model(folder: str | Path, model: FittedModel) -> None:
    """Write ``model`` into ``folder``, in place of a model that is there. The folder is complete or not there at all.

    Raises:
        InputError: a part of the model is of a type that cannot be loaded again safely; the type is named.
        StoreError: the folder cannot be written, or holds something that is not a model.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / MODEL_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder} holds something that is not a model, and is not overwritten; choose another folder.")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        _write_parts(partial, model)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except OSError as error:
        raise StoreError(f"the model cannot be written to {folder}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_parts(folder: Path, model: FittedModel) -> None:
    from zipfile import ZIP_DEFLATED

    import skops.io

    is_net = hasattr(model.estimator, "module_") and type(model.estimator).__module__.startswith("counterpoise.engines")
    content: dict[str, Any] = {
        "format": FORMAT,
        "task": model.task,
        "classes": list(model.classes),
        "learner": model.learner,
        "remedy": model.remedy,
        "threshold": [float(value) for value in model.threshold],
        "schema": model.schema.to_dict(),
        "preprocess": model.preprocess.get_config(),
        "net": _net_content(model.estimator) if is_net else None,
        "versions": installed_versions(_PACKAGES),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    parts = {"preprocess": model.preprocess.get_parts(), "estimator": None if is_net else _without_resampler(model.estimator)}
    skops.io.dump(parts, folder / PIPELINE_FILE, compression=ZIP_DEFLATED)
    unknown = _untrusted(folder / PIPELINE_FILE)
    if unknown:
        raise InputError(
            f"this model cannot be saved: it holds {listing(unknown)}, and loading such objects could run code from the file. "
            f"Learners of scikit-learn's own types can be saved; keep yours with the code that fits it."
        )
    if is_net:
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in model.estimator.module_.state_dict().items()}, folder / NET_FILE)
    content["sha256"] = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    content["checksum"] = digest(content)
    (folder / MODEL_FILE).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def _net_content(net: Any) -> dict[str, Any]:
    from sklearn.base import is_classifier

    # Losses and callbacks were for training, and the device is the machine's where the model is loaded.
    kept = {name: getattr(net, name) for name in ("hidden", "lr", "weight_decay", "batch_size", "max_steps")}
    return {
        "type": "MLPClassifier" if is_classifier(net) else "MLPRegressor",
        "params": kept,
        "n_features": int(net.n_features_in_),
        "classes": [int(code) for code in net.classes_] if hasattr(net, "classes_") else None,
        "target": [net.target_mean_, net.target_scale_] if hasattr(net, "target_mean_") else None,
        "tensors": list(net.module_.state_dict()),
    }


def _without_resampler(estimator: Any) -> Any:
    """imbalanced-learn's forest and pipelines as scikit-learn's: what they predict with, without what they resampled with."""
    if not type(estimator).__module__.startswith("imblearn."):
        return estimator
    from imblearn.ensemble import BalancedRandomForestClassifier
    from imblearn.pipeline import Pipeline as ResamplingPipeline
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import Pipeline

    if isinstance(estimator, BalancedRandomForestClassifier):
        forest = RandomForestClassifier(n_estimators=len(estimator.estimators_))
        for name in ("estimators_", "classes_", "n_classes_", "n_outputs_", "n_features_in_"):
            setattr(forest, name, getattr(estimator, name))
        return forest
    if isinstance(estimator, ResamplingPipeline):
        return Pipeline([(name, step) for name, step in estimator.steps if not hasattr(step, "fit_resample")])
    return estimator


# -- loading ------------------------------------------------------------------------------------------------------------------------------


def load_model(folder: str | Path) -> FittedModel:
    """Read a model that :func:`save_model` wrote. Only load files you trust; see the module's notes.

    Raises:
        StoreError: there is no model, it is damaged or was changed, it needs a newer counterpoise or another scikit-learn, or it holds a
            type that is not loaded (which is named).
    """
    folder = Path(folder)
    content = _read_content(folder)
    for name, expected in content["sha256"].items():
        path = folder / name
        if not path.is_file() or _sha256(path) != expected:
            raise StoreError(f"the model in {folder} is damaged: {name} is missing or was changed since it was saved. Save it again.")
    unknown = _untrusted(folder / PIPELINE_FILE)
    if unknown:
        raise StoreError(f"the model in {folder} is not loaded: it holds {listing(unknown)}, which a saved model never needs.")
    _warn_of_versions(folder, content["versions"])
    try:
        return _build(folder, content)
    except Exception as error:
        saved = content["versions"].get("scikit-learn", "unknown")
        raise StoreError(
            f"the model in {folder} cannot be rebuilt ({type(error).__name__}: {error}); it was saved with scikit-learn {saved}, "
            f"this is {version('scikit-learn')}."
        ) from error


def _read_content(folder: Path) -> dict[str, Any]:
    path = folder / MODEL_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StoreError(
            f"there is no model in {folder}: {MODEL_FILE} was not found. Pass the folder of a study or of a saved model."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} cannot be read: {error}.") from error
    try:
        content = json.loads(text)
        newer = content["format"] > FORMAT
        intact = content.pop("checksum") == digest(content) and set(content["sha256"]) - {NET_FILE} == {PIPELINE_FILE}
    except (ValueError, TypeError, KeyError, AttributeError):
        newer = intact = False
    if newer:
        raise StoreError(f"the model in {folder} has format {content['format']}; this version reads up to {FORMAT}. Update counterpoise.")
    if not intact:
        raise StoreError(f"the model in {folder} is damaged: {MODEL_FILE} is incomplete or was changed since it was saved. Save it again.")
    return dict(content)


def _build(folder: Path, content: Mapping[str, Any]) -> FittedModel:
    import skops.io

    from ._preprocess import Preprocess
    from ._schema import Schema

    parts = skops.io.load(folder / PIPELINE_FILE, trusted=list(TRUSTED_TYPES))
    return FittedModel(
        schema=Schema.from_dict(content["schema"]),
        task=content["task"],
        classes=tuple(content["classes"]),
        preprocess=Preprocess.from_parts(parts["preprocess"], content["preprocess"]),
        estimator=parts["estimator"] if content["net"] is None else _build_net(folder, content["net"]),
        threshold=list(content["threshold"]),
        learner=content["learner"],
        remedy=content["remedy"],
    )


def _build_net(folder: Path, net: Mapping[str, Any]) -> Any:
    from safetensors.torch import load_file

    from counterpoise import engines

    if net["type"] not in _NETS:
        raise ValueError(f"{net['type']!r} is not a net of counterpoise")
    tensors = load_file(folder / NET_FILE)
    params = net["params"] | {"hidden": tuple(net["params"]["hidden"])}
    # The order of the layers is that of model.json: a safetensors file has an order of its own.
    return getattr(engines, net["type"]).from_state(
        params, {name: tensors[name] for name in net["tensors"]}, net["n_features"], net["classes"], net["target"]
    )


def _untrusted(path: Path) -> list[str]:
    """Types in a skops file that are not loaded; a file that is no skops file at all is named instead."""
    import skops.io

    try:
        return sorted(set(skops.io.get_untrusted_types(file=path)) - set(TRUSTED_TYPES))
    except Exception as error:
        raise StoreError(f"{path} is damaged: it is not a readable skops file ({type(error).__name__}).") from error


def _warn_of_versions(folder: Path, saved: Mapping[str, str]) -> None:
    """scikit-learn promises nothing between versions: said once, and the model is tried."""
    here = version("scikit-learn")
    there = saved.get("scikit-learn", here)
    if here.split(".")[:2] != there.split(".")[:2]:
        warnings.warn(
            f"the model in {folder} was saved with scikit-learn {there} and loaded with {here}; check some predictions, or fit it again.",
            stacklevel=3,
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
