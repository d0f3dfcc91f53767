"""Over- and under-sampling of tables are imbalanced-learn's own, and cost nothing until they are used."""

from __future__ import annotations

import subprocess
import sys

import imblearn.over_sampling
import imblearn.under_sampling
import pytest

from counterpoise import data


def test_the_classes_are_those_of_imbalanced_learn() -> None:
    assert data.RandomOverSampler is imblearn.over_sampling.RandomOverSampler
    assert data.RandomUnderSampler is imblearn.under_sampling.RandomUnderSampler


@pytest.mark.parametrize("room", ["data", "schedules", "metrics"])
def test_importing_a_room_loads_nothing_heavy(room) -> None:
    script = f"import sys, counterpoise.{room}; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split())
    assert not {"torch", "sklearn", "scipy", "imblearn", "polars", "pandas"} & loaded


def test_drawing_indices_needs_neither_scikit_learn_nor_imbalanced_learn() -> None:
    script = "import sys; from counterpoise.data import BalancedClassSampler; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split())
    assert "torch" in loaded and not {"sklearn", "imblearn"} & loaded
