"""What is combined: aggregators, which make one gradient out of those of several examples, groups, tasks or processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from ._accumulator import Accumulator as Accumulator
    from ._aggregator import Aggregator as Aggregator
    from ._annealing import GradientAnnealing as GradientAnnealing
    from ._asymmetric import AsymmetricGradient as AsymmetricGradient
    from ._asymmetric import scale_gradient as scale_gradient
    from ._backward import backward as backward
    from ._cagrad import CAGrad as CAGrad
    from ._gcond import GCond as GCond
    from ._gradnorm import GradNorm as GradNorm
    from ._group_loss import GroupLoss as GroupLoss
    from ._mgda import MGDA as MGDA
    from ._modalities import arl_weights as arl_weights
    from ._modalities import fusion_weights as fusion_weights
    from ._pcgrad import PCGrad as PCGrad
    from ._report import GradientReport as GradientReport
    from ._sam_gs import SAMGS as SAMGS
    from ._statistics import GradientStatistics as GradientStatistics
    from ._sum import Sum as Sum
    from ._torchjd import as_torchjd as as_torchjd
    from ._vote import BinaryVote as BinaryVote
    from ._vote import median_binarize as median_binarize
    from ._winsorized import WinsorizedMean as WinsorizedMean

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Accumulator": "_accumulator",
        "Aggregator": "_aggregator",
        "AsymmetricGradient": "_asymmetric",
        "GradientAnnealing": "_annealing",
        "arl_weights": "_modalities",
        "backward": "_backward",
        "BinaryVote": "_vote",
        "CAGrad": "_cagrad",
        "fusion_weights": "_modalities",
        "GCond": "_gcond",
        "GradNorm": "_gradnorm",
        "GroupLoss": "_group_loss",
        "MGDA": "_mgda",
        "median_binarize": "_vote",
        "PCGrad": "_pcgrad",
        "GradientReport": "_report",
        "SAMGS": "_sam_gs",
        "scale_gradient": "_asymmetric",
        "GradientStatistics": "_statistics",
        "Sum": "_sum",
        "as_torchjd": "_torchjd",
        "WinsorizedMean": "_winsorized",
    },
)
