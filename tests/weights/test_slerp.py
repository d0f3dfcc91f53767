from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterpoise._errors import InputError
from counterpoise.weights import nested_slerp, slerp
from counterpoise.weights._slerp import slerp_coefficients


def vectors(count: int, n: int = 20, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.linspace(0.3, 5, count, dtype=torch.float64)[:, None]
    return (torch.randn(count, n, generator=generator, dtype=torch.float64) * lengths).to(dtype)


def test_ends_and_the_quarter_circle() -> None:
    a, b = vectors(2)
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    for t in (0.2, 0.5, 0.9):
        found = slerp(x, y, t)
        assert found.norm().item() == pytest.approx(1, abs=1e-6)
        assert math.atan2(found[1].item(), found[0].item()) == pytest.approx(t * math.pi / 2, abs=1e-6)


def test_one_angle_or_one_for_each_row() -> None:
    a, b = vectors(4), vectors(4, seed=1)
    rows = slerp(a, b, 0.3, dim=-1)
    torch.testing.assert_close(rows, torch.stack([slerp(x, y, 0.3) for x, y in zip(a, b, strict=True)]))
    torch.testing.assert_close(slerp(a.T, b.T, 0.3, dim=0), rows.T)
    whole = slerp(a, b, 0.3)
    torch.testing.assert_close(whole, slerp(a.reshape(-1), b.reshape(-1), 0.3).view_as(a))
    assert not torch.allclose(whole, rows)


def test_parallel_vectors_and_zero_ones_are_interpolated_linearly() -> None:
    a = vectors(1)[0]
    torch.testing.assert_close(slerp(a, 3 * a, 0.25), 1.5 * a)
    torch.testing.assert_close(slerp(a, torch.zeros_like(a), 0.25), 0.75 * a)
    torch.testing.assert_close(slerp(a * 0, a * 0, 0.25), a * 0)
    near = a + 1e-6 * vectors(1, seed=3)[0]
    torch.testing.assert_close(slerp(a, near, 0.5), (a + near) / 2, rtol=1e-10, atol=1e-10)
    # eps says where the line begins.
    b = a + 0.1 * vectors(1, seed=3)[0]
    torch.testing.assert_close(slerp(a, b, 0.5, eps=1.0), (a + b) / 2)
    assert not torch.allclose(slerp(a, b, 0.5), (a + b) / 2, rtol=1e-5)


def test_antiparallel_vectors_have_no_arc() -> None:
    a = vectors(1)[0]
    with pytest.raises(InputError, match="a and b: got antiparallel vectors; expected vectors less than 180 degrees apart"):
        slerp(a, -2 * a, 0.5)
    rows = torch.stack([a, a])
    with pytest.raises(InputError, match="antiparallel vectors in 1 of 2 rows"):
        slerp(rows, torch.stack([a, -a]), 0.5, dim=-1)
    for seed in range(40):  # rounding may leave a little of the angle
        a = vectors(1, 37, seed)[0]
        with pytest.raises(InputError, match="antiparallel"):
            slerp(a, -0.7 * a, 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_lengths_whose_squares_do_not_fit(dtype, scale) -> None:
    scale = scale if dtype == torch.float32 else scale**3
    a, b = vectors(2, dtype=dtype)
    torch.testing.assert_close(slerp(scale * a, scale * b, 0.3) / scale, slerp(a, b, 0.3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_types_are_kept(dtype) -> None:
    a, b = vectors(2, dtype=dtype)
    found = slerp(a, b, 0.4)
    assert found.dtype == dtype
    wanted = slerp(a.double(), b.double(), 0.4)
    torch.testing.assert_close(found.double(), wanted, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    big = torch.tensor([3e4, 0.0], dtype=torch.float16)
    assert bool(torch.isfinite(slerp(big, big.flip(0), 0.5)).all())  # squares that half precision cannot hold


def test_gradients_are_finite_and_right() -> None:
    a, b = vectors(2, 4)
    inputs = (a.requires_grad_(), b.requires_grad_(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(slerp, inputs)
    parallel = torch.ones(3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(slerp(parallel, 2 * parallel.detach(), 0.25).sum(), parallel)
    assert bool(torch.isfinite(gradient).all())
    zero = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    for gradient, share in zip(torch.autograd.grad(slerp(zero, parallel, 0.25).sum(), (zero, parallel)), (0.75, 0.25), strict=True):
        assert gradient.tolist() == [share] * 3


@given(st.integers(1, 7), st.integers(0, 10_000), st.sampled_from(["mean", "sum"]), st.floats(0.0, 0.999))
def test_the_gram_matrix_is_enough(count, seed, rule, alike) -> None:
    generator = torch.Generator().manual_seed(seed)
    V = vectors(count, 30, seed)
    V = V + alike / (1 - alike) * V[:1]  # from unrelated to nearly parallel
    a = torch.rand(count, generator=generator, dtype=torch.float64) * 3 + 0.05
    explicit = nested_slerp(V, a, rule)
    c = slerp_coefficients(V @ V.T, a, rule)
    torch.testing.assert_close(c @ V, explicit, rtol=1e-10, atol=1e-10 * explicit.norm().item())


def test_the_order_matters_and_the_last_counts_most() -> None:
    V = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(nested_slerp(V, [1, 1, 1]), torch.tensor([0.5, 0.5, 0.5**0.5], dtype=torch.float64))
    small = torch.ones(3, 5, dtype=torch.float64) + 1e-4 * vectors(3, 5)
    for rule, shares in (("mean", [0.25, 0.25, 0.5]), ("sum", [1 / 3] * 3)):
        c = slerp_coefficients(small @ small.T, torch.ones(3, dtype=torch.float64), rule)
        torch.testing.assert_close(c, torch.tensor(shares, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_only_ratios_of_weights_matter() -> None:
    V = vectors(4)
    for rule in ("mean", "sum"):
        torch.testing.assert_close(nested_slerp(V, [1, 2, 3, 4], rule), nested_slerp(V, [10, 20, 30, 40], rule))
    torch.testing.assert_close(nested_slerp(V[:2], [3.0, 1.0]), slerp(V[0], V[1], 0.25))
    assert nested_slerp(V[:1], [0.2]) is not None and torch.equal(nested_slerp(V[:1], [0.2]), V[0])


def test_task_vectors_are_one_long_vector() -> None:
    V = vectors(3)
    parts = [{"a": v[:6].reshape(2, 3), "b": v[6:]} for v in V]
    found = nested_slerp(parts, [1.0, 2.0, 0.5])
    torch.testing.assert_close(torch.cat([found["a"].reshape(-1), found["b"]]), nested_slerp(V, [1.0, 2.0, 0.5]))
    assert found["a"].shape == (2, 3)
    mixed = nested_slerp([{"a": part["a"].half(), "b": part["b"].float()} for part in parts], [1.0, 2.0, 0.5])
    assert mixed["a"].dtype == torch.float16 and mixed["b"].dtype == torch.float32


def test_half_precision_is_rounded_once() -> None:
    V = vectors(12, 200, dtype=torch.bfloat16)
    wanted = nested_slerp(V.double(), [1.0] * 12, "sum")
    assert torch.equal(nested_slerp(V, [1.0] * 12, "sum"), wanted.float().bfloat16())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: slerp(torch.ones(2), torch.ones(3), 0.5), r"a and b: got \(2,\) torch.float32 and \(3,\) torch.float32"),
        (lambda: slerp(torch.ones(2), torch.ones(2).double(), 0.5), "two floating-point tensors of one shape and type"),
        (lambda: slerp(torch.ones(2).long(), torch.ones(2).long(), 0.5), "two floating-point tensors"),
        (lambda: slerp([1.0], [2.0], 0.5), "got list and list"),
        (lambda: slerp(torch.ones(2), torch.ones(2), 0.5, eps=-1), "eps: got -1"),
        (lambda: nested_slerp([], []), "vectors: got an empty sequence"),
        (lambda: nested_slerp(torch.eye(2), [1.0]), "weights: got .*; expected 2 finite weights > 0"),
        (lambda: nested_slerp(torch.eye(2), [1.0, 0.0]), "2 finite weights > 0"),
        (lambda: nested_slerp(torch.eye(2), [1.0, float("nan")]), "2 finite weights > 0"),
        (lambda: nested_slerp(torch.eye(2), [1.0, 1.0], "median"), "rule: got 'median'; expected one of mean, sum"),
        (lambda: nested_slerp([{"a": torch.ones(1)}, {"b": torch.ones(1)}], [1, 1]), "dictionaries of different names"),
        (lambda: nested_slerp([{"a": torch.ones(2, 3)}, {"a": torch.ones(3, 2)}], [1, 1]), r"a of shapes \[\(2, 3\), \(3, 2\)\]"),
        (lambda: nested_slerp([torch.ones(2), torch.ones(2).double()], [1, 1]), "tensors of one shape and type"),
    ],
)  # fmt: skip
def test_bad_input(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()
