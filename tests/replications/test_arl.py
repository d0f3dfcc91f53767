from __future__ import annotations

import numpy as np
import pytest
import torch

from counterpoise._errors import InputError
from counterpoise.replications import arl as module


@pytest.fixture(scope="module")
def quick(data_folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "QUICK_EPOCHS", 2)
        return module.run(quick=True, seeds=(0, 1), data_dir=data_folder)


def test_a_quick_run_has_findings_for_all_claims(quick) -> None:
    assert quick.slug == "arl" and quick.quick and quick.seeds == (0, 1)
    assert {finding.claim for finding in quick.findings} == {claim.key for claim in module.CLAIMS}
    assert set(quick.verdicts) == {claim.key for claim in module.CLAIMS if claim.criterion}
    names = [(finding.claim, finding.name) for finding in quick.findings]
    assert len(set(names)) == len(names)
    assert [len(rows) for rows in quick.tables.values()] == [len(module.ARMS), 8, 4, 6]
    assert quick.figure.axes


def test_the_mixture_with_the_smallest_variance_has_the_weights_of_the_closed_form(quick, data_folder) -> None:
    assert quick.verdicts["optimum"] == "replicated"
    row = module.bootstrap(0, 5, str(data_folder))
    sigma = np.array(row["covariance"])
    np.testing.assert_allclose(sigma, sigma.T)
    for pair in module._pairs(row):
        assert abs(pair["grid"] - pair["correlated"]) <= module.GRID
        assert min(pair["independent excess"], pair["entropy excess"], pair["equal excess"]) >= -1e-12


def test_arms_differ_by_what_they_are_called(data_folder) -> None:
    options = {"seed": 1, "setting": "mor+fou", "rate": 0.006, "clip": False, "epochs": 3, "warm_up": 1, "folder": str(data_folder)}
    found = {arm: module.train(arm=arm, **options) for arm in module.ARMS}
    assert found["arl"] == module.train(arm="arl", **options)
    assert found["uniform"]["weights"] == pytest.approx([0.5, 0.5], abs=1e-5)
    assert found["losses"]["weights"] == found["concat"]["weights"] == [0, 0]
    assert sum(found["arl"]["weights"]) == pytest.approx(1, abs=1e-5)
    assert (found["arl"]["weights"][0] - 0.5) * (found["swapped"]["weights"][0] - 0.5) < 0
    assert not any(row["diverged"] for row in found.values())
    warm = options | {"epochs": 1}
    assert module.train(arm="weights", **warm)["test"] == module.train(arm="concat", **warm)["test"]  # nothing but warm-up
    assert module.train(arm="losses", **warm)["test"] == module.train(arm="arl", **warm)["test"]


def test_a_training_that_diverges_has_the_accuracy_of_guessing(data_folder) -> None:
    row = module.train(0, "zer+fou", "arl", 1e4, False, 2, 0, str(data_folder))
    assert row["diverged"] and row["test"] == row["valid"] == 0.1


def test_ogm_ge_is_as_published() -> None:
    encoders = torch.nn.ModuleList([torch.nn.Linear(30, 40), torch.nn.Linear(30, 40)])
    for parameter in encoders.parameters():
        parameter.grad = torch.ones_like(parameter)
    encoders[0].weight.grad = upstream = torch.randn(40, 30)
    module._as_published(encoders, torch.tensor([0.5, 1.0]), torch.Generator().manual_seed(0))
    noise = encoders[0].weight.grad - 0.5 * upstream
    assert float(noise.std()) == pytest.approx(float(upstream.std()), rel=0.1)
    assert (encoders[1].weight.grad - 1).abs().max() < 1e-6  # a gradient without spread
    assert (encoders[0].bias.grad == 1).all()
    head = torch.nn.Linear(4, 3)
    parts = module._with_a_part_of_the_bias([torch.zeros(2, 3) + head.bias] * 2, head)
    torch.testing.assert_close(parts[0], (head.bias / 2).expand(2, 3))


def _runs(gap: float) -> list[dict[str, object]]:
    cells = [(setting, arm, module.RATE, False) for setting in module.SETTINGS for arm in module.ARMS]
    cells += [(s, arm, rate, False) for s in module.SETTINGS for arm in ("concat", "arl") for rate in module.RATES if rate != module.RATE]
    cells += [("mor+pix", arm, module.HIGH, True) for arm in ("concat", "arl")]
    return [
        {"seed": seed, "setting": setting, "arm": arm, "rate": rate, "clip": clip, "weights": [0.5] * 6, "diverged": False}
        | {"valid": 0.5, "test": 0.5 + (arm == "arl") * (gap + 0.004 * (seed - 1))}
        for seed in range(3)
        for setting, arm, rate, clip in cells
    ]


VARIANCES = range(1, 7)
FITS = [
    {
        "covariance": np.diag([float(v) for v in VARIANCES]).tolist(),
        "on_grid": {f"{module.VIEWS[v - 1]}+{module.VIEWS[u - 1]}": round(u / (u + v), 2) for v in VARIANCES for u in VARIANCES if v < u},
    }
    | {"entropy": [float(v) for v in VARIANCES], "brier": [0.5] * 6, "accuracy": [0.5] * 6}
]


@pytest.mark.parametrize(
    ("gap", "gain", "asymmetry"),
    [
        (0.1, "replicated", "replicated"),
        (-0.1, "not replicated", "not replicated"),
        (0.001, "undecided", "undecided"),
        (-0.005, "undecided", "not replicated"),
    ],
)
def test_verdicts_follow_their_intervals(gap: float, gain: str, asymmetry: str) -> None:
    runs = _runs(gap)
    best = {(setting, arm): module._best_rate(runs, setting, arm) for setting in module.SETTINGS for arm in ("concat", "arl")}
    found = module._findings(runs, FITS * 3, best)
    for key in ("gain", "gain-tuned"):
        assert [finding.verdict for finding in found if finding.claim == key] == [gain] * 2
    for key in ("asymmetry-uniform", "asymmetry-swapped"):
        own = [finding for finding in found if finding.claim == key]
        assert [finding.verdict for finding in own] == [asymmetry] * 2
        words = "the control did better" if gap < -0.05 else "no measurable effect"
        assert (words in own[0].text) == (asymmetry == "not replicated")
    assert next(finding for finding in found if finding.claim == "optimum").verdict == "replicated"


def test_learning_rates_are_chosen_on_rows_kept_for_it() -> None:
    runs = _runs(0.0)
    for row in runs:
        row["valid"] = 0.9 if row["rate"] == 0.06 else 0.5
        row["test"] = 0.1 if row["rate"] == 0.06 else 0.9
    assert module._best_rate(runs, "zer+fou", "concat") == 0.06


def test_a_missing_set_says_what_to_do(tmp_path) -> None:
    module.views.cache_clear()
    with pytest.raises(InputError, match="mfeat"):
        module.run(quick=True, data_dir=tmp_path)
    module.views.cache_clear()
