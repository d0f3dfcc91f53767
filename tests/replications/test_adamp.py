from __future__ import annotations

import numpy as np
import pytest
import torch

from counterpoise.optim import SGDP, AdamP
from counterpoise.replications import adamp as module


@pytest.fixture(scope="module")
def quick():
    return module.run(quick=True, seeds=(0, 1))


def test_a_quick_run_has_findings_for_all_claims(quick) -> None:
    assert quick.slug == "adamp" and quick.quick and quick.seeds == (0, 1)
    assert {finding.claim for finding in quick.findings} == {claim.key for claim in module.CLAIMS}
    assert set(quick.verdicts) == {"identity", "optimizers", "growth", "accuracy"}
    names = [(finding.claim, finding.name) for finding in quick.findings]
    assert len(set(names)) == len(names)
    assert len(quick.figure.axes) == 2
    assert len(quick.tables["Trainings"]) == 2 * len(module.ARMS)
    # What happens without a schedule is said whatever it is.
    assert "constant learning rate" in quick.notes[0]


def test_what_must_hold_exactly(quick) -> None:
    assert quick.verdicts["identity"] == quick.verdicts["optimizers"] == "replicated"
    assert quick.verdicts["growth"] == "replicated"  # after two epochs already
    assert module.identity(3)["worst"] < 1e-14
    assert 10 < module.identity(3)["momentum"] < 19 + 1e-9


def test_the_identity_is_that_of_heavy_ball_as_torch_has_it() -> None:
    rng = module.generator(3, module.SLUG, "quadratic")
    root = rng.normal(size=(module.DIMENSIONS, module.DIMENSIONS))
    A, w = torch.tensor(root @ root.T / module.DIMENSIONS), torch.nn.Parameter(torch.tensor(rng.normal(size=module.DIMENSIONS)))
    optimizer = torch.optim.SGD([w], lr=module.RATE, momentum=module.MOMENTUM)
    own = momentum = 0.0
    for _ in range(module.STEPS):
        optimizer.zero_grad()
        (w @ A @ w / (2 * w @ w)).backward()
        before = float(w.detach() @ w.detach())
        optimizer.step()
        grown = float(w.detach() @ w.detach()) - before
        p = optimizer.state[w]["momentum_buffer"]
        own += module.RATE**2 * float(p @ p)
        momentum += grown
    assert momentum / own == pytest.approx(module.identity(3)["momentum"], rel=1e-6)


def test_runs_are_functions_of_their_seeds() -> None:
    first = module.train(1, "AdamP", "cosine", 1e-2, 1)
    assert first == module.train(1, "AdamP", "cosine", 1e-2, 1)
    assert first["norms"] != module.train(2, "AdamP", "cosine", 1e-2, 1)["norms"]
    assert len(first["norms"]) == 2 and first["norms"][0] == 1 and first["growth"] == pytest.approx(np.log(first["norms"][1]))


def test_the_data_and_the_arms_are_what_the_protocol_says() -> None:
    X, y, X_test, y_test = module._digits(0)
    assert X.shape == (539, 64) and len(y_test) == 1258 and X.max() == 1 and len(np.unique(y)) == 10
    assert len(X_test) == len(y_test)
    net = module.network(0)
    assert net[3].weight.shape == (128, 128) and torch.equal(net[3].weight, module.network(0)[3].weight)
    for arm, kind in (("AdamW", torch.optim.AdamW), ("AdamP", AdamP), ("SGD", torch.optim.SGD), ("SGDP", SGDP)):
        optimizer = module.optimizer_of(arm, net, 1e-3)
        (group,) = optimizer.param_groups
        adam = arm.startswith("Adam")
        assert type(optimizer) is kind and group["lr"] == pytest.approx(1e-3 if adam else 1e-2)
        assert group["weight_decay"] == (1e-2 if adam else 1e-4) and group.get("momentum", 0.9) == 0.9


def test_the_recorded_gradients_bring_every_case_about() -> None:
    for variant in module.VARIANTS:
        start, gradients = module.recorded(variant, 0, 6)
        assert len(gradients) == 6 and [g.shape for g in gradients[0]] == [p.shape for p in start]
        assert sum(p.ndim > 1 for p in start) == 3 and all(p.dtype == np.float64 for p in start)
        row = module.compare(variant, 0, 6)
        assert row["by hand"] < 1e-13 and sum(row["kinds"].values()) == 18
        assert row["kinds"]["channel"] >= 5 and row["kinds"]["layer"] >= 5


def test_the_transcription_tells_optimizers_apart() -> None:
    start, gradients = module.recorded("SGDP", 0, 6)
    options = module.VARIANTS["SGDP"]
    raw = module.replayed(SGDP, start, gradients, options | {"invariance": "none"})
    assert module._distance(raw, module.transcribed("SGDP", start, gradients, options)[0]) > 1e-6


def test_the_verdict_on_accuracy_follows_its_interval() -> None:
    def runs(differences):
        return [
            {
                "arm": arm,
                "seed": seed,
                "schedule": schedule,
                "rate": 1e-2,
                "accuracy": 0.9 + d * (arm in module.PAIRS),
                "growth": 1.0,
                "norms": [1.0, 2.0],
            }
            for seed, d in enumerate(differences)
            for arm in module.ARMS
            for schedule in ("cosine", "constant")
        ]

    equal = [{"by hand": 0.0, "package": None, "kinds": {"channel": 1}}]
    for differences, verdict in (
        ((0.0, 0.001, -0.001), "replicated"),
        ((-0.03, -0.031, -0.03), "not replicated"),
        ((0.1, -0.1), "undecided"),
    ):
        found = module._findings([{"worst": 0.0, "momentum": 19.0}] * 2, equal, runs(differences), (1e-2,))
        assert {finding.verdict for finding in found if finding.claim == "accuracy"} == {verdict}
        # Both arms grow alike here: that is not half.
        assert [finding.verdict for finding in found if finding.claim == "growth"] == ["not replicated"]
    notes = module._notes(runs((-0.03, -0.031, -0.03)), (1e-2,))
    assert "AdamP lost 3.0 points to AdamW" in notes[0] and "no gain showed" in notes[1]
    assert "AdamP and SGDP gained" in module._notes(runs((0.03, 0.031, 0.03)), (1e-2,))[1]
