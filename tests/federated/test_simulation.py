from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr")
pytest.importorskip("phe")
pytest.importorskip("ray")

from counterpoise.federated._local_grid import LocalGrid
from tests.federated.apps import app_of, arrays, strategy
from tests.federated.simulated import CLIENTS, ROUNDS, train

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_flowers_own_simulation_ends_with_the_same_weights(tmp_path) -> None:
    """Clients in processes of Ray, one of which drops out; messages come in any order."""
    command = [sys.executable, "-m", "tests.federated.simulated", str(tmp_path / "end.npz")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert (tmp_path / "end.npz").exists(), done.stderr[-3000:]
    here = strategy(CLIENTS).start(LocalGrid(app_of(train), CLIENTS), arrays(), num_rounds=ROUNDS)
    with np.load(tmp_path / "end.npz") as found:
        assert found["clients"].tolist() == [4, 3]
        for name, array in here.arrays.items():
            np.testing.assert_array_equal(found[name], array.numpy())
