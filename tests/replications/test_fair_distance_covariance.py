from __future__ import annotations

import numpy as np
import pytest

from counterpoise._errors import InputError
from counterpoise.replications import fair_distance_covariance as module

pytestmark = pytest.mark.filterwarnings("ignore:.*single value:UserWarning")


@pytest.fixture(scope="module")
def quick(data_folder):
    return module.run(quick=True, data_dir=data_folder)


def test_every_claim_has_a_finding(quick) -> None:
    assert {finding.claim for finding in quick.findings} == {claim.key for claim in module.CLAIMS}
    assert set(quick.verdicts) == {claim.key for claim in module.CLAIMS} - {"price", "one-at-a-time"}
    assert quick.quick and quick.seeds == module.QUICK_SEEDS and quick.figure is not None
    assert "accuracy" in " ".join(quick.notes)
    assert [len(rows) for rows in quick.tables.values()] == [1, 7, 3]


def test_the_exclusive_or_is_seen_together_only(quick) -> None:
    assert quick.verdict_of("gerrymandering") == "replicated"
    assert module.exclusive_or(draws=6) == module.exclusive_or(draws=6)


def test_the_tables_are_those_described(data_folder) -> None:
    table = module.compas_table(str(data_folder))
    assert table.height == 5787
    assert table.group_by("race", "sex").len().height == 6 and table.group_by("race", "sex").len()["len"].min() == 82


def test_the_same_seeds_give_the_same_numbers(data_folder) -> None:
    task = {"kind": "jdcov", "lam": 20.0, "epochs": 1, "data_dir": str(data_folder)}
    first, again, other = (module.on_compas(seed=seed, **task) for seed in (0, 0, 1))
    assert first == again != other


def rows(jsd: dict[str, list[float]], gap: dict[str, list[float]] | None = None) -> list[dict[str, float]]:
    settings = {"none": ("none", 0.0), "weak": ("ccdcov", 5.0), "strong": ("ccdcov", 20.0)}
    return [
        {"kind": kind, "lam": lam, "jsd": a, "gap": b}
        for name, (kind, lam) in settings.items()
        for a, b in zip(jsd[name], (gap or jsd)[name], strict=True)
    ]


def test_verdicts_need_both_measures_and_every_step() -> None:
    none, weak, strong = [0.2, 0.21, 0.19], [0.15, 0.16, 0.14], [0.1, 0.11, 0.1]
    fair = {"none": none, "weak": weak, "strong": strong}
    assert module.more_equal(rows(fair), "ccdcov") == "replicated"
    assert module.more_equal(rows(fair, fair | {"weak": [0.3] * 3}), "ccdcov") == "not replicated"
    assert module.more_equal(rows(fair, fair | {"strong": [0.3, 0.31, 0.3]}), "ccdcov") == "not replicated"
    assert module.more_equal(rows(fair, fair | {"strong": [0.1, 0.3, 0.2]}), "ccdcov") == "undecided"


def test_a_small_price_is_part_of_the_claim() -> None:
    assert module.equal_at_a_small_price((0.1, 0.05, 0.2), (1.01, 1.0, 1.02)) == "replicated"
    assert module.equal_at_a_small_price((0.1, 0.05, 0.3), (1.01, 1.0, 1.02)) == "undecided"
    assert module.equal_at_a_small_price((0.1, 0.05, 0.2), (1.05, 1.04, 1.06)) == "not replicated"
    assert module.equal_at_a_small_price((0.4, 0.3, 0.5), (1.0, 0.99, 1.01)) == "not replicated"


def test_differences_are_paired() -> None:
    found = module.change(rows({"none": [0.1, 0.5], "weak": [0.0, 0.0], "strong": [0.2, 0.6]}), "jsd", "ccdcov", 20.0)
    np.testing.assert_allclose(found, (0.1, 0.1, 0.1))


def test_a_missing_set_is_said_before_anything_runs(tmp_path) -> None:
    with pytest.raises(InputError, match="compas"):
        module.run(quick=True, data_dir=tmp_path)
