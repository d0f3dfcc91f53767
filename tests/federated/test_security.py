"""What the server sees and holds, and what it does with messages that are not what they should be."""

from __future__ import annotations

import copy
import gc
import io
import re
import struct
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("flwr")
pytest.importorskip("phe")

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from phe import paillier

from counterpoise.federated import PaillierAggregator, PaillierKeyHolder, SlotCodec
from counterpoise.federated._local_grid import LocalGrid
from counterpoise.gradients import median_binarize
from tests.federated.apps import app_of, arrays, drawn, strategy
from tests.federated.test_strategy import arrays_of_floats, by_hand, flat

RECORD, ROWS = "edgedetect", "edgedetect.rows"


def stage_of(question: Message) -> str:
    return question.content[RECORD]["stage"]


def private_key(grid: LocalGrid) -> paillier.PaillierPrivateKey:
    (kept,) = (context.state["edgedetect.key"] for context in grid.contexts.values() if "edgedetect.key" in context.state)
    p, q = (int.from_bytes(kept[part], "big") for part in ("p", "q"))
    return paillier.PaillierPrivateKey(paillier.PaillierPublicKey(p * q), p, q)


# ---- what it sees -----------------------------------------------------------------------------------------------------------------------


def test_no_single_update_arrives_in_readable_form() -> None:
    stages: list[str] = []

    def wire(question, answer):
        stages.append(stage_of(question))
        return [answer]

    grid = LocalGrid(app_of(), 5, wire)
    strategy(threshold="zero").start(grid, arrays(), num_rounds=2)
    assert stages == ["key", *["train"] * 5, "decrypt", *["train"] * 5, "decrypt"]
    key, codec = private_key(grid), SlotCodec(5, 256)
    weights = {name: array.numpy() for name, array in arrays().items()}
    for stage, message in zip(stages, grid.arrived, strict=True):
        found = [array.numpy() for record in message.content.array_records.values() for array in record.values()]
        if stage == "key":
            assert not found and set(message.content) == {RECORD} and set(message.content[RECORD]) == {"modulus", "token", "last_round"}
        elif stage == "decrypt":
            (total,) = found
            assert total.dtype == np.int32 and np.abs(total).max() <= 5 and set(message.content) == {RECORD, ROWS}
        else:
            (rows,) = found
            assert set(message.content) == {RECORD, ROWS, "metrics"}
            assert set(message.content[RECORD]) == {"server_round", "token", "fingerprint", "d"}
            assert rows.dtype == np.uint8 and rows.shape == (1, 64)
            # With the private key it would be this client's signs; without, bytes that are not the packed ones.
            client, server_round = message.metadata.src_node_id - 1000, message.content[RECORD]["server_round"]
            block = key.raw_decrypt(int.from_bytes(rows[0].tobytes(), "big"))
            signs = 2 * codec.decode([block], 19) - 1
            if server_round == 1:
                new = drawn(weights, client, 1)
                update = [torch.from_numpy(new[name] - weights[name]) for name in ("layer.weight", "layer.bias")]
                assert torch.equal(signs, median_binarize(update, "zero").int())
            assert block.to_bytes(32, "big")[8:] not in rows.tobytes() and rows.tobytes().count(0) < 8


def reachable(start: object) -> list[object]:
    """All that can be reached from an object, without classes and modules."""
    found, todo, seen = [], [start], set()
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, (type, ModuleType)) or callable(thing):
            continue
        seen.add(id(thing))
        found.append(thing)
        todo += gc.get_referents(thing)
    return found


def test_the_server_holds_no_private_key_and_no_single_vote(tmp_path) -> None:
    grid = LocalGrid(app_of(), 5)
    chosen = strategy(checkpoint=tmp_path / "round.safetensors")
    chosen.start(grid, arrays(), num_rounds=2)
    key = private_key(grid)
    votes = [message.content[ROWS][ROWS].numpy() for message in grid.arrived if ROWS in message.content]
    chosen._grid = None  # in this test the clients live in the grid
    held = reachable(chosen)
    assert not any(isinstance(thing, paillier.PaillierPrivateKey | PaillierKeyHolder) for thing in held)
    assert not {key.p, key.q} & {thing for thing in held if isinstance(thing, int)}
    assert key.public_key.n in [thing for thing in held if isinstance(thing, int)]  # the walk finds what is there
    blobs = [thing if isinstance(thing, bytes) else thing.tobytes() for thing in held if isinstance(thing, bytes | np.ndarray)]
    assert len(blobs) > 4
    saved = (tmp_path / "round.safetensors").read_bytes()
    for secret in (int(key.p).to_bytes(16, "big"), int(key.q).to_bytes(16, "big"), *(rows.tobytes() for rows in votes)):
        assert not any(secret in blob for blob in [*blobs, saved])


def test_the_client_refuses_to_send_its_update_to_another_strategy() -> None:
    grid = LocalGrid(app_of(), 5)
    FedAvg(fraction_evaluate=0.0).start(grid, arrays_of_floats(), num_rounds=1)
    assert len(grid.arrived) == 5 and all(message.has_error() for message in grid.arrived)
    assert "those of EdgeDetectStrategy. The update has not been sent." in grid.arrived[0].error.reason


# ---- messages that are refused ----------------------------------------------------------------------------------------------------------


def changed(answer: Message, question: Message, rows=None, **receipt) -> Message:
    """The answer with other rows or fields."""
    content = RecordDict({name: record for name, record in answer.content.items() if name not in (RECORD, ROWS)})
    content[RECORD] = ConfigRecord(dict(answer.content[RECORD]) | receipt)
    content[ROWS] = answer.content[ROWS] if rows is None else ArrayRecord({ROWS: Array(rows)})
    return Message(content, reply_to=question)


def of_bytes(question: Message, answer: Message, data: bytes) -> list[Message]:
    """The answer with other bytes where an array is expected."""
    record = ArrayRecord({ROWS: Array(dtype="uint8", shape=(1, 64), stype="numpy.ndarray", data=data)})
    return [Message(RecordDict({RECORD: answer.content[RECORD], ROWS: record}), reply_to=question)]


def npy(header: str) -> bytes:
    """The beginning of a file of NumPy's."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n"


class Attack:
    """Changes the answers of client 4 from the second round on; ``kind`` says how."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.old: Message | None = None
        self.other: Message | None = None

    def __call__(self, question: Message, answer: Message) -> list[Message]:
        if stage_of(question) != "train":
            return [answer]
        if answer.metadata.src_node_id != 1004:
            self.other = copy.deepcopy(answer)
            return [answer]
        if question.content[RECORD]["server_round"] == 1:
            self.old = copy.deepcopy(answer)
            return [answer]
        return getattr(self, self.kind)(question, answer)

    def replayed(self, question, answer):
        return [changed(self.old, question)]

    def replayed_with_a_new_receipt(self, question, answer):
        receipt = {name: answer.content[RECORD][name] for name in ("server_round", "token")}
        return [changed(self.old, question, **receipt)]

    def copied_from_another_client(self, question, answer):
        return [changed(answer, question, rows=self.other.content[ROWS][ROWS].numpy())]

    def with_a_guessed_token(self, question, answer):
        return [changed(answer, question, token=bytes(16))]

    def of_another_round(self, question, answer):
        return [changed(answer, question, server_round=1)]

    def truncated(self, question, answer):
        return [changed(answer, question, rows=answer.content[ROWS][ROWS].numpy()[:, :-1].copy())]

    def of_floats(self, question, answer):
        return [changed(answer, question, rows=np.ones(19, np.float32))]

    def no_ciphertext(self, question, answer):
        return [changed(answer, question, rows=np.zeros((1, 64), np.uint8))]

    def of_another_length(self, question, answer):
        return [changed(answer, question, d=18)]

    def with_fields_of_other_types(self, question, answer):
        return [changed(answer, question, d="19")]

    def with_fields_more(self, question, answer):
        return [changed(answer, question, weight=100)]

    def without_a_receipt(self, question, answer):
        return [Message(RecordDict({ROWS: answer.content[ROWS]}), reply_to=question)]

    def without_rows(self, question, answer):
        return [Message(RecordDict({RECORD: answer.content[RECORD]}), reply_to=question)]

    def with_weights_in_the_clear(self, question, answer):
        content = RecordDict({RECORD: answer.content[RECORD], ROWS: answer.content[ROWS], "arrays": arrays()})
        return [Message(content, reply_to=question)]

    def of_bytes_that_are_no_array(self, question, answer):
        return of_bytes(question, answer, b"nonsense")

    def of_a_broken_archive(self, question, answer):
        return of_bytes(question, answer, b"PK\x03\x04nonsense")

    def of_an_archive(self, question, answer):
        file = io.BytesIO()
        np.savez(file, rows=answer.content[ROWS][ROWS].numpy())
        return of_bytes(question, answer, file.getvalue())

    def of_a_petabyte(self, question, answer):
        return of_bytes(question, answer, npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({10**15},)}}"))

    def with_a_header_without_end(self, question, answer):
        return of_bytes(question, answer, npy("(" * 100))

    def under_another_key(self, question, answer):
        codec = SlotCodec(5, 256)
        stranger = PaillierAggregator(PaillierKeyHolder(codec, insecure=True).public_key, codec, insecure=True)
        votes = stranger.encrypt(torch.ones(19, dtype=torch.int8))
        return [changed(answer, question, rows=votes.rows, fingerprint=votes.fingerprint)]

    def in_the_clear(self, question, answer):
        return [changed(answer, question, rows=np.full((1, 3), 255, np.uint8), fingerprint="")]


REASONS = {
    "replayed": "an answer for round 1",
    "replayed_with_a_new_receipt": "ciphertexts that were sent before",
    "copied_from_another_client": "ciphertexts that were sent before",
    "with_a_guessed_token": "expected one to this node's question of round",
    "of_another_round": "an answer for round 1",
    "truncated": r"expected uint8 of shape \(1, 64\)",
    "of_floats": "got float32 of shape",
    "no_ciphertext": "a number that is no ciphertext",
    "of_another_length": "18 coordinates; expected the model's 19",
    "with_fields_of_other_types": "edgedetect.d: got 'str'; expected int",
    "with_fields_more": "fields .*'weight'",
    "without_a_receipt": r"fields \[\]",
    "without_rows": r"arrays \[\]",
    "with_weights_in_the_clear": "expected 'edgedetect.rows' alone",
    "of_bytes_that_are_no_array": "that cannot be read",
    "of_a_broken_archive": "that cannot be read .BadZipFile",
    "of_an_archive": "of type NpzFile",
    "of_a_petabyte": "that cannot be read",
    "with_a_header_without_end": "that cannot be read",
    "under_another_key": "message: got key .*; expected key",
    "in_the_clear": "message: got key ''; expected key",
}


def test_every_attack_has_its_reason() -> None:
    assert set(REASONS) == {name for name in vars(Attack) if not name.startswith("__")}


@pytest.mark.parametrize("kind", sorted(REASONS))
def test_a_message_that_is_not_what_it_should_be_is_refused_and_the_round_goes_on(kind) -> None:
    chosen = strategy(threshold="zero")
    result = chosen.start(LocalGrid(app_of(), 5, Attack(kind)), arrays(), num_rounds=2)
    ((server_round, node, reason),) = chosen.refused
    assert (server_round, node) == (2, 1004) and re.search(REASONS[kind], reason), reason
    rows = result.train_metrics_clientapp
    assert [(row["clients"], row["refused"], row["stepped"]) for row in rows.values()] == [(5, 0, 1), (4, 1, 1)]
    # The others' votes are what was counted.
    honest = strategy(threshold="zero", min_available_nodes=4)
    grid = LocalGrid(app_of(), 5)
    original = grid._answers
    grid._answers = lambda question: (
        [] if question.metadata.dst_node_id == 1004 and question.content[RECORD]["server_round"] == 2 else original(question)
    )
    assert np.array_equal(flat(result.arrays), flat(honest.start(grid, arrays(), num_rounds=2).arrays))


def test_a_second_answer_is_refused() -> None:
    chosen = strategy(threshold="zero")
    wire = lambda question, answer: [answer] * (2 if stage_of(question) == "train" else 1)  # noqa: E731
    result = chosen.start(LocalGrid(app_of(), 5, wire), arrays(), num_rounds=1)
    assert len(chosen.refused) == 5 and all("a second answer of node" in reason for _, _, reason in chosen.refused)
    np.testing.assert_allclose(flat(result.arrays), by_hand(1), rtol=1e-6)


def test_a_node_that_was_not_asked_is_refused() -> None:
    def wire(question, answer):
        if stage_of(question) == "train":
            answer.metadata.__dict__["_src_node_id"] += 100
        return [answer]

    chosen = strategy()
    result = chosen.start(LocalGrid(app_of(), 5, wire), arrays(), num_rounds=1)
    assert all("expected a node that was asked in this round" in reason for _, _, reason in chosen.refused)
    assert not flat(result.arrays).any()


@pytest.mark.parametrize("kind", ["too large", "the smallest number", "of another parity", "of another type", "of another round"])
def test_totals_that_cannot_be_are_refused(kind) -> None:
    def wire(question, answer):
        if stage_of(question) != "decrypt":
            return [answer]
        total = answer.content[ROWS][ROWS].numpy()
        change = {
            "too large": np.full_like(total, 7),
            "the smallest number": np.full_like(total, -(2**31)),
            "of another parity": total + 1,
            "of another type": total.astype(np.float64),
        }
        receipt = {"token": bytes(16)} if kind == "of another round" else {}
        return [changed(answer, question, rows=change.get(kind, total), **receipt)]

    # Four clients: the smallest number of 32 bits is even.
    result = strategy(4).start(LocalGrid(app_of(), 4, wire), arrays(), num_rounds=1)
    assert result.train_metrics_clientapp[1]["stepped"] == 0 and not flat(result.arrays).any()


def test_an_archive_in_place_of_votes_in_the_clear_is_refused() -> None:
    chosen = strategy(encrypt=False)
    result = chosen.start(LocalGrid(app_of(), 5, Attack("of_an_archive")), arrays(), num_rounds=2)
    assert [row["clients"] for row in result.train_metrics_clientapp.values()] == [5, 4] and "NpzFile" in chosen.refused[0][2]


def test_a_key_in_answer_to_another_question_is_refused() -> None:
    def wire(question, answer):
        if stage_of(question) == "key" and answer.metadata.src_node_id == 1000:
            answer.content[RECORD]["token"] = bytes(16)
        return [answer]

    grid = LocalGrid(app_of(), 5, wire)
    strategy().start(grid, arrays(), num_rounds=1)
    totals = [one for one in grid.arrived if ROWS in one.content and one.content[ROWS][ROWS].numpy().dtype == np.int32]
    assert [one.metadata.src_node_id for one in totals] == [1001]  # the next node holds the key


@pytest.mark.parametrize("examples", [[1, 2], -(10**9), float("nan"), float("inf")])
def test_a_number_of_examples_that_is_none_does_not_stop_the_round(examples) -> None:
    def wire(question, answer):
        if stage_of(question) == "train" and answer.metadata.src_node_id == 1004:
            answer.content["metrics"] = MetricRecord({"num-examples": examples, "loss": 1.0})
        return [answer]

    metrics = strategy().start(LocalGrid(app_of(), 5, wire), arrays(), num_rounds=1).train_metrics_clientapp[1]
    assert (metrics["clients"], metrics["stepped"]) == (5, 1) and "loss" not in metrics


def test_a_diverged_client_is_named_and_does_not_vote() -> None:
    def train(weights, client, server_round):
        new = drawn(weights, client, server_round)
        if client == 2:
            new["layer.bias"] = np.full(7, np.nan, np.float32)
        return new

    grid = LocalGrid(app_of(train), 5)
    result = strategy(threshold="zero").start(grid, arrays(), num_rounds=1)
    (error,) = (message.error.reason for message in grid.arrived if message.has_error())
    assert error.startswith("client 2, layer.bias: got nan or inf; expected finite weights.")
    np.testing.assert_allclose(flat(result.arrays), by_hand(1, clients=[0, 1, 3, 4]), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda new: {name: value for name, value in new.items() if name != "layer.bias"}, "client 0, reply: got arrays"),
        (lambda new: new | {"layer.bias": np.zeros(6, np.float32)}, r"client 0, layer.bias: got torch.float32 of shape \(6,\)"),
        (lambda new: new | {"layer.bias": np.zeros(7, np.int64)}, "client 0, layer.bias: got torch.int64"),
    ],
)
def test_another_model_than_the_one_that_was_sent(change, message) -> None:
    grid = LocalGrid(app_of(lambda weights, client, server_round: change(drawn(weights, client, server_round))), 5)
    strategy().start(grid, arrays(), num_rounds=1)
    reason = next(one.error.reason for one in grid.arrived if one.has_error())
    assert re.search(message, reason), reason


# ---- the key holder ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clients": 2}, "2 clients; expected at least 3"),
        ({"clients": 6}, "6 clients; expected at most"),
        ({"modulus": b"\x01" * 32}, "a total under another key"),
        ({"stage": "all keys"}, "edgedetect.stage"),
        ({}, "server_round: got 1; expected a round after 1"),  # a second total of the round
    ],
)
def test_the_key_holder_answers_one_question_in_a_round(change, message) -> None:
    asked: list[Message] = []
    grid = LocalGrid(app_of(), 5, lambda question, answer: asked.append(question) or [answer])
    strategy().start(grid, arrays(), num_rounds=1)
    (question,) = (one for one in asked if stage_of(one) == "decrypt")
    question.content[RECORD] = ConfigRecord(dict(question.content[RECORD]) | change)
    with pytest.raises(ValueError, match=message):
        grid.app(question, grid.contexts[1000])


def test_a_node_without_a_key_decrypts_nothing() -> None:
    asked: list[Message] = []
    grid = LocalGrid(app_of(), 5, lambda question, answer: asked.append(question) or [answer])
    strategy().start(grid, arrays(), num_rounds=1)
    (question,) = (one for one in asked if stage_of(one) == "decrypt")
    with pytest.raises(ValueError, match="The server has asked the wrong node"):
        grid.app(question, grid.contexts[1003])
