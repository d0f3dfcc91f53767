r"""How noisy a step is under temperature sampling and under weighted losses (Li et al. 2025, arXiv:2410.04579), exactly.

What is unbalanced: at a temperature :math:`\tau` both give the same mean gradient :math:`\bar g`, and gradients of single draws that differ
in their noise. With the domains' sizes :math:`n_i`, :math:`p(i; \tau) = n_i^{1/\tau} / \sum_j n_j^{1/\tau}` and the mean
:math:`G_i = \frac{1}{n_i} \sum_{x \in D_i} \|g_x\|^2` of the squared gradients in a domain, the traces of the covariances of one draw are

.. math::
    V_S = \sum_i \frac{p(i; \tau)^2}{p(i; 1)} G_i - \|\bar g\|^2 \text{ (weights)}, \qquad
    V_{TS} = \sum_i p(i; \tau) G_i - \|\bar g\|^2 \text{ (sampling)},

those of a batch of B independent draws 1 / B of them. If all :math:`G_i` equal one G, the first sums are :math:`F(\tau) G` and G, with
:math:`F(\tau) = \sum_i p(i; \tau)^2 / p(i; 1) \ge 1`, and sampling has the lower variance: the paper's Theorems 2 and 3, whose proofs take
one G for all domains. Where small domains have been learned by heart, their :math:`G_i` are small and the order may be the other way round.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from counterpoise._errors import bad_input, listing
from counterpoise._temperature import probabilities, temperature
from counterpoise.groups import Groups

from ._sketching import sketch_gradients

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

__all__ = ["VarianceReport", "gradient_variance"]

Array = npt.NDArray[np.float64]

SAMPLING, WEIGHTS, EITHER = "TemperatureSampler", "ScalarizedLoss", "either"
SAME = 1e-6  # relative difference of the variances below which it does not matter
BATCH = 256  # examples of a data set that are read at once


@dataclass(frozen=True, eq=False)
class VarianceReport:
    r"""Result of :func:`gradient_variance` for K domains and T temperatures. Variances are traces of covariances of a single draw.

    Attributes
    ----------
    domains : tuple of str
        The K domains, sorted.
    sizes : (K,)
        Examples of each, as measured.
    G : (K,)
        Mean squared norm of the gradients of a domain's examples.
    taus : (T,)
        The temperatures.
    var_s, var_ts : (T,)
        Variance with weighted losses and with temperature sampling.
    F : (T,)
        :math:`\sum_i p(i; \tau)^2 / p(i; 1)`: about what the ratio would be if all ``G`` were equal and the mean gradient small.
    gradient_norm_sq : (T,)
        :math:`\|\bar g\|^2`, the same for both.
    """

    domains: tuple[str, ...]
    sizes: npt.NDArray[np.int64]
    G: Array
    taus: Array
    var_s: Array
    var_ts: Array
    F: Array
    gradient_norm_sq: Array

    @property
    def ratio(self) -> Array:
        """var_s / var_ts (T,); above 1 where sampling is less noisy, nan where there is no noise at all."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self.var_s / self.var_ts)

    @property
    def best(self) -> tuple[str, ...]:
        """What is less noisy at each temperature: "TemperatureSampler", "ScalarizedLoss", or "either"."""
        apart = np.abs(self.var_s - self.var_ts) > SAME * np.maximum(self.var_s, self.var_ts)
        lower = np.where(self.var_s > self.var_ts, SAMPLING, WEIGHTS)
        return tuple(np.where(apart, lower, EITHER).tolist())

    def to_frame(self) -> pl.DataFrame:
        """One row per temperature: ``tau, var_s, var_ts, ratio, F, gradient_norm_sq, best``."""
        import polars as pl

        names = ("var_s", "var_ts", "ratio", "F", "gradient_norm_sq")
        return pl.DataFrame({"tau": self.taus} | {name: getattr(self, name) for name in names} | {"best": list(self.best)})

    def summary(self) -> str:
        """A few sentences."""
        loud = listing(f"{name} {size:,} x {G:.3g}" for name, size, G in zip(self.domains, self.sizes, self.G, strict=True))
        lines = [f"{len(self.domains)} domains, examples x mean squared gradient: {loud}."]
        for best, words in (
            (SAMPLING, "drawing by temperature is less noisy than weighing the loss"),
            (WEIGHTS, "weighing the loss is less noisy than drawing by temperature"),
            (EITHER, "both are equally noisy"),
        ):
            chosen = [at for at, found in enumerate(self.best) if found == best]
            if chosen:
                ratios = listing(f"{self.ratio[at]:.3g}" for at in chosen)
                lines.append(f"At tau {listing(f'{self.taus[at]:g}' for at in chosen)} {words} (variances {ratios} to 1).")
        if WEIGHTS in self.best:
            lines.append(
                "The paper's Theorem 2, by which sampling is never the noisier one, does not hold here: it takes the squared gradients of "
                "all domains as equal."
            )
        return "\n".join(lines)

    def plot(self) -> Figure:
        """The ratio of the variances, and F, over the temperatures."""
        from counterpoise.report import _plots

        at = np.arange(len(self.taus))
        order = np.argsort(self.taus, kind="stable")
        with _plots.style():
            fig = _plots.figure(560, 300)
            ax = _plots.axes(fig, 64, 52, 360, 190)
            ax.axhline(1, color=_plots.INK, lw=1, zorder=1)
            ax.plot(at, self.F[order], color=_plots.GRAY, ls="--", lw=1.4)
            ax.plot(at, self.ratio[order], color=_plots.BLUE, lw=1.6, **_plots.DOT)
            ends = (
                (self.ratio[order][-1], "as measured", _plots.BLUE),
                (self.F[order][-1], "if all gradients\nwere as long", _plots.MUTED),
            )
            near = abs(ends[0][0] - ends[1][0]) < 0.16 * (ax.get_ylim()[1] - ax.get_ylim()[0])
            for (y, text, color), side in zip(ends, (1, -1) if ends[0][0] >= ends[1][0] else (-1, 1), strict=True):
                if np.isfinite(y):
                    shift = (10, 14 * side if near else 0)
                    ax.annotate(text, (at[-1], y), shift, textcoords="offset points", va="center", color=color, annotation_clip=False)
            ax.set_xticks(at, [f"{tau:g}" for tau in self.taus[order]])
            ax.set_xlabel("temperature")
            ax.set_ylabel("weights over sampling")
            title = "Variance of the gradient: below 1, weighing the loss is less noisy"
            fig.text(10 / 560, 1 - 12 / 300, title, va="top", weight="bold")
            return fig


def gradient_variance(model: nn.Module, loss_fn: Any, dataset: Any, domains: Any, taus: Iterable[float]) -> VarianceReport:
    r"""Which is less noisy at this point of a training: drawing domains at a temperature, or weighing their losses?

    Both have the same mean gradient; the less noisy of two is as good as the other with a larger batch. Gradients of all examples are
    measured once (per-example norms and sums by domain, never all gradients at a time), in eval mode; all temperatures follow from them.
    Ask again later in a training: gradients of small domains die away as they are learned by heart.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it was. Without batch normalization in training mode.
    loss_fn : callable
        ``loss_fn(output, target)``: a loss of torch, or anything that gives one loss per example.
    dataset : Dataset, DataLoader in a fixed order, or tuple of tensors (inputs, targets)
        The training data, or a part in which domains are as frequent as in the whole.
    domains : array-like, shape (N,), or Groups
        Domain of each example.
    taus : iterable of float > 0
        The temperatures, in the order of the report; inf draws all domains equally often.

    Returns
    -------
    VarianceReport

    Raises
    ------
    InputError
        If there is no temperature or one is not above 0, an example has no domain or a domain no example, lengths differ, or gradients are
        not finite.

    Examples
    --------
    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> X, y = torch.randn(110, 4), torch.arange(110) % 3
    >>> report = gradient_variance(nn.Linear(4, 3), nn.CrossEntropyLoss(), (X, y), ["en"] * 100 + ["fo"] * 10, [1, 5])
    >>> report.best, bool(report.ratio[1] > 1)
    (('either', 'TemperatureSampler'), True)
    """
    chosen = np.array([temperature(tau, "taus") for tau in taus])
    if not len(chosen):
        bad_input("taus", "no temperature", "at least one")
    groups = domains if isinstance(domains, Groups) else Groups.from_labels(domains, kind="domain")
    if (groups.ids < 0).any():
        bad_input("domains", f"{int((groups.ids < 0).sum())} examples without a domain", "a domain for every example")
    sizes = groups.counts()
    if (sizes == 0).any():
        bad_input("domains", f"no example of {listing(groups.names[k] for k in np.flatnonzero(sizes == 0))}", "an example in every domain")
    data = dataset
    if isinstance(dataset, tuple) and dataset and len(dataset[0]) != len(groups.ids):
        bad_input("domains", f"{len(groups.ids)} domains for {len(dataset[0])} examples", "one for each example")
    if isinstance(dataset, Dataset) and not isinstance(dataset, IterableDataset):
        data = DataLoader(dataset, batch_size=BATCH)
    sketch = sketch_gradients(model, loss_fn, data, groups=groups, max_examples=sys.maxsize, sketch_dim=0, leverage=False)
    if len(sketch) != len(groups.ids):
        bad_input("domains", f"{len(groups.ids)} domains for {len(sketch)} examples", "one for each example")
    norms_sq, sums = sketch.norms_sq, sketch.group_sums
    if norms_sq is None or sums is None:  # an engine without them is never chosen by itself
        bad_input("model", type(model).__name__, "a model whose gradients of single examples can be measured")
    ids = sketch.groups.cpu().numpy()
    G = np.bincount(ids, norms_sq.double().cpu().numpy(), minlength=len(sizes)) / sizes
    means = sums.double() / sums.new_tensor(sizes, dtype=sums.double().dtype)[:, None]
    products = (means @ means.T).cpu().numpy()
    p = np.stack([probabilities(sizes.astype(np.float64), tau) for tau in chosen])
    heavier = p**2 / (sizes / sizes.sum())
    gradient = np.einsum("ti,ij,tj->t", p, products, p)
    return VarianceReport(groups.names, sizes, G, chosen, heavier @ G - gradient, p @ G - gradient, heavier.sum(axis=1), gradient)
