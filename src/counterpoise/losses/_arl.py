r"""A loss for every modality beside that of all together (arXiv:2507.10203, section 4).

What is unbalanced: once one modality has taken the loss of the fused prediction down, nothing tells the encoders of the others what to
learn. Here each of them is charged for the prediction it makes alone, through the head that is there anyway:

.. math:: L = \ell(F(h_0, \dots, h_{M-1}), y) + \gamma \sum_m \ell(s_m, y), \qquad s_m = F(0, \dots, h_m, \dots, 0) .
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterpoise._errors import bad_input, check_range
from counterpoise._precision import single

__all__ = ["ARLLoss", "zero_out_unimodal"]

GAMMA = 4.0  # the paper's; its scripts have 4 for CREMA-D, 5 for AVE, 3 for Kinetics-Sounds


def zero_out_unimodal(
    head: nn.Linear | nn.ModuleList | Callable[..., Tensor], features: Sequence[Tensor] | dict[str, Tensor]
) -> list[Tensor]:
    r"""What the head says to each modality alone: :math:`s_m = F(0, \dots, h_m, \dots, 0)`, without new parameters.

    Encoders are not run again. A head that is neither of the first two kinds is called once for each modality: what it does beside
    computing (batch normalization, dropout) happens M times more.

    Parameters
    ----------
    head : nn.Linear, nn.ModuleList or callable
        - a linear layer on the concatenation ``torch.cat(features, dim=-1)``: each modality has its columns, and the bias in full;
        - a list of M modules, whose outputs are added up to the fused prediction: each modality has its own module. (Zeros in a *function*
          that adds them up would leave the biases of the others in.)
        - any function of M features: ``head(h_0, ..., h_{M-1})``.
    features : sequence (or dict, in the head's order) of M >= 2 Tensors, shape (B, ...)
        Outputs of the encoders, after :class:`counterpoise.gradients.AsymmetricGradient` where that is used.

    Returns
    -------
    list of M Tensors
        Unimodal logits, with gradients to the features and to the head.

    Raises
    ------
    InputError
        If there are fewer than two modalities, batch sizes differ, or the head has another width or number of parts.

    Examples
    --------
    >>> head = nn.Linear(5, 3)
    >>> image, sound = torch.randn(4, 2), torch.randn(4, 3)
    >>> of_image, of_sound = zero_out_unimodal(head, [image, sound])
    >>> torch.allclose(of_image + of_sound - head.bias, head(torch.cat([image, sound], dim=1)), atol=1e-6)
    True
    """
    parts = list(features.values()) if isinstance(features, dict) else list(features)
    if len(parts) < 2 or not all(isinstance(part, Tensor) and part.ndim for part in parts):
        found = f"{len(parts)} of them" if len(parts) < 2 else [type(part).__name__ for part in parts]
        bad_input("features", found, "at least 2 tensors (B, ...), one for each modality")
    if len({len(part) for part in parts}) > 1:
        bad_input("features", f"batch sizes {[len(part) for part in parts]}", "the same number of rows for every modality")
    if isinstance(head, nn.Linear):
        widths = [part.shape[-1] for part in parts]
        if sum(widths) != head.in_features:
            bad_input("features", f"widths {widths}, together {sum(widths)}", f"the {head.in_features} columns of the head")
        # Columns of zeros contribute nothing: take the columns that are left.
        if type(head).forward is nn.Linear.forward:
            columns = torch.split(head.weight, widths, dim=1)
            return [F.linear(part, own, head.bias) for part, own in zip(parts, columns, strict=True)]
    if isinstance(head, (nn.ModuleList, list, tuple)):
        if len(head) != len(parts):
            bad_input("head", f"{len(head)} modules", f"{len(parts)}, one for each modality")
        return [own(part) for own, part in zip(head, parts, strict=True)]
    zeros = [torch.zeros_like(part) for part in parts]
    alone = [(*zeros[:m], part, *zeros[m + 1 :]) for m, part in enumerate(parts)]
    if isinstance(head, nn.Linear):  # a quantized or adapted one, which computes something of its own
        return [head(torch.cat(h, dim=-1)) for h in alone]
    return [head(*h) for h in alone]


class ARLLoss(nn.Module):
    r"""The loss of the fused prediction, and ``gamma`` times that of every modality alone.

    .. math:: L = \ell(f, y) + \gamma \sum_m \ell(s_m, y)

    In the first ``warmup_steps`` calls in training mode :math:`\gamma = 1`. Each encoder's gradient grows with :math:`\gamma`: tune the
    learning rate anew; with the paper's 4 the best one is several times smaller.

    Parameters
    ----------
    gamma : float >= 0, default 4.0 (the paper's; its scripts have 3 to 5)
        Weight of every unimodal loss. 0 leaves them out.
    warmup_steps : int >= 0, default 0
        Training steps with :math:`\gamma = 1`. The paper's are those of 5 epochs: ``5 * len(loader)``.
    base_loss : torch.nn.Module, default ``nn.CrossEntropyLoss()``
        :math:`\ell`, called as ``base_loss(prediction, target)``; gives a scalar. Its own state (class weights) moves with this module.

    Shapes
    ------
    ``forward(fused, unimodal, target, mask=None)``: fused predictions (B, ...), a sequence of M of the same shape, targets as
    ``base_loss`` takes them, and a bool tensor (B, M), True where a modality is there. Unimodal losses are over the rows that have the
    modality; one that no row has costs nothing. Output: a scalar. Half precision is computed, and the loss returned, in float32.

    Raises
    ------
    InputError
        If shapes differ, there are fewer than two modalities, the batch is empty, a prediction is not finite (where a modality is
        there), a class is not in 0..C-1 (nor ``ignore_index``), the base loss is not reduced, or a parameter is out of its range. (Values
        are not looked at inside ``torch.compile``, in which a mask, which picks rows, breaks the graph.)

    Examples
    --------
    >>> criterion = ARLLoss(gamma=4.0)
    >>> fused, image, sound = torch.zeros(3, 2, 4).unbind()
    >>> criterion(fused[:, :2], [image[:, :2], sound[:, :2]], torch.tensor([0, 1]))
    tensor(6.2383)
    """

    steps: Tensor

    def __init__(self, gamma: float = GAMMA, warmup_steps: int = 0, base_loss: nn.Module | None = None) -> None:
        super().__init__()
        check_range("gamma", gamma, low=0)
        check_range("warmup_steps", warmup_steps, low=0, integer=True)
        if base_loss is not None and not callable(base_loss):
            bad_input("base_loss", base_loss, "a loss such as nn.CrossEntropyLoss()")
        if getattr(base_loss, "reduction", "mean") == "none":
            bad_input("base_loss", 'reduction="none"', "a loss that gives a scalar", 'Use reduction="mean".')
        self.gamma, self.warmup_steps = float(gamma), int(warmup_steps)
        self.base_loss = nn.CrossEntropyLoss() if base_loss is None else base_loss
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # a tensor: a number would be compiled anew in every step

    def forward(self, fused: Tensor, unimodal: Sequence[Tensor], target: Any, mask: Tensor | None = None) -> Tensor:
        parts = [*unimodal]
        self._check(fused, parts, target, mask)
        early = self.steps < self.warmup_steps
        if self.training:
            self.steps.add_(1)
        loss: Tensor = self.base_loss(single(fused), target)
        if loss.ndim:
            bad_input("base_loss", f"losses of shape {tuple(loss.shape)}", "a loss that gives a scalar", 'Use reduction="mean".')
        alone = [self._alone(part, target, None if mask is None else mask[:, m]) for m, part in enumerate(parts)]
        gamma = torch.where(early, torch.ones_like(loss), self.gamma) if self.warmup_steps else self.gamma
        return loss + gamma * sum(alone)

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}" + (f", warmup_steps={self.warmup_steps}" if self.warmup_steps else "")

    def _alone(self, part: Tensor, target: Any, there: Tensor | None) -> Tensor:
        part = single(part)
        if there is None:
            return self.base_loss(part, target)  # type: ignore[no-any-return]
        rows = there.to(part.device).nonzero()[:, 0]
        ignored = getattr(self.base_loss, "ignore_index", None)
        if not len(rows) or (ignored is not None and bool((target[rows] == ignored).all())):
            return (0 * torch.where(torch.isfinite(part), part, 0.0)).sum()
        return self.base_loss(part[rows], target[rows])  # type: ignore[no-any-return]

    def _check(self, fused: Tensor, parts: list[Tensor], target: Any, mask: Tensor | None) -> None:
        if len(parts) < 2:
            bad_input(
                "unimodal", f"{len(parts)} of them", "at least 2, one for each modality", "zero_out_unimodal(head, features) makes them."
            )
        if not all(isinstance(part, Tensor) and part.is_floating_point() for part in (fused, *parts)):
            bad_input("fused and unimodal", [type(part).__name__ for part in (fused, *parts)], "floating-point tensors")
        if any(part.shape != fused.shape for part in parts):
            shapes = [tuple(part.shape) for part in (fused, *parts)]
            bad_input("fused and unimodal", f"shapes {shapes}", "the same shape for all of them")
        if not fused.ndim or not len(fused):
            bad_input("fused", "an empty batch" if fused.ndim else "a scalar", "inputs with at least one row")
        if isinstance(target, Tensor) and target.ndim and len(target) != len(fused):
            bad_input("target", f"{len(target)} rows", f"{len(fused)}, as the predictions have")
        if mask is not None and (not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (len(fused), len(parts))):
            found = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else mask
            bad_input("mask", found, f"a bool tensor ({len(fused)}, {len(parts)}): rows by modalities")
        if not torch.compiler.is_compiling():
            self._check_values(fused, parts, target, mask)

    def _check_values(self, fused: Tensor, parts: list[Tensor], target: Any, mask: Tensor | None) -> None:
        wrong = [~torch.isfinite(x.detach()).reshape(len(x), -1).all(dim=1) for x in (fused, *parts)]
        if mask is not None:  # what stands at a missing modality does not matter
            wrong[1:] = [rows & there.to(rows.device) for rows, there in zip(wrong[1:], mask.unbind(dim=1), strict=True)]
        known = fused.new_ones((), dtype=torch.bool)
        classes = fused.shape[1] if fused.ndim > 1 else len(fused)
        if isinstance(self.base_loss, nn.CrossEntropyLoss) and not target.is_floating_point():
            known = ((target >= 0) & (target < classes)) | (target == self.base_loss.ignore_index)
        # One wait for the device.
        unknown, *strange = torch.stack([~known.all(), *(rows.any() for rows in wrong)]).tolist()
        if unknown:
            bad_input("target", int(target[~known].flatten()[0]), f"classes 0..{classes - 1}, as the predictions have {classes} columns")
        if any(strange):
            m = strange.index(True)
            found = f"values that are not finite in {int(wrong[m].sum())} rows"
            bad_input("fused" if m == 0 else f"unimodal[{m - 1}]", found, "finite predictions", "Look at the learning rate and the data.")
