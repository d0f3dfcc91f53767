r"""Scaling laws as scikit-learn estimators: :class:`ChinchillaRegressor` for (N, D), :class:`SeparableLaw` for any sum of power terms.

Both fit by variable projection (``_varpro.py``): the coefficients of a law are a linear problem for given exponents, so a search over two
numbers replaces one over five (arXiv:2603.22339, section 5).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from counterpoise._errors import bad_input, check_choice, check_range, listing
from counterpoise._seeding import generator
from counterpoise.groups import _to_numpy

from ._parabola import check_positive
from ._surface import FLOPS_FACTOR, Allocation, FloatArray, Interval, LossSurface
from ._varpro import Law, Problem, fit_law, projected_jacobian

if TYPE_CHECKING:
    import polars as pl

__all__ = ["ChinchillaRegressor", "SeparableLaw", "SurfaceDraws"]

LEVEL = 0.9  # of intervals, as in arXiv:2603.22339
PERPLEXITY = 20.0  # median loss above which it is asked whether these are perplexities: e^3, and log(vocabulary) is 11
FLAT = 0.02  # of the spread of (log N, log D) across their main direction to that along it; below, only curvature tells N from D
MOST_POINTS = 2**15  # of the grid
Status = Literal["converged", "weak", "bound"]


class SeparableLaw(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    r"""A law of several separable terms, :math:`L(x) = c_0 + \sum_k c_k x_k^{-\theta_k}`, fitted by variable projection.

    Two terms, size and data, are :class:`ChinchillaRegressor`. One term is a learning curve. More of them (passes over the data, number of
    experts) add a column each. A quantity that the loss grows with goes in as its inverse.

    Parameters
    ----------
    terms : sequence of int or str, optional
        Columns of X that make a term each, by position or name. Default: all.
    loss : {"squared", "huber"}, default "squared"
        What a residual costs.
    target : {"linear", "log"}, default "linear"
        Residuals of the loss, or of its logarithm. These are different estimators: say which one you used.
    delta : float, default 1e-3
        Where Huber's loss goes on as a line, in units of the target (arXiv:2203.15556, D.2).
    grid : int, default 32
        Points of the first search per exponent (arXiv:2603.22339, section 5); with three terms or more, at most 32,768 in all.
    exponent_bounds : (low, high), default (0.01, 0.99)
        Of every exponent, 0 < low < high.
    nonneg : bool, default True
        Keep all coefficients >= 0.

    Attributes
    ----------
    intercept_ : float
        :math:`c_0`, what no term removes.
    coef_, exponents_ : array, shape (K,)
        :math:`c_k` and :math:`\theta_k`. The exponent of a term with coefficient 0 means nothing.
    cov_ : array, shape (2K + 1, 2K + 1)
        Covariance of (intercept_, coef_, exponents_) by the delta method (Huber: the sandwich of M-estimation); infinite where the runs
        leave nothing over to estimate it from.
    status_ : {"converged", "weak", "bound"}
        "bound": an exponent is at its bound, or a coefficient was held at 0. "weak": the runs lie on one line in the logarithms of their
        columns (a single budget, or one ratio of data to size), so that the terms are told apart by curvature alone.
    condition_ : float
        Condition number of the Hessian over the exponents, coefficients projected out.
    objective_ : float
        Mean over runs of :math:`r^2/2`, or of Huber's function of r.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Raises
    ------
    InputError
        If values are not finite and above 0, a column is constant, there are fewer than 2K + 1 different runs, or an option is unknown.

    Examples
    --------
    A learning curve of five measurements, and what 100,000 examples would give:

    >>> n, error = np.array([[1e3], [2e3], [5e3], [1e4], [2e4]]), [0.300, 0.260, 0.219, 0.195, 0.176]
    >>> curve = SeparableLaw().fit(n, error)
    >>> curve.exponents_.round(2), curve.predict([[1e5]]).round(3)
    (array([0.32]), array([0.145]))
    """

    intercept_: float
    coef_: FloatArray
    exponents_: FloatArray
    cov_: FloatArray
    status_: Status
    condition_: float
    objective_: float

    def __init__(
        self,
        terms: Sequence[int | str] | None = None,
        *,
        loss: Literal["squared", "huber"] = "squared",
        target: Literal["linear", "log"] = "linear",
        delta: float = 1e-3,
        grid: int = 32,
        exponent_bounds: tuple[float, float] = (0.01, 0.99),
        nonneg: bool = True,
    ) -> None:
        self.terms = terms
        self.loss = loss
        self.target = target
        self.delta = delta
        self.grid = grid
        self.exponent_bounds = exponent_bounds
        self.nonneg = nonneg

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Fit the law to ``X`` (n, columns), all > 0, and losses ``y`` (n,), > 0, in nats or any unit that has a floor."""
        self._check_options()
        table, targets = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_all_finite=False)
        losses = np.asarray(targets, dtype=np.float64)
        x, names = self._columns(table)
        _check_values(x, names)
        _check_values(losses[:, None], ["y"])
        _check_spread(x, names)
        if len(losses) > 1 and np.ptp(losses) == 0:
            bad_input("y", f"the same loss, {losses[0]:.6g}, in all {len(losses)} runs", "losses that differ", "There is no law to fit.")
        if (median := np.median(losses)) > PERPLEXITY:
            warnings.warn(
                f"y: the median loss is {median:.4g}. If these are perplexities, take their logarithms: the law is about losses.",
                UserWarning,
                stacklevel=2,
            )
        self._fit_checked(x, losses)
        return self

    def predict(self, X: npt.ArrayLike) -> FloatArray:
        """Losses, shape (n,), in float64."""
        check_is_fitted(self)
        table = validate_data(self, X, dtype=np.float64, ensure_all_finite=False, reset=False)
        x, names = self._columns(table)
        _check_values(x, names)
        return np.asarray(self._law.c[0] + np.exp(-self._law.theta * (np.log(x) - self._center)) @ self._law.c[1:])

    # ---- the fit itself, without checks ----------------------------------------------------------------------------------------------

    def _fit_checked(self, x: FloatArray, y: FloatArray) -> None:
        log_x = np.log(x)
        self._center = log_x.mean(axis=0)
        problem = self._problem(log_x - self._center, y)
        self._law = fit_law(problem, self._axis(x.shape[1]))
        raw = _raw(self._law, self._center)
        K = x.shape[1]
        self.intercept_, self.coef_, self.exponents_ = float(raw[0]), raw[1 : K + 1], raw[K + 1 :]
        self.objective_ = self._law.objective
        self.cov_ = _covariance(problem, self._law, self._center)
        self.condition_ = _condition(projected_jacobian(problem, self._law))
        self.status_ = "bound" if self._law.at_bound else "weak" if _is_line(problem.u) else "converged"

    def _problem(self, u: FloatArray, y: FloatArray) -> Problem:
        return Problem(
            u,
            np.asarray(y, dtype=np.float64),
            (float(self.exponent_bounds[0]), float(self.exponent_bounds[1])),
            delta=float(self.delta) if self.loss == "huber" else None,
            log=self.target == "log",
            floor=0.0 if self.nonneg else -np.inf,
        )

    def _axis(self, terms: int) -> int:
        """Points per exponent."""
        return max(2, min(int(self.grid), int(MOST_POINTS ** (1 / terms) + 1e-9)))

    # ---- input -----------------------------------------------------------------------------------------------------------------------

    def _check_options(self) -> None:
        check_choice("loss", self.loss, ("squared", "huber"))
        check_choice("target", self.target, ("linear", "log"))
        check_range("delta", self.delta, low=0.0, open_low=True)
        check_range("grid", self.grid, low=2, integer=True)
        bounds = self.exponent_bounds
        if not (isinstance(bounds, (tuple, list)) and len(bounds) == 2):
            bad_input("exponent_bounds", bounds, "two numbers, 0 < low < high")
        check_range("exponent_bounds[0]", bounds[0], low=0.0, open_low=True)
        check_range("exponent_bounds[1]", bounds[1], low=float(bounds[0]), open_low=True)

    def _columns(self, table: FloatArray) -> tuple[FloatArray, list[str]]:
        """The columns of the terms, and what to call them."""
        known = list(getattr(self, "feature_names_in_", ()))
        places: list[int] = []
        for term in range(table.shape[1]) if self.terms is None else self.terms:
            if isinstance(term, str):
                check_choice("terms", term, known, "" if known else "Columns have names in a frame only.")
                places.append(known.index(term))
            else:
                check_range("terms", term, low=0, high=table.shape[1] - 1, integer=True)
                places.append(int(term))
        if not places:
            bad_input("terms", self.terms, "at least one column")
        if len(set(places)) < len(places):
            bad_input("terms", listing(places), "every column once", "Two terms of one column cannot be told apart.")
        return table[:, places], [str(known[k]) if known else f"X[:, {k}]" for k in places]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        tags.target_tags.positive_only = True
        return tags


class ChinchillaRegressor(SeparableLaw):
    r"""The scaling law :math:`L(N, D) = E + A N^{-\alpha} + B D^{-\beta}` from runs of different size and data ("Approach 3").

    Variable projection finds the minimum of a search over five numbers without starts to choose, and to about 14 digits on noise-free data.
    Unlike a parabola per budget, it is not biased where :math:`\alpha \ne \beta`, and needs no grid of budgets. It is only as good as the
    form of the law: look at residuals before planning far beyond the runs, and plan with :meth:`bootstrap`.

    Parameters
    ----------
    loss : {"squared", "huber"}, default "squared"
        What a residual costs. Huber's loss holds single runs off that went wrong.
    target : {"linear", "log"}, default "linear"
        Residuals of the loss, or of its logarithm. On the same runs the four combinations give different exponents: say which one you used.
    delta : float, default 1e-3
        Where Huber's loss goes on as a line, in units of the target (arXiv:2203.15556, D.2): losses in another unit need another one,
        their logarithms do not.
    grid : int, default 32
        Points of the first search per exponent (arXiv:2603.22339, section 5).
    exponent_bounds : (low, high), default (0.01, 0.99)
        Of both exponents (as in the authors' solver).
    nonneg : bool, default True
        Keep E, A and B >= 0.
    flops_factor : float, default 6.0
        FLOPs of one parameter and one token, for ``surface_``.

    Attributes
    ----------
    E_, A_, B_, alpha_, beta_ : float
        The law.
    surface_ : LossSurface
        The same, with the best allocation of a budget. An InputError where A or B is not above 0: then there is none.
    cov_ : array, shape (5, 5)
        Covariance of (E, A, B, alpha, beta); see :class:`SeparableLaw`.
    status_, condition_, objective_, n_features_in_, feature_names_in_
        As in :class:`SeparableLaw`. "weak" is a single budget, or one ratio of data to size for all runs.

    Raises
    ------
    InputError
        If ``X`` has not two columns, a value is not finite and above 0, N or D is the same in all runs, or there are fewer than 5 different
        pairs (N, D).

    Examples
    --------
    >>> from counterpoise.scaling import sample_isoflop
    >>> runs = sample_isoflop(LossSurface(1.69, 406.4, 410.7, 0.34, 0.28), np.geomspace(1e17, 1e21, 5))
    >>> law = ChinchillaRegressor().fit(runs.select("N", "D"), runs["L"])
    >>> [round(value, 6) for value in (law.E_, law.A_, law.B_, law.alpha_, law.beta_)], law.status_
    ([1.69, 406.4, 410.7, 0.34, 0.28], 'converged')
    >>> print(law.surface_.optimal(1e24).summary())
    At 1e+24 FLOPs: N 4.13e+10, D 4.04e+12, loss 1.9112.
    """

    def __init__(
        self,
        *,
        loss: Literal["squared", "huber"] = "squared",
        target: Literal["linear", "log"] = "linear",
        delta: float = 1e-3,
        grid: int = 32,
        exponent_bounds: tuple[float, float] = (0.01, 0.99),
        nonneg: bool = True,
        flops_factor: float = FLOPS_FACTOR,
    ) -> None:
        self.loss = loss
        self.target = target
        self.delta = delta
        self.grid = grid
        self.exponent_bounds = exponent_bounds
        self.nonneg = nonneg
        self.flops_factor = flops_factor

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Fit the law to ``X`` (n, 2), size N and data D of each run, and its losses ``y`` (n,)."""
        check_range("flops_factor", self.flops_factor, low=0.0, open_low=True)
        return super().fit(X, y)

    @property
    def surface_(self) -> LossSurface:
        """The fitted law as a :class:`LossSurface`."""
        check_is_fitted(self)
        for name in ("A_", "B_"):
            if getattr(self, name) <= 0:
                what = "size" if name == "A_" else "data"
                bad_input(
                    name, getattr(self, name), "a coefficient > 0", f"In these runs {what} does not lower the loss: there is no best split."
                )
        if self.E_ < 0:
            bad_input("E_", self.E_, "a loss >= 0", "Fit with nonneg=True.")
        return LossSurface(self.E_, self.A_, self.B_, self.alpha_, self.beta_, float(self.flops_factor))

    def bootstrap(self, n: int = 200, *, by: npt.ArrayLike | None = None, seed: int = 0) -> SurfaceDraws:
        """The law of ``n`` resamples of the runs, each fitted like the first.

        Parameters
        ----------
        n : int, default 200
            Resamples (arXiv:2603.22339), at least 2; limits of a 90 % interval lie within what was drawn from 20 on.
        by : array-like, shape (runs,), optional
            The budget of each run, or another label: runs are drawn within it, so that every budget keeps its number of runs.
        seed : int, default 0
            Of the resamples, >= 0.
        """
        check_is_fitted(self)
        check_range("n", n, low=2, integer=True)
        check_range("seed", seed, low=0, integer=True)
        x, y = self._runs
        labels = np.zeros(len(y)) if by is None else _to_numpy("by", by)
        if labels.shape != y.shape:
            bad_input("by", f"an array of shape {labels.shape}", f"one label for each of the {len(y)} runs")
        codes = np.unique(labels, return_inverse=True)[1]
        surfaces = [self._redrawn(x[rows], y[rows]) for rows in draw_within(codes, n, seed)]
        return SurfaceDraws(self.surface_, tuple(one for one in surfaces if one is not None), sum(one is None for one in surfaces))

    def _redrawn(self, x: FloatArray, y: FloatArray) -> LossSurface | None:
        """None for a resample without a law."""
        if len(np.unique(x, axis=0)) < 5 or (np.ptp(x, axis=0) == 0).any():
            return None
        log_x = np.log(x)
        center = log_x.mean(axis=0)
        raw = _raw(fit_law(self._problem(log_x - center, y), self._axis(2)), center)
        if not (raw[0] >= 0 and (raw[1:3] > 0).all() and np.isfinite(raw).all()):
            return None
        E, A, B, alpha, beta = map(float, raw)
        return LossSurface(E, A, B, alpha, beta, float(self.flops_factor))

    def _fit_checked(self, x: FloatArray, y: FloatArray) -> None:
        super()._fit_checked(x, y)
        self._runs = (x, y)
        self.E_, (self.A_, self.B_) = self.intercept_, map(float, self.coef_)
        self.alpha_, self.beta_ = map(float, self.exponents_)

    def _columns(self, table: FloatArray) -> tuple[FloatArray, list[str]]:
        if table.shape[1] != 2:
            bad_input("X", f"{table.shape[1]} feature(s)", "two columns: size N and data D", "SeparableLaw takes more terms, or one.")
        known = list(getattr(self, "feature_names_in_", ("X[:, 0] (size N)", "X[:, 1] (data D)")))
        return table, [str(name) for name in known]


@dataclass(frozen=True, eq=False)
class SurfaceDraws:
    """Result of :meth:`ChinchillaRegressor.bootstrap`.

    Attributes:
        fitted: the surface of all runs.
        surfaces: those of the resamples that have one.
        failed: resamples without one: too few different runs, or size or data without effect.
    """

    fitted: LossSurface
    surfaces: tuple[LossSurface, ...]
    failed: int

    def interval(self, value: Callable[[LossSurface], float], level: float = LEVEL) -> Interval:
        """Percentile limits of a function of the surface; NaN with fewer than two draws."""
        check_range("level", level, low=0.0, high=1.0, open_low=True)
        return percentiles([value(surface) for surface in self.surfaces], level)

    def optimal(self, C: float, level: float = LEVEL) -> Allocation:
        """The best split of the budget C on the surface of all runs, with percentile limits over the draws."""
        best = self.fitted.optimal(C)
        N = self.interval(lambda surface: surface.optimal(C).N, level)
        D = self.interval(lambda surface: surface.optimal(C).D, level)
        loss = self.interval(lambda surface: surface.optimal(C).loss, level)
        return Allocation(best.compute, best.N, best.D, best.loss, N, D, loss, level)

    def to_frame(self) -> pl.DataFrame:
        """One row per draw: E, A, B, alpha, beta, a, b."""
        import polars as pl

        names = ("E", "A", "B", "alpha", "beta", "a", "b")
        return pl.DataFrame(
            {name: [getattr(surface, name) for surface in self.surfaces] for name in names}, schema=dict.fromkeys(names, pl.Float64)
        )

    def __repr__(self) -> str:
        return f"SurfaceDraws({len(self.surfaces)} draws" + (f", {self.failed} failed)" if self.failed else ")")


def percentiles(values: npt.ArrayLike, level: float) -> Interval:
    """Equal-tailed limits; NaN for fewer than two values, which have none."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return float("nan"), float("nan")
    low, high = np.quantile(array, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def draw_within(codes: npt.NDArray[np.intp], n: int, seed: int) -> list[npt.NDArray[np.intp]]:
    """``n`` resamples of row numbers, drawn with replacement within each code."""
    rng = generator(seed, "runs")
    members = [np.flatnonzero(codes == code) for code in np.unique(codes)]
    return [np.concatenate([rng.choice(own, len(own)) for own in members]) for _ in range(n)]


# ---- from centered coordinates to those of the law ---------------------------------------------------------------------------------------


def _raw(law: Law, center: FloatArray) -> FloatArray:
    """(c_0, c_1 ... c_K, theta_1 ... theta_K) for columns in their own units."""
    return np.concatenate([law.c[:1], law.c[1:] * np.exp(law.theta * center), law.theta])


def _covariance(problem: Problem, law: Law, center: FloatArray) -> FloatArray:
    """(2K + 1, 2K + 1), of the raw parameters."""
    K, n = len(law.theta), len(problem.y)
    cov = np.full((2 * K + 1, 2 * K + 1), np.inf)
    used = np.r_[law.support, law.support[1:]]  # an exponent is known as far as its coefficient is not 0
    J = problem.jacobian(law.c, law.theta)[:, used]
    left = n - J.shape[1]
    # In units of each number's effect: whether one can be told from the others does not depend on how it is measured.
    size = np.abs(J).max(axis=0)
    _, R = np.linalg.qr(J / size)
    if left <= 0 or np.abs(np.diag(R)).min() <= 1e-13 * np.abs(R).max():
        return cov
    r = problem.residual(law.c, law.theta)
    if problem.delta is None:
        variance = float(r @ r) / left
    else:
        psi, inside = np.clip(r, -problem.delta, problem.delta), float((np.abs(r) <= problem.delta).mean())
        variance = float(psi @ psi) / left / max(inside, 1 / n) ** 2
    inverse = np.linalg.solve(R, np.eye(len(R))) / size[:, None]
    # d(c e^{theta m}) = e^{theta m} (dc + c m dtheta)
    change = np.eye(2 * K + 1)
    for k in range(K):
        factor = np.exp(law.theta[k] * center[k])
        change[1 + k, 1 + k], change[1 + k, 1 + K + k] = factor, factor * law.c[1 + k] * center[k]
    change = change[np.ix_(used, used)]
    cov[np.ix_(used, used)] = variance * change @ inverse @ inverse.T @ change.T
    return cov


def _condition(J: FloatArray) -> float:
    """Condition number of J'J; infinite where an exponent has no effect."""
    values = np.linalg.svd(J, compute_uv=False)
    return float((values[0] / values[-1]) ** 2) if values[-1] > 0 else float("inf")


def _is_line(u: FloatArray) -> bool:
    """Whether two or more columns move together, in logarithms."""
    if u.shape[1] < 2:
        return False
    values = np.linalg.svd(u, compute_uv=False)
    return bool(values[-1] <= FLAT * values[0])


# ---- input ------------------------------------------------------------------------------------------------------------------------------


def _check_values(x: FloatArray, names: Sequence[str]) -> None:
    for k, name in enumerate(names):
        check_positive(name, x[:, k])


def _check_spread(x: FloatArray, names: Sequence[str]) -> None:
    least, different = 2 * x.shape[1] + 1, len(np.unique(x, axis=0))
    if different < least:
        samples = f" of {len(x)} sample(s)" if len(x) < least else ""
        bad_input(" and ".join(names), f"{different} different runs{samples}", f"at least {least}: a law of {least} numbers is fitted")
    for k, name in enumerate(names):
        if np.ptp(x[:, k]) == 0:
            bad_input(name, f"{x[0, k]:g} in all runs", "at least two values", "Without them its term is a constant.")
