r"""The standard type of the stage: many gradients in, one out.

Nearly every method of the field is of one of two forms: *weights* of the rows, found from the losses, from the Gramian
:math:`G_{ij} = \langle g_i, g_j \rangle` or from sizes of entries, so that the result is :math:`\sum_i w_i g_i`; or a rule for every
*coordinate*, which has to see the rows themselves. A method of the first kind writes :meth:`Aggregator.weights`, one of the second kind
:meth:`Aggregator.combine`; everything else is written here once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor, nn

from counterpoise._errors import bad_input, listing
from counterpoise._precision import single

from ._statistics import NEEDS, GradientStatistics
from ._tracer import Tracer

__all__ = ["Aggregator", "joined", "rows_of"]


class Aggregator(nn.Module):
    """Base of the aggregators: callable on a Jacobian (m, n), whose rows are gradients, with a result (n,).

    It is called like an aggregator of TorchJD, and can be given to ``torchjd.autojac.jac_to_grad``. What is kept between calls (moving
    averages, momenta, counters) lives in buffers, hence in ``state_dict()``.

    To write one, set ``needs`` and override :meth:`weights` or :meth:`combine`, and :meth:`finish` for what happens to the result. What is
    to be known at the next step goes through :meth:`keep` and :meth:`kept`.

    Attributes
    ----------
    needs : frozenset of str
        What has to be known about the rows, of "losses", "gramian", "rowstats", "rows" and "previous". With "rows", they are kept until
        they are combined; without it they need not exist all at once.
    update_every : int
        How many steps :func:`~counterpoise.gradients.backward` may go on with the same weights if its ``refresh_every`` is None.
    last : dict
        What a method says about its last step, for reports.

    Shapes
    ------
    Jacobian (m, n), m >= 1, of a floating dtype; output (n,) of the same dtype and device. Or a dict of (m, \\*shape) tensors, one for each
    parameter, such as ``torch.func.vmap(torch.func.grad(...))`` makes; output: a dict of (\\*shape) tensors. Half precision is computed in
    float32.

    Raises
    ------
    InputError
        If the shape or dtype is another, or if a row has a value that is not finite (the message names the row). The state has not moved
        then.

    Examples
    --------
    >>> class Louder(Aggregator):
    ...     '''Only the longest gradient.'''
    ...     needs = frozenset({"gramian"})
    ...     def weights(self, s):
    ...         return torch.nn.functional.one_hot(s.gramian.diagonal().argmax(), len(s)).double()
    >>> Louder()(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    tensor([0., 2.])
    """

    needs: frozenset[str] = frozenset({"rows"})
    update_every: int = 1

    def __init__(self) -> None:
        super().__init__()
        self.last: dict[str, Any] = {}
        self._lazy: set[str] = set()
        self._named: tuple[str, ...] = ()  # the losses of the steps so far
        self._tracer = Tracer()  # its random signs, once drawn

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        unknown = set(cls.needs) - NEEDS
        if unknown:
            bad_input(f"{cls.__name__}.needs", sorted(unknown)[0], "a subset of " + ", ".join(sorted(NEEDS)))

    @overload
    def forward(self, jacobian: Tensor) -> Tensor: ...
    @overload
    def forward(self, jacobian: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
    def forward(self, jacobian: Tensor | Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        rows, shapes = rows_of(jacobian)
        s = GradientStatistics.from_rows(rows, needs=self.needs, shapes=shapes)
        if "previous" in self.needs:
            traces = self._tracer.of_rows(rows, s.gramian.diagonal())
            s = replace(s, cross=self.cross(traces))
        weights = self.found_weights(s)
        combined = [one.to(part.dtype) for one, part in zip(self.combine_all(rows, weights, s), rows, strict=True)]
        if "previous" in self.needs:
            self.remember(traces)
        return joined(jacobian, combined, shapes)

    @property
    def label(self) -> str:
        """Its name in messages."""
        return type(self).__name__

    # ---- what a method overrides --------------------------------------------------------------------------------------------------------

    def weights(self, s: GradientStatistics) -> Tensor | None:
        """Weights (m,) of the rows, for methods that only weigh; None if :meth:`combine` has to see them. Called once per step."""
        return None

    def combine(self, rows: Tensor, slot: int, s: GradientStatistics) -> Tensor:
        """The result (n_p,) for the rows (m, n_p) of *one* parameter; ``slot`` is its number, a key for what is kept between steps."""
        raise NotImplementedError(f"{type(self).__name__} defines neither weights(s) nor combine(rows, slot, s).")

    def finish(self, combined: Tensor, slot: int, s: GradientStatistics) -> Tensor:
        """What becomes of the combined gradient (n_p,) of one parameter, such as a momentum. Called for slot 0, 1, ... once per step."""
        return combined

    def reset(self) -> None:
        """Forget the steps so far: all that :meth:`keep` has kept."""
        for name in self._lazy:
            delattr(self, name)
        self._lazy.clear()
        self._named = ()

    # ---- what is kept between steps -------------------------------------------------------------------------------------------------

    def keep(self, name: str, value: Tensor) -> Tensor:
        """Keep ``value`` between steps as a buffer: part of ``state_dict()``, and forgotten by :meth:`reset`."""
        if name in self._lazy:
            setattr(self, name, value)
        else:
            self.register_buffer(name, value)
            self._lazy.add(name)
        return value

    def kept(self, name: str, like: torch.Size | tuple[int, ...] | None = None) -> Tensor | None:
        """What was kept under ``name``, None before the first step.

        ``like`` is the shape it must have at this step; another number of groups or of entries is an error, since what was kept belongs to
        the groups and parameters of before.
        """
        value: Tensor | None = getattr(self, name, None) if name in self._lazy else None
        if value is not None and like is not None and tuple(value.shape) != tuple(like):
            bad_input(
                "gradients", f"losses or parameters for which {name} is {tuple(like)}", f"the {tuple(value.shape)} of the steps before",
                f"{self.label} remembers losses and parameters; after changing them, call reset().",
            )  # fmt: skip
        return value

    def cross(self, traces: Tensor) -> Tensor | None:
        """Inner products (m, m) of the rows of this step with those of the step before, from what :class:`Tracer` kept of both."""
        before = self.kept("previous_rows")
        if before is None or before.shape != traces.shape:
            return None
        return traces.double() @ before.to(traces.device).double().T

    def remember(self, traces: Tensor) -> None:
        """Keep the rows of this step, or their sketch, for :meth:`cross` of the next."""
        self.keep("previous_rows", traces)

    def check_order(self, names: tuple[str, ...]) -> None:
        """Refuse losses that come in another order than before: what is kept belongs to places in it."""
        if self._lazy and names != self._named and set(names) == set(self._named):
            bad_input(
                "losses", f"the order {listing(names)}", f"that of the steps before, {listing(self._named)}", f"{self.label} remembers."
            )
        self._named = names

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        # What is kept comes into being with the first step, so that a new object has none of it.
        given = {key[len(prefix) :] for key in state_dict if key.startswith(prefix) and "." not in key[len(prefix) :]} - {"_extra_state"}
        for name in sorted(self._lazy - given):
            delattr(self, name)
            self._lazy.discard(name)
        for name in sorted(given - set(self._buffers) - set(self._parameters)):
            self.keep(name, torch.empty_like(state_dict[prefix + name]))
        for name in sorted(given & self._lazy):
            if self._buffers[name] is None or getattr(self, name).shape != state_dict[prefix + name].shape:
                setattr(self, name, torch.empty_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def gramian(self, s: GradientStatistics) -> Tensor:
        """The Gramian (m, m) to weigh by, float64: with ``self.denoise`` that without sampling noise, its negative eigenvalues set to 0."""
        if not getattr(self, "denoise", False):
            return s.gramian
        if s.gramian_unbiased is None:
            bad_input(
                "denoise", True, "gradients in at least two parts, which tell signal from noise",
                "Use an Accumulator over several micro-batches, or several processes; or leave denoise=False.",
            )  # fmt: skip
        values, vectors = torch.linalg.eigh(s.gramian_unbiased)
        positive: Tensor = (vectors * values.clamp(min=0)) @ vectors.T
        return positive

    # ---- one step, for `forward` and for `backward` ---------------------------------------------------------------------------------

    def found_weights(self, s: GradientStatistics) -> Tensor | None:
        """:meth:`weights`, checked."""
        weights = self.weights(s)
        if weights is not None and (weights.shape != (len(s),) or not bool(torch.isfinite(weights).all())):
            bad_input(
                f"{self.label}.weights", f"shape {tuple(weights.shape)}, {weights.tolist()}", f"{len(s)} finite weights",
                "Statistics that `needs` does not name are nan.",
            )  # fmt: skip
        return weights

    def combine_all(self, rows: Iterable[Tensor], weights: Tensor | None, s: GradientStatistics) -> Iterator[Tensor]:
        """The results for all parameters, one after the other, in single precision at least."""
        for slot, part in enumerate(rows):
            exact = single(part)
            one = self.combine(exact, slot, s) if weights is None else weights.to(exact) @ exact
            yield self.finish(one, slot, s)


def rows_of(jacobian: Tensor | Mapping[str, Tensor]) -> tuple[list[Tensor], list[torch.Size]]:
    """The rows as one matrix (m, n_p) for each parameter, and the shapes of the parameters."""
    if not isinstance(jacobian, (Tensor, Mapping)):
        bad_input("jacobian", type(jacobian).__name__, "a tensor (m, n), or a dict of tensors (m, *shape)")
    if isinstance(jacobian, Tensor) and jacobian.ndim != 2:
        bad_input(
            "jacobian", f"shape {tuple(jacobian.shape)}", "a matrix (m, n) whose rows are gradients",
            "Parameters with shapes of their own go into a dict: {name: (m, *shape)}.",
        )  # fmt: skip
    parts = {"jacobian": jacobian} if isinstance(jacobian, Tensor) else dict(jacobian)
    if not parts:
        bad_input("jacobian", "an empty dict", "at least one parameter")
    counts = set()
    for name, part in parts.items():
        if not part.is_floating_point():
            bad_input(name, f"a tensor of {part.dtype}", "floating-point gradients")
        if part.ndim == 0 or not len(part):
            bad_input(name, f"shape {tuple(part.shape)}", "at least one row")
        counts.add(len(part))
    if len(counts) > 1:
        bad_input("jacobian", f"parameters with {sorted(counts)} rows", "the same number of rows m in each")
    return [part.reshape(len(part), -1) for part in parts.values()], [part.shape[1:] for part in parts.values()]


def joined(jacobian: Tensor | Mapping[str, Tensor], combined: list[Tensor], shapes: list[torch.Size]) -> Tensor | dict[str, Tensor]:
    """The combined rows in the form of the Jacobian: one tensor (n,), or a dict of (*shape) tensors."""
    if isinstance(jacobian, Tensor):
        return combined[0]
    return {name: one.reshape(shape) for name, one, shape in zip(jacobian, combined, shapes, strict=True)}
