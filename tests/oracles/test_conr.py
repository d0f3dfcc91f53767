"""Losses and gradients of the authors' functions for ages and for depth maps (github.com/BorealisAI/ConR, commit ad6a8c9)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from counterpoise.losses import ConRLoss
from tests.oracles import oracle_files


def load(path: Path) -> dict[str, Tensor]:
    with np.load(path) as numbers:
        return {key: torch.from_numpy(np.asarray(numbers[key])) for key in numbers.files}


def mean_of_maps(maps: Tensor) -> Tensor:
    """One number per example, (n, 1)."""
    return maps.flatten(1).mean(dim=1, keepdim=True)


@pytest.mark.parametrize("block_size", [None, 5])
@pytest.mark.parametrize("path", oracle_files("21"))
def test_agrees_with_the_authors(path: Path, block_size: int | None) -> None:
    oracle = load(path)
    depth = "depth0" in oracle
    targets, predictions = ("depth", "output") if depth else ("targets", "preds")
    cases = int(oracle["n_cases"])
    assert cases > 0
    for j in range(cases):
        features = oracle[f"features{j}"].clone().requires_grad_()
        loss = ConRLoss(
            window=oracle[f"w{j}"].item(),
            temperature=oracle[f"t{j}"].item(),
            push_scale=oracle[f"e{j}"].item(),
            push="linear" if depth else "exp",
            denominator="reference",
            count_self=depth,
            block_size=block_size,
        )
        value = loss(features, *(mean_of_maps(oracle[f"{name}{j}"]) for name in (targets, predictions, "weights")))
        value.backward()
        torch.testing.assert_close(value, oracle[f"loss{j}"], rtol=1e-9, atol=0, msg=lambda m, j=j: f"case {j}: {m}")
        # Entries of the gradient that nearly cancel are good to a part of the largest.
        atol = 1e-12 * oracle[f"grad{j}"].abs().max().item()
        torch.testing.assert_close(features.grad, oracle[f"grad{j}"], rtol=1e-8, atol=atol, msg=lambda m, j=j: f"case {j}: {m}")
