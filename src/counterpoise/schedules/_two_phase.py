"""Two-phase training (Buda, Maki, Mazurowski 2018, arXiv:1710.05381): features from balanced draws, then the last layer from the real ones.

What is unbalanced: features want all classes equally often, the decision wants the true class frequencies. So all weights are trained on
re-balanced batches first; then everything but the head is frozen, and the head is tuned on the original distribution with a smaller step.
"""

from __future__ import annotations

from contextlib import ExitStack
from types import MethodType, TracebackType
from typing import Any, Self

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from counterpoise._errors import CounterpoiseError, bad_input, check_range, listing

__all__ = ["TwoPhase"]


class TwoPhase:
    """The second phase as a ``with`` block, inside which only the head of a network learns.

    Inside: parameters outside the head do not require gradients and have none, so that no optimizer moves them, not even by weight decay or
    momentum left from phase 1; normalization layers outside the head that keep running statistics stay in evaluation mode, also when the
    loop calls ``module.train()``. On leaving, also by an exception, every ``requires_grad``, every train/eval flag and the gradients of
    what was frozen are as they were before.

    A copy of the network made inside the block keeps the frozen layers frozen: keep ``module.state_dict()``, or copy after the block.

    What phase 2 trains on is the prior that predictions are corrected from: after a second phase on the original distribution, its class
    frequencies.

    Parameters
    ----------
    module : torch.nn.Module
        The network after phase 1.
    head : str, default "fc"
        Name of the sub-module that goes on learning, as in ``module.get_submodule``: "fc", "classifier.6", ... Its own flags are left
        alone. A weight that it shares with the rest (tied embeddings) is the head's.
    phase2_lr_scale : float > 0, default 0.2
        Learning rate of phase 2 over that of phase 1. (The paper does not give one; 0.2 is the value our replication was planned with.)

    Raises
    ------
    InputError
        If there is no such sub-module, nothing in it can learn, or nothing is outside it.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential()
    >>> net.body, net.fc = nn.Linear(4, 3), nn.Linear(3, 2)
    >>> with TwoPhase(net, head="fc") as phase2:
    ...     optimizer = torch.optim.SGD(phase2.param_groups(lr=0.5), momentum=0.9)
    ...     net(torch.ones(1, 4)).sum().backward()
    ...     optimizer.step()
    >>> optimizer.param_groups[0]["lr"], net.body.weight.grad is None, net.body.weight.requires_grad
    (0.1, True, True)
    """

    def __init__(self, module: nn.Module, head: str = "fc", phase2_lr_scale: float = 0.2) -> None:
        if not isinstance(module, nn.Module):
            bad_input("module", type(module).__name__, "a torch.nn.Module")
        check_range("phase2_lr_scale", phase2_lr_scale, low=0.0, open_low=True)
        self.module = module
        self.head = _submodule(module, head)
        self.phase2_lr_scale = float(phase2_lr_scale)
        if not any(parameter.requires_grad for parameter in self.head.parameters()):
            bad_input("head", head, "a sub-module with parameters that require gradients")
        self._undo: ExitStack | None = None

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """What any optimizer of ``torch.optim`` takes as its first argument: the head's parameters, with ``lr`` (of phase 1) scaled.

        An optimizer made from it holds nothing of the frozen part, and no momentum from phase 1.
        """
        learning = [parameter for parameter in self.head.parameters() if parameter.requires_grad]
        return [{"params": learning, "lr": lr * self.phase2_lr_scale}]

    def __enter__(self) -> Self:
        if self._undo is not None:
            raise CounterpoiseError("This TwoPhase block is open already; make another one.")
        inside = set(self.head.modules())
        own = {id(parameter) for parameter in self.head.parameters()}
        with ExitStack() as undo:
            for layer in self.module.modules():
                undo.callback(setattr, layer, "training", layer.training)
            for parameter in self.module.parameters():
                if id(parameter) not in own:
                    undo.callback(setattr, parameter, "grad", parameter.grad)
                    undo.callback(parameter.requires_grad_, parameter.requires_grad)
                    parameter.requires_grad_(False)
                    parameter.grad = None  # an optimizer of phase 1 passes over what has no gradient
            for layer in self.module.modules():
                if isinstance(layer, _NormBase) and layer.track_running_stats and layer not in inside:
                    undo.callback(_set_train, layer, vars(layer).get("train"))
                    layer.eval()
                    _set_train(layer, MethodType(_stay, layer))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        undo, self._undo = self._undo, None
        if undo is not None:
            undo.close()


def _submodule(module: nn.Module, head: str) -> nn.Module:
    try:
        found = module.get_submodule(head)
    except (AttributeError, TypeError):
        children = listing(name for name, _ in module.named_children())
        bad_input("head", head, f"the name of a sub-module of {type(module).__name__}", f"It has {children}." if children else "")
    own = {id(parameter) for parameter in found.parameters()}
    if all(id(parameter) in own for parameter in module.parameters()):
        bad_input("head", head, "a part of the network", "No parameter is outside it, so there is nothing to freeze.")
    return found


def _stay(layer: nn.Module, mode: bool = True) -> nn.Module:
    """In place of ``train``, which the loop, or a framework, calls on the whole network at the start of every epoch."""
    return layer


def _set_train(layer: nn.Module, train: MethodType | None) -> None:
    if train is None:
        del layer.train
    else:
        layer.train = train  # type: ignore[method-assign]
