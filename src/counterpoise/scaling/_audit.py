r"""An IsoFLOP study put on trial: what parabolas say, what a fit of all runs says, how far apart they are, and on which runs that hangs.

The runs are fitted twice, by :class:`ChinchillaRegressor` and by :func:`isoflop_parabola`, and both are asked for the split of one budget.
Their difference has two sources that look alike and are not: the bias that parabolas have on this grid without any noise
(arXiv:2603.22339), and everything else - noise, runs that went wrong, a law of another form. The first is known: it is what the parabolas
say on the surface's own losses at the sizes that were run. Intervals resample runs within their budgets, with the surface held (as the
paper does) and with both methods fitted anew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._errors import bad_input, check_range, listing

from ._parabola import TOLERANCE, ParabolaFit, compute_of, fit_parabolas, group_budgets, positive_column
from ._regressor import LEVEL, ChinchillaRegressor, draw_within, percentiles
from ._surface import FLOPS_FACTOR, Allocation, FloatArray, Interval, LossSurface, percent

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

__all__ = ["IsoFlopAudit", "audit_isoflop"]

OUTLIER = 4.0  # robust standard deviations of a residual from which on a run is flagged
FEWEST = 20  # resamples: with fewer, not one lies beyond each limit of a 90 % interval
FAR = 1.0  # decades of compute beyond the runs from which on a plan is called an extrapolation
NAN = float("nan")


@dataclass(frozen=True, eq=False)
class IsoFlopAudit:
    """Result of :func:`audit_isoflop`. Arrays (m,) have an entry per budget, arrays (n,) one per run.

    Attributes:
        surface: the law of all runs. status: of its fit, see :class:`ChinchillaRegressor`.
        parabola: the parabolas of the budgets.
        target: the budget to plan for.
        surface_allocation, parabola_allocation: what each method plans there, with 90 % intervals; runs were resampled within budgets.
        deadweight: share of the target that the parabolas' plan wastes if the surface is right.
        deadweight_interval: of it, surface and parabolas fitted anew in every resample.
        deadweight_interval_held: of it, the parabolas alone fitted anew and the surface held, as in arXiv:2603.22339: too narrow.
        predicted_error: relative error of the parabolas' D at the target that comes from this grid and these exponents, without any noise.
        observed_error: relative difference of the two methods' D at the target. What is not predicted is noise, single runs, or a law of
            another form.
        width: (m,) decades from the smallest to the largest size. offset: (m,) log10 of the middle of the sizes over N*.
        drift: decades that the offset gains per decade of compute; NaN for one budget.
        predicted_bias, observed_bias: (m,) decades by which the vertex misses N* without noise, and as fitted.
        without_budget: (m,) ``deadweight`` once this budget is left out, both methods fitted anew.
        flags: (n,) why a run is suspect, "" if it is not: "residual", "few sizes", "opens downward" or "edge".
        deadweight_unflagged: ``deadweight`` without the flagged runs; NaN if nothing is flagged or too little remains.
        resamples, failed: resamples, and how many had no surface or no two parabolas.
        N, D, L: (n,) the runs.
    """

    surface: LossSurface
    status: str
    parabola: ParabolaFit
    target: float
    surface_allocation: Allocation
    parabola_allocation: Allocation
    deadweight: float
    deadweight_interval: Interval
    deadweight_interval_held: Interval
    predicted_error: float
    observed_error: float
    width: FloatArray
    offset: FloatArray
    drift: float
    predicted_bias: FloatArray
    observed_bias: FloatArray
    without_budget: FloatArray
    flags: npt.NDArray[np.str_]
    deadweight_unflagged: float
    resamples: int
    failed: int
    N: FloatArray
    D: FloatArray
    L: FloatArray

    def to_frame(self) -> pl.DataFrame:
        """One row per budget."""
        import polars as pl

        names = ("width", "offset", "predicted_bias", "observed_bias", "without_budget")
        return self.parabola.to_frame().with_columns(pl.Series(name, getattr(self, name)) for name in names)

    @property
    def flagged(self) -> pl.DataFrame:
        """The suspect runs, with their row number and the reason."""
        import polars as pl

        rows = np.flatnonzero(self.flags != "")
        columns: dict[str, Any] = {"row": rows, "N": self.N[rows], "D": self.D[rows], "L": self.L[rows]}
        return pl.DataFrame(columns | {"reason": self.flags[rows].tolist()}, schema_overrides={"reason": pl.String})

    def __repr__(self) -> str:
        return f"IsoFlopAudit({self.summary().splitlines()[0]})"

    def summary(self) -> str:
        """What each method plans, how far apart they are, why, and what to know before believing either."""
        budgets, law = self.parabola.budgets, self.surface
        first, last = f"{budgets[0]:.3g}", f"{budgets[-1]:.3g}"
        span = f"{len(budgets)} budgets from {first} to {last}" if len(budgets) > 1 else f"one budget of {first}"
        lines = [
            f"{len(self.N)} runs in {span} FLOPs: "
            f"L = {law.E:.4g} + {law.A:.4g} N^-{law.alpha:.4f} + {law.B:.4g} D^-{law.beta:.4f} (least squares on the losses).",
            f"Fit of all runs. {self.surface_allocation.summary()}",
        ]
        if np.isnan(self.parabola.a):
            lines.append("Parabolas: fewer than two budgets have a lowest point; they plan nothing.")
        else:
            D = self.parabola_allocation
            between = f" ({D.D_interval[0]:.3g} to {D.D_interval[1]:.3g})" if D.D_interval else ""
            lines += [f"Parabolas per budget. At {self.target:.3g} FLOPs: N {D.N:.3g}, D {D.D:.3g}{between}.", *self._difference()]
        lines += [f"Parabolas: {flag}." for flag in self.parabola.flags()]
        return "\n".join([*lines, *self._cautions()])

    def _difference(self) -> list[str]:
        low, high = self.deadweight_interval
        held_low, held_high = self.deadweight_interval_held
        lines = [
            f"If the surface is right, the parabolas' plan wastes {percent(self.deadweight, 2)} of the compute; {percent(LEVEL)} interval "
            f"{percent(low, 2)} to {percent(high, 2)} with both methods fitted anew, {percent(held_low, 2)} to "
            f"{percent(held_high, 2)} with the surface held.",
            f"Their D differs by {percent(self.observed_error, 1, '+')}, of which {percent(self.predicted_error, 1, '+')} is the bias of "
            "parabolas on this grid; the rest is noise, single runs, or a law of another form.",
        ]
        if np.isfinite(self.without_budget).sum() > 1:
            least, most = int(np.nanargmin(self.without_budget)), int(np.nanargmax(self.without_budget))
            lines.append(
                f"Leaving out one budget gives {percent(self.without_budget[least], 2)} (without {self.parabola.budgets[least]:.3g}) to "
                f"{percent(self.without_budget[most], 2)} (without {self.parabola.budgets[most]:.3g})."
            )
        count = int((self.flags != "").sum())
        if count:
            left = "too few runs remain" if np.isnan(self.deadweight_unflagged) else f"{percent(self.deadweight_unflagged, 2)}"
            lines.append(f"{count} runs are flagged; without them: {left}.")
        return lines

    def _cautions(self) -> list[str]:
        lines = []
        least, most = self.parabola.budgets[[0, -1]]
        above, below = float(np.log10(self.target / most)), float(np.log10(least / self.target))
        if max(above, below) >= FAR:
            where = f"{above:.1f} decades beyond the largest" if above > below else f"{below:.1f} decades below the smallest"
            lines.append(f"The target lies {where} budget: errors of exponents grow with every one of them.")
        copies = len(self.N) - len(np.unique(np.column_stack([self.N, self.D, self.L]), axis=0))
        if copies:
            lines.append(
                f"{copies} of {len(self.N)} rows repeat another one exactly, and count as runs of their own: if they are copies, the "
                "intervals are too narrow; leave them out."
            )
        if self.status == "weak":
            lines.append("The runs lie on one line in (log N, log D): size and data are told apart by curvature alone.")
        if self.status == "bound":
            lines.append("The fit ended at a bound (E = 0, or an exponent at its limit): the law is not pinned down by these runs.")
        if self.failed:
            lines.append(f"{self.failed} of {self.resamples} resamples had no surface, or no two parabolas with a lowest point.")
        return lines

    def plot(self) -> Figure:
        """Runs with both fits per budget, and the two plans from the runs to the target."""
        from counterpoise.report import _isoflop

        fit, law = self.parabola, self.surface
        curves = []
        for budget, C in enumerate(fit.budgets):
            own = fit.budget_of == budget
            x = np.linspace(np.log10(self.N[own].min()), np.log10(self.N[own].max()), 60)
            size = 10.0**x
            bent = fit.L_opt[budget] + fit.curvature[budget] * (x - np.log10(fit.N_opt[budget])) ** 2
            curves.append(_isoflop.Curve(size, law.loss(size, C / (law.flops_factor * size)), bent, float(C)))
        return _isoflop.isoflop_figure(
            self.N,
            self.L,
            self.flags != "",
            curves,
            best=(law.optimal_size(fit.budgets), law.optimal_loss(fit.budgets)),
            vertices=(np.where(fit.opens_up, fit.N_opt, np.nan), fit.L_opt),
            target=self.target,
            plans=(self.surface_allocation, self.parabola_allocation),
            slopes=((law.a0, law.a), (fit.a0, fit.a)),
            waste=(self.deadweight, *self.deadweight_interval),
        )


def audit_isoflop(
    df: Any,
    *,
    size: str = "N",
    data: str = "D",
    loss: str = "L",
    compute: str | None = None,
    target: float | None = None,
    flops_factor: float = FLOPS_FACTOR,
    tolerance: float = TOLERANCE,
    resamples: int = 200,
    seed: int = 0,
) -> IsoFlopAudit:
    r"""Audit a table of training runs at several compute budgets: is a plan made from parabolas to be trusted, and what would a fit of all
    runs plan?

    Parameters
    ----------
    df : polars or pandas frame, or a path
        One row per run.
    size, data, loss : str, default "N", "D", "L"
        Columns with the number of parameters, the tokens (or examples) trained on, and the final loss; all > 0.
    compute : str, optional
        Column with the budget of each run, FLOPs. Default: ``flops_factor * N * D``, neighbors grouped by ``tolerance``.
    target : float, optional
        The budget to plan for, FLOPs. Default: the largest budget of the runs, which extrapolates nothing.
    flops_factor : float, default 6.0
        FLOPs of one parameter and one token.
    tolerance : float, default 0.05
        Budgets whose log10 differ by no more from the next one are the same.
    resamples : int, default 200
        Of runs within their budgets, for the intervals (arXiv:2603.22339): at least 20, or 0 for none.
    seed : int, default 0
        Of the resamples, >= 0.

    Returns
    -------
    IsoFlopAudit
        ``summary()``, ``to_frame()`` (a row per budget), ``flagged`` (suspect runs), ``plot()``.

    Raises
    ------
    InputError
        If a column is missing or holds anything but finite numbers above 0, N or D is the same in all runs, there are fewer than 5
        different runs, or size or data does not lower the loss in the fit.

    Examples
    --------
    Grids that are centered at a third of the best size at the largest budget, and at the best one at the smallest:

    >>> from counterpoise.scaling import sample_isoflop
    >>> surface = LossSurface(1.69, 406.4, 410.7, 0.34, 0.28)
    >>> runs = sample_isoflop(surface, np.geomspace(1e17, 1e21, 5), drift=-np.log10(3))
    >>> audit = audit_isoflop(runs, target=1e24, resamples=0)
    >>> [round(100 * value, 2) for value in (audit.deadweight, audit.observed_error, audit.predicted_error)]
    [0.14, 6.94, 6.94]
    """
    from counterpoise.datasets import Dataset, read_table

    check_range("flops_factor", flops_factor, low=0.0, open_low=True)
    check_range("tolerance", tolerance, low=0.0)
    check_range("resamples", resamples, low=0, integer=True)
    if 0 < resamples < FEWEST:
        bad_input("resamples", resamples, f"at least {FEWEST}, or 0 for no intervals")
    check_range("seed", seed, low=0, integer=True)
    loaded = read_table(df)
    frame = loaded.frame if isinstance(loaded, Dataset) else loaded
    N, D, L = (_column(frame, role, name) for role, name in (("size", size), ("data", data), ("loss", loss)))
    if np.ptp(L) == 0:
        bad_input(f"column {loss!r}", f"{L[0]:g} in all {len(L)} runs", "losses that differ", "There is no law to fit.")
    C = compute_of(N, D, flops_factor) if compute is None else _column(frame, "compute", compute)
    budgets, budget_of = group_budgets(C, tolerance)
    if target is None:
        target = float(budgets[-1])
    check_range("target", target, low=0.0, open_low=True)
    law = ChinchillaRegressor(flops_factor=flops_factor).fit(_named(frame, {size: N, data: D}), L)
    parabola = fit_parabolas(N, D, L, budgets, budget_of)
    surface = law.surface_
    expected = surface.loss(N, D)
    noise_free = fit_parabolas(N, D, expected, budgets, budget_of)
    best = np.log10(surface.optimal_size(budgets))
    logs = [np.log10(N[budget_of == budget]) for budget in range(len(budgets))]
    offset = np.array([(own.max() + own.min()) / 2 for own in logs]) - best
    plan, seen = surface.optimal(target), parabola.allocation(target)
    flags = _flags(L - expected, L, parabola)
    audit = IsoFlopAudit(
        surface=surface,
        status=law.status_,
        parabola=parabola,
        target=float(target),
        surface_allocation=plan,
        parabola_allocation=seen,
        deadweight=_waste(surface, target, seen.D),
        deadweight_interval=(NAN, NAN),
        deadweight_interval_held=(NAN, NAN),
        predicted_error=noise_free.allocation(target).D / plan.D - 1,
        observed_error=seen.D / plan.D - 1,
        width=np.array([np.ptp(own) for own in logs]),
        offset=offset,
        drift=float(np.polyfit(np.log10(budgets), offset, 1)[0]) if len(budgets) > 1 else NAN,
        predicted_bias=np.log10(noise_free.N_opt) - best,
        observed_bias=np.log10(parabola.N_opt) - best,
        without_budget=np.array([_refitted(law, N, D, L, budget_of != k, budget_of, budgets, target) for k in range(len(budgets))]),
        flags=flags,
        deadweight_unflagged=_refitted(law, N, D, L, flags == "", budget_of, budgets, target) if (flags != "").any() else NAN,
        resamples=resamples,
        failed=0,
        N=N,
        D=D,
        L=L,
    )
    return _with_intervals(audit, law, seed) if resamples else audit


def _waste(surface: LossSurface, target: float, D: float) -> float:
    return float(surface.deadweight(target, D)) if np.isfinite(D) and D > 0 else NAN


def _refitted(
    law: ChinchillaRegressor,
    N: FloatArray,
    D: FloatArray,
    L: FloatArray,
    kept: npt.NDArray[np.bool_],
    budget_of: npt.NDArray[np.int64],
    budgets: FloatArray,
    target: float,
) -> float:
    """Deadweight with both methods fitted to some of the runs; NaN where one of them has nothing to say."""
    if not kept.any():
        return NAN
    surface = law._redrawn(np.column_stack([N, D])[kept], L[kept])
    parabola = fit_parabolas(N[kept], D[kept], L[kept], budgets, budget_of[kept])
    return NAN if surface is None else _waste(surface, target, parabola.allocation(target).D)


def _flags(residual: FloatArray, L: FloatArray, parabola: ParabolaFit) -> npt.NDArray[np.str_]:
    away = np.abs(residual - np.median(residual))
    # Noise-free losses have residuals of rounding only, none of which is an outlier.
    spread = max(1.4826 * float(np.median(away)), 1e-9 * float(np.median(L)))
    few = np.isnan(parabola.curvature)
    by_budget = np.select([few, ~parabola.opens_up, parabola.edge], ["few sizes", "opens downward", "edge"], "")
    return np.where(away > OUTLIER * spread, "residual", by_budget[parabola.budget_of])


def _with_intervals(audit: IsoFlopAudit, law: ChinchillaRegressor, seed: int) -> IsoFlopAudit:
    """Runs resampled within their budgets."""
    N, D, L, C = audit.N, audit.D, audit.L, audit.target
    fit = audit.parabola
    plans: list[tuple[float, float, float]] = []
    seen, wasted, held = [], [], []
    # Runs that are alone in their budget are drawn together: each from itself, they would never vary.
    strata = np.where(fit.n_runs[fit.budget_of] > 1, fit.budget_of, -1)
    for rows in draw_within(strata, audit.resamples, seed):
        parabola = fit_parabolas(N[rows], D[rows], L[rows], fit.budgets, fit.budget_of[rows]).allocation(C)
        surface = law._redrawn(np.column_stack([N, D])[rows], L[rows])
        if surface is not None:
            best = surface.optimal(C)
            plans.append((best.N, best.D, best.loss))
        if np.isfinite(parabola.D):
            seen.append((parabola.N, parabola.D))
            held.append(_waste(audit.surface, C, parabola.D))
            if surface is not None:
                wasted.append(_waste(surface, C, parabola.D))
    limits = [percentiles(column, LEVEL) for column in zip(*plans, strict=True)] or [(NAN, NAN)] * 3
    sides = [percentiles(column, LEVEL) for column in zip(*seen, strict=True)] or [(NAN, NAN)] * 2
    N_limits, D_limits, L_limits = limits
    return replace(
        audit,
        surface_allocation=replace(audit.surface_allocation, N_interval=N_limits, D_interval=D_limits, loss_interval=L_limits, level=LEVEL),
        parabola_allocation=replace(audit.parabola_allocation, N_interval=sides[0], D_interval=sides[1], level=LEVEL),
        deadweight_interval=percentiles(wasted, LEVEL),
        deadweight_interval_held=percentiles(held, LEVEL),
        failed=audit.resamples - len(wasted),
    )


# ---- input ------------------------------------------------------------------------------------------------------------------------------


def _column(frame: pl.DataFrame, role: str, name: str) -> FloatArray:
    import polars as pl

    if name not in frame.columns:
        bad_input(role, name, f"one of the columns {listing(frame.columns)}")
    column = frame[name]
    if column.dtype == pl.String:
        wrong = column.filter(column.cast(pl.Float64, strict=False).is_null() & column.is_not_null())
        if len(wrong):
            bad_input(
                f"column {name!r}", f"{wrong[0]!r} in row {column.index_of(wrong[0])}", "numbers > 0", "Correct or leave out that row."
            )
    if not column.dtype.is_numeric():
        bad_input(f"column {name!r}", f"values of type {column.dtype}", "numbers > 0")
    return positive_column(f"column {name!r}", column.cast(pl.Float64).fill_null(NAN))


def _named(frame: pl.DataFrame, columns: dict[str, FloatArray]) -> pl.DataFrame:
    """As a frame, so that messages name the columns."""
    import polars as pl

    if len(columns) < 2:
        (name,) = columns
        bad_input("data", name, "another column than that of size")
    return pl.DataFrame({f"column {name!r}": values for name, values in columns.items()})
