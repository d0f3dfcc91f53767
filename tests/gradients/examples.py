"""Small aggregators of every kind: what the base class must carry, whatever methods there are."""

from __future__ import annotations

import torch
from torch import Tensor

from counterpoise.gradients import Aggregator, GradientStatistics


class Sum(Aggregator):
    """Weights from nothing."""

    needs = frozenset({"losses"})

    def weights(self, s: GradientStatistics) -> Tensor:
        return torch.ones_like(s.losses)


class EqualLength(Aggregator):
    """Weights from the Gramian: all rows as long as the average row."""

    needs = frozenset({"gramian"})

    def weights(self, s: GradientStatistics) -> Tensor:
        length = s.gramian.diagonal().sqrt()
        return torch.where(length > 0, length.mean() / length, 0.0) / len(s)


class Bounded(Aggregator):
    """Weights from row statistics: no row has an entry above 1."""

    needs = frozenset({"rowstats"})

    def weights(self, s: GradientStatistics) -> Tensor:
        return 1 / s.abs_max.amax(dim=1).clamp(min=1) / len(s)


class Smoothed(Aggregator):
    """Weights with a memory: rows longer than the average of the steps weigh less."""

    needs = frozenset({"gramian"})
    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros((), dtype=torch.float64))

    def weights(self, s: GradientStatistics) -> Tensor:
        length = s.gramian.diagonal().sqrt()
        self.average = 0.5 * self.average + length.mean()
        return torch.where(self.average > 0, self.average / (self.average + length), 0.0) / len(s)

    def reset(self) -> None:
        self.average.zero_()


class SignVote(Aggregator):
    """A rule for coordinates: the mean where all signs agree with that of the sum."""

    def combine(self, rows: Tensor, slot: int, s: GradientStatistics) -> Tensor:
        return torch.where(rows.sign() == rows.sum(dim=0).sign(), rows, 0.0).mean(dim=0)
