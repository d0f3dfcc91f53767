"""Sampling noise lengthens mean gradients and hides conflicts; with several parts it can be told from the signal."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from counterpoise import CounterpoiseError
from counterpoise.gradients import MGDA, Aggregator, CAGrad, GradientStatistics, GradNorm, PCGrad
from counterpoise.gradients._statistics import unbiased_gramian

CLASSICAL = [PCGrad, CAGrad, MGDA, GradNorm]


def parts_of(signal: Tensor, k: int, noise: float, generator: torch.Generator, draws: int = 1) -> Tensor:
    """Gradients (draws, K, m, n) of k parts: the signal, and noise that losses of one part share in half."""
    m, n = signal.shape
    shared = torch.randn(draws, k, 1, n, generator=generator, dtype=torch.float64)
    own = torch.randn(draws, k, m, n, generator=generator, dtype=torch.float64)
    return signal + noise * (shared + own) / 2**0.5


def gramians(parts: Tensor) -> tuple[Tensor, Tensor, int]:
    """Of the means, of the parts summed, and how many there are."""
    mean = parts.mean(dim=-3)
    return mean @ mean.mT, (parts @ parts.mT).sum(dim=-3), parts.shape[-3]


@pytest.mark.parametrize(("k", "noise"), [(2, 1.0), (8, 4.0)])
def test_the_unbiased_gramian_is_unbiased(k: int, noise: float) -> None:
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(3, 10, generator=generator, dtype=torch.float64)
    population = signal @ signal.T
    means, sums, _ = gramians(parts_of(signal, k, noise, generator, draws=2000))
    found = torch.stack([unbiased_gramian(mean, one, k) for mean, one in zip(means, sums, strict=True)])
    error = found.std(dim=0) / 2000**0.5
    assert ((found.mean(dim=0) - population).abs() < 3 * error).all()
    # What it corrects is visible: the Gramian of the mean, and all the more the mean of Gramians, are too large.
    assert ((means.mean(dim=0) - population).diagonal() > 10 * error.diagonal()).all()
    assert ((sums.mean(dim=0) / k - means.mean(dim=0)).diagonal() > 0).all()


def test_it_is_the_mean_over_pairs_of_different_parts() -> None:
    parts = parts_of(torch.zeros(4, 6, dtype=torch.float64), 5, 1.0, torch.Generator().manual_seed(1))[0]
    pairs = torch.stack([parts[k] @ parts[j].T for k in range(5) for j in range(5) if k != j])
    torch.testing.assert_close(unbiased_gramian(*gramians(parts)), pairs.mean(dim=0))


def test_parts_without_noise_change_nothing() -> None:
    signal = torch.randn(4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(unbiased_gramian(*gramians(signal.expand(3, 4, 6))), signal @ signal.T)


def test_one_part_tells_nothing() -> None:
    assert unbiased_gramian(torch.eye(3), torch.eye(3), 1) is None
    assert unbiased_gramian(torch.eye(2), torch.eye(2), torch.tensor([1.0, 5.0]), torch.eye(2)) is None  # of the first there is one


def test_gradients_with_parts_of_their_own() -> None:
    """Products of different data carry no common noise: only lengths are corrected."""
    parts = parts_of(torch.zeros(1, 6, dtype=torch.float64), 5, 1.0, torch.Generator().manual_seed(5))[0][:, 0]
    a, b = parts[:2], parts[2:]
    means = torch.stack([a.mean(dim=0), b.mean(dim=0)])
    own = torch.diag(torch.stack([a.square().sum(), b.square().sum()]))
    found = unbiased_gramian(means @ means.T, own, torch.tensor([2.0, 3.0]), torch.diag(torch.tensor([2.0, 3.0])))
    torch.testing.assert_close(found[0, 1], means[0] @ means[1])
    torch.testing.assert_close(found[0, 0], a[0] @ a[1])
    torch.testing.assert_close(found[1, 1], (b[0] @ b[1] + b[0] @ b[2] + b[1] @ b[2]) / 3)


def seeded(kind: type[Aggregator], denoise: bool) -> Aggregator:
    options = {"generator": torch.Generator().manual_seed(0)} if kind is PCGrad else {}
    return kind(denoise=denoise, **options)


@pytest.mark.parametrize("kind", CLASSICAL)
def test_denoised_weights_are_those_of_the_unbiased_gramian(kind: type[Aggregator]) -> None:
    generator = torch.Generator().manual_seed(3)
    noisy, signal = (torch.randn(4, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    s = GradientStatistics.from_rows([noisy])
    known = replace(s, gramian_unbiased=signal @ signal.T)
    denoised, clean, plain = seeded(kind, True), seeded(kind, False), seeded(kind, False)
    for _ in range(2):  # GradNorm's first weights are 1
        found, expected = denoised.weights(known), clean.weights(GradientStatistics.from_rows([signal]))
        raw = plain.weights(known)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, raw)
    with pytest.raises(CounterpoiseError, match="denoise: got True; expected gradients in at least two parts"):
        seeded(kind, True).weights(s)


@pytest.mark.parametrize("kind", CLASSICAL)
def test_an_indefinite_estimate_gives_finite_weights(kind: type[Aggregator]) -> None:
    """Signal in the first row alone: with so much noise the estimate has negative eigenvalues, and lengths of 0."""
    generator = torch.Generator().manual_seed(4)
    signal = torch.zeros(5, 40, dtype=torch.float64)
    signal[0, 0] = 30.0
    aggregator, negative = seeded(kind, True), 0
    for parts in parts_of(signal, 3, 1.0, generator, draws=50):
        estimate = unbiased_gramian(*gramians(parts))
        negative += int(torch.linalg.eigvalsh(estimate)[0] < 0)
        s = replace(GradientStatistics.from_rows([parts.mean(dim=0)]), gramian_unbiased=estimate)
        weights = aggregator.weights(s)
        assert torch.isfinite(weights).all() and (weights >= 0).all() and weights.max() < 1e4
    assert negative == 50


def test_rows_of_noise_alone_are_at_rest() -> None:
    """What is left of their length where negative eigenvalues are set to 0 is no signal."""
    generator = torch.Generator().manual_seed(5)
    rows, signal = (torch.randn(4, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    signal[2] = 0
    estimate = signal @ signal.T
    estimate[2, :2] = estimate[:2, 2] = 1e-8
    s = replace(GradientStatistics.from_rows([rows]), gramian_unbiased=estimate)
    for kind, expected in ((MGDA, 0.0), (CAGrad, 0.25), (PCGrad, 1.0), (GradNorm, 1.0)):
        aggregator = seeded(kind, True)
        assert 0 < aggregator.gramian(s)[2, 2] < 1e-12
        weights = aggregator.weights(s)
        assert weights[2] == expected
        assert (weights >= 0).all() and weights.max() < 100
