r"""Whose gradient drowns the others: sizes of entries, loss term by loss term and layer by layer (arXiv:2001.04536, figure 2).

What is unbalanced: terms of one loss whose gradients differ in size by orders of magnitude. An optimizer step is then a step for the
largest, whatever the values of the losses say. The measure is that of :class:`counterpoise.gradients.GradientAnnealing`, the largest
entry of one gradient over the mean entry of another, :math:`\max |g_i| / \operatorname{mean} |g_j|`, over weight matrices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from counterpoise._errors import bad_input, listing
from counterpoise.gradients import GradientStatistics
from counterpoise.gradients._annealing import compared, largest_and_mean
from counterpoise.gradients._losses import Terms

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

__all__ = ["GradientImbalance", "gradient_imbalance"]

Array = npt.NDArray[np.float64]

DOMINANT = 100.0  # from this ratio on the summary calls a term dominant; two terms of one kind have 3 to 30
PER_DECADE, LOWEST, HIGHEST = 8, -16, 16  # bins of log10 |entry|
MOST_LAYERS = 6  # in a figure


@dataclass(frozen=True, eq=False)
class GradientImbalance:
    r"""Result of :func:`gradient_imbalance` for m loss terms and P parameter tensors.

    Attributes
    ----------
    names, parameters : tuple of str
        Of the m terms and the P tensors.
    abs_max, abs_mean, l2 : array, shape (m, P)
        Largest and mean absolute entry, and length, of each term's gradient in each tensor.
    largest, mean : array, shape (m,)
        Over the tensors that are compared (``matrices``): the largest entry, and the mean of the tensors' means.
    dominant : str
        The term with the largest entry beside the smallest mean of another.
    ratio : float
        That largest entry over that smallest mean; NaN if fewer than two terms have a gradient there.
    per_layer_histograms : dict parameter -> int array (m, B)
        Entries by size, in bins with the limits ``edges`` (B + 1,): :math:`|g|` on a logarithmic scale. Zeros are in no bin.
    silent : tuple of str
        Terms without a gradient in the compared tensors: met exactly, or not touching them. They take no part in ``ratio``.
    """

    names: tuple[str, ...]
    parameters: tuple[str, ...]
    abs_max: Array
    abs_mean: Array
    l2: Array
    largest: Array
    mean: Array
    matrices: tuple[str, ...]
    dominant: str
    ratio: float
    per_layer_histograms: Mapping[str, npt.NDArray[np.int64]]
    edges: Array
    silent: tuple[str, ...] = ()

    @property
    def ratios(self) -> Array:
        """(m, m): the largest entry of row i over the mean entry of column j; NaN on the diagonal and where j is silent."""
        with np.errstate(divide="ignore", invalid="ignore"):
            found = self.largest[:, None] / np.where(self.mean > 0, self.mean, np.nan)
        np.fill_diagonal(found, np.nan)
        return np.asarray(found, dtype=np.float64)

    def to_frame(self) -> pl.DataFrame:
        """One row for each term and parameter: ``term, parameter, compared, abs_max, abs_mean, l2``."""
        import polars as pl

        rows = [
            {"term": name, "parameter": parameter, "compared": parameter in self.matrices}
            | {"abs_max": self.abs_max[i, p], "abs_mean": self.abs_mean[i, p], "l2": self.l2[i, p]}
            for i, name in enumerate(self.names)
            for p, parameter in enumerate(self.parameters)
        ]
        return pl.DataFrame(rows)

    def summary(self) -> str:
        """Who dominates whom, and what would balance it."""
        lines = []
        if np.isnan(self.ratio):
            lines.append("Fewer than two terms have a gradient: nothing is out of balance.")
        else:
            i = self.names.index(self.dominant)
            j = int(np.nanargmax(self.ratios[i]))
            verb = "dominates" if self.ratio > DOMINANT else "does not dominate"
            lines.append(
                f"{self.dominant!r} {verb} {self.names[j]!r}: its largest gradient entry is {self.ratio:.3g} times the mean one there "
                f"({self.largest[i]:.3g} and {self.mean[j]:.3g})."
            )
            if self.ratio > DOMINANT:
                lines.append(
                    f"GradientAnnealing(reference={i}) would move the weight of {self.names[j]!r} from 1 toward {np.sqrt(self.ratio):.3g}."
                )
        lines += [
            f"{name}: largest {big:.3g}, mean {mean:.3g}, length {length:.3g}"
            for name, big, mean, length in zip(self.names, self.largest, self.mean, np.linalg.norm(self.l2, axis=1), strict=True)
        ]
        if self.silent:
            lines.append(f"No gradient in the compared parameters: {listing(self.silent)}.")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Sizes of gradient entries, one line for each term, layer by layer (at most six)."""
        return _figure(self)


def gradient_imbalance(losses: Any, params: Any) -> GradientImbalance:
    r"""Compare the gradients of the terms of a loss, as they stand, with the weights the losses already have.

    Parameters
    ----------
    losses : dict of name: scalar, sequence of scalars, or Tensor (m,)
        At least two terms, with their graph, which is kept: ``backward`` can follow.
    params : iterable of tensors, or of (name, tensor) as ``model.named_parameters()``, or dict
        Parameters to look at. Those with at least two dimensions are compared; all, if there are none.

    Returns
    -------
    GradientImbalance
        Nothing is changed: ``.grad`` is neither read nor written. One backward pass and one gradient in memory at a time.

    Raises
    ------
    InputError
        If there are fewer than two terms or no parameters, no term reaches any of them, or a gradient is not finite (the message names the
        term).

    Examples
    --------
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> model.weight.data = torch.tensor([[1.0, -1.0]])
    >>> losses = {"residual": 40 * model.weight.square().sum(), "boundary": model.weight[0, 0]}
    >>> found = gradient_imbalance(losses, model.named_parameters())
    >>> found.dominant, found.ratio  # 80 over (1 + 0) / 2
    ('residual', 160.0)
    """
    terms = Terms.of(losses)
    if len(terms) < 2:
        bad_input("losses", f"{len(terms)} term", "at least two terms of one loss", "One gradient has nothing to be compared with.")
    named = _named(params)
    tensors = list(named.values())
    statistics, lengths, histograms = [], [], []
    reached = False
    for i, name in enumerate(terms.names):
        gradient = terms.gradient(i, tensors, retain=True)
        reached = reached or any(part is not None for part in gradient)
        rows = [(torch.zeros_like(p) if part is None else part.detach()).reshape(1, -1) for part, p in zip(gradient, tensors, strict=True)]
        shapes = [p.shape for p in tensors]
        statistics.append(GradientStatistics.from_rows(rows, needs={"rowstats"}, shapes=shapes, names=[name]))
        lengths.append(torch.stack([torch.linalg.vector_norm(row.double()) for row in rows]))
        histograms.append([_histogram(row) for row in rows])
    if not reached:
        bad_input(
            "params", listing(named), "parameters that the losses depend on", "Pass those of the model the losses were computed with."
        )
    sizes = [largest_and_mean(s) for s in statistics]
    largest, mean = (np.array([float(pair[k]) for pair in sizes]) for k in (0, 1))
    names = terms.names
    dominant, ratio = _dominant(names, largest, mean)
    chosen = compared([p.shape for p in tensors], "weights")
    return GradientImbalance(
        names=names,
        parameters=tuple(named),
        abs_max=_stacked([s.abs_max for s in statistics]),
        abs_mean=_stacked([s.abs_mean for s in statistics]),
        l2=_stacked([length[None] for length in lengths]),
        largest=largest,
        mean=mean,
        matrices=tuple(list(named)[slot] for slot in chosen),
        dominant=dominant,
        ratio=ratio,
        per_layer_histograms={name: np.stack([own[slot] for own in histograms]) for slot, name in enumerate(named)},
        edges=10.0 ** (np.arange((HIGHEST - LOWEST) * PER_DECADE + 1) / PER_DECADE + LOWEST),
        silent=tuple(name for name, size in zip(names, largest, strict=True) if size == 0),
    )


def _named(params: Any) -> dict[str, Tensor]:
    """name -> tensor; tensors without a name get their number."""
    if isinstance(params, Tensor):
        params = [params]
    if not isinstance(params, (Mapping, Iterable)):
        bad_input("params", type(params).__name__, "tensors, or (name, tensor) pairs", "Of a model: model.named_parameters().")
    items = list(params.items()) if isinstance(params, Mapping) else list(params)
    pairs: list[Any] = [item if isinstance(item, tuple) else (str(k), item) for k, item in enumerate(items)]
    if not pairs:
        bad_input("params", "no parameters", "at least one parameter", "An iterator such as model.parameters() can be used once only.")
    for name, tensor in pairs:
        if not isinstance(tensor, Tensor):
            bad_input("params", type(tensor).__name__, "tensors, or (name, tensor) pairs", "Of a model: model.named_parameters().")
        if not tensor.requires_grad:
            bad_input("params", f"{name!r}, which is frozen", "parameters that require gradients")
    return dict(pairs)


def _histogram(row: Tensor) -> npt.NDArray[np.int64]:
    """Counts (B,) of the entries that are not zero, by size; what lies outside goes to the outermost bins."""
    size = row.double().abs()
    place = ((size[size > 0].log10() - LOWEST) * PER_DECADE).floor().clamp(0, (HIGHEST - LOWEST) * PER_DECADE - 1)
    return np.asarray(torch.bincount(place.long(), minlength=(HIGHEST - LOWEST) * PER_DECADE).cpu().numpy(), dtype=np.int64)


def _dominant(names: Sequence[str], largest: Array, mean: Array) -> tuple[str, float]:
    """The term whose largest entry stands highest above the mean of another, and by how much."""
    heard = np.flatnonzero(mean > 0)
    if len(heard) < 2:
        return names[int(heard[0]) if len(heard) else 0], float("nan")
    ratio, best = max((float(largest[i] / mean[j]), int(i)) for i in heard for j in heard if i != j)
    return names[best], ratio


def _stacked(parts: list[Tensor]) -> Array:
    return np.asarray(torch.cat(parts).cpu().numpy(), dtype=np.float64)


def _figure(found: GradientImbalance) -> Figure:
    from counterpoise.report import _plots

    shown = list(found.matrices)
    if len(shown) > MOST_LAYERS:  # first and last, and some between
        shown = [shown[k] for k in np.unique(np.linspace(0, len(shown) - 1, MOST_LAYERS).round().astype(int))]
    counts = np.stack([found.per_layer_histograms[name] for name in shown])
    used = np.flatnonzero(counts.sum(axis=(0, 1)))
    low, high = (int(used[0]), int(used[-1])) if len(used) else (0, 1)
    low = max(low, high - 8 * PER_DECADE)  # what is eight decades below the largest is rounding
    columns = min(3, len(shown))
    grid = -(-len(shown) // columns)
    width, height, gap, top, bottom, left = (_plots.WIDTH - 60) / columns - 30, 120, 54, 74, 52, 30
    total = top + bottom + grid * height + (grid - 1) * gap
    # The dominant term is red; the others are told apart by their dashes, too.
    styles = [(_plots.BLUE, "-"), (_plots.GRAY, (0, (4, 2))), (_plots.INK, (0, (1, 1.5))), (_plots.MUTED, (0, (5, 1, 1, 1)))]
    looks: dict[str, tuple[str, Any]] = {}
    for name in found.names:
        looks[name] = (_plots.RED, "-") if name == found.dominant else styles[len(looks) % len(styles)]
    with _plots.style():
        fig = _plots.figure(_plots.WIDTH, total)
        for k, parameter in enumerate(shown):
            row, column = divmod(k, columns)
            ax = _plots.axes(fig, left + column * (width + 30), bottom + (grid - 1 - row) * (height + gap), width, height)
            edges = found.edges[low : high + 2]
            for i, name in enumerate(found.names):
                share = found.per_layer_histograms[parameter][i, low : high + 1]
                if share.sum():
                    color, dashes = looks[name]
                    ax.stairs(share / share.sum(), edges, color=color, ls=dashes, lw=1.8)
            ax.set_xscale("log")
            ax.set_yticks([])
            ax.set_ylim(bottom=0)
            ax.set_title(parameter, loc="left", fontsize=_plots.TEXT - 1, color=_plots.MUTED)
            if row == grid - 1:
                ax.set_xlabel("size of a gradient entry")
        head = (
            f"{found.dominant}: largest entry {found.ratio:.3g} times another's mean" if np.isfinite(found.ratio) else "Nothing to compare"
        )
        fig.text(10 / _plots.WIDTH, 1 - 14 / total, head, va="center", weight="bold")
        x = 10.0
        for name, (color, _) in looks.items():
            fig.text(x / _plots.WIDTH, 1 - 38 / total, f"{'—' if name == found.dominant else '┄'} {name}", va="center", color=color)
            x += 36 + 7.4 * len(name)
        return fig
