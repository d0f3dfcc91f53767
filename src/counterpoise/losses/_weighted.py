r"""DatasetEquity's weights in a loss (arXiv:2308.09878; weight formula as in the authors' code).

What is unbalanced: examples that look common outweigh those that look rare, inside the same classes. Each example gets a fixed weight from
the likelihood :math:`p_i` of its appearance,

.. math:: L = \frac{1}{B} \sum_i w_i \, L_{task}(x_i), \qquad w(p) = \frac{\eta + (1 - p)^\gamma}{\eta + 1} .

The paper calls this Generalized Focal Loss, a name that means another loss in detection. Unlike the factor of a focal loss, the weight does
not depend on the model.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from counterpoise._errors import bad_input, check_choice
from counterpoise._likelihood import ETA, GAMMA, check_likelihood, check_strength, dequity, mean_scale
from counterpoise._precision import single

__all__ = ["WeightedLoss", "dequity_weight"]

Likelihood = TypeVar("Likelihood", Tensor, npt.NDArray[Any], float)


def dequity_weight(p: Likelihood, eta: float = ETA, gamma: float = GAMMA) -> Likelihood:
    r"""Weight of an example whose appearance has the likelihood p: :math:`w(p) = (\eta + (1 - p)^\gamma) / (\eta + 1)`.

    It falls from w(0) = 1 to :math:`w(1) = \eta / (\eta + 1)`, so :math:`\eta` caps the ratio of two weights at :math:`(\eta + 1) / \eta`.

    Parameters
    ----------
    p : tensor, array or float
        Likelihoods in [0, 1]: relative sizes of clusters, n_k / N.
    eta : float >= 0, default 1.0 (the authors' code)
        The authors' scripts also use 0.3 and 0.5.
    gamma : float >= 0, default 5.0 (the authors' code)
        How fast the weight falls; 0 gives 1 everywhere. The authors' scripts also use 2.0.

    Returns
    -------
    tensor, array or float
        Of the type, shape, dtype and device of ``p`` (integers become the default floating type). Half precision is computed in float32.

    Raises
    ------
    InputError
        If a likelihood is NaN or outside [0, 1], a parameter is negative, or ``eta = 0`` and every p is 1, so that all weights would be 0.
        (Values are not looked at inside ``torch.compile``.)

    Examples
    --------
    >>> dequity_weight(torch.tensor([0.0, 0.5, 1.0]))
    tensor([1.0000, 0.5156, 0.5000])
    >>> dequity_weight(np.array([0.06, 0.94]), eta=0.3, gamma=2.0).round(3)
    array([0.91 , 0.234])
    """
    check_strength(eta, gamma)
    if isinstance(p, Tensor):
        values = p if p.is_floating_point() else p.to(torch.get_default_dtype())
        if not torch.compiler.is_compiling():
            check_likelihood(values, eta, gamma)
        computed: Tensor = dequity(values.float() if values.itemsize < 4 else values, eta, gamma)
        return computed.to(values.dtype)
    array = np.asarray(p)
    if array.dtype.kind not in "fiub":
        bad_input("p", f"an array of {array.dtype}", "numbers in [0, 1]")
    array = array if array.dtype.kind == "f" else array.astype(np.float64)
    check_likelihood(array, eta, gamma)
    weights = dequity(array.astype(np.result_type(array, np.float32)), eta, gamma)
    return np.asarray(weights, dtype=array.dtype)[()]  # type: ignore[return-value]  # [()] makes a number of what came as one


class WeightedLoss(nn.Module):
    r"""A loss with one fixed weight for each example of the data set, the paper's Generalized Focal Loss.

    With the losses :math:`L_i` that ``base`` gives and the weight :math:`w_i` of the data set's example at ``index[i]``:

    .. math:: L = \frac{1}{B} \sum_{i=1}^{B} w_i L_i

    Losses with more dimensions (pixels, boxes) are all multiplied by their example's weight, and the mean runs over all of them. If all
    weights are equal, ``normalize="mean"`` gives the base loss's own mean.

    Parameters
    ----------
    base : torch.nn.Module with ``reduction="none"``
        Called as ``base(input, target)``; gives losses (B, ...).
    weights : tensor or array, shape (N,)
        One weight >= 0 per example of the data set: ``dequity_weight(p)``, or ``LikelihoodWeighter().fit(X).sample_weight_``.
    normalize : {"mean", "none"}, default "mean"
        "mean" scales the weights to mean 1 over the data set, once and for all (so processes need not talk to each other); "none" takes
        them as they are, as the paper does: its weights are below 1, so its learning rate is smaller in effect.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the number of losses (an empty batch gives 0).

    Shapes
    ------
    input (B, ...) and target (B, ...) as the base takes them, index (B,) integer: positions in the data set, on any device
    (:class:`~counterpoise.data.IndexedDataset` yields them). Output: a scalar; with ``reduction="none"`` the shape of the base's losses.
    Half-precision input is computed, and the loss returned, in float32.

    Raises
    ------
    InputError
        If the base reduces its losses, a weight is negative or not finite or all are 0, an index is out of range, or lengths differ.
        (The range of indices is not looked at inside ``torch.compile``.)

    Examples
    --------
    >>> weights = dequity_weight(torch.tensor([0.9, 0.9, 0.1]))
    >>> loss = WeightedLoss(nn.CrossEntropyLoss(reduction="none"), weights)
    >>> loss(torch.zeros(2, 2), torch.tensor([0, 1]), index=torch.tensor([0, 2]))
    tensor(0.7501)
    """

    weights: Tensor

    def __init__(
        self,
        base: nn.Module,
        weights: Tensor | npt.NDArray[Any],
        normalize: Literal["mean", "none"] = "mean",
        *,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__()
        check_choice("normalize", normalize, ("mean", "none"))
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        check_base("base", base)
        self.base = base
        self.normalize = normalize
        self.reduction = reduction
        checked = _check_weights(weights)
        self.register_buffer("weights", checked * mean_scale(checked) if normalize == "mean" else checked)

    def forward(self, input: Any, target: Any, index: Tensor) -> Tensor:
        losses: Tensor = self.base(single(input) if isinstance(input, Tensor) else input, target)
        known = f"positions 0..{len(self.weights) - 1} of the data set the weights belong to"
        check_rows(losses, index, len(self.weights), "base", "index", known, "IndexedDataset yields it.")
        return weigh(losses, self.weights, index, self.reduction)

    def extra_repr(self) -> str:
        return f"weights=({len(self.weights)} values), normalize={self.normalize!r}, reduction={self.reduction!r}"


def check_base(argument: str, base: Any) -> None:
    """A loss that is not reduced."""
    if not callable(base):
        bad_input(argument, type(base).__name__, 'a loss, such as torch.nn.CrossEntropyLoss(reduction="none")')
    if getattr(base, "reduction", "none") != "none":
        bad_input(argument, f"{type(base).__name__} with reduction={base.reduction!r}", 'a loss with reduction="none"')


def check_rows(losses: Tensor, index: Any, count: int, base: str, argument: str, known: str, hint: str = "") -> None:
    """One loss per example, and for each an integer below ``count``; ``known`` says which ones there are."""
    if losses.ndim == 0:
        bad_input(base, "a single loss for the whole batch", "one loss per example, shape (B, ...)", 'Pass reduction="none" to it.')
    if not isinstance(index, Tensor) or index.is_floating_point() or index.dtype == torch.bool:
        found = f"a tensor of {index.dtype}" if isinstance(index, Tensor) else type(index).__name__
        bad_input(argument, found, "an integer tensor (B,)", hint)
    if index.shape != losses.shape[:1]:
        bad_input(argument, f"shape {tuple(index.shape)} for {len(losses)} losses", "one integer per example, shape (B,)")
    if torch.compiler.is_compiling():
        return
    outside = (index < 0) | (index >= count)
    if bool(outside.any()):
        bad_input(argument, int(index[outside][0]), known)


def weigh(losses: Tensor, weights: Tensor, index: Tensor, reduction: str) -> Tensor:
    """Losses (B, ...) times the weights of their examples, reduced; "mean" divides by their number, not by the weights."""
    weight = weights[index.to(device=weights.device, dtype=torch.int64)].to(device=losses.device, dtype=losses.dtype)
    weighted = losses * weight.view(-1, *[1] * (losses.ndim - 1))
    if reduction == "none":
        return weighted
    return weighted.sum() if reduction == "sum" else weighted.sum() / max(weighted.numel(), 1)


def _check_weights(weights: Any) -> Tensor:
    values = torch.as_tensor(weights).detach().clone()
    if not values.is_floating_point() or values.itemsize < 4:
        values = values.to(torch.get_default_dtype())
    if values.ndim != 1 or not len(values):
        bad_input("weights", f"shape {tuple(values.shape)}", "one weight per example of the data set, shape (N,)")
    wrong = (~(torch.isfinite(values) & (values >= 0))).nonzero()
    if len(wrong):
        bad_input("weights", f"{values[wrong[0]].item():g} at position {int(wrong[0])}", "finite weights >= 0")
    if not bool((values > 0).any()):
        bad_input("weights", "all weights 0", "some weight above 0", "dequity_weight with eta > 0 gives it.")
    return values
