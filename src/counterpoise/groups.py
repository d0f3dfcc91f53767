"""Groups: labelled parts of the training signal, the one idea that every room shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ._errors import bad_input, check_choice, check_range, listing

if TYPE_CHECKING:
    import torch

__all__ = ["Groups"]

Kind = Literal["class", "bin", "domain", "task", "modality", "client", "term", "attribute", "cluster"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True, eq=False, repr=False)
class Groups:
    r"""Which labelled part of the training signal each example belongs to.

    A group is a class, a target bin, a domain, a task, a modality, a client, a loss term, a sensitive attribute or a cluster.

    Parameters
    ----------
    ids : array of int64, shape (n,)
        Group of each example, an index into ``names``; -1 stands for "none". Kept as a read-only copy.
    names : sequence of str, length G
        Name of each group, all different. A group may be empty.
    kind : str, default "class"
        What the groups are: class, bin, domain, task, modality, client, term, attribute or cluster.

    Raises
    ------
    InputError
        If ``ids`` is not a one-dimensional array of integers in -1..G-1, a name repeats, or ``kind`` is unknown.

    Examples
    --------
    >>> groups = Groups.from_labels(["cat", "dog", "cat", None])
    >>> groups
    Groups(class, n=4: cat 2, dog 1, none 1)
    >>> groups.ids, len(groups), groups.ratio()
    (array([ 0,  1,  0, -1]), 2, 2.0)
    >>> groups.members("cat")
    array([0, 2])
    """

    ids: npt.NDArray[np.int64]
    names: tuple[str, ...]
    kind: str = "class"

    def __post_init__(self) -> None:
        ids = _to_numpy("ids", self.ids)
        if ids.ndim != 1:
            bad_input("ids", f"an array of shape {ids.shape}", "one group per example, shape (n,)")
        if not np.issubdtype(ids.dtype, np.integer) and len(ids):
            bad_input("ids", f"an array of {ids.dtype}", "integers", "Groups.from_labels(...) takes labels of any type.")
        if isinstance(self.names, str):
            bad_input("names", self.names, "one name per group, such as ('cat', 'dog')")
        names = tuple(str(name) for name in self.names)
        if len(set(names)) < len(names):
            repeated = sorted({name for name in names if names.count(name) > 1})
            bad_input("names", listing(repeated), "every name once")
        if len(ids) and not (ids.min() >= -1 and ids.max() < len(names)):
            wrong = int(ids.max()) if ids.max() >= len(names) else int(ids.min())
            bad_input("ids", wrong, f"-1 for none, or an index into the {len(names)} names", "Groups.from_labels(...) makes both.")
        check_choice("kind", self.kind, KINDS)
        # Copied and locked, so that a frozen object really stays as it was when it was checked.
        ids = ids.astype(np.int64, copy=True)
        ids.flags.writeable = False
        object.__setattr__(self, "ids", ids)
        object.__setattr__(self, "names", names)

    # -- ways to make them --------------------------------------------------------------------------------------------------------------

    @classmethod
    def from_labels(cls, y: Any, kind: Kind = "class") -> Groups:
        """One group per distinct label, in sorted order; missing labels (None, NaN, NaT) belong to none.

        Parameters
        ----------
        y : array-like, shape (n,)
            Labels: integers, booleans, strings or a mixture; a list, an array, a tensor, or a column of a polars or pandas frame.
        kind : str, default "class"
            What the labels are.

        Examples
        --------
        >>> Groups.from_labels(["north", "south", "north"], kind="domain").names
        ('north', 'south')
        >>> Groups.from_labels([3, 1, 1]).ids
        array([1, 0, 0])
        """
        ids, names = _codes("y", y)
        return cls(ids, names, kind)

    @classmethod
    def from_bins(cls, y: Any, bins: int | Sequence[float] = 10, strategy: Literal["width", "quantile"] = "width") -> Groups:
        """Ranges of a continuous target: [e0, e1), [e1, e2), ..., the last one closed on both sides.

        Parameters
        ----------
        y : array-like, shape (n,)
            Numbers. Missing ones, and those outside given edges, belong to none.
        bins : int or increasing sequence of float, default 10
            Number of bins between the smallest and the largest value, or their edges.
        strategy : {"width", "quantile"}, default "width"
            Equal widths, or equal counts (as far as ties allow: repeated edges are merged). Not used when ``bins`` holds edges.

        Raises
        ------
        InputError
            If ``y`` holds no finite number or an infinite one, or the edges do not increase.

        Examples
        --------
        >>> Groups.from_bins([0.0, 1.0, 9.0, 10.0, float("nan")], bins=2)
        Groups(bin, n=5: [0, 5) 2, [5, 10] 2, none 1)
        >>> Groups.from_bins([1, 2, 3, 100], bins=2, strategy="quantile").counts()
        array([2, 2])
        """
        values = _numbers("y", y)
        check_choice("strategy", strategy, ("width", "quantile"))
        present = values[~np.isnan(values)]
        edges = _edges(present, bins, strategy)
        # The right-most edge belongs to the last bin, as in numpy.histogram.
        ids = np.searchsorted(edges, values, side="right") - 1
        ids[values == edges[-1]] = len(edges) - 2
        ids[np.isnan(values) | (values < edges[0]) | (values > edges[-1])] = -1
        shown = _short(edges)
        last = len(edges) - 2
        names = tuple(f"[{shown[i]}, {shown[i + 1]}{']' if i == last else ')'}" for i in range(last + 1))
        return cls(ids, names, "bin")

    @classmethod
    def from_columns(cls, frame: Any, columns: str | Sequence[str], kind: Kind = "attribute") -> Groups:
        """Intersections of columns: one group per combination of values that occurs.

        Parameters
        ----------
        frame : polars or pandas frame, or mapping from name to array-like
            The table.
        columns : str or sequence of str
            Its columns to combine. A row with a missing value in any of them belongs to none.
        kind : str, default "attribute"
            What the groups are.

        Raises
        ------
        InputError
            If a column is not in the table, or none is named.

        Examples
        --------
        >>> table = {"sex": ["F", "M", "F"], "age": ["old", "old", "young"]}
        >>> Groups.from_columns(table, ["sex", "age"]).names
        ('sex=F, age=old', 'sex=F, age=young', 'sex=M, age=old')
        >>> Groups.from_columns(table, "sex").names
        ('F', 'M')
        """
        wanted = [columns] if isinstance(columns, str) else list(columns)
        names_of = next((attribute for attribute in ("column_names", "columns") if hasattr(frame, attribute)), None)  # Arrow, frames
        available = list(frame if names_of is None else getattr(frame, names_of))
        if not wanted:
            bad_input("columns", wanted, f"at least one of {listing(available)}")
        for name in wanted:
            if name not in available:
                bad_input("columns", name, f"names among {listing(available)}")
        coded = [_codes(name, frame[name]) for name in wanted]
        if len(wanted) == 1:
            return cls(*coded[0], kind)
        table = np.stack([ids for ids, _ in coded], axis=1)
        complete = (table >= 0).all(axis=1)
        combinations, inverse = np.unique(table[complete], axis=0, return_inverse=True)
        ids = np.full(len(table), -1, dtype=np.int64)
        ids[complete] = inverse.reshape(-1)
        names = tuple(
            ", ".join(f"{name}={values[code]}" for name, (_, values), code in zip(wanted, coded, combination, strict=True))
            for combination in combinations
        )
        return cls(ids, names, kind)

    # -- what one asks them -------------------------------------------------------------------------------------------------------------

    def counts(self) -> npt.NDArray[np.int64]:
        """Number of examples in each group, shape (G,); those in none are not counted."""
        return np.bincount(self.ids[self.ids >= 0], minlength=len(self.names)).astype(np.int64)

    def ratio(self) -> float:
        """Imbalance ratio: the largest group's count divided by the smallest's, among groups that have examples (NaN if none has).

        >>> Groups([0, 0, 0, 1], ("many", "few", "empty")).ratio()
        3.0
        """
        counts = self.counts()
        counts = counts[counts > 0]
        return float(counts.max() / counts.min()) if len(counts) else float("nan")

    def members(self, k: int | str) -> npt.NDArray[np.int64]:
        """Indices of the examples in group ``k`` (its index or its name), in order; -1 gives those in none."""
        if isinstance(k, str):
            check_choice("k", k, self.names)
            k = self.names.index(k)
        else:
            check_range("k", k, low=-1, high=len(self.names) - 1, integer=True)
        return np.flatnonzero(self.ids == k)

    def to_torch(self, device: torch.device | str | None = None) -> torch.Tensor:
        """``ids`` as a new int64 tensor, shape (n,)."""
        import torch

        return torch.tensor(self.ids, dtype=torch.int64, device=device)

    def __len__(self) -> int:
        """Number of groups, empty ones included."""
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Groups):
            return NotImplemented
        return self.kind == other.kind and self.names == other.names and np.array_equal(self.ids, other.ids)

    def __hash__(self) -> int:
        return hash((self.kind, self.names, self.ids.tobytes()))

    def __repr__(self) -> str:
        parts = [f"{name} {count}" for name, count in zip(self.names, self.counts(), strict=True)]
        if missing := int((self.ids < 0).sum()):
            parts.append(f"none {missing}")
        return f"Groups({self.kind}, n={len(self.ids)}: {listing(parts)})" if parts else f"Groups({self.kind}, n={len(self.ids)})"


def _to_numpy(argument: str, values: Any) -> npt.NDArray[Any]:
    """A NumPy array of whatever holds a column: tensors (on any device), polars and pandas series, Arrow arrays, lists."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":  # NumPy has no such type
            values = values.float()
    if hasattr(values, "to_numpy"):
        return np.asarray(values.to_numpy())
    try:
        array = np.asarray(values)
    except ValueError:
        bad_input(argument, f"a sequence of {len(values)} items of different lengths", "one value per example, shape (n,)")
    # NumPy turns [1, "a"] and [nan, "a"] into strings, and with them what is missing.
    return np.asarray(values, dtype=object) if array.dtype.kind in "US" else array


def _column(argument: str, values: Any) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """A column as an array, and where it is missing."""
    array = _to_numpy(argument, values)
    if array.ndim != 1:
        bad_input(argument, f"an array of shape {array.shape}", "one value per example, shape (n,)")
    if hasattr(values, "isna"):  # pandas, whose NA cannot be compared
        return array, np.asarray(values.isna(), dtype=np.bool_)
    missing = array != array  # NaN and NaT are the values that differ from themselves
    if array.dtype == object:
        missing = missing | (array == np.array(None))
    return array, np.asarray(missing, dtype=np.bool_)


def _codes(argument: str, labels: Any) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Index of each label among the sorted distinct ones, -1 where it is missing, and their names."""
    array, missing = _column(argument, labels)
    present = array[~missing]
    try:
        distinct, inverse = np.unique(present, return_inverse=True)
    except TypeError:  # labels of several types have no order of their own; their names do
        distinct, inverse = np.unique(present.astype(str), return_inverse=True)
    ids = np.full(len(array), -1, dtype=np.int64)
    ids[~missing] = inverse
    # Whole numbers that became floats because a neighbor was missing get the name they had.
    if distinct.dtype.kind == "f" and np.all(distinct == np.round(distinct)) and np.all(np.abs(distinct) < 2**53):
        distinct = distinct.astype(np.int64)
    return ids, tuple(distinct.astype(str).tolist())


def _numbers(argument: str, values: Any) -> npt.NDArray[np.float64]:
    """A column of numbers, NaN where one is missing."""
    array, missing = _column(argument, values)
    numbers = np.full(len(array), np.nan)
    try:
        numbers[~missing] = array[~missing].astype(np.float64)
    except (TypeError, ValueError):
        bad_input(
            argument,
            f"an array of {array.dtype}",
            "numbers",
            "For labels: Groups.from_labels(labels) as groups, labels == 'yes' as outcomes.",
        )
    if np.isinf(numbers).any():
        bad_input(argument, "an infinite number", "finite numbers, or NaN for missing ones")
    if np.isnan(numbers).all():
        bad_input(argument, "no number that is present", "at least one finite number")
    return numbers


def _edges(present: npt.NDArray[np.float64], bins: int | Sequence[float], strategy: str) -> npt.NDArray[np.float64]:
    """Increasing edges, at least two."""
    if not isinstance(bins, Sequence | np.ndarray):
        check_range("bins", bins, low=1, integer=True)
        if strategy == "width":
            return np.histogram_bin_edges(present, bins=bins)
        quantiles = np.unique(np.quantile(present, np.linspace(0.0, 1.0, bins + 1)))
        return quantiles if len(quantiles) > 1 else np.repeat(quantiles, 2)
    edges = np.asarray(bins, dtype=np.float64)
    if edges.ndim != 1 or len(edges) < 2 or not np.all(np.diff(edges) > 0):
        bad_input("bins", bins, "a number of bins, or at least two increasing edges")
    return edges


def _short(edges: npt.NDArray[np.float64]) -> list[str]:
    """The edges with as few digits as keep different ones different."""
    for digits in range(3, 17):
        shown = [f"{edge:.{digits}g}" for edge in edges]
        if len(set(shown)) == len(set(edges.tolist())):
            break
    return shown
