"""When: what changes while training goes on, such as its phases and its temperatures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from ._tau import Cooldown as Cooldown
    from ._tau import LinearTau as LinearTau
    from ._tau import StepTau as StepTau
    from ._two_phase import TwoPhase as TwoPhase

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Cooldown": "_tau",
        "LinearTau": "_tau",
        "StepTau": "_tau",
        "TwoPhase": "_two_phase",
    },
)
