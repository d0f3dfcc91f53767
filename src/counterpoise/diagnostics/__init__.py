"""What is going on: measurements that say whose training step it is and why. Nothing here changes a model or its data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from ._appearance import ClusterReport as ClusterReport
    from ._appearance import appearance_clusters as appearance_clusters
    from ._head import LinearHeadReport as LinearHeadReport
    from ._head import examine_linear as examine_linear
    from ._head import head_shares as head_shares
    from ._imbalance import ImbalanceReport as ImbalanceReport
    from ._imbalance import class_imbalance as class_imbalance
    from ._mistakes import MetricAdvice as MetricAdvice
    from ._mistakes import MistakeLeverage as MistakeLeverage
    from ._mistakes import metric_advice as metric_advice
    from ._mistakes import mistake_leverage as mistake_leverage
    from ._shares import GroupShares as GroupShares
    from ._table import StudyDiagnosis as StudyDiagnosis
    from ._table import diagnose as diagnose

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "ClusterReport": "_appearance",
        "GroupShares": "_shares",
        "ImbalanceReport": "_imbalance",
        "LinearHeadReport": "_head",
        "MetricAdvice": "_mistakes",
        "MistakeLeverage": "_mistakes",
        "StudyDiagnosis": "_table",
        "appearance_clusters": "_appearance",
        "class_imbalance": "_imbalance",
        "diagnose": "_table",
        "examine_linear": "_head",
        "head_shares": "_head",
        "metric_advice": "_mistakes",
        "mistake_leverage": "_mistakes",
    },
)
