"""Input that cannot be used: one line, exit code 2, no traceback, and nothing is written."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

Table = dict[str, list[Any]]


def table(n: int = 120, positives: int = 40, **columns: list[Any] | None) -> Table:
    """A table that a study accepts; ``columns`` are added, replaced, or left out (None)."""
    rng = np.random.default_rng(0)
    content: Table = {
        "age": rng.normal(40, 10, n).round(2).tolist(),
        "income": rng.lognormal(3, 1, n).round(2).tolist(),
        "sex": rng.choice(["f", "m"], n).tolist(),
        "y": ["yes"] * positives + ["no"] * (n - positives),
    }
    content |= {name: values for name, values in columns.items() if values is not None}
    return {name: values for name, values in content.items() if columns.get(name, ()) is not None}


def write(path: Path, content: Table) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(content)
        writer.writerows(zip(*content.values(), strict=True))


GOOD = table()
NUMBERS = np.random.default_rng(1).normal(size=120).round(4).tolist()

# What is in data.csv, what is typed after "study data.csv", and what the one line must say.
CASES: dict[str, tuple[Table, str, list[str]]] = {
    "target not given": (GOOD, "", ["target"]),
    "target not found": (GOOD, "--target Y", ["'Y'", "y"]),
    "one class": (table(y=["yes"] * 120), "--target y", ["y", "yes"]),
    "one positive": (table(positives=1), "--target y", ["1 row of class 'yes'", "at least 4", "counterpoise diagnose"]),
    "three positives": (table(positives=3), "--target y", ["3 rows of class 'yes'", "at least 4"]),
    "rare class": (table(y=["a"] * 60 + ["b"] * 59 + ["c"]), "--target y", ["'c'", "1", "--merge-rare"]),
    "all constant": (table(age=[1] * 120, income=[2] * 120, sex=["f"] * 120), "--target y", ["constant"]),
    "no feature": (table(age=None, income=None, sex=None), "--target y", ["No column is left"]),
    "every feature dropped": (GOOD, "--target y --drop age --drop income --drop sex", ["No column is left", "sex"]),
    "missing target": (table(y=["yes"] * 40 + ["no"] * 50 + [""] * 30), "--target y", ["y", "missing"]),
    "a copy of the target": (table(outcome=["1"] * 40 + ["0"] * 80), "--target y", ["outcome", "--keep"]),
    "a leak": (table(score=[10 + k / 99 for k in range(40)] + [k / 99 for k in range(80)]), "--target y", ["score", "--keep"]),
    "group equals target": (table(copy=["b"] * 40 + ["a"] * 80), "--target y --group copy --drop copy", ["copy"]),
    "constant group": (table(site=["here"] * 120), "--target y --group site", ["site"]),
    "unknown group": (GOOD, "--target y --group sexx", ["sexx", "sex"]),
    "unknown cluster": (GOOD, "--target y --cluster customer", ["customer"]),
    "unknown time": (GOOD, "--target y --time when", ["when"]),
    "unknown weight": (GOOD, "--target y --weight w", ["'w'"]),
    "unknown text": (GOOD, "--target y --text remark", ["remark"]),
    "unknown drop": (GOOD, "--target y --drop aeg", ["aeg"]),
    "unknown keep": (GOOD, "--target y --keep aeg", ["aeg"]),
    "negative weight": (table(w=[-1] + [1] * 119), "--target y --weight w", ["w"]),
    "weight of words": (GOOD, "--target y --weight sex", ["sex"]),
    "one cluster": (table(who=["a"] * 120), "--target y --cluster who", ["who"]),
    "positive not there": (GOOD, "--target y --positive maybe", ["maybe", "yes"]),
    "regression of words": (GOOD, "--target y --task regression", ["y"]),
    "positive of a regression": (table(y=NUMBERS), "--target y --positive 1", ["positive"]),
    "cost of a regression": (table(y=NUMBERS), "--target y --cost fp=1,fn=2", ["cost"]),
    "cost of three classes": (table(y=["a", "b", "c"] * 40), "--target y --cost fp=1,fn=2", ["cost"]),
    "unknown learner": (GOOD, "--target y --learners linaer", ["linaer", "Did you mean 'linear'?"]),
    "unknown remedy": (GOOD, "--target y --remedies smot", ["smot", "Did you mean 'smote'?"]),
    "unknown metric": (GOOD, "--target y --metric aucroc", ["aucroc", "balanced_accuracy"]),
    "metric of a regression": (GOOD, "--target y --metric mae", ["mae"]),
    "metric of a classification": (table(y=NUMBERS), "--target y --metric f1", ["f1"]),
    "cost metric without costs": (GOOD, "--target y --metric cost", ["cost"]),
    "rope of an unknown question": (GOOD, "--target y --rope decision=0.1", ["decision"]),
    "unknown question": (GOOD, "--target y --accept-worse probability", ["probability", "probabilities"]),
    "test file not there": (GOOD, "--target y --test later.csv", ["later.csv"]),
    "out is a file": (GOOD, "--target y --out data.csv", ["data.csv"]),
    "out below a file": (GOOD, "--target y --out data.csv/run", ["data.csv"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_of_a_study(run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    content, options, said = CASES[case]
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data.csv", content)
    before = (tmp_path / "data.csv").read_bytes()
    outcome = run("study", "data.csv", *options.split())
    outcome.assert_one_line()
    assert [word for word in said if word not in outcome.err] == [], outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["data.csv"]
    assert (tmp_path / "data.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent.csv", None, "absent.csv"),
        ("empty.csv", b"", "empty.csv"),
        ("header.csv", b"a,b,y\n", "row"),
        ("picture.csv", bytes(range(256)) * 8, "picture.csv"),
        ("broken.parquet", b"PAR1 not really", "broken.parquet"),
        ("broken.jsonl", b'{"a": 1}\n{"a": ', "broken.jsonl"),
        ("table.xlsx", b"PK", "xlsx"),
        ("folder.csv/", None, "folder.csv"),
        ("nosuchset", None, "nosuchset"),
        ("sklearn:nosuchset", None, "nosuchset"),
    ],
)
@pytest.mark.parametrize("command", ["study", "diagnose"])
def test_files_that_are_no_tables(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str, content: bytes | None, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COUNTERPOISE_DATA", str(tmp_path))
    if name.endswith("/"):
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    before = sorted(path.name for path in tmp_path.iterdir())
    outcome = run(command, name, "--target", "y")
    outcome.assert_one_line()
    assert said in outcome.err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_test_file_without_a_column_is_named(run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data.csv", GOOD)
    write(tmp_path / "later.csv", table(income=None))
    outcome = run("study", "data.csv", "--target", "y", "--test", "later.csv")
    outcome.assert_one_line()
    assert "income" in outcome.err


@pytest.mark.parametrize("command", ["report", "predict"])
def test_a_folder_that_is_no_study(run: Callable[..., Any], tmp_path: Path, command: str) -> None:
    write(tmp_path / "data.csv", GOOD)
    outcome = run(command, tmp_path, *([tmp_path / "data.csv"] if command == "predict" else []))
    outcome.assert_one_line()
    assert str(tmp_path) in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["data.csv"]


COLUMNS = ["age", "income", "sex", "y", "", "Y", "absent", "a b"]
VALUES = {
    "target": ["y", "y", "y", "y", *COLUMNS],
    "positive": ["yes", "no", "maybe", "1", ""],
    "task": ["classification", "regression"],
    **dict.fromkeys(("group", "cluster", "time", "weight", "text", "drop", "keep"), COLUMNS),
    "test": ["data.csv", "absent.csv", ".", ""],
    "cost": ["fp=1,fn=20", "fp=1e-300,fn=1e300", "fn=1"],
    "metric": ["auto", "balanced_accuracy", "f1", "accuracy", "cost", "mae", "auroc", "log_loss", "r2", ""],
    "rope": ["0", "0.1", "1e9", "decisions=0.1", "error=1", "tails=0", "x=1"],
    "folds": ["2", "5", "100"],
    "learners": ["linear", "trees,mlp", "forest", "svm"],
    "remedies": ["all", "smote,balanced-forest", "focal", "nothing", "placebo", "magic"],
    "budget": ["10m", "1s"],
    "accept-worse": ["probabilities", "error", "fun"],
    "seed": ["0", "4294967295"],
}
FLAGS = ["no-header", "merge-rare", "no-placebo", "reopen-holdout", "resume"]
choices = st.sampled_from(sorted(VALUES)).flatmap(lambda name: st.sampled_from([f"--{name}={value}" for value in VALUES[name]]))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(options=st.lists(st.one_of(choices, choices, st.sampled_from([f"--{flag}" for flag in FLAGS])), max_size=6))
def test_no_combination_of_options_gives_a_traceback(
    options: list[str], run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All checks before the first fit are real; the fits are left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("counterpoise.studies._launch.launch", lambda *arguments, **options: None)
    write(tmp_path / "data.csv", table(60, 20))
    outcome = run("study", "data.csv", "--target", "y", *options)
    assert outcome.code in (0, 2), outcome
    if outcome.code == 2:
        outcome.assert_one_line()
    assert [path.name for path in tmp_path.iterdir()] == ["data.csv"]
