"""Prior correction as a scikit-learn meta-estimator."""

from __future__ import annotations

from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.utils import Tags, get_tags
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted

from counterpoise._errors import bad_input, listing

from ._prior import Prior, check_prior, prior_correct

__all__ = ["PriorThresholdClassifier"]


class PriorThresholdClassifier(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc]
    r"""A classifier that decides by :math:`\arg\max_k p(k \mid x) \, q_k / \pi_k`: prior correction, for any number of classes.

    With the default target, equal shares, this maximizes balanced accuracy for calibrated probabilities; for two classes it is the
    threshold :math:`p > \pi_1`. Nothing is tuned, so no data are held back.

    Parameters
    ----------
    estimator : classifier with ``predict_proba``
        Cloned and fitted.
    prior : "train" or sequence of float, shape (K,), default "train"
        Shares of the classes, in the order of ``classes_``, as the estimator's training saw them. "train": shares of ``y`` (of the sum of
        ``sample_weight``). An estimator that balances by itself (``class_weight="balanced"``, over-sampling in a pipeline) has seen other
        shares than ``y`` has: pass those, or it is corrected twice.
    target_prior : "uniform" or sequence of float, shape (K,), default "uniform"
        Shares that should count.

    Attributes
    ----------
    estimator_ : classifier
        The fitted estimator.
    classes_ : array, shape (K,)
        Class labels.
    prior_, target_prior_ : array of float, shape (K,)
        The shares in use; both sum to 1.
    n_features_in_, feature_names_in_
        As the fitted estimator has them.

    Raises
    ------
    InputError
        If ``y`` has one class, several labels per row or continuous values, the estimator has no ``predict_proba``, or a prior does not
        hold one positive number per class.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0], [2.5]]), np.array(["no", "no", "no", "no", "yes"])
    >>> PriorThresholdClassifier(LogisticRegression()).fit(X, y).predict([[0.0], [2.6]])
    array(['no', 'yes'], dtype='<U3')
    >>> LogisticRegression().fit(X, y).predict([[0.0], [2.6]])
    array(['no', 'no'], dtype='<U3')
    """

    estimator_: Any
    classes_: npt.NDArray[Any]
    prior_: npt.NDArray[np.float64]
    target_prior_: npt.NDArray[np.float64]

    def __init__(
        self, estimator: Any, prior: Prior | Literal["train"] = "train", target_prior: Prior | Literal["uniform"] = "uniform"
    ) -> None:
        self.estimator = estimator
        self.prior = prior
        self.target_prior = target_prior

    def fit(self, X: Any, y: Any, sample_weight: npt.ArrayLike | None = None) -> Self:
        """Fit the estimator, and keep the prior it was trained under.

        ``X`` is whatever the estimator takes, ``y`` (n,) class labels, ``sample_weight`` (n,) is passed on if given.
        """
        if not hasattr(self.estimator, "predict_proba"):
            bad_input(
                "estimator", type(self.estimator).__name__, "a classifier with predict_proba", "CalibratedClassifierCV(estimator) has it."
            )
        # The estimator's own checks of X and y come first: their messages are the ones people know.
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        self.estimator_ = clone(self.estimator).fit(X, y, **weights)
        kind = type_of_target(y, input_name="y")
        if kind not in ("binary", "multiclass"):
            bad_input("y", f"Unknown label type: {kind}", "one class label per row", "Several labels per row need one classifier each.")
        self.classes_ = self.estimator_.classes_
        if len(self.classes_) < 2:
            bad_input("y", f"one class ({self.classes_[0]})", "at least two classes")
        self.prior_ = self._prior_of(y, sample_weight)
        self.target_prior_ = self._target_prior()
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(self.estimator_, name):
                setattr(self, name, getattr(self.estimator_, name))
        return self

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """Probabilities under the target prior, shape (n, K); rows sum to 1."""
        check_is_fitted(self)
        proba = np.asarray(self.estimator_.predict_proba(X))
        corrected = prior_correct(proba.astype(np.float64), self.prior_, self.target_prior_, input="proba")
        return np.asarray(corrected / corrected.sum(axis=1, keepdims=True))

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """The class with the largest corrected probability, shape (n,)."""
        check_is_fitted(self)
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])

    def _prior_of(self, y: Any, sample_weight: npt.ArrayLike | None) -> npt.NDArray[np.float64]:
        if not isinstance(self.prior, str):
            return check_prior("prior", self.prior, len(self.classes_), self.classes_)
        if self.prior != "train":
            bad_input("prior", self.prior, "'train' or one share per class")
        codes = np.searchsorted(self.classes_, np.asarray(y).ravel())
        weights = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        shares = np.bincount(codes, weights=weights, minlength=len(self.classes_))
        if (shares <= 0).any():
            bad_input("sample_weight", f"no weight on class {listing(self.classes_[shares <= 0])}", "some weight on every class")
        return np.asarray(shares / shares.sum())

    def _target_prior(self) -> npt.NDArray[np.float64]:
        n_classes = len(self.classes_)
        if not isinstance(self.target_prior, str):
            return check_prior("target_prior", self.target_prior, n_classes, self.classes_)
        if self.target_prior != "uniform":
            bad_input("target_prior", self.target_prior, "'uniform' or one share per class")
        return np.full(n_classes, 1.0 / n_classes)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        inner = get_tags(self.estimator)
        tags.input_tags = inner.input_tags
        tags.target_tags = inner.target_tags
        tags.classifier_tags.multi_class = inner.classifier_tags.multi_class if inner.classifier_tags else True
        return tags
