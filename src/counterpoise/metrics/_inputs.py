"""Labels, scores, weights and groups as users have them - lists, arrays, tensors, columns of frames - become arrays that are checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from counterpoise._errors import bad_input, listing
from counterpoise.groups import Groups, _column, _to_numpy

__all__ = ["NONE", "BoolArray", "FloatArray", "IntArray", "read_groups", "read_positive", "read_score", "read_weight"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

NONE = "(none)"  # the rows that belong to no group, so that shares of groups sum to 1


def read_positive(y_true: Any, pos_label: Any = None) -> BoolArray:
    """(n,) which rows are positive: label ``pos_label``, or without it True or 1 (the other label being False, 0 or -1)."""
    labels, missing = _column("y_true", y_true)
    if not len(labels):
        bad_input("y_true", "no rows", "labels of both classes")
    if missing.any():
        bad_input("y_true", f"{int(missing.sum())} missing labels", "a label in every row", "Drop these rows first.")
    wanted = 1 if pos_label is None else pos_label
    positive = np.asarray(labels == wanted, dtype=np.bool_)
    if positive.shape != labels.shape:  # a comparison that NumPy gives up on as a whole
        positive = np.zeros(labels.shape, dtype=np.bool_)
    rest = labels[~positive]
    if pos_label is None and not (_all_equal(rest, 0) or _all_equal(rest, -1)):
        found = _distinct(labels)
        bad_input("y_true", f"labels {listing(found)}", "True and False, 1 and 0, or 1 and -1", _label_hint(found))
    if pos_label is not None and len(rest) and not _all_equal(rest, rest[0]):
        found = _distinct(labels)
        if not positive.any():
            bad_input("pos_label", pos_label, f"one of the labels {listing(found)}")
        bad_input("y_true", f"labels {listing(found)}", "two classes", "one_vs_rest(...) takes more.")
    if not positive.any():
        missed = "True" if labels.dtype == np.bool_ else repr(wanted)
        bad_input("y_true", f"{len(labels)} rows of one class", "both classes", f"The positive class, {missed}, is missing.")
    if not len(rest):
        missed = "False" if labels.dtype == np.bool_ else "0 or -1" if pos_label is None else f"a label other than {pos_label!r}"
        bad_input("y_true", f"{len(labels)} rows of one class", "both classes", f"The negative class, {missed}, is missing.")
    return positive


def read_score(y_score: Any, n: int, argument: str = "y_score") -> npt.NDArray[Any]:
    """(n,) scores in the type they came in; infinite ones are in order, missing ones are not."""
    if _to_numpy(argument, y_score).ndim == 2:
        hint = "Take the column of the positive class, y_score[:, 1]; one_vs_rest(...) takes more classes."
        bad_input(argument, f"shape {tuple(np.shape(y_score))}", f"one score per row, shape ({n},)", hint)
    score, missing = _column(argument, y_score)
    if len(score) != n:
        bad_input(argument, f"{len(score)} scores", f"one for each of the {n} labels")
    if missing.any():
        bad_input(argument, f"NaN in {int(missing.sum())} of {n} rows", "a number in every row", "Infinite scores are in order.")
    if score.dtype.kind in "iuf":
        return score
    try:
        return score.astype(np.float64, casting="unsafe" if score.dtype == object else "same_kind")
    except (TypeError, ValueError):
        bad_input(argument, f"an array of {score.dtype}", "numbers, higher for what is more likely positive")


def read_weight(sample_weight: Any, n: int, argument: str = "sample_weight") -> FloatArray:
    """(n,) weights >= 0, not all of them 0."""
    weight = np.asarray(_to_numpy(argument, sample_weight), dtype=np.float64)
    if weight.shape != (n,):
        bad_input(argument, f"shape {weight.shape}", f"one weight for each of the {n} rows")
    if not (np.isfinite(weight) & (weight >= 0)).all():
        wrong = weight[~(np.isfinite(weight) & (weight >= 0))][0]
        bad_input(argument, float(wrong), "finite weights >= 0")
    if not weight.any():
        bad_input(argument, "only zeros", "weights of which some are > 0")
    return weight


def read_groups(groups: Any, n: int) -> tuple[IntArray, tuple[str, ...]]:
    """Ids 0..G-1 (n,) and names, from :class:`Groups` or labels of any kind; rows without a group become the group "(none)"."""
    read = groups if isinstance(groups, Groups) else Groups.from_labels(groups, "attribute")
    if len(read.ids) != n:
        bad_input("groups", f"{len(read.ids)} rows", f"a group for each of the {n} rows")
    if (read.ids >= 0).all():
        return read.ids, read.names
    return np.where(read.ids < 0, len(read.names), read.ids), (*read.names, NONE)


def _all_equal(labels: npt.NDArray[Any], value: Any) -> bool:
    return bool(np.all(labels == value))


def _distinct(labels: npt.NDArray[Any]) -> list[Any]:
    return list(Groups.from_labels(labels).names)


def _label_hint(found: list[Any]) -> str:
    if len(found) > 2:
        return "one_vs_rest(...) takes more than two classes; a target in numbers needs a threshold first."
    return f"Say which one is positive, such as pos_label={found[-1]!r}."
