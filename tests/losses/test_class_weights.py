from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from counterpoise._errors import InputError
from counterpoise.losses import class_weights

Y = np.repeat([0, 1, 2], [80, 15, 5])


def test_balanced_is_scikit_learns() -> None:
    expected = compute_class_weight("balanced", classes=np.arange(3), y=Y)
    np.testing.assert_allclose(class_weights(Y).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("scheme", ["balanced", "sqrt", "effective"])
def test_mean_over_the_data_is_one_and_rare_classes_weigh_more(scheme) -> None:
    weights = class_weights(Y, scheme=scheme)
    assert weights.dtype == torch.get_default_dtype()
    assert weights[Y].mean().item() == pytest.approx(1, rel=1e-6)
    assert weights[0] < weights[1] < weights[2]


def test_sqrt_and_effective_follow_their_formulas() -> None:
    n = np.array([80.0, 15.0, 5.0])
    np.testing.assert_allclose((w := class_weights(Y, scheme="sqrt").numpy()) / w[0], np.sqrt(n[0] / n), rtol=1e-6)
    raw = (1 - 0.9) / (1 - 0.9**n)
    np.testing.assert_allclose((w := class_weights(Y, scheme="effective", beta=0.9).numpy()) / w[0], raw / raw[0], rtol=1e-6)


def test_effective_lies_between_none_and_balanced() -> None:
    torch.testing.assert_close(class_weights(Y, scheme="effective", beta=0.0), torch.ones(3))
    torch.testing.assert_close(class_weights(Y, scheme="effective", beta=1 - 1e-12), class_weights(Y))


def test_labels_tensors_and_counts_are_the_same() -> None:
    expected = class_weights(Y)
    assert torch.equal(class_weights(torch.from_numpy(Y)), expected)
    assert torch.equal(class_weights(Y.tolist()), expected)
    assert torch.equal(class_weights(counts=[80, 15, 5]), expected)
    assert torch.equal(class_weights(counts=torch.tensor([80, 15, 5])), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "y and counts: got neither of them; expected exactly one"),
        ({"y": [0, 1], "counts": [1, 1]}, "got both of them"),
        ({"y": [0, 2]}, "y: got no example of class 1; expected at least one"),
        ({"counts": [3, 0, 0]}, "counts: got no example of class 1, 2"),
        ({"counts": [3, -1]}, "counts: got .*expected one positive number per class"),
        ({"counts": [3, float("nan")]}, "counts"),
        ({"y": ["a", "b"]}, r"y: got an array of <U1; expected integer class codes 0\.\.K-1. Groups.from_labels"),
        ({"y": [-1, 0]}, "y: got -1"),
        ({"y": []}, "n > 0"),
        ({"y": [[0, 1]]}, r"y: got an array of shape \(1, 2\)"),
        ({"y": [0, 1], "scheme": "balance"}, "scheme: got 'balance'.*Did you mean 'balanced'"),
        ({"y": [0, 1], "beta": 1.0}, r"beta: got 1.0; expected a number in \[0, 1\)"),
    ],
)
def test_bad_input_is_refused(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        class_weights(**arguments)
