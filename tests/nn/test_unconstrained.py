"""The unconstrained-features model: its loss against the written-out sum, its minimum against the closed form, and what it refuses."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from counterpoise._errors import InputError
from counterpoise.diagnostics import neural_collapse_lengths
from counterpoise.nn import UnconstrainedFeatures


def model(counts=(5, 3, 2), dim=6, decays=(3e-3, 2e-3), feature_decay=1e-3, seed=0, **options):
    return UnconstrainedFeatures(counts, dim, decays, feature_decay, generator=torch.Generator().manual_seed(seed), **options)


def minimized(net, steps=3000):
    net = net.double()
    options = {"max_iter": steps, "max_eval": 2 * steps, "tolerance_grad": 1e-11, "tolerance_change": 0.0, "history_size": 50}
    optimizer = torch.optim.LBFGS(net.parameters(), line_search_fn="strong_wolfe", **options)

    def closure():
        optimizer.zero_grad()
        loss = net.loss()
        loss.backward()
        return loss

    optimizer.step(closure)
    return net


@pytest.mark.parametrize("decays", [(4e-3,), (3e-3, 2e-3), (1e-3, 2e-3, 5e-3)])
def test_loss_is_the_sum_over_examples(decays) -> None:
    net = model(decays=decays).double()
    parts = net.state_dict()
    H, labels = parts["H"], parts["labels"]
    expected = 1e-3 / 2 * sum(float(value) ** 2 for value in H.flatten())
    for number, decay in enumerate(decays):
        expected += decay / 2 * sum(float(value) ** 2 for value in parts[f"W.{number}"].flatten())
    for column, label in enumerate(labels):
        h = H[:, column]
        for number in range(len(decays)):
            h = parts[f"W.{number}"] @ h
        h[label] -= 1
        expected += float(h @ h) / (2 * len(labels))
    assert float(net.loss().detach()) == pytest.approx(expected, rel=1e-12)
    assert net().shape == (10, 3)
    torch.testing.assert_close(net(), (net.features() @ net.classifier().T), rtol=1e-12, atol=1e-12)


def test_shapes_and_names() -> None:
    net = model(decays=(1e-3,) * 3)
    assert {name: tuple(value.shape) for name, value in net.named_parameters()} == {
        "H": (6, 10), "W.0": (6, 6), "W.1": (6, 6), "W.2": (3, 6),
    }  # fmt: skip
    assert net.labels.tolist() == [0] * 5 + [1] * 3 + [2] * 2
    assert net.classifier().shape == (3, 6) and net.features().shape == (10, 6)
    assert "class_counts=[5, 3, 2], dim=6" in repr(net)


def test_initial_values() -> None:
    net, same, other = model(), model(), model(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), same.parameters(), strict=True))
    assert not torch.equal(net.H, other.H)
    state = torch.get_rng_state()
    model()
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(model(init_scale=3.0).W[0], 3 * net.W[0])
    wide = UnconstrainedFeatures([400, 400], 200, [1e-3], 1e-3, generator=torch.Generator().manual_seed(0))
    assert wide.features().norm(dim=1).mean().item() == pytest.approx(1.0, abs=0.02)


def test_state_copies_and_precision() -> None:
    net, other = model(), model(seed=1)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.loss(), net.loss())
    assert torch.equal(copy.deepcopy(net).loss(), net.loss())
    assert net.loss().dtype == torch.float32 and net.double().loss().dtype == torch.float64


def test_gradients() -> None:
    net = model().double()
    parameters = dict(net.named_parameters())

    def loss(*values):
        return torch.func.functional_call(net, dict(zip(parameters, values, strict=True)), ()).square().sum() + net.loss()

    assert torch.autograd.gradcheck(loss, tuple(parameters.values()))


@pytest.mark.parametrize(("decays", "tolerance"), [((5e-3,), 1e-7), ((4e-3, 2e-3), 1e-6)])
def test_minimum_is_the_closed_form(decays, tolerance) -> None:
    net = minimized(model((12, 6, 3), 6, decays, 2e-3))
    expected = neural_collapse_lengths([12, 6, 3], decays, 2e-3)
    assert float(net.loss().detach()) == pytest.approx(expected.loss, abs=1e-12)
    H = net.features().detach().numpy()
    np.testing.assert_allclose(np.linalg.norm(H, axis=1), expected.feature_norm[net.labels], rtol=tolerance)
    for layer, singular in zip(net.W, expected.singular_values, strict=True):
        found = torch.linalg.svdvals(layer.detach())[:3].numpy()
        np.testing.assert_allclose(found, -np.sort(-singular), rtol=tolerance)
    means = H[[0, 12, 18]]
    gramian = means @ means.T
    np.testing.assert_allclose(gramian, np.diag(expected.feature_norm**2), atol=tolerance)


def test_the_decay_that_belongs_to_mse_loss() -> None:
    """MSELoss with an optimizer's decay is 2 / K times the loss with K / 2 times the decay."""
    K, decay, feature_decay = 3, 4e-3, 2e-3
    net = model(decays=(K / 2 * decay,) * 2, feature_decay=K / 2 * feature_decay).double()
    penalty = decay / 2 * sum(weight.square().sum() for weight in net.W) + feature_decay / 2 * net.H.square().sum()
    total = torch.nn.functional.mse_loss(net(), net.targets.T.double()) + penalty
    torch.testing.assert_close(total, 2 / K * net.loss(), rtol=1e-12, atol=0)


def test_with_two_layers_zero_is_a_place_to_get_stuck() -> None:
    alive = neural_collapse_lengths([12, 6, 3], [4e-3, 2e-3], 2e-3)
    assert alive.alive.all()
    stuck = minimized(model((12, 6, 3), 6, (4e-3, 2e-3), 2e-3, init_scale=0.0))
    assert float(stuck.loss().detach()) == pytest.approx(0.5) and float(stuck.loss().detach()) > alive.loss + 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([5], 6, [1e-3], 1e-3), "class_counts: got 1 class; expected counts of at least two"),
        (([5, 0], 6, [1e-3], 1e-3), "0.0 for class 1; expected positive whole numbers"),
        (([5, -1], 6, [1e-3], 1e-3), "-1.0 for class 1"),
        (([0.7, 0.3], 6, [1e-3], 1e-3), "Shares will not do"),
        (([[5, 3]], 6, [1e-3], 1e-3), r"class_counts: got shape \(1, 2\)"),
        (("ab", 6, [1e-3], 1e-3), "class_counts: got 'ab'"),
        (([5, 3], 1, [1e-3], 1e-3), "dim: got 1; expected at least 2, the number of classes"),
        (([5, 3], 6, [], 1e-3), "weight_decays: got no layers"),
        (([5, 3], 6, 1e-3, 1e-3), r"weight_decays: got 0.001; .* Three layers: \[0.001\] \* 3"),
        (([5, 3], 6, [1e-3, 0.0], 1e-3), "weight_decays: got 0.0 for layer 2; expected positive, finite decays"),
        (([5, 3], 6, [-1e-3], 1e-3), "-0.001 for layer 1"),
        (([5, 3], 6, [1e-3], 0.0), "feature_decay: got 0.0; expected a positive, finite decay. Without decay"),
        (([5, 3], 6, [1e-3], float("nan")), "feature_decay: got nan"),
        (([5, 3], 6, [1e-3], "1"), "feature_decay: got '1'"),
        (([5, 3], 6, [1e-3], 1e-3, -1.0), "init_scale: got -1.0"),
    ],
)
def test_what_is_refused(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        UnconstrainedFeatures(*arguments)
