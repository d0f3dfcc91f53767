"""Imbalanced problems made from balanced ones by leaving rows out."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from counterpoise._errors import bad_input, check_choice, check_range, listing

__all__ = ["make_imbalanced"]


def make_imbalanced(
    y: npt.ArrayLike,
    kind: Literal["step", "linear"] = "step",
    mu: float = 0.5,
    rho: float = 10.0,
    n_max: int | None = None,
    random_state: int | np.random.Generator | None = None,
) -> npt.NDArray[np.int64]:
    r"""Rows to keep so that the class counts follow step or linear imbalance.

    With K classes, imbalance ratio :math:`\rho = \max_k n_k / \min_k n_k` and a random order of the classes:

    - ``step``: round(mu K) classes, at least one, keep :math:`\max(1, \mathrm{round}(n_{max} / \rho))` rows each, the others
      :math:`n_{max}`;
    - ``linear``: the k-th class, k = 0 ... K-1, keeps :math:`\mathrm{round}(n_{max} - k (n_{max} - n_{max}/\rho) / (K - 1))` rows,
      at least one.

    Which classes become rare, and which of their rows stay, is random; rows are drawn without replacement.
    (Buda, Maki, Mazurowski 2018, arXiv 1710.05381.)

    Args:
        y: (n,) class labels, integers or strings.
        kind: ``step`` or ``linear``.
        mu: share of the classes that become rare, in (0, 1]; ``step`` only. With 1 all classes are equally small.
        rho: imbalance ratio, at least 1.
        n_max: rows kept of the largest classes; by default as many as the counts of ``y`` allow.
        random_state: seed or generator.

    Returns:
        Indices into ``y``, ascending.

    Raises:
        InputError: labels that are not one-dimensional, fewer than two classes, a parameter out of range, or a class with too few rows.

    >>> import numpy as np
    >>> y = np.repeat(["a", "b"], 100)
    >>> rows = make_imbalanced(y, rho=20, random_state=0)
    >>> sorted(np.unique(y[rows], return_counts=True)[1].tolist())
    [5, 100]
    """
    labels = _labels(y)
    check_choice("kind", kind, ("step", "linear"))
    check_range("rho", rho, low=1)
    check_range("mu", mu, low=0, high=1, open_low=True)
    classes, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        bad_input("y", f"one class ({listing(classes)})", "at least two classes")
    rng = np.random.default_rng(random_state)
    order = rng.permutation(len(classes))
    available = counts[order]
    if n_max is None:
        n_max = _largest(available, kind, mu, rho)
    check_range("n_max", n_max, low=1, integer=True)
    wanted = _class_sizes(n_max, len(classes), kind, mu, rho)
    short = np.flatnonzero(wanted > available)
    if len(short):
        at = int(short[0])
        bad_input(
            "n_max",
            n_max,
            f"a number for which every class has enough rows; class {str(classes[order[at]])!r} has {available[at]} of {wanted[at]}",
            f"At most {_largest(available, kind, mu, rho)} is possible here.",
        )
    kept = [rng.choice(np.flatnonzero(codes == code), size, replace=False) for code, size in zip(order, wanted, strict=True)]
    return np.sort(np.concatenate(kept)).astype(np.int64)


def _class_sizes(n_max: int, classes: int, kind: str, mu: float, rho: float) -> npt.NDArray[np.int64]:
    """(K,) rows wanted of each class in the order of decreasing size."""
    if kind == "step":
        rare = max(1, round(mu * classes))
        sizes = np.full(classes, n_max)
        sizes[classes - rare :] = max(1, round(n_max / rho))
        return sizes
    steps = np.arange(classes) / (classes - 1)
    return np.maximum(1, np.round(n_max - steps * (n_max - n_max / rho))).astype(np.int64)


def _largest(available: npt.NDArray[np.int64], kind: str, mu: float, rho: float) -> int:
    """The largest n_max for which no class lacks rows."""
    low, high = 1, int(available.max())
    while low < high:  # sizes grow with n_max, so bisection finds the last one that fits
        middle = (low + high + 1) // 2
        if (_class_sizes(middle, len(available), kind, mu, rho) <= available).all():
            low = middle
        else:
            high = middle - 1
    return low


def _labels(y: npt.ArrayLike) -> npt.NDArray[Any]:
    try:
        labels = np.asarray(y)
    except ValueError:
        bad_input("y", "rows of different lengths", "one label per row")
    if labels.ndim != 1:
        bad_input("y", f"an array of shape {labels.shape}", "one label per row, shape (n,)", "Multi-label targets are not thinned.")
    if labels.dtype.kind == "f":
        if not np.all(np.isfinite(labels)) or not np.all(labels == np.round(labels)):
            bad_input("y", f"an array of {labels.dtype} with fractions or missing values", "class labels: integers or strings")
    elif labels.dtype.kind not in "iubUSO":
        bad_input("y", f"an array of {labels.dtype}", "class labels: integers or strings")
    if labels.dtype == object and any(not isinstance(label, (str, int, np.integer)) for label in set(labels.tolist())):
        bad_input("y", "an array with missing or mixed values", "class labels: integers or strings")
    return labels.astype(str) if labels.dtype == object else labels
