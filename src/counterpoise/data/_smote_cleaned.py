r"""SMOTE followed by cleaning (Batista, Prati, Monard 2004): rows that ended up among another class are taken out again.

- *Tomek links*: pairs of rows of different classes, each the other's nearest row. Both leave.
- *Edited nearest neighbors* (Wilson 1972): rows that have a row of another class among their 3 nearest. They leave.

Both ask for each row whether its nearest row of another class, its rival, is nearer than some of its own. That is cheap to ask of synthetic
rows: their parents and siblings are of their own class, and close. Only rows whose rival is closer still are looked up among their own; the
classes are never searched as one table.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from imblearn.over_sampling.base import BaseOverSampler
from scipy import sparse
from sklearn.base import clone
from sklearn.utils._param_validation import HasMethods

from ._neighbors import centered, finder, has_few_columns, without_self
from ._smote import SMOTE
from ._synthetic import TableSampler

__all__ = ["SMOTEENN", "SMOTETomek"]

Indices = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]
EDITED_NEIGHBORS = 3  # Wilson 1972; imbalanced-learn's
QUERIES = 8192


class _CleanedSMOTE(TableSampler):
    """Over-sampling, then cleaning of what came out."""

    smote_: Any
    kept_indices_: Indices
    parents_: Indices
    gaps_: Any

    _sampling_type = "over-sampling"
    _cleaner: str

    def _clean(self, X: Any, y: npt.NDArray[Any], pairs: Indices) -> Mask:
        """Which rows stay; ``pairs`` (p, 2) are rows of one class known to be near each other."""
        raise NotImplementedError

    def _fit_resample(self, X: Any, y: npt.NDArray[Any], **params: Any) -> tuple[Any, npt.NDArray[Any]]:
        n = len(y)
        if self.smote is None:
            self.smote_ = SMOTE(sampling_strategy=self.sampling_strategy, random_state=self.random_state, n_jobs=self.n_jobs)
        else:
            self.smote_ = clone(self.smote)
        X, y = self.smote_.fit_resample(X, y)
        parents = getattr(self.smote_, "parents_", None)
        given = getattr(self, self._cleaner)
        if given is None:
            self.kept_indices_ = np.flatnonzero(self._clean(X, y, _pairs(parents, n, y)))
        else:
            cleaner = clone(given)
            setattr(self, f"{self._cleaner}_", cleaner)
            cleaner.fit_resample(X, y)
            self.kept_indices_ = np.sort(cleaner.sample_indices_)
        self.synthetic_mask_ = self.kept_indices_ >= n
        if parents is not None:
            new = self.kept_indices_[self.synthetic_mask_] - n
            self.parents_ = parents[new]
            if hasattr(self.smote_, "gaps_"):
                self.gaps_ = self.smote_.gaps_[new]
        return X[self.kept_indices_], y[self.kept_indices_]

    def _kept(self, n: int) -> Indices:
        return self.kept_indices_[self.kept_indices_ < n]


class SMOTETomek(_CleanedSMOTE):
    r"""SMOTE, then both rows of every Tomek link leave: rows of different classes that are each other's nearest.

    It clears the border a little; where the classes overlap, or barely touch, it does next to nothing.

    Parameters
    ----------
    sampling_strategy, random_state
        As in :class:`SMOTE`, for the SMOTE it makes by itself.
    smote : over-sampler, optional
        One with other parameters; any with ``fit_resample`` that puts its rows after those given.
    tomek : cleaner with ``sample_indices_``, optional
        Such as imbalanced-learn's ``TomekLinks(sampling_strategy="majority")``, in place of the faster search used by default.
    n_jobs : int, optional
        As in :class:`SMOTE`.

    Attributes
    ----------
    smote_ : over-sampler
        The fitted one.
    kept_indices_ : int array, shape (n_out,)
        Positions of the returned rows in what ``smote_`` made: below n they are rows of ``X``, from n on synthetic rows.
    synthetic_mask_ : bool array, shape (n_out,)
        Which returned rows are synthetic: all after the originals that stayed.
    parents_, gaps_
        As in :class:`SMOTE`, of the synthetic rows that stayed.
    sampling_strategy_, n_features_in_, feature_names_in_
        As in :class:`SMOTE`.

    Examples
    --------
    >>> X, y = np.array([[0.0], [1.0], [2.0], [2.1], [3.5], [4.5], [5.5]]), [1, 1, 1, 0, 0, 0, 0]
    >>> sampler = SMOTETomek(smote=SMOTE(k_neighbors=1, random_state=0))
    >>> X_new, y_new = sampler.fit_resample(X, y)
    >>> sorted(set(range(8)) - set(sampler.kept_indices_.tolist()))  # 2.0 and 2.1
    [2, 3]
    """

    _cleaner = "tomek"
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseOverSampler._parameter_constraints,
        "smote": [HasMethods(["fit_resample"]), None],
        "tomek": [HasMethods(["fit_resample"]), None],
        "n_jobs": [numbers.Integral, None],
    }

    def __init__(
        self, *, sampling_strategy: Any = "auto", random_state: Any = None, smote: Any = None, tomek: Any = None, n_jobs: int | None = None
    ) -> None:
        self.sampling_strategy = sampling_strategy
        self.random_state = random_state
        self.smote = smote
        self.tomek = tomek
        self.n_jobs = n_jobs

    def _clean(self, X: Any, y: npt.NDArray[Any], pairs: Indices) -> Mask:
        return ~tomek_links(X, y, pairs, self.n_jobs)


class SMOTEENN(_CleanedSMOTE):
    r"""SMOTE, then every row leaves that has a row of another class among its 3 nearest.

    It takes out far more than Tomek links do, hard majority rows among them: where the classes overlap, most of the overlap. The learner
    then sees a cleaner problem than it will meet; its probabilities are too sure, so judge it on untouched rows. Rows keep their order
    (imbalanced-learn sorts them by class).

    Parameters
    ----------
    sampling_strategy, random_state, smote, n_jobs
        As in :class:`SMOTETomek`.
    enn : cleaner with ``sample_indices_``, optional
        Such as imbalanced-learn's ``EditedNearestNeighbours(kind_sel="mode")``, in place of the search used by default.

    Attributes
    ----------
    smote_, kept_indices_, synthetic_mask_, parents_, gaps_, sampling_strategy_, n_features_in_, feature_names_in_
        As in :class:`SMOTETomek`.

    Examples
    --------
    >>> X = np.array([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0], [0.1], [10.0], [11.0], [12.0], [13.0], [14.0]])
    >>> sampler = SMOTEENN(sampling_strategy={1: 6}, smote=SMOTE(sampling_strategy={1: 6}, k_neighbors=1, random_state=0))
    >>> X_new, y_new = sampler.fit_resample(X, [1] * 6 + [0] * 6)
    >>> X_new.ravel().tolist()  # the row at 0.1 has left, and the three that had it among their nearest
    [3.0, 4.0, 5.0, 10.0, 11.0, 12.0, 13.0, 14.0]
    """

    _cleaner = "enn"
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseOverSampler._parameter_constraints,
        "smote": [HasMethods(["fit_resample"]), None],
        "enn": [HasMethods(["fit_resample"]), None],
        "n_jobs": [numbers.Integral, None],
    }

    def __init__(
        self, *, sampling_strategy: Any = "auto", random_state: Any = None, smote: Any = None, enn: Any = None, n_jobs: int | None = None
    ) -> None:
        self.sampling_strategy = sampling_strategy
        self.random_state = random_state
        self.smote = smote
        self.enn = enn
        self.n_jobs = n_jobs

    def _clean(self, X: Any, y: npt.NDArray[Any], pairs: Indices) -> Mask:
        return among_their_own(X, y, EDITED_NEIGHBORS, pairs, self.n_jobs)


# ---- which rows -------------------------------------------------------------------------------------------------------------------------


def tomek_links(X: Any, y: npt.NDArray[Any], pairs: Indices, n_jobs: int | None = None) -> Mask:
    """Mask (n,) of rows in a Tomek link: (a, b) of different classes, with no row nearer to a than b, or to b than a."""
    X, linked = centered(_subtractable(X)), np.zeros(len(y), dtype=bool)
    known = known_distances(X, pairs, 1)
    classes, counts = np.unique(y, return_counts=True)
    for label in np.delete(classes, counts.argmax()):  # every link has an end outside the largest class
        own, others = np.flatnonzero(y == label), np.flatnonzero(y != label)
        b = _closest(X, others, own, 1, n_jobs)[:, 0]
        apart = squared_distances(X, own, b)
        near = apart <= known[own]
        a, b, apart = own[near], b[near], apart[near]
        if len(own) > 1 and len(a):
            near = apart <= squared_distances(X, a, _closest(X, own, a, 1, n_jobs, exclude_self=True)[:, 0])
            a, b, apart = a[near], b[near], apart[near]
        if len(a):
            mutual = apart <= squared_distances(X, b, _closest(X, None, b, 1, n_jobs, exclude_self=True)[:, 0])
            linked[a[mutual]] = linked[b[mutual]] = True
    return linked


def among_their_own(X: Any, y: npt.NDArray[Any], k: int, pairs: Indices, n_jobs: int | None = None) -> Mask:
    """Mask (n,) of rows whose k nearest rows are all of their class."""
    X, k = centered(_subtractable(X)), min(k, len(y) - 1)
    if has_few_columns(X):
        # In a tree a rival far away takes longer to find than the nearest rows of any class.
        return np.asarray((y[_closest(X, None, np.arange(len(y)), k, n_jobs, exclude_self=True)] == y[:, None]).all(axis=1))
    stays = np.ones(len(y), dtype=bool)
    known = known_distances(X, pairs, k)
    for label in np.unique(y):
        own, others = np.flatnonzero(y == label), np.flatnonzero(y != label)
        rival = squared_distances(X, own, _closest(X, others, own, 1, n_jobs)[:, 0])
        doubtful = rival <= known[own]
        asked = own[doubtful]
        if len(own) <= k:
            stays[asked] = False
        elif len(asked):
            kth = _closest(X, own, asked, k, n_jobs, exclude_self=True)[:, -1]
            stays[asked] = squared_distances(X, asked, kth) < rival[doubtful]
    return stays


def _pairs(parents: Indices | None, n: int, y: npt.NDArray[Any]) -> Indices:
    """(p, 2) near rows of one class: synthetic rows, which start at n, with their two parents, and with the next one of the same parent."""
    if parents is None or parents.shape[1] < 2:
        return np.empty((0, 2), dtype=np.intp)
    children = n + np.arange(len(parents))
    order = np.argsort(parents[:, 0], kind="stable")
    siblings = np.column_stack([children[order][:-1], children[order][1:]])[np.diff(parents[order, 0]) == 0]
    pairs = np.concatenate([np.column_stack([children, parents[:, 0]]), np.column_stack([children, parents[:, 1]]), siblings])
    return np.asarray(pairs[y[pairs[:, 0]] == y[pairs[:, 1]]])


def known_distances(X: Any, pairs: Indices, k: int) -> npt.NDArray[np.float64]:
    """(n,) squared distance to the k-th nearest row that a row is paired with; infinite where there are fewer pairs."""
    known = np.full(X.shape[0], np.inf)
    rows = pairs.T.ravel()
    distances = np.tile(squared_distances(X, pairs[:, 0], pairs[:, 1]), 2)
    order = np.lexsort((distances, rows))
    rows, distances = rows[order], distances[order]
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
    known[rows[rank == k - 1]] = distances[rank == k - 1]
    return known


def _subtractable(X: Any) -> Any:
    """X, as float64 where its differences might not fit its own type: booleans, small and unsigned integers, half precision."""
    return X if X.dtype in (np.float32, np.float64) else X.astype(np.float64)


def squared_distances(X: Any, one: Indices, other: Indices) -> npt.NDArray[np.float64]:
    """|x_i - x_j|^2 of pairs of rows, from their differences: equal rows are at 0 exactly, and equally distant ones tie."""
    out = np.empty(len(one))
    for part in _parts(len(one)):
        difference = X[one[part]] - X[other[part]]
        if sparse.issparse(difference):
            out[part] = np.asarray(difference.multiply(difference).sum(axis=1)).ravel()
        else:
            out[part] = np.einsum("ij,ij->i", difference, difference, dtype=np.float64)
    return out


def _parts(n: int) -> Iterator[slice]:
    return (slice(start, start + QUERIES) for start in range(0, n, QUERIES))


def _closest(X: Any, pool: Indices | None, queries: Indices, k: int, n_jobs: int | None, exclude_self: bool = False) -> Indices:
    """(q, k) rows of the pool (default all) nearest to each row asked for, nearest first."""
    find = finder(X if pool is None else X[pool], n_jobs)
    found = np.empty((len(queries), k), dtype=np.intp)
    for part in _parts(len(queries)):  # in parts, so that the rows asked for are not all copied
        near = find(X[queries[part]], k + exclude_self)[0]
        near = near if pool is None else pool[near]
        found[part] = without_self(near, queries[part])[0] if exclude_self else near
    return found
