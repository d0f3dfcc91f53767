r"""The standard type of the stage: many gradients in, one out.

Nearly every method of the field is of one of two forms: *weights* of the rows, found from the losses, from the Gramian
:math:`G_{ij} = \langle g_i, g_j \rangle` or from sizes of entries, so that the result is :math:`\sum_i w_i g_i`; or a rule for every
*coordinate*, which has to see the rows themselves. A method of the first kind writes :meth:`Aggregator.weights`, one of the second kind
:meth:`Aggregator.combine`; everything else is written here once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import overload

import torch
from torch import Tensor, nn

from counterpoise._errors import bad_input
from counterpoise._order_statistics import single

from ._statistics import NEEDS, GradientStatistics

__all__ = ["Aggregator", "joined", "rows_of"]


class Aggregator(nn.Module):
    """Base of the aggregators: callable on a Jacobian (m, n), whose rows are gradients, with a result (n,).

    It is called like an aggregator of TorchJD, and can be given to ``torchjd.autojac.jac_to_grad``. What is kept between calls (moving
    averages, momenta, counters) lives in buffers, hence in ``state_dict()``.

    To write one, set ``needs`` and override :meth:`weights` or :meth:`combine`.

    Attributes
    ----------
    needs : frozenset of str
        What has to be known about the rows, of "losses", "gramian", "rowstats", "rows" and "previous". With "rows", they are kept until
        they are combined; without it they need not exist all at once.

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
        weights = self.weights(s)
        if weights is not None:
            self._check(weights, s)
        combined = []
        for slot, part in enumerate(rows):
            exact = single(part)
            one = self.combine(exact, slot, s) if weights is None else weights.to(exact) @ exact
            combined.append(one.to(part.dtype))
        return joined(jacobian, combined, shapes)

    def weights(self, s: GradientStatistics) -> Tensor | None:
        """Weights (m,) of the rows, for methods that only weigh; None if :meth:`combine` has to see them."""
        return None

    def combine(self, rows: Tensor, slot: int, s: GradientStatistics) -> Tensor:
        """The result (n_p,) for the rows (m, n_p) of *one* parameter; ``slot`` is its number, a key for what is kept between steps."""
        raise NotImplementedError(f"{type(self).__name__} defines neither weights(s) nor combine(rows, slot, s).")

    def reset(self) -> None:
        """Forget the steps so far. A method without memory has nothing to forget."""

    def _check(self, weights: Tensor, s: GradientStatistics) -> None:
        if weights.shape != (len(s),) or not bool(torch.isfinite(weights).all()):
            bad_input(
                f"{type(self).__name__}.weights", f"shape {tuple(weights.shape)}, {weights.tolist()}", f"{len(s)} finite weights",
                "Statistics that `needs` does not name are nan.",
            )  # fmt: skip


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
