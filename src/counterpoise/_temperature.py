r"""Temperatures of a mixture of domains: the formulas that drawing, weighing and measuring share (Li et al. 2025, arXiv:2410.04579).

For domains of the sizes :math:`n_i` and a temperature :math:`\tau`,

.. math:: p(i; \tau) = n_i^{1/\tau} / \sum_j n_j^{1/\tau} :

the shares of the data at 1, equal ones at infinity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ._errors import bad_input, listing

__all__ = ["TAU", "Tau", "checked_sizes", "checked_tau", "fixed_tau", "probabilities", "tau_at", "temperature", "weights"]

FloatArray = npt.NDArray[np.float64]
Tau = float | Callable[[int], float]

TAU = 5.0  # the paper's high temperature, in all of its experiments


def probabilities(sizes: FloatArray, tau: float) -> FloatArray:
    """p(i; tau) (K,) as the softmax of log(n) / tau: no overflow at any size, and 0 for an empty domain at every temperature."""
    present = sizes > 0
    logs = np.log(sizes[present])
    p = np.zeros(len(sizes))
    with np.errstate(over="ignore"):  # a tiny temperature leaves only the largest domains
        p[present] = np.exp((logs - logs.max()) / tau)
    return np.asarray(p / p.sum())


def weights(sizes: FloatArray, tau: float) -> FloatArray:
    """w (K,) = p(i; tau) / p(i; 1) of domains that all have examples; their mean over the data is 1."""
    return probabilities(sizes, tau) / probabilities(sizes, 1.0)


def checked_sizes(sizes: Any, drop_empty: bool = False) -> FloatArray:
    """The sizes (K,) in float64."""
    values = sizes.detach().cpu().numpy() if hasattr(sizes, "detach") else sizes
    try:
        n = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        bad_input("sizes", f"{type(sizes).__name__} that does not hold numbers", "the size of each domain, shape (K,)")
    if n.ndim != 1 or not len(n):
        bad_input("sizes", f"shape {n.shape}", "the size of each domain, shape (K,)")
    wrong = np.flatnonzero(~(np.isfinite(n) & (n >= 0)))
    if len(wrong):
        bad_input("sizes", f"{n[wrong[0]]:g} for domain {wrong[0]}", "finite numbers of examples or tokens")
    empty = np.flatnonzero(n == 0)
    if len(empty) == len(n):
        bad_input("sizes", "domains that are all empty", "some domain with examples")
    if len(empty) and not drop_empty:
        bad_input("sizes", f"0 for domain {listing(empty)}", "a size > 0 for every domain", "Leave empty domains out.")
    return n


def checked_tau(tau: Any) -> Tau:
    """A temperature, or a schedule of them, whose values are looked at when they are asked for."""
    return tau if callable(tau) else temperature(tau)


def fixed_tau(tau: Any) -> float:
    """A temperature that is no schedule."""
    if callable(tau):
        bad_input("tau", type(tau).__name__, "a number > 0, or inf", "Of a schedule take one step's: schedule(step).")
    return temperature(tau)


def tau_at(tau: Tau, step: int) -> float:
    """The temperature of a step."""
    return temperature(tau(step), where=f" at step {step}") if callable(tau) else tau


def temperature(value: Any, argument: str = "tau", where: str = "") -> float:
    """A number > 0, infinity included."""
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not number > 0:
        shown = f"{value!r}{where}" if where else value
        bad_input(argument, shown, "a number > 0, or inf", "1 draws as the data are, inf draws all domains equally often.")
    return number
