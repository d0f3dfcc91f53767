r"""Distance covariance: dependence of any form between columns, as a number that can be minimized (Székely et al. 2007; several at once:
Chakraborty & Zhang 2019).

What is unbalanced: predictions differ systematically between protected groups, and a penalty on one attribute at a time leaves the
*intersections* of attributes as they are. With :math:`A_{ij} = \lVert x_i - x_j \rVert` and its rows centered,

.. math::
    U_{ij}(x) = \frac{A_{i\cdot}}{n - 2} + \frac{A_{\cdot j}}{n - 2} - A_{ij} - \frac{A_{\cdot\cdot}}{(n - 1)(n - 2)}, \qquad U_{ii} = 0,

a product of such matrices averages to 0 if the columns are independent. (The usual sign is the opposite one. For two columns it does not
matter; for the terms of three it does.)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from counterpoise._errors import bad_input, check_choice, check_range
from counterpoise._precision import HALF

from ._distances import Attribute, Centering, Form, by_cells, by_ranks, collapse, norm_of

__all__ = ["distance_covariance", "evaluate", "joint_distance_covariance", "read_columns", "result_dtype"]

Method = Literal["auto", "dense", "sorted"]
METHODS = ("auto", "dense", "sorted")
FEW_VALUES = 64  # of one column, up to which counting per value beats sorting twice


def distance_covariance(x: Tensor, z: Tensor, *, unbiased: bool = True, method: Method = "auto") -> Tensor:
    r"""Squared distance covariance of x and z: 0 in the population if and only if they are independent.

    .. math:: \frac{1}{n (n - 3)} \sum_{i,j} U_{ij}(x) \, U_{ij}(z)

    The unbiased estimate may be negative. Do not take its root and do not clamp it while training, which would stop the gradient.
    ``unbiased=False`` centers with means over all n rows and divides by n^2: never negative, but above 0 for independent columns, too.

    Distances are Euclidean and columns are taken as they are: scale them first. For categories use one-hot columns, or
    :class:`DistanceCovariancePenalty`. Where both are one column, or one is a column and the other takes few different values, it takes
    O(n log n) or O(n log n + n K) time and O(n) memory, with the gradient computed along with the value. Everything else keeps n x n
    matrices. Equal rows have distance 0, whose gradient is taken to be 0.

    Parameters
    ----------
    x, z : tensors, shapes (n,) or (n, d)
        Rows belong together. Gradients flow into both.
    unbiased : bool, default True
        U-centering, which needs n >= 4; else V-statistics.
    method : {"auto", "dense", "sorted"}, default "auto"
        "sorted" is the fast form, and an error where there is none; "dense" keeps matrices, and has second derivatives in x and z.

    Returns
    -------
    Tensor
        A scalar, in the floating dtype of x and z; computed in float64 throughout, and returned in float32 for half precision.

    Raises
    ------
    InputError
        If shapes do not match, rows are too few, a number is missing or infinite (with the column), or there is no fast form.

    Examples
    --------
    >>> x = torch.linspace(-1, 1, 201)
    >>> distance_covariance(x, x**2), distance_covariance(x, torch.zeros(201))  # uncorrelated, but not independent
    (tensor(0.0215), tensor(0.))
    """
    check_choice("method", method, METHODS)
    columns = [read_columns("x", x), read_columns("z", z)]
    n = _check_rows(columns, ("x", "z"), unbiased)
    dtype = result_dtype([x, z])
    found = None if method == "dense" else _fast_pair(columns[0], columns[1], unbiased)
    if found is None:
        _refuse_sorted(method)
        U = [_centered(values, unbiased) for values in columns]
        found = (U[0] * U[1]).sum() / norm_of(n, unbiased)
    return found.to(dtype)


def joint_distance_covariance(*xs: Tensor, c: float = 1.0, unbiased: bool = True, method: Method = "auto") -> Tensor:
    r"""Joint distance covariance of q + 1 variables: 0 in the population if and only if they are *mutually* independent.

    .. math:: \frac{1}{n (n - 3)} \sum_{i,j} \prod_{k=0}^{q} (U_{ij}(x_k) + c) - \frac{n}{n - 3} c^{q + 1}

    Multiplied out: every pair, triple, ... of variables, a set of m of them with weight :math:`c^{q + 1 - m}`; so it also sees variables of
    which each pair is independent. If x_1 ... x_q depend on each other, it stays above 0 whatever x_0 is.

    Fast, with O(n) memory, where one variable is a column and the others together take few different values.

    Parameters
    ----------
    *xs : tensors, shapes (n,) or (n, d)
        Two or more variables. Gradients flow into all of them.
    c : float >= 0, default 1.0 (the authors' code)
        Larger values give more weight to pairs; 0 leaves the highest order alone.
    unbiased, method
        As for :func:`distance_covariance`. The V-statistic divides by n^2 and subtracts :math:`c^{q + 1}`.

    Raises
    ------
    InputError
        As for :func:`distance_covariance`, and for fewer than two variables.

    Examples
    --------
    >>> a, b = torch.tensor([0.0, 0, 1, 1]).repeat(50), torch.tensor([0.0, 1, 0, 1]).repeat(50)
    >>> y = (a != b).double()  # independent of a, and of b
    >>> print(f"{distance_covariance(y, a):.3f} {distance_covariance(y, b):.3f} {joint_distance_covariance(y, a, b):.3f}")
    -0.001 -0.001 0.122
    """
    check_choice("method", method, METHODS)
    check_range("c", c, low=0.0)
    if len(xs) < 2:
        bad_input("xs", f"{len(xs)} variables", "at least two")
    names = [f"xs[{k}]" for k in range(len(xs))]
    columns = [read_columns(name, x) for name, x in zip(names, xs, strict=True)]
    n = _check_rows(columns, names, unbiased)
    dtype = result_dtype(xs)
    found = None if method == "dense" else _fast_joint(columns, float(c), unbiased)
    if found is None:
        _refuse_sorted(method)
        q = len(columns) - 1
        product = reduce(torch.mul, (_centered(values, unbiased) + c for values in columns)) - c ** (q + 1)
        found = product.sum() / norm_of(n, unbiased)
    return found.to(dtype)


# ---- dense ------------------------------------------------------------------------------------------------------------------------------


def _centered(values: Tensor, unbiased: bool) -> Tensor:
    """U (n, n), or doubly centered distances, with gradients; at distance 0 they are 0."""
    whole = slice(0, len(values))
    distances = Attribute(values).distances(whole)
    U = Centering.of(distances.sum(dim=1), values.new_ones(len(values)), unbiased)(distances, whole)
    return U - torch.diag_embed(torch.diagonal(U)) if unbiased else U


# ---- fast -------------------------------------------------------------------------------------------------------------------------------


class _Bilinear(torch.autograd.Function):
    """A value whose gradients in two columns are known."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, value: Tensor, x_gradient: Tensor, z_gradient: Tensor) -> Tensor:
        ctx.save_for_backward(x_gradient, z_gradient)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x_gradient, z_gradient = ctx.saved_tensors
        return grad * x_gradient, grad * z_gradient, None, None, None


def evaluate(y: Tensor, form: Form) -> Tensor:
    """The value of a form at y (n,), with its gradient. The gradients sum to 0, so y may be centered, which keeps digits."""
    return form.constant + (y - y.detach().mean()) @ form.gradient


@torch.no_grad()
def _form(y: Tensor, others: Sequence[Tensor], c: float | None, unbiased: bool) -> Form | None:
    """The fast form of y (n, 1) against others, if there is one."""
    attributes = [Attribute(values.detach()) for values in others]
    line = len(others) == 1 and others[0].shape[1] == 1 and c is None
    points = collapse(attributes, FEW_VALUES if line else None)
    if points.collapsed:
        return by_cells(y[:, 0].detach(), points, [[k] for k in range(len(others))], c=c, unbiased=unbiased)
    return by_ranks(y[:, 0].detach(), others[0][:, 0].detach(), unbiased=unbiased) if line else None


def _fast_pair(x: Tensor, z: Tensor, unbiased: bool) -> Tensor | None:
    if x.requires_grad and z.requires_grad:
        if x.shape[1] > 1 or z.shape[1] > 1:
            return None
        with torch.no_grad():
            of_x, of_z = by_ranks(x[:, 0], z[:, 0], unbiased=unbiased), by_ranks(z[:, 0], x[:, 0], unbiased=unbiased)
            value = evaluate(x[:, 0], of_x)
        found: Tensor = _Bilinear.apply(x, z, value, of_x.gradient[:, None], of_z.gradient[:, None])  # type: ignore[no-untyped-call]
        return found
    for y, other in ((x, z), (z, x)):
        if y.shape[1] == 1 and not other.requires_grad:
            form = _form(y, [other], None, unbiased)
            if form is not None:
                return evaluate(y[:, 0], form)
    return None


def _fast_joint(columns: Sequence[Tensor], c: float, unbiased: bool) -> Tensor | None:
    moving = [k for k, values in enumerate(columns) if values.requires_grad]
    if len(moving) > 1:
        return None
    for k in moving or range(len(columns)):
        if columns[k].shape[1] == 1:
            form = _form(columns[k], [values for j, values in enumerate(columns) if j != k], c, unbiased)
            if form is not None:
                return evaluate(columns[k][:, 0], form)
    return None


# ---- what comes in ----------------------------------------------------------------------------------------------------------------------


def read_columns(name: str, values: Any) -> Tensor:
    """(n, d) in float64, finite."""
    if not isinstance(values, Tensor):
        bad_input(name, type(values).__name__, "a tensor of shape (n,) or (n, d)", "torch.as_tensor(...) makes one.")
    if values.ndim not in (1, 2) or (values.ndim == 2 and not values.shape[1]):
        bad_input(name, f"shape {tuple(values.shape)}", "shape (n,) or (n, d)")
    if values.is_complex():
        bad_input(name, f"a tensor of {values.dtype}", "real numbers")
    columns = (values if values.ndim == 2 else values[:, None]).to(torch.float64)
    if not bool((columns.detach().sum() * 0 == 0).all()) and not bool((finite := torch.isfinite(columns)).all()):
        wrong = int((~finite).any(dim=0).nonzero()[0])
        where = name if values.ndim == 1 else f"column {wrong} of {name}"
        bad_input(name, f"NaN or infinity in {where}", "finite numbers")
    return columns


def result_dtype(values: Sequence[Tensor]) -> torch.dtype:
    """That of the floating ones, at least float32."""
    kinds = [value.dtype for value in values if value.is_floating_point()]
    if not kinds:
        return torch.get_default_dtype()
    kind = reduce(torch.promote_types, kinds)
    return torch.float32 if kind in HALF else kind


def _check_rows(columns: Sequence[Tensor], names: Sequence[str], unbiased: bool) -> int:
    n = len(columns[0])
    for name, values in zip(names, columns, strict=True):
        if len(values) != n:
            bad_input(name, f"{len(values)} rows", f"{n} rows, as {names[0]}")
    check_count(names[0], n, unbiased)
    return n


def check_count(name: str, n: int, unbiased: bool) -> None:
    least = 4 if unbiased else 1
    if n < least:
        hint = "The unbiased estimate divides by n (n - 3)." if unbiased else ""
        bad_input(name, f"{n} rows of input", f"at least {least}", hint)


def _refuse_sorted(method: str) -> None:
    if method == "sorted":
        bad_input(
            "method", method, "one column against one column or against few different rows without gradient, for the fast form",
            'method="auto" falls back on matrices of n x n.',
        )  # fmt: skip
