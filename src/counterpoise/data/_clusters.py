"""Clusters of rows that look alike: embeddings are reduced to a few dimensions and clustered there; a row goes to the nearest core point.

What is found is a fixed rule, so that a row gets the same cluster whether it was there when the clusters were made or comes later.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.cluster import HDBSCAN, AgglomerativeClustering, KMeans
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from sklearn.utils import gen_batches

__all__ = ["METHODS", "NOISE", "Clusters", "find_clusters", "knee"]

METHODS = ("dbscan", "hdbscan", "kmeans")
NOISE = -1  # the label of rows that belong to no cluster

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_BATCH = 4096  # rows that are reduced at once, so that no second copy of wide embeddings is held
_SAME = 1e-6  # of the spread: distances below are rounding, and the points the same
_ROUNDING = 1e-9  # of eps: distances between whole numbers are often eps exactly, and rounding should not decide
_STARTS = 10  # of k-means, which keeps the best


@dataclass(frozen=True, eq=False)
class Clusters:
    """The rule that assigns rows: ``points`` (M, k) with their clusters ``labels`` (M,), and how far from a point its cluster reaches.

    DBSCAN: points are the core points, and every cluster reaches ``eps`` far, so that the rows it was made from keep their clusters (a
    border row between two clusters gets the nearer one). HDBSCAN has no core points: points are all rows it was made from, noise
    included, and a cluster reaches as far as its own members are from their nearest neighbor. k-means: points are the centers, without
    limit.
    """

    scaler: StandardScaler
    pca: PCA | None
    points: FloatArray
    labels: IntArray
    reach: FloatArray
    eps: float | None

    def reduce(self, X: npt.NDArray[Any]) -> FloatArray:
        """Embeddings (n, d) in the space of the clusters, (n, k)."""
        return np.concatenate([_reduce(X[rows], self.scaler, self.pca) for rows in gen_batches(len(X), _BATCH)])

    def assign(self, Z: FloatArray) -> IntArray:
        """Clusters (n,) of reduced rows; -1 is noise."""
        if not len(self.points):
            return np.full(len(Z), NOISE, dtype=np.int64)
        distance, nearest = NearestNeighbors(n_neighbors=1).fit(self.points).kneighbors(Z)
        label = self.labels[nearest[:, 0]]
        return np.where(distance[:, 0] <= self.reach[label], label, NOISE)


def find_clusters(
    X: npt.NDArray[Any],
    *,
    method: str = "dbscan",
    n_components: int | None = 16,
    standardize: bool = True,
    eps: float | None = None,
    min_samples: int = 5,
    n_clusters: int = 8,
    max_samples: int = 5000,
    rng: np.random.Generator,
) -> tuple[Clusters, FloatArray, IntArray]:
    """The rule, the reduced rows (n, k) and their clusters (n,), numbered from the largest to the smallest.

    Everything is fitted on at most ``max_samples`` rows drawn without replacement; the other rows are assigned.
    """
    n = len(X)
    sample = X if n <= max_samples else X[np.sort(rng.choice(n, max_samples, replace=False))]
    seed = int(rng.integers(2**31))
    sample = sample.astype(np.float64)
    scaler = StandardScaler(with_std=standardize).fit(sample)
    pca = None
    if n_components is not None and n_components < X.shape[1]:
        with np.errstate(invalid="ignore"):  # shares of a variance that is zero, when all rows are equal
            pca = PCA(min(n_components, len(sample)), random_state=seed).fit(scaler.transform(sample))
    points = _reduce(sample, scaler, pca)
    found: tuple[FloatArray, IntArray, FloatArray, float | None]
    if method == "dbscan":
        found = _dbscan(points, eps, min_samples)
    elif method == "hdbscan":
        found = _hdbscan(points, min_samples)
    else:
        found = _kmeans(points, n_clusters, seed)
    rule = Clusters(scaler, pca, *found)
    Z = rule.reduce(X)
    labels = rule.assign(Z)
    number = _largest_first(labels, _count(rule.labels))
    reach = np.full_like(rule.reach, np.inf)
    reach[number[:-1]] = rule.reach[: len(number) - 1]
    return replace(rule, labels=number[rule.labels], reach=reach), Z, number[labels]


def knee(values: npt.ArrayLike) -> float:
    """The value at the knee of the sorted curve: where it lies farthest below the line from its first point to its last.

    >>> knee([1.0, 1.1, 1.2, 1.3, 5.0])
    1.3
    """
    curve = np.sort(np.asarray(values, dtype=np.float64))
    line = np.linspace(curve[0], curve[-1], len(curve))
    return float(curve[np.argmax(line - curve)])


def _dbscan(points: FloatArray, eps: float | None, min_samples: int) -> tuple[FloatArray, IntArray, FloatArray, float]:
    """Core points, and their clusters: the single linkage of the core points cut at eps.

    scikit-learn's DBSCAN finds the same, but holds the neighbors of every row, up to 8 n² bytes; this holds as many numbers as rows.
    """
    n = len(points)
    distance = NearestNeighbors(n_neighbors=min(min_samples, n - 1)).fit(points).kneighbors()[0]  # to others, the nearest first
    if eps is None:
        # The knee of the upper half: noise is what differs from most rows, so most rows must have neighbors within eps. Where most rows
        # have exact copies, it may lie at 0, which is no radius.
        eps = max(knee(np.sort(distance[:, -1])[n // 2 :]), _smallest_radius(points))
    radius = eps * (1 + _ROUNDING)
    core = points[(distance <= radius).sum(axis=1) + 1 >= min_samples]  # the row itself is one of min_samples
    labels = np.arange(len(core))
    if len(core) > 1:
        cut = AgglomerativeClustering(None, linkage="single", distance_threshold=radius)
        labels = cut.fit_predict(core).astype(np.int64)
    return core, labels, np.full(_count(labels), radius), eps


def _hdbscan(points: FloatArray, min_samples: int) -> tuple[FloatArray, IntArray, FloatArray, None]:
    labels = np.full(len(points), NOISE, dtype=np.int64)
    if len(points) > min_samples:
        labels = HDBSCAN(min_cluster_size=max(min_samples, 2), min_samples=min_samples, copy=True).fit_predict(points).astype(np.int64)
    reach = np.zeros(_count(labels))
    member = labels >= 0
    if member.any():
        distance = NearestNeighbors(n_neighbors=1).fit(points[member]).kneighbors()[0][:, 0]
        np.maximum.at(reach, labels[member], np.maximum(distance, _smallest_radius(points)))
    return points, labels, np.append(reach, np.inf), None  # the last entry is that of noise, label -1


def _kmeans(points: FloatArray, n_clusters: int, seed: int) -> tuple[FloatArray, IntArray, FloatArray, None]:
    # More centers than different rows would be moved about, and end between rows.
    different = len(np.unique((points / _smallest_radius(points)).round(), axis=0))
    model = KMeans(min(n_clusters, different), n_init=_STARTS, random_state=seed).fit(points)
    used = np.unique(model.labels_)
    return model.cluster_centers_[used], np.arange(len(used)), np.full(len(used), np.inf), None


def _largest_first(labels: IntArray, clusters: int) -> IntArray:
    """New numbers (K + 1,) of the clusters, by how many rows they have; the last entry is noise, which label -1 picks."""
    order = np.argsort(-np.bincount(labels[labels >= 0], minlength=clusters), kind="stable")
    number = np.full(clusters + 1, NOISE, dtype=np.int64)
    number[order] = np.arange(clusters)
    return number


def _reduce(X: npt.NDArray[Any], scaler: StandardScaler, pca: PCA | None) -> FloatArray:
    centered = scaler.transform(X.astype(np.float64))
    return np.asarray(centered if pca is None else pca.transform(centered))


def _smallest_radius(points: FloatArray) -> float:
    """Distances below are rounding; 1 where all points are the same, and any radius will do."""
    return _SAME * float(np.sqrt(points.var(axis=0).sum())) or 1.0


def _count(labels: IntArray) -> int:
    return int(labels.max(initial=NOISE)) + 1
