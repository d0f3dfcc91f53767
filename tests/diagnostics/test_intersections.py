from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from counterpoise import Groups
from counterpoise._errors import InputError
from counterpoise.diagnostics import IntersectionalReport, intersectional_report
from counterpoise.losses import DistanceCovariancePenalty
from counterpoise.metrics import between_group_variance_share, jensen_shannon_by_group
from tests.batteries.diagnoses import DIAGNOSIS_CHECKS, DiagnosisCase, nothing_is_changed_by_a_failure_of_the_loss


def people(n: int = 400, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"sex": rng.choice(["f", "m"], size=n), "old": rng.random(n) < 0.5, "income": rng.normal(size=n)}


def together(table: dict[str, Any], seed: int = 1) -> np.ndarray:
    """Predictions whose mean depends on sex and age together only."""
    rng = np.random.default_rng(seed)
    return 0.4 + 0.1 * ((table["sex"] == "f") == table["old"]) + 0.05 * rng.normal(size=len(table["old"]))


def test_what_shows_only_together() -> None:
    table = people()
    report = intersectional_report(together(table), {name: table[name] for name in ("sex", "old")})
    assert report.p_value == 1 / 200
    assert np.abs(report.dcov).max() < 0.1 * report.ccdcov and report.gap > 0.9 * report.ccdcov
    assert report.jsd > 10 * report.jsd_null and report.uf > 10 * report.uf_null
    assert report.largest_gap == pytest.approx(0.1, abs=0.02)
    assert "together" in report.summary() and "calibration within groups" in report.summary()


def test_independent_predictions_have_uniform_p_values() -> None:
    table = people(100)
    found = [intersectional_report(np.random.default_rng(1000 + seed).random(100), table).p_value for seed in range(10)]
    assert sum(p <= 0.1 for p in found) <= 4 and 0.2 < np.mean(found) < 0.8


def test_numbers_are_those_of_their_own_functions() -> None:
    table = people(300)
    yhat, y = together(table), np.random.default_rng(0).integers(2, size=300)
    report = intersectional_report(yhat, {name: table[name] for name in ("sex", "income")}, y)
    sex = torch.from_numpy((table["sex"] == "m").astype(np.int64))
    income = torch.from_numpy((table["income"] - table["income"].min()) / np.ptp(table["income"]))
    scores = torch.from_numpy(yhat)
    assert report.ccdcov == pytest.approx(DistanceCovariancePenalty()(scores, [sex, income]).item())
    np.testing.assert_allclose(report.dcov, [DistanceCovariancePenalty()(scores, part).item() for part in (sex, income)])
    assert report.jsd == pytest.approx(jensen_shannon_by_group(yhat, report.cells, bandwidth=0.15 * yhat.std()))
    assert report.uf == pytest.approx(between_group_variance_share(yhat, report.cells))
    assert len(report.cells) == 8  # two by four quarters
    frame = report.to_frame()
    for k, row in enumerate(frame.iter_rows(named=True)):
        members = report.cells.members(k)
        assert row["count"] == len(members) and row["mean_prediction"] == pytest.approx(yhat[members].mean())
        assert row["mean_outcome"] == pytest.approx(y[members].mean())
        assert row["standard_error"] == pytest.approx(yhat[members].std(ddof=1) / np.sqrt(len(members)))
    assert report.plot() is not None


def test_forms_of_attributes() -> None:
    table = people(60)
    yhat = together(table)
    expected = intersectional_report(yhat, table)
    for form in (pl.DataFrame(table), pd.DataFrame(table)):
        found = intersectional_report(yhat, form)
        assert (found.ccdcov, found.p_value, found.jsd) == (expected.ccdcov, expected.p_value, expected.jsd)
    one = intersectional_report(yhat, table["sex"])
    assert one.attributes == ("attributes",) and one.gap == pytest.approx(0, abs=1e-15)
    assert intersectional_report(yhat, Groups.from_labels(table["sex"], "attribute")).ccdcov == one.ccdcov
    assert intersectional_report(yhat, pl.Series("sex", table["sex"])).attributes == ("sex",)
    assert (
        intersectional_report(torch.from_numpy(yhat), np.stack([np.arange(60) % 2, np.arange(60) % 3], axis=1)).cells.names[0]
        == "x0=0, x1=0"
    )


def test_what_means_less_than_it_seems_is_said() -> None:
    yhat = np.linspace(0, 1, 30)
    report = intersectional_report(yhat, {"cell": np.arange(30) // 2, "where": ["here"] * 30})
    text = " ".join(report.flags)
    assert "where: a single value" in text and "15 of 15 cells" not in text  # numbers above ten values are in quarters
    assert "4 of 4 cells have fewer than 20 rows" in text and np.isnan(report.largest_gap)
    assert intersectional_report(np.full(30, 0.3), {"a": np.arange(30) % 2}).p_value == 1.0


@pytest.mark.parametrize(("arguments", "message"), [
    (([0.1, 0.2, 0.3], ["a", "b", "a"]), "at least 4"),
    (([0.1, 0.2, 0.3, float("nan")], list("abab")), "yhat: got NaN"),
    (([0.1, 0.2, 0.3, 0.4], list("aba")), "a table or columns of 4 rows"),
    (([0.1, 0.2, 0.3, 0.4], {"age": [1.0, 2.0, float("nan"), 3.0]}), "column age"),
    (([0.1, 0.2, 0.3, 0.4], list("abab"), [1, 0]), "y: got 2 rows"),
    (([0.1, 0.2, 0.3, 0.4], list("abab"), None, 0), "min_cell: got 0"),
])  # fmt: skip
def test_bad_input(arguments, message) -> None:
    with pytest.raises(InputError) as error:
        intersectional_report(*arguments)
    assert message in str(error.value)


def of_a_model(model: Any, data: Any, loss_fn: Any) -> IntersectionalReport:
    """The report on a model's predictions, which are made the way a caller would make them."""
    rows = [(data[0], data[1])] if isinstance(data, tuple) else [(x, y) for x, y in data]
    x, y = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return intersectional_report(x[:, 0].sigmoid(), {"class": y, "sign": x[:, 1] > 0})


# It sees predictions alone: what a model or a loss does wrong is the caller's.
CHECKS = [check for check in DIAGNOSIS_CHECKS if "failure" not in check.__name__]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_battery(check: Any) -> None:
    assert nothing_is_changed_by_a_failure_of_the_loss not in CHECKS
    check(DiagnosisCase("intersectional-report", of_a_model, one_batch=True))
