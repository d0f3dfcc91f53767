from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from counterpoise.gradients import SAMGS
from counterpoise.replications import sam_gs as module


@pytest.fixture(scope="module")
def quick():
    return module.run(quick=True, seeds=(0,))


def test_every_claim_has_a_finding(quick) -> None:
    assert {finding.claim for finding in quick.findings} == {claim.key for claim in module.CLAIMS}
    assert set(quick.verdicts) == {"optimum", "small", "steady"}
    assert quick.quick and quick.seeds == (0,) and quick.figure is not None and len(quick.figure.axes) == 4
    names = [(finding.claim, finding.name) for finding in quick.findings]
    assert len(set(names)) == len(names)
    assert [len(table) for table in quick.tables.values()] == [9, 2 * len(module.DIGIT_ARMS)]
    assert any("equalized in" in finding.text for finding in quick.findings)


def test_it_is_a_function_of_its_seeds(quick) -> None:
    row = quick.tables["Digits, mean over seeds"][2]
    again = module.train(row["arm"], row["scale"], 0, module.QUICK_DIGIT_STEPS)
    assert (row["accuracy"], row["mse"]) == pytest.approx((again["accuracy"], again["mse"]), rel=1e-6)
    assert module.train("sum", 1.0, 1, 3) != module.train("sum", 1.0, 0, 3)
    assert module.descend("PCGrad", 1.0, 5) == module.descend("PCGrad", 1.0, 5)


def test_the_problem_is_the_one_of_the_paper() -> None:
    x = torch.tensor([[-8.0, 5.0], [3.0, 7.5], [0.0, -8.4], [0.0, 0.0]], dtype=torch.float64)
    first, second = (loss.tolist() for loss in module.losses_at(x))
    # With tanh(5) = 0.99990920 and tanh(2.5) = 0.98661430.
    assert first[0] == pytest.approx((np.log(0.5 + 0.9999092) + 6) * 0.9866143, rel=1e-6)
    assert second[0] == pytest.approx((np.log(5.5 - 0.9999092 + 2) + 6) * 0.9866143, rel=1e-6)
    assert first[2] == second[2] == pytest.approx((4.9 + 0.1 * 0.4**2 / 10 - 20) * np.tanh(4.2))
    assert first[3] == second[3] == 0
    assert second[1] == pytest.approx((np.log(1.0) + 6) * np.tanh(3.75), rel=1e-4)


def test_the_optimum_is_where_it_is_said_to_be() -> None:
    x = torch.tensor([module.OPTIMUM], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([x], tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        total = sum(loss.sum() for loss in module.losses_at(x))
        total.backward()
        return total

    for _ in range(5):
        optimizer.step(closure)
    assert np.hypot(*(x.detach()[0].numpy() - module.OPTIMUM)) < 0.1


def test_steps_are_clipped_and_only_sam_gs_has_the_factor() -> None:
    rows = 1e-3 * torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    assert torch.equal(module.step_of(None, rows), rows.sum(dim=0))
    always = module.aggregator(module.EQUAL, gamma=0.9)
    torch.testing.assert_close(module.step_of(always, rows), 2 * SAMGS(gamma=1)(rows))
    assert module.step_of(None, 1e6 * rows).norm() == pytest.approx(module.CLIP)
    assert not module.step_of(None, 0 * rows).any()


def test_the_arms_are_what_they_are_called() -> None:
    assert module.aggregator(module.SUM, 0.9) is None
    for arm, gamma, rescale in (
        (module.SAM, 0.9, "published"),
        (module.EQUAL, 1.0, "published"),
        (module.NEVER, 0.0, "published"),
        (module.DEFAULT, 0.1, "published"),
        (module.HOMOGENEOUS, 0.9, "homogeneous"),
    ):
        made = module.aggregator(arm, 0.9)
        assert (made.gamma, made.rescale) == (gamma, rescale)


def test_a_scale_of_the_loss_moves_the_sum_and_not_the_equalized_step(monkeypatch) -> None:
    """Of the trunk, in the first step; heads get their own gradient in both arms."""
    seen = {}
    original = module.step_of

    def watched(made_by, rows):
        step = original(made_by, rows)
        seen.setdefault(key, step / step.norm())
        return step

    monkeypatch.setattr(module, "step_of", watched)
    for arm in (module.SUM, module.EQUAL):
        for scale in module.SCALES:
            key = arm, scale
            module.train(arm, scale, 0, 1)
    assert float(seen[module.EQUAL, 1.0] @ seen[module.EQUAL, 1000.0]) == pytest.approx(1, abs=1e-5)
    assert float(seen[module.SUM, 1.0] @ seen[module.SUM, 1000.0]) < 0.95


def test_data_and_network_are_those_of_the_protocol() -> None:
    X, y = module.images(0)
    assert len(X) == 1797 and X.max() == 1 and set(y[module.TRAIN :]) == set(range(10)) and len(X) - module.TRAIN == 597
    assert not np.array_equal(X, module.images(1)[0])
    trunk, heads = module.network(0)
    assert [layer.weight.shape for layer in trunk if isinstance(layer, nn.Linear)] == [(64, 64), (6, 64)]
    assert [head.weight.shape for head in heads] == [(10, 6), (64, 6)]


def test_the_verdict_on_steadiness_follows_both_intervals() -> None:
    inside, wide, outside = (0.001, -0.01, 0.012), (0.001, -0.05, 0.05), (0.1, 0.05, 0.15)
    assert module._within(inside, inside) == "replicated"
    assert module._within(wide, inside) == "undecided" == module._within(inside, (0.0, -0.2, 0.2))
    assert module._within(outside, inside) == "not replicated" == module._within(inside, (-0.3, -0.4, -0.2))


def test_places_are_counted() -> None:
    assert module._places([0.0, -0.04, 5.66, 0.01]) == "0.0 (3), 5.7 (1)"
