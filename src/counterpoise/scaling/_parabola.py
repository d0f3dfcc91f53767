r"""A parabola per budget ("Approach 2" of arXiv:2203.15556), and the bias that it has without any noise (arXiv:2603.22339).

Per budget C, :math:`L = p x^2 + q x + r` is fitted over :math:`x = \log_{10} N`, and again over :math:`\log_{10} D`; the vertices
:math:`-q / 2p` are regressed on :math:`\log_{10} C`:

.. math:: \log_{10} N^* = a_0 + a \log_{10} C, \qquad \log_{10} D^* = b_0 + b \log_{10} C.

The loss along a budget is a sum of two exponentials in x, not a parabola. Up to factors that do not move the vertex, and to a constant, it
is :math:`f(w) = \beta 10^{-\alpha w} + \alpha 10^{\beta w}` at :math:`w = x - \log_{10} N^*`. On n points :math:`w_j = w_0 + v_j` with
:math:`v_j` evenly spaced around 0, the least squares parabola has its vertex at

.. math:: w_0 - \frac{c_1}{2 c_2}, \quad c_1 = \frac{\sum v f}{S_2}, \quad c_2 = \frac{n \sum v^2 f - S_2 \sum f}{n S_4 - S_2^2}, \quad
   S_k = \sum v^k,

where 0 would be right: it depends on the exponents and the grid, on neither C nor E, A, B. A constant shift moves the intercepts; a center
that drifts with C bends the exponents, and the error grows with the distance that is extrapolated.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._errors import bad_input, check_range, listing
from counterpoise.groups import _to_numpy

from ._surface import FLOPS_FACTOR, Allocation, FloatArray

if TYPE_CHECKING:
    import polars as pl

__all__ = ["ParabolaFit", "isoflop_parabola", "parabola_bias"]

TOLERANCE = 0.05  # decades between neighbors in C that still are one budget: 12 %
LEAST_RUNS = 3  # of different size, for a parabola


def parabola_bias(alpha: float, beta: float, width: float, n: int, offset: float = 0.0) -> float:
    r"""How far from the true optimum a parabola puts it on noise-free losses, in decades of N.

    The estimate of N* is off by a factor of 10 to this power, that of D* by its inverse. The module's docstring has the formula.

    Parameters
    ----------
    alpha, beta : float
        Exponents of size and data, > 0.
    width : float
        The grid goes from center / width to center * width; > 1.
    n : int
        Points of the grid, evenly spaced in log N; at least 3.
    offset : float, default 0
        log10 of center / N*.

    Examples
    --------
    Exponents of the Chinchilla paper, sizes from a sixteenth to sixteen times the best one: 5 % too little data. Equal exponents: none.

    >>> round(10 ** -parabola_bias(0.34, 0.28, 16, 15) - 1, 4), abs(parabola_bias(0.31, 0.31, 16, 15)) < 1e-12
    (-0.051, True)
    """
    check_range("alpha", alpha, low=0.0, open_low=True)
    check_range("beta", beta, low=0.0, open_low=True)
    check_range("width", width, low=1.0, open_low=True)
    check_range("n", n, low=LEAST_RUNS, integer=True)
    check_range("offset", offset)
    v = np.log10(width) * np.linspace(-1, 1, n)
    # expm1: in a narrow grid the two exponentials differ from their values at the center by little.
    down, up = np.log(10) * alpha, np.log(10) * beta
    f = beta * np.exp(-down * offset) * np.expm1(-down * v) + alpha * np.exp(up * offset) * np.expm1(up * v)
    v2 = v**2
    S2, S4 = v2.sum(), (v2**2).sum()
    # The odd part of f makes the slope, the even part the curvature.
    c1 = v @ f / S2
    c2 = (n * (v2 @ f) - S2 * f.sum()) / (n * S4 - S2**2)
    return float(offset - c1 / (2 * c2))


@dataclass(frozen=True, eq=False)
class ParabolaFit:
    """Result of :func:`isoflop_parabola`.

    Attributes:
        a, a0: log10 N* = a0 + a log10 C. NaN with fewer than two budgets whose parabola opens upward.
        b, b0: the same for D*, from parabolas of their own: a + b = 1 only where D = C / (factor N) exactly.
        budgets: (m,) FLOPs, ascending.
        n_runs: (m,) runs of each.
        N_opt, D_opt: (m,) vertices; NaN for a budget with fewer than 3 sizes. L_opt: (m,) loss at the vertex over log10 N.
        curvature: (m,) of the parabola over log10 N: its vertex is a lowest point only if it is > 0.
        opens_up: (m,) whether the parabolas over N and D both have a lowest point; only such budgets enter a and b.
        edge: (m,) whether the vertex lies outside the sizes (or data) that were run: it is extrapolated, but enters.
        budget_of: (n,) index of each run's budget.
    """

    a: float
    a0: float
    b: float
    b0: float
    budgets: FloatArray
    n_runs: npt.NDArray[np.int64]
    N_opt: FloatArray
    D_opt: FloatArray
    L_opt: FloatArray
    curvature: FloatArray
    opens_up: npt.NDArray[np.bool_]
    edge: npt.NDArray[np.bool_]
    budget_of: npt.NDArray[np.int64]

    def allocation(self, C: float) -> Allocation:
        """N and D at the budget C; the parabolas know no loss there. Their product need not be C / factor on real runs."""
        check_range("C", C, low=0.0, open_low=True)
        x = float(np.log10(C))
        return Allocation(float(C), float(10 ** (self.a0 + self.a * x)), float(10 ** (self.b0 + self.b * x)), float("nan"))

    def to_frame(self) -> pl.DataFrame:
        """One row per budget."""
        import polars as pl

        names = ("n_runs", "N_opt", "D_opt", "L_opt", "curvature", "opens_up", "edge")
        return pl.DataFrame({"budget": self.budgets} | {name: getattr(self, name) for name in names})

    def flags(self) -> list[str]:
        """What is wrong with parabolas, in words."""
        said = []
        few = np.isnan(self.curvature)
        for where, what in (
            (few, f"fewer than {LEAST_RUNS} sizes: no parabola"),
            (~self.opens_up & ~few, "no lowest point (the parabola opens downward): left out of the exponents"),
            (self.edge, "lowest point outside the sizes that were run: extrapolated, but used"),
        ):
            if where.any():
                said.append(f"{what}, at {listing(f'{budget:.3g}' for budget in self.budgets[where])} FLOPs")
        return said

    def summary(self) -> str:
        """The two power laws, and what is wrong with parabolas."""
        lines = [
            f"Parabolas of {len(self.budgets)} budgets: N* ~ C^{self.a:.4f}, D* ~ C^{self.b:.4f} "
            f"(log10 intercepts {self.a0:.4f} and {self.b0:.4f})."
        ]
        return "\n".join([*lines, *(f"{flag[0].upper()}{flag[1:]}." for flag in self.flags())])


def isoflop_parabola(
    N: npt.ArrayLike,
    D: npt.ArrayLike,
    L: npt.ArrayLike,
    C: npt.ArrayLike | None = None,
    *,
    tolerance: float = TOLERANCE,
    flops_factor: float = FLOPS_FACTOR,
) -> ParabolaFit:
    r"""Compute-optimal exponents from a parabola per budget ("Approach 2"): the common way, kept here to be audited.

    It is biased without any noise (:func:`parabola_bias`) and throws away what budgets say about each other.
    :class:`ChinchillaRegressor` fits all runs at once.

    Parameters
    ----------
    N, D, L : array-like, shape (n,)
        Size, data and loss of each run, in any order, any number of runs per budget.
    C : array-like, shape (n,), optional
        Budget of each run, FLOPs. Default: ``flops_factor * N * D``.
    tolerance : float, default 0.05
        Budgets whose log10 differ by no more from the next one are the same.
    flops_factor : float, default 6.0
        FLOPs of one parameter and one token.

    Warns
    -----
    UserWarning
        If a parabola opens downward (it is left out of the exponents), or has its vertex outside the runs (it is used).

    Raises
    ------
    InputError
        If values are not finite and above 0, the lengths differ, or no budget has runs of three sizes.

    Examples
    --------
    >>> from counterpoise.scaling import LossSurface, sample_isoflop
    >>> surface = LossSurface(1.69, 406.4, 410.7, 0.34, 0.28)
    >>> runs = sample_isoflop(surface, np.geomspace(1e17, 1e21, 5), width=16)
    >>> fit = isoflop_parabola(runs["N"], runs["D"], runs["L"], runs["C"])
    >>> round(fit.b, 4), round(surface.b, 4), round(fit.allocation(1e24).D / surface.optimal(1e24).D - 1, 4)
    (0.5484, 0.5484, -0.051)
    """
    check_range("tolerance", tolerance, low=0.0)
    check_range("flops_factor", flops_factor, low=0.0, open_low=True)
    size, data, losses = (positive_column(name, values) for name, values in (("N", N), ("D", D), ("L", L)))
    given = None if C is None else positive_column("C", C)
    lengths = [len(column) for column in (size, data, losses, size if given is None else given)]
    if len(set(lengths)) > 1:
        bad_input("N, D, L, C", f"lengths {listing(lengths)}", "columns of one length")
    compute = compute_of(size, data, flops_factor) if given is None else given
    budgets, budget_of = group_budgets(compute, tolerance)
    fit = fit_parabolas(size, data, losses, budgets, budget_of)
    if np.isnan(fit.curvature).all():
        hint = "A larger tolerance joins budgets; ChinchillaRegressor needs none." if len(budgets) > 1 else ""
        bad_input(
            "N", f"fewer than {LEAST_RUNS} sizes in each of {len(budgets)} budgets", f"a budget with runs of {LEAST_RUNS} sizes", hint
        )
    if flags := fit.flags():
        warnings.warn(f"isoflop_parabola: {'; '.join(flags)}.", UserWarning, stacklevel=2)
    return fit


def fit_parabolas(N: FloatArray, D: FloatArray, L: FloatArray, budgets: FloatArray, budget_of: npt.NDArray[np.int64]) -> ParabolaFit:
    """The same without checks and warnings."""
    m = len(budgets)
    vertex, level, curvature = (np.full((m, 2), np.nan) for _ in range(3))
    edge = np.zeros((m, 2), dtype=bool)
    logs = np.log10(np.column_stack([N, D]))
    for budget in range(m):
        rows = budget_of == budget
        for k in range(2):
            x = logs[rows, k]
            if len(np.unique(x)) >= LEAST_RUNS:
                vertex[budget, k], level[budget, k], curvature[budget, k] = _parabola(x, L[rows])
                edge[budget, k] = not x.min() <= vertex[budget, k] <= x.max()
    opens_up = np.asarray((curvature > 0).all(axis=1))
    fit = ParabolaFit(
        *(float("nan"),) * 4,
        budgets=budgets,
        n_runs=np.bincount(budget_of, minlength=m),
        N_opt=10.0 ** vertex[:, 0],
        D_opt=10.0 ** vertex[:, 1],
        L_opt=level[:, 0],
        curvature=curvature[:, 0],
        opens_up=opens_up,
        edge=np.asarray(edge.any(axis=1) & opens_up),
        budget_of=budget_of,
    )
    if opens_up.sum() < 2:
        return fit
    x = np.log10(budgets[opens_up])
    center = x.mean()
    slope, level = np.linalg.lstsq(np.column_stack([x - center, np.ones_like(x)]), vertex[opens_up], rcond=None)[0]
    a0, b0 = level - slope * center
    return replace(fit, a=float(slope[0]), a0=float(a0), b=float(slope[1]), b0=float(b0))


def _parabola(x: FloatArray, y: FloatArray) -> tuple[float, float, float]:
    """Vertex, value there, and curvature of the least squares parabola."""
    center, scale, mean = x.mean(), float(np.ptp(x)) / 2, y.mean()
    t = (x - center) / scale
    c = np.linalg.lstsq(np.column_stack([np.ones_like(t), t, t**2]), y - mean, rcond=None)[0]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        turn = -c[1] / (2 * c[2])
        vertex = float(np.clip(center + scale * turn, -300, 300))  # 10 to it stays a number
        level = float(mean + c[0] + c[1] * turn / 2)
    return vertex, level, float(c[2] / scale**2)


def group_budgets(compute: FloatArray, tolerance: float) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """(m,) budgets, ascending, and (n,) which one each run belongs to: neighbors within ``tolerance`` decades are one, at their median."""
    log_C = np.log10(compute)
    order = np.argsort(log_C, kind="stable")
    # A hair more, so that a step of exactly the tolerance counts whatever the last digit.
    codes = np.concatenate([[0], np.cumsum(np.diff(log_C[order]) > tolerance * (1 + 1e-9) + 1e-12)])
    budget_of = np.empty(len(compute), dtype=np.int64)
    budget_of[order] = codes
    return np.array([np.median(compute[budget_of == code]) for code in range(codes[-1] + 1)]), budget_of


def compute_of(N: FloatArray, D: FloatArray, flops_factor: float) -> FloatArray:
    """FLOPs of each run."""
    with np.errstate(over="ignore", under="ignore"):
        C = flops_factor * N * D
    wrong = np.flatnonzero(~(np.isfinite(C) & (C > 0)))
    if len(wrong):
        row = wrong[0]
        found = f"{N[row]:g} and {D[row]:g} in row {row}"
        bad_input("N and D", found, "sizes and data whose product is a finite number > 0", "Look at their units.")
    return np.asarray(C)


def positive_column(name: str, values: Any) -> FloatArray:
    """(n,) numbers, finite and above 0, of anything that holds a column."""
    array = _to_numpy(name, values)
    try:
        column = array.astype(np.float64)
    except (TypeError, ValueError):
        bad_input(name, f"a column of {array.dtype}", "numbers > 0")
    if column.ndim != 1 or not len(column):
        bad_input(name, f"an array of shape {column.shape}", "one number per run, shape (n,)")
    check_positive(name, column)
    return column


def check_positive(name: str, column: FloatArray) -> None:
    """Refuse a column (n,) with a number that is not finite or not above 0, naming its row."""
    wrong = np.flatnonzero(~((column > 0) & np.isfinite(column)))
    if len(wrong):
        value = column[wrong[0]]
        shown = "NaN" if np.isnan(value) else f"{value:g}"
        hint = "Negative values in data have no logarithm." if value < 0 else "Leave out runs that did not end."
        bad_input(name, f"{shown} in row {wrong[0]}", "finite numbers > 0", hint)
