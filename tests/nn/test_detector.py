"""The first steps of a detector on real images: the blood cells of examples/detector_bccd.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from counterpoise.decisions import PriorScoreThreshold
from counterpoise.losses import GuidedLossScaling
from counterpoise.nn.init import estimate_prior

EXAMPLE = Path(__file__).parents[2] / "examples" / "detector_bccd.py"
IMAGES, STEPS = 40, 8


@pytest.fixture(scope="module")
def example(data_folder) -> ModuleType:
    if not (data_folder / "bccd" / "BCCD.zip").is_file():
        pytest.skip("needs bccd/BCCD.zip in the folder that COUNTERPOISE_DATA names")
    spec = importlib.util.spec_from_file_location("detector_bccd", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cells(example):
    """Images, labels, box targets and the prior of the first training images."""
    images, *found = example.read("train", IMAGES)
    labels, targets = (torch.stack(parts) for parts in zip(*map(example.match, *found), strict=True))
    assert images.shape == (IMAGES, 3, 120, 160) and labels.shape == (IMAGES, 15, 20)
    assert all(int((label > 0).sum()) <= len(classes) for label, classes in zip(labels, found[1], strict=True))
    return images, labels, targets, estimate_prior(labels, len(example.CLASSES))


def test_the_prior_is_that_of_the_labels(cells) -> None:
    _, labels, _, prior = cells
    counted = labels[labels >= 0]
    assert len(counted) < labels.numel()  # some are ignored
    for k in range(3):
        assert prior.per_class[k].item() == pytest.approx((counted == k + 1).double().mean().item())
    assert prior.per_class[0] > 5 * prior.per_class[1:].max() and 0.9 < 1 - prior.foreground < 0.98


def test_the_first_steps_from_the_prior_and_from_zero(example, cells) -> None:
    images, labels, targets, prior = cells
    _, pull, course = example.train(images, labels, targets, steps=STEPS)
    model, own_pull, own_course = example.train(images, labels, targets, prior=prior.per_class, steps=STEPS)
    assert pull > 10 * own_pull
    assert max(own_course) < min(course)
    with torch.no_grad():
        scores = model(images)[0].sigmoid().permute(0, 2, 3, 1)
    for rule, most in ((0.5, 0.05), (prior.per_class, 0.9)):
        assert PriorScoreThreshold(rule).keep(scores).double().mean() <= most
    assert PriorScoreThreshold(prior.per_class).keep(scores).any(dim=(0, 1, 2)).all()  # candidates of every class


def test_guided_scaling_takes_the_size_of_the_box_loss(example, cells) -> None:
    images, labels, targets, prior = cells
    torch.manual_seed(0)
    model, guided = example.Detector(prior.per_class), GuidedLossScaling()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(STEPS):
        rows = slice(4 * step, 4 * step + 4)
        loss_cls, loss_box = example.losses(*model(images[rows]), labels[rows], targets[rows])
        assert loss_cls > 1.5 * loss_box
        scaled = guided(loss_cls, loss_box)
        assert scaled.item() == pytest.approx(loss_box.item(), rel=1e-6)
        optimizer.zero_grad()
        (scaled + loss_box).backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
        optimizer.step()
