r"""The loss surface of a scaling law, the best split of a compute budget on it, and what another split wastes.

What is unbalanced: the two halves of :math:`L(N, D) = E + A N^{-\alpha} + B D^{-\beta}`. Where :math:`\alpha \ne \beta`, one of them decays
faster, and the loss along a line of constant compute :math:`C = 6 N D` is lopsided around its lowest point

.. math:: N^*(C) = G \, (C/6)^{\beta/(\alpha+\beta)}, \quad D^*(C) = G^{-1} (C/6)^{\alpha/(\alpha+\beta)}, \quad
   G = \left(\frac{\alpha A}{\beta B}\right)^{1/(\alpha+\beta)}.

Sources: Hoffmann et al. 2022 (arXiv:2203.15556), appendix D; deadweight compute: arXiv:2603.22339.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._errors import bad_input, check_range
from counterpoise._seeding import generator

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Allocation", "LossSurface", "sample_isoflop"]

FloatArray = npt.NDArray[np.float64]
Interval = tuple[float, float]

FLOPS_FACTOR = 6.0  # of one parameter and one token: two forward, four backward (Kaplan et al. 2020, arXiv:2001.08361)


@dataclass(frozen=True)
class Allocation:
    """How to split a compute budget.

    Attributes:
        compute: the budget C, FLOPs.
        N, D: size (parameters) and data (tokens), with ``factor * N * D = C``.
        loss: what the surface expects there.
        N_interval, D_interval, loss_interval: limits at ``level``, or None where nothing was resampled.
        level: of the intervals.
    """

    compute: float
    N: float
    D: float
    loss: float
    N_interval: Interval | None = None
    D_interval: Interval | None = None
    loss_interval: Interval | None = None
    level: float | None = None

    def summary(self) -> str:
        """One line, with intervals where there are any."""
        parts = [
            f"{name} {value:{form}}" + (f" ({between[0]:{form}} to {between[1]:{form}})" if between else "")
            for name, value, between, form in (
                ("N", self.N, self.N_interval, ".3g"),
                ("D", self.D, self.D_interval, ".3g"),
                ("loss", self.loss, self.loss_interval, ".4f"),
            )
        ]
        at = f", {percent(self.level)} intervals" if self.level is not None else ""
        return f"At {self.compute:.3g} FLOPs: {', '.join(parts)}{at}."


@dataclass(frozen=True)
class LossSurface:
    r"""The surface :math:`L(N, D) = E + A N^{-\alpha} + B D^{-\beta}` with compute :math:`C = \text{flops\_factor} \cdot N D`.

    Methods take numbers or arrays.

    Parameters
    ----------
    E : float
        Loss that no size and no data remove, >= 0.
    A, B : float
        Coefficients of size and data, > 0, in units of loss for N and D as they are counted.
    alpha, beta : float
        Exponents, > 0.
    flops_factor : float, default 6.0
        FLOPs of one parameter and one token (arXiv:2001.08361).

    Raises
    ------
    InputError
        If a parameter is outside its range.

    Examples
    --------
    The surface of the Chinchilla paper (arXiv:2203.15556, D.3), and its best split of 1e24 FLOPs:

    >>> surface = LossSurface(1.69, 406.4, 410.7, 0.34, 0.28)
    >>> print(surface.optimal(1e24).summary())
    At 1e+24 FLOPs: N 4.13e+10, D 4.04e+12, loss 1.9112.

    Three times as much data, and a model of a third of the size, waste a share of the compute:

    >>> round(float(surface.deadweight(1e24, 3 * surface.optimal(1e24).D)), 3)
    0.313
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    flops_factor: float = FLOPS_FACTOR

    def __post_init__(self) -> None:
        check_range("E", self.E, low=0.0)
        for name in ("A", "B", "alpha", "beta", "flops_factor"):
            check_range(name, getattr(self, name), low=0.0, open_low=True)

    # ---- the optimum ----------------------------------------------------------------------------------------------------------------

    @property
    def a(self) -> float:
        r"""Exponent of N* in C: :math:`\beta/(\alpha+\beta)`."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> float:
        r"""Exponent of D* in C: :math:`\alpha/(\alpha+\beta)`."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def a0(self) -> float:
        """Intercept of log10 N* over log10 C."""
        return self._log10_G - self.a * float(np.log10(self.flops_factor))

    @property
    def b0(self) -> float:
        """Intercept of log10 D* over log10 C."""
        return -self._log10_G - self.b * float(np.log10(self.flops_factor))

    @property
    def _log10_G(self) -> float:
        # A and B may be so far apart that their ratio overflows.
        ratio = np.log10(self.alpha) + np.log10(self.A) - np.log10(self.beta) - np.log10(self.B)
        return float(ratio / (self.alpha + self.beta))

    def loss(self, N: Any, D: Any) -> Any:
        """L(N, D); shapes broadcast."""
        N, D = _positive("N", N), _positive("D", D)
        return self.E + self.A * N**-self.alpha + self.B * D**-self.beta

    def optimal_size(self, C: Any) -> Any:
        """N*(C), for numbers or arrays."""
        return 10.0**self._log10_G * (_positive("C", C) / self.flops_factor) ** self.a

    def optimal(self, C: float) -> Allocation:
        """The split of the budget C (FLOPs) with the lowest loss."""
        check_range("C", C, low=0.0, open_low=True)
        N = float(self.optimal_size(float(C)))
        D = float(C) / self.flops_factor / N
        return Allocation(float(C), N, D, float(self.loss(N, D)))

    def optimal_loss(self, C: Any) -> Any:
        """The loss at the best split, for numbers or arrays."""
        return self.E + self._K * (_positive("C", C) / self.flops_factor) ** -self._rate

    def compute_for(self, loss: Any) -> Any:
        """The least compute that reaches ``loss``: infinite at or below E."""
        above = np.asarray(loss, dtype=np.float64) - self.E
        if np.isnan(above).any():
            bad_input("loss", loss, "numbers")
        with np.errstate(divide="ignore", over="ignore"):
            needed = self.flops_factor * (np.maximum(above, 0.0) / self._K) ** (-1 / self._rate)
        return needed if needed.ndim else float(needed)

    def deadweight(self, C: Any, D: Any) -> Any:
        """Share of the budget C that is wasted by training on D tokens (and a model of what then remains): 1 minus the least compute that
        reaches the same loss, over C. 0 at the optimum."""
        C, D = _positive("C", C), _positive("D", D)
        share = 1 - self.compute_for(self.loss(C / (self.flops_factor * D), D)) / C
        return np.maximum(share, 0.0)  # rounding at the optimum

    @property
    def _K(self) -> float:
        G = 10.0**self._log10_G
        return float(self.A * G**-self.alpha + self.B * G**self.beta)

    @property
    def _rate(self) -> float:
        return self.alpha * self.beta / (self.alpha + self.beta)


def sample_isoflop(
    surface: LossSurface,
    budgets: npt.ArrayLike,
    n: int = 15,
    width: float = 8.0,
    *,
    offset: float = 0.0,
    drift: float = 0.0,
    noise: float = 0.0,
    seed: int = 0,
) -> pl.DataFrame:
    """Runs as an IsoFLOP study makes them: for every budget, sizes evenly spaced in log N around a center, and the data that remain.

    Parameters
    ----------
    surface : LossSurface
        Where losses come from.
    budgets : array-like, shape (m,)
        FLOPs.
    n : int, default 15
        Runs per budget (arXiv:2603.22339, section 3).
    width : float, default 8
        Sizes from center / width to center * width; > 1.
    offset : float, default 0
        log10 of center / N* at every budget: ``-log10(3)`` is a grid at a third of the best size, and three times the data.
    drift : float, default 0
        log10 of what center / N* gains from the lowest budget to the highest, linear in log C.
    noise : float, default 0
        Standard deviation of normal noise on the losses.
    seed : int, default 0
        Of the noise.

    Returns
    -------
    polars.DataFrame
        Columns N, D, L, C, one row per run; ready for :func:`audit_isoflop`.

    Examples
    --------
    >>> runs = sample_isoflop(LossSurface(1.69, 406.4, 410.7, 0.34, 0.28), [1e18, 1e19], n=3, width=4)
    >>> runs.shape, [round(value, 3) for value in runs["L"]]
    ((6, 4), [3.712, 3.535, 3.702, 3.11, 2.986, 3.103])
    """
    import polars as pl

    C = np.sort(np.atleast_1d(_positive("budgets", budgets)).astype(np.float64).ravel())
    check_range("n", n, low=1, integer=True)
    check_range("width", width, low=1.0, open_low=True)
    for name, value in (("offset", offset), ("drift", drift)):
        check_range(name, value)
    check_range("noise", noise, low=0.0)
    check_range("seed", seed, low=0, integer=True)
    log_C = np.log10(C)
    along = (log_C - log_C[0]) / max(log_C[-1] - log_C[0], np.finfo(float).tiny)
    center = np.log10(surface.optimal_size(C)) + offset + drift * along
    N = 10.0 ** (center[:, None] + np.log10(width) * np.linspace(-1, 1, n))
    D = C[:, None] / (surface.flops_factor * N)
    L = surface.loss(N, D)
    if noise:
        L = L + generator(seed, "isoflop").normal(0.0, noise, L.shape)
    columns = {"N": N, "D": D, "L": L, "C": np.broadcast_to(C[:, None], N.shape)}
    return pl.DataFrame({name: np.ascontiguousarray(values).ravel() for name, values in columns.items()})


def percent(share: float, digits: int = 0, sign: str = "") -> str:
    """``12.5 %``."""
    return f"{100 * share:{sign}.{digits}f} %"


def _positive(argument: str, values: Any) -> Any:
    """Floats, all above 0 and finite; a number stays a number."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        bad_input(argument, values, "numbers > 0")
    wrong = ~((array > 0) & np.isfinite(array))
    if wrong.any():
        bad_input(argument, float(array[wrong].flat[0]), "finite numbers > 0")
    return array if array.ndim else float(array)
