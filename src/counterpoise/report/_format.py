"""How numbers are written on a page: a true minus sign, as many digits as the question needs, a dash for what is unknown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

ABBREVIATIONS = {
    "auroc": "AUROC",
    "brier": "Brier score",
    "f1": "F1",
    "js_divergence": "divergence between groups, bits",
    "mae": "MAE",
    "r2": "R\N{SUPERSCRIPT TWO}",
    "rmse": "RMSE",
}
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"


def digits_for(rope: float) -> int:
    """Decimals that show two digits of the tolerance: .01 -> 3, .00017 -> 5, 500 -> 0; 3 when there is no tolerance."""
    if not (math.isfinite(rope) and rope > 0):
        return 3
    return min(max(1 - math.floor(math.log10(rope)), 0), 8)


def number(value: float, digits: int = 3) -> str:
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{value:,.{digits}f}"
    # -0.000 is a zero.
    return text.lstrip("-") if not float(text.replace(",", "")) else text.replace("-", MINUS)


def amount(value: float) -> str:
    """A metric of any size: 0.901, 12.34, 31,240."""
    large = math.isfinite(value) and abs(value) >= 10
    return number(value, max(3 - math.floor(math.log10(abs(value))), 0) if large else 3)


def plain(value: float) -> str:
    """At most three digits, as few as say the same: .010 -> 0.01, .0229315 -> 0.0229."""
    return f"{value:,.3g}".replace("-", MINUS) if math.isfinite(value) else DASH


def signed(value: float, digits: int = 3) -> str:
    text = number(value, digits)
    zero = text.strip("0.") == ""
    return text if text in (DASH,) or text.startswith(MINUS) or zero else "+" + text


def interval(low: float, high: float, digits: int = 3) -> str:
    return f"{signed(low, digits)} to {signed(high, digits)}"


def percent(value: float, digits: int = 1) -> str:
    return DASH if not math.isfinite(value) else number(100 * value, digits) + "\N{NARROW NO-BREAK SPACE}%"


def seconds(value: float) -> str:
    if not math.isfinite(value):
        return DASH
    if value < 10:
        return f"{value:.1f} s"
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min"


def times(value: float) -> str:
    """How many times as much data: about 1.4 x, about 12 x, more than 20 x; beyond that the number says nothing more."""
    if not math.isfinite(value) or value > 20:
        return DASH if math.isnan(value) else "more than 20\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}"
    return f"about {number(value, 1 if value < 10 else 0)}\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}"


def words(name: str) -> str:
    """``balanced_accuracy`` -> balanced accuracy, ``auroc`` -> AUROC"""
    return ABBREVIATIONS.get(name, name.replace("_", " "))


def shorten(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def distinct(names: Sequence[str], most: int) -> list[str]:
    """Names of at most ``most`` letters; those that would look alike when cut at the end are cut in the middle."""
    ellipsis = "\N{HORIZONTAL ELLIPSIS}"
    cut = [shorten(name, most) for name in names]
    alike = Counter(cut)
    tail = (most - 1) // 2
    return [
        name[: most - 1 - tail] + ellipsis + name[-tail:] if len(name) > most and alike[short] > 1 else short
        for name, short in zip(names, cut, strict=True)
    ]
