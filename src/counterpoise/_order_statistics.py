r"""Order statistics of each column of a matrix with few rows and many columns: the bounds of a clipped mean, and the median.

The (k + 1)-th smallest of each column is found by a network of ``minimum`` and ``maximum``: rows are put into lists of t >= k + 1 (a power
of two), all lists are sorted side by side, and lists are merged two by two, of which only the first t values are kept. That is
:math:`O(m \log^2 t)` elementwise operations on whole rows, which a CPU does many columns at a time, where ``torch.sort``, ``topk`` and
``kthvalue`` look at one column after the other. On a GPU it is the other way round.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from counterpoise._precision import single

__all__ = ["median", "order_bounds", "winsorized_mean"]

Pick = Callable[..., Tensor]  # torch.minimum or torch.maximum

CACHED = 2**18  # numbers at once on a CPU: what fits into its cache
AT_ONCE = 2**22  # and elsewhere: about 100 MB in float32, with the sorted values and their places


def winsorized_mean(rows: Tensor, trim: int) -> Tensor:
    """Mean of each column of ``rows`` (m, n) after clipping it to its (trim + 1)-th smallest and largest value, (n,); 0 <= trim < m / 2.

    Half precision is computed in float32. The result has the dtype of the rows.

    >>> winsorized_mean(torch.tensor([[1.0], [2.0], [3.0], [100.0]]), 1)
    tensor([2.5000])
    """
    if trim == 0 or not rows.numel():
        return single(rows).mean(dim=0).to(rows.dtype)
    if trim == (len(rows) - 1) // 2:
        return median(rows)  # what is left is one value, or two
    return _by_parts(rows, lambda part: part.clamp(*order_bounds(part, trim)).mean(dim=0))


def median(rows: Tensor) -> Tensor:
    """Median of each column of ``rows`` (m, n), (n,): for an even m the mean of the two values in the middle.

    >>> median(torch.tensor([[1.0, 1.0], [3.0, 2.0], [9.0, 9.0]])), median(torch.tensor([[1.0], [3.0], [5.0], [9.0]]))
    (tensor([3., 2.]), tensor([4.]))
    """
    if len(rows) == 1 or not rows.numel():
        return rows[0].clone()

    def middle(part: Tensor) -> Tensor:
        low, high = order_bounds(part, (len(part) - 1) // 2)
        return 0.5 * low + 0.5 * high

    return _by_parts(rows, middle)


def order_bounds(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The (k + 1)-th smallest and the (k + 1)-th largest value of each column of ``rows`` (m, n), each (n,); 0 <= k < m.

    >>> [bound.tolist() for bound in order_bounds(torch.tensor([[3.0], [1.0], [4.0], [1.5], [5.0]]), 1)]
    [[1.5], [4.0]]
    """
    rows = rows.detach()
    if rows.device.type != "cpu":
        return _by_sorting(rows, k)
    length = 1 << k.bit_length()  # the smallest power of two above k
    whole = len(rows) // length * length
    lists = _lists(rows[:whole], length, torch.minimum, torch.maximum) if whole else rows.new_empty(0, length, rows.shape[1])
    rest = rows[whole:]  # too few for a list of their own
    low = _first(lists, rest, torch.minimum, torch.maximum, float("inf"))
    high = _first(lists.flip(1), rest, torch.maximum, torch.minimum, float("-inf"))
    return low[k], high[k]


def _by_sorting(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same on a GPU, which sorts many short columns in no time. NaN, which comes last there, is the answer here, too."""
    ordered = rows.sort(dim=0).values
    last = ordered[-1]
    return torch.where(last.isnan(), last, ordered[k]), torch.where(last.isnan(), last, ordered[len(rows) - 1 - k])


def _by_parts(rows: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """``function`` of the columns, some after the other."""
    width = max((CACHED if rows.device.type == "cpu" else AT_ONCE) // len(rows), 1)
    result = rows.new_empty(rows.shape[1])
    for start in range(0, rows.shape[1], width):
        columns = slice(start, start + width)
        result[columns] = function(single(rows[:, columns]))
    return result


def _lists(rows: Tensor, length: int, first: Pick, last: Pick) -> Tensor:
    """Every ``length`` rows in order, column by column: (m, n) -> (m / length, length, n)."""
    size = 1
    while size < length:  # lists of that size are in order: two become one
        pairs = rows.reshape(-1, 2, size, rows.shape[-1])
        rows = _in_order(_apart(pairs[:, 0], pairs[:, 1].flip(1), first, last), size, first, last)
        size *= 2
    return rows.reshape(-1, length, rows.shape[-1])


def _first(lists: Tensor, rest: Tensor, first: Pick, last: Pick, beyond: float) -> Tensor:
    """Of lists (L, length, n) in order, and the other rows, the ``length`` values that come first in each column, in order: (length, n).

    ``beyond`` comes after all values.
    """
    length = lists.shape[1]
    if len(rest):
        filled = torch.cat([rest, rest.new_full((length - len(rest), rest.shape[1]), beyond)])
        lists = torch.cat([lists, _lists(filled, length, first, last)])
    while len(lists) > 1:
        half = len(lists) // 2
        kept = first(lists[:half], lists[half : 2 * half].flip(1))
        merged = _in_order(kept, length, first, last).reshape(kept.shape)
        lists = torch.cat([merged, lists[2 * half :]]) if len(lists) % 2 else merged
    return lists[0]


def _in_order(lists: Tensor, size: int, first: Pick, last: Pick) -> Tensor:
    """Lists of ``size`` rows that rise and then fall, or the other way round, put in order."""
    step = size // 2
    while step:
        pairs = lists.reshape(-1, 2, step, lists.shape[-1])
        lists = _apart(pairs[:, 0], pairs[:, 1], first, last)
        step //= 2
    return lists


def _apart(a: Tensor, b: Tensor, first: Pick, last: Pick) -> Tensor:
    """What comes first of each pair, before what comes last: (L, s, n) twice -> (L, 2, s, n)."""
    pairs = a.new_empty(len(a), 2, *a.shape[1:])
    first(a, b, out=pairs[:, 0])
    last(a, b, out=pairs[:, 1])
    return pairs
