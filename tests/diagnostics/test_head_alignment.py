"""Distances between domains at a head, against whole Hessians."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from counterpoise._errors import InputError
from counterpoise.diagnostics import HeadAlignment, head_alignment
from counterpoise.diagnostics._head_alignment import _spectral_norm
from counterpoise.losses import HessianAlignmentLoss
from tests.batteries import diagnoses
from tests.batteries.diagnoses import DiagnosisCase

ROWS, WIDTH = 60, 4


def problem(n_classes: int = 3) -> tuple[Tensor, Tensor, list[str]]:
    source = torch.Generator().manual_seed(0)
    features = torch.randn(ROWS, WIDTH, generator=source)
    target = torch.randint(max(2, n_classes), (ROWS,), generator=source)
    domain = torch.tensor([0] * 30 + [1] * 20 + [2] * 10)[torch.randperm(ROWS, generator=source)]
    features[:, 1] += 2.0 * (domain == 2)
    return features, target, [("photo", "art", "sketch")[e] for e in domain.tolist()]


def linear(n_classes: int = 3) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Linear(WIDTH, n_classes)


def network(n_classes: int = 3) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(WIDTH, 3), nn.Tanh(), nn.Dropout(0.5), nn.Linear(3, n_classes)).double()


def written_out(head: nn.Module, features: Tensor, target: Tensor, domain: list[str]) -> tuple[Tensor, Tensor]:
    """g (E, P) and H (E, P, P) of the domains in sorted order."""
    parameters = {name: p.detach().double() for name, p in head.named_parameters()}
    flat = torch.cat([p.flatten() for p in parameters.values()])
    rows = [torch.tensor([name == wanted for name in domain]) for wanted in sorted(set(domain))]

    def losses(theta: Tensor) -> Tensor:
        parts = theta.split([p.numel() for p in parameters.values()])
        values = {name: part.view_as(p) for (name, p), part in zip(parameters.items(), parts, strict=True)}
        logits = torch.func.functional_call(head.eval(), values, (features.double(),))
        if logits.shape[1] == 1:
            each = nn.functional.binary_cross_entropy_with_logits(logits[:, 0], target.double(), reduction="none")
        else:
            each = nn.functional.cross_entropy(logits, target, reduction="none")
        return torch.stack([each[own].mean() for own in rows])

    return torch.func.jacrev(losses)(flat), torch.func.hessian(losses)(flat)


@pytest.mark.parametrize(("make", "n_classes"), [(linear, 3), (linear, 1), (network, 3), (network, 1)])
def test_distances_are_those_of_whole_hessians(make, n_classes) -> None:
    features, target, domain = problem(n_classes)
    found = head_alignment(features, target, domain, make(n_classes))
    g, H = written_out(make(n_classes), features, target, domain)
    assert found.domains == ("art", "photo", "sketch") and found.counts.tolist() == [20, 30, 10] and found.converged
    exact = {"rtol": 1e-6, "atol": 1e-9}
    np.testing.assert_allclose(found.gradient_norm, g.norm(dim=1), **exact)
    np.testing.assert_allclose(found.gradient_distance, torch.cdist(g, g, compute_mode="donot_use_mm_for_euclid_dist"), **exact)
    np.testing.assert_allclose(found.hessian_norm, torch.linalg.matrix_norm(H, ord=2), **exact)
    np.testing.assert_allclose(found.hessian_spectral, torch.linalg.matrix_norm(H[:, None] - H[None], ord=2), **exact)
    if make is linear:
        diagonal = H.diagonal(dim1=1, dim2=2)
        np.testing.assert_allclose(found.hessian_diag_distance, (diagonal[:, None] - diagonal[None]).norm(dim=2), **exact)
    else:
        assert found.hessian_diag_distance is None
    shares = [[np.mean(target.numpy()[np.array(domain) == d] == c) for c in range(max(2, n_classes))] for d in found.domains]
    np.testing.assert_allclose(found.class_share, shares)


def test_it_measures_what_the_loss_aligns() -> None:
    """With two domains each is half their distance from the mean."""
    features, target, domain = problem()
    two = [name if name == "art" else "other" for name in domain]
    loss = HessianAlignmentLoss(linear().double(), "diagonal")
    loss(features.double().requires_grad_(), target, two)
    found = head_alignment(features, target, two, linear())
    assert found.gradient_distance[0, 1] ** 2 / 4 == pytest.approx(loss.last.gradient_gap.item(), rel=1e-9)
    assert found.hessian_diag_distance[0, 1] ** 2 / 4 == pytest.approx(loss.last.hessian_gap.item(), rel=1e-9)


@pytest.mark.parametrize("spectrum", [[3.0, -3.0, 1.0], [1.0, -5.0, 2.0], [0.0, 0.0, 0.0], [1e-8, -2e-8, 0.0]])
def test_spectral_norms_of_both_signs(spectrum) -> None:
    Q = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    A = Q @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ Q.T
    value, converged = _spectral_norm(lambda v: A @ v, torch.ones(3, dtype=torch.float64), 100)
    assert converged and value == pytest.approx(max(abs(x) for x in spectrum), rel=1e-9)


def test_too_few_steps_are_admitted() -> None:
    found = head_alignment(*problem(), linear(), iters=1)
    assert not found.converged and "lower bounds: raise iters" in found.summary()
    assert (found.hessian_spectral <= head_alignment(*problem(), linear()).hessian_spectral).all()


def test_what_is_said() -> None:
    features, target, domain = problem()
    found = head_alignment(features, target, domain, linear())
    e, f = np.unravel_index(found.hessian_spectral.argmax(), (3, 3))
    text = found.summary()
    assert f"Hessians differ most between {found.domains[e]} and {found.domains[f]}: by {found.hessian_spectral.max():.3g}" in text
    assert "Class shares of" in text and repr(found).startswith("HeadAlignment(Gradients differ most")
    frame = found.to_frame()
    assert frame.height == 3 and frame["hessian_spectral"].is_sorted(descending=True)
    assert frame.row(0, named=True)["class_share_distance"] == pytest.approx(found.class_share_distance[e, f])
    assert head_alignment(features, target, domain, network()).to_frame()["hessian_diag_distance"].null_count() == 3
    one = head_alignment(features, target, ["art"] * ROWS, linear())
    assert one.summary() == "One domain, art: there is nothing to compare." and one.to_frame().height == 0
    balanced = torch.arange(ROWS) % 2
    assert "Class shares" not in head_alignment(features, balanced, balanced.roll(1) * 0 + (torch.arange(ROWS) // 30), linear()).summary()


def test_the_picture() -> None:
    figure = head_alignment(*problem(), linear()).plot()
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert len(figure.axes) == 2 and len(texts) == 12  # a number for every pair, in both orders
    features, target, _ = problem()
    many = head_alignment(features, target, torch.arange(ROWS) % 12, linear(), iters=20).plot()
    assert not [text for ax in many.axes for text in ax.texts]


def _diagnose(model: nn.Module, data: Any, _: Any) -> HeadAlignment:
    """The whole model as a head: batch normalization, dropout, frozen layers, a table shortened in place."""
    return head_alignment(data[0], data[1], torch.arange(len(data[0])) % 2, model, iters=5)


def _diagnose_linear(model: Any, data: Any, _: Any) -> HeadAlignment:
    return head_alignment(torch.cat([data[0], data[0][:, :2]], dim=1), data[1], torch.arange(len(data[0])) % 2, model.head)


CHECKS: list[Callable[[DiagnosisCase], None]] = [
    diagnoses.nothing_is_changed,
    diagnoses.nothing_is_changed_by_a_failure_of_the_model,
    diagnoses.calls_repeat,
    diagnoses.reports_are_frozen,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_battery(check: Callable[[DiagnosisCase], None]) -> None:
    check(DiagnosisCase("head_alignment, any head", _diagnose))


@pytest.mark.parametrize("check", [check for check in CHECKS if "failure" not in check.__name__], ids=lambda check: check.__name__)
def test_battery_of_a_linear_head(check: Callable[[DiagnosisCase], None]) -> None:
    check(DiagnosisCase("head_alignment, linear", _diagnose_linear))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z, y, d, h: (z, y, d, h.forward), "head: got 'method'; expected a torch.nn.Module"),
        (lambda z, y, d, h: (z.numpy(), y, d, h), "features: got 'ndarray'; expected a floating-point tensor"),
        (lambda z, y, d, h: (z[:, :2], y, d, h), "features: got shape (60, 2); expected the input of the head, shape (B, 4)"),
        (lambda z, y, d, h: (z, y + 1, d, h), "target: got 3; expected classes 0..2"),
        (lambda z, y, d, h: (z, y[1:], d, h), "target: got shape (59,)"),
        (lambda z, y, d, h: (z, y, d[1:], h), "domain: got shape (59,)"),
        (lambda z, y, d, h: (z[:0], y[:0], d[:0], h), "features: got shape (0, 4); expected at least one row"),
        (lambda z, y, d, h: (z * float("nan"), y, d, h), "logits of domain 'art' that are NaN or infinite"),
    ],
)
def test_bad_input(change, message) -> None:
    with pytest.raises(InputError) as error:
        head_alignment(*change(*problem(), linear()))
    assert message in str(error.value)


@pytest.mark.parametrize("options", [{"iters": 0}, {"seed": -1}])
def test_options_out_of_range(options) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        head_alignment(*problem(), linear(), **options)


def test_precision_and_dtypes() -> None:
    features, target, domain = problem()
    single, double = (head_alignment(z, target, domain, h) for z, h in ((features, linear()), (features.double(), linear().double())))
    for field in dataclasses.fields(HeadAlignment):
        a, b = getattr(single, field.name), getattr(double, field.name)
        if isinstance(a, np.ndarray):
            np.testing.assert_allclose(a, b, rtol=1e-9, err_msg=field.name)
    half = head_alignment(features.bfloat16(), target, domain, network().float())
    np.testing.assert_allclose(half.hessian_spectral, head_alignment(features, target, domain, network()).hessian_spectral, rtol=0.1)
