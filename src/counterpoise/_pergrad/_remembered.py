"""What was found out about a model by running it, kept for as long as the model is the same."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

__all__ = ["kind_of_batch", "remembered"]

T = TypeVar("T")
KEPT = 8  # findings for one model
PLAIN = (bool, int, float, str, bytes, type(None))

_known: WeakKeyDictionary[nn.Module, OrderedDict[Hashable, Any]] = WeakKeyDictionary()


def remembered(model: nn.Module, key: Hashable, find: Callable[[], T]) -> T:
    """``find()``, or what it found before for this ``key`` and the model as it is now.

    The model as it is now: its layers and their types, modes, plain attributes, hooks and methods of their own, and the shapes of their
    parameters - all that a forward pass usually depends on, apart from values.
    """
    found = _known.setdefault(model, OrderedDict())
    whole = (key, _as_it_is(model))
    if whole in found:
        found.move_to_end(whole)
        known: T = found[whole]
        return known
    found[whole] = result = find()
    while len(found) > KEPT:
        found.popitem(last=False)
    return result


def kind_of_batch(batch: Any) -> Hashable:
    """Types and shapes in a batch, apart from the first dimension of its tensors; what is no tensor by its type."""
    return tuple((leaf.dtype, leaf.shape[1:], leaf.device) if isinstance(leaf, Tensor) else type(leaf) for leaf in tree_leaves(batch))


def _as_it_is(model: nn.Module) -> Hashable:
    return tuple(
        (
            name,
            type(layer),
            len(layer._forward_hooks) + len(layer._forward_pre_hooks),
            tuple((key, value) for key, value in vars(layer).items() if isinstance(value, PLAIN) or _plain_tuple(value)),
            tuple((key, id(value)) for key, value in vars(layer).items() if callable(value) and not isinstance(value, nn.Module)),
            tuple((key, None if p is None else (p.shape, p.dtype)) for key, p in layer._parameters.items()),
        )
        for name, layer in model.named_modules()
    )


def _plain_tuple(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(item, PLAIN) for item in value)
