from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import nn

from counterpoise._errors import InputError
from counterpoise.nn import GatedMLP


def model(seed: int = 0, **options: object) -> GatedMLP:
    torch.manual_seed(seed)
    return GatedMLP(2, 3, hidden_features=7, **options).double()


def points(n: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nested(net: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """u, u_x, u_xx by differentiating twice, one output and one coordinate at a time."""
    x = x.clone().requires_grad_()
    u = net(x)
    first, second = [], []
    for k in range(u.shape[1]):
        (slope,) = torch.autograd.grad(u[:, k].sum(), x, create_graph=True)
        bends = [torch.autograd.grad(slope[:, j].sum(), x, create_graph=True)[0][:, j] for j in range(x.shape[1])]
        first.append(slope.T)
        second.append(torch.stack(bends))
    return u, torch.stack(first, dim=-1), torch.stack(second, dim=-1)


# ---- values ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_output_is_that_of_the_equations(layers) -> None:
    net, x = model(num_layers=layers, normalize=([0.5, -1.0], [2.0, 0.25])), points()
    part = net.state_dict()

    def phi(h: torch.Tensor, name: str) -> torch.Tensor:
        return torch.tanh(h @ part[f"{name}.weight"].T + part[f"{name}.bias"])

    h = (x - torch.tensor([0.5, -1.0])) / torch.tensor([2.0, 0.25])
    U, V = phi(h, "encoder_u"), phi(h, "encoder_v")
    for k in range(layers):
        Z = phi(h, f"hidden.{k}")
        h = Z * U + (1 - Z) * V
    torch.testing.assert_close(net(x), h @ part["output.weight"].T + part["output.bias"])


def test_the_paper_exchanges_the_encoders() -> None:
    """(1 - Z) U + Z V is the same network with the two encoders exchanged."""
    net, x = model(), points()
    other = copy.deepcopy(net)
    other.encoder_u, other.encoder_v = net.encoder_v, net.encoder_u
    part = other.state_dict()
    U, V = (torch.tanh(x @ part[f"{name}.weight"].T + part[f"{name}.bias"]) for name in ("encoder_u", "encoder_v"))
    h = x
    for layer in other.hidden:
        Z = torch.tanh(layer(h))
        h = (1 - Z) * U + Z * V
    torch.testing.assert_close(other.output(h), net(x))


@pytest.mark.parametrize("activation", [None, nn.Tanh(), nn.SiLU(), nn.Sigmoid(), nn.Softplus()], ids=str)
@pytest.mark.parametrize("normalize", [None, (0.3, [0.5, 2.0])], ids=["raw", "normalized"])
def test_derivatives_are_those_of_differentiating_twice(activation, normalize) -> None:
    net, x = model(activation=activation, normalize=normalize), points()
    found, expected = net.derivatives(x), nested(net, x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    # And so are the gradients of a loss made of them.
    losses = [(u[:, 0] + first[1, :, 2] * second.sum(dim=0)[:, 1]).square().mean() for u, first, second in (found, expected)]
    gradients = [torch.autograd.grad(loss, list(net.parameters())) for loss in losses]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_residual_that_is_zero() -> None:
    """A network that is exactly linear has no second derivatives, and the slopes of its weights."""
    net = model(num_layers=1, activation=nn.Identity())
    with torch.no_grad():
        net.hidden[0].weight.zero_()
        net.hidden[0].bias.fill_(1.0)  # Z = 1: the output is that of encoder u
    _, slope, bend = net.derivatives(points())
    torch.testing.assert_close(slope[:, 0], (net.output.weight @ net.encoder_u.weight).T)
    assert bend.abs().max() < 1e-14


def test_start() -> None:
    torch.manual_seed(0)
    net = GatedMLP(3, 2, hidden_features=400)
    for layer, spread in ((net.encoder_u, 403), (net.encoder_v, 403), (net.hidden[0], 403), (net.hidden[1], 800), (net.output, 402)):
        assert float(layer.weight.detach().std()) == pytest.approx(math.sqrt(2 / spread), rel=0.1)
    assert float(net.encoder_u.bias.detach().std()) == pytest.approx(math.sqrt(2 / 401), rel=0.15)
    assert not any(layer.bias.any() for layer in (*net.hidden, net.output))
    assert len(net.hidden) == 3 and "normalize" not in repr(net)


def test_leading_dimensions() -> None:
    net, x = model(), points(12)
    torch.testing.assert_close(net(x.view(3, 4, 2)), net(x).view(3, 4, 3))
    assert net(x[0]).shape == (3,) and net(x[:0]).shape == (0, 3) and net.derivatives(x[:1])[2].shape == (2, 1, 3)


# ---- what every module must do --------------------------------------------------------------------------------------------------------


def test_state_goes_through_a_file() -> None:
    net, x = model(normalize=(0.0, 0.5)), points()
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other = model(1, normalize=(1.0, 1.0))
    assert not torch.allclose(other(x), net(x))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), net(x))  # normalization included
    assert {"mean", "std"} <= set(net.state_dict()) and not {"mean", "std"} & set(model().state_dict())


def test_mode_dtype_and_device() -> None:
    net, x = model(normalize=(0.0, 0.5)), points()
    assert torch.equal(net.eval()(x), net.train()(x))
    single = net.float()
    assert single(x.float()).dtype == torch.float32 and single.mean.dtype == torch.float32
    assert GatedMLP(2, 1, normalize=(0.0, 1.0)).to("meta")(x.float().to("meta")).shape == (6, 1)
    copied = copy.deepcopy(net)
    with torch.no_grad():
        copied.output.bias += 1
    torch.testing.assert_close(copied(x.float()) - 1, net(x.float()))


def test_gradients_are_those_of_the_values() -> None:
    net = model(num_layers=2, normalize=(0.1, 0.7))
    assert torch.autograd.gradcheck(net, (points().requires_grad_(),))
    assert torch.autograd.gradcheck(net.derivatives, (points(3).requires_grad_(),))


def test_the_same_seed_is_the_same_network() -> None:
    assert all(torch.equal(a, b) for a, b in zip(model().parameters(), model().parameters(), strict=True))
    assert not torch.equal(model().output.weight, model(1).output.weight)


def test_it_compiles_to_the_same_numbers() -> None:
    """Without generating code, which takes long and is not ours: one graph each, and its backward."""
    net, x = model(num_layers=2, normalize=(0.0, 0.5)).float(), points().float()
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="aot_eager")(x), net(x))
    gradients = []
    for call in (net.derivatives, torch.compile(net.derivatives, fullgraph=True, backend="aot_eager")):
        u, _, bend = call(x)
        gradients.append(torch.autograd.grad((bend.sum(dim=0) + u).square().mean(), list(net.parameters())))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# ---- bad input ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_features": 0}, "in_features: got 0"),
        ({"out_features": 1.5}, "out_features: got 1.5; expected an integer"),
        ({"hidden_features": -3}, "hidden_features: got -3"),
        ({"num_layers": 0}, "num_layers: got 0"),
        ({"activation": torch.tanh}, r"expected a torch.nn.Module. torch.tanh is nn.Tanh\(\)"),
        ({"normalize": 0.5}, r"normalize: got 0.5; expected \(mean, std\)"),
        ({"normalize": (0.0, 0.0)}, "normalize, std: got 0.0; expected positive"),
        ({"normalize": (0.0, [1.0, -1.0])}, "normalize, std"),
        ({"normalize": ([0.0, 0.0, 0.0], 1.0)}, "normalize, mean: .* expected a finite number, or 2 of them"),
        ({"normalize": (float("nan"), 1.0)}, "normalize, mean"),
    ],
)
def test_bad_options(options, message) -> None:
    with pytest.raises(InputError, match=message):
        GatedMLP(**({"in_features": 2, "out_features": 1} | options))


def test_bad_inputs_of_derivatives() -> None:
    for shape in ((2,), (5, 3), (2, 5, 2)):
        with pytest.raises(InputError, match=r"expected shape \(n, 2\)"):
            model().derivatives(torch.zeros(shape, dtype=torch.float64))
