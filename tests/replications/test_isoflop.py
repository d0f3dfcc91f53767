from __future__ import annotations

import numpy as np
import pytest

from counterpoise._errors import InputError
from counterpoise.replications import isoflop
from counterpoise.replications._work import rows_where


@pytest.fixture(scope="module")
def quick(data_folder):
    if not (data_folder / isoflop.FILE).is_file():
        pytest.skip(f"needs {isoflop.FILE}")
    return isoflop.run(quick=True, data_dir=data_folder)


def finding(result, claim: str):
    return next(one for one in result.findings if one.claim == claim)


def test_every_claim_has_a_finding(quick) -> None:
    assert {one.claim for one in quick.findings} == {claim.key for claim in isoflop.CLAIMS}
    assert set(quick.verdicts) == {"recovery", "table", "closed-form", "control", "llama", "efficiency"}
    assert quick.quick and quick.seeds == isoflop.QUICK_SEEDS and len(quick.figure.axes) == 2
    assert all(len(rows) > 1 for rows in quick.tables.values())


def test_what_needs_no_luck_is_exact(quick) -> None:
    for claim in ("recovery", "table", "closed-form", "control"):
        assert finding(quick, claim).verdict == "replicated", claim
    assert finding(quick, "recovery").estimate < 1e-11 and finding(quick, "table").estimate < 0.006


def test_the_llama_points_say_what_they_say(quick) -> None:
    assert finding(quick, "llama").estimate == pytest.approx(0.0630, abs=1e-4) and "$1.34M" in finding(quick, "llama").text
    flagged, budget = (one for one in quick.findings if one.claim == "llama-runs")
    assert flagged.estimate == pytest.approx(0.0029, abs=1e-4) and "17 runs" in flagged.text
    assert budget.estimate < 0.002 and "1e+22" in budget.text
    assert abs(finding(quick, "llama-bias").estimate) < 0.01
    assert any("1e+22" in note for note in quick.notes)


def test_a_run_repeats_itself(quick, data_folder) -> None:
    assert isoflop.run(quick=True, data_dir=data_folder).to_json() == quick.to_json()


def test_a_cell_is_what_the_authors_found() -> None:
    assert isoflop._cell("chinchilla", "drifting to a third", 2)["percent"] == pytest.approx(11.614253519, abs=1e-7)
    assert isoflop._cell("chinchilla", "centered", 8)["percent"] == pytest.approx(-2.902904738, abs=1e-7)
    assert isoflop._cell("asymmetric", "at a third", 16)["percent"] == pytest.approx(-2.424573190, abs=1e-7)
    assert set(isoflop.PUBLISHED) == {(name, design) for name in isoflop.SURFACES for design in isoflop.DESIGNS}


def test_verdicts_follow_their_criteria() -> None:
    base = {"held": (0.01, 0.1), "refitted": (0.0, 0.2), "apart": [0.5, -0.1, 2.0], "predicted": 0.0, "predicted_share": 0.0}
    base |= {
        "flagged": 17,
        "unflagged": 0.003,
        "budgets": [1e18, 1e19],
        "without": [0.01, 0.05],
        "by_estimator": {"a": [0.1, 0.3, 0.3, 1e12]},
    }
    for share, verdict in ((0.06, "replicated"), (0.04, "not replicated"), (0.09, "not replicated")):
        assert isoflop._of_llama(base | {"share": share})[0].verdict == verdict
    assert isoflop._of_llama(base | {"share": 0.06, "held": (0.0, 0.1)})[0].verdict == "undecided"


def test_ratios_of_planted_errors() -> None:
    rng = np.random.default_rng(0)
    trials = [
        {"parabola": 2 * rng.normal(), "law": rng.normal(), "opens_up": True, "width": width, "noise": 0.01, "bound": False}
        for width in isoflop.SPREADS
        for _ in range(300)
    ]
    median, variance = isoflop._ratio(trials, isoflop._median), isoflop._ratio(trials, np.var)
    assert median[0] == pytest.approx(2, rel=0.15) and median[1] < 2 < median[2]
    assert variance[0] == pytest.approx(4, rel=0.2) and variance[1] < 4 < variance[2]
    efficient, eight = isoflop._of_trials(trials)
    assert efficient.verdict == "replicated" and "the 0 trials" in eight.text


def test_trials_are_of_their_seed() -> None:
    first, again, other = (isoflop._trials(seed, True)["trials"] for seed in (0, 0, 1))
    assert first == again != other and len(first) == 9
    assert len(rows_where(first, width=8)) == 3


def test_a_folder_without_the_file_is_said(tmp_path, monkeypatch) -> None:
    with pytest.raises(InputError, match=r"isoflops.csv is not there: put data/isoflops/transform/isoflops.csv of github.com/Open-Athena"):
        isoflop.run(quick=True, data_dir=tmp_path)
    monkeypatch.delenv("COUNTERPOISE_DATA", raising=False)
    with pytest.raises(InputError, match="COUNTERPOISE_DATA is not set"):
        isoflop.run(quick=True)
