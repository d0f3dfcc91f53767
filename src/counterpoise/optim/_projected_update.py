r"""Any optimizer, without the radial component of its updates on scale-invariant weights (Heo et al. 2021, arXiv:2006.08217).

What is unbalanced, and how the radial component is found and taken out, stands in ``_projection.py``. Here it is taken out of the whole
step :math:`\Delta w` of another optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor

from counterpoise._errors import check_choice, check_range

from ._projection import INVARIANCES, check_real, dense_gradient, last_group_refused, parts, radial, rows_of, tensors_of
from ._wrapper import Wrapper

__all__ = ["ProjectedUpdate"]

EPS = 1e-8  # the paper's


class ProjectedUpdate(Wrapper):
    r"""Any optimizer, whose steps leave the length of scale-invariant weights alone.

    The base optimizer steps; then its step :math:`\Delta w` is freed of the part along w,

    .. math:: w + \Delta w - \hat w\,(\hat w \cdot \Delta w), \qquad \hat w = w / (\|w\| + 10^{-8}) ,

    row by row, where the gradient g shows an invariant weight: a tensor of two dimensions or more with
    :math:`|\cos(g, w)| < \delta / \sqrt n` in every row of length n, per output channel or else for the whole layer.

    The whole step is projected, the weight decay of the base with it, so invariant weights get none. (:class:`AdamP` and :class:`SGDP`
    leave them a share, ``wd_ratio``. ``ProjectedUpdate(torch.optim.AdamW(...))`` is AdamP with ``wd_ratio=0``, but for the epsilon.)

    **Without a decaying learning rate, expect less than from the base alone**: see :class:`AdamP`.

    Parameters
    ----------
    base_optimizer : torch.optim.Optimizer
        Steps, and keeps its state. ``fused``, ``foreach``, ``capturable`` and ``maximize`` are its options. Not one that evaluates a
        closure several times per step (``torch.optim.LBFGS``), nor one that changes ``.grad``.
    delta : float >= 0, default 0.1 (the paper's)
        The larger, the more weights are taken as invariant.

    Notes
    -----
    *Groups* may hold a ``delta`` of their own, and ``invariance``, one of "auto" (the default: decide by the gradient), "channel",
    "layer", "none".

    *State* is the base optimizer's, and so is ``state_dict()``: it can be loaded from a run of the base alone, and the other way around.
    Learning-rate schedulers are given this optimizer or the base.

    *Memory*: a copy of the parameters of two dimensions or more, during the step.

    *Closure*: evaluated once, with gradients enabled; the base optimizer is stepped without it.

    Raises
    ------
    InputError
        If ``base_optimizer`` is no optimizer, or needs a closure; if an option is out of its range; if a parameter is complex or a
        gradient sparse.

    Examples
    --------
    >>> w = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    >>> optimizer = ProjectedUpdate(torch.optim.SGD([{"params": [w], "invariance": "channel"}], lr=0.1))
    >>> w.grad = torch.tensor([[1.0, 2.0]])  # 11/5 of it along w / |w|, which is (0.6, 0.8)
    >>> optimizer.step()
    >>> w.data
    tensor([[3.0320, 3.9760]])
    """

    def __init__(self, base_optimizer: torch.optim.Optimizer, delta: float = 0.1) -> None:
        check_range("delta", delta, low=0.0)
        super().__init__(base_optimizer)
        self.delta = float(delta)
        self.state = base_optimizer.state
        self._complete()

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Step the base optimizer, and take the radial component out of its step. Returns what the closure returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found = [self._matrices(group) for group in self.param_groups]
        before = [[p.clone() for p in params] for params in found]
        self.base_optimizer.step()
        for group, params, old in zip(self.param_groups, found, before, strict=True):
            for part in parts(params, group.get("foreach")):
                self._correct(group, [params[i] for i in part], [old[i] for i in part])
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        if "delta" in self.__dict__:
            with last_group_refused(self):
                self._complete()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From :meth:`state_dict` of this optimizer, or of its base."""
        self.base_optimizer.load_state_dict(state_dict)
        self.param_groups, self.state = self.base_optimizer.param_groups, self.base_optimizer.state
        self._complete()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"delta": self.delta}

    def __repr__(self) -> str:
        return f"ProjectedUpdate(delta={self.delta}, base_optimizer={self.base_optimizer!r})"

    def _complete(self) -> None:
        """Options that a group of the base has not."""
        for group in self.param_groups:
            check_range("delta", group.setdefault("delta", self.delta), low=0.0)
            check_choice("invariance", group.setdefault("invariance", "auto"), INVARIANCES)
            check_real(group)

    @staticmethod
    def _matrices(group: dict[str, Any]) -> list[Tensor]:
        """What may be projected: parameters with a gradient and at least two dimensions."""
        if group["invariance"] == "none":
            return []
        return [p for p in group["params"] if p.ndim > 1 and p.numel() and dense_gradient(p, "ProjectedUpdate") is not None]

    @staticmethod
    def _correct(group: dict[str, Any], params: list[Tensor], before: list[Tensor]) -> None:
        p, gradient = rows_of(before), rows_of([p.grad for p in params if p.grad is not None])
        step = rows_of(params) - p
        along, _ = radial(step, p, gradient, delta=group["delta"], eps=EPS, invariance=group["invariance"])
        torch._foreach_sub_(params, tensors_of(along * p, params[0]))
