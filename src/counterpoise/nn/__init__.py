"""What is trained: modules, and their first values (:mod:`counterpoise.nn.init`)."""

from __future__ import annotations

from counterpoise._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, {"init": "init"})
