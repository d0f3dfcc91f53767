from __future__ import annotations

import numpy as np
import pytest
import torch

from counterpoise.replications import sampling_free as module
from counterpoise.replications._work import rows_where


@pytest.fixture(scope="module")
def quick():
    return module.run(quick=True)


def test_every_claim_has_a_finding(quick) -> None:
    assert {finding.claim for finding in quick.findings} == {claim.key for claim in module.CLAIMS}
    assert set(quick.verdicts) == {"first-gradient", "bias", "focal", "identity"}
    assert quick.quick and quick.seeds == module.QUICK_SEEDS and quick.figure is not None
    guided = [finding for finding in quick.findings if finding.claim == "guided"]
    assert [finding.name for finding in guided] == ["from the prior", "from bias 0"]  # the arm that loses is reported
    assert all(finding.verdict == "reported" and finding.estimate is not None for finding in guided)


def test_what_must_hold_exactly_holds(quick) -> None:
    # The derivative at step 0 and the identity of the scaled loss do not depend on how long a run is.
    assert quick.verdict_of("first-gradient") == quick.verdict_of("identity") == "replicated"
    table = {row["arm"]: row for row in quick.tables["Test mAP at the learning rate chosen on validation"]}
    assert len(table) == len(module.ARMS) == 5


def test_the_first_gradient_is_that_of_the_formula() -> None:
    # N C sigmoids at 1/2 pull with N / 2 - N_c each; a batch of B canvases, over its objects.
    run = module._train(seed=0, arm="plain", rate=0.02, quick=True)
    cells, objects = (module.SIDE // module.STRIDE) ** 2, 1.5
    assert run["bias_gradient"] == pytest.approx(np.sqrt(module.CLASSES) * cells / 2 / objects, rel=0.15)
    assert run["prior"] == pytest.approx(objects / cells / module.CLASSES, rel=0.1)
    assert run == module._train(seed=0, arm="plain", rate=0.02, quick=True)


def test_canvases_hold_one_or_two_digits_whose_places_are_right() -> None:
    made = module._canvases(3, "train", 200)
    foreground = made.labels > 0
    per_canvas = foreground.sum(dim=(1, 2))
    assert set(per_canvas.tolist()) == {1, 2} and 0.35 < (per_canvas == 2).float().mean() < 0.65
    assert set(made.labels.unique().tolist()) == set(range(11))
    inside = made.offsets.movedim(1, -1)[foreground]
    assert set(inside.unique().tolist()) <= {-0.5, -0.25, 0.0, 0.25} and made.offsets.movedim(1, -1)[~foreground].abs().sum() == 0
    for i in range(20):
        for row, column in foreground[i].nonzero().tolist():
            dy, dx = (made.offsets[i, :, row, column] + 0.5).tolist()
            top, left = (round(module.STRIDE * (at + d)) - module.DIGIT // 2 for at, d in ((row, dy), (column, dx)))
            ink = made.pixels[i, 0, top : top + module.DIGIT, left : left + module.DIGIT].mean()
            assert ink > 0.15 + made.pixels[i, 0].mean()
    assert torch.equal(made.pixels, module._canvases(3, "train", 200).pixels)
    assert not torch.equal(made.pixels, module._canvases(4, "train", 200).pixels)


def test_parts_have_digits_of_their_own() -> None:
    assert sum(module.DIGITS.values()) == 1797 and list(module.DIGITS) == list(module.CANVASES)


def test_arms_of_a_seed_start_from_the_same_weights_and_leave_the_global_generator() -> None:
    before = torch.random.get_rng_state()
    first, second, other = (module._network(seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    for a, b in zip(first[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first[1].weight, other[1].weight)


def test_the_choice_is_made_on_validation() -> None:
    score = {"bias": (0.3, 0.1), "bias-guided": (0.2, 0.9)}
    runs = [
        {"seed": 0, "arm": arm, "rate": rate, "valid": valid + rate, "test": test}
        for arm in module.ARMS
        for rate in (0.01, 0.02)
        for valid, test in (score.get(arm, (0.1, 0.1)),)
    ]
    chosen = module._chosen(runs, (0,))
    assert all(row["rate"] == 0.02 for row in chosen)
    (best,) = rows_where(chosen, arm="sampling-free")
    assert best["variant"] == "bias" and best["test"] == 0.1
