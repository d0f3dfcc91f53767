r"""The unconstrained-features model: the last layers of a network with features that are free (Dang et al. 2023, arXiv:2301.00437).

What is unbalanced: a network that fits its training set can put the features of its last layers wherever the loss wants them. Let them be
free, and what remains of training is a small problem in which the class counts decide everything:

.. math::
    L = \frac{1}{2N} \lVert W_M \cdots W_1 H - Y \rVert_F^2 + \sum_l \frac{\lambda_l}{2} \lVert W_l \rVert_F^2
        + \frac{\lambda_H}{2} \lVert H \rVert_F^2

with features H (d, N), one-hot Y (K, N), no bias. :func:`counterpoise.diagnostics.neural_collapse_lengths` knows its minimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterpoise._errors import bad_input, check_range, listing

__all__ = ["UnconstrainedFeatures"]


class UnconstrainedFeatures(nn.Module):
    r"""M linear layers on features that are parameters themselves; :meth:`loss` is the objective of the module's theory.

    .. math::
        L = \frac{1}{2N} \lVert W_M \cdots W_1 H - Y \rVert_F^2 + \sum_l \frac{\lambda_l}{2} \lVert W_l \rVert_F^2
            + \frac{\lambda_H}{2} \lVert H \rVert_F^2

    A laboratory, not a classifier: it has no input. Minimize ``loss()`` with weight decay *off* (the decay is in the loss); L-BFGS with
    strong Wolfe line search and float64 gets there in seconds, gradient descent needs 1e5 steps. With two or more layers a class whose
    features and weights are near 0 stays there, so start with ``init_scale`` >= 1, and tell a class that is *stuck* at 0 from one that the
    theory collapses by its loss.

    Parameters
    ----------
    class_counts : sequence of int, shape (K,)
        Examples n_k of each class, N in all; K >= 2.
    dim : int
        Width d of the features and of the layers between; at least K, or the classes cannot be orthogonal.
    weight_decays : sequence of float, shape (M,)
        :math:`\lambda_1 \dots \lambda_M`, all positive: one per layer, the one next to the features first.
    feature_decay : float
        :math:`\lambda_H`, positive.
    init_scale : float, default 1.0
        Parameters are drawn from a normal distribution with standard deviation ``init_scale / sqrt(d)``: features have about this length.
    generator : torch.Generator, optional
        Source of the initial values.

    Attributes
    ----------
    H : Parameter, shape (d, N)
        Features; those of class 0 come first.
    W : ParameterList
        :math:`W_1` to :math:`W_M`, of shapes (d, d), ..., (K, d).
    labels : Tensor, shape (N,)
        Class of each column of H.

    Raises
    ------
    InputError
        If a count is not a positive integer, there is one class only, a decay is not positive, or ``dim`` is less than K.

    Examples
    --------
    >>> model = UnconstrainedFeatures([6, 3], dim=4, weight_decays=[5e-3], feature_decay=1e-3, generator=torch.Generator().manual_seed(0))
    >>> optimizer = torch.optim.LBFGS(model.parameters(), max_iter=500, line_search_fn="strong_wolfe")
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = model.loss()
    ...     loss.backward()
    ...     return loss
    >>> _ = optimizer.step(closure)
    >>> model.features().detach().norm(dim=1)[[0, -1]].round(decimals=2)  # neural_collapse_lengths says 0.9515 and 1.1296
    tensor([0.9500, 1.1300])
    """

    labels: Tensor
    targets: Tensor

    def __init__(
        self,
        class_counts: Sequence[int] | npt.NDArray[Any],
        dim: int,
        weight_decays: Sequence[float],
        feature_decay: float,
        init_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        counts, decays = check_problem(class_counts, weight_decays, feature_decay)
        check_range("dim", dim, low=1, integer=True)
        check_range("init_scale", init_scale, low=0.0)
        K, N = len(counts), int(counts.sum())
        if dim < K:
            bad_input("dim", dim, f"at least {K}, the number of classes", "Fewer dimensions have no room for orthogonal classes.")
        self.class_counts = tuple(int(n) for n in counts)
        self.dim = int(dim)
        self.weight_decays = tuple(float(decay) for decay in decays)
        self.feature_decay = float(feature_decay)

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) * (init_scale / dim**0.5))

        self.H = drawn(dim, N)
        self.W = nn.ParameterList([drawn(dim, dim) for _ in decays[1:]] + [drawn(K, dim)])
        self.register_buffer("labels", torch.arange(K).repeat_interleave(torch.tensor(self.class_counts)))
        self.register_buffer("targets", F.one_hot(self.labels, K).T.to(self.H.dtype), persistent=False)

    def classifier(self) -> Tensor:
        """The product of all layers, :math:`W_M \\cdots W_1` (K, d)."""
        product: Tensor = self.W[0]
        for weight in list(self.W)[1:]:
            product = weight @ product
        return product

    def features(self) -> Tensor:
        """The features as rows (N, d), as :func:`counterpoise.diagnostics.collapse_metrics` takes them."""
        return self.H.T

    def forward(self) -> Tensor:
        """Outputs for all examples as rows (N, K)."""
        return (self.classifier() @ self.H).T

    def loss(self) -> Tensor:
        """The objective L, a scalar: half the squared error per example, and the decay of all parameters."""
        error = self.classifier() @ self.H - self.targets
        decay = self.feature_decay * self.H.square().sum()
        for rate, weight in zip(self.weight_decays, self.W, strict=True):
            decay = decay + rate * weight.square().sum()
        return error.square().sum() / (2 * len(self.labels)) + decay / 2

    def extra_repr(self) -> str:
        return (
            f"class_counts={list(self.class_counts)}, dim={self.dim}, weight_decays={list(self.weight_decays)}, "
            f"feature_decay={self.feature_decay:g}"
        )


def check_problem(
    class_counts: Sequence[int] | npt.NDArray[Any], weight_decays: Sequence[float], feature_decay: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Counts (K,) and decays (M,) as float64, checked; this and the closed form of the room of diagnoses take the same arguments."""
    counts = check_counts("class_counts", class_counts)
    return counts, check_decays(weight_decays, feature_decay)


def check_counts(argument: str, class_counts: Sequence[int] | npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Positive whole numbers of at least two classes, as float64 (K,)."""
    counts = _numbers(argument, class_counts, "examples of each class, shape (K,)")
    if len(counts) < 2:
        bad_input(argument, f"{len(counts)} class", "counts of at least two classes")
    wrong = np.flatnonzero(~((counts > 0) & (counts == np.floor(counts)) & np.isfinite(counts)))
    if len(wrong):
        hint = (
            "Shares will not do: the theory depends on N." if ((counts > 0) & (counts < 1)).any() else "Leave out a class without examples."
        )
        bad_input(argument, f"{listing(counts[wrong])} for class {listing(wrong)}", "positive whole numbers", hint)
    return counts


def check_decays(weight_decays: Sequence[float], feature_decay: float) -> npt.NDArray[np.float64]:
    """Positive decays of at least one layer (M,)."""
    hint = "Without decay the lengths have no minimum."
    if isinstance(weight_decays, (int, float)):
        bad_input("weight_decays", weight_decays, "one decay per layer, shape (M,)", f"Three layers: [{weight_decays:g}] * 3.")
    decays = _numbers("weight_decays", weight_decays, "one decay per layer, shape (M,)")
    if not len(decays):
        bad_input("weight_decays", "no layers", "the decay of at least one layer")
    wrong = np.flatnonzero(~((decays > 0) & np.isfinite(decays)))
    if len(wrong):
        bad_input("weight_decays", f"{listing(decays[wrong])} for layer {listing(wrong + 1)}", "positive, finite decays", hint)
    if not (isinstance(feature_decay, (int, float, np.number)) and 0 < feature_decay < float("inf")):
        bad_input("feature_decay", feature_decay, "a positive, finite decay", hint)
    return decays


def _numbers(argument: str, values: Any, accepted: str) -> npt.NDArray[np.float64]:
    values = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        bad_input(argument, values, accepted)
    if numbers.ndim != 1:
        bad_input(argument, f"shape {numbers.shape}", accepted)
    return numbers
