"""Data sets that say where an example came from, for losses that keep something per example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset, IterableDataset, get_worker_info

from counterpoise._errors import bad_input

__all__ = ["IndexedDataset"]

INDEX = "index"


class IndexedDataset(Dataset[Any]):
    """A data set whose examples also hold their position: ``(input, target)`` becomes ``(input, target, index)``.

    An example that is a tuple or a list gets the position as its last item, a mapping as the item ``"index"``; anything else becomes
    ``(example, index)``. A loader collates positions to an int64 tensor (B,).

    Of a data set with ``__getitem__`` the position is the index that was asked for, whatever sampler asked. Of an iterable one it is the
    position in its stream, which means the same example in every epoch only if the stream has the same order; then the result is an
    ``IterableDataset`` too, for at most one worker, since several workers each see a stream of their own.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset, or a sequence
        With ``__getitem__`` and ``__len__``, or an ``IterableDataset``. Its ``__getitems__`` (whole batches at once) is used if it has one.

    Raises
    ------
    InputError
        If an example is a mapping that has an ``"index"`` already, or an iterable data set is read by several workers.

    Examples
    --------
    >>> dataset = IndexedDataset([("cat", 0), ("dog", 1)])
    >>> dataset[1], len(dataset)
    (('dog', 1, 1), 2)
    """

    def __new__(cls, dataset: Any = None) -> IndexedDataset:
        # What a loader does depends on the type: an iterable data set must stay one.
        return super().__new__(_IndexedStream if cls is IndexedDataset and isinstance(dataset, IterableDataset) else cls)

    def __init__(self, dataset: Any) -> None:
        if not isinstance(dataset, IterableDataset) and not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            bad_input("dataset", type(dataset).__name__, "a data set with __getitem__ and __len__, or an IterableDataset")
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return _with_index(self.dataset[index], self._position(index))

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        if hasattr(self.dataset, "__getitems__"):
            examples = self.dataset.__getitems__(indices)
        else:
            examples = [self.dataset[index] for index in indices]
        return [_with_index(example, self._position(index)) for example, index in zip(examples, indices, strict=True)]

    def _position(self, index: int) -> int:
        return int(index) + len(self.dataset) if index < 0 else int(index)


class _IndexedStream(IndexedDataset, IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            bad_input(
                "dataset",
                f"an iterable data set read by {worker.num_workers} workers",
                "num_workers=0 or 1, since positions in several streams do not tell examples apart",
                "Or yield the index where the stream is made.",
            )
        return (_with_index(example, position) for position, example in enumerate(self.dataset))


def _with_index(example: Any, index: int) -> Any:
    if isinstance(example, Mapping):
        if INDEX in example:
            bad_input(
                "dataset", f"an example with the keys {sorted(map(str, example))}", f"examples without the key {INDEX!r}", "Rename it."
            )
        return {**example, INDEX: index}
    if isinstance(example, tuple):
        return (*example, index)
    return [*example, index] if isinstance(example, list) else (example, index)
