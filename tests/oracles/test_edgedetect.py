"""Thresholds, signs, votes and packed blocks, by integer arithmetic of their definitions; there is no code of the authors'."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from counterpoise.federated import SlotCodec
from counterpoise.gradients import BinaryVote, median_binarize
from counterpoise.gradients._vote import thresholds
from tests.oracles import oracle_files


def cases(path: Path) -> list[dict[str, np.ndarray]]:
    with np.load(path) as numbers:
        prefixes = sorted({key.partition("_")[0] for key in numbers.files if key.endswith("_delta")})
        assert prefixes
        return [{key.partition("_")[2]: numbers[key] for key in numbers.files if key.startswith(f"{c}_")} for c in prefixes]


@pytest.mark.parametrize("path", oracle_files("03"))
def test_signs_and_votes_are_those_of_the_definition(path: Path) -> None:
    for case in cases(path):
        delta = torch.from_numpy(case["delta"])
        np.testing.assert_array_equal(thresholds([delta], "median")[0].numpy(), case["threshold"])
        signs = torch.stack([median_binarize(row, ties="positive") for row in delta])
        np.testing.assert_array_equal(signs.numpy(), case["binary"])
        clear = torch.from_numpy(case["delta"] != case["threshold"][:, None])
        drawn = torch.stack([median_binarize(row, generator=torch.Generator().manual_seed(0)) for row in delta])
        assert torch.equal(drawn[clear], signs[clear])
        # The vote is the mean of the signs, and the majority their sign, 0 for a tie.
        total = torch.from_numpy(case["sum"])
        torch.testing.assert_close(BinaryVote(ties="positive")(delta) * len(delta), total.double(), rtol=1e-12, atol=1e-12)
        majority = BinaryVote("majority", ties="positive")(delta)
        decided = total != 0
        assert torch.equal(majority[decided], torch.from_numpy(case["majority"])[decided].double()) and not majority[~decided].any()


@pytest.mark.parametrize("path", oracle_files("03"))
def test_packed_blocks_are_those_of_the_definition(path: Path) -> None:
    for case in cases(path):
        binary, (bits, slots, modulus_bits) = case["binary"], case["bits_slots_nbits"].tolist()
        codec = SlotCodec(max_clients=2**bits - 1, modulus_bits=modulus_bits)
        assert (codec.bits, codec.slots) == (bits, slots) and len(binary) <= codec.max_clients
        encoded = [codec.encode(torch.from_numpy(row)) for row in binary]
        assert encoded[0] == [int(block, 16) for block in case["packed0_hex"].tolist()]
        total = [sum(blocks) for blocks in zip(*encoded, strict=True)]
        assert total == [int(block, 16) for block in case["packedsum_hex"].tolist()]
        votes = 2 * codec.decode(total, binary.shape[1]) - len(binary)
        np.testing.assert_array_equal(votes.numpy(), case["sum"])
        assert votes.dtype == torch.int32
