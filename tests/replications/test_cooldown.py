from __future__ import annotations

import numpy as np
import pytest

from counterpoise._errors import InputError
from counterpoise.replications import cooldown as module


@pytest.fixture(scope="module")
def quick(data_folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "QUICK_STEPS", 12)
        patch.setattr(module, "DRAWS", 20_000)
        return module.run(quick=True, seeds=(0, 1), data_dir=data_folder)


def test_a_quick_run_has_findings_for_all_claims(quick) -> None:
    assert quick.slug == "cooldown" and quick.quick and quick.seeds == (0, 1)
    assert {finding.claim for finding in quick.findings} == {claim.key for claim in module.CLAIMS}
    assert set(quick.verdicts) == {claim.key for claim in module.CLAIMS if claim.criterion}
    names = [(finding.claim, finding.name) for finding in quick.findings]
    assert len(set(names)) == len(names)
    assert len(quick.figure.axes) == 2
    assert [len(rows) for rows in quick.tables.values()] == [15, 3, 5]


def test_what_must_hold_exactly(quick) -> None:
    assert quick.verdicts["identity"] == quick.verdicts["variance"] == "replicated"
    row = module.digits(3, [5, 5], 0)
    assert row["worst"] < 1e-15 and row["errors"] is None
    for state in row["states"].values():
        assert state["ratio"][0] == pytest.approx(1, abs=1e-12)
        np.testing.assert_allclose(state["F"], [1, 1.57, 2.30, 3.22, 5.07], atol=0.01)


def test_theorem_2_fails_where_small_domains_are_learned_by_heart() -> None:
    states = module.digits(0, [1, module.UNIFORM_STEPS], 0)["states"]
    learned = states[module.STATES[2]]
    assert max(learned["ratio"][1:]) < 1 and learned["G"][0] > 5 * max(learned["G"][1:])
    runs = [
        {
            "seed": seed,
            "setting": setting,
            "arm": arm,
            "losses": dict.fromkeys(module.NAMES, 1.0),
            "characters": dict.fromkeys(module.NAMES, 1),
        }
        | {f"{languages} {when}": 1.0 + 0.01 * seed for languages in ("high", "low") for when in ("at 200", "at 400", "end")}
        for seed in (0, 1)
        for setting in module.SETTINGS
        for arm in module.ARMS
    ]
    gradients = [{"worst": 0.0, "errors": 1.0, "states": states}]
    found = {finding.claim: finding for finding in module._findings(gradients, runs)}
    assert found["theorem-2"].verdict == "not replicated" and found["theorem-2"].text.startswith("Theorem 2 does not hold here")
    assert "weighing was the less noisy one at tau 2, 3, 5, 100" in module._notes(gradients, runs)[1]


@pytest.mark.parametrize(("gap", "verdict"), [(-0.1, "replicated"), (0.1, "not replicated"), (0.0, "undecided")])
def test_verdicts_follow_their_intervals(gap, verdict) -> None:
    runs = [
        {"seed": seed, "setting": setting, "arm": arm}
        | {
            f"{languages} {when}": 2.0 + (gap + 0.01 * (seed - 1)) * (arm == "cooldown") - (gap + 0.01 * (seed - 1)) * (arm == "weights")
            for languages in ("high", "low")
            for when in ("at 200", "at 400", "end")
        }
        for seed in range(3)
        for setting in module.SETTINGS
        for arm in module.ARMS
    ]
    states = {state: {"ratio": [1.0, 2.0, 3.0, 4.0, 5.0]} for state in module.STATES}
    found = module._findings([{"worst": 0.0, "errors": 1.0, "states": states}], runs)
    for key in ("cooldown-high", "cooldown-low", "best-of-both", "direction"):
        assert [finding.verdict for finding in found if finding.claim == key] == [verdict] * 2
    turned = {"replicated": "not replicated", "not replicated": "replicated", "undecided": "undecided"}[verdict]
    assert [finding.verdict for finding in found if finding.claim == "faster"] == [verdict] * 4
    assert [finding.verdict for finding in found if finding.claim == "overfits"] == [turned] * 2
    assert next(finding for finding in found if finding.claim == "theorem-2").verdict == "replicated"


def test_runs_are_functions_of_their_seeds(data_folder) -> None:
    folder = str(data_folder / "multilingual-text")
    first = module.train(1, "mild", "cooldown", 6, folder)
    assert first == module.train(1, "mild", "cooldown", 6, folder)
    other = module.train(2, "mild", "cooldown", 6, folder)
    assert first["low end"] != other["low end"] and first["characters"] == module.SETTINGS["mild"]


def test_validation_is_other_sentences(data_folder) -> None:
    folder = str(data_folder / "multilingual-text")
    alphabet, training, validation = module.texts(folder, "natural", 0)
    assert len(alphabet) == len(set(alphabet.tolist()))
    assert max(map(len, training)) / min(map(len, training)) > 29  # in characters; of bytes it is 29 : 1
    for codes in validation:
        assert module.VALIDATION <= len(codes) < module.VALIDATION + 1200
    windows, languages = module._examples(training[:2], len(alphabet))
    assert windows.shape == (len(training[0]) + len(training[1]), 9)
    assert windows[0, :8].tolist() == [len(alphabet)] * 8 and windows[:3, 8].tolist() == training[0][:3].tolist()
    assert windows[9, :8].tolist() == training[0][1:9].tolist()
    assert int(languages.sum()) == len(training[1])


def test_a_missing_set_says_what_to_do(tmp_path, monkeypatch) -> None:
    with pytest.raises(InputError, match=r"multilingual-text: no en\.txt\.gz in .*COUNTERPOISE_DATA"):
        module.run(quick=True, data_dir=tmp_path)
    monkeypatch.delenv("COUNTERPOISE_DATA", raising=False)
    with pytest.raises(InputError, match="multilingual-text: no folder of data sets"):
        module.run(quick=True)
