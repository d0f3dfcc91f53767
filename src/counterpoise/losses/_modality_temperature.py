r"""One learned temperature per modality (e5-omni, arXiv:2601.03666, section on modality-aware temperature).

What is unbalanced: under one temperature, cosines of some pairs of modalities spread more than those of others. Their logits are sharper,
and they take most of the gradient. An item x with weights w(x) over the modalities, which sum to 1, has the temperature

.. math:: \tau(x) = \sum_m w_m(x)\, \tau_m, \qquad \tau(q, p) = (\tau(q) + \tau(p)) / 2 .

Logarithms of :math:`\tau_m` are what is learned, so that temperatures stay positive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterpoise._errors import bad_input, check_range, listing

__all__ = ["Modalities", "ModalityTemperature"]

Modalities = Tensor | npt.NDArray[Any] | Sequence[int] | Sequence[str] | Sequence[Sequence[str]]  # of the rows of a batch

SUM = 1e-3  # how far weights of a row may be from summing to 1: half precision


class ModalityTemperature(nn.Module):
    r"""Temperatures of pairs of items, from one learned temperature per modality.

    Give ``log_tau`` a parameter group of its own, without weight decay (which pulls every temperature towards 1) and, where the rest of the
    model learns slowly (LoRA at 1e-4), with a learning rate about ten times as large.

    Parameters
    ----------
    modalities : sequence of str, or int
        Names of the atomic modalities, or how many there are (then called "0", "1", ...).
    init : float or sequence of float, default 0.02
        Temperature(s) at the start. The paper finds 0.015 to 0.03 to do, and ends at 0.013 (text, image) and 0.022 (audio, video).
    min, max : float, default 1e-3 and 1.0 (ours)
        Bounds. Temperatures shrink as long as the positives are easy; at a bound no gradient leads further out.

    Attributes
    ----------
    log_tau : Parameter (M,)
    names : tuple of str

    Shapes
    ------
    ``forward(wq, wt)`` takes weights (B, M) and (N, M) and returns :math:`\tau(q, p)` (B, N). :meth:`of` has one temperature per item,
    which is all that :class:`OmniContrastiveLoss` needs: a sum of two vectors, never B x N x M numbers. A modality that does not occur in a
    batch has the gradient 0.

    Raises
    ------
    InputError
        If a parameter is out of its range, names repeat, a modality is unknown, or weights are negative or do not sum to 1.

    Examples
    --------
    >>> temperature = ModalityTemperature(["text", "image"], init=[0.01, 0.03])
    >>> temperature.weights([("text", "image"), "text"])
    tensor([[0.5000, 0.5000],
            [1.0000, 0.0000]])
    >>> temperature(temperature.weights(["text", "image"]), temperature.weights(["image"])).detach()
    tensor([[0.0200],
            [0.0300]])
    """

    def __init__(
        self, modalities: Sequence[str] | int, init: float | Sequence[float] | Tensor = 0.02, min: float = 1e-3, max: float = 1.0
    ) -> None:
        super().__init__()
        if isinstance(modalities, (int, float, np.number)):
            check_range("modalities", modalities, low=1, integer=True)
            modalities = [str(k) for k in range(int(modalities))]
        names = tuple(modalities)
        if isinstance(modalities, str) or not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
            bad_input("modalities", modalities, "different names, or their number")
        check_range("min", min, low=0, open_low=True)
        check_range("max", max, low=min, open_low=True)
        start = torch.as_tensor(init).detach().to(torch.get_default_dtype() if not isinstance(init, Tensor) else init.dtype)
        if start.ndim > 1 or (start.ndim == 1 and len(start) != len(names)):
            bad_input("init", f"shape {tuple(start.shape)}", f"one temperature, or one for each of the {len(names)} modalities")
        if not start.is_floating_point() or not bool(((start >= min * (1 - SUM)) & (start <= max * (1 + SUM))).all()):
            bad_input("init", start.tolist(), f"temperatures in [{min:g}, {max:g}]", "Pass min= or max= to widen the range.")
        self.names, self.min, self.max = names, float(min), float(max)
        self.log_tau = nn.Parameter(start.log().expand(len(names)).clone())

    def forward(self, wq: Tensor, wt: Tensor) -> Tensor:
        return (self.of(wq)[:, None] + self.of(wt)) / 2

    def of(self, weights: Tensor) -> Tensor:
        r""":math:`\tau(x)` (B,) of items with weights (B, M)."""
        if weights.ndim != 2 or weights.shape[1] != len(self.names):
            bad_input("weights", f"shape {tuple(weights.shape)}", f"(B, {len(self.names)}): one weight per modality")
        tau = self.temperatures
        return weights.to(tau) @ tau

    @property
    def temperatures(self) -> Tensor:
        r""":math:`\tau_m` (M,) within their bounds, differentiable."""
        bounded: Tensor = _Bounded.apply(self.log_tau, math.log(self.min), math.log(self.max))  # type: ignore[no-untyped-call]
        return bounded.exp()

    def weights(self, modality: Modalities, argument: str = "modality") -> Tensor:
        """Weights (B, M) of items of which is given: an index (B,), a name, several names of which each weighs the same, or the weights
        themselves (B, M)."""
        device, M = self.log_tau.device, len(self.names)
        if isinstance(modality, np.ndarray) and modality.dtype.kind in "iuf":
            modality = torch.as_tensor(modality)
        if not isinstance(modality, Tensor):
            items = list(modality)
            if items and isinstance(items[0], (str, tuple, list)) and not _numbers(items[0]):
                return self._of_names(items, argument)
            modality = torch.as_tensor(items)
        if modality.ndim == 1 and not modality.is_floating_point() and modality.dtype != torch.bool:
            if not torch.compiler.is_compiling() and bool((wrong := (modality < 0) | (modality >= M)).any()):
                bad_input(argument, modality[wrong][0].item(), f"indices of modalities, 0..{M - 1}", f"Known: {listing(self.names)}.")
            return F.one_hot(modality.long().to(device), M).to(self.log_tau.dtype)
        if modality.ndim != 2 or modality.shape[1] != M:
            bad_input(argument, f"shape {tuple(modality.shape)}", f"integers (B,), or weights (B, {M}) of {listing(self.names)}")
        weights = modality.to(self.log_tau)
        if not torch.compiler.is_compiling():
            fine = torch.isfinite(weights).all(dim=1) & (weights >= 0).all(dim=1) & ((weights.sum(dim=1) - 1).abs() <= SUM)
            if not bool(fine.all()):
                row = int(torch.nonzero(~fine)[0, 0])
                bad_input(argument, f"weights {weights[row].tolist()} in row {row}", "weights >= 0 that sum to 1")
        return weights

    def _of_names(self, items: list[Any], argument: str) -> Tensor:
        index = {name: k for k, name in enumerate(self.names)}
        rows, columns, values = [], [], []
        for row, item in enumerate(items):
            parts = (item,) if isinstance(item, str) else tuple(item)
            unknown = [part for part in parts if part not in index]
            if unknown or not parts:
                bad_input(argument, unknown[0] if unknown else item, f"one of the modalities {listing(self.names)}")
            rows += [row] * len(parts)
            columns += [index[part] for part in parts]
            values += [1 / len(parts)] * len(parts)
        found = torch.zeros(len(items), len(self.names), dtype=self.log_tau.dtype)
        found.index_put_((torch.tensor(rows), torch.tensor(columns)), torch.tensor(values, dtype=found.dtype), accumulate=True)
        return found.to(self.log_tau.device)

    def extra_repr(self) -> str:
        shown = ", ".join(f"{name}={tau:.4g}" for name, tau in zip(self.names, self.temperatures.tolist(), strict=True))
        return f"{shown}, min={self.min:g}, max={self.max:g}"


class _Bounded(torch.autograd.Function):
    """clamp whose gradient at a bound is kept if a step against it leads back inside: what is clamped can return."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,), (low, high) = ctx.saved_tensors, ctx.bounds
        outward = ((x <= low) & (grad > 0)) | ((x >= high) & (grad < 0))
        return grad.masked_fill(outward, 0.0), None, None


def _numbers(item: Any) -> bool:
    """Whether that is a row of weights, not of names."""
    return not isinstance(item, str) and bool(len(item)) and not isinstance(item[0], str)
