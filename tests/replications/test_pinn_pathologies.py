from __future__ import annotations

import math

import pytest
import torch

from counterpoise.replications import pinn_pathologies as pinn


@pytest.fixture(scope="module")
def quick():
    return pinn.run(quick=True)


def test_every_claim_has_a_finding(quick) -> None:
    assert {finding.claim for finding in quick.findings} == {claim.key for claim in pinn.CLAIMS}
    assert set(quick.verdicts) == {"dominance", "both", "weights", "table"}
    assert quick.quick and quick.seeds == pinn.QUICK_SEEDS and quick.figure is not None
    assert "\n" in quick.summary() and quick.to_json()
    assert [row["arm"] for row in quick.tables["Helmholtz: relative L2 error"]] == list(pinn.ARMS)


def test_the_same_seed_gives_the_same_numbers() -> None:
    first, second = (pinn.helmholtz("M4", seed=3, steps=12) for _ in range(2))
    assert first == second and first["weight"] > 1
    assert first["error"] != pinn.helmholtz("M4", seed=4, steps=12)["error"]
    fits = [pinn.diabetes("annealed", seed=3, steps=3) for _ in range(2)]
    assert fits[0] == fits[1] and fits[0]["at start"] > fits[0]["at end"]


def test_arms_start_from_the_same_network_and_see_the_same_points() -> None:
    plain, annealed = (pinn.helmholtz(arm, seed=0, steps=2)["path"] for arm in ("M1", "M2"))
    assert {name: value for name, value in plain[0].items() if name != "weight"} == {
        name: value for name, value in annealed[0].items() if name != "weight"
    }
    assert plain[1]["residual"] != annealed[1]["residual"]


def test_the_solution_solves_the_equation_and_is_zero_on_the_boundary() -> None:
    class Solution:
        """The exact solution in the form of a network."""

        def __call__(self, x):
            return pinn.exact(x)

        def derivatives(self, x):
            u = pinn.exact(x)
            return u, None, torch.stack([-((w * math.pi) ** 2) * u for w in pinn.WAVES])

    generator = torch.Generator().manual_seed(0)
    inside, boundary = pinn.batch(generator)
    assert inside.shape == (128, 2) and boundary.shape == (512, 2) and inside.abs().max() <= 1
    sides = boundary.view(4, 128, 2)
    assert [float(sides[k, :, k // 2].unique()) for k in range(4)] == [-1, 1, -1, 1]
    assert pinn.terms(Solution(), inside, boundary).max() < 1e-8
    assert pinn.error(Solution(), 20) == 0
    x = inside.double().requires_grad_()
    u = pinn.exact(x)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    bends = [torch.autograd.grad(slope[:, j].sum(), x, retain_graph=True)[0][:, j] for j in range(2)]
    torch.testing.assert_close(sum(bends)[:, None] + pinn.K**2 * u, pinn.source(x))


def test_derivatives_of_the_plain_network_are_those_of_differentiating_twice() -> None:
    model = pinn.network(False, 3, [0.0, 1.0, -1.0], [0.5, 1.0, 2.0], seed=0).double()
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    u, slope, bend = model.derivatives(x)
    torch.testing.assert_close(u, model(x))
    (expected,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    torch.testing.assert_close(slope[..., 0].T, expected)
    for j in range(3):
        torch.testing.assert_close(bend[j, :, 0], torch.autograd.grad(expected[:, j].sum(), x, retain_graph=True)[0][:, j])


def test_encoders_are_trained_but_not_compared() -> None:
    model = pinn.network(True, 2, 0.0, 1.0, seed=0)
    names = {name for name, p in model.named_parameters() if any(p is q for q in pinn.compared(model))}
    assert names == {name for name, _ in model.named_parameters() if not name.startswith("encoder")}
    losses = pinn.terms(model, *pinn.batch(torch.Generator().manual_seed(0)))
    losses.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.encoder_u.parameters())


def row(arm: str, seed: int, error: float, start: float = 200.0) -> dict:
    return {
        "arm": arm,
        "seed": seed,
        "error": error,
        "weight": 1.0,
        "at start": start,
        "at end": 1.0,
        "path": [{"residual": 0, "boundary": 0}],
    }


def verdicts(errors: dict[str, list[float]], start: float = 200.0, end: float = 50.0) -> dict[str, str]:
    nets = [row(arm, seed, error, start) for arm, own in errors.items() for seed, error in enumerate(own)]
    fit = {"seed": 0, "at start": 1e4, "at end": end, "held out": 0.5, "weight": 1.0, "curvature": 0.1, "data": 0.4}
    findings = pinn._findings(nets, [fit | {"arm": arm} for arm in pinn.FITS])
    return {finding.claim: finding.verdict for finding in findings}


def test_the_criteria_can_fail() -> None:
    rest = {"M3": [1.0] * 3, "M4, prose": [1.0] * 3}
    good = {"M1": [1.0] * 3, "M2": [0.5, 0.5, 1.5], "M4": [0.1, 0.05, 0.02]} | rest
    assert verdicts(good) == dict.fromkeys(("dominance", "both", "weights", "table"), "replicated") | dict.fromkeys(
        ("gate", "prose"), "reported"
    )
    assert verdicts(good | {"M4": [0.25, 0.01, 0.01]})["both"] == "not replicated"  # one seed gains too little
    assert verdicts(good | {"M4": [0.15, 0.15, 0.15]})["both"] == "not replicated"  # the average does
    assert verdicts(good | {"M2": [0.5, 1.5, 1.5]})["weights"] == "not replicated"
    assert verdicts(good, start=90.0)["dominance"] == "not replicated"
    assert verdicts(good, end=150.0)["table"] == "not replicated"
