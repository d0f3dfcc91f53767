"""``sklearn:``, ``openml:`` and ``hf:`` without a network: recorded answers and stubs."""

from __future__ import annotations

import importlib.resources
import re
import sys
import types
from pathlib import Path
from typing import ClassVar
from urllib.error import URLError

import polars as pl
import pytest

from counterpoise._errors import InputError, MissingExtraError
from counterpoise.datasets import Dataset, read_table


def test_scikit_learn_sets() -> None:
    iris = read_table("sklearn:iris")
    assert isinstance(iris, Dataset)
    assert iris.frame.shape == (150, 5)
    assert iris.task == "multiclass"
    assert sorted(iris.frame["target"].unique()) == ["setosa", "versicolor", "virginica"]
    assert read_table("sklearn:breast-cancer").frame["target"].value_counts().sort("count")["count"].to_list() == [212, 357]
    assert read_table("sklearn:diabetes").groups == ("sex",)


def test_unknown_scikit_learn_set() -> None:
    with pytest.raises(InputError, match="Did you mean 'digits'"):
        read_table("sklearn:digit")


class Recorded:
    """Answers of openml.org for data set 61 (iris), as recorded in scikit-learn's own tests."""

    FILES: ClassVar = {
        r"/api/v1/json/data/61$": "api-v1-jd-61.json.gz",
        r"/data/features/61$": "api-v1-jdf-61.json.gz",
        r"/data/qualities/61$": "api-v1-jdq-61.json.gz",
        r"/data/v1/download/61": "data-v1-dl-61.arff.gz",
    }

    def __call__(self, request: object, *args: object, **options: object) -> object:
        url = request.full_url if hasattr(request, "full_url") else str(request)
        for pattern, name in self.FILES.items():
            if re.search(pattern, url):
                return Answer(importlib.resources.files("sklearn.datasets.tests.data.openml.id_61").joinpath(name).open("rb"))
        raise URLError(f"nothing recorded for {url}")


class Answer:
    """A response as urlopen gives it: gzipped content."""

    def __init__(self, stream: object) -> None:
        self._stream = stream

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def read(self, *size: int) -> bytes:
        return self._stream.read(*size)

    def info(self) -> dict[str, str]:
        return {"Content-Encoding": "gzip"}

    def close(self) -> None:
        self._stream.close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COUNTERPOISE_CACHE", str(tmp_path))
    return tmp_path


def test_openml_from_recorded_answers(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    monkeypatch.setattr("sklearn.datasets._openml.urlopen", Recorded())
    iris = read_table("openml:61")
    assert isinstance(iris, Dataset)
    assert iris.target == "class"
    assert iris.frame.shape[1] == 5
    assert iris.frame["class"].n_unique() == 3
    assert (cache / "openml").is_dir()


def test_openml_without_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **options: object) -> object:
        raise URLError("Name or service not known")

    monkeypatch.setattr("sklearn.datasets._openml.urlopen", offline)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(InputError, match=r"openml:61.*connection"):
        read_table("openml:61")


def test_openml_takes_numbers() -> None:
    with pytest.raises(InputError, match="openml:ID"):
        read_table("openml:iris")


def test_hugging_face_with_a_stub(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pl.DataFrame({"a": [1, 2], "y": ["no", "yes"]})

    def load_dataset(name: str, split: str) -> object:
        assert split == "train"
        if name == "me/table":
            return types.SimpleNamespace(to_polars=lambda: frame)
        raise FileNotFoundError(f"Dataset {name!r} doesn't exist\nsecond line")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert read_table("hf:me/table").equals(frame)
    with pytest.raises(InputError, match=r"hf:me/nothing: .*doesn't exist\)\.$"):
        read_table("hf:me/nothing")


def test_hugging_face_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"counterpoise\[hf\]"):
        read_table("hf:me/table")
