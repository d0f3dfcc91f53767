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
    from ._class_weights import class_weights as class_weights
    from ._focal import FocalLoss as FocalLoss
    from ._guided import GuidedLossScaling as GuidedLossScaling
    from ._hessian_alignment import HessianAlignmentLoss as HessianAlignmentLoss
    from ._hessian_alignment import HessianAlignmentTerms as HessianAlignmentTerms
    from ._weighted import WeightedLoss as WeightedLoss
    from ._weighted import dequity_weight as dequity_weight

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "AnyLoss": "_anyloss",
        "FocalLoss": "_focal",
        "GuidedLossScaling": "_guided",
        "HessianAlignmentLoss": "_hessian_alignment",
        "HessianAlignmentTerms": "_hessian_alignment",
        "SoftConfusion": "_anyloss",
        "WeightedLoss": "_weighted",
        "amplify": "_anyloss",
        "class_weights": "_class_weights",
        "dequity_weight": "_weighted",
        "functional": "functional",
        "soft_confusion": "_anyloss",
    },
)
