"""Mini-batch coresets of features that are known beforehand, as a stream of batches for an ordinary loader."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from counterpoise._errors import bad_input, check_range, listing
from counterpoise._precision import single
from counterpoise._seeding import generator as stream
from counterpoise._seeding import seed_integer

from ._coreset import MiniBatchCoreset, as_sources
from ._passes import PassSampler

__all__ = ["CoresetBatchSampler"]


class CoresetBatchSampler(PassSampler[list[int]]):
    """Batches of ``budget`` examples, the coresets of random pools, for ``DataLoader(batch_sampler=...)``.

    For features that do not follow the training: of a frozen encoder, or gradients taken once or now and then. A pass cuts a random order
    of all N examples into pools of ``pool_size`` (what is left over comes in other passes) and yields the choice of a
    :class:`MiniBatchCoreset` for each. The history of Adam begins anew with each pass: pass e is a function of the seed and e alone. A pass
    that is resumed, or shared by several processes, makes the choices of the whole pass where they depend on that history
    (``normalize="adam"``), which takes milliseconds for each pool.

    Parameters
    ----------
    features : Tensor or array, shape (N, d)
        One row per example of the data set. A row that is not finite is not picked; a warning names it.
    sources : int Tensor, array or list, shape (N,)
        Source of each example.
    pool_size : int in [1, N]
        Examples that a batch is chosen from. The paper chooses half.
    budget : int in [1, pool_size]
        Examples in a batch.
    generator : torch.Generator or int, optional
        A seed, or a generator that is asked for one number here. Default: seed 0.
    num_replicas, rank : int, optional
        Both or neither. Default: those of ``torch.distributed`` if it is in use when a pass starts.
    **options
        Of :class:`MiniBatchCoreset`: ``keep_small``, ``normalize`` ("adam" or None), ``top_dims``, ``metric``, ``per_source``, and
        ``source_sizes``, which are counted here if they are not given.

    Raises
    ------
    InputError
        If shapes do not fit, a number is out of its range, or an option is one that a stream of indices cannot serve.

    Examples
    --------
    >>> rng = torch.Generator().manual_seed(0)
    >>> sources = torch.tensor([0] * 60 + [1] * 36 + [2] * 4)
    >>> sampler = CoresetBatchSampler(torch.randn(100, 8, generator=rng), sources, pool_size=20, budget=10)
    >>> len(sampler), [len(batch) for batch in sampler]
    (5, [10, 10, 10, 10, 10])
    """

    def __init__(
        self,
        features: Any,
        sources: Any,
        pool_size: int,
        budget: int,
        generator: torch.Generator | int | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
        **options: Any,
    ) -> None:
        known = features.detach() if isinstance(features, Tensor) else torch.as_tensor(np.asarray(features))
        self._sources = as_sources(sources)
        n = len(self._sources)
        if known.ndim != 2 or known.is_complex() or len(known) != n:
            bad_input("features", f"shape {tuple(known.shape)} for {n} sources", f"real numbers of shape ({n}, d), a row for each source")
        self._features = single(known if known.is_floating_point() else known.float())
        check_range("pool_size", pool_size, low=1, high=n, integer=True)
        check_range("budget", budget, low=1, high=pool_size, integer=True)
        if unknown := sorted(set(options) - {"source_sizes", "keep_small", "normalize", "top_dims", "metric", "per_source", "weights"}):
            bad_input("options", unknown[0], "source_sizes, keep_small, normalize, top_dims, metric or per_source")
        if options.get("normalize") == "optimizer":
            bad_input("normalize", "optimizer", "'adam' or None", "A sampler knows no optimizer; call MiniBatchCoreset in your loop.")
        if options.get("weights", "uniform") != "uniform":
            bad_input("weights", options["weights"], "'uniform'", "Batches are indices alone; call MiniBatchCoreset in your loop.")
        super().__init__(n // int(pool_size), repeats=False, generator=generator, num_replicas=num_replicas, rank=rank)
        if num_replicas is not None and self.num_samples < num_replicas:
            bad_input("num_replicas", num_replicas, f"at most {self.num_samples}, one pool for each process")
        ids, counts = np.unique(self._sources, return_counts=True)
        self._options = {"source_sizes": dict(zip(ids.tolist(), counts.tolist(), strict=True))} | options
        self.pool_size, self.budget = int(pool_size), int(budget)
        self.small = self._selector(0).small
        finite = self._features.isfinite().all(dim=1).cpu().numpy() | np.isin(self._sources, list(self.small))
        if not finite.all():
            rows = np.flatnonzero(~finite).tolist()
            warnings.warn(f"Rows of features that are not finite are not picked: {listing(rows)}.", stacklevel=2)

    def __repr__(self) -> str:
        return f"CoresetBatchSampler({self.num_samples:,} batches a pass: {self.budget} of {self.pool_size} each, {self._selector(0)!r})"

    def _selector(self, epoch: int) -> MiniBatchCoreset:
        return MiniBatchCoreset(self.budget, generator=seed_integer(self._seed, "coreset", epoch), **self._options)

    def _stream(self, epoch: int, begin: int, end: int) -> Iterator[npt.NDArray[Any] | Sequence[list[int]]]:
        order = stream(self._seed, "pools", epoch).permutation(len(self._sources))
        selector = self._selector(epoch)
        for number in range(end):
            if number < begin and selector.normalize is None:
                selector.skip()
                continue
            pool = order[number * self.pool_size : (number + 1) * self.pool_size]
            rows = torch.from_numpy(pool).to(self._features.device)
            chosen, _ = selector.choose(self._features[rows], self._sources[pool])
            if number >= begin:
                yield [rows[chosen].tolist()]
