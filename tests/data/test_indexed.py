from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, WeightedRandomSampler

from counterpoise._errors import InputError
from counterpoise.data import IndexedDataset


class Stream(IterableDataset):
    def __iter__(self):
        return iter([("a", 0), ("b", 1), ("c", 0)])


class SizedStream(Stream):
    def __len__(self):
        return 3


class Batched(Dataset):
    """Gives whole batches, and counts how often it was asked."""

    def __init__(self):
        self.asked = 0

    def __len__(self):
        return 6

    def __getitem__(self, index):
        raise AssertionError("asked one by one")

    def __getitems__(self, indices):
        self.asked += 1
        return [(10 * index,) for index in indices]


def tensors(n: int = 6) -> TensorDataset:
    return TensorDataset(10 * torch.arange(n), torch.arange(n) % 2)


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (("x", 1), ("x", 1, 0)),
        (["x", 1], ["x", 1, 0]),
        ({"pixels": 3, "label": 1}, {"pixels": 3, "label": 1, "index": 0}),
        ("alone", ("alone", 0)),
        (7.5, (7.5, 0)),
    ],
)
def test_an_example_gets_its_position(example, expected) -> None:
    assert IndexedDataset([example])[0] == expected
    assert IndexedDataset([example]).__getitems__([0]) == [expected]


def test_positions_follow_the_examples_through_a_shuffling_loader() -> None:
    dataset = IndexedDataset(tensors())
    loader = DataLoader(dataset, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(1))
    seen = []
    for x, y, index in loader:
        assert index.dtype == torch.int64
        assert torch.equal(x, 10 * index) and torch.equal(y, index % 2)
        seen += index.tolist()
    assert sorted(seen) == list(range(6)) and seen != list(range(6))


def test_positions_are_those_of_the_sampler() -> None:
    sampler = WeightedRandomSampler([0, 0, 1, 0, 0, 0], num_samples=5, generator=torch.Generator().manual_seed(0))
    (batch,) = DataLoader(IndexedDataset(tensors()), batch_size=5, sampler=sampler)
    assert batch[-1].tolist() == [2] * 5


def test_positions_in_a_subset_are_positions_in_the_subset() -> None:
    dataset = IndexedDataset(Subset(tensors(), [5, 3]))
    assert [tuple(int(part) for part in example) for example in (dataset[0], dataset[1])] == [(50, 1, 0), (30, 1, 1)]


def test_negative_positions_count_from_the_end() -> None:
    x, _, index = IndexedDataset(tensors())[-1]
    assert (int(x), index) == (50, 5)


def test_a_data_set_that_gives_batches_is_asked_for_batches() -> None:
    dataset = Batched()
    loader = DataLoader(IndexedDataset(dataset), batch_size=3)
    assert [(x.tolist(), index.tolist()) for x, index in loader] == [([0, 10, 20], [0, 1, 2]), ([30, 40, 50], [3, 4, 5])]
    assert dataset.asked == 2


def test_workers_give_the_same() -> None:
    alone = [index.tolist() for *_, index in DataLoader(IndexedDataset(tensors()), batch_size=2)]
    workers = [index.tolist() for *_, index in DataLoader(IndexedDataset(tensors()), batch_size=2, num_workers=2)]
    assert workers == alone


def test_a_stream_stays_a_stream() -> None:
    dataset = IndexedDataset(Stream())
    assert isinstance(dataset, IndexedDataset) and isinstance(dataset, IterableDataset)
    assert list(dataset) == list(dataset) == [("a", 0, 0), ("b", 1, 1), ("c", 0, 2)]
    batches = list(DataLoader(dataset, batch_size=2))
    assert [index.tolist() for *_, index in batches] == [[0, 1], [2]]
    assert [index.tolist() for *_, index in DataLoader(dataset, batch_size=2, num_workers=1)] == [[0, 1], [2]]


def test_a_stream_has_a_length_if_it_had_one() -> None:
    assert len(IndexedDataset(SizedStream())) == 3
    with pytest.raises(TypeError):
        len(IndexedDataset(Stream()))


def test_several_workers_of_a_stream_are_refused() -> None:
    with pytest.raises(InputError, match="an iterable data set read by 2 workers; expected num_workers=0 or 1"):
        list(DataLoader(IndexedDataset(Stream()), num_workers=2))


@pytest.mark.parametrize("dataset", [[("a", 0)], Stream()])
def test_copies_are_of_the_same_type(dataset) -> None:
    indexed = IndexedDataset(dataset)
    for other in (pickle.loads(pickle.dumps(indexed)), copy.copy(indexed)):
        assert type(other) is type(indexed)
        first = next(iter(other)) if isinstance(other, IterableDataset) else other[0]
        assert first == ("a", 0, 0)


def test_what_cannot_be_indexed_is_refused() -> None:
    with pytest.raises(InputError, match="dataset: got 'set'; expected a data set with __getitem__ and __len__"):
        IndexedDataset({1, 2})
    with pytest.raises(InputError, match=r"without the key 'index'\. Rename it"):
        IndexedDataset([{"x": 1, "index": 9}])[0]
