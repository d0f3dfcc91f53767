r"""Whether predictions depend on protected attributes, one at a time and together (intersections), and on which cells it shows.

The distance covariance with all attributes side by side (CC) is compared with the sum of those with each attribute, the divergence between
cells with that of permuted rows: a difference between groups of a few rows is there by chance alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from counterpoise._errors import bad_input, check_range, listing
from counterpoise._seeding import generator
from counterpoise.data import ProtectedAttributeEncoder
from counterpoise.groups import Groups, _numbers, _to_numpy
from counterpoise.losses import DistanceCovariancePenalty
from counterpoise.metrics._by_group import Densities, read_predictions, variance_share

from ._shares import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["IntersectionalReport", "attribute_table", "cells_of_attributes", "encode_attributes", "intersectional_report"]

Array = npt.NDArray[np.float64]

PERMUTATIONS, FOR_MEANS = 199, 50  # for the p-value, and how many of them for the means by chance
MOST_VALUES = 10  # of a number, up to which each is a cell of its own; else quarters of the rows
BANDWIDTH = 0.15  # of the density, in standard deviations of the predictions


@dataclass(frozen=True, eq=False)
class IntersectionalReport:
    """Result of :func:`intersectional_report`.

    Attributes:
        n: rows. attributes: names.
        ccdcov: unbiased squared distance covariance of the predictions with all attributes side by side.
        dcov: (q,) that with each attribute alone.
        p_value: share of permutations of the rows, the data themselves included, whose ccdcov is at least as large; numbers in quarters.
        jsd: Jensen-Shannon divergence between the cells, in bits; jsd_null: its mean under the permutations.
        uf: variance of the cell means over that of the predictions; uf_null: its mean under the permutations.
        cells: the intersections that occur; attributes that are numbers in quarters.
        mean_prediction, mean_outcome: (G,) of each cell; mean_outcome is None without ``y``.
        standard_error: (G,) of mean_prediction.
        min_cell: as given.
        flags: what makes a number mean less than it seems, one sentence each.
    """

    n: int
    attributes: tuple[str, ...]
    ccdcov: float
    dcov: Array
    p_value: float
    jsd: float
    jsd_null: float
    uf: float
    uf_null: float
    cells: Groups
    mean_prediction: Array
    standard_error: Array
    mean_outcome: Array | None
    min_cell: int
    flags: tuple[str, ...]

    @property
    def gap(self) -> float:
        """``ccdcov - sum(dcov)``: what shows only when the attributes are taken together, or shows several times one by one (below 0)."""
        return self.ccdcov - float(self.dcov.sum())

    @property
    def largest_gap(self) -> float:
        """Largest minus smallest mean prediction among cells of at least ``min_cell`` rows; NaN with fewer than two of them."""
        means = self.mean_prediction[self.cells.counts() >= self.min_cell]
        return float(means.max() - means.min()) if len(means) > 1 else float("nan")

    def to_frame(self) -> pl.DataFrame:
        """One row per cell: ``cell``, ``count``, ``share``, ``mean_prediction``, ``standard_error``, ``small``, with ``y``
        ``mean_outcome``."""
        counts = self.cells.counts()
        columns: dict[str, Any] = {
            "cell": list(self.cells.names),
            "count": counts,
            "share": counts / counts.sum(),
            "mean_prediction": self.mean_prediction,
            "standard_error": self.standard_error,
            "small": counts < self.min_cell,
        }
        if self.mean_outcome is not None:
            columns["mean_outcome"] = self.mean_outcome
        return pl.DataFrame(columns)

    def __repr__(self) -> str:
        return f"IntersectionalReport({self.summary().splitlines()[0]})"

    def summary(self) -> str:
        """Whether predictions depend on the attributes, whether it takes several of them to see it, and where it shows."""
        each = listing(f"{name} {value:.2g}" for name, value in zip(self.attributes, self.dcov, strict=True))
        lines = [
            f"Dependence on {listing(self.attributes)} together: CC {self.ccdcov:.3g}, "
            f"p = {self.p_value:.3f} ({PERMUTATIONS} permutations).",
            f"One at a time: {each}. Together minus their sum: {self.gap:+.2g}.",
            f"Between {len(self.cells)} cells: JSD {self.jsd:.3g} bits ({self.jsd_null:.2g} by chance), "
            f"variance of the means {percent(self.uf)} of that of predictions ({percent(self.uf_null)} by chance).",
        ]
        large = np.flatnonzero(self.cells.counts() >= self.min_cell)
        if len(large) > 1:
            low, high = (int(large[pick(self.mean_prediction[large])]) for pick in (np.argmin, np.argmax))
            lines.append(
                f"Mean prediction from {self.mean_prediction[low]:.3g} ({self.cells.names[low]}) to "
                f"{self.mean_prediction[high]:.3g} ({self.cells.names[high]})."
            )
        return "\n".join([*lines, *self.flags])

    def plot(self) -> Figure:
        """Mean prediction of every cell with its interval, beside the mean outcome where it is known."""
        from counterpoise.report._cells import cells_figure

        return cells_figure(
            self.cells.names, self.cells.counts(), self.mean_prediction, self.standard_error, self.mean_outcome, self.min_cell
        )


def intersectional_report(yhat: Any, attributes: Any, y: Any = None, min_cell: int = 20) -> IntersectionalReport:
    """How far predictions depend on protected attributes, alone and together.

    It measures demographic parity: equal distributions of the predictions, whatever the outcomes. Where base rates differ, that
    contradicts calibration within groups; give ``y`` and compare.

    Permutations draw from a stream of their own and repeat. Time: O(n log n + n K) for each of them, K the number of cells; a number with
    more than 10 values is in quarters there, and as it is in ``ccdcov`` and ``dcov``.

    Parameters
    ----------
    yhat : array-like, shape (n,), n >= 4
        Predictions as deployed: probabilities or rates.
    attributes : table, mapping from name to column, or array of shape (n,) or (n, q)
        Protected attributes: text, booleans and categories are levels, numbers are numbers.
    y : array-like, shape (n,), optional
        Outcomes 0/1, or counts, rates: their mean is shown beside that of the predictions.
    min_cell : int >= 1, default 20
        Cells of fewer rows are marked, and take no part in ``largest_gap``.

    Returns
    -------
    IntersectionalReport

    Raises
    ------
    InputError
        If there are fewer than 4 rows, shapes do not match, or a value is missing or infinite (with the column).

    Examples
    --------
    >>> sex, old = np.tile(["f", "f", "m", "m"], 50), np.tile([False, True, False, True], 50)
    >>> report = intersectional_report(np.where((sex == "f") == old, 0.7, 0.3), {"sex": sex, "old": old})
    >>> report.p_value, report.dcov.max() < 0 < report.ccdcov  # only together
    (0.005, True)
    """
    check_range("min_cell", min_cell, low=1, integer=True)
    values = read_predictions(yhat)
    if len(values) < 4:
        bad_input("yhat", f"{len(values)} rows", "at least 4")
    table = attribute_table(attributes, len(values))
    encoder = ProtectedAttributeEncoder().fit(table)
    parts = encode_attributes(encoder, table)
    predictions = torch.from_numpy(values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a constant attribute is among the flags
        ccdcov = float(DistanceCovariancePenalty()(predictions, parts))
        dcov = np.array([float(DistanceCovariancePenalty()(predictions, part)) for part in parts.values()])
    cells = cells_of_attributes(table)
    counts = cells.counts()
    nulls = _nulls(values, cells, _in_quarters(parts, encoder.ranges_))
    means = np.bincount(cells.ids, values, minlength=len(counts)) / counts
    squares = np.bincount(cells.ids, (values - means[cells.ids]) ** 2, minlength=len(counts))
    constant = [str(name) for name, part in parts.items() if bool((part == part[:1]).all())]
    flags = [f"{listing(constant)}: a single value, so it says nothing."] if constant else []
    if (few := int((counts < min_cell).sum())) > 0:
        flags.append(f"{few} of {len(counts)} cells have fewer than {min_cell} rows: their means are mostly chance.")
    if len(values) < 10 * len(counts):
        flags.append("Fewer than ten rows per cell: compare the divergence with that by chance before anything else.")
    flags.append("This is demographic parity alone; it may contradict calibration within groups.")
    return IntersectionalReport(
        n=len(values),
        attributes=tuple(str(name) for name in parts),
        ccdcov=ccdcov,
        dcov=dcov,
        **nulls,
        cells=cells,
        mean_prediction=means,
        standard_error=np.sqrt(squares / np.maximum(counts - 1, 1) / counts),
        mean_outcome=None if y is None else _outcomes(y, cells),
        min_cell=int(min_cell),
        flags=tuple(flags),
    )


def _nulls(values: Array, cells: Groups, quarters: Mapping[Any, torch.Tensor]) -> dict[str, float]:
    """CC's permutation p-value, and JSD and UF with their means where the predictions are dealt out anew."""
    spread = float(values.std())
    # A density with many bandwidths between its ends may need a wider one.
    width = max(BANDWIDTH * spread, (values.max() - values.min()) / 999)
    densities = Densities(values, "kde", width if spread > 0 else 1.0)
    ones = np.ones(len(values))
    penalty = DistanceCovariancePenalty()
    rng = generator(0, "intersectional-report")
    dependence, distances = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for number in range(PERMUTATIONS + 1):
            order = np.arange(len(values)) if number == 0 else rng.permutation(len(values))
            codes = cells.ids[order]
            moved = np.empty(len(values))
            moved[order] = values  # the same pairs of predictions and cells
            dependence.append(float(penalty(torch.from_numpy(moved), quarters)))
            if number <= FOR_MEANS:
                distances.append((densities.divergence(codes, len(cells), False, ones), variance_share(values, codes, len(cells))))
    own, (jsd, uf) = dependence[0], distances[0]
    jsd_null, uf_null = np.mean(distances[1:], axis=0)
    # The data are one of the permutations; rounding does not decide about ties.
    p_value = float((np.array(dependence) >= own - 1e-12 * abs(own)).mean())
    return {"p_value": p_value, "jsd": jsd, "jsd_null": float(jsd_null), "uf": uf, "uf_null": float(uf_null)}


def _in_quarters(parts: Mapping[Any, torch.Tensor], numeric: Iterable[Any]) -> dict[Any, torch.Tensor]:
    """Encoded attributes with numbers replaced by the mean of their quarter: few different rows, which permutations need."""
    quarters = dict(parts)
    for name in numeric:
        numbers = parts[name][:, 0].numpy()
        bins = _binned(numbers)
        if bins is not None:
            means = np.bincount(bins.ids, numbers) / np.maximum(bins.counts(), 1)
            quarters[name] = torch.from_numpy(means[bins.ids])[:, None]
    return quarters


def _outcomes(y: Any, cells: Groups) -> Array:
    numbers = _numbers("y", y)
    if len(numbers) != len(cells.ids) or np.isnan(numbers).any():
        bad_input("y", f"{len(numbers)} rows, {int(np.isnan(numbers).sum())} of them missing", f"{len(cells.ids)} numbers, as yhat")
    return np.asarray(np.bincount(cells.ids, numbers, minlength=len(cells)) / cells.counts())


# ---- attributes of any kind, also for the estimators -------------------------------------------------------------------------------------


def attribute_table(attributes: Any, n: int, argument: str = "attributes") -> Any:
    """A frame, or an array (n, q), of n rows, from whatever holds protected attributes."""
    if isinstance(attributes, Groups):
        attributes = {argument: np.array([*attributes.names, "(none)"], dtype=object)[attributes.ids]}
    if isinstance(attributes, Mapping):
        table: Any = pl.DataFrame([_series(str(name), values) for name, values in attributes.items()])
    elif hasattr(attributes, "columns"):
        table = attributes
    else:
        array = _to_numpy(argument, attributes)
        name = getattr(attributes, "name", None) or argument
        table = pl.DataFrame([_series(str(name), array)]) if array.ndim == 1 else array
    if getattr(table, "ndim", 2) != 2 or len(table) != n or 0 in table.shape:
        bad_input(argument, f"shape {tuple(np.shape(table))}", f"a table or columns of {n} rows")
    return table


def _series(name: str, values: Any) -> pl.Series:
    array = _to_numpy(name, values)
    if array.ndim != 1:
        bad_input(name, f"shape {array.shape}", "one value per row, shape (n,)")
    return pl.Series(name, array.tolist() if array.dtype == object else array, strict=False)


def encode_attributes(encoder: ProtectedAttributeEncoder, table: Any) -> dict[Any, torch.Tensor]:
    """Attributes as the penalty takes them, in float64."""
    parts: dict[Any, torch.Tensor] = encoder.split(torch.from_numpy(encoder.transform(table)))
    return parts


def cells_of_attributes(table: Any) -> Groups:
    """Intersections of the attributes that occur; numbers of more than 10 values in quarters of the rows."""
    if not hasattr(table, "columns"):
        table = {f"x{k}": column for k, column in enumerate(np.asarray(table).T)}
    columns: dict[str, Any] = {}
    for name in table if isinstance(table, Mapping) else table.columns:
        values = _to_numpy(str(name), table[name])
        bins = _binned(values) if values.dtype.kind in "iuf" else None
        columns[str(name)] = values if bins is None else np.array(bins.names, dtype=object)[bins.ids]
    return Groups.from_columns(columns, list(columns))


def _binned(numbers: npt.NDArray[Any]) -> Groups | None:
    return Groups.from_bins(numbers, bins=4, strategy="quantile") if len(np.unique(numbers)) > MOST_VALUES else None
