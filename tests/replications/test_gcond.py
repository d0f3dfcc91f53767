from __future__ import annotations

import numpy as np
import pytest
import torch

from counterpoise.gradients import GCond
from counterpoise.replications import gcond as module
from counterpoise.replications._types import Claim


@pytest.fixture(scope="module")
def quick():
    return module.run(quick=True, seeds=(0,))


def test_every_claim_has_a_finding(quick) -> None:
    assert {finding.claim for finding in quick.findings} == {claim.key for claim in module.CLAIMS}
    assert set(quick.verdicts) == {"better", "variance", "cost", "harmless"}
    assert quick.quick and quick.seeds == (0,) and quick.figure is not None
    names = [(finding.claim, finding.name) for finding in quick.findings]
    assert len(set(names)) == len(names)
    assert [row["arm"] for row in quick.tables["Means over seeds"]] == list(module.ARMS)


def test_losses_that_agree_leave_the_sum(quick) -> None:
    (row,) = (row for row in quick.tables["L1 and 1 - SSIM"] if row["output"] == "sigmoid")
    assert row["smallest cosine"] > 0 and row["largest difference"] == 0 and quick.verdicts["harmless"] == "replicated"


def test_runs_are_repeatable_and_arms_differ(quick) -> None:
    runs = {row["arm"]: row for row in quick.tables["Runs"]}
    again = module.train(0, module.GCOND, module.QUICK_UPDATES)
    first = runs[module.GCOND]
    assert (again["accuracy"], again["mse"]) == (pytest.approx(first["test accuracy"]), pytest.approx(first["test MSE"]))
    assert len({row["test MSE"] for row in runs.values()}) == len(module.ARMS)


def test_batches_and_their_gradients() -> None:
    data, net = module._digits(0), module.network(0)
    index = module.batches(np.random.default_rng(0))
    assert index.shape == (8, 32) and len(np.unique(index)) == 256
    rows, own = module.accumulated(net, data, index, stochastic=False)
    half, own_half = module.accumulated(net, data, index, stochastic=True)
    assert rows.shape == (8, 2, 4550) and half.shape == (4, 2, 4550)
    assert torch.equal(half[:, 0], rows[:4, 0]) and torch.equal(half[:, 1], rows[4:, 1])  # each micro-batch serves one loss
    whole = module._losses(net, data, index.ravel(), module.TASKS)
    for i, task in enumerate(module.TASKS):
        parameters = [*net["trunk"].parameters(), *net[task].parameters()]
        expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(whole[task], parameters, retain_graph=True)])
        torch.testing.assert_close(torch.cat([rows.mean(dim=0)[i], own[i]]), expected, rtol=1e-4, atol=1e-6)
        assert own_half[i].shape == own[i].shape and not torch.equal(own_half[i], own[i])


def test_the_momentum_of_all_arms_is_that_of_gcond() -> None:
    rows = torch.randn(5, 2, 30, generator=torch.Generator().manual_seed(0))
    gcond, without, mean = GCond(momentum=module.MOMENTUM), GCond(momentum=0.0), 0.0
    for t, J in enumerate(rows, 1):
        mean = module.MOMENTUM * mean + (1 - module.MOMENTUM) * without(J)
        torch.testing.assert_close(gcond(J), mean / (1 - module.MOMENTUM**t))


def test_ssim_is_one_for_equal_images_and_less_for_others() -> None:
    X = module._digits(0)["X"][:20]
    assert module.ssim(X, X).item() == pytest.approx(1.0)
    assert module.ssim(X, X.flip(0)).item() < 0.5 < module.ssim(X, 0.95 * X).item()
    # Tiled with a period of 3, every window of an image holds the same nine values: the mean over windows is one window by hand.
    tile = np.random.default_rng(0).random((2, 3, 3))
    a, b = tile
    tiled = [torch.from_numpy(np.tile(one, (3, 3))[:8, :8].reshape(1, 64)) for one in tile]
    by_hand = (2 * a.mean() * b.mean() + 1e-4) * (2 * ((a - a.mean()) * (b - b.mean())).mean() + 9e-4)
    by_hand /= (a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (a.var() + b.var() + 9e-4)
    assert module.ssim(*tiled).item() == pytest.approx(by_hand)


def test_noise_is_taken_out_of_the_cosine() -> None:
    found = module.cosines(1, 5, 30)
    assert abs(found["unbiased"] - found["all"]) < abs(np.mean(found["single"]) - found["all"])
    assert len(found["single"]) == 8 * 30 and len(found["mean"]) == 30


def test_verdicts_follow_the_rules() -> None:
    claim = Claim("better", "text", "criterion")

    def verdict(accuracy, mse):
        rows = []
        for seed, (a, m) in enumerate(zip(accuracy, mse, strict=True)):
            rows += [{"arm": module.SUM, "seed": seed, "accuracy": 0.9, "mse": 0.04}]
            rows += [{"arm": module.GCOND, "seed": seed, "accuracy": 0.9 + a, "mse": 0.04 + m}]
        return module._better(claim, rows).verdict

    assert verdict([0.01, 0.02, 0.0], [-0.01, -0.02, -0.01]) == "replicated"
    assert verdict([0.01, 0.02, 0.0], [0.01, 0.02, 0.01]) == "not replicated"
    assert verdict([-0.01, -0.02, -0.01], [-0.01, -0.02, -0.01]) == "not replicated"
    assert verdict([0.01, 0.02, 0.0], [-0.01, 0.02, -0.01]) == "undecided"
    assert verdict([0.01], [-0.01]) == "undecided"
    mean, low, high = module._bootstrap([1.0, 2.0, 3.0])
    assert mean == 2 and 1 <= low < 2 < high <= 3
