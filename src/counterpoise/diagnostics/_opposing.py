r"""Outliers that hold each other: groups whose gradients oppose along a direction that dominates the curvature (arXiv:2311.04163).

What is unbalanced: two small groups share a strong feature and want opposite things of it. They cancel in the mean gradient, so nothing
shows there, while the loss bends most along their direction, so they limit the learning rate and make training oscillate.

*Along a trajectory*: at the steps where much rises while much falls, the examples that rise most and those that fall most swap at the
next step. *At one point*: a singular vector v of the per-example gradients g, not centered, has much of their energy,
:math:`\sigma_v^2 / \sum \sigma^2`, yet the :math:`a_i = \langle g_i, v \rangle` cancel,
:math:`\kappa = 1 - |\sum_i a_i| / \sum_i |a_i|`, and a few examples hold most of a.
That groups can be identified by changes of their loss is the paper's; both rules as they stand are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from counterpoise._errors import bad_input, check_range
from counterpoise._pergrad import GradientSketch

from ._shares import percent
from ._trajectory import FEWEST_EXAMPLES, Array, Index, LossTrajectory, cancellation

if TYPE_CHECKING:
    import polars as pl

__all__ = ["OpposingPair", "opposing_groups"]

ENERGY = 0.05  # least share of the gradients' energy of a direction
KURTOSIS = 3.0  # excess: a few examples far out
TAIL, TAIL_MASS = 0.02, 0.15  # or: the outermost 2 % of each side hold this much of it (7 % for a normal distribution)
OVERLAP = 0.5  # of the examples of two pairs, from which on they are one
CONTRASTS = 5  # features that are named per side


@dataclass(frozen=True, eq=False)
class OpposingPair:
    r"""Two groups of examples that hold each other, as :func:`opposing_groups` finds them.

    Attributes
    ----------
    positive, negative : array of int
        Positions in the data, the most extreme first. From a trajectory: what rises at ``step``, and what falls. From a sketch: what pulls
        along the direction, and against it; which is which is arbitrary.
    cancellation : float
        :math:`\kappa` of all changes at ``step``, or of all :math:`a_i`: 1 if they cancel.
    energy_share : float
        From a sketch, the direction's share of the energy of all gradients; from a trajectory, the groups' share of all rise and fall.
    flip_rate : float
        How often the two extreme groups swap at the next step, in the most volatile tenth of the steps; NaN from a sketch.
    lr_lambda_half : float
        :math:`lr \, \lambda_{max} / 2` at ``step``, if the trajectory knows the sharpness; the oscillation starts at ``edge``.
    edge : float
        1 for gradient descent, :math:`1 + \beta` for heavy ball, NaN if unknown (other optimizers, or from a sketch).
    step : int or None
        Where the groups were chosen; None from a sketch.
    label_counts : dict side -> {label: count}, or None
        Most frequent first. A sketch brings the names of its groups; :meth:`describe` takes labels.
    contrast : polars.DataFrame, array or None
        What :meth:`describe` found: for tables ``side``, ``feature``, ``difference`` (to all other examples, in standard deviations), for
        images the mean of each side minus that of all other examples, shape (2, ...).
    """

    positive: Index
    negative: Index
    cancellation: float
    energy_share: float
    flip_rate: float = float("nan")
    lr_lambda_half: float = float("nan")
    edge: float = float("nan")
    step: int | None = None
    label_counts: Mapping[str, Mapping[str, int]] | None = None
    contrast: pl.DataFrame | npt.NDArray[np.float32] | None = None

    @property
    def sides(self) -> dict[str, Index]:
        """``{"positive": ..., "negative": ...}``"""
        return {"positive": self.positive, "negative": self.negative}

    def describe(self, features: Any = None, labels: Any = None) -> OpposingPair:
        """The same pair with ``contrast`` of the features and ``label_counts`` of the labels.

        Parameters
        ----------
        features : table (n, d), or images (n, ...) with more than one axis per example, optional
            Of the *whole* data that ``positive`` and ``negative`` are positions in: array, tensor or data frame. Embeddings are a table.
        labels : array-like, shape (n,), optional
            Labels, or the model's predictions, or anything else that is worth counting.

        Raises
        ------
        InputError
            If a position lies outside the data, or features are not numbers.
        """
        counts, contrast = self.label_counts, self.contrast
        if labels is not None:
            values = _plain(labels)
            if values.ndim != 1:
                bad_input("labels", f"shape {values.shape}", "one label per example, shape (n,)")
            self._check_inside("labels", len(values))
            counts = {side: _counted(values[rows]) for side, rows in self.sides.items()}
        if features is not None:
            contrast = self._contrast(features)
        return replace(self, label_counts=counts, contrast=contrast)

    def to_frame(self) -> pl.DataFrame:
        """Columns ``index`` and ``side``: the examples to look at."""
        import polars as pl

        sides = [side for side, rows in self.sides.items() for _ in rows]
        return pl.DataFrame({"index": np.concatenate([self.positive, self.negative]), "side": sides})

    def summary(self) -> str:
        """Who holds whom, how firmly, and where the learning rate stands."""
        sizes = f"{len(self.positive)} and {len(self.negative)} examples"
        if self.step is None:
            head = (
                f"{sizes} pull against each other along a direction with {percent(self.energy_share)} of the gradients' energy; "
                f"the pulls of all examples cancel to {percent(self.cancellation, 0)}."
            )
        else:
            head = (
                f"{sizes} rise and fall against each other at step {self.step}: {percent(self.energy_share)} of all change, which cancels "
                f"to {percent(self.cancellation, 0)}; in the most volatile steps such groups swap at the next one in "
                f"{percent(self.flip_rate, 0)}."
            )
        lines = [head, self._edge_sentence()]
        for side, counts in (self.label_counts or {}).items():
            lines.append(
                f"{side.capitalize()}: " + ", ".join(f"{label} x {count}" for label, count in list(counts.items())[:CONTRASTS]) + "."
            )
        if self.contrast is not None and not isinstance(self.contrast, np.ndarray):
            for side in self.sides:
                named = [f"{row['feature']} {row['difference']:+.1f}" for row in self.contrast.iter_rows(named=True) if row["side"] == side]
                lines.append(f"{side.capitalize()} differs in {', '.join(named)} (standard deviations).")
        return "\n".join(lines)

    def _edge_sentence(self) -> str:
        if math.isnan(self.lr_lambda_half):
            return "lr λ / 2 is unknown, so whether they limit the learning rate is too: sharpness(model, loss_fn, data) measures λ."
        if math.isnan(self.edge):
            return f"lr λ / 2 = {self.lr_lambda_half:.2f}; where this optimizer starts to oscillate depends on its preconditioner."
        return f"lr λ / 2 = {self.lr_lambda_half:.2f}; the oscillation starts at {self.edge:g}."

    def _contrast(self, features: Any) -> pl.DataFrame | npt.NDArray[np.float32]:
        import polars as pl

        names = [str(name) for name in getattr(features, "columns", ())]
        values = _plain(features)
        if values.dtype.kind not in "fiub":
            bad_input("features", f"values of {values.dtype}", "numbers", "Encode categories, or leave their columns out.")
        if values.ndim < 2:
            bad_input("features", f"shape {values.shape}", "a table (n, d) or images (n, ...)")
        self._check_inside("features", len(values))
        rest = np.ones(len(values), dtype=bool)
        rest[np.concatenate([self.positive, self.negative])] = False
        elsewhere = values[rest].mean(axis=0, dtype=np.float64)
        difference = {side: values[rows].mean(axis=0, dtype=np.float64) - elsewhere for side, rows in self.sides.items()}
        if values.ndim > 2:
            return np.stack(list(difference.values())).astype(np.float32)
        # The spread of all examples: within a group of outliers, a feature may well be constant.
        spread = values.std(axis=0, dtype=np.float64)
        names = names or [f"x{j}" for j in range(values.shape[1])]
        rows = []
        for side, delta in difference.items():
            scaled = np.divide(delta, spread, out=np.zeros_like(delta), where=spread > 0)
            for j in np.argsort(-np.abs(scaled), kind="stable")[:CONTRASTS]:
                rows.append({"side": side, "feature": names[j], "difference": float(scaled[j])})
        return pl.DataFrame(rows)

    def _check_inside(self, argument: str, n: int) -> None:
        last = int(max(rows.max() for rows in self.sides.values()))
        if last >= n:
            bad_input(
                argument, f"{n} rows", f"the whole data: position {last} occurs", "Give what the probe was taken from, not the probe."
            )


def opposing_groups(
    source: GradientSketch | LossTrajectory, *, k: float = 0.02, min_cancellation: float = 0.8, n_pairs: int = 3
) -> list[OpposingPair]:
    r"""Pairs of small groups that hold each other, strongest first; an empty list if there are none.

    From a :class:`LossTrajectory`: in the most volatile tenth of the steps, the ``k`` m examples that rise most and those that fall most,
    where all changes cancel and the two groups swap at the next step. Strongest are those who carry the largest share of all rise and fall;
    pairs that share half of their examples are one.

    From a :class:`GradientSketch`: among the directions with more than 5 % of the energy of the (uncentered) gradients, those along which
    they cancel and few examples hold most (excess kurtosis above 3, or the outermost 2 % of each side above 15 % of its mass). The groups
    are the ``k`` m examples with the largest :math:`|a_i|`, split by sign. Exact if the sketch holds the Gramian, else from its projection.

    Noise in the losses swaps too, since after a high value comes a lower one: :meth:`LossTrajectory.summary` tells it by its echo.
    Nothing found at a small learning rate, or late in training, is no evidence of absence: look at ``lr_lambda_half``.

    Parameters
    ----------
    source : GradientSketch or LossTrajectory
        At least 50 examples; a trajectory needs 3 recordings.
    k : float in (0, 0.5], default 0.02
        Share of the examples: on each side (trajectory) or on both together (sketch).
    min_cancellation : float in [0, 1], default 0.8
        Least :math:`\kappa`.
    n_pairs : int >= 1, default 3
        Most pairs.

    Raises
    ------
    InputError
        If there are too few examples or recordings, or the sketch has nothing per example.

    Examples
    --------
    >>> g = 0.1 * torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    >>> g[:2, 0], g[2:4, 0] = 5.0, -5.0
    >>> zeros = torch.zeros(200, dtype=torch.int64)
    >>> (pair,) = opposing_groups(GradientSketch(torch.ones(200).double(), zeros, torch.arange(200), ("all",), S=g))
    >>> sorted(pair.positive.tolist() + pair.negative.tolist()), round(pair.cancellation, 1)
    ([0, 1, 2, 3], 0.9)
    """
    check_range("k", k, low=0.0, high=0.5, open_low=True)
    check_range("min_cancellation", min_cancellation, low=0.0, high=1.0)
    check_range("n_pairs", n_pairs, low=1, integer=True)
    if isinstance(source, LossTrajectory):
        return _from_trajectory(source, k, min_cancellation, n_pairs)
    if isinstance(source, GradientSketch):
        return _from_sketch(source, k, min_cancellation, n_pairs)
    bad_input("source", type(source).__name__, "a LossTrajectory, or a GradientSketch such as sketch_gradients(model, loss_fn, data)")


def _from_trajectory(trajectory: LossTrajectory, k: float, min_cancellation: float, n_pairs: int) -> list[OpposingPair]:
    found = trajectory.changes(k)
    volatile = found.volatile()
    rate = float(found.flip[volatile].mean())
    pairs: list[OpposingPair] = []
    taken: list[set[int]] = []
    candidates = volatile[found.flip[volatile] & (found.cancellation[volatile] >= min_cancellation)]
    # By what so few examples carry: where training breaks away everything moves most, whole classes rather than outliers.
    for j in candidates[np.argsort(-found.share[candidates], kind="stable")]:
        members = {*found.rising[j].tolist(), *found.falling[j].tolist()}
        if any(len(members & other) >= OVERLAP * len(members | other) for other in taken):
            continue
        taken.append(members)
        step = int(found.step[j])
        pairs.append(
            OpposingPair(
                positive=trajectory.index[found.rising[j]],
                negative=trajectory.index[found.falling[j]],
                cancellation=float(found.cancellation[j]),
                energy_share=float(found.share[j]),
                flip_rate=rate,
                lr_lambda_half=trajectory.lr_lambda_half(step),
                edge=trajectory.edge,
                step=step,
            )
        )
        if len(pairs) == n_pairs:
            break
    return pairs


def _from_sketch(sketch: GradientSketch, k: float, min_cancellation: float, n_pairs: int) -> list[OpposingPair]:
    m = len(sketch)
    if m < FEWEST_EXAMPLES:
        bad_input("source", f"a sketch of {m} examples", f"at least {FEWEST_EXAMPLES}", "Measure more of the data.")
    count = max(2, round(k * m))
    index = sketch.index.cpu().numpy()
    pairs = []
    for share, a in _directions(sketch):
        kappa = cancellation(a)
        if kappa < min_cancellation or not _heavy(a):
            continue
        outer = np.argsort(-np.abs(a), kind="stable")[:count]
        a = a * np.sign(a[outer[0]])
        sides = outer[a[outer] > 0], outer[a[outer] < 0]
        if not all(len(rows) for rows in sides):
            continue
        counts = None
        if len(sketch.group_names) > 1:
            names = np.array([*sketch.group_names, "(none)"], dtype=object)[sketch.groups.cpu().numpy()]  # -1 is the last
            counts = {side: _counted(names[rows]) for side, rows in zip(("positive", "negative"), sides, strict=True)}
        positive, negative = (index[rows] for rows in sides)
        pairs.append(OpposingPair(positive, negative, kappa, share, label_counts=counts))
        if len(pairs) == n_pairs:
            break
    return pairs


def _directions(sketch: GradientSketch) -> list[tuple[float, Array]]:
    """(energy share, a (m,)) of the singular directions with more than ``ENERGY``, largest first."""
    if sketch.gramian is not None:
        from scipy.sparse.linalg import eigsh

        gramian = sketch.gramian.double().cpu().numpy()
        total = float(np.trace(gramian))
        if not np.isfinite(gramian).all():
            bad_input("source", "a sketch whose Gramian is not finite", "finite gradients")
        if not total > 0:
            return []
        most = min(math.ceil(1 / ENERGY), len(gramian) - 1)  # more directions cannot have this share
        energy, vectors = eigsh(gramian, k=most, which="LA", v0=np.sqrt(np.diag(gramian)))
        scores = vectors * np.sqrt(np.clip(energy, 0, None))
        order = np.argsort(-energy)
        energy, scores = energy[order], scores[:, order]
    elif sketch.S is not None:
        S = sketch.S.double()
        if not bool(torch.isfinite(S).all()):
            bad_input("source", "a sketch that is not finite", "finite gradients")
        total = float(S.square().sum())
        if not total > 0:
            return []
        U, sigma, _ = torch.linalg.svd(S, full_matrices=False)
        energy, scores = sigma.square().cpu().numpy(), (U * sigma).cpu().numpy()
    else:
        bad_input(
            "source",
            "a sketch without rows per example",
            "one with S or a Gramian",
            "The engine 'groups' has none; use 'auto', or gramian=True.",
        )
    return [(float(e / total), np.asarray(scores[:, j])) for j, e in enumerate(energy) if e > ENERGY * total]


def _heavy(a: Array) -> bool:
    """Whether a few examples hold most of both tails."""
    centered = a - a.mean()
    variance = float((centered**2).mean())
    if variance > 0 and float((centered**4).mean()) / variance**2 - 3 > KURTOSIS:
        return True
    for side in (a[a > 0], -a[a < 0]):
        outer = np.sort(side)[::-1][: math.ceil(TAIL * len(side))]
        if not outer.sum() > TAIL_MASS * side.sum():
            return False
    return True


def _counted(values: npt.NDArray[Any]) -> dict[str, int]:
    """How often each occurs, most frequent first."""
    names, counts = np.unique(values.astype(str), return_counts=True)
    return {str(names[j]): int(counts[j]) for j in np.argsort(-counts, kind="stable")}


def _plain(values: Any) -> npt.NDArray[Any]:
    if isinstance(values, Tensor):
        return np.asarray(values.detach().cpu().numpy())
    return np.asarray(values.to_numpy() if hasattr(values, "to_numpy") else values)
