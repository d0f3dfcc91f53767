r"""Thresholds at the prior for many labels at once (Chen et al. 2019, arXiv:1909.04868, "class-adaptive threshold").

What is unbalanced: where a class fills one anchor in a hundred thousand, few scores reach a fixed threshold such as 0.05, and what is cut
off never gets to non-maximum suppression. A candidate is worth a look if it is more likely than before anybody looked,

.. math:: p_c > f \, \pi_c .
"""

from __future__ import annotations

from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.utils import Tags, get_tags
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from counterpoise._errors import bad_input, check_range

__all__ = ["PriorScoreThreshold"]

Shares = float | Tensor | npt.ArrayLike


class PriorScoreThreshold:
    r"""Keep the scores that beat the prior: :math:`p_c > f \, \pi_c` for each class by itself.

    Parameters
    ----------
    prior : float, or array or tensor of shape (C,)
        In (0, 1): the share of each class among everything that is scored, as training saw it, such as
        ``counterpoise.nn.init.estimate_prior(...).per_class`` (or ``.mean`` for all alike).
    factor : float > 0, default 1.0
        How many times the prior. The authors take one prior for all C classes and C + 1 as the factor.

    Raises
    ------
    InputError
        If a prior lies outside (0, 1), or a threshold is 1 or more, which no score could pass.

    Examples
    --------
    >>> candidates = PriorScoreThreshold([0.001, 0.05])
    >>> candidates.keep(torch.tensor([[0.002, 0.04], [0.0005, 0.4]]))
    tensor([[ True, False],
            [False,  True]])
    """

    def __init__(self, prior: Shares, factor: float = 1.0) -> None:
        check_range("factor", factor, low=0, open_low=True)
        self.prior = prior
        self.factor = factor
        self.threshold = _thresholds(prior, factor)  # (C,) or (), float64

    @overload
    def keep(self, scores: Tensor) -> Tensor: ...

    @overload
    def keep(self, scores: npt.ArrayLike) -> npt.NDArray[np.bool_]: ...

    def keep(self, scores: Tensor | npt.ArrayLike) -> Tensor | npt.NDArray[np.bool_]:
        """Which scores are kept: a boolean mask of the shape and kind of ``scores``, tensor or array.

        Parameters
        ----------
        scores : tensor or array, shape (..., C); any shape if the prior is one number
            Probabilities in [0, 1]. Half precision is compared in float32.
        """
        if not isinstance(scores, Tensor):
            values = np.ascontiguousarray(scores)  # a view that runs backwards is no tensor
            if values.dtype.kind not in "fiub":
                bad_input("scores", f"values of {values.dtype}", "floating-point probabilities")
            return np.asarray(self.keep(torch.tensor(values)).numpy())
        if not scores.is_floating_point():
            bad_input("scores", f"values of {scores.dtype}", "floating-point probabilities")
        if self.threshold.ndim and scores.shape[-1:] != self.threshold.shape:
            bad_input("scores", f"shape {tuple(scores.shape)}", f"one column for each of {len(self.threshold)} priors, shape (..., C)")
        if not bool(((scores >= 0) & (scores <= 1)).all()):
            bad_input("scores", "values outside [0, 1]", "probabilities", "Logits go through sigmoid() first.")
        single = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return single > torch.as_tensor(self.threshold, dtype=single.dtype, device=single.device)

    def to_estimator(self, estimator: Any = None) -> BaseEstimator:
        """The rule as a scikit-learn classifier for several labels per row, or for one label that is there or not.

        Parameters
        ----------
        estimator : classifier with ``predict_proba``, optional
            Cloned and fitted; by default a ``LogisticRegression`` for each label.

        Returns
        -------
        scikit-learn meta-estimator
            ``fit(X, y)`` with y (n, C) of 0 and 1, or (n,) of two classes, of which the second, in sorted order, is the one with the
            prior. ``predict`` follows :meth:`keep`, ``predict_proba`` is the estimator's own. For one label out of several per row there is
            :class:`PriorThresholdClassifier`.

        Examples
        --------
        >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([[0, 1], [0, 1], [0, 0], [1, 0]])
        >>> PriorScoreThreshold([0.25, 0.5]).to_estimator().fit(X, y).predict([[0.0], [2.5]])
        array([[0, 1],
               [1, 0]])
        """
        return PriorScoreClassifier(estimator, self.prior, self.factor)


class PriorScoreClassifier(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc]
    """What :meth:`PriorScoreThreshold.to_estimator` makes.

    Attributes
    ----------
    estimator_ : classifier
        The fitted estimator.
    classes_ : array
        The two classes, or the numbers of the C labels.
    """

    estimator_: Any
    classes_: npt.NDArray[Any]

    def __init__(self, estimator: Any = None, prior: Shares = 0.5, factor: float = 1.0) -> None:
        self.estimator = estimator
        self.prior = prior
        self.factor = factor

    def fit(self, X: Any, y: Any, sample_weight: npt.ArrayLike | None = None) -> Self:
        """Fit the estimator. ``sample_weight`` (n,) is passed on if given."""
        estimator = self.estimator
        if estimator is None:
            estimator = OneVsRestClassifier(LogisticRegression()) if _columns(y) > 1 else LogisticRegression()
        if not hasattr(estimator, "predict_proba"):
            bad_input("estimator", type(estimator).__name__, "a classifier with predict_proba", "CalibratedClassifierCV(estimator) has it.")
        if sample_weight is not None and isinstance(estimator, OneVsRestClassifier):
            bad_input("sample_weight", "weights for OneVsRestClassifier", "an estimator that takes them", "MultiOutputClassifier does.")
        # The estimator's own checks of X and y come first: their messages are the ones people know.
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        self.estimator_ = clone(estimator).fit(X, y, **weights)
        self.classes_ = self._classes(y, sample_weight)
        threshold = _thresholds(self.prior, self.factor)
        if threshold.ndim and len(threshold) != (len(self.classes_) if self._several else 1):
            labels = f"one for each of {len(self.classes_)} labels" if self._several else "one, of the second class"
            bad_input("prior", f"{len(threshold)} shares", labels)
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(self.estimator_, name):
                setattr(self, name, getattr(self.estimator_, name))
        return self

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """(n, C) of 0 and 1, or (n,) of the two classes."""
        check_is_fitted(self)
        proba = self.predict_proba(X).clip(0, 1)  # forests reach 1 + 2e-16
        kept = PriorScoreThreshold(self.prior, self.factor).keep(proba if self._several else proba[:, 1:]).astype(np.int64)
        return kept if self._several else np.asarray(self.classes_[kept[:, 0]])

    def predict_proba(self, X: Any) -> npt.NDArray[Any]:
        """The estimator's probabilities, (n, C) of the labels or (n, 2) of the classes; not moved by the prior."""
        check_is_fitted(self)
        proba = self.estimator_.predict_proba(X)
        if isinstance(proba, list):  # forests and others give two columns for each label
            return np.stack([_of_one(*pair) for pair in zip(proba, self.estimator_.classes_, strict=True)], axis=1)
        return np.asarray(proba)

    def _classes(self, y: Any, sample_weight: npt.ArrayLike | None) -> npt.NDArray[Any]:
        kind = type_of_target(y, input_name="y")
        if kind not in ("binary", "multilabel-indicator"):
            accepted = "two classes, or labels (n, C) of 0 and 1. Only binary classification is supported"
            bad_input("y", f"Unknown label type: {kind}", accepted, "PriorThresholdClassifier decides for one of several classes.")
        self._several = kind == "multilabel-indicator"
        if self._several:
            return np.arange(_columns(y))
        classes: npt.NDArray[Any] = self.estimator_.classes_
        if len(classes) < 2:
            bad_input("y", f"one class ({classes[0]})", "at least two classes")
        if sample_weight is not None and len(np.unique(np.asarray(y).ravel()[np.asarray(sample_weight) > 0])) < 2:
            bad_input("sample_weight", "weight on one class only", "some weight on both classes")
        return classes

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        inner = get_tags(LogisticRegression() if self.estimator is None else self.estimator)
        tags.input_tags = inner.input_tags
        tags.target_tags = inner.target_tags
        tags.classifier_tags.multi_class = False
        tags.classifier_tags.multi_label = self.estimator is None or bool(inner.classifier_tags and inner.classifier_tags.multi_label)
        return tags


def _columns(y: Any) -> int:
    shape = y.shape if hasattr(y, "shape") else np.asarray(y).shape
    return shape[1] if len(shape) > 1 else 1


def _of_one(proba: npt.NDArray[Any], classes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(n,) probability that a label is 1, of which training may have seen only one value."""
    return proba[:, list(classes).index(1)] if 1 in classes else np.zeros(len(proba))


def _thresholds(prior: Shares, factor: float) -> npt.NDArray[np.float64]:
    """factor times prior, () or (C,)."""
    shares = np.asarray(prior.detach().cpu() if isinstance(prior, Tensor) else prior, dtype=np.float64)
    if shares.ndim > 1 or not shares.size:
        bad_input("prior", f"shape {shares.shape}", "a number or one per class, shape (C,)")
    wrong = shares[~((shares > 0) & (shares < 1))]
    if len(wrong):
        bad_input("prior", float(wrong[0]), "shares in (0, 1)", "counterpoise.nn.init.estimate_prior counts them.")
    threshold = factor * shares
    if (threshold >= 1).any():
        bad_input("factor", factor, f"less than 1 over the largest prior, {1 / shares.max():.4g}", "No score could pass.")
    return np.asarray(threshold)
