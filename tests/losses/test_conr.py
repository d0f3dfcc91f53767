from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributed as dist

from counterpoise._errors import InputError
from counterpoise.losses import ConRLoss
from tests.processes import in_processes

N, D = 12, 5


def problem(n: int = N, k: int = 1, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features that take a gradient, targets and predictions (n, k) in [0, 16], weights (n, 1)."""
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(n, D, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    targets = 16 * torch.rand(n, k, generator=g, dtype=torch.float64).to(dtype)
    predictions = targets + 4 * torch.randn(n, k, generator=g, dtype=torch.float64).to(dtype)
    return features, targets, predictions, 0.5 + torch.rand(n, 1, generator=g, dtype=torch.float64).to(dtype)


def gradient(loss: ConRLoss, features: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    value = loss(features, *rest)
    (found,) = torch.autograd.grad(value, features)
    return value.detach(), found


def by_pairs(z: Tensor, y: Tensor, p: Tensor, h: Tensor, w: float, t: float, e: float, push: str, reference: bool, self_too: bool) -> Any:
    """The definition, pair by pair."""
    n = len(z)
    u = z / z.norm(dim=1, keepdim=True)
    y, p, h = y[:, 0].tolist(), p[:, 0].tolist(), h[:, 0].tolist()
    losses = []
    for i in range(n):
        positive = [j for j in range(n) if j != i and abs(y[i] - y[j]) <= w]
        negative = [j for j in range(n) if abs(y[i] - y[j]) > w and abs(p[i] - p[j]) <= w]
        if not positive or not negative:
            losses.append(0 * u.sum())
            continue
        e_s = {j: torch.exp(u[i] @ u[j] / t) for j in positive + negative}
        factor = {j: math.exp(e * abs(y[i] - y[j])) if push == "exp" else e * abs(y[i] - y[j]) for j in negative}
        below = sum(e_s[j] for j in positive) + sum(h[i] * factor[j] * e_s[j] for j in negative) + reference * (n - len(positive))
        loss = -sum(torch.log(e_s[j] / below) for j in positive) / (len(positive) + self_too)
        losses.append(loss * h[i] if push == "exp" else loss)
    return torch.stack(losses)


# ---- what it is -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [None, 5, 1])
@pytest.mark.parametrize("denominator", ["paper", "reference"])
@pytest.mark.parametrize(("push", "count_self"), [("exp", False), ("linear", True)])
def test_it_is_the_definition(push, count_self, denominator, block_size) -> None:
    z, y, p, h = problem()
    loss = ConRLoss(2.0, 0.3, 0.2, push=push, denominator=denominator, count_self=count_self, block_size=block_size, reduction="none")
    expected = by_pairs(z, y, p, h, 2.0, 0.3, 0.2, push, denominator == "reference", count_self)
    found = loss(z, y, p, h)
    assert 3 < (expected > 0).sum() < N
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    upstream = torch.linspace(-1, 2, N, dtype=torch.float64)
    (a,), (b,) = (torch.autograd.grad(x @ upstream, z) for x in (found, expected))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("push", ["exp", "linear"])
def test_no_weights_are_weights_of_one(push) -> None:
    z, y, p, h = problem()
    loss = ConRLoss(2.0, push=push)
    assert loss(z, y, p).item() == pytest.approx(loss(z, y, p, torch.ones_like(h)).item(), rel=1e-12)
    assert loss(z, y, p, h).item() == loss(z, y[:, 0], p[:, 0], h[:, 0]).item()
    assert loss(z, y, p, h).item() != pytest.approx(loss(z, y, p).item(), rel=1e-5)


def test_anchors_of_weight_zero_do_not_count() -> None:
    z, y, p, h = problem()
    h[3:6] = 0
    for push in ("exp", "linear"):
        losses = ConRLoss(2.0, push=push, reduction="none")(z, y, p, h)
        (grad,) = torch.autograd.grad(losses.sum(), z)
        assert torch.isfinite(losses).all() and torch.isfinite(grad).all()
        if push == "exp":
            assert (losses[3:6] == 0).all()


def test_what_leaves_it_unchanged() -> None:
    z, y, p, h = problem()
    loss = ConRLoss(2.0, 0.1)
    value, grad = gradient(loss, z, y, p, h)
    torch.testing.assert_close(loss(z, y + 7, p + 7, h), value, rtol=1e-12, atol=0)
    rotation = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    torch.testing.assert_close(loss(z @ rotation, y, p, h), value, rtol=1e-12, atol=0)
    lengths = torch.logspace(-3, 3, N, dtype=torch.float64)[:, None]
    torch.testing.assert_close(loss(z * lengths, y, p, h), value, rtol=1e-12, atol=0)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(2))
    moved, moved_grad = gradient(loss, z[order].detach().requires_grad_(), y[order], p[order], h[order])
    torch.testing.assert_close(moved, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(moved_grad, grad[order], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close((grad * z).sum(dim=1), torch.zeros(N, dtype=torch.float64), rtol=0, atol=1e-14)  # length does not matter


def test_a_step_against_the_gradient_pushes_negatives_apart() -> None:
    features = torch.tensor([[1.0, 0.1], [1.0, 0.3], [0.9, 0.4]], requires_grad=True)
    targets, predictions = torch.tensor([1.0, 1.2, 9.0]), torch.tensor([2.0, 2.1, 2.2])
    _, grad = gradient(ConRLoss(0.5, 0.2), features, targets, predictions)
    before, after = (torch.nn.functional.cosine_similarity(x[1], x[2], dim=0) for x in (features, features - 0.05 * grad))
    assert after < before


def test_no_gradient_flows_through_the_rest() -> None:
    z, y, p, h = problem()
    for part in (y, p, h):
        part.requires_grad_()
    ConRLoss(2.0)(z, y, p, h).backward()
    assert z.grad is not None and y.grad is p.grad is h.grad is None


def test_feature_maps_are_flattened_and_integers_are_numbers() -> None:
    z, y, p, _ = problem()
    maps = torch.randn(N, 3, 2, 2, generator=torch.Generator().manual_seed(3), requires_grad=True)
    loss = ConRLoss(2.0)
    assert loss(maps, y, p).item() == loss(maps.flatten(1), y, p).item()
    years = y.round()
    for dtype in (torch.int64, torch.int32, torch.uint8):
        assert loss(z, years.to(dtype), p).item() == loss(z, years, p).item()
    # Seconds since 1970 differ by less than float32 can tell.
    stamps = 1_700_000_000 + years.long()
    assert ConRLoss(2.0)(z.float(), stamps, p.float()).item() == pytest.approx(loss(z, years, p).item(), rel=1e-5)


# ---- targets of several columns ---------------------------------------------------------------------------------------------------------


def test_distances_of_several_columns() -> None:
    z, y, p, _ = problem(30, k=3)
    euclidean = ConRLoss(5.0, distance="l2")(z, y, p)
    assert euclidean > 0
    torch.testing.assert_close(ConRLoss(5.0, distance=torch.cdist)(z, y, p), euclidean)
    one = ConRLoss(8.0)(z, y, p)
    manhattan = ConRLoss(8.0, distance=lambda a, b: (a[:, None] - b[None]).abs().sum(dim=2))(z, y, p)
    torch.testing.assert_close(one, manhattan)
    assert one.item() != pytest.approx(ConRLoss(8.0, distance="l2")(z, y, p).item(), rel=1e-6)
    # Of one column all are the same.
    z, y, p, _ = problem()
    torch.testing.assert_close(ConRLoss(2.0, distance="l2")(z, y, p), ConRLoss(2.0)(z, y, p))


def test_the_angle_between_directions() -> None:
    degrees = torch.tensor([0.0, 2.0, 90.0, 91.0, 45.0], dtype=torch.float64)
    gaze = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], dim=1) * torch.tensor([[1.0], [5.0], [0.1], [2.0], [1.0]])
    seen = gaze[[0, 0, 0, 4, 4]]
    z = problem(5)[0]
    loss = ConRLoss(math.radians(3), push_scale=0.5, distance="angular")(z, gaze, seen)
    plain = ConRLoss(3.0, push_scale=0.5 * math.pi / 180)(z, degrees, degrees[[0, 0, 0, 4, 4]])
    torch.testing.assert_close(loss, plain, rtol=1e-9, atol=0)
    with pytest.raises(InputError, match="angular"):
        ConRLoss(1.0, distance="angular")(z, degrees, degrees)


# ---- where there is nothing to charge, or the numbers are extreme ----------------------------------------------------------------------


@pytest.mark.parametrize("denominator", ["paper", "reference"])
@pytest.mark.parametrize(
    ("targets", "predictions"),
    [
        ([1.0, 5.0, 9.0, 13.0], [1.0, 1.0, 1.0, 1.0]),  # negatives, but no positives: the published code gives NaN
        ([1.0, 1.1, 9.0, 9.1], [1.0, 1.1, 9.0, 9.1]),  # positives, but no negatives
        ([1.0, 5.0, 9.0, 13.0], [0.0, 10.0, 20.0, 30.0]),  # neither
        ([1.0, 1.1, 9.0, 9.1], [float("nan"), float("inf"), float("nan"), float("-inf")]),
    ],
)
def test_without_an_anchor_that_has_both_it_is_exactly_zero(targets, predictions, denominator) -> None:
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    value, grad = gradient(ConRLoss(0.5, denominator=denominator), z, torch.tensor(targets), torch.tensor(predictions))
    assert value.item() == 0 and (grad == 0).all()


def test_equal_targets_cost_nothing_and_are_warned_about() -> None:
    z, _, p, _ = problem()
    with pytest.warns(UserWarning, match=r"100% of the pairs of this batch lie within window=2.*fit_window") as caught:
        value, grad = gradient(loss := ConRLoss(2.0), z, torch.full_like(p, 3.0), p)
    assert value == 0 and (grad == 0).all() and Path(caught[0].filename).name == Path(__file__).name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(z, torch.full_like(p, 3.0), p)  # once is enough


def test_an_anchor_without_positives_does_not_spoil_the_others() -> None:
    """One row alone in its range: 0 / 0 in the published code."""
    z, y, p, h = problem()
    y[0], p[0] = 50.0, p[1].item()
    for denominator in ("paper", "reference"):
        value, grad = gradient(ConRLoss(2.0, denominator=denominator), z, y, p, h)
        assert value > 0 and torch.isfinite(value) and torch.isfinite(grad).all() and grad.abs().max() > 0


@pytest.mark.parametrize("denominator", ["paper", "reference"])
def test_low_temperatures_do_not_overflow(denominator) -> None:
    z, y, p, h = problem(dtype=torch.float32)
    for temperature in (0.0112, 0.01, 1e-3, 1e-6):  # exp(1 / t) is infinite in float32
        loss = ConRLoss(2.0, temperature, denominator=denominator)
        value, grad = gradient(loss, z, y, p, h)
        exact = loss(z.double(), y.double(), p.double(), h.double())
        assert torch.isfinite(grad).all() and value.item() == pytest.approx(exact.item(), rel=1e-4)


def test_far_targets_do_not_overflow() -> None:
    z, y, p, h = problem(dtype=torch.float32)
    value, grad = gradient(ConRLoss(2.0, push_scale=100.0), z, y, p, h)  # e^{1000}
    assert torch.isfinite(value) and torch.isfinite(grad).all() and value > 100


def test_features_of_zero_have_no_direction() -> None:
    z, y, p, h = (part.detach().clone() for part in problem())
    z[2] = 0
    z.requires_grad_()
    for loss in (ConRLoss(2.0), ConRLoss(2.0, denominator="reference")):
        value, grad = gradient(loss, z, y, p, h)
        assert torch.isfinite(value) and torch.isfinite(grad).all() and (grad[2] == 0).all() and (grad[3] != 0).any()


def test_long_features_do_not_overflow() -> None:
    z, y, p, h = problem(dtype=torch.float32)
    value, grad = gradient(ConRLoss(2.0), z, y, p, h)
    for factor in (1e30, 1e-10):
        scaled, scaled_grad = gradient(ConRLoss(2.0), (factor * z).detach().requires_grad_(), y, p, h)
        torch.testing.assert_close(scaled, value, rtol=1e-5, atol=0)
        torch.testing.assert_close(factor * scaled_grad, grad, rtol=1e-3, atol=1e-6)


def test_blocks_of_anchors_save_memory_and_change_nothing(monkeypatch) -> None:
    z, y, p, h = problem(50)
    expected = gradient(ConRLoss(1.0), z, y, p, h)
    from counterpoise.losses import _conr

    monkeypatch.setattr(_conr, "ONE_BLOCK", 40)
    monkeypatch.setattr(_conr, "BLOCK", 16)
    sizes = []
    whole = ConRLoss._block
    monkeypatch.setattr(ConRLoss, "_block", lambda self, rows, *rest: (sizes.append(len(rows.unit)), whole(self, rows, *rest))[1])
    for found, value in zip(gradient(ConRLoss(1.0), z, y, p, h), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-14)
    assert sorted(sizes) == sorted(2 * [16, 16, 16, 2])  # once forward, once again for the gradient


# ---- several processes ------------------------------------------------------------------------------------------------------------------

SHARES = (7, 5)  # rows of the two processes


def one_process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    z, y, p, h = (part.detach().split(SHARES)[rank] for part in problem())
    z.requires_grad_()
    value, grad = gradient(ConRLoss(2.0, gather=True), z, y, p, h)
    each = ConRLoss(2.0, gather=True, reduction="none", block_size=3)(z, y, p, h).detach()
    alone = ConRLoss(2.0, reduction="none")(z, y, p, h).detach()
    error = ""
    try:
        ConRLoss(2.0, gather=True)(z, y.where(y > (0.0 if rank else 99.0), float("nan")), p)
    except InputError as found:  # on both: none is left waiting for the other
        error = str(found)
    torch.save({"value": value, "grad": grad, "each": each, "alone": alone, "error": error}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_processes_compare_all_rows(tmp_path: Path) -> None:
    in_processes(one_process, str(tmp_path))
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    z, y, p, h = problem()
    value, grad = gradient(ConRLoss(2.0), z, y, p, h)
    torch.testing.assert_close(sum(part["value"] for part in found) / 2, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.cat([part["grad"] for part in found]) / 2, grad, rtol=1e-10, atol=1e-14)  # what DDP's mean makes of it
    each = ConRLoss(2.0, reduction="none")(z, y, p, h)
    torch.testing.assert_close(torch.cat([part["each"] for part in found]), each, rtol=1e-12, atol=1e-14)
    for part, rows in zip(found, (slice(0, 7), slice(7, 12)), strict=True):
        torch.testing.assert_close(part["alone"], ConRLoss(2.0, reduction="none")(z[rows], y[rows], p[rows], h[rows]))
        assert "targets: got nan or inf" in part["error"]


# ---- bad input --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0.0}, "window: got 0.0; expected a number > 0"),
        ({"window": -1.0}, "window"),
        ({"window": float("inf")}, "window"),
        ({"temperature": 0.0}, "temperature: got 0.0; expected a number > 0"),
        ({"push_scale": -0.1}, "push_scale"),
        ({"push": "log"}, "push: got 'log'; expected one of exp, linear"),
        ({"distance": "l3"}, "distance"),
        ({"denominator": "papers"}, "Did you mean 'paper'"),
        ({"block_size": 0}, "block_size"),
        ({"reduction": "max"}, "reduction"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        ConRLoss(**{"window": 1.0} | options)


def test_batches_that_make_no_sense_are_refused() -> None:
    z, y, p, h = problem()
    loss = ConRLoss(1.0)
    nan, negative = y.clone(), h.clone()
    nan[3], negative[4] = float("nan"), -0.5
    for arguments, message in (
        ((z, y, p[:, 0]), r"predictions: got shape \(12,\) for targets \(12, 1\)"),
        ((z, y[:-1], p[:-1]), "targets: got shape"),
        ((z, y[None], p[None]), "targets: got shape"),
        ((z[0], y[:, 0], p[:, 0]), "features"),
        ((z.long(), y, p), "features"),
        ((z[:1], y[:1], p[:1]), "features: got 1 rows; expected an input of at least two"),
        ((z, nan, p), "targets: got nan or inf"),
        ((z, y, p, negative), "sample_weight: got -0.5; expected finite weights >= 0"),
        ((z, y, p, h[:4]), "sample_weight: got shape"),
        ((z, y, p, h[None]), "sample_weight: got shape"),
    ):
        with pytest.raises(InputError, match=message):
            loss(*arguments)


def test_its_repr_names_what_was_chosen() -> None:
    text = repr(ConRLoss(3.0, push="linear", count_self=True))
    assert "window=3" in text and "push='linear'" in text and "count_self=True" in text
