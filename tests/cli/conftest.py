"""The command line called in this process, a study that only remembers how it was called, and a saved model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression

import counterpoise
from counterpoise.cli import main
from counterpoise.studies._preprocess import Preprocess
from counterpoise.studies._saving import FittedModel, save_model
from counterpoise.studies._schema import Feature, Schema

SHELL = [sys.executable, "-c", "import sys; from counterpoise.cli import main; sys.exit(main())"]


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    def assert_one_line(self, code: int = 2) -> None:
        """Nothing on stdout, one plain line on stderr."""
        assert (self.code, self.out) == (code, ""), self
        assert self.err.startswith("counterpoise: ") and self.err.count("\n") == 1 and self.err.endswith("\n"), self
        assert "Traceback" not in self.err


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Outcome]:
    """``run("study", ...)``: exit code and what was printed."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("tracebacks")))

    def call(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def fake_study(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """``counterpoise.study`` replaced by a list that its calls are appended to."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(counterpoise, "study", lambda data, **arguments: calls.append({"data": data, **arguments}), raising=False)
    return calls


@pytest.fixture
def shell() -> list[str]:
    """``counterpoise`` in a process of its own."""
    return SHELL


@pytest.fixture
def rows() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    number = rng.normal(size=240)
    number[::17] = np.nan
    return pl.DataFrame({"number": number, "city": [f"city-{k}" for k in rng.integers(0, 4, 240)]})


@pytest.fixture
def model(tmp_path: Path, rows: pl.DataFrame) -> Path:
    """A folder like a study's: a linear model in ``model/`` beside a table ``rows.csv``."""
    cities = tuple(sorted(rows["city"].unique()))
    schema = Schema(
        features=(Feature("number", "numeric", "number"), Feature("city", "categorical", "city", cities)),
        text=(),
        target="y",
        task="binary",
        classes=("no", "yes"),
        dropped=(),
    )
    X, _ = schema.encode(rows)
    y = (np.nan_to_num(X[:, 0]) + np.random.default_rng(1).normal(size=len(X)) > 0.8).astype(np.int64)
    preprocess = Preprocess([0, len(cities)], scale=True, task="binary")
    estimator = LogisticRegression().fit(preprocess.fit_encode(preprocess.fit(X)[0], y), y)
    save_model(tmp_path / "run" / "model", FittedModel(schema, "binary", ("no", "yes"), preprocess, estimator, [-1.0], "linear", "nothing"))
    rows.write_csv(tmp_path / "rows.csv")
    return tmp_path / "run"
