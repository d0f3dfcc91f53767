"""Directions, similarities and h of the authors' class, step by step: d before their factor K and before clipping."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from counterpoise.diagnostics import magnitude_similarity
from counterpoise.gradients import SAMGS
from tests.oracles import oracle_files


def same(found: torch.Tensor | float, wanted: np.ndarray) -> None:
    """To 1e-9 of the largest number."""
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=1e-9, atol=1e-9 * np.abs(wanted).max())


@pytest.mark.parametrize("path", oracle_files("24"))
def test_steps_are_those_of_the_authors(path: Path) -> None:
    with np.load(path) as numbers:
        oracle = {key: numbers[key] for key in numbers.files}
    options = {name: float(oracle[name]) for name in ("beta1", "beta2", "gamma")}
    whole = SAMGS(**options, similarity="mean", rescale="published")
    by_parameter, homogeneous = SAMGS(**options, rescale="published"), SAMGS(**options)
    branches = set()
    for t, jacobian in enumerate(torch.from_numpy(oracle["jacobians"])):
        d = whole(jacobian)
        same(d, oracle["directions"][t])
        same(whole.h, oracle["h"][t])
        same(whole.last["psi"], oracle["psi"][t])
        same(magnitude_similarity(jacobian @ jacobian.T).mean_similarity, oracle["psi"][t])
        cut = jacobian.shape[1] // 3
        parts = by_parameter({"a": jacobian[:, :cut], "b": jacobian[:, cut:]})
        same(torch.cat(list(parts.values())), oracle["directions"][t])
        # The homogeneous form of the same step: over the mean of the bias-corrected averages, where they were used at all.
        branches.add(whole.last["branch"])
        scale = (whole.ema_0 / (1 - options["beta1"] ** (t + 1))).abs().mean() if whole.last["branch"] == "momentum" else 1.0
        same(homogeneous(jacobian) * scale, oracle["directions"][t])
    expected = {"equalize" if psi < options["gamma"] else "momentum" for psi in oracle["psi"]}
    assert branches == expected
