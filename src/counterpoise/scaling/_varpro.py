r"""Fits of :math:`f(x) = c_0 + \sum_k c_k x_k^{-\theta_k}` by variable projection (arXiv:2603.22339, section 5; Golub and Pereyra 1973).

For fixed exponents the coefficients are a linear least squares problem, so only the exponents are searched. With :math:`u_k = \log x_k`
less its mean, :math:`X = [1, e^{-\theta_1 u_1}, \dots]`, a thin QR :math:`X = QR` and :math:`c = R^{-1} Q^T y`,

.. math:: r(\theta) = y - Q Q^T y, \qquad J_k = (I - Q Q^T) \, (c_k \, u_k e^{-\theta_k u_k}),

where J is Kaufman's Jacobian (1975). It goes to a trust-region method for least squares, which, unlike one for a sum of squares, does not
stall where the sum is a rounding error. No normal equations are formed. Logarithms of y, and Huber's loss, are not linear in c; those fits
start here and go on over c and the exponents together. Searches see y in units of its range, so that their tolerances mean the same in any
unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
from scipy.optimize import least_squares, minimize

from ._surface import FloatArray

__all__ = ["Law", "Problem", "fit_law", "grid_objectives"]

_CHUNK = 64_000  # most numbers of stacked designs held at once: they stay in the cache
_TOLERANCE = 1e-15
_REWEIGHTED = 8  # steps of reweighting that rank the points of the grid for Huber's loss
_RANKED = 16  # points of that grid per exponent, at most
_GRID_ROWS = 5_000  # that a grid looks at: it only says where the search begins
_STARTS = 4  # lowest points of the grid from which Huber's loss is followed: it has several minima
_NEAR_BOUND = 1e-6  # of the range of an exponent
_SETTLING = 20  # most of Newton's steps at the end of a search


@dataclass(frozen=True, eq=False)
class Problem:
    """What is fitted: ``u`` (n, K) centered logarithms, ``y`` (n,) > 0, and how a residual is charged.

    ``delta`` None: squares. ``log``: residuals of log y instead of y. ``floor``: 0 if coefficients must not be negative, else -inf.
    """

    u: FloatArray
    y: FloatArray
    bounds: tuple[float, float]
    delta: float | None = None
    log: bool = False
    floor: float = 0.0

    def predicted(self, c: FloatArray, theta: FloatArray) -> FloatArray:
        return np.asarray(c[0] + np.exp(-theta * self.u) @ c[1:])

    def residual(self, c: FloatArray, theta: FloatArray) -> FloatArray:
        fitted = self.predicted(c, theta)
        return np.log(self.y / np.maximum(fitted, np.finfo(float).tiny)) if self.log else self.y - fitted

    def objective(self, r: FloatArray) -> float:
        """Mean over rows of r^2 / 2, or of Huber's function of r (the same within delta)."""
        return float(_charge(r, self.delta).mean())

    def jacobian(self, c: FloatArray, theta: FloatArray) -> FloatArray:
        """Derivatives (n, 2K + 1) of the prediction (or of its logarithm) by coefficients and exponents."""
        phi = np.exp(-theta * self.u)
        J = np.column_stack([np.ones(len(self.y)), phi, -c[1:] * self.u * phi])
        return J / self.predicted(c, theta)[:, None] if self.log else J


@dataclass(frozen=True, eq=False)
class Law:
    """A fit in centered coordinates: ``c`` (K + 1,), ``theta`` (K,), which coefficients are not held at 0, and where it ended."""

    c: FloatArray
    theta: FloatArray
    support: tuple[bool, ...]
    objective: float
    at_bound: bool


def fit_law(problem: Problem, grid: int) -> Law:
    """The best fit: a coarse grid over the exponents, then a search from its lowest points."""
    unit = float(np.ptp(problem.y)) or float(problem.y[0])
    # Residuals of a logarithm, and where they are charged as a line, have no unit.
    residual_unit = 1.0 if problem.log else unit
    delta = None if problem.delta is None else problem.delta / residual_unit
    law = _fit(replace(problem, y=problem.y / unit, delta=delta), grid)
    return replace(law, c=law.c * unit, objective=law.objective * residual_unit * residual_unit)


def _fit(problem: Problem, grid: int) -> Law:
    plain = problem.delta is None and not problem.log
    # What is charged for log y is, to first order, what is charged for y in units of y.
    weights = 1 / problem.y if problem.log else np.ones_like(problem.y)
    some, few_weights = problem, weights
    if len(weights) > _GRID_ROWS:
        rows = np.random.default_rng(0).choice(len(weights), _GRID_ROWS, replace=False)
        if (np.ptp(problem.u[rows], axis=0) > 0).all():
            some, few_weights = replace(problem, u=problem.u[rows], y=problem.y[rows]), weights[rows]
    thetas, objectives = grid_objectives(some, few_weights, grid)
    start = thetas[int(np.argmin(objectives))]
    law = _projected(problem, start, weights)
    if plain:
        return law
    if problem.log:
        law = _joint(replace(problem, delta=None), law)
    if problem.delta is None:
        return law
    if np.abs(problem.residual(law.c, law.theta)).max() <= problem.delta:
        return law  # no residual is charged as a line
    starts = [law, *_lowest(some, few_weights, min(grid, _RANKED))]
    return min((_polished(problem, _joint(problem, one)) for one in starts), key=lambda one: one.objective)


# ---- the grid ---------------------------------------------------------------------------------------------------------------------------


def grid_objectives(problem: Problem, weights: FloatArray, grid: int) -> tuple[FloatArray, FloatArray]:
    """Exponents (G, K) of the grid, and the weighted sum of squares (G,) at the best coefficients; weights multiply residuals."""
    K = problem.u.shape[1]
    axis, thetas = np.linspace(*problem.bounds, grid), _grid(problem, grid)
    c, squares = _along_last(problem, thetas.reshape(-1, grid, K)[:, 0, :-1], axis, weights)
    wrong = (c < problem.floor).any(axis=0)
    asked = np.flatnonzero(wrong & (squares < squares[~wrong].min(initial=np.inf)))
    squares[wrong] = np.inf
    for part in np.array_split(asked, len(asked) * len(weights) // _CHUNK + 1):
        if len(part):
            squares[part] = _on_faces(*_stack(problem, thetas[part], weights), problem.floor)[1]
    return thetas, squares


def _grid(problem: Problem, points: int) -> FloatArray:
    """(points ** K, K), the last exponent fastest."""
    K = problem.u.shape[1]
    axis = np.linspace(*problem.bounds, points)
    return np.stack(np.meshgrid(*[axis] * K, indexing="ij"), axis=-1).reshape(-1, K)


def _along_last(problem: Problem, outer: FloatArray, axis: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Plain least squares at all combinations of ``outer`` (H, K - 1) with ``axis`` (k,) for the last exponent: coefficients (K + 1, H k),
    sums of squares (H k,). All columns but the last are orthogonalized once per outer point."""
    K, n = problem.u.shape[1], len(problem.y)
    y = problem.y * weights
    last = np.exp(-problem.u[:, -1:] * axis) * weights[:, None]
    found = []
    for first in range(0, len(outer), max(1, _CHUNK // last.size)):
        theta = outer[first : first + max(1, _CHUNK // last.size)]
        columns = np.empty((len(theta), n, K))
        columns[:, :, 0] = weights
        columns[:, :, 1:] = np.exp(-theta[:, None, :] * problem.u[:, :-1]) * weights[:, None]
        Q, R = np.linalg.qr(columns)
        Qt = Q.transpose(0, 2, 1)
        z, along = Qt @ y, Qt @ last
        r, beside = y - (Q @ z[:, :, None])[:, :, 0], last - Q @ along
        squared = np.einsum("gnk,gnk->gk", beside, beside)
        t = np.einsum("gnk,gn->gk", beside, r) / np.maximum(squared, np.finfo(float).tiny)
        others = np.linalg.solve(R, z[:, :, None] - along * t[:, None, :])
        squares = np.maximum(np.einsum("gn,gn->g", r, r)[:, None] - t**2 * squared, 0.0)
        found.append(np.concatenate([others.transpose(1, 0, 2).reshape(K, -1), t.reshape(1, -1), squares.reshape(1, -1)]))
    both = np.concatenate(found, axis=1)
    return both[:-1], both[-1]


def _parts(thetas: FloatArray, problem: Problem) -> Iterator[FloatArray]:
    at_once = max(1, _CHUNK // (problem.u.size + len(problem.y)))
    for first in range(0, len(thetas), at_once):
        yield thetas[first : first + at_once]


def _stack(problem: Problem, thetas: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Columns (K + 1, G, n) of the weighted designs, and the weighted y, (n,) or (G, n)."""
    K, n = thetas.shape[1], len(problem.y)
    columns = np.empty((K + 1, len(thetas), n))
    columns[0] = weights
    for k in range(K):
        # Few exponents, many combinations of them.
        values, place = np.unique(thetas[:, k], return_inverse=True)
        columns[k + 1] = np.exp(-values[:, None] * problem.u[:, k])[place] * weights
    return columns, problem.y * weights


def _best_on_face(columns: FloatArray, y: FloatArray, floor: float) -> tuple[FloatArray, FloatArray]:
    """Least squares with coefficients >= ``floor`` (0 or -inf) for a stack of designs: (K + 1, G) coefficients and (G,) sums of squares."""
    c, squares = _solve(columns, y)
    wrong = np.flatnonzero((c < floor).any(axis=0))
    if len(wrong):
        c[:, wrong], squares[wrong] = _on_faces(columns[:, wrong], y if y.ndim == 1 else y[wrong], floor)
    return c, squares


def _on_faces(columns: FloatArray, y: FloatArray, floor: float) -> tuple[FloatArray, FloatArray]:
    """The same where the plain solution on all columns has a coefficient below the floor.

    A solution with nonnegative coefficients is the plain one on the columns that it uses: the best of all choices of columns whose plain
    solution is nonnegative.
    """
    c, squares = np.zeros(columns.shape[:2]), np.full(columns.shape[1], np.inf)
    every = range(len(columns))
    for size in range(len(columns) - 1, 0, -1):
        for used in combinations(every, size):
            own, own_squares = _solve(columns[list(used)], y)
            at = np.flatnonzero((own >= floor).all(axis=0) & (own_squares < squares))
            squares[at] = own_squares[at]
            c[:, at] = 0.0
            c[np.ix_(list(used), list(at))] = own[:, at]
    return c, squares


def _solve(columns: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Plain least squares for a stack of designs (P, G, n) by modified Gram-Schmidt: (P, G) coefficients, (G,) sums of squares."""
    P, G, n = columns.shape
    Q, R = np.array(columns), np.zeros((P, P, G))
    r, z = np.array(np.broadcast_to(y, (G, n))), np.empty((P, G))
    for j in range(P):
        norm = np.sqrt(np.einsum("gn,gn->g", Q[j], Q[j]))
        R[j, j] = np.where(norm > 0, norm, 1.0)
        Q[j] /= R[j, j][:, None]
        for k in range(j + 1, P):
            R[j, k] = np.einsum("gn,gn->g", Q[j], Q[k])
            Q[k] -= R[j, k][:, None] * Q[j]
        z[j] = np.einsum("gn,gn->g", Q[j], r)
        r -= z[j][:, None] * Q[j]
    c = np.empty((P, G))
    for j in reversed(range(P)):
        c[j] = (z[j] - np.einsum("kg,kg->g", R[j, j + 1 :], c[j + 1 :])) / R[j, j]
    return c, np.einsum("gn,gn->g", r, r)


# ---- squares ----------------------------------------------------------------------------------------------------------------------------


def _projected(problem: Problem, start: FloatArray, weights: FloatArray) -> Law:
    """Least squares by variable projection from ``start``; faces are looked at only where a coefficient would be negative."""
    K = len(start)
    law = _on_support(problem, start, weights, (True,) * (K + 1))
    if (law.c >= problem.floor).all():
        return law
    best: Law | None = None
    for size in range(K, 0, -1):
        for used in combinations(range(K + 1), size):
            own = _on_support(problem, start, weights, tuple(j in used for j in range(K + 1)))
            if (own.c >= 0).all() and (best is None or own.objective < best.objective):
                best = own
    # The minimum lies within a face, or on one; the mean of y alone always does.
    assert best is not None
    return best


def _on_support(problem: Problem, start: FloatArray, weights: FloatArray, support: tuple[bool, ...]) -> Law:
    """Plain variable projection on some of the columns; exponents of the others stay where they are."""
    free = np.flatnonzero(support[1:])
    u, y = problem.u[:, free], problem.y * weights
    intercept = np.ones((len(y), int(support[0])))

    def at(theta: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        phi = np.exp(-theta * u) * weights[:, None]
        Q, R = np.linalg.qr(np.hstack([intercept * weights[:, None], phi]))
        z = Q.T @ y
        return Q, R, z, phi

    def residual(theta: FloatArray) -> FloatArray:
        Q, _, z, _ = at(theta)
        return np.asarray(y - Q @ z)

    def jacobian(theta: FloatArray) -> FloatArray:
        Q, R, z, phi = at(theta)
        c = _back(R, z)[intercept.shape[1] :]
        columns = c * u * phi
        return np.asarray(columns - Q @ (Q.T @ columns))

    theta = np.array(start)
    if len(free):
        theta[free] = _search(residual, jacobian, start[free], problem.bounds)
    Q, R, z, _ = at(theta[free])
    c = np.zeros(len(support))
    c[list(np.flatnonzero(support))] = _back(R, z)
    r = y - Q @ z
    return Law(c, theta, support, float(r @ r) / (2 * len(y)), not all(support) or _touches(theta[free], problem.bounds))


def _search(residual: Any, jacobian: Any, start: FloatArray, bounds: tuple[float, float]) -> FloatArray:
    low, high = bounds
    inside = np.clip(start, low + 1e-3 * (high - low), high - 1e-3 * (high - low))
    found = least_squares(residual, inside, jacobian, bounds=bounds, xtol=_TOLERANCE, ftol=_TOLERANCE, gtol=_TOLERANCE, max_nfev=200)
    return _settled(partial(_newton, residual, jacobian), found.x, low, high)


def _newton(residual: Any, jacobian: Any, p: FloatArray) -> tuple[FloatArray, float]:
    """The step of Gauss and Newton, and the size of the gradient, in units of each parameter's effect."""
    r, J = residual(p), jacobian(p)
    size = np.maximum(np.sqrt(np.einsum("nk,nk->k", J, J)), np.finfo(float).tiny)
    J = J / size
    return np.asarray(np.linalg.lstsq(J, -r, rcond=None)[0] / size), float(np.abs(J.T @ r).max())


def _settled(step: Callable[[FloatArray], tuple[FloatArray, float]], p: FloatArray, low: Any, high: Any) -> FloatArray:
    """Newton's steps as long as they shrink the gradient: values of a loss tell points apart to half of the digits only, its gradient to
    nearly all of them."""
    best, least = p, np.inf
    for _ in range(_SETTLING):
        if not ((p > low) & (p < high)).all():
            break
        change, gradient = step(p)
        if not gradient < least:
            break
        best, least, p = p, gradient, p + change
    return best


def _back(R: FloatArray, z: FloatArray) -> FloatArray:
    """Solve R c = z; columns that add nothing get 0."""
    small = np.abs(np.diag(R)) <= 1e-14 * np.abs(R).max()
    if small.any():
        return np.asarray(np.linalg.lstsq(R, z, rcond=1e-14)[0])
    return np.asarray(np.linalg.solve(R, z))


def _touches(theta: FloatArray, bounds: tuple[float, float]) -> bool:
    margin = _NEAR_BOUND * (bounds[1] - bounds[0])
    return bool((theta <= bounds[0] + margin).any() or (theta >= bounds[1] - margin).any())


# ---- logarithms and Huber's loss: coefficients and exponents together --------------------------------------------------------------------


def _joint(problem: Problem, start: Law) -> Law:
    """A trust-region search over (c, theta) from ``start``, within the bounds."""
    K = len(start.theta)
    low = np.r_[np.full(K + 1, problem.floor), np.full(K, problem.bounds[0])]
    high = np.r_[np.full(K + 1, np.inf), np.full(K, problem.bounds[1])]
    width = problem.bounds[1] - problem.bounds[0]
    inner = np.r_[np.full(K + 1, 1e-6 * float(np.median(problem.y))), np.full(K, 1e-4 * width)]
    p = np.clip(np.r_[start.c, start.theta], low + inner, high - inner)

    def residual(p: FloatArray) -> FloatArray:
        return problem.residual(p[: K + 1], p[K + 1 :])

    def jacobian(p: FloatArray) -> FloatArray:
        return -problem.jacobian(p[: K + 1], p[K + 1 :])

    charge = {} if problem.delta is None else {"loss": "huber", "f_scale": problem.delta}
    found = least_squares(
        residual, p, jacobian, (low, high), x_scale="jac", xtol=_TOLERANCE, ftol=_TOLERANCE, gtol=_TOLERANCE, max_nfev=300, **charge
    )
    if problem.delta is None:
        return _law(problem, _settled(partial(_newton, residual, jacobian), found.x, low, high))
    return _law(problem, found.x)


def _law(problem: Problem, p: FloatArray) -> Law:
    K = problem.u.shape[1]
    c, theta = np.array(p[: K + 1]), np.array(p[K + 1 :])
    if problem.floor == 0:
        c[c <= 1e-9 * np.median(problem.y)] = 0.0
    support = tuple(bool(value) for value in c != 0)
    at_bound = not all(support) or _touches(theta[np.array(support[1:], dtype=bool)], problem.bounds)
    return Law(c, theta, support, problem.objective(problem.residual(c, theta)), at_bound)


def _lowest(problem: Problem, weights: FloatArray, grid: int) -> list[Law]:
    """Points of a grid with the lowest Huber loss among their neighbors, with their coefficients."""
    assert problem.delta is not None
    thetas = _grid(problem, grid)
    losses, coefficients = [], []
    for part in _parts(thetas, problem):
        columns, y = _stack(problem, part, weights)
        w = np.ones((len(part), len(problem.y)))
        for _ in range(_REWEIGHTED):
            root = np.sqrt(w)
            c, _ = _best_on_face(columns * root, y * root, problem.floor)
            r = y - np.einsum("pg,pgn->gn", c, columns)
            w = np.minimum(1.0, problem.delta / np.maximum(np.abs(r), np.finfo(float).tiny))
        losses.append(_charge(r, problem.delta).mean(axis=1))
        coefficients.append(c)
    loss, c = np.concatenate(losses), np.concatenate(coefficients, axis=1)
    K = thetas.shape[1]
    table = loss.reshape((grid,) * K)
    padded = np.pad(table, 1, constant_values=np.inf)
    lowest = np.ones(table.shape, dtype=bool)
    for k in range(K):
        for step in (0, 2):
            window = tuple(slice(step, step + grid) if j == k else slice(1, 1 + grid) for j in range(K))
            lowest &= table <= padded[window]
    at = np.flatnonzero(lowest.ravel())
    at = at[np.argsort(loss[at], kind="stable")[:_STARTS]]
    support = (True,) * (K + 1)
    return [Law(c[:, g], thetas[g], support, float(loss[g]), False) for g in at]


def _polished(problem: Problem, law: Law) -> Law:
    """Newton's method with a trust region on Huber's loss, whose second derivatives the search for squares does not know."""
    if law.at_bound or problem.delta is None:
        return law
    K = len(law.theta)
    delta = problem.delta
    J0 = problem.jacobian(law.c, law.theta)
    # Units in which a step of 1 changes predictions alike in every direction; sums, so that the gradient is of the size of delta.
    scale = 1 / np.maximum(np.sqrt((J0**2).mean(axis=0)), np.finfo(float).tiny)
    origin = np.r_[law.c, law.theta]

    def parts(q: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        p = origin + scale * q
        with np.errstate(over="ignore", invalid="ignore"):  # far outside
            return p[: K + 1], p[K + 1 :], problem.residual(p[: K + 1], p[K + 1 :])

    low, high = problem.bounds

    def outside(c: FloatArray, theta: FloatArray) -> bool:
        left = (c < problem.floor).any() or (theta < low).any() or (theta > high).any()
        return bool(left or (problem.log and (problem.predicted(c, theta) <= 0).any()))

    def value(q: FloatArray) -> float:
        c, theta, r = parts(q)
        # A step that leads outside is taken back.
        return np.inf if outside(c, theta) else float(_charge(r, delta).sum()) / delta**2

    def gradient(q: FloatArray) -> FloatArray:
        c, theta, r = parts(q)
        if outside(c, theta):
            return np.zeros_like(q)
        return np.asarray(-scale * (problem.jacobian(c, theta).T @ np.clip(r, -delta, delta)) / delta**2)

    def hessian(q: FloatArray) -> FloatArray:
        c, theta, r = parts(q)
        if outside(c, theta):
            return np.eye(len(q))  # asked for before the step is taken back, and not used
        J, psi = problem.jacobian(c, theta), np.clip(r, -delta, delta)
        phi = np.exp(-theta * problem.u)
        inside = J[np.abs(r) <= delta]
        over = psi / problem.predicted(c, theta) if problem.log else psi
        second = np.zeros((2 * K + 1, 2 * K + 1))
        for k in range(K):
            mixed = -(over * problem.u[:, k]) @ phi[:, k]
            second[1 + k, 1 + K + k] = second[1 + K + k, 1 + k] = mixed
            second[1 + K + k, 1 + K + k] = c[1 + k] * (over * problem.u[:, k] ** 2) @ phi[:, k]
        if problem.log:
            second -= (J * psi[:, None]).T @ J
        return np.asarray(scale[:, None] * (inside.T @ inside - second) * scale / delta**2)

    start = np.zeros(2 * K + 1)
    found = minimize(
        value,
        start,
        jac=gradient,
        hess=hessian,
        method="trust-exact",
        options={"gtol": 1e-10, "initial_trust_radius": delta, "maxiter": 300},
    )
    lowest = found.x if found.fun < value(start) else start

    def newton(q: FloatArray) -> tuple[FloatArray, float]:
        g = gradient(q)
        return np.asarray(np.linalg.lstsq(hessian(q), -g, rcond=None)[0]), np.inf if outside(*parts(q)[:2]) else float(np.abs(g).max())

    settled = _settled(newton, lowest, -np.inf, np.inf)
    return _law(problem, origin + scale * (settled if value(settled) <= value(lowest) * (1 + 1e-12) else lowest))


def _charge(r: FloatArray, delta: float | None) -> FloatArray:
    """r^2 / 2, or Huber's function: beyond delta it goes on as a line."""
    if delta is None:
        return r**2 / 2
    size = np.abs(r)
    return np.asarray(np.where(size <= delta, r**2 / 2, delta * (size - delta / 2)))


def projected_jacobian(problem: Problem, law: Law) -> FloatArray:
    """Kaufman's Jacobian (n, K) at a fit: how residuals move with the exponents once the coefficients follow."""
    J = problem.jacobian(law.c, law.theta)
    K = len(law.theta)
    Q, _ = np.linalg.qr(J[:, : K + 1])
    columns = J[:, K + 1 :]
    return np.asarray(columns - Q @ (Q.T @ columns))


def curves(x: FloatArray, ys: FloatArray, bounds: tuple[float, float], grid: int) -> tuple[FloatArray, FloatArray]:
    """Laws of one term with coefficients >= 0 for many y (D, n) over the same x (n,) at once, by a grid of exponents: coefficients (2, D)
    of 1 and x ** -theta, and theta (D,)."""
    thetas = np.linspace(*bounds, grid)
    phi = np.exp(-thetas[:, None] * np.log(x))
    columns = np.stack([np.ones_like(phi), phi])
    D, n = ys.shape
    c, squares = _best_on_face(np.tile(columns, (1, D, 1)), np.repeat(ys, grid, axis=0).reshape(D * grid, n), 0.0)
    best = np.arange(D) * grid + squares.reshape(D, grid).argmin(axis=1)
    return c[:, best], thetas[best % grid]
