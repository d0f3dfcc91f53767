r"""Error feedback of one-bit votes: what a vote could not say is kept, and added to the next update.

With an update :math:`\delta` and the residual e, both in tensors t, a client votes :math:`s = \mathrm{sign}(\delta + e - \theta)` and keeps

.. math:: e_t \leftarrow \delta_t + e_t - c_t \, s_t , \qquad c_t = \mathrm{mean} \, |\delta_t + e_t| ,

so that coordinates which are small but always of one sign are heard in the end. The scales :math:`c_t` stay with the client, as the
residual does: they would tell the server how long its update was, and give a client that lies a say in how far everybody moves.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from counterpoise._errors import bad_input
from counterpoise.gradients import median_binarize

__all__ = ["Residual", "vote_with_feedback"]


def vote_with_feedback(
    update: Sequence[Tensor], residual: Sequence[Tensor], threshold: str, ties: str, generator: torch.Generator
) -> tuple[Tensor, list[Tensor]]:
    """The signs (d,) of the update and the residual together, and the residual that they leave.

    >>> draw = torch.Generator().manual_seed(0)
    >>> signs, rest = vote_with_feedback([torch.tensor([3.0, -1.0])], [torch.tensor([0.0, 2.0])], "zero", "random", draw)
    >>> signs, rest
    (tensor([1, 1], dtype=torch.int8), [tensor([ 1., -1.])])
    """
    whole = [delta + rest for delta, rest in zip(update, residual, strict=True)]
    signs = median_binarize(whole, threshold, ties, generator)  # type: ignore[arg-type]
    parts = torch.split(signs, [part.numel() for part in whole])
    return signs, [part - part.abs().mean() * sign.reshape(part.shape) for part, sign in zip(whole, parts, strict=True)]


@dataclass
class Residual:
    """A client's residual before and after its last vote. The one before is for a round that is asked again, after an interruption."""

    training: str
    server_round: int
    before: list[Tensor]
    after: list[Tensor]

    def at(self, training: str, server_round: int) -> list[Tensor] | None:
        """What this round begins with; None if it is not known: another training, or a round before the last one."""
        if training != self.training or server_round < self.server_round:
            return None
        return self.before if server_round == self.server_round else self.after

    def to_bytes(self) -> bytes:
        parts = {f"{when}.{i}": part.numpy() for when in ("before", "after") for i, part in enumerate(getattr(self, when))}
        content = io.BytesIO()
        np.savez(content, training=np.array(self.training), server_round=np.array(self.server_round), **parts)
        return content.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, where: str = "residual") -> Residual:
        """An InputError for what :meth:`to_bytes` has not made."""
        try:
            with np.load(io.BytesIO(content)) as kept:
                tensors = range((len(kept.files) - 2) // 2)
                before, after = ([torch.from_numpy(kept[f"{when}.{i}"]) for i in tensors] for when in ("before", "after"))
                return cls(str(kept["training"]), int(kept["server_round"]), before, after)
        except Exception as error:  # a broken archive: zipfile and NumPy raise RuntimeError, NotImplementedError and others over one
            bad_input(where, f"what cannot be read ({type(error).__name__})", "the residual of an earlier round", "Move it away.")
