r"""GCond (Limarenko et al. 2025, arXiv:2509.07252): which of two gradients that point against each other gives way, and how far.

What is unbalanced: losses whose gradients oppose each other. Projections made on the gradients of single batches swing with their noise;
GCond resolves conflicts among means over many micro-batches, takes the worst pair first, and lets an arbiter decide who yields. For the
pair with the smallest cosine c, as long as that is below :math:`\theta_{weak}`, winner w and loser l become, at once,

.. math::
    g_w \leftarrow g_w - \sin(\alpha)\,\frac{\langle g_w, g_l \rangle}{|g_l|^2}\, g_l, \qquad
    g_l \leftarrow g_l - \sin(\min(\alpha, \tfrac\pi2))\,\frac{\langle g_w, g_l \rangle}{|g_w|^2}\, g_w

    \alpha(c) = \begin{cases}
        \pi & c \le \theta_{crit} \\
        \frac\pi2 + \frac\pi2 \left(\frac{c - \theta_{main}}{\theta_{crit} - \theta_{main}}\right)^p & \theta_{crit} < c < \theta_{main} \\
        \frac\pi2 \left(1 - \frac{c - \theta_{main}}{\theta_{weak} - \theta_{main}}\right) & \theta_{main} \le c < \theta_{weak}
    \end{cases}

The winner has the higher :math:`a \max(0, \cos(g_i, g_i^{prev})) + b\, N_i`: it goes on in its direction (stability), and is long for what
it usually is (strength, :math:`N_i = (|g_i| / E_i)` over the sum of the pair's, :math:`E_i` a moving average of lengths).

Every step changes two rows of the coefficients C of the modified gradients in the original ones, and all that is asked about them is in
:math:`C G C^\top`: no gradient is touched before the result :math:`\sum_i (C^\top 1)_i\, g_i`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from counterpoise._errors import bad_input, check_choice, check_range

from ._aggregator import Aggregator
from ._statistics import GradientStatistics

__all__ = ["GCond"]

Array = npt.NDArray[np.float64]

# After a full projection a cosine is 0 up to rounding: without this, a pair would be taken again for nothing.
TOLERANCE = 1e-6


class GCond(Aggregator):
    r"""Conflicts resolved pair by pair, the worst first, with a winner chosen by stability and strength; then a momentum.

    With the default thresholds, gradients of a cosine in [-0.5, 0) yield alike, the more the more they oppose each other; in (-0.8, -0.5)
    the loser becomes orthogonal to the winner, which yields partly; at -0.8 and below the winner stays as it is. Give it means over
    several micro-batches: in single batches noise hides conflicts and decides who wins.

    **It contains a momentum.** Set the optimizer's own to 0 (``betas=(0.0, 0.999)`` for AdamW), or ``momentum=0.0`` here. When you compare
    it with another way to combine gradients, give that the same momentum.

    Parameters
    ----------
    thresholds : (critical, main, weak), default (-0.8, -0.5, 0.0)
        Cosines, in this order, in [-1, 1]. Default: the authors' code. Equal ones make a step: with critical = main there is no partial
        yielding of the winner, with main = weak no weak conflict.
    power : float > 0, default 2.0
        p above; the larger, the longer the winner yields nearly as much as the loser.
    smooth : bool, default True
        False: the authors' first version. Below critical the loser is set to 0, below main it is projected, above both are projected fully
        without a winner.
    dominance_window : int >= 0, default 3
        If one group won the last so many decisions, over all pairs, its opponent wins the next. 0: never.
    tie_weights : (stability, strength), default (0.8, 0.2)
        a and b above, not negative and not both 0.
    norm_ema : float in [0, 1), default 0.95
        Decay of :math:`E_i`, which starts at 1 as in the authors' code: until that is forgotten, the longer gradient is the stronger.
    momentum : float in [0, 1), default 0.9
        Decay of the bias-corrected average of the results, 0.9 in the paper and 0.85 in its code; 0 keeps nothing.
    norm_cap : float > 0, optional
        Longer gradients are first shortened to this length, after :math:`E_i` has seen them. A single group is left as it is.
    max_iters : int >= 1, optional
        Pairs resolved per step at most. Default: 2 m.
    stability_reference : {"raw", "published"}, default "raw"
        What a gradient is compared with for its stability: the same group's gradient of the step before, as in the paper, or what
        became of it there, as in the authors' code. "published" follows that code in what rounding decides, too.
    eps : float > 0, default 1e-8
        A gradient of whose squared length less than this share is left takes part in no further pair; also the smallest :math:`E_i`. With
        "published", squared lengths below it are left out, whatever their unit, and it is added to denominators.
    denoise : bool, default False
        Take lengths and angles without the part that sampling noise has in them. Needs gradients in several parts, from an ``Accumulator``
        or several processes.

    Attributes
    ----------
    last : dict
        Of the last step: ``min_cosine`` of all pairs before any change (NaN if there is none), ``iterations``, ``conflicts`` (a list of
        dicts with the two ``groups``, their ``cosine``, ``winner`` and ``loser``, both None where none was chosen), ``weights`` of the
        groups.

    Shapes
    ------
    Jacobian (m, n) or a dict of (m, \*shape) tensors, as every :class:`Aggregator`. Kept between steps: the gradients of the step before
    (m, n), as sketches (m, 4096) above 65,536 entries; the momentum (n,); numbers of the groups. All else is done in (m, m) matrices.

    Raises
    ------
    InputError
        If an argument is out of its range, a gradient is not finite (the state has not moved then), or the number of groups or entries
        changes without :meth:`reset`.

    Notes
    -----
    A gradient of zeros is a group that was absent from this step: it takes no part, and what is known about it stays. Of two equal
    scores the first group's wins. The result depends on the unit of the losses only through :math:`E_i` starting at 1.

    Examples
    --------
    >>> rows = torch.tensor([[1.0, 0.0], [-3.0, 1.0]])  # a cosine of -0.95: the longer wins the first step
    >>> gcond = GCond(momentum=0.0)
    >>> gcond(rows)
    tensor([-2.9000,  1.3000])
    >>> gcond.last["iterations"], gcond.last["conflicts"][0]["winner"], round(gcond.last["min_cosine"], 2)
    (1, '1', -0.95)
    """

    needs = frozenset({"gramian", "previous"})

    def __init__(
        self,
        thresholds: Sequence[float] = (-0.8, -0.5, 0.0),
        power: float = 2.0,
        smooth: bool = True,
        dominance_window: int = 3,
        tie_weights: Sequence[float] = (0.8, 0.2),
        norm_ema: float = 0.95,
        momentum: float = 0.9,
        norm_cap: float | None = None,
        max_iters: int | None = None,
        stability_reference: Literal["raw", "published"] = "raw",
        eps: float = 1e-8,
        denoise: bool = False,
    ) -> None:
        super().__init__()
        self.thresholds = _thresholds(thresholds)
        check_range("power", power, low=0.0, open_low=True)
        check_range("dominance_window", dominance_window, low=0, integer=True)
        _check_decay("norm_ema", norm_ema)
        _check_decay("momentum", momentum)
        if norm_cap is not None:
            check_range("norm_cap", norm_cap, low=0.0, open_low=True)
        if max_iters is not None:
            check_range("max_iters", max_iters, low=1, integer=True)
        check_choice("stability_reference", stability_reference, ("raw", "published"))
        check_range("eps", eps, low=0.0, open_low=True)
        self.power = float(power)
        self.smooth = bool(smooth)
        self.dominance_window = int(dominance_window)
        self.tie_weights = _tie_weights(tie_weights)
        self.norm_ema = float(norm_ema)
        self.momentum = float(momentum)
        self.norm_cap = norm_cap
        self.max_iters = max_iters
        self.stability_reference = stability_reference
        self.eps = float(eps)
        self.denoise = bool(denoise)
        self._published = stability_reference == "published"
        self._added = self.eps if self._published else 0.0  # to denominators

    # ---- one step -----------------------------------------------------------------------------------------------------------------------

    def weights(self, s: GradientStatistics) -> Tensor:
        self._check_sizes(s)
        G = self.gramian(s).detach().cpu().double().numpy()
        raw = s.gramian.detach().diagonal().cpu().double().numpy()
        lengths, present = np.sqrt(np.maximum(np.diag(G), 0)), raw > 0
        usual = self._number("usual_lengths", 1.0, len(G))
        usual = np.where(present, np.maximum(self.norm_ema * usual + (1 - self.norm_ema) * lengths, self.eps), usual)
        before = self._before(s)
        winners = self.kept("winners")
        history = deque([] if winners is None else winners.tolist(), maxlen=self.dominance_window)

        cap = self.norm_cap if self.norm_cap is not None and len(G) > 1 else None
        C = np.eye(len(G)) if cap is None else np.diag(cap / np.maximum(lengths, cap))
        floor = self.eps * (np.ones(len(G)) if self._published else np.diag(C) ** 2 * raw)
        C, conflicts, min_cosine = self._resolved(G, C, floor, usual, before, history)
        weights = C.sum(axis=0)

        self.keep("usual_lengths", torch.from_numpy(usual))
        self.keep("winners", torch.tensor(list(history), dtype=torch.int64))
        if self._published:
            self.keep("previous_coefficients", torch.from_numpy(C))
            self.keep("previous_lengths", torch.from_numpy(np.sqrt(np.maximum(np.diag(C @ G @ C.T), 0))))
        else:
            self.keep("previous_lengths", torch.from_numpy(np.where(present, lengths, before.lengths)))
        for conflict in conflicts:
            for role in ("groups", "winner", "loser"):
                conflict[role] = _named(conflict[role], s.names)
        self.last = {"min_cosine": min_cosine, "iterations": len(conflicts), "conflicts": conflicts, "weights": weights.tolist()}
        return torch.from_numpy(weights).to(s.gramian.device)

    def finish(self, combined: Tensor, slot: int, s: GradientStatistics) -> Tensor:
        if self.momentum == 0:
            return combined
        steps = self.kept("momentum_steps")
        if slot == 0 or steps is None:
            steps = self.keep("momentum_steps", torch.ones((), dtype=torch.int64) if steps is None else steps + 1)
        mean = self.kept(f"momentum_{slot}")
        if mean is None:
            self.keep(f"momentum_{slot}", combined.detach().clone())
            return combined
        # What is kept is the average after its correction m / (1 - beta^t); this is how far it moves.
        share = (1 - self.momentum) / (1 - self.momentum ** int(steps))
        combined.lerp_(mean.to(combined), 1 - share)  # in place: there is one fresh tensor already
        mean.copy_(combined.detach())
        return combined

    def remember(self, traces: Tensor) -> None:
        before = self.kept("previous_rows")
        if not self._published and before is not None and before.shape == traces.shape:
            absent = ~traces.any(dim=1, keepdim=True)
            traces = torch.where(absent, before.to(traces), traces)
        super().remember(traces)

    def extra_repr(self) -> str:
        return f"thresholds={self.thresholds}, power={self.power:g}, momentum={self.momentum:g}"

    # ---- conflicts, in coefficients -----------------------------------------------------------------------------------------------------

    def _resolved(
        self, G: Array, C: Array, floor: Array, usual: Array, before: _Before, history: deque[int]
    ) -> tuple[Array, list[dict[str, Any]], float]:
        """(coefficients of the modified gradients, what was resolved, smallest cosine at first). ``history`` gets the winners."""
        added, weak = self._added, self.thresholds[2] - (0.0 if self._published else TOLERANCE)
        first, second = np.triu_indices(len(G), 1)
        conflicts: list[dict[str, Any]] = []
        min_cosine = math.nan
        for iteration in range(self.max_iters or 2 * len(G)):
            H = C @ G @ C.T
            squares = np.diag(H)
            # Below the floor is what rounding left of a gradient, or one that was never there.
            live = (squares >= floor) & (squares > 0)
            pairs = np.flatnonzero(live[first] & live[second])
            if not len(pairs):
                break
            i, j = first[pairs], second[pairs]
            cosines = H[i, j] / (np.sqrt(squares[i] * squares[j]) + added)
            worst = int(cosines.argmin())
            c, groups = float(cosines[worst]), (int(i[worst]), int(j[worst]))
            if iteration == 0:
                min_cosine = c
            if not c < weak:
                break
            arbitrated = self.smooth or c < self.thresholds[1]
            winner, loser = self._decided(groups, C, squares, usual, before, history) if arbitrated else groups
            if arbitrated:
                history.append(winner)
            if not self.smooth and c < self.thresholds[0]:
                C[loser] = 0.0
            else:
                of_winner, of_loser = self._shares(c) * H[winner, loser]
                C[[winner, loser]] -= np.stack(
                    [of_winner / (squares[loser] + added) * C[loser], of_loser / (squares[winner] + added) * C[winner]]
                )
            conflicts.append(
                {"groups": groups, "cosine": c, "winner": winner if arbitrated else None, "loser": loser if arbitrated else None}
            )
        return C, conflicts, min_cosine

    def _shares(self, c: float) -> Array:
        """How much of their common part winner and loser give up, sin(alpha) and sin(min(alpha, pi / 2)), at a cosine ``c`` < weak.

        In this order of cases no zone of width 0 is ever entered.
        """
        critical, main, weak = self.thresholds
        if not self.smooth:
            return np.array([0.0 if c < main else 1.0, 1.0])
        if c <= critical:
            return np.array([0.0, 1.0])
        if c < main:
            return np.array([math.cos(math.pi / 2 * ((c - main) / (critical - main)) ** self.power), 1.0])
        return np.full(2, math.cos(math.pi / 2 * (c - main) / (weak - main)))

    def _decided(
        self, groups: tuple[int, int], C: Array, squares: Array, usual: Array, before: _Before, history: deque[int]
    ) -> tuple[int, int]:
        """(winner, loser) of the pair."""
        i, j = groups
        if self.dominance_window and len(history) == self.dominance_window and len(set(history)) == 1 and history[0] in groups:
            return (j, i) if history[0] == i else (i, j)
        lengths = np.sqrt(np.maximum(squares, 0.0))  # rounding can leave less than nothing of a projected row
        strength = lengths[[i, j]] / (usual[[i, j]] + self._added)
        stability = np.array([before.cosine(k, C[k], lengths[k], self._added) for k in groups])
        a, b = self.tie_weights
        score = a * np.maximum(stability, 0) + b * strength / (strength.sum() + self._added)
        return (j, i) if score[1] > score[0] else (i, j)

    # ---- what is known from the steps before --------------------------------------------------------------------------------------------

    def _before(self, s: GradientStatistics) -> _Before:
        m = len(s)
        if s.cross is None:
            return _Before(np.zeros((m, m)), self._number("previous_lengths", 0.0, m), np.eye(m))
        coefficients = self.kept("previous_coefficients", (m, m))
        return _Before(
            s.cross.detach().cpu().double().numpy(),
            self._number("previous_lengths", 0.0, m),
            np.eye(m) if coefficients is None else coefficients.cpu().double().numpy(),
        )

    def _number(self, name: str, first: float, m: int) -> Array:
        """What is kept for every group, ``first`` before the first step."""
        kept = self.kept(name, (m,))
        return np.full(m, first) if kept is None else kept.cpu().double().numpy()

    def _check_sizes(self, s: GradientStatistics) -> None:
        """Before anything is kept: nothing has another size than at the steps before."""
        self.kept("usual_lengths", (len(s),))
        for slot, shape in enumerate(s.shapes):
            self.kept(f"momentum_{slot}", (shape.numel(),))


class _Before(NamedTuple):
    """The step before: ``cross[i, j]`` is the product of gradient i now with gradient j then."""

    cross: Array
    lengths: Array  # of what gradients are compared with
    coefficients: Array  # of what gradients are compared with, in the gradients then

    def cosine(self, i: int, coefficients: Array, length: float, added: float = 0.0) -> float:
        """Of the modified gradient i, whose length is given, with what it is compared with; 0 if there is none."""
        product = float(coefficients @ self.cross @ self.coefficients[i])
        return product / (length * self.lengths[i] + added) if self.lengths[i] > 0 else 0.0


def _named(which: Any, names: Sequence[str]) -> Any:
    if isinstance(which, tuple):
        return tuple(names[i] for i in which)
    return None if which is None else names[which]


def _thresholds(given: Sequence[float]) -> tuple[float, float, float]:
    accepted = "three cosines (critical, main, weak) with -1 <= critical <= main <= weak <= 1"
    try:
        critical, main, weak = (float(value) for value in given)
    except (TypeError, ValueError):
        bad_input("thresholds", given, accepted)
    if not -1 <= critical <= main <= weak <= 1:
        bad_input("thresholds", given, accepted, "The authors use (-0.8, -0.5, 0.0).")
    return critical, main, weak


def _tie_weights(given: Sequence[float]) -> tuple[float, float]:
    accepted = "two numbers (stability, strength) >= 0, not both 0"
    try:
        stability, strength = (float(value) for value in given)
    except (TypeError, ValueError):
        bad_input("tie_weights", given, accepted)
    if not (0 <= stability < math.inf and 0 <= strength < math.inf and stability + strength > 0):
        bad_input("tie_weights", given, accepted)
    return stability, strength


def _check_decay(argument: str, value: float) -> None:
    check_range(argument, value, low=0.0, high=1.0)
    if value == 1:
        bad_input(argument, value, "a number in [0, 1)", "With 1 nothing new would ever be taken in.")
