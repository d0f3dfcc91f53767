r"""ConR, a contrastive regularizer for regression with a skewed target (Keramati, Meng, Evans 2023, arXiv:2309.06651).

What is unbalanced: frequent targets dominate the gradient of a regression loss, so rare examples get the features, and then the
predictions, of frequent ones. ConR pushes features apart where predictions agree while targets do not, and pulls those of close targets
together. With unit features :math:`u_i = z_i / \|z_i\|`, targets y, predictions p, window w, temperature t and weights h:

.. math::
    S_{ij} = u_i^T u_j / t, \qquad P_i = \{j \neq i : |y_i - y_j| \le w\}, \qquad N_i = \{j : |y_i - y_j| > w, \; |p_i - p_j| \le w\}

.. math::
    \ell_i = -\frac{1}{|P_i|} \sum_{j \in P_i} \log \frac{e^{S_{ij}}}{\sum_{k \in P_i} e^{S_{ik}} + \sum_{k \in N_i} a_{ik} e^{S_{ik}}},
    \qquad a_{ij} = h_i \, e^{\epsilon |y_i - y_j|} .

With :math:`\log a` added to S where a pair is negative, the logarithm is that of a softmax; exp(S) itself, which overflows, is not needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from counterpoise._dist import all_gather_rows, gather_rows, world_size
from counterpoise._errors import bad_input, check_choice, check_range, described

__all__ = ["ConRLoss", "Distance", "distances", "unit_rows"]

Distance = Literal["l1", "l2", "angular"] | Callable[[Tensor, Tensor], Tensor]

NO_DIRECTION = 1e-12  # a row of features whose entries are all below has no direction
ONE_BLOCK = 8192  # anchors up to which all pairs are held at once
BLOCK = 1024  # anchors at a time above that
WIDE = 0.5  # share of the pairs within the window above which it hardly tells targets apart


class ConRLoss(nn.Module):
    r"""Push features apart where the predictions agree and the targets do not.

    A term beside the regression loss, :math:`L = L_{reg} + \beta L_{ConR}`, on the features before the regression head, best before a last
    ReLU, after which no cosine is negative (in our re-test it helped before it and not after it). Only anchors with
    both a positive and a negative count (notation at the top of the module); the mean runs over all n:

    .. math:: L_{ConR} = \frac{1}{n} \sum_i h_i \, \ell_i \, [P_i \neq \emptyset] \, [N_i \neq \emptyset]

    No gradient flows through predictions, targets and weights. :math:`\beta` does not carry over from one problem to another: search it on
    a log scale from 0.03. An untrained head predicts nearly the same everywhere, so all pairs with distant targets are negatives at first;
    ramp :math:`\beta` up if that disturbs the start.

    Parameters
    ----------
    window : float > 0
        w, in the unit of the targets: how close two targets (or predictions) are the same. The authors take 1 year for ages and 0.2 m for
        depth; :func:`fit_window` gives a first guess.
    temperature : float > 0, default 0.07 (the authors' code; its command line says 0.2 for AgeDB and is overruled)
        t.
    push_scale : float >= 0, default 0.01 (the authors' code for ages; 0.2 with ``push="linear"`` for depth)
        :math:`\epsilon`, per unit of the targets.
    push : {"exp", "linear"}, default "exp"
        How a negative weighs: "exp" as above (ages), or "linear" (depth), :math:`a_{ij} = \epsilon h_i |y_i - y_j|`, where the outer
        :math:`h_i` is left out as well.
    distance : {"l1", "l2", "angular"} or callable, default "l1"
        Of targets and of predictions with several columns: sum of absolute differences, Euclidean, or the angle between vectors in
        radians; a callable takes (m, k) and (n, k) and returns (m, n), as ``torch.cdist`` does.
    denominator : {"paper", "reference"}, default "paper"
        "reference" adds the constant :math:`n - |P_i|` to the denominator, as the authors' code does. It weakens the push as n grows.
    count_self : bool, default False
        Divide by :math:`|P_i| + 1`, as the authors' code for depth does.
    gather : bool, default False
        Where torch.distributed is in use, compare the anchors of this process with the rows of all processes, through which gradients
        flow; "mean" is then scaled so that the gradients that DDP averages are those of one large batch. All processes have to call.
    block_size : int, optional
        Anchors at a time; blocks are computed again in the backward pass, so that memory grows with ``block_size`` times n and not with n².
        Default: all at once up to 8192, then 1024.
    reduction : {"mean", "sum", "none"}, default "mean"

    Shapes
    ------
    features (n, d), or with more dimensions, which are flattened; targets and predictions (n,), (n, 1) or (n, k), both the same;
    sample_weight (n,) or (n, 1), optional, by default 1: such as those of :func:`lds_weights`. Average maps to one number per example
    first. n >= 2, over all processes with ``gather``. Output: a scalar; with ``reduction="none"`` (n,). Half precision is computed, and the
    loss returned, in float32.

    A row of features that is zero has no direction: its cosine with all rows is 0 and it gets no gradient. A prediction that is not finite
    agrees with none.

    Raises
    ------
    InputError
        If shapes do not match, there are fewer than two rows, a target is not finite, a weight is negative, or a parameter is out of its
        range. (Values are not looked at inside ``torch.compile``.)

    Warns
    -----
    UserWarning
        Once, when more than half of the pairs of a batch lie within the window.

    Examples
    --------
    >>> features = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
    >>> age, predicted = torch.tensor([20.0, 21.0, 60.0, 61.0]), torch.tensor([30.0, 31.0, 31.5, 50.0])
    >>> ConRLoss(window=1.0, temperature=0.2, reduction="none")(features, age, predicted)  # row 1 and 2 are predicted alike
    tensor([0.0000, 1.4556, 1.4556, 0.0000])
    """

    def __init__(
        self,
        window: float,
        temperature: float = 0.07,
        push_scale: float = 0.01,
        push: Literal["exp", "linear"] = "exp",
        distance: Distance = "l1",
        denominator: Literal["paper", "reference"] = "paper",
        count_self: bool = False,
        gather: bool = False,
        block_size: int | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__()
        check_range("window", window, low=0, open_low=True)
        check_range("temperature", temperature, low=0, open_low=True)
        check_range("push_scale", push_scale, low=0)
        check_choice("push", push, ("exp", "linear"))
        check_distance(distance)
        check_choice("denominator", denominator, ("paper", "reference"))
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        if block_size is not None:
            check_range("block_size", block_size, low=1, integer=True)
        self.window, self.temperature, self.push_scale = float(window), float(temperature), float(push_scale)
        self.push, self.distance, self.denominator = push, distance, denominator
        self.count_self, self.gather, self.block_size, self.reduction = count_self, gather, block_size, reduction
        self._warned = False

    def forward(self, features: Tensor, targets: Tensor, predictions: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        _check_shapes(features, targets, predictions, sample_weight)
        if self.distance == "angular" and (targets.ndim == 1 or targets.shape[1] == 1):
            bad_input("targets", f"shape {tuple(targets.shape)}", "vectors (n, k) with k >= 2 for distance='angular'")
        with torch.autocast(features.device.type, enabled=False):
            unit = unit_rows(features.flatten(1))
            weight = None if sample_weight is None else sample_weight.detach().reshape(-1).to(unit)
            rows = _Rows(unit, _columns(targets), _columns(predictions), weight)
            others, first, processes = self._others(rows)
            n, n_all = len(unit), len(others.unit)
            if n_all < 2:
                bad_input("features", f"{n_all} rows", "an input of at least two rows, which can be compared")
            if not torch.compiler.is_compiling():
                _check_values(others)
            losses, positives = self._losses(rows, others, first)
        if not self._warned and not torch.compiler.is_compiling():
            self._warn_if_wide(int(positives.sum()) / max(1, n * (n_all - 1)))
        if self.reduction == "none":
            return losses
        return losses.sum() if self.reduction == "sum" else losses.sum() * (processes / n_all)

    def extra_repr(self) -> str:
        kinds = f"push={self.push!r}, distance={self.distance!r}, denominator={self.denominator!r}, count_self={self.count_self}"
        numbers = f"window={self.window:g}, temperature={self.temperature:g}, push_scale={self.push_scale:g}"
        return f"{numbers}, {kinds}, gather={self.gather}, block_size={self.block_size}, reduction={self.reduction!r}"

    def _losses(self, rows: _Rows, others: _Rows, first: int) -> tuple[Tensor, Tensor]:
        """The loss of each anchor and its number of positives, both (n,)."""
        n = len(rows.unit)
        size = self.block_size or (n if n <= ONE_BLOCK else BLOCK)
        if n <= size:
            return self._block(rows, others, first)
        blocks = []
        for start in range(0, n, size):
            block = _Rows(*(None if part is None else part[start : start + size] for part in rows))  # type: ignore[arg-type]
            found = checkpoint(self._block, block, others, first + start, use_reentrant=False, preserve_rng_state=False)
            blocks.append(cast(tuple[Tensor, Tensor], found))
        losses, positives = zip(*blocks, strict=True)
        return torch.cat(losses), torch.cat(positives)

    def _block(self, rows: _Rows, others: _Rows, first: int) -> tuple[Tensor, Tensor]:
        """Anchors that are the rows ``first``, ``first + 1``, ... of the others."""
        similarity = (rows.unit / self.temperature) @ others.unit.T  # S
        apart = distances(rows.y, others.y, self.distance)
        positive = apart <= self.window
        negative = (distances(rows.p, others.p, self.distance) <= self.window) & ~positive
        itself = torch.arange(first, first + len(apart), device=apart.device)[:, None]
        positive.scatter_(1, itself, False)
        n_positive = positive.sum(dim=1)
        active = (n_positive > 0) & (negative.sum(dim=1) > 0)

        # log of the factor of each pair in the denominator: 0 for positives, log a for negatives, -inf for the others.
        log_push = apart.mul_(self.push_scale).to(similarity.dtype)
        log_push = log_push.log_() if self.push == "linear" else log_push
        log_push = log_push if rows.weight is None else log_push.add_(rows.weight.log()[:, None])
        log_factor = torch.where(positive, 0.0, torch.where(negative, log_push, float("-inf")))
        # The anchor itself is in no pair. Its place holds what else is in the denominator: the reference's constant, or in a row that does
        # not count a 1, since a logarithm of 0 would have the gradient NaN.
        if self.denominator == "reference":
            rest = (len(others.unit) - n_positive).to(similarity.dtype).log()
        else:
            rest = torch.where(active, float("-inf"), similarity.new_zeros(()))
        log_share = (similarity + log_factor).scatter(1, itself, rest[:, None]).log_softmax(dim=1)

        scale = active / (n_positive + int(self.count_self)).clamp(min=1).to(similarity.dtype)
        if self.push == "exp" and rows.weight is not None:
            scale = scale * rows.weight
        return -torch.where(positive, log_share, 0.0).sum(dim=1) * scale, n_positive

    def _others(self, rows: _Rows) -> tuple[_Rows, int, int]:
        """The rows of all processes, where those of this process begin among them, and the number of processes."""
        if not self.gather or world_size() == 1:
            return rows, 0, 1
        return _gathered(rows)

    def _warn_if_wide(self, share: float) -> None:
        if share > WIDE:
            self._warned = True
            warnings.warn(
                f"{share:.0%} of the pairs of this batch lie within window={self.window:g}, so it hardly tells targets apart. "
                "It is in the unit of the targets; fit_window(targets) gives a first guess.",
                stacklevel=5,  # the line that called this module
            )


class _Rows(NamedTuple):
    """Unit features (n, d), targets and predictions (n, k), weights (n,) or None for 1."""

    unit: Tensor
    y: Tensor
    p: Tensor
    weight: Tensor | None


def unit_rows(features: Tensor) -> Tensor:
    """Rows (n, d) divided by their length, in float32 at least; a row without direction becomes 0 and gets no gradient."""
    if features.itemsize < 4:
        features = features.float()
    # A constant factor changes neither the unit vector nor its gradient, and keeps squares from overflowing.
    largest = features.detach().abs().amax(dim=1, keepdim=True) if features.shape[1] else features.new_zeros(len(features), 1)
    lost = largest <= NO_DIRECTION
    scaled = features / largest.masked_fill(lost, float("inf"))  # a row without direction becomes 0, and so does its gradient
    length: Tensor = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / length.masked_fill(lost, 1.0)


def distances(a: Tensor, b: Tensor, distance: Distance = "l1") -> Tensor:
    """(m, n) between rows (m, k) and (n, k), new memory."""
    if callable(distance):
        return distance(a, b).clone()
    if distance == "angular":
        # From the chord, since the arccosine of numbers near 1 has half the digits.
        chord = _euclidean(F.normalize(a, dim=1), F.normalize(b, dim=1))
        return 2 * torch.asin((chord / 2).clamp_(max=1.0))
    if a.shape[1] == 1:
        return (a - b.T).abs_()
    return _euclidean(a, b) if distance == "l2" else torch.cdist(a, b, p=1.0)


def check_distance(distance: Distance) -> None:
    if not callable(distance):
        check_choice("distance", distance, ("l1", "l2", "angular"), "A callable such as torch.cdist will do as well.")


def _euclidean(a: Tensor, b: Tensor) -> Tensor:
    # The way by inner products loses the digits of small differences of large numbers.
    return torch.cdist(a, b, p=2.0, compute_mode="donot_use_mm_for_euclid_dist")


def _columns(values: Tensor) -> Tensor:
    """(n, k) without gradient, in a floating type that holds integers up to 2^53."""
    values = values.detach().reshape(len(values), -1)
    if not values.is_floating_point():
        return values.double()
    return values.float() if values.itemsize < 4 else values


@_disable_dynamo  # torch.compiler.disable loads the compiler at once
def _gathered(rows: _Rows) -> tuple[_Rows, int, int]:
    device = rows.unit.device
    unit, first = gather_rows(rows.unit)
    y, p = (all_gather_rows(part).to(device) for part in (rows.y, rows.p))
    weight = None if rows.weight is None else all_gather_rows(rows.weight).to(device)
    return _Rows(unit, y, p, weight), first, world_size()


# ---- before the computation -------------------------------------------------------------------------------------------------------------


def _check_shapes(features: Tensor, targets: Tensor, predictions: Tensor, sample_weight: Tensor | None) -> None:
    if not features.is_floating_point() or features.ndim < 2:
        bad_input("features", described(features), "floating-point features (n, d), or with more dimensions")
    n = len(features)
    if targets.ndim not in (1, 2) or len(targets) != n:
        bad_input(
            "targets", f"shape {tuple(targets.shape)} for {n} rows of features", "shape (n,), (n, 1) or (n, k)",
            "Average maps to one number per example.",
        )  # fmt: skip
    if predictions.shape != targets.shape:
        bad_input("predictions", f"shape {tuple(predictions.shape)} for targets {tuple(targets.shape)}", "the shape of the targets")
    if sample_weight is not None and tuple(sample_weight.shape) not in ((n,), (n, 1)):
        bad_input("sample_weight", f"shape {tuple(sample_weight.shape)} for {n} rows of features", "shape (n,) or (n, 1)")


def _check_values(rows: _Rows) -> None:
    """Of all processes, so that none is left waiting for one that refuses its rows."""
    if not bool(torch.isfinite(rows.y).all()):
        bad_input("targets", "nan or inf", "finite numbers", "Leave out rows whose target is missing.")
    if rows.weight is not None and not bool((fine := torch.isfinite(rows.weight) & (rows.weight >= 0)).all()):
        bad_input("sample_weight", rows.weight[~fine][0].item(), "finite weights >= 0", "lds_weights(targets) makes them.")
