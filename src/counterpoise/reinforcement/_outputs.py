"""Whether a program printed what was expected, and what of a completion is the program."""

from __future__ import annotations

import math
import re
from typing import Any

__all__ = ["code_of", "same_output"]

_BLOCK = re.compile(r"```([^\n`]*)\n(.*?)```", re.DOTALL)
_PYTHON = {"python", "python3", "py"}
_WHOLE = re.compile(r"[+-]?\d+")


def code_of(completion: Any) -> str | None:
    """The last fenced block of Python in a completion, a string or a list of messages; the last one without a language if none says so;
    None without a complete block.

    >>> code_of("First\\n```python\\nprint(1)\\n```\\nbetter:\\n```python\\nprint(2)\\n```")
    'print(2)\\n'
    """
    text = completion if isinstance(completion, str) else _content(completion)
    blocks = [(head.strip().lower().partition(" ")[0], body) for head, body in _BLOCK.findall(text.replace("\r\n", "\n"))]
    for languages in (_PYTHON, {""}):
        bodies = [body for language, body in blocks if language in languages]
        if bodies:
            return str(bodies[-1])
    return None


def same_output(printed: str, expected: str, tolerance: float = 0.0) -> bool:
    """Line by line, blanks at the ends of lines and blank lines at the end aside; the same number of lines, so that an answer that stops
    early, or goes on, is wrong. With a ``tolerance``, numbers that are expected with a point or an exponent may differ by that much,
    relative to themselves where they exceed 1.

    >>> same_output("1 \\r\\n2\\n\\n", "1\\n2"), same_output("1\\n", "1\\n2"), same_output("1\\n2\\n3", "1\\n2")
    (True, False, False)
    >>> same_output("0.3000000001 7", "0.3 7", 1e-6), same_output("10000001", "10000000", 1e-6)
    (True, False)
    """
    found, wanted = _lines(printed), _lines(expected)
    if len(found) != len(wanted):
        return False
    return all(one == other or (tolerance > 0 and _close(one, other, tolerance)) for one, other in zip(found, wanted, strict=True))


def _lines(text: str) -> list[str]:
    # Not splitlines: a form feed or a separator of Unicode within a line is part of the answer.
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _close(line: str, wanted: str, tolerance: float) -> bool:
    found, expected = line.split(), wanted.split()
    return len(found) == len(expected) and all(_same(one, other, tolerance) for one, other in zip(found, expected, strict=True))


def _same(token: str, wanted: str, tolerance: float) -> bool:
    if token == wanted:
        return True
    if _WHOLE.fullmatch(wanted):  # a whole number has no rounding error
        return False
    try:
        value, target = float(token), float(wanted)
    except ValueError:
        return False
    return math.isfinite(target) and abs(value - target) <= tolerance * max(1.0, abs(target))


def _content(messages: Any) -> str:
    """Text of the last message of a conversation."""
    content = messages[-1]["content"] if messages else ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or [])
