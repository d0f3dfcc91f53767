from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from counterpoise._errors import InputError
from counterpoise.decisions import fold_into_bias, prior_correct

PRIOR = np.array([0.7, 0.2, 0.1])


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(50, 3))


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_logits_and_probabilities_decide_alike(logits) -> None:
    decided = prior_correct(logits, PRIOR).argmax(axis=1)
    np.testing.assert_array_equal(decided, (softmax(logits) / PRIOR).argmax(axis=1))
    np.testing.assert_array_equal(decided, prior_correct(softmax(logits), PRIOR, input="proba").argmax(axis=1))
    assert (decided != logits.argmax(axis=1)).sum() > 5


def test_correction_undoes_a_shift_of_the_prior(logits) -> None:
    # Bayes: p(k | x) under prior q is proportional to p(k | x) under pi times q / pi.
    q = np.array([0.1, 0.3, 0.6])
    bayes = softmax(logits) * q / PRIOR
    np.testing.assert_allclose(softmax(prior_correct(logits, PRIOR, q)), bayes / bayes.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(prior_correct(softmax(logits), PRIOR, q, input="proba"), bayes)


def test_equal_priors_change_nothing(logits) -> None:
    np.testing.assert_allclose(prior_correct(logits, PRIOR, PRIOR), logits, atol=1e-15)
    np.testing.assert_array_equal(prior_correct(logits, [1, 1, 1]).argmax(axis=1), logits.argmax(axis=1))
    np.testing.assert_allclose(prior_correct(logits, [1, 1, 1], [1, 1, 1]), logits, atol=1e-15)


def test_columns_of_probabilities_keep_their_ranking(logits) -> None:
    proba = softmax(logits)
    np.testing.assert_array_equal(prior_correct(proba, PRIOR, input="proba").argsort(axis=0), proba.argsort(axis=0))


def test_counts_are_a_prior(logits) -> None:
    np.testing.assert_allclose(prior_correct(logits, [70, 20, 10]), prior_correct(logits, PRIOR))


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 5, 3), (0, 3)])
def test_any_leading_shape(shape) -> None:
    scores = np.zeros(shape)
    np.testing.assert_allclose(prior_correct(scores, PRIOR), scores - np.log(PRIOR))
    torch.testing.assert_close(prior_correct(torch.zeros(shape, dtype=torch.float64), PRIOR), torch.tensor(scores - np.log(PRIOR)))


@pytest.mark.parametrize("input", ["logits", "proba"])
def test_tensors_and_arrays_agree_and_keep_their_type(logits, input) -> None:
    scores = softmax(logits)
    expected = prior_correct(scores, PRIOR, [0.2, 0.2, 0.6], input=input)
    for name, rtol in (("float64", 1e-12), ("float32", 1e-6), ("float16", 1e-3)):
        array = prior_correct(scores.astype(name), PRIOR, [0.2, 0.2, 0.6], input=input)
        tensor = prior_correct(torch.tensor(scores).to(getattr(torch, name)), PRIOR, torch.tensor([1, 1, 3]), input=input)
        assert array.dtype == name and tensor.dtype == getattr(torch, name)
        np.testing.assert_allclose(array, expected, rtol=rtol, atol=rtol)
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=rtol, atol=rtol)
    assert prior_correct(np.array([[1, 0]]), [0.5, 0.5]).dtype == np.float64
    assert prior_correct(torch.tensor([[1, 0]]), [0.5, 0.5]).dtype == torch.float32


def test_half_precision_survives_a_tiny_prior() -> None:
    # 1e-9 is 0 in float16: the logarithm has to be taken before.
    corrected = prior_correct(torch.zeros(1, 2, dtype=torch.float16), [1 - 1e-9, 1e-9])
    assert corrected[0, 1].item() == pytest.approx(-np.log(1e-9), rel=1e-3)


def test_an_impossible_class_stays_impossible() -> None:
    assert prior_correct(np.array([[1.0, 0.0, 0.0]]), PRIOR, input="proba").tolist() == [[pytest.approx(1 / 0.7), 0.0, 0.0]]


def test_gradients_pass_through() -> None:
    z = torch.zeros(2, 3, requires_grad=True)
    prior_correct(z, PRIOR).sum().backward()
    assert torch.equal(z.grad, torch.ones(2, 3))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_folding_equals_correcting(bias, dtype) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(4, 3, bias=bias, dtype=dtype).eval()
    linear.weight.requires_grad_(False)
    before = copy.deepcopy(linear.state_dict())
    folded = fold_into_bias(linear, PRIOR, [0.2, 0.2, 0.6])
    x = torch.randn(8, 4, dtype=dtype)
    torch.testing.assert_close(folded(x), prior_correct(linear(x), PRIOR, [0.2, 0.2, 0.6]))
    assert folded.weight.dtype == folded.bias.dtype == dtype and not folded.training and not folded.weight.requires_grad
    assert folded.bias.requires_grad is bias
    assert all(torch.equal(before[name], value) for name, value in linear.state_dict().items())
    with torch.no_grad():
        folded.weight.zero_()
    assert torch.equal(linear.weight, before["weight"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prior_correct(np.zeros((2, 3)), [0.5, 0.5]), r"prior: got shape \(2,\); expected 3 shares, one per class"),
        (lambda: prior_correct(np.zeros((2, 2)), [1.0, 0.0]), "prior: got 0.0 for class 1; expected positive, finite shares"),
        (lambda: prior_correct(np.zeros((2, 2)), [1.5, -0.5]), "prior: got -0.5 for class 1"),
        (lambda: prior_correct(np.zeros((2, 2)), [np.nan, 0.5]), "prior: got nan for class 0"),
        (lambda: prior_correct(np.zeros((2, 2)), [0.5, 0.5], [0.5]), "target_prior: got shape"),
        (lambda: prior_correct(np.zeros((2, 1)), [1.0]), "K >= 2 classes. Two classes need both columns"),
        (lambda: prior_correct(np.float64(1.0), [1.0]), "K >= 2"),
        (lambda: prior_correct(np.full((2, 2), 3.0), [0.5, 0.5], input="proba"), 'Logits need input="logits"'),
        (lambda: prior_correct(torch.full((2, 2), -1.0), [0.5, 0.5], input="proba"), "values outside"),
        (lambda: prior_correct(np.zeros((2, 2)), [0.5, 0.5], input="prob"), "Did you mean 'proba'"),
        (lambda: fold_into_bias(nn.Identity(), [0.5, 0.5]), "linear: got 'Identity'; expected the torch.nn.Linear"),
        (lambda: fold_into_bias(nn.Linear(2, 1), [1.0]), "at least two"),
        (lambda: fold_into_bias(nn.Linear(2, 3), [0.5, 0.5]), "expected 3 shares"),
    ],
)
def test_bad_input_is_refused(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()
