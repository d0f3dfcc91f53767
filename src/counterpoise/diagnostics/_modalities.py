"""Which modality a model listens to: measured where the gradients need it, and shown here."""

from __future__ import annotations

from counterpoise.gradients._modalities import ModalityReport, modality_statistics

__all__ = ["ModalityReport", "modality_statistics"]
