r"""Groups of examples under one loss: the mean of each class, domain or client, with a graph, marked as what it is.

What is unbalanced: one mean over a batch follows the groups with many examples. With group means
:math:`L_k = \frac{1}{n_k} \sum_{b : \kappa(b) = k} \ell_b` as the losses, an aggregator decides how much each of them counts. All
come from one forward pass, so their gradients do, too: the mark lets :func:`~counterpoise.gradients.backward` find their inner products in
one backward pass, however many groups there are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from counterpoise._errors import bad_input, check_range
from counterpoise._precision import single
from counterpoise.groups import Groups

__all__ = ["GroupLoss", "Members", "members_of"]

MARK = "_counterpoise_members"
LABELS = "Groups.from_labels(labels) numbers the labels of a data set; pass groups.ids[batch]."


class GroupLoss(nn.Module):
    r"""Mean loss of each group of a batch, shape (m,).

    .. math:: L_k = \frac{1}{n_k} \sum_{b : \kappa(b) = k} \ell_b, \qquad L_k = 0 \text{ if } n_k = 0

    **Use it when** the parts whose gradients are to be combined are examples of one batch under one loss. Losses of several tasks or terms
    are simply given to :func:`~counterpoise.gradients.backward` as they are.

    Parameters
    ----------
    loss : callable with ``reduction="none"``
        Called as ``loss(output, target)``; gives one loss per example, (b,) or (b, ...). Further dimensions are averaged over.
    n_groups : int >= 1 or Groups
        Number of groups m, or the :class:`counterpoise.Groups` of the data set, whose names then stand in reports. A group may have no
        example in a batch: its loss is 0 there, so that ``losses.mean()`` is not the mean over the groups that are present.
    allow_coupled : bool, default False
        Whether examples may depend on each other, as batch normalization in training mode makes them: the gradient of one group then
        runs through the examples of the others. It is still that of the group's mean, exactly, but for the layers before such a one it
        takes a backward pass for each group.

    Shapes
    ------
    output and target as the loss takes them, b examples in the first dimension; group (b,): integers in 0..m-1, or -1 for examples in
    none, which then count nowhere, such as ``groups.ids[batch]``; or a :class:`counterpoise.Groups` of the batch. Output: (m,). Half
    precision is computed, and returned, in float32.

    Raises
    ------
    InputError
        If the loss is reduced, lengths differ, an id is out of range, or ``group`` is not a vector of integers.

    Examples
    --------
    >>> group_loss = GroupLoss(nn.MSELoss(reduction="none"), n_groups=3)
    >>> group_loss(torch.tensor([1.0, 2.0, 5.0, 9.0]), torch.zeros(4), torch.tensor([0, 0, 2, -1]))
    tensor([ 2.5000,  0.0000, 25.0000])
    """

    def __init__(self, loss: Callable[..., Tensor], n_groups: int | Groups, *, allow_coupled: bool = False) -> None:
        super().__init__()
        if not callable(loss):
            bad_input("loss", type(loss).__name__, 'a loss, such as torch.nn.CrossEntropyLoss(reduction="none")')
        if isinstance(loss, type):
            bad_input("loss", f"the class {loss.__name__}", f'an object, {loss.__name__}(reduction="none")')
        if (reduction := getattr(loss, "reduction", "none")) != "none":
            bad_input("loss", f"{type(loss).__name__} with reduction={reduction!r}", 'a loss with reduction="none"')
        names = n_groups.names if isinstance(n_groups, Groups) else None
        if not isinstance(n_groups, Groups):
            check_range("n_groups", n_groups, low=1, integer=True)
        self.loss = loss
        self.names: tuple[str, ...] = tuple(str(i) for i in range(int(n_groups))) if names is None else names  # type: ignore[arg-type]
        self.n_groups = len(self.names)
        self.allow_coupled = allow_coupled
        self._layouts: Layouts = OrderedDict()

    def forward(self, output: Any, target: Any, group: Tensor | Groups | Any) -> Tensor:
        per_example = _per_example(self.loss(output, target))
        ids = self._checked(group, len(per_example), per_example.device)
        counts = torch.bincount(ids + 1, minlength=self.n_groups + 1)[1:]
        inside = ids >= 0
        sums = per_example.new_zeros(self.n_groups).index_add(0, ids.clamp(min=0), per_example.where(inside, 0.0))
        losses = sums / counts.clamp(min=1)
        members = Members(per_example, ids, counts, self.allow_coupled, self._layouts, losses._version, self.names)
        setattr(losses, MARK, members)
        return losses

    def _checked(self, group: Any, b: int, device: torch.device) -> Tensor:
        """Group ids (b,), int64."""
        if isinstance(group, Groups):
            if len(group.names) != self.n_groups:
                bad_input(
                    "group", f"{len(group.names)} groups", f"the {self.n_groups} groups of n_groups",
                    "Make Groups once for the data set, and pass groups.ids[batch].",
                )  # fmt: skip
            group = group.to_torch()
        try:
            ids = group.detach() if isinstance(group, Tensor) else torch.as_tensor(np.array(group))
        except (TypeError, ValueError, RuntimeError):
            bad_input("group", type(group).__name__, "a tensor of group ids, shape (b,)", LABELS)
        if ids.ndim != 1:
            bad_input("group", f"shape {tuple(ids.shape)}", f"one id per example, shape ({b},)")
        if len(ids) and (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool):
            bad_input("group", f"a tensor of {ids.dtype}", "integer ids", LABELS)
        if len(ids) != b:
            bad_input(
                "group", f"{len(ids)} ids for {b} losses", "one id for each loss of the batch",
                "The first dimension of the losses is that of the examples; with a data set's Groups, take the ids of the batch.",
            )  # fmt: skip
        ids = ids.to(device=device, dtype=torch.int64)
        if b:
            low, high = (int(x) for x in torch.stack(ids.aminmax()).tolist())
            if low < -1 or high >= self.n_groups:
                bad_input("group", high if high >= self.n_groups else low, f"ids in 0..{self.n_groups - 1}, or -1 for none")
        return ids

    def extra_repr(self) -> str:
        return f"n_groups={self.n_groups}" + (", allow_coupled=True" if self.allow_coupled else "")


# For each graph that was seen, where the examples are in its tensors: (node, slot) -> rows from one example to the next, None if nowhere.
Layouts = OrderedDict[bytes, dict[tuple[int, int], int | None]]


@dataclass(frozen=True, eq=False)
class Members:
    """What group losses are made of: the losses (b,) of the examples with their graph, group ids (b,), and examples per group (m,)."""

    per_example: Tensor
    group: Tensor
    counts: Tensor
    allow_coupled: bool
    layouts: Layouts
    version: int
    names: tuple[str, ...]

    def coefficients(self) -> Tensor:
        """The weight (b,) of each example in the sum of the group losses: 1 / count of its group, 0 for those in none."""
        share = 1 / self.counts.clamp(min=1).to(self.per_example.dtype)
        return share[self.group.clamp(min=0)].where(self.group >= 0, 0.0)


def members_of(losses: Tensor) -> Members | None:
    """What ``losses`` are made of, if they are just as :class:`GroupLoss` returned them; None for any other tensor."""
    members: Members | None = getattr(losses, MARK, None)
    if members is None or losses._version != members.version or losses.shape != members.counts.shape:
        return None
    return members


def _per_example(losses: Any) -> Tensor:
    """One loss per example, (b,), in single precision at least."""
    if not isinstance(losses, Tensor) or not losses.is_floating_point():
        found = f"a tensor of {losses.dtype}" if isinstance(losses, Tensor) else type(losses).__name__
        bad_input("loss", f"a loss that returns {found}", "one that returns a tensor of floating-point losses")
    if losses.ndim == 0:
        bad_input("loss", "a loss that returns a scalar", "one loss for each example", 'Most losses do so with reduction="none".')
    each = single(losses)
    return each.flatten(1).mean(dim=1) if each.ndim > 1 else each
