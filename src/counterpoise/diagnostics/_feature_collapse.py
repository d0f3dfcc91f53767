"""Where rare targets get the features of frequent ones (Keramati, Meng, Evans 2023, arXiv:2309.06651)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from counterpoise._errors import bad_input, check_range
from counterpoise.groups import Groups
from counterpoise.losses._conr import distances, unit_rows

from ._shares import percent

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

__all__ = ["CollapseReport", "feature_collapse"]

Array = npt.NDArray[np.float64]

PAIRS_AT_ONCE = 2**24


@dataclass(frozen=True, eq=False)
class CollapseReport:
    """Result of :func:`feature_collapse`. Arrays have one entry per bin of the targets, nan where there is nothing to measure.

    Attributes
    ----------
    names : tuple of str
        Ranges of the targets.
    count : array of int
        Rows in each bin.
    negative_share : array
        Share of the bin's rows that have a negative pair: another row, of any bin, whose prediction is within the window of theirs while
        its target is not. It grows with the number of rows: on as many as in a batch, it is the share of anchors that ConR can push.
    confused_share : array
        Of the pairs of a row of the bin with another row that is predicted within the window of it, the share that are negative. Does not
        depend on the number of rows.
    cosine_to_majority : array
        Mean cosine between the features of the bin's rows and those of the majority bin, pairs of a row with itself left out.
    cosine_within : array
        The same with the other rows of the bin. Where it is no larger than ``cosine_to_majority``, the bin has no features of its own.
    majority : int
        The bin with the most rows.
    window : float
        As given, in the unit of the targets.
    """

    names: tuple[str, ...]
    count: npt.NDArray[np.int64]
    negative_share: Array
    confused_share: Array
    cosine_to_majority: Array
    cosine_within: Array
    majority: int
    window: float

    def to_frame(self) -> pl.DataFrame:
        """One row per bin, in the order of the targets."""
        import polars as pl

        return pl.DataFrame(
            {
                "bin": list(self.names),
                "count": self.count,
                "negative_share": self.negative_share,
                "confused_share": self.confused_share,
                "cosine_to_majority": self.cosine_to_majority,
                "cosine_within": self.cosine_within,
            }
        )

    def summary(self) -> str:
        """Up to three sentences, one per line."""
        n = int(self.count.sum())
        share = float((np.nan_to_num(self.negative_share) * self.count).sum() / n)
        lines = [
            f"{percent(share)} of {n:,} rows have a negative pair: predicted within {self.window:g} of each other, targets further apart."
        ]
        others = [int(k) for k in np.flatnonzero(self.count) if k != self.majority]
        if not others:
            return lines[0] + f"\nAll rows lie in {self.names[self.majority]}."
        worst = max(others, key=lambda k: (np.nan_to_num(self.confused_share[k]), self.cosine_to_majority[k]))
        confused = percent(float(np.nan_to_num(self.confused_share[worst])))
        lines.append(
            f"Most confused is {self.names[worst]} ({self.count[worst]:,} of the rows): {confused} of what is predicted alike differs; "
            f"cosine {self.cosine_to_majority[worst]:.2f} to the majority, {self.names[self.majority]}."
        )
        lost = [k for k in others if self.cosine_within[k] <= self.cosine_to_majority[k]]
        if lost:
            names = ", ".join(self.names[k] for k in lost)
            lines.append(f"No more alike within than to the majority: {names}.")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Per bin: share of negatives among the rows predicted alike, and cosines to the majority and within."""
        from counterpoise.report import _plots

        shown = np.flatnonzero(self.count)[: _plots.MOST_GROUPS]
        with _plots.style():
            row_height, top, bottom, left = 28, 66, 48, 176
            height = row_height * len(shown) + top + bottom
            fig = _plots.figure(_plots.WIDTH, height)
            shares = _plots.axes(fig, left, bottom, 230, row_height * len(shown))
            cosines = _plots.axes(fig, left + 270, bottom, 270, row_height * len(shown))
            for ax in (shares, cosines):
                _plots.plain_rows(ax, len(shown))
                _plots.rules_between(ax, len(shown))
            shares.set_xlim(0, 1)
            shares.xaxis.set_major_formatter(lambda value, _: percent(value, 0))
            shares.set_xlabel("predicted alike, targets differ")
            measured = np.concatenate([self.cosine_to_majority[shown], self.cosine_within[shown]])
            lowest = float(np.nanmin(measured)) if np.isfinite(measured).any() else 0.0
            cosines.set_xlim(min(-0.05, lowest - 0.1), 1.05)
            cosines.axvline(0, color=_plots.RULE, lw=1, zorder=1)
            cosines.set_xlabel("mean cosine of features")
            for row, k in enumerate(shown):
                _plots.row_text(fig, shares, row, 8, self.names[k], weight="bold" if k == self.majority else "normal")
                _plots.row_text(fig, shares, row, left - 12, f"{self.count[k]:,}", ha="right", color=_plots.MUTED)
                shares.barh(
                    row,
                    np.nan_to_num(self.confused_share[k]),
                    height=0.5,
                    color=_plots.GRAY if k == self.majority else _plots.BLUE,
                    zorder=2,
                )
                pair = self.cosine_to_majority[k], self.cosine_within[k]
                cosines.plot(pair, [row, row], color=_plots.RULE, lw=1.6, zorder=2, solid_capstyle="butt")
                cosines.plot(pair[1], row, color=_plots.PAPER, zorder=3, **_plots.DIAMOND)
                if k != self.majority:
                    cosines.plot(pair[0], row, color=_plots.BLUE, zorder=4, **_plots.DOT)
            _plots.key(
                fig,
                left + 276,
                height - 48,
                [("to the majority bin", {"color": _plots.BLUE, **_plots.DOT}), ("within", {"color": _plots.PAPER, **_plots.DIAMOND})],
            )
            title = f"Rare targets with the features of frequent ones; majority: {self.names[self.majority]}"
            fig.text(8 / _plots.WIDTH, 1 - 12 / height, title, va="top", weight="bold")
            return fig


def feature_collapse(features: Any, targets: Any, predictions: Any, window: float, *, bins: int | Sequence[float] = 10) -> CollapseReport:
    r"""Whether rare ranges of a target are told apart from frequent ones, in the predictions and in the features.

    Two rows are a *negative pair* if :math:`|y_i - y_j| > w` and :math:`|p_i - p_j| \le w`: the model takes them for the same, and they are
    not. Those are what :class:`counterpoise.losses.ConRLoss` pushes apart. If hardly any row has one, it has nothing to do.

    Parameters
    ----------
    features : array-like or tensor, shape (n, d) or with more dimensions
        Input of the regression head, of a validation set in ``eval()`` mode. Flattened.
    targets, predictions : array-like or tensor, shape (n,) or (n, 1)
    window : float > 0
        w, in the unit of the targets.
    bins : int or increasing sequence of float, default 10
        Number of bins of equal width, or their edges. Rows outside given edges belong to no bin; they are still partners of pairs.

    Raises
    ------
    InputError
        If shapes do not match, there are fewer than two rows, a number is not finite, or a parameter is out of its range.

    Examples
    --------
    >>> features = np.array([[1.0, 0.0]] * 6 + [[0.0, 1.0], [0.8, 0.6]])
    >>> age, predicted = np.array([30] * 6 + [50, 70]), np.array([30] * 6 + [50, 34])
    >>> report = feature_collapse(features, age, predicted, window=5.0, bins=[20, 40, 60, 80])
    >>> report.negative_share.round(2), report.confused_share.round(2), report.cosine_to_majority.round(2)
    (array([1., 0., 1.]), array([0.17,  nan, 1.  ]), array([1. , 0. , 0.8]))
    >>> print(report.summary())
    87.5 % of 8 rows have a negative pair: predicted within 5 of each other, targets further apart.
    Most confused is [60, 80] (1 of the rows): 100.0 % of what is predicted alike differs; cosine 0.80 to the majority, [20, 40).
    """
    check_range("window", window, low=0, open_low=True)
    z = _tensor("features", features)
    y, p = (_column(name, values, len(z)) for name, values in (("targets", targets), ("predictions", predictions)))
    if z.ndim < 2 or len(z) < 2:
        bad_input("features", f"shape {tuple(z.shape)}", "shape (n, d) with n >= 2")
    groups = Groups.from_bins(y.cpu().numpy(), bins=bins)
    count = groups.counts()
    if not count.any():
        bad_input("bins", bins, "edges that hold at least one target")
    ids, present = torch.from_numpy(groups.ids.copy()).to(z.device), groups.ids >= 0
    negatives, alike = _pairs(y, p, float(window))

    def total(of_rows: npt.NDArray[Any]) -> Array:
        return np.asarray(np.bincount(groups.ids[present], weights=of_rows[present], minlength=len(groups)), dtype=np.float64)

    unit = unit_rows(z.flatten(1))
    # The mean cosine between two sets of unit vectors is the inner product of their means.
    inside = torch.from_numpy(present).to(z.device)
    sums = unit.new_zeros(len(groups), unit.shape[1]).index_add_(0, ids[inside], unit[inside]).double()
    lengths = sums.new_zeros(len(groups)).index_add_(0, ids[inside], unit[inside].double().square().sum(dim=1)).cpu().numpy()
    majority = int(np.argmax(count))
    to_majority = (sums @ sums[majority]).cpu().numpy()
    within = sums.square().sum(dim=1).cpu().numpy() - lengths  # without the pairs of a row with itself
    cosine_within = _ratio(within, count * (count - 1))
    cosine_to_majority = _ratio(to_majority, count * count[majority])
    cosine_to_majority[majority] = cosine_within[majority]
    return CollapseReport(
        groups.names,
        count,
        negative_share=_ratio(total(negatives > 0), count),
        confused_share=_ratio(total(negatives), total(alike)),
        cosine_to_majority=cosine_to_majority,
        cosine_within=cosine_within,
        majority=majority,
        window=float(window),
    )


def _pairs(y: Tensor, p: Tensor, window: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(n,) negative pairs of each row, and other rows that are predicted alike; some rows at a time."""
    size = max(1, PAIRS_AT_ONCE // len(y))
    negatives, alike = [], []
    for start in range(0, len(y), size):
        rows = slice(start, start + size)
        close = distances(p[rows, None], p[:, None]) <= window
        negatives.append((close & (distances(y[rows, None], y[:, None]) > window)).sum(dim=1))
        alike.append(close.sum(dim=1) - 1)
    return torch.cat(negatives).cpu().numpy(), torch.cat(alike).cpu().numpy()


def _ratio(total: npt.NDArray[Any], pairs: npt.NDArray[Any]) -> Array:
    """Their quotient, nan where there are no pairs."""
    return np.asarray(np.divide(total, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0))


def _tensor(argument: str, values: Any) -> Tensor:
    """Finite numbers without gradient, on their device."""
    try:
        x = values.detach() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    except TypeError:  # text, objects
        bad_input(argument, f"an array of {np.asarray(values).dtype}", "numbers")
    x = x if x.is_floating_point() else x.double()
    if not bool(torch.isfinite(x).all()):
        bad_input(argument, "nan or inf", "finite numbers")
    return x


def _column(argument: str, values: Any, n: int) -> Tensor:
    x = _tensor(argument, values)
    if tuple(x.shape) not in ((n,), (n, 1)):
        bad_input(argument, f"shape {tuple(x.shape)} for {n} rows of features", "shape (n,) or (n, 1)")
    return x.reshape(-1).double()
