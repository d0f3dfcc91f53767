r"""SMOTE-N: SMOTE for tables of categories alone (Chawla et al. 2002, section 6.2).

Two categories are as far apart as they differ in what they say about the class; rows are compared by the value difference metric,

.. math:: d(i, j) = \sum_f \Big( \sum_y | p(y \mid c_{if}) - p(y \mid c_{jf}) | \Big)^2 ,

and a synthetic row has, in each column, the category most frequent among a row and its k neighbors.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from imblearn.metrics.pairwise import ValueDifferenceMetric
from imblearn.utils import check_target_type
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning
from sklearn.preprocessing import OrdinalEncoder
from sklearn.utils._param_validation import HasMethods
from sklearn.utils.validation import validate_data

from ._checks import naming_missing
from ._neighbors import NominalRows
from ._smotenc import most_frequent
from ._synthetic import NEIGHBORS, Synthetic, SyntheticOverSampler
from ._tables import plain_target

__all__ = ["SMOTEN"]


class SMOTEN(SyntheticOverSampler):
    """SMOTE for tables of categories alone: each column by majority among a row and its neighbors.

    Neighbors are those of the value difference metric, which looks at the labels; of equally near rows the first counts, and of equally
    frequent categories the first in order. New rows repeat what is common in the class: with few columns most of them are copies, and
    random over-sampling is simpler.

    Parameters
    ----------
    categorical_encoder : estimator, optional
        Numbers the categories from 0. Default: ``OrdinalEncoder(dtype=np.int32)``.
    sampling_strategy, k_neighbors, n_jobs, random_state, on_few, memory
        As in :class:`SMOTE`. An estimator for ``k_neighbors`` gets ``metric="precomputed"`` and the matrix of distances.

    Attributes
    ----------
    parents_ : int array, shape (n_new, k + 1)
        Rows of ``X`` that voted: the row drawn, and its neighbors; -1 where its class had fewer than k.
    categorical_encoder_ : estimator
        Fitted on ``X``.
    synthetic_mask_, sampling_strategy_, n_features_in_, feature_names_in_
        As in :class:`SMOTE`.

    Raises
    ------
    InputError
        As :class:`SMOTE` does.

    Examples
    --------
    >>> X = np.array([["red"], ["red"], ["red"], ["blue"], ["blue"], ["blue"], ["blue"]], dtype=object)
    >>> X_new, y_new = SMOTEN(k_neighbors=2, random_state=0).fit_resample(X, [1, 1, 1, 0, 0, 0, 0])
    >>> X_new[7:].tolist()
    [['red']]
    """

    categorical_encoder_: Any

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **SyntheticOverSampler._parameter_constraints,
        "k_neighbors": NEIGHBORS,
        "categorical_encoder": [HasMethods(["fit_transform", "inverse_transform"]), None],
    }

    def __init__(
        self,
        categorical_encoder: Any = None,
        *,
        sampling_strategy: Any = "auto",
        k_neighbors: Any = 5,
        n_jobs: int | None = None,
        random_state: Any = None,
        on_few: str = "reduce_k",
        memory: Any = None,
    ) -> None:
        self.categorical_encoder = categorical_encoder
        self.sampling_strategy = sampling_strategy
        self.k_neighbors = k_neighbors
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.on_few = on_few
        self.memory = memory

    def _check_X_y(self, X: Any, y: Any) -> tuple[Any, Any, bool]:
        y, binarized = check_target_type(plain_target(y), indicate_one_vs_all=True)
        with naming_missing(X):
            X, y = validate_data(self, X=X, y=y, reset=True, dtype=None, accept_sparse=["csr", "csc"])
        return X, y, binarized

    def _warn_of_integers(self, X: Any) -> None:
        """Nothing: all columns are categories."""

    def _fit_resample(self, X: Any, y: npt.NDArray[Any], **params: Any) -> tuple[Any, npt.NDArray[Any]]:
        if not sparse.issparse(X):
            return super()._fit_resample(X, y)
        message = "X: a sparse matrix is not really efficient here, since SMOTEN looks at every cell; pass a dense array."
        self._warn(message, DataConversionWarning)
        X_new, y_new = super()._fit_resample(X.toarray(), y)
        return type(X)(X_new), y_new

    def _synthesize(self, X: Any, y: npt.NDArray[Any]) -> Synthetic:
        self.categorical_encoder_ = OrdinalEncoder(dtype=np.int32) if self.categorical_encoder is None else clone(self.categorical_encoder)
        codes = self.categorical_encoder_.fit_transform(X)
        sizes = [len(names) for names in self.categorical_encoder_.categories_]
        shares = ValueDifferenceMetric(n_categories=sizes).fit(codes, y).proba_per_class_
        labels, voters, elected = [y[:0]], [], []
        for label, wanted in self._wanted():
            rows = self._class_rows(y, label)
            near = self._neighbors("k_neighbors", NominalRows(codes[rows], shares), f"class {label}")
            drawn = self._generator().choice(len(rows), size=wanted)
            voters.append(rows[np.column_stack([drawn, near[drawn]])])
            elected.append(np.column_stack([_first_choice(column[voters[-1]]) for column in codes.T]))
            labels.append(np.full(wanted, label, dtype=y.dtype))
        values = self.categorical_encoder_.inverse_transform(np.concatenate(elected)) if elected else X[:0]
        return Synthetic(values, np.concatenate(labels), _of_one_width(voters))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        return tags

    def _searcher(self, parameter: str) -> Any:
        return super()._searcher(parameter).set_params(metric="precomputed")

    def _for_estimator(self, rows: Any) -> npt.NDArray[np.float64]:
        return np.asarray(rows.from_block(slice(0, len(rows)))(slice(0, len(rows))))


def _first_choice(votes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Most frequent code of each row, of equally frequent ones the smallest."""
    votes, frequent = most_frequent(votes)
    return np.asarray(votes[np.arange(len(votes)), frequent.argmax(axis=1)])


def _of_one_width(parts: list[npt.NDArray[np.intp]]) -> npt.NDArray[np.intp]:
    """Stacked, with -1 where a class had fewer neighbors."""
    width = max((part.shape[1] for part in parts), default=0)
    return np.concatenate(
        [np.empty((0, width), dtype=np.intp), *(np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=-1) for part in parts)]
    )
