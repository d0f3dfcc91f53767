from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoise._errors import InputError
from counterpoise.federated import SlotCodec


@pytest.mark.parametrize(
    ("clients", "modulus_bits", "bits", "slots", "wire"),
    [  # by hand: b = bit_length(K), m = floor((L - 1) / b), 2 L / m bits for a coordinate
        (3, 2048, 2, 1023, 4.0),
        (10, 2048, 4, 511, 8.0),
        (50, 2048, 6, 341, 12.0),
        (100, 2048, 7, 292, 14.0),
        (1000, 2048, 10, 204, 20.1),
        (3, 3072, 2, 1535, 4.0),
        (10, 3072, 4, 767, 8.0),
        (50, 3072, 6, 511, 12.0),
        (100, 3072, 7, 438, 14.0),
        (1000, 3072, 10, 307, 20.0),
    ],
)
def test_the_table_of_sizes(clients, modulus_bits, bits, slots, wire) -> None:
    codec = SlotCodec(clients, modulus_bits)
    assert (codec.bits, codec.slots) == (bits, slots)
    assert codec.bits_per_coordinate(100 * slots) == pytest.approx(wire, abs=0.06)
    assert codec.nbytes(slots + 1) == 2 * modulus_bits // 4 and codec.blocks(slots) == 1
    assert codec.bits_per_coordinate(100 * slots) <= 2.1 * bits


def packed_by_hand(codec: SlotCodec, signs: np.ndarray) -> list[int]:
    blocks = [0] * -(-len(signs) // codec.slots)
    for i, sign in enumerate(signs):
        blocks[i // codec.slots] += (int(sign) + 1) // 2 << (codec.bits * (i % codec.slots))
    return blocks


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 40), st.integers(8, 130), st.integers(0, 2**32 - 1))
def test_sums_of_blocks_are_counts(d, clients, modulus_bits, seed) -> None:
    codec = SlotCodec(clients, modulus_bits)
    signs = np.random.default_rng(seed).choice(np.array([-1, 1], dtype=np.int8), (clients, d))
    encoded = [codec.encode(row) for row in signs]
    assert encoded == [packed_by_hand(codec, row) for row in signs]
    assert all(block < 2 ** (modulus_bits - 1) for row in encoded for block in row)
    for few in {1, clients // 2 + 1, clients}:  # also when clients drop out
        total = [sum(blocks) for blocks in zip(*encoded[:few], strict=True)]
        assert max(total) < 2 ** (modulus_bits - 1)
        np.testing.assert_array_equal(2 * codec.decode(total, d).numpy() - few, signs[:few].sum(axis=0))


@pytest.mark.parametrize("d", [1, 254, 255, 256, 1000])
def test_any_number_of_coordinates(d) -> None:
    codec = SlotCodec(10, 1024)
    signs = torch.where(torch.arange(d) % 3 == 0, 1, -1).to(torch.int8)
    counts = codec.decode(codec.encode(signs), d)
    assert counts.dtype == torch.int32 and torch.equal(2 * counts - 1, signs.int())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SlotCodec(0), "max_clients: got 0; expected an integer"),
        (lambda: SlotCodec(2.5), "max_clients: got 2.5"),
        (lambda: SlotCodec(10, 4), "modulus_bits: got 4; expected an integer >= 5"),
        (lambda: SlotCodec(3, 64).encode(torch.ones(0, dtype=torch.int8)), r"signs: got shape \(0,\); expected at least one"),
        (lambda: SlotCodec(3, 64).encode(torch.ones(2, 2, dtype=torch.int8)), r"signs: got shape \(2, 2\)"),
        (lambda: SlotCodec(3, 64).encode(torch.ones(2)), "signs: got float32"),
        (lambda: SlotCodec(3, 64).encode(torch.tensor([1, 0], dtype=torch.int8)), "expected int8 of -1 and"),
        (lambda: SlotCodec(3, 64).decode([0], 0), "d: got 0"),
        (lambda: SlotCodec(3, 64).decode([0, 0], 5), r"blocks: got 2 of them; expected 1 for d = 5 coordinates in 31 slots"),
        (lambda: SlotCodec(3, 64).decode([1 << 62], 31), "63 bits in block 0; expected at most 62"),
        (lambda: SlotCodec(3, 64).decode([-1], 31), "blocks: got"),
        (lambda: SlotCodec(4, 64).decode([5], 21), "a slot above max_clients"),
        (lambda: SlotCodec(3, 64).decode([1 << 10], 5), "a used slot behind the last coordinate"),
    ],
)
def test_bad_input(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()
