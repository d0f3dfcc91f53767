"""Annealed weights and the gated network against numbers from the published formulas."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from counterpoise.gradients import GradientAnnealing, GradientStatistics
from counterpoise.nn import GatedMLP
from tests.oracles import oracle_files

OPTIONS = ("alpha", "self_normalized", "statistic", "scope", "mean", "max_weight", "eps")


def numbers(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as stored:
        return {key: stored[key] for key in stored.files}


def matching(stored: dict[str, np.ndarray], pattern: str) -> dict[tuple[int, ...], torch.Tensor]:
    """Arrays whose whole name matches, by the numbers in their names."""
    found = {key: re.fullmatch(pattern, key) for key in stored}
    return {tuple(map(int, match.groups())): torch.from_numpy(stored[key]) for key, match in found.items() if match}


@pytest.mark.parametrize("path", oracle_files("32"))
def test_weights_after_every_update(path: Path) -> None:
    stored = numbers(path)
    reference, others = matching(stored, r"gref_t(\d+)_p(\d+)"), matching(stored, r"g_t(\d+)_i(\d+)_p(\d+)")
    expected = stored["lambda"]
    updates, terms = expected.shape
    parameters = sorted({p for _, p in reference})
    assert len(reference) == updates * len(parameters) and len(others) == updates * terms * len(parameters)
    options: dict[str, Any] = {name: stored[name].item() for name in OPTIONS if name in stored}
    aggregator = GradientAnnealing(**options)
    for t in range(updates):
        rows = [torch.stack([reference[t, p], *(others[t, i, p] for i in range(terms))]) for p in parameters]
        flat = [part.reshape(len(part), -1) for part in rows]
        statistics = GradientStatistics.from_rows(flat, needs=aggregator.needs, shapes=[part.shape[1:] for part in rows])
        found = aggregator.weights(statistics)
        assert found[0] == 1
        np.testing.assert_allclose(found[1:].numpy(), expected[t], rtol=1e-12, atol=0)
        # The same through the dense path, one parameter after the other.
    again = GradientAnnealing(**options)
    for t in range(updates):
        again({str(p): torch.stack([reference[t, p], *(others[t, i, p] for i in range(terms))]) for p in parameters})
    assert torch.equal(again.lambdas, aggregator.lambdas)


@pytest.mark.parametrize("path", oracle_files("32"))
def test_output_of_the_gated_network(path: Path) -> None:
    stored = numbers(path)
    weights, biases = matching(stored, r"W(\d+)"), matching(stored, r"b(\d+)")
    X = torch.from_numpy(stored["X"])
    width, outputs = stored["out_weight"].shape
    model = GatedMLP(X.shape[1], outputs, width, len(weights)).double()

    def fill(layer: nn.Module, weight: torch.Tensor | np.ndarray, bias: torch.Tensor | np.ndarray) -> None:
        layer.load_state_dict({"weight": torch.as_tensor(weight).T, "bias": torch.as_tensor(bias)})

    fill(model.encoder_u, stored["enc_u_weight"], stored["enc_u_bias"])
    fill(model.encoder_v, stored["enc_v_weight"], stored["enc_v_bias"])
    fill(model.output, stored["out_weight"], stored["out_bias"])
    for k, layer in enumerate(model.hidden):
        fill(layer, weights[(k,)], biases[(k,)])
    with torch.no_grad():
        found, (value, _, _) = model(X), model.derivatives(X)
    np.testing.assert_allclose(found.numpy(), stored["output"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(value.numpy(), stored["output"], rtol=1e-12, atol=1e-12)
