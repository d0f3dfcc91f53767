"""Per-example and per-group gradients of a model, without the (m, P) matrix: written once for diagnostics and aggregators."""

from __future__ import annotations

from ._collect import Collector, ParameterSpace
from ._engines import ENGINES, CoupledExamplesError, Job, Measured, directional, select, take
from ._projection import Projection
from ._sketch import Blocks, GradientSketch
from ._state import exact_backends, untouched
from ._watch import FAILURES, StaleInputError, Watch

__all__ = [
    "ENGINES",
    "FAILURES",
    "Blocks",
    "Collector",
    "CoupledExamplesError",
    "GradientSketch",
    "Job",
    "Measured",
    "ParameterSpace",
    "Projection",
    "StaleInputError",
    "Watch",
    "directional",
    "exact_backends",
    "select",
    "take",
    "untouched",
]
