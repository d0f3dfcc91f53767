"""The errors users meet: one sentence that says what is wrong, what was found, what would do, and what to do next."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any, NoReturn

__all__ = ["CounterpoiseError", "InputError", "MissingExtraError", "StoreError", "bad_input", "check_choice", "check_range"]


class CounterpoiseError(Exception):
    """Base of every error that counterpoise raises on purpose. The command line prints it as one line and exits with 2."""


class InputError(CounterpoiseError, ValueError):
    """An argument, an option or the data cannot be used as it is."""


class MissingExtraError(CounterpoiseError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class StoreError(CounterpoiseError, OSError):
    """The folder of a study cannot be read or written."""


def bad_input(argument: str, value: Any, accepted: str, hint: str = "") -> NoReturn:
    """Raise an :class:`InputError` of the house's form.

    ``argument`` names what was passed, ``value`` is what it was (shortened to 80 characters), ``accepted`` says what would do,
    and ``hint`` is the next step.
    """
    shown = value if isinstance(value, str) and " " in value and value.isprintable() else repr(value)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    raise InputError(f"{argument}: got {shown}; expected {accepted}." + (f" {hint}" if hint else ""))


def check_choice(argument: str, value: Any, choices: Collection[Any], hint: str = "") -> None:
    """Raise unless ``value`` is one of ``choices``; a close spelling is suggested."""
    if value in choices:
        return
    import difflib

    names = [str(choice) for choice in choices]
    close = difflib.get_close_matches(str(value), names, n=1)
    suggestion = f"Did you mean {close[0]!r}?" if close else ""
    bad_input(argument, value, "one of " + ", ".join(names), " ".join(part for part in (suggestion, hint) if part))


def check_range(
    argument: str, value: float, *, low: float = float("-inf"), high: float = float("inf"), open_low: bool = False, integer: bool = False
) -> None:
    """Raise unless ``value`` is a finite number in [low, high] (or (low, high] with ``open_low``)."""
    kind = "an integer" if integer else "a number"
    bounds = _interval(low, high, open_low)
    if isinstance(value, bool) or not _is_number(value, integer):
        bad_input(argument, value, f"{kind}{bounds}")
    if not math.isfinite(value):
        bad_input(argument, value, f"a finite number{bounds}")
    if not (low < value if open_low else low <= value) or not value <= high:
        bad_input(argument, value, f"{kind}{bounds}")


def listing(items: Iterable[Any], most: int = 8) -> str:
    """``a, b, c`` - cut after ``most`` items with a count of the rest."""
    names = [str(item) for item in items]
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def described(x: Any) -> str:
    """A tensor, as what was found: its dtype and its shape."""
    return f"a tensor of {x.dtype} and shape {tuple(x.shape)}"


def _interval(low: float, high: float, open_low: bool) -> str:
    if low == float("-inf") and high == float("inf"):
        return ""
    if high == float("inf"):
        return f" {'>' if open_low else '>='} {low:g}"
    return f" in {'(' if open_low else '['}{low:g}, {high:g}]"


def _is_number(value: Any, integer: bool) -> bool:
    import numbers

    return isinstance(value, numbers.Integral if integer else numbers.Real)
