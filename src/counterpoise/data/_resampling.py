"""Random over- and under-sampling of whole tables: imbalanced-learn's own classes, under the roof of what is drawn."""

from __future__ import annotations

from imblearn.over_sampling import RandomOverSampler
from imblearn.under_sampling import RandomUnderSampler

__all__ = ["RandomOverSampler", "RandomUnderSampler"]
