r"""The gated fully connected network (Wang, Teng and Perdikaris 2021, arXiv:2001.04536, section 2.6): two encoders mixed in every layer.

What is unbalanced: in a network that must satisfy a differential equation the directions of parameter space have very different curvatures,
so that plain layers learn some of them hardly at all. Here two encodings of the input reach every layer directly, and what a layer computes
is how much of either to take, entry by entry:

.. math::
    U = \varphi(X W_u + b_u), \quad V = \varphi(X W_v + b_v), \quad Z_k = \varphi(H_k W_k + b_k), \quad
    H_{k+1} = Z_k \odot U + (1 - Z_k) \odot V, \quad H_1 = X .

The output is :math:`H_{L+1} W + b`. (As in the published code; the paper's equations have U and V exchanged, which is the same network.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from counterpoise._errors import bad_input, check_range

from ._taylor import activate, enter, pass_on

__all__ = ["GatedMLP"]


class GatedMLP(nn.Module):
    r"""Multi-layer perceptron whose hidden layers mix two encodings of the input.

    Parameters
    ----------
    in_features, out_features : int >= 1
        Sizes of inputs and outputs.
    hidden_features : int >= 1, default 50
        Width W of the encoders and of all hidden layers (the paper's).
    num_layers : int >= 1, default 3
        Hidden layers L (the paper's smaller network). With two encoders and L layers of width W there are about :math:`(L - 1) W^2`
        weights: those of a plain network, and two small encoders.
    activation : nn.Module, optional
        Acts on every entry by itself. Default: ``nn.Tanh()``. One that is not smooth (ReLU) has no second derivatives to train by.
    normalize : (mean, std), optional
        Numbers or (in_features,): inputs enter as (x - mean) / std. The paper takes those of the uniform distribution on the domain: the
        middle, and the width over :math:`\sqrt{12}`. Default: inputs as they are.

    Shapes
    ------
    Input (\*, in_features), output (\*, out_features).

    Attributes
    ----------
    encoder_u, encoder_v, output : nn.Linear
    hidden : nn.ModuleList of nn.Linear
        :math:`W_1` to :math:`W_L`. ``[*model.hidden.parameters(), *model.output.parameters()]`` is what the published code compares in
        :class:`counterpoise.gradients.GradientAnnealing`.

    Raises
    ------
    InputError
        If a size is not a positive integer, or ``std`` not positive.

    Notes
    -----
    Weights start as Glorot's normal distribution has them, :math:`\sqrt{2 / (fan_{in} + fan_{out})}`, biases at 0, those of the encoders
    at random, as in the published code.

    Examples
    --------
    >>> model = GatedMLP(2, 1, hidden_features=8, normalize=(0.0, 0.577))
    >>> model(torch.zeros(5, 2)).shape
    torch.Size([5, 1])
    >>> u, u_x, u_xx = model.derivatives(torch.rand(5, 2))  # of each output with respect to each input
    >>> u.shape, u_x.shape, u_xx.shape
    (torch.Size([5, 1]), torch.Size([2, 5, 1]), torch.Size([2, 5, 1]))
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_features: int = 50,
        num_layers: int = 3,
        activation: nn.Module | None = None,
        normalize: tuple[Any, Any] | None = None,
    ) -> None:
        super().__init__()
        sizes = {"in_features": in_features, "out_features": out_features, "hidden_features": hidden_features, "num_layers": num_layers}
        for name, size in sizes.items():
            check_range(name, size, low=1, integer=True)
        if activation is not None and not isinstance(activation, nn.Module):
            bad_input("activation", activation, "a torch.nn.Module", "torch.tanh is nn.Tanh().")
        mean, std = _checked(normalize, in_features)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.activation = activation if activation is not None else nn.Tanh()
        self.encoder_u = nn.Linear(in_features, hidden_features)
        self.encoder_v = nn.Linear(in_features, hidden_features)
        self.hidden = nn.ModuleList(nn.Linear(hidden_features if k else in_features, hidden_features) for k in range(num_layers))
        self.output = nn.Linear(hidden_features, out_features)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew, from torch's global generator, as its own layers do."""
        for layer in (self.encoder_u, self.encoder_v, *self.hidden, self.output):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        for encoder in (self.encoder_u, self.encoder_v):
            nn.init.xavier_normal_(encoder.bias[None])

    def forward(self, x: Tensor) -> Tensor:
        phi = self.activation
        x = self._normalized(x)
        u, v = phi(self.encoder_u(x)), phi(self.encoder_v(x))
        h, difference = x, u - v
        for layer in self.hidden:
            h = v + phi(layer(h)) * difference
        out: Tensor = self.output(h)
        return out

    def derivatives(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Outputs u (n, out_features) with :math:`\partial u / \partial x_j` and :math:`\partial^2 u / \partial x_j^2`, both (in_features,
        n, out_features), for inputs (n, in_features).

        Carried along in one forward pass: they can enter a loss, whose ``backward()`` then is an ordinary one. Derivatives are with respect
        to the inputs before normalization. Mixed derivatives are not computed.
        """
        if x.ndim != 2 or x.shape[1] != self.encoder_u.in_features:
            bad_input("x", f"shape {tuple(x.shape)}", f"shape (n, {self.encoder_u.in_features})")
        phi = self.activation
        x = self._normalized(x)
        u, v = (activate(phi, *enter(encoder, x, self.std)) for encoder in (self.encoder_u, self.encoder_v))
        difference = u - v
        h = v + activate(phi, *enter(self.hidden[0], x, self.std)) * difference  # type: ignore[arg-type]
        for layer in self.hidden[1:]:
            h = v + activate(phi, *pass_on(layer, h)) * difference  # type: ignore[arg-type]
        value, first, second = pass_on(self.output, h)
        return value, first, second

    def extra_repr(self) -> str:
        return "" if self.mean is None else f"normalize=({self.mean.tolist()}, {self.std.tolist()})"  # type: ignore[union-attr]

    def _normalized(self, x: Tensor) -> Tensor:
        return x if self.mean is None or self.std is None else (x - self.mean) / self.std


def _checked(normalize: tuple[Any, Any] | None, in_features: int) -> tuple[Tensor | None, Tensor | None]:
    """Mean and standard deviation (in_features,)."""
    if normalize is None:
        return None, None
    if not isinstance(normalize, Sequence) or len(normalize) != 2:
        bad_input("normalize", normalize, "(mean, std)")
    parts = []
    for name, value in zip(("mean", "std"), normalize, strict=True):
        part = torch.as_tensor(value, dtype=torch.get_default_dtype()).detach().clone()
        if part.ndim > 1 or part.numel() not in (1, in_features) or not bool(torch.isfinite(part).all()):
            bad_input(f"normalize, {name}", value, f"a finite number, or {in_features} of them")
        parts.append(part.expand(in_features).clone())
    if not bool((parts[1] > 0).all()):
        bad_input("normalize, std", normalize[1], "positive numbers", "A feature that never changes can be left out.")
    return parts[0], parts[1]
