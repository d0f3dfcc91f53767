from __future__ import annotations

import pytest
import torch
from torch import nn

from counterpoise import CounterpoiseError
from counterpoise.optim import SGDP, AdamP, ProjectedUpdate
from tests.optim.test_adamp import close, network, random, trained

SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW


@pytest.mark.parametrize("foreach", [None, False])
@pytest.mark.parametrize("delta", [0.1, 0.5])
def test_around_adam_it_is_adamp(delta, foreach) -> None:
    ours, theirs = network(), network()
    found = trained(ours, ProjectedUpdate(ADAM(ours.parameters(), lr=0.02, foreach=foreach), delta=delta))
    close(found, trained(theirs, AdamP(theirs.parameters(), lr=0.02, delta=delta)))


def test_around_sgd_with_nesterovs_it_is_sgdp() -> None:
    ours, theirs = network(), network()
    found = trained(ours, ProjectedUpdate(SGD(ours.parameters(), lr=0.1, momentum=0.9, nesterov=True)))
    close(found, trained(theirs, SGDP(theirs.parameters(), 0.1, momentum=0.9, nesterov=True)))


def test_weight_decay_of_the_base_is_projected_too() -> None:
    ours, theirs = network(), network()
    found = trained(ours, ProjectedUpdate(ADAMW(ours.parameters(), lr=0.02, weight_decay=0.3)))
    expected = trained(theirs, AdamP(theirs.parameters(), lr=0.02, weight_decay=0.3, wd_ratio=0.0))
    close(found, expected, 1e-8)  # the epsilon beside the length
    shared = network()
    shared = trained(shared, AdamP(shared.parameters(), lr=0.02, weight_decay=0.3))
    assert any(not torch.allclose(a, b, atol=1e-4) for a, b in zip(found, shared, strict=True))


@pytest.mark.parametrize("base", [torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam, torch.optim.Adafactor, torch.optim.Rprop])
def test_whatever_the_base_rows_keep_their_length_to_second_order(base) -> None:
    p, g = random(4, 9), random(4, 9, seed=1)
    w = nn.Parameter(p.clone())
    optimizer = ProjectedUpdate(base([{"params": [w], "invariance": "channel"}], lr=0.01))
    w.grad = g
    optimizer.step()
    moved = w.detach() - p
    assert float(moved.norm()) > 1e-3
    assert float((moved * p).sum(dim=1).abs().max()) < 1e-7 * float(moved.norm())


@pytest.mark.parametrize("options", [{"delta": 0.0}, {"invariance": "none"}])
def test_what_is_not_projected_is_the_bases_step_bit_for_bit(options) -> None:
    ours, theirs = network(), network()
    found = trained(ours, ProjectedUpdate(ADAMW([{"params": list(ours.parameters()), **options}], lr=0.02)))
    for a, b in zip(found, trained(theirs, ADAMW(theirs.parameters(), lr=0.02)), strict=True):
        assert torch.equal(a, b)


def test_groups_have_their_own_options() -> None:
    net = network()
    first, *others = net.parameters()
    optimizer = ProjectedUpdate(ADAMW([{"params": [first], "delta": 0.7}, {"params": others, "invariance": "none"}]), delta=0.2)
    optimizer.add_param_group({"params": [nn.Parameter(random(2, 2))], "invariance": "layer"})
    assert [(group["delta"], group["invariance"]) for group in optimizer.param_groups] == [(0.7, "auto"), (0.2, "none"), (0.2, "layer")]
    assert optimizer.param_groups is optimizer.base_optimizer.param_groups
    for options, message in (({"delta": -1.0}, "delta: got -1.0"), ({"invariance": "row"}, "invariance: got 'row'")):
        with pytest.raises(CounterpoiseError, match=message):
            ProjectedUpdate(ADAMW([{"params": [nn.Parameter(random(2, 2))], **options}]))


def test_states_go_back_and_forth_between_it_and_its_base() -> None:
    nets = [network(), network(), network()]
    alone, wrapped = ADAMW(nets[0].parameters(), lr=0.02), ProjectedUpdate(ADAMW(nets[1].parameters(), lr=0.5), delta=0.3)
    trained(nets[0], alone, 3)
    nets[1].load_state_dict(nets[0].state_dict())
    wrapped.load_state_dict(alone.state_dict())
    assert wrapped.state is wrapped.base_optimizer.state and wrapped.param_groups is wrapped.base_optimizer.param_groups
    assert [(group["lr"], group["delta"], group["invariance"]) for group in wrapped.param_groups] == [(0.02, 0.3, "auto")]
    steps = [state["step"].item() for state in wrapped.state.values()]
    assert steps == [3.0] * len(list(nets[1].parameters()))
    trained(nets[1], wrapped, 2, first=3)
    back = ADAMW(nets[2].parameters())
    back.load_state_dict(wrapped.state_dict())
    close([state["exp_avg"] for state in back.state.values()], [state["exp_avg"] for state in wrapped.state.values()], 0.0)


def test_a_fused_base() -> None:
    ours, theirs = network(torch.float32), network(torch.float32)
    found = trained(ours, ProjectedUpdate(ADAMW(ours.parameters(), lr=0.02, weight_decay=0.0, fused=True)))
    close(found, trained(theirs, AdamP(theirs.parameters(), lr=0.02)), 1e-4)


def test_a_step_that_overflowed_is_left_out() -> None:
    w = nn.Parameter(random(3, 4).float())
    before = w.detach().clone()
    optimizer = ProjectedUpdate(ADAMW([w], lr=0.1, fused=True))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for value, moves in ((float("inf"), False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale((value * w).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(w, before) != moves


def test_bad_input() -> None:
    w = nn.Parameter(random(2, 2))
    with pytest.raises(CounterpoiseError, match=r"base_optimizer: got 'Linear'; expected a torch\.optim\.Optimizer. ProjectedUpdate\("):
        ProjectedUpdate(nn.Linear(1, 1))
    with pytest.raises(CounterpoiseError, match="got 'LBFGS'; expected an optimizer that steps without a closure"):
        ProjectedUpdate(torch.optim.LBFGS([w]))
    with pytest.raises(CounterpoiseError, match=r"delta: got -0\.1"):
        ProjectedUpdate(SGD([w], lr=0.1), delta=-0.1)
    table = nn.Embedding(4, 2, sparse=True)
    before = table.weight.detach().clone()
    optimizer = ProjectedUpdate(SGD(table.parameters(), lr=0.1))
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(CounterpoiseError, match="as ProjectedUpdate compares them with their weights"):
        optimizer.step()
    assert torch.equal(table.weight, before)
    assert "delta=0.1, base_optimizer=SGD" in repr(optimizer)
    for bad, message in (({"delta": -1}, "delta: got -1"), ({"invariance": "row"}, "invariance: got 'row'")):
        with pytest.raises(CounterpoiseError, match=message):
            optimizer.add_param_group({"params": [w], **bad})
        assert len(optimizer.param_groups) == len(optimizer.base_optimizer.param_groups) == 1
    with pytest.raises(CounterpoiseError, match=r"a parameter of torch\.complex64"):
        ProjectedUpdate(SGD([nn.Parameter(torch.ones(2, 2) * 1j)], lr=0.1))
    optimizer.add_param_group({"params": [w]})
