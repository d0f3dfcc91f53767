from __future__ import annotations

import numpy as np
import pytest
import torch

from counterpoise.data import small_sources
from counterpoise.diagnostics import gradient_features
from counterpoise.replications import colm as module


@pytest.fixture(scope="module")
def quick():
    return module.run(quick=True)


def test_every_claim_has_a_finding(quick) -> None:
    assert {finding.claim for finding in quick.findings} == {claim.key for claim in module.CLAIMS}
    assert set(quick.verdicts) == {"random", "larger", "kept", "missed", "small", "adam", "line"}
    assert quick.quick and quick.seeds == module.QUICK_SEEDS and quick.figure is not None
    names = [(finding.claim, finding.name) for finding in quick.findings]
    assert len(set(names)) == len(names)
    assert len(quick.tables["All pairs, 95 % t intervals"]) == len(module.ARMS) * (len(module.ARMS) - 1) // 2


def test_what_must_hold_exactly(quick) -> None:
    assert quick.verdicts["kept"] == quick.verdicts["line"] == "replicated"
    means = {row["arm"]: row for row in quick.tables["Means over seeds"]}
    keeping = (module.WHOLE, module.KEEP, module.NO_ADAM, module.COLM, module.ONE_Z)
    assert all(means[arm]["small source dropped"] == 0 for arm in keeping) and means[module.RANDOM]["small source dropped"] > 0


def test_runs_are_repeatable_and_arms_differ(quick) -> None:
    runs = {row["arm"]: row for row in quick.tables["Runs"] if row["seed"] == 1}
    again = module.train(1, module.COLM, module.QUICK_STEPS)
    assert again["mean"] == runs[module.COLM]["mean accuracy"] and again["mirrored"] == runs[module.COLM]["mirrored"]
    assert len({row["mean accuracy"] for row in runs.values()}) == len(module.ARMS)


def test_the_mixture() -> None:
    data = module.mixture(0)
    assert data["X"].shape == (1090, 64) and torch.bincount(data["source"]).tolist() == list(module.SIZES)
    assert data["X_test"].shape == (4, 707, 64) and len(data["y_test"]) == 707
    assert small_sources(data["source"]) == set(module.SMALL)
    original, inverted, transposed, mirrored = data["X_test"].view(4, -1, 8, 8)
    assert torch.equal(inverted, 1 - original) and torch.equal(transposed, original.mT) and torch.equal(mirrored, original.flip(2))
    rows = data["X"].view(-1, 8, 8)
    assert torch.equal(data["X"][0], module.mixture(0)["X"][0]) and not torch.equal(rows[0], module.mixture(1)["X"].view(-1, 8, 8)[0])


def test_features_are_gradients_of_the_last_layer() -> None:
    data, net = module.mixture(0), module.network(0)
    batch = data["X"][:5], data["y"][:5]
    features = gradient_features(net, module.losses, batch, "2")
    assert features.shape == (5, 650)
    expected = torch.autograd.grad(module.losses(net, batch)[3], [net[2].weight, net[2].bias])
    torch.testing.assert_close(features[3], torch.cat([g.flatten() for g in expected]))


def test_a_gain_is_judged_against_the_papers_size() -> None:
    claim = next(claim for claim in module.CLAIMS if claim.key == "adam")

    def verdict(*gaps: float) -> str:
        rows = [{"arm": "a", "seed": i, "mean": gap} for i, gap in enumerate(gaps)] + [
            {"arm": "b", "seed": i, "mean": 0.0} for i in range(4)
        ]
        return module._gained(claim, rows, "a", "b").verdict

    assert verdict(0.02, 0.021, 0.019, 0.02) == "replicated"
    assert verdict(0.001, -0.001, 0.0, 0.0) == "not replicated"
    assert verdict(0.05, -0.05, 0.03, 0.0) == "undecided"


def test_the_shortfall_of_picks_that_greedy_would_not_make() -> None:
    x = np.array([0.0, 1.0, 2.0, 9.0])
    distances = np.abs(x[:, None] - x)
    assert module.greedy_shortfall(distances, [1, 3]) == module.greedy_shortfall(distances, [2, 3]) == 0  # 1 and 2 tie at first
    assert module.greedy_shortfall(distances, [3, 1]) == pytest.approx((26 - 12) / 34)


def test_random_choices_keep_small_sources_first() -> None:
    sources = np.repeat([0, 1, 2, 3], [40, 18, 4, 2])
    chosen = module._kept_and_random(sources, np.random.default_rng(0)).numpy()
    assert len(set(chosen)) == module.BUDGET and (sources[chosen] >= 2).sum() == 6
