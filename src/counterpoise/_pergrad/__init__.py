"""Per-example and per-group gradients of a model, without the (m, P) matrix: written once for diagnostics and aggregators."""

from __future__ import annotations

from ._sketch import Blocks, GradientSketch

__all__ = ["Blocks", "GradientSketch"]
