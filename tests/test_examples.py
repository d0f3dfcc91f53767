"""The examples run as they stand, from anywhere, and print what they promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
PRINTS = {
    "own_training_loop.py": ["decisions, balanced_accuracy", "ranking, auroc", "weights", "over", "focal"],
    "own_remedy.py": ["skip-easy", "TomekLinks", "weights", "log_loss"],
    "own_learner.py": ["selected", "extra-trees", "balanced accuracy 0.9", "not applicable: selected/weights"],
}


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(PRINTS)


@pytest.mark.parametrize("name", sorted(PRINTS))
def test_example(name: str, tmp_path: Path) -> None:
    source = Path(__file__).parent.parent / "src"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(source), os.environ.get("PYTHONPATH", "")]))}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(EXAMPLES / name)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in PRINTS[name]:
        assert words in done.stdout, done.stdout
    assert done.stdout.startswith("Recommended: ")
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
