"""Whose key clients encrypt for, what its holder decrypts, and what becomes of a training whose totals cannot be decrypted."""

from __future__ import annotations

import json
import re
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

pytest.importorskip("flwr")
pytest.importorskip("phe")

import torch
from flwr.app import ConfigRecord

import counterpoise.federated._paillier as paillier
from counterpoise._errors import CounterpoiseError, InputError, StoreError
from counterpoise.federated import EdgeDetectStrategy, EncryptedVotes, PaillierAggregator, PaillierKeyHolder, SlotCodec, edgedetect_mod
from counterpoise.federated._local_grid import LocalGrid
from counterpoise.federated._records import bytes_of
from tests.federated.apps import TINY, app_of, arrays, drawn, strategy
from tests.federated.test_security import RECORD, ROWS, changed, stage_of
from tests.federated.test_strategy import by_hand, flat

CODEC = SlotCodec(5, 256)


def app(**options):
    return app_of(mods=[partial(edgedetect_mod, **options)])


def steps(result) -> list[int]:
    return [row["stepped"] for row in result.train_metrics_clientapp.values()]


def asking(grid: LocalGrid, change) -> LocalGrid:
    """A grid whose server changes its questions: ``change(question)`` in place, False to send nothing."""
    original = grid._answers
    grid._answers = lambda question: [] if change(question) is False else original(question)
    return grid


def modulus_of(grid: LocalGrid) -> list[bytes]:
    """Of the keys that nodes have made or given again."""
    return [answer.content[RECORD]["modulus"] for answer in grid.arrived if kind_of(answer) == "key"]


# ---- clients ----------------------------------------------------------------------------------------------------------------------------


class OwnKey:
    """A server that gives clients its own key, from a round on, and could read single votes."""

    def __init__(self, since: int) -> None:
        self.since = since
        self.holder = PaillierKeyHolder(CODEC, insecure=True)

    def __call__(self, question) -> None:
        about = question.content[RECORD]
        if about["stage"] == "train" and about["server_round"] >= self.since:
            question.content[RECORD] = ConfigRecord(dict(about) | {"modulus": bytes_of(self.holder.public_key.n)})


def kind_of(answer) -> str:
    if answer.has_error():
        return "error"
    if "modulus" in answer.content[RECORD]:
        return "key"
    return "total" if answer.content[ROWS][ROWS].numpy().dtype == np.int32 else "votes"


def votes_since(grid: LocalGrid, since: int) -> int:
    return sum(kind_of(answer) == "votes" and answer.content[RECORD]["server_round"] >= since for answer in grid.arrived)


def test_a_key_that_has_changed_is_refused_before_anything_is_sent() -> None:
    trained = []

    def train(weights, client, server_round):
        trained.append(server_round)
        return drawn(weights, client, server_round)

    evil = OwnKey(since=2)
    grid = asking(LocalGrid(app_of(train), 5), evil)
    result = strategy().start(grid, arrays(), num_rounds=3)
    assert steps(result) == [1, 0, 0] and votes_since(grid, 2) == 0 and set(trained) == {1}
    reasons = {message.error.reason for message in grid.arrived if message.has_error()}
    for reason in reasons:
        assert re.fullmatch(
            rf"client \d: got key {evil.holder.fingerprint}; expected key [0-9a-f]{{32}}, as in its first round\. Nothing was sent\. "
            "Ask the key holder, not the server, .*", reason,
        ), reason  # fmt: skip


@pytest.mark.parametrize("since", [1, 2])
def test_a_pinned_key_is_the_only_one(since, tmp_path) -> None:
    """The first round is where trust on first use is blind."""
    holder = PaillierKeyHolder(CODEC, file=tmp_path / "key.json", insecure=True)
    pinned = app(trusted_key=holder.fingerprint, folder=tmp_path)
    assert steps(strategy().start(LocalGrid(pinned, 5), arrays(), num_rounds=3)) == [1, 1, 1]
    grid = asking(LocalGrid(pinned, 5), OwnKey(since))
    result = strategy().start(grid, arrays(), num_rounds=3)
    assert steps(result) == [1, 1, 1][: since - 1] + [0] * (4 - since) and votes_since(grid, since) == 0
    assert f"expected key {holder.fingerprint}. Nothing was sent." in next(one.error.reason for one in grid.arrived if one.has_error())
    blind = asking(LocalGrid(app(folder=tmp_path), 5), OwnKey(1))
    strategy().start(blind, arrays(), num_rounds=1)
    assert votes_since(blind, 1) == 5


def test_several_keys_may_be_trusted(tmp_path) -> None:
    holders = [PaillierKeyHolder(CODEC, file=tmp_path / str(k) / "key.json", insecure=True) for k in (0, 1)]
    trusted = [one.fingerprint for one in holders]

    def mod(msg, context, call_next):
        return edgedetect_mod(msg, context, call_next, trusted_key=trusted, folder=tmp_path / str(context.node_config["partition-id"]))

    grid = LocalGrid(app_of(mods=[mod]), 5)

    def leave(question):
        if question.content[RECORD]["server_round"] == 2:
            grid.contexts.pop(1000, None)

    result = strategy().start(asking(grid, leave), arrays(), num_rounds=4)
    assert steps(result) == [1, 0, 1, 1] and set(modulus_of(grid)) == {bytes_of(one.public_key.n) for one in holders}


@pytest.mark.parametrize("trusted", ["first", "0" * 32])
def test_a_request_to_vote_in_the_clear_is_a_change_of_key(trusted) -> None:
    def clear(question):
        about = question.content[RECORD]
        if about["stage"] == "train" and about["server_round"] == 2:
            question.content[RECORD] = ConfigRecord(dict(about) | {"modulus": b""})

    grid = asking(LocalGrid(app(trusted_key=trusted), 5), clear)
    strategy().start(grid, arrays(), num_rounds=2)
    assert votes_since(grid, 2) == 0
    assert "got votes in the clear; expected key" in [message.error.reason for message in grid.arrived if message.has_error()][-1]
    # Who has begun in the clear is not asked for ciphertexts either, and trains.
    grid = LocalGrid(app(), 5)
    assert steps(strategy(encrypt=False).start(grid, arrays(), num_rounds=2)) == [1, 1]
    assert steps(strategy().start(grid, arrays(), num_rounds=1)) == [0]


@pytest.mark.parametrize("trusted", ["frist", "", [], ["first"], "0" * 31, [b"0" * 32], None])
def test_what_is_no_fingerprint(trusted) -> None:
    words = 'expected "first", "any", or fingerprints of 32 hexadecimal digits'
    with pytest.raises(CounterpoiseError, match=f"5 nodes did not make one.* The last: node 1004: trusted_key: got .*{words}"):
        strategy().start(LocalGrid(app(trusted_key=trusted), 5), arrays(), num_rounds=1)


# ---- the node that holds the key --------------------------------------------------------------------------------------------------------


def test_a_node_makes_its_key_once() -> None:
    """Also for another training, whose rounds begin again."""
    grid = LocalGrid(app_of(), 5)
    found = [strategy(threshold="zero").start(grid, arrays(), num_rounds=rounds) for rounds in (3, 2)]
    assert [steps(result) for result in found] == [[1, 1, 1], [1, 1]]
    assert len(modulus_of(grid)) == 2 and len(set(modulus_of(grid))) == 1
    assert grid.contexts[1000].state["edgedetect.key"]["last_round"] == 5
    np.testing.assert_allclose(flat(found[1].arrays), by_hand(2), rtol=1e-6)


@pytest.mark.parametrize(
    ("lost", "holder", "wanted", "asked"),
    [
        ({("decrypt", 1)}, 1000, [0, 1, 1], [1000, 1000]),
        ({("key", 1), ("decrypt", 2)}, 1001, [1, 0, 1], [1000, 1001, 1001]),  # the first node could not; then it is not asked again
    ],
)
def test_a_key_holder_whose_answer_is_lost_is_asked_again(lost, holder, wanted, asked) -> None:
    seen = []

    def wire(question, answer):
        stage = stage_of(question)
        seen.append((stage, question.metadata.dst_node_id))
        return [] if (stage, [other for other, _ in seen].count(stage)) in lost else [answer]

    grid = LocalGrid(app_of(), 5, wire)
    assert steps(strategy().start(grid, arrays(), num_rounds=3)) == wanted
    assert {node for stage, node in seen if stage == "decrypt"} == {holder}
    assert [node for stage, node in seen if stage == "key"] == asked


def test_a_key_holder_that_was_away_is_found_again() -> None:
    grid = LocalGrid(app_of(), 5)
    away = {}

    class Watched(EdgeDetectStrategy):
        def configure_train(self, server_round, *given):
            if server_round == 2:
                away[1000] = grid.contexts.pop(1000)
            if server_round == 3:
                grid.contexts.update(away)
            return super().configure_train(server_round, *given)

    result = Watched(5, **TINY).start(grid, arrays(), num_rounds=4)
    assert steps(result) == [1, 0, 1, 1]  # nobody voted under the key of the node that stood in


@pytest.mark.parametrize(("trusted", "wanted"), [("first", [1, 0, 0, 0]), ("any", [1, 1, 1, 1])])
def test_a_key_holder_that_is_gone_takes_the_trust_with_it(trusted, wanted) -> None:
    grid = LocalGrid(app(trusted_key=trusted), 5)

    class Leaving(EdgeDetectStrategy):
        def aggregate_train(self, server_round, replies):
            done = super().aggregate_train(server_round, replies)
            if server_round == 1:
                del grid.contexts[1000]
            return done

    chosen = Leaving(5, **TINY)
    result = chosen.start(grid, arrays(), num_rounds=4)
    assert steps(result) == wanted
    assert [row["clients"] for row in result.train_metrics_clientapp.values()] == [5] + [4 * step for step in wanted[1:]]
    assert chosen._holder == (1001 if trusted == "any" else None)
    if trusted == "first":
        with pytest.raises(
            CounterpoiseError,
            match=r"2 rounds in a row made no step; why the last one, 2, did not: 0 votes; 3 are needed\. client \d: got key",
        ):
            strategy(patience=2, min_available_nodes=4).start(grid, arrays(), num_rounds=4)


@pytest.mark.parametrize("last", [-1, 2**63 - 1, "0", None])
def test_a_key_with_a_round_that_is_none_is_refused(last) -> None:
    def wire(question, answer):
        if stage_of(question) == "key" and answer.metadata.src_node_id == 1000:
            answer.content[RECORD] = ConfigRecord(
                {k: v for k, v in (dict(answer.content[RECORD]) | {"last_round": last}).items() if v is not None}
            )
        return [answer]

    grid = LocalGrid(app_of(), 5, wire)
    assert steps(strategy().start(grid, arrays(), num_rounds=1)) == [1] and len(modulus_of(grid)) == 2


# ---- the holder's file ------------------------------------------------------------------------------------------------------------------


def total_of(holder: PaillierKeyHolder, seed: int):
    votes = 2 * torch.randint(0, 2, (3, 40), generator=torch.Generator().manual_seed(seed), dtype=torch.int8) - 1
    server = PaillierAggregator(holder.public_key, CODEC, insecure=True)
    return server.add([server.encrypt(own) for own in votes]), votes.sum(dim=0, dtype=torch.int32)


def test_a_key_and_its_rounds_are_kept_in_a_file(tmp_path) -> None:
    file = tmp_path / "holder" / "key.json"
    first = PaillierKeyHolder(CODEC, file=file, insecure=True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and not list(file.parent.glob("*.new"))
    total, wanted = total_of(first, 0)
    assert torch.equal(first.decrypt(total, 3), wanted)
    second, beside = (PaillierKeyHolder(CODEC, file=str(file), insecure=True) for _ in range(2))
    assert (second.fingerprint, second.last_round) == (first.fingerprint, 3)
    total, wanted = total_of(second, 1)
    with pytest.raises(InputError, match="server_round: got 3; expected a round after 3"):
        second.decrypt(total, 3)
    assert torch.equal(second.decrypt(total, np.int64(4)), wanted)
    with pytest.raises(InputError, match="server_round: got 4; expected a round after 4"):
        beside.decrypt(total, 4)
    own = PaillierKeyHolder(CODEC, first._private_key, file=tmp_path / "own.json", insecure=True)  # a key made elsewhere
    assert own.fingerprint == first.fingerprint == PaillierKeyHolder(CODEC, file=tmp_path / "own.json", insecure=True).fingerprint


def test_of_two_that_ask_at_once_one_gets_the_total_of_a_round(tmp_path, monkeypatch) -> None:
    def slowly(file):
        found = read(file)
        time.sleep(0.1)  # between reading the last round and writing it
        return found

    holders = [PaillierKeyHolder(CODEC, file=tmp_path / "key.json", insecure=True) for _ in range(3)]
    total, _ = total_of(holders[0], 0)
    read = paillier._read_key
    monkeypatch.setattr(paillier, "_read_key", slowly)
    with ThreadPoolExecutor(3) as threads:
        asked = [threads.submit(holder.decrypt, total, 1) for holder in holders]
    assert [type(one.exception()) for one in asked if one.exception()] == [InputError, InputError]


def test_a_file_with_another_key(tmp_path) -> None:
    file = tmp_path / "key.json"
    first = PaillierKeyHolder(CODEC, file=file, insecure=True)
    with pytest.raises(InputError, match=r"private_key: got a key; expected none, since .*key.json has one"):
        PaillierKeyHolder(CODEC, first._private_key, file=file, insecure=True)
    with pytest.raises(InputError, match="a modulus of 256 bits; expected the codec's 512"):
        PaillierKeyHolder(SlotCodec(5, 512), file=file, insecure=True)
    kept = json.loads(file.read_text())
    for content in ("", "nonsense", "[]", '{"p": "5"}', json.dumps(kept | {"p": 7}), json.dumps(kept | {"q": kept["p"]})):
        file.write_text(content)
        with pytest.raises(StoreError, match="holds no key of a key holder"):
            PaillierKeyHolder(CODEC, file=file, insecure=True)


def test_a_round_is_used_up_before_anything_is_known(tmp_path) -> None:
    holder = PaillierKeyHolder(CODEC, file=tmp_path / "key.json", insecure=True)
    total = EncryptedVotes(stuffed_rows(holder.public_key.n, 40), 40, 3, holder.fingerprint)
    with pytest.raises(InputError, match="encryption hides which one: train without some of them to find it") as refused:
        holder.decrypt(total, 1)
    assert refused.value.__cause__ is None and "block" not in str(refused.value)  # nothing about where it was
    assert PaillierKeyHolder(CODEC, file=tmp_path / "key.json", insecure=True).last_round == 1


@pytest.mark.parametrize("server_round", [0, -1, 1.5, None, True])
def test_a_round_is_a_number_from_1(server_round) -> None:
    holder = PaillierKeyHolder(CODEC, insecure=True)
    total, _ = total_of(holder, 0)
    with pytest.raises(InputError, match="server_round: got"):
        holder.decrypt(total, server_round)
    with pytest.raises(TypeError, match="server_round"):
        holder.decrypt(total)


# ---- clients that break the protocol ----------------------------------------------------------------------------------------------------


def stuffed_rows(n: int, d: int) -> np.ndarray:
    """A ciphertext with 7 in each of d slots of 3 bits."""
    import gmpy2

    block = sum(7 << 3 * i for i in range(d))
    number = int(gmpy2.powmod(11, int(n), int(n) ** 2) * (1 + n * block) % (int(n) ** 2))
    return np.frombuffer(number.to_bytes(64, "big"), dtype=np.uint8)[None]


class Stuffing:
    """Client 4 encrypts large numbers in the rounds that ``when`` says."""

    def __init__(self, when) -> None:
        self.when = when

    def __call__(self, question, answer):
        about = question.content[RECORD]
        if stage_of(question) != "train" or answer.metadata.src_node_id != 1004 or not self.when(about["server_round"]):
            return [answer]
        n = int.from_bytes(about["modulus"], "big")
        # Another factor each time, so that it is no replay.
        number = int.from_bytes(stuffed_rows(n, 19).tobytes(), "big") * pow(about["server_round"] + 1, n, n * n) % (n * n)
        return [changed(answer, question, rows=np.frombuffer(number.to_bytes(64, "big"), dtype=np.uint8)[None].copy())]


def test_a_round_that_cannot_be_counted_makes_no_step_and_no_new_key() -> None:
    grid = LocalGrid(app_of(), 5, Stuffing(lambda at: at in (2, 3)))
    result = strategy(patience=3).start(grid, arrays(), num_rounds=4)
    assert steps(result) == [1, 0, 0, 1] and len(set(modulus_of(grid))) == 1
    assert [kind_of(answer) for answer in grid.arrived].count("total") == 2  # nothing of the others was told


def test_a_total_that_cannot_be_uses_up_its_round() -> None:
    """The key holder answers with an error, since Flower forgets what an app that raises has changed in its state."""
    asked = []
    grid = asking(LocalGrid(app_of(), 5, Stuffing(lambda at: at == 2)), asked.append)
    strategy().start(grid, arrays(), num_rounds=2)
    holder = grid.contexts[1000]
    assert holder.state["edgedetect.key"]["last_round"] == 2
    first, second = (question for question in asked if stage_of(question) == "decrypt")
    with pytest.raises(InputError, match="server_round: got 2; expected a round after 2"):
        grid.app(second, holder)
    second.content[RECORD] = ConfigRecord(dict(second.content[RECORD]) | {"server_round": 3})
    answer = grid.app(second, holder)
    assert answer.has_error() and "more votes than clients" in answer.error.reason
    assert holder.state["edgedetect.key"]["last_round"] == 3
    first.content[RECORD] = ConfigRecord(dict(first.content[RECORD]) | {"server_round": 3})
    with pytest.raises(InputError, match="expected a round after 3"):
        grid.app(first, holder)


def test_a_client_that_stops_every_round_ends_the_training_with_advice(tmp_path) -> None:
    path = tmp_path / "round.safetensors"
    grid = LocalGrid(app_of(), 5, Stuffing(lambda at: at > 1))
    with pytest.raises(
        CounterpoiseError,
        match=r"3 rounds in a row made no step; why the last one, 4, did not: the total was not decrypted: node 1000: total: got a "
        r"slot that counts more votes than clients; .* train without some of them to find it\.",
    ):
        strategy(checkpoint=path, patience=3).start(grid, arrays(), num_rounds=6)
    assert [kind_of(answer) for answer in grid.arrived].count("votes") == 20
    # The same command goes on, without that client.
    without = LocalGrid(app_of(), 4)
    result = strategy(checkpoint=path, patience=3, min_available_nodes=4).start(without, arrays(), num_rounds=6)
    assert steps(result) == [1, 0, 0, 0, 1, 1]


def test_rounds_without_a_step_are_counted_in_a_row() -> None:
    grid = LocalGrid(app_of(), 5, Stuffing(lambda at: at % 3 != 0))
    assert steps(strategy(patience=3).start(grid, arrays(), num_rounds=7)) == [0, 0, 1, 0, 0, 1, 0]
    with pytest.raises(InputError, match="patience: got 0"):
        strategy(patience=0)
