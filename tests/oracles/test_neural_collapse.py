"""The closed form of neural collapse against numerical minima that somebody else found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from counterpoise.diagnostics import neural_collapse_lengths
from tests.oracles import oracle_files


def cases(path: Path) -> list[dict[str, np.ndarray]]:
    with np.load(path) as numbers:
        names = sorted({key.partition("/")[0] for key in numbers.files if "/" in key})
        return [{key.partition("/")[2]: numbers[key] for key in numbers.files if key.startswith(f"{name}/")} for name in names]


@pytest.mark.parametrize("path", oracle_files("28"))
def test_lengths_and_loss_are_those_of_the_minimum(path: Path) -> None:
    found = cases(path)
    assert found
    for case in found:
        decays = np.atleast_1d(case["lambdas_w"])
        prediction = neural_collapse_lengths(case["counts"], decays, float(case["lambda_h"]))
        tolerance = 1e-6 if len(decays) == 1 else 1e-4
        # A class that is lost has length 0 in the one and nearly 0 in the other.
        for ours, theirs in (
            (prediction.feature_norm, case["feature_norm"]),
            (-np.sort(-prediction.singular_values, axis=1), case["singular_values"]),
        ):
            np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * np.max(theirs) * 1e-2)
        assert prediction.loss == pytest.approx(float(case["loss"]), rel=1e-8)
