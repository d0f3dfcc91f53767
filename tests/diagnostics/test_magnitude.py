from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from counterpoise import CounterpoiseError
from counterpoise.diagnostics import MagnitudeSimilarity, magnitude_similarity, sketch_gradients
from counterpoise.gradients import SAMGS
from tests.batteries.diagnoses import DIAGNOSIS_CHECKS, DiagnosisCase


def of_classes(model: nn.Module, data: Any, loss: Any) -> MagnitudeSimilarity:
    """Of the gradients of the classes."""
    sums = sketch_gradients(model, loss, data, groups="target", batchnorm="eval").group_sums
    return magnitude_similarity(sums @ sums.T)


@pytest.mark.parametrize("check", DIAGNOSIS_CHECKS, ids=lambda check: check.__name__)
def test_battery(check: Callable[[DiagnosisCase], None]) -> None:
    check(DiagnosisCase("magnitude_similarity", of_classes))


def gramian(m: int = 5, n: int = 12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(m, n, generator=generator, dtype=torch.float64) * torch.logspace(-1, 1, m, dtype=torch.float64)[:, None]
    return rows @ rows.T


def test_similarities_are_those_of_the_lengths() -> None:
    G = gramian()
    report = magnitude_similarity(G)
    length = G.diagonal().sqrt().numpy()
    ratio = length[:, None] / length
    np.testing.assert_allclose(report.matrix, 2 / (ratio + 1 / ratio), rtol=1e-12)
    np.testing.assert_allclose(report.norms, length, rtol=1e-12)
    pairs = [report.matrix[i, j] for i in range(5) for j in range(i)]
    assert report.mean_similarity == pytest.approx(np.mean(pairs)) and report.minimum == min(pairs)
    for unit in (1e-300, 1e-12, 1e12, 1e300):  # squared lengths
        np.testing.assert_allclose(magnitude_similarity(unit * G).matrix, report.matrix, rtol=1e-12)
    for same in (G.float(), G.numpy(), G.tolist(), G.clone().requires_grad_()):
        np.testing.assert_allclose(magnitude_similarity(same).matrix, report.matrix, rtol=1e-6)


def test_it_is_what_the_aggregator_goes_by() -> None:
    rows = torch.randn(4, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64).mul(
        torch.tensor([[1.0], [5.0], [2.0], [9.0]])
    )
    report = magnitude_similarity(rows @ rows.T)
    for similarity, expected in (("mean", report.mean_similarity), ("min", report.minimum)):
        aggregator = SAMGS(similarity=similarity)
        aggregator(rows)
        assert aggregator.last["psi"] == pytest.approx(expected, rel=1e-12)


def test_the_table_has_the_least_alike_first() -> None:
    frame = magnitude_similarity(torch.diag(torch.tensor([1.0, 9.0, 100.0]))).to_frame()
    assert frame.rows() == [
        (0, 2, pytest.approx(20 / 101), pytest.approx(10.0)),
        (1, 2, pytest.approx(60 / 109), pytest.approx(10 / 3)),
        (0, 1, pytest.approx(0.6), pytest.approx(3.0)),
    ]
    assert frame.columns == ["shorter", "longer", "similarity", "ratio"]


def test_gradients_of_zero_are_like_none() -> None:
    report = magnitude_similarity(torch.diag(torch.tensor([4.0, 0.0, 1.0, 0.0])))
    assert report.matrix.tolist() == [[1, 0, 0.8, 0], [0, 1, 0, 0], [0.8, 0, 1, 0], [0, 0, 0, 1]]
    assert report.minimum == 0 and report.mean_similarity == pytest.approx(0.8 / 6)
    assert report.summary().endswith("Zero: gradient 1, 3.")
    assert set(report.to_frame()["ratio"]) == {2.0, float("inf"), 1.0}
    nothing = magnitude_similarity(torch.zeros(2, 2))
    assert nothing.minimum == 0 and nothing.summary().endswith("All are zero.")
    assert report.plot() is not None and nothing.plot() is not None


def test_words_and_picture() -> None:
    report = magnitude_similarity(torch.diag(torch.tensor([1.0, 10_000.0])))
    assert report.summary().endswith("Gradient 1 is 100 times as long as gradient 0.")
    assert "times as long as gradient" not in magnitude_similarity(torch.eye(3)).summary()
    figure = report.plot()
    words = [text.get_text() for text in [*figure.texts, *figure.axes[0].texts]]
    assert "gradient 1" in words and "0.01" in words and any("mean 0.02" in word for word in words)
    many = magnitude_similarity(torch.diag(torch.arange(1.0, 41.0))).plot()
    assert any("16 shorter ones not shown" in text.get_text() for text in many.texts)


def test_what_is_no_gramian_is_refused() -> None:
    for wrong, message in (
        (torch.ones(2, 3), r"gramian: got shape \(2, 3\); expected a square matrix.*rows @ rows\.T"),
        (torch.ones(3), "expected a square matrix"),
        (torch.ones(1, 1), "got 1 gradients; expected at least two"),
        (torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), "got nan or inf"),
        (torch.tensor([[1.0, 0.0], [0.0, -2.0]]), "got -2 on its diagonal"),
        (torch.tensor([[1.0, 0.5], [0.0, 2.0]]), "not symmetric"),
    ):
        with pytest.raises(CounterpoiseError, match=message):
            magnitude_similarity(wrong)
