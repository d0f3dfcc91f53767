"""What is combined: aggregators, which make one gradient out of those of several examples, groups, tasks or processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from ._aggregator import Aggregator as Aggregator
    from ._statistics import GradientStatistics as GradientStatistics
    from ._winsorized import WinsorizedMean as WinsorizedMean

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Aggregator": "_aggregator",
        "GradientStatistics": "_statistics",
        "WinsorizedMean": "_winsorized",
    },
)
