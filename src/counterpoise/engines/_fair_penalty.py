r"""Perceptrons and linear models trained with a penalty on dependence between predictions and protected attributes.

.. math:: L = L_{pred}(y, \hat y) + \lambda \, \psi(\hat y, s)

on every batch, with :math:`\psi` a :class:`~counterpoise.losses.DistanceCovariancePenalty` of the predictions as they are deployed.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import RegressorMixin, clone
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data
from torch import Tensor, nn
from torch.nn import functional as F

from counterpoise._errors import bad_input, check_choice, check_range
from counterpoise.data import ProtectedAttributeEncoder
from counterpoise.diagnostics._intersections import attribute_table, encode_attributes
from counterpoise.losses import DistanceCovariancePenalty

from ._mlp import MLPClassifier, _BaseMLP, _weights

__all__ = ["FairPenaltyClassifier", "FairPenaltyRegressor"]

Array = npt.NDArray[np.float64]
Penalty = Literal["ccdcov", "jdcov", "dcov_sum"] | DistanceCovariancePenalty
KINDS = ("ccdcov", "jdcov", "dcov_sum")


class _PenalizedLoss(nn.Module):
    """Loss of a batch: targets (B, 1 + d) hold what is true and the encoded attributes, ``widths`` of them columns each."""

    def __init__(self, loss: str, scale: float, penalty: DistanceCovariancePenalty, lam: float, widths: list[int]) -> None:
        super().__init__()
        self.loss, self.scale, self.penalty, self.lam, self.widths = loss, scale, penalty, lam, widths

    def forward(self, outputs: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        rows = self._rows(outputs, targets[:, 0])
        loss = (rows if weight is None else rows * weight).mean()
        if not self.lam:
            return loss
        attributes = torch.split(targets[:, 1:], self.widths, dim=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what is constant in a batch was looked at in all rows
            found = [self.penalty(column, attributes) for column in penalized(outputs, self.loss, self.scale).unbind(dim=1)]
        return loss + self.lam * torch.stack(found).mean()

    def _rows(self, outputs: Tensor, true: Tensor) -> Tensor:
        if self.loss == "squared":
            return (outputs[:, 0] - true).square()
        if self.loss == "poisson":  # minus log-likelihood, without what does not depend on the rate
            return self.scale * outputs[:, 0].exp() - true * outputs[:, 0]
        if outputs.shape[1] == 1:
            return F.binary_cross_entropy_with_logits(outputs[:, 0], true, reduction="none")
        return F.cross_entropy(outputs, true.long(), reduction="none")


def penalized(outputs: Tensor, loss: str, scale: float) -> Tensor:
    """(B, m) what the penalty is taken of, the mean over m: probabilities (of each class, if there are more than two), a rate, or a
    standardized target."""
    if loss == "squared":
        return outputs
    if loss == "poisson":
        return scale * outputs.exp()
    return outputs.sigmoid() if outputs.shape[1] == 1 else outputs.softmax(dim=1)


class _FairPenalty(_BaseMLP):
    """What both estimators share: the attributes, and the loss made of them."""

    loss: Any  # a name here, the module that it stands for in the base
    lam: float
    penalty: Penalty
    encoder: ProtectedAttributeEncoder | None
    _scale = 1.0

    def _fit_penalized(
        self, rows: npt.NDArray[np.float32], true: npt.ArrayLike, n_outputs: int, attributes: Any, sample_weight: npt.ArrayLike | None
    ) -> None:
        check_range("lam", self.lam, low=0.0)
        penalty = self._penalty()
        target = torch.as_tensor(np.asarray(true), dtype=torch.float32)[:, None]
        widths: list[int] = []
        if attributes is None and self.lam > 0:
            bad_input("attributes", attributes, f"the protected attributes of the rows, since lam = {self.lam:g}", "lam=0 needs none.")
        if attributes is not None:
            table = attribute_table(attributes, len(rows))
            encoder = ProtectedAttributeEncoder() if self.encoder is None else clone(self.encoder)
            self.attribute_encoder_ = encoder.fit(table)
            parts = encode_attributes(self.attribute_encoder_, table)
            if self.lam > 0:
                penalty.check_attributes(parts, len(rows))  # before anything is trained; the penalty itself is of batches
            widths = [part.shape[1] for part in parts.values()]
            target = torch.cat([target, *(part.float() for part in parts.values())], dim=1)
        if self.lam > 0 and len(rows) < 4:
            bad_input("X", f"{len(rows)} rows", "at least 4 with a penalty, whose estimate needs as many")
        if self.lam > 0 and self.batch_size < 4:
            bad_input("batch_size", self.batch_size, "at least 4 with a penalty, whose estimate needs as many rows")
        loss = _PenalizedLoss(self.loss, self._scale, penalty, float(self.lam), widths)
        self._train(rows, target, _weights(sample_weight, rows), n_outputs, loss)

    def _penalty(self) -> DistanceCovariancePenalty:
        if isinstance(self.penalty, DistanceCovariancePenalty):
            return self.penalty
        check_choice("penalty", self.penalty, KINDS, "Or a DistanceCovariancePenalty.")
        return DistanceCovariancePenalty(self.penalty)

    def _penalized(self, X: npt.ArrayLike) -> Tensor:
        """(n, m) what the penalty is taken of, for new rows."""
        return penalized(torch.from_numpy(self._outputs(X)), self.loss, self._scale)


class FairPenaltyClassifier(_FairPenalty, MLPClassifier):
    r"""A perceptron or linear model whose probabilities are held independent of protected attributes, intersections included.

    Minimizes log loss plus ``lam`` times a distance covariance between the probabilities and the attributes of the batch (with more than
    two classes, the mean over the classes). Attributes may be several, of many levels, or numbers. They are needed in ``fit`` alone and are
    no features unless they are columns of ``X``, too. In a pipeline or a search, pass them by metadata routing:
    ``set_fit_request(attributes=True)``.

    The price is accuracy: about 5 points on COMPAS where the divergence between cells falls by 40 %. What is enforced is demographic
    parity, which may contradict calibration within groups.

    Args:
        hidden: widths of the hidden layers; ``()`` is a linear model.
        loss: "logloss".
        penalty: kind of :class:`~counterpoise.losses.DistanceCovariancePenalty` ("ccdcov", "jdcov", "dcov_sum"), or one with options.
        lam: strength of the penalty. 0, the default, needs no attributes; 5 to 20 is strong for probabilities.
            :func:`calibrate_penalty` chooses one.
        encoder: a :class:`~counterpoise.data.ProtectedAttributeEncoder` with options, for integers that are codes, say.
        lr, weight_decay, batch_size, max_steps, device, random_state, callbacks: as for :class:`MLPClassifier`. Batches of at least 128
            rows keep the penalty from being noise for rare cells.

    Attributes:
        attribute_encoder_: fitted on the attributes.

    Raises:
        InputError: ``lam > 0`` without attributes, attributes of another number of rows, missing values (with the column).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> sex = rng.integers(2, size=400)
        >>> X = np.column_stack([sex + 0.1 * rng.normal(size=400), rng.normal(size=400)])
        >>> y = X.sum(axis=1) > 0.5
        >>> for lam in (0, 20):
        ...     model = FairPenaltyClassifier((), lam=lam, lr=0.05, max_steps=200, random_state=0).fit(X, y, attributes=sex)
        ...     p = model.predict_proba(X)[:, 1]
        ...     print(bool(abs(p[sex == 1].mean() - p[sex == 0].mean()) < 0.1))
        False
        True
    """

    def __init__(
        self,
        hidden: tuple[int, ...] = (64, 64),
        *,
        loss: Literal["logloss"] = "logloss",
        penalty: Penalty = "ccdcov",
        lam: float = 0.0,
        encoder: ProtectedAttributeEncoder | None = None,
        lr: float = 1e-3,
        weight_decay: float = 1e-6,
        batch_size: int = 256,
        max_steps: int | None = None,
        device: str = "cpu",
        random_state: int | None = None,
        callbacks: list[Any] | None = None,
    ) -> None:
        self.hidden = hidden
        self.loss = loss
        self.penalty = penalty
        self.lam = lam
        self.encoder = encoder
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_steps = max_steps
        self.device = device
        self.random_state = random_state
        self.callbacks = callbacks

    def fit(  # type: ignore[override]  # by keyword
        self, X: npt.ArrayLike, y: npt.ArrayLike, *, attributes: Any = None, sample_weight: npt.ArrayLike | None = None
    ) -> Self:
        """Train on rows ``X`` (n, d) with labels ``y`` (n,); ``attributes``: a table, columns by name, or an array of n rows."""
        check_choice("loss", self.loss, ("logloss",))
        rows, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"FairPenaltyClassifier needs at least two classes; y holds one class: {self.classes_[0]!r}.")
        self._fit_penalized(rows, codes, 1 if len(self.classes_) == 2 else len(self.classes_), attributes, sample_weight)
        return self


class FairPenaltyRegressor(RegressorMixin, _FairPenalty):  # type: ignore[misc]
    r"""A perceptron or linear model whose predicted means or rates are held independent of protected attributes.

    With ``loss="poisson"`` the prediction is a rate :math:`\exp(f(x))`, trained by the Poisson likelihood and penalized in its own units.
    For counts with exposure pass frequencies and weights, ``fit(X, counts / exposure, sample_weight=exposure)``: the likelihood with an
    offset. With ``loss="squared"`` the target is standardized inside, and the penalty is in its standard deviations.

    The other arguments are those of :class:`FairPenaltyClassifier`. ``lam`` of 40 suits rates around 0.1.

    Raises:
        InputError: as there; and negative targets, or none above 0, for "poisson".

    Example:
        >>> rng = np.random.default_rng(0)
        >>> sex, x = rng.integers(2, size=600), rng.normal(size=600)
        >>> claims = rng.poisson(np.exp(0.3 * x + sex - 1.5))
        >>> model = FairPenaltyRegressor((), loss="poisson", lam=10, lr=0.05, max_steps=200, random_state=0)
        >>> rate = model.fit(np.column_stack([x, sex]), claims, attributes=sex).predict(np.column_stack([x, sex]))
        >>> bool(abs(rate[sex == 1].mean() / rate[sex == 0].mean() - 1) < 0.2)
        True
    """

    def __init__(
        self,
        hidden: tuple[int, ...] = (64, 64),
        *,
        loss: Literal["squared", "poisson"] = "squared",
        penalty: Penalty = "ccdcov",
        lam: float = 0.0,
        encoder: ProtectedAttributeEncoder | None = None,
        lr: float = 1e-3,
        weight_decay: float = 1e-6,
        batch_size: int = 256,
        max_steps: int | None = None,
        device: str = "cpu",
        random_state: int | None = None,
        callbacks: list[Any] | None = None,
    ) -> None:
        self.hidden = hidden
        self.loss = loss
        self.penalty = penalty
        self.lam = lam
        self.encoder = encoder
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_steps = max_steps
        self.device = device
        self.random_state = random_state
        self.callbacks = callbacks

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike, *, attributes: Any = None, sample_weight: npt.ArrayLike | None = None) -> Self:
        """Train on rows ``X`` (n, d) with targets ``y`` (n,); ``attributes``: a table, columns by name, or an array of n rows."""
        check_choice("loss", self.loss, ("squared", "poisson"))
        rows, y = validate_data(self, X, y, dtype=np.float32, y_numeric=True)
        true = np.asarray(y, dtype=np.float64)
        if self.loss == "poisson":
            if true.min() < 0 or not true.max() > 0:
                bad_input("y", f"targets in [{true.min():g}, {true.max():g}]", "counts or frequencies >= 0, some of them above 0")
            # The network starts at the mean rate.
            mean = float(np.average(true, weights=_weights(sample_weight, rows)))
            self.target_mean_, self.target_scale_ = 0.0, mean
        else:
            self.target_mean_, self.target_scale_ = float(true.mean()), float(true.std()) or 1.0
            true = (true - self.target_mean_) / self.target_scale_
        self._scale = self.target_scale_
        self._fit_penalized(rows, true, 1, attributes, sample_weight)
        return self

    def predict(self, X: npt.ArrayLike) -> Array:
        """(n,) predicted means or rates, in the units of the target."""
        outputs = self._outputs(X)[:, 0]
        if self.loss == "poisson":
            return np.asarray(self.target_scale_ * np.exp(outputs))
        return np.asarray(outputs * self.target_scale_ + self.target_mean_)
