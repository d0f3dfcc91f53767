"""Which rows look rare, and what weights from their likelihood would do, before anything is trained (arXiv:2308.09878)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from counterpoise._errors import listing
from counterpoise._likelihood import ETA, GAMMA, check_likelihood, check_strength, dequity

from ._shares import percent

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

__all__ = ["ClusterReport", "appearance_clusters"]

NOISE = -1
EXEMPLARS = 5  # rows shown of each cluster
IDLE = 1.1  # a ratio of weights below this changes nothing worth training for


@dataclass(frozen=True, eq=False)
class ClusterReport:
    """Result of :func:`appearance_clusters`.

    ``labels`` (n,): cluster of each row, 0 the largest, -1 noise. ``sizes`` (K,): rows of each cluster. ``likelihood`` (n,): relative size
    of the row's cluster. ``noise_fraction``: share of rows that are noise. ``exemplars``: cluster -> up to five rows to look at, the
    rarest cluster (highest weight) first; of a cluster the most typical rows, nearest to its center first; of noise the oddest, farthest
    from the center of all rows first. ``method``, and ``eps``, the radius DBSCAN used (None otherwise).
    """

    labels: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    likelihood: npt.NDArray[np.float64]
    noise_fraction: float
    exemplars: Mapping[int, npt.NDArray[np.int64]]
    method: str
    eps: float | None

    def weights(self, eta: float = ETA, gamma: float = GAMMA) -> npt.NDArray[np.float64]:
        """Weights (n,) of the rows, not scaled, as :func:`counterpoise.losses.dequity_weight` makes them."""
        check_strength(eta, gamma)
        check_likelihood(self.likelihood, eta, gamma)
        return np.asarray(dequity(self.likelihood, eta, gamma))

    def weight_ratio(self, eta: float = ETA, gamma: float = GAMMA) -> float:
        """Largest weight divided by the smallest; at most (eta + 1) / eta. Infinite if a weight is 0."""
        w = self.weights(eta, gamma)
        return float(w.max() / w.min()) if w.min() > 0 else float("inf")

    def effective_sample_size(self, eta: float = ETA, gamma: float = GAMMA) -> float:
        r"""Rows that the weighted ones are worth, :math:`(\sum_i w_i)^2 / \sum_i w_i^2` (Kish)."""
        w = self.weights(eta, gamma)
        return float(w.sum() ** 2 / (w**2).sum())

    def to_frame(self, eta: float = ETA, gamma: float = GAMMA) -> pl.DataFrame:
        """One row per cluster, highest weight first: ``cluster`` (-1 is noise), ``count``, ``likelihood``, ``weight`` (of mean 1 over the
        data), ``exemplars``."""
        import polars as pl

        w = self.weights(eta, gamma)
        first = [int(rows[0]) for rows in self.exemplars.values()]
        return pl.DataFrame(
            {
                "cluster": list(self.exemplars),
                "count": [self._count(cluster) for cluster in self.exemplars],
                "likelihood": self.likelihood[first],
                "weight": w[first] / w.mean(),
                "exemplars": [rows.tolist() for rows in self.exemplars.values()],
            }
        )

    def summary(self, eta: float = ETA, gamma: float = GAMMA) -> str:
        """Three sentences: the clusters, what weights would do, and the rows to look at first."""
        n = len(self.labels)
        clusters = f"{len(self.sizes)} cluster{'' if len(self.sizes) == 1 else 's'}"
        found = f"{n:,} rows form {clusters}"
        if len(self.sizes):
            found += f", the largest with {percent(self.sizes[0] / n)} of them"
        found += f"; {percent(self.noise_fraction)} are noise."
        ratio = self.weight_ratio(eta, gamma)
        worth = f"effective sample size {self.effective_sample_size(eta, gamma):,.0f}"
        effect = f"Weights at eta = {eta:g}, gamma = {gamma:g} differ by a factor of {ratio:.2f} ({worth})"
        if ratio < IDLE:
            cause = "all rows look alike" if len(self.exemplars) == 1 else "clusters are of like size, or all are small"
            return f"{found}\n{effect}: training with them changes next to nothing, since {cause}."
        rarest, rows = next(iter(self.exemplars.items()))
        name = "noise" if rarest == NOISE else f"cluster {rarest}"
        look = f"Look at rows {listing(rows)} first: {name} ({self._count(rarest):,} rows) weighs most, and rare may mean garbage."
        return f"{found}\n{effect}.\n{look}"

    def plot(self, eta: float = ETA, gamma: float = GAMMA) -> Figure:
        """Bars of rows per cluster with the weight of a row, highest weight first."""
        from counterpoise.report import _plots

        table = self.to_frame(eta, gamma)
        names = [
            f"{'noise' if cluster == NOISE else f'cluster {cluster}'} × {weight:.2f}"
            for cluster, weight in zip(table["cluster"], table["weight"], strict=True)
        ]
        return _plots.count_bars(names, table["count"].to_numpy(), title="Rows per cluster × weight of each row")

    def _count(self, cluster: int) -> int:
        return int(self.sizes[cluster]) if cluster != NOISE else len(self.labels) - int(self.sizes.sum())


def appearance_clusters(
    embeddings: Any,
    method: Literal["dbscan", "hdbscan", "kmeans"] = "dbscan",
    n_components: int | None = 16,
    random_state: int | np.random.Generator | None = None,
    *,
    standardize: bool = True,
    eps: float | None = None,
    min_samples: int = 5,
    n_clusters: int = 8,
    noise: Literal["pooled", "singleton"] = "pooled",
    max_samples: int = 5000,
) -> ClusterReport:
    r"""Rows grouped by how they look, without labels, and how likely each appearance is: :math:`p_i = n_{k(i)} / N`.

    Parameters
    ----------
    embeddings : array-like or tensor, shape (n, d)
        What an encoder makes of each row, or the features themselves.
    method, n_components, random_state, standardize, eps, min_samples, n_clusters, noise, max_samples
        As in :class:`counterpoise.data.LikelihoodWeighter`, which makes the same clusters into weights.

    Raises
    ------
    InputError
        If an embedding is not finite (the row is named), there are fewer than two rows, or a parameter is out of its range.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> report = appearance_clusters(np.concatenate([rng.normal(0, 1, (180, 2)), rng.normal(9, 0.5, (20, 2))]))
    >>> report.sizes, report.noise_fraction, round(report.weight_ratio(), 2)
    (array([175,  20]), 0.025, 1.88)
    >>> print(report.summary())
    200 rows form 2 clusters, the largest with 87.5 % of them; 2.5 % are noise.
    Weights at eta = 1, gamma = 5 differ by a factor of 1.88 (effective sample size 192).
    Look at rows 151, 119, 79, 69, 135 first: noise (5 rows) weighs most, and rare may mean garbage.
    """
    from counterpoise.data import LikelihoodWeighter

    weighter = LikelihoodWeighter(
        method=method,
        n_components=n_components,
        standardize=standardize,
        eps=eps,
        min_samples=min_samples,
        n_clusters=n_clusters,
        noise=noise,
        max_samples=max_samples,
        random_state=random_state,
    )
    reduced, labels = weighter._fit(embeddings), weighter.labels_
    sizes = np.bincount(labels[labels != NOISE]).astype(np.int64)
    present = np.unique(labels)
    likelihood = {int(k): weighter.likelihood_[labels == k][0] for k in present}
    return ClusterReport(
        labels=labels,
        sizes=sizes,
        likelihood=weighter.likelihood_,
        noise_fraction=float((labels == NOISE).mean()),
        exemplars={k: _exemplars(reduced, labels, k) for k in sorted(likelihood, key=lambda k: (likelihood[k], k))},
        method=method,
        eps=weighter.eps_,
    )


def _exemplars(Z: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], cluster: int) -> npt.NDArray[np.int64]:
    rows = np.flatnonzero(labels == cluster)
    if cluster == NOISE:
        order = np.argsort(-np.linalg.norm(Z[rows] - Z.mean(axis=0), axis=1), kind="stable")
    else:
        order = np.argsort(np.linalg.norm(Z[rows] - Z[rows].mean(axis=0), axis=1), kind="stable")
    return rows[order[:EXEMPLARS]]
