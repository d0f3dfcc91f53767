"""Shares, their factors, intervals, conflict, interaction and leverage: from sketches whose gradients are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from counterpoise._errors import InputError
from counterpoise.diagnostics import GradientSketch, conflict, group_shares, interaction, sketch_gradients
from counterpoise.diagnostics._from_sketch import leverage_of

G = 4


def gradients(m: int = 60, p: int = 15, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randint(G, (m,), generator=generator)
    means = torch.randn(G, p, generator=generator, dtype=torch.float64)
    return means[groups] + torch.randn(m, p, generator=generator, dtype=torch.float64), groups


def sketch(g: Tensor, groups: Tensor, **given: Any) -> GradientSketch:
    m, rows = len(g), G + bool((groups < 0).any())
    ids = torch.where(groups < 0, G, groups)
    known = {
        "norms_sq": g.square().sum(dim=1),
        "group_sums": torch.zeros(rows, g.shape[1], dtype=g.dtype).index_add_(0, ids, g),
        "along": g @ g.mean(dim=0),
    }
    return GradientSketch(
        losses=torch.ones(m, dtype=torch.float64),
        groups=groups,
        index=torch.arange(m),
        group_names=tuple("abcd"),
        **(known | given),
    )


def test_identities() -> None:
    g, groups = gradients()
    s = group_shares(sketch(g, groups), bootstrap=0)
    assert s.share.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(s.share, s.pi * s.rho * np.sqrt(s.alpha) * s.alignment / s.norm, rtol=1e-10)
    assert s.norm == pytest.approx(float(g.mean(dim=0).norm()), rel=1e-12)
    mu = g.mean(dim=0)
    for k in range(G):
        own = g[groups == k]
        assert s.share[k] == pytest.approx(float(own.sum(dim=0) @ mu / len(g) / (mu @ mu)), rel=1e-12)
        assert s.parity[k] == pytest.approx(s.share[k] / s.pi[k])
    assert s.magnitude_share.sum() == pytest.approx(1)


def test_leverage_is_the_share_of_each_example() -> None:
    g, groups = gradients()
    found = leverage_of(sketch(g, groups))
    assert found is not None and found.exact
    mu = g.mean(dim=0)
    np.testing.assert_allclose(found.values, (g @ mu / (len(g) * mu @ mu)).numpy(), rtol=1e-12)
    shares = group_shares(sketch(g, groups), bootstrap=0).share
    np.testing.assert_allclose(np.bincount(groups.numpy(), found.values, minlength=G), shares, rtol=1e-10)
    assert found.values.sum() == pytest.approx(1)
    assert found.to_frame()["index"][0] == int(np.argmax(np.abs(found.values)))
    rough = leverage_of(sketch(g, groups, along=None, S=g))
    assert rough is not None and not rough.exact
    np.testing.assert_allclose(rough.values, found.values, rtol=1e-10)
    assert leverage_of(sketch(g, groups, along=None)) is None


def test_examples_of_no_group_are_a_row_of_their_own() -> None:
    g, groups = gradients()
    groups[:7] = -1
    s = group_shares(sketch(g, groups), bootstrap=0)
    assert s.names == ("a", "b", "c", "d", "(none)") and s.count[-1] == 7
    assert s.share.sum() == pytest.approx(1, abs=1e-12)


def test_unbiased_coherence_of_few_examples() -> None:
    """Mean of 2000 draws of five examples: the usual coherence is far too high, the other is that of the population."""
    g, _ = gradients(m=400)
    population = g[:, :]
    m = len(population)
    inner = population @ population.T
    expected = float((inner.sum() - inner.trace()) / (m * (m - 1)) / (inner.trace() / m))
    generator = torch.Generator().manual_seed(1)
    plain, unbiased, energy = [], [], []
    for _ in range(2000):
        rows = torch.randperm(m, generator=generator)[:5]
        s = group_shares(sketch(population[rows], torch.zeros(5, dtype=torch.int64)), bootstrap=0)
        q = float(population[rows].square().sum(dim=1).mean())
        plain.append(s.alpha[0] * q)  # the numerators: a ratio of two estimates is not unbiased, whatever they are
        unbiased.append(s.alpha_unbiased[0] * q)
        energy.append(q)
    scale = float(inner.trace() / m)
    error = np.std(unbiased) / 2000**0.5
    assert abs(np.mean(unbiased) - expected * scale) < 3 * error
    assert abs(np.mean(plain) - expected * scale) > 10 * np.std(plain) / 2000**0.5
    # As a ratio of means, which is how it is read over many batches, it is that of the population as well.
    assert np.mean(unbiased) / np.mean(energy) == pytest.approx(expected, abs=4 * error / scale)


def test_groups_of_one_and_of_none() -> None:
    g, groups = gradients(m=20)
    groups = groups.clamp(max=1)
    groups[3] = 2
    s = group_shares(sketch(g, groups), bootstrap=50)
    assert s.count.tolist()[2:] == [1, 0]
    assert s.alpha[2] == pytest.approx(1) and np.isnan(s.alpha_unbiased[2])
    assert np.isnan(s.rho[3]) and np.isnan(s.alpha_unbiased[3]) and s.share[3] == 0
    assert np.nansum(s.share) == pytest.approx(1)


def test_nothing_to_divide() -> None:
    groups = torch.arange(8) % G
    s = group_shares(sketch(torch.zeros(8, 3, dtype=torch.float64), groups), bootstrap=20)
    assert np.isnan(s.share).all() and s.norm == 0
    half = torch.ones(8, 3, dtype=torch.float64) * torch.tensor([1.0, -1] * 4)[:, None]
    assert np.isnan(group_shares(sketch(half, groups), bootstrap=0).share).all()


def test_intervals_from_gramian_and_projection_agree() -> None:
    g, groups = gradients(m=200)
    by_gramian = group_shares(sketch(g, groups, gramian=g @ g.T), seed=3)
    by_rows = group_shares(sketch(g, groups, S=g), seed=3)
    np.testing.assert_allclose(by_gramian.share_lo, by_rows.share_lo, rtol=1e-9)
    np.testing.assert_allclose(by_gramian.share_hi, by_rows.share_hi, rtol=1e-9)
    assert (by_rows.share_lo < by_rows.share).all() and (by_rows.share < by_rows.share_hi).all()
    wider = group_shares(sketch(g, groups, S=g), seed=3, level=0.99)
    assert (wider.share_hi - wider.share_lo > by_rows.share_hi - by_rows.share_lo).all()
    assert np.isnan(group_shares(sketch(g, groups)).share_lo).all()


def test_projection_alone() -> None:
    """Without group sums the shares are those of the projection."""
    g, groups = gradients()
    s = group_shares(sketch(g, groups, group_sums=None, S=g), bootstrap=0)
    np.testing.assert_allclose(s.share, group_shares(sketch(g, groups), bootstrap=0).share, rtol=1e-10)
    with pytest.raises(InputError, match="neither group sums nor a projection"):
        group_shares(sketch(g, groups, group_sums=None))


@pytest.mark.parametrize("steps", [0, 15])
def test_intervals_cover_the_share_of_the_population(steps: int) -> None:
    """60 probes of 512 digits with 95 % intervals: between 85 and 100 % of them hold the share of all digits."""
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    options: dict[str, Any] = {"leverage": False, "check": False, "batch_size": 512}
    population = group_shares(sketch_gradients(model, nn.CrossEntropyLoss(), (x, y), sketch_dim=0, **options), bootstrap=0).share
    generator = torch.Generator().manual_seed(1)
    covered = []
    for seed in range(60):
        rows = torch.randint(len(y), (512,), generator=generator)
        probe = sketch_gradients(model, nn.CrossEntropyLoss(), (x[rows], y[rows]), sketch_dim=256, seed=seed, **options)
        s = group_shares(probe, bootstrap=100, seed=seed)
        covered.append((s.share_lo <= population) & (population <= s.share_hi))
    assert 0.85 <= np.mean(covered) <= 1.0
    assert np.mean(covered) > 0.9 or steps == 0


def test_conflict() -> None:
    e = torch.eye(3, dtype=torch.float64)
    g = torch.stack([e[0], e[0], -e[0], e[1]])
    report = conflict(sketch(g, torch.arange(4)))
    assert report.mass == pytest.approx(2 / 3)
    np.testing.assert_allclose(report.cosine[0], [1, 1, -1, 0], atol=1e-12)
    assert report.to_frame().row(0)[2] == pytest.approx(-1)
    assert "67 %" in report.summary()


def test_interaction_is_the_change_of_the_losses() -> None:
    """To first order: take the step of one group and look at the loss of another."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(30, 5, dtype=torch.float64), torch.arange(30) % 3
    B = interaction(sketch_gradients(model, nn.CrossEntropyLoss(), (x, y)), lr=1e-6)

    def losses() -> Tensor:
        with torch.no_grad():
            each = F.cross_entropy(model(x), y, reduction="none")
        return torch.stack([each[y == k].mean() for k in range(3)])

    before = losses()
    for other in range(3):
        found = torch.autograd.grad(F.cross_entropy(model(x), y, reduction="none")[y == other].sum() / 30, list(model.parameters()))
        with torch.no_grad():
            for p, d in zip(model.parameters(), found, strict=True):
                p -= 1e-6 * d
            change = (losses() - before).numpy()
            for p, d in zip(model.parameters(), found, strict=True):
                p += 1e-6 * d
        np.testing.assert_allclose(B[:, other], change, rtol=1e-4, atol=1e-13)


def test_bad_input() -> None:
    g, groups = gradients()
    with pytest.raises(InputError, match=r"bootstrap: got -1"):
        group_shares(sketch(g, groups), bootstrap=-1)
    with pytest.raises(InputError, match=r"level: got 2"):
        group_shares(sketch(g, groups), level=2.0)
    with pytest.raises(InputError, match="no group sums"):
        interaction(sketch(g, groups, group_sums=None, S=g))
    with pytest.raises(InputError, match="lr: got -1"):
        interaction(sketch(g, groups), lr=-1.0)
    with pytest.raises(InputError, match="no group sums"):
        group_shares(sketch(g, groups, group_sums=None, S=g), optimizer=torch.optim.SGD([torch.zeros(1)], lr=0.1))
