r"""The exact gradient of a linear head, without a backward pass.

For a softmax, logistic or least-squares head with features :math:`h_i` the gradient of example i's loss is an outer product,
:math:`g_i = e_i \otimes [h_i, 1]` with the residual :math:`e_i = p_i - y_i` (predicted minus observed). Sums over a group are therefore
:math:`[E_k^\top H_k,\; E_k^\top 1]` and norms are :math:`\|e_i\|^2 (\|h_i\|^2 + 1)`: the (n, C (d+1)) matrix of per-example gradients is
never formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._errors import bad_input, check_choice, check_range, listing
from counterpoise._seeding import generator

from ._shares import NONE, Array, GroupShares, dominance_sentence, hints, shares_from_magnitudes, shares_from_sums, sum_by

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

    from counterpoise.groups import Groups

__all__ = ["LinearHeadReport", "examine_linear", "head_shares"]

LEAST = float(np.finfo(np.float64).tiny)  # smallest probability a log loss is taken of


@dataclass(frozen=True, eq=False)
class LinearHeadReport:
    """Result of :func:`examine_linear`.

    ``shares`` at the fitted parameters and ``start`` for a fresh head (zero weights) on the same features; None for tree ensembles, which
    have no head. ``loss`` mean loss per group, ``correct`` what ``correct_name`` says per group: ``recall`` when the groups are the
    classes, else ``accuracy``; for regression ``mae``, the mean absolute error. ``pull`` and ``push`` (C,) per class: the sum over its own
    rows of 1 - p, and over all others of p (empty for regression). ``kind`` is the word for a group in sentences ("class", "range", ...).
    """

    shares: GroupShares
    start: GroupShares | None
    loss: Array
    correct: Array
    correct_name: str
    classes: tuple[str, ...]
    pull: Array
    push: Array
    kind: str
    space: str

    @property
    def hints(self) -> tuple[str, ...]:
        """What the numbers suggest, each sentence with its numbers."""
        found = list(hints(self.shares, self.kind))
        if self.pull.size > 2 and self.pull.min() > 0:
            ratio = self.push / self.pull
            k = int(np.argmax(ratio))
            if ratio[k] > 2:
                found.append(
                    f"Class {self.classes[k]!r} is pushed down {ratio[k]:.1f} times as hard as it is pulled up "
                    f"({self.push[k]:.3g} against {self.pull[k]:.3g})."
                )
        return tuple(found)

    def to_frame(self) -> pl.DataFrame:
        """One row per group: the columns of :meth:`GroupShares.to_frame`, ``start_share``, ``loss`` and ``recall``/``accuracy``/``mae``."""
        import polars as pl

        start = np.full(self.loss.size, np.nan) if self.start is None else self.start.share
        return self.shares.to_frame().with_columns(
            pl.Series("start_share", start), pl.Series("loss", self.loss), pl.Series(self.correct_name, self.correct)
        )

    def summary(self) -> str:
        """Who dominates first, then the hints."""
        lines = []
        if self.start is not None:
            lines.append(_sentence(dominance_sentence(self.start, self.kind, "for a fresh head on these features")))
        lines.append(_sentence(dominance_sentence(self.shares, self.kind, "at the fitted parameters")))
        return "\n".join([*lines, *self.hints])

    def plot(self) -> Figure:
        """Share of rows against share of the gradient against recall (or error), one line per group."""
        from counterpoise.report import _plots

        shown = self.shares if self.start is None else self.start
        return _plots.share_figure(
            self.shares.names,
            shown.pi,
            shown.share,
            fit_share=self.shares.magnitude_share,
            correct=self.correct,
            correct_name=self.correct_name,
        )


def head_shares(
    residual: npt.ArrayLike,
    features: Any,
    groups: Groups | npt.ArrayLike | None = None,
    *,
    bias: bool = True,
    row_weight: npt.ArrayLike | None = None,
    bootstrap: int = 0,
    level: float = 0.95,
    seed: int = 0,
) -> GroupShares:
    r"""Whose step it is, for a linear head given as arrays.

    With residuals :math:`e_i` (predicted minus observed) and features :math:`h_i`, the per-example gradient of the head is
    :math:`g_i = e_i \otimes [h_i, 1]`. Returned are the signed shares
    :math:`s_k = \langle \pi_k \mu_k, \mu \rangle / \|\mu\|^2` of the groups and their factors, see :class:`GroupShares`.

    Memory is G C (d + 1) numbers for the sums of the groups, whatever n is.

    Parameters
    ----------
    residual : array, shape (n, C), or (n,) for one output
        Predicted minus observed. Softmax: probabilities minus one-hot labels; one half of the squared error: prediction minus target. Class
        weights that are part of the loss multiply it.
    features : array or scipy sparse matrix, shape (n, d)
        What the head sees.
    groups : Groups or integer ids, shape (n,), default one group
        -1 stands for none.
    bias : bool, default True
        Whether the head has a bias, whose gradient is :math:`e_i` itself.
    row_weight : array, shape (n,), default 1
        How many rows of the population each row stands for. It changes the averages, not the gradients.
    bootstrap : int, default 0
        Resamples (Dirichlet weights within each group) for intervals of the share; 0 gives none, 200 are usual.
    level : float, default 0.95
        Coverage of these intervals.
    seed : int, default 0
        Of the bootstrap.

    Raises
    ------
    InputError
        If shapes do not fit or residuals are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> residual = np.array([0.5, 0.5, 0.5, -0.5])  # a fresh binary head: three negatives, one positive
    >>> features = np.array([[-1.0], [-1.0], [-1.0], [3.0]])
    >>> shares = head_shares(residual, features, [0, 0, 0, 1])
    >>> shares.share.round(3), shares.pi
    (array([0.6, 0.4]), array([0.75, 0.25]))
    """
    check_range("bootstrap", bootstrap, low=0, integer=True)
    E = _residual_matrix(residual)
    H = features if hasattr(features, "tocsr") else np.asarray(features, dtype=np.float64)
    H = H.tocsr() if hasattr(H, "tocsr") else H
    if H.ndim != 2 or H.shape[0] != len(E):
        bad_input("features", f"shape {H.shape}", f"a matrix with the {len(E)} rows of residual")
    ids, names, _ = _as_groups(groups, len(E))
    w = np.ones(len(E)) if row_weight is None else np.asarray(row_weight, dtype=np.float64)
    if w.shape != (len(E),) or not (w > 0).all():
        bad_input("row_weight", f"shape {w.shape}", f"{len(E)} positive numbers")

    G, C, d = len(names), E.shape[1], H.shape[1]
    q = np.einsum("ic,ic->i", E, E) * (_row_norms_sq(H) + bias)
    count = np.bincount(ids, minlength=G)
    order = np.argsort(ids, kind="stable")
    members = np.split(order, np.cumsum(count)[:-1])

    def group_sums(weight: Array) -> Array:
        sums = np.zeros((G, C, d + bias))
        for k, rows in enumerate(members):
            weighted = E[rows] * weight[rows, None]
            sums[k, :, :d] = (H[rows].T @ weighted).T
            if bias:
                sums[k, :, d] = weighted.sum(axis=0)
        return sums.reshape(G, -1)

    weight = sum_by(ids, w, G)
    intervals = None
    if bootstrap:
        intervals = _share_intervals(group_sums, ids, w, weight, bootstrap, level, seed)
    return shares_from_sums(
        names,
        count.astype(np.int64),
        group_sums(w),
        sum_by(ids, w * q, G),
        weight=weight,
        weight_sq=sum_by(ids, w**2, G),
        weighted_norms_sq=sum_by(ids, w**2 * q, G),
        intervals=intervals,
    )


def examine_linear(
    estimator: Any, X: Any, y: npt.ArrayLike, groups: Groups | npt.ArrayLike | None = None, *, bootstrap: int = 0, seed: int = 0
) -> LinearHeadReport:
    """Measure who dominates the gradient of a fitted estimator's last linear layer, exactly and without a backward pass.

    Supported: ``LogisticRegression`` (two classes and multinomial, also CV), ``SGDClassifier(loss="log_loss")``, ``MLPClassifier`` and
    ``MLPRegressor`` (last layer), ``LinearRegression``, ``Ridge``, ``Lasso``, ``ElasticNet`` (also CV) and ``SGDRegressor`` with squared
    error (the loss is one half of it); a ``Pipeline`` that ends in one of them is transformed first. Gradient-boosted trees have no head:
    their shares are those of the magnitudes of the pseudo-residuals, marked ``space="function"``. Penalties are not part of the
    gradients; class weights are.

    Parameters
    ----------
    estimator : scikit-learn estimator or pipeline
        Fitted.
    X : table, shape (n, p)
        Rows as the estimator takes them.
    y : array, shape (n,)
        Target.
    groups : Groups or integer ids, shape (n,), default the classes; for regression ten ranges of equal width
        Whose shares are measured.
    bootstrap, seed : int, default 0
        See :func:`head_shares`.

    Raises
    ------
    InputError
        If the estimator has no head that is known here, is not fitted, or has never seen a label of ``y``.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> data = load_breast_cancer()
    >>> model = make_pipeline(StandardScaler(), LogisticRegression()).fit(data.data, data.target)
    >>> report = examine_linear(model, data.data, data.target)
    >>> report.start.share.round(3), report.shares.count
    (array([0.484, 0.516]), array([212, 357]))
    """
    from sklearn.exceptions import NotFittedError
    from sklearn.pipeline import Pipeline
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(estimator)
    except NotFittedError:
        bad_input("estimator", type(estimator).__name__, "a fitted estimator", "Call .fit(X, y) first.")
    except TypeError:
        bad_input("estimator", estimator, "a fitted scikit-learn estimator")
    if isinstance(estimator, Pipeline):
        if len(estimator.steps) > 1:
            X = estimator[:-1].transform(X)
        estimator = estimator[-1]
    head = _head_of(estimator, X, np.asarray(y))
    if groups is None:
        groups = head.default_groups
    ids, names, kind = _as_groups(groups, len(head.loss))
    count = np.bincount(ids, minlength=len(names))
    with np.errstate(invalid="ignore", divide="ignore"):
        loss, correct = (sum_by(ids, values, len(names)) / count for values in (head.loss, head.correct))

    if head.features is None:
        size = np.sqrt(np.einsum("ic,ic->i", head.residual, head.residual))
        magnitude, norms_sq = sum_by(ids, size, len(names)), sum_by(ids, size**2, len(names))
        shares = shares_from_magnitudes(names, count.astype(np.int64), magnitude, norms_sq)
        start = None
    else:
        shares = head_shares(head.residual, head.features, groups, bias=head.bias, bootstrap=bootstrap, seed=seed)
        start = head_shares(head.start, head.features, groups, bias=head.bias)
    by_class = head.classes and names == head.classes
    pull, push = _pressure(head.residual) if head.classes else (np.zeros(0), np.zeros(0))
    return LinearHeadReport(
        shares=shares,
        start=start,
        loss=loss,
        correct=correct,
        correct_name="recall" if by_class else "accuracy" if head.classes else "mae",
        classes=head.classes,
        pull=pull,
        push=push,
        kind={"class": "class", "bin": "range"}.get(kind, "group"),
        space=shares.space,
    )


def start_residual(codes: npt.NDArray[np.int64], classes: int, start: str = "uniform", *, columns: int | None = None) -> Array:
    """Residuals (n, C) of a head with zero weights: ``uniform`` has no bias (p = 1/C), ``prior`` has the log prior as its bias.

    Two classes with ``columns=1`` give the one column of a logistic head.
    """
    check_choice("start", start, ("uniform", "prior"))
    prior = np.bincount(codes, minlength=classes) / codes.size if start == "prior" else np.full(classes, 1.0 / classes)
    residual = prior - np.eye(classes)[codes]
    return residual[:, 1:] if columns == 1 else residual


def _share_intervals(group_sums: Any, ids: Any, w: Array, weight: Array, draws: int, level: float, seed: int) -> tuple[Array, Array]:
    """Percentile intervals of the share under Dirichlet weights within each group (the groups' sizes stay as they are)."""
    check_range("level", level, low=0.5, high=1.0)
    rng = generator(seed, "head_shares")
    shares = np.empty((draws, weight.size))
    with np.errstate(divide="ignore", invalid="ignore"):
        for b in range(draws):
            # Exponential variables divided by their sum in each group are Dirichlet(1, ..., 1).
            drawn = rng.exponential(size=ids.size) * w
            drawn *= (weight / sum_by(ids, drawn, weight.size))[ids]
            sums = group_sums(drawn)
            mu = sums.sum(axis=0)
            shares[b] = sums @ mu / (mu @ mu)
    low, high = np.quantile(shares, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


@dataclass(frozen=True, eq=False)
class _Head:
    """A head and what it does on the given rows. ``features`` is None for models without one."""

    residual: Array  # (n, C)
    start: Array  # (n, C) residual of a fresh head
    features: Any
    bias: bool
    loss: Array
    correct: Array  # 1[correct]; regression: absolute error
    classes: tuple[str, ...]
    default_groups: Any


def _head_of(estimator: Any, X: Any, y: npt.NDArray[Any]) -> _Head:
    from sklearn import ensemble, linear_model, neural_network

    least_squares = (
        linear_model.LinearRegression,
        linear_model.Ridge,
        linear_model.RidgeCV,
        linear_model.ElasticNet,  # Lasso is a subclass
        linear_model.ElasticNetCV,
        linear_model.LassoCV,
        linear_model.SGDRegressor,
    )
    loss = getattr(estimator, "loss", None)
    if isinstance(estimator, (linear_model.LogisticRegression, linear_model.LogisticRegressionCV)):
        return _classifier(estimator, y, _dense_or_sparse(X), bool(estimator.fit_intercept), estimator.predict_proba(X))
    if isinstance(estimator, linear_model.SGDClassifier):
        check_choice("estimator.loss", loss, ("log_loss",), "Only its gradient is p - y.")
        scores = estimator.decision_function(X)
        return _one_against_rest(estimator, y, _dense_or_sparse(X), bool(estimator.fit_intercept), scores.reshape(len(y), -1))
    if isinstance(estimator, neural_network.MLPClassifier):
        return _classifier(estimator, y, _last_hidden(estimator, X), True, estimator.predict_proba(X))
    if isinstance(estimator, neural_network.MLPRegressor):
        if loss not in (None, "squared_error"):
            bad_input("estimator.loss", loss, "squared_error")
        return _regressor(estimator.predict(X), y, _last_hidden(estimator, X), True)
    if isinstance(estimator, least_squares):
        if loss not in (None, "squared_error"):
            bad_input("estimator.loss", loss, "squared_error")
        return _regressor(estimator.predict(X), y, _dense_or_sparse(X), bool(estimator.fit_intercept))
    if isinstance(estimator, (ensemble.HistGradientBoostingClassifier, ensemble.GradientBoostingClassifier)):
        if loss != "log_loss":
            bad_input("estimator.loss", loss, "log_loss")
        return _classifier(estimator, y, None, True, estimator.predict_proba(X))
    if isinstance(estimator, (ensemble.HistGradientBoostingRegressor, ensemble.GradientBoostingRegressor)):
        if loss != "squared_error":
            bad_input("estimator.loss", loss, "squared_error")
        return _regressor(estimator.predict(X), y, None, True)
    bad_input(
        "estimator",
        type(estimator).__name__,
        "a logistic, softmax or least-squares model of scikit-learn, an MLP, gradient-boosted trees, or a pipeline that ends in one",
        "For any other head call head_shares(residual, features, groups); of a search pass .best_estimator_.",
    )


def _classifier(estimator: Any, y: npt.NDArray[Any], features: Any, bias: bool, proba: Array) -> _Head:
    codes, classes = _encode(estimator, y)
    loss = -np.log(np.maximum(proba[np.arange(len(codes)), codes], LEAST))
    columns = 1 if len(classes) == 2 else len(classes)
    # Two classes have one logistic column, as scikit-learn fits them; a two-column softmax would count every residual twice.
    residual = (proba - np.eye(len(classes))[codes])[:, -columns:]
    scale = _class_weight(estimator, y)
    return _Head(
        residual=residual * scale,
        start=start_residual(codes, len(classes), columns=columns) * scale,
        features=features,
        bias=bias,
        loss=loss,
        correct=(proba.argmax(axis=1) == codes).astype(np.float64),
        classes=classes,
        default_groups=_class_groups(codes, classes),
    )


def _one_against_rest(estimator: Any, y: npt.NDArray[Any], features: Any, bias: bool, scores: Array) -> _Head:
    """Independent logistic losses, one per column (two classes: one column)."""
    from scipy.special import expit

    codes, classes = _encode(estimator, y)
    onehot = np.eye(len(classes))[codes] if scores.shape[1] > 1 else codes[:, None].astype(np.float64)
    scale = _class_weight(estimator, y)
    predicted = scores.argmax(axis=1) if scores.shape[1] > 1 else (scores[:, 0] > 0).astype(np.int64)
    return _Head(
        residual=(expit(scores) - onehot) * scale,
        start=(0.5 - onehot) * scale,
        features=features,
        bias=bias,
        loss=np.logaddexp(0.0, np.where(onehot == 1, -scores, scores)).sum(axis=1),
        correct=(predicted == codes).astype(np.float64),
        classes=classes,
        default_groups=_class_groups(codes, classes),
    )


def _regressor(prediction: npt.ArrayLike, y: npt.NDArray[Any], features: Any, bias: bool) -> _Head:
    from counterpoise.groups import Groups

    target = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
    residual = np.asarray(prediction, dtype=np.float64).reshape(target.shape) - target
    return _Head(
        residual=residual,
        start=target.mean(axis=0) - target,  # zero weights, the mean as bias: a target has no uniform prediction
        features=features,
        bias=bias,
        loss=0.5 * np.einsum("ic,ic->i", residual, residual),
        correct=np.abs(residual).mean(axis=1),
        classes=(),
        default_groups=Groups.from_bins(target[:, 0], bins=10) if target.shape[1] == 1 else None,
    )


def _last_hidden(estimator: Any, X: Any) -> Array:
    """What the last layer of a scikit-learn MLP sees."""
    from scipy.special import expit

    activation = {"identity": lambda a: a, "logistic": expit, "tanh": np.tanh, "relu": lambda a: np.maximum(a, 0.0)}[estimator.activation]
    hidden = _dense_or_sparse(X)
    for weight, bias in zip(estimator.coefs_[:-1], estimator.intercepts_[:-1], strict=True):
        hidden = activation(hidden @ weight + bias)
    return np.asarray(hidden, dtype=np.float64)


def _encode(estimator: Any, y: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    known = np.asarray(estimator.classes_)
    if y.ndim != 1:
        bad_input("y", f"shape {y.shape}", "one label per row, shape (n,)")
    codes = np.minimum(np.searchsorted(known, y), len(known) - 1)
    unknown = np.unique(y[known[codes] != y])
    if unknown.size:
        bad_input("y", listing(unknown), f"the classes the estimator was fitted on: {listing(known)}")
    return codes.astype(np.int64), tuple(str(label) for label in known.tolist())


def _class_weight(estimator: Any, y: npt.NDArray[Any]) -> Array:
    from sklearn.utils.class_weight import compute_sample_weight

    class_weight = getattr(estimator, "class_weight", None)
    if class_weight is None:
        return np.ones((len(y), 1))
    return np.asarray(compute_sample_weight(class_weight, y), dtype=np.float64)[:, None]


def _pressure(residual: Array) -> tuple[Array, Array]:
    """Per class: pull up (own rows, 1 - p) and push down (other rows, p); a logistic column stands for two classes."""
    pull, push = np.maximum(-residual, 0.0).sum(axis=0), np.maximum(residual, 0.0).sum(axis=0)
    if residual.shape[1] == 1:
        return np.array([push[0], pull[0]]), np.array([pull[0], push[0]])
    return pull, push


def _residual_matrix(residual: npt.ArrayLike) -> Array:
    E = np.asarray(residual, dtype=np.float64)
    E = E[:, None] if E.ndim == 1 else E
    if E.ndim != 2 or not E.size:
        bad_input("residual", f"shape {E.shape}", "shape (n,) or (n, C) with at least one row")
    broken = np.flatnonzero(~np.isfinite(E).all(axis=1))
    if broken.size:
        bad_input("residual", f"{broken.size} rows that are not finite (first: {listing(broken, 5)})", "finite numbers")
    return E


def _as_groups(groups: Any, n: int) -> tuple[npt.NDArray[np.int64], tuple[str, ...], str]:
    """Ids 0..G-1, names and kind; rows without a group (-1) become the group "(none)"."""
    if groups is None:
        return np.zeros(n, dtype=np.int64), ("all",), "group"
    if hasattr(groups, "ids"):
        ids, names, kind = np.asarray(groups.ids), tuple(str(name) for name in groups.names), str(groups.kind)
    else:
        ids = np.asarray(groups)
        if ids.dtype.kind not in "iu":
            bad_input("groups", f"an array of {ids.dtype}", "integer ids or Groups", "Groups.from_labels(...) names labels of any type.")
        names, kind = tuple(str(k) for k in range(int(ids.max(initial=-1)) + 1)), "group"
    if ids.shape != (n,):
        bad_input("groups", f"shape {ids.shape}", f"one id for each of the {n} rows")
    if ids.min() < -1:
        bad_input("groups", int(ids.min()), "ids from 0 up, or -1 for none")
    if (ids == -1).any():
        ids, names = np.where(ids == -1, len(names), ids), (*names, NONE)
    return ids.astype(np.int64), names, kind


def _class_groups(codes: npt.NDArray[np.int64], classes: Sequence[str]) -> Any:
    from counterpoise.groups import Groups

    return Groups(codes, tuple(classes), "class")


def _dense_or_sparse(X: Any) -> Any:
    return X.tocsr() if hasattr(X, "tocsr") else np.asarray(X, dtype=np.float64)


def _row_norms_sq(H: Any) -> Array:
    if hasattr(H, "tocsr"):
        return np.asarray(H.multiply(H).sum(axis=1), dtype=np.float64).ravel()
    return np.asarray(np.einsum("ij,ij->i", H, H))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
