r"""SAM-GS (Borsani, Rosani, Nicosia and Di Fatta 2025, arXiv:2506.06130): gradients of very different length are made equal, others follow
their momentum.

What is unbalanced: one task's gradient is much longer than the others', so their sum is that task's step. Whether the gradients point
against each other is not looked at. With the gradients :math:`g_1, \dots, g_K` of K tasks,

.. math::
    \psi_{ij} = \frac{2 |g_i| |g_j|}{|g_i|^2 + |g_j|^2} \in (0, 1], \qquad \Psi = \text{mean of } \psi_{ij} \text{ over the pairs } i < j,

    m_k \leftarrow \beta_1 m_k + (1 - \beta_1) g_k, \qquad h \leftarrow \beta_2 h + (1 - \beta_2) (1 - \Psi)^2 + \epsilon,

and with :math:`\hat m_k = m_k / (1 - \beta_1^t)`, :math:`\hat h = h / (1 - \beta_2^t)` after t steps

.. math::
    d = \begin{cases}
        \bar n \sum_k g_k / |g_k|, \quad \bar n = \text{mean}_k |g_k| & \Psi < \gamma \quad \text{(equalize)} \\
        \sum_k g_k \, |\hat m_k| / \sqrt{\hat h} \quad \text{coordinate by coordinate} & \text{else (momentum)}
    \end{cases}

The first is a weighting of the rows, the second has to see them, and keeps as much again. It is of degree 2 in the gradients: multiply the
losses by c, and d is multiplied by :math:`c^2`. ``rescale="homogeneous"`` divides it by the mean of all :math:`|\hat m|`, which leaves c.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from counterpoise._errors import bad_input, check_choice, check_range
from counterpoise._order_statistics import AT_ONCE, CACHED
from counterpoise._precision import single

from ._aggregator import Aggregator
from ._coefficients import FLOOR
from ._statistics import GradientStatistics

__all__ = ["SAMGS", "pairs_of", "similarity_of_norms"]

EQUALIZE, MOMENTUM = "equalize", "momentum"
NO_GRADIENT, ONE_TASK = "no gradient", "one task"  # what self.last["branch"] says where there is nothing to decide


class SAMGS(Aggregator):
    r"""Similarity-aware momentum gradient surgery, for tasks whose gradients differ in length.

    **Clip the result**, to norm 1 as the authors do::

        gradient = aggregator(rows)  # then, with the gradient in .grad,
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)

    Where all gradients are about equally long, :math:`\sqrt{\hat h}` goes down to :math:`\sqrt{\epsilon / (1 - \beta_2)} = 10^{-3}`, and d
    becomes up to 1000 times as long as a gradient. Clipping is part of the method.

    **The authors' code multiplies d by K before it clips.** What is returned here is d, without that factor and not clipped. Once the clip
    is active, nothing is left of the factor. The momentum of an optimizer comes on top of the method's own.

    Parameters
    ----------
    beta1 : float in [0, 1), default 0.9 (paper)
        Decay of the averages :math:`m_k` of the gradients. They move in both branches.
    beta2 : float in [0, 1), default 0.99 (paper)
        Decay of the average h of dissimilarity; the paper tunes it to 0.9 or 0.99.
    gamma : float in [0, 1], default 0.1 (algorithm of the paper)
        Similarity below which gradients are equalized. *All image benchmarks of the paper use 0.9.* 0 never equalizes. 1 always does: that
        is a weighting of the rows, indifferent to the scale of each single loss, for which no averages are kept, and which needs no more
        than the Gramian (with ``scope="global"``), so that every strategy of :func:`~counterpoise.gradients.backward` will do.
    similarity : {"mean", "min"}, default "mean"
        :math:`\Psi`: mean over the pairs of tasks, as the authors' code computes it, or the smallest, the paper's variant for reinforcement
        learning (whose code lets the smallest decide on the branch and h follow the mean; here both follow the smallest). The mean over
        all i, j that the paper prints has 1 for i = j, hence is at least 1/K and never below 0.1 for K <= 10.
    rescale : {"homogeneous", "published"}, default "homogeneous"
        "published" is the momentum branch as above, whose length goes with the square of the losses: plain SGD explodes or stands still
        with the unit of the loss (Adam hides that). "homogeneous", ours, divides it by the mean of :math:`|\hat m|` over all tasks and
        coordinates, so that d goes with the losses. Scaling *one* loss changes d in either case, unless gradients are equalized.
    scope : {"global", "layer"}, default "global"
        Lengths, similarity and h of whole gradients, or of each parameter tensor on its own.
    ema_dtype : torch.dtype, optional
        Of the averages :math:`m_k`, such as ``torch.bfloat16`` for half the memory: changes below 1/256 of an average are then lost.
        Default: the dtype of the rows, float32 for rows of half precision.
    eps : float > 0, default 1e-8 (code of the authors)
        Is added to h in *every* step, so that h is at least about :math:`\epsilon / (1 - \beta_2)`.

    Shapes
    ------
    ``forward(jacobian)``: (m, n) or a dict of (m, \*shape) tensors, m tasks. Memory beyond the rows: (m, n) for the averages (none with
    ``gamma=1``).

    Attributes
    ----------
    last : dict
        ``psi``; ``branch``, "equalize" or "momentum"; ``equalize_share``, the share of the steps so far that were equalized. With
        ``scope="layer"``, tuples with one value per parameter. A method that nearly always equalizes is better written ``gamma=1``.
    h, step, equalized, ema_0, ema_1, ... : buffers
        The state after the first step: h, the number of steps, how many of them were equalized, :math:`m` (m, n_p) of each parameter. With
        ``scope="layer"``, ``h_0``, ``step_0``, ``equalized_0``, ...

    Raises
    ------
    InputError
        If a parameter is out of its range, a row is not finite, or there are other tasks or parameters than at the step before
        (:meth:`reset` forgets them). The state has not moved then.

    Notes
    -----
    A task without a gradient (or one 1e12 times shorter than the longest) has :math:`\psi = 0` with all others and takes no part in the
    equalization. If no task has a gradient, the result is zero and the state stays as it is. One task alone comes back as it is.
    :math:`|\hat m|` forgets the sign of the average: a task whose gradient has turned round keeps its large weight.

    Examples
    --------
    >>> rows = torch.tensor([[3.0, 0.0], [0.0, 100.0]])
    >>> aggregator = SAMGS(gamma=0.9)
    >>> aggregator(rows)  # equally long, and as long as the mean
    tensor([51.5000, 51.5000])
    >>> aggregator.last["branch"], round(aggregator.last["psi"], 3)
    ('equalize', 0.06)
    >>> SAMGS(gamma=0)(10 * rows) / SAMGS(gamma=0)(rows)
    tensor([10., 10.])
    """

    needs = frozenset({"rows", "gramian"})

    def __init__(
        self,
        beta1: float = 0.9,
        beta2: float = 0.99,
        gamma: float = 0.1,
        similarity: Literal["mean", "min"] = "mean",
        rescale: Literal["homogeneous", "published"] = "homogeneous",
        scope: Literal["global", "layer"] = "global",
        ema_dtype: torch.dtype | None = None,
        eps: float = 1e-8,
    ) -> None:
        super().__init__()
        for name, value in (("beta1", beta1), ("beta2", beta2)):
            check_range(name, value, low=0.0)
            if value >= 1:
                bad_input(name, value, "a number in [0, 1)", "1 never takes in a gradient.")
        check_range("gamma", gamma, low=0.0, high=1.0)
        check_choice("similarity", similarity, ("mean", "min"))
        check_choice("rescale", rescale, ("homogeneous", "published"))
        check_choice("scope", scope, ("global", "layer"))
        if ema_dtype is not None and not (isinstance(ema_dtype, torch.dtype) and ema_dtype.is_floating_point):
            bad_input("ema_dtype", ema_dtype, "a floating dtype such as torch.bfloat16, or None")
        check_range("eps", eps, low=0.0, open_low=True)
        self.beta1 = float(beta1)
        self.beta2 = float(beta2)
        self.gamma = float(gamma)
        self.similarity = similarity
        self.rescale = rescale
        self.scope = scope
        self.ema_dtype = ema_dtype
        self.eps = float(eps)
        if scope == "layer":
            self.needs = frozenset({"rows"})
        elif gamma == 1:
            self.needs = frozenset({"gramian"})
        self._branch: _Branch | None = None  # of this step, if all parameters share one
        self._size: Tensor | float = 0.0  # sum of |m| over the parameters so far

    # ---- once per step ------------------------------------------------------------------------------------------------------------------

    def weights(self, s: GradientStatistics) -> Tensor | None:
        self._check_unchanged(s)
        if len(s) == 1:
            self.last = {"psi": 1.0, "branch": ONE_TASK}
            return torch.ones(1, dtype=torch.float64, device=s.gramian.device)
        self._size = 0.0
        if self.scope == "layer":
            self.last = {"psi": (), "branch": (), "equalize_share": ()}
            return None
        norms = s.gramian.diagonal().clamp(min=0).sqrt()
        self._branch, self.last = self._advanced(norms, "")
        if self.gamma < 1:
            return None
        return torch.zeros_like(norms) if self._branch is None else self._branch.weights

    def _check_unchanged(self, s: GradientStatistics) -> None:
        """Before anything moves: the averages belong to these tasks and parameters."""
        for slot, shape in enumerate(s.shapes):
            self.kept(f"ema_{slot}", (len(s), shape.numel()))
        before = sum(name.startswith("ema_") for name in self._lazy)
        if before not in (0, len(s.shapes)):
            bad_input(
                "jacobian", f"{len(s.shapes)} parameters", f"the {before} of the steps before",
                "SAMGS remembers groups and parameters; after changing them, call reset().",
            )  # fmt: skip

    def _advanced(self, norms: Tensor, suffix: str) -> tuple[_Branch | None, dict[str, Any]]:
        """One step of h and its counters, given the lengths (m,) of the rows: the branch, and what there is to say about it.

        None where all rows are zero, which is no step.
        """
        norms = torch.where(norms > FLOOR * norms.max(), norms, 0.0)
        pairs = pairs_of(similarity_of_norms(norms))
        psi = pairs.mean() if self.similarity == "mean" else pairs.min()
        zero = norms.new_zeros(())
        state = [self.kept(name + suffix) for name in ("h", "step", "equalized")]
        known = [zero if one is None else one.to(norms) for one in state]
        # All numbers that decide at once, since each look at a GPU's memory waits for it.
        psi_now, longest, h, step, equalized = torch.stack([psi, norms.max(), *known]).tolist()
        if longest == 0:
            return None, {"psi": psi_now, "branch": NO_GRADIENT, "equalize_share": equalized / step if step else math.nan}
        # gamma = 1 equalizes equal lengths, too, for which psi = 1 up to rounding.
        equalize = psi_now < self.gamma or self.gamma == 1
        h = self.beta2 * h + (1 - self.beta2) * (1 - psi_now) ** 2 + self.eps
        step, equalized = int(step) + 1, int(equalized) + equalize
        for name, value in (("h", h), ("step", step), ("equalized", equalized)):
            self.keep(name + suffix, torch.tensor(value, dtype=torch.float64 if name == "h" else torch.int64, device=norms.device))
        said = {"psi": psi_now, "branch": EQUALIZE if equalize else MOMENTUM, "equalize_share": equalized / step}
        if equalize:
            present = norms > 0
            return _Branch(torch.where(present, norms.sum() / present.sum() / norms, 0.0)), said
        root = math.sqrt(h / (1 - self.beta2**step))
        if self.rescale == "published":
            return _Branch(None, gain=1 / (1 - self.beta1**step) / root), said
        return _Branch(None, gain=1 / root, unit=longest), said  # what divides m by its mean needs no bias correction

    # ---- once per parameter -------------------------------------------------------------------------------------------------------------

    def combine(self, rows: Tensor, slot: int, s: GradientStatistics) -> Tensor:
        with torch.no_grad():
            rows = rows.detach()
            branch = self._branch
            if self.scope == "layer":
                branch, said = self._advanced(_norms(rows), f"_{slot}")
                self.last = {name: (*values, said[name]) for name, values in self.last.items()}
                if self.gamma < 1:
                    self._average_of(rows, slot)  # also where there is no step: all parameters have one, or none has
            if branch is None:
                return rows.new_zeros(rows.shape[1])
            if branch.weights is not None:
                for part, g in _columns(self._average_of(rows, slot), rows) if self.gamma < 1 else ():
                    _move(part, g, 1 - self.beta1)
                return branch.weights.to(rows) @ rows
            combined, size = _modulated(self._average_of(rows, slot), rows, 1 - self.beta1, branch.unit)
            combined *= branch.gain
            if self.scope == "layer":
                return combined.mul_(self._over_mean(size, rows.numel()))
            self._size = self._size + size
            return combined

    def combine_all(self, rows: Iterable[Tensor], weights: Tensor | None, s: GradientStatistics) -> Iterator[Tensor]:
        if weights is not None or self.scope == "layer":
            yield from super().combine_all(rows, weights, s)
            return
        # The mean of |m| is known once all parameters have been seen; until then what is kept of them is one row, not m.
        combined = [self.combine(single(part), slot, s) for slot, part in enumerate(rows)]
        momentum = self._branch is not None and self._branch.weights is None
        factor = self._over_mean(self._size, len(s) * sum(map(len, combined))) if momentum else 1.0
        for slot in range(len(combined)):
            yield self.finish(combined[slot].mul_(factor), slot, s)

    def _over_mean(self, size: Tensor | float, entries: int) -> float:
        """What divides a sum of g |m| by the mean of |m|, of which ``size`` is the sum over the entries; 1 for ``published``."""
        if self.rescale == "published":
            return 1.0
        total = float(size)
        return entries / total if total > 0 else 0.0

    def _average_of(self, rows: Tensor, slot: int) -> Tensor:
        """m (m, n_p) of one parameter, where the rows are; zeros before the first step."""
        name = f"ema_{slot}"
        average = self.kept(name, rows.shape)
        if average is None:
            average = self.keep(name, torch.zeros_like(rows, dtype=self.ema_dtype or rows.dtype))
        elif average.device != rows.device:
            average = self.keep(name, average.to(rows.device))
        return average

    def extra_repr(self) -> str:
        shown = [f"beta1={self.beta1:g}, beta2={self.beta2:g}, gamma={self.gamma:g}"]
        shown += [f"{name}={getattr(self, name)!r}" for name in ("similarity", "rescale", "scope")]
        return ", ".join(shown + ([] if self.ema_dtype is None else [f"ema_dtype={self.ema_dtype}"]))


@dataclass(frozen=True)
class _Branch:
    """What a step does: weighs the rows, or multiplies them by ``gain`` times |m|, which is taken in units of ``unit``."""

    weights: Tensor | None  # (m,)
    gain: float = 1.0
    unit: float = 1.0  # a length of the order of the gradients: g |m| then neither overflows nor vanishes


def similarity_of_norms(norms: Tensor) -> Tensor:
    r"""Magnitude similarities :math:`2 a b / (a^2 + b^2)` of all pairs of lengths (m,), (m, m): 1 on the diagonal, 0 with a length of 0.

    >>> similarity_of_norms(torch.tensor([1.0, 3.0, 0.0]))
    tensor([[1.0000, 0.6000, 0.0000],
            [0.6000, 1.0000, 0.0000],
            [0.0000, 0.0000, 1.0000]])
    """
    a = norms / norms.max().clamp(min=torch.finfo(norms.dtype).tiny)
    squares = a[:, None] ** 2 + a**2
    return torch.where(squares > 0, 2 * a[:, None] * a / squares, 0.0).fill_diagonal_(1.0)


def pairs_of(similarity: Tensor) -> Tensor:
    """The entries of a symmetric matrix (m, m) above its diagonal, (m (m - 1) / 2,)."""
    i, j = torch.triu_indices(len(similarity), len(similarity), 1, device=similarity.device)
    return similarity[i, j]


# ---- passes over the rows, some columns at a time, so that what is in between stays in the cache -----------------------------------------


def _columns(average: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    width = max((CACHED if rows.device.type == "cpu" else AT_ONCE) // len(rows), 1)
    return zip(torch.split(average, width, dim=1), torch.split(rows, width, dim=1), strict=True)


def _norms(rows: Tensor) -> Tensor:
    """Lengths (m,) of the rows, in double precision."""
    squares = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for _, columns in _columns(rows, rows):
        squares += columns.double().square().sum(dim=1)
    return squares.sqrt()


def _move(average: Tensor, rows: Tensor, weight: float) -> Tensor:
    """Move the average towards the rows, in place; returned in the precision of the rows."""
    if average.dtype == rows.dtype:
        return average.lerp_(rows, weight)
    exact = average.to(rows.dtype).lerp_(rows, weight)
    average.copy_(exact)
    return exact


def _modulated(average: Tensor, rows: Tensor, weight: float, unit: float) -> tuple[Tensor, Tensor]:
    """Move the averages, in place; the sum over rows of g |m| / unit, (n_p,), and the sum of all |m| / unit, in double precision."""
    combined, start = rows.new_empty(rows.shape[1]), 0
    size = torch.zeros((), dtype=torch.float64, device=rows.device)
    for part, g in _columns(average, rows):
        m = _move(part, g, weight).abs()
        if unit != 1:
            m /= unit
        size += m.sum(dtype=torch.float64)
        end = start + m.shape[1]
        torch.sum(m.mul_(g), dim=0, out=combined[start:end])
        start = end
    return combined, size
