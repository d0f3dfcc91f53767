from __future__ import annotations

import numpy as np
import pytest
import torch

from counterpoise.replications import hessian_alignment


@pytest.fixture(scope="module")
def quick():
    return hessian_alignment.run(quick=True)


def test_every_claim_has_a_finding(quick) -> None:
    assert {finding.claim for finding in quick.findings} == {claim.key for claim in hessian_alignment.CLAIMS}
    assert set(quick.verdicts) == {"hgp", "diagonal", "closed-form"}
    assert quick.quick and quick.seeds == hessian_alignment.QUICK_SEEDS and quick.figure is not None and quick.to_json()
    shown = " ".join(finding.text for finding in quick.findings)
    assert all(name in shown for name in hessian_alignment.NAMES.values())


def test_the_identities_hold_in_a_quick_run_too(quick) -> None:
    assert quick.verdict_of("closed-form") == "replicated"


def test_the_same_seed_gives_the_same_numbers(quick) -> None:
    length = {"steps": hessian_alignment.QUICK_STEPS, "start": hessian_alignment.QUICK_START}
    first, second = (hessian_alignment.colored_digits("hgp", 1, **length) for _ in range(2))
    assert first == second
    by_seed = quick.tables["Accuracy under reversed colors by seed"]
    assert by_seed[1][hessian_alignment.NAMES["hgp"]] == f"{first['test']:.3f}"
    assert first != hessian_alignment.colored_digits("hgp", 0, **length)


def test_the_domains_are_those_described() -> None:
    domains = hessian_alignment.problem(0)
    assert [tuple(images.shape) for images, _ in domains] == [(600, 2, 64), (600, 2, 64), (597, 2, 64)]
    for (images, labels), disagree in zip(domains, (0.2, 0.1, 0.9), strict=True):
        color = images[:, 1].sum(dim=1) > 0
        assert not ((images[:, 0].sum(dim=1) > 0) & color).any()  # one channel each
        assert (color != (labels == 1)).double().mean().item() == pytest.approx(disagree, abs=0.04)
        assert images.max() == 1 and 0.4 < labels.double().mean() < 0.6
    seen = torch.cat([images.sum(dim=1) for images, _ in domains])
    assert len(torch.unique(seen, dim=0)) == 1797  # no image twice
    assert not torch.equal(domains[0][0], hessian_alignment.problem(1)[0][0])


def test_without_colors_all_domains_are_alike() -> None:
    row = hessian_alignment.colored_digits("gray", 0, 60, 30)
    assert 0.65 < row["test"] < 0.78 and abs(row["train"] - row["test"]) < 0.1


def test_penalties_bring_domains_together() -> None:
    """Sixty steps, the last thirty of them with the large weight: distances at the head shrink, and those of whole Hessians with them."""
    rows = {arm: hessian_alignment.colored_digits(arm, 0, 60, 10) for arm in ("erm", "hgp", "diagonal", "gradient")}
    for arm in ("hgp", "diagonal", "gradient"):
        assert rows[arm]["gradient distance"] < rows["erm"]["gradient distance"]
        assert rows[arm]["hessian distance"] < rows["erm"]["hessian distance"]


def test_the_weight_changes_the_size_of_steps_alone() -> None:
    """Before it sets in, all arms with a penalty have counted it once."""
    early = {arm: hessian_alignment.colored_digits(arm, 0, 5, 400) for arm in ("hgp", "hgp, fixed mean")}
    assert early["hgp"]["test"] == pytest.approx(early["hgp, fixed mean"]["test"], abs=0.02)


def test_the_criterion() -> None:
    verdict = hessian_alignment.verdict_of_gain
    assert verdict((0.25, 0.1, 0.4), 0.7) == "replicated"
    assert verdict((0.25, -0.01, 0.5), 0.7) == "undecided"
    assert verdict((0.14, 0.1, 0.18), 0.7) == "undecided"
    assert verdict((0.1, 0.05, 0.14), 0.7) == "not replicated"
    assert verdict((0.25, 0.1, 0.4), 0.59) == "not replicated"


def test_the_identities_would_notice_a_wrong_formula(monkeypatch) -> None:
    from counterpoise.losses._head_curvature import LinearHead

    monkeypatch.setattr(LinearHead, "diagonal", lambda self: (self._p * self._p * self._weight).mT @ self._z.square())
    found = hessian_alignment.identities(seed=0, n_classes=3)
    assert found["error"] > 1e-3 and not found["standard errors"] < hessian_alignment.STANDARD_ERRORS  # NaN, or large


def test_intervals_are_of_paired_differences(quick) -> None:
    finding = next(finding for finding in quick.findings if finding.claim == "hgp")
    assert finding.low <= finding.estimate <= finding.high and np.isfinite(finding.estimate)
