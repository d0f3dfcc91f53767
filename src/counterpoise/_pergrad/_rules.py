"""What each kind of layer keeps of a forward pass, and how its per-example gradients follow once the gradient of its output is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterpoise._precision import single

from ._uses import ConvolutionUse, GivenUse, LookupUse, OuterUse, Use

__all__ = ["Layout", "examples_first", "rule_of"]

# Where the n examples are in a tensor: along a dimension, in n * T rows, all of an example together ("flat"), or not at all.
Layout = int | str | None
Rule = Callable[[Any, Mapping[str, int], Tensor, Layout, int], "Callable[[Tensor, Layout], Use] | None"]


def examples_first(x: Tensor, layout: Layout, n: int) -> Tensor:
    """(n, ...): one entry per example; a tensor without examples is the same for each of them."""
    if layout == "flat":
        return x.reshape(n, -1, *x.shape[1:])
    if layout is None:
        return (x if x.ndim and x.shape[0] == 1 else x[None]).expand(n, *(x.shape[1:] if x.ndim and x.shape[0] == 1 else x.shape))
    assert isinstance(layout, int)
    return x.movedim(layout, 0) if layout else x


def _positions(x: Tensor, layout: Layout, n: int, trailing: int = 1) -> Tensor:
    """(n, T, ...): examples, everything else that is not a feature, and the last ``trailing`` dimensions."""
    x = single(examples_first(x, layout, n))
    return x.reshape(n, -1, *x.shape[x.ndim - trailing :])


def linear(layer: Any, places: Mapping[str, int], x: Tensor, layout: Layout, n: int) -> Callable[[Tensor, Layout], Use]:
    a = x

    def use(b: Tensor, out: Layout) -> Use:
        return OuterUse(places.get("weight"), places.get("bias"), _positions(a, layout, n), _positions(b, out, n))

    return use


def transposed_linear(layer: Any, places: Mapping[str, int], x: Tensor, layout: Layout, n: int) -> Callable[[Tensor, Layout], Use]:
    """``x @ weight + bias`` with a weight of shape (d_in, d_out), as in GPT-2."""

    def use(b: Tensor, out: Layout) -> Use:
        a, b = _positions(x, layout, n), _positions(b, out, n)
        return OuterUse(places.get("weight"), places.get("bias"), a, b, transposed=True)

    return use


def convolution(layer: Any, places: Mapping[str, int], x: Tensor, layout: Layout, n: int) -> Callable[[Tensor, Layout], Use] | None:
    if layout != 0 or (isinstance(layer.padding, str) and layer.padding not in ("same", "valid")):
        return None

    def use(b: Tensor, out: Layout) -> Use:
        return ConvolutionUse(layer, places.get("weight"), places.get("bias"), single(x), single(b))

    return use


def lookup(layer: Any, places: Mapping[str, int], x: Tensor, layout: Layout, n: int) -> Callable[[Tensor, Layout], Use] | None:
    if layer.max_norm is not None or layer.scale_grad_by_freq:  # the first changes the table, the second ties examples to each other
        return None

    def use(b: Tensor, out: Layout) -> Use:
        tokens = examples_first(x, layout, n).reshape(n, -1)
        b = _positions(b, out, n)
        if layer.padding_idx is not None:
            b = b * (tokens != layer.padding_idx)[:, :, None]
        return LookupUse(places["weight"], tokens, b, layer.weight.shape)

    return use


def bag(layer: Any, places: Mapping[str, int], x: Tensor, layout: Layout, n: int) -> Callable[[Tensor, Layout], Use] | None:
    if layer.max_norm is not None or layer.scale_grad_by_freq or layer.mode == "max" or x.ndim != 2 or layout != 0:
        return None  # ragged bags and maxima are left to the layer's own backward

    def use(b: Tensor, out: Layout) -> Use:
        counts = torch.ones_like(x) if layer.padding_idx is None else (x != layer.padding_idx).long()
        per_token = single(b)[:, None] * counts[:, :, None]
        if layer.mode == "mean":
            per_token = per_token / counts.sum(dim=1).clamp(min=1)[:, None, None]
        return LookupUse(places["weight"], x, per_token, layer.weight.shape)

    return use


def normalization(layer: Any, places: Mapping[str, int], x: Tensor, layout: Layout, n: int) -> Callable[[Tensor, Layout], Use] | None:
    """Layers that scale and shift what they have normalized: the gradients are sums of ``b * x_hat`` and of ``b``."""
    x_hat = NORMALIZED[type(layer)]
    trailing = type(layer) in (nn.LayerNorm, getattr(nn, "RMSNorm", None))
    if layout is None or (not trailing and layout != 0):
        return None

    def use(b: Tensor, out: Layout) -> Use:
        scaled, b = x_hat(layer, single(x)), single(b)
        if trailing:  # (n, T, features): sums over the positions
            size = torch.Size(layer.normalized_shape).numel()
            scaled, b = (examples_first(t, out, n).reshape(n, -1, size).mT for t in (scaled, b))
        else:  # (n, C, ...): sums over the places of a channel
            scaled, b = (t.reshape(n, t.shape[1], -1) for t in (scaled, b))
        found = {}
        if "weight" in places:
            found[places["weight"]] = torch.linalg.vecdot(b, scaled)
        if "bias" in places:
            found[places["bias"]] = b.sum(dim=2)
        return GivenUse(found)

    return use


def _batch_norm(layer: Any, x: Tensor) -> Tensor:
    return F.batch_norm(x, layer.running_mean, layer.running_var, None, None, False, 0.0, layer.eps)


def _instance_norm(layer: Any, x: Tensor) -> Tensor:
    own = layer.training or not layer.track_running_stats
    return F.instance_norm(x, None if own else layer.running_mean, None if own else layer.running_var, use_input_stats=own, eps=layer.eps)


NORMALIZED: dict[type, Callable[[Any, Tensor], Tensor]] = {
    nn.LayerNorm: lambda layer, x: F.layer_norm(x, layer.normalized_shape, eps=layer.eps),
    nn.RMSNorm: lambda layer, x: F.rms_norm(x, layer.normalized_shape, eps=layer.eps),
    nn.GroupNorm: lambda layer, x: F.group_norm(x, layer.num_groups, eps=layer.eps),
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.InstanceNorm1d: _instance_norm,
    nn.InstanceNorm2d: _instance_norm,
    nn.InstanceNorm3d: _instance_norm,
}

RULES: dict[type, Rule] = {
    nn.Linear: linear,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.Embedding: lookup,
    nn.EmbeddingBag: bag,
    **dict.fromkeys(NORMALIZED, normalization),
}

NAMED_RULES = {"transformers.pytorch_utils.Conv1D": transposed_linear}  # types of packages that may not be installed


@dataclass(frozen=True)
class Plan:
    """How one layer is measured: by a ``rule`` on its input and output gradient, or (None) through its own backward."""

    rule: Rule | None
    places: Mapping[str, int]  # own parameters by the name they have in the layer


def rule_of(layer: nn.Module) -> Rule | None:
    """The rule for a layer of exactly this type, whose parameters are plain and real; subclasses may compute something else."""
    rule = RULES.get(type(layer)) or NAMED_RULES.get(f"{type(layer).__module__}.{type(layer).__qualname__}")
    own = layer._parameters
    if rule is None or own.get("weight") is None or set(own) - {"weight", "bias"}:
        return None
    if "forward" in vars(layer) or any(p is not None and p.is_complex() for p in own.values()):
        return None
    return rule
