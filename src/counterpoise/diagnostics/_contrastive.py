"""Whose gradient one contrastive batch is. The loss that reports it needs it for itself: ``counterpoise.losses`` defines it."""

from counterpoise.losses import ContrastiveShares, contrastive_shares

__all__ = ["ContrastiveShares", "contrastive_shares"]
