"""The battery of the samplers: every check takes a :class:`SamplerCase`, and every sampler must pass all of them."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from counterpoise._errors import InputError

__all__ = ["SAMPLER_CHECKS", "SamplerCase"]

Items = list[Any]  # indices, or lists of them


@dataclass(frozen=True)
class SamplerCase:
    """A sampler of indices of ``n`` examples, or of whole batches of them.

    ``make(seed, **shard)`` builds it, ``shard`` being nothing or ``num_replicas`` and ``rank``.

    Attributes:
        length: items in a pass of one process.
        groups: (n,) codes 0..G-1 of the examples, where the drawn shares of groups are promised; None where they are not.
        shares: (G,) the promised shares.
        distinct: a pass holds no example twice.
        exact: the shares hold in every single pass up to rounding, not only on average.
        alike: examples of one group are drawn equally often.
        batches: items are lists of indices, for ``DataLoader(batch_sampler=...)``.
        shards: whether a pass can be shared by several processes.
    """

    name: str
    make: Callable[..., Any]
    n: int
    length: int
    groups: np.ndarray | None = None
    shares: np.ndarray | None = None
    distinct: bool = False
    exact: bool = False
    alike: bool = True
    batches: bool = False
    shards: bool = True

    def passes(self, sampler: Any, count: int) -> list[Items]:
        return [list(sampler) for _ in range(count)]

    def loader(self, sampler: Any, workers: int) -> DataLoader[Any]:
        data = Numbers(self.n)
        # What a worker sends for one item is one item, so that loaders and samplers can be compared.
        how = {"batch_sampler": sampler} if self.batches else {"sampler": sampler, "batch_size": self.batch_size}
        return DataLoader(data, num_workers=workers, **how)

    def batched(self, items: Items) -> list[list[int]]:
        return items if self.batches else [items[at : at + self.batch_size] for at in range(0, len(items), self.batch_size)]

    @property
    def batch_size(self) -> int:
        """Some twenty batches, the last one not full."""
        return self.length // 20 + 2


class Numbers(Dataset[int]):
    """0, 1, ..., n-1: an example is its own index."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        return index


def taken(iterator: Iterator[Any], count: int) -> Items:
    return list(itertools.islice(iterator, count))


def places(case: SamplerCase) -> list[int]:
    """Positions in a pass where a run may be cut: the ends, the beginning, somewhere, and around a power of two, where parts end."""
    near = [2**k + d for k in (10, 15, 16) for d in (-1, 0, 1)]
    return sorted({p for p in (0, 1, case.length // 3, case.length - 1, *near) if 0 <= p < case.length})


# -- determinism ------------------------------------------------------------------------------------------------------------------------


def the_seed_makes_the_stream(case: SamplerCase) -> None:
    first, again, other = (case.passes(case.make(seed), 2) for seed in (7, 7, 8))
    assert first == again
    assert first[0] != other[0]


def every_pass_is_another(case: SamplerCase) -> None:
    first, second, third = case.passes(case.make(0), 3)
    assert first != second and second != third and first != third


def an_epoch_can_be_asked_for(case: SamplerCase) -> None:
    sampler = case.make(0)
    first, second, third = case.passes(sampler, 3)
    for epoch, expected in ((1, second), (1, second), (0, first), (2, third)):
        sampler.set_epoch(epoch)
        assert list(sampler) == expected
    fresh = case.make(0)
    fresh.set_epoch(2)
    assert list(fresh) == third


def passes_do_not_disturb_each_other(case: SamplerCase) -> None:
    sampler = case.make(0)
    expected = case.passes(case.make(0), 2)
    one, two = iter(sampler), iter(sampler)
    mixed = [(a, b) for a, b in zip(one, two, strict=True)]
    assert [[a for a, _ in mixed], [b for _, b in mixed]] == expected


def iterators_that_are_not_used_do_not_count(case: SamplerCase) -> None:
    """A loader with workers makes two iterators of its batch sampler and uses the second."""
    first, second = case.passes(case.make(0), 2)
    sampler = case.make(0)
    unused = iter(sampler)
    assert list(sampler) == first
    iter(sampler)
    assert list(sampler) == second
    del unused


def random_numbers_of_others_are_left_alone(case: SamplerCase) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    list(case.make(0))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()


# -- what is yielded --------------------------------------------------------------------------------------------------------------------


def the_length_is_what_comes(case: SamplerCase) -> None:
    sampler = case.make(0)
    assert len(sampler) == case.length
    assert [len(items) for items in case.passes(sampler, 3)] == [case.length] * 3


def items_are_plain_indices(case: SamplerCase) -> None:
    items = list(case.make(0))
    if case.batches:
        assert all(type(batch) is list for batch in items)
    indices = list(itertools.chain(*items)) if case.batches else items
    assert {type(index) for index in indices} == {int}
    assert min(indices) >= 0 and max(indices) < case.n
    if case.distinct:
        assert len(set(indices)) == len(indices)


def shares_are_as_promised(case: SamplerCase) -> None:
    """Within 4 sigma of a binomial count, also in the first half of the passes, since an order may favor whom the whole does not.

    Where examples of a group are alike, each of them is within 6 sigma.
    """
    if case.groups is None or case.shares is None:
        return
    sampler = case.make(1)
    count, early = np.zeros(case.n), np.zeros(case.n)
    passes = 0
    while count.sum() < 100_000 and passes < 400:
        items = np.concatenate(list(sampler)) if case.batches else np.array(list(sampler))
        one = np.bincount(items, minlength=case.n)
        if case.exact:
            assert np.abs(of_groups(case, one) - len(items) * case.shares).max() <= 1
        count += one
        early += np.bincount(items[: len(items) // 2], minlength=case.n)
        passes += 1
    for drawn in (count, early):
        draws = drawn.sum()
        sigma = np.sqrt(draws * case.shares * (1 - case.shares))
        assert (np.abs(of_groups(case, drawn) - draws * case.shares) <= 4 * sigma).all()
        if case.alike:
            p = (case.shares / np.bincount(case.groups))[case.groups]
            assert (np.abs(drawn - draws * p) <= 6 * np.sqrt(draws * p)).all()


def of_groups(case: SamplerCase, count: np.ndarray) -> np.ndarray:
    return np.bincount(case.groups, count, minlength=len(case.shares))


# -- stopped and resumed ----------------------------------------------------------------------------------------------------------------


def a_stopped_run_goes_on(case: SamplerCase) -> None:
    epochs = case.passes(case.make(3), 4)
    for place in places(case):
        sampler = case.make(3)
        list(sampler)
        running = iter(sampler)
        assert taken(running, place) == epochs[1][:place]
        state = json.loads(json.dumps(sampler.state_dict()))
        assert list(running) == epochs[1][place:], "looking at the state must not change the stream"
        resumed = case.make(99)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert case.passes(resumed, 3) == [epochs[1][place:], epochs[2], epochs[3]]


def a_finished_pass_goes_on_with_the_next(case: SamplerCase) -> None:
    epochs = case.passes(case.make(3), 2)
    sampler, resumed = case.make(3), case.make(3)
    list(sampler)
    resumed.load_state_dict(sampler.state_dict())
    assert list(resumed) == epochs[1]


def a_resumed_run_may_be_stopped_again(case: SamplerCase) -> None:
    whole = case.passes(case.make(3), 2)
    sampler, got = case.make(3), []
    for place in (1, case.length // 2 - 1, case.length // 3):
        got += taken(iter(sampler), place)
        state = sampler.state_dict()
        sampler = case.make(0)
        sampler.load_state_dict(state)
    got += list(sampler)
    assert [*got, *sampler] == whole[0] + whole[1]


def set_epoch_keeps_a_loaded_place(case: SamplerCase) -> None:
    """A loop that resumes in epoch 1 announces epoch 1 before it goes on; announcing another one starts that."""
    epochs = case.passes(case.make(3), 3)
    sampler = case.make(3)
    sampler.set_epoch(1)
    taken(iter(sampler), case.length // 2)
    state = sampler.state_dict()
    for epoch, expected in ((1, epochs[1][case.length // 2 :]), (2, epochs[2])):
        resumed = case.make(3)
        resumed.load_state_dict(state)
        resumed.set_epoch(epoch)
        assert list(resumed) == expected


def a_wrong_state_is_refused(case: SamplerCase) -> None:
    sampler = case.make(0)
    state = sampler.state_dict()
    wrong = [{}, {**state, "epoch": -1}]
    if "position" in state:
        wrong.append({**state, "position": -1})
    for other in wrong:
        try:
            sampler.load_state_dict(other)
        except InputError as error:
            assert "state" in str(error)
        else:
            raise AssertionError(f"{other} was taken")
    assert sampler.state_dict() == state


def copies_go_on_alike(case: SamplerCase) -> None:
    epochs = case.passes(case.make(3), 3)
    for copied in (lambda sampler: pickle.loads(pickle.dumps(sampler)), copy.deepcopy):
        sampler = case.make(3)
        assert case.passes(copied(sampler), 2) == epochs[:2]
        running = iter(sampler)
        taken(running, case.length // 2)
        twin = copied(sampler)
        assert twin.state_dict() == sampler.state_dict()
        assert list(twin) == epochs[1] and list(sampler) == epochs[1]
        assert list(running) == epochs[0][case.length // 2 :]


# -- several processes ------------------------------------------------------------------------------------------------------------------


def shards_partition_a_pass(case: SamplerCase) -> None:
    """Dealt out like cards: the shards, taken in turn, are the pass of one process; at most one item each is added or left out."""
    if not case.shards:
        return
    whole = case.passes(case.make(5), 2)
    for replicas in (1, 2, 3, 5):
        ranks = [case.make(5, num_replicas=replicas, rank=rank) for rank in range(replicas)]
        shards = [case.passes(sampler, 2) for sampler in ranks]
        for epoch in (0, 1):
            own = [shard[epoch] for shard in shards]
            assert {len(items) for items in own} == {len(ranks[0])}
            dealt = list(itertools.chain(*zip(*own, strict=True)))
            assert abs(len(dealt) - case.length) < replicas
            assert dealt[: case.length] == whole[epoch][: len(dealt)]


def a_shard_goes_on_where_it_was_stopped(case: SamplerCase) -> None:
    if not case.shards:
        return
    for rank in (0, 2):
        first, second = case.passes(case.make(5, num_replicas=3, rank=rank), 2)
        for place in (0, 1, len(first) // 2, len(first) - 1):
            sampler, resumed = (case.make(5, num_replicas=3, rank=rank) for _ in range(2))
            taken(iter(sampler), place)
            resumed.load_state_dict(sampler.state_dict())
            assert case.passes(resumed, 2) == [first[place:], second]


def another_number_of_processes_is_refused(case: SamplerCase) -> None:
    if not case.shards:
        return
    state = case.make(5, num_replicas=2, rank=0).state_dict()
    try:
        case.make(5).load_state_dict(state)
    except InputError as error:
        assert "num_replicas" in str(error)
    else:
        raise AssertionError("the state of a shard was taken for that of a whole pass")


# -- loaders ----------------------------------------------------------------------------------------------------------------------------


def a_loader_delivers_the_stream(case: SamplerCase) -> None:
    expected = [case.batched(items) for items in case.passes(case.make(2), 2)]
    for workers in (0, 2):
        loader = case.loader(case.make(2), workers)
        assert len(loader) == len(expected[0])
        for epoch in (0, 1):
            assert [batch.tolist() for batch in loader] == expected[epoch]


def frameworks_set_the_epoch(case: SamplerCase) -> None:
    """As Lightning does: before every epoch, through the loader, and again from the middle of a run."""
    expected = [case.batched(items) for items in case.passes(case.make(2), 3)]

    def fit(epochs: range) -> list[list[list[int]]]:
        loader = case.loader(case.make(2), workers=0)
        seen = []
        for epoch in epochs:
            sampler = loader.batch_sampler if case.batches else loader.sampler
            sampler.set_epoch(epoch)
            seen.append([batch.tolist() for batch in loader])
        return seen

    assert fit(range(3)) == expected
    assert fit(range(1, 3)) == expected[1:]


def a_loop_resumes_although_workers_draw_ahead(case: SamplerCase) -> None:
    expected, following = (case.batched(items) for items in case.passes(case.make(2), 2))
    had = len(expected) // 2
    sampler = case.make(2)
    running = iter(case.loader(sampler, workers=2))
    assert [batch.tolist() for batch in taken(running, had)] == expected[:had]
    # After all batches, the last of which may not have been full, the next pass is due.
    for done, rest in ((had, expected[had:]), (len(expected), following)):
        state = sampler.state_dict() | {"epoch": 0, "position": done if case.batches else done * case.batch_size}
        resumed = case.make(2)
        resumed.load_state_dict(state)
        assert [batch.tolist() for batch in case.loader(resumed, workers=0)] == rest
    del running


SAMPLER_CHECKS: list[Callable[[SamplerCase], None]] = [
    the_seed_makes_the_stream,
    every_pass_is_another,
    an_epoch_can_be_asked_for,
    passes_do_not_disturb_each_other,
    iterators_that_are_not_used_do_not_count,
    random_numbers_of_others_are_left_alone,
    the_length_is_what_comes,
    items_are_plain_indices,
    shares_are_as_promised,
    a_stopped_run_goes_on,
    a_finished_pass_goes_on_with_the_next,
    a_resumed_run_may_be_stopped_again,
    set_epoch_keeps_a_loaded_place,
    a_wrong_state_is_refused,
    copies_go_on_alike,
    shards_partition_a_pass,
    a_shard_goes_on_where_it_was_stopped,
    another_number_of_processes_is_refused,
    a_loader_delivers_the_stream,
    frameworks_set_the_epoch,
    a_loop_resumes_although_workers_draw_ahead,
]
