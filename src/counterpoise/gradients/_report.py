"""What a step was made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import polars

    from ._statistics import GradientStatistics

__all__ = ["GradientReport"]

OPPOSITE = 1e-6  # two gradients with a cosine below -1 + OPPOSITE leave no direction that helps both


@dataclass(frozen=True, eq=False)
class GradientReport:
    r"""How the gradients of m losses became one, returned by :func:`backward` and by :meth:`Accumulator.step`.

    Parameters
    ----------
    names : tuple of str, length m
        Names of the losses.
    losses : Tensor, shape (m,), float64
        Their values.
    weights : Tensor, shape (m,), float64
        Weights :math:`w_i` of the gradients; NaN if the aggregator has a rule for every coordinate instead.
    norms : Tensor, shape (m,), float64
        Lengths :math:`|g_i|`; NaN where gradients were not looked at (a step with the weights of an earlier one).
    cosine : Tensor, shape (m, m), float64
        :math:`\cos(g_i, g_j)`, 0 for a gradient of zeros.
    dominance : Tensor, shape (m,), float64
        Whose step it is: :math:`\langle d_i, d \rangle / |d|^2` of the contributions :math:`d_i = w_i g_i` to :math:`d = \sum_i d_i`.
        Signed, summing to 1; below zero for a loss whose contribution the others overrule. NaN without weights, or for d = 0.
    conflicts : tuple of (str, str, float)
        Pairs of losses with a negative cosine, the worst first.
    strategy : str
        How the gradients were looked at: "plain", "rows", "sketch", "ghost", "features", "recompute", or "held weights". With "plain" and
        "held weights" they were not: norms, cosines, dominance and conflicts say nothing then.
    passes : int
        Backward passes through the graph.
    bytes_rows : int
        Memory taken by rows or sketches at once.
    details : mapping
        What the method says about its step (``aggregator.last``).
    notes : tuple of str
        What to know when reading the numbers.
    compared : str
        On what the gradients were compared, and what each loss has for itself.
    """

    names: tuple[str, ...]
    losses: Tensor
    weights: Tensor
    norms: Tensor
    cosine: Tensor
    dominance: Tensor
    conflicts: tuple[tuple[str, str, float], ...]
    strategy: str
    passes: int
    bytes_rows: int
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    compared: str = ""

    def __len__(self) -> int:
        """Number of losses m."""
        return len(self.names)

    @classmethod
    def of(
        cls, s: GradientStatistics, weights: Tensor | None, *, strategy: str, passes: int, bytes_rows: int, details: Mapping[str, Any],
        notes: tuple[str, ...] = (), compared: str = "",
    ) -> GradientReport:  # fmt: skip
        """From the statistics of a step and the weights that were found."""
        G = s.gramian.detach().double().cpu()
        w = torch.full((len(s),), torch.nan, dtype=torch.float64) if weights is None else weights.detach().double().cpu()
        norms = G.diagonal().clamp(min=0).sqrt()
        lengths = norms[:, None] * norms
        cosine = torch.where(lengths > 0, G / lengths.clamp(min=torch.finfo(torch.float64).tiny), 0.0).clamp(-1, 1)
        cosine = torch.where(G.isnan(), torch.nan, cosine)
        along = w * (G @ w)
        total = along.sum()
        dominance = torch.where(total > 0, along / total, torch.nan)
        i, j = torch.triu_indices(len(s), len(s), 1)
        against = [(float(c), int(a), int(b)) for c, a, b in zip(cosine[i, j], i, j, strict=True) if c < 0]
        return cls(
            names=s.names,
            losses=s.losses.detach().double().cpu(),
            weights=w,
            norms=norms,
            cosine=cosine,
            dominance=dominance,
            conflicts=tuple((s.names[a], s.names[b], c) for c, a, b in sorted(against)),
            strategy=strategy,
            passes=passes,
            bytes_rows=bytes_rows,
            details=dict(details),
            notes=notes,
            compared=compared,
        )

    @property
    def looked(self) -> bool:
        """Whether the gradients were looked at in this step."""
        return not bool(self.norms.isnan().any())

    @property
    def opposed(self) -> tuple[str, str] | None:
        """Two losses whose gradients point in exactly opposite directions, if there are any."""
        if self.conflicts and self.conflicts[0][2] < -1 + OPPOSITE:
            return self.conflicts[0][:2]
        return None

    def to_frame(self) -> polars.DataFrame:
        """One row for each loss: name, loss, norm, weight, dominance, and its cosine with each of the others."""
        import polars

        columns = {"loss": self.losses, "norm": self.norms, "weight": self.weights, "dominance": self.dominance}
        columns |= {f"cosine with {name}": column for name, column in zip(self.names, self.cosine.T, strict=True)}
        return polars.DataFrame({"name": list(self.names)} | {name: values.tolist() for name, values in columns.items()})

    def summary(self) -> str:
        """The step in a few lines."""
        width = max([len(name) for name in self.names] + [4])
        lines = [f"{_counted(len(self), 'loss')}, strategy {self.strategy}, {_counted(self.passes, 'backward pass')}"]
        lines += [self.compared] if self.compared else []
        lines.append(f"{'':{width}}  {'loss':>10}  {'|gradient|':>10}  {'weight':>10}  {'dominance':>9}")
        for name, loss, norm, weight, share in zip(self.names, self.losses, self.norms, self.weights, self.dominance, strict=True):
            shown = [f"{loss:10.4g}", _or_dash(norm, "10.4g"), _or_dash(weight, "10.4g"), _or_dash(100 * share, "8.1f", "%")]
            lines.append("  ".join([f"{name:{width}}", *shown]))
        if not self.looked:
            lines.append("The gradients were not looked at in this step.")
        elif self.weights.isnan().all():
            lines.append("The method has a rule for every coordinate in place of weights.")
        lines += [f"{a} against {b}: cosine {c:.2f}" for a, b, c in self.conflicts[:3]]
        if len(self.conflicts) > 3:
            lines.append(f"and {len(self.conflicts) - 3} more pairs in conflict")
        if self.looked and not self.conflicts and len(self) > 1:
            i, j = torch.triu_indices(len(self), len(self), 1)
            at = int(self.cosine[i, j].argmin())
            lines.append(
                f"no conflict: the smallest cosine, {self.cosine[i, j][at]:.2f}, is that of {self.names[i[at]]} and {self.names[j[at]]}"
            )
        if len(self) == 1:
            lines.append("One loss: there is nothing to combine. Pass the losses, not their sum.")
        return "\n".join([*lines, *self.notes])

    def __repr__(self) -> str:
        if self.weights.isnan().all():
            what = "a rule for every coordinate" if self.looked else "no weights"
        else:
            weights = [f"{name}={weight:.3g}" for name, weight in zip(self.names[:8], self.weights[:8], strict=True)]
            what = "weights " + ", ".join(weights) + (", ..." if len(self) > 8 else "")
        seen = _counted(len(self.conflicts), "conflict") if self.looked else "gradients not looked at"
        return f"GradientReport({what}; {seen}; {self.strategy})"


def _counted(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}es" if word.endswith("s") else f"{n} {word}s"


def _or_dash(x: Tensor, form: str, unit: str = "") -> str:
    """A number, or a dash of the same width where there is none."""
    width = int(form.partition(".")[0])
    return f"{'-':>{width + len(unit)}}" if bool(x.isnan()) else f"{x:{form}}{unit}"
