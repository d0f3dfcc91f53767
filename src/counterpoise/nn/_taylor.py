r"""Derivatives of a network with respect to its inputs, carried along in the forward pass (Taylor mode).

With a value u(x) travel :math:`\partial u / \partial x_j` and :math:`\partial^2 u / \partial x_j^2` for every input coordinate j. A linear
layer maps all three alike; an activation :math:`h = \varphi(a)` has

.. math:: h_j = \varphi'(a)\, a_j, \qquad h_{jj} = \varphi'(a)\, a_{jj} + \varphi''(a)\, a_j^2 .

One backward pass then gives the gradient of any loss of the three, where differentiating twice by ``torch.autograd.grad`` builds a graph of
the graph for every coordinate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Jet", "activate", "enter", "pass_on"]


class Jet(NamedTuple):
    """Values (n, w), first and unmixed second derivatives (d, n, w) with respect to d inputs."""

    value: Tensor
    first: Tensor
    second: Tensor

    def __add__(self, other: Jet) -> Jet:  # type: ignore[override]
        return Jet(*(a + b for a, b in zip(self, other, strict=True)))

    def __sub__(self, other: Jet) -> Jet:
        return Jet(*(a - b for a, b in zip(self, other, strict=True)))

    def __mul__(self, other: Jet) -> Jet:  # type: ignore[override]
        """The product, entry by entry (Leibniz)."""
        return Jet(
            self.value * other.value,
            self.first * other.value + self.value * other.first,
            self.second * other.value + 2 * self.first * other.first + self.value * other.second,
        )


def enter(layer: nn.Linear, x: Tensor, std: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The first linear layer of inputs (n, d), already normalized: values (n, w), and slopes (d, 1, w) with respect to what the inputs were
    before division by ``std``. Nothing bends yet."""
    slopes = layer.weight if std is None else layer.weight / std
    return layer(x), slopes.T[:, None]


def pass_on(layer: nn.Linear, jet: Jet) -> Jet:
    """A linear layer in one product; the bias moves values only."""
    d = len(jet.first)
    value, first, second = torch.split(F.linear(torch.cat([jet.value[None], jet.first, jet.second]), layer.weight), [1, d, d])
    return Jet(value[0] if layer.bias is None else value[0] + layer.bias, first, second)


def activate(phi: Callable[[Tensor], Tensor], a: Tensor, first: Tensor, second: Tensor | None = None) -> Jet:
    """An activation that acts on every entry by itself; without ``second`` nothing bends before it."""
    h, slope, bend = _shape_of(phi, a)
    bent = bend * first.square()
    return Jet(h, slope * first, bent if second is None else slope * second + bent)


def _shape_of(phi: Callable[[Tensor], Tensor], a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value and first two derivatives of an activation."""
    if isinstance(phi, nn.Tanh) or phi is torch.tanh:
        h = torch.tanh(a)
        slope = 1 - h * h
        return h, slope, -2 * h * slope
    ones = torch.ones_like(a)

    def derivative(a: Tensor) -> Tensor:
        slope: Tensor = torch.func.jvp(phi, (a,), (ones,))[1]
        return slope

    slope, bend, *_ = torch.func.jvp(derivative, (a,), (ones,))
    return phi(a), slope, bend
