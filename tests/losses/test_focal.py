from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch.nn import functional as F

from counterpoise._errors import InputError
from counterpoise.losses import FocalLoss, class_weights


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(16, 5, generator=generator, dtype=torch.float64)
    return logits, (torch.rand(16, 5, generator=generator) < 0.3).double()


def test_labels_follow_the_equation(batch) -> None:
    logits, targets = batch
    alpha, gamma = [0.5, 1.0, 2.0, 3.0, 0.1], 1.7
    got = FocalLoss(gamma, alpha, reduction="none")(logits, targets).numpy()
    for i in range(len(logits)):
        for k in range(5):
            p, y = 1 / (1 + math.exp(-logits[i, k])), targets[i, k].item()
            expected = -alpha[k] * (y * (1 - p) ** gamma * math.log(p) + (1 - y) * p**gamma * math.log(1 - p))
            assert got[i, k] == pytest.approx(expected, rel=1e-6)  # alpha is float32


def test_classes_follow_the_equation(batch) -> None:
    logits = batch[0]
    targets = torch.arange(16) % 5
    alpha, gamma = [0.5, 1.0, 2.0, 3.0, 0.1], 1.7
    got = FocalLoss(gamma, alpha, multilabel=False, reduction="none")(logits, targets)
    for i in range(len(logits)):
        p, y = np.exp(logits[i].numpy()) / np.exp(logits[i].numpy()).sum(), int(targets[i])
        assert got[i].item() == pytest.approx(-alpha[y] * (1 - p[y]) ** gamma * math.log(p[y]), rel=1e-6)


def test_without_gamma_it_is_cross_entropy(batch) -> None:
    logits, targets = batch
    torch.testing.assert_close(FocalLoss(gamma=0)(logits, targets), F.binary_cross_entropy_with_logits(logits, targets))
    torch.testing.assert_close(
        FocalLoss(gamma=0, alpha=torch.ones(5))(logits, targets), F.binary_cross_entropy_with_logits(logits, targets)
    )
    classes = torch.arange(16) % 5
    torch.testing.assert_close(FocalLoss(gamma=0, multilabel=False)(logits, classes), F.cross_entropy(logits, classes))
    proba = logits.softmax(dim=1)
    assert FocalLoss(gamma=0, multilabel=False, from_logits=False)(proba, classes).item() == pytest.approx(
        log_loss(classes.numpy(), proba.numpy(), labels=range(5))
    )


def test_probabilities_give_what_their_logits_give(batch) -> None:
    logits, targets = batch
    torch.testing.assert_close(FocalLoss(from_logits=False)(logits.sigmoid(), targets), FocalLoss()(logits, targets))
    classes = torch.arange(16) % 5
    torch.testing.assert_close(
        FocalLoss(from_logits=False, multilabel=False)(logits.softmax(dim=1), classes), FocalLoss(multilabel=False)(logits, classes)
    )


def test_two_classes_are_one_label() -> None:
    logits = torch.tensor([-2.0, 0.5, 3.0])
    targets = torch.tensor([1, 0, 1])
    pair = torch.stack([torch.zeros(3), logits], dim=1)
    torch.testing.assert_close(FocalLoss(multilabel=False)(pair, targets), FocalLoss()(logits, targets.float()))


def test_tiny_losses_keep_their_digits() -> None:
    # p = 1 - e^-40: float32 rounds p to 1, and a loss made from p to 0. L = (1 - p)^(1/2) e^-40.
    loss = FocalLoss(gamma=0.5, reduction="none")(torch.tensor([40.0]), torch.tensor([1.0]))
    assert loss.item() == pytest.approx(math.exp(-60), rel=1e-5)
    logits = torch.tensor([[15.0, 0.0, 0.0]])
    ratio = FocalLoss(gamma=1, multilabel=False)(logits, torch.tensor([0])) / F.cross_entropy(logits, torch.tensor([0]))
    assert ratio.item() == pytest.approx(2 / (2 + math.exp(15)), rel=1e-5)  # 1 - p


def test_integer_and_boolean_labels_are_labels(batch) -> None:
    logits, targets = batch
    expected = FocalLoss()(logits, targets)
    assert FocalLoss()(logits, targets.long()) == expected
    assert FocalLoss()(logits, targets.bool()) == expected


def test_alpha_weighs_and_does_not_divide(batch) -> None:
    logits = batch[0]
    targets = torch.arange(16) % 5
    weights = class_weights(targets)
    each = FocalLoss(multilabel=False, reduction="none")(logits, targets)
    expected = (each * weights.double()[targets]).sum() / 16
    torch.testing.assert_close(FocalLoss(multilabel=False, alpha=weights)(logits, targets), expected)


def test_alpha_moves_with_the_module() -> None:
    loss = FocalLoss(alpha=[1, 2])
    assert loss.to(torch.float64).alpha.dtype == torch.float64
    assert list(loss.state_dict()) == ["alpha"]
    assert repr(loss) == "FocalLoss(gamma=2, alpha=(2 values), from_logits=True, multilabel=True, reduction='mean')"


@pytest.mark.parametrize(
    ("options", "inputs", "targets", "message"),
    [
        ({}, torch.zeros(3, 2), torch.zeros(3), r"shapes \(3, 2\) and \(3,\); expected the same shape.*multilabel=False"),
        ({}, torch.zeros(3, 2), torch.full((3, 2), 0.5), "targets: got 0.5; expected 0 or 1 for every label"),
        ({}, torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 2), "inputs: got a tensor of torch.int64"),
        ({"multilabel": False}, torch.zeros(3, 2), torch.zeros(3, 2), r"expected shapes \(B, K\) with K >= 2 and \(B,\)"),
        ({"multilabel": False}, torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64), "K >= 2"),
        ({"multilabel": False}, torch.zeros(3, 2), torch.tensor([0, 1, 2]), r"targets: got 2; expected classes 0\.\.1"),
        ({"multilabel": False}, torch.zeros(3, 2), torch.tensor([0, -1, 1]), "targets: got -1"),
        ({"multilabel": False}, torch.zeros(3, 2), torch.zeros(3), "expected integer classes"),
        ({"from_logits": False}, torch.full((3, 2), 1.5), torch.zeros(3, 2), "For logits leave from_logits=True"),
        ({"alpha": [1.0, 2.0, 3.0]}, torch.zeros(3, 2), torch.zeros(3, 2), "alpha: got 3 values for inputs of shape"),
    ],
)
def test_bad_batches_are_refused(options, inputs, targets, message) -> None:
    with pytest.raises(InputError, match=message):
        FocalLoss(**options)(inputs, targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -1}, "gamma: got -1; expected a number >= 0"),
        ({"gamma": float("nan")}, "gamma: got nan"),
        ({"reduction": "avg"}, "reduction: got 'avg'; expected one of mean, sum, none"),
        ({"alpha": [1.0, -1.0]}, "alpha: got .*>= 0"),
        ({"alpha": 0.25}, "alpha: got 0.25; expected one finite weight"),
        ({"alpha": [1.0, float("inf")]}, "finite"),
    ],
)
def test_bad_options_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        FocalLoss(**options)
