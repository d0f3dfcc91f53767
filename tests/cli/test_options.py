"""What the options of the command line mean, and the one error each gives when it means nothing."""

from __future__ import annotations

from typing import Any

import pytest

from counterpoise._errors import InputError
from counterpoise.cli._options import default_folder, parse_budget, parse_cost, parse_names, parse_remedies, parse_rope


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("2h", 7200), ("1.5h", 5400), (".5m", 30), (" 3 M ", 180), ("1.s", 1)]
)
def test_budget(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "10", "m", "-5m", "0s", "0.0h", "ten minutes", "10m30s", "1e3s", "nan h", "10d", "9" * 400 + "h", "٣m"]
)
def test_budget_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--budget: got .*90s, 10m or 2h"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["fp=1,fn=20", "fn=20,fp=1", " fp = 1 , fn = 2e1 "])
def test_cost(text: str) -> None:
    assert parse_cost(text) == {"fp": 1.0, "fn": 20.0}


@pytest.mark.parametrize(
    "text",
    ["", "fp=1", "fp=1,fn=", "fp=1,fn=x", "fp=1,fp=2", "fp=1,fn=2,tp=0", "fp=0,fn=1", "fp=-1,fn=1", "fp=inf,fn=1", "1,20", "fp=1;fn=2"],
)
def test_cost_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--cost: got .*fp=1,fn=20"):
        parse_cost(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.01", 0.01),
        ("0", 0.0),
        ("decisions=0.01", {"decisions": 0.01}),
        ("decisions=0.01, ranking=0", {"decisions": 0.01, "ranking": 0.0}),
    ],
)
def test_rope(text: str, value: Any) -> None:
    assert parse_rope(text) == value


@pytest.mark.parametrize(
    "text", ["", "x", "-0.1", "nan", "inf", "decisions=", "=0.1", "decisions=-1", "decisions=1,decisions=2", "0.1,0.2"]
)
def test_rope_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--rope: got .*decisions=0\.01"):
        parse_rope(text)


def test_names() -> None:
    assert parse_names("--learners", "linear") == ["linear"]
    assert parse_names("--learners", " linear , trees") == ["linear", "trees"]
    assert parse_remedies("all") == "all"
    assert parse_remedies("over,smote") == ["over", "smote"]


@pytest.mark.parametrize(
    ("text", "said"), [("", "commas"), ("linear,,trees", "commas"), ("linear,", "commas"), ("a,b,a", "'a' is there 2 times")]
)
def test_names_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=f"--learners: got .*{said}"):
        parse_names("--learners", text)


@pytest.mark.parametrize(
    ("data", "folder"),
    [
        ("digits8", "runs/digits8"),
        ("sklearn:wine", "runs/wine"),
        ("hf:owner/name", "runs/name"),
        ("/data/my loans.csv.gz", "runs/my-loans"),
        ("a.b.parquet", "runs/a.b"),
        ("..", "runs/study"),
        ("", "runs/study"),
        ("französisch.csv", "runs/französisch"),
    ],
)
def test_default_folder(data: str, folder: str) -> None:
    assert default_folder(data).as_posix() == folder
