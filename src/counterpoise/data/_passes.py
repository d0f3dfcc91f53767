"""What samplers have in common: passes that depend on seed and epoch alone, shards for several processes, a place to resume from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from operator import length_hint
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed
from torch.utils.data import Sampler

from counterpoise._dist import world_size
from counterpoise._errors import bad_input, check_range

__all__ = ["PassSampler"]

Item = TypeVar("Item")  # an index, or a list of them where the sampler makes whole batches

_STATE = ("seed", "epoch", "position", "num_replicas", "num_samples")


class PassSampler(Sampler[Item]):
    """A sampler whose pass number e is a function of its seed and e, so that any process can make any part of any pass.

    A subclass gives :meth:`_stream`, the items of a pass that all processes share; the process ``rank`` of ``num_replicas`` yields every
    ``num_replicas``-th of them. Each iterator makes the next pass, unless :meth:`set_epoch` says which.

    Parameters
    ----------
    num_samples : int
        Items in a pass, of all processes together.
    repeats : bool
        Whether a pass may be continued past ``num_samples``: then shards are filled up to equal lengths, else the remainder is left out.
    generator : torch.Generator, int or None
        The seed, or a generator that is asked for one number; None is seed 0, as in ``torch.utils.data.DistributedSampler``.
    num_replicas, rank : int or None
        Both or neither. None: those of torch.distributed, looked up when they are needed, and one process where it is not in use.
    """

    def __init__(
        self, num_samples: int, *, repeats: bool, generator: torch.Generator | int | None, num_replicas: int | None, rank: int | None
    ) -> None:
        if (num_replicas is None) != (rank is None):
            given = f"num_replicas={num_replicas}, rank={rank}"
            bad_input("num_replicas and rank", given, "both or neither", "Without them they are those of torch.distributed.")
        if num_replicas is not None and rank is not None:
            check_range("num_replicas", num_replicas, low=1, integer=True)
            check_range("rank", rank, low=0, high=num_replicas - 1, integer=True)
        self.num_samples = int(num_samples)
        self._repeats = repeats
        self._seed = _seed_of(generator)
        self._num_replicas, self._rank = num_replicas, rank
        self._next = (0, 0)  # epoch and position where the next pass begins
        self._pass: _Pass | None = None  # the one that was begun last

    @abstractmethod
    def _stream(self, epoch: int, begin: int, end: int) -> Iterator[npt.NDArray[Any] | Sequence[Item]]:
        """The items ``begin`` to ``end`` (left out) of pass ``epoch`` of all processes, in consecutive parts of any sizes."""

    @property
    def num_replicas(self) -> int:
        """Processes that share a pass."""
        return world_size() if self._num_replicas is None else self._num_replicas

    @property
    def rank(self) -> int:
        """Which of them this one is."""
        if self._rank is not None:
            return self._rank
        return distributed.get_rank() if world_size() > 1 else 0

    def __len__(self) -> int:
        """Items that this process yields in a pass; the same in every process."""
        return -(-self.num_samples // self.num_replicas) if self._repeats else self.num_samples // self.num_replicas

    def __iter__(self) -> Iterator[Item]:
        # A chain of list iterators hands out items without a line of Python in between.
        return chain.from_iterable(self._begin())

    def _begin(self) -> Iterator[Iterator[Item]]:
        """A pass begins with its first item, not with ``iter()``: loaders with workers make iterators that they never use."""
        epoch, start = self._next
        self._next = (epoch + 1, 0)
        self._pass = _Pass(epoch, start)
        yield from self._pass.through(self._shard(epoch, start))

    def set_epoch(self, epoch: int) -> None:
        """The next pass is number ``epoch``; from its beginning, unless a state inside this very pass has been loaded."""
        check_range("epoch", epoch, low=0, integer=True)
        self._pass = None
        if epoch != self._next[0]:
            self._next = (int(epoch), 0)

    def state_dict(self) -> dict[str, int]:
        """Plain numbers that say where the stream goes on: the seed, the epoch, and the position in this process's part of it.

        A loader with workers draws ahead of the training loop, maybe into the next pass. The loop itself is in an epoch it knows, at the
        number of batches it has had times their size: put these into ``"epoch"`` and ``"position"``. (A position past the end is the end.)
        """
        epoch, position = self._next
        if self._pass is not None and self._pass.position < len(self):
            epoch, position = self._pass.epoch, self._pass.position
        values = (self._seed, epoch, position, self.num_replicas, self.num_samples)
        return dict(zip(_STATE, values, strict=True))

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where :meth:`state_dict` was taken: the next pass is the rest of that one, with that seed."""
        if not isinstance(state, Mapping):
            bad_input("state", state, f"what state_dict() gives: {', '.join(_STATE)}")
        if missing := [name for name in _STATE if name not in state]:
            bad_input("state", f"no {', '.join(missing)}", f"what state_dict() gives: {', '.join(_STATE)}")
        for name, here in (("num_replicas", self.num_replicas), ("num_samples", self.num_samples)):
            if state[name] != here:
                bad_input("state", f"{name} = {state[name]}", f"the state of a sampler with {name} = {here}, as this one")
        for name in ("seed", "epoch", "position"):
            check_range(f"state[{name!r}]", state[name], low=0, integer=True)
        self._seed = int(state["seed"])
        epoch, position = int(state["epoch"]), int(state["position"])
        self._next = (epoch, position) if position < len(self) else (epoch + 1, 0)
        self._pass = None

    def _shard(self, epoch: int, start: int) -> Iterator[list[Item]]:
        """This process's items of a pass, from its ``start``-th on."""
        replicas, rank = self.num_replicas, self.rank
        position = start * replicas
        for part in self._stream(epoch, position, len(self) * replicas):
            own = part[(rank - position) % replicas :: replicas]
            yield own.tolist() if isinstance(own, np.ndarray) else list(own)
            position += len(part)


class _Pass:
    """How far a pass has come: items taken from a list iterator need not be counted, it knows how many it still has."""

    def __init__(self, epoch: int, start: int) -> None:
        self.epoch = epoch
        self._fetched = start
        self._left: Iterator[Any] = iter(())

    @property
    def position(self) -> int:
        return self._fetched - length_hint(self._left)

    def through(self, parts: Iterator[list[Item]]) -> Iterator[Iterator[Item]]:
        for part in parts:
            items = iter(part)
            self._fetched, self._left = self._fetched + len(part), items
            yield items

    def __reduce__(self) -> tuple[type[_Pass], tuple[int, int]]:
        return _Pass, (self.epoch, self.position)  # a copy knows the place; the items stay with the original


def _seed_of(generator: torch.Generator | int | None) -> int:
    if generator is None:
        return 0
    if isinstance(generator, torch.Generator):
        return int(torch.empty((), dtype=torch.int64, device=generator.device).random_(generator=generator))
    if isinstance(generator, bool) or not isinstance(generator, (int, np.integer)) or generator < 0:
        bad_input("generator", generator, "a torch.Generator, or a seed >= 0")
    return int(generator)
