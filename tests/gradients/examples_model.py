"""A trunk with three heads whose losses differ a hundredfold, and what is expected of its gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from counterpoise.gradients import Aggregator

NAMES = ("seg", "depth", "normals")


class ThreeHeads(nn.Module):
    def __init__(self, width: int = 16, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.heads = nn.ModuleDict({name: nn.Linear(width, 2) for name in NAMES})
        self.to(dtype)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / 2)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return self.losses_at(self.trunk(x), y)

    def losses_at(self, z: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {name: 10**i * ((self.heads[name](z) - y[:, i]) ** 2).mean() for i, name in enumerate(NAMES)}


def batch(n: int = 24, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    y = torch.randn(n, 3, 2, generator=generator, dtype=torch.float64)
    return x.to(dtype), y.to(dtype)


def rows_of_losses(losses: dict[str, Tensor], parameters: list[nn.Parameter]) -> Tensor:
    """The Jacobian (m, n), from one ordinary pass for each loss."""
    found = []
    for loss in losses.values():
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        found.append(torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in zip(parameters, gradients, strict=True)]))
    return torch.stack(found)


def in_one(parameters: list[nn.Parameter]) -> Tensor:
    """What is in ``.grad``, in one vector."""
    return torch.cat([torch.zeros_like(p).reshape(-1) if p.grad is None else p.grad.reshape(-1) for p in parameters])


def expected(make: Callable[[], Aggregator], model: ThreeHeads, data: tuple[Tensor, Tensor]) -> Tensor:
    """The aggregator called on the whole Jacobian of the trunk."""
    return make()(rows_of_losses(model(*data), list(model.trunk.parameters())))
