r"""Several streams as one, drawn at a temperature (Li et al. 2025, arXiv:2410.04579): for data that are too large to be indexed.

What is unbalanced: one stream has a thousand times as much to give as another, and taking items as they come is training on the large one.
Before every item a stream is drawn, with :math:`p(i; \tau) = n_i^{1/\tau} / \sum_j n_j^{1/\tau}`; a stream that ends begins again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, distributed
from torch.utils.data import IterableDataset, get_worker_info

from counterpoise._dist import world_size
from counterpoise._errors import bad_input, check_range
from counterpoise._seeding import generator
from counterpoise._temperature import TAU, Tau, checked_sizes

from ._temperature import Mixture

__all__ = ["InterleaveDataset"]

PART = 1 << 12  # streams drawn at once. Another number makes another sequence.
_STATE = ("seed", "batch", "offset", "worker")


class InterleaveDataset(IterableDataset[Any]):
    r"""An endless stream of items of K streams, each drawn with :math:`p(i; \tau) = n_i^{1/\tau} / \sum_j n_j^{1/\tau}`.

    The sequence of streams is a function of the seed alone. Processes of ``torch.distributed`` share it: process r of R takes the items r,
    r + R, ... Workers of a loader share it batch by batch, so that a ``DataLoader`` with the same ``batch_size`` delivers the same batches
    with any number of workers. Every process and worker goes through all streams and leaves out the items of the others; streams must
    therefore give the same items in the same order each time they are begun. Every iterator begins at the first item, or where a loaded
    state says.

    Parameters
    ----------
    streams : sequence of K iterables
        Data sets, lists, files: anything that can be gone through again. An iterator, which cannot, must not end.
    sizes : tensor or array-like, shape (K,)
        How much each holds: items or, where they differ in length, tokens.
    tau : float > 0 or callable, default 5.0 (the paper's)
        The temperature, or a schedule of steps such as :class:`~counterpoise.schedules.Cooldown`. A step is ``batch_size`` items of every
        process.
    seed : int, default 0
        Of the sequence of streams; the same in all processes.
    batch_size : int, default 1
        Batch of the loader, of one process: what a schedule counts, and what workers take in turn.

    Raises
    ------
    InputError
        If there are not as many sizes as streams, a size is not above 0, or a temperature is not (of a schedule the step is named). While
        it runs: if a stream that has ended gives nothing when it is begun again.

    Examples
    --------
    >>> from itertools import islice
    >>> english, welsh = [f"en{i}" for i in range(900)], [f"cy{i}" for i in range(3)]
    >>> mixed = InterleaveDataset([english, welsh], sizes=[900, 3], tau=5.0)
    >>> list(islice(mixed, 10))
    ['en0', 'en1', 'cy0', 'cy1', 'en2', 'cy2', 'en3', 'en4', 'en5', 'en6']
    """

    def __init__(
        self, streams: Sequence[Iterable[Any]], sizes: Tensor | npt.ArrayLike, tau: Tau = TAU, seed: int = 0, batch_size: int = 1
    ) -> None:
        self.streams = list(streams)
        n = checked_sizes(sizes)
        if len(n) != len(self.streams):
            bad_input("sizes", f"{len(n)} sizes for {len(self.streams)} streams", "one size for each stream")
        for k, stream in enumerate(self.streams):
            if not isinstance(stream, Iterable) and not hasattr(stream, "__getitem__"):
                bad_input("streams", f"{type(stream).__name__} as stream {k}", "something to iterate over")
        check_range("seed", seed, low=0, integer=True)
        check_range("batch_size", batch_size, low=1, integer=True)
        self.seed, self.batch_size = int(seed), int(batch_size)
        self._mixture = Mixture(n, tau)
        self._begin = (0, 0, 0)  # batch, items of it that the worker (the third number) has had
        self._at = self._begin

    def __repr__(self) -> str:
        return f"InterleaveDataset({self._mixture})"

    def __iter__(self) -> Iterator[Any]:
        rank, ranks = (distributed.get_rank() if world_size() > 1 else 0), world_size()
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        batch, offset, whose = self._begin
        if whose != worker:
            offset = 0  # another worker's place in its batch
        in_step = self.batch_size * ranks
        own = batch + worker
        sequence = self._sequence(in_step)
        readers = [_Reader(k, stream) for k, stream in enumerate(self.streams)]
        for reader, count in zip(readers, sequence.counts(own * in_step), strict=True):
            reader.pass_over(int(count))
        while True:
            for place, k in enumerate(sequence.streams(own * in_step, in_step).tolist()):
                item, turn = place // ranks, place % ranks
                if turn != rank or item < offset:
                    readers[k].pass_over(1)
                    continue
                following = (own, item + 1) if item + 1 < self.batch_size else (own + workers, 0)
                self._at = (following[0] - worker, following[1], worker)
                yield readers[k].take()
            for reader, count in zip(readers, sequence.counts((own + workers) * in_step, (own + 1) * in_step), strict=True):
                reader.pass_over(int(count))
            own, offset = own + workers, 0

    def state_dict(self) -> dict[str, int]:
        """Plain numbers that say where the stream goes on: the seed, the batch, and the items of it that this worker has given.

        A plain loader keeps its workers' data sets to itself. The loop knows how many batches it has had: put this into ``"batch"``, and 0
        into ``"offset"``. (torchdata's ``StatefulDataLoader`` asks each worker.)
        """
        return dict(zip(_STATE, (self.seed, *self._at), strict=True))

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Begin where :meth:`state_dict` was taken: streams are gone through again up to there, so this takes as long as that."""
        if not isinstance(state, Mapping) or any(name not in state for name in _STATE):
            bad_input("state", state, f"what state_dict() gives: {', '.join(_STATE)}")
        for name in _STATE:
            check_range(f"state[{name!r}]", state[name], low=0, integer=True)
        if state["offset"] >= self.batch_size:
            bad_input("state['offset']", state["offset"], f"less than batch_size = {self.batch_size}")
        self.seed = int(state["seed"])
        self._begin = self._at = (int(state["batch"]), int(state["offset"]), int(state["worker"]))

    def _sequence(self, in_step: int) -> _Sequence:
        return _Sequence(self._mixture, self.seed, in_step)


class _Sequence:
    """Which stream each item of all processes comes from."""

    def __init__(self, mixture: Mixture, seed: int, in_step: int) -> None:
        self._mixture, self._seed, self._in_step = mixture, seed, in_step
        self._part: tuple[int, npt.NDArray[np.int64]] = (-1, np.empty(0, dtype=np.int64))

    def streams(self, begin: int, count: int) -> npt.NDArray[np.int64]:
        """Streams of the items ``begin`` to ``begin + count``."""
        parts = range(begin // PART, (begin + count - 1) // PART + 1)
        drawn = np.concatenate([self._of_part(part) for part in parts])
        first = begin - parts[0] * PART
        return drawn[first : first + count]

    def counts(self, end: int, begin: int = 0) -> npt.NDArray[np.int64]:
        """How often each stream comes among the items ``begin`` to ``end``."""
        total = np.zeros(len(self._mixture.sizes), dtype=np.int64)
        while begin < end:
            to = min(end, (begin // PART + 1) * PART)
            total += np.bincount(self.streams(begin, to - begin), minlength=len(total))
            begin = to
        return total

    def _of_part(self, part: int) -> npt.NDArray[np.int64]:
        if self._part[0] != part:
            first = part * PART
            u = generator(self._seed, "interleave", part).random(PART)
            runs = self._mixture.runs(first, first + PART, self._in_step, 0)
            self._part = part, np.concatenate([tables.domains(u[at - first : to - first]) for at, to, tables in runs])
        return self._part[1]


class _Reader:
    """One stream, begun again whenever it ends."""

    def __init__(self, k: int, stream: Iterable[Any]) -> None:
        self._k, self._stream = k, stream
        self._items: Iterator[Any] | None = None
        self._due = 0  # items to leave out before the next one is taken
        self._given = 0  # since it was begun
        self._length: int | None = None  # known once it has ended

    def pass_over(self, count: int) -> None:
        self._due += count

    def take(self) -> Any:
        while True:
            if self._length is not None and self._due >= self._length:
                self._due %= self._length  # whole rounds need not be gone through
            item = self._next()
            if self._due == 0:
                return item
            self._due -= 1

    def _next(self) -> Any:
        if self._items is None:
            self._items = iter(self._stream)
        for item in self._items:
            self._given += 1
            return item
        if self._given == 0:
            found = "gave nothing" if self._length is None else f"ended after {self._length:,} items and gave nothing when begun again"
            hint = "An iterator cannot: give a list, or a data set."
            bad_input("streams", f"stream {self._k}, which {found}", "streams that can be gone through again", hint)
        self._length, self._given, self._items = self._given, 0, iter(self._stream)
        return self._next()
