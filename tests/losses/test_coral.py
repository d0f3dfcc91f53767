from __future__ import annotations

import pytest
import torch
from torch import Tensor

from counterpoise._errors import InputError
from counterpoise.losses import batch_whiten, coral_loss
from counterpoise.losses._coral import whitened_coral


def two_sides(n: int = 30, m: int = 20, width: int = 7, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(n + m + width)
    mix = torch.randn(width, width, generator=g, dtype=dtype)
    a = torch.randn(n, width, generator=g, dtype=dtype) @ mix
    return a, 2 * torch.randn(m, width, generator=g, dtype=dtype) @ mix.T + 1


def test_it_is_the_distance_of_covariances() -> None:
    for width in (1, 2, 7):
        a, b = two_sides(width=width)
        expected = (torch.cov(a.T) - torch.cov(b.T)).square().sum() / (4 * width**2)
        torch.testing.assert_close(coral_loss(a, b), expected, rtol=1e-12, atol=0)


def test_gradients() -> None:
    a, b = (x.requires_grad_() for x in two_sides(6, 5, 3))
    assert torch.autograd.gradcheck(coral_loss, (a, b))
    # Statistics of the whitening are constants, so the values' own derivative is not what is wanted: compare with the explicit way.
    wide = [x.detach().clone().requires_grad_() for x in two_sides(9, 8, 5)]
    values = whitened_coral(*wide), coral_loss(*batch_whiten(*wide))
    torch.testing.assert_close(*values, rtol=1e-9, atol=0)
    for one, other in zip(*(torch.autograd.grad(value, wide) for value in values), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


def test_more_features_than_rows() -> None:
    a, b = (x.requires_grad_() for x in two_sides(6, 5, 20))
    value = whitened_coral(a, b)
    torch.testing.assert_close(value, coral_loss(*batch_whiten(a, b)), rtol=1e-7, atol=0)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value, (a, b)))
    with pytest.raises(InputError, match=r"shrinkage: got 0.0; expected a larger one: the covariance of 11 rows of width 20 is singular"):
        batch_whiten(a, b, shrinkage=0.0)
    with pytest.raises(InputError, match="singular"):
        whitened_coral(torch.eye(3)[:2], torch.eye(3)[1:], shrinkage=0.0)


def test_whitening_makes_the_pooled_covariance_the_identity() -> None:
    a, b = batch_whiten(*two_sides(), shrinkage=0.0)
    both = torch.cat([a, b])
    torch.testing.assert_close(torch.cov(both.T), torch.eye(7, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(both.mean(dim=0), torch.zeros(7, dtype=torch.float64), rtol=0, atol=1e-12)
    assert coral_loss(a, b) > 1e-3  # the sides still differ, which whitening each by itself would hide
    own = [batch_whiten(x, x, shrinkage=0.0)[0] * (2 * len(x) - 1) ** -0.5 * (2 * (len(x) - 1)) ** 0.5 for x in two_sides()]
    assert coral_loss(*own) < 1e-20


def test_whitened_it_does_not_depend_on_scale_and_basis() -> None:
    a, b = two_sides()
    change = torch.randn(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for other in (1e-4 * torch.eye(7, dtype=torch.float64), torch.linalg.qr(change)[0]):
        torch.testing.assert_close(whitened_coral(a @ other, b @ other), whitened_coral(a, b), rtol=1e-8, atol=0)
    torch.testing.assert_close(whitened_coral(a @ change, b @ change, 0.0), whitened_coral(a, b, 0.0), rtol=1e-6, atol=0)


def test_equal_sides_and_equal_rows_cost_nothing() -> None:
    a, _ = two_sides()
    same = torch.ones(4, 3, requires_grad=True)
    for align in (coral_loss, whitened_coral):
        assert align(a, a.flip(0)).item() == pytest.approx(0, abs=1e-20)
        value = align(same, same)
        value.backward()
        assert value.item() == 0 and torch.isfinite(same.grad).all()


def test_half_precision_is_computed_in_single() -> None:
    a, b = (x.bfloat16() for x in two_sides())
    assert coral_loss(a, b).dtype == torch.float32 and batch_whiten(a, b)[0].dtype == torch.float32
    torch.testing.assert_close(coral_loss(a, b), coral_loss(a.float(), b.float()))


def test_what_makes_no_sense_is_refused() -> None:
    a, b = two_sides()
    for arguments, message in (
        ((a[:1], b), r"a: got .* shape \(1, 7\)"),
        ((a, b[:, :3]), "a and b: got widths 7 and 3"),
        ((a, b.long()), "b: got"),
        ((a[0], b), "a: got"),
    ):
        for function in (coral_loss, batch_whiten):
            with pytest.raises(InputError, match=message):
                function(*arguments)
    with pytest.raises(InputError, match="shrinkage"):
        batch_whiten(a, b, shrinkage=1.5)
