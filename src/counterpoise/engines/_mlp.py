"""Multi-layer perceptrons trained for a number of *steps*, as scikit-learn estimators on skorch.

Comparing remedies by epochs favors those that lengthen the epoch (over-sampling); here every fit takes exactly ``max_steps`` optimizer
steps of ``batch_size`` rows, whatever the number of rows.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from counterpoise.data import BalancedClassSampler
from counterpoise.nn.init import prior_bias_
from counterpoise.schedules import TwoPhase

if TYPE_CHECKING:
    from skorch import NeuralNet

__all__ = ["MLPClassifier", "MLPRegressor", "default_steps"]


def default_steps(n_rows: int, batch_size: int = 256) -> int:
    """Steps of a fit on ``n_rows`` rows: 20 passes, at least 500 steps."""
    return max(500, -(-20 * n_rows // batch_size))


class _StepBatches:
    """An iterator for skorch: ``max_steps`` batches, reshuffled (or, ``balanced``, drawn with equal class frequencies) whenever the rows
    are used up. Whole batches are indexed at once."""

    def __init__(self, dataset: Any, batch_size: int, max_steps: int, seed: int, balanced: bool = False) -> None:
        self._X, self._w, self._y = dataset.X["X"], dataset.X["weight"], dataset.y
        self._batch_size = min(batch_size, len(self._y))
        self._max_steps = max_steps
        self._generator = torch.Generator().manual_seed(seed)
        self._sampler = BalancedClassSampler(self._y.flatten().long(), generator=seed, num_replicas=1, rank=0) if balanced else None

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        n, size = len(self._y), self._batch_size
        order, start = torch.empty(0, dtype=torch.int64), 0
        for _ in range(self._max_steps):
            if start + size > len(order):
                # The rest of one pass and the start of the next make one batch, so that every row is drawn equally often.
                order = torch.cat([order[start:], self._pass(n)])
                start = 0
            rows = order[start : start + size]
            start += size
            yield {"X": self._X[rows], "weight": self._w[rows]}, self._y[rows]

    def _pass(self, n: int) -> Tensor:
        return torch.randperm(n, generator=self._generator) if self._sampler is None else torch.tensor(list(self._sampler))


def _build_module(n_features: int, hidden: tuple[int, ...], n_outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    width = n_features
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, n_outputs))


@dataclass(frozen=True)
class _Regularization:
    """A second view of each batch, and a term on the features before the last ReLU; see :class:`MLPRegressor`."""

    module: nn.Module | None
    weight: float
    view_noise: float
    mean: float  # of the target, and its scale: what is standardised inside is handed on in the target's units
    scale: float

    def views(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The batch, and below it the same rows with noise."""
        if not self.view_noise:
            return x
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        return torch.cat([x, x + self.view_noise * noise])

    def term(self, hidden: Tensor, targets: Tensor, outputs: Tensor, weight: Tensor | None) -> Tensor | float:
        if self.module is None:
            return 0.0
        value: Tensor = self.module(hidden, self.mean + self.scale * targets, self.mean + self.scale * outputs, weight)
        return self.weight * value


class _BaseMLP(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What classifier and regressor share: the training by steps."""

    def __init__(
        self,
        hidden: tuple[int, ...] = (64, 64),
        *,
        lr: float = 1e-3,
        weight_decay: float = 1e-6,
        batch_size: int = 256,
        max_steps: int | None = None,
        loss: nn.Module | None = None,
        device: str = "cpu",
        random_state: int | None = None,
        callbacks: list[Any] | None = None,
    ) -> None:
        self.hidden = hidden
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_steps = max_steps
        self.loss = loss
        self.device = device
        self.random_state = random_state
        self.callbacks = callbacks

    def _train(
        self,
        X: npt.NDArray[np.float32],
        target: Tensor,
        weight: npt.NDArray[np.float32],
        n_outputs: int,
        loss: nn.Module,
        *,
        prior: Tensor | None = None,
        head_share: float = 0.0,
        regularization: _Regularization | None = None,
    ) -> None:
        if self.batch_size < 1 or (self.max_steps is not None and self.max_steps < 1):
            raise ValueError(f"batch_size and max_steps must be at least 1, got {self.batch_size} and {self.max_steps}.")
        steps = default_steps(len(X), self.batch_size) if self.max_steps is None else self.max_steps
        rng = np.random.RandomState(self.random_state) if not isinstance(self.random_state, np.random.RandomState) else self.random_state
        seed = int(rng.randint(2**31 - 1))
        # The initial weights come from a stream of their own: the caller's generator is neither used nor moved.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = _build_module(X.shape[1], tuple(self.hidden), n_outputs)
            last = module[-1]
            if prior is not None and isinstance(last, nn.Linear):
                # One logit has the share of the second class as its mean label, a softmax needs all shares.
                prior_bias_(last, prior[1:] if n_outputs == 1 else prior, link="sigmoid" if n_outputs == 1 else "softmax")
                nn.init.normal_(last.weight, std=0.01)  # as in the paper of the bias, arXiv 1909.04868

        def run(module: nn.Sequential, lr: float, steps: int, **drawing: Any) -> nn.Sequential:
            net = _skorch_net(
                module,
                loss,
                bool((weight != 1).any()),
                lr=lr,
                weight_decay=self.weight_decay,
                device=self.device,
                callbacks=list(self.callbacks or ()),
                regularization=regularization,
                seed=seed,
            )
            options = {"batch_size": self.batch_size, "max_steps": steps, "seed": seed} | drawing
            net.set_params(iterator_train=_StepBatches, **{f"iterator_train__{name}": value for name, value in options.items()})
            net.fit({"X": torch.from_numpy(X), "weight": torch.from_numpy(weight)}, target)
            trained: nn.Sequential = net.module_
            return trained

        head_steps = round(head_share * steps)
        if head_steps:
            module = run(module, self.lr, steps - head_steps, balanced=True)
            with TwoPhase(module, head=str(len(module) - 1)) as phase2:
                module = run(module, self.lr * phase2.phase2_lr_scale, head_steps, seed=seed + 1)
        else:
            module = run(module, self.lr, steps)
        self.module_: nn.Sequential = module.eval()
        self.steps_ = steps
        self.n_iter_ = steps

    def _outputs(self, X: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """(n, outputs) raw outputs of the network, in chunks of 65,536 rows."""
        check_is_fitted(self, "module_")
        checked = validate_data(self, X, dtype=np.float32, reset=False)
        # In float64 a row's score does not depend on the rows it is scored with.
        module = copy.deepcopy(self.module_).double()
        with torch.inference_mode():
            chunks = [module(torch.from_numpy(part).to(self.device, torch.float64)).cpu() for part in _chunks(checked, 65_536)]
        return torch.cat(chunks).numpy()

    @classmethod
    def from_state(
        cls,
        params: Mapping[str, Any],
        state_dict: Mapping[str, Tensor],
        n_features: int,
        classes: npt.ArrayLike | None = None,
        target: tuple[float, float] | None = None,
    ) -> Self:
        """A fitted estimator from its parameters and the tensors of its network (what is written to disk).

        A classifier needs its ``classes``, a regressor the mean and scale of its ``target``.
        """
        estimator = cls(**params)
        n_outputs = state_dict[list(state_dict)[-1]].shape[0]
        estimator.module_ = _build_module(n_features, tuple(estimator.hidden), n_outputs)
        estimator.module_.load_state_dict(dict(state_dict))
        estimator.module_.eval()
        estimator.n_features_in_ = n_features
        if classes is not None:
            estimator.classes_ = np.asarray(classes)
        if target is not None:
            estimator.target_mean_, estimator.target_scale_ = target
        return estimator


class MLPClassifier(ClassifierMixin, _BaseMLP):  # type: ignore[misc]
    """A perceptron with ReLU layers for two or more classes, trained by Adam for a fixed number of steps.

    Minimises ``sum_i w_i loss(z_i, y_i) / B`` over batches of ``B`` rows, ``w`` scaled to mean 1. The network has one output (a logit) for
    two classes and C outputs otherwise.

    Args:
        hidden: widths of the hidden layers.
        lr, weight_decay: of Adam.
        batch_size: rows of a step; at most the number of rows.
        max_steps: optimizer steps of a fit; None = 20 passes over the rows, at least 500.
        loss: a module with ``reduction="none"``: ``loss(logits, targets)`` per row. Two classes: logits and float targets of shape (B, 1);
            more: logits (B, C) and integer targets (B,). None = cross-entropy. A loss that exists for a whole batch only, such as
            :class:`~counterpoise.losses.AnyLoss`, gives one number, and is asked for ``loss(logits, targets, weight=w)`` if its ``forward``
            takes a ``weight``; if not, it can be trained without sample weights only.
        device: where the network is trained and evaluated.
        random_state: seed of the initial weights and of the batches.
        callbacks: skorch callbacks for the training, such as :class:`counterpoise.engines.skorch.DiagnosisCallback`.
        prior_bias: begin with the last layer's bias at the class frequencies of the rows (:func:`counterpoise.nn.init.prior_bias_`), and
            its weights close to 0.
        head_share: share of the steps, the last ones, in which only the last layer is trained, on the rows as they are; before, batches are
            drawn with equal class frequencies (two-phase training, :class:`counterpoise.schedules.TwoPhase`). 0 = all layers on all rows
            throughout. In [0, 1).

    Example:
        >>> import numpy as np
        >>> X = np.array([[0.0], [1.0], [2.0], [3.0]] * 8)
        >>> MLPClassifier(max_steps=200, random_state=0).fit(X, X[:, 0] > 1.5).predict([[0.2], [2.9]])
        array([False,  True])
    """

    def __init__(
        self,
        hidden: tuple[int, ...] = (64, 64),
        *,
        lr: float = 1e-3,
        weight_decay: float = 1e-6,
        batch_size: int = 256,
        max_steps: int | None = None,
        loss: nn.Module | None = None,
        device: str = "cpu",
        random_state: int | None = None,
        callbacks: list[Any] | None = None,
        prior_bias: bool = False,
        head_share: float = 0.0,
    ) -> None:
        super().__init__(
            hidden,
            lr=lr,
            weight_decay=weight_decay,
            batch_size=batch_size,
            max_steps=max_steps,
            loss=loss,
            device=device,
            random_state=random_state,
            callbacks=callbacks,
        )
        self.prior_bias = prior_bias
        self.head_share = head_share

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None) -> Self:
        rows, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"MLPClassifier needs at least two classes; y holds one class: {self.classes_[0]!r}.")
        binary = len(self.classes_) == 2
        target = torch.from_numpy(codes).float()[:, None] if binary else torch.from_numpy(codes)
        loss = self.loss or (nn.BCEWithLogitsLoss(reduction="none") if binary else nn.CrossEntropyLoss(reduction="none"))
        if not 0 <= self.head_share < 1:
            raise ValueError(f"head_share must be in [0, 1), got {self.head_share}.")
        weight = _weights(sample_weight, rows)
        prior = None
        if self.prior_bias:
            mass = np.bincount(codes, weights=weight, minlength=len(self.classes_))
            prior = torch.from_numpy(mass / mass.sum())
        self._train(rows, target, weight, 1 if binary else len(self.classes_), loss, prior=prior, head_share=self.head_share)
        return self

    def decision_function(self, X: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """(n,) logit of ``classes_[1]`` for two classes, (n, C) logits otherwise."""
        outputs = self._outputs(X)
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs

    def predict_proba(self, X: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """(n, C) probabilities."""
        from scipy.special import expit, softmax

        logits = self._outputs(X)
        if logits.shape[1] > 1:
            return np.asarray(softmax(logits, axis=1))
        return np.column_stack([expit(-logits[:, 0]), expit(logits[:, 0])])

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[Any]:
        """(n,) the most probable class."""
        winner = self.predict_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[winner])


class MLPRegressor(RegressorMixin, _BaseMLP):  # type: ignore[misc]
    """A perceptron with ReLU layers for one real target, trained by Adam for a fixed number of steps.

    The target is standardised inside; ``loss`` (default: squared error, per row) sees the standardised values, shape (B, 1). The other
    arguments are those of :class:`MLPClassifier`.

    Args:
        regularizer: a module called as ``regularizer(features, targets, predictions, sample_weight)`` on every batch, such as
            :class:`counterpoise.losses.ConRLoss`: features (B, width) are those of the last hidden layer before its ReLU, targets and
            predictions (B, 1) are in units of the target, weights (B,) are None where all rows weigh alike. What it gives is added to the
            loss.
        regularizer_weight: what it is multiplied by.
        view_noise: standard deviation of normal noise on the columns of ``X`` that makes a second view of each batch, for loss and
            regularizer alike: 2 B rows. 0 = one view.

    Example:
        >>> import numpy as np
        >>> X = np.linspace(-1, 1, 64)[:, None]
        >>> bool(abs(MLPRegressor(random_state=0).fit(X, 3 * X[:, 0]).predict([[0.5]])[0] - 1.5) < 0.2)
        True
    """

    def __init__(
        self,
        hidden: tuple[int, ...] = (64, 64),
        *,
        lr: float = 1e-3,
        weight_decay: float = 1e-6,
        batch_size: int = 256,
        max_steps: int | None = None,
        loss: nn.Module | None = None,
        device: str = "cpu",
        random_state: int | None = None,
        callbacks: list[Any] | None = None,
        regularizer: nn.Module | None = None,
        regularizer_weight: float = 1.0,
        view_noise: float = 0.0,
    ) -> None:
        super().__init__(
            hidden,
            lr=lr,
            weight_decay=weight_decay,
            batch_size=batch_size,
            max_steps=max_steps,
            loss=loss,
            device=device,
            random_state=random_state,
            callbacks=callbacks,
        )
        self.regularizer = regularizer
        self.regularizer_weight = regularizer_weight
        self.view_noise = view_noise

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None) -> Self:
        rows, y = validate_data(self, X, y, dtype=np.float32, y_numeric=True)
        y = np.asarray(y, dtype=np.float64)
        self.target_mean_, self.target_scale_ = float(y.mean()), float(y.std()) or 1.0
        target = torch.from_numpy(((y - self.target_mean_) / self.target_scale_).astype(np.float32))[:, None]
        loss = self.loss or nn.MSELoss(reduction="none")
        self._train(rows, target, _weights(sample_weight, rows), 1, loss, regularization=self._regularization())
        return self

    def _regularization(self) -> _Regularization | None:
        if not (self.regularizer_weight >= 0 and self.view_noise >= 0):
            raise ValueError(f"regularizer_weight and view_noise must be at least 0, got {self.regularizer_weight} and {self.view_noise}.")
        if self.regularizer is not None and not self.hidden:
            raise ValueError("regularizer needs a hidden layer, whose features it acts on; got hidden=().")
        if self.regularizer is None and not self.view_noise:
            return None
        return _Regularization(self.regularizer, self.regularizer_weight, self.view_noise, self.target_mean_, self.target_scale_)

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """(n,) predictions in the units of the target."""
        return self._outputs(X)[:, 0] * self.target_scale_ + self.target_mean_


def _skorch_net(
    module: nn.Module,
    loss: nn.Module,
    weighted: bool,
    *,
    lr: float,
    weight_decay: float,
    device: str,
    callbacks: list[Any],
    regularization: _Regularization | None,
    seed: int,
) -> NeuralNet:
    # skorch pulls large optional packages when they are installed: imported when a net is trained, not with this module.
    from skorch import NeuralNet

    takes_weight = weighted and "weight" in inspect.signature(loss.forward).parameters

    class WeightedNet(NeuralNet):  # type: ignore[misc]
        """Rows weighted in the loss; a batch is a dict with the rows' features and weights.

        Ctrl-C ends the program, and not the training alone, as in skorch: half a training is none.
        """

        interrupted = False

        def fit_loop(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return super().fit_loop(*args, **kwargs)
            except KeyboardInterrupt:
                self.interrupted = True
                raise

        def partial_fit(self, *args: Any, **kwargs: Any) -> Any:
            super().partial_fit(*args, **kwargs)
            if self.interrupted:
                raise KeyboardInterrupt
            return self

        def infer(self, x: Mapping[str, Tensor], **fit_params: Any) -> tuple[Tensor, Tensor]:
            return self.module_(x["X"].to(self.device)), x["weight"].to(self.device)

        def get_loss(self, y_pred: tuple[Tensor, Tensor], y_true: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            losses = self.row_losses(y_pred, y_true)
            return losses.mean() if losses.ndim else losses

        def row_losses(self, y_pred: tuple[Tensor, Tensor], y_true: Tensor) -> Tensor:
            """The weighted loss of each row (B,), or one number where the loss is of the whole batch."""
            output, weight = y_pred
            target = y_true.to(self.device)
            value: Tensor = self.criterion_(output, target, weight=weight) if takes_weight else self.criterion_(output, target)
            if value.ndim == 0:
                if weighted and not takes_weight:
                    raise ValueError("sample_weight needs a loss with reduction='none' or one whose forward takes a weight.")
                return value
            return value.reshape(len(weight), -1).mean(dim=1) * weight

    class RegularizedNet(WeightedNet):
        """Batches in two views, and a term on the features before the last ReLU."""

        def infer(self, x: Mapping[str, Tensor], **fit_params: Any) -> tuple[Tensor, Tensor]:
            assert regularization is not None
            rows, weight = regularization.views(x["X"].to(self.device), noise), x["weight"].to(self.device)
            self.features_ = self.module_[:-2](rows)
            return self.module_[-2:](self.features_), weight.repeat(len(rows) // len(weight))

        def get_loss(self, y_pred: tuple[Tensor, Tensor], y_true: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            assert regularization is not None
            output, weight = y_pred
            target = y_true.to(self.device).repeat(len(output) // len(y_true), 1)
            loss: Tensor = super().get_loss(y_pred, target)
            return loss + regularization.term(self.features_, target, output, weight if weighted else None)

    # A stream of its own: the batches are those of a fit with one view.
    noise = torch.Generator().manual_seed(seed + 1)
    return (WeightedNet if regularization is None else RegularizedNet)(
        module,
        criterion=loss,
        optimizer=torch.optim.Adam,
        optimizer__weight_decay=weight_decay,
        optimizer__fused=True,
        lr=lr,
        max_epochs=1,
        train_split=None,
        callbacks=callbacks,
        callbacks__epoch_timer=None,
        callbacks__train_loss=None,
        callbacks__valid_loss=None,
        callbacks__print_log=None,
        device=device,
        verbose=0,
    )


def _weights(sample_weight: npt.ArrayLike | None, X: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    from sklearn.utils.validation import _check_sample_weight

    weight = _check_sample_weight(sample_weight, X, dtype=np.float32, ensure_non_negative=True)
    return np.asarray(weight * np.float32(len(weight) / weight.sum()))


def _chunks(X: npt.NDArray[np.float32], size: int) -> Iterator[npt.NDArray[np.float32]]:
    return (X[start : start + size] for start in range(0, max(len(X), 1), size))
