"""AdamP and SGDP against the authors' package: parameters after every step, from recorded gradients, in double precision."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

from counterpoise.optim import SGDP, AdamP
from tests.oracles import oracle_files

OPTIMIZERS = {"adamp": AdamP, "sgdp": SGDP}


@pytest.mark.parametrize("foreach", [None, False], ids=["foreach", "loop"])
@pytest.mark.parametrize("path", oracle_files("34"))
def test_parameters_after_every_step(path: Path, foreach: bool | None) -> None:
    with np.load(path) as numbers:
        oracle = {key: numbers[key] for key in numbers.files}
    count, steps = int(oracle["n_params"]), int(oracle["steps"])
    params = [torch.nn.Parameter(torch.from_numpy(oracle[f"p0_{i}"])) for i in range(count)]
    optimizer = OPTIMIZERS[str(oracle["kind"])](params, foreach=foreach, **ast.literal_eval(str(oracle["hyper"])))
    assert steps > 0 and count > 0
    for t in range(steps):
        for i, p in enumerate(params):
            p.grad = torch.from_numpy(oracle[f"g{t}_{i}"])
        optimizer.step()
        for i, p in enumerate(params):
            np.testing.assert_allclose(p.detach().numpy(), oracle[f"p{t + 1}_{i}"], rtol=0, atol=1e-12, err_msg=f"parameter {i}, step {t}")
