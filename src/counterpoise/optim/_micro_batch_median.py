r"""Median of micro-batch gradients, coordinate by coordinate (Zielinski, Krishnan and Chatterjee 2020, arXiv:2003.07422).

What is unbalanced: a few loud examples can hold a coordinate of the mean gradient on their own. They are all in one micro-batch of three,
or in few of k, so the median over micro-batches passes them over:

.. math:: d_p = \mathrm{median}(G_{1p}, \dots, G_{kp})

with the mean gradients :math:`G_j` of the micro-batches. No gradients of single examples are needed, hence any network will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from counterpoise._errors import bad_input, check_range
from counterpoise._order_statistics import median

from ._wrapper import Wrapper

__all__ = ["MicroBatchMedian", "median_of"]

KEPT = "micro_batches"  # key of the kept gradients in the state of a parameter


class MicroBatchMedian(Wrapper):
    r"""Any optimizer, stepped with the coordinate-wise median of the last k gradients.

    Every call of :meth:`step` takes ``.grad`` as one micro-batch. The base optimizer steps at every k-th call with the median of these k
    ("M3" for k = 3), or, with ``rolling=True``, at every call with the median of the last k (fewer at the start): "RM3", without extra
    passes, but with gradients of older parameters. After a step of the base optimizer, ``.grad`` holds the median.

    Call ``zero_grad()`` before *every* micro-batch: a sum is not a micro-batch of its own. A learning-rate scheduler is given this
    optimizer; it shares the parameter groups with the base. Without ``rolling``, call ``scheduler.step()`` after every k-th call.

    **Not where rare groups are rare rows**: what one micro-batch of three asks for alone is passed over, right or wrong.

    Parameters
    ----------
    base_optimizer : torch.optim.Optimizer
        Steps, and keeps its own state. Not one that evaluates a closure several times per step (``torch.optim.LBFGS``).
    k : int >= 1, default 3 (the paper's)
        Micro-batches of a median; 1 changes nothing. For an even k the two values in the middle are averaged.
    rolling : bool, default False

    Notes
    -----
    *Memory*: k - 1 gradients beyond ``.grad``, k with ``rolling``.

    *No gradient*: ``None`` counts as 0 if the parameter had a gradient in another of the k micro-batches, as after
    ``zero_grad(set_to_none=False)``; a parameter without any is left to the base optimizer with ``None``.

    *Sparse gradients* stay sparse: 0 outside the rows of a micro-batch, so a row that is in one of three does not move.

    *Closure*: evaluated once per call, with gradients enabled; the base optimizer is stepped without it.

    *Not finite values* pass through, as in any optimizer of torch; with ``torch.amp.GradScaler``, such a micro-batch is left out.

    *Not for CUDA graphs*: which calls step is decided in Python. ``torch.compile`` leaves it uncompiled.

    Raises
    ------
    InputError
        If ``base_optimizer`` is no optimizer, or needs a closure, or ``k`` is out of its range.

    Examples
    --------
    >>> p = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = MicroBatchMedian(torch.optim.SGD([p], lr=1.0))
    >>> for gradient in ([1.0, 1.0], [2.0, 0.0], [90.0, 0.5]):
    ...     optimizer.zero_grad()
    ...     p.grad = torch.tensor(gradient)
    ...     optimizer.step()
    >>> p.data
    tensor([-2.0000, -0.5000])
    """

    def __init__(self, base_optimizer: torch.optim.Optimizer, k: int = 3, rolling: bool = False) -> None:
        check_range("k", k, low=1, integer=True)
        super().__init__(base_optimizer)
        self.k = int(k)
        self.rolling = bool(rolling)
        self._taken = 0  # micro-batches in the current median

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @_disable_dynamo  # torch.compile would forget what is counted here; torch.compiler.disable loads it at once
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take ``.grad`` as one micro-batch; step the base optimizer when it is time. Returns what the closure returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._taken = min(self._taken + 1, self.k)
        steps = self.rolling or self._taken == self.k
        for p in self._parameters():
            gradients = self._with_current(p, keep=self.rolling or not steps)
            if steps and any(g is not None for g in gradients):
                middle = median_of(gradients)
                if p.grad is not None and p.grad.layout == middle.layout == torch.strided:
                    p.grad.copy_(middle)  # in place: it may be a view of a bucket
                else:
                    p.grad = middle
        if steps:
            self.base_optimizer.step()
            if not self.rolling:
                self.state.clear()
                self._taken = 0
        return loss

    def state_dict(self) -> dict[str, Any]:
        """That of this optimizer, with the base optimizer's under ``"base_optimizer"``."""
        return super().state_dict() | {"base_optimizer": self.base_optimizer.state_dict(), "taken": self._taken}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From :meth:`state_dict` of an optimizer with the same k and the same parameter groups."""
        if "base_optimizer" not in state_dict:
            bad_input(
                "state_dict", f"keys {sorted(state_dict)}", "what MicroBatchMedian.state_dict() gave",
                "Load the state of a plain optimizer into .base_optimizer.",
            )  # fmt: skip
        own = {name: value for name, value in state_dict.items() if name not in ("base_optimizer", "taken")}
        super().load_state_dict(own)
        self.base_optimizer.load_state_dict(state_dict["base_optimizer"])
        self.param_groups = self.base_optimizer.param_groups
        self._taken = int(state_dict["taken"])

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {name: self.__dict__[name] for name in ("k", "rolling", "_taken")}

    def __repr__(self) -> str:
        return f"MicroBatchMedian(k={self.k}, rolling={self.rolling}, base_optimizer={self.base_optimizer!r})"

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _with_current(self, p: Tensor, keep: bool) -> list[Tensor | None]:
        """The gradients of this median so far, the current one last; None where there was none."""
        before = self._taken - 1
        kept = self.state[p][KEPT][-before:] if before and p in self.state else []
        kept = [None] * (before - len(kept)) + kept  # it had no gradient in the first ones
        current = p.grad.clone() if keep and p.grad is not None else p.grad
        if keep and any(g is not None for g in [*kept, current]):
            self.state[p][KEPT] = [*kept, current]
        return [*kept, current]


def median_of(gradients: Sequence[Tensor | None]) -> Tensor:
    """Coordinate-wise median of tensors of one shape, None standing for zeros; sparse if all others are.

    >>> median_of([torch.tensor([1.0, 5.0]), None, torch.tensor([9.0, 9.0])])
    tensor([1., 5.])
    """
    given = [g for g in gradients if g is not None]
    if all(g.is_sparse for g in given):
        return _sparse_median(given, len(gradients) - len(given))
    dense = [g.to_dense() if g.is_sparse else g for g in given]
    dense += [torch.zeros_like(dense[0])] * (len(gradients) - len(given))
    return median(torch.stack([g.reshape(-1) for g in dense])).reshape(dense[0].shape)


def _sparse_median(gradients: Sequence[Tensor], absent: int) -> Tensor:
    """Over the union of the entries, with ``absent`` more gradients that are zero."""
    gradients = [g.coalesce() for g in gradients]
    first = gradients[0]
    places = torch.cat([g.indices() for g in gradients], dim=1)
    zeros = first.values().new_zeros(places.shape[1], *first.values().shape[1:])
    # Zeros at all places of the others make every gradient have the same entries in the same order.
    filled = [
        _sparse(torch.cat([places, g.indices()], dim=1), torch.cat([zeros, g.values()]), g.shape, is_coalesced=False).coalesce()
        for g in gradients
    ]
    values = [g.values() for g in filled]
    values += [torch.zeros_like(values[0])] * absent
    middle = median(torch.stack([v.reshape(-1) for v in values])).reshape(values[0].shape)
    return _sparse(filled[0].indices(), middle, first.shape, is_coalesced=True)


def _sparse(indices: Tensor, values: Tensor, shape: torch.Size, *, is_coalesced: bool) -> Tensor:
    # The indices are those of given tensors, so there is nothing to check.
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=False, is_coalesced=is_coalesced)
