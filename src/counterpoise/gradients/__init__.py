"""What is combined: aggregators, which make one gradient out of those of several examples, groups, tasks or processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from ._accumulator import Accumulator as Accumulator
    from ._aggregator import Aggregator as Aggregator
    from ._annealing import GradientAnnealing as GradientAnnealing
    from ._backward import backward as backward
    from ._cagrad import CAGrad as CAGrad
    from ._gcond import GCond as GCond
    from ._gradnorm import GradNorm as GradNorm
    from ._group_loss import GroupLoss as GroupLoss
    from ._mgda import MGDA as MGDA
    from ._pcgrad import PCGrad as PCGrad
    from ._report import GradientReport as GradientReport
    from ._sam_gs import SAMGS as SAMGS
    from ._statistics import GradientStatistics as GradientStatistics
    from ._sum import Sum as Sum
    from ._torchjd import as_torchjd as as_torchjd
    from ._winsorized import WinsorizedMean as WinsorizedMean

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Accumulator": "_accumulator",
        "Aggregator": "_aggregator",
        "GradientAnnealing": "_annealing",
        "backward": "_backward",
        "CAGrad": "_cagrad",
        "GCond": "_gcond",
        "GradNorm": "_gradnorm",
        "GroupLoss": "_group_loss",
        "MGDA": "_mgda",
        "PCGrad": "_pcgrad",
        "GradientReport": "_report",
        "SAMGS": "_sam_gs",
        "GradientStatistics": "_statistics",
        "Sum": "_sum",
        "as_torchjd": "_torchjd",
        "WinsorizedMean": "_winsorized",
    },
)
