r"""Guided loss scaling (Chen et al. 2019, arXiv:1909.04868): one loss takes its size from another, at every step.

What is unbalanced: a classification loss that is summed over all anchors dwarfs the localization loss of the few that hold an object. With
a weight w that no gradient flows through, the first is made as large as the second:

.. math:: w = \frac{L_{ref}}{L_{cls}}, \qquad L = w \, L_{cls} + L_{ref}, \qquad \nabla (w L_{cls}) = w \nabla L_{cls} .

The value of the scaled loss *is* :math:`L_{ref}`, whatever the classifier does; its gradient is that of :math:`L_{cls}`, w times as large.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from counterpoise._dist import all_reduce_sum
from counterpoise._errors import bad_input, check_choice, check_range, listing

__all__ = ["GuidedLossScaling"]


class GuidedLossScaling(nn.Module):
    r"""Scale a loss to the value of another, with a weight that is a constant for the gradient.

    .. math::
        w = \min\left(\max\left(\frac{L_{ref}}{\max(L_{cls}, \epsilon)}, w_{floor}\right), w_{max}\right), \qquad
        \text{scaled} = s \, w \, L_{cls}

    As :math:`L_{ref}` falls, so does the step of the classifier, whose learning rate is in effect w times what the optimizer says: tune it
    anew. The scaled value says nothing about the classifier; log :math:`L_{cls}` as well. Where there is no foreground, :math:`L_{ref} = 0`
    and the batch is skipped, unless ``floor`` is set. With gradient accumulation w belongs to each small batch.

    Parameters
    ----------
    scale : float > 0, default 1.0 (the paper's value for one-stage detectors; 2.0 for the head of two-stage ones)
        Factor s of every scaled loss.
    reference : "second", 0 or 1, default "second"
        Which of two losses is the one that the other is scaled to.
    eps : float > 0, default 1e-12
        Smallest divisor. A loss of 0 stays 0.
    max_ratio, floor : float > 0, optional; float >= 0, default 0.0
        Largest and smallest w. Without a floor, the classifier stops learning when :math:`L_{ref}` reaches 0.
    ema : float in [0, 1), optional
        Smooth the ratio over training steps, :math:`w_t = m \, w_{t-1} + (1 - m) \, L_{ref} / L_{cls}`; the first is taken as it is. Steps
        in which a loss is 0 do not enter it, and use it. Kept in the ``state_dict``; in ``eval()`` used and not changed. Default: no
        smoothing, as in the paper.
    sync : bool, default True
        Where torch.distributed is in use, take the ratio of the losses' sums over all processes, so that all of them scale alike (one
        exchange of a few numbers). False: each process has its own ratio, as in the authors' code.
    process_group : torch.distributed.ProcessGroup, optional
        The processes of ``sync``; by default all.

    Shapes
    ------
    ``forward(loss_cls, loss_ref)``: two scalars; returns the scaled :math:`L_{cls}` (with ``reference=0`` the second loss is scaled to the
    first). ``forward(losses, guide="box")``: a dict of scalars; returns a dict with the same keys, in which every other loss is scaled to
    that of the guide. Arguments are never changed. Half precision is computed, and returned, in float32.

    Raises
    ------
    InputError
        If a loss is not a scalar tensor of a floating-point type, or is NaN, infinite or negative, the guide is not among the losses, or a
        parameter is out of its range. (Values are looked at once per call, and not inside ``torch.compile``.)

    Warns
    -----
    UserWarning
        Once, when the reference is 0 and nothing (``floor``, ``ema``) keeps the other loss from being switched off.

    Examples
    --------
    >>> logits, offsets = torch.zeros(1000, requires_grad=True), torch.tensor([0.5, 0.1], requires_grad=True)
    >>> loss_cls = nn.functional.binary_cross_entropy_with_logits(logits, torch.zeros(1000), reduction="sum")
    >>> loss_box = offsets.square().sum()
    >>> scaled = GuidedLossScaling()(loss_cls, loss_box)
    >>> round(loss_cls.item(), 2), round(scaled.item(), 2)
    (693.15, 0.26)
    >>> losses = {"cls": loss_cls, "center": loss_cls / 2, "box": loss_box}
    >>> {name: round(loss.item(), 2) for name, loss in GuidedLossScaling()(losses, guide="box").items()}
    {'cls': 0.26, 'center': 0.26, 'box': 0.26}
    """

    def __init__(
        self,
        scale: float = 1.0,
        reference: Literal["second", 0, 1] = "second",
        eps: float = 1e-12,
        max_ratio: float | None = None,
        ema: float | None = None,
        *,
        floor: float = 0.0,
        sync: bool = True,
        process_group: Any = None,
    ) -> None:
        super().__init__()
        check_range("scale", scale, low=0, open_low=True)
        check_choice("reference", reference, ("second", 0, 1))
        check_range("eps", eps, low=0, open_low=True)
        check_range("floor", floor, low=0)
        if max_ratio is not None:
            check_range("max_ratio", max_ratio, low=floor, open_low=True)
        if ema is not None:
            check_range("ema", ema, low=0)
            if ema >= 1:
                bad_input("ema", ema, "a number in [0, 1)", "0.9 remembers about ten steps.")
        self.scale, self.eps, self.floor, self.max_ratio, self.ema = scale, eps, floor, max_ratio, ema
        self.reference = reference
        self.sync = sync
        self.process_group = process_group
        self._smoothed: dict[str, Tensor] = {}  # ratio of each guided loss; empty without ema
        self._warned = False

    @overload
    def forward(self, loss_cls: Tensor, loss_ref: Tensor) -> Tensor: ...

    @overload
    def forward(self, loss_cls: Mapping[str, Tensor], *, guide: str) -> dict[str, Tensor]: ...

    def forward(
        self, loss_cls: Tensor | Mapping[str, Tensor], loss_ref: Tensor | None = None, guide: str | None = None
    ) -> Tensor | dict[str, Tensor]:
        if isinstance(loss_cls, Mapping):
            return self._scale_all(loss_cls, loss_ref, guide)
        if guide is not None:
            bad_input("guide", guide, "a name only where the losses come as a dict", 'Two losses have reference="second".')
        losses = {"loss_cls": _scalar("loss_cls", loss_cls), "loss_ref": _scalar("loss_ref", loss_ref)}
        guiding, guided = ("loss_cls", "loss_ref") if self.reference == 0 else ("loss_ref", "loss_cls")
        return self._scale(losses, guiding, [guided])[guided]

    def get_extra_state(self) -> dict[str, Tensor]:
        return dict(self._smoothed)

    def set_extra_state(self, state: Mapping[str, Tensor]) -> None:
        self._smoothed = dict(state)

    def extra_repr(self) -> str:
        more = [f"{name}={value:g}" for name, value in (("max_ratio", self.max_ratio), ("ema", self.ema)) if value is not None]
        floor = [f"floor={self.floor:g}"] if self.floor else []
        return ", ".join([f"scale={self.scale:g}", f"reference={self.reference!r}", *more, *floor, f"sync={self.sync}"])

    def _scale_all(self, losses: Mapping[str, Tensor], loss_ref: Tensor | None, guide: str | None) -> dict[str, Tensor]:
        if loss_ref is not None:
            bad_input("loss_ref", "a second argument beside a dict", "the dict alone", 'Name the guide among its keys: guide="box".')
        if guide is None or guide not in losses:
            bad_input("guide", guide, f"one of the losses: {listing(losses)}")
        scaled = self._scale(
            {name: _scalar(name, loss) for name, loss in losses.items()}, guide, [name for name in losses if name != guide]
        )
        return {name: scaled.get(name, loss) for name, loss in losses.items()}

    def _scale(self, losses: Mapping[str, Tensor], guide: str, guided: list[str]) -> dict[str, Tensor]:
        single = {name: loss.to(torch.promote_types(loss.dtype, torch.float32)) for name, loss in losses.items()}
        values = torch.stack([single[name].detach() for name in (guide, *guided)])
        if self.sync:
            values = all_reduce_sum(values, self.process_group)
        if not torch.compiler.is_compiling():
            self._check_values([guide, *guided], values.tolist())
        weights = self.scale * self._smooth(guided, values[0], values[1:])
        return {name: single[name] * weight.to(single[name].dtype) for name, weight in zip(guided, weights, strict=True)}

    def _smooth(self, guided: list[str], reference: Tensor, values: Tensor) -> Tensor:
        """The weight w of each guided loss, (L,)."""
        ratio = torch.where(values > 0, reference / values.clamp(min=self.eps), 0.0).clamp(self.floor, self.max_ratio)
        if self.ema is None or not guided:
            return ratio
        before = torch.stack([self._smoothed.get(name, torch.zeros(())).to(ratio) for name in guided])
        if self.training:
            mixed = torch.where(before > 0, self.ema * before + (1 - self.ema) * ratio, ratio)
            before = torch.where((reference > 0) & (values > 0), mixed, before)
            self._smoothed |= dict(zip(guided, before.unbind(), strict=True))
        return torch.where(before > 0, before, ratio)

    def _check_values(self, names: list[str], values: list[float]) -> None:
        for name, value in zip(names, values, strict=True):
            if not 0 <= value < math.inf:
                bad_input(
                    name, value, "a finite loss >= 0", "A mean over no foreground is NaN: divide the sum by max(1, n)." * (value != value)
                )
        if values[0] == 0 and not self.floor and self.ema is None and not self._warned:
            self._warned = True
            warnings.warn(
                f"{names[0]} is 0, so what it guides is scaled to 0 and teaches nothing in such batches; floor=... keeps it alive.",
                stacklevel=6,  # the line that called this module
            )


def _scalar(name: str, loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or not loss.is_floating_point():
        bad_input(name, f"a tensor of {loss.dtype}" if isinstance(loss, Tensor) else loss, "a floating-point tensor")
    if loss.ndim:
        bad_input(name, f"shape {tuple(loss.shape)}", "a scalar", "Reduce it first: loss.sum() / max(1, n_foreground).")
    return loss
