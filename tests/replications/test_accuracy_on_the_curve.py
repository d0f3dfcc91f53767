from __future__ import annotations

import os

import numpy as np
import pytest

from counterpoise._errors import InputError
from counterpoise.diagnostics import performance_curve
from counterpoise.replications import accuracy_on_the_curve as curve
from counterpoise.replications._work import rows_where


@pytest.fixture(scope="module")
def quick(data_folder):
    return curve.run(quick=True, data_dir=data_folder)


def planted(c2_strong: float, c2_weak: float = 0.0):
    """Checkpoints of four data seeds with a known curve at the two agreements."""
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(4):
        for run in range(14):
            for step in range(6):
                a = rng.uniform(0.55, 0.95)
                for p, c2 in ((curve.WEAK, c2_weak), (curve.STRONG, c2_strong)):
                    b = 0.5 + 0.1 * (a - 0.75) + c2 * (a - 0.75) ** 2 + rng.normal(0, 0.01)
                    rows.append({"seed": seed, "agreement": p, "run": run, "step": step, "majority": a, "minority": b})
    return rows


def test_every_claim_has_a_finding(quick) -> None:
    assert {finding.claim for finding in quick.findings} == {claim.key for claim in curve.CLAIMS}
    assert set(quick.verdicts) == {"nonlinearity", "moon", "adult"}
    assert quick.quick and quick.seeds == curve.QUICK_SEEDS and not set(quick.seeds) & set(curve.SEEDS)
    assert quick.notes[0].startswith("Nonlinearity: ") and "Moon-shaped uptrend: " in quick.notes[0]
    assert len(quick.figure.axes) == 6
    assert len(quick.tables["All seeds together"]) == 6


def test_the_verdicts_follow_their_criteria() -> None:
    nonlinearity, moon, *_ = curve.CLAIMS
    for c2, verdict in ((2.0, "replicated"), (-2.0, "not replicated")):
        rows = planted(c2)
        interval, each = curve._gain_difference(rows)
        assert nonlinearity.above(interval, 0.0, "").verdict == "replicated" and len(each) == 4
        estimate = curve._convexity(rows, curve.STRONG)[0]
        assert estimate[0] == pytest.approx(c2, abs=0.3) and moon.above(estimate, 0.0, "").verdict == verdict
    none = planted(0.0)
    assert nonlinearity.above(curve._gain_difference(none)[0], 0.0, "").verdict != "replicated"
    assert moon.above(curve._convexity(none, curve.STRONG)[0], 0.0, "").verdict == "undecided"


def test_the_gain_is_what_the_report_says() -> None:
    rows = rows_where(planted(2.0), seed=0)
    reports = [curve._report(rows, p) for p in (curve.STRONG, curve.WEAK)]
    gains = [report.quadratic.r2 - report.linear.r2 for report in reports]
    assert curve._gain_difference(rows)[0][0] == pytest.approx(gains[0] - gains[1])


def test_runs_are_the_same_at_every_agreement_but_for_the_column() -> None:
    first, again = (curve._digits(0, 0.5, True) for _ in range(2))
    other = curve._digits(0, 0.95, True)
    assert first == again != other

    def configuration(cell):
        return [(point["run"], point["step"], point["width"], point["n_train"]) for point in cell["points"]]

    assert configuration(first) == configuration(other)
    assert [step for run, step, *_ in configuration(first) if run == 0] == list(curve.EPOCHS)
    assert curve._configurations(10) != curve._configurations(11)


def test_a_model_that_reads_the_column_only_has_one_and_zero() -> None:
    # Nothing but the column: the majority is always right, and the minority always wrong.
    signs = np.where(np.arange(200) % 2, 1.0, -1.0)[:, None]
    y = np.arange(200) % 2
    how = {"width": 8, "rate": 0.01, "decay": 0.0}
    *_, (step, a, b) = curve._perceptron(signs, y, [signs, -signs], y, how, 0)
    assert (step, a, b) == (30, 1.0, 0.0)


def test_the_census_samples_are_what_the_protocol_says(data_folder) -> None:
    X, y, sex, is_test = curve._census(str(data_folder))
    assert is_test.sum() == 16281 and len(X) == 32561 + 16281 and np.isfinite(X).all()
    cell = 2 * sex + y
    assert ((cell == 1) & is_test).sum() == curve.PER_CELL
    shares = {0: 0.475, 1: 0.025, 2: 0.025, 3: 0.475}
    rows = curve._sample(cell, ~is_test, shares, 1000, np.random.default_rng(0))
    assert np.bincount(cell[rows]).tolist() == [475, 25, 25, 475] and len(set(rows)) == 1000
    assert (sex == y)[rows].mean() == 0.95 and y[rows].mean() == 0.5


def test_what_was_observed_is_put_into_words() -> None:
    a = np.linspace(0.5, 0.9, 40)
    assert curve._described(performance_curve(a, 2 * (a - 0.7) ** 2 + 0.3)).startswith(
        "falling up to 0.70 and rising beyond, convex (moon)"
    )
    assert curve._described(performance_curve(a, 0.9 - 2 * (a - 0.6) ** 2)).startswith("rising up to 0.60 and falling beyond, concave")
    assert curve._described(performance_curve(a, 0.8 * (a - 0.4) ** 2 + 0.3)).startswith("rising, convex")


def test_a_folder_without_the_set_is_said(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("COUNTERPOISE_DATA", "before")
    monkeypatch.setenv("COUNTERPOISE_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", lambda *_: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(InputError, match=r"'adult'.*\$COUNTERPOISE_DATA"):
        curve.run(quick=True, data_dir=tmp_path)
    assert os.environ["COUNTERPOISE_DATA"] == "before"
