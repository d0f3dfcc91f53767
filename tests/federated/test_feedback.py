from __future__ import annotations

import math
import stat
from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("flwr")
pytest.importorskip("phe")

import counterpoise.federated._mod as module
from counterpoise._errors import InputError
from counterpoise.federated import edgedetect_mod
from counterpoise.federated._feedback import Residual, vote_with_feedback
from counterpoise.federated._local_grid import LocalGrid
from tests.federated.apps import app_of, arrays, drawn, strategy
from tests.federated.test_strategy import NAMES, flat


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_residual_is_what_the_votes_did_not_say() -> None:
    update = [torch.tensor([[3.0, -1.0], [0.5, -0.5]]), torch.tensor([10.0, -30.0, 5.0])]
    residual = [torch.tensor([[0.0, 2.0], [-2.5, 0.0]]), torch.tensor([0.0, 0.0, -15.0])]
    signs, rest = vote_with_feedback(update, residual, "zero", "random", draw())
    assert signs.tolist() == [1, 1, -1, -1, 1, -1, -1] and signs.dtype == torch.int8
    # The sums are 3, 1, -2, -0.5 and 10, -30, -10: scales of 1.625 and 50 / 3, one for each tensor.
    torch.testing.assert_close(rest[0], torch.tensor([[1.375, -0.625], [-0.375, 1.125]]))
    torch.testing.assert_close(rest[1], torch.tensor([-20 / 3, -40 / 3, 20 / 3]))


def test_updates_are_votes_times_scales_and_what_is_left() -> None:
    """Nothing is lost over rounds, and a coordinate that is small, but always of one sign, is heard as often as it should be."""
    rounds, rest, said = 400, [torch.zeros(40)], torch.zeros(40)
    updates = torch.randn(rounds, 40, generator=draw())
    updates[:, 0] = 0.05
    plain = 0
    for update in updates:
        whole = update + rest[0]
        signs, rest = vote_with_feedback([update], rest, "zero", "random", draw())
        said += whole.abs().mean() * signs
        plain += int(signs[0])
    torch.testing.assert_close(said + rest[0], updates.sum(dim=0), rtol=1e-4, atol=1e-3)
    assert rest[0].abs().max() < 10 and plain < 0.2 * rounds  # without feedback it would vote +1 in every round


def test_a_residual_belongs_to_its_training_and_its_round() -> None:
    before, after = [torch.arange(3.0), torch.ones(0, 2)], [torch.ones(3).double(), torch.zeros(0, 2)]
    found = Residual.from_bytes(Residual("a", 4, before, after).to_bytes())
    assert (found.training, found.server_round) == ("a", 4)
    for at, wanted in ((4, before), (5, after), (9, after)):
        kept = found.at("a", at)
        assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(kept, wanted, strict=True))
    assert found.at("a", 3) is None and found.at("b", 5) is None


def archive_with(place: int) -> bytes:
    """A residual whose archive has another byte at this place of its first entry in the directory."""
    content = bytearray(Residual("a", 4, [torch.ones(3)], [torch.ones(3)]).to_bytes())
    content[content.index(b"PK\x01\x02") + place] ^= 1
    return bytes(content)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04nonsense", *(archive_with(place) for place in (8, 10, 16))])
def test_a_file_that_is_no_residual(content) -> None:
    with pytest.raises(InputError, match="residual: got what cannot be read"):
        Residual.from_bytes(content)


def test_a_client_whose_residual_is_broken_fails_and_names_the_file(tmp_path) -> None:
    (tmp_path / "residual-2.npz").write_bytes(b"nonsense")
    grid = LocalGrid(app_of(mods=[partial(edgedetect_mod, folder=tmp_path)]), 5)
    assert strategy(error_feedback=True).start(grid, arrays(), num_rounds=1).train_metrics_clientapp[1]["clients"] == 4
    (reason,) = (answer.error.reason for answer in grid.arrived if answer.has_error())
    assert "residual-2.npz: got what cannot be read" in reason and stat.S_IMODE((tmp_path / "residual-1.npz").stat().st_mode) == 0o600


def test_a_residual_stays_in_its_folder_whatever_the_client_is_called(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "client_name", lambda context: f"../../{context.node_id}")
    grid = LocalGrid(app_of(mods=[partial(edgedetect_mod, folder=tmp_path / "own")]), 5)
    result = strategy(error_feedback=True).start(grid, arrays(), num_rounds=2)
    assert result.train_metrics_clientapp[2]["clients"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["own"] and len(list((tmp_path / "own").glob("residual-*.npz"))) == 5


def failing_once(weights, client, server_round):
    if (client, server_round) == (3, 2):
        raise RuntimeError("out of battery")
    return drawn(weights, client, server_round)


def losing_once(question, answer):
    about = question.content["edgedetect"]
    return [] if (about["stage"], about["server_round"], question.metadata.dst_node_id) == ("train", 2, 1004) else [answer]


def by_hand(rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and the residuals (5, d) after them, if client 3 fails in round 2 and the answer of client 4 is lost."""
    weights = {name: array.numpy() for name, array in arrays().items()}
    residual = {k: {name: np.zeros_like(weights[name]) for name in NAMES} for k in range(5)}
    for r in range(1, rounds + 1):
        total, counted = {name: np.zeros(weights[name].shape) for name in NAMES}, 0
        for k in range(5):
            if (k, r) == (3, 2):
                continue
            new = drawn(weights, k, r)
            for name in NAMES:
                whole = new[name] - weights[name] + residual[k][name]
                signs = np.where(whole > 0, 1, -1)
                residual[k][name] = whole - np.abs(whole).mean() * signs
                total[name] += 0 if (k, r) == (4, 2) else signs
            counted += (k, r) != (4, 2)
        rate = 2e-2 * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (r - 1) / (rounds - 1))))
        for name in NAMES:
            weights[name] = (weights[name] + rate * total[name] / counted).astype(np.float32)
    flattened = [np.concatenate([part[name].ravel() for name in NAMES]) for part in (weights, *residual.values())]
    return flattened[0], np.stack(flattened[1:])


def test_a_training_keeps_the_residual_of_each_client(tmp_path) -> None:
    """One that failed has the residual of the round before; one whose vote was lost has moved on."""
    weights, residuals = by_hand(4)
    for mod, in_files in ((edgedetect_mod, False), (partial(edgedetect_mod, folder=tmp_path), True)):
        grid = LocalGrid(app_of(failing_once, mods=[mod]), 5, losing_once)
        result = strategy(threshold="zero", error_feedback=True).start(grid, arrays(), num_rounds=4)
        assert [row["clients"] for row in result.train_metrics_clientapp.values()] == [5, 3, 5, 5]
        np.testing.assert_allclose(flat(result.arrays), weights, rtol=1e-5, atol=1e-7)
        for k, wanted in enumerate(residuals):
            state = grid.contexts[1000 + k].state
            assert ("edgedetect.residual" in state) != in_files
            kept = (tmp_path / f"residual-{k}.npz").read_bytes() if in_files else state["edgedetect.residual"]["npz"]
            found = Residual.from_bytes(kept)
            np.testing.assert_allclose(np.concatenate([part.numpy().ravel() for part in found.after]), wanted, rtol=1e-4, atol=1e-5)
    without = strategy(threshold="zero").start(LocalGrid(app_of(failing_once), 5, losing_once), arrays(), num_rounds=4)
    assert not np.allclose(flat(without.arrays), weights, rtol=1e-3, atol=1e-4)


def test_clients_that_are_not_drawn_keep_their_residual() -> None:
    grid = LocalGrid(app_of(), 8)
    strategy(4, error_feedback=True).start(grid, arrays(), num_rounds=6)
    asked = {node: Residual.from_bytes(context.state["edgedetect.residual"]["npz"]) for node, context in grid.contexts.items()}
    assert {one.server_round for one in asked.values()} >= {5, 6}  # the round of each client's last vote
    before = asked[min(asked, key=lambda node: asked[node].server_round)]
    assert before.server_round < 6 and before.at(before.training, 7) is before.after


def test_another_training_begins_without_residuals() -> None:
    grid = LocalGrid(app_of(), 5)
    chosen = strategy(error_feedback=True)
    first, second = (chosen.start(grid, arrays(), num_rounds=3) for _ in range(2))
    assert np.array_equal(flat(first.arrays), flat(second.arrays))


def test_a_round_that_is_asked_again_begins_as_it_did(tmp_path) -> None:
    """The server has a decrypted total, but stops before it has kept the round; the nodes go on as they are."""
    uninterrupted = strategy(error_feedback=True).start(LocalGrid(app_of(), 5), arrays(), num_rounds=4)
    grid, path = LocalGrid(app_of(), 5), tmp_path / "round.safetensors"
    chosen = strategy(error_feedback=True, checkpoint=path)
    save = chosen._save

    def stopped() -> None:
        if chosen._state.server_round == 3:
            raise KeyboardInterrupt
        save()

    chosen._save = stopped
    with pytest.raises(KeyboardInterrupt):
        chosen.start(grid, arrays(), num_rounds=4)
    resumed = strategy(error_feedback=True, checkpoint=path).start(grid, arrays(), num_rounds=4)
    assert [row["stepped"] for row in resumed.train_metrics_clientapp.values()] == [1, 1, 1, 1]
    assert np.array_equal(flat(resumed.arrays), flat(uninterrupted.arrays))


def test_residuals_and_scales_stay_with_the_client() -> None:
    plain, fed = LocalGrid(app_of(), 5), LocalGrid(app_of(), 5)
    for grid, error_feedback in ((plain, False), (fed, True)):
        strategy(error_feedback=error_feedback).start(grid, arrays(), num_rounds=2)
    forms = [
        [sorted((name, sorted(record)) for name, record in message.content.items()) for message in grid.arrived] for grid in (plain, fed)
    ]
    assert forms[0] == forms[1]  # the server gets the same fields, and votes of as many bytes
    assert [len(m.content["edgedetect.rows"]["edgedetect.rows"].data) for m in fed.arrived if "metrics" in m.content] == [192] * 10
    assert any("edgedetect.residual" in context.state for context in fed.contexts.values())
    assert not any("edgedetect.residual" in context.state for context in plain.contexts.values())
