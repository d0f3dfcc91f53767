r"""BAPO's loss: a clipped policy gradient whose bounds move until positive advantages have their share (arXiv:2510.18927).

What is unbalanced: when answers are used for several updates, tokens of wrong answers outweigh those of right ones (wrong answers are
longer, and a ratio below its bound still charges them), and a clip that is fixed and symmetric holds back what would raise the probability
of rare good tokens. With :math:`r = \pi(y) / \pi_{old}(y)`, advantages A and weights w, the two sides of one batch are

.. math::
    P(c_{high}) = \sum_{A > 0} w \, \min(r, c_{high}) \, A, \qquad Q(c_{low}) = \sum_{A < 0} w \, \max(r, c_{low}) \, |A|, \qquad
    \rho = \frac{P}{P + Q} .

Bounds start narrow and are raised on a lattice until :math:`\rho \ge \rho_0`, or until both are at their maximum. Two things follow from
the formula. P grows with :math:`c_{high}`; but Q, too, grows with :math:`c_{low}`, so raising the low bound never brings the share nearer
to its target, and once begun it runs to its end. What it does do is to freeze tokens: those with A < 0 below it carry no gradient.

The sums at every point of the lattice come from one histogram of r with the lattice as its edges, so nothing is stepped through, and
processes add up one small vector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from counterpoise._dist import all_reduce_sum
from counterpoise._errors import bad_input, check_choice, check_range
from counterpoise._precision import single

__all__ = ["BalancedClipLoss", "ClipSearch", "ClipState", "balanced_bounds", "checked_mask", "ratios", "refuse_values", "rollout_weights"]

Range = Sequence[float]  # start, maximum, step
Criterion = Literal["share", "ratio"]
Order = Literal["high_first", "low_first"]
Weight = Literal["rollout_prob", "none"]
Statistic = Literal["surrogate", "gradient"]

# "paper": the text of arXiv:2510.18927. "reference": recipe/bapo of the authors' repository (WooooDyy/BAPO, commit 7287044), whose ratio of
# 1 is a share of 1/2; it differs from the paper in all six.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "target": 0.4,
        "low": (0.6, 0.9, 0.02),
        "high": (1.2, 3.0, 0.05),
        "criterion": "share",
        "order": "high_first",
        "weight": "rollout_prob",
    },
    "reference": {
        "target": 1.0,
        "low": (0.6, 0.8, 0.05),
        "high": (1.2, 2.0, 0.05),
        "criterion": "ratio",
        "order": "low_first",
        "weight": "none",
    },
}

LARGEST_LOG_RATIO = 20.0  # r is cut at e^20, as in the authors' code: its exponential stays finite in any type
ADDED_TO_Q = 1e-8
ROUNDING = 1e-9  # steps: (0.9 - 0.6) / 0.02 is a little more than 15
CHUNK = 1 << 17  # tokens
LANES, DEVICE_LANES = 4, 256  # histograms side by side, on a CPU and elsewhere
MOST_STEPS = 10_000  # of one bound: a step smaller than that is a slip


@dataclass(frozen=True)
class ClipState:
    """What the last call of a :class:`BalancedClipLoss` chose: scalar tensors without gradient, so that reading one is what waits for the
    device.

    Attributes
    ----------
    low, high : Tensor
        Bounds of the ratio.
    share : Tensor
        P / (P + Q) at these bounds, over all processes; NaN where neither side has anything there.
    steps : Tensor
        Steps from the start; 0 where the target was met there.
    clipped_low, clipped_high : Tensor
        Share of this process's tokens with A < 0 below ``low``, and with A > 0 above ``high``: without gradient.
    """

    low: Tensor
    high: Tensor
    share: Tensor
    steps: Tensor
    clipped_low: Tensor
    clipped_high: Tensor


@dataclass(frozen=True)
class Lattice:
    """The values a bound may take: start, start + step, ... and the maximum, which the last step may be cut at."""

    start: float
    maximum: float
    step: float

    @classmethod
    def of(cls, name: str, value: Any) -> Lattice:
        given = value.tolist() if hasattr(value, "tolist") else value  # an array or a tensor
        parts = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else []
        if getattr(getattr(value, "dtype", None), "itemsize", 8) < 8:
            parts = [f"{part:.6g}" if isinstance(part, float) else part for part in parts]  # 0.6 and not 0.6000000238
        if len(parts) != 3:
            bad_input(name, value, "three numbers: start, maximum, step")
        try:
            start, maximum, step = map(float, parts)
        except (TypeError, ValueError, RuntimeError):
            bad_input(name, value, "three numbers: start, maximum, step")
        if not all(map(math.isfinite, (start, maximum, step))) or start > maximum or step < 0:
            bad_input(name, value, "finite start <= maximum, and step >= 0", "A step of 0 keeps the bound where it starts.")
        if step == 0 or start == maximum:
            return cls(start, start, 1.0)
        if (maximum - start) / step > MOST_STEPS:
            bad_input(name, value, f"at most {MOST_STEPS:,} steps from start to maximum", "Take a larger step.")
        return cls(start, maximum, step)

    @property
    def steps(self) -> int:
        return math.ceil((self.maximum - self.start) / self.step - ROUNDING)

    @property
    def is_cut(self) -> bool:
        return (self.maximum - self.start) / self.step < self.steps - ROUNDING

    @property
    def values(self) -> list[float]:
        return [*(self.start + k * self.step for k in range(self.steps)), self.maximum]


@dataclass(frozen=True)
class ClipSearch:
    """The search, apart from any loss: :meth:`tally` makes the sums of some tokens, which add up over micro-batches and processes, and
    :meth:`decide` reads the bounds off them."""

    target: float
    criterion: str
    order: str
    weight: str
    statistic: str
    dual_clip: float | None
    low: Lattice
    high: Lattice

    @classmethod
    def of(
        cls,
        target: float | None,
        low: Range | None,
        high: Range | None,
        preset: str,
        criterion: str | None,
        order: str | None,
        weight: str | None,
        statistic: str,
        dual_clip: float | None,
    ) -> ClipSearch:
        """Options as the user gave them: None is what the preset says."""
        check_choice("preset", preset, tuple(PRESETS))
        given = {"target": target, "low": low, "high": high, "criterion": criterion, "order": order, "weight": weight}
        chosen = PRESETS[preset] | {name: value for name, value in given.items() if value is not None}
        check_choice("criterion", chosen["criterion"], ("share", "ratio"))
        check_choice("order", chosen["order"], ("high_first", "low_first"))
        check_choice("weight", chosen["weight"], ("rollout_prob", "none"))
        check_choice("statistic", statistic, ("surrogate", "gradient"))
        check_range("target", chosen["target"], low=0.0, open_low=True)
        if chosen["criterion"] == "share" and chosen["target"] >= 1:
            bad_input("target", chosen["target"], "a share in (0, 1)", "A ratio of positive to negative needs criterion='ratio'.")
        if dual_clip is not None:
            check_range("dual_clip", dual_clip, low=1.0, open_low=True)
        low_bound, high_bound = Lattice.of("low", chosen["low"]), Lattice.of("high", chosen["high"])
        if low_bound.start < 0 or low_bound.maximum >= 1:
            bad_input("low", chosen["low"], "bounds of the ratio with 0 <= start <= maximum < 1")
        if high_bound.start <= 1:
            bad_input("high", chosen["high"], "bounds of the ratio with 1 < start <= maximum", "A bound of 1.2 is an epsilon of 0.2.")
        rest = {name: chosen[name] for name in ("criterion", "order", "weight")}
        return cls(float(chosen["target"]), **rest, statistic=statistic, dual_clip=dual_clip, low=low_bound, high=high_bound)

    @property
    def start(self) -> tuple[float, float]:
        return self.low.start, self.high.start

    @property
    def last_bin(self) -> int:
        return max(self.low.steps, self.high.steps) + 1

    @torch.no_grad()
    def tally(self, logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        r"""Sums of :math:`w |A|` and :math:`w |A| r` by sign and by bin of the ratio: (2, 2, bins) in float64, negative advantages first.

        Bin i of a sign holds the ratios in (edge i - 1, edge i] of its bound's lattice, bin 0 all below; what is above the last edge may
        lie in any further bin. ``mask`` is bool. NaN at a token that counts makes a sum NaN.
        """
        tensors = [single(x).reshape(-1) for x in (logp, old_logp, advantages)]
        dtype, device = torch.promote_types(tensors[0].dtype, tensors[1].dtype), logp.device
        # On a CPU a part at a time, whose intermediate results stay in the cache: twice as fast. And since most tokens share a few bins and
        # adding to one number over and over must wait, several histograms side by side: one token to each in turn.
        tokens, bins = max(logp.numel(), 1), 2 * (self.last_bin + 1) + 1
        size, lanes = (min(CHUNK, tokens), LANES) if device.type == "cpu" else (tokens, DEVICE_LANES)
        sums = torch.zeros(2, lanes * bins, dtype=torch.float64, device=device)
        lane = torch.arange(lanes, dtype=dtype, device=device).mul_(bins).repeat(size // lanes + 1)
        buffers = [torch.empty(size, dtype=of, device=device) for of in (*4 * [dtype], *2 * [torch.float64], torch.int32, torch.int64)]
        for part in zip(*(torch.split(x, size) for x in (*tensors, mask.reshape(-1))), strict=True):
            self._add(sums, lane, buffers, *part)
        found = sums.view(2, lanes, bins).sum(dim=1)[:, 1:].reshape(2, 2, -1)  # less padding
        found[:, 0] *= -1  # of negative advantages
        return found

    def _add(self, sums: Tensor, lane: Tensor, buffers: list[Tensor], logp: Tensor, old_logp: Tensor, a: Tensor, mask: Tensor) -> None:
        # On a CPU a new tensor takes as long as what is computed into it, and operations on tensors of two types, or on bool, several times
        # as long as a conversion beforehand: hence the buffers.
        ratio, positive, place, kept, amount, moment, short, index = (buffer[: len(a)] for buffer in buffers)
        torch.sub(logp, old_logp, out=ratio).clamp_(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp_()
        torch.gt(a, 0, out=positive)
        amount.copy_(a)
        if self.statistic == "gradient" and self.dual_clip is not None:
            amount.masked_fill_((a < 0) & (ratio > self.dual_clip), 0.0)
        if self.weight == "rollout_prob":  # in double precision: the probability of a whole sequence is soon 0 in float32
            amount.mul_(moment.copy_(old_logp).exp_())
        moment.copy_(ratio).mul_(amount)
        # The bin is computed, not searched for, which is several times as fast: both lattices are even. Bins count from 1; 0 is for
        # padding, which may hold anything.
        low, high, last = self.low, self.high, self.last_bin + 1
        if low.step == high.step:
            torch.mul(ratio, 1 / low.step, out=place)
        else:
            torch.mul(positive, 1 / high.step - 1 / low.step, out=place).add_(1 / low.step).mul_(ratio)
        place.add_(positive, alpha=low.start / low.step - high.start / high.step).sub_(low.start / low.step - 1).ceil_()
        for sign, bound in ((0, low), (1, high)):
            if bound.is_cut:  # its last step is shorter than the others
                place.masked_fill_((positive == sign) & (ratio > bound.maximum), last)
        place.clamp_(1, last).add_(positive, alpha=last).nan_to_num_(1.0).mul_(kept.copy_(mask.view(torch.uint8))).add_(lane[: len(a)])
        index.copy_(short.copy_(place))
        sums[0].scatter_add_(0, index, amount)
        sums[1].scatter_add_(0, index, moment)

    @torch.no_grad()
    def decide(self, sums: Tensor) -> Tensor:
        """``low, high, share, steps``, (4,), from the :meth:`tally` of all tokens. NaN as the share says that nothing was to be decided."""
        lows, highs = sums.new_tensor(self.low.values), sums.new_tensor(self.high.values)
        inside = sums.cumsum(dim=-1)  # what lies at or below each edge
        negative, positive = inside[:, 0, : len(lows)], inside[:, 1, : len(highs)]
        total = inside[:, :, -1]
        P, Q = positive[1], total[1, 0] - negative[1]
        if self.statistic == "surrogate":
            P, Q = P + highs * (total[0, 1] - positive[0]), Q + lows * negative[0]
        # The path through the lattice: one bound to its end, then the other.
        K, L = self.high.steps, self.low.steps
        step = torch.arange(K + L + 1, device=sums.device)
        if self.order == "high_first":
            at_high, at_low = step.clamp(max=K), (step - K).clamp(min=0)
        else:
            at_high, at_low = (step - L).clamp(min=0), step.clamp(max=L)
        P, Q = P[at_high], Q[at_low]
        # A ratio is met as in the authors' code, which adds to a Q > 0: where P = Q exactly, a ratio of 1 is not.
        met = self.target * (P + Q if self.criterion == "share" else Q + ADDED_TO_Q * (Q > 0)) <= P
        met &= P + Q > 0
        chosen = torch.where(met.any(), met.int().argmax(), torch.where((P + Q > 0).any(), K + L, 0))
        points = torch.stack([lows[at_low], highs[at_high], P / (P + Q), step.double()])
        return points.index_select(1, chosen[None]).squeeze(1)  # and not [:, chosen], which waits for the device


def ratios(logp: Tensor, old_logp: Tensor, mask: Tensor) -> Tensor:
    """r of every token, in single precision at least, differentiable by ``logp``; 1 at padding, whatever stands there."""
    return _ratio(torch.where(mask, single(logp) - single(old_logp.detach()), 0.0))


def _ratio(difference: Tensor) -> Tensor:
    return difference.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()


def rollout_weights(old_logp: Tensor, mask: Tensor) -> Tensor:
    """The probability that the behavior policy gave each token, in float64; 0 at padding."""
    return torch.where(mask, old_logp.detach().double().exp(), 0.0)


def checked_mask(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """The mask as bool, once shapes are seen to agree."""
    shape = tuple(logp.shape)
    if logp.ndim != 2 or not logp.is_floating_point():
        bad_input("logp", f"a tensor of {logp.dtype} and shape {shape}", "log-probabilities of tokens (B, T)")
    for name, tensor in (("old_logp", old_logp), ("advantages", advantages), ("mask", mask)):
        if tensor.shape != logp.shape:
            hint = "One advantage per answer: advantages[:, None].expand_as(logp)." if name == "advantages" else ""
            bad_input(name, f"shape {tuple(tensor.shape)}", f"the shape of logp, {shape}", hint)
    return mask.bool()


def refuse_values(tokens: float, strange: float, usable: bool, logp: Tensor, old_logp: Tensor, advantages: Tensor, keep: Tensor) -> None:
    """Raise unless there are ``tokens``, none with a ``strange`` mask, and their sums are ``usable``."""
    if strange:
        bad_input("mask", f"{strange:.0f} values besides 0 and 1", "bool, or 0 and 1", "Weights of tokens belong into the advantages.")
    if not tokens:
        bad_input("mask", "no token at all", "at least one token that counts", "Leave out an input that has none.")
    if not usable:
        old, a = old_logp[keep].double(), advantages[keep].double()
        if wrong := int(torch.isnan(logp[keep].double() - old).sum()):
            bad_input("logp - old_logp", f"NaN at {wrong} tokens", "log-probabilities of tokens that were drawn")
        if wrong := int(torch.isinf(old.exp()).sum()):
            bad_input("old_logp", f"{float(old.max()):.3g}, and no finite probability at {wrong} tokens", "log-probabilities, at most 0")
        if not bool(torch.isfinite(a).all()):
            bad_input("advantages", "NaN or an infinite one", "finite advantages", "Where a group's spread is 0, add an epsilon to it.")
        largest = float(a.abs().max()) if len(a) else 0.0
        if not math.isfinite(largest * len(a) * 2 * math.exp(LARGEST_LOG_RATIO)):
            bad_input("advantages", f"{largest:.3g}, and a sum beyond all numbers", "finite sums", "Divide advantages by their spread.")
        bad_input("logp - old_logp, advantages", "NaN or an infinite one in another process", "finite numbers in all processes")


def _sums(search: ClipSearch, logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, keep: Tensor) -> Tensor:
    """The tally of all processes. What cannot be used is refused by all of them together: none is left waiting for the others."""
    sums = search.tally(logp, old_logp, advantages, keep)
    strange = keep.new_zeros((), dtype=torch.int64) if mask.dtype == torch.bool else torch.count_nonzero(keep & (mask != 1))
    some = keep.view(torch.uint8).max() if keep.numel() else strange.new_zeros(())  # faster than any() on a CPU
    flat = all_reduce_sum(torch.cat([sums.reshape(-1), some.double()[None], strange.double()[None]]))
    sums = flat[:-2].view_as(sums)
    if not torch.compiler.is_compiling():
        # P and Q are at most the sum of all.
        tokens, beyond, usable = torch.cat([flat[-2:], torch.isfinite(sums.sum()).double()[None]]).tolist()
        refuse_values(tokens, beyond, bool(usable), logp, old_logp, advantages, keep)
    return sums


def balanced_bounds(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    target: float | None = None,
    low: Range | None = None,
    high: Range | None = None,
    preset: Literal["paper", "reference"] = "paper",
    criterion: Criterion | None = None,
    order: Order | None = None,
    weight: Weight | None = None,
    statistic: Statistic = "surrogate",
    dual_clip: float | None = 3.0,
) -> tuple[float, float, float]:
    r"""Bounds of the ratio at which positive advantages first have their share: ``(low, high, share)`` (notation at the top of the module).

    The first point of the lattice, in the order of ``order``, whose statistic reaches the target; the last one if none does. What stepping
    through the lattice finds, from one histogram. With ``torch.distributed`` in use it is a collective: sums are those of all processes,
    and all get the same bounds.

    Parameters
    ----------
    logp, old_logp : Tensor, shape (B, T)
        Log-probabilities of the tokens by the policy in training and by the one that drew them. (B, 1) for ratios of whole sequences.
    advantages : Tensor, shape (B, T)
        A token with A = 0 belongs to neither side.
    mask : Tensor, shape (B, T), bool or 0 and 1
        Tokens that count. What stands at the others does not matter.
    target, low, high, preset, criterion, order, weight, statistic
        As in :class:`BalancedClipLoss`.
    dual_clip : float > 1 or None, default 3.0
        Used by ``statistic="gradient"`` alone.

    Returns
    -------
    low, high : float
        Bounds of the ratio, not epsilons.
    share : float
        P / (P + Q) at these bounds, whatever the criterion; NaN where neither side has anything there. Where neither has anything at any
        point of the lattice (all advantages are 0, or with ``statistic="gradient"`` no token has a gradient), the bounds are those of the
        start.

    Raises
    ------
    InputError
        As :class:`BalancedClipLoss`.

    Examples
    --------
    >>> old_logp = torch.log(torch.tensor([[0.5, 0.5], [0.5, 0.5]]))
    >>> logp = torch.log(torch.tensor([[0.9, 0.9], [0.5, 0.5]]))  # ratios of 1.8 and 1
    >>> advantages = torch.tensor([[1.0, 1.0], [-2.0, -2.0]])
    >>> low, high, share = balanced_bounds(logp, old_logp, advantages, torch.ones(2, 2))
    >>> round(low, 9), round(high, 9), round(share, 3)
    (0.6, 1.35, 0.403)
    """
    search = ClipSearch.of(target, low, high, preset, criterion, order, weight, statistic, dual_clip)
    keep = checked_mask(logp, old_logp, advantages, mask)
    sums = _sums(search, logp, old_logp, advantages, mask, keep)
    found_low, found_high, share, _ = search.decide(sums).tolist()
    return found_low, found_high, share


class BalancedClipLoss(nn.Module):
    r"""Clipped policy gradient whose bounds move, batch by batch, until positive advantages have their share (BAPO).

    With :math:`r = \exp(\log\pi(y) - \log\pi_{old}(y))`, cut at :math:`e^{\pm 20}`, and bounds of the ratio from
    :func:`balanced_bounds`, the loss of a token is

    .. math::
        L = \max\bigl(-A r, \; -A \, \mathrm{clip}(r, c_{low}, c_{high})\bigr), \qquad
        \text{for } A < 0: \; L = \min(-A c, L) .

    The search sees no gradient. A fixed clip is ``low=(0.8, 0.8, 0), high=(1.2, 1.2, 0)``. Half-precision inputs are computed, and the
    loss returned, in float32; sums of the search are in float64.

    Parameters
    ----------
    target : float, default 0.4 (the paper)
        What the statistic must reach: a share in (0, 1), or a ratio > 0.
    low, high : (start, maximum, step), default (0.6, 0.9, 0.02) and (1.2, 3.0, 0.05) (the paper)
        Bounds of the ratio: ``0 <= low < 1 < high``. The last step ends at the maximum, and a step of 0 keeps a bound where it starts. A
        list, an array or a tensor of three numbers will do.
    preset : {"paper", "reference"}, default "paper"
        What arguments are that are not given: those of the paper, or those of the authors' released code, which is another method:
        ``criterion="ratio", target=1.0, order="low_first", weight="none", low=(0.6, 0.8, 0.05), high=(1.2, 2.0, 0.05)``.
    criterion : {"share", "ratio"}
        P / (P + Q), or P / Q: a ratio of 2/3 is a share of 0.4, 1 is 0.5, 0.5 is 1/3. As in the authors' code, "ratio" adds 1e-8 to a
        Q > 0, in no unit: where weights are so small that P and Q are, too (``weight="rollout_prob"`` with probabilities of whole
        sequences), no point of the lattice meets the target. "share" adds nothing.
    order : {"high_first", "low_first"}
        Which bound goes to its end before the other begins. With ``statistic="surrogate"`` the low bound cannot help (see the top of
        the module), so "low_first" always ends at the low bound's maximum unless the start will do.
    weight : {"rollout_prob", "none"}
        w: the probability that the behavior policy gave the token, or 1.
    statistic : {"surrogate", "gradient"}, default "surrogate" (the paper)
        "gradient" is ours, not the paper's: P and Q count only tokens that carry gradient, with their r |A|, so that raising the low
        bound lowers Q.
    dual_clip : float > 1 or None, default 3.0 (the authors' code)
        c: tokens with A < 0 and r above it carry no gradient.
    reduction : {"token-mean", "seq-mean", "constant"}, default "token-mean" (the authors' code)
        Mean over all tokens that count; mean over sequences of their means (an empty one counts as 0); the sum divided by B T, with which
        a token weighs the same in every batch that is padded to the same T.

    Attributes
    ----------
    last : ClipState or None
        What the last call chose.

    Shapes
    ------
    ``forward(logp, old_logp, advantages, mask)``, all (B, T); (B, 1) for ratios of whole sequences. Output: a scalar.

    Raises
    ------
    InputError
        If shapes differ, no token counts, a mask holds anything besides 0 and 1, log-probabilities are NaN, advantages or their sums not
        finite, or an option is out of its range. (Values are not looked at inside ``torch.compile``.)

    Notes
    -----
    In the first update after a rollout r = 1, and no bound matters to loss or gradient; the search runs all the same, and where negative
    advantages dominate, ``last`` holds the maximum. With ``torch.distributed`` in use every process must call the loss: the bounds are
    those of all tokens, the loss that of the process's own.

    Examples
    --------
    >>> old_logp = torch.log(torch.tensor([[0.5, 0.5], [0.5, 0.5]]))
    >>> logp = torch.log(torch.tensor([[0.9, 0.9], [0.5, 0.5]])).requires_grad_()  # ratios of 1.8 and 1
    >>> advantages = torch.tensor([[1.0, 1.0], [-2.0, -2.0]])
    >>> loss = BalancedClipLoss()
    >>> loss(logp, old_logp, advantages, torch.ones(2, 2))
    tensor(0.3250, grad_fn=<DivBackward0>)
    >>> loss.last.high, loss.last.share, loss.last.clipped_high
    (tensor(1.3500, dtype=torch.float64), tensor(0.4030, dtype=torch.float64), tensor(0.5000))
    """

    def __init__(
        self,
        target: float | None = None,
        low: Range | None = None,
        high: Range | None = None,
        preset: Literal["paper", "reference"] = "paper",
        criterion: Criterion | None = None,
        order: Order | None = None,
        weight: Weight | None = None,
        statistic: Statistic = "surrogate",
        dual_clip: float | None = 3.0,
        reduction: Literal["token-mean", "seq-mean", "constant"] = "token-mean",
    ) -> None:
        super().__init__()
        self.search = ClipSearch.of(target, low, high, preset, criterion, order, weight, statistic, dual_clip)
        check_choice("reduction", reduction, ("token-mean", "seq-mean", "constant"))
        self.dual_clip = dual_clip
        self.reduction = reduction
        self.last: ClipState | None = None

    def forward(self, logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        keep = checked_mask(logp, old_logp, advantages, mask)
        low, high, share, steps = self.search.decide(_sums(self.search, logp, old_logp, advantages, mask, keep)).unbind()
        r = ratios(logp, old_logp, keep)
        a = torch.where(keep, single(advantages.detach()), 0.0)
        losses = torch.maximum(-a * r, -a * r.clamp(low.to(r.dtype), high.to(r.dtype)))
        if self.dual_clip is not None:
            losses = torch.where(a < 0, torch.minimum(-a * self.dual_clip, losses), losses)
        tokens = keep.sum().clamp(min=1)
        outside = [((sign * a > 0) & beyond).sum().to(r.dtype) / tokens for sign, beyond in ((-1, r < low), (1, r > high))]
        self.last = ClipState(low, high, share, steps, *outside)
        if self.reduction == "token-mean":
            return losses.sum() / tokens
        if self.reduction == "seq-mean":
            return (losses.sum(dim=1) / keep.sum(dim=1).clamp(min=1)).mean()
        return losses.sum() / losses.numel()

    def extra_repr(self) -> str:
        return f"{self.search}, reduction={self.reduction!r}"
