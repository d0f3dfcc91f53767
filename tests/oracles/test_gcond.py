"""Resolved gradients and momenta of the authors' class over several steps, its buffers in double precision."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from counterpoise.gradients import GCond
from tests.oracles import oracle_files

OURS = {
    "momentum_beta": "momentum",
    "conflict_thresholds": "thresholds",
    "remap_power": "power",
    "dominance_window": "dominance_window",
    "norm_ema_beta": "norm_ema",
    "tie_breaking_weights": "tie_weights",
    "use_smooth_logic": "smooth",
    "norm_cap": "norm_cap",
    "projection_max_iters": "max_iters",
}
PUBLISHED_MOMENTUM = 0.85


def options(hyper: str, **more: Any) -> dict[str, Any]:
    """Our arguments for those of the authors that are not their defaults."""
    given = {"momentum_beta": PUBLISHED_MOMENTUM} | ast.literal_eval(hyper) | more
    return {OURS[name]: value for name, value in given.items()} | {"stability_reference": "published"}


@pytest.mark.parametrize("path", oracle_files("26"))
def test_agrees_with_the_authors(path: Path) -> None:
    with np.load(path) as numbers:
        oracle = {key: numbers[key] for key in numbers.files}
    gcond, plain = (GCond(**options(str(oracle["hyper"]), **more)) for more in ({}, {"momentum_beta": 0.0}))
    counted, won = [], []
    for step, rows in enumerate(torch.from_numpy(oracle["jacobians"])):
        for aggregator, key in ((gcond, "momentum_out"), (plain, "resolved_sum")):
            expected = oracle[key][step]
            np.testing.assert_allclose(
                aggregator(rows), expected, rtol=0, atol=1e-5 * np.linalg.norm(expected), err_msg=f"{key}, step {step}"
            )
        smallest = gcond.last["min_cosine"] if gcond.last["conflicts"] else 1.0
        assert smallest == pytest.approx(oracle["min_cos"][step], abs=1e-5)
        counted.append(gcond.last["iterations"])
        winners = gcond.kept("winners")
        won.append(int(winners[-1]) if len(winners) else -1)
    # Whether a pair is taken again, though a projection made it orthogonal, is a matter of rounding: shown, not demanded.
    same = [np.mean(np.equal(found, oracle[key])) for found, key in ((counted, "iters"), (won, "last_winner"))]
    print(f"{path.stem}: iterations as theirs in {same[0]:.0%} of the steps, last winners in {same[1]:.0%}")
