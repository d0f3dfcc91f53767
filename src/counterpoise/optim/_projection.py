r"""The radial component of an update, and which weights should be rid of it (Heo et al. 2021, arXiv:2006.08217).

What is unbalanced: a weight w that is followed by a normalization is scale invariant, :math:`f(c\,w) = f(w)`. Its gradient is orthogonal
to w, so every step makes w longer, momentum many times as fast, and the effective step :math:`lr / \|w\|^2` of such weights dies away while
the other parameters keep theirs. Cure: leave the part of the update u along w out,

.. math:: u - \hat w\,(\hat w \cdot u), \qquad \hat w = w / (\|w\| + \epsilon) .

Which weights are invariant is seen in the gradient g: with rows w of length n, one per output channel or one for the whole layer,

.. math:: \frac{|g \cdot w|}{\|g\|\,\|w\|} < \frac{\delta}{\sqrt n} \quad\text{for all rows} .

Channels are tested first, then the layer. Nothing here waits for a device: the decisions stay where the tensors are.

k tensors of one shape are computed together as (k, r, n): r rows of length n each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from counterpoise._errors import InputError, bad_input

__all__ = [
    "INVARIANCES", "check_real", "cosines", "dense_gradient", "last_group_refused", "parts", "radial", "rows_of", "tensors_of"
]  # fmt: skip

INVARIANCES = ("auto", "channel", "layer", "none")

# Elements that are computed together: on a CPU what its cache holds along with the intermediates, elsewhere what keeps the device busy.
TOGETHER = {"cpu": 3 * 2**14}
TOGETHER_ELSEWHERE = 2**22


def radial(update: Tensor, p: Tensor, gradient: Tensor, *, delta: float, eps: float, invariance: str) -> tuple[Tensor, Tensor]:
    """``c`` (k, r, 1) so that ``update - c * p`` has no radial component, and (k, 1, 1) whether a tensor is invariant; c = 0 if it is not.

    ``invariance`` other than "auto" is taken as given, without a look at the gradient; "none" is not a case for this function.
    """
    length = torch.linalg.vector_norm(p, dim=2, keepdim=True)
    whole_length = torch.linalg.vector_norm(length, dim=1, keepdim=True)
    along = (update * p).sum(dim=2, keepdim=True)
    by_channel = along / (length + eps).square_()
    by_layer = along.sum(dim=1, keepdim=True) / (whole_length + eps).square_()
    if invariance == "auto":
        of_channels, of_layer = cosines(p, gradient, eps, length, whole_length)
        rows, n = p.shape[1:]
        # "All are below" rather than "the largest is": a process may hold no row of a parameter that is spread over several.
        channel = (of_channels < delta / n**0.5).all(dim=1, keepdim=True)
        layer = of_layer < delta / (rows * n) ** 0.5
    else:
        channel, layer = (torch.full_like(whole_length, invariance == kind, dtype=torch.bool) for kind in ("channel", "layer"))
    return torch.where(channel, by_channel, torch.where(layer, by_layer, 0.0)), channel | layer


def cosines(p: Tensor, gradient: Tensor, eps: float, length: Tensor, whole_length: Tensor) -> tuple[Tensor, Tensor]:
    """|cos| of weight and gradient, row by row (k, r, 1) and of all rows as one (k, 1, 1); lengths below ``eps`` count as ``eps``."""
    dot = (p * gradient).sum(dim=2, keepdim=True)
    of_gradient = torch.linalg.vector_norm(gradient, dim=2, keepdim=True)
    whole_gradient = torch.linalg.vector_norm(of_gradient, dim=1, keepdim=True)
    by_row = dot / (length.clamp(min=eps) * of_gradient.clamp(min=eps))
    whole = dot.sum(dim=1, keepdim=True) / (whole_length.clamp(min=eps) * whole_gradient.clamp(min=eps))
    return by_row.abs(), whole.abs()


def parts(params: Sequence[Tensor], foreach: bool | None) -> Iterator[list[int]]:
    """Positions of the parameters that are computed together: of one shape, type and device, and not too many elements.

    ``foreach=False``: each alone, and so are tensors of other classes than torch's own, if it is None.
    """
    if foreach is None:
        foreach = all(type(p) in (Tensor, torch.nn.Parameter) for p in params)
    if not foreach:
        yield from ([i] for i in range(len(params)))
        return
    alike: dict[Any, list[int]] = {}
    for i, p in enumerate(params):
        alike.setdefault((p.shape, p.dtype, p.device), []).append(i)
    for members in alike.values():
        first = params[members[0]]
        most = max(1, TOGETHER.get(first.device.type, TOGETHER_ELSEWHERE) // max(1, first.numel()))
        yield from (members[start : start + most] for start in range(0, len(members), most))


def rows_of(tensors: Sequence[Tensor]) -> Tensor:
    """(k, r, n) in single precision at least. Not to be written to: of one tensor it is a view."""
    first = tensors[0]
    x = torch.stack(list(tensors)) if len(tensors) > 1 else first
    if x.dtype.itemsize < 4:
        x = x.float()
    rows = first.shape[0] if first.ndim > 1 else 1
    return x.reshape(len(tensors), rows, first.numel() // rows)


def tensors_of(rows: Tensor, like: Tensor) -> tuple[Tensor, ...]:
    """The way back from :func:`rows_of`: k tensors of the shape of ``like``."""
    return rows.reshape(len(rows), *like.shape).unbind(0)


@contextmanager
def last_group_refused(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """If checks of the group that was added last fail, it is taken away again."""
    try:
        yield
    except InputError:
        del optimizer.param_groups[-1]
        raise


def check_real(group: dict[str, Any]) -> None:
    """Complex weights have no cosine with their gradients, of the kind that is looked at here."""
    for p in group["params"]:
        if p.is_complex():
            hint = "Optimize its two parts, as torch.view_as_real gives them."
            bad_input("params", f"a parameter of {p.dtype}, shape {tuple(p.shape)}", "real parameters", hint)


def dense_gradient(p: Tensor, optimizer: str) -> Tensor | None:
    """``p.grad``, which may not be sparse."""
    if p.grad is not None and p.grad.is_sparse:
        bad_input(
            "gradient", f"a sparse one of shape {tuple(p.shape)}", f"dense gradients, as {optimizer} compares them with their weights",
            "Give the embedding sparse=False, or torch.optim.SparseAdam.",
        )  # fmt: skip
    return p.grad
