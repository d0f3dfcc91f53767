"""What is going on: measurements that say whose training step it is and why. Nothing here changes a model or its data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from counterpoise._pergrad import GradientSketch as GradientSketch

    from ._appearance import ClusterReport as ClusterReport
    from ._appearance import appearance_clusters as appearance_clusters
    from ._coherence import CoherenceReport as CoherenceReport
    from ._coherence import coherence as coherence
    from ._collapse import CollapsePrediction as CollapsePrediction
    from ._collapse import collapse_threshold as collapse_threshold
    from ._collapse import neural_collapse_lengths as neural_collapse_lengths
    from ._collapse_metrics import CollapseAccumulator as CollapseAccumulator
    from ._collapse_metrics import NeuralCollapseReport as NeuralCollapseReport
    from ._collapse_metrics import collapse_metrics as collapse_metrics
    from ._contrastive import ContrastiveShares as ContrastiveShares
    from ._contrastive import contrastive_shares as contrastive_shares
    from ._curve import CurveFit as CurveFit
    from ._curve import CurveReport as CurveReport
    from ._curve import performance_curve as performance_curve
    from ._curve import select_by_curve as select_by_curve
    from ._examine import TrainingDiagnosis as TrainingDiagnosis
    from ._examine import examine as examine
    from ._feature_collapse import CollapseReport as CollapseReport
    from ._feature_collapse import feature_collapse as feature_collapse
    from ._from_sketch import Conflict as Conflict
    from ._from_sketch import Leverage as Leverage
    from ._from_sketch import conflict as conflict
    from ._from_sketch import group_shares as group_shares
    from ._from_sketch import interaction as interaction
    from ._gradient_features import gradient_features as gradient_features
    from ._gradient_imbalance import GradientImbalance as GradientImbalance
    from ._gradient_imbalance import gradient_imbalance as gradient_imbalance
    from ._head import LinearHeadReport as LinearHeadReport
    from ._head import examine_linear as examine_linear
    from ._head import head_shares as head_shares
    from ._head_alignment import HeadAlignment as HeadAlignment
    from ._head_alignment import head_alignment as head_alignment
    from ._hint import StageHint as StageHint
    from ._imbalance import ImbalanceReport as ImbalanceReport
    from ._imbalance import class_imbalance as class_imbalance
    from ._intersections import IntersectionalReport as IntersectionalReport
    from ._intersections import intersectional_report as intersectional_report
    from ._invariance import InvarianceReport as InvarianceReport
    from ._invariance import scale_invariance as scale_invariance
    from ._magnitude import MagnitudeSimilarity as MagnitudeSimilarity
    from ._magnitude import magnitude_similarity as magnitude_similarity
    from ._mistakes import MetricAdvice as MetricAdvice
    from ._mistakes import MistakeLeverage as MistakeLeverage
    from ._mistakes import metric_advice as metric_advice
    from ._mistakes import mistake_leverage as mistake_leverage
    from ._modalities import ModalityReport as ModalityReport
    from ._modalities import modality_statistics as modality_statistics
    from ._modality_sharpness import SharpnessByModality as SharpnessByModality
    from ._modality_sharpness import modality_sharpness as modality_sharpness
    from ._opposing import OpposingPair as OpposingPair
    from ._opposing import opposing_groups as opposing_groups
    from ._policy import PolicyBalance as PolicyBalance
    from ._policy import policy_balance as policy_balance
    from ._record import Recorder as Recorder
    from ._record import record as record
    from ._shares import GroupShares as GroupShares
    from ._sharpness import SharpnessReport as SharpnessReport
    from ._sharpness import sharpness as sharpness
    from ._sketching import sketch_gradients as sketch_gradients
    from ._table import StudyDiagnosis as StudyDiagnosis
    from ._table import diagnose as diagnose
    from ._tier_signal import TierSignal as TierSignal
    from ._tier_signal import tier_signal as tier_signal
    from ._trajectory import LossTrajectory as LossTrajectory
    from ._variance import VarianceReport as VarianceReport
    from ._variance import gradient_variance as gradient_variance

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "record": "_record",
        "Recorder": "_record",
        "interaction": "_from_sketch",
        "group_shares": "_from_sketch",
        "conflict": "_from_sketch",
        "Leverage": "_from_sketch",
        "Conflict": "_from_sketch",
        "examine": "_examine",
        "TrainingDiagnosis": "_examine",
        "ClusterReport": "_appearance",
        "CoherenceReport": "_coherence",
        "CollapseAccumulator": "_collapse_metrics",
        "CollapsePrediction": "_collapse",
        "CollapseReport": "_feature_collapse",
        "ContrastiveShares": "_contrastive",
        "CurveFit": "_curve",
        "CurveReport": "_curve",
        "GradientImbalance": "_gradient_imbalance",
        "GradientSketch": "_sketching",
        "GroupShares": "_shares",
        "HeadAlignment": "_head_alignment",
        "ImbalanceReport": "_imbalance",
        "IntersectionalReport": "_intersections",
        "InvarianceReport": "_invariance",
        "LinearHeadReport": "_head",
        "LossTrajectory": "_trajectory",
        "MagnitudeSimilarity": "_magnitude",
        "MetricAdvice": "_mistakes",
        "MistakeLeverage": "_mistakes",
        "ModalityReport": "_modalities",
        "NeuralCollapseReport": "_collapse_metrics",
        "OpposingPair": "_opposing",
        "PolicyBalance": "_policy",
        "SharpnessByModality": "_modality_sharpness",
        "SharpnessReport": "_sharpness",
        "StageHint": "_hint",
        "StudyDiagnosis": "_table",
        "TierSignal": "_tier_signal",
        "VarianceReport": "_variance",
        "appearance_clusters": "_appearance",
        "class_imbalance": "_imbalance",
        "coherence": "_coherence",
        "collapse_metrics": "_collapse_metrics",
        "collapse_threshold": "_collapse",
        "contrastive_shares": "_contrastive",
        "diagnose": "_table",
        "examine_linear": "_head",
        "feature_collapse": "_feature_collapse",
        "gradient_features": "_gradient_features",
        "head_alignment": "_head_alignment",
        "gradient_imbalance": "_gradient_imbalance",
        "gradient_variance": "_variance",
        "head_shares": "_head",
        "intersectional_report": "_intersections",
        "magnitude_similarity": "_magnitude",
        "metric_advice": "_mistakes",
        "mistake_leverage": "_mistakes",
        "modality_statistics": "_modalities",
        "modality_sharpness": "_modality_sharpness",
        "scale_invariance": "_invariance",
        "sharpness": "_sharpness",
        "sketch_gradients": "_sketching",
        "neural_collapse_lengths": "_collapse",
        "opposing_groups": "_opposing",
        "performance_curve": "_curve",
        "tier_signal": "_tier_signal",
        "policy_balance": "_policy",
        "select_by_curve": "_curve",
    },
)
