"""Hooks on the layers of a model: what they saw goes forward, what came back goes to the collector, layer by layer as backward proceeds.

Nothing is added to the computation: with frozen parameters a backward pass forms no weight gradients at all, only those of the
activations, which is all that is needed here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from counterpoise._precision import HALF

from ._attention import replay_attention
from ._collect import Collector, ParameterSpace
from ._layouts import Layouts, fits, guess_layout, leaves_of, opened, owners
from ._recurrent import is_recurrent, replay
from ._rules import Layout, Plan, examples_first
from ._state import exact_backends
from ._uses import LocalUse, OuterUse, Use, hand_in_together

__all__ = ["FAILURES", "StaleInputError", "Watch"]

# What torch raises for what it cannot do, and models for tensors of another shape than they take.
FAILURES = (RuntimeError, NotImplementedError, AttributeError, TypeError, ValueError, IndexError, AssertionError)


class StaleInputError(Exception):
    """An input was changed in place after its layer had used it, so it has to be copied."""


class _Anchor(torch.autograd.Function):
    """Makes a tensor part of the graph without copying it; in-place operations on the result stay allowed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, root: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        ctx.dtype = root.dtype
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad.new_zeros((), dtype=ctx.dtype)


class _Unit:
    """Layers that share parameters, and the calls of them in one forward pass."""

    def __init__(self) -> None:
        self.expected = 0
        self.arrived: list[Use] = []
        self.late: list[Callable[[], list[Use]]] = []

    def clear(self) -> None:
        self.expected = 0
        self.arrived, self.late = [], []


class Watch:
    """Watches a model's layers; ``collector`` and ``n`` are set for each batch, None switches the hooks off.

    ``broken`` collects the places of parameters whose gradients are not to be trusted. ``passive`` never touches the forward pass, which
    somebody trains with; what would need that is broken then. ``on_arrival`` is called in the backward pass.
    """

    def __init__(
        self, model: nn.Module, space: ParameterSpace, layouts: Layouts | None = None, *, copy: bool = False, passive: bool = False
    ) -> None:
        self.space = space
        self.passive = passive
        self.layouts = layouts
        self.copy = copy
        self.collector: Collector | None = None
        self.n = 0
        self.stale = False  # an input was changed in place after its use (passive only: otherwise that is an error)
        self.scale = 1.0  # by which a gradient is multiplied to be that of the sum of the losses
        self.broken: set[int] = set()
        self.half = False  # whether gradients in half precision came back
        self.on_arrival: Callable[[], None] = lambda: None
        self.root = torch.zeros((), device=space.device, dtype=space.dtype, requires_grad=True)
        self._calls: dict[str, int] = {}
        self._known_calls = Counter(name for name, _ in layouts or ())
        self._handles: list[Any] = []
        self._states: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._units: dict[str, _Unit] = {}
        self._layers = owners(model, space)
        owner: dict[int, _Unit] = {}
        for name, (_, plan) in self._layers.items():
            shared = [owner[place] for place in plan.places.values() if place in owner]
            unit = shared[0] if shared else _Unit()
            for other in shared[1:]:  # a layer that ties two units together
                for key, value in list(self._units.items()):
                    if value is other:
                        self._units[key] = unit
            self._units[name] = unit
            owner.update(dict.fromkeys(plan.places.values(), unit))

    def __enter__(self) -> Watch:
        for name, (layer, plan) in self._layers.items():
            # Before the user's own hooks, which may return something else than the layer does.
            self._handles.append(layer.register_forward_hook(self._hook(name, plan), with_kwargs=True, prepend=True))
            if plan.rule is None:
                self._handles.append(layer.register_forward_pre_hook(self._remember))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.collector = None
        self._clear()

    def begin(self, collector: Collector, n: int) -> None:
        """Before the forward pass of a batch of n examples."""
        self._clear()
        self.collector, self.n = collector, n

    def finish(self) -> None:
        """After its backward pass."""
        for unit in set(self._units.values()):
            for late in unit.late:
                try:
                    unit.arrived += late()
                except FAILURES:
                    self.broken |= self._places(unit)
            self._hand_in(unit)
        if self.collector is not None:
            self.collector.finish()
        self._clear()
        self.collector = None

    def _remember(self, layer: nn.Module, _: Any) -> None:
        """The random state before a layer that is run once more later: attention then drops the same, for others it is not to change."""
        if self.collector is not None and layer.training:
            self._states[id(layer)] = self._random_state()

    def _random_state(self) -> tuple[Tensor, Tensor | None]:
        cuda = self.space.device.type == "cuda"
        return torch.get_rng_state(), torch.cuda.get_rng_state(self.space.device) if cuda else None

    def _places(self, unit: _Unit) -> set[int]:
        return {place for name, other in self._units.items() if other is unit for place in self._layers[name][1].places.values()}

    def _clear(self) -> None:
        self._calls.clear()
        for unit in self._units.values():
            unit.clear()

    # -- forward ------------------------------------------------------------------------------------------------------------------------

    def _hook(self, name: str, plan: Plan) -> Callable[..., Any]:
        unit = self._units[name]

        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if self.collector is None:
                return None
            call = self._calls[name] = self._calls.get(name, -1) + 1
            if not torch.is_grad_enabled():
                return None
            seen = leaves_of(args, kwargs)
            out, rebuild = opened(output)
            layouts = self._layouts_of(name, call, [*seen, *out])
            replayed = is_recurrent(layer)  # which knows by itself where its examples are
            if layouts is None and not replayed:
                self.broken |= set(plan.places.values())
                return None
            layouts = layouts or (0,) * (len(seen) + len(out))
            inside, raw = layouts[: len(seen)], layouts[len(seen) :]
            outside = [0 if replayed else layout for layout in raw]
            if self.passive and any(outside[i] is None or not t.requires_grad for i, t in enumerate(out) if t.is_floating_point()):
                self.broken |= set(plan.places.values())
                return None
            for i, t in enumerate(out):
                if not t.is_floating_point() and not t.is_complex():
                    continue
                if outside[i] is None and t.ndim:
                    # The same for all examples so far: give each its own, so that what comes back is told apart.
                    t, outside[i] = examples_first(t, None, self.n).clone(), 0
                out[i] = t if t.requires_grad else self._anchored(t)
            simple = plan.rule is not None and len(out) == 1 and len(seen) == 1
            if simple and plan.rule is not None:
                x = seen[0].detach()
                x = x.clone() if self.copy else x
                ready = plan.rule(layer, plan.places, x, inside[0], self.n)
                if ready is not None:
                    unit.expected += 1
                    self._await(unit, ready, x, out[0], outside[0])
                    return None if self.passive else rebuild(out)
            self._await_all(unit, layer, plan, args, kwargs, seen, inside, out, raw, outside)
            return None if self.passive else rebuild(out)

        return hook

    def _layouts_of(self, name: str, call: int, tensors: Sequence[Tensor]) -> tuple[Layout, ...] | None:
        """Where the examples are in the tensors of one call; None if they are not where they were in other calls."""
        if self.layouts is None:
            return tuple(guess_layout(t, self.n) for t in tensors)
        calls = self._known_calls.get(name, 1)  # recomputed layers of a checkpoint are called more often
        known = self.layouts.get((name, call % calls), ())
        there = len(known) == len(tensors) and all(fits(t, layout, self.n) for t, layout in zip(tensors, known, strict=True))
        return known if there else None

    def _anchored(self, t: Tensor) -> Tensor:
        if t.is_leaf and t._is_view():
            t = t.clone()
        anchored: Tensor = _Anchor.apply(t.detach(), self.root)  # type: ignore[no-untyped-call]
        return anchored

    def _await(self, unit: _Unit, ready: Callable[[Tensor, Layout], Use], x: Tensor, out: Tensor, layout: Layout) -> None:
        held = [(ready, x, x._version)]  # let go on arrival: the graph would hold the inputs of all layers until backward is over
        del ready, x

        def arrive(grad: Tensor) -> None:
            if self.collector is None or not held:
                return
            ready, x, version = held.pop()
            self.on_arrival()
            if x._version != version:
                if not self.passive:
                    raise StaleInputError
                self.stale = True
                return
            self.half |= grad.dtype in HALF
            with torch.no_grad():
                try:
                    unit.arrived.append(ready(grad.detach() * self.scale if self.scale != 1.0 else grad.detach(), layout))
                except FAILURES:
                    self.broken |= self._places(unit)
                    return
                if len(unit.arrived) == unit.expected and not unit.late:
                    self._hand_in(unit)

        out.register_hook(arrive)  # type: ignore[no-untyped-call]

    def _await_all(
        self,
        unit: _Unit,
        layer: nn.Module,
        plan: Plan,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        seen: Sequence[Tensor],
        inside: Sequence[Layout],
        out: Sequence[Tensor],
        raw: Sequence[Layout],
        outside: Sequence[Layout],
    ) -> None:
        """Layers without a rule: the gradients of all their outputs are awaited, and their own backward is run at the end."""
        grads: list[Tensor | None] = [None] * len(out)
        states = self._states.pop(id(layer), None)
        if states is not None and not _same(states, self._random_state()) and not isinstance(layer, nn.MultiheadAttention):
            self.broken |= set(plan.places.values())  # it would draw other random numbers when run once more
            return
        if self.copy:
            copies = {id(t): t.detach().clone() for t in seen}
            args, kwargs = tree_map(lambda leaf: copies.get(id(leaf), leaf), (args, kwargs))
            seen = leaves_of(args, kwargs)
        versions = [t._version for t in seen]

        def keeper(i: int) -> Callable[[Tensor], None]:
            def keep(grad: Tensor) -> None:
                self.on_arrival()
                self.half |= grad.dtype in HALF
                scaled = grad.detach() * self.scale if self.scale != 1.0 else grad.detach()
                before = grads[i]
                grads[i] = scaled if before is None else before + scaled

            return keep

        for i, t in enumerate(out):
            if t.requires_grad:
                t.register_hook(keeper(i))  # type: ignore[no-untyped-call]

        def late() -> list[Use]:
            if [t._version for t in seen] != versions:
                if not self.passive:
                    raise StaleInputError
                self.stale = True
                return []
            if all(g is None for g in grads):
                return []
            if is_recurrent(layer):
                return replay(layer, plan.places, args, grads)
            if isinstance(layer, nn.MultiheadAttention):
                with _random_state(states):
                    uses = replay_attention(layer, plan.places, args, kwargs, grads)
                if uses is not None:
                    return uses
            return [self._local(layer, plan, args, kwargs, inside, grads, raw, outside)]

        unit.late.append(late)

    # -- backward -----------------------------------------------------------------------------------------------------------------------

    def _hand_in(self, unit: _Unit) -> None:
        uses, collector = unit.arrived, self.collector
        unit.arrived, unit.late, unit.expected = [], [], 0
        if not uses or collector is None:
            return
        places = {place for use in uses for place in use.places}
        self.broken |= places & collector.seen
        collector.seen |= places
        try:
            self._combine(uses, places, collector)
        except FAILURES:  # a layer that torch cannot differentiate in this way
            self.broken |= places

    def _combine(self, uses: list[Use], places: set[int], collector: Collector) -> None:
        if len(uses) == 1:
            uses[0].hand_in(collector)
            return
        joined = _along_positions(uses)
        if joined is not None:
            joined.hand_in(collector)
            return
        # Only what is used more than once has to be added up first.
        counts = {place: sum(place in use.places for use in uses) for place in places}
        alone = [use for use in uses if all(counts[place] == 1 for place in use.places)]
        for use in alone:
            use.hand_in(collector)
        rest = [use for use in uses if use not in alone]
        if rest:
            hand_in_together(rest, collector)

    def _local(
        self,
        layer: nn.Module,
        plan: Plan,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inside: Sequence[Layout],
        grads: Sequence[Tensor | None],
        raw: Sequence[Layout],
        outside: Sequence[Layout],
    ) -> Use:
        leaves, spec = tree_flatten((args, kwargs))
        tensors = [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]
        at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        wanted = [i for i, g in enumerate(grads) if g is not None]
        parameters = {name: self.space.tensors[place].detach() for name, place in plan.places.items()}

        def outputs(own: Mapping[str, Tensor], *xs: Tensor) -> tuple[Tensor, ...]:
            """Of one example, which comes without its dimension."""
            filled = list(leaves)
            for i, x, layout in zip(at, xs, inside, strict=True):
                filled[i] = x.unsqueeze(layout) if isinstance(layout, int) else x
            a, k = tree_unflatten(filled, spec)
            found, _ = opened(torch.func.functional_call(layer, dict(own), a, k))
            return tuple(found[i].select(dim, 0) if isinstance(dim := raw[i], int) else found[i] for i in wanted)

        def pulled(*both: Tensor) -> dict[str, Tensor]:
            xs, bs = both[: len(tensors)], both[len(tensors) :]
            made: Any = torch.func.vjp(lambda own: outputs(own, *xs), parameters)
            out, pull = made
            bs = tuple(b.to(o.dtype).reshape(o.shape) for b, o in zip(bs, out, strict=True))
            return dict(pull(bs)[0])

        def pull(rows: slice) -> dict[int, Tensor]:
            parts = [_some(x, layout, rows, self.n) for x, layout in zip(tensors, inside, strict=True)]
            bs = [_some(g, outside[i], rows, self.n) for i, g in enumerate(grads) if g is not None]
            dims = tuple(0 if isinstance(layout, int) or layout == "flat" else None for layout in inside) + (0,) * len(bs)
            keep, self.collector = self.collector, None  # the layer's own hooks see this run, too
            try:
                with torch.no_grad(), exact_backends(transforms=True):  # of the outer graph; the transforms have their own
                    gradients = torch.func.vmap(pulled, in_dims=dims, randomness="same")(*parts, *bs)
            finally:
                self.collector = keep
            return {place: flat(gradients[name]) for name, place in plan.places.items()}

        row_bytes = 4 * sum(p.numel() * p.element_size() for p in parameters.values())
        return LocalUse(tuple(plan.places.values()), pull, row_bytes)


def _same(a: tuple[Tensor, Tensor | None], b: tuple[Tensor, Tensor | None]) -> bool:
    return torch.equal(a[0], b[0]) and (a[1] is None or b[1] is None or torch.equal(a[1], b[1]))


@contextmanager
def _random_state(states: tuple[Tensor, Tensor | None] | None) -> Iterator[None]:
    if states is None:
        yield
        return
    with torch.random.fork_rng([torch.cuda.current_device()] if states[1] is not None else []):
        torch.set_rng_state(states[0])
        if states[1] is not None:
            torch.cuda.set_rng_state(states[1])
        yield


def flat(g: Tensor) -> Tensor:
    """(n, N) of real numbers."""
    return torch.view_as_real(g).flatten(1) if g.is_complex() else g.flatten(1)


def _along_positions(uses: list[Use]) -> OuterUse | None:
    """A linear layer called several times is one call with more positions."""
    first = uses[0]
    if not all(isinstance(use, OuterUse) and use.places == first.places for use in uses) or not isinstance(first, OuterUse):
        return None
    same = [use for use in uses if isinstance(use, OuterUse)]
    if first.bias_of is not first.b:
        return None
    return OuterUse(first.weight, first.bias, torch.cat([use.a for use in same], dim=1), torch.cat([use.b for use in same], dim=1))


def _some(x: Tensor, layout: Layout, rows: slice, n: int) -> Tensor:
    """The examples ``rows``, first; tensors without examples as they are."""
    return x if layout is None else examples_first(x, layout, n)[rows]
