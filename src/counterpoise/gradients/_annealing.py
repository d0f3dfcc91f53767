r"""Learning-rate annealing (Wang, Teng and Perdikaris 2021, arXiv:2001.04536, algorithm 2.1): weights of loss terms from gradient sizes.

What is unbalanced: in a composite loss :math:`L = L_r + \sum_i L_i`, such as the residual of a differential equation and its boundary data,
one term's gradient can be hundreds of times as large as another's, because every derivative of a network multiplies its gradient. The
network then solves the equation and forgets the boundary. Every few steps each other term gets a weight from the sizes of entries,

.. math::
    \hat\lambda_i = \frac{\max_\theta |\nabla_\theta L_r|}{\operatorname{mean}_\theta |\nabla_\theta (\lambda_i L_i)|}, \qquad
    \lambda_i \leftarrow (1 - \alpha) \lambda_i + \alpha \hat\lambda_i .

:math:`\lambda_i` stands in the denominator, in the published code though not in all of the paper's prose: at rest
:math:`\lambda_i = \sqrt{\max |g_r| / \operatorname{mean} |g_i|}`. Without it the rest would be at the ratio itself, and does not exist
where fitting a term makes its gradient small: a smaller gradient asks for a larger weight, which fits it better.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from counterpoise._errors import bad_input, check_choice, check_range, listing

from ._aggregator import Aggregator
from ._statistics import GradientStatistics

__all__ = ["GradientAnnealing", "annealed", "compared", "largest_and_mean"]

WEAK = 10.0  # a term this many times the size of the reference makes one wonder


class GradientAnnealing(Aggregator):
    r"""Weighs loss terms so that the gradient of each is seen beside that of the reference term, which keeps the weight 1.

    Parameters
    ----------
    reference : int >= 0 or str, default 0
        Position or name of the term that dominates, such as the residual of the equation. The others are raised to it: with a weak term as
        the reference nothing is cured, and the report says so.
    alpha : float in (0, 1], default 0.1
        Share of the new value in the moving average: the published code keeps 0.9 of the old one. (The first version of the paper prints
        0.9 with the same formula.) The paper reports little difference between 0.05 and 0.2.
    statistic : {"max_mean", "norm"}, default "max_mean"
        What is compared: the largest entry of the reference gradient with the mean entry of the others (the paper), or the lengths of both,
        :math:`\|g_r\| / \|g_i\|`: the authors' later rule, sum of all lengths over the own one, scaled so that the reference has 1.
    update_every : int >= 1, default 10
        Steps that :func:`~counterpoise.gradients.backward` goes on with the same weights (the paper's choice). A call of the aggregator, or
        of :meth:`weights`, is one update.
    self_normalized : bool, default True
        Whether :math:`\lambda_i` stands in the denominator, as in the published code. False is the prose of the paper: there weights can
        run away.
    max_weight : float > 0, default 1e6
        Larger weights are clipped to it; ``last["clipped"]`` names them, and a warning says so once.
    scope : {"weights", "all"}, default "weights"
        Parameters with at least two dimensions, as in the published code, or all. Where there are none with two, as in a Jacobian (m, n),
        all are taken. With ``statistic="norm"`` it is always all of them.
    eps : float in [0, 1), default 1e-12
        A gradient that is smaller than this share of the other counts as zero: the weight stays what it is. (Ours.)
    mean : {"tensors", "entries"}, default "tensors"
        The mean over parameter tensors of their means, as in the published code, or the mean over all entries, as in the paper. They differ
        where layers have different widths.

    Shapes
    ------
    Jacobian (m, n) or dict of (m, \*shape); m - 1 terms besides the reference. A single row is returned as it is. The weights (m,) lie in
    the buffer ``lambdas`` (double precision), once there was a step: for a phase with frozen weights, such as L-BFGS, use
    ``(aggregator.lambdas * torch.stack(losses)).sum()``.

    Raises
    ------
    InputError
        If ``reference`` is not the position of a row, a parameter is out of its range, or the number of terms changes (call ``reset()``).

    Warns
    -----
    UserWarning
        Once for each: a weight that was clipped; a term without a gradient in ``scope`` that has one elsewhere; statistics that are not
        finite, with which no weight is changed.

    Notes
    -----
    A term with no gradient, because it is met exactly, keeps its weight; so do all when the reference has none. Statistics are those of the
    batch before the step; the published code takes them after it. Under mixed precision they must be unscaled, as ``backward`` has them.

    Examples
    --------
    >>> aggregator = GradientAnnealing(alpha=0.5)
    >>> rows = torch.tensor([[8.0, -4.0], [0.1, 0.3]])  # max |g_r| = 8, mean |g_1| = 0.2
    >>> aggregator(rows)  # lambda_1: from 1 to 0.5 + 0.5 * 8 / 0.2
    tensor([10.0500,  2.1500])
    >>> for _ in range(30):
    ...     step = aggregator(rows)
    >>> aggregator.lambdas  # sqrt(8 / 0.2) in the end
    tensor([1.0000, 6.3246], dtype=torch.float64)
    """

    needs = frozenset({"rowstats"})

    def __init__(
        self,
        reference: int | str = 0,
        alpha: float = 0.1,
        statistic: Literal["max_mean", "norm"] = "max_mean",
        update_every: int = 10,
        self_normalized: bool = True,
        max_weight: float = 1e6,
        scope: Literal["weights", "all"] = "weights",
        eps: float = 1e-12,
        mean: Literal["tensors", "entries"] = "tensors",
    ) -> None:
        super().__init__()
        if not isinstance(reference, str):
            check_range("reference", reference, low=0, integer=True)
        check_range("alpha", alpha, low=0.0, high=1.0, open_low=True)
        check_choice("statistic", statistic, ("max_mean", "norm"))
        check_range("update_every", update_every, low=1, integer=True)
        check_range("max_weight", max_weight, low=0.0, open_low=True)
        check_choice("scope", scope, ("weights", "all"))
        check_range("eps", eps, low=0.0)
        if eps >= 1:
            bad_input("eps", eps, "a number below 1", "It is a share of the other gradient.")
        check_choice("mean", mean, ("tensors", "entries"))
        self.reference = reference if isinstance(reference, str) else int(reference)
        self.alpha = float(alpha)
        self.statistic = statistic
        self.update_every = int(update_every)
        self.self_normalized = bool(self_normalized)
        self.max_weight = float(max_weight)
        self.scope = scope
        self.eps = float(eps)
        self.mean = mean
        if statistic == "norm":
            self.needs = frozenset({"gramian"})
        self._warned: set[str] = set()

    def weights(self, s: GradientStatistics) -> Tensor:
        """The weights (m,) after one update of the moving average."""
        m = len(s)
        at = self._position(s)
        sizes = self._sizes(s, at)
        before = self.kept("lambdas", (m,))
        old = torch.ones(m, dtype=torch.float64, device=sizes.device) if before is None else before.to(sizes)
        if not bool(torch.isfinite(sizes).all()):
            self._warn(
                "finite", f"Sizes of gradients are not finite: {sizes.tolist()}; the weights stay as they are. Statistics that were not "
                f"computed are nan, too: GradientStatistics.from_rows(rows, needs={set(self.needs)}).",
            )  # fmt: skip
            self.last = {"lambdas": old.clone(), "kept": s.names, "clipped": ()}
            return old.clone()
        new, moved = annealed(
            old, sizes[at], sizes, reference=at, alpha=self.alpha,
            self_normalized=self.self_normalized, eps=self.eps,
        )  # fmt: skip
        clipped = new > self.max_weight
        clipped[at] = False
        new = torch.where(clipped, self.max_weight, new)
        self.keep("lambdas", new)
        self.last = {
            "lambdas": new.clone(), "kept": _names(s, ~moved, at), "clipped": _names(s, clipped, at), "notes": self._weak_reference(s, at),
        }  # fmt: skip
        self._report(s, sizes, at)
        return new.clone()

    def reset(self) -> None:
        super().reset()
        self._warned.clear()

    def extra_repr(self) -> str:
        return f"reference={self.reference!r}, alpha={self.alpha:g}, statistic={self.statistic!r}, update_every={self.update_every}"

    def _position(self, s: GradientStatistics) -> int:
        m = len(s)
        if isinstance(self.reference, str):
            if self.reference not in s.names:
                bad_input("reference", self.reference, f"the name of one of the terms, {listing(s.names)}")
            return s.names.index(self.reference)
        if self.reference >= m:
            bad_input("reference", self.reference, f"the position of one of the {m} terms, 0 to {m - 1}")
        return self.reference

    def _weak_reference(self, s: GradientStatistics, at: int) -> tuple[str, ...]:
        """Whether another term is the one that dominates."""
        size = s.gramian.diagonal().clamp(min=0).sqrt() if self.statistic == "norm" else largest_and_mean(s, self.scope, self.mean)[1]
        i = int(size.argmax())
        if size[at] == 0 or size[i] < WEAK * size[at]:
            return ()
        names = _known(s)
        ratio = float(size[i] / size[at])
        return (f"The gradient of {names[i]} is {ratio:.0f} times the size of that of the reference, {names[at]}: reference={names[i]!r}?",)

    def _sizes(self, s: GradientStatistics, at: int) -> Tensor:
        """What is compared, (m,): at the reference the size that stands above, elsewhere those that stand below."""
        if self.statistic == "norm":
            return s.gramian.diagonal().clamp(min=0).sqrt()
        largest, mean = largest_and_mean(s, self.scope, self.mean)
        mean[at] = largest[at]
        return mean

    def _report(self, s: GradientStatistics, sizes: Tensor, at: int) -> None:
        if self.last["clipped"]:
            self._warn(
                "clipped", f"Weights of {listing(self.last['clipped'])} reached max_weight={self.max_weight:g} and were clipped. A weight "
                "that runs away comes from a term that is nearly met, or from self_normalized=False.",
            )  # fmt: skip
        if "rowstats" not in self.needs:
            return
        elsewhere = _names(s, (sizes == 0) & (s.abs_max.amax(dim=1) > 0), at)
        if elsewhere:
            self._warn(
                "scope", f"{listing(elsewhere)}: no gradient in the parameters that are compared (scope={self.scope!r}), only in others; "
                'such a weight stays. scope="all" compares all parameters.',
            )  # fmt: skip

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, stacklevel=3)


def annealed(
    old: Tensor, above: Tensor, below: Tensor, *, reference: int = 0, alpha: float = 0.1, self_normalized: bool = True, eps: float = 1e-12
) -> tuple[Tensor, Tensor]:
    r"""(new weights, which of them moved), both (m,), from the old ones and the sizes of gradients.

    ``above`` is the size of the reference gradient, ``below`` (m,) those of the terms without their weights; the entry of the reference is
    not looked at, and its weight stays.

    >>> annealed(torch.tensor([1.0, 2.0]), torch.tensor(9.0), torch.tensor([0.0, 0.5]))  # 0.9 * 2 + 0.1 * 9 / (2 * 0.5)
    (tensor([1.0000, 2.7000]), tensor([False,  True]))
    """
    own = old * below if self_normalized else below
    moved = (own > eps * above) & (above > eps * own)
    moved[reference] = False
    target = above / torch.where(moved, own, 1.0)
    return torch.where(moved, (1 - alpha) * old + alpha * target, old), moved


def compared(shapes: Sequence[torch.Size], scope: str) -> list[int]:
    """Which parameters are compared: those of ``scope`` with at least one entry; all if no parameter has two dimensions.

    >>> compared([torch.Size([3, 2]), torch.Size([3]), torch.Size([0, 3])], "weights"), compared([torch.Size([7])], "weights")
    ([0], [0])
    """
    filled = [slot for slot, shape in enumerate(shapes) if shape.numel()]
    matrices = [slot for slot in filled if len(shapes[slot]) >= 2]
    return matrices if scope == "weights" and matrices else filled


def largest_and_mean(s: GradientStatistics, scope: str = "weights", mean: str = "tensors") -> tuple[Tensor, Tensor]:
    """Largest and mean absolute entry of every row, both (m,), over the parameters of ``scope``."""
    chosen = compared(s.shapes, scope)
    if not chosen:
        nothing = torch.zeros(len(s), dtype=s.abs_max.dtype, device=s.abs_max.device)
        return nothing, nothing.clone()
    if mean == "tensors":
        average = s.abs_mean[:, chosen].mean(dim=1)
    else:
        average = s.l1[:, chosen].sum(dim=1) / sum(s.shapes[slot].numel() for slot in chosen)
    return s.abs_max[:, chosen].amax(dim=1), average


def _names(s: GradientStatistics, which: Tensor, reference: int) -> tuple[str, ...]:
    """Names of the terms that ``which`` (m,) marks, without the reference."""
    return tuple(name for i, (name, marked) in enumerate(zip(_known(s), which.tolist(), strict=True)) if marked and i != reference)


def _known(s: GradientStatistics) -> tuple[str, ...]:
    """Names of all terms, or their positions."""
    return s.names or tuple(str(i) for i in range(len(s)))
