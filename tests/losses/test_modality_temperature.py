from __future__ import annotations

import numpy as np
import pytest
import torch

from counterpoise._errors import InputError
from counterpoise.losses import ModalityTemperature

NAMES = ["text", "image", "audio"]


def test_temperatures_of_pairs_are_means_of_their_items() -> None:
    temperature = ModalityTemperature(NAMES, init=[0.01, 0.02, 0.06])
    wq = temperature.weights([["text"], ["image", "audio"]])
    wt = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    expected = torch.tensor([[0.01 + 0.0175, 0.01 + 0.06, 0.02], [0.04 + 0.0175, 0.04 + 0.06, 0.05]]) / 2
    torch.testing.assert_close(temperature(wq, wt), expected)
    torch.testing.assert_close(temperature.of(wt), torch.tensor([0.0175, 0.06, 0.01]))


def test_ways_to_name_modalities() -> None:
    temperature = ModalityTemperature(NAMES)
    expected = torch.eye(3)[[2, 0, 1]]
    for given in (
        torch.tensor([2, 0, 1]),
        torch.tensor([2, 0, 1], dtype=torch.int16),
        [2, 0, 1],
        ["audio", "text", "image"],
        [("audio",), ("text",), "image"],
        expected.half(),
        expected.tolist(),
        expected.numpy(),
        np.array([2, 0, 1]),
        np.array(["audio", "text", "image"]),
    ):
        assert torch.equal(temperature.weights(given), expected)
    assert torch.equal(temperature.weights([("text", "audio", "audio", "audio")]), torch.tensor([[0.25, 0.0, 0.75]]))
    assert ModalityTemperature(2).names == ModalityTemperature(np.int64(2)).names == ("0", "1")


def test_gradients() -> None:
    temperature = ModalityTemperature(NAMES, init=[0.2, 0.3, 0.4]).double()
    weights = temperature.weights(["text", ("text", "image")])
    temperature(weights, weights).sum().backward()
    # Each item's temperature is in 4 pairs, half of it: d/d log tau = 2 sum_x w_m(x) tau_m. Audio does not occur: 0, and not None.
    torch.testing.assert_close(temperature.log_tau.grad, torch.tensor([2 * 1.5 * 0.2, 2 * 0.5 * 0.3, 0.0], dtype=torch.float64))


def test_bounds_hold_and_let_go() -> None:
    temperature = ModalityTemperature(2, init=[0.01, 0.5], min=0.01, max=0.5)
    with torch.no_grad():
        temperature.log_tau.copy_(torch.tensor([0.001, 0.9]).log())
    torch.testing.assert_close(temperature.temperatures, torch.tensor([0.01, 0.5]))
    for sign, inside in ((1.0, torch.tensor([False, True])), (-1.0, torch.tensor([True, False]))):
        temperature.log_tau.grad = None
        (sign * temperature.temperatures.sum()).backward()
        # A step against the gradient lowers the temperature for sign 1: the lower one must not go on, the upper one may come back.
        assert torch.equal(temperature.log_tau.grad != 0, inside)


def test_it_is_saved_with_its_values() -> None:
    temperature, other = ModalityTemperature(NAMES, init=0.03), ModalityTemperature(NAMES)
    other.load_state_dict(temperature.state_dict())
    assert torch.equal(other.temperatures, temperature.temperatures)
    assert "text=0.03" in repr(other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modalities": 0}, "modalities"),
        ({"modalities": []}, "modalities"),
        ({"modalities": 1.5}, "modalities: got 1.5"),
        ({"modalities": "text"}, "modalities: got 'text'"),
        ({"modalities": ["a", "a"]}, "modalities"),
        ({"init": 0.0}, r"init: got 0.0; expected temperatures in \[0.001, 1\]"),
        ({"init": 2.0}, "init"),
        ({"init": [0.1, 0.2]}, r"init: got shape \(2,\); expected one temperature, or one for each of the 3"),
        ({"init": [0.1, float("nan"), 0.1]}, "init"),
        ({"min": 0.0}, "min"),
        ({"min": 0.5, "max": 0.5}, "max"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ModalityTemperature(**{"modalities": NAMES} | options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["text", "smell"], "modality: got 'smell'; expected one of the modalities text, image, audio"),
        ([()], r"modality: got \(\); expected one of"),
        ([0, 3], r"modality: got 3; expected indices of modalities, 0..2. Known: text, image, audio"),
        ([-1], "modality: got -1"),
        ([[0.5, 0.6, 0.0]], r"in row 0; expected weights >= 0 that sum to 1"),
        ([[1.0, 0.0, 0.0], [1.5, -0.5, 0.0]], "in row 1"),
        ([[1.0, float("nan"), 0.0]], "in row 0"),
        ([[1.0, 0.0]], r"modality: got shape \(1, 2\)"),
        ([0.0, 1.0], "modality"),
    ],
)
def test_modalities_that_make_no_sense_are_refused(given: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ModalityTemperature(NAMES).weights(given)


def test_weights_of_another_width_are_refused() -> None:
    with pytest.raises(InputError, match=r"weights: got shape \(2, 2\)"):
        ModalityTemperature(NAMES).of(torch.full((2, 2), 0.5))
