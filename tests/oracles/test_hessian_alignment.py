"""Losses and gradients of the authors' classes: a tanh feature layer, a linear head, any number of domains, classes and features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from counterpoise.losses import HessianAlignmentLoss
from tests.oracles import oracle_files

EXACT = {"rtol": 1e-10, "atol": 1e-13}
METHODS = {"hgp": "hgp", "diag": "diagonal"}  # by the end of the file's name


def load(path: Path) -> dict[str, Tensor]:
    with np.load(path) as numbers:
        return {key: torch.from_numpy(np.asarray(numbers[key])) for key in numbers.files}


def joined(oracle: dict[str, Tensor], kind: str) -> Tensor:
    """x0, x1, ... one below the other."""
    return torch.cat([oracle[f"{kind}{e}"] for e in domains(oracle)])


def domains(oracle: dict[str, Tensor]) -> list[int]:
    return sorted(int(key[1:]) for key in oracle if key[0] == "y" and key[1:].isdigit())


def layer(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None).double()
    made.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return made


@pytest.mark.parametrize("twice", [False, True], ids=["closed form", "differentiated twice"])
@pytest.mark.parametrize("path", oracle_files("42"))
def test_agrees_with_the_authors(path: Path, twice: bool) -> None:
    oracle = load(path)
    method = next(method for name, method in METHODS.items() if name in path.stem.split("-"))
    if twice and method == "diagonal":
        pytest.skip("a diagonal needs a linear head")
    featurizer, classifier = layer(oracle["W_feat"], oracle.get("b_feat")), layer(oracle["W"], oracle.get("b"))
    features = featurizer(joined(oracle, "x")).tanh()
    torch.testing.assert_close(features, joined(oracle, "z"), **EXACT)
    target = joined(oracle, "y")
    domain = torch.cat([torch.full_like(oracle[f"y{e}"], e) for e in domains(oracle)])
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(0))  # rows of a batch are in any order
    options: dict[str, Any] = {"alpha": oracle["alpha"].item(), "beta": oracle["beta"].item()}
    loss = HessianAlignmentLoss(nn.Sequential(classifier) if twice else classifier, method, **options)
    value = loss(features[order], target[order], domain[order])
    value.backward()
    torch.testing.assert_close(value, oracle["loss"], **EXACT)
    torch.testing.assert_close(loss.last.nll, oracle["nll"], **EXACT)
    penalty = options["alpha"] * loss.last.hessian_gap + options["beta"] * loss.last.gradient_gap
    torch.testing.assert_close(penalty, oracle["penalty"], **EXACT)
    gradients = {f"grad.featurizer.l.{name}": p.grad for name, p in featurizer.named_parameters()}
    gradients |= {f"grad.classifier.{name}": p.grad for name, p in classifier.named_parameters()}
    assert set(gradients) == {key for key in oracle if key.startswith("grad.")}
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, oracle[key], **EXACT)
