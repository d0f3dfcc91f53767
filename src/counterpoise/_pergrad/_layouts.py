"""Where the examples of a batch are in the tensors that a layer takes and returns: found out with a few of them, never assumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_flatten, tree_unflatten

from counterpoise._precision import HALF

from ._collect import ParameterSpace
from ._rules import Layout, Plan, rule_of

__all__ = ["Layouts", "find_layouts", "fits", "guess_layout", "leaves_of", "opened", "owners"]

# Per call of a layer: where the examples are in each tensor of its arguments and of its output, in the order of the tree's leaves.
Layouts = dict[tuple[str, int], tuple[Layout, ...]]

MIXED = "mixed"  # somewhere, but not where they seem to be: in another order, or cut into pieces


def leaves_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    if not kwargs and len(args) == 1 and isinstance(args[0], Tensor):  # nearly always
        return [args[0]]
    return [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]


def opened(output: Any) -> tuple[list[Tensor], Callable[[list[Tensor]], Any]]:
    """The tensors of an output, and how to put others in their place."""
    if isinstance(output, Tensor):  # nearly always
        return [output], lambda values: values[0]
    packed: list[PackedSequence] = []

    def is_packed(node: Any) -> bool:
        return isinstance(node, PackedSequence)

    leaves, spec = tree_flatten(output, is_leaf=is_packed)
    packed = [leaf for leaf in leaves if is_packed(leaf)]
    at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) or is_packed(leaf)]
    tensors = [leaves[i].data if is_packed(leaves[i]) else leaves[i] for i in at]

    def rebuild(values: list[Tensor]) -> Any:
        filled = list(leaves)
        for i, value in zip(at, values, strict=True):
            old = leaves[i]
            filled[i] = (
                PackedSequence(value, old.batch_sizes, old.sorted_indices, old.unsorted_indices) if packed and is_packed(old) else value
            )
        return tree_unflatten(filled, spec)

    return tensors, rebuild


def owners(model: nn.Module, space: ParameterSpace) -> dict[str, tuple[nn.Module, Plan]]:
    """The layers that own measured parameters, by name. Attention and parametrized layers own those of their parts, too."""
    found: dict[str, tuple[nn.Module, Plan]] = {}
    inside: set[int] = set()
    seen_layers: set[int] = set()
    for name, layer in model.named_modules():
        if id(layer) in inside or id(layer) in seen_layers:
            continue
        seen_layers.add(id(layer))
        own = dict(layer.named_parameters(recurse=False, remove_duplicate=False))
        if isinstance(layer, nn.MultiheadAttention):
            own = dict(layer.named_parameters(remove_duplicate=False))
            inside |= {id(part) for part in layer.modules()}
        elif hasattr(layer, "parametrizations"):
            own |= {f"parametrizations.{key}": value for key, value in layer.parametrizations.named_parameters(remove_duplicate=False)}
            inside |= {id(part) for part in layer.parametrizations.modules()}
        places = {key: space.place[id(value)] for key, value in own.items() if id(value) in space.place}
        if places:
            found[name] = (layer, Plan(rule_of(layer), places))
    return found


def fits(t: Tensor, layout: Layout, n: int) -> bool:
    """Whether n examples can be where ``layout`` says. A batch that is not there has been taken apart, as where tokens are routed."""
    if layout == "flat":
        return t.ndim > 0 and t.shape[0] > 0 and t.shape[0] % n == 0
    return layout is None or (isinstance(layout, int) and layout < t.ndim and t.shape[layout] == n)


def guess_layout(t: Tensor, n: int) -> Layout:
    """Without having seen other batch sizes: the first dimension of size n, else the second, else whole multiples of n."""
    for dim in range(min(2, t.ndim)):
        if t.shape[dim] == n:
            return dim
    if t.ndim and t.shape[0] > n and t.shape[0] % n == 0:
        return "flat"
    return None


class _Look:
    """One tensor of one call: its shape and, per place where k examples could be, k rows that stand for their values."""

    def __init__(self, t: Tensor, k: int, values: bool) -> None:
        self.shape = tuple(t.shape)
        self.half = t.dtype in HALF
        self.values: dict[Layout, Tensor] = {}
        if not values:
            return
        t = torch.view_as_real(t.detach()) if t.is_complex() else t.detach()
        for dim in range(len(self.shape)):
            if self.shape[dim] == k:
                self.values[dim] = _summed(t.movedim(dim, 0), k)
        if self.shape and self.shape[0] > k and self.shape[0] % k == 0:
            self.values["flat"] = _summed(t, k)


def _summed(t: Tensor, k: int) -> Tensor:
    """(k, T): T is 1, or more where each example has several rows. Uneven weights, since the features of a layer may add up to 0."""
    rows = t.reshape(t.shape[0], -1).double().nan_to_num(0.0, 1.0, -1.0)
    weights = torch.arange(rows.shape[1], dtype=torch.float64, device=rows.device).mul(1.7).cos() + 0.3
    return (rows @ weights).reshape(k, -1)


Looks = dict[tuple[str, int], list[_Look]]


def find_layouts(model: nn.Module, space: ParameterSpace, run: Callable[[list[int]], Any], n: int, *, confirm: bool = True) -> Layouts:
    """Of a batch of ``n`` examples, some of which are passed forward by ``run(rows)``.

    Where the size of a tensor changes with their number, there they are; and what is there has to be the examples, in their order: in
    another order of the batch, the same values in that order. Otherwise a model that sorts its examples, or puts them one after the other
    position by position, would have the gradients of one ascribed to another. Without ``confirm`` only sizes are looked at.
    """
    orders = ([0, 1], [2, 1, 0]) if n > 2 else ([0], [1, 0])
    few, many = _looks(model, space, run, orders, confirm and not model.training)
    layouts = {key: tuple(_moving(a, b, orders) for a, b in zip(few[key], many[key], strict=True)) for key in _common(few, many)}
    if not confirm:
        return layouts
    if not model.training:
        return {key: _confirmed(found, few[key], many[key], orders) for key, found in layouts.items()}
    # Dropout makes values differ: they are compared in eval mode, where that calls the same layers.
    modes = [(layer, layer.training) for layer in model.modules()]
    try:
        model.eval()
        few, many = _looks(model, space, run, orders, True)
    finally:
        for layer, training in modes:
            layer.training = training
    comparable = {key for key in _common(few, many) if len(few[key]) == len(layouts.get(key, ()))}
    return {key: _confirmed(found, few[key], many[key], orders) if key in comparable else found for key, found in layouts.items()}


def _looks(
    model: nn.Module, space: ParameterSpace, run: Callable[[list[int]], Any], orders: Sequence[list[int]], values: bool
) -> tuple[Looks, Looks]:
    found: list[Looks] = []
    layers = owners(model, space)
    for rows in orders:
        calls: dict[str, int] = {}
        seen: Looks = {}
        handles = [
            layer.register_forward_hook(_looker(name, calls, seen, len(rows), values), with_kwargs=True, prepend=True)
            for name, (layer, _) in layers.items()
        ]
        try:
            with torch.no_grad():
                run(rows)
        finally:
            for handle in handles:
                handle.remove()
        found.append(seen)
    return found[0], found[1]


def _looker(name: str, calls: dict[str, int], seen: Looks, k: int, values: bool) -> Callable[..., None]:
    def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call = calls[name] = calls.get(name, -1) + 1
        seen[name, call] = [_Look(t, k, values) for t in [*leaves_of(args, kwargs), *opened(output)[0]]]

    return hook


def _common(few: Looks, many: Looks) -> list[tuple[str, int]]:
    return [key for key in few if len(few[key]) == len(many.get(key, ()))]


def _moving(a: _Look, b: _Look, orders: Sequence[list[int]]) -> Layout:
    sizes = len(orders[0]), len(orders[1])
    for dim, (x, y) in enumerate(zip(a.shape, b.shape, strict=False)):
        if x != y:
            if (x, y) == sizes:
                return dim
            if dim == 0 and x * sizes[1] == y * sizes[0]:
                return "flat"
    return None


def _confirmed(found: tuple[Layout, ...], few: Sequence[_Look], many: Sequence[_Look], orders: Sequence[list[int]]) -> tuple[Layout, ...]:
    return tuple(layout if _agree(layout, a, b, orders) else MIXED for layout, a, b in zip(found, few, many, strict=True))


def _agree(layout: Layout, a: _Look, b: _Look, orders: Sequence[list[int]]) -> bool:
    """Whether the examples of both passes have the same values; where other sizes changed, too, as with padding, nobody knows."""
    first, second = a.values.get(layout), b.values.get(layout)
    if layout is None or first is None or second is None or first.shape[1] != second.shape[1]:
        return True
    if isinstance(layout, int) and a.shape[:layout] + a.shape[layout + 1 :] != b.shape[:layout] + b.shape[layout + 1 :]:
        return True
    off = float((first - second[[orders[1].index(row) for row in orders[0]]]).abs().max())
    rounding = (0.02 if a.half or b.half else 1e-4) * float(first.abs().max())
    return off <= 0.1 * float(first.max() - first.min()) + rounding
