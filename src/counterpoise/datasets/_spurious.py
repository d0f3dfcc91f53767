"""Data with a spurious feature whose strength is known, for experiments on what a model learns from it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from counterpoise._errors import bad_input, check_choice, check_range
from counterpoise._seeding import generator
from counterpoise.groups import Groups, _to_numpy

__all__ = ["spurious_feature"]

KINDS = ("column", "patch", "token")
PATCH = 8  # a patch is one eighth of the shorter side of an image


def spurious_feature(
    X: Any,
    y: npt.ArrayLike,
    *,
    agreement: float,
    strength: float = 1.0,
    seed: int = 0,
    kind: Literal["column", "patch", "token"] = "column",
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Rows with a feature that points to their own label with a known probability, and to another one otherwise.

    Each row gets an *attribute*: its own label with probability ``agreement``, else another label, all others being equally likely. The
    attribute is then written into the row:

    - ``column``: X (n, d) gets a column with -strength for the first label and +strength for the second; with K > 2 labels, K columns, of
      which that of the attribute holds strength and the others 0;
    - ``patch``: images X (n, H, W) or (n, C, H, W) get a square at the upper edge whose place tells the attribute, its side one eighth of
      the image's; pixels go the share ``strength`` of the way to the largest value of X;
    - ``token``: texts get the word ``attribute<k>`` in front, arrays of token ids (n, L) a column with id V + k, where V - 1 is the largest
      id in X; with probability 1 - strength nothing is said: the word is left out, the id is V + K.

    Where attribute and label agree are the rows that are common under a high agreement: the majority. Rows of a test set can be had in both
    roles: with ``agreement=1`` and with ``agreement=0``.

    Args:
        X: rows, not changed. A column or patch keeps the type of floats; integers become float64.
        y: (n,) labels, two or more different ones.
        agreement: probability that the attribute is the label, in [0, 1]. 1/K says nothing about the label.
        strength: > 0 for a column; in (0, 1] for a patch or a token.
        seed: of the attributes.
        kind: what is written.

    Returns:
        The new rows, and (n,) attributes, in the type of the labels: ``attribute == y`` is where they agree.

    Raises:
        InputError: labels that are missing or all the same, another number of rows than of labels, an X that does not have the shape of its
            kind, images too small for so many labels, or a parameter out of its range.

    >>> import numpy as np
    >>> X, y = np.zeros((1000, 2)), np.repeat([0, 1], 500)
    >>> rows, attribute = spurious_feature(X, y, agreement=0.95, strength=0.5)
    >>> rows.shape, round(float((attribute == y).mean()), 2), np.unique(rows[:, 2]).tolist()
    ((1000, 3), 0.96, [-0.5, 0.5])
    """
    check_choice("kind", kind, KINDS)
    check_range("agreement", agreement, low=0, high=1)
    check_range("strength", strength, low=0, high=float("inf") if kind == "column" else 1.0, open_low=True)
    labels = _to_numpy("y", y)
    codes = Groups.from_labels(labels).ids
    if (codes < 0).any():
        bad_input("y", f"{int((codes < 0).sum())} missing labels", "a label in every row", "Drop these rows first.")
    n_labels = int(codes.max(initial=-1)) + 1
    if n_labels < 2:
        bad_input("y", f"{n_labels} label", "at least two different labels")
    if len(X) != len(codes):
        bad_input("X", f"{len(X)} rows", f"one for each of the {len(codes)} labels")

    rng = generator(seed, "spurious feature")
    agrees = rng.random(len(codes)) < agreement
    other = (codes + rng.integers(1, n_labels, size=len(codes))) % n_labels
    attribute = np.where(agrees, codes, other)
    said = rng.random(len(codes)) < strength
    if kind == "column":
        rows = _with_columns(X, attribute, n_labels, strength)
    elif kind == "patch":
        rows = _with_patch(X, attribute, n_labels, strength)
    else:
        rows = _with_token(X, attribute, n_labels, said)
    first = np.searchsorted(np.sort(codes), np.arange(n_labels))
    return rows, labels[np.argsort(codes, kind="stable")[first]][attribute]


def _numbers(X: Any) -> npt.NDArray[Any]:
    array = _to_numpy("X", X)
    if array.dtype.kind not in "fiub":
        bad_input("X", f"an array of {array.dtype}", "numbers", "kind='token' takes texts.")
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def _with_columns(X: Any, attribute: npt.NDArray[np.int64], n_labels: int, strength: float) -> npt.NDArray[Any]:
    array = _numbers(X)
    if array.ndim != 2:
        bad_input("X", f"shape {array.shape}", "a table, shape (n, d)", "kind='patch' takes images.")
    signs = np.eye(n_labels)[attribute] if n_labels > 2 else 2.0 * attribute[:, None] - 1
    return np.concatenate([array, (strength * signs).astype(array.dtype)], axis=1)


def _with_patch(X: Any, attribute: npt.NDArray[np.int64], n_labels: int, strength: float) -> npt.NDArray[Any]:
    array = np.array(_numbers(X))
    if array.ndim not in (3, 4):
        bad_input("X", f"shape {array.shape}", "images, shape (n, H, W) or (n, C, H, W)", "Reshape rows of pixels first.")
    height, width = array.shape[-2:]
    size = max(1, min(height, width) // PATCH)
    if n_labels * size > width:
        bad_input("X", f"images {width} wide", f"at least {n_labels * size}, room for the patches of {n_labels} labels side by side")
    # Evenly spread over the upper edge: the first label's patch is in the left corner, the last one's in the right.
    left = np.linspace(0, width - size, n_labels).round().astype(np.int64)[attribute]
    column = np.arange(width)
    inside = (column >= left[:, None]) & (column < left[:, None] + size)  # (n, W)
    inside = inside[:, None, None, :] if array.ndim == 4 else inside[:, None, :]
    top = array[..., :size, :]
    top += np.where(inside, strength * (array.max(initial=0) - top), 0).astype(array.dtype)
    return array


def _with_token(X: Any, attribute: npt.NDArray[np.int64], n_labels: int, said: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    array = _to_numpy("X", X)
    if array.ndim == 1 and all(isinstance(text, str) for text in array):
        words = np.array([f"attribute{k} " for k in range(n_labels)] + [""], dtype=object)
        return np.asarray(words[np.where(said, attribute, n_labels)] + array, dtype=object)
    if array.ndim == 2 and array.dtype.kind in "iu" and not (array < 0).any():
        vocabulary = int(array.max(initial=0)) + 1
        ids = vocabulary + np.where(said, attribute, n_labels)
        # Small types cannot hold the new ids.
        kind = np.promote_types(array.dtype, np.min_scalar_type(vocabulary + n_labels))
        return np.concatenate([ids[:, None].astype(kind), array.astype(kind)], axis=1)
    bad_input("X", f"an array of {array.dtype}, shape {array.shape}", "texts, shape (n,), or token ids >= 0, shape (n, L)")
