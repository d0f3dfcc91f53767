"""What options mean: text from the command line in, values for :func:`counterpoise.study` out, or one clear error."""

from __future__ import annotations

import math
import re
from pathlib import Path

from counterpoise._errors import bad_input

__all__ = ["default_folder", "parse_budget", "parse_cost", "parse_names", "parse_remedies", "parse_rope"]

_SUFFIXES = {*(".csv", ".tsv", ".txt", ".data", ".parquet", ".arrow", ".feather", ".jsonl", ".ndjson"), ".gz", ".zip"}
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_budget(text: str) -> float:
    """Seconds of a duration written with its unit.

    >>> parse_budget("90s"), parse_budget("10m"), parse_budget("1.5h")
    (90.0, 600.0, 5400.0)
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([smh])", text.strip().lower(), flags=re.ASCII)
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if not 0 < seconds < math.inf:
        bad_input("--budget", text, "a time with its unit, above zero: 90s, 10m or 2h")
    return seconds


def parse_cost(text: str) -> dict[str, float]:
    """What one false positive and one false negative cost.

    >>> parse_cost("fp=1,fn=20")
    {'fp': 1.0, 'fn': 20.0}
    """
    pairs = _pairs("--cost", text, "the two costs, such as fp=1,fn=20")
    if set(pairs) != {"fp", "fn"}:
        bad_input("--cost", text, "both fp (a false alarm) and fn (a missed positive) once, such as fp=1,fn=20")
    if min(pairs.values()) <= 0:
        bad_input("--cost", text, "costs above zero, such as fp=1,fn=20")
    return {"fp": pairs["fp"], "fn": pairs["fn"]}


def parse_rope(text: str) -> float | dict[str, float]:
    """The region of practical equivalence: one number for the primary question, or one per question.

    >>> parse_rope("0.02")
    0.02
    >>> parse_rope("decisions=0.01,ranking=0.005")
    {'decisions': 0.01, 'ranking': 0.005}
    """
    accepted = "a number >= 0 for the primary question, or one per question such as decisions=0.01,ranking=0.005"
    if "=" not in text:
        value = _number(text)
        if value is None or value < 0:
            bad_input("--rope", text, accepted)
        return value
    pairs = _pairs("--rope", text, accepted)
    if min(pairs.values()) < 0:
        bad_input("--rope", text, accepted)
    return pairs


def parse_names(option: str, text: str) -> list[str]:
    """The names in a list separated by commas, each once.

    >>> parse_names("--learners", "linear, trees")
    ['linear', 'trees']
    """
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        bad_input(option, text, "names separated by single commas, such as first,second")
    for name in names:
        if names.count(name) > 1:
            bad_input(option, text, f"every name once; {name!r} is there {names.count(name)} times")
    return names


def parse_remedies(text: str) -> str | list[str]:
    """``all``, or a list of names."""
    return "all" if text.strip() == "all" else parse_names("--remedies", text)


def default_folder(data: str) -> Path:
    """Where a study of ``data`` goes when ``--out`` is not given.

    >>> default_folder("tables/loans 2024.csv").as_posix(), default_folder("openml:adult").as_posix()
    ('runs/loans-2024', 'runs/adult')
    """
    name = Path(data.rpartition(":")[2]).name
    while Path(name).suffix.lower() in _SUFFIXES:
        name = Path(name).stem
    return Path("runs") / (re.sub(r"[^\w.-]+", "-", name).strip("-.") or "study")


def _pairs(option: str, text: str, accepted: str) -> dict[str, float]:
    """``name=number,name=number`` as a dictionary."""
    pairs: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        value = _number(number)
        if not name.strip() or value is None or name.strip() in pairs:
            bad_input(option, text, accepted)
        pairs[name.strip()] = value
    return pairs


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
