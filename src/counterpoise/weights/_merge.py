r"""Fine-tuned models merged by a fixed rule. With task vectors :math:`V_i = \theta_i - \theta_0`, weights :math:`w_i` and a scale:

======================  ===================================================================================================================
average                 :math:`\theta_0 + s \sum_i w_i V_i / \sum_i w_i`
arithmetic              :math:`\theta_0 + s \sum_i w_i V_i` (Ilharco et al. 2023, arXiv:2212.04089)
slerp                   :math:`\theta_0 + s V_{1..K}`, interpolated along arcs, one after the other (arXiv:2410.15035)
multislerp              the weighted mean of the directions, as long as the weighted mean of the lengths
ties                    of the largest entries of each, those with the majority's sign (Yadav et al. 2023, arXiv:2306.01708)
fisher                  :math:`\sum_i w_i F_i V_i / \sum_i w_i F_i`, F mean squared gradients (Matena and Raffel 2022, arXiv:2111.09832)
regmean                 :math:`\sum_i w_i W_i G_i \, (\sum_i w_i G_i)^{-1}`, G products of inputs (Jin et al. 2023, arXiv:2212.09849)
======================  ===================================================================================================================
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from counterpoise._errors import bad_input, check_choice, check_range, listing

from ._models import FileModel, MemoryModel, Model, Models, open_model
from ._slerp import RULES, Rule, positive, slerp_coefficients
from ._statistics import from_data
from ._write import check_out, write

__all__ = ["LINEAR", "METHODS", "Method", "any_sign", "coefficients_of", "merge", "moving", "slice_of"]

Method = Literal["average", "arithmetic", "slerp", "multislerp", "ties", "fisher", "regmean"]
METHODS = ("average", "arithmetic", "slerp", "multislerp", "ties", "fisher", "regmean")
LINEAR = ("average", "arithmetic", "slerp", "multislerp")  # in the task vectors
DIGIT = 16  # bits
TOLERANCE = 1e-8  # multislerp: a mean direction shorter than this is none

Statistics = Sequence[Any]


@overload
def merge(
    base: Model,
    models: Sequence[Model],
    method: Method = "average",
    weights: Sequence[float] | Tensor | None = None,
    scale: float = 1.0,
    density: float = 0.2,
    statistics: Statistics | None = None,
    data: Sequence[Any] | None = None,
    *,
    loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
    rule: Rule = "mean",
    out: None = None,
) -> dict[str, Tensor]: ...
@overload
def merge(
    base: Model,
    models: Sequence[Model],
    method: Method = "average",
    weights: Sequence[float] | Tensor | None = None,
    scale: float = 1.0,
    density: float = 0.2,
    statistics: Statistics | None = None,
    data: Sequence[Any] | None = None,
    *,
    loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
    rule: Rule = "mean",
    out: str | os.PathLike[str],
) -> Path: ...
def merge(
    base: Model,
    models: Sequence[Model],
    method: Method = "average",
    weights: Sequence[float] | Tensor | None = None,
    scale: float = 1.0,
    density: float = 0.2,
    statistics: Statistics | None = None,
    data: Sequence[Any] | None = None,
    *,
    loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
    rule: Rule = "mean",
    out: str | os.PathLike[str] | None = None,
) -> dict[str, Tensor] | Path:
    r"""One model from K that were fine-tuned from the same base.

    Tensors are read, merged and written one after the other. Of models given as paths no more than a few megabytes each are in memory at a
    time; with ``out``, what is kept is one file of the result.

    Parameters
    ----------
    base : torch.nn.Module, state dictionary, or path
        A path is a ``.safetensors`` file, or a folder with ``model.safetensors`` or with shards and their index.
    models : sequence of K of these
        With the names, shapes and types of the base.
    method : str, default "average"
        "average", "arithmetic" (the sum), "slerp", "multislerp", "ties", "fisher" or "regmean". The angles of "slerp" and "multislerp" are
        between whole models; "ties" trims tensor by tensor. (The published tangent step of multislerp is exactly zero at the mean it starts
        from, so the mean direction is the result.)
    weights : (K,), optional
        Default: all 1. Relative, and > 0; only those of "arithmetic" are absolute, and may have any sign.
    scale : float, default 1.0
        The merged task vector is multiplied by this. 0 gives the base.
    density : float in (0, 1], default 0.2 (Yadav et al. 2023)
        "ties": the part of the entries of a tensor that is kept of each model (at least one entry, and all that are as large as the last).
    statistics : sequence of K dictionaries or paths, optional
        Name -> tensor. "fisher": squared gradients, as large as the parameter. "regmean": the sum of :math:`x x^T` over the inputs of a
        linear layer, (in, in), under the name of its weight; parameters without are averaged.
    data : sequence of K loaders, optional
        In place of ``statistics``: computed in eval mode with ``loss_fn``. The base must be a module, or all models. Gradients are those of
        batches; batches of one example give the mean over examples.
    loss_fn : function (model, batch) -> scalar, optional
        Needed with ``data``.
    rule : {"mean", "sum"}, default "mean"
        Of "slerp" with more than two models; see :func:`nested_slerp`. By the paper's rule the order of the models matters.
    out : path, optional
        Where to write the merged model: a ``.safetensors`` file, or a folder. If the base is a folder, too, it gets the shards of the base,
        and its configuration and tokenizer.

    Returns
    -------
    dict of name -> tensor for ``load_state_dict``, in the types of the base; or ``out``, if given. Half precision is computed in float32.
    Floating-point buffers are averaged: after batch normalization, re-estimate them (``torch.optim.swa_utils.update_bn``). Integers are the
    base's. Tied weights stay tied; a file holds them once, under their first name.

    Raises
    ------
    InputError
        If models do not match the base (the first differences are named), two task vectors are antiparallel, weights or statistics are not
        finite (the parameter is named),
        ``out`` holds a model or other weights, or an argument is out of its range.

    Warns
    -----
    UserWarning
        "slerp" and "multislerp": a model equal to the base has no direction, and is left out.

    Examples
    --------
    >>> base, a, b = {"w": torch.zeros(2)}, {"w": torch.tensor([2.0, 0.0])}, {"w": torch.tensor([0.0, 2.0])}
    >>> merge(base, [a, b])
    {'w': tensor([1., 1.])}
    >>> merge(base, [a, b], "slerp")
    {'w': tensor([1.4142, 1.4142])}
    """
    check_choice("method", method, METHODS)
    check_choice("rule", rule, RULES)
    check_range("scale", scale)
    check_range("density", density, low=0.0, high=1.0, open_low=True)
    opened = Models(base, models)
    path = None if out is None else check_out(out, opened)
    count = len(opened)
    if method == "arithmetic":
        w = torch.ones(count, dtype=torch.float64) if weights is None else any_sign(weights, count)
    else:
        w = torch.ones(count, dtype=torch.float64) if weights is None else positive("weights", weights, count)
    if method not in ("fisher", "regmean") and (statistics is not None or data is not None):
        bad_input("statistics and data", f"method {method!r}", "fisher or regmean, which use them")
    relative = (torch.full_like(w, 1 / count) if method == "arithmetic" else w / w.sum()).tolist()
    one: Callable[[str], Tensor]
    if method == "ties":
        shares = w.tolist()

        def one(name: str) -> Tensor:
            return _ties(opened, name, shares, scale, density)
    elif method in ("fisher", "regmean"):
        known = _statistics(method, base, models, opened, statistics, data, loss_fn)
        rule_of = _fisher if method == "fisher" else _regmean

        def one(name: str) -> Tensor:
            return rule_of(opened, name, relative, scale, known)
    else:
        c = (scale * coefficients_of(method, opened.gram, opened.labels, w, rule)).tolist()

        def one(name: str) -> Tensor:
            return opened.combined(name, c)

    kinds = dict.fromkeys(opened.parameters, one)
    kinds |= dict.fromkeys(opened.buffers, lambda name: opened.combined(name, relative))
    kinds |= dict.fromkeys(opened.fixed, lambda name: opened.base_model.read(name).clone())

    def merged(name: str) -> Tensor:
        return kinds[name](name) if name in opened.fixed else opened.checked(name, kinds[name](name))

    if path is not None:
        return write(path, opened, merged)
    return opened.with_aliases({name: merged(name) for name in opened.dtypes})


# ---- rules that are linear in the task vectors ------------------------------------------------------------------------------------------


def coefficients_of(method: str, gram_of: Callable[[], Tensor], labels: Sequence[str], w: Tensor, rule: Rule) -> Tensor:
    """(K,) c of the merged task vector :math:`\\sum_i c_i V_i`, float64; ``gram_of()`` gives the inner products of the vectors."""
    if method == "arithmetic":
        return w
    if method == "average":
        return w / w.sum()
    gram = gram_of()
    kept = moving(gram, labels, depth=4)
    c = torch.zeros_like(w)
    if kept:
        of = slice_of(gram, kept)
        names = [labels[k] for k in kept]
        c[kept] = slerp_coefficients(of, w[kept], rule, names) if method == "slerp" else _mean_direction(of, w[kept])
    return c


def slice_of(gram: Tensor, kept: Sequence[int]) -> Tensor:
    """Rows and columns ``kept``."""
    return gram[list(kept)][:, list(kept)]


def moving(gram: Tensor, labels: Sequence[str], depth: int) -> list[int]:
    """The models that differ from the base; the others have no direction, and are named in a warning, ``depth`` calls up."""
    kept = [k for k in range(len(gram)) if float(gram[k, k]) > 0]
    still = [labels[k] for k in range(len(gram)) if k not in kept]
    if still:
        warnings.warn(f"{listing(still)} equal the base: without a direction, they take no part.", UserWarning, stacklevel=depth)
    return kept


def _mean_direction(gram: Tensor, w: Tensor) -> Tensor:
    r"""Coefficients of :math:`\bar n \, m`: m the unit vector of :math:`\sum_i w_i V_i / \|V_i\|`, :math:`\bar n = \sum_i w_i \|V_i\|`."""
    w = w / w.sum()
    lengths = gram.diagonal().sqrt()
    direction = w / lengths
    length = (direction @ gram @ direction).clamp_min(0).sqrt()
    if float(length) < TOLERANCE:
        bad_input("models", "task vectors whose directions cancel", "directions with a mean", "Change the weights, or leave one out.")
    return (w * lengths).sum() * direction / length


def any_sign(weights: Any, count: int) -> Tensor:
    w = torch.as_tensor(weights, dtype=torch.float64).detach().cpu().reshape(-1)
    if len(w) != count or not bool(torch.isfinite(w).all()):
        bad_input("weights", w.tolist(), f"{count} finite weights, one per model")
    return w


# ---- rules for each entry ---------------------------------------------------------------------------------------------------------------


def _ties(models: Models, name: str, w: Sequence[float], scale: float, density: float) -> Tensor:
    """Trim, elect a sign, and take the mean of those that have it."""
    size = models.shapes[name].numel()
    merged = models.new(name)
    if not size:
        return merged
    kept = max(1, int(density * size))
    least = [_kth_largest(models, k, name, kept) for k in range(len(models))]
    for rows in models.pieces(name):
        base = models.base(name, rows)
        total = torch.zeros_like(base)
        for k, weight in enumerate(w):
            total.add_(_trimmed(models.vector(k, name, rows, base), least[k]), alpha=weight)
        positive_wins = total >= 0
        total.zero_()
        share = torch.zeros_like(base)
        for k, weight in enumerate(w):
            vector = _trimmed(models.vector(k, name, rows, base), least[k])
            agrees = torch.where(positive_wins, vector > 0, vector < 0)
            total.add_(vector.mul_(agrees), alpha=weight)
            share.add_(agrees, alpha=weight)
        total.div_(share.masked_fill_(share == 0, 1.0))
        merged[... if rows is None else rows] = base.add(total, alpha=scale)
    return merged


def _kth_largest(models: Models, k: int, name: str, kept: int) -> Tensor:
    """The size of the ``kept``-th largest entry of :math:`V_k`, exactly, without the whole tensor in memory.

    Floats >= 0 are ordered as their bits are, read as integers. So the digits of the entry, of 16 bits each, are found one after the other
    by counting, in as many passes over the pieces.
    """
    double = models.dtypes[name] == torch.float64
    whole, bits = (torch.int64, 64) if double else (torch.int32, 32)
    rank, found = kept, 0
    device = models.base_model.read(name, slice(0, 0) if models.shapes[name] else None).device
    for shift in range(bits - DIGIT, -1, -DIGIT):
        counts = torch.zeros(2**DIGIT, dtype=torch.int64, device=device)
        for rows in models.pieces(name):
            sizes = models.vector(k, name, rows).abs_().view(whole).reshape(-1)
            if shift < bits - DIGIT:
                sizes = sizes[sizes >> (shift + DIGIT) == found]
            counts += torch.bincount(sizes >> shift & 2**DIGIT - 1, minlength=2**DIGIT)
        from_above = counts.flip(0).cumsum(0)
        place = int(torch.searchsorted(from_above, rank))
        rank -= int(from_above[place] - counts.flip(0)[place])
        found = found << DIGIT | 2**DIGIT - 1 - place
    return torch.tensor(found, dtype=whole).view(torch.float64 if double else torch.float32).to(device)


def _trimmed(vector: Tensor, least: Tensor) -> Tensor:
    return vector.masked_fill_(vector.abs() < least, 0.0)


def _fisher(models: Models, name: str, w: Sequence[float], scale: float, known: Sequence[MemoryModel | FileModel]) -> Tensor:
    """Weighted entry by entry; the weighted mean where no model has a gradient."""
    merged = models.new(name)
    present = all(name in source.names for source in known)
    for rows in models.pieces(name):
        base = models.base(name, rows)
        # In double precision: a squared gradient of float32 times a small change may be 0 in float32.
        total, share, plain = (torch.zeros_like(base, dtype=torch.float64) for _ in range(3))
        for k, weight in enumerate(w):
            vector = models.vector(k, name, rows, base)
            plain.add_(vector, alpha=weight)
            if present:
                importance = known[k].read(name, rows).to(total) * weight
                if not bool((torch.isfinite(importance) & (importance >= 0)).all()):
                    bad_input(known[k].label, f"negative values, or such that are not finite, of {name}", "mean squared gradients")
                total.addcmul_(importance, vector.double())
                share.add_(importance)
        merged[... if rows is None else rows] = base.double().add(torch.where(share > 0, total / share, plain), alpha=scale)
    return merged


def _regmean(models: Models, name: str, w: Sequence[float], scale: float, known: Sequence[MemoryModel | FileModel]) -> Tensor:
    r"""The mean, and :math:`\sum_i w_i (W_i - \bar W) G_i \, (\sum_i w_i G_i)^+`: where inputs say nothing, the mean stays."""
    present = all(name in source.names for source in known)
    if not present or len(models.shapes[name]) != 2:
        return models.combined(name, [scale * weight for weight in w])
    base = models.base(name).double()
    mean = torch.zeros_like(base)
    for k, weight in enumerate(w):
        mean.add_(models.vector(k, name), alpha=weight)
    total, products = torch.zeros_like(base), torch.zeros(base.shape[1], base.shape[1], dtype=base.dtype, device=base.device)
    for k, weight in enumerate(w):
        product = known[k].read(name).to(base)
        if not bool(torch.isfinite(product).all()):
            bad_input(known[k].label, f"values that are not finite of {name}", "sums of products of inputs")
        total.addmm_(models.vector(k, name).double().sub_(mean), product, alpha=weight)
        products.add_(product, alpha=weight)
    return base.add(mean + total @ torch.linalg.pinv(products, hermitian=True), alpha=scale).to(models.dtypes[name])


def _statistics(
    method: str, base: Any, given: Sequence[Any], models: Models, statistics: Statistics | None, data: Any, loss_fn: Any
) -> list[MemoryModel | FileModel]:
    """Statistics of each model, to be read like a model."""
    if (statistics is None) == (data is None):
        bad_input("statistics and data", "both or neither", f"one of them: method {method!r} needs to know the models' inputs or gradients")
    if statistics is None:
        found: Any = from_data(method, base, given, models, data, loss_fn)
    else:
        found = statistics
    if not isinstance(found, Sequence) or len(found) != len(models):
        bad_input("statistics", type(found).__name__, f"a list of {len(models)} dictionaries or paths, one per model")
    opened = [open_model(part, f"statistics[{k}]") for k, part in enumerate(found)]
    for source in opened:
        for name in source.names:
            if name not in models.shapes:
                bad_input(source.label, name, "names of the base's parameters", f"Such as {listing(models.parameters, 3)}.")
            shape = models.shapes[name]
            wanted = shape if method == "fisher" else torch.Size((shape[-1], shape[-1])) if len(shape) == 2 else None
            if source.spec(name)[0] != wanted:
                bad_input(source.label, f"{name} of shape {tuple(source.spec(name)[0])}", f"shape {wanted and tuple(wanted)}")
        if set(source.names) != set(opened[0].names):
            bad_input(source.label, f"other names than {opened[0].label}", "statistics of the same parameters for every model")
    if not any(source.names for source in opened):
        bad_input("statistics", "dictionaries without tensors", "at least one parameter's")
    return opened
