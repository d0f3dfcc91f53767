"""How alike the gradients of several groups are in length (Borsani et al. 2025, arXiv:2506.06130)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from counterpoise._errors import bad_input
from counterpoise.gradients._sam_gs import pairs_of, similarity_of_norms

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

__all__ = ["MagnitudeSimilarity", "magnitude_similarity"]

Array = npt.NDArray[np.float64]

ASYMMETRY = 1e-6  # of the largest entry: what rounding may do to a Gramian
MOST_ROWS = 24  # of the plot


@dataclass(frozen=True, eq=False)
class MagnitudeSimilarity:
    r"""Result of :func:`magnitude_similarity` for m gradients.

    Attributes
    ----------
    matrix : array, shape (m, m)
        :math:`\psi_{ij}`: 1 for the same length, 0.6 for a length three times the other, 0 where one gradient is zero; 1 on the diagonal.
    mean_similarity : float
        Mean over the pairs i < j: what :class:`counterpoise.gradients.SAMGS` compares with ``gamma``.
    minimum : float
        Smallest over the pairs.
    norms : array, shape (m,)
        Lengths of the gradients, in the unit of the Gramian's root.
    """

    matrix: Array
    mean_similarity: float
    minimum: float
    norms: Array

    def to_frame(self) -> pl.DataFrame:
        """One row per pair, the least alike first: ``shorter, longer, similarity, ratio`` (of the longer length to the shorter)."""
        import polars as pl

        i, j = np.triu_indices(len(self.norms), 1)
        swap = self.norms[i] > self.norms[j]
        shorter, longer = np.where(swap, j, i), np.where(swap, i, j)
        short, long = self.norms[shorter], self.norms[longer]
        ratio = np.divide(long, short, out=np.where(long > 0, np.inf, 1.0), where=short > 0)
        columns = {"shorter": shorter, "longer": longer, "similarity": self.matrix[i, j], "ratio": ratio}
        return pl.DataFrame(columns).sort("similarity", maintain_order=True)

    def summary(self) -> str:
        """Two or three sentences."""
        pair = self.to_frame().row(0, named=True)
        lines = [
            f"{len(self.norms)} gradients: mean similarity of their lengths {self.mean_similarity:.3f}, smallest {self.minimum:.3f} "
            "(1: equally long, 0.6: three times as long, 0.1: twenty times)."
        ]
        if not self.norms.any():
            return lines[0] + " All are zero."
        if np.isinf(pair["ratio"]):
            zero = ", ".join(map(str, np.flatnonzero(self.norms == 0)))
            return lines[0] + f" Zero: gradient {zero}."
        if pair["ratio"] > 1:
            lines.append(f"Gradient {pair['longer']} is {pair['ratio']:.3g} times as long as gradient {pair['shorter']}.")
        return " ".join(lines)

    def plot(self) -> Figure:
        """Lengths of the gradients over the longest, on a scale of factors, longest first."""
        from counterpoise.report import _plots

        order = np.argsort(-self.norms, kind="stable")[:MOST_ROWS]
        largest = self.norms.max()
        shown = self.norms[order] / largest if largest > 0 else np.zeros(len(order))
        with _plots.style():
            row_height, bottom = 26, 48
            height = row_height * len(order) + 40 + bottom
            fig = _plots.figure(560, height)
            ax = _plots.axes(fig, 110, bottom, 320, row_height * len(order))
            _plots.plain_rows(ax, len(order))
            _plots.rules_between(ax, len(order))
            ax.set_xscale("log")
            least = float(min(shown[shown > 0], default=1.0))
            ax.set_xlim(min(0.1, 0.6 * least), 1.25)
            for row, (k, value) in enumerate(zip(order, shown, strict=True)):
                _plots.row_text(fig, ax, row, 10, f"gradient {k}")
                if value > 0:
                    ax.plot([value, 1], [row, row], color=_plots.RULE, lw=1.6, zorder=1, solid_capstyle="butt")
                    ax.plot(value, row, color=_plots.BLUE, zorder=3, **_plots.DOT)
                _plots.row_text(fig, ax, row, 442, f"{value:.3g}" if value > 0 else "zero", color=_plots.MUTED)
            ax.set_xlabel("length over that of the longest")
            title = f"Similarity of lengths: mean {self.mean_similarity:.2f}, smallest {self.minimum:.2f}"
            more = f" ({len(self.norms) - len(order)} shorter ones not shown)" if len(self.norms) > len(order) else ""
            fig.text(10 / 560, 1 - 12 / height, title + more, va="top", weight="bold")
            return fig


def magnitude_similarity(gramian: Any) -> MagnitudeSimilarity:
    r"""How alike m gradients are in length; their directions play no part.

    With the lengths :math:`|g_i| = \sqrt{G_{ii}}`,

    .. math:: \psi_{ij} = \frac{2 |g_i| |g_j|}{|g_i|^2 + |g_j|^2} = \frac{2}{r + 1 / r}, \qquad r = |g_i| / |g_j| .

    Low values say that the sum of the gradients is the step of the longest. They do not say that this is wrong: a task may have a long
    gradient because there is much to learn.

    Parameters
    ----------
    gramian : tensor or array-like, shape (m, m), m >= 2
        Inner products of the gradients, such as ``rows @ rows.T`` or ``GradientStatistics.gramian``. Only its diagonal is used.

    Raises
    ------
    InputError
        If it is not square, not symmetric, not finite, has a negative diagonal, or there are fewer than two gradients.

    Examples
    --------
    >>> rows = torch.tensor([[3.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    >>> report = magnitude_similarity(rows @ rows.T)
    >>> report.matrix.round(2).tolist()
    [[1.0, 0.6, 0.6], [0.6, 1.0, 1.0], [0.6, 1.0, 1.0]]
    >>> print(report.summary())
    3 gradients: mean similarity of their lengths 0.733, smallest 0.600 (1: equally long, 0.6: three times as long, 0.1: twenty times).
    Gradient 0 is 3 times as long as gradient 1.
    """
    G = torch.as_tensor(gramian).detach().to("cpu", torch.float64)
    if G.ndim != 2 or G.shape[0] != G.shape[1]:
        bad_input("gramian", f"shape {tuple(G.shape)}", "a square matrix (m, m)", "Of rows (m, n) it is rows @ rows.T.")
    if len(G) < 2:
        bad_input("gramian", f"{len(G)} gradients", "at least two, which can be compared")
    if not bool(torch.isfinite(G).all()):
        bad_input("gramian", "nan or inf", "finite inner products", "Statistics that an aggregator does not need are nan.")
    if bool((G.diagonal() < 0).any()):
        bad_input(
            "gramian", f"{float(G.diagonal().min()):g} on its diagonal", "squared lengths >= 0",
            "An unbiased Gramian may have such; take that of the gradients themselves.",
        )  # fmt: skip
    if not torch.allclose(G, G.T, rtol=0, atol=ASYMMETRY * float(G.abs().max())):
        bad_input("gramian", "a matrix that is not symmetric", "inner products <g_i, g_j>", "Of rows (m, n) it is rows @ rows.T.")
    norms = G.diagonal().sqrt()
    matrix = similarity_of_norms(norms)
    pairs = pairs_of(matrix)
    return MagnitudeSimilarity(matrix.numpy(), float(pairs.mean()), float(pairs.min()), norms.numpy().copy())
