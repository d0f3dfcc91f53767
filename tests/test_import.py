"""What importing costs: a command line and a notebook should answer at once."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import counterpoise


def seconds(code: str) -> float:
    """Time that ``code`` takes in a fresh interpreter, without the interpreter's own start."""
    script = f"import time; start = time.perf_counter()\n{code}\nprint(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)


def test_import_takes_at_most_a_third_of_a_second_beyond_torch() -> None:
    pairs = [(seconds("import torch"), seconds("import torch, counterpoise")) for _ in range(5)]
    assert statistics.median(both - torch_alone for torch_alone, both in pairs) < 0.3
    assert statistics.median(seconds("import counterpoise") for _ in range(5)) < 0.3


@pytest.mark.parametrize("module", ["counterpoise", "counterpoise.cli"])
def test_import_loads_nothing_heavy(module) -> None:
    script = f"import sys, {module}; print(*sorted(name for name in sys.modules if '.' not in name))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"torch", "sklearn", "scipy", "pandas", "polars", "matplotlib", "skorch", "imblearn", "optuna", "ray", "transformers"}
    assert not heavy & set(loaded)
    assert "counterpoise" in loaded


def test_no_stage_loads_the_compiler_with_its_names() -> None:
    """``torch.compiler.disable`` as a decorator does: two seconds."""
    script = (
        "import importlib, sys, counterpoise\n"
        "for room in 'data losses gradients optim nn weights schedules metrics diagnostics'.split():\n"
        "    module = importlib.import_module(f'counterpoise.{room}')\n"
        "    [getattr(module, name) for name in module.__all__]\n"
        "print('torch' in sys.modules, 'torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "True False\n"


def test_public_names_are_listed_and_found() -> None:
    assert dir(counterpoise) == ["CounterpoiseError", "Groups", "Study", "__version__", "examine", "record", "study"]
    assert counterpoise.Groups.__module__ == "counterpoise.groups"
    with pytest.raises(AttributeError, match="module 'counterpoise' has no attribute 'group'"):
        counterpoise.group  # noqa: B018


def test_every_room_is_an_attribute_of_the_package() -> None:
    folder = Path(counterpoise.__file__).parent
    rooms = {path.parent.name for path in folder.glob("*/__init__.py") if not path.parent.name.startswith("_")} - {"cli"}
    assert rooms == counterpoise._ROOMS
    script = "import counterpoise; print(counterpoise.losses.FocalLoss.__name__, counterpoise.nn.init.prior_bias_.__name__)"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said == "FocalLoss prior_bias_\n"
