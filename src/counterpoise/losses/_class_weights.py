"""Class weights: how much one example of a class counts."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from counterpoise._balance import class_weight_values
from counterpoise._errors import bad_input, check_choice, listing

__all__ = ["class_weights"]

SCHEMES = ("balanced", "sqrt", "effective")


def class_weights(
    y: Any = None, *, counts: Any = None, scheme: Literal["balanced", "sqrt", "effective"] = "balanced", beta: float = 0.9999
) -> Tensor:
    r"""Weights of the classes that make rare ones count more, with mean 1 over the data.

    With class counts :math:`n_k` and :math:`N = \sum_k n_k`, every scheme satisfies :math:`\sum_k n_k w_k = N`, so that the size of a
    loss, and with it the learning rate, keeps its meaning:

    - ``"balanced"``: :math:`w_k = N / (K n_k)`; every class has the same total weight (scikit-learn's ``class_weight="balanced"``).
    - ``"sqrt"``: :math:`w_k \propto n_k^{-1/2}`; half way, on a log scale, between no weights and ``"balanced"``.
    - ``"effective"``: :math:`w_k \propto (1 - \beta) / (1 - \beta^{n_k})`; the inverse of the effective number of examples (Cui et al.
      2019, arXiv:1901.05555). ``beta = 0`` gives no weights; ``beta`` towards 1 gives ``"balanced"``.

    Parameters
    ----------
    y : array-like or tensor of int, shape (n,)
        Class codes 0..K-1, each of which occurs. Give ``y`` or ``counts``.
    counts : array-like or tensor, shape (K,)
        Number of examples of each class, all positive.
    scheme : {"balanced", "sqrt", "effective"}, default "balanced"
    beta : float in [0, 1), default 0.9999 (Cui et al. 2019)
        Used by ``"effective"`` only.

    Returns
    -------
    Tensor, shape (K,), of torch's default dtype
        Fits ``torch.nn.CrossEntropyLoss(weight=...)`` and :class:`~counterpoise.losses.FocalLoss` (``alpha=...``).

    Raises
    ------
    InputError
        If neither or both of ``y`` and ``counts`` are given, a class has no example, or a parameter is out of its range.

    Examples
    --------
    >>> class_weights([0, 0, 0, 1])
    tensor([0.6667, 2.0000])
    >>> class_weights(counts=[900, 100], scheme="sqrt")
    tensor([0.8333, 2.5000])
    """
    check_choice("scheme", scheme, SCHEMES)
    if not (isinstance(beta, (int, float)) and 0 <= beta < 1):
        bad_input("beta", beta, "a number in [0, 1)")
    if (y is None) == (counts is None):
        bad_input("y and counts", "neither of them" if y is None else "both of them", "exactly one")
    n = _count(y) if counts is None else _as_numpy(counts).astype(np.float64)
    if n.ndim != 1 or not len(n) or not np.isfinite(n).all() or (n < 0).any():
        bad_input("counts", n.tolist(), "one positive number per class, shape (K,)")
    if len(empty := np.flatnonzero(n == 0)):
        bad_input("counts" if y is None else "y", f"no example of class {listing(empty)}", "at least one example of every class 0..K-1")
    return torch.as_tensor(class_weight_values(n, scheme, beta), dtype=torch.get_default_dtype())


def _count(y: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    codes = _as_numpy(y)
    if codes.ndim != 1 or not len(codes):
        bad_input("y", f"an array of shape {codes.shape}", "one class per example, shape (n,) with n > 0")
    if codes.dtype.kind not in "iub" or codes.min() < 0:
        wrong = f"an array of {codes.dtype}" if codes.dtype.kind not in "iub" else int(codes.min())
        bad_input("y", wrong, "integer class codes 0..K-1", "Groups.from_labels(y).ids makes them from any labels.")
    return np.bincount(codes.astype(np.int64)).astype(np.float64)


def _as_numpy(values: Any) -> np.ndarray[Any, Any]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
