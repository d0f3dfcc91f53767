"""The commands: what they hand over, what they answer to nonsense, and that help is quick."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

import counterpoise
from counterpoise._errors import InputError
from counterpoise.cli import main

STUDY_OPTIONS = [
    *("target", "positive", "task", "test", "group", "cluster", "time", "weight", "cost", "text", "drop", "keep", "no-header"),
    *("learners", "remedies", "metric", "rope", "folds", "repeats", "budget", "jobs", "engine", "seed", "merge-rare"),
    *("no-placebo", "learning-curve"),
    *("accept-worse", "reopen-holdout", "out", "resume"),
]


# -- help ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["--help"], ["study", "--help"], ["diagnose", "-h"], ["predict", "--help"], ["report", "--help"]])
def test_help_is_quick(shell: list[str], command: list[str]) -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([*shell, *command], capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 1.0
    assert "Usage: counterpoise" in done.stdout and "Example" in done.stdout
    assert "\\[" not in done.stdout and max(map(len, done.stdout.splitlines())) <= 110


def test_help_imports_nothing_heavy() -> None:
    heavy = ["torch", "sklearn", "polars", "numpy", "pandas", "matplotlib", "joblib"]
    code = f"import sys, counterpoise.cli as cli; cli.main(['study', '--help']); print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_option_of_study_is_shown(run: Callable[..., Any]) -> None:
    text = run("study", "--help").out
    assert [name for name in STUDY_OPTIONS if f"--{name}" not in text] == []


def test_only_commands_that_exist_are_shown(run: Callable[..., Any]) -> None:
    listed = run("--help").out.partition("Commands:\n")[2].partition("\n\n")[0]
    assert [line.split()[0] for line in listed.splitlines()] == ["study", "diagnose", "predict", "report", "replicate", "papers", "scaling"]


def test_version(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("--version").out == f"counterpoise {counterpoise.__version__}\n"


# -- what is handed over ------------------------------------------------------------------------------------------------------------------


def test_defaults(run: Callable[..., Any], fake_study: list[dict[str, Any]]) -> None:
    assert run("study", "digits8").code == 0
    (call,) = fake_study
    assert type(call.pop("watcher")).__name__ == "ConsoleWatcher"
    assert call == {
        "data": "digits8",
        "target": None,
        "positive": None,
        "task": "auto",
        "test": None,
        "groups": [],
        "cluster": None,
        "time": None,
        "weight": None,
        "cost": None,
        "text": [],
        "drop": [],
        "keep": [],
        "header": True,
        "learners": ["linear", "trees", "mlp"],
        "remedies": "all",
        "metric": "auto",
        "rope": None,
        "folds": 5,
        "repeats": 5,
        "budget": None,
        "jobs": None,
        "engine": "local",
        "seed": 0,
        "merge_rare": False,
        "placebo": True,
        "learning_curve": False,
        "accept_worse": [],
        "reopen_holdout": False,
        "out": Path("runs/digits8"),
        "resume": False,
        "command": "counterpoise study digits8",
    }


def test_every_option_arrives(run: Callable[..., Any], fake_study: list[dict[str, Any]]) -> None:
    line = (
        "study my-table.csv --target y --positive yes --task classification --test later.csv --group sex --group age --cluster who "
        "--time when --weight w --cost fp=1,fn=20 --text remark --drop a --drop b --keep id --no-header --learners linear,trees "
        "--remedies over,smote --metric f1 --rope decisions=0.02 --folds 3 --repeats 2 --budget 10m --jobs 4 --engine ray --seed 7 "
        "--merge-rare --no-placebo --learning-curve --accept-worse probabilities --reopen-holdout --out somewhere --resume"
    )
    assert run(*line.split()).code == 0
    (call,) = fake_study
    del call["watcher"]
    assert call == {
        "data": "my-table.csv",
        "target": "y",
        "positive": "yes",
        "task": "classification",
        "test": "later.csv",
        "groups": ["sex", "age"],
        "cluster": "who",
        "time": "when",
        "weight": "w",
        "cost": {"fp": 1.0, "fn": 20.0},
        "text": ["remark"],
        "drop": ["a", "b"],
        "keep": ["id"],
        "header": False,
        "learners": ["linear", "trees"],
        "remedies": ["over", "smote"],
        "metric": "f1",
        "rope": {"decisions": 0.02},
        "folds": 3,
        "repeats": 2,
        "budget": 600.0,
        "jobs": 4,
        "engine": "ray",
        "seed": 7,
        "merge_rare": True,
        "placebo": False,
        "learning_curve": True,
        "accept_worse": ["probabilities"],
        "reopen_holdout": True,
        "out": Path("somewhere"),
        "resume": True,
        "command": f"counterpoise {line}",
    }


def test_the_command_can_be_pasted(run: Callable[..., Any], fake_study: list[dict[str, Any]]) -> None:
    run("study", "my loans.csv", "--target", "it's due")
    assert fake_study[0]["command"] == """counterpoise study 'my loans.csv' --target 'it'"'"'s due'"""


# -- errors -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("study", "Missing argument 'DATA'"),
        ("studdy", "No such command 'studdy'"),
        ("study a b", "unexpected extra argument"),
        ("study a --targt y", "--targt"),
        ("study a --target", "requires an argument"),
        ("study a --folds 1", "1 is not in the range"),
        ("study a --folds five", "'five' is not a valid int"),
        ("study a --repeats 0", "0 is not in the range"),
        ("study a --jobs 0", "0 is not in the range"),
        ("study a --seed -1", "-1 is not in the range"),
        ("study a --budget 10", "--budget"),
        ("study a --cost 1:20", "--cost"),
        ("study a --rope tiny", "--rope"),
        ("study a --learners linear,,mlp", "--learners"),
        ("study a --remedies ,", "--remedies"),
        ("study a --task clustering", "one of classification, regression"),
        ("study a --engine rya", "Did you mean 'ray'?"),
        ("predict m", "Missing argument 'DATA'"),
        ("predict nowhere nothing.csv", "no model in nowhere"),
        ("predict nowhere nothing.csv --out predictions.pkl", ".csv or .parquet"),
        ("predict nowhere nothing.csv --out nowhere/predictions.csv", "no folder nowhere"),
        ("report", "Missing argument 'DIR'"),
    ],
)
def test_usage_errors_are_one_line(
    run: Callable[..., Any], fake_study: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run(*line.split())
    outcome.assert_one_line()
    assert outcome.err.startswith("counterpoise: error: ") and said in outcome.err
    assert fake_study == [] and list(tmp_path.iterdir()) == []


def test_a_message_of_several_lines_becomes_one(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def study(*args: object, **kwargs: object) -> None:
        raise InputError("column 'a\nb' is\tnot there")

    monkeypatch.setattr(counterpoise, "study", study, raising=False)
    outcome = run("study", "x")
    outcome.assert_one_line()
    assert outcome.err == "counterpoise: error: column 'a b' is not there\n"


def test_an_error_of_ours_leaves_its_traceback_in_a_file(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def study(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(counterpoise, "study", study, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    outcome = run("study", "x", "--seed", "3")
    outcome.assert_one_line(code=1)
    (file,) = tmp_path.iterdir()
    assert outcome.err == f"counterpoise: internal error: ZeroDivisionError: by zero (full traceback in {file})\n"
    assert file.read_text().startswith("counterpoise study x --seed 3\n") and "Traceback (most recent call last)" in file.read_text()


def test_interrupt_says_how_to_go_on(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def study(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(counterpoise, "study", study, raising=False)
    outcome = run("study", "x", "--out", "runs/mine")
    outcome.assert_one_line(code=130)
    assert "runs/mine" in outcome.err and "--resume" in outcome.err


def test_warnings_are_one_line(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    def study(*args: object, **kwargs: object) -> None:
        warnings.warn("take care", UserWarning, stacklevel=1)

    monkeypatch.setattr(counterpoise, "study", study, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        outcome = run("study", "x")
    assert (outcome.code, outcome.err) == (0, "counterpoise: warning: take care\n")


# -- nonsense -----------------------------------------------------------------------------------------------------------------------------

OPTIONS = [f"--{name}" for name in (*STUDY_OPTIONS, "help", "version", "wrong")] + ["-h", "-x", "--", "-"]
PLAUSIBLE = [
    "1",
    "0",
    "-1",
    "10m",
    "fp=1,fn=2",
    "0.01",
    "all",
    "linear",
    "regression",
    "ray",
    "1e309",
    "nan",
    "=",
    ",",
    "a=b",
    "٣",
    "[x]",
    "%s",
    "{}",
]
words = st.one_of(
    st.sampled_from(OPTIONS),
    st.sampled_from(PLAUSIBLE),
    st.builds("{}={}".format, st.sampled_from(OPTIONS), st.text(max_size=8)),
    st.text(max_size=12),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(command=st.sampled_from(["study", "study", "study", "", "stud"]), arguments=st.lists(words, max_size=8))
def test_no_command_line_gives_a_traceback(
    command: str, arguments: list[str], run: Callable[..., Any], fake_study: list[dict[str, Any]], tmp_path: Path
) -> None:
    outcome = run(*([command] if command else []), *arguments)
    assert outcome.code in (0, 2), (arguments, outcome)
    assert "Traceback" not in outcome.err and "internal error" not in outcome.err
    assert outcome.err.count("\n") == (1 if outcome.code == 2 else 0), outcome.err


# -- in a shell ---------------------------------------------------------------------------------------------------------------------------


def test_a_closed_pipe_is_quiet(shell: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run([*shell, "study", "--help"], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert process.stderr == ""


def test_exit_code_reaches_the_shell(shell: list[str]) -> None:
    done = subprocess.run([*shell, "study"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("counterpoise: error: Missing argument 'DATA'.")


def test_main_takes_its_arguments_from_the_shell(monkeypatch: pytest.MonkeyPatch, fake_study: list[dict[str, Any]]) -> None:
    monkeypatch.setattr(sys, "argv", ["counterpoise", "study", "wine", "--seed", "4"])
    assert main() == 0
    assert fake_study[0]["seed"] == 4 and fake_study[0]["command"] == "counterpoise study wine --seed 4"
