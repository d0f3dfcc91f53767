"""Two-point, row-wise, nested and one-shot spherical interpolation, by the functions of mergekit."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from counterpoise.weights import merge, nested_slerp, slerp
from counterpoise.weights._slerp import slerp_coefficients
from tests.oracles import oracle_files


def close(found: torch.Tensor, wanted: np.ndarray, tolerance: float = 1e-10) -> None:
    np.testing.assert_allclose(found.numpy(), wanted, rtol=tolerance, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("path", oracle_files("06"))
def test_interpolation_is_that_of_the_peer(path: Path) -> None:
    with np.load(path) as numbers:
        oracle = {key: numbers[key] for key in numbers.files}
    vectors = torch.from_numpy(oracle["vectors"])
    checked = set()
    for key, wanted in oracle.items():
        if pair := re.fullmatch(r"slerp_(\d)(\d)", key):
            first, second = (vectors[int(at)] for at in pair.groups())
            for t, row in zip(oracle["t"], wanted, strict=True):
                close(slerp(first, second, float(t)), row)
            checked.add("pairs")
        elif rowwise := re.fullmatch(r"slerp_rowwise_t([\d.]+)", key):
            rows = [torch.from_numpy(oracle[name]) for name in ("rows_a", "rows_b")]
            close(slerp(*rows, float(rowwise[1]), dim=-1), wanted)
            checked.add("rows")
    assert checked == {"pairs", "rows"}


@pytest.mark.parametrize("path", oracle_files("06"))
def test_nested_interpolation_and_its_coefficients(path: Path) -> None:
    with np.load(path) as numbers:
        vectors, a, wanted, base = (torch.from_numpy(numbers[key]) for key in ("vectors", "nested_a", "nested", "base"))
    close(nested_slerp(vectors, a), wanted.numpy())
    c = slerp_coefficients(vectors @ vectors.T, a.double(), "mean")
    close(c @ vectors, wanted.numpy())
    merged = merge({"w": base}, [{"w": base + vector} for vector in vectors], "slerp", a)
    close(merged["w"] - base, wanted.numpy())


@pytest.mark.parametrize("path", oracle_files("06"))
def test_the_one_shot_barycenter(path: Path) -> None:
    with np.load(path) as numbers:
        vectors, weights, wanted, base = (torch.from_numpy(numbers[key]) for key in ("vectors", "multi_weights", "multislerp", "base"))
    merged = merge({"w": base}, [{"w": base + vector} for vector in vectors], "multislerp", weights)
    # The peer adds 1e-8 to every length before it divides by it.
    close(merged["w"], wanted.numpy(), 1e-7)
