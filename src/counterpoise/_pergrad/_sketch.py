"""What is kept of the per-example gradients of a model: sums that add up over batches and processes, never the (m, P) matrix itself."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from counterpoise._dist import all_gather_rows, all_reduce_sum, world_size
from counterpoise._errors import bad_input

__all__ = ["Blocks", "GradientSketch"]


@dataclass(frozen=True, eq=False)
class Blocks:
    """The parameters one by one: names, their slices of the P columns of ``group_sums``, and squared norms (m, n_blocks)."""

    names: tuple[str, ...]
    slices: tuple[slice, ...]
    norms_sq: Tensor


@dataclass(frozen=True, eq=False)
class GradientSketch:
    r"""Per-example gradients :math:`g_i` of m examples, summed up so that whoever asks gets the same numbers.

    All is about the gradient of each example's *own* loss (no division by m), in the space of the P covered parameters.

    Parameters
    ----------
    losses : Tensor, shape (m,), float64
        Loss of each example.
    groups : Tensor, shape (m,), int64
        Group of each example, -1 for none.
    index : Tensor, shape (m,), int64
        Position of each example in the data.
    group_names : tuple of str, length G
        Names of the groups; if any example has none, the *rows* of ``group_sums`` have one more, "(none)", at the end.
    kind : str, default "group"
        What the groups are: the ``kind`` of :class:`counterpoise.Groups`.
    norms_sq : Tensor, shape (m,), float64, optional
        :math:`\|g_i\|^2`. None where the engine has no per-example numbers (``groups``, and ``jvp`` without random directions).
    S : Tensor, shape (m, r), optional
        Random projection of the gradients: :math:`E \langle S_i, S_j \rangle = \langle g_i, g_j \rangle`. Rows have the exact norms where
        ``norms_sq`` is exact.
    group_sums : Tensor, shape (G or G + 1, P), optional
        :math:`\sum_{i \in k} g_i`, exact.
    gramian : Tensor, shape (m, m), float64, optional
        :math:`\langle g_i, g_j \rangle`, exact.
    along : Tensor, shape (m,), float64, optional
        :math:`\langle g_i, \mu \rangle` with the mean gradient :math:`\mu`, exact.
    blocks : Blocks, optional
        The same, parameter by parameter.
    coverage : float, default 1.0
        Share of the trainable parameters that is in these numbers; ``missing`` names the others.
    engine : str
        Which engine made it; ``seed`` keys the random projection, ``notes`` say what a reader should know.
    parameter_names, parameter_slices, parameters
        What the P columns of ``group_sums`` are; the tensors are the model's own, not copies.
    """

    losses: Tensor
    groups: Tensor
    index: Tensor
    group_names: tuple[str, ...]
    kind: str = "group"
    norms_sq: Tensor | None = None
    S: Tensor | None = None
    group_sums: Tensor | None = None
    gramian: Tensor | None = None
    along: Tensor | None = None
    blocks: Blocks | None = None
    coverage: float = 1.0
    missing: tuple[str, ...] = ()
    engine: str = "given"
    seed: int = 0
    notes: tuple[str, ...] = ()
    parameter_names: tuple[str, ...] = ()
    parameter_slices: tuple[slice, ...] = ()
    parameters: tuple[Tensor, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        m = len(self.losses)
        for name in ("groups", "index", "norms_sq", "S", "gramian", "along"):
            value = getattr(self, name)
            if value is not None and len(value) != m:
                bad_input(name, f"{len(value)} rows", f"one row for each of the {m} losses")

    def __len__(self) -> int:
        """Number of examples m."""
        return len(self.losses)

    @property
    def ids(self) -> Tensor:
        """``groups`` with -1 replaced by the row of "(none)", shape (m,)."""
        return torch.where(self.groups < 0, len(self.group_names), self.groups)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the rows of ``group_sums``: the groups, and "(none)" if any example has none."""
        return (*self.group_names, "(none)") if bool((self.groups < 0).any()) else self.group_names

    def counts(self) -> Tensor:
        """Examples in each row of ``names``, shape (G or G + 1,)."""
        return torch.bincount(self.ids, minlength=len(self.names))

    def merge(self, other: GradientSketch) -> GradientSketch:
        """The sketch of both sets of examples, measured at the same parameters with the same groups, engine and seed.

        Sums add up; rows follow each other. The Gramian between the two sets is not known, so ``gramian`` is dropped, and ``along``, which
        refers to the mean of one set.

        Raises
        ------
        InputError
            If the two do not describe the same groups, parameters or projection.
        """
        for name in ("group_names", "kind", "missing", "engine", "seed", "parameter_names"):
            if getattr(self, name) != getattr(other, name):
                bad_input("other", f"a sketch with {name}={getattr(other, name)!r}", f"the same as here, {getattr(self, name)!r}")
        if self.S is not None and other.S is not None and self.S.shape[1] != other.S.shape[1]:
            bad_input("other", f"a projection of width {other.S.shape[1]}", f"the same as here, {self.S.shape[1]}")
        rows = len(self.group_names) + int(bool((self.groups < 0).any() or (other.groups < 0).any()))
        both: dict[str, Any] = {name: torch.cat([getattr(self, name), getattr(other, name)]) for name in ("losses", "groups", "index")}
        for name in ("norms_sq", "S"):
            mine, theirs = getattr(self, name), getattr(other, name)
            both[name] = None if mine is None or theirs is None else torch.cat([mine, theirs])
        sums = None
        if self.group_sums is not None and other.group_sums is not None:
            if self.group_sums.shape[1] != other.group_sums.shape[1]:
                bad_input("other", f"{other.group_sums.shape[1]} parameters", f"the same as here, {self.group_sums.shape[1]}")
            sums = self.group_sums.new_zeros(rows, self.group_sums.shape[1])
            for part in (self.group_sums, other.group_sums):
                sums[: len(part)] += part
        blocks = None
        if self.blocks is not None and other.blocks is not None and self.blocks.names == other.blocks.names:
            blocks = replace(self.blocks, norms_sq=torch.cat([self.blocks.norms_sq, other.blocks.norms_sq]))
        notes = tuple(dict.fromkeys((*self.notes, *other.notes)))
        return replace(self, **both, group_sums=sums, gramian=None, along=None, blocks=blocks, notes=notes)

    def gather(self, process_group: Any = None) -> GradientSketch:
        """The sketch of the examples of all processes, on each of them; itself where there is one process.

        As :meth:`merge`: every process measures its own examples, with the same parameters, groups, engine and seed. Sums are added up,
        (G, P) numbers; rows follow each other in the order of the processes. All processes must call it.

        Raises
        ------
        InputError
            If the sketches do not describe the same groups, parameters or projection.
        """
        if world_size(process_group) == 1:
            return self
        width = None if self.S is None else self.S.shape[1]
        parts = (self.norms_sq is None, self.group_sums is None, self.blocks is None, width)
        what = (self.group_names, self.kind, self.missing, self.engine, self.seed, self.parameter_names, parts)
        digest = int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=7).digest(), "big")
        has_none = int(bool((self.groups < 0).any()))
        about = all_gather_rows(torch.tensor([[digest, has_none]]), process_group)
        if len(torch.unique(about[:, 0])) > 1:
            bad_input("sketch", "sketches that differ between processes", "the same groups, parameters, engine and seed in each")

        def rows(x: Tensor) -> Tensor:
            return all_gather_rows(x, process_group).to(x.device)

        sums = self.group_sums
        if sums is not None:
            missing = int(bool(about[:, 1].any())) - has_none
            sums = all_reduce_sum(torch.cat([sums, sums.new_zeros(missing, sums.shape[1])]), process_group)
        return replace(
            self,
            losses=rows(self.losses),
            groups=rows(self.groups),
            index=rows(self.index),
            norms_sq=None if self.norms_sq is None else rows(self.norms_sq),
            S=None if self.S is None else rows(self.S),
            group_sums=sums,
            gramian=None,
            along=None,
            blocks=None if self.blocks is None else replace(self.blocks, norms_sq=rows(self.blocks.norms_sq)),
        )
