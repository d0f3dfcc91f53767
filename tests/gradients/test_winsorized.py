from __future__ import annotations

import pytest
import torch

from counterpoise import CounterpoiseError, Groups
from counterpoise.gradients import WinsorizedMean


def rows(m: int = 32, n: int = 20) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def clipped(x: torch.Tensor, k: int) -> torch.Tensor:
    ordered = x.sort(dim=0).values
    return x.clamp(ordered[k], ordered[len(x) - 1 - k]).mean(dim=0)


@pytest.mark.parametrize(
    ("options", "m", "k"),
    [
        ({}, 32, 3),
        ({}, 9, 0),
        ({"percent": 0}, 32, 0),
        ({"percent": 25}, 32, 8),
        ({"percent": 50}, 32, 15),
        ({"percent": 50}, 31, 15),
        ({"percent": 7}, 100, 7),
        ({"trim": 0}, 32, 0),
        ({"trim": 15}, 32, 15),
        ({"trim": 2, "percent": 50}, 5, 2),
    ],
)
def test_how_much_is_clipped(options, m, k) -> None:
    torch.testing.assert_close(WinsorizedMean(**options)(rows(m)), clipped(rows(m), k))


def test_half_is_the_median() -> None:
    for m in (1, 2, 9, 10):
        torch.testing.assert_close(WinsorizedMean(percent=50)(rows(m)), rows(m).quantile(0.5, dim=0))


def test_outliers_up_to_the_trim_do_not_reach_the_result() -> None:
    x = rows()
    spoiled = x.clone()
    spoiled[[3, 20]] = 1e12
    spoiled[[4, 9]] = -3e12
    ordinary, found = WinsorizedMean(trim=2)(x), WinsorizedMean(trim=2)(spoiled)
    assert (found - ordinary).abs().max() < 1
    assert WinsorizedMean(trim=1)(spoiled).abs().max() > 1e10


def test_three_micro_batches() -> None:
    x = rows(8)
    means = torch.stack([x[:3].mean(dim=0), x[3:6].mean(dim=0), x[6:].mean(dim=0)])
    torch.testing.assert_close(WinsorizedMean(mode="median3")(x), means.median(dim=0).values)
    torch.testing.assert_close(WinsorizedMean(mode="median3")(x[:2]), x[:2].mean(dim=0))


def test_within_groups_each_group_is_clipped_by_itself() -> None:
    x, labels = rows(), ["a"] * 20 + ["b"] * 7 + ["c"] * 4 + [None]
    # Counts 20, 7, 4, 1 allow for 2, 2, 1, 0.
    parts = [(x[:20], 2), (x[20:27], 2), (x[27:31], 1), (x[31:], 0)]
    expected = sum(len(part) / 32 * clipped(part, k) for part, k in parts)
    for groups in (labels, Groups.from_labels(labels), torch.tensor([0] * 20 + [5] * 7 + [2] * 4 + [-1])):
        torch.testing.assert_close(WinsorizedMean(trim=2)(x, groups=groups), expected)
        by_name = WinsorizedMean(trim=2)({"w": x[:, :12].reshape(32, 3, 4), "b": x[:, 12:]}, groups)
        torch.testing.assert_close(torch.cat([by_name["w"].reshape(-1), by_name["b"]]), expected)
    percent = sum(len(part) / 32 * clipped(part, k) for (part, _), k in zip(parts, (5, 1, 1, 0), strict=True))
    torch.testing.assert_close(WinsorizedMean(percent=25)(x, groups=labels), percent)
    torch.testing.assert_close(WinsorizedMean(trim=2)(x, groups=[0] * 32), WinsorizedMean(trim=2)(x))


def test_what_only_a_rare_group_asks_for() -> None:
    x = torch.zeros(32, 3)
    x[:2, 1] = 16.0  # two rows of a rare class
    assert WinsorizedMean(trim=2)(x)[1] == 0
    assert WinsorizedMean(trim=2)(x, groups=[1, 1] + [0] * 30)[1] == 1


def test_bad_input() -> None:
    for trim, m in ((16, 32), (3, 6), (1, 1)):
        with pytest.raises(CounterpoiseError, match=f"trim: got {trim}; expected less than half of the {m} rows"):
            WinsorizedMean(trim=trim)(rows(m))
    for options, message in (
        ({"trim": -1}, "trim: got -1"),
        ({"trim": 1.5}, "trim: got 1.5; expected an integer"),
        ({"percent": 51}, "percent: got 51"),
        ({"mode": "median"}, "mode: got 'median'.*Did you mean 'median3'"),
    ):
        with pytest.raises(CounterpoiseError, match=message):
            WinsorizedMean(**options)
    with pytest.raises(CounterpoiseError, match=r"groups: got shape \(3,\); expected one label for each of the 32 rows"):
        WinsorizedMean()(rows(), groups=[0, 1, 2])
    spoiled = rows()
    spoiled[4, 4] = float("nan")
    with pytest.raises(CounterpoiseError, match="nan or inf in row 4"):
        WinsorizedMean()(spoiled, groups=[0] * 32)


def test_repr() -> None:
    assert [repr(WinsorizedMean(**options)) for options in ({}, {"trim": 2}, {"mode": "median3"})] == [
        "WinsorizedMean(percent=10)",
        "WinsorizedMean(trim=2)",
        "WinsorizedMean(mode='median3')",
    ]
