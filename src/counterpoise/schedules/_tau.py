"""Temperatures that change while training (Li et al. 2025, arXiv:2410.04579, section 4.3).

What is unbalanced: small domains are drawn too seldom to be learned early, and, at a temperature that helps them, so often that they are
learned by heart late. A schedule says which temperature a step has. It is a function of the step alone, so that whoever knows the step
knows the temperature: samplers and losses that are given a schedule count their batches themselves.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise

from counterpoise._errors import bad_input, check_range
from counterpoise._temperature import TAU, temperature

__all__ = ["Cooldown", "LinearTau", "StepTau"]


class _TauSchedule(ABC):
    """``schedule(step)`` is the temperature of a step; ``schedule()`` that of the schedule's own step, which a loop sets."""

    def __init__(self) -> None:
        self.step = 0

    @abstractmethod
    def _tau(self, step: int) -> float:
        """The temperature of a step >= 0."""

    def __call__(self, step: int | None = None) -> float:
        if step is None:
            return self._tau(self.step)
        check_range("step", step, low=0, integer=True)
        return self._tau(int(step))

    def set_step(self, step: int) -> None:
        """The step that a call without one is about. Samplers and losses name theirs, and do not look at it."""
        check_range("step", step, low=0, integer=True)
        self.step = int(step)

    def state_dict(self) -> dict[str, int]:
        """``{"step": ...}``; the temperatures are the caller's, as the learning rates of a schedule are."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on at the step where :meth:`state_dict` was taken."""
        if not isinstance(state, Mapping) or "step" not in state:
            bad_input("state", state, "what state_dict() gives: step")
        self.set_step(state["step"])


class Cooldown(_TauSchedule):
    r"""A high temperature first, a low one from one step on.

    .. math:: \tau(t) = \tau_{hi} \text{ for } t < t_{switch}, \qquad \tau_{lo} \text{ afterwards}

    Small domains are learned fast at first, and are no longer repeated once they would be learned by heart. One switch did better than
    falling curves in the paper. It is not the best of both everywhere: where a small domain has a few hundred examples, half of a training
    at a high temperature is enough to learn them by heart. Watch the loss of each domain on rows of its own.

    Parameters
    ----------
    tau_hi : float > 0, default 5.0 (the paper's)
        Temperature before the switch; inf draws all domains equally often.
    tau_lo : float > 0, default 1.0 (the paper's)
        Temperature after it; 1 draws as the data are.
    switch : float or int, default 0.5 (the paper's: 30,000 of 60,000 steps, 50,000 of 100,000)
        A float is a share of ``total_steps``, in [0, 1]; an integer is the step itself, the first with ``tau_lo``.
    total_steps : int, optional
        Steps of the whole training; needed where ``switch`` is a share.

    Attributes
    ----------
    switch_step : int
        The first step with ``tau_lo``.
    step : int
        What :meth:`set_step` said, 0 before.

    Raises
    ------
    InputError
        If a temperature is not above 0, or ``switch`` is a share and ``total_steps`` is missing.

    Examples
    --------
    >>> schedule = Cooldown(total_steps=1000)
    >>> schedule(0), schedule(499), schedule(500)
    (5.0, 5.0, 1.0)
    >>> Cooldown(tau_hi=float("inf"), switch=300).switch_step
    300
    """

    def __init__(self, tau_hi: float = TAU, tau_lo: float = 1.0, switch: float | int = 0.5, total_steps: int | None = None) -> None:
        super().__init__()
        self.tau_hi, self.tau_lo = temperature(tau_hi, "tau_hi"), temperature(tau_lo, "tau_lo")
        if total_steps is not None:
            check_range("total_steps", total_steps, low=1, integer=True)
        if isinstance(switch, float):
            check_range("switch", switch, low=0.0, high=1.0)
            if total_steps is None:
                bad_input(
                    "total_steps", None, f"the steps of the training, of which switch={switch:g} is a share", "Or give a step: switch=500."
                )
            self.switch_step = math.ceil(switch * total_steps)
        else:
            check_range("switch", switch, low=0, integer=True)
            self.switch_step = int(switch)
        self.total_steps = total_steps

    def _tau(self, step: int) -> float:
        return self.tau_hi if step < self.switch_step else self.tau_lo

    def __repr__(self) -> str:
        return f"Cooldown({self.tau_hi:g} before step {self.switch_step:,}, then {self.tau_lo:g})"


class LinearTau(_TauSchedule):
    r"""A temperature that goes in a straight line from one value to another, and stays there.

    .. math:: \tau(t) = \tau_0 + (\tau_1 - \tau_0) \min(t / T, 1)

    Parameters
    ----------
    tau_start, tau_end : float > 0, finite, default 5.0 and 1.0 (the temperatures of :class:`Cooldown`)
        At step 0, and from step ``total_steps`` on.
    total_steps : int
        T.

    Raises
    ------
    InputError
        If a temperature is not above 0 or not finite, or ``total_steps`` is missing.

    Examples
    --------
    >>> schedule = LinearTau(5.0, 1.0, total_steps=100)
    >>> schedule(0), schedule(25), schedule(1000)
    (5.0, 4.0, 1.0)
    """

    def __init__(self, tau_start: float = TAU, tau_end: float = 1.0, total_steps: int | None = None) -> None:
        super().__init__()
        for name, value in (("tau_start", tau_start), ("tau_end", tau_end)):
            check_range(name, value, low=0.0, open_low=True)
        if total_steps is None:
            bad_input("total_steps", None, "the number of steps from the first temperature to the last")
        check_range("total_steps", total_steps, low=1, integer=True)
        self.tau_start, self.tau_end, self.total_steps = float(tau_start), float(tau_end), int(total_steps)

    def _tau(self, step: int) -> float:
        done = min(step / self.total_steps, 1.0)
        return (1.0 - done) * self.tau_start + done * self.tau_end  # exact at both ends, and never beyond them

    def __repr__(self) -> str:
        return f"LinearTau({self.tau_start:g} to {self.tau_end:g} in {self.total_steps:,} steps)"


class StepTau(_TauSchedule):
    """Temperatures that hold between given steps, as the learning rates of ``MultiStepLR`` do; rising ones, too.

    Parameters
    ----------
    taus : sequence of m + 1 float > 0
        The temperatures in turn; inf draws all domains equally often.
    milestones : sequence of m int
        Increasing steps, each the first with the next temperature.

    Raises
    ------
    InputError
        If a temperature is not above 0, the steps do not increase, or there are not as many as changes.

    Examples
    --------
    >>> schedule = StepTau([1.0, 3.3, 5.0], milestones=[200, 800])
    >>> schedule(199), schedule(200), schedule(5000)
    (1.0, 3.3, 5.0)
    """

    def __init__(self, taus: Sequence[float], milestones: Sequence[int]) -> None:
        super().__init__()
        self.taus = tuple(temperature(tau, "taus") for tau in taus)
        for step in milestones:
            check_range("milestones", step, low=0, integer=True)
        self.milestones = tuple(int(step) for step in milestones)
        if len(self.taus) != len(self.milestones) + 1:
            bad_input("milestones", f"{len(self.milestones)} steps for {len(self.taus)} temperatures", "one step between each two of them")
        if any(later <= earlier for earlier, later in pairwise(self.milestones)):
            bad_input("milestones", self.milestones, "increasing steps")

    def _tau(self, step: int) -> float:
        return self.taus[sum(step >= milestone for milestone in self.milestones)]

    def __repr__(self) -> str:
        changes = ", ".join(f"{tau:g} from step {step:,}" for tau, step in zip(self.taus[1:], self.milestones, strict=True))
        return f"StepTau({self.taus[0]:g}" + (f", {changes})" if changes else ")")
