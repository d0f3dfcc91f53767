"""Class weights as plain numbers: the formula that :func:`counterpoise.losses.class_weights` and the study share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["class_weight_values"]


def class_weight_values(counts: npt.ArrayLike, scheme: str = "balanced", beta: float = 0.9999) -> npt.NDArray[np.float64]:
    """Weights of classes with these (positive) counts, scaled so that ``sum_k n_k w_k = sum_k n_k``.

    ``balanced``: w ~ 1 / n; ``sqrt``: w ~ 1 / sqrt(n); ``effective``: w ~ (1 - beta) / (1 - beta^n) (Cui et al. 2019).
    """
    n = np.asarray(counts, dtype=np.float64)
    if scheme == "balanced":
        raw = 1.0 / n
    elif scheme == "sqrt":
        raw = 1.0 / np.sqrt(n)
    else:
        # expm1 and log1p keep the digits that 1 - beta**n loses when n (1 - beta) is small.
        raw = (1.0 - beta) / -np.expm1(n * np.log(beta)) if beta > 0 else np.ones_like(n)
    return np.asarray(raw * (n.sum() / (n * raw).sum()))
