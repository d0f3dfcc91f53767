r"""How far the features of a trained network have collapsed, and to which geometry (arXiv:2008.08186; under imbalance, arXiv:2301.00437).

With class means :math:`\mu_k` (mean of all classes :math:`\mu_G`, every class once), :math:`\Sigma_W` the covariance around the own class
mean over all N rows, :math:`\Sigma_B = \frac{1}{K} \sum_k (\mu_k - \mu_G)(\mu_k - \mu_G)^T`:

.. math:: \text{NC1} = \frac{1}{K} \operatorname{tr}(\Sigma_W \Sigma_B^+) = \sum_{j < K} \frac{v_j^T \Sigma_W v_j}{s_j^2}

where :math:`s_j` and :math:`v_j` are the singular values and right vectors of the centered means (K, d), of which at most K - 1 are not 0.
The right side needs no pseudo-inverse of a d x d matrix, and of :math:`\Sigma_W` only what lies along the :math:`v_j`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from counterpoise._errors import bad_input, check_range, listing
from counterpoise.nn._unconstrained import check_counts

from ._shares import percent

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

    from ._collapse import CollapsePrediction

__all__ = ["CollapseAccumulator", "NeuralCollapseReport", "collapse_metrics"]

Array = npt.NDArray[np.float64]

CHUNK = 2**19  # numbers of a chunk of rows in float64: 4 MB, which a processor's cache holds
SCATTER_CHUNK = 2**22  # where a product of d x d follows, which takes its time from memory
LARGEST = 1e150  # of a feature: sums of squares stay within float64


@dataclass(frozen=True, eq=False)
class NeuralCollapseReport:
    """Result of :func:`collapse_metrics` and of :meth:`CollapseAccumulator.report`. All of nc1 to nc3 are 0 at full collapse.

    Attributes:
        nc1: spread within classes against distances between their means; infinite if the means coincide.
        nc2_orthogonal: relative distance of the means' inner products (not centered) from a diagonal matrix: that with the lengths of
            ``prediction``, or without one that of their own lengths. The geometry of a head without bias, and of unequal classes.
        nc2_etf: mean distance of the cosines between *centered* means from -1 / (K - 1), and nc2_etf_std, their standard deviation. The
            geometry of equal classes with a bias.
        nc3: 1 - mean cosine of a class's row of the classifier with its mean (not centered); NaN without ``weight``.
        nc4: share of the rows where the classifier decides for the class whose mean is nearest; NaN without ``weight``, or if the rows came
            in batches and are gone.
        nearest_mean_accuracy: share of the rows whose nearest class mean is that of their own class; NaN if the rows are gone.
        within_fraction: tr Sigma_W / (tr Sigma_W + tr Sigma_B).
        counts: (K,) rows of each class; class_counts: (K,) examples it was trained on, ``counts`` if not given.
        means: (K, d), NaN for a class without rows. mean_norm: (K,) their lengths.
        weight_norm, alignment: (K,) length of each classifier row, and its cosine with the mean; None without ``weight``.
        cosines: (K, K) between means, not centered.
        prediction: as given.
        flags: what makes a number above mean less than it seems, one sentence each.
    """

    nc1: float
    nc2_orthogonal: float
    nc2_etf: float
    nc2_etf_std: float
    nc3: float
    nc4: float
    nearest_mean_accuracy: float
    within_fraction: float
    counts: npt.NDArray[np.int64]
    class_counts: npt.NDArray[np.int64]
    means: Array
    mean_norm: Array
    weight_norm: Array | None
    alignment: Array | None
    cosines: Array
    prediction: CollapsePrediction | None
    flags: tuple[str, ...]

    @property
    def mean_norm_ratio(self) -> float:
        """Longest class mean over the shortest."""
        return _ratio(self.mean_norm)

    @property
    def weight_norm_ratio(self) -> float:
        """Longest row of the classifier over the shortest; NaN without ``weight``."""
        return float("nan") if self.weight_norm is None else _ratio(self.weight_norm)

    @property
    def mean_abs_cosine(self) -> float:
        """Mean of the absolute cosines between means of different classes, not centered; 0 if they are orthogonal."""
        between = self.cosines[~np.eye(len(self.counts), dtype=np.bool_)]
        return float(np.abs(between[np.isfinite(between)]).mean()) if np.isfinite(between).any() else float("nan")

    def nearest_mean(self, features: Any) -> npt.NDArray[np.int64]:
        """Class (N,) whose mean is nearest to each row of ``features`` (N, d): for NC4 in a second look at rows that came in batches."""
        X = _features(features)
        if X.shape[1] != self.means.shape[1]:
            bad_input("features", f"shape {tuple(X.shape)}", f"rows of {self.means.shape[1]} features, as before")
        means = torch.as_tensor(self.means, device=X.device)
        near = [_nearest(x, means) for _, x in _chunks(X)]
        return np.asarray(torch.cat(near).cpu().numpy()) if near else np.zeros(0, dtype=np.int64)

    def to_frame(self) -> pl.DataFrame:
        """One row per class: ``class``, ``count``, ``class_count``, ``mean_norm``; with a classifier ``weight_norm`` and ``alignment``;
        with a prediction ``predicted_norm`` and ``alive``."""
        import polars as pl

        columns: dict[str, Any] = {
            "class": np.arange(len(self.counts)),
            "count": self.counts,
            "class_count": self.class_counts,
            "mean_norm": self.mean_norm,
        }
        if self.weight_norm is not None and self.alignment is not None:
            columns |= {"weight_norm": self.weight_norm, "alignment": self.alignment}
        if self.prediction is not None:
            columns |= {"predicted_norm": self.prediction.feature_norm, "alive": self.prediction.alive}
        return pl.DataFrame(columns)

    def __repr__(self) -> str:
        return f"NeuralCollapseReport({self.summary().splitlines()[0]})"

    def summary(self) -> str:
        """How far the collapse has gone, to which geometry, and what it does to the rarest class."""
        lines = [
            f"NC1 {self.nc1:.3g}: {percent(self.within_fraction)} of the spread of the features lies within classes.",
            f"Class means: mean |cosine| {self.mean_abs_cosine:.3f} (0 if orthogonal), off a simplex by {self.nc2_etf:.3f} once centered.",
        ]
        if self.weight_norm is not None:
            agree = "" if np.isnan(self.nc4) else f"; it decides for the nearest mean in {percent(self.nc4)} of the rows"
            lines.append(f"Classifier against means: 1 - cosine is {self.nc3:.3f}{agree}.")
        seen = np.flatnonzero(self.counts > 0)
        rare, common = (int(seen[pick(self.class_counts[seen])]) for pick in (np.argmin, np.argmax))
        if self.class_counts[rare] < self.class_counts[common]:
            text = (
                f"Mean of class {rare} ({self.class_counts[rare]:,} examples): {_times(self.mean_norm, rare, common)} the length of that "
                f"of class {common} ({self.class_counts[common]:,})"
            )
            lines.append(text + ("." if self.weight_norm is None else f"; its classifier row: {_times(self.weight_norm, rare, common)}."))
        if self.prediction is not None:
            dead = np.flatnonzero(~self.prediction.alive)
            lost = f"no features for class {listing(dead)}" if len(dead) else "all classes alive"
            lines.append(
                f"The theory (squared error, SGD with an L2 penalty only; AdamW's decay is not one) has {lost}; "
                f"distance of the means' Gramian from it: {self.nc2_orthogonal:.3f}."
            )
        return "\n".join([*lines, *self.flags])

    def plot(self) -> Figure:
        """Lengths of means and classifier rows against the class count, and the cosines between means."""
        from counterpoise.report._collapse import metrics_figure

        predicted = None if self.prediction is None else self.prediction.feature_norm
        return metrics_figure(self.class_counts, self.mean_norm, self.weight_norm, predicted, self.cosines)


class CollapseAccumulator:
    """Collapse metrics of rows that come in batches, or from several processes, without keeping the rows.

    Holds, in float64, the counts (K,), the class means (K, d) and the scatter within classes (d, d), each updated around the current
    means, so that nothing cancels when classes are tight: 8 d^2 bytes, 134 MB at d = 4096. The result does not depend on how the rows were
    divided. The means are known only at the end, so NC4 takes a second look (:meth:`NeuralCollapseReport.nearest_mean`).

    Parameters
    ----------
    n_classes : int
        K >= 2; labels are 0 to K - 1.

    Raises
    ------
    InputError
        As :func:`collapse_metrics` does.

    Examples
    --------
    >>> features, y = torch.randn(90, 5, generator=torch.Generator().manual_seed(0)), torch.arange(90) % 3
    >>> seen = CollapseAccumulator(3)
    >>> for rows in torch.arange(90).split(32):  # in evaluation mode, with the features of the layer before the last
    ...     _ = seen.update(features[rows], y[rows])
    >>> bool(abs(seen.report().nc1 - collapse_metrics(features, y).nc1) < 1e-10)
    True

    With torch.distributed every process updates its own; ``all_gather_object`` brings the others', and :meth:`merge` joins them.
    """

    def __init__(self, n_classes: int) -> None:
        check_range("n_classes", n_classes, low=2, integer=True)
        self.n_classes = int(n_classes)
        self._counts = torch.zeros(self.n_classes, dtype=torch.float64)
        self._means = torch.zeros(self.n_classes, 0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)

    def update(self, features: Any, y: Any) -> Self:
        """Add rows ``features`` (n, d) of classes ``y`` (n,); returns itself."""
        X = _features(features)
        labels = _labels(y, len(X), self.n_classes).to(_device(X))
        _check_values(X)  # of all rows, before any of them is added
        self._match(X.shape[1], _device(X))
        for rows, x in _chunks(X, SCATTER_CHUNK):
            here = labels[rows]
            counts, means = _class_means([(here, x)], self.n_classes, X.shape[1])
            residual = x - means[here]
            self._add(counts, means)
            self._scatter.addmm_(residual.T, residual)
        return self

    def merge(self, other: CollapseAccumulator) -> Self:
        """Add the rows that ``other`` has seen; returns itself."""
        if other.n_classes != self.n_classes:
            bad_input("other", f"{other.n_classes} classes", f"{self.n_classes}, as here")
        if other._counts.any():
            self._match(other._means.shape[1], self._counts.device if self._counts.any() else other._counts.device)
            here = self._counts.device
            self._add(other._counts.to(here), other._means.to(here))
            self._scatter += other._scatter.to(here)
        return self

    def report(
        self, weight: Any = None, class_counts: Sequence[int] | npt.NDArray[Any] | None = None, prediction: CollapsePrediction | None = None
    ) -> NeuralCollapseReport:
        """Metrics of all rows so far; arguments as in :func:`collapse_metrics`."""
        W, trained = _check_options(weight, class_counts, prediction, self.n_classes, self._means.shape[1] or None)
        frame = _Frame.of(self._counts, self._means)
        V = frame.directions(self._means.device)
        along = ((self._scatter @ V) * V).sum(dim=0) / self._counts.sum()
        within = float(self._scatter.diagonal().sum() / self._counts.sum())
        return _report(frame, along.cpu().numpy(), within, W, trained, prediction)

    def _match(self, d: int, device: torch.device) -> None:
        """Room for rows of d features on a device; the first rows decide on d."""
        if not self._counts.any() and self._means.shape[1] != d:
            self._means = torch.zeros(self.n_classes, d, dtype=torch.float64)
            self._scatter = torch.zeros(d, d, dtype=torch.float64)
        if self._means.shape[1] != d:
            bad_input("features", f"rows of {d} features", f"rows of {self._means.shape[1]}, as before")
        self._counts, self._means, self._scatter = self._counts.to(device), self._means.to(device), self._scatter.to(device)

    def _add(self, counts: Tensor, means: Tensor) -> None:
        """Two parts of one class with means apart by delta add n1 n2 / (n1 + n2) delta delta^T to their scatters (Chan et al. 1979).

        Their own scatters are left to the caller.
        """
        total = self._counts + counts
        new = counts / total.clamp(min=1)
        delta = means - self._means
        both = (self._counts > 0) & (counts > 0)
        apart = delta[both]
        self._scatter.addmm_((apart * (self._counts * new)[both, None]).T, apart)
        self._means = self._means + delta * new[:, None]
        self._counts = total


def collapse_metrics(
    features: Any,
    y: Any,
    weight: Any = None,
    class_counts: Sequence[int] | npt.NDArray[Any] | None = None,
    prediction: CollapsePrediction | None = None,
) -> NeuralCollapseReport:
    r"""NC1 to NC4, lengths and cosines of the features that a network gives to rows of known class.

    Besides NC1 (above), with :math:`M` the class means as rows, :math:`\Lambda` the diagonal of squared lengths:

    .. math::
        \text{NC2, orthogonal} = \frac{\lVert M M^T - \Lambda \rVert_F}{\lVert \Lambda \rVert_F}, \qquad
        \text{NC2, simplex} = \underset{k \neq l}{\operatorname{mean}}
            \Bigl| \cos(\mu_k - \mu_G, \mu_l - \mu_G) + \frac{1}{K - 1} \Bigr|, \qquad
        \text{NC3} = 1 - \underset{k}{\operatorname{mean}} \cos(w_k, \mu_k)

    Cost: O(N d K), a few chunks of rows in memory beyond the features. For rows in batches there is :class:`CollapseAccumulator`.

    Parameters
    ----------
    features : tensor or array-like, shape (N, d)
        What the last layer (or the linear head) gets, in evaluation mode. Computed in float64 whatever the type, where the tensor lies.
    y : tensor or array-like of int, shape (N,)
        Classes 0 to K - 1, at least two of them with rows.
    weight : tensor or array-like, shape (K, d), optional
        The last layer's, or the product of all layers of a linear head; needed for NC3 and NC4.
    class_counts : sequence of int, shape (K,), optional
        Examples that the network was trained on, where ``features`` are of other rows; default: the counts in ``y``.
    prediction : CollapsePrediction, optional
        Of :func:`neural_collapse_lengths`: its lengths make :math:`\Lambda`. By default these are the lengths of the means themselves.

    Returns
    -------
    NeuralCollapseReport
        Classes without rows are NaN in it and left out of the metrics; ``flags`` says so.

    Warns
    -----
    UserWarning
        If there are more classes than dimensions, so that they cannot be orthogonal.

    Raises
    ------
    InputError
        If shapes do not match, a feature is NaN, infinite or above 1e150, a label is not in 0..K-1, or fewer than two classes have rows.

    Examples
    --------
    >>> report = collapse_metrics(np.repeat([[2.0, 0, 0], [0, 3.0, 0]], 10, axis=0), np.repeat([0, 1], 10), weight=np.eye(2, 3))
    >>> report.nc1, report.nc2_orthogonal, report.nc3, report.nc4, report.mean_norm
    (0.0, 0.0, 0.0, 1.0, array([2., 3.]))
    """
    X = _features(features)
    K = _n_classes(y, weight, class_counts, prediction)
    labels = _labels(y, len(X), K).to(_device(X))
    W, trained = _check_options(weight, class_counts, prediction, K, X.shape[1])
    counts, means = _class_means(((labels[rows], x) for rows, x in _chunks(X)), K, X.shape[1])
    if not bool((means.abs() < LARGEST).all()):
        _check_values(X)
    frame = _Frame.of(counts, means)
    V = frame.directions(means.device)
    head = None if W is None else torch.as_tensor(W, device=means.device)
    places = torch.as_tensor(frame.places, device=means.device)
    along, within, own, agree = means.new_zeros(V.shape[1]), *means.new_zeros(3)
    for rows, x in _chunks(X):
        here = labels[rows]
        residual = x - means[here]
        offset = residual @ V
        along += offset.square().sum(dim=0)
        within += torch.dot(residual.flatten(), residual.flatten())
        near = _nearest(places[here] + offset, places)  # what lies across the V is as far from every mean
        own += (near == here).sum()
        if head is not None:
            agree += (near == (x @ head.T).argmax(dim=1)).sum()
    if not bool(within.isfinite()):
        _check_values(X)
    N = len(X)
    report = _report(frame, (along / N).cpu().numpy(), float(within) / N, W, trained, prediction)
    return replace(report, nearest_mean_accuracy=float(own) / N, nc4=float("nan") if W is None else float(agree) / N)


# ---- the numbers ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frame:
    """Class means, and the directions in which they differ: right singular vectors (r, d) of the centered means, their singular values."""

    counts: npt.NDArray[np.int64]
    means: Array
    centered: Array
    singular: Array
    vectors: Array

    @classmethod
    def of(cls, counts: Tensor, means: Tensor) -> _Frame:
        n, M = counts.cpu().numpy().astype(np.int64), means.cpu().numpy()
        seen = n > 0
        if seen.sum() < 2:
            bad_input("y", f"rows of {int(seen.sum())} class{'es' * (not seen.any())}", "rows of at least two classes")
        centered = M[seen] - M[seen].mean(axis=0)
        _, s, vectors = np.linalg.svd(centered, full_matrices=False)
        # The tolerance of a pseudo-inverse of Sigma_B, whose eigenvalues are s^2 / K; differences that are rounding of the means are none.
        relative = np.finfo(np.float64).eps * max(M.shape[1], len(centered))
        kept = (s**2 > relative * s[0] ** 2) & (s > relative * np.abs(M[seen]).max()) & (np.arange(len(s)) < seen.sum() - 1)
        return cls(n, np.where(seen[:, None], M, np.nan), centered, s[kept], vectors[kept])

    @property
    def places(self) -> Array:
        """(K, r) coordinates of the means along the vectors, NaN for a class without rows."""
        return np.asarray((self.means - np.nanmean(self.means, axis=0)) @ self.vectors.T)

    def directions(self, device: torch.device) -> Tensor:
        """(d, r)"""
        return torch.as_tensor(self.vectors.T, device=device)


def _report(
    frame: _Frame,
    along: Array,
    within: float,
    W: Array | None,
    class_counts: npt.NDArray[np.int64] | None,
    prediction: CollapsePrediction | None,
) -> NeuralCollapseReport:
    """Everything that follows from the means, the variance ``along`` each of their directions, and the trace ``within``."""
    seen = frame.counts > 0
    M, K = frame.means[seen], int(seen.sum())
    lengths = np.linalg.norm(frame.means, axis=1)
    gramian = M @ M.T
    wanted = lengths[seen] ** 2 if prediction is None else prediction.feature_norm[seen] ** 2
    between = float((frame.centered**2).sum() / K)
    etf = _cosines(frame.centered)[~np.eye(K, dtype=np.bool_)]
    alignment = None if W is None else _cosine_rows(W, frame.means)
    return NeuralCollapseReport(
        nc1=float((along / frame.singular**2).sum()) if len(frame.singular) else float("inf"),
        nc2_orthogonal=_divide(float(np.linalg.norm(gramian - np.diag(wanted))), float(np.linalg.norm(wanted))),
        nc2_etf=float(np.abs(etf + 1 / (K - 1)).mean()),
        nc2_etf_std=float(etf.std()),
        nc3=float("nan") if alignment is None or np.isnan(alignment).all() else float(1 - np.nanmean(alignment)),
        nc4=float("nan"),
        nearest_mean_accuracy=float("nan"),
        within_fraction=_divide(within, within + between),
        counts=frame.counts,
        class_counts=frame.counts if class_counts is None else class_counts,
        means=frame.means,
        mean_norm=lengths,
        weight_norm=None if W is None else np.linalg.norm(W, axis=1),
        alignment=alignment,
        cosines=_cosines(frame.means),
        prediction=prediction,
        flags=tuple(_flags(frame, lengths, W)),
    )


def _flags(frame: _Frame, lengths: Array, W: Array | None) -> Iterator[str]:
    n, d = frame.counts, frame.means.shape[1]
    absent, single = np.flatnonzero(n == 0), np.flatnonzero(n == 1)
    if len(absent):
        yield f"Without rows here, left out: class {listing(absent)}."
    if len(single) == (n > 0).sum():
        yield "Every class has one row: no spread within classes can be seen, and NC1 is 0 whatever the network."
    elif len(single):
        yield f"With one row, so without a spread of its own: class {listing(single)}."
    if not len(frame.singular):
        yield "All class means coincide: NC1 is infinite."
    if len(n) > d:
        yield f"{len(n)} classes in {d} dimensions cannot be orthogonal: the theory does not apply."
    gone = np.flatnonzero(lengths == 0)
    if len(gone):
        yield f"Collapsed to 0, so without a direction: the mean of class {listing(gone)}."
    if W is not None and not np.linalg.norm(W, axis=1).all():
        yield f"Collapsed to 0, so without a direction: the classifier row of class {listing(np.flatnonzero(~W.any(axis=1)))}."


def _cosines(rows: Array) -> Array:
    """(K, K); NaN where a row is 0 or NaN."""
    unit = rows / _positive(np.linalg.norm(rows, axis=1))[:, None]
    return np.asarray(np.clip(unit @ unit.T, -1, 1))


def _cosine_rows(a: Array, b: Array) -> Array:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray(np.clip((a * b).sum(axis=1) / _positive(lengths), -1, 1))


def _positive(lengths: Array) -> Array:
    return np.where(lengths > 0, lengths, np.nan)


def _divide(a: float, b: float) -> float:
    return a / b if b > 0 else 0.0 if a == 0 else float("inf")


def _ratio(lengths: Array) -> float:
    found = lengths[np.isfinite(lengths)]
    return _divide(float(found.max()), float(found.min()))


def _times(lengths: Array, rare: int, common: int) -> str:
    return f"{_divide(float(lengths[rare]), float(lengths[common])):.2f} times"


def _class_means(parts: Any, K: int, d: int) -> tuple[Tensor, Tensor]:
    """Counts (K,) and means (K, d) of chunks (labels, rows); a class without rows has mean 0."""
    counts = sums = torch.zeros(0)
    for labels, x in parts:
        if not len(counts):
            counts, sums = x.new_zeros(K), x.new_zeros(K, d)
        counts += torch.bincount(labels, minlength=K)
        sums.index_add_(0, labels, x)
    return counts, sums / counts.clamp(min=1)[:, None]


def _nearest(x: Tensor, means: Tensor) -> Tensor:
    """Index (n,) of the mean nearest to each row; means that are NaN are none."""
    closeness = x @ means.T - means.square().sum(dim=1) / 2
    return torch.where(closeness.isnan(), -torch.inf, closeness).argmax(dim=1)


def _chunks(X: Tensor, numbers: int = 0) -> Iterator[tuple[slice, Tensor]]:
    """(rows, the rows in float64), so that no second copy of the features is made."""
    size = max(1, (numbers or CHUNK) * (1 if _device(X).type == "cpu" else 32) // X.shape[1])
    for start in range(0, len(X), size):
        rows = slice(start, start + size)
        yield rows, X[rows].to(_device(X), torch.float64)


def _device(X: Tensor) -> torch.device:
    """Where to compute: where the features lie, unless there is no float64 there."""
    return torch.device("cpu") if X.device.type == "mps" else X.device


# ---- the input --------------------------------------------------------------------------------------------------------------------------


def _tensor(values: Any, argument: str, accepted: str) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    try:
        array = np.asarray(values)
        return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))
    except (TypeError, ValueError):
        bad_input(argument, values, accepted)


def _features(features: Any) -> Tensor:
    X = _tensor(features, "features", "numbers, shape (N, d)")
    if X.ndim != 2 or not X.shape[1] or X.is_complex():
        hint = "Flatten or pool feature maps first." if X.ndim > 2 else ""
        bad_input("features", f"{X.dtype} of shape {tuple(X.shape)}", "numbers of shape (N, d)", hint)
    return X


def _labels(y: Any, n: int, K: int) -> Tensor:
    labels = _tensor(y, "y", "integer classes 0..K-1, shape (N,)")
    if labels.shape != (n,):
        bad_input("y", f"shape {tuple(labels.shape)}", f"one class for each of the {n} rows of features")
    if labels.is_floating_point() or labels.is_complex():
        bad_input("y", f"numbers of {labels.dtype}", "integer classes 0..K-1")
    labels = labels.to(torch.int64)
    wrong = (labels < 0) | (labels >= K)
    if bool(wrong.any()):
        bad_input("y", int(labels[wrong][0]), f"classes 0..{K - 1}", "Drop rows without a class first.")
    return labels


def _n_classes(y: Any, weight: Any, class_counts: Any, prediction: CollapsePrediction | None) -> int:
    """K as the first of these says that knows; that all agree is checked later."""
    if weight is not None:
        return len(_tensor(weight, "weight", "numbers, shape (K, d)"))
    if class_counts is not None:
        return len(class_counts)
    if prediction is not None:
        return len(prediction.b)
    labels = _tensor(y, "y", "integer classes 0..K-1, shape (N,)")
    if not labels.numel():
        bad_input("y", "no rows", "rows of at least two classes")
    return max(int(labels.max()) + 1, 2)


def _check_options(
    weight: Any, class_counts: Any, prediction: CollapsePrediction | None, K: int, d: int | None
) -> tuple[Array | None, npt.NDArray[np.int64] | None]:
    W = None
    if weight is not None:
        tensor = _tensor(weight, "weight", "numbers, shape (K, d)")
        if tensor.ndim != 2 or tensor.shape[0] != K or tensor.shape[1] != (d or tensor.shape[1]):
            bad_input("weight", f"shape {tuple(tensor.shape)}", f"shape ({K}, {d or 'd'}): one row per class, as wide as the features")
        W = np.asarray(tensor.cpu().double().numpy())
        if not np.isfinite(W).all():
            bad_input("weight", f"{int((~np.isfinite(W)).sum())} values that are not finite", "finite weights")
    trained = None
    if class_counts is not None:
        trained = check_counts("class_counts", class_counts).astype(np.int64)
        if len(trained) != K:
            bad_input("class_counts", f"{len(trained)} counts", f"one for each of the {K} classes")
    if prediction is not None and len(prediction.b) != K:
        bad_input("prediction", f"{len(prediction.b)} classes", f"one for each of the {K} classes")
    if d is not None and d < K:
        warnings.warn(
            f"{K} classes in {d} dimensions cannot be orthogonal: the theory of the lengths does not apply.", UserWarning, stacklevel=3
        )
    return W, trained


def _check_values(X: Tensor) -> None:
    rows = torch.nonzero(~(X.abs() < LARGEST).all(dim=1))[:, 0]
    if len(rows):
        found = f"NaN, infinite or huge values in {len(rows)} of {len(X)} rows"
        bad_input("features", found, f"finite numbers below {LARGEST:g}", f"First in row {int(rows[0])}.")
