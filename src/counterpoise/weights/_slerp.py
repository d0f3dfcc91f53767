r"""Spherical interpolation of vectors that are not of length one, and of more than two (arXiv:2410.15035).

With the angle :math:`\alpha` between a and b,

.. math:: \mathrm{slerp}(a, b; t) = \frac{\sin((1 - t)\alpha)\, a + \sin(t \alpha)\, b}{\sin \alpha}.

Neither is normalized first, so that lengths are interpolated, too. For vectors :math:`V_1, V_2, \dots` with weights :math:`a_i > 0`, one
after the other: :math:`V_{1..k} = \mathrm{slerp}(V_{1..k-1}, V_k; t)` with :math:`t = a_k / (\bar a + a_k)`, where :math:`\bar a` is the
mean ("mean", the paper's rule) or the sum ("sum") of the weights before. The result is :math:`\sum_i c_i V_i` with coefficients that depend
on the inner products of the vectors alone; so they are found on a (K, K) matrix, whatever the length of the vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from counterpoise._errors import bad_input, check_choice, check_range, listing
from counterpoise._precision import single

__all__ = ["EPS", "RULES", "Rule", "nested_slerp", "positive", "slerp", "slerp_coefficients"]

Rule = Literal["mean", "sum"]
RULES = ("mean", "sum")
EPS = 1e-8
OPPOSED = 1e-5  # the sine of vectors that point away from each other below which an arc is mostly rounding


def slerp(a: Tensor, b: Tensor, t: float | Tensor, eps: float = EPS, dim: int | None = None) -> Tensor:
    r"""From a (t = 0) to b (t = 1) along the arc between them: :math:`[\sin((1-t)\alpha)\, a + \sin(t\alpha)\, b] / \sin\alpha`.

    Parameters
    ----------
    a, b : tensors of one shape and type
        Of any lengths; these are interpolated as well.
    t : float, or tensor that broadcasts
        Usually in [0, 1].
    eps : float, default 1e-8
        Where :math:`\sin\alpha` is smaller (parallel vectors), or one vector is zero and there is no angle, interpolation is linear.
    dim : int, optional
        None: one angle between the whole tensors. -1: one for each row of (..., n); the dimension over which vectors run.

    Returns
    -------
    tensor of the same shape and type. Half precision is computed in float32 and rounded at the end; angles are float64.

    Raises
    ------
    InputError
        If shapes or types differ, or two vectors are antiparallel, to 1e-5: every arc between them is as short as any other.

    Examples
    --------
    >>> slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]), 0.5)
    tensor([0.7071, 1.4142])
    """
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape or a.dtype != b.dtype or not a.is_floating_point():
        bad_input("a and b", f"{_kind(a)} and {_kind(b)}", "two floating-point tensors of one shape and type")
    check_range("eps", eps, low=0.0)
    x, y = single(a), single(b)
    over: Any = {"dim": tuple(range(a.ndim)) if dim is None else dim, "keepdim": True}
    # Doubled before they are multiplied: the square of a small float32 is 0.
    aa, ab, bb = ((left.double() * right.double()).sum(**over) for left, right in ((x, x), (x, y), (y, y)))
    first, second, opposed = _shares(aa, ab, bb, torch.as_tensor(t, dtype=torch.float64, device=x.device), eps)
    if bool(opposed.any()):
        where = "" if dim is None else f" in {int(opposed.sum())} of {opposed.numel()} rows"
        bad_input("a and b", f"antiparallel vectors{where}", "vectors less than 180 degrees apart", "Leave one of them out.")
    return (first.to(x.dtype) * x + second.to(x.dtype) * y).to(a.dtype)


@overload
def nested_slerp(vectors: Tensor | Sequence[Tensor], weights: Sequence[float] | Tensor, rule: Rule = "mean") -> Tensor: ...
@overload
def nested_slerp(vectors: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | Tensor, rule: Rule = "mean") -> dict[str, Tensor]: ...
def nested_slerp(vectors: Any, weights: Sequence[float] | Tensor, rule: Rule = "mean") -> Any:
    r"""K vectors, one after the other: :math:`V_{1..k} = \mathrm{slerp}(V_{1..k-1}, V_k;\ a_k / (\bar a + a_k))`.

    **The order matters.** By the paper's rule the last vector has as much weight as all before it together: with equal weights of three,
    about 1/4, 1/4 and 1/2. ``rule="sum"`` gives 1/3 each (exactly so where angles are small).

    Parameters
    ----------
    vectors : tensor (K, ...), sequence of K tensors, or of K task vectors (dicts)
        Dicts are one long vector each: one angle for all tensors together.
    weights : (K,), all > 0
        Only their ratios matter.
    rule : {"mean", "sum"}, default "mean" (the paper's)
        What stands for the weight of those already merged.

    Returns
    -------
    tensor (...), or dict, like one of the vectors.

    Raises
    ------
    InputError
        If shapes differ, a weight is not above 0, or the next vector is antiparallel to what is merged already.

    Examples
    --------
    >>> vectors = torch.eye(3)
    >>> nested_slerp(vectors, [1.0, 1.0, 1.0])
    tensor([0.5000, 0.5000, 0.7071])
    >>> nested_slerp(vectors, [1.0, 1.0, 1.0], rule="sum")
    tensor([0.6124, 0.6124, 0.5000])
    """
    check_choice("rule", rule, RULES)
    vectors = list(vectors)
    if not vectors:
        bad_input("vectors", "an empty sequence", "at least one vector")
    a = positive("weights", weights, len(vectors)).tolist()
    if isinstance(vectors[0], Mapping):
        names = list(vectors[0])
        if any(set(vector) != set(names) for vector in vectors):
            bad_input("vectors", "dictionaries of different names", "task vectors of one base")
        like = vectors[0]
        odd = [name for name in names if any(vector[name].shape != like[name].shape for vector in vectors)]
        if odd:
            bad_input("vectors", f"{odd[0]} of shapes {[tuple(vector[odd[0]].shape) for vector in vectors]}", "task vectors of one base")
        flat = nested_slerp([torch.cat([single(vector[name]).reshape(-1) for name in names]) for vector in vectors], a, rule)
        parts = torch.split(flat, [like[name].numel() for name in names])
        return {name: part.reshape(like[name].shape).to(like[name].dtype) for name, part in zip(names, parts, strict=True)}
    if not all(isinstance(vector, Tensor) and vector.dtype == vectors[0].dtype for vector in vectors):
        bad_input("vectors", listing([_kind(vector) for vector in vectors]), "floating-point tensors of one shape and type")
    merged = single(vectors[0])
    for k in range(1, len(vectors)):
        before = sum(a[:k]) / (k if rule == "mean" else 1)
        merged = slerp(merged, single(vectors[k]), a[k] / (before + a[k]))
    return merged.to(vectors[0].dtype)


def slerp_coefficients(gram: Tensor, weights: Tensor, rule: Rule, names: Sequence[str] = ()) -> Tensor:
    r"""(K,) c of the nested :math:`\sum_i c_i V_i`, from :math:`G_{ij} = \langle V_i, V_j \rangle`; differentiable in weights.

    >>> slerp_coefficients(torch.eye(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64), "mean")
    tensor([0.5000, 0.5000, 0.7071], dtype=torch.float64)
    """
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    c = eye[0]
    for k in range(1, len(gram)):
        before = weights[:k].mean() if rule == "mean" else weights[:k].sum()
        row = gram[k]
        first, second, opposed = _shares(c @ gram @ c, row @ c, row[k], weights[k] / (before + weights[k]), EPS)
        if bool(opposed):
            name = list(names) or [f"models[{i}]" for i in range(len(gram))]
            earlier = name[0] if k == 1 else f"the merge of {', '.join(name[:k])}"
            bad_input(
                "models", "antiparallel task vectors", "vectors less than 180 degrees apart",
                f"There is no arc between opposite directions: leave out {earlier} or {name[k]}.",
            )  # fmt: skip
        c = first * c + second * eye[k]
    return c


def _shares(aa: Tensor, ab: Tensor, bb: Tensor, t: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """What a and b are multiplied by, from their inner products, and where they are antiparallel."""
    defined = (aa > 0) & (bb > 0)
    lengths = torch.where(defined, aa, 1.0).sqrt() * torch.where(defined, bb, 1.0).sqrt()  # the product of squares may not fit
    cos = (torch.where(defined, ab, 0.0) / lengths).clamp(-1.0, 1.0)
    squared = (1 - cos) * (1 + cos)
    linear = ~defined | (squared.detach() < eps**2) | (squared.detach() <= 0)
    # Where the line is taken, a harmless angle stands in for the undefined one, so that gradients stay finite.
    cos = torch.where(linear, 0.0, cos)
    sin = torch.where(linear, 1.0, squared).sqrt()
    angle = torch.atan2(sin, cos)
    first = torch.where(linear, 1 - t, torch.sin((1 - t) * angle) / sin)
    second = torch.where(linear, t, torch.sin(t * angle) / sin)
    return first, second, defined & (ab < 0) & (linear | (squared.detach() < OPPOSED**2))


def positive(argument: str, weights: Any, count: int) -> Tensor:
    """``weights`` as float64 (count,), all finite and above 0."""
    a = torch.as_tensor(weights, dtype=torch.float64).detach().cpu().reshape(-1)
    if len(a) != count or not bool((torch.isfinite(a) & (a > 0)).all()):
        bad_input(argument, a.tolist(), f"{count} finite weights > 0, one per model")
    return a


def _kind(x: Any) -> str:
    return f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
