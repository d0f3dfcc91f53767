from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from counterpoise._errors import CounterpoiseError, InputError
from counterpoise.schedules import TwoPhase


class Net(nn.Module):
    """Convolution, two normalizations, and a head that has one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4, 6), nn.BatchNorm1d(6))
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.dropout(self.body(x)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    x = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    F.cross_entropy(net(x), torch.arange(8) % 3).backward()
    optimizer.step()


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(module.state_dict())


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def flags(net: nn.Module) -> tuple[list[bool], list[bool]]:
    return [p.requires_grad for p in net.parameters()], [m.training for m in net.modules()]


def test_only_the_head_learns(net) -> None:
    step(net, torch.optim.SGD(net.parameters(), lr=0.1))
    body, head = state(net.body), state(net.fc)
    with TwoPhase(net) as phase2:
        optimizer = torch.optim.SGD(phase2.param_groups(lr=0.1), momentum=0.9, weight_decay=0.1)
        for _ in range(3):
            net.train()  # as loops and frameworks do at the start of an epoch
            step(net, optimizer)
        assert equal(body, state(net.body)), "weights and running statistics"
        assert all(p.grad is None for p in net.body.parameters())
    moved = [name for name, value in net.fc.state_dict().items() if not torch.equal(value, head[name])]
    assert {"1.weight", "1.bias", "0.running_mean"} <= set(moved), "the head's own normalization is in training mode"


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1), lambda p: torch.optim.AdamW(p, lr=0.1)]
)
def test_not_even_the_optimizer_of_phase_1_moves_what_is_frozen(net, make) -> None:
    """It has momentum, weight decay, and the gradients of the last step of phase 1."""
    optimizer = make(net.parameters())
    step(net, optimizer)
    body, head = state(net.body), net.fc[1].weight.detach().clone()
    with TwoPhase(net):
        optimizer.step()
        for _ in range(2):
            step(net, optimizer)
        assert equal(body, state(net.body))
    assert not torch.equal(head, net.fc[1].weight)


def test_the_learning_rate_is_scaled(net) -> None:
    (group,) = TwoPhase(net).param_groups(lr=0.5)
    assert group["lr"] == 0.1
    assert [id(p) for p in group["params"]] == [id(p) for p in net.fc.parameters()]
    assert TwoPhase(net, phase2_lr_scale=1).param_groups(lr=0.5)[0]["lr"] == 0.5


@pytest.mark.parametrize("fails", [False, True])
def test_mixed_flags_are_restored(net, fails) -> None:
    net.body[0].weight.requires_grad_(False)
    net.fc[0].bias.requires_grad_(False)
    net.body[1].eval()
    net.dropout.eval()
    before = flags(net)
    gradients = [torch.randn_like(p) for p in net.body.parameters()]
    for parameter, gradient in zip(net.body.parameters(), gradients, strict=True):
        parameter.grad = gradient if parameter.requires_grad else None
    held = [p.grad for p in net.body.parameters()]
    try:
        with TwoPhase(net) as phase2:
            assert [p.requires_grad for p in net.fc.parameters()] == [True, False, True, True], "the head's own flags are left alone"
            assert len(phase2.param_groups(1.0)[0]["params"]) == 3
            assert not any(p.requires_grad for p in net.body.parameters())
            net.train()
            assert not net.body[1].training and not net.body[5].training
            assert net.dropout.training and net.fc[0].training and net.training
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert flags(net) == before
    assert all(p.grad is g for p, g in zip(net.body.parameters(), held, strict=True))
    assert net.train().body[1].training, "and can be changed again"
    assert not net.eval().body[1].training


def test_a_block_can_be_entered_again_and_inside_another(net) -> None:
    phase2 = TwoPhase(net)
    before = flags(net)
    for _ in range(2):
        with phase2:
            with pytest.raises(CounterpoiseError, match="open already"):
                phase2.__enter__()
            inside = flags(net)
            with TwoPhase(net, head="fc.1"):
                assert not net.fc[0].weight.requires_grad
                assert not net.train().fc[0].training
            assert flags(net) == inside
            assert not net.train().body[1].training
        assert flags(net) == before


def test_copies_made_inside_have_a_life_of_their_own(net) -> None:
    with TwoPhase(net):
        twin = copy.deepcopy(net).train()
        assert not twin.body[1].training
    assert net.train().body[1].training
    assert "train" not in vars(net.body[1])


def test_statistics_are_those_of_phase_1(net) -> None:
    """A frozen network's features depend on the weights alone: the same in training and in evaluation, whatever the batch."""
    net.dropout.p = 0.0
    x = torch.randn(8, 1, 4, 4)
    with torch.no_grad():
        expected = net.eval().body(x)
        net.train()
        with TwoPhase(net):
            torch.testing.assert_close(net.train().body(x)[:3], net.body(x[:3]))
            torch.testing.assert_close(net.body(x), expected)
        assert not torch.allclose(net.body(x), expected)


def test_normalizations_without_statistics_are_left_alone() -> None:
    net = nn.Sequential()
    net.norm, net.flat, net.fc = nn.BatchNorm1d(3, track_running_stats=False), nn.Flatten(), nn.Linear(3, 2)
    with TwoPhase(net):
        assert net.norm.training


def test_a_shared_weight_is_the_heads() -> None:
    net = nn.Sequential()
    net.embed, net.middle, net.fc = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False)
    net.fc.weight = net.embed.weight
    with TwoPhase(net):
        assert net.embed.weight.requires_grad and not net.middle.weight.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"module": "net"}, "module: got 'str'; expected a torch.nn.Module"),
        ({"head": "classifier"}, "head: got 'classifier'; expected the name of a sub-module of Net. It has body, dropout, fc."),
        ({"head": "fc.1.weight"}, "head: got 'fc.1.weight'; expected the name of a sub-module"),
        ({"head": 3}, "head: got 3; expected the name of a sub-module"),
        ({"head": ""}, "head: got ''; expected a part of the network. No parameter is outside it"),
        ({"head": "dropout"}, "head: got 'dropout'; expected a sub-module with parameters that require gradients"),
        ({"phase2_lr_scale": 0}, "phase2_lr_scale: got 0; expected a number > 0"),
        ({"phase2_lr_scale": float("nan")}, "phase2_lr_scale: got nan"),
    ],
)
def test_bad_input_is_refused(net, arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        TwoPhase(**{"module": net, **arguments})


def test_a_head_that_cannot_learn_is_refused(net) -> None:
    net.fc.requires_grad_(False)
    with pytest.raises(InputError, match="head: got 'fc'; expected a sub-module with parameters that require gradients"):
        TwoPhase(net)
