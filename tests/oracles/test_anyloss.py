"""Losses and gradients of the authors' code: a linear model on n rows of d features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from counterpoise.losses import AnyLoss, amplify, soft_confusion
from tests.oracles import oracle_files

EXACT = {"rtol": 0, "atol": 1e-12}
# The authors' closed-form gradient of G-mean is this many times the gradient of their loss.
OFFICIAL_GMEAN_FACTOR = 4


def load(path: Path) -> dict[str, Any]:
    with np.load(path) as numbers:
        return {key: torch.from_numpy(np.asarray(numbers[key])) for key in numbers.files}


def loss_of(name: str, L: float) -> AnyLoss:
    """The loss of a key without its prefix: ``accuracy``, ``gmean``, ``fbeta_0.5``, ..."""
    metric, _, beta = name.partition("fbeta_")
    return AnyLoss("fbeta", beta=float(beta), amplification=L) if beta else AnyLoss(metric, amplification=L)


def losses_and_gradients(path: Path) -> list[tuple[str, str, float]]:
    """(metric, key of its gradient, how many times too large that is) of all losses in a file."""
    with np.load(path) as numbers:
        names = [key.removeprefix("loss_") for key in numbers.files if key.startswith("loss_")]
        found = []
        for name in names:
            official = f"grad_theta_{name}_official_x{OFFICIAL_GMEAN_FACTOR}"
            wrong = official in numbers.files
            found.append((name, official if wrong else f"grad_theta_{name}", OFFICIAL_GMEAN_FACTOR if wrong else 1))
        assert {key for _, key, _ in found} == {key for key in numbers.files if key.startswith("grad_")}
    return found


CASES = [
    pytest.param(parameter.values[0], *case, id=f"{parameter.id}-{case[0]}")
    for parameter in oracle_files("19")
    for case in losses_and_gradients(parameter.values[0])
]


@pytest.mark.parametrize("path", oracle_files("19"))
def test_amplified_probabilities_and_their_counts(path: Path) -> None:
    oracle = load(path)
    logits, L = oracle["X"] @ oracle["theta"], oracle["L"].item()
    np.testing.assert_allclose(amplify(oracle["p"], L), oracle["amplified"], **EXACT)
    from_logits = soft_confusion(logits, oracle["y"], L)
    from_probabilities = soft_confusion(oracle["p"], oracle["y"], L, from_logits=False)
    for name in ("tp", "fp", "fn", "tn"):
        # Counts are sums of n terms: the tolerance is that of a mean.
        for counts in (from_logits, from_probabilities):
            np.testing.assert_allclose(getattr(counts, name) / len(logits), oracle[name] / len(logits), **EXACT)


@pytest.mark.parametrize(("path", "name", "key", "factor"), CASES)
def test_losses_and_their_gradients(path: Path, name: str, key: str, factor: float) -> None:
    oracle = load(path)
    theta = oracle["theta"].clone().requires_grad_()
    loss = loss_of(name, oracle["L"].item())(oracle["X"] @ theta, oracle["y"])
    loss.backward()
    np.testing.assert_allclose(loss.item(), oracle[f"loss_{name}"], **EXACT)
    np.testing.assert_allclose(theta.grad, oracle[key] / factor, **EXACT)
