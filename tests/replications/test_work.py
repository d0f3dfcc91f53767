from __future__ import annotations

import pytest

from counterpoise._errors import StoreError
from counterpoise.replications import Work
from counterpoise.replications import _work as module
from counterpoise.replications._work import paired, rows_where

from . import toy

TASKS = [{"seed": seed, "arm": arm} for seed in range(3) for arm in "ab"]


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    return lambda: (tmp_path / "log").read_text().split("\n")[:-1] if (tmp_path / "log").exists() else []


@pytest.mark.parametrize("jobs", [1, 2])
def test_rows_come_in_the_order_of_the_tasks_with_their_arguments(jobs, log) -> None:
    rows = Work(jobs=jobs).map(toy.piece, TASKS)
    assert [(row["seed"], row["arm"]) for row in rows] == [(task["seed"], task["arm"]) for task in TASKS]
    assert [row["value"] for row in rows] == [seed / 3 + plus for seed in range(3) for plus in (0, 1)]
    if jobs == 1:  # processes at work are reused, with the environment they began with
        assert len(log()) == 6


def test_what_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch, log) -> None:
    store = tmp_path / "store.jsonl"
    monkeypatch.setenv("TOY_FAILS_AT", "2")
    with pytest.raises(Exception, match="toys"):
        Work(store).map(toy.piece, TASKS)
    done = len(store.read_text().split())
    monkeypatch.delenv("TOY_FAILS_AT")
    before = len(log())
    rows = Work(store).map(toy.piece, TASKS)
    assert len(log()) - before == 2 and done > 0  # only what was not there
    assert rows == Work().map(toy.piece, TASKS)


def test_time_is_added_up_and_earlier_runs_count(tmp_path) -> None:
    first, second = Work(tmp_path / "store"), Work(tmp_path / "store")
    first.map(toy.piece, TASKS)
    second.map(toy.piece, TASKS)
    assert first.seconds > 0 and second.seconds == pytest.approx(first.seconds, abs=0.01)


def test_a_torn_last_line_costs_one_piece(tmp_path, log) -> None:
    store = tmp_path / "store.jsonl"
    Work(store).map(toy.piece, TASKS)
    store.write_text(store.read_text()[:-7])
    before = len(log())
    again = Work(store).map(toy.piece, TASKS)
    assert len(log()) - before == 1
    assert again == Work(store).map(toy.piece, TASKS)


def test_a_changed_experiment_is_not_mixed_with_the_old_one(tmp_path, monkeypatch, log) -> None:
    store = tmp_path / "store.jsonl"
    Work(store).map(toy.piece, TASKS[:1])
    monkeypatch.setattr(module.inspect, "getsource", lambda _: "another source")
    Work(store).map(toy.piece, TASKS[:1])
    assert len(log()) == 2


def test_progress_is_said(tmp_path) -> None:
    said: list[str] = []
    Work(tmp_path / "store", say=said.append).map(toy.piece, TASKS[:3])
    Work(tmp_path / "store", say=said.append).map(toy.piece, TASKS[:4])
    assert said == ["piece: 3 runs", "piece: 1 runs, 3 known"]


def test_a_store_that_cannot_be_written_is_one_line(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="choose another --out"):
        Work(tmp_path / "file" / "store").map(toy.piece, TASKS[:1])


def test_pairs_by_seed() -> None:
    rows = [{"arm": arm, "seed": seed, "x": seed * (2 if arm == "a" else 1)} for seed in (3, 1) for arm in "ab"]
    assert paired(rows, "x", "a", "b") == [1.0, 3.0]
    assert [row["seed"] for row in rows_where(rows, arm="b", x=1)] == [1]
