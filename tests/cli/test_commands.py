"""The commands on real, small data: diagnose, a study with its model, predictions from it, and its report."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from counterpoise.studies._saving import load_model


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("inside", [False, True])
def test_predict_writes_what_the_model_says(run: Callable[..., Any], model: Path, suffix: str, inside: bool, rows: pl.DataFrame) -> None:
    out = model.parent / f"predictions{suffix}"
    outcome = run("predict", model / "model" if inside else model, model.parent / "rows.csv", "--out", out)
    assert (outcome.code, outcome.err) == (0, "")
    written = pl.read_csv(out) if suffix == ".csv" else pl.read_parquet(out)
    expected = load_model(model / "model").predict_frame(rows)
    assert written["prediction"].to_list() == expected["prediction"].to_list()
    np.testing.assert_allclose(written["score"], expected["score"], rtol=1e-9)


def test_predict_prints_csv(run: Callable[..., Any], model: Path, rows: pl.DataFrame) -> None:
    outcome = run("predict", model, model.parent / "rows.csv")
    lines = outcome.out.splitlines()
    assert (outcome.code, outcome.err) == (0, "")
    assert lines[0] == "prediction,score,probability_no,probability_yes" and len(lines) == 1 + rows.height


def test_predict_does_not_overwrite(run: Callable[..., Any], model: Path) -> None:
    out = model.parent / "precious.csv"
    out.write_text("kept")
    outcome = run("predict", model, model.parent / "rows.csv", "--out", out)
    outcome.assert_one_line()
    assert "another name" in outcome.err and out.read_text() == "kept"


def test_predict_names_missing_columns(run: Callable[..., Any], model: Path, rows: pl.DataFrame) -> None:
    rows.drop("city").write_csv(model.parent / "short.csv")
    outcome = run("predict", model, model.parent / "short.csv", "--out", model.parent / "out.csv")
    outcome.assert_one_line()
    assert "city" in outcome.err and not (model.parent / "out.csv").exists()


def test_predict_from_a_damaged_model(run: Callable[..., Any], model: Path) -> None:
    (model / "model" / "pipeline.skops").write_bytes(b"PK")
    outcome = run("predict", model, model.parent / "rows.csv")
    outcome.assert_one_line()
    assert "damaged" in outcome.err


def test_predictions_into_a_closed_pipe_are_quiet(shell: list[str], model: Path) -> None:
    line = f"{shlex.join(shell)} predict {model} {model.parent / 'rows.csv'} | head -n 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout == "prediction,score,probability_no,probability_yes\n" and done.stderr == ""


def test_diagnose(run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run("diagnose", "breast-cancer")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("breast-cancer: 569 rows, 30 columns, 212 ")
    assert "of the step at the start of training." in outcome.out and list(tmp_path.iterdir()) == []


def test_diagnose_by_group_with_categories_and_gaps(run: Callable[..., Any], tmp_path: Path, rows: pl.DataFrame) -> None:
    noisy = rows["number"].fill_nan(0) + np.random.default_rng(0).normal(size=rows.height)
    rows.with_columns((noisy > 0.8).cast(pl.Int64).alias("y")).write_csv(tmp_path / "table.csv")
    outcome = run("diagnose", tmp_path / "table.csv", "--target", "y", "--group", "city")
    assert (outcome.code, outcome.err) == (0, "")
    assert "group 'city-" in outcome.out.lower().partition("by city:")[2]


def test_a_study_from_data_to_predictions(run: Callable[..., Any], tmp_path: Path) -> None:
    """The main path: study, its files, the same command with --resume, report, predict."""
    make = [
        "study",
        "breast-cancer",
        "--learners",
        "linear",
        "--remedies",
        "weights,over",
        "--repeats",
        "1",
        "--jobs",
        "1",
        "--out",
        tmp_path / "run",
    ]
    first = run(*make)
    assert (first.code, first.err) == (0, ""), first.err
    for said in ("breast-cancer: 569 rows", "Plan: ", "weights", "over", "placebo", "baseline", "report.html"):
        assert said in first.out
    assert "\x1b" not in first.out
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"study.sqlite", "report.html", "results.parquet", "model"} <= written

    again = run(*make, "--resume")
    assert again.code == 0
    (tmp_path / "run" / "report.html").unlink()
    assert run("report", tmp_path / "run").code == 0 and (tmp_path / "run" / "report.html").is_file()

    differing = run(*make[:-2], "--seed", "1", "--out", tmp_path / "run", "--resume")
    differing.assert_one_line()
    assert "seed" in differing.err

    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    pl.DataFrame(data.data, schema=list(data.feature_names)).write_parquet(tmp_path / "rows.parquet")
    outcome = run("predict", tmp_path / "run", tmp_path / "rows.parquet", "--out", tmp_path / "predictions.csv")
    assert outcome.code == 0, outcome.err
    predicted = pl.read_csv(tmp_path / "predictions.csv")["prediction"]
    truth = pl.Series(data.target_names[data.target])
    assert (predicted.cast(pl.String) == truth).mean() > 0.95 or (
        predicted.cast(pl.String) == pl.Series(data.target.astype(str))
    ).mean() > 0.95
