r"""How far apart the training domains are at the classifier head: gradients, Hessians, and class shares.

What is unbalanced: if a model uses a feature that means something else in every domain, the domains pull the head in different directions
(:math:`g_e`) and bend its loss differently (:math:`H_e`). The theory of Hessian alignment (Hemati et al. 2023, arXiv:2308.11778) bounds how
much worse a head can do in one domain than in another by

.. math::
    \lVert g_e - g_f \rVert \quad \text{and} \quad \lVert H_e - H_f \rVert_2 = \max_{\lVert v \rVert = 1} \lVert (H_e - H_f) v \rVert ,

which are measured here; the penalties that are trained with (:class:`counterpoise.losses.HessianAlignmentLoss`) see less of the Hessian.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from counterpoise._errors import bad_input, check_range
from counterpoise._pergrad import exact_backends, untouched
from counterpoise.losses._head_curvature import AnyHead, LinearHead, Rows, arrange, check_finite, check_rows, is_linear

from ._shares import percent
from ._sharpness import climb

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

__all__ = ["HeadAlignment", "head_alignment"]

Array = npt.NDArray[np.float64]

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}  # relative residual of the squared norm, which is more than twice the error
LABEL_SHIFT = 0.1  # distance of class shares from which they are spoken of


@dataclass(frozen=True, eq=False)
class HeadAlignment:
    """Result of :func:`head_alignment`. Matrices are (E, E), symmetric, with zeros on the diagonal, in the order of ``domains``.

    Attributes
    ----------
    domains : tuple of str
        The E domains, sorted.
    counts : (E,)
        Rows of each.
    nll : (E,)
        Mean cross-entropy of each.
    gradient_norm, hessian_norm : (E,)
        :math:`\\|g_e\\|` and the spectral norm of :math:`H_e`, to compare the distances with.
    gradient_distance : (E, E)
        :math:`\\|g_e - g_f\\|`.
    hessian_spectral : (E, E)
        Spectral norm of :math:`H_e - H_f`.
    hessian_diag_distance : (E, E) or None
        :math:`\\|\\text{diag} H_e - \\text{diag} H_f\\|`; None if the head is not ``nn.Linear``.
    class_share : (E, C)
        Share of each class among the rows of a domain.
    converged : bool
        Whether all spectral norms are exact to six digits (four for a head in float32 that is not ``nn.Linear``); if not, some are lower
        bounds.
    """

    domains: tuple[str, ...]
    counts: npt.NDArray[np.int64]
    nll: Array
    gradient_norm: Array
    hessian_norm: Array
    gradient_distance: Array
    hessian_spectral: Array
    hessian_diag_distance: Array | None
    class_share: Array
    converged: bool

    @property
    def class_share_distance(self) -> Array:
        """(E, E) total variation distance of class shares: which part of one domain's rows would have to change their class."""
        return np.asarray(np.abs(self.class_share[:, None] - self.class_share[None]).sum(axis=2) / 2)

    def to_frame(self) -> pl.DataFrame:
        """One row per pair: ``domain``, ``other``, ``gradient_distance``, ``hessian_spectral``, ``hessian_diag_distance`` (null where there
        is none) and ``class_share_distance``; the most distant Hessians first."""
        import polars as pl

        e, f = np.triu_indices(len(self.domains), k=1)
        diagonal = self.hessian_diag_distance
        columns = {
            "domain": [self.domains[k] for k in e],
            "other": [self.domains[k] for k in f],
            "gradient_distance": self.gradient_distance[e, f],
            "hessian_spectral": self.hessian_spectral[e, f],
            "hessian_diag_distance": [None] * len(e) if diagonal is None else diagonal[e, f],
            "class_share_distance": self.class_share_distance[e, f],
        }
        frame = pl.DataFrame(columns, schema_overrides={"domain": pl.String, "other": pl.String, "hessian_diag_distance": pl.Float64})
        return frame.sort("hessian_spectral", descending=True)

    def summary(self) -> str:
        """The pairs that differ most, in units of the larger norm, and whether their classes do."""
        if len(self.domains) == 1:
            return f"One domain, {self.domains[0]}: there is nothing to compare."
        lines = [
            self._furthest("Gradients", self.gradient_distance, self.gradient_norm),
            self._furthest("Hessians", self.hessian_spectral, self.hessian_norm),
        ]
        shift = self.class_share_distance
        e, f = np.unravel_index(int(shift.argmax()), shift.shape)
        if shift[e, f] >= LABEL_SHIFT:
            lines.append(
                f"Class shares of {self.domains[e]} and {self.domains[f]} differ by {percent(shift[e, f])}: other shares alone make other "
                "gradients. Draw classes alike in every domain before aligning."
            )
        if not self.converged:
            lines.append("Some spectral norms have not converged and are lower bounds: raise iters.")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Distances of gradients and of Hessians between domains, as two matrices."""
        from counterpoise.report._alignment import alignment_figure

        return alignment_figure(self.domains, self.gradient_distance, self.hessian_spectral)

    def __repr__(self) -> str:
        return f"HeadAlignment({self.summary().splitlines()[0]})"

    def _furthest(self, what: str, distance: Array, norm: Array) -> str:
        e, f = np.unravel_index(int(distance.argmax()), distance.shape)
        larger = max(norm[e], norm[f])
        times = f", {distance[e, f] / larger:.2f} times the larger of the two" if larger > 0 else ""
        return f"{what} differ most between {self.domains[e]} and {self.domains[f]}: by {distance[e, f]:.3g}{times}."


def head_alignment(features: Tensor, target: Tensor, domain: Any, head: nn.Module, *, iters: int = 300, seed: int = 0) -> HeadAlignment:
    r"""How far apart domains are in the gradient and the Hessian of the head's mean cross-entropy.

    Spectral norms come from an iteration of Hessian-vector products (that of :func:`sharpness`, on the square of :math:`H_e - H_f`, which
    has no sign): no matrix of the size of the parameters squared is ever formed. A linear head is computed in closed form and in float64,
    any other by automatic differentiation in its own precision. The head is evaluated in eval mode and left as it was.

    Parameters
    ----------
    features : Tensor, shape (n, D)
        What the head sees: the output of the layers below, without gradients, best of rows that were not trained on.
    target : Tensor, shape (n,)
        Integer classes 0..C-1; 0 or 1 for a head with one output.
    domain : Tensor of integers or sequence of labels, shape (n,)
        The domain of each row.
    head : torch.nn.Module
        From features to logits (n, C), or (n, 1). For anything but ``nn.Linear``, its trainable parameters count.
    iters : int >= 1, default 300
        Most steps for each spectral norm, of two Hessian-vector products. There are E (E + 1) / 2 of them.
    seed : int, default 0
        Of the first vector.

    Raises
    ------
    InputError
        If shapes do not match, there is no row, a target is not a class, or the loss of a domain is not finite.

    Notes
    -----
    A distance is never 0 in a sample: that of two halves of one domain is the noise. Compare it with the distances between domains.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> features = torch.randn(400, 4, generator=generator)
    >>> domain = ["north", "south"] * 200
    >>> target = torch.arange(400) // 2 % 2
    >>> features[1::2, 1] += 3.0 * target[1::2]  # a shortcut that only the south has
    >>> head = nn.Linear(4, 2)
    >>> _ = nn.init.zeros_(head.weight), nn.init.zeros_(head.bias)
    >>> print(head_alignment(features, target, domain, head).summary())
    Gradients differ most between north and south: by 1.1, 1.00 times the larger of the two.
    Hessians differ most between north and south: by 2.67, 0.82 times the larger of the two.
    """
    if not isinstance(head, nn.Module):
        bad_input("head", type(head).__name__, "a torch.nn.Module")
    check_range("iters", iters, low=1, integer=True)
    check_range("seed", seed, low=0, integer=True)
    check_rows(head, features, target)
    features = features.detach()
    rows = arrange(domain, len(features), features.device)
    if not rows.labels:
        bad_input("features", f"shape {tuple(features.shape)}", "at least one row")
    with untouched(head, evaluate=True), exact_backends(), torch.autocast(features.device.type, enabled=False):
        if is_linear(head):
            with torch.no_grad():
                return _measured(LinearHead(head, features.double(), target, rows), target, rows, iters, seed)
        return _measured(AnyHead(head, features, target, rows), target, rows, iters, seed)


def _measured(head: LinearHead | AnyHead, target: Tensor, rows: Rows, iters: int, seed: int) -> HeadAlignment:
    check_finite(head.nll, rows)
    g = head.gradient().detach().flatten(1)
    E = len(rows.labels)
    start = torch.randn(g.shape[1], generator=torch.Generator().manual_seed(seed), dtype=g.dtype).to(g.device)
    norm, spectral, converged = np.zeros(E), np.zeros((E, E)), True
    with torch.no_grad():
        for e in range(E):
            norm[e], done = _spectral_norm(lambda v, e=e: head.product(e, v), start, iters)
            converged &= done
        for e, f in combinations(range(E), 2):
            value, done = _spectral_norm(lambda v, e=e, f=f: head.product(e, v) - head.product(f, v), start, iters)
            spectral[e, f] = spectral[f, e] = value
            converged &= done
    diagonal = _distances(head.diagonal().flatten(1)) if isinstance(head, LinearHead) else None
    classes = rows.table(nn.functional.one_hot(target.long(), head.n_classes).double())
    return HeadAlignment(
        domains=tuple(str(label) for label in rows.labels),
        counts=rows.counts.cpu().numpy(),
        nll=head.nll.detach().double().cpu().numpy(),
        gradient_norm=torch.linalg.vector_norm(g.double(), dim=1).cpu().numpy(),
        hessian_norm=norm,
        gradient_distance=_distances(g),
        hessian_spectral=spectral,
        hessian_diag_distance=diagonal,
        class_share=(classes.sum(dim=1) / rows.counts[:, None]).cpu().numpy(),
        converged=bool(converged),
    )


def _distances(x: Tensor) -> Array:
    """Euclidean distances (E, E) between rows, from differences."""
    x = x.detach().double()
    return np.asarray(torch.stack([torch.linalg.vector_norm(x - row, dim=1) for row in x]).cpu().numpy())


def _spectral_norm(times: Any, start: Tensor, iters: int) -> tuple[float, bool]:
    """Of a symmetric operator with eigenvalues of both signs: the root of the largest eigenvalue of its square."""
    if not bool(times(start).any()):  # nothing at all: a random vector would have shown it
        return 0.0, True
    value, _, _, _, converged = climb(lambda v: times(times(v)), start, iters, TOLERANCE.get(start.dtype, 1e-2))
    return max(value, 0.0) ** 0.5, converged
