"""``scale_invariance``: weights that are invariant by construction, what the next step does to them, and models that are left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterpoise._errors import InputError
from counterpoise.diagnostics import InvarianceReport, scale_invariance
from counterpoise.optim import AdamP, MicroBatchMedian, ProjectedUpdate
from tests.batteries.diagnoses import DIAGNOSIS_CHECKS, DiagnosisCase, changes, snapshot


def of_a_batch(model: nn.Module, data: Any, loss: Any, **options: Any) -> InvarianceReport:
    return scale_invariance(model, lambda: loss(model(data[0]), data[1]), **options)


CASES = [
    DiagnosisCase("gradient descent", of_a_batch, one_batch=True),
    DiagnosisCase("adamw", lambda model, *rest: of_a_batch(model, *rest, optimizer=torch.optim.AdamW(model.parameters())), one_batch=True),
]


@pytest.mark.parametrize("check", DIAGNOSIS_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_battery(case: DiagnosisCase, check: Callable[[DiagnosisCase], None]) -> None:
    check(case)


@pytest.fixture
def model() -> nn.Sequential:
    """Invariant per channel (0: batch norm), as a whole (3: layer norm), not at all (6)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(6, 12, bias=False), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 9, bias=False), nn.LayerNorm(9), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(9, 3)).double()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(40, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64), torch.arange(40) % 3


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def test_invariant_weights_are_found(model, batch) -> None:
    report = scale_invariance(model, lambda: loss_of(model, batch))
    kinds = dict(zip(report.names, report.kinds, strict=True))
    assert {name: kind for name, kind in kinds.items() if kind} == {"0.weight": "channel", "3.weight": "layer"}
    assert report.names == tuple(name for name, _ in model.named_parameters()) and report.shapes[0] == (12, 6)
    frame = {row["parameter"]: row for row in report.to_frame().iter_rows(named=True)}
    assert frame["0.weight"]["cos_channel"] < 1e-4 and frame["3.weight"]["cos_layer"] < 1e-3 < frame["3.weight"]["cos_channel"]
    assert frame["0.weight"]["limit_channel"] == pytest.approx(0.1 / 6**0.5)
    assert frame["3.weight"]["limit_layer"] == pytest.approx(0.1 / 108**0.5)
    assert np.isnan(frame["6.bias"]["cos_channel"]) and frame["6.bias"]["kind"] is None
    # The epsilon of the normalization is all that the loss sees of the length.
    assert 0 < frame["0.weight"]["change"] < 1e-3 and 0 < frame["3.weight"]["change"] < 1e-3 and np.isnan(frame["6.weight"]["change"])
    assert report.false_alarms == ()


def test_the_cosines_are_those_of_the_definition(model, batch) -> None:
    report = scale_invariance(model, lambda: loss_of(model, batch))
    weights = [p for p in model.parameters() if p.ndim > 1]
    gradients = torch.autograd.grad(loss_of(model, batch), weights)
    weights = [p.detach() for p in weights]
    at = [i for i, shape in enumerate(report.shapes) if len(shape) > 1]
    for i, p, g in zip(at, weights, gradients, strict=True):
        assert report.cos_channel[i] == pytest.approx(float(F.cosine_similarity(p, g, dim=1).abs().max()), rel=1e-9, abs=1e-14)
        assert report.cos_layer[i] == pytest.approx(float(F.cosine_similarity(p.flatten(), g.flatten(), dim=0).abs()), rel=1e-9, abs=1e-14)


def test_a_larger_delta_takes_more_and_its_false_alarms_are_named(model, batch) -> None:
    report = scale_invariance(model, lambda: loss_of(model, batch), delta=100.0)
    assert dict(zip(report.names, report.kinds, strict=True))["6.weight"] == "channel"
    assert set(report.false_alarms) == {"3.weight", "6.weight"}  # 3 is invariant as a whole, not row by row
    assert "Not invariant, though the gradient looks like it: 3.weight, 6.weight" in report.summary()
    assert not any(scale_invariance(model, lambda: loss_of(model, batch), delta=0.0).kinds)


def test_a_gradient_step_makes_invariant_weights_longer_by_pythagoras(model, batch) -> None:
    report = scale_invariance(model, lambda: loss_of(model, batch))
    gradients = torch.autograd.grad(loss_of(model, batch), list(model.parameters()))
    for i, (p, g) in enumerate(zip(model.parameters(), gradients, strict=True)):
        if float(p.detach().norm()):
            assert report.norm[i] == pytest.approx(float(p.detach().norm()))
            expected = float((p - g).detach().square().sum() / p.detach().square().sum()) - 1
            assert report.growth[i] == pytest.approx(expected, abs=1e-12)
            assert report.effective_lr[i] == pytest.approx(report.norm[i] ** -2, rel=1e-6)
        if report.kinds[i]:
            assert report.growth[i] == pytest.approx(float(g.square().sum()) / report.norm[i] ** 2, rel=2e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.3),
        lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=0.03, weight_decay=0.5),
        lambda p: AdamP(p, lr=0.03),
        lambda p: ProjectedUpdate(torch.optim.RMSprop(p, lr=0.03)),
    ],
    ids=["sgd", "momentum", "adamw", "adamp", "projected"],
)
def test_growth_is_what_the_next_step_then_does(model, batch, make) -> None:
    optimizer = make(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    state = {p: {name: x.clone() for name, x in kept.items()} for p, kept in optimizer.state.items()}
    report = scale_invariance(model, lambda: loss_of(model, batch), optimizer=optimizer)
    assert all(torch.equal(optimizer.state[p][name], x) for p, kept in state.items() for name, x in kept.items())
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.zero_grad()
    loss_of(model, batch).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    for i, (old, p, g) in enumerate(zip(before, model.parameters(), gradients, strict=True)):
        step = p.detach() - old
        length = old.square().sum()
        assert report.growth[i] == pytest.approx(float((p.detach().square().sum() - length) / length), abs=1e-10)
        across = [x - old * (old * x).sum() / length for x in (step, g)]
        if float(across[1].norm()) > 1e-6 * float(g.norm()):  # of a vector of ones, say, nothing may be left
            assert report.effective_lr[i] == pytest.approx(float(across[0].norm() / across[1].norm() / length), rel=1e-6)


def test_sgd_has_lr_over_the_squared_length_and_projection_stops_the_growth(model, batch) -> None:
    def closure() -> Tensor:
        return loss_of(model, batch)

    sgd = scale_invariance(model, closure, optimizer=torch.optim.SGD(model.parameters(), lr=0.3))
    assert sgd.optimizer == "SGD" and sgd.effective_lr[0] == pytest.approx(0.3 / sgd.norm[0] ** 2, rel=1e-6)
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.01), AdamP(model.parameters(), lr=0.01)]
    for optimizer in optimizers:
        optimizer.step = optimizer.step  # as a scheduler leaves it
    model.zero_grad()
    first, *others = [scale_invariance(model, closure, optimizer=optimizer) for optimizer in optimizers]
    assert 0 < others[0].growth[0] < first.growth[0] * 1.001
    waiting = scale_invariance(model, closure, optimizer=MicroBatchMedian(torch.optim.SGD(model.parameters(), lr=0.1)))
    assert waiting.growth[0] == 0 and waiting.effective_lr[0] == 0  # it steps at every third call


def test_a_loss_that_is_there_already_keeps_its_graph(model, batch) -> None:
    loss = loss_of(model, batch)
    before = snapshot(model)
    report = scale_invariance(model, loss)
    assert report.kinds[0] == "channel" and np.isnan(report.change).all() and not report.false_alarms
    assert not changes(before, snapshot(model))
    loss.backward()
    assert model[0].weight.grad is not None


def test_graphs_that_hold_the_weights_survive_the_longer_weights(model, batch) -> None:
    model, batch = model[3:], (batch[0].repeat(1, 2), batch[1])  # without running statistics, which a forward pass changes in place
    loss = loss_of(model, batch)
    expected = torch.autograd.grad(loss_of(model, batch), list(model.parameters()))
    assert scale_invariance(model, lambda: loss_of(model, batch)).kinds[0] == "layer"
    torch.testing.assert_close(torch.autograd.grad(loss, list(model.parameters())), expected, rtol=0, atol=0)


def test_a_failure_with_longer_weights_leaves_them_as_they_were(model, batch) -> None:
    calls = []

    def closure() -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise KeyError("later")
        return loss_of(model, batch)

    before = snapshot(model)
    with pytest.raises(KeyError, match="later"):
        scale_invariance(model, closure)
    assert not changes(before, snapshot(model))


def test_dropout_is_the_same_in_every_look() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 30, bias=False), nn.BatchNorm1d(30), nn.Dropout(0.5), nn.Linear(30, 3))
    x, y = torch.randn(40, 6), torch.arange(40) % 3
    report = scale_invariance(net, lambda: F.cross_entropy(net(x), y))
    assert report.kinds[0] == "channel" and report.change[0] < 1e-3


def test_running_statistics_leave_nothing_invariant(model, batch) -> None:
    model[1].running_mean.fill_(0.3)
    report = scale_invariance(model.eval(), lambda: loss_of(model, batch))
    assert [kind for kind in report.kinds if kind] == ["layer"]  # that of the layer norm


def test_what_takes_no_part_is_not_invariant(model, batch) -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.unused = model, nn.Linear(4, 4).double()
            self.frozen = nn.Linear(2, 2).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)

    net = Beside()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # not of the unused layer
    report = scale_invariance(net, lambda: loss_of(net, batch), optimizer=optimizer)
    frame = {row["parameter"]: row for row in report.to_frame().iter_rows(named=True)}
    assert "frozen.weight" not in frame and frame["unused.weight"]["kind"] is None
    assert np.isnan(frame["unused.weight"]["growth"]) and frame["model.0.weight"]["kind"] == "channel"


def test_what_it_says(model, batch) -> None:
    report = scale_invariance(model, lambda: loss_of(model, batch), optimizer=torch.optim.AdamW(model.parameters(), lr=0.01))
    text = report.summary()
    assert text.startswith(
        "2 of 3 weights with rows are taken as scale invariant (delta 0.1): 1 by channel (0.weight), 1 as a whole (3.weight)."
    )
    assert "effective learning rates with AdamW" in text and "in 8\N{NARROW NO-BREAK SPACE}% of all steps" in text
    assert len(report.plot().axes) == 1
    plain = nn.Linear(3, 2)
    nothing = scale_invariance(plain, lambda: F.cross_entropy(plain(torch.randn(20, 3).abs() + 1), torch.zeros(20, dtype=torch.int64)))
    assert nothing.summary() == "None of 1 weights with rows is scale invariant (delta 0.1)."
    nothing.plot()


def test_bad_input(model, batch) -> None:
    def closure() -> Tensor:
        return loss_of(model, batch)

    other = nn.Linear(1, 1)
    table = nn.Embedding(4, 2, sparse=True)
    for arguments, options, message in (
        ((3, closure), {}, r"model: got 'int'; expected a torch\.nn\.Module"),
        ((model, 3.0), {}, "loss: got 'float'; expected one number"),
        ((model, lambda: model(batch[0])), {}, r"loss: got a tensor of shape \(40, 3\)"),
        ((model, closure().detach()), {}, "depends on no trainable parameter; expected the loss of a batch, not detached"),
        ((model, lambda: other(torch.ones(1, 1)).sum()), {}, "depends on no trainable parameter of the model"),
        ((model, lambda: closure() * float("nan")), {}, "a loss of nan; expected a finite one"),
        ((table, lambda: table(torch.tensor([1])).sum()), {}, "a sparse gradient of 'weight'"),
        ((model, closure), {"delta": -1.0}, r"delta: got -1\.0"),
        ((model, closure), {"optimizer": "adam"}, r"optimizer: got 'str'; expected a torch\.optim\.Optimizer"),
        ((model, closure), {"optimizer": torch.optim.LBFGS(model.parameters())}, "steps without a closure"),
        ((model, closure), {"optimizer": torch.optim.SGD(other.parameters(), lr=1.0)}, "expected the optimizer of this model"),
    ):
        with pytest.raises(InputError, match=message):
            scale_invariance(*arguments, **options)
    rotated = nn.Linear(2, 2, dtype=torch.complex64)
    with pytest.raises(InputError, match=r"parameter 'weight' of torch\.complex64"):
        scale_invariance(rotated, lambda: rotated(torch.ones(1, 2, dtype=torch.complex64)).abs().sum())
