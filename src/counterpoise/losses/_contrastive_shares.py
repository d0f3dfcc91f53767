r"""Which candidates of a contrastive loss move the model: the positive, the hard negatives, or the many easy ones.

For one row of logits s, with p its softmax, the gradient of the cross-entropy is known without autograd:

.. math::
    -\frac{\partial L}{\partial s_+} = 1 - p_+, \qquad \frac{\partial L}{\partial s_h} = p_h, \qquad
    \sum_j \Bigl|\frac{\partial L}{\partial s_j}\Bigr| = \sum_j p_j, \qquad R = \frac{\sum_{j\,easy} p_j}{\sum_h p_h}

The pull on the positive is what all negatives push together. R, the imbalance, grows with the batch: one hard negative stands against B - 1
easy ones. A margin m on the hard logits divides it by exactly :math:`e^m` at fixed similarities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from counterpoise._errors import bad_input, described
from counterpoise._precision import single

if TYPE_CHECKING:
    import polars as pl

__all__ = ["ContrastiveShares", "contrastive_shares", "shares_of"]


@dataclass(frozen=True, eq=False)
class ContrastiveShares:
    """Result of :func:`contrastive_shares` for B rows: parts of a softmax, which sum to 1, and sizes of gradients.

    Attributes
    ----------
    positive : Tensor, shape (B,)
        Softmax of the positive. The gradient that pulls at it is ``1 - positive``.
    hard, easy : Tensor, shape (B,)
        Summed softmax of the hard and of the easy negatives: the gradients that push them away.
    ratio : Tensor, shape (B,)
        R: easy over hard; NaN in rows without a hard negative.
    n_easy : Tensor, shape (B,)
        Number of easy negatives.
    """

    positive: Tensor
    hard: Tensor
    easy: Tensor
    ratio: Tensor
    n_easy: Tensor

    @property
    def overall(self) -> float:
        """R of the batch: what easy negatives push over what hard ones do, in all rows with a hard negative; NaN if there is none."""
        rows = ~torch.isnan(self.ratio)
        return float(self.easy[rows].sum() / self.hard[rows].sum()) if bool(rows.any()) else math.nan

    @property
    def per_thousand(self) -> float:
        """:attr:`overall` per 1,000 easy negatives, to compare batches of different sizes; it still depends on the scale of the logits."""
        rows = ~torch.isnan(self.ratio)
        return 1000 * self.overall / float(self.n_easy[rows].double().mean()) if bool(rows.any()) else math.nan

    def to_frame(self) -> pl.DataFrame:
        """One row per row of the batch: ``positive, hard, easy, ratio, n_easy``."""
        import polars as pl

        return pl.DataFrame({name: getattr(self, name).tolist() for name in ("positive", "hard", "easy", "ratio", "n_easy")})

    def summary(self) -> str:
        """One or two sentences on the means over the batch."""
        positive, hard, easy, count = (float(part.double().mean()) for part in (self.positive, self.hard, self.easy, self.n_easy))
        text = f"Of the softmax of {len(self.positive)} rows the positive has {positive:.1%}, hard negatives {hard:.1%}, "
        text += f"{count:.4g} easy negatives {easy:.1%}."
        if math.isnan(self.overall):
            return text + " No row has a hard negative."
        return text + f" Easy negatives push {self.overall:.3g} times as hard as hard ones ({self.per_thousand:.3g} per 1,000 of them)."


@torch.no_grad()
def contrastive_shares(logits: Tensor, positive: Tensor, hard: Tensor) -> ContrastiveShares:
    r"""Shares of positive, hard and easy candidates in the softmax of any contrastive loss (notation at the top of the module).

    Parameters
    ----------
    logits : Tensor, shape (B, C)
        As they enter the softmax: scaled, with margins. ``-inf`` is no candidate.
    positive : Tensor, shape (B,) of integers, or (B, C) of bool
        The column of each row's positive, or where it is (several positives count together).
    hard : Tensor, shape (B,) or (B, H) of integers, or (B, C) of bool
        The columns of each row's hard negatives, -1 for one that is missing, or where they are. All other columns are easy.

    Raises
    ------
    InputError
        If shapes do not match, a column does not exist, a row has no positive, a positive is hard as well, or a logit is NaN.

    Examples
    --------
    >>> logits = torch.tensor([[2.0, 1.0, 0.0, 0.0]])  # positive, hard, easy, easy
    >>> shares = contrastive_shares(logits, torch.tensor([0]), torch.tensor([1]))
    >>> print(shares.summary().replace(". ", ".\n"))
    Of the softmax of 1 rows the positive has 61.0%, hard negatives 22.5%, 2 easy negatives 16.5%.
    Easy negatives push 0.736 times as hard as hard ones (368 per 1,000 of them).
    """
    if logits.ndim != 2 or not logits.is_floating_point():
        bad_input("logits", described(logits), "floating-point logits (B, C)")
    if bool(torch.isnan(logits).any()):
        bad_input("logits", math.nan, "numbers; -inf for what is no candidate")
    of_positive, of_hard = _where("positive", positive, logits), _where("hard", hard, logits)
    if bool((of_positive & of_hard).any()):
        bad_input("hard", "a column that is the positive, too", "other columns than the positive's")
    if not bool((lacking := of_positive.any(dim=1)).all()):
        bad_input("positive", f"none in row {int((~lacking).nonzero()[0, 0])}", "a positive in every row")
    s = single(logits.detach())
    of_easy = ~(of_positive | of_hard) & (s > -torch.inf)
    parts = [s.masked_fill(~mask, -torch.inf).logsumexp(dim=1) for mask in (of_positive, of_hard, of_easy)]
    return shares_of(parts[0], parts[1], parts[2], of_easy.sum(dim=1))


def shares_of(positive: Tensor, hard: Tensor, easy: Tensor, n_easy: Tensor) -> ContrastiveShares:
    """From the logarithms of the three sums of exponentials, each (B,)."""
    log_parts = torch.stack([positive, hard, easy])
    shares = (log_parts - log_parts.logsumexp(dim=0)).exp()
    # From the logarithms: a quotient of shares that are nearly 0 has no digits left.
    ratio = torch.where(hard > torch.finfo(hard.dtype).min, (easy - hard).exp(), torch.nan)
    return ContrastiveShares(shares[0], shares[1], shares[2], ratio, n_easy)


def _where(name: str, columns: Tensor, logits: Tensor) -> Tensor:
    """A mask (B, C) from columns or a mask."""
    n, width = logits.shape
    if columns.dtype == torch.bool:
        if columns.shape != logits.shape:
            bad_input(name, f"a mask of shape {tuple(columns.shape)}", f"the shape of the logits, {tuple(logits.shape)}")
        return columns
    if columns.is_floating_point() or columns.ndim not in (1, 2) or len(columns) != n:
        bad_input(name, described(columns), f"columns ({n},) or a mask {tuple(logits.shape)}")
    lowest = 0 if name == "positive" else -1
    if columns.numel() and not bool(((columns >= lowest) & (columns < width)).all()):
        bad_input(name, int(columns[(columns < lowest) | (columns >= width)].flatten()[0]), f"columns {lowest}..{width - 1}")
    # Column `width` takes those that are missing, and is cut off.
    index = torch.where(columns >= 0, columns, width).reshape(n, -1)
    return torch.zeros(n, width + 1, dtype=torch.bool, device=logits.device).scatter_(1, index.to(logits.device), True)[:, :width]
