r"""Temperature sampling (Li et al. 2025, arXiv:2410.04579): domains drawn by a power of their size, examples alike within each.

What is unbalanced: where domains (languages, sources, hospitals) differ in size by orders of magnitude, the gradient of the pooled loss is
that of the largest. With the sizes :math:`n_i`, a domain and then one of its examples is drawn:

.. math:: p(i; \tau) = n_i^{1/\tau} / \sum_j n_j^{1/\tau}, \qquad x \sim \text{uniform in } D_i .

:math:`\tau = 1` draws as the data are, :math:`\tau = \infty` all domains equally often. The temperature may follow a schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from counterpoise._errors import bad_input, check_choice, check_range, listing
from counterpoise._seeding import generator as stream
from counterpoise._temperature import TAU, Tau, checked_sizes, checked_tau, fixed_tau, probabilities, tau_at
from counterpoise.groups import Groups, _codes, _to_numpy

from ._passes import PassSampler

__all__ = ["Mixture", "TemperatureBatchSampler", "TemperatureSampler", "temperature_probabilities"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

PART = 1 << 15  # examples drawn at once, small enough for the cache of the processor. Another number makes other streams.


def temperature_probabilities(sizes: Tensor | npt.ArrayLike, tau: float = TAU, *, drop_empty: bool = False) -> Tensor:
    r"""Probability of each domain at a temperature: :math:`p(i; \tau) = n_i^{1/\tau} / \sum_j n_j^{1/\tau}`.

    Computed from logarithms in float64, so that no size and no temperature overflows.

    Parameters
    ----------
    sizes : tensor or array-like, shape (K,)
        Examples of each domain; tokens, where domains differ in the length of their documents.
    tau : float > 0, default 5.0 (the paper's)
        1 gives the shares of the data, inf 1 / K. Multilingual T5 used 3.33, the exponent 0.3.
    drop_empty : bool, default False
        Whether a domain may be empty. Its probability is 0, also at inf.

    Returns
    -------
    tensor, shape (K,), float64
        On the device of ``sizes``.

    Raises
    ------
    InputError
        If a size is negative, not finite, or 0 without ``drop_empty``; or ``tau`` is not above 0.

    Examples
    --------
    >>> temperature_probabilities([2733, 162, 39, 1], tau=3.33).round(decimals=3)
    tensor([0.5560, 0.2380, 0.1550, 0.0520], dtype=torch.float64)
    """
    p = torch.from_numpy(probabilities(checked_sizes(sizes, drop_empty), fixed_tau(tau)))
    return p.to(sizes.device) if isinstance(sizes, Tensor) else p


class TemperatureSampler(PassSampler[int]):
    r"""Draws a domain with probability :math:`p(i; \tau) = n_i^{1/\tau} / \sum_j n_j^{1/\tau}`, then one of its examples, all alike.

    Its mean gradient is that of :class:`~counterpoise.losses.ScalarizedLoss` on examples drawn as they are (Theorem 1 of the paper); its
    noise is mostly lower, and :func:`~counterpoise.diagnostics.gradient_variance` says whether it is for a model at hand.

    Each iterator makes the next pass; ``set_epoch(e)`` says which. Pass e is a function of the seed and e alone. Several processes share
    a pass: process i of R yields its items i, i + R, i + 2R, ..., and all yield equally many.

    **Schedules** are asked for the temperature of a step, which is the number of batches of ``batch_size`` that this process has had
    before, over all passes. A loader with workers makes its batches ahead of training, ``prefetch_factor * num_workers`` of them, and a
    sampler cannot know: a batch is always that of its own step, it is only drawn earlier.

    Parameters
    ----------
    domains : array-like, shape (N,), or Groups
        Domain of each example: a tensor, an array, a column or a list of ids of any kind.
    tau : float > 0 or callable, default 5.0 (the paper's)
        The temperature, or a schedule: a function from the step to it, such as :class:`~counterpoise.schedules.Cooldown`.
    num_samples : int, optional
        Length of a pass, of all processes together. Default: N, so that an epoch keeps its number of steps.
    replacement : bool, default True
        Whether examples of a domain are drawn independently. If not, a domain is gone through in a random order, and in another one when
        all of it has been had, so that examples of a domain are never more than one pass through it apart.
    generator : torch.Generator or int, optional
        A seed, or a generator that is asked for one number here. Default: seed 0, as in ``torch.utils.data.DistributedSampler``.
    batch_size : int, default 1
        Batch of the loader, of one process. Only a schedule needs it, to count steps: left at 1, every example is a step, and a schedule
        over 1,000 steps has ended after 1,000 examples.
    num_replicas, rank : int, optional
        Both or neither. Default: those of ``torch.distributed`` if it is in use when a pass starts. Where a framework splits the batches
        among processes by itself (accelerate, the Trainer of transformers), pass 1 and 0, and the batch of all processes together.
    drop_empty : bool, default False
        Whether ``Groups`` may name domains without examples; they are never drawn.

    Attributes
    ----------
    domains : tuple of str, length K
        Names of the domains, in sorted order.
    sizes : array of int64, shape (K,)
        Examples of each.
    num_samples, num_replicas, rank : int

    Raises
    ------
    InputError
        If ``domains`` is not one-dimensional, empty, or has missing values; a domain is empty; a temperature is not above 0 (of a schedule
        the step is named); or another parameter is out of its range.

    Examples
    --------
    >>> languages = ["en"] * 900 + ["fo"] * 100
    >>> sampler = TemperatureSampler(languages, tau=2.0, num_samples=10_000)
    >>> sampler.probabilities(step=0).round(2)
    array([0.75, 0.25])
    >>> sum(languages[i] == "fo" for i in sampler)
    2486
    """

    def __init__(
        self,
        domains: Any,
        tau: Tau = TAU,
        num_samples: int | None = None,
        replacement: bool = True,
        generator: torch.Generator | int | None = None,
        batch_size: int = 1,
        num_replicas: int | None = None,
        rank: int | None = None,
        drop_empty: bool = False,
    ) -> None:
        ids, self.domains, self.sizes = _read(domains, drop_empty)
        check_range("batch_size", batch_size, low=1, integer=True)
        if num_samples is None:
            num_samples = len(ids)
        check_range("num_samples", num_samples, low=1, integer=True)
        super().__init__(num_samples, repeats=True, generator=generator, num_replicas=num_replicas, rank=rank)
        self.replacement, self.batch_size = bool(replacement), int(batch_size)
        self._mixture = Mixture(self.sizes, tau)
        self._members = _Members(ids, self.sizes)

    def __repr__(self) -> str:
        drawn = "with" if self.replacement else "without"
        return f"TemperatureSampler({self.num_samples:,} examples a pass, {drawn} replacement; {self._mixture})"

    def probabilities(self, step: int) -> FloatArray:
        """p(i; tau) (K,) at a step."""
        return self._mixture.probabilities(step)

    def _stream(self, epoch: int, begin: int, end: int) -> Iterator[npt.NDArray[Any]]:
        draw = self._independent if self.replacement else self._in_turn
        yield from draw(epoch, begin, end)

    def _independent(self, epoch: int, begin: int, end: int) -> Iterator[npt.NDArray[Any]]:
        # Every part has a stream of its own, so that resuming need not draw what came before.
        for part in range(begin // PART, -(-end // PART)):
            first = part * PART
            u = stream(self._seed, "temperature", epoch, part).random(PART)
            for at, to, tables in self._runs(epoch, max(begin, first), min(end, first + PART)):
                yield self._members.take(tables.places(u[at - first : to - first]))

    def _in_turn(self, epoch: int, begin: int, end: int) -> Iterator[npt.NDArray[Any]]:
        """The c-th draw of a domain is the c-th example of its orders, one after the other; what came before is drawn to count it."""
        had = np.zeros(len(self.sizes), dtype=np.int64)
        orders: dict[int, tuple[int, IntArray]] = {}
        for part in range(-(-end // PART)):
            first = part * PART
            u = stream(self._seed, "temperature", epoch, part).random(PART)
            runs = self._runs(epoch, first, min(end, first + PART))
            drawn = np.concatenate([tables.domains(u[at - first : to - first]) for at, to, tables in runs])
            if first + len(drawn) > begin:
                new = max(begin - first, 0)
                before = had + np.bincount(drawn[:new], minlength=len(had))
                yield self._members.take(self._places(epoch, drawn[new:], before, orders))
            had += np.bincount(drawn, minlength=len(had))

    def _places(self, epoch: int, drawn: IntArray, had: IntArray, orders: dict[int, tuple[int, IntArray]]) -> IntArray:
        places = np.empty(len(drawn), dtype=np.int64)
        for k in np.unique(drawn).tolist():
            mine = np.flatnonzero(drawn == k)
            cycle, place = np.divmod(had[k] + np.arange(len(mine)), self.sizes[k])
            for c in range(int(cycle[0]), int(cycle[-1]) + 1):
                if orders.get(k, (-1,))[0] != c:
                    orders[k] = c, stream(self._seed, "order", epoch, k, c).permutation(self.sizes[k])
                own = cycle == c
                places[mine[own]] = self._members.first[k] + orders[k][1][place[own]]
        return places

    def _runs(self, epoch: int, begin: int, end: int) -> Iterator[tuple[int, int, _Tables]]:
        """Items of all processes that have one temperature: (first, end, tables)."""
        in_step = self.batch_size * self.num_replicas
        before = epoch * -(-len(self) // self.batch_size)  # the last batch of a pass may not be full
        return self._mixture.runs(begin, end, in_step, before)


class TemperatureBatchSampler(PassSampler[list[int]]):
    r"""Whole batches drawn at a temperature, for ``DataLoader(batch_sampler=...)``.

    As :class:`TemperatureSampler`, item by item; or with the number of examples of each domain fixed in every batch, up to rounding, which
    takes the noise of the domains' shares out of the gradient.

    Parameters
    ----------
    domains, tau, generator, num_replicas, rank, drop_empty
        As those of :class:`TemperatureSampler`. Process i of R yields the batches i, i + R, ... of a pass.
    batch_size : int >= 1
        Examples in a batch, of one process.
    num_batches : int, optional
        Length of a pass, of all processes together. Default: N / ``batch_size``, rounded up.
    composition : {"multinomial", "quota"}, default "multinomial" (the paper's)
        "multinomial": every example's domain is drawn by itself. "quota": domain i has :math:`B\,p(i;\tau)` examples in a batch of B,
        rounded up or down at random so that the mean is exact; also where a batch has fewer examples than there are domains. Every
        process's batch is such a quota of its own.

    Attributes
    ----------
    domains, sizes, num_replicas, rank
        As those of :class:`TemperatureSampler`.
    num_samples : int
        Batches in a pass.

    Raises
    ------
    InputError
        As :class:`TemperatureSampler`.

    Examples
    --------
    >>> languages = ["en"] * 900 + ["fo"] * 100
    >>> batches = TemperatureBatchSampler(languages, batch_size=8, tau=2.0, composition="quota")
    >>> len(batches), {sum(languages[i] == "fo" for i in batch) for batch in batches}
    (125, {2})
    """

    def __init__(
        self,
        domains: Any,
        batch_size: int,
        tau: Tau = TAU,
        num_batches: int | None = None,
        composition: Literal["multinomial", "quota"] = "multinomial",
        generator: torch.Generator | int | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
        drop_empty: bool = False,
    ) -> None:
        ids, self.domains, self.sizes = _read(domains, drop_empty)
        check_range("batch_size", batch_size, low=1, integer=True)
        check_choice("composition", composition, ("multinomial", "quota"))
        if num_batches is None:
            num_batches = -(-len(ids) // batch_size)
        check_range("num_batches", num_batches, low=1, integer=True)
        super().__init__(num_batches, repeats=True, generator=generator, num_replicas=num_replicas, rank=rank)
        self.batch_size, self.composition = int(batch_size), composition
        self._mixture = Mixture(self.sizes, tau)
        self._members = _Members(ids, self.sizes)

    def __repr__(self) -> str:
        return f"TemperatureBatchSampler({self.num_samples:,} batches of {self.batch_size:,} a pass, {self.composition}; {self._mixture})"

    def probabilities(self, step: int) -> FloatArray:
        """p(i; tau) (K,) at a step."""
        return self._mixture.probabilities(step)

    def _stream(self, epoch: int, begin: int, end: int) -> Iterator[npt.NDArray[Any]]:
        draw: Callable[[np.random.Generator, int], Callable[[slice, _Tables], IntArray]]
        draw = self._by_quota if self.composition == "quota" else self._by_chance
        at_once = max(1, PART // self.batch_size)
        for part in range(begin // at_once, -(-end // at_once)):
            first = part * at_once
            places = draw(stream(self._seed, self.composition, epoch, part), at_once)
            runs = self._mixture.runs(max(begin, first), min(end, first + at_once), self.num_replicas, epoch * len(self))
            for at, to, tables in runs:
                yield self._members.take(places(slice(at - first, to - first), tables))

    def _by_chance(self, rng: np.random.Generator, batches: int) -> Callable[[slice, _Tables], IntArray]:
        u = rng.random((batches, self.batch_size))
        return lambda rows, tables: tables.places(u[rows])

    def _by_quota(self, rng: np.random.Generator, batches: int) -> Callable[[slice, _Tables], IntArray]:
        """The expected counts end to end on a line of length B, and points on it one apart, the first at random: a domain gets as many as
        lie in its part. Both the rounding and the sum are right."""
        points = rng.random((batches, 1)) + np.arange(self.batch_size)
        points = rng.permuted(points, axis=1)  # no place in the batch belongs to a domain
        within = rng.random((batches, self.batch_size))

        def places(rows: slice, tables: _Tables) -> IntArray:
            k = np.searchsorted(tables.ends, points[rows] / self.batch_size, side="right")
            k = tables.drawn[np.minimum(k, len(tables.drawn) - 1)]
            return np.asarray(self._members.first[k] + (within[rows] * self.sizes[k]).astype(np.int64))

        return places


class Mixture:
    """Which domain comes at which step: sizes, and a temperature or a schedule of them.

    A method of the samplers asks for runs of items with the same temperature, so that all of a run is drawn at once.
    """

    def __init__(self, sizes: npt.NDArray[Any], tau: Tau) -> None:
        self.sizes, self._tau = np.asarray(sizes, dtype=np.float64), checked_tau(tau)
        self._last: tuple[float, _Tables] | None = None

    def probabilities(self, step: int) -> FloatArray:
        check_range("step", step, low=0, integer=True)
        return probabilities(self.sizes, tau_at(self._tau, int(step)))

    def tables(self, step: int) -> _Tables:
        tau = tau_at(self._tau, step)
        if self._last is None or self._last[0] != tau:
            self._last = tau, _Tables(probabilities(self.sizes, tau), self.sizes)
        return self._last[1]

    def runs(self, begin: int, end: int, in_step: int, before: int) -> Iterator[tuple[int, int, _Tables]]:
        """(first, end, tables) of items ``begin`` to ``end``: ``in_step`` of them make a step, and ``before`` steps came before item 0."""
        if not callable(self._tau):
            yield begin, end, self.tables(0)
            return
        while begin < end:
            step = begin // in_step
            tables, to = self.tables(before + step), (step + 1) * in_step
            while to < end and self.tables(before + to // in_step) is tables:
                to += in_step
            yield begin, min(to, end), tables
            begin = to

    def __repr__(self) -> str:
        if callable(self._tau):
            return f"{len(self.sizes)} domains, tau by {self._tau!r}"
        p = self.probabilities(0)
        least, most = (p[k] / self.sizes[k] * self.sizes.sum() for k in (self.sizes.argmin(), self.sizes.argmax()))
        return (
            f"{len(self.sizes)} domains, tau {self._tau:g}: the smallest {least:.3g} times as often as in the data, the largest {most:.3g}"
        )


class _Tables:
    """Domains with given probabilities, and places in them, from one uniform number each, in a fixed time whatever K is (Walker's aliases).

    A line of K cells of equal length, each shared by at most two domains: the whole part of a number on it names the cell, its fraction
    the domain, and how far it is into that domain's part of the cell the place in the domain.
    """

    def __init__(self, p: FloatArray, sizes: FloatArray) -> None:
        self.drawn = np.flatnonzero(p > 0)  # the others have no part of the line at all
        p = p[self.drawn]
        self.ends = np.cumsum(p)
        self._cut, alias = _aliases(p)
        self._domain = self.drawn[np.stack([np.arange(len(p)), alias], axis=1).reshape(-1)]  # of both parts of each cell
        self._start = np.stack([np.zeros(len(p)), self._cut], axis=1).reshape(-1)
        width = np.stack([self._cut, 1 - self._cut], axis=1).reshape(-1)
        # A part of length 0 is never met. A hair below 1, so that the end of a part is its last place and not the next one's first.
        per_width = np.divide(1 - 2.0**-50, width, out=np.zeros_like(width), where=width > 0)
        self._scale = per_width * sizes[self._domain]
        self._first = (np.cumsum(sizes) - sizes).astype(np.int64)[self._domain]

    def _parts(self, u: FloatArray) -> tuple[IntArray, FloatArray]:
        into = u * len(self._cut)
        part = into.astype(np.int64)
        into -= part  # how far into its cell
        second = into >= self._cut.take(part)
        part *= 2
        part += second
        return part, into

    def domains(self, u: FloatArray) -> IntArray:
        """Domain of each of the numbers in [0, 1)."""
        return self._domain[self._parts(u)[0]]

    def places(self, u: FloatArray) -> IntArray:
        """Place of an example in the order of the domains, for each of the numbers in [0, 1)."""
        part, into = self._parts(u)
        into -= self._start.take(part)
        into *= self._scale.take(part)
        places = into.astype(np.int64)
        places += self._first.take(part)
        return places


def _aliases(p: FloatArray) -> tuple[FloatArray, IntArray]:
    """For each of K cells the share (K,) of its own domain, and the domain (K,) that has the rest of it (Vose 1991)."""
    cut, alias = p * len(p), np.arange(len(p))
    poor, rich = np.flatnonzero(cut < 1).tolist(), np.flatnonzero(cut >= 1).tolist()
    while poor and rich:
        low, high = poor.pop(), rich[-1]
        alias[low] = high
        cut[high] -= 1 - cut[low]
        if cut[high] < 1:
            poor.append(rich.pop())
    cut[poor + rich] = 1  # but for rounding
    return cut, alias


class _Members:
    """Examples in the order of their domains. Where the data are in this order already, as data sets one after the other are, nothing is
    kept of them."""

    def __init__(self, ids: IntArray, sizes: IntArray) -> None:
        self.first = np.cumsum(sizes) - sizes
        self._order: npt.NDArray[Any] | None = None
        if (ids[1:] < ids[:-1]).any():
            # The sort is linear for codes of up to 16 bits.
            order = np.argsort(ids.astype(np.min_scalar_type(len(sizes) - 1)), kind="stable")
            self._order = order.astype(np.int32 if len(ids) < 2**31 else np.int64)

    def take(self, places: IntArray) -> npt.NDArray[Any]:
        # Clipping changes nothing, since all places are there, and is faster than looking whether they are.
        return places if self._order is None else self._order.take(places, mode="clip")


def _of_integers(domains: Any) -> tuple[IntArray, tuple[str, ...]] | None:
    """As ``_codes``, by counting in place of a sort, which matters for ten million examples; None if these are no integers that lie near
    each other."""
    array = _to_numpy("domains", domains)
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu":
        return None
    low, high = int(array.min()), int(array.max())
    if high - low >= 1 << 16 or max(-low, high) >= 1 << 62:
        return None
    offset = array.astype(np.int64) - low
    present = np.flatnonzero(np.bincount(offset))
    place = np.zeros(high - low + 1, dtype=np.int64)
    place[present] = np.arange(len(present))
    return place[offset], tuple(str(low + k) for k in present.tolist())


def _read(domains: Any, drop_empty: bool) -> tuple[IntArray, tuple[str, ...], IntArray]:
    """Codes (N,), names and sizes (K,) of the domains."""
    if isinstance(domains, Groups):
        ids, names = domains.ids, domains.names
    else:
        if isinstance(domains, Sequence) and len(domains) and isinstance(domains[0], tuple):
            domains = list(map(str, domains))  # a tuple is one id, not a row
        ids, names = _of_integers(domains) or _codes("domains", domains)
    if not len(ids):
        bad_input("domains", "no examples", "the domain of each example, shape (N,)")
    if absent := int((ids < 0).sum()):
        bad_input("domains", f"{absent} examples without a domain", "a domain for every example", "Draw from a Subset of the others.")
    sizes = np.bincount(ids, minlength=len(names)).astype(np.int64)
    if (sizes == 0).any() and not drop_empty:
        empty = listing(names[k] for k in np.flatnonzero(sizes == 0))
        bad_input("domains", f"no example of {empty}", "an example in every domain", "drop_empty=True passes over empty ones.")
    return ids, names, sizes
