r"""Does a better model on average help the minority too? Minority against majority accuracy over many models (arXiv:2305.02995).

What is unbalanced: choosing the model with the best average assumes that the accuracy of the minority rises with that of the majority,
along a line. Where a spurious feature goes with the label in most rows, it may not: a model that uses the feature only has the accuracies
(1, 0), one that uses the real signal only has (q, q). Training may first walk from chance (1/2, 1/2) down toward (1, 0), and up toward
(q, q) later: the average can rise on both arms. Here, for the pairs :math:`(a_i, b_i)` of n models or checkpoints,

.. math:: b = c_0 + c_1 a \qquad\text{and}\qquad b = c_0 + c_1 a + c_2 (a - \bar a)^2

are fitted on the accuracies themselves and on their probits :math:`\Phi^{-1}`, because a transformation alone can bend a line.
Checkpoints of one run resemble each other, so the intervals come from resampled *runs*.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from counterpoise._errors import bad_input, check_choice, check_range, listing
from counterpoise._seeding import generator
from counterpoise._stats import wilson
from counterpoise.groups import Groups, _to_numpy

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

__all__ = ["CurveFit", "CurveReport", "performance_curve", "select_by_curve"]

FloatArray = npt.NDArray[np.float64]
Interval = tuple[float, float]
Shape = Literal["line", "moon", "decreasing", "inconclusive"]
Scale = Literal["accuracy", "probit"]
SCALES: tuple[Scale, ...] = get_args(Scale)

LEVEL = 0.95
LEAST_MODELS, LEAST_RUNS = 8, 3  # below, no shape is named
LEAST_RANGE = 0.05  # of the majority accuracy; below, a parabola is not to be seen
LEAST_EXAMPLES = 200  # of the minority in the test set; below, its noise alone can draw shapes
PROBIT_EXAMPLES = 1000  # taken for the test set where its size is not given: accuracies are clipped to [1/2000, 1 - 1/2000]
ROUNDING = 1e-9  # a slope or curvature below is that of points that lie exactly on a line
CHANCE = 0.55  # majority accuracy below which a model of two classes has learned next to nothing


@dataclass(frozen=True, eq=False)
class CurveFit:
    """A fitted curve. ``coef``: c0, c1 and, for the parabola, c2; ``ci`` (len(coef), 2): their 95 % intervals; ``r2``: explained share."""

    coef: FloatArray
    ci: FloatArray
    r2: float


@dataclass(frozen=True, eq=False)
class CurveReport:
    """Result of :func:`performance_curve`.

    Attributes:
        shape: ``moon`` (falls, then rises), ``decreasing``, ``line`` (rises, no curvature to be seen on at least one scale) or
            ``inconclusive``.
        scale: of ``linear``, ``quadratic``, ``convexity`` and ``within``: "accuracy" or "probit".
        linear, quadratic: the two fits.
        convexity, convexity_ci: c2 of the parabola and its interval.
        vertex: majority accuracy at which the parabola turns; NaN if it does not.
        falling_share: share of the observed range of the majority accuracy in which the parabola falls, 0 to 1.
        gap_closing: fitted minority accuracy at the largest majority accuracy, minus that at the median one.
        within, within_ci: c2 with an intercept for every run; NaN if every run has one model. ``mixed``: with an intercept, or with a line,
            for every run, nothing is left (on either scale) of a curvature that all models together have: it comes from runs that differ,
            such as those of several architectures. Lines of different slopes are told from a curve only by runs of many checkpoints with
            little noise.
        pearson, spearman: correlations of the accuracies.
        f_pvalue: of the F-test of c2; NaN where runs have several models, for which it is wrong.
        n_models, n_runs, n_dropped: models and runs in the fits; models left out because an accuracy is NaN.
        near_chance: models with a majority accuracy below 0.55.
        by_scale: scale -> what the shape would be by this scale alone.
        majority, minority, runs: (n,) what was fitted. n_majority, n_minority: (n,) test examples, or None.
        pairwise: with several minorities, the report of each against the majority; the report itself is of the worst group of every model.
    """

    shape: Shape
    scale: Scale
    linear: CurveFit
    quadratic: CurveFit
    convexity: float
    convexity_ci: Interval
    vertex: float
    falling_share: float
    gap_closing: float
    within: float
    within_ci: Interval
    mixed: bool
    pearson: float
    spearman: float
    f_pvalue: float
    n_models: int
    n_runs: int
    n_dropped: int
    near_chance: int
    by_scale: Mapping[str, Shape]
    majority: FloatArray
    minority: FloatArray
    runs: npt.NDArray[Any]
    n_majority: FloatArray | None = None
    n_minority: FloatArray | None = None
    pairwise: Mapping[str, CurveReport] = field(default_factory=dict)

    def fitted(self, majority: npt.ArrayLike) -> FloatArray:
        """Minority accuracy that the parabola gives at these majority accuracies, within [0, 1]."""
        x = _scaled(np.asarray(majority, dtype=np.float64), self.scale, self.n_majority)
        center = _scaled(self.majority, self.scale, self.n_majority).mean()
        c0, c1, c2 = self.quadratic.coef
        return np.clip(_unscaled(c0 + c1 * x + c2 * (x - center) ** 2, self.scale), 0.0, 1.0)

    def to_frame(self) -> pl.DataFrame:
        """One row per model: ``run``, ``majority`` and ``minority`` with Wilson limits (null without numbers of examples), ``fitted``."""
        import polars as pl

        columns: dict[str, Any] = {"run": self.runs}
        for name, share, n in (("majority", self.majority, self.n_majority), ("minority", self.minority, self.n_minority)):
            low, high = (None, None) if n is None else wilson(share * n, n)
            columns |= {name: share, f"{name}_low": low, f"{name}_high": high}
        limits = {f"{name}_{end}": pl.Float64 for name in ("majority", "minority") for end in ("low", "high")}
        return pl.DataFrame(columns | {"fitted": self.fitted(self.majority)}, schema_overrides=limits)

    def __repr__(self) -> str:
        return f"CurveReport({self.summary().splitlines()[0]})"

    def summary(self) -> str:
        """The shape with its numbers, then what to know before believing it."""
        low, high = self.convexity_ci
        fits = (
            f"on the scale of {self.scale}, c2 is {self.convexity:.2f} ({low:.2f} to {high:.2f}) and "
            f"R² goes from {self.linear.r2:.2f} to {self.quadratic.r2:.2f}"
        )
        lines = [f"{self.n_models} models of {self.n_runs} runs: {_SENTENCE[self.shape]}; {fits}."]
        if self.shape == "moon":
            lines.append(
                f"The curve is lowest at a majority accuracy of {self.vertex:.3f}; from the median model to the best one the minority "
                f"gains {self.gap_closing:+.3f}. A better average may cost the minority: choose with select_by_curve."
            )
        elif self.shape == "decreasing":
            lines.append("A better average costs the minority: choose with select_by_curve.")
        if self.n_models < LEAST_MODELS or self.n_runs < LEAST_RUNS:
            lines.append(f"A shape needs at least {LEAST_MODELS} models of {LEAST_RUNS} runs.")
        elif len(set(self.by_scale.values())) > 1:
            lines.append("By one scale alone: " + ", ".join(f"{shape} ({scale})" for scale, shape in self.by_scale.items()) + ".")
        if self.mixed:
            lines.append("Within runs there is no such curvature: runs that differ were mixed. Look at each family of models alone.")
        if self.near_chance:
            lines.append(
                f"{self.near_chance} models have a majority accuracy below {CHANCE}, which is chance for two classes; "
                "they make a corner of their own."
            )
        if self.n_dropped:
            lines.append(f"{self.n_dropped} models without an accuracy were left out.")
        lines += [f"{name}: {report.shape}, c2 {report.convexity:.2f}." for name, report in self.pairwise.items()]
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Every model as a point with its binomial interval, checkpoints of a run connected, the line and the parabola."""
        from counterpoise.report import _curve

        grid = np.linspace(self.majority.min(), self.majority.max(), 200)
        frame = self.to_frame()
        limits = None if self.n_minority is None else frame.select("minority_low", "minority_high").to_numpy()
        x = _scaled(grid, self.scale, self.n_majority)
        line = np.clip(_unscaled(self.linear.coef[0] + self.linear.coef[1] * x, self.scale), 0.0, 1.0)
        return _curve.curve_figure(
            self.majority, self.minority, self.runs, limits, grid, line, self.fitted(grid), self.shape, self.n_models, self.n_runs
        )


_SENTENCE: dict[str, str] = {
    "moon": "minority accuracy first falls and then rises with majority accuracy (moon)",
    "decreasing": "minority accuracy falls as majority accuracy rises (decreasing)",
    "line": "minority accuracy rises with majority accuracy, and no curvature is to be seen (line)",
    "inconclusive": "no shape stands out (inconclusive)",
}


def performance_curve(
    majority: npt.ArrayLike,
    minority: Any,
    *,
    runs: Any = None,
    n_majority: Any = None,
    n_minority: Any = None,
    scale: Scale = "accuracy",
    bootstrap: int = 1000,
    seed: int = 0,
) -> CurveReport:
    r"""How minority accuracy moves with majority accuracy over models or checkpoints: a line, a moon, or a decline.

    Fitted are :math:`b = c_0 + c_1 a` and :math:`b = c_0 + c_1 a + c_2 (a - \bar a)^2`. On the probit scale a and b are
    :math:`\Phi^{-1}` of the accuracies, clipped to :math:`[1/(2n), 1 - 1/(2n)]` for n test examples (their median, if they differ; 1000, if
    not given). Intervals resample whole runs; their percentiles are widened for few runs (the expanded percentile interval of Hesterberg
    2015, arXiv:1411.5279).

    The shape is

    - ``moon`` if the interval of c2 lies above 0 on *both* scales (a transformation can bend a line), the vertex lies inside the observed
      range on at least one of them, so that there is a falling and a rising arm, and the range is at least 0.05; not if the curvature is
      gone once every run has a level of its own (``mixed``);
    - ``decreasing`` if it is no moon and the interval of the line's slope lies below 0 on both scales;
    - ``line`` if that interval lies above 0 on both scales, and on at least one of them the interval of c2 holds 0;
    - ``inconclusive`` otherwise, and always if the curvature is ``mixed`` or for fewer than 8 models or 3 runs.

    Decide which models belong in *before* looking: models near chance make a corner of their own, and differences between families of
    models can look like a curve.

    Parameters
    ----------
    majority : array-like, shape (n,)
        Test accuracy of each model on the majority, or any metric in [0, 1]. Models with NaN are left out.
    minority : array-like, shape (n,) or (n, K - 1), frame, or mapping from name to (n,)
        The same on the minority; several columns are several groups, each against the majority.
    runs : array-like, shape (n,), default every model its own run
        Which training run a checkpoint belongs to.
    n_majority, n_minority : int or array-like, shaped like the accuracies, or for ``n_minority`` a mapping, optional
        Test examples behind each accuracy.
    scale : {"accuracy", "probit"}, default "accuracy"
        Of the fits that are reported; the shape looks at both.
    bootstrap : int, default 1000
        Resamples of runs; 0 gives no intervals and no shape.
    seed : int, default 0
        Of the resamples.

    Raises
    ------
    InputError
        If accuracies lie outside [0, 1] (percent, perhaps), lengths differ, all majority accuracies are the same, or there are no test
        examples.

    Warns
    -----
    UserWarning
        If the majority accuracies range over less than 0.05, or fewer than 200 test examples are behind a minority accuracy.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> a = rng.uniform(0.55, 0.95, 60)
    >>> report = performance_curve(a, 2 * (a - 0.7) ** 2 + 0.5 + rng.normal(0, 0.01, 60), runs=np.arange(60) // 6)
    >>> report.shape, round(report.vertex, 2)
    ('moon', 0.7)
    """
    check_choice("scale", scale, SCALES)
    check_range("bootstrap", bootstrap, low=0, integer=True)
    a, _ = _accuracies("majority", majority)
    if a.shape[1] != 1:
        bad_input("majority", f"shape {a.shape}", "one accuracy per model, shape (n,)", "Groups other than the largest go to minority.")
    b, names = _accuracies("minority", minority)
    if len(a) != len(b):
        bad_input("minority", f"{len(b)} models", f"one for each of the {len(a)} in majority")
    n_a, n_b = _examples("n_majority", n_majority, a.shape, ()), _examples("n_minority", n_minority, b.shape, names)
    labels = np.arange(len(a)) if runs is None else _to_numpy("runs", runs)
    if labels.shape != (len(a),):
        bad_input("runs", f"shape {labels.shape}", f"the run of each of the {len(a)} models")

    kept = ~(np.isnan(a).any(axis=1) | np.isnan(b).any(axis=1))
    codes = Groups.from_labels(labels[kept], "task").ids
    if (codes < 0).any():
        bad_input("runs", f"{int((codes < 0).sum())} missing", "the run of each model")
    a, b, labels = a[kept, 0], b[kept], labels[kept]
    n_a, n_b = (None if n is None else n[kept] for n in (n_a, n_b))
    if len(a) == 0 or np.ptp(a) == 0:
        shown = f"{len(a)} models" + (f", all {a[0]:g}" if len(a) else "")
        bad_input("majority", shown, "accuracies that differ", "Models of several sizes or checkpoints of several steps do.")
    if np.ptp(a) < LEAST_RANGE:
        warnings.warn(
            f"The majority accuracies range over {np.ptp(a):.3f} only, less than {LEAST_RANGE}: any curve is a line so close by.",
            UserWarning,
            stacklevel=2,
        )
    if n_b is not None and n_b.min() < LEAST_EXAMPLES:
        warnings.warn(
            f"A minority accuracy comes from {n_b.min():.0f} test examples, fewer than {LEAST_EXAMPLES}: its noise can draw shapes.",
            UserWarning,
            stacklevel=2,
        )

    weights = draw_runs(int(codes.max()) + 1, bootstrap, generator(seed, "performance curve"))

    def report(column: FloatArray, n: FloatArray | None, pairwise: Mapping[str, CurveReport]) -> CurveReport:
        examples = None if n_a is None else n_a[:, 0]
        return _report(a, column, codes, labels, examples, n, scale, weights, int((~kept).sum()), pairwise)

    def examples_of(k: Any) -> FloatArray | None:
        return None if n_b is None else n_b[np.arange(len(a)), k]

    if b.shape[1] == 1:
        return report(b[:, 0], examples_of(0), {})
    worst = b.argmin(axis=1)
    pairwise = {name: report(b[:, k], examples_of(k), {}) for k, name in enumerate(names)}
    return report(b[np.arange(len(a)), worst], examples_of(worst), pairwise)


def select_by_curve(report: CurveReport, table: Any, *, constraint: Mapping[str, float] | None = None) -> dict[str, Any]:
    """The model with the best majority accuracy among those that are good enough for the minority.

    Of the rows whose columns reach the bounds of ``constraint``, the one with the largest ``majority`` is taken; of equals the one with the
    larger ``minority``, then the first. The best of many noisy numbers is too good to be true: ``minority_fitted``, what the curve expects
    of this model, shows by how much.

    Parameters
    ----------
    report : CurveReport
        Of these models, or of a larger collection.
    table : frame or mapping with columns ``majority`` and ``minority``, such as :attr:`SubpopulationSweep.table_`
        The models to choose from.
    constraint : mapping from column to float, default {"minority": 0.8}
        Least values; a NaN never reaches one.

    Returns
    -------
    dict
        The row, with ``minority_fitted``, and ``minority_low`` and ``minority_high``: its 95 % Wilson limits for the fewest test examples
        that the report knows of (None if it knows none).

    Raises
    ------
    InputError
        If a column is missing, or no row reaches the bounds: the message says what is within reach.

    Examples
    --------
    >>> table = {"run": [0, 0, 1, 1], "majority": [0.7, 0.9, 0.8, 0.95], "minority": [0.6, 0.5, 0.7, 0.82]}
    >>> report = performance_curve(table["majority"], table["minority"], runs=table["run"])
    >>> select_by_curve(report, table, constraint={"minority": 0.6})["majority"]
    0.95
    """
    from counterpoise.datasets import Dataset, read_table

    if not isinstance(report, CurveReport):
        bad_input("report", type(report).__name__, "a CurveReport, as performance_curve returns it")
    bounds = {"minority": 0.8} if constraint is None else dict(constraint)
    loaded = read_table(table)
    frame = loaded.frame if isinstance(loaded, Dataset) else loaded
    for column in dict.fromkeys(("majority", "minority", *bounds)):
        if column not in frame.columns:
            bad_input("table", f"columns {listing(frame.columns)}", f"a column {column!r}")
    values = {column: frame[column].cast(float).fill_null(np.nan).to_numpy() for column in ("majority", "minority", *bounds)}
    reached = ~np.isnan(values["majority"])
    for column, bound in bounds.items():
        check_range(f"constraint[{column!r}]", bound)
        reached &= values[column] >= bound
    if not reached.any():
        within = ", ".join(f"{column} {np.nanmax(values[column], initial=-np.inf):.3f}" for column in bounds)
        bad_input("constraint", bounds, "bounds that a model reaches", f"The largest values in the table, each alone: {within}.")
    rows = np.flatnonzero(reached)
    best = rows[np.lexsort((rows, -values["minority"][rows], -values["majority"][rows]))[0]]
    low = high = None
    if report.n_minority is not None:
        n = report.n_minority.min()
        low, high = (float(limit) for limit in wilson(values["minority"][best] * n, n))
    row: dict[str, Any] = frame.row(int(best), named=True)
    fitted = float(report.fitted(values["majority"][best]))
    return row | {"minority_fitted": fitted, "minority_low": low, "minority_high": high}


# ---- fits -------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fits:
    """Both fits of x and y for B weightings of the runs; arrays (B,) or (B, coefficients), NaN where x has too few distinct values."""

    linear: FloatArray  # (B, 2)
    linear_r2: FloatArray
    quadratic: FloatArray  # (B, 3), its square centered at the mean of x over all models
    quadratic_r2: FloatArray
    within: FloatArray  # c2 with an intercept per run
    straight: FloatArray  # c2 with an intercept and a slope per run

    @property
    def gain(self) -> FloatArray:
        """What the parabola explains and the line does not."""
        return self.quadratic_r2 - self.linear_r2


def draw_runs(n_runs: int, draws: int, rng: np.random.Generator) -> FloatArray:
    """(draws, n_runs) how often each run was drawn."""
    return rng.multinomial(n_runs, np.full(n_runs, 1 / n_runs), size=draws).astype(np.float64)


def fit_curves(x: FloatArray, y: FloatArray, codes: npt.NDArray[np.int64], weights: FloatArray) -> Fits:
    """Least squares of y on x and on x and its square, for every row of ``weights`` (B, R), which weighs the runs ``codes`` (n,).

    Everything follows from sums over the models of a run, so no model is looked at twice.
    """
    center, middle = x.mean(), y.mean()
    u, v = x - center, y - middle
    columns = np.column_stack([np.ones_like(u), u, u**2, v])  # 1, x, its square, y
    products = columns[:, :, None] * columns[:, None, :]
    n_runs = weights.shape[1]
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(n_runs))
    sums = np.add.reduceat(products[order], starts, axis=0)  # (R, 4, 4)
    total = _weighted(weights, sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        S = total - total[:, :, :1] * total[:, :1, :] / total[:, :1, :1]  # centered within the draw
        slope = _divide(S[:, 1, 3], S[:, 1, 1], total[:, 1, 1])
        c1, c2 = _two(S)
        mean = total[:, 0, 1:] / total[:, :1, 0]
        own = sums - sums[:, :, :1] * sums[:, :1, :] / sums[:, :1, :1]  # centered within the run
        _, within = _two(_weighted(weights, own))
        # What a line of their own leaves of the square and of y, run by run.
        spread_out = own[:, 1, 1] > 1e-12
        along = np.where(spread_out, own[:, 1, 1], np.inf)[:, None] ** -1 * own[:, 1, :]
        rest = own - along[:, :, None] * own[:, 1:2, :]
        straight = _divide(weights @ rest[:, 2, 3], weights @ rest[:, 2, 2], total[:, 2, 2])
        # From the centered coordinates to those of the equations.
        linear = np.column_stack([middle + mean[:, 2] - slope * (mean[:, 0] + center), slope])
        quadratic = np.column_stack([middle + mean[:, 2] - c1 * (mean[:, 0] + center) - c2 * mean[:, 1], c1, c2])
        spread = np.where(S[:, 3, 3] > 1e-14 * total[:, 0, 0], S[:, 3, 3], np.nan)
        linear_r2, quadratic_r2 = slope * S[:, 1, 3] / spread, (c1 * S[:, 1, 3] + c2 * S[:, 2, 3]) / spread
    return Fits(linear, linear_r2, quadratic, quadratic_r2, within, straight)


def expanded_interval(draws: FloatArray, units: int) -> FloatArray:
    """(2, ...) 95 % percentile interval of ``draws`` (B, ...), NaN left out, widened as a t interval over ``units`` would be.

    Without draws, or for one unit, it is infinite.
    """
    if units < 2 or not len(draws) or np.isnan(draws).all(axis=0).any():
        return np.stack([np.full(draws.shape[1:], -np.inf), np.full(draws.shape[1:], np.inf)])
    tail = special.ndtr(-np.sqrt(units / (units - 1)) * stats.t.ppf(0.5 + LEVEL / 2, units - 1))
    return np.asarray(np.nanquantile(draws, [tail, 1 - tail], axis=0))


def _weighted(weights: FloatArray, sums: FloatArray) -> FloatArray:
    return np.asarray((weights @ sums.reshape(len(sums), -1)).reshape(len(weights), *sums.shape[1:]))


def _two(S: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Coefficients of x and its square from centered sums of products (B, 4, 4)."""
    xx, xz, zz, xy, zy = S[:, 1, 1], S[:, 1, 2], S[:, 2, 2], S[:, 1, 3], S[:, 2, 3]
    determinant = xx * zz - xz**2
    determinant = np.where(determinant > 1e-10 * xx * zz, determinant, np.nan)
    return (zz * xy - xz * zy) / determinant, (xx * zy - xz * xy) / determinant


def _divide(above: FloatArray, below: FloatArray, size: FloatArray) -> FloatArray:
    return above / np.where(below > 1e-12 * size, below, np.nan)


def _report(
    a: FloatArray,
    b: FloatArray,
    codes: npt.NDArray[np.int64],
    labels: npt.NDArray[Any],
    n_a: FloatArray | None,
    n_b: FloatArray | None,
    scale: Scale,
    weights: FloatArray,
    n_dropped: int,
    pairwise: Mapping[str, CurveReport],
) -> CurveReport:
    n_runs = weights.shape[1]
    seen = {name: _Seen.of(_scaled(a, name, n_a), _scaled(b, name, n_b), codes, weights) for name in SCALES}
    by_scale: dict[str, Shape] = {name: one.shape(n_runs, float(np.ptp(a))) for name, one in seen.items()}
    own = seen[scale]
    mixed = all(one.mixed for one in seen.values())
    shape: Shape = "inconclusive"
    if len(a) >= LEAST_MODELS and n_runs >= LEAST_RUNS and not mixed:
        # A change of scale can bend a line, so both must be convex; it cannot move a turning point, so one that sees it will do.
        if "moon" in by_scale.values() and all(one.convex for one in seen.values()):
            shape = "moon"
        elif all(one.slope_ci[1] < -ROUNDING for one in seen.values()):
            shape = "decreasing"
        elif "line" in by_scale.values() and all(one.slope_ci[0] > ROUNDING for one in seen.values()):
            shape = "line"
    c0, c1, c2 = own.fits.quadratic[0]
    ends = [_unscaled(c0 + c1 * x + c2 * (x - own.x.mean()) ** 2, scale) for x in (own.x.max(), np.median(own.x))]
    f_pvalue = float("nan")
    if n_runs == len(a) > 3:
        gained, left = own.fits.gain[0], 1 - own.fits.quadratic_r2[0]
        f_pvalue = float(stats.f.sf(gained / max(left, 1e-300) * (len(a) - 3), 1, len(a) - 3))
    constant = np.ptp(b) == 0
    return CurveReport(
        shape=shape,
        scale=scale,
        linear=CurveFit(own.fits.linear[0], expanded_interval(own.draws.linear, n_runs).T, float(own.fits.linear_r2[0])),
        quadratic=CurveFit(own.fits.quadratic[0], expanded_interval(own.draws.quadratic, n_runs).T, float(own.fits.quadratic_r2[0])),
        convexity=float(c2),
        convexity_ci=own.convexity_ci,
        vertex=float(_unscaled(np.asarray(own.vertex), scale)),
        falling_share=own.falling_share,
        gap_closing=float(ends[0] - ends[1]),
        within=float(own.fits.within[0]),
        within_ci=own.within_ci,
        mixed=mixed,
        pearson=float("nan") if constant else float(np.corrcoef(a, b)[0, 1]),
        spearman=float("nan") if constant else float(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1]),
        f_pvalue=f_pvalue,
        n_models=len(a),
        n_runs=n_runs,
        n_dropped=n_dropped,
        near_chance=int((a < CHANCE).sum()),
        by_scale=by_scale,
        majority=a,
        minority=b,
        runs=labels,
        n_majority=n_a,
        n_minority=n_b,
        pairwise=pairwise,
    )


@dataclass(frozen=True)
class _Seen:
    """What one scale shows."""

    x: FloatArray
    fits: Fits  # of all models
    draws: Fits
    slope_ci: Interval
    convexity_ci: Interval
    within_ci: Interval
    mixed: bool

    @classmethod
    def of(cls, x: FloatArray, y: FloatArray, codes: npt.NDArray[np.int64], weights: FloatArray) -> _Seen:
        n_runs = weights.shape[1]
        fits, draws = fit_curves(x, y, codes, np.ones((1, n_runs))), fit_curves(x, y, codes, weights)

        def interval(values: FloatArray) -> Interval:
            low, high = expanded_interval(values, n_runs)
            return float(low), float(high)

        convexity_ci, within_ci = interval(draws.quadratic[:, 2]), interval(draws.within)
        # The curvature of all models together is more than that within runs, which may be none.
        mixed = convexity_ci[0] > ROUNDING and any(
            interval(one)[0] <= 0 and interval(draws.quadratic[:, 2] - one)[0] > ROUNDING for one in (draws.within, draws.straight)
        )
        if np.isnan(fits.within[0]):
            within_ci = (float("nan"), float("nan"))
        return cls(x, fits, draws, interval(draws.linear[:, 1]), convexity_ci, within_ci, bool(mixed))

    @property
    def convex(self) -> bool:
        return self.convexity_ci[0] > ROUNDING

    @property
    def vertex(self) -> float:
        _, c1, c2 = self.fits.quadratic[0]
        return float(self.x.mean() - c1 / (2 * c2)) if c2 else float("nan")

    @property
    def falling_share(self) -> float:
        _, c1, c2 = self.fits.quadratic[0]
        if not np.isfinite(c2):
            return float("nan")
        if c2 == 0:
            return float(c1 < 0)
        below = float(np.clip((self.vertex - self.x.min()) / np.ptp(self.x), 0.0, 1.0))
        return below if c2 > 0 else 1 - below

    def shape(self, n_runs: int, span: float) -> Shape:
        if len(self.x) < LEAST_MODELS or n_runs < LEAST_RUNS:
            return "inconclusive"
        turns = self.x.min() < self.vertex < self.x.max()
        if self.convex and turns and span >= LEAST_RANGE:
            return "moon"
        if self.slope_ci[1] < -ROUNDING:
            return "decreasing"
        if self.slope_ci[0] > ROUNDING and self.convexity_ci[0] <= ROUNDING and self.convexity_ci[1] >= -ROUNDING:
            return "line"
        return "inconclusive"


# ---- input ------------------------------------------------------------------------------------------------------------------------------


def _scaled(accuracy: FloatArray, scale: str, n: FloatArray | None) -> FloatArray:
    if scale == "accuracy":
        return accuracy
    # One bound for all models: a bound that differs from model to model would bend the curve by itself.
    least = 1 / (2 * (PROBIT_EXAMPLES if n is None else float(np.median(n))))
    return np.asarray(special.ndtri(np.clip(accuracy, least, 1 - least)))


def _unscaled(value: FloatArray, scale: str) -> FloatArray:
    return value if scale == "accuracy" else np.asarray(special.ndtr(value))


def _columns(argument: str, values: Any) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """(n, K) and the names of the columns."""
    columns = values if isinstance(values, Mapping) else {name: values[name] for name in values.columns} if _is_frame(values) else None
    if columns is not None:
        if not columns:
            bad_input(argument, "no columns", "a column per group")
        arrays = [_to_numpy(f"{argument}[{name!r}]", column) for name, column in columns.items()]
        if len({array.shape for array in arrays}) > 1:
            bad_input(argument, f"columns of shapes {listing(array.shape for array in arrays)}", "columns of one length")
        return np.stack(arrays, axis=-1), tuple(str(name) for name in columns)
    array = _to_numpy(argument, values)
    array = array[:, None] if array.ndim == 1 else array
    return array, tuple(f"group {k + 1}" for k in range(array.shape[-1] if array.ndim else 0))


def _is_frame(values: Any) -> bool:
    return hasattr(values, "columns") and hasattr(values, "shape") and not isinstance(values, np.ndarray)


def _accuracies(argument: str, values: Any) -> tuple[FloatArray, tuple[str, ...]]:
    array, names = _columns(argument, values)
    try:
        accuracy = array.astype(np.float64)
    except (TypeError, ValueError):
        bad_input(argument, f"an array of {array.dtype}", "accuracies in [0, 1]")
    if accuracy.ndim != 2 or not accuracy.shape[1]:
        bad_input(argument, f"an array of shape {np.shape(values)}", "one accuracy per model, shape (n,)")
    outside = accuracy[(accuracy < 0) | (accuracy > 1)]
    if len(outside):
        hint = "Percent? Divide by 100." if (outside > 1).all() else ""
        bad_input(argument, float(outside[0]), "accuracies in [0, 1]", hint)
    return accuracy, names


def _examples(argument: str, values: Any, shape: tuple[int, ...], names: tuple[str, ...]) -> FloatArray | None:
    """Numbers of test examples like ``shape`` (n, K), or None."""
    if values is None:
        return None
    if isinstance(values, Mapping):
        if set(values) != set(names):
            bad_input(argument, f"groups {listing(values)}", f"the groups {listing(names)}")
        values = np.stack([np.broadcast_to(_to_numpy(argument, values[name]), shape[:1]) for name in names], axis=-1)
    array = _to_numpy(argument, values)
    try:
        counts = array.astype(np.float64)
        counts = np.broadcast_to(counts[:, None] if counts.ndim == 1 else counts, shape)
    except (TypeError, ValueError):
        bad_input(argument, f"an array of shape {array.shape}", f"a number, or one for each of the {shape[0]} models")
    if not (counts >= 1).all():
        bad_input(
            argument, float(counts.min()), "at least one test example behind every accuracy", "A group that is empty has no accuracy."
        )
    return np.array(counts)
