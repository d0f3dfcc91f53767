r"""Focal loss (Lin et al. 2017, arXiv:1708.02002): examples that are already right weigh less.

What is unbalanced: many easy examples of common classes outweigh the few hard ones. With :math:`p_t` the probability of what is true,

.. math:: L = -\alpha \, (1 - p_t)^\gamma \, \log p_t .
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterpoise._errors import bad_input, check_choice, check_range
from counterpoise._precision import single

__all__ = ["FocalLoss"]


class FocalLoss(nn.Module):
    r"""Focal loss of labels that are independent of each other (sigmoid), or of one class out of K (softmax).

    Multi-label, with :math:`p_k = \sigma(z_k)` and :math:`y_k \in \{0, 1\}`, one value per label:

    .. math:: L_k = -\alpha_k \left[ y_k (1 - p_k)^\gamma \log p_k + (1 - y_k) \, p_k^\gamma \log(1 - p_k) \right]

    Multi-class, with :math:`p = \mathrm{softmax}(z)` and the class y, one value per example:

    .. math:: L = -\alpha_y (1 - p_y)^\gamma \log p_y

    ``gamma=0`` without ``alpha`` is binary cross-entropy with logits, or cross-entropy. With logits, :math:`\log(1 - p_t)` is not taken
    from :math:`p_t`, which rounds to 1, and nothing overflows. Half-precision inputs are computed, and the loss returned, in float32.

    Parameters
    ----------
    gamma : float >= 0, default 2.0 (Lin et al. 2017)
        How fast the weight of an example falls as it becomes right.
    alpha : tensor or sequence of float, shape (K,), optional
        Weight >= 0 of each label (both of its terms) or class, such as ``class_weights(y, scheme="sqrt")``. Default: all 1. Unlike the
        ``weight`` of ``torch.nn.CrossEntropyLoss``, it does not divide the mean.
    from_logits : bool, default True
        Whether the inputs are logits; else probabilities in [0, 1], whose logarithms are cut off where the dtype ends (-87 in float32).
    multilabel : bool, default True
        Sigmoid per label, or softmax over the K classes.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the number of values: B K for labels, B for classes (an empty batch gives 0).

    Shapes
    ------
    Multi-label: inputs (B, K) or (B,), targets of the same shape holding 0 and 1. Multi-class: inputs (B, K) with K >= 2, targets (B,) of
    an integer type. Output: a scalar; with ``reduction="none"`` the shape of the targets.

    Raises
    ------
    InputError
        If shapes do not match, a target is not in {0, 1} or 0..K-1, a probability not in [0, 1], or a parameter is out of its range.
        (Values are not looked at inside ``torch.compile``, which cannot branch on them.)

    Examples
    --------
    >>> loss = FocalLoss(gamma=2.0)
    >>> loss(torch.tensor([[0.0, 4.0]]), torch.tensor([[1.0, 1.0]]))
    tensor(0.0866)
    >>> FocalLoss(gamma=2.0, multilabel=False, reduction="none")(torch.tensor([[0.0, 0.0], [0.0, 4.0]]), torch.tensor([1, 1]))
    tensor([1.7329e-01, 5.8716e-06])
    """

    alpha: Tensor | None

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: Tensor | Sequence[float] | None = None,
        from_logits: bool = True,
        multilabel: bool = True,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__()
        check_range("gamma", gamma, low=0.0)
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        self.gamma = float(gamma)
        self.from_logits = from_logits
        self.multilabel = multilabel
        self.reduction = reduction
        self.register_buffer("alpha", None if alpha is None else _check_alpha(alpha))

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        self._check(inputs, targets)
        inputs = single(inputs)
        terms = _label_terms if self.multilabel else _class_terms
        log_p, log_rest = terms(inputs, targets, self.from_logits)
        # exp(gamma log(1 - p)) rather than (1 - p)^gamma, whose gradient at p = 1 is infinite for gamma < 1.
        loss = -torch.exp(self.gamma * log_rest) * log_p
        if self.alpha is not None:
            alpha = self.alpha.to(loss.dtype)
            loss = loss * (alpha if self.multilabel else alpha[targets])
        if self.reduction == "none":
            return loss
        return loss.sum() if self.reduction == "sum" else loss.sum() / max(loss.numel(), 1)

    def extra_repr(self) -> str:
        alpha = "" if self.alpha is None else f", alpha=({len(self.alpha)} values)"
        return f"gamma={self.gamma:g}{alpha}, from_logits={self.from_logits}, multilabel={self.multilabel}, reduction={self.reduction!r}"

    def _check(self, inputs: Tensor, targets: Tensor) -> None:
        shape = tuple(inputs.shape)
        if not inputs.is_floating_point():
            bad_input("inputs", f"a tensor of {inputs.dtype}", "floating-point logits or probabilities")
        if self.multilabel:
            if inputs.ndim not in (1, 2) or targets.shape != inputs.shape:
                bad_input(
                    "inputs and targets", f"shapes {shape} and {tuple(targets.shape)}", "the same shape, (B, K) or (B,)",
                    "FocalLoss(multilabel=False) takes classes (B,)." if targets.ndim == 1 else "",
                )  # fmt: skip
        elif inputs.ndim != 2 or inputs.shape[1] < 2 or targets.shape != inputs.shape[:1]:
            bad_input("inputs and targets", f"shapes {shape} and {tuple(targets.shape)}", "shapes (B, K) with K >= 2 and (B,)")
        elif targets.is_floating_point() or targets.dtype == torch.bool:
            bad_input("targets", f"a tensor of {targets.dtype}", "integer classes 0..K-1")
        n_classes = shape[1] if inputs.ndim == 2 else 1
        if self.alpha is not None and len(self.alpha) != n_classes:
            bad_input("alpha", f"{len(self.alpha)} values for inputs of shape {shape}", f"{n_classes} values, one per label or class")
        if torch.compiler.is_compiling():
            return
        allowed = (targets == 0) | (targets == 1) if self.multilabel else (targets >= 0) & (targets < n_classes)
        if not bool(allowed.all()):
            wrong = targets[~allowed].flatten()[0].item()
            bad_input("targets", wrong, "0 or 1 for every label" if self.multilabel else f"classes 0..{n_classes - 1}")
        if not self.from_logits and not bool(((inputs >= 0) & (inputs <= 1)).all()):
            bad_input("inputs", "values outside [0, 1]", "probabilities", "For logits leave from_logits=True.")


def _label_terms(inputs: Tensor, targets: Tensor, from_logits: bool) -> tuple[Tensor, Tensor]:
    """log p and log(1 - p) of what is true, for each label; both have the shape of the inputs."""
    positive = targets == 1
    if from_logits:
        signed = torch.where(positive, inputs, -inputs)
        log_p = F.logsigmoid(signed)
        return log_p, log_p - signed  # log sigmoid(-s) = log sigmoid(s) - s; rounding only shows where it is 0 to seven digits
    return _log(torch.where(positive, inputs, 1 - inputs)), _log(torch.where(positive, 1 - inputs, inputs))


def _class_terms(inputs: Tensor, targets: Tensor, from_logits: bool) -> tuple[Tensor, Tensor]:
    """log p and log(1 - p) of the true class, each of shape (B,)."""
    column = targets.long()[:, None]
    if from_logits:
        log_p = F.log_softmax(inputs, dim=1)
        others = log_p.scatter(1, column, float("-inf"))
        return log_p.gather(1, column)[:, 0], others.logsumexp(dim=1)
    p = inputs.gather(1, column)[:, 0]
    return _log(p), _log(1 - p)


def _log(p: Tensor) -> Tensor:
    """log p, cut off below the smallest normal number, with gradient 0 there."""
    return p.clamp(min=torch.finfo(p.dtype).tiny).log()


def _check_alpha(alpha: Tensor | Sequence[float]) -> Tensor:
    values = torch.as_tensor(alpha).detach().clone()
    values = values if values.is_floating_point() else values.to(torch.get_default_dtype())
    if values.ndim != 1 or not len(values) or not bool((torch.isfinite(values) & (values >= 0)).all()):
        bad_input("alpha", values.tolist(), "one finite weight >= 0 per label or class, shape (K,)", "class_weights(y) makes them.")
    return values
