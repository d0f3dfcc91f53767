r"""Class-balanced drawing (Buda, Maki, Mazurowski 2018, arXiv:1710.05381): over- and under-sampling as a stream of indices.

What is unbalanced: classes with more examples hold more of the summed gradient. With counts :math:`n_k`, a pass holds class k in proportion
to a target :math:`m_k`; the ratio r says how many times as frequent as the rarest the most common class may stay:

.. math:: m_k = \max(n_k, n_{max} / r) \text{ (over-sampling)}, \qquad m_k = \min(n_k, r\, n_{min}) \text{ (under-sampling)} .

No copy of the data is made, only indices are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from counterpoise._errors import bad_input, check_range, listing
from counterpoise._seeding import generator as stream
from counterpoise.groups import Groups, _codes, _column

from ._passes import PassSampler

__all__ = ["BalancedClassSampler", "balanced_counts"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

PART = 1 << 15  # indices drawn at once, small enough for the cache of the processor. Another number makes other streams.


class BalancedClassSampler(PassSampler[int]):
    r"""Draws examples so that all classes are equally frequent, or up to ``ratio`` times as frequent as the rarest.

    With replacement (over-sampling): class k is drawn with probability :math:`m_k / \sum_j m_j`, :math:`m_k = \max(n_k, n_{max} / r)`, then
    one of its examples, all alike. Without (under-sampling): a pass holds :math:`m_k = \min(n_k, \mathrm{round}(r\, n_{min}))` different
    examples of class k in random order, others in every pass.

    Each iterator makes the next pass; ``set_epoch(e)`` says which. Pass e is a function of the seed and e alone. Several processes share
    a pass: process i of R yields its items i, i + R, i + 2R, ..., and all yield equally many.

    Parameters
    ----------
    labels : array-like, shape (N,), or Groups
        Class of each example: a list, an array, a tensor or a column of integers, strings or booleans; or any other groups to balance.
    num_samples : int, optional
        Length of a pass, of all processes together. Default: N with replacement, so that an epoch keeps its number of steps;
        :math:`\sum_k m_k` without, which is also the most.
    ratio : float >= 1, default 1.0
        Largest over smallest class frequency in the drawn stream. 1 balances completely (over-sampling: Buda et al., conclusion iii);
        anything above the ratio of the data changes nothing.
    replacement : bool, default True
        Over-sampling; else under-sampling.
    generator : torch.Generator or int, optional
        A seed, or a generator that is asked for one number here. Default: seed 0, as in ``torch.utils.data.DistributedSampler``.
    num_replicas, rank : int, optional
        Both or neither. Default: those of ``torch.distributed`` if it is in use when a pass starts. Where a framework splits the batches
        among processes by itself (accelerate, the Trainer of transformers), pass 1 and 0.

    Attributes
    ----------
    classes : tuple of str, length K
        Names of the classes, in sorted order of the labels.
    effective_prior : array of float, shape (K,)
        Share of each class in the stream, which is the prior that training sees: the one to correct predictions from.
    num_samples, num_replicas, rank : int

    Raises
    ------
    InputError
        If ``labels`` is not one-dimensional, has missing values or fractions or fewer than two classes; a parameter is out of its range;
        or, without replacement, ``num_samples`` is more than there is or fewer than the processes.

    Examples
    --------
    >>> labels = ["ok"] * 95 + ["fault"] * 5
    >>> sampler = BalancedClassSampler(labels, num_samples=1000, generator=0)
    >>> sum(labels[i] == "fault" for i in sampler)
    515
    >>> sampler.classes, sampler.effective_prior
    (('fault', 'ok'), array([0.5, 0.5]))
    >>> len(BalancedClassSampler(labels, replacement=False)), len(BalancedClassSampler(labels, ratio=3, replacement=False))
    (10, 20)
    """

    def __init__(
        self,
        labels: Any,
        num_samples: int | None = None,
        ratio: float = 1.0,
        replacement: bool = True,
        generator: torch.Generator | int | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        ids, self.classes, counts = _read(labels)
        if ratio != float("inf"):  # which leaves the classes as they are
            check_range("ratio", ratio, low=1.0)
        target = balanced_counts(counts, ratio, replacement)
        n, available = len(ids), int(target.sum())
        if num_samples is None:
            num_samples = n if replacement else available
        check_range("num_samples", num_samples, low=1, integer=True)
        if not replacement and num_samples > available:
            accepted = f"at most {available}, as many as there are without replacement"
            bad_input("num_samples", num_samples, accepted, "Raise ratio, or draw with replacement.")
        super().__init__(num_samples, repeats=replacement, generator=generator, num_replicas=num_replicas, rank=rank)
        if not replacement and num_replicas is not None and num_samples < num_replicas:
            bad_input("num_replicas", num_replicas, f"at most {num_samples}, one example for each process")
        self.ratio, self.replacement = float(ratio), replacement
        self.effective_prior: FloatArray = target / target.sum()
        self._n = n
        small = np.min_scalar_type(len(counts) - 1)  # the sort by class is linear for codes of up to 16 bits
        if replacement:
            self._over = _OverSampling(ids.astype(small), counts, float(target.min()))
        else:
            self._codes, self._counts, self._quota = ids.astype(small), counts, target.astype(np.int64)

    def __repr__(self) -> str:
        shares = ", ".join(f"{name}: {share:.2g}" for name, share in list(zip(self.classes, self.effective_prior, strict=True))[:6])
        more = f" and {len(self.classes) - 6} more" if len(self.classes) > 6 else ""
        drawn = "with" if self.replacement else "without"
        return f"BalancedClassSampler({self.num_samples:,} of {self._n:,} examples a pass, {drawn} replacement; {shares}{more})"

    def _stream(self, epoch: int, begin: int, end: int) -> Iterator[npt.NDArray[Any]]:
        if not self.replacement:
            chosen = self._under(epoch)
            yield from (chosen[at : min(at + PART, end)] for at in range(begin, end, PART))
            return
        # Every part has a stream of its own, so that resuming need not draw what came before.
        for part in range(begin // PART, -(-end // PART)):
            first = part * PART
            yield self._over.draw(stream(self._seed, "over", epoch, part), PART)[max(begin - first, 0) : end - first]

    def _under(self, epoch: int) -> npt.NDArray[Any]:
        """The first of each class, up to its quota, in a random order of all examples; these in a new order, free of who came first."""
        rng = stream(self._seed, "under", epoch)
        order = rng.permutation(self._n)
        by_class = np.argsort(self._codes[order], kind="stable")
        turn = np.arange(self._n) - np.repeat(np.cumsum(self._counts) - self._counts, self._counts)
        kept = np.empty(self._n, dtype=np.bool_)
        kept[by_class] = turn < np.repeat(self._quota, self._counts)
        return rng.permutation(order[kept])


def balanced_counts(counts: npt.ArrayLike, ratio: float = 1.0, replacement: bool = True) -> FloatArray:
    """Targets m_k (K,) of a pass for counts n_k (K,): raised to n_max / ratio with replacement, cut at ratio n_min without.

    >>> balanced_counts([100, 30, 5], ratio=2.0), balanced_counts([100, 30, 5], ratio=2.0, replacement=False)
    (array([100.,  50.,  50.]), array([10., 10.,  5.]))
    """
    n = np.asarray(counts, dtype=np.float64)
    return np.asarray(np.maximum(n, n.max() / ratio) if replacement else np.minimum(n, np.rint(n.min() * ratio)))


class _OverSampling:
    """Draws indices in a fixed time each: no search, although the classes have different probabilities.

    Every class is either raised to the same target t, or keeps its count, and then its examples are as probable as those of any other such
    class. So the raised classes are segments of length 1, all others together are one last segment of length (their examples) / t; a
    uniform number on this line names a segment by its whole part and an example in it by its fraction.
    """

    def __init__(self, codes: npt.NDArray[Any], counts: IntArray, t: float) -> None:
        n = len(codes)
        raised = counts <= t
        by_size = np.argsort(~raised, kind="stable")  # raised classes first
        place = np.empty(len(counts), dtype=codes.dtype)
        place[by_size] = np.arange(len(counts))
        members = np.argsort(place[codes], kind="stable")
        self._members = members.astype(np.int32 if n < 2**31 else np.int64)
        sizes = counts[by_size][: raised.sum()]
        kept = n - int(sizes.sum())
        self._length = len(sizes) + kept / t
        self._per_length = np.append(sizes, t) if kept else sizes.astype(np.float64)  # examples in a segment over its length
        self._first = (np.cumsum(sizes) - sizes) if not kept else np.append(np.cumsum(sizes) - sizes, n - kept)

    def draw(self, rng: np.random.Generator, size: int) -> npt.NDArray[Any]:
        at = rng.random(size) * self._length
        segment = np.minimum(at.astype(np.int64), len(self._first) - 1)
        within = ((at - segment) * self._per_length[segment]).astype(np.int64)
        # Only rounding at the very end of the line can lead past the last example.
        return self._members[np.minimum(self._first[segment] + within, len(self._members) - 1)]


def _read(labels: Any) -> tuple[IntArray, tuple[str, ...], IntArray]:
    """Codes (N,), names and counts (K,) of classes that all have examples."""
    if isinstance(labels, Groups):
        ids, names = labels.ids, labels.names
    else:
        values, missing = _column("labels", labels)
        if values.dtype.kind == "f" and (values[~missing] != np.round(values[~missing])).any():
            bad_input("labels", "numbers with fractions", "class labels", "Bin a continuous target first: Groups.from_bins(y).")
        ids, names = _codes("labels", labels)
    if absent := int((ids < 0).sum()):
        bad_input("labels", f"{absent} examples without a class", "a class for every example", "Draw from a Subset of the others.")
    counts = np.bincount(ids, minlength=len(names)).astype(np.int64)
    if len(names) < 2:
        bad_input("labels", f"one class ({listing(names)})" if names else "no examples", "at least two classes")
    if (counts == 0).any():
        bad_input("labels", f"no example of {listing(names[k] for k in np.flatnonzero(counts == 0))}", "an example in every class")
    return ids, names, counts
