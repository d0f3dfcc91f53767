"""Leaving no trace: a model is the same, bit for bit, after it has been measured, also when the measurement fails."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["exact_backends", "random_states", "untouched"]


@contextmanager
def untouched(model: nn.Module, *, evaluate: bool) -> Iterator[None]:
    """Parameters' flags and ``.grad``, buffers, train/eval flags and all random states come back as they were.

    ``evaluate`` puts the model into eval mode meanwhile.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    held = [(module, dict(module._buffers)) for module in model.modules()]
    values = [(tensor, tensor.detach().clone()) for tensor in (*model.buffers(), *_rescaled(model))]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    try:
        with random_states(devices):
            if evaluate:
                model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, grad in flags:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        for module, buffers in held:
            module._buffers.update(buffers)
        with torch.no_grad():
            for tensor, saved in values:
                if not torch.equal(tensor, saved):
                    tensor.copy_(saved)


def _rescaled(model: nn.Module) -> Iterator[Tensor]:
    """Tables whose rows the forward pass itself shortens, in place."""
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            yield module.weight


@contextmanager
def random_states(devices: Sequence[int] = (), generators: Sequence[torch.Generator] = ()) -> Iterator[None]:
    """The random states of torch, NumPy and Python, and of ``generators``, come back as they were."""
    here, there = random.getstate(), np.random.get_state()
    own = [(generator, generator.get_state()) for generator in generators]
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(here)
        np.random.set_state(there)
        for generator, state in own:
            generator.set_state(state)


@contextmanager
def exact_backends(*, transforms: bool = False, forward_mode: bool = False, recurrent: bool = False) -> Iterator[None]:
    """Kernels that can be differentiated as is needed here: no fused path of attention for inference, which passes the layers by.

    ``transforms``: attention as plain products, which ``vmap`` and forward mode know. ``forward_mode``: recurrent layers without oneDNN,
    whose kernel has no forward derivative. ``recurrent``: the same without cuDNN, which cannot run their backward in eval mode.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    onednn: Any = torch.backends.mkldnn  # whose attributes are properties that type checkers do not see
    enabled = onednn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with ExitStack() as stack, warnings.catch_warnings():
            # Of reentrant checkpoints, in passes that only look at shapes.
            warnings.filterwarnings("ignore", message="None of the inputs have requires_grad=True")
            if forward_mode:
                onednn.enabled = False
            if transforms or forward_mode:
                from torch.nn.attention import SDPBackend, sdpa_kernel

                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if "torch._dynamo" in sys.modules:  # else nothing is compiled, and importing it takes seconds
                stack.enter_context(torch.compiler.set_stance("force_eager"))  # compiled code does not see hooks that came later
            if recurrent and torch.cuda.is_available():
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        onednn.enabled = enabled
