"""Shares and weights of the authors' training script, and unimodal logits of their heads, batch by batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from counterpoise.diagnostics import modality_statistics
from counterpoise.gradients import AsymmetricGradient, arl_weights
from counterpoise.losses import zero_out_unimodal
from tests.oracles import oracle_files


def read(path: Path) -> dict[str, Tensor]:
    with np.load(path) as numbers:
        return {key: torch.from_numpy(numbers[key]) for key in numbers.files if numbers[key].dtype.kind in "fiu"}


def same(found: Tensor, wanted: Tensor, to: float = 1e-6) -> None:
    """Their floor of the shares goes through float32."""
    torch.testing.assert_close(found, wanted, rtol=0, atol=to)


@pytest.mark.parametrize("path", oracle_files("04"))
def test_shares_and_weights_are_those_of_the_authors(path: Path) -> None:
    oracle = read(path)
    T = float(oracle["T"])
    batches = list(zip(oracle["logits_a"], oracle["logits_b"], strict=True))
    for t, logits in enumerate(batches):
        report = modality_statistics(logits)
        same(report.dependence, oracle["dependence"][t], 1e-12)
        same(report.entropy_share, oracle["entropy_share"][t], 1e-12)
        same(report.inverse_variance_share, oracle["inv_variance_share"][t])
        same(arl_weights(report.dependence, report.inverse_variance_share, T), oracle["weight"][t])
        asymmetric = AsymmetricGradient(2, temperature=T).double()
        same(asymmetric.update(logits), oracle["weight"][t])
        same(asymmetric.scale, 1 + oracle["weight"][t])
        turned = AsymmetricGradient(2, "inverse", temperature=T).double()
        same(turned.update(logits), oracle["weight"][t].flip(0))
    # All batches at once: leading dimensions are batches of weights.
    same(arl_weights(oracle["dependence"], oracle["inv_variance_share"], T), oracle["weight"])


@pytest.mark.parametrize("path", oracle_files("04"))
def test_unimodal_logits_are_those_of_the_authors_heads(path: Path) -> None:
    oracle = read(path)
    features = [oracle["con_x"], oracle["con_y"]]
    weight = oracle["con_fc_out.weight"]
    head = nn.Linear(weight.shape[1], weight.shape[0]).double()
    head.load_state_dict({"weight": weight, "bias": oracle["con_fc_out.bias"]})
    for form in (head, lambda *h: head(torch.cat(h, dim=1))):
        for found, wanted in zip(zero_out_unimodal(form, features), ("con_out_x", "con_out_y"), strict=True):
            same(found, oracle[wanted], 1e-12)
    same(head(torch.cat(features, dim=1)), oracle["con_out"], 1e-12)

    parts = nn.ModuleList()
    for name in ("x", "y"):
        weight = oracle[f"sum_fc_{name}.weight"]
        parts.append(nn.Linear(weight.shape[1], weight.shape[0]).double())
        parts[-1].load_state_dict({"weight": weight, "bias": oracle[f"sum_fc_{name}.bias"]})
    found = zero_out_unimodal(parts, [oracle["sum_x"], oracle["sum_y"]])
    same(found[0], oracle["sum_out_x"], 1e-12)
    same(found[1], oracle["sum_out_y"], 1e-12)
    same(found[0] + found[1], oracle["sum_out"], 1e-12)
