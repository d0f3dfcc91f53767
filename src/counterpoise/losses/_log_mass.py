r"""Logits of all pairs, and the log-mass of the negatives that each row keeps: the part of a contrastive loss with B x N numbers.

.. math:: S_{ij} = \cos_{ij} / \tfrac{1}{2} (\tau(q_i) + \tau(p_j)), \qquad \ell_i = \log \sum_{j \in \Omega_i} e^{S_{ij}} .

One autograd function, for speed: of B x N numbers it keeps the logits and, per direction, :math:`e^{S_{ij} - \max_j S_{ij}}`, from which
the backward pass needs no exponential; temporaries are overwritten in place.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._quantile_curriculum import threshold

__all__ = ["Masses", "log_masses"]


class Masses(NamedTuple):
    """``positive`` (B,) logits of the positives, ``negative`` (B,) log-masses of each query's negatives among the targets, ``reverse``
    (B,) those of each query's target among the queries (None unless wanted), ``kept`` and ``present``: how many negatives count, and how
    many there are."""

    positive: Tensor
    negative: Tensor
    reverse: Tensor | None
    kept: Tensor
    present: Tensor


def log_masses(
    cosine: Tensor,
    tau_q: Tensor,
    tau_t: Tensor,
    positives: Tensor,
    excluded: Tensor | None,
    rho: float | Tensor,
    reverse: bool,
    one_to_one: bool,
) -> Masses:
    """Of cosines (B, N), temperatures (B,) and (N,), and the column of each row's positive (B,).

    ``excluded`` (B, N) marks further pairs that are no negatives. ``rho`` is the share of easy negatives that is left out. ``one_to_one``
    with ``reverse``: the positives are 0..B-1.
    """
    found = _LogMasses.apply(cosine, tau_q, tau_t, positives, excluded, rho, reverse, one_to_one)  # type: ignore[no-untyped-call]
    positive, negative, back, kept, present = found
    return Masses(positive, negative, back if reverse else None, kept, present)


class _LogMasses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        cosine: Tensor,
        tau_q: Tensor,
        tau_t: Tensor,
        positives: Tensor,
        excluded: Tensor | None,
        rho: float | Tensor,
        reverse: bool,
        one_to_one: bool,
    ) -> tuple[Tensor, ...]:
        logits = _tau(tau_q, tau_t)
        torch.div(cosine, logits, out=logits)
        column = positives[:, None]
        positive = logits.gather(1, column)
        # What is no negative has the logit -inf, so that exp makes it 0, for as long as masses are taken.
        logits.scatter_(1, column, float("-inf"))
        if excluded is not None:
            logits.masked_fill_(excluded, float("-inf"))
        ctx.diagonal = diagonal = one_to_one and cosine.shape[0] == cosine.shape[1]
        masses, weights, total, kept, present = _masses(logits, rho, None if excluded is not None else 1)
        back_masses, back_weights, back_total = torch.empty_like(masses), None, None
        if reverse:
            lines = (logits if diagonal else logits[:, positives]).T
            one = 1 if excluded is None and one_to_one else None
            back_masses, back_weights, back_total, more, others = _masses(lines, rho, one)
            kept, present = kept + more, present + others
        if excluded is not None:
            logits.masked_fill_(excluded, 0.0)  # their gradient is 0, and 0 times -inf is not
        logits.scatter_(1, column, positive)
        ctx.save_for_backward(logits, weights, total, back_weights, back_total, tau_q, tau_t, positives)
        ctx.mark_non_differentiable(kept, present)
        return positive[:, 0], masses, back_masses, kept, present

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_positive: Tensor, by_negative: Tensor, by_reverse: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        logits, weights, total, back_weights, back_total, tau_q, tau_t, positives = ctx.saved_tensors
        grad = weights * (by_negative / total)[:, None]
        if back_weights is not None:
            scale = by_reverse / back_total
            if ctx.diagonal:
                grad.addcmul_(back_weights.T, scale)
            else:
                grad.index_add_(1, positives, back_weights.T * scale)
        grad.scatter_add_(1, positives[:, None], by_positive[:, None])
        tau = _tau(tau_q, tau_t)
        grad.div_(tau)  # by the cosines
        by_q = by_t = None
        if any(ctx.needs_input_grad[1:3]):
            by_tau = torch.mul(grad, logits, out=tau)
            by_q, by_t = by_tau.sum(dim=1) / -2, by_tau.sum(dim=0) / -2
        return grad, by_q, by_t, None, None, None, None, None


def _masses(lines: Tensor, rho: float | Tensor, left_out: int | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-mass of each line (B,), exp(line - its largest value) of what is kept (B, N), the sum of that (B,), the number of all that is
    kept, and the number of negatives. ``left_out``: values of each line that are -inf, or None to count them."""
    out: Tensor | int = lines.isneginf().sum(dim=1) if left_out is None else left_out
    present = torch.as_tensor(lines.shape[1] - out, device=lines.device).expand(len(lines)).sum()
    largest = lines.amax(dim=1)
    nothing = largest.isneginf()  # lines without negatives
    largest = largest.masked_fill(nothing, 0.0)
    weights = (lines - largest[:, None]).exp_()
    kept = present
    if isinstance(rho, Tensor) or rho > 0:
        least = threshold(lines, rho, out).masked_fill(nothing, float("inf"))
        # 0 and 1 as floating point: booleans take many times as long, here and in the product. A compiler makes one pass of it anyway.
        passes = torch.ge(lines, least[:, None], out=None if torch.compiler.is_compiling() else torch.empty_like(weights))
        kept = passes.sum(dim=1).long().sum()
        weights.mul_(passes)
    total = weights.sum(dim=1)
    return largest + total.log(), weights, total.masked_fill(nothing, 1.0), kept, present


def _tau(tau_q: Tensor, tau_t: Tensor) -> Tensor:
    """Temperatures of all pairs (B, N), new memory."""
    return torch.add(tau_q[:, None] / 2, tau_t / 2)
