"""Scaled losses, their gradients, prior, bias and threshold of the authors' code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterpoise.decisions import PriorScoreThreshold
from counterpoise.losses import GuidedLossScaling
from counterpoise.nn.init import estimate_prior, prior_bias_
from tests.oracles import oracle_files

EXACT = {"rtol": 0, "atol": 1e-10}
every_file = pytest.mark.parametrize("path", oracle_files("09"))


def load(path: Path) -> dict[str, Tensor]:
    with np.load(path) as numbers:
        return {key: torch.from_numpy(np.asarray(numbers[key])) for key in numbers.files}


def losses(oracle: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits and box parameters that take gradients, and the losses that the file describes."""
    logits, reg = oracle["logits"].clone().requires_grad_(), oracle["reg"].clone().requires_grad_()
    objects = max(1, int(oracle["num_positive"]))
    loss_cls = F.binary_cross_entropy_with_logits(logits, oracle["labels"].double(), reduction="sum") / objects
    loss_reg = F.smooth_l1_loss(reg, oracle["reg_target"], reduction="sum", beta=float(oracle["smooth_l1_beta"])) / objects
    return logits, reg, loss_cls, loss_reg


@every_file
def test_losses_and_gradients(path: Path) -> None:
    oracle = load(path)
    logits, reg, loss_cls, loss_reg = losses(oracle)
    torch.testing.assert_close(loss_cls, oracle["loss_cls_raw"], **EXACT)
    torch.testing.assert_close(loss_reg, oracle["loss_reg"], **EXACT)
    (raw,) = torch.autograd.grad(loss_cls, logits, retain_graph=True)
    torch.testing.assert_close(raw, oracle["grad_logits_raw"], **EXACT)

    scaled = GuidedLossScaling(scale=float(oracle["extra_scale"]))(loss_cls, loss_reg)
    torch.testing.assert_close(scaled, oracle["loss_cls_scaled"], **EXACT)
    (scaled + loss_reg).backward()
    torch.testing.assert_close(logits.grad, oracle["grad_logits"], **EXACT)
    torch.testing.assert_close(reg.grad, oracle["grad_reg"], **EXACT)


@every_file
def test_the_dict_form_and_the_other_order_are_the_same_scaling(path: Path) -> None:
    oracle = load(path)
    scale = float(oracle["extra_scale"])
    _, _, loss_cls, loss_reg = losses(oracle)
    by_name = GuidedLossScaling(scale)({"cls": loss_cls, "box": loss_reg}, guide="box")
    torch.testing.assert_close(by_name["cls"], oracle["loss_cls_scaled"], **EXACT)
    torch.testing.assert_close(by_name["box"], oracle["loss_reg"], **EXACT)
    torch.testing.assert_close(GuidedLossScaling(scale, reference=0)(loss_reg, loss_cls), oracle["loss_cls_scaled"], **EXACT)


@every_file
def test_prior_bias_and_threshold(path: Path) -> None:
    oracle = load(path)
    classes, prior = int(oracle["num_classes"]), float(oracle["prior"])
    foreground = oracle["labels"].bool().any(dim=1)
    found = estimate_prior(foreground, num_classes=1)
    assert found.counts.tolist() == [int(oracle["num_anchors"] - oracle["num_positive"]), int(oracle["num_positive"])]
    assert found.foreground / classes == pytest.approx(prior, abs=1e-10)
    labels = torch.where(foreground, oracle["labels"].long().argmax(dim=1) + 1, 0)
    assert estimate_prior([labels], classes, min_count=1).counts[1:].sum() == oracle["num_positive"]
    head = prior_bias_(nn.Linear(3, classes).double(), prior)
    torch.testing.assert_close(head.bias.detach(), oracle["bias_init"].expand(classes), **EXACT)
    threshold = float(oracle["adaptive_threshold"])
    rule = PriorScoreThreshold(prior, factor=threshold / prior)
    assert rule.threshold == pytest.approx(threshold, abs=1e-10)
    assert rule.keep(np.array([threshold - 1e-9, threshold + 1e-9])).tolist() == [False, True]
