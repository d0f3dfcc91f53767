from __future__ import annotations

import json
import multiprocessing
from itertools import count, islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from counterpoise._errors import InputError
from counterpoise.data import InterleaveDataset, temperature_probabilities
from counterpoise.data import _interleave as interleave
from counterpoise.data._interleave import PART
from counterpoise.schedules import Cooldown, StepTau

SIZES = [500, 40, 3]
STREAMS = [range(1000 * k, 1000 * k + size) for k, size in enumerate(SIZES)]


def mixed(**options) -> InterleaveDataset:
    return InterleaveDataset(**{"streams": STREAMS, "sizes": SIZES} | options)


def first(dataset, n: int) -> list[int]:
    return list(islice(dataset, n))


def test_streams_come_as_often_as_they_should_and_in_their_own_order() -> None:
    items = np.array(first(mixed(tau=3.0, seed=1), 3 * PART))
    p = temperature_probabilities(SIZES, 3.0).numpy()
    got = np.bincount(items // 1000) / len(items)
    assert (np.abs(got - p) < 4 * np.sqrt(p * (1 - p) / len(items))).all()
    for k, size in enumerate(SIZES):  # from the first to the last, again and again
        own = items[items // 1000 == k]
        assert np.array_equal(own, 1000 * k + np.arange(len(own)) % size)


def test_the_seed_makes_the_sequence() -> None:
    one = first(mixed(seed=4), 400)
    assert one == first(mixed(seed=4), 400) != first(mixed(seed=5), 400)
    dataset = mixed(seed=4)
    assert first(dataset, 400) == first(dataset, 400) == one, "every iterator begins at the beginning"


def test_a_schedule_counts_batches() -> None:
    items = np.array(first(mixed(tau=StepTau([1e-3, float("inf")], [12]), batch_size=10), 1000)) // 1000
    assert (items[:120] == 0).all() and len(set(items[120:150].tolist())) == 3
    with pytest.raises(InputError, match="tau: got -1 at step 3; expected a number > 0, or inf"):
        first(mixed(tau=lambda step: -1 if step == 3 else 1.0, batch_size=4), 16)


@pytest.mark.parametrize("tau", [4.0, Cooldown(9.0, 1.0, switch=9)], ids=["constant", "cooldown"])
def test_a_stopped_stream_goes_on(tau) -> None:
    whole = first(mixed(tau=tau, batch_size=7), PART + 300)
    for place in (0, 1, 6, 7, 200, PART - 1, PART + 3):
        dataset = mixed(tau=tau, batch_size=7)
        running = iter(dataset)
        assert list(islice(running, place)) == whole[:place]
        state = json.loads(json.dumps(dataset.state_dict()))
        resumed = mixed(tau=tau, batch_size=7, seed=99)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert first(resumed, 250) == list(islice(running, 250))
    # Where a loop knows that it has had 30 batches:
    resumed.load_state_dict(state | {"batch": 30, "offset": 0})
    assert first(resumed, 50) == whole[210:260]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and later, where torch has started threads
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # three workers on two cores
def test_any_number_of_workers_delivers_the_same_batches() -> None:
    def batches(workers: int, begin: int = 0) -> list[list[int]]:
        dataset = mixed(tau=Cooldown(9.0, 1.0, switch=6), batch_size=5)
        dataset.load_state_dict(dataset.state_dict() | {"batch": begin})
        loader = DataLoader(dataset, batch_size=5, num_workers=workers)
        return [batch.tolist() for batch in islice(loader, 20)]

    alone = batches(0)
    assert len({item for batch in alone for item in batch}) > 40
    for workers in (1, 2, 3):
        assert batches(workers) == alone
    assert batches(2, begin=9)[:11] == alone[9:]


def test_each_worker_can_be_resumed_in_its_own_batch(monkeypatch) -> None:
    def as_worker(worker: int, workers: int) -> None:
        monkeypatch.setattr(interleave, "get_worker_info", lambda: SimpleNamespace(id=worker, num_workers=workers))

    whole = first(mixed(batch_size=4), 200)
    for worker in (0, 1, 2):
        as_worker(worker, 3)
        dataset = mixed(batch_size=4)
        running = iter(dataset)
        assert list(islice(running, 10))[-2:] == whole[4 * (6 + worker) : 4 * (6 + worker) + 2]  # in the midst of its third batch
        resumed = mixed(batch_size=4)
        resumed.load_state_dict(dataset.state_dict())
        assert first(resumed, 30) == list(islice(running, 30))
        as_worker((worker + 1) % 3, 3)  # which has had nothing of that batch
        begin = 4 * (6 + (worker + 1) % 3)
        assert first(resumed, 4) == whole[begin : begin + 4]


def of_a_process(rank: int, port_file: str, queue) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=2)
    dataset = mixed(tau=Cooldown(9.0, 1.0, switch=6), batch_size=4)
    running = iter(dataset)
    seen = list(islice(running, 90))
    resumed = mixed(tau=Cooldown(9.0, 1.0, switch=6), batch_size=4)
    resumed.load_state_dict(dataset.state_dict())
    queue.put((rank, seen, first(resumed, 20) == list(islice(running, 20))))
    queue.close()
    queue.join_thread()
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and later, where torch has started threads
def test_processes_share_the_stream(tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    started = [context.Process(target=of_a_process, args=(rank, str(tmp_path / "meet"), queue)) for rank in range(2)]
    for process in started:
        process.start()
    found = {rank: (seen, resumed) for rank, seen, resumed in (queue.get(timeout=60) for _ in started)}
    for process in started:
        process.join(timeout=60)
    whole = first(mixed(tau=Cooldown(9.0, 1.0, switch=6), batch_size=8), 180)  # a step of both together
    assert [found[0][0], found[1][0]] == [whole[0::2], whole[1::2]]
    assert found[0][1] and found[1][1]


def test_whole_rounds_are_not_gone_through_again() -> None:
    class Counted:
        taken = 0

        def __iter__(self):
            for item in range(5):
                self.taken += 1
                yield item

    small = Counted()
    dataset = InterleaveDataset([small], [5])
    dataset.load_state_dict(dataset.state_dict() | {"batch": 5_000_003})
    assert first(dataset, 2) == [3, 4]
    assert small.taken < 20


def test_iterators_that_never_end_will_do_and_others_are_refused_when_they_end() -> None:
    endless = InterleaveDataset([count(), range(10, 13)], [100, 3])
    assert len(first(endless, 500)) == 500
    ended = InterleaveDataset([iter([1, 2])], [2])
    with pytest.raises(InputError, match="streams: got stream 0, which ended after 2 items and gave nothing when begun again"):
        first(ended, 3)
    with pytest.raises(InputError, match="streams: got stream 1, which gave nothing; expected streams that can be gone through again"):
        first(InterleaveDataset([[1], []], [1, 1]), 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": [1, 2]}, "sizes: got 2 sizes for 3 streams; expected one size for each stream"),
        ({"sizes": [1, 2, 0]}, "sizes: got 0 for domain 2; expected a size > 0"),
        ({"tau": 0}, "tau: got 0; expected a number > 0, or inf"),
        ({"streams": [1, 2, 3]}, "streams: got int as stream 0; expected something to iterate over"),
        ({"seed": -1}, "seed: got -1"),
        ({"batch_size": 0}, "batch_size: got 0"),
    ],
)
def test_bad_input_is_refused(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        mixed(**arguments)


def test_a_wrong_state_is_refused() -> None:
    dataset = mixed()
    with pytest.raises(InputError, match=r"state: got \{\}; expected what state_dict"):
        dataset.load_state_dict({})
    with pytest.raises(InputError, match=r"state\['batch'\]: got -1; expected an integer >= 0"):
        dataset.load_state_dict(dataset.state_dict() | {"batch": -1})
    with pytest.raises(InputError, match=r"state\['offset'\]: got 1; expected less than batch_size = 1"):
        dataset.load_state_dict(dataset.state_dict() | {"offset": 1})
