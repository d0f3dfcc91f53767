from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from counterpoise.weights import SelfPositioning, merge
from tests.batteries.weights import WEIGHTS_CHECKS, WeightsCase, batches, loss_of


def fixed(method: str, **options: Any) -> Callable[..., Any]:
    def run(base: Any, models: Any, out: Path | None = None) -> Any:
        return merge(base, models, method, **options, out=out)

    return run


def with_statistics(method: str) -> Callable[..., Any]:
    """Statistics that do not depend on the model, so that any kind of model will do."""

    def run(base: Any, models: Any, out: Path | None = None) -> Any:
        if method == "fisher":
            known = [{"body.weight": torch.full((4, 4), 1.0 + k)} for k in range(len(models))]
        else:
            x = torch.randn(len(models), 5, 4, generator=torch.Generator().manual_seed(0))
            known = [{"body.weight": part.T @ part} for part in x]
        return merge(base, models, method, statistics=known, out=out)

    return run


def searched(base: nn.Module, models: Any, out: Path | None = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SelfPositioning().fit(base, models, batches(), loss_of, steps=3).state_dict


CASES = [
    WeightsCase("average", fixed("average")),
    WeightsCase("average-weighted", fixed("average", weights=[3.0, 1.0, 1.0])),
    WeightsCase("arithmetic", fixed("arithmetic", scale=0.4), idempotent=False),
    WeightsCase("slerp", fixed("slerp")),
    WeightsCase("slerp-sum", fixed("slerp", rule="sum")),
    WeightsCase("multislerp", fixed("multislerp")),
    WeightsCase("ties", fixed("ties", density=1.0)),
    WeightsCase("ties-half", fixed("ties", density=0.5), idempotent=False),
    WeightsCase("fisher", with_statistics("fisher")),
    WeightsCase("regmean", with_statistics("regmean")),
    WeightsCase("self-positioning", searched, idempotent=False, from_files=False),
]


@pytest.mark.parametrize("check", WEIGHTS_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_battery(case: WeightsCase, check: Callable[..., None], tmp_path: Path) -> None:
    if case.name == "average-weighted" and check.__name__ == "another_architecture_is_named":
        pytest.skip("has weights of three models")
    check(case, tmp_path) if "folder" in inspect.signature(check).parameters else check(case)
