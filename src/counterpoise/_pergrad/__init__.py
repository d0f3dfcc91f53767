"""Per-example and per-group gradients of a model, without the (m, P) matrix: written once for diagnostics and aggregators."""

from __future__ import annotations

from ._collect import Collector, ParameterSpace
from ._engines import ENGINES, CoupledExamplesError, Job, Measured, Run, directional, flat_gradient, select, take
from ._layouts import Layouts, find_layouts
from ._projection import Projection, with_lengths
from ._remembered import kind_of_batch, remembered
from ._sketch import Blocks, GradientSketch
from ._state import exact_backends, random_states, untouched
from ._watch import FAILURES, StaleInputError, Watch

__all__ = [
    "ENGINES",
    "FAILURES",
    "Blocks",
    "Collector",
    "CoupledExamplesError",
    "GradientSketch",
    "Job",
    "Layouts",
    "Measured",
    "ParameterSpace",
    "Projection",
    "Run",
    "StaleInputError",
    "Watch",
    "directional",
    "exact_backends",
    "find_layouts",
    "flat_gradient",
    "kind_of_batch",
    "random_states",
    "remembered",
    "select",
    "take",
    "untouched",
    "with_lengths",
]
