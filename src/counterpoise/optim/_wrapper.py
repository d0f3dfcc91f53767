"""What optimizers around another optimizer share."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from counterpoise._errors import bad_input

__all__ = ["Wrapper"]


class Wrapper(torch.optim.Optimizer):
    """An optimizer that has another one step, and shares its parameter groups, so that schedulers reach both.

    Raises
    ------
    InputError
        If ``base_optimizer`` is no optimizer, or one that needs a closure.
    """

    def __init__(self, base_optimizer: torch.optim.Optimizer) -> None:
        own = type(self).__name__
        if not isinstance(base_optimizer, torch.optim.Optimizer):
            bad_input("base_optimizer", type(base_optimizer).__name__, "a torch.optim.Optimizer", f"{own}(torch.optim.SGD(...)).")
        closure = inspect.signature(base_optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            bad_input(
                "base_optimizer", type(base_optimizer).__name__, "an optimizer that steps without a closure",
                f"{own} steps it once, with the gradients it has.",
            )  # fmt: skip
        super().__init__(base_optimizer.param_groups, base_optimizer.defaults)
        self.base_optimizer = base_optimizer
        self.param_groups = base_optimizer.param_groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        base = self.__dict__.get("base_optimizer")
        if base is None:  # the constructor of Optimizer, which goes through the groups of the base
            super().add_param_group(param_group)
        else:
            base.add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        # What Optimizer saves knows of no base.
        return super().__getstate__() | {"base_optimizer": self.base_optimizer}
