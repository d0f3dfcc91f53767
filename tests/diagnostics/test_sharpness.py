"""Sharpness against Hessians that are known, and models that are left as they were."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from counterpoise._errors import InputError
from counterpoise.diagnostics import sharpness
from counterpoise.diagnostics._sharpness import climb


class Quadratic(nn.Module):
    """Loss of every example: half of theta' H theta."""

    def __init__(self, spectrum, seed=0):
        super().__init__()
        n = len(spectrum)
        Q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))[0]
        self.top = Q[:, int(torch.tensor(spectrum).argmax())]
        self.H = Q @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ Q.T
        self.theta = nn.Parameter(torch.ones(n, dtype=torch.float64))

    def forward(self, x):
        return (0.5 * self.theta @ self.H @ self.theta).expand(len(x))


def first(output, target):
    return output


def rows(n):
    return torch.zeros(n, 1), torch.zeros(n)


def hessian_of(model, loss, X, y):
    """The whole matrix, column by column."""
    parameters = list(model.parameters())
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss(model(X), y), parameters, create_graph=True)])
    columns = [torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True) for value in gradient]
    return torch.stack(
        [
            torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in zip(c, parameters, strict=True)])
            for c in columns
        ]
    )


def classifier(seed=0, d=6, classes=3, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(d, 8), nn.Tanh(), nn.Linear(8, classes)).to(dtype)


def examples(n=90, d=6, classes=3, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(n, d, generator=g, dtype=dtype), torch.randint(0, classes, (n,), generator=g)


# ---- values -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spectrum",
    [
        pytest.param([5.0, 3.0, 1.0, 0.0], id="positive"),
        pytest.param([-9.0, -3.0, 0.5, 2.0, 1.0], id="negative one is larger"),
        pytest.param([-4.0, 4.0, 1.0, -1.0], id="both ends alike"),
        pytest.param([4.0, 4.0, 1.0], id="twice"),
        pytest.param([-5.0, -3.0, -1.0], id="all negative"),
        pytest.param([*np.linspace(-1, 1, 60), 3.0], id="one far out"),
        pytest.param([*np.linspace(-5, 1, 60)], id="crowded"),
    ],
)
def test_a_quadratic_has_the_eigenvalue_that_it_was_made_of(spectrum) -> None:
    model = Quadratic(spectrum)
    report = sharpness(model, first, rows(7), iters=200, tol=1e-8)
    assert report.converged and report.value == pytest.approx(max(spectrum), abs=1e-9)
    assert report.residual <= 1e-8 and report.products <= 200 and report.examples == 7
    assert torch.linalg.vector_norm(report.vector).item() == pytest.approx(1)
    if sorted(spectrum)[-2] < max(spectrum):
        assert abs(float(report.vector @ model.top)) == pytest.approx(1, abs=1e-6)


def test_it_needs_fewer_products_than_plain_power_iteration() -> None:
    spectrum = torch.linspace(0, 1, 300, dtype=torch.float64)
    start = torch.randn(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value, _, _, products, converged = climb(lambda v: spectrum * v, start, 500, 1e-3)
    assert converged and value == pytest.approx(1, abs=1e-4)
    v, plain = start / start.norm(), 0
    while True:
        Hv = spectrum * v
        plain += 1
        rayleigh = v @ Hv
        if (Hv - rayleigh * v).norm() <= 1e-3 * rayleigh:
            break
        v = Hv / Hv.norm()
    assert products < plain / 2


def test_the_value_of_a_network_is_that_of_its_whole_hessian() -> None:
    model, (X, y) = classifier(), examples()
    expected = torch.linalg.eigvalsh(hessian_of(model, F.cross_entropy, X, y))[-1].item()
    for dtype, error in ((torch.float64, 1e-6), (torch.float32, 1e-4)):
        report = sharpness(copy.deepcopy(model).to(dtype), nn.CrossEntropyLoss(), (X.to(dtype), y), iters=300, tol=1e-4)
        assert report.converged and report.value == pytest.approx(expected, rel=error) and report.vector.dtype == dtype


def test_a_budget_that_ends_early_gives_a_lower_bound_and_says_so() -> None:
    model, (X, y) = classifier(), examples()
    expected = torch.linalg.eigvalsh(hessian_of(model, F.cross_entropy, X, y))[-1].item()
    values = [sharpness(model, nn.CrossEntropyLoss(), (X, y), iters=iters, tol=1e-9) for iters in (1, 2, 4, 8)]
    assert not any(report.converged for report in values[:3])
    bounds = [report.value for report in values]
    assert bounds == sorted(bounds) and bounds[-1] <= expected * (1 + 1e-9)
    assert [report.products for report in values] == [1, 2, 4, 8]
    assert "not converged" in values[0].summary() and "lower bound" in values[0].summary()


def test_batches_loaders_reductions_and_seeds_do_not_change_it() -> None:
    model, (X, y) = classifier(), examples(n=70)
    dataset = TensorDataset(X, y)
    loaders = [DataLoader(dataset, batch_size=32), DataLoader(dataset, batch_size=9, shuffle=True)]
    known = sharpness(model, F.cross_entropy, (X, y), iters=200, tol=1e-7).value
    for loss in (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum"), nn.CrossEntropyLoss(reduction="none")):
        for data in ((X, y), *loaders):
            assert sharpness(model, loss, data, iters=200, tol=1e-7, seed=3).value == pytest.approx(known, rel=1e-9)
    again = [sharpness(model, F.cross_entropy, (X, y), iters=5).value for _ in range(2)]
    assert again[0] == again[1]


def test_what_is_frozen_or_unused_takes_no_part() -> None:
    model, (X, y) = classifier(), examples()
    model[0].requires_grad_(False)
    H = hessian_of(model[2], F.cross_entropy, torch.tanh(model[0](X)), y)
    report = sharpness(model, nn.CrossEntropyLoss(), (X, y), iters=200, tol=1e-7)
    assert report.names == ("2.weight", "2.bias") and len(report.vector) == len(H)
    assert report.value == pytest.approx(torch.linalg.eigvalsh(H)[-1].item(), rel=1e-8)
    model.register_parameter("unused", nn.Parameter(torch.zeros(5)))
    wider = sharpness(model, nn.CrossEntropyLoss(), (X, y), iters=200, tol=1e-7)
    assert wider.value == pytest.approx(report.value, rel=1e-8) and float(wider.vector[wider.slices[0]].norm()) == pytest.approx(
        0, abs=1e-6
    )


def test_a_loss_that_does_not_bend_has_sharpness_zero() -> None:
    model = nn.Linear(3, 1, bias=False)
    report = sharpness(model, lambda output, target: output[:, 0], (torch.ones(60, 3), torch.zeros(60)))
    assert report.value == 0 and report.converged and report.max_lr() == float("inf")


@pytest.mark.parametrize("layer", ["lstm", "attention"])
def test_layers_whose_fast_kernels_cannot_be_differentiated_twice(layer) -> None:
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.LSTM(4, 6, batch_first=True) if layer == "lstm" else nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
            self.head = nn.Linear(6 if layer == "lstm" else 4, 3)

        def forward(self, x):
            out = self.body(x)
            return self.head((out[0] if layer == "lstm" else out)[:, -1])

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model()
        X, y = torch.randn(60, 5, 4), torch.randint(0, 3, (60,))
    report = sharpness(model, nn.CrossEntropyLoss(), (X, y), iters=200)
    model.eval()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        H = hessian_of(model, F.cross_entropy, X, y)
    assert report.converged and report.value == pytest.approx(torch.linalg.eigvalsh(H)[-1].item(), rel=1e-3)


# ---- the edge ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.5, False), (0.9, False), (0.9, True)])
def test_torch_sgd_starts_to_oscillate_where_the_report_says(momentum, nesterov) -> None:
    report = sharpness(Quadratic([4.0, 1.0]), first, rows(50), iters=50, tol=1e-9)
    edge = report.max_lr(momentum) / (1 + 2 * momentum if nesterov else 1)
    ends = []
    for lr in (0.97 * edge, 1.03 * edge):
        model = Quadratic([4.0, 1.0])
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, nesterov=nesterov)
        for _ in range(600):
            optimizer.zero_grad()
            model(rows(1)[0]).mean().backward()
            optimizer.step()
        ends.append(float(model.theta.detach().norm()))
    assert ends[0] < 0.1 and ends[1] > 10
    assert report.lr_lambda_half(report.max_lr()) == pytest.approx(1)
    assert report.lr_lambda_half(report.max_lr(momentum)) == pytest.approx(1 + momentum)


def test_the_summary_and_the_frame_say_where_the_direction_is() -> None:
    model, (X, y) = classifier(), examples()
    report = sharpness(model, nn.CrossEntropyLoss(), (X, y), iters=100)
    frame = report.to_frame()
    assert frame["share"].sum() == pytest.approx(1) and frame["count"].sum() == len(report.vector)
    largest = frame.sort("share", descending=True)["parameter"][0]
    assert f"{report.max_lr():.3g}" in report.summary() and largest in report.summary()


# ---- nothing is left behind -------------------------------------------------------------------------------------------------------------


def busy_model():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3))
    model[1](torch.randn(20, 8))
    model[4].eval()  # flags need not all be the same
    model[0].bias.requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    return model


def state_of(model):
    return (
        [value.clone() for value in model.state_dict().values()],
        [(p.requires_grad, None if p.grad is None else p.grad.clone(), id(p), id(p.grad)) for p in model.parameters()],
        [module.training for module in model.modules()],
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
    )


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("breaks", [False, True])
def test_the_model_and_the_random_states_come_back_bit_for_bit(breaks) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = busy_model()
        X, y = torch.randn(60, 6), torch.randint(0, 3, (60,))
        own = torch.Generator().manual_seed(5)
        loader = DataLoader(TensorDataset(X, y), batch_size=16, shuffle=True, generator=own)
        for data in (loader, DataLoader(TensorDataset(X, y), batch_size=16, shuffle=True)):
            before, drawn = state_of(model), own.get_state()
            loss = (lambda output, target: output.sum(dim=1) / 0 * 0) if breaks else nn.CrossEntropyLoss()
            if breaks:
                with pytest.raises(InputError, match="finite"):
                    sharpness(model, loss, data)
            else:
                report = sharpness(model, loss, data, iters=4)
                assert "Batch normalization" in report.notes[0]
            assert same(before, state_of(model)) and torch.equal(drawn, own.get_state())


# ---- bad input --------------------------------------------------------------------------------------------------------------------------


def frozen():
    return nn.Linear(6, 3).requires_grad_(False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda X, y: sharpness(frozen(), nn.CrossEntropyLoss(), (X, y)), "trainable"),
        (lambda X, y: sharpness(nn.Linear(6, 3).bfloat16(), nn.CrossEntropyLoss(), (X.bfloat16(), y)), r"bfloat16.*float32.*deepcopy"),
        (lambda X, y: sharpness(nn.Linear(6, 3), lambda o, t: F.cross_entropy(o, t), (X, y)), "one number for the batch"),
        (lambda X, y: sharpness(nn.Linear(6, 3), nn.CrossEntropyLoss(), (X, y[:5])), "data: got tensors of 60, 5 rows"),
        (lambda X, y: sharpness(nn.Linear(6, 3), nn.CrossEntropyLoss(), (X, y), iters=0), "iters: got 0"),
        (lambda X, y: sharpness(nn.Linear(6, 3), nn.CrossEntropyLoss(), (X, y), tol=0.0), "tol: got 0.0"),
        (lambda X, y: sharpness("model", nn.CrossEntropyLoss(), (X, y)), "model: got 'str'"),
        (lambda X, y: sharpness(classifier(), nn.CrossEntropyLoss(), examples()).max_lr(momentum=1.5), "momentum: got 1.5"),
    ],
)
def test_bad_input_is_one_sentence(call, message) -> None:
    X, y = examples(n=60, dtype=torch.float32)
    with pytest.raises(InputError, match=message):
        call(X, y)
