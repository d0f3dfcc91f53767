r"""One-bit votes of clients (EdgeDetect, arXiv:2604.14663; the operator as stated in arXiv:2604.16606): every row counts the same.

What is unbalanced: the mean of the clients' updates follows those with the longest updates, because they have much data, much skew, or
bad intentions. Every client sends one sign per coordinate instead,

.. math:: s_{kj} = +1 \text{ if } \delta_{kj} \ge \theta_k \text{, else } -1 , \qquad \theta_k = \mathrm{median}_j \, \delta_{kj} ,

and the step follows :math:`V_j = \frac{1}{K} \sum_k s_{kj}`, or its sign. The coordinate-wise median of an odd number of signs *is* the
sign of their sum, so the sum is all a server has to learn (:mod:`counterpoise.federated`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from counterpoise._errors import bad_input, check_choice
from counterpoise._precision import single

from ._aggregator import Aggregator
from ._statistics import GradientStatistics

__all__ = ["BinaryVote", "median_binarize"]

THRESHOLDS = ("median", "zero", "median_per_tensor")

Threshold = Literal["median", "zero", "median_per_tensor"]


def median_binarize(
    update: Tensor | Sequence[Tensor],
    threshold: Threshold = "median",
    ties: Literal["random", "positive"] = "random",
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The signs of an update around its median: +1 for what lies above, -1 for what lies below.

    Half of the signs are positive whatever the update, so none of them says how long it was. For most networks the median is nearly 0, and
    the signs are those of signSGD; where it is not, a tensor that moves one way as a whole loses that direction.

    Parameters
    ----------
    update : Tensor, or sequence of Tensor
        What a client's training has changed, of floating dtypes; several tensors are one update, in their order.
    threshold : {"median", "zero", "median_per_tensor"}, default "median" (paper)
        The median of the whole update, as NumPy defines it (the mean of the two values in the middle); 0, as in signSGD; or a median for
        each tensor.
    ties : {"random", "positive"}, default "random"
        Sign of entries that are exactly at the threshold. "positive" is the formula of the paper, with which units that did not move drift
        by a full step in every round wherever the median is 0.
    generator : torch.Generator, optional
        For random ties, on the device of the update. Default: torch's global one.

    Returns
    -------
    Tensor, shape (d,), int8
        +1 and -1, one for each entry of the update, flattened.

    Raises
    ------
    InputError
        If the update has no entry, is not of a floating dtype, or has a value that is not finite; the message names the tensor.

    Examples
    --------
    >>> median_binarize(torch.tensor([0.1, -0.2, 0.4, -3.0]))
    tensor([ 1, -1,  1, -1], dtype=torch.int8)
    >>> median_binarize([torch.tensor([5.0, 6.0]), torch.tensor([1.0])], threshold="zero", ties="positive")
    tensor([1, 1, 1], dtype=torch.int8)
    """
    check_choice("threshold", threshold, THRESHOLDS)
    check_choice("ties", ties, ("random", "positive"))
    parts = _flattened([update] if isinstance(update, Tensor) else list(update))
    signs = []
    for part, theta in zip(parts, thresholds(parts, threshold), strict=True):
        sign = torch.where(part[0] < theta[0], -1, 1).to(torch.int8)
        if ties == "random":
            tied = part[0] == theta[0]
            coins = torch.randint(0, 2, (int(tied.sum()),), generator=generator, device=sign.device, dtype=torch.int8)
            sign[tied] = 2 * coins - 1
        signs.append(sign)
    return torch.cat(signs)


class BinaryVote(Aggregator):
    r"""The mean of one-bit votes, or the majority: no row weighs more than another, and no entry more than 1.

    With rows :math:`g_k` and thresholds :math:`\theta_k`, the votes are :math:`s_{kj} = \mathrm{sign}(g_{kj} - \theta_k)` and the result is

    .. math:: V_j = \frac{1}{m} \sum_k s_{kj} \text{ ("mean")} \quad\text{or}\quad V_j = \mathrm{sign} \sum_k s_{kj} \text{ ("majority")} .

    The result has no unit: the learning rate alone says how far a coordinate moves, and has to be tuned for it. One row of :math:`10^6`
    times the length of the others changes it by no more than 2 / m in each coordinate.

    Parameters
    ----------
    aggregate : {"mean", "majority"}, default "mean"
        The mean keeps how strong a vote was. In a majority, as many votes for as against are 0: no step.
    threshold : {"median", "zero", "median_per_tensor"}, default "median" (paper)
        As in :func:`median_binarize`, for each row.
    ties : {"abstain", "positive"}, default "abstain"
        Entries exactly at the threshold do not vote, as if their sign were random and one took its mean, or vote +1 (the paper's formula).
        Where one bit has to be sent, see :func:`median_binarize`.

    Shapes
    ------
    Jacobian (m, n), or a dict of (m, \*shape) tensors, whose median is then that of all of them together; output (n,) or a dict, with
    values in [-1, 1].

    Raises
    ------
    InputError
        As :class:`Aggregator`.

    Notes
    -----
    Rows may be gradients or updates of clients (new weights minus old ones). A step *against* the vote of gradients is a step *along* the
    vote of updates.

    Examples
    --------
    >>> rows = torch.tensor([[3.0, -1.0, 0.5, -2.0], [0.1, -0.2, -0.1, 0.3], [900.0, 100.0, -50.0, -800.0]])
    >>> BinaryVote()(rows)
    tensor([ 1.0000, -0.3333, -0.3333, -0.3333])
    >>> BinaryVote("majority")(rows)
    tensor([ 1., -1., -1., -1.])
    """

    needs = frozenset({"rows"})

    def __init__(
        self,
        aggregate: Literal["mean", "majority"] = "mean",
        threshold: Threshold = "median",
        ties: Literal["abstain", "positive"] = "abstain",
    ) -> None:
        super().__init__()
        check_choice("aggregate", aggregate, ("mean", "majority"))
        check_choice("threshold", threshold, THRESHOLDS)
        check_choice("ties", ties, ("abstain", "positive"))
        self.aggregate = aggregate
        self.threshold: Threshold = threshold
        self.ties = ties

    def combine_all(self, rows: Iterable[Tensor], weights: Tensor | None, s: GradientStatistics) -> Iterator[Tensor]:
        # The median is that of whole rows, so a parameter cannot be combined before the others are known.
        parts = [single(part) for part in rows]
        for slot, (part, theta) in enumerate(zip(parts, thresholds(parts, self.threshold), strict=True)):
            votes = torch.sign(part - theta[:, None])
            if self.ties == "positive":
                votes = torch.where(votes == 0, 1.0, votes)
            mean = votes.mean(dim=0)
            yield self.finish(mean if self.aggregate == "mean" else mean.sign(), slot, s)

    def extra_repr(self) -> str:
        return f"aggregate={self.aggregate!r}, threshold={self.threshold!r}, ties={self.ties!r}"


def thresholds(parts: Sequence[Tensor], threshold: Threshold) -> list[Tensor]:
    """Thresholds (m,) of the rows (m, n_p) of each parameter: the same one for all parameters unless they have their own.

    >>> [theta.tolist() for theta in thresholds([torch.tensor([[1.0, 2.0]]), torch.tensor([[6.0]])], "median_per_tensor")]
    [[1.5], [6.0]]
    """
    if threshold == "zero":
        return [part.new_zeros(len(part)) for part in parts]
    if threshold == "median_per_tensor":
        return [_median_of_rows(part) for part in parts]
    return [_median_of_rows(torch.cat(list(parts), dim=1) if len(parts) > 1 else parts[0])] * len(parts)


def _median_of_rows(rows: Tensor) -> Tensor:
    """Median of each row of (m, n), (m,): for an even n the mean of the two values in the middle."""
    n = rows.shape[1]
    if n == 0:
        return rows.new_zeros(len(rows))
    low = rows.kthvalue((n + 1) // 2, dim=1).values
    return low if n % 2 else 0.5 * low + 0.5 * rows.kthvalue(n // 2 + 1, dim=1).values


def _flattened(tensors: list[Tensor]) -> list[Tensor]:
    """Each tensor as one row (1, n_p), in single precision at least, checked."""
    for i, tensor in enumerate(tensors):
        where = "update" if len(tensors) == 1 else f"update[{i}]"
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            found = f"a tensor of {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
            bad_input(where, found, "a floating-point tensor", "Integer buffers are not voted on: leave them out.")
        if not bool(torch.isfinite(tensor).all()):
            bad_input(where, "nan or inf", "finite values", "A client whose training diverged should not vote in this round.")
    if not sum(tensor.numel() for tensor in tensors):
        bad_input("update", "no entries", "at least one entry")
    return [single(tensor.detach()).reshape(1, -1) for tensor in tensors]
