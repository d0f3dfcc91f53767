r"""Losses of the same examples, step after step: where training oscillates although its mean loss looks still (arXiv:2311.04163).

What is unbalanced: a few examples whose gradients oppose each other dominate the curvature and cancel in the mean. What they do shows in
the changes of single losses, :math:`D_i(t) = \ell_i(t + 1) - \ell_i(t)`: one group rises while another falls, and at the next step they
swap. With m examples, :math:`D^+` and :math:`D^-` the sums of rises and of falls,

.. math:: V(t) = \sqrt{D^+ D^-} / m, \qquad \kappa(t) = 1 - |\textstyle\sum_i D_i| / \sum_i |D_i| .

The *volatility* V is large where much rises while much falls; the *cancellation* :math:`\kappa` is 1 where they hold each other exactly.
The paper identifies its groups by changes of the loss; the two measures and the flip test are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from counterpoise._errors import bad_input, check_range
from counterpoise._pergrad import exact_backends, untouched
from counterpoise._precision import HALF

from ._probe import draw, per_example_loss
from ._sharpness import BATCH, check_momentum, edge_of
from ._sketching import unwrapped

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

__all__ = ["FEWEST_EXAMPLES", "Changes", "LossTrajectory", "cancellation"]

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

FEWEST_EXAMPLES, MOST_EXAMPLES = 50, 5000
FEWEST_RECORDINGS = 3  # a change, and the next one, which undoes it
VOLATILE = 0.1  # share of the steps that are looked at: at the others nothing much moves, and their flips say nothing
OPPOSED, FLIPS = 0.8, 0.8  # median cancellation and share of flips in these steps, from which on groups are said to oppose each other
ECHO = 0.5  # median echo, below which what swaps is noise
SPIKE = 2.0  # times the first mean loss: divergence, not oscillation


def cancellation(values: npt.ArrayLike) -> float:
    r""":math:`\kappa = 1 - |\sum_i a_i| / \sum_i |a_i|`: 1 where the values cancel, 0 where all have one sign; 0 if all are 0.

    >>> cancellation([1.0, -1.0]), cancellation([1.0, 1.0]), cancellation([3.0, -1.0])
    (1.0, 0.0, 0.5)
    """
    a = np.asarray(values, dtype=np.float64)
    mass = float(np.abs(a).sum())
    return 1 - abs(float(a.sum())) / mass if mass > 0 else 0.0


@dataclass(frozen=True, eq=False)
class Changes:
    """What happened between recordings j and j + 1, for j = 0..T-2; ``rising`` and ``falling`` are rows of the probe.

    ``followed`` marks the steps whose next change is as many steps long, an odd number of them: only there can a swap be seen, since an
    oscillation that turns round at every step looks still from every second one. ``flip`` is False elsewhere. ``echo`` is the correlation
    of D(t) with D(t + 2), NaN where there is none: 1 for an oscillation, which comes back, and 0 for noise in the losses, which swaps too
    (after a high value comes a lower one) but does not come back.
    """

    step: Index
    lr: Array
    mean_loss: Array
    volatility: Array
    cancellation: Array
    share: Array
    followed: npt.NDArray[np.bool_]
    flip: npt.NDArray[np.bool_]
    echo: Array
    rising: list[Index]
    falling: list[Index]

    def volatile(self) -> Index:
        """The most volatile tenth of the followed steps, most volatile first."""
        seen = np.flatnonzero(self.followed)
        count = max(1, math.ceil(VOLATILE * len(seen)))
        return seen[np.argsort(-self.volatility[seen], kind="stable")[:count]]


class LossTrajectory:
    r"""Per-example losses of a fixed probe, recorded while a model trains.

    Record with :meth:`update` what your loop has computed anyway (full-batch training), or with :meth:`measure` from the model, every n-th
    step. **n must be odd**: the groups swap at every step, and every second step shows them where they were. Memory is 4 bytes per example
    and recording: 20 MB per 1,000 recordings of 5,000 examples.

    :func:`opposing_groups` finds the groups; :meth:`summary` says whether there are any, or rather divergence, or noise in the losses.

    Parameters
    ----------
    index : array-like of int, shape (m,), optional
        Positions of the probe's examples in the data; by default 0..m-1.
    momentum : float, default 0.0
        Of heavy ball, whose oscillation starts at :math:`lr \lambda_{max} / 2 = 1 + \beta`, not at 1. None for another optimizer: the edge
        of Adam is that of the *preconditioned* Hessian, so :math:`lr \lambda_{max} / 2` is not compared with anything.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> base, tug = rng.random(100), np.zeros(100)
    >>> tug[:4], tug[4:8] = 0.3, -0.3
    >>> trajectory = LossTrajectory()
    >>> for step in range(12):
    ...     trajectory.update(base - 0.001 * step + (-1) ** step * tug, step, lr=0.5, sharpness=4.1)
    >>> print(trajectory.summary())
    Opposing groups: in the 10 % most volatile of 10 steps the median cancellation is 0.98 and the two extreme 2 % of the examples swap at
    the next step in 100 % (echo 1.00). lr λ / 2 = 1.02 at step 8, at most 1.02; the oscillation starts at 1.
    """

    def __init__(self, *, index: npt.ArrayLike | Tensor | None = None, momentum: float | None = 0.0) -> None:
        check_momentum(momentum)
        self.momentum = momentum
        self._index = None if index is None else _positions(index)
        self._losses: list[npt.NDArray[np.float32]] = []
        self._steps: list[int] = []
        self._lr: list[float] = []
        self._sharpness: list[float] = []

    # ---- recording ----------------------------------------------------------------------------------------------------------------------

    def update(
        self,
        losses: Tensor | npt.ArrayLike,
        step: int,
        lr: float,
        *,
        sharpness: float | None = None,
        index: npt.ArrayLike | Tensor | None = None,
    ) -> None:
        """Record the losses of the probe at ``step``, before the step is taken.

        Parameters
        ----------
        losses : tensor or array, shape (m,)
            One per example, in the same order each time, in float32 or float64 (half precision would round the changes away), from a model
            in eval mode: dropout would be noise. A value that is not finite is recorded as divergence.
        step : int
            Number of optimizer steps taken so far; larger than the last one.
        lr : float
            Learning rate of the step that follows.
        sharpness : float, optional
            ``sharpness(...).value`` here, if it was measured; it may be measured as rarely as you like.
        index : array-like of int, shape (m,), optional
            Positions of these examples, compared with the first ones: a probe that was reordered is refused.

        Raises
        ------
        InputError
            If there is one number instead of a loss per example, fewer than 50 or more than 5,000 examples, another number or order of
            examples than before, half precision, or a step that is not later than the last.
        """
        values = _losses(losses)
        check_range("step", step, low=0, integer=True)
        check_range("lr", lr, low=0.0)
        if sharpness is not None:
            check_range("sharpness", sharpness)
        if self._steps and step <= self._steps[-1]:
            bad_input("step", step, f"a step after the last one, {self._steps[-1]}")
        if self._losses and len(values) != len(self._losses[0]):
            bad_input(
                "losses", f"{len(values)} losses", f"the same {len(self._losses[0])} examples as before", "The probe must stay fixed."
            )
        given = None if index is None else _positions(index)
        expected = self._index if self._index is not None else self.index if self._losses else given
        if given is not None and expected is not None and not np.array_equal(given, expected):
            bad_input(
                "index", "other positions than at first", "the same examples in the same order", "Use a loader that does not shuffle."
            )
        if expected is not None and len(expected) != len(values):
            bad_input("losses", f"{len(values)} losses", f"one for each of the {len(expected)} positions in index")
        if not self._losses:
            self._index = expected
        self._losses.append(values)
        self._steps.append(int(step))
        self._lr.append(float(lr))
        self._sharpness.append(float("nan") if sharpness is None else float(sharpness))

    def measure(self, model: nn.Module, loss_fn: Any, data: Any, step: int, lr: float, *, sharpness: float | None = None) -> Tensor:
        """Compute the losses of the probe ``data`` without gradients and in eval mode, record them, and return them, shape (m,).

        The model is left as it was. ``loss_fn`` is as in :func:`examine`; ``data`` is a tuple of tensors or a loader *in a fixed order*.
        """
        if not isinstance(model, nn.Module):
            bad_input("model", type(model).__name__, "a torch.nn.Module")
        order = getattr(data, "sampler", None)
        if isinstance(order, torch.utils.data.RandomSampler):
            bad_input(
                "data", "a loader that shuffles", "the same examples in the same order at each step", "Use DataLoader(..., shuffle=False)."
            )
        model = unwrapped(model)
        run = per_example_loss(loss_fn, None, None)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        with untouched(model, evaluate=True), exact_backends(), torch.no_grad():
            probe = draw(data, None, max_examples=MOST_EXAMPLES + 1, batch_size=BATCH, seed=0, device=device)
            losses = torch.cat([run(model, batch, n)[1].float() for batch, n in zip(probe.batches, probe.sizes, strict=True)])
        self.update(losses, step, lr, sharpness=sharpness)
        return losses

    # ---- what was recorded --------------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Number of recordings T."""
        return len(self._losses)

    def __repr__(self) -> str:
        m = len(self._losses[0]) if self._losses else 0
        return f"LossTrajectory({m} examples, {len(self)} recordings)"

    @property
    def losses(self) -> npt.NDArray[np.float32]:
        """All losses, shape (m, T)."""
        return np.stack(self._losses, axis=1) if self._losses else np.empty((0, 0), dtype=np.float32)

    @property
    def index(self) -> Index:
        """Positions of the examples in the data, shape (m,)."""
        if self._index is not None:
            return self._index
        return np.arange(len(self._losses[0]) if self._losses else 0)

    @property
    def steps(self) -> Index:
        """Steps of the recordings, shape (T,)."""
        return np.asarray(self._steps, dtype=np.int64)

    @property
    def lr(self) -> Array:
        """Learning rate at each recording, shape (T,)."""
        return np.asarray(self._lr)

    @property
    def diverged_at(self) -> int | None:
        """Step of the first recording with a loss that is not finite; what follows it is not used."""
        return next((step for step, values in zip(self._steps, self._losses, strict=True) if not np.isfinite(values).all()), None)

    @property
    def edge(self) -> float:
        r"""Where :math:`lr \lambda_{max} / 2` starts the oscillation: 1, :math:`1 + \beta` with momentum, NaN for other optimizers."""
        return edge_of(self.momentum)

    def lr_lambda_half(self, step: int) -> float:
        r""":math:`lr \lambda_{max} / 2` at ``step``, with the sharpness that was recorded closest to it; NaN if none was."""
        at = int(np.argmin(np.abs(self.steps - step))) if self._steps else 0
        known = np.flatnonzero(np.isfinite(self._sharpness))
        if not len(known):
            return float("nan")
        nearest = known[np.argmin(np.abs(self.steps[known] - step))]
        return self._lr[at] * self._sharpness[int(nearest)] / 2

    def changes(self, k: float = 0.02) -> Changes:
        """All changes between recordings with the ``k`` m examples that rose and fell most, as :func:`opposing_groups` uses them.

        Raises
        ------
        InputError
            If there are fewer than 3 recordings with finite losses, or nowhere two changes of the same odd length in a row.
        """
        check_range("k", k, low=0.0, high=0.5, open_low=True)
        finite = self._losses
        if self.diverged_at is not None:
            finite = self._losses[: self._steps.index(self.diverged_at)]
        if len(finite) < FEWEST_RECORDINGS:
            found = f"{len(finite)} recordings" + ("" if self.diverged_at is None else f" before it diverged at step {self.diverged_at}")
            bad_input("trajectory", found, f"at least {FEWEST_RECORDINGS}: a change shows in two, its swap in three")
        gaps = np.diff(self.steps[: len(finite)])
        followed = np.append((gaps[:-1] == gaps[1:]) & (gaps[:-1] % 2 == 1), False)
        if not followed.any():
            bad_input(
                "trajectory",
                f"recordings {', '.join(map(str, np.unique(gaps)[:5]))} steps apart",
                "three in a row that are the same odd number of steps apart",
                "The groups swap at every step: from every second one they look still.",
            )
        count = max(1, round(k * len(finite[0])))
        rows = [_change(before, after, count) for before, after in pairwise(finite)]
        flip = np.zeros(len(rows), dtype=bool)
        echo = np.full(len(rows), np.nan)
        for j in np.flatnonzero(followed):
            following = finite[j + 2].astype(np.float64) - finite[j + 1]
            up, down = rows[j][3:]
            flip[j] = len(up) > 0 and len(down) > 0 and following[up].mean() < 0 < following[down].mean()
            if followed[j + 1]:
                echo[j] = _correlation(finite[j + 1].astype(np.float64) - finite[j], finite[j + 3].astype(np.float64) - finite[j + 2])
        volatility, kappa, share = (np.array([row[i] for row in rows]) for i in range(3))
        return Changes(
            step=self.steps[: len(rows)],
            lr=self.lr[: len(rows)],
            mean_loss=np.array([values.mean(dtype=np.float64) for values in finite[:-1]]),
            volatility=volatility,
            cancellation=kappa,
            share=share,
            followed=followed,
            flip=flip,
            echo=echo,
            rising=[row[3] for row in rows],
            falling=[row[4] for row in rows],
        )

    def to_frame(self, k: float = 0.02) -> pl.DataFrame:
        """One row per change: ``step``, ``lr``, ``mean_loss``, ``volatility``, ``cancellation``, ``extreme_share`` (of all rise and fall,
        what the two extreme groups carry), ``flip`` and ``echo`` (null where no swap could be seen) and ``volatile``."""
        import polars as pl

        found = self.changes(k)
        volatile = np.zeros(len(found.step), dtype=bool)
        volatile[found.volatile()] = True
        frame = {name: getattr(found, name) for name in ("step", "lr", "mean_loss", "volatility", "cancellation")}
        flips = [bool(flip) if seen else None for flip, seen in zip(found.flip, found.followed, strict=True)]
        echo = pl.Series(found.echo, nan_to_null=True)
        return pl.DataFrame(
            frame | {"extreme_share": found.share, "flip": pl.Series(flips, dtype=pl.Boolean), "echo": echo, "volatile": volatile}
        )

    def summary(self, k: float = 0.02) -> str:
        """What was seen, the numbers, and :math:`lr \\lambda / 2` beside them, without which nothing seen means nothing."""
        if self.diverged_at is not None:
            return f"Diverged at step {self.diverged_at}: a loss is not finite. {self._edge_sentence(self.diverged_at)}"
        found = self.changes(k)
        volatile = found.volatile()
        kappa, flips = float(np.median(found.cancellation[volatile])), float(found.flip[volatile].mean())
        echoes = found.echo[volatile][np.isfinite(found.echo[volatile])]
        echo = float(np.median(echoes)) if len(echoes) else float("nan")
        peak = float(np.max(found.mean_loss)) / float(found.mean_loss[0]) if found.mean_loss[0] > 0 else 1.0
        if not found.volatility.any():
            verdict = "Nothing moves against anything"
        elif kappa > OPPOSED and flips > FLIPS and not echo < ECHO:
            verdict = "Opposing groups"
        elif kappa > OPPOSED and flips > FLIPS:
            verdict = "Noise rather than opposing groups (what swaps does not come back; were the losses measured in eval mode?)"
        elif peak > SPIKE:
            verdict = f"Divergence, not opposition (the mean loss rose to {peak:.1f} times its first value)"
        else:
            verdict = "No opposing groups seen, which is no evidence of their absence where lr λ / 2 is small"
        return (
            f"{verdict}: in the 10 % most volatile of {int(found.followed.sum())} steps the median cancellation is {kappa:.2f} and the two "
            f"extreme {100 * k:g} % of the examples swap at the next step in {100 * flips:.0f} % (echo {echo:.2f}). "
            + self._edge_sentence(int(found.step[volatile[0]]))
        )

    def _edge_sentence(self, step: int) -> str:
        ratio = self.lr_lambda_half(step)
        if math.isnan(ratio):
            return "lr λ / 2 is unknown: give update(..., sharpness=sharpness(model, loss_fn, data).value) now and then."
        most = max(self.lr_lambda_half(at) for at in self._steps)
        known = f"lr λ / 2 = {ratio:.2f} at step {step}, at most {most:.2f}; "
        if self.momentum is None:
            return known + "where this optimizer starts to oscillate depends on its preconditioner."
        return known + f"the oscillation starts at {self.edge:g}."

    def plot(self, k: float = 0.02) -> Figure:
        """The mean loss, the two groups that move most against each other, and the volatility of every step."""
        from counterpoise.report import _plots as plots

        found = self.changes(k)
        j = int(found.volatile()[0])
        top, bottom = (
            np.array([values[rows].mean() for values in self._losses[: len(found.step)]]) for rows in (found.rising[j], found.falling[j])
        )
        width, height, left, wide = plots.WIDTH, 400, 64, plots.WIDTH - 64 - 24
        with plots.style():
            fig = plots.figure(width, height)
            upper, lower = plots.axes(fig, left, 172, wide, 158), plots.axes(fig, left, 48, wide, 92)
            for values, color, line, name in (
                (top, plots.RED, "-", "rising"),
                (bottom, plots.BLUE, "-", "falling"),
                (found.mean_loss, plots.INK, "--", "all"),
            ):
                upper.plot(found.step, values, color=color, ls=line, lw=1.3, label=name)
            upper.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0), labelcolor=plots.MUTED, borderaxespad=0)
            upper.set_ylabel("loss")
            upper.set_xticklabels([])
            lower.vlines(found.step, 0, found.volatility, color=plots.RULE, lw=1)
            for rows, color, marker, name in (
                (np.flatnonzero(found.flip), plots.RED, "o", "groups swap at the next step"),
                (found.volatile()[~found.flip[found.volatile()]], plots.GRAY, "x", "volatile, no swap"),
            ):
                lower.plot(found.step[rows], found.volatility[rows], ls="none", marker=marker, ms=4, color=color, label=name)
            lower.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), labelcolor=plots.MUTED, borderaxespad=0)
            lower.set_ylabel("volatility")
            lower.set_xlabel("step")
            lower.set_ylim(bottom=0)
            title = f"Two groups of {len(found.rising[j])}, chosen at step {found.step[j]}"
            fig.text(10 / width, 1 - 22 / height, title, va="center", weight="bold")
            fig.text(10 / width, 1 - 44 / height, self._edge_sentence(int(found.step[j])), va="center", color=plots.MUTED)
        return fig

    # ---- saving -------------------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and numbers: ``torch.save`` it beside the model's, and load it with ``weights_only=True``."""
        return {
            "losses": torch.from_numpy(self.losses.copy()),
            "steps": torch.tensor(self._steps, dtype=torch.int64),
            "lr": torch.tensor(self._lr, dtype=torch.float64),
            "sharpness": torch.tensor(self._sharpness, dtype=torch.float64),
            "index": None if self._index is None else torch.from_numpy(self._index.copy()),
            "momentum": self.momentum,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave; what was recorded here before is replaced."""
        missing = sorted({"losses", "steps", "lr", "sharpness", "index", "momentum"} - set(state))
        if missing:
            bad_input("state", f"no {', '.join(missing)}", "what LossTrajectory.state_dict() returned")
        self._losses = list(np.ascontiguousarray(state["losses"].numpy().T))
        self._steps = state["steps"].tolist()
        self._lr = state["lr"].tolist()
        self._sharpness = state["sharpness"].tolist()
        self._index = None if state["index"] is None else state["index"].numpy().copy()
        self.momentum = state["momentum"]


def _change(before: npt.NDArray[np.float32], after: npt.NDArray[np.float32], count: int) -> tuple[float, float, float, Index, Index]:
    """(volatility, cancellation, share of the extremes, rising rows, falling rows), the extremes largest first."""
    D = after.astype(np.float64) - before
    up, down = np.clip(D, 0, None), np.clip(-D, 0, None)
    rising, falling = (_largest(side, count) for side in (up, down))
    mass = up.sum() + down.sum()
    share = float((up[rising].sum() + down[falling].sum()) / mass) if mass > 0 else 0.0
    return float(np.sqrt(up.sum() * down.sum())) / len(D), cancellation(D), share, rising, falling


def _correlation(a: Array, b: Array) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else float("nan")


def _largest(values: Array, count: int) -> Index:
    """Rows of the ``count`` largest values, largest first; only positive ones."""
    rows = np.argpartition(-values, count - 1)[:count]
    rows = rows[np.argsort(-values[rows], kind="stable")]
    return rows[values[rows] > 0].astype(np.int64)


def _losses(losses: Tensor | npt.ArrayLike) -> npt.NDArray[np.float32]:
    if isinstance(losses, Tensor):
        if losses.dtype in HALF:
            bad_input(
                "losses", f"a tensor of {losses.dtype}", "float32 or float64", "Half precision rounds the changes between steps away."
            )
        losses = losses.detach().cpu().numpy()
    values = np.asarray(losses)
    if values.dtype == np.float16:
        bad_input("losses", "an array of float16", "float32 or float64", "Half precision rounds the changes between steps away.")
    if values.ndim != 1:
        what = "one number for the batch" if values.ndim == 0 else f"shape {values.shape}"
        bad_input("losses", what, "one loss per example, shape (m,)", "Set reduction='none'.")
    if not FEWEST_EXAMPLES <= len(values) <= MOST_EXAMPLES:
        bad_input("losses", f"{len(values)} examples", f"a probe of {FEWEST_EXAMPLES} to {MOST_EXAMPLES:,} examples")
    return np.array(values, dtype=np.float32)  # a copy: the caller's buffer may be reused


def _positions(index: npt.ArrayLike | Tensor) -> Index:
    values = np.array(index.detach().cpu().numpy() if isinstance(index, Tensor) else index)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        bad_input("index", f"{values.dtype} of shape {values.shape}", "positions in the data, integers of shape (m,)")
    return values.astype(np.int64)
