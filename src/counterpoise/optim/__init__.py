"""What is stepped: optimizers, as ``torch.optim.Optimizer``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from ._micro_batch_median import MicroBatchMedian as MicroBatchMedian

__getattr__, __dir__, __all__ = attach(__name__, {"MicroBatchMedian": "_micro_batch_median"})
