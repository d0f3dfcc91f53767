from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from counterpoise._errors import InputError
from counterpoise.losses import FocalLoss, WeightedLoss, dequity_weight


def cross_entropy() -> nn.Module:
    return nn.CrossEntropyLoss(reduction="none")


# ---- dequity_weight ---------------------------------------------------------------------------------------------------------------------


def test_weights_run_from_one_down_to_the_cap() -> None:
    p = np.linspace(0, 1, 101)
    for eta, gamma in ((1.0, 5.0), (0.3, 2.0), (0.0, 0.5)):
        w = dequity_weight(p, eta, gamma)
        assert w[0] == 1 and w[-1] == pytest.approx(eta / (eta + 1), abs=1e-15)
        assert (np.diff(w) < 0).all() or gamma == 5  # (1 - p)^5 is flat to the last digit near p = 1
        assert (np.diff(w) <= 0).all()
    assert dequity_weight(0.5, eta=0.3, gamma=2.0) == pytest.approx((0.3 + 0.25) / 1.3, abs=1e-15)


def test_gamma_zero_is_the_identity_even_at_one() -> None:
    np.testing.assert_array_equal(dequity_weight(np.array([0.0, 0.3, 1.0]), eta=0.7, gamma=0.0), [1.0, 1.0, 1.0])
    assert dequity_weight(torch.ones(3), eta=0.0, gamma=0.0).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_keep_their_type_and_shape(dtype) -> None:
    p = np.array([[0.25, 0.5], [0.75, 1.0]], dtype=dtype)
    w = dequity_weight(p, 0.3, 2.0)
    assert w.dtype == dtype and w.shape == (2, 2)
    np.testing.assert_allclose(w, dequity_weight(p.astype(np.float64), 0.3, 2.0), rtol=2 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_keep_their_type_and_shape(dtype) -> None:
    p = torch.tensor([[0.25, 0.5], [0.75, 1.0]], dtype=dtype)
    w = dequity_weight(p, 0.3, 2.0)
    assert w.dtype == dtype and w.shape == (2, 2)
    torch.testing.assert_close(w.double(), dequity_weight(p.double(), 0.3, 2.0), rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_numbers_integers_and_nothing() -> None:
    assert isinstance(dequity_weight(0.5), float)
    assert dequity_weight(np.array([0, 1])).tolist() == [1.0, 0.5]
    assert dequity_weight(torch.tensor([0, 1])).tolist() == [1.0, 0.5]
    assert dequity_weight(np.array([]), eta=0.0).shape == dequity_weight(torch.zeros(0), eta=0.0).shape == (0,)


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
@pytest.mark.parametrize(
    ("p", "options", "message"),
    [
        ([0.5, 1.5], {}, "p: got 1.5 at position 1; expected likelihoods in"),
        ([-0.1, 0.5], {}, "p: got -0.1 at position 0"),
        ([0.1, 0.2, float("nan")], {}, "p: got nan at position 2"),
        ([0.5], {"eta": -1.0}, "eta: got -1.0"),
        ([0.5], {"eta": float("inf")}, "eta: got inf"),
        ([0.5], {"gamma": -0.5}, "gamma: got -0.5"),
        ([0.5], {"gamma": float("nan")}, "gamma: got nan"),
        ([1.0, 1.0], {"eta": 0.0}, "eta: got 0.0; expected a number > 0 where every likelihood is 1"),
    ],
)
def test_likelihoods_that_are_none_are_refused(kind, p, options, message) -> None:
    with pytest.raises(InputError, match=message):
        dequity_weight(kind(p), **options)


def test_words_are_no_likelihoods() -> None:
    with pytest.raises(InputError, match="p: got an array of <U3"):
        dequity_weight(np.array(["rare"[:3]]))


# ---- WeightedLoss -----------------------------------------------------------------------------------------------------------------------


def test_the_loss_by_hand() -> None:
    loss = WeightedLoss(nn.MSELoss(reduction="none"), torch.tensor([1.0, 2.0, 3.0]), normalize="none")
    batch = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0]), torch.tensor([2, 0])
    assert loss(*batch).item() == (3 * 1 + 1 * 4) / 2
    normalized = WeightedLoss(nn.MSELoss(reduction="none"), torch.tensor([1.0, 2.0, 3.0]))
    assert normalized(*batch).item() == pytest.approx((3 * 1 + 1 * 4) / 2 / 2)


@pytest.mark.parametrize("base", [nn.CrossEntropyLoss, nn.MSELoss, lambda reduction: FocalLoss(multilabel=False, reduction=reduction)])
def test_equal_weights_change_nothing(base) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6, 4, generator=generator)
    targets = torch.randn(6, 4, generator=generator) if base is nn.MSELoss else torch.randint(4, (6,), generator=generator)
    loss = WeightedLoss(base(reduction="none"), dequity_weight(np.ones(10)))
    torch.testing.assert_close(loss(inputs, targets, torch.arange(6)), base(reduction="mean")(inputs, targets))


def test_an_example_of_many_losses_has_one_weight() -> None:
    inputs, targets = torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 4, 4, dtype=torch.int64)
    weights = torch.tensor([0.5, 1.0, 1.5])
    loss = WeightedLoss(cross_entropy(), weights, reduction="none")
    each = loss(inputs, targets, torch.tensor([2, 1, 0]))
    torch.testing.assert_close(each, cross_entropy()(inputs, targets) * torch.tensor([1.5, 1.0, 0.5])[:, None, None])
    mean = WeightedLoss(cross_entropy(), weights)(inputs, targets, torch.tensor([2, 1, 0]))
    torch.testing.assert_close(mean, each.mean())


def test_the_mean_of_the_weights_is_taken_over_the_data_not_the_batch() -> None:
    p = np.repeat([0.9, 0.1], [90, 10])
    loss = WeightedLoss(cross_entropy(), dequity_weight(p, 0.3, 2.0))
    assert loss.weights.mean().item() == pytest.approx(1, abs=1e-12)
    rare_only = loss(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64), torch.arange(90, 94))
    assert rare_only.item() > 2 * np.log(2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_positions_of_any_integer_type(dtype) -> None:
    loss = WeightedLoss(nn.MSELoss(reduction="none"), torch.tensor([1.0, 2.0, 3.0]), normalize="none", reduction="none")
    assert loss(torch.ones(2), torch.zeros(2), torch.tensor([2, 1], dtype=dtype)).tolist() == [3.0, 2.0]


@pytest.mark.parametrize("weights", [np.array([1, 3]), torch.tensor([1, 3]), torch.tensor([1, 3], dtype=torch.float16), [1, 3]])
def test_weights_of_any_type(weights) -> None:
    loss = WeightedLoss(nn.MSELoss(reduction="none"), weights)
    assert loss.weights.dtype == torch.float32 and loss.weights.tolist() == [0.5, 1.5]
    assert list(loss.state_dict()) == ["weights"]


def test_the_loss_keeps_the_precision_of_the_model() -> None:
    loss = WeightedLoss(nn.MSELoss(reduction="none"), np.array([1.0, 3.0]))
    batch = torch.zeros(2), torch.ones(2), torch.arange(2)
    assert loss(*batch).dtype == torch.float32 and loss.weights.dtype == torch.float64
    assert loss(batch[0].half(), *batch[1:]).dtype == torch.float32


def test_inputs_that_are_no_tensors_go_to_the_base_as_they_are() -> None:
    class OfParts(nn.Module):
        def forward(self, parts, target):
            return (parts["mean"] - target) ** 2

    loss = WeightedLoss(OfParts(), torch.tensor([1.0, 3.0]))
    assert loss({"mean": torch.ones(1)}, torch.zeros(1), torch.tensor([1])).item() == 1.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_weights_loss_and_positions_may_be_on_different_devices() -> None:
    for loss_device in ("cpu", "cuda"):
        for index_device in ("cpu", "cuda"):
            loss = WeightedLoss(cross_entropy(), np.array([1.0, 3.0])).to(loss_device)
            index = torch.arange(2, device=index_device)
            value = loss(torch.zeros(2, 2, device="cuda"), torch.zeros(2, dtype=torch.int64, device="cuda"), index)
            assert value.device.type == "cuda" and value.item() == pytest.approx(np.log(2))


ZEROS = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (torch.tensor([0, 4]), r"index: got 4; expected positions 0..3 of the data set"),
        (torch.tensor([-1, 0]), "index: got -1"),
        (torch.tensor([0]), r"index: got shape \(1,\) for 2 losses"),
        (torch.tensor([[0], [1]]), r"index: got shape \(2, 1\)"),
        (torch.tensor([0.0, 1.0]), "index: got a tensor of torch.float32; expected an integer tensor"),
        (torch.tensor([True, False]), "index: got a tensor of torch.bool"),
        ([0, 1], "index: got 'list'"),
    ],
)
def test_positions_that_are_none_are_refused(index, message) -> None:
    with pytest.raises(InputError, match=message):
        WeightedLoss(cross_entropy(), torch.ones(4))(*ZEROS, index)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(2, 2), r"weights: got shape \(2, 2\)"),
        (torch.ones(0), r"weights: got shape \(0,\)"),
        (torch.tensor([1.0, -1.0]), "weights: got -1 at position 1"),
        (np.array([1.0, np.nan]), "weights: got nan at position 1"),
        (torch.zeros(3), "weights: got all weights 0"),
    ],
)
def test_weights_that_are_none_are_refused(weights, message) -> None:
    with pytest.raises(InputError, match=message):
        WeightedLoss(cross_entropy(), weights)


def test_a_base_that_reduces_is_refused() -> None:
    with pytest.raises(InputError, match="base: got CrossEntropyLoss with reduction='mean'"):
        WeightedLoss(nn.CrossEntropyLoss(), torch.ones(4))

    class Reducing(nn.Module):
        def forward(self, input, target):
            return nn.functional.cross_entropy(input, target)

    with pytest.raises(InputError, match="base: got a single loss for the whole batch"):
        WeightedLoss(Reducing(), torch.ones(4))(*ZEROS, torch.arange(2))
    with pytest.raises(InputError, match="base: got 'str'"):
        WeightedLoss("cross-entropy", torch.ones(4))
    with pytest.raises(InputError, match="normalize: got 'sum'"):
        WeightedLoss(cross_entropy(), torch.ones(4), normalize="sum")
    with pytest.raises(InputError, match="reduction: got 'batchmean'"):
        WeightedLoss(cross_entropy(), torch.ones(4), reduction="batchmean")
