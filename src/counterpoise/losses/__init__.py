"""What is charged: losses and class weights, as ``torch.nn.Module`` and tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from . import functional as functional
    from ._anyloss import AnyLoss as AnyLoss
    from ._anyloss import SoftConfusion as SoftConfusion
    from ._anyloss import amplify as amplify
    from ._anyloss import soft_confusion as soft_confusion
    from ._arl import ARLLoss as ARLLoss
    from ._arl import zero_out_unimodal as zero_out_unimodal
    from ._balanced_clip import BalancedClipLoss as BalancedClipLoss
    from ._balanced_clip import ClipState as ClipState
    from ._balanced_clip import balanced_bounds as balanced_bounds
    from ._balanced_mse import BalancedMSELoss as BalancedMSELoss
    from ._cement import CementLoss as CementLoss
    from ._class_weights import class_weights as class_weights
    from ._conr import ConRLoss as ConRLoss
    from ._contrastive_shares import ContrastiveShares as ContrastiveShares
    from ._contrastive_shares import contrastive_shares as contrastive_shares
    from ._coral import batch_whiten as batch_whiten
    from ._coral import coral_loss as coral_loss
    from ._distance_covariance import distance_covariance as distance_covariance
    from ._distance_covariance import joint_distance_covariance as joint_distance_covariance
    from ._distance_covariance_penalty import DistanceCovariancePenalty as DistanceCovariancePenalty
    from ._focal import FocalLoss as FocalLoss
    from ._guided import GuidedLossScaling as GuidedLossScaling
    from ._hessian_alignment import HessianAlignmentLoss as HessianAlignmentLoss
    from ._hessian_alignment import HessianAlignmentTerms as HessianAlignmentTerms
    from ._label_density import fit_window as fit_window
    from ._label_density import lds_weights as lds_weights
    from ._modality_temperature import ModalityTemperature as ModalityTemperature
    from ._omni import OmniContrastiveLoss as OmniContrastiveLoss
    from ._omni import OmniTerms as OmniTerms
    from ._quantile_curriculum import QuantileCurriculum as QuantileCurriculum
    from ._scalarized import ScalarizedLoss as ScalarizedLoss
    from ._scalarized import scalarization_weights as scalarization_weights
    from ._weighted import WeightedLoss as WeightedLoss
    from ._weighted import dequity_weight as dequity_weight

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "ARLLoss": "_arl",
        "AnyLoss": "_anyloss",
        "BalancedClipLoss": "_balanced_clip",
        "BalancedMSELoss": "_balanced_mse",
        "CementLoss": "_cement",
        "ClipState": "_balanced_clip",
        "ConRLoss": "_conr",
        "ContrastiveShares": "_contrastive_shares",
        "DistanceCovariancePenalty": "_distance_covariance_penalty",
        "FocalLoss": "_focal",
        "GuidedLossScaling": "_guided",
        "HessianAlignmentLoss": "_hessian_alignment",
        "HessianAlignmentTerms": "_hessian_alignment",
        "ModalityTemperature": "_modality_temperature",
        "OmniContrastiveLoss": "_omni",
        "OmniTerms": "_omni",
        "QuantileCurriculum": "_quantile_curriculum",
        "ScalarizedLoss": "_scalarized",
        "SoftConfusion": "_anyloss",
        "WeightedLoss": "_weighted",
        "amplify": "_anyloss",
        "balanced_bounds": "_balanced_clip",
        "batch_whiten": "_coral",
        "class_weights": "_class_weights",
        "coral_loss": "_coral",
        "contrastive_shares": "_contrastive_shares",
        "dequity_weight": "_weighted",
        "fit_window": "_label_density",
        "distance_covariance": "_distance_covariance",
        "functional": "functional",
        "joint_distance_covariance": "_distance_covariance",
        "lds_weights": "_label_density",
        "scalarization_weights": "_scalarized",
        "soft_confusion": "_anyloss",
        "zero_out_unimodal": "_arl",
    },
)
