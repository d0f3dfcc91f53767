from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("flwr")
pytest.importorskip("phe")

from counterpoise._errors import InputError
from counterpoise.replications import edgedetect as module
from counterpoise.replications._work import rows_where


@pytest.fixture(scope="module")
def quick(data_folder):
    return module.run(quick=True, seeds=(0,), data_dir=data_folder)


def test_every_claim_has_a_finding(quick) -> None:
    assert {finding.claim for finding in quick.findings} == {claim.key for claim in module.CLAIMS}
    assert {"exact", "wire", "preserved", "poisoned", "importance", "cosine", "centralized", "flower"} == set(quick.verdicts)
    names = [(finding.claim, finding.name) for finding in quick.findings]
    assert len(set(names)) == len(names)
    assert quick.quick and quick.seeds == (0,) and len(quick.figure.axes) == 2


def test_what_must_hold_exactly(quick) -> None:
    assert quick.verdict_of("exact") == "replicated" and quick.verdict_of("flower") == "replicated"
    assert quick.verdict_of("wire") == "not replicated"
    sizes = {row["form"]: row for row in quick.tables["Upload of one client, NSL-KDD network"]}
    ratio = {form: row["float32 over it"] for form, row in sizes.items()}
    assert ratio["one bit, in the clear"] == pytest.approx(32, rel=1e-3)
    assert ratio["a ciphertext per vote"] == 1 / 128
    for clients, bits in ((3, 2), (10, 4), (50, 6), (100, 7), (1000, 10)):  # 16 / b, but for what is left of the last ciphertext
        assert 0.95 * 16 / bits < ratio[f"packed, {clients} clients"] <= 16 / bits * 1.01
    assert any("128 times LARGER" in finding.text for finding in quick.findings)


def test_it_is_a_function_of_its_seeds(quick, data_folder) -> None:
    (row,) = rows_where(quick.tables["Macro F1 by seed"], data=module.NSL, arm=module.FEDAVG)
    options = {"rounds": module.QUICK_ROUNDS, "rows": module.QUICK_ROWS, "folder": str(data_folder)}
    again = module.train(module.FEDAVG, module.NSL, 0, **options)
    assert again["f1"] == pytest.approx(row["seed 0"], rel=1e-6)
    assert again["weights"] != module.train(module.FEDAVG, module.NSL, 1, **options)["weights"]


def test_the_network_is_trained_as_torch_trains_it() -> None:
    network = module.Network(7, 3)
    draw = np.random.default_rng(0)
    X, y, order = draw.normal(size=(150, 7)).astype(np.float32), draw.integers(0, 3, 150), draw.permutation(150)
    w = network.initial(0)
    theirs = nn.Sequential(nn.Linear(7, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3))
    with torch.no_grad():
        for parameter, view in zip(theirs.parameters(), network.views(w), strict=True):
            parameter.copy_(torch.from_numpy(view.T if view.ndim == 2 else view))
    optimizer = torch.optim.SGD(theirs.parameters(), lr=module.RATE, momentum=module.MOMENTUM)
    for start in range(0, 150, module.BATCH):
        rows = order[start : start + module.BATCH]
        optimizer.zero_grad()
        nn.functional.cross_entropy(theirs(torch.from_numpy(X[rows])), torch.from_numpy(y[rows])).backward()
        optimizer.step()
    before = w.copy()
    found = network.epoch(w, X, y, order)
    assert np.array_equal(w, before)
    for parameter, view in zip(theirs.parameters(), network.views(found), strict=True):
        np.testing.assert_allclose(view.T if view.ndim == 2 else view, parameter.detach().numpy(), rtol=1e-4, atol=1e-5)
    assert np.array_equal(network.predict(found, X), theirs(torch.from_numpy(X)).argmax(dim=1).numpy())


def test_the_federation_is_skewed_and_nobody_sees_held_out_rows(data_folder) -> None:
    federation = module.Federation(module.NSL, 0, str(data_folder), None, tuning=False)
    assert len(federation.test_y) == module.HELD_OUT and len(federation.y) == 25192 - module.HELD_OUT
    rows = np.sort(np.concatenate(federation.members))
    assert np.array_equal(rows, np.arange(len(federation.y)))
    shares = np.array([np.bincount(federation.y[own], minlength=5) / max(len(own), 1) for own in federation.members])
    assert shares[:, 0].max() - shares[:, 0].min() > 0.3
    np.testing.assert_allclose(federation.X.mean(axis=0, dtype=np.float64), 0, atol=1e-3)  # standardized in single precision
    tuning = module.Federation(module.NSL, 0, str(data_folder), None, tuning=True)
    assert len(tuning.y) + len(tuning.test_y) == len(federation.y)


def test_a_poisoned_client_is_the_one_with_most_rows(monkeypatch, data_folder) -> None:
    seen = []
    original = module.server_step
    monkeypatch.setattr(module, "server_step", lambda *given: seen.append(given[2]) or original(*given))
    for arm in (module.MEDIAN, module.POISONED):
        module.train(arm, module.NSL, 0, 1, 1e-2, 1500, str(data_folder))
    largest = module.Federation(module.NSL, 0, str(data_folder), 1500, tuning=False).sizes.argmax()
    np.testing.assert_allclose(seen[1][largest], module.POISON * seen[0][largest])
    others = np.arange(module.CLIENTS) != largest
    assert np.array_equal(seen[1][others], seen[0][others])


def test_the_verdict_on_accuracy_follows_mean_and_interval() -> None:
    def found(differences):
        rows = [
            {"arm": arm, "data": module.NSL, "seed": seed, "f1": 0.7 + (value if arm == module.MEDIAN else 0.0)}
            for seed, value in enumerate(differences)
            for arm in (module.MEDIAN, module.FEDAVG)
        ]
        return module._preserved(next(claim for claim in module.CLAIMS if claim.key == "preserved"), rows).verdict

    assert found([0.01, -0.01, 0.0]) == "replicated"
    assert found([-0.2, 0.2, -0.05]) == "undecided"
    assert found([-0.05, -0.04, -0.06]) == "not replicated"


def test_error_feedback_is_that_of_the_strategy(data_folder) -> None:
    short = {"seed": 0, "rounds": 3, "rows": module.QUICK_ROWS, "folder": str(data_folder), "step": 2e-2}
    here = module.train(module.FEEDBACK, module.NSL, **short)
    flower = module.through_flower(bits=module.QUICK_BITS, insecure=True, error_feedback=True, **short)
    assert here["weights"] == flower["weights"] != module.train(module.MEDIAN, module.NSL, **short)["weights"]


def test_the_step_falls_as_in_the_strategy() -> None:
    from counterpoise.federated import EdgeDetectStrategy

    strategy = EdgeDetectStrategy(10, server_lr=0.02)
    strategy._rounds = 40
    assert [strategy._rate(at) for at in range(1, 41)] == [module.rate(0.02, at, 40) for at in range(1, 41)]


def test_a_missing_set_says_how_to_get_it(tmp_path) -> None:
    with pytest.raises(InputError, match="nsl-kdd"):
        module.run(quick=True, seeds=(0,), data_dir=tmp_path)
