"""When: what changes while training goes on, such as its phases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from ._two_phase import TwoPhase as TwoPhase

__getattr__, __dir__, __all__ = attach(__name__, {"TwoPhase": "_two_phase"})
