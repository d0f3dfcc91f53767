r"""Sources of a mixture: which of them are small, and how many examples of a batch each may send (CoLM, arXiv:2407.19580, section 4).

What is unbalanced: sources of a fine-tuning mixture differ in size a hundredfold, so that those below the mean size appear in a batch once
or not at all. They are kept whole; the rest of the budget b is shared by the others in proportion to their counts :math:`n_q` in the pool,

.. math:: b_q = b\, n_q / \textstyle\sum_r n_r ,

which has to be made whole numbers that add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from counterpoise._errors import bad_input, check_choice, check_range
from counterpoise.groups import Groups

__all__ = ["allocate_budget", "small_sources"]

RULES = ("below-mean",)
ROUNDINGS = ("colm-floor", "largest-remainder")


def small_sources(source_ids: Any = None, counts: Mapping[Any, int] | Sequence[int] | None = None, rule: str = "below-mean") -> set[Any]:
    """The sources that have fewer examples than a source has on average.

    Parameters
    ----------
    source_ids : array-like, shape (N,), Groups, or a mapping
        Source of every example of the whole data set. A mapping is taken as ``counts``.
    counts : mapping {source: examples} or sequence of int
        In place of ``source_ids``; position q of a sequence is source q. A source without examples is none.
    rule : {"below-mean"}, default "below-mean"
        The one of CoLM (arXiv:2407.19580): fewer than N / (number of sources) examples.

    Returns
    -------
    set
        Ids of the small sources, as they were given; empty if all have the same size.

    Raises
    ------
    InputError
        If neither or both are given, nothing is in them, or counts are negative or no whole numbers.

    Examples
    --------
    >>> sorted(small_sources(["web"] * 700 + ["books"] * 250 + ["math"] * 50))
    ['books', 'math']
    >>> small_sources(counts=[700, 300, 60, 30])
    {2, 3}
    """
    check_choice("rule", rule, RULES)
    if isinstance(source_ids, Mapping) and counts is None:
        source_ids, counts = None, source_ids
    if (source_ids is None) == (counts is None):
        bad_input("source_ids and counts", "both" if counts is not None else "neither", "one of the two")
    sizes = _counted(source_ids) if counts is None else sizes_of("counts", counts)
    sizes = {source: size for source, size in sizes.items() if size}
    if not sizes:
        bad_input("source_ids" if counts is None else "counts", "no examples", "at least one example")
    mean = sum(sizes.values()) / len(sizes)
    return {source for source, size in sizes.items() if size < mean}


def allocate_budget(counts: Sequence[int] | Tensor | npt.NDArray[Any], total: int, rounding: str = "colm-floor") -> Tensor:
    r"""Whole numbers :math:`b_q` in proportion to the counts, none above its count, that add up to ``total``.

    Parameters
    ----------
    counts : sequence of int, shape (c,)
        Examples :math:`n_q` of each source in the pool.
    total : int in [0, sum of counts]
        Examples to be taken.
    rounding : {"colm-floor", "largest-remainder"}, default "colm-floor"
        What is left after rounding :math:`\mathrm{total}\, n_q / \sum_r n_r` down goes, one each, to the sources with the smallest budgets
        (CoLM's released code: in favor of small sources), or to those that were cut the most. Ties: the first. A source that is full is
        passed over.

    Returns
    -------
    int32 Tensor, shape (c,)

    Raises
    ------
    InputError
        If counts are negative or no whole numbers, or ``total`` is negative or more than there is.

    Examples
    --------
    >>> allocate_budget([50, 30, 8], 32)
    tensor([18, 11,  3], dtype=torch.int32)
    >>> allocate_budget([50, 30, 9], 32), allocate_budget([50, 30, 9], 32, rounding="largest-remainder")
    (tensor([17, 11,  4], dtype=torch.int32), tensor([18, 11,  3], dtype=torch.int32))
    """
    check_choice("rounding", rounding, ROUNDINGS)
    n = np.array(list(sizes_of("counts", counts).values()), dtype=np.int64)
    available = int(n.sum())
    check_range("total", total, low=0, high=available, integer=True)
    if not total:
        return torch.zeros(len(n), dtype=torch.int32)
    budget, cut = np.divmod(n * int(total), available)
    order = np.argsort(budget if rounding == "colm-floor" else -cut, kind="stable")
    order = order[budget[order] < n[order]]
    budget[order[: int(total) - int(budget.sum())]] += 1  # fewer than there are sources with a remainder, so one round is enough
    return torch.from_numpy(budget.astype(np.int32))


def sizes_of(argument: str, counts: Any) -> dict[Any, int]:
    """{source: examples}; position q of a sequence is source q."""
    if isinstance(counts, Tensor):
        counts = counts.detach().cpu().numpy()
    try:
        items = dict(counts.items()) if isinstance(counts, Mapping) else dict(enumerate(np.asarray(counts).tolist()))
        values = np.asarray(list(items.values()), dtype=np.float64)
    except (TypeError, ValueError):
        bad_input(argument, counts, "one count for each source")
    if values.ndim != 1 or not len(values):
        bad_input(argument, counts, "one count for each source")
    if not np.isfinite(values).all() or (values < 0).any() or (values != np.floor(values)).any():
        bad_input(argument, list(items.values()), "counts that are whole numbers >= 0")
    return {source: int(value) for source, value in items.items()}


def _counted(source_ids: Any) -> dict[Any, int]:
    if isinstance(source_ids, Groups):
        source_ids = source_ids.ids
    if isinstance(source_ids, Tensor):
        source_ids = source_ids.detach().cpu()
    ids = np.asarray(source_ids)
    if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iubUSO":
        bad_input("source_ids", f"{ids.dtype} of shape {ids.shape}", "the source of every example, shape (N,)", "Or name counts=.")
    found, counts = np.unique(ids, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))
