"""Passes over one batch that differ in the parameters of one layer: what is over before that layer begins runs once.

The hidden states below the last attention of a language model, say, are the same whichever way its value projection is moved. A first pass
keeps the results of the modules that it has called once and left before any of the moved parameters were used; later passes are handed
these results. Of a module that lies in another one, the outer one's result is enough. No module has to be named or cut out: each is called
as it always is, by the model's own forward, hooks included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["Prefix"]

PLAIN = (bool, int, float, str, bytes, type(None))
Forward = Callable[..., Any]
Versions = list[tuple[int, int]]


class Prefix:
    """What a model computes before it uses any of the parameters ``moved``. To be used without gradients."""

    def __init__(self, model: nn.Module, moved: Sequence[Tensor]) -> None:
        wanted = {id(tensor) for tensor in moved}
        self._modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
        self._users = {module for module in self._modules if any(id(p) in wanted for p in module._parameters.values())}
        # A module may use a parameter that lies further inside without calling what holds it, as nn.MultiheadAttention does.
        self._around = {module for module in self._modules if any(id(p) in wanted for p in module.parameters())}
        self._results: dict[nn.Module, Any] = {}

    def __len__(self) -> int:
        """Modules that do not run again."""
        return len(self._results)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """The one pass in here is that whose results are kept."""
        kept: list[tuple[nn.Module, Any, Versions]] = []
        calls: Counter[nn.Module] = Counter()
        begun = False

        def recording(module: nn.Module, forward: Forward) -> Forward:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal kept, begun
                calls[module] += 1
                begun = begun or module in self._users
                if begun:
                    return forward(*args, **kwargs)
                outside, kept = kept, []
                before = _versions((args, kwargs))
                result = forward(*args, **kwargs)
                inside, kept = kept, outside
                begun = begun or module in self._around
                # What changes its input has to run; its parts need not. The same for what contains the parameters.
                if begun or not _can_be_kept(result) or _versions((args, kwargs)) != before:
                    kept += inside
                else:
                    kept.append((module, _same_tensors(result), _versions(result)))
                return result

            return call

        with _replaced(self._modules, recording):
            yield
        # A result that was changed in place afterwards is no longer what the module gave.
        self._results = {m: result for m, result, before in kept if begun and calls[m] == 1 and _versions(result) == before}

    def forget(self) -> None:
        """From now on everything runs."""
        self._results = {}

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Passes in here do not run what is known."""
        with _replaced(list(self._results), lambda module, forward: lambda *args, **kwargs: _same_tensors(self._results[module])):
            yield


@contextmanager
def _replaced(modules: Sequence[nn.Module], make: Callable[[nn.Module, Forward], Forward]) -> Iterator[None]:
    """Meanwhile these modules have another ``forward``. Their hooks run as ever, before and after it."""
    own = [(module, vars(module).get("forward")) for module in modules]
    for module in modules:
        vars(module)["forward"] = make(module, module.forward)
    try:
        yield
    finally:
        for module, forward in own:
            if forward is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = forward


def _same_tensors(tree: Any) -> Any:
    """In lists and dictionaries of their own, which may be written to."""
    return tree_map(lambda leaf: leaf, tree)


def _versions(tree: Any) -> Versions:
    """Which tensors these are, and how often each has been changed in place."""
    return [(id(leaf), leaf._version) for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and not leaf.is_inference()]


def _can_be_kept(result: Any) -> bool:
    """Not where it holds objects of which nobody knows who changes them, such as a cache of keys and values."""
    leaves = tree_leaves(result)
    return all(isinstance(leaf, PLAIN) or (isinstance(leaf, Tensor) and not leaf.is_inference()) for leaf in leaves)
