from __future__ import annotations

import pytest
import torch

from counterpoise import _order_statistics
from counterpoise._order_statistics import _by_sorting, median, order_bounds, winsorized_mean


def rows(m: int, n: int = 60, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(m, n, generator=generator, dtype=torch.float64)
    values[:, ::7] = values[:, ::7].round()  # ties
    return values


@pytest.mark.parametrize("m", [1, 2, 3, 5, 8, 13, 31, 32, 33, 70])
def test_bounds_are_those_of_the_sorted_columns(m) -> None:
    x = rows(m)
    expected = x.sort(dim=0).values
    for k in range(m):
        low, high = order_bounds(x, k)
        assert torch.equal(low, expected[k]) and torch.equal(high, expected[m - 1 - k])


@pytest.mark.parametrize("m", [1, 3, 8, 33])
def test_a_gpu_sorts_to_the_same_numbers(m) -> None:
    x = rows(m)
    x[m // 2, :20], x[m // 3, 10:30] = float("nan"), float("inf")
    for k in range(m):
        for bound, found in zip(order_bounds(x, k), _by_sorting(x, k), strict=True):
            torch.testing.assert_close(found, bound, rtol=0, atol=0, equal_nan=True)
            assert found[:10].isnan().all()


@pytest.mark.parametrize("m", [1, 2, 5, 8, 33])
def test_mean_and_median(m) -> None:
    x = rows(m)
    ordered = x.sort(dim=0).values
    for trim in range((m + 1) // 2):
        expected = x.clamp(ordered[trim], ordered[m - 1 - trim]).mean(dim=0)
        torch.testing.assert_close(winsorized_mean(x, trim), expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(median(x), x.quantile(0.5, dim=0), rtol=1e-12, atol=1e-15)


def test_a_median_of_odd_many_is_one_of_them() -> None:
    x = rows(7).float() / 3
    assert torch.equal(median(x), x.median(dim=0).values)
    huge = torch.tensor([[3e38], [3e38], [-3e38], [3e38]])
    assert median(huge).item() == pytest.approx(3e38)  # no overflow on the way


def test_parts_do_not_show(monkeypatch) -> None:
    x = rows(9, 100)
    whole = winsorized_mean(x, 2), median(x)
    monkeypatch.setattr(_order_statistics, "CACHED", 9 * 7)
    torch.testing.assert_close((winsorized_mean(x, 2), median(x)), whole)


def test_half_precision_is_averaged_in_single() -> None:
    x = 1000 + rows(64)
    for dtype in (torch.float16, torch.bfloat16):
        rounded = x.to(dtype)
        for trim in (0, 5):
            found = winsorized_mean(rounded, trim)
            assert found.dtype == dtype
            assert torch.equal(found, winsorized_mean(rounded.float(), trim).to(dtype))


def test_no_columns() -> None:
    assert winsorized_mean(torch.ones(5, 0), 2).shape == median(torch.ones(5, 0)).shape == (0,)
