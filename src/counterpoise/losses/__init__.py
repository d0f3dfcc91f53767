"""What is charged: losses and class weights, as ``torch.nn.Module`` and tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from ._class_weights import class_weights as class_weights
    from ._focal import FocalLoss as FocalLoss

__getattr__, __dir__, __all__ = attach(__name__, {"FocalLoss": "_focal", "class_weights": "_class_weights"})
