"""How it is scored: metrics that can be taken apart into what every row and group contributes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from ._accumulator import CurveDecompositionMetric as CurveDecompositionMetric
    from ._by_group import between_group_variance_share as between_group_variance_share
    from ._by_group import jensen_shannon_by_group as jensen_shannon_by_group
    from ._compare import MetricInterval as MetricInterval
    from ._compare import paired_metric_ci as paired_metric_ci
    from ._decomposition import CurveDecomposition as CurveDecomposition
    from ._decomposition import auroc_auprc_decomposition as auroc_auprc_decomposition
    from ._decomposition import log_tpr_auc as log_tpr_auc
    from ._decomposition import one_vs_rest as one_vs_rest
    from ._group_scorer import make_group_scorer as make_group_scorer
    from ._macro import macro_ovr_auc as macro_ovr_auc
    from ._roc_grid import RocGrid as RocGrid
    from ._roc_grid import smote_undersample_grid as smote_undersample_grid
    from ._roc_hull import Hull as Hull
    from ._roc_hull import OperatingPoint as OperatingPoint
    from ._roc_hull import roc_convex_hull as roc_convex_hull

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "CurveDecomposition": "_decomposition",
        "CurveDecompositionMetric": "_accumulator",
        "Hull": "_roc_hull",
        "MetricInterval": "_compare",
        "OperatingPoint": "_roc_hull",
        "RocGrid": "_roc_grid",
        "auroc_auprc_decomposition": "_decomposition",
        "between_group_variance_share": "_by_group",
        "jensen_shannon_by_group": "_by_group",
        "log_tpr_auc": "_decomposition",
        "macro_ovr_auc": "_macro",
        "make_group_scorer": "_group_scorer",
        "one_vs_rest": "_decomposition",
        "paired_metric_ci": "_compare",
        "roc_convex_hull": "_roc_hull",
        "smote_undersample_grid": "_roc_grid",
    },
)
