from __future__ import annotations

import json
import multiprocessing
import signal
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr")
pytest.importorskip("phe")

from flwr.app import Array, ArrayRecord

from counterpoise._errors import InputError, StoreError
from counterpoise.federated._checkpoint import RoundState
from counterpoise.federated._local_grid import LocalGrid
from tests.federated.apps import app_of, arrays, strategy
from tests.federated.resumable import ROUNDS, train
from tests.federated.test_strategy import flat
from tests.processes import in_processes  # noqa: F401 - which sets up the server of processes


def run(folder: Path, *arguments: object) -> int:
    """The exit status of a process of its own, forked from a server that has torch already."""
    process = multiprocessing.get_context("forkserver").Process(target=train, args=(folder, *arguments))
    process.start()
    process.join(timeout=120)
    return process.exitcode


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder) == 0
    return folder


@pytest.fixture(scope="module")
def with_feedback(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("feedback")
    assert run(folder, "", 0, True) == 0
    return folder


def ended(folder: Path) -> tuple[dict[str, bytes], dict]:
    with np.load(folder / "end.npz") as numbers:
        weights = {name: numbers[name].tobytes() for name in numbers.files}
    return weights, json.loads((folder / "end.json").read_text())


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
@pytest.mark.parametrize(
    ("kills", "first", "whole"),
    [
        ([("before the file is in place", 3)], 3, "uninterrupted"),  # round 3 is trained, but not kept
        ([("training", 2), ("before the evaluation is saved", 5)], 6, "uninterrupted"),  # round 5 is kept; its evaluation is made up for
        ([("before the file is in place", 1), ("training", 3), ("before the file is in place", 5)], 5, "with_feedback"),
    ],
)
def test_a_killed_training_ends_as_if_nothing_had_happened(kills, first, whole, request, tmp_path) -> None:
    """With error feedback: in round 3 two clients had voted already, in round 5 all of them, and the key holder had told the total."""
    error_feedback = whole == "with_feedback"
    for point, at in kills:
        assert run(tmp_path, point, at, error_feedback) == -signal.SIGKILL
        assert not (tmp_path / "end.npz").exists()
    assert run(tmp_path, "", 0, error_feedback) == 0
    weights, found = ended(tmp_path)
    wanted, at_once = ended(request.getfixturevalue(whole))
    assert weights == wanted
    assert found["trained"] == list(range(first, ROUNDS + 1)) and at_once["trained"] == list(range(1, ROUNDS + 1))
    assert (found["train"], found["server"]) == (at_once["train"], at_once["server"])
    assert len(found["server"]) == ROUNDS + 1


def test_error_feedback_is_not_the_same_training(uninterrupted, with_feedback) -> None:
    assert ended(uninterrupted)[0] != ended(with_feedback)[0]


def test_a_finished_training_is_not_trained_again(uninterrupted) -> None:
    before = ended(uninterrupted)
    assert run(uninterrupted) == 0
    weights, found = ended(uninterrupted)
    assert weights == before[0] and found["trained"] == [] and found["train"] == before[1]["train"]


def test_another_run_is_not_continued(tmp_path) -> None:
    path = tmp_path / "round.safetensors"
    strategy(checkpoint=path).start(LocalGrid(app_of(), 5), arrays(), num_rounds=2)
    for options, rounds, message in (
        ({"server_lr": 0.1}, 2, r"checkpoint: got another run's, now server_lr=0.1; expected .* server_lr=0.02. Or move round.safetensors"),
        ({"seed": 1}, 2, "now seed=1"),
        ({}, 3, "now num_rounds=3"),
        ({"threshold": "zero", "momentum": 0.5}, 2, "now momentum=0.5, threshold='zero'"),
    ):
        with pytest.raises(InputError, match=message):
            strategy(checkpoint=path, **options).start(LocalGrid(app_of(), 5), arrays(), num_rounds=rounds)
    other = ArrayRecord({"w": Array(np.zeros(19, np.float32))})
    with pytest.raises(InputError, match="got another model's; expected the names, shapes and dtypes of initial_arrays"):
        strategy(checkpoint=path).start(LocalGrid(app_of(), 5), other, num_rounds=2)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_file_that_is_no_checkpoint(content, tmp_path) -> None:
    path = tmp_path / "round.safetensors"
    path.write_bytes(content)
    with pytest.raises(StoreError, match="is no checkpoint of a federated training"):
        strategy(checkpoint=path).start(LocalGrid(app_of(), 5), arrays(), num_rounds=1)


def test_a_folder_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        strategy(checkpoint=tmp_path / "file" / "round.safetensors").start(LocalGrid(app_of(), 5), arrays(), num_rounds=1)


def test_a_state_comes_back_as_it_was(tmp_path) -> None:
    weights = {"b": np.arange(3, dtype=np.float16), "a": np.array(7), "c": np.zeros((0, 2), np.float32)}
    state = RoundState(4, weights, np.linspace(0, 1, 3), {"seed": 1, "keep": ["x*"]}, training="of today")
    state.metrics["server"][4] = {"f1": 0.1 + 0.2}
    state.save(tmp_path / "folder" / "state")
    found = RoundState.load(tmp_path / "folder" / "state")
    assert list(found.weights) == ["b", "a", "c"]  # the order of the model
    assert all(np.array_equal(found.weights[name], value) and found.weights[name].dtype == value.dtype for name, value in weights.items())
    assert (
        np.array_equal(found.momentum, state.momentum)
        and found.training == "of today"
        and (found.server_round, found.options, found.metrics)
        == (
            4,
            state.options,
            state.metrics,
        )
    )
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["state"]
    assert RoundState.load(tmp_path / "none") is None


def test_the_same_object_can_be_started_again() -> None:
    chosen = strategy()
    first = chosen.start(LocalGrid(app_of(), 5), arrays(), num_rounds=2)
    second = chosen.start(LocalGrid(app_of(), 5), arrays(), num_rounds=2)
    assert np.array_equal(flat(first.arrays), flat(second.arrays))
