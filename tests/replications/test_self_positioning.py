from __future__ import annotations

import pytest
import torch

from counterpoise._errors import InputError
from counterpoise.replications import self_positioning as module


@pytest.fixture(scope="module")
def quick(data_folder):
    return module.run(quick=True, data_dir=data_folder)


def test_a_quick_run_has_findings_for_all_claims(quick) -> None:
    assert quick.slug == "self-positioning" and quick.quick and quick.seeds == module.QUICK_SEEDS
    assert [finding.claim for finding in quick.findings] == [claim.key for claim in module.CLAIMS]
    assert set(quick.verdicts) == {claim.key for claim in module.CLAIMS if claim.criterion}
    assert [len(rows) for rows in quick.tables.values()] == [len(module.ARMS) + 1, 2]
    assert len(quick.figure.axes) == 1


def test_what_must_hold_exactly(quick) -> None:
    assert quick.verdicts["identity"] == "replicated"
    exact = next(finding for finding in quick.findings if finding.claim == "identity")
    assert exact.estimate < 1e-12


def test_runs_are_functions_of_their_seeds(data_folder) -> None:
    folder = str(data_folder)
    first = module.train(1, 30, folder)
    assert first == module.train(1, 30, folder)
    assert first["losses"] != module.train(2, 30, folder)["losses"]


def test_tasks(data_folder) -> None:
    X, y = module.pictures(str(data_folder), 0)
    assert {name: len(rows) for name, rows in X.items()} == {"A": 800, "B": 60, "probe": 200, "test": 940}
    assert X["A"].min() == 0 and X["A"].max() == 1
    at = torch.arange(60)
    draw = torch.Generator().manual_seed(0)
    first, second = module.pairs("A", X["A"], y["A"], at, draw)
    place = (second[:, None] == X["A"][None]).all(dim=2).long().argmax(dim=1)
    assert torch.equal(y["A"][place], y["A"][at]) and not (place == at).any()
    first, second = module.pairs("B", X["B"], y["B"], at, draw)
    assert torch.equal(first, X["B"])
    pictures, moved = first.view(-1, 16, 15), second.view(-1, 16, 15)
    for picture, other in zip(pictures[:5], moved[:5], strict=True):
        # Within the noise, the middle of the one is somewhere near the middle of the other.
        windows = [picture[2 + r : 14 + r, 2 + c : 13 + c] for r in range(-2, 3) for c in range(-2, 3)]
        assert min(float((other[2:14, 2:13] - window).std()) for window in windows) < 0.13
    batches = module.mixed_batches(X["probe"], y["probe"], draw)
    assert len(batches) == 3 and all(set(batch) == {"A", "B"} for batch in batches)


def rows(gap: float, grid: float = 0.0):
    values = {
        "found": 1.0,
        "average": 1.0 - gap,
        "sum": 1.0 - gap,
        "proportion": 1.0 - gap,
        "half": 1.0 - gap,
        "grid": 1.0 - grid,
        "base": 3.0,
    }
    return [
        {
            "losses": {arm: dict.fromkeys(("A", "B", "both"), v + (0.01 * seed if arm == "found" else 0.0)) for arm, v in values.items()},
            "weights": [0.5, 0.5], "scale": 1.2, "best": [0.5, 1.3], "norms": [2.0, 1.0 + 0.1 * seed], "cosine": 0.1,
            "alignment": [0.4, 0.3 + 0.06 * seed], "coefficients": 0.0, "gradients": 0.0,
        }
        for seed in range(3)
    ]  # fmt: skip


@pytest.mark.parametrize(("gap", "verdict"), [(-0.2, "replicated"), (0.2, "not replicated"), (-0.01, "undecided")])
def test_verdicts_follow_their_intervals(gap, verdict) -> None:
    found = {finding.claim: finding for finding in module._findings(rows(gap))}
    assert {found[key].verdict for key in ("average", "sum", "joint", "resampling")} == {verdict}
    assert found["follows"].verdict == "not replicated"  # two of three seeds
    assert ("Balanced joint training is better than the merge" in found["resampling"].text) == (gap > 0.1)


def test_the_grid_is_a_bound_on_the_first_claim() -> None:
    found = {finding.claim: finding for finding in module._findings(rows(-0.2, grid=0.1))}
    assert found["average"].verdict == "not replicated" and "not within 0.03" in found["average"].text


def test_a_missing_set_says_what_to_do(tmp_path) -> None:
    with pytest.raises(InputError, match=r"mfeat.*COUNTERPOISE_DATA"):
        module.run(quick=True, data_dir=tmp_path)
