r"""AnyLoss (Han, Moniz, Chawla 2024, arXiv:2405.14745): a metric of the confusion matrix as the loss.

What is unbalanced: under cross-entropy the common class makes most of the gradient, and where the classes overlap no probability of the
rare one reaches 0.5. Here the loss is the metric itself, made differentiable. With :math:`p_i` the probability of "yes" and :math:`w_i` the
weight of row i,

.. math::
    \hat y_i &= A(p_i) = \frac{1}{1 + e^{-L (p_i - 1/2)}}, \qquad
    TP = \sum_i w_i y_i \hat y_i, \quad FP = \sum_i w_i (1 - y_i) \hat y_i, \quad P = \sum_i w_i y_i, \quad N = \sum_i w_i (1 - y_i),

    \text{loss} &= 1 - \text{metric}(TP, FP, FN = P - TP, TN = N - FP).

The amplification A makes the decision at 0.5 nearly binary and leaves it a slope. G-mean keeps its square root; the closed-form gradient of
the released code is four times that of this loss.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterpoise._dist import all_reduce_sum, world_size
from counterpoise._errors import bad_input, check_choice, check_range
from counterpoise._precision import single

from ._focal import _log

__all__ = ["AnyLoss", "SoftConfusion", "amplify", "any_loss", "soft_confusion"]

_sigmoid_backward = torch.ops.aten.sigmoid_backward.default
T = Any  # a tensor, or a complex number
Metric = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

LARGEST = sys.float_info.max
STEP = 1e-100  # f(x + ih) = f(x) + ih f'(x) to all digits
AUTO = {torch.float64: 73.0, torch.float32: 32.0}  # the largest whole L for which A(1) stays well below 1


def amplify(p: Tensor, L: float) -> Tensor:
    r"""Push probabilities towards 0 and 1: :math:`A(p) = 1 / (1 + e^{-L (p - 1/2)})`.

    Parameters
    ----------
    p : Tensor of float, any shape
        Probabilities. Half precision is computed, and returned, in float32.
    L : float > 0
        Slope at 1/2 times 4. The larger, the more like a threshold, and the fewer rows still have a gradient.

    Raises
    ------
    InputError
        If L is not a positive number or p not of a floating-point type.

    Examples
    --------
    >>> amplify(torch.tensor([0.2, 0.5, 0.9]), 10.0)
    tensor([0.0474, 0.5000, 0.9820])
    """
    if not torch.compiler.is_compiling():
        check_range("L", L, low=0, open_low=True)
    if not p.is_floating_point():
        bad_input("p", f"a tensor of {p.dtype}", "floating-point probabilities")
    return _amplify(single(p), L)


class SoftConfusion(NamedTuple):
    """Sums over a batch: of ``y_hat`` and ``1 - y_hat`` over its positives (tp, fn) and over its negatives (fp, tn).

    Each is a scalar, or has shape (K,) for K classes or labels, one against the rest.
    """

    tp: Tensor
    fp: Tensor
    fn: Tensor
    tn: Tensor


def soft_confusion(
    input: Tensor,
    target: Tensor,
    amplification: float | Literal["auto"] | None = 10.0,
    weight: Tensor | None = None,
    *,
    from_logits: bool = True,
) -> SoftConfusion:
    """The confusion matrix of a batch with amplified probabilities instead of decisions; differentiable.

    Parameters
    ----------
    input : Tensor of float, shape (B,), (B, 1) or (B, K)
        Logits (with ``from_logits=False`` probabilities).
    target : Tensor, of the same shape with values 0 and 1, or of integer type and shape (B,)
        Same shape: every entry is a decision of its own (sigmoid). Classes 0..K-1: each against the rest (softmax).
    amplification : float > 0, "auto" or None, default 10.0
        L of :func:`amplify`; "auto" is 73 in float64 and 32 otherwise; None leaves the probabilities as they are.
    weight : Tensor of float >= 0, shape (B,), optional
        Weight of each row in the sums.

    Raises
    ------
    InputError
        As :class:`AnyLoss` does.

    Examples
    --------
    >>> matrix = soft_confusion(torch.tensor([-9.0, 9.0, 9.0, -9.0]), torch.tensor([0, 0, 1, 1]), amplification="auto")
    >>> [round(count.item(), 3) for count in matrix]
    [1.0, 1.0, 1.0, 1.0]
    """
    o = _Options(amplification=amplification, from_logits=from_logits)
    classes = input.ndim == 2 and target.ndim == 1
    scores, y, w = _read(input, target, weight, classes, o)
    tp, fp, pos, neg = _sums(_decided(_probabilities(scores, classes, o), o), y, w)
    return SoftConfusion(tp, fp, pos - tp, neg - fp)


def any_loss(
    input: Tensor,
    target: Tensor,
    metric: str | Metric = "f1",
    beta: float = 1.0,
    amplification: float | Literal["auto"] | None = 10.0,
    from_logits: bool = True,
    multiclass: Literal["macro-ovr"] | None = "macro-ovr",
    mix_bce: float = 0.0,
    eps: float = 1e-12,
    on_empty: Literal["skip", "raise"] = "skip",
    *,
    weight: Tensor | None = None,
    soft_targets: bool = False,
    check_finite: bool = False,
    process_group: Any = None,
) -> Tensor:
    """:class:`AnyLoss` as a function, with the same arguments.

    Examples
    --------
    >>> any_loss(torch.tensor([-2.0, -1.0, 2.0]), torch.tensor([0, 1, 1]), metric="accuracy")
    tensor(0.3177)
    """
    options = _Options(
        metric, beta, amplification, from_logits, multiclass, mix_bce, eps, on_empty, soft_targets, check_finite, process_group
    )
    return _any_loss(input, target, weight, options)


class AnyLoss(nn.Module):
    r"""1 - metric of a batch's soft confusion matrix: train for the metric that decisions at 0.5 are judged by.

    .. math:: \text{loss} = (1 - m) \left( 1 - \text{metric}(TP, FP, FN, TN) \right) + m \, \text{BCE}

    with the counts of :func:`soft_confusion` and m = ``mix_bce``. The loss belongs to the batch and is no mean over rows, so there is no
    ``reduction``, and accumulating the gradients of small batches is not the same as a large batch. Keep the batch large enough to hold
    positives. The probabilities of the trained model are not calibrated, and its threshold is 0.5: do not correct for a prior on top, and
    do not start from a bias that makes all probabilities small, where the gradient vanishes (or use ``mix_bce``).

    Parameters
    ----------
    metric : str or callable, default "f1"
        "f1", "fbeta", "accuracy", "balanced_accuracy", "gmean" (of the two recalls), "gmean_squared", "mcc", "jaccard", or a function
        ``metric(tp, fp, fn, tn)`` of tensors, differentiable, larger is better. It is called with the counts as they are; where its value
        is not finite, the batch (or class) counts as one for which it is not defined.
    beta : float >= 0, default 1.0
        For "fbeta": how many times recall counts as much as precision.
    amplification : float > 0, "auto" or None, default 10.0
        L of :func:`amplify`. The paper has 73, the largest whole number at which :math:`A(1) < 1` in float64, which "auto" takes there,
        and 32 in float32. 10 has a gradient for more rows and is less noisy in mini-batches. None switches it off, which makes "f1" the
        Dice loss.
    from_logits : bool, default True
        Whether the inputs are logits; else probabilities in [0, 1].
    multiclass : {"macro-ovr", None}, default "macro-ovr"
        What K >= 2 columns are. "macro-ovr": classes, one per row (softmax); the mean over the classes in the batch, each against the rest.
        None: labels, independent of each other (sigmoid); the mean over the labels with a positive in the batch.
    mix_bce : float in [0, 1], default 0.0
        Share of binary cross-entropy (cross-entropy for classes) in the loss.
    eps : float > 0, default 1e-12
        Smallest denominator, and smallest number under a root, whose slope at 0 is infinite.
    on_empty : {"skip", "raise"}, default "skip"
        What to do where the metric is not defined: balanced accuracy, G-mean and MCC of a batch of one class, and classes or labels none of
        which is in the batch. "skip" gives 0 and no gradient. (F-beta and Jaccard without positives are 0: the loss is 1 and has no
        gradient either.) "raise" has to look at the counts, which ``torch.compile`` breaks the graph for.
    soft_targets : bool, default False
        Take targets between 0 and 1, as mixup and distillation make them (not with class indices).
    check_finite : bool, default False
        Refuse NaN and infinite inputs.
    process_group : torch.distributed.ProcessGroup, optional
        Processes that hold parts of one batch, such as ``torch.distributed.group.WORLD``: their counts are added up, every process has the
        loss of the whole batch, and the gradients, *averaged* over processes as DistributedDataParallel and FSDP do, are those of the whole
        batch. Default: each process has a loss of its own.

    Shapes
    ------
    ``forward(input, target, weight=None)``: input (B,) or (B, 1) and a target of the same shape with values 0 and 1; or (B, K) with classes
    (B,), or labels (B, K). ``weight`` (B,) >= 0 multiplies the rows' terms in the sums. Output: a scalar; float32 for half precision,
    which is computed in float32.

    Raises
    ------
    InputError
        If shapes do not match, the batch is empty, a target is not in {0, 1} or 0..K-1, a weight is negative, a probability not in [0, 1],
        or a parameter is out of its range. (Values are not looked at inside ``torch.compile``, which cannot branch on them.)

    Examples
    --------
    >>> logits, targets = torch.tensor([-2.0, -1.0, 0.5, 2.0]), torch.tensor([0, 1, 0, 1])
    >>> AnyLoss("f1")(logits, targets)
    tensor(0.4468)
    >>> AnyLoss(lambda tp, fp, fn, tn: tp / (tp + fn) + tn / (tn + fp) - 1)(logits, targets)  # Youden's J
    tensor(0.8630)
    >>> AnyLoss("balanced_accuracy")(torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 1.0]]), torch.tensor([0, 2]))
    tensor(0.2656)
    """

    def __init__(
        self,
        metric: str | Metric = "f1",
        beta: float = 1.0,
        amplification: float | Literal["auto"] | None = 10.0,
        from_logits: bool = True,
        multiclass: Literal["macro-ovr"] | None = "macro-ovr",
        mix_bce: float = 0.0,
        eps: float = 1e-12,
        on_empty: Literal["skip", "raise"] = "skip",
        *,
        soft_targets: bool = False,
        check_finite: bool = False,
        process_group: Any = None,
    ) -> None:
        super().__init__()
        self.options = _Options(
            metric, beta, amplification, from_logits, multiclass, mix_bce, eps, on_empty, soft_targets, check_finite, process_group
        )

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return _any_loss(input, target, weight, self.options)

    def extra_repr(self) -> str:
        o = self.options
        beta = f", beta={o.beta:g}" if o.metric == "fbeta" else ""
        return f"metric={_name(o.metric)}{beta}, amplification={o.amplification!r}, from_logits={o.from_logits}, mix_bce={o.mix_bce:g}"


@dataclass(frozen=True)
class _Options:
    metric: str | Metric = "f1"
    beta: float = 1.0
    amplification: float | Literal["auto"] | None = 10.0
    from_logits: bool = True
    multiclass: Literal["macro-ovr"] | None = "macro-ovr"
    mix_bce: float = 0.0
    eps: float = 1e-12
    on_empty: Literal["skip", "raise"] = "skip"
    soft_targets: bool = False
    check_finite: bool = False
    process_group: Any = None

    def __post_init__(self) -> None:
        if torch.compiler.is_compiling():
            return
        if not callable(self.metric):
            check_choice("metric", self.metric, METRICS, "Or give a function metric(tp, fp, fn, tn).")
        check_range("beta", self.beta, low=0)
        if self.beta != 1 and self.metric != "fbeta":
            bad_input("beta", self.beta, f"1 for metric={self.metric!r}", "metric='fbeta' takes a beta.")
        if isinstance(self.amplification, str):
            check_choice("amplification", self.amplification, ("auto",), "Or a number > 0, or None.")
        elif self.amplification is not None:
            check_range("amplification", self.amplification, low=0, open_low=True)
        check_choice("multiclass", self.multiclass, ("macro-ovr", None))
        check_range("mix_bce", self.mix_bce, low=0, high=1)
        check_range("eps", self.eps, low=0, open_low=True)
        check_choice("on_empty", self.on_empty, ("skip", "raise"))

    @cached_property
    def usual(self) -> bool:
        """Whether :class:`_Column` can do it."""
        fewer = self.mix_bce or self.amplification is None or self.soft_targets or self.check_finite or self.process_group is not None
        return isinstance(self.metric, str) and self.from_logits and not fewer


def _any_loss(input: Tensor, target: Tensor, weight: Tensor | None, o: _Options) -> Tensor:
    if not torch.compiler.is_compiling() and o.usual and _is_column(input, target, weight):
        at_once: Tensor = _Column.apply(input, target, weight, o)  # type: ignore[no-untyped-call]
        return at_once
    classes = o.multiclass is not None and input.ndim == 2 and input.shape[1] > 1
    scores, y, w = _read(input, target, weight, classes, o)
    sums = _sums(_decided(_probabilities(scores, classes, o), o), y, w)
    if o.mix_bce:
        sums = *sums, _cross_entropy(scores, y, w, classes, o)
    if o.process_group is not None and world_size(o.process_group) > 1:
        sums = _over_processes(sums, o.process_group)
    tp, fp, pos, neg = sums[:4]
    loss = _metric_loss(tp, fp, pos, neg, o)
    if not o.mix_bce:
        return loss
    rows = pos + neg if not pos.ndim else pos[0] + neg[0]
    return (1 - o.mix_bce) * loss + o.mix_bce * sums[4] / rows.clamp(min=o.eps)


def _over_processes(sums: tuple[Tensor, ...], group: Any) -> tuple[Tensor, ...]:
    """All sums over the processes in one exchange. Its backward adds up the gradients of all processes, which offsets DDP's mean."""
    total = all_reduce_sum(torch.cat([part.reshape(-1) for part in sums]), group)
    parts = torch.split(total, [part.numel() for part in sums])
    return tuple(part.reshape(own.shape) for part, own in zip(parts, sums, strict=True))


# ---- 1 - metric from TP, FP and what the batch holds, P positives and N negatives --------------------------------------------------------
#
# In the arithmetic that tensors and complex numbers share: _Column takes the derivatives with the latter.


def _fbeta(tp: T, fp: T, pos: T, neg: T, o: _Options) -> T:
    square = o.beta**2
    wrong = fp + _at_least(square * pos, o.eps)
    return (wrong - square * tp) / (wrong + tp)


def _accuracy(tp: T, fp: T, pos: T, neg: T, o: _Options) -> T:
    return (pos - tp + fp) / _at_least(pos + neg, o.eps)


def _balanced_accuracy(tp: T, fp: T, pos: T, neg: T, o: _Options) -> T:
    return ((pos - tp) / _at_least(pos, o.eps) + fp / _at_least(neg, o.eps)) / 2


def _gmean_squared(tp: T, fp: T, pos: T, neg: T, o: _Options) -> T:
    return 1 - tp * (neg - fp) / _at_least(pos * neg, o.eps)


def _gmean(tp: T, fp: T, pos: T, neg: T, o: _Options) -> T:
    return 1 - _at_least(tp * (neg - fp) / _at_least(pos * neg, o.eps), o.eps) ** 0.5


def _mcc(tp: T, fp: T, pos: T, neg: T, o: _Options) -> T:
    said = tp + fp  # only products of two counts, since four may overflow
    ratio = pos * neg / _at_least(said * (pos + neg - said), o.eps)
    return 1 - (tp / _at_least(pos, o.eps) - fp / _at_least(neg, o.eps)) * _at_least(ratio, o.eps) ** 0.5


def _jaccard(tp: T, fp: T, pos: T, neg: T, o: _Options) -> T:
    union = fp + _at_least(pos, o.eps)
    return (union - tp) / union


def _at_least(x: T, low: float) -> T:
    if isinstance(x, Tensor):
        return x.clamp(min=low)
    return low if x.real < low else x  # NaN stays


METRICS: dict[str, Callable[[Any, Any, Any, Any, _Options], Any]] = {
    "f1": _fbeta,
    "fbeta": _fbeta,
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "gmean": _gmean,
    "gmean_squared": _gmean_squared,
    "mcc": _mcc,
    "jaccard": _jaccard,
}
NEED_BOTH_CLASSES = ("balanced_accuracy", "gmean", "gmean_squared", "mcc")


def _metric_loss(tp: Tensor, fp: Tensor, pos: Tensor, neg: Tensor, o: _Options) -> Tensor:
    """1 - metric; for several columns its mean over those for which it is defined; 0 if it is defined for none."""
    defined = pos > 0 if tp.ndim else None
    if callable(o.metric):
        counts = tp, fp, pos - tp, neg - fp
        with torch.no_grad():
            finite = torch.isfinite(o.metric(*counts))
        # Counts that give NaN are replaced before the metric is called: NaN times 0 is NaN in the gradient, too.
        loss = 1 - o.metric(*(torch.where(finite, count, 1.0) for count in counts))
        defined = finite if defined is None else finite & defined
    else:
        loss = METRICS[o.metric](tp, fp, pos, neg, o)
        if o.metric in NEED_BOTH_CLASSES:
            defined = pos * neg > 0
    if defined is None:
        return loss
    if o.on_empty == "raise" and not bool(defined.any()):
        _refuse(o)
    if not tp.ndim:
        return loss * defined
    return (loss * defined).sum() / defined.sum().clamp(min=1)


def _refuse(o: _Options) -> NoReturn:
    bad_input("target", f"a batch for which {_name(o.metric)} is not defined", "rows of both classes", "Or set on_empty='skip'.")


def _name(metric: str | Metric) -> str:
    return metric if isinstance(metric, str) else str(getattr(metric, "__name__", metric))


# ---- the usual case: logits of one column on a CPU -------------------------------------------------------------------------------------


def _is_column(input: Tensor, target: Tensor, weight: Tensor | None) -> bool:
    """Whether :class:`_Column` can do it; what must be refused is left to those who say why."""
    shape = input.shape
    return (
        shape == target.shape
        and (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1))
        and shape[0] > 0
        and input.is_cpu
        and input.dtype in AUTO
        and not target.requires_grad
        and (weight is None or (weight.shape == shape[:1] and not weight.requires_grad))
        and not torch._C._are_functorch_transforms_active()
    )


class _Column(torch.autograd.Function):
    """Loss and gradient in one go.

    On a CPU the dozen operations on scalars between TP and the loss, and their twins on the way back, take longer than all operations on
    4,096 rows. Here the sums become numbers, and the derivatives by TP and FP are taken with a complex step.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor, weight: Tensor | None, o: _Options) -> Tensor:
        ctx.options = o
        ctx.save_for_backward(input, target, weight)
        y = target.reshape(-1)
        if y.dtype != input.dtype:
            y = y.to(input.dtype)
        pos = y.sum().item()
        # Only 0 and 1 are their own squares, and infinity, which the sum shows.
        if not (torch.equal(y * y, y) and pos < LARGEST) or weight is not None:
            _check_values(input, target, y, weight, False, o)
        L = _slope(input, o)
        p = input.reshape(-1).sigmoid()
        h = _amplify(p, L)
        if weight is None:
            tp = y.dot(h).item()
            fp, neg = max(h.sum().item() - tp, 0.0), len(y) - pos
        else:
            w = weight.to(input.dtype)
            wy = w * y
            wn = w - wy
            tp, fp, pos, neg = wy.dot(h).item(), wn.dot(h).item(), wy.sum().item(), wn.sum().item()
        if o.metric in NEED_BOTH_CLASSES and not pos * neg > 0:
            if o.on_empty == "raise":
                _refuse(o)
            ctx.gradient = torch.zeros_like(input)
            return input.new_zeros(())
        loss = METRICS[str(o.metric)]
        by_tp, by_fp = loss(complex(tp, STEP), fp, pos, neg, o), loss(tp, complex(fp, STEP), pos, neg, o)
        up, down = L * by_tp.imag / STEP, L * by_fp.imag / STEP
        gradient = torch.rsub(y, down, alpha=down - up)  # y up + (1 - y) down
        if weight is not None:
            gradient.mul_(w)
        ctx.gradient = _sigmoid_backward(_sigmoid_backward(gradient, h), p).reshape(input.shape)
        return input.new_full((), by_tp.real)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        if not torch.is_grad_enabled():
            return ctx.gradient * grad, None, None, None
        # create_graph=True: the gradient is going to be differentiated.
        input, target, weight = ctx.saved_tensors
        scores, y, w = _read(input, target, weight, False, ctx.options)
        tp, fp, pos, neg = _sums(_decided(scores.sigmoid(), ctx.options), y, w)
        (gradient,) = torch.autograd.grad(_metric_loss(tp, fp, pos, neg, ctx.options), input, create_graph=True)
        return gradient * grad, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        slope: Tensor = ctx.gradient
        return (slope * tangent).sum()


# ---- from inputs and targets to sums -----------------------------------------------------------------------------------------------------


def _amplify(p: Tensor, L: float) -> Tensor:
    if torch.compiler.is_compiling():  # which traces through a cache, with a warning
        return torch.rsub(p, -L / 2, alpha=-L).sigmoid()
    return torch.add(_constant(-L / 2, p.dtype, p.device), p, alpha=L).sigmoid()  # in one pass; a Python number costs as much again


@lru_cache(maxsize=64)
def _constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(value, dtype=dtype, device=device)


def _slope(p: Tensor, o: _Options) -> float:
    """L as a number; 1 without amplification."""
    if isinstance(o.amplification, str):
        return AUTO.get(p.dtype, 32.0)
    return 1.0 if o.amplification is None else o.amplification


def _decided(p: Tensor, o: _Options) -> Tensor:
    return p if o.amplification is None else _amplify(p, _slope(p, o))


def _probabilities(scores: Tensor, classes: bool, o: _Options) -> Tensor:
    if not o.from_logits:
        return scores
    return scores.softmax(dim=1) if classes else scores.sigmoid()


def _sums(h: Tensor, y: Tensor, w: Tensor | None) -> tuple[Tensor, ...]:
    """TP, FP, P, N: scalars for one column, else (K,). Sums of terms >= 0, so nothing cancels."""
    yes, no = _weighted(y, w)
    if h.ndim == 1:
        return yes.dot(h), no.dot(h), yes.sum(), no.sum()
    return (yes * h).sum(0), (no * h).sum(0), yes.sum(0), no.sum(0)


def _weighted(y: Tensor, w: Tensor | None) -> tuple[Tensor, Tensor]:
    if w is None:
        return y, 1 - y
    w = w if y.ndim == 1 else w[:, None]
    return w * y, w * (1 - y)


def _cross_entropy(scores: Tensor, y: Tensor, w: Tensor | None, classes: bool, o: _Options) -> Tensor:
    """Sum over the rows, with their weights; of labels the mean is taken first."""
    yes, no = _weighted(y, w)
    if classes:
        log_p = scores.log_softmax(dim=1) if o.from_logits else _log(scores)
        return -(yes * log_p.masked_fill(yes == 0, 0)).sum()  # where nothing counts, log p may be infinite
    if o.from_logits:
        total = -(yes * F.logsigmoid(scores) + no * F.logsigmoid(-scores)).sum()
    else:
        total = -(yes * _log(scores) + no * _log(1 - scores)).sum()
    return total if scores.ndim == 1 else total / scores.shape[1]


def _check_shapes(input: Tensor, target: Tensor, weight: Tensor | None, classes: bool) -> None:
    shape, rows = input.shape, input.shape[:1]
    if not input.is_floating_point():
        bad_input("input", f"a tensor of {input.dtype}", "floating-point logits or probabilities")
    if len(shape) not in (1, 2) or 0 in shape:
        hint = "A batch without rows has no confusion matrix." if 0 in shape else ""
        bad_input("input", f"shape {tuple(shape)}", "shape (B,), (B, 1) or (B, K) with B > 0", hint)
    if target.shape != (rows if classes else shape):
        found, expected = f"shapes {tuple(shape)} and {tuple(target.shape)}", "(B, K) and classes (B,)" if classes else "the same shape"
        bad_input("input and target", found, expected, "multiclass=None takes labels of shape (B, K)." if classes else "")
    if classes and (target.is_floating_point() or target.dtype == torch.bool):
        bad_input("target", f"a tensor of {target.dtype}", "integer classes 0..K-1")
    if weight is not None and weight.shape != rows:
        bad_input("weight", f"shape {tuple(weight.shape)}", f"one weight per row, shape ({shape[0]},)")


def _read(input: Tensor, target: Tensor, weight: Tensor | None, classes: bool, o: _Options) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scores and y of the same shape, (B,) or (B, K), and w (B,), in the dtype of the computation, after all checks."""
    _check_shapes(input, target, weight, classes)
    scores = single(input)
    if classes:
        y = (target[:, None] == torch.arange(input.shape[1], device=target.device)).to(scores.dtype)
    else:
        if input.ndim == 2 and input.shape[1] == 1:
            scores, target = scores.reshape(-1), target.reshape(-1)
        y = target.to(scores.dtype)
    if not torch.compiler.is_compiling():
        _check_values(scores, target, y, weight, classes, o)
    return scores, y, None if weight is None else weight.to(scores.dtype)


def _check_values(scores: Tensor, target: Tensor, y: Tensor, weight: Tensor | None, classes: bool, o: _Options) -> None:
    if classes:
        if _outside(target, 0, y.shape[1] - 1):
            bad_input("target", _first(target, (target < 0) | (target >= y.shape[1])), f"classes 0..{y.shape[1] - 1}")
    elif o.soft_targets:
        if _outside(y, 0, 1):
            bad_input("target", _first(y, ~((y >= 0) & (y <= 1))), "values in [0, 1]")
    elif not _are_labels(y):
        bad_input("target", _first(y, (y != 0) & (y != 1)), "0 or 1", "soft_targets=True takes what lies between.")
    if weight is not None and _outside(weight.to(y.dtype), 0, LARGEST):
        bad_input("weight", "a negative or infinite weight", "finite weights >= 0")
    if o.check_finite and not bool(scores.isfinite().all()):
        bad_input("input", f"{int((~scores.isfinite()).sum())} values that are not finite", "finite numbers")
    if not o.from_logits and _outside(scores, 0, 1):
        bad_input("input", "values outside [0, 1]", "probabilities", "For logits leave from_logits=True.")


def _are_labels(y: Tensor) -> bool:
    """Whether all are 0 or 1, the only numbers with y^2 = min(y, 1)."""
    return torch.equal(y * y, y.clamp(max=1))


def _outside(x: Tensor, low: float, high: float) -> bool:
    """Whether any value is not in [low, high]; NaN is not."""
    least, most = x.detach().aminmax()
    return not (low <= least.item() and most.item() <= high)


def _first(x: Tensor, wrong: Tensor) -> float:
    return x[wrong].flatten()[0].item()
