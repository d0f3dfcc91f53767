"""How a benchmark ends: its rows are kept, and it says which bars it missed. Standard library only: peers' interpreters import it, too."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(os.environ.get("BENCHMARK_RESULTS", Path(__file__).parent / "results"))


def keep(name: str, rows: Iterable[Any]) -> None:
    """Append rows to ``results/name.jsonl``."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.writelines(json.dumps(row, sort_keys=True) + "\n" for row in rows)


def finish(name: str, rows: Iterable[Any], missed: Sequence[str], met: str = "all bars met") -> int:
    """Keep the rows, print what was missed, and return the exit code."""
    keep(name, rows)
    return said(missed, met)


def said(missed: Sequence[str], met: str = "all bars met") -> int:
    """Print what was missed, or else ``met``; 1 if anything was, else 0."""
    print("\n" + ("\n".join(f"MISSED {line}" for line in missed) or met))
    return 1 if missed else 0
