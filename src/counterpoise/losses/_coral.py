r"""Covariance alignment of two sets of features: CORAL (Sun and Saenko 2016, arXiv:1607.01719), and the whitening that e5-omni
(arXiv:2601.03666) puts before it.

What is unbalanced: embeddings of queries and of targets differ in mean and in covariance, so that some directions say which side an item
is on rather than what it is. With unbiased covariances of features of width D,

.. math:: L = \| C_a - C_b \|_F^2 / (4 D^2) .

Whitened by one transform :math:`W` for both sides, the difference is :math:`W (C_a - C_b) W^T`, whose norm is the same for every W with
:math:`W^T W = \Sigma^{-1}`. Hence :math:`L = \mathrm{tr}\,(\Sigma^{-1} \Delta \Sigma^{-1} \Delta) / (4 D^2)` with
:math:`\Delta = C_a - C_b`, which takes a Cholesky factor and no eigenvectors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from counterpoise._errors import bad_input, check_range, described
from counterpoise._precision import single

__all__ = ["batch_whiten", "coral_loss", "whitened_coral"]

SHRINKAGE = 1e-3  # of the whitening, the reading of e5-omni's; the paper states none


def coral_loss(a: Tensor, b: Tensor) -> Tensor:
    r"""How far the covariances of two sets of features are apart, :math:`\| C_a - C_b \|_F^2 / (4 D^2)`.

    Of unit vectors of width D it is at most :math:`1 / (2 D^2)`, and about 1e-4 in practice: a term with a small weight does next to
    nothing unless the features are whitened (:func:`batch_whiten`).

    Shapes: (n, D) and (m, D), n and m >= 2. Returns a scalar; half precision is computed in float32. Other shapes, and features that are
    no floating-point numbers, are an :class:`InputError`.

    >>> a = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    >>> coral_loss(a, 2 * a)  # variances 2 and 8 in one of two directions
    tensor(2.2500)
    """
    _check(a, b)
    delta = _covariance(single(a)) - _covariance(single(b))
    return delta.square().sum() / (4 * a.shape[1] ** 2)


def batch_whiten(a: Tensor, b: Tensor, shrinkage: float = SHRINKAGE) -> tuple[Tensor, Tensor]:
    r"""Both sets of features, centered and whitened by one transform: their pooled covariance becomes the identity.

    ZCA, :math:`W = \Sigma_s^{-1/2}`, of the mean and the covariance :math:`\Sigma` of all n + m rows, which are taken as constants: no
    gradient flows through them. One transform for both on purpose. Whitened each by its own statistics, the two sides would have the same
    covariance whatever they are, and nothing would be left to align.

    Parameters
    ----------
    a, b : tensors, shape (n, D) and (m, D)
    shrinkage : float in [0, 1], default 1e-3 (ours; the paper states none)
        :math:`\Sigma_s = (1 - s)\,\Sigma + s\,(\mathrm{tr}\,\Sigma / D)\,I`. Needed where there are no more rows than features.

    Raises
    ------
    InputError
        If shapes do not fit, or the covariance is singular and nothing is shrunk.

    Examples
    --------
    >>> a, b = torch.tensor([[4.0, 0.0], [0.0, 1.0]]), torch.tensor([[-4.0, 0.0], [0.0, -1.0]])
    >>> a, b = batch_whiten(a, b, shrinkage=0.0)
    >>> torch.cov(torch.cat([a, b]).T).round(decimals=3).abs()
    tensor([[1., 0.],
            [0., 1.]])
    """
    _check(a, b)
    check_range("shrinkage", shrinkage, low=0, high=1)
    a, b = single(a), single(b)
    with torch.no_grad():
        both = torch.cat([a, b])
        mean = both.mean(dim=0)
        values, vectors = torch.linalg.eigh(_shrunk(_covariance(both), shrinkage))
        if not bool(values[0] > values[-1] * len(values) * torch.finfo(values.dtype).eps):
            _singular(a, b, shrinkage)
        transform = (vectors * values.rsqrt()) @ vectors.T
    return (a - mean) @ transform, (b - mean) @ transform


def whitened_coral(a: Tensor, b: Tensor, shrinkage: float = SHRINKAGE) -> Tensor:
    """``coral_loss(*batch_whiten(a, b))`` without the eigenvectors."""
    _check(a, b)
    n, m, width = len(a), len(b), a.shape[1]
    by_a, by_b = _covariance(a), _covariance(b)
    with torch.no_grad():
        apart = a.mean(dim=0) - b.mean(dim=0)
        pooled = ((n - 1) * by_a + (m - 1) * by_b).addr_(apart, apart, alpha=n * m / (n + m)).div_(n + m - 1)
        factor, failed = torch.linalg.cholesky_ex(_shrunk(pooled, shrinkage))
        if not torch.compiler.is_compiling() and bool(failed):
            _singular(a, b, shrinkage)
        inverse = torch.cholesky_inverse(factor)
    product = inverse @ (by_a - by_b)
    return (product * product.T).sum() / (4 * width**2)


class _Covariance(torch.autograd.Function):
    """Unbiased covariance of rows. Its gradient is one product; that of two factors of a product, two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        mean = x.mean(dim=0)
        ctx.save_for_backward(x, mean)
        centered, half = x - mean, x.shape[1] // 2
        upper, corner = centered[:, :half].T @ centered, centered[:, half:].T @ centered[:, half:]
        # The quarter that is a mirror image is not computed.
        return torch.cat([upper, torch.cat([upper[:, half:].T, corner], dim=1)]).div_(len(x) - 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        both = (grad + grad.T) / (len(x) - 1)
        return torch.addmm(-(mean @ both), x, both)


def _covariance(x: Tensor) -> Tensor:
    found: Tensor = _Covariance.apply(x)  # type: ignore[no-untyped-call]
    return found


def _shrunk(covariance: Tensor, shrinkage: float) -> Tensor:
    """New memory. Where all rows are equal, what is left is a tiny multiple of the identity."""
    variance = covariance.diagonal().mean().clamp(min=torch.finfo(covariance.dtype).tiny ** 0.5)
    found = (1 - shrinkage) * covariance
    found.diagonal().add_(shrinkage * variance)
    return found


def _check(a: Tensor, b: Tensor) -> None:
    for name, x in (("a", a), ("b", b)):
        if x.ndim != 2 or len(x) < 2 or not x.is_floating_point():
            bad_input(name, described(x), "floating-point features (n, D) with n >= 2")
    if a.shape[1] != b.shape[1]:
        bad_input("a and b", f"widths {a.shape[1]} and {b.shape[1]}", "features of the same width D")


def _singular(a: Tensor, b: Tensor, shrinkage: float) -> None:
    bad_input(
        "shrinkage", shrinkage, f"a larger one: the covariance of {len(a) + len(b)} rows of width {a.shape[1]} is singular",
        "0.001 is the default.",
    )  # fmt: skip
