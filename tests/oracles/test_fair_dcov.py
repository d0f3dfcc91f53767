"""Penalties and gradients of the authors' code: predictions (n,), one-hot levels (n, 4), a binary and a uniform attribute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from counterpoise.losses import DistanceCovariancePenalty, distance_covariance, joint_distance_covariance
from tests.oracles import oracle_files

EXACT = {"rtol": 1e-9, "atol": 1e-15}


def cases(path: Path) -> list[int]:
    with np.load(path) as numbers:
        return [int(key.removeprefix("yhat")) for key in numbers.files if key.startswith("yhat")]


def load(path: Path, j: int) -> dict[str, torch.Tensor]:
    """Without the number of the case."""
    names = ("yhat", "z1", "z2", "z3", "ccdcov", "ccdcov_grad", "jdcov", "jdcov_grad", "dcov2_yhat_z1", "dcor2_yhat_z3")
    with np.load(path) as numbers:
        return {name: torch.from_numpy(np.asarray(numbers[f"{name}{j}"])) for name in names}


CASES = [pytest.param(p.values[0], j, id=f"{p.id}-{j}") for p in oracle_files("22") for j in cases(p.values[0])]
every_case = pytest.mark.parametrize(("path", "j"), CASES)


@pytest.mark.parametrize("path", oracle_files("22"))
def test_every_case_of_a_file_is_tested(path: Path) -> None:
    with np.load(path) as numbers:
        assert len(cases(path)) == int(numbers["n_cases"]) > 0


def check(y: torch.Tensor, value: torch.Tensor, expected: torch.Tensor, gradient: torch.Tensor) -> None:
    np.testing.assert_allclose(value.item(), expected, **EXACT)
    np.testing.assert_allclose(*(g.numpy() for g in (*torch.autograd.grad(value, y), gradient)), **EXACT)


@pytest.mark.parametrize("kind", ["ccdcov", "jdcov"])
@pytest.mark.parametrize("options", [{}, {"method": "dense"}, {"method": "dense", "block_size": 7}], ids=str)
@every_case
def test_the_penalty_and_its_gradient(path: Path, j: int, kind: Any, options: dict[str, Any]) -> None:
    oracle = load(path, j)
    y = oracle["yhat"].requires_grad_()
    attributes = {name: oracle[name] for name in ("z1", "z2", "z3")}
    check(y, DistanceCovariancePenalty(kind, **options)(y, attributes), oracle[kind], oracle[f"{kind}_grad"])


@pytest.mark.parametrize("method", ["auto", "dense"])
@every_case
def test_the_functions(path: Path, j: int, method: Any) -> None:
    oracle = load(path, j)
    y, z = oracle["yhat"].requires_grad_(), [oracle[name] for name in ("z1", "z2", "z3")]
    side_by_side = torch.cat([z[0], z[1][:, None], z[2][:, None]], dim=1)
    check(y, distance_covariance(y, side_by_side, method=method), oracle["ccdcov"], oracle["ccdcov_grad"])
    check(y, joint_distance_covariance(y, *z, method=method), oracle["jdcov"], oracle["jdcov_grad"])


@pytest.mark.parametrize("method", ["dense", "sorted"])
@every_case
def test_levels_and_a_column_of_numbers(path: Path, j: int, method: Any) -> None:
    oracle = load(path, j)
    y, levels, numbers = oracle["yhat"], oracle["z1"], oracle["z3"]
    np.testing.assert_allclose(distance_covariance(y, levels, method=method).item(), oracle["dcov2_yhat_z1"], **EXACT)
    codes = levels.argmax(dim=1)
    np.testing.assert_allclose(DistanceCovariancePenalty(method=method)(y, codes).item(), oracle["dcov2_yhat_z1"], **EXACT)
    own = [distance_covariance(part, part, method=method) for part in (y, numbers)]
    correlation = distance_covariance(y, numbers, method=method) / (own[0] * own[1]).sqrt()
    np.testing.assert_allclose(correlation.item(), oracle["dcor2_yhat_z3"], **EXACT)
