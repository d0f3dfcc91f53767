r"""Loss, gradient and Hessian of a classifier head, domain by domain: what :class:`HessianAlignmentLoss` aligns and diagnostics compare.

For domain e with the rows :math:`z_i`, :math:`\tilde z = [z, 1]`, a linear head :math:`\Theta = [W, b]`, :math:`p = \mathrm{softmax}(\Theta
\tilde z)` (for one output the sigmoid), a one-hot y, and a direction V of the shape of :math:`\Theta`:

.. math::
    g_e = \text{mean} \, (p - y) \tilde z^T, \qquad
    H_e V = \text{mean} \, [p \circ u - p \, (p^T u)] \tilde z^T \text{ with } u = V \tilde z, \qquad
    \text{diag} \, H_e = \text{mean} \, p (1 - p) (\tilde z \circ \tilde z)^T .

These are ordinary tensors of one forward pass, so one ordinary backward differentiates them. Any other head is differentiated twice.

Rows are laid out as a table (E, n) with empty places at the end of the smaller domains, so that there is one product of matrices for all
domains. Everything is a *sum over the rows of this process, each divided by the rows that its domain has in all of them*: adding up over
processes gives the means.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterpoise._dist import all_gather_objects, all_reduce_sum, world_size
from counterpoise._errors import bad_input
from counterpoise.groups import Groups

__all__ = ["AnyHead", "Curvature", "LinearHead", "Rows", "arrange", "check_finite", "check_rows", "curvature_of", "is_linear"]


# ---- which row belongs to which domain -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rows:
    """Where each row of a batch goes in a table (E, n) of its domains.

    Attributes:
        labels: of the E domains in the batch (of all processes), sorted.
        counts: (E,) rows of each domain, of all processes.
        slot: (B,) place of each row in the flattened table.
        sizes: rows of each domain in this process.
        weight: (E, n) 1 / count of the domain where there is a row, else 0.
    """

    labels: tuple[Hashable, ...]
    counts: Tensor
    slot: Tensor
    sizes: tuple[int, ...]
    weight: Tensor

    def table(self, values: Tensor) -> Tensor:
        """``values`` (B, ...) as (E, n, ...), zeros in empty places."""
        E, n = self.weight.shape
        return values.new_zeros(E * n, *values.shape[1:]).index_copy(0, self.slot, values).view(E, n, *values.shape[1:])

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """The rows of ``values`` (B, ...) of each domain."""
        return torch.split(values[self.slot.argsort()], list(self.sizes))


def arrange(domain: Any, n_rows: int, device: torch.device, *, sync: bool = False, group: Any = None) -> Rows:
    """The domains of ``n_rows`` rows: a tensor of integers or booleans, or labels of any type that :class:`Groups` takes."""
    labels, ids = _codes(domain, device)
    if ids.shape != (n_rows,):
        bad_input("domain", f"shape {tuple(ids.shape)}", f"one domain for each of the {n_rows} rows, shape ({n_rows},)")
    processes = world_size(group) if sync else 1
    if processes > 1:
        every = sorted(set().union(*all_gather_objects(labels, group)))
        place = {label: k for k, label in enumerate(every)}
        ids = torch.tensor([place[label] for label in labels], dtype=torch.int64, device=device)[ids]
        labels = tuple(every)
    own = torch.bincount(ids, minlength=len(labels))
    counts = all_reduce_sum(own, group) if processes > 1 else own
    sizes = tuple(own.tolist())
    n = max(sizes, default=0)
    order = ids.argsort(stable=True)
    slot = torch.empty_like(ids)
    slot[order] = torch.arange(n_rows, device=device) - (own.cumsum(0) - own)[ids[order]]
    slot += ids * n
    weight = torch.zeros(len(labels) * n, dtype=torch.float64, device="cpu" if device.type == "mps" else device)
    weight[slot] = 1 / counts[ids].to(weight.dtype)
    return Rows(labels, counts, slot, sizes, weight.view(len(labels), n))


def _codes(domain: Any, device: torch.device) -> tuple[tuple[Any, ...], Tensor]:
    """The labels that occur, sorted, and for each row which of them it has."""
    if isinstance(domain, Tensor):
        if domain.is_floating_point() or domain.is_complex():
            bad_input("domain", f"a tensor of {domain.dtype}", "integer ids, or a list of labels")
        if domain.ndim != 1:
            bad_input("domain", f"shape {tuple(domain.shape)}", "one domain per row, shape (B,)")
        labels, ids = torch.unique(domain.to(device), return_inverse=True)
        return tuple(labels.tolist()), ids
    groups = Groups.from_labels(domain, kind="domain")
    ids = groups.to_torch(device)
    if (groups.ids < 0).any():
        bad_input("domain", "a missing label (None or NaN)", "a domain for every row")
    return groups.names, ids


def check_rows(head: nn.Module, features: Any, target: Tensor) -> None:
    """Shapes, types, and classes; those of a head that is not linear are looked at once it has been called."""
    if not isinstance(features, Tensor) or not features.is_floating_point():
        found = f"a tensor of {features.dtype}" if isinstance(features, Tensor) else type(features).__name__
        bad_input("features", found, "a floating-point tensor")
    shape = tuple(features.shape)
    width, classes = (head.in_features, head.out_features) if isinstance(head, nn.Linear) else ("D", None)
    if not shape or (classes is not None and shape != (shape[0], width)):
        bad_input("features", f"shape {shape}", f"the input of the head, shape (B, {width})")
    if target.shape != shape[:1]:
        bad_input("target", f"shape {tuple(target.shape)}", f"one class for each of the {shape[0]} rows, shape ({shape[0]},)")
    if classes is not None:
        check_target(target, classes)


def check_target(target: Tensor, outputs: int) -> None:
    """Classes that a head with so many outputs has; 0 and 1 of any type for one output."""
    if outputs != 1 and (target.is_floating_point() or target.dtype == torch.bool):
        bad_input("target", f"a tensor of {target.dtype}", "integer classes 0..C-1")
    wrong = (target != 0) & (target != 1) if outputs == 1 else (target < 0) | (target >= outputs)
    if bool(wrong.any()):
        bad_input("target", target[wrong][0].item(), "0 or 1" if outputs == 1 else f"classes 0..{outputs - 1}")


def check_finite(nll: Tensor, rows: Rows) -> None:
    """Refuse NaN and infinite losses (E,), and say whose they are."""
    finite = torch.isfinite(nll.detach())
    if not bool(finite.all()):
        label = rows.labels[int((~finite).nonzero()[0, 0])]
        bad_input("features", f"logits of domain {label!r} that are NaN or infinite", "finite logits", "Look at that domain's inputs.")


# ---- curvature -----------------------------------------------------------------------------------------------------------------------


class LinearHead:
    """``nn.Linear``, from the closed forms. Shapes: gradients and directions (E, C, D + 1), or (E, C, D) for a head without bias.

    Attributes:
        nll: (E,) cross-entropy.
        n_classes: C, or 2 for one output.
    """

    def __init__(self, head: nn.Linear, features: Tensor, target: Tensor, rows: Rows) -> None:
        dtype = torch.promote_types(torch.promote_types(features.dtype, head.weight.dtype), torch.float32)
        theta, z = head.weight.to(dtype), rows.table(features.to(dtype))
        if head.bias is not None:
            theta, z = torch.cat([theta, head.bias.to(dtype)[:, None]], dim=1), F.pad(z, (0, 1), value=1.0)
        self._z, self._weight = z, rows.weight.to(dtype)[..., None]
        logits, y = z @ theta.T, rows.table(target)
        if head.out_features == 1:
            y = y[..., None].to(dtype)
            self._p = logits.sigmoid()
            self._residual = (self._p - y) * self._weight
            losses = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
        else:
            log_p = logits.log_softmax(dim=-1)
            self._p = log_p.exp()
            column = y[..., None]
            self._residual = self._p.scatter_add(-1, column, -torch.ones_like(column, dtype=dtype)) * self._weight
            losses = -log_p.gather(-1, column)
        self.nll = (losses * self._weight).sum(dim=(1, 2))
        self.n_classes = max(2, head.out_features)

    def gradient(self) -> Tensor:
        """g_e of every domain."""
        return self._residual.mT @ self._z

    def times(self, direction: Tensor) -> Tensor:
        """H_e V of every domain, for one direction each, (E, C, D + 1), or one for all, (C, D + 1); (K, 1, C, D + 1) are K for all."""
        u = self._p * (self._z @ direction.mT)
        return ((u - self._p * u.sum(dim=-1, keepdim=True)) * self._weight).mT @ self._z

    def diagonal(self) -> Tensor:
        """diag H_e of every domain."""
        return (self._p * (1 - self._p) * self._weight).mT @ self._z.square()

    def product(self, e: int, direction: Tensor) -> Tensor:
        """H_e V of one domain, with the direction and the result flat, (P,)."""
        z, p = self._z[e], self._p[e]
        u = p * (z @ direction.view(-1, z.shape[-1]).T)
        return (((u - p * u.sum(dim=-1, keepdim=True)) * self._weight[e]).T @ z).flatten()


class AnyHead:
    """A head of any kind, by automatic differentiation. Gradients and directions are flat, (E, P), over its trainable parameters.

    The head is called once for every domain, in full precision, since the loss of a domain is that of its own rows.
    """

    def __init__(self, head: nn.Module, features: Tensor, target: Tensor, rows: Rows) -> None:
        self._parameters = [p for p in head.parameters() if p.requires_grad]
        if not self._parameters:
            bad_input("head", "a module without trainable parameters", "a head whose gradients can be aligned")
        dtype = next((p.dtype for p in self._parameters), features.dtype)
        with torch.enable_grad():
            losses: list[Tensor] = []
            for z, y, n in zip(rows.split(features.to(dtype)), rows.split(target), rows.counts.tolist(), strict=True):
                logits = head(z)
                if logits.ndim != 2 or len(logits) != len(z):
                    bad_input("head", f"logits of shape {tuple(logits.shape)} for {len(z)} rows", "a head that gives (B, C), or (B, 1)")
                check_target(y, logits.shape[1])
                losses.append(_cross_entropy(logits, y) / n)
                self.n_classes = max(2, logits.shape[1])
            self.nll = torch.stack(losses)
            self._gradients = [self._grad(loss, None, create_graph=True) for loss in losses]

    def gradient(self) -> Tensor:
        return torch.stack(self._gradients)

    def times(self, direction: Tensor) -> Tensor:
        """H_e v of every domain, for one direction each, (E, P), or one for all, (P,)."""
        each = direction.expand(len(self._gradients), -1)
        return torch.stack([self.product(e, v) for e, v in enumerate(each)])

    def product(self, e: int, direction: Tensor) -> Tensor:
        """H_e v of one domain, (P,)."""
        if not self._gradients[e].requires_grad:
            return torch.zeros_like(direction)
        return self._grad(self._gradients[e], direction, create_graph=torch.is_grad_enabled())

    def _grad(self, of: Tensor, direction: Tensor | None, *, create_graph: bool) -> Tensor:
        parts = torch.autograd.grad(
            of, self._parameters, direction, retain_graph=True, create_graph=create_graph, materialize_grads=True
        )  # fmt: skip
        return torch.cat([part.flatten() for part in parts])


Curvature = LinearHead | AnyHead


def curvature_of(head: nn.Module, features: Tensor, target: Tensor, rows: Rows) -> Curvature:
    """The closed forms where they hold; automatic differentiation for all other heads."""
    return LinearHead(head, features, target, rows) if is_linear(head) else AnyHead(head, features, target, rows)


def is_linear(head: nn.Module) -> TypeGuard[nn.Linear]:
    """``nn.Linear`` itself with weights of its own: pruning and weight normalization make them anew from other parameters."""
    return type(head) is nn.Linear and isinstance(head.weight, nn.Parameter)


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Sum over the rows, in float32 at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], y.to(logits.dtype), reduction="sum")
    return F.cross_entropy(logits, y, reduction="sum")
