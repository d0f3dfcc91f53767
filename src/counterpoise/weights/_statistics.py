"""What Fisher and RegMean merging know about each model: mean squared gradients, and products of the inputs of linear layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from counterpoise._errors import bad_input
from counterpoise._pergrad import untouched

from ._models import MemoryModel, Models

__all__ = ["from_data"]

Loss = Callable[[nn.Module, Any], Tensor]


def from_data(method: str, base: Any, given: Sequence[Any], models: Models, data: Any, loss_fn: Loss | None) -> list[dict[str, Tensor]]:
    """Statistics of every model from its own loader."""
    if not isinstance(data, Sequence) or len(data) != len(models):
        bad_input("data", type(data).__name__, f"a list of {len(models)} loaders, one per model")
    if loss_fn is None:
        bad_input("loss_fn", None, "a function (model, batch) -> loss, which says how a batch is used", "Or pass statistics.")
    found = []
    for k, (model, loader) in enumerate(zip(given, data, strict=True)):
        network = model if isinstance(model, nn.Module) else _network(base, models, k)
        with untouched(network, evaluate=True):
            found.append((_squared_gradients if method == "fisher" else _input_products)(network, loader, loss_fn, f"data[{k}]"))
    return found


def _network(base: Any, models: Models, k: int) -> nn.Module:
    """The base's module with the weights of model ``k``."""
    if not isinstance(base, nn.Module):
        bad_input("base", "a model without a forward pass", "a torch.nn.Module, where statistics are computed from data")
    network = copy.deepcopy(base)
    tuned = {name: models.tuned(k, name) for name in models.dtypes}
    network.load_state_dict(models.with_aliases(tuned))
    return network


def _squared_gradients(model: nn.Module, loader: Iterable[Any], loss_fn: Loss, label: str) -> dict[str, Tensor]:
    """Mean over batches of the squared gradient of a batch's loss."""
    held = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not held:
        bad_input(label, "a model whose parameters are all frozen", "parameters with requires_grad")
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in held}
    count = 0
    for batch in loader:
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss_fn(model, batch), [p for _, p in held], allow_unused=True)
        for (name, _), gradient in zip(held, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient.float() ** 2
        count += 1
    if not count:
        bad_input(label, "an empty loader", "at least one batch")
    return {name: value / count for name, value in total.items()}


@torch.no_grad()
def _input_products(model: nn.Module, loader: Iterable[Any], loss_fn: Loss, label: str) -> dict[str, Tensor]:
    r""":math:`\sum x x^T` over the inputs of every linear layer, float64, under the name of its weight."""
    total: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def add(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0].detach().double().reshape(-1, inputs[0].shape[-1])
            total[name] = total.get(name, 0) + x.T @ x

        return add

    home = MemoryModel(model.state_dict(), label).homes
    layers = [(f"{name}.weight" if name else "weight", module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    # A weight that is computed from others (parametrizations) is none of the parameters.
    handles = [module.register_forward_pre_hook(hook(home[name])) for name, module in layers if name in home]
    try:
        count = 0
        for batch in loader:
            loss_fn(model, batch)
            count += 1
    finally:
        for handle in handles:
            handle.remove()
    if not count:
        bad_input(label, "an empty loader", "at least one batch")
    return total
