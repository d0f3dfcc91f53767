from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from counterpoise import CounterpoiseError
from counterpoise.diagnostics import CollapseReport, _feature_collapse, feature_collapse
from counterpoise.losses import ConRLoss
from tests.batteries.diagnoses import DIAGNOSIS_CHECKS, DiagnosisCase

EDGES = [0, 10, 20, 30]


def of_a_layer(model: Any, data: Any, _: Any) -> CollapseReport:
    """Features and predictions as the caller computes them."""
    x = data[0]
    if model.fail:
        raise KeyError("a failure inside the model")
    with torch.no_grad():
        features = model.layer(x)
    return feature_collapse(features, x[:, 1], features[:, 0], window=0.2)


@pytest.mark.parametrize("check", DIAGNOSIS_CHECKS, ids=lambda check: check.__name__)
def test_battery(check: Callable[[DiagnosisCase], None]) -> None:
    check(DiagnosisCase("feature_collapse", of_a_layer, one_batch=True))


def problem(n: int = 60) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    targets = 30 * torch.rand(n, generator=g, dtype=torch.float64).square()
    return torch.randn(n, 4, generator=g, dtype=torch.float64), targets, targets + 4 * torch.randn(n, generator=g, dtype=torch.float64)


def by_pairs(z: torch.Tensor, y: torch.Tensor, p: torch.Tensor, w: float) -> list[list[float]]:
    """Shares, cosines and confusion of the three bins, pair by pair."""
    n = len(y)
    place = [min(int(value // 10), 2) for value in y]
    negative = [any(abs(y[i] - y[j]) > w and abs(p[i] - p[j]) <= w for j in range(n)) for i in range(n)]
    alike = [[j for j in range(n) if j != i and abs(p[i] - p[j]) <= w] for i in range(n)]
    differ = [[j for j in alike[i] if abs(y[i] - y[j]) > w] for i in range(n)]
    cosine = nn.functional.cosine_similarity(z[:, None], z[None], dim=2)
    rows = [[i for i in range(n) if place[i] == k] for k in range(3)]
    majority = max(range(3), key=lambda k: len(rows[k]))

    def mean(a: list[int], b: list[int]) -> float:
        return float(np.mean([cosine[i, j] for i in a for j in b if i != j]))

    return [
        [float(np.mean([negative[i] for i in part])) for part in rows],
        [mean(part, rows[majority]) for part in rows],
        [mean(part, part) for part in rows],
        [sum(len(differ[i]) for i in part) / sum(len(alike[i]) for i in part) for part in rows],
    ]


def test_it_is_the_mean_over_pairs(monkeypatch) -> None:
    z, y, p = problem()
    report = feature_collapse(z, y, p, 1.0, bins=EDGES)
    share, to_majority, within, confused = by_pairs(z, y, p, 1.0)
    assert report.majority == 0 and report.count.sum() == 60 and 0 < report.negative_share.mean() < 1
    np.testing.assert_allclose(report.negative_share, share, rtol=1e-12)
    np.testing.assert_allclose(report.confused_share, confused, rtol=1e-12)
    np.testing.assert_allclose(report.cosine_to_majority, to_majority, rtol=1e-9)
    np.testing.assert_allclose(report.cosine_within, within, rtol=1e-9)
    monkeypatch.setattr(_feature_collapse, "PAIRS_AT_ONCE", 7 * 60)
    np.testing.assert_array_equal(feature_collapse(z, y, p, 1.0, bins=EDGES).negative_share, report.negative_share)


def test_it_counts_the_anchors_that_the_loss_pushes() -> None:
    z, y, p = problem()
    y = y.repeat(2)  # every row has a positive, its copy
    report = feature_collapse(z.repeat(2, 1), y, p.repeat(2), 1.0, bins=EDGES)
    charged = ConRLoss(1.0, reduction="none")(z.repeat(2, 1), y, p.repeat(2)) > 0
    assert charged.sum().item() == round(float((report.negative_share * report.count).sum()))


def test_arrays_and_tensors_of_any_kind() -> None:
    z, y, p = problem()
    expected = feature_collapse(z, y, p, 1.0, bins=EDGES)
    for same in (
        (z.numpy(), y.numpy(), p.tolist()),
        (z.reshape(60, 2, 2), y[:, None], p[:, None]),
        (z.clone().requires_grad_(), y.clone().requires_grad_(), p),
    ):
        np.testing.assert_allclose(feature_collapse(*same, 1.0, bins=EDGES).cosine_to_majority, expected.cosine_to_majority, rtol=1e-12)


def test_bins_without_rows_and_rows_without_bins() -> None:
    z, y, p = torch.eye(4), torch.tensor([1.0, 2.0, 25.0, 99.0]), torch.tensor([1.0, 50.0, 98.0, 98.0])
    report = feature_collapse(z, y, p, 1.0, bins=EDGES)
    assert report.count.tolist() == [2, 0, 1]
    assert report.negative_share[[0, 2]].tolist() == [0, 1] and np.isnan(report.negative_share[1])  # the partner lies in no bin
    assert report.cosine_within[0] == 0 and np.isnan(report.cosine_within[1:]).all()
    assert report.plot() is not None and "[20, 30]" in report.summary()
    alone = feature_collapse(z, torch.full((4,), 3.0), p, 1.0, bins=[0, 10])
    assert alone.summary().endswith("All rows lie in [0, 10].") and alone.plot() is not None


def test_words_table_and_picture() -> None:
    y = np.repeat([5.0, 15.0, 25.0], [50, 10, 5])
    z = np.repeat([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]], [50, 10, 5], axis=0)
    z[60:, 1] += [0.0, 0.2, 0.4, -0.4, -0.9]
    report = feature_collapse(z, y, np.where(y == 25, 5.0, y), 2.0, bins=EDGES)
    assert report.negative_share.tolist() == [1, 0, 1]
    lines = report.summary().splitlines()
    assert lines[0].startswith("84.6 % of 65 rows have a negative pair: predicted within 2 of each other")
    # Of the 54 rows predicted like one of the five, 50 have another target.
    assert lines[1].startswith("Most confused is [20, 30] (5 of the rows): 92.6 % of what is predicted alike differs; cosine 0.9")
    assert lines[1].endswith("to the majority, [0, 10).")
    assert lines[2] == "No more alike within than to the majority: [20, 30]."
    frame = report.to_frame()
    assert (
        frame.columns == ["bin", "count", "negative_share", "confused_share", "cosine_to_majority", "cosine_within"] and frame.height == 3
    )
    words = [text.get_text() for ax in report.plot().axes for text in ax.texts]
    assert {"[0, 10)", "[10, 20)", "[20, 30]", "50"} <= set(words)


def test_what_makes_no_sense_is_refused() -> None:
    z, y, p = problem()
    nan = p.clone()
    nan[0] = float("nan")
    for arguments, message in (
        ((z, y, p, 0.0), "window: got 0.0"),
        ((z, y[:-1], p, 1.0), "targets: got shape"),
        ((z, y, p[:, None].expand(-1, 2), 1.0), "predictions: got shape"),
        ((z, y, nan, 1.0), "predictions: got nan or inf"),
        ((z[:, 0], y, p, 1.0), "features: got shape"),
        ((z[:1], y[:1], p[:1], 1.0), "features: got shape"),
        ((np.full((60, 2), "a"), y, p, 1.0), "features: got an array of <U1"),
    ):
        with pytest.raises(CounterpoiseError, match=message):
            feature_collapse(*arguments)
    with pytest.raises(CounterpoiseError, match="bins"):
        feature_collapse(z, y, p, 1.0, bins=[100, 200])
