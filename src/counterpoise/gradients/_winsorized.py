r"""Winsorized mean of per-example gradients (Chatterjee 2020, arXiv:2002.10657): a coordinate follows the many, not the few.

What is unbalanced: a handful of examples - wrong labels, outliers - can hold a coordinate of the mean gradient on their own. Where most
examples of the batch agree, they stay; where a few stand apart, they are cut back. In coordinate p, with the values sorted,
:math:`g_{(1)p} \le \dots \le g_{(m)p}`, and k trimmed on each side,

.. math:: d_p = \frac{1}{m} \sum_{i=1}^m \min\bigl(\max(g_{ip},\ g_{(k+1)p}),\ g_{(m-k)p}\bigr) .

The median of three micro-batches (Zielinski, Krishnan and Chatterjee 2020, arXiv:2003.07422) is a coarser form of the same idea, without
gradients of single examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, overload

import torch
from torch import Tensor

from counterpoise._errors import bad_input, check_choice, check_range
from counterpoise._order_statistics import median, winsorized_mean
from counterpoise._precision import single
from counterpoise.groups import Groups

from ._aggregator import Aggregator, joined, rows_of
from ._statistics import GradientStatistics, check_finite

__all__ = ["WinsorizedMean", "trimmed_rows"]

MICRO_BATCHES = 3  # of mode "median3"


class WinsorizedMean(Aggregator):
    r"""Mean of the rows after clipping each coordinate to the k-th value from below and from above.

    ``trim=0`` (or ``percent=0``) is the mean, ``percent=50`` the median of each coordinate. Compare TorchJD's ``TrimmedMean``, which leaves
    the outer values out instead of pulling them in.

    **Not where rare groups are rare rows.** In a batch with two rows of a rare class, what only these two ask for is an outlier in every
    coordinate, and ``trim=2`` takes it away. Look at :func:`counterpoise.diagnostics.coherence` per group first; with ``groups``, values
    are clipped among the rows of the same group, so that a group is not an outlier of the others.

    Parameters
    ----------
    trim : int >= 0, optional
        Values k to clip on each side, less than half of the rows. Overrides ``percent``.
    percent : float in [0, 50], default 10.0
        Clip beyond this percentile and its mirror image: :math:`k = \min(\lfloor c\,m / 100 \rfloor,\ \lceil m / 2 \rceil - 1)`, so a batch
        of 32 has k = 3. Values are those of rows, never interpolated. The default is ours; the paper tries several.
    mode : {"percentile", "median3"}, default "percentile"
        "median3" takes the rows in their order as three micro-batches, as equal as can be, and the median of their means in each
        coordinate (fewer than three rows: one each). ``trim`` and ``percent`` are then not used.

    Shapes
    ------
    ``forward(jacobian, groups=None)``: Jacobian (m, n) or a dict of (m, \*shape) tensors; ``groups``: a :class:`counterpoise.Groups` or
    labels (m,). With groups, the result is :math:`\sum_k \frac{n_k}{m} d^{(k)}` with the winsorized mean :math:`d^{(k)}` of the
    :math:`n_k` rows of group k; the trim of a small group is at most :math:`\lceil n_k / 2 \rceil - 1`, 0 for one or two rows.

    Raises
    ------
    InputError
        If ``trim`` is half of the rows or more, a parameter is out of its range, ``groups`` has another length, or a row is not finite.

    Notes
    -----
    Beyond the rows, working memory is a few MB (on a GPU about 100 MB) whatever their number; with a dict of parameters, nothing of the
    size (m, n) is made.

    Examples
    --------
    >>> rows = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [90.0, 8.0]])
    >>> WinsorizedMean(trim=1)(rows)
    tensor([2.5000, 0.0000])
    >>> WinsorizedMean(trim=1)(rows, groups=["a", "a", "a", "b"])
    tensor([24.,  2.])
    """

    needs = frozenset({"rows"})

    def __init__(self, trim: int | None = None, percent: float = 10.0, mode: Literal["percentile", "median3"] = "percentile") -> None:
        super().__init__()
        if trim is not None:
            check_range("trim", trim, low=0, integer=True)
        check_range("percent", percent, low=0.0, high=50.0)
        check_choice("mode", mode, ("percentile", "median3"))
        self.trim = None if trim is None else int(trim)
        self.percent = float(percent)
        self.mode = mode

    @overload
    def forward(self, jacobian: Tensor, groups: Any = None) -> Tensor: ...
    @overload
    def forward(self, jacobian: Mapping[str, Tensor], groups: Any = None) -> dict[str, Tensor]: ...
    def forward(self, jacobian: Tensor | Mapping[str, Tensor], groups: Any = None) -> Tensor | dict[str, Tensor]:
        if groups is None:
            return super().forward(jacobian)
        rows, shapes = rows_of(jacobian)
        m = len(rows[0])
        check_finite(rows, [str(i) for i in range(m)])
        members = _members(groups, m)
        combined = []
        for part in rows:
            total = torch.zeros(part.shape[1], dtype=single(part[:, :0]).dtype, device=part.device)
            for index in members:
                own = single(part[index.to(part.device)])
                total += len(index) / m * self._mean(own, self._clipped(len(index), capped=True))
            combined.append(total.to(part.dtype))
        return joined(jacobian, combined, shapes)

    def combine(self, rows: Tensor, slot: int, s: GradientStatistics) -> Tensor:
        return self._mean(rows, self._clipped(len(rows)))

    def extra_repr(self) -> str:
        if self.mode == "median3":
            return "mode='median3'"
        return f"percent={self.percent:g}" if self.trim is None else f"trim={self.trim}"

    def _mean(self, rows: Tensor, k: int) -> Tensor:
        if self.mode == "median3":
            parts = rows.tensor_split(min(MICRO_BATCHES, len(rows)))
            return median(torch.stack([part.mean(dim=0) for part in parts]))
        return winsorized_mean(rows, k)

    def _clipped(self, m: int, capped: bool = False) -> int:
        """k for m rows; ``capped`` allows for fewer rows than ``trim`` asks for."""
        if self.trim is None or self.mode == "median3":
            return trimmed_rows(self.percent, m)
        if capped:
            return min(self.trim, (m - 1) // 2)
        if 2 * self.trim >= m:
            bad_input("trim", self.trim, f"less than half of the {m} rows", "percent=10 follows the size of the batch.")
        return self.trim


def trimmed_rows(percent: float, m: int) -> int:
    """Rows clipped on each side of m.

    >>> [trimmed_rows(10, m) for m in (5, 32, 100)], [trimmed_rows(50, m) for m in (1, 4, 5)]
    ([0, 3, 10], [0, 1, 2])
    """
    return min(math.floor(percent * m / 100), (m - 1) // 2)


def _members(groups: Any, m: int) -> list[Tensor]:
    """Row numbers of each group that occurs."""
    if isinstance(groups, Tensor):
        ids = groups.detach()
    else:
        ids = (groups if isinstance(groups, Groups) else Groups.from_labels(groups)).to_torch()
    if ids.shape != (m,):
        bad_input("groups", f"shape {tuple(ids.shape)}", f"one label for each of the {m} rows")
    return [(ids == k).nonzero()[:, 0] for k in torch.unique(ids)]
