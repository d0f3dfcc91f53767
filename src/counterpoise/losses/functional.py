"""Losses as plain functions of tensors."""

from __future__ import annotations

from ._anyloss import any_loss as any_loss

__all__ = ["any_loss"]
