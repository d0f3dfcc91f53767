r"""Prior correction: decide as if the classes had been as frequent as they should count.

What is unbalanced: a classifier trained where class k has the share :math:`\pi_k` has learned
:math:`p(k \mid x) \propto p(x \mid k) \pi_k`, so common classes win where the features cannot tell. Dividing by :math:`\pi_k`, and
multiplying by the share :math:`q_k` that counts, corrects it exactly for calibrated scores; in logits it is an added constant (Saerens et
al. 2002; Buda et al. 2018, arXiv:1710.05381, "thresholding").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from counterpoise._errors import bad_input, check_choice, listing

__all__ = ["fold_into_bias", "prior_correct"]

Scores = TypeVar("Scores", Tensor, npt.NDArray[Any])
Prior = Tensor | npt.NDArray[Any] | Sequence[float]


def prior_correct(
    logits_or_proba: Scores, prior: Prior, target_prior: Prior | None = None, input: Literal["logits", "proba"] = "logits"
) -> Scores:
    r"""Scores corrected from the training prior :math:`\pi` to a target prior :math:`q`.

    Logits: :math:`z_k + \log q_k - \log \pi_k`. Probabilities: :math:`p_k q_k / \pi_k`, rows not normalized again: the decision (argmax)
    needs no normalization, and without it each column keeps its ranking, hence its one-vs-rest AUC. Both forms have the same argmax.

    Parameters
    ----------
    logits_or_proba : tensor or array, shape (..., K), K >= 2
        Logits of a softmax over K classes, or probabilities.
    prior : sequence of float, shape (K,)
        Positive shares of the classes *as training saw them*: after full over-sampling they are equal, and the correction is none. Counts
        will do, they are divided by their sum.
    target_prior : sequence of float, shape (K,), optional
        Shares that should count. Default: all equal, with the constant :math:`\log K` (the factor 1/K) left out.
    input : {"logits", "proba"}, default "logits"

    Returns
    -------
    tensor or array, shape (..., K)
        Of the same type, dtype and device (integers become the default floating type). Half precision is computed in float32.

    Raises
    ------
    InputError
        If a prior has another length than K, or a value that is not positive and finite, or probabilities lie outside [0, 1].

    Examples
    --------
    >>> prior_correct(np.array([[0.8, 0.2]]), prior=[0.9, 0.1], input="proba").round(3)
    array([[0.889, 2.   ]])
    >>> prior_correct(torch.tensor([[1.0, 0.0]]), prior=[0.9, 0.1])
    tensor([[1.1054, 2.3026]])
    """
    check_choice("input", input, ("logits", "proba"))
    if isinstance(logits_or_proba, Tensor):
        return _correct_tensor(logits_or_proba, prior, target_prior, input)
    scores: npt.NDArray[Any] = np.asarray(logits_or_proba)
    n_classes = _check_scores(scores, scores.shape, input)
    shift = _log_ratio(prior, target_prior, n_classes)
    dtype = scores.dtype if scores.dtype.kind == "f" else np.dtype(np.float64)
    computed = scores.astype(np.result_type(dtype, np.float32))
    shift = shift.astype(computed.dtype)
    corrected: npt.NDArray[Any] = computed + shift if input == "logits" else computed * np.exp(shift)
    return corrected.astype(dtype)


def fold_into_bias(linear: nn.Linear, prior: Prior, target_prior: Prior | None = None) -> nn.Linear:
    r"""A copy of the last layer whose bias carries the prior correction, so that an exported model needs no code after it.

    The new bias is :math:`b_k + \log q_k - \log \pi_k` (from 0 if the layer had none), as in :func:`prior_correct`.

    Parameters
    ----------
    linear : torch.nn.Linear
        The layer whose K >= 2 outputs are the logits of a softmax; left as it is.
    prior, target_prior : sequence of float, shape (K,)
        As in :func:`prior_correct`.

    Returns
    -------
    torch.nn.Linear
        Of the same dtype, device, mode and ``requires_grad``.

    Examples
    --------
    >>> head = nn.Linear(3, 2, bias=False)
    >>> fold_into_bias(head, prior=[0.9, 0.1], target_prior=[0.5, 0.5]).bias.detach()
    tensor([-0.5878,  1.6094])
    """
    if not isinstance(linear, nn.Linear):
        bad_input("linear", type(linear).__name__, "the torch.nn.Linear that makes the logits")
    if linear.out_features < 2:
        bad_input("linear", f"{linear.out_features} output", "one output per class, at least two")
    weight = linear.weight.detach()
    folded = nn.Linear(linear.in_features, linear.out_features, device=weight.device, dtype=weight.dtype)
    shift = torch.as_tensor(_log_ratio(prior, target_prior, linear.out_features), device=weight.device)
    bias = 0.0 if linear.bias is None else linear.bias.detach().double()
    with torch.no_grad():
        folded.weight.copy_(weight)
        folded.bias.copy_(shift + bias)
    folded.weight.requires_grad_(linear.weight.requires_grad)
    folded.bias.requires_grad_(linear.weight.requires_grad if linear.bias is None else linear.bias.requires_grad)
    return folded.train(linear.training)


def check_prior(argument: str, prior: Prior, n_classes: int, classes: npt.ArrayLike | None = None) -> npt.NDArray[np.float64]:
    """Positive shares that sum to 1, shape (K,); ``classes`` are their names in errors, 0..K-1 by default."""
    values = prior.detach().cpu().double().numpy() if isinstance(prior, Tensor) else np.asarray(prior, dtype=np.float64)
    if values.shape != (n_classes,):
        bad_input(argument, f"shape {values.shape}", f"{n_classes} shares, one per class")
    wrong = np.flatnonzero(~((values > 0) & np.isfinite(values)))
    if len(wrong):
        names = wrong if classes is None else np.asarray(classes)[wrong]
        bad_input(argument, f"{listing(values[wrong])} for class {listing(names)}", "positive, finite shares")
    return np.asarray(values / values.sum())


def _log_ratio(prior: Prior, target_prior: Prior | None, n_classes: int) -> npt.NDArray[np.float64]:
    """log q - log pi, with q = 1 for all classes by default."""
    shift = -np.log(check_prior("prior", prior, n_classes))
    return shift if target_prior is None else shift + np.log(check_prior("target_prior", target_prior, n_classes))


def _check_scores(scores: Any, shape: Sequence[int], input: str) -> int:
    if len(shape) == 0 or shape[-1] < 2:
        bad_input("logits_or_proba", f"shape {tuple(shape)}", "shape (..., K) with K >= 2 classes", "Two classes need both columns.")
    if input == "proba" and bool(((scores < 0) | (scores > 1)).any()):
        bad_input("logits_or_proba", "values outside [0, 1]", "probabilities", 'Logits need input="logits".')
    return shape[-1]


def _correct_tensor(scores: Tensor, prior: Prior, target_prior: Prior | None, input: str) -> Tensor:
    n_classes = _check_scores(scores, scores.shape, input)
    dtype = scores.dtype if scores.is_floating_point() else torch.get_default_dtype()
    computed = scores.to(torch.promote_types(dtype, torch.float32))
    shift = torch.as_tensor(_log_ratio(prior, target_prior, n_classes), dtype=computed.dtype, device=scores.device)
    return (computed + shift if input == "logits" else computed * shift.exp()).to(dtype)
