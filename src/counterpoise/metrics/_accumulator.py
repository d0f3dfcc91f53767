"""AUROC and AUPRC of a whole epoch from its batches, also over several processes, in torchmetrics' manner."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from counterpoise._dist import all_gather_rows
from counterpoise._errors import bad_input, check_range
from counterpoise.groups import Groups

from ._decomposition import CurveDecomposition, auroc_auprc_decomposition

__all__ = ["CurveDecompositionMetric"]


class CurveDecompositionMetric:
    """Collects scores and labels batch by batch; :meth:`compute` takes AUROC and AUPRC of all of them apart.

    Neither metric is a mean over batches, so averaging the values of batches is wrong. This keeps every row (``dist_reduce_fx`` "cat": with
    torch.distributed, :meth:`compute` gathers the rows of all processes and gives all of them the same result), or, with ``bins``, only
    counts: memory and traffic no longer grow with the rows, and the result is exact for scores rounded down to their bin.

    ``update``, ``compute`` and ``reset`` are those of ``torchmetrics.Metric``, in the same order of arguments; torchmetrics is not needed.

    Parameters
    ----------
    bins : int, optional
        Number of bins of equal width in place of every row. Pairs in one bin count as ties, so that AUROC is off by at most half of their
        share among all pairs.
    range : (float, float), default (0.0, 1.0)
        Smallest and largest score, with ``bins``: probabilities.
    process_group : optional
        Of torch.distributed; default: all processes.

    Raises
    ------
    InputError
        On a bad argument; from :meth:`update`, if shapes differ, a label is not 0 or 1, a score is NaN, or, with bins, outside ``range``;
        from :meth:`compute`, if a class is missing (a sanity check of few batches may hold no positive).

    Examples
    --------
    >>> metric = CurveDecompositionMetric()
    >>> for scores, labels in [([0.1, 0.4], [0, 0]), ([0.35, 0.8], [1, 1])]:
    ...     metric.update(torch.tensor(scores), torch.tensor(labels))
    >>> found = metric.compute()
    >>> found.auroc, round(found.auprc, 4)
    (0.75, 0.8333)
    >>> metric.reset()
    """

    higher_is_better = True
    is_differentiable = False

    def __init__(self, bins: int | None = None, range: tuple[float, float] = (0.0, 1.0), process_group: Any = None) -> None:
        if bins is not None:
            check_range("bins", bins, low=2, integer=True)
        low, high = range
        if not float("-inf") < low < high < float("inf"):
            bad_input("range", range, "two finite numbers, the lower one first")
        self.bins = bins
        self.range = (float(low), float(high))
        self.process_group = process_group
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._scores: list[Tensor] = []
        self._positive: list[Tensor] = []
        self._groups: list[Tensor] = []
        self._counts = None if self.bins is None else torch.zeros(2, self.bins, dtype=torch.int64)

    def update(self, preds: Tensor, target: Tensor, groups: Tensor | None = None) -> None:
        """Add a batch: scores and labels 0 or 1 of the same shape; ``groups``: ids >= 0, or -1 for none (not with bins)."""
        scores, labels = torch.as_tensor(preds).detach(), torch.as_tensor(target).detach()
        if scores.shape != labels.shape:
            bad_input("preds and target", f"shapes {tuple(scores.shape)} and {tuple(labels.shape)}", "the same shape, one score per label")
        scores, labels = scores.reshape(-1), labels.reshape(-1)
        if scores.dtype not in (torch.float32, torch.float64):
            scores = scores.to(torch.float32 if scores.is_floating_point() else torch.float64)
        positive = labels == 1
        if not bool((positive | (labels == 0)).all()):
            bad_input("target", labels[~positive & (labels != 0)][0].item(), "0 or 1 for every row")
        if bool(scores.isnan().any()):
            bad_input("preds", f"{int(scores.isnan().sum())} scores that are NaN", "a number in every row")
        if self._counts is not None:
            if groups is not None:
                bad_input("groups", "groups together with bins", "one of the two", "Leave out bins to have the groups.")
            self._counts = self._counts.to(scores.device) + self._binned(scores, positive)
            return
        ids = None if groups is None else torch.as_tensor(groups).detach().reshape(-1)
        if ids is not None and (ids.shape != scores.shape or ids.is_floating_point() or bool((ids < -1).any())):
            bad_input("groups", f"{ids.dtype} of shape {tuple(ids.shape)}", f"{len(scores)} integer ids >= 0, or -1 for none")
        self._scores.append(scores)
        self._positive.append(positive)
        self._groups.append(scores.new_full(scores.shape, -1, dtype=torch.int64) if ids is None else ids.to(torch.int64))

    def compute(self) -> CurveDecomposition:
        """The decomposition over all batches of all processes.

        ``index`` counts the rows in the order they came, those of process 0 first; with bins it holds bins, and ``weight`` their share.
        Groups are reported if any batch had them.
        """
        if self._counts is not None:
            counts = all_gather_rows(self._counts[None], self.process_group).sum(dim=0).cpu()
            _check_classes(*counts.sum(dim=1).tolist())
            bins = torch.arange(counts.shape[1]).repeat(2)
            labels = torch.tensor([0, 1]).repeat_interleave(counts.shape[1])
            found = auroc_auprc_decomposition(labels, bins, sample_weight=counts.reshape(-1))
            return replace(found, index=found.index - counts.shape[1])
        # A process without a batch does not know the type of the others' scores; float64 holds all of them.
        scores = all_gather_rows(_joined(self._scores, torch.float64), self.process_group)
        positive = all_gather_rows(_joined(self._positive, torch.uint8), self.process_group)
        ids = all_gather_rows(_joined(self._groups, torch.int64), self.process_group)
        _check_classes(int((positive == 0).sum()), int(positive.sum()))
        return auroc_auprc_decomposition(positive, scores, groups=_named(ids.cpu().numpy()))

    def merge(self, other: Self) -> None:
        """Take in what another metric of the same settings has collected, such as one of another data loader."""
        if (self.bins, self.range) != (other.bins, other.range):
            bad_input("other", f"bins={other.bins}, range={other.range}", f"bins={self.bins}, range={self.range}")
        if self._counts is not None and other._counts is not None:
            self._counts = self._counts + other._counts.to(self._counts.device)
        self._scores += other._scores
        self._positive += other._positive
        self._groups += other._groups

    def __repr__(self) -> str:
        seen = sum(len(part) for part in self._scores) if self._counts is None else int(self._counts.sum())
        settings = "" if self.bins is None else f"bins={self.bins}, range={self.range}, "
        return f"CurveDecompositionMetric({settings}{seen:,} rows)"

    def _binned(self, scores: Tensor, positive: Tensor) -> Tensor:
        """(2, bins) counts of a batch, negatives first; the last bin is closed on both sides."""
        assert self.bins is not None
        low, high = self.range
        if len(scores) and not bool(((scores >= low) & (scores <= high)).all()):
            wrong = scores[(scores < low) | (scores > high)][0].item()
            bad_input("preds", wrong, f"scores in [{low:g}, {high:g}]", "Pass probabilities, or set range=.")
        bins = ((scores.double() - low) * (self.bins / (high - low))).long().clamp(max=self.bins - 1)
        return torch.bincount(positive.long() * self.bins + bins, minlength=2 * self.bins).reshape(2, self.bins)


def _check_classes(negatives: int, positives: int) -> None:
    if not negatives + positives:
        bad_input("compute", "no rows", "at least one call of update before it")
    for label, count in enumerate((negatives, positives)):
        if not count:
            bad_input("target", f"{negatives + positives} rows of one class", "both classes", f"No row had the label {label}.")


def _named(ids: npt.NDArray[np.int64]) -> Groups | None:
    """Groups named by their ids; None where no row has one."""
    distinct = np.unique(ids[ids >= 0])
    if not len(distinct):
        return None
    codes = np.where(ids < 0, -1, np.searchsorted(distinct, ids))
    return Groups(codes, tuple(str(k) for k in distinct), "attribute")


def _joined(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    """One tensor (n,) of batches that may lie on several devices."""
    if not parts:
        return torch.zeros(0, dtype=dtype)
    return torch.cat([part.to(parts[0].device, dtype) for part in parts])
