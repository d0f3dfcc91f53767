"""Half precision is computed in single precision: which types that are, and the step up."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["HALF", "single"]

HALF = (torch.float16, torch.bfloat16)


def single(x: Tensor) -> Tensor:
    """In single precision at least; what is, is returned as it is.

    >>> [single(torch.ones(2, dtype=dtype)).dtype for dtype in (torch.bfloat16, torch.float64)]
    [torch.float32, torch.float64]
    """
    return x.float() if x.dtype in HALF else x
