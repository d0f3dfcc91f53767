"""``counterpoise scaling``: what it prints, the figure, and one line for a table that will not do."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from counterpoise.scaling import LossSurface, sample_isoflop


@pytest.fixture
def table(tmp_path: Path) -> Path:
    surface = LossSurface(1.69, 406.4, 410.7, 0.34, 0.28)
    runs = sample_isoflop(surface, np.geomspace(1e17, 1e21, 5), n=7, drift=-0.5, noise=0.002)
    L = runs["L"].to_numpy().copy()
    L[20] += 0.3
    runs.with_columns(L=pl.Series(L)).rename({"N": "n_params", "D": "tokens", "L": "loss"}).write_csv(tmp_path / "runs.csv")
    return tmp_path / "runs.csv"


COLUMNS = ("--size", "n_params", "--data", "tokens", "--loss", "loss")


def test_a_plan_with_its_doubts(run: Callable[..., Any], table: Path) -> None:
    before = table.read_bytes()
    outcome = run("scaling", table, *COLUMNS, "--budget", "1e24")
    assert (outcome.code, outcome.err) == (0, "")
    for said in ("35 runs in 5 budgets", "At 1e+24 FLOPs: N ", "If the surface is right", "wasted without it", "row 20: ", ": residual"):
        assert said in outcome.out
    assert outcome.out == run("scaling", table, *COLUMNS, "--budget", "1e24").out
    assert "\x1b" not in outcome.out and table.read_bytes() == before and list(table.parent.iterdir()) == [table]


def test_columns_have_the_names_of_the_paper_by_default(run: Callable[..., Any], table: Path) -> None:
    pl.read_csv(table).rename({"n_params": "N", "tokens": "D", "loss": "L"}).write_csv(table)
    outcome = run("scaling", table)
    assert outcome.code == 0 and "At 1e+21 FLOPs" in outcome.out


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_figure(run: Callable[..., Any], table: Path, suffix: str) -> None:
    out = table.with_name(f"plan{suffix}")
    outcome = run("scaling", table, *COLUMNS, "--out", out)
    assert outcome.code == 0 and outcome.err.startswith(f"counterpoise: wrote {out}") and out.stat().st_size > 5000
    again = run("scaling", table, *COLUMNS, "--out", out)
    again.assert_one_line()
    assert "not overwritten" in again.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--size", "params"], "error: --size: got 'params'"),
        (["--size", "tokens"], "error: --data: got 'tokens'"),
        (["--data", "none"], "error: --data: got 'none'"),
        (["--loss", "none"], "error: --loss: got 'none'"),
        (["--budget", "0"], "--budget: got 0.0"),
        (["--budget", "nan"], "--budget: got nan"),
        (["--budget", "much"], "'much' is not a valid float"),
        (["--out", "plan.gif"], ".svg, .png or .pdf"),
        (["--out", "nowhere/plan.svg"], "no folder nowhere"),
        (["--compute", "C"], "--compute"),
    ],
)
def test_options_that_will_not_do(run: Callable[..., Any], table: Path, options: list[str], said: str) -> None:
    outcome = run("scaling", table, *COLUMNS, *options)
    outcome.assert_one_line()
    assert said in outcome.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (pl.col("loss") * 0, "column 'loss': got 0 in row 0"),
        (pl.lit(1e9).alias("tokens"), "column 'tokens': got 1e+09 in all runs"),
        (pl.lit("x").alias("n_params"), "column 'n_params': got 'x' in row 0"),
        (pl.lit(None, pl.Float64).alias("tokens"), "column 'tokens': got"),
    ],
)
def test_tables_that_will_not_do(run: Callable[..., Any], table: Path, change: pl.Expr, said: str) -> None:
    pl.read_csv(table).with_columns(change).write_csv(table)
    outcome = run("scaling", table, *COLUMNS)
    outcome.assert_one_line()
    assert said in outcome.err


HEAD = "N,D,L\n"
RUNS = "".join(
    f"{n}.0,{d}.0,{2 + 400 * n**-0.3 + 400 * d**-0.3:.6f}\n"
    for n, d in zip(range(10**6, 10**7, 10**6), [10**8, 10**9, 10**10] * 3, strict=True)
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (HEAD.encode(), "there are column names but no rows"),
        (RUNS.encode(), "the first line holds numbers"),
        (f"N,N,L\n{RUNS}".encode(), "several columns are called 'N'. If the first line is data, add a line of names"),
        (f"{HEAD}{RUNS}1e7,NaN,3".encode(), "column 'D': got NaN in row 9"),
        (f"{HEAD}{RUNS}1e7,1e9,-3".encode(), "column 'L': got -3 in row 9"),
        (f"{HEAD}{RUNS}1e7,1e9,inf".encode(), "column 'L': got inf in row 9"),
        (f"{HEAD}{RUNS}1e7,1e9,diverged".encode(), "column 'L': got 'diverged' in row 9"),
        (f"{HEAD}{RUNS}1e7,1e9".encode(), "line 11 has 2 fields"),
        (f"{HEAD}{RUNS}1e7,1e9,1,1".encode(), "line 11 has 4 fields"),
        (f"{HEAD}{RUNS}1e200,1e200,3".encode(), "N and D: got 1e+200 and 1e+200 in row 9"),
        (f"{HEAD}{RUNS}".encode("utf-16"), "the text is UTF-16"),
        (bytes(range(256)) * 9, "binary data"),
    ],
)
def test_files_that_will_not_do(run: Callable[..., Any], tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "runs.csv").write_bytes(content)
    outcome = run("scaling", tmp_path / "runs.csv")
    outcome.assert_one_line()
    assert said in outcome.err and "--no-header" not in outcome.err


def test_files_as_other_programs_write_them(run: Callable[..., Any], tmp_path: Path) -> None:
    plain = HEAD + RUNS
    contents = {
        "plain": plain,
        "byte order mark": f"\ufeff{plain}",
        "Windows": plain.replace("\n", "\r\n"),
        "semicolons": plain.replace(",", ";"),
        "decimal commas": plain.replace(",", ";").replace(".", ","),
        "blanks": plain.replace(",", ", "),
        "empty lines": f"{plain}\n\n",
    }
    outcomes = {}
    for name, content in contents.items():
        (tmp_path / "runs.csv").write_bytes(content.encode())
        outcomes[name] = run("scaling", tmp_path / "runs.csv")
    assert (outcomes["plain"].code, outcomes["plain"].err) == (0, "")
    assert all(outcome == outcomes["plain"] for outcome in outcomes.values()), outcomes


def test_a_plan_below_the_budgets_is_an_extrapolation_too(run: Callable[..., Any], table: Path) -> None:
    assert "3.0 decades below the smallest budget" in run("scaling", table, *COLUMNS, "--budget", "1e14").out


def test_no_table(run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, said in ((["absent.csv"], "absent.csv"), ([], "Missing argument 'RUNS'")):
        outcome = run("scaling", *arguments)
        outcome.assert_one_line()
        assert said in outcome.err
    (tmp_path / "four.csv").write_text("N,D,L\n" + "".join(f"1e{k},1e{k + 2},{9 - k}\n" for k in range(3, 7)))
    outcome = run("scaling", "four.csv")
    outcome.assert_one_line()
    assert "4 different runs" in outcome.err and "at least 5" in outcome.err


def test_perplexities_are_asked_about_in_one_line(run: Callable[..., Any], table: Path) -> None:
    pl.read_csv(table).with_columns(pl.col("loss").exp()).write_csv(table)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        outcome = run("scaling", table, *COLUMNS)
    assert outcome.code == 0 and outcome.err.startswith("counterpoise: warning: y: the median loss is") and outcome.err.count("\n") == 1
