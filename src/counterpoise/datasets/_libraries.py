"""Data sets that other libraries bring or fetch: ``sklearn:NAME``, ``openml:ID``, ``hf:NAME``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from counterpoise._errors import InputError, bad_input, check_choice
from counterpoise._extras import require

from ._dataset import Dataset

__all__ = ["SOURCES", "from_huggingface", "from_openml", "from_sklearn"]

SKLEARN_TASKS = {"breast_cancer": "binary", "diabetes": "regression", "digits": "multiclass", "iris": "multiclass", "wine": "multiclass"}


def from_sklearn(name: str) -> Dataset:
    """One of the real data sets that scikit-learn installs; the target is called ``target``, classes have their names."""
    import sklearn.datasets

    key = name.replace("-", "_")
    check_choice("sklearn:NAME", key, SKLEARN_TASKS)
    bunch = getattr(sklearn.datasets, f"load_{key}")(**({"scaled": False} if key == "diabetes" else {}))
    task: Any = SKLEARN_TASKS[key]
    target = bunch.target if task == "regression" else np.asarray(bunch.target_names)[bunch.target]
    frame = pl.DataFrame({str(column): bunch.data[:, i] for i, column in enumerate(bunch.feature_names)})
    return Dataset(
        f"sklearn:{key}",
        frame.with_columns(pl.Series("target", target)),
        "target",
        groups=("sex",) if key == "diabetes" else (),
        task=task,
        source="scikit-learn",
        license="see sklearn.datasets",
    )


def from_openml(number: str) -> Dataset:
    """Data set ``number`` of openml.org with its default target, fetched by scikit-learn and cached."""
    if not number.isdigit():
        bad_input("openml:ID", number, "the number of a data set on openml.org, such as openml:310")
    require("pandas", "hf", "openml:")
    from sklearn.datasets import fetch_openml

    from ._load import cache_folder

    folder = str(cache_folder() / "openml")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"sklearn\.datasets\._openml")  # it warns before it retries
            bunch = fetch_openml(data_id=int(number), as_frame=True, parser="auto", data_home=folder, n_retries=1)
    except OSError as error:  # URLError, HTTPError, timeouts
        raise InputError(f"openml:{number}: openml.org did not give it ({error}). Check the number and the connection.") from error
    except Exception as error:  # scikit-learn raises several types for sets it cannot parse
        raise InputError(f"openml:{number}: scikit-learn cannot read it ({str(error).splitlines()[0]}).") from error
    if len(bunch.target_names) != 1:
        bad_input("openml:ID", number, f"a data set with one default target, not {len(bunch.target_names)}")
    from ._tables import as_frame

    return Dataset(
        f"openml:{number}",
        as_frame(bunch.frame),
        bunch.target_names[0],
        source=f"https://www.openml.org/d/{number}",
        license=str(bunch.details.get("licence", "")),
    )


def from_huggingface(name: str) -> pl.DataFrame:
    """The training split of a data set on the Hugging Face hub; its target is yours to name."""
    library = require("datasets", "hf", "hf:")
    if not name:
        bad_input("hf:NAME", name, "the name of a data set on the Hugging Face hub, such as hf:scikit-learn/adult-census-income")
    try:
        table = library.load_dataset(name, split="train")
    except Exception as error:  # the hub's client raises many types: unknown name, no such split, no connection, gated
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"hf:{name}: the hub's client cannot load its split 'train' ({reason}).") from error
    return pl.DataFrame(table.to_polars())


SOURCES: dict[str, Callable[[str], pl.DataFrame | Dataset]] = {"sklearn": from_sklearn, "openml": from_openml, "hf": from_huggingface}
