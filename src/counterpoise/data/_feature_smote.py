r"""SMOTE between the features of a network: inside the model batch by batch, or once over a whole set.

What is unbalanced: few rows of a class mean few gradients of it at the head. Between a row's features :math:`h_i` and those of one of its k
nearest neighbors with the same label, :math:`h_j`, there is room for another row of that label:

.. math:: h_{new} = h_i + g \, (h_j - h_i), \qquad g \sim U(0, 1), \qquad y_{new} = y_i .

(Chawla et al. 2002, arXiv:1106.1813, section 4.2; between pooled sentence vectors with several labels per row: arXiv:2510.17018.)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from counterpoise._errors import bad_input, check_choice, check_range
from counterpoise._precision import single

__all__ = ["FeatureSMOTE"]

Rows = TypeVar("Rows", Tensor, npt.NDArray[Any])

_BLOCK = 2**24  # distances held at once: 64 MiB in float32


class FeatureSMOTE(nn.Module):
    r"""New rows of rare labels on segments between features of the same label.

    The most frequent label sets the number that every label is brought to: ``ratio`` times its rows, rounded. A row that is missing for a
    label starts at a random row of it and goes a random part of the way to one of that row's k nearest neighbors (Euclidean) with the
    label. It takes over the labels of the row where it starts.

    With several labels per row, rows without any label count like those of a label, so one-hot labels give what classes give. Labels are
    filled from the rarest to the most frequent, and what a new row brings for labels that come later is counted.

    Parameters
    ----------
    k_neighbors : int >= 1, default 5 (Chawla et al. 2002)
        Neighbors to choose from. Where a label has fewer other rows, all of them are used.
    ratio : float in (0, 1], default 1.0
        Rows of every label afterwards, relative to the most frequent one.
    random_state : int, torch.Generator or None, default None
        Seed. ``forward`` goes on in one random stream; ``fit_resample`` with an integer gives the same result each time. Numbers are drawn
        on the CPU, so they are the same on every device; torch's global generator is left alone.
    memory_bank : int >= 0, default 0
        Rows of earlier batches that ``forward`` also looks for neighbors in. They are kept without gradient, on the device of the features,
        in each process its own. Raise it when batches hold only one or two rows of a label. They are not saved with the ``state_dict``:
        they are features of the network as it was.
    on_few : {"raise", "skip"}, default "raise"
        What ``fit_resample`` does about a label with fewer than two rows. ``forward`` always skips it.

    Attributes
    ----------
    synthetic_mask_ : bool, shape (n_out,)
        Which rows of the last result are new; they come after all others.
    parents_ : int64, shape (n_new, 2)
        Rows i and j of each new row; in ``forward`` numbers from n on are rows of the memory bank as it was before the call.
    gaps_ : shape (n_new,)
        g of each new row.

    Shapes
    ------
    ``forward``: features (n, d), y (n,) classes of an integer type or (n, K) with 0 and 1 -> (n_out, d) and (n_out,) or (n_out, K); what
    was given comes first, and gradients reach both ends of a segment. In evaluation mode, and where nothing is missing, it returns what
    it was given. Half precision is computed in float32 and returned as it came.

    Raises
    ------
    InputError
        If shapes do not match, ``y`` holds fractions, or a parameter is out of its range; ``fit_resample`` also looks for values that are
        not finite, a single class, and labels with fewer than two rows.

    Examples
    --------
    >>> smote = FeatureSMOTE(random_state=0)
    >>> features = torch.tensor([[0.0, 0.0], [1.0, 2.0], [5.0, 5.0], [6.0, 5.0], [5.0, 6.0]])
    >>> rows, y = smote(features, torch.tensor([1, 1, 0, 0, 0]))
    >>> y
    tensor([1, 1, 0, 0, 0, 1])
    >>> bool(rows[5, 1] == 2 * rows[5, 0])  # on the segment between the first two
    True
    """

    bank_features: Tensor | None
    bank_labels: Tensor | None
    synthetic_mask_: Any
    parents_: Any
    gaps_: Any

    def __init__(
        self,
        k_neighbors: int = 5,
        ratio: float = 1.0,
        random_state: int | torch.Generator | None = None,
        memory_bank: int = 0,
        on_few: Literal["raise", "skip"] = "raise",
    ) -> None:
        super().__init__()
        check_range("k_neighbors", k_neighbors, low=1, integer=True)
        check_range("ratio", ratio, low=0.0, high=1.0, open_low=True)
        check_range("memory_bank", memory_bank, low=0, integer=True)
        check_choice("on_few", on_few, ("raise", "skip"))
        self.k_neighbors = int(k_neighbors)
        self.ratio = float(ratio)
        self.random_state = random_state
        self.memory_bank = int(memory_bank)
        self.on_few = on_few
        self._generator = _generator(random_state)
        self.register_buffer("bank_features", None, persistent=False)
        self.register_buffer("bank_labels", None, persistent=False)

    def forward(self, features: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        _check_features("features", features)
        _check_labels("y", y, len(features))
        if not self.training:
            return features, y
        pool, pool_y = features, y
        if self.bank_features is not None and self.bank_labels is not None:
            self._check_bank(features, y)
            pool = torch.cat([features, self.bank_features.to(features.dtype)])
            pool_y = torch.cat([y, self.bank_labels.to(y.dtype)])
        seeds, ends, gaps = self._draw(pool.detach(), pool_y, len(features), self._generator)
        self._keep(torch.arange(len(features) + len(seeds), device=y.device) >= len(features), torch.stack([seeds, ends], dim=1), gaps)
        if self.memory_bank:
            old = slice(len(features), None)
            self.bank_features = torch.cat([pool[old], features]).detach()[-self.memory_bank :]
            self.bank_labels = torch.cat([pool_y[old], y])[-self.memory_bank :]
        if not len(seeds):
            return features, y
        return torch.cat([features, _between(pool, seeds, ends, gaps)]), torch.cat([y, y[seeds]])

    def fit_resample(self, H: Rows, Y: Rows) -> tuple[Rows, Rows]:
        """The whole set ``H`` (N, d) and ``Y`` (N,) or (N, K) with new rows behind it: tensors, or arrays (then also classes of any type).

        The memory bank takes no part, nor does the training mode.
        """
        features = _as_tensor("H", H)
        y = _as_codes("Y", Y).to(features.device)
        _check_features("H", features)
        _check_labels("Y", y, len(features))
        _check_finite("H", features)
        if y.ndim == 1 and bool((y == y[:1]).all()):
            bad_input("Y", "one class" if len(y) else "no rows", "at least two classes")
        names = np.unique(Y) if y.ndim == 1 and isinstance(Y, np.ndarray) else None
        generator = self._generator if self.random_state is None else _generator(self.random_state)
        seeds, ends, gaps = self._draw(features, y, len(features), generator, whole=True, names=names)
        mask = torch.arange(len(features) + len(seeds), device=y.device) >= len(features)
        parents = torch.stack([seeds, ends], dim=1)
        new = _between(features, seeds, ends, gaps)
        if isinstance(H, np.ndarray):
            self._keep(mask.numpy(), parents.numpy(), gaps.numpy())
            return np.concatenate([H, new.numpy()]), np.concatenate([np.asarray(Y), np.asarray(Y)[seeds.numpy()]])
        self._keep(mask, parents, gaps)
        labels = torch.as_tensor(Y)
        return torch.cat([H, new]), torch.cat([labels, labels[seeds.to(labels.device)]])

    def extra_repr(self) -> str:
        return f"k_neighbors={self.k_neighbors}, ratio={self.ratio:g}, memory_bank={self.memory_bank}"

    def _keep(self, mask: Any, parents: Any, gaps: Any) -> None:
        self.synthetic_mask_, self.parents_, self.gaps_ = mask, parents, gaps

    @torch.no_grad()
    def _draw(
        self, pool: Tensor, y: Tensor, n: int, generator: torch.Generator, whole: bool = False, names: Any = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Seeds among the first ``n`` rows of the pool, the other ends of their segments anywhere in it, and the gaps, (n_new,) each."""
        points = _searchable(pool)
        seeds, ends, gaps = [], [], []
        added = torch.zeros(y.shape[1:], dtype=torch.int64)
        most, groups = _groups(y, n)
        for label, count, has in groups:
            missing = round(self.ratio * most) - count - (int(added[label]) if y.ndim == 2 else 0)
            members = has.nonzero()[:, 0]
            if missing <= 0 or (not whole and (count == 0 or len(members) < 2)):
                continue
            if whole and not self._enough(label if names is None else names[label], len(members)):
                continue
            k = min(self.k_neighbors, len(members) - 1)
            # Rows of the batch come before those of the bank, so the first ``count`` members are the ones to start from.
            start = torch.randint(count, (missing,), generator=generator).to(members.device)
            choice = torch.randint(k, (missing,), generator=generator).to(members.device)
            used, again = start.unique(return_inverse=True)  # type: ignore[no-untyped-call]
            near = _nearest(points[members], used, k)
            seeds.append(members[start])
            ends.append(members[near[again, choice]])
            gaps.append(torch.rand(missing, generator=generator, dtype=points.dtype).to(members.device))
            if y.ndim == 2:
                added += y[seeds[-1]].sum(dim=0).long().cpu()
        if not seeds:
            empty = torch.empty(0, dtype=torch.int64, device=pool.device)
            return empty, empty, torch.empty(0, dtype=points.dtype, device=pool.device)
        return torch.cat(seeds), torch.cat(ends), torch.cat(gaps)

    def _enough(self, name: Any, count: int) -> bool:
        """Whether a label of a whole set can be filled; says so if not."""
        if count < 2:
            if self.on_few == "raise":
                bad_input(
                    "Y", f"{'one row' if count else 'no row'} of label {name}", "at least two to draw between",
                    "Draw copies of it instead (random over-sampling), or leave it as it is with on_few='skip'.",
                )  # fmt: skip
            return False
        if count <= self.k_neighbors:
            warnings.warn(f"Label {name} has {count} rows: {count - 1} neighbors instead of {self.k_neighbors}.", UserWarning, stacklevel=5)
        return True

    def _check_bank(self, features: Tensor, y: Tensor) -> None:
        assert self.bank_features is not None and self.bank_labels is not None
        if features.shape[1:] != self.bank_features.shape[1:] or y.shape[1:] != self.bank_labels.shape[1:]:
            bad_input(
                "features and y", f"shapes {tuple(features.shape)} and {tuple(y.shape)}",
                f"widths as in earlier batches, {self.bank_features.shape[1]} features",
                "Use one FeatureSMOTE for each place in the network.",
            )  # fmt: skip


def _groups(y: Tensor, n: int) -> tuple[int, Iterator[tuple[int, int, Tensor]]]:
    """Rows of the most frequent label among the first ``n``, and every label there from the rarest on: (label, its rows, who has it)."""
    own = y[:n]
    if y.ndim == 2:
        counts = (own != 0).sum(dim=0).cpu()
        most = max(int(counts.max()) if len(counts) else 0, int((own == 0).all(dim=1).sum()))
        return most, ((k, int(counts[k]), y[:, k] != 0) for k in counts.argsort(stable=True).tolist())
    labels, found = (part.cpu() for part in own.unique(return_counts=True))  # type: ignore[no-untyped-call]
    most = int(found.max()) if len(found) else 0
    return most, ((int(labels[i]), int(found[i]), y == labels[i]) for i in found.argsort(stable=True).tolist())


def _searchable(features: Tensor) -> Tensor:
    """Centered, so that the difference of large norms keeps the digits of small distances; at least float32."""
    points = single(features)
    return points - points.mean(dim=0) if len(points) else points


def _nearest(points: Tensor, rows: Tensor, k: int) -> Tensor:
    """Positions (len(rows), k) of the nearest other points of each row, nearest first."""
    squares = points.square().sum(dim=1)
    found = []
    # Autocast would take the products in half precision.
    with torch.autocast(points.device.type, enabled=False):
        size = max(1, _BLOCK // len(points))
        for block in (rows[first : first + size] for first in range(0, len(rows), size)):
            # |a - b|^2 without |a|^2, which is the same for all candidates of a row
            distance = torch.addmm(squares, points[block], points.T, alpha=-2)
            distance.scatter_(1, block[:, None], float("inf"))
            found.append(distance.topk(k, largest=False).indices)
    return torch.cat(found)


def _between(pool: Tensor, seeds: Tensor, ends: Tensor, gaps: Tensor) -> Tensor:
    first, second = (single(pool[rows]) for rows in (seeds, ends))
    return (first + gaps[:, None] * (second - first)).to(pool.dtype)


def _generator(random_state: int | torch.Generator | None) -> torch.Generator:
    if isinstance(random_state, torch.Generator):
        return random_state
    generator = torch.Generator()
    if random_state is None:
        generator.seed()
        return generator
    check_range("random_state", random_state, low=0, high=2**63 - 1, integer=True)
    return generator.manual_seed(int(random_state))


# ---- input ------------------------------------------------------------------------------------------------------------------------------


def _as_tensor(argument: str, values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    if not isinstance(values, np.ndarray):
        bad_input(argument, type(values).__name__, "a tensor or a NumPy array")
    if values.dtype.kind != "f":
        bad_input(argument, f"an array of {values.dtype}", "floating-point features")
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))


def _as_codes(argument: str, values: Any) -> Tensor:
    """Classes of any type as codes, labels as they are."""
    if isinstance(values, np.ndarray) and values.ndim == 1:
        return torch.from_numpy(np.unique(values, return_inverse=True)[1])
    return values if isinstance(values, Tensor) else torch.as_tensor(np.array(values))


def _check_features(argument: str, features: Tensor) -> None:
    if features.ndim != 2 or not features.is_floating_point():
        hint = "Pool sequences first: one vector per row." if features.ndim == 3 else ""
        bad_input(argument, f"shape {tuple(features.shape)} of {features.dtype}", "floating-point features, shape (n, d)", hint)


def _check_labels(argument: str, y: Tensor, n: int) -> None:
    if y.ndim not in (1, 2) or len(y) != n:
        bad_input(argument, f"shape {tuple(y.shape)}", f"shape ({n},) or ({n}, K): labels for each of the {n} rows")
    if y.ndim == 1 and (y.is_floating_point() or y.is_complex()):
        bad_input(argument, f"a tensor of {y.dtype}", "integer classes", "Several labels per row have the shape (n, K).")
    if y.ndim == 2 and not bool(((y == 0) | (y == 1)).all()):
        bad_input(argument, y[(y != 0) & (y != 1)][0].item(), "0 or 1 for every label")


def _check_finite(argument: str, features: Tensor) -> None:
    wrong = ~features.isfinite().all(dim=0)
    if bool(wrong.any()):
        bad_input(argument, f"values that are not finite in column {int(wrong.nonzero()[0])}", "finite features")
