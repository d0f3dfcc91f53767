from __future__ import annotations

import pytest
import torch
from torch import Tensor

from counterpoise._errors import InputError
from counterpoise.losses import BalancedMSELoss


def problem(n: int = 9, k: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    targets = torch.randn(n, k, generator=g, dtype=torch.float64)
    return (targets + 0.5 * torch.randn(n, k, generator=g, dtype=torch.float64)).requires_grad_(), targets


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0])
def test_it_is_the_squared_error_minus_what_the_batch_expects(k, sigma) -> None:
    p, y = problem(k=k)
    squares = (p[:, None] - y[None]).square().sum(dim=2)
    # The log of the mean likelihood of the batch's targets, up to log n.
    expected = squares.diagonal() + 2 * sigma**2 * torch.exp(-squares / (2 * sigma**2)).sum(dim=1).log()
    found = BalancedMSELoss(sigma, reduction="none").double()(p, y)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)  # sigma is kept in float32
    if k == 1:
        torch.testing.assert_close(BalancedMSELoss(sigma, reduction="none")(p[:, 0], y[:, 0]), found)


def test_little_noise_and_targets_far_apart_leave_nothing_to_charge() -> None:
    y = torch.tensor([0.0, 10.0, 20.0, 50.0])
    p = y + torch.tensor([0.1, -0.4, 0.2, 1.0])
    assert (BalancedMSELoss(0.1, reduction="none")(p, y) < 1e-6).all()
    assert (BalancedMSELoss(5.0, reduction="none")(p, y)[:3] > 1).all()


def test_it_shifts_ambiguous_predictions_to_the_rare_target() -> None:
    """Inputs that say little: 80 rows have the target 0 and 20 the target 2, with noise in x that hides which."""
    g = torch.Generator().manual_seed(0)
    y = torch.tensor([0.0] * 80 + [2.0] * 20)
    x = y + torch.randn(100, generator=g)
    weights = {}
    for name, loss in (("squared", torch.nn.MSELoss()), ("balanced", BalancedMSELoss(1.0))):
        line = torch.nn.Linear(1, 1)
        torch.nn.init.zeros_(line.weight), torch.nn.init.zeros_(line.bias)
        optimizer = torch.optim.LBFGS(line.parameters(), max_iter=100)

        def closure(line=line, loss=loss, optimizer=optimizer) -> Tensor:
            optimizer.zero_grad()
            value = loss(line(x[:, None])[:, 0], y)
            value.backward()
            return value

        optimizer.step(closure)
        weights[name] = line(torch.tensor([[2.0]])).item()
    assert weights["balanced"] > weights["squared"] + 0.2


def test_the_noise_can_be_learned() -> None:
    y = torch.linspace(-10, 10, 200, dtype=torch.float64)
    p = y + 0.7 * torch.randn(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = BalancedMSELoss(3.0, learn_sigma=True).double()
    assert [name for name, _ in loss.named_parameters()] == ["log_sigma"] and not list(BalancedMSELoss().parameters())
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss(p, y).backward()
        optimizer.step()
    assert loss.noise_sigma == pytest.approx(0.7, rel=0.1)
    assert "noise_sigma=0.7" in repr(loss) or "noise_sigma=0.6" in repr(loss)


def test_targets_get_no_gradient_and_integers_are_numbers() -> None:
    p, y = problem()
    y.requires_grad_()
    BalancedMSELoss()(p, y).backward()
    assert y.grad is None and p.grad is not None
    whole = torch.arange(9)[:, None]
    assert BalancedMSELoss()(p, whole).item() == BalancedMSELoss()(p, whole.double()).item()


def test_what_makes_no_sense_is_refused() -> None:
    p, y = problem()
    for options in ({"noise_sigma": 0.0}, {"noise_sigma": -1.0}, {"reduction": "max"}):
        with pytest.raises(InputError, match=next(iter(options))):
            BalancedMSELoss(**options)
    nan = y.clone()
    nan[1] = float("nan")
    for arguments, message in (
        ((p, y[:, 0]), r"shapes \(9, 1\) and \(9,\)"),
        ((p[0, 0], y[0, 0]), "predictions and targets"),
        ((p.long(), y), "predictions: got a tensor of torch.int64"),
        ((p, nan), "targets: got nan or inf"),
    ):
        with pytest.raises(InputError, match=message):
            BalancedMSELoss()(*arguments)
