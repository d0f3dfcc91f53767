r"""Many votes in one plaintext: counts side by side, in slots too wide for a carry (our design, for arXiv:2604.14663).

Paillier adds integers of thousands of bits. Encrypting a vote by itself wastes nearly all of them. A vote :math:`s \in \{-1, +1\}` is
sent as :math:`u = (s + 1) / 2`, and m of them as one integer :math:`\sum_i u_i 2^{b i}`. While at most :math:`K_{max}` such integers are
added, a slot of :math:`b = \lfloor \log_2 K_{max} \rfloor + 1` bits holds its count without reaching into the next one, and
:math:`\sum_k s_k = 2 \sum_k u_k - K`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from counterpoise._errors import bad_input, check_range

__all__ = ["SlotCodec"]


@dataclass(frozen=True)
class SlotCodec:
    r"""Votes of one client to large integers, and sums of those integers to counts.

    Coordinate i is in slot ``i % slots`` of block ``i // slots``, the first slot in the lowest bits; what is left of the last block is 0.

    Parameters
    ----------
    max_clients : int >= 1
        :math:`K_{max}`, the most clients whose blocks are added; who adds has to count them, as :class:`PaillierAggregator` does.
    modulus_bits : int, default 2048 (paper)
        Bits L of the modulus that sums have to stay below; 3072 for a security of 128 bits (2048: about 112).

    Attributes
    ----------
    bits : int
        Bits b of a slot.
    slots : int
        Slots :math:`m = \lfloor (L - 1) / b \rfloor` of a block.

    Raises
    ------
    InputError
        If a parameter is out of its range, signs are not -1 and +1 or there are none, or blocks do not fit: another number of them, or
        counts above ``max_clients``.

    Notes
    -----
    A ciphertext has 2 L bits, so a coordinate takes about 2 b bits on the wire: 8 for ten clients, 12 for fifty. Against 32 bits of a float
    that is a factor of :math:`16 / b`, not 32.

    Examples
    --------
    >>> codec = SlotCodec(max_clients=10)
    >>> codec.bits, codec.slots, codec.bits_per_coordinate(511)
    (4, 511, 8.015...)
    >>> first = codec.encode(torch.tensor([1, -1, 1], dtype=torch.int8))
    >>> [hex(block) for block in first]
    ['0x101']
    >>> second = codec.encode(torch.tensor([1, 1, -1], dtype=torch.int8))
    >>> codec.decode([a + b for a, b in zip(first, second)], d=3)  # how many clients voted +1
    tensor([2, 1, 1], dtype=torch.int32)
    """

    max_clients: int
    modulus_bits: int = 2048

    def __post_init__(self) -> None:
        check_range("max_clients", self.max_clients, low=1, high=2**31 - 1, integer=True)
        check_range("modulus_bits", self.modulus_bits, low=self.bits + 1, integer=True)

    @property
    def bits(self) -> int:
        return int(self.max_clients).bit_length()

    @property
    def slots(self) -> int:
        return (self.modulus_bits - 1) // self.bits

    def blocks(self, d: int) -> int:
        """Blocks, or ciphertexts, of d coordinates."""
        check_range("d", d, low=1, integer=True)
        return -(-d // self.slots)

    def row_bytes(self) -> int:
        """Bytes of a ciphertext: a number below the square of the modulus."""
        return (2 * self.modulus_bits + 7) // 8

    def nbytes(self, d: int) -> int:
        """Bytes of the ciphertexts of d coordinates."""
        return self.blocks(d) * self.row_bytes()

    def bits_per_coordinate(self, d: int) -> float:
        """Bits on the wire for each of d coordinates."""
        return 8 * self.nbytes(d) / d

    def encode(self, signs: Tensor | npt.NDArray[np.int8]) -> list[int]:
        """Blocks of the signs (d,), int8 of -1 and +1."""
        values = signs.detach().cpu().numpy() if isinstance(signs, Tensor) else np.asarray(signs)
        if values.ndim != 1 or not len(values):
            bad_input("signs", f"shape {values.shape}", "at least one sign, shape (d,)", "median_binarize flattens an update.")
        if values.dtype != np.int8 or not ((values == 1) | (values == -1)).all():
            bad_input("signs", f"{values.dtype}, not all of them -1 or +1", "int8 of -1 and +1", "median_binarize makes them.")
        blocks = self.blocks(len(values))
        padded = np.zeros(blocks * self.slots, dtype=np.uint8)
        padded[: len(values)] = values > 0
        bits = np.zeros((blocks, self.slots, self.bits), dtype=np.uint8)
        bits[:, :, 0] = padded.reshape(blocks, self.slots)
        rows = np.packbits(bits.reshape(blocks, -1), axis=1, bitorder="little")
        return [int.from_bytes(row.tobytes(), "little") for row in rows]

    def decode(self, blocks: Sequence[int], d: int) -> Tensor:
        """Counts (d,), int32, out of sums of blocks: how many clients voted +1."""
        if len(blocks) != self.blocks(d):
            bad_input("blocks", f"{len(blocks)} of them", f"{self.blocks(d)} for d = {d} coordinates in {self.slots} slots each")
        used = self.slots * self.bits
        for i, block in enumerate(blocks):
            if block < 0 or int(block).bit_length() > used:
                bad_input("blocks", f"{int(block).bit_length()} bits in block {i}", f"at most {used}, all slots", WRONG_KEY)
        raw = b"".join(int(block).to_bytes(-(-used // 8), "little") for block in blocks)
        rows = np.frombuffer(raw, dtype=np.uint8).reshape(len(blocks), -1)
        bits = np.unpackbits(rows, axis=1, count=used, bitorder="little").reshape(-1, self.bits)
        counts = (bits @ (1 << np.arange(self.bits, dtype=np.int64))).astype(np.int32)
        if (counts > self.max_clients).any() or counts[d:].any():
            bad_input("blocks", "a slot above max_clients, or a used slot behind the last coordinate", "sums of encoded signs", WRONG_KEY)
        return torch.from_numpy(counts[:d])


WRONG_KEY = "These blocks are not sums of what encode made: another codec, another key, or a client that did not keep to the protocol."
