r"""Which stage of training to treat: one word from the numbers of a diagnosis, with these numbers beside it.

The question is what would help *beyond a well-chosen threshold*, since moving the threshold is free and every arm of a study has it. So
the rule asks in this order:

1. Do groups of an attribute (not classes or ranges, which oppose each other by construction) pull against each other? -> ``gradient``.
2. Regression: do a few rows make most of the squared error? -> ``loss``. Otherwise ``nothing``: an error counts rows as the fit does.
3. How far do the rare groups stay behind once the threshold has moved? With recall :math:`m_k` of C classes after the move and
   :math:`\bar m` that of the classes that are not rare, the *room* is
   :math:`\frac1C \sum_{k\ \mathrm{rare}} \max(0, \bar m - m_k)`, in balanced accuracy. If a quarter of it is less than a study of so many
   rows could see, :math:`\frac{2 \cdot 0.42}{C} \sqrt{\sum_k 1 / n_k}` -> ``nothing``.
4. Otherwise: is the group that lacks most loud but of many minds at the fit, as wrong labels and overlap make it? -> ``data``. Else it is
   outvoted -> ``loss``, the simplest stage that acts on counts.

``decision`` is not hinted, since the threshold is moved already; nor ``model``, of which the gradient of a linear head says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ._shares import CONFLICT, Array, GroupShares, factor_shares, incoherent, percent, signed

__all__ = ["StageHint", "stage_hint"]

# Judgment, checked on digits8, breast-cancer, breast-cancer-rare, wine and generated tables; benchmarks/hints.py tests it on other sets.
REALISTIC = 0.25  # part of the room that a remedy may win back: bringing a rare class up costs others something
DETECTABLE = 0.42  # with n1 rare rows a study of a linear model sees differences above this over sqrt(n1)
MOST_ERROR, FEW_ROWS = 0.5, 0.1  # "a few rows make most of the error"


@dataclass(frozen=True)
class StageHint:
    """A stage to treat: a hint, no proof.

    Attributes:
        stage: ``data``, ``loss``, ``gradient``, or ``nothing``: nothing to treat but the threshold, which may always be moved.
        factor: what it rests on, ``many``, ``loud``, ``unanimous`` or ``aligned``; "" for nothing.
        reason: the numbers that led to it, in a sentence.
    """

    stage: str
    factor: str
    reason: str

    def sentence(self) -> str:
        """The stage, then the reason.

        >>> StageHint("loss", "many", "Class 'yes' is outvoted.").sentence()
        "A hint, no proof: treat the loss. Class 'yes' is outvoted."
        """
        what = "nothing to treat" if self.stage == "nothing" else f"treat the {self.stage}"
        return f"A hint, no proof: {what}. {self.reason}"


def stage_hint(
    start: GroupShares,
    fit: GroupShares,
    counts: npt.NDArray[np.int64],
    served: Array,
    loss: Array,
    *,
    kind: str = "class",
    regression: bool = False,
) -> StageHint:
    """Which stage to treat beyond a well-chosen threshold, by the rule at the top of this module.

    Parameters
    ----------
    start, fit : GroupShares
        Of a linear head with zero weights, and of the fitted one.
    counts : array, shape (G,)
        Rows of each group in the whole table.
    served : array, shape (G,)
        Share of each group's unseen rows that are decided correctly, of classes with the threshold moved by their frequencies. Not looked
        at in a regression.
    loss : array, shape (G,)
        Mean loss of each group's unseen rows. Looked at in a regression only, where it is half the squared error.
    kind : str, default "class"
        Word for a group: "class", "range" or "group".
    regression : bool, default False
    """
    if kind == "group" and len(counts) > 2 and not start.settled and start.conflict > CONFLICT:
        k = int(np.nanargmin(start.alignment))
        return StageHint(
            "gradient",
            "aligned",
            f"{percent(start.conflict, 0)} of the inner products between groups is negative (above {percent(CONFLICT, 0)}); group "
            f"{start.names[k]!r} has cosine {signed(float(start.alignment[k]))} with the step.",
        )
    if regression:
        return _regression_hint(counts, loss, kind)
    return _class_hint(start, fit, counts, served, kind)


def room_beyond_threshold(counts: npt.NDArray[np.int64], served: Array) -> tuple[float, Array]:
    """(balanced accuracy to be won if the rare groups were served like the others, what each group is behind); rare: below an equal share.

    >>> room, behind = room_beyond_threshold(np.array([900, 100]), np.array([0.9, 0.7]))
    >>> round(room, 3), behind.round(3).tolist()
    (0.1, [0.0, 0.2])
    """
    rare = counts < counts.mean()
    if not rare.any():
        return 0.0, np.zeros(len(counts))
    behind = np.where(rare, np.maximum(served[~rare].mean() - served, 0.0), 0.0)
    return float(behind.mean()), behind


def detectable_difference(counts: npt.NDArray[np.int64]) -> float:
    """Difference in balanced accuracy that a study of a linear model with so many rows per class can see.

    Two classes, one of them common: 0.42 / sqrt(n1).

    >>> round(detectable_difference(np.array([1_000_000, 100])), 3)
    0.042
    """
    return float(2 * DETECTABLE / len(counts) * np.sqrt((1.0 / counts).sum()))


def _class_hint(start: GroupShares, fit: GroupShares, counts: npt.NDArray[np.int64], served: Array, kind: str) -> StageHint:
    what, moved = ("recall", " once the threshold has moved") if kind == "class" else ("accuracy", "")
    room, behind = room_beyond_threshold(counts, served)
    if room == 0:
        k = int(np.argmin(served))
        return StageHint(
            "nothing", "", f"No rare {kind} stays behind{moved}: the lowest {what} is {percent(float(served[k]))} ({start.names[k]!r})."
        )
    k = int(np.argmax(behind))
    others = float(served[k] + behind[k])
    measured = (
        f"{kind.capitalize()} {start.names[k]!r}, {counts[k]:,} rows: {what} {percent(float(served[k]))}{moved}, others {percent(others)}"
    )
    won, seen = REALISTIC * room, detectable_difference(counts)
    if won < seen:
        return StageHint(
            "nothing",
            "",
            f"{measured}. A quarter of what is missing is {won:.2g} of balanced accuracy, and a study of these rows sees differences from "
            f"{seen:.2g}.",
        )
    if k in incoherent(fit):
        return StageHint(
            "data",
            "unanimous",
            f"{measured}, and its rows are loud ({fit.rho[k]:.2g}, typical {np.nanmedian(fit.rho):.2g}) but not unanimous (coherence "
            f"{signed(float(fit.alpha_unbiased[k]))}) at the fit.",
        )
    explained = factor_shares(start)
    factor = "loud" if explained.get("loud", 0.0) > explained.get("many", 0.0) else "many"
    return StageHint(
        "loss",
        factor,
        f"{measured}. It is {percent(float(counts[k] / counts.sum()))} of the rows: weights, or resampling, act on that.",
    )


def _regression_hint(counts: npt.NDArray[np.int64], loss: Array, kind: str) -> StageHint:
    """Fewest rows, in whole groups, that make half of the squared error."""
    order = np.argsort(-loss, kind="stable")
    error = np.cumsum((counts * loss)[order])
    rows = np.cumsum(counts[order]) / counts.sum()
    if not error[-1] > 0:
        return StageHint("nothing", "", "Nothing is left of the error.")
    last = int(np.searchsorted(error, MOST_ERROR * error[-1]))
    groups = f"{last + 1} {kind}{'s' * (last > 0)}"
    measured = f"{percent(float(rows[last]))} of the rows ({groups} of {len(counts)}) make {percent(float(error[last] / error[-1]), 0)}"
    if rows[last] <= FEW_ROWS:
        return StageHint("loss", "loud", f"{measured} of the squared error: a loss that grows less fast acts on that.")
    return StageHint("nothing", "", f"{measured} of the squared error: no few rows carry most of it, and a mean error counts all alike.")
