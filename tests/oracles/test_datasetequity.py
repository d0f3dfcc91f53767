"""Weights of the DatasetEquity code (the README's function), for every eta and gamma that a file holds."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from counterpoise._likelihood import cluster_likelihood
from counterpoise.losses import WeightedLoss, dequity_weight
from tests.oracles import oracle_files

EXACT = {"rtol": 0, "atol": 1e-14}
every_file = pytest.mark.parametrize("path", oracle_files("14"))


def strengths(keys: list[str]) -> list[tuple[str, float, float]]:
    """(suffix, eta, gamma) of every ``weight_eta{e}_gamma{g}``."""
    found = [re.fullmatch(r"weight_(eta(.+)_gamma(.+))", key) for key in keys]
    return [(match[1], float(match[2]), float(match[3])) for match in found if match]


@every_file
def test_likelihoods(path: Path) -> None:
    with np.load(path) as numbers:
        labels, expected = numbers["cluster_labels"], numbers["likelihood"]
    np.testing.assert_allclose(cluster_likelihood(labels)[labels], expected, **EXACT)


@every_file
def test_weights_and_weighted_means(path: Path) -> None:
    with np.load(path) as numbers:
        oracle = {key: numbers[key] for key in numbers.files}
    p, losses = oracle["likelihood"], torch.from_numpy(oracle["per_sample_loss"])
    settings = strengths(list(oracle))
    assert settings
    for suffix, eta, gamma in settings:
        weights = dequity_weight(p, eta, gamma)
        np.testing.assert_allclose(weights, oracle[f"weight_{suffix}"], **EXACT)
        np.testing.assert_allclose(dequity_weight(torch.from_numpy(p), eta, gamma).numpy(), oracle[f"weight_{suffix}"], **EXACT)
        # The loss of an example is its number in the file: the base only passes it on.
        loss = WeightedLoss(torch.nn.L1Loss(reduction="none"), weights, normalize="none")
        mean = loss(losses, torch.zeros_like(losses), torch.arange(len(p)))
        np.testing.assert_allclose(mean.item(), oracle[f"weighted_mean_{suffix}"], **EXACT)
