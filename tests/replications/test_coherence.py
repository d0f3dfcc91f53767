from __future__ import annotations

import numpy as np
import pytest
import torch

from counterpoise.diagnostics import coherence as measure
from counterpoise.replications import coherence
from counterpoise.replications.coherence import ARMS, CLAIMS, COMMON, RARE, digits, factors, network, rare_digits, set_gradients, sketch


@pytest.fixture(scope="module")
def quick():
    return coherence.run(quick=True)


def test_a_quick_run_has_findings_for_all_claims(quick) -> None:
    assert quick.slug == "coherence" and quick.quick and quick.seeds == coherence.QUICK_SEEDS
    assert {finding.claim for finding in quick.findings} == {claim.key for claim in CLAIMS}
    assert set(quick.verdicts) == {"random", "real", "start", "hump", "cost", "winsorized"}
    assert quick.verdicts["cost"] == "replicated"
    assert quick.figure is not None and len(quick.figure.axes) == 2
    assert [len(table) for table in quick.tables.values()] == [6, len(ARMS), len(ARMS)]


def test_it_is_a_function_of_its_seeds(quick) -> None:
    row = next(iter(quick.tables.values()))[1]
    again = coherence.curve("random", 0, coherence.QUICK_EPOCHS)
    assert (row["labels"], row["seed"]) == ("random", 0) and row["peak"] == pytest.approx(again["peak"], rel=1e-4)
    assert coherence.train("rare", "trim 2", 1, 1) == coherence.train("rare", "trim 2", 1, 1)


def test_the_data_are_what_the_protocol_says() -> None:
    real, random, half = (digits(0, 1000, noise) for noise in (0.0, 1.0, 0.5))
    assert len(real.X) == 1000 and len(real.X_test) == 797 and real.X.max() == 1
    assert (real.given == real.true).all()
    assert 0.05 < (random.given == random.true).mean() < 0.15
    assert 0.5 < (half.given == half.true).mean() < 0.6
    rare = rare_digits(0)
    assert sorted(np.bincount(rare.given)) == [RARE] * 5 + [COMMON] * 5
    assert len(rare.X) + len(rare.X_test) == 1797 and np.bincount(rare.y_test).min() > 20


def test_the_sketch_holds_the_gradients_of_single_examples() -> None:
    data = digits(0, 12, 0.5)
    net = network((7, 5), 0).double()
    X, y, wrong = torch.from_numpy(data.X).double(), torch.from_numpy(data.given), torch.arange(12) % 3 == 0
    given = sketch(net, X, y, wrong)

    def loss(parameters, x, label):
        return torch.nn.functional.cross_entropy(torch.func.functional_call(net, parameters, x[None]), label[None])

    parts = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(dict(net.named_parameters()), X, y)
    rows = torch.cat([part.reshape(12, -1) for part in parts.values()], dim=1).detach()
    torch.testing.assert_close(given.norms_sq, (rows**2).sum(dim=1))
    torch.testing.assert_close(given.group_sums, torch.stack([rows[~wrong].sum(dim=0), rows[wrong].sum(dim=0)]))
    found, expected = measure(given, per_block=True), measure(parts, groups=["wrong" if w else "right" for w in wrong], per_block=True)
    assert found.alpha == pytest.approx(expected.alpha, rel=1e-10)
    np.testing.assert_allclose(found.blocks["alpha"], expected.blocks["alpha"], rtol=1e-9)
    assert [a.shape[1] for a, _ in factors(net, X, y)[0]] == [64, 7, 5]


def test_an_arm_that_clips_nothing_is_the_mean() -> None:
    data = digits(0, 32, 0.5)
    X, y, net = torch.from_numpy(data.X), torch.from_numpy(data.given), network((6,), 0)
    steps = []
    for arm in ("mean", "trim 0", "trim 2"):
        set_gradients(net, X, y, arm)
        steps.append([parameter.grad.clone() for parameter in net.parameters()])
    torch.testing.assert_close(steps[1], steps[0])
    assert not torch.allclose(steps[2][0], steps[0][0])
