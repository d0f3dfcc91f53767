"""What is stepped: optimizers, as ``torch.optim.Optimizer``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from ._adamp import SGDP as SGDP
    from ._adamp import AdamP as AdamP
    from ._micro_batch_median import MicroBatchMedian as MicroBatchMedian
    from ._projected_update import ProjectedUpdate as ProjectedUpdate

__getattr__, __dir__, __all__ = attach(
    __name__,
    {"AdamP": "_adamp", "MicroBatchMedian": "_micro_batch_median", "ProjectedUpdate": "_projected_update", "SGDP": "_adamp"},
)
