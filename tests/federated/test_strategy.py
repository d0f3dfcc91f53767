from __future__ import annotations

import math
import random

import numpy as np
import pytest

pytest.importorskip("flwr")
pytest.importorskip("phe")

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import FedAvg

from counterpoise._errors import CounterpoiseError, InputError
from counterpoise.federated import EdgeDetectStrategy
from counterpoise.federated._local_grid import LocalGrid
from counterpoise.gradients import BinaryVote
from tests.federated.apps import TINY, app_of, arrays, drawn, strategy

NAMES = ("layer.weight", "layer.bias")


def flat(record: ArrayRecord) -> np.ndarray:
    return np.concatenate([record[name].numpy().ravel() for name in NAMES])


def by_hand(rounds: int, clients=range(5), lr=2e-2, momentum=0.0, aggregate="mean", threshold="zero") -> np.ndarray:
    """The same training with an aggregator of rows, in the clear."""
    weights = {name: array.numpy() for name, array in arrays().items()}
    velocity: np.ndarray | float = 0.0
    for r in range(1, rounds + 1):
        trained = [drawn(weights, k, r) for k in clients]
        rows = np.stack([np.concatenate([(new[name] - weights[name]).ravel() for name in NAMES]) for new in trained])
        vote = BinaryVote(aggregate, threshold=threshold)(torch.from_numpy(rows).double()).numpy()
        velocity = momentum * velocity + vote
        rate = lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (r - 1) / max(rounds - 1, 1))))
        step, start = rate * (vote + momentum * velocity), 0
        for name in NAMES:
            size = weights[name].size
            weights[name] = (weights[name] + step[start : start + size].reshape(weights[name].shape)).astype(np.float32)
            start += size
    return np.concatenate([weights[name].ravel() for name in NAMES])


@pytest.mark.parametrize("encrypt", [True, False])
@pytest.mark.parametrize(("aggregate", "momentum"), [("mean", 0.0), ("majority", 0.0), ("mean", 0.9)])
def test_a_training_is_that_of_the_votes_in_the_clear(encrypt, aggregate, momentum) -> None:
    chosen = strategy(aggregate=aggregate, momentum=momentum, threshold="zero", encrypt=encrypt)
    result = chosen.start(LocalGrid(app_of(), 5), arrays(), num_rounds=4)
    np.testing.assert_allclose(flat(result.arrays), by_hand(4, aggregate=aggregate, momentum=momentum), rtol=1e-6, atol=1e-8)
    assert np.abs(flat(result.arrays)).max() > 0.01 and not chosen.refused


def test_encryption_changes_no_bit() -> None:
    found = [flat(strategy(encrypt=encrypt).start(LocalGrid(app_of(), 5), arrays(), num_rounds=3).arrays) for encrypt in (True, False)]
    assert np.array_equal(*found)


def test_only_parameters_are_voted_on() -> None:
    result = strategy().start(LocalGrid(app_of(), 5), arrays(), num_rounds=2)
    for name in ("norm.running_mean", "norm.num_batches_tracked"):
        np.testing.assert_array_equal(result.arrays[name].numpy(), arrays()[name].numpy())
    assert list(result.arrays) == list(arrays())
    forms = [[(array.numpy().dtype, array.numpy().shape) for array in record.values()] for record in (result.arrays, arrays())]
    assert forms[0] == forms[1]  # a counter stays a number, without dimensions
    kept = strategy(keep=["*.bias", "norm*"]).start(LocalGrid(app_of(), 5), arrays(), num_rounds=2)
    assert not kept.arrays["layer.bias"].numpy().any() and kept.arrays["layer.weight"].numpy().all()


def test_metrics_of_rounds() -> None:
    grid = LocalGrid(app_of(), 5)
    seen = []

    def evaluated(server_round: int, record: ArrayRecord) -> MetricRecord:
        seen.append(server_round)
        return MetricRecord({"size": float(np.abs(flat(record)).mean())})

    chosen = strategy(evaluate=True)
    result = chosen.start(grid, arrays(), num_rounds=3, evaluate_fn=evaluated)
    assert seen == [0, 1, 2, 3] == sorted(result.evaluate_metrics_serverapp)
    assert sorted(result.train_metrics_clientapp) == [1, 2, 3] == sorted(result.evaluate_metrics_clientapp)
    first = dict(result.train_metrics_clientapp[1])
    assert first.pop("loss") == pytest.approx((20 + 60 + 120 + 200) / 150)  # weighted by examples
    blocks = math.ceil(19 / 85)
    assert first == {"clients": 5, "failed": 0, "refused": 0, "server-lr": 0.02, "bytes-per-client": 64 * blocks, "stepped": 1}
    assert result.train_metrics_clientapp[3]["server-lr"] == pytest.approx(2e-4)
    total = float(flat(result.arrays).sum()) + 13
    assert result.evaluate_metrics_clientapp[3]["total"] == pytest.approx(total, rel=1e-5)


def test_votes_take_fewer_bytes_than_weights() -> None:
    big = ArrayRecord({"w": Array(np.zeros(4000, np.float32))})
    sizes = {}
    for name, chosen, mods in (
        ("votes", strategy(10, **{"modulus_bits": 1024}), None),
        ("clear", strategy(10, encrypt=False), None),
        ("weights", FedAvg(fraction_evaluate=0.0), ()),
    ):
        grid = LocalGrid(app_of() if mods is None else app_of(mods=mods), 10)
        chosen.start(grid, big, num_rounds=1)
        sizes[name] = sum(
            len(array.data) for message in grid.arrived for record in message.content.array_records.values() for array in record.values()
        )
    totals = 4000 * 4 + 128  # from the key holder, once
    votes = (sizes["votes"] - totals) / 10
    assert 3 < (sizes["weights"] / 10) / votes < 4  # 16 / b = 4 for ten clients
    assert 25 < sizes["weights"] / sizes["clear"] < 32


def failing(who: set[int]):
    def train(weights, client, server_round):
        if client in who and server_round > 1:
            raise RuntimeError("out of battery")
        return drawn(weights, client, server_round)

    return train


def test_a_round_goes_on_without_clients_that_drop_out() -> None:
    result = strategy(threshold="zero").start(LocalGrid(app_of(failing({1, 3})), 5), arrays(), num_rounds=2)
    rows = result.train_metrics_clientapp
    assert [(row["clients"], row["failed"], row["stepped"]) for row in rows.values()] == [(5, 0, 1), (3, 2, 1)]
    first = by_hand(2) - flat(result.arrays)  # differs in the last step alone, of 2e-4
    assert first.any() and np.abs(first).max() < 4.01e-4


def test_two_clients_are_too_few_for_a_step() -> None:
    grid = LocalGrid(app_of(failing({0, 1, 3})), 5)
    result = strategy().start(grid, arrays(), num_rounds=3)
    rows = result.train_metrics_clientapp
    assert [(row["clients"], row["stepped"]) for row in rows.values()] == [(5, 1), (2, 0), (2, 0)]
    alone = strategy().start(LocalGrid(app_of(), 5), arrays(), num_rounds=3)
    assert not np.array_equal(flat(result.arrays), flat(alone.arrays)) and flat(result.arrays).any()


def test_a_poisoned_client_has_one_vote() -> None:
    def poisoned(weights, client, server_round):
        trained = {name: value + np.ones_like(value) + 0.1 * drawn(weights, client, server_round)[name] for name, value in weights.items()}
        if client == 4:
            trained = {name: value - 1000 * (trained[name] - value) for name, value in weights.items()}
        return trained

    found = strategy(threshold="zero").start(LocalGrid(app_of(poisoned), 5), arrays(), num_rounds=1)
    mean = FedAvg(fraction_evaluate=0.0).start(LocalGrid(app_of(poisoned, mods=()), 5), arrays_of_floats(), num_rounds=1)
    assert (flat(found.arrays) > 0).mean() > 0.9 and (flat(mean.arrays) < 0).all()


def arrays_of_floats() -> ArrayRecord:
    return ArrayRecord({name: array for name, array in arrays().items() if name in NAMES})


def test_a_key_holder_that_trains_not() -> None:
    grid = LocalGrid(app_of(), 6)
    chosen = strategy(5, key_holder=1005)
    result = chosen.start(grid, arrays(), num_rounds=2)
    assert [row["clients"] for row in result.train_metrics_clientapp.values()] == [5, 5]
    assert np.array_equal(flat(result.arrays), flat(strategy().start(LocalGrid(app_of(), 5), arrays(), num_rounds=2).arrays))


def test_a_key_holder_that_is_lost_within_a_round_costs_that_round() -> None:
    grid = LocalGrid(app_of(), 5)
    original = grid._answers

    def answers(question):
        stage = question.content["edgedetect"]["stage"]
        lost = stage == "decrypt" and question.content["edgedetect"]["server_round"] == 2 and question.metadata.dst_node_id == 1000
        return [] if lost else original(question)

    grid._answers = answers
    result = strategy().start(grid, arrays(), num_rounds=3)
    assert [row["stepped"] for row in result.train_metrics_clientapp.values()] == [1, 0, 1]


def test_clients_are_drawn_where_there_are_too_many() -> None:
    def who(seed: int) -> list[list[int]]:
        grid = LocalGrid(app_of(), 8)
        strategy(4, seed=seed, encrypt=False).start(grid, arrays(), num_rounds=6)
        answered = [message.metadata.src_node_id for message in grid.arrived]
        return [sorted(answered[4 * r : 4 * r + 4]) for r in range(6)]

    assert who(0) == who(0) != who(1)
    assert len({node for chosen in who(0) for node in chosen}) > 5


def test_it_waits_no_longer_than_the_time_out() -> None:
    with pytest.raises(CounterpoiseError, match=r"3 nodes after 0.1 s; 5 are needed"):
        strategy().start(LocalGrid(app_of(), 3), arrays(), num_rounds=1, timeout=0.1)


def test_nobody_holds_a_key_without_the_mod() -> None:
    with pytest.raises(CounterpoiseError, match=r"5 nodes did not make one\. Clients need edgedetect_mod .*\. The last: node 1004: \w"):
        strategy().start(LocalGrid(app_of(mods=()), 5), arrays(), num_rounds=1)


def test_the_configuration_of_the_user_reaches_the_clients() -> None:
    seen = []

    def mod(msg, context, call_next):
        if "config" in msg.content:
            seen.append(dict(msg.content["config"]))
        return call_next(msg, context)

    from counterpoise.federated import edgedetect_mod

    app = app_of(mods=(mod, edgedetect_mod))
    strategy().start(LocalGrid(app, 5), arrays(), num_rounds=2, train_config=ConfigRecord({"lr": 0.5}))
    assert seen == [{"lr": 0.5, "server-round": r} for r in (1, 2) for _ in range(5)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_clients": 2}, "max_clients: got 2; expected at least 3 with encryption|min_clients: got 3"),
        ({"min_clients": 2}, r"min_clients: got 2; expected an integer in \[3, 5\]"),
        ({"min_clients": 6}, "min_clients: got 6"),
        ({"min_available_nodes": 1}, "min_available_nodes: got 1"),
        ({"server_lr": 0.0}, "server_lr: got 0.0"),
        ({"momentum": 1.0}, r"momentum: got 1.0; expected a number in \[0, 1\)"),
        ({"aggregate": "median"}, "aggregate: got 'median'"),
        ({"threshold": "none"}, "threshold: got 'none'"),
        ({"ties": "zero"}, "ties: got 'zero'"),
        ({"insecure": False}, "modulus_bits: got 256; expected at least 2048"),
    ],
)
def test_bad_options(options, message) -> None:
    with pytest.raises(InputError, match=message):
        EdgeDetectStrategy(**({"max_clients": 5} | TINY | options))


def test_nothing_to_vote_on() -> None:
    with pytest.raises(InputError, match="at least one floating-point array that `keep` does not name"):
        strategy().start(LocalGrid(app_of(), 5), ArrayRecord({"n": Array(np.array(3))}), num_rounds=1)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_weights_keep_their_dtype_and_one_coordinate_is_enough(dtype) -> None:
    start = ArrayRecord({"w": Array(np.zeros(1, dtype))})
    everybody_up = lambda weights, client, server_round: {"w": weights["w"] + dtype(0.5)}  # noqa: E731
    result = strategy(threshold="zero").start(LocalGrid(app_of(everybody_up), 5), start, num_rounds=1)
    assert result.arrays["w"].numpy().dtype == dtype and result.arrays["w"].numpy() == dtype(0.02)


def test_clients_that_have_learned_nothing_draw_their_votes() -> None:
    """Nobody's weights move: votes are coins, another one for every client and round, and add up to about nothing."""
    start = ArrayRecord({"w": Array(np.zeros(2000, np.float32))})
    found = [
        strategy(seed=seed).start(LocalGrid(app_of(lambda weights, *_: weights), 5), start, num_rounds=1).arrays["w"].numpy()
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
    assert abs(found[0].mean()) < 4 * 0.02 / np.sqrt(5 * 2000)
    assert set(np.rint(found[0] / 0.004).astype(int)) == {-5, -3, -1, 1, 3, 5}


def test_as_many_votes_for_as_against_are_no_majority() -> None:
    start = ArrayRecord({"w": Array(np.zeros(2, np.float32))})
    # Of four clients two go up and two down in the first coordinate; three go up in the second.
    apart = lambda weights, client, _: {"w": weights["w"] + np.float32([1 if client < 2 else -1, 1 if client < 3 else -1])}  # noqa: E731
    chosen = strategy(4, aggregate="majority", threshold="zero")
    result = chosen.start(LocalGrid(app_of(apart), 4), start, num_rounds=1)
    assert result.arrays["w"].numpy().tolist() == [0.0, np.float32(0.02)]


def test_global_random_states_are_left_alone() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    strategy(4).start(LocalGrid(app_of(), 6), arrays(), num_rounds=2)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])
