r"""Which sign of the advantage a policy-gradient update listens to, and where it takes the entropy (BAPO, arXiv:2510.18927).

With the sums P of positive and Q of negative contributions (:mod:`counterpoise.losses`), and X = 1 where a token carries gradient,

.. math::
    X = [A > 0][r \le c_{high}] + [A < 0][r > c_{low}], \qquad
    \Delta H \approx -\eta \, \mathrm{Cov}_{y \sim \pi}\bigl(\log \pi(y), \, A X\bigr) .

Raising tokens that are probable already lowers the entropy; so does charging rare ones. Each side has another length, too: a group's
normalized advantages cancel over answers, and over tokens only if right and wrong answers are equally long.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from counterpoise._errors import check_choice, check_range
from counterpoise.losses._balanced_clip import checked_mask, ratios, refuse_values, rollout_weights

if TYPE_CHECKING:
    import polars as pl

__all__ = ["PolicyBalance", "policy_balance"]


@dataclass(frozen=True)
class PolicyBalance:
    """Result of :func:`policy_balance`, of the tokens of this process.

    Attributes
    ----------
    tokens : int
        Tokens that count. positive_tokens, negative_tokens: those with A > 0 and A < 0.
    positive_length, negative_length : float
        Mean number of such tokens in a sequence that has any; NaN if none has.
    count_share : float
        Share of positive tokens among those with A != 0; NaN if there are none.
    share : float
        P / (P + Q), their share of the contributions; NaN if all advantages are 0.
    positive_gradient, negative_gradient : float
        Length of the gradient of the loss (mean over tokens) by the log-probabilities of these tokens.
    clipped_high, clipped_low : float
        Shares of all tokens: with A > 0 above the high bound, with A < 0 below the low bound.
    covariance : float
        Cov(log pi, A X), over tokens, each weighed by its ratio so that they stand for draws of the policy in training. A positive one says
        that the update lowers the entropy. Tokens of all positions count as draws of one distribution.
    """

    tokens: int
    positive_tokens: int
    negative_tokens: int
    positive_length: float
    negative_length: float
    count_share: float
    share: float
    positive_gradient: float
    negative_gradient: float
    clipped_high: float
    clipped_low: float
    covariance: float

    def to_frame(self) -> pl.DataFrame:
        """One row with all numbers."""
        import polars as pl

        return pl.DataFrame([asdict(self)])

    def summary(self) -> str:
        """Three or four sentences."""
        if not self.positive_tokens + self.negative_tokens:
            return f"Of {self.tokens} tokens none has an advantage: this update changes nothing."
        if not self.positive_tokens or not self.negative_tokens:
            sign = "positive" if self.positive_tokens else "negative"
            text = f"All of the {self.positive_tokens + self.negative_tokens} tokens with an advantage have a {sign} one."
        else:
            text = (
                f"Positive advantages have {self.count_share:.1%} of {self.positive_tokens + self.negative_tokens} tokens and "
                f"{self.share:.1%} of the contributions; right answers have {self.positive_length:.3g} tokens, wrong ones "
                f"{self.negative_length:.3g}."
            )
        text += f" Gradient by sign: {self.positive_gradient:.3g} positive, {self.negative_gradient:.3g} negative."
        text += f" Held back by the clip: {self.clipped_high:.1%} of the tokens above it, {self.clipped_low:.1%} below."
        if self.covariance:
            text += f" This update {'lowers' if self.covariance > 0 else 'raises'} the entropy (covariance {self.covariance:+.3g})."
        return text


@torch.no_grad()
def policy_balance(
    logp: Tensor,
    old_logp: Tensor,
    adv: Tensor,
    mask: Tensor,
    *,
    low: float | Tensor = 0.8,
    high: float | Tensor = 1.2,
    weight: Literal["rollout_prob", "none"] = "none",
    dual_clip: float | None = 3.0,
) -> PolicyBalance:
    r"""Counts, contributions, gradients and clipping by the sign of the advantage, and the entropy-clip covariance.

    Parameters
    ----------
    logp, old_logp, adv : Tensor, shape (B, T)
        Log-probabilities of the tokens by the policy in training and by the one that drew them, and advantages.
    mask : Tensor, shape (B, T), bool or 0 and 1
        Tokens that count.
    low, high : float, default 0.8 and 1.2 (PPO's epsilon of 0.2)
        Bounds of the ratio, such as those of a :class:`~counterpoise.losses.BalancedClipLoss`: ``loss.last.low, loss.last.high``.
    weight : {"none", "rollout_prob"}, default "none"
        w in P and Q: 1, or the probability by the old policy, as BAPO's search has it.
    dual_clip : float > 1 or None, default 3.0
        Tokens with A < 0 and a ratio above it carry no gradient.

    Raises
    ------
    InputError
        As :class:`~counterpoise.losses.BalancedClipLoss`.

    Examples
    --------
    >>> old_logp = torch.log(torch.tensor([[0.5, 0.0], [0.5, 0.5]]))  # a right answer of one token, a wrong one of two
    >>> logp = torch.log(torch.tensor([[0.7, 0.0], [0.45, 0.3]]))
    >>> adv = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    >>> balance = policy_balance(logp, old_logp, adv, torch.tensor([[1, 0], [1, 1]]))
    >>> print(balance.summary().replace(". ", ".\n"))
    Positive advantages have 33.3% of 3 tokens and 41.4% of the contributions; right answers have 1 tokens, wrong ones 2.
    Gradient by sign: 0 positive, 0.3 negative.
    Held back by the clip: 33.3% of the tokens above it, 33.3% below.
    This update lowers the entropy (covariance +0.0402).
    """
    low, high = float(low), float(high)  # a loss keeps its bounds as tensors
    check_range("low", low, low=0.0, high=1.0)
    check_range("high", high, low=1.0)
    check_choice("weight", weight, ("none", "rollout_prob"))
    if dual_clip is not None:
        check_range("dual_clip", dual_clip, low=1.0, open_low=True)
    keep = checked_mask(logp, old_logp, adv, mask)
    r, a = ratios(logp, old_logp, keep).double(), torch.where(keep, adv.double(), 0.0)
    tokens, strange, usable = int(keep.sum()), int((keep & (mask != 1)).sum()), bool(torch.isfinite(r * a).all())
    refuse_values(tokens, strange, usable, logp, old_logp, adv, keep)
    w = rollout_weights(old_logp, keep) if weight == "rollout_prob" else keep.double()
    positive, negative = a > 0, a < 0
    above, below = positive & (r > high), negative & (r < low)
    charged = negative & (r > low) & (r <= (math.inf if dual_clip is None else dual_clip))
    pull = torch.where((positive & (r <= high)) | charged, a, 0.0)  # A X
    P, Q = (w * r.clamp(max=high) * a)[positive].sum(), -(w * r.clamp(min=low) * a)[negative].sum()
    chance, y, x = r[keep] / r[keep].sum(), pull[keep], logp[keep].double()
    return PolicyBalance(
        tokens=tokens,
        positive_tokens=int(positive.sum()),
        negative_tokens=int(negative.sum()),
        positive_length=_length(positive),
        negative_length=_length(negative),
        count_share=float(positive.sum() / (positive | negative).sum()),
        share=float(P / (P + Q)),
        positive_gradient=float((pull * r)[positive].norm()) / tokens,
        negative_gradient=float((pull * r)[negative].norm()) / tokens,
        clipped_high=float(above.sum()) / tokens,
        clipped_low=float(below.sum()) / tokens,
        covariance=float((chance * (x - (chance * x).sum()) * (y - (chance * y).sum())).sum()),
    )


def _length(where: Tensor) -> float:
    """Mean number of tokens in a sequence that has any."""
    return float(where.sum() / where.any(dim=1).sum())
