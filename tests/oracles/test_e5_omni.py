"""The loss of e5-omni against an independent evaluation of its formulas, element by element. There is no published training code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from counterpoise.losses import ModalityTemperature, OmniContrastiveLoss, QuantileCurriculum, coral_loss
from tests.oracles import oracle_files

every_file = pytest.mark.parametrize("path", oracle_files("13"))
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def load(path: Path) -> dict[str, Tensor]:
    with np.load(path) as numbers:
        return {key: torch.from_numpy(np.asarray(numbers[key])) for key in numbers.files}


def temperature_of(oracle: dict[str, Tensor]) -> ModalityTemperature:
    tau = oracle["temperature"]
    return ModalityTemperature(len(tau), init=tau, min=0.5 * tau.min().item(), max=2 * tau.max().item())


def curriculum_of(oracle: dict[str, Tensor]) -> QuantileCurriculum:
    return QuantileCurriculum(oracle["rho"].item(), oracle["rho"].item())


@every_file
def test_logits_and_kept_negatives(path: Path) -> None:
    oracle = load(path)
    temperature = temperature_of(oracle)
    tau = temperature(temperature.weights(oracle["modality_query"]), temperature.weights(oracle["modality_target"]))
    logits = F.normalize(oracle["query"]) @ F.normalize(oracle["target"]).T / tau
    torch.testing.assert_close(logits, oracle["logits"], **EXACT)
    keep = curriculum_of(oracle).mask(logits, torch.arange(len(logits)))
    assert torch.equal(keep, oracle["keep"])


@every_file
def test_loss(path: Path) -> None:
    oracle = load(path)

    def loss_of(reduction: str) -> OmniContrastiveLoss:
        options = {"gamma_plus": oracle["gamma_plus"].item(), "eps": oracle["eps"].item(), "eps_mode": "absolute", "coral_weight": 0.0}
        return OmniContrastiveLoss(temperature_of(oracle), curriculum_of(oracle), reduction=reduction, **options)

    batch = oracle["query"], oracle["target"], oracle["modality_query"], oracle["modality_target"]
    each = loss_of("none")
    torch.testing.assert_close(each(*batch), oracle["loss_rows"], **EXACT)
    torch.testing.assert_close(loss_of("mean")(*batch), oracle["loss"], **EXACT)
    off = ~torch.eye(len(oracle["keep"]), dtype=torch.bool)
    assert each.last is not None
    assert each.last.kept_fraction.item() == pytest.approx(oracle["keep"][off].double().mean().item(), abs=1e-12)
    torch.testing.assert_close(each.last.temperatures, oracle["temperature"], **EXACT)


@every_file
def test_alignment(path: Path) -> None:
    oracle = load(path)
    query, target = F.normalize(oracle["query"]), F.normalize(oracle["target"])
    torch.testing.assert_close(coral_loss(query, target), oracle["coral_unwhitened"], **EXACT)
    loss = OmniContrastiveLoss(temperature_of(oracle), coral_weight=1.0, whiten=False)
    loss(oracle["query"], oracle["target"], oracle["modality_query"], oracle["modality_target"])
    assert loss.last is not None
    torch.testing.assert_close(loss.last.coral, oracle["coral_unwhitened"], **EXACT)
