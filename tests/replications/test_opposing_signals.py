from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from counterpoise.diagnostics import LossTrajectory, sharpness
from counterpoise.replications import opposing_signals as module
from counterpoise.replications._types import Claim


@pytest.fixture(scope="module")
def quick():
    return module.run(quick=True, seeds=(0,))


def test_every_claim_has_a_finding(quick) -> None:
    assert {finding.claim for finding in quick.findings} == {claim.key for claim in module.CLAIMS}
    assert set(quick.verdicts) == {"opposition", "oscillation", "quiet", "coherent", "outsized", "planted"}
    assert quick.quick and quick.seeds == (0,) and quick.figure is not None
    names = [(finding.claim, finding.name) for finding in quick.findings]
    assert len(set(names)) == len(names)
    # Beside every verdict stands where the learning rate is.
    assert all("lr λ / 2" in finding.text for finding in quick.findings if finding.claim in ("opposition", "oscillation", "quiet"))


def test_the_tables_hold_what_the_findings_are_made_of(quick) -> None:
    rows = {row["arm"]: row for row in quick.tables["Runs"]}
    assert set(rows) == set(module.QUICK_ARMS)
    assert rows["half"]["lr"] == pytest.approx(rows["edge"]["lr"] / 2, abs=1e-3)
    assert rows["half"]["steps with rising loss"] == 0 and rows["half"]["swaps"] == 0  # well below the edge the descent is monotone
    (swaps,) = (finding for finding in quick.findings if (finding.claim, finding.name) == ("oscillation", "swaps"))
    assert swaps.estimate == pytest.approx(rows["oscillating"]["swaps"], abs=0.01)


def test_runs_are_repeatable_and_seeds_differ() -> None:
    first = module.oscillation(1, "half", True)
    assert first == module.oscillation(1, "half", True)
    assert first["lr"] != module.oscillation(2, "half", True)["lr"]


def test_the_learning_rate_is_the_edge_of_a_converged_sharpness() -> None:
    X, y = module._digits(3)
    edge, converged, warm = module._edge(X, y, 3)
    model = module._network(3)
    model.load_state_dict(dict(warm))
    assert converged and edge == pytest.approx(2 / sharpness(model, F.cross_entropy, (X, y), iters=500, seed=1).value, rel=1e-4)


def test_gradient_descent_is_what_it_says() -> None:
    X, y = module._digits(0)
    trajectory = LossTrajectory()
    states, margins = module._train(module._network(0), X, y, 0.3, 4, trajectory)
    model = module._network(0)
    assert all(torch.equal(value, states[0][name]) for name, value in model.state_dict().items())
    gradients = torch.autograd.grad(F.cross_entropy(model(X), y), list(model.parameters()))
    for (name, value), gradient in zip(model.named_parameters(), gradients, strict=True):
        assert torch.allclose(states[1][name], value - 0.3 * gradient, atol=1e-6)
    expected = module._mean_losses(module._network(0), X, y, 0.3, 4)
    assert trajectory.losses.mean(axis=0) == pytest.approx(expected, rel=1e-5)
    assert margins.shape == (1000,) and np.isfinite(trajectory.lr_lambda_half(0))


def test_the_patch_is_on_thirty_examples_of_two_classes_and_as_strong_as_asked_for() -> None:
    for energy in module.ENERGIES:
        X, y = module._digits(4)
        before = X.clone()
        rows = module.plant(X, y, 4, energy)
        changed = (before != X).any(dim=1).nonzero()[:, 0]
        assert sorted(rows.tolist()) == changed.tolist() and len(rows) == 30
        assert sorted(np.bincount(y[rows].numpy(), minlength=10)) == [0] * 8 + [15, 15]
        corner = X.view(-1, 8, 8)[:, -4:, -4:].clone()
        corner[[i for i in range(1000) if i not in set(rows.tolist())]] = 0
        assert float(corner.square().sum()) == pytest.approx(energy * float(before.square().sum()), rel=1e-4)


def test_purity_of_random_groups_is_not_significant_and_of_pure_ones_is() -> None:
    y = np.arange(1000) % 10
    rng = np.random.default_rng(0)
    random = rng.choice(1000, 40, replace=False)
    assert module._who((random[:20], random[20:]), y, 0, 500)["p"] > 0.01
    threes, fours = (np.flatnonzero(y == k)[:20] for k in (3, 4))
    pure = module._who((threes, fours), y, 0, 500)
    assert pure["p"] == 1 / 501 and pure["purity"] == 1 and pure["labels"]["rising"][3] == 20


def test_verdicts_follow_the_rules() -> None:
    def rows(values, arm="edge", converged=True, rises=9, peak=1.0):
        return [
            {"arm": arm, "cancellation": v, "flips": v, "ratios": [0.1, 1.0], "converged": converged, "rises": rises, "peak": peak}
            for v in values
        ]

    claim = Claim("x", "text", "criterion")

    def verdicts(*args, bound=module.OPPOSED, **options):
        return {finding.verdict for finding in module._opposed(claim, rows(*args, **options), bound)}

    assert verdicts([0.95, 0.96, 0.97]) == {"replicated"} and verdicts([0.1, 0.2, 0.1]) == {"not replicated"}
    assert verdicts([0.5, 0.9, 0.99]) == {"undecided"} and verdicts([0.95, 0.96, 0.97], converged=False) == {"undecided"}
    assert verdicts([0.95, 0.96], arm="oscillating", rises=2) == {"undecided"} == verdicts([0.95, 0.96], arm="oscillating", peak=3.0)
    assert verdicts([0.01, 0.02, 0.01], arm="half", bound=module.QUIET) == {"replicated"}

    def recalled(values):
        return module._recalled(claim, [{"recall": {"trajectory": v}, "ratios": [1.0, 1.0]} for v in values], "trajectory").verdict

    assert [recalled(values) for values in ([0.8, 0.8], [0.5, 0.51], [0.7, 1.0])] == ["replicated", "not replicated", "undecided"]
