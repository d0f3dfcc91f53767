"""Leaving no trace: a model is the same, bit for bit, after it has been measured, also when the measurement fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["exact_backends", "untouched"]


@contextmanager
def untouched(model: nn.Module, *, evaluate: bool) -> Iterator[None]:
    """Parameters' flags and ``.grad``, buffers, train/eval flags and all random states come back as they were.

    ``evaluate`` puts the model into eval mode meanwhile.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices):
            if evaluate:
                model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, grad in flags:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        with torch.no_grad():
            for buffer, saved in buffers:
                if not torch.equal(buffer, saved):
                    buffer.copy_(saved)


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
        with ExitStack() as stack:
            if forward_mode:
                onednn.enabled = False
            if transforms or forward_mode:
                from torch.nn.attention import SDPBackend, sdpa_kernel

                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if recurrent and torch.cuda.is_available():
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        onednn.enabled = enabled
