"""What is trained: modules, and their first values (:mod:`counterpoise.nn.init`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from ._gated_mlp import GatedMLP as GatedMLP
    from ._unconstrained import UnconstrainedFeatures as UnconstrainedFeatures

__getattr__, __dir__, __all__ = attach(__name__, {"GatedMLP": "_gated_mlp", "UnconstrainedFeatures": "_unconstrained", "init": "init"})
