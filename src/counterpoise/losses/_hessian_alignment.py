r"""Hessian alignment (Hemati, Zhang, Estiri, Chen 2023, arXiv:2308.11778): the head's gradients and Hessians agree across domains.

What is unbalanced: a shortcut that is stronger in one training domain than in another (a scanner, a background, a color) gives each domain
a loss surface of its own; the mean loss takes the shortcut. With :math:`g_e` and :math:`H_e`, gradient and Hessian of domain e's mean
cross-entropy :math:`L_e` with respect to the classifier head, and :math:`\bar g, \bar H` those of the mean over domains,

.. math::
    L = \frac{1}{E} \sum_e L_e + \frac{1}{E} \sum_e \left[ \alpha \lVert h_e - \bar h \rVert^2 + \beta \lVert g_e - \bar g \rVert^2 \right],
    \qquad h_e = H_e g_e \text{ ("hgp") or } \text{diag} H_e \text{ ("diagonal"; "hutchinson" estimates it)} .

The paper bounds how badly a model transfers by the spectral norm of Hessian differences. What is aligned here is less: one product, or the
diagonal, and to the mean.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from counterpoise._dist import world_size
from counterpoise._errors import InputError, bad_input, check_choice, check_range

from ._anyloss import _over_processes
from ._head_curvature import AnyHead, Curvature, LinearHead, Rows, arrange, check_finite, check_rows, curvature_of, is_linear

__all__ = ["HessianAlignmentLoss", "HessianAlignmentTerms"]

PROBE_NUMBERS = 2**24  # of the products with several probes that are computed at once


@dataclass(frozen=True, eq=False)
class HessianAlignmentTerms:
    """What the last batch was charged for, without gradients: ``HessianAlignmentLoss.last``.

    Attributes
    ----------
    nll : Tensor, scalar
        Mean over domains of their mean cross-entropies.
    gradient_gap, hessian_gap : Tensor, scalars
        Mean over domains of :math:`\\|g_e - \\bar g\\|^2` and :math:`\\|h_e - \\bar h\\|^2`, before alpha and beta.
    per_domain : Tensor, shape (E, 3)
        The three of each domain.
    domains : tuple
        The E domains of the batch, in this order.
    """

    nll: Tensor
    gradient_gap: Tensor
    hessian_gap: Tensor
    per_domain: Tensor
    domains: tuple[Hashable, ...]


class _HeadTypeError(InputError, TypeError):
    """A head that the method cannot work with."""


class HessianAlignmentLoss(nn.Module):
    r"""Cross-entropy, and a penalty for domains whose gradient or Hessian at the head differs from the mean.

    .. math:: L = \frac{1}{E} \sum_e \left[ L_e + w \left( \alpha \lVert h_e - \bar h \rVert^2 + \beta \lVert g_e - \bar g \rVert^2 \right)
        \right] \Big/ \max(w, 1)

    Domains count alike, however many rows they have in the batch; only those in the batch count. For a linear head everything has a closed
    form, differentiated by one ordinary backward. The penalty reaches the layers below through the features.

    Parameters
    ----------
    head : torch.nn.Linear, or any module from features to logits (B, C)
        The model's own classifier head, called by nobody else in this step. One output is a binary head (sigmoid). For other modules
        than ``nn.Linear`` the loss is differentiated twice. The head stays the model's: its parameters are in the optimizer already.
    method : {"hgp", "diagonal", "hutchinson"}, default "hgp"
        What :math:`h_e` is: the product :math:`H_e g_e`; the exact diagonal (``nn.Linear`` only); its estimate :math:`\text{mean}_r
        \, r \circ H_e r` from random signs r, the same for all domains.
    alpha : float >= 0, default 1e-4 (the authors' code for HGP; 1e-3 for Hutchinson)
        Weight of the Hessian term. The two methods measure different things: an alpha of one says nothing about the other.
    beta : float >= 0, default 5e-3 (the authors' code)
        Weight of the gradient term.
    detach_mean : bool, default True
        Whether no gradient flows through the means (as in the authors' DomainBed code; not in their colored digits). Values are the same,
        and so are gradients, except in ``method="hgp"``: elsewhere the mean is the mean of what is compared with it.
    reduction : {"mean", "sum", "none"}, default "mean"
        Over domains. "none" gives (E,), in the order of ``last.domains``.
    anneal : (int >= 0, float >= 0), default (0, 1.0)
        (k, w): the penalty counts once in the first k calls in training mode, and w times from then on; the loss is then divided by w if
        that is above 1, so that its size does not jump. The default changes nothing. The authors' colored digits have (190, 91257).
    n_probes : int >= 1, default 300 (the authors' code; 150 in their colored digits)
        Random vectors of ``method="hutchinson"``.
    generator : torch.Generator, optional
        Asked for one number per call with ``method="hutchinson"``. Default: one of its own with seed 0.
    sync : bool, default True
        Where torch.distributed is in use, take the means over the rows of all processes (one exchange of :math:`E` head-sized tensors,
        two for "hgp"): every process has the loss of the whole batch, and the gradients, averaged over processes as
        DistributedDataParallel does, are those of the whole batch. All processes have to call. False: each has a loss of its own, whose
        gaps are too large, since small domains are noisy.
    process_group : torch.distributed.ProcessGroup, optional
        The processes of ``sync``; by default all.

    Attributes
    ----------
    last : HessianAlignmentTerms or None
        The parts of the last loss.
    calls : Tensor
        Calls in training mode so far, a buffer.

    Shapes
    ------
    ``forward(features, target, domain)``: features (B, D), the input of the head; target (B,) integer classes 0..C-1 (0 and 1 for one
    output, of any type); domain (B,) integers, or a list of labels of any type, for each row. Output: a scalar, or (E,). Half precision is
    computed, and the loss returned, in float32, also under autocast.

    Raises
    ------
    InputError
        If shapes do not match, there is no row, a target is not a class, the loss of a domain is not finite, or a parameter is out of its
        range; also a TypeError if ``method="diagonal"`` and the head is not ``nn.Linear``. (Values are looked at in ``torch.compile`` as
        well, except whether the loss is finite: the number of domains breaks the graph once.)

    Warns
    -----
    UserWarning
        Once, if a batch has one domain, which leaves nothing to align, or features without a gradient, so that only the head is aligned.

    Examples
    --------
    >>> head = nn.Linear(2, 2)
    >>> _ = head.load_state_dict({"weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "bias": torch.zeros(2)})
    >>> features = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 1.0], [1.0, 2.0]], requires_grad=True)
    >>> loss = HessianAlignmentLoss(head, alpha=0.1, beta=1.0)
    >>> loss(features, torch.tensor([0, 1, 0, 1]), domain=["clinic", "clinic", "screening", "screening"])
    tensor(0.2204, grad_fn=<MeanBackward0>)
    >>> loss.last.domains, loss.last.per_domain[:, 0]  # the cross-entropy of each
    (('clinic', 'screening'), tensor([0.1269, 0.3133]))
    """

    calls: Tensor

    def __init__(
        self,
        head: nn.Module,
        method: Literal["hgp", "diagonal", "hutchinson"] = "hgp",
        alpha: float = 1e-4,
        beta: float = 5e-3,
        detach_mean: bool = True,
        reduction: Literal["mean", "sum", "none"] = "mean",
        anneal: tuple[int, float] = (0, 1.0),
        n_probes: int = 300,
        generator: torch.Generator | None = None,
        *,
        sync: bool = True,
        process_group: Any = None,
    ) -> None:
        super().__init__()
        if not isinstance(head, nn.Module):
            bad_input("head", type(head).__name__, "the model's head, a torch.nn.Module", "For nn.Linear everything has a closed form.")
        check_choice("method", method, ("hgp", "diagonal", "hutchinson"))
        _check_head(head, method)
        check_range("alpha", alpha, low=0)
        check_range("beta", beta, low=0)
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        if not isinstance(anneal, tuple | list) or len(anneal) != 2:
            bad_input("anneal", anneal, "(calls, weight), such as (190, 1e4)")
        check_range("anneal[0]", anneal[0], low=0, integer=True)
        check_range("anneal[1]", anneal[1], low=0)
        check_range("n_probes", n_probes, low=1, integer=True)
        self.head = head
        self.method, self.alpha, self.beta = method, float(alpha), float(beta)
        self.detach_mean, self.reduction = detach_mean, reduction
        self.anneal = (int(anneal[0]), float(anneal[1]))
        self.n_probes = n_probes
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.sync, self.process_group = sync, process_group
        self.last: HessianAlignmentTerms | None = None
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self._warned: set[str] = set()

    def forward(self, features: Tensor, target: Tensor, domain: Any) -> Tensor:
        rows = self._prepare(features, target, domain)
        gaps = self._gaps if is_linear(self.head) else self._gaps_uncompiled
        nll, gradient, hessian = gaps(features, target, rows)
        if not torch.compiler.is_compiling():
            check_finite(nll, rows)
        penalty = self.alpha * hessian + self.beta * gradient
        weight = self._weight(nll)
        each = nll + penalty if weight is None else (nll + weight * penalty) / weight.clamp(min=1)
        parts = torch.stack([nll, gradient, hessian], dim=1).detach()
        mean = parts.mean(dim=0)
        self.last = HessianAlignmentTerms(mean[0], mean[1], mean[2], parts, rows.labels)
        if not torch.is_grad_enabled():
            each = each.detach()
        if self.reduction == "none":
            return each
        return each.sum() if self.reduction == "sum" else each.mean()

    def extra_repr(self) -> str:
        anneal = "" if self.anneal[1] == 1 else f", anneal=({self.anneal[0]}, {self.anneal[1]:g})"
        probes = f", n_probes={self.n_probes}" if self.method == "hutchinson" else ""
        return (
            f"method={self.method!r}, alpha={self.alpha:g}, beta={self.beta:g}, detach_mean={self.detach_mean}, "
            f"reduction={self.reduction!r}{anneal}{probes}"
        )

    # ---- L_e, |g_e - gbar|^2 and |h_e - hbar|^2, each of shape (E,) ------------------------------------------------------------------

    def _gaps(self, features: Tensor, target: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(features.device.type, enabled=False):
            return self._gaps_of(curvature_of(self.head, features, target, rows), rows)

    # Compiled code cannot be differentiated twice.
    _gaps_uncompiled = _disable_dynamo(_gaps)  # torch.compiler.disable loads the compiler at once

    def _gaps_of(self, head: Curvature, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        g, nll = self._over_all(head.gradient(), head.nll)
        if len(rows.labels) == 1:
            zero = nll.new_zeros(1)
            return nll, zero, zero
        g_mean = self._fixed(g.mean(dim=0))
        if self.method == "hgp":
            h = head.times(g)
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_mean):
                h_mean = head.times(g_mean).mean(dim=0)  # Hbar gbar, not the mean of H_e g_e
            h, h_mean = self._over_all(h, h_mean)
        else:
            (h,) = self._over_all(self._diagonal(head, g))
            h_mean = self._fixed(h.mean(dim=0))
        return nll, _squares(g - g_mean), _squares(h - h_mean)

    def _diagonal(self, head: Curvature, like: Tensor) -> Tensor:
        """diag H_e, or the mean over random signs r of r * (H_e r); of the shape of the gradients."""
        if self.method == "diagonal" and isinstance(head, LinearHead):
            return head.diagonal()
        signs = self._signs(like)
        if isinstance(head, AnyHead):
            return torch.stack([r * head.times(r) for r in signs]).mean(dim=0)
        at_once = max(1, PROBE_NUMBERS // max(1, like.numel()))
        total = torch.zeros_like(like)
        for r in signs.split(at_once):  # type: ignore[no-untyped-call]
            total = total + torch.einsum("kcd,kecd->ecd", r, head.times(r[:, None]))
        return total / self.n_probes

    @_disable_dynamo
    def _signs(self, like: Tensor) -> Tensor:
        """(n_probes, ...) of -1 and 1, the same on all processes, for the parameters of one domain."""
        seed = torch.randint(2**31, (), generator=self.generator, device=self.generator.device)
        if self._processes() > 1:
            (seed,) = self._over_all(seed.to(like.device) * (torch.distributed.get_rank(self.process_group) == 0))
        source = torch.Generator(like.device).manual_seed(int(seed))
        return torch.randint(2, (self.n_probes, *like.shape[1:]), generator=source, device=like.device, dtype=like.dtype) * 2 - 1

    def _fixed(self, mean: Tensor) -> Tensor:
        return mean.detach() if self.detach_mean else mean

    def _over_all(self, *sums: Tensor) -> tuple[Tensor, ...]:
        """Added up over processes, in one exchange."""
        return _over_processes(sums, self.process_group) if self._processes() > 1 else sums

    def _processes(self) -> int:
        return world_size(self.process_group) if self.sync else 1

    def _weight(self, like: Tensor) -> Tensor | None:
        """How many times the penalty counts in this call, which is counted; None for always once."""
        k, w = self.anneal
        weight = None if w == 1 else torch.where(self.calls < k, like.new_ones(()), like.new_full((), w))
        if self.training:
            self.calls.add_(1)
        return weight

    # ---- before the computation --------------------------------------------------------------------------------------------------------

    @_disable_dynamo
    def _prepare(self, features: Tensor, target: Tensor, domain: Any) -> Rows:
        """Checks, and the place of every row. Not compiled: what follows depends on the number of domains."""
        _check_head(self.head, self.method)
        check_rows(self.head, features, target)
        rows = arrange(domain, len(features), features.device, sync=self.sync, group=self.process_group)
        if not rows.labels:
            bad_input("features", f"shape {tuple(features.shape)}", "an input with at least one row")
        if len(rows.labels) == 1:
            self._warn("one domain", f"The batch has one domain, {rows.labels[0]!r}: there is nothing to align, and the penalty is 0.")
        if self.training and torch.is_grad_enabled() and not features.requires_grad and len(features):
            self._warn(
                "no gradient", "The features have no gradient, so only the head is aligned; pass what the model computes, not detached."
            )
        return rows

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, stacklevel=8)  # the line that called this module


def _squares(x: Tensor) -> Tensor:
    """Squared length of each row, (E,)."""
    return x.flatten(1).square().sum(dim=1)


def _check_head(head: nn.Module, method: str) -> None:
    if method == "diagonal" and not is_linear(head):
        raise _HeadTypeError(
            f"head: got {type(head).__name__}; expected torch.nn.Linear for method='diagonal'. Other heads take 'hgp' or 'hutchinson'."
        )
