r"""Which mistakes of a ranking are worth repairing, by AUROC and by AUPRC (McDermott et al. 2024, arXiv:2401.06091, section 2).

What is unbalanced: an atomic mistake is a positive ranked right below a negative. Swapping the two adds :math:`1 / (P N)` to AUROC wherever
they are, but

.. math:: \frac{1}{P} \cdot \frac{T}{k (k - 1)}

to AUPRC, with P positives, N negatives, the positive at rank k, and T positives up to there. A swap at the top is worth hundreds at the
bottom, and it belongs to the group that has the high scores: the one where positives are common.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._errors import bad_input, check_choice, listing
from counterpoise._stats import gini
from counterpoise.metrics._curves import Curve, curve_of
from counterpoise.metrics._decomposition import group_curves
from counterpoise.metrics._inputs import BoolArray, FloatArray, IntArray, read_groups, read_positive, read_score

from ._shares import percent, sum_by

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

__all__ = ["MetricAdvice", "MistakeLeverage", "metric_advice", "mistake_leverage"]

USES = ("classification", "retrieval", "per_group_retrieval")
PER_GROUP = "average_precision per group"


@dataclass(frozen=True, eq=False)
class MistakeLeverage:
    """Result of :func:`mistake_leverage`. Arrays have one entry per mistake, the highest ranked first.

    Attributes:
        pairs: (m, 2) row of the negative, row of the positive right below it.
        rank: (m,) place of the positive from the top, the last one of those it is tied with.
        gain_auroc, gain_auprc: (m,) what each metric gains when the two swap their scores.
        auroc, auprc, prevalence: of all rows.
        gini: how unequal ``gain_auprc`` is: 0 all alike, towards 1 a few hold everything; NaN without mistakes.
        by_group: one row per group (None without groups), by the group of the positive: ``positives``, ``mistakes``; the sums
            ``gain_auroc`` and ``gain_auprc``; their shares of the possible gain, ``auroc_share`` and ``auprc_share``.
    """

    pairs: IntArray
    rank: IntArray
    gain_auroc: FloatArray
    gain_auprc: FloatArray
    auroc: float
    auprc: float
    prevalence: float
    gini: float
    by_group: pl.DataFrame | None = None

    @property
    def first_tenth(self) -> float:
        """Share of the possible AUPRC gain that the first tenth of the mistakes holds; NaN without mistakes."""
        return _first_tenth(self.gain_auprc)

    def to_frame(self) -> pl.DataFrame:
        """One row per mistake."""
        import polars as pl

        columns = {"negative": self.pairs[:, 0], "positive": self.pairs[:, 1], "rank": self.rank}
        return pl.DataFrame(columns | {"gain_auroc": self.gain_auroc, "gain_auprc": self.gain_auprc})

    def summary(self) -> str:
        """How unequal the mistakes are, and which group's repairs AUPRC would pay for."""
        if not len(self.rank):
            return f"AUROC {self.auroc:.4f}, AUPRC {self.auprc:.4f}: no positive is ranked right below a negative."
        lines = [
            f"{len(self.rank):,} positives are ranked right below a negative. The first tenth of these mistakes holds "
            f"{percent(self.first_tenth)} of the possible gain in AUPRC (Gini {self.gini:.2f}), and "
            f"{percent(_first_tenth(self.gain_auroc))} of that in AUROC."
        ]
        most = _largest(self.by_group)
        if most is not None:
            lines.append(
                f"Group {most['group']!r} has {percent(most['positives'] / self._positives)} of the positives and holds "
                f"{percent(most['auprc_share'])} of the gain in AUPRC, {percent(most['auroc_share'])} of that in AUROC."
            )
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Possible gain against the mistakes from the top down; with groups also who holds it."""
        from counterpoise.report import _leverage

        return _leverage.leverage_figure(self.gain_auroc, self.gain_auprc, self.by_group)

    @property
    def _positives(self) -> int:
        return 0 if self.by_group is None else int(self.by_group["positives"].sum())


@dataclass(frozen=True, eq=False)
class MetricAdvice:
    """Result of :func:`metric_advice`.

    Attributes:
        name: the metric to choose by: ``"roc_auc"``, ``"average_precision"`` or ``"average_precision per group"``.
        use: what it was asked for.
        reason: why, with the numbers of these scores.
        numbers: those numbers, by name.
        by_group: as in :func:`mistake_leverage`, with ``prevalence``, ``auroc`` and ``auprc`` within each group; None without groups.
        leverage: the mistakes behind it.
    """

    name: str
    use: str
    reason: str
    numbers: Mapping[str, float]
    by_group: pl.DataFrame | None
    leverage: MistakeLeverage

    def to_frame(self) -> pl.DataFrame:
        """The numbers, one row each; those of the groups are in ``by_group``."""
        import polars as pl

        return pl.DataFrame({"number": list(self.numbers), "value": list(self.numbers.values())})

    def summary(self) -> str:
        """``Choose by ...``, and the reason."""
        return f"Choose by {self.name}. {self.reason}"

    def plot(self) -> Figure:
        """That of :class:`MistakeLeverage`."""
        return self.leverage.plot()


def mistake_leverage(y_true: Any, y_score: Any, groups: Any = None, *, pos_label: Any = None) -> MistakeLeverage:
    r"""What AUROC and AUPRC gain from repairing each atomic mistake, and which group's mistakes these are.

    A mistake is a positive with a negative at the next higher score; to repair it, the two swap their scores. With K rows and T positives
    at or above a score, of the higher score (s rows, p positives of that very score) and of the lower one (s' rows), the gains are

    .. math::
        \Delta AUROC = \frac{s + s'}{2 P N}, \qquad
        \Delta AUPRC = \frac{1}{P} \left[ \frac{T + p + 1}{K} - \frac{T'}{K'} \right]

    exactly; without ties :math:`1 / (P N)` and :math:`T' / (P k (k - 1))` at rank k. Of the negatives that share the higher score one, the
    first row, stands for all. Tied rows are not mistakes among themselves. O(n log n).

    Parameters
    ----------
    y_true, y_score, pos_label
        As in :func:`counterpoise.metrics.auroc_auprc_decomposition`.
    groups : Groups or labels, shape (n,), optional
        Whose mistakes these are: a mistake counts for the group of its positive.

    Raises
    ------
    InputError
        (a ValueError) If a class is missing, a score is NaN, labels are not of two classes, or lengths do not match.

    Examples
    --------
    >>> found = mistake_leverage([0, 1, 0, 0, 1, 1], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], groups=["a", "a", "a", "b", "b", "b"])
    >>> found.pairs.tolist(), found.rank
    ([[0, 1], [3, 4]], array([2, 5]))
    >>> (9 * found.gain_auroc).round(9), found.gain_auprc.round(4)
    (array([1., 1.]), array([0.1667, 0.0333]))
    >>> table = found.by_group
    >>> table["group"].to_list(), table["auroc_share"].to_list(), table["auprc_share"].round(4).to_list()
    (['a', 'b'], [0.5, 0.5], [0.8333, 0.1667])
    """
    positive = read_positive(y_true, pos_label)
    score = read_score(y_score, len(positive))
    grouped = None if groups is None else read_groups(groups, len(positive))
    return _leverage_of(positive, score, curve_of(score, positive), grouped)


def metric_advice(y_true: Any, y_score: Any, groups: Any = None, use: str = "classification", *, pos_label: Any = None) -> MetricAdvice:
    """Which of the two metrics to choose models by, for what they will be used for, with what the other would do on these scores.

    That a class is rare is no reason for AUPRC: it is a metric for lists that are read from the top.

    Parameters
    ----------
    y_true, y_score, groups, pos_label
        As in :func:`mistake_leverage`.
    use : {"classification", "retrieval", "per_group_retrieval"}, default "classification"
        What the scores are for. "classification": a decision for every row, at a threshold that is not known yet -> AUROC. "retrieval": one
        list of all rows, read from the top -> average precision. "per_group_retrieval": one list per group -> average precision within each
        group, never of all rows.

    Raises
    ------
    InputError
        As in :func:`mistake_leverage`; for an unknown use, and "per_group_retrieval" without groups.

    Examples
    --------
    >>> advice = metric_advice([0, 1, 0, 0, 1, 1], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    >>> advice.name, round(advice.numbers["auroc"], 4)
    ('roc_auc', 0.2222)
    >>> print(metric_advice([0, 1, 0, 0, 1, 1], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], use="retrieval").summary())
    Choose by average_precision. One list is read from the top, and there AUPRC looks: the first tenth of the mistakes holds 83.3 % of its
    possible gain. Report the prevalence 0.5000 beside it, which is what scores that know nothing get, and compare only where the prevalence
    is the same. If the length of the list is fixed, precision at that length says more.
    """
    check_choice("use", use, USES)
    if use == "per_group_retrieval" and groups is None:
        bad_input("groups", groups, "the group of each row", "Without groups there is one list: use='retrieval'.")
    positive = read_positive(y_true, pos_label)
    score = read_score(y_score, len(positive))
    grouped = None if groups is None else read_groups(groups, len(positive))
    found = _leverage_of(positive, score, curve_of(score, positive), grouped)
    by_group = found.by_group
    if grouped is not None and by_group is not None:
        within = group_curves(score, positive, *grouped).select("group", "rows", "prevalence", "auroc", "auprc", "note")
        by_group = by_group.join(within, on="group", how="inner", maintain_order="left")
    if use == "classification":
        name, reason = "roc_auc", _for_classification(found)
    elif use == "retrieval":
        name, reason = "average_precision", _for_retrieval(found)
    else:
        name, reason = PER_GROUP, _for_lists(found, by_group)
    numbers = {number: getattr(found, number) for number in ("auroc", "auprc", "prevalence", "gini", "first_tenth")}
    return MetricAdvice(name, use, reason, numbers, by_group, found)


def _leverage_of(
    positive: BoolArray, score: npt.NDArray[Any], curve: Curve, grouped: tuple[IntArray, tuple[str, ...]] | None
) -> MistakeLeverage:
    level, inverse, size = np.unique(score, return_inverse=True, return_counts=True)
    hits = np.bincount(inverse[positive], minlength=len(level))
    at_or_above, true = np.cumsum(size[::-1])[::-1], np.cumsum(hits[::-1])[::-1]
    # One negative for each score that has any: written from the last row to the first, so that the first one stays.
    negatives = np.flatnonzero(~positive)[::-1]
    example = np.full(len(level) + 1, -1)
    example[inverse[negatives]] = negatives
    rows = np.flatnonzero(positive)
    rows = rows[example[inverse[rows] + 1] >= 0]
    rows = rows[np.argsort(-inverse[rows], kind="stable")]
    low, high = inverse[rows], inverse[rows] + 1
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    # Over a common denominator, so that nothing cancels.
    numerator = (true[high] + hits[high] + 1) * at_or_above[low] - true[low] * at_or_above[high]
    gain_auprc = numerator / (at_or_above[high] * at_or_above[low]) / n_positive
    gain_auroc = (size[high] + size[low]) / (2 * n_positive * n_negative)
    pairs = np.stack([example[high], rows], axis=1)
    return MistakeLeverage(
        pairs=pairs,
        rank=at_or_above[low],
        gain_auroc=gain_auroc,
        gain_auprc=gain_auprc,
        auroc=curve.auroc,
        auprc=curve.auprc,
        prevalence=curve.prevalence,
        gini=gini(gain_auprc),
        by_group=None if grouped is None else _by_group(*grouped, positive, rows, gain_auroc, gain_auprc),
    )


def _by_group(
    ids: IntArray, names: tuple[str, ...], positive: BoolArray, rows: IntArray, gain_auroc: FloatArray, gain_auprc: FloatArray
) -> pl.DataFrame:
    import polars as pl

    own, groups = ids[rows], len(names)
    sums = {"gain_auroc": sum_by(own, gain_auroc, groups), "gain_auprc": sum_by(own, gain_auprc, groups)}
    with np.errstate(invalid="ignore"):
        shares = {f"{name.removeprefix('gain_')}_share": values / values.sum() for name, values in sums.items()}
    counts = {"positives": np.bincount(ids[positive], minlength=groups), "mistakes": np.bincount(own, minlength=groups)}
    present = np.bincount(ids, minlength=groups) > 0
    return pl.DataFrame({"group": list(names)} | counts | sums | shares).filter(pl.Series(present))


# ---- reasons ----------------------------------------------------------------------------------------------------------------------------


def _for_classification(found: MistakeLeverage) -> str:
    text = "The threshold is not known yet, so every pair of a positive and a negative should count alike, as it does for AUROC."
    if len(found.rank):
        text += f" AUPRC would let the first tenth of the mistakes decide over {percent(found.first_tenth)} of its possible gain"
        most = _largest(found.by_group)
        if most is not None:
            text += (
                f", and group {most['group']!r}, with {percent(most['positives'] / found._positives)} of the positives, over "
                f"{percent(most['auprc_share'])} (AUROC: {percent(most['auroc_share'])})"
            )
        text += "."
    return text


def _for_retrieval(found: MistakeLeverage) -> str:
    text = "One list is read from the top, and there AUPRC looks"
    if len(found.rank):
        text += f": the first tenth of the mistakes holds {percent(found.first_tenth)} of its possible gain"
    text += (
        f". Report the prevalence {found.prevalence:.4f} beside it, which is what scores that know nothing get, and compare only where the "
        "prevalence is the same. If the length of the list is fixed, precision at that length says more."
    )
    most = _largest(found.by_group)
    if most is not None:
        text += (
            f" Group {most['group']!r} holds {percent(most['auprc_share'])} of the possible gain: where every group should be served, "
            "look at each alone (use='per_group_retrieval')."
        )
    return text


def _for_lists(found: MistakeLeverage, by_group: pl.DataFrame | None) -> str:
    assert by_group is not None
    known = by_group.filter(by_group["note"] == "").rows(named=True)
    parts = [f"{row['group']!r} {row['auprc']:.4f} ({row['prevalence']:.4f})" for row in known[:MOST_NAMED]]
    more = f" and {len(known) - MOST_NAMED} more" if len(known) > MOST_NAMED else ""
    text = f"Each group is a list of its own: AUPRC within each, its prevalence in brackets, is {', '.join(parts)}{more}."
    unknown = by_group.filter(by_group["note"] != "")["group"].to_list()
    if unknown:
        text += f" With one class only, and so without a metric: {listing(unknown)}."
    most = _largest(by_group)
    if most is not None:
        text += (
            f" AUPRC of all rows ({found.auprc:.4f}) would hide this: group {most['group']!r} holds {percent(most['auprc_share'])} of its "
            "possible gain."
        )
    return text


MOST_NAMED = 6  # groups in a sentence


def _first_tenth(gain: FloatArray) -> float:
    return float(gain[: -(-len(gain) // 10)].sum() / gain.sum()) if len(gain) else float("nan")


def _largest(by_group: pl.DataFrame | None) -> dict[str, Any] | None:
    """The group with the largest share of the gain in AUPRC, if there is a gain and a choice."""
    if by_group is None or by_group.height < 2 or not by_group["mistakes"].sum():
        return None
    return by_group.sort("auprc_share", descending=True, maintain_order=True).row(0, named=True)
